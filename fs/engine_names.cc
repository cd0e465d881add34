// Images in memory, handles, and the end of images that lost their name.
#include <algorithm>

#include "fs/engine.h"
#include "fs/scrubber.h"
#include "fs/survivor.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::seconds kInterruptAgain{1};
}  // namespace

Image* Engine::find(const ImageId& id) {
  if (id.is_nil()) return nullptr;
  auto at = images_.find(id);
  return at == images_.end() ? nullptr : at->second.get();
}

Result<Image*> Engine::image_of(const wire::Attr& attr) {
  if (attr.kind != wire::NodeKind::kImage || attr.image.is_nil()) return Status(Code::kInvalidArgument, "not an image");
  if (Image* im = find(attr.image)) {
    if (!im->held) take_attr(*im, attr);
    return im;
  }
  auto image = std::make_unique<Image>();
  image->id = attr.image;
  image->inode = attr.inode;
  image->attr = attr;
  image->size = attr.size;
  image->facts.policy_none = attr.mirror == 0;
  image->facts.asks_first = !options_.config.may_go_alone;
  image->recovering = unreconciled_.count(attr.image) != 0;
  auto flags = flags_.find(attr.image);
  if (flags != flags_.end()) image->behind = (flags->second & kFlagBehind) != 0;
  image->refilling = image->behind;   // what the run before wrote without it may not be staged yet
  using Opened = Result<std::unique_ptr<image::ImageCopy>>;
  const Status cut(Code::kCorruption, "its data object was cut short, whatever its length is now");
  Opened copy = was_cut(attr.image) ? Opened(cut) : group_->open_image(attr.image);
  if (copy) {
    image->copy = std::move(*copy);
  } else if (copy.status().code() != Code::kNotFound) {
    kLog.warning("local_copy_unusable", {{"image", attr.image}, {"error", copy.status()}});
    image->broken = true;
  }
  Image* out = image.get();
  images_[attr.image] = std::move(image);
  look_for_missing(*out, copy.status());
  return out;
}

void Engine::open_image(InodeNumber inode, Callback<Result<HandleId>> done, RequestId id) {
  if (id.again && options_.survivor != nullptr) {  // made before its answer was lost
    auto index = options_.survivor->opened_by(id.number, inode);
    if (index && handle_of({*index + 1u}) != nullptr) return done(HandleId{*index + 1u});
  }
  getattr(inode, [this, inode, id, done = std::move(done)](Result<wire::Attr> attr) mutable {
    if (!attr) return done(attr.status());
    auto image = image_of(*attr);
    if (!image) return done(image.status());
    auto taken = take_handle(**image);
    if (!taken) return done(taken.status());
    const uint32_t index = *taken;
    if (options_.survivor != nullptr) options_.survivor->opened({index, inode, (*image)->id, false}, id.number);
    done(HandleId{index + 1u});
  });
}

Result<uint32_t> Engine::take_handle(Image& im) {
  const bool room = handles_.has_free() || options_.survivor == nullptr || options_.survivor->has_room(handles_.size());
  if (!room) return Status::from_errno(ENFILE, "open");
  const uint32_t index = handles_.open(im);
  if (++im.handles == 1 && im.foreign_end) set_foreign_end(im, im.foreign_end);
  if (im.handles == 1 && im.lost_writes) set_lost_writes(im, true);
  return index;
}

// For a successor, too, as long as there are handles.
void Engine::set_foreign_end(Image& im, std::optional<uint64_t> end) {
  im.foreign_end = end;
  if (options_.survivor == nullptr) return;
  if (end && im.handles != 0) options_.survivor->keep_end(im.id, *end);
  else options_.survivor->forget_end(im.id);
}

// Again and again: what is under way when the time is over may have to wait once more.
void Engine::interrupt_after(io::Duration limit, uint64_t tag, std::shared_ptr<io::TimerId> timer) {
  *timer = env_.after(limit, [this, tag, timer] {
    interrupt_after(kInterruptAgain, tag, timer);   // first: an answer takes the timer back
    interrupt(tag);
  });
}

