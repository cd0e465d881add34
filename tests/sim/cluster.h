// Hosts, a shared node, a replica and a witness in one thread from one seed, and what a scenario may do to them.
//
// Files: cluster.cc, cluster_takeovers.cc (images that are taken, by force or by the witness's word).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "fs/engine.h"
#include "replica/replica.h"
#include "shared/node/node.h"
#include "tests/sim/guest.h"
#include "tests/sim/model.h"
#include "tests/sim/nodes.h"
#include "tests/sim/sim_env.h"

namespace tidemark::sim {

enum class WitnessKind : uint8_t { kNone, kDaemon, kInReplica };

// What is done to the cluster while the guests work. Counts of random moments over the run.
struct Scenario {
  std::string name;
  Duration length = std::chrono::seconds(20);
  uint32_t images_per_host = 1;
  uint32_t relay_images = 0;        // written by both hosts in turn
  uint64_t image_bytes = 1 << 20;
  uint64_t region_bytes = 128 << 10;
  GuestOptions guest;
  uint32_t marks = 3;
  uint32_t link_cuts = 0;           // host to shared node, healed after a while
  uint32_t link_resets = 0;
  uint32_t replica_outages = 0;     // killed, started again
  uint32_t replica_long_outages = 0;  // the same, for longer than the journals' limit of age
  bool replica_replaced = false;    // once: emptied; operators say on every node that it is to be brought level
  uint64_t limit_bytes = 10ull << 30;
  Duration limit_age = std::chrono::hours(24);
  uint32_t shared_kills = 0, shared_power_losses = 0;
  uint32_t host_kills = 0, host_power_losses = 0;
  uint32_t host_isolations = 0;     // a host sees nobody for a while
  uint32_t shared_sync_failures = 0;   // one sync fails on the shared node; seconds later its machine loses its power
  uint32_t brick_failures = 0;      // a host's brick answers EIO from some operation on, for a while or for good
  uint32_t clock_jumps = 0;
  uint32_t http_faults_per_million = 0, reset_per_million = 0;
  // What images may be taken by; any of it: the model follows both lines of a tenure that was taken by force.
  bool contested = false;
  uint32_t hosts = 2;
  WitnessKind witness = WitnessKind::kNone;
  bool pause = false;               // autonomy, without a witness
  uint32_t takeovers = 0;           // an operator takes a moving image from its holder
  uint32_t rivals = 0;              // a VM is started on another host while it runs
  uint32_t aborts = 0;              // an operator ends the waiting of an image's requests
  uint32_t partitions = 0;          // of any two nodes, one way or both, for up to 40 s
  uint32_t live_restarts = 0;       // the daemon dies, its mount stands
  Duration host_down_max = std::chrono::seconds(2);
};

class Cluster {
 public:
  Cluster(uint64_t seed, const Scenario& scenario);
  ~Cluster();

  // Runs the scenario, heals everything, and holds the copies, the replica and the points against the models.
  // Empty: all is well. Else what failed first.
  std::string run();
  uint64_t trace_hash() const { return world_.trace_hash(); }
  uint64_t acknowledged() const;
  uint64_t times_degraded() const { return times_degraded_; }
  // Images taken by force; moved by the witness's word; lines that differed and were found as a branch.
  struct Contest { uint64_t forks, moved, branches; };
  Contest contest() const { return {forks_, moved_, branches_}; }
  uint64_t events() const { return world_.events_delivered(); }

 private:
  struct Host {
    std::string name;
    std::unique_ptr<fs::Engine> engine;
    std::vector<std::unique_ptr<Guest>> guests;
    std::vector<size_t> images;                 // its own, indices into models_
    uint32_t crashes = 0;
    std::unique_ptr<Mount> mount;               // contested: what one run leaves to the next
  };
  // What a host wrote upon an image that was taken from it: all that the main line lacks is to be in its branch.
  struct Line {
    Host* host = nullptr;
    uint64_t epoch = 0;                         // of the tenure that was taken
    std::unique_ptr<ImageModel> model;
    Bytes main;                                 // as it was read from the host that goes on; empty: not yet
  };
  // A VM that still runs where its image was, or may be, given to another.
  struct Stranded {
    Host* host = nullptr;
    std::unique_ptr<Guest> guest;
    Line* line = nullptr;                       // null: on the main line, which nobody has taken by force
  };
  // An image whose VM moves: one turn after another, each on a host of the seed's choice.
  struct Relay {
    size_t model = 0;
    uint64_t turns = 0;
    Host* host = nullptr;                       // of the turn under way
    bool created = false;
    bool ended = false;                         // no further turns
    uint64_t epoch = 0;                         // newest in which a turn has written (contested images)
    std::unique_ptr<Guest> guest;
    std::vector<Stranded> stranded;
    std::vector<std::unique_ptr<Line>> lines;
    std::string victim;                         // a takeover is under way from this host
    bool asking = false;                        // the shared node has been given the word, and has not answered
  };
  struct Marked {
    std::string name, image;
    const Host* host = nullptr;                 // that made it, after so many crashes, for the replica of then
    uint32_t crashes = 0, replicas = 0;
    size_t model = 0;
    ImageModel::View before, after;
    bool complete = false;
    bool held = false;                          // promised while its host recovered: it shows the moment when that ended
  };

