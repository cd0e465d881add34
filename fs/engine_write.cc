// The hot path: the way of a write once it has its place in the order (README.md draws it).
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");

bool journaled(OpKind kind) {
  return kind == OpKind::kWrite || kind == OpKind::kZero || kind == OpKind::kDiscard || kind == OpKind::kResize;
}

journal::RecordKind record_kind(OpKind kind) {
  switch (kind) {
    case OpKind::kZero: return journal::RecordKind::kZero;
    case OpKind::kDiscard: return journal::RecordKind::kDiscard;
    case OpKind::kResize: return journal::RecordKind::kResize;
    default: return journal::RecordKind::kWrite;
  }
}

bool clears(OpKind kind) { return kind == OpKind::kZero || kind == OpKind::kDiscard || kind == OpKind::kResize; }

bool covers(Extent range, uint64_t from, uint64_t to) { return range.offset <= from && range.end() >= to; }

// The bytes whose contents the request may change: what must be dirty, filled and preserved first.
Extent touched(const Op& op, uint64_t size) {
  if (op.kind != OpKind::kResize) return op.extent;
  uint64_t to = op.extent.offset;
  if (to < size) return {to, size - to};
  // A grow zero-fills the last granule only. Its region is dirty all the same: should this host crash before the record
  // is durable, the replica still learns of the new size.
  return {size, 1};
}
}  // namespace

// The first region, from that one on, that is to be filled before the request; UINT64_MAX: none is. Of one that is
// cleared as a whole nothing is worth copying: it is level once both copies have cleared it. (Of one that is cleared in
// part, blocks go to the replica as they read here.)
uint64_t Engine::to_fill(const Op& op, uint64_t from) const {
  const Image& im = *op.image;
  const Extent range = touched(op, im.size);
  if (!im.local() || im.stale.none() || range.length == 0) return UINT64_MAX;
  const uint64_t bytes = im.stale.region_bytes(), last = (range.end() - 1) / bytes;
  for (uint64_t r = std::max(from, range.offset / bytes); r <= last; ++r) {
    if (im.stale.region_stale(r) && !(clears(op.kind) && covers(range, r * bytes, std::min((r + 1) * bytes, im.size))))
      return r;
  }
  return UINT64_MAX;
}

// Where both copies have cleared what was stale they are level: a shared copy that loses it with its power gets it from
// here, as any write. Where the request failed, what it was to change counts as this host's: as the shared copy has it,
// unless that is another host's by now.
void Engine::settle_stale(const Op& op, bool done) {
  Image& im = *op.image;
  const Extent range = touched(op, im.size);
  if (im.stale.none() || range.length == 0 || !im.local()) return;
  if (!done && im.held) im.stale.note_unlike(range);
  const bool both = op.local_asked && op.local.is_ok() && op.remote_asked && op.remote.is_ok();
  const bool grows = op.kind == OpKind::kResize && op.extent.offset >= im.size;
  if (!done || !both || !clears(op.kind) || grows) return;
  const uint64_t bytes = im.stale.region_bytes();
  for (uint64_t r = range.offset / bytes; r <= (range.end() - 1) / bytes; ++r)
    if (covers(range, r * bytes, std::min((r + 1) * bytes, im.size))) im.stale.clear(r);
}

// An earlier write that overlaps is still waiting for its regions: this one must not overtake it.
bool Engine::follows_filling(const Op& op) const {
  auto touches = [&](const Op* other) {
    if (op.kind == OpKind::kResize || other->kind == OpKind::kResize) return true;
    constexpr uint64_t kGranule = limits::kOrderGranule;
    return op.extent.offset / kGranule <= (other->extent.end() - 1) / kGranule &&
           other->extent.offset / kGranule <= (op.extent.end() - 1) / kGranule;
  };
  return std::any_of(op.image->filling.begin(), op.image->filling.end(), touches);
}