void Engine::peek(InodeNumber inode, uint64_t offset, MutableByteSpan out, io::Duration limit,
                  Callback<Result<size_t>> answer, uint64_t tag) {
  auto timer = std::make_shared<io::TimerId>();   // shared by the timer and the answer
  interrupt_after(limit, tag, timer);
  auto done = [this, timer, answer = std::move(answer)](Result<size_t> n) mutable {
    env_.cancel(*timer);
    answer(std::move(n));
  };
  getattr(inode, [this, offset, out, tag, done = std::move(done)](Result<wire::Attr> attr) mutable {
    if (!attr) return done(attr.status());
    auto image = image_of(*attr);
    if (!image) return done(image.status());
    auto taken = take_handle(**image);
    if (!taken) return done(taken.status());
    const HandleId handle{*taken + 1u};
    auto ended = [this, handle, done = std::move(done)](Result<size_t> n) mutable {
      release(handle);
      done(std::move(n));
    };
    read(handle, offset, out, io::IoMode::kQueued, std::move(ended), tag);
  });
}

bool Engine::may_be_cached(HandleId handle) const {
  const Handle* h = handles_.find(handle);
  return h != nullptr && may_be_cached(h->image->attr);
}

uint64_t Engine::size_of(HandleId handle) const {
  const Handle* h = handles_.find(handle);
  return h != nullptr ? h->image->size_now() : 0;
}

void Engine::release(HandleId handle, UniqueFunction<void()> answer) {
  if (Handle* h = handle_of(handle); h != nullptr) close_handle(*h);
  if (answer) answer();
  const auto index = handles_.free(handle);
  if (index && options_.survivor != nullptr) options_.survivor->closed(*index);
}

void Engine::close_handle(Handle& handle) {
  Image& im = *handle.image;
  bool wrote = handle.wrote;
  const uint32_t index = handles_.index_of(handle);
  handles_.close(index);
  if (options_.survivor != nullptr) options_.survivor->begin_close(index);
  if (--im.handles == 0 && im.foreign_end) set_foreign_end(im, {});   // who opens it anew asks for its size
  if (im.handles == 0 && im.lost_writes) set_lost_writes(im, true);
  if (wrote && --im.wrote == 0) last_writer_closed(im);
  drop_unused(im);
}

void Engine::note_wrote(Handle& handle) {
  if (handle.wrote) return;
  handle.wrote = true;
  ++handle.image->wrote;
  if (options_.survivor != nullptr) options_.survivor->wrote(handles_.index_of(handle));
}

void Engine::last_writer_closed(Image& im) {
  if (im.held && im.open_marked) {
    journal_->mark(mark_of(im, wire::MarkKind::kClose));
    im.open_marked = false;
  }
  if (im.held && !im.mtime_pushed && mirror_->up() && !im.nameless) tasks_.spawn(tell_times(im));
  if (im.recall_wanted) try_yield(im);
}

// ---- names that change -----------------------------------------------------------------------------

// Every answer of a change: the host's journal has the same event as the shared node's.
void Engine::changed(const wire::Changed& change) {
  take_mark(change.mark);
  for (const wire::Mark& other : change.others) take_mark(other);
}

void Engine::take_mark(const wire::Mark& mark) {
  journal_->mark(mark);
  bool vacated = mark.kind == wire::MarkKind::kUnlink || mark.kind == wire::MarkKind::kRename;
  if (vacated && mark.old_parent.value != 0) names_->erase_entry(mark.old_parent, mark.old_name);
  bool has_name = mark.kind == wire::MarkKind::kCreate || mark.kind == wire::MarkKind::kRename;
  if (has_name) names_->put_entry(mark.node.parent, mark.name, mark.node);
  else if (mark.kind != wire::MarkKind::kUnlink) names_->put(mark.node);
  Image* im = mark.node.image.is_nil() ? nullptr : find(mark.node.image);
  if (im != nullptr) {
    take_attr(*im, mark.node);
    policy_seen(*im, im->attr.mirror);
  }
  if (mark.replaced.is_nil()) return;
  // Whoever has it open sees it without a name.
  if (auto gone = names_->by_image(mark.replaced)) {
    gone->nlink = 0;
    gone->ctime = std::max(gone->ctime, mark.label);
    names_->put(*gone);
    if (Image* open = find(mark.replaced)) {
      open->attr.nlink = 0;
      open->attr.ctime = gone->ctime;
    }
  }
  lost_name(mark.replaced);
}

// ---- images without a name ------------------------------------------------------------------------

void Engine::lost_name(const ImageId& id) {
  Image* im = find(id);
  if (im == nullptr) {
    auto attr = names_->by_image(id);
    if (!attr) return;
    auto made = image_of(*attr);
    if (!made) return;
    im = *made;
  }
  if (im->nameless) return;
  im->nameless = true;
  drop_unused(*im);
}

// Also at each tick, of what a walk has kept.
void Engine::drop_unused(Image& im) {
  if (im.nameless && !im.in_use()) doom(im);
}

