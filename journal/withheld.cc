// Images whose blocks cannot be read: a copy that was cut short or whose device fails, where no other copy has them, or one
// that is not there. The other images' batches go on without such a one:
//
//   shipped --staging could not read it, or its owner says so--> withheld --it was read, or is reconciled--> shipped
//
// Withheld, nothing of it is staged: what the batches have of it becomes regions in `lacks_`, in the transaction in which a
// batch without them is durable. Each batch says so with a mark, so that the replica's point does, too; there the image stays
// as it was at the last cut that has it. Once it can be read the regions join the open batch, and count as lacked until that is
// staged. While shipping is normal only withheld images lack anything, or are unnamed (lacks.h): by that a start knows them.
// The mark that a batch holds all of an image (kWhole) goes from one open batch to the next until then.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr io::Duration kTryInterval = std::chrono::seconds(5);

}  // namespace

bool JournalImpl::reconciling() const {
  return std::any_of(unreconciled_.begin(), unreconciled_.end(), [this](const ImageId& id) { return !withheld_.contains(id); });
}

void JournalImpl::load_withheld() {
  if (shipping_ != Shipping::kNormal) return;   // its resync meets them again
  for (const ImageId& image : lacks_.images()) {
    withheld_[image].why = "since before the start";
    lacks_.withhold(image, true);
  }
}

void JournalImpl::withhold(const ImageId& image, const Status& why) {
  const bool waited = reconciling();
  begin_withholding(slot_of(image), {}, why);
  if (waited && !reconciling()) all_reconciled();
}

// The batch that could not be staged was given up, or is a piece: the next try goes without that image. A device gets a second
// one; what a copy knows to be cut off does not come back.
bool JournalImpl::leave_out_unreadable() {
  if (!unreadable_) return false;
  const ImageId image = slots_[unreadable_->slot].image;
  const Code code = unreadable_->why.code();
  // What was lacked may need the shared node, which may be away for long: no reason for the others to wait.
  const bool absent = unreadable_->lacked && (code == Code::kUnavailable || code == Code::kUnsupported);
  const bool twice = code == Code::kIoError || absent;
  const bool again = std::exchange(failed_once_, twice ? image : ImageId()) == image;
  if (code != Code::kCorruption && !(twice && again)) return false;
  if (!begin_withholding(unreadable_->slot, unreadable_->extent, unreadable_->why)) return false;
  for (size_t i = 0; i + 1 < batches_.size(); ++i)
    if (batches_[i]->kind == BatchKind::kPiece) leave_out(*batches_[i]);   // any other was given up
  return true;
}

bool JournalImpl::begin_withholding(uint32_t slot, Extent unread, const Status& why) {
  const ImageId& image = slots_[slot].image;
  auto [it, fresh] = withheld_.try_emplace(image);
  it->second.why = why.to_string();
  it->second.unread = unread;
  it->second.try_at = env_.now() + kTryInterval;
  if (!fresh) return false;
  lacks_.withhold(image, true);
  // Its pieces that were sent already are dropped with a last batch that does not name it.
  if (shipping_ == Shipping::kResyncing) note_lack(slot, RecordKind::kWrite, {0, slots_[slot].size});
  kLog.warning("image_withheld", {{"image", image}, {"reason", why},
                                  {"effect", "the replica keeps an older state of it; the other images go on"}});
  return true;
}

void JournalImpl::end_withholding(const ImageId& image) {
  // What a closed batch leaves out is lacked once that is staged. A cut before then would have the rest without it.
  withheld_.at(image).over = true;
  if (left_out(image)) return;
  const uint64_t bytes = withheld_.at(image).bytes;
  forget_withheld(image);
  kLog.info("image_no_longer_withheld", {{"image", image}, {"lacked_bytes", lacks_.bytes(image)}});
  if (shipping_ != Shipping::kNormal) return kick_stager();
  Batch& open = open_batch();
  record_lacked(open, lacks_.take_all(image));
  if (lacks_.is_unnamed(image)) {    // though nothing of it may be lacked: its size may be another
    touch(open, slot_of(image), Counter(next_counter_ - 1));
    open.empty = false;
  }
  if (BatchImage* in_open = open.image(slot_of(image))) in_open->bytes += bytes;
}

bool JournalImpl::left_out(const ImageId& image) const {
  auto slot = slot_by_image_.find(image);
  return slot != slot_by_image_.end() && std::any_of(batches_.begin(), batches_.end(), [&](const BatchPtr& batch) {
    const BatchImage* of_it = batch->image(slot->second);
    return of_it != nullptr && of_it->left_out;
  });
}

// A batch was staged.
void JournalImpl::end_readable() {
  std::vector<ImageId> over;
  for (const auto& [image, w] : withheld_)
    if (w.over) over.push_back(image);
  for (const ImageId& image : over) end_withholding(image);
}

void JournalImpl::forget_withheld(const ImageId& image) {
  withheld_.erase(image);
  lacks_.withhold(image, false);
}

