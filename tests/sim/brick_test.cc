// A host's own brick fails: the guest sees no error, the shared copy serves, and what the own copy missed is never served
// from it, not after a restart either, until it was copied again.
#include <charconv>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;


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
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      Lab lab(seed);
      auto handle = lab.open_filled("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
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

// The number that `name` has in the host's status.
uint64_t number_in(const std::string& status, const std::string& name) {
  size_t at = status.find("\"" + name + "\":");
  uint64_t value = UINT64_MAX;
  if (at != std::string::npos) std::from_chars(status.data() + at + name.size() + 3, status.data() + status.size(), value);
  return value;
}

TEST(ReadRepairTest, ABlockThatCannotBeReadIsAnsweredFromTheSharedCopyAndWrittenAnew) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto handle = lab.open_filled("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    lab.world.run_for(seconds(5));   // staged: only the guest reads
    lab.world.inject("host1", FileFault{1, 1, kRead, "/brick1", 5});
    auto byte = lab.read("host1", *handle, 8192 + 512, 1024);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 'a');
    ASSERT_TRUE(lab.world.run_until([&] { return number_in(lab.engine("host1").status_json(), "own") == 1; }, seconds(10)));
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
    // A write that fails in the repair makes it the brick that failed, and the copy is filled anew.
    lab.world.inject("host1", FileFault{1, 1, kRead, "/brick1", 5});
    lab.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", 5});
    byte = lab.read("host1", *handle, Lab::kRegion);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 'a');
    lab.world.run_for(seconds(1));
    EXPECT_FALSE(lab.engine("host1").healthy());
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// With the blocks that it shares with its neighbours the read is longer than any request may be.
TEST(ReadRepairTest, TheLongestReadIsRepairedWhereverItBegins) {
  constexpr uint64_t kLongest = limits::kIoBytesMax;
  Lab lab(1);
  auto handle = lab.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  for (uint64_t at : {uint64_t{0}, kLongest}) ASSERT_TRUE(lab.write("host1", *handle, at, 'b', kLongest).is_ok());
  ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
  lab.world.run_for(seconds(5));   // staged: only the guest reads
  lab.world.inject("host1", FileFault{1, 1, kRead, "/brick1", 5});
  auto byte = lab.read("host1", *handle, 512, kLongest);
  ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
  EXPECT_EQ(*byte, 'b');
  lab.world.run_for(seconds(5));
  EXPECT_EQ(number_in(lab.engine("host1").status_json(), "own"), 1u);
  ASSERT_TRUE(lab.healthy("host1"));
  EXPECT_EQ(lab.verify("host1"), "");
}

