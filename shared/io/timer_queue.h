// Timers of one loop: a heap of deadlines and the functions beside it. Cancelling only drops the
// function; the heap entry goes when it is reached, or when dead entries outnumber the living.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "shared/io/env.h"

namespace tidemark::io {

class TimerQueue {
 public:
  TimerId add(BootTime deadline, UniqueFunction<void()> fn) {
    uint64_t id = ++last_id_;
    functions_.emplace(id, std::move(fn));
    heap_.push_back({deadline.ns, id});
    std::push_heap(heap_.begin(), heap_.end(), later);
    return {id};
  }

  void cancel(TimerId id) {
    auto it = functions_.find(id.value);
    if (it == functions_.end()) return;
    // Destroyed last: its destructor may come back here.
    UniqueFunction<void()> doomed = std::move(it->second);
    functions_.erase(it);
    if (heap_.size() > 2 * functions_.size() + 64) compact();
  }

  std::optional<BootTime> next_deadline() {
    drop_dead_top();
    if (heap_.empty()) return std::nullopt;
    return BootTime{heap_.front().deadline};
  }

  // Takes the earliest function due at `now`, equal deadlines in the order of adding. Empty if none.
  UniqueFunction<void()> take_due(BootTime now) {
    drop_dead_top();
    if (heap_.empty() || heap_.front().deadline > now.ns) return {};
    auto it = functions_.find(heap_.front().id);
    UniqueFunction<void()> fn = std::move(it->second);
    functions_.erase(it);
    pop_top();
    return fn;
  }

  // Entries added from now on have greater ids: bounds what one turn runs.
  uint64_t last_id() const { return last_id_; }
  std::optional<uint64_t> top_id() {
    drop_dead_top();
    if (heap_.empty()) return std::nullopt;
    return heap_.front().id;
  }
  size_t size() const { return functions_.size(); }

 private:
  struct Entry {
    int64_t deadline;
    uint64_t id;
  };
  static bool later(const Entry& a, const Entry& b) {
    return a.deadline != b.deadline ? a.deadline > b.deadline : a.id > b.id;
  }
  void pop_top() {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    heap_.pop_back();
  }
  void drop_dead_top() {
    while (!heap_.empty() && !functions_.contains(heap_.front().id)) pop_top();
  }
  void compact() {
    std::erase_if(heap_, [&](const Entry& e) { return !functions_.contains(e.id); });
    std::make_heap(heap_.begin(), heap_.end(), later);
  }

  std::vector<Entry> heap_;
  std::unordered_map<uint64_t, UniqueFunction<void()>> functions_;
  uint64_t last_id_ = 0;
};

}  // namespace tidemark::io
