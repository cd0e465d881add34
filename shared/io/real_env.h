// The real Env: one loop thread over epoll, io_uring, timers and posted functions.
//
// A turn of the loop: wait (not at all if work is at hand), handle every ready descriptor, every
// finished file operation, every due timer and posted function, then the functions of at_turn_end,
// then submit all queued file operations with one system call. Nothing in a turn costs a system
// call that its work does not need.
//
//   io::RealEnv env({.open_store = kv::open_lmdb_store, .make_network = net::make_real_network});
//   env.on_signal({SIGTERM, SIGINT}, [&](int) { daemon.stop([&] { env.stop(); }); });
//   env.run();
//
// Inline file operations are made by run() itself, between callbacks: a blocking system call of which no frame above
// the loop knows; so is the submission of queued ones. Should one not come back (a device that hangs), a second thread
// takes the loop over, as it stands, and the call is left to its thread, with its buffers; when it returns its
// completion is posted like any other, and that thread watches the other one. So "the loop thread" is one thread at any
// moment, not the same one for ever. What was submitted in the same turn, or had not ended, is heard of when that
// thread is back.
//
// The thread that first calls run() or turn() is the loop thread. Before that, the thread that
// built the Env may use it as if it were the loop thread. Construct and configure signals before
// other threads start.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>

#include "shared/io/env.h"
#include "shared/io/poller.h"

namespace tidemark::io {

struct RealEnvOptions {
  // Who opens stores; kv::open_lmdb_store. Empty: open_store answers kUnsupported.
  UniqueFunction<Result<std::unique_ptr<kv::Store>>(Env&, const std::string& path, const kv::StoreOptions&)> open_store;
  // Makes the network when it is first asked for. Empty: network() is a programmer error.
  UniqueFunction<std::unique_ptr<net::Network>(Env&, Poller&)> make_network;
  bool use_io_uring = true;   // off: queued file operations run on the offload threads
  // A wait polls at most so long before it sleeps, where that has paid lately; zero: never.
  Duration busy_poll_max = Duration::zero();
};

class RealEnv final : public Env, public Poller {
 public:
  explicit RealEnv(RealEnvOptions options = {});
  // Joins the worker threads; functions not yet run are destroyed without running.
  ~RealEnv() override;

  // Runs turns until stop(). Ends the process instead of returning if a call still hangs some seconds later.
  void run();
  // Ends run() after the current turn. Callable from any thread.
  void stop();
  // One turn that waits at most `wait_max` for something to do. For tests and short-lived tools.
  void turn(Duration wait_max);
  // Turns until `done()` holds; false if `limit` passed first. For tests and short-lived tools.
  bool run_until(UniqueFunction<bool()> done, Duration limit);

  // Blocks these signals in the calling thread (and those it starts later) and calls `fn` with the
  // number on the loop thread when one arrives. Once per Env.
  void on_signal(std::initializer_list<int> signals, UniqueFunction<void(int)> fn);
  // False where the kernel refuses it (or it was turned off): queued I/O then costs a thread hop.
  bool has_io_uring();

  void post(UniqueFunction<void()> fn) override;
  TimerId after(Duration delay, UniqueFunction<void()> fn) override;
  void cancel(TimerId id) override;
  void at_turn_end(UniqueFunction<void()> fn) override;
  void offload(UniqueFunction<void()> work, UniqueFunction<void()> done) override;
  BootTime now() override;
  WallTime wall() override;
  void random(MutableByteSpan out) override;
  FileSystem& files() override;
  Result<std::unique_ptr<kv::Store>> open_store(const std::string& path, const kv::StoreOptions& options) override;
  net::Network& network() override;
  Uuid boot_id() override;

  Status add_fd(int fd, uint32_t events, FdCallback callback) override;
  Status modify_fd(int fd, uint32_t events) override;
  void remove_fd(int fd) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidemark::io
