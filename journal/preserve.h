// The block store's frozen image: what verify reads while writes go on.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>

#include "journal/batch.h"

namespace tidemark::journal {

// Granules of one image as of a moment. Released ranges are no longer of interest.
struct FrozenImage {
  uint32_t slot = 0;
  uint64_t size = 0;
  bool broken = false;
  std::map<uint64_t, uint64_t> released;                                  // first granule -> end
  std::unordered_map<uint64_t, std::shared_ptr<const Block>> blocks;      // by granule; shared with batches

  void release(uint64_t first, uint64_t end);
  // Runs of [first, end) neither released nor kept. Stops after `count_max` granules.
  void missing(uint64_t first, uint64_t end, uint64_t count_max, std::vector<Extent>& out) const;
};

}  // namespace tidemark::journal
