// The copies of images as they lie on the bricks: opened, found damaged or cut short, closed. core.h shows them.
#include <algorithm>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.copies");
}  // namespace

Result<std::unique_ptr<image::ImageCopy>> Core::open_copy(Image& im) {
  if (im.record.has_copy == 0) {
    // Blocks that lie here all the same are those of a copy that was given up, or never got a write.
    Status swept = group_->remove(im.id);
    if (!swept && swept.code() != Code::kNotFound) return swept;
    return group_->create(im.id, im.attr->size, im.attr->size_generation);
  }
  auto copy = group_->open_image(im.id);
  note_copy(im, copy.status());
  if (copy) return copy;
  return im.copy_fault;   // it says what to do, too
}

// What is said of a copy whose blocks should be here: a warning when it changes, and a reason of the status.
void Core::note_copy(Image& im, const Status& found) {
  const Status before = std::exchange(im.copy_fault, found);
  if (found.code() == Code::kNotFound) {
    im.copy_fault = Status(Code::kCorruption, "its blocks are missing from storage group " + group_->name() +
                                                  ": bring the brick back, or restore the image from the replica");
  }
  if (found.code() == Code::kCorruption) {
    im.copy_fault = Status(Code::kCorruption,
                           found.message() + ": bring the file back; else copy the image to a new one on a host that "
                                             "goes on with it, or restore it from the replica");
  }
  if (found.code() == Code::kCorruption) note_cut(im);
  if (found && im.record.cut != 0) {
    im.copy_fault = Status(Code::kCorruption,
                           "it was cut short, and is long again, or was given up (mirror = none): what it holds counts "
                           "once its holder has compared all of it with a whole copy, or as it is (tidemark image "
                           "takeover --accept-loss)");
  }
  if (im.copy_fault.to_string() == before.to_string()) return;
  if (im.copy_fault) kLog.info("copy_found", {{"image", im.id}});
  else kLog.warning("copy_damaged", {{"image", im.id}, {"error", im.copy_fault}});
}

// An object was cut short while it was open. What is left of the copy serves until nobody uses it; then it is opened
// anew, which says whether the object was brought back.
void Core::copy_damaged(ImageId id, const Status& why) {
  if (auto it = images_.find(id); it != images_.end()) note_copy(*it->second, why);
}

// Its length alone does not show, once it is long again. Durable soon, and found again by a start before that; its
// holder is told, so that it makes the copies equal.
void Core::note_cut(Image& im) {
  im.mending = false;
  im.reopen = im.copy != nullptr;
  if (im.record.has_copy == 0 || std::exchange(im.record.cut, 1) != 0) return;
  im.record.outdated = 1;
  im.holder_ahead = Image::Ahead::kUntilResume;
  kv::WriteBatch batch;
  put_image(batch, im.id, im.record);
  commit(std::move(batch), [] {});
  tell_holder_to_ask(im.id);
}

// After its copy here.
void Core::tell_holder_to_ask(const ImageId& id) {
  auto it = images_.find(id);
  if (it == images_.end() || it->second->record.cut == 0 || it->second->attr->mirror == 0) return;
  const ImageRecord& record = it->second->record;
  Session* holder = record.tenure.holder.empty() ? nullptr : session_of(record.tenure.holder);
  if (holder == nullptr || holder->peers.empty()) return;   // told when it resumes
  holder->peers.front()->link->notify(wire::Type::kInvalidateNotify,
                                      wire::InvalidateNotify{record.inode, InodeNumber(0), ""});
}

// Whether it can be taken for what it holds, on an operator's word: nothing, of one that was given up.
Status Core::as_it_is(const Image& im) {
  return im.record.cut != 0 && im.record.has_copy != 0 ? group_->look_at(im.id) : Status::ok();
}

std::string Core::cut_text(const Image& im) {
  if (!im.copy_fault) return im.copy_fault.message();
  return "it was cut short, or given up (mirror = none), and its holder has not compared all of it since";
}

// A copy that was cut is for nobody but its holder, while that compares all of it. `by` as for ensure_copy().
Status Core::refuse_if_cut(const Image& im, const std::string& by) const {
  if (im.record.cut == 0 || by.empty() || (im.mending && by == im.record.tenure.holder)) return Status::ok();
  return Status(Code::kCorruption, label(im) + ": " + cut_text(im));
}

// `by`: the host that asks; empty: this node itself.
Status Core::ensure_copy(Image& im, const std::string& by) {
  TM_RETURN_IF_ERROR(refuse_if_hung(im));
  if (im.copy) return refuse_if_cut(im, by);
  auto copy = open_copy(im);
  if (!copy) return copy.status().with_context(label(im));
  im.copy = std::move(*copy);
  ++copies_open_;
  adopt_copy_size(im);
  return refuse_if_cut(im, by);
}

// A crash or an error between the copy's resize and the catalogue's commit leaves the copy newer: it was not answered.
void Core::adopt_copy_size(Image& im) {
  if (im.copy) adopt_size(im, im.copy->size(), im.copy->size_generation());
}

void Core::adopt_size(Image& im, uint64_t size, Generation generation) {
  if (generation <= im.attr->size_generation) return;
  kLog.warning("size_adopted", {{"image", im.id}, {"size", size}, {"before", im.attr->size},
                                {"reason", "a resize of the copy had not been recorded"}});
  im.attr->size = size;
  im.attr->size_generation = generation;
  im.times_changed = true;
}

// By a request, or by what is none: the sync of a takeover, which may have been given up (takeover.cc).
bool Core::in_use(const Image& im) const {
  return im.ops != 0 || im.hung != 0 || (im.copy && !im.copy->idle());
}

// Of one that is not in use.
void Core::close_copy(Image& im) {
  if (im.copy) --copies_open_;
  im.copy.reset();
  im.reopen = false;
}

void Core::close_idle_copies() {
  std::vector<Image*> idle;
  for (auto& [id, image] : images_) {
    if (!image->copy || in_use(*image) || image->copy->size_in_doubt()) continue;
    if (!image->copy_fault || image->reopen) close_copy(*image);
    else idle.push_back(image.get());
  }
  if (copies_open_ <= limits::kImagesOpenMax) return;
  std::sort(idle.begin(), idle.end(), [](const Image* a, const Image* b) { return a->used_at < b->used_at; });
  for (Image* image : idle) {
    if (copies_open_ <= limits::kImagesOpenMax) return;
    close_copy(*image);
  }
}

}  // namespace tidemark::node
