// Loopback addresses, and clients that do not keep to the rules, with blocking sockets.
#pragma once

#include <cstdint>
#include <string>

#include "shared/net/network.h"

namespace tidemark::net {

Address loopback(uint16_t port = 0);

// Sends `bytes` over plain TCP and returns everything answered until the server closes (or 10 s).
std::string talk_plain(uint16_t port, const std::string& bytes);

// A plain connection that has sent `bytes` and stays open.
class OpenConnection {
 public:
  OpenConnection(uint16_t port, const std::string& bytes);
  ~OpenConnection();
  std::string read_some();

 private:
  int fd_;
};

struct RawTls {
  int max_version = 0;          // OpenSSL's TLS1_2_VERSION...; 0: no bound
  const TlsFiles* files = nullptr;  // certificate to offer; none: offers none
  std::string send;             // after the handshake
  int* key_updates = nullptr;   // counts those of the server
  size_t bytes_max = SIZE_MAX;  // received, then it closes
};
// Connects by TLS without any check of the server. Returns what was received, or "error: ..." with
// the handshake's or the first read's failure.
std::string talk_tls(uint16_t port, const RawTls& options);
int tls_1_2_version();

}  // namespace tidemark::net
