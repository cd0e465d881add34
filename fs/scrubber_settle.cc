// scrub, continued: two copies of a block differ, or one cannot be read. Which is right, and the repair of the other.
//
// Copies that count as level and have no write under way must be equal. Where they are not, one of them lost or changed
// a block by itself, and which one is decided by what is known, never by a guess (the first that applies):
//
//   a digest is kept of the block     -> the copy that matches it is good (an earlier scrub found both copies equal;
//                                        journal/kept_digests.h: it is of what was written last); if neither does, the
//                                        mixture of both that does, if any
//   a copy answers a read error       -> what it cannot read is taken from the other; what both can read is not touched
//   --trust-replica, and its newest   -> the copy that the replica agrees with. Not by default: what the replica has
//     point agrees with one of them      of a block may have been read from a copy after it had rotted
//   otherwise                         -> undecided: both stay as they are, named and reported until they agree
//
// Blocks that are equal, and clean in the dirty-region log, get their digests kept. Equal blocks that are not what the
// digest says were changed without the log's knowing: reported as well, for that is no rot.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine_types.h"
#include "fs/image.h"
#include "fs/replica_client.h"
#include "fs/scrub_run.h"
#include "fs/scrubber.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
using nlohmann::json;

namespace {
const log::Logger kLog("scrub");
constexpr uint32_t kFine = 4096;
constexpr size_t kMixedMax = 8;                        // pieces of a unit of which either copy's may be right
constexpr size_t kRepairingMax = 64;                   // blocks repaired between two syncs
}  // namespace

// Whether the unit is equal and right on both copies now.
Task<Result<bool>> Scrubber::settle_unit(ScrubRun& run, Image& im, ScrubBlock& block, uint64_t i,
                                         const DigestKey& key) {
  const Extent unit = block.unit(i);
  const auto& host = block.host[i];
  const auto& shared = block.shared[i];
  std::optional<Digest128> kept;
  if (block.kept) kept = (*block.kept)[i];
  auto good = [&](const std::optional<Digest128>& copy) { return kept && copy && *copy == *kept; };
  if (good(host)) co_return co_await repair_unit(run, im, block, unit, true, key);
  if (good(shared)) co_return co_await repair_unit(run, im, block, unit, false, key);
  if (!host || !shared) co_return co_await settle_unreadable(run, im, block, unit, host.has_value(), key);
  const std::string why =
      kept ? "neither copy is what its digest says" : "no digest is kept of it: it was written since the last scrub";
  if (kept) {
    auto mixed = co_await repair_mixed(run, im, block, unit, *kept, key);
    if (!mixed || *mixed) co_return mixed;
  }
  auto fine = co_await copies_.shared_digests(im, unit, kFine, run.key);
  if (!fine) co_return fine.status();
  for (uint64_t f = 0; f < fine->size(); ++f) {
    Extent piece{unit.offset + f * kFine, std::min<uint64_t>(kFine, unit.length - f * kFine)};
    Digest128 own = keyed_digest(run.key, block.own(piece));
    if (own != (*fine)[f]) run.undecided.push_back({piece, own, (*fine)[f], why});
  }
  co_return false;
}

// No copy is known to be good, and not all of both can be read: by pieces, so that nothing which can be read is lost. A
// piece that one copy alone can read is taken from it.
Task<Result<bool>> Scrubber::settle_unreadable(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, bool host_read,
                                               const DigestKey& key) {
  bool sure = true;
  for (uint64_t at = unit.offset; at < unit.end(); at += kFine) {
    const Extent piece{at, std::min<uint64_t>(kFine, unit.end() - at)};
    bool own_read = host_read;
    if (!host_read) {
      auto bytes = std::make_shared<io::AlignedBuffer>(piece.length);  // shared with the operation
      Status read = co_await copies_.read_copy(im, piece, bytes);
      own_read = read.is_ok();
      if (own_read) std::copy_n(bytes->data(), piece.length, block.own(piece).data());
    }
    auto told = co_await copies_.shared_digests(im, piece, kFine, key);
    if (!told && told.status().code() != Code::kIoError) co_return told.status();
    const Digest128 own = own_read ? keyed_digest(key, block.own(piece)) : Digest128{};
    const Digest128 there = told ? (*told)[0] : Digest128{};
    if (own_read && told && own == there) continue;
    if (own_read == told.is_ok()) {
      const char* why = own_read ? "next to a bad sector, and no digest tells" : "no copy can be read";
      run.undecided.push_back({piece, own, there, why});
      sure = false;
      continue;
    }
    auto repaired = co_await repair_unit(run, im, block, piece, own_read, key);
    if (!repaired) co_return repaired.status();
    sure = sure && *repaired;
  }
  co_return sure;
}

