// Bringing this host's copy level: regions that another host wrote (or that were never copied here) are read from the
// shared node, unit by unit, under the same order as writes. A region that a guest writes to is filled first.
#include "fs/engine.h"

#include <algorithm>

#include "fs/pace.h"
#include "fs/units.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kFillUnit = 1u << 20;
constexpr size_t kRegionsPerLevel = 16;
constexpr uint32_t kExtentsPerAsk = 256;
}  // namespace

// One unit, at most 1 MiB: holes stay holes.
Task<Status> Engine::fill_unit(Image& im, Extent unit) {
  RangeLock::Hold hold;
  hold.extent = unit;
  hold.exclusive = true;
  co_await lock(im, hold);
  // Level by now, by another fill or a punch: what the shared copy has lost since then is here alone.
  if (!im.stale.stale(unit)) {
    im.order.release(hold);
    co_return Status::ok();
  }
  Status status, own;
  uint64_t end = im.local() ? std::min({unit.end(), im.size, im.copy->size()}) : 0;
  if (unit.offset < end) {
    Extent range{unit.offset, end - unit.offset};
    co_await preserve(im, range);
    using Answer = Result<wire::ExtentList>;
    wire::Extents ask{im.id, range.offset, kExtentsPerAsk};
    auto extents = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::ExtentList>(wire::Type::kExtents, ask, std::move(done));
    });
    status = extents ? Status::ok() : extents.status();
    bool data = extents && !extents->extents.empty() && extents->extents.front().offset < range.end();
    if (status.is_ok() && data) {
      auto buffer =
          std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
      status = co_await read_shared(im, range, buffer);
      if (status.is_ok() && !im.local()) status = Status(Code::kCancelled, "the own copy failed");
      if (status.is_ok()) own = co_await write_copy(im, range, buffer);
      counts_.filled_bytes += range.length;
    } else if (status.is_ok() && !im.local()) {
      status = Status(Code::kCancelled, "the own copy failed");
    } else if (status.is_ok()) {
      UniqueFunction<void(Callback<Status>)> start = [&](Callback<Status> done) {
        im.copy->zero(range.offset, range.length, std::move(done));
      };
      own = co_await on_copy(im, start);
    }
    if (!own) status = own_copy_failed(im, own) ? Status(Code::kCancelled, "the own copy failed") : own;
  }
  im.order.release(hold);
  co_return status;
}

Task<Status> Engine::fill_region(Image& im, uint64_t region) {
  uint64_t bytes = im.stale.region_bytes();
  uint64_t end = std::min(im.size, (region + 1) * bytes);
  std::vector<Extent> units;
  for (uint64_t at = region * bytes; at < end; at += kFillUnit) units.push_back({at, std::min(kFillUnit, end - at)});
  const Epoch epoch = im.epoch;
  const uint64_t times_broken = im.times_broken;
  UnitWork work = [this, &im](Extent unit) { return fill_unit(im, unit); };
  Status filled = co_await for_units(tasks_, std::move(units), std::move(work));
  if (!filled) co_return filled;
  if (!im.held || im.epoch != epoch || !im.local()) co_return Status(Code::kCancelled, "the tenure moved");
  if (im.times_broken != times_broken) co_return Status(Code::kCancelled, "the own copy failed meanwhile");
  im.stale.clear(region);
  co_return Status::ok();
}

Task<Status> Engine::sync_level(Image& im) {
  if (!im.local()) co_return Status(Code::kCancelled, "the own copy failed");
  Status synced = co_await sync_copy(im);
  // A failed sync is not tried again: what it was to cover may be gone.
  if (!synced) co_return own_copy_failed(im, synced) ? Status(Code::kCancelled, "the own copy failed") : synced;
  co_return Status::ok();
}

// Tells the shared node which regions of this copy are level and durable now.
Task<Status> Engine::level(Image& im, uint64_t map_cut, std::vector<uint64_t> regions) {
  if (Status s = co_await sync_level(im); !s) co_return s;
  Bytes bitmap;
  for (uint64_t r : regions) {
    if (bitmap.size() <= r / 8) bitmap.resize(r / 8 + 1);
    bitmap[r / 8] |= static_cast<uint8_t>(1u << (r % 8));
  }
  co_return co_await tell_level(im, map_cut, std::move(bitmap));
}

// `stale`: that they are behind.
Task<Status> Engine::tell_level(Image& im, uint64_t map_cut, Bytes regions, bool stale) {
  wire::Level message{im.id, map_cut, std::move(regions), static_cast<uint8_t>(stale ? 1 : 0)};
  using Answer = Result<wire::Answer>;
  co_return co_await async<Status>([&](Callback<Status> done) {
    mirror_->send(wire::Type::kLevel, wire::encode(message), {},
                  [done = std::move(done)](Answer answer) mutable { done(answer ? Status::ok() : answer.status()); });
  });
}

Task<Result<wire::Grant>> Engine::ask_map(const Image& im, uint8_t copy_absent) {
  using Answer = Result<wire::Grant>;
  co_return co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Grant>(wire::Type::kStaleMap, wire::StaleMap{im.id, copy_absent}, std::move(done));
  });
}

