#include "shared/net/http_server.h"

#include <unistd.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <list>
#include <thread>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/stream_endpoints.h"

namespace tidemark::net {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::awaitable;
using asio::redirect_error;
using asio::use_awaitable;
using boost::system::error_code;
using Tcp = asio::ip::tcp;
using Unix = asio::local::stream_protocol;
using TlsConnection = beast::ssl_stream<beast::tcp_stream>;
using Parser = http::request_parser<http::vector_body<uint8_t>>;

const log::Logger kLog("http");
constexpr auto kStall = std::chrono::seconds(limits::kHttpStallSecondsMax);
constexpr auto kIdle = std::chrono::seconds(limits::kHttpIdleSecondsMax);
constexpr auto kLinger = std::chrono::seconds(2);
constexpr auto kAcceptRest = std::chrono::milliseconds(200);

// What the loop and the background thread share of one server.
struct Core {
  Core(io::Env& e, asio::io_context& c, TlsContexts& t, const HttpServerOptions& o)
      : env(e), context(c), contexts(t), options(o) {}

  // Constant.
  io::Env& env;
  asio::io_context& context;
  TlsContexts& contexts;
  const HttpServerOptions options;

  // Loop thread.
  bool open = true;
  std::shared_ptr<HttpHandler> handler;  // shared with a call under way, which may destroy the server

  // Background thread.
  bool stopping = false;
  uint64_t body_bytes = 0;                      // of the requests in flight
  std::list<UniqueFunction<void()>> aborts;     // one for each running coroutine: ends it soon
  std::promise<void> drained;                   // none runs any more
  bool drained_told = false;

  void drained_if_idle() {
    if (!stopping || !aborts.empty() || drained_told) return;
    drained_told = true;
    drained.set_value();
  }
};
using CorePtr = std::shared_ptr<Core>;  // shared by the server, its coroutines and answers on their way

// Keeps a coroutine known to its server, so that it can be ended.
class Registration {
 public:
  Registration(Core& core, UniqueFunction<void()> abort)
      : core_(core), at_(core.aborts.insert(core.aborts.end(), std::move(abort))) {}
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  ~Registration() { core_.aborts.erase(at_); core_.drained_if_idle(); }

 private:
  Core& core_;
  std::list<UniqueFunction<void()>>::iterator at_;
};

// A value on its way from the loop to a waiting coroutine. Background thread only, but for tell().
template <typename T>
struct Mailbox {
  explicit Mailbox(asio::io_context& context) : arrived(context, asio::steady_timer::time_point::max()) {}
  asio::steady_timer arrived;  // cancelled when the value is there
  std::optional<T> value;

  static void tell(Core& core, std::shared_ptr<Mailbox> box, T value) {
    asio::post(core.context, [box = std::move(box), value = std::move(value)]() mutable {
      box->value.emplace(std::move(value));
      box->arrived.cancel();
    });
  }
};
template <typename T>
using MailboxPtr = std::shared_ptr<Mailbox<T>>;  // shared by the waiting coroutine and the teller

// An answer's function given to code on the loop. Dropping it uncalled answers `dropped`.
template <typename T>
class Answer {
 public:
  Answer(CorePtr core, MailboxPtr<T> box, UniqueFunction<T()> dropped)
      : core_(std::move(core)), box_(std::move(box)), dropped_(std::move(dropped)) {}
  Answer(Answer&& o) noexcept : core_(std::move(o.core_)), box_(std::move(o.box_)), dropped_(std::move(o.dropped_)) {}
  ~Answer() { if (box_ != nullptr) (*this)(dropped_()); }
  void operator()(T value) {
    auto box = std::move(box_);
    box_ = nullptr;
    // A closed server's coroutines are gone, and its thread may be.
    if (box != nullptr && core_->open) Mailbox<T>::tell(*core_, std::move(box), std::move(value));
  }