// Once a second.
void JournalImpl::try_withheld() {
  for (auto& [id, w] : withheld_) {
    if (w.trying || env_.now() < w.try_at || unreconciled_.contains(id)) continue;
    w.trying = true;
    const Extent extent = w.unread.length != 0 ? w.unread : Extent{0, limits::kOrderGranule};
    auto buffer = std::make_shared<io::AlignedBuffer>(extent.length);   // shared with the read: it may outlive this
    // Posted: it may end in this turn, and take the image off the list.
    env_.post([this, id = id, extent, buffer, alive = std::weak_ptr<bool>(alive_)] {
      if (alive.expired()) return;
      using Wanted = BlockSource::Wanted;
      const Wanted wanted = lacks_.bytes(id) != 0 ? Wanted::kNewest : Wanted::kOwnWrites;
      blocks_.read_block(id, extent, wanted, buffer->span().first(extent.length),
                         [this, id, buffer, alive](const Status& status) {
        if (!alive.expired()) tried(id, status);
      });
    });
  }
}

void JournalImpl::tried(const ImageId& image, const Status& status) {
  auto it = withheld_.find(image);
  if (it == withheld_.end()) return;
  it->second.trying = false;
  it->second.try_at = env_.now() + kTryInterval;
  if (unreconciled_.contains(image)) return;
  if (status) return end_withholding(image);
  it->second.over = false;
  auto slot = slot_by_image_.find(image);
  const bool attached = slot != slot_by_image_.end() && slots_[slot->second].attached;
  if (status.code() != Code::kNotFound || attached || left_out(image)) return;
  lacks_.forget(image);            // it was removed
  forget_withheld(image);
  arm_commit();
}

// A mark that an image is whole waits for it: the replica would take what comes later for a part of it. Of a resync its last
// batch names the image, if that is not withheld by then.
void JournalImpl::keep_back_wholes(Batch& from) {
  Batch& open = open_batch();
  auto goes = [&](const SegmentMark& m) {
    const bool waits = from.kind == BatchKind::kPiece || withheld_.contains(m.mark.node.image);
    return m.mark.kind != wire::MarkKind::kWhole || !waits;
  };
  auto first = std::stable_partition(from.marks.begin(), from.marks.end(), goes);
  for (auto kept = first; kept != from.marks.end(); ++kept) {
    drop_mark(pending_, from.number, kept->counter);
    const Counter counter(next_counter_++);
    tracker_.begin(counter.value);
    tracker_.finish(counter.value);
    put_mark(pending_, open.number, counter, kept->mark);   // as durable as it was: no cut is made for it
    open.marks.push_back({counter, std::move(kept->mark)});
  }
  from.marks.erase(first, from.marks.end());
}

// Another tenure: how the image was as an earlier one began is not asked for any more.
void JournalImpl::forget_whole(const ImageId& image) {
  if (!withheld_.contains(image)) return;   // it went with the image
  Batch& open = open_batch();
  std::erase_if(open.marks, [&](const SegmentMark& m) {
    if (m.mark.kind != wire::MarkKind::kWhole || m.mark.node.image != image) return false;
    drop_mark(pending_, open.number, m.counter);
    return true;
  });
}

// At a cut, or when a piece could not be read.
void JournalImpl::leave_out(Batch& batch) {
  for (uint32_t slot = 0; slot < batch.images.size(); ++slot) {
    BatchImage* image = batch.images[slot].get();
    if (image == nullptr || !withheld_.contains(slots_[slot].image)) continue;
    image->left_out = true;
    image->needs = image->read = {};
  }
  if (batch.kind == BatchKind::kPiece) return;   // shows no point
  for (const auto& [id, w] : withheld_) {
    wire::Mark mark;
    mark.kind = wire::MarkKind::kWithheld;
    mark.origin = options_.source;
    mark.label = label_;
    mark.node.image = id;
    Counter counter(next_counter_++);
    tracker_.begin(counter.value);
    tracker_.finish(counter.value);
    batch.last = counter;
    batch.marks.push_back({counter, std::move(mark)});   // in this batch alone: none is stored
  }
}

// What the batch has of images that it leaves out is lacked once it is staged without them.
void JournalImpl::carry_over(const Batch& batch, const std::vector<ImageExtents>& extents) {
  for (const ImageExtents& e : extents) {
    const ImageId& image = slots_[e.slot].image;
    auto known = slot_by_image_.find(image);         // else it was removed meanwhile
    if (!batch.image(e.slot)->left_out || known == slot_by_image_.end() || known->second != e.slot) continue;
    for (const PlainExtent& p : e.extents) note_lack(e.slot, RecordKind::kWrite, p.extent);
  }
}

// Staged without this image: what was written to it stays unshipped.
void JournalImpl::count_left_out(uint32_t slot, uint64_t bytes) {
  auto it = withheld_.find(slots_[slot].image);
  if (it != withheld_.end()) it->second.bytes += bytes;
}

// Lacked regions into a batch: they are taken, and lacked no longer once it is staged.
void JournalImpl::record_lacked(Batch& batch, const std::vector<ImageExtent>& regions) {
  Counter taken(next_counter_++);
  tracker_.begin(taken.value);
  tracker_.finish(taken.value);
  for (const ImageExtent& e : regions) {
    uint32_t slot = slot_of(e.image);
    BatchImage& image = touch(batch, slot, taken);
    ChangeRecord record{taken.value, e.extent.offset, e.extent.length, slot, RecordKind::kWrite};
    for_data_granules(record, [&](uint64_t first, uint64_t end) { image.needs.set(first, end); });
    batch.records.push_back(record);
    batch.empty = false;
  }
  batch.lacked.insert(batch.lacked.end(), regions.begin(), regions.end());
}

}  // namespace tidemark::journal
