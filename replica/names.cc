#include "replica/names.h"

#include <algorithm>
#include <set>

namespace tidemark::replica {
namespace {

// What the origin's and the shared node's record of one event must say alike. Attributes are left
// out: times and allocation may have moved on by the time the second one is written. A tenure's mark
// is about the image alone: names may have changed under its holder.
uint64_t event_digest(const wire::Mark& m) {
  Bytes b;
  if (m.kind == wire::MarkKind::kTenureStart || m.kind == wire::MarkKind::kTenureEnd) {
    // The host may not know a name that another host has just given the image.
    Writer(b).u8(static_cast<uint8_t>(m.kind)).id(m.number).uuid(m.node.image).id(m.epoch);
    return digest64(b);
  }
  Writer w(b);
  w.u8(static_cast<uint8_t>(m.kind)).id(m.number).text(m.origin).uuid(m.node.image);
  if (m.kind == wire::MarkKind::kTenureStart || m.kind == wire::MarkKind::kTenureEnd) {
    w.id(m.epoch).id(m.parent.epoch).text(m.parent.source).id(m.parent.last.incarnation).id(m.parent.last.counter);
  } else {
    w.id(m.node.inode).id(m.node.parent).u8(static_cast<uint8_t>(m.node.kind)).text(m.name).id(m.old_parent);
    w.text(m.old_name).uuid(m.replaced);
  }
  return digest64(b);
}

Bytes untold_key(const std::string& origin, EventNumber event) {
  return kv::KeyBuilder().text(origin).u8(0).u64(event.value).bytes();
}

bool changes_node(wire::MarkKind kind) {
  using wire::MarkKind;
  return kind == MarkKind::kCreate || kind == MarkKind::kRename || kind == MarkKind::kSetAttr ||
         kind == MarkKind::kUnlink;
}

// The newest version at or before `point` of what `prefix` + point names.
template <class R>
Result<R> version_at(kv::Cursor& cursor, const Bytes& end_key) {
  const ByteSpan prefix = ByteSpan(end_key).first(end_key.size() - 8);
  if (!cursor.seek_before(end_key) || cursor.key().size() != end_key.size() || !starts_with(cursor.key(), prefix)) {
    return Status(Code::kNotFound, "no version that early");
  }
  return wire::decode<R>(cursor.value());
}

// Up to which event nothing binds a name, in points after the newest floor before `point`.
Result<EventNumber> floor_before(kv::Snapshot& snapshot, PointId point) {
  auto cursor = snapshot.cursor(kFloors);
  if (!cursor->seek_before(kv::key_u64(point.value))) return EventNumber(0);
  TM_ASSIGN_OR_RETURN(FloorRecord record, wire::decode<FloorRecord>(cursor->value()));
  return record.event;
}

}  // namespace

NameWriter::NameWriter(kv::Snapshot& snapshot, PointId point, std::string source, bool is_shared_node)
    : snapshot_(snapshot), point_(point), source_(std::move(source)), is_shared_node_(is_shared_node) {}

Status NameWriter::apply(const wire::Mark& mark) {
  if (mark.kind == wire::MarkKind::kSession && mark.number.value != 0) return told_all(mark);
  if (mark.kind == wire::MarkKind::kSession) return session_began(mark);
  if (mark.number.value == 0) return Status::ok();  // the host's own: changes no name
  TM_ASSIGN_OR_RETURN(bool first_here, corroborate(mark));
  if (!first_here) return Status::ok();
  if (mark.origin != source_) return from_shared(mark);
  if (events_[mark.number.value].from_shared != 0) untold_[{mark.origin, mark.number.value}].reset();
  return bind(mark);
}

// The shared node's record of a host's event: it waits for the host's own, unless that can no longer come.
Status NameWriter::from_shared(const wire::Mark& mark) {
  if (events_[mark.number.value].from_origin != 0) return Status::ok();
  TM_ASSIGN_OR_RETURN(EventNumber told, told_up_to(mark.origin));
  if (mark.number <= told) return bind_late(mark);
  untold_[{mark.origin, mark.number.value}] = mark;
  return keep_create(mark);
}

// What the shared node has told of the host's events, and the host itself never will, applies now.
Status NameWriter::session_began(const wire::Mark& mark) {
  if (mark.origin != source_) return Status::ok();
  TM_ASSIGN_OR_RETURN(EventNumber told, told_up_to(source_));
  if (mark.node.event <= told) return Status::ok();
  session_ = SessionRecord{mark.node.event};
  auto cursor = snapshot_.cursor(kUntold);
  const Bytes first = untold_key(source_, EventNumber(0)), end = untold_key(source_, mark.node.event.next());
  for (bool found = cursor->seek(first); found; found = cursor->next()) {
    const ByteSpan key = cursor->key();
    if (!std::lexicographical_compare(key.begin(), key.end(), end.begin(), end.end())) break;
    TM_ASSIGN_OR_RETURN(wire::Mark kept, wire::decode<wire::Mark>(cursor->value()));
    untold_[{source_, kept.number.value}].reset();
    TM_ASSIGN_OR_RETURN(EventRecord* record, event(kept.number));
    if (record->from_origin == 0) TM_RETURN_IF_ERROR(bind_late(kept));
  }
  return Status::ok();
}

// The shared node has told all names that there are: what older events, told or not, say of names is over.
Status NameWriter::told_all(const wire::Mark& mark) {
  if (!is_shared_node_ || mark.origin != source_) return Status::ok();
  TM_ASSIGN_OR_RETURN(EventNumber before, floor());
  floor_ = std::max(before, mark.node.event);
  floor_is_new_ = floor_is_new_ || *floor_ != before;
  return Status::ok();
}

Result<EventNumber> NameWriter::floor() {
  if (!floor_) {
    TM_ASSIGN_OR_RETURN(EventNumber stored, floor_before(snapshot_, point_));
    floor_ = stored;
  }
  return *floor_;
}

Status NameWriter::bind_late(const wire::Mark& mark) {
  if (mark.kind == wire::MarkKind::kCreate && !mark.node.image.is_nil()) late_creates_.push_back(mark);
  return bind(mark);
}

Result<EventNumber> NameWriter::told_up_to(const std::string& origin) {
  if (session_ && origin == source_) return session_->event;
  auto stored = read_record<SessionRecord>(snapshot_, kSessions, as_bytes(origin));
  if (stored) return stored->event;
  if (stored.status().code() != Code::kNotFound) return stored.status();
  return EventNumber(0);
}

// The shared node's record of a host's create: of use until that host's own has come.
Status NameWriter::keep_create(const wire::Mark& mark) {
  const ImageId& image = mark.node.image;
  if (mark.kind != wire::MarkKind::kCreate || image.is_nil()) return Status::ok();
  auto record = read_record<ImageRecord>(snapshot_, kImages, image.bytes);
  if (record) {
    auto version = image_at(snapshot_, record->index, point_);
    if (version) return bind(mark);
    if (version.status().code() != Code::kNotFound) return version.status();
  } else if (record.status().code() != Code::kNotFound) {
    return record.status();
  }
  unnamed_[image] = mark;
  return Status::ok();
}

Status NameWriter::name_written(const ImageId& image) {
  auto kept = read_record<wire::Mark>(snapshot_, kUnnamed, image.bytes);
  if (!kept) return kept.status().code() == Code::kNotFound ? Status::ok() : kept.status();
  return bind(*kept);
}

Status NameWriter::bind(const wire::Mark& mark) {
  using wire::MarkKind;
  if (mark.kind == MarkKind::kCreate && !mark.node.image.is_nil()) unnamed_[mark.node.image].reset();
  if (mark.kind == MarkKind::kRename || mark.kind == MarkKind::kUnlink) {
    TM_RETURN_IF_ERROR(set_entry(mark.old_parent, mark.old_name, mark.number, InodeNumber(0)));
  }
  if (mark.kind == MarkKind::kRename || mark.kind == MarkKind::kCreate) {
    TM_RETURN_IF_ERROR(set_entry(mark.node.parent, mark.name, mark.number, mark.node.inode));
  }
  return set_node(mark.number, mark.node);
}

Result<EventRecord*> NameWriter::event(EventNumber number) {
  auto [it, added] = events_.try_emplace(number.value);
  if (added) {
    auto stored = read_record<EventRecord>(snapshot_, kEvents, kv::key_u64(number.value));
    if (stored) it->second = *stored;
    else if (stored.status().code() != Code::kNotFound) return stored.status();
  }
  return &it->second;
}

// False if it changes no node, or if this side's record of the event was seen before.
Result<bool> NameWriter::corroborate(const wire::Mark& mark) {
  TM_ASSIGN_OR_RETURN(EventRecord* known, event(mark.number));
  EventRecord& record = *known;
  const uint64_t digest = event_digest(mark);
  if (record.digest == 0) record.digest = digest;
  else if (record.digest != digest) mismatches_.push_back({mark.number, source_});
  if (mark.origin != source_ && !is_shared_node_) return false;  // a third party's word corroborates, no more
  // A shared node of before may have granted a tenure with the number of a change that came just after its start.
  if (!changes_node(mark.kind)) return false;
  uint8_t& seen = mark.origin == source_ ? record.from_origin : record.from_shared;
  const bool first = seen == 0;
  seen = 1;
  return first;
}

Status NameWriter::set_entry(InodeNumber parent, const std::string& name, EventNumber event, InodeNumber inode) {
  TM_ASSIGN_OR_RETURN(EventNumber over, floor());
  if (event <= over) return Status::ok();
  auto [it, added] = entries_.try_emplace({parent.value, name});
  if (added) {
    auto cursor = snapshot_.cursor(kEntries);
    auto stored = version_at<EntryVersion>(*cursor, entry_key(parent, name, point_));
    if (stored) it->second = *stored;
    else if (stored.status().code() != Code::kNotFound) return stored.status();
  }
  // An exchange names the same entry twice with one number: the later mark is the one that binds it.
  if (event > it->second.event || (event == it->second.event && inode.value != 0)) it->second = {event, inode};
  return Status::ok();
}

Status NameWriter::set_node(EventNumber event, const wire::Attr& attr) {
  auto [it, added] = nodes_.try_emplace(attr.inode.value);
  if (added) {
    auto cursor = snapshot_.cursor(kNodes);
    auto stored = version_at<NodeVersion>(*cursor, node_key(attr.inode, point_));
    if (stored) it->second = *stored;
    else if (stored.status().code() != Code::kNotFound) return stored.status();
  }
  if (event > it->second.event) it->second = {event, attr};
  return Status::ok();
}

void NameWriter::finish(kv::WriteBatch& out) {
  for (const auto& [key, version] : entries_) {
    put_record(out, kEntries, entry_key(InodeNumber(key.first), key.second, point_), version);
  }
  for (const auto& [inode, version] : nodes_) put_record(out, kNodes, node_key(InodeNumber(inode), point_), version);
  for (const auto& [number, record] : events_) put_record(out, kEvents, kv::key_u64(number), record);
  for (const auto& [image, mark] : unnamed_) {
    if (mark) put_record(out, kUnnamed, image.bytes, *mark);
    else out.erase(kUnnamed, image.bytes);
  }
  for (const auto& [event, mark] : untold_) {
    const Bytes key = untold_key(event.first, EventNumber(event.second));
    if (mark) put_record(out, kUntold, key, *mark);
    else out.erase(kUntold, key);
  }
  if (session_) put_record(out, kSessions, as_bytes(source_), *session_);
  if (floor_is_new_) put_record(out, kFloors, kv::key_u64(point_.value), FloorRecord{*floor_});
}

Result<ImageVersion> image_at(kv::Snapshot& snapshot, ImageIndex image, PointId point) {
  auto cursor = snapshot.cursor(kImageVersions);
  return version_at<ImageVersion>(*cursor, image_point_key(image, point.next()));
}

namespace {

struct Link { std::string name; InodeNumber inode; };
using Children = std::map<uint64_t, std::vector<Link>>;

Result<Children> children_at(kv::Snapshot& snapshot, PointId point) {
  TM_ASSIGN_OR_RETURN(const EventNumber over, floor_before(snapshot, point.next()));
  Children children;
  Bytes present;                // key without the point
  EntryVersion version;
  auto take = [&] {
    if (present.empty() || version.inode.value == 0 || version.event <= over) return;
    std::string name(as_text(ByteSpan(present).subspan(8, present.size() - 9)));
    children[load_be64(present.data())].push_back({std::move(name), version.inode});
  };
  auto cursor = snapshot.cursor(kEntries);
  for (bool found = cursor->first(); found; found = cursor->next()) {
    const ByteSpan key = cursor->key();
    if (key.size() < 17) return Status(Code::kCorruption, "entries: a key is too short");
    const ByteSpan prefix = key.first(key.size() - 8);
    if (!std::equal(prefix.begin(), prefix.end(), present.begin(), present.end())) {
      take();
      present.assign(prefix.begin(), prefix.end());
      version = {};
    }
    if (point_of_key(key) > point) continue;
    TM_ASSIGN_OR_RETURN(version, wire::decode<EntryVersion>(cursor->value()));
  }
  take();
  return children;
}

class TreeWalk {
 public:
  TreeWalk(kv::Snapshot& snapshot, PointId point)
      : snapshot_(snapshot), point_(point), nodes_(snapshot.cursor(kNodes)) {}

