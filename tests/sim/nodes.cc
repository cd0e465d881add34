#include "tests/sim/nodes.h"

#include "shared/node/journal_marks.h"

namespace tidemark::sim {

Result<std::unique_ptr<node::SharedNode>> open_shared(SimEnv& env, SharedSetup setup) {
  node::NodeOptions options;
  options.name = env.node();
  options.cluster = setup.cluster;
  options.state_dir = "/state";
  options.storage.bricks = {"/brick1", "/brick2"};
  options.storage.stripe_count = 2;
  options.storage.stripe_unit = 64 << 10;
  options.region_bytes = setup.region_bytes;
  options.on_fatal = std::move(setup.on_fatal);
  options.rebuild.hosts = std::move(setup.rebuild_from);
  if (setup.witness) {
    const bool replica = setup.witness_in_replica;
    TM_ASSIGN_OR_RETURN(options.witness, env.network().http_client(
        {.url = replica ? kReplicaUrl : kWitnessUrl, .tls = net::TlsFiles{},
         .server_role = replica ? net::Role::kReplica : net::Role::kWitness}));
  }
  std::unique_ptr<node::MarkSink> sink = std::make_unique<node::NoMarks>();
  if (setup.ships) {
    node::JournalMarksOptions marks;
    marks.directory = "/state/marks";
    marks.source = env.node();
    marks.cluster = setup.cluster;
    marks.settings.limit_age = std::chrono::duration_cast<std::chrono::milliseconds>(setup.limit_age);
    TM_ASSIGN_OR_RETURN(marks.replica, env.network().http_client({.url = kReplicaUrl, .tls = net::TlsFiles{}}));
    TM_ASSIGN_OR_RETURN(sink, node::JournalMarks::open(env, std::move(marks)));
  }
  for (const auto& brick : options.storage.bricks) TM_RETURN_IF_ERROR(env.files().make_directories(brick));
  TM_ASSIGN_OR_RETURN(auto node, node::SharedNode::open(env, std::move(options), std::move(sink)));
  TM_RETURN_IF_ERROR(node->listen({env.node(), kSharedPort}, {}));
  return node;
}

fs::Survivor& Mount::attach() {
  auto attached = fs::Survivor::attach(memory);
  TM_CHECK(attached.is_ok(), "a mount's memory is laid out by this program");
  return survivor.emplace(*attached);
}

Result<std::unique_ptr<fs::Engine>> open_host(SimEnv& env, const HostSetup& setup) {
  fs::EngineOptions options;
  options.cluster = setup.cluster;
  options.survivor = setup.survivor;
  options.successor = setup.successor;
  options.after_reset = setup.after_reset;
  options.config.node.name = env.node();
  options.config.node.role = "host";
  options.config.node.state_dir = options.config.node.run_dir = "/state";
  options.config.storage.bricks = {"/brick1"};
  options.config.shared = config::SharedLink{"shared1:" + std::to_string(kSharedPort), "shared1", 2};
  if (setup.ships) options.config.replica = config::ReplicaLink{kReplicaUrl, "replica1"};
  options.config.journal.region_bytes = setup.region_bytes;
  options.config.journal.limit_bytes = setup.limit_bytes;
  options.config.resync.rate = setup.resync_rate;
  options.config.journal.limit_age = std::chrono::duration_cast<std::chrono::milliseconds>(setup.limit_age);
  options.config.may_go_alone = setup.continues || !(setup.witness || setup.pause);
  if (setup.witness && setup.witness_in_replica)
    options.config.witness = config::WitnessLink{kReplicaUrl, "replica1", true};
  else if (setup.witness) options.config.witness = config::WitnessLink{kWitnessUrl, "witness1", false};
  TM_RETURN_IF_ERROR(env.files().make_directories("/brick1"));
  return fs::Engine::open(env, std::move(options));
}

Result<WitnessServer> open_witness(SimEnv& env, Forgets forgets) {
  WitnessServer out;
  TM_ASSIGN_OR_RETURN(out.witness, witness::Witness::open(env, "/state/witness"));
  net::HttpServerOptions options;
  options.tls = net::TlsFiles{};
  options.roles_accepted = {net::Role::kHost, net::Role::kShared};
  options.address = {env.node(), kWitnessPort};
  TM_ASSIGN_OR_RETURN(out.http, env.network().serve_http(
      options, [witness = out.witness.get(), forgets](net::HttpRequest request, Callback<net::HttpResponse> reply) {
        const std::string verdict = request.target.substr(request.target.rfind('/') + 1);
        const bool host = verdict == "outdated", shared = verdict == "fenced";
        if ((host && forgets != Forgets::kNobody) || (shared && forgets == Forgets::kAll))
          return reply(net::HttpResponse::json(200, "{\"verdict\":\"" + verdict + "\"}"));
        witness->handle(std::move(request), std::move(reply));
      }));
  return out;
}

}  // namespace tidemark::sim
