// The write journal of one node: sequences, records, the dirty-region log (DRL), cuts, staging and
// shipping. Loop thread only. FORMAT.md specifies what is on disk.
//
// The way of one write through it (fs/ calls it in this order, holding the write's place in the
// order of overlapping requests from step 2 on):
//
//   1. is_dirty(), else mark_dirty(): the region is durably dirty before any copy changes.
//   2. while (must_preserve()) preserve(): old blocks of closed, unstaged batches are kept first.
//   3. begin(): the write gets its (incarnation, counter) and counts as in flight in the open batch.
//   4. the copies are written.
//   5. finish(): its record joins the next group commit; it is acknowledged without waiting for that.
//
// A cut closes the open batch; it is staged when all its writes have finished: records are
// consolidated, blocks read back through BlockSource (preserved ones from memory), compressed into
// an immutable segment file, shipped by HTTPS, dropped once the replica said that it is durable there.
// Time cuts coalesce while a closed batch is unstaged or shipping is paused, so that at most a few
// batches need preserving; handover cuts and named cuts always close (up to limits::kClosedBatchesMax).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/config.h"
#include "shared/base/digest.h"
#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/io/env.h"
#include "shared/wire/messages.h"

namespace tidemark::net { class HttpClient; }

namespace tidemark::journal {

enum class RecordKind : uint8_t { kWrite = 1, kZero = 2, kDiscard = 3, kResize = 4, kMark = 5 };

// Index of an attached image; dense, valid until detach or the journal's end.
struct Slot { uint32_t index = UINT32_MAX; auto operator<=>(const Slot&) const = default; };

// A write in flight. Give it back to finish() exactly once.
struct Ticket {
  WriteSequence sequence;
  Slot slot;
  RecordKind kind = RecordKind::kWrite;
  Extent extent;           // kResize: offset is the new size, length 0
  uint64_t old_size = 0;   // kResize: the size before
  uint32_t batch = 0;      // the journal's own
  bool aside = false;      // set_aside(): no cut waits for it
};

// Where staging reads blocks: the owner gives the current bytes of a copy that is whole there.
class BlockSource {
 public:
  enum class Wanted : uint8_t {
    kOwnWrites,   // of a batch: what this node wrote; what others wrote there before may be missing
    kNewest,      // of a resync: whoever wrote it
  };
  virtual ~BlockSource() = default;
  // Buffer aligned to 4096; extent aligned to 4096 (reads past the image's end give zeros).
  virtual void read_block(const ImageId& image, Extent extent, Wanted wanted, MutableByteSpan out,
                          Callback<Status> done) = 0;
};

struct Options {
  std::string directory;               // LMDB environments `journal/`, `drl/` and `spool/` below it
  std::string source;                  // node name, as the replica knows it
  Uuid cluster;
  config::Journal settings;
  // Where the mark "the journal is outdated" may stand besides `directory`: best on other disks.
  std::vector<std::string> reserve_directories;
  size_t open_records_max = 1u << 18;  // of the open batch, in memory; beyond, they are consolidated in place
  uint32_t open_serials_max = 1u << 31;   // of its stored values: each consolidation takes as many as it has records
};

// A row of what a scrub keeps, and what one digest of it is of (kept_digests.h).
inline constexpr uint64_t kKeptBlockBytes = 1u << 20, kKeptUnitBytes = 64u << 10;

// What a crash left: the owner reconciles these regions between its copies, then calls reconciled().
struct DirtyImage {
  ImageId image;
  uint64_t region_bytes = 0;
  std::vector<RegionIndex> regions;    // of the DRL
  LossId host_loss_id, shared_loss_id; // as noted before the crash
  bool alone = false;                  // writes were acknowledged without the shared copy
  Epoch epoch;                         // of the last tenure noted
  // All of it is dirty, however far it reaches: `regions` are those of the size that the journal knew, which may be old.
  bool whole = false;
};

struct ImageExtent {
  ImageId image;
  Extent extent;
};

// Whether the replica is sent every change. Degraded: the unshipped points were given up, regions are remembered alone.
enum class Shipping : uint8_t { kNormal, kDegraded, kResyncing };
std::string_view shipping_name(Shipping shipping);      // "normal", "degraded", "resyncing"

struct Point {                         // a cut
  BatchNumber batch;
  Counter counter;                     // holds every write up to it
  WallTime label;
  std::string name;                    // may be empty
  std::vector<ImageId> without = {};   // images that are withheld, and so not in it, whatever of them was written
  Status refused = {};                 // why none was made: what is changed is remembered for the replica, not when
};

struct ImageCounters {                 // for status
  uint64_t dirty_regions = 0, dirty_bytes = 0;
  uint64_t unshipped_bytes = 0;
};
struct Withheld {                      // an image whose blocks cannot be read, so that it is not shipped
  ImageId image;
  std::string why;
  uint64_t lacked_bytes = 0;           // by the replica, in whole regions
};
struct Usage {
  uint64_t records_unstaged = 0, journal_bytes = 0;
  uint64_t pending_bytes = 0;          // that wait for the journal's own disk
  int64_t unsettled_ns = 0;            // the oldest cut waits so long for requests that have no answer
  uint64_t spool_bytes = 0, spool_batches = 0, closed_batches = 0, preserved_bytes = 0;
  bool shipping_paused = false;
  std::string ship_error;              // last one, empty when all is well
  WallTime newest_durable_label;       // of the newest point durable at the replica
  BatchNumber newest_durable, newest_closed;
  int64_t rpo_ns = 0;                  // how long ago the oldest change began that is not in that point; 0: none

