// Turns closed batches into segment files, one batch at a time, oldest first:
//
//   closed -> (all its writes finished) -> reading -> (all blocks read) -> writing -> staged
//
// While a batch is closed or reading, blocks that it still needs are preserved before they change;
// once read, they are its own. A failure on the way gives the batch up into the open one.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("stager");

constexpr uint64_t kReadBytes = 256u << 10;
constexpr uint32_t kStagingReadsMax = 32;
constexpr uint64_t kReadBytesInFlightMax = 2u << 20;
constexpr uint64_t kHandoverReserve = 8;          // one part in so many of the spool, above its limit
constexpr io::Duration kRetryMin = std::chrono::seconds(1), kRetryMax = std::chrono::seconds(30);

}  // namespace

// The blocks of one part while they are read.
struct JournalImpl::PartJob {
  struct Unit { uint32_t slot; Extent extent; uint64_t position; };
  std::vector<Unit> units;
  io::AlignedBuffer data;
  uint64_t data_bytes = 0;
  std::vector<bool> absent;          // by granule of `data`; empty: none
  std::vector<SegmentImage> images;
};

struct JournalImpl::ReadRun : std::enable_shared_from_this<JournalImpl::ReadRun> {
  JournalImpl* journal;
  std::weak_ptr<bool> alive;
  BatchPtr batch;
  std::shared_ptr<PartJob> job;
  size_t next = 0;
  uint32_t in_flight = 0;
  uint64_t bytes_in_flight = 0;
  bool pumping = false;
  Status status;
  Callback<Status> done;

  bool stopped() const { return !status || batch->state == Batch::State::kGivenUp; }
  void pump() {
    if (pumping) return;             // a read completed inline: the loop below goes on
    pumping = true;
    while (next < job->units.size() && in_flight < kStagingReadsMax && bytes_in_flight < kReadBytesInFlightMax && !stopped()) {
      start(next++);
    }
    pumping = false;
    if (in_flight == 0 && (next == job->units.size() || stopped()) && done) std::exchange(done, {})(status);
  }
  void start(size_t index) {
    const PartJob::Unit& unit = job->units[index];
    const BatchImage& image = *batch->image(unit.slot);
    ++in_flight;
    bytes_in_flight += unit.extent.length;
    if (!image.needs.any(first_granule(unit.extent), end_granule(unit.extent))) return finished(index, Status::ok());
    MutableByteSpan out = job->data.span().subspan(unit.position, unit.extent.length);
    // The completion owns the buffer: it may come after this journal is gone.
    using Wanted = BlockSource::Wanted;
    const Wanted wanted = batch->lacks(journal->slots_[unit.slot].image, unit.extent) ? Wanted::kNewest : Wanted::kOwnWrites;
    journal->blocks_.read_block(journal->slots_[unit.slot].image, unit.extent, wanted, out,
                                [self = shared_from_this(), index](Status s) {
                                  if (!self->alive.expired()) self->finished(index, std::move(s));
                                });
  }
  void finished(size_t index, Status s) {
    --in_flight;
    bytes_in_flight -= job->units[index].extent.length;
    const Status found = s;
    if (!stopped()) journal->block_read(*batch, *job, index, s);
    if (status && !s && !found) {
      // Of a piece all is: it is sent because the replica lacks something, and left out it is lacked again.
      const bool lacked = batch->kind == BatchKind::kPiece ||
                          batch->lacks(journal->slots_[job->units[index].slot].image, job->units[index].extent);
      journal->unreadable_ = {job->units[index].slot, job->units[index].extent, found, lacked};
    }
    if (status && !s) status = std::move(s);
    pump();
  }
};

