// The way of a data request, once it is an Op (data_requests.cc): order, fence, marks, the copy, the answer.
// core.h shows it.
#include <algorithm>
#include <cstring>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.data");
constexpr uint8_t kFlagDurable = 1;        // Write::flags

bool changes_blocks(const Op& op) { return op.type != wire::Type::kZero || op.kind != kZeroAllocate; }
}  // namespace

// ---- order, fence, readiness --------------------------------------------------------------------

void Core::submit(Op* op) {
  Image& im = *op->image;
  if (op->exclusive) ++im.write_ops;
  bool resize = op->type == wire::Type::kResize || op->type == wire::Type::kResume;
  uint64_t begin = resize ? std::min(op->offset, im.attr->size) : op->offset;
  op->range = {begin, resize ? UINT64_MAX - begin : std::min(op->length, UINT64_MAX - begin)};
  op->ordered = true;
  if (im.order.admit(op)) run(op);
}

void Core::run(Op* op) {
  Image& im = *op->image;
  // Not begun before its session ended: never begun.
  if (op->session->ended || !failed_) {
    end_hash(op);
    return finish(op);
  }
  if (Status s = refuse_if_hung(im); !s) {
    end_hash(op);
    return fail(op, s);
  }
  if (op->type == wire::Type::kHash) return issue_hash(op);
  if (!op->exclusive) return issue_read(op);
  const bool over = im.fencing || !fence::may_write(im.record.tenure, op->session->host, op->epoch);
  if (over && !TM_PLANTED("ignore the epoch")) {
    fenced_total_.add();
    return fail(op, Status(Code::kFenced, label(im) + ": epoch " + std::to_string(op->epoch.value) + " of " +
                                              op->session->host + " is over; the newest is " +
                                              std::to_string(im.record.tenure.epoch.value)));
  }
  if (is_ready(im, *op)) issue(op);
  else prepare(op);
}

bool Core::is_ready(const Image& im, const Op& op) const {
  const bool counts = im.record.cut == 0 || im.mending;   // only its holder's requests come here
  return im.settled && im.copy && counts && im.coordinator < im.reserved_durable &&
         op.type != wire::Type::kResize && op.type != wire::Type::kResume && is_warm(im, {op.offset, op.length});
}

// Makes durable what must be so before this request changes a block.
void Core::prepare(Op* op) {
  Image& im = *op->image;
  bool resize = op->type == wire::Type::kResize || op->type == wire::Type::kResume;
  if (im.attr->mirror == 0 && !resize) {
    // Its holder has not heard yet, and sends a guest's write again when it has.
    const Status none = no_mirror(im);
    return fail(op, op->type == wire::Type::kRepair ? none : Status(Code::kUnavailable, none.message()));
  }
  if (resize && op->offset > limits::kImageBytesMax) {   // before the regions grow with it
    return fail(op, Status(Code::kInvalidArgument, label(im) + ": size over the limit"));
  }
  if (im.attr->mirror != 0) {
    if (Status s = ensure_copy(im, op->session->host); !s) return fail(op, s);
  }
  if (!resize && refuse_range(op)) return;
  cold_writes_total_.add();
  kv::WriteBatch batch;
  Extent stale{op->offset, op->length};
  if (resize) {
    // A grow adds zeros on every copy; a shrink changes what a later grow would show.
    const bool shrinks = op->offset < im.attr->size && !TM_PLANTED("forget a shrink");
    stale = shrinks ? Extent{op->offset, im.attr->size - op->offset} : Extent{};
    fit_regions(im, op->offset, batch);
  }
  if (!im.settled) {
    im.record.tenure = fence::step(im.record.tenure, fence::Event::first_write(op->session->host, op->epoch)).state;
    im.record.has_copy = im.copy ? 1 : im.record.has_copy;
    put_image(batch, im.id, im.record);
  }
  mark_behind(im, stale, batch);
  reserve(im, batch);
  op->committing = true;
  commit(std::move(batch), [this, op, stale, serial = im.warm_serial, reserved = im.record.reserved] {
    op->committing = false;
    Image& image = *op->image;
    image.reserved_durable = std::max(image.reserved_durable, reserved);
    // A map was handed out meanwhile, or the tenure moved: the marks must be made anew.
    if (image.warm_serial != serial || op->session->ended) return run(op);
    image.settled = true;
    set_warm(image, stale);
    issue(op);
  });
}

bool Core::is_warm(const Image& im, Extent range) const {
  if (range.length == 0) return true;
  uint64_t last = (range.end() - 1) / im.record.region_bytes;
  if (last / 64 >= im.warm.size()) return false;
  for (uint64_t r = range.offset / im.record.region_bytes; r <= last; ++r) {
    if ((im.warm[r / 64] >> r % 64 & 1) == 0) return false;
  }
  return true;
}

