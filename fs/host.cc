#include "fs/host.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "fs/control.h"
#include "fs/engine.h"
#include "fs/fuse_shell.h"
#include "shared/base/log.h"
#include "shared/daemon/daemon.h"
#include "shared/io/real_env.h"
#include "shared/io/real_files.h"
#include "shared/kv/lmdb_store.h"
#include "shared/state/identity.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace tidemark::fs {
namespace {

const log::Logger kLog("host");
constexpr char kName[] = "tidemark-fs";
constexpr std::chrono::seconds kLinkWait{3};
constexpr std::chrono::milliseconds kSuccessorLinkWait{700};   // guests wait, too
constexpr std::chrono::seconds kUnmountGrace{5};
constexpr std::chrono::seconds kStopLimit{40};
constexpr std::chrono::seconds kFinishLimit{3}, kHandOverLimit{8};
constexpr std::chrono::milliseconds kLook{2};
constexpr std::chrono::seconds kEarlierWritesMax{10};

struct Host {
  daemon::Daemon& daemon;
  std::unique_ptr<Holding> holding;
  FuseOptions fuse;
  bool background = false;
  bool live = true;                  // as asked; whether the kernel can is another question
  bool handing_over = false;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<FuseShell> shell;

  bool successor() const { return holding && holding->successor(); }

  void mount(Callback<Status> ready) {
    auto shell_or = FuseShell::mount(daemon.env(), *engine, fuse);
    if (!shell_or && successor() && shell_or.status().code() == Code::kUnsupported) {
      kLog.error("cannot_follow", {{"error", shell_or.status()}});
      std::_Exit(kExitCannotFollow);
    }
    if (!shell_or) return ready(shell_or.status());
    shell = std::move(*shell_or);
    shell->on_unmounted([this] { daemon.request_stop(); });
    if (holding && !holding->successor()) holding->mounted(shell->session());
    ready(Status::ok());
    if (holding) holding->ready(background);
  }
  // The first names should be the shared node's, so the mount waits a moment for the link; without it, it goes on
  // alone.
  void start(Callback<Status> ready) {
    if (holding) {
      Status watched = holding->watch(daemon.env(), [this] { hand_over(); });
      if (!watched) return ready(watched);
    }
    engine->start();
    engine->when_linked(successor() ? kSuccessorLinkWait : kLinkWait,
                        [this, ready = std::move(ready)]() mutable { mount(std::move(ready)); });
  }
  void stop(UniqueFunction<void()> done) {
    if (handing_over) return;   // which ends the process, and the holder unmounts
    if (holding) holding->stopping();
    auto stop_engine = [this, done = std::move(done)]() mutable {
      engine->stop(kStopLimit, [this, done = std::move(done)](Status) mutable {
        if (engine->hangs()) {   // what the device still has cannot be taken back, and its memory not be freed
          kLog.warning("brick_hangs", {{"effect", "the process ends without closing it"}});
          std::_Exit(EXIT_FAILURE);
        }
        shell.reset();
        done();
      });
    };
    if (!shell) return stop_engine();
    shell->unmount(kUnmountGrace, std::move(stop_engine));
  }

  // No request is read any more; those begun are answered, unless they only wait: those the successor is asked again.
  void hand_over() {
    if (handing_over || !shell) return;
    handing_over = true;
    kLog.info("handing_over", {{"in_flight", engine->in_flight()}});
    shell->pause();
    finish_requests(daemon.env().now() + kFinishLimit);
  }
  void finish_requests(io::BootTime until) {
    if (engine->in_flight() != 0 && daemon.env().now() < until) {
      daemon.env().after(kLook, [this, until] { finish_requests(until); });
      return;
    }
    uint32_t left = engine->in_flight();
    engine->hand_over(kHandOverLimit, [left](Status closed) {
      kLog.info("handed_over", {{"requests_left", left}, {"journal", closed}});
      std::_Exit(kExitHandedOver);
    });
  }

