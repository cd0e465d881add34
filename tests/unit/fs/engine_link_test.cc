// Links lost and found, at the moments where it matters.
#include "shared/net/network.h"
#include "shared/wire/connection.h"
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class LinkTest : public EngineTest {
 protected:
  uint16_t bit(sim::FileOp op) { return static_cast<uint16_t>(op); }
};

// A resync is at its last step when the link goes and comes back: what was written in between is not in it.
TEST_F(LinkTest, AnOutageWithinAResyncStartsItAnew) {
  options_.sync_latency = {milliseconds(1500), milliseconds(1800)};
  File f = start_written();
  lose_link(1);
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "resyncing"));
  world_->run_for(milliseconds(300));        // the regions are compared; both copies are being made durable
  ASSERT_EQ(mirror(f), "resyncing");
  lose_link(1);
  ASSERT_TRUE(write_now(f, 2 * kMiB, 0x33, kMiB));
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(open(2, "a.img"), 2 * kMiB, kMiB), 0x33);
  EXPECT_EQ(verify(f), "");
}

// The shared node took the write and its answer was lost; the own copy failed. Nobody may take the copies for level.
TEST_F(LinkTest, AFailedWriteOfUnknownOutcomeIsMadeEqualBeforeTheCopiesCountAsLevel) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  world_->cut("shared1", "host1");
  world_->inject("host1", sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects"});
  Pending failed = write(f, 0, 0x22, kMiB);
  world_->run_for(milliseconds(500));
  ASSERT_FALSE(failed->answer);
  lose_link(1);
  heal_link(1);
  EXPECT_TRUE(until([&] { return failed->answer.has_value(); }));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(verify(f), "");
}

TEST_F(LinkTest, BothCopiesRefusingAWriteAreMadeEqualAfterwards) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  for (const char* node : {"host1", "shared1"})
    world_->inject(node, sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects"});
  EXPECT_FALSE(write_now(f, 0, 0x22, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(verify(f), "");
}

// The link is back before the note that this host goes on alone is durable: the tenure is resumed the moment it is.
TEST_F(LinkTest, AResumeGoesOnAtOnceWhenTheNoteIsDurable) {
  options_.commit_latency = options_.network_latency = {std::chrono::microseconds(100), std::chrono::microseconds(100)};
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  for (int i = 0; i < 8; ++i) {
    world_->set_store_fault("host1", sim::StoreFault{.path_contains = "/drl", .delay = seconds(6) + milliseconds(i)});
    lose_link(1);
    Pending alone = write(f, 0, 0x22, 4096);
    heal_link(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    world_->run_for(milliseconds(200));
    ASSERT_FALSE(alone->answer) << "the note takes longer";
    ASSERT_TRUE(wait(alone));
    const sim::Duration noted = world_->elapsed();
    ASSERT_TRUE(await_mirror(f, "resyncing"));
    EXPECT_LE(world_->elapsed() - noted, milliseconds(1));
    world_->set_store_fault("host1", std::nullopt);
    ASSERT_TRUE(await_mirror(f, "mirrored"));
  }
}

// A reader waits for the shared node when the link goes, while its image is being handed over.
TEST_F(LinkTest, AReadThatIsParkedDoesNotKeepAHandOverWaitingForEver) {
  start();
  File theirs = create(2, "a.img", 64 * kMiB);
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(write_now(theirs, static_cast<uint64_t>(i) * kMiB, 0x11, kMiB));
  close(theirs);
  world_->set_latency("shared1", "host1", {milliseconds(100), milliseconds(120)});
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  close(f);
  f = open(1, "a.img");
  ASSERT_EQ(mirror(f), "filling");
  theirs = open(2, "a.img");
  log_.clear();
  Pending far, wanted = write(theirs, kMiB, 0x33, 4096);
  ASSERT_TRUE(until([&] {
    if (!far || far->answer) far = read(f, 63 * kMiB, kMiB);   // not filled yet: from the shared node
    return logged("recalled");
  }));
  ASSERT_FALSE(far->answer);
  lose_link(1);
  heal_link(1);
  EXPECT_TRUE(wait(far));
  EXPECT_EQ(byte_at(f, 63 * kMiB, kMiB), 0x11);
  ASSERT_TRUE(until([&] { return wanted->answer.has_value(); }));   // it may have waited too long; the next must not
  EXPECT_TRUE(write_now(theirs, kMiB, 0x33, 4096));
}

// Two overlapping writes wait for regions of another host's to be filled, the first for more of them: the second does
// not overtake it.
TEST_F(LinkTest, OverlappingWritesKeepTheirOrderWhileRegionsAreFilledForThem) {
  start();
  File theirs = create(2, "a.img", 32 * kMiB);
  for (uint64_t i = 0; i < 32; ++i) ASSERT_TRUE(write_now(theirs, i * kMiB, 0x11, kMiB));
  close(theirs);
  world_->set_latency("shared1", "host1", {milliseconds(30), milliseconds(60)});
  File f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  for (uint64_t at = 12; at < 32; at += 4) {
    if (mirror(f) != "filling") break;
    // Over a region's end, and the part before it.
    Pending first = write(f, at * kMiB - 8192, 0x33, 16384), second = write(f, at * kMiB - 8192, 0x44, 4096);
    Pending third;
    ASSERT_TRUE(until([&] {
      if (!third) third = write(f, at * kMiB + 4096, 0x55, 4096);
      return first->answer && second->answer && third->answer;
    }));
    EXPECT_EQ(byte_at(f, at * kMiB - 8192, 4096), 0x44) << at;
    EXPECT_EQ(byte_at(f, at * kMiB - 4096, 4096), 0x33) << at;
    EXPECT_EQ(byte_at(f, at * kMiB + 4096, 4096), 0x55) << at;
  }
}

TEST_F(LinkTest, ReadsNeverFallBackOnASharedCopyThatLacksWrites) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  lose_link(1);
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  world_->set_latency("shared1", "host1", {milliseconds(150), milliseconds(170)});
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "resyncing"));
  world_->inject(
      "host1", sim::FileFault{.times = 1000, .operations = bit(sim::FileOp::kRead), .path_contains = "objects"});
  EXPECT_NE(byte_at(f, 0, kMiB), 0x11) << "the shared copy's old bytes";
  world_->clear_faults("host1");
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x22);
}