// Lays preserved blocks over what was read; from then on the unit's blocks may change freely. Each was needed until now, or
// was kept: what is neither is not in the buffer, and the cut cannot be had exactly.
void JournalImpl::block_read(Batch& batch, PartJob& job, size_t index, Status& status) {
  const PartJob::Unit& unit = job.units[index];
  BatchImage& image = *batch.image(unit.slot);
  uint64_t first = first_granule(unit.extent), end = end_granule(unit.extent);
  // Only an image that is not known any more is gone. One that is not in use (a host that has just started, a piece) can
  // be read, if not now then later.
  bool gone = !status && !slots_[unit.slot].attached && status.code() == Code::kNotFound;
  if (!status && !gone) return;
  // The image was removed before its cut could be read: its blocks belong to no point any more.
  if (gone) {
    status = Status::ok();
    if (job.absent.empty()) job.absent.resize(job.data_bytes / kSegmentUnit);
  }
  GranuleMap missing;
  for (uint64_t granule = first; granule < end; ++granule) {
    uint64_t position = unit.position + (granule - first) * limits::kOrderGranule;
    auto it = batch.preserved.find(block_key(unit.slot, granule));
    if (it != batch.preserved.end()) {
      std::copy(it->second->begin(), it->second->end(), job.data.data() + position);
      if (it->second.use_count() == 1) preserved_bytes_ -= limits::kOrderGranule;
      batch.preserved.erase(it);
    } else if (gone) {
      job.absent[position / kSegmentUnit] = true;
    } else if (!image.needs.contains(granule)) {
      missing.set(granule, granule + 1);
    }
  }
  if (missing.population() > 0) {
    kLog.error("block_not_kept", {{"batch", batch.number}, {"image", slots_[unit.slot].image}, {"offset", unit.extent.offset},
                                  {"blocks", missing.population()}, {"effect", "the batch is given up; the block is read again"}});
    image.needs.merge(missing);
    status = Status(Code::kCorruption, "a block of the batch was neither read nor kept");
    return;
  }
  image.read.set(first, end);
  image.needs.clear(first, end);
}

bool JournalImpl::can_stage() const {
  if (reconciling() || !condition_ || shipping_ == Shipping::kDegraded) return false;
  uint64_t room = limit_bytes();
  // A handover waits for it: the pause does not hold it up, and a full spool has a reserve for it.
  if (!staged_waiters_.empty()) return shipper_->queued_bytes() < room + room / kHandoverReserve;
  return !paused_ && shipper_->queued_bytes() < room;
}

void JournalImpl::when_staged(BatchNumber batch, Callback<Status> done) {
  if (batch <= last_staged_) return done(Status::ok());
  if (shipping_ != Shipping::kNormal) return done(Status(Code::kUnavailable, "the journal is " + std::string(shipping_name(shipping_))));
  if (!degrade_wanted_.empty()) return done(Status(Code::kUnavailable, "the spool is being given up"));
  bool closed = std::any_of(batches_.begin(), batches_.end() - 1, [&](const BatchPtr& b) { return b->number == batch; });
  if (!closed) return done(Status(Code::kCancelled, "batch " + std::to_string(batch.value) + " is not closed, or given up"));
  auto waiter = staged_waiters_.emplace(batch, std::move(done));
  if (can_stage()) return kick_stager();
  done = std::move(waiter->second);
  staged_waiters_.erase(waiter);
  done(Status(Code::kUnavailable, "the journal can stage nothing now"));
}

void JournalImpl::answer_staged(BatchNumber first, BatchNumber last, const Status& status) {
  auto begin = staged_waiters_.lower_bound(first), end = staged_waiters_.upper_bound(last);
  std::vector<Callback<Status>> ready;
  for (auto it = begin; it != end; ++it) ready.push_back(std::move(it->second));
  staged_waiters_.erase(begin, end);
  for (auto& done : ready) {
    // Posted: whoever waits may cut again.
    auto call = [done = std::move(done), status]() mutable { done(status); };
    env_.post(std::move(call));
  }
}

void JournalImpl::kick_stager() {
  // Neither a handover nor the making of room waits for the next try.
  bool hurry = retry_wake_ && (!staged_waiters_.empty() || !degrade_wanted_.empty());
  if (!stage_wake_ && !hurry) return;
  env_.post([this, hurry, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired()) return;
    if (hurry) env_.cancel(stage_timer_);
    if (hurry && retry_wake_) std::exchange(retry_wake_, {})();
    else if (stage_wake_) std::exchange(stage_wake_, {})();
  });
}

bool JournalImpl::work_to_do() const {
  if (!degrade_wanted_.empty()) return true;
  if (shipping_ == Shipping::kDegraded) return facts_ && !reconciling() && !paused_ && disk_failure_.empty();
  if (shipping_ == Shipping::kResyncing && piece_due()) return true;
  return closed_count() > 0 && can_stage();
}

