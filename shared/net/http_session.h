// One HTTP connection: reads requests, has the loop handle them, writes the answers. On the background thread.
// For `.cc` files of this folder.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/net/http_exchange.h"

namespace tidemark::net::http_detail {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::awaitable;
using asio::redirect_error;
using asio::use_awaitable;
using boost::system::error_code;
using Parser = http::request_parser<http::vector_body<uint8_t>>;

inline const log::Logger kLog("http");
constexpr auto kStall = std::chrono::seconds(limits::kHttpStallSecondsMax);
constexpr auto kIdle = std::chrono::seconds(limits::kHttpIdleSecondsMax);
constexpr auto kLinger = std::chrono::seconds(2);

inline HttpRequest take_request(Parser& parser, const PeerIdentity& peer) {
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

inline bool is_end_of_connection(const error_code& ec) {
  return ec == http::error::end_of_stream || ec == asio::error::eof || ec == asio::error::connection_reset ||
         ec == asio::error::broken_pipe || ec == asio::error::operation_aborted ||
         ec == asio::ssl::error::stream_truncated || ec == beast::error::timeout;
}

// Status code for a request that could not be read; 0: the connection is gone, nothing to answer.
inline int status_of_read_error(const error_code& ec) {
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

  // The sending key is renewed long before the cipher's bound. What a client sends on one connection is bounded by
  // that connection's age.
  void count_records(size_t bytes) {
    if constexpr (requires { connection_.native_handle(); }) {
      records_ += bytes / 16384 + 1;
      if (records_ < core_->records_per_key) return;
      records_ = 0;
      SSL_key_update(connection_.native_handle(), SSL_KEY_UPDATE_NOT_REQUESTED);
    }
  }

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
    kLog.warning("request_refused",
                 {{"peer", from_}, {"node", peer_.node}, {"status", status}, {"reason", reason}});
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
    count_records(message.body().size());
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
      count_records(bytes.size() - at);
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
  uint64_t records_ = 0;                   // under the present sending key, at most
  asio::steady_timer* waiting_ = nullptr;  // for the loop's answer
};

}  // namespace tidemark::net::http_detail
