// Images that are contested: taken by force, moved by the witness's word, held by a host that nobody hears.
//
// The oracle. Where no operator used force, at most one side acknowledges: a VM that still runs elsewhere is superseded
// by the first write that its rival gets acknowledged. Force makes two lines of an image: the loser's VM goes on upon a
// copy of the model. The main line may be any state since the copies were last seen level; it is read at once, and
// holds from then on. In the end what the loser had acknowledged and the main line lacks must be in the loser's branch.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "shared/base/log.h"
#include "tests/sim/cluster.h"

namespace tidemark::sim {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;
const log::Logger kLog("sim");
constexpr seconds kNoticed{12};                // by then a host has noticed that the shared node was started anew
constexpr milliseconds kLook{200}, kRetry{300};
constexpr seconds kReadMax{8};
}  // namespace

std::vector<std::string> Cluster::node_names() const {
  std::vector<std::string> out{"shared1", "replica1"};
  for (const Host& host : hosts_) out.push_back(host.name);
  if (scenario_.witness == WitnessKind::kDaemon) out.push_back("witness1");
  return out;
}

void Cluster::add_witness() {
  if (scenario_.witness == WitnessKind::kDaemon)
    world_.add_node({.name = "witness1", .cluster = cluster_, .role = net::Role::kWitness});
}

void Cluster::start_witness() {
  if (scenario_.witness != WitnessKind::kDaemon) return;
  auto opened = open_witness(world_.start("witness1"));
  if (!opened) return fail("witness: " + opened.status().to_string());
  witness_ = std::move(*opened);
}

void Cluster::plan_contest() {
  for (auto& relay : relays_) models_[relay->model]->level();
  look_at_contest();
  schedule(scenario_.partitions, [](Cluster& c) { c.partition_some(); });
  schedule(scenario_.live_restarts, [](Cluster& c) { c.restart_live(c.any_host()); });
  schedule(scenario_.aborts, [](Cluster& c) { c.abort_waiting(); });
  auto some = [](Cluster& c) -> Relay& { return *c.relays_[c.world_.random().below(c.relays_.size())]; };
  if (relays_.empty()) return;
  schedule(scenario_.rivals, [some](Cluster& c) { c.begin_rival(some(c)); });
  schedule(scenario_.takeovers, [some](Cluster& c) { c.take_by_force(some(c)); });
}

// Now and then: who is done, and whose copies are level.
void Cluster::look_at_contest() {
  world_.at(kLook, [this] {
    if (!failure_.empty()) return;
    for (auto& relay : relays_) {
      std::erase_if(relay->stranded, [&](Stranded& stranded) {
        if (stranded.guest->idle()) acknowledged_ += stranded.guest->acknowledged();
        return stranded.guest->idle();
      });
      Host* host = nullptr;
      if (relay->host != nullptr && relay->guest->has_tenure()) host = relay->host;
      for (Stranded& stranded : relay->stranded)
        if (stranded.line == nullptr && stranded.guest->has_tenure() && !stranded.guest->superseded()) host = stranded.host;
      if (host == nullptr || !world_.running(host->name) || !relay->victim.empty()) continue;
      if (world_.elapsed() - kNoticed < shared_lost_power_at_) continue;
      const auto status = nlohmann::json::parse(host->engine->status_json());
      for (const auto& image : status["images"]) {
        if (model_of(image["path"], image["uuid"]) != relay->model || image["writer"] != host->name) continue;
        if (image["mirror"] == "mirrored" && image["alone"] == false) models_[relay->model]->level();
      }
    }
    look_at_contest();
  });
}

