// The Journal's one implementation. Its parts: journal_impl.cc (writes, commits), slots.cc (images),
// recovery.cc (opening), events.cc (metadata events), cuts.cc (cuts, giving up, compaction), preserve.cc (old blocks, freeze),
// stager.cc (closed batches into segment files), spool.cc (these files), withheld.cc (images that cannot be read),
// shipping.cc (what the shipper has sent; usage).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "journal/batch.h"
#include "journal/drl.h"
#include "journal/journal.h"
#include "journal/lacks.h"
#include "journal/outdated.h"
#include "journal/preserve.h"
#include "journal/records.h"
#include "journal/shipper.h"
#include "shared/base/task.h"
#include "shared/io/file.h"

namespace tidemark::journal {

// Counters in flight: answers "below which have all finished". A ring of flags that grows when needed.
class FinishTracker {
 public:
  void reset(uint64_t first) { first_ = end_ = first; }
  void begin(uint64_t counter);                 // counters come in order
  void finish(uint64_t counter);
  uint64_t all_finished_below() const { return first_; }

 private:
  std::vector<uint8_t> ring_ = std::vector<uint8_t>(4096);
  uint64_t first_ = 1, end_ = 1;                // [first_, end_): begun, first_ unfinished (or none)
};

class JournalImpl final : public Journal {
 public:
  JournalImpl(io::Env& env, Options options, BlockSource& blocks);
  ~JournalImpl() override;
  Status open();

  Incarnation incarnation() const override { return incarnation_; }
  Uuid nonce() const override { return nonce_; }
  bool knows_run(Incarnation incarnation, const Uuid& nonce) const override;
  Status raise_incarnation(Incarnation to) override;
  Uuid generation() const override { return generation_; }
  const std::vector<DirtyImage>& dirty_after_crash() const override { return dirty_after_crash_; }
  void reconciled(const ImageId& image) override;
  void withhold(const ImageId& image, const Status& why) override;
  bool withheld(const ImageId& image) const override { return withheld_.contains(image); }
  bool unreadable(const ImageId& image) const override { return withheld_.contains(image) || failed_once_ == image; }

  Slot attach(const ImageId& image, uint64_t size) override;
  void detach(Slot slot) override;
  void set_size(Slot slot, uint64_t size) override;
  void set_tenure(Slot slot, Epoch epoch, const wire::TenureParent& parent) override;
  void note_copies(Slot slot, LossId host, LossId shared, bool alone, Callback<Status> done) override;
  ImageCounters counters(Slot slot) const override;
  Epoch tenure_epoch(const ImageId& image) const override;
  bool followed(const ImageId& image) const override;
  bool unshipped(const ImageId& image) const override;
  bool lacked_since(const ImageId& image, Epoch epoch) const override;

  bool is_dirty(Slot slot, Extent extent) const override {
    return slots_[slot.index].uncommitted == 0 && drl_->is_dirty(slot.index, extent);
  }
  void mark_dirty(Slot slot, Extent extent, Callback<Status> done) override;
  std::vector<RegionIndex> dirty_regions(Slot slot) const override { return drl_->dirty_regions(slot.index); }
  uint64_t region_bytes(Slot slot) const override { return drl_->region_bytes(slot.index); }
  void set_level(Slot slot, bool level) override { drl_->set_level(slot.index, level); }
  void note_durable(Slot slot, Counter counter) override { drl_->note_durable(slot.index, counter.value); }
  void note_equal(Slot slot, const std::vector<RegionIndex>& regions, uint64_t region_bytes, Counter counter) override;
  DigestKey digest_key(Slot slot) override { return drl_->digest_key(slot.index, slots_[slot.index].epoch); }
  bool keep_digests(Slot slot, Extent block, const std::vector<Digest128>& digests) override {
    return drl_->keep_digests(slot.index, block, digests);
  }
  std::optional<std::vector<Digest128>> kept_digests(Slot slot, Extent block) const override {
    return drl_->kept_digests(slot.index, block);
  }
  Counter last_finished() const override { return Counter(tracker_.all_finished_below() - 1); }

