// Configuration: one TOML file a daemon. Unknown keys are errors that name the file and line.
// toml++ stands behind it (config.cc). Sizes are text with a unit ("256MiB") or whole bytes;
// durations text with a unit ("1s", "250ms").
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shared/base/status.h"

namespace tidemark::config {

struct Node {
  std::string name;                // as in its certificate
  std::string role;                // "host", "shared" or "replica"
  std::string state_dir;           // LMDB environments, spool; created 0700
  std::string run_dir;             // control socket `control.sock`, pid file; default: state_dir
  uint32_t busy_poll_us = 100;      // a wait polls at most so long (microseconds) before it sleeps; 0: never
  std::string control_socket() const { return run_dir + "/control.sock"; }
};
struct Tls { std::string authority, certificate, key; };          // PEM files
struct Storage {
  std::string group = "default";
  std::vector<std::string> bricks;                                // directories
  uint64_t stripe_unit = 1ull << 20;                              // bytes, multiple of 4096
  uint32_t stripe_count = 1;
  std::chrono::milliseconds io_deadline{5000};                    // a brick that takes longer for an operation has failed
};
struct SharedLink { std::string address; std::string node; uint32_t connections = 2; };
struct ReplicaLink { std::string url; std::string node; };
struct WitnessLink { std::string url; std::string node; bool in_replica = true; };   // false: tidemark-witness
struct Journal {
  std::chrono::milliseconds cut_interval{1000};
  uint64_t cut_bytes = 256ull << 20;
  std::chrono::milliseconds commit_interval{100};
  uint64_t limit_bytes = 10ull << 30;                             // of unshipped batches; then only dirty regions are kept
  std::chrono::milliseconds limit_age{24 * 3'600'000};           // of the oldest of them
  uint64_t region_bytes = 4ull << 20;
  uint64_t ship_rate = 0;                                         // bytes a second to the replica; 0: no limit
};
struct Resync {
  uint64_t rate = 0;                                              // bytes a second over all images; 0: no limit
  uint32_t images = 4;                                            // made level at once; the others wait
};
struct Listen { std::string address; };                           // "127.0.0.1:7400"; port 0 takes a free one
struct Log { std::string level = "info"; std::string file; };
struct Mount { std::string path; bool allow_other = true; uint32_t max_background = 256; };

struct Host {
  Node node; Tls tls; Storage storage;
  std::optional<SharedLink> shared;      // none: every image is `mirror = none`, names are local -- not offered yet
  std::optional<ReplicaLink> replica;    // none: nothing is shipped; journal and cuts still go on
  std::optional<WitnessLink> witness;    // asked before this host goes on without the shared node
  bool may_go_alone = true;              // [autonomy] policy = "continue"; "pause", the default with a witness: it waits
  Journal journal; Resync resync; Listen metrics; Log log; Mount mount;
};
struct Shared {
  Node node; Tls tls; Storage storage; Listen listen;
  std::optional<ReplicaLink> replica;
  std::optional<WitnessLink> witness;             // asked before a tenure is taken from a host that is gone
  Journal journal; Listen metrics; Log log;
  std::chrono::milliseconds tenure_wait{5000};    // [tenure] wait
};
struct Replica {
  Node node; Tls tls; Listen listen; Listen metrics; Log log;
  bool witness = true;                            // [witness] enabled: the witness's service on the same address
  std::chrono::milliseconds missing_wait{20'000}; // [order] missing_wait
};
struct Witness { Node node; Tls tls; Listen listen; Listen metrics; Log log; };

Result<Host> load_host(const std::string& file);
Result<Shared> load_shared(const std::string& file);
Result<Replica> load_replica(const std::string& file);
Result<Witness> load_witness(const std::string& file);
// The role named in [node] of the file, for tools that take any of them.
Result<std::string> role_of(const std::string& file);
// "FILE:LINE: [section] key": the beginning of an error about a value that proved unusable later
// (a used port, a missing brick). LINE is that of the key, else of its section, else 1.
std::string locate(const std::string& file, std::string_view section, std::string_view key);
// That the files and directories named exist; the error is one line with the remedy.
Status check_paths(const std::string& file, const Tls& tls, const Storage* storage);
// "512", "64KiB", "4MiB", "2GiB", "1TiB" (also K, M, G, T and KB... as powers of 1024); "250ms", "5s", "1m".
Result<uint64_t> parse_size(std::string_view text);
Result<std::chrono::milliseconds> parse_duration(std::string_view text);
std::string format_size(uint64_t bytes);   // "2.0 GiB"

}  // namespace tidemark::config
