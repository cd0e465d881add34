#include "shared/net/tls_context.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "shared/base/log.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/wide_gcm.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("tls");
constexpr int64_t kExpiryWarningNs = 14ll * 86400 * 1'000'000'000;
constexpr int64_t kRetryNs = 10ll * 1'000'000'000;   // to files that could not be used

int check_index() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

int shared_check_index() {
  auto free_check = [](void*, void* data, CRYPTO_EX_DATA*, int, long, void*) {
    delete static_cast<std::shared_ptr<PeerCheck>*>(data);
  };
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, free_check);
  return index;
}

PeerCheck* check_of(SSL* ssl) {
  if (auto* check = static_cast<PeerCheck*>(SSL_get_ex_data(ssl, check_index()))) return check;
  auto* shared =
      static_cast<std::shared_ptr<PeerCheck>*>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), shared_check_index()));
  return shared != nullptr ? shared->get() : nullptr;
}

std::string chain_failure(X509_STORE_CTX* store, const PeerCheck& check) {
  int error = X509_STORE_CTX_get_error(store);
  X509* cert = X509_STORE_CTX_get_current_cert(store);
  std::string subject = cert != nullptr ? common_name_of(X509_get_subject_name(cert)) : "?";
  std::string clock = "; this machine's clock says " + check.now.to_string();
  if (cert != nullptr && error == X509_V_ERR_CERT_HAS_EXPIRED) {
    return "certificate of " + subject + " expired at " + wall_time_of(X509_get0_notAfter(cert)).to_string() + clock;
  }
  if (cert != nullptr && error == X509_V_ERR_CERT_NOT_YET_VALID) {
    return "certificate of " + subject + " is not valid before " + wall_time_of(X509_get0_notBefore(cert)).to_string() +
           clock;
  }
  std::string issuer = cert != nullptr ? common_name_of(X509_get_issuer_name(cert)) : "?";
  return "certificate of " + subject + ", issued by " + issuer + ", does not chain to this cluster's authority " +
         check.cluster.to_string() + ": " + X509_verify_cert_error_string(error);
}

std::string identity_failure(X509* cert, PeerCheck& check) {
  auto identity = identity_of(cert);
  if (!identity) return identity.status().message();
  check.peer = std::move(identity).value();
  if (check.peer.cluster != check.cluster) {
    return "certificate of " + check.peer.node + " belongs to cluster " + check.peer.cluster.to_string() + ", not " +
           check.cluster.to_string();
  }
  if (std::find(check.roles.begin(), check.roles.end(), check.peer.role) == check.roles.end()) {
    std::string wanted;
    for (Role role : check.roles) wanted += (wanted.empty() ? "" : " or ") + std::string(role_name(role));
    return "certificate of " + check.peer.node + " has role " + std::string(role_name(check.peer.role)) + ", not " +
           wanted;
  }
  check.serial = serial_of(cert);
  if (check.revoked && check.revoked->contains(check.serial)) {
    return "certificate of " + check.peer.node + " was revoked (serial " + check.serial + ")";
  }
  if (!check.node.empty() && check.peer.node != check.node) {
    return "certificate is that of " + check.peer.node + ", not of " + check.node;
  }
  return "";
}

int verify_peer(int chain_ok, X509_STORE_CTX* store) {
  auto* ssl = static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  PeerCheck* check = ssl != nullptr ? check_of(ssl) : nullptr;
  if (check == nullptr) return 0;
  if (!chain_ok) {
    if (check->reason.empty()) check->reason = chain_failure(store, *check);
    return 0;
  }
  if (X509_STORE_CTX_get_error_depth(store) != 0) return 1;
  check->reason = identity_failure(X509_STORE_CTX_get_current_cert(store), *check);
  if (check->reason.empty()) return 1;
  bool revoked = check->revoked && check->revoked->contains(check->serial);
  X509_STORE_CTX_set_error(store, revoked ? X509_V_ERR_CERT_REVOKED : X509_V_ERR_APPLICATION_VERIFICATION);
  return 0;
}

