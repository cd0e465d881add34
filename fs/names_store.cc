#include "fs/names_store.h"

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
                                                     Contents contents) {
  std::unique_ptr<NamesStore> names(new NamesStore(env, std::move(path), std::move(options), std::move(contents)));
  TM_ASSIGN_OR_RETURN(names->store_, env.open_store(names->path_, names->options_));
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
    store_.reset();
    auto opened = env_.open_store(path_, options_);
    if (!opened) {
      failure_ = opened.status();
      return false;
    }
    store_ = std::move(*opened);
    kv::WriteBatch flags;   // a commit that failed may stand there all the same, and was not relied on
    contents_.flags(flags);
    if (Status kept = store_->commit_and_wait(std::move(flags)); !kept) {
      failure_ = kept;
      return false;
    }
    lost_ = false;
  }
  kv::WriteBatch names;
  contents_.names(names);
  store_->commit(std::move(names), [this](const Status& kept) {
    if (!kept) return failed(kept);
    if (lost_) return;
    if (!failure_) kLog.info("names_kept", {{"path", path_}});
    failure_ = Status::ok();
  });
  return true;
}

}  // namespace tidemark::fs
