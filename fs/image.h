// What the engine keeps of one image, and of one request on it. Engine-private; loop thread only.
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/mirror_state.h"
#include "fs/range_lock.h"
#include "fs/stale_map.h"
#include "fs/unsynced.h"
#include "journal/journal.h"
#include "shared/base/function.h"
#include "shared/base/limits.h"
#include "shared/base/status.h"
#include "shared/image/store.h"
#include "shared/io/env.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

struct Image;

enum class OpKind : uint8_t { kRead, kWrite, kZero, kDiscard, kAllocate, kResize, kFlush };

// Before a request whose session went is tried on the new one.
inline constexpr std::chrono::milliseconds kResendDelay{10};

// A guest's request on its way. Pooled; no allocation in the steady state.
struct Op {
  Image* image = nullptr;
  OpKind kind = OpKind::kRead;
  io::IoMode mode = io::IoMode::kQueued;
  Extent extent;                       // kResize: offset is the new size
  ByteSpan data;                       // kWrite: stays valid until done
  MutableByteSpan out;                 // kRead
  Callback<Result<size_t>> done;       // bytes read; 0 for others
  RangeLock::Hold hold;

  journal::Ticket ticket;
  bool begun = false;                  // the ticket is to be given back
  bool at_least = false;               // kResize: the image grows to that size, if it is smaller
  bool within = false;                 // clipped to the image's size when it is carried out
  bool at_end = false;                 // kWrite: `extent` may not be where it is to be, which is the image's end
  bool own = false;                    // kFlush: the engine's, not a guest's
  bool filled = false;                 // its regions were filled for it: it goes before those that came later
  bool sized = false;                  // kRead: the shared node was asked how large the image is by now
  uint8_t pending = 0;                 // copies that have not answered
  bool local_asked = false, remote_asked = false;
  bool second = false;                 // kResize: the copy that was not asked is, once the one that was has it
  bool local_pending = false;          // the own copy's part is under way
  uint32_t local_number = 0;           // of that part; grows when one is given up
  Status local, remote;
  CoordinatorSequence coordinator;
  uint64_t digest = 0;
  Counter counter;                     // kFlush: covers writes finished up to it
  uint64_t unsynced = 0;               // kFlush: the image's mark when it began
  LossId loss;                         // kFlush: as the shared node answered
  Generation generation;               // kResize: of the new size
  uint64_t tag = 0;                    // names it for an interrupt
  uint64_t handle = 0;                 // kWrite: a guest's, by that handle; 0: nobody's
  Epoch epoch_before;                  // kWrite: held when it came, under this epoch; 0: it was not
  uint64_t size_before = 0;            // and the size then
  Op* next = nullptr;                  // free list
};

// Where requests come from and go back to. None is ever freed.
class OpPool {
 public:
  Op* take() {
    if (free_ == nullptr) {
      all_.push_back(std::make_unique<Op>());
      free_ = all_.back().get();
    }
    Op* op = free_;
    free_ = op->next;
    ++in_use_;
    return op;
  }
  void give_back(Op* op) {
    op->next = free_;
    free_ = op;
    --in_use_;
  }
  uint32_t in_use() const { return in_use_; }
  const std::vector<std::unique_ptr<Op>>& all() const { return all_; }   // in use and free

 private:
  std::vector<std::unique_ptr<Op>> all_;
  Op* free_ = nullptr;
  uint32_t in_use_ = 0;
};

// Control flow that waits for an operation on the own copy.
struct LocalWait {
  Callback<Status> done;               // empty: it was given up, or has ended
};

// What the witness is asked for images that wait.
struct VotesAsked {
  size_t asking = 0;                   // questions under way
  bool silent = false;                 // the last one had no answer
  bool later = false;                  // others are asked in a moment
};

// Making copies level, as `status` shows it.
struct LevelRun {
  uint64_t total = 0, done = 0;        // bytes; total 0: none is under way
  io::BootTime begun;
  bool waits = false;                  // for its turn
  uint64_t left() const { return total - std::min(total, done); }
  uint64_t rate(io::BootTime now) const;   // bytes a second so far; 0: not known yet (pace.cc)
};

