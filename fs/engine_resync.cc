// Making the two copies equal where they may differ: dirty regions, compared by keyed hashes of storage and copied unit
// by unit, under the same order as writes, while new writes go to both. Both copies of a unit are read at once.
//
// A resync goes on window by window. After each both copies are synced, and what the window made equal leaves the
// dirty-region log: a resync that is cut short by a crash or an outage has the rest before it, and that window.
#include "fs/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "fs/pace.h"
#include "fs/units.h"
#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kUnit = 1u << 20;         // locked, hashed and copied at once
constexpr uint32_t kHashUnit = 64u << 10;
constexpr uint64_t kWindow = 64u << 20;      // at most; a second's worth where that is less

bool all_zero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

uint64_t hash_count(uint64_t bytes) { return (bytes + kHashUnit - 1) / kHashUnit; }

// The unit's pieces that differ from what was answered; neighbours are one, unless one is zeros and the other is not.
std::vector<Extent> different(const wire::Hash& ask, const wire::Hashes& theirs, ByteSpan ours, bool all) {
  std::vector<Extent> pieces;
  bool zeros = false;
  for (uint64_t i = 0; i < theirs.digests.size(); ++i) {
    const uint64_t at = i * kHashUnit;
    ByteSpan bytes = ours.subspan(at, std::min<uint64_t>(kHashUnit, ask.extent.length - at));
    if (!all && keyed_digest(ask.key, bytes) == theirs.digests[i]) continue;
    const bool zero = all_zero(bytes);
    const uint64_t offset = ask.extent.offset + at;
    if (!pieces.empty() && pieces.back().end() == offset && zeros == zero) pieces.back().length += bytes.size();
    else pieces.push_back({offset, bytes.size()});
    zeros = zero;
  }
  return pieces;
}

uint64_t bytes_of(const Image& im, const std::vector<RegionIndex>& regions, uint64_t bytes) {
  uint64_t total = 0;
  for (RegionIndex region : regions) {
    const uint64_t begin = std::min(im.size, region.value * bytes);
    total += std::min(im.size - begin, bytes);
  }
  return total;
}

// What was asked before something else was awaited.
struct Asked {
  std::optional<Result<wire::Hashes>> answer;
  UniqueFunction<void()> wake;
};
}  // namespace

// What a resync relies on, as it was at its beginning.
struct ResyncRun {
  LossId loss;
  Epoch epoch;
  uint64_t outages = 0, failures = 0;

  bool stands(const Image& im) const {
    return im.held && im.epoch == epoch && im.state == MirrorState::kResyncing && loss == im.resync_loss &&
           outages == im.outages && failures == im.failures;
  }
};

Task<Status> Engine::copy_to_shared(Image& im, Extent piece, ByteSpan bytes) {
  co_return co_await send_repair(im, piece, all_zero(bytes) ? ByteSpan() : bytes);
}

