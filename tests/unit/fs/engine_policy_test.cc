// mirror = none and back; bricks that are not this host's.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class PolicyTest : public EngineTest {
 protected:
  // Host 1's "a.img", mirrored once, then `none`: 0x22 all over, which it alone has.
  File start_none(uint64_t size = 2 * kMiB) {
    start();
    File f = create(1, "a.img", size);
    EXPECT_TRUE(write_now(f, 0, 0x11, kMiB));
    EXPECT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_TRUE(wait(flush(f)));
    EXPECT_TRUE(wait(set_mirror(f, "none")));
    for (uint64_t at = 0; at < size; at += kMiB) EXPECT_TRUE(write_now(f, at, 0x22, kMiB));
    EXPECT_TRUE(wait(flush(f)));
    return f;
  }
  bool says(int host, const std::string& what) {
    std::vector<std::string> reasons;
    if (engine(host).healthy(&reasons)) return false;
    return std::any_of(reasons.begin(), reasons.end(),
                       [&](const std::string& r) { return r.find(what) != std::string::npos; });
  }
  // The objects of host 1's brick, while its daemon is down.
  void remove_objects() {
    sim::SimEnv& env = world_->start("host1");
    for (const auto& [path, bytes] : world_->files("host1", "/brick1")) {
      if (path.find("tidemark.brick") != std::string::npos) continue;
      ASSERT_TRUE(env.files().unlink(path)) << path;
    }
    world_->crash("host1", sim::Crash::kKill);
  }
};

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
    crash_all();
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

// Its newest bytes are here alone, and the shared copy has none: a read must not be answered from there.
TEST_F(PolicyTest, AnImageThatWasNoneIsCopiedBeforeItIsRead) {
  File f = start_none();
  world_->run_for(seconds(30));                // nothing is dirty: no recovery comes first
  crash_host(1, sim::Crash::kKill);
  ASSERT_TRUE(wait(set_mirror(open(2, "a.img"), "sync")));
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  f = open(1, "a.img");
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(open(2, "a.img"), kMiB, kMiB), 0x22);
  EXPECT_EQ(verify(f), "");
}

// The copies are level at the end of the last window, not of the first.
TEST_F(PolicyTest, AnotherHostReadsNothingOldWhileWindowsAreLeft) {
  resync_rate_ = 4 * kMiB;                     // a region in a window, a window in a second
  start();
  File f = create(1, "a.img", 24 * kMiB);
  for (uint64_t i = 0; i < 24; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  crash_shared(sim::Crash::kKill);
  for (uint64_t i = 0; i < 24; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x22, kMiB));
  start_shared();
  ASSERT_TRUE(until([&] { return linked(1) && linked(2) && mirror(f) == "resyncing"; }));
  File theirs = open(2, "a.img");
  while (mirror(f) == "resyncing") {
    int byte = byte_at(theirs, 23 * kMiB, 4096);
    ASSERT_TRUE(byte == -2 || byte == 0x22) << byte;
    world_->run_for(milliseconds(200));
  }
  EXPECT_EQ(mirror(f), "mirrored");
  ASSERT_TRUE(until([&] { return byte_at(theirs, 23 * kMiB, 4096) == 0x22; }));
}

