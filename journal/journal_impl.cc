#include "journal/journal_impl.h"

#include <algorithm>

#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr io::Duration kCleanInterval = std::chrono::seconds(1);
constexpr uint32_t kCleanAfterSeconds = 10;
constexpr io::Duration kFullRetry = std::chrono::seconds(1);
constexpr size_t kPendingDroppedAt = 8u << 20;    // what is undone in it is dropped
constexpr size_t kPendingBytesMax = 256u << 20;   // of records that wait for room on the disk; beyond, the journal fails

Extent region_extent(const Ticket& t) {
  if (t.kind != RecordKind::kResize) return t.extent;
  uint64_t low = std::min(t.extent.offset, t.old_size), high = std::max(t.extent.offset, t.old_size);
  return {low, high - low};
}

}  // namespace

void FinishTracker::begin(uint64_t counter) {
  TM_CHECK(counter == end_, "counters come in order");
  if (end_ - first_ == ring_.size()) {
    std::vector<uint8_t> larger(ring_.size() * 2);
    for (uint64_t c = first_; c < end_; ++c) larger[c & (larger.size() - 1)] = ring_[c & (ring_.size() - 1)];
    ring_.swap(larger);
  }
  ring_[counter & (ring_.size() - 1)] = 0;
  ++end_;
}

void FinishTracker::finish(uint64_t counter) {
  TM_CHECK(counter >= first_ && counter < end_, "a ticket is given back once");
  size_t mask = ring_.size() - 1;
  ring_[counter & mask] = 1;
  while (first_ < end_ && ring_[first_ & mask] != 0) ++first_;
}

JournalImpl::JournalImpl(io::Env& env, Options options, BlockSource& blocks)
    : env_(env), options_(std::move(options)), blocks_(blocks), spool_(options_.directory + "/spool"),
      lacks_(options_.settings.region_bytes) {}

JournalImpl::~JournalImpl() {
  for (io::TimerId id : {commit_timer_, cut_timer_, clean_timer_, close_timer_, stage_timer_}) env_.cancel(id);
  alive_.reset();
  tasks_.cancel_all();
}

Result<std::unique_ptr<Journal>> Journal::open(io::Env& env, Options options, BlockSource& blocks) {
  auto journal = std::make_unique<JournalImpl>(env, std::move(options), blocks);
  TM_RETURN_IF_ERROR(journal->open());
  return std::unique_ptr<Journal>(std::move(journal));
}

// ---- writes -------------------------------------------------------------------------------------

Batch& JournalImpl::batch_of(const Ticket& ticket) {
  Batch& open = open_batch();
  auto distance = static_cast<uint32_t>(open.number.value) - ticket.batch;
  if (distance == 0) return open;
  uint64_t number = open.number.value - distance;
  // Given-up batches are gone: the first that follows took their records over.
  for (const BatchPtr& batch : batches_) {
    if (batch->number.value >= number) return *batch;
  }
  return open;
}

BatchImage& JournalImpl::touch(Batch& batch, uint32_t slot, Counter counter) {
  if (slot >= batch.images.size()) batch.images.resize(slots_.size());
  auto& image = batch.images[slot];
  if (image == nullptr) {
    image = std::make_unique<BatchImage>();
    image->first = counter;
  }
  image->last = std::max(image->last, counter);
  image->epoch = slots_[slot].epoch;   // its parent is taken at the cut
  return *image;
}

Ticket JournalImpl::begin(Slot slot, RecordKind kind, Extent extent) {
  Batch& batch = open_batch();
  SlotState& s = slots_[slot.index];
  Ticket t;
  t.sequence = {incarnation_, Counter(next_counter_)};
  t.slot = slot;
  t.kind = kind;
  t.extent = extent;
  t.batch = static_cast<uint32_t>(batch.number.value);
  tracker_.begin(next_counter_++);
  ++batch.in_flight;
  note_change(batch);
  BatchImage& image = touch(batch, slot.index, t.sequence.counter);
  ChangeRecord record{t.sequence.counter.value, extent.offset, extent.length, slot.index, kind};
  if (kind == RecordKind::kResize) {
    t.old_size = s.size;
    record.length = extent.offset < s.size ? s.size - extent.offset : 0;
    s.size = extent.offset;
    s.size_generation = Generation();   // until the mark that follows names it
    drl_->grow(slot.index, s.size);
    // It reads as zeros, but not at a replica that was told of a cut by pieces alone, and dropped them.
    const bool dropped = withheld_.contains(s.image) && lacks_.sent(s.image);
    if (s.size > t.old_size && dropped) note_lack(slot.index, RecordKind::kWrite, region_extent(t));
  }
  if (shipping_ != Shipping::kDegraded) {
    for_data_granules(record, [&](uint64_t first, uint64_t end) { image.needs.set(first, end); });
  }
  drl_->write_begins(slot.index, region_extent(t));
  return t;
}

