// A simulated cluster: machines, their disks, clocks and network in one thread, from one seed.
//
// A World holds machines. A machine has a disk, key-value stores, a wall clock and at most one
// running process, which is a SimEnv: the daemon under test is built on it as on a RealEnv. Virtual
// time moves only between events, so nothing ever waits, and one seed gives one trace: trace_hash()
// mixes every delivered event.
//
//   sim::World world({.seed = 7});
//   world.add_node({.name = "host1", .cluster = cluster, .role = net::Role::kHost});
//   sim::SimEnv& env = world.start("host1");
//   auto daemon = std::make_unique<Daemon>(env, config);
//   world.run_for(std::chrono::seconds(10));
//   world.crash("host1", sim::Crash::kPowerLoss);   // its events, timers and connections are gone
//   daemon.reset();                                 // what it does while dying has no effect
//   daemon = std::make_unique<Daemon>(world.start("host1"), config);
//
// A crashed SimEnv stays valid, without effect, until the World ends. Addresses are node name and
// port; a certificate's identity is the node's own (cluster, role, name).
//
// What a crash leaves. Kill: everything written, each write in flight in part. Power loss: each
// sector of 512 bytes not synced is kept, dropped or torn; a file's size is the synced or the newest;
// names are as a journaling file system leaves them (a prefix of the changes since their directory
// was synced). A key-value commit is there whole or not at all, and for certain once acknowledged.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "shared/io/env.h"
#include "shared/net/network.h"
#include "tests/sim/sim_env_random.h"

namespace tidemark::sim {

enum class Crash : uint8_t { kKill, kPowerLoss };

struct WorldOptions {
  uint64_t seed = 1;
  DurationRange file_latency{std::chrono::microseconds(10), std::chrono::microseconds(300)};
  DurationRange sync_latency{std::chrono::microseconds(100), std::chrono::milliseconds(4)};
  DurationRange commit_latency{std::chrono::microseconds(100), std::chrono::milliseconds(4)};
  DurationRange offload_latency{std::chrono::microseconds(20), std::chrono::milliseconds(3)};
  DurationRange network_latency{std::chrono::microseconds(30), std::chrono::milliseconds(2)};
  Duration connection_timeout = std::chrono::seconds(20);  // a stream whose bytes cannot move breaks after it
  uint32_t inline_percent = 50;               // of IoMode::kInline operations complete before the call returns
  uint32_t reset_per_million = 0;             // stream deliveries cut in the middle by a reset
  uint32_t http_request_lost_per_million = 0; // the server never sees it
  uint32_t http_answer_lost_per_million = 0;  // the server has applied it, the client gets kUnavailable
  WallTime wall_start{1795255200'000'000'000};  // 2026-11-21T10:00:00Z
};

struct NodeOptions {
  std::string name;
  Uuid cluster;
  net::Role role = net::Role::kHost;
  Duration wall_offset{};              // of this machine's wall clock from the true time
  int32_t drift_ppm = 0;               // how fast its clocks run
  uint64_t disk_bytes = 1ull << 40;
};

// Operations on files that can be counted, failed or crashed at.
enum class FileOp : uint16_t {
  kRead = 1, kWrite = 2, kSync = 4, kPunch = 8, kAllocate = 16, kTruncate = 32,
  kOpen = 64, kRename = 128, kUnlink = 256, kSyncDirectory = 512, kMakeDirectory = 1024,
};
inline constexpr uint16_t kMutatingFileOps = 0x7ff & ~static_cast<uint16_t>(FileOp::kRead);

struct FileFault {
  uint64_t nth = 1;                     // the nth matching operation from now, counted from 1
  uint64_t times = 1;                   // so many in a row
  uint16_t operations = kMutatingFileOps;
  std::string path_contains;
  int error = 5;                        // EIO; 28 is ENOSPC
  bool hangs = false;                   // it does not end before release_hung(); of operations on open files only
};

// Of stores, until it is taken back: each commit fails, or takes longer.
struct StoreFault {
  std::string path_contains;            // empty: every store
  Status status;                        // kOutOfSpace leaves the store usable, others do not; OK: none fails
  bool opens = false;                   // opening one anew fails too
  bool reads = false;                   // one that is not usable any more cannot be read either
  Duration delay{};                     // of each transaction
  bool forgets = false;                 // what is opened is another disk's, empty at first; the old one is back with its end
};

struct CrashPoint {
  uint64_t nth = 1;                     // the nth matching operation from now, counted from 1
  bool at_commits = false;              // count key-value commits instead of file operations
  uint16_t operations = kMutatingFileOps;
  Crash kind = Crash::kKill;
};

class SimEnv;

class World {
 public:
  explicit World(const WorldOptions& options);
  ~World();
  World(const World&) = delete;

  void add_node(const NodeOptions& options);
  SimEnv& start(const std::string& node);    // a new process; none may be running there
  SimEnv* process(const std::string& node);  // null while none runs
  // Ends the process at once (a clean exit, after the daemon was destroyed, is a kill as well).
  void crash(const std::string& node, Crash kind);
  bool running(const std::string& node) { return process(node) != nullptr; }

