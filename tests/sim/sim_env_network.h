// The simulated network's streams: one Connection between two processes, an End for each.
#pragma once

#include "tests/sim/sim_env_internal.h"

namespace tidemark::sim {

class SimStream;

// Kept alive by its streams and by events under way; the World only observes it.
struct Connection : std::enable_shared_from_this<Connection> {
  struct End {
    SimEnv* process = nullptr;
    SimStream* stream = nullptr;      // null: destroyed, or not handed over yet
    std::deque<Bytes> transit;        // on the way to the other end
    size_t transit_bytes = 0;
    int64_t last_due_ns = 0;          // what was sent first arrives first
    uint64_t delivery = 0;            // number of the event that delivers the next piece; 0: none
    bool held = false;                // the link was cut when a piece was due
    bool finished = false;            // sends nothing more; the other end closes once transit is empty
  };
  Connection(World::State& w, uint64_t n) : world(w), number(n) {}
  ~Connection() { world.connections.erase(number); }

  Machine& machine(int side) { return ProcessAccess::machine(*ends[side].process); }
  void send(int from, Bytes bytes);
  // Sends no more: what is in transit arrives and the other end closes, or a reset overtakes it.
  void finish(int from, bool reset);
  // Both ends are told, each in its time, and what is in transit is lost.
  void break_off(const char* why);
  void resume(int from);
  void tell_closed(int side, Duration delay, Status why);

  World::State& world;
  const uint64_t number;
  End ends[2];

 private:
  void schedule_delivery(int from, Duration delay);
  void deliver(int from);
};

class SimStream final : public net::Stream {
 public:
  SimStream(std::shared_ptr<Connection> connection, int side, net::PeerIdentity peer)
      : connection_(std::move(connection)), side_(side), peer_(std::move(peer)) {
    connection_->ends[side_].stream = this;
  }
  ~SimStream() override;

  void start(Handlers handlers) override;
  void send(ByteSpan head, ByteSpan payload) override;
  void flush() override;
  size_t unsent_bytes() const override;
  void close(Status reason) override;
  const net::PeerIdentity& peer() const override { return peer_; }

  // From the connection, within a turn of the process.
  void receive(Bytes bytes);
  void closed(Status why);

 private:
  SimEnv& env() const { return *connection_->ends[side_].process; }
  const std::shared_ptr<Connection> connection_;   // shared with the other end and events under way
  const int side_;
  const net::PeerIdentity peer_;
  std::shared_ptr<Handlers> handlers_;              // shared with a call under way, which may destroy the stream
  Bytes outgoing_;
  Bytes early_;                                     // came before start()
  std::optional<Status> early_close_;
  bool flush_planned_ = false;
  bool closing_ = false;
  // Shared with flushes and closes that are planned, which may come after the stream's end.
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace tidemark::sim
