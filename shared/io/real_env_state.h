// What a RealEnv holds. Inside of this folder: real_env.cc (a turn of the loop, and the Env's doors), leading.cc
// (calls that may hang, and which of two threads runs the loop).
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "shared/io/busy_poll.h"
#include "shared/io/offload.h"
#include "shared/io/real_env.h"
#include "shared/io/real_files.h"
#include "shared/io/ring.h"
#include "shared/io/timer_queue.h"
#include "shared/kv/store.h"
#include "shared/net/network.h"

namespace tidemark::io {

// A wait never lasts longer: its timeout does not count the time a machine was suspended, timers do.
inline constexpr Duration kWaitMax = std::chrono::seconds(1);

struct Watch {
  int fd;
  uint32_t generation;
  Poller::FdCallback callback;
};

struct RealEnv::State {
  RealEnvOptions options;
  int epoll_fd = -1;
  int wake_fd = -1;
  int signal_fd = -1;

  // Loop thread.
  std::vector<std::unique_ptr<Watch>> watches;          // by descriptor
  std::vector<std::unique_ptr<Watch>> retired;          // removed in this turn: a callback may still be running
  uint32_t next_generation = 1;
  TimerQueue timers;
  BusyPoll busy_poll{Duration::zero()};
  std::vector<UniqueFunction<void()>> turn_end;
  std::vector<UniqueFunction<void()>> turn_end_running;
  std::vector<UniqueFunction<void()>> posted_running;
  bool ring_tried = false;                              // since the loop began, or was taken over
  bool had_ring = false;                                // the kernel has io_uring
  BootTime ring_again;                                  // then it is tried again, not before
  std::unique_ptr<Ring> ring;
  UniqueFunction<void(int)> signal_callback;
  std::unique_ptr<net::Network> network;

  // Any thread.
  std::mutex post_mutex;
  std::vector<UniqueFunction<void()>> posted;           // guarded by post_mutex
  std::atomic<bool> has_posted = false;
  std::atomic<bool> waiting = false;                    // the loop sleeps, or is about to: wake it
  std::atomic<bool> stopping = false;

  std::unique_ptr<RealFileSystem> files;
  OffloadPool offload;

  // Calls that may hang (inline operations, entering the ring), and which of two threads runs the loop.
  bool running = false;                                 // in run(): there is a base to make calls from
  std::vector<InlineOperation> inline_operations;
  size_t inline_next = 0;
  uint64_t calls = 0;
  std::atomic<uint64_t> call = 0;                       // number of the call being made; 0: none
  std::mutex lead_mutex;
  std::condition_variable lead_changed;
  bool over = false;                                    // guarded by lead_mutex
  // The other thread is left with a call, or with its ring: nobody would take over from this one.
  std::atomic<bool> left_alone = false;                 // changed under lead_mutex
  std::unique_ptr<Ring> stuck_ring;                     // of that thread, which alone lets it go, once done
  bool stuck_ring_done = false;                         // guarded by lead_mutex: all that it had has ended
  size_t stuck_ring_left = 0;                           // guarded by lead_mutex: operations that it has
  bool reap_asked = false;                              // guarded by lead_mutex: it is to be looked at, and was not yet
  std::thread second;

  void wake();
  bool wait_and_dispatch(RealEnv& env, Duration wait_max);
  int wait_for_events(epoll_event* events, Duration wait);
  void dispatch(int fd, uint32_t generation, uint32_t events);
  void run_timers();
  void run_posted();
  void run_turn_end();
  bool turn(RealEnv& env, Duration wait_max);
  bool run_inline(RealEnv& env);
  bool submit(RealEnv& env);
  bool reap(RealEnv& env);
  bool enter_ring(RealEnv& env);
  uint64_t begin_call(RealEnv& env);
  bool end_call(uint64_t number);
  void come_back(RealEnv& env);
  void queue(RealEnv& env, InlineOperation operation);
  void lead(RealEnv& env, bool leading);
  bool follow();
  void take_over(RealEnv& env);
  void reap_stuck();
  void finish_leading();
  Ring* get_ring(RealEnv& env);
  Duration wait_time(Duration wait_max);
};

}  // namespace tidemark::io
