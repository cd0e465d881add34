// The holder: the process that tidemark-fs is at first. It keeps what must outlive the daemon (the descriptor of
// /dev/fuse, the survivor's memory) and runs the daemon as its child. It has one thread, knows neither engine nor
// libfuse, and touches no data.
//
//   tidemark-fs (holder; pid file NAME.pid; systemd's main process)
//     +-- tidemark-fs (daemon; NAME.daemon.pid)
//
//   daemon ends by a signal, or says that it must start anew    the same program is started with the same descriptor
//   SIGHUP, or the daemon is asked (`tidemark host restart`)    the program on disk is tried (--check), the daemon
//                                                               finishes what is under way, the new one takes over
//   a successor does not come up                                back-off, and after an upgrade the program before it
//   a successor ends by itself as it starts (a wrong key, a     it is tried again for as long as it takes: guests wait,
//   full disk)                                                  and somebody can mend that
//   SIGHUP while none runs                                      the next start is of the program on disk
//   SIGTERM, SIGINT                                             passed on: the daemon unmounts and ends; so does this
//   the holder dies                                             the daemon is killed with it: the mount is dead, and a
//                                                               new start removes it
//
// Ten other deaths within a minute, or a kernel that does not hand requests out again: the descriptor is closed, what
// waits gets an error, and the exit code is not 0.
#pragma once

#include <string>
#include <vector>

#include "shared/daemon/process.h"

namespace tidemark::fs {

struct HolderOptions {
  std::vector<std::string> arguments;   // of this process, for the daemon
  std::vector<std::string> check;       // after the program's name: tries a program on disk
  std::string mountpoint;
  bool live_restart = true;
  bool background = false;               // nobody sees standard error once the mount is ready
};

// Returns the exit code. Before any thread starts.
int hold(HolderOptions options, daemon::Background background);

}  // namespace tidemark::fs
