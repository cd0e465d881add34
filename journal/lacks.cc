#include "journal/lacks.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "journal/records.h"
#include "shared/base/limits.h"

namespace tidemark::journal {
namespace {

constexpr size_t kWords = kLackPageBytes / 8;

bool get(const std::vector<uint64_t>& bits, uint64_t i) {
  return i / 64 < bits.size() && (bits[i / 64] >> (i % 64) & 1) != 0;
}
void put(std::vector<uint64_t>& bits, uint64_t i) {
  if (i / 64 >= bits.size()) bits.resize(i / 64 + 1);
  bits[i / 64] |= uint64_t{1} << (i % 64);
}
void clear(std::vector<uint64_t>& bits, uint64_t i) {
  if (i / 64 < bits.size()) bits[i / 64] &= ~(uint64_t{1} << (i % 64));
}
uint64_t count(const std::vector<uint64_t>& bits) {
  uint64_t n = 0;
  for (uint64_t word : bits) n += static_cast<uint64_t>(std::popcount(word));
  return n;
}
bool none(const std::vector<uint64_t>& bits) {
  return std::all_of(bits.begin(), bits.end(), [](uint64_t word) { return word == 0; });
}

Bytes key_of(const ImageId& image, uint64_t page) { return kv::KeyBuilder().uuid(image).u64(page).bytes(); }

constexpr std::string_view kUnnamedPrefix = "unnamed ";   // of keys in table meta; the image follows

}  // namespace

void LackMap::note(const ImageId& id, const Image& image, Extent extent) {
  uint64_t first = extent.offset / image.region_bytes, last = (extent.end() - 1) / image.region_bytes;
  for (uint64_t page = first / kLackPageRegions; page <= last / kLackPageRegions; ++page) changed_.emplace(id, page);
}

// The regions grow until so large an image has at most kRegionsPerImageMax of them.
void LackMap::coarsen(const ImageId& id, Image& image, uint64_t end) {
  uint64_t bytes = image.region_bytes;
  while (end > bytes * limits::kRegionsPerImageMax) bytes *= 2;
  if (bytes == image.region_bytes) return;
  unsigned by = static_cast<unsigned>(std::countr_zero(bytes) - std::countr_zero(image.region_bytes));
  auto wider = [&](Bits& bits) {
    Bits out;
    for (uint64_t i = 0; i < bits.size() * 64; ++i) {
      if (get(bits, i)) put(out, i >> by);
    }
    bits = std::move(out);
  };
  wider(image.lacked);
  wider(image.taken);
  image.region_bytes = bytes;
  erased_.insert(id);
  note(id, image, {0, bytes * limits::kRegionsPerImageMax});
}

bool LackMap::set(const ImageId& id, Extent extent) {
  if (extent.length == 0) return false;
  Image& image = images_[id];
  if (image.region_bytes == 0) image.region_bytes = std::bit_ceil(std::max<uint64_t>(region_bytes_min_, limits::kOrderGranule));
  coarsen(id, image, extent.end());
  bool fresh = false;
  for (uint64_t i = extent.offset / image.region_bytes, last = (extent.end() - 1) / image.region_bytes; i <= last; ++i) {
    if (get(image.lacked, i)) continue;
    put(image.lacked, i);
    changed_.emplace(id, i / kLackPageRegions);
    fresh = true;
  }
  return fresh;
}

void LackMap::forget(const ImageId& id) {
  drop_regions(id);
  named(id);
}

void LackMap::drop_regions(const ImageId& id) {
  if (images_.erase(id) > 0) erased_.insert(id);
  std::erase_if(changed_, [&](const auto& page) { return page.first == id; });
}

void LackMap::take_from(const ImageId& id, Image& image, uint64_t bytes_max, uint64_t& bytes, std::vector<ImageExtent>& out) {
  for (uint64_t word = 0; word < image.lacked.size(); ++word) {
    while (image.lacked[word] != 0) {
      if (!out.empty() && bytes + image.region_bytes > bytes_max) return;
      uint64_t i = word * 64 + static_cast<uint64_t>(std::countr_zero(image.lacked[word]));
      clear(image.lacked, i);
      put(image.taken, i);
      Extent region{i * image.region_bytes, image.region_bytes};
      bytes += region.length;
      if (!out.empty() && out.back().image == id && out.back().extent.end() == region.offset) out.back().extent.length += region.length;
      else out.push_back({id, region});
    }
  }
}

std::vector<ImageExtent> LackMap::take(uint64_t bytes_max) {
  std::vector<ImageExtent> out;
  uint64_t bytes = 0;
  for (auto& [id, image] : images_) {
    if (!withheld_.contains(id)) take_from(id, image, bytes_max, bytes, out);
    if (bytes >= bytes_max) break;
  }
  return out;
}

std::vector<ImageExtent> LackMap::take_all(const ImageId& id) {
  std::vector<ImageExtent> out;
  uint64_t bytes = 0;
  auto it = images_.find(id);
  if (it != images_.end()) take_from(id, it->second, UINT64_MAX, bytes, out);
  return out;
}

void LackMap::withhold(const ImageId& id, bool withheld) {
  if (withheld) withheld_.insert(id);
  else withheld_.erase(id);
}

std::vector<ImageId> LackMap::images() const {
  std::vector<ImageId> out = unnamed();
  for (const auto& [id, image] : images_)
    if (!unnamed_.contains(id)) out.push_back(id);
  return out;
}

bool LackMap::set_unnamed(const ImageId& id, bool sent) {
  auto [it, fresh] = unnamed_.try_emplace(id, sent);
  if (!fresh && (it->second || !sent)) return false;
  it->second = sent;
  unnamed_changed_.insert(id);
  return true;
}

void LackMap::named(const ImageId& id) {
  if (unnamed_.erase(id) > 0) unnamed_changed_.insert(id);
}

bool LackMap::sent(const ImageId& id) const {
  auto it = unnamed_.find(id);
  return it != unnamed_.end() && it->second;
}

std::vector<ImageId> LackMap::unnamed() const {
  std::vector<ImageId> out;
  for (const auto& [id, sent] : unnamed_) out.push_back(id);
  return out;
}

void LackMap::staged(const std::vector<ImageExtent>& taken) {
  for (const ImageExtent& t : taken) {
    auto it = images_.find(t.image);
    if (it == images_.end() || t.extent.length == 0) continue;
    Image& image = it->second;
    for (uint64_t i = t.extent.offset / image.region_bytes; i * image.region_bytes < t.extent.end(); ++i) clear(image.taken, i);
    note(t.image, image, t.extent);
    if (none(image.lacked) && none(image.taken)) drop_regions(t.image);
  }
}

void LackMap::untake() {
  for (auto& [id, image] : images_) {
    for (uint64_t i = 0; i < image.taken.size() * 64; ++i) {
      if (get(image.taken, i)) put(image.lacked, i);
    }
    image.taken.clear();
  }
}

bool LackMap::empty() const {
  return std::all_of(images_.begin(), images_.end(),
                     [this](const auto& i) { return withheld_.contains(i.first) || none(i.second.lacked); });
}

uint64_t LackMap::bytes() const {
  uint64_t sum = 0;
  for (const auto& [id, image] : images_) sum += withheld_.contains(id) ? 0 : bytes(id);
  return sum;
}

uint64_t LackMap::bytes(const ImageId& id) const {
  auto it = images_.find(id);
  return it == images_.end() ? 0 : (count(it->second.lacked) + count(it->second.taken)) * it->second.region_bytes;
}

void LackMap::put_page(const ImageId& id, uint64_t page, kv::WriteBatch& out) const {
  const Image& image = images_.at(id);
  Bytes value;
  Writer(value).u64(image.region_bytes);
  bool any = false;
  for (size_t word = page * kWords; word < (page + 1) * kWords; ++word) {
    uint64_t bits = (word < image.lacked.size() ? image.lacked[word] : 0) | (word < image.taken.size() ? image.taken[word] : 0);
    any = any || bits != 0;
    Writer(value).u64(bits);
  }
  if (any) out.put(kLacksTable, key_of(id, page), value);
  else out.erase(kLacksTable, key_of(id, page));
}

void LackMap::put_changed(kv::WriteBatch& out) {
  for (const ImageId& id : erased_) out.erase_range(kLacksTable, key_of(id, 0), key_of(id, UINT64_MAX));
  for (const auto& [id, page] : changed_) put_page(id, page, out);
  for (const ImageId& id : unnamed_changed_) {
    const std::string key = std::string(kUnnamedPrefix) + id.to_string();
    auto it = unnamed_.find(id);
    const uint8_t sent = it != unnamed_.end() && it->second ? 1 : 0;
    if (it == unnamed_.end()) out.erase(kMetaTable, as_bytes(key));
    else out.put(kMetaTable, as_bytes(key), ByteSpan(&sent, 1));
  }
  erased_.clear();
  changed_.clear();
  unnamed_changed_.clear();
}

void LackMap::put_all() {
  for (const auto& [id, image] : images_) {
    for (uint64_t page = 0; page * kWords < std::max(image.lacked.size(), image.taken.size()); ++page) changed_.emplace(id, page);
  }
  for (const auto& [id, sent] : unnamed_) unnamed_changed_.insert(id);
}

Status LackMap::load(kv::Snapshot& snapshot) {
  auto cursor = snapshot.cursor(kLacksTable);
  for (bool more = cursor->first(); more; more = cursor->next()) {
    if (cursor->key().size() != 24 || cursor->value().size() != 8 + kLackPageBytes) {
      return Status(Code::kCorruption, "journal: a page of table lacks has the wrong length");
    }
    Reader value(cursor->value());
    uint64_t region_bytes = value.u64();
    uint64_t page = load_be64(cursor->key().data() + 16);
    bool power = region_bytes >= limits::kOrderGranule && (region_bytes & (region_bytes - 1)) == 0;
    if (!power || page >= limits::kRegionsPerImageMax / kLackPageRegions) {
      return Status(Code::kCorruption, "journal: a page of table lacks is malformed");
    }
    Image& image = images_[Reader(cursor->key()).uuid()];
    image.region_bytes = region_bytes;
    image.lacked.resize(std::max<size_t>(image.lacked.size(), (page + 1) * kWords));
    for (size_t word = 0; word < kWords; ++word) image.lacked[page * kWords + word] = value.u64();
  }
  return load_unnamed(snapshot);
}

Status LackMap::load_unnamed(kv::Snapshot& snapshot) {
  auto cursor = snapshot.cursor(kMetaTable);
  for (bool more = cursor->seek(as_bytes(kUnnamedPrefix)); more; more = cursor->next()) {
    const std::string_view key(reinterpret_cast<const char*>(cursor->key().data()), cursor->key().size());
    if (!key.starts_with(kUnnamedPrefix)) break;
    const std::optional<Uuid> image = Uuid::parse(key.substr(kUnnamedPrefix.size()));
    if (!image || cursor->value().size() != 1) return Status(Code::kCorruption, "journal: row `" + std::string(key) + "` is malformed");
    unnamed_[*image] = cursor->value()[0] != 0;
  }
  return Status::ok();
}

}  // namespace tidemark::journal
