#include "replica/by_time.h"

#include <algorithm>

#include "replica/intake.h"
#include "replica/names.h"

namespace tidemark::replica {
namespace {

// Whether any point of a block may be labelled not later than `at`. Where that cannot be read, each is looked at.
bool any_labelled(kv::Snapshot& snapshot, uint64_t block, WallTime at) {
  auto least = snapshot.get(kLabelBlocks, kv::key_u64(block));
  return !least || least->size() != 8 || load_le<int64_t>(least->data()) <= at.ns;
}

bool same_but_point(ByteSpan key, const Bytes& end) {
  return key.size() == end.size() && starts_with(key, ByteSpan(end).first(end.size() - 8));
}

// Back from `end`, a key of a version with the point at its end, to the newest version of the same labelled not later.
// False: there is none. `passed`: the last one gone past, or of the same block of points.
Result<bool> seek_labelled(kv::Snapshot& snapshot, kv::Cursor& cursor, Bytes end, WallTime at,
                           PointId* passed = nullptr) {
  for (bool found = cursor.seek_before(end); found && same_but_point(cursor.key(), end);) {
    const PointId point = point_of_key(cursor.key());
    TM_ASSIGN_OR_RETURN(PointRecord record, read_record<PointRecord>(snapshot, kPoints, kv::key_u64(point.value)));
    if (record.label <= at) return true;
    if (passed != nullptr) *passed = point;
    const uint64_t block = point.value / kPointsInBlock;
    if (any_labelled(snapshot, block, at)) {
      found = cursor.previous();
    } else {
      store_be64(end.data() + end.size() - 8, block * kPointsInBlock);
      found = cursor.seek_before(end);
    }
  }
  return false;
}

// The newest version whatever its label.
bool seek_newest(kv::Cursor& cursor, const Bytes& end) {
  return cursor.seek_before(end) && same_but_point(cursor.key(), end);
}

Bytes floor_key(PointId point) { return kv::KeyBuilder().u64(point.value).bytes(); }

}  // namespace

Result<PointId> newest_labelled(kv::Snapshot& snapshot, PointId before, WallTime at) {
  auto blocks = snapshot.cursor(kLabelBlocks);
  auto points = snapshot.cursor(kPoints);
  const uint64_t last = before.value == 0 ? 0 : (before.value - 1) / kPointsInBlock;
  for (bool block = blocks->seek_before(kv::key_u64(last + 1)); block; block = blocks->previous()) {
    // One that is damaged tells nothing: its points are looked at.
    if (blocks->value().size() == 8 && load_le<int64_t>(blocks->value().data()) > at.ns) continue;
    const uint64_t first = load_be64(blocks->key().data()) * kPointsInBlock;
    const uint64_t end = std::min(first + kPointsInBlock, before.value);
    for (bool found = points->seek_before(kv::key_u64(end)); found; found = points->previous()) {
      const PointId id = point_of_key(points->key());
      if (id.value < first) break;
      TM_ASSIGN_OR_RETURN(PointRecord record, wire::decode<PointRecord>(points->value()));
      if (record.label <= at) return id;
    }
  }
  return PointId(0);
}

Result<PointId> newest_labelled(kv::Snapshot& snapshot, ImageIndex image, WallTime at, PointId renamed) {
  TM_ASSIGN_OR_RETURN(const PointId newest, newest_labelled(snapshot, PointId(UINT64_MAX), at));
  if (newest.value == 0) return newest;
  auto versions = snapshot.cursor(kImageVersions);
  PointId later = newest.next();
  TM_ASSIGN_OR_RETURN(const bool shown,
                      seek_labelled(snapshot, *versions, image_point_key(image, newest.next()), at, &later));
  if (!shown) return PointId(0);
  if (renamed > point_of_key(versions->key())) later = std::min(later, renamed);
  // With nothing labelled later in between that is the newest again.
  return newest_labelled(snapshot, later, at);
}

Result<NamedImage> image_of_path(kv::Snapshot& snapshot, const std::string& path, PointId through, WallTime at) {
  const Status none(Code::kNotFound, "no image " + path);
  auto floors = snapshot.cursor(kFloors);
  EventNumber over(0);
  TM_ASSIGN_OR_RETURN(const bool told, seek_labelled(snapshot, *floors, floor_key(through.next()), at));
  if (told) {
    TM_ASSIGN_OR_RETURN(FloorRecord record, wire::decode<FloorRecord>(floors->value()));
    over = record.event;
  }
  NamedImage found;
  auto entries = snapshot.cursor(kEntries);
  InodeNumber inode(kRootInode);
  for (size_t begin = 0; begin < path.size();) {
    const size_t slash = std::min(path.find('/', begin), path.size());
    const std::string name = path.substr(begin, slash - begin);
    begin = slash + 1;
    if (name.empty()) continue;
    if (name.size() > limits::kNameBytesMax) return none;
    const Bytes end = entry_key(inode, name, through.next());
    PointId passed{UINT64_MAX};
    TM_ASSIGN_OR_RETURN(const bool so_early, seek_labelled(snapshot, *entries, end, at, &passed));
    if (!so_early && !seek_newest(*entries, end)) return none;
    if (so_early) found.renamed = std::min(found.renamed, passed);
    TM_ASSIGN_OR_RETURN(EntryVersion entry, wire::decode<EntryVersion>(entries->value()));
    if (entry.inode.value == 0 || entry.event <= over) return none;
    inode = entry.inode;
  }
  auto nodes = snapshot.cursor(kNodes);
  if (!seek_newest(*nodes, node_key(inode, through.next()))) return none;
  TM_ASSIGN_OR_RETURN(NodeVersion node, wire::decode<NodeVersion>(nodes->value()));
  if (node.attr.kind != wire::NodeKind::kImage || node.attr.image.is_nil()) return none;
  found.image = node.attr.image;
  return found;
}

}  // namespace tidemark::replica