// Nothing is stale any more: nothing on record may say otherwise, or a crash would take from the shared copy what was
// written here since. What was told before may not have arrived, may have been of a run that ended, or by a cut that a
// shared node that was started anew does not know. So the map is asked for until there is nothing in it.
Task<Status> Engine::level_all(Image& im, Epoch epoch, const std::vector<uint64_t>& filled) {
  constexpr int kAsksMax = 3;
  const uint64_t map_cut = im.map_cut;
  for (int asks = 0; asks < kAsksMax; ++asks) {
    auto map = co_await ask_map(im, 0);
    if (!map) co_return map.status();
    if (!im.held || im.epoch != epoch) co_return Status(Code::kCancelled, "the tenure moved");
    // Not this tenure's, as far as it says: that map may have what another host wrote.
    if (map->epoch != epoch) co_return co_await level(im, map_cut, filled);
    if (std::ranges::all_of(map->stale_regions, [](uint8_t bits) { return bits == 0; })) co_return Status::ok();
    if (!im.local() || !im.stale.none()) co_return Status(Code::kCancelled, "the own copy is not level any more");
    if (Status s = co_await sync_level(im); !s) co_return s;
    if (Status s = co_await tell_level(im, map->map_cut, std::move(map->stale_regions)); !s) co_return s;
  }
  co_return Status(Code::kUnavailable, "the shared node goes on taking the own copy for stale");
}

Task<void> Engine::fill(Image& im) {
  if (im.fill_running || !im.local()) co_return;
  Pin pin(im);
  im.fill_running = true;
  std::vector<uint64_t> regions;      // all that were filled in this run, for one Level each batch
  Status status;
  uint64_t at = 0;
  Epoch epoch = im.epoch;
  uint64_t map_cut = im.map_cut;      // of the map that this run fills by: a later tenure's says more
  std::vector<uint64_t> before;
  const bool waits = !im.stale.none();   // who has nothing to fill needs no turn
  bool turn = true;
  if (waits) turn = co_await pace_->take_turn(im, im.stale.stale_bytes(im.size));
  for (uint64_t r = im.stale.next(0); r != UINT64_MAX; r = im.stale.next(r + 1)) before.push_back(r);
  for (uint64_t region : before) {
    if (im.stale.region_stale(region)) co_await pace_->wait(im, im.stale.region_bytes());
    bool go_on = turn && im.held && im.epoch == epoch && im.state == MirrorState::kFilling && !im.yielding &&
                 im.local();
    if (!go_on) break;
    // Filled meanwhile on behalf of a write: it is level all the same.
    if (im.stale.region_stale(region)) status = co_await fill_region(im, region);
    if (!status) break;
    im.run.done += im.stale.region_bytes();
    regions.push_back(region);
    if (regions.size() - at >= kRegionsPerLevel) {
      std::vector<uint64_t> batch(regions.begin() + static_cast<ptrdiff_t>(at), regions.end());
      status = co_await level(im, map_cut, std::move(batch));
      if (!status) break;
      at = regions.size();
    }
  }
  if (waits && turn) pace_->end_turn(im);
  bool still = turn && im.held && im.epoch == epoch && im.local();
  if (status.is_ok() && still && im.stale.none()) {
    status = co_await level_all(im, epoch, before);
    if (status.is_ok() && im.stale.none() && im.held && im.epoch == epoch && im.local()) {
      status = set_flag(im, kFlagPartial, false);
      if (status.is_ok()) status = set_flag(im, kFlagBehind, false);
      if (status.is_ok()) {
        im.behind = im.refilling = false;
        im.facts.copy_whole = true;
        kLog.info("filled", {{"image", im.id}, {"epoch", im.epoch}, {"regions", before.size()}});
      }
    }
  }
  im.fill_running = false;
  if (!status && status.code() != Code::kCancelled && status.code() != Code::kUnavailable)
    kLog.warning("fill_failed", {{"image", im.id}, {"error", status}});
  if (im.facts.copy_whole) co_return apply(im, MirrorEvent::kFilled);
  auto again = [&im] { return im.state == MirrorState::kFilling && !im.yielding && im.held && !im.doomed; };
  if (again() && mirror_->up() && im.local()) {
    co_await sleep(std::chrono::milliseconds(500));
    if (again() && !im.fill_running) tasks_.spawn(fill(im));
  }
}

// A write into a stale region: the region is made level first, then the write takes its place in the order again. One
// after another, so that writes that overlap keep their order of arrival.
Task<void> Engine::fill_before(Op* op) {
  Image& im = *op->image;
  im.filling.push_back(op);
  if (im.filling_runs) co_return;           // it goes on with this one
  im.filling_runs = true;
  while (!im.filling.empty()) {
    Op* next = im.filling.front();
    Status status = co_await fill_for(*next);
    im.filling.pop_front();
    next->filled = true;
    bool wait = status.code() == Code::kUnavailable || status.code() == Code::kCancelled;
    if (wait) {
      step_back(next);
      if (mirror_->up()) unpark_later(im);
    } else if (!status) {
      finish_op(next, status);
    } else if (im.order.acquire(next->hold)) {
      prepare(next);
    } else {
      next->hold.granted = [this, next] { prepare(next); };
    }
  }
  im.filling_runs = false;
}

Task<Status> Engine::fill_for(Op& op) {
  Status status;
  for (uint64_t r = to_fill(op, 0); status.is_ok() && r != UINT64_MAX; r = to_fill(op, r + 1))
    status = co_await fill_region(*op.image, r);
  co_return status;
}

}  // namespace tidemark::fs
