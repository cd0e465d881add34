// Work on many pieces of an image, a few at a time: guests come first.
#pragma once

#include <vector>

#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/base/task.h"

namespace tidemark::fs {

using UnitWork = UniqueFunction<Task<Status>(Extent)>;

// Runs `work` over all units; the first failure ends it. The workers are tasks of `tasks`, which must outlive the call.
Task<Status> for_units(TaskGroup& tasks, std::vector<Extent> units, UnitWork work);

}  // namespace tidemark::fs
