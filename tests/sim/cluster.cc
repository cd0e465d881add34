#include "tests/sim/cluster.h"

#include <cstdio>

#include "tests/sim/nodes.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
}  // namespace

Cluster::Cluster(uint64_t seed, const Scenario& scenario)
    : scenario_(scenario), world_({.seed = seed, .reset_per_million = scenario.reset_per_million,
                                                .http_request_lost_per_million = scenario.http_faults_per_million,
                                                .http_answer_lost_per_million = scenario.http_faults_per_million}) {
  std::array<uint8_t, 16> id;
  world_.random().fill(id);
  cluster_ = Uuid::from_random(id);
  auto offset = [&] { return seconds(static_cast<int64_t>(world_.random().below(7200)) - 3600); };
  auto drift = [&] { return static_cast<int32_t>(world_.random().below(400)) - 200; };
  for (auto [name, role] : {std::pair{"shared1", net::Role::kShared}, {"replica1", net::Role::kReplica},
                            {"host1", net::Role::kHost}, {"host2", net::Role::kHost}}) {
    world_.add_node({.name = name, .cluster = cluster_, .role = role, .wall_offset = offset(), .drift_ppm = drift()});
  }
  world_.add_node({.name = "reader", .cluster = cluster_, .role = net::Role::kOperator});
  if (scenario.hosts > 2)
    world_.add_node({.name = "host3", .cluster = cluster_, .role = net::Role::kHost, .wall_offset = offset(), .drift_ppm = drift()});
  add_witness();
  hosts_.resize(scenario.hosts);
  // No copy is ever filled, and no request comes twice.
  bool strict = scenario.relay_images == 0 && scenario.brick_failures == 0 && !scenario.contested;
  for (size_t h = 0; h < hosts_.size(); ++h) {
    hosts_[h].name = "host" + std::to_string(h + 1);
    for (uint32_t i = 0; i < scenario.images_per_host; ++i) {
      hosts_[h].images.push_back(models_.size());
      names_.push_back(hosts_[h].name + "-" + std::to_string(i) + ".img");
      models_.push_back(std::make_unique<ImageModel>(models_.size() + 1, scenario.image_bytes, strict));
    }
  }
  for (uint32_t i = 0; i < scenario.relay_images; ++i) {
    relays_.push_back(std::make_unique<Relay>());
    relays_.back()->model = models_.size();
    names_.push_back("relay-" + std::to_string(i) + ".img");
    models_.push_back(std::make_unique<ImageModel>(models_.size() + 1, scenario.image_bytes, strict));
  }
}

Cluster::~Cluster() {
  // The daemons end as in a crash: what they do while being destroyed has no effect.
  for (const std::string& name : node_names()) {
    if (world_.running(name)) world_.crash(name, Crash::kKill);
  }
  if (world_.running("reader")) world_.crash("reader", Crash::kKill);
  for (auto& relay : relays_) relay->guest.reset(), relay->stranded.clear();
  for (Host& host : hosts_) host.guests.clear(), host.engine.reset();
  reader_.reset();
  shared_.reset();
  replica_server_.reset();
  replica_witness_.reset();
  replica_.reset();
  witness_ = {};
}

void Cluster::fail(const std::string& what) {
  if (failure_.empty()) {
    char at[32];
    std::snprintf(at, sizeof at, "%.6f s: ", std::chrono::duration<double>(world_.elapsed()).count());
    failure_ = at + what;
  }
}

// ---- daemons --------------------------------------------------------------------------------------

void Cluster::start_shared() {
  SimEnv& env = world_.start("shared1");
  auto node = open_shared(env, {.cluster = cluster_, .region_bytes = scenario_.region_bytes, .ships = true,
                                .limit_age = scenario_.limit_age, .on_fatal = [this](const Status& s) { fail("shared node: " + s.to_string()); },
                                .witness = scenario_.witness != WitnessKind::kNone,
                                .witness_in_replica = scenario_.witness == WitnessKind::kInReplica});
  if (!node) return fail("shared node: " + node.status().to_string());
  shared_ = std::move(*node);
}

void Cluster::start_replica() {
  SimEnv& env = world_.start("replica1");
  auto opened = replica::Replica::open(env, {.directory = replica_directory_, .cluster = cluster_, .node = "replica1"});
  if (!opened) return fail("replica: " + opened.status().to_string());
  replica_ = std::move(*opened);
  if (scenario_.witness == WitnessKind::kInReplica) {   // as tidemark-replica joins the two
    auto witness = witness::Witness::open(env, "/state/witness");
    if (!witness) return fail("the replica's witness: " + witness.status().to_string());
    replica_witness_ = std::move(*witness);
  }
  net::HttpServerOptions options;
  options.tls = net::TlsFiles{};
  options.roles_accepted = {net::Role::kHost, net::Role::kShared, net::Role::kOperator};
  options.address = {"replica1", kReplicaPort};
  auto server = env.network().serve_http(options, [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
    if (replica_witness_ && witness::Witness::is_target(request.target))
      return replica_witness_->handle(std::move(request), std::move(reply));
    replica_->handle(std::move(request), std::move(reply));
  });
  if (!server) return fail("replica: " + server.status().to_string());
  replica_server_ = std::move(*server);
}