  void start_shared();
  void start_replica();
  void start_host(Host& host, bool first);
  void start_guests(Host& host, bool first);
  void crash_host(Host& host, Crash kind);
  void crash_shared(Crash kind);
  void lost_power();
  void lost_power_alone(Host& host);
  void note_half_filled(Host& host, bool host_dies);
  void lose_half_filled(size_t model);
  void begin_turn(Relay& relay);
  void next_turn(Relay& relay, Duration pause);
  void watch_turn(Relay& relay);
  bool final_turns();
  void start_turn(Relay& relay, Host& host);
  Host& any_host() { return hosts_[world_.random().below(hosts_.size())]; }
  void start_run(Host& host, bool successor);
  // ---- cluster_takeovers.cc
  std::vector<std::string> node_names() const;
  void add_witness();
  void start_witness();
  void plan_contest();
  void look_at_contest();
  void partition_some();
  void begin_rival(Relay& relay);
  void rival_taken(Relay& relay);
  void abort_waiting();
  void restart_live(Host& host);
  void take_by_force(Relay& relay);
  void ask_takeover(Relay& relay, bool accept_loss);
  bool unaware(const Relay& relay, const Host& host);
  uint64_t epoch_held(const Relay& relay, const Host& host);
  bool moved_on(const Relay& relay, const Host& host);
  void forked(Relay& relay, uint64_t epoch);
  void read_main_line(Relay& relay);
  void takeover_over(Relay& relay);
  void stop_stranded();
  bool contest_settled() const;
  bool check_branches();
  bool read_whole(Host& host, size_t model);
  void plan();
  void schedule(uint32_t times, const std::function<void(Cluster&)>& fn);
  void fail_brick(Host& host);
  void take_replica_down(Duration length);
  void replace_replica();
  void ask_resync(Host& host);
  void ask_names_resync();
  void watch_limits();
  void mark(Host& host);
  size_t model_of(const std::string& path, const std::string& uuid);
  void fail(const std::string& what);
  bool wait(const std::string& what, UniqueFunction<bool()> done, Duration limit = std::chrono::seconds(180));
  bool settle();
  bool level();
  bool verify(Host& host, const std::vector<std::string>& images);
  bool check_points();
  bool may_be_lost(const Marked& mark);
  bool said_to_be_later(const net::HttpResponse& resolved, const Marked& mark);
  std::string read_point(const std::string& point, const std::string& image, Bytes* out);
  Result<net::HttpResponse> get(const std::string& target);

  const Scenario scenario_;
  World world_;
  Uuid cluster_;
  std::unique_ptr<node::SharedNode> shared_;
  std::unique_ptr<replica::Replica> replica_;
  std::unique_ptr<net::HttpServer> replica_server_;
  std::unique_ptr<witness::Witness> replica_witness_;
  WitnessServer witness_;
  std::vector<Host> hosts_;
  std::vector<std::unique_ptr<Relay>> relays_;
  std::vector<std::unique_ptr<ImageModel>> models_;
  std::vector<std::string> names_;              // of the images, by model
  std::map<std::string, size_t> uuids_;         // of those whose name some daemon has told, to the model
  std::vector<std::unique_ptr<Marked>> marks_;
  std::unique_ptr<net::HttpClient> reader_;
  std::string failure_;
  std::string replica_directory_ = "/state";    // another one where it was replaced
  uint32_t replicas_ = 0;
  uint64_t acknowledged_ = 0;
  uint64_t times_degraded_ = 0;                 // as seen, now and then
  Duration shared_lost_power_at_ = Duration::min();
  // Models whose holder died, or whose shared copy lost its power, while the holder's copy was not whole.
  std::set<size_t> half_filled_died_, half_filled_lost_;
  uint64_t forks_ = 0, moved_ = 0, branches_ = 0;
};

}  // namespace tidemark::sim
