// A brick of the shared node that hangs: what was asked of a copy is answered with an error once it is overdue,
// and so is all else that comes for the image until the last of it has ended. The hosts go on alone meanwhile, and make
// the copies equal afterwards.
//
// What was given up may still land. Until it has, nothing is read from the copy and nothing is written to it, so that
// it never lands upon a later write; its payload is kept by its Op, which is not used again before.
#include <utility>

#include "shared/base/log.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.data");
}

Status Core::refuse_if_hung(const Image& im) const {
  if (im.hung == 0) return Status::ok();
  return Status(Code::kIoError,
                label(im) + ": a brick of the shared node hangs: see to its disk; what hangs there is waited for");
}

void Core::copy_answered(Op* op, Status status) {
  if (op->hung) {
    Image& im = *op->image;
    op->hung = false;
    if (op->session == nullptr) {   // else its answer waits for a commit, and finish() is still to come
      *op = Op{};
      free_ops_.push_back(op);
    }
    return hung_ended(im);
  }
  Callback<Status> then = std::exchange(op->at_copy, nullptr);
  then(std::move(status));
}

void Core::copy_overdue(ImageId id) {
  auto it = images_.find(id);
  if (it == images_.end()) return;
  Image& im = *it->second;
  const Status why(Code::kIoError, "a brick has not answered within " +
                                       std::to_string(options_.storage.io_deadline.count()) + " ms");
  for (auto& then : std::exchange(im.when_sure, {})) then(why);   // they ask again
  std::vector<Op*> ops;
  for (const auto& op : all_ops_)
    if (op->image == &im && op->at_copy) ops.push_back(op.get());
  std::vector<Op*> flushes;
  if (im.syncing) {
    flushes = std::exchange(im.sync_joined, {});
    if (!flushes.empty()) ++im.hung, ++hung_;
    for (Op* op : std::exchange(im.sync_waiting, {})) flushes.push_back(op);
  }
  if (ops.empty() && flushes.empty()) return;
  kLog.warning("copy_hangs", {{"image", im.id}, {"operations", ops.size()}, {"flushes", flushes.size()}});
  hung_total_.add(static_cast<double>(ops.size() + flushes.size()));
  im.hung += static_cast<uint32_t>(ops.size());
  hung_ += static_cast<uint32_t>(ops.size());
  for (Op* op : ops) {
    op->hung = true;
    std::exchange(op->at_copy, nullptr)(why);
  }
  for (Op* op : flushes) fail(op, why.with_context(label(im)));
}

void Core::hung_ended(Image& im) {
  --hung_;
  if (--im.hung == 0) {
    im.syncing = false;
    kLog.info("copy_answers", {{"image", im.id}});
  }
  maybe_stopped();
}

namespace {
// What changes a block for a guest; the contents stay where storage is only reserved, or a copy is repaired.
bool of_guest(const Op& op) {
  if (op.type == wire::Type::kZero) return op.kind != kZeroAllocate;
  return op.type == wire::Type::kWrite || op.type == wire::Type::kResize;
}
}  // namespace

// As the host decides (fs/engine_write.cc, engine_flush.cc): any refusal but these makes it go on without this copy.
bool Core::leaves_holder_alone(const Op& op, const Status& status) const {
  if (status.code() == Code::kFenced || status.code() == Code::kUnavailable || !failed_) return false;
  const bool counts = of_guest(op) || op.type == wire::Type::kFlush || op.type == wire::Type::kResume;
  return counts && op.image->attr->mirror != 0 && op.epoch == op.image->record.tenure.epoch;
}

// The holder acknowledges without this copy from the answer on: on record before it, should the holder never come back;
// and other hosts' reads wait until it has said that all is level again.
void Core::outdated_then(Op* op, const Status& status) {
  Image& im = *op->image;
  if (!im.refused_writes)
    kLog.warning("shared_copy_outdated", {{"image", im.id}, {"host", op->session->host}, {"reason", status}});
  // No flush sent before the holder has resumed says that all is level again. A resume that fails is itself the word.
  im.refused_writes = im.refused_writes || op->type != wire::Type::kResume;
  im.holder_ahead = Image::Ahead::kUntilResume;
  kv::WriteBatch batch;      // empty: its mark may be on its way, for another refusal
  if (std::exchange(im.record.outdated, 1) == 0) put_image(batch, im.id, im.record);
  op->committing = true;
  commit(std::move(batch), [this, op, status] {
    op->committing = false;
    op->peer->link->respond_failure(op->type, op->id, status);
    finish(op);
  });
}

}  // namespace tidemark::node
