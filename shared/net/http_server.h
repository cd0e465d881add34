// HTTP/1.1 servers on Boost.Beast. Connections are carried by one background thread for all
// servers of a network; each request is handed to its handler on the Env's loop, and the answer goes
// back by message, so that handlers need no lock.
//
// A request's body is read whole (bounded by the server's options, and by a bound on all bodies in
// flight) before the handler runs. A streamed answer is pulled piece by piece from the loop, one piece
// ahead of the socket: its memory is two pieces, however long it is.
#pragma once

#include <memory>

#include "shared/net/network.h"
#include "shared/net/tls_stream.h"

namespace tidemark::net {

class HttpServers {
 public:
  explicit HttpServers(std::shared_ptr<StreamLoop> loop);  // starts the thread
  ~HttpServers();                                          // after all its servers
  Result<std::unique_ptr<HttpServer>> serve(const HttpServerOptions& options, HttpHandler handler);

 private:
  struct Thread;
  std::unique_ptr<Thread> thread_;
};

}  // namespace tidemark::net
