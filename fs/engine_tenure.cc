// Tenures: asked for at the first write (or, if free, at the first read), kept until another host asks.
#include "fs/engine.h"

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

// `wait`: a write needs it. Else only if it is free, so that reads become local.
void Engine::want_tenure(Image& im, bool wait) {
  if (im.held || im.acquiring || im.recovering || stopping_) return;  // a recovery acquires for itself
  if (!im.missing.empty()) return;
  if (im.state == MirrorState::kFenced) return;   // its tail is being kept: what follows would undo a new tenure
  if (giving_back_.contains(im.id)) return;
  if (!wait) {
    const bool not_free = im.attr.mirror == 0 && im.attr.holder != options_.config.node.name;
    if (!mirror_->up() || im.recovering || im.yielding || not_free || env_.now() < im.try_again) return;
    im.try_again = env_.now() + kOpportunityInterval;
  }
  im.acquiring = true;
  const bool waits = wait && !im.inherited_writer;   // of that one first whether it was taken: reads wait for it
  tasks_.spawn(acquire(im, waits ? static_cast<uint32_t>(limits::kTenureWaitSecondsMax) * 1000 : 0));
}

// Held according to the shared node, but not here: granted to an earlier run, or to a request whose answer got lost.
// Taken anew, if it is still so: another host is told to wait for this one, and must not do so for nothing.
void Engine::take_up_tenures() {
  for (auto& [id, image] : images_) {
    const bool lost = !image->held && !image->doomed && image->attr.holder == options_.config.node.name;
    if (lost) want_tenure(*image, false);
  }
}

// Of an unfilled or failed copy the shared node's map may say too little: it starts anew, all stale. Not of one of
// `mirror = none`, where nothing is ever filled: there that map says whether this host is the one that has it.
uint8_t Engine::copy_absent(const Image& im) const {
  return im.attr.mirror != 0 && (im.copy == nullptr || im.broken || im.behind) ? 1 : 0;
}

// So that one of `mirror = none` that lacks its copy later on is never taken for one that nobody wrote.
Status Engine::make_only_copy(Image& im) {
  if (im.attr.mirror != 0 || im.attr.epoch.value != 0 || find_missing(im)) return Status::ok();
  auto made = group_->create(im.id, im.attr.size, im.attr.size_generation);
  if (!made) return made.status();
  im.copy = std::move(*made);
  im.broken = false;
  return Status::ok();
}

Task<void> Engine::acquire(Image& im, uint32_t wait_ms) {
  using Answer = Result<wire::Grant>;
  Status failed;
  auto wanted = [&] {
    return (wait_ms != 0 || !im.parked.empty() || im.recall_wanted || im.inherited_writer) && !stopping_;
  };
  for (;;) {
    if (failed = make_only_copy(im); !failed) {
      im.inherited_writer = false;
      break;
    }
    while (!mirror_->up() && wanted()) co_await wait_link(std::chrono::seconds(1));
    const uint64_t session = mirror_->hello().session;
    wire::Acquire ask{im.id, wait_ms, copy_absent(im)};
    auto grant = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Grant>(wire::Type::kAcquire, ask, std::move(done));
    });
    failed = Status::ok();
    if (grant) failed = co_await take_grant(im, std::move(*grant));
    else failed = grant.status();
    if (failed.is_ok()) break;
    if (!grant && failed.code() == Code::kFenced) {
      // A tenure of an earlier run was taken by force, and this run has not told yet that it knows.
      if (fence_inherited(im)) wait_ms = 0;   // whoever waited was answered
      std::vector<RegionIndex> dirty;
      if (im.attached) dirty = journal_->dirty_regions(im.slot);
      Status settled = co_await settle_fence(im, im.attr.epoch, std::move(dirty),
                                             im.attached ? journal_->region_bytes(im.slot) : limits::kRegionBytesMin);
      if (settled.is_ok()) continue;
      failed = settled;
    }
    // What was granted in a session that has ended may be over, and was not taken up: asked again, if anybody waits.
    const bool may_be_over = failed.code() == Code::kUnavailable || (grant && failed.code() == Code::kFenced);
    if (may_be_over && !mirror_->stands(session) && wanted()) continue;
    // Refused it may be, or another host's: taken by force it was not.
    if (std::exchange(im.inherited_writer, false)) unpark(im);
    // A write came while only a free tenure was asked for: now it is worth waiting.
    bool writes_wait = wait_ms == 0 && !im.parked.empty();
    if (!writes_wait) break;
    wait_ms = static_cast<uint32_t>(limits::kTenureWaitSecondsMax) * 1000;
  }
  im.acquiring = false;
  im.not_granted = failed;
  if (!failed) {
    if (failed.code() == Code::kBusy && im.attr.holder == options_.config.node.name) im.attr.holder.clear();
    if (failed.code() == Code::kBusy)
      kLog.info("image_held_elsewhere", {{"image", im.id}, {"waited_ms", wait_ms}, {"reason", failed.message()}});
    else if (wait_ms != 0) kLog.warning("tenure_refused", {{"image", im.id}, {"error", failed}});
    fail_parked(im, failed);
  }
  unpark(im);
  if (im.recall_wanted) try_yield(im);
}

