// tidemark-witness: the third vote. Parses, builds, runs; witness.h does the work.
#include <memory>

#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/daemon/links.h"
#include "shared/state/identity.h"
#include "shared/witness/witness.h"

namespace tidemark::witness {
namespace {

constexpr const char* kProgram = "tidemark-witness";

// What runs between ready and stop.
class Server {
 public:
  Server(daemon::Daemon& daemon, const config::Witness& config, const Uuid& cluster)
      : daemon_(daemon), config_(config), cluster_(cluster) {}

  void start(Callback<Status> ready) { ready(open()); }

  void stop(UniqueFunction<void()> done) {
    http_.reset();
    done();
  }

 private:
  Status open() {
    state::Spec spec{config_.node.state_dir, cluster_, config_.node.role, config_.node.name, state::parts_of_witness(),
                     {}, daemon_.options().config_file};
    TM_RETURN_IF_ERROR(state::check_in(daemon_.env(), spec).status());
    TM_ASSIGN_OR_RETURN(witness_, Witness::open(daemon_.env(), config_.node.state_dir + "/witness"));
    daemon_.set_health([this] { return witness_->health(); });
    daemon_.routes().get("/v1/status",
                         [this](const daemon::Request&) -> Result<std::string> { return witness_->status_json(); });
    auto handle = [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
      witness_->handle(std::move(request), std::move(reply));
    };
    std::vector<net::Role> roles{net::Role::kHost, net::Role::kShared};
    TM_ASSIGN_OR_RETURN(http_, daemon_.serve_nodes("witness", config_.listen, config_.tls, std::move(roles), handle));
    return Status::ok();
  }

  daemon::Daemon& daemon_;
  const config::Witness& config_;
  const Uuid cluster_;
  std::unique_ptr<Witness> witness_;
  std::unique_ptr<net::HttpServer> http_;   // destroyed first: it asks the witness
};

int run(int argc, char** argv) {
  daemon::Arguments arguments;
  if (auto code = daemon::parse_arguments(argc, argv, {kProgram, "The third vote of a Tidemark cluster"},
                                          arguments)) {
    return *code;
  }
  auto config = config::load_witness(arguments.config);
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
}  // namespace tidemark::witness

int main(int argc, char** argv) { return tidemark::witness::run(argc, argv); }
