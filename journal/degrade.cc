// The journal's limit. What is unshipped beyond it is given up for a map of regions, and a resync brings the replica level:
//
//   normal --limit of bytes or age, or an operator's full resync--> degraded --the replica answers--> resyncing
//     ^                                                                ^                                  |
//     |                                                                +---- the limit once more ---------+
//     +---- the last batch of the resync, an exact cut, is staged ------------------------------------------
//
// Degraded: nothing is staged, no cut is made; a write marks its region in `lacks_` (memory and disk are bounded by the
// number of regions), metadata events stay in the open batch, folded to
// what the replica will need of them (fold.h). The mark is committed like a record: until then the dirty-region log
// covers the write.
// Resyncing: the open batch is closed again and again as a *piece*: the changes since the last one and some of the lacked
// regions, read as they stand, writes going on. Whatever changes meanwhile is recorded in the next one. When nothing is
// lacked and little has changed, the last batch is cut exactly, as any other; the replica applies all pieces with it, so
// that it never shows what lies between. Each piece is durable here before it is sent, and what it held is lacked until
// then: a crash goes on where it stood. The replica takes of the pieces what the last batch names, and every size from
// that one. So it names all that is *unnamed* (lacks.h), which a piece's commit notes, and the last batch's forgets.
//
// Later points rest on earlier ones, so the whole unshipped tail is given up at once, never a part of it. Numbers are not
// used again: the first piece stands for all that the replica never got.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr uint64_t kPieceBytes = 64ull << 20;          // of lacked regions, in one piece
constexpr size_t kPiecesInSpoolMax = 2;
constexpr uint64_t kPiecesInLimit = 4;                 // so that those stay well below a small limit
constexpr uint64_t kLastDeltaBytes = 16ull << 20;      // written since the last piece: few enough for an exact cut
constexpr uint32_t kRoundsMax = 20;                    // then the cut is made however much was written
constexpr size_t kNamesKept = 16;
constexpr uint64_t kFreeShare = 2;                     // the spool takes at most one part in so many of what is free
constexpr double kGrowthSmoothing = 0.1;               // a second's share

}  // namespace

std::string_view shipping_name(Shipping shipping) {
  switch (shipping) {
    case Shipping::kNormal: return "normal";
    case Shipping::kDegraded: return "degraded";
    case Shipping::kResyncing: return "resyncing";
  }
  return "unknown";
}

// ---- marking ------------------------------------------------------------------------------------

void JournalImpl::note_lack(uint32_t slot, RecordKind kind, Extent extent) {
  // A resize's length is what it cut off; what a grow adds reads as zeros everywhere, and only the size is to be told.
  const ImageId& image = slots_[slot].image;
  const bool resized = kind == RecordKind::kResize && lacks_.set_unnamed(image, false);
  const bool lacked = kind != RecordKind::kMark && extent.length != 0 && lacks_.set(image, extent);
  if (!resized && !lacked) return;
  ++finish_serial_;
  arm_commit();
}

bool JournalImpl::another_wrote(const wire::TenureParent& parent) const {
  return !parent.source.empty() && parent.source != options_.source && parent.last.counter.value != 0;
}

// An image that another host wrote before this one's tenure is lacked whole from then on: that host's batches may wait for
// this one's resync, and this one's for those. Whichever the replica applies first, what the newest tenure's holder sends is
// all of it.
void JournalImpl::lack_if_followed(uint32_t slot) {
  const SlotState& s = slots_[slot];
  if (!another_wrote(s.parent) || !slot_by_image_.contains(s.image)) return;
  note_lack(slot, RecordKind::kWrite, {0, s.size});
}

// Also of an image that nobody has used since the start: of it staged batches alone may be left, and their regions are lacked by
// now, or it is withheld. It has no slot yet, and gets none: what its tenure followed is forgotten for it where it is kept.
void JournalImpl::lack_followed() {
  for (const ImageId& image : lacks_.images()) {
    auto known = known_tenures_.find(image);
    if (known != known_tenures_.end() && another_wrote(known->second.parent)) lacks_.set(image, {0, known->second.size});
  }
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) lack_if_followed(slot);
}

