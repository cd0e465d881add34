// BehindMap: which regions of one host's copy of an image are older than the shared copy. In memory;
// the caller stores what changes. Pure.
//
// A map is handed out with its cut; marks made afterwards carry a greater one, so that "level up to cut
// C" never clears a region that was marked again meanwhile. Cuts begin anew above all earlier ones with
// each run of the shared node (the boot number is in their upper half): a cut need not be durable itself.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"

namespace tidemark::node {

class BehindMap {
 public:
  // Cuts of this run: above those of every earlier one.
  explicit BehindMap(Incarnation boot) : cut_((boot.value << 32) + 1), valid_from_(cut_) {}

  bool known = false;   // the host has had this map before: what is not in it is level

  void load(uint32_t region, uint64_t cut) { regions_[region] = cut; }
  // True if the mark is new or its cut changed, and so must be made durable.
  bool mark(uint32_t region) {
    auto [it, added] = regions_.try_emplace(region, cut_);
    if (!added && it->second == cut_) return false;
    it->second = cut_;
    return true;
  }
  // False: a cut of another run, or of regions of another size.
  bool knows(uint64_t cut) const { return cut >= valid_from_; }
  bool is_marked(uint32_t region) const {   // in such a way that a map handed out earlier cannot clear it
    auto it = regions_.find(region);
    return it != regions_.end() && it->second == cut_;
  }
  uint64_t cut() const { return cut_; }
  // The cut to be named by Level; later marks are above it.
  uint64_t hand_out() { return cut_++; }
  // The regions that became level: those of `wanted` not marked since `cut`.
  std::vector<uint32_t> clear(const Bytes& wanted, uint64_t cut) {
    std::vector<uint32_t> cleared;
    if (!knows(cut)) return cleared;
    for (auto it = regions_.begin(); it != regions_.end();) {
      size_t byte = it->first / 8;
      bool named = byte < wanted.size() && (wanted[byte] >> it->first % 8 & 1) != 0;
      if (named && it->second <= cut) {
        cleared.push_back(it->first);
        it = regions_.erase(it);
      } else {
        ++it;
      }
    }
    return cleared;
  }
  Bytes bitmap() const {
    Bytes out;
    if (!regions_.empty()) out.resize(regions_.rbegin()->first / 8 + 1);
    for (const auto& [region, cut] : regions_) out[region / 8] |= static_cast<uint8_t>(1u << region % 8);
    return out;
  }
  // The region size grew by `factor`. Maps handed out before are void.
  void coarsen(uint32_t factor) {
    std::map<uint32_t, uint64_t> coarse;
    valid_from_ = ++cut_;
    for (const auto& [region, cut] : regions_) coarse[region / factor] = cut_;
    regions_ = std::move(coarse);
  }
  void reset() { regions_.clear(); valid_from_ = ++cut_; }
  const std::map<uint32_t, uint64_t>& regions() const { return regions_; }

 private:
  std::map<uint32_t, uint64_t> regions_;   // region -> cut of its last mark
  uint64_t cut_;
  uint64_t valid_from_;                    // Level with an older cut speaks of another map
};

}  // namespace tidemark::node
