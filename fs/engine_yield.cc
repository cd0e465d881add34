// Giving a tenure back: when another host asks for it, whatever this run knows of it.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"
#include "shared/wire/features.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::milliseconds kYieldRetry{200};
constexpr std::chrono::seconds kStageTries{3};   // while staging fails
}  // namespace

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
  const bool withheld = journal_->withheld(im.id);   // whoever is next follows upon all of it
  if (withheld && !im.kept_told) {
    kLog.warning("yield_waits", {{"image", im.id}, {"wanted_by", im.recall_by}, {"reason", "it is withheld"},
                                 {"effect", "it stays here until what was written to it can be read and shipped"}});
  }
  im.kept_told = withheld;
  level = level && !withheld;
  // While other images recover nothing can be cut, so nothing could be handed over whole.
  if (!level || im.resync_running || im.recovering || recovering_ != 0) {
    yield_later(im);
    return;
  }
  tasks_.spawn(yield(im));
}

Task<Status> Engine::flush_both(Image& im, UniqueFunction<bool()> stands) {
  Counter counter = journal_->last_finished();
  uint64_t unsynced = im.unsynced.mark();
  if (im.local()) {
    auto synced = co_await sync_copy(im);
    // Never simply tried again: what it was to cover may be gone.
    if (!synced && !own_copy_failed(im, synced)) co_return synced;
  }
  if (stands && !stands()) co_return Status(Code::kUnavailable, "the link or the shared copy's loss id changed");
  using Answer = Result<wire::Flushed>;
  wire::Flush ask{im.id, im.epoch};
  auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, ask, std::move(done));
  });
  if (!flushed) {
    mirror_->note_failure();
    // The shared node counts its copy out, as for any flush: until this host has resumed.
    if (is_refusal(flushed.status()) && im.held) refused(im, flushed.status());
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
    if (staged.is_ok()) co_return HandoverCut{point.counter, true, std::move(point.without)};
    if (staged.code() != Code::kCancelled || env_.now() >= until) {
      kLog.warning("handover_unstaged",
                   {{"batch", point.batch}, {"reason", staged},
                    {"effect", "should this host crash before it ships, these writes are a branch at the replica"}});
      co_return HandoverCut{point.counter, false, std::move(point.without)};
    }
    co_await sleep(kYieldRetry);   // given up: its blocks are in the open batch
  }
}

// Whether all that was written to the image is in the cut, or, where that could not be staged, in the next one. Not of
// one that is withheld, or may be with the next cut: the replica takes a cut that leaves it out for all of this host's.
bool Engine::has_all(const HandoverCut& cut, const ImageId& image) const {
  const bool left_out = std::find(cut.without.begin(), cut.without.end(), image) != cut.without.end();
  return !left_out && (cut.staged || !journal_->unreadable(image));
}

// What is shipped of the image is what it is now, whoever writes it from here on: as segments, or as the own copy has
// all of it, which another host's writes do not change. What would be read from the shared copy is as that is by then.
bool Engine::ships_as_now(const Image& im, const HandoverCut& cut) const {
  const bool whole = im.local() && !im.behind && im.stale.none() && !has_flag(im.id, kFlagPartial) && !standing_in(im);
  return cut.staged || whole || !options_.config.replica;
}

// Where it is not, the next tenure stands in for this one with all of the image, as for one that was taken: rather a
// point that says what it is without than a guest that waits until the own copy is whole.
Task<Status> Engine::yield_at(const Image& im, Epoch epoch, const HandoverCut& cut) {
  const bool known = (mirror_->hello().features & wire::kFeatureYieldUnshipped) != 0;
  const bool unshipped = known && cut.counter.value != 0 && !ships_as_now(im, cut);
  if (unshipped) {
    kLog.warning("handover_unshipped",
                 {{"image", im.id}, {"epoch", epoch},
                  {"reason", "not all of it is on this host's copy, and nothing is staged now"},
                  {"effect", "the next holder ships all of it; what this one still ships is a branch at the replica"}});
  }
  using Answer = Result<wire::Yielded>;
  wire::Yield ask{im.id, epoch, {journal_->incarnation(), cut.counter}};
  auto yielded = co_await async<Answer>([&](Callback<Answer> done) {
    const wire::Type type = unshipped ? wire::Type::kYieldUnshipped : wire::Type::kYield;
    mirror_->request<wire::Yielded>(type, ask, std::move(done));
  });
  co_return yielded.status();
}

