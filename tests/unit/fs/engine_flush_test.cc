// What an acknowledged flush stands for, on both copies.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class FlushTest : public EngineTest {
 protected:
  static constexpr auto kWrites = static_cast<uint16_t>(sim::FileOp::kWrite);
};

// The flush begins while the host is on its own and ends when it no longer is: the shared copy counts again by then.
TEST_F(FlushTest, OneBegunWithoutTheSharedCopyCoversItOnceItCountsAgain) {
  options_.sync_latency = {milliseconds(700), milliseconds(900)};
  File f = start_written();
  world_->reset_connections("host1", "shared1");
  ASSERT_TRUE(until([&] { return mirror(f) == "local only"; }));
  Pending flushed = flush(f);
  ASSERT_TRUE(until([&] { return mirror(f) == "mirrored"; }));
  ASSERT_FALSE(flushed->answer) << "the flush was to be under way when the link came back";
  ASSERT_TRUE(wait(flushed));
  // This host is gone for good and the shared node loses what it had not made durable.
  crash_host(1, sim::Crash::kKill);
  crash_shared(sim::Crash::kPowerLoss);
  EXPECT_EQ(shared_byte_at(f, 0, kMiB), 0x11);
}

// Its part for the shared node is lost with the connection; by the time that the own copy has synced all is mirrored
// again, and no change of state is to come that would wake it.
TEST_F(FlushTest, OneWhoseConnectionWentWhileTheOwnCopySyncedIsAnswered) {
  File f = start_written();
  const auto syncs = static_cast<uint16_t>(sim::FileOp::kSync);
  world_->inject("host1", sim::FileFault{.operations = syncs, .path_contains = "objects", .hangs = true});
  world_->cut("shared1", "host1");
  Pending flushed = flush(f);
  world_->run_for(milliseconds(100));
  world_->reset_connections("host1", "shared1");
  heal_link(1);
  world_->run_for(seconds(2));
  ASSERT_EQ(mirror(f), "mirrored");
  ASSERT_FALSE(flushed->answer) << "no fault came";
  world_->release_hung("host1");
  EXPECT_TRUE(wait(flushed));
}

// Nor is it an error that its own part then fails, or is given up: the shared copy has all of it, and is asked for it.
TEST_F(FlushTest, OneWhoseOwnPartFailsOnceTheSharedCopyCountsAgainIsAnswered) {
  for (bool alone : {false, true}) {   // as it begins
    for (int error : {0, EIO}) {       // 0: it is given up at the deadline
      SCOPED_TRACE((alone ? "alone, " : "mirrored, ") + std::to_string(error));
      File f = start_written();
      const auto syncs = static_cast<uint16_t>(sim::FileOp::kSync);
      world_->inject("host1", sim::FileFault{.operations = syncs, .path_contains = "objects", .hangs = true});
      if (alone) lose_link(1);
      else world_->cut("shared1", "host1");
      Pending flushed = flush(f);
      world_->run_for(milliseconds(100));
      if (!alone) world_->reset_connections("host1", "shared1");
      ASSERT_TRUE(await_mirror(f, "local only"));
      heal_link(1);
      ASSERT_TRUE(await_mirror(f, "mirrored"));
      ASSERT_FALSE(flushed->answer) << "no fault came";
      if (error != 0) world_->release_hung("host1", error);
      EXPECT_TRUE(wait(flushed, seconds(10)));
      EXPECT_EQ(behind_bytes(f), 8 * kMiB);
      world_->release_hung("host1");
      ASSERT_TRUE(await_mirror(f, "mirrored"));
      EXPECT_EQ(verify(f), "");
      crash_all();
    }
  }
}

TEST_F(FlushTest, ALaterOneIsNotCoveredByAnEarlierOneThatEndsAfterIt) {
  options_.sync_latency = {milliseconds(50), milliseconds(800)};
  for (uint64_t seed = 1; seed < 6; ++seed) {
    options_.seed = seed;
    start();
    File f = create(1, "a.img", 8 * kMiB);
    ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
    Pending one = flush(f), other = flush(f);
    ASSERT_TRUE(until([&] { return one->answer || other->answer; }));
    ASSERT_TRUE(write_now(f, kMiB, 0x22, kMiB));
    ASSERT_TRUE(wait(one));
    ASSERT_TRUE(wait(other));
    ASSERT_TRUE(wait(flush(f)));
    crash_host(1, sim::Crash::kPowerLoss);
    crash_shared(sim::Crash::kPowerLoss);
    EXPECT_EQ(shared_byte_at(f, kMiB, kMiB), 0x22) << "seed " << seed;
    world_->crash("shared1", sim::Crash::kKill);
    crash_host(2, sim::Crash::kKill);
  }
}

