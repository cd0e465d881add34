// Whether this host and the shared node are of one time. Both count their runs, durably, each with a random nonce; each
// tells the other of them before a session is opened. A disk that was put back from a copy of an earlier time, by a
// backup or a snapshot, shows as a run that the other end has seen and this one has no record of: then neither's blocks
// can be told old from new by what it has noted of itself, and the link is refused until an operator has decided.
//
//   what one has seen                                          whose list lacks it: its state is of before
//   the shared node: the newest run of this host               this journal's
//   this host: the newest run of that shared node (one store)  the shared node's
//
// A run that was begun but not told to anybody is in its own list alone, which is no contradiction: so a crash at any
// moment in between refuses nothing. Shared nodes of an older version tell nothing; then nothing is compared.
#include <algorithm>

#include "fs/engine.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::string_view kSharedRun = "shared_run";   // the newest that was seen: uuid store, u64 boot, uuid nonce
}  // namespace

Result<Incarnation> Engine::meet(const wire::Met& met) {
  met_run_.reset();
  TM_RETURN_IF_ERROR(check_own_run(met));
  if (met.more.rebuilding == 0) TM_RETURN_IF_ERROR(check_shared_runs(met));
  if (!met.boots.empty()) met_run_ = met.boots.back();
  // Of a journal that was never in session nothing is known anywhere. Any other has its numbers, even if it is met by a
  // shared node that does not know it: one that is rebuilt, or another one.
  TM_ASSIGN_OR_RETURN(const Uuid linked_before, known_store("shared"));
  if (linked_before.is_nil() && met.floor.value != 0)
    TM_RETURN_IF_ERROR(journal_->raise_incarnation(met.floor.next()));
  return journal_->incarnation();
}

Status Engine::check_own_run(const wire::Met& met) const {
  const bool own = met.known_generation == journal_->generation();
  if (!own || journal_->knows_run(met.known, met.known_nonce)) return Status::ok();
  return Status(Code::kPermission,
                "this host's state is of an earlier time, or a copy: the shared node has seen its run " +
                    std::to_string(met.known.value) + ", which " + options_.config.node.state_dir +
                    " has no record of; bring back the newest state and bricks, or, if these are lost, `tidemark state "
                    "reset` here: its copies are filled anew");
}

Result<SharedRun> Engine::known_shared_run() {
  TM_ASSIGN_OR_RETURN(auto snapshot, store_->try_snapshot());
  auto row = snapshot->get(kTableMeta, as_bytes(kSharedRun));
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

Status Engine::check_shared_runs(const wire::Met& met) {
  TM_ASSIGN_OR_RETURN(SharedRun seen, known_shared_run());
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

Task<Status> Engine::greeted(wire::Connection& link, const wire::HelloAnswerMore& hello) {
  Status known = co_await check_shared(link, hello);
  if (!known || !met_run_ || hello.store.is_nil()) co_return known;
  Bytes now;
  Writer(now).uuid(hello.store).id(met_run_->first).uuid(met_run_->second);
  if (auto snapshot = store_->try_snapshot()) {
    auto row = (*snapshot)->get(kTableMeta, as_bytes(kSharedRun));
    if (row && std::ranges::equal(*row, now)) co_return Status::ok();
  }
  // Durable before anything is acknowledged that relies on it.
  kv::WriteBatch batch;
  batch.put(kTableMeta, as_bytes(kSharedRun), now);
  kLog.info("shared_run_noted", {{"boot", met_run_->first}});
  co_return store_->commit_and_wait(std::move(batch));
}

}  // namespace tidemark::fs