Task<void> Engine::yield(Image& im) {
  im.yielding = true;
  if (giving_up_) giving_up_(im.inode);
  co_await wait_idle(im);
  Status status(Code::kUnavailable, "it is not reconciled");   // no flush, either: that says that the copies are level
  if (!unreconciled_.contains(im.id)) status = co_await flush_both(im);
  HandoverCut cut;
  bool level = im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling;
  if (status.is_ok() && level) {
    if (!im.mtime_pushed) co_await tell_times(im);
    if (im.open_marked) journal_->mark(mark_of(im, wire::MarkKind::kClose));
    im.open_marked = false;
    journal_->mark(mark_of(im, wire::MarkKind::kTenureEnd));
    cut = co_await handover_cut();
    level = mirror_->up() && (im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling);
    if (!has_all(cut, im.id)) status = Status(Code::kUnavailable, "what was written to it cannot be read and shipped");
  }
  if (status.is_ok() && level) status = set_flag(im, kFlagHostOnly, false);   // nothing is here alone any more
  if (status.is_ok() && level) {
    // From here to the answer this host may hold nothing any more: it must not go on alone.
    im.yield_unknown = true;
    im.facts.handshaken = false;
    remember(im);
    status = co_await yield_at(im, im.epoch, cut);
    if (!status) mirror_->note_failure();
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
    const bool filling = im.held && im.state == MirrorState::kFilling;
    if (filling && !stopping_) tasks_.spawn(fill(im));   // it stopped for the yield
  }
  unpark(im);
}

void Engine::tenure_ended(Image& im) {
  kLog.info("tenure_ended", {{"image", im.id}, {"epoch", im.epoch}, {"for", im.recall_by}});
  im.held = false;
  im.yield_unknown = false;
  im.recall_wanted = im.kept_told = false;
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
  const bool host_only = has_flag(id, kFlagHostOnly);
  std::optional<wire::Attr> attr;
  if (!held) attr = co_await attr_now(id);
  if (held) {
    known->recall_wanted = true;
  } else if (attr && (host_only || attr->mirror == 0 || journal_->withheld(id))) {
    // `none` with a note: its data are here alone. Without one they are, or are another host's: seen as it is taken.
    if (!host_only || attr->mirror != 0) take_to_give_back(*attr);
  } else if (attr) {
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
  auto now = co_await attr_now(attr.image);
  if (!now || now->mirror == 0) co_return Status(Code::kBusy, "its policy may have changed");
  wire::Mark mark;
  mark.kind = wire::MarkKind::kTenureEnd;
  mark.origin = options_.config.node.name;
  mark.label = env_.wall();
  mark.node = attr;
  mark.epoch = grant->epoch;
  journal_->mark(mark);
  HandoverCut cut = co_await handover_cut();
  if (!has_all(cut, attr.image)) {
    take_to_give_back(attr);
    co_return Status(Code::kUnavailable, "what was written to it cannot be read and shipped");
  }
  // Where another host wrote last, the next tenure follows that one's writes: nothing of this host's comes after them.
  // Unless the replica lacks some of it that this host sends as of a tenure upon those: what is left of an older one
  // waits for nothing of theirs, and they for it. Nor do its own come after what it lost by a takeover: that it was
  // taken must reach the tenure that is used.
  const bool taken = grant->parent.clean == wire::kTaken;
  const bool follows = grant->parent.source == options_.config.node.name ||
                       journal_->lacked_since(attr.image, grant->parent.epoch);
  if (taken || !follows) cut.counter = Counter(0);
  auto im = image_of(attr);
  if (!im) co_return im.status();
  co_return co_await yield_at(**im, grant->epoch, cut);
}

// What the shared node says of an image; nothing, should it not answer.
Task<std::optional<wire::Attr>> Engine::attr_now(ImageId id) {
  auto known = names_->by_image(id);
  if (!known) co_return std::nullopt;
  auto now = co_await attr_of(known->inode, id);
  if (!now) co_return std::nullopt;
  co_return std::move(*now);
}

// What is or was here alone is taken, copied, and then yielded, unless it still is; what is withheld is taken, and
// yielded once it is not. One of `mirror = none` is never yielded, and whether it is here at all is to be seen.
void Engine::take_to_give_back(const wire::Attr& attr) {
  giving_back_.erase(attr.image);
  names_->put(attr);
  auto im = image_of(attr);
  if (!im) return;
  const bool wait = attr.mirror != 0;
  const bool busy = (*im)->held || (*im)->acquiring || (*im)->recovering;
  if (wait || busy) (*im)->recall_wanted = true;
  if (busy) return;
  if (wait) return want_tenure(**im, true);
  (*im)->acquiring = true;
  tasks_.spawn(acquire(**im, 0));
}

}  // namespace tidemark::fs
