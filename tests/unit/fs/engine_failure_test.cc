// Bricks that fail or are full, on either side.
#include <algorithm>

#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class FailureTest : public EngineTest {
 protected:
  bool outdated() { return shared_->status_json().find("\"outdated\":true") != std::string::npos; }
  uint16_t bit(sim::FileOp op) { return static_cast<uint16_t>(op); }
  void fail_local(sim::FileOp op, uint64_t times, int error = EIO) {
    world_->inject("host1", sim::FileFault{
        .times = times, .operations = bit(op), .path_contains = "objects", .error = error});
  }
};

TEST_F(FailureTest, AWriteIntoAStaleRegionOfABrokenCopyIsServedByTheSharedOne) {
  start();
  File theirs = create(2, "a.img", 64 * kMiB);
  for (uint64_t i = 0; i < 64; ++i) ASSERT_TRUE(write_now(theirs, i * kMiB, 0x11, kMiB));
  close(theirs);
  world_->set_latency("shared1", "host1", {milliseconds(100), milliseconds(120)});
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  ASSERT_EQ(mirror(f), "filling");
  fail_local(sim::FileOp::kWrite, 1000);
  EXPECT_TRUE(write_now(f, 60 * kMiB, 0x22, 4096));
  EXPECT_EQ(byte_at(f, 60 * kMiB, 4096), 0x22);
  EXPECT_EQ(byte_at(f, 60 * kMiB + 4096, 4096), 0x11);
  EXPECT_EQ(byte_at(open(2, "a.img"), 60 * kMiB, 4096), 0x22);
}

// Should this host forget all it knows, its copy is still not taken for level: the shared node was told before the
// write was answered.
TEST_F(FailureTest, TheSharedNodeKnowsOfAFailedCopyBeforeTheAnswer) {
  File f = start_written();
  ASSERT_EQ(behind_bytes(f), 0u);
  fail_local(sim::FileOp::kWrite, 1);
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  EXPECT_EQ(behind_bytes(f), 8 * kMiB);
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
}

// It has grown since it was granted, by more than the map of that grant has regions for: all of it is behind.
TEST_F(FailureTest, TheSharedNodeKnowsOfAFailedCopyOfAnImageThatOutgrewItsMap) {
  for (uint64_t size : {200 * 1024 * kMiB, 16 * 1024 * 1024 * kMiB}) {
    SCOPED_TRACE(size);
    File f = start_written();
    ASSERT_TRUE(wait(resize(f, size)));
    fail_local(sim::FileOp::kWrite, 1);
    ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
    EXPECT_FALSE(logged("behind_not_told"));
    EXPECT_EQ(behind_bytes(f), size);
    crash_all();
  }
}

// The fault was a passing one: the copy is filled anew and counts again, without a restart.
TEST_F(FailureTest, ACopyWhoseBrickServesAgainIsFilledAndCountsAgain) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
  fail_local(sim::FileOp::kWrite, 1);
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  ASSERT_EQ(mirror(f), "filling");
  ASSERT_TRUE(write_now(f, kMiB, 0x33, 4096));   // on the shared node alone
  ASSERT_TRUE(until([&] { return mirror(f) == "mirrored"; }, seconds(120)));
  EXPECT_EQ(behind_bytes(f), 0u);
  EXPECT_EQ(verify(f), "");
  lose_link(1);                                  // all from the own copy
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  EXPECT_EQ(byte_at(f, kMiB, 4096), 0x33);
  EXPECT_EQ(byte_at(f, 7 * kMiB, kMiB), 0x11);
}

// The link goes just then: the answer waits for it.
TEST_F(FailureTest, AFailedCopyIsToldWhenTheLinkIsBack) {
  File f = start_written();
  fail_local(sim::FileOp::kSync, 1);
  Pending flushed = flush(f);
  ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
  lose_link(1);
  heal_link(1);
  EXPECT_TRUE(wait(flushed));
  EXPECT_EQ(behind_bytes(f), 8 * kMiB);
}

