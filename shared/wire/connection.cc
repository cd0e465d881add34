// Receiving is a small machine that takes bytes as they come:
//
//   kHeader --40 bytes, checked--> kBody --all, checksum--> kPayload --all, checksum--> dispatch --> kHeader
//
// The body of a frame that came in one piece is looked at in place. A payload is gathered straight in
// its aligned buffer.
#include "shared/wire/connection.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::wire {

namespace {

const log::Logger kLog("wire");

// An unanswered request. The id names the slot in its low 16 bits; the rest makes it unique.
struct Slot {
  uint64_t id = 0;   // 0: free
  Type type = Type::kPing;
  Callback<Result<Answer>> general;
  Callback<Result<Applied>> applied;   // set for send_write
};

class SlotTable {
 public:
  // Null when kFrameRequestsMax are in use.
  Slot* take(Type type) {
    if (free_.empty()) {
      if (slots_.size() >= limits::kFrameRequestsMax) return nullptr;
      free_.push_back(static_cast<uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    uint32_t index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.id = ++serial_ << 16 | index;
    slot.type = type;
    ++used_;
    return &slot;
  }
  Slot* find(uint64_t id) {
    size_t index = id & 0xFFFF;
    return id != 0 && index < slots_.size() && slots_[index].id == id ? &slots_[index] : nullptr;
  }
  void release(Slot& slot) {
    free_.push_back(static_cast<uint32_t>(slot.id & 0xFFFF));
    slot.id = 0;
    --used_;
  }
  size_t used() const { return used_; }
  std::vector<Slot> take_all() {
    free_.clear();
    used_ = 0;
    return std::exchange(slots_, {});
  }

 private:
  static_assert(limits::kFrameRequestsMax <= 0x10000);
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  uint64_t serial_ = 0;
  size_t used_ = 0;
};

}  // namespace

struct Connection::State : std::enable_shared_from_this<Connection::State> {
  State(io::Env& e, std::unique_ptr<net::Stream> s, std::shared_ptr<PayloadPool> p)
      : env(e), stream(std::move(s)), pool(std::move(p)) {}

  enum class Stage : uint8_t { kHeader, kBody, kPayload };

  void on_data(ByteSpan data);
  bool step(ByteSpan& data);           // false: needs more bytes, or closed
  bool take_header(ByteSpan& data);
  bool take_body(ByteSpan& data);
  bool take_payload(ByteSpan& data);
  void dispatch(ByteSpan body, bool more);
  void dispatch_answer(ByteSpan body);
  void on_stream_close(Status reason);
  void violation(const std::string& reason);
  void fail_all(const Status& reason);
  void send(Type type, uint16_t flags, uint64_t id, ByteSpan body, ByteSpan payload);
  void keep_alive_tick();
  std::string peer_name() const { return std::string(net::role_name(stream->peer().role)) + " " + stream->peer().node; }

  io::Env& env;
  std::unique_ptr<net::Stream> stream;
  std::shared_ptr<PayloadPool> pool;   // shared with payloads that outlive the connection
  Handlers handlers;
  SlotTable slots;
  uint32_t incoming = 0;               // requests of the peer not yet answered
  bool open = true;                    // until close() or an end of the stream
  bool told = false;                   // on_close ran
  int delivering = 0;                  // depth of calls from the stream
  bool detached = false;               // the Connection is gone: nothing may be called any more

  Stage stage = Stage::kHeader;
  FrameHeader header;
  std::array<uint8_t, kFrameHeaderBytes> header_bytes;
  size_t header_have = 0;
  Bytes body;
  ByteSpan body_view;                  // of the frame whose payload is awaited: into `body`
  Payload payload;
  size_t payload_have = 0;
  RunningDigest64 payload_digest;
  bool first_in_delivery = false;
  uint64_t bytes_received = 0;