 private:
  CorePtr core_;
  MailboxPtr<T> box_;
  UniqueFunction<T()> dropped_;
};

// A response without its body source, which stays with the loop.
struct LoopSource {
  HttpResponse::BodySource pull;
};
struct Prepared {
  HttpResponse response;
  std::shared_ptr<LoopSource> source;  // shared by the session and its pulls; dies on the loop
};

Prepared prepare(HttpResponse response) {
  Prepared out;
  if (response.source) {
    out.source = std::make_shared<LoopSource>();
    out.source->pull = std::move(response.source);
    response.source = nullptr;
  }
  out.response = std::move(response);
  return out;
}

HttpRequest take_request(Parser& parser, const PeerIdentity& peer) {
  auto message = parser.release();
  HttpRequest out;
  out.method = std::string(message.method_string());
  out.target = std::string(message.target());
  for (const auto& field : message.base()) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    std::string& value = out.headers[name];
    if (!value.empty()) value += ", ";
    value += std::string(field.value());
  }
  out.body = std::move(message.body());
  out.peer = peer;
  return out;
}

bool is_end_of_connection(const error_code& ec) {
  return ec == http::error::end_of_stream || ec == asio::error::eof || ec == asio::error::connection_reset ||
         ec == asio::error::broken_pipe || ec == asio::error::operation_aborted ||
         ec == asio::ssl::error::stream_truncated || ec == beast::error::timeout;
}

// Status code for a request that could not be read; 0: the connection is gone, nothing to answer.
int status_of_read_error(const error_code& ec) {
  if (is_end_of_connection(ec)) return 0;
  if (ec == http::error::body_limit) return 413;
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) return 431;
  if (ec == http::error::partial_message) return 0;
  return ec.category() == http::make_error_code(http::error::bad_method).category() ? 400 : 0;
}

// One connection: reads requests, has them handled, writes answers, until either end wants no more.
template <typename Connection>
class Session {
 public:
  Session(CorePtr core, Connection& connection, std::string from)
      : core_(std::move(core)), connection_(connection), from_(std::move(from)) {}

  void set_peer(PeerIdentity peer) { peer_ = std::move(peer); }
  void abort() {
    beast::get_lowest_layer(connection_).close();
    if (waiting_ != nullptr) waiting_->cancel();
  }

  awaitable<void> run() {
    bool goes_on = true;
    while (goes_on && !core_->stopping) goes_on = co_await one_request();
  }

 private:
  void expires(std::chrono::seconds limit) { beast::get_lowest_layer(connection_).expires_after(limit); }
  void expires_never() { beast::get_lowest_layer(connection_).expires_never(); }

  awaitable<bool> one_request() {
    Parser parser;
    parser.header_limit(limits::kHttpHeaderBytesMax);
    parser.body_limit(core_->options.body_bytes_max);
    error_code ec;
    expires(kIdle);
    co_await http::async_read_header(connection_, buffer_, parser, redirect_error(use_awaitable, ec));
    if (ec) co_return co_await refuse_unreadable(ec);
    uint64_t size = parser.content_length().value_or(parser.chunked() ? core_->options.body_bytes_max : 0);
    if (core_->body_bytes > 0 && core_->body_bytes + size > limits::kHttpBodyBytesInFlightMax) {
      co_return co_await refuse(503, "too many request bodies at once; try again");
    }
    BodyShare share(*core_, size);
    if (!parser.is_done() && beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      http::response<http::empty_body> go_on(http::status::continue_, 11);
      co_await http::async_write(connection_, go_on, redirect_error(use_awaitable, ec));
      if (ec) co_return false;
    }
    while (!parser.is_done()) {
      expires(kStall);
      co_await http::async_read_some(connection_, buffer_, parser, redirect_error(use_awaitable, ec));
      if (ec) co_return co_await refuse_unreadable(ec);
    }
    expires_never();
    bool keep_alive = parser.keep_alive();
    bool head = parser.get().method() == http::verb::head;
    std::optional<Prepared> prepared = co_await handle(take_request(parser, peer_));
    if (!prepared) co_return false;
    bool written = co_await write(std::move(*prepared), head, keep_alive);
    co_return written && keep_alive;
  }