// So much is asked at once that the connections take no more: said as soon as they do.
TEST_F(FailureTest, AFailedCopyIsToldThoughTheLinkHasNoRoomForItAtFirst) {
  File f = start_written();
  world_->inject("host1",
                 sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects", .hangs = true});
  Pending wrote = write(f, 0, 0x22, 4096);
  world_->run_for(milliseconds(100));
  world_->cut("shared1", "host1");
  for (uint32_t i = 0; i < 2 * limits::kFrameRequestsMax + 100; ++i)   // of two connections
    engine(1).statfs([](Result<wire::StatFsAnswer>) {});
  world_->run_for(milliseconds(10));
  world_->release_hung("host1", EIO);
  ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
  world_->run_for(milliseconds(10));
  ASSERT_EQ(behind_bytes(f), 0u) << "there was room";
  heal_link(1);
  EXPECT_TRUE(wait(wrote));
  EXPECT_EQ(behind_bytes(f), 8 * kMiB);
  EXPECT_FALSE(logged("link_lost"));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
}

// Its frame for the shared node went with a session; by the time that the own copy fails it another one stands.
TEST_F(FailureTest, AWriteThatTheOwnCopyFailsOnceTheSharedOneCountsAgainIsServedByThat) {
  File f = start_written();
  world_->inject("host1",
                 sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects", .hangs = true});
  world_->cut("shared1", "host1");
  Pending wrote = write(f, 0, 0x22, 4096);
  world_->run_for(milliseconds(100));
  world_->reset_connections("host1", "shared1");
  ASSERT_TRUE(await_mirror(f, "local only"));
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_FALSE(wrote->answer) << "no fault came";
  world_->release_hung("host1", EIO);
  EXPECT_TRUE(wait(wrote));
  EXPECT_EQ(behind_bytes(f), 8 * kMiB) << "the shared node knew before the answer";
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(verify(f), "");
}

// Reserving storage changes nothing that is read: a full shared node is the guest's answer, not a reason to part.
TEST_F(FailureTest, AllocatingBeyondTheSharedNodesRoomIsRefusedAndTheImageStaysMirrored) {
  start();
  File f = create(1, "a.img", 64 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  world_->set_disk_bytes("shared1", 16 * kMiB);
  Status s = wait(fallocate(f, Engine::Fallocate::kAllocate, {0, 64 * kMiB}));
  EXPECT_EQ(s.code(), Code::kOutOfSpace) << s.to_string();
  EXPECT_EQ(mirror(f), "mirrored");
  EXPECT_FALSE(outdated()) << "nothing differs, and nothing would ever say so again";
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, kMiB), 0x11);
}

// A flush of a hand-over fails on the shared node, and the hand-over is called off for a new write: the copies become
// level again all the same.
TEST_F(FailureTest, ARefusedFlushOfAHandOverThatIsCalledOffLeavesTheSharedCopyLevel) {
  File f = start_written();
  close(f);
  f = open(1, "a.img");
  File theirs = open(2, "a.img");
  ASSERT_EQ(mirror(f), "mirrored");
  world_->inject("shared1",
                 sim::FileFault{.operations = bit(sim::FileOp::kSync), .path_contains = "objects", .hangs = true});
  Pending wanted = write(theirs, kMiB, 0x33, 4096);
  ASSERT_TRUE(until([&] { return logged("yield_failed"); }));
  world_->release_hung("shared1");
  world_->run_for(milliseconds(10));
  ASSERT_TRUE(write_now(f, 2 * kMiB, 0x22, 4096));   // it holds on to the tenure
  EXPECT_FALSE(wait(wanted));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(until([&] { return !outdated(); }));
  EXPECT_EQ(byte_at(theirs, 2 * kMiB, 4096), 0x22);
  EXPECT_EQ(verify(f), "");
}

// The shared node's object is cut short: the write is refused, and acknowledged without it.
TEST_F(FailureTest, ASharedCopyThatCannotBeOpenedIsOutdatedBeforeTheHostGoesOn) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  crash_shared(sim::Crash::kKill);
  {
    sim::SimEnv& env = world_->start("shared1");
    auto cut = [&](const std::string& path) {
      auto file = env.files().open(path, {});
      ASSERT_TRUE(file) << file.status().to_string();
      ASSERT_TRUE((*file)->truncate(4096));
    };
    size_t cuts = 0;
    for (const auto& [path, bytes] : world_->files("shared1", "/"))
      if (path.ends_with(".data")) cut(path), ++cuts;
    ASSERT_GT(cuts, 0u);
  }
  world_->crash("shared1", sim::Crash::kKill);
  start_shared();
  ASSERT_TRUE(until([&] { return linked(1); }));
  EXPECT_TRUE(outdated()) << "known since its start";
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  EXPECT_TRUE(outdated());
  ASSERT_TRUE(wait(flush(f)));
  EXPECT_FALSE(await_mirror(f, "mirrored"));
}