TEST(ReadRepairTest, WhatTheSharedCopyCannotReadIsWrittenAnewByTheResync) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto handle = lab.open_filled("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *handle, 4096, 'b').is_ok());
    lab.world.inject("shared1", FileFault{1, 1, kRead, "/brick", 5});
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(number_in(lab.engine("host1").status_json(), "shared"), 1u);
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

TEST(EmptyBrickTest, IsNeverTakenAsNewAndIsFilledOnceAnOperatorSaysSo) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto handle = lab.open_filled("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    ASSERT_TRUE(lab.write("host1", *handle, 4096, 'b').is_ok());
    lab.crash("host1", seed % 2 == 0 ? Crash::kKill : Crash::kPowerLoss);
    lab.world.wipe("host1", {"/brick1"});
    lab.start("host1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    auto byte = lab.read("host1", *again, 4096);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 'b');
    ASSERT_TRUE(lab.write("host1", *again, 8192, 'c').is_ok());
    ASSERT_TRUE(lab.flush("host1", *again).is_ok());
    lab.world.run_for(seconds(90));
    EXPECT_FALSE(lab.engine("host1").healthy());
    EXPECT_TRUE(lab.world.files("host1", "/brick1").empty()) << "the empty directory was taken as a brick";

    EXPECT_FALSE(lab.engine("host1").replace_brick("/brick2").is_ok());
    auto replaced = lab.engine("host1").replace_brick("/brick1");
    ASSERT_TRUE(replaced.is_ok()) << replaced.status().to_string();
    EXPECT_FALSE(lab.engine("host1").replace_brick("/brick1").is_ok()) << "it is in use now";
    ASSERT_TRUE(lab.healthy("host1")) << "the new brick was not filled";
    EXPECT_EQ(lab.verify("host1"), "");
    lab.world.partition("host1", "shared1");
    lab.world.run_for(seconds(30));
    for (auto [offset, expected] : {std::pair{4096, 'b'}, std::pair{8192, 'c'}}) {
      auto own = lab.read("host1", *again, static_cast<uint64_t>(offset));
      ASSERT_TRUE(own.is_ok()) << own.status().to_string();
      EXPECT_EQ(*own, expected);
    }
    // The new one is known as the group's at the next start.
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1"));
    lab.crash("host1", Crash::kKill);
    lab.start("host1");
    ASSERT_TRUE(lab.open("host1").is_ok());
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// Acknowledged without the shared node, and then the brick is gone: no older block is served in its place.
TEST(EmptyBrickTest, WhatOnlyTheOldOneHadIsNotPassedOver) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto handle = lab.open_filled("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *handle, 4096, 'b').is_ok());
    lab.crash("host1", Crash::kKill);
    lab.world.wipe("host1", {"/brick1"});
    lab.world.heal_all();
    lab.start("host1");
    auto again = lab.open("host1");
    if (again) {
      auto byte = lab.read("host1", *again, 4096);
      EXPECT_FALSE(byte.is_ok()) << "an older block was served";
    }
    EXPECT_FALSE(lab.engine("host1").healthy());
  }
}

// The link is back, and all four regions of 64 KiB are to be copied, at 64 KiB a second.
void begin_paced_resync(Lab& lab) {
  lab.resync_rate = Lab::kRegion;
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  auto handle = lab.open("host1", true);
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab.world.partition("host1", "shared1");
  ASSERT_TRUE(lab.write("host1", *handle, 0, 'a', Lab::kImageBytes).is_ok());
  lab.world.heal_all();
}

// The guest is served all the while, and `status` says how much is left.
TEST(PaceTest, AResyncKeepsToItsRateAndTellsHowFarItIs) {
  Lab lab(1);
  begin_paced_resync(lab);
  uint64_t left = UINT64_MAX, seen = 0;
  Duration begun{};
  bool told = false;
  ASSERT_TRUE(lab.world.run_until([&] {
    const std::string status = lab.engine("host1").status_json();
    if (status.find("\"resync\":{") == std::string::npos) return seen != 0;
    if (seen == 0) begun = lab.world.elapsed();
    uint64_t now = number_in(status, "bytes_left");
    EXPECT_LE(now, left);
    if (now != left) ++seen;
    left = now;
    told = told || number_in(status, "seconds_left") != UINT64_MAX;
    return false;
  }, seconds(60)));
  EXPECT_GE(lab.world.elapsed() - begun, seconds(3));
  EXPECT_LE(lab.world.elapsed() - begun, seconds(6));
  EXPECT_GE(seen, 4u);
  EXPECT_TRUE(told);
  ASSERT_TRUE(lab.healthy("host1"));
  EXPECT_EQ(lab.verify("host1"), "");
}

// The end of a resync's first try; what is left is done by another one, or by a recovery.
struct Interruption {
  const char* name;
  const char* node;                    // empty: the link is lost
  Crash kind = Crash::kKill;
};
const Interruption kInterruptions[] = {
    {"the host is killed", "host1"},          {"the host loses power", "host1", Crash::kPowerLoss},
    {"the shared node is killed", "shared1"}, {"the shared node loses power", "shared1", Crash::kPowerLoss},
    {"the link is lost", ""},
};

uint64_t number_after(const std::string& log, const std::string& event, const std::string& key) {
  uint64_t value = UINT64_MAX;
  size_t at = log.find(event);
  if (at != std::string::npos) at = log.find(key + "=", at);
  if (at == std::string::npos) return value;
  std::from_chars(log.data() + at + key.size() + 1, log.data() + log.size(), value);
  return value;
}

// Three of four regions are equal when it is cut short. The third's mark may still stand, the first two's must be gone.
TEST(PaceTest, AResyncThatIsCutShortHasOnlyTheRestBeforeIt) {
  for (const Interruption& cut : kInterruptions) {
    SCOPED_TRACE(cut.name);
    Lab lab(1);
    begin_paced_resync(lab);
    ASSERT_TRUE(lab.world.run_until([&] {
      const std::string status = lab.engine("host1").status_json();
      return status.find("\"resync\":{") != std::string::npos && number_in(status, "bytes_left") <= Lab::kRegion;
    }, seconds(60)));
    std::string log;
    log::set_sink_for_testing(
        [&](log::Level, std::string_view, std::string_view line) { log += std::string(line) + "\n"; });
    const std::string node = cut.node;
    if (node.empty()) {
      lab.world.partition("host1", "shared1");
      lab.world.run_for(seconds(30));
      lab.world.heal_all();
    } else {
      lab.crash(node, cut.kind);
      lab.start(node);
    }
    const bool level = lab.healthy("host1");
    log::set_sink_for_testing(nullptr);
    ASSERT_TRUE(level) << log;
    const bool host = node == "host1";
    EXPECT_LE(number_after(log, host ? "recovering" : "resync_begun", "regions"), 2u) << log;
    EXPECT_LE(number_after(log, host ? "reconciled" : "resync_done", "copied_bytes"), 2 * Lab::kRegion) << log;
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Failures, BrickTest, testing::ValuesIn(kFailures), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tidemark::sim