void Core::set_warm(Image& im, Extent range) {
  if (range.length == 0) return;
  uint64_t last = (range.end() - 1) / im.record.region_bytes;
  if (last / 64 >= im.warm.size()) im.warm.resize(last / 64 + 1);
  for (uint64_t r = range.offset / im.record.region_bytes; r <= last; ++r) im.warm[r / 64] |= uint64_t{1} << r % 64;
}

void Core::make_cold(Image& im) {
  im.warm.clear();
  ++im.warm_serial;
}

void Core::mark_behind(Image& im, Extent range, kv::WriteBatch& batch) {
  if (range.length == 0 || TM_PLANTED("forget which hosts are behind")) return;
  uint64_t last = (range.end() - 1) / im.record.region_bytes;
  for (auto& [host, map] : im.behind) {
    if (host == im.record.tenure.holder) continue;
    for (uint64_t r = range.offset / im.record.region_bytes; r <= last; ++r) {
      uint32_t region = static_cast<uint32_t>(r);
      if (map.mark(region)) put_behind(batch, im.id, host, region, map.cut());
    }
  }
}

void Core::reserve(Image& im, kv::WriteBatch& batch) {
  if (im.coordinator.value + limits::kCoordinatorReserve / 2 <= im.record.reserved.value) return;
  im.record.reserved = CoordinatorSequence(im.coordinator.value + limits::kCoordinatorReserve);
  put_image(batch, im.id, im.record);
}

void Core::fit_regions(Image& im, uint64_t size, kv::WriteBatch& batch) {
  uint32_t factor = 1;
  while (size / (im.record.region_bytes * factor) >= limits::kRegionsPerImageMax) factor *= 2;
  if (factor == 1) return;
  im.record.region_bytes *= factor;
  put_image(batch, im.id, im.record);
  for (auto& [host, map] : im.behind) {
    map.coarsen(factor);
    put_all_behind(batch, im.id, host, map);
  }
  make_cold(im);
}

// ---- the copy -----------------------------------------------------------------------------------

// True: the range is not within the image, and that was answered.
bool Core::refuse_range(Op* op) {
  const Image& im = *op->image;
  uint64_t size = im.copy->size();
  if (op->length != 0 && op->offset <= size && op->length <= size - op->offset) return false;
  fail(op, Status(Code::kInvalidArgument, label(im) + ": " + std::to_string(op->length) + " bytes at " +
                                              std::to_string(op->offset) + " are not within its " +
                                              std::to_string(size)));
  return true;
}

void Core::issue(Op* op) {
  Image& im = *op->image;
  if (op->type == wire::Type::kResize || op->type == wire::Type::kResume) return issue_resize(op);
  if (refuse_range(op)) return;
  if (changes_blocks(*op)) ++im.begun;
  Callback<Status> done = at_copy(op, [this, op](Status status) { applied(op, std::move(status)); });
  if (op->type == wire::Type::kRepair) {
    if (op->kind != 0) return im.copy->zero(op->offset, op->length, std::move(done));
    return im.copy->write(op->offset, op->payload.span(), op->mode, std::move(done));
  }
  op->coordinator = im.coordinator = im.coordinator.next();
  if (im.coordinator.value + limits::kCoordinatorReserve / 4 > im.reserved_durable.value && !im.reserving) {
    im.reserving = true;
    kv::WriteBatch batch;
    reserve(im, batch);
    commit(std::move(batch), [this, id = im.id, reserved = im.record.reserved] {
      auto it = images_.find(id);
      if (it == images_.end()) return;
      it->second->reserving = false;
      it->second->reserved_durable = std::max(it->second->reserved_durable, reserved);
    });
  }
  im.attr->mtime = env_.wall();
  im.attr->ctime = std::max(im.attr->ctime, im.attr->mtime);   // the holder's clock may be ahead
  im.times_changed = true;
  if (TM_PLANTED("acknowledge without applying") && im.coordinator.value % 64 == 0) return done(Status::ok());
  if (op->type == wire::Type::kWrite) return im.copy->write(op->offset, op->payload.span(), op->mode, std::move(done));
  if (op->kind == kZeroAllocate) return im.copy->allocate(op->offset, op->length, std::move(done));
  im.copy->zero(op->offset, op->length, std::move(done));
}

