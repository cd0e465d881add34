#include "tests/sim/model.h"

#include <algorithm>

namespace tidemark::sim {

ImageModel::Stamp ImageModel::issue(Extent extent, bool zero) {
  Stamp stamp = ++next_;
  if (zero) zeros_.insert(stamp);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) sectors_[s].possible.insert(stamp);
  return stamp;
}

// Overlapping writes are applied in the order of their issue, so older stamps are gone with a newer one's answer.
void ImageModel::acknowledge(Extent extent, Stamp stamp) {
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) {
    Sector& sector = sectors_[s];
    if (sector.certain > stamp) continue;
    sector.certain = stamp;
    sector.possible.erase(sector.possible.begin(), sector.possible.upper_bound(stamp));
  }
}

void ImageModel::fill(Extent extent, Stamp stamp, MutableByteSpan out) const {
  for (uint64_t at = 0; at < extent.length; at += kModelSector) {
    uint64_t sector = (extent.offset + at) / kModelSector;
    for (uint64_t i = 0; i < kModelSector; i += 32) {
      store_le(out.data() + at + i, stamp);
      store_le(out.data() + at + i + 8, number_);
      store_le(out.data() + at + i + 16, sector);
      store_le(out.data() + at + i + 24, stamp * 0x9E3779B97F4A7C15ull);
    }
  }
}

ImageModel::View ImageModel::view(Extent extent) const {
  View view;
  view.allowed.reserve(extent.length / kModelSector);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) {
    std::set<Stamp> allowed{shown(sectors_[s].certain)};
    for (Stamp stamp : sectors_[s].possible) allowed.insert(shown(stamp));
    view.allowed.push_back(std::move(allowed));
  }
  return view;
}

// What is in `after` only because it was issued between the two moments may be there; what was possible before and is
// so no longer was replaced by something newer, or not yet: both may be shown.
ImageModel::View ImageModel::merge(const View& before, const View& after) {
  View out = before;
  for (size_t i = 0; i < out.allowed.size(); ++i) out.allowed[i].insert(after.allowed[i].begin(), after.allowed[i].end());
  return out;
}

ImageModel::Stamp ImageModel::stamp_of(uint64_t sector, ByteSpan bytes, bool* whole) const {
  *whole = true;
  if (std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; })) return 0;
  auto stamp = load_le<uint64_t>(bytes.data());
  Bytes expected(kModelSector);
  fill({sector * kModelSector, kModelSector}, stamp, expected);
  *whole = std::equal(bytes.begin(), bytes.end(), expected.begin());
  return stamp;
}

std::string ImageModel::check_sector(const std::set<Stamp>& allowed, uint64_t sector, ByteSpan bytes) const {
  bool whole = false;
  Stamp stamp = stamp_of(sector, bytes, &whole);
  if (whole && allowed.contains(stamp)) return {};
  std::string text = "image " + std::to_string(number_) + " sector " + std::to_string(sector) + " holds " +
                     (whole ? std::to_string(stamp) : "a torn or foreign sector") + ", allowed:";
  for (Stamp s : allowed) text += " " + std::to_string(s);
  return text;
}

std::string ImageModel::check(const View& view, uint64_t offset, ByteSpan bytes) const {
  for (uint64_t at = 0; at < bytes.size(); at += kModelSector) {
    uint64_t sector = (offset + at) / kModelSector;
    std::string wrong = check_sector(view.allowed[at / kModelSector], sector, bytes.subspan(at, kModelSector));
    if (!wrong.empty()) return wrong;
  }
  return {};
}

std::string ImageModel::check_now(uint64_t offset, ByteSpan bytes) const {
  return check(view({offset, bytes.size()}), offset, bytes);
}

}  // namespace tidemark::sim
