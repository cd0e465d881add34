// scrub: reads both copies of every block, under load, and repairs the one that has rotted.
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
//
// Each block is held in the order of overlapping requests while it is looked at: nothing is written there meanwhile.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine.h"
#include "fs/scrub.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
using nlohmann::json;

// A piece whose copies differ, and nothing told which one is right.
struct Undecided {
  Extent piece;
  Digest128 host, shared;                // under the run's key
  std::string why;
};

struct ScrubRun {
  ScrubOptions options;
  std::vector<Image*> images;
  UniqueFunction<void(uint64_t, uint64_t)> progress;
  Callback<Result<std::string>> done;
  DigestKey key;
  io::BootTime began;
  uint64_t paced = 0;                    // bytes since then
  json result;

  // Of the image at hand.
  json image;
  uint64_t compared = 0, skipped = 0, kept = 0, unsure = 0;
  std::vector<Undecided> undecided;
  uint64_t reached = 0;                  // what lies beyond it was not looked at
  std::vector<Extent> carried;           // undecided before, and not looked at now
};

// One block of both copies, and what is known of it. Units are kUnit long; the last may be shorter.
struct ScrubBlock {
  Extent range;
  std::shared_ptr<io::AlignedBuffer> bytes;            // of the own copy; shared with the operations
  std::vector<std::optional<Digest128>> host, shared;  // absent: it could not be read
  std::optional<std::vector<Digest128>> kept;
  Extent unit(uint64_t i) const {
    uint64_t at = i * journal::kKeptUnitBytes;
    return {range.offset + at, std::min(journal::kKeptUnitBytes, range.length - at)};
  }
  MutableByteSpan own(Extent piece) { return bytes->span().subspan(piece.offset - range.offset, piece.length); }
};

namespace {
const log::Logger kLog("scrub");
constexpr uint64_t kBlock = journal::kKeptBlockBytes;
constexpr uint32_t kUnit = journal::kKeptUnitBytes;
constexpr uint32_t kFine = 4096;
constexpr uint64_t kHoleRun = 64ull << 20;
constexpr size_t kListedMax = 1000;
constexpr size_t kMixedMax = 8;                        // pieces of a unit of which either copy's may be right
constexpr std::chrono::milliseconds kGuestsFirst{2};
constexpr int kGuestsFirstTimes = 10;
constexpr std::chrono::seconds kShipWait{30};

void list(json& to, json entry) {
  if (to.size() < kListedMax) to.push_back(std::move(entry));
}
}  // namespace

void Engine::scrub(ScrubOptions options, UniqueFunction<void(uint64_t, uint64_t)> progress,
                   Callback<Result<std::string>> done) {
  if (scrub_->running) return done(Status(Code::kBusy, "a scrub is running already"));
  scrub_->running = true;
  scrub_->stop = false;
  auto run = std::make_shared<ScrubRun>();  // shared by the task and its callbacks
  run->options = std::move(options);
  run->progress = std::move(progress);
  run->done = std::move(done);
  tasks_.spawn(run_scrub(run));
}

