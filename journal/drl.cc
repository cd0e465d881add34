#include "journal/drl.h"

#include <algorithm>
#include <bit>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("drl");

bool get_bit(const std::vector<uint64_t>& bits, uint64_t i) {
  return i / 64 < bits.size() && (bits[i / 64] >> (i % 64) & 1) != 0;
}
void set_bit(std::vector<uint64_t>& bits, uint64_t i) {
  if (i / 64 >= bits.size()) bits.resize(i / 64 + 1);
  bits[i / 64] |= uint64_t{1} << (i % 64);
}
void clear_bit(std::vector<uint64_t>& bits, uint64_t i) {
  if (i / 64 < bits.size()) bits[i / 64] &= ~(uint64_t{1} << (i % 64));
}
template <typename Fn>
void for_bits(const std::vector<uint64_t>& bits, Fn fn) {
  for (size_t w = 0; w < bits.size(); ++w) {
    for (uint64_t word = bits[w]; word != 0; word &= word - 1) fn(w * 64 + static_cast<uint64_t>(std::countr_zero(word)));
  }
}

uint64_t region_bytes_for(uint64_t size, uint64_t least) {
  uint64_t bytes = std::bit_ceil(std::max<uint64_t>(least, limits::kOrderGranule));
  while (size > bytes * limits::kRegionsPerImageMax) bytes *= 2;
  return bytes;
}

// Each region of the old size lies in one of the new, larger size.
std::vector<uint64_t> coarser(const std::vector<uint64_t>& bits, unsigned by) {
  std::vector<uint64_t> out;
  for_bits(bits, [&](uint64_t i) { set_bit(out, i >> by); });
  return out;
}

Bytes page_key(const ImageId& image, uint64_t page) { return kv::KeyBuilder().uuid(image).u64(page).bytes(); }
Bytes after_pages_key(const ImageId& image) { return kv::KeyBuilder().uuid(image).u64(UINT64_MAX).bytes(); }

}  // namespace

DirtyLog::DirtyLog(io::Env& env, std::unique_ptr<kv::Store> store, uint64_t region_bytes_min)
    : env_(env), store_(std::move(store)), region_bytes_min_(region_bytes_min), digests_(env) {}

Status DirtyLog::load(std::vector<DirtyImage>& out) {
  auto snapshot = store_->snapshot();
  auto rows = snapshot->cursor(kDrlImagesTable);
  for (bool more = rows->first(); more; more = rows->next()) {
    if (rows->key().size() != 16) return Status(Code::kCorruption, "drl: a key of table images has the wrong length");
    auto image = std::make_unique<Image>();
    image->image = Reader(rows->key()).uuid();
    TM_ASSIGN_OR_RETURN(image->row, decode_drl_image(rows->value()));
    image->shift = static_cast<uint32_t>(std::countr_zero(image->row.region_bytes));
    image->stored = true;
    loaded_.emplace(image->image, std::move(image));
  }
  auto pages = snapshot->cursor(kDrlRegionsTable);
  for (bool more = pages->first(); more; more = pages->next()) {
    Reader key(pages->key());
    ImageId id = key.uuid();
    uint64_t page = __builtin_bswap64(key.u64());
    auto it = loaded_.find(id);
    if (!key.done() || it == loaded_.end() || pages->value().size() != kDrlPageBytes ||
        page >= limits::kRegionsPerImageMax / kDrlPageRegions) {
      return Status(Code::kCorruption, "drl: a page of table regions is malformed, image " + id.to_string());
    }
    std::vector<uint64_t>& dirty = it->second->dirty;
    dirty.resize(std::max<size_t>(dirty.size(), (page + 1) * (kDrlPageRegions / 64)));
    std::memcpy(dirty.data() + page * (kDrlPageRegions / 64), pages->value().data(), kDrlPageBytes);
  }
  TM_RETURN_IF_ERROR(digests_.load(*snapshot));
  for (auto& [id, image] : loaded_) {
    image->wanted = image->dirty;
    DirtyImage d{id, image->row.region_bytes, {}, image->row.host, image->row.shared, image->row.alone, image->row.epoch};
    for_bits(image->dirty, [&](uint64_t i) { d.regions.push_back(RegionIndex(i)); });
    // Gone on alone without a dirty region: its size may have grown.
    if (!d.regions.empty() || d.alone) out.push_back(std::move(d));
  }
  return Status::ok();
}

