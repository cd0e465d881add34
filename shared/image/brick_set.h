// The bricks of one storage group: found, checked and, on the first start, initialized.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shared/image/side_file.h"
#include "shared/image/store.h"
#include "shared/io/env.h"

namespace tidemark::image::detail {

struct Brick {
  std::string directory;
  BrickMarker marker;
  uint64_t mount_identity = 0;
  Status absent;                 // why; OK: it is there
};

// In index order. Errors as StorageGroup::open says.
Result<std::vector<Brick>> open_bricks(io::Env& env, const StorageGroupOptions& options);

// Looks again whether each is there: Brick::absent.
void look_at_bricks(io::FileSystem& files, const StorageGroupOptions& options, std::vector<Brick>& bricks);
// Makes a new brick of the empty directory of an absent one.
Status replace_brick(io::Env& env, std::vector<Brick>& bricks, size_t index);

// Writes `counter` into every marker. OK when at least one took it durably.
Status record_failed_syncs(io::FileSystem& files, std::vector<Brick>& bricks, uint64_t counter);

// As StorageGroup::begin_run says; `runs` are the ones known, and those that are known then. `now`: the run that has
// begun; none in the first one after an upgrade.
using SaveRuns = UniqueFunction<Status(const std::vector<KnownRun>&)>;
Status begin_run(io::Env& env, std::vector<Brick>& bricks, std::vector<KnownRun>& runs, SaveRuns& save, BrickRun* now);
// A brick that came back within the run is of it from now on; absent still where that cannot be saved.
void join_run(io::FileSystem& files, Brick& brick, std::vector<KnownRun>& runs, SaveRuns& save, const BrickRun& now);

// Names the span in which these bricks cannot have lost unsynced writes.
LossId compute_loss_id(const Uuid& boot, const std::vector<Brick>& bricks, uint64_t failed_syncs);

}  // namespace tidemark::image::detail
