// What must be known of a mount point before anything is opened for it.
#pragma once

#include <string>

#include "shared/base/status.h"

namespace tidemark::fs {

// OK for a directory that is no mount, or is a mount whose daemon is gone (which is removed when it is mounted anew).
// kInvalidArgument, with the remedy, for what is missing, no directory, or a mount that answers.
Status check_mount_point(const std::string& path);
// Takes mounts that answer ENOTCONN out of the way.
Status clear_dead_mount(const std::string& path);

}  // namespace tidemark::fs