Task<void> Engine::run_scrub(std::shared_ptr<ScrubRun> run) {
  run->result = {{"clean", true}, {"repaired", 0}, {"undecided", 0}, {"images", json::array()}};
  env_.random(run->key.secret);
  Status status = co_await images_named(run->options.images, run->images);
  scrub_->done = scrub_->total = 0;
  for (Image* im : run->images) scrub_->total += im->size_now();
  run->began = env_.now();
  if (status.is_ok() && run->options.images.empty()) forget_undecided(run->images);
  for (size_t i = 0; status.is_ok() && i < run->images.size() && !scrub_->stop; ++i) {
    Image& im = *run->images[i];
    ++im.handles;  // keeps it in memory
    run->image = {{"path", names_->path_of(im.inode)}, {"uuid", im.id.to_string()}, {"repaired", json::array()},
                  {"undecided", json::array()}};
    run->compared = run->skipped = run->kept = run->unsure = 0;
    run->undecided.clear();
    run->carried.clear();
    run->reached = 0;
    const uint64_t before = scrub_->done, size = im.size_now();
    status = co_await scrub_image(*run, im);
    // A copy that cannot be read at all is no reason to leave the other images alone.
    if (!status && status.code() == Code::kCorruption) {
      run->image["note"] = status.message();
      run->result["clean"] = false;
      kLog.warning("copy_unreadable", {{"image", im.id}, {"error", status}});
      status = Status::ok();
    }
    scrub_->done = before + size;
    std::vector<Extent> left = std::move(run->carried);
    if (auto known = scrub_->undecided.find(im.id); known != scrub_->undecided.end()) {
      for (const Extent& piece : known->second)
        if (piece.offset >= run->reached) left.push_back(piece);
    }
    for (const Undecided& u : run->undecided) {
      left.push_back(u.piece);
      kLog.warning("undecided", {{"image", im.id}, {"offset", u.piece.offset}, {"length", u.piece.length},
                                 {"host", hex_of(u.host)}, {"shared", hex_of(u.shared)}, {"reason", u.why}});
      list(run->image["undecided"], {{"offset", u.piece.offset}, {"length", u.piece.length}, {"host", hex_of(u.host)},
                                     {"shared", hex_of(u.shared)}, {"reason", u.why}});
    }
    set_undecided(im.id, std::move(left));
    --im.handles;
    if (im.handles == 0 && im.nameless) doom(im);
    run->image["bytes_compared"] = run->compared;
    run->image["bytes_skipped"] = run->skipped;
    run->image["bytes_vouched"] = run->kept;
    run->result["repaired"] = run->result["repaired"].get<uint64_t>() + run->image["repaired"].size();
    run->result["undecided"] = run->result["undecided"].get<uint64_t>() + run->undecided.size();
    if (!run->undecided.empty()) run->result["clean"] = false;
    run->result["images"].push_back(std::move(run->image));
  }
  run->result["stopped"] = scrub_->stop;
  scrub_->running = false;
  ++scrub_->runs;
  scrub_->ended = env_.wall();
  if (!status) co_return run->done(status);
  run->done(run->result.dump(-1, ' ', false, json::error_handler_t::replace));
}

Task<Status> Engine::scrub_image(ScrubRun& run, Image& im) {
  if (Status s = co_await hold_for_reading(im); !s) {
    run.image["note"] = s.message();
    run.skipped = im.size_now();
    co_return Status::ok();
  }
  for (uint64_t at = 0; at < im.size && !scrub_->stop;) {
    uint64_t length = std::min(kBlock, im.size - at);
    RangeLock::Hold hold;
    hold.exclusive = true;
    hold.extent = {at, length};
    co_await lock(im, hold);
    ++im.active;                         // the tenure is not given back while a block is looked at
    Status status;
    if (at < im.size) {
      uint64_t hole = co_await holes_of_both(im, at);
      if (hole != 0) length = hole;
      else status = co_await scrub_block(run, im, {at, std::min(length, im.size - at)});
    }
    im.order.release(hold);
    deactivate(im);
    if (!status) co_return status.with_context(im.id.to_string() + " at offset " + std::to_string(at));
    run.reached = at += length;
    scrub_->done += length;
    if (run.progress) run.progress(std::min(scrub_->done, scrub_->total), scrub_->total);
    co_await pace(run, length);
  }
  if (run.reached >= im.size) run.reached = UINT64_MAX;   // it may have been shrunk
  if (!run.undecided.empty() && run.options.trust_replica && !scrub_->stop) co_await decide_by_replica(run, im);
  // What was repaired must not be lost with the power: it would only be found again.
  if (im.held && im.state == MirrorState::kMirrored && !run.image["repaired"].empty())
    co_return co_await flush_both(im);
  co_return Status::ok();
}

