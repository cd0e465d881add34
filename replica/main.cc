// tidemark-replica: the off-site server. Parses, builds, runs; replica.h does the work.
#include <memory>

#include "replica/http_api.h"
#include "replica/replica.h"
#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/net/pki.h"
#include "shared/witness/witness.h"   // lint: allow include: the program joins the two services, the libraries do not

namespace tidemark::replica {
namespace {

constexpr const char* kProgram = "tidemark-replica";

// What runs between ready and stop.
class Server {
 public:
  Server(daemon::Daemon& daemon, const config::Replica& config, Uuid cluster)
      : daemon_(daemon), config_(config), cluster_(cluster) {}

  void start(Callback<Status> ready) { ready(open()); }

  void stop(UniqueFunction<void()> done) {
    http_.reset();
    if (replica_ == nullptr) return done();
    replica_->close(std::move(done));
  }

 private:
  Status open() {
    TM_ASSIGN_OR_RETURN(replica_, Replica::open(daemon_.env(), {.directory = config_.node.state_dir + "/replica",
                                                                .cluster = cluster_, .node = config_.node.name,
                                                                .missing_wait = config_.missing_wait}));
    if (config_.witness) {
      TM_ASSIGN_OR_RETURN(witness_, witness::Witness::open(daemon_.env(), config_.node.state_dir + "/witness"));
    }
    replica_->register_metrics(daemon_.metrics());
    daemon_.set_health([this] { return replica_->health(); });
    daemon_.routes().get("/v1/status",
                         [this](const daemon::Request&) -> Result<std::string> { return replica_->status_json(); });
    auto address = net::Address::parse(config_.listen.address);
    if (!address) return daemon_.config_error("listen", "address", address.status(), "write HOST:PORT");
    net::HttpServerOptions options{
        .tls = net::TlsFiles{config_.tls.authority, config_.tls.certificate, config_.tls.key},
        .roles_accepted = {net::Role::kHost, net::Role::kShared, net::Role::kOperator},
        .address = *address};
    auto server = daemon_.env().network().serve_http(
        options, [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
          const bool witness = witness_ != nullptr && witness::Witness::is_target(request.target);
          if (witness) return witness_->handle(std::move(request), std::move(reply));
          replica_->handle(std::move(request), std::move(reply));
        });
    if (!server) return daemon_.config_error("listen", "address", server.status(), "free the port or choose another");
    http_ = std::move(*server);
    return daemon_.publish_address("replica", {address->host, http_->port()});
  }

  daemon::Daemon& daemon_;
  const config::Replica& config_;
  const Uuid cluster_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<witness::Witness> witness_;   // null: not wanted here
  std::unique_ptr<net::HttpServer> http_;   // destroyed first: it pulls bodies from the replica
};

Result<Uuid> cluster_of(const config::Replica& config) {
  TM_ASSIGN_OR_RETURN(net::pki::CertificateInfo info, net::pki::inspect(config.tls.certificate));
  if (!info.identity || info.identity->role != net::Role::kReplica) {
    return Status(Code::kInvalidArgument,
                  config.tls.certificate + " is not a replica's certificate: issue one with --role replica");
  }
  if (info.identity->node != config.node.name) {
    return Status(Code::kInvalidArgument, config.tls.certificate + " is of node " + info.identity->node +
                                              ", [node] name is " + config.node.name);
  }
  return info.cluster;
}

int run(int argc, char** argv) {
  daemon::Arguments arguments;
  if (auto code = daemon::parse_arguments(argc, argv, {kProgram, "Keeps the history of a cluster's images, off site"},
                                          arguments)) {
    return *code;
  }
  auto config = config::load_replica(arguments.config);
  if (!config) return daemon::fail(kProgram, config.status());
  if (Status s = config::check_paths(arguments.config, config->tls, nullptr); !s) return daemon::fail(kProgram, s);
  auto cluster = cluster_of(*config);
  if (!cluster) return daemon::fail(kProgram, cluster.status());
  auto made = daemon::Daemon::create({.program = kProgram,
                                      .config_file = arguments.config,
                                      .node = config->node,
                                      .log = config->log,
                                      .metrics = config->metrics,
                                      .background = arguments.background});
  if (!made) return daemon::fail(kProgram, made.status());
  daemon::Daemon& daemon = **made;
  Server server(daemon, *config, *cluster);
  return daemon.run([&](Callback<Status> ready) { server.start(std::move(ready)); },
                    [&](UniqueFunction<void()> done) { server.stop(std::move(done)); });
}

}  // namespace
}  // namespace tidemark::replica

int main(int argc, char** argv) { return tidemark::replica::run(argc, argv); }
