// The link to the shared node, lost and back, and what that means for each image.
#include "fs/engine.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/wire/features.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::seconds kRefusedRetry{5};
constexpr std::chrono::seconds kAskAgain{1};   // where the shared node says: not now
}  // namespace

void Engine::link_up(const wire::HelloAnswer& hello) {
  // The answers to what an earlier session or run had asked for may be lost: the replica takes those events from the
  // shared node's stream.
  wire::Mark session;
  session.kind = wire::MarkKind::kSession;
  session.origin = options_.config.node.name;
  session.label = env_.wall();
  session.node.event = hello.event;
  journal_->mark(session);
  std::map<uint64_t, UniqueFunction<void()>> waiters;
  waiters.swap(link_waiters_);
  for (auto& [number, fn] : waiters) fn();
  std::vector<Image*> images;
  for (auto& [id, image] : images_) images.push_back(image.get());
  for (Image* im : images) {
    if (im->doomed) tell_dropped(*im);
    else if (im->held) tasks_.spawn(resume(*im));
    else unpark(*im);
    // Its name may have gone meanwhile; or its policy, for which alone it is read here. resume() sees to those held.
    const bool used = im->handles != 0 || im->facts.policy_none;
    if (used && !im->held && !im->doomed && im->state != MirrorState::kFenced) tasks_.spawn(check_attr(*im));
  }
  tasks_.spawn(sweep_removed());
}

void Engine::link_down() {
  ++counts_.link_losses;
  for (auto& [id, image] : images_) {
    Image& im = *image;
    // In that session its Resume may have been taken, and the answer lost: the shared node has heard this host.
    if (im.facts.witnessed && !im.facts.alone) {
      im.voted = true;
      im.facts.witnessed = false;
    }
    apply(im, MirrorEvent::kLinkLost);
  }
}

void Engine::apply(Image& im, MirrorEvent event) {
  MirrorStep next = step(im.facts, im.state, event);
  if (next.next != im.state) {
    kLog.info("mirror_state",
              {{"image", im.id}, {"from", mirror_state_name(im.state)}, {"to", mirror_state_name(next.next)}});
  }
  if (sends_mirror(im.state) && !sends_mirror(next.next)) ++im.outages;
  im.state = next.next;
  if (im.attached && (next.actions & kUnlevel) != 0) journal_->set_level(im.slot, false);
  // What a crash left dirty no link makes equal: the recovery says itself when it has. Of `none` there is one copy.
  const bool equal = im.facts.policy_none || !unreconciled_.contains(im.id);
  if (im.attached && equal && (next.actions & kRelevel) != 0) journal_->set_level(im.slot, true);
  if (im.state == MirrorState::kWaiting && im.facts.asks_first) wait_for_vote(im);
  if (im.state == MirrorState::kMirrored) want_terms(0);
  if ((next.actions & kStartResync) != 0 && !im.resync_running) tasks_.spawn(resync(im));
  if ((next.actions & kStartFill) != 0 && !im.fill_running) tasks_.spawn(fill(im));
  if ((next.actions & kResendUnknown) != 0) {
    std::vector<Op*> unknown;
    unknown.swap(im.unknown);
    for (Op* op : unknown) settle(op);
  }
  if ((next.actions & kWakeParked) != 0) {
    const bool own_decides = im.state == MirrorState::kLocalOnly || im.state == MirrorState::kNone;
    if (own_decides || im.state == MirrorState::kFenced) {
      std::vector<Op*> unknown;
      unknown.swap(im.unknown);
      for (Op* op : unknown) settle(op);
    }
    std::vector<Op*> flushes;
    flushes.swap(im.flushes);
    for (Op* op : flushes) start_flush(op);
    unpark(im);
  }
  // The shared copy has all of it again, and this one was found cut short while it had not.
  if (im.held && im.local() && was_cut(im.id) && shared_whole(im))
    own_copy_failed(im, Status(Code::kCorruption, "its data object was cut short"));
  remember(im);
}

