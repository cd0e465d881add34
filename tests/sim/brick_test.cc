// A host's own brick fails: the guest sees no error, the shared copy serves, and what the own copy missed is never served
// from it, not after a restart either, until it was copied again.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr auto kRead = static_cast<uint16_t>(FileOp::kRead), kWrite = static_cast<uint16_t>(FileOp::kWrite),
               kSync = static_cast<uint16_t>(FileOp::kSync);

struct Failure {
  const char* name;
  uint16_t operations;
  int error;
};
const Failure kFailures[] = {
    {"WritesGiveEio", kWrite, 5},
    {"SyncsGiveEio", kSync, 5},
    {"ReadsGiveEio", kRead, 5},
    {"BrickIsFull", kWrite, 28},
    {"BrickHasVanished", kRead | kMutatingFileOps, 5},
};

class BrickTest : public testing::TestWithParam<Failure> {};

TEST_P(BrickTest, NoErrorToTheGuestAndLevelAfterTheRepair) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      Lab lab(seed);
      auto handle = lab.open("host1", true);
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      ASSERT_TRUE(lab.write("host1", *handle, 0, 'a', Lab::kImageBytes).is_ok());
      ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
      lab.world.inject("host1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick1", GetParam().error});
      for (uint64_t offset : {uint64_t{0}, uint64_t{8192}, Lab::kRegion}) {
        Status wrote = lab.write("host1", *handle, offset, 'b');
        EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
        Status flushed = lab.flush("host1", *handle);
        EXPECT_TRUE(flushed.is_ok()) << flushed.to_string();
        auto byte = lab.read("host1", *handle, offset);
        ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
        EXPECT_EQ(*byte, 'b');
      }
      auto old = lab.read("host1", *handle, 3 * Lab::kRegion);
      ASSERT_TRUE(old.is_ok()) << old.status().to_string();
      EXPECT_EQ(*old, 'a');

      lab.crash("host1", kind);
      lab.world.clear_faults("host1");
      lab.world.partition("host1", "shared1");
      lab.start("host1");
      lab.world.run_for(seconds(10));
      // Whatever it answers without the shared node, it is not the old block.
      auto early = lab.open("host1");
      if (early) {
        auto byte = lab.read("host1", *early, 8192);
        EXPECT_TRUE(!byte || *byte == 'b') << "an old block was served";
      }
      lab.world.heal_all();
      auto again = lab.open("host1");
      ASSERT_TRUE(again.is_ok()) << again.status().to_string();
      for (uint64_t offset : {uint64_t{0}, uint64_t{8192}, Lab::kRegion}) {
        auto byte = lab.read("host1", *again, offset);
        ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
        EXPECT_EQ(*byte, 'b');
      }
      ASSERT_TRUE(lab.write("host1", *again, 16384, 'c').is_ok());
      ASSERT_TRUE(lab.healthy("host1")) << "the copy did not become level";
      EXPECT_EQ(lab.verify("host1"), "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Failures, BrickTest, testing::ValuesIn(kFailures), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tidemark::sim