DirtyImage DirtyLog::known(const ImageId& image, uint64_t size) const {
  auto it = loaded_.find(image);
  DirtyImage out;
  out.image = image;
  out.region_bytes = region_bytes_for(size, region_bytes_min_);
  if (it == loaded_.end()) return out;
  const DrlImageRow& row = it->second->row;
  out.region_bytes = std::max(out.region_bytes, row.region_bytes);
  out.host_loss_id = row.host;
  out.shared_loss_id = row.shared;
  out.alone = row.alone;
  out.epoch = row.epoch;
  return out;
}

void DirtyLog::attach(uint32_t slot, const ImageId& image, uint64_t size) {
  TM_CHECK(slot == images_.size(), "slots are attached in order");
  auto it = loaded_.find(image);
  if (it != loaded_.end()) {
    images_.push_back(std::move(it->second));
    loaded_.erase(it);
  } else {
    images_.push_back(std::make_unique<Image>());
    Image& i = at(slot);
    i.image = image;
    i.row.region_bytes = region_bytes_for(size, region_bytes_min_);
    i.shift = static_cast<uint32_t>(std::countr_zero(i.row.region_bytes));
  }
  at(slot).attached = true;
  at(slot).regions.resize(limits::kRegionsPerImageMax / kPage);
  grow(slot, size);
}

void DirtyLog::detach(uint32_t slot) {
  Image& image = at(slot);
  image.attached = false;
  image.level = false;
  image.dirty.clear();
  image.wanted.clear();
  digests_.forget(image.image);
  if (!image.stored) return digests_.changed() ? schedule() : void();
  image.stored = false;
  rewritten_.insert(slot);
  changed_rows_.insert(slot);
  schedule();
}

void DirtyLog::grow(uint32_t slot, uint64_t size) {
  Image& image = at(slot);
  uint64_t bytes = std::max(image.row.region_bytes, region_bytes_for(size, region_bytes_min_));
  if (bytes == image.row.region_bytes) return;
  unsigned by = static_cast<unsigned>(std::countr_zero(bytes)) - image.shift;
  digests_.forget(image.image);   // clean regions join dirty ones, and are written without another mark
  image.dirty = coarser(image.dirty, by);
  image.wanted = coarser(image.wanted, by);
  auto old = std::move(image.regions);
  image.regions.clear();
  image.regions.resize(limits::kRegionsPerImageMax / kPage);
  image.row.region_bytes = bytes;
  image.shift += by;
  image.equal.clear();
  for (size_t page = 0; page < old.size(); ++page) {
    for (size_t i = 0; old[page] != nullptr && i < kPage; ++i) {
      const Region& from = (*old[page])[i];
      Region& to = region(image, (page * kPage + i) >> by);
      to.counter = std::max(to.counter, from.counter);
      to.serial = std::max(to.serial, from.serial);
      to.seconds = std::max(to.seconds, from.seconds);
      to.in_flight += from.in_flight;
    }
  }
  if (!image.stored) return;
  image.widened = true;
  rewritten_.insert(slot);
  changed_rows_.insert(slot);
  schedule();
}

DirtyLog::Region& DirtyLog::region(Image& image, uint64_t index) {
  auto& page = image.regions.at(index / kPage);
  if (page == nullptr) page = std::make_unique<std::array<Region, kPage>>();
  return (*page)[index % kPage];
}

bool DirtyLog::is_dirty(uint32_t slot, Extent extent) const {
  if (extent.length == 0) return true;
  const Image& image = at(slot);
  if (image.widened && !blind_) return false;   // clean regions joined dirty ones, and nothing durable says so yet
  for (uint64_t i = extent.offset >> image.shift, last = last_region(image, extent); i <= last; ++i) {
    // A bit that is about to be cleared counts as clean: its erasure may already be on its way.
    if (!get_bit(image.dirty, i) || !get_bit(image.wanted, i)) return false;
  }
  return true;
}

void DirtyLog::mark(uint32_t slot, Extent extent, Callback<Status> done) {
  Image& image = at(slot);
  if (extent.length > 0) {
    grow(slot, extent.end());
    for (uint64_t i = extent.offset >> image.shift, last = last_region(image, extent); i <= last; ++i) {
      if (!get_bit(image.wanted, i)) digests_.marked(image.image, {i << image.shift, image.row.region_bytes});
      set_bit(image.wanted, i);
      if (blind_) set_bit(image.dirty, i);
      changed_pages_.emplace(slot, i / kDrlPageRegions);
    }
  }
  if (!image.stored) {
    image.stored = true;
    changed_rows_.insert(slot);
  }
  if (blind_) {
    schedule();
    return done(Status::ok());
  }
  waiters_.push_back({slot, std::move(done)});
  schedule();
}

