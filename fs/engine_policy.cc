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

// `none` gives the shared copy up: only where this host's has everything, and it is noted here first.
Status Engine::before_policy(const wire::SetXattr& request) {
  if (request.name != kMirrorName || as_text(request.value) != "none") return Status::ok();
  auto attr = names_->get(request.inode);
  if (!attr || attr->mirror == 0 || attr->epoch.value == 0) return Status::ok();  // nobody ever wrote it
  Image* im = find(attr->image);
  // Not while the tenure is given back: whoever gets it next would have the image, and nothing of it.
  bool whole =
      im != nullptr && im->held && im->local() && im->state == MirrorState::kMirrored && !im->yielding;
  if (!whole)
    return Status(Code::kBusy,
                  "mirror = none keeps only this host's copy: write the image here, and wait until it is `mirrored`");
  return set_flag(*im, kFlagHostOnly, true);
}

void Engine::take_attr(Image& im, const wire::Attr& attr) {
  im.attr = attr;
  if (!im.held) im.facts.policy_none = attr.mirror == 0;
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
  wire::GetAttr which{im.inode};
  auto attr = co_await async<Result<wire::Attr>>([&](Callback<Result<wire::Attr>> done) {
    mirror_->request<wire::Attr>(wire::Type::kGetAttr, which, std::move(done));
  });
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
    tasks_.spawn(mirror_again(im));
    return;
  }
  if (Status s = set_flag(im, kFlagHostOnly, true); !s) kLog.error("policy_not_kept", {{"image", im.id}, {"error", s}});
  im.facts.policy_none = true;
  apply(im, MirrorEvent::kGranted);
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
  for (;;) {
    Status apart = co_await all_apart(im);
    if (!im.held || im.attr.mirror == 0 || !im.facts.policy_none) co_return;
    if (apart.is_ok()) break;
    kLog.warning("mirror_waits", {{"image", im.id}, {"error", apart}});
    co_await sleep(kRetry);
  }
  im.facts.policy_none = false;
  im.facts.alone = true;
  im.facts.copy_whole = im.local();
  im.state = MirrorState::kWaiting;   // as after a lost link: it may have to ask before it goes on alone
  apply(im, MirrorEvent::kLinkLost);
  if (mirror_->up()) co_await resume(im);
}

}  // namespace tidemark::fs