  // The share of a request's body in the server's bound.
  struct BodyShare {
    BodyShare(Core& c, uint64_t s) : core(c), size(s) { core.body_bytes += size; }
    BodyShare(const BodyShare&) = delete;
    BodyShare& operator=(const BodyShare&) = delete;
    ~BodyShare() { core.body_bytes -= size; }
    Core& core;
    uint64_t size;
  };

  awaitable<bool> refuse_unreadable(error_code ec) {
    int status = status_of_read_error(ec);
    if (status == 0) {
      // Between two requests an ending is how connections end; within one it is worth a line.
      bool idle = ec == http::error::end_of_stream || ec == asio::error::operation_aborted ||
                  (buffer_.size() == 0 && is_end_of_connection(ec));
      if (!idle) kLog.info("request_cut", {{"peer", from_}, {"node", peer_.node}, {"reason", ec.message()}});
      co_return false;
    }
    co_return co_await refuse(status, ec.message());
  }

  // Answers without having read the rest of the request, so the connection ends with it.
  awaitable<bool> refuse(int status, std::string reason) {
    kLog.warning("request_refused", {{"peer", from_}, {"node", peer_.node}, {"status", status}, {"reason", reason}});
    bool written = co_await write(prepare(HttpResponse::text(status, reason + "\n")), false, false);
    if (written) co_await linger();
    co_return false;
  }

  // Unread bytes would turn the close into a reset that overtakes the answer.
  awaitable<void> linger() {
    error_code ec;
    shut_down_sending();
    expires(kLinger);
    std::array<uint8_t, 16384> sink;
    for (uint64_t seen = 0; !ec && seen < (16u << 20);) {
      auto& lowest = beast::get_lowest_layer(connection_);
      seen += co_await lowest.async_read_some(asio::buffer(sink), redirect_error(use_awaitable, ec));
    }
  }
  void shut_down_sending() {
    error_code ignored;  // the other end may have gone first
    beast::get_lowest_layer(connection_).socket().shutdown(asio::socket_base::shutdown_send, ignored);
  }

  template <typename T>
  awaitable<std::optional<T>> wait_for(MailboxPtr<T> box) {
    if (core_->stopping) co_return std::nullopt;
    error_code ignored;  // cancelling is how the value is announced
    waiting_ = &box->arrived;
    if (!box->value) co_await box->arrived.async_wait(redirect_error(use_awaitable, ignored));
    waiting_ = nullptr;
    co_return std::move(box->value);
  }

  awaitable<std::optional<Prepared>> handle(HttpRequest request) {
    auto box = std::make_shared<Mailbox<Prepared>>(core_->context);
    core_->env.post([core = core_, box, request = std::move(request)]() mutable {
      if (!core->open) return;
      auto dropped = [] { return prepare(HttpResponse::text(500, "the request was dropped\n")); };
      Answer<Prepared> answer(core, std::move(box), dropped);
      auto handler = core->handler;
      (*handler)(std::move(request), [answer = std::move(answer)](HttpResponse response) mutable {
        answer(prepare(std::move(response)));
      });
    });
    co_return co_await wait_for(std::move(box));
  }

  using Piece = Result<Bytes>;
  MailboxPtr<Piece> start_pull(const std::shared_ptr<LoopSource>& source, uint64_t left) {
    auto box = std::make_shared<Mailbox<Piece>>(core_->context);
    size_t max = static_cast<size_t>(std::min<uint64_t>(left, limits::kHttpPieceBytes));
    core_->env.post([core = core_, box, source, max]() mutable {
      if (!core->open) return;
      auto dropped = [] { return Piece(Status(Code::kCancelled, "the response's source was dropped")); };
      source->pull(max, Answer<Piece>(core, std::move(box), dropped));
    });
    return box;
  }

