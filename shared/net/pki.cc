#include "shared/net/pki.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <filesystem>

#include "shared/base/digest.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/revocation.h"

namespace tidemark::net {

std::string take_openssl_error() {
  unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  if (code == 0) return "no reason given";
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : "error " + std::to_string(code);
}

Status check_regular(const std::string& path, const std::string& what) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) return Status::from_errno(errno, what + " " + path);
  if (S_ISREG(st.st_mode)) return Status::ok();
  return Status(Code::kInvalidArgument, what + " " + path + " is no regular file");
}

Result<CertPtr> load_certificate(const std::string& path) {
  TM_RETURN_IF_ERROR(check_regular(path, "certificate"));
  BioPtr file(BIO_new_file(path.c_str(), "r"));
  if (!file) {
    int error = errno;
    ERR_clear_error();
    return Status::from_errno(error, "certificate " + path);
  }
  CertPtr cert(PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr));
  if (!cert) return Status(Code::kInvalidArgument, "certificate " + path + " is not PEM: " + take_openssl_error());
  return cert;
}

Result<KeyPtr> load_private_key(const std::string& path) {
  TM_RETURN_IF_ERROR(check_regular(path, "private key"));
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Status::from_errno(errno, "private key " + path);
  struct stat st{};
  if (::fstat(fd, &st) != 0 || (st.st_mode & 077) != 0) {
    ::close(fd);
    return Status(Code::kPermission, "private key " + path + " may be read by others than its owner: chmod 600 it");
  }
  FILE* file = ::fdopen(fd, "r");
  if (file == nullptr) { ::close(fd); return Status::from_errno(errno, "private key " + path); }
  BioPtr bio(BIO_new_fp(file, BIO_CLOSE));
  // An empty passphrase callback: a daemon must not ask on a terminal.
  auto no_passphrase = [](char*, int, int, void*) { return 0; };
  KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  if (!key)
    return Status(Code::kInvalidArgument, "private key " + path + " is not a plain PEM key: " + take_openssl_error());
  return key;
}

std::string common_name_of(const X509_NAME* name) {
  int at = X509_NAME_get_index_by_NID(name, NID_commonName, -1);
  if (at < 0) return "";
  const ASN1_STRING* text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
  return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                     static_cast<size_t>(ASN1_STRING_length(text)));
}

WallTime wall_time_of(const ASN1_TIME* time) {
  std::tm tm{};
  if (ASN1_TIME_to_tm(time, &tm) != 1) return {};
  return WallTime{static_cast<int64_t>(timegm(&tm)) * 1'000'000'000};
}

Result<Uuid> cluster_of_authority(X509* certificate) {
  auto cluster = Uuid::parse(common_name_of(X509_get_subject_name(certificate)));
  if (!cluster) return Status(Code::kInvalidArgument, "the authority's CN is not a cluster UUID");
  return *cluster;
}

namespace {

constexpr std::string_view kScheme = "tidemark://";
constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kDay = 86400 * kSecond;
constexpr int kDaysMax = 36500;

struct AltNames {
  std::vector<std::string> uris, names;
};

AltNames alt_names_of(X509* certificate) {
  AltNames out;
  auto* list = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  if (list == nullptr) return out;
  for (int i = 0; i < sk_GENERAL_NAME_num(list); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(list, i);
    auto text = [](const ASN1_STRING* s) {
      return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(s)),
                         static_cast<size_t>(ASN1_STRING_length(s)));
    };
    if (name->type == GEN_URI) out.uris.push_back(text(name->d.uniformResourceIdentifier));
    if (name->type == GEN_DNS) out.names.push_back(text(name->d.dNSName));
    if (name->type == GEN_IPADD) {
      std::string raw = text(name->d.iPAddress);
      char buffer[INET6_ADDRSTRLEN] = "";
      if (raw.size() == 4) inet_ntop(AF_INET, raw.data(), buffer, sizeof buffer);
      if (raw.size() == 16) inet_ntop(AF_INET6, raw.data(), buffer, sizeof buffer);
      out.names.emplace_back(buffer);
    }
  }
  GENERAL_NAMES_free(list);
  return out;
}

bool is_numeric_address(const std::string& text) {
  unsigned char raw[16];
  return inet_pton(AF_INET, text.c_str(), raw) == 1 || inet_pton(AF_INET6, text.c_str(), raw) == 1;
}

}  // namespace

