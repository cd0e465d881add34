// A run that takes over from another one on the same mount: the guests' handles are still open, their requests wait.
//
// What the run before held it holds on with, under the same epoch, without asking first: this host's copy is whole, the
// shared node had confirmed the tenure in this mount's lifetime, and the one before might have gone on without the link
// just the same. Where it might not have (autonomy = pause), this one waits for the shared node or the witness; under
// which terms that may be asked, and whether it has answered already, is handed on. After a crash this host's copy
// decides for every dirty region (which is durably noted before anything is served), so that requests are served at
// once and the shared copy is made equal in the background, as after a time alone. Where any of that does not hold, the
// image recovers as after any crash, and its requests wait.
#include <algorithm>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

// Called after each change of what decides about it.
void Engine::remember(Image& im) {
  if (options_.survivor == nullptr) return;
  bool whole = im.held && im.local() && !im.behind && !im.yield_unknown;
  bool with_mirror = im.facts.copy_whole && im.facts.handshaken &&
                     (im.state == MirrorState::kMirrored || im.state == MirrorState::kLocalOnly ||
                      im.state == MirrorState::kResyncing || im.state == MirrorState::kWaiting);
  if (!whole || (!with_mirror && im.state != MirrorState::kNone)) return options_.survivor->let_go(im.id);
  options_.survivor->hold(
      {im.id, im.inode, im.epoch, im.parent, own_loss(im), shared_loss(im), im.state == MirrorState::kNone, im.terms,
       im.voted || im.facts.witnessed, im.facts.asks_first});
}

void Engine::take_over_handles() {
  size_t missed = 0;
  for (const SavedHandle& saved : options_.survivor->handles()) {
    auto attr = names_->get(saved.inode);
    if (!attr || attr->image != saved.image) {   // the cache is written without being waited for
      attr.emplace();
      attr->inode = saved.inode;
      attr->kind = wire::NodeKind::kImage;
      attr->image = saved.image;
      attr->mode = 0600;
      attr->nlink = 1;
    }
    auto image = image_of(*attr);
    if (!image) {
      ++missed;
      handles_.put_closed(saved.index);   // a guest has its number
      continue;
    }
    Image& im = **image;
    if (im.attr.size == 0 && im.local()) im.attr.size = im.copy->size();
    Handle handle{&im, saved.wrote, saved.fenced, true};
    if (saved.wrote) handle.keeps = UINT64_MAX;   // a write may have failed as that run ended
    handles_.put(saved.index, handle);
    ++im.handles;
    if (saved.wrote) ++im.wrote;
    im.inherited_writer = im.wrote != 0;
    im.foreign_end = options_.survivor->end_of(im.id);
    im.lost_writes = options_.survivor->lost(im.id);
  }
  for (uint32_t index : options_.survivor->closing()) handles_.put_closed(index);
  handles_.list_free();
  kLog.info("handles_taken_over", {{"handles", handles_.open_count()}, {"missed", missed}});
}