void DirtyLog::note(uint32_t slot, LossId host, LossId shared, bool alone, Epoch epoch, Callback<Status> done) {
  Image& image = at(slot);
  image.row.host = host;
  image.row.shared = shared;
  image.row.alone = alone;
  image.row.epoch = epoch;
  image.stored = true;
  changed_rows_.insert(slot);
  if (blind_ && !alone) {
    schedule();
    return done(Status::ok());
  }
  waiters_.push_back({slot, std::move(done), alone});
  schedule();
}

void DirtyLog::schedule() {
  if (scheduled_ || in_flight_ || failed_) return;
  scheduled_ = true;
  // Marks of one turn share a commit.
  env_.at_turn_end([this, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired()) flush();
  });
}

void DirtyLog::flush() {
  scheduled_ = false;
  if (in_flight_ || failed_) return;
  kv::WriteBatch batch;
  std::set<uint32_t> touched = changed_rows_;
  for (uint32_t slot : changed_rows_) {
    if (at(slot).stored) batch.put(kDrlImagesTable, kv::KeyBuilder().uuid(at(slot).image), encode_drl_image(at(slot).row));
    else batch.erase(kDrlImagesTable, kv::KeyBuilder().uuid(at(slot).image));
  }
  for (uint32_t slot : rewritten_) {
    batch.erase_range(kDrlRegionsTable, page_key(at(slot).image, 0), after_pages_key(at(slot).image));
    for (uint64_t page = 0; page * kDrlPageRegions < at(slot).wanted.size() * 64; ++page) changed_pages_.emplace(slot, page);
    touched.insert(slot);
  }
  for (auto [slot, page] : changed_pages_) {
    touched.insert(slot);
    if (!at(slot).attached) continue;
    Bytes bytes(kDrlPageBytes);
    const std::vector<uint64_t>& wanted = at(slot).wanted;
    size_t first = page * (kDrlPageRegions / 64);
    size_t words = first < wanted.size() ? std::min<size_t>(kDrlPageRegions / 64, wanted.size() - first) : 0;
    if (words > 0) std::memcpy(bytes.data(), wanted.data() + first, words * 8);
    bool empty = std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
    if (empty) batch.erase(kDrlRegionsTable, page_key(at(slot).image, page));
    else batch.put(kDrlRegionsTable, page_key(at(slot).image, page), bytes);
  }
  batch.append(digests_.take());
  changed_rows_.clear();
  rewritten_.clear();
  changed_pages_.clear();
  std::vector<uint32_t> slots(touched.begin(), touched.end());
  std::vector<std::vector<uint64_t>> states;
  for (uint32_t slot : slots) states.push_back(at(slot).wanted);
  in_flight_ = true;
  committing_ = std::exchange(waiters_, {});
  store_->commit(std::move(batch), [this, alive = std::weak_ptr<bool>(alive_), slots = std::move(slots),
                                    states = std::move(states)](Status s) mutable {
    if (!alive.expired()) committed(std::move(s), std::move(slots), std::move(states));
  });
}

void DirtyLog::committed(Status status, std::vector<uint32_t> slots, std::vector<std::vector<uint64_t>> states) {
  in_flight_ = false;
  if (!status) {
    // The marks did not become durable and nothing may rely on them: no copy changes under them, unless blind.
    if (!full_ && !failed_) kLog.warning("commit_failed", {{"status", status}, {"effect", "cold regions wait for the mark of it"}});
    for (uint32_t slot : slots) {
      // Wanted stays: all of it goes with the next commit.
      rewritten_.insert(slot);
      changed_rows_.insert(slot);
    }
    digests_.commit_failed();
    retry_later(status);
    if (on_failure_) on_failure_(status);
    return;
  }
  for (size_t i = 0; i < slots.size(); ++i) {
    Image& image = at(slots[i]);
    // The region size may have grown since: the state on disk is then taken over by the rewrite under way.
    if (rewritten_.contains(slots[i])) continue;
    image.widened = false;
    // What was cleared while the commit ran stays cleared here. Blind, bits that came since count already.
    if (!blind_) image.dirty = std::move(states[i]);
  }
  full_ = false;
  for (Waiter& w : std::exchange(committing_, {})) w.done(status);
  if (!waiters_.empty() || !changed_pages_.empty() || !changed_rows_.empty() || digests_.changed()) schedule();
}