// On record before the first byte of a repair, as undecided: should a crash undo or tear it, the place is an alarm
// until a scrub finds it equal. Not in the dirty-region log: a recovery takes the host's bytes there, rotten ones too.
Task<Status> Scrubber::before_repair(ScrubRun& run, Image& im, Extent range) {
  if (!run.repairing.empty() && run.repairing.back() == range) co_return Status::ok();
  if (run.repairing.size() >= kRepairingMax) {
    // Writing again takes the places that a scrub holds.
    if (im.own_in_doubt()) co_return Status(Code::kUnavailable, "a sync of the own copy has failed");
    if (Status s = co_await sync_repairs(run, im); !s) co_return s;
  }
  if (run.repairing.empty()) run.shared_loss = im.shared_loss;
  run.repairing.push_back(range);
  run.repaired = true;
  std::vector<Extent> pieces = run.repairing;
  if (auto at = state_.undecided.find(im.id); at != state_.undecided.end())
    pieces.insert(pieces.end(), at->second.begin(), at->second.end());
  co_return record_undecided(im.id, pieces).with_context("what a scrub repairs is put on record");
}

// What was repaired is durable on both copies, or stays on record: the dirty-region log has none of it, so that no
// resync meanwhile has copied again what the shared copy lost.
Task<Status> Scrubber::sync_repairs(ScrubRun& run, Image& im) {
  if (Status s = co_await copies_.flush_both(im); !s) co_return s;
  if (im.state != MirrorState::kMirrored || im.shared_loss != run.shared_loss)
    co_return Status(Code::kUnavailable, "a copy may have lost what was repaired");
  run.repairing.clear();
  co_return Status::ok();
}

// Copies what differs from the good copy, and looks again.
Task<Result<bool>> Scrubber::repair_unit(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, bool host_good,
                                         const DigestKey& key) {
  if (TM_PLANTED("scrub copies the wrong way")) host_good = !host_good;
  Status status = co_await before_repair(run, im, block.range);
  if (!status) co_return status;
  if (host_good) status = co_await copies_.copy_to_shared(im, unit, block.own(unit));
  else status = co_await copies_.copy_to_host(im, unit);
  im.own_failed = false;                 // what failed here is said here
  im.unsynced.finish();                  // flushed when the image comes to rest, should the scrub end here
  if (!status) co_return status.with_context("repair of the " + std::string(host_good ? "shared" : "host") + " copy");
  co_return co_await confirm(run, im, unit, host_good ? "shared" : "host", key);
}

Task<Result<bool>> Scrubber::confirm(ScrubRun& run, Image& im, Extent unit, std::string_view copy,
                                     const DigestKey& key) {
  auto again = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  Status read = co_await copies_.read_copy(im, unit, again);
  auto there = co_await copies_.shared_digests(im, unit, kScrubUnit, key);
  Digest128 own = keyed_digest(key, ByteSpan(again->span()).first(unit.length));
  if (!read || !there || own != (*there)[0]) {
    run.undecided.push_back(
        {unit, own, there ? (*there)[0] : Digest128{}, "a repair of the " + std::string(copy) + " copy did not hold"});
    co_return false;
  }
  (copy == "host" ? state_.repaired_host : state_.repaired_shared) += unit.length;
  kLog.warning("repaired", {{"image", im.id}, {"copy", copy}, {"offset", unit.offset}, {"length", unit.length}});
  list_in(run.image["repaired"], {{"copy", copy}, {"offset", unit.offset}, {"length", unit.length}});
  co_return true;
}

