// The name space for a replica that was emptied or replaced: all of it as new events. Each node's mark has a number
// above every earlier one, so that whatever an older event says of the same name or node, from whichever stream,
// loses. A session mark of this node's own, which comes last, says so of all names: what was removed or moved is not in
// the tree, and a replica that was put back from a backup, or a host's record that comes late, may have it.
#include <nlohmann/json.hpp>

#include "shared/base/log.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node");
}

wire::Mark Core::name_mark(wire::MarkKind kind, const Node& node) {
  wire::Mark mark;
  mark.kind = kind;
  mark.number = names_->take_event();
  mark.origin = options_.name;
  mark.label = env_.wall();
  mark.node = node.attr;
  mark.name = node.name;
  auto it = images_.find(node.attr.image);
  if (it != images_.end()) {
    mark.node.holder = it->second->record.tenure.holder;
    mark.node.epoch = it->second->record.tenure.epoch;
  }
  return mark;
}

void Core::resync_replica(Callback<Result<std::string>> done) {
  if (!marks_->usage().replica_configured) {
    return done(Status(Code::kInvalidArgument, "no [replica] is configured"));
  }
  const EventNumber upto = names_->last_event();
  std::vector<wire::Mark> marks;
  names_->walk(InodeNumber(0), [&](const Node& node) {
    if (node.attr.inode == kRootInode) {
      marks.push_back(name_mark(wire::MarkKind::kSetAttr, node));
      return true;
    }
    marks.push_back(name_mark(wire::MarkKind::kCreate, node));
    if (!node.name.empty()) return true;
    // Unlinked and still open: its blocks have to have a create, and it has to have no name.
    marks.back().name = marks.back().node.image.to_string();
    marks.back().node.parent = kRootInode;
    const wire::Mark created = marks.back();
    marks.push_back(name_mark(wire::MarkKind::kUnlink, node));
    marks.back().old_parent = kRootInode;
    marks.back().old_name = created.name;
    return true;
  });
  const size_t names = marks.size();
  wire::Mark all;
  all.kind = wire::MarkKind::kSession;
  all.number = names_->take_event();
  all.origin = options_.name;
  all.label = env_.wall();
  all.node.event = upto;
  marks.push_back(std::move(all));
  kv::WriteBatch batch;
  put_counters(batch, *names_);
  for (const wire::Mark& mark : marks) put_mark(batch, mark);
  commit(std::move(batch), [this, names, marks = std::move(marks), done = std::move(done)]() mutable {
    record_marks(marks);
    marks_->resync_replica([names, done = std::move(done)](const Status& durable) mutable {
      if (!durable) return done(durable);
      kLog.warning("replica_resync_asked", {{"names", names}});
      done(nlohmann::json{{"names", names}}.dump());
    });
  });
}

}  // namespace tidemark::node
