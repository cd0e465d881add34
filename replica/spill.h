// The end of a resync, laid out in the store before it is applied, so that its memory does not grow with its extents.
//
// Pieces and end are laid *under* each other, the newest first: what is there stays, what is older fills the rest.
//
//   spill_leaves   per image and leaf: the units changed, as in a delta of the history (FORMAT.md)
//   spill_wides    per image: the zeroed ranges of kWideBytesMin and more, joined
//
// At the same place what is in a leaf is newer than a wide range: it lies over it, as in the history. No reader looks
// here. Each step is one write batch of bounded size; run on a worker.
#pragma once

#include <optional>
#include <span>

#include "replica/history.h"

namespace tidemark::replica {

// Lays changes of one image, by offset and not overlapping, under what is there. Once an image and write batch.
Status lay_under(kv::Snapshot& snapshot, kv::WriteBatch& out, ImageIndex image, std::span<const Change> changes);

// Puts what was laid out of one image into its history at `point`: `count_max` leaves from `leaf` on. Tells the leaf to
// go on from, nullopt at the end. `shrink_to` as in HistoryWriter::apply(). May be done again.
struct Published {
  std::optional<uint64_t> next;
  uint64_t leaves = 0;
};
Result<Published> publish(kv::Snapshot& snapshot, kv::WriteBatch& out, ImageIndex image, PointId point,
                          std::optional<uint64_t> shrink_to, uint64_t leaf, size_t count_max);

// Erases up to `count_max` rows of each table; false: there is nothing.
bool clear_spill(kv::Snapshot& snapshot, kv::WriteBatch& out, size_t count_max);

}  // namespace tidemark::replica
