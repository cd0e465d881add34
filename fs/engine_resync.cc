// Making the two copies equal where they may differ: dirty regions, compared by keyed hashes of storage and copied unit
// by unit, under the same order as writes, while new writes go to both.
#include "fs/engine.h"

#include <algorithm>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kUnit = 1u << 20;         // locked, hashed and copied at once
constexpr uint32_t kHashUnit = 64u << 10;
constexpr std::chrono::seconds kRetry{1};

bool all_zero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}
}  // namespace

Task<Status> Engine::copy_to_shared(Image& im, Extent piece, ByteSpan bytes) {
  bool hole = all_zero(bytes);
  wire::Repair repair{im.id, im.epoch, piece, static_cast<uint8_t>(hole ? 1 : 0)};
  co_return co_await async<Status>([&](Callback<Status> done) {
    mirror_->send(wire::Type::kRepair, wire::encode(repair), hole ? ByteSpan() : bytes,
                  [this, done = std::move(done)](Result<wire::Answer> answer) mutable {
                    if (!answer) mirror_->note_failure();
                    done(answer ? Status::ok() : answer.status());
                  });
  });
}

Task<Status> Engine::copy_to_host(Image& im, Extent piece) {
  co_await preserve(im, piece);
  auto buffer = std::make_shared<io::AlignedBuffer>(piece.length);  // shared with the operation, should this frame go
  Status read = co_await read_shared(im, piece, buffer);
  if (!read) co_return read;
  if (!im.local()) co_return Status(Code::kCancelled, "the own copy failed");
  Status written = co_await write_copy(im, piece, buffer);
  if (!written) im.own_failed = true;
  co_return written;
}

Task<Status> Engine::make_unit_equal(Image& im, Extent unit, bool host_wins, uint64_t* repaired) {
  co_await pace(im, unit.length);
  RangeLock::Hold hold;
  hold.extent = unit;
  hold.exclusive = true;
  co_await lock(im, hold);
  uint64_t end = im.local() ? std::min({unit.end(), im.size, im.copy->size()}) : 0;
  Status status;
  bool mended = false;
  if (unit.offset < end) {
    Extent range{unit.offset, end - unit.offset};
    auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
    wire::Hash ask{im.id, range, kHashUnit, {}};
    env_.random(ask.key.secret);
    using Answer = Result<wire::Hashes>;
    status = co_await read_copy(im, range, buffer);
    if (!status) im.own_failed = true;
    auto hashes = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Hashes>(wire::Type::kHash, ask, std::move(done));
    });
    // What cannot be read there is written anew from here.
    const bool unreadable = !hashes && hashes.status().code() == Code::kIoError && host_wins;
    mended = unreadable;
    if (status.is_ok() && unreadable) {
      hashes = wire::Hashes{};
      hashes->digests.resize((range.length + kHashUnit - 1) / kHashUnit);
    }
    if (status.is_ok() && !hashes) status = hashes.status();
    if (status.is_ok() && hashes->digests.size() != (range.length + kHashUnit - 1) / kHashUnit)
      status = Status(Code::kCorruption, "hash answer of another length");
    for (uint64_t i = 0; status.is_ok() && i < hashes->digests.size(); ++i) {
      uint64_t at = i * kHashUnit;
      ByteSpan bytes = ByteSpan(buffer->span()).subspan(at, std::min<uint64_t>(kHashUnit, range.length - at));
      if (!unreadable && keyed_digest(ask.key, bytes) == hashes->digests[i]) continue;
      Extent piece{range.offset + at, bytes.size()};
      if (host_wins != TM_PLANTED("resync the wrong way")) status = co_await copy_to_shared(im, piece, bytes);
      else status = co_await copy_to_host(im, piece);
      *repaired += piece.length;
    }
  }
  if (status.is_ok() && mended) {
    ++counts_.repaired_shared;
    kLog.warning("shared_copy_mended", {{"image", im.id}, {"offset", unit.offset}, {"bytes", unit.length}});
  }
  im.order.release(hold);
  im.run.done += unit.length;
  co_return status;
}