// Bytes from `at` on that are a hole on both copies; 0: not worth knowing.
Task<uint64_t> Engine::holes_of_both(Image& im, uint64_t at) {
  if (!im.held || im.state != MirrorState::kMirrored || !im.local()) co_return 0;
  auto next = im.copy->next_data(at);
  uint64_t end = std::min(im.size, at + kHoleRun);
  if (!next || (next->length != 0 && next->offset < std::min(end, at + kBlock))) co_return 0;
  if (next->length != 0) end = std::min(end, next->offset / kBlock * kBlock);
  // The hold is of one block: beyond it something may just be written, which a later scrub sees.
  auto same = co_await shared_is_hole(im, {at, end - at});
  co_return same && *same ? end - at : 0;
}

// The rate that was asked for, and guests before this.
Task<void> Engine::pace(ScrubRun& run, uint64_t bytes) {
  run.paced += bytes;
  if (run.options.bytes_per_second != 0) {
    auto due = std::chrono::nanoseconds(
        static_cast<int64_t>(1e9 * static_cast<double>(run.paced) / static_cast<double>(run.options.bytes_per_second)));
    for (auto left = run.began + due - env_.now(); left > io::Duration::zero(); left = run.began + due - env_.now()) {
      if (stopping_ || scrub_->stop) co_return;
      co_await sleep(std::min<io::Duration>(left, std::chrono::milliseconds(200)));
    }
  }
  for (int i = 0; i < kGuestsFirstTimes && ops_in_flight_ != 0 && !stopping_; ++i) co_await sleep(kGuestsFirst);
}

Task<Status> Engine::scrub_block(ScrubRun& run, Image& im, Extent range) {
  const Epoch epoch = im.epoch;
  auto level = [&] {
    return im.held && im.epoch == epoch && im.state == MirrorState::kMirrored && im.local() && !im.stale.stale(range) &&
           !im.apart && !im.facts.alone && !stopping_;
  };
  auto skip = [&] {
    run.skipped += range.length;
    auto known = scrub_->undecided.find(im.id);
    if (known == scrub_->undecided.end()) return;
    for (const Extent& piece : known->second)
      if (piece.overlaps(range)) run.carried.push_back(piece);
  };
  if (!level()) {
    skip();
    co_return Status::ok();
  }
  ScrubBlock block;
  block.range = range;
  block.bytes = std::make_shared<io::AlignedBuffer>(range.length);
  const DigestKey key = journal_->digest_key(im.slot);
  if (Status s = co_await read_for_scrub(im, block, key); !s) co_return s;
  if (!level()) {                        // the link went, or the tenure: what was read says nothing
    skip();
    co_return Status::ok();
  }
  block.kept = journal_->kept_digests(im.slot, range);
  const uint64_t repaired = run.image["repaired"].size();
  bool sure = true;
  for (uint64_t i = 0; i < block.host.size(); ++i) {
    bool equal = block.host[i] && block.shared[i] && *block.host[i] == *block.shared[i];
    if (equal && (!block.kept || (*block.kept)[i] == *block.host[i])) continue;
    Status s;
    if (equal) {
      sure = false;
      run.undecided.push_back(
          {block.unit(i), *block.host[i], *block.shared[i], "both copies changed without a record"});
    } else {
      auto settled = co_await settle_unit(run, im, block, i, key);
      if (!settled) s = settled.status();
      else sure = sure && *settled;
    }
    if (!s) co_return s;
  }
  run.compared += range.length;
  scrub_->bytes += range.length;
  if (!sure || run.image["repaired"].size() != repaired || !level()) co_return Status::ok();
  std::vector<Digest128> digests;
  for (const auto& d : block.host) {
    if (!d) co_return Status::ok();      // a read failed, and then did not
    digests.push_back(*d);
  }
  if (block.kept || journal_->keep_digests(im.slot, range, digests)) run.kept += range.length;
  co_return Status::ok();
}

