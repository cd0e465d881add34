// Syncs of a copy's objects. Of syncs of a file that overlap an operating system tells one of an error, whichever it
// likes, and that one may be the last to answer. So a sync is good only if no other one failed that was under way at
// any time while it was: it is answered once those under way when it ended have ended, too.
#include "shared/image/copy_state.h"

#include <algorithm>
#include <utility>

namespace tidemark::image::detail {

void CopyState::sync(io::IoMode mode, Callback<Status> done) {
  if (Status s = put_back(); !s) return done(std::move(s));
  Op* op = take_op(std::move(done));
  for (uint32_t i = 0; i < objects_.size(); ++i) {
    Object& object = objects_[i];
    if (object.usable != UINT64_MAX) {   // what was acknowledged is gone from it
      ++op->pending;
      finish_piece(op, damaged(i));
      continue;
    }
    if (!object.dirty && object.syncs_in_flight == 0) continue;
    object.dirty = false;
    ++object.syncs_in_flight;
    ++op->pending;
    const SyncOf begun{op, i, mode, ++object.syncs_begun, object.syncs_failed};
    object.file->sync(mode, [this, begun](Status s) { synced(begun, std::move(s)); });
  }
  finish_piece(op, {});
}

void CopyState::synced(const SyncOf& sync, Status status) {
  Object& object = objects_[sync.stripe];
  --object.syncs_in_flight;
  if (!status) {
    object.dirty = true;
    ++object.syncs_failed;
    Status noted = group_.note_failed_sync(metadata_.id);
    status = status.with_context(object.path);
    if (!noted) status = status.with_context("and no brick could record it");
  }
  // Those that ended before, and waited for this one.
  std::vector<SyncOf> answered;
  for (size_t i = 0; i < object.syncs_ended.size();) {
    SyncOf& ended = object.syncs_ended[i];
    const bool last = ended.number >= sync.number && --ended.waits_for == 0;
    if (status.is_ok() && !last) {
      ++i;
      continue;
    }
    answered.push_back(ended);
    object.syncs_ended.erase(object.syncs_ended.begin() + static_cast<ptrdiff_t>(i));
  }
  SyncOf now = sync;
  now.number = object.syncs_begun;   // what is begun from here on does not matter to it
  now.waits_for = object.syncs_in_flight;
  if (status.is_ok() && now.waits_for != 0 && now.failed == object.syncs_failed) object.syncs_ended.push_back(now);
  else answer_sync(now, std::move(status));
  for (const SyncOf& ended : answered) answer_sync(ended, Status::ok());
}

void CopyState::answer_sync(const SyncOf& sync, Status status) {
  Object& object = objects_[sync.stripe];
  if (status.is_ok() && sync.failed != object.syncs_failed)
    status = Status(Code::kIoError, object.path + ": another sync of it failed meanwhile");
  if (!status) return finish_piece(sync.op, std::move(status));
  // The moment to look whether it is still whole. Resizes may come between: the least size is what it must have.
  // What is still being written may not be allocated yet: only if there is nothing does the answer hold all of it.
  const bool settled = ops_in_flight_ == 1;
  if (looks_in_flight_++ == 0) size_least_ = metadata_.size;
  auto looked = [this, op = sync.op, stripe = sync.stripe, settled,
                 written = object.written](Result<io::FileStat> found) {
    Object& now = objects_[stripe];
    --looks_in_flight_;
    ImageMetadata wanted = metadata_;
    wanted.size = size_least_;
    Status whole = check_object(wanted, stripe, now.path, found);
    if (whole && settled && now.written == written) now.reach = 0;   // nothing was written meanwhile either
    if (found && settled) {
      now.allocated = found->allocated;
      now.written -= std::min(now.written, written);
    }
    finish_piece(op, std::move(whole));
  };
  object.file->ask_stat(sync.mode, std::move(looked));
}

}  // namespace tidemark::image::detail
