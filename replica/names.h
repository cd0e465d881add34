// The name space at every point: who was called what, and with which attributes.
//
// Directory entries are last-writer-wins by event number per (parent inode, name); node attributes
// by event number per inode. A host's marks become visible in that host's own batch; the shared
// node's records of the same events serve corroboration, and apply only where it is their origin; but its record of a
// create names an image that another host has written before the creator's own record came (which may never come).
// A host's session mark says up to which event its own records, if they have not come, never will: a crash took them.
// Those events apply from the shared node's records, in the batch of the session mark or when they come.
// A session mark of the shared node's own that has a number says that it has told all names anew: from its point on no
// event up to `node.event` binds a name, neither one that a backup of this store had nor one that comes late.
// So the result does not depend on the order in which sources arrive. Reads through a kv::Snapshot.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "replica/records.h"

namespace tidemark::replica {

// The two records of event `number` differ; both stay, the first one counts.
struct EventMismatch {
  EventNumber number;
  std::string source;
};

// Applies one batch's marks at a point newer than every earlier one.
class NameWriter {
 public:
  NameWriter(kv::Snapshot& snapshot, PointId point, std::string source, bool is_shared_node);
  Status apply(const wire::Mark& mark);
  // The image has contents at this point: it gets the name that the shared node told of, if it has none yet.
  Status name_written(const ImageId& image);
  // Puts what changed.
  void finish(kv::WriteBatch& out);
  const std::vector<EventMismatch>& mismatches() const { return mismatches_; }
  // Creates that applied from the shared node's record, since their origin never will tell of them.
  const std::vector<wire::Mark>& late_creates() const { return late_creates_; }

 private:
  Result<bool> corroborate(const wire::Mark& mark);
  Status from_shared(const wire::Mark& mark);
  Status bind_late(const wire::Mark& mark);
  Status session_began(const wire::Mark& mark);
  Result<EventRecord*> event(EventNumber number);
  Status told_all(const wire::Mark& mark);
  Result<EventNumber> floor();
  Result<EventNumber> told_up_to(const std::string& origin);
  Status keep_create(const wire::Mark& mark);
  Status bind(const wire::Mark& mark);
  Status set_entry(InodeNumber parent, const std::string& name, EventNumber event, InodeNumber inode);
  Status set_node(EventNumber event, const wire::Attr& attr);

  kv::Snapshot& snapshot_;
  const PointId point_;
  const std::string source_;
  const bool is_shared_node_;
  std::map<std::pair<uint64_t, std::string>, EntryVersion> entries_;
  std::map<uint64_t, NodeVersion> nodes_;
  std::map<uint64_t, EventRecord> events_;
  std::map<ImageId, std::optional<wire::Mark>> unnamed_;   // none: the row goes
  std::map<std::pair<std::string, uint64_t>, std::optional<wire::Mark>> untold_;   // likewise
  std::optional<SessionRecord> session_;
  std::optional<EventNumber> floor_;   // none: not read yet
  bool floor_is_new_ = false;
  std::vector<wire::Mark> late_creates_;
  std::vector<EventMismatch> mismatches_;
};

inline constexpr uint64_t kRootInode = 1;

struct TreeEntry {
  std::optional<std::string> path;   // none: the image has no name at this point
  ImageId image;                     // nil for other kinds
  wire::NodeKind kind = wire::NodeKind::kImage;
  uint64_t size = 0;
  uint32_t mode = 0, uid = 0, gid = 0;   // of a name's; without one they are not known
  std::string target;                // of a symlink; of a device its number
  Epoch epoch;
};
// All names at `point` by path, then the images without one by UUID. May be long: run it on a worker.
Result<std::vector<TreeEntry>> tree_at(kv::Snapshot& snapshot, PointId point);

// The image's size and tenure at `point`: kNotFound before its first version.
Result<ImageVersion> image_at(kv::Snapshot& snapshot, ImageIndex image, PointId point);

}  // namespace tidemark::replica
