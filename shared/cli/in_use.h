// Whether a daemon uses what an offline command is to look at. Changes nothing.
#pragma once

#include <string>

#include "shared/base/status.h"

namespace tidemark::cli {

// kBusy: stop the daemon first. What is not there is free.
Status store_is_free(const std::string& directory);
Status object_is_free(const std::string& path);

}  // namespace tidemark::cli