void Engine::fail_parked(Image& im, const Status& status) {
  std::vector<Op*> parked;
  parked.swap(im.parked);
  for (Op* op : parked) {
    if (op->kind == OpKind::kRead && !only_here(im) && im.missing.empty()) {   // the shared copy may answer it
      im.parked.push_back(op);
      continue;
    }
    refuse(op, status);
  }
}

// A tenure that nothing was done with ends where it began: whoever is next follows upon the same writes.
Task<Status> Engine::yield_unused(const ImageId& id, Epoch epoch) {
  wire::Yield back{id, epoch, {journal_->incarnation(), Counter(0)}};
  auto yielded = co_await async<Result<wire::Yielded>>([&](Callback<Result<wire::Yielded>> done) {
    mirror_->request<wire::Yielded>(wire::Type::kYield, back, std::move(done));
  });
  co_return yielded.status();
}

Task<Status> Engine::take_grant(Image& im, wire::Grant grant) {
  const uint64_t session = mirror_->hello().session;
  const uint8_t told_absent = copy_absent(im);
  if (Status s = co_await ask_policy(im); !s) co_return s;
  if (copy_absent(im) > told_absent) {   // it was `none`, as far as was known here
    auto map = co_await ask_map(im, 1);
    if (!map) co_return map.status();
    grant.copy_known = 0;
    grant.map_cut = map->map_cut;
    grant.stale_regions = std::move(map->stale_regions);
  }
  bool none = im.attr.mirror == 0;
  bool had_copy = im.copy != nullptr;
  // Whoever had an earlier tenure of such an image wrote it there, and nowhere else.
  const bool used = grant.parent.epoch.value != 0 || grant.epoch.value > 1;
  // Another host has it alone: this host's older copy stands in for nothing, and that one must find the image free. The
  // map of the one that gave the shared copy up is empty, should it have crashed before its note. No flag: that would
  // call this copy the newest.
  const bool stale = std::any_of(grant.stale_regions.begin(), grant.stale_regions.end(),
                                 [](uint8_t bits) { return bits != 0; });
  const bool older = grant.copy_known == 0 || stale;
  if (none && used && older && !only_here(im)) {
    Status yielded = co_await yield_unused(im.id, grant.epoch);
    if (!yielded && yielded.code() != Code::kFenced) {   // held still, by the shared node's word: tried again
      im.attr.holder = options_.config.node.name;
      co_return yielded;
    }
    im.attr.holder.clear();
    note_elsewhere(im);
    co_return failed(im);
  }
  if (!im.local() && (only_here(im) || (none && used))) {
    if (Status s = note_only_copy(im); !s) co_return s;
    note_missing(im, Status(Code::kNotFound, "there is no copy of it here"));
    co_return failed(im);
  }
  if (!had_copy) {
    bool empty = grant.size == 0;
    // Durable before the copy exists: until it was filled it must never be taken for whole.
    if (!empty && !none) {
      if (Status s = set_flag(im, kFlagBehind, true); !s) co_return s;
      im.behind = true;
    }
    auto made = group_->create(im.id, grant.size, grant.size_generation);
    if (made) {
      im.copy = std::move(*made);
      if (none) im.broken = false;
      im.refilling = im.behind;  // what this host wrote without a copy is on the shared one alone: read there
    } else if (none) {
      co_return made.status();
    } else {
      kLog.warning("no_local_copy", {{"image", im.id}, {"error", made.status()}, {"now", "served by the shared copy"}});
      im.broken = true;
    }
  }
  // A resize that the shared node did not learn of, before a crash or alone: the newer size counts. Not where the copy
  // is behind: its size is of a line that lost, or of no account; a number above both ends it on this copy, too. So it
  // does two sizes of one number, each of a resize that the other copy has not heard of, and one that only the shared
  // copy has of what this host had acknowledged alone: the last holder's counts, as in resume().
  const bool counts = im.local() && (none || !im.behind);
  const bool last = none || (grant.parent.source == options_.config.node.name && grant.parent.clean != wire::kTaken);
  const Generation own = im.local() ? im.copy->size_generation() : Generation();
  const bool two_sizes = im.local() && own == grant.size_generation && im.copy->size() != grant.size;
  const bool unanswered = own < grant.size_generation && alone_before_crash(im.id);
  const bool renumbered = counts && last && (two_sizes || unanswered);
  const bool own_newer = counts && own > grant.size_generation;
  const bool outlived = im.local() && !own_newer && !renumbered && (own > grant.size_generation || two_sizes);
  if (own_newer || renumbered) grant.size = im.copy->size();
  if (own_newer) grant.size_generation = own;
  else if (outlived || renumbered) grant.size_generation = std::max(own, grant.size_generation).next();
  const bool untold = own_newer || outlived || renumbered;
  attach(im, grant.size);
  if (im.local() && im.copy->size() > grant.size)
    co_await preserve(im, {grant.size, im.copy->size() - grant.size});
  im.size = grant.size;
  im.size_generation = grant.size_generation;
  Status adopted = co_await adopt_size(im, grant.size, grant.size_generation);
  if (!adopted && (renumbered || !own_copy_failed(im, adopted))) co_return adopted;
  const auto unheld = unheld_since_word(im.id, grant.parent);
  if (!unheld) co_return unheld.status();
  // This host's own writes, of which its journal knows nothing: it was lost, with whatever it had not shipped.
  const bool journal_lost = grant.parent.epoch.value != 0 && grant.parent.source == options_.config.node.name &&
                            journal_->tenure_epoch(im.id).value == 0;
  if (journal_lost) kLog.warning("journal_lost_what_it_owed", {{"image", im.id}, {"now", "all of it is shipped"}});
  const bool whole =
      !none && (grant.parent.clean == wire::kTaken || standing_in(im) || journal_lost || *unheld);
  std::vector<Extent> allocated;
  if (whole) {   // durable before the first write: until it is staged
    if (Status s = set_flag(im, kFlagStandIn, true); !s) co_return s;
    // What the lost holder had not flushed is durable before it is read or filled from: no map here names it. The
    // takeover tried that (shared/node/takeover.cc says why both), and went on if it failed. What a sync that failed
    // after the grant may have cost this one does not cover: asked again, the shared node writes it first.
    using Answer = Result<wire::Flushed>;
    Answer flushed = wire::Flushed{grant.loss_id, {}};
    if (!TM_PLANTED("begin a taken tenure without a sync")) {
      flushed = co_await async<Answer>([&](Callback<Answer> done) {
        mirror_->request<wire::Flushed>(wire::Type::kFlush, wire::Flush{im.id, grant.epoch}, std::move(done));
      });
    }
    if (!flushed) co_return flushed.status().with_context("the shared copy was not synced after a takeover");
    if (flushed->loss_id != grant.loss_id)
      co_return Status(Code::kUnavailable, "a sync of the shared copy has failed since it was granted");
    auto extents = co_await shared_extents(im, grant.size);
    if (!extents) co_return extents.status();
    allocated = std::move(*extents);
  }
  im.was_followed = im.was_followed || journal_->followed(im.id);
  if (none) {   // whatever the shared node makes of it: no other copy is newer
    im.stale.clear_all();
  } else if (im.broken || im.behind || grant.copy_known == 0) {
    if (grant.size == 0) im.stale.clear_all();
    else im.stale.set_all(grant.size, grant.region_bytes != 0 ? grant.region_bytes : journal_->region_bytes(im.slot));
  } else {
    im.stale.set_bitmap(grant.stale_regions, grant.size,
                        grant.region_bytes != 0 ? grant.region_bytes : limits::kRegionBytesMin);
  }
  // What a shared node that is rebuilt must not take for whole.
  if (Status s = set_flag(im, kFlagPartial, !none && !im.stale.none()); !s) co_return s;
  journal_->set_tenure(im.slot, grant.epoch, grant.parent);   // after a crash in it the flag says what is not here
  im.parent = grant.parent;
  if (none) {  // before the first write that only this host has; and the shared node knows who has it
    if (Status s = note_only_copy(im); !s) co_return s;
    if (stale) {
      Status told = co_await tell_level(im, grant.map_cut, std::move(grant.stale_regions));
      if (!told) co_return told;
    }
  } else if (host_only(im) && !im.recovering) {
    if (Status s = co_await all_apart(im); !s) co_return s;
    im.facts.alone = true;
  }
  im.map_cut = grant.map_cut;
  im.map_region_bytes = grant.region_bytes != 0 ? grant.region_bytes : limits::kRegionBytesMin;
  im.facts.policy_none = none;
  // On record as lacking something, though it lacks nothing now: beyond the end of an image that was cut short, say. A
  // fill of nothing has that taken away first; or a crash would take from the shared copy what is written there later.
  im.facts.copy_whole = !im.broken && im.stale.none() && (none || (!stale && !im.behind));
  im.facts.handshaken = true;
  im.shared_loss = im.resync_loss = grant.loss_id;
  im.unsynced.clear();
  im.shared_in_doubt = false;
  im.compare = false;   // told again
  im.told_apart = 0;
  // During a recovery the note from before the crash decides the direction and stays until all is equal.
  if (!im.recovering) {
    auto noted = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, own_loss(im), grant.loss_id, im.facts.alone, std::move(done));
    });
    if (!noted) co_return noted;
  }
  im.epoch = grant.epoch;
  im.terms = Generation(0);
  im.terms_asked_at = {};
  im.voted = im.facts.witnessed = false;
  im.facts.asks_first = !options_.config.may_go_alone;   // of this tenure, as long as it lasts
  im.size_untold = untold && im.recovering;   // told by the recovery
  if (!im.recovering && (untold || im.facts.alone)) {  // told before anything is written there
    const uint8_t ahead = im.facts.alone ? 2 : 0;   // as in resume()
    auto told = co_await say_resumed(im, im.epoch, ahead);
    if (!told) co_return told.status().with_context("the shared node did not take the size");
  }
  // No resume() confirmed it in a later one: only what is held is told then, and by now it may be another host's.
  if (!mirror_->stands(session)) co_return Status(Code::kUnavailable, "the link was lost while a tenure began");

  im.attr.epoch = grant.epoch;
  im.attr.holder = options_.config.node.name;
  im.attr.size = im.size;
  im.attr.size_generation = im.size_generation;
  im.mtime = im.attr.mtime;
  im.mtime_pushed = true;
  im.held = true;
  im.inherited_writer = false;
  const bool not_first = grant.parent.epoch.value != 0;   // of a rebuilt shared node the one before may be unknown
  if (not_first && grant.parent.source != options_.config.node.name) set_foreign_end(im, im.size);
  if (im.broken) tell_behind(im);   // first, as in resume()
  im.open_marked = false;
  wire::Mark mark = mark_of(im, wire::MarkKind::kTenureStart);
  mark.number = grant.event;
  mark.parent = grant.parent;
  journal_->mark(mark);
  im.taken_from = grant.parent.clean == wire::kTaken ? grant.parent.source : "";
  if (whole) {
    record_whole(im, allocated, grant.parent);
    tasks_.spawn(stage_whole(im));
  }
  kLog.info("tenure_begun", {{"image", im.id}, {"epoch", im.epoch}, {"parent", grant.parent.source},
                             {"stale_regions", im.stale.count()}});
  apply(im, MirrorEvent::kGranted);
  policy_seen(im, im.attr.mirror);   // it may have changed since it was asked for
  co_return Status::ok();
}

// The own copy takes the size that the shared node has, if that is newer.
Task<Status> Engine::adopt_size(Image& im, uint64_t size, Generation generation) {
  if (im.held) {
    im.size = size;
    im.size_generation = generation;
  }
  if (im.attached) journal_->set_size(im.slot, size);
  if (!im.local() || im.copy->size_generation() >= generation) co_return Status::ok();
  UniqueFunction<void(Callback<Status>)> start = [&](Callback<Status> done) {
    im.copy->resize(size, generation, std::move(done));
  };
  co_return co_await on_copy(im, start);
}

wire::Mark Engine::mark_of(Image& im, wire::MarkKind kind) {
  wire::Mark mark;
  mark.kind = kind;
  mark.origin = options_.config.node.name;
  mark.label = env_.wall();
  mark.node = im.attr;
  mark.node.size = im.size_now();
  mark.node.size_generation = im.held ? im.size_generation : im.attr.size_generation;
  if (!im.mtime_pushed) mark.node.mtime = im.mtime;
  mark.epoch = im.epoch;
  return mark;
}

}  // namespace tidemark::fs
