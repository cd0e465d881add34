// verify: rereads every copy's storage at one common point and compares keyed hashes; works under load.
//
// The point is a cut of the journal. The image's bytes are frozen at that moment: writes that come later preserve old
// blocks first. Host and shared copies are compared chunk by chunk with writes to the chunk held off; the same chunk
// with the preserved blocks laid over is the image at the cut, whose hashes the replica must have at its point.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine.h"
#include "fs/scrub.h"
#include "shared/base/digest.h"
#include "shared/base/log.h"

namespace tidemark::fs {
using nlohmann::json;

// A piece in which host and shared copy differ. Which of the two is wrong, the replica decides.
struct Suspect {
  Extent piece;
  Digest128 host, shared;
};

struct VerifyRun {
  std::vector<Image*> images;
  UniqueFunction<void(uint64_t, uint64_t)> progress;
  Callback<Result<std::string>> done;
  DigestKey key;
  uint64_t done_bytes = 0, total_bytes = 0;
  json result;

  bool shipping_stuck = false;          // a cut did not arrive: the next images do not wait for theirs

  // Of the image at hand.
  json image;
  std::string path_at_cut;
  uint64_t compared = 0;
  bool equal = true, behind = false;
  std::vector<Suspect> suspects;
  bool decided = false;                 // the replica was asked about the suspects
  std::vector<Digest128> frozen;        // one a kUnit, of the bytes at the cut
};

namespace {
const log::Logger kLog("verify");
constexpr uint64_t kChunk = 4u << 20;        // of the own copy
constexpr uint64_t kRemoteChunk = 1u << 20;  // read over the link
constexpr uint32_t kUnit = 64u << 10;
constexpr uint32_t kFine = 4096;
constexpr uint64_t kHoleRun = 64ull << 20;
constexpr size_t kDifferencesMax = 1000;
constexpr std::chrono::seconds kShipWait{30};
constexpr std::chrono::seconds kNameWait{10};

bool is_damage(const Status& status) { return status.code() == Code::kCorruption || status.code() == Code::kIoError; }

void differ(VerifyRun& run, const Image& im, std::string_view copy, Extent where) {
  run.equal = false;
  kLog.warning("copies_differ", {{"image", im.id}, {"copy", copy}, {"offset", where.offset}, {"length", where.length}});
  if (run.image["differences"].size() >= kDifferencesMax) return;
  run.image["differences"].push_back({{"copy", copy}, {"offset", where.offset}, {"length", where.length}});
}

void differ(VerifyRun& run, const Image& im, std::string_view what, json here, json replica) {
  run.equal = false;
  const std::string ours = here.dump(), theirs = replica.dump();
  kLog.warning("copies_differ",
               {{"image", im.id}, {"copy", "replica"}, {"what", what}, {"here", ours}, {"there", theirs}});
  run.image["differences"].push_back(
      {{"copy", "replica"}, {"what", what}, {"here", std::move(here)}, {"there", std::move(replica)}});
}

}  // namespace

std::string hex_of(const Digest128& d) {
  uint8_t b[16];
  store_le(b, d.low);
  store_le(b + 8, d.high);
  return to_hex(b);
}

net::HttpRequest digests_request(const std::string& target, Extent range, uint32_t unit, const DigestKey& key) {
  net::HttpRequest ask;
  ask.method = "POST";
  ask.target = target;
  ask.headers["content-type"] = "application/json";
  const std::string body =
      json{{"offset", range.offset}, {"length", range.length}, {"unit", unit}, {"key", to_hex(key.secret)}}.dump();
  ask.body.assign(body.begin(), body.end());
  return ask;
}

Task<Result<net::HttpResponse>> Engine::ask_replica(net::HttpRequest ask) {
  using Answer = Result<net::HttpResponse>;
  Answer answer =
      co_await async<Answer>([&](Callback<Answer> d) { verify_client_->request(std::move(ask), std::move(d)); });
  if (!answer) co_return answer.status().with_context("replica");
  co_return answer;
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
  for (Image* im : run->images) run->total_bytes += im->size_now();
  for (size_t i = 0; status.is_ok() && i < run->images.size(); ++i) {
    Image& im = *run->images[i];
    ++im.handles;  // keeps it in memory
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
    status = co_await verify_image(*run, im);
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
    --im.handles;
    if (im.handles == 0 && im.nameless) doom(im);
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
Task<Status> Engine::images_named(std::vector<std::string> names, std::vector<Image*>& out) {
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
      if (im) out.push_back(*im);
    }
  }
  for (const std::string& name : names) {
    auto attr = names_->resolve(name);
    auto im = attr ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, name + ": no such image"));
    if (!im) co_return im.status();
    out.push_back(*im);
  }
  co_return Status::ok();
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

