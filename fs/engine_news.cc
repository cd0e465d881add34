// What other hosts have done to names and attributes: told by the shared node, and asked for where that went unheard.
#include "fs/engine.h"

namespace tidemark::fs {
namespace {
constexpr std::chrono::hours kCheckWait{1};   // nobody waits for it
constexpr std::chrono::milliseconds kSweepPace{5};
}  // namespace

void Engine::invalidated(const wire::InvalidateNotify& message) {
  if (!message.name.empty()) {
    const bool known_here = names_->lookup(message.parent, message.name).has_value();
    names_->erase_entry(message.parent, message.name);
    // Asked for again at once: should the shared node lose its catalogue, the names are what hosts remember.
    const bool asked = known_here || names_->get(message.inode);   // or the new name of what is known
    if (asked) tasks_.spawn(do_lookup(message.parent, message.name, [](Result<wire::Attr>) {}));
  }
  auto known = names_->get(message.inode);
  const bool cached = !known || may_be_cached(*known);
  Image* im = known && !known->image.is_nil() ? find(known->image) : nullptr;
  if (im != nullptr) tasks_.spawn(check_attr(*im));
  else if (known && !known->image.is_nil()) tasks_.spawn(check_name(std::move(*known)));
  // Of nothing that has a name: of its copy there.
  const bool copy = im != nullptr && im->held && message.parent.value == 0 && sends_mirror(im->state);
  if (copy && im->state != MirrorState::kResyncing) tasks_.spawn(ask_after_shared(*im));
  // Of an image whose attributes nobody believes there is nothing to take back; and the kernel would throw away an
  // answer that it is just given, and go on with the size from before.
  if (invalidate_ && cached) invalidate_(message);
}

// The attributes anew; an image that has lost its name is dropped here at its last close.
Task<void> Engine::check_attr(Image& im) {
  Pin pin(im);
  auto answer = co_await renew_attr(im);
  if (answer) {
    if (im.held) take_attr(im, *answer);
    policy_seen(im, answer->mirror);
    if (answer->nlink == 0) lost_name(im.id);
  } else if (answer.status().code() == Code::kNotFound) {
    lost_name(im.id);
  }
}

// Whether an image has lost its name, once the link is up: then its copy here goes, opened in this run or not. That a
// name is not there, or is another's, says nothing: it may have been renamed.
Task<void> Engine::check_name(wire::Attr image) {
  auto now = co_await ask_attr(image.inode, image.image, kCheckWait);
  if (now) names_->put(*now);
  const bool gone = now ? now->nlink == 0 : now.status().code() == Code::kNotFound;
  if (!gone) co_return;
  const ImageId& id = image.image;
  if (find(id) != nullptr || group_->contains(id) || flags_.contains(id)) lost_name(id);
  else names_->erase(image.inode);
}

// Of an image that is not used here nobody asks, and what removed it may have gone unheard, in whichever run: its copy
// here would stay. So they are all asked after, one by one, once in each session.
Task<void> Engine::sweep_removed() {
  const uint64_t session = mirror_->hello().session;
  co_await sleep(kRetry);   // what is used comes first
  const std::vector<std::pair<ImageId, InodeNumber>> images = names_->all_images();
  for (const auto& [id, inode] : images) {
    if (!mirror_->up() || mirror_->hello().session != session || stopping_) co_return;   // the next one begins anew
    const Image* im = find(id);
    const bool used =
        im != nullptr && (im->held || im->handles != 0 || im->nameless || im->state == MirrorState::kFenced);
    if (used || unreconciled_.contains(id) || (!group_->contains(id) && !flags_.contains(id))) continue;
    auto known = names_->by_image(id);
    if (known) co_await check_name(std::move(*known));
    co_await sleep(kSweepPace);
  }
}

}  // namespace tidemark::fs
