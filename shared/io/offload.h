// Worker threads for Env::offload. Threads start when first needed, up to limits::kOffloadThreads.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "shared/base/function.h"

namespace tidemark::io {

class OffloadPool {
 public:
  OffloadPool() = default;
  ~OffloadPool();   // finishes what runs, destroys what waits
  void run(UniqueFunction<void()> job);   // any thread
  // Finishes what runs and destroys what waits; later jobs are destroyed unrun.
  void stop();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<UniqueFunction<void()>> jobs_;   // guarded by mutex_
  std::vector<std::thread> threads_;          // guarded by mutex_
  size_t idle_ = 0;                           // guarded by mutex_
  bool stopping_ = false;                     // guarded by mutex_
};

// A worker must never take the daemon's signals: they belong to the loop's signalfd.
void block_all_signals();

}  // namespace tidemark::io