  bool must_preserve(Slot slot, Extent extent) const override;
  void preserve(Slot slot, Extent extent, UniqueFunction<void()> done) override;
  Ticket begin(Slot slot, RecordKind kind, Extent extent) override;
  void finish(const Ticket& ticket, CoordinatorSequence coordinator, uint64_t digest) override;
  void failed(const Ticket& ticket, CoordinatorSequence coordinator) override;
  void abandon(const Ticket& ticket);
  void set_aside(Ticket& ticket) override;
  void take_up(Ticket& ticket) override;
  void let_go(const Ticket& ticket) override;
  void mark(const wire::Mark& mark) override;
  void forget(const ImageId& image) override;

  Point cut(CutReason reason, std::string name) override;
  void when_staged(BatchNumber batch, Callback<Status> done) override;
  void tenure_over(Slot slot) override;
  void when_shipped(BatchNumber batch, Callback<Result<std::string>> done) override;
  void start_shipping(std::unique_ptr<net::HttpClient> client) override;
  void pause_shipping(bool paused) override;
  void resync_replica(std::vector<ImageExtent> all, Callback<Status> done) override;
  Usage usage() const override;
  Status condition() const override { return condition_; }

  Status freeze(Slot slot, uint64_t size) override;
  void overlay_frozen(Extent extent, MutableByteSpan out) override;
  void release_frozen(Extent extent) override;
  bool changed_since_freeze(Extent extent) const override;
  void end_freeze() override;
  bool freeze_broken() const override { return frozen_ == nullptr || frozen_->broken; }

  void close(std::chrono::milliseconds timeout, Callback<Status> done) override;

 private:
  struct SlotState {
    ImageId image;
    uint64_t size = 0;
    Epoch epoch;
    wire::TenureParent parent;
    Generation size_generation;
    bool attached = false;           // by the owner; false: known from the last run only, or removed
    uint64_t unshipped_bytes = 0;
    uint32_t uncommitted = 0;        // commits under way that its tenure's first write must wait for
    std::vector<Callback<Status>> tenure_waiters;
  };
  using BatchPtr = std::shared_ptr<Batch>;   // shared with the I/O of its staging and preserving
  struct ReadRun;
  struct PreserveRun;
  struct PartJob;
  struct SpoolWrite;
  struct SlotBytes { uint32_t slot; uint64_t bytes; };

  // recovery.cc
  Status open_stores();
  Status load_meta(kv::Snapshot& snapshot, bool& clean);
  Status load_batches(kv::Snapshot& snapshot, BatchNumber& newest);
  Status load_records(kv::Snapshot& snapshot, std::vector<ChangeRecord>& records, BatchNumber& newest);
  Status begin_incarnation();
  void put_incarnation(kv::WriteBatch& batch);
  Status load_runs(kv::Snapshot& snapshot, const Uuid& last_nonce);
  void recover_batch(std::vector<ChangeRecord> records, std::vector<StoredMark> marks);
  void start_timers();

  // slots.cc
  uint32_t slot_of(const ImageId& image);
  void put_tenure(uint32_t slot);
  void commit_tenure(uint32_t slot);

  // journal_impl.cc
  Batch& batch_of(const Ticket& ticket);
  Batch& open_batch() { return *batches_.back(); }
  const Batch& open_batch() const { return *batches_.back(); }
  BatchImage& touch(Batch& batch, uint32_t slot, Counter counter);
  void add_record(Batch& batch, const StoredRecord& record);
  void settle(Batch& batch);                     // one write less in flight
  void refresh_clock();
  void arm_commit();
  void flush_packs();
  void commit_now(Callback<Status> done);
  void commit_work(Callback<Status> done);
  void answer_covered();
  void start_commit();
  void bound_pending();
  void commit_later(kv::WriteBatch batch, std::vector<Callback<Status>> waiting, const Status& status);
  void fail(const Status& status, const char* what);
  void tick();

