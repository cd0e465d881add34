#include "fs/name_cache.h"

#include <utility>

#include "shared/base/log.h"
#include "shared/wire/codec.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("names");
constexpr size_t kEntriesMax = 1u << 20;
constexpr size_t kNamelessMax = 4096;

Bytes entry_key(InodeNumber parent, const std::string& name) {
  return kv::KeyBuilder().u64(parent.value).text(name).bytes();
}
}  // namespace

Status NameCache::load() {
  auto snapshot = store_.snapshot();
  auto attrs = snapshot->cursor(tables_.attr);
  for (bool ok = attrs->first(); ok; ok = attrs->next()) {
    auto attr = wire::decode<wire::Attr>(attrs->value());
    if (!attr) return attr.status().with_context("name cache");
    if (!attr->image.is_nil()) images_[attr->image] = attr->inode;
    attrs_[attr->inode] = std::move(*attr);
  }
  auto entries = snapshot->cursor(tables_.entry);
  for (bool ok = entries->first(); ok; ok = entries->next()) {
    ByteSpan key = entries->key();
    if (key.size() < 8 || entries->value().size() != 8) return Status(Code::kCorruption, "name cache: entry");
    InodeNumber parent(load_be64(key.data())), inode(load_be64(entries->value().data()));
    Place place{parent, as_text(key.subspan(8))};
    auto [known, first] = places_.try_emplace(inode, place);
    if (!first) {   // a version before kept a former name beside the newer one: which is which cannot be seen here
      unsure_.emplace(inode, std::move(known->second));
      known->second = place;
    }
    entries_[std::move(place)] = inode;
  }
  forget_removed();
  return Status::ok();
}

// What is no image, nor the root, and has no name any more. It was kept for whoever had it open when its name went;
// nobody has now.
void NameCache::forget_removed() {
  kv::WriteBatch batch;
  for (auto at = attrs_.begin(); at != attrs_.end();) {
    const auto [inode, attr] = *at;
    const bool removed = attr.image.is_nil() && inode != attr.parent && !places_.contains(inode);
    if (removed) batch.erase(tables_.attr, kv::key_u64(inode.value));
    at = removed ? attrs_.erase(at) : std::next(at);
  }
  if (!batch.empty()) commit(std::move(batch));
}

// Whoever has it open may ask for it still; nobody knows for how long.
void NameCache::note_nameless(InodeNumber inode) {
  auto attr = attrs_.find(inode);
  if (attr == attrs_.end() || !attr->second.image.is_nil()) return;
  nameless_.push_back(inode);
  while (nameless_.size() > kNamelessMax) {
    const InodeNumber oldest = nameless_.front();
    nameless_.pop_front();
    if (!places_.contains(oldest)) erase(oldest);
  }
}

void NameCache::put_all(kv::WriteBatch& batch) const {
  batch.erase_range(tables_.attr, {}, {});
  batch.erase_range(tables_.entry, {}, {});
  for (const auto& [inode, attr] : attrs_) batch.put(tables_.attr, kv::key_u64(inode.value), wire::encode(attr));
  for (const auto& [place, inode] : entries_)
    batch.put(tables_.entry, entry_key(place.first, place.second), kv::key_u64(inode.value));
}

void NameCache::commit(kv::WriteBatch batch) {
  store_.commit(std::move(batch), [](Status s) {
    if (!s) kLog.warning("cache_not_kept", {{"error", s}});
  });
}

void NameCache::put(const wire::Attr& attr) {
  auto at = attrs_.find(attr.inode);
  if (at == attrs_.end() && attrs_.size() >= kEntriesMax) {
    if (!std::exchange(full_told_, true)) kLog.warning("cache_full", {{"nodes", attrs_.size()}});
    return;
  }
  // A catalogue that was made anew has given either another number: what was known by the former is forgotten.
  if (at != attrs_.end() && at->second.image != attr.image) forget_image(at->second);
  auto numbered = images_.find(attr.image);
  if (numbered != images_.end() && numbered->second != attr.inode) erase(numbered->second);
  if (!attr.image.is_nil()) images_[attr.image] = attr.inode;
  Bytes value = wire::encode(attr);
  bool same = at != attrs_.end() && wire::encode(at->second) == value;
  if (same) return;
  attrs_[attr.inode] = attr;
  kv::WriteBatch batch;
  batch.put(tables_.attr, kv::key_u64(attr.inode.value), value);
  commit(std::move(batch));
}

