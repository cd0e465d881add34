// A host crashes, and the link flaps, or the shared node loses its power, while its recovery makes the copies equal: they
// become equal all the same. Should the host crash again before that, what the first crash left dirty is still known.
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

// The shared node loses its power between what the recovery writes there, and has lost the first of that.
TEST(RecoveryTest, KnowsThatTheSharedCopyLostWhatItHadMadeEqual) {
  for (const bool alone : {false, true}) {
    for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (alone ? ", alone" : ""));
      Lab lab(seed, false, Plant::kNone, Ships::kYes);
      Site site(lab);
      auto handle = lab.open_filled("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      lab.world.partition("host1", "shared1");
      for (uint64_t offset : {uint64_t{0}, Lab::kRegion}) {
        auto data = std::make_shared<Bytes>(4096, 'b');   // shared with the write
        lab.engine("host1").write(*handle, offset, *data, io::IoMode::kQueued, [data](Result<size_t>) {});
      }
      if (alone) ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
      else lab.world.run_for(std::chrono::milliseconds(100));
      lab.crash("host1", Crash::kKill);
      lab.world.heal_all();

      lab.start("host1");
      lab.world.inject("host1", FileFault{2, 1, static_cast<uint16_t>(FileOp::kRead), ".data", 0, true});
      ASSERT_TRUE(lab.world.run_until([&] { return lab.world.hung("host1") != 0; }, seconds(10)));
      lab.world.run_for(std::chrono::milliseconds(500));
      lab.crash("shared1", Crash::kPowerLoss);
      lab.start("shared1");
      lab.world.run_for(seconds(3));
      lab.world.release_hung("host1");

      handle = lab.open("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      ASSERT_TRUE(lab.write("host1", *handle, 2 * Lab::kRegion, 'c').is_ok());   // it takes the tenure
      ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
      ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
      EXPECT_EQ(site.verify("host1"), "");
    }
  }
}

// The host's own sync, the last but one thing that its recovery does, hangs.
void hang_in_the_last_sync(Lab& lab) {
  auto handle = lab.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab.world.partition("host1", "shared1");
  auto data = std::make_shared<Bytes>(4096, 'b');   // shared with the write
  lab.engine("host1").write(*handle, 0, *data, io::IoMode::kQueued, [data](Result<size_t>) {});
  lab.world.run_for(std::chrono::milliseconds(100));
  lab.crash("host1", Crash::kKill);
  lab.world.heal_all();
  lab.start("host1");
  lab.world.inject("host1", FileFault{1, 1, kSync, ".data", 0, true});
  ASSERT_TRUE(lab.world.run_until([&] { return lab.world.hung("host1") != 0; }, seconds(10)));
  lab.world.run_for(std::chrono::milliseconds(300));
}
bool recovers(Lab& lab) { return lab.engine("host1").status_json().find("\"recovering\":true") != std::string::npos; }
bool outdated(Lab& lab) { return lab.shared_status().find("\"outdated\":true") != std::string::npos; }

// What was written there is gone by then: no sync after that makes the copy count, before the recovery has begun anew.
TEST(RecoveryTest, DoesNotCallASharedCopyLevelThatLostWhatItHadMadeEqual) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    hang_in_the_last_sync(lab);
    if (testing::Test::HasFatalFailure()) return;
    lab.crash("shared1", Crash::kPowerLoss);
    lab.start("shared1");
    lab.world.run_for(seconds(3));
    ASSERT_TRUE(recovers(lab) && outdated(lab)) << lab.shared_status();
    lab.world.release_hung("host1");
    lab.world.run_for(std::chrono::milliseconds(500));
    EXPECT_TRUE(outdated(lab) || !recovers(lab)) << "called level before the recovery has begun anew";
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    lab.world.run_for(seconds(5));
    EXPECT_FALSE(outdated(lab)) << lab.shared_status();
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// The link flaps after the last sync, while that the copies are equal is noted here: the host has nothing to flush later on.
TEST(RecoveryTest, SaysThatTheSharedCopyIsLevelAlsoWhereTheLinkFlapsAtItsEnd) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    hang_in_the_last_sync(lab);
    if (testing::Test::HasFatalFailure()) return;
    lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/drl", .delay = seconds(2)});
    lab.world.release_hung("host1");
    lab.world.run_for(std::chrono::milliseconds(400 + 80 * seed));
    ASSERT_TRUE(recovers(lab));
    lab.world.reset_connections("host1", "shared1");
    ASSERT_TRUE(lab.world.run_until([&] { return !recovers(lab); }, seconds(30))) << lab.engine("host1").status_json();
    lab.world.set_store_fault("host1", std::nullopt);
    lab.world.run_for(seconds(20));
    EXPECT_FALSE(outdated(lab)) << lab.shared_status();
    EXPECT_TRUE(lab.engine("host1").healthy()) << lab.engine("host1").status_json();
  }
}

