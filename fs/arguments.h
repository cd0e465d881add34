// The command lines of `tidemark-fs` and of `mount.tidemark`, the mount(8) helper.
//
//   tidemark-fs --config FILE [MOUNTPOINT] [-f] [-b] [-o OPTIONS]
//   mount.tidemark SOURCE MOUNTPOINT [-sfnvr] [-o config=FILE,rw,_netdev,...]
//
// The helper returns when the mount is ready and leaves the daemon in the background. Without config= its SOURCE
// names the configuration: FILE itself, or NAME for /etc/tidemark/NAME.toml.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shared/base/status.h"

namespace tidemark::fs {

struct Arguments {
  std::string config;
  std::string mountpoint;       // empty: the configuration's
  std::string source = "tidemark";
  bool background = false;
  bool read_only = false;
  std::optional<bool> allow_other;
  bool check_only = false;
  bool live_restart = true;     // a daemon that dies is replaced on the mount that stands
  bool fake = false;            // mount -f: check and do nothing
  std::vector<std::string> mount_options;   // known to mount(2), handed on
};

enum class Next { kRun, kDone, kWrong };
// kDone: something was printed (help, version) and that was all. kWrong: `error` says what.
Next parse_arguments(int argc, char** argv, Arguments& out, std::string& error);

}  // namespace tidemark::fs
