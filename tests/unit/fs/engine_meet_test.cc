// Both ends' numbers only grow: whatever clocks say, and whatever was put back from an earlier time.
#include <nlohmann/json.hpp>

#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

using Kept = std::shared_ptr<const sim::World::Kept>;

class MeetTest : public EngineTest {
 protected:
  // An operator's `state reset` on host 1: nothing of its state and bricks is left.
  void reset_host() {
    host_state_ = "/state2";
    host_bricks_ = {"/brick2"};
    after_reset_ = true;
  }
  // Everything down, as after a clean shutdown: nothing is under way.
  void stop_all() {
    for (int h : {1, 2}) {
      bool stopped = false;
      engine(h).stop(seconds(20), [&](Status) { stopped = true; });
      ASSERT_TRUE(until([&] { return stopped; }));
      crash_host(h, sim::Crash::kKill);
    }
    crash_shared(sim::Crash::kKill);
  }
  void start_all() {
    start_shared();
    for (int h : {1, 2}) start_host(h);
  }
  bool refused(int host, const std::string& words) {
    return until([&] { return engine(host).status_json().find(words) != std::string::npos; }, seconds(30));
  }
};

// The clock stands where it stood, and one that was set back by ten years.
class ClockTest : public MeetTest, public testing::WithParamInterface<int> {};

TEST_P(ClockTest, AJournalMadeAnewCountsOnFromTheLostOne) {
  File f = start_written();
  const Incarnation before = incarnation(1);
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kKill);
  const sim::Duration back = GetParam() == 0 ? world_->elapsed() : std::chrono::hours(24 * 365 * GetParam());
  world_->jump_wall("host1", -back);
  reset_host();
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); })) << engine(1).status_json();
  const Incarnation after = incarnation(1);
  EXPECT_GT(after.value, before.value + 500);
  File again = open(1, "a.img");
  EXPECT_EQ(byte_at(again, 0, kMiB), 0x11);
  EXPECT_TRUE(write_now(again, 0, 0x22, 4096));
  // Which is durable: the next run counts on.
  crash_host(1, sim::Crash::kPowerLoss);
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); })) << engine(1).status_json();
  EXPECT_EQ(incarnation(1).value, after.value + 1);
}
INSTANTIATE_TEST_SUITE_P(Clocks, ClockTest, testing::Values(0, 10));

// Between what is asked and the session it dies, at each of the commits in turn.
TEST_F(MeetTest, ACrashWhileItsNumbersAreRaisedShutsNobodyOut) {
  start_written();
  const Incarnation before = incarnation(1);
  crash_host(1, sim::Crash::kKill);
  world_->jump_wall("host1", -std::chrono::hours(24 * 365));
  for (uint64_t nth = 1; nth < 40; ++nth) {
    host_state_ = "/state.after" + std::to_string(nth);
    host_bricks_ = {"/brick.after" + std::to_string(nth)};
    after_reset_ = true;
    world_->inject("host1", sim::CrashPoint{.nth = nth, .at_commits = true, .kind = sim::Crash::kPowerLoss});
    if (open_host(1)) engine(1).start();
    const bool up = until([&] { return !world_->running("host1") || linked(1); }, seconds(30)) && world_->running("host1");
    world_->clear_faults("host1");
    crash_host(1, sim::Crash::kKill);
    start_host(1);
    ASSERT_TRUE(until([&] { return linked(1); })) << nth << engine(1).status_json();
    EXPECT_GT(incarnation(1), before);
    if (up) return;
    crash_host(1, sim::Crash::kKill);
  }
  FAIL() << "never got through";
}

TEST_F(MeetTest, ARebuiltSharedNodesRunsAreAboveThoseOfBeforeWhateverItsClockSays) {
  File f = start_written();
  auto boot = [&] { return nlohmann::json::parse(shared_->status_json())["boot"].get<uint64_t>(); };
  for (int round = 0; round < 2; ++round) {
    const uint64_t before = boot();
    crash_shared(sim::Crash::kKill);
    world_->jump_wall("shared1", -std::chrono::hours(24 * 365));
    shared_state_ = "/state.anew" + std::to_string(round);
    rebuild_from_ = {"host1", "host2"};
    start_shared();
    rebuild_from_.clear();
    ASSERT_TRUE(until([&] { return linked(1) && linked(2); })) << engine(1).status_json();
    EXPECT_GT(boot(), before);
    EXPECT_TRUE(write_now(f, 0, 0x22, 4096));
  }
}

}  // namespace
}  // namespace tidemark::fs