// Removed around a crash, nothing of the image is kept for a recovery: the next start has nothing to wait for, nor has a
// check of the bricks anything to miss.
enum class Removed { kHere, kElsewhere, kJustFreed };

class RemovedAroundACrashTest : public testing::TestWithParam<Removed> {};

TEST_P(RemovedAroundACrashTest, TheImageIsForgotten) {
  for (const bool alone : {false, true}) {
    for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (alone ? ", alone" : ""));
      Lab lab(seed, false, Plant::kNone, Ships::kYes);
      Site site(lab);
      auto handle = lab.open_filled("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      auto unlink_by = [&](const std::string& host) {
        return lab.wait<Status>([&](auto done) { lab.engine(host).unlink(InodeNumber(1), "disk.img", false, std::move(done)); });
      };
      ASSERT_EQ(lab.inode_of("host2").value, lab.inode_of("host1").value);
      if (alone) {
        lab.world.partition("host1", "shared1");
        ASSERT_TRUE(lab.write("host1", *handle, 0, 'b').is_ok());
        ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
        if (GetParam() != Removed::kElsewhere) {
          lab.crash("host1", Crash::kKill);   // it is removed before its recovery has ended
          lab.world.slow_reads("host1", "/brick", seconds(1));
          lab.world.heal_all();
          lab.start("host1");
          lab.world.slow_reads("host1", "/brick", Duration(0));
        }
      }
      if (GetParam() != Removed::kElsewhere) {
        if (!alone) lab.engine("host1").release(*handle);
        const Status removed = unlink_by("host1");
        ASSERT_TRUE(removed.is_ok()) << removed.to_string();
      }
      if (GetParam() == Removed::kJustFreed) {
        auto freed = [&] {
          for (const auto& [path, bytes] : lab.world.files("host1", "/")) if (path.ends_with(".data")) return false;
          return true;
        };
        ASSERT_TRUE(lab.world.run_until(freed, seconds(120))) << lab.engine("host1").status_json();
      }
      lab.crash("host1", Crash::kKill);
      lab.world.heal_all();
      if (GetParam() == Removed::kElsewhere) {
        ASSERT_TRUE(unlink_by("host2").is_ok());
      }
      lab.start("host1");
      ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
      lab.world.run_for(seconds(10));
      lab.crash("host1", Crash::kPowerLoss);

      lab.world.partition("host1", "shared1");
      lab.start("host1");
      lab.world.run_for(seconds(10));
      std::vector<std::string> reasons;
      EXPECT_FALSE(lab.engine("host1").healthy(&reasons));
      for (const std::string& reason : reasons) EXPECT_EQ(reason.find("reconciliation"), std::string::npos) << reason;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Removals, RemovedAroundACrashTest,
                         testing::Values(Removed::kHere, Removed::kElsewhere, Removed::kJustFreed), [](const auto& info) {
                           return info.param == Removed::kHere ? "Here" : info.param == Removed::kElsewhere ? "Elsewhere" : "JustFreed";
                         });

INSTANTIATE_TEST_SUITE_P(Journals, FlappingRecoveryTest, testing::Values(Journal::kShips, Journal::kDegraded),
                         [](const auto& info) { return info.param == Journal::kShips ? "ThatShips" : "ThatIsDegraded"; });

}  // namespace
}  // namespace tidemark::sim
