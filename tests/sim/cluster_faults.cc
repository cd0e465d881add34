// What a scenario does to the cluster while the guests work: crashes, power losses, links, replicas, bricks, clocks.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "shared/base/log.h"
#include "tests/sim/cluster.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const log::Logger kLog("sim");   // what is done to the cluster stands among the daemons' own lines

std::string_view kind_name(Crash kind) { return kind == Crash::kPowerLoss ? "power loss" : "kill"; }
int64_t ms_in(const World& world) { return world.elapsed().count() / 1'000'000; }
}  // namespace

// Where hosts and the shared node lose their power, unflushed writes may be gone from both copies.
void Cluster::lost_power() {
  if (scenario_.host_power_losses == 0 || scenario_.shared_power_losses == 0) return;
  for (auto& model : models_) model->lose_unflushed();
  for (auto& relay : relays_) for (auto& line : relay->lines) line->model->lose_unflushed();
}

// Of an image in a status; models_.size() if it is none of them. A run that took over from another may serve an image
// before it knows its name.
size_t Cluster::model_of(const std::string& path, const std::string& uuid) {
  const size_t named = static_cast<size_t>(std::find(names_.begin(), names_.end(), path) - names_.begin());
  if (named < names_.size()) uuids_[uuid] = named;
  auto known = uuids_.find(uuid);
  return known == uuids_.end() ? models_.size() : known->second;
}

// Of an image whose writes this host acknowledged alone it has the only copy: what no flush covered may be gone.
void Cluster::lost_power_alone(Host& host) {
  auto status = nlohmann::json::parse(host.engine->status_json());
  for (const auto& image : status["images"]) {
    if (!image["alone"].get<bool>()) continue;
    const size_t model = model_of(image["path"], image["uuid"]);
    if (model < models_.size()) models_[model]->lose_unflushed();
    for (auto& relay : relays_) {
      for (auto& line : relay->lines) if (line->host == &host && relay->model == model) line->model->lose_unflushed();
    }
  }
}

void Cluster::lose_half_filled(size_t model) {
  models_[model]->lose_unflushed();
  for (auto& relay : relays_) {
    if (relay->model != model) continue;
    for (auto& line : relay->lines) line->model->lose_unflushed();
  }
}

// While a host fills its copy the shared one alone is in sync, and which regions are filled is known to that run of the
// host alone. Where that run dies and the shared node's machine loses its power, in either order, before the copies are
// level again, what no flush covered is on no copy that counts.
void Cluster::note_half_filled(Host& host, bool host_dies) {
  const auto status = nlohmann::json::parse(host.engine->status_json());
  for (const auto& image : status["images"]) {
    const size_t model = model_of(image["path"], image["uuid"]);
    if (model >= models_.size() || image["writer"] != host.name || image["recovering"].get<bool>()) continue;
    // Apart from the shared copy, what is dirty counts as stale, too.
    const uint64_t stale = image["stale_bytes"], dirty = image["dirty_bytes"];
    const bool apart = image["mirror"] != "filling" && image["mirror"] != "mirrored";
    // Filled to the last region, it counts once the shared node knows: until then the state is `filling`.
    if (image["mirror"] != "filling" && stale <= (apart ? dirty : 0)) {   // the own copy is whole
      half_filled_died_.erase(model);
      half_filled_lost_.erase(model);
    } else if (host_dies) {
      half_filled_died_.insert(model);
      if (half_filled_lost_.contains(model)) lose_half_filled(model);
    } else {
      half_filled_lost_.insert(model);
    }
  }
}

void Cluster::crash_host(Host& host, Crash kind) {
  if (!world_.running(host.name)) return;
  ++host.crashes;
  kLog.info("crash", {{"node", host.name}, {"kind", kind_name(kind)}, {"at_ms", ms_in(world_)}});
  if (kind == Crash::kPowerLoss) lost_power(), lost_power_alone(host);
  note_half_filled(host, true);
  world_.crash(host.name, kind);       // what was in flight lands, or not, out of the guests' memory
  for (auto& guest : host.guests) acknowledged_ += guest->acknowledged(), guest->lost();
  for (auto& relay : relays_) {
    std::erase_if(relay->stranded, [&](Stranded& stranded) {
      if (stranded.host != &host) return false;
      acknowledged_ += stranded.guest->acknowledged();
      stranded.guest->lost();
      return true;
    });
    if (relay->host != &host) continue;
    acknowledged_ += relay->guest->acknowledged();
    relay->guest->lost();
    next_turn(*relay, milliseconds(100));       // the VM is started anew, there or on the other host
  }
  host.engine.reset();
  host.guests.clear();
}

void Cluster::crash_shared(Crash kind) {
  kLog.info("crash", {{"node", "shared1"}, {"kind", kind_name(kind)}, {"at_ms", ms_in(world_)}});
  if (kind == Crash::kPowerLoss) {
    lost_power();
    for (Host& host : hosts_) if (world_.running(host.name)) note_half_filled(host, false);
    for (size_t model : half_filled_died_) lose_half_filled(model);
  }
  if (kind == Crash::kPowerLoss && scenario_.contested) {
    shared_lost_power_at_ = world_.elapsed();
    for (auto& model : models_) model->shared_lost_power();
  }
  world_.crash("shared1", kind);
  shared_.reset();
}