TEST_F(FailureTest, OverlappingGrowthNeverShrinks) {
  start();
  File f = create(1, "a.img", 0);
  Pending first = write(f, 0, 0x11, 4096);
  ASSERT_TRUE(wait(first));
  Pending far = write(f, 8 * 4096, 0x22, 4096), near = write(f, 4096, 0x33, 4096);
  EXPECT_TRUE(wait(far));
  EXPECT_TRUE(wait(near));
  Pending attr = getattr(f);
  ASSERT_TRUE(wait(attr));
  EXPECT_EQ(attr->attr.size, 9u * 4096);
  EXPECT_EQ(byte_at(f, 8 * 4096, 4096), 0x22);
  EXPECT_EQ(byte_at(f, 4096, 4096), 0x33);
  EXPECT_EQ(verify(f), "");
}

// Growth asked for before the tenure is held, by several at once.
TEST_F(FailureTest, GrowthThatWaitedForTheTenureNeverShrinks) {
  start();
  File theirs = create(2, "a.img", 64 * 4096);
  ASSERT_TRUE(write_now(theirs, 63 * 4096, 0x11, 4096));
  close(theirs);
  File f = open(1, "a.img");
  std::vector<Pending> all;
  for (uint64_t i : {70u, 66u, 68u, 10u}) all.push_back(write(f, i * 4096, static_cast<uint8_t>(i), 4096));
  for (const Pending& p : all) EXPECT_TRUE(wait(p));
  Pending attr = getattr(f);
  ASSERT_TRUE(wait(attr));
  EXPECT_EQ(attr->attr.size, 71u * 4096);
  EXPECT_EQ(byte_at(f, 63 * 4096, 4096), 0x11);
  for (uint64_t i : {70u, 66u, 68u, 10u}) EXPECT_EQ(byte_at(f, i * 4096, 4096), static_cast<int>(i));
}

// A write and a truncation race: the write is either before (cut off) or after it (it grows the image), never refused.
TEST_F(FailureTest, AWriteThatATruncationOvertakesGrowsTheImageAgain) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  Pending cut = resize(f, 0), later = write(f, kMiB - 4096, 0x22, 4096);
  EXPECT_TRUE(wait(cut));
  EXPECT_TRUE(wait(later));
}

TEST_F(FailureTest, ASizeOverTheLimitIsRefusedAndTheImageStaysMirrored) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  Status s = wait(resize(f, 1ull << 60));
  EXPECT_EQ(s.sys_errno(), EFBIG) << s.to_string();
  EXPECT_EQ(mirror(f), "mirrored");
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
}

// After a crash a sector of the host's copy cannot be read: the shared copy has all that was acknowledged.
TEST_F(FailureTest, ACopyThatCannotBeReadAfterACrashIsLeftToTheSharedOne) {
  File f = start_written();
  crash_host(1, sim::Crash::kKill);
  start_host(1);
  fail_local(sim::FileOp::kRead, 100000);
  f = open(1, "a.img");
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
  EXPECT_TRUE(write_now(f, kMiB, 0x22, kMiB));
}

TEST_F(FailureTest, AFailedGrowOfTheOwnCopyAtAGrantIsNoErrorToTheGuest) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  close(f);
  File theirs = open(2, "a.img");
  ASSERT_TRUE(wait(resize(theirs, 8 * kMiB)));
  ASSERT_TRUE(write_now(theirs, 4 * kMiB, 0x22, kMiB));
  close(theirs);
  fail_local(sim::FileOp::kTruncate, 1000);
  f = open(1, "a.img");
  EXPECT_TRUE(write_now(f, 6 * kMiB, 0x33, kMiB));
  EXPECT_EQ(behind_bytes(f), 8 * kMiB) << "it would let this host's copy be the only one";
  EXPECT_EQ(byte_at(f, 4 * kMiB, kMiB), 0x22);
  EXPECT_EQ(byte_at(f, 6 * kMiB, kMiB), 0x33);
}

