#include "replica/history.h"

#include <algorithm>

namespace tidemark::replica {
namespace {

// A leaf version: kind (u8), deltas since the last full version (u8), then runs of 12 bytes:
// first unit (u8), units less one (u8), valid bytes of the last unit (u16), segment (u32), unit of
// its payload (u32).
constexpr uint8_t kFull = 1, kDelta = 2;
constexpr size_t kHeadBytes = 2, kRunBytes = 12;

void append_run(Bytes& out, uint32_t first, uint32_t count, const UnitRef& ref) {
  size_t at = out.size();
  out.resize(at + kRunBytes);
  uint8_t* p = out.data() + at;
  p[0] = static_cast<uint8_t>(first);
  p[1] = static_cast<uint8_t>(count - 1);
  store_le<uint16_t>(p + 2, ref.valid);
  store_le<uint32_t>(p + 4, ref.segment);
  store_le<uint32_t>(p + 8, ref.unit);
}

Status apply_version(ByteSpan value, Leaf& leaf) {
  if (value.size() < kHeadBytes || (value.size() - kHeadBytes) % kRunBytes != 0 ||
      (value[0] != kFull && value[0] != kDelta)) {
    return Status(Code::kCorruption, "history index: a leaf version has the wrong form");
  }
  if (value[0] == kFull) leaf.fill(UnitRef{});
  for (size_t at = kHeadBytes; at < value.size(); at += kRunBytes) {
    const uint8_t* p = value.data() + at;
    const uint32_t first = p[0], count = p[1] + 1u;
    if (first + count > kLeafUnits) return Status(Code::kCorruption, "history index: a run leaves its leaf");
    UnitRef ref{load_le<uint32_t>(p + 4), load_le<uint32_t>(p + 8), kUnitBytes};
    for (uint32_t i = 0; i < count; ++i) {
      leaf[first + i] = ref;
      if (ref.segment != 0) ++ref.unit;
    }
    if (ref.segment != 0) leaf[first + count - 1].valid = load_le<uint16_t>(p + 2);
  }
  return Status::ok();
}

void clear(Leaf& leaf, uint64_t base, uint64_t from, uint64_t to) {
  if (to <= base || from >= base + kLeafBytes) return;
  const uint64_t begin = std::max(from, base) - base, end = std::min(to - base, kLeafBytes);
  for (uint64_t unit = begin / kUnitBytes; unit * kUnitBytes < end; ++unit) {
    const uint64_t start = unit * kUnitBytes;
    if (start >= begin) {
      leaf[unit] = UnitRef{};
    } else {  // a shrink within the unit: what lies before it stays
      leaf[unit].valid = std::min<uint16_t>(leaf[unit].valid, static_cast<uint16_t>(begin - start));
    }
  }
}

struct Version { PointId point; Bytes value; };

// The versions of a leaf from its last full one to `point`, oldest first.
Result<std::vector<Version>> versions_of(kv::Cursor& cursor, ImageIndex image, uint64_t leaf, PointId point) {
  std::vector<Version> versions;
  const Bytes end = leaf_key(image, leaf, point.next());
  const ByteSpan prefix = ByteSpan(end).first(8);
  for (bool found = cursor.seek_before(end); found && starts_with(cursor.key(), prefix); found = cursor.previous()) {
    ByteSpan value = cursor.value();
    versions.push_back({point_of_key(cursor.key()), Bytes(value.begin(), value.end())});
    if (value.empty() || value[0] == kFull) break;
    if (versions.size() > kDeltasMax + 1) {
      return Status(Code::kCorruption, "history index: a leaf has too many deltas without a full version");
    }
  }
  std::reverse(versions.begin(), versions.end());
  if (!versions.empty() && (versions[0].value.empty() || versions[0].value[0] != kFull)) {
    return Status(Code::kCorruption, "history index: a leaf's full version is missing");
  }
  return versions;
}

// The leaf at `point`: versions and wides merged by point; at the same point the wide comes first.
Status load_leaf(kv::Cursor& cursor, Wides& wides, ImageIndex image, uint64_t index, PointId point, Leaf& out) {
  out.fill(UnitRef{});
  TM_ASSIGN_OR_RETURN(std::vector<Version> versions, versions_of(cursor, image, index, point));
  if (versions.empty()) return Status::ok();
  TM_RETURN_IF_ERROR(apply_version(versions[0].value, out));

  const uint64_t base = index * kLeafBytes;
  std::vector<Zeroed> zeroed;
  TM_RETURN_IF_ERROR(wides.of_leaf({base, kLeafBytes}, versions[0].point, zeroed));
  size_t next = 1;
  for (const Zeroed& z : zeroed) {
    for (; next < versions.size() && versions[next].point < z.point; ++next) {
      TM_RETURN_IF_ERROR(apply_version(versions[next].value, out));
    }
    clear(out, base, z.begin, z.end);
  }
  for (; next < versions.size(); ++next) TM_RETURN_IF_ERROR(apply_version(versions[next].value, out));
  return Status::ok();
}

// The first leaf from `from` on that has any version.
std::optional<uint64_t> seek_leaf(kv::Cursor& cursor, ImageIndex image, uint64_t from) {
  if (from > UINT32_MAX) return std::nullopt;
  const Bytes key = leaf_key(image, from, PointId(0));
  if (!cursor.seek(key) || !starts_with(cursor.key(), ByteSpan(key).first(4))) return std::nullopt;
  return load_be32(cursor.key().data() + 4);
}

// Whether a leaf of which this is the newest version holds nothing.
bool says_all_zeros(ByteSpan version) {
  if (version.size() < kHeadBytes) return false;
  if (version.size() == kHeadBytes) return version[0] == kFull;
  const uint8_t* run = version.data() + kHeadBytes;
  return version.size() == kHeadBytes + kRunBytes && run[0] == 0 && run[1] == kLeafUnits - 1 &&
         load_le<uint32_t>(run + 4) == 0;
}

Bytes encode_full(const Leaf& leaf) {
  Bytes out{kFull, 0};
  for (uint32_t i = 0; i < kLeafUnits;) {
    if (leaf[i].segment == 0) { ++i; continue; }
    uint32_t count = 1;
    while (i + count < kLeafUnits && leaf[i + count - 1].valid == kUnitBytes &&
           leaf[i + count].segment == leaf[i].segment && leaf[i + count].unit == leaf[i].unit + count) {
      ++count;
    }
    UnitRef ref = leaf[i];
    ref.valid = leaf[i + count - 1].valid;
    append_run(out, i, count, ref);
    i += count;
  }
  return out;
}

}  // namespace

void LeafDelta::put(uint64_t unit, const UnitRef& ref) {
  units[unit] = ref;
  changed.set(unit);
}

Status LeafDelta::lay_over(ByteSpan delta) {
  TM_RETURN_IF_ERROR(apply_version(delta, units));
  for (size_t at = kHeadBytes; at < delta.size(); at += kRunBytes) {
    for (uint32_t i = 0; i <= delta[at + 1]; ++i) changed.set(delta[at] + i);
  }
  return Status::ok();
}

Bytes LeafDelta::encode() const {
  Bytes out{kDelta, 0};
  for (uint32_t i = 0; i < kLeafUnits;) {
    if (!changed[i]) { ++i; continue; }
    const UnitRef& first = units[i];
    uint32_t count = 1;
    while (i + count < kLeafUnits && changed[i + count] && units[i + count].segment == first.segment &&
           (first.segment == 0 || units[i + count].unit == first.unit + count)) {
      ++count;
    }
    append_run(out, i, count, first);
    i += count;
  }
  return out;
}

HistoryWriter::HistoryWriter(kv::Snapshot& snapshot, kv::WriteBatch& out, size_t spread_leaves_max)
    : snapshot_(snapshot),
      out_(out),
      spread_left_(spread_leaves_max),
      visits_left_(kSpreadVisits * spread_leaves_max),
      cursor_(snapshot.cursor(kLeaves)) {}

// The changes with the wide ones cut into the leaves that have versions. A wide record is in the way of every later
// load of a leaf of the image; the zeros of a leaf cost no more than the write that made its version did. False: too
// many leaves.
bool HistoryWriter::spread(ImageIndex image, std::span<const Change> changes, std::vector<Change>& laid) {
  size_t leaves = spread_left_;
  for (const Change& c : changes) {
    if (!c.is_wide()) {
      laid.push_back(c);
      continue;
    }
    for (auto leaf = seek_leaf(*cursor_, image, c.extent.offset / kLeafBytes);
         leaf && *leaf * kLeafBytes < c.extent.end(); leaf = seek_leaf(*cursor_, image, *leaf + 1)) {
      if (visits_left_ == 0) return false;
      --visits_left_;
      // What is trimmed once more adds nothing.
      const Bytes behind = leaf_key(image, *leaf, PointId(UINT64_MAX));
      if (cursor_->seek_before(behind) && says_all_zeros(cursor_->value())) continue;
      if (leaves == 0) return false;
      --leaves;
      const uint64_t begin = std::max(*leaf * kLeafBytes, c.extent.offset);
      const uint64_t end = std::min((*leaf + 1) * kLeafBytes, c.extent.end());
      laid.push_back({{begin, end - begin}, SegmentId(0), 0});
    }
  }
  spread_left_ = leaves;
  return true;
}

Status HistoryWriter::apply(ImageIndex image, PointId point, std::optional<uint64_t> shrink_to,
                            std::span<const Change> changes) {
  std::vector<Extent> zeroed;
  std::vector<Change> laid;
  const auto is_wide = [](const Change& c) { return c.is_wide(); };
  if (std::any_of(changes.begin(), changes.end(), is_wide)) {
    if (!spread(image, changes, laid)) {
      laid.clear();
      for (const Change& c : changes) {
        if (c.is_wide()) zeroed.push_back(c.extent);
        else laid.push_back(c);
      }
    }
    changes = laid;
  }
  begin(image, point, shrink_to, zeroed);
  runs_.assign({kDelta, 0});
  has_data_ = false;
  uint64_t leaf = 0;
  for (const Change& c : changes) {
    for (uint64_t done = 0; done < c.extent.length;) {
      const uint64_t offset = c.extent.offset + done;
      const uint64_t within = offset % kLeafBytes;
      const uint64_t take = std::min(c.extent.length - done, kLeafBytes - within);
      if (offset / kLeafBytes != leaf) {
        TM_RETURN_IF_ERROR(put_leaf(image, leaf, point));
        leaf = offset / kLeafBytes;
      }
      UnitRef ref{static_cast<uint32_t>(c.segment.value), 0, kUnitBytes};
      if (ref.segment != 0) ref.unit = static_cast<uint32_t>((c.position + done) / kUnitBytes);
      append_run(runs_, static_cast<uint32_t>(within / kUnitBytes), static_cast<uint32_t>(take / kUnitBytes), ref);
      has_data_ |= ref.segment != 0;
      done += take;
    }
  }
  return put_leaf(image, leaf, point);
}

void HistoryWriter::begin(ImageIndex image, PointId point, std::optional<uint64_t> shrink_to,
                          std::span<const Extent> zeroed) {
  wide_.clear();
  wides_.emplace(snapshot_, image, PointId(point.value - 1));
  if (!shrink_to && zeroed.empty()) return;
  wide_ = encode_wide(shrink_to, zeroed);
  out_.put(kWides, image_point_key(image, point), wide_);
}

Status HistoryWriter::put(ImageIndex image, uint64_t leaf, PointId point, ByteSpan delta) {
  runs_.assign(delta.begin(), delta.end());
  has_data_ = false;
  for (size_t at = kHeadBytes; at + kRunBytes <= runs_.size(); at += kRunBytes) {
    has_data_ |= load_le<uint32_t>(runs_.data() + at + 4) != 0;
  }
  return put_leaf(image, leaf, point);
}

Status HistoryWriter::put_leaf(ImageIndex image, uint64_t leaf, PointId point) {
  if (runs_.size() == kHeadBytes) return Status::ok();
  const Bytes key = leaf_key(image, leaf, point);
  const bool exists = cursor_->seek_before(key) && starts_with(cursor_->key(), ByteSpan(key).first(8));
  Status status = Status::ok();
  if (!exists) {
    // Zeros over what was never written change nothing.
    if (has_data_) {
      runs_[0] = kFull;
      out_.put(kLeaves, key, runs_);
      ++leaves_written_;
    }
  } else if (cursor_->value().size() < kHeadBytes) {
    status = Status(Code::kCorruption, "history index: a leaf version is empty");
  } else if (cursor_->value()[1] + 1u >= kDeltasMax) {
    status = put_full(image, leaf, point);
  } else {
    runs_[1] = static_cast<uint8_t>(cursor_->value()[1] + 1);
    out_.put(kLeaves, key, runs_);
    ++leaves_written_;
  }
  runs_.assign({kDelta, 0});
  has_data_ = false;
  return status;
}

Status HistoryWriter::put_full(ImageIndex image, uint64_t leaf, PointId point) {
  Leaf whole;
  TM_RETURN_IF_ERROR(load_leaf(*cursor_, *wides_, image, leaf, PointId(point.value - 1), whole));
  if (!wide_.empty()) {
    std::vector<Zeroed> zeroed;
    TM_RETURN_IF_ERROR(append_zeroed(wide_, point, {leaf * kLeafBytes, kLeafBytes}, zeroed));
    for (const Zeroed& z : zeroed) clear(whole, leaf * kLeafBytes, z.begin, z.end);
  }
  TM_RETURN_IF_ERROR(apply_version(runs_, whole));
  out_.put(kLeaves, leaf_key(image, leaf, point), encode_full(whole));
  ++leaves_written_;
  return Status::ok();
}

HistoryView::HistoryView(kv::Snapshot& snapshot, ImageIndex image, PointId point)
    : image_(image), point_(point), cursor_(snapshot.cursor(kLeaves)), wides_(snapshot, image, point) {}

Status HistoryView::load(uint64_t leaf, Leaf& out) { return load_leaf(*cursor_, wides_, image_, leaf, point_, out); }

std::optional<uint64_t> HistoryView::next_leaf(uint64_t from) { return seek_leaf(*cursor_, image_, from); }

void append_runs(const Leaf& leaf, uint64_t index, Extent range, std::vector<StoredRun>& out) {
  const uint64_t base = index * kLeafBytes;
  const uint64_t begin = std::max(range.offset, base), end = std::min(range.end(), base + kLeafBytes);
  for (uint64_t at = begin; at < end;) {
    const UnitRef& ref = leaf[(at - base) / kUnitBytes];
    const uint64_t unit_start = at - at % kUnitBytes;
    const uint64_t unit_end = std::min(unit_start + kUnitBytes, end);
    const uint64_t valid_end = std::min(unit_start + ref.valid, end);
    if (ref.segment != 0 && valid_end > at) {
      const uint64_t position = static_cast<uint64_t>(ref.unit) * kUnitBytes + (at - unit_start);
      const uint32_t length = static_cast<uint32_t>(valid_end - at);
      StoredRun* last = out.empty() ? nullptr : &out.back();
      if (last != nullptr && last->segment.value == ref.segment && last->offset + last->length == at &&
          last->position + last->length == position) {
        last->length += length;
      } else {
        out.push_back({at, length, SegmentId(ref.segment), position});
      }
    }
    at = unit_end;
  }
}

}  // namespace tidemark::replica
