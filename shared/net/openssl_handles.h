// Owners of OpenSSL's objects, and the few helpers that work on them. Only for .cc files of this
// folder: no other header includes it.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <sys/types.h>

#include <memory>
#include <string>

#include "shared/net/network.h"

namespace tidemark::net {

template <auto Free>
struct OpensslFree {
  template <typename T>
  void operator()(T* p) const { Free(p); }
};
using BioPtr = std::unique_ptr<BIO, OpensslFree<BIO_free_all>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, OpensslFree<EVP_PKEY_free>>;
using CertPtr = std::unique_ptr<X509, OpensslFree<X509_free>>;
using SslCtxPtr = std::unique_ptr<SSL_CTX, OpensslFree<SSL_CTX_free>>;
using SslPtr = std::unique_ptr<SSL, OpensslFree<SSL_free>>;

// Takes the newest entry of OpenSSL's error queue as text and empties the queue.
std::string take_openssl_error();

// A file that can be read at once: what opens a FIFO waits for whoever writes into it.
Status check_regular(const std::string& path, const std::string& what);
Result<CertPtr> load_certificate(const std::string& path);
// Refuses a key file that group or others may read: kPermission.
Result<KeyPtr> load_private_key(const std::string& path);

// Cluster, role and node of a node's certificate: exactly one SAN URI
// tidemark://CLUSTER/ROLE/NODE, whose node is the subject's CN.
Result<PeerIdentity> identity_of(X509* certificate);
Result<Uuid> cluster_of_authority(X509* certificate);
std::string common_name_of(const X509_NAME* name);
WallTime wall_time_of(const ASN1_TIME* time);

template <typename Write>
Result<Bytes> to_pem(Write write) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!bio || write(bio.get()) != 1) return Status(Code::kIoError, "writing PEM: " + take_openssl_error());
  char* data = nullptr;
  long size = BIO_get_mem_data(bio.get(), &data);
  return Bytes(data, data + size);
}
// Refuses an existing file unless `force`.
Status write_pem_file(const std::string& path, ByteSpan data, mode_t mode, bool force);

}  // namespace tidemark::net
