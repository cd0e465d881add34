// The host's engine: images, their copies, the mirror link, tenures and the name space, over an Env.
//
// Callback-based and single-threaded; knows nothing of FUSE. README.md draws the way of a write. Requests on one image
// that overlap are ordered by its RangeLock; a callback may run before the call returns. Buffers stay the caller's and
// must be valid until the callback ran.
//
// Each file engine_*.cc has its section below, which says what it is about; engine.cc is start, stop and timers.
//
// Beside it, each a class: verifier.h, scrubber.h, branch_files.h, pace.h (how fast copies are made level), which use
// the engine by copies.h (engine_copies.cc); known_shared.h, handle_table.h, name_cache.h, mirror.h (the link).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "fs/engine_types.h"
#include "fs/handle_table.h"
#include "fs/image.h"
#include "fs/mirror.h"
#include "fs/name_cache.h"
#include "fs/names_store.h"
#include "fs/stage_buffers.h"
#include "journal/journal.h"
#include "shared/base/task.h"
#include "shared/image/store.h"
#include "shared/io/env.h"

namespace tidemark::metrics { class Registry; }

namespace tidemark::fs {

class BranchFiles;
class Copies;
class KnownShared;
class Pace;
class ReplicaClient;
class Scrubber;
class Verifier;
struct ResyncRun;

class Engine final : public journal::BlockSource {
 public:
  // Opens storage and journal (blocking: start-up only). `env` must outlive it.
  static Result<std::unique_ptr<Engine>> open(io::Env& env, EngineOptions options);
  ~Engine() override;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Connects, reconciles what a crash left, starts shipping and timers.
  void start();
  // `fn` runs when the link is up, or after `limit`.
  void when_linked(io::Duration limit, UniqueFunction<void()> fn);
  // Finishes what is in flight, flushes, gives the tenures back, closes the journal. Bounded by `timeout`.
  void stop(io::Duration timeout, Done done);
  // The same for a successor on this mount: tenures stay, their copies are flushed where they are level.
  void hand_over(io::Duration timeout, Done done);

  // ---- name space -----------------------------------------------------------------------------
  void lookup(InodeNumber parent, std::string name, AttrDone done);
  void getattr(InodeNumber inode, AttrDone done);
  InodeNumber parent_of(InodeNumber inode) const;  // as far as known, else the inode itself
  // May what is said of it be believed for a moment? Not of an image that is open here and another host's to change.
  bool may_be_cached(const wire::Attr& attr) const;
  bool may_be_cached(HandleId handle) const;
  void setattr(InodeNumber inode, SetAttr change, AttrDone done);
  // These change names once, whoever asks again: the engine where the link went, or the kernel a successor.
  void create(wire::Create request, AttrDone done, RequestId id = {});
  void unlink(InodeNumber parent, std::string name, bool directory, Done done, RequestId id = {});
  void rename(wire::Rename request, Done done, RequestId id = {});
  void readdir(InodeNumber inode, std::string after, uint32_t count_max, Callback<Result<wire::DirEntries>> done);
  void set_xattr(wire::SetXattr request, Done done, RequestId id = {});
  void statfs(Callback<Result<wire::StatFsAnswer>> done);
  // The kernel is to forget what it knows: (inode, parent, name); name empty for the inode's own data.
  void on_invalidate(UniqueFunction<void(const wire::InvalidateNotify&)> fn) { invalidate_ = std::move(fn); }
  // Before another host may change it: its attributes. Must not wait for anything.
  void on_giving_up(UniqueFunction<void(InodeNumber)> fn) { giving_up_ = std::move(fn); }

