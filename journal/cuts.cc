// Cuts, giving batches up, and keeping the open batch's records within bounds.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

// Data extents widened to whole regions; zeros and discards near them are swallowed.
std::vector<PlainExtent> coarsen(const std::vector<PlainExtent>& extents, uint64_t region_bytes) {
  std::vector<PlainExtent> out;
  for (const PlainExtent& e : extents) {
    uint64_t begin = e.extent.offset / region_bytes * region_bytes;
    uint64_t end = (e.extent.end() + region_bytes - 1) / region_bytes * region_bytes;
    if (!out.empty() && begin <= out.back().extent.end()) {
      out.back().extent.length = std::max(end, out.back().extent.end()) - out.back().extent.offset;
    } else {
      out.push_back({ExtentKind::kData, {begin, end - begin}});
    }
  }
  return out;
}

}  // namespace

struct JournalImpl::Compaction {
  std::vector<ChangeRecord> records;    // moved out of the batch meanwhile
  std::vector<ImageExtents> extents;
  uint32_t serial_end = 0;              // LMDB values of the batch below it hold just these records
};

bool JournalImpl::coalescing() const {
  return paused_ || closed_count() > 0 || reconciling() || shipping_ != Shipping::kNormal ||
         shipper_->queued_bytes() >= limit_bytes();
}

void JournalImpl::new_open_batch(BatchNumber number) {
  auto batch = std::make_shared<Batch>();
  batch->number = number;
  batch->first = Counter(next_counter_);
  batch->records.reserve(4096);
  batches_.push_back(std::move(batch));
}

BatchRow JournalImpl::row_of(const Batch& batch, BatchState state) const {
  BatchRow row;
  row.state = state;
  row.kind = batch.kind;
  row.incarnation = incarnation_;
  row.first = batch.first;
  row.last = batch.last;
  row.label = batch.label;
  row.name = batch.name;
  return row;
}

void JournalImpl::close_open_batch(std::string name) {
  Batch& batch = open_batch();
  refresh_clock();
  batch.state = Batch::State::kClosed;
  batch.last = Counter(next_counter_ - 1);
  batch.label = label_;
  batch.name = std::move(name);
  leave_out(batch);
  for (uint32_t slot = 0; slot < batch.images.size(); ++slot) {
    if (batch.images[slot] == nullptr) continue;
    batch.images[slot]->size = slots_[slot].size;
    batch.images[slot]->size_generation = slots_[slot].size_generation;
    // What a resync batch took over may be of an older tenure; its contents are those of now.
    batch.images[slot]->epoch = slots_[slot].epoch;
    batch.images[slot]->parent = slots_[slot].parent;
  }
  newest_closed_ = batch.number;
  pending_.put(kBatchesTable, batch_prefix(batch.number), encode_batch_row(row_of(batch, BatchState::kClosed)));
  arm_commit();
  new_open_batch(batch.number.next());
  keep_back_wholes(batch);
  count_preserving();
  kick_stager();
}

// A time cut that had to wait is made as soon as it can be: a late point is better than one a whole interval later.
void JournalImpl::cut_if_due() {
  if (!cut_due_ || coalescing()) return;
  cut_due_ = false;
  if (!open_batch().empty) close_open_batch({});
}

void JournalImpl::count_preserving() {
  preserving_ = 0;
  for (const BatchPtr& b : batches_) preserving_ += b->needs_preserving() ? 1 : 0;
}

Point JournalImpl::cut(CutReason reason, std::string name) {
  bool named = reason == CutReason::kNamed || reason == CutReason::kHandover || reason == CutReason::kStop;
  std::vector<ImageId> without;
  for (const auto& [image, w] : withheld_) without.push_back(image);
  if (shipping_ != Shipping::kNormal) {
    // No point is made before the replica is level. The name, if any, is lost: said here and in status.
    if (!name.empty()) count_given_up(open_batch().number, BatchKind::kNormal, env_.wall(), name);
    return {open_batch().number, Counter(next_counter_ - 1), env_.wall(), std::move(name), std::move(without), no_point()};
  }
  if (reconciling()) {
    // The first batch of an incarnation is cut when all is reconciled, and carries the name then: one, the first.
    if (held_name_.empty()) held_name_ = name;
    else if (!name.empty() && name != held_name_) kLog.warning("point_refused", {{"name", name}, {"held", held_name_}});
    return {open_batch().number, Counter(next_counter_ - 1), env_.wall(), held_name_, std::move(without)};
  }
  if (!named && (coalescing() || open_batch().empty)) {
    return {newest_closed_, Counter(open_batch().first.value - 1), label_, {}, std::move(without)};
  }
  if (closed_count() >= limits::kClosedBatchesMax) give_up_from(0, "too many closed batches");
  close_open_batch(std::move(name));
  const Batch& batch = *batches_[batches_.size() - 2];
  return {batch.number, batch.last, batch.label, batch.name, std::move(without)};
}