// A node has one name, a name one node: what either had before is forgotten, since another host, or a change whose
// answer was lost, may have moved it.
void NameCache::put_entry(InodeNumber parent, const std::string& name, const wire::Attr& attr) {
  put(attr);
  const Place place{parent, name};
  const auto [first, last] = unsure_.equal_range(attr.inode);
  for (auto other = first; other != last; ++other) {
    auto at = entries_.find(other->second);
    const bool its = at != entries_.end() && at->second == attr.inode;
    if (its && other->second != place) erase_entry(other->second.first, other->second.second);
  }
  unsure_.erase(first, last);
  auto former = places_.find(attr.inode);
  if (former != places_.end() && former->second == place) return;
  kv::WriteBatch batch;
  if (former != places_.end()) {
    batch.erase(tables_.entry, entry_key(former->second.first, former->second.second));
    entries_.erase(former->second);
    places_.erase(former);
  }
  auto at = entries_.find(place);
  const std::optional<InodeNumber> displaced = at == entries_.end() ? std::nullopt : std::optional(at->second);
  auto here = at == entries_.end() ? places_.end() : places_.find(at->second);
  if (here != places_.end() && here->second == place) places_.erase(here);
  if (at != entries_.end() || entries_.size() < kEntriesMax) {
    entries_[place] = attr.inode;
    places_[attr.inode] = place;
    batch.put(tables_.entry, entry_key(parent, name), kv::key_u64(attr.inode.value));
  }
  if (!batch.empty()) commit(std::move(batch));
  if (displaced) note_nameless(*displaced);   // now that this one has its place
}

void NameCache::erase_entry(InodeNumber parent, const std::string& name) {
  auto at = entries_.find({parent, name});
  if (at == entries_.end()) return;
  const InodeNumber inode = at->second;
  auto place = places_.find(inode);
  if (place != places_.end() && place->second == at->first) places_.erase(place);
  entries_.erase(at);
  kv::WriteBatch batch;
  batch.erase(tables_.entry, entry_key(parent, name));
  commit(std::move(batch));
  note_nameless(inode);
}

// Unless it has another number by now.
void NameCache::forget_image(const wire::Attr& attr) {
  auto at = images_.find(attr.image);
  if (at != images_.end() && at->second == attr.inode) images_.erase(at);
}

void NameCache::erase(InodeNumber inode) {
  auto at = attrs_.find(inode);
  if (at == attrs_.end()) return;
  forget_image(at->second);
  attrs_.erase(at);
  kv::WriteBatch batch;
  batch.erase(tables_.attr, kv::key_u64(inode.value));
  commit(std::move(batch));
}

std::optional<wire::Attr> NameCache::get(InodeNumber inode) const {
  auto at = attrs_.find(inode);
  if (at == attrs_.end()) return std::nullopt;
  return at->second;
}

std::optional<wire::Attr> NameCache::lookup(InodeNumber parent, const std::string& name) const {
  auto at = entries_.find({parent, name});
  return at == entries_.end() ? std::nullopt : get(at->second);
}

std::optional<wire::Attr> NameCache::by_image(const ImageId& image) const {
  auto at = images_.find(image);
  return at == images_.end() ? std::nullopt : get(at->second);
}

wire::DirEntries NameCache::list(InodeNumber parent, const std::string& after, uint32_t count_max) const {
  wire::DirEntries out;
  for (auto at = entries_.upper_bound({parent, after}); at != entries_.end() && at->first.first == parent; ++at) {
    if (out.entries.size() >= count_max) return out;
    auto attr = get(at->second);
    if (attr) out.entries.push_back({at->first.second, *attr});
  }
  out.end = 1;
  return out;
}

std::vector<wire::Attr> NameCache::images() const {
  std::vector<wire::Attr> out;
  for (const auto& [image, inode] : images_) {
    auto attr = attrs_.find(inode);
    if (attr != attrs_.end() && places_.count(inode) != 0) out.push_back(attr->second);
  }
  return out;
}

std::vector<wire::DirEntry> NameCache::entries() const {
  std::vector<wire::DirEntry> out;
  for (const auto& [place, inode] : entries_) {
    auto attr = attrs_.find(inode);
    auto newest = places_.find(inode);
    if (attr == attrs_.end() || newest == places_.end() || newest->second != place) continue;
    out.push_back({place.second, attr->second});
    out.back().attr.parent = place.first;
  }
  return out;
}

std::string NameCache::path_of(InodeNumber inode) const {
  std::string path;
  for (int depth = 0; depth < 64 && inode.value != 1; ++depth) {
    auto at = places_.find(inode);
    if (at == places_.end()) return path.empty() ? "" : "?/" + path;
    path = path.empty() ? at->second.second : at->second.second + "/" + path;
    inode = at->second.first;
  }
  return path;
}

std::optional<wire::Attr> NameCache::resolve(std::string_view text) const {
  if (auto id = Uuid::parse(text)) return by_image(*id);
  InodeNumber at(1);
  std::optional<wire::Attr> attr;
  while (!text.empty()) {
    size_t slash = text.find('/');
    std::string name(text.substr(0, slash));
    text = slash == std::string_view::npos ? std::string_view() : text.substr(slash + 1);
    if (name.empty()) continue;
    attr = lookup(at, name);
    if (!attr) return std::nullopt;
    at = attr->inode;
  }
  return attr;
}

}  // namespace tidemark::fs
