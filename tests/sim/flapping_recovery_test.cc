// A host crashes, and the link flaps while its recovery makes the copies equal. Should it crash again before that has
// ended, what the first crash left dirty is still known, and the copies become equal.
#include <optional>

#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

enum class Journal { kShips, kDegraded };

class FlappingRecoveryTest : public testing::TestWithParam<Journal> {};

TEST_P(FlappingRecoveryTest, CutShortOrNotForgetsNoDirtyRegionBeforeItIsEqual) {
  const bool degraded = GetParam() == Journal::kDegraded;
  for (std::optional<Crash> second : {std::optional<Crash>(), std::optional(Crash::kKill), std::optional(Crash::kPowerLoss)}) {
    for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (!second ? "" : *second == Crash::kKill ? ", killed" : ", power cut"));
      Lab lab(seed, false, Plant::kNone, Ships::kYes);
      Site site(lab);
      if (degraded) {
        lab.world.partition("host1", "replica1");
        lab.limit_age = seconds(2);
        lab.crash("host1", Crash::kKill);
        lab.start("host1");
      }
      auto handle = lab.open_filled("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      lab.world.run_for(seconds(30));   // what was written is clean
      auto is_degraded = [&] { return lab.engine("host1").status_json().find("\"shipping\":\"degraded\"") != std::string::npos; };
      ASSERT_EQ(lab.world.run_until(is_degraded, degraded ? seconds(300) : seconds(0)), degraded) << lab.engine("host1").status_json();

      // On its way to the shared node when the link is cut, and never answered: the host's copy alone has it.
      lab.world.partition("host1", "shared1");
      auto data = std::make_shared<Bytes>(4096, 'b');   // shared with the write
      lab.engine("host1").write(*handle, 0, *data, io::IoMode::kQueued, [data](Result<size_t>) {});
      lab.world.run_for(std::chrono::milliseconds(100));
      lab.crash("host1", Crash::kKill);
      lab.world.heal("host1", "shared1");
      lab.world.heal("shared1", "host1");

      lab.world.slow_reads("shared1", "/brick", seconds(4));
      lab.start("host1");
      lab.world.run_for(seconds(1));
      lab.world.reset_connections("host1", "shared1");
      lab.world.run_for(seconds(6));   // the link is back once what was asked on the lost one has ended
      ASSERT_NE(lab.engine("host1").status_json().find("\"recovering\":true"), std::string::npos) << "it has ended";
      if (second) lab.crash("host1", *second);

      lab.world.slow_reads("shared1", "/brick", Duration(0));
      lab.world.heal_all();
      if (second) lab.start("host1");
      handle = lab.open("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      auto got = lab.read("host1", *handle, 0);
      ASSERT_TRUE(got.is_ok()) << got.status().to_string();
      ASSERT_TRUE(lab.write("host1", *handle, Lab::kRegion, 'c').is_ok());   // it takes the tenure
      ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
      ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
      EXPECT_EQ(site.verify("host1"), "");
      lab.world.run_for(seconds(30));
      EXPECT_NE(lab.engine("host1").status_json().find("\"dirty_bytes\":0,"), std::string::npos) << "it is not level";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Journals, FlappingRecoveryTest, testing::Values(Journal::kShips, Journal::kDegraded),
                         [](const auto& info) { return info.param == Journal::kShips ? "ThatShips" : "ThatIsDegraded"; });

}  // namespace
}  // namespace tidemark::sim
