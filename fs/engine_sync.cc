// What a failed sync leaves in doubt: blocks that read as they were written and may be on no disk, whatever the next
// sync says. Nothing of a copy counts as durable before they were written again. Where they lie the dirty-region log
// knows: no region leaves it before a sync covered its last write.
//
// The shared copy: seen by its loss id (image::sync_failed_between); the resync or recovery that follows writes what
// is dirty there, from the copy that decides, before it compares. The own copy, where it stays in use
// (own_copy_failed() says when): the guest has its error, and the next sync, whoever asks for it, writes what is dirty
// before it begins. That a recovery has to is seen by the loss id in the note of the copies.
#include "fs/engine.h"

#include <algorithm>

#include "fs/units.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kAgainUnit = 1u << 20;   // locked, read and written at once
constexpr uint64_t kHoleUnit = 64u << 10;

// Its parts that are zeros and nothing else, or that are not; neighbours alternate.
template <typename Fn>
void for_runs(Extent range, ByteSpan bytes, Fn fn) {
  auto zeros = [&](uint64_t at) {
    ByteSpan unit = bytes.subspan(at, std::min(kHoleUnit, range.length - at));
    return std::all_of(unit.begin(), unit.end(), [](uint8_t b) { return b == 0; });
  };
  for (uint64_t at = 0; at < range.length;) {
    const bool hole = zeros(at);
    uint64_t end = at + kHoleUnit;
    while (end < range.length && zeros(end) == hole) end += kHoleUnit;
    end = std::min(end, range.length);
    fn(Extent{range.offset + at, end - at}, hole);
    at = end;
  }
}
}  // namespace

// In the notes of the copies: unknown while the present one says too little.
LossId Engine::own_loss(const Image& im) const { return im.own_in_doubt() ? LossId() : host_loss(); }
LossId Engine::shared_loss(const Image& im) const { return im.shared_in_doubt ? LossId() : im.shared_loss; }

// Until the copies are level again, whatever interrupts that. `level`: its loss id when they were.
void Engine::note_shared_doubt(Image& im, LossId level, LossId now) {
  const bool failed =
      image::sync_failed_between(level, now) && !TM_PLANTED("compare where a failed sync asks for writing");
  if (!failed || im.shared_in_doubt) return;
  kLog.warning("shared_copy_written_again", {{"image", im.id}, {"loss_id", now}});
  im.shared_in_doubt = true;
  remember(im);   // a recovery's tenure was, as it was granted: with the present loss id
}

// Whoever asked for that sync, a resize too.
void Engine::own_sync_failed(const ImageId& id) {
  Image* im = find(id);
  if (im == nullptr) return;
  ++im->syncs_failed;
  ++im->failures;   // what a resync under way has called equal
}

Task<Status> Engine::sync_copy(Image& im) {
  if (im.own_in_doubt()) {
    if (Status again = co_await write_own_again(im); !again) co_return again;
    if (!im.local()) co_return Status(Code::kIoError, "the own copy failed");
  }
  const uint64_t failed = im.syncs_failed;
  UniqueFunction<void(Callback<Status>)> start = [&im](Callback<Status> done) {
    im.copy->sync(io::IoMode::kQueued, std::move(done));
  };
  Status synced = co_await on_copy(im, start);
  if (synced && failed != im.syncs_failed) synced = Status(Code::kIoError, "another sync of it failed meanwhile");
  co_return synced;
}

// All of the own copy that no sync need have covered, as it reads.
Task<Status> Engine::write_own_again(Image& im) {
  Pin pin(im);
  if (TM_PLANTED("sync again what a failed sync left")) {
    im.syncs_mended = im.syncs_failed;
    co_return Status::ok();
  }
  attach(im, im.copy->size());
  const uint64_t failed = im.syncs_failed, bytes = journal_->region_bytes(im.slot);
  std::vector<RegionIndex> regions = journal_->dirty_regions(im.slot);
  if (!im.facts.copy_whole) {   // what was filled since is in no log: no guest has written it
    regions.clear();
    for (uint64_t r = 0; r * bytes < im.copy->size(); ++r) regions.push_back(RegionIndex(r));
  }
  kLog.warning("own_copy_written_again", {{"image", im.id}, {"regions", regions.size()},
                                          {"reason", "a sync of it has failed"}});
  std::vector<Extent> units;
  for (RegionIndex region : regions) {
    for (uint64_t at = region.value * bytes; at < (region.value + 1) * bytes; at += kAgainUnit)
      units.push_back({at, std::min(kAgainUnit, (region.value + 1) * bytes - at)});
  }
  UnitWork work = [this, &im](Extent unit) { return write_own_unit(im, unit); };
  Status again = co_await for_units(tasks_, std::move(units), std::move(work));
  if (!again) co_return again;
  im.syncs_mended = std::max(im.syncs_mended, failed);
  remember(im);
  co_return again;
}

