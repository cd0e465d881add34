// Opening a journal. After a crash: the new incarnation is durable first; staged batches go on being
// shipped; unstaged records and the dirty-region log's regions become the resync batch that opens the
// incarnation, which is cut once its owner has reconciled every dirty image. Idempotent: nothing of the
// old state is erased before that batch is staged.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr uint16_t kJournalVersion = 1;
// After an unclean stop: numbers that were given out and whose rows may not have been committed.
constexpr uint64_t kNumbersSkipped = 1024;
constexpr size_t kRunsKept = 256;

RecordKind record_kind(ExtentKind kind) {
  switch (kind) {
    case ExtentKind::kZero: return RecordKind::kZero;
    case ExtentKind::kDiscard: return RecordKind::kDiscard;
    case ExtentKind::kData: break;
  }
  return RecordKind::kWrite;
}

}  // namespace

Status JournalImpl::open_stores() {
  TM_RETURN_IF_ERROR(env_.files().make_directories(spool_));
  kv::StoreOptions journal_options{.tables = journal_table_names()};
  TM_ASSIGN_OR_RETURN(store_, env_.open_store(options_.directory + "/journal", journal_options));
  kv::StoreOptions drl_options{.tables = drl_table_names(), .map_bytes_max = 8ull << 30};
  TM_ASSIGN_OR_RETURN(auto drl_store, env_.open_store(options_.directory + "/drl", drl_options));
  drl_ = std::make_unique<DirtyLog>(env_, std::move(drl_store), options_.settings.region_bytes);
  drl_->on_failure([this](const Status& status) { disk_failed(status); });
  std::vector<std::string> directories{options_.directory};
  directories.insert(directories.end(), options_.reserve_directories.begin(), options_.reserve_directories.end());
  outdated_ = std::make_unique<OutdatedMark>(env_, std::move(directories));
  TM_RETURN_IF_ERROR(outdated_->open());
  return drl_->load(dirty_after_crash_);
}