// No bytes: a hole.
Task<Status> Engine::send_repair(Image& im, Extent piece, ByteSpan bytes) {
  wire::Repair repair{im.id, im.epoch, piece, static_cast<uint8_t>(bytes.empty() ? 1 : 0)};
  co_return co_await async<Status>([&](Callback<Status> done) {
    mirror_->send(wire::Type::kRepair, wire::encode(repair), bytes,
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

// A region that is stale here takes the shared node's bytes, whatever else is said.
Task<Status> Engine::make_unit_equal(Image& im, Extent unit, bool host_wins, uint64_t* repaired) {
  co_await pace_->wait(im, unit.length);
  RangeLock::Hold hold;
  hold.extent = unit;
  hold.exclusive = true;
  co_await lock(im, hold);
  host_wins = host_wins && !im.stale.stale(unit);   // as it is now: a fill may have ended meanwhile
  uint64_t end = im.local() ? std::min({unit.end(), im.size, im.copy->size()}) : 0;
  Status status;
  bool mended = false;
  if (im.shared_in_doubt) status = co_await write_shared_again(im, unit, host_wins, repaired);
  if (status.is_ok() && unit.offset < end) {
    Extent range{unit.offset, end - unit.offset};
    auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
    wire::Hash ask{im.id, range, kHashUnit, {}};
    env_.random(ask.key.secret);
    // Asked first: both copies are read at the same time.
    auto asked = std::make_shared<Asked>();   // shared with the request, should this frame go
    mirror_->request<wire::Hashes>(wire::Type::kHash, ask, [asked](Result<wire::Hashes> answer) {
      asked->answer.emplace(std::move(answer));
      if (asked->wake) std::exchange(asked->wake, nullptr)();
    });
    status = co_await read_copy(im, range, buffer);
    if (!status) im.own_failed = true;
    if (!asked->answer) {
      co_await async<bool>([&](Callback<bool> done) {
        asked->wake = [done = std::move(done)]() mutable { done(true); };
      });
    }
    Result<wire::Hashes>& hashes = *asked->answer;
    // What cannot be read there is written anew from here.
    const bool unreadable = !hashes && hashes.status().code() == Code::kIoError && host_wins;
    mended = unreadable;
    if (status.is_ok() && unreadable) {
      hashes = wire::Hashes{};
      hashes->digests.resize(hash_count(range.length));
    }
    if (status.is_ok() && !hashes) status = hashes.status();
    if (status.is_ok() && hashes->digests.size() != hash_count(range.length))
      status = Status(Code::kCorruption, "hash answer of another length");
    std::vector<Extent> pieces;
    if (status.is_ok()) pieces = different(ask, *hashes, ByteSpan(buffer->span()).first(range.length), unreadable);
    for (const Extent& piece : pieces) {
      ByteSpan bytes = ByteSpan(buffer->span()).subspan(piece.offset - range.offset, piece.length);
      if (host_wins != TM_PLANTED("resync the wrong way")) status = co_await copy_to_shared(im, piece, bytes);
      else status = co_await copy_to_host(im, piece);
      *repaired += piece.length;
      if (!status) break;
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

Task<Status> Engine::make_regions_equal(Image& im, bool host_wins, const std::vector<RegionIndex>& regions,
                                        uint64_t bytes, uint64_t* repaired) {
  std::vector<Extent> units;
  for (RegionIndex region : regions) {
    uint64_t end = std::min(im.size, (region.value + 1) * bytes);
    for (uint64_t at = region.value * bytes; at < end; at += kUnit) units.push_back({at, std::min(kUnit, end - at)});
  }
  UnitWork work = [this, &im, host_wins, repaired](Extent unit) {
    return make_unit_equal(im, unit, host_wins, repaired);
  };
  co_return co_await for_units(tasks_, std::move(units), std::move(work));
}

Task<Status> Engine::make_equal(Image& im, bool host_wins, std::vector<RegionIndex> regions, uint64_t bytes,
                                uint64_t* repaired) {
  if (!co_await pace_->take_turn(im, bytes_of(im, regions, bytes)))
    co_return Status(Code::kUnavailable, "the link or the tenure changed");
  Status status = co_await make_regions_equal(im, host_wins, regions, bytes, repaired);
  pace_->end_turn(im);
  co_return status;
}

// What was made equal is durable on both copies afterwards.
Task<Status> Engine::sync_equal(Image& im, const ResyncRun& run) {
  if (im.local()) {
    Status synced = co_await sync_copy(im);
    // The copy that the other is made equal to: what it lost, nobody has.
    if (!synced) {
      im.own_failed = true;
      if (!im.lost_writes) writes_lost(im, "a sync of the own copy failed before the shared one was level");
      co_return synced;
    }
  }
  using Answer = Result<wire::Flushed>;
  wire::Flush ask{im.id, run.epoch};
  auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, ask, std::move(done));
  });
  if (!flushed) {
    // The shared node counts its copy out until this host has resumed: it would not hear that the copies are equal.
    if (is_refusal(flushed.status()) && run.stands(im)) refused(im, flushed.status());
    co_return flushed.status();
  }
  if (flushed->loss_id == run.loss) co_return Status::ok();
  im.resync_loss = flushed->loss_id;
  co_return Status(Code::kUnavailable, "the shared copy changed its loss id during the resync");
}

// The copies may differ, on record there: other hosts' reads wait, and a takeover takes an operator's second word.
Task<Status> Engine::tell_apart(Image& im, const ResyncRun& run) {
  const uint64_t session = mirror_->hello().session;
  if (im.told_apart == session) co_return Status::ok();   // as it resumed
  auto told = co_await say_resumed(im, run.epoch, 2);
  if (told) im.told_apart = session;
  co_return told.status();
}

// Other hosts' reads are answered from the shared copy again, and it is level for a takeover.
Task<Status> Engine::tell_equal(Image& im, const ResyncRun& run) {
  im.told_apart = 0;
  auto told = co_await say_resumed(im, run.epoch, 0);
  if (!told) co_return told.status();
  if (told->loss_id == run.loss && run.stands(im)) co_return Status::ok();
  co_return Status(Code::kUnavailable, "the link, the tenure or the shared copy's loss id changed");
}

// All of these regions, from the host's copy, window by window.
Task<Status> Engine::resync_regions(Image& im, const ResyncRun& run, std::vector<RegionIndex> regions, uint64_t bytes,
                                    uint64_t* repaired) {
  const uint64_t rate = options_.config.resync.rate;
  const uint64_t most = rate == 0 || waited_for(im) ? kWindow : std::min(kWindow, rate);
  const size_t window = std::max<size_t>(1, most / bytes);
  if (!co_await pace_->take_turn(im, bytes_of(im, regions, bytes)))
    co_return Status(Code::kUnavailable, "the link or the tenure changed");
  Status status;
  for (size_t at = 0; status.is_ok() && at < regions.size(); at += window) {
    const size_t end = std::min(regions.size(), at + window);
    std::vector<RegionIndex> now(regions.begin() + static_cast<ptrdiff_t>(at),
                                 regions.begin() + static_cast<ptrdiff_t>(end));
    status = co_await make_regions_equal(im, true, now, bytes, repaired);
    if (!status || end == regions.size()) break;   // the last window waits for the end of it all
    const Counter counter = journal_->last_finished();
    if (run.stands(im)) status = co_await sync_equal(im, run);
    if (status.is_ok() && !run.stands(im)) status = Status(Code::kUnavailable, "the link or the tenure changed");
    if (status.is_ok()) journal_->note_equal(im.slot, now, bytes, counter);
  }
  pace_->end_turn(im);
  co_return status;
}

Task<void> Engine::resync(Image& im) {
  if (im.resync_running) co_return;
  Pin pin(im);
  im.resync_running = true;
  const ResyncRun run{im.resync_loss, im.epoch, im.outages, im.failures};
  uint64_t repaired = 0;
  im.own_failed = false;
  journal_->set_level(im.slot, false);   // forgets what an interrupted resync made equal: written to since, maybe
  std::vector<RegionIndex> regions = journal_->dirty_regions(im.slot);
  const uint64_t region_bytes = journal_->region_bytes(im.slot);   // of these: they may grow with the image
  kLog.info("resync_begun", {{"image", im.id}, {"epoch", run.epoch}, {"regions", regions.size()}});
  Status status;
  if (run.stands(im)) status = co_await tell_apart(im, run);
  // Once for each: what was acknowledged since was applied under it, or is sent there again (apply_again()).
  const bool judged = im.local() || std::exchange(im.judged_loss, run.loss) == run.loss;
  if (!judged && im.unsynced.any()) writes_lost(im, "the shared copy was the only one and has another loss id");
  if (TM_PLANTED("call copies level without a resync")) regions.clear();
  note_shared_doubt(im, im.shared_loss, run.loss);
  const bool levels = im.local() || im.shared_in_doubt;
  if (status.is_ok() && levels) status = co_await resync_regions(im, run, regions, region_bytes, &repaired);
  if (status.is_ok() && !run.stands(im)) status = Status(Code::kUnavailable, "the link or the tenure changed");
  // Durable on both before the mark that they may differ goes.
  Counter counter = journal_->last_finished();
  uint64_t unsynced = im.unsynced.mark();
  if (status.is_ok()) status = co_await sync_equal(im, run);
  if (status.is_ok() && im.asking_none != 0)   // else it would count while the shared copy is given up
    status = Status(Code::kUnavailable, "`mirror = none` is asked for");
  if (status.is_ok() && run.stands(im)) status = set_flag(im, kFlagHostOnly, false);
  if (status.is_ok() && run.stands(im)) status = co_await tell_equal(im, run);
  if (status.is_ok() && run.stands(im)) {
    im.shared_in_doubt = false;
    // Should the link die from here on, the next to go on alone notes it anew, behind this note.
    im.facts.alone = false;
    status = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, own_loss(im), run.loss, false, std::move(done));
    });
  }
  im.resync_running = false;
  counts_.resynced_bytes += repaired;
  if (status.is_ok() && run.stands(im)) {
    kLog.info("resync_done", {{"image", im.id}, {"epoch", run.epoch}, {"copied_bytes", repaired}});
    im.apart = false;
    im.compare = false;
    im.shared_fault.clear();
    im.shared_loss = run.loss;
    im.unsynced.cover(unsynced);
    apply(im, MirrorEvent::kEqual);
    journal_->note_durable(im.slot, counter);
    co_return;
  }
  kLog.info("resync_again", {{"image", im.id}, {"reason", status}, {"copied_bytes", repaired}});
  if (status.code() == Code::kFenced) co_return fence(im);
  if (status.code() == Code::kCorruption && !im.own_failed && run.stands(im)) co_return refused(im, status);
  if (im.state != MirrorState::kResyncing) co_return;  // the next resume starts it anew
  co_await sleep(kRetry);
  if (im.state == MirrorState::kResyncing && !im.resync_running) tasks_.spawn(resync(im));
}

}  // namespace tidemark::fs
