// verify: rereads every copy's storage at one common point and compares keyed hashes; works under load.
//
// The point is a cut of the journal. The image's bytes are frozen at that moment: writes that come later preserve old
// blocks first. Host and shared copies are compared chunk by chunk with writes to the chunk held off; the same chunk
// with the preserved blocks laid over is the image at the cut, whose hashes the replica must have at its point.
#include <algorithm>

#include "fs/engine.h"
#include "fs/verify.h"
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

}  // namespace

void differ(VerifyRun& run, const Image& im, std::string_view copy, Extent where) {
  run.equal = false;
  kLog.warning("copies_differ", {{"image", im.id}, {"copy", copy}, {"offset", where.offset}, {"length", where.length}});
  if (run.image["differences"].size() >= kDifferencesMax) return;
  run.image["differences"].push_back({{"copy", copy}, {"offset", where.offset}, {"length", where.length}});
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

void Engine::verify(std::vector<std::string> names, UniqueFunction<void(uint64_t, uint64_t)> progress,
                    Callback<Result<std::string>> done) {
  if (verify_running_) return done(Status(Code::kBusy, "a verify is running already"));
  verify_running_ = true;
  auto run = std::make_shared<VerifyRun>();  // shared by the task and its callbacks
  run->progress = std::move(progress);
  run->done = std::move(done);
  run->result["names"] = names;
  tasks_.spawn(run_verify(run));
}

Task<void> Engine::run_verify(std::shared_ptr<VerifyRun> run) {
  std::vector<std::string> names = run->result["names"];
  run->result = {{"equal", true}, {"images", json::array()}};
  env_.random(run->key.secret);
  Status status = co_await images_named(names, run->images);
  const uint64_t passes = verify_client_ ? 2 : 1;
  for (const ImageId& id : run->images)
    if (const Image* im = still_there(id)) run->total_bytes += im->size_now() * passes;
  uint64_t reached = 0;
  for (size_t i = 0; status.is_ok() && i < run->images.size(); ++i) {
    Image* next = still_there(run->images[i]);
    if (next == nullptr) continue;
    Image& im = *next;
    Walk walk(im);
    run->image = {{"path", names_->path_of(im.inode)},
                  {"uuid", im.id.to_string()},
                  {"point", nullptr},
                  {"copies", {{"host", "level"}, {"shared", "level"}, {"replica", "level"}}},
                  {"differences", json::array()}};
    run->equal = true;
    run->behind = false;
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
      counts_.differences += run->image["differences"].size() + run->image.contains("error");
    }
    run->result["images"].push_back(std::move(run->image));
  }
  verify_running_ = false;
  if (status.is_ok()) run->done(run->result.dump());
  else run->done(status);
}

// Those of these names; of none: all that the shared node has.
Task<Status> Engine::images_named(std::vector<std::string> names, std::vector<ImageId>& out) {
  wire::Dump ask{InodeNumber(0), 512};
  for (bool end = false; !end;) {
    using Answer = Result<wire::DirEntries>;
    auto page = co_await async<Answer>([&](Callback<Answer> d) {
      mirror_->request<wire::DirEntries>(wire::Type::kDump, ask, std::move(d));
    });
    if (!page) co_return page.status();
    end = page->end != 0 || page->entries.empty();
    for (const wire::DirEntry& e : page->entries) {
      ask.after = e.attr.inode;
      names_->put_entry(e.attr.parent, e.name, e.attr);
      if (e.attr.kind != wire::NodeKind::kImage || e.attr.nlink == 0 || !names.empty()) continue;
      auto im = image_of(e.attr);
      if (im) out.push_back((*im)->id);
    }
  }
  for (const std::string& name : names) {
    auto attr = names_->resolve(name);
    auto im = attr ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, name + ": no such image"));
    if (!im) co_return im.status();
    out.push_back((*im)->id);
  }
  co_return Status::ok();
}

// As its turn comes: it may have been removed since. Null then.
Image* Engine::still_there(const ImageId& id) {
  Image* im = find(id);
  return im == nullptr || im->doomed ? nullptr : im;
}