// The records of the open batch become regions.
void JournalImpl::absorb_open_batch() {
  Batch& open = open_batch();
  for (const ChangeRecord& r : open.records) note_lack(r.slot, r.kind, {r.offset, r.length});
  open.records.clear();
  open.records.shrink_to_fit();
  if (!open.pack.empty()) open.pack.take();
  for (uint32_t slot = 0; slot < open.images.size(); ++slot) {
    BatchImage* image = open.image(slot);
    if (image == nullptr) continue;
    image->needs = {};
    image->read = {};
    lacks_.set_unnamed(slots_[slot].image, false);
  }
  open.kind = BatchKind::kResync;
  open.empty = false;
  open.data_bytes = 0;
  pending_.erase_range(kRecordsTable, {}, batch_prefix(open.number.next()));
  open.next_serial = 0;
  ++finish_serial_;
  arm_commit();
}

void JournalImpl::put_degraded() {
  if (shipping_ == Shipping::kNormal) pending_.erase(kMetaTable, as_bytes("degraded"));
  else pending_.put(kMetaTable, as_bytes("degraded"), encode_degraded(degraded_));
  arm_commit();
}

// ---- the limit ----------------------------------------------------------------------------------

uint64_t JournalImpl::free_share() const {
  uint64_t queued = shipper_->queued_bytes();
  return free_bytes_ > UINT64_MAX - queued ? UINT64_MAX : (free_bytes_ + queued) / kFreeShare;
}

uint64_t JournalImpl::limit_bytes() const { return std::min(options_.settings.limit_bytes, free_share()); }

// A batch goes as a whole or not at all. One of a part is taken however small the limit is: otherwise a quick writer's batches
// would be given up one after the other though the replica takes them.
uint64_t JournalImpl::batch_bytes_max() const {
  return std::min(std::max(options_.settings.limit_bytes, limits::kBatchPartBytesMax), free_share());
}

// Once a second.
void JournalImpl::measure_limit() {
  Result<io::FileSystem::Space> space = env_.files().space(spool_);
  free_bytes_ = space ? space->available : UINT64_MAX;
  uint64_t queued = shipper_->queued_bytes();
  growth_ += kGrowthSmoothing * (static_cast<double>(queued) - static_cast<double>(measured_bytes_) - growth_);
  measured_bytes_ = queued;
  check_limit();
  if (work_to_do()) kick_stager();   // there may be room again
}

void JournalImpl::check_limit() {
  if (shipping_ == Shipping::kDegraded || !degrade_wanted_.empty()) return;
  // While nothing is staged (paused, or an image waits for its owner) these grow without end: degraded they are folded.
  const bool many = shipping_ == Shipping::kNormal && open_batch().marks.size() >= limits::kEventsUnstagedMax;
  if (many) return want_degrade("too many metadata events wait to be staged");
  const bool numbered = open_batch().next_serial >= options_.open_serials_max;   // a resync may have to wait, too
  if (numbered) return want_degrade("changes of too long a time wait to be staged");
  if (shipper_->idle()) return;
  const StagedBatch& oldest = shipper_->queue().front();
  // One large batch that is on its way is no reason. The pieces of a resync are few by themselves.
  bool stuck = shipper_->queued() > 1 || (!shipper_->error().empty() && !shipper_->sending());
  if (shipping_ == Shipping::kNormal && stuck && shipper_->queued_bytes() >= limit_bytes()) {
    want_degrade("unshipped batches reached limit_bytes (" + std::to_string(limit_bytes()) + " bytes)");
  } else if (env_.now() - oldest.staged_at >= options_.settings.limit_age) {
    want_degrade("the oldest unshipped batch reached limit_age");
  }
}

// A handover hears of it now: what is on its way is let end first.
void JournalImpl::want_degrade(std::string why) {
  degrade_wanted_ = std::move(why);
  answer_staged(BatchNumber(0), BatchNumber(UINT64_MAX), Status(Code::kUnavailable, "the spool is being given up"));
  kick_stager();
}

