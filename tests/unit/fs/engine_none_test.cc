// mirror = none: who has the image when its policy, its tenure and its host change at the same time.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class NoneTest : public EngineTest {
 protected:
  // As an operator at the shared node does.
  Status set_at_node(const File& f, const std::string& policy) {
    Pending r = std::make_shared<Request>();
    shared_->set_policy(f.image.to_string(), policy, [r](Result<std::string> out) { r->answer = out.status(); });
    return wait(r);
  }
  // A write that the shared copy has, and that the own brick still has under way.
  Pending write_held_up(const File& f) {
    world_->inject("host1", sim::FileFault{.operations = kWrites, .path_contains = "objects", .hangs = true});
    Pending written = write(f, 0, 0x22, 4096);
    EXPECT_TRUE(until([&] { return world_->hung("host1") == 1; }));
    world_->run_for(milliseconds(10));
    EXPECT_FALSE(written->answer);
    return written;
  }
  // It fails, and all others do until `clear_faults`.
  void fail_brick() {
    constexpr uint16_t kSyncsToo = kWrites | static_cast<uint16_t>(sim::FileOp::kSync);
    world_->inject("host1", sim::FileFault{.times = 1u << 20, .operations = kSyncsToo, .path_contains = "objects"});
    world_->release_hung("host1", EIO);
  }
  // No copy has what they ask for: nothing is acknowledged. Nor are bytes made up.
  void expect_errors(const File& f) {
    EXPECT_FALSE(write_now(f, 2 * kMiB, 0x33, 4096));
    EXPECT_FALSE(wait(flush(f)));
    EXPECT_FALSE(wait(resize(f, 16 * kMiB)));
    const int byte = byte_at(f, kMiB - 4096, 4096);
    EXPECT_TRUE(byte == 0x11 || byte == -2) << byte;
  }
  // The brick serves again: the copy there is the only one, and has all that was acknowledged.
  void expect_own_copy(const File& f) {
    world_->clear_faults("host1");
    ASSERT_TRUE(until([&] { return write_now(f, 2 * kMiB, 0x33, 4096).is_ok(); }));
    EXPECT_TRUE(wait(flush(f)));
    EXPECT_EQ(byte_at(f, 4096, kMiB - 4096), 0x11);
    EXPECT_EQ(byte_at(f, 2 * kMiB, 4096), 0x33);
    ASSERT_TRUE(wait(set_mirror(f, "sync")));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(byte_at(open(2, "a.img"), 4096, kMiB - 4096), 0x11);
    EXPECT_EQ(verify(f), "");
  }
  static constexpr uint16_t kWrites = static_cast<uint16_t>(sim::FileOp::kWrite);
};

// Decided at the shared node in the moment in which its host dies, which has written since it was level, or not.
TEST_F(NoneTest, AHostThatComesBackToAnImageThatIsNoneHasItAlone) {
  for (bool dirty : {false, true}) {
    SCOPED_TRACE(dirty);
    start();
    File f = create(1, "a.img", 2 * kMiB);
    for (uint64_t at : {uint64_t{0}, kMiB}) ASSERT_TRUE(write_now(f, at, 0x11, kMiB));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(flush(f)));
    if (!dirty) world_->run_for(seconds(30));
    ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
    if (!dirty) {
      ASSERT_TRUE(wait(flush(f)));
      world_->run_for(seconds(30));
    }
    cut_link(1);
    crash_host(1, sim::Crash::kKill);
    ASSERT_TRUE(set_at_node(f, "none"));
    heal_link(1);
    start_host(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    File theirs = open(2, "a.img");
    EXPECT_FALSE(write_now(theirs, kMiB, 0x33, 4096));
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    f = open(1, "a.img");
    EXPECT_TRUE(until([&] { return byte_at(f, 0, kMiB) == 0x22; }, seconds(20)));
    EXPECT_TRUE(write_now(f, 0, 0x23, kMiB));
    EXPECT_EQ(mirror(f), "none");
    ASSERT_TRUE(wait(set_mirror(f, "sync")));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(byte_at(theirs, 0, kMiB), 0x23);
    EXPECT_EQ(byte_at(theirs, kMiB, kMiB), 0x11);
    EXPECT_EQ(verify(f), "");
    crash_all();
  }
}

