// The life of a request, whatever it asks: from the pool through the gate to its place in the order, and the answer.
#include <algorithm>

#include "fs/engine.h"

namespace tidemark::fs {
namespace {
bool changes(OpKind kind) { return kind != OpKind::kRead && kind != OpKind::kFlush; }
}  // namespace

Op* Engine::take_op(Image& image, OpKind kind, io::IoMode mode) {
  Op* op = ops_.take();
  op->image = &image;
  op->kind = kind;
  op->mode = mode;
  op->begun = op->at_least = op->within = op->own = op->filled = op->sized = op->second = op->at_end = false;
  op->pending = 0;
  op->local = op->remote = Status::ok();
  op->coordinator = CoordinatorSequence(0);
  op->digest = 0;
  op->tag = op->handle = 0;
  return op;
}

void Engine::recycle(Op* op) {
  op->done = nullptr;
  op->data = {};
  op->out = {};
  ops_.give_back(op);
}

// True if the request may go on now; else it was parked or answered.
bool Engine::gate(Op* op) {
  Image& im = *op->image;
  if (!im.missing.empty()) return refuse(op, failed(im));
  if (im.recovering || im.yielding) {
    park(op);
    return false;
  }
  if (im.state == MirrorState::kFenced)
    return refuse(op, Status(Code::kFenced, "image " + im.id.to_string() + " was taken over by another host"));
  // Another host may have the tenure by now: not even a read is answered here.
  if (im.state == MirrorState::kWaiting && im.facts.asks_first && op->kind == OpKind::kRead) {
    park(op);
    return false;
  }
  // Of what was `none` the shared copy has nothing yet that could be read: it is copied there first.
  const bool copied_first = !im.held && op->kind == OpKind::kRead && !im.facts.policy_none && only_here(im);
  // A guest that was writing it must not be shown another host's line: whether it was taken is asked first.
  const bool asked_first = im.inherited_writer && op->kind == OpKind::kRead && !reads_alone(im);
  if (!changes(op->kind) && !copied_first && !asked_first) return true;
  if (!im.held) {
    park(op);
    want_tenure(im, true);
    return false;
  }
  if (im.state == MirrorState::kWaiting) {
    park(op);
    return false;
  }
  return true;
}

// Of an asynchronous write past the end, as the kernel knows the end, that failed it cuts the image to that end again.
// But it need not know what another host has made of it: what was there before that write is not to be cut.
void Engine::note_failed(const Op& op) {
  Handle* h = op.handle == 0 ? nullptr : handle_of({op.handle});
  if (h == nullptr) return;
  const bool held = op.image->held && op.epoch_before == op.image->epoch;   // throughout: nobody else changed it
  const bool followed = journal_->followed(op.image->id) || op.image->was_followed || h->inherited;
  if (held && !followed) return;                                            // nor before: the kernel knows its size
  const uint64_t keeps = held ? op.size_before : UINT64_MAX;
  h->keeps = std::min(h->keeps.value_or(UINT64_MAX), keeps);   // one write comes as several requests
}

bool Engine::refuse(Op* op, const Status& status) {
  note_failed(*op);
  Callback<Result<size_t>> done = std::move(op->done);
  recycle(op);
  done(status);
  return false;
}

void Engine::park(Op* op) { op->image->parked.push_back(op); }

void Engine::unpark(Image& image) {
  if (image.parked.empty()) return;
  std::vector<Op*> parked;
  parked.swap(image.parked);
  for (Op* op : parked) start_op(op);
}

void Engine::unpark_later(Image& image) {
  env_.after(kResendDelay, [this, id = image.id] {
    if (Image* im = find(id)) unpark(*im);
  });
}

void Engine::start_op(Op* op) {
  if (!gate(op)) return;
  Image& im = *op->image;
  ++im.active;
  if (op->kind == OpKind::kFlush) return start_flush(op);
  bool whole = op->kind == OpKind::kResize;
  op->hold.extent = whole ? Extent{0, UINT64_MAX} : op->extent;
  op->hold.exclusive = op->kind != OpKind::kRead;
  if (im.order.acquire(op->hold)) return in_order(op);
  op->hold.granted = [this, op] { in_order(op); };
}

void Engine::in_order(Op* op) {
  if (op->kind == OpKind::kRead) return read_in_order(op);
  prepare(op);
}

// Gives the place in the order up and the answer to the guest.
void Engine::leave(Op* op, Result<size_t> result) {
  Image& im = *op->image;
  if (!result) note_failed(*op);
  auto done = std::move(op->done);
  if (op->hold.held) im.order.release(op->hold);
  recycle(op);
  done(std::move(result));
  deactivate(im);
}

void Engine::deactivate(Image& im) {
  if (--im.active != 0 || im.idle.empty()) return;
  std::vector<UniqueFunction<void()>> waiting;
  waiting.swap(im.idle);
  for (auto& fn : waiting) fn();
}

// Nothing was changed for it yet: it gives its place up and waits before the gate.
void Engine::step_back(Op* op) {
  Image& im = *op->image;
  if (op->hold.held) im.order.release(op->hold);
  op->sized = false;
  park(op);
  deactivate(im);
}

void Engine::interrupt(uint64_t tag) {
  for (auto& [id, image] : images_) {
    auto& parked = image->parked;
    auto at = std::find_if(parked.begin(), parked.end(), [&](const Op* op) { return op->tag == tag; });
    if (at == parked.end()) continue;
    Op* op = *at;
    parked.erase(at);
    refuse(op, Status::from_errno(EINTR, "interrupted"));
    return;
  }
}

}  // namespace tidemark::fs
