// Where connections begin: listening sockets, the TLS listener, and one attempt to connect.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shared/net/name_lookups.h"
#include "shared/net/tls_stream.h"

namespace tidemark::net {

// A bound, listening, non-blocking socket and its port. The message says what to do about a used port.
struct ListeningSocket {
  int fd = -1;
  uint16_t port = 0;
};
Result<ListeningSocket> listen_on(const Address& address);
// The same on a path, 0600. Replaces a socket that nobody serves; kBusy if somebody does.
Result<int> listen_on_path(const std::string& path);

class TlsListener final : public Listener {
 public:
  using Accept = UniqueFunction<void(std::unique_ptr<Stream>)>;
  static Result<std::unique_ptr<TlsListener>> open(std::shared_ptr<StreamLoop> loop,
                                                   const Network::ListenOptions& options, Accept on_accept);
  ~TlsListener() override;
  uint16_t port() const override { return socket_.port; }

 private:
  struct Pending {
    std::unique_ptr<TlsStream> stream;
    io::TimerId timer;
  };
  TlsListener(std::shared_ptr<StreamLoop> loop, const Network::ListenOptions& options, Accept on_accept);
  void accept_ready();
  void begin_handshake(int fd, const std::string& address);
  void handshake_over(uint64_t number, const Status& status);

  std::shared_ptr<StreamLoop> loop_;  // shared with the streams
  const Network::ListenOptions options_;
  std::shared_ptr<Accept> on_accept_;  // shared with a call under way, which may destroy the listener
  ListeningSocket socket_;
  std::map<uint64_t, Pending> pending_;
  uint64_t next_ = 0;
  io::TimerId resume_;  // accepting rests while descriptors are short
};

// Resolves, connects, shakes hands; tells `done` once, unless destroyed before.
class Connector : public std::enable_shared_from_this<Connector> {
 public:
  using Done = Callback<Result<std::unique_ptr<Stream>>>;
  Connector(std::shared_ptr<StreamLoop> loop, const Network::ConnectOptions& options, Done done);
  ~Connector();
  void begin();

 private:
  void resolved(Result<std::vector<SocketAddress>> addresses);
  void try_next(Status last);
  void leave_time_for_others();
  Status attempt(const SocketAddress& address);
  void finish(Result<std::unique_ptr<Stream>> result);

  std::shared_ptr<StreamLoop> loop_;  // shared with the streams
  const Network::ConnectOptions options_;
  Done done_;
  io::BootTime end_;
  io::TimerId timer_, attempt_timer_;
  std::vector<SocketAddress> addresses_;
  size_t tried_ = 0;
  std::unique_ptr<TlsStream> stream_;
};

}  // namespace tidemark::net