// Both copies of the block. A unit that cannot be read has no digest; an error otherwise is of the link.
Task<Status> Engine::read_for_scrub(Image& im, ScrubBlock& block, const DigestKey& key) {
  const uint64_t units = (block.range.length + kUnit - 1) / kUnit;
  block.host.assign(units, std::nullopt);
  block.shared.assign(units, std::nullopt);
  Status whole = co_await read_copy(im, block.range, block.bytes);
  for (uint64_t i = 0; i < units; ++i) {
    Extent unit = block.unit(i);
    if (!whole) {
      auto piece = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
      Status read = co_await read_copy(im, unit, piece);
      if (!read) {
        ++scrub_->read_errors;
        kLog.warning("read_error", {{"image", im.id}, {"copy", "host"}, {"offset", unit.offset}, {"error", read}});
        continue;
      }
      std::copy_n(piece->data(), unit.length, block.own(unit).data());
    }
    block.host[i] = keyed_digest(key, block.own(unit));
  }
  auto told = co_await shared_digests(im, block.range, kUnit, key);
  for (uint64_t i = 0; i < units; ++i) {
    if (told) {
      block.shared[i] = (*told)[i];
      continue;
    }
    if (told.status().code() != Code::kIoError) co_return told.status();
    auto one = co_await shared_digests(im, block.unit(i), kUnit, key);
    if (one) {
      block.shared[i] = (*one)[0];
      continue;
    }
    if (one.status().code() != Code::kIoError) co_return one.status();
    ++scrub_->read_errors;
    kLog.warning("read_error",
                 {{"image", im.id}, {"copy", "shared"}, {"offset", block.unit(i).offset}, {"error", one.status()}});
  }
  co_return Status::ok();
}

Task<Result<std::vector<Digest128>>> Engine::shared_digests(Image& im, Extent range, uint32_t unit,
                                                            const DigestKey& key) {
  using Answer = Result<wire::Hashes>;
  wire::Hash ask{im.id, range, unit, key};
  auto hashes = co_await async<Answer>([&](Callback<Answer> d) {
    mirror_->request<wire::Hashes>(wire::Type::kHash, ask, std::move(d));
  });
  if (!hashes) co_return hashes.status();
  if (hashes->digests.size() != (range.length + unit - 1) / unit)
    co_return Status(Code::kCorruption, "hash answer of another length");
  co_return std::move(hashes->digests);
}