// Called again after each thing that had to be waited for; the place in the order is held throughout.
void Engine::prepare(Op* op) {
  Image& im = *op->image;
  if (im.state == MirrorState::kFenced || !im.held) return finish_op(op, Status(Code::kFenced, "the tenure has moved"));
  if (op->kind != OpKind::kResize && op->extent.length == 0) return finish_op(op, Status::ok());
  if (op->kind == OpKind::kResize && op->at_least && op->extent.offset <= im.size) return finish_op(op, Status::ok());
  const bool not_placed = op->at_end && im.foreign_end;
  if (op->kind != OpKind::kResize && (op->extent.end() > im.size || not_placed)) {
    if (!op->within) {  // a truncation came between, or only now the end is known: it grows the image (once more)
      im.order.release(op->hold);
      deactivate(im);
      return extend_then_write(op, op->extent.end());
    }
    op->extent.length = op->extent.offset >= im.size ? 0 : im.size - op->extent.offset;
    if (op->extent.length == 0) return finish_op(op, Status::ok());
  }
  Extent range = touched(*op, im.size);
  bool stale = to_fill(*op, 0) != UINT64_MAX;
  if (TM_PLANTED("write without filling its region") && stale) im.stale.clear_all();
  if (stale || (!im.filling.empty() && !op->filled && follows_filling(*op))) {
    im.order.release(op->hold);
    return tasks_.spawn(fill_before(op));
  }
  if (journaled(op->kind)) {
    if (range.length != 0 && !journal_->is_dirty(im.slot, range) && !TM_PLANTED("write before its region is dirty")) {
      journal_->mark_dirty(im.slot, range, [this, op](Status s) {
        if (!s) return finish_op(op, s.with_context("dirty-region log"));
        prepare(op);
      });
      return;
    }
    const bool preserves = !TM_PLANTED("overwrite a block of an unstaged cut");
    if (preserves && range.length != 0 && journal_->must_preserve(im.slot, range)) {
      journal_->preserve(im.slot, range, [this, op] { prepare(op); });
      return;
    }
    if (!im.open_marked) {
      im.open_marked = true;
      journal_->mark(mark_of(im, wire::MarkKind::kOpenWrite));
    }
    Extent recorded = op->kind == OpKind::kResize ? Extent{op->extent.offset, 0} : op->extent;
    op->ticket = journal_->begin(im.slot, record_kind(op->kind), recorded);
    op->begun = true;
  }
  if (op->kind == OpKind::kWrite) op->digest = digest64(op->data);
  if (op->kind == OpKind::kResize) {
    op->generation = im.size_generation.next();
    ++im.resizes;
  }
  issue(op);
}

void Engine::issue(Op* op) {
  Image& im = *op->image;
  op->local_asked = im.local();
  op->remote_asked =
      sends_mirror(im.state) || (im.state == MirrorState::kNone && op->kind == OpKind::kResize && mirror_->up());
  // One copy after the other, first the one that nobody can do without: what that one refuses has changed neither, and
  // the guest may go on with the size from before.
  op->second = op->kind == OpKind::kResize && op->local_asked && op->remote_asked;
  if (op->second) (shared_whole(im) ? op->local_asked : op->remote_asked) = false;
  op->pending = 1 + (op->local_asked ? 1 : 0) + (op->remote_asked ? 1 : 0);
  if (TM_PLANTED("host forgets to mirror a write") && op->kind == OpKind::kWrite && op->remote_asked) {
    op->remote_asked = false;
    --op->pending;
  } else if (op->remote_asked) issue_remote(op);
  else if (im.state != MirrorState::kNone) op->remote = Status(Code::kUnavailable, "no link to the shared node");
  if (op->local_asked) issue_local(op);
  answered(op);
}

void Engine::issue_remote(Op* op) {
  Image& im = *op->image;
  auto applied = [this, op](Result<wire::Applied> answer) {
    if (answer) {
      op->coordinator = answer->coordinator;
      op->remote = Status::ok();
      check_loss(*op->image, answer->loss_id);
    } else {
      mirror_->note_failure();
      op->remote = answer.status();
    }
    answered(op);
  };
  WriteSequence sequence = op->begun ? op->ticket.sequence : WriteSequence{journal_->incarnation(), Counter(0)};
  if (op->kind == OpKind::kWrite) {
    mirror_->write({im.id, im.epoch, sequence, op->extent.offset, 0}, op->data, op->digest, std::move(applied));
  } else if (op->kind == OpKind::kResize) {
    mirror_->request<wire::Applied>(wire::Type::kResize,
                                    wire::Resize{im.id, im.epoch, sequence, op->extent.offset, op->generation},
                                    std::move(applied));
  } else {
    uint8_t kind = op->kind == OpKind::kZero ? 0 : op->kind == OpKind::kDiscard ? 1 : 2;
    mirror_->request<wire::Applied>(wire::Type::kZero, wire::Zero{im.id, im.epoch, sequence, op->extent, kind},
                                    std::move(applied));
  }
  // At depth one the frame leaves before the local write blocks the loop.
  if (op->mode == io::IoMode::kInline) mirror_->flush();
}