Task<void> JournalImpl::wait_for_batch() {
  while (!work_to_do()) {
    if (idle_wake_ && closed_count() == 0) std::exchange(idle_wake_, {})();
    answer_staged(BatchNumber(0), BatchNumber(UINT64_MAX), Status(Code::kUnavailable, "the journal can stage nothing now"));
    co_await async<bool>([this](Callback<bool> done) {
      stage_wake_ = [done = std::move(done)]() mutable { done(true); };
    });
  }
}

Task<void> JournalImpl::stage_loop() {
  io::Duration retry = kRetryMin;
  while (true) {
    co_await wait_for_batch();
    if (!degrade_wanted_.empty()) {
      co_await degrade();
      continue;
    }
    if (shipping_ == Shipping::kDegraded) {
      begin_resync();
      continue;
    }
    if (closed_count() == 0) {
      next_piece();
      continue;
    }
    BatchPtr batch = batches_.front();
    staging_ = true;
    unreadable_.reset();
    Status status = co_await stage(batch);
    staging_ = false;
    if (status) {
      retry = kRetryMin;
      stage_error_.clear();
      failed_once_ = {};
      continue;
    }
    kLog.warning("staging_failed", {{"batch", batch->number}, {"status", status}});
    stage_error_ = status.to_string();
    if (status.code() == Code::kOutOfSpace) retry = kRetryMin;   // nothing is lost by looking often
    // Blocks that were read already are no longer preserved: this cut cannot be read again.
    if (batch->state != Batch::State::kGivenUp) {
      batch->state = Batch::State::kReading;
      if (batch->kind == BatchKind::kPiece) restore_piece(*batch);
      else give_up_from(0, "staging failed");
    }
    if (leave_out_unreadable()) {
      stage_error_.clear();
      continue;
    }
    co_await async<bool>([&](Callback<bool> done) {
      retry_wake_ = [done = std::move(done)]() mutable { done(true); };
      stage_timer_ = env_.after(retry, [this] { if (retry_wake_) std::exchange(retry_wake_, {})(); });
    });
    retry = std::min(kRetryMax, retry * 2);
  }
}

// A piece is read again from the beginning.
void JournalImpl::restore_piece(Batch& batch) {
  for (auto& image : batch.images) {
    if (image == nullptr) continue;
    image->needs.merge(image->read);
    image->read = {};
  }
}

Task<void> JournalImpl::wait_until_settled(BatchPtr batch) {
  while (batch->state != Batch::State::kGivenUp && (batch->in_flight > 0 || batch->compacting > 0)) {
    if (TM_PLANTED("stage a cut with writes in flight")) break;
    if (batch->in_flight > 0 && !settles_since_) settles_since_ = env_.now();
    co_await async<bool>([&](Callback<bool> done) {
      batch->when_drained = [done = std::move(done)]() mutable { done(true); };
    });
  }
  settles_since_.reset();
}

Task<std::vector<ImageExtents>> JournalImpl::consolidate_batch(BatchPtr batch) {
  struct Work { std::map<uint32_t, uint64_t> sizes; std::vector<ImageExtents> out; };
  auto work = std::make_shared<Work>();   // shared by the worker and the loop, one after the other
  for (uint32_t slot = 0; slot < batch->images.size(); ++slot) {
    if (batch->images[slot] != nullptr) work->sizes[slot] = batch->images[slot]->size;
  }
  co_await async<bool>([&](Callback<bool> done) {
    // The batch is settled: nobody changes its records, though giving it up may read them too.
    env_.offload([work, batch] {
                   work->out = consolidate(batch->records, [&](uint32_t slot) { return work->sizes.at(slot); });
                 },
                 [done = std::move(done)]() mutable { done(true); });
  });
  co_return std::move(work->out);
}

std::shared_ptr<StagePlan> JournalImpl::make_plan(const Batch& batch, std::vector<ImageExtents> extents) const {
  std::vector<std::pair<uint32_t, SegmentImage>> images;
  std::map<ImageId, size_t> seen;
  for (uint32_t slot = 0; slot < batch.images.size(); ++slot) {
    const BatchImage* image = batch.images[slot].get();
    if (image == nullptr || image->left_out) continue;
    SegmentImage out;
    out.image = slots_[slot].image;
    out.epoch = image->epoch;
    out.parent = image->parent;
    out.first = image->first;
    out.last = image->last;
    out.coordinator_first = image->coordinator_first;
    out.coordinator_last = image->coordinator_last;
    out.size = image->size;
    out.size_generation = image->size_generation;
    // An image that was removed and came back has two slots: the newer one speaks for it.
    auto [it, fresh] = seen.emplace(out.image, images.size());
    if (fresh) images.emplace_back(slot, std::move(out));
    else images[it->second] = {slot, std::move(out)};
  }
  return std::make_shared<StagePlan>(plan_stage(extents, std::move(images), batch.marks));   // shared with workers
}