// Of an image, durable; see fsck.
enum ImageFlag : uint8_t { kFlagBehind = 1, kFlagDoomed = 2, kFlagHostOnly = 4, kFlagStandIn = 8,
                           kFlagPartial = 16, kFlagCut = 32 };

struct Image {
  ImageId id;                          // constant after construction
  InodeNumber inode;                   // likewise, but for a shared node whose catalogue was made anew

  wire::Attr attr;                     // as last known from the shared node
  std::unique_ptr<image::ImageCopy> copy;
  journal::Slot slot;                  // attached with the first tenure
  bool attached = false;

  // ---- tenure
  bool held = false;
  Epoch epoch;
  wire::TenureParent parent;           // of this tenure, as it was granted
  bool acquiring = false;
  Status not_granted;                  // how the last one that was asked for was refused
  bool yielding = false;
  bool recall_wanted = false;
  bool yield_unknown = false;          // a yield was sent and not answered: the tenure may be another host's already
  std::string recall_by;
  bool kept_told = false;              // it is wanted elsewhere, and withheld: said once
  std::string taken_from;              // of this tenure, if it was taken by force: the host that lost it
  Generation terms;                    // under which the witness may be asked; 0: not known, it may not
  bool asking_terms = false, asking_witness = false;
  io::BootTime terms_asked_at;         // in this session; 0: not yet
  io::BootTime vote_asked_at;          // under these terms; 0: not yet
  bool voted = false;                  // the witness lets this host go on alone, and no new terms were asked for since
  std::string witness_error;           // why it has not recorded that this host may go on alone
  bool branch_staged = false;          // fenced: what was journaled was cut off
  std::string shared_fault;            // the shared copy is damaged: what it last answered
  std::string fence_error;             // why what only this host has could not be put aside yet
  io::BootTime try_again;              // no opportunistic Acquire before this
  bool recovering = false;             // dirty after a crash; nothing is served until reconciled
  bool size_untold = false;            // recovering: the shared node has an older one, and hears it first

  // ---- copies
  MirrorState state = MirrorState::kReadingShared;
  MirrorFacts facts;
  bool noting_alone = false;
  std::vector<Callback<Status>> noted;  // go on when that has ended
  uint32_t resuming = 0;               // questions under way which say that nothing was acknowledged alone: nothing is
  uint32_t asking_none = 0;            // requests under way that it be kept on this host alone
  bool diverged = false;               // its dirty regions are a branch, not to be written before they are in a batch
  bool own_failed = false;             // reading or writing the own copy failed while it was made equal
  bool broken = false;                 // the own copy failed; all goes to the shared one
  std::string missing;                 // what only the own copy has is not there: how, and what to do. All gets EIO
  bool elsewhere = false;              // `missing`: another host has the image, whenever it holds it
  bool accepted = false;               // the own copy was cut short, and an operator takes it as it is: all is compared
  bool missing_told = false;           // to the shared node, whose copy lacks something then; or the tenure is over
  bool refilling = false;              // it failed, in whichever run: where it is stale, it lacks own writes
  bool behind = false;  // durable flag: the own copy is not filled yet, whatever the shared node's map says
  LossId shared_loss;                  // under which the writes since the last full flush were applied
  LossId resync_loss;                  // of the copy being resynced
  LossId judged_loss;                  // as the only copy got this one, what it may have lost was looked at
  uint64_t outages = 0;                // times that writes stopped going to the shared copy
  uint64_t failures = 0;               // requests that failed after a copy may have changed, and own syncs
  uint64_t times_broken = 0;           // the own copy: what was filled before is not in what is filled now
  uint64_t syncs_failed = 0, syncs_mended = 0;   // of the own copy; mended: what they were to cover is written again
  bool shared_in_doubt = false;        // a resync or recovery has seen that a sync failed there since all was level
  bool apart = false;                  // such a one: no level before a resync
  uint64_t told_apart = 0;             // session in which the shared node heard so, and of no level since
  bool compare = false;                // the shared copy was found damaged: no level before all of it was compared
  bool lost_writes = false;            // acknowledged ones, by the only copy that had them: the next flush says so
  uint64_t map_cut = 0, map_region_bytes = limits::kRegionBytesMin;   // of the map that came with the grant
  StaleMap stale;
  uint64_t size = 0;                   // authoritative while held
  // As another host left it: a kernel that believes in an older size puts what is to be at the end elsewhere. Moved on
  // by each write that was put right, which the kernel adds to what it believes. Until the last handle is closed.
  std::optional<uint64_t> foreign_end;
  uint64_t append_end = 0;             // of the writes at the end for which room is being made; 0: none are
  uint32_t appends = 0;                // these
  Generation size_generation;
  bool resync_running = false, fill_running = false;
  LevelRun run;                        // of the resync, the fill or the recovery
  uint32_t repairing = 0;              // read repairs under way