  Result<std::vector<TreeEntry>> run() {
    TM_ASSIGN_OR_RETURN(children_, children_at(snapshot_, point_));
    std::vector<std::pair<uint64_t, std::string>> open{{kRootInode, ""}};
    while (!open.empty()) {
      auto [inode, path] = std::move(open.back());
      open.pop_back();
      // A rename that has arrived only in part can show a directory twice; it is walked once.
      if (!walked_.insert(inode).second) continue;
      for (const Link& link : children_[inode]) {
        TM_ASSIGN_OR_RETURN(bool is_directory, add(path + "/" + link.name, link.inode));
        if (is_directory) open.emplace_back(link.inode.value, path + "/" + link.name);
      }
    }
    std::sort(out_.begin(), out_.end(), [](const TreeEntry& a, const TreeEntry& b) { return *a.path < *b.path; });
    TM_RETURN_IF_ERROR(add_nameless());
    return std::move(out_);
  }

 private:
  Result<bool> add(std::string path, InodeNumber inode) {
    TreeEntry entry;
    entry.path = path.substr(1);
    auto node = version_at<NodeVersion>(*nodes_, node_key(inode, point_.next()));
    if (!node && node.status().code() != Code::kNotFound) return node.status();
    if (!node) return false;   // its create has not been applied yet: no attributes, not shown
    const wire::Attr& attr = node->attr;
    entry.image = attr.image;
    entry.kind = attr.kind;
    entry.mode = attr.mode;
    entry.uid = attr.uid;
    entry.gid = attr.gid;
    entry.target = attr.target;
    if (attr.kind == wire::NodeKind::kImage) {
      entry.size = attr.size;
      named_.insert(attr.image);
      auto record = read_record<ImageRecord>(snapshot_, kImages, attr.image.bytes);
      if (record) TM_RETURN_IF_ERROR(add_version(record->index, entry));
      else if (record.status().code() != Code::kNotFound) return record.status();
    }
    out_.push_back(std::move(entry));
    return attr.kind == wire::NodeKind::kDirectory;
  }