  // events.cc
  void touch_ended(Batch& batch, const wire::Mark& mark, Counter counter);
  void fold_if_needed();
  void put_marks();
  void lack_if_whole(const wire::Mark& mark);

  // cuts.cc
  bool coalescing() const;
  void close_open_batch(std::string name);
  void cut_if_due();
  void new_open_batch(BatchNumber number);
  size_t closed_count() const { return batches_.size() - 1; }
  void give_up_from(size_t index, const char* why, bool everything = false);
  void give_up_held_name();
  void merge_given_up(Batch& from);
  bool overtaken(uint32_t slot, Epoch epoch) const;
  void take_as_left(Batch& batch, uint32_t slot);
  void compact_if_needed();
  struct Compaction;
  std::vector<ChangeRecord> compact(const Compaction& done, bool coarse) const;
  BatchPtr owner_of(const BatchPtr& batch) const;
  void finish_compaction(BatchPtr batch, const Compaction& done);
  void put_compacted(Batch& owner, const Compaction& done, const std::vector<ChangeRecord>& records);
  void count_preserving();

  // degrade.cc
  bool lacks_it(Counter counter) const {
    return shipping_ == Shipping::kDegraded || (shipping_ == Shipping::kResyncing && counter < resync_from_);
  }
  void note_lack(uint32_t slot, RecordKind kind, Extent extent);
  void absorb_open_batch();
  bool another_wrote(const wire::TenureParent& parent) const;
  void lack_if_followed(uint32_t slot);
  void lack_followed();
  void put_degraded();
  uint64_t free_share() const;
  uint64_t limit_bytes() const;
  uint64_t batch_bytes_max() const;
  void measure_limit();
  void check_limit();
  void want_degrade(std::string why);
  Task<void> degrade();
  std::vector<StoredMark> marks_of_staged();
  void take_over(const std::deque<StagedBatch>& given, std::vector<StoredMark> marks);
  void take_over_marks(std::vector<StoredMark> marks);
  void count_given_up(BatchNumber number, BatchKind kind, WallTime label, const std::string& name);
  Status no_point() const;               // not in normal shipping
  Status load_degraded(kv::Snapshot& snapshot);
  Status load_staged_regions(kv::Snapshot& snapshot, StagedBatch& batch);
  Status begin_degraded();
  void ask_replica();
  std::string judge_replica(const Shipper::Facts& facts);
  void begin_resync();
  bool piece_due() const;
  void next_piece();
  void resync_staged(const Batch& batch);
  void note_named(const Batch& batch);
  void end_resync();
  std::vector<ImageExtent> regions_of(const StagePlan& plan) const;

  // disk.cc
  void disk_failed(const Status& status);
  void mark_outdated();
  void try_recover_disk();
  Status reopen_stores();
  bool is_this_runs(kv::Store& store) const;
  void put_everything(kv::WriteBatch& out);
  void whole_is_dirty();

  // preserve.cc
  void needed_runs(uint32_t slot, Extent extent, std::vector<Extent>& out) const;
  BlockSource::Wanted wanted_of(uint32_t slot, Extent extent) const;
  void keep_block(uint32_t slot, uint64_t granule, ByteSpan bytes);
  void preserve_failed(uint32_t slot, Extent extent, const char* why);
  void break_freeze(const char* why);
  void drop_preserved(Batch& batch);