// Takes the tenure where it is free; kBusy if another host keeps it.
Task<Status> Engine::hold_for_reading(Image& im) {
  for (int i = 0; im.recovering && i < 600; ++i) co_await sleep(std::chrono::milliseconds(100));
  for (int i = 0; !im.held && i < 40; ++i) {
    want_tenure(im, true);
    co_await sleep(std::chrono::milliseconds(50));
    if (!im.acquiring && !im.held) break;
  }
  while (im.acquiring) co_await sleep(std::chrono::milliseconds(50));
  co_return im.held ? Status::ok() : Status(Code::kBusy, "another host writes this image: go there");
}

Task<Status> Engine::verify_image(VerifyRun& run, Image& im) {
  // The tenure makes the common point possible. Another host that writes keeps it: the verify belongs there.
  Status held;
  if (im.missing.empty()) held = co_await hold_for_reading(im);
  if (!im.missing.empty()) {
    run.equal = false;
    run.image["copies"] = {{"host", "missing"}, {"shared", "unknown"}, {"replica", "unknown"}};
    run.image["note"] = im.missing;
    co_return Status::ok();
  }
  if (!held) {
    run.image["copies"] = {{"host", "behind"}, {"shared", "unknown"}, {"replica", "unknown"}};
    run.image["note"] = held.message();
    run.image["skipped"] = true;
    // That it is there at all can be told from here too.
    const uint64_t size = std::min<uint64_t>(im.size_now(), kVerifyFine);
    if (size == 0 || im.attr.mirror == 0) co_return Status::ok();
    auto there = co_await shared_digests(im, {0, size}, kVerifyFine, run.key);
    if (!there && is_damage(there.status())) run.image["copies"]["shared"] = "damaged";
    co_return there || !is_damage(there.status()) ? Status::ok() : there.status();
  }
  for (int i = 0;
       i < 600 && im.held && (im.state == MirrorState::kFilling || im.state == MirrorState::kResyncing) && im.local();
       ++i)
    co_await sleep(std::chrono::milliseconds(100));
  uint64_t size = im.size;
  if (!im.attached) co_return Status(Code::kUnavailable, "image " + im.id.to_string() + " has no journal yet");
  // One turn: the cut and the freeze are the same moment.
  journal::Point point = journal_->cut(journal::Journal::CutReason::kNamed);
  run.withheld = journal_->withheld(im.id);
  run.path_at_cut = im.nameless ? "" : names_->path_of(im.inode);
  Status frozen = journal_->freeze(im.slot, size);
  if (!frozen) co_return frozen;
  Status status = co_await verify_copies(run, im, size);
  bool broken = journal_->freeze_broken();
  journal_->end_freeze();
  if (!status) co_return status;
  if (broken) {
    run.image["note"] = "too much was overwritten during the run: the replica was not compared, verify again";
    run.image["copies"]["replica"] = "unknown";
    co_return Status::ok();
  }
  co_return co_await verify_replica(run, im, size, point);
}

// Bytes from `at` on of which the own copy has nothing; 0: too few to be worth it, or the copy does not count there.
uint64_t Engine::own_hole(const Image& im, uint64_t at, uint64_t size) const {
  if (!im.local() || im.copy->size() != im.size) return 0;
  auto next = im.copy->next_data(at);
  if (!next) return 0;
  uint64_t end = std::min(size, at + kVerifyHoleRun);
  if (next->length != 0 && next->offset < end) end = next->offset / kVerifyUnit * kVerifyUnit;
  return end < at + kChunk || im.stale.stale({at, end - at}) ? 0 : end - at;
}

// Nothing to read there on either copy, now and at the cut. Writes to it are held off.
Task<Result<bool>> Engine::hole_on_both(Image& im, Extent range) {
  if (range.length == 0 || own_hole(im, range.offset, range.end()) != range.length) co_return false;
  if (journal_->changed_since_freeze(range)) co_return false;
  co_return co_await shared_is_hole(im, range);
}