Task<Status> JournalImpl::stage(BatchPtr batch) {
  co_await wait_until_settled(batch);
  if (batch->state == Batch::State::kGivenUp) co_return Status::ok();
  batch->state = Batch::State::kReading;
  std::vector<ImageExtents> extents = co_await consolidate_batch(batch);
  if (batch->state == Batch::State::kGivenUp) co_return Status::ok();
  carry_over(*batch, extents);
  std::shared_ptr<StagePlan> plan = make_plan(*batch, std::move(extents));
  uint64_t planned = 0;
  for (const PartPlan& part : plan->parts) planned += part.data_bytes;
  if (shipping_ == Shipping::kNormal && planned > batch_bytes_max()) {
    want_degrade("a batch of " + std::to_string(planned) + " bytes is larger than the journal's limit");
    co_return Status::ok();
  }
  std::vector<PartInfo> parts;
  Status status;
  for (uint32_t i = 0; i < plan->parts.size() && status; ++i) {
    Result<PartInfo> part = co_await stage_part(batch, plan, i);
    if (part) parts.push_back(*part);
    else status = part.status();
  }
  if (status) status = co_await sync_spool();
  bool given_up = batch->state == Batch::State::kGivenUp;
  if (!status || given_up) {
    remove_spool_files(batch->number, plan->parts.size());
    // The next batch takes the blocks over: no failure of its own.
    co_return given_up ? Status::ok() : status;
  }
  co_return co_await commit_staged(batch, std::move(parts), regions_of(*plan));
}

Task<Result<PartInfo>> JournalImpl::stage_part(BatchPtr batch, std::shared_ptr<StagePlan> plan, uint32_t index) {
  const PartPlan& part = plan->parts[index];
  auto job = std::make_shared<PartJob>();   // shared with reads and workers
  job->data_bytes = part.data_bytes;
  job->data = io::AlignedBuffer(part.data_bytes);
  uint64_t position = 0;
  for (const PartPlan::Piece& piece : part.pieces) {
    if (piece.extent.kind != ExtentKind::kData) continue;
    Extent e = piece.extent.extent;
    while (e.length > 0) {
      uint64_t take = std::min(e.length, kReadBytes);
      job->units.push_back({piece.slot, {e.offset, take}, position});
      position += take;
      e = {e.offset + take, e.length - take};
    }
  }
  Status read = co_await read_blocks(batch, job);
  if (batch->state == Batch::State::kGivenUp) co_return Status(Code::kCancelled, "the batch was given up");
  if (!read) co_return read;
  if (index + 1 == plan->parts.size()) {
    // Everything is read: writes need not preserve for it any more.
    batch->state = Batch::State::kWriting;
    drop_preserved(*batch);
    count_preserving();
  }
  struct Built { Result<BuiltPart> part = Status(Code::kCancelled, "not built"); };
  auto built = std::make_shared<Built>();   // shared by the worker and the loop, one after the other
  co_await async<bool>([&](Callback<bool> done) {
    env_.offload([built, job, plan, index, head = part_head(*batch, *plan, index)]() mutable {
                   built->part = build_part(std::move(head), plan->parts[index], job->data.span().first(job->data_bytes), job->absent);
                 },
                 [done = std::move(done)]() mutable { done(true); });
  });
  if (!built->part) co_return built->part.status();
  PartInfo info{built->part->digest, built->part->file.size()};
  Status written = co_await write_spool(spool_ + "/" + spool_file_name(batch->number, index), std::move(built->part->file));
  if (!written) co_return written;
  co_return info;
}

