// Read repair: what the own copy could not read was answered from the shared one, and is written anew, so that the
// device can put it elsewhere. Ordered with writes, and in the dirty-region log first: a crash may tear it.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint32_t kRepairsMax = 4;   // of an image at once; what is left out is repaired when it is read again
}  // namespace

void Engine::repair_read(Image& im, Extent extent) {
  bool level = im.held && im.attached && im.local() && shared_whole(im) && !im.yielding && !im.recovering;
  if (!level || im.repairing >= kRepairsMax) return;
  tasks_.spawn(repair_own(im, extent));
}

Task<void> Engine::repair_own(Image& im, Extent extent) {
  Pin pin(im);
  ++im.repairing;
  ++im.active;   // a tenure is not given back meanwhile
  constexpr uint64_t kGranule = limits::kOrderGranule;
  RangeLock::Hold hold;
  hold.extent.offset = extent.offset / kGranule * kGranule;
  hold.extent.length = (extent.end() + kGranule - 1) / kGranule * kGranule - hold.extent.offset;
  hold.exclusive = true;
  co_await lock(im, hold);
  Status status = Status(Code::kCancelled, "the copies are not level any more");
  auto stands = [&] { return im.held && im.local() && shared_whole(im) && !im.stale.stale(hold.extent); };
  const uint64_t end = im.local() ? std::min({hold.extent.end(), im.size, im.copy->size()}) : 0;
  if (stands() && hold.extent.offset < end) {
    Extent range{hold.extent.offset, end - hold.extent.offset};
    status = co_await async<Status>(
        [&](Callback<Status> done) { journal_->mark_dirty(im.slot, range, std::move(done)); });
    // Flushed when the image comes to rest. The mark may go before: what a crash tears then is unreadable, or right.
    if (status.is_ok()) im.unsynced.finish();
    // Widened to its blocks it may be longer than a request.
    for (uint64_t at = range.offset; status.is_ok() && at < range.end(); at += limits::kIoBytesMax) {
      const Extent piece{at, std::min<uint64_t>(limits::kIoBytesMax, range.end() - at)};
      co_await preserve(im, piece);   // first: it may last, and what the other copy loses meanwhile is here alone
      if (stands()) status = co_await copy_to_host(im, piece);
      else status = Status(Code::kCancelled, "the copies are not level any more");
    }
    bool own = im.own_failed;
    im.own_failed = false;
    if (!status && own && own_copy_failed(im, status))
      kLog.info("repair_failed", {{"image", im.id}, {"error", status}});
    if (status.is_ok()) {
      ++counts_.repaired_own;
      kLog.warning("block_repaired", {{"image", im.id}, {"offset", range.offset}, {"bytes", range.length}});
    }
  }
  im.order.release(hold);
  --im.repairing;
  deactivate(im);
}

}  // namespace tidemark::fs