Status JournalImpl::load_meta(kv::Snapshot& snapshot, bool& clean) {
  Result<Bytes> row = snapshot.get(kMetaTable, as_bytes("journal"));
  if (!row && row.status().code() != Code::kNotFound) return row.status();
  clean = true;
  if (!row) {
    // A journal set up anew: its incarnations must exceed those of a lost one. What the clock says is a guess, which is
    // raised to what the shared node knows before anything is counted (raise_incarnation).
    generation_ = env_.random_uuid();
    incarnation_ = Incarnation(static_cast<uint64_t>(std::max<int64_t>(1, env_.wall().ns / 1'000'000'000)));
    return Status::ok();
  }
  Reader r(*row);
  if (uint16_t version = r.u16(); version != kJournalVersion) {
    return Status(Code::kUnsupported, options_.directory + ": journal version " + std::to_string(version) + " is not known here");
  }
  generation_ = r.uuid();
  std::string source = r.text();
  Uuid cluster = r.uuid();
  if (!r.done()) return bad_journal("row `journal` has the wrong length");
  if (source != options_.source || cluster != options_.cluster) {
    return Status(Code::kInvalidArgument, options_.directory + ": this journal is of node " + source + ", cluster " +
                  cluster.to_string() + "; give node " + options_.source + " a state directory of its own");
  }
  TM_ASSIGN_OR_RETURN(Bytes incarnation, snapshot.get(kMetaTable, as_bytes("incarnation")));
  Reader i(incarnation);
  incarnation_ = i.id<Incarnation>().next();
  const Uuid last_nonce = i.uuid();
  clean = i.u8() != 0;
  if (!i.done()) return bad_journal("row `incarnation` has the wrong length");
  TM_RETURN_IF_ERROR(load_runs(snapshot, last_nonce));
  Result<Bytes> above = snapshot.get(kMetaTable, as_bytes("above"));
  if (!above) return above.status().code() == Code::kNotFound ? Status::ok() : above.status();
  Reader a(*above);
  incarnation_ = std::max(incarnation_, a.id<Incarnation>().next());
  return a.done() ? Status::ok() : bad_journal("row `above` has the wrong length");
}

Status JournalImpl::load_runs(kv::Snapshot& snapshot, const Uuid& last_nonce) {
  Result<Bytes> row = snapshot.get(kMetaTable, as_bytes("runs"));
  if (!row && row.status().code() != Code::kNotFound) return row.status();
  if (row) {
    Reader r(*row);
    for (uint32_t left = r.u32(); left > 0 && r.ok(); --left) {
      const Incarnation run = r.id<Incarnation>();
      runs_[run] = r.uuid();
    }
    if (!r.done()) return bad_journal("row `runs` has the wrong length");
  }
  // Of a version that kept no list: the last one alone. It may have been gone back to for a while: then the list has a
  // gap, and its runs of before the gap say nothing about those within.
  const Incarnation last(incarnation_.value - 1);
  if (auto known = runs_.find(last); known == runs_.end() || known->second != last_nonce) runs_.clear();
  runs_[last] = last_nonce;
  return Status::ok();
}

Status JournalImpl::load_batches(kv::Snapshot& snapshot, BatchNumber& newest) {
  ReplicaRow replica;
  Result<Bytes> row = snapshot.get(kMetaTable, as_bytes("replica"));
  if (row) {
    TM_ASSIGN_OR_RETURN(replica, decode_replica_row(*row));
  } else if (row.status().code() != Code::kNotFound) {
    return row.status();
  }
  newest = last_staged_ = replica.newest;
  last_digest_ = replica.digest;
  auto cursor = snapshot.cursor(kBatchesTable);
  for (bool more = cursor->first(); more; more = cursor->next()) {
    if (cursor->key().size() != 8) return bad_journal("a key of table batches has the wrong length");
    BatchNumber number(load_be64(cursor->key().data()));
    TM_ASSIGN_OR_RETURN(BatchRow batch, decode_batch_row(cursor->value()));
    newest = std::max(newest, number);
    const bool spent = batch.state == BatchState::kGivenUp && batch.last.value == 0;   // by take_over()
    if (spent || batch.state == BatchState::kStaged) sent_ = number;
    if (batch.state == BatchState::kStaged) {
      StagedBatch staged{number, batch.supersedes_first, batch.digest, batch.parts, batch.label, batch.kind, batch.name, {}, {}};
      staged.staged_at = env_.now();   // its age counts from here: wall clocks may have jumped meanwhile
      TM_RETURN_IF_ERROR(load_staged_regions(snapshot, staged));
      last_staged_ = number;
      last_digest_ = batch.digest;
      staged_at_open_.push_back(std::move(staged));
    } else if (!batch.name.empty()) {
      kLog.warning("point_lost", {{"name", batch.name}, {"batch", number}, {"label", batch.label.to_string()}});
    }
  }
  Shipper::Hooks hooks;
  hooks.forget = [this](const StagedBatch& b, const ReplicaRow& r, Callback<Status> done) { forget_staged(b, r, std::move(done)); };
  hooks.shipped = [this](const StagedBatch& b, const std::string& receipt) { ended_shipping(b, receipt); };
  hooks.taken_late = [this](BatchNumber b) {
    if (degrade_wanted_.empty()) want_degrade("the replica took batch " + std::to_string(b.value) + " after it had been given up");
  };
  shipper_ = std::make_unique<Shipper>(env_, spool_, options_.source, generation_, replica, std::move(hooks));
  return Status::ok();
}

Status JournalImpl::load_staged_regions(kv::Snapshot& snapshot, StagedBatch& batch) {
  auto cursor = snapshot.cursor(kStagedTable);
  for (bool more = cursor->seek(batch_prefix(batch.number)); more; more = cursor->next()) {
    if (cursor->key().size() != 12) return bad_journal("a key of table staged has the wrong length");
    if (load_be64(cursor->key().data()) != batch.number.value) break;
    TM_ASSIGN_OR_RETURN(std::vector<ImageExtent> regions, decode_staged_regions(cursor->value()));
    batch.regions.insert(batch.regions.end(), regions.begin(), regions.end());
  }
  return Status::ok();
}

Status JournalImpl::load_records(kv::Snapshot& snapshot, std::vector<ChangeRecord>& records, BatchNumber& newest) {
  auto slots = snapshot.cursor(kSlotsTable);
  for (bool more = slots->first(); more; more = slots->next()) {
    if (slots->key().size() != 12 || slots->value().size() != 16) return bad_journal("a row of table slots is malformed");
    Incarnation incarnation(load_be64(slots->key().data()));
    old_slots_[{incarnation, load_be32(slots->key().data() + 8)}] = Reader(slots->value()).uuid();
  }
  struct Placed { Incarnation incarnation; StoredRecord record; };
  std::vector<Placed> all;
  auto cursor = snapshot.cursor(kRecordsTable);
  for (bool more = cursor->first(); more; more = cursor->next()) {
    if (cursor->key().size() != 12) return bad_journal("a key of table records has the wrong length");
    newest = std::max(newest, BatchNumber(load_be64(cursor->key().data())));
    TM_ASSIGN_OR_RETURN(UnpackedRecords unpacked, unpack_records(cursor->value()));
    for (const StoredRecord& r : unpacked.records) {
      if (r.kind != kAbandonedRecord) all.push_back({unpacked.incarnation, r});
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Placed& a, const Placed& b) {
    return a.incarnation != b.incarnation ? a.incarnation < b.incarnation : a.record.counter < b.record.counter;
  });
  uint64_t left_behind = 0;
  for (const Placed& p : all) {
    // An earlier version could leave a run's records behind as it staged, under a lower number, all that they say. The slots of
    // that run went in the same transaction: all of them, so that no record of a run that still counts is taken for such a one.
    auto of_run = old_slots_.lower_bound({p.incarnation, 0});
    if (of_run == old_slots_.end() || of_run->first.first != p.incarnation) {
      ++left_behind;
      continue;
    }
    auto it = old_slots_.find({p.incarnation, p.record.slot});
    if (it == old_slots_.end()) return bad_journal("a record names slot " + std::to_string(p.record.slot) + ", which no row explains");
    // Counters of several incarnations: from here on only their order counts.
    const uint32_t slot = slot_of(it->second);
    if (overtaken(slot, p.record.epoch)) overtaken_at_open_.insert(slot);
    records.push_back({records.size(), p.record.extent.offset, p.record.extent.length, slot, static_cast<RecordKind>(p.record.kind)});
  }
  if (left_behind != 0) {
    kLog.warning("records_left_behind", {{"records", left_behind}, {"effect", "staged before; they go with the next batch"}});
  }
  return Status::ok();
}

Status JournalImpl::begin_incarnation() {
  nonce_ = env_.random_uuid();
  kv::WriteBatch batch;
  Bytes journal;
  Writer(journal).u16(kJournalVersion).uuid(generation_).text(options_.source).uuid(options_.cluster);
  batch.put(kMetaTable, as_bytes("journal"), journal);
  put_incarnation(batch);
  return store_->commit_and_wait(std::move(batch));
}

void JournalImpl::put_incarnation(kv::WriteBatch& batch) {
  Bytes incarnation;
  Writer(incarnation).id(incarnation_).uuid(nonce_).u8(0);
  batch.put(kMetaTable, as_bytes("incarnation"), incarnation);
  runs_[incarnation_] = nonce_;
  while (runs_.size() > kRunsKept) runs_.erase(runs_.begin());
  Bytes runs;
  Writer w(runs);
  w.u32(static_cast<uint32_t>(runs_.size()));
  for (const auto& [run, nonce] : runs_) w.id(run).uuid(nonce);
  batch.put(kMetaTable, as_bytes("runs"), runs);
}

bool JournalImpl::knows_run(Incarnation incarnation, const Uuid& nonce) const {
  if (incarnation < runs_.begin()->first) return true;   // of before the list
  auto run = runs_.find(incarnation);
  return run != runs_.end() && run->second == nonce;
}

Status JournalImpl::raise_incarnation(Incarnation to) {
  if (incarnation_ >= to) return Status::ok();
  const Incarnation from = incarnation_;
  const bool counted = next_counter_ != 1 || !slots_.empty();
  kv::WriteBatch batch;
  Bytes above;
  Writer(above).id(to);
  batch.put(kMetaTable, as_bytes("above"), above);
  if (!counted) {
    incarnation_ = to;
    put_incarnation(batch);
  }
  Status durable = store_->commit_and_wait(std::move(batch));
  if (!durable) incarnation_ = from;   // which nobody has been told of
  if (!durable) return durable;
  if (counted)
    return Status(Code::kUnavailable, "this run's incarnation, " + std::to_string(from.value) + ", is not above " +
                                          std::to_string(to.value) + ": restart the daemon");
  drl_->begin_run(incarnation_);
  kLog.info("incarnation_raised", {{"incarnation", incarnation_}, {"before", from}});
  return Status::ok();
}

Status JournalImpl::open() {
  TM_RETURN_IF_ERROR(open_stores());
  opened_ = env_.wall();
  refresh_clock();
  bool clean = true;
  BatchNumber newest;
  std::vector<ChangeRecord> records;
  std::vector<StoredMark> marks;
  bool first_run = false;
  {
    auto snapshot = store_->snapshot();
    TM_RETURN_IF_ERROR(load_meta(*snapshot, clean));
    first_run = !snapshot->get(kMetaTable, as_bytes("journal")).is_ok();
    auto images = snapshot->cursor(kImagesTable);
    for (bool more = images->first(); more; more = images->next()) {
      if (images->key().size() != 16) return bad_journal("a key of table images has the wrong length");
      TM_ASSIGN_OR_RETURN(TenureRow row, decode_tenure(images->value()));
      known_tenures_[Reader(images->key()).uuid()] = row;
    }
    TM_RETURN_IF_ERROR(load_batches(*snapshot, newest));
    TM_RETURN_IF_ERROR(load_degraded(*snapshot));
    // Before the records give images their slots: from then on these are no longer among the known tenures.
    load_withheld();
    if (outdated_->found()) whole_is_dirty();
    // A batch that was open as the last run ended has no row, though what stands under its number has one: given out again,
    // the number would have one run's rows overwrite another's, and outlive the batch that stands for them.
    TM_RETURN_IF_ERROR(load_records(*snapshot, records, newest));
    TM_ASSIGN_OR_RETURN(marks, read_marks(*snapshot));
    for (const StoredMark& mark : marks) newest = std::max(newest, mark.batch);
    // Those of staged batches are in their segments, and are needed should these be given up: so they are when degraded.
    BatchNumber told = shipping_ == Shipping::kNormal ? last_staged_ : shipper_->replica().newest;
    std::erase_if(marks, [&](const StoredMark& mark) { return mark.batch <= told; });
  }
  TM_RETURN_IF_ERROR(begin_incarnation());
  drl_->begin_run(incarnation_);
  tracker_.reset(1);
  new_open_batch(BatchNumber(newest.value + 1 + (clean ? 0 : kNumbersSkipped)));
  kLog.info("opened", {{"source", options_.source}, {"generation", generation_}, {"incarnation", incarnation_},
                       {"stop", first_run ? "none: new" : clean ? "clean" : "crash"}, {"staged", staged_at_open_.size()},
                       {"unstaged_records", records.size()}, {"dirty_images", dirty_after_crash_.size()}});
  if (!records.empty() || !marks.empty() || !dirty_after_crash_.empty()) recover_batch(std::move(records), std::move(marks));
  if (shipping_ != Shipping::kNormal) TM_RETURN_IF_ERROR(begin_degraded());
  sweep_spool();
  for (StagedBatch& b : staged_at_open_) shipper_->add(std::move(b));
  if (shipping_ != Shipping::kNormal) ask_replica();
  start_timers();
  tasks_.spawn(stage_loop());
  return Status::ok();
}

void JournalImpl::start_timers() {
  cut_timer_ = env_.after(options_.settings.cut_interval, [this] {
    cut_due_ = true;
    cut_if_due();
    start_timers();
  });
  if (clean_timer_.value == 0) tick();
}

void JournalImpl::recover_batch(std::vector<ChangeRecord> records, std::vector<StoredMark> marks) {
  Batch& batch = open_batch();
  batch.kind = BatchKind::kResync;
  batch.empty = false;
  hold_regions_ = true;
  // The first counter stands for all that is taken over.
  Counter taken(next_counter_++);
  tracker_.begin(taken.value);
  tracker_.finish(taken.value);
  for (const ChangeRecord& r : records) touch(batch, r.slot, taken);
  for (const DirtyImage& d : dirty_after_crash_) {
    uint32_t slot = slot_of(d.image);
    touch(batch, slot, taken);
    unreconciled_.insert(d.image);
    if (overtaken(slot, d.epoch)) overtaken_at_open_.insert(slot);   // its newest tenure had only just begun
    if (slots_[slot].epoch < d.epoch) slots_[slot].epoch = d.epoch;
    for (RegionIndex region : d.regions) {
      records.push_back({records.size(), region.value * d.region_bytes, d.region_bytes, slot, RecordKind::kWrite});
    }
  }
  // Nothing is clipped here: the sizes at the cut are not known yet.
  for (const ImageExtents& image : consolidate(std::move(records), [](uint32_t) { return uint64_t{1} << 62; })) {
    for (const PlainExtent& e : image.extents) {
      ChangeRecord r{taken.value, e.extent.offset, e.extent.length, image.slot, record_kind(e.kind)};
      for_data_granules(r, [&](uint64_t first, uint64_t end) { batch.image(image.slot)->needs.set(first, end); });
      batch.records.push_back(r);
    }
  }
  for (uint32_t slot : std::exchange(overtaken_at_open_, {})) take_as_left(batch, slot);
  for (StoredMark& mark : marks) {
    Counter counter(next_counter_++);
    tracker_.begin(counter.value);
    tracker_.finish(counter.value);
    touch_ended(batch, mark.mark, counter);
    if (mark.batch <= sent_) perhaps_told_.insert(counter);
    batch.marks.push_back({counter, std::move(mark.mark)});
  }
}

void JournalImpl::reconciled(const ImageId& image) {
  sizes_unknown_.erase(image);
  const bool waited = unreconciled_.erase(image) != 0;
  if (withheld_.contains(image)) end_withholding(image);
  if (waited && !reconciling()) all_reconciled();
}

void JournalImpl::all_reconciled() {
  kLog.info("all_reconciled", {{"batch", open_batch().number}});
  if (shipping_ != Shipping::kNormal) return kick_stager();
  close_open_batch(std::exchange(held_name_, {}));
}

}  // namespace tidemark::journal
