#include "fs/names_store.h"

#include <algorithm>
#include <utility>

#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("names");
constexpr std::chrono::seconds kRenewInterval{5};

// Such a store goes on as it was.
bool leaves_store_usable(const Status& status) {
  return status.code() == Code::kOutOfSpace || status.code() == Code::kInvalidArgument;
}
}  // namespace

Result<std::unique_ptr<NamesStore>> NamesStore::open(io::Env& env, std::string path, kv::StoreOptions options,
                                                     Contents contents, kv::Table run) {
  std::unique_ptr<NamesStore> names(new NamesStore(env, std::move(path), std::move(options), std::move(contents), run));
  TM_ASSIGN_OR_RETURN(names->store_, env.open_store(names->path_, names->options_));
  Writer(names->run_name_).uuid(env.boot_id()).u64(static_cast<uint64_t>(env.now().ns));
  kv::WriteBatch own;
  own.put(run, as_bytes(kRunKey), names->run_name_);
  TM_RETURN_IF_ERROR(names->store_->commit_and_wait(std::move(own)));
  names->options_.create = false;
  return names;
}

NamesStore::~NamesStore() = default;

Result<std::unique_ptr<kv::Snapshot>> NamesStore::try_snapshot() {
  if (store_ == nullptr) return failure_;
  return store_->try_snapshot();
}

Result<kv::Store::Usage> NamesStore::usage() {
  if (store_ == nullptr) return failure_;
  return store_->usage();
}

void NamesStore::commit(kv::WriteBatch batch, Callback<Status> done) {
  if (lost_) return done(failure_);
  store_->commit(std::move(batch), [this, done = std::move(done)](Status status) mutable {
    if (!status) failed(status);
    done(std::move(status));
  });
}

Status NamesStore::commit_and_wait(kv::WriteBatch batch) {
  if (lost_ && !renew()) return failure_;
  Status status = store_->commit_and_wait(batch);
  if (status.is_ok() || leaves_store_usable(status)) return status;
  failed(status);
  if (!renew()) return status;
  status = store_->commit_and_wait(std::move(batch));
  if (!status && !leaves_store_usable(status)) failed(status);
  return status;
}

void NamesStore::tick() {
  if (!failure_) renew();
}

void NamesStore::failed(const Status& status) {
  if (failure_.is_ok()) {
    kLog.warning("names_not_kept", {{"path", path_}, {"error", status},
                                    {"effect", "what this host knows is in memory alone until its disk takes it"}});
  }
  failure_ = status;
  lost_ = lost_ || !leaves_store_usable(status);
}

// Whether it takes commits again.
bool NamesStore::renew() {
  if (env_.now() < renew_at_) return false;
  renew_at_ = env_.now() + kRenewInterval;
  if (lost_) {
    if (Status opened = reopen(); !opened) {
      failure_ = opened;
      return false;
    }
    lost_ = false;
  }
  if (std::exchange(putting_, true)) return true;   // a disk that hangs has them once
  kv::WriteBatch names;
  contents_.names(names);
  store_->commit(std::move(names), [this](const Status& kept) {
    putting_ = false;
    if (!kept) return failed(kept);
    if (lost_) return;
    if (!failure_) kLog.info("names_kept", {{"path", path_}});
    failure_ = Status::ok();
  });
  return true;
}

Status NamesStore::reopen() {
  store_.reset();
  putting_ = false;   // whoever waited there is not answered
  TM_ASSIGN_OR_RETURN(auto opened, env_.open_store(path_, options_));
  TM_RETURN_IF_ERROR(is_this_runs(*opened));
  store_ = std::move(opened);
  kv::WriteBatch flags;   // a commit that failed may stand there all the same, and was not relied on
  contents_.flags(flags);
  return store_->commit_and_wait(std::move(flags));
}

Status NamesStore::is_this_runs(kv::Store& store) const {
  TM_ASSIGN_OR_RETURN(auto snapshot, store.try_snapshot());
  const Result<Bytes> run = snapshot->get(run_, as_bytes(kRunKey));
  if (run && std::ranges::equal(*run, run_name_)) return Status::ok();
  return Status(Code::kUnavailable, path_ + ": another store stands there: mount the disk that was there");
}

}  // namespace tidemark::fs
