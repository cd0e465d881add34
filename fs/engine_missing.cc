// What only this host has, on a copy that is not there: an image of `mirror = none`, or writes acknowledged alone
// before a crash, whose brick is not mounted, was emptied or replaced. Nothing else may stand in for it: every
// request of such an image gets EIO, `status` shows it as `failed` and says what to do, until the copy is back (looked
// for again and again), an operator gives it up, or the image is removed or restored from the replica.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

// The image's newest bytes are on this host's copy and on no other: its policy is or was `none`, and it is not behind.
bool Engine::only_here(const Image& im) const {
  auto at = flags_.find(im.id);
  return at != flags_.end() && (at->second & kFlagHostOnly) != 0 && (at->second & (kFlagBehind | kFlagPartial)) == 0;
}

// Read here without a tenure. Another host's old copy of such an image is nothing to read from.
bool Engine::reads_alone(const Image& im) const { return im.facts.policy_none && only_here(im); }

// A host that does not hold it now has its newest bytes: here is an older copy, or none.
void Engine::note_elsewhere(Image& im) {
  const std::string path = names_->path_of(im.inode);
  std::string text = "mirror = none: another host has it alone: start that one, with its bricks, and use the image "
                     "there; or restore it: tidemark replica restore " + path + " --at latest --force";
  if (im.missing != text)
    kLog.warning("only_copy_elsewhere", {{"image", im.id}, {"path", path}, {"effect", "EIO"}, {"reason", text}});
  im.missing = std::move(text);
  im.elsewhere = true;
  fail_parked(im, failed(im));
}

void Engine::note_missing(Image& im, const Status& why) {
  const bool none = im.attr.mirror == 0 || only_here(im);
  const std::string path = names_->path_of(im.inode);
  std::string text = none ? "its only copy, this host's, is not there" : "writes that only this host has are not there";
  text += " (" + why.message() + "): bring it back; or ";
  text += none ? "restore the image: tidemark replica restore " + path + " --at latest --force"
               : "give these writes up: tidemark brick replace DIRECTORY --accept-loss";
  if (im.missing == text) return;
  im.elsewhere = false;
  kLog.warning("only_copy_missing", {{"image", im.id}, {"path", path}, {"effect", "EIO"}, {"reason", text}});
  im.missing = std::move(text);
  fail_parked(im, failed(im));
}

Status Engine::failed(const Image& im) const {
  return Status(Code::kIoError, names_->path_of(im.inode) + " (" + im.id.to_string() + "): " + im.missing);
}

// After the copy was, or was not, opened: is it one that nothing can stand in for?
void Engine::look_for_missing(Image& im, const Status& opened) {
  if (im.local() || im.behind) return;
  // Of one that the shared node alone calls this host's, the tenure's map will say whether it has anything of it: it
  // may have been granted it just before a crash, and not have given it back.
  if (only_here(im) || alone_before_crash(im.id)) note_missing(im, opened);
}

// True: it is there (again).
bool Engine::find_missing(Image& im) {
  if (im.local()) return true;
  if (im.copy != nullptr && !im.copy->idle()) return false;
  if (!group_->look_at_bricks()) return false;
  auto opened = group_->open_image(im.id);
  if (!opened) return false;
  im.copy = std::move(*opened);
  im.broken = im.hung = false;
  im.missing.clear();
  kLog.info("only_copy_back", {{"image", im.id}});
  return true;
}

void Engine::try_missing_copies() {
  for (auto& [id, image] : images_) {
    Image& im = *image;
    if (im.missing.empty() || im.doomed || im.recovering || im.acquiring) continue;   // a recovery looks by itself
    if (im.elsewhere) {
      if (mirror_->up()) tasks_.spawn(check_attr(im));
    } else if (find_missing(im)) {
      unpark(im);
    }
  }
}

// The images whose brick this may be, and that have nothing to be filled from. Given up if `accept_loss`.
Status Engine::give_up_missing(bool accept_loss) {
  std::vector<Image*> lost;
  std::string names;
  for (auto& [id, image] : images_) {
    if (image->missing.empty() || !image->broken || image->doomed) continue;
    lost.push_back(image.get());
    names += (names.empty() ? "" : ", ") + names_->path_of(image->inode);
  }
  if (lost.empty()) return Status::ok();
  if (!accept_loss) {
    return Status(Code::kBusy, names + ": what only this host has is on the old brick: bring it back; --accept-loss "
                                       "gives that up: images of `mirror = none` whole, of others what this host "
                                       "acknowledged alone");
  }
  for (Image* im : lost) {
    kLog.warning("writes_given_up", {{"image", im->id}, {"path", names_->path_of(im->inode)}, {"by", "an operator"}});
    ++counts_.lost;
    if (im->attr.mirror == 0 || only_here(*im)) continue;   // there is no older copy: it stays failed
    TM_RETURN_IF_ERROR(set_flag(*im, kFlagBehind, true));   // its recovery goes on, with the shared copy
    im->behind = true;
    im->missing.clear();
  }
  return Status::ok();
}

}  // namespace tidemark::fs
