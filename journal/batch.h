// A batch between its first record and its staging, in memory.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "journal/consolidate.h"
#include "journal/granule_map.h"
#include "journal/records.h"
#include "journal/segment.h"

namespace tidemark::journal {

using Block = std::array<uint8_t, limits::kOrderGranule>;

// What a batch holds of one image.
struct BatchImage {
  GranuleMap needs;               // granules whose contents at the cut are still only on the copy
  GranuleMap read;                // those that staging has read: its own, should the batch be given up yet
  Counter first, last;
  CoordinatorSequence coordinator_first, coordinator_last;
  Epoch epoch;
  wire::TenureParent parent;
  uint64_t size = 0;              // from the cut on: at the cut
  Generation size_generation;
  uint64_t bytes = 0;             // written, before consolidation
  bool left_out = false;          // withheld at the cut: what the batch has of it is lacked, and not staged
  bool as_left = false;           // some of it is of before another host's tenure: all of it is read, as that one left it
};

struct Batch {
  enum class State : uint8_t { kOpen, kClosed, kReading, kWriting, kGivenUp };
  BatchNumber number;
  BatchKind kind = BatchKind::kNormal;
  State state = State::kOpen;
  Counter first, last;
  WallTime label;
  std::string name;
  bool empty = true;              // neither record nor mark
  uint32_t in_flight = 0;         // begun and not finished
  uint32_t compacting = 0;        // times that records of it are with a worker, which consolidates them
  std::vector<ChangeRecord> records;
  std::vector<SegmentMark> marks;
  std::vector<std::unique_ptr<BatchImage>> images;   // by slot
  RecordPack pack;                // records not yet given to LMDB
  uint32_t next_serial = 0;
  std::unordered_map<uint64_t, std::shared_ptr<const Block>> preserved;   // shared with other batches that need the block
  uint64_t data_bytes = 0;
  UniqueFunction<void()> when_drained;

  std::vector<ImageExtent> lacked;   // regions taken from what the replica lacks: of a piece, or no longer withheld

  // A piece is read as it stands: what changes meanwhile is in the batch that follows.
  bool needs_preserving() const {
    return kind != BatchKind::kPiece && (state == State::kClosed || state == State::kReading);
  }
  // Any of it is there because the replica lacks it, whoever wrote it.
  bool lacks(const ImageId& id, Extent extent) const {
    return std::any_of(lacked.begin(), lacked.end(),
                       [&](const ImageExtent& e) { return e.image == id && e.extent.overlaps(extent); });
  }
  BatchImage* image(uint32_t slot) const { return slot < images.size() ? images[slot].get() : nullptr; }
};

inline uint64_t block_key(uint32_t slot, uint64_t granule) { return static_cast<uint64_t>(slot) << 36 | granule; }

// Granules of a record whose contents have to be read at the cut; zeros and discards are known.
template <typename Fn>
void for_data_granules(const ChangeRecord& r, Fn fn) {
  constexpr uint64_t g = limits::kOrderGranule;
  uint64_t begin = r.offset, end = r.offset + r.length;
  if (begin == end) return;
  if (r.kind == RecordKind::kWrite) return fn(begin / g, (end + g - 1) / g);
  if (begin % g != 0) fn(begin / g, begin / g + 1);
  if (end % g != 0 && r.kind != RecordKind::kResize) fn(end / g, end / g + 1);
}

// A batch on its way into segment files: what part holds what.
struct PartPlan {
  struct Piece { uint32_t image = 0; uint32_t slot = 0; PlainExtent extent; };
  std::vector<Piece> pieces;
  size_t mark_first = 0, mark_end = 0;
  uint64_t data_bytes = 0;
};
struct StagePlan {
  std::vector<SegmentImage> images;
  std::vector<PartPlan> parts;
};
// Splits consolidated extents into parts. `slots`: index into `images` of a batch by position.
StagePlan plan_stage(const std::vector<ImageExtents>& extents, std::vector<std::pair<uint32_t, SegmentImage>> images,
                     const std::vector<SegmentMark>& marks);

// The bytes of one part. `data`: the data pieces' contents, one after the other; compacted in place.
// `absent`: granules of `data` (by position) whose image is gone; they are left out. Pure; worker.
struct BuiltPart {
  Bytes file;
  Sha256 digest{};
};
Result<BuiltPart> build_part(SegmentHead head, const PartPlan& plan, MutableByteSpan data, const std::vector<bool>& absent);

}  // namespace tidemark::journal
