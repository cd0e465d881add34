// OrderTable: keeps requests on one image that overlap (at the granule of 4 KiB) from running at the
// same time, in the order of their arrival. Readers run beside readers.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "shared/base/ids.h"
#include "shared/base/limits.h"

namespace tidemark::node {

template <typename Op>   // has `Extent range` and `bool exclusive`
class OrderTable {
 public:
  // True: run it now. False: release() of another will give it back.
  bool admit(Op* op) {
    op->range = widen(op->range);
    if (conflicts(*op, running_) || conflicts(*op, waiting_)) {
      waiting_.push_back(op);
      return false;
    }
    running_.push_back(op);
    return true;
  }
  // Appends those that may run now to `next`.
  void release(Op* op, std::vector<Op*>& next) {
    for (size_t i = 0; i < running_.size(); ++i) {
      if (running_[i] != op) continue;
      running_[i] = running_.back();
      running_.pop_back();
      break;
    }
    if (waiting_.empty()) return;
    std::deque<Op*> still;
    for (Op* w : waiting_) {
      if (conflicts(*w, running_) || conflicts(*w, still)) {
        still.push_back(w);
      } else {
        running_.push_back(w);
        next.push_back(w);
      }
    }
    waiting_.swap(still);
  }
  bool empty() const { return running_.empty() && waiting_.empty(); }

 private:
  static Extent widen(Extent e) {
    uint64_t begin = e.offset / limits::kOrderGranule * limits::kOrderGranule;
    uint64_t end = e.end() > UINT64_MAX - limits::kOrderGranule
                       ? UINT64_MAX
                       : (e.end() + limits::kOrderGranule - 1) / limits::kOrderGranule * limits::kOrderGranule;
    return {begin, end - begin};
  }
  template <class Ops>
  static bool conflicts(const Op& op, const Ops& others) {
    for (const Op* o : others) {
      if ((op.exclusive || o->exclusive) && op.range.overlaps(o->range)) return true;
    }
    return false;
  }

  std::vector<Op*> running_;
  std::deque<Op*> waiting_;
};

}  // namespace tidemark::node
