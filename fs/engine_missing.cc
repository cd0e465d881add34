// What only this host has, on a copy that is not there: an image of `mirror = none`, or writes acknowledged alone
// before a crash, whose brick is not mounted, was emptied or replaced. Nothing else may stand in for it: every
// request of such an image gets EIO, `status` shows it as `failed` and says what to do, until the copy is back (looked
// for again and again), an operator gives it up, or the image is removed or restored from the replica.
//
// So is a copy that was cut short while the shared one lacked something, also once it is long again. An operator may
// take it for what it holds (`image takeover --accept-loss` on this host), or give it up (the same on another).
#include <algorithm>
#include <nlohmann/json.hpp>

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
  std::string path = names_->path_of(im.inode);
  if (path.empty()) path = im.id.to_string();   // its name is being asked for anew
  std::string text = none ? "its only copy, this host's, is not there" : "writes that only this host has are not there";
  text += " (" + why.message() + "): bring it back; or ";
  if (was_cut(im.id))
    text += "take it as it is, once it is long again: tidemark image takeover " + path + " --accept-loss; or ";
  text += none || was_cut(im.id) ? "restore the image: tidemark replica restore " + path + " --at latest --force"
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
  const bool missing = only_here(im) || alone_before_crash(im.id);
  if (missing && opened.code() == Code::kCorruption) note_cut(im.id);
  if (missing) return note_missing(im, opened);
  if (!was_cut(im.id)) return;
  Status behind = set_flag(im, kFlagBehind, true);   // the shared copy has all of it
  if (!behind) kLog.error("behind_not_kept", {{"image", im.id}, {"error", behind}});
  im.behind = behind.is_ok();
}

// True: it is there (again).
bool Engine::find_missing(Image& im) {
  if (im.local()) return true;
  if (im.copy != nullptr && !im.copy->idle()) return false;
  if (was_cut(im.id) || !group_->look_at_bricks()) return false;
  im.copy.reset();   // one that failed
  auto opened = group_->open_image(im.id);
  if (opened.status().code() == Code::kCorruption) note_cut(im.id);
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
    if (image->missing.empty() || !image->broken || image->doomed || was_cut(id)) continue;
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

// To the shared node, so that no takeover goes without a word for what is lost. `epoch`: in which it was written.
Task<void> Engine::tell_missing(Image& im, Epoch epoch) {
  auto now = co_await attr_now(im.id);
  if (!now) co_return;
  // Of this host still, maybe under a newer epoch: a recovery that was cut short had been granted it anew.
  const bool held_here = now->holder == options_.config.node.name;
  using Answer = Result<wire::Resumed>;
  wire::Resume tell{im.id, held_here ? now->epoch : epoch, 0, Generation(0), 2};
  auto told = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Resumed>(wire::Type::kResume, tell, std::move(done));
  });
  const bool over = told.status().code() == Code::kFenced && !held_here;
  im.missing_told = told.is_ok() || over;
  // Taken by force meanwhile, by an operator's word: that line goes on.
  if (over && was_cut(im.id)) give_up_cut(im);
}

// What only a copy that was cut short had.
void Engine::give_up_cut(Image& im) {
  kLog.warning("writes_given_up", {{"image", im.id}, {"path", names_->path_of(im.inode)}, {"by", "a takeover"}});
  ++counts_.lost;
  if (Status s = set_flag(im, kFlagBehind, true); !s) {
    kLog.error("behind_not_kept", {{"image", im.id}, {"error", s}});
    return;
  }
  im.behind = true;
  im.missing.clear();
}

// True: the word was for copies here that were cut short, and is answered.
Task<bool> Engine::accept_cut_copies(std::string request, Callback<Result<std::string>>& done) {
  using nlohmann::json;
  const json wish = json::parse(request, nullptr, false);
  auto says = [&](const char* key) { return wish.is_object() && wish.contains(key) && wish[key] == true; };
  if (!says("accept_loss") || !wish.contains("images") || !wish["images"].is_array()) co_return false;
  std::vector<ImageId> cut;
  json report = {{"dry_run", says("dry_run")}, {"taken", false}, {"images", json::array()}};
  for (auto& [id, image] : images_) {
    const std::string path = "/" + names_->path_of(image->inode);
    auto names = [&](const json& name) { return name == path || name == path.substr(1) || name == id.to_string(); };
    if (std::ranges::none_of(wish["images"], names) || image->missing.empty() || !was_cut(id)) continue;
    cut.push_back(id);
    report["images"].push_back({{"path", path}, {"uuid", id.to_string()}, {"holder", options_.config.node.name},
                                {"epoch", image->attr.epoch.value}, {"connected", true}, {"away_s", nullptr},
                                {"level", false}, {"copy", image->missing}, {"tail", ""}, {"action", "accept"}});
  }
  if (cut.empty()) co_return false;
  Status status;
  if (cut.size() != wish["images"].size())
    status = Status(Code::kInvalidArgument, "name the images whose copy on this host was cut short by themselves");
  for (const ImageId& id : cut) {
    Status whole = group_->look_at(id);
    if (!whole && status)
      status = Status(Code::kBusy, "nothing was taken: " + whole.message() + ": bring the file back first");
  }
  for (const ImageId& id : cut) {
    if (!status || says("dry_run")) break;
    if (Image* im = find(id); im != nullptr) status = co_await accept_cut_copy(*im);
    else status = Status(Code::kNotFound, "image " + id.to_string() + " was removed meanwhile");
  }
  report["taken"] = !says("dry_run");
  if (status) done(report.dump(-1, ' ', false, json::error_handler_t::replace));
  else done(status);
  co_return true;
}

// All of it is dirty, and is shipped again, before it counts: what it holds by now no record tells.
Task<Status> Engine::accept_cut_copy(Image& im) {
  Pin pin(im);
  auto opened = group_->open_image(im.id);
  if (!opened) co_return opened.status();
  const uint64_t size = (*opened)->size();
  const Extent whole{0, size};
  Status marked = co_await all_dirty(im, size);
  if (marked && !was_cut(im.id)) marked = Status(Code::kBusy, "it was given up meanwhile");
  if (marked) marked = set_flag(im, kFlagCut, false);
  if (!marked) co_return marked;
  if (size != 0) {
    const journal::Ticket all = journal_->begin(im.slot, journal::RecordKind::kWrite, whole);
    journal_->finish(all, CoordinatorSequence(0), 0);
  }
  kLog.warning("cut_copy_accepted", {{"image", im.id}, {"path", names_->path_of(im.inode)}, {"by", "an operator"}});
  im.copy = std::move(*opened);
  im.broken = im.hung = false;
  im.accepted = true;
  im.missing.clear();
  if (!im.recovering) unpark(im);
  co_return Status::ok();
}

}  // namespace tidemark::fs
