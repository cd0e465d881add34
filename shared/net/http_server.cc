#include "shared/net/http_server.h"

#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>

#include <cerrno>
#include <cstring>
#include <thread>

#include "shared/net/http_session.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/stream_endpoints.h"

namespace tidemark::net {
namespace {

using namespace http_detail;  // this folder's own
using Tcp = asio::ip::tcp;
using Unix = asio::local::stream_protocol;
// TCP and Unix sockets alike: each further type of connection costs a compiler ten seconds.
using PlainConnection = beast::basic_stream<asio::generic::stream_protocol>;
using TlsConnection = beast::ssl_stream<PlainConnection>;

constexpr auto kAcceptRest = std::chrono::milliseconds(200);

awaitable<void> serve_plain(CorePtr core, PlainConnection connection, std::string from) {
  if (core->stopping) co_return;  // accepted just before
  Session<PlainConnection> session(core, connection, from);
  Registration registration(*core, [&session] { session.abort(); });
  co_await session.run();
}

awaitable<void> serve_tls(CorePtr core, PlainConnection socket, std::string from) {
  if (core->stopping) co_return;  // accepted just before
  auto context = core->contexts.get(*core->options.tls, core->env.wall());
  if (!context) {
    kLog.warning("connection_refused", {{"peer", from}, {"reason", context.status()}});
    co_return;
  }
  SSL_CTX_up_ref((*context)->native());
  asio::ssl::context native((*context)->native());
  TlsConnection connection(std::move(socket), native);
  PeerCheck check;
  check.roles = core->options.roles_accepted;
  check.cluster = (*context)->cluster();
  check.revoked = (*context)->revoked();
  check.now = core->env.wall();
  attach_check(connection.native_handle(), &check);
  Session<TlsConnection> session(core, connection, from);
  Registration registration(*core, [&session] { session.abort(); });
  error_code ec;
  beast::get_lowest_layer(connection).expires_after(std::chrono::seconds(limits::kHandshakeSecondsMax));
  co_await connection.async_handshake(asio::ssl::stream_base::server, redirect_error(use_awaitable, ec));
  if (ec) {
    std::string reason = check.reason.empty() ? ec.message() : check.reason;
    if (!core->stopping) kLog.warning("handshake_refused", {{"peer", from}, {"reason", reason}});
    co_return;
  }
  session.set_peer(check.peer);
  Core::Peer self{check.serial, check.peer.node, from, [&session] { session.abort(); }};
  auto known = core->peers.insert(core->peers.end(), std::move(self));
  co_await session.run();
  core->peers.erase(known);
  beast::get_lowest_layer(connection).expires_after(kLinger);
  if (!core->stopping) co_await connection.async_shutdown(redirect_error(use_awaitable, ec));
}

// Ends connections of peers whose certificates are revoked, idle ones and those in the midst of an answer.
awaitable<void> watch_revoked(CorePtr core) {
  asio::steady_timer timer(core->context);
  Registration registration(*core, [&timer] { timer.cancel(); });
  while (!core->stopping) {
    error_code ignored;   // cancelled to stop
    timer.expires_after(std::chrono::seconds(kRevocationCheckSeconds));
    co_await timer.async_wait(redirect_error(use_awaitable, ignored));
    if (core->stopping || core->peers.empty()) continue;
    auto context = core->contexts.get(*core->options.tls, core->env.wall());
    if (!context) continue;   // it was usable once: the last usable one is given
    for (Core::Peer& peer : core->peers) {
      if (!(*context)->is_revoked(peer.serial)) continue;
      kLog.warning("connection_ended",
                   {{"peer", peer.from}, {"node", peer.node}, {"reason", "its certificate was revoked"}});
      peer.abort();
    }
  }
}

std::string name_of(const Tcp::socket& socket) {
  error_code ec;
  auto end = socket.remote_endpoint(ec);
  return ec ? "unknown" : Address{end.address().to_string(), end.port()}.to_string();
}

void spawn_session(const CorePtr& core, Tcp::socket socket) {
  error_code ignored;  // a connection that is gone already says so at its first read
  socket.set_option(Tcp::no_delay(true), ignored);
  std::string from = name_of(socket);
  PlainConnection stream(std::move(socket));
  if (core->options.tls) asio::co_spawn(core->context, serve_tls(core, std::move(stream), from), asio::detached);
  else asio::co_spawn(core->context, serve_plain(core, std::move(stream), from), asio::detached);
}

void spawn_session(const CorePtr& core, Unix::socket socket) {
  PlainConnection stream(std::move(socket));
  asio::co_spawn(core->context, serve_plain(core, std::move(stream), core->options.unix_socket), asio::detached);
}

template <typename Protocol>
awaitable<void> accept_all(CorePtr core, typename Protocol::acceptor acceptor) {
  asio::steady_timer rest(core->context);
  Registration registration(*core, [&acceptor, &rest] {
    error_code ignored;  // it is being given up
    acceptor.close(ignored);
    rest.cancel();
  });
  while (!core->stopping) {
    error_code ec;
    typename Protocol::socket socket = co_await acceptor.async_accept(redirect_error(use_awaitable, ec));
    if (core->stopping) co_return;
    if (!ec && core->aborts.size() <= limits::kHttpConnectionsMax) {
      spawn_session(core, std::move(socket));
      continue;
    }
    if (!ec) {
      kLog.warning("connection_refused", {{"reason", "too many connections"}});
      continue;
    }
    kLog.warning("accept_failed", {{"reason", ec.message()}});
    rest.expires_after(kAcceptRest);
    co_await rest.async_wait(redirect_error(use_awaitable, ec));
  }
}

class Server final : public HttpServer {
 public:
  Server(CorePtr core, uint16_t port) : core_(std::move(core)), port_(port) {}
  ~Server() override {
    core_->open = false;
    auto handler = std::move(core_->handler);
    auto drained = core_->drained.get_future();
    asio::post(core_->context, [core = core_] {
      core->stopping = true;
      for (auto& abort : core->aborts) abort();
      core->drained_if_idle();
    });
    drained.wait();  // the background thread never waits for the loop
    const std::string& path = core_->options.unix_socket;
    if (!path.empty() && ::unlink(path.c_str()) != 0)
      kLog.warning("socket_left", {{"path", path}, {"reason", std::strerror(errno)}});
  }
  uint16_t port() const override { return port_; }

