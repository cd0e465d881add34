#include "shared/net/revocation.h"

#include <fcntl.h>
#include <openssl/pem.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "shared/base/digest.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/pki.h"
#include "shared/net/revocation_memory.h"

namespace tidemark::net {
namespace {

using CrlPtr = std::unique_ptr<X509_CRL, OpensslFree<X509_CRL_free>>;

std::string text_of(const ASN1_INTEGER* serial) {
  return to_hex({ASN1_STRING_get0_data(serial), static_cast<size_t>(ASN1_STRING_length(serial))});
}

struct IntegerFree {
  void operator()(ASN1_INTEGER* number) const { ASN1_INTEGER_free(number); }
};
using IntegerPtr = std::unique_ptr<ASN1_INTEGER, IntegerFree>;

// A list of a version that wrote no number had one entry more than the one before.
uint64_t number_of(X509_CRL* list) {
  IntegerPtr number(static_cast<ASN1_INTEGER*>(X509_CRL_get_ext_d2i(list, NID_crl_number, nullptr, nullptr)));
  uint64_t out = 0;
  if (number && ASN1_INTEGER_get_uint64(&out, number.get()) == 1) return out;
  return static_cast<uint64_t>(std::max(0, sk_X509_REVOKED_num(X509_CRL_get_REVOKED(list))));
}

// Null: there is none.
Result<CrlPtr> load_list(const std::string& path, X509* authority) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return CrlPtr();
    return Status::from_errno(errno, "revocation list " + path);
  }
  TM_RETURN_IF_ERROR(check_regular(path, "revocation list"));
  BioPtr bio(BIO_new_file(path.c_str(), "r"));
  CrlPtr list(bio ? PEM_read_bio_X509_CRL(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!list) return Status(Code::kInvalidArgument, "revocation list " + path + ": " + take_openssl_error());
  if (X509_CRL_verify(list.get(), X509_get0_pubkey(authority)) != 1) {
    ERR_clear_error();
    return Status(Code::kInvalidArgument, "revocation list " + path + " is not signed by this cluster's authority");
  }
  return list;
}

}  // namespace

std::string revocation_list_of(const std::string& authority_path) {
  return (std::filesystem::path(authority_path).parent_path() / "revoked.pem").string();
}

std::string serial_of(const x509_st* certificate) { return text_of(X509_get0_serialNumber(certificate)); }

Result<std::shared_ptr<const Revoked>> load_revoked(const std::string& authority_path, x509_st* authority) {
  const std::string path = revocation_list_of(authority_path);
  TM_ASSIGN_OR_RETURN(CrlPtr list, load_list(path, authority));
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  if (X509_pubkey_digest(authority, EVP_sha256(), digest.data(), &length) != 1)
    return Status(Code::kInvalidArgument, authority_path + ": " + take_openssl_error());
  const std::string name = to_hex({digest.data(), length});
  if (!list) return seen_without_list(name, path);
  RevocationList out{name, path, number_of(list.get()), {}};
  STACK_OF(X509_REVOKED)* entries = X509_CRL_get_REVOKED(list.get());
  for (int i = 0; i < sk_X509_REVOKED_num(entries); ++i) {
    out.serials.insert(text_of(X509_REVOKED_get0_serialNumber(sk_X509_REVOKED_value(entries, i))));
  }
  return add_to_seen(std::move(out));
}