  io::Duration ping_interval{0}, silence_max{0}, round_trip{0};
  io::BootTime last_received, certain, ping_answered;
  io::BootTime sent_until;             // the tick that saw the first `frames_seen` frames: no clock for each of them
  uint64_t frames_sent = 0, frames_seen = 0;
  bool ping_unanswered = false;
  io::TimerId ping_timer;
};

void Connection::State::on_data(ByteSpan data) {
  auto keep = shared_from_this();
  ++delivering;
  last_received = env.now();
  bytes_received += data.size();
  first_in_delivery = stage == Stage::kHeader && header_have == 0;
  while (open && !detached && step(data)) {
  }
  --delivering;
}

bool Connection::State::step(ByteSpan& data) {
  switch (stage) {
    case Stage::kHeader: return take_header(data);
    case Stage::kBody: return take_body(data);
    case Stage::kPayload: return take_payload(data);
  }
  return false;
}

bool Connection::State::take_header(ByteSpan& data) {
  if (data.empty()) return false;
  size_t part = std::min(kFrameHeaderBytes - header_have, data.size());
  std::memcpy(header_bytes.data() + header_have, data.data(), part);
  data = data.subspan(part);
  header_have += part;
  if (header_have < kFrameHeaderBytes) return false;
  header_have = 0;
  Result<FrameHeader> decoded = decode_frame_header(header_bytes);
  if (!decoded) { violation(decoded.status().message()); return false; }
  header = *decoded;
  body.clear();
  stage = Stage::kBody;
  return true;
}

bool Connection::State::take_body(ByteSpan& data) {
  ByteSpan whole;
  if (body.empty() && data.size() >= header.body_length) {
    whole = data.first(header.body_length);
    data = data.subspan(header.body_length);
  } else {
    size_t part = std::min<size_t>(header.body_length - body.size(), data.size());
    body.insert(body.end(), data.begin(), data.begin() + static_cast<ptrdiff_t>(part));
    data = data.subspan(part);
    if (body.size() < header.body_length) return false;
    whole = body;
  }
  if (Status s = check_frame_body(header, header_bytes, whole); !s) { violation(s.message()); return false; }
  if (header.payload_length == 0 && header.payload_digest == 0) {
    stage = Stage::kHeader;
    dispatch(whole, !data.empty());
    return true;
  }
  if (header.payload_length == 0) { violation("checksum given for an empty payload"); return false; }
  payload = pool->take(header.payload_length);
  payload_have = 0;
  // The body must outlive this delivery if the payload does not come with it.
  if (data.size() < header.payload_length && whole.data() != body.data()) {
    body.assign(whole.begin(), whole.end());
    whole = body;
  }
  body_view = whole;
  stage = Stage::kPayload;
  return true;
}

bool Connection::State::take_payload(ByteSpan& data) {
  ByteSpan part = data.first(std::min(payload.size() - payload_have, data.size()));
  if (payload_have == 0) payload_digest.restart();
  std::memcpy(payload.data() + payload_have, part.data(), part.size());
  payload_digest.add(part);
  data = data.subspan(part.size());
  payload_have += part.size();
  if (payload_have < payload.size()) return false;
  if (Status s = check_frame_payload(header, payload_digest.value()); !s) { violation(s.message()); return false; }
  stage = Stage::kHeader;
  dispatch(body_view, !data.empty());
  return true;
}

void Connection::State::dispatch(ByteSpan frame_body, bool more) {
  if (header.is_response()) return dispatch_answer(frame_body);
  Payload frame_payload = std::move(payload);
  if (is_notification(header.type)) {
    if (!handlers.on_notify) return violation("unexpected notification");
    if (!frame_payload.empty()) return violation("notification with a payload");
    return handlers.on_notify(header.type, frame_body);
  }
  if (header.type == Type::kPing) {
    Result<Ping> ping = decode<Ping>(frame_body);
    if (!ping || !frame_payload.empty()) return violation("malformed ping");
    certain = std::max(certain, std::exchange(ping_answered, env.now()));   // that answer has arrived
    return send(Type::kPing, kResponseFlag, header.id, frame_body, {});
  }
  if (!handlers.on_request) return violation("unexpected request");
  if (incoming >= limits::kFrameRequestsMax) return violation("too many unanswered requests");
  ++incoming;
  bool alone = std::exchange(first_in_delivery, false) && !more;
  handlers.on_request(Request{header.type, header.id, frame_body, std::move(frame_payload), alone});
}

void Connection::State::dispatch_answer(ByteSpan frame_body) {
  Slot* slot = slots.find(header.id);
  if (slot == nullptr || slot->type != header.type) return violation("answer to no request");
  Payload frame_payload = std::move(payload);
  Callback<Result<Answer>> general = std::move(slot->general);
  Callback<Result<Applied>> applied = std::move(slot->applied);
  slots.release(*slot);
  if (header.is_error()) {
    Result<Failure> failure = decode<Failure>(frame_body);
    Status status = failure ? status_of(*failure) : failure.status();
    general ? general(status) : applied(status);
    if (!failure) violation("malformed failure");
    return;
  }
  if (general) return general(Answer{frame_body, std::move(frame_payload)});
  Result<Applied> message = decode_applied(frame_body);
  applied(message);
  if (!message) violation(message.status().message());
}

void Connection::State::violation(const std::string& reason) {
  if (!open) return;
  kLog.warning("frame_refused", {{"peer", peer_name()}, {"reason", reason}});
  open = false;
  stream->close(Status(Code::kCorruption, "invalid frame from " + peer_name() + ": " + reason));
}

void Connection::State::on_stream_close(Status reason) {
  auto keep = shared_from_this();
  ++delivering;
  open = false;
  env.cancel(std::exchange(ping_timer, {}));
  if (!std::exchange(told, true)) {
    if (reason.is_ok()) reason = Status(Code::kUnavailable, "closed by " + peer_name());
    fail_all(reason);
    if (!detached && handlers.on_close) handlers.on_close(reason);
  }
  --delivering;
}

void Connection::State::fail_all(const Status& reason) {
  Status status(Code::kUnavailable, "link to " + peer_name() + " lost: " + reason.message());
  for (Slot& slot : slots.take_all()) {
    if (slot.id == 0 || detached) continue;
    if (slot.general) slot.general(status);
    else if (slot.applied) slot.applied(status);
  }
}

// What is too long for a frame cannot be left out: whoever waits for it would wait for ever. So the connection ends,
// which both ends hear of, as of any other that is lost.
void Connection::State::send(Type type, uint16_t flags, uint64_t id, ByteSpan frame_body, ByteSpan frame_payload) {
  if (frame_body.size() > limits::kFrameBodyBytesMax || frame_payload.size() > limits::kFramePayloadBytesMax) {
    if (!open) return;
    kLog.error("frame_too_long", {{"peer", peer_name()}, {"type", type_name(type)}, {"body_bytes", frame_body.size()},
                                  {"payload_bytes", frame_payload.size()}});
    open = false;
    return stream->close(Status(Code::kUnavailable, "a frame for " + peer_name() + " is over its bounds"));
  }
  ++frames_sent;
  constexpr size_t kSmall = 256;
  if (frame_body.size() <= kSmall) {
    uint8_t head[kFrameHeaderBytes + kSmall];
    encode_frame_header(type, flags, id, frame_body, frame_payload, head);
    if (!frame_body.empty()) std::memcpy(head + kFrameHeaderBytes, frame_body.data(), frame_body.size());
    return stream->send({head, kFrameHeaderBytes + frame_body.size()}, frame_payload);
  }
  uint8_t head[kFrameHeaderBytes];
  encode_frame_header(type, flags, id, frame_body, frame_payload, head);
  stream->send(head, frame_body);
  if (!frame_payload.empty()) stream->send(frame_payload);
}

void Connection::State::keep_alive_tick() {
  if (!open || detached) return;
  io::BootTime now = env.now();
  if (std::exchange(frames_seen, frames_sent) != frames_sent) sent_until = now;
  if (ping_unanswered && now - last_received > silence_max) {
    kLog.warning("peer_silent", {{"peer", peer_name()}, {"silence_ms", (now - last_received).count() / 1'000'000}});
    open = false;
    stream->close(Status(Code::kUnavailable, peer_name() + " no longer answers"));
    return;
  }
  if (Slot* slot = ping_unanswered ? nullptr : slots.take(Type::kPing)) {
    ping_unanswered = true;
    slot->general = [this, sent = now](Result<Answer> answer) {
      ping_unanswered = false;
      if (!answer) return;
      certain = std::max(certain, sent);
      io::Duration sample = env.now() - sent;
      round_trip = round_trip.count() == 0 ? sample : (round_trip * 7 + sample) / 8;
    };
    send(Type::kPing, 0, slot->id, encode(Ping{static_cast<uint64_t>(now.ns)}), {});
  }
  ping_timer = env.after(ping_interval, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->keep_alive_tick();
  });
}

Connection::Connection(io::Env& env, std::unique_ptr<net::Stream> stream, std::shared_ptr<PayloadPool> pool)
    : state_(std::make_shared<State>(env, std::move(stream), std::move(pool))) {}

Connection::~Connection() {
  state_->detached = true;
  state_->open = false;
  state_->env.cancel(state_->ping_timer);
  // With a delivery under way below us, the stream goes when the loop comes round.
  if (state_->delivering > 0) state_->env.post([state = std::move(state_)] {});
}

void Connection::start(Handlers handlers) {
  state_->handlers = std::move(handlers);
  state_->last_received = state_->certain = state_->ping_answered = state_->env.now();
  std::weak_ptr<State> weak = state_;
  state_->stream->start({[weak](ByteSpan data) { if (auto s = weak.lock()) s->on_data(data); },
                         [weak](Status reason) { if (auto s = weak.lock()) s->on_stream_close(std::move(reason)); }});
}

void Connection::keep_alive(io::Duration interval, io::Duration silence_max) {
  state_->ping_interval = interval;
  state_->silence_max = silence_max;
  state_->env.cancel(state_->ping_timer);
  state_->keep_alive_tick();
}

io::BootTime Connection::heard_for_certain() const { return state_->certain; }

io::Duration Connection::silence() const { return state_->env.now() - state_->last_received; }

io::BootTime Connection::sent_until() const {
  return state_->frames_seen == state_->frames_sent ? state_->sent_until : state_->env.now();
}

void Connection::send_request(Type type, ByteSpan body, ByteSpan payload, Callback<Result<Answer>> done) {
  if (!state_->open) return done(Status(Code::kUnavailable, "link to " + peer_name() + " is down"));
  Slot* slot = state_->slots.take(type);
  if (slot == nullptr) return done(Status(Code::kUnavailable, "too many unanswered requests to " + peer_name()));
  slot->general = std::move(done);
  state_->send(type, 0, slot->id, body, payload);
}

void Connection::send_write(const Write& message, ByteSpan payload, uint64_t payload_digest,
                            Callback<Result<Applied>> done) {
  if (!state_->open) return done(Status(Code::kUnavailable, "link to " + peer_name() + " is down"));
  Slot* slot = state_->slots.take(Type::kWrite);
  if (slot == nullptr) return done(Status(Code::kUnavailable, "too many unanswered requests to " + peer_name()));
  slot->applied = std::move(done);
  uint8_t head[kFrameHeaderBytes + kWriteBodyBytes];
  encode_write(message, head + kFrameHeaderBytes);
  encode_frame_header(Type::kWrite, 0, slot->id, {head + kFrameHeaderBytes, kWriteBodyBytes}, payload.size(),
                      payload_digest, head);
  ++state_->frames_sent;
  state_->stream->send(head, payload);
}

void Connection::respond(Type type, uint64_t id, ByteSpan body, ByteSpan payload) {
  if (!state_->open) return;
  if (!is_notification(type)) --state_->incoming;
  state_->send(type, is_notification(type) ? 0 : kResponseFlag, id, body, payload);
}

void Connection::respond_applied(Type type, uint64_t id, const Applied& message) {
  uint8_t body[kAppliedBodyBytes];
  encode_applied(message, body);
  respond(type, id, ByteSpan(body));
}

void Connection::respond_failure(Type type, uint64_t id, const Status& status) {
  if (!state_->open) return;
  --state_->incoming;
  state_->send(type, kResponseFlag | kErrorFlag, id, encode(failure_of(status)), {});
}

void Connection::flush() {
  if (state_->open) state_->stream->flush();
}

void Connection::close(Status reason) {
  if (!state_->open) return;
  state_->open = false;
  state_->stream->close(std::move(reason));
}

void Connection::violation(const std::string& reason) { state_->violation(reason); }
bool Connection::is_open() const { return state_->open; }
const net::PeerIdentity& Connection::peer() const { return state_->stream->peer(); }
std::string Connection::peer_name() const { return state_->peer_name(); }
size_t Connection::unsent_bytes() const { return state_->open ? state_->stream->unsent_bytes() : 0; }
size_t Connection::requests_unanswered() const { return state_->slots.used(); }
io::Duration Connection::round_trip() const { return state_->round_trip; }
uint64_t Connection::bytes_received() const { return state_->bytes_received; }

}  // namespace tidemark::wire
