#include "tests/sim/sim_env_network.h"

#include "shared/base/digest.h"

namespace tidemark::sim {
namespace {

constexpr size_t kSocketBufferBytes = 1u << 20;   // the kernel takes so much; more counts as unsent
constexpr DurationRange kPieceGap{std::chrono::microseconds(1), std::chrono::microseconds(50)};
constexpr DurationRange kPowerLossNotice{std::chrono::seconds(1), std::chrono::seconds(10)};

}  // namespace

void Connection::send(int from, Bytes bytes) {
  End& end = ends[from];
  if (end.finished || bytes.empty()) return;
  end.transit_bytes += bytes.size();
  end.transit.push_back(std::move(bytes));
  Duration delay = world.network_delay(machine(from), machine(1 - from));
  end.last_due_ns = std::max(end.last_due_ns, world.now_ns + delay.count());
  if (end.delivery == 0 && !end.held) schedule_delivery(from, Duration(end.last_due_ns - world.now_ns));
}

void Connection::schedule_delivery(int from, Duration delay) {
  uint64_t number_at = world.next_number;
  ends[from].delivery = number_at;
  world.schedule(nullptr, delay, EventKind::kStream, number, [self = shared_from_this(), from, number_at] {
    if (self->ends[from].delivery == number_at) self->deliver(from);
  });
}

void Connection::deliver(int from) {
  End& end = ends[from];
  end.delivery = 0;
  if (world.is_cut(machine(from), machine(1 - from))) {
    end.held = true;
    uint64_t stuck = end.transit_bytes;
    world.schedule(nullptr, world.options.connection_timeout, EventKind::kStream, number,
                   [self = shared_from_this(), from, stuck] {
                     if (self->ends[from].held && self->ends[from].transit_bytes >= stuck) {
                       self->break_off("connection timed out");
                     }
                   });
    return;
  }
  if (end.transit.empty()) {
    if (end.finished) tell_closed(1 - from, {}, Status(Code::kUnavailable, "closed by the peer"));
    return;
  }
  if (world.random.chance(world.options.reset_per_million, 1'000'000)) {
    break_off("connection reset by peer");
    return;
  }
  Bytes piece = std::move(end.transit.front());
  end.transit.pop_front();
  // A receiver sees any split of the bytes, as TCP has it.
  if (piece.size() > 1 && world.random.chance(1, 4)) {
    size_t cut = 1 + world.random.below(piece.size() - 1);
    end.transit.emplace_front(piece.begin() + static_cast<ptrdiff_t>(cut), piece.end());
    piece.resize(cut);
  }
  end.transit_bytes -= piece.size();
  world.mix(digest64(piece));
  if (!end.transit.empty() || end.finished) schedule_delivery(from, world.random.in(kPieceGap));
  SimEnv* receiver = ends[1 - from].process;
  UniqueFunction<void()> arrival = [self = shared_from_this(), from, piece = std::move(piece)]() mutable {
    if (SimStream* stream = self->ends[1 - from].stream; stream != nullptr) stream->receive(std::move(piece));
  };
  world.enter(receiver, arrival);
}

void Connection::finish(int from, bool reset) {
  End& end = ends[from];
  if (end.finished) return;
  end.finished = true;
  if (reset) {
    end.transit.clear();
    end.transit_bytes = 0;
  }
  Duration delay = world.network_delay(machine(from), machine(1 - from));
  end.last_due_ns = std::max(end.last_due_ns, world.now_ns + delay.count());
  if (end.delivery == 0 && !end.held) schedule_delivery(from, Duration(end.last_due_ns - world.now_ns));
}

void Connection::break_off(const char* why) {
  for (int side = 0; side < 2; ++side) {
    End& end = ends[side];
    end.transit.clear();
    end.transit_bytes = 0;
    end.finished = true;
    end.held = false;
    end.delivery = 0;
    tell_closed(side, world.network_delay(machine(side), machine(1 - side)), Status(Code::kUnavailable, why));
  }
}

void Connection::resume(int from) {
  End& end = ends[from];
  if (!end.held || world.is_cut(machine(from), machine(1 - from))) return;
  end.held = false;
  schedule_delivery(from, world.network_delay(machine(from), machine(1 - from)));
}

void Connection::tell_closed(int side, Duration delay, Status why) {
  SimEnv* process = ends[side].process;
  world.schedule(process, delay, EventKind::kStream, number, [self = shared_from_this(), side, why = std::move(why)] {
    if (SimStream* stream = self->ends[side].stream; stream != nullptr) stream->closed(why);
  });
}

SimStream::~SimStream() {
  *alive_ = false;
  connection_->ends[side_].stream = nullptr;
  if (env().alive()) connection_->finish(side_, connection_->world.random.coin());
}

void SimStream::start(Handlers handlers) {
  TM_CHECK(handlers_ == nullptr, "a stream is started once");
  handlers_ = std::make_shared<Handlers>(std::move(handlers));
  if (early_.empty() && !early_close_) return;
  env().post([this, alive = alive_] {
    if (*alive && !early_.empty()) receive(std::exchange(early_, {}));
    if (*alive && early_close_) closed(*std::exchange(early_close_, std::nullopt));
  });
}

void SimStream::send(ByteSpan head, ByteSpan payload) {
  if (closing_ || !env().alive()) return;
  outgoing_.insert(outgoing_.end(), head.begin(), head.end());
  outgoing_.insert(outgoing_.end(), payload.begin(), payload.end());
  if (std::exchange(flush_planned_, true)) return;
  env().at_turn_end([this, alive = alive_] {
    if (*alive) flush();
  });
}

void SimStream::flush() {
  flush_planned_ = false;
  if (!closing_ && env().alive()) connection_->send(side_, std::exchange(outgoing_, {}));
}

size_t SimStream::unsent_bytes() const {
  size_t transit = connection_->ends[side_].transit_bytes;
  return outgoing_.size() + (transit > kSocketBufferBytes ? transit - kSocketBufferBytes : 0);
}

void SimStream::close(Status reason) {
  if (std::exchange(closing_, true)) return;
  outgoing_.clear();
  connection_->finish(side_, connection_->world.random.coin());
  env().post([this, alive = alive_, reason = std::move(reason)]() mutable {
    if (!*alive) return;
    closing_ = false;
    closed(std::move(reason));
  });
}

void SimStream::receive(Bytes bytes) {
  if (closing_) return;
  if (handlers_ == nullptr || !early_.empty()) {
    early_.insert(early_.end(), bytes.begin(), bytes.end());
    return;
  }
  auto handlers = handlers_;
  if (handlers->on_data) handlers->on_data(bytes);
}

void SimStream::closed(Status why) {
  if (closing_) return;   // already ended, or its own close is on the way
  if (handlers_ == nullptr || !early_.empty()) {
    if (!early_close_) early_close_ = std::move(why);
    return;
  }
  closing_ = true;
  connection_->finish(side_, true);
  auto handlers = handlers_;
  if (handlers->on_close) handlers->on_close(std::move(why));
}

void crash_connections(World::State& world, SimEnv& process, Crash kind) {
  std::vector<std::shared_ptr<Connection>> mine;   // kept alive while they are told
  for (auto& [number, weak] : world.connections) {
    auto connection = weak.lock();
    if (connection && (connection->ends[0].process == &process || connection->ends[1].process == &process)) {
      mine.push_back(std::move(connection));
    }
  }
  for (auto& connection : mine) {
    int side = connection->ends[0].process == &process ? 0 : 1;
    // A killed process's kernel closes its sockets; a dead machine says nothing.
    if (kind == Crash::kKill) {
      connection->finish(side, world.random.coin());
      continue;
    }
    Connection::End& end = connection->ends[side];
    end.transit.clear();
    end.transit_bytes = 0;
    end.finished = true;
    end.delivery = 0;
    connection->tell_closed(1 - side, world.random.in(kPowerLossNotice),
                            Status(Code::kUnavailable, "connection timed out"));
  }
}

namespace {
std::vector<std::shared_ptr<Connection>> connections_of(World::State& world) {   // kept alive while they are told
  std::vector<std::shared_ptr<Connection>> all;
  for (auto& [number, weak] : world.connections) {
    if (auto connection = weak.lock()) all.push_back(std::move(connection));
  }
  return all;
}
}  // namespace

void resume_connections(World::State& world) {
  for (auto& connection : connections_of(world)) {
    connection->resume(0);
    connection->resume(1);
  }
}

void reset_connections(World::State& world, const std::string& a, const std::string& b) {
  for (auto& connection : connections_of(world)) {
    const std::string& x = connection->machine(0).options.name;
    const std::string& y = connection->machine(1).options.name;
    if ((x == a && y == b) || (x == b && y == a)) connection->break_off("connection reset by peer");
  }
}

void reset_end(World::State& world, const std::string& at, const std::string& peer) {
  for (auto& connection : connections_of(world)) {
    for (int side = 0; side < 2; ++side) {
      const bool here = connection->machine(side).options.name == at;
      if (here && connection->machine(1 - side).options.name == peer)
        connection->tell_closed(side, {}, Status(Code::kUnavailable, "connection reset by peer"));
    }
  }
}

}  // namespace tidemark::sim