// Nothing uses it any more. The shared node may free its copy; the own one stays until all that was journaled of it
// is staged, since staging reads blocks from it.
void Engine::doom(Image& im) {
  if (im.doomed) return;
  im.doomed = true;
  if (Status s = set_flag(im, kFlagDoomed, true); !s) kLog.warning("doom_not_kept", {{"image", im.id}, {"error", s}});
  im.doomed_batch = journal_->usage().newest_closed.value + 1;
  kLog.info("image_dropped", {{"image", im.id}});
  scrubber_->forget(im.id);
  im.unsynced.clear();  // nobody can read it any more: nothing is left to make durable or equal
  tell_dropped(im);
}

void Engine::tell_dropped(Image& im) {
  if (!mirror_->up()) return;  // told when the link is back
  mirror_->send(wire::Type::kDrop, wire::encode(wire::Drop{im.id}), {}, [id = im.id](Result<wire::Answer> answer) {
    if (!answer && answer.status().code() != Code::kNotFound)
      kLog.info("drop_refused", {{"image", id}, {"error", answer.status()}});
  });
}

// The journal keeps account of it from here on; of one that it has already nothing changes.
void Engine::attach(Image& im, uint64_t size) {
  if (im.attached) return;
  im.slot = journal_->attach(im.id, size);
  im.attached = true;
}

void Engine::reap() {
  journal::Usage usage = journal_->usage();
  for (auto at = images_.begin(); at != images_.end();) {
    Image& im = *at->second;
    drop_unused(im);
    bool quiet = im.active == 0 && im.pins == 0 && im.parked.empty() && im.unknown.empty() && im.flushes.empty() &&
                 im.order.idle() && !im.acquiring && !im.yielding && !im.recovering && !im.fill_running &&
                 !im.resync_running && !im.noting_alone;
    // Degraded, no batch needs its blocks: what is lacked of it is nothing any more.
    bool staged = !im.attached || usage.shipping == journal::Shipping::kDegraded ||
                  (usage.closed_batches == 0 &&
                   (usage.newest_closed.value >= im.doomed_batch || usage.records_unstaged == 0));
    if (!im.doomed || im.in_use() || !quiet || !staged || (im.copy && !im.copy->idle())) {
      ++at;
      continue;
    }
    ImageId id = im.id;
    if (im.attached) journal_->detach(im.slot);
    journal_->forget(id);
    names_->erase(im.inode);
    Status off = set_flag(im, 0xff, false);
    at = images_.erase(at);
    Status removed = group_->remove(id);   // a copy that was not opened lies there, too
    if (!removed && removed.code() != Code::kNotFound)
      kLog.warning("blocks_not_freed", {{"image", id}, {"error", removed}});
    if (!off) kLog.warning("flag_not_cleared", {{"image", id}, {"error", off}});
    kLog.info("image_removed", {{"image", id}});
  }
}

// ---- the end of an image ---------------------------------------------------------------------------

// A read goes past the end that is known here.
Task<void> Engine::learn_size(Op* op) {
  Image& im = *op->image;
  Status asked(Code::kUnavailable, "its tenure is not confirmed");   // nor may it be asked then, as read_remote()
  if (!im.held || im.state != MirrorState::kWaiting) asked = co_await ask_size(im, op->extent.offset);
  if (!asked && asked.code() != Code::kUnavailable) co_return finish_read(op, std::move(asked));
  if (!asked) {
    step_back(op);
    if (mirror_->up()) unpark_later(im);
    co_return;
  }
  read_in_order(op);
}

// Zeros at the end of what was read: the shared node has nothing else beyond the end of an image that its holder has
// just made shorter. As far as it reaches by now.
Task<void> Engine::end_if_shorter(Op* op) {
  Image& im = *op->image;
  auto now = co_await renew_attr(im);
  if (!now && (!mirror_->up() || now.status().code() == Code::kUnavailable)) {
    step_back(op);
    if (mirror_->up()) unpark_later(im);
    co_return;
  }
  const uint64_t size = im.size_now();
  op->extent.length = op->extent.offset >= size ? 0 : std::min(op->extent.length, size - op->extent.offset);
  finish_read(op, Status::ok());
}

// ---- sparse operations ----------------------------------------------------------------------------

