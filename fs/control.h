// The host's routes of the control socket (shared/docs/control-api.md).
#pragma once

#include "fs/engine.h"
#include "shared/daemon/jobs.h"
#include "shared/daemon/routes.h"

namespace tidemark::fs {

// Engine and jobs must outlive the routes.
// `restart`: JSON text of what `status` says of restarts.
void add_routes(Engine& engine, daemon::Routes& routes, daemon::Jobs& jobs, std::function<std::string()> restart);

}  // namespace tidemark::fs
