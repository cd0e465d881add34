// The shipper's and the waiters' end of the journal: what a batch that is durable at the replica releases.
#include "journal/journal_impl.h"

namespace tidemark::journal {
namespace {
Status paused_status() {
  return Status(Code::kUnavailable, "shipping is paused: what was cut goes to the replica after "
                                    "`tidemark journal resume-shipping`");
}
}  // namespace

void JournalImpl::start_shipping(std::unique_ptr<net::HttpClient> client) {
  shipper_->start(std::move(client), options_.settings.ship_rate);
}

void JournalImpl::pause_shipping(bool paused) {
  paused_ = paused;
  shipper_->pause(paused);
  if (paused) fail_waiters(paused_status());
  kick_stager();
  cut_if_due();
}

void JournalImpl::fail_waiters(const Status& status) {
  for (auto& [batch, done] : std::exchange(waiters_, {})) done(status);
}

void JournalImpl::fail_waiters(BatchNumber batch, const Status& status) {
  auto [first, end] = waiters_.equal_range(batch);
  std::vector<Callback<Result<std::string>>> waiting;
  for (auto it = first; it != end; ++it) waiting.push_back(std::move(it->second));
  waiters_.erase(first, end);
  for (auto& done : waiting) done(status);
}

Status JournalImpl::no_point() const {
  return {Code::kCancelled, "no point is made: " + degraded_.why + "; the replica is brought level"};
}

void JournalImpl::when_shipped(BatchNumber batch, Callback<Result<std::string>> done) {
  auto receipt = receipts_.find(batch);
  if (receipt != receipts_.end()) return done(receipt->second);
  if (shipping_ != Shipping::kNormal && batch > last_staged_) {
    return done(no_point());
  }
  if (batch <= shipper_->replica().newest) return done(std::string(R"({"durable":true,"complete":true})"));
  if (paused_) return done(paused_status());
  if (!shipper_->running()) return done(Status(Code::kUnavailable, "no [replica] is configured: nothing is shipped"));
  bool known = batch <= last_staged_;
  for (const BatchPtr& b : batches_) known = known || b->number == batch;
  if (!known) return done(Status(Code::kCancelled, "the point of batch " + std::to_string(batch.value) + " was given up"));
  waiters_.emplace(batch, std::move(done));
}

void JournalImpl::forget_staged(const StagedBatch& batch, const ReplicaRow& row, Callback<Status> done) {
  pending_.erase_range(kBatchesTable, {}, batch_prefix(batch.number.next()));
  // Kept until now: had the batch been given up, they would have been needed.
  pending_.erase_range(kMarksTable, {}, batch_prefix(batch.number.next()));
  pending_.erase_range(kStagedTable, {}, batch_prefix(batch.number.next()));
  pending_.put(kMetaTable, as_bytes("replica"), encode_replica_row(row));
  commit_work(std::move(done));
}

void JournalImpl::ended_shipping(const StagedBatch& batch, const std::string& receipt) {
  for (const SlotBytes& b : staged_bytes_[batch.number]) slots_[b.slot].unshipped_bytes -= b.bytes;
  staged_bytes_.erase(batch.number);
  if (batch.kind == BatchKind::kPiece || batch.number == resync_end_) resync_sent_ += batch.bytes();
  if (batch.number == resync_end_) end_resync();
  receipts_[batch.number] = receipt;
  if (receipts_.size() > limits::kClosedBatchesMax) receipts_.erase(receipts_.begin());
  auto [first, end] = waiters_.equal_range(batch.number);
  std::vector<Callback<Result<std::string>>> ready;
  for (auto it = first; it != end; ++it) ready.push_back(std::move(it->second));
  waiters_.erase(first, end);
  for (auto& done : ready) done(receipt);
  kick_stager();
  cut_if_due();
}

// The first one after a time in which the replica had everything: nothing older than that would be lost.
void JournalImpl::note_change(Batch& batch) {
  const bool first = std::exchange(batch.empty, false);
  if (first && shipping_ == Shipping::kNormal && closed_count() == 0 && shipper_->idle()) level_until_ = env_.wall();
}

Usage JournalImpl::usage() const {
  Usage u;
  for (const BatchPtr& b : batches_) u.records_unstaged += b->records.size() + b->marks.size();
  if (store_ != nullptr) {
    Result<kv::Store::Usage> store = store_->usage();
    if (store) u.journal_bytes = store->file_bytes;
  }
  u.pending_bytes = pending_.bytes();
  u.spool_bytes = shipper_->queued_bytes();
  u.spool_batches = shipper_->queued();
  u.closed_batches = closed_count();
  if (settles_since_) u.unsettled_ns = (env_.now() - *settles_since_).count();
  u.preserved_bytes = preserved_bytes_;
  u.shipping_paused = paused_;
  u.ship_error = !shipper_->error().empty() ? shipper_->error() : stage_error_;
  if (!no_space_.empty()) u.ship_error = no_space_;
  if (!condition_) u.ship_error = condition_.to_string();
  u.disk_failure = disk_failure_;
  for (const auto& [image, w] : withheld_) u.withheld.push_back({image, w.why, lacks_.bytes(image)});
  u.newest_durable = shipper_->replica().newest;
  u.newest_durable_label = shipper_->replica().label;
  u.newest_closed = newest_closed_;
  bool all_shipped = open_batch().empty && closed_count() == 0 && shipper_->idle();
  // Before the first point is durable, what would be lost began with this run at the latest.
  const int64_t point = u.newest_durable_label.ns != 0 ? u.newest_durable_label.ns : opened_.ns;
  const int64_t since = std::max(point, level_until_.ns);
  if (!all_shipped) u.rpo_ns = std::max<int64_t>(0, env_.wall().ns - since);
  fill_usage(u);
  return u;
}

void JournalImpl::fill_usage(Usage& u) const {
  u.shipping = shipping_;
  u.degraded_why = degraded_.why;
  u.degraded_since = degraded_.since;
  u.limit_bytes = limit_bytes();
  u.ship_rate = options_.settings.ship_rate;
  u.limit_age_ns = std::chrono::nanoseconds(options_.settings.limit_age).count();
  u.points_given_up = points_given_up_;
  u.resyncs_ended = resyncs_ended_;
  u.names_given_up.assign(names_given_up_.begin(), names_given_up_.end());
  u.needs_full_resync = shipper_->lost();
  u.replica_empty = shipper_->lost_all();
  u.resync_sent_bytes = resync_sent_;
  bool on_its_way = resync_end_.value != 0;
  if (shipping_ != Shipping::kNormal || on_its_way) u.resync_left_bytes = lacks_.bytes() + shipper_->queued_bytes();
  if (shipper_->idle()) return;
  u.oldest_unshipped_ns = (env_.now() - shipper_->queue().front().staged_at).count();
  if (shipping_ != Shipping::kNormal || growth_ <= 0) return;
  double left = static_cast<double>(u.limit_bytes) - static_cast<double>(std::min(u.limit_bytes, u.spool_bytes));
  double by_bytes = left / growth_, by_age = static_cast<double>(u.limit_age_ns - u.oldest_unshipped_ns) / 1e9;
  u.full_in_ns = static_cast<int64_t>(std::max(0.0, std::min({by_bytes, by_age, 1e9})) * 1e9);
}

}  // namespace tidemark::journal
