#include "shared/daemon/daemon.h"

#include <signal.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <tuple>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/version.h"
#include "shared/daemon/links.h"
#include "shared/daemon/process.h"
#include "shared/io/file.h"
#include "shared/kv/lmdb_store.h"
#include "shared/net/real_network.h"
#include "shared/net/revocation.h"

namespace tidemark::daemon {
namespace {

const log::Logger kLog("daemon");
constexpr std::chrono::seconds kMetricsRetry{5};

// The daemons open storage before they listen; a used port is found out first, so that the one line
// about it is all that is said and nothing was begun.
Status probe_ports(const Options& o) {
  std::string listen;
  if (o.node.role == "shared") {
    if (auto c = config::load_shared(o.config_file)) listen = c->listen.address;
  } else if (o.node.role == "replica") {
    if (auto c = config::load_replica(o.config_file)) listen = c->listen.address;
  }
  for (const auto& [section, key, text] :
       {std::tuple{"listen", "address", listen}, {"metrics", "listen", o.metrics.address}}) {
    auto address = net::Address::parse(text);
    if (text.empty() || !address) continue;   // the listener itself says what is wrong with it
    if (section == std::string_view("metrics") && o.metrics_may_wait) continue;
    Status s = probe_address(address->host, address->port);
    if (s) continue;
    return {Code::kInvalidArgument,
            config::locate(o.config_file, section, key) + ": " + s.message() + ": choose a free port, or 0 for any"};
  }
  return {};
}

// A missing certificate or an open key is the configuration's fault, whichever part of the daemon would meet it first.
Status check_tls_files(const Options& o) {
  std::optional<config::Tls> tls;
  if (o.node.role == "shared") {
    if (auto c = config::load_shared(o.config_file)) tls = c->tls;
  } else if (o.node.role == "replica") {
    if (auto c = config::load_replica(o.config_file)) tls = c->tls;
  }
  return tls ? config::check_paths(o.config_file, *tls, nullptr) : Status();
}

}  // namespace

struct Daemon::State {
  explicit State(Options o) : options(std::move(o)) {}

  Options options;
  Background background;
  PidFile pid_file;
  metrics::Registry metrics;
  std::unique_ptr<io::RealEnv> env;
  std::unique_ptr<Jobs> jobs;
  Routes routes;           // of the control socket
  Routes metrics_routes;   // of the metrics listener
  std::function<std::vector<std::string>()> health;
  std::string metrics_fault;   // why nobody listens for them; empty: somebody does
  std::unique_ptr<net::HttpServer> control, metrics_server;   // destroyed before env

  UniqueFunction<void(UniqueFunction<void()>)> stop;
  enum class Phase : uint8_t { kStarting, kRunning, kStopping, kStopped } phase = Phase::kStarting;
  bool stop_when_started = false;
  int exit_code = 0;

