// The mirror policy of an image. While it is `none` the image's data are on this host alone, and a durable flag says
// so: before the image counts as mirrored again all of it is compared with the shared copy and copied there, whatever
// crashes come between. Until then it is a host that went on alone, with every region dirty.
#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::string_view kMirrorName = "user.tidemark.mirror";
}  // namespace

bool Engine::has_flag(const ImageId& id, uint8_t flag) const {
  auto at = flags_.find(id);
  return at != flags_.end() && (at->second & flag) != 0;
}

bool Engine::host_only(const Image& im) const { return has_flag(im.id, kFlagHostOnly); }

bool Engine::asks_none(const wire::SetXattr& request) {
  return request.name == kMirrorName && request.remove == 0 && as_text(request.value) == "none";
}

// `none` gives the shared copy up: only where this host's has everything, and it is noted here first. Until that is
// answered, whatever becomes of the link, this copy stays in use (shared_whole).
Status Engine::before_policy(const wire::SetXattr& request) {
  if (!asks_none(request)) return Status::ok();
  auto attr = names_->get(request.inode);
  if (!attr || attr->mirror == 0 || attr->epoch.value == 0) return Status::ok();  // nobody ever wrote it
  Image* im = find(attr->image);
  // Not while the tenure is given back: whoever gets it next would have the image, and nothing of it.
  bool whole = im != nullptr && im->held && im->local() && im->state == MirrorState::kMirrored && !im->yielding &&
               !im->recovering;
  if (!whole)
    return Status(Code::kBusy,
                  "mirror = none keeps only this host's copy: write the image here, and wait until it is `mirrored`");
  return set_flag(*im, kFlagHostOnly, true);
}

// Refused, then the note goes. Not if it was taken before, and that answer got lost: after an outage a resync tells.
Task<void> Engine::after_policy(Image& im) {
  if (im.asking_none != 0 || !host_only(im) || !mirror_->up()) co_return;
  const Epoch epoch = im.epoch;
  auto now = co_await attr_of(im.inode, im.id);
  const bool noted_for_it =
      im.held && im.epoch == epoch && !im.recovering && !im.facts.policy_none && !im.facts.alone && im.asking_none == 0;
  if (!now || now->mirror == 0 || !noted_for_it) co_return;
  if (Status s = set_flag(im, kFlagHostOnly, false); !s)
    kLog.warning("flag_not_kept", {{"image", im.id}, {"error", s}});
}

// From now on this host's copy is the only one, and has everything: the shared node gave its own up only because
// nothing of this one was on record as behind.
Status Engine::note_only_copy(Image& im) {
  TM_RETURN_IF_ERROR(set_flag(im, kFlagHostOnly, true));
  TM_RETURN_IF_ERROR(set_flag(im, kFlagBehind | kFlagPartial, false));
  im.behind = im.refilling = false;
  im.stale.clear_all();
  return Status::ok();
}

// What of a held image's attributes is this host's to say.
void Engine::keep_own(wire::Attr& attr, const wire::Attr& own) {
  attr.size = own.size;
  attr.size_generation = own.size_generation;
  attr.holder = own.holder;
  attr.epoch = own.epoch;
}

void Engine::take_attr(Image& im, const wire::Attr& attr) {
  const wire::Attr before = std::exchange(im.attr, attr);
  if (im.held) keep_own(im.attr, before);
  else im.facts.policy_none = attr.mirror == 0;
  // Nothing stood in for what another host has; now there is a copy to be filled from, or somebody to be asked.
  const bool held_there = !attr.holder.empty() && attr.holder != options_.config.node.name;
  if (im.elsewhere && (attr.mirror != 0 || held_there)) {
    im.elsewhere = false;
    im.missing.clear();
  }
}

// As it is now: the notification of a change may have been missed. Any other failure than a lost link meets what
// follows, too.
Task<Status> Engine::ask_policy(Image& im) {
  auto attr = co_await attr_of(im.inode, im.id);
  if (!attr) co_return attr.status().code() == Code::kUnavailable ? attr.status() : Status::ok();
  im.attr.mirror = attr->mirror;
  if (im.held) policy_seen(im, attr->mirror);
  else im.facts.policy_none = attr->mirror == 0;
  co_return Status::ok();
}

// Called with each new attribute of an image that this host holds.
void Engine::policy_seen(Image& im, uint8_t mirror) {
  if (!im.held || (mirror == 0) == im.facts.policy_none) return;
  kLog.info("mirror_policy", {{"image", im.id}, {"mirror", mirror == 0 ? "none" : "sync"}});
  if (mirror != 0) {
    if (!std::exchange(im.mirroring, true)) tasks_.spawn(mirror_again(im));
    return;
  }
  if (Status s = note_only_copy(im); !s) kLog.error("policy_not_kept", {{"image", im.id}, {"error", s}});
  im.facts.policy_none = true;
  if (!im.local()) {
    // It had just failed, and the shared node did not hear that in time. No request was answered without it since: what
    // was acknowledged is there, once it serves again, though a sync that failed may not have covered it.
    ++im.syncs_failed;
    note_missing(im, Status(Code::kIoError, "it failed as the shared copy was given up"));
  }
  apply(im, MirrorEvent::kGranted);
  for (Op* op : std::exchange(im.untold, {})) settle(op);
}

// Every region of an image of this size is durably dirty.
Task<Status> Engine::all_dirty(Image& im, uint64_t size) {
  attach(im, size);
  const Extent whole{0, size};
  if (size == 0) co_return Status::ok();
  co_return co_await async<Status>(
      [&](Callback<Status> done) { journal_->mark_dirty(im.slot, whole, std::move(done)); });
}

// And that the shared copy lacks writes is durably noted.
Task<Status> Engine::all_apart(Image& im) {
  journal_->set_level(im.slot, false);
  if (Status s = co_await all_dirty(im, im.size); !s) co_return s;
  co_return co_await async<Status>([&](Callback<Status> done) {
    journal_->note_copies(im.slot, own_loss(im), shared_loss(im), true, std::move(done));
  });
}

Task<void> Engine::mirror_again(Image& im) {
  Pin pin(im);
  auto wanted = [&] { return im.held && im.attr.mirror != 0 && im.facts.policy_none; };
  for (bool told = false; wanted(); told = true) {
    Status apart = failed(im);   // nothing is copied from what is not there
    if (im.missing.empty()) apart = co_await all_apart(im);
    if (apart.is_ok()) break;
    if (!told) kLog.warning("mirror_waits", {{"image", im.id}, {"error", apart}});
    co_await sleep(kRetry);
  }
  im.mirroring = false;
  if (!wanted()) co_return;
  im.facts.policy_none = false;
  im.facts.alone = true;
  im.compare = true;                  // the shared node takes nothing less of a copy that it had given up
  im.facts.copy_whole = im.local();
  im.state = MirrorState::kWaiting;   // as after a lost link: it may have to ask before it goes on alone
  apply(im, MirrorEvent::kLinkLost);
  if (mirror_->up()) co_await resume(im);
}

}  // namespace tidemark::fs
