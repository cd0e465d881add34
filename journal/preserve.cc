// Old blocks kept for closed, unstaged batches and for a frozen image.
#include "journal/preserve.h"

#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr uint64_t kGranule = limits::kOrderGranule;
constexpr uint64_t kGranulesMax = limits::kPreservedBytesMax / kGranule;
constexpr uint64_t kReadGranules = 64;            // 256 KiB a read
constexpr uint32_t kPreservingReadsMax = 8;

}  // namespace

void FrozenImage::release(uint64_t first, uint64_t end) {
  for (auto it = blocks.begin(); it != blocks.end();) {
    it = it->first >= first && it->first < end ? blocks.erase(it) : std::next(it);
  }
  auto it = released.upper_bound(first);
  if (it != released.begin() && std::prev(it)->second >= first) --it;
  while (it != released.end() && it->first <= end) {
    first = std::min(first, it->first);
    end = std::max(end, it->second);
    it = released.erase(it);
  }
  released[first] = end;
}

void FrozenImage::missing(uint64_t first, uint64_t end, uint64_t count_max, std::vector<Extent>& out) const {
  end = std::min(end, (size + kGranule - 1) / kGranule);
  uint64_t count = 0;
  while (first < end && count < count_max) {
    auto it = released.upper_bound(first);
    if (it != released.begin() && std::prev(it)->second > first) {
      first = std::prev(it)->second;
      continue;
    }
    uint64_t stop = it == released.end() ? end : std::min(end, it->first);
    for (; first < stop && count < count_max; ++first) {
      if (blocks.contains(first)) continue;
      ++count;
      if (!out.empty() && out.back().end() == first) ++out.back().length;
      else out.push_back({first, 1});
    }
  }
}

bool JournalImpl::must_preserve(Slot slot, Extent extent) const {
  if (preserving_ == 0 && frozen_ == nullptr) return false;
  uint64_t first = first_granule(extent), end = end_granule(extent);
  for (size_t i = 0; preserving_ > 0 && i + 1 < batches_.size(); ++i) {
    const Batch& batch = *batches_[i];
    if (!batch.needs_preserving()) continue;
    const BatchImage* image = batch.image(slot.index);
    if (image != nullptr && image->needs.any(first, end)) return true;
  }
  if (frozen_ == nullptr || frozen_->broken || frozen_->slot != slot.index) return false;
  std::vector<Extent> runs;
  frozen_->missing(first, end, 1, runs);
  return !runs.empty();
}

// Runs of granules of the extent that some closed batch or the frozen image still lacks.
void JournalImpl::needed_runs(uint32_t slot, Extent extent, std::vector<Extent>& out) const {
  uint64_t first = first_granule(extent), end = end_granule(extent);
  for (size_t i = 0; i + 1 < batches_.size(); ++i) {
    const BatchImage* image = batches_[i]->image(slot);
    if (image != nullptr && batches_[i]->needs_preserving()) image->needs.runs(first, end, out);
  }
  if (frozen_ != nullptr && !frozen_->broken && frozen_->slot == slot) frozen_->missing(first, end, kGranulesMax + 1, out);
  std::sort(out.begin(), out.end());
  std::vector<Extent> joined;
  for (const Extent& run : out) {
    if (!joined.empty() && run.offset <= joined.back().end()) {
      joined.back().length = std::max(joined.back().end(), run.end()) - joined.back().offset;
    } else {
      joined.push_back(run);
    }
  }
  out = std::move(joined);
}

