#include "fs/verifier.h"

#include <algorithm>

#include "fs/replica_client.h"
#include "fs/verify_run.h"
#include "shared/base/log.h"

namespace tidemark::fs {
using nlohmann::json;

namespace {
const log::Logger kLog("verify");
constexpr uint64_t kChunk = 4u << 20;        // of the own copy
constexpr uint64_t kRemoteChunk = 1u << 20;  // read over the link
constexpr uint64_t kVerifyHoleRun = 64ull << 30;   // passed over at once, with writes to it held off
constexpr size_t kDifferencesMax = 1000;

bool is_damage(const Status& status) { return status.code() == Code::kCorruption || status.code() == Code::kIoError; }

// What an outage or a crash has left is equal by now. What is still to be filled the own copy's stale map names.
bool level(const Image& im) {
  const bool linked = im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling;
  return linked && !im.recovering && !im.apart && !im.facts.alone;
}

// Bytes from `at` on of which the own copy has nothing; 0: too few to be worth it, or the copy does not count there.
uint64_t own_hole(const Image& im, uint64_t at, uint64_t size) {
  if (!im.local() || im.copy->size() != im.size) return 0;
  auto next = im.copy->next_data(at);
  if (!next) return 0;
  uint64_t end = std::min(size, at + kVerifyHoleRun);
  if (next->length != 0 && next->offset < end) end = next->offset / kVerifyUnit * kVerifyUnit;
  return end < at + kChunk || im.stale.stale({at, end - at}) ? 0 : end - at;
}
}  // namespace

void differ(VerifyRun& run, const Image& im, std::string_view copy, Extent where) {
  run.equal = false;
  kLog.warning("copies_differ", {{"image", im.id}, {"copy", copy}, {"offset", where.offset}, {"length", where.length}});
  if (run.image["differences"].size() >= kDifferencesMax) return;
  run.image["differences"].push_back({{"copy", copy}, {"offset", where.offset}, {"length", where.length}});
}

std::string as_shown(const std::string& name) {
  const std::string text = json(name).dump(-1, ' ', false, json::error_handler_t::replace);
  return json::parse(text).get<std::string>();
}

void advance(VerifyRun& run, uint64_t bytes) {
  run.done_bytes += bytes;
  if (run.progress) run.progress(run.done_bytes, run.total_bytes);
}

std::vector<Digest128>& digests_around(VerifyRun& run, uint64_t at, uint64_t size) {
  auto [window, fresh] = run.frozen.try_emplace(at / kVerifyWindow);
  if (!fresh) return window->second;
  const uint64_t begin = at / kVerifyWindow * kVerifyWindow, length = std::min(kVerifyWindow, size - begin);
  const Bytes zeros(kVerifyUnit);
  const uint64_t tail = length % kVerifyUnit;
  window->second.assign((length + kVerifyUnit - 1) / kVerifyUnit, keyed_digest(run.key, zeros));
  if (tail != 0) window->second.back() = keyed_digest(run.key, ByteSpan(zeros).first(tail));
  return window->second;
}

void Verifier::start(std::vector<std::string> names, UniqueFunction<void(uint64_t, uint64_t)> progress,
                     Callback<Result<std::string>> done) {
  if (running_) return done(Status(Code::kBusy, "a verify is running already"));
  running_ = true;
  auto run = std::make_shared<VerifyRun>();  // shared by the task and its callbacks
  run->progress = std::move(progress);
  run->done = std::move(done);
  run->result["names"] = names;
  copies_.spawn(run_verify(run));
}

Task<void> Verifier::run_verify(std::shared_ptr<VerifyRun> run) {
  std::vector<std::string> names = run->result["names"];
  run->result = {{"equal", true}, {"images", json::array()}};
  copies_.env().random(run->key.secret);
  Status status = co_await copies_.images_named(names, run->images);
  const uint64_t passes = copies_.replica() != nullptr ? 2 : 1;
  for (const ImageId& id : run->images)
    if (const Image* im = copies_.still_there(id)) run->total_bytes += im->size_now() * passes;
  uint64_t reached = 0;
  for (size_t i = 0; status.is_ok() && i < run->images.size(); ++i) {
    Image* next = copies_.still_there(run->images[i]);
    if (next == nullptr) continue;
    Image& im = *next;
    Walk walk(im);
    run->image = {{"path", as_shown(copies_.names().path_of(im.inode))},
                  {"uuid", im.id.to_string()},
                  {"point", nullptr},
                  {"copies", {{"host", "level"}, {"shared", "level"}, {"replica", "level"}}},
                  {"differences", json::array()}};
    run->equal = true;
    run->behind = run->apart = false;
    run->compared = 0;
    run->frozen.clear();
    run->suspects.clear();
    run->decided = false;
    reached += im.size_now() * passes;
    status = co_await verify_image(*run, im);
    if (run->done_bytes < reached) advance(*run, reached - run->done_bytes);   // part of it was left out
    // A copy that cannot be read at all is no reason to leave the other images alone.
    if (!status && is_damage(status)) {
      run->equal = false;
      run->image["error"] = status.message();
      for (auto& [copy, found] : run->image["copies"].items())
        if (found == "level") found = "unknown";
      kLog.warning("copy_unreadable", {{"image", im.id}, {"error", status}});
      status = Status::ok();
    }
    // Without a replica's word either may be the wrong one.
    for (const Suspect& s : run->suspects) {
      if (run->decided) break;
      differ(*run, im, "host", s.piece);
      differ(*run, im, "shared", s.piece);
    }
    run->image["equal"] = run->equal;
    run->image["bytes_compared"] = run->compared;
    if (!run->equal) {
      run->result["equal"] = false;
      differences_ += run->image["differences"].size() + run->image.contains("error");
    }
    run->result["images"].push_back(std::move(run->image));
  }
  running_ = false;
  if (status.is_ok()) run->done(run->result.dump(-1, ' ', false, json::error_handler_t::replace));
  else run->done(status);
}

Task<Status> Verifier::verify_image(VerifyRun& run, Image& im) {
  // The tenure makes the common point possible. Another host that writes keeps it: the verify belongs there.
  Status held;
  if (im.missing.empty()) held = co_await copies_.hold_for_reading(im);
  if (!im.missing.empty()) {
    run.equal = false;
    run.image["copies"] = {{"host", "missing"}, {"shared", "unknown"}, {"replica", "unknown"}};
    run.image["note"] = im.missing;
    co_return Status::ok();
  }
  if (!held) {
    run.image["copies"] = {{"host", "behind"}, {"shared", "unknown"}, {"replica", "unknown"}};
    run.image["note"] = held.message();
    if (held.code() == Code::kBusy) run.image["skipped"] = true;
    else run.equal = false;
    // That it is there at all can be told from here too.
    const uint64_t size = std::min<uint64_t>(im.size_now(), kVerifyFine);
    if (size == 0 || im.attr.mirror == 0) co_return Status::ok();
    auto there = co_await copies_.shared_digests(im, {0, size}, kVerifyFine, run.key);
    if (!there && is_damage(there.status())) run.image["copies"]["shared"] = "damaged";
    co_return there || !is_damage(there.status()) ? Status::ok() : there.status();
  }
  // A link that is just back has no resync yet. One that stands, with a shared copy that refuses writes, may last.
  for (int i = 0; i < 600 && im.held && im.local() && im.state != MirrorState::kNone; ++i) {
    const bool under_way = im.state == MirrorState::kFilling || im.state == MirrorState::kResyncing;
    if (!under_way && (level(im) || i >= 50)) break;
    co_await copies_.sleep(std::chrono::milliseconds(100));
  }
  uint64_t size = im.size;
  if (!im.attached) co_return Status(Code::kUnavailable, "image " + im.id.to_string() + " has no journal yet");
  // One turn: the cut and the freeze are the same moment.
  journal::Point point = copies_.write_journal().cut(journal::Journal::CutReason::kNamed);
  run.withheld = copies_.write_journal().withheld(im.id);
  // Degraded or recovering it names the open batch, which goes on.
  const bool cut = copies_.write_journal().usage().newest_closed >= point.batch;
  run.no_cut = cut ? "" : !point.refused ? point.refused.message() : "this host recovers: verify again";
  auto receipt = copies_.replica() != nullptr && cut ? copies_.replica()->keep_receipt(point.batch) : nullptr;
  run.path_at_cut = im.nameless ? "" : copies_.names().path_of(im.inode);
  Status frozen = copies_.write_journal().freeze(im.slot, size);
  if (!frozen) co_return frozen;
  Status status = co_await verify_copies(run, im, size);
  bool broken = copies_.write_journal().freeze_broken();
  copies_.write_journal().end_freeze();
  if (!status) co_return status;
  if (broken) {
    run.image["note"] = "too much was overwritten during the run: the replica was not compared, verify again";
    run.image["copies"]["replica"] = "unknown";
    run.equal = false;
    co_return Status::ok();
  }
  co_return co_await verify_replica(run, im, size, std::move(receipt));
}

// Nothing to read there on either copy, now and at the cut. Writes to it are held off.
Task<Result<bool>> Verifier::hole_on_both(Image& im, Extent range) {
  if (range.length == 0 || own_hole(im, range.offset, range.end()) != range.length) co_return false;
  if (copies_.write_journal().changed_since_freeze(range)) co_return false;
  co_return co_await copies_.shared_is_hole(im, range);
}

// Chunk by chunk, each with writes to it held off.
Task<Status> Verifier::verify_copies(VerifyRun& run, Image& im, uint64_t size) {
  if (im.state == MirrorState::kNone) run.image["copies"]["shared"] = "absent";
  if (!im.local()) run.image["copies"]["host"] = "absent";
  for (uint64_t at = 0; at < size;) {
    if (!im.held)
      co_return Status(Code::kBusy, "the tenure of " + im.id.to_string() + " moved during the verify: run it again");
    const uint64_t most = im.local() && im.stale.none() ? kChunk : kRemoteChunk;
    const uint64_t chunk = std::min({most, kVerifyWindow - at % kVerifyWindow, size - at});
    uint64_t length = std::max(own_hole(im, at, size), chunk);
    RangeLock::Hold hold;
    hold.extent = {at, length};
    co_await copies_.lock(im, hold);
    Extent range{at, std::min(length, im.size > at ? im.size - at : 0)};  // it may have been shrunk meanwhile
    auto hole = co_await hole_on_both(im, range);
    Status status = hole.status();
    if (hole && !*hole) {
      length = chunk;
      range.length = std::min(range.length, chunk);
      if (range.length != 0) status = co_await verify_chunk(run, im, range, size);
    }
    copies_.write_journal().release_frozen({at, length});
    im.order.release(hold);
    if (!status) co_return status;
    at += length;
    run.compared += length;
    advance(run, length);
  }
  if (run.behind) {
    run.image["copies"]["host"] = "behind";
    run.equal = false;
  }
  if (run.apart) {
    run.image["copies"]["shared"] = "behind";
    run.image["note"] = "host and shared copy are still to be made equal: verify again once `status` calls it mirrored";
    run.equal = false;
  }
  co_return Status::ok();
}

// Both copies of at most kChunk bytes, and the chunk as it was at the cut.
Task<Status> Verifier::verify_chunk(VerifyRun& run, Image& im, Extent range, uint64_t size) {
  auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
  bool behind = im.stale.stale(range);
  bool local = im.local() && !behind;
  bool mirrored = im.state != MirrorState::kNone;
  const bool compares = local && mirrored && level(im);
  if (behind) run.behind = true;
  if (local && mirrored && !compares) run.apart = true;
  if (compares) {
    auto theirs = co_await copies_.hash_shared(im, range, kVerifyUnit, run.key);
    if (!theirs) co_return theirs.status();
    Status read = co_await copies_.read_copy(im, range, buffer);
    if (!read) co_return read.with_context("host copy");
    const bool stood = level(im);          // else what was read says nothing
    if (!stood) run.apart = true;
    for (uint64_t i = 0; stood && i * kVerifyUnit < range.length; ++i) {
      Extent unit{range.offset + i * kVerifyUnit, std::min<uint64_t>(kVerifyUnit, range.length - i * kVerifyUnit)};
      ByteSpan bytes = ByteSpan(buffer->span()).subspan(i * kVerifyUnit, unit.length);
      bool same = i < theirs->digests.size() && keyed_digest(run.key, bytes) == theirs->digests[i];
      if (!same) co_await narrow_shared(run, im, unit, bytes);
    }
  } else {
    Status read;
    if (local) read = co_await copies_.read_copy(im, range, buffer);
    else read = co_await copies_.read_shared(im, range, buffer);
    if (!read) co_return read;
  }
  copies_.write_journal().overlay_frozen(range, buffer->span().first(range.length));
  std::vector<Digest128>& frozen = digests_around(run, range.offset, size);
  const uint64_t first = range.offset % kVerifyWindow / kVerifyUnit;
  for (uint64_t i = 0; i * kVerifyUnit < range.length; ++i) {
    const uint64_t begin = i * kVerifyUnit;
    ByteSpan bytes = ByteSpan(buffer->span()).subspan(begin, std::min<uint64_t>(kVerifyUnit, range.length - begin));
    frozen[first + i] = keyed_digest(run.key, bytes);
  }
  co_return Status::ok();
}

// Which 4 KiB of a unit that differs between host and shared node.
Task<void> Verifier::narrow_shared(VerifyRun& run, Image& im, Extent unit, ByteSpan bytes) {
  size_t before = run.suspects.size();
  auto narrow = co_await copies_.hash_shared(im, unit, kVerifyFine, run.key);
  for (uint64_t f = 0; narrow && f < narrow->digests.size() && f * kVerifyFine < unit.length; ++f) {
    Extent piece{unit.offset + f * kVerifyFine, std::min<uint64_t>(kVerifyFine, unit.length - f * kVerifyFine)};
    Digest128 own = keyed_digest(run.key, bytes.subspan(f * kVerifyFine, piece.length));
    if (own != narrow->digests[f]) run.suspects.push_back({piece, own, narrow->digests[f]});
  }
  if (run.suspects.size() == before) differ(run, im, "shared", unit);
}

}  // namespace tidemark::fs