void Cluster::schedule(uint32_t times, const std::function<void(Cluster&)>& fn) {
  Duration from = scenario_.length / 10, to = scenario_.length * 9 / 10;
  for (uint32_t i = 0; i < times; ++i) {
    world_.at(world_.random().in({from, to}), [this, fn] {
      if (failure_.empty()) fn(*this);
    });
  }
}

void Cluster::plan() {
  schedule(scenario_.marks, [](Cluster& c) { c.mark(c.any_host()); });
  schedule(scenario_.link_cuts, [](Cluster& c) {
    std::string host = c.any_host().name;
    if (c.world_.random().coin()) c.world_.cut(host, "shared1");
    if (c.world_.random().coin()) c.world_.cut("shared1", host);
    c.world_.at(c.world_.random().in({milliseconds(100), seconds(4)}), [&c, host] {
      c.world_.heal(host, "shared1");
      c.world_.heal("shared1", host);
    });
  });
  schedule(scenario_.link_resets, [](Cluster& c) { c.world_.reset_connections(c.any_host().name, "shared1"); });
  schedule(scenario_.replica_outages,
           [](Cluster& c) { c.take_replica_down(c.world_.random().in({milliseconds(50), seconds(4)})); });
  schedule(scenario_.replica_long_outages, [](Cluster& c) {
    c.take_replica_down(c.scenario_.limit_age + c.world_.random().in({milliseconds(100), seconds(6)}));
  });
  if (scenario_.replica_replaced) schedule(1, [](Cluster& c) { c.replace_replica(); });
  watch_limits();
  auto shared_down = [](Crash kind) {
    return [kind](Cluster& c) {
      bool asked = std::any_of(c.relays_.begin(), c.relays_.end(), [](const auto& relay) { return relay->asking; });
      if (!c.world_.running("shared1") || asked) return;
      c.crash_shared(kind);
      c.world_.at(c.world_.random().in({milliseconds(50), seconds(3)}), [&c] { c.start_shared(); });
    };
  };
  schedule(scenario_.shared_kills, shared_down(Crash::kKill));
  schedule(scenario_.shared_power_losses, shared_down(Crash::kPowerLoss));
  auto host_down = [](Crash kind) {
    return [kind](Cluster& c) {
      Host& host = c.any_host();
      if (!c.world_.running(host.name)) return;
      c.crash_host(host, kind);
      c.world_.at(c.world_.random().in({milliseconds(50), c.scenario_.host_down_max}), [&c, &host] { c.start_host(host, false); });
    };
  };
  schedule(scenario_.host_kills, host_down(Crash::kKill));
  schedule(scenario_.host_power_losses, host_down(Crash::kPowerLoss));
  schedule(scenario_.host_isolations, [](Cluster& c) {
    std::string host = c.any_host().name;
    for (const char* other : {"shared1", "replica1"}) c.world_.partition(host, other);
    c.world_.at(c.world_.random().in({milliseconds(100), seconds(30)}), [&c, host] {
      for (const char* other : {"shared1", "replica1"}) c.world_.heal(host, other), c.world_.heal(other, host);
    });
  });
  schedule(scenario_.brick_failures, [](Cluster& c) { c.fail_brick(c.any_host()); });
  // Long enough after it for the copies to be called level again.
  schedule(scenario_.shared_sync_failures, [shared_down, end = world_.elapsed() + scenario_.length](Cluster& c) {
    FileFault fault{.nth = 1 + c.world_.random().below(3), .operations = static_cast<uint16_t>(FileOp::kSync)};
    fault.path_contains = ".data";
    c.world_.inject("shared1", fault);
    auto cut = [&c, end, down = shared_down(Crash::kPowerLoss)] {
      if (c.failure_.empty() && c.world_.elapsed() < end) down(c);
    };
    c.world_.at(c.world_.random().in({seconds(6), seconds(15)}), std::move(cut));
  });
  schedule(scenario_.clock_jumps, [](Cluster& c) {
    const char* nodes[] = {"host1", "host2", "shared1", "replica1"};
    int64_t jump = static_cast<int64_t>(c.world_.random().below(200'000'000)) - 100'000'000;
    c.world_.jump_wall(nodes[c.world_.random().below(4)], seconds(jump));
  });
  if (scenario_.contested) plan_contest();
}

void Cluster::take_replica_down(Duration length) {
  if (!world_.running("replica1")) return;
  world_.crash("replica1", world_.random().coin() ? Crash::kKill : Crash::kPowerLoss);
  replica_server_.reset();
  replica_witness_.reset();
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
      const auto& journal = status["journal"];   // it may be over between two looks
      times_degraded_ += journal["shipping"] != "normal" || journal["resyncs_ended"] != 0;
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
  m.host = &host;
  m.crashes = host.crashes;
  m.replicas = replicas_;
  m.model = relay != nullptr ? relay->model : host.images[0];
  m.image = names_[m.model];
  m.before = models_[m.model]->view();
  const auto status = nlohmann::json::parse(host.engine->status_json());
  m.held = std::any_of(status["images"].begin(), status["images"].end(),
                       [](const auto& image) { return image["recovering"].template get<bool>(); });
  host.engine->mark(m.name, false, seconds(60), [this, &m, relay, turn = relay ? relay->turns : 0](Result<std::string> answer) {
    if (!answer || (relay != nullptr && relay->turns != turn)) return;
    m.after = ImageModel::merge(m.before, models_[m.model]->view());
    m.complete = true;
  });
}

}  // namespace tidemark::sim