void JournalImpl::count_given_up(BatchNumber number, BatchKind kind, WallTime label, const std::string& name) {
  if (kind == BatchKind::kPiece) return;
  ++points_given_up_;
  ++degraded_.points_given_up;
  if (name.empty()) return;
  kLog.warning("point_lost", {{"name", name}, {"batch", number}, {"label", label.to_string()}});
  names_given_up_.push_back(name);
  if (names_given_up_.size() > kNamesKept) names_given_up_.pop_front();
}

// Run by the stager, between two batches.
Task<void> JournalImpl::degrade() {
  auto given = co_await async<std::deque<StagedBatch>>(
      [this](Callback<std::deque<StagedBatch>> done) { shipper_->hand_over(std::move(done)); });
  uint64_t bytes = 0;
  for (const StagedBatch& batch : given) bytes += batch.bytes();
  // Of whichever batch: what a worker holds of its records would come back into a batch that lacks nothing of them.
  while (std::any_of(batches_.begin(), batches_.end(), [](const BatchPtr& b) { return b->compacting > 0; })) {
    co_await async<bool>([this](Callback<bool> done) {
      compacted_wake_ = [done = std::move(done)]() mutable { done(true); };
    });
  }
  if (shipping_ == Shipping::kNormal) {
    degraded_.since = env_.wall();
    degraded_.points_given_up = 0;
  }
  degraded_.why = std::exchange(degrade_wanted_, {});
  shipping_ = Shipping::kDegraded;
  facts_.reset();
  resync_end_ = BatchNumber();
  resync_sent_ = 0;
  failed_once_ = {};   // nothing is staged that would show that it was read: the resync meets it again
  lacks_.untake();
  give_up_from(0, degraded_.why.c_str(), true);
  give_up_held_name();
  absorb_open_batch();
  std::vector<StoredMark> marks;
  if (last_staged_ > shipper_->replica().newest) {
    marks_unread_ = {shipper_->replica().newest, last_staged_};
    marks = marks_of_staged();
  }
  pending_.erase_range(kMarksTable, {}, batch_prefix(last_staged_.next()));
  take_over(given, std::move(marks));
  lack_followed();
  put_degraded();
  kLog.warning("degraded", {{"reason", degraded_.why}, {"batches", given.size()}, {"bytes", bytes},
                            {"lacked_bytes", lacks_.bytes()},
                            {"effect", "unshipped points are given up; the replica is brought level when it answers"}});
  // Where there is no room to commit this, the mark covers it, and here is the room.
  Status status = co_await async<Status>([&](Callback<Status> done) { commit_work(std::move(done)); });
  if (status) {
    for (const StagedBatch& batch : given) remove_spool_files(batch.number, batch.parts.size());
  }
  measured_bytes_ = 0;
  growth_ = 0;
  ask_replica();
}

// Staged batches that will not be shipped: their regions are lacked, their events stay.
void JournalImpl::take_over(const std::deque<StagedBatch>& given, std::vector<StoredMark> marks) {
  for (const StagedBatch& batch : given) {
    count_given_up(batch.number, batch.kind, batch.label, batch.name);
    for (const ImageExtent& e : batch.regions) {
      lacks_.set(e.image, e.extent);
      lacks_.set_unnamed(e.image, batch.kind == BatchKind::kResync);   // it may have named what pieces hold
    }
    staged_bytes_.erase(batch.number);
    fail_waiters(batch.number, Status(Code::kCancelled, "the point was given up: " + degraded_.why));
  }
  if (!given.empty()) {
    pending_.erase_range(kBatchesTable, {}, batch_prefix(last_staged_.next()));
    pending_.erase_range(kStagedTable, {}, batch_prefix(last_staged_.next()));
  }
  // The replica may have any number before the open batch's, even whole, though its answer was lost: none is used again.
  const uint64_t open = open_batch().number.value;
  if (open > 1) {
    BatchRow spent;
    spent.state = BatchState::kGivenUp;
    spent.incarnation = incarnation_;
    pending_.put(kBatchesTable, batch_prefix(BatchNumber(open - 1)), encode_batch_row(spent));
  }
  last_staged_ = shipper_->replica().newest;   // what is known to be there; the replica will say
  last_digest_ = shipper_->replica().digest;
  take_over_marks(std::move(marks));
}