TEST_F(LinkTest, ALocalFailureDuringAResyncDoesNotMakeTheStaleSharedCopyServe) {
  start();
  File f = create(1, "a.img", 32 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  lose_link(1);
  for (uint64_t i = 0; i < 32; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x22, kMiB));
  world_->set_latency("shared1", "host1", {milliseconds(150), milliseconds(170)});
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "resyncing"));
  world_->inject("host1", sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects"});
  ASSERT_TRUE(until([r = write(f, 0, 0x33, 4096)] { return r->answer.has_value(); }));   // it may fail
  EXPECT_EQ(byte_at(f, 31 * kMiB, kMiB), 0x22);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 31 * kMiB, kMiB), 0x22);
  EXPECT_EQ(verify(f), "");
}

// Grown without the shared node, then a crash: the size is the host's.
TEST_F(LinkTest, ASizeGrownAloneSurvivesACrash) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  world_->run_for(seconds(15));                 // its regions are clean again
  lose_link(1);
  ASSERT_TRUE(wait(resize(f, 8 * kMiB)));
  crash_host(1, sim::Crash::kKill);
  heal_link(1);
  start_host(1);
  f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 6 * kMiB, 0x22, 4096));
  EXPECT_EQ(mirror(f), "mirrored");
  Pending attr = getattr(f);
  ASSERT_TRUE(wait(attr));
  EXPECT_EQ(attr->attr.size, 8 * kMiB);
  EXPECT_EQ(byte_at(open(2, "a.img"), 6 * kMiB, 4096), 0x22);
  EXPECT_EQ(verify(f), "");
}

// Looking for holes is reading: not before what a crash left was reconciled.
TEST_F(LinkTest, HolesAreNotToldBeforeACrashIsReconciled) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  lose_link(1);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kKill);
  heal_link(1);
  start_host(1);
  // It takes its time: the copy cannot be read at the moment.
  world_->inject(
      "host1", sim::FileFault{.times = 1000, .operations = bit(sim::FileOp::kRead), .path_contains = "objects"});
  f = open(1, "a.img");
  Pending at = seek(f, 0, true);
  ASSERT_TRUE(wait(at)) << at->answer->to_string();
  EXPECT_EQ(at->number, 0u) << "the host's copy has data at 0";
  world_->clear_faults("host1");
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
}