namespace pki {
namespace {

struct TimeFree {
  void operator()(ASN1_TIME* time) const { ASN1_TIME_free(time); }
};

// Of all processes that have the authority's key one at a time writes the list: another would leave out what it adds.
class AuthorityLock {
 public:
  // Waits for whoever has it.
  static Result<AuthorityLock> take(const std::string& key_path) {
    int fd = ::open(key_path.c_str(), O_RDWR | O_CLOEXEC);   // NFS wants it writable
    if (fd < 0) fd = ::open(key_path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Status::from_errno(errno, key_path);
    AuthorityLock out(fd);
    while (::flock(fd, LOCK_EX) != 0)
      if (errno != EINTR) return Status::from_errno(errno, "lock of " + key_path);
    return out;
  }
  AuthorityLock(AuthorityLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  AuthorityLock& operator=(AuthorityLock&&) = delete;
  ~AuthorityLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit AuthorityLock(int fd) : fd_(fd) {}
  int fd_;
};

Result<CrlPtr> new_list(X509* authority) {
  CrlPtr list(X509_CRL_new());
  if (!list || X509_CRL_set_version(list.get(), 1) != 1 ||
      X509_CRL_set_issuer_name(list.get(), X509_get_subject_name(authority)) != 1 ||
      X509_CRL_set1_nextUpdate(list.get(), X509_get0_notAfter(authority)) != 1) {
    return Status(Code::kIoError, "new revocation list: " + take_openssl_error());
  }
  return list;
}

Status add_entry(X509_CRL* list, X509* certificate, const ASN1_TIME* now) {
  X509_REVOKED* entry = X509_REVOKED_new();
  bool good = entry != nullptr && X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(certificate)) == 1 &&
              X509_REVOKED_set_revocationDate(entry, const_cast<ASN1_TIME*>(now)) == 1;   // an old signature: it copies
  if (good && X509_CRL_add0_revoked(list, entry) == 1) return Status::ok();
  X509_REVOKED_free(entry);
  return Status(Code::kIoError, "revocation list: " + take_openssl_error());
}

}  // namespace

Result<Revocation> revoke(const RevokeOptions& options) {
  const std::string authority_path = options.authority_directory + "/ca.pem";
  TM_ASSIGN_OR_RETURN(CertPtr authority, load_certificate(authority_path));
  TM_ASSIGN_OR_RETURN(KeyPtr key, load_private_key(options.authority_directory + "/ca.key"));
  TM_ASSIGN_OR_RETURN(CertPtr certificate, load_certificate(options.certificate));
  if (X509_verify(certificate.get(), X509_get0_pubkey(authority.get())) != 1) {
    ERR_clear_error();
    return Status(Code::kInvalidArgument, options.certificate + " was not issued by " + authority_path);
  }
  Revocation out;
  TM_ASSIGN_OR_RETURN(out.identity, identity_of(certificate.get()));
  out.serial = serial_of(certificate.get());
  out.list = revocation_list_of(authority_path);
  TM_ASSIGN_OR_RETURN(const AuthorityLock lock, AuthorityLock::take(options.authority_directory + "/ca.key"));
  TM_ASSIGN_OR_RETURN(CrlPtr list, load_list(out.list, authority.get()));
  if (!list) {
    TM_ASSIGN_OR_RETURN(list, new_list(authority.get()));
  }
  X509_REVOKED* found = nullptr;
  out.again = X509_CRL_get0_by_cert(list.get(), &found, certificate.get()) == 1;
  if (out.again || options.dry_run) return out;
  const uint64_t number = number_of(list.get()) + 1;   // before it grows
  std::unique_ptr<ASN1_TIME, TimeFree> now(X509_gmtime_adj(nullptr, 0));
  TM_RETURN_IF_ERROR(add_entry(list.get(), certificate.get(), now.get()));
  IntegerPtr encoded(ASN1_INTEGER_new());
  if (!encoded || ASN1_INTEGER_set_uint64(encoded.get(), number) != 1 ||
      X509_CRL_add1_ext_i2d(list.get(), NID_crl_number, encoded.get(), 0, X509V3_ADD_REPLACE) != 1) {
    return Status(Code::kIoError, "numbering the revocation list: " + take_openssl_error());
  }
  if (X509_CRL_set1_lastUpdate(list.get(), now.get()) != 1 || X509_CRL_sort(list.get()) != 1 ||
      X509_CRL_sign(list.get(), key.get(), EVP_sha256()) == 0) {
    return Status(Code::kIoError, "signing the revocation list: " + take_openssl_error());
  }
  TM_ASSIGN_OR_RETURN(Bytes pem, to_pem([&](BIO* bio) { return PEM_write_bio_X509_CRL(bio, list.get()); }));
  TM_RETURN_IF_ERROR(write_pem_file(out.list, pem, 0644, true));
  return out;
}

}  // namespace pki
}  // namespace tidemark::net