// ---- opening ------------------------------------------------------------------------------------

Status JournalImpl::load_degraded(kv::Snapshot& snapshot) {
  TM_RETURN_IF_ERROR(lacks_.load(snapshot));
  Result<Bytes> row = snapshot.get(kMetaTable, as_bytes("degraded"));
  if (!row && row.status().code() == Code::kNotFound) {
    if (!outdated_->found()) return Status::ok();
    shipping_ = Shipping::kDegraded;
    degraded_.since = env_.wall();
    degraded_.why = "the journal's own disk took nothing before the last stop";
    return Status::ok();
  }
  if (!row) return row.status();
  TM_ASSIGN_OR_RETURN(degraded_, decode_degraded(*row));
  shipping_ = Shipping::kDegraded;
  return Status::ok();
}

// Opened while degraded: what the last run had staged of its resync, and what it left unstaged, is lacked as well.
Status JournalImpl::begin_degraded() {
  std::deque<StagedBatch> given(std::make_move_iterator(staged_at_open_.begin()), std::make_move_iterator(staged_at_open_.end()));
  staged_at_open_.clear();
  absorb_open_batch();
  put_degraded();
  take_over(given, {});             // its events are with those of the open batch already
  // Of a resync's pieces that was seen to as the last run began it: what the replica has of them is not sent again.
  const bool points = std::any_of(given.begin(), given.end(), [](const auto& b) { return b.kind != BatchKind::kPiece; });
  if (points) lack_followed();
  for (const SegmentMark& m : open_batch().marks) lack_if_whole(m.mark);
  put_marks();
  kv::WriteBatch batch = std::exchange(pending_, {});
  lacks_.put_changed(batch);
  TM_RETURN_IF_ERROR(store_->commit_and_wait(std::move(batch)));
  committed_serial_ = finish_serial_;
  hold_regions_ = false;            // all of them are in the map
  kLog.warning("still_degraded", {{"since", degraded_.since.to_string()}, {"reason", degraded_.why}, {"lacked_bytes", lacks_.bytes()}});
  return Status::ok();
}

// ---- the resync ---------------------------------------------------------------------------------

// What it lacks, and that it is degraded, in one transaction: a start that finds the one finds the other.
void JournalImpl::resync_replica(std::vector<ImageExtent> all, Callback<Status> done) {
  // An image without data is told with its first region, and its size with that.
  for (const ImageExtent& e : all) lacks_.set(e.image, e.extent.length != 0 ? e.extent : Extent{0, limits::kOrderGranule});
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) lack_if_followed(slot);
  want_degrade("a full resynchronization of the replica was asked for");
  DegradedRow row = degraded_;
  if (shipping_ == Shipping::kNormal) row.since = env_.wall();
  row.why = degrade_wanted_;
  row.full = degraded_.full = true;
  lacks_.put_changed(pending_);
  pending_.put(kMetaTable, as_bytes("degraded"), encode_degraded(row));
  commit_now(std::move(done));
}

void JournalImpl::ask_replica() {
  shipper_->ask_facts([this](const Shipper::Facts& facts) { return judge_replica(facts); });
}

std::string JournalImpl::judge_replica(const Shipper::Facts& facts) {
  const ReplicaRow& known = shipper_->replica();
  if (shipping_ != Shipping::kDegraded) return {};
  BatchNumber newest(facts.expected.value - 1);
  if (newest >= open_batch().number) {
    return "the replica expects batch " + std::to_string(facts.expected.value) + ", the newest here is " +
           std::to_string(open_batch().number.value - 1);
  }
  if (!degraded_.full) {
    if (!known.store.is_nil() && facts.store != known.store) {
      return "the replica has another store (" + facts.store.to_string() + ", before " + known.store.to_string() + "): " +
             std::string(kFullResyncRemedy);
    }
    if (newest < known.newest) {
      return "the replica expects batch " + std::to_string(facts.expected.value) + ", it had " +
             std::to_string(known.newest.value) + ": " + std::string(kFullResyncRemedy);
    }
    if (newest == known.newest && facts.last_digest != known.digest) {
      return "the replica has other bytes for batch " + std::to_string(newest.value) + ": " + std::string(kFullResyncRemedy);
    }
  }
  facts_ = facts;
  kick_stager();
  return {};
}