void JournalImpl::give_up_from(size_t index, const char* why, bool everything) {
  std::deque<BatchPtr> kept;
  std::vector<BatchPtr> gone;
  for (size_t i = 0; i < batches_.size(); ++i) {
    bool closed = i + 1 < batches_.size();
    bool give_up = i >= index && (batches_[i]->needs_preserving() || (everything && closed));
    if (give_up) gone.push_back(batches_[i]);
    else kept.push_back(batches_[i]);
  }
  batches_ = std::move(kept);
  for (const BatchPtr& batch : gone) {
    kLog.warning("batch_given_up", {{"batch", batch->number}, {"reason", why}, {"name", batch->name},
                                    {"into", open_batch().number}});
    merge_given_up(*batch);
    if (!batch->name.empty() || everything) {
      count_given_up(batch->number, batch->kind, batch->label, batch->name);
    }
    answer_staged(batch->number, batch->number, Status(Code::kCancelled, std::string("the cut was given up: ") + why));
    fail_waiters(batch->number, Status(Code::kCancelled, std::string("the point was given up: ") + why));
    // Its stager may be waiting for it.
    if (batch->when_drained) env_.post(std::exchange(batch->when_drained, {}));
  }
  if (!gone.empty()) open_batch().first = gone.front()->first;
  count_preserving();
  arm_commit();
}

// Of a recovery that goes on: the batch that was to be its first point is none any more.
void JournalImpl::give_up_held_name() {
  const BatchNumber open = open_batch().number;
  if (!held_name_.empty()) count_given_up(open, BatchKind::kNormal, env_.wall(), std::exchange(held_name_, {}));
  fail_waiters(open, Status(Code::kCancelled, "the point was given up: " + degraded_.why));
}

void JournalImpl::merge_given_up(Batch& from) {
  Batch& open = open_batch();
  if (!from.pack.empty()) pending_.put(kRecordsTable, record_key(from.number, from.next_serial++), from.pack.take());
  pending_.put(kBatchesTable, batch_prefix(from.number), encode_batch_row(row_of(from, BatchState::kGivenUp)));
  // Copied: a worker may be reading them.
  open.records.insert(open.records.end(), from.records.begin(), from.records.end());
  // What it left out is said anew, if it still is left out.
  std::copy_if(from.marks.begin(), from.marks.end(), std::back_inserter(open.marks),
               [](const SegmentMark& m) { return m.mark.kind != wire::MarkKind::kWithheld; });
  std::sort(open.marks.begin(), open.marks.end(), [](const auto& a, const auto& b) { return a.counter < b.counter; });
  if (from.images.size() > open.images.size()) open.images.resize(from.images.size());
  for (uint32_t slot = 0; slot < from.images.size(); ++slot) {
    BatchImage* image = from.images[slot].get();
    if (image == nullptr) continue;
    auto& into = open.images[slot];
    bool untouched = into == nullptr;
    if (untouched) into = std::make_unique<BatchImage>();
    into->needs.merge(image->needs);
    into->needs.merge(image->read);
    into->first = untouched ? image->first : std::min(into->first, image->first);
    into->last = std::max(into->last, image->last);
    if (image->coordinator_first.value != 0 &&
        (into->coordinator_first.value == 0 || image->coordinator_first < into->coordinator_first)) {
      into->coordinator_first = image->coordinator_first;
    }
    into->coordinator_last = std::max(into->coordinator_last, image->coordinator_last);
    if (untouched) {
      into->epoch = image->epoch;
      into->parent = image->parent;
    }
    into->bytes += image->bytes;
    into->as_left = into->as_left || image->as_left;
  }
  for (const auto& [key, block] : from.preserved) {
    uint64_t granule = key & ((uint64_t{1} << 36) - 1);
    open.images[key >> 36]->needs.set(granule, granule + 1);
  }
  for (const ChangeRecord& r : from.records) {
    if (from.image(r.slot) == nullptr || !from.image(r.slot)->left_out) continue;
    for_data_granules(r, [&](uint64_t first, uint64_t end) { open.images[r.slot]->needs.set(first, end); });
  }
  open.lacked.insert(open.lacked.end(), from.lacked.begin(), from.lacked.end());
  for (uint32_t slot = 0; slot < from.images.size(); ++slot) {
    const BatchImage* image = from.image(slot);
    if (image != nullptr && overtaken(slot, image->epoch)) take_as_left(open, slot);
  }
  drop_preserved(from);
  open.kind = BatchKind::kResync;
  open.empty = false;
  open.data_bytes += from.data_bytes;
  open.in_flight += from.in_flight;
  open.compacting += from.compacting;
  from.state = Batch::State::kGivenUp;
}

