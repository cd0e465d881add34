// The order of overlapping requests of one image, at a granule of 4 KiB (DESIGN.md: the way of a write, step 3).
//
// Exclusive ranges (writes, fills, repairs) overlap nothing; shared ranges (reads) overlap only one another. Whoever
// cannot be admitted waits in order of arrival, and later requests that overlap a waiting one wait behind it: nothing
// overtakes, nothing starves. No allocation in the steady state; the scan is linear over the requests in flight, which
// FUSE bounds at a few hundred.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "shared/base/function.h"
#include "shared/base/ids.h"

namespace tidemark::fs {

class RangeLock {
 public:
  // One request's place. Stays where it is in memory from acquire() to release().
  struct Hold {
    Extent extent;                       // bytes; widened to granules by acquire()
    bool exclusive = false;
    bool held = false;
    UniqueFunction<void()> granted;      // called when the place was given later than by acquire()
  };

  // True: the place is held now and `granted` is not called. Else it is called once, later.
  bool acquire(Hold& hold);
  // Gives the place up and admits those that it held back; their callbacks run before it returns.
  void release(Hold& hold);
  // Takes a waiting place out of the line (an interrupted request). False if it is held already.
  bool withdraw(Hold& hold);
  bool idle() const { return held_.empty() && waiting_.empty(); }
  size_t held() const { return held_.size(); }

 private:
  struct Range {
    uint64_t first, end;                 // in bytes, on granule bounds
    bool exclusive;
    Hold* hold;
    bool conflicts(const Range& o) const { return first < o.end && o.first < end && (exclusive || o.exclusive); }
  };
  static Range range_of(Hold& hold);
  bool admissible(const Range& range, size_t waiting_before) const;
  void admit_waiting();

  std::vector<Range> held_;
  std::vector<Range> waiting_;           // in order of arrival
  std::deque<Hold*> ready_;              // admitted, callback not yet run
  bool draining_ = false;
};

}  // namespace tidemark::fs