Task<bool> Engine::carry_on(ImageId id, const journal::DirtyImage* dirty) {
  std::vector<SavedTenure> tenures = options_.survivor->tenures();
  auto saved = std::find_if(tenures.begin(), tenures.end(), [&](const SavedTenure& t) { return t.image == id; });
  Image* found = find(id);
  if (found == nullptr && saved != tenures.end()) {
    auto attr = names_->get(saved->inode);
    auto made = attr && attr->image == id ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, "not known"));
    if (made) found = *made;
  }
  if (saved == tenures.end() || found == nullptr) co_return false;
  Image& im = *found;
  im.recovering = true;
  bool same_loss = saved->host_loss == host_loss() && (dirty == nullptr || dirty->host_loss_id == host_loss());
  bool same_tenure = dirty == nullptr || dirty->epoch == saved->epoch || dirty->epoch.value == 0;
  // What a tenure taken by force begins with may not be staged yet: it begins anew.
  if (!im.local() || im.behind || !same_loss || !same_tenure || standing_in(im)) {
    options_.survivor->let_go(id);
    co_return false;
  }
  im.size = im.copy->size();
  im.size_generation = im.copy->size_generation();
  attach(im, im.size);
  im.epoch = saved->epoch;
  im.parent = saved->parent;
  journal_->set_tenure(im.slot, im.epoch, im.parent);
  journal_->set_level(im.slot, false);
  const bool none = saved->mirror_none || im.attr.mirror == 0;
  im.facts.policy_none = none;
  im.facts.copy_whole = im.facts.handshaken = true;
  im.terms = saved->terms;
  im.voted = saved->witnessed;
  // Whatever the policy is by now: under its terms the shared node may have it fenced. Who had any asked first, or was
  // an older program, which did not keep more.
  const bool asked_first = saved->asks_first || saved->terms.value != 0 || saved->witnessed;
  im.facts.asks_first = im.facts.asks_first || asked_first;
  im.shared_loss = im.resync_loss = saved->shared_loss;
  im.unsynced.finish();   // by the run before; the next flush is to cover it
  im.stale.clear_all();
  Status noted;
  if (none) {
    noted = set_flag(im, kFlagHostOnly, true);
  } else if (host_only(im) || (dirty != nullptr && dirty->whole)) {
    noted = co_await all_apart(im);   // the dirty-region log does not have all of it
  } else {
    noted = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, own_loss(im), shared_loss(im), dirty != nullptr, std::move(done));
    });
  }
  if (!noted) {
    kLog.warning("not_carried_on", {{"image", im.id}, {"error", noted}});
    options_.survivor->let_go(id);
    co_return false;
  }
  im.facts.alone = !none && (dirty != nullptr || host_only(im));
  if (im.facts.alone) ++counts_.alone;
  im.attr.epoch = im.epoch;
  im.attr.holder = options_.config.node.name;
  im.attr.size = im.size;
  im.attr.size_generation = im.size_generation;
  im.mtime = dirty != nullptr ? env_.wall() : im.attr.mtime;
  im.mtime_pushed = dirty == nullptr;
  im.open_marked = im.wrote != 0;
  im.held = true;
  im.inherited_writer = false;
  if (!journal_->followed(im.id)) {        // nobody else has changed it
    for (Handle& h : handles_)
      if (h.image == &im) h.keeps.reset();
  }
  kLog.info("tenure_carried_on",
            {{"image", im.id}, {"epoch", im.epoch}, {"dirty_regions", dirty ? dirty->regions.size() : 0}});
  if (none) {
    apply(im, MirrorEvent::kGranted);
  } else {
    // The shared node may have given the tenure away since the run before was last heard of. Where that one had to ask
    // before it went on alone this one has to, too: not even a read is answered before the word of either.
    im.state = MirrorState::kWaiting;
    if (TM_PLANTED("a successor goes on without asking")) im.facts.witnessed = true;
    if (im.facts.asks_first && !im.facts.witnessed && !im.voted) tasks_.spawn(ask_unless_linked(im));
    else apply(im, MirrorEvent::kLinkLost);
    remember(im);
  }
  if (mirror_->up()) tasks_.spawn(resume(im));
  co_return true;
}

// A tenure held with nothing dirty.
Task<void> Engine::carry_on_clean(ImageId id) {
  bool carried = co_await carry_on(id, nullptr);
  Image* im = find(id);
  if (im == nullptr) co_return;
  im->recovering = false;
  if (!carried) kLog.info("tenure_not_carried_on", {{"image", id}});
  serve(*im);
}

// What is due of the run before has ended, as far as it could without asking. The writers that it had keep the image
// from now on, as they did before: the tenure is taken up for them at once, or they hear that it was taken.
void Engine::serve(Image& im) {
  if (im.inherited_writer) want_tenure(im, true);
  unpark(im);
  if (im.recall_wanted) try_yield(im);
}

void Engine::hand_over(io::Duration timeout, Done done) {
  stopping_ = true;
  tasks_.spawn(hand_over_task(timeout, std::move(done)));
}

Task<void> Engine::hand_over_task(io::Duration timeout, Done done) {
  const io::BootTime deadline = env_.now() + timeout;
  std::vector<Image*> held;
  for (auto& [id, image] : images_)
    if (image->held && !image->recovering) held.push_back(image.get());
  for (Image* im : held) {
    bool level = im->state == MirrorState::kMirrored || im->state == MirrorState::kFilling;
    Status flushed;
    if (level && mirror_->up() && env_.now() < deadline) flushed = co_await flush_both(*im);
    else if (im->state == MirrorState::kNone && im->local())
      flushed = co_await sync_copy(*im);
    // What is not flushed stays dirty, and the successor makes it equal.
    if (!flushed) kLog.info("handed_over_dirty", {{"image", im->id}, {"reason", flushed}});
    else if (im->state == MirrorState::kNone) journal_->note_durable(im->slot, journal_->last_finished());
  }
  done(co_await close_ends(deadline));
}

}  // namespace tidemark::fs
