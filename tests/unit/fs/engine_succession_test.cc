// A run that takes over from another on the same mount: handles and tenures go on, requests wait and do not fail.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class SuccessionTest : public EngineTest {
 protected:
  void kill_and_succeed(int host) {
    crash_host(host, sim::Crash::kKill);
    succeed_host(host);
  }
};

TEST_F(SuccessionTest, AKilledHostServesAtOnceAndIsLevelLater) {
  start();
  File f = create(1, "a.img", 64 * kMiB);
  for (uint64_t at = 0; at < 64; ++at) ASSERT_TRUE(write_now(f, at * kMiB, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(write_now(f, kMiB, 0x22, 4096));   // not flushed
  Pending lost = write(f, 2 * kMiB, 0x33, 4096);
  kill_and_succeed(1);
  EXPECT_TRUE(wait(write(f, 3 * kMiB, 0x44, 4096), seconds(1)));   // 64 dirty regions are not waited for
  EXPECT_EQ(byte_at(f, kMiB, 4096), 0x22);
  EXPECT_EQ(byte_at(f, 3 * kMiB, 4096), 0x44);
  EXPECT_TRUE(wait(flush(f), seconds(1)));
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(logged("tenure_carried_on"));
  EXPECT_FALSE(logged("tail_diverged"));
  EXPECT_EQ(verify(f), "");
}

TEST_F(SuccessionTest, WhileTheSharedNodeIsAwayItGoesOnAlone) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  File quiet = create(1, "quiet.img", 8 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(write_now(quiet, 0, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(quiet)));
  crash_shared(sim::Crash::kPowerLoss);
  kill_and_succeed(1);
  EXPECT_TRUE(wait(write(f, kMiB, 0x22, 4096), seconds(1)));
  EXPECT_TRUE(wait(flush(f), seconds(1)));
  EXPECT_TRUE(wait(write(quiet, kMiB, 0x22, 4096), seconds(1)));
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
  kill_and_succeed(1);                            // and once more, alone as it is
  EXPECT_TRUE(wait(write(f, 2 * kMiB, 0x33, 4096), seconds(1)));
  start_shared();
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(await_mirror(quiet, "mirrored"));
  EXPECT_EQ(byte_at(f, kMiB, 4096), 0x22);
  EXPECT_EQ(verify(f), "");
  EXPECT_EQ(verify(quiet), "");
}

TEST_F(SuccessionTest, WithoutAMirrorItGoesOn) {
  File f = start_written();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(await_mirror(f, "none"));
  ASSERT_TRUE(write_now(f, kMiB, 0x22, kMiB));
  crash_shared(sim::Crash::kKill);
  kill_and_succeed(1);
  EXPECT_TRUE(wait(write(f, 2 * kMiB, 0x33, 4096), seconds(1)));
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x22);
  EXPECT_TRUE(wait(flush(f), seconds(1)));
  start_shared();
  ASSERT_TRUE(until([&] { return linked(1); }));
  ASSERT_TRUE(wait(set_mirror(f, "sync")));
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(verify(f), "");
}

TEST_F(SuccessionTest, AnUnlinkedFileStaysAsLongAsItIsOpen) {
  File f = start_written();
  ASSERT_TRUE(wait(unlink(1, "a.img")));
  kill_and_succeed(1);
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
  EXPECT_TRUE(wait(write(f, 0, 0x22, 4096), seconds(1)));
  ASSERT_TRUE(until([&] { return linked(1); }));
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  EXPECT_FALSE(logged("image_removed"));
  close(f);
  EXPECT_TRUE(until([&] { return logged("image_removed"); }));
}

TEST_F(SuccessionTest, AnotherHostThatAsksMeanwhileDoesNotGetTheTenure) {
  File f = start_written();
  File theirs = open(2, "a.img");
  crash_host(1, sim::Crash::kKill);
  Pending asked = write(theirs, 0, 0x22, 4096);
  ASSERT_FALSE(until([&] { return asked->answer.has_value(); }, seconds(1)));
  succeed_host(1);
  EXPECT_TRUE(wait(write(f, kMiB, 0x33, 4096), seconds(1)));
  EXPECT_EQ(wait(asked).code(), Code::kBusy);
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
  close(f);                                       // the first and last writer: now the other may
  EXPECT_TRUE(wait(write(theirs, 0, 0x22, 4096)));
  EXPECT_EQ(byte_at(theirs, kMiB, 4096), 0x33);
}

// The yield was sent, its answer not seen: the tenure may be another's, nothing may be served from it unasked.
TEST_F(SuccessionTest, ATenureThatIsBeingGivenBackIsNotCarriedOn) {
  File f = start_written();
  close(f);
  f = open(1, "a.img");
  File theirs = open(2, "a.img");
  Pending asked = write(theirs, 0, 0x22, 4096);
  ASSERT_TRUE(until([&] { return survivors_[1]->tenures().empty(); }));
  cut_link(1);
  crash_host(1, sim::Crash::kKill);
  succeed_host(1);
  Pending old = write(f, kMiB, 0x33, 4096);
  until([&] { return asked->answer.has_value(); }, seconds(1));
  EXPECT_FALSE(until([&] { return old->answer && old->answer->is_ok(); }, seconds(2)));
  heal_link(1);
  EXPECT_TRUE(until([&] { return linked(1); }));
  EXPECT_FALSE(logged("tail_diverged"));
}

TEST_F(SuccessionTest, AHandOverLeavesNothingToCompare) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  ASSERT_TRUE(write_now(f, kMiB, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  bool done = false;
  engine(1).hand_over(seconds(5), [&](Status s) {
    EXPECT_TRUE(s) << s.to_string();
    done = true;
  });
  ASSERT_TRUE(until([&] { return done; }));
  log_.clear();
  kill_and_succeed(1);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(wait(write(f, 0, 0x22, 4096), seconds(1)));
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(logged("dirty_regions=0")) << log_;
  EXPECT_FALSE(logged("resync_begun")) << log_;
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x11);
  EXPECT_EQ(verify(f), "");
}

// Each of several images is given back, or flushed, in turn, which takes long here; ticks go on meanwhile.
TEST_F(SuccessionTest, AnImageThatWasRemovedJustBeforeAStopIsThereUntilItsEnd) {
  for (const bool succeeded : {false, true}) {
    SCOPED_TRACE(succeeded ? "handed over" : "stopped");
    if (!succeeded) start();
    std::vector<File> files;
    for (const char* name : {"a.img", "b.img", "c.img", "d.img", "e.img", "f.img"}) {
      files.push_back(create(1, name, kMiB));
      ASSERT_TRUE(write_now(files.back(), 0, 0x11, 4096));
    }
    for (size_t i = 0; i < files.size(); ++i) {
      if (i % 2 != 0) {
        ASSERT_TRUE(wait(unlink(1, std::string(1, static_cast<char>('a' + i)) + ".img")));
      }
      close(files[i]);
    }
    const sim::DurationRange slow{std::chrono::milliseconds(900), std::chrono::milliseconds(1000)};
    world_->set_latency("host1", "shared1", slow);
    std::optional<Status> done;
    if (succeeded) engine(1).hand_over(seconds(60), [&](Status s) { done = s; });
    else engine(1).stop(seconds(60), [&](Status s) { done = s; });
    ASSERT_TRUE(until([&] { return done.has_value(); }, seconds(120)));
    EXPECT_TRUE(*done) << done->to_string();
    world_->set_latency("host1", "shared1", {});
    kill_and_succeed(1);
    for (const char* name : {"a.img", "c.img", "e.img"}) {
      File f = open(1, name);
      EXPECT_EQ(byte_at(f, 0, 4096), 0x11);
      close(f);
      ASSERT_TRUE(wait(unlink(1, name)));
    }
  }
}

TEST_F(SuccessionTest, AnOpenThatComesAgainGetsTheHandleThatItMade) {
  start();
  File f = create(1, "a.img", kMiB);
  std::optional<HandleId> first, second;
  engine(1).open_image(f.inode, [&](Result<HandleId> h) { first = *h; }, {42});
  ASSERT_TRUE(until([&] { return first.has_value(); }));
  kill_and_succeed(1);
  engine(1).open_image(f.inode, [&](Result<HandleId> h) { second = *h; }, {42, true});
  ASSERT_TRUE(until([&] { return second.has_value(); }));
  EXPECT_EQ(first->value, second->value);
  EXPECT_EQ(survivors_[1]->handles().size(), 2u);
  engine(1).release(*second);
  EXPECT_EQ(survivors_[1]->handles().size(), 1u);
}

// The run before died in the midst of a close: the kernel hands that out again, after an open if it comes to that.
TEST_F(SuccessionTest, ACloseThatComesAgainClosesNobodyElsesHandle) {
  start();
  File a = create(1, "a.img", kMiB), closed = create(1, "closed.img", kMiB), b = create(1, "b.img", kMiB);
  close(b);
  Bytes unanswered;
  engine(1).release(closed.handle, [&] { unanswered = kept_[1]; });
  crash_host(1, sim::Crash::kKill);
  kept_[1] = unanswered;
  succeed_host(1);
  b = open(1, "b.img");
  EXPECT_NE(b.handle.value, closed.handle.value);
  bool answered = false;
  engine(1).release(closed.handle, [&] { answered = true; });
  EXPECT_TRUE(answered);
  EXPECT_TRUE(write_now(b, 0, 0x22, 4096));
  EXPECT_TRUE(write_now(a, 0, 0x33, 4096));
  EXPECT_EQ(byte_at(b, 0, 4096), 0x22);
  EXPECT_EQ(open(1, "closed.img").handle.value, closed.handle.value);   // from now on the number is free
}

// Acknowledged writes are gone, and nobody has been told before the run ended.
TEST_F(SuccessionTest, AFlushThatHasToFailFailsInTheNextRun) {
  File f = start_written();
  ASSERT_NO_FATAL_FAILURE(lose_the_only_copy(f));
  ASSERT_TRUE(until([&] { return logged("writes_lost"); }));
  kill_and_succeed(1);
  EXPECT_EQ(wait(flush(f)).code(), Code::kIoError);
  ASSERT_TRUE(write_now(f, kMiB, 0x44, kMiB));
  EXPECT_TRUE(wait(flush(f)));                  // it is said once
}

// Both killed, the machine stays: what the shared node had not made durable, the host has.
TEST_F(SuccessionTest, AfterPowerIsLostOnTheOtherSideTheHostsCopyDecides) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));   // acknowledged, on no disk yet
  crash_host(1, sim::Crash::kKill);
  world_->crash("shared1", sim::Crash::kPowerLoss);
  shared_.reset();
  start_shared();
  succeed_host(1);
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
  EXPECT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
  EXPECT_EQ(verify(f), "");
}

}  // namespace
}  // namespace tidemark::fs
