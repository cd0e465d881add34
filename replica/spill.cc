#include "replica/spill.h"

#include <algorithm>

namespace tidemark::replica {
namespace {

constexpr size_t kRangeBytes = 16;

Bytes spill_key(ImageIndex image, uint64_t leaf) {
  return kv::KeyBuilder().u32(static_cast<uint32_t>(image.value)).u32(static_cast<uint32_t>(leaf)).bytes();
}
Bytes image_key(ImageIndex image) { return kv::KeyBuilder().u32(static_cast<uint32_t>(image.value)).bytes(); }

Result<std::vector<Extent>> ranges_of(kv::Snapshot& snapshot, ImageIndex image) {
  std::vector<Extent> out;
  auto value = snapshot.get(kSpillWides, image_key(image));
  if (!value && value.status().code() == Code::kNotFound) return out;
  if (!value) return value.status();
  if (value->size() % kRangeBytes != 0) return Status(Code::kCorruption, "spill_wides: a value has the wrong length");
  for (size_t at = 0; at < value->size(); at += kRangeBytes) {
    out.push_back({load_le<uint64_t>(value->data() + at), load_le<uint64_t>(value->data() + at + 8)});
  }
  return out;
}

void put_ranges(kv::WriteBatch& out, ImageIndex image, std::vector<Extent> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  std::vector<Extent> joined;
  for (const Extent& r : ranges) {
    if (joined.empty() || r.offset > joined.back().end()) joined.push_back(r);
    else joined.back().length = std::max(joined.back().end(), r.end()) - joined.back().offset;
  }
  Bytes value;
  Writer w(value);
  for (const Extent& r : joined) w.u64(r.offset).u64(r.length);
  out.put(kSpillWides, image_key(image), value);
}

bool covered(const std::vector<Extent>& ranges, uint64_t offset) {
  auto after = std::upper_bound(ranges.begin(), ranges.end(), offset,
                                [](uint64_t at, const Extent& r) { return at < r.offset; });
  return after != ranges.begin() && std::prev(after)->end() > offset;
}

class Layer {
 public:
  Layer(kv::Snapshot& snapshot, kv::WriteBatch& out, ImageIndex image)
      : snapshot_(snapshot), out_(out), image_(image) {}

  Status lay(std::span<const Change> changes) {
    TM_ASSIGN_OR_RETURN(ranges_, ranges_of(snapshot_, image_));
    std::vector<Extent> wide;
    for (const Change& c : changes) {
      if (c.is_wide()) wide.push_back(c.extent);
      else TM_RETURN_IF_ERROR(spread(c));
    }
    TM_RETURN_IF_ERROR(put_leaf());
    if (wide.empty()) return Status::ok();
    wide.insert(wide.end(), ranges_.begin(), ranges_.end());
    put_ranges(out_, image_, std::move(wide));
    return Status::ok();
  }

 private:
  Status spread(const Change& c) {
    for (uint64_t done = 0; done < c.extent.length; done += kUnitBytes) {
      const uint64_t offset = c.extent.offset + done;
      if (offset / kLeafBytes != leaf_) {
        TM_RETURN_IF_ERROR(put_leaf());
        leaf_ = offset / kLeafBytes;
      }
      const uint64_t unit = offset % kLeafBytes / kUnitBytes;
      if (covered(ranges_, offset)) continue;
      UnitRef ref{static_cast<uint32_t>(c.segment.value), 0, kUnitBytes};
      if (ref.segment != 0) ref.unit = static_cast<uint32_t>((c.position + done) / kUnitBytes);
      units_.put(unit, ref);
    }
    return Status::ok();
  }
  Status put_leaf() {
    if (units_.changed.none()) return Status::ok();
    const Bytes key = spill_key(image_, leaf_);
    auto there = snapshot_.get(kSpillLeaves, key);
    if (there) TM_RETURN_IF_ERROR(units_.lay_over(*there));
    else if (there.status().code() != Code::kNotFound) return there.status();
    out_.put(kSpillLeaves, key, units_.encode());
    units_ = {};
    return Status::ok();
  }

  kv::Snapshot& snapshot_;
  kv::WriteBatch& out_;
  const ImageIndex image_;
  std::vector<Extent> ranges_;    // zeroed by what is newer
  uint64_t leaf_ = 0;
  LeafDelta units_;               // of that leaf
};

}  // namespace

Status lay_under(kv::Snapshot& snapshot, kv::WriteBatch& out, ImageIndex image, std::span<const Change> changes) {
  return Layer(snapshot, out, image).lay(changes);
}

Result<Published> publish(kv::Snapshot& snapshot, kv::WriteBatch& out, ImageIndex image, PointId point,
                          std::optional<uint64_t> shrink_to, uint64_t leaf, size_t count_max) {
  HistoryWriter history(snapshot, out);
  TM_ASSIGN_OR_RETURN(std::vector<Extent> ranges, ranges_of(snapshot, image));
  history.begin(image, point, shrink_to, ranges);
  const Bytes prefix = image_key(image);
  auto cursor = snapshot.cursor(kSpillLeaves);
  Published done;
  size_t count = 0;
  for (bool found = cursor->seek(spill_key(image, leaf)); found && starts_with(cursor->key(), prefix);
       found = cursor->next()) {
    if (cursor->key().size() != 8) return Status(Code::kCorruption, "spill_leaves: a key has the wrong length");
    const uint64_t at = load_be32(cursor->key().data() + 4);
    if (count++ == count_max) {
      done.next = at;
      break;
    }
    TM_RETURN_IF_ERROR(history.put(image, at, point, cursor->value()));
  }
  done.leaves = history.leaves_written();
  return done;
}

bool clear_spill(kv::Snapshot& snapshot, kv::WriteBatch& out, size_t count_max) {
  for (Table table : {kSpillLeaves, kSpillWides}) {
    auto cursor = snapshot.cursor(table);
    size_t count = 0;
    for (bool found = cursor->first(); found && count < count_max; found = cursor->next(), ++count) {
      out.erase(table, cursor->key());
    }
  }
  return !out.empty();
}

}  // namespace tidemark::replica
