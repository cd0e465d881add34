// What the host shows of itself: status, health, metrics, marks, policies. The verdict is computed from connection,
// tenure and stale bytes together, so that it cannot say healthy while copies differ.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine.h"
#include "fs/scrubber.h"
#include "fs/verifier.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/metrics.h"
#include "shared/base/version.h"

namespace tidemark::fs {
using nlohmann::json;

namespace {
const log::Logger kLog("fs");
double seconds(int64_t ns) { return static_cast<double>(ns) / 1e9; }

// Of a resync, fill or recovery under way: bytes left, bytes a second, seconds to its end; null: none.
json level_json(const LevelRun& run, uint64_t left, uint64_t rate) {
  if (run.total == 0) return nullptr;
  json out = {{"bytes_total", run.total}, {"bytes_left", left}, {"bytes_per_s", rate}, {"waits", run.waits}};
  out["seconds_left"] = rate != 0 ? json(static_cast<double>(left) / static_cast<double>(rate)) : json();
  return out;
}

// A name that no segment takes would cost the batch its point, and those after it theirs; one that reads as an id or a
// time could be asked for by nobody.
Status check_point_name(const std::string& name) {
  auto bad = [](const std::string& why) { return Status(Code::kInvalidArgument, "a point's name " + why); };
  if (name.size() > limits::kNameBytesMax)
    return bad("has at most " + std::to_string(limits::kNameBytesMax) + " bytes, not " + std::to_string(name.size()));
  if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; }))
    return bad("has no control characters");
  const bool digits = !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
  if (digits || name == "latest" || WallTime::parse(name))
    return bad("is no number, no time and not \"latest\": these name points otherwise");
  return Status::ok();
}

std::string_view shown_state(const Image& im) {
  if (!im.missing.empty()) return "failed";
  return im.facts.policy_none ? "none" : mirror_state_name(im.state);
}
}  // namespace

// Bytes of this image whose two copies may differ, other than by writes on their way.
uint64_t Engine::stale_bytes(Image& im) {
  uint64_t stale = im.stale.stale_bytes(im.size_now());
  bool apart =
      im.state == MirrorState::kLocalOnly || im.state == MirrorState::kWaiting || im.state == MirrorState::kResyncing;
  if (im.attached && apart) stale += std::min(journal_->counters(im.slot).dirty_bytes, im.size_now());
  return std::min(stale, im.size_now());
}

// Whether this host may hold acknowledged writes that the shared copy lacks: from the note of it (which may just be on
// its way) until the resync or the recovery that undoes it.
bool Engine::writes_alone(const Image& im) const {
  if (im.facts.alone || im.noting_alone) return true;
  if (!im.recovering) return false;
  const auto& dirty = journal_->dirty_after_crash();
  return std::any_of(dirty.begin(), dirty.end(), [&](const auto& d) { return d.image == im.id && d.alone; });
}

// A tenure that this run does not hold is not its own, whatever the shared node said when it was last asked: it was an
// earlier run's, and another host's since, perhaps.
std::string Engine::writer_of(const wire::Attr& attr) const {
  return attr.holder == options_.config.node.name ? "" : attr.holder;
}

