#include "fs/range_lock.h"

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/base/planted.h"
#include "shared/base/status.h"

namespace tidemark::fs {

RangeLock::Range RangeLock::range_of(Hold& hold) {
  constexpr uint64_t kMask = limits::kOrderGranule - 1;
  uint64_t end = hold.extent.end();
  uint64_t widened = end > UINT64_MAX - kMask ? UINT64_MAX : (end + kMask) & ~kMask;
  uint64_t first = hold.extent.offset & ~kMask;
  return {first, std::max(widened, first + 1), hold.exclusive, &hold};
}

bool RangeLock::admissible(const Range& range, size_t waiting_before) const {
  if (TM_PLANTED("reorder overlapping writes")) return true;
  for (const Range& h : held_)
    if (range.conflicts(h)) return false;
  for (size_t i = 0; i < waiting_before; ++i)
    if (range.conflicts(waiting_[i])) return false;
  return true;
}

bool RangeLock::acquire(Hold& hold) {
  TM_CHECK(!hold.held, "a place in the order is taken once");
  Range range = range_of(hold);
  if (admissible(range, waiting_.size())) {
    hold.held = true;
    held_.push_back(range);
    return true;
  }
  waiting_.push_back(range);
  return false;
}

void RangeLock::release(Hold& hold) {
  TM_CHECK(hold.held, "only a held place can be released");
  auto at = std::find_if(held_.begin(), held_.end(), [&](const Range& r) { return r.hold == &hold; });
  *at = held_.back();
  held_.pop_back();
  hold.held = false;
  if (!waiting_.empty()) admit_waiting();
}

bool RangeLock::withdraw(Hold& hold) {
  auto at = std::find_if(waiting_.begin(), waiting_.end(), [&](const Range& r) { return r.hold == &hold; });
  if (at == waiting_.end()) return false;
  waiting_.erase(at);
  admit_waiting();
  return true;
}

void RangeLock::admit_waiting() {
  size_t kept = 0;
  for (size_t i = 0; i < waiting_.size(); ++i) {
    Range range = waiting_[i];
    if (admissible(range, kept)) {
      range.hold->held = true;
      held_.push_back(range);
      ready_.push_back(range.hold);
    } else {
      waiting_[kept++] = range;
    }
  }
  waiting_.resize(kept);
  if (draining_) return;  // a callback below released: the loop that called it goes on
  draining_ = true;
  while (!ready_.empty()) {
    Hold* next = ready_.front();
    ready_.pop_front();
    auto granted = std::move(next->granted);
    granted();
  }
  draining_ = false;
}

}  // namespace tidemark::fs