// Whoever waits for a mark waits until there is room, or another store, or the owner's word that marks need not be durable.
void DirtyLog::retry_later(const Status& status) {
  std::vector<Waiter> waiters = std::exchange(committing_, {});
  for (Waiter& w : waiters_) waiters.push_back(std::move(w));
  waiters_ = std::move(waiters);
  failed_ = status.code() != Code::kOutOfSpace;
  full_ = !failed_;
  if (failed_) return;                 // no commit succeeds on this store any more
  scheduled_ = true;
  env_.after(std::chrono::seconds(1), [this, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired()) flush();
  });
}

void DirtyLog::go_blind() {
  blind_ = true;
  for (auto& image : images_) image->dirty = image->wanted;
  answer_blind(committing_);        // whatever becomes of that commit
  answer_blind(waiters_);
}

void DirtyLog::answer_blind(std::vector<Waiter>& waiters) {
  std::vector<Waiter> given, kept;
  for (Waiter& w : waiters) (w.must_commit ? kept : given).push_back(std::move(w));
  waiters = std::move(kept);
  for (Waiter& w : given) w.done(Status::ok());
}

bool DirtyLog::try_end_blind() {
  bool settled = !in_flight_ && !scheduled_ && !failed_ && !full_ && waiters_.empty() && changed_pages_.empty() &&
                 changed_rows_.empty() && rewritten_.empty() && !digests_.changed();
  if (blind_ && settled) blind_ = false;
  return settled;
}

void DirtyLog::close_store() {
  TM_CHECK(!in_flight_, "whoever waits for the commit under way would not hear of it");
  failed_ = true;
  store_.reset();
}

void DirtyLog::use_store(std::unique_ptr<kv::Store> store) {
  store_ = std::move(store);
  failed_ = full_ = false;
  for (uint32_t slot = 0; slot < images_.size(); ++slot) {
    if (!at(slot).stored) continue;
    rewritten_.insert(slot);
    changed_rows_.insert(slot);
  }
  schedule();
}

void DirtyLog::write_begins(uint32_t slot, Extent extent) {
  if (extent.length == 0) return;
  Image& image = at(slot);
  for (uint64_t i = extent.offset >> image.shift, last = last_region(image, extent); i <= last; ++i) {
    ++region(image, i).in_flight;
  }
}

void DirtyLog::write_ends(uint32_t slot, Extent extent, uint64_t counter, uint64_t serial, uint32_t now_seconds) {
  if (extent.length == 0) return;
  Image& image = at(slot);
  for (uint64_t i = extent.offset >> image.shift, last = last_region(image, extent); i <= last; ++i) {
    Region& r = region(image, i);
    --r.in_flight;
    r.counter = std::max(r.counter, counter);
    r.serial = std::max(r.serial, serial);
    r.seconds = now_seconds;
  }
}

void DirtyLog::set_level(uint32_t slot, bool level) {
  at(slot).level = level;
  at(slot).equal.clear();
  at(slot).equal_counter = 0;
}

void DirtyLog::note_equal(uint32_t slot, const std::vector<RegionIndex>& regions, uint64_t region_bytes,
                          uint64_t counter) {
  Image& image = at(slot);
  if (region_bytes != image.row.region_bytes) return;    // the image has grown: the next resync looks at them again
  for (RegionIndex region : regions) set_bit(image.equal, region.value);
  image.equal_counter = std::max(image.equal_counter, counter);
}

void DirtyLog::note_durable(uint32_t slot, uint64_t counter) {
  at(slot).durable_counter = std::max(at(slot).durable_counter, counter);
}

void DirtyLog::clean(uint64_t committed_serial, uint32_t now_seconds, uint32_t idle_seconds) {
  // One commit at a time carries the cleared bits; the next pass takes the rest.
  if (in_flight_ || scheduled_ || blind_) return;
  for (uint32_t slot = 0; slot < images_.size(); ++slot) {
    clear_regions(slot, committed_serial, [&](const Region& r) { return now_seconds - r.seconds >= idle_seconds; });
  }
  if (!changed_pages_.empty()) schedule();
}