void JournalImpl::keep_block(uint32_t slot, uint64_t granule, ByteSpan bytes) {
  std::shared_ptr<const Block> block;
  auto get = [&] {
    if (block == nullptr) {
      auto made = std::make_shared<Block>();
      std::copy(bytes.begin(), bytes.end(), made->begin());
      block = std::move(made);
      preserved_bytes_ += kGranule;
    }
    return block;
  };
  for (size_t i = 0; i + 1 < batches_.size(); ++i) {
    Batch& batch = *batches_[i];
    BatchImage* image = batch.image(slot);
    // Staging may have read it meanwhile: then it is no longer needed.
    if (image == nullptr || !batch.needs_preserving() || !image->needs.contains(granule)) continue;
    batch.preserved.emplace(block_key(slot, granule), get());
    image->needs.clear(granule, granule + 1);
  }
  if (frozen_ == nullptr || frozen_->broken || frozen_->slot != slot) return;
  std::vector<Extent> missing;
  frozen_->missing(granule, granule + 1, 1, missing);
  if (!missing.empty()) frozen_->blocks.emplace(granule, get());
}

// What a batch has because the replica lacks it is kept as the newest, as staging would read it: this copy may not be filled there
// yet. Should the newest be out of reach, the batch is given up, and what takes it over lacks the same.
BlockSource::Wanted JournalImpl::wanted_of(uint32_t slot, Extent extent) const {
  for (size_t i = 0; i + 1 < batches_.size(); ++i) {
    const Batch& batch = *batches_[i];
    const BatchImage* image = batch.image(slot);
    const bool needed = image != nullptr && batch.needs_preserving() && image->needs.any(first_granule(extent), end_granule(extent));
    if (needed && batch.lacks(slots_[slot].image, extent)) return BlockSource::Wanted::kNewest;
  }
  return BlockSource::Wanted::kOwnWrites;
}

void JournalImpl::drop_preserved(Batch& batch) {
  for (const auto& [key, block] : batch.preserved) {
    if (block.use_count() == 1) preserved_bytes_ -= kGranule;
  }
  batch.preserved.clear();
}

void JournalImpl::break_freeze(const char* why) {
  kLog.info("freeze_broken", {{"image", slots_[frozen_->slot].image}, {"reason", why}});
  frozen_->broken = true;
  for (const auto& [granule, block] : frozen_->blocks) {
    if (block.use_count() == 1) preserved_bytes_ -= kGranule;
  }
  frozen_->blocks.clear();
}

void JournalImpl::preserve_failed(uint32_t slot, Extent extent, const char* why) {
  uint64_t first = first_granule(extent), end = end_granule(extent);
  if (frozen_ != nullptr && !frozen_->broken && frozen_->slot == slot) {
    std::vector<Extent> missing;
    frozen_->missing(first, end, 1, missing);
    if (!missing.empty()) break_freeze(why);
  }
  for (size_t i = 0; i + 1 < batches_.size(); ++i) {
    const BatchImage* image = batches_[i]->image(slot);
    if (image == nullptr || !batches_[i]->needs_preserving() || !image->needs.any(first, end)) continue;
    // Later cuts hold the block as well, whether they changed it or not.
    return give_up_from(i, why);
  }
}

// Reads runs of granules, a bounded number at a time.
struct JournalImpl::PreserveRun : std::enable_shared_from_this<JournalImpl::PreserveRun> {
  JournalImpl* journal;
  std::weak_ptr<bool> alive;
  uint32_t slot;
  std::vector<Extent> pieces;        // in granules, each one read
  size_t next = 0;
  uint32_t in_flight = 0;
  bool pumping = false;
  UniqueFunction<void()> done;

  void pump() {
    if (pumping) return;             // a read completed inline: the loop below goes on
    pumping = true;
    while (next < pieces.size() && in_flight < kPreservingReadsMax) start(pieces[next++]);
    pumping = false;
    if (in_flight == 0 && next == pieces.size() && done) std::exchange(done, {})();
  }
  void start(Extent piece) {
    ++in_flight;
    auto buffer = std::make_shared<io::AlignedBuffer>(piece.length * kGranule);   // shared with the read: it may outlive this
    Extent bytes{piece.offset * kGranule, piece.length * kGranule};
    journal->blocks_.read_block(journal->slots_[slot].image, bytes, journal->wanted_of(slot, bytes), buffer->span().first(bytes.length),
                                [self = shared_from_this(), buffer, piece](Status status) {
                                  if (self->alive.expired()) return;
                                  self->finished(status, piece, buffer->span());
                                });
  }
  void finished(const Status& status, Extent piece, ByteSpan bytes) {
    if (status) {
      for (uint64_t i = 0; i < piece.length; ++i) {
        journal->keep_block(slot, piece.offset + i, bytes.subspan(i * kGranule, kGranule));
      }
    } else {
      kLog.warning("preserve_read_failed", {{"image", journal->slots_[slot].image}, {"status", status}});
      journal->preserve_failed(slot, {piece.offset * kGranule, piece.length * kGranule}, "an old block could not be read");
    }
    --in_flight;
    pump();
  }
};