  Shipping shipping = Shipping::kNormal;
  std::string degraded_why;            // while it is not normal
  WallTime degraded_since;
  uint64_t limit_bytes = 0;            // of the spool, as it is now: at most half of what its disk has free
  int64_t limit_age_ns = 0;
  int64_t oldest_unshipped_ns = 0;     // age of the oldest batch of the spool
  int64_t full_in_ns = -1;             // predicted, from the recent rate, until the limit; -1: not as things go
  uint64_t resync_left_bytes = 0;      // what the replica lacks, and what of it is on its way
  uint64_t resync_sent_bytes = 0;      // by this resync
  uint64_t resyncs_ended = 0;          // since this run started
  uint64_t ship_rate = 0;              // bytes a second at most; 0: no limit
  uint64_t points_given_up = 0;        // since this run started; with `degraded_why`: for that reason too
  std::vector<std::string> names_given_up;   // the newest few
  bool needs_full_resync = false;      // another store, or one that went back: an operator's word is needed
  bool replica_empty = false;          // and it has nothing at all
  std::string disk_failure;            // of the journal's own disk; empty: none
  std::vector<Withheld> withheld;
};

std::string usage_json(const Usage& usage);                    // of `journal` in status
std::vector<std::string> usage_reasons(const Usage& usage);    // what speaks against being healthy

class Journal {
 public:
  // Opens or creates. Blocking: start-up only. The new incarnation is durable when it returns.
  static Result<std::unique_ptr<Journal>> open(io::Env& env, Options options, BlockSource& blocks);
  virtual ~Journal() = default;

  virtual Incarnation incarnation() const = 0;
  virtual Uuid nonce() const = 0;
  // Whether a run of this journal had that number and nonce. True where the number is older than those remembered.
  virtual bool knows_run(Incarnation incarnation, const Uuid& nonce) const = 0;
  // Of a journal made anew, whose first number came from a clock: this run's incarnation becomes `to`, durably, unless it
  // is above that already. Blocking. kUnavailable: something was counted in this run; the next one begins above.
  virtual Status raise_incarnation(Incarnation to) = 0;
  virtual Uuid generation() const = 0;             // of this journal; a new one after it was lost
  virtual const std::vector<DirtyImage>& dirty_after_crash() const = 0;
  // All copies of this image are equal again after a crash. When no image is left to reconcile, cuts
  // begin: the first batch of the incarnation is a resync batch over all that was dirty or unstaged.
  virtual void reconciled(const ImageId& image) = 0;
  // What this image has cannot be read for now, whatever it waits for: the others' cuts begin, or go on, without it
  // (withheld.cc). Ended by reconciled(), else once a block of it can be read.
  virtual void withhold(const ImageId& image, const Status& why) = 0;
  virtual bool withheld(const ImageId& image) const = 0;
  // Or staging's last read of it failed: with the next one it may be.
  virtual bool unreadable(const ImageId& image) const = 0;

