// mirror = none and back; bricks that are not this host's.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class PolicyTest : public EngineTest {};

TEST_F(PolicyTest, BackFromNoneEverythingIsCopiedBeforeItIsCalledMirrored) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_EQ(mirror(f), "none");
  ASSERT_TRUE(write_now(f, 3 * kMiB, 0x22, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  world_->run_for(seconds(30));                // no region is dirty any more
  ASSERT_TRUE(wait(set_mirror(f, "sync")));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  File theirs = open(2, "a.img");
  EXPECT_EQ(byte_at(theirs, 0, kMiB), 0x11);
  EXPECT_EQ(byte_at(theirs, 3 * kMiB, kMiB), 0x22);
  EXPECT_EQ(byte_at(theirs, 7 * kMiB, kMiB), 0x11);
  EXPECT_EQ(verify(f), "");
}

// The host is away when the policy changes back: it learns of it with its next tenure.
TEST_F(PolicyTest, ACrashBetweenNoneAndSyncLosesNothing) {
  for (bool dirty : {false, true}) {
    start();
    File f = create(1, "a.img", 8 * kMiB);
    ASSERT_TRUE(wait(set_mirror(f, "none")));
    for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
    ASSERT_TRUE(wait(flush(f)));
    if (!dirty) world_->run_for(seconds(30));
    crash_host(1, sim::Crash::kKill);
    ASSERT_TRUE(wait(set_mirror(open(2, "a.img"), "sync")));
    start_host(1);
    f = open(1, "a.img");
    ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    File theirs = open(2, "a.img");
    EXPECT_EQ(byte_at(theirs, 0, 4096), 0x22);
    EXPECT_EQ(byte_at(theirs, 5 * kMiB, kMiB), 0x11);
    EXPECT_EQ(verify(f), "");
    for (int h : {1, 2}) crash_host(h, sim::Crash::kKill);
    crash_shared(sim::Crash::kKill);
  }
}

// It has done nothing with the image since its crash when another host wants it: all is copied first.
TEST_F(PolicyTest, AnImageThatWasNoneIsNotGivenAwayBeforeItIsCopied) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  world_->run_for(seconds(30));
  crash_host(1, sim::Crash::kKill);
  ASSERT_TRUE(wait(set_mirror(open(2, "a.img"), "sync")));
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  File theirs = open(2, "a.img");
  Pending wanted;
  ASSERT_TRUE(until([&] {
    if (!wanted || (wanted->answer && !*wanted->answer)) wanted = write(theirs, 0, 0x22, 4096);
    return wanted->answer && *wanted->answer;
  }));
  EXPECT_EQ(byte_at(theirs, 0, 4096), 0x22);
  EXPECT_EQ(byte_at(theirs, 4096, 4096), 0x11);
  EXPECT_EQ(byte_at(theirs, 7 * kMiB, kMiB), 0x11);
}

TEST_F(PolicyTest, NoneIsRefusedWhereThisHostsCopyIsNotWhole) {
  start();
  File theirs = create(2, "a.img", 8 * kMiB);
  ASSERT_TRUE(write_now(theirs, 0, 0x11, kMiB));
  close(theirs);
  File f = open(1, "a.img");
  EXPECT_EQ(wait(set_mirror(f, "none")).code(), Code::kBusy);
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
}

TEST_F(PolicyTest, ASizeOfAHostsOwnImageChangesWithoutALink) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(write_now(f, 0, 0x11, 4096));
  lose_link(1);
  EXPECT_TRUE(wait(resize(f, 2 * kMiB)));
  EXPECT_TRUE(write_now(f, kMiB, 0x22, kMiB));
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x22);
}

// An empty directory stands where the brick was: gone on without, and named. Another group's device: refused.
TEST_F(PolicyTest, AWrongBrickIsNeverUsedAndNamed) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  crash_host(1, sim::Crash::kKill);
  host_bricks_ = {"/other"};
  start_host(1);
  EXPECT_EQ(byte_at(open(1, "a.img"), 0, 4096), 0x11);
  std::vector<std::string> reasons;
  EXPECT_FALSE(engine(1).healthy(&reasons));
  EXPECT_TRUE(std::any_of(reasons.begin(), reasons.end(), [](const std::string& r) {
    return r.find("/other") != std::string::npos;
  }));
  EXPECT_TRUE(world_->files("host1", "/other").empty());
  crash_host(1, sim::Crash::kKill);
  // A brick of a group of its own, as another host's would be.
  {
    sim::SimEnv& env = world_->start("host1");
    image::StorageGroupOptions group;
    group.name = "default";
    group.bricks = {"/foreign"};
    ASSERT_TRUE(image::StorageGroup::open(env, group));
    world_->crash("host1", sim::Crash::kKill);
  }
  host_bricks_ = {"/foreign"};
  Status foreign = open_host(1);
  EXPECT_EQ(foreign.code(), Code::kInvalidArgument) << foreign.to_string();
  EXPECT_NE(foreign.message().find("/foreign"), std::string::npos) << foreign.message();
  world_->crash("host1", sim::Crash::kKill);
  host_bricks_ = {"/brick1"};
  start_host(1);
  EXPECT_EQ(byte_at(open(1, "a.img"), 0, kMiB), 0x11);
}

}  // namespace
}  // namespace tidemark::fs
