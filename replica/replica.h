// Replica: the off-site server above an Env. Takes batches from sources, orders them, keeps the
// history, answers readers. API.md is its interface, FORMAT.md what it keeps.
//
//   auto replica = Replica::open(env, {.directory = state, .cluster = cluster, .node = "replica1"});
//   env.network().serve_http({...}, [&](auto request, auto reply) { (*replica)->handle(...); });
//
// Loop thread only. Close before destroying: files must not be in flight.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "replica/intake.h"
#include "replica/reader.h"
#include "shared/base/metrics.h"
#include "shared/io/env.h"
#include "shared/net/network.h"

namespace tidemark::replica {

// Of the index: address space alone, and nothing is removed from it. Smaller than the largest file of any ext4.
inline constexpr uint64_t kIndexBytesMin = 64ull << 30;
#ifdef TIDEMARK_THREAD_SANITIZER
inline constexpr uint64_t kIndexBytesMax = kIndexBytesMin;
#else
inline constexpr uint64_t kIndexBytesMax = 4ull << 40;
#endif

struct Options {
  std::string directory;
  Uuid cluster;
  std::string node;
  uint64_t chunk_cache_bytes = 64ull << 20;
  size_t held_batches_max = kHeldBatchesMax;
  size_t step_extents = kStepExtents;
  uint64_t index_bytes_max = kIndexBytesMax;
  // A batch held longer is an alarm and makes the replica unhealthy.
  std::chrono::seconds held_max{900};
  // What a tenure taken by force stands in for is waited for that long: the host that lost it may come back.
  std::chrono::milliseconds missing_wait{20'000};
};

class Replica {
 public:
  static Result<std::unique_ptr<Replica>> open(io::Env& env, Options options);
  ~Replica();

  // Answers one request of API.md. The peer's role and name are checked here.
  void handle(net::HttpRequest request, Callback<net::HttpResponse> reply);
  // Refuses further requests and tells when none is under way.
  void close(UniqueFunction<void()> done);

  std::string status_json();               // the text of /v1/status
  std::vector<std::string> health();       // why it is not healthy; alarms are told by status and metrics
  void register_metrics(metrics::Registry& registry);

  Reader& reader() { return *reader_; }
  Intake& intake() { return *intake_; }
  const Catalog& catalog() const { return catalog_; }
  kv::Store& store() { return *store_; }
  const Options& options() const { return options_; }
  std::vector<AlarmRecord> alarms(size_t count_max);
  // Durable record, log line, metric, status. Raised again, an alarm is counted up.
  void raise_alarm(const std::string& kind, const std::string& subject, const std::string& text);

 private:
  Replica(io::Env& env, Options options) : env_(env), options_(std::move(options)) {}
  void check_drained();
  struct Overdue { std::string batch, text; };
  // The first held batch of each source, where it has waited too long.
  std::vector<Overdue> overdue() const;
  void watch_held();
  void release_overdue();

  io::Env& env_;
  const Options options_;
  std::unique_ptr<kv::Store> store_;
  Catalog catalog_;
  std::unique_ptr<SegmentFiles> files_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<Intake> intake_;
  std::map<Bytes, AlarmRecord> unsaved_alarms_;   // their commits are under way
  uint64_t alarm_commits_ = 0;
  std::set<std::string> overdue_told_;            // batches
  std::map<std::string, io::BootTime> waiting_since_;   // sources whose first held batch may go without what it follows
  io::TimerId watch_timer_;
  metrics::Counter alarms_total_;
  uint64_t requests_ = 0;                         // being answered
  bool closing_ = false;
  UniqueFunction<void()> closed_;
};

}  // namespace tidemark::replica