void Engine::issue_local(Op* op) {
  image::ImageCopy& copy = *op->image->copy;
  op->local_pending = true;
  auto done = [this, op, number = op->local_number](Status status) {
    if (landed(op, number)) return;
    op->local = std::move(status);
    answered(op);
  };
  switch (op->kind) {
    case OpKind::kWrite: return copy.write(op->extent.offset, op->data, op->mode, std::move(done));
    case OpKind::kZero: return copy.zero(op->extent.offset, op->extent.length, std::move(done));
    case OpKind::kDiscard: return copy.discard(op->extent.offset, op->extent.length, std::move(done));
    case OpKind::kAllocate: return copy.allocate(op->extent.offset, op->extent.length, std::move(done));
    case OpKind::kResize: {
      // It may have been given to this copy by a resume, which heard of it from the other one.
      const bool has_it = copy.size_generation() == op->generation && copy.size() == op->extent.offset;
      return has_it ? done(Status::ok()) : copy.resize(op->extent.offset, op->generation, std::move(done));
    }
    default: TM_CHECK(false, "only what changes an image has a local part");
  }
}

void Engine::answered(Op* op) {
  if (--op->pending != 0) return;
  if (op->kind == OpKind::kFlush) return settle_flush(op);
  settle(op);
}

// The copy whose turn it is now. A host that is alone, or an image of `none`, has no other.
bool Engine::issue_second(Op* op) {
  Image& im = *op->image;
  const bool own = !op->local_asked;
  const bool only = im.state == MirrorState::kLocalOnly || im.state == MirrorState::kNone;
  const bool now = own ? im.local() && (op->remote.is_ok() || only)
                       : op->local.is_ok() && !op->remote_asked;
  if (!now) return false;
  op->second = false;
  op->pending = 1;
  (own ? op->local_asked : op->remote_asked) = true;
  if (own) issue_local(op);
  else issue_remote(op);
  return true;
}

// Every copy that was asked has answered or was given up: may the guest have its answer?
void Engine::settle(Op* op) {
  Image& im = *op->image;
  if (op->second && issue_second(op)) return;
  if (op->kind == OpKind::kAllocate) {  // nothing differs: contents stay
    if (!op->local && im.local()) return finish_op(op, op->local);
    if (is_refusal(op->remote)) return finish_op(op, op->remote);
  }
  if (op->local_asked && !op->local && im.local()) {
    // Its session is gone, and another one stands: the shared copy serves, and gets it below.
    const bool again = op->remote.code() == Code::kUnavailable && shared_whole(im);
    if (!again || !own_copy_failed(im, op->local)) return settle_local_failed(op);
  }
  // Of `none` the own copy is the only one, whatever was asked before: a size is told later, and what only the copy has
  // that was given up nobody has.
  if (im.state == MirrorState::kNone && op->remote.code() != Code::kFenced)
    return finish_op(op, op->local_asked ? op->local : failed(im));
  // As settle_local_failed(). While it is away the shared copy, the only one, may lose this: resume() sees.
  const bool untold = im.telling || (im.broken && im.state == MirrorState::kWaiting);
  if (op->remote.is_ok() && untold && im.held) {
    im.untold.push_back(op);
    return;
  }
  if (op->remote.is_ok()) return finish_op(op, Status::ok());
  if (op->remote.code() == Code::kFenced) {
    fence(im);
    return finish_op(op, op->remote);
  }
  if (im.state == MirrorState::kFenced) return finish_op(op, Status(Code::kFenced, "the tenure has moved"));
  if (sends_mirror(im.state)) {
    if (op->remote.code() == Code::kUnavailable) {  // the session it was sent on is gone, a new one stands
      auto again = [this, op] {
        op->pending = 2;
        op->remote_asked = true;
        if (!sends_mirror(op->image->state)) {
          op->pending = 1;
        } else {
          if (op->begun) journal_->take_up(op->ticket);   // under the number that it is sent with
          issue_remote(op);
        }
        answered(op);
      };
      env_.after(kResendDelay, std::move(again));
      return;
    }
    refused(im, op->remote);
    if (op->second && issue_second(op)) return;   // it is alone now
  }
  if (im.state == MirrorState::kLocalOnly) {
    if (im.facts.alone || TM_PLANTED("go on alone without a durable note")) return finish_op(op, Status::ok());
    im.unknown.push_back(op);
    return note_alone(im);
  }
  // Waiting: only the shared node can answer this. A refusal is the answer; a lost link is waited for.
  if (op->remote.code() != Code::kUnavailable) return finish_op(op, op->remote);
  im.unknown.push_back(op);
}

