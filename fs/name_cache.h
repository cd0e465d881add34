// What this host knows of the name space, for use while the shared node is away. Never authoritative: whenever the link
// is up the shared node is asked. Kept in memory and, without being waited for, in a key-value store, so that a host
// that starts while the shared node is down still knows its images. Bounded; beyond the bound new entries are not kept.
// Images without a name stay until they are erased; of other nodes without one those that lost it last.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "shared/base/ids.h"
#include "shared/kv/store.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

class NameCache {
 public:
  // Tables of the store used: attr (inode -> Attr), entry (parent, name -> inode).
  struct Tables { kv::Table attr, entry; };
  NameCache(kv::Store& store, Tables tables) : store_(store), tables_(tables) {}

  Status load();
  // In place of what the store has.
  void put_all(kv::WriteBatch& batch) const;
  void put(const wire::Attr& attr);
  void put_entry(InodeNumber parent, const std::string& name, const wire::Attr& attr);
  void erase_entry(InodeNumber parent, const std::string& name);
  void erase(InodeNumber inode);
  std::optional<wire::Attr> get(InodeNumber inode) const;
  std::optional<wire::Attr> lookup(InodeNumber parent, const std::string& name) const;
  std::optional<wire::Attr> by_image(const ImageId& image) const;
  wire::DirEntries list(InodeNumber parent, const std::string& after, uint32_t count_max) const;
  // Every image known that has a name.
  std::vector<wire::Attr> images() const;
  // Every image known, its name or none.
  std::vector<std::pair<ImageId, InodeNumber>> all_images() const { return {images_.begin(), images_.end()}; }
  // Every node known that has a name, with that name.
  std::vector<wire::DirEntry> entries() const;
  // "dir/name" as far as known.
  std::string path_of(InodeNumber inode) const;
  // What stands in the cache for a path or a UUID's text.
  std::optional<wire::Attr> resolve(std::string_view path_or_uuid) const;

 private:
  using Place = std::pair<InodeNumber, std::string>;   // parent, name

  void forget_removed();
  void note_nameless(InodeNumber inode);
  void forget_image(const wire::Attr& attr);
  void commit(kv::WriteBatch batch);

  kv::Store& store_;
  const Tables tables_;
  std::unordered_map<InodeNumber, wire::Attr> attrs_;
  std::map<Place, InodeNumber> entries_;
  std::unordered_map<InodeNumber, Place> places_;   // the other way round
  std::unordered_multimap<InodeNumber, Place> unsure_;   // further names of one node that the store has
  std::unordered_map<ImageId, InodeNumber> images_;
  std::deque<InodeNumber> nameless_;   // what is no image and lost a name, oldest first; it may have another by now
  bool full_told_ = false;
};

}  // namespace tidemark::fs