void Cluster::partition_some() {
  auto names = node_names();
  Random& random = world_.random();
  const std::string a = names[random.below(names.size())];
  std::erase(names, a);
  const std::string b = names[random.below(names.size())];
  const uint64_t way = random.below(4);        // half of them both ways
  if (way != 0) world_.cut(a, b);
  if (way != 1) world_.cut(b, a);
  if (random.coin()) world_.reset_connections(a, b);
  kLog.info("partition", {{"from", a}, {"to", b}, {"way", way}});
  world_.at(random.in({milliseconds(100), seconds(40)}), [this, a, b] {
    world_.heal(a, b);
    world_.heal(b, a);
  });
}

// The VM is started elsewhere while it still runs: whoever did so believes that its host is dead.
void Cluster::begin_rival(Relay& relay) {
  const bool alone = relay.stranded.empty() && relay.victim.empty() && !relay.ended;
  if (!alone || relay.host == nullptr || !relay.guest->has_tenure()) return;
  Host& host = any_host();
  if (&host == relay.host || !world_.running(host.name) || unaware(relay, host)) return;
  kLog.info("rival", {{"image", names_[relay.model]}, {"of", relay.host->name}, {"on", host.name}});
  relay.guest->expect_failures();
  relay.stranded.push_back({relay.host, std::move(relay.guest), nullptr});
  ++relay.turns;
  start_turn(relay, host);
}

// The first write of a turn is acknowledged: nobody else's may be from now on.
void Cluster::rival_taken(Relay& relay) {
  relay.epoch = std::max(relay.epoch, epoch_held(relay, *relay.host));
  for (Stranded& elder : relay.stranded) {
    if (elder.line != nullptr || elder.host == relay.host || elder.guest->idle()) continue;
    if (scenario_.witness == WitnessKind::kNone)
      return fail(names_[relay.model] + " moved to " + relay.host->name + " without a word of " + elder.host->name);
    elder.guest->supersede();
    ++moved_;
  }
}

void Cluster::abort_waiting() {
  Host& host = any_host();
  if (relays_.empty() || !world_.running(host.name)) return;
  Relay& relay = *relays_[world_.random().below(relays_.size())];
  if (relay.host == &host) relay.guest->expect_failures();
  for (Stranded& stranded : relay.stranded) if (stranded.host == &host) stranded.guest->expect_failures();
  host.engine->abort_waiting(names_[relay.model], [](Result<std::string>) {});   // it may not know the image
}

void Cluster::restart_live(Host& host) {
  if (!world_.running(host.name)) return;
  kLog.info("live_restart", {{"node", host.name}});
  ++host.crashes;
  world_.crash(host.name, Crash::kKill);
  for (auto& guest : host.guests) guest->suspend();
  for (auto& relay : relays_) {
    if (relay->host == &host) relay->guest->suspend();
    for (Stranded& stranded : relay->stranded) if (stranded.host == &host) stranded.guest->suspend();
  }
  host.engine.reset();
  world_.at(world_.random().in({milliseconds(1), milliseconds(400)}), [this, &host] {
    start_run(host, true);
    if (!host.engine) return;
    SimEnv& env = *world_.process(host.name);
    for (auto& guest : host.guests) guest->resume(*host.engine, env);
    for (auto& relay : relays_) {
      if (relay->host == &host) relay->guest->resume(*host.engine, env);
      for (Stranded& stranded : relay->stranded) if (stranded.host == &host) stranded.guest->resume(*host.engine, env);
    }
  });
}

// ---- by force -------------------------------------------------------------------------------------

// VMs that still wait for the image give up first: who then has it is the one that loses it.
void Cluster::take_by_force(Relay& relay) {
  if (!relay.victim.empty() || !relay.created || relay.ended || !world_.running("shared1")) return;
  const bool waits = relay.host != nullptr && !relay.guest->has_tenure();
  Host* holder = relay.host != nullptr && !waits ? relay.host : nullptr;
  for (Stranded& stranded : relay.stranded) if (stranded.line == nullptr && !stranded.guest->superseded()) holder = stranded.host;
  if (waits) relay.guest->stop();
  relay.victim = holder == nullptr ? "unknown" : holder->name;
  if (holder == nullptr) {                      // whoever holds it: the shared node says
    const auto text = "{\"images\":[\"" + names_[relay.model] + "\"],\"dry_run\":true}";
    shared_->takeover(text, [&relay](Result<std::string> report) {
      if (!report) return;
      const std::string by = nlohmann::json::parse(*report)["images"][0]["holder"];
      if (!by.empty()) relay.victim = by;
    });
  }
  if (relay.victim == "unknown") return takeover_over(relay);
  ask_takeover(relay, world_.random().coin());
}

