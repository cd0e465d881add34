// Inline operations are blocking calls of the loop's own thread; should one hang, the second thread goes on with the
// loop (real_env.h says what of it is promised).
#include <cstdlib>
#include <utility>

#include "shared/base/log.h"
#include "shared/io/real_env_state.h"

namespace tidemark::io {
namespace {

const log::Logger kLog("loop");

// An inline call that lasts longer (and less than twice as long) is left to its thread.
constexpr Duration kCallMax = std::chrono::milliseconds(250);
constexpr Duration kFetchInterval = std::chrono::milliseconds(10);
constexpr Duration kCallsEnd = std::chrono::seconds(5);   // waited for after the loop has ended

}  // namespace

// One of the two threads, until the loop ends: leading it, or watching the one that does.
void RealEnv::State::lead(RealEnv& env, bool leading) {
  while (leading || follow(env)) {
    if (!leading) take_over(env);
    leading = true;
    while (leading && !stopping.load(std::memory_order_relaxed)) leading = turn(env, kWaitMax);
    if (leading) return finish_leading();
  }
}

// True: the other one is stuck in a call, and this thread runs the loop from now on.
bool RealEnv::State::follow(RealEnv& env) {
  uint64_t seen = 0;
  std::unique_lock lock(lead_mutex);
  while (!over) {
    std::vector<std::shared_ptr<Ring>> own;
    for (const StuckRing& s : stuck_rings) if (s.owner == std::this_thread::get_id()) own.push_back(s.ring);
    if (!own.empty()) {
      for (auto& ring : own) ring->fetch();
      env.post([this] { reap_stuck(); });
    }
    own.clear();
    lead_changed.wait_for(lock, stuck_rings.empty() ? kCallMax : kFetchInterval);
    uint64_t now = call.load();
    if (now != 0 && now == seen && call.compare_exchange_strong(now, 0)) {
      ++hung;
      left_alone = true;
      return true;
    }
    if (stuck_rings.empty() || now == 0) seen = now;
  }
  return false;
}

// The loop as the other thread left it, but for its ring, which takes nothing from anybody else.
void RealEnv::State::take_over(RealEnv& env) {
  kLog.warning("file_operation_hangs", {{"now", "the loop goes on without it"}});
  ring_tried = false;
  if (ring == nullptr) return;
  env.remove_fd(ring->event_fd());
  ring->orphan();
  std::shared_ptr<Ring> old = std::move(ring);   // shared as StuckRing says
  if (old->in_flight() == 0) return;
  std::lock_guard lock(lead_mutex);
  stuck_rings.push_back({std::move(old), leader});
}

void RealEnv::State::reap_stuck() {
  std::vector<StuckRing> now;
  {
    std::lock_guard lock(lead_mutex);
    now = stuck_rings;
  }
  for (const StuckRing& s : now) {
    while (s.ring->has_ready()) s.ring->reap();
  }
  std::lock_guard lock(lead_mutex);
  std::erase_if(stuck_rings, [](const StuckRing& s) { return s.ring->in_flight() == 0; });
}

// The loop has ended. A thread that is still in a call would keep this one waiting for ever.
void RealEnv::State::finish_leading() {
  std::unique_lock lock(lead_mutex);
  over = true;
  lead_changed.notify_all();
  if (lead_changed.wait_for(lock, kCallsEnd, [this] { return hung == 0; })) return;
  kLog.warning("ended_with_a_file_operation_hanging", {{"calls", hung}});
  std::_Exit(EXIT_FAILURE);
}

// False: a call took so long that the other thread leads by now.
bool RealEnv::State::run_inline(RealEnv& env) {
  while (inline_next < inline_operations.size()) {
    InlineOperation operation = std::move(inline_operations[inline_next++]);
    if (inline_next == inline_operations.size()) {
      inline_operations.clear();
      inline_next = 0;
    }
    if (left_alone.load(std::memory_order_relaxed)) {
      queue(env, std::move(operation));
      continue;
    }
    if (!second.joinable()) {
      second = std::thread([this, &env] {
        block_all_signals();
        lead(env, false);
      });
    }
    if (ring != nullptr && ring->has_unsubmitted()) ring->submit();
    leader = std::this_thread::get_id();
    uint64_t number = ++calls;
    call.store(number, std::memory_order_release);
    Status status = run_blocking(operation.request);
    if (call.compare_exchange_strong(number, 0)) {
      --*operation.in_flight;
      operation.done(std::move(status));
      continue;
    }
    std::lock_guard lock(lead_mutex);
    left_alone = --hung != 0;   // before anybody hears of the end and begins the next operation
    env.post([operation = std::move(operation), status = std::move(status)]() mutable {
      --*operation.in_flight;
      operation.done(std::move(status));
    });
    lead_changed.notify_all();
    return false;
  }
  return true;
}

void RealEnv::State::queue(RealEnv& env, InlineOperation operation) {
  if (Ring* r = get_ring(env); r != nullptr) {
    return r->queue(operation.request, operation.in_flight, std::move(operation.done));
  }
  auto result = std::make_shared<Status>();   // shared by the worker and the completion
  env.offload([request = operation.request, result] { *result = run_blocking(request); },
              [result, operation = std::move(operation)]() mutable {
                --*operation.in_flight;
                operation.done(std::move(*result));
              });
}

}  // namespace tidemark::io
