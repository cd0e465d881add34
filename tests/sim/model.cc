#include "tests/sim/model.h"

#include <algorithm>
#include <utility>

namespace tidemark::sim {

ImageModel::Stamp ImageModel::issue(Extent extent, bool zero) {
  Stamp stamp = ++next_;
  if (zero) zeros_.insert(stamp);
  live_.insert(stamp);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) {
    sectors_[s].possible.insert(stamp);
    if (zero) sectors_[s].zeroed = stamp;
    if (tracked_) sectors_[s].since.insert(stamp);
    sectors_[s].forked = false;
  }
  return stamp;
}

bool ImageModel::precedes(Stamp before, Stamp stamp) const {
  if (before > stamp) return false;
  if (strict_) return true;
  auto ended = ended_.find(before);
  return before == 0 || (ended != ended_.end() && ended->second < stamp);
}

void ImageModel::acknowledge(Extent extent, Stamp stamp) {
  end(stamp);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) {
    Sector& sector = sectors_[s];
    sector.torn = false;
    if (sector.certain > stamp) {
      if (strict_) sector.possible.erase(stamp);
      continue;
    }
    sector.possible.insert(std::exchange(sector.certain, stamp));
    sector.possible.erase(stamp);
    for (auto at = sector.possible.begin(); at != sector.possible.end() && *at < stamp;) {
      sector.overwritten.insert(*at);
      at = precedes(*at, stamp) ? sector.possible.erase(at) : std::next(at);
    }
  }
}

void ImageModel::refuse(Extent extent, Stamp stamp) {
  end(stamp);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) sectors_[s].possible.erase(stamp);
}

ImageModel::Flush ImageModel::flush_asked() const {
  Flush flush;
  flush.certain.reserve(sectors_.size());
  for (const Sector& sector : sectors_) flush.certain.push_back(sector.torn ? 0 : sector.certain);
  return flush;
}

void ImageModel::flush_acknowledged(const Flush& flush) {
  for (size_t i = 0; i < sectors_.size(); ++i) {
    Sector& sector = sectors_[i];
    sector.durable = std::max(sector.durable, flush.certain[i]);
    sector.overwritten.erase(sector.overwritten.begin(), sector.overwritten.lower_bound(sector.durable));
    if (sector.certain >= sector.durable) continue;
    sector.certain = sector.durable;             // power was lost while it was under way, and it covers this all the same
    sector.possible.erase(sector.possible.begin(), sector.possible.upper_bound(sector.durable));
  }
}

void ImageModel::lose_unflushed() {
  for (Sector& sector : sectors_) {
    if (sector.certain == sector.durable && sector.possible.empty()) continue;
    sector.possible.insert(sector.overwritten.begin(), sector.overwritten.end());
    sector.possible.insert(sector.certain);
    sector.certain = sector.durable;
    sector.level_possible.insert(sector.level_overwritten.begin(), sector.level_overwritten.end());
    sector.level_overwritten.clear();
    sector.overwritten.clear();
    sector.torn = true;
  }
}

void ImageModel::level() {
  tracked_ = true;
  for (Sector& sector : sectors_) {
    // It only grows between flushes: most sectors have not changed since they were last looked at.
    const bool same = sector.level_durable == sector.durable && sector.level_overwritten.size() == sector.overwritten.size();
    if (!same) sector.level_overwritten = sector.overwritten;
    sector.level_certain = sector.certain;
    sector.level_durable = sector.durable;
    sector.level_possible = sector.possible;
    sector.level_torn = sector.torn;
    sector.since.clear();
  }
}

void ImageModel::shared_lost_power() {
  for (Sector& sector : sectors_) {
    const Stamp durable = std::min(sector.level_durable, sector.durable);
    const bool settled = sector.certain == durable && sector.possible.empty() && sector.since.empty();
    if (settled) continue;
    sector.level_possible.insert(sector.level_overwritten.begin(), sector.level_overwritten.end());
    sector.level_possible.insert(sector.overwritten.begin(), sector.overwritten.end());
    sector.level_possible.insert(sector.level_certain);
    sector.level_certain = sector.level_durable = durable;
    sector.level_torn = true;
  }
}

void ImageModel::fork() {
  for (Sector& sector : sectors_) {
    sector.possible.insert(sector.certain);
    sector.possible.insert(sector.since.begin(), sector.since.end());
    sector.possible.insert(sector.level_possible.begin(), sector.level_possible.end());
    sector.certain = sector.level_certain;
    sector.possible.erase(sector.certain);
    sector.durable = std::min(sector.durable, sector.level_durable);
    sector.overwritten.insert(sector.level_overwritten.begin(), sector.level_overwritten.end());
    sector.torn = sector.torn || sector.level_torn;
    sector.forked = true;
  }
}

std::string ImageModel::settle(ByteSpan bytes) {
  std::string wrong = check_now(0, bytes);
  for (uint64_t s = 0; s < sectors_.size() && wrong.empty(); ++s) {
    Sector& sector = sectors_[s];
    if (!sector.forked) continue;
    bool whole = false;
    const Stamp stamp = stamp_of(s, bytes.subspan(s * kModelSector, kModelSector), &whole);
    if (!whole) continue;
    Stamp newest = 0;                          // zeros look alike: the newest that may be it
    bool found = false;
    sector.possible.insert(sector.certain);
    for (Stamp possible : sector.possible) if (shown(possible) == stamp) newest = possible, found = true;
    if (!found) continue;                      // torn to the value of a sector that it held long ago
    sector.overwritten.insert(sector.possible.begin(), sector.possible.end());
    sector.certain = newest;
    sector.durable = std::min(sector.durable, newest);
    sector.possible.clear();
    sector.torn = false;
  }
  return wrong;
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
  View view{.newest = next_};
  view.allowed.reserve(extent.length / kModelSector);
  for (uint64_t s = extent.offset / kModelSector; s < extent.end() / kModelSector; ++s) {
    std::set<Stamp> allowed{shown(sectors_[s].certain)};
    for (Stamp stamp : sectors_[s].possible) allowed.insert(shown(stamp));
    if (sectors_[s].torn) allowed.insert(kTorn);
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
  if (allowed.contains(whole ? stamp : kTorn)) return {};
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

std::string ImageModel::check_since(View view, uint64_t offset, ByteSpan bytes) const {
  for (uint64_t at = 0; at < bytes.size(); at += kModelSector) {
    const uint64_t sector = (offset + at) / kModelSector;
    bool whole = false;
    const Stamp stamp = stamp_of(sector, bytes.subspan(at, kModelSector), &whole);
    const Stamp issued = stamp == 0 ? sectors_[sector].zeroed : stamp;
    if (whole && issued > view.newest) view.allowed[at / kModelSector].insert(stamp);
  }
  return check(view, offset, bytes);
}

std::string ImageModel::check_now(uint64_t offset, ByteSpan bytes) const {
  return check(view({offset, bytes.size()}), offset, bytes);
}

}  // namespace tidemark::sim
