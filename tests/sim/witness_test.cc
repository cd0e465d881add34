// Two hosts, a shared node and a witness under every partition: at most one side acknowledges writes.
#include "tests/repeat.h"
#include "tests/sim/stamp_writer.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// What the nemesis may do. Returns what was lost, empty: nothing.
struct Partitioned {
  uint64_t acknowledged = 0, moved = 0, alone = 0;
  std::string lost;
};
Partitioned run_partitions(uint64_t seed, Plant plant = Plant::kNone) {
  Partitioned result;
  Lab lab(seed, true, plant);
  auto made = lab.open("host1", true);
  if (!made) {
    result.lost = made.status().to_string();
    return result;
  }
  lab.engine("host1").release(*made);
  StampWriter writers[2] = {{lab, "host1", 0}, {lab, "host2", 65536}};
  for (StampWriter& w : writers) w.turn();
  const std::pair<const char*, const char*> kLinks[] = {
      {"host1", "shared1"}, {"host2", "shared1"}, {"host1", "witness1"}, {"host2", "witness1"}, {"shared1", "witness1"}};
  Random& random = lab.world.random();
  for (int event = 0; event < 14; ++event) {
    lab.world.run_for(random.in({seconds(2), seconds(22)}));
    uint64_t choice = random.below(11);
    if (choice < 6) {
      auto [a, b] = kLinks[random.below(std::size(kLinks))];
      lab.world.partition(a, b);
      if (random.below(2) == 0) lab.world.reset_connections(a, b);
    } else if (choice < 8) {
      lab.world.heal_all();
    } else if (choice == 10) {   // whatever comes of it, without a second word
      if (lab.world.running("shared1")) lab.begin_take("{\"images\":[\"disk.img\"],\"force\":true}");
    } else {
      const char* nodes[] = {"host1", "host2", "shared1", "witness1"};
      const std::string node = nodes[random.below(4)];
      const Crash kind = random.below(2) == 0 ? Crash::kKill : Crash::kPowerLoss;
      // A host that goes on alone and loses its power may lose what was not flushed: only killed here.
      const bool host = node.starts_with("host");
      lab.crash(node, host ? Crash::kKill : kind);
      if (host) writers[node == "host1" ? 0 : 1].crashed();
      lab.world.run_for(random.in({milliseconds(100), seconds(15)}));
      lab.start(node);
    }
  }
  lab.world.heal_all();
  for (StampWriter& w : writers) w.stopped = true;
  if (!lab.healthy("host1") || !lab.healthy("host2")) {
    result.lost = "a host does not get healthy";
    return result;
  }
  lab.world.run_for(seconds(30));
  // Both are started anew: nobody holds an open handle.
  for (int w = 0; w < 2; ++w) {
    const std::string host = w == 0 ? "host1" : "host2";
    lab.crash(host, Crash::kKill);
    writers[w].crashed();
    lab.start(host);
    lab.healthy(host);
    result.acknowledged += writers[w].acknowledged;
  }
  for (const char* host : {"host1", "host2"}) {
    auto handle = lab.open(host);
    if (!handle) {
      result.lost = handle.status().to_string();
      return result;
    }
    for (int w = 0; w < 2; ++w) {
      uint64_t found = stamp_at(lab, host, *handle, w == 0 ? 0 : 65536);
      if (found < writers[w].acknowledged) {
        result.lost = std::string(host) + " reads stamp " + std::to_string(found) + " of host" + std::to_string(w + 1) +
                      ", which had " + std::to_string(writers[w].acknowledged) + " acknowledged";
      }
    }
    lab.engine(host).release(*handle);
  }
  for (const auto& [key, value] : lab.world.committed("witness1", "/state/witness", "records")) {
    auto record = wire::decode<witness::Record>(value);
    if (record) result.moved += record->verdict == witness::Verdict::kFenced, result.alone += record->verdict == witness::Verdict::kOutdated;
  }
  return result;
}

TEST(Witness, AtMostOneSideAcknowledgesUnderEveryPartition) {
  uint64_t first = 1, count = 20, acknowledged = 0;
  if (const char* seeds = std::getenv("TIDEMARK_SIM_SEEDS")) count = std::strtoull(seeds, nullptr, 10);
  if (const char* from = std::getenv("TIDEMARK_SIM_FIRST")) first = std::strtoull(from, nullptr, 10);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Partitioned run = run_partitions(seed);
    EXPECT_EQ(run.lost, "") << "seed " << seed;
    acknowledged += run.acknowledged;
  }
  EXPECT_GT(acknowledged, 100 * count);
}

// The oracle sees what it is there for.
TEST(Witness, TM_UNSANITIZED(PlantedBugsAreCaught)) {
  constexpr uint64_t kSeedsMax = 40;
  for (Plant plant : {Plant::kWitnessForgets, Plant::kWitnessForgetsHosts}) {
    uint64_t seed = 1;
    while (seed <= kSeedsMax && run_partitions(seed, plant).lost.find("acknowledged") == std::string::npos) ++seed;
    EXPECT_LE(seed, kSeedsMax) << "planted bug " << static_cast<int>(plant) << " was not caught";
    RecordProperty("seeds_until_bug_" + std::to_string(static_cast<int>(plant)), static_cast<int>(seed));
  }
}

}  // namespace
}  // namespace tidemark::sim