bool pki::is_node_name(std::string_view name) {
  if (name.empty() || name.size() > 63 || !std::isalnum(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

Result<PeerIdentity> identity_of(X509* certificate) {
  auto bad = [](std::string why) { return Status(Code::kPermission, std::move(why)); };
  PeerIdentity out;
  bool found = false;
  for (const std::string& uri : alt_names_of(certificate).uris) {
    if (!uri.starts_with(kScheme)) continue;
    if (found) return bad("the certificate carries two tidemark names");
    found = true;
    std::string_view rest = std::string_view(uri).substr(kScheme.size());
    size_t first = rest.find('/');
    size_t second = first == std::string_view::npos ? first : rest.find('/', first + 1);
    if (second == std::string_view::npos) return bad("the certificate's name " + uri + " is incomplete");
    auto cluster = Uuid::parse(rest.substr(0, first));
    auto role = parse_role(rest.substr(first + 1, second - first - 1));
    if (!cluster || !role) return bad("the certificate's name " + uri + " has no known cluster or role");
    out = {*cluster, *role, std::string(rest.substr(second + 1))};
  }
  if (!found) return bad("the certificate carries no tidemark name (SAN URI)");
  if (!pki::is_node_name(out.node)) return bad("the certificate's node name is malformed");
  if (common_name_of(X509_get_subject_name(certificate)) != out.node)
    return bad("the certificate's CN is not its node name");
  return out;
}

namespace {
Status write_all(int fd, ByteSpan data, const std::string& path) {
  while (!data.empty()) {
    ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::from_errno(errno, path);
    data = data.subspan(static_cast<size_t>(n));
  }
  if (::fsync(fd) != 0) return Status::from_errno(errno, path);
  return Status::ok();
}

Status sync_directory_of(const std::string& path) {
  std::string directory = std::filesystem::path(path).parent_path().string();
  if (directory.empty()) directory = ".";
  int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Status::from_errno(errno, directory);
  Status status = ::fsync(fd) == 0 ? Status::ok() : Status::from_errno(errno, directory);
  ::close(fd);
  return status;
}
}  // namespace

// Whole or not at all: a daemon that rereads rotated files never meets half of one.
Status write_pem_file(const std::string& path, ByteSpan data, mode_t mode, bool force) {
  std::string temporary = path + ".new." + std::to_string(::getpid());
  ::unlink(temporary.c_str());
  int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) return Status::from_errno(errno, temporary);
  Status status = write_all(fd, data, temporary);
  if (status.is_ok() && ::fchmod(fd, mode) != 0) status = Status::from_errno(errno, temporary);
  ::close(fd);
  if (status.is_ok()) {
    // link() refuses an existing name, rename() replaces it.
    int failed = force ? ::rename(temporary.c_str(), path.c_str()) : ::link(temporary.c_str(), path.c_str());
    if (failed != 0) status = Status::from_errno(errno, path);
  }
  if (!force || !status.is_ok()) ::unlink(temporary.c_str());
  if (status.is_ok()) status = sync_directory_of(path);
  return status;
}

namespace pki {
namespace {

Status openssl_failed(const std::string& what) { return Status(Code::kIoError, what + ": " + take_openssl_error()); }

WallTime now() {
  std::timespec ts{};
  std::timespec_get(&ts, TIME_UTC);
  return {ts.tv_sec * kSecond + ts.tv_nsec};
}

Status refuse_existing(const std::string& path, bool force) {
  std::error_code ignored;
  if (force || !std::filesystem::exists(path, ignored)) return Status::ok();
  return Status(Code::kAlreadyExists, path + " exists; --force overwrites it");
}

Status write_pair(X509* cert, EVP_PKEY* key, const std::string& cert_path, const std::string& key_path, bool force) {
  TM_ASSIGN_OR_RETURN(Bytes key_pem, to_pem([&](BIO* bio) {
    return PEM_write_bio_PKCS8PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  }));
  TM_ASSIGN_OR_RETURN(Bytes cert_pem, to_pem([&](BIO* bio) { return PEM_write_bio_X509(bio, cert); }));
  TM_RETURN_IF_ERROR(write_pem_file(key_path, key_pem, 0600, force));
  OPENSSL_cleanse(key_pem.data(), key_pem.size());
  Status status = write_pem_file(cert_path, cert_pem, 0644, force);
  if (!status && !force) ::unlink(key_path.c_str());  // a key without its certificate would block the next try
  return status;
}

Status add_extension(X509* cert, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  if (extension == nullptr) return openssl_failed("certificate extension " + value);
  int added = X509_add_ext(cert, extension, -1);
  X509_EXTENSION_free(extension);
  return added == 1 ? Status::ok() : openssl_failed("certificate extension " + value);
}

Status set_dates(X509* cert, const Validity& validity, std::optional<WallTime> latest) {
  WallTime from = validity.not_before.value_or(WallTime{now().ns - 2 * kDay});
  if (validity.days < 1 || validity.days > kDaysMax) {
    return Status(Code::kInvalidArgument, "a certificate is valid for 1 to " + std::to_string(kDaysMax) + " days");
  }
  WallTime to = validity.not_after.value_or(WallTime{now().ns + validity.days * kDay});
  if (latest && *latest < to) to = *latest;
  if (to <= from) {
    return Status(Code::kInvalidArgument,
                  "a certificate from " + from.to_string() + " to " + to.to_string() + " is never valid");
  }
  if (ASN1_TIME_set(X509_getm_notBefore(cert), from.ns / kSecond) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(cert), to.ns / kSecond) == nullptr) {
    return openssl_failed("certificate dates");
  }
  return Status::ok();
}

// A certificate with version, random serial, subject, dates and public key, not yet signed.
Result<CertPtr> new_certificate(EVP_PKEY* key, const std::string& common_name, const Validity& validity,
                                std::optional<WallTime> latest) {
  CertPtr cert(X509_new());
  uint8_t serial[16];
  if (!cert || RAND_bytes(serial, sizeof serial) != 1) return openssl_failed("new certificate");
  serial[0] = static_cast<uint8_t>((serial[0] & 0x7F) | 0x40);  // positive, and always 16 bytes long
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert.get()));
  BN_free(number);
  X509_NAME* subject = X509_get_subject_name(cert.get());
  auto add = [&](const char* field, const std::string& value) {
    return X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8, reinterpret_cast<const uint8_t*>(value.data()),
                                      static_cast<int>(value.size()), -1, 0) == 1;
  };
  if (X509_set_version(cert.get(), 2) != 1 || !add("O", "tidemark") || !add("CN", common_name) ||
      X509_set_pubkey(cert.get(), key) != 1) {
    return openssl_failed("new certificate");
  }
  TM_RETURN_IF_ERROR(set_dates(cert.get(), validity, latest));
  return cert;
}

