// tidemark-fs, also installed as mount.tidemark: mounts a host's images.
#include <cstdio>
#include <memory>

#include "fs/arguments.h"
#include "fs/control.h"
#include "fs/engine.h"
#include "fs/fuse_shell.h"
#include "shared/base/config.h"
#include "shared/base/log.h"
#include "shared/daemon/daemon.h"
#include "shared/net/pki.h"

namespace tidemark {
namespace {

constexpr char kName[] = "tidemark-fs";
constexpr std::chrono::seconds kLinkWait{3};
constexpr std::chrono::seconds kUnmountGrace{5};
constexpr std::chrono::seconds kStopLimit{40};

struct Host {
  daemon::Daemon& daemon;
  config::Host config;
  fs::FuseOptions fuse;
  std::unique_ptr<fs::Engine> engine;
  std::unique_ptr<fs::FuseShell> shell;

  void mount(Callback<Status> ready) {
    auto shell_or = fs::FuseShell::mount(daemon.env(), *engine, fuse);
    if (!shell_or) return ready(shell_or.status());
    shell = std::move(*shell_or);
    shell->on_unmounted([this] { daemon.request_stop(); });
    ready(Status::ok());
  }
  // The first names should be the shared node's, so the mount waits a moment for the link; without it, it goes on
  // alone.
  void start(Callback<Status> ready) {
    engine->start();
    engine->when_linked(kLinkWait, [this, ready = std::move(ready)]() mutable { mount(std::move(ready)); });
  }
  void stop(UniqueFunction<void()> done) {
    auto stop_engine = [this, done = std::move(done)]() mutable {
      engine->stop(kStopLimit, [this, done = std::move(done)](Status) mutable {
        shell.reset();
        done();
      });
    };
    if (!shell) return stop_engine();
    shell->unmount(kUnmountGrace, std::move(stop_engine));
  }
};

int run(const fs::Arguments& arguments) {
  auto config = config::load_host(arguments.config);
  if (!config) return daemon::fail(kName, config.status());
  if (!arguments.mountpoint.empty()) config->mount.path = arguments.mountpoint;
  if (config->mount.path.empty())
    return daemon::fail(
        kName, Status(Code::kInvalidArgument, arguments.config + ": no mount point: name one, or set [mount] path"));
  if (Status s = config::check_paths(arguments.config, config->tls, &config->storage); !s)
    return daemon::fail(kName, s);
  if (arguments.check_only || arguments.fake) {
    std::printf("%s: the configuration is good\n", arguments.config.c_str());
    return 0;
  }
  auto certificate = net::pki::inspect(config->tls.certificate);
  if (!certificate) return daemon::fail(kName, certificate.status());
  if (!certificate->identity || certificate->identity->role != net::Role::kHost ||
      certificate->identity->node != config->node.name)
    return daemon::fail(
        kName, Status(Code::kInvalidArgument, arguments.config + ": [tls] certificate: " + config->tls.certificate +
                                                  " is not of host " + config->node.name +
                                                  ": make one with `tidemark pki issue`"));

  daemon::Options options;
  options.program = kName;
  options.config_file = arguments.config;
  options.node = config->node;
  options.log = config->log;
  options.metrics = config->metrics;
  options.background = arguments.background;
  auto daemon = daemon::Daemon::create(std::move(options));
  if (!daemon) return daemon::fail(kName, daemon.status());

  Host host{**daemon, *config, {}, nullptr, nullptr};
  host.fuse.mountpoint = config->mount.path;
  host.fuse.source = arguments.source;
  host.fuse.allow_other = arguments.allow_other.value_or(config->mount.allow_other);
  host.fuse.read_only = arguments.read_only;
  host.fuse.max_background = config->mount.max_background;
  host.fuse.mount_options = arguments.mount_options;
  auto engine = fs::Engine::open((*daemon)->env(), {*config, certificate->identity->cluster});
  if (!engine) return daemon::fail(kName, engine.status());
  host.engine = std::move(*engine);
  host.engine->on_fatal([&daemon](const Status&) { (*daemon)->request_stop(1); });
  host.engine->set_missing_features(fs::missing_kernel_features());
  host.engine->register_metrics((*daemon)->metrics());
  fs::add_routes(*host.engine, (*daemon)->routes(), (*daemon)->jobs());
  (*daemon)->set_health([&host] {
    std::vector<std::string> reasons;
    host.engine->healthy(&reasons);
    return reasons;
  });
  return (*daemon)->run([&host](auto ready) { host.start(std::move(ready)); },
                        [&host](auto done) { host.stop(std::move(done)); });
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
  return tidemark::run(arguments);
}
