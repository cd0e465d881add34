// Changes of one image laid over each other: what comes later hides what lies below it. Pure.
#pragma once

#include <map>
#include <vector>

#include "replica/history.h"

namespace tidemark::replica {

class Overlay {
 public:
  void lay(const Change& change);
  // By offset, not overlapping; empty afterwards.
  std::vector<Change> take();

 private:
  std::map<uint64_t, Change> changes_;   // by offset
};

}  // namespace tidemark::replica
