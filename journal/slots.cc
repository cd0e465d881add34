// The images of this host, each in its slot: sizes, tenures and what is kept of its copies.
#include <algorithm>

#include "journal/journal_impl.h"

namespace tidemark::journal {

uint32_t JournalImpl::slot_of(const ImageId& image) {
  auto it = slot_by_image_.find(image);
  if (it != slot_by_image_.end()) return it->second;
  auto slot = static_cast<uint32_t>(slots_.size());
  SlotState& s = slots_.emplace_back();
  s.image = image;
  auto known = known_tenures_.find(image);
  if (known != known_tenures_.end()) {
    s.size = known->second.size;
    s.epoch = known->second.epoch;
    s.parent = known->second.parent;
    s.size_generation = known->second.size_generation;
    known_tenures_.erase(known);
  }
  slot_by_image_.emplace(image, slot);
  drl_->attach(slot, image, 0);
  Bytes value;
  Writer(value).uuid(image);
  pending_.put(kSlotsTable, kv::KeyBuilder().u64(incarnation_.value).u32(slot), value);
  return slot;
}

Slot JournalImpl::attach(const ImageId& image, uint64_t size) {
  uint32_t slot = slot_of(image);
  SlotState& s = slots_[slot];
  if (!s.attached) {
    s.attached = true;
    s.size = size;
    drl_->grow(slot, size);
    put_tenure(slot);
    if (sizes_unknown_.erase(image) > 0 && shipping_ != Shipping::kNormal) note_lack(slot, RecordKind::kWrite, {0, size});
  }
  return {slot};
}

void JournalImpl::detach(Slot slot) {
  SlotState& s = slots_[slot.index];
  s.attached = false;
  // Its number stays taken: batches still speak of it. The image, should it come back, gets another.
  slot_by_image_.erase(s.image);
  // Degraded, the batch holds nothing of it but that it was touched.
  Batch& open = open_batch();
  if (shipping_ == Shipping::kDegraded && slot.index < open.images.size()) open.images[slot.index].reset();
  drl_->detach(slot.index);
  lacks_.forget(s.image);
  forget_withheld(s.image);
  pending_.erase(kImagesTable, kv::KeyBuilder().uuid(s.image));
  arm_commit();
}

void JournalImpl::set_size(Slot slot, uint64_t size) {
  slots_[slot.index].size = size;
  drl_->grow(slot.index, size);
  put_tenure(slot.index);
}

void JournalImpl::set_tenure(Slot slot, Epoch epoch, const wire::TenureParent& parent) {
  SlotState& s = slots_[slot.index];
  // A batch holds one epoch of an image: what was written under the old one ends here.
  const BatchImage* image = open_batch().image(slot.index);
  if (image != nullptr && image->epoch != epoch && image->epoch.value != 0 && !reconciling()) cut(CutReason::kHandover, {});
  const bool another = s.epoch != epoch;
  // What a crash left of an image that had been given back goes with the tenure that follows the other host's writes.
  if (another && image != nullptr && reconciling() && another_wrote(parent)) take_as_left(open_batch(), slot.index);
  s.epoch = epoch;
  drl_->begin_tenure(slot.index, epoch);
  // After an own tenure (a crash in between) the replica must still wait for what came before that one: its batches,
  // which said so, may be part of the resync batch. Own batches are in order anyhow.
  bool own = parent.source == options_.source && parent.source != s.parent.source && !s.parent.source.empty();
  if (!own && another) forget_whole(s.image);
  // Told again, of this tenure or of one that follows one without writes: a replica that came in another's place waits
  // for nothing of before it (begin_resync()). Unless it was taken meanwhile, which is to be told.
  const bool same = s.parent.epoch == parent.epoch && s.parent.source == parent.source;
  const bool unwaited = same && s.parent.last.counter.value == 0 && (!another || parent.clean != wire::kTaken);
  if (!own && !unwaited) s.parent = parent;
  if (shipping_ != Shipping::kNormal) lack_if_followed(slot.index);
  put_tenure(slot.index);
  commit_tenure(slot.index);
}

// The tenure (its row, its start mark) is durable before its first write: until then no region of the
// image counts as dirty, and marking one waits.
void JournalImpl::commit_tenure(uint32_t slot) {
  ++slots_[slot].uncommitted;
  env_.at_turn_end([this, slot, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired()) return;
    commit_now([this, slot](Status) {
      SlotState& s = slots_[slot];
      if (--s.uncommitted > 0) return;
      // Should the commit have failed, condition() says so; the regions themselves are durably marked.
      for (auto& done : std::exchange(s.tenure_waiters, {})) done(Status::ok());
    });
  });
}

void JournalImpl::mark_dirty(Slot slot, Extent extent, Callback<Status> done) {
  drl_->mark(slot.index, extent, [this, slot, done = std::move(done)](Status status) mutable {
    SlotState& s = slots_[slot.index];
    if (status && s.uncommitted > 0) s.tenure_waiters.push_back(std::move(done));
    else done(std::move(status));
  });
}

void JournalImpl::put_tenure(uint32_t slot) {
  const SlotState& s = slots_[slot];
  pending_.put(kImagesTable, kv::KeyBuilder().uuid(s.image), encode_tenure({s.size, s.epoch, s.parent, s.size_generation}));
  arm_commit();
}

void JournalImpl::note_copies(Slot slot, LossId host, LossId shared, bool alone, Callback<Status> done) {
  drl_->note(slot.index, host, shared, alone, slots_[slot.index].epoch, std::move(done));
}

ImageCounters JournalImpl::counters(Slot slot) const {
  uint64_t regions = drl_->dirty_count(slot.index);
  return {regions, regions * drl_->region_bytes(slot.index), slots_[slot.index].unshipped_bytes};
}

Epoch JournalImpl::tenure_epoch(const ImageId& image) const {
  auto slot = slot_by_image_.find(image);
  if (slot != slot_by_image_.end()) return slots_[slot->second].epoch;
  auto known = known_tenures_.find(image);
  return known == known_tenures_.end() ? Epoch() : known->second.epoch;
}

bool JournalImpl::followed(const ImageId& image) const {
  const wire::TenureParent* parent = nullptr;
  if (auto slot = slot_by_image_.find(image); slot != slot_by_image_.end()) parent = &slots_[slot->second].parent;
  else if (auto known = known_tenures_.find(image); known != known_tenures_.end()) parent = &known->second.parent;
  return parent != nullptr && !parent->source.empty() && parent->source != options_.source;
}

bool JournalImpl::unshipped(const ImageId& image) const {
  if (lacks_.bytes(image) != 0 || lacks_.is_unnamed(image)) return true;
  auto names_it = [&](const StagedBatch& batch) {
    return std::any_of(batch.regions.begin(), batch.regions.end(), [&](const ImageExtent& e) { return e.image == image; });
  };
  if (std::any_of(shipper_->queue().begin(), shipper_->queue().end(), names_it)) return true;
  auto slot = slot_by_image_.find(image);
  return slot != slot_by_image_.end() && std::any_of(batches_.begin(), batches_.end(), [&](const BatchPtr& batch) {
    return batch->image(slot->second) != nullptr;
  });
}

bool JournalImpl::lacked_since(const ImageId& image, Epoch epoch) const {
  if (tenure_epoch(image) <= epoch) return false;
  // What a resync has staged is of the newest tenure, too; what was staged before it may be of an older one.
  return lacks_.bytes(image) != 0 || lacks_.is_unnamed(image) || (resync_end_.value != 0 && unshipped(image));
}

}  // namespace tidemark::journal
