// The journal's own disk is full or fails, and the host goes on:
//
//   good --a commit fails--> (the mark "outdated" is taken, durably) --> blind --the disk takes everything again--> good
//
// Until the mark stands, whoever waits for a durable dirty region waits; none is acknowledged on a promise. Blind: marks
// are given from memory, the spool is given up for the map of regions (which makes room, often all that was needed), and
// what was to be committed stays pending. A full disk is tried again every second; after an I/O error the stores are lost
// (LMDB says so) and are opened anew where they stand (none is made: the disk may not be mounted), and everything in memory is
// written to them. The mark goes when both stores hold everything again. A crash before: every region of every image is dirty,
// all of it is compared, and the replica lacks it.
//
// The loops that send, stage and give the spool up go on under the mark as if their commits had come about: they make the
// room, and leave the stores idle. What they would have committed stays pending, in its order. A handover is told otherwise.
//
// Not given from memory: that writes are acknowledged without the shared copy (it decides the direction of recovery), and
// a tenure's start. Those wait for the disk.
#include <algorithm>

#include "journal/journal_impl.h"
#include "shared/base/log.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr io::Duration kReopenInterval = std::chrono::seconds(5);

}  // namespace

void JournalImpl::disk_failed(const Status& status) {
  if (disk_failure_.empty()) {
    kLog.warning("disk_failed", {{"status", status},
                                 {"effect", "guests go on; the journal is marked outdated, the spool is given up for dirty regions"}});
  }
  disk_failure_ = status.to_string();
  if (status.code() != Code::kOutOfSpace) {
    store_lost_ = true;
    reopen_at_ = env_.now() + kReopenInterval;
  }
  mark_outdated();
}

void JournalImpl::mark_outdated() {
  if (marking_outdated_ || (outdated_->stands() && drl_->blind())) return;
  marking_outdated_ = true;
  outdated_->put(true, [this, alive = std::weak_ptr<bool>(alive_)](const Status& status) {
    if (alive.expired()) return;
    marking_outdated_ = false;
    if (!status) {
      kLog.warning("mark_not_taken", {{"status", status}, {"effect", "writes to clean regions wait; tried again"}});
      return;                        // by the next tick
    }
    kLog.warning("marked_outdated", {{"effect", "should this host crash now, every region is compared"}});
    drl_->go_blind();
    if (shipping_ != Shipping::kDegraded) want_degrade("the journal's own disk takes nothing: " + disk_failure_);
    answer_covered();                // they go on, and come to that
  });
}

// Once a second.
void JournalImpl::try_recover_disk() {
  if (outdated_ == nullptr || marking_outdated_ || ending_outdated_) return;
  if (!disk_failure_.empty() && !(drl_->blind() && outdated_->stands())) return mark_outdated();
  // Whoever waits for a commit under way is to hear of it from the store of before.
  const bool idle = !commit_running_ && !drl_->committing();
  const bool given_up = shipping_ == Shipping::kDegraded && degrade_wanted_.empty();
  if (store_lost_ && env_.now() >= reopen_at_ && given_up && idle) {
    reopen_at_ = env_.now() + kReopenInterval;
    if (Status s = reopen_stores(); !s) {
      disk_failure_ = s.to_string();
      kLog.warning("disk_still_failed", {{"status", s}});
    }
    return;
  }
  if (!outdated_->stands() || store_lost_ || !unreconciled_.empty() || !degrade_wanted_.empty()) return;
  const bool pending = commit_running_ || !pending_.empty() || !no_space_.empty() || lacks_.changed();
  if (pending) return start_commit();
  if (!drl_->try_end_blind()) return;
  // From here on marks are durable as ever: what the mark covered is in the stores.
  ending_outdated_ = true;
  outdated_->put(false, [this, alive = std::weak_ptr<bool>(alive_)](const Status& status) {
    if (alive.expired()) return;
    ending_outdated_ = false;
    if (!status) return kLog.warning("mark_not_taken_back", {{"status", status}, {"effect", "tried again"}});
    if (!disk_failure_.empty()) kLog.info("disk_recovered", {{"effect", "the journal is complete again"}});
    disk_failure_.clear();
    kick_stager();
  });
}

// The stores of before are lost: closed, opened again where they stand, and given everything. If that fails there are none
// until the next try. None is made: a disk that is not mounted, or another one there, holds nothing of what was before.
Status JournalImpl::reopen_stores() {
  drl_->close_store();
  store_.reset();
  kv::StoreOptions journal_options{.tables = journal_table_names(), .create = false};
  kv::StoreOptions drl_options{.tables = drl_table_names(), .map_bytes_max = 8ull << 30, .create = false};
  TM_ASSIGN_OR_RETURN(auto store, env_.open_store(options_.directory + "/journal", journal_options));
  if (!is_this_runs(*store))
    return Status(Code::kUnavailable, options_.directory + ": another journal stands there: mount the disk that was there");
  TM_ASSIGN_OR_RETURN(auto drl_store, env_.open_store(options_.directory + "/drl", drl_options));
  TM_RETURN_IF_ERROR(outdated_->reopen_own());
  store_ = std::move(store);
  drl_->use_store(std::move(drl_store));
  store_lost_ = false;
  no_space_.clear();
  kv::WriteBatch all;
  put_everything(all);
  all.append(std::exchange(pending_, {}));
  pending_ = std::move(all);
  if (marks_unread_) take_over_marks(marks_of_staged());
  kLog.info("stores_reopened", {{"directory", options_.directory}});
  start_commit();
  if (!outdated_->stands()) mark_outdated();   // it stood on the disk of before alone
  return Status::ok();
}

// Its nonce is this run's, which was durable there before anything else.
bool JournalImpl::is_this_runs(kv::Store& store) const {
  const Result<Bytes> row = store.snapshot()->get(kMetaTable, as_bytes("incarnation"));
  if (!row) return false;
  Reader r(*row);
  r.id<Incarnation>();
  return r.uuid() == nonce_ && r.ok();
}

// What the last commits that succeeded left is on the disk; what failed is pending. Of the tables that this run writes all
// stands in memory while the journal is degraded.
void JournalImpl::put_everything(kv::WriteBatch& out) {
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
    Bytes value;
    Writer(value).uuid(slots_[slot].image);
    out.put(kSlotsTable, kv::KeyBuilder().u64(incarnation_.value).u32(slot), value);
    if (slots_[slot].attached) put_tenure(slot);
  }
  lacks_.put_all();
}

// Opened under the mark: nothing that the logs do not say can be relied on.
void JournalImpl::whole_is_dirty() {
  kLog.warning("opened_outdated", {{"images", known_tenures_.size()}, {"effect", "every region is compared and sent to the replica"}});
  drl_->forget_digests();
  for (const auto& [image, tenure] : known_tenures_) {
    lacks_.set(image, {0, tenure.size});
    auto it = std::find_if(dirty_after_crash_.begin(), dirty_after_crash_.end(), [&](const auto& d) { return d.image == image; });
    if (it == dirty_after_crash_.end()) it = dirty_after_crash_.insert(it, drl_->known(image, tenure.size));
    it->whole = true;
    sizes_unknown_.insert(image);    // how far it reaches is said when it is attached
    it->regions.clear();
    for (uint64_t i = 0; i * it->region_bytes < tenure.size; ++i) it->regions.push_back(RegionIndex(i));
  }
}

}  // namespace tidemark::journal