void Engine::fallocate(HandleId handle, Fallocate what, Extent extent, Done done, uint64_t tag) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return done(Status::from_errno(EBADF, "fallocate"));
  if (h->fenced) return done(Status::from_errno(EIO, "fallocate: the image was taken over by another host"));
  if (extent.length == 0 || extent.end() < extent.offset || extent.end() > limits::kImageBytesMax)
    return done(Status::from_errno(extent.length == 0 ? EINVAL : EFBIG, "fallocate"));
  note_wrote(*h);
  Image& im = *h->image;
  bool grows = what == Fallocate::kAllocate || what == Fallocate::kZero;
  OpKind kind = what == Fallocate::kPunch                                              ? OpKind::kDiscard
                : what == Fallocate::kAllocate || what == Fallocate::kAllocateKeepSize ? OpKind::kAllocate
                                                                                       : OpKind::kZero;
  Op* op = take_op(im, kind, io::IoMode::kQueued);
  op->tag = tag;
  op->extent = extent;
  op->done = [done = std::move(done)](Result<size_t> r) mutable { done(r ? Status::ok() : r.status()); };
  if (grows && (extent.end() > im.size_now() || !im.held)) return extend_then_write(op, extent.end());
  // Beyond the end there is nothing to free; storage reserved there would have no home in a layout bound to the size,
  // which is only known for certain once the request has its turn.
  op->within = !grows;
  start_op(op);
}

void Engine::seek(HandleId handle, uint64_t offset, bool data, Callback<Result<uint64_t>> done) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return done(Status::from_errno(EBADF, "lseek"));
  if (h->fenced) return done(Status::from_errno(EIO, "lseek: the image was taken over by another host"));
  const bool known = h->image->held || reads_alone(*h->image) || !h->image->missing.empty();
  if (known) return seek_in(*h->image, offset, data, std::move(done));
  tasks_.spawn(seek_elsewhere(*h->image, offset, data, std::move(done)));
}

// Whoever holds it may have made it longer, or have written into its holes: what is new there is neither the end nor a
// hole. Where that cannot be known everything may be data, and nothing is known of an end.
Task<void> Engine::seek_elsewhere(Image& im, uint64_t offset, bool data, Callback<Result<uint64_t>> done) {
  Pin pin(im);
  const Status asked = co_await ask_size(im, offset);
  const uint64_t size = im.size_now();
  if (asked || im.held || reads_alone(im)) co_return seek_in(im, offset, data, std::move(done));
  if (offset < size) co_return done(data ? offset : size);
  done(Status::from_errno(EIO, "lseek: " + asked.message()));
}

void Engine::seek_in(Image& im, uint64_t offset, bool data, Callback<Result<uint64_t>> done) {
  if (!im.missing.empty()) return done(failed(im));
  uint64_t size = im.size_now();
  if (im.held && lease_over(im)) {   // to whoever has it by now, as in seek_elsewhere()
    if (offset < size) return done(data ? offset : size);
    return done(Status::from_errno(EIO, "lseek: it is not known whether this host still holds the image"));
  }
  if (offset >= size) return done(Status::from_errno(ENXIO, "lseek"));
  // A copy that may lack acknowledged writes must not tell of holes where they are: everything may be data.
  bool unsure = im.recovering || (im.held ? !im.local() && !shared_whole(im) : !reads_alone(im) && only_here(im));
  if (unsure) return done(data ? offset : size);
  bool own = (im.held || reads_alone(im)) && im.local() && im.stale.none() && im.copy->size() == size;
  if (!own) return seek_remote(&im, offset, data, std::move(done));
  uint64_t at = offset;
  for (;;) {
    auto next = im.copy->next_data(at);
    if (!next) return done(next.status());
    if (data) {
      if (next->length == 0) return done(Status::from_errno(ENXIO, "lseek"));
      return done(next->offset);
    }
    if (next->length == 0 || next->offset > at) return done(std::min(at, size));
    at = next->end();
    if (at >= size) return done(size);
  }
}

void Engine::seek_remote(Image* im, uint64_t offset, bool data, Callback<Result<uint64_t>> done) {
  wire::Extents ask{im->id, offset, 4096};
  uint64_t size = im->size_now();
  mirror_->request<wire::ExtentList>(
      wire::Type::kExtents, ask,
      [this, im, offset, data, size, done = std::move(done)](Result<wire::ExtentList> answer) mutable {
        // Without an answer everything may be data: that is always allowed.
        if (!answer) return done(data ? offset : size);
        uint64_t at = offset;
        for (const Extent& e : answer->extents) {
          if (data) return done(std::max(e.offset, offset));
          if (e.offset > at) return done(at);
          at = e.end();
        }
        if (at >= size || answer->next_offset >= size) {
          if (data) return done(Status::from_errno(ENXIO, "lseek"));
          return done(std::min(at, size));
        }
        seek_remote(im, answer->next_offset, data, std::move(done));
      });
}

}  // namespace tidemark::fs
