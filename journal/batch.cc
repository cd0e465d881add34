#include "journal/batch.h"

#include <algorithm>

#include "shared/wire/codec.h"

namespace tidemark::journal {
namespace {

constexpr uint64_t kPartDataBytes = 32ull << 20;     // planned; below kSegmentPayloadBytesMax
constexpr size_t kPartPieces = 100'000;              // planned; zero runs may split each further
constexpr size_t kPartMarkBytes = 4u << 20;

bool is_zero(ByteSpan unit) {
  uint64_t any = 0;
  for (size_t i = 0; i < unit.size(); i += 8) any |= load_le<uint64_t>(unit.data() + i);
  return any == 0;
}

void append(std::vector<SegmentExtent>& out, uint32_t image, ExtentKind kind, Extent extent, uint64_t position) {
  if (!out.empty()) {
    SegmentExtent& last = out.back();
    bool joins = last.image == image && last.kind == kind && last.extent.end() == extent.offset;
    if (joins) {
      last.extent.length += extent.length;
      return;
    }
  }
  out.push_back({image, kind, extent, kind == ExtentKind::kData ? position : 0});
}

}  // namespace

StagePlan plan_stage(const std::vector<ImageExtents>& extents, std::vector<std::pair<uint32_t, SegmentImage>> images,
                     const std::vector<SegmentMark>& marks) {
  std::sort(images.begin(), images.end(), [](const auto& a, const auto& b) { return a.second.image < b.second.image; });
  StagePlan plan;
  plan.parts.emplace_back();
  for (uint32_t index = 0; index < images.size(); ++index) {
    uint32_t slot = images[index].first;
    plan.images.push_back(std::move(images[index].second));
    auto found = std::lower_bound(extents.begin(), extents.end(), slot,
                                  [](const ImageExtents& e, uint32_t s) { return e.slot < s; });
    if (found == extents.end() || found->slot != slot) continue;
    for (PlainExtent e : found->extents) {
      while (e.extent.length > 0) {
        if (plan.parts.back().data_bytes >= kPartDataBytes || plan.parts.back().pieces.size() >= kPartPieces) {
          plan.parts.emplace_back();
        }
        PartPlan& part = plan.parts.back();
        uint64_t take = e.extent.length;
        if (e.kind == ExtentKind::kData) {
          take = std::min(take, kPartDataBytes - part.data_bytes);
          part.data_bytes += take;
        }
        part.pieces.push_back({index, slot, {e.kind, {e.extent.offset, take}}});
        e.extent = {e.extent.offset + take, e.extent.length - take};
      }
    }
  }
  // Marks fill the parts from the first on, and more parts if there are that many.
  size_t part = 0, bytes = 0;
  for (size_t i = 0; i < marks.size(); ++i) {
    bytes += wire::encode(marks[i].mark).size() + 12;
    if (bytes > kPartMarkBytes || i - plan.parts[part].mark_first >= kSegmentMarksMax) {
      if (++part == plan.parts.size()) plan.parts.emplace_back();
      plan.parts[part].mark_first = plan.parts[part].mark_end = i;
      bytes = 0;
    }
    plan.parts[part].mark_end = i + 1;
  }
  return plan;
}

Result<BuiltPart> build_part(SegmentHead head, const PartPlan& plan, MutableByteSpan data, const std::vector<bool>& absent) {
  uint64_t from = 0, to = 0;
  for (const PartPlan::Piece& piece : plan.pieces) {
    if (piece.extent.kind != ExtentKind::kData) {
      append(head.extents, piece.image, piece.extent.kind, piece.extent.extent, 0);
      continue;
    }
    for (uint64_t at = 0; at < piece.extent.extent.length; at += kSegmentUnit, from += kSegmentUnit) {
      Extent unit{piece.extent.extent.offset + at, kSegmentUnit};
      if (!absent.empty() && absent[from / kSegmentUnit]) continue;
      if (is_zero(data.subspan(from, kSegmentUnit))) {
        append(head.extents, piece.image, ExtentKind::kZero, unit, 0);
        continue;
      }
      append(head.extents, piece.image, ExtentKind::kData, unit, to);
      if (from != to) std::memmove(data.data() + to, data.data() + from, kSegmentUnit);
      to += kSegmentUnit;
    }
  }
  TM_ASSIGN_OR_RETURN(Bytes file, write_segment(std::move(head), data.first(to)));
  BuiltPart out;
  out.file = std::move(file);
  out.digest = sha256(out.file);
  return out;
}

}  // namespace tidemark::journal