// The replica's receipt of a cut, unless it takes longer.
Task<Result<std::string>> Engine::wait_shipped(BatchNumber batch, io::Duration limit) {
  using Shipped = Result<std::string>;
  co_return co_await async<Shipped>([&](Callback<Shipped> d) {
    auto once = std::make_shared<Callback<Shipped>>(std::move(d));  // shared by the journal and the timer, first come
    auto fire = [once](Shipped r) {
      if (*once) std::exchange(*once, nullptr)(std::move(r));
    };
    journal_->when_shipped(batch, fire);
    env_.after(limit, [fire] { fire(Status(Code::kUnavailable, "the cut did not reach the replica in time")); });
  });
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
    const uint64_t size = std::min<uint64_t>(im.size_now(), kFine);
    if (size == 0 || im.attr.mirror == 0) co_return Status::ok();
    auto there = co_await shared_digests(im, {0, size}, kFine, run.key);
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

// Chunk by chunk, each with writes to it held off.
Task<Status> Engine::verify_copies(VerifyRun& run, Image& im, uint64_t size) {
  uint64_t units = (size + kUnit - 1) / kUnit;
  Bytes zeros(kUnit);
  run.frozen.assign(units, keyed_digest(run.key, zeros));
  if (size % kUnit != 0) run.frozen.back() = keyed_digest(run.key, ByteSpan(zeros).first(size % kUnit));
  if (im.state == MirrorState::kNone) run.image["copies"]["shared"] = "absent";
  if (!im.local()) run.image["copies"]["host"] = "absent";
  for (uint64_t at = 0; at < size;) {
    if (!im.held)
      co_return Status(Code::kBusy, "the tenure of " + im.id.to_string() + " moved during the verify: run it again");
    // Long holes go in one piece: nothing to read here, if the shared node says the same of its copy.
    auto next = im.local() ? im.copy->next_data(at) : Result<Extent>(Extent{at, 1});
    bool hole = next && (next->length == 0 || next->offset >= at + kHoleRun) &&
                !journal_->must_preserve(im.slot, {at, kHoleRun});
    uint64_t chunk = im.local() && im.stale.none() ? kChunk : kRemoteChunk;
    uint64_t length = std::min(hole ? kHoleRun : chunk, size - at);
    RangeLock::Hold hold;
    hold.extent = {at, length};
    co_await lock(im, hold);
    Extent range{at, std::min(length, im.size > at ? im.size - at : 0)};  // it may have been shrunk meanwhile
    Status status;
    bool both_holes = false;
    if (hole && range.length != 0) {
      auto same = co_await shared_is_hole(im, range);
      if (same) both_holes = *same;
      else status = same.status();
      if (!both_holes) range.length = length = std::min(chunk, range.length);
    }
    if (status.is_ok() && !both_holes && range.length != 0) status = co_await verify_chunk(run, im, range);
    journal_->release_frozen({at, length});
    im.order.release(hold);
    if (!status) co_return status;
    at += length;
    run.done_bytes += length;
    run.compared += length;
    if (run.progress) run.progress(run.done_bytes, run.total_bytes);
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
Task<Status> Engine::verify_chunk(VerifyRun& run, Image& im, Extent range) {
  auto buffer = std::make_shared<io::AlignedBuffer>(range.length);  // shared with the operation, should this frame go
  bool behind = im.stale.stale(range);
  bool local = im.local() && !behind;
  bool mirrored = im.state != MirrorState::kNone;
  if (behind) run.behind = true;
  using Answer = Result<wire::Hashes>;
  if (local && mirrored) {
    wire::Hash ask{im.id, range, kUnit, run.key};
    auto theirs = co_await async<Answer>(
        [&](Callback<Answer> d) { mirror_->request<wire::Hashes>(wire::Type::kHash, ask, std::move(d)); });
    if (!theirs) co_return theirs.status();
    Status read = co_await read_copy(im, range, buffer);
    if (!read) co_return read.with_context("host copy");
    for (uint64_t i = 0; i * kUnit < range.length; ++i) {
      Extent unit{range.offset + i * kUnit, std::min<uint64_t>(kUnit, range.length - i * kUnit)};
      ByteSpan bytes = ByteSpan(buffer->span()).subspan(i * kUnit, unit.length);
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
  for (uint64_t i = 0; i * kUnit < range.length; ++i) {
    ByteSpan bytes = ByteSpan(buffer->span()).subspan(i * kUnit, std::min<uint64_t>(kUnit, range.length - i * kUnit));
    run.frozen[range.offset / kUnit + i] = keyed_digest(run.key, bytes);
  }
  co_return Status::ok();
}

// Which 4 KiB of a unit that differs between host and shared node.
Task<void> Engine::narrow_shared(VerifyRun& run, Image& im, Extent unit, ByteSpan bytes) {
  size_t before = run.suspects.size();
  using Answer = Result<wire::Hashes>;
  wire::Hash fine{im.id, unit, kFine, run.key};
  auto narrow = co_await async<Answer>(
      [&](Callback<Answer> d) { mirror_->request<wire::Hashes>(wire::Type::kHash, fine, std::move(d)); });
  for (uint64_t f = 0; narrow && f < narrow->digests.size() && f * kFine < unit.length; ++f) {
    Extent piece{unit.offset + f * kFine, std::min<uint64_t>(kFine, unit.length - f * kFine)};
    Digest128 own = keyed_digest(run.key, bytes.subspan(f * kFine, piece.length));
    if (own != narrow->digests[f]) run.suspects.push_back({piece, own, narrow->digests[f]});
  }
  if (run.suspects.size() == before) differ(run, im, "shared", unit);
}

Task<Status> Engine::verify_replica(VerifyRun& run, Image& im, uint64_t size, journal::Point point) {
  if (!verify_client_) {
    run.image["copies"]["replica"] = "absent";
    co_return Status::ok();
  }
  auto shipped = co_await wait_shipped(point.batch, run.shipping_stuck ? std::chrono::seconds(0) : kShipWait);
  run.shipping_stuck = !shipped;
  json receipt = shipped ? json::parse(*shipped, nullptr, false) : json();
  bool applied = receipt.is_object() && receipt.value("applied", true) && receipt.contains("point") &&
                 receipt["point"].is_number();
  if (!applied) {
    run.image["copies"]["replica"] = "behind";
    run.image["note"] =
        shipped ? "the replica holds the cut but waits for what must come before it" : shipped.status().to_string();
    co_return Status::ok();
  }
  uint64_t id = receipt["point"];
  run.image["point"] = id;
  Status facts = co_await verify_facts(run, im, size, std::to_string(id));
  if (!facts) co_return facts;
  std::string target = "/v1/points/" + std::to_string(id) + "/images/" + im.id.to_string() + "/hash";
  for (uint64_t at = 0; at < size; at += kHoleRun) {
    uint64_t length = std::min(kHoleRun, size - at);
    net::HttpRequest ask = digests_request(target, {at, length}, kUnit, run.key);
    auto answer = co_await ask_replica(ask);
    if (!answer) co_return answer.status();
    if (answer->status == 404) {
      run.image["copies"]["replica"] = "absent";
      differ(run, im, "replica", {0, size});
      co_return Status::ok();
    }
    json got = json::parse(as_text(answer->body), nullptr, false);
    if (answer->status != 200 || !got.is_object() || !got["digests"].is_array())
      co_return Status(Code::kUnavailable, "replica: hash request answered " + std::to_string(answer->status));
    for (uint64_t i = 0; i * kUnit < length; ++i) {
      Extent unit{at + i * kUnit, std::min<uint64_t>(kUnit, length - i * kUnit)};
      bool same = i < got["digests"].size() && got["digests"][i] == hex_of(run.frozen[unit.offset / kUnit]);
      auto suspect = [&](const Suspect& s) { return s.piece.overlaps(unit); };
      if (!same || std::any_of(run.suspects.begin(), run.suspects.end(), suspect))
        co_await narrow_replica(run, im, target, unit);
    }
  }
  run.decided = true;
  co_return Status::ok();
}

// The image's size and path at the cut, as the replica shows them.
Task<Status> Engine::verify_facts(VerifyRun& run, Image& im, uint64_t size, std::string point) {
  std::string path = run.path_at_cut;
  for (auto until = env_.now() + kNameWait;;) {
    net::HttpRequest ask;
    ask.method = "GET";
    ask.target = "/v1/points/" + point + "/images/" + im.id.to_string();
    auto answer = co_await ask_replica(ask);
    if (!answer) co_return answer.status();
    if (answer->status == 404) {
      run.image["copies"]["replica"] = "absent";
      differ(run, im, "image", path, nullptr);
      co_return Status::ok();
    }
    json got = json::parse(as_text(answer->body), nullptr, false);
    if (answer->status != 200 || !got.is_object())
      co_return Status(Code::kUnavailable, "replica: image request answered " + std::to_string(answer->status));
    if (point != "latest" && got["size"] != size) differ(run, im, "size", size, got["size"]);
    if (path.empty() || path.starts_with('?') || got["path"] == path) co_return Status::ok();
    // Another host's new name for it comes with that host's own batch, maybe after this point.
    if (env_.now() >= until) {
      differ(run, im, "path", path, got["path"]);
      co_return Status::ok();
    }
    co_await sleep(std::chrono::milliseconds(500));
    point = "latest";
    path = im.nameless ? "" : names_->path_of(im.inode);
  }
}

// Which 4 KiB of a differing unit, and of which copy: against this host's bytes of now, which is right where nobody
// wrote since, and against what the shared node had where those two differ.
Task<void> Engine::narrow_replica(VerifyRun& run, Image& im, std::string target, Extent unit) {
  size_t before = run.image["differences"].size();
  auto buffer = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  Extent within{unit.offset, std::min(unit.length, im.size > unit.offset ? im.size - unit.offset : 0)};
  Status read;
  if (im.local() && !im.stale.stale(unit)) read = co_await read_copy(im, within, buffer);
  else read = co_await read_shared(im, within, buffer);
  net::HttpRequest ask = digests_request(target, unit, kFine, run.key);
  auto answer = co_await ask_replica(ask);
  json got = answer && answer->status == 200 ? json::parse(as_text(answer->body), nullptr, false) : json();
  bool known = got.is_object() && got["digests"].is_array();
  bool resolved = false;
  for (const Suspect& s : run.suspects) {
    if (!s.piece.overlaps(unit)) continue;
    size_t f = (s.piece.offset - unit.offset) / kFine;
    json theirs = known && f < got["digests"].size() ? got["digests"][f] : json();
    if (theirs != hex_of(s.host)) differ(run, im, "host", s.piece);
    if (theirs != hex_of(s.shared)) differ(run, im, "shared", s.piece);
    resolved = true;
  }
  if (resolved) co_return;
  if (read.is_ok() && known) {
    for (uint64_t f = 0; f * kFine < within.length && f < got["digests"].size(); ++f) {
      Extent piece{unit.offset + f * kFine, std::min<uint64_t>(kFine, within.length - f * kFine)};
      if (got["digests"][f] != hex_of(keyed_digest(run.key, ByteSpan(buffer->span()).subspan(f * kFine, piece.length))))
        differ(run, im, "replica", piece);
    }
  }
  if (run.image["differences"].size() == before) differ(run, im, "replica", unit);
}

}  // namespace tidemark::fs