// Another host wrote the image after that epoch (0: not known), and this one's tenure by now follows that.
bool JournalImpl::overtaken(uint32_t slot, Epoch epoch) const {
  const wire::TenureParent& parent = slots_[slot].parent;
  return another_wrote(parent) && epoch.value != 0 && epoch < parent.epoch;
}

// What the batch has of the image goes as of a tenure that follows another host's writes: as those left it, though the own
// copy may not have been filled with them yet, and what was zeros need not be any more.
void JournalImpl::take_as_left(Batch& batch, uint32_t slot) {
  const SlotState& s = slots_[slot];
  if (s.size == 0) return;
  BatchImage& image = *batch.image(slot);
  image.as_left = true;   // also what a worker has of its records
  for (ChangeRecord& r : batch.records) {
    if (r.slot != slot || r.length == 0) continue;
    r.kind = RecordKind::kWrite;
    for_data_granules(r, [&](uint64_t first, uint64_t end) { image.needs.set(first, end); });
  }
  batch.lacked.push_back({s.image, {0, s.size}});
}

// ---- the bound on records -----------------------------------------------------------------------

void JournalImpl::compact_if_needed() {
  BatchPtr batch = batches_.back();
  const bool few = batch->records.size() < options_.open_records_max;
  if (few || batch->compacting > 0 || !degrade_wanted_.empty()) return;
  batch->compacting = 1;
  if (!batch->pack.empty()) pending_.put(kRecordsTable, record_key(batch->number, batch->next_serial++), batch->pack.take());
  auto work = std::make_shared<Compaction>();   // shared by the worker and the loop, one after the other
  work->records.swap(batch->records);
  work->serial_end = batch->next_serial;
  // Room for the consolidated records before those that follow.
  batch->next_serial += static_cast<uint32_t>(work->records.size());
  kLog.info("compacting", {{"batch", batch->number}, {"records", work->records.size()}});
  env_.offload([work] { work->extents = consolidate(work->records, [](uint32_t) { return uint64_t{1} << 62; }); },
               [this, work, batch, alive = std::weak_ptr<bool>(alive_)] {
                 if (!alive.expired()) finish_compaction(batch, *work);
               });
}

std::vector<ChangeRecord> JournalImpl::compact(const Compaction& done, bool coarse) const {
  uint64_t oldest = UINT64_MAX;
  for (const ChangeRecord& r : done.records) oldest = std::min(oldest, r.counter);
  std::vector<ChangeRecord> out;
  for (const ImageExtents& image : done.extents) {
    for (const PlainExtent& e : coarse ? coarsen(image.extents, drl_->region_bytes(image.slot)) : image.extents) {
      RecordKind kind = e.kind == ExtentKind::kData ? RecordKind::kWrite
                        : e.kind == ExtentKind::kZero ? RecordKind::kZero : RecordKind::kDiscard;
      // The oldest counter: nothing that finished is overlapped by what was in flight and older.
      out.push_back({oldest, e.extent.offset, e.extent.length, image.slot, kind});
    }
  }
  return out;
}

