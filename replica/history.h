// The versioned extent index: which stored bytes an image has at any point, found in bounded
// memory and without replay.
//
// An image's address range is cut into leaves of 1 MiB (256 units of 4 KiB). Each batch that
// changes a leaf adds one version of it, keyed (image, leaf, point): either the changed units only
// (delta) or the whole leaf (full). After kDeltasMax deltas a full version follows, so a leaf at any
// point takes at most one seek and kDeltasMax + 1 records. The cut-off of a shrink, and zero runs of
// kWideBytesMin and more where they lie over too many leaves that have versions, are not spread over
// the leaves: they stand as one record a batch in the table of wides, which every load of a leaf of
// the image looks at between its full version and the point (wides.h).
//
// Invariant: the versions of a leaf up to point P, with the wides up to P, give exactly the leaf at
// P; versions are never changed, and points only grow. Reads through a kv::Snapshot; no other I/O.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "replica/records.h"
#include "replica/wides.h"

namespace tidemark::replica {

inline constexpr uint64_t kLeafBytes = 1ull << 20;
inline constexpr uint32_t kUnitBytes = journal::kSegmentUnit;
inline constexpr uint32_t kLeafUnits = kLeafBytes / kUnitBytes;
inline constexpr uint32_t kDeltasMax = 32;
inline constexpr uint64_t kWideBytesMin = 16 * kLeafBytes;
// Leaves that the wide zero runs of one batch are spread over, and so many times as many that are looked at.
inline constexpr size_t kSpreadLeavesMax = 16384;
inline constexpr size_t kSpreadVisits = 4;

// Where the bytes of one unit are.
struct UnitRef {
  uint32_t segment = 0;           // SegmentId; 0: zeros
  uint32_t unit = 0;              // of the segment's uncompressed payload, in units
  uint16_t valid = kUnitBytes;    // bytes from the unit's beginning that count; the rest are zeros
  auto operator<=>(const UnitRef&) const = default;
};
using Leaf = std::array<UnitRef, kLeafUnits>;

// Some units of a leaf, in the form of a delta version.
struct LeafDelta {
  Leaf units;
  std::bitset<kLeafUnits> changed;
  void put(uint64_t unit, const UnitRef& ref);
  Status lay_over(ByteSpan delta);    // what `delta` says counts
  Bytes encode() const;
};

// One changed range. Offsets, lengths and positions are multiples of kUnitBytes.
struct Change {
  Extent extent;
  SegmentId segment;              // 0: zeros
  uint64_t position = 0;          // in the segment's payload
  bool is_wide() const { return segment.value == 0 && extent.length >= kWideBytesMin; }
};

// Adds one batch's changes, image by image, at a point newer than every earlier one of the image.
class HistoryWriter {
 public:
  HistoryWriter(kv::Snapshot& snapshot, kv::WriteBatch& out, size_t spread_leaves_max = kSpreadLeavesMax);
  // `changes` by offset, not overlapping. `shrink_to`: the image became this short (before the
  // changes): everything from there on is zeros. At most once an image and point.
  Status apply(ImageIndex image, PointId point, std::optional<uint64_t> shrink_to, std::span<const Change> changes);
  // The same in steps, where the changes are too many for one: first the shrink and the ranges zeroed at once, by
  // offset, then leaves, each as a delta. A step in another write batch begins again.
  void begin(ImageIndex image, PointId point, std::optional<uint64_t> shrink_to, std::span<const Extent> zeroed);
  Status put(ImageIndex image, uint64_t leaf, PointId point, ByteSpan delta);
  uint64_t leaves_written() const { return leaves_written_; }

 private:
  bool spread(ImageIndex image, std::span<const Change> changes, std::vector<Change>& laid);
  Status put_leaf(ImageIndex image, uint64_t leaf, PointId point);
  Status put_full(ImageIndex image, uint64_t leaf, PointId point);

  kv::Snapshot& snapshot_;
  kv::WriteBatch& out_;
  size_t spread_left_, visits_left_;   // of all images together
  std::unique_ptr<kv::Cursor> cursor_;
  std::optional<Wides> wides_;    // of the present image, before the point
  Bytes wide_;                    // the present image's, encoded
  Bytes runs_;                    // of the present leaf, encoded
  bool has_data_ = false;         // among runs_
  uint64_t leaves_written_ = 0;
};

// One image at one point.
class HistoryView {
 public:
  HistoryView(kv::Snapshot& snapshot, ImageIndex image, PointId point);
  // The leaf as it was. All zeros if it was never written.
  Status load(uint64_t leaf, Leaf& out);
  // The first leaf from `from` on that has any version at all (perhaps a later one); nullopt: none.
  std::optional<uint64_t> next_leaf(uint64_t from);

 private:
  const ImageIndex image_;
  const PointId point_;
  std::unique_ptr<kv::Cursor> cursor_;
  Wides wides_;
};

// Adjacent units that are stored adjacently, for readers: zeros are left out.
struct StoredRun {
  uint64_t offset = 0;            // in the image
  uint32_t length = 0;            // bytes
  SegmentId segment;
  uint64_t position = 0;          // in its payload
};
// Appends the runs of `leaf` (of index `index`) that overlap `range`, cut to it.
void append_runs(const Leaf& leaf, uint64_t index, Extent range, std::vector<StoredRun>& out);

}  // namespace tidemark::replica