  // ---- images ---------------------------------------------------------------------------------
  virtual Slot attach(const ImageId& image, uint64_t size) = 0;      // the same slot when attached already
  // Image removed; its records still ship. No write of it is in flight.
  virtual void detach(Slot slot) = 0;
  virtual void set_size(Slot slot, uint64_t size) = 0;               // of an attached image, changed elsewhere
  // The tenure's start, durable with the next commit and before any record of it. Also noted: loss ids.
  virtual void set_tenure(Slot slot, Epoch epoch, const wire::TenureParent& parent) = 0;
  // Durable before `done`: the state that decides the direction after a crash.
  virtual void note_copies(Slot slot, LossId host, LossId shared, bool alone, Callback<Status> done) = 0;
  virtual ImageCounters counters(Slot slot) const = 0;
  // Of the newest tenure of this source, of whichever run; 0: it has had none.
  virtual Epoch tenure_epoch(const ImageId& image) const = 0;
  // Before the newest tenure of this source another one wrote it.
  virtual bool followed(const ImageId& image) const = 0;
  // Something of it is on its way to the replica, if only that a tenure has ended.
  virtual bool unshipped(const ImageId& image) const = 0;
  // The replica lacks some of it that will be sent as of a tenure of this source's newer than `epoch`.
  virtual bool lacked_since(const ImageId& image, Epoch epoch) const = 0;

  // ---- dirty-region log -----------------------------------------------------------------------
  virtual bool is_dirty(Slot slot, Extent extent) const = 0;         // hot path: every region of it
  virtual void mark_dirty(Slot slot, Extent extent, Callback<Status> done) = 0;
  virtual std::vector<RegionIndex> dirty_regions(Slot slot) const = 0;
  virtual uint64_t region_bytes(Slot slot) const = 0;
  // While false, no region of the image is cleaned (the copies may differ) but by note_equal(). Default false.
  virtual void set_level(Slot slot, bool level) = 0;
  // Every write of the image finished up to `counter` is durable on both copies. Regions idle since then,
  // whose records are committed, are cleaned lazily (after kCleanAfter) while level.
  virtual void note_durable(Slot slot, Counter counter) = 0;
  // While false: these regions were made equal, and that is durable, with every write finished up to `counter`. Those
  // not written since, whose records are committed, are cleaned. Forgotten by set_level() and when region_bytes() grows.
  virtual void note_equal(Slot slot, const std::vector<RegionIndex>& regions, uint64_t region_bytes,
                          Counter counter) = 0;
  // What a scrub keeps of blocks (1 MiB, one digest for each 64 KiB) that both copies held alike. It is erased durably
  // before any of it is written again; kept and found only where no region is dirty (kept_digests.h).
  virtual DigestKey digest_key(Slot slot) = 0;
  virtual bool keep_digests(Slot slot, Extent block, const std::vector<Digest128>& digests) = 0;   // soon; false: not clean
  virtual std::optional<std::vector<Digest128>> kept_digests(Slot slot, Extent block) const = 0;
  virtual Counter last_finished() const = 0;                         // highest counter below which all have finished