void Core::applied(Op* op, Status status) {
  Image& im = *op->image;
  if (changes_blocks(*op)) ++im.ended;
  if (!status) return fail(op, status.with_context(label(im)));
  note_applied(*op);
  if (TM_PLANTED("apply a write twice") && op->type == wire::Type::kWrite) {
    auto bytes = std::make_shared<Bytes>(op->payload.span().begin(), op->payload.span().end());   // with the callbacks
    env_.after(std::chrono::milliseconds(100), [this, self = self_, id = im.id, at = op->offset, bytes] {
      auto it = images_.find(id);
      if (*self == nullptr || it == images_.end() || !it->second->copy) return;
      it->second->copy->write(at, *bytes, io::IoMode::kQueued, [bytes](Status) {});
    });
  }
  writes_total_.add();
  write_bytes_total_.add(static_cast<double>(op->length));
  if (op->type == wire::Type::kWrite && (op->kind & kFlagDurable) != 0) return sync(op);
  answer_applied(op);
}

// What an earlier epoch had begun and a later one finds landing is not the later one's.
void Core::note_applied(const Op& op) {
  Image& im = *op.image;
  if (op.type == wire::Type::kRepair || op.epoch != im.record.tenure.epoch) return;
  im.last_applied = std::max(im.last_applied, op.sequence);
  if (im.holder_ahead == Image::Ahead::kUntilWrite) level_again(im);
}

void Core::answer_applied(Op* op) {
  if (op->type == wire::Type::kRepair) op->peer->link->respond(op->type, op->id, ByteSpan{});
  else op->peer->link->respond_applied(op->type, op->id, {op->coordinator, group_->loss_id()});
  finish(op);
}

void Core::issue_read(Op* op) {
  Image& im = *op->image;
  if (im.attr->mirror == 0) return fail(op, no_mirror(im));
  // Since it took its place in the order. The host asks again.
  if (may_be_old(im, *op))
    return fail(op, Status(Code::kUnavailable, label(im) + ": its holder was lost meanwhile: ask again"));
  uint64_t inside = 0;
  if (im.record.has_copy != 0 || im.copy) {
    if (Status s = ensure_copy(im, op->session->host); !s) return fail(op, s);
    uint64_t size = im.copy->size();
    inside = op->offset >= size ? 0 : std::min(op->length, size - op->offset);
  } else if (Status s = refuse_if_cut(im, op->session->host); !s) {   // given up: no zeros in its place
    return fail(op, s);
  }
  op->payload = pool_->take(op->length);
  if (inside < op->length) std::memset(op->payload.data() + inside, 0, op->length - inside);
  Callback<Status> done = at_copy(op, [this, op](Status status) {
    if (!status) return fail(op, status.with_context(label(*op->image)));
    reads_total_.add();
    read_bytes_total_.add(static_cast<double>(op->length));
    op->peer->link->respond(op->type, op->id, ByteSpan{}, op->payload.span());
    finish(op);
  });
  if (inside == 0) return done(Status::ok());
  im.copy->read(op->offset, op->payload.span().first(inside), op->mode, std::move(done));
}

void Core::issue_resize(Op* op) {
  Image& im = *op->image;
  wire::Attr& a = *im.attr;
  // Said again after a lost answer.
  if (op->size_generation == a.size_generation && op->offset == a.size) return resized(op, Status::ok());
  if (op->size_generation <= a.size_generation) {
    return fail(op, Status(Code::kInvalidArgument,
                           label(im) + ": size generation " + std::to_string(op->size_generation.value) +
                               " is not newer than " + std::to_string(a.size_generation.value)));
  }
  if (!im.copy) return resized(op, Status::ok());
  ++im.begun;
  im.copy->resize(op->offset, op->size_generation,
                  at_copy(op, [this, op](Status status) {
                    ++op->image->ended;
                    resized(op, std::move(status));
                  }));
}

void Core::resized(Op* op, Status status) {
  Image& im = *op->image;
  if (!failed_) return finish(op);
  if (!status) {
    adopt_copy_size(im);
    return fail(op, status.with_context(label(im)));
  }
  im.attr->size = op->offset;
  im.attr->size_generation = op->size_generation;
  im.attr->mtime = env_.wall();
  im.attr->ctime = std::max(im.attr->ctime, im.attr->mtime);
  if (op->type == wire::Type::kResize) {
    op->coordinator = im.coordinator = im.coordinator.next();
    note_applied(*op);
  }
  kv::WriteBatch batch;
  put_node(batch, **names_->find(im.record.inode));
  op->committing = true;
  commit(std::move(batch), [this, op] {
    op->committing = false;
    Image& image = *op->image;
    Result<const Node*> node = names_->find(image.record.inode);
    if (node) notify_others(op->session.get(), {image.record.inode, (*node)->attr.parent, (*node)->name});
    writes_total_.add();
    if (op->type == wire::Type::kResize) return answer_applied(op);
    respond_resumed(*op->peer, op->id, image);
    finish(op);
  });
}

// ---- flush --------------------------------------------------------------------------------------

