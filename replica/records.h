// What the replica keeps in LMDB: the tables, their keys and their values. FORMAT.md specifies
// them for readers of the bytes; each value lists its fields once, in stored order, and is encoded
// by wire/codec.h. Loop thread or a worker; nothing here does I/O.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "journal/segment.h"
#include "shared/base/ids.h"
#include "shared/kv/store.h"
#include "shared/wire/codec.h"
#include "shared/wire/messages.h"

namespace tidemark::replica {

using PointId = StrongId<struct PointTag>;           // of a recovery point, from 1, in the order of application
using SegmentId = StrongId<struct SegmentTag>;       // of a kept part, from 1; 0 stands for zeros
using ImageIndex = StrongId<struct ImageIndexTag>;   // short key of an image in this store, from 1

inline constexpr uint32_t kStoreVersion = 1;
// While a batch is being applied in steps: an earlier program, which does not know of them, refuses the store.
inline constexpr uint32_t kStoreVersionInSteps = 2;

// Indexes into table_names().
enum Table : kv::Table {
  kMeta, kSources, kStreams, kBatches, kHeld, kPoints, kPointNames, kLabelBlocks, kImages, kImageVersions,
  kLeaves, kWides, kEntries, kNodes, kEvents, kMarked, kAlarms, kBranches, kSegments, kHeldSince,
  kUnnamed, kUntold, kSessions, kPieces, kTakenTenures, kGaps, kSpillLeaves, kSpillWides, kOvertaken,
  kLost, kCutOff, kFloors,
};
std::vector<std::string> table_names();

struct MetaRecord {               // kMeta: key "store"
  uint32_t version = kStoreVersion;
  Uuid store;                     // names this store: a source that meets another one resynchronizes
  Uuid cluster;
  PointId next_point{1};
  SegmentId next_segment{1};
  ImageIndex next_image{1};
  uint64_t next_held = 1;
  template <class A> void fields(A& a) { a(version, store, cluster, next_point, next_segment, next_image, next_held); }
};

struct SourceRecord {             // kSources: key source
  Uuid generation;                // the newest that has begun
  WriteSequence applied;          // everything of the source up to here was applied
  Incarnation incarnation;        // of the newest accepted batch
  Uuid nonce;
  Counter last;                   // of the newest accepted batch
  WallTime newest_label;          // of the newest applied batch
  uint8_t role = 0;               // net::Role of its certificate
  template <class A> void fields(A& a) { a(generation, applied, incarnation, nonce, last, newest_label, role); }
};

struct StreamRecord {             // kStreams: key source, 0, generation
  BatchNumber expected{1};
  Bytes last_digest;              // of batch expected-1; empty: none
  BatchNumber accepted, applied;  // newest of each
  template <class A> void fields(A& a) { a(expected, last_digest, accepted, applied); }
};

enum class BatchState : uint8_t { kPartial = 1, kHeld = 2, kApplied = 3 };
struct PartRecord {
  uint8_t present = 0;
  Bytes digest;
  SegmentId segment;
  template <class A> void fields(A& a) { a(present, digest, segment); }
};
struct BatchRecord {              // kBatches: key source, 0, generation, number
  BatchState state = BatchState::kPartial;
  journal::BatchKind kind = journal::BatchKind::kNormal;
  std::vector<PartRecord> parts;
  uint64_t common = 0;            // digest of what all parts must say alike
  Bytes digest;                   // of the whole batch, once complete
  WallTime label;
  std::string name;
  Incarnation incarnation;
  Counter first, last;
  BatchNumber supersedes_first, supersedes_last;
  PointId point;                  // 0 until applied
  template <class A> void fields(A& a) {
    a(state, kind, parts, common, digest, label, name, incarnation, first, last, supersedes_first, supersedes_last,
      point);
  }
};

struct PointRecord {              // kPoints: key point
  std::string source;
  Uuid generation;
  BatchNumber number;
  WallTime label;
  std::string name;
  journal::BatchKind kind = journal::BatchKind::kNormal;
  Incarnation incarnation;
  Counter last;
  template <class A> void fields(A& a) { a(source, generation, number, label, name, kind, incarnation, last); }
};

struct ImageRecord {              // kImages: key UUID
  ImageIndex index;
  uint8_t heard = 0;              // 1: a create mark of it has arrived from some source, 2: that it lost its name
  template <class A> void fields(A& a) { a(index, heard); }
};
struct ImageVersion {             // kImageVersions: key index (u32), point
  uint64_t size = 0;
  Epoch epoch;
  std::string source;
  WriteSequence last;
  Generation size_generation;
  template <class A> void fields(A& a) { a(size, epoch, source, last, size_generation); }
};

struct EntryVersion {             // kEntries: key parent inode, name, 0, point
  EventNumber event;
  InodeNumber inode;              // 0: the name is gone
  template <class A> void fields(A& a) { a(event, inode); }
};
struct NodeVersion {              // kNodes: key inode, point
  EventNumber event;
  wire::Attr attr;
  template <class A> void fields(A& a) { a(event, attr); }
};
struct EventRecord {              // kEvents: key event number
  uint64_t digest = 0;            // of what both records of an event must say alike
  uint8_t from_origin = 0, from_shared = 0;
  template <class A> void fields(A& a) { a(digest, from_origin, from_shared); }
};

struct SessionRecord {            // kSessions: key source
  EventNumber event;              // what it caused up to here, and has not told of, it never will
  template <class A> void fields(A& a) { a(event); }
};

struct FloorRecord {              // kFloors: key point
  EventNumber event;              // from this point on no event up to it binds a name
  template <class A> void fields(A& a) { a(event); }
};

struct AlarmRecord {              // kAlarms: key kind, 0, subject
  std::string kind, subject, text;
  WallTime first, last;
  uint64_t count = 0;
  template <class A> void fields(A& a) { a(kind, subject, text, first, last, count); }
};

struct BranchRecord {             // kBranches: key index (u32), epoch, source, 0, generation, number
  ImageId image;
  Epoch epoch, newer;             // its own epoch, and the one that was applied already
  std::string source;
  Uuid generation;
  BatchNumber number;
  Counter first, last;
  PointId point;                  // where the batch's other images went on
  template <class A> void fields(A& a) { a(image, epoch, newer, source, generation, number, first, last, point); }
};

struct LostRecord {               // kLost: key source, 0, incarnation `before`
  std::string source;
  WriteSequence after;            // what it wrote after this, in incarnations below `before`, was lost with its journal
  Incarnation before;
  template <class A> void fields(A& a) { a(source, after, before); }
};
struct CutOffRecord {             // kCutOff: key image, the first point that is without what it says
  Epoch epoch;                    // from this tenure on the image goes on upon what was lost
  std::string source;             // whose journal was lost
  WriteSequence through;
  PointId until;                  // the first point that shows all of it again. 0: none yet
  uint8_t removed = 0;            // it lost its name meanwhile
  template <class A> void fields(A& a) { a(epoch, source, through, until, removed); }
};

struct GapRecord {                // kGaps: key point
  std::vector<std::string> without;   // what the point's batch would have followed, and stands in for
  template <class A> void fields(A& a) { a(without); }
};

struct SegmentRecord {            // kSegments: key segment
  std::string source;
  Uuid generation;
  BatchNumber number;
  uint32_t part = 0;
  uint64_t prefix_bytes = 0, payload_bytes = 0;
  Bytes chunks;                   // for each: stored length (u32), checksum (u64)
  template <class A> void fields(A& a) { a(source, generation, number, part, prefix_bytes, payload_bytes, chunks); }
};

// ---- keys ---------------------------------------------------------------------------------------
Bytes stream_key(const std::string& source, const Uuid& generation);
Bytes batch_key(const std::string& source, const Uuid& generation, BatchNumber number);
Bytes image_point_key(ImageIndex image, PointId point);
Bytes leaf_key(ImageIndex image, uint64_t leaf, PointId point);
Bytes entry_key(InodeNumber parent, const std::string& name, PointId point);
Bytes node_key(InodeNumber inode, PointId point);
Bytes point_name_key(const std::string& name, PointId point);
Bytes marked_key(const std::string& source, const ImageId& image);   // also of kOvertaken
Bytes lost_key(const std::string& source, Incarnation before);
Bytes cut_off_key(const ImageId& image, PointId from);
Bytes alarm_key(const std::string& kind, const std::string& subject);
Bytes branch_key(ImageIndex image, const BranchRecord& record);
PointId point_of_key(ByteSpan key);  // the last eight bytes
inline bool starts_with(ByteSpan key, ByteSpan prefix) {
  return key.size() >= prefix.size() && std::memcmp(key.data(), prefix.data(), prefix.size()) == 0;
}

// One value. kCorruption names the table and what was expected.
template <class R>
Result<R> read_record(kv::Snapshot& snapshot, Table table, ByteSpan key) {
  auto value = snapshot.get(table, key);
  if (!value) return value.status();
  return wire::decode<R>(*value);
}
template <class R>
void put_record(kv::WriteBatch& out, Table table, ByteSpan key, const R& record) {
  out.put(table, key, wire::encode(record));
}

}  // namespace tidemark::replica
