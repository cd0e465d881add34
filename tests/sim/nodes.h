// The cluster's daemons as a simulation starts them: same options everywhere, small regions and two bricks on the
// shared node, so that little data crosses many boundaries.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/node/node.h"
#include "shared/witness/witness.h"
#include "tests/sim/sim_env.h"

namespace tidemark::sim {

inline constexpr uint16_t kSharedPort = 7400, kReplicaPort = 7443;
inline constexpr uint16_t kWitnessPort = 7444;
inline constexpr const char* kWitnessUrl = "https://witness1:7444";
inline constexpr const char* kReplicaUrl = "https://replica1:7443";

struct SharedSetup {
  Uuid cluster;
  uint64_t region_bytes = 4 << 20;
  bool ships = true;                              // its time marks, to the replica
  Duration limit_age = std::chrono::hours(24);    // of their journal
  std::function<void(const Status&)> on_fatal;
  bool witness = false;                           // asks witness1
  bool witness_in_replica = false;                // with `witness`: the one built into replica1 instead
  std::vector<std::string> rebuild_from;          // an order: its catalogue was lost, and these hosts report
};
Result<std::unique_ptr<node::SharedNode>> open_shared(SimEnv& env, SharedSetup setup);

struct HostSetup {
  Uuid cluster;
  uint64_t region_bytes = 4 << 20;
  bool ships = true;
  uint64_t limit_bytes = 10ull << 30;             // of the journal
  Duration limit_age = std::chrono::hours(24);
  bool witness = false;                           // asks witness1, and waits for it
  uint64_t resync_rate = 0;                       // [resync] rate
  bool witness_in_replica = false;
  bool pause = false;                             // autonomy without a witness: it does not go on alone
  bool continues = false;                         // with `witness`: policy = "continue", it does not ask
  fs::Survivor* survivor = nullptr;               // of its mount
  bool after_reset = false;                       // an operator's word that its state was lost
  bool successor = false;                         // that mount stands, with what a run before left in it
};
// What a mount keeps from one run to the next.
struct Mount {
  Bytes memory = Bytes(fs::Survivor::kBytes, 0);
  std::optional<fs::Survivor> survivor;
  fs::Survivor& attach();
};
Result<std::unique_ptr<fs::Engine>> open_host(SimEnv& env, const HostSetup& setup);

// The witness's service behind its address.
struct WitnessServer {
  std::unique_ptr<witness::Witness> witness;
  std::unique_ptr<net::HttpServer> http;
};
// A planted bug: it gives these the vote that they ask for, and keeps no record of it.
enum class Forgets { kNobody, kHosts, kAll };
Result<WitnessServer> open_witness(SimEnv& env, Forgets forgets = Forgets::kNobody);

}  // namespace tidemark::sim
