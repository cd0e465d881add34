// The whole cluster from a seed. A failure prints its scenario and seed; `sim_test SCENARIO SEED` replays it.
// TIDEMARK_SIM_SEEDS sets how many seeds each scenario runs, TIDEMARK_SIM_FIRST the first one.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "shared/base/log.h"
#include "tests/sim/cluster.h"

namespace tidemark::sim {
namespace {

uint64_t number(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

Scenario scenario(const std::string& name) {
  Scenario s;
  s.name = name;
  if (name == "calm") {
    s.images_per_host = 2;
    s.marks = 6;
  } else if (name == "delays_and_disconnects") {
    s.link_cuts = 3, s.link_resets = 4, s.replica_outages = 1, s.http_faults_per_million = 20000, s.reset_per_million = 50;
  } else if (name == "shared_node_dies") {
    s.shared_kills = 2, s.shared_power_losses = 1;
  } else if (name == "hosts_die") {
    s.host_kills = 2, s.host_power_losses = 1;
  } else if (name == "replica_dies") {
    s.replica_outages = 4, s.http_faults_per_million = 50000;
  } else if (name == "clocks_jump") {
    s.clock_jumps = 6, s.link_resets = 1;
  }
  return s;
}

class ClusterTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    log::set_sink_for_testing([this](log::Level level, std::string_view, std::string_view line) {
      if (level == log::Level::kError) errors_.emplace_back(line);
      if (std::getenv("TIDEMARK_SIM_LOG") != nullptr) std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
    });
  }
  void TearDown() override { log::set_sink_for_testing(nullptr); }
  std::vector<std::string> errors_;
};

TEST_P(ClusterTest, CopiesAndPointsAreRightAfterIt) {
  uint64_t first = number("TIDEMARK_SIM_FIRST", 1), count = number("TIDEMARK_SIM_SEEDS", 2);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Cluster cluster(seed, scenario(GetParam()));
    std::string failure = cluster.run();
    ASSERT_EQ(failure, "") << "scenario " << GetParam() << " seed " << seed;
    ASSERT_GT(cluster.acknowledged(), 100u) << "scenario " << GetParam() << " seed " << seed << ": too little was written";
    ASSERT_TRUE(errors_.empty()) << "scenario " << GetParam() << " seed " << seed << " logged: " << errors_.front();
  }
}

INSTANTIATE_TEST_SUITE_P(Scenarios, ClusterTest,
                         testing::Values("calm", "delays_and_disconnects", "shared_node_dies", "hosts_die", "replica_dies",
                                         "clocks_jump"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ClusterReplay, ASeedReplayedGivesTheSameTrace) {
  std::set<uint64_t> traces;
  for (uint64_t seed : {11ull, 12ull}) {
    Cluster once(seed, scenario("delays_and_disconnects")), again(seed, scenario("delays_and_disconnects"));
    ASSERT_EQ(once.run(), again.run());
    EXPECT_EQ(once.trace_hash(), again.trace_hash()) << "seed " << seed;
    EXPECT_EQ(once.events(), again.events());
    traces.insert(once.trace_hash());
  }
  EXPECT_EQ(traces.size(), 2u) << "different seeds must give different traces";
}

}  // namespace
}  // namespace tidemark::sim