// Once those that wait have given up. The shared node is not crashed while it is asked (`asking`): with the answer lost
// nobody could say of which line a write is. That the fence is durable by then is takeover_test.cc's.
void Cluster::ask_takeover(Relay& relay, bool accept_loss) {
  world_.at(milliseconds(50), [this, &relay, accept_loss] {
    if (!failure_.empty()) return;
    bool waits = relay.host != nullptr && !relay.guest->idle() && !relay.guest->has_tenure();
    if (waits || !world_.running("shared1")) return ask_takeover(relay, accept_loss);
    const std::string text = "{\"images\":[\"" + names_[relay.model] + "\"],\"force\":true,\"accept_loss\":" +
                             (accept_loss ? "true" : "false") + "}";
    relay.asking = true;
    shared_->takeover(text, [this, &relay](Result<std::string> report) {
      relay.asking = false;
      kLog.info("taken_by_force", {{"image", names_[relay.model]},
                                   {"answer", report ? *report : report.status().to_string()}});
      const auto taken = report ? nlohmann::json::parse(*report)["images"][0] : nlohmann::json();
      if (!report || taken["action"] != "take") return takeover_over(relay);
      relay.victim = taken["holder"];          // it may have moved since the word was meant
      forked(relay, taken["epoch"].get<uint64_t>());
    });
  });
}

// The host goes on upon a tenure that it has lost: a VM that is started there would be of its line.
bool Cluster::unaware(const Relay& relay, const Host& host) {
  const auto status = nlohmann::json::parse(host.engine->status_json());
  for (const auto& image : status["images"]) {
    if (model_of(image["path"], image["uuid"]) != relay.model) continue;
    if (image["mirror"] == "fenced") return true;   // it knows, and is not done with its branch
    for (const auto& line : relay.lines)
      if (line->host == &host && image["writer"] == host.name && image["epoch"] == line->epoch) return true;
  }
  return false;
}

// Of the tenure that the host believes to have; 0: of none.
uint64_t Cluster::epoch_held(const Relay& relay, const Host& host) {
  const auto status = nlohmann::json::parse(host.engine->status_json());
  for (const auto& image : status["images"])
    if (image["writer"] == host.name && model_of(image["path"], image["uuid"]) == relay.model) return image["epoch"];
  return 0;
}

// The witness let the image move on, and the host has not heard of it: a VM that is started there waits, and gets EIO.
bool Cluster::moved_on(const Relay& relay, const Host& host) {
  const uint64_t held = epoch_held(relay, host);
  return held != 0 && held < relay.epoch;
}

void Cluster::forked(Relay& relay, uint64_t epoch) {
  ImageModel& main = *models_[relay.model];
  ++forks_;
  auto line = std::make_unique<Line>();
  line->model = std::make_unique<ImageModel>(main);
  line->model->begin_branch(forks_);
  line->epoch = epoch;
  for (Host& host : hosts_) if (host.name == relay.victim) line->host = &host;
  auto strand = [&](Stranded& stranded) {
    stranded.line = line.get();
    stranded.guest->branch_off(*line->model);
    stranded.guest->expect_failures();
    if (scenario_.pause && scenario_.witness == WitnessKind::kNone) stranded.guest->supersede();
  };
  for (Stranded& stranded : relay.stranded)
    if (stranded.line == nullptr && stranded.host == line->host && !stranded.guest->superseded()) strand(stranded);
  if (relay.host != nullptr && relay.host == line->host && !relay.guest->idle()) {
    relay.stranded.push_back({relay.host, std::move(relay.guest), nullptr});
    strand(relay.stranded.back());
    relay.host = nullptr;
    ++relay.turns;
  }
  relay.lines.push_back(std::move(line));
  main.fork();
  read_main_line(relay);
}