// Chunk by chunk, each with writes to it held off.
Task<Status> Engine::verify_copies(VerifyRun& run, Image& im, uint64_t size) {
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
    co_await lock(im, hold);
    Extent range{at, std::min(length, im.size > at ? im.size - at : 0)};  // it may have been shrunk meanwhile
    auto hole = co_await hole_on_both(im, range);
    Status status = hole.status();
    if (hole && !*hole) {
      length = chunk;
      range.length = std::min(range.length, chunk);
      if (range.length != 0) status = co_await verify_chunk(run, im, range, size);
    }
    journal_->release_frozen({at, length});
    im.order.release(hold);
    if (!status) co_return status;
    at += length;
    run.compared += length;
    advance(run, length);
  }
  if (run.behind) run.image["copies"]["host"] = "behind";
  co_return Status::ok();
}

Task<Result<bool>> Engine::shared_is_hole(Image& im, Extent range) {
  if (im.state == MirrorState::kNone) co_return true;
  using Answer = Result<wire::ExtentList>;
  wire::Extents ask{im.id, range.offset, 1};
  auto list = co_await async<Answer>([&](Callback<Answer> d) {
    mirror_->request<wire::ExtentList>(wire::Type::kExtents, ask, std::move(d));
  });
  if (!list) co_return list.status();
  bool data = !list->extents.empty() && list->extents.front().offset < range.end();
  bool told = !list->extents.empty() || list->next_offset >= range.end();
  co_return !data && told;
}

// Both copies of at most kChunk bytes, and the chunk as it was at the cut.
Task<Status> Engine::verify_chunk(VerifyRun& run, Image& im, Extent range, uint64_t size) {
  auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
  bool behind = im.stale.stale(range);
  bool local = im.local() && !behind;
  bool mirrored = im.state != MirrorState::kNone;
  if (behind) run.behind = true;
  using Answer = Result<wire::Hashes>;
  if (local && mirrored) {
    wire::Hash ask{im.id, range, kVerifyUnit, run.key};
    auto theirs = co_await async<Answer>(
        [&](Callback<Answer> d) { mirror_->request<wire::Hashes>(wire::Type::kHash, ask, std::move(d)); });
    if (!theirs) co_return theirs.status();
    Status read = co_await read_copy(im, range, buffer);
    if (!read) co_return read.with_context("host copy");
    for (uint64_t i = 0; i * kVerifyUnit < range.length; ++i) {
      Extent unit{range.offset + i * kVerifyUnit, std::min<uint64_t>(kVerifyUnit, range.length - i * kVerifyUnit)};
      ByteSpan bytes = ByteSpan(buffer->span()).subspan(i * kVerifyUnit, unit.length);
      bool same = i < theirs->digests.size() && keyed_digest(run.key, bytes) == theirs->digests[i];
      if (!same) co_await narrow_shared(run, im, unit, bytes);
    }
  } else {
    Status read;
    if (local) read = co_await read_copy(im, range, buffer);
    else read = co_await read_shared(im, range, buffer);
    if (!read) co_return read;
  }
  journal_->overlay_frozen(range, buffer->span().first(range.length));
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
Task<void> Engine::narrow_shared(VerifyRun& run, Image& im, Extent unit, ByteSpan bytes) {
  size_t before = run.suspects.size();
  using Answer = Result<wire::Hashes>;
  wire::Hash fine{im.id, unit, kVerifyFine, run.key};
  auto narrow = co_await async<Answer>(
      [&](Callback<Answer> d) { mirror_->request<wire::Hashes>(wire::Type::kHash, fine, std::move(d)); });
  for (uint64_t f = 0; narrow && f < narrow->digests.size() && f * kVerifyFine < unit.length; ++f) {
    Extent piece{unit.offset + f * kVerifyFine, std::min<uint64_t>(kVerifyFine, unit.length - f * kVerifyFine)};
    Digest128 own = keyed_digest(run.key, bytes.subspan(f * kVerifyFine, piece.length));
    if (own != narrow->digests[f]) run.suspects.push_back({piece, own, narrow->digests[f]});
  }
  if (run.suspects.size() == before) differ(run, im, "shared", unit);
}

}  // namespace tidemark::fs
