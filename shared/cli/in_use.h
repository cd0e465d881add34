// Whether a daemon uses what an offline command is to look at, and keeping it from beginning meanwhile.
#pragma once

#include <string>

#include "shared/base/config.h"
#include "shared/base/status.h"
#include "shared/daemon/process.h"

namespace tidemark::cli {

// The node's pid file, without which its daemon does not start, until the process ends or it is let go.
Result<daemon::PidFile> keep_daemon_away(const config::Node& node);
// kBusy: stop the daemon first. What is not there is free. These change nothing.
Status store_is_free(const std::string& directory);
Status object_is_free(const std::string& path);

}  // namespace tidemark::cli
