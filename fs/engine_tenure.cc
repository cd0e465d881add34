// Tenures: asked for at the first write (or, if free, at the first read), kept until another host asks.
#include "fs/engine.h"

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::seconds kOpportunityInterval{1};
constexpr std::chrono::milliseconds kYieldRetry{200};
constexpr std::chrono::seconds kStageTries{3};   // while staging fails
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
  tasks_.spawn(acquire(im, wait ? static_cast<uint32_t>(limits::kTenureWaitSecondsMax) * 1000 : 0));
}

// Held according to the shared node, but not here: granted to an earlier run, or to a request whose answer got lost.
// Taken anew, if it is still so: another host is told to wait for this one, and must not do so for nothing.
void Engine::take_up_tenures() {
  for (auto& [id, image] : images_) {
    if (!image->held && image->attr.holder == options_.config.node.name) want_tenure(*image, false);
  }
}

// Of an unfilled or failed copy the shared node's map may say too little: it starts anew, all stale.
uint8_t Engine::copy_absent(const Image& im) const { return im.copy == nullptr || im.broken || im.behind ? 1 : 0; }

// So that one of `mirror = none` that lacks its copy later on is never taken for one that nobody wrote.
void Engine::make_only_copy(Image& im) {
  if (im.attr.mirror != 0 || im.attr.epoch.value != 0 || im.copy != nullptr || im.broken) return;
  auto made = group_->create(im.id, im.attr.size, im.attr.size_generation);
  if (made) im.copy = std::move(*made);
}

Task<void> Engine::acquire(Image& im, uint32_t wait_ms) {
  using Answer = Result<wire::Grant>;
  make_only_copy(im);
  Status failed;
  for (;;) {
    while (!mirror_->up() && wait_ms != 0 && !stopping_) co_await wait_link(std::chrono::seconds(1));
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
      std::vector<RegionIndex> dirty;
      if (im.attached) dirty = journal_->dirty_regions(im.slot);
      Status settled = co_await settle_fence(im, im.attr.epoch, std::move(dirty),
                                             im.attached ? journal_->region_bytes(im.slot) : limits::kRegionBytesMin);
      if (settled.is_ok()) continue;
      failed = settled;
    }
    bool link_lost = failed.code() == Code::kUnavailable && !mirror_->up();
    if (link_lost && !stopping_ && (wait_ms != 0 || !im.parked.empty())) continue;
    // A write came while only a free tenure was asked for: now it is worth waiting.
    bool writes_wait = wait_ms == 0 && !im.parked.empty();
    if (!writes_wait) break;
    wait_ms = static_cast<uint32_t>(limits::kTenureWaitSecondsMax) * 1000;
  }
  im.acquiring = false;
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