TEST_F(LinkTest, ALocalSyncThatFailsAtAHandOverLeavesTheCopyMarked) {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  File theirs = open(2, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  world_->inject("host1", sim::FileFault{.operations = bit(sim::FileOp::kSync), .path_contains = "objects"});
  close(f);
  ASSERT_TRUE(write_now(theirs, 4 * kMiB, 0x22, 4096));
  close(theirs);
  world_->clear_faults("host1");
  crash_host(1, sim::Crash::kPowerLoss);
  start_host(1);
  f = open(1, "a.img");
  ASSERT_TRUE(write_now(f, 6 * kMiB, 0x33, 4096));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, kMiB), 0x11);
  EXPECT_EQ(verify(f), "");
}

// While the shared node hears that nothing was acknowledged alone, something is: others must not read what it replaced.
TEST_F(LinkTest, AWriteAcknowledgedAloneDuringAResumeIsNotReadOldElsewhere) {
  resync_rate_ = 4 * kMiB;                     // a region in a window, a window in a second
  for (int delay : {20, 120, 220, 320}) {      // of the link's return: before, during and after the questions
    SCOPED_TRACE(delay);
    start();
    File f = create(1, "a.img", 16 * kMiB);
    for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(write_now(f, i * kMiB, 0x11, kMiB));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(flush(f)));
    lose_link(1);
    ASSERT_TRUE(await_mirror(f, "local only"));
    world_->set_latency("shared1", "host1", {milliseconds(200), milliseconds(200)});
    heal_link(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    world_->run_for(milliseconds(delay));
    std::vector<Pending> writes;
    for (uint64_t i = 0; i < 16; ++i) writes.push_back(write(f, i * kMiB, 0x22, kMiB));
    for (const Pending& w : writes) ASSERT_TRUE(wait(w));
    File theirs = open(2, "a.img");
    for (int i = 0; i < 40; ++i) {
      const int byte = byte_at(theirs, 15 * kMiB, 4096);
      ASSERT_TRUE(byte == -2 || byte == 0x22) << byte;
      world_->run_for(milliseconds(100));
    }
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(until([&] { return byte_at(theirs, 15 * kMiB, 4096) == 0x22; }));
    EXPECT_EQ(verify(f), "");
    crash_all();
  }
}