// That the tenure of this epoch stands, with this size; `alone` as wire::Resume has it.
Task<Result<wire::Resumed>> Engine::say_resumed(Image& im, Epoch epoch, uint8_t alone) {
  using Answer = Result<wire::Resumed>;
  wire::Resume tell{im.id, epoch, im.size, im.size_generation, alone};
  co_return co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Resumed>(wire::Type::kResume, tell, std::move(done));
  });
}

// After a reconnect, for a tenure held: does it stand, and can the shared copy have lost anything? While it is told
// that nothing was acknowledged alone, nothing is; asked again if the answer shows that the copies may differ.
Task<void> Engine::resume(Image& im) {
  Pin pin(im);
  const Epoch epoch = im.epoch;
  // The policy may be another one by now, or the mode, the name gone. Should this fail, so does what follows.
  auto attr = co_await attr_of(im.inode, im.id);
  if (attr && im.held && im.epoch == epoch) {
    names_->put(*attr);
    take_attr(im, *attr);
    policy_seen(im, attr->mirror);
    if (attr->mirror != 0 && im.facts.policy_none) co_return;   // mirror_again() resumes
  }
  // Removed. Unless it was taken from this host before that: what only this one has is kept as a branch first.
  const bool removed = attr ? attr->nlink == 0 : attr.status().code() == Code::kNotFound;
  const bool taken =
      attr ? attr->holder != options_.config.node.name || attr->epoch != epoch : im.facts.alone;
  if (removed && !taken) {
    lost_name(im.id);
    const bool waits = im.active != 0 || !im.parked.empty() || !im.flushes.empty() || !im.unknown.empty();
    if (im.doomed && !waits) co_return;   // else the refusal that follows answers what waits
  }
  bool marked = false;   // anew each time: what was found equal before may have been damaged since, and nobody told
  for (bool other = false;;) {
    while (im.noting_alone)   // how it ended, it logs
      static_cast<void>(co_await async<Status>([&](Callback<Status> done) { im.noted.push_back(std::move(done)); }));
    if (!im.held || im.epoch != epoch || sends_mirror(im.state)) co_return;
    // Where the shared copy may lack something it must not be read by others before the resync that follows.
    const bool kept = mirror_->hello().loss_id == im.shared_loss || TM_PLANTED("ignore the loss id");
    if (im.compare && im.facts.copy_whole && !marked) {
      marked = co_await mark_to_compare(im);
      if (!im.held || im.epoch != epoch || sends_mirror(im.state)) co_return;
    }
    other = other || im.compare;
    other = other || im.apart || im.facts.alone || only_here(im) || (!kept && (im.unsynced.any() || im.active != 0));
    other = other || im.resync_loss != im.shared_loss;   // a resync under another loss id has not ended
    // Where a resync follows, that says when it has ended. Of `mirror = none` it does once the policy is another one.
    const bool compares = (mirror_->hello().features & wire::kFeatureCompare) != 0 && im.facts.alone && marked &&
                          !im.facts.policy_none;
    // A recovery flushes before the copies are equal, too.
    const bool recovers = unreconciled_.contains(im.id);
    uint8_t ahead = other || im.facts.policy_none || recovers ? 2 : 0;
    if (compares) ahead = 3;
    const uint32_t says_level = ahead == 0 ? 1 : 0;
    const uint64_t session = mirror_->hello().session;
    im.resuming += says_level;
    im.told_apart = 0;
    auto answer = co_await say_resumed(im, epoch, ahead);
    const bool newer = answer && im.held && im.epoch == epoch && !sends_mirror(im.state) &&
                       answer->size_generation > im.size_generation;
    // Alone, or after a request that failed: a resize that the shared copy has and this one has not was answered to
    // nobody, and writes that lie beyond it were. Its regions are dirty still. Not while one is under way: that one.
    const bool own_decides = im.facts.copy_whole && (im.facts.alone || im.apart) && im.resizes == 0;
    const bool unanswered = newer && own_decides;
    if (newer && !unanswered) {
      Status adopted = co_await adopt_size(im, answer->size, answer->size_generation);
      if (!adopted) kLog.warning("size_not_adopted", {{"image", im.id}, {"error", adopted}});
    }
    im.resuming -= says_level;
    const bool gone = !mirror_->up() || mirror_->hello().session != session;   // the new one is told by its own resume
    const bool waited_for = !im.unknown.empty() || !im.flushes.empty();
    if ((!answer || gone) && im.state == MirrorState::kLocalOnly && !im.facts.alone && waited_for) note_alone(im);
    if (!im.held || im.epoch != epoch) co_return;   // the tenure that was asked for has ended meanwhile
    if (!answer) co_return co_await not_resumed(im, answer.status());
    if (gone || sends_mirror(im.state)) co_return;
    // Two sizes of one number, each of a resize that the other copy has not heard of: the holder's counts, as newer.
    if (unanswered || (answer->size_generation == im.size_generation && answer->size != im.size)) {
      Status renumbered = co_await adopt_size(im, im.size, answer->size_generation.next());
      if (!renumbered) kLog.warning("size_not_adopted", {{"image", im.id}, {"error", renumbered}});
      continue;
    }
    // Requests under way may have been applied under the old loss id without counting as unflushed yet.
    const bool unflushed = im.unsynced.any() || im.active != 0;
    const bool differs = answer->loss_id != im.shared_loss && !TM_PLANTED("ignore the loss id");
    other = other || im.apart || im.facts.alone || (differs && unflushed);
    if (ahead == 0 && (other || im.noting_alone)) continue;
    const bool equal = !unreconciled_.contains(im.id);   // by now: nothing else may say so
    if (recovers && !other && (equal || im.noting_alone)) continue;
    if (says_level == 0) im.told_apart = session;
    im.facts.handshaken = true;
    im.voted = im.voted || im.facts.witnessed;
    im.facts.witnessed = false;   // the shared node has heard this host
    im.yield_unknown = false;
    im.terms_asked_at = {};
    im.terms = Generation(0);   // whoever got the vote under them meanwhile: new ones are asked for
    if (!other || im.facts.policy_none) im.shared_loss = answer->loss_id;
    im.resync_loss = answer->loss_id;
    if (differs && !im.local()) apply_again(im);
    if (im.broken) tell_behind(im);   // first: the flushes that are woken wait for it
    apply(im, other ? MirrorEvent::kResumedOther : MirrorEvent::kResumed);
    co_return;
  }
}