// Given up meanwhile: its records belong to the batch that took the others over.
JournalImpl::BatchPtr JournalImpl::owner_of(const BatchPtr& batch) const {
  if (batch->state != Batch::State::kGivenUp) return batch;
  return *std::find_if(batches_.begin(), batches_.end() - 1, [&](const BatchPtr& b) { return b->number > batch->number; });
}

void JournalImpl::finish_compaction(BatchPtr batch, const Compaction& done) {
  BatchPtr owner = owner_of(batch);
  size_t extents = 0;
  for (const ImageExtents& image : done.extents) extents += image.extents.size();
  // Only while open may a batch take whole regions: afterwards they may have changed since its cut.
  bool coarse = extents > options_.open_records_max / 2 && owner->state == Batch::State::kOpen;
  std::vector<ChangeRecord> compacted = compact(done, coarse);
  // Over large images these are as many: the map of what the replica lacks holds them in bits.
  if (coarse && compacted.size() > options_.open_records_max / 4) {
    coarse = false;
    compacted = compact(done, coarse);
    if (shipping_ != Shipping::kDegraded && degrade_wanted_.empty())
      want_degrade("changes of more than " + std::to_string(options_.open_records_max / 4) + " regions wait to be staged");
  }
  // What was to be read of no batch until now.
  auto read_anew = [&](const ChangeRecord& r) {
    const bool known = owner->image(r.slot)->as_left && r.kind != RecordKind::kWrite;
    return !owner->image(r.slot)->left_out && (known || (owner != batch && batch->image(r.slot)->left_out));
  };
  // Nobody has kept it since this cut: only a later one can have it.
  while (owner->needs_preserving() && std::any_of(compacted.begin(), compacted.end(), read_anew)) {
    const auto at = std::find(batches_.begin(), batches_.end(), owner);
    give_up_from(static_cast<size_t>(at - batches_.begin()), "what a worker had of it is read after its cut");
    owner = owner_of(batch);
  }
  for (ChangeRecord& r : compacted) {
    const bool needs = coarse || read_anew(r);
    if (owner->image(r.slot)->as_left) r.kind = RecordKind::kWrite;
    if (needs) for_data_granules(r, [&](uint64_t a, uint64_t b) { owner->image(r.slot)->needs.set(a, b); });
  }
  put_compacted(*batch, done, compacted);
  owner->records.insert(owner->records.end(), compacted.begin(), compacted.end());
  kLog.info("compacted", {{"batch", owner->number}, {"records", done.records.size()}, {"into", compacted.size()},
                          {"whole_regions", coarse ? "yes" : "no"}});
  --owner->compacting;
  if (compacted_wake_) env_.post(std::exchange(compacted_wake_, {}));
  if (owner->when_drained && owner->in_flight == 0 && owner->compacting == 0) std::exchange(owner->when_drained, {})();
}

void JournalImpl::put_compacted(Batch& owner, const Compaction& done, const std::vector<ChangeRecord>& records) {
  pending_.erase_range(kRecordsTable, record_key(owner.number, 0), record_key(owner.number, done.serial_end));
  RecordPack pack;
  uint32_t serial = 0;
  for (const ChangeRecord& r : records) {
    if (pack.full()) pending_.put(kRecordsTable, record_key(owner.number, serial++), pack.take());
    StoredRecord stored;
    stored.counter = Counter(r.counter);
    stored.slot = r.slot;
    stored.kind = static_cast<uint8_t>(r.kind);
    stored.extent = {r.offset, r.length};
    // Another tenure may have begun since. What goes as another host left it goes so after a crash, too: older than that one.
    const BatchImage& image = *owner.image(r.slot);
    stored.epoch = image.as_left ? Epoch(slots_[r.slot].parent.epoch.value - 1) : image.epoch;
    stored.label = label_;
    pack.add(incarnation_, stored);
  }
  if (!pack.empty()) pending_.put(kRecordsTable, record_key(owner.number, serial++), pack.take());
  TM_CHECK(serial <= owner.next_serial, "consolidation made more values than there were records");
  arm_commit();
}

}  // namespace tidemark::journal