void JournalImpl::begin_resync() {
  const Shipper::Facts facts = *std::exchange(facts_, std::nullopt);
  ReplicaRow row = shipper_->replica();
  bool replaced = !row.store.is_nil() && row.store != facts.store;
  const BatchNumber there(facts.expected.value - 1);
  const bool gone_back = there < row.newest || (there == row.newest && facts.last_digest != row.digest);
  row.store = facts.store;
  row.newest = there;
  row.digest = facts.last_digest;
  if (replaced) {
    row.label = WallTime();
    // What came before an image's tenure is in what is sent of it. Whose it was stays on record (followed()), and which
    // tenure, should it be told again (set_tenure()).
    auto unwait = [](wire::TenureParent& parent) { parent = {parent.epoch, std::move(parent.source), {}, 1}; };
    for (SlotState& s : slots_) unwait(s.parent);
    for (const auto& [image, slot] : slot_by_image_) {
      if (!slots_[slot].parent.source.empty()) put_tenure(slot);
    }
    for (auto& [image, tenure] : known_tenures_) {
      unwait(tenure.parent);
      pending_.put(kImagesTable, kv::KeyBuilder().uuid(image), encode_tenure(tenure));
    }
  }
  shipper_->set_replica(row);
  pending_.put(kMetaTable, as_bytes("replica"), encode_replica_row(row));
  last_staged_ = row.newest;
  last_digest_ = row.digest;
  shipping_ = Shipping::kResyncing;
  // The operator's word was for the replica as it is now. What it takes from here on, another one would lack.
  const bool full = std::exchange(degraded_.full, false);
  put_degraded();
  gone_.clear();
  resync_from_ = Counter(next_counter_);
  resync_rounds_ = 0;
  for (const ImageId& id : lacks_.unnamed()) {
    if (replaced || gone_back) {      // what was sent is gone, as may be the events that let it be named; all is sent anew
      lacks_.named(id);
    } else if (withheld_.contains(id) && lacks_.sent(id)) {
      const uint32_t slot = slot_of(id);
      note_lack(slot, RecordKind::kWrite, {0, slots_[slot].size});   // the last batch does not name it: dropped
    }
  }
  kLog.info("resync_began", {{"store", facts.store}, {"expected", facts.expected}, {"lacked_bytes", lacks_.bytes()},
                             {"full", full ? 1 : 0}});
}

bool JournalImpl::piece_due() const {
  if (!disk_failure_.empty() || closed_count() > 0 || shipper_->queued() >= kPiecesInSpoolMax || paused_ || idle_wake_ || !condition_) return false;
  return !lacks_.empty() || tracker_.all_finished_below() >= resync_from_.value;
}

// Closes the open batch, with regions that are lacked, or as the resync's last.
void JournalImpl::next_piece() {
  Batch& open = open_batch();
  std::vector<ImageExtent> regions = lacks_.take(std::min(kPieceBytes, limit_bytes() / kPiecesInLimit));
  // Of an image that was removed meanwhile nothing is needed.
  auto gone = [this](const ImageId& image) {
    const bool known = slot_by_image_.contains(image) || known_tenures_.contains(image);
    if (!known) lacks_.forget(image);
    return !known;
  };
  std::erase_if(regions, [&](const ImageExtent& e) { return gone(e.image); });
  // A write begun while degraded is in no record, only its region is lacked, once it has finished: the end waits for it.
  const bool all_known = tracker_.all_finished_below() >= resync_from_.value;
  if (regions.empty() && !all_known) return;
  bool last = regions.empty() && lacks_.empty() && (open.data_bytes <= kLastDeltaBytes || resync_rounds_ >= kRoundsMax);
  if (regions.empty()) resync_rounds_ = last ? 0 : resync_rounds_ + 1;
  open.lacked.clear();               // of before the resync
  record_lacked(open, regions);
  if (last) {
    for (const ImageId& id : lacks_.unnamed())
      if (!gone(id)) touch(open, slot_of(id), Counter(next_counter_ - 1));
  }
  open.kind = last ? BatchKind::kResync : BatchKind::kPiece;
  open.empty = false;
  if (last) resync_end_ = open.number;
  close_open_batch({});
}