SegmentHead JournalImpl::part_head(const Batch& batch, const StagePlan& plan, uint32_t index) const {
  SegmentHead head;
  BatchHeader& b = head.batch;
  b.cluster = options_.cluster;
  b.source = options_.source;
  b.generation = generation_;
  b.number = batch.number;
  b.part = index;
  b.parts = static_cast<uint32_t>(plan.parts.size());
  b.kind = batch.kind;
  if (batch.number > last_staged_.next()) {
    // Numbers before this one never left: it stands for them.
    if (b.kind == BatchKind::kNormal) b.kind = BatchKind::kResync;
    b.supersedes_first = last_staged_.next();
    b.supersedes_last = BatchNumber(batch.number.value - 1);
  }
  b.incarnation = incarnation_;
  b.nonce = nonce_;
  b.first = batch.first;
  b.last = batch.last;
  b.label = batch.label;
  b.point_name = batch.name;
  b.previous = last_digest_;
  head.images = plan.images;
  const PartPlan& part = plan.parts[index];
  head.marks.assign(batch.marks.begin() + static_cast<ptrdiff_t>(part.mark_first),
                    batch.marks.begin() + static_cast<ptrdiff_t>(part.mark_end));
  return head;
}

Task<Status> JournalImpl::read_blocks(BatchPtr batch, std::shared_ptr<PartJob> job) {
  co_return co_await async<Status>([&](Callback<Status> done) {
    auto run = std::make_shared<ReadRun>();   // shared by its reads
    run->journal = this;
    run->alive = alive_;
    run->batch = batch;
    run->job = job;
    run->done = std::move(done);
    run->pump();
  });
}

Task<Status> JournalImpl::commit_staged(BatchPtr batch, std::vector<PartInfo> parts, std::vector<ImageExtent> regions) {
  BatchRow row = row_of(*batch, BatchState::kStaged);
  if (batch->number > last_staged_.next()) {
    if (row.kind == BatchKind::kNormal) row.kind = BatchKind::kResync;
    row.supersedes_first = last_staged_.next();
    row.supersedes_last = BatchNumber(batch->number.value - 1);
  }
  std::vector<Sha256> digests;
  for (const PartInfo& part : parts) digests.push_back(part.digest);
  row.digest = batch_digest(digests);
  row.parts = std::move(parts);
  // Staging goes in order: whatever records stand below the next number are in this batch or an earlier one.
  // Its marks stay until the replica has them, and so does what it changed: it may be given up yet.
  resync_staged(*batch);
  flush_packs();
  Bytes next = batch_prefix(batch->number.next());
  pending_.erase_range(kRecordsTable, {}, next);
  put_staged_regions(pending_, batch->number, regions);
  if (row.supersedes_first.value != 0) {
    pending_.erase_range(kBatchesTable, batch_prefix(row.supersedes_first), batch_prefix(batch->number));
  }
  pending_.erase_range(kSlotsTable, {}, kv::KeyBuilder().u64(incarnation_.value));
  pending_.put(kBatchesTable, batch_prefix(batch->number), encode_batch_row(row));
  Status status = co_await async<Status>([&](Callback<Status> done) { commit_work(std::move(done)); });
  if (!status) co_return status;
  // Answered by the mark alone: it is given up with the rest, and whoever relies on it is told so.
  Status staged = drl_->blind() ? Status(Code::kUnavailable, "the journal's own disk takes nothing") : Status::ok();

  last_digest_ = row.digest;
  last_staged_ = batch->number;
  std::vector<SlotBytes> bytes;
  for (uint32_t slot = 0; slot < batch->images.size(); ++slot) {
    const BatchImage* image = batch->images[slot].get();
    if (image != nullptr && image->left_out) count_left_out(slot, image->bytes);
    else if (image != nullptr) bytes.push_back({slot, image->bytes});
  }
  staged_bytes_[batch->number] = std::move(bytes);
  batches_.pop_front();
  end_readable();
  answer_staged(BatchNumber(0), batch->number, staged);
  // The resync batch that took over what a crash left is safe now.
  if (condition_) hold_regions_ = false;
  kLog.debug("staged", {{"batch", batch->number}, {"parts", row.parts.size()}, {"first", row.first.value}, {"last", row.last.value}});
  shipper_->add({batch->number, row.supersedes_first, row.digest, row.parts, row.label, row.kind, row.name, std::move(regions), env_.now()});
  check_limit();
  cut_if_due();
  co_return Status::ok();
}

}  // namespace tidemark::journal