Task<Status> Engine::write_own_unit(Image& im, Extent unit) {
  RangeLock::Hold hold;
  hold.extent = unit;
  hold.exclusive = true;
  co_await lock(im, hold);
  Status status;
  const uint64_t end = im.local() ? std::min(unit.end(), im.copy->size()) : 0;   // else it is filled anew, all of it
  if (unit.offset < end && !im.stale.stale(unit)) {
    const Extent range{unit.offset, end - unit.offset};
    auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
    status = co_await read_copy(im, range, buffer);
    if (status.is_ok() && im.local()) status = co_await write_copy(im, range, buffer);
    std::vector<Extent> holes;   // in doubt as well: made anew where there were blocks a moment before
    for_runs(range, ByteSpan(buffer->span()).first(range.length), [&](Extent piece, bool hole) {
      if (hole) holes.push_back(piece);
    });
    for (const Extent& piece : holes) {
      if (!status || !im.local()) break;
      UniqueFunction<void(Callback<Status>)> start = [&](Callback<Status> done) {
        im.copy->zero(piece.offset, piece.length, std::move(done));
      };
      status = co_await on_copy(im, start);
    }
  }
  im.order.release(hold);
  co_return status;
}

// For flushes that wait: what cannot be written again is an error to them, unless the shared copy has it all.
Task<void> Engine::mend_then_flush(Image& im) {
  Pin pin(im);
  im.mending_own = true;
  Status again = co_await write_own_again(im);
  im.mending_own = false;
  if (!again && own_copy_failed(im, again)) again = Status::ok();
  std::vector<Op*> flushes;
  flushes.swap(im.flushes);
  for (Op* op : flushes) {
    if (again) start_flush(op);
    else leave(op, again);
  }
}

// The unit's order is held. What the own copy lacks is written as it reads there.
Task<Status> Engine::write_shared_again(Image& im, Extent unit, bool host_wins, uint64_t* repaired) {
  const bool from_here = host_wins && im.local();
  const uint64_t end = std::min({unit.end(), im.size, from_here ? im.copy->size() : UINT64_MAX});
  if (unit.offset >= end) co_return Status::ok();
  const Extent range{unit.offset, end - unit.offset};
  auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
  Status status;
  if (from_here) status = co_await read_copy(im, range, buffer);
  else status = co_await read_shared(im, range, buffer);
  if (!status && from_here) im.own_failed = true;
  if (status.code() == Code::kIoError && !im.local()) co_return co_await write_shared_around(im, range, repaired);
  if (!status) co_return status;
  co_return co_await write_shared_bytes(im, range, ByteSpan(buffer->span()).first(range.length), repaired);
}

// No other copy has what cannot be read there. It stays an error of whoever reads it; what lies around it is made good.
Task<Status> Engine::write_shared_around(Image& im, Extent range, uint64_t* repaired) {
  // A brick that hangs, or is gone, is waited for: lost is what one that serves cannot read.
  using Answer = Result<wire::Flushed>;
  auto serves = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, wire::Flush{im.id, im.epoch}, std::move(done));
  });
  if (!serves) co_return serves.status();
  uint64_t lost = 0;
  for (uint64_t at = range.offset; at < range.end(); at += limits::kOrderGranule) {
    const Extent block{at, std::min<uint64_t>(limits::kOrderGranule, range.end() - at)};
    auto buffer = std::make_shared<io::AlignedBuffer>(block.length);  // shared with the operation, should this frame go
    Status status = co_await read_shared(im, block, buffer);
    if (status.code() == Code::kIoError) {
      lost += block.length;
      continue;
    }
    if (status.is_ok())
      status = co_await write_shared_bytes(im, block, ByteSpan(buffer->span()).first(block.length), repaired);
    if (!status) co_return status;
  }
  if (lost == 0) co_return Status::ok();
  kLog.warning("shared_copy_unreadable", {{"image", im.id}, {"offset", range.offset}, {"bytes", lost}});
  if (!im.lost_writes) writes_lost(im, "the shared copy was the only one, and not all of it can be read");
  co_return Status::ok();
}

Task<Status> Engine::write_shared_bytes(Image& im, Extent range, ByteSpan bytes, uint64_t* repaired) {
  std::vector<std::pair<Extent, bool>> runs;
  for_runs(range, bytes, [&](Extent piece, bool hole) { runs.emplace_back(piece, hole); });
  for (const auto& [piece, hole] : runs) {
    Status status = co_await send_repair(im, piece, bytes.subspan(piece.offset - range.offset, piece.length));
    // In doubt as well, and what is one already would not be made anew.
    if (status.is_ok() && hole) status = co_await send_repair(im, piece, {});
    if (!status) co_return status;
    *repaired += piece.length;
  }
  co_return Status::ok();
}

}  // namespace tidemark::fs
