#include "replica/wides.h"

#include <algorithm>

namespace tidemark::replica {
namespace {

// A wide record: shrink (u64, all ones: none), then ranges of offset and length (u64).
constexpr size_t kShrinkBytes = 8, kWideRangeBytes = 16;
constexpr uint64_t kNoShrink = UINT64_MAX;
constexpr Extent kEverywhere{0, UINT64_MAX};

}  // namespace

Bytes encode_wide(std::optional<uint64_t> shrink_to, std::span<const Extent> zeroed) {
  Bytes out;
  Writer w(out);
  w.u64(shrink_to.value_or(kNoShrink));
  for (const Extent& e : zeroed) w.u64(e.offset).u64(e.length);
  return out;
}

Status append_zeroed(ByteSpan record, PointId point, Extent range, std::vector<Zeroed>& out) {
  if (record.size() < kShrinkBytes || (record.size() - kShrinkBytes) % kWideRangeBytes != 0) {
    return Status(Code::kCorruption, "history index: a wide record has the wrong form");
  }
  const uint64_t shrink = load_le<uint64_t>(record.data());
  if (shrink < range.end()) out.push_back({point, shrink, UINT64_MAX});   // kNoShrink is below no end
  // Ranges stand in order: the first that can matter is found by bisection.
  auto at = [&record](size_t i) {
    const uint8_t* p = record.data() + kShrinkBytes + i * kWideRangeBytes;
    return Extent{load_le<uint64_t>(p), load_le<uint64_t>(p + 8)};
  };
  const size_t count = (record.size() - kShrinkBytes) / kWideRangeBytes;
  size_t low = 0, high = count;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (at(middle).end() <= range.offset) low = middle + 1;
    else high = middle;
  }
  for (; low < count && at(low).offset < range.end(); ++low) out.push_back({point, at(low).offset, at(low).end()});
  return Status::ok();
}

Result<bool> Wides::scan(Extent range, PointId after, size_t count_max, uint64_t cost_max, std::vector<Zeroed>& out) {
  if (cursor_ == nullptr) cursor_ = snapshot_.cursor(kWides);
  const Bytes from = image_point_key(image_, after.next());
  const ByteSpan prefix = ByteSpan(from).first(4);
  for (bool found = cursor_->seek(from); found && starts_with(cursor_->key(), prefix); found = cursor_->next()) {
    const PointId at = point_of_key(cursor_->key());
    if (at > point_) break;
    const ByteSpan record = cursor_->value();
    const uint64_t cost = 1 + record.size() / kWideRangeBytes;
    spent_ += cost;
    if (cost > cost_max) return false;
    cost_max -= cost;
    TM_RETURN_IF_ERROR(append_zeroed(record, at, range, out));
    if (out.size() > count_max) return false;
  }
  return true;
}

Status Wides::read_all() {
  const uint64_t most = kWidesTriedMin + kWidesTriedFactor * spent_;
  TM_ASSIGN_OR_RETURN(whole_, scan(kEverywhere, PointId(0), kWideRangesKeptMax, most, all_));
  if (!whole_) {
    try_at_ = all_.size() > kWideRangesKeptMax ? UINT64_MAX : kWidesTriedFactor * spent_;
    all_ = {};
    return Status::ok();
  }
  std::sort(all_.begin(), all_.end(), [](const Zeroed& a, const Zeroed& b) { return a.begin < b.begin; });
  return Status::ok();
}

void Wides::move_to(Extent leaf) {
  if (leaf.offset < at_) {
    next_ = 0;
    open_.clear();
  }
  at_ = leaf.offset;
  std::erase_if(open_, [&](const Zeroed& z) { return z.end <= leaf.offset; });
  const auto by_point = [](const Zeroed& a, const Zeroed& b) { return a.point < b.point; };
  const size_t had = open_.size();
  for (; next_ < all_.size() && all_[next_].begin < leaf.end(); ++next_) {
    if (all_[next_].end > leaf.offset) open_.push_back(all_[next_]);
  }
  if (open_.size() == had) return;
  const auto added = open_.begin() + static_cast<ptrdiff_t>(had);
  std::sort(added, open_.end(), by_point);
  std::inplace_merge(open_.begin(), added, open_.end(), by_point);
}

Status Wides::of_leaf(Extent leaf, PointId after, std::vector<Zeroed>& out) {
  out.clear();
  if (!whole_ && ++scanned_ > kWidesScannedMax && spent_ >= try_at_) TM_RETURN_IF_ERROR(read_all());
  if (!whole_) return scan(leaf, after, SIZE_MAX, UINT64_MAX, out).status();
  move_to(leaf);
  const auto first = std::upper_bound(open_.begin(), open_.end(), after,
                                      [](PointId at, const Zeroed& z) { return at < z.point; });
  out.assign(first, open_.end());
  return Status::ok();
}

}  // namespace tidemark::replica
