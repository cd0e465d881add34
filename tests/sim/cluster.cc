#include "tests/sim/cluster.h"

#include <nlohmann/json.hpp>

#include <cstdio>

#include "shared/base/log.h"
#include "tests/sim/nodes.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const log::Logger kLog("sim");   // what is done to the cluster stands among the daemons' own lines

std::string_view kind_name(Crash kind) { return kind == Crash::kPowerLoss ? "power loss" : "kill"; }
int64_t ms_in(const World& world) { return world.elapsed().count() / 1'000'000; }

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
  hosts_.resize(2);
  bool strict = scenario.relay_images == 0 && scenario.brick_failures == 0;   // no copy is ever filled
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
  for (const char* name : {"host1", "host2", "shared1", "replica1", "reader"}) {
    if (world_.running(name)) world_.crash(name, Crash::kKill);
  }
  for (auto& relay : relays_) relay->guest.reset();
  for (Host& host : hosts_) host.guests.clear(), host.engine.reset();
  reader_.reset();
  shared_.reset();
  replica_server_.reset();
  replica_.reset();
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
                                .limit_age = scenario_.limit_age, .on_fatal = [this](const Status& s) { fail("shared node: " + s.to_string()); }});
  if (!node) return fail("shared node: " + node.status().to_string());
  shared_ = std::move(*node);
}

void Cluster::start_replica() {
  SimEnv& env = world_.start("replica1");
  auto opened = replica::Replica::open(env, {.directory = replica_directory_, .cluster = cluster_, .node = "replica1"});
  if (!opened) return fail("replica: " + opened.status().to_string());
  replica_ = std::move(*opened);
  net::HttpServerOptions options;
  options.tls = net::TlsFiles{};
  options.roles_accepted = {net::Role::kHost, net::Role::kShared, net::Role::kOperator};
  options.address = {"replica1", kReplicaPort};
  auto server = env.network().serve_http(options, [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
    replica_->handle(std::move(request), std::move(reply));
  });
  if (!server) return fail("replica: " + server.status().to_string());
  replica_server_ = std::move(*server);
}

