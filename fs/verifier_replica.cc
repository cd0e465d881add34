// verify, the replica's part: what it shows at the point that is the cut, against what stood there on this side.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine_types.h"
#include "fs/replica_client.h"
#include "fs/verifier.h"
#include "fs/verify_run.h"
#include "shared/base/log.h"

namespace tidemark::fs {
using nlohmann::json;

namespace {
const log::Logger kLog("verify");
constexpr std::chrono::seconds kNameWait{10};

void differ(VerifyRun& run, const Image& im, std::string_view what, json here, json replica) {
  run.equal = false;
  const std::string ours = here.dump(), theirs = replica.dump();
  kLog.warning("copies_differ",
               {{"image", im.id}, {"copy", "replica"}, {"what", what}, {"here", ours}, {"there", theirs}});
  run.image["differences"].push_back(
      {{"copy", "replica"}, {"what", what}, {"here", std::move(here)}, {"there", std::move(replica)}});
}

}  // namespace

// What was not compared is not equal, though nothing differs.
Task<Status> Verifier::verify_replica(VerifyRun& run, Image& im, uint64_t size,
                                      std::shared_ptr<const Receipt> receipt) {
  if (copies_.replica() == nullptr) {
    run.image["copies"]["replica"] = "absent";
    co_return Status::ok();
  }
  if (run.withheld) {
    run.equal = false;
    run.image["copies"]["replica"] = "behind";
    run.image["note"] = "this host could not read it when it was to be shipped: the replica keeps an older state of it";
    co_return Status::ok();
  }
  if (!run.no_cut.empty()) {
    run.equal = false;
    run.image["copies"]["replica"] = "behind";
    run.image["note"] = run.no_cut;
    co_return Status::ok();
  }
  const io::BootTime begun = copies_.env().now();
  const io::Duration limit = run.shipping_stuck ? std::chrono::seconds(0) : kShipWait;
  auto shipped = co_await copies_.replica()->wait_shipped(receipt, limit);
  Result<uint64_t> point(uint64_t{0});
  const io::BootTime until = run.held ? begun : begun + limit;
  if (shipped) point = co_await copies_.replica()->wait_applied(receipt->batch, *shipped, until);
  else point = shipped.status();
  run.shipping_stuck = !shipped;
  run.held = shipped && !point;
  if (!point) {
    run.equal = false;
    run.image["copies"]["replica"] = "behind";
    run.image["note"] = point.status().to_string();
    co_return Status::ok();
  }
  const uint64_t id = *point;
  run.image["point"] = id;
  Status facts = co_await verify_facts(run, im, size, std::to_string(id));
  if (!facts) co_return facts;
  const std::string target = "/v1/points/" + std::to_string(id) + "/images/" + im.id.to_string();
  Status compared = co_await verify_data(run, im, size, target);
  run.decided = compared.is_ok() && run.image["copies"]["replica"] != "absent";
  co_return compared;
}

// Bytes from `at` on of which the replica has nothing at that point, by the index that its hashes are made by, too.
Task<uint64_t> Verifier::replica_hole(std::string target, uint64_t at, uint64_t size) {
  net::HttpRequest ask;
  ask.method = "GET";
  ask.target = target + "/extents?count=1&offset=" + std::to_string(at);
  auto answer = co_await copies_.replica()->ask(ask);
  json got = answer && answer->status == 200 ? json::parse(as_text(answer->body), nullptr, false) : json();
  auto number = [&](const json& v) { return v.is_number_unsigned() ? v.get<uint64_t>() : at; };
  if (!got.is_object() || !got.contains("next") || !got["extents"].is_array()) co_return 0;
  const json& extents = got["extents"];
  const uint64_t end = extents.empty()                                  ? number(got["next"])
                       : extents[0].is_array() && !extents[0].empty() ? number(extents[0][0])
                                                                       : at;
  co_return std::clamp(end, at, size) - at;
}

// Window by window against the replica's. What is a hole everywhere is passed over.
Task<Status> Verifier::verify_data(VerifyRun& run, Image& im, uint64_t size, std::string target) {
  const std::string hashes = target + "/hash";
  uint64_t hole_end = 0;
  for (uint64_t at = 0; at < size; at += kVerifyWindow) {
    const uint64_t length = std::min(kVerifyWindow, size - at);
    if (!run.frozen.contains(at / kVerifyWindow)) {
      if (hole_end < at + length) hole_end = at + co_await replica_hole(target, at, size);
      if (hole_end >= at + length) {
        advance(run, length);
        continue;
      }
    }
    net::HttpRequest ask = digests_request(hashes, {at, length}, kVerifyUnit, run.key);
    auto answer = co_await copies_.replica()->ask(ask);
    if (!answer) co_return answer.status();
    if (answer->status == 404) {
      run.image["copies"]["replica"] = "absent";
      differ(run, im, "replica", {0, size});
      co_return Status::ok();
    }
    json got = json::parse(as_text(answer->body), nullptr, false);
    if (answer->status != 200 || !got.is_object() || !got["digests"].is_array())
      co_return Status(Code::kUnavailable, "replica: hash request answered " + std::to_string(answer->status));
    const std::vector<Digest128>& frozen = digests_around(run, at, size);
    for (uint64_t i = 0; i * kVerifyUnit < length; ++i) {
      Extent unit{at + i * kVerifyUnit, std::min<uint64_t>(kVerifyUnit, length - i * kVerifyUnit)};
      bool same = i < got["digests"].size() && got["digests"][i] == hex_of(frozen[i]);
      auto suspect = [&](const Suspect& s) { return s.piece.overlaps(unit); };
      if (!same || std::any_of(run.suspects.begin(), run.suspects.end(), suspect))
        co_await narrow_replica(run, im, hashes, unit);
    }
    advance(run, length);
  }
  co_return Status::ok();
}

// The image's size and path at the cut, as the replica shows them.
Task<Status> Verifier::verify_facts(VerifyRun& run, Image& im, uint64_t size, std::string point) {
  std::string path = as_shown(run.path_at_cut);
  for (auto until = copies_.env().now() + kNameWait;;) {
    net::HttpRequest ask;
    ask.method = "GET";
    ask.target = "/v1/points/" + point + "/images/" + im.id.to_string();
    auto answer = co_await copies_.replica()->ask(ask);
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
    if (copies_.env().now() >= until) {
      differ(run, im, "path", path, got["path"]);
      co_return Status::ok();
    }
    co_await copies_.sleep(std::chrono::milliseconds(500));
    point = "latest";
    path = im.nameless ? "" : as_shown(copies_.names().path_of(im.inode));
  }
}

// Which 4 KiB of a differing unit, and of which copy: against this host's bytes of now, which is right where nobody
// wrote since, and against what the shared node had where those two differ.
Task<void> Verifier::narrow_replica(VerifyRun& run, Image& im, std::string target, Extent unit) {
  size_t before = run.image["differences"].size();
  auto buffer = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
  Extent within{unit.offset, std::min(unit.length, im.size > unit.offset ? im.size - unit.offset : 0)};
  Status read;
  if (im.local() && !im.stale.stale(unit)) read = co_await copies_.read_copy(im, within, buffer);
  else read = co_await copies_.read_shared(im, within, buffer);
  net::HttpRequest ask = digests_request(target, unit, kVerifyFine, run.key);
  auto answer = co_await copies_.replica()->ask(ask);
  json got = answer && answer->status == 200 ? json::parse(as_text(answer->body), nullptr, false) : json();
  bool known = got.is_object() && got["digests"].is_array();
  bool resolved = false;
  for (const Suspect& s : run.suspects) {
    if (!s.piece.overlaps(unit)) continue;
    size_t f = (s.piece.offset - unit.offset) / kVerifyFine;
    json theirs = known && f < got["digests"].size() ? got["digests"][f] : json();
    if (theirs != hex_of(s.host)) differ(run, im, "host", s.piece);
    if (theirs != hex_of(s.shared)) differ(run, im, "shared", s.piece);
    resolved = true;
  }
  if (resolved) co_return;
  if (read.is_ok() && known) {
    for (uint64_t f = 0; f * kVerifyFine < within.length && f < got["digests"].size(); ++f) {
      Extent piece{unit.offset + f * kVerifyFine, std::min<uint64_t>(kVerifyFine, within.length - f * kVerifyFine)};
      const ByteSpan bytes = ByteSpan(buffer->span()).subspan(f * kVerifyFine, piece.length);
      if (got["digests"][f] != hex_of(keyed_digest(run.key, bytes)))
        differ(run, im, "replica", piece);
    }
  }
  if (run.image["differences"].size() == before) differ(run, im, "replica", unit);
}

}  // namespace tidemark::fs
