// Daemon: what every Tidemark daemon does around its own work. It builds the real Env and sets up
// logging, pid file, control socket, metrics listener, readiness and signals.
//
//   int main(int argc, char** argv) {
//     daemon::Arguments arguments;
//     if (auto code = daemon::parse_arguments(argc, argv, {"tidemark-shared", "..."}, arguments)) return *code;
//     auto config = config::load_shared(arguments.config);
//     if (!config) return daemon::fail("tidemark-shared", config.status());
//     auto d = daemon::Daemon::create(daemon::options_of("tidemark-shared", arguments, *config));
//     if (!d) return daemon::fail("tidemark-shared", d.status());
//     Node node((*d)->env(), *config);                       // destroyed before the daemon
//     (*d)->routes().get("/v1/status", ...);
//     return (*d)->run([&](auto ready) { node.start(std::move(ready)); },
//                      [&](auto done) { node.stop(std::move(done)); });
//   }
//
// Exit codes: 0 stopped as asked, 2 wrong usage or configuration, 1 anything else.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/config.h"
#include "shared/base/function.h"
#include "shared/base/metrics.h"
#include "shared/base/status.h"
#include "shared/daemon/jobs.h"
#include "shared/daemon/routes.h"
#include "shared/io/real_env.h"

namespace tidemark::daemon {

struct Arguments {
  std::string config;
  bool background = false;   // return to the shell when ready
};
struct ProgramInfo { std::string name, purpose; };
// Understands --config FILE (or TIDEMARK_CONFIG), --check, --background, --version, --help. An exit code when
// there is nothing left to do (help, version, a successful check's caller has loaded the file, wrong usage).
std::optional<int> parse_arguments(int argc, char** argv, const ProgramInfo& program, Arguments& out);

// Prints `PROGRAM: message` as one line on standard error and gives the exit code.
int fail(const std::string& program, const Status& status);

struct Options {
  std::string program;        // "tidemark-shared"
  std::string config_file;    // for messages that name a line
  config::Node node;
  config::Log log;
  config::Listen metrics;     // empty address: no metrics listener
  // create() forks; the parent exits 0 once the child is ready, or with its exit code. The log then
  // goes to state_dir/NAME.log unless the configuration names a file.
  bool background = false;
  std::string pid_suffix;     // run_dir/NAME + this + ".pid"
  // Somebody waits for it: a metrics listener that cannot be is tried again, and meanwhile a reason in /healthz.
  bool metrics_may_wait = false;
};

// What a daemon's configuration says of all that.
template <class Config>
Options options_of(std::string program, const Arguments& arguments, const Config& config) {
  return {.program = std::move(program), .config_file = arguments.config, .node = config.node, .log = config.log,
          .metrics = config.metrics, .background = arguments.background, .pid_suffix = {}, .metrics_may_wait = false};
}

class Daemon {
 public:
  // The part of create() that finds faults of the configuration: certificates, state_dir and run_dir (which are made).
  static Status prepare(const Options& options);
  static Status open_log(const Options& options);
  // Makes state_dir and run_dir, takes the pid file (kBusy if a live daemon holds it), configures the log.
  // Call before any thread starts.
  static Result<std::unique_ptr<Daemon>> create(Options options);
  ~Daemon();   // removes pid file and socket
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  io::RealEnv& env();
  metrics::Registry& metrics();
  Routes& routes();       // of the control socket; /healthz, /metrics and /v1/jobs/{id} are there already
  Jobs& jobs();
  const Options& options() const;

  // Why the daemon is not healthy; empty: it is. Asked by /healthz. Default: always healthy.
  void set_health(std::function<std::vector<std::string>()> reasons);

  // For values that proved unusable: "FILE:LINE: [section] key: WHY: REMEDY", kInvalidArgument (exit code 2).
  Status config_error(std::string_view section, std::string_view key, const Status& why, std::string_view remedy) const;
  // Writes run_dir/NAME.address ("127.0.0.1:41234"), where a port 0 of the configuration became a real one.
  Status publish_address(const std::string& name, const net::Address& address);
  // Serves HTTPS at the address of [listen] to nodes of these roles, and publishes the address under `name`.
  Result<std::unique_ptr<net::HttpServer>> serve_nodes(const std::string& name, const config::Listen& listen,
                                                       const config::Tls& tls, std::vector<net::Role> roles,
                                                       net::HttpHandler handler);

  // Opens control socket and metrics listener, calls `start` on the loop thread, reports readiness when
  // its callback got OK, runs the loop until SIGTERM, SIGINT or request_stop(), calls `stop` and ends the loop
  // when its callback ran, or after limits::kStopSecondsMax with exit code 1. A start that
  // failed is printed and stops nothing.
  int run(UniqueFunction<void(Callback<Status>)> start, UniqueFunction<void(UniqueFunction<void()>)> stop);
  // As SIGTERM does. `exit_code` is run()'s, if nothing worse happens. Loop thread.
  void request_stop(int exit_code = 0);

 private:
  struct State;
  explicit Daemon(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tidemark::daemon
