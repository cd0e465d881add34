// tidemark-shared: the shared node's daemon. Configuration: examples/shared.toml.
#include <utility>

#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/daemon/links.h"
#include "shared/io/real_files.h"
#include "shared/net/network.h"
#include "shared/node/journal_marks.h"
#include "shared/node/node.h"
#include "shared/state/identity.h"

namespace tidemark {
namespace {

Result<std::unique_ptr<node::MarkSink>> open_marks(io::Env& env, const config::Shared& config,
                                                   const Uuid& cluster) {
  node::JournalMarksOptions options;
  options.directory = config.node.state_dir;
  options.source = config.node.name;
  options.cluster = cluster;
  options.settings = config.journal;
  options.reserve_directories = config.storage.bricks;   // best on other disks than the journal
  if (config.replica) {
    TM_ASSIGN_OR_RETURN(options.replica, env.network().http_client(daemon::client_of(*config.replica, config.tls)));
  }
  return node::JournalMarks::open(env, std::move(options));
}

void add_routes(daemon::Daemon& daemon, node::SharedNode*& node) {
  daemon.set_health([&node] {
    return node != nullptr ? node->unhealthy_reasons() : std::vector<std::string>{"starting"};
  });
  daemon.routes().get("/v1/status", [&node](const daemon::Request&) -> Result<std::string> {
    if (node == nullptr) return Status(Code::kUnavailable, "starting");
    return node->status_json();
  });
  daemon.routes().get("/v1/journal", [&node](const daemon::Request&) -> Result<std::string> {
    if (node == nullptr) return Status(Code::kUnavailable, "starting");
    return node->journal_json();
  });
  daemon.routes().post("/v1/resync-replica", [&node](daemon::Request, daemon::Reply reply) {
    if (node == nullptr) return reply(daemon::error_response(Status(Code::kUnavailable, "starting")));
    node->resync_replica([reply = std::move(reply)](Result<std::string> names) mutable {
      reply(daemon::json_response(std::move(names)));
    });
  });
  daemon.routes().post("/v1/images/takeover", [&node](daemon::Request request, daemon::Reply reply) {
    if (node == nullptr) return reply(daemon::error_response(Status(Code::kUnavailable, "starting")));
    node->takeover(std::string(request.text()), [reply = std::move(reply)](Result<std::string> report) mutable {
      reply(daemon::json_response(std::move(report)));
    });
  });
  daemon.routes().post("/v1/images/policy", [&node](daemon::Request request, daemon::Reply reply) {
    auto policy = node::parse_policy(request.text());
    if (!policy) return reply(daemon::error_response(policy.status()));
    if (node == nullptr) return reply(daemon::error_response(Status(Code::kUnavailable, "starting")));
    node->set_policy(policy->image, policy->mirror, [reply = std::move(reply)](Result<std::string> image) mutable {
      reply(daemon::json_response(std::move(image)));
    });
  });
}

// Opens everything; a message names the file and key to change.
Status start(daemon::Daemon& daemon, const config::Shared& config, std::unique_ptr<node::SharedNode>& node) {
  const std::string& file = daemon.options().config_file;
  TM_ASSIGN_OR_RETURN(net::PeerIdentity identity, daemon::own_identity(file, config.node, config.tls));
  // A process that was killed may have left writes with the disk that land after its end.
  TM_RETURN_IF_ERROR(io::await_earlier_writes(config.storage.bricks, std::chrono::seconds(10)));
  state::Spec spec{config.node.state_dir, identity.cluster, config.node.role, config.node.name,
                   state::parts_of_shared(), config.storage.bricks, file};
  TM_RETURN_IF_ERROR(state::check_in(daemon.env(), spec).status());
  TM_ASSIGN_OR_RETURN(state::RebuildOrder rebuild, state::read_rebuild_order(daemon.env(), config.node.state_dir));
  auto marks = open_marks(daemon.env(), config, identity.cluster);
  if (!marks) return marks.status();
  node::NodeOptions options;
  options.name = config.node.name;
  options.cluster = identity.cluster;
  options.state_dir = config.node.state_dir;
  options.storage = config.storage;
  options.region_bytes = config.journal.region_bytes;
  options.tenure_wait = config.tenure_wait;
  options.metrics = &daemon.metrics();
  options.rebuild = rebuild;
  if (config.witness) {
    const auto http = daemon::client_of(*config.witness, config.tls);
    TM_ASSIGN_OR_RETURN(options.witness, daemon.env().network().http_client(http));
  }
  options.on_fatal = [&daemon](const Status&) { daemon.request_stop(1); };
  auto opened = node::SharedNode::open(daemon.env(), std::move(options), std::move(*marks));
  if (!opened) {
    bool ours = opened.status().code() == Code::kInvalidArgument;
    return ours ? daemon.config_error("storage", "bricks", opened.status(), "name directories of one storage group")
                : opened.status();
  }
  if (!rebuild.hosts.empty()) TM_RETURN_IF_ERROR(state::remove_rebuild_order(daemon.env(), config.node.state_dir));
  auto address = net::Address::parse(config.listen.address);
  if (!address) return daemon.config_error("listen", "address", address.status(), "write HOST:PORT");
  if (Status s = (*opened)->listen(*address, daemon::files_of(config.tls)); !s) {
    return daemon.config_error("listen", "address", s, "choose a free address, or port 0 for any");
  }
  address->port = (*opened)->port();
  node = std::move(*opened);
  return daemon.publish_address("listen", *address);
}

}  // namespace
}  // namespace tidemark

int main(int argc, char** argv) {
  using namespace tidemark;
  daemon::Arguments arguments;
  if (auto code = daemon::parse_arguments(argc, argv, {"tidemark-shared", "The shared node of a Tidemark cluster"},
                                          arguments)) {
    return *code;
  }
  auto config = config::load_shared(arguments.config);
  if (!config) return daemon::fail("tidemark-shared", config.status());
  auto daemon = daemon::Daemon::create(daemon::options_of("tidemark-shared", arguments, *config));
  if (!daemon) return daemon::fail("tidemark-shared", daemon.status());
  std::unique_ptr<node::SharedNode> node;   // destroyed before the daemon
  node::SharedNode* serving = nullptr;
  add_routes(**daemon, serving);
  return (*daemon)->run(
      [&](Callback<Status> ready) {
        Status status = start(**daemon, *config, node);
        serving = status ? node.get() : nullptr;
        ready(std::move(status));
      },
      [&](UniqueFunction<void()> done) {
        if (!node) return done();
        node->stop(std::move(done));
      });
}
