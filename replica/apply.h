// What one batch changes when it is applied, but for the blocks of a resync (spill.h): pure but for reads of a
// snapshot; run on a worker.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "replica/catalog.h"
#include "replica/names.h"

namespace tidemark::replica {

struct ApplyInput {
  ApplyAction action;
  PointId point;
  bool is_shared_node = false;                       // the source's role
  std::vector<journal::SegmentHead> heads;           // of all parts
  std::vector<SegmentId> segments;                   // of all parts
  // Of a resync that this batch ends: the events of its pieces, oldest first. The blocks of all, this batch's included,
  // are in the history already, at this point.
  bool ends_resync = false;
  std::vector<wire::Mark> marks_before;
  std::unordered_map<ImageId, Catalog::Image> images;  // those of the batch, as they are now
  std::unordered_map<ImageId, std::vector<Taken>> taken;   // likewise: their tenures that were taken by force
};

struct ApplyOutput {
  Status status;
  kv::WriteBatch changes;         // history, sizes, names, branches
  std::vector<std::pair<ImageId, ImageVersion>> versions;
  std::vector<BranchRecord> branches;
  std::vector<EventMismatch> mismatches;
  std::vector<CutOff> cut_off;    // those of the action that were not before
  std::vector<ImageId> withheld;  // that the source could not read, and left out
  uint64_t leaves = 0;
};
ApplyOutput build_changes(kv::Snapshot& snapshot, const ApplyInput& input);
// What the image is cut off to, if it is, before the batch's changes. One that the batch holds whole: to nothing.
std::optional<uint64_t> shrunk_to(const Catalog::Image& known, const journal::SegmentImage& slice,
                                  const BatchFacts& batch);
// Those images that build_changes() wants to know: of the slices and of the source's own creates.
std::vector<ImageId> images_of(const std::vector<journal::SegmentHead>& heads);

}  // namespace tidemark::replica