void JournalImpl::finish(const Ticket& t, CoordinatorSequence coordinator, uint64_t digest) {
  Batch& batch = batch_of(t);
  BatchImage& image = *batch.image(t.slot.index);
  if (coordinator.value != 0) {
    if (image.coordinator_first.value == 0 || coordinator < image.coordinator_first) image.coordinator_first = coordinator;
    image.coordinator_last = std::max(image.coordinator_last, coordinator);
  }
  StoredRecord r;
  r.counter = t.sequence.counter;
  r.slot = t.slot.index;
  r.kind = static_cast<uint8_t>(t.kind);
  r.extent = t.extent;
  r.epoch = image.epoch;
  r.coordinator = coordinator;
  r.digest = digest;
  if (t.kind == RecordKind::kResize) {
    r.extent.length = t.extent.offset < t.old_size ? t.old_size - t.extent.offset : 0;
    put_tenure(t.slot.index);
  }
  uint64_t bytes = t.kind == RecordKind::kWrite ? t.extent.length : 0;
  image.bytes += bytes;
  slots_[t.slot.index].unshipped_bytes += bytes;
  if (lacks_it(r.counter)) {
    note_lack(r.slot, t.kind, r.extent);
    if (shipping_ == Shipping::kResyncing) kick_stager();   // it may have waited for this one
  } else {
    batch.data_bytes += bytes;
    batch.records.push_back({r.counter.value, r.extent.offset, r.extent.length, r.slot, t.kind});
    add_record(batch, r);
  }
  drl_->write_ends(t.slot.index, region_extent(t), r.counter.value, finish_serial_, now_seconds_);
  tracker_.finish(r.counter.value);
  settle(batch);
}

// Its range is still held in the order, and its batch, should it be closed, waits for it.
void JournalImpl::failed(const Ticket& t, CoordinatorSequence coordinator) {
  if (t.kind == RecordKind::kResize && t.extent.offset >= t.old_size) return abandon(t);   // nothing to read
  Ticket as = t;
  if (t.kind != RecordKind::kWrite) {
    Batch& batch = batch_of(t);
    BatchImage& image = *batch.image(t.slot.index);
    if (t.kind == RecordKind::kResize) {
      slots_[t.slot.index].size = t.old_size;
      if (batch.state != Batch::State::kOpen) image.size = t.old_size;
    }
    as.kind = RecordKind::kWrite;
    as.extent = region_extent(t);
    const ChangeRecord record{t.sequence.counter.value, as.extent.offset, as.extent.length, t.slot.index, as.kind};
    if (shipping_ != Shipping::kDegraded && !image.left_out)
      for_data_granules(record, [&](uint64_t first, uint64_t end) { image.needs.set(first, end); });
  }
  finish(as, coordinator, 0);
}

// The counter is spent as an empty record.
void JournalImpl::abandon(const Ticket& t) {
  Batch& batch = batch_of(t);
  StoredRecord r;
  r.counter = t.sequence.counter;
  r.slot = t.slot.index;
  r.kind = kAbandonedRecord;
  if (t.kind == RecordKind::kResize) {
    slots_[t.slot.index].size = t.old_size;
    if (batch.state != Batch::State::kOpen) batch.image(t.slot.index)->size = t.old_size;
  }
  if (!lacks_it(r.counter)) add_record(batch, r);
  drl_->write_ends(t.slot.index, region_extent(t), 0, 0, now_seconds_);
  tracker_.finish(r.counter.value);
  if (shipping_ == Shipping::kResyncing) kick_stager();
  settle(batch);
}

// The copy does not change any more: what it has is of the cuts that wait for the ticket, though nobody may be told of it.
// The region counts as in flight throughout.
void JournalImpl::set_aside(Ticket& t) {
  TM_CHECK(t.kind != RecordKind::kResize, "a size that nobody has answered for is of no cut");
  if (t.aside) return;
  drl_->write_begins(t.slot.index, t.extent);
  failed(t, CoordinatorSequence(0));
  t.aside = true;
}

// The other copy may be all that counts of it by the time that it is answered: it is recorded again.
void JournalImpl::take_up(Ticket& t) {
  if (!t.aside) return;
  const Ticket before = t;
  t = begin(before.slot, before.kind, before.extent);
  let_go(before);
}

void JournalImpl::let_go(const Ticket& t) {
  drl_->write_ends(t.slot.index, t.extent, t.sequence.counter.value, 0, now_seconds_);
}