  // ---- images ---------------------------------------------------------------------------------
  void open_image(InodeNumber inode, Callback<Result<HandleId>> done, RequestId id = {});
  // `answer` is called before this returns: only then may the handle's number be another's.
  void release(HandleId handle, UniqueFunction<void()> answer = {});
  // As a handle that is closed at once, of which no successor hears. At most a request's size. EINTR once it has waited
  // for longer than `limit` and could be answered by nobody at that time.
  void peek(InodeNumber inode, uint64_t offset, MutableByteSpan out, io::Duration limit, Callback<Result<size_t>> done,
            uint64_t tag);
  uint64_t size_of(HandleId handle) const;                // bytes; 0: no such handle
  // `tag` names the request for interrupt(); 0: it cannot be interrupted.
  void read(HandleId handle, uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Result<size_t>> done,
            uint64_t tag = 0);
  // Whether a write by one who may not set them takes set-id bits of the image's mode; takes them.
  bool has_set_id(HandleId handle) const;
  void take_set_id(HandleId handle, Done done);
  // `at_end`: of a file opened with O_APPEND. `offset` is where the kernel believes the end to be.
  void write(HandleId handle, uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Result<size_t>> done,
             uint64_t tag = 0, bool at_end = false);
  void flush(HandleId handle, io::IoMode mode, Done done, uint64_t tag = 0);
  // A request that has not changed anything yet (it waits for a tenure, the link, a recovery) is answered EINTR.
  void interrupt(uint64_t tag);
  enum class Fallocate : uint8_t { kAllocate, kAllocateKeepSize, kPunch, kZero, kZeroKeepSize };
  void fallocate(HandleId handle, Fallocate what, Extent extent, Done done, uint64_t tag = 0);
  // SEEK_DATA or SEEK_HOLE; ENXIO past the end.
  void seek(HandleId handle, uint64_t offset, bool data, Callback<Result<uint64_t>> done);
  // The journal can no longer be relied on: stop and start anew, which recovers.
  void on_fatal(UniqueFunction<void(const Status&)> fn) { fatal_ = std::move(fn); }
  // Has to be there before a brick hangs; must outlive the engine's requests.
  void set_memory_keeper(MemoryKeeper* keeper) { memory_keeper_ = keeper; }
  // An operation on a brick has not ended: the engine cannot be destroyed.
  bool hangs() const;
  // Requests between their start and their answer.
  uint32_t in_flight() const { return ops_.in_use(); }
  // What waits for the shared node, each for a bounded time.
  size_t waits_for_link() const { return link_waiters_.size(); }

  // ---- control (JSON texts; shared/docs/control-api.md) ---------------------------------------
  std::string status_json();
  bool healthy(std::vector<std::string>* reasons = nullptr);
  // Gauges and counters, refreshed when somebody looks.
  void register_metrics(metrics::Registry& registry);
  void mark(std::string name, bool wait, std::chrono::seconds timeout, Callback<Result<std::string>> done);
  Verifier& verifier() { return *verifier_; }   // rereads every copy, and compares
  Scrubber& scrubber() { return *scrubber_; }   // reads both copies, and repairs the one that has rotted
  std::string set_shipping_paused(bool paused);
  // An operator's word that a replica, emptied or replaced, is to be brought level.
  void resync_replica(Callback<Result<std::string>> done);
  // Takes the empty directory of a brick that is gone as a new one; its images are filled from the shared copies.
  // `accept_loss`: an operator's word that what only the old one had is given up.
  Result<std::string> replace_brick(const std::string& directory, bool accept_loss = false);
  // Ends other hosts' tenures without their word; request and report are the JSON of control-api.md.
  void takeover(std::string request, Callback<Result<std::string>> done);
  // Requests of this image that wait for the shared node or the witness are answered EIO. How many, as JSON.
  void abort_waiting(std::string image, Callback<Result<std::string>> done);
  std::string branch_directory() const;
  // What this host had written and lost to another's tenure that was taken by force.
  std::vector<Branch> branches();
  std::vector<std::string> notes();
  std::string journal_json();
  void set_policy(std::string image, std::string mirror, Callback<Result<std::string>> done);
  void set_missing_features(std::vector<std::string> features) { missing_features_ = std::move(features); }

  // journal::BlockSource
  void read_block(const ImageId& image, Extent extent, Wanted wanted, MutableByteSpan out,
                  Callback<Status> done) override;

 private:
  enum : kv::Table { kTableAttr, kTableEntry, kTableFlag, kTableMeta };

