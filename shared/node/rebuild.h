// A catalogue made anew from what hosts report and what lies on the bricks. Pure: no I/O, no clock.
//
// Names: of two reports of one node that with the newer event counts; a node without a place gets one in the root.
// Blocks, for each image (the first row that fits):
//
//   who has it                                              then
//   a host goes on with the newest tenure, its copy whole   it keeps tenure and epoch, and pushes what differs
//   a host goes on with the newest tenure, its copy not     the same, and it is filled from the brick
//     whole, and a brick has the image
//   `mirror = none`: the host that has the data alone,      it is named holder, its copy the newest; nothing is pushed
//     its copy whole and of the newest tenure
//   `mirror = none`: no such host                           lost, as below
//   a host had the newest tenure, its copy whole, and       it is named holder, in an epoch above all, and pushes what
//     no brick has the image                                differs
//   a brick has the image                                   free, in an epoch above all; every host's copy counts as
//                                                           stale
//   nobody ever wrote it                                    free, empty
//   else                                                    lost: its name stays, its blocks answer EIO until they are
//                                                           restored from the replica
//
// A copy of an older tenure is never taken for the newest one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "shared/image/store.h"
#include "shared/node/catalogue.h"

namespace tidemark::node {

struct HostReport {
  HostRun run;
  WriteSequence cut;
  EventNumber event;
  Incarnation boot;                            // this node's newest run that it has seen; 0: none
  std::vector<wire::ReportEntry> entries;
  bool complete = false;
};

struct Rebuild {
  state::RebuildOrder order;                   // whose reports it waits for
  std::map<std::string, HostReport> reports;
  bool waits_for(const std::string& host) const;   // listed, and not complete
  std::vector<std::string> awaited() const;
};

struct RebuildPlan {
  struct Placed {
    ImageRecord record;
    std::string level;                         // host whose copy is the newest one: not stale. Empty: none
    std::string from;                          // for the log: what its blocks are taken from
  };
  std::vector<Node> nodes;                     // but the root
  std::map<ImageId, Placed> images;
  InodeNumber next_inode;
  EventNumber event;
};

struct RebuildInput {
  const std::map<std::string, HostReport>& reports;
  const std::vector<image::ImageMetadata>& bricks;
  WallTime now;                                // numbers begun anew from it are above those of earlier runs
  uint64_t region_bytes = 0;
  const std::map<ImageId, Epoch>& epochs;      // the newest that the replica or the witness has
};
RebuildPlan plan_rebuild(const RebuildInput& input);

}  // namespace tidemark::node
