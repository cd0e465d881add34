// `state_dir/names`: the name cache, flags of images' copies, and what this host knows of other nodes.
//
// A store takes nothing any more after an I/O error (shared/kv/store.h), and reading may fail as well. This one is then
// opened anew, at once and every five seconds, and given what stands in memory: flags before anything else counts as
// kept, names without a wait. A commit that is waited for is tried once more on the new one, so that an error that
// passes costs nothing. Until all is kept again failure() says why not.
//
// None is made then, and none is taken that is not this run's (a row names it: the machine's boot, and when in that the
// run began): the disk may not be mounted, and what was kept in its place would be forgotten once it is back.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "shared/io/env.h"
#include "shared/kv/store.h"

namespace tidemark::fs {

class NamesStore final : public kv::Store {
 public:
  // Adds what is in memory to a batch: all of it, in place of what the store has.
  using PutAll = UniqueFunction<void(kv::WriteBatch&)>;
  struct Contents { PutAll flags, names; };
  static constexpr std::string_view kRunKey = "names_run";   // in the table `run`

  static Result<std::unique_ptr<NamesStore>> open(io::Env& env, std::string path, kv::StoreOptions options,
                                                  Contents contents, kv::Table run);
  ~NamesStore() override;

  Result<std::unique_ptr<kv::Snapshot>> try_snapshot() override;
  // Of what fails here the names are put again later: not waited for by those who rely on it. Some are never answered.
  void commit(kv::WriteBatch batch, Callback<Status> done) override;
  Status commit_and_wait(kv::WriteBatch batch) override;
  Result<Usage> usage() override;

  // Called once in a while.
  void tick();
  // Why not all that is in memory is kept; OK: it is.
  const Status& failure() const { return failure_; }

 private:
  NamesStore(io::Env& env, std::string path, kv::StoreOptions options, Contents contents, kv::Table run)
      : env_(env), path_(std::move(path)), options_(std::move(options)), contents_(std::move(contents)), run_(run) {}
  void failed(const Status& status);
  bool renew();
  Status reopen();
  Status is_this_runs(kv::Store& store) const;

  io::Env& env_;
  const std::string path_;
  kv::StoreOptions options_;
  Contents contents_;
  const kv::Table run_;
  Bytes run_name_;                     // durable there before anything else
  std::unique_ptr<kv::Store> store_;   // null: it could not be opened anew yet
  bool lost_ = false;                  // it takes nothing any more
  bool putting_ = false;               // all names are on their way into it
  Status failure_;
  io::BootTime renew_at_;
};

}  // namespace tidemark::fs