  // stager.cc
  Task<void> stage_loop();
  Task<Status> stage(BatchPtr batch);
  Task<void> wait_for_batch();
  Task<void> wait_until_settled(BatchPtr batch);
  std::shared_ptr<StagePlan> make_plan(const Batch& batch, std::vector<ImageExtents> extents) const;
  Task<Result<PartInfo>> stage_part(BatchPtr batch, std::shared_ptr<StagePlan> plan, uint32_t index);
  Task<Status> read_blocks(BatchPtr batch, std::shared_ptr<PartJob> job);
  void block_read(Batch& batch, PartJob& job, size_t unit, Status& status);
  Task<Status> commit_staged(BatchPtr batch, std::vector<PartInfo> parts, std::vector<ImageExtent> regions);
  void restore_piece(Batch& batch);
  Task<std::vector<ImageExtents>> consolidate_batch(BatchPtr batch);
  BatchRow row_of(const Batch& batch, BatchState state) const;
  SegmentHead part_head(const Batch& batch, const StagePlan& plan, uint32_t index) const;
  bool can_stage() const;
  void kick_stager();
  void answer_staged(BatchNumber first, BatchNumber last, const Status& status);
  // spool.cc
  Task<Status> write_spool(std::string path, Bytes bytes);
  Task<Status> sync_spool();
  void remove_spool_files(BatchNumber number, size_t parts);
  void sweep_spool();

  // shipping.cc
  void note_change(Batch& batch);
  void fill_usage(Usage& usage) const;
  void ended_shipping(const StagedBatch& batch, const std::string& receipt);
  void forget_staged(const StagedBatch& batch, const ReplicaRow& row, Callback<Status> done);
  void fail_waiters(const Status& status);
  void fail_waiters(BatchNumber batch, const Status& status);

  bool work_to_do() const;

  // withheld.cc
  struct WithheldImage {
    std::string why;
    Extent unread;                               // could not be read; length 0: not known
    uint64_t bytes = 0;                          // of its writes that were left out of batches
    io::BootTime try_at;
    bool trying = false;
    bool over = false;                           // it was read, or is reconciled: once no closed batch leaves it out
  };
  struct Unreadable { uint32_t slot; Extent extent; Status why; bool lacked; };
  bool reconciling() const;
  void all_reconciled();
  void load_withheld();
  bool leave_out_unreadable();
  bool begin_withholding(uint32_t slot, Extent unread, const Status& why);
  void end_withholding(const ImageId& image);
  void end_readable();
  bool left_out(const ImageId& image) const;
  void forget_withheld(const ImageId& image);
  void try_withheld();
  void tried(const ImageId& image, const Status& status);
  void leave_out(Batch& batch);
  void keep_back_wholes(Batch& from);
  void forget_whole(const ImageId& image);
  void count_left_out(uint32_t slot, uint64_t bytes);
  void carry_over(const Batch& batch, const std::vector<ImageExtents>& extents);
  void record_lacked(Batch& batch, const std::vector<ImageExtent>& regions);

  io::Env& env_;
  const Options options_;
  BlockSource& blocks_;
  std::unique_ptr<kv::Store> store_;
  std::unique_ptr<DirtyLog> drl_;
  std::unique_ptr<Shipper> shipper_;
  std::string spool_;

  Incarnation incarnation_;
  Uuid nonce_, generation_;
  std::map<Incarnation, Uuid> runs_;         // the newest, with their nonces
  std::vector<DirtyImage> dirty_after_crash_;
  std::set<ImageId> unreconciled_;
  std::map<ImageId, WithheldImage> withheld_;
  std::optional<Unreadable> unreadable_;         // what the batch that is staged failed over
  ImageId failed_once_;                          // its device failed as it was last staged; nil: none's did
  std::set<ImageId> sizes_unknown_;              // of images that are dirty whole, until they are attached or reconciled
  std::map<ImageId, TenureRow> known_tenures_;   // as stored, until the image has a slot
  std::string held_name_;                        // of a named cut asked for before all was reconciled
  bool hold_regions_ = false;                    // a resync batch is unstaged: the DRL keeps what it has
  Status condition_;

  WallTime opened_;
  WallTime level_until_;                         // when something began to be lacked by a replica that had everything
  std::vector<StagedBatch> staged_at_open_;