Task<void> Engine::not_resumed(Image& im, Status why) {
  if (why.code() == Code::kFenced) {
    if (im.yield_unknown) co_return tenure_ended(im);  // the yield had been taken
    co_return fence(im);
  }
  if (why.code() == Code::kNotFound) {
    kLog.warning("image_gone", {{"image", im.id}, {"error", why}});
    co_return fence(im);
  }
  if (why.code() == Code::kCorruption) shared_damaged(im, why);
  if (mirror_->up()) {
    kLog.warning("resume_refused", {{"image", im.id}, {"error", why}});
    co_await sleep(why.code() == Code::kUnavailable ? kAskAgain : kRefusedRetry);
    if (im.held && mirror_->up() && !sends_mirror(im.state)) tasks_.spawn(resume(im));
  }
}

// The durable note that the shared copy may lack acknowledged writes; then those that wait for it are answered.
void Engine::note_alone(Image& im) {
  if (im.noting_alone || im.resuming != 0) return;   // resume() or its answer goes on with those that wait
  im.noting_alone = true;
  journal_->note_copies(im.slot, own_loss(im), shared_loss(im), true, [this, &im](Status s) {
    im.noting_alone = false;
    std::vector<Op*> unknown, flushes;
    unknown.swap(im.unknown);
    flushes.swap(im.flushes);
    if (s) {
      im.facts.alone = true;
      ++counts_.alone;
      kLog.warning("going_alone", {{"image", im.id}, {"epoch", im.epoch}});
      // The link came back in the meantime: what was noted is to be undone by a resync.
      if (sends_mirror(im.state)) apply(im, MirrorEvent::kLossChanged);
    } else {
      kLog.warning("alone_not_noted", {{"image", im.id}, {"error", s}});
    }
    for (Op* op : unknown) {
      if (s) settle(op);
      else finish_op(op, s);
    }
    for (Op* op : flushes) {
      if (s) start_flush(op);
      else leave(op, s);
    }
    for (auto& go_on : std::exchange(im.noted, {})) go_on(s);
  });
}