void JournalImpl::preserve(Slot slot, Extent extent, UniqueFunction<void()> done) {
  std::vector<Extent> runs;
  auto bytes_needed = [&] {
    runs.clear();
    needed_runs(slot.index, extent, runs);
    uint64_t granules = 0;
    for (const Extent& run : runs) granules += run.length;
    return granules * kGranule;
  };
  uint64_t room = limits::kPreservedBytesMax - std::min(limits::kPreservedBytesMax, preserved_bytes_);
  if (bytes_needed() > room && frozen_ != nullptr && !frozen_->broken) {
    // A verify can be run again; a recovery point cannot.
    break_freeze("no room for old blocks");
    room = limits::kPreservedBytesMax - std::min(limits::kPreservedBytesMax, preserved_bytes_);
  }
  if (bytes_needed() > room) {
    preserve_failed(slot.index, extent, "no room for old blocks");
    bytes_needed();
  }
  auto run = std::make_shared<PreserveRun>();   // shared by its reads
  run->journal = this;
  run->alive = alive_;
  run->slot = slot.index;
  run->done = std::move(done);
  for (const Extent& r : runs) {
    for (uint64_t at = 0; at < r.length; at += kReadGranules) {
      run->pieces.push_back({r.offset + at, std::min(kReadGranules, r.length - at)});
    }
  }
  run->pump();
}

// ---- verify -------------------------------------------------------------------------------------

Status JournalImpl::freeze(Slot slot, uint64_t size) {
  if (frozen_ != nullptr) return Status(Code::kBusy, "another image is frozen for verification");
  frozen_ = std::make_unique<FrozenImage>();
  frozen_->slot = slot.index;
  frozen_->size = size;
  return Status::ok();
}

void JournalImpl::overlay_frozen(Extent extent, MutableByteSpan out) {
  if (frozen_ == nullptr) return;
  for (uint64_t granule = first_granule(extent); granule < end_granule(extent); ++granule) {
    auto it = frozen_->blocks.find(granule);
    if (it == frozen_->blocks.end()) continue;
    uint64_t begin = std::max(granule * kGranule, extent.offset), end = std::min((granule + 1) * kGranule, extent.end());
    std::copy_n(it->second->begin() + static_cast<ptrdiff_t>(begin - granule * kGranule), end - begin,
                out.begin() + static_cast<ptrdiff_t>(begin - extent.offset));
  }
}

void JournalImpl::release_frozen(Extent extent) {
  if (frozen_ == nullptr || frozen_->broken) return;
  uint64_t first = extent.offset / kGranule, end = end_granule(extent);
  for (const auto& [granule, block] : frozen_->blocks) {
    if (granule >= first && granule < end && block.use_count() == 1) preserved_bytes_ -= kGranule;
  }
  frozen_->release(first, end);
}

bool JournalImpl::changed_since_freeze(Extent extent) const {
  if (frozen_ == nullptr) return false;
  return std::any_of(frozen_->blocks.begin(), frozen_->blocks.end(), [&](const auto& kept) {
    return kept.first >= first_granule(extent) && kept.first < end_granule(extent);
  });
}

void JournalImpl::end_freeze() {
  if (frozen_ == nullptr) return;
  if (!frozen_->broken) release_frozen({0, frozen_->size});
  frozen_.reset();
}

}  // namespace tidemark::journal
