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
    crash_host(1, sim::Crash::kKill);
    if (!up) continue;
    EXPECT_GT(nth, 3u);   // it did crash at some
    return;
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

// What is put back, from a copy of before the newest writes: the state, the bricks, or both.
enum class What { kState, kBricks, kBoth };
class PutBackTest : public MeetTest, public testing::WithParamInterface<What> {
 protected:
  static std::vector<std::string> directories() {
    if (GetParam() == What::kState) return {"/state"};
    if (GetParam() == What::kBricks) return {"/brick1"};
    return {"/state", "/brick1"};
  }
  // An old block everywhere, a copy of it, then a new block everywhere; all is down.
  void write_keep_write(const std::string& node) {
    file_ = start_written();
    stop_all();
    kept_ = world_->keep(node, directories());
    start_all();
    ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
    file_ = open(1, "a.img");
    ASSERT_TRUE(write_now(file_, 0, 0x22, kMiB));
    ASSERT_TRUE(await_mirror(file_, "mirrored"));
    ASSERT_TRUE(wait(flush(file_)));
    stop_all();
    newest_ = world_->keep(node, {"/state", "/brick1"});
    world_->put_back(node, *kept_);
  }
  File file_;
  Kept kept_, newest_;
};

TEST_P(PutBackTest, AnOlderSharedNodeIsNotServed) {
  ASSERT_NO_FATAL_FAILURE(write_keep_write("shared1"));
  if (GetParam() != What::kBoth) {
    Status opened = open_shared();
    EXPECT_FALSE(opened);
    EXPECT_NE(opened.message().find("tidemark shared rebuild"), std::string::npos) << opened.to_string();
    EXPECT_NE(opened.message().find("earlier time"), std::string::npos) << opened.to_string();
  } else {
    // What it begins anew is not what its hosts have seen, however often it begins.
    for (int run = 0; run < 3; ++run) {
      if (run == 0) start_all();
      else start_shared();
      EXPECT_TRUE(refused(1, "tidemark shared rebuild")) << engine(1).status_json();
      EXPECT_FALSE(linked(1) || linked(2));
      world_->crash("shared1", sim::Crash::kKill);
      shared_.reset();
    }
    for (int h : {1, 2}) crash_host(h, sim::Crash::kKill);
  }
  if (world_->running("shared1")) crash_shared(sim::Crash::kKill);
  world_->put_back("shared1", *newest_);
  start_all();
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); })) << engine(1).status_json();
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, kMiB), 0x22);
}

TEST_P(PutBackTest, AnOlderHostServesNothingOfItsOwn) {
  ASSERT_NO_FATAL_FAILURE(write_keep_write("host1"));
  start_shared();
  start_host(2);
  if (GetParam() == What::kState) {
    Status opened = open_host(1);
    EXPECT_FALSE(opened);
    EXPECT_NE(opened.message().find("tidemark state reset"), std::string::npos) << opened.to_string();
    world_->crash("host1", sim::Crash::kKill);
    engines_[1].reset();
  } else if (GetParam() == What::kBricks) {
    start_host(1);
    EXPECT_TRUE(logged("brick_absent"));
    EXPECT_NE(engine(1).status_json().find("tidemark brick replace"), std::string::npos) << engine(1).status_json();
    File f = open(1, "a.img");
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);   // of the shared copy
    ASSERT_TRUE(write_now(f, kMiB, 0x33, 4096));
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
    // It does not come to count by being there.
    EXPECT_FALSE(engine(1).replace_brick("/brick1"));
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
    crash_host(1, sim::Crash::kPowerLoss);
    start_host(1);
    EXPECT_EQ(byte_at(open(1, "a.img"), 0, kMiB), 0x22);
    return;
  } else {
    for (int run = 0; run < 3; ++run) {
      start_host(1);
      EXPECT_TRUE(refused(1, "tidemark state reset")) << engine(1).status_json();
      EXPECT_FALSE(linked(1));
      crash_host(1, sim::Crash::kKill);
    }
  }
  world_->put_back("host1", *newest_);
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); })) << engine(1).status_json();
  EXPECT_EQ(byte_at(open(1, "a.img"), 0, kMiB), 0x22);
}
INSTANTIATE_TEST_SUITE_P(Whats, PutBackTest, testing::Values(What::kState, What::kBricks, What::kBoth));

// The numbers are in several places: whatever part of them is durable, what is of one time goes on.
class OpeningTest : public MeetTest, public testing::WithParamInterface<bool> {};

TEST_P(OpeningTest, ACrashAtAnyMomentOfAnOpeningRefusesNothing) {
  start_written();
  stop_all();
  for (uint64_t nth = 1; nth < 60; ++nth) {
    for (const char* node : {"shared1", "host1"}) {
      world_->inject(node, sim::CrashPoint{.nth = nth, .at_commits = GetParam(), .kind = sim::Crash::kPowerLoss});
    }
    Status shared = open_shared(), host = open_host(1);
    const bool both = shared && host && world_->running("shared1") && world_->running("host1");
    for (const char* node : {"shared1", "host1"}) {
      world_->clear_faults(node);
      if (world_->running(node)) world_->crash(node, sim::Crash::kPowerLoss);
    }
    shared_.reset();
    engines_[1].reset();
    log_.clear();   // a run that was dead by then found nothing any more
    start_all();
    ASSERT_TRUE(until([&] { return linked(1) && linked(2); })) << nth << engine(1).status_json();
    File f = open(1, "a.img");
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
    EXPECT_EQ(log_.find("brick_absent"), std::string::npos) << nth;
    stop_all();
    if (!both) continue;
    EXPECT_GT(nth, 3u);   // it did crash at some
    return;
  }
  FAIL() << "never got through";
}
INSTANTIATE_TEST_SUITE_P(CommitsOrFiles, OpeningTest, testing::Bool());

}  // namespace
}  // namespace tidemark::fs