Task<Status> Engine::take_grant(Image& im, wire::Grant grant) {
  bool none = im.attr.mirror == 0;
  bool had_copy = im.copy != nullptr;
  // Whoever had an earlier tenure of such an image wrote it here, and nowhere else.
  const bool used = grant.parent.epoch.value != 0 || grant.epoch.value > 1;
  if (!im.local() && !im.behind && (only_here(im) || (none && used))) {
    if (Status s = set_flag(im, kFlagHostOnly, true); !s) co_return s;
    note_missing(im, Status(Code::kNotFound, "there is no copy of it here"));
    co_return failed(im);
  }
  // Another host has it alone: this host's older copy stands in for nothing. The map of the one that gave the shared
  // copy up is empty, should it have crashed before its note. No flag: that would call this copy the newest.
  const bool older = grant.copy_known == 0 || std::any_of(grant.stale_regions.begin(), grant.stale_regions.end(),
                                                          [](uint8_t bits) { return bits != 0; });
  if (none && used && older && !only_here(im)) {
    note_missing(im, Status(Code::kNotFound, "the copy here is older than the one that another host had alone"));
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
      im.refilling = im.behind;  // what this host wrote without a copy is on the shared one alone: read there
    } else {
      kLog.warning("no_local_copy", {{"image", im.id}, {"error", made.status()}, {"now", "served by the shared copy"}});
      im.broken = true;
    }
  }
  // A resize that the shared node did not learn of, before a crash or alone: the newer size counts.
  bool own_newer = im.local() && im.copy->size_generation() > grant.size_generation;
  if (own_newer) {
    grant.size = im.copy->size();
    grant.size_generation = im.copy->size_generation();
  }
  if (!im.attached) {
    im.slot = journal_->attach(im.id, grant.size);
    im.attached = true;
  }
  if (im.local() && im.copy->size() > grant.size)
    co_await preserve(im, {grant.size, im.copy->size() - grant.size});
  im.size = grant.size;
  im.size_generation = grant.size_generation;
  Status adopted = co_await adopt_size(im, grant.size, grant.size_generation);
  if (!adopted && !own_copy_failed(im, adopted)) co_return adopted;
  const bool whole = !none && (grant.parent.clean == wire::kTaken || standing_in(im));
  std::vector<Extent> allocated;
  if (whole) {   // durable before the first write: until it is staged
    if (Status s = set_flag(im, kFlagStandIn, true); !s) co_return s;
    // What the lost holder had not flushed is durable before it is read or filled from: no map here names it. The
    // takeover tried that (shared/node/takeover.cc says why both), and went on if it failed.
    using Answer = Result<wire::Flushed>;
    auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Flushed>(wire::Type::kFlush, wire::Flush{im.id, grant.epoch}, std::move(done));
    });
    if (!flushed) co_return flushed.status().with_context("the shared copy was not synced after a takeover");
    grant.loss_id = flushed->loss_id;
    auto extents = co_await shared_extents(im, grant.size);
    if (!extents) co_return extents.status();
    allocated = std::move(*extents);
  }
  journal_->set_tenure(im.slot, grant.epoch, grant.parent);
  im.parent = grant.parent;

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
  if (none) {  // before the first write that only this host has
    if (Status s = set_flag(im, kFlagHostOnly, true); !s) co_return s;
  } else if (host_only(im) && !im.recovering) {
    if (Status s = co_await all_apart(im); !s) co_return s;
    im.facts.alone = true;
  }
  im.map_cut = grant.map_cut;
  im.map_region_bytes = grant.region_bytes != 0 ? grant.region_bytes : limits::kRegionBytesMin;
  im.facts.policy_none = none;
  im.facts.copy_whole = !im.broken && im.stale.none();
  im.facts.handshaken = true;
  im.shared_loss = im.resync_loss = grant.loss_id;
  im.unsynced.clear();
  // During a recovery the note from before the crash decides the direction and stays until all is equal.
  if (!im.recovering) {
    auto noted = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, host_loss(), grant.loss_id, im.facts.alone, std::move(done));
    });
    if (!noted) co_return noted;
  }
  im.epoch = grant.epoch;
  im.terms = Generation(0);
  im.facts.witnessed = false;
  if (own_newer || im.facts.alone) {  // told before anything is written there
    using Answer = Result<wire::Resumed>;
    const uint8_t ahead = im.facts.alone ? 2 : unreconciled_.contains(im.id) ? 1 : 0;   // as in resume()
    wire::Resume tell{im.id, im.epoch, im.size, im.size_generation, ahead};
    auto told = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Resumed>(wire::Type::kResume, tell, std::move(done));
    });
    if (!told) co_return told.status().with_context("the shared node did not take the size");
  }
  if (!mirror_->up()) co_return Status(Code::kUnavailable, "the link was lost while a tenure began");

  im.attr.epoch = grant.epoch;
  im.attr.holder = options_.config.node.name;
  im.attr.size = im.size;
  im.attr.size_generation = im.size_generation;
  im.mtime = im.attr.mtime;
  im.mtime_pushed = true;
  im.held = true;
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

// ---- giving a tenure back -----------------------------------------------------------------------

void Engine::recalled(const wire::RecallNotify& message) {
  Image* im = find(message.image);
  if (im == nullptr || (!im->held && !im->acquiring && !im->recovering)) {
    kLog.info("recall_unknown", {{"image", message.image}, {"wanted_by", message.wanted_by}});
    if (giving_back_.insert(message.image).second) tasks_.spawn(give_back(message.image));
    return;
  }
  im->recall_wanted = true;
  im->recall_by = message.wanted_by;
  kLog.info("recalled", {{"image", im->id}, {"epoch", message.epoch}, {"wanted_by", message.wanted_by},
                         {"writing_handles", im->wrote}});
  try_yield(*im);
}

void Engine::yield_later(Image& im) {
  env_.after(kYieldRetry, [this, id = im.id] {
    if (Image* image = find(id)) try_yield(*image);
  });
}