// Its host's link is down when the policy changes back: no notification reaches it.
TEST_F(PolicyTest, BackFromNoneWhileTheLinkIsDown) {
  File f = start_none();
  lose_link(1);
  File theirs = open(2, "a.img");
  ASSERT_TRUE(wait(set_mirror(theirs, "sync")));
  heal_link(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  const int byte = byte_at(theirs, 0, kMiB);
  EXPECT_TRUE(byte == -2 || byte == 0x22) << byte;
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(until([&] { return byte_at(theirs, 0, kMiB) == 0x22; }));
  EXPECT_EQ(verify(f), "");
}

// It equals the new shared copy's holes, so nothing is sent: another host's copy is behind all the same.
TEST_F(PolicyTest, WhatWasDiscardedWhileNoneIsNotReadFromAnOldCopy) {
  start();
  File theirs = create(2, "a.img", 8 * kMiB);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(write_now(theirs, i * kMiB, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  ASSERT_TRUE(wait(flush(theirs)));
  close(theirs);
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 7 * kMiB, 0x21, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(wait(fallocate(f, Engine::Fallocate::kPunch, {0, 4 * kMiB})));
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(wait(set_mirror(f, "sync")));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  close(f);
  theirs = open(2, "a.img");
  ASSERT_TRUE(write_now(theirs, 6 * kMiB, 0x31, kMiB));
  EXPECT_EQ(byte_at(theirs, 0, kMiB), 0);
  EXPECT_EQ(byte_at(theirs, 5 * kMiB, kMiB), 0x11);
  EXPECT_EQ(byte_at(theirs, 7 * kMiB, kMiB), 0x21);
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  EXPECT_EQ(verify(theirs), "");
}

// The shared node has requests of the image under way, and refuses: its copy is as good as this one, and can serve.
TEST_F(PolicyTest, ARefusedNoneLeavesTheImageMirrored) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  Status none;
  for (int i = 0; i < 50 && none.is_ok(); ++i) {
    if (i != 0) {
      ASSERT_TRUE(wait(set_mirror(f, "sync")));
      ASSERT_TRUE(await_mirror(f, "mirrored"));
    }
    std::vector<Pending> writes;
    for (uint64_t at = 0; at < 8; ++at) writes.push_back(write(f, at * kMiB, 0x22, kMiB));
    world_->run_for(milliseconds(1));
    none = wait(set_mirror(f, "none"));
    for (const Pending& w : writes) ASSERT_TRUE(wait(w));
  }
  ASSERT_EQ(none.code(), Code::kBusy) << none.to_string();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kKill);
  host_bricks_ = {"/other"};                   // an empty directory in its place
  start_host(1);
  f = open(1, "a.img");
  EXPECT_TRUE(until([&] { return byte_at(f, 0, kMiB) == 0x22; }, seconds(20)));
  EXPECT_NE(mirror(f), "failed");
}

TEST_F(PolicyTest, AnotherHostsOldCopyIsNeverReadForAnImageThatIsNone) {
  start();
  File theirs = create(2, "a.img", kMiB);
  ASSERT_TRUE(write_now(theirs, 0, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  close(theirs);
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x21, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, kMiB), -2);
  crash_host(2, sim::Crash::kKill);
  start_host(2);
  ASSERT_TRUE(until([&] { return linked(2); }));
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, kMiB), -2);
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
}

// What only the lost copy had is an error, whoever asks and however often, until the image is removed.
TEST_F(PolicyTest, TheOnlyCopyGoneIsAnErrorAndNeverZeros) {
  for (bool reset : {false, true}) {
    File f = start_none();
    crash_host(1, sim::Crash::kKill);
    remove_objects();
    if (reset) {   // nor does this host remember it: the shared node names it the image's holder
      sim::SimEnv& env = world_->start("host1");
      for (const auto& [path, bytes] : world_->files("host1", "/state")) ASSERT_TRUE(env.files().unlink(path)) << path;
      world_->crash("host1", sim::Crash::kKill);
    }
    for (int run = 0; run < 2; ++run) {
      start_host(1);
      ASSERT_TRUE(until([&] { return linked(1); }));
      f = open(1, "a.img");
      EXPECT_EQ(byte_at(f, 0, kMiB), -2);
      EXPECT_EQ(write_now(f, 0, 0x33, 4096).code(), Code::kIoError);
      EXPECT_EQ(byte_at(f, 0, kMiB), -2);
      EXPECT_EQ(mirror(f), "failed");
      EXPECT_TRUE(says(1, "tidemark replica restore"));
      EXPECT_NE(verify(f), "");
      Status synced = wait(set_mirror(f, "sync"));
      EXPECT_EQ(byte_at(f, 0, kMiB), -2) << synced.to_string();
      crash_host(1, sim::Crash::kKill);
    }
    crash_host(2, sim::Crash::kKill);
    crash_shared(sim::Crash::kKill);
  }
}

TEST_F(PolicyTest, AnEmptyImageOfOneHostIsWrittenWhereItIsFirstUsed) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  lose_link(1);                                // its grant may be lost; the next one is of another epoch
  Pending first = write(f, 0, 0x22, 4096);
  heal_link(1);
  EXPECT_TRUE(wait(first));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  EXPECT_EQ(byte_at(f, 4096, 4096), 0);
}

// Taken by force, with the loss accepted, once it was to be mirrored again: what only the old host had is its branch.
TEST_F(PolicyTest, AnImageThatWasNoneAndWasTakenIsKeptAsABranch) {
  File f = start_none();
  world_->run_for(seconds(30));
  crash_host(1, sim::Crash::kKill);
  File theirs = open(2, "a.img");
  ASSERT_TRUE(wait(set_mirror(theirs, "sync")));
  Status refused = wait(take_over(2, R"({"images": ["a.img"], "force": true})"));
  EXPECT_EQ(refused.code(), Code::kBusy) << refused.to_string();
  EXPECT_NE(refused.message().find("outdated"), std::string::npos) << refused.message();
  ASSERT_TRUE(wait(take_over(2, R"({"images": ["a.img"], "force": true, "accept_loss": true})")));
  ASSERT_TRUE(write_now(theirs, 0, 0x33, kMiB));
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  f = open(1, "a.img");
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x33);
  close(theirs);
  ASSERT_TRUE(until([&] { return write_now(f, kMiB, 0x34, 4096).is_ok(); }));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x33);
  EXPECT_EQ(engine(1).branches().size(), 1u);
  EXPECT_EQ(verify(f), "");
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