void Cluster::start_host(Host& host, bool first) {
  world_.clear_faults(host.name);               // whoever starts it has repaired its brick
  SimEnv& env = world_.start(host.name);
  auto engine = open_host(env, {.cluster = cluster_, .region_bytes = scenario_.region_bytes, .ships = true,
                                .limit_bytes = scenario_.limit_bytes, .limit_age = scenario_.limit_age});
  if (!engine) return fail(host.name + ": " + engine.status().to_string());
  host.engine = std::move(*engine);
  host.engine->start();
  start_guests(host, first);
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

// Where hosts and the shared node lose their power, unflushed writes may be gone from both copies.
void Cluster::lost_power() {
  if (scenario_.host_power_losses == 0 || scenario_.shared_power_losses == 0) return;
  for (auto& model : models_) model->lose_unflushed();
}

// Of an image whose writes this host acknowledged alone it has the only copy: what no flush covered may be gone.
void Cluster::lost_power_alone(Host& host) {
  auto status = nlohmann::json::parse(host.engine->status_json());
  for (const auto& image : status["images"]) {
    if (!image["alone"].get<bool>()) continue;
    const auto path = image["path"].get<std::string>();
    for (size_t i = 0; i < names_.size(); ++i) if (names_[i] == path) models_[i]->lose_unflushed();
  }
}

void Cluster::crash_host(Host& host, Crash kind) {
  if (!world_.running(host.name)) return;
  kLog.info("crash", {{"node", host.name}, {"kind", kind_name(kind)}, {"at_ms", ms_in(world_)}});
  if (kind == Crash::kPowerLoss) lost_power(), lost_power_alone(host);
  world_.crash(host.name, kind);       // what was in flight lands, or not, out of the guests' memory
  for (auto& guest : host.guests) acknowledged_ += guest->acknowledged(), guest->lost();
  for (auto& relay : relays_) {
    if (relay->host != &host) continue;
    acknowledged_ += relay->guest->acknowledged();
    relay->guest->lost();
    next_turn(*relay, milliseconds(100));       // the VM is started anew, there or on the other host
  }
  host.engine.reset();
  host.guests.clear();
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
  Host& host = hosts_[world_.random().below(2)];
  if (!world_.running(host.name)) return next_turn(relay, milliseconds(100));
  relay.host = &host;
  GuestOptions options = scenario_.guest;
  options.turn_requests = static_cast<uint32_t>(1 + world_.random().below(world_.random().coin() ? 12 : 150));
  relay.guest = std::make_unique<Guest>(world_, *models_[relay.model], names_[relay.model], options);
  relay.guest->start(*host.engine, *world_.process(host.name), !relay.created, [this](const std::string& what) { fail(what); });
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

// ---- what is done to them -------------------------------------------------------------------------

template <class F>
void Cluster::schedule(uint32_t times, F&& fn) {
  Duration from = scenario_.length / 10, to = scenario_.length * 9 / 10;
  for (uint32_t i = 0; i < times; ++i) {
    world_.at(world_.random().in({from, to}), [this, fn] {
      if (failure_.empty()) fn(*this);
    });
  }
}

void Cluster::plan() {
  schedule(scenario_.marks, [](Cluster& c) { c.mark(c.hosts_[c.world_.random().below(2)]); });
  schedule(scenario_.link_cuts, [](Cluster& c) {
    std::string host = c.hosts_[c.world_.random().below(2)].name;
    if (c.world_.random().coin()) c.world_.cut(host, "shared1");
    if (c.world_.random().coin()) c.world_.cut("shared1", host);
    c.world_.at(c.world_.random().in({milliseconds(100), seconds(4)}), [&c, host] {
      c.world_.heal(host, "shared1");
      c.world_.heal("shared1", host);
    });
  });
  schedule(scenario_.link_resets, [](Cluster& c) { c.world_.reset_connections(c.hosts_[c.world_.random().below(2)].name, "shared1"); });
  schedule(scenario_.replica_outages,
           [](Cluster& c) { c.take_replica_down(c.world_.random().in({milliseconds(50), seconds(4)})); });
  schedule(scenario_.replica_long_outages, [](Cluster& c) {
    c.take_replica_down(c.scenario_.limit_age + c.world_.random().in({milliseconds(100), seconds(6)}));
  });
  if (scenario_.replica_replaced) schedule(1, [](Cluster& c) { c.replace_replica(); });
  watch_limits();
  auto shared_down = [](Crash kind) {
    return [kind](Cluster& c) {
      if (!c.world_.running("shared1")) return;
      kLog.info("crash", {{"node", "shared1"}, {"kind", kind_name(kind)}, {"at_ms", ms_in(c.world_)}});
      if (kind == Crash::kPowerLoss) c.lost_power();
      c.world_.crash("shared1", kind);
      c.shared_.reset();
      c.world_.at(c.world_.random().in({milliseconds(50), seconds(3)}), [&c] { c.start_shared(); });
    };
  };
  schedule(scenario_.shared_kills, shared_down(Crash::kKill));
  schedule(scenario_.shared_power_losses, shared_down(Crash::kPowerLoss));
  auto host_down = [](Crash kind) {
    return [kind](Cluster& c) {
      Host& host = c.hosts_[c.world_.random().below(2)];
      if (!c.world_.running(host.name)) return;
      c.crash_host(host, kind);
      c.world_.at(c.world_.random().in({milliseconds(50), seconds(2)}), [&c, &host] { c.start_host(host, false); });
    };
  };
  schedule(scenario_.host_kills, host_down(Crash::kKill));
  schedule(scenario_.host_power_losses, host_down(Crash::kPowerLoss));
  schedule(scenario_.host_isolations, [](Cluster& c) {
    std::string host = c.hosts_[c.world_.random().below(2)].name;
    for (const char* other : {"shared1", "replica1"}) c.world_.partition(host, other);
    c.world_.at(c.world_.random().in({milliseconds(100), seconds(30)}), [&c, host] {
      for (const char* other : {"shared1", "replica1"}) c.world_.heal(host, other), c.world_.heal(other, host);
    });
  });
  schedule(scenario_.brick_failures, [](Cluster& c) { c.fail_brick(c.hosts_[c.world_.random().below(2)]); });
  schedule(scenario_.clock_jumps, [](Cluster& c) {
    const char* nodes[] = {"host1", "host2", "shared1", "replica1"};
    int64_t jump = static_cast<int64_t>(c.world_.random().below(200'000'000)) - 100'000'000;
    c.world_.jump_wall(nodes[c.world_.random().below(4)], seconds(jump));
  });
}

void Cluster::take_replica_down(Duration length) {
  if (!world_.running("replica1")) return;
  world_.crash("replica1", world_.random().coin() ? Crash::kKill : Crash::kPowerLoss);
  replica_server_.reset();
  replica_.reset();
  world_.at(length, [this] { start_replica(); });
}

// All that it had is gone. Operators say so everywhere, again and again, until the word was heard.
void Cluster::replace_replica() {
  if (world_.running("replica1")) {
    world_.crash("replica1", Crash::kPowerLoss);
    replica_server_.reset();
    replica_.reset();
  }
  replica_directory_ = "/state-" + std::to_string(++replicas_);
  world_.at(milliseconds(500), [this] { start_replica(); });
  for (Host& host : hosts_) ask_resync(host);
  ask_names_resync();
}

void Cluster::ask_resync(Host& host) {
  world_.at(milliseconds(300), [this, &host] {
    if (!failure_.empty()) return;
    if (!world_.running(host.name)) return ask_resync(host);
    host.engine->resync_replica([this, &host](Result<std::string> answer) {
      if (!answer) ask_resync(host);
    });
  });
}

void Cluster::ask_names_resync() {
  world_.at(milliseconds(300), [this] {
    if (!failure_.empty()) return;
    if (!world_.running("shared1")) return ask_names_resync();
    shared_->resync_replica([](Result<std::string>) {});
  });
}

void Cluster::watch_limits() {
  if (scenario_.limit_age >= std::chrono::hours(1)) return;
  world_.at(milliseconds(200), [this] {
    for (Host& host : hosts_) {
      if (!world_.running(host.name)) continue;
      auto status = nlohmann::json::parse(host.engine->status_json());
      times_degraded_ += status["journal"]["shipping"] != "normal";
    }
    watch_limits();
  });
}

// The brick answers EIO to what the seed chooses, until its machine is started again or the run settles.
void Cluster::fail_brick(Host& host) {
  Random& random = world_.random();
  FileFault fault;
  fault.path_contains = "/brick1";
  fault.nth = 1 + random.below(20);
  fault.times = random.coin() ? 1 + random.below(3) : UINT64_MAX;
  constexpr auto kRead = static_cast<uint16_t>(FileOp::kRead), kWrite = static_cast<uint16_t>(FileOp::kWrite),
                 kSync = static_cast<uint16_t>(FileOp::kSync);
  constexpr uint16_t kChoices[] = {kRead, kWrite, kSync, kRead | kWrite, kMutatingFileOps, kMutatingFileOps | kRead};
  fault.operations = kChoices[random.below(std::size(kChoices))];
  fault.error = random.chance(1, 4) ? 28 : 5;
  world_.inject(host.name, fault);
}

void Cluster::mark(Host& host) {
  if (!world_.running(host.name)) return;
  Relay* relay = nullptr;      // only while its tenure is this host's is its state at the cut known
  for (auto& r : relays_) if (r->host == &host && r->guest->has_tenure()) relay = r.get();
  if (relay == nullptr && host.images.empty()) return;
  auto& m = *marks_.emplace_back(std::make_unique<Marked>());
  m.name = "mark-" + std::to_string(marks_.size());
  m.model = relay != nullptr ? relay->model : host.images[0];
  m.image = names_[m.model];
  m.before = models_[m.model]->view();
  host.engine->mark(m.name, false, seconds(60), [this, &m, relay, turn = relay ? relay->turns : 0](Result<std::string> answer) {
    if (!answer || (relay != nullptr && relay->turns != turn)) return;
    m.after = ImageModel::merge(m.before, models_[m.model]->view());
    m.complete = true;
  });
}

// ---- the end --------------------------------------------------------------------------------------

// Looks now and then: what is waited for may be dear to look at.
bool Cluster::wait(const std::string& what, UniqueFunction<bool()> done, Duration limit) {
  for (Duration end = world_.elapsed() + limit; failure_.empty() && !done(); world_.run_for(milliseconds(20))) {
    if (world_.elapsed() > end) fail("never came about: " + what);
  }
  return failure_.empty();
}

bool Cluster::settle() {
  world_.heal_all();
  world_.set_network_faults(0, 0, 0);
  for (Host& host : hosts_) {
    world_.clear_faults(host.name);
    // A copy that failed serves again after the next start.
    if (scenario_.brick_failures == 0 || !world_.running(host.name)) continue;
    crash_host(host, Crash::kKill);
    start_host(host, false);
  }
  if (!wait("everything is up again", [this] {
        for (Host& h : hosts_) if (!world_.running(h.name)) return false;
        return world_.running("shared1") && world_.running("replica1");
      })) return false;
  for (Host& host : hosts_) for (auto& guest : host.guests) guest->stop();
  for (auto& relay : relays_) {
    relay->ended = true;
    if (relay->host != nullptr) relay->guest->stop();
  }
  if (!wait("the guests' last answers", [this] {
        for (Host& h : hosts_) for (auto& g : h.guests) if (!g->idle()) return false;
        for (auto& r : relays_) if (r->host != nullptr && !r->guest->idle()) return false;
        return true;
      })) return false;
  return final_turns() && level();
}

bool Cluster::level() {
  std::string last;
  bool came = wait("every image is mirrored", [&] {
    for (Host& host : hosts_) {
      auto status = nlohmann::json::parse(host.engine->status_json());
      last = host.name + ": not connected";
      if (!status["shared"]["connected"]) return false;
      for (const auto& image : status["images"]) {
        last = host.name + ": " + image.dump();
        if (image["recovering"]) return false;
        if (image["writer"] != host.name) continue;
        if (image["mirror"] != "mirrored" || image["stale_bytes"] != 0) return false;
      }
    }
    return true;
  });
  if (!came) failure_ += "; " + last;
  return came;
}

// Each host writes once more to what moved, and reads all of it.
bool Cluster::final_turns() {
  for (auto& relay : relays_) {
    for (Host& host : hosts_) {
      GuestOptions options;
      options.turn_requests = 1;
      Guest guest(world_, *models_[relay->model], names_[relay->model], options);
      guest.start(*host.engine, *world_.process(host.name), !relay->created, [this](const std::string& what) { fail(what); });
      relay->created = true;
      if (!wait(host.name + " has its last turn on " + names_[relay->model], [&] { return guest.idle(); })) return false;
      if (!level() || !read_whole(host, relay->model) || !verify(host, {names_[relay->model]})) return false;
    }
  }
  return true;
}

bool Cluster::read_whole(Host& host, size_t model) {
  Bytes bytes(models_[model]->size());
  bool answered = false;
  host.engine->lookup(InodeNumber(1), names_[model], [&](Result<wire::Attr> attr) {
    if (!attr) return fail("lookup: " + attr.status().to_string());
    host.engine->open_image(attr->inode, [&](Result<fs::HandleId> handle) {
      if (!handle) return fail("open: " + handle.status().to_string());
      host.engine->read(*handle, 0, bytes, io::IoMode::kQueued, [&, h = *handle](Result<size_t> n) {
        host.engine->release(h);
        answered = true;
        std::string wrong = !n ? n.status().to_string() : *n != bytes.size() ? "short" : models_[model]->check_now(0, bytes);
        if (!wrong.empty()) fail(host.name + " reads " + names_[model] + ": " + wrong);
      });
    });
  });
  return wait(host.name + " reads " + names_[model], [&] { return answered; });
}

// Until the replica has what it waits for: batches of the other host may still be on their way.
bool Cluster::verify(Host& host, const std::vector<std::string>& images) {
  std::string not_level;
  for (int i = 0; i < 60 && failure_.empty(); ++i, world_.run_for(seconds(1))) {
    bool answered = false;
    not_level.clear();
    host.engine->verify(images, [](uint64_t, uint64_t) {}, [&](Result<std::string> result) {
      answered = true;
      if (!result) return fail(host.name + " verify: " + result.status().to_string());
      auto json = nlohmann::json::parse(*result);
      if (json["equal"] != true) fail(host.name + " verify: " + *result);
      if (json["images"].size() != images.size()) fail(host.name + " verify left images out: " + *result);
      for (const auto& image : json["images"]) {
        for (const char* copy : {"host", "shared", "replica"}) if (image["copies"][copy] != "level") not_level = *result;
      }
    });
    if (!wait(host.name + " verify", [&] { return answered; })) return false;
    if (not_level.empty()) return true;
  }
  fail(host.name + " verify: a copy does not become level: " + not_level);
  return false;
}

Result<net::HttpResponse> Cluster::get(const std::string& target) {
  Result<net::HttpResponse> out = Status(Code::kUnavailable, "no answer");
  bool answered = false;
  net::HttpRequest request;
  request.method = "GET";
  request.target = target;
  reader_->request(std::move(request), [&](Result<net::HttpResponse> r) { out = std::move(r), answered = true; });
  wait("GET " + target, [&] { return answered; });
  return out;
}

std::string Cluster::read_point(const std::string& point, const std::string& image, Bytes* out) {
  auto tree = get("/v1/points/" + point + "/tree");
  if (!tree) return "tree at " + point + ": " + tree.status().to_string();
  if (tree->status != 200) return "tree at " + point + ": " + std::string(as_text(tree->body));
  const auto json = nlohmann::json::parse(as_text(tree->body));
  for (const auto& entry : json["entries"]) {
    if (entry["path"].is_null()) continue;
    std::string path = entry["path"];
    if (path != image && path != "/" + image) continue;
    std::string uuid = entry["uuid"];
    auto data = get("/v1/points/" + point + "/images/" + uuid + "/data");
    if (!data) return "data at " + point + ": " + data.status().to_string();
    if (data->status != 200) return "data at " + point + ": " + std::string(as_text(data->body));
    *out = std::move(data->body);
    return {};
  }
  return image + " is not in the tree at " + point + ": " + std::string(as_text(tree->body));
}

bool Cluster::check_points() {
  SimEnv& env = world_.start("reader");
  auto client = env.network().http_client({.url = kReplicaUrl, .tls = net::TlsFiles{}});
  if (!client) return fail("reader: " + client.status().to_string()), false;
  reader_ = std::move(*client);
  for (size_t i = 0; i < models_.size() && failure_.empty(); ++i) {
    Bytes bytes;
    std::string wrong = read_point("latest", names_[i], &bytes);
    if (wrong.empty() && bytes.size() != models_[i]->size()) wrong = "size " + std::to_string(bytes.size());
    if (wrong.empty()) wrong = models_[i]->check_now(0, bytes);
    if (!wrong.empty()) fail("newest point of " + names_[i] + ": " + wrong);
  }
  for (const auto& m : marks_) {
    if (!m->complete || !failure_.empty()) continue;
    auto resolved = get("/v1/points/resolve?name=" + m->name);
    // A host that died before staging it has lost the mark, and has said so in its log.
    bool may_be_lost = scenario_.host_kills + scenario_.host_power_losses + scenario_.brick_failures +
                           scenario_.replica_long_outages != 0 || scenario_.replica_replaced;
    if (resolved && resolved->status == 404 && may_be_lost) continue;
    Bytes bytes;
    std::string wrong = read_point(m->name, m->image, &bytes);
    if (wrong.empty() && bytes.size() != models_[m->model]->size()) wrong = "size " + std::to_string(bytes.size());
    if (wrong.empty()) wrong = models_[m->model]->check(m->after, 0, bytes);
    if (!wrong.empty()) fail("point " + m->name + ": " + wrong);
  }
  return failure_.empty();
}

uint64_t Cluster::acknowledged() const {
  uint64_t total = acknowledged_;
  for (const Host& host : hosts_) for (const auto& guest : host.guests) total += guest->acknowledged();
  return total;
}

std::string Cluster::run() {
  start_shared();
  start_replica();
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