// All of the image, through any other host, until one has answered.
void Cluster::read_main_line(Relay& relay) {
  Host& host = any_host();
  auto again = [this, &relay] { world_.at(kRetry, [this, &relay] { if (failure_.empty()) read_main_line(relay); }); };
  if (host.name == relay.victim || !world_.running(host.name) || unaware(relay, host)) return again();
  auto answered = std::make_shared<bool>(false);   // shared by the answer and the limit for it
  auto bytes = std::make_shared<Bytes>(models_[relay.model]->size());   // shared with a read that may come too late
  auto over = [again, answered] { if (!std::exchange(*answered, true)) again(); };
  world_.at(kReadMax, over);
  fs::Engine* engine = host.engine.get();
  engine->lookup(InodeNumber(1), names_[relay.model], [=, this, &relay](Result<wire::Attr> attr) {
    if (!attr) return over();
    engine->open_image(attr->inode, [=, this, &relay](Result<fs::HandleId> handle) {
      if (!handle) return over();
      engine->read(*handle, 0, *bytes, io::IoMode::kQueued, [=, this, &relay, h = *handle](Result<size_t> n) {
        engine->release(h);
        if (!n || *n != bytes->size()) return over();
        if (std::exchange(*answered, true)) return;
        std::string wrong = models_[relay.model]->settle(*bytes);
        if (!wrong.empty()) return fail("the main line of " + names_[relay.model] + " after it was taken: " + wrong);
        relay.lines.back()->main = std::move(*bytes);
        takeover_over(relay);
      });
    });
  });
}

void Cluster::takeover_over(Relay& relay) {
  relay.victim.clear();
  if (relay.host == nullptr || relay.guest->idle()) next_turn(relay, kRetry);
}

// ---- the end --------------------------------------------------------------------------------------

void Cluster::stop_stranded() {
  for (auto& relay : relays_) for (Stranded& stranded : relay->stranded) stranded.guest->stop();
}

bool Cluster::contest_settled() const {
  return std::all_of(relays_.begin(), relays_.end(), [](const auto& relay) {
    return relay->victim.empty() && std::all_of(relay->stranded.begin(), relay->stranded.end(),
                                                [](const Stranded& s) { return s.guest->idle(); });
  });
}

bool Cluster::check_branches() {
  for (auto& relay : relays_) {
    for (auto& line : relay->lines) {
      std::vector<uint64_t> lost;
      for (uint64_t s = 0; s < line->main.size() / kModelSector; ++s)
        if (line->model->lacks(s, ByteSpan(line->main).subspan(s * kModelSector, kModelSector))) lost.push_back(s);
      if (lost.empty()) continue;
      auto files = world_.files(line->host->name, "/state/branches");
      uint64_t kept = 0;
      for (uint64_t s : lost) {
        kept += std::any_of(files.begin(), files.end(), [&](const auto& file) {
          const bool whole = file.first.ends_with(".branch") && file.second.size() >= (s + 1) * kModelSector;
          return whole && !line->model->lacks(s, ByteSpan(file.second).subspan(s * kModelSector, kModelSector));
        });
      }
      ++branches_;
      if (kept == lost.size()) continue;
      fail(names_[relay->model] + ": " + line->host->name + " lost " + std::to_string(lost.size()) +
           " sectors to the main line, and keeps " + std::to_string(kept) + " of them in " + std::to_string(files.size()) +
           " files of branches");
    }
  }
  return failure_.empty();
}

}  // namespace tidemark::sim
