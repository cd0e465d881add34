// Bricks that fail. The own copy may leave the in-sync set only where the shared one has every acknowledged write; else
// the guest gets the error, and the two are made equal before they count as level again.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::seconds kReopenInterval{30};
}  // namespace

// Nothing was acknowledged that the shared copy does not have. Nor is it being given up: until `none` is answered it
// may be gone already.
bool Engine::shared_whole(const Image& im) const {
  const bool serves = im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling;
  const bool counts = serves ? !host_only(im) : im.state == MirrorState::kReadingShared && !only_here(im);
  return counts && !im.facts.alone && im.attr.mirror != 0;
}

// True: the own copy is behind from now on, durably, and the shared one serves. False: it cannot; the own copy stays
// in use, whatever failed.
bool Engine::own_copy_failed(Image& im, const Status& why) {
  if (!im.local()) {
    im.syncs_mended = im.syncs_failed;   // all of it is written anew
    return true;
  }
  ++counts_.local_failures;
  if (!shared_whole(im)) return false;
  kLog.warning("local_copy_behind", {{"image", im.id}, {"error", why}, {"now", "served by the shared copy"}});
  if (Status s = set_flag(im, kFlagBehind, true); !s) {
    kLog.error("behind_not_kept", {{"image", im.id}, {"error", s}});
    return false;
  }
  im.broken = true;
  ++im.times_broken;
  im.behind = true;
  im.refilling = true;
  im.syncs_mended = im.syncs_failed;
  im.reopen_at = env_.now();
  if (why.code() != Code::kCorruption) im.reopen_at = im.reopen_at + kReopenInterval;   // else its brick is well
  im.facts.copy_whole = false;
  im.stale.set_all(im.size, im.attached ? journal_->region_bytes(im.slot) : limits::kRegionBytesMin);
  if (im.state == MirrorState::kMirrored) im.state = MirrorState::kFilling;
  remember(im);
  if (im.held) tell_behind(im);
  return true;
}

// An object of the copy was cut short while it was open. What it lacks is no block to be written anew: the write would
// make a hole of what lies before it. So the whole copy is filled anew.
void Engine::copy_damaged(ImageId id, const Status& why) {
  Image* im = find(id);
  const bool counts = im != nullptr && im->local() && (im->held || only_here(*im));
  if (!counts) return;   // whoever takes the tenure meets it again
  if (own_copy_failed(*im, why)) return;
  kLog.warning("local_copy_damaged", {{"image", im->id}, {"error", why}, {"effect", "what it lacks gives EIO"}});
  note_cut(id);
  // In a resync the shared copy lacks what it lost, though nothing was written alone: on record as if it were.
  if (im->state == MirrorState::kResyncing && !im->facts.alone) note_alone(*im);
}

// No other copy has what this one may lack, and once its object is long again nothing shows that. So it is on record: a
// later run does not count it, unless an operator says so. `behind` ends it: then it is filled anew.
void Engine::note_cut(const ImageId& id) {
  if (Status s = set_flag(id, kFlagCut, true); !s) kLog.error("cut_not_kept", {{"image", id}, {"error", s}});
}

bool Engine::was_cut(const ImageId& id) const { return has_flag(id, kFlagCut); }

// The shared node is told at once that this host's copy is behind everywhere, not only by the next Acquire: whatever
// becomes of this host's own note, the copy is not taken for level again.
void Engine::tell_behind(Image& im) {
  if (im.telling || !im.broken || im.attr.mirror == 0) return;
  im.telling = true;
  tasks_.spawn(say_behind(im));
}

