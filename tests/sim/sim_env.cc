#include "tests/sim/sim_env.h"

#include <cstring>
#include <utility>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/io/file.h"
#include "shared/kv/store.h"
#include "tests/sim/sim_env_internal.h"

namespace tidemark::sim {
namespace {

// Events of one process that fall so close together share a turn of its loop, as they would for real.
constexpr int64_t kTurnNs = 5'000;
constexpr size_t kEventsPerTurnMax = 16;

uint64_t name_hash(const std::string& name) { return digest64(as_bytes(name)); }

// A machine's clocks run (1 + drift) times as fast as the world's.
int64_t local_ns(const Machine& machine, int64_t world_ns) {
  return world_ns + static_cast<int64_t>(static_cast<__int128>(world_ns) * machine.options.drift_ppm / 1'000'000);
}
Duration world_delay(const Machine& machine, Duration local) {
  return Duration(static_cast<int64_t>(static_cast<__int128>(local.count()) * 1'000'000 /
                                       (1'000'000 + machine.options.drift_ppm)));
}

}  // namespace

uint64_t World::State::schedule(SimEnv* process, Duration delay, EventKind kind, uint64_t detail,
                                UniqueFunction<void()> fn) {
  uint64_t number = next_number++;
  queue.emplace(Key{now_ns + std::max<int64_t>(delay.count(), 0), number}, Event{process, kind, detail, std::move(fn)});
  return number;
}

void World::State::enter(SimEnv* process, UniqueFunction<void()>& fn) {
  if (process == nullptr) return fn();
  if (!process->alive()) return;
  if (Machine& machine = ProcessAccess::machine(*process); machine.stands_still) {
    machine.due.push_back(std::move(fn));
    return;
  }
  // Test code may run the world from inside a turn's callback only by mistake.
  TM_CHECK(!ProcessAccess::in_turn(*process), "a turn inside a turn");
  ProcessAccess::set_in_turn(*process, true);
  fn();
  size_t more = 0;
  auto& turn_end = ProcessAccess::internals(*process).turn_end;
  while (process->alive() && more++ < kEventsPerTurnMax && !queue.empty()) {
    auto next = queue.begin();
    if (next->second.process != process || next->first.time_ns > now_ns + kTurnNs) break;
    now_ns = std::max(now_ns, next->first.time_ns);
    Event event = std::move(next->second);
    queue.erase(next);
    ++delivered;
    mix(static_cast<uint64_t>(now_ns));
    mix(static_cast<uint64_t>(event.kind) ^ event.detail);
    event.fn();
  }
  while (process->alive() && !turn_end.empty()) {
    auto running = std::move(turn_end);
    turn_end.clear();
    for (auto& end : running) {
      if (process->alive()) end();
    }
  }
  ProcessAccess::set_in_turn(*process, false);
}

bool World::State::run_next() {
  if (queue.empty()) return false;
  auto it = queue.begin();
  Event event = std::move(it->second);
  now_ns = std::max(now_ns, it->first.time_ns);
  queue.erase(it);
  if (event.process != nullptr && !event.process->alive()) return true;
  ++delivered;
  mix(static_cast<uint64_t>(now_ns));
  mix(static_cast<uint64_t>(event.kind) ^ event.detail);
  if (event.process != nullptr) mix(name_hash(event.process->node()));
  enter(event.process, event.fn);
  return true;
}

Machine* World::State::find_machine(const std::string& name) {
  auto it = machines.find(name);
  return it == machines.end() ? nullptr : it->second.get();
}

Machine& World::State::machine(const std::string& name) {
  Machine* found = find_machine(name);
  TM_CHECK(found != nullptr, "no node of this name in the simulated world");
  return *found;
}

bool World::State::is_cut(const Machine& from, const Machine& to) {
  auto it = links.find({from.options.name, to.options.name});
  return it != links.end() && it->second.cut;
}

Duration World::State::network_delay(const Machine& from, const Machine& to) {
  auto it = links.find({from.options.name, to.options.name});
  return random.in(it != links.end() && it->second.latency ? *it->second.latency : options.network_latency);
}

void World::State::crash(Machine& machine, Crash kind) {
  if (machine.process == nullptr) return;
  SimEnv& env = *machine.process;
  mix(static_cast<uint64_t>(kind) + 1000);
  ProcessAccess::kill(env);
  for (auto& [id, write] : ProcessAccess::internals(env).writes) {
    write.inode->write_some(write.offset, write.data, random);
  }
  ProcessAccess::internals(env).writes.clear();
  crash_stores(machine, random);
  crash_connections(*this, env, kind);
  crash_exchanges(machine, kind);
  if (kind == Crash::kPowerLoss) {
    machine.disk.lose_power(random);
    std::array<uint8_t, 16> boot;
    random.fill(boot);
    machine.boot_id = Uuid::from_random(boot);
    machine.boot_base_ns = -local_ns(machine, now_ns) + 5'000'000'000;
  }
  machine.listeners.clear();
  machine.http_servers.clear();
  machine.crash_point.reset();
  machine.hung.clear();
  machine.due.clear();
  machine.stands_still = false;
  machine.dead.push_back(std::move(machine.process));
}

World::World(const WorldOptions& options) : state_(std::make_unique<State>(options)) {}

World::~World() {
  for (auto& [name, machine] : state_->machines) {
    if (machine->process != nullptr) {
      ProcessAccess::kill(*machine->process);
      machine->dead.push_back(std::move(machine->process));
    }
  }
  for (auto& [name, machine] : state_->machines) {
    for (auto& env : machine->dead) {
      ProcessAccess::internals(*env).turn_end.clear();
      ProcessAccess::internals(*env).offloads_waiting.clear();
    }
  }
  // What events own may refer to processes, so it goes first; destroying it can add events.
  while (!state_->queue.empty()) {
    auto doomed = std::move(state_->queue);
    state_->queue.clear();
  }
}

void World::add_node(const NodeOptions& options) {
  State& s = *state_;
  TM_CHECK(!s.machines.contains(options.name), "a node of this name is there");
  auto machine = std::make_unique<Machine>(options);
  std::array<uint8_t, 16> boot;
  s.random.fill(boot);
  machine->boot_id = Uuid::from_random(boot);
  machine->boot_base_ns = static_cast<int64_t>(s.random.below(1'000'000'000'000)) + 1'000'000'000;
  machine->wall_offset = options.wall_offset;
  s.machines[options.name] = std::move(machine);
}

SimEnv& World::start(const std::string& node) {
  Machine& machine = state_->machine(node);
  TM_CHECK(machine.process == nullptr, "a process runs on this node");
  machine.process = std::make_unique<SimEnv>(*state_, machine, state_->random.next());
  return *machine.process;
}

SimEnv* World::process(const std::string& node) { return state_->machine(node).process.get(); }
void World::crash(const std::string& node, Crash kind) { state_->crash(state_->machine(node), kind); }
bool World::step() { return state_->run_next(); }

void World::run_for(Duration duration) {
  int64_t end = state_->now_ns + duration.count();
  while (!state_->queue.empty() && state_->queue.begin()->first.time_ns <= end) state_->run_next();
  state_->now_ns = std::max(state_->now_ns, end);
}

bool World::run_until(UniqueFunction<bool()> done, Duration limit) {
  int64_t end = state_->now_ns + limit.count();
  while (!done()) {
    if (state_->queue.empty() || state_->queue.begin()->first.time_ns > end) return false;
    state_->run_next();
  }
  return true;
}

void World::at(Duration delay, UniqueFunction<void()> fn) {
  state_->schedule(nullptr, delay, EventKind::kWorld, 0, std::move(fn));
}

Duration World::elapsed() const { return Duration(state_->now_ns); }
uint64_t World::trace_hash() const { return state_->hash; }
uint64_t World::events_delivered() const { return state_->delivered; }
Random& World::random() { return state_->random; }

void World::cut(const std::string& from, const std::string& to) { state_->links[{from, to}].cut = true; }
void World::heal(const std::string& from, const std::string& to) {
  state_->links[{from, to}].cut = false;
  resume_connections(*state_);
}
void World::partition(const std::string& a, const std::string& b) {
  cut(a, b);
  cut(b, a);
}
void World::heal_all() {
  for (auto& [ends, link] : state_->links) link.cut = false;
  resume_connections(*state_);
}
void World::slow_reads(const std::string& node, const std::string& path_contains, Duration by) {
  Machine& m = state_->machine(node);
  m.slow_path = path_contains;
  m.slow_by = by;
}
void World::set_latency(const std::string& from, const std::string& to, DurationRange latency) {
  state_->links[{from, to}].latency = latency;
}
void World::reset_connections(const std::string& a, const std::string& b) { sim::reset_connections(*state_, a, b); }
void World::reset_end(const std::string& at, const std::string& peer) { sim::reset_end(*state_, at, peer); }
void World::set_network_faults(uint32_t reset, uint32_t request_lost, uint32_t answer_lost) {
  state_->options.reset_per_million = reset;
  state_->options.http_request_lost_per_million = request_lost;
  state_->options.http_answer_lost_per_million = answer_lost;
}

void World::jump_wall(const std::string& node, Duration by) { state_->machine(node).wall_offset += by; }
void World::stand_still(const std::string& node) { state_->machine(node).stands_still = true; }
void World::go_on(const std::string& node) {
  Machine& machine = state_->machine(node);
  machine.stands_still = false;
  for (auto& fn : std::exchange(machine.due, {}))
    state_->schedule(machine.process.get(), {}, EventKind::kPost, 0, std::move(fn));
}
void World::inject(const std::string& node, const FileFault& fault) {
  state_->machine(node).file_faults.push_back(fault);
}
void World::inject(const std::string& node, const CrashPoint& point) { state_->machine(node).crash_point = point; }
void World::clear_faults(const std::string& node) {
  Machine& machine = state_->machine(node);
  machine.file_faults.clear();
  machine.crash_point.reset();
  machine.commit_fault.reset();
  machine.store_fault.reset();
}
void World::set_store_fault(const std::string& node, std::optional<StoreFault> fault) {
  state_->machine(node).store_fault = std::move(fault);
}
void World::release_hung(const std::string& node, int error) {
  for (Machine::Hung& hung : std::exchange(state_->machine(node).hung, {})) {
    state_->schedule(hung.process, state_->random.in(state_->options.file_latency), EventKind::kFile, 0,
                     [end = std::move(hung.end), error]() mutable { end(error); });
  }
}
size_t World::hung(const std::string& node) const { return state_->machine(node).hung.size(); }
uint64_t World::file_operations(const std::string& node) const { return state_->machine(node).file_operations; }
uint64_t World::commits(const std::string& node) const { return state_->machine(node).commits; }
void World::fail_next_commit(const std::string& node, Status status) {
  state_->machine(node).commit_fault = std::move(status);
}
void World::set_disk_bytes(const std::string& node, uint64_t bytes) { state_->machine(node).disk.set_capacity(bytes); }

namespace {
void collect(const Disk& disk, const std::string& directory, std::map<std::string, Bytes>& out) {
  auto names = disk.list(directory);
  if (!names) return;
  for (const std::string& name : *names) {
    std::string path = directory + "/" + name;
    auto inode = disk.find(path);
    if (!inode) continue;
    if ((*inode)->is_directory) { collect(disk, path, out); continue; }
    Bytes bytes((*inode)->size());
    (*inode)->read(0, bytes);
    out.emplace(path, std::move(bytes));
  }
}
}  // namespace

std::map<std::string, Bytes> World::files(const std::string& node, const std::string& directory) const {
  std::map<std::string, Bytes> out;
  collect(state_->machine(node).disk, directory, out);
  return out;
}

std::map<Bytes, Bytes> World::committed(const std::string& node, const std::string& store,
                                        const std::string& table) const {
  return committed_table(state_->machine(node), store, table);
}

void World::answer_commits_early(const std::string& node, const std::string& path_contains) {
  state_->machine(node).commits_answered_early = path_contains;
}

struct World::Kept {
  std::vector<std::string> directories;
  Disk::Names files;
  std::map<std::string, std::shared_ptr<StoreState>> stores;   // shared: they are opaque here
};

std::shared_ptr<const World::Kept> World::keep(const std::string& node, std::vector<std::string> directories) const {
  Machine& machine = state_->machine(node);
  TM_CHECK(machine.process == nullptr, "copied while a process runs");
  auto kept = std::make_shared<Kept>();   // the test holds it for as long as it likes
  for (const std::string& directory : directories) {
    machine.disk.copy_below(directory, kept->files);
    for (const auto& [path, store] : machine.stores) {
      if (path.starts_with(directory + "/")) kept->stores[path] = copy_of(*store);
    }
  }
  kept->directories = std::move(directories);
  return kept;
}

void World::wipe(const std::string& node, const std::vector<std::string>& directories) {
  Machine& machine = state_->machine(node);
  TM_CHECK(machine.process == nullptr, "put back or wiped while a process runs");
  for (const std::string& directory : directories) {
    machine.disk.erase_below(directory);
    std::erase_if(machine.stores, [&](const auto& s) { return s.first.starts_with(directory + "/"); });
  }
}

void World::put_back(const std::string& node, const Kept& kept) {
  wipe(node, kept.directories);
  Machine& machine = state_->machine(node);
  machine.disk.put(kept.files);
  for (const auto& [path, store] : kept.stores) machine.stores[path] = copy_of(*store);
}

Status World::flip_byte(const std::string& node, const std::string& path, uint64_t offset) {
  TM_ASSIGN_OR_RETURN(auto inode, state_->machine(node).disk.find(path));
  inode->flip_byte(offset);
  return Status::ok();
}

Status World::set_bytes(const std::string& node, const std::string& path, uint64_t offset, ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(auto inode, state_->machine(node).disk.find(path));
  for (uint64_t i = 0; i < bytes.size(); ++i) inode->set_byte(offset + i, bytes[i]);
  return Status::ok();
}

Status World::cut_short(const std::string& node, const std::string& path, uint64_t size) {
  TM_ASSIGN_OR_RETURN(auto inode, state_->machine(node).disk.find(path));
  inode->truncate(size);
  inode->sync_all();
  return Status::ok();
}

Status World::spoil(const std::string& node, const std::string& path, Extent range) {
  TM_ASSIGN_OR_RETURN(auto inode, state_->machine(node).disk.find(path));
  inode->spoil(range.offset, range.length);
  return Status::ok();
}

SimEnv::SimEnv(World::State& world, Machine& machine, uint64_t seed)
    : world_(world), machine_(machine), in_(std::make_unique<Internals>()) {
  in_->entropy = Random(seed);
  in_->files = make_files(*this);
  in_->network = make_network(*this);
}

SimEnv::~SimEnv() = default;

const std::string& SimEnv::node() const { return machine_.options.name; }

void SimEnv::post(UniqueFunction<void()> fn) {
  if (alive_) world_.schedule(this, {}, EventKind::kPost, 0, std::move(fn));
}

io::TimerId SimEnv::after(Duration delay, UniqueFunction<void()> fn) {
  if (!alive_) return {};
  Duration wait = world_delay(machine_, std::max(delay, Duration(0)));
  // A clock that runs fast must not be waited for in steps of nothing.
  if (delay > Duration(0)) wait = std::max(wait, Duration(1));
  // The number is known only afterwards, so the event finds its own entry by it.
  uint64_t number = world_.next_number;
  int64_t time = world_.now_ns + wait.count();
  in_->timers[number] = time;
  world_.schedule(this, wait, EventKind::kTimer, 0, [this, number, fn = std::move(fn)]() mutable {
    if (in_->timers.erase(number) != 0) fn();   // else cancelled when it was due to a process that stood still
  });
  return {number};
}

void SimEnv::cancel(io::TimerId id) {
  auto it = in_->timers.find(id.value);
  if (it == in_->timers.end()) return;
  auto node = world_.queue.extract(World::State::Key{it->second, id.value});   // destroyed at the end
  in_->timers.erase(it);
}

void SimEnv::at_turn_end(UniqueFunction<void()> fn) {
  if (!alive_) return;
  in_->turn_end.push_back(std::move(fn));
  // Called from outside of any event (a test setting things up): the turn is made for it.
  if (!in_turn_ && in_->turn_end.size() == 1) world_.schedule(this, {}, EventKind::kTurn, 0, [] {});
}

void SimEnv::offload(UniqueFunction<void()> work, UniqueFunction<void()> done) {
  if (!alive_) return;
  if (in_->offloads_running >= limits::kOffloadThreads) {
    in_->offloads_waiting.emplace_back(std::move(work), std::move(done));
    return;
  }
  ++in_->offloads_running;
  world_.schedule(this, world_.random.in(world_.options.offload_latency), EventKind::kOffload, 0,
                  [this, work = std::move(work), done = std::move(done)]() mutable {
                    work();
                    work = nullptr;
                    --in_->offloads_running;
                    post(std::move(done));
                    if (in_->offloads_waiting.empty()) return;
                    auto [next_work, next_done] = std::move(in_->offloads_waiting.front());
                    in_->offloads_waiting.pop_front();
                    offload(std::move(next_work), std::move(next_done));
                  });
}

io::BootTime SimEnv::now() { return {machine_.boot_base_ns + local_ns(machine_, world_.now_ns)}; }
WallTime SimEnv::wall() {
  return {world_.options.wall_start.ns + local_ns(machine_, world_.now_ns) + machine_.wall_offset.count()};
}
void SimEnv::random(MutableByteSpan out) { in_->entropy.fill(out); }
io::FileSystem& SimEnv::files() { return *in_->files; }
net::Network& SimEnv::network() { return *in_->network; }
Uuid SimEnv::boot_id() { return machine_.boot_id; }

Result<std::unique_ptr<kv::Store>> SimEnv::open_store(const std::string& path, const kv::StoreOptions& options) {
  return open_sim_store(*this, path, options);
}

}  // namespace tidemark::sim
