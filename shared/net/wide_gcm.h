// AES-128-GCM on the processor's widest vectors, for TLS: an OpenSSL provider over Intel's Multi-Buffer Crypto library.
//
// OpenSSL 3.0 knows AES-NI alone: 3.9 microseconds for a TLS record of 16 KiB, and 0.33 for a small frame; with VAES on
// 512-bit registers 1.4 and 0.06. Keys, handshakes and records stay OpenSSL's.
#pragma once

namespace tidemark::net {

// To be given to SSL_CTX_new_ex() or EVP_CIPHER_fetch(): prefers this cipher where this processor has VAES and AVX-512,
// and takes OpenSSL's own otherwise. Registers the provider "tidemark" at the first call.
const char* tls_properties();

}  // namespace tidemark::net
