// The way of a read: from the own copy where that is level and the tenure held, else from the shared one.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
// The shared node gives an image to another host ten seconds after its holder's session ended, and not before: this
// host stops earlier, by its own CLOCK_BOOTTIME, however long it stood still meanwhile.
constexpr std::chrono::seconds kLease{8};
}  // namespace

// Another host may have the tenure by now. A host that goes on alone without asking has no lease to lose. While the
// shared copy is known to lack something nobody gets it; but that a resync has ended the shared node hears first.
bool Engine::lease_over(const Image& im) const {
  if (!im.facts.asks_first || im.facts.policy_none) return false;
  if (im.state == MirrorState::kWaiting) return true;
  return sends_mirror(im.state) && mirror_->unconfirmed() > kLease;
}

void Engine::read(HandleId handle, uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Result<size_t>> done,
                  uint64_t tag) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return done(Status::from_errno(EBADF, "read"));
  if (h->fenced) return done(Status::from_errno(EIO, "read: the image was taken over by another host"));
  Op* op = take_op(*h->image, OpKind::kRead, mode);
  op->tag = tag;
  op->extent = {offset, out.size()};
  op->out = out;
  op->done = std::move(done);
  start_op(op);
}

// What the shared copy holds by now is another host's line, which whoever asked here must not see; and while it is not
// known whether the tenure stands, it may be.
bool Engine::lost_to_another(Op* op) {
  const Image& im = *op->image;
  if (im.state == MirrorState::kWaiting && im.facts.asks_first) {
    step_back(op);
    return true;
  }
  if (im.state != MirrorState::kFenced || TM_PLANTED("a fenced read is answered by the shared copy")) return false;
  finish_read(op, Status(Code::kFenced, "image " + im.id.to_string() + " was taken over by another host"));
  return true;
}

void Engine::read_in_order(Op* op) {
  Image& im = *op->image;
  if (lost_to_another(op)) return;
  bool own_data = (im.held && !im.yield_unknown) || reads_alone(im);
  if (!own_data) want_tenure(im, false);
  uint64_t size = im.size_now();
  // Whoever holds it may have made it longer, and has been answered already.
  if (!own_data && op->extent.end() > size && !std::exchange(op->sized, true)) return tasks_.spawn(learn_size(op));
  if (op->extent.offset >= size) {
    op->out = op->out.first(0);
    op->extent.length = 0;
    return finish_read(op, Status::ok());
  }
  op->extent.length = std::min<uint64_t>(op->extent.length, size - op->extent.offset);
  op->out = op->out.first(op->extent.length);
  bool level = !im.stale.stale(op->extent) || TM_PLANTED("read a stale local block");
  bool local = own_data && im.local() && level && op->extent.end() <= im.copy->size();
  if (!local) return read_remote(op);
  op->local_pending = true;
  im.copy->read_cached(op->extent.offset, op->out, op->mode, [this, op, number = op->local_number](Status s) {
    if (landed(op, number)) return;
    Image& image = *op->image;
    if (lost_to_another(op)) return;
    // Looked at when it is answered: it may have taken any time.
    bool holds = (image.held && !lease_over(image)) || reads_alone(image);
    if (s.is_ok() && holds) return finish_read(op, std::move(s));
    if (!s) kLog.warning("local_read_failed", {{"image", image.id}, {"offset", op->extent.offset}, {"error", s}});
    if (s.is_ok() && image.state == MirrorState::kWaiting) return step_back(op);   // to the gate, where reads wait
    if (s.is_ok() && image.state == MirrorState::kResyncing) {   // the link ends in a moment, or is found to stand
      step_back(op);
      return unpark_later(image);
    }
    // Never from a shared copy that lacks what was acknowledged without it.
    if (!s && (!mirror_->up() || !shared_whole(image))) return finish_read(op, std::move(s));
    if (!s && s.code() != Code::kCorruption) repair_read(image, op->extent);   // else copy_damaged() has it filled anew
    read_remote(op);
  });
}

void Engine::read_remote(Op* op) {
  Image& im = *op->image;
  // Nor may it be asked before the tenure was confirmed to stand: whoever has it by now would answer.
  if (im.held && im.state == MirrorState::kWaiting) return step_back(op);
  wire::Read ask{im.id, op->extent.offset, static_cast<uint32_t>(op->extent.length)};
  mirror_->send(wire::Type::kRead, wire::encode(ask), {}, [this, op](Result<wire::Answer> answer) {
    if (answer && answer->payload.size() == op->out.size()) {
      std::copy_n(answer->payload.data(), op->out.size(), op->out.data());
      op->image->shared_fault.clear();
      const bool others = !op->image->held && !reads_alone(*op->image);
      if (others && !op->sized && op->out.back() == 0) return tasks_.spawn(end_if_shorter(op));
      return finish_read(op, Status::ok());
    }
    if (answer) return finish_read(op, Status(Code::kCorruption, "read answer of another length"));
    mirror_->note_failure();
    if (answer.status().code() == Code::kCorruption) op->image->shared_fault = answer.status().message();
    if (answer.status().code() != Code::kUnavailable) return finish_read(op, answer.status());
    // The link is down: the request gives its place up and waits before the gate.
    Image& image = *op->image;
    step_back(op);
    if (mirror_->up()) unpark_later(image);
  });
  if (op->mode == io::IoMode::kInline) mirror_->flush();
}

void Engine::finish_read(Op* op, Status status) {
  ++counts_.reads;
  counts_.read_bytes += op->extent.length;
  if (!status) {
    ++counts_.errors;
    return leave(op, std::move(status));
  }
  leave(op, size_t(op->extent.length));
}

}  // namespace tidemark::fs
