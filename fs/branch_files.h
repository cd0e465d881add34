// Branches as files below the state directory: what only this host's copy of an image held when another host took the
// image by force. Written once, never changed here; an operator removes them.
//
// "UUID-epochN.branch" is a sparse file of the image's size, with whole regions of the own copy; beside it, in
// ".extents", a list of them. Blocks that cannot be read are left out, and named in the list: nothing brings them back,
// and all else would wait for them. For a brick that is not there at all, or of which nothing can be read, it waits.
// A branch is there if and only if it has its name: until then it is ".part". Loop thread only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fs/copies.h"
#include "fs/engine_types.h"
#include "shared/image/store.h"

namespace tidemark::fs {

class BranchFiles {
 public:
  // What is given must outlive the tasks that wait here.
  BranchFiles(Copies& copies, image::StorageGroup& group, std::string directory)
      : copies_(copies), group_(group), directory_(std::move(directory)) {}

  const std::string& directory() const { return directory_; }
  // Those that are kept: names and sizes.
  std::vector<Branch> list();
  // These regions of the own copy, durable once this has returned; how many bytes could not be read. Of a branch that
  // is there nothing is done.
  Task<Result<uint64_t>> save(Image& image, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes);

 private:
  Task<Result<uint64_t>> write(Image& image, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes,
                               std::string path);
  Task<Status> read_around(Image& image, Extent piece, MutableByteSpan out, std::vector<Extent>& unreadable);

  Copies& copies_;
  image::StorageGroup& group_;
  const std::string directory_;
};

}  // namespace tidemark::fs