// A handle that has written since it was opened holds the tenure until it is closed.
void Engine::try_yield(Image& im) {
  if (!im.held || !im.recall_wanted || im.yielding || im.acquiring || im.wrote != 0) return;
  if (im.state == MirrorState::kNone) {
    kLog.info("recall_declined", {{"image", im.id}, {"reason", "mirror = none: its data are on this host alone"}});
    im.recall_wanted = false;
    return;
  }
  // Not while it asks for `none`: until the answer is there this copy may be the only one.
  bool level = (im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling) && !host_only(im);
  // While other images recover nothing can be cut, so nothing could be handed over whole.
  if (!level || im.resync_running || im.recovering || recovering_ != 0) {
    yield_later(im);
    return;
  }
  tasks_.spawn(yield(im));
}

Task<Status> Engine::flush_both(Image& im) {
  Counter counter = journal_->last_finished();
  uint64_t unsynced = im.unsynced.mark();
  if (im.local()) {
    auto synced = co_await sync_copy(im);
    // Never simply tried again: what it was to cover may be gone.
    if (!synced && !own_copy_failed(im, synced)) co_return synced;
  }
  using Answer = Result<wire::Flushed>;
  wire::Flush ask{im.id, im.epoch};
  auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, ask, std::move(done));
  });
  if (!flushed) {
    mirror_->note_failure();
    // The shared node counts its copy out, as for any flush: until this host has resumed.
    const bool refuses = flushed.status().code() != Code::kUnavailable && flushed.status().code() != Code::kFenced;
    if (refuses && im.held) refused(im, flushed.status());
    co_return flushed.status();
  }
  if (flushed->loss_id != im.shared_loss && im.state != MirrorState::kResyncing) {
    check_loss(im, flushed->loss_id);
    co_return Status(Code::kUnavailable, "the shared copy has another loss id");
  }
  if (im.state == MirrorState::kResyncing) co_return Status::ok();
  journal_->note_durable(im.slot, counter);
  im.unsynced.cover(unsynced);
  co_return Status::ok();
}

// A cut that survives the loss of this host's power: what is in it will be shipped as it is, so that the next tenure's
// writes can be ordered after it. Should it be impossible, the handover goes on all the same: then a crash of this host
// before it has shipped makes those writes a branch at the replica.
Task<Engine::HandoverCut> Engine::handover_cut() {
  const io::BootTime until = env_.now() + kStageTries;
  for (;;) {
    journal::Point point = journal_->cut(journal::Journal::CutReason::kHandover);
    Status staged = co_await async<Status>(
        [&](Callback<Status> done) { journal_->when_staged(point.batch, std::move(done)); });
    if (staged.is_ok()) co_return HandoverCut{point.counter, true};
    if (staged.code() != Code::kCancelled || env_.now() >= until) {
      kLog.warning("handover_unstaged",
                   {{"batch", point.batch}, {"reason", staged},
                    {"effect", "should this host crash before it ships, these writes are a branch at the replica"}});
      co_return HandoverCut{point.counter, false};
    }
    co_await sleep(kYieldRetry);   // given up: its blocks are in the open batch
  }
}

Task<void> Engine::yield(Image& im) {
  im.yielding = true;
  co_await wait_idle(im);
  Status status = co_await flush_both(im);
  HandoverCut cut;
  bool level = im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling;
  if (status.is_ok() && level) {
    if (!im.mtime_pushed) {
      wire::Attr times = im.attr;
      times.mtime = times.ctime = im.mtime;
      im.mtime_pushed = true;
      co_await push_times(im.inode, times);
    }
    if (im.open_marked) journal_->mark(mark_of(im, wire::MarkKind::kClose));
    im.open_marked = false;
    journal_->mark(mark_of(im, wire::MarkKind::kTenureEnd));
    cut = co_await handover_cut();
    level = mirror_->up() && (im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling);
  }
  if (status.is_ok() && level) status = set_flag(im, kFlagHostOnly, false);   // nothing is here alone any more
  if (status.is_ok() && level) {
    // From here to the answer this host may hold nothing any more: it must not go on alone.
    im.yield_unknown = true;
    im.facts.handshaken = false;
    remember(im);
    using Answer = Result<wire::Yielded>;
    wire::Yield ask{im.id, im.epoch, {journal_->incarnation(), cut.counter}};
    auto yielded = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Yielded>(wire::Type::kYield, ask, std::move(done));
    });
    status = yielded ? Status::ok() : yielded.status();
    if (!yielded) mirror_->note_failure();
  } else if (status.is_ok()) {
    status = Status(Code::kUnavailable, "the copies are not level any more");
  }
  im.yielding = false;
  bool ended_before = im.yield_unknown && status.code() == Code::kFenced;  // by a yield whose answer was lost
  if (status.is_ok() || ended_before) {
    if (cut.staged) {               // and flushed, with none of its writes under way
      journal_->note_durable(im.slot, cut.counter);
      journal_->tenure_over(im.slot);
    }
    tenure_ended(im);
  } else {
    if (im.yield_unknown && status.code() != Code::kUnavailable) {
      im.yield_unknown = false;
      im.facts.handshaken = true;
      remember(im);
    }
    if (status.code() == Code::kFenced) fence(im);
    else kLog.warning("yield_failed", {{"image", im.id}, {"error", status}});
    if (im.held && !stopping_) yield_later(im);
  }
  unpark(im);
}