  // ---- requests
  RangeLock order;
  uint32_t active = 0;                 // past the gate, not yet answered
  uint32_t resizes = 0;                // of these: a copy may have been asked
  std::vector<Op*> parked;             // wait before the gate
  std::vector<Op*> unknown;            // their mirror write has no known outcome
  std::vector<Op*> flushes;            // wait for the copies to be level, or for going alone
  std::deque<Op*> filling;             // writes that wait for their regions to be filled, in order of arrival
  bool filling_runs = false;
  std::vector<Op*> untold;             // their own copy failed: wait until the shared node has noted that
  bool telling = false, reopening = false, mending_own = false;
  bool hung = false;                   // an operation on the own copy was overdue since it was opened
  std::vector<std::shared_ptr<LocalWait>> local_waits;   // shared with the operations
  io::BootTime reopen_at;              // a failed copy is not tried again before
  std::vector<UniqueFunction<void()>> idle;   // called once when active falls to 0
  Unsynced unsynced;                   // writes that are finished and not yet flushed

  // ---- handles and name
  uint32_t handles = 0;                // the guests' that have it open
  uint32_t walks = 0;                  // through all of it (Walk)
  uint32_t wrote = 0;                  // handles that have written since they were opened
  bool was_followed = false;           // a tenure of this run but the newest came after another host's
  bool mirroring = false;              // mirror_again() is under way
  bool inherited_writer = false;       // one of a run before; whether the image was taken since is not known yet
  bool open_marked = false;
  bool nameless = false;               // unlinked; dropped at the last close
  bool doomed = false;                 // dropped; its blocks go once they are staged
  uint64_t doomed_batch = 0;
  WallTime mtime;
  bool mtime_pushed = true;

  uint64_t size_now() const { return held ? size : attr.size; }
  uint32_t pins = 0;                   // coroutines that refer to it
  bool in_use() const { return handles != 0 || walks != 0; }   // until then it is not dropped, whatever its name
  bool local() const { return copy != nullptr && !broken; }
  bool own_in_doubt() const { return syncs_failed != syncs_mended; }
};

// One more, while it lives.
class Count {
 public:
  explicit Count(uint32_t& counter) : counter_(counter) { ++counter_; }
  ~Count() { --counter_; }
  Count(const Count&) = delete;
  Count& operator=(const Count&) = delete;

 private:
  uint32_t& counter_;
};

// Keeps an image in memory while a coroutine refers to it.
struct Pin : Count {
  explicit Pin(Image& image) : Count(image.pins) {}
};

// While a verify or a scrub goes through all of an image: neither its copies nor the image go, though it lose its name
// and its last handle. It is no handle: nobody reads or writes by it. Engine::drop_unused() sees to what it kept.
struct Walk : Count {
  explicit Walk(Image& image) : Count(image.walks) {}
};

}  // namespace tidemark::fs