  Engine(io::Env& env, EngineOptions options);
  Status open_all();
  Status load_flags();
  Status keep_bricks();
  void put_flags(kv::WriteBatch& batch) const;
  Status keep_runs(const std::vector<image::KnownRun>& runs);

  // ---- engine_request.cc: the life of a request, from the gate to its answer
  Op* take_op(Image& image, OpKind kind, io::IoMode mode);
  void recycle(Op* op);
  bool gate(Op* op);
  bool refuse(Op* op, const Status& status);
  void note_failed(const Op& op);
  void park(Op* op);
  void unpark(Image& image);
  void unpark_later(Image& image);
  void start_op(Op* op);
  void in_order(Op* op);
  void leave(Op* op, Result<size_t> result);
  void deactivate(Image& image);
  void step_back(Op* op);
  // ---- engine_read.cc
  void read_in_order(Op* op);
  bool lease_over(const Image& image) const;
  bool lost_to_another(Op* op);
  void read_remote(Op* op);
  void finish_read(Op* op, Status status);
  // ---- engine_write.cc: the hot path
  bool follows_filling(const Op& op) const;
  uint64_t to_fill(const Op& op, uint64_t from) const;
  void settle_stale(const Op& op, bool done);
  void prepare(Op* op);
  void issue(Op* op);
  void issue_remote(Op* op);
  void issue_local(Op* op);
  void answered(Op* op);
  bool issue_second(Op* op);
  void settle(Op* op);
  void settle_local_failed(Op* op);
  void set_unanswered_aside();
  void finish_op(Op* op, Status status);
  void extend_then_write(Op* op, uint64_t new_size);
  uint64_t put_at_end(Op* op);
  // ---- engine_failure.cc: bricks that fail
  bool shared_whole(const Image& image) const;
  bool own_copy_failed(Image& image, const Status& why);
  void copies_apart(Image& image);
  void writes_lost(Image& image, std::string_view how);
  void set_lost_writes(Image& image, bool lost);
  void tell_behind(Image& image);
  Task<void> say_behind(Image& image);
  void answer_untold(Image& image);
  void apply_again(Image& image);
  void try_failed_copies();
  Status open_failed_copy(Image& image);
  Task<void> reopen_copy(Image& image);
  void copy_damaged(ImageId id, const Status& why);
  bool was_cut(const ImageId& id) const;
  void note_cut(const ImageId& id);
  void shared_damaged(Image& image, const Status& why);
  Task<bool> mark_to_compare(Image& image);
  // ---- engine_hang.cc: bricks that hang
  void copy_overdue(ImageId id);
  void give_up_local(Image& image, const Status& why);
  void give_up(Op* op, const Status& why);
  bool landed(Op* op, uint32_t number);
  Task<Status> on_copy(Image& image, UniqueFunction<void(Callback<Status>)>& start);
  // ---- engine_sync.cc: syncs that fail
  Task<Status> sync_copy(Image& image);
  void own_sync_failed(const ImageId& id);
  void note_shared_doubt(Image& image, LossId level, LossId now);
  LossId own_loss(const Image& image) const;
  LossId shared_loss(const Image& image) const;
  Task<Status> write_own_again(Image& image);
  Task<Status> write_own_unit(Image& image, Extent unit);
  Task<void> mend_then_flush(Image& image);
  Task<Status> write_shared_again(Image& image, Extent unit, bool host_wins, uint64_t* repaired);
  Task<Status> write_shared_around(Image& image, Extent range, uint64_t* repaired);
  Task<Status> write_shared_bytes(Image& image, Extent range, ByteSpan bytes, uint64_t* repaired);
  void read_own_block(Image& image, Extent extent, MutableByteSpan out, Callback<Status> done);
  void read_shared_block(const ImageId& image, Extent extent, MutableByteSpan out, Callback<Status> done);
  // ---- engine_missing.cc: only copies that are gone
  bool only_here(const Image& image) const;
  bool reads_alone(const Image& image) const;
  void note_missing(Image& image, const Status& why);
  void note_elsewhere(Image& image);
  Status failed(const Image& image) const;
  void look_for_missing(Image& image, const Status& opened);
  bool find_missing(Image& image);
  void try_missing_copies();
  Status give_up_missing(bool accept_loss);
  Task<void> tell_missing(Image& image, Epoch epoch);
  void give_up_cut(Image& image);
  Task<bool> accept_cut_copies(std::string request, Callback<Result<std::string>>& done);
  Task<Status> accept_cut_copy(Image& image);
  // ---- engine_policy.cc: mirror = none and back
  static void keep_own(wire::Attr& attr, const wire::Attr& own);
  void take_attr(Image& image, const wire::Attr& attr);
  bool host_only(const Image& image) const;
  static bool asks_none(const wire::SetXattr& request);
  Status before_policy(const wire::SetXattr& request);
  Task<void> after_policy(Image& image);
  Status note_only_copy(Image& image);
  void policy_seen(Image& image, uint8_t mirror);
  Task<Status> ask_policy(Image& image);
  Task<Status> all_dirty(Image& image, uint64_t size);
  Task<Status> all_apart(Image& image);
  Task<void> mirror_again(Image& image);
  // ---- engine_flush.cc
  void start_flush(Op* op);
  void settle_flush(Op* op);
  void clean_idle_images();
  Task<void> ask_after_shared(Image& image);
  // ---- engine_rebuild.cc: another shared node
  Task<Status> greeted(wire::Connection& link, const wire::HelloAnswerMore& hello);
  Task<Status> check_shared(wire::Connection& link, const wire::HelloAnswerMore& hello);
  using CopiesById = std::map<ImageId, const image::ImageMetadata*>;
  std::vector<wire::DirEntry> names_to_report(const CopiesById& copies);
  Task<Status> report(wire::Connection& link);
  Task<Status> adopt_rebuilt(wire::Connection& link);
  Task<Status> push_all(const wire::Attr& attr);
  bool alone_before_crash(const ImageId& id) const;
  wire::ReportEntry report_of(const wire::DirEntry& known, const image::ImageMetadata* copy);
  // ---- engine_link.cc: link lost and back
  void link_up(const wire::HelloAnswer& hello);
  void link_down();
  void apply(Image& image, MirrorEvent event);
  Task<Result<wire::Resumed>> say_resumed(Image& image, Epoch epoch, uint8_t alone);
  Task<void> resume(Image& image);
  Task<void> not_resumed(Image& image, Status why);
  void note_alone(Image& image);
  void check_loss(Image& image, LossId loss);
  void fence(Image& image);
  void refused(Image& image, const Status& why);
  Task<bool> wait_link(io::Duration limit);
  Task<void> call_when_linked(io::Duration limit, UniqueFunction<void()> fn);
  // ---- engine_tenure.cc: getting the right to write
  void want_tenure(Image& image, bool wait);
  Status make_only_copy(Image& image);
  Task<void> acquire(Image& image, uint32_t wait_ms);
  uint8_t copy_absent(const Image& image) const;
  Task<Status> take_grant(Image& image, wire::Grant grant);
  Task<Status> yield_unused(const ImageId& id, Epoch epoch);
  Task<Status> adopt_size(Image& image, uint64_t size, Generation generation);
  void fail_parked(Image& image, const Status& status);
  void take_up_tenures();
  // ---- engine_yield.cc: giving a tenure back
  void recalled(const wire::RecallNotify& message);
  void try_yield(Image& image);
  void yield_later(Image& image);
  struct HandoverCut { Counter counter; bool staged = false; std::vector<ImageId> without; };   // withheld ones
  Task<HandoverCut> handover_cut();
  bool has_all(const HandoverCut& cut, const ImageId& image) const;
  bool ships_as_now(const Image& image, const HandoverCut& cut) const;
  Task<Status> yield_at(const Image& image, Epoch epoch, const HandoverCut& cut);
  Task<void> yield(Image& image);
  void tenure_ended(Image& image);
  Task<void> give_back(ImageId id);
  Task<Status> take_and_yield(wire::Attr attr);
  Task<std::optional<wire::Attr>> attr_now(ImageId id);
  void take_to_give_back(const wire::Attr& attr);
  // `stands`: looked at before the shared node is asked; if it does not, it is not asked.
  Task<Status> flush_both(Image& image, UniqueFunction<bool()> stands = {});
  // ---- engine_fence.cc: tenures taken by force
  Task<Status> set_aside(Image& image, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes);
  Task<Status> settle_fence(Image& image, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes);
  Task<void> after_fence(Image& image);
  void fence_handles(Image& image);
  bool fence_inherited(Image& image);
  bool standing_in(const Image& image) const;
  Task<Result<std::vector<Extent>>> shared_extents(Image& image, uint64_t size);
  void record_whole(Image& image, const std::vector<Extent>& extents, const wire::TenureParent& parent);
  Task<void> stage_whole(Image& image);
  Task<void> do_takeover(std::string request, Callback<Result<std::string>> done);
  // ---- engine_witness.cc: going on alone where the witness must say so first
  void wait_for_vote(Image& image);
  void want_votes();
  Task<void> want_votes_later();
  Task<void> ask_witness(Image& image);
  void take_verdict(Image& image, const Result<net::HttpResponse>& answer);
  Task<void> go_on_voted(Image& image);
  Task<void> ask_unless_linked(Image& image);
  Task<void> ask_terms(Image& image);
  void want_terms(size_t at_least);
  std::string without_vote() const;
  wire::Mark mark_of(Image& image, wire::MarkKind kind);
  // ---- engine_fill.cc: an own copy that lacks something
  Task<void> fill(Image& image);
  Task<Status> fill_region(Image& image, uint64_t region);
  Task<Status> fill_unit(Image& image, Extent unit);
  Task<void> fill_before(Op* op);
  Task<Status> fill_for(Op& op);
  Task<Status> sync_level(Image& image);
  Task<Status> level(Image& image, uint64_t map_cut, std::vector<uint64_t> regions);
  Task<Status> tell_level(Image& image, uint64_t map_cut, Bytes regions, bool stale = false);
  Task<Status> level_all(Image& image, Epoch epoch, const std::vector<uint64_t>& filled);
  Task<Result<wire::Grant>> ask_map(const Image& image, uint8_t copy_absent);
  // ---- engine_repair.cc: read errors of the own copy
  void repair_read(Image& image, Extent extent);
  Task<void> repair_own(Image& image, Extent extent);
  // ---- engine_resync.cc: a shared copy that lacks something
  Task<void> resync(Image& image);
  Task<Status> make_equal(Image& image, bool host_wins, std::vector<RegionIndex> regions, uint64_t region_bytes,
                          uint64_t* repaired);
  Task<Status> make_regions_equal(Image& image, bool host_wins, const std::vector<RegionIndex>& regions,
                                  uint64_t region_bytes, uint64_t* repaired);
  Task<Status> sync_equal(Image& image, const ResyncRun& run);
  Task<Status> tell_apart(Image& image, const ResyncRun& run);
  Task<Status> tell_equal(Image& image, const ResyncRun& run);
  Task<Status> resync_regions(Image& image, const ResyncRun& run, std::vector<RegionIndex> regions, uint64_t bytes,
                              uint64_t* repaired);
  Task<Status> make_unit_equal(Image& image, Extent unit, bool host_wins, uint64_t* repaired);
  Task<Status> copy_to_shared(Image& image, Extent piece, ByteSpan bytes);
  Task<Status> send_repair(Image& image, Extent piece, ByteSpan bytes);
  Task<Status> copy_to_host(Image& image, Extent piece);
  // ---- engine_recovery.cc: after a crash
  Task<void> recover_all();
  Task<void> recover(journal::DirtyImage dirty);
  Task<Status> reconcile(Image& image, journal::DirtyImage dirty);
  Task<Status> level_after_crash(Image& image, journal::DirtyImage dirty);
  Task<Status> recover_alone(Image& image, const journal::DirtyImage& dirty, bool decides, Status why);
  Task<Status> keep_tail(Image& image, journal::DirtyImage dirty);
  // ---- engine_succession.cc: a run that takes over from another on the same mount
  void remember(Image& image);
  void take_over_handles();
  void serve(Image& image);
  Task<bool> carry_on(ImageId id, const journal::DirtyImage* dirty);
  Task<void> carry_on_clean(ImageId id);
  Task<void> hand_over_task(io::Duration timeout, Done done);
  // ---- engine_namespace.cc
  Task<void> do_lookup(InodeNumber parent, std::string name, AttrDone done);
  Task<void> do_getattr(InodeNumber inode, AttrDone done);
  Task<void> do_setattr(InodeNumber inode, SetAttr change, AttrDone done);
  Status may_resize(HandleId handle, uint64_t size);
  Task<void> do_create(wire::Create request, AttrDone done, RequestId id);
  Task<void> do_unlink(wire::Unlink request, Done done, RequestId id);
  Task<void> do_rename(wire::Rename request, Done done, RequestId id);
  Task<void> do_readdir(wire::ReadDir request, Callback<Result<wire::DirEntries>> done);
  Task<void> do_set_xattr(wire::SetXattr request, Done done, RequestId id);
  Task<void> do_statfs(Callback<Result<wire::StatFsAnswer>> done);
  template <class A, class M>
  Task<Result<A>> ask(wire::Type type, M message, io::Duration limit, bool* lost = nullptr);
  template <class M>
  Task<Status> change_name(wire::Type type, M request, std::optional<wire::Attr> over, RequestId id);
  Task<Result<InodeNumber>> begin_change(InodeNumber parent, std::string name, RequestId id);
  void end_change(RequestId id);
  Task<Status> was_done(const wire::Unlink& request, InodeNumber node, io::BootTime deadline);
  Task<Status> was_done(const wire::Rename& request, InodeNumber node, io::BootTime deadline);
  Task<Status> change_xattr(wire::SetXattr request, RequestId id);
  Task<Result<wire::Attr>> look_at(InodeNumber parent, std::string name, io::Duration limit);
  wire::Attr local_view(wire::Attr attr);
  Task<Result<wire::Attr>> attr_of(InodeNumber inode, ImageId image);
  Task<Result<wire::Attr>> ask_attr(InodeNumber inode, ImageId image, io::Duration limit);
  Task<Result<wire::Attr>> renew_attr(Image& image);
  Task<Status> ask_size(Image& image, uint64_t offset);
  // ---- engine_news.cc: what other hosts have done to names
  void invalidated(const wire::InvalidateNotify& message);
  Task<void> check_attr(Image& image);
  Task<void> check_name(wire::Attr image);
  Task<void> sweep_removed();
  // ---- engine_names.cc: images in memory, handles, unlink
  Image* find(const ImageId& id);
  Result<Image*> image_of(const wire::Attr& attr);
  Handle* handle_of(HandleId handle) { return handles_.find(handle); }
  void close_handle(Handle& handle);
  Result<uint32_t> take_handle(Image& im);  // its index; ENFILE
  void set_foreign_end(Image& image, std::optional<uint64_t> end);
  void interrupt_after(io::Duration limit, uint64_t tag, std::shared_ptr<io::TimerId> timer);
  void note_wrote(Handle& handle);
  void last_writer_closed(Image& image);
  void changed(const wire::Changed& change);
  void take_mark(const wire::Mark& mark);
  void lost_name(const ImageId& id);
  void drop_unused(Image& image);
  void doom(Image& image);
  void tell_dropped(Image& image);
  void attach(Image& image, uint64_t size);
  void reap();
  Task<void> learn_size(Op* op);
  Task<void> end_if_shorter(Op* op);
  Status set_flag(const ImageId& id, uint8_t flag, bool on);
  bool has_flag(const ImageId& id, uint8_t flag) const;
  Status set_flag(const Image& image, uint8_t flag, bool on) { return set_flag(image.id, flag, on); }
  void changed_now(Image& image);
  Task<void> tell_times(Image& image);
  Task<void> seek_elsewhere(Image& image, uint64_t offset, bool data, Callback<Result<uint64_t>> done);
  void seek_in(Image& image, uint64_t offset, bool data, Callback<Result<uint64_t>> done);
  void seek_remote(Image* image, uint64_t offset, bool data, Callback<Result<uint64_t>> done);
  // ---- engine_copies.cc: what those beside it use
  class CopiesOfEngine;
  std::unique_ptr<Copies> copies_of_engine();
  // ---- engine_status.cc
  Task<void> do_resync_replica(Callback<Result<std::string>> done);
  std::vector<Extent> allocated_regions(Image& image, bool data_only);
  uint64_t stale_bytes(Image& image);
  bool writes_alone(const Image& image) const;
  std::string writer_of(const wire::Attr& attr) const;
  // ---- engine_unheld.cc: what nobody held as the replica was to be brought level
  Task<Result<std::set<ImageId>>> unheld_to_send(const std::vector<wire::Attr>& images);
  Result<bool> unheld_since_word(const ImageId& image, const wire::TenureParent& parent) const;
  // ---- engine.cc
  void tick();
  Task<void> stop_task(io::Duration timeout, Done done);
  Task<Status> close_ends(io::BootTime deadline);
  Task<bool> wait_idle(Image& image);
  Task<void> lock(Image& image, RangeLock::Hold& hold);
  Task<Status> read_copy(Image& image, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer);
  Task<Status> write_copy(Image& image, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer);
  Task<Status> read_shared(Image& image, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer);
  Task<void> preserve(Image& image, Extent extent);
  Task<void> sleep(io::Duration delay);
  LossId host_loss() const { return group_->loss_id(); }