// What a host acknowledged alone is on a brick that is missing: an error, no endless wait, and no older bytes either.
TEST_F(PolicyTest, WritesAloneOnABrickThatIsGoneAreWaitedForOrGivenUp) {
  for (bool give_up : {false, true}) {
    File f = start_written();
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(flush(f)));
    crash_shared(sim::Crash::kKill);
    ASSERT_TRUE(write_now(f, 0, 0x12, 4096));
    crash_host(1, sim::Crash::kKill);
    start_shared();
    host_bricks_ = {"/other"};                 // an empty directory in its place
    start_host(1);
    f = open(1, "a.img");
    EXPECT_EQ(byte_at(f, 0, 4096), -2);
    EXPECT_EQ(write_now(f, 0, 0x13, 4096).code(), Code::kIoError);
    EXPECT_EQ(mirror(f), "failed");
    EXPECT_TRUE(says(1, "brick replace DIRECTORY --accept-loss"));
    auto refused = engine(1).replace_brick("/other");
    EXPECT_EQ(refused.status().code(), Code::kBusy);
    EXPECT_NE(refused.status().message().find("a.img"), std::string::npos) << refused.status().message();
    if (give_up) {
      ASSERT_TRUE(engine(1).replace_brick("/other", true));
      ASSERT_TRUE(until([&] { return byte_at(f, 0, 4096) == 0x11; }));
      ASSERT_TRUE(write_now(f, kMiB, 0x13, 4096));
      ASSERT_TRUE(await_mirror(f, "mirrored"));
      EXPECT_EQ(verify(f), "");
      crash_host(1, sim::Crash::kKill);
      start_host(1);                           // and stays given up
      f = open(1, "a.img");
      ASSERT_TRUE(until([&] { return byte_at(f, 0, 4096) == 0x11; }));
    } else {
      crash_host(1, sim::Crash::kKill);
      host_bricks_ = {"/brick1"};
      start_host(1);
      f = open(1, "a.img");
      ASSERT_TRUE(until([&] { return byte_at(f, 0, 4096) == 0x12; }));
      ASSERT_TRUE(write_now(f, kMiB, 0x13, 4096));
      ASSERT_TRUE(await_mirror(f, "mirrored"));
    }
    EXPECT_EQ(verify(f), "");
    crash_all();
    host_bricks_ = {"/brick1"};
  }
}

// Another host takes the older copy meanwhile: once the brick is back, what it alone has is a branch.
TEST_F(PolicyTest, WritesAloneOnABrickThatIsGoneAreABranchIfTheImageIsTaken) {
  File f = start_written();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  crash_shared(sim::Crash::kKill);
  ASSERT_TRUE(write_now(f, 0, 0x12, 4096));
  crash_host(1, sim::Crash::kKill);
  start_shared();
  host_bricks_ = {"/other"};
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  ASSERT_TRUE(until([&] {   // once the shared node has heard of it
    Pending asked = take_over(2, R"({"images": ["a.img"], "dry_run": true})");
    return wait(asked).is_ok() && asked->text.find("outdated: host1") != std::string::npos;
  }));
  EXPECT_EQ(wait(take_over(2, R"({"images": ["a.img"], "force": true})")).code(), Code::kBusy);
  ASSERT_TRUE(wait(take_over(2, R"({"images": ["a.img"], "force": true, "accept_loss": true})")));
  File theirs = open(2, "a.img");
  ASSERT_TRUE(write_now(theirs, kMiB, 0x33, 4096));
  EXPECT_EQ(byte_at(theirs, 0, 4096), 0x11);
  EXPECT_EQ(byte_at(open(1, "a.img"), 0, 4096), -2);
  crash_host(1, sim::Crash::kKill);
  host_bricks_ = {"/brick1"};
  start_host(1);
  f = open(1, "a.img");
  ASSERT_TRUE(until([&] { return byte_at(f, kMiB, 4096) == 0x33; }));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x11);
  EXPECT_EQ(engine(1).branches().size(), 1u);
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
