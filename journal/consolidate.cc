#include "journal/consolidate.h"

#include <algorithm>
#include <queue>

#include "journal/journal.h"
#include "shared/base/planted.h"

namespace tidemark::journal {
namespace {

constexpr uint64_t kUnit = kSegmentUnit;

uint64_t down(uint64_t v) { return v / kUnit * kUnit; }
uint64_t up(uint64_t v) { return down(v + kUnit - 1); }

// A painted range: of two overlapping ones the later (greater rank) shows.
struct Piece {
  uint64_t begin, end;
  uint64_t rank;
  ExtentKind kind;
};

class Painter {
 public:
  void add(uint64_t begin, uint64_t end, ExtentKind kind) {
    if (TM_PLANTED("forget a hole") && kind != ExtentKind::kData) return;
    if (begin < end) pieces_.push_back({begin, end, rank_, kind});
  }
  // Whole units of [begin, end) as `kind`, its partial units at the edges as data.
  void add_inner(uint64_t begin, uint64_t end, ExtentKind kind) {
    if (begin >= end) return;
    if (up(begin) > down(end)) return add(down(begin), up(end), ExtentKind::kData);
    add(down(begin), up(begin), ExtentKind::kData);
    add(up(begin), down(end), kind);
    add(down(end), up(end), ExtentKind::kData);
    if (kind != ExtentKind::kData) mixed_ = true;
  }
  void add_record(const ChangeRecord& r) {
    switch (r.kind) {
      case RecordKind::kWrite: add(down(r.offset), up(r.offset + r.length), ExtentKind::kData); break;
      case RecordKind::kZero: add_inner(r.offset, r.offset + r.length, ExtentKind::kZero); break;
      case RecordKind::kDiscard: add_inner(r.offset, r.offset + r.length, ExtentKind::kDiscard); break;
      case RecordKind::kResize:
        // The tail up to the unit's end is past the old size too: nothing there is worth keeping.
        if (r.length > 0) add_inner(r.offset, up(r.offset + r.length), ExtentKind::kDiscard);
        break;
      case RecordKind::kMark: break;
    }
    ++rank_;
  }
  std::vector<PlainExtent> finish(uint64_t size);

 private:
  static void append(std::vector<PlainExtent>& out, uint64_t begin, uint64_t end, ExtentKind kind) {
    if (begin >= end) return;
    if (!out.empty() && out.back().kind == kind && out.back().extent.end() == begin) {
      out.back().extent.length = end - out.back().extent.offset;
    } else {
      out.push_back({kind, {begin, end - begin}});
    }
  }
  std::vector<PlainExtent> merge_data();
  std::vector<PlainExtent> sweep();

  std::vector<Piece> pieces_;
  uint64_t rank_ = 0;
  bool mixed_ = false;
};

// Only data: order does not matter.
std::vector<PlainExtent> Painter::merge_data() {
  std::vector<PlainExtent> out;
  uint64_t covered = 0;
  for (const Piece& p : pieces_) {
    append(out, std::max(p.begin, covered), p.end, p.kind);
    covered = std::max(covered, p.end);
  }
  return out;
}

// Walks the pieces by their beginnings with a heap of those open; the newest open one shows.
std::vector<PlainExtent> Painter::sweep() {
  std::vector<PlainExtent> out;
  auto older = [](const Piece& a, const Piece& b) {
    return TM_PLANTED("consolidate backwards") ? a.rank > b.rank : a.rank < b.rank;
  };
  std::priority_queue<Piece, std::vector<Piece>, decltype(older)> open(older);
  uint64_t at = 0;
  auto show_until = [&](uint64_t limit) {
    while (!open.empty() && at < limit) {
      if (open.top().end <= at) { open.pop(); continue; }
      uint64_t end = std::min(open.top().end, limit);
      append(out, at, end, open.top().kind);
      at = end;
    }
    at = std::max(at, limit);
  };
  for (const Piece& p : pieces_) {
    show_until(p.begin);
    open.push(p);
  }
  show_until(UINT64_MAX);
  return out;
}

std::vector<PlainExtent> Painter::finish(uint64_t size) {
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  std::vector<PlainExtent> painted = mixed_ ? sweep() : merge_data();
  std::vector<PlainExtent> out;
  uint64_t limit = up(size);
  for (const PlainExtent& e : painted) {
    if (e.kind != ExtentKind::kData || e.extent.end() <= limit) {
      append(out, e.extent.offset, e.extent.end(), e.kind);
      continue;
    }
    uint64_t middle = std::max(limit, e.extent.offset);
    append(out, e.extent.offset, middle, ExtentKind::kData);
    append(out, middle, e.extent.end(), ExtentKind::kDiscard);
  }
  return out;
}

}  // namespace

std::vector<ImageExtents> consolidate(std::vector<ChangeRecord> records,
                                      const std::function<uint64_t(uint32_t)>& size_of) {
  auto before = [](const ChangeRecord& a, const ChangeRecord& b) {
    return a.slot != b.slot ? a.slot < b.slot : a.counter < b.counter;
  };
  // Stable: records of equal counters stand in the order in which they were given.
  if (!std::is_sorted(records.begin(), records.end(), before)) std::stable_sort(records.begin(), records.end(), before);
  std::vector<ImageExtents> out;
  for (size_t i = 0; i < records.size();) {
    uint32_t slot = records[i].slot;
    Painter painter;
    for (; i < records.size() && records[i].slot == slot; ++i) painter.add_record(records[i]);
    out.push_back({slot, painter.finish(size_of(slot))});
  }
  return out;
}

}  // namespace tidemark::journal
