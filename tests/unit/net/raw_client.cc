#include "raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace tidemark::net {
namespace {

int connect_to(uint16_t port) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  timeval limit{10, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) return fd;
  ::close(fd);
  return -1;
}

std::string openssl_reason() {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  ERR_clear_error();
  return std::string("error: ") + (reason != nullptr ? reason : "connection lost");
}

}  // namespace

Address loopback(uint16_t port) { return Address{"127.0.0.1", port}; }

std::string talk_plain(uint16_t port, const std::string& bytes) {
  int fd = connect_to(port);
  if (fd < 0) return "error: connect";
  std::string out;
  if (::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) out = "error: send";
  ::shutdown(fd, SHUT_WR);
  char piece[4096];
  ssize_t n;
  while ((n = ::recv(fd, piece, sizeof piece, 0)) > 0) out.append(piece, static_cast<size_t>(n));
  ::close(fd);
  return out;
}

OpenConnection::OpenConnection(uint16_t port, const std::string& bytes) : fd_(connect_to(port)) {
  if (fd_ >= 0 && ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) ::shutdown(fd_, SHUT_RDWR);
}

OpenConnection::~OpenConnection() { ::close(fd_); }

std::string OpenConnection::read_some() {
  char piece[4096];
  ssize_t n = ::recv(fd_, piece, sizeof piece, 0);
  return std::string(piece, n > 0 ? static_cast<size_t>(n) : 0);
}

std::string talk_tls(uint16_t port, const RawTls& options) {
  int fd = connect_to(port);
  if (fd < 0) return "error: connect";
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  if (options.max_version != 0) SSL_CTX_set_max_proto_version(context, options.max_version);
  if (options.files != nullptr) {
    SSL_CTX_use_certificate_chain_file(context, options.files->certificate.c_str());
    SSL_CTX_use_PrivateKey_file(context, options.files->key.c_str(), SSL_FILETYPE_PEM);
  }
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, fd);
  auto count = [](int written, int, int type, const void* data, size_t size, SSL*, void* counter) {
    if (written != 0 || type != SSL3_RT_HANDSHAKE || size == 0) return;
    if (*static_cast<const uint8_t*>(data) == SSL3_MT_KEY_UPDATE) ++*static_cast<int*>(counter);
  };
  if (options.key_updates != nullptr) {
    SSL_set_msg_callback(ssl, count);
    SSL_set_msg_callback_arg(ssl, options.key_updates);
  }
  std::string out;
  if (SSL_connect(ssl) != 1) {
    out = openssl_reason();
  } else {
    if (!options.send.empty()) SSL_write(ssl, options.send.data(), static_cast<int>(options.send.size()));
    char piece[4096];
    int n;
    n = 0;
    while (out.size() < options.bytes_max && (n = SSL_read(ssl, piece, sizeof piece)) > 0) {
      out.append(piece, static_cast<size_t>(n));
    }
    if (n <= 0 && SSL_get_error(ssl, n) == SSL_ERROR_SSL) out = openssl_reason();
  }
  SSL_free(ssl);
  SSL_CTX_free(context);
  ::close(fd);
  return out;
}

int tls_1_2_version() { return TLS1_2_VERSION; }

}  // namespace tidemark::net