void Cluster::start_host(Host& host, bool first) {
  world_.clear_faults(host.name);               // whoever starts it has repaired its brick
  if (scenario_.contested) host.mount = std::make_unique<Mount>();
  start_run(host, false);
  if (host.engine) start_guests(host, first);
}

void Cluster::start_run(Host& host, bool successor) {
  SimEnv& env = world_.start(host.name);
  auto engine = open_host(env, {.cluster = cluster_, .region_bytes = scenario_.region_bytes, .ships = true,
                                .limit_bytes = scenario_.limit_bytes, .limit_age = scenario_.limit_age,
                                .witness = scenario_.witness != WitnessKind::kNone,
                                .witness_in_replica = scenario_.witness == WitnessKind::kInReplica,
                                .pause = scenario_.pause,
                                .survivor = host.mount ? &host.mount->attach() : nullptr, .successor = successor});
  if (!engine) return fail(host.name + ": " + engine.status().to_string());
  host.engine = std::move(*engine);
  host.engine->start();
}

void Cluster::start_guests(Host& host, bool first) {
  SimEnv& env = *world_.process(host.name);
  auto failed = [this](const std::string& what) { fail(what); };
  host.guests.clear();
  for (size_t image : host.images) {
    host.guests.push_back(std::make_unique<Guest>(world_, *models_[image], names_[image], scenario_.guest));
    Guest* guest = host.guests.back().get();
    // The engine needs its first handshake before names can be asked for; it waits for that itself.
    guest->start(*host.engine, env, first, failed);
  }
}

// ---- images that move -----------------------------------------------------------------------------

void Cluster::next_turn(Relay& relay, Duration pause) {
  relay.host = nullptr;
  uint64_t turn = ++relay.turns;
  world_.at(pause, [this, &relay, turn] {
    if (failure_.empty() && relay.turns == turn && !relay.ended) begin_turn(relay);
  });
}

void Cluster::begin_turn(Relay& relay) {
  if (!relay.victim.empty()) return;
  Host& host = any_host();
  if (!world_.running(host.name) || (scenario_.contested && unaware(relay, host))) return next_turn(relay, milliseconds(100));
  start_turn(relay, host);
}

void Cluster::start_turn(Relay& relay, Host& host) {
  relay.host = &host;
  GuestOptions options = scenario_.guest;
  options.turn_requests = static_cast<uint32_t>(1 + world_.random().below(world_.random().coin() ? 12 : 150));
  relay.guest = std::make_unique<Guest>(world_, *models_[relay.model], names_[relay.model], options);
  if (scenario_.contested) relay.guest->on_taken([this, &relay] { rival_taken(relay); });
  const bool may_fail = scenario_.contested && moved_on(relay, host);
  relay.guest->start(*host.engine, *world_.process(host.name), !relay.created, [this](const std::string& what) { fail(what); });
  if (may_fail) relay.guest->expect_failures();
  watch_turn(relay);
}

void Cluster::watch_turn(Relay& relay) {
  world_.at(milliseconds(5), [this, &relay, turn = relay.turns] {
    if (!failure_.empty() || relay.turns != turn || relay.host == nullptr) return;
    if (relay.guest->has_tenure()) relay.created = true;
    if (!relay.guest->idle()) return watch_turn(relay);
    acknowledged_ += relay.guest->acknowledged();
    next_turn(relay, world_.random().in({Duration(0), milliseconds(400)}));
  });
}

uint64_t Cluster::acknowledged() const {
  uint64_t total = acknowledged_;
  for (const Host& host : hosts_) for (const auto& guest : host.guests) total += guest->acknowledged();
  return total;
}

std::string Cluster::run() {
  start_shared();
  start_replica();
  start_witness();
  for (Host& host : hosts_) start_host(host, true);
  for (auto& relay : relays_) next_turn(*relay, milliseconds(50));
  world_.run_for(milliseconds(500));
  plan();
  world_.run_until([this] { return !failure_.empty(); }, scenario_.length);
  if (!failure_.empty()) return failure_;
  if (!settle()) return failure_;
  for (Host& host : hosts_) {
    std::vector<std::string> images;
    for (size_t image : host.images) images.push_back(names_[image]);
    if (!images.empty() && !verify(host, images)) return failure_;
  }
  check_points();
  return failure_;
}

}  // namespace tidemark::sim