// In the turn that its commit is made ready.
void JournalImpl::resync_staged(const Batch& batch) {
  lacks_.staged(batch.lacked);
  note_named(batch);
  if (shipping_ != Shipping::kResyncing || batch.kind == BatchKind::kPiece) return;
  // A tenure that began meanwhile: what it follows is to be sent, too. Or it is to begin again.
  if (!lacks_.empty() || !degrade_wanted_.empty()) {
    resync_end_ = BatchNumber();
    return;
  }
  kLog.info("resync_cut", {{"batch", batch.number}, {"effect", "a recovery point once the replica has it"}});
  shipping_ = Shipping::kNormal;
  perhaps_told_.clear();
  degraded_ = {};
  put_degraded();
}

// What a piece has of an image is dropped unless the resync's last batch names it, and a size is told by naming it.
void JournalImpl::note_named(const Batch& batch) {
  for (uint32_t slot = 0; slot < batch.images.size(); ++slot) {
    const BatchImage* of_it = batch.image(slot);
    if (of_it == nullptr) continue;
    const ImageId& image = slots_[slot].image;
    auto known = slot_by_image_.find(image);
    if (known == slot_by_image_.end() || known->second != slot) continue;   // it was removed meanwhile
    if (of_it->left_out) lacks_.set_unnamed(image, false);
    else if (batch.kind == BatchKind::kPiece) lacks_.set_unnamed(image, true);
    else lacks_.named(image);
  }
}

// The replica has all of it.
void JournalImpl::end_resync() {
  kLog.info("resync_ended", {{"batch", resync_end_}, {"bytes", resync_sent_}});
  resync_end_ = BatchNumber();
  ++resyncs_ended_;
  for (SlotState& s : slots_) {
    auto it = withheld_.find(s.image);
    s.unshipped_bytes = it == withheld_.end() ? 0 : it->second.bytes;
  }
  for (const auto& [number, bytes] : staged_bytes_) {
    for (const SlotBytes& b : bytes) slots_[b.slot].unshipped_bytes += b.bytes;
  }
  for (const BatchPtr& batch : batches_) {
    for (uint32_t slot = 0; slot < batch->images.size(); ++slot) {
      if (batch->images[slot] != nullptr) slots_[slot].unshipped_bytes += batch->images[slot]->bytes;
    }
  }
}

// Each image that the batch names at least once: of some it has the size alone.
std::vector<ImageExtent> JournalImpl::regions_of(const StagePlan& plan) const {
  std::vector<ImageExtent> out;
  std::set<ImageId> named;
  for (const SegmentImage& image : plan.images) named.insert(image.image);
  for (const PartPlan& part : plan.parts) {
    for (const PartPlan::Piece& piece : part.pieces) {
      uint64_t region = drl_->region_bytes(piece.slot);
      Extent e = piece.extent.extent;
      uint64_t first = e.offset / region * region, end = (e.end() + region - 1) / region * region;
      const ImageId& image = plan.images[piece.image].image;
      if (!out.empty() && out.back().image == image && first <= out.back().extent.end()) {
        out.back().extent.length = std::max(end, out.back().extent.end()) - out.back().extent.offset;
      } else {
        out.push_back({image, {first, end - first}});
        named.erase(image);
      }
    }
  }
  for (const ImageId& image : named) out.push_back({image, {}});
  return out;
}

}  // namespace tidemark::journal