// Whether the unit is equal and right on both copies now.
Task<Result<bool>> Engine::settle_unit(ScrubRun& run, Image& im, ScrubBlock& block, uint64_t i, const DigestKey& key) {
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
  auto fine = co_await shared_digests(im, unit, kFine, run.key);
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
Task<Result<bool>> Engine::settle_unreadable(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, bool host_read,
                                             const DigestKey& key) {
  bool sure = true;
  for (uint64_t at = unit.offset; at < unit.end(); at += kFine) {
    const Extent piece{at, std::min<uint64_t>(kFine, unit.end() - at)};
    bool own_read = host_read;
    if (!host_read) {
      auto bytes = std::make_shared<io::AlignedBuffer>(piece.length);  // shared with the operation
      Status read = co_await read_copy(im, piece, bytes);
      own_read = read.is_ok();
      if (own_read) std::copy_n(bytes->data(), piece.length, block.own(piece).data());
    }
    auto told = co_await shared_digests(im, piece, kFine, key);
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

// Copies what differs from the good copy, and looks again.
Task<Result<bool>> Engine::repair_unit(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, bool host_good,
                                       const DigestKey& key) {
  if (TM_PLANTED("scrub copies the wrong way")) host_good = !host_good;
  Status status;
  if (host_good) status = co_await copy_to_shared(im, unit, block.own(unit));
  else status = co_await copy_to_host(im, unit);
  im.own_failed = false;                 // what failed here is said here
  if (!status) co_return status.with_context("repair of the " + std::string(host_good ? "shared" : "host") + " copy");
  co_return co_await confirm(run, im, unit, host_good ? "shared" : "host", key);
}

Task<Result<bool>> Engine::confirm(ScrubRun& run, Image& im, Extent unit, std::string_view copy, const DigestKey& key) {
  auto again = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  Status read = co_await read_copy(im, unit, again);
  auto there = co_await shared_digests(im, unit, kUnit, key);
  Digest128 own = keyed_digest(key, ByteSpan(again->span()).first(unit.length));
  if (!read || !there || own != (*there)[0]) {
    run.undecided.push_back(
        {unit, own, there ? (*there)[0] : Digest128{}, "a repair of the " + std::string(copy) + " copy did not hold"});
    co_return false;
  }
  (copy == "host" ? scrub_->repaired_host : scrub_->repaired_shared) += unit.length;
  kLog.warning("repaired", {{"image", im.id}, {"copy", copy}, {"offset", unit.offset}, {"length", unit.length}});
  list(run.image["repaired"], {{"copy", copy}, {"offset", unit.offset}, {"length", unit.length}});
  co_return true;
}

// Both copies have rotted, in different places of one unit: the mixture that the digest is of.
Task<Result<bool>> Engine::repair_mixed(ScrubRun& run, Image& im, ScrubBlock& block, Extent unit, Digest128 kept,
                                        const DigestKey& key) {
  auto theirs = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  if (Status read = co_await read_shared(im, unit, theirs); !read) co_return read;
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
    // To the shared copy first: the own one then takes all of it from there.
    if (Status s = co_await copy_to_shared(im, unit, tried); !s) co_return s.with_context("repair of the shared copy");
    auto held = co_await confirm_shared(im, unit, kept, key);
    if (!held || !*held) co_return held;
    Status own_written = co_await copy_to_host(im, unit);
    im.own_failed = false;
    if (!own_written) co_return own_written.with_context("repair of the host copy");
    scrub_->repaired_shared += unit.length;
    list(run.image["repaired"], {{"copy", "shared"}, {"offset", unit.offset}, {"length", unit.length}});
    co_return co_await confirm(run, im, unit, "host", key);
  }
  co_return false;
}

Task<Result<bool>> Engine::confirm_shared(Image& im, Extent unit, Digest128 wanted, const DigestKey& key) {
  auto there = co_await shared_digests(im, unit, kUnit, key);
  if (!there) co_return there.status();
  co_return (*there)[0] == wanted;
}

// An operator's word: of two copies that differ, the one that the replica's newest point agrees with is right.
Task<void> Engine::decide_by_replica(ScrubRun& run, Image& im) {
  auto keep = [&](std::string why) { run.image["note"] = "the replica was not asked: " + std::move(why); };
  if (!verify_client_) co_return keep("none is configured");
  journal::Point point = journal_->cut(journal::Journal::CutReason::kNamed);
  auto shipped = co_await wait_shipped(point.batch, kShipWait);
  json receipt = shipped ? json::parse(*shipped, nullptr, false) : json();
  if (!receipt.is_object() || !receipt.contains("point") || !receipt["point"].is_number())
    co_return keep(shipped ? "it holds the newest cut back" : shipped.status().message());
  const std::string target =
      "/v1/points/" + std::to_string(receipt["point"].get<uint64_t>()) + "/images/" + im.id.to_string() + "/hash";
  std::vector<Undecided> left;
  for (Undecided& u : std::exchange(run.undecided, {})) {
    net::HttpRequest ask = digests_request(target, u.piece, kFine, run.key);
    auto answer = co_await ask_replica(ask);
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

Task<bool> Engine::repair_if_unchanged(ScrubRun& run, Image& im, const Undecided& u, bool host_good) {
  RangeLock::Hold hold;
  hold.exclusive = true;
  hold.extent = u.piece;
  co_await lock(im, hold);
  ++im.active;
  bool settled = false;
  if (im.held && im.state == MirrorState::kMirrored && im.local() && u.piece.end() <= im.size) {
    ScrubBlock block;
    block.range = u.piece;
    block.bytes = std::make_shared<io::AlignedBuffer>(u.piece.length);
    Status read = co_await read_copy(im, u.piece, block.bytes);
    auto there = co_await shared_digests(im, u.piece, kFine, run.key);
    bool same = read && there && keyed_digest(run.key, block.own(u.piece)) == u.host && (*there)[0] == u.shared;
    if (same) {
      auto repaired = co_await repair_unit(run, im, block, u.piece, host_good, run.key);
      settled = repaired && *repaired;
    }
  }
  im.order.release(hold);
  deactivate(im);
  co_return settled;
}

}  // namespace tidemark::fs