bool Engine::healthy(std::vector<std::string>* reasons) {
  std::vector<std::string> why;
  if (!mirror_->up()) why.push_back("shared node unreachable: " + mirror_->last_error().message());
  for (const auto& brick : group_->bricks())
    if (!brick.status) why.push_back(brick.status.message() + " (a new one: tidemark brick replace)");
  if (group_->stuck()) why.push_back("a brick of group " + group_->name() + " hangs");
  if (!store_->failure())
    why.push_back("state_dir/names takes nothing: " + store_->failure().message() +
                  " (make room or mend the disk; do not restart the host before)");
  if (group_->lost()) why.push_back("storage group " + group_->name() + " could not record a failed sync");
  if (std::string why_none = without_vote(); !why_none.empty()) why.push_back(std::move(why_none));
  if (recovering_ != 0) why.push_back(std::to_string(recovering_) + " images wait for reconciliation after a crash");
  for (auto& [id, image] : images_) {
    Image& im = *image;
    std::string name = names_->path_of(im.inode);
    if (im.doomed) continue;
    if (im.held && stale_bytes(im) != 0)
      why.push_back(name + ": " + std::string(mirror_state_name(im.state)) + ", " + std::to_string(stale_bytes(im)) +
                    " bytes stale");
    else if (im.state == MirrorState::kFenced || im.state == MirrorState::kWaiting ||
             im.state == MirrorState::kLocalOnly)
      why.push_back(name + ": " + std::string(mirror_state_name(im.state)));
    if (!im.fence_error.empty())
      why.push_back(name + ": what only this host has is not put aside yet: " + im.fence_error);
    if (!im.missing.empty()) why.push_back(name + ": failed: " + im.missing);
    else if (im.broken) why.push_back(name + ": the local copy failed");
    if (!im.shared_fault.empty()) why.push_back("the shared copy is damaged: " + im.shared_fault);
  }
  for (const auto& [id, pieces] : scrubber_->state().undecided) {
    auto attr = names_->by_image(id);
    why.push_back((attr ? names_->path_of(attr->inode) : id.to_string()) + ": the copies differ in " +
                  std::to_string(pieces.size()) +
                  " blocks, and nothing tells which is right: tidemark scrub names them");
  }
  journal::Usage usage = journal_->usage();
  for (std::string& reason : journal::usage_reasons(usage)) why.push_back(std::move(reason));
  for (const journal::Withheld& w : usage.withheld) {
    const Image* im = find(w.image);
    if (im == nullptr || im->doomed || !im->held || !im->recall_wanted) continue;
    why.push_back(names_->path_of(im->inode) + ": " + (im->recall_by.empty() ? "another host" : im->recall_by) +
                  " wants to write it and gets EBUSY: it stays here while the replica lacks what this host cannot "
                  "read of it (" + w.why + "). Mend the disk, or write those blocks anew here; tidemark image takeover "
                  "IMAGE --force moves it all the same");
  }
  bool ok = why.empty();
  if (reasons != nullptr) *reasons = std::move(why);
  return ok;
}

// What an operator should know and is no fault: two lines of one image are possible, or stand.
std::vector<std::string> Engine::notes() {
  std::vector<std::string> out;
  if (witness_ && options_.config.may_go_alone) {
    out.push_back("[autonomy] policy = \"continue\": this host goes on alone without asking the witness, so that no "
                  "image moves from it by itself");
  }
  for (auto& [id, image] : images_) {
    const Image& im = *image;
    const std::string name = names_->path_of(im.inode);
    if (im.held && im.state == MirrorState::kLocalOnly && !im.facts.policy_none)
      out.push_back(name +
                    ": this host goes on alone: if another takes it by force, what is written here becomes a branch");
    if (im.held && im.state == MirrorState::kWaiting)
      out.push_back(name + ": requests wait for the shared node" +
                    (im.facts.asks_first && witness_ ? " or the witness" : "") +
                    "; tidemark image abort ends the waiting with EIO" +
                    (im.witness_error.empty() ? "" : " (" + im.witness_error + ")"));
    if (im.held && !im.taken_from.empty())
      out.push_back(name + ": taken by force from " + im.taken_from +
                    ", which may be writing on alone (or given away by it before it could ship all of it): what only "
                    "that host has, or ships of it later, becomes a branch");
    if (im.state == MirrorState::kFenced)
      out.push_back(name + ": taken by another host; what only this one has is put aside");
  }
  for (const Branch& b : branches()) {
    auto attr = names_->by_image(b.image);
    out.push_back((attr ? names_->path_of(attr->inode) : b.image.to_string()) + ": a branch of epoch " +
                  std::to_string(b.epoch.value) + " is kept: " + b.file +
                  (b.unreadable_bytes == 0 ? ""
                                           : ", without " + std::to_string(b.unreadable_bytes) +
                                                 " bytes that could not be read: FILE.extents names them"));
  }
  return out;
}

