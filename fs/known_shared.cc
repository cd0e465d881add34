#include "fs/known_shared.h"

#include <algorithm>

#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::string_view kShared = "shared";              // uuid store
constexpr std::string_view kReported = "shared_reported";   // uuid store
constexpr std::string_view kSharedRun = "shared_run";       // uuid store, u64 boot, uuid nonce
}  // namespace

Result<Incarnation> KnownShared::meet(const wire::Met& met) {
  met_run_.reset();
  TM_RETURN_IF_ERROR(check_own_run(met));
  if (met.more.rebuilding == 0) TM_RETURN_IF_ERROR(check_shared_runs(met));
  if (!met.boots.empty()) met_run_ = met.boots.back();
  // Of a journal that was never in session nothing is known anywhere. Any other has its numbers, even if it is met by a
  // shared node that does not know it: one that is rebuilt, or another one.
  TM_ASSIGN_OR_RETURN(const Uuid linked_before, works_with());
  if (linked_before.is_nil() && met.floor.value != 0)
    TM_RETURN_IF_ERROR(journal_.raise_incarnation(met.floor.next()));
  return journal_.incarnation();
}

Status KnownShared::check_own_run(const wire::Met& met) const {
  const bool own = met.known_generation == journal_.generation();
  if (!own || journal_.knows_run(met.known, met.known_nonce)) return Status::ok();
  return Status(Code::kPermission,
                "this host's state is of an earlier time, or a copy: the shared node has seen its run " +
                    std::to_string(met.known.value) + ", which " + state_dir_ +
                    " has no record of; bring back the newest state and bricks, or, if these are lost, `tidemark state "
                    "reset` here: its copies are filled anew");
}

Result<SharedRun> KnownShared::newest_run() {
  TM_ASSIGN_OR_RETURN(auto snapshot, store_.try_snapshot());
  auto row = snapshot->get(meta_, as_bytes(kSharedRun));
  if (!row && row.status().code() == Code::kNotFound) return SharedRun{};
  if (!row) return row.status();
  Reader in(*row);
  SharedRun out;
  out.store = in.uuid();
  out.boot = in.id<Incarnation>();
  out.nonce = in.uuid();
  if (!in.done()) return Status(Code::kCorruption, "state_dir/names: row " + std::string(kSharedRun));
  return out;
}

Status KnownShared::check_shared_runs(const wire::Met& met) {
  TM_ASSIGN_OR_RETURN(SharedRun seen, newest_run());
  if (seen.store.is_nil() || seen.store != met.more.store || met.boots.empty()) return Status::ok();
  if (seen.boot < met.boots.front().first) return Status::ok();   // of before the list
  auto known = std::find(met.boots.begin(), met.boots.end(), std::make_pair(seen.boot, seen.nonce));
  if (known != met.boots.end()) return Status::ok();
  return Status(Code::kPermission,
                "shared node " + met.more.base.node + "'s state is of an earlier time: this host has seen its run " +
                    std::to_string(seen.boot.value) + ", which it has no record of; bring back its newest state and "
                    "bricks, or, if these are lost, `tidemark shared rebuild` there, with --without-bricks if its "
                    "bricks were put back as well");
}

Status KnownShared::note_run(const Uuid& store) {
  if (!met_run_ || store.is_nil()) return Status::ok();
  Bytes now;
  Writer(now).uuid(store).id(met_run_->first).uuid(met_run_->second);
  if (auto snapshot = store_.try_snapshot()) {
    auto row = (*snapshot)->get(meta_, as_bytes(kSharedRun));
    if (row && std::ranges::equal(*row, now)) return Status::ok();
  }
  kLog.info("shared_run_noted", {{"boot", met_run_->first}});
  return note(kSharedRun, now);
}

Result<Uuid> KnownShared::works_with() { return noted(kShared); }
Result<Uuid> KnownShared::reported_to() { return noted(kReported); }
Status KnownShared::note_works_with(const Uuid& store) { return note(kShared, store.bytes); }
Status KnownShared::note_reported_to(const Uuid& store) { return note(kReported, store.bytes); }

Result<Uuid> KnownShared::noted(std::string_view key) {
  TM_ASSIGN_OR_RETURN(auto snapshot, store_.try_snapshot());
  auto value = snapshot->get(meta_, as_bytes(key));
  if (!value && value.status().code() == Code::kNotFound) return Uuid::nil();
  if (!value) return value.status();
  Reader in(*value);
  const Uuid store = in.uuid();
  if (!in.done()) return Status(Code::kCorruption, "state_dir/names: row " + std::string(key));
  return store;
}

Status KnownShared::note(std::string_view key, ByteSpan value) {
  kv::WriteBatch batch;
  batch.put(meta_, as_bytes(key), value);
  return store_.commit_and_wait(std::move(batch));
}

}  // namespace tidemark::fs
