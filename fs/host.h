// The daemon's parts put together: engine, FUSE shell, its holder, the control socket.
#pragma once

#include <memory>

#include "fs/arguments.h"
#include "fs/holding.h"
#include "shared/base/config.h"
#include "shared/net/pki.h"

namespace tidemark::fs {

// Whether a daemon would start: whose the state is, and that all of it is there. `successor`: of one that runs now and
// has the stores open. Reads only.
Status check_host(const Arguments& arguments, const config::Host& config, const Uuid& cluster, bool successor);

// Returns the exit code.
int run_host(const Arguments& arguments, const config::Host& config, const Uuid& cluster,
             std::unique_ptr<Holding> holding);

}  // namespace tidemark::fs
