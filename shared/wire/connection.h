// Connection: requests, answers and notifications over one net::Stream; used by both ends.
//
//   wire::Connection link(env, std::move(stream), pool);
//   link.start({.on_request = ..., .on_notify = ..., .on_close = ...});
//   link.send_write(write, payload, digest, [](Result<Applied> answer) { ... });
//   link.request<Attr>(Type::kLookup, lookup, [](Result<Attr> answer) { ... });
//
// What is sent leaves at the end of the loop's turn, or at flush(). Every request is answered exactly
// once: by its answer, by the peer's Failure as a Status, or with kUnavailable when the connection
// closes. Destroying the Connection drops unanswered callbacks without calling them. It may be
// destroyed from any of its callbacks. Loop thread only.
//
// An invalid frame closes the connection; a log line names peer and reason. Nothing of it is applied.
#pragma once

#include <memory>
#include <string>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/status.h"
#include "shared/io/env.h"
#include "shared/net/network.h"
#include "shared/wire/codec.h"
#include "shared/wire/frame.h"
#include "shared/wire/messages.h"
#include "shared/wire/payload.h"

namespace tidemark::wire {

// `body` is valid only while the callback runs; the payload is the receiver's to keep.
struct Answer {
  ByteSpan body;
  Payload payload;
};

// A request of the peer. `body` is valid only while the handler runs. Answer it with respond(), once.
struct Request {
  Type type = Type::kPing;
  uint64_t id = 0;
  ByteSpan body;
  Payload payload;
  bool alone = false;   // nothing else came with it: the work may as well be done inline
};

class Connection {
 public:
  struct Handlers {
    UniqueFunction<void(Request)> on_request;             // empty: requests are a violation
    UniqueFunction<void(Type, ByteSpan body)> on_notify;  // empty: notifications are a violation
    UniqueFunction<void(Status)> on_close;                // once, after all unanswered requests failed
  };

  Connection(io::Env& env, std::unique_ptr<net::Stream> stream, std::shared_ptr<PayloadPool> pool);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start(Handlers handlers);   // once
  // Pings every `interval`; closes when nothing at all came from the peer for `silence_max` while a ping
  // was unanswered. Keeps round_trip() fresh.
  void keep_alive(io::Duration interval, io::Duration silence_max);
  // The peer was there at this time or later, and had what this end had sent by then: when the newest ping that it has
  // answered was sent, or the answer to its ping before the newest (it sends none before that), at first when the
  // connection began. Bytes that come late do not change it: that a peer sent them says nothing of when.
  io::BootTime heard_for_certain() const;
  // Since something last came from the peer, whenever it was sent.
  io::Duration silence() const;
  // Nothing was sent after this time; at most a ping's interval too late. Of a connection that is kept alive.
  io::BootTime sent_until() const;

  // ---- asking ---------------------------------------------------------------------------------
  // At most limits::kFrameRequestsMax are unanswered; more fail with kUnavailable at once. After the
  // connection closed every request fails with kUnavailable at once (inline).
  void send_request(Type type, ByteSpan body, ByteSpan payload, Callback<Result<Answer>> done);
  template <class M>
  void send_request(Type type, const M& message, ByteSpan payload, Callback<Result<Answer>> done);
  // Decodes the answer as A; an answer that is no A is kCorruption.
  template <class A, class M>
  void request(Type type, const M& message, Callback<Result<A>> done);
  // The hot path. `payload_digest` is digest64(payload), which the journal needs as well.
  void send_write(const Write& message, ByteSpan payload, uint64_t payload_digest, Callback<Result<Applied>> done);
  template <class M>
  void notify(Type type, const M& message);

  // ---- answering ------------------------------------------------------------------------------
  // `type` is that of the request. After the connection closed answers are dropped.
  void respond(Type type, uint64_t id, ByteSpan body, ByteSpan payload = {});
  template <class M>
  void respond(Type type, uint64_t id, const M& message, ByteSpan payload = {});
  void respond_applied(Type type, uint64_t id, const Applied& message);
  void respond_failure(Type type, uint64_t id, const Status& status);
  // Decodes a request's body; a body that is no M closes the connection and gives false.
  template <class M>
  bool decode_or_close(Type type, ByteSpan body, M& out);

  // Gives what was sent to the kernel now.
  void flush();
  // on_close(reason) and the failure of all requests follow, never inline.
  void close(Status reason);
  bool is_open() const;
  const net::PeerIdentity& peer() const;
  // "host host1"
  std::string peer_name() const;
  size_t unsent_bytes() const;
  size_t requests_unanswered() const;   // asked by this end
  // Smoothed over the last pings; 0 before the first answer.
  io::Duration round_trip() const;
  uint64_t bytes_received() const;

 private:
  struct State;
  // Frames and payload checksums are the peer's fault: logs and closes.
  void violation(const std::string& reason);
  std::shared_ptr<State> state_;   // shared with a delivery under way, which may destroy the Connection
};

template <class M>
void Connection::send_request(Type type, const M& message, ByteSpan payload, Callback<Result<Answer>> done) {
  send_request(type, ByteSpan(encode(message)), payload, std::move(done));
}

template <class A, class M>
void Connection::request(Type type, const M& message, Callback<Result<A>> done) {
  send_request(type, ByteSpan(encode(message)), {},
               Callback<Result<Answer>>([done = std::move(done)](Result<Answer> answer) mutable {
                 if (!answer) return done(answer.status());
                 done(decode<A>(answer->body));
               }));
}

template <class M>
void Connection::notify(Type type, const M& message) { respond(type, 0, ByteSpan(encode(message))); }

template <class M>
void Connection::respond(Type type, uint64_t id, const M& message, ByteSpan payload) {
  respond(type, id, ByteSpan(encode(message)), payload);
}

template <class M>
bool Connection::decode_or_close(Type type, ByteSpan body, M& out) {
  Result<M> message = decode<M>(body);
  if (!message) {
    violation("body of a " + std::string(type_name(type)) + " frame: " + message.status().message());
    return false;
  }
  out = std::move(message).value();
  return true;
}

}  // namespace tidemark::wire