  Status serve(Daemon& daemon);
  Status serve_metrics(Daemon& daemon);
  void serve_metrics_later(Daemon& daemon, const Status& why);
  void add_common_routes(Routes& to);
  void begin_stop();
  void bound_the_stop();
  void stopped();
};

Daemon::Daemon(std::unique_ptr<State> state) : state_(std::move(state)) {}

Daemon::~Daemon() {
  // Handlers may refer to what the caller has destroyed already: no request may reach them any more.
  state_->metrics_server.reset();
  state_->control.reset();
}

io::RealEnv& Daemon::env() { return *state_->env; }
metrics::Registry& Daemon::metrics() { return state_->metrics; }
Routes& Daemon::routes() { return state_->routes; }
Jobs& Daemon::jobs() { return *state_->jobs; }
const Options& Daemon::options() const { return state_->options; }
void Daemon::set_health(std::function<std::vector<std::string>()> reasons) { state_->health = std::move(reasons); }

Status Daemon::open_log(const Options& o) {
  log::Options log_options;
  log_options.level = log::parse_level(o.log.level).value_or(log::Level::kInfo);
  log_options.file = o.log.file;
  if (o.background && log_options.file.empty()) log_options.file = o.node.state_dir + "/" + o.node.name + ".log";
  log_options.journald = log_options.file.empty() && log_goes_to_journald();
  try {
    log::configure(log_options);
  } catch (const std::exception& e) {  // spdlog's way to say that the file cannot be opened
    return Status(Code::kInvalidArgument, config::locate(o.config_file, "log", "file") + ": " + e.what() +
                                              ": choose a file that this user can write");
  }
  return {};
}

Status Daemon::prepare(const Options& o) {
  auto usable = [&](const char* key, const std::string& path) -> Status {
    Status s = make_private_directory(path);
    if (s) return s;
    return {Code::kInvalidArgument, config::locate(o.config_file, "node", key) + ": " + s.message() +
                                        ": choose a directory that this user can write"};
  };
  TM_RETURN_IF_ERROR(check_tls_files(o));
  TM_RETURN_IF_ERROR(usable("state_dir", o.node.state_dir));
  return usable(o.node.run_dir == o.node.state_dir ? "state_dir" : "run_dir", o.node.run_dir);
}

Result<std::unique_ptr<Daemon>> Daemon::create(Options options) {
  auto state = std::make_unique<State>(std::move(options));
  const Options& o = state->options;
  TM_RETURN_IF_ERROR(prepare(o));
  if (o.background) {
    TM_ASSIGN_OR_RETURN(state->background, Background::enter());
  }
  TM_ASSIGN_OR_RETURN(state->pid_file, PidFile::take(o.node.run_dir + "/" + o.node.name + o.pid_suffix + ".pid"));
  TM_RETURN_IF_ERROR(probe_ports(o));
  TM_RETURN_IF_ERROR(open_log(o));
  TM_RETURN_IF_ERROR(net::keep_revocations(o.node.state_dir + "/revoked"));
  raise_descriptor_limit();
  signal(SIGPIPE, SIG_IGN);
  io::RealEnvOptions env_options;
  env_options.open_store = kv::open_lmdb_store;
  env_options.make_network = net::make_real_network;
  env_options.busy_poll_max = std::chrono::microseconds(o.node.busy_poll_us);
  state->env = std::make_unique<io::RealEnv>(std::move(env_options));
  state->jobs = std::make_unique<Jobs>(*state->env);
  state->add_common_routes(state->routes);
  state->add_common_routes(state->metrics_routes);
  state->routes.get("/v1/jobs/{id}", [s = state.get()](const Request& r) { return s->jobs->json(r.parameter("id")); });
  state->metrics.gauge("build_info", "Always 1", {{"version", std::string(version())}, {"program", o.program}}).set(1);
  auto started = state->metrics.gauge("start_time_seconds", "When the daemon was started, since 1970");
  started.set(static_cast<double>(state->env->wall().ns) / 1e9);
  return std::unique_ptr<Daemon>(new Daemon(std::move(state)));
}

void Daemon::State::add_common_routes(Routes& to) {
  to.get("/metrics", [this](Request, Reply reply) {
    reply(net::HttpResponse::text(200, metrics.text(), "text/plain; version=0.0.4; charset=utf-8"));
  });
  to.get("/healthz", [this](Request, Reply reply) {
    std::vector<std::string> reasons;
    if (phase == Phase::kStarting) reasons.push_back("starting");
    else if (phase != Phase::kRunning) reasons.push_back("stopping");
    else if (health) reasons = health();
    if (phase == Phase::kRunning && !metrics_fault.empty()) reasons.push_back(metrics_fault);
    if (reasons.empty()) return reply(net::HttpResponse::json(200, R"({"healthy": true})"));
    nlohmann::json body{{"healthy", false}, {"reasons", reasons}};
    reply(net::HttpResponse::json(503, body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  });
}

Status Daemon::config_error(std::string_view section, std::string_view key, const Status& why,
                            std::string_view remedy) const {
  return {Code::kInvalidArgument, config::locate(state_->options.config_file, section, key) + ": " + why.message() +
                                      ": " + std::string(remedy)};
}

Status Daemon::publish_address(const std::string& name, const net::Address& address) {
  return state_->env->files().write_file_atomically(state_->options.node.run_dir + "/" + name + ".address",
                                                    as_bytes(address.to_string() + "\n"), 0644);
}

Result<std::unique_ptr<net::HttpServer>> Daemon::serve_nodes(const std::string& name, const config::Listen& listen,
                                                             const config::Tls& tls, std::vector<net::Role> roles,
                                                             net::HttpHandler handler) {
  auto address = net::Address::parse(listen.address);
  if (!address) return config_error("listen", "address", address.status(), "write HOST:PORT");
  net::HttpServerOptions options;
  options.tls = files_of(tls);
  options.roles_accepted = std::move(roles);
  options.address = *address;
  auto server = env().network().serve_http(options, std::move(handler));
  if (!server) return config_error("listen", "address", server.status(), "free the port or choose another");
  TM_RETURN_IF_ERROR(publish_address(name, {address->host, (*server)->port()}));
  return std::move(*server);
}

Status Daemon::State::serve(Daemon& daemon) {
  net::HttpServerOptions control_options;
  control_options.unix_socket = options.node.control_socket();
  auto r =
      env->network().serve_http(control_options, [this](net::HttpRequest request, Callback<net::HttpResponse> done) {
        routes.dispatch(std::move(request), std::move(done));
      });
  if (!r)
    return daemon.config_error("node", "run_dir", r.status(), "choose a directory with a shorter path or more room");
  control = std::move(*r);
  if (options.metrics.address.empty()) return {};
  Status served = serve_metrics(daemon);
  if (served || !options.metrics_may_wait) return served;
  serve_metrics_later(daemon, served);
  return {};
}

void Daemon::State::serve_metrics_later(Daemon& daemon, const Status& why) {
  if (metrics_fault.empty()) kLog.warning("metrics_not_served", {{"error", why}, {"now", "tried again"}});
  metrics_fault = why.message();
  env->after(kMetricsRetry, [this, &daemon] {
    if (Status served = serve_metrics(daemon); !served) return serve_metrics_later(daemon, served);
    metrics_fault.clear();
    kLog.info("metrics_served");
  });
}

Status Daemon::State::serve_metrics(Daemon& daemon) {
  net::HttpServerOptions metrics_options;
  auto address = net::Address::parse(options.metrics.address);
  if (!address) return daemon.config_error("metrics", "listen", address.status(), "write host:port");
  metrics_options.address = *address;
  auto m =
      env->network().serve_http(metrics_options, [this](net::HttpRequest request, Callback<net::HttpResponse> done) {
        metrics_routes.dispatch(std::move(request), std::move(done));
      });
  if (!m) return daemon.config_error("metrics", "listen", m.status(), "choose a free port, or 0 for any");
  address->port = (*m)->port();
  TM_RETURN_IF_ERROR(daemon.publish_address("metrics", *address));
  metrics_server = std::move(*m);
  return {};
}

int Daemon::run(UniqueFunction<void(Callback<Status>)> start, UniqueFunction<void(UniqueFunction<void()>)> stop) {
  State& s = *state_;
  s.stop = std::move(stop);
  s.env->on_signal({SIGTERM, SIGINT}, [this](int number) {
    kLog.info("signal", {{"number", number}});
    request_stop();
  });
  if (Status served = s.serve(*this); !served) return fail(s.options.program, served);
  s.env->post([this, start = std::move(start)]() mutable {
    start([this](Status status) {
      State& st = *state_;
      if (!status) {
        st.exit_code = fail(st.options.program, status);
        if (!st.options.log.file.empty() || st.options.background) kLog.error("start_failed", {{"status", status}});
        st.phase = State::Phase::kStopped;
        return st.env->stop();
      }
      if (st.stop_when_started) return st.begin_stop();
      st.phase = State::Phase::kRunning;
      kLog.info("ready", {{"program", st.options.program}, {"node", st.options.node.name}, {"version", version()}});
      notify_systemd("READY=1");
      st.background.ready();
    });
  });
  s.env->run();
  // The servers end here, not with the Daemon: what their handlers refer to may go before it.
  s.metrics_server.reset();
  s.control.reset();
  s.stop = nullptr;
  return s.exit_code;
}

void Daemon::request_stop(int exit_code) {
  State& s = *state_;
  if (exit_code != 0) s.exit_code = exit_code;
  if (s.phase == State::Phase::kStarting) {
    if (s.stop_when_started) return;
    s.stop_when_started = true;   // a start half done is first brought to its end, then stopped
    s.bound_the_stop();
    return;
  }
  if (s.phase == State::Phase::kRunning) s.begin_stop();
}

void Daemon::State::begin_stop() {
  phase = Phase::kStopping;
  notify_systemd("STOPPING=1");
  kLog.info("stopping");
  if (!stop_when_started) bound_the_stop();
  stop([this] { stopped(); });
}

void Daemon::State::bound_the_stop() {
  env->after(std::chrono::seconds(limits::kStopSecondsMax), [this] {
    kLog.error("stop_took_too_long", {{"seconds", limits::kStopSecondsMax}});
    exit_code = 1;
    stopped();
  });
}

void Daemon::State::stopped() {
  if (phase == Phase::kStopped) return;
  phase = Phase::kStopped;
  kLog.info("stopped", {{"exit_code", exit_code}});
  env->stop();
}

}  // namespace tidemark::daemon