// Once that is heard the shared copy is not given up: `none` keeps only a copy that is whole on record. If it was
// before, this one is the only copy after all; so the policy is asked for, and nobody answered until it is known.
Task<void> Engine::say_behind(Image& im) {
  Pin pin(im);
  auto wanted = [&im] { return im.held && im.broken && !im.facts.policy_none; };
  Status told, asked;
  for (;;) {
    // More than a map can have: the image has outgrown it, and whatever is named, the shared node marks all of it.
    const uint64_t regions =
        std::min<uint64_t>((im.size + im.map_region_bytes - 1) / im.map_region_bytes, limits::kRegionsPerImageMax);
    Bytes bitmap((regions + 7) / 8, 0);
    for (uint64_t r = 0; r < regions; ++r) bitmap[r / 8] |= static_cast<uint8_t>(1u << (r % 8));
    asked = told = co_await tell_level(im, im.map_cut, std::move(bitmap), true);
    if (told.code() != Code::kUnavailable) asked = co_await ask_policy(im);
    if (asked.code() != Code::kUnavailable) break;
    mirror_->note_failure();
    if (!mirror_->up() || !wanted()) break;
    co_await sleep(kRetry);   // the link stands: more is asked at once than it takes
    if (!wanted()) break;
  }
  im.telling = false;
  // Again by resume(), when the link is back; those that wait for it wait on.
  const bool later = asked.code() == Code::kUnavailable || im.state == MirrorState::kWaiting;
  if (wanted() && later) co_return;
  if (!told) kLog.warning("behind_not_told", {{"image", im.id}, {"error", told}});
  answer_untold(im);
  if (!im.held || !im.facts.policy_none) co_return;
  auto map = co_await ask_map(im, 0);   // it is not behind: `none` could not be taken back
  if (map) asked = co_await tell_level(im, map->map_cut, std::move(map->stale_regions));
  if (!map || !asked) kLog.warning("level_not_told", {{"image", im.id}, {"error", map ? asked : map.status()}});
}

void Engine::answer_untold(Image& im) {
  std::vector<Op*> untold, flushes;
  untold.swap(im.untold);
  flushes.swap(im.flushes);
  for (Op* op : untold) finish_op(op, Status::ok());
  for (Op* op : flushes) start_flush(op);
}

// The shared copy, the only one, has another loss id: what it had applied before may be gone. Of what has no answer yet
// the requests still have the bytes: it goes there once more, with all whose outcome is not known.
void Engine::apply_again(Image& im) {
  const Status gone(Code::kUnavailable, "applied under another loss id");
  for (const auto& op : ops_.all()) {   // the own part of these has not ended: they look when it has
    const bool waits = op->image == &im && op->begun && op->local_pending;
    if (waits && op->remote_asked && op->remote.is_ok()) op->remote = gone;
  }
  for (Op* op : std::exchange(im.untold, {})) {
    op->remote = gone;
    im.unknown.push_back(op);
  }
}

// Now and then a copy that failed is opened anew: should its brick serve again it is filled from nothing, like one that
// was never there.
void Engine::try_failed_copies() {
  for (auto& [id, image] : images_) {
    Image& im = *image;
    // One that hung is tried as soon as all that hung has ended.
    bool answers = im.hung && im.copy != nullptr && im.copy->idle() && !group_->stuck();
    bool due = im.broken && im.held && !im.doomed && im.state == MirrorState::kFilling &&
               (answers || env_.now() >= im.reopen_at);
    if (!due || im.reopening || im.yielding || im.recovering || im.telling || !mirror_->up()) continue;
    tasks_.spawn(reopen_copy(im));
  }
}

Task<void> Engine::reopen_copy(Image& im) {
  Pin pin(im);
  im.reopening = true;
  im.reopen_at = env_.now() + kReopenInterval;
  Status status = Status(Code::kBusy, "operations on the copy have not ended");
  if (im.copy == nullptr || im.copy->idle()) {
    im.hung = false;
    im.copy.reset();
    status = open_failed_copy(im);
  }
  Epoch epoch = im.epoch;
  using Answer = Result<wire::Grant>;
  Answer map = Status(Code::kCancelled, "not asked");
  const uint64_t session = mirror_->hello().session;
  if (status.is_ok()) {
    map = co_await ask_map(im, 1);
    status = map.status();
  }
  // A resize under way has not asked this copy and is not known to it; and nothing is to be read or written here before
  // it is known to be stale.
  RangeLock::Hold hold;
  hold.extent = {0, UINT64_MAX};
  hold.exclusive = true;
  if (status.is_ok()) co_await lock(im, hold);
  const bool linked = mirror_->up() && mirror_->hello().session == session && !im.telling;
  bool stands = im.held && im.epoch == epoch && im.state == MirrorState::kFilling && !im.yielding && im.broken;
  if (status.is_ok() && !(linked && stands)) status = Status(Code::kCancelled, "the tenure or the link changed");
  if (status.is_ok()) {
    // First: what was written beyond the end of the map that was, by the time the copy failed, is not here.
    im.map_cut = map->map_cut;
    im.map_region_bytes = map->region_bytes != 0 ? map->region_bytes : limits::kRegionBytesMin;
    im.stale.set_all(im.size, im.map_region_bytes);
    im.broken = im.hung = false;  // behind it stays, until it was filled
    im.refilling = true;          // what was written meanwhile is on the shared copy alone: staging reads it there
    status = co_await adopt_size(im, im.size, im.size_generation);
    if (!status) im.broken = true;
  }
  im.reopening = false;
  if (hold.held) im.order.release(hold);
  if (!status) {
    kLog.info("local_copy_still_failed", {{"image", im.id}, {"error", status}});
    co_return;
  }
  kLog.info("local_copy_reopened", {{"image", im.id}, {"stale_regions", im.stale.count()}});
  if (!im.fill_running) tasks_.spawn(fill(im));
}