// An answer on a standing link carries another loss id: a sync failed there, unflushed writes may be gone.
void Engine::check_loss(Image& im, LossId loss) {
  if (loss == im.shared_loss || im.state == MirrorState::kResyncing || TM_PLANTED("ignore the loss id")) return;
  kLog.warning("shared_copy_lost_writes", {{"image", im.id}, {"loss_id", loss}, {"before", im.shared_loss}});
  im.resync_loss = loss;
  apply(im, MirrorEvent::kLossChanged);
}

void Engine::fence(Image& im) {
  if (im.state == MirrorState::kFenced) return;
  kLog.warning("fenced", {{"image", im.id}, {"epoch", im.epoch}});
  im.held = false;
  im.attr.holder.clear();
  im.facts.copy_whole = false;
  fence_handles(im);
  apply(im, MirrorEvent::kFencedOff);
  answer_untold(im);
  if (invalidate_) invalidate_({im.inode, InodeNumber(0), ""});
  tasks_.spawn(after_fence(im));
}

// The shared node answers writes of this image with errors: its copy leaves the in-sync set as if the link were lost.
void Engine::refused(Image& im, const Status& why) {
  if (!sends_mirror(im.state)) return;
  kLog.warning("shared_copy_refuses", {{"image", im.id}, {"error", why}});
  if (why.code() == Code::kCorruption) shared_damaged(im, why);
  // Where the witness lets this host go on its guest need not hear of the refusal. The shared node knows of it.
  if (im.voted && mirror_->up()) im.facts.witnessed = true;
  apply(im, MirrorEvent::kRefused);
  env_.after(kRefusedRetry, [this, id = im.id] {
    Image* image = find(id);
    if (image != nullptr && image->held && mirror_->up() && !sends_mirror(image->state)) tasks_.spawn(resume(*image));
  });
}

// What is wrong with it is not known: its length may be right again, and what it holds not. Nothing there counts before
// it was compared with the own copy.
void Engine::shared_damaged(Image& im, const Status& why) {
  im.shared_fault = why.message();
  im.compare = true;
  im.judged_loss = LossId();   // under whichever loss id: what the only copy lacks now is looked at by the next resync
}

// All of it is dirty, and the note that the copies differ durable: a crash does not forget it.
Task<bool> Engine::mark_to_compare(Image& im) {
  if (!im.facts.alone) note_alone(im);
  while (im.noting_alone)   // how it ended, it logs
    static_cast<void>(co_await async<Status>([&](Callback<Status> done) { im.noted.push_back(std::move(done)); }));
  Status apart = co_await all_apart(im);
  if (!apart) kLog.warning("compare_waits", {{"image", im.id}, {"error", apart}});
  co_return apart.is_ok();
}

void Engine::when_linked(io::Duration limit, UniqueFunction<void()> fn) {
  tasks_.spawn(call_when_linked(limit, std::move(fn)));
}

Task<void> Engine::call_when_linked(io::Duration limit, UniqueFunction<void()> fn) {
  co_await wait_link(limit);
  fn();
}

Task<bool> Engine::wait_link(io::Duration limit) {
  if (mirror_->up()) co_return true;
  co_await async<bool>([&](Callback<bool> done) {
    auto once = std::make_shared<Callback<bool>>(std::move(done));  // shared by the timer and the link, first come
    auto fire = [once](bool up) {
      if (*once) std::exchange(*once, nullptr)(up);
    };
    const uint64_t number = ++link_waits_;
    link_waiters_.emplace(number, [fire] { fire(true); });
    env_.after(limit, [this, number, fire] {
      link_waiters_.erase(number);
      fire(false);
    });
  });
  co_return mirror_->up();
}

}  // namespace tidemark::fs
