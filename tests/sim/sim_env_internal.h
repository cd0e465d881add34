// What the parts of the simulated Env share: the event queue, machines, and entering a process.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/sim/sim_env.h"
#include "tests/sim/sim_env_disk.h"

namespace tidemark::sim {

// Mixed into the trace hash with each event.
enum class EventKind : uint8_t { kPost = 1, kTimer, kTurn, kOffload, kFile, kCommit, kStream, kHttp, kWorld };

struct Connection;
struct StoreState;
class SimListener;
class SimHttpServer;

struct World::State {
  struct Key {
    int64_t time_ns;
    uint64_t number;
    auto operator<=>(const Key&) const = default;
  };
  struct Event {
    SimEnv* process = nullptr;   // null: the world's own; dropped if its process died
    EventKind kind = EventKind::kWorld;
    uint64_t detail = 0;         // mixed into the trace
    UniqueFunction<void()> fn;
  };
  struct Link {
    bool cut = false;
    std::optional<DurationRange> latency;
  };

  explicit State(const WorldOptions& o) : options(o), random(o.seed), now_ns(0) {}

  uint64_t schedule(SimEnv* process, Duration delay, EventKind kind, uint64_t detail, UniqueFunction<void()> fn);
  // Runs `fn` as one turn of the process: its turn-end functions follow. Nothing if it is dead.
  void enter(SimEnv* process, UniqueFunction<void()>& fn);
  void mix(uint64_t value) { hash = (hash ^ value) * 0x100000001B3ull, hash ^= hash >> 29; }
  Machine& machine(const std::string& name);
  Machine* find_machine(const std::string& name);
  bool is_cut(const Machine& from, const Machine& to);
  Duration network_delay(const Machine& from, const Machine& to);
  void crash(Machine& machine, Crash kind);
  bool run_next();

  WorldOptions options;
  Random random;
  int64_t now_ns;
  uint64_t next_number = 1;
  uint64_t hash = 0xcbf29ce484222325ull;
  uint64_t delivered = 0;
  std::map<Key, Event> queue;
  std::map<std::string, std::unique_ptr<Machine>> machines;
  std::map<std::pair<std::string, std::string>, Link> links;
  // Observed, not owned: a connection lives as long as a stream or an event holds it.
  std::map<uint64_t, std::weak_ptr<Connection>> connections;
  uint64_t next_connection = 1;
};

// An HTTP request that a server is at work on.
struct ExchangeAtServer {
  virtual ~ExchangeAtServer() = default;
  virtual void server_died() = 0;
};

struct Machine {
  explicit Machine(const NodeOptions& o) : options(o), disk(o.disk_bytes) {}

  NodeOptions options;
  Disk disk;
  std::map<std::string, std::shared_ptr<StoreState>> stores;   // shared with commits under way
  Uuid boot_id;
  int64_t boot_base_ns = 0;       // what its CLOCK_BOOTTIME showed when the world began
  Duration wall_offset{};
  std::unique_ptr<SimEnv> process;
  std::vector<std::unique_ptr<SimEnv>> dead;   // kept: what was built on them is destroyed later
  bool stands_still = false;
  std::vector<UniqueFunction<void()>> due;     // to the process that stands still

  std::map<uint16_t, SimListener*> listeners;
  std::map<std::string, SimHttpServer*> http_servers;          // by ":port" or socket path
  std::list<std::weak_ptr<ExchangeAtServer>> exchanges;        // observed; finished ones are swept when one is added
  uint16_t next_port = 40000;

  std::list<FileFault> file_faults;
  std::string slow_path;                       // empty: none
  Duration slow_by{};
  struct Hung { SimEnv* process; UniqueFunction<void(int error)> end; };
  std::vector<Hung> hung;
  std::optional<CrashPoint> crash_point;
  std::optional<Status> commit_fault;
  std::optional<StoreFault> store_fault;
  const StoreFault* fault_of_store(const std::string& path) const {
    return store_fault && path.find(store_fault->path_contains) != std::string::npos ? &*store_fault : nullptr;
  }
  std::string commits_answered_early;          // path part; empty: none
  uint64_t file_operations = 0;
  uint64_t commits = 0;

  net::PeerIdentity identity() const { return {options.cluster, options.role, options.name}; }
};

struct WriteInFlight {   // of a file, submitted and not complete
  std::shared_ptr<Inode> inode;
  uint64_t offset;
  ByteSpan data;
};

struct SimEnv::Internals {
  std::unique_ptr<io::FileSystem> files;
  std::unique_ptr<net::Network> network;
  std::vector<UniqueFunction<void()>> turn_end;
  std::unordered_map<uint64_t, int64_t> timers;     // number -> time: its key in the queue
  std::map<uint64_t, WriteInFlight> writes;
  uint64_t next_write = 0;
  std::set<StoreState*> open_stores;
  Random entropy{0};
  uint32_t offloads_running = 0;
  std::deque<std::pair<UniqueFunction<void()>, UniqueFunction<void()>>> offloads_waiting;
};

// The parts' way into a process.
struct ProcessAccess {
  static World::State& world(SimEnv& env) { return env.world_; }
  static Machine& machine(SimEnv& env) { return env.machine_; }
  static SimEnv::Internals& internals(SimEnv& env) { return *env.in_; }
  static void kill(SimEnv& env) { env.alive_ = false; }
  static bool in_turn(SimEnv& env) { return env.in_turn_; }
  static void set_in_turn(SimEnv& env, bool in) { env.in_turn_ = in; }
};

// One file or commit operation: counted, perhaps failed, perhaps the last thing the process does
// (before it took effect, or after).
class Operation {
 public:
  Operation(SimEnv& env, FileOp op, const std::string& path);
  // A commit.
  explicit Operation(SimEnv& env);
  ~Operation();
  // The process is dead, now or already: do nothing and answer this.
  bool dead() const { return dead_; }
  static Status dead_status() { return Status(Code::kCancelled, "the process has crashed"); }
  // The operation is to fail so.
  const std::optional<Status>& fault() const { return fault_; }
  bool hangs() const { return hangs_; }

 private:
  void look_for_crash(bool matches);
  SimEnv& env_;
  bool dead_ = false;
  bool crash_after_ = false, hangs_ = false;
  std::optional<Status> fault_;
};

std::unique_ptr<io::FileSystem> make_files(SimEnv& env);
std::unique_ptr<net::Network> make_network(SimEnv& env);
Result<std::unique_ptr<kv::Store>> open_sim_store(SimEnv& env, const std::string& path, const kv::StoreOptions& options);
std::shared_ptr<StoreState> copy_of(const StoreState& store);   // of what is committed
void crash_stores(Machine& machine, Random& random);
std::map<Bytes, Bytes> committed_table(Machine& machine, const std::string& store, const std::string& table);
void crash_connections(World::State& world, SimEnv& process, Crash kind);
void crash_exchanges(Machine& machine, Crash kind);
void resume_connections(World::State& world);   // after a link healed
void reset_connections(World::State& world, const std::string& a, const std::string& b);
void reset_end(World::State& world, const std::string& at, const std::string& peer);

}  // namespace tidemark::sim
