// tidemark-fs, also installed as mount.tidemark: mounts a host's images. The process that is started becomes the holder
// (holder.h), and runs this program once more as its child, which is the daemon.
#include <cstdio>
#include <cstdlib>

#include "fs/arguments.h"
#include "fs/holder.h"
#include "fs/holding.h"
#include "fs/host.h"
#include "fs/mount_point.h"
#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/daemon/links.h"

namespace tidemark {
namespace {

constexpr char kName[] = "tidemark-fs";
constexpr std::chrono::seconds kPredecessorMax{10};   // killed with its holder, it may still be ending

Result<config::Host> load(const fs::Arguments& arguments) {
  TM_ASSIGN_OR_RETURN(config::Host config, config::load_host(arguments.config));
  if (!arguments.mountpoint.empty()) config.mount.path = arguments.mountpoint;
  if (config.mount.path.empty())
    return Status(Code::kInvalidArgument, arguments.config + ": no mount point: name one, or set [mount] path");
  // A daemon does not ask whether a brick's directory is there: its holder has, at the first start, and a successor
  // goes on without one that is gone, under guests that wait. --check does: it may be a slip of the pen.
  const bool held = std::getenv(fs::kHolderVariable) != nullptr && !arguments.check_only;
  TM_RETURN_IF_ERROR(config::check_paths(arguments.config, config.tls, held ? nullptr : &config.storage));
  return config;
}

int run_holder(const fs::Arguments& arguments, const config::Host& config, std::vector<std::string> words) {
  daemon::Options options;
  options.config_file = arguments.config;
  options.node = config.node;
  options.log = config.log;
  options.background = arguments.background;
  if (Status s = daemon::Daemon::prepare(options); !s) return daemon::fail(kName, s);
  daemon::Background background;
  if (arguments.background) {
    auto entered = daemon::Background::enter();
    if (!entered) return daemon::fail(kName, entered.status());
    background = std::move(*entered);
  }
  const std::string base = config.node.run_dir + "/" + config.node.name;
  auto pid_file = daemon::PidFile::take(base + ".pid");
  if (!pid_file) return daemon::fail(kName, pid_file.status());
  if (Status s = daemon::PidFile::wait_until_free(base + ".daemon.pid", kPredecessorMax); !s)
    return daemon::fail(kName, s);
  if (Status s = fs::check_mount_point(config.mount.path); !s) return daemon::fail(kName, s);
  if (Status s = daemon::Daemon::open_log(options); !s) return daemon::fail(kName, s);
  fs::HolderOptions holder;
  if (arguments.mountpoint.empty()) words.push_back(config.mount.path);   // whatever the file names by the next start
  holder.arguments = std::move(words);
  holder.check = {"--config", arguments.config, "--check", config.mount.path};
  holder.mountpoint = config.mount.path;
  holder.live_restart = arguments.live_restart;
  holder.background = arguments.background;
  return fs::hold(std::move(holder), std::move(background));
}

int run(const fs::Arguments& arguments, std::vector<std::string> words) {
  auto config = load(arguments);
  if (!config) return daemon::fail(kName, config.status());
  auto good = [&] {
    std::printf("%s: the configuration is good\n", arguments.config.c_str());
    return 0;
  };
  if (arguments.fake) return good();
  auto identity = daemon::own_identity(arguments.config, config->node, config->tls);
  if (!identity) return daemon::fail(kName, identity.status());
  if (arguments.check_only) {
    Status s = fs::check_host(arguments, *config, identity->cluster, fs::Holding::asks_for_successor());
    return s ? good() : daemon::fail(kName, s);
  }
  auto holding = fs::Holding::from_environment();
  if (!holding) {
    int code = daemon::fail(kName, holding.status());
    return holding.status().code() == Code::kUnsupported ? fs::kExitCannotFollow : code;
  }
  if (!*holding) return run_holder(arguments, *config, std::move(words));
  return fs::run_host(arguments, *config, identity->cluster, std::move(*holding));
}

}  // namespace
}  // namespace tidemark

int main(int argc, char** argv) {
  tidemark::fs::Arguments arguments;
  std::string error;
  switch (tidemark::fs::parse_arguments(argc, argv, arguments, error)) {
    case tidemark::fs::Next::kDone: return 0;
    case tidemark::fs::Next::kWrong: std::fprintf(stderr, "tidemark-fs: %s\n", error.c_str()); return 2;
    case tidemark::fs::Next::kRun: break;
  }
  return tidemark::run(arguments, {argv, argv + argc});
}
