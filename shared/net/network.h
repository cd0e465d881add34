// Network: byte streams between authenticated nodes, and HTTP. The real one (real_network.h) is
// TLS 1.3 with mutual certificates over TCP, libcurl and Beast; the simulated one delivers, delays,
// cuts and resets. Everything runs on the Env's loop thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::net {

// What a node's certificate may act as. One role a certificate; checked on both ends.
enum class Role : uint8_t { kHost = 1, kShared = 2, kReplica = 3, kWitness = 4, kOperator = 5 };
std::string_view role_name(Role role);                     // "host", "shared", "replica", "witness", "operator"
std::optional<Role> parse_role(std::string_view name);

struct PeerIdentity {
  Uuid cluster;           // from the certificate authority
  Role role = Role::kHost;
  std::string node;       // the certificate's name
};

// Certificate files of this node (PEM). Read again when they change on disk.
struct TlsFiles {
  std::string authority;    // ca.pem
  std::string certificate;  // NODE.pem
  std::string key;          // NODE.key, refused unless private to its owner
};

struct Address {
  std::string host;   // name or numeric; for listening: numeric
  uint16_t port = 0;  // listening: 0 takes a free one
  std::string to_string() const;
  static Result<Address> parse(std::string_view text);  // "127.0.0.1:7400", "[::1]:7400"
};

// A connected byte stream. Ends once, by on_close.
class Stream {
 public:
  struct Handlers {
    UniqueFunction<void(ByteSpan)> on_data;    // all newly received bytes, in order
    UniqueFunction<void(Status)> on_close;     // once; no on_data after it; the Stream may be destroyed in it
  };
  virtual ~Stream() = default;               // closes without calling on_close
  virtual void start(Handlers handlers) = 0;  // call once; data is held back until then
  // Queues bytes; they leave at the end of the loop's turn or at flush(). The spans are copied.
  virtual void send(ByteSpan head, ByteSpan payload = {}) = 0;
  virtual void flush() = 0;
  virtual size_t unsent_bytes() const = 0;    // queued here and not yet taken by the kernel
  virtual void close(Status reason) = 0;      // flushes nothing; on_close(reason) follows
  virtual const PeerIdentity& peer() const = 0;
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual uint16_t port() const = 0;
};

struct HttpRequest {
  std::string method;                 // GET, PUT, POST, DELETE, HEAD
  std::string target;                 // path?query, percent-encoded
  std::map<std::string, std::string> headers;  // names in lower case
  Bytes body;
  PeerIdentity peer;                  // server side, TLS listeners only
  uint64_t bytes_per_second_max = 0;  // client side: how fast the body is sent; 0: as fast as it goes
};

struct HttpResponse {
  int status = 200;
  std::map<std::string, std::string> headers;
  Bytes body;
  // Server side, instead of `body`: pulls the next piece; an empty one ends. content_length must be set.
  using BodySource = UniqueFunction<void(size_t max, Callback<Result<Bytes>> piece)>;
  BodySource source;
  uint64_t content_length = 0;
  static HttpResponse text(int status, std::string body, std::string type = "text/plain");
  static HttpResponse json(int status, std::string body);
};

using HttpHandler = UniqueFunction<void(HttpRequest, Callback<HttpResponse>)>;

struct HttpServerOptions {
  std::optional<TlsFiles> tls;             // mutual TLS; none: plain (metrics on loopback, unix socket)
  std::vector<Role> roles_accepted;        // with tls: peers of other roles are refused and logged
  std::string unix_socket;                 // instead of an address: path, 0600
  Address address;
  uint64_t body_bytes_max = 80ull << 20;   // larger requests get 413 before their body is read
};

class HttpServer {
 public:
  virtual ~HttpServer() = default;          // stops accepting, closes connections
  virtual uint16_t port() const = 0;
};

struct HttpClientOptions {
  std::string url;                          // https://replica:7443 or, with unix_socket, http://localhost
  std::string unix_socket;
  std::optional<TlsFiles> tls;
  Role server_role = Role::kReplica;        // the server's certificate must carry it, and the cluster of ours
  std::string server_node;                  // expected certificate name; empty: it must name the url's host
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds stall_timeout{30000};   // no byte moved for so long: kUnavailable
};

// Keep-alive client of one server. Requests are answered in any order.
class HttpClient {
 public:
  virtual ~HttpClient() = default;          // cancels what is in flight; callbacks do not run
  // `request.target` is appended to the url. Transport errors are kUnavailable (or kPermission for a
  // failed certificate check); any HTTP status is a response.
  virtual void request(HttpRequest request, Callback<Result<HttpResponse>> done) = 0;
};

class Network {
 public:
  virtual ~Network() = default;
  struct ListenOptions {
    Address address;
    TlsFiles tls;
    std::vector<Role> roles_accepted;
  };
  virtual Result<std::unique_ptr<Listener>> listen(const ListenOptions& options,
                                                   UniqueFunction<void(std::unique_ptr<Stream>)> on_accept) = 0;
  struct ConnectOptions {
    Address address;
    TlsFiles tls;
    Role peer_role = Role::kShared;
    std::string peer_node;                  // expected certificate name; empty: any of that role
    std::chrono::milliseconds timeout{5000};
  };
  virtual void connect(const ConnectOptions& options, Callback<Result<std::unique_ptr<Stream>>> done) = 0;
  virtual Result<std::unique_ptr<HttpServer>> serve_http(const HttpServerOptions& options, HttpHandler handler) = 0;
  virtual Result<std::unique_ptr<HttpClient>> http_client(const HttpClientOptions& options) = 0;
};

}  // namespace tidemark::net