// It was `none` when this host last heard of it, and is no more.
TEST_F(NoneTest, AHostThatMissedTheChangeBackTakesTheImageAllTheSame) {
  start();
  File theirs = create(2, "a.img", 2 * kMiB);
  ASSERT_TRUE(write_now(theirs, 0, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  ASSERT_TRUE(wait(flush(theirs)));
  close(theirs);
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x21, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  theirs = open(2, "a.img");
  EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
  lose_link(2);
  ASSERT_TRUE(wait(set_mirror(f, "sync")));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  close(f);
  heal_link(2);
  ASSERT_TRUE(until([&] { return linked(2); }));
  EXPECT_TRUE(write_now(theirs, kMiB, 0x33, 4096));
  EXPECT_EQ(byte_at(theirs, 0, kMiB), 0x22);
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  EXPECT_EQ(verify(theirs), "");
}

// Another host asks for it, in vain: this host's own requests go on meanwhile.
TEST_F(NoneTest, ARecallThatIsDeclinedHoldsNothingUp) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(wait(flush(f)));
  world_->run_for(seconds(30));                // nothing is dirty
  crash_host(1, sim::Crash::kKill);
  start_host(1);
  f = open(1, "a.img");
  Pending theirs = write(open(2, "a.img"), 0, 0x33, 4096);
  ASSERT_TRUE(until([&] { return logged("recall_unknown"); }));
  EXPECT_TRUE(write_now(f, 0, 0x22, 4096));
  EXPECT_FALSE(wait(theirs));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
}

// The tenure is being given away while `none` is asked for: one of the two comes first, and no block is left behind.
TEST_F(NoneTest, NoneAskedForWhileTheTenureIsGivenAway) {
  start();
  for (int i = 0; i < 40; ++i) {
    SCOPED_TRACE(i);
    const bool at_node = i % 2 != 0;
    const std::string name = std::to_string(i) + ".img";
    File f = create(1, name, kMiB);
    ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    close(f);
    f = open(1, name);
    File theirs = open(2, name);
    Pending wanted = write(theirs, 0, 0x22, 4096);
    world_->run_for(std::chrono::microseconds(200 * i));
    Status none = at_node ? set_at_node(f, "none") : wait(set_mirror(f, "none"));
    const Status written = wait(wanted, seconds(60));
    EXPECT_TRUE(at_node || !none || !written) << none.to_string() << ", " << written.to_string();
    EXPECT_TRUE(none || none.code() == Code::kBusy) << none.to_string();
    const File& holder = written ? theirs : f;
    EXPECT_TRUE(until([&] { return byte_at(holder, 4096, 4096) == 0x11; }, seconds(20))) << none.to_string();
    EXPECT_EQ(byte_at(holder, 0, 4096), written ? 0x22 : 0x11);
    close(f);
    close(theirs);
  }
}

// The shared node has given its copy up, its answer is on its way: then the own brick fails.
TEST_F(NoneTest, AnOwnBrickThatFailsAsNoneIsAskedForIsAnErrorAndStaysTheOnlyCopy) {
  File f = start_written();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(flush(f)));
  Pending written = write_held_up(f);
  world_->cut("shared1", "host1");
  Pending none = set_mirror(f, "none");
  ASSERT_TRUE(until([&] { return logged("copy_given_up"); }));
  fail_brick();
  EXPECT_EQ(wait(written).code(), Code::kIoError);
  lose_link(1);
  heal_link(1);
  EXPECT_TRUE(wait(none));
  ASSERT_TRUE(await_mirror(f, "none"));
  expect_errors(f);
  expect_own_copy(f);
}

// The other way round: this host has not told of its brick yet when an operator at the shared node decides.
TEST_F(NoneTest, NoneDecidedBeforeTheSharedNodeHearsOfAFailedBrickIsAnErrorUntilThatServesAgain) {
  for (bool new_session : {false, true}) {
    SCOPED_TRACE(new_session);
    File f = start_written();
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(flush(f)));
    ASSERT_TRUE(write_now(f, 3 * kMiB, 0x55, 4096));   // to be flushed
    Pending written = write_held_up(f);
    world_->cut("host1", "shared1");
    fail_brick();
    Pending later = write(f, kMiB, 0x44, 4096), flushed = flush(f);
    ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
    ASSERT_TRUE(set_at_node(f, "none"));
    if (new_session) lose_link(1);
    heal_link(1);
    EXPECT_EQ(wait(written).code(), Code::kIoError);
    EXPECT_FALSE(wait(later));
    EXPECT_FALSE(wait(flushed));
    EXPECT_TRUE(await_mirror(f, "failed"));
    expect_errors(f);
    expect_own_copy(f);
    EXPECT_EQ(byte_at(f, 3 * kMiB, 4096), 0x55);
    crash_all();
    log_.clear();
  }
}

// Nobody ever wrote it: its copy is made at its first use, or the brick refuses that.
TEST_F(NoneTest, AnImageWhoseOnlyCopyCannotBeMadeIsAnError) {
  start();
  File f = create(1, "a.img", 0);
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  constexpr uint16_t kMakes = static_cast<uint16_t>(sim::FileOp::kOpen);
  world_->inject("host1", sim::FileFault{.times = 1u << 20, .operations = kMakes, .path_contains = "objects"});
  EXPECT_FALSE(write_now(f, 0, 0x22, 4096));
  EXPECT_FALSE(write_now(f, 0, 0x22, 4096));
  world_->clear_faults("host1");
  ASSERT_TRUE(until([&] { return write_now(f, 0, 0x22, 4096).is_ok(); }));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  EXPECT_EQ(mirror(f), "none");
}

// Its only copy is not there, so that nothing can be mirrored yet.
TEST_F(NoneTest, AMirrorThatIsWantedAgainBeginsOnceHoweverOftenTheLinkGoes) {
  File f = start_written();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  Pending written = write_held_up(f);
  world_->cut("host1", "shared1");
  fail_brick();
  ASSERT_TRUE(until([&] { return logged("local_copy_behind"); }));
  ASSERT_TRUE(set_at_node(f, "none"));
  heal_link(1);
  EXPECT_FALSE(wait(written));
  ASSERT_TRUE(await_mirror(f, "failed"));
  Status wanted = set_at_node(f, "sync");
  for (int i = 0; i < 30 && !wanted; ++i) {   // not before it is told that this copy counts after all
    world_->run_for(seconds(1));
    wanted = set_at_node(f, "sync");
  }
  ASSERT_TRUE(wanted) << wanted.to_string();
  ASSERT_TRUE(until([&] { return logged("mirror_waits"); }));
  log_.clear();
  for (int i = 0; i < 5; ++i) {
    lose_link(1);
    heal_link(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    world_->run_for(seconds(2));
  }
  EXPECT_FALSE(logged("mirror_waits")) << "another one waits beside it";
  world_->clear_faults("host1");
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  world_->run_for(seconds(5));
  EXPECT_EQ(mirror(f), "mirrored");
  EXPECT_EQ(verify(f), "");
}

}  // namespace
}  // namespace tidemark::fs
