// The messages of the mirror protocol, as structures. PROTOCOL.md specifies their bytes.
//
// Each message lists its fields once, in wire order, in `fields(archive)`; encode() and decode()
// (codec.h) both walk that list, so that the two cannot drift apart. Strings and lists are bounded
// by the frame; decode() refuses trailing bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/digest.h"
#include "shared/base/ids.h"
#include "shared/net/network.h"

namespace tidemark::wire {

inline constexpr uint16_t kProtocolVersion = 1;

// Frame types. Requests of a host are answered by a frame of the same type with the response flag
// and the same request id. kNotify types have no answer.
enum class Type : uint16_t {
  kHello = 1,
  kPing = 2,
  kReport = 3,
  // data path
  kWrite = 10, kZero = 11, kResize = 12, kFlush = 13, kRead = 14, kHash = 15, kExtents = 16, kRepair = 17,
  // tenures
  kAcquire = 20, kResume = 21, kYield = 22, kRecallNotify = 23, kLevel = 24, kStaleMap = 25,
  kTakeover = 26, kFenceSeen = 27, kTerms = 28, kYieldUnshipped = 29,
  // name space
  kLookup = 30, kGetAttr = 31, kSetAttr = 32, kCreate = 33, kUnlink = 34, kRename = 35, kReadDir = 36,
  kSetXattr = 37, kStatFs = 38, kDrop = 39, kDump = 40, kInvalidateNotify = 41,
};

// ---- connection ---------------------------------------------------------------------------------
struct Hello {                    // first frame of every connection, host to shared node
  uint16_t version = kProtocolVersion;   // highest spoken; the answer carries the one used (N or N-1)
  uint64_t features = 0;                 // bit set offered; the answer carries the common ones
  Uuid cluster;
  std::string node;                      // must be the certificate's name
  Incarnation incarnation;
  Uuid nonce;                            // of this incarnation: a known number with another nonce is refused
  Uuid journal_generation;
  uint8_t digest_algorithm = kDigestXxh3;
  uint64_t session = 0;                  // 0 opens a new session; else joins that one as a further connection
  template <class A> void fields(A& a) {
    a(version, features, cluster, node, incarnation, nonce, journal_generation, digest_algorithm, session);
  }
};
struct HelloAnswer {
  uint16_t version = kProtocolVersion;
  uint64_t features = 0;
  std::string node;
  uint64_t session = 0;
  Incarnation boot;                      // run number of tidemark-shared
  LossId loss_id;                        // of the shared copy's storage group
  EventNumber event;                     // newest name-space event
  WallTime clock;                        // label, for the status page's skew
  template <class A> void fields(A& a) { a(version, features, node, session, boot, loss_id, event, clock); }
};
// To a host that offered kFeatureHelloMore.
struct HelloAnswerMore {
  HelloAnswer base;
  Uuid store;                            // names what the shared node keeps: another one is another shared node's
  uint8_t rebuilding = 0;                // 1: it was lost, and is made anew from what hosts report
  template <class A> void fields(A& a) { a(base, store, rebuilding); }
};
// To a Hello with kFeatureMeet.
struct Met {
  HelloAnswerMore more;                  // session 0
  Incarnation known;                     // this host's newest run here, with its nonce and journal; 0: none
  Uuid known_nonce, known_generation;
  Incarnation floor;                     // of a host without a run here, or with another journal: it begins above
  std::vector<std::pair<Incarnation, Uuid>> boots;   // the shared node's newest runs, by number; the last is this one
  template <class A> void fields(A& a) { a(more, known, known_nonce, known_generation, floor, boots); }
};
struct Ping { uint64_t token = 0; template <class A> void fields(A& a) { a(token); } };

// ---- data path ----------------------------------------------------------------------------------
struct Write {  // payload: the bytes. Nothing overlapping (4 KiB granule) is in flight on any connection.
  ImageId image;
  Epoch epoch;
  WriteSequence sequence;
  uint64_t offset = 0;
  uint8_t flags = 0;                     // bit 0: FUA, durable before the answer
  template <class A> void fields(A& a) { a(image, epoch, sequence, offset, flags); }
};
struct Zero {                     // the range reads as zeros afterwards
  ImageId image;
  Epoch epoch;
  WriteSequence sequence;
  Extent extent;
  uint8_t kind = 0;                      // 0 zero, 1 discard (may be freed), 2 allocate only (contents unchanged)
  template <class A> void fields(A& a) { a(image, epoch, sequence, extent, kind); }
};
struct Resize {
  ImageId image;
  Epoch epoch;
  WriteSequence sequence;
  uint64_t size = 0;
  Generation size_generation;            // of the new size: the holder's old one plus one
  template <class A> void fields(A& a) { a(image, epoch, sequence, size, size_generation); }
};
struct Applied {                  // answer of Write, Zero, Resize
  CoordinatorSequence coordinator;
  LossId loss_id;
  template <class A> void fields(A& a) { a(coordinator, loss_id); }
};
struct Flush { ImageId image; Epoch epoch; template <class A> void fields(A& a) { a(image, epoch); } };
struct Flushed {
  LossId loss_id;
  CoordinatorSequence durable_up_to;
  template <class A> void fields(A& a) { a(loss_id, durable_up_to); }
};
struct Read {                     // answer: empty body, payload of `length` bytes (zero-filled past the end)
  ImageId image;
  uint64_t offset = 0;
  uint32_t length = 0;
  template <class A> void fields(A& a) { a(image, offset, length); }
};
struct Hash {                     // rereads storage; keyed digests of units of the range
  ImageId image;
  Extent extent;                         // at most 64 MiB
  uint32_t unit = 65536;
  DigestKey key;
  template <class A> void fields(A& a) { a(image, extent, unit, key); }
};
struct Hashes {
  std::vector<Digest128> digests;        // one a unit, the last may be of a partial unit; of zeros for holes
  std::vector<uint8_t> holes;            // one a unit: 1 if nothing is allocated there
  template <class A> void fields(A& a) { a(digests, holes); }
};
struct Extents {
  ImageId image;
  uint64_t offset = 0;
  uint32_t count_max = 0;
  template <class A> void fields(A& a) { a(image, offset, count_max); }
};
struct ExtentList {               // allocated extents from `offset` on, in order
  std::vector<Extent> extents;
  uint64_t next_offset = 0;              // ask on from here; the image's size at the end
  template <class A> void fields(A& a) { a(extents, next_offset); }
};
// A resync write of the tenure holder: makes the shared copy's range equal. Same order rules as Write;
// gets no sequence and is not journaled (the blocks were journaled when the guest wrote them).
struct Repair {
  ImageId image;
  Epoch epoch;
  Extent extent;
  uint8_t hole = 0;                      // 1: punch the extent, no payload
  template <class A> void fields(A& a) { a(image, epoch, extent, hole); }
};

// ---- tenures ------------------------------------------------------------------------------------
inline constexpr uint8_t kTaken = 2;     // TenureParent::clean: what the shared copy holds now is the main line
// Which writes of the epoch before the shared copy held when the new one began.
struct TenureParent {
  Epoch epoch;                           // 0: the image was never written
  std::string source;                    // node that held it
  WriteSequence last;                    // its last write of that tenure (counter 0: none)
  uint8_t clean = 1;                     // 0: without the holder's own word; 2: taken from it by force, or ended by a
                                         // kYieldUnshipped (kTaken)
  template <class A> void fields(A& a) { a(epoch, source, last, clean); }
};
struct Acquire {
  ImageId image;
  uint32_t wait_ms = 5000;               // how long to wait for another holder's release; 0: only if free
  uint8_t copy_absent = 0;               // 1: this host has no copy (any more): its map starts anew, all stale
  template <class A> void fields(A& a) { a(image, wait_ms, copy_absent); }
};
struct Grant {
  Epoch epoch;
  TenureParent parent;
  CoordinatorSequence coordinator;       // last given
  uint64_t size = 0;
  Generation size_generation;
  LossId loss_id;
  EventNumber event;                     // the tenure-start mark's number
  // What the asking host's own copy lacks: regions of `region_bytes`, and the map's cut to name in Level.
  uint8_t copy_known = 0;                // 0: the host has no copy that the shared node knows of (all is stale)
  uint64_t region_bytes = 0;
  uint64_t map_cut = 0;
  Bytes stale_regions;                   // bitmap, bit i of byte i/8 is region i
  template <class A> void fields(A& a) {
    a(epoch, parent, coordinator, size, size_generation, loss_id, event, copy_known, region_bytes, map_cut,
      stale_regions);
  }
};
// After a reconnect, for a tenure held: kFenced if it has moved.
struct Resume {
  ImageId image;
  Epoch epoch;
  uint64_t size = 0;
  Generation size_generation;            // the newer one is adopted on both sides
  uint8_t alone = 0;                     // 1: the shared copy may lack acknowledged writes: not read before a Flush
                                         // 2: the same, not before a Resume that says 0; 1 is of older hosts
                                         // 3: as 2, and all of the image is compared (kFeatureCompare)
                                         // 4: as 2, and nothing was written in this tenure yet (older nodes: 2 or 1)
  template <class A> void fields(A& a) { a(image, epoch, size, size_generation, alone); }
};
struct Resumed {
  LossId loss_id;                        // another one than before: every region of the DRL joins the stale map
  CoordinatorSequence coordinator;
  uint64_t size = 0;
  Generation size_generation;
  template <class A> void fields(A& a) { a(loss_id, coordinator, size, size_generation); }
};
struct Yield {  // the holder gives the tenure back (recalled, or clean stop); all is applied on both copies
  ImageId image;
  Epoch epoch;
  WriteSequence last;                    // last write of this tenure
  template <class A> void fields(A& a) { a(image, epoch, last); }
};
// kYieldUnshipped, the same of a tenure whose writes this host cannot ship as they are now: the next one's parent is
// kTaken, so that its first batch holds all of the image (kFeatureYieldUnshipped).
struct Yielded { EventNumber event; template <class A> void fields(A& a) { a(event); } };
struct RecallNotify {             // shared node to holder: another host wants to write; yield when released
  ImageId image;
  Epoch epoch;
  std::string wanted_by;
  template <class A> void fields(A& a) { a(image, epoch, wanted_by); }
};
struct StaleMap {                 // answer: Grant, with the epoch of this host's tenure (before: 0), or 0. Where nobody
                                  // holds the image, with the parent that the next tenure will have (before: none)
  ImageId image;
  uint8_t copy_absent = 0;               // as in Acquire
  template <class A> void fields(A& a) { a(image, copy_absent); }
};
struct Level {  // these regions of this host's copy are level and durable; the answer has an empty body
  ImageId image;
  uint64_t map_cut = 0;                  // regions marked again since are kept
  Bytes regions;                         // of the region size that came with that cut
  uint8_t stale = 0;                     // 1: the other way round: they are stale from now on (a local brick failed)
  template <class A> void fields(A& a) { a(image, map_cut, regions, stale); }
};

// An operator's word by way of this host: the tenures of others that are to end without theirs. The texts are the JSON
// of control-api.md.
struct Takeover { std::string request; template <class A> void fields(A& a) { a(request); } };
struct TakeoverAnswer { std::string report; template <class A> void fields(A& a) { a(report); } };
// This host knows that its tenure of `epoch` was taken, and has put aside what only it had written. Before that an
// Acquire is answered kFenced. The answer has an empty body.
struct FenceSeen { ImageId image; Epoch epoch; template <class A> void fields(A& a) { a(image, epoch); } };
// The holder's copy and the shared one are level: under which generation may either ask the witness from now on?
struct Terms { ImageId image; Epoch epoch; template <class A> void fields(A& a) { a(image, epoch); } };
struct TermsAnswer { Generation generation; template <class A> void fields(A& a) { a(generation); } };

// ---- name space ---------------------------------------------------------------------------------
// From kFifo on: names alone. What is done with them the kernel of each host does (kFeatureSpecialFiles).
enum class NodeKind : uint8_t {
  kImage = 1, kDirectory = 2, kSymlink = 3, kFifo = 4, kSocket = 5, kCharDevice = 6, kBlockDevice = 7,
};
inline bool is_device(NodeKind kind) { return kind == NodeKind::kCharDevice || kind == NodeKind::kBlockDevice; }
inline bool is_special(NodeKind kind) {
  return kind == NodeKind::kFifo || kind == NodeKind::kSocket || is_device(kind);
}

struct Attr {
  InodeNumber inode;
  InodeNumber parent;
  ImageId image;                         // nil for other kinds
  NodeKind kind = NodeKind::kImage;
  uint32_t mode = 0;                     // permission bits only
  uint32_t uid = 0, gid = 0, nlink = 1;
  uint64_t size = 0, allocated = 0;
  Generation size_generation;
  WallTime atime, mtime, ctime, btime;
  std::string target;                    // of a symlink; of a device its number (device.h)
  uint8_t mirror = 1;                    // 0: policy `mirror = none`, host-local data
  std::string holder;                    // node holding the tenure, or empty
  Epoch epoch;                           // newest granted
  EventNumber event;                     // newest event that touched this node
  std::vector<std::pair<std::string, Bytes>> xattrs;
  template <class A> void fields(A& a) {
    a(inode, parent, image, kind, mode, uid, gid, nlink, size, allocated, size_generation, atime, mtime, ctime, btime,
      target, mirror, holder, epoch, event, xattrs);
  }
};

// A metadata event. The shared node numbers it; the host that caused it journals it too, and the
// replica matches the two by number.
enum class MarkKind : uint8_t {
  kCreate = 1, kOpenWrite = 2, kTenureStart = 3, kTenureEnd = 4, kClose = 5, kRename = 6, kResize = 7,
  kUnlink = 8, kSetAttr = 9, kSnapshot = 10,
  // A host's own: its session with the shared node began. Of its events up to `node.event`, those that its stream has
  // not told of before never will be told there: a crash or a lost connection took them.
  // The shared node's own has a number: it has told all names anew, and no event up to `node.event` binds one any more.
  // Earlier replicas learn nothing from it.
  kSession = 11,
  // A host's own: the batch with it holds all of the image as it was when a tenure began that was taken by force. What
  // older epochs' batches would have brought is in it, or is no longer of the main line.
  kWhole = 12,
  // A host's own: it cannot read the image's blocks, and has left it out of the batch with it, whatever it wrote there.
  kWithheld = 13,
};
struct Mark {
  MarkKind kind = MarkKind::kCreate;
  EventNumber number;                    // 0: a host's own mark that needs none (open, close, resize, snapshot)
  std::string origin;                    // node that caused it
  WallTime label;
  Attr node;                             // the node after the event
  InodeNumber old_parent;                // rename, unlink: where the name was
  std::string old_name;
  std::string name;                      // create, rename: the name now, in node.parent
  ImageId replaced;                      // rename over, unlink: the image that lost its name, or nil
  InodeNumber replaced_inode;
  Epoch epoch;                           // tenure marks
  TenureParent parent;                   // tenure start
  template <class A> void fields(A& a) {
    a(kind, number, origin, label, node, old_parent, old_name, name, replaced, replaced_inode, epoch, parent);
  }
};

struct Lookup {                   // answer Attr
  InodeNumber parent;
  std::string name;
  template <class A> void fields(A& a) { a(parent, name); }
};
struct GetAttr {                  // answer Attr
  InodeNumber inode;
  template <class A> void fields(A& a) { a(inode); }
};
enum SetAttrMask : uint32_t {
  kSetMode = 1, kSetUid = 2, kSetGid = 4, kSetAtime = 8, kSetMtime = 16, kSetCtime = 32, kSetPolicy = 64,
};
struct SetAttr {
  InodeNumber inode;
  uint32_t mask = 0;
  Attr values;
  template <class A> void fields(A& a) { a(inode, mask, values); }
};
struct Create {
  InodeNumber parent;
  std::string name;
  NodeKind kind = NodeKind::kImage;
  uint32_t mode = 0, uid = 0, gid = 0;
  std::string target;                    // as in Attr
  uint8_t mirror = 1;
  template <class A> void fields(A& a) { a(parent, name, kind, mode, uid, gid, target, mirror); }
};
struct Unlink {
  InodeNumber parent;
  std::string name;
  uint8_t directory = 0;
  template <class A> void fields(A& a) { a(parent, name, directory); }
};
struct Rename {
  InodeNumber parent;
  std::string name;
  InodeNumber new_parent;
  std::string new_name;
  uint32_t flags = 0;                    // renameat2: 1 no-replace, 2 exchange
  template <class A> void fields(A& a) { a(parent, name, new_parent, new_name, flags); }
};
// Answer of Create, Unlink, Rename, SetAttr, SetXattr: what changed, to be journaled by the host.
// An unlinked or replaced image keeps its blocks until every host that has it open sent Drop.
// `others`: of a rename with exchange, the mark of the other name (its old_parent is 0: nothing was vacated).
struct Changed { Mark mark; std::vector<Mark> others; template <class A> void fields(A& a) { a(mark, others); } };
struct ReadDir {
  InodeNumber inode;
  std::string after;
  uint32_t count_max = 512;
  template <class A> void fields(A& a) { a(inode, after, count_max); }
};
struct DirEntry { std::string name; Attr attr; template <class A> void fields(A& a) { a(name, attr); } };
struct DirEntries {               // in name order, after `after`
  std::vector<DirEntry> entries;
  uint8_t end = 0;
  template <class A> void fields(A& a) { a(entries, end); }
};
struct SetXattr {
  InodeNumber inode;
  std::string name;
  Bytes value;
  uint8_t remove = 0;
  uint32_t flags = 0;                    // XATTR_CREATE 1, XATTR_REPLACE 2
  template <class A> void fields(A& a) { a(inode, name, value, remove, flags); }
};
struct StatFs { uint8_t unused = 0; template <class A> void fields(A& a) { a(unused); } };
struct StatFsAnswer {
  uint64_t total = 0, available = 0, files = 0;
  template <class A> void fields(A& a) { a(total, available, files); }
};
struct Drop {                     // no handle here uses the nameless image any more
  ImageId image;
  template <class A> void fields(A& a) { a(image); }
};
struct Dump {                     // answer DirEntries over all nodes, by inode; name = last component
  InodeNumber after;
  uint32_t count_max = 512;
  template <class A> void fields(A& a) { a(after, count_max); }
};
struct InvalidateNotify {         // shared node to hosts: another host changed this node or directory
  InodeNumber inode;
  InodeNumber parent;
  std::string name;
  template <class A> void fields(A& a) { a(inode, parent, name); }
};

// What a host knows of one node, for a shared node that is rebuilt.
struct ReportEntry {
  std::string name;
  Attr attr;                             // as the shared node last said; of an image held, with its present size
  Epoch own;                             // this host's newest tenure of it; 0: none
  uint8_t copy = 0;                      // here: 0 none, 1 one that may lack something, 2 whole as of its newest tenure
  uint8_t held = 0;                      // 1: the tenure `own` goes on
  uint8_t host_only = 0;                 // 1: its data are on this host alone (`mirror = none`)
  template <class A> void fields(A& a) { a(name, attr, own, copy, held, host_only); }
};
// To a shared node that said `rebuilding`: all that this host knows, in order; the answer has an empty body.
struct Report {
  uint8_t first = 0, last = 0;           // 1: of the report's parts
  WriteSequence cut;                     // nothing of this host's before now was written after it
  EventNumber event;                     // newest that it has seen
  std::vector<ReportEntry> entries;
  template <class A> void fields(A& a) { a(first, last, cut, event, entries); }
};
// The same on a connection that was met first.
struct ReportMore {
  Report base;
  Incarnation boot;                      // the shared node's newest run that this host has seen
  template <class A> void fields(A& a) { a(base, boot); }
};

// Error answer (error flag set): the Code and its message; sys_errno when one fits better.
struct Failure {
  uint8_t code = 0;
  uint32_t sys_errno = 0;
  std::string message;
  template <class A> void fields(A& a) { a(code, sys_errno, message); }
};

}  // namespace tidemark::wire