// Flushes that come while one is under way share the next.
void Core::sync(Op* op) {
  Image& im = *op->image;
  if (im.syncing) {
    im.sync_waiting.push_back(op);
    return;
  }
  start_sync(im, {op});
}

// The number up to which every write given one is on the copy.
CoordinatorSequence Core::applied_up_to(const Image& im) const {
  uint64_t up_to = im.coordinator.value;
  if (im.write_ops == 0) return im.coordinator;
  for (const std::unique_ptr<Op>& op : all_ops_) {
    if (op->image == &im && op->exclusive && op->coordinator.value != 0)
      up_to = std::min(up_to, op->coordinator.value - 1);
  }
  return CoordinatorSequence(up_to);
}

void Core::start_sync(Image& im, std::vector<Op*> joined) {
  im.syncing = true;
  io::IoMode mode = ops_ == joined.size() ? io::IoMode::kInline : io::IoMode::kQueued;
  im.sync_joined = std::move(joined);
  auto done = [this, &im, covered = SyncMark{applied_up_to(im), im.ended}](Status s) { synced(im, covered, s); };
  if (TM_PLANTED("lose the flush of the shared copy")) return done(Status::ok());
  im.copy->sync(mode, std::move(done));
}

void Core::synced(Image& im, SyncMark covered, const Status& status) {
  std::vector<Op*> joined = std::exchange(im.sync_joined, {});
  if (joined.empty()) return hung_ended(im);   // given up; `syncing` is set until all has ended
  im.syncing = false;
  syncs_total_.add();
  if (status.is_ok()) im.synced = std::max(im.synced, covered.ended);
  if (!status) {
    if (begins_upon_lost(im)) note_in_doubt(im, true);
    sync_failures_total_.add();
    kLog.warning("sync_failed", {{"image", im.id}, {"error", status}, {"loss_id", group_->loss_id()}});
  }
  std::vector<Op*> next = std::exchange(im.sync_waiting, {});
  if (!next.empty()) start_sync(im, std::move(next));
  for (Op* op : joined) {
    if (!status) { fail(op, status.with_context(label(*op->image))); continue; }
    if (op->type == wire::Type::kWrite) { answer_applied(op); continue; }
    if (op->epoch == im.record.tenure.epoch) level_again(im);
    op->peer->link->respond(op->type, op->id, wire::Flushed{group_->loss_id(), covered.up_to});
    finish(op);
  }
}

// ---- the end ------------------------------------------------------------------------------------

void Core::fail(Op* op, const Status& status) {
  if (status.code() == Code::kIoError || status.code() == Code::kCorruption || status.code() == Code::kOutOfSpace) {
    kLog.warning("request_failed",
                 {{"type", wire::type_name(op->type)}, {"host", op->session->host}, {"error", status}});
  }
  if (leaves_holder_alone(*op, status)) return outdated_then(op, status);
  op->peer->link->respond_failure(op->type, op->id, status);
  finish(op);
}

void Core::finish(Op* op) {
  Image& im = *op->image;
  if (op->ordered) im.order.release(op, runnable_);
  --ops_;
  --im.ops;
  if (op->ordered && op->exclusive && --im.write_ops == 0) {
    for (auto& next : std::exchange(im.when_written, {})) env_.post(std::move(next));
  }
  if (op->exclusive) op->peer->payload_bytes -= std::min<uint64_t>(op->peer->payload_bytes, op->payload.size());
  else if (op->ordered && op->type == wire::Type::kRead) op->peer->read_bytes -= op->length;
  PeerPtr reader = op->type == wire::Type::kRead && !op->peer->held_reads.empty() ? op->peer : nullptr;
  SessionPtr session = std::move(op->session);
  if (op->hung) {   // its payload is kept, and it is used again, once the copy has answered
    op->image = &im;
    op->peer.reset();
  } else {
    *op = Op{};
    free_ops_.push_back(op);
  }
  if (--session->ops == 0 && session->ended) {
    for (auto& next : std::exchange(session->when_drained, {})) next();
  }
  if (im.ops == 0 && im.record.nameless != 0) {
    env_.post([this, self = self_, id = im.id] {
      if (*self == nullptr) return;
      auto it = images_.find(id);
      if (it != images_.end()) maybe_remove(*it->second);
    });
  }
  if (reader) pump_reads(*reader);
  run_released();
  maybe_stopped();
}

// One loop over what was let go, however long the chain: no recursion a request.
void Core::run_released() {
  if (running_) return;
  running_ = true;
  while (!runnable_.empty()) {
    Op* op = runnable_.front();
    runnable_.erase(runnable_.begin());
    run(op);
  }
  running_ = false;
}

}  // namespace tidemark::node