void DirtyLog::clean_slot(uint32_t slot, uint64_t committed_serial) {
  if (in_flight_ || scheduled_ || blind_) return;     // the lazy pass takes them
  clear_regions(slot, committed_serial, [](const Region&) { return true; });
  if (!changed_pages_.empty()) schedule();
}

// Those that are level (or known to be equal), durable, recorded and `chosen`.
template <typename Fn>
void DirtyLog::clear_regions(uint32_t slot, uint64_t committed_serial, Fn chosen) {
  Image& image = at(slot);
  if (!image.attached || (!image.level && image.equal.empty())) return;
  const uint64_t durable_up_to = image.level ? image.durable_counter : image.equal_counter;
  std::vector<uint64_t> over;
  for_bits(image.dirty, [&](uint64_t i) {
    if ((!image.level && !get_bit(image.equal, i)) || !get_bit(image.wanted, i)) return;
    const Region& r = region(image, i);
    bool idle = r.in_flight == 0 && chosen(r);
    bool durable = r.counter <= durable_up_to, recorded = r.serial <= committed_serial;
    if (TM_PLANTED("clear a dirty region before it is durable")) idle = durable = recorded = r.in_flight == 0;
    if (TM_PLANTED("clear a dirty region before its records are durable")) idle = recorded = r.in_flight == 0;
    if (idle && durable && recorded) over.push_back(i);
  });
  for (uint64_t i : over) {
    clear_bit(image.wanted, i);
    changed_pages_.emplace(slot, i / kDrlPageRegions);
  }
}

void DirtyLog::clean_all(Callback<Status> done) {
  for (uint32_t slot = 0; slot < images_.size(); ++slot) {
    Image& image = at(slot);
    if (!image.level || !image.attached) continue;
    // What the owner has not called durable stays, clean stop or not.
    for_bits(image.dirty, [&](uint64_t i) {
      const Region& r = region(image, i);
      if (r.in_flight == 0 && r.counter <= image.durable_counter) clear_bit(image.wanted, i);
    });
    for (uint64_t page = 0; page * kDrlPageRegions < image.dirty.size() * 64; ++page) changed_pages_.emplace(slot, page);
  }
  waiters_.push_back({0, std::move(done)});
  schedule();
}

bool DirtyLog::all_clean(uint32_t slot, Extent extent) const {
  const Image& image = at(slot);
  if (!image.attached || blind_ || failed_ || extent.length == 0) return false;
  for (uint64_t i = extent.offset >> image.shift, last = last_region(image, extent); i <= last; ++i) {
    if (get_bit(image.dirty, i) || get_bit(image.wanted, i)) return false;
  }
  return true;
}

void DirtyLog::begin_run(Incarnation incarnation) {
  digests_.begin_run(incarnation);
  if (digests_.changed()) schedule();
}

void DirtyLog::begin_tenure(uint32_t slot, Epoch epoch) {
  digests_.tenure(at(slot).image, epoch);
  if (digests_.changed()) schedule();
}

DigestKey DirtyLog::digest_key(uint32_t slot, Epoch epoch) {
  DigestKey key = digests_.key(at(slot).image, epoch);
  if (digests_.changed()) schedule();
  return key;
}

bool DirtyLog::keep_digests(uint32_t slot, Extent block, const std::vector<Digest128>& digests) {
  if (!all_clean(slot, block)) return false;
  digests_.keep(at(slot).image, block, digests);
  schedule();
  return true;
}

std::optional<std::vector<Digest128>> DirtyLog::kept_digests(uint32_t slot, Extent block) const {
  // While a commit is under way or owed, an erasure that was asked for may not stand yet.
  if (!all_clean(slot, block) || full_ || store_ == nullptr) return std::nullopt;
  auto snapshot = store_->try_snapshot();
  if (!snapshot) return std::nullopt;
  return digests_.find(**snapshot, at(slot).image, block);
}

std::vector<RegionIndex> DirtyLog::dirty_regions(uint32_t slot) const {
  std::vector<RegionIndex> out;
  for_bits(at(slot).dirty, [&](uint64_t i) { out.push_back(RegionIndex(i)); });
  return out;
}

uint64_t DirtyLog::dirty_count(uint32_t slot) const {
  uint64_t n = 0;
  for (uint64_t word : at(slot).dirty) n += static_cast<uint64_t>(std::popcount(word));
  return n;
}

uint64_t DirtyLog::region_bytes(uint32_t slot) const { return at(slot).row.region_bytes; }

}  // namespace tidemark::journal
