// What readers ask by time. Points carry the labels of their sources' clocks and stand in the order of application; a
// source whose link was down sends old labels behind other hosts' newer states. So one image, and the names that lead
// to it, are looked up in the points that changed them.
//
// Reads through a kv::Snapshot; no other I/O. May be long: run it on a worker.
#pragma once

#include <string>

#include "replica/records.h"

namespace tidemark::replica {

// Of the points before `before` labelled not later than `at` the one applied last; 0: none.
Result<PointId> newest_labelled(kv::Snapshot& snapshot, PointId before, WallTime at);

// The same of those that show nothing of the image that is labelled later; 0: none shows it so early. `renamed`: before
// this one, if the image was the same there.
Result<PointId> newest_labelled(kv::Snapshot& snapshot, ImageIndex image, WallTime at,
                                PointId renamed = PointId(UINT64_MAX));

struct NamedImage {
  ImageId image;
  PointId renamed{UINT64_MAX};    // the oldest that changed a name on the way and is labelled later
};
// The image that `path` named at `at`, as the points up to `through` say: of each name on the way the newest of its
// changes labelled not later counts; of one without any, what it is at `through` (its host's clock may run ahead).
// kNotFound if that is no image.
Result<NamedImage> image_of_path(kv::Snapshot& snapshot, const std::string& path, PointId through, WallTime at);

}  // namespace tidemark::replica