std::string Engine::status_json() {
  std::vector<std::string> reasons;
  bool ok = healthy(&reasons);
  journal::Usage usage = journal_->usage();
  const config::Host& config = options_.config;
  json out = {{"node", config.node.name},
              {"role", "host"},
              {"version", version()},
              {"healthy", ok},
              {"reasons", reasons},
              {"mount", config.mount.path},
              {"incarnation", journal_->incarnation().value}};
  out["shared"] = {{"connected", mirror_->up()}, {"address", config.shared->address}, {"node", mirror_->hello().node},
                   {"connections", mirror_->connections()}, {"rtt_us", mirror_->round_trip().count() / 1000},
                   {"loss_id", std::to_string(mirror_->hello().loss_id.value)}};
  if (!mirror_->up()) out["shared"]["error"] = mirror_->last_error().message();
  out["replica"] = {{"url", config.replica ? config.replica->url : ""},
                    {"connected", config.replica && usage.ship_error.empty()},
                    {"error", usage.ship_error}};
  out["storage"] = {{"group", group_->name()}, {"bricks", json::array()}};
  for (const auto& brick : group_->bricks()) {
    out["storage"]["bricks"].push_back(
        {{"directory", brick.directory}, {"present", brick.status.is_ok()}, {"why", brick.status.message()}});
  }
  out["repaired"] = {{"own", counts_.repaired_own}, {"shared", counts_.repaired_shared}};
  out["journal"] = json::parse(journal::usage_json(usage));
  out["missing_kernel_features"] = missing_features_;
  out["branches"] = json::array();
  for (const Branch& b : branches()) {
    auto attr = names_->by_image(b.image);
    out["branches"].push_back({{"uuid", b.image.to_string()}, {"path", attr ? names_->path_of(attr->inode) : ""},
                               {"epoch", b.epoch.value}, {"bytes", b.bytes}, {"file", b.file},
                               {"unreadable_bytes", b.unreadable_bytes}});
  }
  out["notes"] = notes();
  const ScrubState& scrub = scrubber_->state();
  out["scrub"] = {{"running", scrub.running},
                  {"stopped", scrub.stop},
                  {"done_bytes", scrub.done},
                  {"total_bytes", scrub.total},
                  {"runs", scrub.runs},
                  {"ended", scrub.ended.ns == 0 ? json() : json(scrub.ended.to_string())},
                  {"repaired_host_bytes", scrub.repaired_host},
                  {"repaired_shared_bytes", scrub.repaired_shared},
                  {"read_errors", scrub.read_errors},
                  {"undecided_bytes", scrub.undecided_bytes()}};
  out["images"] = json::array();
  for (auto& [id, image] : images_) {
    Image& im = *image;
    if (im.doomed) continue;
    wire::Attr attr = local_view(im.attr);
    journal::ImageCounters counters = im.attached ? journal_->counters(im.slot) : journal::ImageCounters{};
    out["images"].push_back({{"path", names_->path_of(im.inode)},
                             {"uuid", im.id.to_string()},
                             {"size", im.size_now()},
                             {"allocated", attr.allocated},
                             {"epoch", im.epoch.value != 0 ? im.epoch.value : attr.epoch.value},
                             {"writer", im.held ? config.node.name : writer_of(attr)},
                             {"mirror", shown_state(im)},
                             {"alone", writes_alone(im)},
                             {"stale_bytes", stale_bytes(im)},
                             {"resync", level_json(im.run, im.run.left(), im.run.rate(env_.now()))},
                             {"dirty_bytes", counters.dirty_bytes},
                             {"unshipped_bytes", counters.unshipped_bytes},
                             {"rpo_s", counters.unshipped_bytes != 0 ? seconds(usage.rpo_ns) : 0.0},
                             {"recovering", im.recovering},
                             {"taken_from", im.taken_from},
                             {"open_handles", im.handles}});
  }
  // Those that this host did not open since it started: what the shared node last said of them.
  for (const wire::Attr& attr : names_->images()) {
    if (find(attr.image) != nullptr) continue;
    out["images"].push_back(
        {{"path", names_->path_of(attr.inode)},
         {"uuid", attr.image.to_string()},
         {"size", attr.size},
         {"allocated", attr.allocated},
         {"epoch", attr.epoch.value},
         {"writer", writer_of(attr)},
         {"mirror", attr.mirror == 0 ? "none" : std::string(mirror_state_name(MirrorState::kReadingShared))},
         {"alone", false},
         {"stale_bytes", 0},
         {"resync", nullptr},
         {"dirty_bytes", 0},
         {"unshipped_bytes", 0},
         {"rpo_s", 0.0},
         {"recovering", false},
         {"open_handles", 0}});
  }
  std::sort(out["images"].begin(), out["images"].end(),
            [](const json& a, const json& b) { return a["path"] < b["path"]; });
  return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

void Engine::register_metrics(metrics::Registry& registry) {
  auto gauge = [&](const char* name, const char* help, std::function<double()> value) {
    registry.on_collect([g = registry.gauge(name, help), value = std::move(value)]() mutable { g.set(value()); });
  };
  auto counter = [&](const char* name, const char* help, const uint64_t* source) {
    registry.on_collect([c = registry.counter(name, help), source]() mutable {
      c.add(static_cast<double>(*source) - c.value());
    });
  };
  counter("fs_reads_total", "Guest reads answered", &counts_.reads);
  counter("fs_writes_total", "Guest writes, zeros, discards and resizes answered", &counts_.writes);
  counter("fs_flushes_total", "Flushes begun", &counts_.flushes);
  counter("fs_read_bytes_total", "Bytes read by guests", &counts_.read_bytes);
  counter("fs_write_bytes_total", "Bytes written by guests", &counts_.write_bytes);
  counter("fs_errors_total", "Guest requests answered with an error", &counts_.errors);
  counter("fs_link_losses_total", "Times the link to the shared node was lost", &counts_.link_losses);
  counter("fs_resynced_bytes_total", "Bytes copied because copies differed", &counts_.resynced_bytes);
  counter("fs_filled_bytes_total", "Bytes copied from the shared node to bring this host's copy level",
          &counts_.filled_bytes);
  counter("fs_alone_total", "Times an image went on without the shared copy", &counts_.alone);
  counter("fs_local_failures_total", "Failed operations on this host's copy", &counts_.local_failures);
  counter("fs_hung_operations_total", "Requests that went on without a brick that hangs", &counts_.hung);
  counter("fs_own_blocks_repaired_total", "Read errors of this host's copy mended from the shared one",
          &counts_.repaired_own);
  counter("fs_shared_blocks_repaired_total", "Pieces that the shared copy could not read, mended from this host's",
          &counts_.repaired_shared);
  counter("fs_writes_lost_total", "Times the only copy that had acknowledged writes lost them", &counts_.lost);
  counter("fs_verify_differences_total", "Differences that verify found", &verifier_->differences());
  const ScrubState& scrub = scrubber_->state();
  counter("fs_scrub_runs_total", "Scrubs that ended", &scrub.runs);
  counter("fs_scrub_bytes_total", "Bytes of each copy that scrubs compared", &scrub.bytes);
  counter("fs_scrub_repaired_host_bytes_total", "Bytes of this host's copy that a scrub repaired",
          &scrub.repaired_host);
  counter("fs_scrub_repaired_shared_bytes_total", "Bytes of the shared copy that a scrub repaired",
          &scrub.repaired_shared);
  counter("fs_scrub_read_errors_total", "Units that a copy could not read", &scrub.read_errors);
  gauge("fs_scrub_undecided_bytes", "Bytes whose copies differ without a word which is right",
        [this] { return static_cast<double>(scrubber_->state().undecided_bytes()); });
  gauge("fs_link_up", "1 while the shared node is connected", [this] { return mirror_->up() ? 1.0 : 0.0; });
  gauge("fs_healthy", "1 while no reason speaks against it", [this] { return healthy() ? 1.0 : 0.0; });
  gauge("fs_round_trip_seconds", "To the shared node, smoothed",
        [this] { return seconds(mirror_->round_trip().count()); });
  gauge("fs_stale_bytes", "Bytes whose copies may differ, over all images", [this] {
    uint64_t sum = 0;
    for (auto& [id, image] : images_) sum += stale_bytes(*image);
    return static_cast<double>(sum);
  });
  gauge("fs_resync_left_bytes", "Still to be compared or copied by what makes copies level", [this] {
    uint64_t sum = 0;
    for (auto& [id, image] : images_) sum += image->run.left();
    return static_cast<double>(sum);
  });
  gauge("fs_tenures_held", "Images this host may write", [this] {
    return static_cast<double>(
        std::count_if(images_.begin(), images_.end(), [](const auto& i) { return i.second->held; }));
  });
  gauge("fs_requests_in_flight", "Guest requests not yet answered",
        [this] { return static_cast<double>(in_flight()); });
  gauge("journal_spool_bytes", "Staged and not yet durable at the replica",
        [this] { return static_cast<double>(journal_->usage().spool_bytes); });
  gauge("journal_rpo_seconds", "Age of the oldest change that no point durable at the replica has",
        [this] { return seconds(journal_->usage().rpo_ns); });
  gauge("journal_preserved_bytes", "Old blocks kept for closed batches",
        [this] { return static_cast<double>(journal_->usage().preserved_bytes); });
  gauge("journal_limit_bytes", "Of the spool, as it is now",
        [this] { return static_cast<double>(journal_->usage().limit_bytes); });
  gauge("journal_full_in_seconds", "Predicted until the limit; -1: not as things go", [this] {
    int64_t ns = journal_->usage().full_in_ns;
    return ns < 0 ? -1.0 : seconds(ns);
  });
  gauge("journal_degraded", "1 while regions alone are remembered for the replica",
        [this] { return journal_->usage().shipping == journal::Shipping::kDegraded ? 1.0 : 0.0; });
  gauge("journal_resync_left_bytes", "What the replica lacks, and what of it is on its way",
        [this] { return static_cast<double>(journal_->usage().resync_left_bytes); });
  gauge("journal_points_given_up", "Recovery points given up at the limit since the start",
        [this] { return static_cast<double>(journal_->usage().points_given_up); });
  gauge("journal_images_withheld", "Images that cannot be read, so that the replica keeps an older state of them",
        [this] { return static_cast<double>(journal_->usage().withheld.size()); });
  gauge("journal_disk_failed", "1 while the journal's own disk takes nothing",
        [this] { return journal_->usage().disk_failure.empty() ? 0.0 : 1.0; });
}

// ---- control ------------------------------------------------------------------------------------

void Engine::mark(std::string name, bool wait, std::chrono::seconds timeout, Callback<Result<std::string>> done) {
  if (Status s = check_point_name(name); !s) return done(s);
  journal::Point point = journal_->cut(journal::Journal::CutReason::kNamed, name);
  if (!point.refused) return done(point.refused);
  if (!name.empty() && point.name != name) {
    return done(Status(Code::kBusy, "no point " + name + " was made: this host recovers, and its first point will be " +
                                        point.name + "; try again then"));
  }
  json out = {
      {"batch", point.batch.value}, {"label", point.label.to_string()}, {"name", point.name}, {"durable", false}};
  if (!wait) return done(out.dump(-1, ' ', false, json::error_handler_t::replace));
  auto once = std::make_shared<Callback<Result<std::string>>>(std::move(done));  // shared by the journal and the timer
  auto fire = [once](Result<std::string> r) {
    if (*once) std::exchange(*once, nullptr)(std::move(r));
  };
  journal_->when_shipped(point.batch, [out, fire](Result<std::string> receipt) mutable {
    if (!receipt) return fire(receipt.status());
    json got = json::parse(*receipt, nullptr, false);
    out["durable"] = true;
    if (got.is_object() && got.contains("point")) out["point"] = got["point"];
    if (got.is_object() && got.contains("applied")) out["applied"] = got["applied"];
    fire(out.dump(-1, ' ', false, json::error_handler_t::replace));
  });
  env_.after(timeout, [fire, batch = point.batch] {
    fire(Status(Code::kUnavailable, "batch " + std::to_string(batch.value) + " is not durable at the replica yet"));
  });
}

std::string Engine::set_shipping_paused(bool paused) {
  journal_->pause_shipping(paused);
  kLog.info("shipping", {{"paused", paused ? 1 : 0}});
  return json{{"paused", journal_->usage().shipping_paused}}.dump();
}

std::string Engine::journal_json() {
  journal::Usage usage = journal_->usage();
  return json{{"incarnation", journal_->incarnation().value}, {"generation", journal_->generation().to_string()},
              {"newest_closed", usage.newest_closed.value}, {"newest_durable", usage.newest_durable.value},
              {"closed_batches", usage.closed_batches}, {"spool_batches", usage.spool_batches},
              {"spool_bytes", usage.spool_bytes}, {"records_unstaged", usage.records_unstaged},
              {"journal_bytes", usage.journal_bytes}, {"last_finished", journal_->last_finished().value}}.dump();
}

void Engine::resync_replica(Callback<Result<std::string>> done) { tasks_.spawn(do_resync_replica(std::move(done))); }

// Each image is sent by the host that has its newest tenure, or, where nobody holds it, wrote it last
// (engine_unheld.cc); and by each that has something of it to ship yet, since what the next tenure's holder ships rests
// on that. A host that is gone leaves its images to whoever takes their tenures next. The shared node says which these
// are, so it must be there.
Task<void> Engine::do_resync_replica(Callback<Result<std::string>> done) {
  if (!options_.config.replica) co_return done(Status(Code::kInvalidArgument, "no [replica] is configured"));
  if (!co_await wait_link(std::chrono::seconds(5))) {
    co_return done(Status(Code::kUnavailable, "the shared node must be there: it knows who wrote an image last"));
  }
  wire::Dump ask{InodeNumber(0), 512};
  std::vector<wire::Attr> images;
  for (bool end = false; !end;) {
    using Answer = Result<wire::DirEntries>;
    auto page = co_await async<Answer>(
        [&](Callback<Answer> d) { mirror_->request<wire::DirEntries>(wire::Type::kDump, ask, std::move(d)); });
    if (!page) co_return done(page.status());
    for (wire::DirEntry& e : page->entries) {
      ask.after = e.attr.inode;
      if (!e.attr.image.is_nil()) images.push_back(e.attr);
    }
    end = page->end != 0 || page->entries.empty();
  }
  auto unheld = co_await unheld_to_send(images);
  if (!unheld) co_return done(unheld.status());
  // From here on in one turn: the marks that bind the images to this stream go with the resync.
  const bool empty = journal_->usage().replica_empty;
  std::vector<journal::ImageExtent> all;
  uint64_t count = 0, bytes = 0;
  for (const wire::Attr& attr : images) {
    const Epoch own = journal_->tenure_epoch(attr.image);
    if (own.value == 0) continue;
    auto im = image_of(attr);
    if (!im || (*im)->doomed) continue;
    // Whoever has it by now: what this host has yet to ship of it is bound to its stream.
    journal_->mark(mark_of(**im, wire::MarkKind::kOpenWrite));
    const bool elsewhere = attr.epoch > own && !unheld->contains(attr.image);
    if (elsewhere && !journal_->unshipped(attr.image)) continue;
    ++count;
    // Holes too, where another host may send what it had there.
    const bool data_only = empty && !elsewhere && !journal_->followed(attr.image);
    std::vector<Extent> regions = allocated_regions(**im, data_only);
    if (regions.empty()) regions.push_back({});   // its size is told all the same
    for (const Extent& extent : regions) {
      bytes += extent.length;
      all.push_back({attr.image, extent});
    }
  }
  Status durable = co_await async<Status>(
      [&](Callback<Status> d) { journal_->resync_replica(std::move(all), std::move(d)); });
  if (!durable) co_return done(durable.with_context("the journal"));
  kLog.warning("replica_resync_asked", {{"images", count}, {"bytes", bytes}});
  done(json{{"images", count}, {"bytes", bytes}}.dump());
}

// What a replica that has nothing needs of an image; one that has something needs all of it, holes too.
std::vector<Extent> Engine::allocated_regions(Image& im, bool data_only) {
  constexpr uint64_t kStep = limits::kRegionBytesMin;
  const uint64_t size = im.size_now();
  if (size == 0) return {};
  const bool filled = im.local() && !im.behind && im.stale.none() && !has_flag(im.id, kFlagPartial);
  if (!data_only || !filled) return {{0, size}};
  std::vector<Extent> out;
  for (uint64_t at = 0; at < std::min(size, im.copy->size());) {
    auto data = im.copy->next_data(at);
    if (!data) return {{0, size}};
    if (data->length == 0) break;
    const uint64_t begin = data->offset / kStep * kStep, end = (data->end() + kStep - 1) / kStep * kStep;
    if (!out.empty() && begin <= out.back().end()) out.back().length = end - out.back().offset;
    else out.push_back({begin, end - begin});
    at = end;
  }
  return out;
}

void Engine::set_policy(std::string image, std::string mirror, Callback<Result<std::string>> done) {
  auto attr = names_->resolve(image);
  if (!attr) return done(Status(Code::kNotFound, image + ": no such image"));
  if (mirror != "none" && mirror != "sync") return done(Status(Code::kInvalidArgument, "mirror is `none` or `sync`"));
  wire::SetXattr request;
  request.inode = attr->inode;
  request.name = "user.tidemark.mirror";
  request.value.assign(mirror.begin(), mirror.end());
  set_xattr(std::move(request), [this, inode = attr->inode, mirror, done = std::move(done)](Status s) mutable {
    if (!s) return done(s);
    auto now = names_->get(inode);
    const std::string uuid = now ? now->image.to_string() : "";
    const json out = {{"path", names_->path_of(inode)}, {"uuid", uuid}, {"mirror", mirror}};
    done(out.dump(-1, ' ', false, json::error_handler_t::replace));
  });
}

}  // namespace tidemark::fs