  // Runs the next event; false if there is none.
  bool step();
  void run_for(Duration duration);
  // Until `done()` holds after some event; false if `limit` of virtual time passed or nothing is left.
  bool run_until(UniqueFunction<bool()> done, Duration limit);
  // An event of the test's own: crashes, partitions, checks.
  void at(Duration delay, UniqueFunction<void()> fn);
  Duration elapsed() const;
  uint64_t trace_hash() const;
  uint64_t events_delivered() const;
  Random& random();                          // for the test's choices, from the same seed

  // Network. A cut link holds bytes back; they arrive when it heals, unless the connection broke
  // meanwhile (connection_timeout, or the daemons' own time limits).
  void cut(const std::string& from, const std::string& to);   // one way
  void heal(const std::string& from, const std::string& to);
  void partition(const std::string& a, const std::string& b); // both ways
  void heal_all();
  void set_latency(const std::string& from, const std::string& to, DurationRange latency);
  void reset_connections(const std::string& a, const std::string& b);   // each in the middle of its delivery
  void reset_end(const std::string& at, const std::string& peer);   // the same, and only `at` hears of it
  // Changes the rates given in WorldOptions.
  void set_network_faults(uint32_t reset_per_million, uint32_t http_request_lost_per_million,
                          uint32_t http_answer_lost_per_million);

  void jump_wall(const std::string& node, Duration by);
  // SIGSTOP and SIGCONT: what happens to the process meanwhile it finds, in order, when it goes on.
  void stand_still(const std::string& node);
  void go_on(const std::string& node);

  void inject(const std::string& node, const FileFault& fault);
  void inject(const std::string& node, const CrashPoint& point);
  void clear_faults(const std::string& node);   // what hangs goes on hanging
  // What hangs on the node is carried out now, or fails with `error`.
  void release_hung(const std::string& node, int error = 0);
  size_t hung(const std::string& node) const;
  uint64_t file_operations(const std::string& node) const;    // mutating ones, since the node was added
  uint64_t commits(const std::string& node) const;
  // Fails the next commit of every store of the node: kOutOfSpace leaves it usable, others do not.
  void fail_next_commit(const std::string& node, Status status);
  void set_store_fault(const std::string& node, std::optional<StoreFault> fault);
  // Reads of files whose path contains this take so much longer.
  void slow_reads(const std::string& node, const std::string& path_contains, Duration by);
  void set_disk_bytes(const std::string& node, uint64_t bytes);
  // What the oracle sees without the daemons' code: files below a directory as a read would show them, and a store's
  // table as it was last committed.
  std::map<std::string, Bytes> files(const std::string& node, const std::string& directory) const;
  std::map<Bytes, Bytes> committed(const std::string& node, const std::string& store, const std::string& table) const;
  // A planted fault: commits of stores whose path contains this are answered before they are durable.
  void answer_commits_early(const std::string& node, const std::string& path_contains);
  // Changes one byte behind the daemon's back, durably.
  Status flip_byte(const std::string& node, const std::string& path, uint64_t offset);
  // A copy of all that lies durably below these directories, files and stores, and what was kept of it put back in
  // their place: a backup, or a snapshot, of an earlier time. No process may run there.
  struct Kept;
  std::shared_ptr<const Kept> keep(const std::string& node, std::vector<std::string> directories) const;
  void put_back(const std::string& node, const Kept& kept);
  // All that is below these directories is gone, durably: another device stands in their place.
  void wipe(const std::string& node, const std::vector<std::string>& directories);
  // The same for many: a write that the disk lost, a block that it put elsewhere.
  Status set_bytes(const std::string& node, const std::string& path, uint64_t offset, ByteSpan bytes);
  // Cannot be read until it is written anew: a bad sector.
  Status spoil(const std::string& node, const std::string& path, Extent range);
  // Cut off behind the daemon's back, whoever has it open.
  Status cut_short(const std::string& node, const std::string& path, uint64_t size);

  struct State;

 private:
  std::unique_ptr<State> state_;
};

struct Machine;

// One process on a machine.
class SimEnv final : public io::Env {
 public:
  SimEnv(World::State& world, Machine& machine, uint64_t seed);
  ~SimEnv() override;

  const std::string& node() const;
  bool alive() const { return alive_; }

  void post(UniqueFunction<void()> fn) override;
  io::TimerId after(Duration delay, UniqueFunction<void()> fn) override;
  void cancel(io::TimerId id) override;
  void at_turn_end(UniqueFunction<void()> fn) override;
  void offload(UniqueFunction<void()> work, UniqueFunction<void()> done) override;
  io::BootTime now() override;
  WallTime wall() override;
  void random(MutableByteSpan out) override;
  io::FileSystem& files() override;
  Result<std::unique_ptr<kv::Store>> open_store(const std::string& path, const kv::StoreOptions& options) override;
  net::Network& network() override;
  Uuid boot_id() override;

  struct Internals;

 private:
  friend class World;
  friend struct ProcessAccess;
  World::State& world_;
  Machine& machine_;
  bool alive_ = true;
  bool in_turn_ = false;
  std::unique_ptr<Internals> in_;
};

}  // namespace tidemark::sim
