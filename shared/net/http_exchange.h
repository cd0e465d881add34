// What the loop and the HTTP server's background thread hand each other: requests, answers, pieces of bodies.
// For `.cc` files of this folder.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <future>
#include <list>
#include <memory>
#include <optional>
#include <utility>

#include "shared/base/function.h"
#include "shared/io/env.h"
#include "shared/net/network.h"
#include "shared/net/tls_context.h"

namespace tidemark::net::http_detail {

namespace asio = boost::asio;

// What the loop and the background thread share of one server.
struct Core {
  Core(io::Env& e, asio::io_context& c, TlsContexts& t, uint64_t records, const HttpServerOptions& o)
      : env(e), context(c), contexts(t), records_per_key(records), options(o) {}

  // Constant.
  io::Env& env;
  asio::io_context& context;
  TlsContexts& contexts;
  const uint64_t records_per_key;
  const HttpServerOptions options;

  // Loop thread.
  bool open = true;
  std::shared_ptr<HttpHandler> handler;  // shared with a call under way, which may destroy the server

  // Background thread.
  bool stopping = false;
  uint64_t body_bytes = 0;                      // of the requests in flight
  std::list<UniqueFunction<void()>> aborts;     // one for each running coroutine: ends it soon
  struct Peer { std::string serial, node, from; UniqueFunction<void()> abort; };
  std::list<Peer> peers;                        // of the open TLS connections
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

inline Prepared prepare(HttpResponse response) {
  Prepared out;
  if (response.source) {
    out.source = std::make_shared<LoopSource>();
    out.source->pull = std::move(response.source);
    response.source = nullptr;
  }
  out.response = std::move(response);
  return out;
}

}  // namespace tidemark::net::http_detail
