// The loop's own thread makes calls that may hang: inline operations, and entering the ring, which blocks where a
// device's queue is full or the file system has yet to read where a file's blocks are. Should one hang, the second
// thread goes on with the loop (real_env.h says what of it is promised). While nobody could take over from it, it makes
// no such call: inline operations are queued, and what is queued is left to the kernel's threads.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "shared/base/log.h"
#include "shared/io/real_env_state.h"

namespace tidemark::io {
namespace {

const log::Logger kLog("loop");

// A call that lasts longer (and less than twice as long) is left to its thread.
constexpr Duration kCallMax = std::chrono::milliseconds(250);
// After something has ended; twice as long each time that nothing has.
constexpr Duration kFetchIntervalMin = std::chrono::milliseconds(10);
constexpr Duration kFetchIntervalMax = std::chrono::milliseconds(320);
constexpr Duration kCallsEnd = std::chrono::seconds(5);   // waited for after the loop has ended

}  // namespace

// One of the two threads, until the loop ends: leading it, or watching the one that does.
void RealEnv::State::lead(RealEnv& env, bool leading) {
  while (leading || follow()) {
    if (!leading) take_over(env);
    leading = true;
    while (leading && !stopping.load(std::memory_order_relaxed)) leading = turn(env, kWaitMax);
    if (leading) return finish_leading();
  }
}

// True: the other one is stuck in a call, and this thread runs the loop from now on.
bool RealEnv::State::follow() {
  uint64_t seen = 0;
  std::unique_lock lock(lead_mutex);
  while (!over) {
    lead_changed.wait_for(lock, kCallMax);
    uint64_t now = call.load();
    if (now != 0 && now == seen && call.compare_exchange_strong(now, 0)) {
      left_alone = true;
      stuck_ring = std::move(ring);   // before that thread can look for it
      stuck_ring_done = false;
      return true;
    }
    seen = now;
  }
  return false;
}

// The loop as the other thread left it, but for its ring, which takes nothing from anybody else.
void RealEnv::State::take_over(RealEnv& env) {
  kLog.warning("file_operation_hangs", {{"now", "the loop goes on without it"}});
  ring_tried = false;
  if (stuck_ring == nullptr) return;
  env.remove_fd(stuck_ring->event_fd());
  stuck_ring->orphan([this, &env](const Ring::Request& request, uint32_t* in_flight, Callback<Status> done) {
    queue(env, {request, in_flight, std::move(done)});
  });
  reap_stuck();
}

void RealEnv::State::reap_stuck() {
  {
    std::lock_guard lock(lead_mutex);
    reap_asked = false;
    if (stuck_ring == nullptr || stuck_ring_done) return;
  }
  while (stuck_ring->has_ready()) stuck_ring->reap();
  std::lock_guard lock(lead_mutex);
  stuck_ring_left = stuck_ring->in_flight();
  stuck_ring_done = stuck_ring_left == 0;
  if (stuck_ring_done) lead_changed.notify_all();
}

// A call has ended that was left to this thread, which takes part again once all that its ring had has ended too: until
// then what hung may hang still, and only this thread can have the kernel show what has ended.
void RealEnv::State::come_back(RealEnv& env) {
  std::unique_lock lock(lead_mutex);
  Duration interval = kFetchIntervalMin;
  while (!over && stuck_ring != nullptr && !stuck_ring_done) {
    const size_t left = stuck_ring_left;
    lock.unlock();
    stuck_ring->enter();   // nobody else lets it go
    lock.lock();
    // The loop may be busy, and this goes on: it is asked once.
    if (!std::exchange(reap_asked, true)) env.post([this] { reap_stuck(); });
    if (!over) lead_changed.wait_for(lock, interval);
    interval = stuck_ring_left == left ? std::min(2 * interval, kFetchIntervalMax) : kFetchIntervalMin;
  }
  if (stuck_ring_done) stuck_ring.reset();
  left_alone = false;
  lead_changed.notify_all();
}

// What is between these two may hang. 0: nobody watches.
uint64_t RealEnv::State::begin_call(RealEnv& env) {
  if (!running || left_alone.load(std::memory_order_acquire)) return 0;
  if (!second.joinable()) {
    second = std::thread([this, &env] {
      block_all_signals();
      lead(env, false);
    });
  }
  const uint64_t number = ++calls;
  call.store(number, std::memory_order_release);   // from here on anything of the loop's may be the other thread's
  return number;
}

// False: it took so long that the other thread leads by now, and nothing of the loop's may be touched but come_back().
bool RealEnv::State::end_call(uint64_t number) { return number == 0 || call.compare_exchange_strong(number, 0); }

// As end_call(), as the others below.
bool RealEnv::State::enter_ring(RealEnv& env) {
  Ring* own = ring.get();   // `ring` may be the other thread's by the time that this one gets to run
  const uint64_t number = begin_call(env);
  own->enter();
  if (end_call(number)) return true;
  come_back(env);
  return false;
}

bool RealEnv::State::submit(RealEnv& env) {
  if (ring == nullptr || !ring->has_unsubmitted()) return true;
  ring->prepare(left_alone.load(std::memory_order_relaxed));
  return enter_ring(env);
}

bool RealEnv::State::reap(RealEnv& env) {
  if (ring == nullptr || !ring->has_ready()) return true;
  if (ring->holds_back() && !enter_ring(env)) return false;
  ring->reap();
  return true;
}

// The loop has ended. A thread that is still in a call would keep this one waiting for ever.
void RealEnv::State::finish_leading() {
  std::unique_lock lock(lead_mutex);
  over = true;
  lead_changed.notify_all();
  if (lead_changed.wait_for(lock, kCallsEnd, [this] { return !left_alone; })) return;
  kLog.warning("ended_with_a_file_operation_hanging");
  std::_Exit(EXIT_FAILURE);
}

bool RealEnv::State::run_inline(RealEnv& env) {
  while (inline_next < inline_operations.size()) {
    const bool alone = left_alone.load(std::memory_order_relaxed);
    if (!alone && !submit(env)) return false;
    InlineOperation operation = std::move(inline_operations[inline_next++]);
    if (inline_next == inline_operations.size()) {
      inline_operations.clear();
      inline_next = 0;
    }
    if (alone) {
      queue(env, std::move(operation));
      continue;
    }
    const uint64_t number = begin_call(env);
    Status status = run_blocking(operation.request);
    if (end_call(number)) {
      --*operation.in_flight;
      operation.done(std::move(status));
      continue;
    }
    env.post([operation = std::move(operation), status = std::move(status)]() mutable {
      --*operation.in_flight;
      operation.done(std::move(status));
    });
    come_back(env);
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