// The answer to a resume brings a size that the own copy has not taken yet: its resize hangs, and the link goes
// meanwhile. While it takes it, what is acknowledged alone is not read old elsewhere.
TEST_F(LinkTest, AWriteAcknowledgedAloneWhileANewerSizeIsTakenIsNotReadOldElsewhere) {
  options_.sync_latency = {milliseconds(1200), milliseconds(1400)};
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  world_->inject("host1", sim::FileFault{
      .operations = bit(sim::FileOp::kSync), .path_contains = "objects", .hangs = true});
  Pending grown = resize(f, 16 * kMiB);
  Pending w = write(f, 0, 0x22, kMiB);         // behind it
  ASSERT_TRUE(until([&] { return world_->hung("host1") == 1; }));
  world_->run_for(milliseconds(100));
  lose_link(1);
  heal_link(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  world_->run_for(milliseconds(300));          // the size is being taken
  File theirs = open(2, "a.img");
  ASSERT_FALSE(grown->answer);
  world_->release_hung("host1");
  for (int i = 0; i < 60; ++i) {
    const bool acknowledged = w->answer.has_value();
    const int byte = byte_at(theirs, 0, kMiB);
    ASSERT_TRUE(byte == -2 || byte == 0x22 || !acknowledged) << byte << " in round " << i;
    world_->run_for(milliseconds(50));
  }
  EXPECT_TRUE(wait(w));
  EXPECT_TRUE(wait(grown));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(until([&] { return byte_at(theirs, 0, kMiB) == 0x22; }));
  EXPECT_EQ(verify(f), "");
}

// The link goes and comes back while that size is taken: the new session is told that the tenure stands, whatever the
// old one had answered.
TEST_F(LinkTest, ALinkLostWhileANewerSizeIsTakenIsResumedAnew) {
  File f = start_written();
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  world_->inject("host1", sim::FileFault{
      .times = 2, .operations = bit(sim::FileOp::kSync), .path_contains = "objects", .hangs = true});
  Pending grown = resize(f, 16 * kMiB);
  world_->run_for(milliseconds(300));          // the shared node has answered
  ASSERT_EQ(world_->hung("host1"), 1u);
  lose_link(1);
  heal_link(1);
  ASSERT_TRUE(until([&] { return world_->hung("host1") == 2; }, seconds(3)));
  lose_link(1);
  world_->set_latency("shared1", "host1", {milliseconds(100), milliseconds(100)});
  heal_link(1);
  ASSERT_TRUE(until([&] { return linked(1); }, seconds(3)));
  world_->run_for(milliseconds(50));           // what comes first of the new session's questions is on its way
  world_->release_hung("host1");
  EXPECT_TRUE(wait(grown));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  File theirs = open(2, "a.img");
  EXPECT_TRUE(until([&] { return byte_at(theirs, 0, kMiB) == 0x11; }));
  EXPECT_EQ(verify(f), "");
}

// The resync itself meets the fault: it is tried again, and the shared copy is level in the end.
TEST_F(LinkTest, AResyncWhoseCopyingIsRefusedOnceEndsLevel) {
  File f = start_written();
  lose_link(1);
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  world_->inject("shared1", sim::FileFault{.operations = bit(sim::FileOp::kWrite), .path_contains = "objects"});
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_TRUE(logged("resync_again"));
  EXPECT_EQ(shared_->status_json().find("\"outdated\":true"), std::string::npos);
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, kMiB), 0x22);
  EXPECT_EQ(verify(f), "");
}

// A sync fails there in the midst of a resync that follows upon another loss id: the resume knows that the copies differ,
// though its session began under the first one. The link need not be lost for that.
TEST_F(LinkTest, AResyncUnderAnotherLossIdThatIsRefusedIsResumedAsOne) {
  File f = start_written(), other = create(1, "b.img", kMiB);
  ASSERT_TRUE(write_now(other, 0, 0x11, kMiB));
  const sim::FileFault failing{.operations = bit(sim::FileOp::kSync), .path_contains = "objects"};
  world_->inject("shared1", failing);
  ASSERT_TRUE(wait(flush(other)));
  world_->inject("shared1", failing);
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));    // its answer tells the loss id
  log_.clear();
  ASSERT_TRUE(until([&] { return logged("shared_copy_refuses"); }));
  ASSERT_EQ(mirror(f), "local only");
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_FALSE(logged("session_ended")) << log_;
  EXPECT_EQ(shared_->status_json().find("\"outdated\":true"), std::string::npos);
  EXPECT_EQ(byte_at(open(2, "a.img"), 0, 4096), 0x22);
  EXPECT_EQ(verify(f), "");
}

// Attributes of an image that is held are answered from here.
TEST_F(LinkTest, AModeThatWasSetElsewhereWhileTheLinkWasDownIsSeenOnceItIsBack) {
  File f = start_written();
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  lose_link(1);
  SetAttr change;
  change.mask = wire::kSetMode;
  change.values.mode = 0640;
  Pending set = std::make_shared<Request>();
  engine(2).setattr(f.inode, change, [set](Result<wire::Attr> attr) { set->answer = attr.status(); });
  ASSERT_TRUE(wait(set));
  heal_link(1);
  ASSERT_TRUE(until([&] { return linked(1) && mirror(f) == "mirrored"; }));
  Pending seen = getattr(f);
  ASSERT_TRUE(wait(seen));
  EXPECT_EQ(seen->attr.mode & 07777, 0640u);
}

