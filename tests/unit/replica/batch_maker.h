// Makes batches as a source would stage them, for the replica's tests.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "journal/segment.h"
#include "shared/base/ids.h"

namespace tidemark::replica {

inline Uuid test_uuid(uint64_t n, uint8_t kind = 1) {
  Uuid id;
  id.bytes[0] = kind;
  store_be64(id.bytes.data() + 8, n);
  id.bytes[15] |= 0;
  return id;
}
inline const Uuid kTestCluster = test_uuid(1, 0xC1);

// One image's blocks in a batch: offset (multiple of 4096) to bytes; empty bytes with a length are zeros.
struct Piece {
  uint64_t offset = 0;
  Bytes data;                 // a multiple of 4096 bytes, or
  uint64_t zeros = 0;         // so many zero bytes
};
struct SliceSpec {
  Uuid image;
  Epoch epoch{1};
  wire::TenureParent parent;
  uint64_t size = 1 << 20;
  std::vector<Piece> pieces;  // by offset
};

// A source's stream: numbers, counters and the chain of digests go on by themselves.
class BatchMaker {
 public:
  explicit BatchMaker(std::string source, uint64_t generation = 1)
      : source_(std::move(source)), generation_(test_uuid(generation, 0x6E)) {}

  struct Made {
    BatchNumber number;
    std::vector<Bytes> parts;
    WriteSequence last;
  };
  Made make(std::vector<SliceSpec> slices, std::vector<wire::Mark> marks = {}, std::string name = {},
            uint32_t parts = 1) {
    std::sort(slices.begin(), slices.end(), [](const SliceSpec& a, const SliceSpec& b) { return a.image < b.image; });
    journal::BatchHeader header{.cluster = kTestCluster,
                                .source = source_,
                                .generation = generation_,
                                .number = next_,
                                .parts = parts,
                                .kind = kind,
                                .supersedes_first = supersedes_first,
                                .supersedes_last = supersedes_last,
                                .incarnation = incarnation,
                                .nonce = nonce,
                                .first = counter_.next(),
                                .label = label,
                                .point_name = std::move(name),
                                .previous = previous_};
    if (supersedes_first.value != 0) header.number = supersedes_last.next();
    journal::SegmentHead head{.batch = header};
    for (const wire::Mark& mark : marks) {
      counter_ = counter_.next();
      head.marks.push_back({counter_, mark});
    }
    for (const SliceSpec& s : slices) {
      counter_ = counter_.next();
      head.images.push_back({.image = s.image,
                             .epoch = s.epoch,
                             .parent = s.parent,
                             .first = counter_,
                             .last = counter_,
                             .size = s.size});
    }
    head.batch.last = counter_;
    Made made{.number = head.batch.number, .last = {incarnation, counter_}};
    std::vector<Sha256> digests;
    for (uint32_t part = 0; part < parts; ++part) {
      journal::SegmentHead own = head;
      own.batch.part = part;
      if (part != 0) own.marks.clear();
      Bytes payload;
      fill(own, slices, part, parts, payload);
      auto bytes = journal::write_segment(std::move(own), payload);
      TM_CHECK(bytes.is_ok(), bytes.status().message().c_str());
      digests.push_back(journal::sha256(*bytes));
      made.parts.push_back(std::move(*bytes));
    }
    previous_ = journal::batch_digest(digests);
    next_ = head.batch.number.next();
    label.ns += 1'000'000'000;
    supersedes_first = supersedes_last = BatchNumber(0);
    kind = journal::BatchKind::kNormal;
    return made;
  }

  const std::string& source() const { return source_; }
  const Uuid& generation() const { return generation_; }
  Counter counter() const { return counter_; }
  void restart() {
    incarnation = incarnation.next();
    nonce = test_uuid(incarnation.value, 0x0E);
    counter_ = Counter(0);
  }
  void set_chain(BatchNumber next, Sha256 previous) { next_ = next; previous_ = previous; }
  const Sha256& previous() const { return previous_; }

  Incarnation incarnation{1};
  Uuid nonce = test_uuid(1, 0x0E);
  WallTime label{1'795'255'200'000'000'000};
  journal::BatchKind kind = journal::BatchKind::kNormal;
  BatchNumber supersedes_first, supersedes_last;

 private:
  // Extents are dealt to the parts in order.
  static void fill(journal::SegmentHead& head, const std::vector<SliceSpec>& slices, uint32_t part, uint32_t parts,
                   Bytes& payload) {
    size_t total = 0, index = 0;
    for (const SliceSpec& s : slices) total += s.pieces.size();
    for (uint32_t i = 0; i < slices.size(); ++i) {
      for (const Piece& p : slices[i].pieces) {
        if (index++ * parts / total != part) continue;
        if (p.data.empty()) {
          head.extents.push_back({i, journal::ExtentKind::kZero, {p.offset, p.zeros}, 0});
        } else {
          head.extents.push_back({i, journal::ExtentKind::kData, {p.offset, p.data.size()}, payload.size()});
          payload.insert(payload.end(), p.data.begin(), p.data.end());
        }
      }
    }
  }

  const std::string source_;
  const Uuid generation_;
  BatchNumber next_{1};
  Sha256 previous_{};
  Counter counter_;
};

inline wire::Mark create_mark(uint64_t event, const std::string& origin, uint64_t inode, const Uuid& image,
                              const std::string& name, uint64_t parent = 1,
                              wire::NodeKind kind = wire::NodeKind::kImage) {
  wire::Mark m;
  m.kind = wire::MarkKind::kCreate;
  m.number = EventNumber(event);
  m.origin = origin;
  m.node.inode = InodeNumber(inode);
  m.node.parent = InodeNumber(parent);
  m.node.image = image;
  m.node.kind = kind;
  m.node.mode = 0644;
  m.node.event = m.number;
  m.name = name;
  return m;
}
inline wire::Mark open_mark(const std::string& origin, uint64_t inode, const Uuid& image) {
  wire::Mark m;
  m.kind = wire::MarkKind::kOpenWrite;
  m.origin = origin;
  m.node.inode = InodeNumber(inode);
  m.node.image = image;
  return m;
}
inline wire::Mark unlink_mark(uint64_t event, const std::string& origin, uint64_t inode, const Uuid& image,
                              const std::string& name, uint64_t parent = 1) {
  wire::Mark m = create_mark(event, origin, inode, image, "", 0);
  m.kind = wire::MarkKind::kUnlink;
  m.old_parent = InodeNumber(parent);
  m.old_name = name;
  m.replaced = image;
  m.replaced_inode = InodeNumber(inode);
  m.node.nlink = 0;
  return m;
}
inline wire::Mark rename_mark(uint64_t event, const std::string& origin, uint64_t inode, const Uuid& image,
                              const std::string& from, const std::string& to, uint64_t from_parent = 1,
                              uint64_t to_parent = 1) {
  wire::Mark m = create_mark(event, origin, inode, image, to, to_parent);
  m.kind = wire::MarkKind::kRename;
  m.old_parent = InodeNumber(from_parent);
  m.old_name = from;
  return m;
}

inline Bytes pattern(uint64_t seed, size_t bytes) {
  Bytes out(bytes);
  uint64_t x = seed * 0x9E3779B97F4A7C15ull + 1;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    x ^= x << 13; x ^= x >> 7; x ^= x << 17;
    store_le(out.data() + i, x);
  }
  return out;
}

}  // namespace tidemark::replica