void Engine::tenure_ended(Image& im) {
  kLog.info("tenure_ended", {{"image", im.id}, {"epoch", im.epoch}, {"for", im.recall_by}});
  im.held = false;
  im.yield_unknown = false;
  im.recall_wanted = false;
  im.taken_from.clear();
  im.attr.holder.clear();
  im.attr.size = im.size;
  im.attr.size_generation = im.size_generation;
  im.try_again = env_.now() + kOpportunityInterval;
  apply(im, MirrorEvent::kYielded);
}

// A tenure of an earlier run, all of it level, or one whose grant got lost: taken anew, so that the shared node names
// its parent, and given back at once. Requests of this host wait meanwhile (want_tenure).
Task<void> Engine::give_back(ImageId id) {
  // Writes of the earlier run that have not been shipped are in the resync batch, which is cut when all is reconciled.
  while (recovering_ != 0) co_await sleep(kYieldRetry);
  Image* known = find(id);
  bool held = known != nullptr && (known->held || known->acquiring || known->recovering);   // by its recovery
  auto attr = names_->by_image(id);
  auto flags = flags_.find(id);
  bool host_only = flags != flags_.end() && (flags->second & kFlagHostOnly) != 0;
  if (held) {
    known->recall_wanted = true;
  } else if (attr && host_only) {
    giving_back_.erase(id);
    co_return co_await give_back_copied(*attr);
  } else if (attr && attr->mirror != 0) {  // with `mirror = none` its data are here alone
    Status status = co_await take_and_yield(*attr);
    kLog.info("gave_back", {{"image", id}, {"status", status}});
  }
  giving_back_.erase(id);
  known = find(id);
  if (known == nullptr) co_return;
  unpark(*known);
  if (known->recall_wanted) try_yield(*known);
}

// The replica must be able to tell what the earlier run left behind, so the yield names a cut after all of it.
Task<Status> Engine::take_and_yield(wire::Attr attr) {
  using Granted = Result<wire::Grant>;
  wire::Acquire ask{attr.image, 0, 0};
  auto grant = co_await async<Granted>([&](Callback<Granted> done) {
    mirror_->request<wire::Grant>(wire::Type::kAcquire, ask, std::move(done));
  });
  if (!grant) co_return grant.status();
  wire::Mark mark;
  mark.kind = wire::MarkKind::kTenureEnd;
  mark.origin = options_.config.node.name;
  mark.label = env_.wall();
  mark.node = attr;
  mark.epoch = grant->epoch;
  journal_->mark(mark);
  HandoverCut cut = co_await handover_cut();
  // Where another host wrote last, the next tenure follows that one's writes: nothing of this host's comes after them.
  if (grant->parent.source != options_.config.node.name) cut.counter = Counter(0);
  using Answer = Result<wire::Yielded>;
  wire::Yield give{attr.image, grant->epoch, {journal_->incarnation(), cut.counter}};
  auto yielded = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Yielded>(wire::Type::kYield, give, std::move(done));
  });
  co_return yielded.status();
}

// Its data were here alone when this host last looked: taken, copied, and then yielded, unless they still are.
Task<void> Engine::give_back_copied(wire::Attr attr) {
  using Known = Result<wire::Attr>;
  wire::GetAttr ask{attr.inode};
  auto known = co_await async<Known>([&](Callback<Known> done) {
    mirror_->request<wire::Attr>(wire::Type::kGetAttr, ask, std::move(done));
  });
  if (!known || known->mirror == 0) co_return;
  names_->put(*known);
  auto im = image_of(*known);
  if (!im) co_return;
  (*im)->recall_wanted = true;
  want_tenure(**im, true);
}

}  // namespace tidemark::fs
