// Flush: acknowledged when every write acknowledged before it is durable on every in-sync copy.
#include "fs/engine.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

void Engine::flush(HandleId handle, io::IoMode mode, Done done, uint64_t tag) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return done(Status::from_errno(EBADF, "flush"));
  if (h->fenced) return done(Status::from_errno(EIO, "flush: the image was taken over by another host"));
  Op* op = take_op(*h->image, OpKind::kFlush, mode);
  op->extent = {};
  op->tag = tag;
  op->done = [done = std::move(done)](Result<size_t> r) mutable { done(r ? Status::ok() : r.status()); };
  start_op(op);
}

// Entered with the gate passed; called again when what it waited for has changed.
void Engine::start_flush(Op* op) {
  Image& im = *op->image;
  if (im.state == MirrorState::kFenced) return leave(op, Status(Code::kFenced, "the tenure has moved"));
  if (im.lost_writes && !op->own) {
    set_lost_writes(im, false);
    return leave(op, Status(Code::kIoError, "the only copy of writes of image " + im.id.to_string() + " lost them"));
  }
  // Nothing of this host's is unflushed: a yield flushes, and a tenure ends with a yield.
  if (!im.held || !im.unsynced.any()) return leave(op, size_t(0));
  if (im.state == MirrorState::kNone && !im.local()) return leave(op, failed(im));
  bool resyncing_unknown = im.state == MirrorState::kResyncing && !im.facts.alone;
  if (im.state == MirrorState::kWaiting || resyncing_unknown) return im.flushes.push_back(op);
  if (im.local() && im.own_in_doubt()) {
    im.flushes.push_back(op);
    if (!im.mending_own) tasks_.spawn(mend_then_flush(im));
    return;
  }
  op->counter = journal_->last_finished();
  op->unsynced = im.unsynced.mark();
  op->local = op->remote = Status::ok();
  op->local_asked = im.local() && !TM_PLANTED("lose the flush of the own copy");
  op->remote_asked = im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling;
  op->pending = 1 + (op->local_asked ? 1 : 0) + (op->remote_asked ? 1 : 0);
  ++counts_.flushes;
  if (op->remote_asked) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, wire::Flush{im.id, im.epoch},
                                    [this, op](Result<wire::Flushed> r) {
                                      if (r)
                                        op->loss = r->loss_id;
                                      else
                                        op->remote = r.status();
                                      answered(op);
                                    });
    if (op->mode == io::IoMode::kInline) mirror_->flush();
  }
  if (op->local_asked) {
    op->local_pending = true;
    im.copy->sync(op->mode, [this, op, number = op->local_number](Status s) {
      if (landed(op, number)) return;
      op->local = std::move(s);
      answered(op);
    });
  }
  answered(op);
}

void Engine::settle_flush(Op* op) {
  Image& im = *op->image;
  if (op->local_asked && !op->local) {
    if (im.local()) kLog.warning("local_sync_failed", {{"image", im.id}, {"error", op->local}});
    // Not asked, or in a session that is gone: where the shared copy has all of it by now it is asked for all of it.
    const bool ask = (!op->remote_asked || op->remote.code() == Code::kUnavailable) && shared_whole(im);
    // Given up, or the copy failed for another request, or now: what serves decides, once the shared node has noted it.
    if (!im.local() || (ask && own_copy_failed(im, op->local))) {
      if (!im.telling) return start_flush(op);
      return im.flushes.push_back(op);
    }
    // What the own copy held since its last sync may be gone: it is behind, durably, before the answer.
    bool lost_there = op->loss != im.shared_loss;
    if (!op->remote_asked || !op->remote || lost_there || !own_copy_failed(im, op->local)) {
      if (op->remote_asked && op->remote && lost_there) check_loss(im, op->loss);
      return leave(op, op->local);
    }
    if (im.telling) {
      im.flushes.push_back(op);  // all over again once the shared node has noted it
      return;
    }
  }
  // Another flush of it failed meanwhile, and only that one heard so.
  if (op->local_asked && op->local && im.local() && im.own_in_doubt()) return start_flush(op);
  if (op->remote_asked && !op->remote) {
    if (op->remote.code() == Code::kFenced) {
      fence(im);
      return leave(op, op->remote);
    }
    if (op->remote.code() == Code::kUnavailable && sends_mirror(im.state)) {   // as in settle()
      env_.after(kResendDelay, [this, op] { start_flush(op); });
      return;
    }
    if (op->remote.code() != Code::kUnavailable) refused(im, op->remote);
    if (im.state == MirrorState::kFenced) return leave(op, op->remote);
    if (im.state == MirrorState::kNone) return start_flush(op);   // the own copy is the only one now
    if (im.state == MirrorState::kLocalOnly) {
      if (im.facts.alone) return leave(op, size_t(0));
      im.flushes.push_back(op);
      return note_alone(im);
    }
    return im.flushes.push_back(op);  // woken by the next change of state; then all over again
  }
  if (op->remote_asked && op->loss != im.shared_loss && !TM_PLANTED("ignore the loss id")) {
    // The shared node may have lost writes that this flush is to cover: not before they were copied again.
    check_loss(im, op->loss);
    return im.flushes.push_back(op);
  }
  if (!op->remote_asked && im.state == MirrorState::kLocalOnly && !im.facts.alone) {
    im.flushes.push_back(op);
    return note_alone(im);
  }
  // The shared copy counts again since it began.
  if (!op->remote_asked && im.state != MirrorState::kNone && !im.facts.alone) return start_flush(op);
  if (im.telling) return im.flushes.push_back(op);   // once the shared node has noted that the own copy is behind
  bool covered = op->remote_asked || im.state == MirrorState::kNone;
  if (op->remote_asked) im.shared_fault.clear();
  if (covered && sends_mirror(im.state) == op->remote_asked) {
    im.unsynced.cover(op->unsynced);
    journal_->note_durable(im.slot, op->counter);
  }
  leave(op, size_t(0));
}

// Images with writes that nobody flushes would stay dirty for ever: they are flushed when they come to rest.
void Engine::clean_idle_images() {
  for (auto& [id, image] : images_) {
    Image& im = *image;
    bool level =
        im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling || im.state == MirrorState::kNone;
    if (!im.held || !im.unsynced.any() || !level || im.yielding || im.recovering) continue;
    Op* op = take_op(im, OpKind::kFlush, io::IoMode::kQueued);
    op->extent = {};
    op->own = true;
    op->done = [](Result<size_t>) {};  // a failure shows in the image's state and is tried again at the next tick
    start_op(op);
  }
}

// What is wrong with the shared copy, if anything is: also where nothing of this host's is unflushed.
Task<void> Engine::ask_after_shared(Image& im) {
  Pin pin(im);
  using Answer = Result<wire::Flushed>;
  wire::Flush ask{im.id, im.epoch};
  auto flushed = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Flushed>(wire::Type::kFlush, ask, std::move(done));
  });
  if (!im.held || im.epoch != ask.epoch) co_return;
  if (flushed) co_return check_loss(im, flushed->loss_id);
  if (is_refusal(flushed.status())) refused(im, flushed.status());
}

}  // namespace tidemark::fs