  // The limit and what follows from it (degrade.cc draws it).
  Shipping shipping_ = Shipping::kNormal;
  LackMap lacks_;
  DegradedRow degraded_;
  std::string degrade_wanted_;                   // why; empty: it is not
  std::optional<Shipper::Facts> facts_;          // the replica has answered
  Counter resync_from_;                          // writes begun before it are marked, not recorded
  uint32_t resync_rounds_ = 0;                   // pieces since nothing was lacked any more
  BatchNumber resync_end_;                       // its last batch, until the replica has it
  uint64_t resync_sent_ = 0, resyncs_ended_ = 0, points_given_up_ = 0;
  std::deque<std::string> names_given_up_;
  std::set<ImageId> gone_;                       // for good, while degraded: those of which an event may be kept
  size_t fold_at_ = limits::kEventsFoldedAt;     // so many events
  std::set<Counter> perhaps_told_;               // degraded: of the open batch's events, those that the replica may have
  BatchNumber sent_;                             // at the opening: up to it a batch may have left this host
  uint64_t free_bytes_ = UINT64_MAX;             // of the spool's disk, when last measured
  double growth_ = 0;                            // of the spool, bytes a second, smoothed
  uint64_t measured_bytes_ = 0;
  // Whose events could not be read as it was given up: those after the first, up to the second.
  std::optional<std::pair<BatchNumber, BatchNumber>> marks_unread_;

  // The journal's own disk (disk.cc).
  std::unique_ptr<OutdatedMark> outdated_;
  std::string disk_failure_;
  bool marking_outdated_ = false, ending_outdated_ = false, store_lost_ = false;
  io::BootTime reopen_at_;

  std::vector<SlotState> slots_;
  std::map<ImageId, uint32_t> slot_by_image_;
  std::map<std::pair<Incarnation, uint32_t>, ImageId> old_slots_;
  std::set<uint32_t> overtaken_at_open_;     // slots: records of a tenure before another host's, as a crash left them

  uint64_t next_counter_ = 1;
  FinishTracker tracker_;
  uint64_t finish_serial_ = 0, committed_serial_ = 0;
  WallTime label_;                               // refreshed with each commit and cut: labels need no more
  uint32_t now_seconds_ = 0;

  std::deque<BatchPtr> batches_;                 // closed ones, oldest first; the open one last
  uint32_t preserving_ = 0;                      // closed batches that still need blocks preserved
  uint64_t preserved_bytes_ = 0;
  std::unique_ptr<FrozenImage> frozen_;

  kv::WriteBatch pending_;
  size_t pending_bound_ = 0;                     // beyond so many bytes, what is undone in it is dropped
  std::vector<Callback<Status>> pending_done_;
  std::vector<std::shared_ptr<Callback<Status>>> covered_;   // of these, whom the mark answers too; shared with those
  bool commit_armed_ = false, commit_running_ = false, commit_wanted_ = false;

  Sha256 last_digest_{};                         // of the newest staged batch
  BatchNumber last_staged_;
  std::map<BatchNumber, std::vector<SlotBytes>> staged_bytes_;
  std::multimap<BatchNumber, Callback<Result<std::string>>> waiters_;
  std::multimap<BatchNumber, Callback<Status>> staged_waiters_;
  std::map<BatchNumber, std::string> receipts_;  // the newest few
  BatchNumber newest_closed_;
  bool cut_due_ = false;                         // a time cut was put off
  bool paused_ = false, closing_ = false, staging_ = false, spool_full_ = false;
  std::optional<io::BootTime> settles_since_;    // the batch that is to be staged waits for its writes
  std::string stage_error_, no_space_;
  UniqueFunction<void()> stage_wake_, retry_wake_, idle_wake_, compacted_wake_;

  io::TimerId commit_timer_, cut_timer_, clean_timer_, close_timer_, stage_timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);   // outlived by completions of I/O
  TaskGroup tasks_;
};

}  // namespace tidemark::journal