void JournalImpl::add_record(Batch& batch, const StoredRecord& record) {
  if (!commit_armed_) refresh_clock();
  ++finish_serial_;
  if (batch.pack.full()) pending_.put(kRecordsTable, record_key(batch.number, batch.next_serial++), batch.pack.take());
  StoredRecord labelled = record;
  labelled.label = label_;
  batch.pack.add(incarnation_, labelled);
  arm_commit();
}

void JournalImpl::settle(Batch& batch) {
  --batch.in_flight;
  if (batch.state == Batch::State::kOpen) {
    if (batch.data_bytes >= options_.settings.cut_bytes && !coalescing()) close_open_batch({});
    else compact_if_needed();
  } else if (batch.in_flight == 0 && batch.when_drained) {
    std::exchange(batch.when_drained, {})();
  }
}

// ---- commits ------------------------------------------------------------------------------------

void JournalImpl::refresh_clock() {
  label_ = env_.wall();
  now_seconds_ = static_cast<uint32_t>(env_.now().ns / 1'000'000'000);
}

void JournalImpl::arm_commit() {
  if (commit_armed_ || closing_) return;
  commit_armed_ = true;
  commit_timer_ = env_.after(options_.settings.commit_interval, [this] {
    commit_armed_ = false;
    refresh_clock();
    start_commit();
  });
}

void JournalImpl::flush_packs() {
  for (const BatchPtr& batch : batches_) {
    if (!batch->pack.empty()) pending_.put(kRecordsTable, record_key(batch->number, batch->next_serial++), batch->pack.take());
  }
  if (lacks_.changed() && no_space_.empty()) lacks_.put_changed(pending_);
}

void JournalImpl::commit_now(Callback<Status> done) {
  pending_done_.push_back(std::move(done));
  start_commit();
}

// Of the loops that send, stage and give up: what they do makes the room, or the idle moment, that a disk which failed needs.
// So they wait for the mark at the longest: what was to be committed stays pending in its order, and the mark covers a crash.
void JournalImpl::commit_work(Callback<Status> done) {
  auto once = std::make_shared<Callback<Status>>(std::move(done));   // shared by the commit and the mark: the first answers
  covered_.push_back(once);
  commit_now([once](Status status) {
    if (*once) std::exchange(*once, {})(std::move(status));
  });
  if (drl_->blind()) answer_covered();
}

void JournalImpl::answer_covered() {
  for (auto& once : std::exchange(covered_, {})) {
    if (*once) std::exchange(*once, {})(Status::ok());
  }
}

// What waits for a disk that hangs or fails: the records are consolidated again and again, each time in place of those before.
void JournalImpl::bound_pending() {
  if (pending_.bytes() < pending_bound_) return;
  pending_.drop_superseded();
  pending_bound_ = std::max(kPendingDroppedAt, 2 * pending_.bytes());
}

void JournalImpl::start_commit() {
  bound_pending();
  if (commit_running_) {
    commit_wanted_ = true;
    return;
  }
  if (store_lost_) {                 // whoever waits waits for the next store
    if (pending_.bytes() < kPendingBytesMax) return;
    fail(Status(Code::kIoError, "too much waits for a disk that fails: " + disk_failure_), "records");
    for (auto& done : std::exchange(pending_done_, {})) done(condition_);
    return;
  }
  flush_packs();
  if (pending_.empty() && pending_done_.empty()) return;
  commit_running_ = true;
  // What the replica lacks is held back while the disk takes nothing, so that what waits does not grow with time.
  uint64_t serial = lacks_.changed() ? committed_serial_ : finish_serial_;
  pending_bound_ = kPendingDroppedAt;
  auto batch = std::make_shared<kv::WriteBatch>(std::exchange(pending_, {}));   // shared: tried again if the disk is full
  store_->commit(*batch, [this, serial, batch, alive = std::weak_ptr<bool>(alive_),
                          waiting = std::exchange(pending_done_, {})](Status status) mutable {
    if (alive.expired()) return;
    commit_running_ = false;
    bool goes_on = !status && !closing_ && outdated_ != nullptr && batch->bytes() < kPendingBytesMax;
    if (goes_on) {
      store_lost_ = status.code() != Code::kOutOfSpace;
      commit_later(std::move(*batch), std::move(waiting), status);
      return disk_failed(status);
    }
    no_space_.clear();
    if (status) committed_serial_ = serial;
    else fail(status, "records");
    bool again = std::exchange(commit_wanted_, false);
    for (auto& done : waiting) done(status);
    if (alive.expired()) return;
    std::erase_if(covered_, [](const auto& once) { return !*once; });
    if (again) start_commit();
  });
}

// The disk is full: the store stands as it was. Nothing of this is lost meanwhile: what is not committed stays in its
// dirty regions, which are kept until it is. Those who wait for the commit wait for room.
void JournalImpl::commit_later(kv::WriteBatch batch, std::vector<Callback<Status>> waiting, const Status& status) {
  batch.append(std::exchange(pending_, {}));
  pending_ = std::move(batch);
  for (auto& done : std::exchange(pending_done_, {})) waiting.push_back(std::move(done));
  pending_done_ = std::move(waiting);
  if (no_space_.empty()) kLog.warning("no_space", {{"status", status}, {"effect", "tried again until there is room"}});
  no_space_ = status.with_context("journal").to_string();
  commit_wanted_ = false;
  env_.cancel(commit_timer_);
  commit_armed_ = true;
  commit_timer_ = env_.after(kFullRetry, [this] {
    commit_armed_ = false;
    refresh_clock();
    start_commit();
  });
}

void JournalImpl::fail(const Status& status, const char* what) {
  // What did not become durable is covered by the dirty-region log; no region is cleaned any more.
  hold_regions_ = true;
  if (condition_) kLog.error("commit_failed", {{"what", what}, {"status", status}, {"effect", "restart to recover"}});
  condition_ = status.with_context("journal");
}

void JournalImpl::tenure_over(Slot slot) {
  if (!hold_regions_ && condition_) drl_->clean_slot(slot.index, committed_serial_);
}

void JournalImpl::note_equal(Slot slot, const std::vector<RegionIndex>& regions, uint64_t region_bytes,
                             Counter counter) {
  drl_->note_equal(slot.index, regions, region_bytes, counter.value);
  if (!hold_regions_ && condition_) drl_->clean_slot(slot.index, committed_serial_);
}

void JournalImpl::tick() {
  refresh_clock();
  if (!hold_regions_ && condition_) drl_->clean(committed_serial_, now_seconds_, kCleanAfterSeconds);
  measure_limit();
  try_withheld();
  try_recover_disk();
  clean_timer_ = env_.after(kCleanInterval, [this] { tick(); });
}

// ---- stop ---------------------------------------------------------------------------------------

void JournalImpl::close(std::chrono::milliseconds timeout, Callback<Status> done) {
  struct Closing {
    Callback<Status> done;
    bool finishing = false;
  };
  auto closing = std::make_shared<Closing>(Closing{std::move(done)});   // shared by the timers and the last commits
  env_.cancel(cut_timer_);
  env_.cancel(clean_timer_);
  if (!open_batch().empty && !reconciling()) cut(CutReason::kStop, {});
  auto answer = [this, closing](Status status) {
    if (!closing->done) return;
    env_.cancel(close_timer_);
    closing_ = true;
    // The mark stands, or what it would say is not known to be needless: the next start compares everything.
    if (!disk_failure_.empty()) status = Status(Code::kIoError, "the journal's own disk: " + disk_failure_);
    std::exchange(closing->done, {})(std::move(status));
  };
  auto finish = [this, closing, answer, timeout]() mutable {
    if (std::exchange(closing->finishing, true) || !closing->done) return;
    env_.cancel(close_timer_);
    env_.cancel(commit_timer_);
    idle_wake_ = {};
    fail_waiters(Status(Code::kUnavailable, "the journal is closing"));
    if (!disk_failure_.empty()) return answer(Status::ok());
    close_timer_ = env_.after(timeout, [answer]() mutable { answer(Status(Code::kUnavailable, "the journal's disk does not answer")); });
    bool staged = closed_count() == 0 && open_batch().empty;
    Bytes value;
    Writer(value).id(incarnation_).uuid(nonce_).u8(1);
    pending_.put(kMetaTable, as_bytes("incarnation"), value);
    commit_work([this, closing, answer, staged](Status status) mutable {
      if (!closing->done) return;
      if (!status || !disk_failure_.empty()) return answer(std::move(status));
      kLog.info("closed", {{"incarnation", incarnation_}, {"staged", staged ? "all" : "not all; merged at the next start"}});
      // Records and resync content are safe; only then may the regions go.
      if (hold_regions_) return answer(std::move(status));
      drl_->clean_all(std::move(answer));
    });
  };
  // The stager reports when it has nothing left; without it the timeout ends the wait.
  if ((closed_count() == 0 && !staging_) || !can_stage() || !stage_error_.empty()) return finish();
  idle_wake_ = finish;
  close_timer_ = env_.after(timeout, finish);
  kick_stager();
}

}  // namespace tidemark::journal