// Its read is under way when its time is over, and only then the link dies: it ends all the same.
TEST_F(LinkTest, APeekEndsWhereverItIsWhenItsTimeIsOver) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  cut_link(1);                                 // a second later the shared node holds others' reads back, for 5 s
  world_->run_for(milliseconds(1050));
  Pending peek = std::make_shared<Request>();
  peek->memory.resize(512);
  engine(2).peek(f.inode, 0, peek->memory, seconds(3), [peek](Result<size_t> n) { peek->answer = n.status(); }, 7);
  world_->run_for(milliseconds(2500));
  EXPECT_FALSE(peek->answer);
  cut_link(2);                                 // noticed 1.4 s later
  world_->run_for(milliseconds(1000));
  EXPECT_FALSE(peek->answer) << peek->answer->to_string();
  EXPECT_EQ(wait(peek, seconds(3)).sys_errno(), EINTR) << peek->answer.value_or(Status()).to_string();
}

// A write of another host's image is parked, and asks for the link again and again: no wait outlives its time.
TEST_F(LinkTest, WaitsForALinkThatStaysAwayDoNotPileUp) {
  File f = start_written();
  crash_shared(sim::Crash::kKill);
  crash_host(1, sim::Crash::kKill);
  start_host(1);
  std::optional<Result<HandleId>> opened;
  engine(1).open_image(f.inode, [&](Result<HandleId> handle) { opened = handle; });
  ASSERT_TRUE(until([&] { return opened.has_value(); }));
  ASSERT_TRUE(*opened) << opened->status().to_string();
  f.handle = **opened;
  Pending parked = write(f, 0, 0x22, 4096);
  world_->run_for(seconds(60));
  EXPECT_FALSE(parked->answer);
  EXPECT_LE(engine(1).waits_for_link(), 4u);
  world_->run_for(seconds(1000));
  EXPECT_LE(engine(1).waits_for_link(), 4u);
  start_shared();
  EXPECT_TRUE(until([&] { return parked->answer.has_value(); }));
  EXPECT_EQ(engine(1).waits_for_link(), 0u);
}

// A shared node that takes connections and answers nothing on them, or not yet to a Hello.
class GreetingTest : public EngineTest {
 protected:
  void replace_shared(bool alive, sim::Duration hello_after) {
    start();
    crash_shared(sim::Crash::kKill);
    sim::SimEnv& env = world_->start("shared1");
    auto listening = env.network().listen({.address = {"shared1", 7400}, .tls = {}, .roles_accepted = {net::Role::kHost}}, [this, &env, alive, hello_after](auto stream) {
      ++accepted_;
      links_.push_back(std::make_unique<wire::Connection>(env, std::move(stream), pool_));
      wire::Connection* link = links_.back().get();
      if (!alive) return;
      link->start({.on_request = [&env, link, hello_after](wire::Request request) {
                     env.after(hello_after, [link, type = request.type, id = request.id] {
                       link->respond_failure(type, id, Status(Code::kPermission, "late"));
                     });
                   },
                   .on_notify = {}, .on_close = {}});
    });
    ASSERT_TRUE(listening.is_ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    log_.clear();
  }
  ~GreetingTest() override {
    world_->crash("shared1", sim::Crash::kKill);
    links_.clear();
    listener_.reset();
  }

  int accepted_ = 0;
  std::shared_ptr<wire::PayloadPool> pool_ = wire::PayloadPool::make();   // shared with payloads in use
  std::vector<std::unique_ptr<wire::Connection>> links_;
  std::unique_ptr<net::Listener> listener_;
};

// The link dies between the handshake and the answer, which then is never sent again in time.
TEST_F(GreetingTest, AHelloThatIsNotHeardIsSaidAgainOnAnotherConnection) {
  replace_shared(false, {});
  if (HasFatalFailure()) return;
  ASSERT_TRUE(until([&] { return accepted_ >= 2; }, seconds(5)));   // one of each host
  const int first = accepted_;
  EXPECT_TRUE(until([&] { return accepted_ >= first + 2; }, seconds(8)));
  EXPECT_TRUE(logged("peer_silent")) << log_;
}

// It may take its time: older sessions' writes end first.
TEST_F(GreetingTest, ASharedNodeThatIsThereAndAnswersLateIsWaitedFor) {
  replace_shared(true, seconds(8));
  if (HasFatalFailure()) return;
  EXPECT_TRUE(until([&] { return logged("link_refused"); }, seconds(20)));
  EXPECT_NE(log_.find("late"), std::string::npos) << log_;
  EXPECT_FALSE(logged("peer_silent")) << log_;
}

}  // namespace
}  // namespace tidemark::fs