  io::Env& env_;
  const EngineOptions options_;
  std::unique_ptr<image::StorageGroup> group_;
  std::unique_ptr<NamesStore> store_;              // `names/`: name cache and per-image flags
  std::unique_ptr<NameCache> names_;
  std::unique_ptr<journal::Journal> journal_;
  std::unordered_map<ImageId, uint8_t> flags_;
  std::unordered_map<ImageId, std::unique_ptr<Image>> images_;
  std::set<ImageId> giving_back_;                  // recalled tenures that this run knows nothing of
  HandleTable handles_;
  OpPool ops_;
  std::unique_ptr<ReplicaClient> replica_;          // null: none is configured
  std::unique_ptr<net::HttpClient> witness_;        // null: none is configured
  size_t asking_terms_ = 0;                         // questions under way
  std::string terms_error_;                         // why the witness gave none when it was last asked, of any image
  VotesAsked votes_;
  const std::unique_ptr<Copies> copies_;            // what the next four use of this; their tasks end with tasks_
  const std::unique_ptr<Verifier> verifier_;
  const std::unique_ptr<Scrubber> scrubber_;
  std::unique_ptr<Pace> pace_;
  std::unique_ptr<BranchFiles> branch_files_;
  MemoryKeeper* memory_keeper_ = nullptr;
  std::map<std::pair<Op*, uint32_t>, ByteSpan> given_up_;   // parts of requests that a brick still has
  StageBuffers stage_buffers_;
  UniqueFunction<void(const wire::InvalidateNotify&)> invalidate_;
  UniqueFunction<void(InodeNumber)> giving_up_;
  UniqueFunction<void(const Status&)> fatal_;
  std::vector<std::string> missing_features_;
  std::map<uint64_t, UniqueFunction<void()>> link_waiters_;   // by number; each goes when its time is over
  uint64_t link_waits_ = 0;                         // numbers given
  io::TimerId tick_timer_;
  bool stopping_ = false;
  uint32_t recovering_ = 0;
  std::set<ImageId> unreconciled_;                  // dirty after a crash: not served before that is dealt with
  EngineCounts counts_;
  std::unique_ptr<KnownShared> known_shared_;
  std::unique_ptr<Mirror> mirror_;
  TaskGroup tasks_;
};

}  // namespace tidemark::fs