  Status add_version(ImageIndex index, TreeEntry& entry) {
    auto version = image_at(snapshot_, index, point_);
    if (!version) return version.status().code() == Code::kNotFound ? Status::ok() : version.status();
    entry.size = version->size;
    entry.epoch = version->epoch;
    return Status::ok();
  }

  Status add_nameless() {
    auto images = snapshot_.cursor(kImages);
    for (bool found = images->first(); found; found = images->next()) {
      ImageId id;
      std::copy_n(images->key().begin(), std::min<size_t>(16, images->key().size()), id.bytes.begin());
      if (named_.contains(id)) continue;
      TM_ASSIGN_OR_RETURN(ImageRecord record, wire::decode<ImageRecord>(images->value()));
      auto version = image_at(snapshot_, record.index, point_);
      if (!version && version.status().code() == Code::kNotFound) continue;
      if (!version) return version.status();
      TreeEntry entry;
      entry.image = id;
      entry.size = version->size;
      entry.epoch = version->epoch;
      out_.push_back(std::move(entry));
    }
    return Status::ok();
  }

  kv::Snapshot& snapshot_;
  const PointId point_;
  std::unique_ptr<kv::Cursor> nodes_;
  Children children_;
  std::set<uint64_t> walked_;
  std::set<ImageId> named_;
  std::vector<TreeEntry> out_;
};

}  // namespace

Result<std::vector<TreeEntry>> tree_at(kv::Snapshot& snapshot, PointId point) {
  return TreeWalk(snapshot, point).run();
}

}  // namespace tidemark::replica
