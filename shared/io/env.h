// Env: every door to the outside, so that a whole cluster can run in one thread from one seed.
//
// Completion-based: an operation is submitted with a callback, which runs on the loop thread of
// its Env, later or inline before the call returns. One Env is one process: one loop thread owns
// the daemon's state, so that state needs no lock. The real Env is shared/io/real_env.h, the
// simulated one tests/sim/sim_env.h; one contract suite runs on both.
//
// Rule: code in journal, fs (but its FUSE shell), replica, shared/node uses only an Env: no
// std::thread, no sleep, no clock, no file descriptor of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::kv { class Store; struct StoreOptions; }
namespace tidemark::net { class Network; }

namespace tidemark::io {

class FileSystem;

using Duration = std::chrono::nanoseconds;
struct TimerId { uint64_t value = 0; };  // 0: none

// Nanoseconds of CLOCK_BOOTTIME: leases, timeouts, back-off. Never compared between machines.
struct BootTime {
  int64_t ns = 0;
  auto operator<=>(const BootTime&) const = default;
  BootTime operator+(Duration d) const { return {ns + d.count()}; }
  Duration operator-(BootTime o) const { return Duration(ns - o.ns); }
};

class Env {
 public:
  virtual ~Env() = default;

  // Runs `fn` on the loop thread, in order of posting, never inline. Callable from any thread.
  virtual void post(UniqueFunction<void()> fn) = 0;
  // Runs `fn` once on the loop thread after `delay`. Loop thread only.
  virtual TimerId after(Duration delay, UniqueFunction<void()> fn) = 0;
  // After cancel the function is destroyed and does not run. Unknown and spent ids are ignored.
  virtual void cancel(TimerId id) = 0;
  // Runs `fn` at the end of the current turn of the loop (after all ready events were handled),
  // before the loop waits: where batches are flushed. Loop thread only.
  virtual void at_turn_end(UniqueFunction<void()> fn) = 0;
  // Runs `work` on a worker thread (compression, hashing, slow file walks), then `done` on the
  // loop. `work` may touch only what it owns. At most limits::kOffloadThreads at once; the rest queue.
  virtual void offload(UniqueFunction<void()> work, UniqueFunction<void()> done) = 0;

  virtual BootTime now() = 0;
  virtual WallTime wall() = 0;
  virtual void random(MutableByteSpan out) = 0;  // cryptographic in the real Env

  virtual FileSystem& files() = 0;
  // Opens (creating if absent) a key-value environment in directory `path`.
  virtual Result<std::unique_ptr<kv::Store>> open_store(const std::string& path, const kv::StoreOptions& options) = 0;
  virtual net::Network& network() = 0;

  // Names this boot of the machine (/proc/sys/kernel/random/boot_id); part of every loss id.
  virtual Uuid boot_id() = 0;

  uint64_t random_u64() { uint8_t b[8]; random(b); return load_le<uint64_t>(b); }
  Uuid random_uuid() { std::array<uint8_t, 16> b; random(b); return Uuid::from_random(b); }
};

}  // namespace tidemark::io