 private:
  CorePtr core_;
  const uint16_t port_;
};

}  // namespace

struct HttpServers::Thread {
  explicit Thread(std::shared_ptr<StreamLoop> l)
      : loop(std::move(l)), work(context.get_executor()), thread([this] { context.run(); }) {}
  ~Thread() {
    work.reset();
    thread.join();
  }
  std::shared_ptr<StreamLoop> loop;  // shared with the streams
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::thread thread;
};

HttpServers::HttpServers(std::shared_ptr<StreamLoop> loop) : thread_(std::make_unique<Thread>(std::move(loop))) {}
HttpServers::~HttpServers() = default;

Result<std::unique_ptr<HttpServer>> HttpServers::serve(const HttpServerOptions& options, HttpHandler handler) {
  StreamLoop& loop = *thread_->loop;
  if (options.tls) {
    if (auto context = loop.contexts.get(*options.tls, loop.env.wall()); !context) return context.status();
  }
  auto core = std::make_shared<Core>(loop.env, thread_->context, loop.contexts, loop.records_per_key, options);
  core->handler = std::make_shared<HttpHandler>(std::move(handler));
  error_code ec;
  uint16_t port = 0;
  if (!options.unix_socket.empty()) {
    TM_ASSIGN_OR_RETURN(int fd, listen_on_path(options.unix_socket));
    Unix::acceptor acceptor(thread_->context);
    acceptor.assign(Unix(), fd, ec);
    if (!ec) asio::co_spawn(thread_->context, accept_all<Unix>(core, std::move(acceptor)), asio::detached);
  } else {
    TM_ASSIGN_OR_RETURN(ListeningSocket socket, listen_on(options.address));
    port = socket.port;
    Tcp::acceptor acceptor(thread_->context);
    acceptor.assign(options.address.host.find(':') == std::string::npos ? Tcp::v4() : Tcp::v6(), socket.fd, ec);
    if (!ec) asio::co_spawn(thread_->context, accept_all<Tcp>(core, std::move(acceptor)), asio::detached);
  }
  if (ec) return Status(Code::kIoError, "listening socket: " + ec.message());
  if (options.tls) asio::co_spawn(thread_->context, watch_revoked(core), asio::detached);
  return std::unique_ptr<HttpServer>(new Server(std::move(core), port));
}

}  // namespace tidemark::net