  // ---- writes ---------------------------------------------------------------------------------
  virtual bool must_preserve(Slot slot, Extent extent) const = 0;    // hot path: false at once if no batch is closed
  // Reads and keeps the old blocks. If that fails or space is short the batch is given up (its
  // point is never shown, its blocks join the open batch) and the request goes on: no error.
  virtual void preserve(Slot slot, Extent extent, UniqueFunction<void()> done) = 0;
  virtual Ticket begin(Slot slot, RecordKind kind, Extent extent) = 0;
  // `digest`: XXH3-64 of the payload (0 for others). Applied wherever it counts, or those regions are durably stale.
  virtual void finish(const Ticket& ticket, CoordinatorSequence coordinator, uint64_t digest) = 0;
  // As finish(), for what the guest was told has failed: what a copy has there now is read when the batch is staged, and
  // the size from before counts.
  virtual void failed(const Ticket& ticket, CoordinatorSequence coordinator) = 0;
  // A write, or a zero or discard, that this node's copy has and that waits for another copy's answer: for long, maybe. Cuts
  // go on without it, and what is there now is recorded; its regions stay dirty. take_up(): as begun anew, before it is
  // sent again or given back; let_go(): nothing more is recorded of it. Both change nothing on this node's copy.
  virtual void set_aside(Ticket& ticket) = 0;
  virtual void take_up(Ticket& ticket) = 0;
  virtual void let_go(const Ticket& ticket) = 0;
  // Blocks changed without a guest's write (fill or repair of the local copy): they need preserving, not recording.
  // A metadata event; takes a counter of its own.
  virtual void mark(const wire::Mark& mark) = 0;
  // The image is no more, on no host: events that nobody asks for any more need not be kept, nor what the last run left
  // dirty of it. After detach(), if it was attached.
  virtual void forget(const ImageId& image) = 0;

  // ---- cuts, staging, shipping ----------------------------------------------------------------
  enum class CutReason : uint8_t { kTime, kSize, kNamed, kHandover, kStop };
  // Closes the open batch now. Named and handover cuts always make a point, even an empty one.
  virtual Point cut(CutReason reason, std::string name = {}) = 0;
  // OK once all up to this cut survives a power cut of this machine as immutable segments, to be shipped under these
  // numbers whatever happens; asked at a handover, before the tenure is given away, and done even while shipping is
  // paused. kCancelled: the batch was given up, cut again; kUnavailable: nothing can be staged now.
  virtual void when_staged(BatchNumber batch, Callback<Status> done) = 0;
  // The image's tenure was given back with all of it staged and durable on both copies: its regions are clean now.
  virtual void tenure_over(Slot slot) = 0;
  // `done` gets the replica's answer (JSON text of the batch's receipt) once the batch is durable
  // there; kUnavailable if shipping is paused, not configured or the journal closes first.
  virtual void when_shipped(BatchNumber batch, Callback<Result<std::string>> done) = 0;
  virtual void start_shipping(std::unique_ptr<net::HttpClient> client) = 0;
  virtual void pause_shipping(bool paused) = 0;                      // staging too; cuts coalesce
  // An operator's word that the replica, emptied or replaced, is to be brought level: `all` is everything that it must
  // hold of this source's images, of one without data an empty extent. From `done` on no crash forgets it: it goes on over
  // restarts until it is done. Asked again, it begins again.
  virtual void resync_replica(std::vector<ImageExtent> all, Callback<Status> done) = 0;
  virtual Usage usage() const = 0;
  // Not OK once the journal can no longer be relied on (a commit failed): the owner logs it, stops
  // and restarts, which recovers. No write may be acknowledged from then on that needs a new dirty region.
  virtual Status condition() const = 0;

  // ---- verify ---------------------------------------------------------------------------------
  // Freezes the image's bytes as of now for reading while writes go on: must_preserve() is true for
  // every block not yet released. One at a time.
  virtual Status freeze(Slot slot, uint64_t size) = 0;
  // Bytes as they were at freeze(): overlays preserved blocks onto `out`, which holds the current bytes.
  virtual void overlay_frozen(Extent extent, MutableByteSpan out) = 0;
  virtual void release_frozen(Extent extent) = 0;
  // Was anything in the extent changed since freeze()? Then overlay_frozen() has what was there.
  virtual bool changed_since_freeze(Extent extent) const = 0;
  virtual void end_freeze() = 0;
  virtual bool freeze_broken() const = 0;                            // preserving failed: verify again

  // Commits every record, closes and stages the open batch (bounded by `timeout`), marks the stop as clean.
  // Call when no write is in flight and the copies are level and durable, or the stop is not clean.
  virtual void close(std::chrono::milliseconds timeout, Callback<Status> done) = 0;
};

}  // namespace tidemark::journal
