// Which regions of this host's copy of an image are older than the shared copy. Kept in memory; the durable one is the
// shared node's (handed out with Grant, cleared with Level), or the `behind` flag when the whole copy is unfilled.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared/base/bytes.h"

namespace tidemark::fs {

class StaleMap {
 public:
  void set_all(uint64_t size, uint64_t region_bytes) {
    region_bytes_ = region_bytes;
    bits_.assign((regions_of(size) + 7) / 8, 0);
    unlike_.clear();
    count_ = 0;
    for (uint64_t r = 0; r < regions_of(size); ++r) set(r);
  }
  void set_bitmap(const Bytes& bitmap, uint64_t size, uint64_t region_bytes) {
    region_bytes_ = region_bytes;
    bits_.assign((regions_of(size) + 7) / 8, 0);
    unlike_.clear();
    count_ = 0;
    for (uint64_t r = 0; r < regions_of(size) && r / 8 < bitmap.size(); ++r)
      if (bitmap[r / 8] >> (r % 8) & 1) set(r);
  }
  void clear_all() { bits_.clear(); unlike_.clear(); count_ = 0; }
  bool none() const { return count_ == 0; }
  uint64_t count() const { return count_; }
  uint64_t region_bytes() const { return region_bytes_; }
  uint64_t stale_bytes(uint64_t size) const { return std::min(count_ * region_bytes_, size); }
  bool region_stale(uint64_t region) const {
    return region / 8 < bits_.size() && (bits_[region / 8] >> (region % 8) & 1);
  }
  // True if any part of the range is stale.
  bool stale(Extent range) const {
    if (count_ == 0 || range.length == 0) return false;
    for (uint64_t r = range.offset / region_bytes_; r <= (range.end() - 1) / region_bytes_; ++r)
      if (region_stale(r)) return true;
    return false;
  }
  void clear(uint64_t region) {
    if (!region_stale(region)) return;
    bits_[region / 8] &= static_cast<uint8_t>(~(1u << (region % 8)));
    --count_;
  }
  // Those of them within the range lack what this tenure has made of them, too, until they are filled.
  void note_unlike(Extent range) {
    unlike_.resize(bits_.size());
    for (uint64_t r = range.offset / region_bytes_; r <= (range.end() - 1) / region_bytes_; ++r)
      if (region_stale(r)) unlike_[r / 8] |= static_cast<uint8_t>(1u << (r % 8));
  }
  // True if any part of the range is in such a region.
  bool unlike(Extent range) const {
    if (unlike_.empty() || range.length == 0) return false;
    for (uint64_t r = range.offset / region_bytes_; r <= (range.end() - 1) / region_bytes_; ++r)
      if (region_stale(r) && (unlike_[r / 8] >> (r % 8) & 1)) return true;
    return false;
  }
  // The first stale region at or after `from`; UINT64_MAX if none.
  uint64_t next(uint64_t from) const {
    for (uint64_t r = from; r < bits_.size() * 8; ++r)
      if (region_stale(r)) return r;
    return UINT64_MAX;
  }

 private:
  uint64_t regions_of(uint64_t size) const { return (size + region_bytes_ - 1) / region_bytes_; }
  void set(uint64_t region) { bits_[region / 8] |= static_cast<uint8_t>(1u << (region % 8)); ++count_; }

  uint64_t region_bytes_ = 4ull << 20;
  Bytes bits_, unlike_;
  uint64_t count_ = 0;
};

}  // namespace tidemark::fs