std::string stamp_of(const TlsFiles& files) {
  std::string out;
  const std::string revoked = revocation_list_of(files.authority);
  for (const std::string* path : {&files.authority, &files.certificate, &files.key, &revoked}) {
    struct stat st{};
    if (::stat(path->c_str(), &st) != 0) {
      out += "missing;";
      continue;
    }
    for (int64_t v :
         {static_cast<int64_t>(st.st_ino), static_cast<int64_t>(st.st_size), static_cast<int64_t>(st.st_mode),
          static_cast<int64_t>(st.st_mtim.tv_sec), static_cast<int64_t>(st.st_mtim.tv_nsec),
          static_cast<int64_t>(st.st_ctim.tv_sec), static_cast<int64_t>(st.st_ctim.tv_nsec)}) {
      out += std::to_string(v) + ",";
    }
    out += ";";
  }
  return out;
}

void warn_of_trouble_ahead(const TlsFiles& files, SSL_CTX* native, WallTime now) {
  X509* own = SSL_CTX_get0_certificate(native);
  WallTime end = wall_time_of(X509_get0_notAfter(own));
  WallTime begin = wall_time_of(X509_get0_notBefore(own));
  if (end.ns < now.ns + kExpiryWarningNs || now < begin) {
    kLog.warning("certificate_dates", {{"file", files.certificate}, {"not_before", begin.to_string()},
                                       {"not_after", end.to_string()}, {"clock", now.to_string()}});
  }
  auto authority = load_certificate(files.authority);
  if (authority && X509_verify(own, X509_get0_pubkey(authority->get())) != 1) {
    ERR_clear_error();
    kLog.warning("certificate_foreign", {{"file", files.certificate}, {"authority", files.authority},
                                         {"remedy", "issue it with this cluster's authority"}});
  }
}

bool is_refusal_alert(int alert) {
  switch (alert) {
    case SSL_AD_HANDSHAKE_FAILURE: case SSL_AD_BAD_CERTIFICATE: case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED: case SSL_AD_CERTIFICATE_EXPIRED: case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA: case SSL_AD_ACCESS_DENIED: case SSL_AD_PROTOCOL_VERSION:
    case SSL_AD_INSUFFICIENT_SECURITY: case SSL_AD_CERTIFICATE_REQUIRED:
      return true;
    default:
      return false;
  }
}

}  // namespace

