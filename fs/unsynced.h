// Which finished writes no flush has covered yet. Flushes overlap: each covers what had finished when it began.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tidemark::fs {

class Unsynced {
 public:
  void finish() { ++finished_; }
  // Whether a flush has anything to do.
  bool any() const { return finished_ != durable_; }
  // Asked when a flush begins, given back when all that had finished by then is durable.
  uint64_t mark() const { return finished_; }
  void cover(uint64_t mark) { durable_ = std::max(durable_, mark); }
  void clear() { durable_ = finished_; }

 private:
  uint64_t finished_ = 0, durable_ = 0;   // writes, counted from the image's first
};

}  // namespace tidemark::fs
