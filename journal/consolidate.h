// Consolidation: what a batch's records leave behind, image by image. Pure.
//
// Records only say where something changed; contents are read later, at the cut's state. So the
// result is a set of sorted, non-overlapping extents of whole 4 KiB units: data (to be read), zero
// and discard (known). Overwritten parts are dropped, equal neighbours joined. A unit that a zero,
// discard or resize covers only in part is data.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "journal/segment.h"
#include "shared/base/ids.h"

namespace tidemark::journal {

enum class RecordKind : uint8_t;

// A record as consolidation needs it. kResize: offset is the new size, length what it cut off.
struct ChangeRecord {
  uint64_t counter = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t slot = 0;
  RecordKind kind{};
};

struct PlainExtent {
  ExtentKind kind = ExtentKind::kData;
  Extent extent;
  bool operator==(const PlainExtent&) const = default;
};

struct ImageExtents {
  uint32_t slot = 0;
  std::vector<PlainExtent> extents;   // ascending, not overlapping, equal neighbours joined
};

// `records` in any order; counters decide which of two overlapping ones is newer (equal ones do not
// overlap). `size_of(slot)` is the image's size at the cut: data at or past it becomes discard.
// Images come in ascending order of their slots. 100,000 records take about 20 ms: run it on a worker.
std::vector<ImageExtents> consolidate(std::vector<ChangeRecord> records, const std::function<uint64_t(uint32_t)>& size_of);

}  // namespace tidemark::journal
