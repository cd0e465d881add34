// Metadata events: recorded one by one, and folded to a bounded number while no point is made.
#include <algorithm>

#include "journal/fold.h"
#include "journal/journal_impl.h"
#include "shared/base/log.h"

namespace tidemark::journal {
namespace {
const log::Logger kLog("journal");
}

void JournalImpl::mark(const wire::Mark& mark) {
  Batch& batch = open_batch();
  Counter counter(next_counter_++);
  tracker_.begin(counter.value);
  tracker_.finish(counter.value);
  note_change(batch);
  batch.marks.push_back({counter, mark});
  auto it = slot_by_image_.find(mark.node.image);
  if (it != slot_by_image_.end() && mark.node.size_generation.value != 0 && mark.node.size == slots_[it->second].size) {
    slots_[it->second].size_generation = mark.node.size_generation;
  }
  touch_ended(batch, mark, counter);
  put_mark(pending_, batch.number, counter, mark);
  ++finish_serial_;
  arm_commit();
  if (mark.kind == wire::MarkKind::kTenureStart && it != slot_by_image_.end()) commit_tenure(it->second);
  fold_if_needed();
}

// The batch in which a tenure ends names its image, though nothing was written: the next tenure's batches wait for it at the
// replica, and it for those that its own tenure follows. Left out, it would let the next tenure overtake these.
void JournalImpl::touch_ended(Batch& batch, const wire::Mark& mark, Counter counter) {
  if (mark.kind != wire::MarkKind::kTenureEnd) return;
  // One that was taken only to be given back is not this journal's: what it has of the image is of an older one.
  if (tenure_epoch(mark.node.image) == mark.epoch) touch(batch, slot_of(mark.node.image), counter);
}

void JournalImpl::forget(const ImageId& image) {
  // Of one that only the last run used nobody has said detach(), though what was dirty of it then has a slot.
  if (slot_by_image_.contains(image) || known_tenures_.contains(image)) detach({slot_of(image)});
  if (shipping_ != Shipping::kDegraded) return;   // what is told soon is told whole
  gone_.insert(image);
  fold_if_needed();
}

// Degraded, all that is not told yet is in the open batch. What is kept may double before it is looked at again.
void JournalImpl::fold_if_needed() {
  Batch& open = open_batch();
  if (shipping_ != Shipping::kDegraded || std::max(open.marks.size(), gone_.size()) < fold_at_) return;
  const std::vector<ImageId> lacked = lacks_.images();
  std::set<ImageId> named(lacked.begin(), lacked.end());
  for (uint32_t slot = 0; slot < open.images.size(); ++slot) {
    if (open.images[slot] != nullptr) named.insert(slots_[slot].image);
  }
  const size_t before = open.marks.size();
  open.marks = fold_marks(std::move(open.marks), options_.source,
                          [&](const ImageId& image) { return gone_.contains(image) && !named.contains(image); },
                          [&](Counter counter) { return perhaps_told_.contains(counter); });
  put_marks();
  std::set<ImageId> told;
  for (const SegmentMark& m : open.marks) {
    if (m.mark.kind == wire::MarkKind::kCreate) told.insert(m.mark.node.image);
  }
  std::erase_if(gone_, [&](const ImageId& image) { return !told.contains(image); });
  fold_at_ = std::max<size_t>(limits::kEventsFoldedAt, 2 * open.marks.size());
  ++finish_serial_;
  arm_commit();
  kLog.info("events_folded", {{"events", before}, {"into", open.marks.size()}});
}

// Degraded, every row anew: they stand under the numbers of whichever batches these came from. What the replica may have
// stands under the number before the open batch's, which is spent (take_over()): so the next start knows it. Should the
// replica say that it has that number, it has these.
void JournalImpl::put_marks() {
  Batch& open = open_batch();
  pending_.erase_range(kMarksTable, {}, batch_prefix(open.number.next()));
  std::set<Counter> told;
  for (const SegmentMark& m : open.marks) {
    const bool perhaps = sets_node(m.mark) && perhaps_told_.contains(m.counter);   // else a session took its place
    if (perhaps) told.insert(m.counter);
    put_mark(pending_, perhaps ? BatchNumber(open.number.value - 1) : open.number, m.counter, m.mark);
  }
  perhaps_told_ = std::move(told);
}

// Of batches that are staged and not at the replica. A store that failed may be unreadable: then they are read once it is
// opened anew, before that they are to go is committed there.
std::vector<StoredMark> JournalImpl::marks_of_staged() {
  std::vector<StoredMark> marks;
  auto snapshot = store_->try_snapshot();
  if (!snapshot) {
    kLog.warning("marks_unread", {{"status", snapshot.status()}, {"effect", "read once the store is opened anew"}});
    return marks;
  }
  const auto [at_replica, staged] = *std::exchange(marks_unread_, {});
  Result<std::vector<StoredMark>> kept = read_marks(**snapshot);
  if (!kept) {
    kLog.error("marks_unreadable", {{"status", kept.status()}, {"effect", "names may be missing at the replica"}});
    return marks;
  }
  for (StoredMark& mark : *kept) {
    if (mark.batch <= staged && mark.batch > at_replica) marks.push_back(std::move(mark));
  }
  return marks;
}

// A mark that an image is whole, which may be at the replica already: told again, it is told with all of the image again. An
// earlier version of the replica takes it to say that nothing is left there of what was before.
void JournalImpl::lack_if_whole(const wire::Mark& mark) {
  if (mark.kind != wire::MarkKind::kWhole) return;
  const ImageId& image = mark.node.image;
  auto slot = slot_by_image_.find(image);
  auto known = known_tenures_.find(image);
  if (slot != slot_by_image_.end()) lacks_.set(image, {0, slots_[slot->second].size});
  else if (known != known_tenures_.end()) lacks_.set(image, {0, known->second.size});
}

// Into the open batch: they are told in whichever comes next, though the replica may have them.
void JournalImpl::take_over_marks(std::vector<StoredMark> marks) {
  Batch& open = open_batch();
  for (StoredMark& mark : marks) {
    Counter counter(next_counter_++);
    tracker_.begin(counter.value);
    tracker_.finish(counter.value);
    perhaps_told_.insert(counter);
    lack_if_whole(mark.mark);
    open.marks.push_back({counter, std::move(mark.mark)});
  }
  // All of them: rows of an earlier run may stand under the number before this one's, with the same counters.
  if (!marks.empty()) put_marks();
  ++finish_serial_;
}

}  // namespace tidemark::journal
