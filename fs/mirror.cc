#include "fs/mirror.h"

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/wire/features.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("mirror");
constexpr std::chrono::milliseconds kBackoffMin{100};
constexpr std::chrono::milliseconds kBackoffMax{2000};
// A guest waits this long when a link dies without a word: under two seconds in all. The shared node answers reads of
// others only while it heard the holder less than kHolderSilenceMax ago (data_requests.cc), which must stay well below.
constexpr std::chrono::milliseconds kPingInterval{250};
constexpr std::chrono::milliseconds kSilenceMax{1400};
}  // namespace

Mirror::Mirror(io::Env& env, MirrorOptions options, MirrorEvents events)
    : env_(env), options_(std::move(options)), events_(std::move(events)), sent_until_(env.now()) {}

Mirror::~Mirror() {
  stopping_ = true;
  tasks_.cancel_all();
}

void Mirror::start() { tasks_.spawn(run()); }

void Mirror::stop() {
  stopping_ = true;
  end_session(Status(Code::kCancelled, "stopping"));
}

Task<void> Mirror::run() {
  auto backoff = kBackoffMin;
  bool told = false;
  while (!stopping_) {
    Status opened = co_await open_session();
    if (opened.is_ok()) {
      backoff = kBackoffMin;
      told = false;
      kLog.info("link_up", {{"peer", answer_.node}, {"session", answer_.session}, {"loss_id", answer_.loss_id}});
      up_ = true;
      last_error_ = Status::ok();
      events_.on_up(answer_);
      if (up_)
        co_await async<bool>(
            [this](Callback<bool> done) { wake_ = [done = std::move(done)]() mutable { done(true); }; });
    } else {
      for (auto& c : connections_) {
        c->close(opened);
        dying_.push_back(std::move(c));
      }
      connections_.clear();
      last_error_ = opened;
      if (!told) kLog.warning("link_refused", {{"address", options_.connect.address.to_string()}, {"error", opened}});
      told = true;
    }
    if (stopping_) break;
    // Jitter: half to whole of the back-off.
    auto delay =
        backoff / 2 + std::chrono::milliseconds(env_.random_u64() % static_cast<uint64_t>(backoff.count() / 2 + 1));
    co_await async<bool>([&](Callback<bool> done) {
      env_.after(delay, [done = std::move(done)]() mutable { done(true); });
    });
    dying_.erase(std::remove_if(dying_.begin(), dying_.end(),
                                [](const auto& c) { return !c->is_open() && c->requests_unanswered() == 0; }),
                 dying_.end());
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

Task<Status> Mirror::open_session() {
  auto first = co_await open_connection(0);
  if (!first) co_return first.status();
  if (events_.on_hello) {
    Status known = co_await events_.on_hello(*connections_.front(), *first);
    if (!known) co_return known;
  }
  answer_ = first->base;
  for (uint32_t i = 1; i < options_.connections; ++i) {
    auto next = co_await open_connection(answer_.session);
    if (!next) co_return next.status();
  }
  for (auto& c : connections_)
    if (!c->is_open()) co_return Status(Code::kUnavailable, "connection closed during the handshake");
  co_return Status::ok();
}

Task<Result<wire::HelloAnswerMore>> Mirror::open_connection(uint64_t session) {
  using Opened = Result<std::unique_ptr<net::Stream>>;
  auto stream =
      co_await async<Opened>([&](Callback<Opened> done) { env_.network().connect(options_.connect, std::move(done)); });
  if (!stream) co_return stream.status();
  auto connection = std::make_unique<wire::Connection>(env_, std::move(*stream), pool_);
  wire::Connection* link = connection.get();
  connections_.push_back(std::move(connection));
  wire::Connection::Handlers handlers;
  handlers.on_notify = [this](wire::Type type, ByteSpan body) { on_notify(type, body); };
  handlers.on_close = [this](Status reason) { end_session(reason); };
  link->start(std::move(handlers));
  // From here on: a Hello whose segments are lost is sent again minutes later. The shared node may take its time to
  // answer that, but not a ping, which its end of the connection answers before any Hello.
  link->keep_alive(kPingInterval, kSilenceMax);
  wire::Hello hello = options_.hello;
  hello.session = session;
  hello.features |= wire::kFeatureHelloMore | wire::kFeatureCompare | wire::kFeatureSpecialFiles |
                    wire::kFeatureYieldUnshipped | wire::kFeatureCreateOnce;
  if (session == 0 && events_.on_met) hello.features |= wire::kFeatureMeet;
  auto answer = co_await greet(*link, hello);
  if (!answer) co_return answer.status();
  if ((hello.features & wire::kFeatureMeet) != 0) {
    if (auto met = wire::decode<wire::Met>(answer->body)) {   // else of a shared node that opens the session at once
      Result<Incarnation> run = events_.on_met(*met);
      if (!run) co_return run.status();
      options_.hello.incarnation = hello.incarnation = *run;
      hello.features &= ~wire::kFeatureMeet;
      answer = co_await greet(*link, hello);
      if (!answer) co_return answer.status();
    }
  }
  auto more = wire::decode<wire::HelloAnswerMore>(answer->body);
  if (!more) {   // of a shared node that does not know the longer one
    auto base = wire::decode<wire::HelloAnswer>(answer->body);
    if (!base) co_return base.status();
    more = wire::HelloAnswerMore{std::move(*base), Uuid::nil(), 0};
  }
  co_return more;
}

Task<Result<wire::Answer>> Mirror::greet(wire::Connection& link, wire::Hello hello) {
  using Greeted = Result<wire::Answer>;
  const Bytes body = wire::encode(hello);
  co_return co_await async<Greeted>([&](Callback<Greeted> done) {
    link.send_request(wire::Type::kHello, ByteSpan(body), {}, [done = std::move(done)](Greeted got) mutable {
      done(std::move(got));
    });
  });
}

void Mirror::on_notify(wire::Type type, ByteSpan body) {
  if (type == wire::Type::kRecallNotify) {
    auto message = wire::decode<wire::RecallNotify>(body);
    if (message) return events_.on_recall(*message);
  } else if (type == wire::Type::kInvalidateNotify) {
    auto message = wire::decode<wire::InvalidateNotify>(body);
    if (message) return events_.on_invalidate(*message);
  }
  kLog.warning("notification_unknown", {{"type", static_cast<uint16_t>(type)}});
}

void Mirror::end_session(const Status& reason) {
  if (!up_) return;
  up_ = false;
  last_error_ = reason;
  if (!stopping_) kLog.warning("link_lost", {{"peer", answer_.node}, {"error", reason}});
  for (auto& c : connections_) {
    sent_until_ = std::max(sent_until_, c->sent_until());
    dying_.push_back(std::move(c));
  }
  connections_.clear();
  events_.on_down(reason);
  for (auto& c : dying_)
    if (c->is_open()) c->close(reason);
  // Not inline: the caller may be a connection's own callback.
  if (wake_) env_.post(std::exchange(wake_, {}));
}

void Mirror::note_failure() {
  if (!up_) return;
  for (auto& c : connections_)
    if (!c->is_open()) return end_session(Status(Code::kUnavailable, "link to " + c->peer_name() + " lost"));
}

wire::Connection& Mirror::pick() {
  wire::Connection* best = connections_.front().get();
  size_t unsent = best->unsent_bytes();
  for (size_t i = 1; i < connections_.size() && unsent != 0; ++i) {
    size_t other = connections_[i]->unsent_bytes();
    if (other < unsent) {
      best = connections_[i].get();
      unsent = other;
    }
  }
  return *best;
}

void Mirror::write(const wire::Write& message, ByteSpan payload, uint64_t digest,
                   Callback<Result<wire::Applied>> done) {
  if (!up_) return done(Status(Code::kUnavailable, "no link to the shared node"));
  pick().send_write(message, payload, digest, std::move(done));
}

void Mirror::send(wire::Type type, ByteSpan body, ByteSpan payload, Callback<Result<wire::Answer>> done) {
  if (!up_) return done(Status(Code::kUnavailable, "no link to the shared node"));
  pick().send_request(type, body, payload, std::move(done));
}

void Mirror::flush() {
  if (!up_) return;
  for (auto& c : connections_) c->flush();
}

io::Duration Mirror::unconfirmed() const {
  const io::BootTime now = env_.now();
  io::BootTime oldest = now;
  for (const auto& c : connections_) oldest = std::min(oldest, c->heard_for_certain());
  return now - oldest;
}

io::Duration Mirror::round_trip() const {
  return connections_.empty() ? io::Duration(0) : connections_.front()->round_trip();
}

}  // namespace tidemark::fs