TEST_F(FailureTest, AHoleIsPunchedToWhereTheImageEndsWhenItIsHeld) {
  start();
  File f = create(1, "a.img", kMiB);             // as this host last knew it
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  close(f);
  f = open(1, "a.img");
  File theirs = open(2, "a.img");
  ASSERT_TRUE(wait(resize(theirs, 8 * kMiB)));
  ASSERT_TRUE(write_now(theirs, 4 * kMiB, 0x22, kMiB));
  close(theirs);
  ASSERT_TRUE(wait(fallocate(f, Engine::Fallocate::kPunch, {0, 8 * kMiB})));
  EXPECT_EQ(byte_at(f, 4 * kMiB, kMiB), 0);
}

TEST_F(FailureTest, AnImageThatGrewUnderTheJournalsMarkIsComparedAsFarAsItReaches) {
  File f = start_written();
  world_->set_store_fault(host_name(1), sim::StoreFault{.path_contains = "/state/journal", .status = Status(Code::kOutOfSpace, "full")});
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  ASSERT_TRUE(until([&] { return logged("marked_outdated"); }));
  ASSERT_TRUE(wait(resize(f, 16 * kMiB)));
  ASSERT_TRUE(write_now(f, 12 * kMiB, 0x77, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kPowerLoss);
  world_->set_store_fault(host_name(1), {});
  // The copies differ in what was added: as a write that was under way would leave them.
  size_t changed = 0;
  for (const auto& [path, bytes] : world_->files("host1", "/brick1")) {
    auto at = std::search_n(bytes.begin(), bytes.end(), 4096, uint8_t{0x77});
    if (at == bytes.end()) continue;
    ASSERT_TRUE(world_->flip_byte("host1", path, static_cast<uint64_t>(at - bytes.begin())));
    ++changed;
  }
  ASSERT_EQ(changed, 1u);
  start_host(1);
  File again = open(1, "a.img");
  ASSERT_TRUE(await_mirror(again, "mirrored"));
  ASSERT_TRUE(until([&] { return logged("fs recovered"); }));
  EXPECT_EQ(verify(again), "");
}

TEST_F(FailureTest, ARemovedImagesBlocksAreFreedWhileTheJournalIsDegraded) {
  File f = start_written();
  world_->set_store_fault(host_name(1), sim::StoreFault{.path_contains = "/state/journal", .status = Status(Code::kOutOfSpace, "full")});
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  ASSERT_TRUE(until([&] { return logged("marked_outdated") && logged("degraded"); }));
  close(f);
  ASSERT_TRUE(wait(unlink(1, "a.img")));
  EXPECT_TRUE(until([&] { return logged("fs image_removed"); })) << "its blocks stay for ever";
}

// The side file has the new size, its directory could not be synced, and nothing more can be written there: the next
// open would cut the image. What the guest is told is done since must not lie behind that end.
TEST_F(FailureTest, WhatIsAcknowledgedAfterAShrinkThatCouldNotBeUndoneIsNotCutOff) {
  for (bool passes : {false, true}) {
    SCOPED_TRACE(passes);
    File f = start_written();
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    lose_link(1);
    ASSERT_TRUE(write_now(f, 0, 0x22, 4096)) << "alone";
    world_->inject("host1", sim::FileFault{.operations = bit(sim::FileOp::kSyncDirectory), .path_contains = "objects"});
    world_->inject("host1", sim::FileFault{.nth = 2, .times = 1u << 20, .operations = bit(sim::FileOp::kWrite),
                                           .path_contains = ".meta"});
    ASSERT_FALSE(wait(resize(f, kMiB))) << "no fault came";
    if (passes) world_->clear_faults("host1");
    const Status written = write_now(f, 4 * kMiB, 0x33, 4096), flushed = wait(flush(f));
    EXPECT_EQ(written.is_ok(), passes) << written.to_string();
    EXPECT_EQ(flushed.is_ok(), passes) << flushed.to_string();
    world_->clear_faults("host1");
    crash_host(1, sim::Crash::kKill);
    heal_link(1);
    start_host(1);
    f = open(1, "a.img");
    EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
    if (written && flushed) { EXPECT_EQ(byte_at(f, 4 * kMiB, 4096), 0x33); }
    ASSERT_TRUE(write_now(f, 0, 0x23, 4096));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(verify(f), "");
    crash_all();
  }
}

}  // namespace
}  // namespace tidemark::fs
