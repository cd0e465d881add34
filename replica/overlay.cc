#include "replica/overlay.h"

#include <algorithm>

namespace tidemark::replica {
namespace {

// The part of a change that begins at `offset`.
Change tail_from(const Change& change, uint64_t offset) {
  Change out = change;
  const uint64_t by = offset - change.extent.offset;
  out.extent = {offset, change.extent.length - by};
  if (out.segment.value != 0) out.position += by;
  return out;
}

}  // namespace

void Overlay::lay(const Change& change) {
  const uint64_t begin = change.extent.offset, end = change.extent.end();
  if (begin == end) return;
  auto it = changes_.lower_bound(begin);
  if (it != changes_.begin()) {
    Change& before = std::prev(it)->second;
    if (before.extent.end() > end) changes_.emplace(end, tail_from(before, end));
    if (before.extent.end() > begin) before.extent.length = begin - before.extent.offset;
  }
  while (it != changes_.end() && it->first < end) {
    if (it->second.extent.end() > end) changes_.emplace(end, tail_from(it->second, end));
    it = changes_.erase(it);
  }
  changes_.emplace(begin, change);
}

std::vector<Change> Overlay::take() {
  std::vector<Change> out;
  out.reserve(changes_.size());
  for (auto& [offset, change] : changes_) out.push_back(change);
  changes_.clear();
  return out;
}

}  // namespace tidemark::replica