// A region that is stale here takes the shared node's bytes, whatever else is said.
Task<Status> Engine::make_equal(Image& im, bool host_wins, std::vector<RegionIndex> regions, uint64_t bytes,
                                uint64_t* repaired) {
  std::vector<Extent> units;
  for (RegionIndex region : regions) {
    uint64_t end = std::min(im.size, (region.value + 1) * bytes);
    for (uint64_t at = region.value * bytes; at < end; at += kUnit) units.push_back({at, std::min(kUnit, end - at)});
  }
  uint64_t total = 0;
  for (const Extent& unit : units) total += unit.length;
  if (!co_await take_turn(im, total)) co_return Status(Code::kUnavailable, "the link or the tenure changed");
  UnitWork work = [this, &im, host_wins, repaired](Extent unit) {
    return make_unit_equal(im, unit, host_wins && !im.stale.stale(unit), repaired);
  };
  Status status = co_await for_units(std::move(units), std::move(work));
  end_turn(im);
  co_return status;
}

Task<void> Engine::resync(Image& im) {
  if (im.resync_running) co_return;
  Pin pin(im);
  im.resync_running = true;
  LossId loss = im.resync_loss;
  Epoch epoch = im.epoch;
  uint64_t outages = im.outages, failures = im.failures;
  uint64_t repaired = 0;
  std::vector<RegionIndex> regions = journal_->dirty_regions(im.slot);
  kLog.info("resync_begun", {{"image", im.id}, {"epoch", epoch}, {"regions", regions.size()}});
  Status status;
  if (!im.local() && im.unsynced.any()) writes_lost(im, "the shared copy was the only one and has another loss id");
  if (TM_PLANTED("call copies level without a resync")) regions.clear();
  if (im.local()) status = co_await make_equal(im, true, regions, journal_->region_bytes(im.slot), &repaired);
  auto stands = [&] {
    return im.held && im.epoch == epoch && im.state == MirrorState::kResyncing && loss == im.resync_loss &&
           outages == im.outages && failures == im.failures;
  };
  if (status.is_ok() && !stands()) status = Status(Code::kUnavailable, "the link or the tenure changed");
  // Durable on both before the mark that they may differ goes.
  Counter counter = journal_->last_finished();
  uint64_t unsynced = im.unsynced.mark();
  if (status.is_ok() && im.local()) {
    status = co_await sync_copy(im);
    // The copy that the other is made equal to: what it lost, nobody has.
    if (!status) writes_lost(im, "a sync of the own copy failed before the shared one was level");
  }
  if (status.is_ok()) {
    using Answer = Result<wire::Flushed>;
    wire::Flush ask{im.id, epoch};
    auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Flushed>(wire::Type::kFlush, ask, std::move(done));
    });
    if (!flushed) status = flushed.status();
    else if (flushed->loss_id != loss) {
      im.resync_loss = flushed->loss_id;
      status = Status(Code::kUnavailable, "the shared copy changed its loss id during the resync");
    }
  }
  if (status.is_ok() && stands())
    status = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, host_loss(), loss, false, std::move(done));
    });
  if (status.is_ok() && stands()) status = set_flag(im, kFlagHostOnly, false);
  im.resync_running = false;
  counts_.resynced_bytes += repaired;
  if (status.is_ok() && stands()) {
    kLog.info("resync_done", {{"image", im.id}, {"epoch", epoch}, {"copied_bytes", repaired}});
    im.facts.alone = im.apart = false;
    im.shared_loss = loss;
    im.unsynced.cover(unsynced);
    apply(im, MirrorEvent::kEqual);
    journal_->note_durable(im.slot, counter);
    co_return;
  }
  kLog.info("resync_again", {{"image", im.id}, {"reason", status}, {"copied_bytes", repaired}});
  if (status.code() == Code::kFenced) co_return fence(im);
  if (im.state != MirrorState::kResyncing) co_return;  // the next resume starts it anew
  co_await sleep(kRetry);
  if (im.state == MirrorState::kResyncing && !im.resync_running) tasks_.spawn(resync(im));
}

}  // namespace tidemark::fs
