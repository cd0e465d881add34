#include "shared/io/offload.h"

#include <csignal>

#include "shared/base/limits.h"

namespace tidemark::io {

void block_all_signals() {
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, SIGBUS);   // a map's page that cannot be read: the thread that meets it is told
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

OffloadPool::~OffloadPool() { stop(); }

void OffloadPool::stop() {
  std::deque<UniqueFunction<void()>> dropped;   // destroyed outside the lock: destructors may call back
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped.swap(jobs_);
    threads.swap(threads_);
  }
  wake_.notify_all();
  for (auto& thread : threads) thread.join();
}

void OffloadPool::run(UniqueFunction<void()> job) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  jobs_.push_back(std::move(job));
  if (jobs_.size() > idle_ && threads_.size() < limits::kOffloadThreads) {
    threads_.emplace_back([this] { work(); });
  }
  wake_.notify_one();
}

void OffloadPool::work() {
  block_all_signals();
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    wake_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    --idle_;
    if (jobs_.empty()) return;
    UniqueFunction<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
}

}  // namespace tidemark::io