  bool can_restart() const { return holding && live && holding->can_restart(); }
  std::string why_not() const {
    if (!holding) return "no holder";
    if (!live) return "turned off by the mount option nolive";
    return holding->can_restart() ? "" : "the kernel does not hand requests out again; 6.9 and newer do";
  }
  std::string restart_json() {
    nlohmann::json out = {{"available", can_restart()}, {"why", why_not()}, {"daemon_pid", ::getpid()}};
    if (!holding) return out.dump();
    out["holder_pid"] = ::getppid();
    out["successors"] = holding->survivor().successors();
    out["refusals"] = holding->refusals();
    out["refusal"] = holding->refusal();
    return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  Result<std::string> restart() {
    if (!can_restart())
      return Status(Code::kUnsupported, "no live restart: " + why_not() + ": stop the guests, then restart the daemon");
    std::string before = restart_json();
    TM_RETURN_IF_ERROR(holding->ask_replacement());
    return before;
  }
};

void connect(Host& host) {
  daemon::Daemon& daemon = host.daemon;
  host.engine->on_fatal([&host](const Status& why) {
    if (!host.can_restart()) return host.daemon.request_stop(1);
    kLog.error("starting_anew", {{"error", why}});
    std::_Exit(kExitStartAnew);   // what it holds cannot be relied on; the successor recovers, and guests only wait
  });
  host.engine->set_missing_features(missing_kernel_features());
  host.engine->register_metrics(daemon.metrics());
  add_routes(*host.engine, daemon.routes(), daemon.jobs(), [&host] { return host.restart_json(); });
  daemon.routes().get("/v1/restart",
                      [&host](const daemon::Request&) -> Result<std::string> { return host.restart_json(); });
  daemon.routes().post("/v1/restart", [&host](const daemon::Request&) { return host.restart(); });
  daemon.set_health([&host] {
    std::vector<std::string> reasons;
    host.engine->healthy(&reasons);
    return reasons;
  });
}

state::Spec state_of(const Arguments& arguments, const config::Host& config, const Uuid& cluster, bool successor) {
  // A successor asks no brick: what it would tell is known, and one that fails must not keep the daemon from starting.
  return {config.node.state_dir, cluster, config.node.role, config.node.name, state::parts_of_host(),
          successor ? std::vector<std::string>() : config.storage.bricks, arguments.config, successor};
}

}  // namespace

Status check_host(const Arguments& arguments, const config::Host& config, const Uuid& cluster, bool successor) {
  io::RealEnv env({.open_store = kv::open_lmdb_store});
  // Bricks, which may hang, tell of a first start alone; a holder of an earlier version does not say who asks.
  state::Spec spec = state_of(arguments, config, cluster, true);
  TM_ASSIGN_OR_RETURN(state::Look found, state::look(env, spec));
  const bool none = !found.identity && std::ranges::none_of(found.parts, &state::Look::Found::there);
  if (none && !successor) {
    spec = state_of(arguments, config, cluster, false);
    TM_ASSIGN_OR_RETURN(found, state::look(env, spec));
  }
  return state::judge(spec, found);
}

int run_host(const Arguments& arguments, const config::Host& config, const Uuid& cluster,
             std::unique_ptr<Holding> holding) {
  ::prctl(PR_SET_NAME, kName);   // started by a descriptor it would be named after that
  daemon::Options options;
  options.program = kName;
  options.config_file = arguments.config;
  options.node = config.node;
  options.log = config.log;
  options.metrics = config.metrics;
  options.pid_suffix = ".daemon";
  if (arguments.background && options.log.file.empty())
    options.log.file = config.node.state_dir + "/" + config.node.name + ".log";
  const bool successor = holding && holding->successor();
  options.metrics_may_wait = successor;
  auto daemon = daemon::Daemon::create(std::move(options));
  if (!daemon) return daemon::fail(kName, daemon.status());
  // It stands in the write-back path of loop mounts over its own images. Its threads, begun later, take after this one.
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) kLog.info("no_io_flusher", {{"errno", errno}});
  // A process that was killed may have left writes with the disk that land after its end.
  if (Status s = io::await_earlier_writes(config.storage.bricks, kEarlierWritesMax); !s) return daemon::fail(kName, s);

  Host host{**daemon, std::move(holding), {}};
  host.background = arguments.background;
  host.live = arguments.live_restart;
  host.fuse.mountpoint = config.mount.path;
  host.fuse.source = arguments.source;
  host.fuse.allow_other = arguments.allow_other.value_or(config.mount.allow_other);
  host.fuse.read_only = arguments.read_only;
  host.fuse.max_background = config.mount.max_background;
  host.fuse.mount_options = arguments.mount_options;
  EngineOptions engine_options{config, cluster};
  // A successor's, too, may have gone since (a disk that is not mounted any more).
  auto identity = state::check_in((*daemon)->env(), state_of(arguments, config, cluster, successor));
  if (!identity) return daemon::fail(kName, identity.status());
  engine_options.after_reset = identity->after_reset && !successor;   // the run before has said it
  if (host.holding) {
    engine_options.survivor = host.fuse.survivor = &host.holding->survivor();
    engine_options.successor = successor;
    host.fuse.session = host.holding->session();
  }
  auto engine = Engine::open((*daemon)->env(), std::move(engine_options));
  if (!engine) return daemon::fail(kName, engine.status());
  host.engine = std::move(*engine);
  connect(host);
  return (*daemon)->run([&host](auto ready) { host.start(std::move(ready)); },
                        [&host](auto done) { host.stop(std::move(done)); });
}

}  // namespace tidemark::fs