// Both copies have rotted, in different places of one unit: the mixture that the digest is of.
Task<Result<bool>> Scrubber::repair_mixed(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, Digest128 kept,
                                          const DigestKey& key) {
  auto theirs = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  if (Status read = co_await copies_.read_shared(im, unit, theirs); !read) co_return read;
  std::vector<Extent> differ;            // within the unit
  MutableByteSpan own = block.own(unit);
  for (uint64_t at = 0; at < unit.length; at += kFine) {
    uint64_t length = std::min<uint64_t>(kFine, unit.length - at);
    if (!std::equal(own.begin() + at, own.begin() + at + length, theirs->data() + at)) differ.push_back({at, length});
  }
  if (differ.size() > kMixedMax) co_return false;
  Bytes tried(own.begin(), own.end());
  for (uint32_t choice = 1; choice + 1 < 1u << differ.size(); ++choice) {
    for (size_t d = 0; d < differ.size(); ++d) {
      const uint8_t* from = (choice >> d & 1) != 0 ? theirs->data() : own.data();
      std::copy_n(from + differ[d].offset, differ[d].length, tried.data() + differ[d].offset);
    }
    if (keyed_digest(key, tried) != kept) continue;
    if (Status s = co_await before_repair(run, im, block.range); !s) co_return s;
    // To the shared copy first: the own one then takes all of it from there.
    if (Status s = co_await copies_.copy_to_shared(im, unit, tried); !s)
      co_return s.with_context("repair of the shared copy");
    auto held = co_await confirm_shared(im, unit, kept, key);
    if (!held || !*held) co_return held;
    Status own_written = co_await copies_.copy_to_host(im, unit);
    im.own_failed = false;
    im.unsynced.finish();
    if (!own_written) co_return own_written.with_context("repair of the host copy");
    state_.repaired_shared += unit.length;
    list_in(run.image["repaired"], {{"copy", "shared"}, {"offset", unit.offset}, {"length", unit.length}});
    co_return co_await confirm(run, im, unit, "host", key);
  }
  co_return false;
}

Task<Result<bool>> Scrubber::confirm_shared(Image& im, Extent unit, Digest128 wanted, const DigestKey& key) {
  auto there = co_await copies_.shared_digests(im, unit, kScrubUnit, key);
  if (!there) co_return there.status();
  co_return (*there)[0] == wanted;
}

// An operator's word: of two copies that differ, the one that the replica's newest point agrees with is right.
Task<void> Scrubber::decide_by_replica(ScrubRun& run, Image& im) {
  auto keep = [&](std::string why) { run.image["note"] = "the replica was not asked: " + std::move(why); };
  if (copies_.replica() == nullptr) co_return keep("none is configured");
  journal::Point point = copies_.write_journal().cut(journal::Journal::CutReason::kNamed);
  auto shipped = co_await copies_.replica()->wait_shipped(point.batch, kShipWait);
  json receipt = shipped ? json::parse(*shipped, nullptr, false) : json();
  if (!receipt.is_object() || !receipt.contains("point") || !receipt["point"].is_number())
    co_return keep(shipped ? "it holds the newest cut back" : shipped.status().message());
  const std::string target =
      "/v1/points/" + std::to_string(receipt["point"].get<uint64_t>()) + "/images/" + im.id.to_string() + "/hash";
  std::vector<Undecided> left;
  for (Undecided& u : std::exchange(run.undecided, {})) {
    net::HttpRequest ask = digests_request(target, u.piece, kFine, run.key);
    auto answer = co_await copies_.replica()->ask(ask);
    json got = answer && answer->status == 200 ? json::parse(as_text(answer->body), nullptr, false) : json();
    std::string word;
    if (u.piece.length <= kFine && got.is_object() && got["digests"].is_array() && got["digests"].size() == 1)
      word = got["digests"][0].is_string() ? got["digests"][0].get<std::string>() : "";
    bool host = word == hex_of(u.host), shared = word == hex_of(u.shared);
    bool settled = false;
    if (host != shared) settled = co_await repair_if_unchanged(run, im, u, host);
    if (!settled) {
      u.why += word.empty() ? "; the replica could not say" : "; the replica agrees with neither";
      left.push_back(std::move(u));
    }
  }
  for (Undecided& u : run.undecided) left.push_back(std::move(u));   // repairs that did not hold
  run.undecided = std::move(left);
}

Task<bool> Scrubber::repair_if_unchanged(ScrubRun& run, Image& im, const Undecided& u, bool host_good) {
  RangeLock::Hold hold;
  hold.exclusive = true;
  hold.extent = u.piece;
  co_await copies_.lock(im, hold);
  ++im.active;
  bool settled = false;
  if (im.held && im.state == MirrorState::kMirrored && im.local() && u.piece.end() <= im.size) {
    ScrubBlock block;
    block.range = u.piece;
    block.bytes = std::make_shared<io::AlignedBuffer>(u.piece.length);
    Status read = co_await copies_.read_copy(im, u.piece, block.bytes);
    auto there = co_await copies_.shared_digests(im, u.piece, kFine, run.key);
    bool same = read && there && keyed_digest(run.key, block.own(u.piece)) == u.host && (*there)[0] == u.shared;
    if (same) {
      auto repaired = co_await repair_unit(run, im, block, u.piece, host_good, run.key);
      settled = repaired && *repaired;
    }
  }
  im.order.release(hold);
  copies_.deactivate(im);
  co_return settled;
}

}  // namespace tidemark::fs