  awaitable<bool> write(Prepared prepared, bool head, bool keep_alive) {
    HttpResponse& r = prepared.response;
    http::response<http::vector_body<uint8_t>> message(static_cast<http::status>(r.status), 11);
    message.set(http::field::server, "tidemark");
    for (const auto& [name, value] : r.headers) message.set(name, value);
    message.keep_alive(keep_alive);
    bool bodiless = r.status == 204 || r.status == 304 || r.status < 200;
    uint64_t length = prepared.source || r.body.empty() ? r.content_length : r.body.size();
    if (!bodiless) message.content_length(length);
    if (head || bodiless || prepared.source) r.body.clear();
    message.body() = std::move(r.body);
    http::response_serializer<http::vector_body<uint8_t>> serializer(message);
    error_code ec;
    expires(kStall);
    // A header that announces a body which follows by itself, or (HEAD) does not follow.
    if (head || prepared.source) {
      co_await http::async_write_header(connection_, serializer, redirect_error(use_awaitable, ec));
    } else {
      while (!ec && !serializer.is_done()) {
        expires(kStall);
        co_await http::async_write_some(connection_, serializer, redirect_error(use_awaitable, ec));
      }
    }
    bool ok = !ec;
    if (ok && !head && prepared.source) ok = co_await write_pieces(prepared.source, length);
    // What the handler captured belongs to the loop.
    if (prepared.source) core_->env.post([source = std::move(prepared.source)] {});
    co_return ok;
  }

  awaitable<bool> write_pieces(const std::shared_ptr<LoopSource>& source, uint64_t left) {
    MailboxPtr<Piece> next;
    if (left > 0) next = start_pull(source, left);
    while (left > 0) {
      expires_never();  // the source takes the time that it takes
      std::optional<Piece> piece = co_await wait_for(std::move(next));
      if (!piece) co_return false;
      if (!*piece || (*piece)->empty() || (*piece)->size() > left) {
        std::string reason = !*piece ? piece->status().to_string() : "the source ended too early or gave too much";
        kLog.warning("response_cut", {{"peer", from_}, {"node", peer_.node}, {"left", left}, {"reason", reason}});
        co_return false;
      }
      Bytes bytes = std::move(**piece);
      left -= bytes.size();
      if (left > 0) next = start_pull(source, left);
      if (!co_await write_bytes(bytes)) co_return false;
    }
    co_return true;
  }

  awaitable<bool> write_bytes(const Bytes& bytes) {
    error_code ec;
    for (size_t at = 0; at < bytes.size() && !ec;) {
      expires(kStall);
      auto rest = asio::buffer(bytes.data() + at, bytes.size() - at);
      at += co_await connection_.async_write_some(rest, redirect_error(use_awaitable, ec));
    }
    co_return !ec;
  }

  CorePtr core_;
  Connection& connection_;
  PeerIdentity peer_;
  const std::string from_;
  beast::flat_buffer buffer_{2 * limits::kHttpHeaderBytesMax};
  asio::steady_timer* waiting_ = nullptr;  // for the loop's answer
};

template <typename Connection>
awaitable<void> serve_plain(CorePtr core, Connection connection, std::string from) {
  if (core->stopping) co_return;  // accepted just before
  Session<Connection> session(core, connection, from);
  Registration registration(*core, [&session] { session.abort(); });
  co_await session.run();
}

awaitable<void> serve_tls(CorePtr core, beast::tcp_stream socket, std::string from) {
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
  co_await session.run();
  beast::get_lowest_layer(connection).expires_after(kLinger);
  if (!core->stopping) co_await connection.async_shutdown(redirect_error(use_awaitable, ec));
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
  beast::tcp_stream stream(std::move(socket));
  if (core->options.tls) asio::co_spawn(core->context, serve_tls(core, std::move(stream), from), asio::detached);
  else asio::co_spawn(core->context, serve_plain(core, std::move(stream), from), asio::detached);
}

void spawn_session(const CorePtr& core, Unix::socket socket) {
  beast::basic_stream<Unix> stream(std::move(socket));
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
  auto core = std::make_shared<Core>(loop.env, thread_->context, loop.contexts, options);
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
  return std::unique_ptr<HttpServer>(new Server(std::move(core), port));
}

}  // namespace tidemark::net
