#include "replica/records.h"

namespace tidemark::replica {

std::vector<std::string> table_names() {
  return {"meta",         "sources", "streams",        "batches",  "held",    "points",  "point_names",
          "label_blocks", "images",  "image_versions", "leaves",   "wides",   "entries", "nodes",
          "events",       "marked",  "alarms",         "branches", "segments", "held_since", "unnamed",
          "untold",       "sessions",       "pieces", "taken_tenures", "gaps",
          "spill_leaves", "spill_wides", "overtaken", "lost", "cut_off", "floors"};
}

Bytes stream_key(const std::string& source, const Uuid& generation) {
  return kv::KeyBuilder().text(source).u8(0).uuid(generation).bytes();
}
Bytes batch_key(const std::string& source, const Uuid& generation, BatchNumber number) {
  return kv::KeyBuilder().text(source).u8(0).uuid(generation).u64(number.value).bytes();
}
Bytes image_point_key(ImageIndex image, PointId point) {
  return kv::KeyBuilder().u32(static_cast<uint32_t>(image.value)).u64(point.value).bytes();
}
Bytes leaf_key(ImageIndex image, uint64_t leaf, PointId point) {
  Bytes key(16);
  uint8_t* p = key.data();
  auto put32 = [&p](uint32_t v) {
    store_be32(p, v);
    p += 4;
  };
  put32(static_cast<uint32_t>(image.value));
  put32(static_cast<uint32_t>(leaf));
  store_be64(p, point.value);
  return key;
}
Bytes entry_key(InodeNumber parent, const std::string& name, PointId point) {
  return kv::KeyBuilder().u64(parent.value).text(name).u8(0).u64(point.value).bytes();
}
Bytes node_key(InodeNumber inode, PointId point) { return kv::KeyBuilder().u64(inode.value).u64(point.value).bytes(); }
Bytes point_name_key(const std::string& name, PointId point) {
  return kv::KeyBuilder().text(name).u8(0).u64(point.value).bytes();
}
Bytes marked_key(const std::string& source, const ImageId& image) {
  return kv::KeyBuilder().text(source).u8(0).uuid(image).bytes();
}
Bytes lost_key(const std::string& source, Incarnation before) {
  return kv::KeyBuilder().text(source).u8(0).u64(before.value).bytes();
}
Bytes cut_off_key(const ImageId& image, PointId from) { return kv::KeyBuilder().uuid(image).u64(from.value).bytes(); }
Bytes alarm_key(const std::string& kind, const std::string& subject) {
  return kv::KeyBuilder().text(kind).u8(0).text(subject).bytes();
}
Bytes branch_key(ImageIndex image, const BranchRecord& r) {
  return kv::KeyBuilder().u32(static_cast<uint32_t>(image.value)).u64(r.epoch.value).text(r.source).u8(0)
      .uuid(r.generation).u64(r.number.value).bytes();
}
PointId point_of_key(ByteSpan key) { return PointId(key.size() >= 8 ? load_be64(key.data() + key.size() - 8) : 0); }

}  // namespace tidemark::replica