// Once every few seconds. What waits for the shared node's answer holds up no cut once the own copy has it: the replica
// may be the only other place for what this host's other images acknowledge. (A resize does: maybe no copy has it.)
void Engine::set_unanswered_aside() {
  std::vector<Op*> here;             // first: what is staged then may open images
  for (auto& [id, image] : images_) {
    for (Op* op : image->unknown) {
      const bool has_it = op->local_asked && op->local.is_ok() && image->local();
      if (op->begun && has_it && op->kind != OpKind::kResize) here.push_back(op);
    }
  }
  for (Op* op : here) journal_->set_aside(op->ticket);
}

// The own copy failed. Where the shared one took the write and has all others, it serves from now on.
void Engine::settle_local_failed(Op* op) {
  Image& im = *op->image;
  if (!op->remote_asked || !op->remote || !own_copy_failed(im, op->local)) {
    kLog.warning("local_copy_failed", {{"image", im.id}, {"error", op->local}, {"shared", op->remote}});
    return finish_op(op, op->local);
  }
  im.untold.push_back(op);  // answered once the shared node knows, too
  tell_behind(im);
}

void Engine::finish_op(Op* op, Status status) {
  Image& im = *op->image;
  bool resized = op->kind == OpKind::kResize && op->begun;
  if (resized) --im.resizes;
  // A resize that failed, but that the own copy has taken, is done: as a restart would find it.
  const bool took = resized && im.local() && im.copy->size_generation() == op->generation &&
                    im.copy->size() == op->extent.offset;
  if (op->begun) {
    settle_stale(*op, status.is_ok() || took);   // before it is staged
    // What the own copy has is recorded, and is all that counts, or nothing of it does: a later number would be one
    // that the shared node, and whoever takes the image from this host, has not heard of.
    const bool settled = im.state == MirrorState::kLocalOnly || im.state == MirrorState::kFenced;
    const bool over = op->ticket.aside && settled;
    if (op->ticket.aside && !over) journal_->take_up(op->ticket);
    if (over) journal_->let_go(op->ticket);
    else if (status.is_ok() || took) journal_->finish(op->ticket, op->coordinator, op->digest);
    else journal_->failed(op->ticket, op->coordinator);
    op->begun = false;
    im.unsynced.finish();
    changed_now(im);
    ++counts_.writes;
    counts_.write_bytes += op->extent.length;
    if (!status) copies_apart(im);
  }
  if (op->kind == OpKind::kAllocate && op->extent.length != 0 && status.is_ok()) changed_now(im);
  if (resized && !status && !took) {
    // The shared copy may have it under that number: never two sizes of one. What it refused it has not.
    const bool there = op->remote_asked && (op->remote.is_ok() || op->remote.code() == Code::kUnavailable);
    if (there) im.size_generation = op->generation.next();
    journal_->set_size(im.slot, im.size);
  }
  if (resized && (status.is_ok() || took)) {
    const bool cut = op->extent.offset < im.size;   // by this host: as its kernel knows
    if (cut && im.foreign_end) set_foreign_end(im, std::min(*im.foreign_end, op->extent.offset));
    im.size = op->extent.offset;
    im.size_generation = op->generation;
    journal_->set_size(im.slot, im.size);   // a resume meanwhile may have set another
    im.attr.size = im.size;
    im.attr.size_generation = im.size_generation;
    wire::Attr attr = names_->get(im.inode).value_or(im.attr);   // the rest may be another host's change
    if (attr.image != im.id) attr = im.attr;
    keep_own(attr, im.attr);
    attr.mirror = im.attr.mirror;
    names_->put(attr);
  }
  if (!status) {
    ++counts_.errors;
    return leave(op, std::move(status));
  }
  leave(op, size_t(op->extent.length));
}