// Whatever is left of it, or an empty one: it is behind everywhere.
Status Engine::open_failed_copy(Image& im) {
  TM_RETURN_IF_ERROR(group_->look_at_bricks());
  auto opened = group_->open_image(im.id);
  const Code code = opened.status().code();
  if (!opened && (code == Code::kNotFound || code == Code::kCorruption)) {
    if (!im.behind) return opened.status();
    Status swept = group_->remove(im.id);   // what lay on other bricks than the one that is gone
    if (!swept && swept.code() != Code::kNotFound) return swept;
    opened = group_->create(im.id, im.size, im.size_generation);
  }
  TM_RETURN_IF_ERROR(opened.status());
  im.copy = std::move(*opened);
  return Status::ok();
}

Result<std::string> Engine::replace_brick(const std::string& directory, bool accept_loss) {
  auto bricks = group_->bricks();
  auto at = std::find_if(bricks.begin(), bricks.end(), [&](const auto& b) { return b.directory == directory; });
  TM_RETURN_IF_ERROR(group_->look_at_bricks());
  std::vector<Image*> on_it;
  for (auto& [id, image] : images_) {
    if (!image->local() || at == bricks.end()) continue;
    const auto& theirs = image->copy->metadata().layout.bricks();
    if (std::find(theirs.begin(), theirs.end(), at->id) == theirs.end()) continue;
    if (!shared_whole(*image)) {
      return Status(Code::kBusy, names_->path_of(image->inode) +
                                     ": the shared copy may lack what was written here; wait until it is level, or "
                                     "bring the old brick back");
    }
    on_it.push_back(image.get());
  }
  if (at != bricks.end() && !accept_loss) TM_RETURN_IF_ERROR(give_up_missing(false));
  TM_RETURN_IF_ERROR(group_->replace_brick(directory));
  TM_RETURN_IF_ERROR(keep_bricks());
  TM_RETURN_IF_ERROR(keep_runs(group_->runs()));
  TM_RETURN_IF_ERROR(give_up_missing(true));
  const Status why(Code::kIoError, "its brick was replaced");
  for (Image* im : on_it)
    if (own_copy_failed(*im, why)) give_up_local(*im, why);
  uint64_t images = 0, bytes = 0;
  for (auto& [id, image] : images_) {
    if (!image->broken || image->doomed) continue;
    image->reopen_at = env_.now();
    ++images;
    bytes += image->size_now();
  }
  try_failed_copies();
  const nlohmann::json out = {{"brick", directory}, {"images", images}, {"bytes", bytes}};
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A request failed after one of the copies may have changed: where they differ, no resync under way need have seen it.
void Engine::copies_apart(Image& im) {
  if (!im.held || !im.local() || im.state == MirrorState::kNone) return;
  ++im.failures;
  im.apart = true;
  if (!sends_mirror(im.state) || im.state == MirrorState::kResyncing) return;  // seen by resume and resync
  im.resync_loss = im.shared_loss;
  apply(im, MirrorEvent::kLossChanged);
}

void Engine::writes_lost(Image& im, std::string_view how) {
  kLog.error("writes_lost", {{"image", im.id}, {"reason", how}, {"effect", "the next flush fails"}});
  ++counts_.lost;
  set_lost_writes(im, true);
}

// For a successor, too, as long as there are handles: it is promised to whoever has them.
void Engine::set_lost_writes(Image& im, bool lost) {
  im.lost_writes = lost;
  if (options_.survivor != nullptr) options_.survivor->keep_lost(im.id, lost && im.handles != 0);
}

}  // namespace tidemark::fs
