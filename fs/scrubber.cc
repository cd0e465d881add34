#include "fs/scrubber.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/image.h"
#include "fs/replica_client.h"
#include "fs/scrub_run.h"
#include "shared/base/log.h"

namespace tidemark::fs {
using nlohmann::json;

namespace {
const log::Logger kLog("scrub");
constexpr uint64_t kScrubHoleRun = 64ull << 20;
constexpr std::chrono::milliseconds kGuestsFirst{2};
constexpr int kGuestsFirstTimes = 10;
}  // namespace

void Scrubber::start(ScrubOptions options, UniqueFunction<void(uint64_t, uint64_t)> progress,
                     Callback<Result<std::string>> done) {
  if (state_.running) return done(Status(Code::kBusy, "a scrub is running already"));
  state_.running = true;
  state_.stop = false;
  auto run = std::make_shared<ScrubRun>();  // shared by the task and its callbacks
  run->options = std::move(options);
  run->progress = std::move(progress);
  run->done = std::move(done);
  copies_.spawn(run_scrub(run));
}

Task<void> Scrubber::run_scrub(std::shared_ptr<ScrubRun> run) {
  run->result = {{"clean", true}, {"repaired", 0}, {"undecided", 0}, {"images", json::array()}};
  copies_.env().random(run->key.secret);
  Status status = co_await copies_.images_named(run->options.images, run->images);
  state_.done = state_.total = 0;
  for (const ImageId& id : run->images)
    if (const Image* im = copies_.still_there(id)) state_.total += im->size_now();
  run->began = copies_.env().now();
  if (status.is_ok() && run->options.images.empty()) forget_undecided(run->images);
  for (size_t i = 0; status.is_ok() && i < run->images.size() && !state_.stop; ++i) {
    Image* next = copies_.still_there(run->images[i]);
    if (next == nullptr) continue;
    Image& im = *next;
    Walk walk(im);
    run->image = {{"path", copies_.names().path_of(im.inode)}, {"uuid", im.id.to_string()}, {"repaired", json::array()},
                  {"undecided", json::array()}};
    run->compared = run->skipped = run->kept = run->unsure = 0;
    run->undecided.clear();
    run->carried.clear();
    run->repairing.clear();
    run->repaired = false;
    run->reached = 0;
    const uint64_t before = state_.done, size = im.size_now();
    status = co_await scrub_image(*run, im);
    // A copy that cannot be read at all is no reason to leave the other images alone.
    if (!status && status.code() == Code::kCorruption) {
      run->image["note"] = status.message();
      run->result["clean"] = false;
      kLog.warning("copy_unreadable", {{"image", im.id}, {"error", status}});
      status = Status::ok();
    }
    state_.done = before + size;
    std::vector<Extent> left = std::move(run->repairing);   // first: of a long list the rest is not kept
    left.insert(left.end(), run->carried.begin(), run->carried.end());
    if (auto known = state_.undecided.find(im.id); known != state_.undecided.end()) {
      for (const Extent& piece : known->second)
        if (piece.offset >= run->reached) left.push_back(piece);
    }
    for (const Undecided& u : run->undecided) {
      left.push_back(u.piece);
      kLog.warning("undecided", {{"image", im.id}, {"offset", u.piece.offset}, {"length", u.piece.length},
                                 {"host", hex_of(u.host)}, {"shared", hex_of(u.shared)}, {"reason", u.why}});
      list_in(run->image["undecided"], {{"offset", u.piece.offset}, {"length", u.piece.length},
                                        {"host", hex_of(u.host)}, {"shared", hex_of(u.shared)}, {"reason", u.why}});
    }
    set_undecided(im.id, std::move(left), run->repaired);
    run->image["bytes_compared"] = run->compared;
    run->image["bytes_skipped"] = run->skipped;
    run->image["bytes_vouched"] = run->kept;
    run->result["repaired"] = run->result["repaired"].get<uint64_t>() + run->image["repaired"].size();
    run->result["undecided"] = run->result["undecided"].get<uint64_t>() + run->undecided.size();
    if (!run->undecided.empty()) run->result["clean"] = false;
    run->result["images"].push_back(std::move(run->image));
  }
  run->result["stopped"] = state_.stop;
  state_.running = false;
  ++state_.runs;
  state_.ended = copies_.env().wall();
  if (!status) co_return run->done(status);
  run->done(run->result.dump(-1, ' ', false, json::error_handler_t::replace));
}

Task<Status> Scrubber::scrub_image(ScrubRun& run, Image& im) {
  if (Status s = co_await copies_.hold_for_reading(im); !s) {
    run.image["note"] = s.message();
    run.skipped = im.size_now();
    co_return Status::ok();
  }
  for (uint64_t at = 0; at < im.size && !state_.stop;) {
    uint64_t length = std::min(kScrubBlock, im.size - at);
    RangeLock::Hold hold;
    hold.exclusive = true;
    hold.extent = {at, length};
    co_await copies_.lock(im, hold);
    ++im.active;                         // the tenure is not given back while a block is looked at
    Status status;
    if (at < im.size) {
      uint64_t hole = co_await holes_of_both(im, at);
      if (hole != 0) length = hole;
      else status = co_await scrub_block(run, im, {at, std::min(length, im.size - at)});
    }
    im.order.release(hold);
    copies_.deactivate(im);
    if (!status) co_return status.with_context(im.id.to_string() + " at offset " + std::to_string(at));
    run.reached = at += length;
    state_.done += length;
    if (run.progress) run.progress(std::min(state_.done, state_.total), state_.total);
    co_await pace(run, length);
  }
  if (run.reached >= im.size) run.reached = UINT64_MAX;   // it may have been shrunk
  if (!run.undecided.empty() && run.options.trust_replica && !state_.stop) co_await decide_by_replica(run, im);
  // What was repaired must not be lost with the power: it would only be found again.
  if (!im.held || im.state != MirrorState::kMirrored || run.repairing.empty()) co_return Status::ok();
  co_return co_await sync_repairs(run, im);
}

// Bytes from `at` on that are a hole on both copies; 0: not worth knowing.
Task<uint64_t> Scrubber::holes_of_both(Image& im, uint64_t at) {
  if (!im.held || im.state != MirrorState::kMirrored || !im.local()) co_return 0;
  auto next = im.copy->next_data(at);
  uint64_t end = std::min(im.size, at + kScrubHoleRun);
  if (!next || (next->length != 0 && next->offset < std::min(end, at + kScrubBlock))) co_return 0;
  if (next->length != 0) end = std::min(end, next->offset / kScrubBlock * kScrubBlock);
  // The hold is of one block: beyond it something may just be written, which a later scrub sees.
  auto same = co_await copies_.shared_is_hole(im, {at, end - at});
  co_return same && *same ? end - at : 0;
}

// The rate that was asked for, and guests before this.
Task<void> Scrubber::pace(ScrubRun& run, uint64_t bytes) {
  io::Env& env = copies_.env();
  run.paced += bytes;
  if (run.options.bytes_per_second != 0) {
    auto due = std::chrono::nanoseconds(
        static_cast<int64_t>(1e9 * static_cast<double>(run.paced) / static_cast<double>(run.options.bytes_per_second)));
    for (auto left = run.began + due - env.now(); left > io::Duration::zero(); left = run.began + due - env.now()) {
      if (copies_.stopping() || state_.stop) co_return;
      co_await copies_.sleep(std::min<io::Duration>(left, std::chrono::milliseconds(200)));
    }
  }
  for (int i = 0; i < kGuestsFirstTimes && copies_.in_flight() != 0 && !copies_.stopping(); ++i)
    co_await copies_.sleep(kGuestsFirst);
}

Task<Status> Scrubber::scrub_block(ScrubRun& run, Image& im, Extent range) {
  const Epoch epoch = im.epoch;
  auto level = [&] {
    return im.held && im.epoch == epoch && im.state == MirrorState::kMirrored && im.local() && !im.stale.stale(range) &&
           !im.apart && !im.facts.alone && !copies_.stopping();
  };
  auto skip = [&] {
    run.skipped += range.length;
    auto known = state_.undecided.find(im.id);
    if (known == state_.undecided.end()) return;
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
  const DigestKey key = copies_.write_journal().digest_key(im.slot);
  if (Status s = co_await read_for_scrub(im, block, key); !s) co_return s;
  if (!level()) {                        // the link went, or the tenure: what was read says nothing
    skip();
    co_return Status::ok();
  }
  block.kept = copies_.write_journal().kept_digests(im.slot, range);
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
  state_.bytes += range.length;
  if (!sure || run.image["repaired"].size() != repaired || !level()) co_return Status::ok();
  std::vector<Digest128> digests;
  for (const auto& d : block.host) {
    if (!d) co_return Status::ok();      // a read failed, and then did not
    digests.push_back(*d);
  }
  if (block.kept || copies_.write_journal().keep_digests(im.slot, range, digests)) run.kept += range.length;
  co_return Status::ok();
}

// Both copies of the block. A unit that cannot be read has no digest; an error otherwise is of the link.
Task<Status> Scrubber::read_for_scrub(Image& im, ScrubBlock& block, const DigestKey& key) {
  const uint64_t units = (block.range.length + kScrubUnit - 1) / kScrubUnit;
  block.host.assign(units, std::nullopt);
  block.shared.assign(units, std::nullopt);
  Status whole = co_await copies_.read_copy(im, block.range, block.bytes);
  for (uint64_t i = 0; i < units; ++i) {
    Extent unit = block.unit(i);
    if (!whole) {
      auto piece = std::make_shared<io::AlignedBuffer>(unit.length);  // shared with the operation
      Status read = co_await copies_.read_copy(im, unit, piece);
      if (!read) {
        ++state_.read_errors;
        kLog.warning("read_error", {{"image", im.id}, {"copy", "host"}, {"offset", unit.offset}, {"error", read}});
        continue;
      }
      std::copy_n(piece->data(), unit.length, block.own(unit).data());
    }
    block.host[i] = keyed_digest(key, block.own(unit));
  }
  auto told = co_await copies_.shared_digests(im, block.range, kScrubUnit, key);
  for (uint64_t i = 0; i < units; ++i) {
    if (told) {
      block.shared[i] = (*told)[i];
      continue;
    }
    if (told.status().code() != Code::kIoError) co_return told.status();
    auto one = co_await copies_.shared_digests(im, block.unit(i), kScrubUnit, key);
    if (one) {
      block.shared[i] = (*one)[0];
      continue;
    }
    if (one.status().code() != Code::kIoError) co_return one.status();
    ++state_.read_errors;
    kLog.warning("read_error",
                 {{"image", im.id}, {"copy", "shared"}, {"offset", block.unit(i).offset}, {"error", one.status()}});
  }
  co_return Status::ok();
}

}  // namespace tidemark::fs
