// tidemark-replica: the off-site server. Parses, builds, runs; replica.h does the work.
#include <algorithm>
#include <iterator>
#include <memory>

#include "replica/http_api.h"
#include "replica/replica.h"
#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/daemon/links.h"
#include "shared/state/identity.h"
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
    state::Spec spec{config_.node.state_dir, cluster_, config_.node.role, config_.node.name,
                     state::parts_of_replica(config_.witness), {}, daemon_.options().config_file};
    TM_RETURN_IF_ERROR(state::check_in(daemon_.env(), spec).status());
    TM_ASSIGN_OR_RETURN(replica_, Replica::open(daemon_.env(), {.directory = config_.node.state_dir + "/replica",
                                                                .cluster = cluster_, .node = config_.node.name,
                                                                .missing_wait = config_.missing_wait}));
    if (config_.witness) {
      TM_ASSIGN_OR_RETURN(witness_, witness::Witness::open(daemon_.env(), config_.node.state_dir + "/witness"));
    }
    replica_->register_metrics(daemon_.metrics());
    daemon_.set_health([this] {
      std::vector<std::string> reasons = replica_->health();
      if (witness_ != nullptr) std::ranges::move(witness_->health(), std::back_inserter(reasons));
      return reasons;
    });
    daemon_.routes().get("/v1/status",
                         [this](const daemon::Request&) -> Result<std::string> { return replica_->status_json(); });
    auto handle = [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
      const bool witness = witness_ != nullptr && witness::Witness::is_target(request.target);
      if (witness) return witness_->handle(std::move(request), std::move(reply));
      replica_->handle(std::move(request), std::move(reply));
    };
    std::vector<net::Role> roles{net::Role::kHost, net::Role::kShared, net::Role::kOperator};
    TM_ASSIGN_OR_RETURN(http_, daemon_.serve_nodes("replica", config_.listen, config_.tls, std::move(roles), handle));
    return Status::ok();
  }

  daemon::Daemon& daemon_;
  const config::Replica& config_;
  const Uuid cluster_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<witness::Witness> witness_;   // null: not wanted here
  std::unique_ptr<net::HttpServer> http_;   // destroyed first: it pulls bodies from the replica
};

int run(int argc, char** argv) {
  daemon::Arguments arguments;
  if (auto code = daemon::parse_arguments(argc, argv, {kProgram, "Keeps the history of a cluster's images, off site"},
                                          arguments)) {
    return *code;
  }
  auto config = config::load_replica(arguments.config);
  if (!config) return daemon::fail(kProgram, config.status());
  if (Status s = config::check_paths(arguments.config, config->tls, nullptr); !s) return daemon::fail(kProgram, s);
  auto identity = daemon::own_identity(arguments.config, config->node, config->tls);
  if (!identity) return daemon::fail(kProgram, identity.status());
  auto made = daemon::Daemon::create(daemon::options_of(kProgram, arguments, *config));
  if (!made) return daemon::fail(kProgram, made.status());
  daemon::Daemon& daemon = **made;
  Server server(daemon, *config, identity->cluster);
  return daemon.run([&](Callback<Status> ready) { server.start(std::move(ready)); },
                    [&](UniqueFunction<void()> done) { server.stop(std::move(done)); });
}

}  // namespace
}  // namespace tidemark::replica

int main(int argc, char** argv) { return tidemark::replica::run(argc, argv); }