Status configure_context(SSL_CTX* native) {
  SSL_CTX_set_options(native, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_mode(native, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_ENABLE_PARTIAL_WRITE);
  SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_verify(native, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify_peer);
  SSL_CTX_set_verify_depth(native, 1);
  if (SSL_CTX_set_min_proto_version(native, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(native, TLS1_3_VERSION) != 1 || SSL_CTX_set_num_tickets(native, 0) != 1 ||
      SSL_CTX_set_ciphersuites(native, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") !=
          1 ||
      SSL_CTX_set1_groups_list(native, "X25519:P-256") != 1) {
    return Status(Code::kUnsupported, "TLS 1.3 cannot be set up: " + take_openssl_error());
  }
  return Status::ok();
}

void attach_check(SSL* ssl, PeerCheck* check) {
  SSL_set_ex_data(ssl, check_index(), check);
  X509_VERIFY_PARAM_set_time(SSL_get0_param(ssl), static_cast<time_t>(check->now.ns / 1'000'000'000));
}

void share_check(SSL_CTX* native, std::shared_ptr<PeerCheck> check) {
  X509_VERIFY_PARAM_set_time(SSL_CTX_get0_param(native), static_cast<time_t>(check->now.ns / 1'000'000'000));
  SSL_CTX_set_ex_data(native, shared_check_index(), new std::shared_ptr<PeerCheck>(std::move(check)));
}

Status describe_tls_failure(const PeerCheck* check) {
  if (check != nullptr && !check->reason.empty()) {
    ERR_clear_error();
    return Status(Code::kPermission, check->reason);
  }
  unsigned long code = ERR_peek_last_error();
  int reason = ERR_GET_REASON(code);
  bool tls = ERR_GET_LIB(code) == ERR_LIB_SSL;
  std::string text = take_openssl_error();
  if (tls && reason > SSL_AD_REASON_OFFSET) {
    int alert = reason - SSL_AD_REASON_OFFSET;
    return Status(is_refusal_alert(alert) ? Code::kPermission : Code::kUnavailable, "the peer refused: " + text);
  }
  bool refused_here =
      tls && (reason == SSL_R_UNSUPPORTED_PROTOCOL || reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE);
  return Status(refused_here ? Code::kPermission : Code::kUnavailable, "TLS: " + text);
}

TlsContext::~TlsContext() { SSL_CTX_free(native_); }

Result<std::unique_ptr<TlsContext>> TlsContext::load(const TlsFiles& files) {
  SslCtxPtr native(SSL_CTX_new_ex(nullptr, tls_properties(), TLS_method()));
  if (!native) return Status(Code::kUnsupported, "TLS: " + take_openssl_error());
  TM_RETURN_IF_ERROR(configure_context(native.get()));
  TM_ASSIGN_OR_RETURN(CertPtr authority, load_certificate(files.authority));
  TM_ASSIGN_OR_RETURN(Uuid cluster, [&]() -> Result<Uuid> {
    auto found = cluster_of_authority(authority.get());
    return found ? std::move(found) : Result<Uuid>(found.status().with_context(files.authority));
  }());
  if (SSL_CTX_load_verify_file(native.get(), files.authority.c_str()) != 1 ||
      SSL_CTX_add_client_CA(native.get(), authority.get()) != 1) {
    return Status(Code::kInvalidArgument, "authority " + files.authority + ": " + take_openssl_error());
  }
  TM_ASSIGN_OR_RETURN(std::shared_ptr<const Revoked> revoked, load_revoked(files.authority, authority.get()));
  TM_ASSIGN_OR_RETURN(CertPtr own, load_certificate(files.certificate));
  auto self = identity_of(own.get());
  if (!self) return self.status().with_context(files.certificate);
  TM_ASSIGN_OR_RETURN(KeyPtr key, load_private_key(files.key));
  if (SSL_CTX_use_certificate_chain_file(native.get(), files.certificate.c_str()) != 1) {
    return Status(Code::kInvalidArgument, "certificate " + files.certificate + ": " + take_openssl_error());
  }
  if (SSL_CTX_use_PrivateKey(native.get(), key.get()) != 1 || SSL_CTX_check_private_key(native.get()) != 1) {
    ERR_clear_error();
    return Status(Code::kInvalidArgument, "key " + files.key + " does not belong to certificate " + files.certificate);
  }
  std::unique_ptr<TlsContext> out(new TlsContext(native.release()));
  out->cluster_ = cluster;
  out->self_ = std::move(self).value();
  out->not_after_ = wall_time_of(X509_get0_notAfter(own.get()));
  out->files_ = files;
  out->revoked_ = std::move(revoked);
  return out;
}

Result<std::shared_ptr<const TlsContext>> TlsContexts::get(const TlsFiles& files, WallTime now) {
  std::string stamp = stamp_of(files);
  std::lock_guard lock(mutex_);
  Entry& entry = entries_[files.authority + "\n" + files.certificate + "\n" + files.key];
  if (entry.context && entry.stamp == stamp) return entry.context;
  // The reason may have lain outside the files: descriptors that were short, a device's error, a label since put right.
  const bool known = entry.context && entry.failed_stamp == stamp;
  if (known && now >= entry.failed_at && now.ns - entry.failed_at.ns < kRetryNs) return entry.context;
  auto loaded = TlsContext::load(files);
  if (!loaded) {
    if (!entry.context) return loaded.status();
    entry.failed_stamp = stamp;
    entry.failed_at = now;
    if (!known) {
      kLog.warning("certificate_files_unusable", {{"file", files.certificate}, {"reason", loaded.status()},
                                                  {"kept", "the files read before"}});
    }
    return entry.context;
  }
  warn_of_trouble_ahead(files, (*loaded)->native(), now);
  if (entry.context) kLog.info("certificate_files_reread", {{"file", files.certificate}});
  entry.context = std::move(loaded).value();
  entry.stamp = stamp;
  entry.failed_stamp.clear();
  return entry.context;
}

}  // namespace tidemark::net