void Engine::write(HandleId handle, uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Result<size_t>> done,
                   uint64_t tag, bool at_end) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return done(Status::from_errno(EBADF, "write"));
  if (h->fenced) return done(Status::from_errno(EIO, "write: the image was taken over by another host"));
  note_wrote(*h);
  Op* op = take_op(*h->image, OpKind::kWrite, mode);
  op->tag = tag;
  op->handle = handle.value;
  op->epoch_before = h->image->held ? h->image->epoch : Epoch(0);
  op->size_before = h->image->size_now();
  h->keeps.reset();
  op->extent = {offset, data.size()};
  op->at_end = at_end;
  op->data = data;
  op->done = std::move(done);
  const bool not_placed = at_end && h->image->foreign_end;
  const bool extends = op->extent.end() > h->image->size_now() || !h->image->held;
  if (extends || not_placed) return extend_then_write(op, op->extent.end());
  start_op(op);
}

// The kernel has sent it to where it takes the end to be. Below the end that another host has left, or beyond any, that
// is of a time before: it goes behind all others. Else the kernel knows what this host has written there since, and it
// means that place, where room may have been made for this very write before (by a run that died, or before an error).
uint64_t Engine::put_at_end(Op* op) {
  Image& im = *op->image;
  const uint64_t end = std::max(im.size, im.append_end);
  op->at_end = false;
  if (op->extent.offset < *im.foreign_end || op->extent.offset > end) {
    op->extent.offset = end;
    set_foreign_end(im, std::max(*im.foreign_end, op->extent.end()));
  }
  return op->extent.end();
}

// As the kernel's own file systems do: a set-group-ID bit without execution by the group means something else.
bool Engine::has_set_id(HandleId handle) const {
  const Handle* h = handles_.find(handle);
  if (h == nullptr) return false;
  const uint32_t mode = h->image->attr.mode;
  return (mode & 04000) != 0 || (mode & 02010) == 02010;
}

void Engine::take_set_id(HandleId handle, Done done) {
  const Image& im = *handle_of(handle)->image;
  SetAttr change;
  change.mask = wire::kSetMode | wire::kSetCtime;
  change.values.mode = im.attr.mode & ~((im.attr.mode & 010) != 0 ? 06000u : 04000u);
  change.values.ctime = env_.wall();
  setattr(im.inode, std::move(change), [done = std::move(done)](Result<wire::Attr> attr) mutable {
    done(attr ? Status::ok() : attr.status());
  });
}

// A write past the end grows the image first, as a request of its own. Without the tenure the size is only known once
// it was granted, so the resize looks again then.
void Engine::extend_then_write(Op* op, uint64_t new_size) {
  Image& im = *op->image;
  // Else the end is another host's to move before this is carried out. (No yield begins while a handle has written.)
  const bool waits = im.yielding || im.recovering || im.state == MirrorState::kWaiting;   // as the gate has it
  const bool settled = im.held && !waits;
  const bool at_end = op->at_end && im.foreign_end && settled;
  if (at_end) new_size = put_at_end(op);
  if (new_size > limits::kImageBytesMax) {
    refuse(op, Status::from_errno(EFBIG, "an image's size is limited"));
    return;
  }
  if (settled && new_size <= im.size) return start_op(op);
  if (!settled && im.state != MirrorState::kFenced) {
    // Parked as a zero-length allocation, which passes the gate once the tenure is held.
    Op* wait = take_op(im, OpKind::kAllocate, io::IoMode::kQueued);
    wait->extent = {0, 0};
    wait->tag = op->tag;
    wait->done = [this, op, new_size](Result<size_t> r) {
      if (r) return extend_then_write(op, new_size);
      refuse(op, r.status());
    };
    return start_op(wait);
  }
  if (!im.held) return start_op(op);
  Op* grow = take_op(im, OpKind::kResize, io::IoMode::kQueued);
  grow->extent = {new_size, 0};
  grow->tag = op->tag;
  grow->at_least = true;  // another may have grown it further by the time that this one is carried out
  if (at_end) {   // a large write comes in parts, maybe all at once
    im.append_end = std::max(im.append_end, new_size);
    ++im.appends;
  }
  grow->done = [this, op, at_end](Result<size_t> r) {
    if (at_end && --op->image->appends == 0) op->image->append_end = 0;
    if (r) return start_op(op);
    refuse(op, r.status());
  };
  start_op(grow);
}

}  // namespace tidemark::fs
