// Zeroing and reserving storage: any length, so in steps of an object each, one after another. What takes long because
// it is long does not count as a hang of its brick; a step that hangs is found as soon as anything else that does.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shared/image/copy_state.h"

namespace tidemark::image::detail {
namespace {

constexpr uint64_t kStepBytes = 256u << 20;    // punched or allocated at once
constexpr uint64_t kFillBytes = 256u << 10;    // written as zeros where punching is refused

bool is_refused_punch(const Status& status) {
  return status.code() == Code::kUnsupported || status.sys_errno() == EOPNOTSUPP;
}

}  // namespace

struct CopyState::Steps {
  Op* whole = nullptr;         // of which this is a piece
  Piece rest;
  bool reserves = false;       // else clears
  io::AlignedBuffer zeros;     // once a punch was refused: what is written instead
  Status status;
  bool in_loop = false, ended = false;   // a loop, not a recursion, where steps complete inline

  uint64_t length_max() const { return zeros.size() != 0 ? kFillBytes : kStepBytes; }
  Piece take() {
    Piece step = rest;
    step.length = std::min(rest.length, length_max() - rest.object_offset % kGranule);
    rest.object_offset += step.length;
    rest.length -= step.length;
    return step;
  }
  void put_back(const Piece& step) {
    rest.object_offset = step.object_offset;
    rest.length += step.length;
  }
};

void CopyState::zero(uint64_t offset, uint64_t length, Callback<Status> done) {
  in_steps({offset, length}, false, std::move(done));
}

void CopyState::allocate(uint64_t offset, uint64_t length, Callback<Status> done) {
  in_steps({offset, length}, true, std::move(done));
}

void CopyState::in_steps(Extent range, bool reserves, Callback<Status> done) {
  if (Status s = check_range(range.offset, range.length); !s) return done(std::move(s));
  if (Status s = put_back(); !s) return done(std::move(s));
  Op* op = take_op(std::move(done));
  op->in_steps = true;
  for (uint32_t i = 0; i < objects_.size(); ++i) {
    const Piece piece = metadata_.layout.object_range(range, i);
    if (piece.length == 0) continue;
    ++op->pending;
    if (beyond_use(piece)) {
      finish_piece(op, damaged(i));
      continue;
    }
    auto steps = std::make_shared<Steps>();   // shared with the step under way
    steps->whole = op;
    steps->rest = piece;
    steps->reserves = reserves;
    next_steps(steps);
  }
  finish_piece(op, {});
}

void CopyState::next_steps(const std::shared_ptr<Steps>& steps) {
  steps->in_loop = true;
  while (steps->status && steps->rest.length != 0) {
    steps->ended = false;
    const Piece step = steps->take();
    Op* op = take_op([this, steps, step](Status s) {
      if (!steps->reserves && steps->zeros.size() == 0 && is_refused_punch(s)) {
        steps->zeros = io::AlignedBuffer(kFillBytes);
        std::memset(steps->zeros.data(), 0, steps->zeros.size());
        steps->put_back(step);
        s = Status::ok();
      }
      steps->status = std::move(s);
      steps->ended = true;
      if (!steps->in_loop) next_steps(steps);
    });
    begin_step(*steps, step, op);
    if (steps->ended) continue;
    steps->in_loop = false;
    return;
  }
  finish_piece(steps->whole, std::move(steps->status));
}

void CopyState::begin_step(Steps& steps, const Piece& step, Op* op) {
  if (beyond_use(step)) return finish_piece(op, damaged(step.stripe));
  if (steps.reserves) return reserve_step(step, op);
  if (steps.zeros.size() != 0) {
    write_piece(step, steps.zeros.span().first(step.length), io::IoMode::kQueued, op);
    return finish_piece(op, {});
  }
  objects_[step.stripe].file->punch(step.object_offset, step.length, [this, op, i = step.stripe](Status s) {
    finish_write(op, i, std::move(s));
  });
}

void CopyState::reserve_step(const Piece& step, Op* op) {
  // Whole granules, so that the object's size (a whole number of them) is never exceeded or missed.
  const uint64_t begin = round_down(step.object_offset), end = round_up(step.object_offset + step.length);
  objects_[step.stripe].written += end - begin;
  auto go = [this, op, step, begin, end] {
    note_written(step);
    objects_[step.stripe].file->allocate(
        begin, end - begin, [this, op, i = step.stripe](Status s) { finish_write(op, i, std::move(s)); });
  };
  if (reaches_end(step)) if_whole(step, io::IoMode::kQueued, op, go);
  else go();
}

}  // namespace tidemark::image::detail
