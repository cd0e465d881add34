// What the replica lacks: regions of images whose batches were given up at the journal's limit, or whose replica was
// replaced. Marked region by region, so that neither memory nor disk grows with what is written.
//
// A region's life: lacked -> taken (into a piece of a resync, not staged yet) -> gone once that piece is staged. What is
// taken counts as lacked on disk, so that a crash loses none of it. The owner writes the changed pages with its own
// commits (put_changed). Pure; no I/O but for load().
//
// Of an image that is withheld (withheld.cc) regions are lacked, and none is taken before it is released.
//
// What a piece brings of an image, and the size of one, counts at the replica only once a batch that shows a point names it.
// Until then the image is *unnamed*, on disk too: the resync's last batch names it though nothing of it is lacked any more.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "journal/journal.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/kv/store.h"

namespace tidemark::journal {

inline constexpr uint32_t kLackPageBytes = 1024;               // of a bitmap
inline constexpr uint32_t kLackPageRegions = kLackPageBytes * 8;

class LackMap {
 public:
  explicit LackMap(uint64_t region_bytes_min) : region_bytes_min_(region_bytes_min) {}

  // True if anything was not marked before.
  bool set(const ImageId& image, Extent extent);
  void forget(const ImageId& image);
  // About `bytes_max` bytes of lacked regions, at least one, whole regions in order; taken from now on.
  std::vector<ImageExtent> take(uint64_t bytes_max);
  std::vector<ImageExtent> take_all(const ImageId& image);
  void staged(const std::vector<ImageExtent>& taken);
  void untake();                     // all that is taken is lacked again
  bool empty() const;                // nothing lacked, taken ones and withheld images aside
  uint64_t bytes() const;            // lacked and taken, in whole regions; of withheld images none
  uint64_t bytes(const ImageId& image) const;
  void withhold(const ImageId& image, bool withheld);
  std::vector<ImageId> images() const;   // those that lack something, and unnamed ones

  // `sent`: pieces have some of it; else its size alone may be another. True if that is new.
  bool set_unnamed(const ImageId& image, bool sent);
  void named(const ImageId& image);
  bool is_unnamed(const ImageId& image) const { return unnamed_.contains(image); }
  bool sent(const ImageId& image) const;
  std::vector<ImageId> unnamed() const;

  void put_changed(kv::WriteBatch& out);
  void put_all();                    // with the next put_changed()
  bool changed() const { return !changed_.empty() || !erased_.empty() || !unnamed_changed_.empty(); }
  Status load(kv::Snapshot& snapshot);

 private:
  using Bits = std::vector<uint64_t>;
  struct Image {
    uint64_t region_bytes = 0;
    Bits lacked, taken;
  };
  void coarsen(const ImageId& id, Image& image, uint64_t end);
  void take_from(const ImageId& id, Image& image, uint64_t bytes_max, uint64_t& bytes, std::vector<ImageExtent>& out);
  void note(const ImageId& id, const Image& image, Extent extent);
  void drop_regions(const ImageId& id);
  void put_page(const ImageId& id, uint64_t page, kv::WriteBatch& out) const;
  Status load_unnamed(kv::Snapshot& snapshot);

  const uint64_t region_bytes_min_;
  std::map<ImageId, Image> images_;
  std::set<std::pair<ImageId, uint64_t>> changed_;   // pages
  std::set<ImageId> erased_;                         // images all of whose pages go first
  std::set<ImageId> withheld_;
  std::map<ImageId, bool> unnamed_;                  // with whether pieces have some of it
  std::set<ImageId> unnamed_changed_;
};

}  // namespace tidemark::journal