// The only copy that held unflushed writes lost them: the guest hears of it at its flush, as from a disk.
TEST_F(FlushTest, FailsWhenTheOnlyCopyLostWhatItIsToCover) {
  File f = start_written();
  ASSERT_NO_FATAL_FAILURE(lose_the_only_copy(f));
  Pending flushed = flush(f);
  Status s = wait(flushed, seconds(60));
  EXPECT_EQ(s.code(), Code::kIoError) << s.to_string();
  EXPECT_TRUE(logged("writes_lost"));
  // Said once; the image goes on.
  ASSERT_TRUE(write_now(f, kMiB, 0x44, kMiB));
  EXPECT_TRUE(wait(flush(f)));
}

// It lost nothing as it came back, and is still the same one when the link goes once more. The next loss counts again.
TEST_F(FlushTest, WhatTheOnlyCopyTookSinceItCameBackIsNotCalledLost) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  world_->inject("host1", sim::FileFault{.operations = kWrites, .path_contains = "objects"});
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));   // this host's copy is behind from now on
  ASSERT_TRUE(wait(flush(f)));
  world_->cut("shared1", "host1");
  Pending under_way = write(f, kMiB, 0x33, kMiB);
  world_->run_for(milliseconds(50));
  crash_shared(sim::Crash::kPowerLoss);
  start_shared();
  const auto syncs = static_cast<uint16_t>(sim::FileOp::kSync);
  world_->inject("shared1", sim::FileFault{.operations = syncs, .path_contains = "objects", .hangs = true});
  heal_link(1);
  ASSERT_TRUE(wait(under_way));   // taken under the new loss id, and the flush of the resync hangs
  Pending flushed = flush(f);
  ASSERT_TRUE(until([&] { return world_->hung("shared1") != 0; }));
  ASSERT_EQ(mirror(f), "resyncing");
  ASSERT_NO_FATAL_FAILURE(lose_link(1));
  world_->release_hung("shared1");
  heal_link(1);
  EXPECT_TRUE(wait(flushed));
  EXPECT_FALSE(logged("writes_lost"));
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x33);
  ASSERT_TRUE(write_now(f, 2 * kMiB, 0x44, kMiB));
  crash_shared(sim::Crash::kPowerLoss);
  start_shared();
  EXPECT_EQ(wait(flush(f), seconds(60)).code(), Code::kIoError);
  EXPECT_TRUE(logged("writes_lost"));
}

// It had applied it, and its power went while it heard that it is the only one: what has no answer yet goes there again.
TEST_F(FlushTest, WhatTheOnlyCopyLostBeforeItsAnswerIsWrittenThereAgain) {
  for (uint64_t seed = 1; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    options_.seed = seed;
    File f = start_written();
    ASSERT_TRUE(wait(flush(f)));
    world_->inject("host1", sim::FileFault{.operations = kWrites, .path_contains = "objects"});
    Pending wrote = write(f, 0, 0x22, kMiB);
    ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
    ASSERT_FALSE(wrote->answer);
    crash_shared(sim::Crash::kPowerLoss);
    start_shared();
    EXPECT_TRUE(wait(wrote));
    EXPECT_TRUE(wait(flush(f)));
    EXPECT_FALSE(logged("writes_lost"));
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
    log_.clear();
    crash_all();
  }
}

// The same of one whose own part ends only later, on a copy that another request has found failed.
TEST_F(FlushTest, WhatTheOnlyCopyLostWhileTheOwnPartWasUnderWayIsWrittenThereAgain) {
  for (uint64_t seed = 1; seed < 4; ++seed) {
    for (bool linked_again : {false, true}) {   // when it ends
      SCOPED_TRACE(std::to_string(seed) + (linked_again ? ", linked" : ", not linked"));
      options_.seed = seed;
      File f = start_written();
      ASSERT_TRUE(wait(flush(f)));
      world_->inject("host1", sim::FileFault{.operations = kWrites, .path_contains = "objects", .hangs = true});
      Pending slow = write(f, kMiB, 0x33, kMiB);
      ASSERT_TRUE(until([&] { return world_->hung("host1") != 0; }));
      world_->run_for(milliseconds(100));
      world_->inject("host1", sim::FileFault{.operations = kWrites, .path_contains = "objects"});
      Pending wrote = write(f, 0, 0x22, kMiB);
      ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
      crash_shared(sim::Crash::kPowerLoss);
      ASSERT_TRUE(until([&] { return !linked(1); }));
      if (!linked_again) {
        world_->release_hung("host1");
        world_->run_for(milliseconds(10));
      }
      ASSERT_FALSE(slow->answer);
      start_shared();
      ASSERT_TRUE(await_mirror(f, "filling"));
      if (linked_again) world_->release_hung("host1");
      EXPECT_TRUE(wait(wrote));
      EXPECT_TRUE(wait(slow));
      EXPECT_TRUE(wait(flush(f)));
      EXPECT_FALSE(logged("writes_lost"));
      EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
      EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x33);
      log_.clear();
      crash_all();
    }
  }
}

}  // namespace
}  // namespace tidemark::fs
