// What this host has on record of the shared node: whose store it works with, and the newest run of it that was seen. A
// record is durable once its call has returned OK. Loop thread only.
//
// Whether this host and the shared node are of one time: both count their runs, durably, each with a random nonce; each
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
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "journal/journal.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/kv/store.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

struct SharedRun { Uuid store; Incarnation boot; Uuid nonce; };   // a run of a shared node

class KnownShared {
 public:
  // Rows of table `meta`; store and journal must outlive it. `state_dir` is named in what an operator reads.
  KnownShared(kv::Store& store, kv::Table meta, journal::Journal& journal, std::string state_dir)
      : store_(store), meta_(meta), journal_(journal), state_dir_(std::move(state_dir)) {}

  // On a connection that is being opened: the incarnation to say Hello with; kPermission if one of the two is of an
  // earlier time.
  Result<Incarnation> meet(const wire::Met& met);
  // Whether it said on that connection which run it is in: not if it is of an older version.
  bool tells_runs() const { return met_run_.has_value(); }
  // It is the one that this host works with: its run is seen.
  Status note_run(const Uuid& store);
  Result<SharedRun> newest_run();        // that was seen; nil: none

  Result<Uuid> works_with();             // its store; nil: none yet
  Result<Uuid> reported_to();            // the one under repair that was told all that is known here
  Status note_works_with(const Uuid& store);
  Status note_reported_to(const Uuid& store);

 private:
  Status check_own_run(const wire::Met& met) const;
  Status check_shared_runs(const wire::Met& met);
  Result<Uuid> noted(std::string_view key);
  Status note(std::string_view key, ByteSpan value);

  kv::Store& store_;
  const kv::Table meta_;
  journal::Journal& journal_;
  const std::string state_dir_;
  std::optional<std::pair<Incarnation, Uuid>> met_run_;   // on the connection that is being opened
};

}  // namespace tidemark::fs
