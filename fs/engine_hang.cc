// A brick that hangs: an operation on the own copy has not ended within [storage] io_deadline.
//
// Where the shared copy has every acknowledged write, the own one leaves the in-sync set as if it had failed (durably,
// on both ends, before any answer), and everything that waits for it is given up at once: the guest's requests go on
// with the shared copy alone. Where it does not, they wait for the brick: no whole copy is left to serve.
//
// What was given up may still land, whenever the device comes back. It can harm nothing:
// - Its memory stays as it is until then. A request's own memory is put aside by its owner (MemoryKeeper), all else is
//   shared with the operation.
// - The blocks that it changes are of a copy that is stale everywhere, on record; nothing is read from there.
// - Nothing is written there either before it has landed: a copy is opened anew, and filled, only once it is idle(). So
//   it never lands upon a later write. For a run that is killed meanwhile the start waits (await_earlier_writes).
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

void Engine::copy_overdue(ImageId id) {
  Image* found = find(id);
  if (found == nullptr || found->copy == nullptr) return;
  // The other images on these bricks would find out one after another, each at the cost of its guest.
  const std::vector<Uuid>& bricks = found->copy->metadata().layout.bricks();
  std::vector<Image*> images;
  for (auto& [other, image] : images_) {
    if (image->copy == nullptr) continue;   // one that has failed by now counts: what hung before that is waited for
    const auto& theirs = image->copy->metadata().layout.bricks();
    if (std::find_first_of(theirs.begin(), theirs.end(), bricks.begin(), bricks.end()) != theirs.end())
      images.push_back(image.get());
  }
  const Status why(Code::kIoError, "the brick has not answered within " +
                                       std::to_string(options_.config.storage.io_deadline.count()) + " ms");
  for (Image* im : images) {
    if (!im->hung)
      kLog.warning("local_copy_hangs", {{"image", im->id}, {"shared_copy_serves", shared_whole(*im) ? 1 : 0}});
    im->hung = true;
    if (!shared_whole(*im)) continue;
    if (own_copy_failed(*im, why)) give_up_local(*im, why);
  }
}

void Engine::give_up_local(Image& im, const Status& why) {
  std::vector<std::shared_ptr<LocalWait>> waits;
  waits.swap(im.local_waits);
  for (auto& wait : waits)
    if (wait->done) std::exchange(wait->done, nullptr)(why);
  for (size_t i = 0; i < ops_.all().size(); ++i) {   // answers may make new ones
    Op* op = ops_.all()[i].get();
    if (op->image == &im && op->local_pending) give_up(op, why);
  }
}

void Engine::give_up(Op* op, const Status& why) {
  ByteSpan memory = op->kind == OpKind::kRead ? ByteSpan(op->out) : op->kind == OpKind::kWrite ? op->data : ByteSpan();
  const uint32_t number = op->local_number++;
  op->local_pending = false;
  ++counts_.hung;
  if (!memory.empty()) {
    TM_CHECK(memory_keeper_ != nullptr, "requests' memory has no keeper");
    given_up_[{op, number}] = memory;
    MutableByteSpan other = memory_keeper_->keep(memory);
    if (op->kind == OpKind::kRead) op->out = other.first(op->out.size());
  }
  if (op->kind == OpKind::kRead) return read_remote(op);
  op->local = why;
  answered(op);
}

// The operation on the own copy that `number` names has ended. True: it had been given up, the request is long gone.
bool Engine::landed(Op* op, uint32_t number) {
  if (op->local_number == number) {
    op->local_pending = false;
    return false;
  }
  auto at = given_up_.find({op, number});
  if (at == given_up_.end()) return true;
  ByteSpan memory = at->second;
  given_up_.erase(at);
  memory_keeper_->landed(memory);
  return true;
}

// An operation on the own copy, for control flow: ends with an error when it is given up. Its memory must be owned by
// the callback that `start` hands on.
Task<Status> Engine::on_copy(Image& im, UniqueFunction<void(Callback<Status>)>& start) {
  co_return co_await async<Status>([&](Callback<Status> done) {
    std::erase_if(im.local_waits, [](const auto& wait) { return !wait->done; });
    auto wait = std::make_shared<LocalWait>();   // shared by the image and the operation
    wait->done = std::move(done);
    im.local_waits.push_back(wait);
    start([wait](Status s) {
      if (wait->done) std::exchange(wait->done, nullptr)(std::move(s));
    });
  });
}

// For staging, whose memory is its own: read into some that outlives a hang.
void Engine::read_own_block(Image& im, Extent extent, MutableByteSpan out, Callback<Status> done) {
  std::erase_if(im.local_waits, [](const auto& wait) { return !wait->done; });
  auto wait = std::make_shared<LocalWait>();     // shared by the image and the operation
  auto buffer = std::make_shared<io::AlignedBuffer>(stage_buffers_.take(extent.length));   // shared likewise
  // What cannot be read here is read from the other copy, where that has it.
  wait->done = [this, &im, extent, out, done = std::move(done)](Status s) mutable {
    bool other = !s && im.held && mirror_->up() && shared_whole(im);
    if (other) return read_shared_block(im.id, extent, out, std::move(done));
    done(std::move(s));
  };
  im.local_waits.push_back(wait);
  MutableByteSpan memory = buffer->span().first(extent.length);
  im.copy->read(extent.offset, memory, io::IoMode::kQueued, [this, wait, buffer, out](Status s) {
    if (wait->done) {
      if (s) std::copy_n(buffer->data(), out.size(), out.data());
      std::exchange(wait->done, nullptr)(std::move(s));
    }
    stage_buffers_.give_back(std::move(*buffer));
  });
}

}  // namespace tidemark::fs
