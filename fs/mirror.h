// The link to the shared node: N pipelined connections of one session, kept up with back-off.
//
// Up means: every connection of the session has answered Hello. When one ends the session ends: on_down runs first,
// then every unanswered request fails with kUnavailable ("outcome unknown" for what changes something), then a new
// session is tried. Data frames go to the connection with the least unsent bytes: nothing that overlaps is in flight,
// so any will do. Loop thread only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "shared/base/config.h"
#include "shared/base/task.h"
#include "shared/io/env.h"
#include "shared/net/network.h"
#include "shared/wire/connection.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

struct MirrorOptions {
  net::Network::ConnectOptions connect;
  uint32_t connections = 2;
  wire::Hello hello;                     // session is filled in
};

struct MirrorEvents {
  // Before a session: what the shared node knows of this host and says of itself; the incarnation to say Hello with.
  UniqueFunction<Result<Incarnation>(const wire::Met&)> on_met;
  // Whether the shared node that answered is the one that this host knows.
  UniqueFunction<Task<Status>(wire::Connection&, const wire::HelloAnswerMore&)> on_hello;
  UniqueFunction<void(const wire::HelloAnswer&)> on_up;
  UniqueFunction<void(const Status&)> on_down;
  UniqueFunction<void(const wire::RecallNotify&)> on_recall;
  UniqueFunction<void(const wire::InvalidateNotify&)> on_invalidate;
};

class Mirror {
 public:
  Mirror(io::Env& env, MirrorOptions options, MirrorEvents events);
  ~Mirror();
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  void start();
  void stop();   // no further session; the standing one is closed
  bool up() const { return up_; }
  const wire::HelloAnswer& hello() const { return answer_; }
  // Whether the session of this number still stands.
  bool stands(uint64_t session) const { return up_ && answer_.session == session; }
  const Status& last_error() const { return last_error_; }
  io::Duration round_trip() const;
  // Since the shared node held this session for certain; on all of its connections.
  io::Duration unconfirmed() const;
  // While the link is down: nothing was sent in a session after this time.
  io::BootTime sent_until() const { return sent_until_; }
  uint32_t connections() const { return options_.connections; }

  // The hot path: straight to a connection.
  void write(const wire::Write& message, ByteSpan payload, uint64_t digest, Callback<Result<wire::Applied>> done);
  void send(wire::Type type, ByteSpan body, ByteSpan payload, Callback<Result<wire::Answer>> done);
  template <class A, class M>
  void request(wire::Type type, const M& message, Callback<Result<A>> done) {
    send(type, ByteSpan(wire::encode(message)), {},
         Callback<Result<wire::Answer>>([this, done = std::move(done)](Result<wire::Answer> answer) mutable {
           if (!answer) {
             note_failure();
             return done(answer.status());
           }
           done(wire::decode<A>(answer->body));
         }));
  }
  // Gives what was sent in this turn to the kernel now.
  void flush();
  // To be called by a request's callback when it failed: if a connection is gone the session ends before it goes on.
  void note_failure();

 private:
  Task<void> run();
  Task<Status> open_session();
  Task<Result<wire::HelloAnswerMore>> open_connection(uint64_t session);
  Task<Result<wire::Answer>> greet(wire::Connection& link, wire::Hello hello);
  wire::Connection& pick();
  void on_notify(wire::Type type, ByteSpan body);
  void end_session(const Status& reason);

  io::Env& env_;
  MirrorOptions options_;
  MirrorEvents events_;
  std::shared_ptr<wire::PayloadPool> pool_ = wire::PayloadPool::make();  // shared with payloads still in use
  std::vector<std::unique_ptr<wire::Connection>> connections_;   // of the standing or coming session
  std::vector<std::unique_ptr<wire::Connection>> dying_;         // closed, their requests not yet all failed
  wire::HelloAnswer answer_;
  Status last_error_;
  io::BootTime sent_until_;          // in the last session; of those of runs before, this one's beginning
  bool up_ = false;
  bool stopping_ = false;
  UniqueFunction<void()> wake_;      // resumes run() when the session ended
  TaskGroup tasks_;
};

}  // namespace tidemark::fs
