// Zeros that stand outside of an image's leaves: the table of wides, one record a batch (FORMAT.md). Which of them a
// leaf lies under, between its last full version and a point.
//
// The first leaves that are asked for are looked up record by record. Whoever asks for more, in ascending order, goes
// through all of the image's records once: a leaf costs those that lie over it from then on, not those there are. Not
// before that costs about what was spent already: leaves that are written all the time have few records since their
// last full version, however many there are. No I/O but reads of a kv::Snapshot; one thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "replica/records.h"

namespace tidemark::replica {

inline constexpr size_t kWidesScannedMax = 8;                 // leaves that are looked up record by record
inline constexpr uint64_t kWidesTriedMin = 4096;              // records and ranges that going through all may cost
inline constexpr uint64_t kWidesTriedFactor = 8;              // beside so many times what was spent
inline constexpr uint64_t kWideRangesKeptMax = 2ull << 20;    // 24 bytes each. An image with more: always so

struct Zeroed {
  PointId point;
  uint64_t begin = 0, end = 0;    // of the image; a shrink: to the end of all
};

Bytes encode_wide(std::optional<uint64_t> shrink_to, std::span<const Extent> zeroed);
// Appends what of the record of `point` overlaps `range`.
Status append_zeroed(ByteSpan record, PointId point, Extent range, std::vector<Zeroed>& out);

class Wides {
 public:
  Wides(kv::Snapshot& snapshot, ImageIndex image, PointId point)
      : snapshot_(snapshot), image_(image), point_(point) {}
  // What overlaps `leaf`, of the points after `after` and up to `point`, oldest first.
  Status of_leaf(Extent leaf, PointId after, std::vector<Zeroed>& out);
  uint64_t spent() const { return spent_; }   // records and ranges gone through

 private:
  // Appends what of the records after `after` overlaps `range`; false: it is more than `count_max`, or costs more than
  // `cost_max`.
  Result<bool> scan(Extent range, PointId after, size_t count_max, uint64_t cost_max, std::vector<Zeroed>& out);
  Status read_all();
  void move_to(Extent leaf);

  kv::Snapshot& snapshot_;
  const ImageIndex image_;
  const PointId point_;
  std::unique_ptr<kv::Cursor> cursor_;   // made when first needed
  size_t scanned_ = 0;            // leaves
  uint64_t spent_ = 0;
  uint64_t try_at_ = 0;           // of what is spent: all is gone through then
  bool whole_ = false;            // `all_` is
  std::vector<Zeroed> all_;       // by where they begin
  size_t next_ = 0;               // of `all_`: the first that begins behind the present leaf
  uint64_t at_ = 0;               // where that leaf begins
  std::vector<Zeroed> open_;      // those that overlap it, by point
};

}  // namespace tidemark::replica