Status make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return Status::from_errno(error.value(), "directory " + path);
  return Status::ok();
}

Result<std::string> alternative_names(const IssueOptions& options, const Uuid& cluster) {
  std::string out = "URI:" + std::string(kScheme) + cluster.to_string() + "/" + std::string(role_name(options.role)) +
                    "/" + options.node + ",DNS:" + options.node;
  for (const std::string& name : options.names) {
    if (name == options.node) continue;
    if (is_numeric_address(name)) {
      out += ",IP:" + name;
    } else if (name.size() <= 253 && !name.empty() && std::isalnum(static_cast<unsigned char>(name[0])) &&
               std::all_of(name.begin(), name.end(),
                           [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '-' || c == '_'; })) {
      out += ",DNS:" + name;
    } else {
      return Status(Code::kInvalidArgument, "\"" + name + "\" is neither a DNS name nor a numeric address");
    }
  }
  return out;
}

}  // namespace

Result<Authority> init_authority(const std::string& directory, const AuthorityOptions& options) {
  Authority out{options.cluster, directory + "/ca.pem", directory + "/ca.key"};
  TM_RETURN_IF_ERROR(refuse_existing(out.certificate, options.force));
  TM_RETURN_IF_ERROR(refuse_existing(out.key, options.force));
  TM_RETURN_IF_ERROR(make_directory(directory));
  if (out.cluster.is_nil()) {
    std::array<uint8_t, 16> random;
    if (RAND_bytes(random.data(), random.size()) != 1) return openssl_failed("random cluster UUID");
    out.cluster = Uuid::from_random(random);
  }
  KeyPtr key(EVP_EC_gen("P-256"));
  if (!key) return openssl_failed("new key");
  TM_ASSIGN_OR_RETURN(CertPtr cert,
                      new_certificate(key.get(), out.cluster.to_string(), options.validity, std::nullopt));
  if (X509_set_issuer_name(cert.get(), X509_get_subject_name(cert.get())) != 1) return openssl_failed("new authority");
  TM_RETURN_IF_ERROR(add_extension(cert.get(), cert.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  TM_RETURN_IF_ERROR(add_extension(cert.get(), cert.get(), NID_key_usage, "critical,keyCertSign,cRLSign"));
  TM_RETURN_IF_ERROR(add_extension(cert.get(), cert.get(), NID_subject_key_identifier, "hash"));
  if (X509_sign(cert.get(), key.get(), EVP_sha256()) == 0) return openssl_failed("signing the authority");
  TM_RETURN_IF_ERROR(write_pair(cert.get(), key.get(), out.certificate, out.key, options.force));
  return out;
}

Result<TlsFiles> issue(const IssueOptions& options) {
  if (!is_node_name(options.node) || options.node == "ca") {
    return Status(Code::kInvalidArgument,
                  "node name \"" + options.node +
                      "\": use letters, digits, . _ -, at most 63, beginning with a letter or digit, not \"ca\"");
  }
  const std::string& directory = options.out_directory.empty() ? options.authority_directory : options.out_directory;
  TlsFiles out{options.authority_directory + "/ca.pem", directory + "/" + options.node + ".pem",
               directory + "/" + options.node + ".key"};
  TM_RETURN_IF_ERROR(refuse_existing(out.certificate, options.force));
  TM_RETURN_IF_ERROR(refuse_existing(out.key, options.force));
  TM_ASSIGN_OR_RETURN(CertPtr authority, load_certificate(out.authority));
  TM_ASSIGN_OR_RETURN(KeyPtr authority_key, load_private_key(options.authority_directory + "/ca.key"));
  if (X509_check_private_key(authority.get(), authority_key.get()) != 1) {
    ERR_clear_error();
    return Status(Code::kInvalidArgument,
                  "ca.pem and ca.key in " + options.authority_directory + " do not belong together");
  }
  TM_ASSIGN_OR_RETURN(Uuid cluster, cluster_of_authority(authority.get()));
  TM_ASSIGN_OR_RETURN(std::string names, alternative_names(options, cluster));
  TM_RETURN_IF_ERROR(make_directory(directory));
  KeyPtr key(EVP_EC_gen("P-256"));
  if (!key) return openssl_failed("new key");
  TM_ASSIGN_OR_RETURN(CertPtr cert, new_certificate(key.get(), options.node, options.validity,
                                                    wall_time_of(X509_get0_notAfter(authority.get()))));
  if (X509_set_issuer_name(cert.get(), X509_get_subject_name(authority.get())) != 1)
    return openssl_failed("new certificate");
  const std::pair<int, std::string> extensions[] = {
      {NID_basic_constraints, "critical,CA:FALSE"}, {NID_key_usage, "critical,digitalSignature"},
      {NID_ext_key_usage, "serverAuth,clientAuth"}, {NID_subject_key_identifier, "hash"},
      {NID_authority_key_identifier, "keyid:always"}, {NID_subject_alt_name, names}};
  for (const auto& [nid, value] : extensions) {
    TM_RETURN_IF_ERROR(add_extension(cert.get(), authority.get(), nid, value));
  }
  if (X509_sign(cert.get(), authority_key.get(), EVP_sha256()) == 0) return openssl_failed("signing the certificate");
  TM_RETURN_IF_ERROR(write_pair(cert.get(), key.get(), out.certificate, out.key, options.force));
  return out;
}

Result<CertificateInfo> inspect(const std::string& certificate_path) {
  TM_ASSIGN_OR_RETURN(CertPtr cert, load_certificate(certificate_path));
  CertificateInfo out;
  out.subject = common_name_of(X509_get_subject_name(cert.get()));
  out.issuer = common_name_of(X509_get_issuer_name(cert.get()));
  out.is_authority = X509_check_ca(cert.get()) == 1;
  out.names = alt_names_of(cert.get()).names;
  out.not_before = wall_time_of(X509_get0_notBefore(cert.get()));
  out.not_after = wall_time_of(X509_get0_notAfter(cert.get()));
  if (out.is_authority) {
    TM_ASSIGN_OR_RETURN(out.cluster, cluster_of_authority(cert.get()));
  } else {
    TM_ASSIGN_OR_RETURN(PeerIdentity identity, identity_of(cert.get()));
    out.cluster = identity.cluster;
    out.identity = std::move(identity);
  }
  out.serial = serial_of(cert.get());
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (X509_digest(cert.get(), EVP_sha256(), digest, &size) != 1) return openssl_failed(certificate_path);
  out.fingerprint = to_hex({digest, size});
  return out;
}

}  // namespace pki
}  // namespace tidemark::net
