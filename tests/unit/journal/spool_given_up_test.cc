// The spool is given up while much is on its way, or while nothing can be staged: nobody waits for it, and nothing grows.
#include <gtest/gtest.h>

#include "tests/repeat.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

// A guest on another host waits for the tenure meanwhile.
TEST_F(LimitTest, AHandoverDoesNotWaitForWhatIsSentWhileTheSpoolIsGivenUp) {
  for (const bool before : {false, true}) {
    SCOPED_TRACE(before ? "asked before" : "asked afterwards");
    if (before) crash(sim::Crash::kKill);
    open_journal();
    reconcile_all();
    run_load(50, 8);
    wait_shipped();
    replica_->hold_answers = true;
    run_load(50, 8);
    ASSERT_TRUE(settle([&] { return !replica_->held.empty(); }));
    Status staged(Code::kBusy, "not yet");
    auto hand_over = [&] {
      Point point = journal_->cut(Journal::CutReason::kHandover);
      journal_->when_staged(point.batch, [&](Status s) { staged = std::move(s); });
    };
    run_load(20, 8);
    copy_.hold_reads = before;                // it is staged for long
    if (before) hand_over();
    resync_all();
    if (!before) hand_over();
    EXPECT_TRUE(settle([&] { return staged.code() == Code::kUnavailable; }, 2)) << staged.to_string();
    copy_.open_gate();
    replica_->release_answers();
    ASSERT_TRUE(settle([&] { return degraded(); }));
    expect_level();
  }
}

// A batch of three parts, of which two are on their way.
class LargeBatchTest : public LimitTest {
 protected:
  void begin() {
    options_.settings.limit_bytes = 1ull << 30;
    add_image(9, 140u << 20);
    open_journal();
    Bytes noise(140u << 20);
    world_.random().fill(noise);
    bool written = false;
    submit({image_id(9), RecordKind::kWrite, {0, noise.size()}, 0, std::move(noise)}, [&] { written = true; });
    ASSERT_TRUE(settle([&] { return written; }));
    replica_->hold_answers = true;
    journal_->cut(Journal::CutReason::kNamed, "large");
    ASSERT_TRUE(settle([&] { return replica_->held.size() == 2; }));
  }
};

TEST_F(LargeBatchTest, TM_UNSANITIZED(NoFurtherPartIsSentOnceShippingIsPaused)) {
  ASSERT_NO_FATAL_FAILURE(begin());
  journal_->pause_shipping(true);
  replica_->release_answers();
  world_.run_for(std::chrono::seconds(10));
  EXPECT_EQ(replica_->puts, 2u);
  journal_->pause_shipping(false);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->conflicts, 0u);
}

TEST_F(LargeBatchTest, TM_UNSANITIZED(NoFurtherPartIsSentOnceTheSpoolIsGivenUp)) {
  ASSERT_NO_FATAL_FAILURE(begin());
  resync({});
  replica_->release_answers();
  ASSERT_TRUE(settle([&] { return degraded(); }));
  EXPECT_EQ(replica_->puts, 2u);
}

// None of them is staged: shipping is paused, or an image waits for its owner after a crash.
TEST_F(LimitTest, TM_UNSANITIZED(EventsThatWaitToBeStagedAreBounded)) {
  for (const bool crashed : {false, true}) {
    SCOPED_TRACE(crashed ? "reconciling" : "paused");
    open_journal();
    run_load(20, 8);
    if (!crashed) wait_shipped();
    if (crashed) {
      crash(sim::Crash::kKill);
      open_journal();
      ASSERT_FALSE(journal_->dirty_after_crash().empty());
    }
    journal_->pause_shipping(!crashed);
    wire::Mark mark;
    mark.kind = wire::MarkKind::kOpenWrite;
    mark.origin = options_.source;
    mark.node.image = image_id(0);
    uint64_t most = 0;
    for (int i = 0; i < 350'000; ++i) {
      mark.number = EventNumber(static_cast<uint64_t>(i + 1));
      journal_->mark(mark);
      if (i % 2000 != 0) continue;
      most = std::max(most, journal_->usage().records_unstaged);
      world_.run_for(std::chrono::milliseconds(100));
    }
    EXPECT_LT(most, limits::kEventsUnstagedMax + 50'000);
    EXPECT_TRUE(degraded());
    if (crashed) reconcile_all();
    journal_->pause_shipping(false);
    run_load(20, 8);
    expect_level();
    crash(sim::Crash::kKill);
  }
}

class UnusedSinceTheStartTest : public LimitTest {
 protected:
  // As a daemon that starts: no guest has opened an image yet.
  void open_unused() {
    env_ = copy_.env = &world_.start("host1");
    auto opened = Journal::open(*env_, options_, copy_);
    ASSERT_TRUE(opened) << opened.status().to_string();
    journal_ = std::move(*opened);
    ++generation_of_run_;
  }
  void begin() {
    open_journal();
    reconcile_all();
    run_load(50, 8);
    wait_shipped();
    for (const auto& [image, parent] : replica_->followed) ASSERT_EQ(parent.source, "host2") << image.to_string();
  }
  // Begun, and not ended: the first piece is there.
  void resync_to_another() {
    empty_replica();
    replica_->pieces = 0;
    replica_->interfere = [this](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
      if (r.method == "PUT" && replica_->pieces > 0) return net::HttpResponse::json(503, "{}");
      return std::nullopt;
    };
    reconcile_all();
    resync_all();
    ASSERT_TRUE(settle([&] { return replica_->pieces > 0; }, 120)) << journal_->usage().ship_error;
    ASSERT_TRUE(replica_->followed.empty());
  }
  void expect_nothing_waited_for() {
    reconcile_all();
    replica_back();
    ASSERT_TRUE(settle([&] { return replica_->followed.size() == copy_.images.size(); }, 120)) << journal_->usage().ship_error;
    for (const auto& [image, parent] : replica_->followed) {
      EXPECT_EQ(parent.last, WriteSequence()) << image.to_string() << " waits for " << parent.source;
    }
  }
};

// Another host wrote it before this one, and of this one's own batches some are staged: nobody uses it since the start.
TEST_F(UnusedSinceTheStartTest, AllOfAnImageThatWasAnothersIsLackedThoughNobodyHasUsedItSinceTheStart) {
  options_.settings.limit_age = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  submit({image_id(0), RecordKind::kWrite, {0, kG}, 0, Bytes(kG, 0x5a)});
  ASSERT_TRUE(settle([&] { return journal_->usage().spool_batches > 0; }));
  clean();
  close_cleanly();
  open_unused();
  ASSERT_TRUE(journal_->dirty_after_crash().empty());
  ASSERT_FALSE(degraded());
  ASSERT_TRUE(settle([&] { return degraded(); }, 120));
  EXPECT_GE(journal_->usage().resync_left_bytes, sizes_[image_id(0)]) << "the replica takes the resync for all of it";
}

// The host that wrote them before may be gone: what it had shipped went with the other replica.
TEST_F(UnusedSinceTheStartTest, AnotherReplicaWaitsForNothingThatTheirTenuresFollowed) {
  for (const bool dirty : {false, true}) {
    SCOPED_TRACE(dirty ? "dirty" : "not dirty");
    begin();
    if (!dirty) clean();
    crash(sim::Crash::kKill);
    open_unused();
    ASSERT_EQ(journal_->dirty_after_crash().empty(), !dirty);
    start_shipping();
    resync_to_another();
    crash(sim::Crash::kKill);
    open_unused();
    start_shipping();
    expect_nothing_waited_for();
    crash(sim::Crash::kKill);
  }
}

// A daemon that goes on tells the tenure again; the next one, where nothing was written, follows the same writes.
TEST_F(UnusedSinceTheStartTest, NorWhereItIsToldAgain) {
  enum Told { kInTheSameRun, kAfterAKill, kOfTheNextTenure, kTold };
  for (int told = 0; told < kTold; ++told) {
    SCOPED_TRACE("case " + std::to_string(told));
    begin();
    resync_to_another();
    if (told != kInTheSameRun) {
      crash(sim::Crash::kKill);
      open_journal();
    }
    const Epoch epoch(told == kOfTheNextTenure ? 4 : 3);
    for (const auto& [image, s] : slots_) journal_->set_tenure(s, epoch, parent_);
    expect_nothing_waited_for();
    for (const auto& [image, s] : slots_) EXPECT_TRUE(journal_->followed(image)) << "it stays on record";
    crash(sim::Crash::kKill);
  }
}

TEST_F(UnusedSinceTheStartTest, WhatFollowsAnotherTenureWaitsForIt) {
  begin();
  resync_to_another();
  const wire::TenureParent later{Epoch(3), "host3", {Incarnation(1), Counter(9)}, 1};
  for (const auto& [image, s] : slots_) journal_->set_tenure(s, Epoch(4), later);
  replica_back();
  ASSERT_TRUE(settle([&] { return replica_->followed.size() == copy_.images.size(); }, 120)) << journal_->usage().ship_error;
  for (const auto& [image, parent] : replica_->followed) EXPECT_EQ(parent.last, later.last) << image.to_string();
}

// An operator's word for a full resync is for the replica as it is then: one that comes in its place, or goes back, while
// pieces are on their way lacks those that the other one took.
TEST_F(UnusedSinceTheStartTest, ASecondReplicaInTheMidstOfAFullResyncIsNotTakenForTheFirst) {
  enum Then { kAnotherStore, kGoneBack, kThen };
  for (int then = 0; then < kThen; ++then) {
    for (const bool killed : {true, false}) {
      SCOPED_TRACE((then == kAnotherStore ? "another store" : "gone back") + std::string(killed ? ", killed" : ", given up"));
      options_.settings.limit_age = std::chrono::seconds(60);
      begin();
      clean();
      resync_to_another();
      world_.run_for(std::chrono::seconds(1));
      if (killed) {
        crash(sim::Crash::kKill);
        open_unused();
        start_shipping();
      } else {
        ASSERT_TRUE(settle([&] { return degraded(); }, 200)) << journal_->usage().ship_error;
      }
      if (then == kAnotherStore) empty_replica();
      else replica_->expected = 1, replica_->last_digest = {}, replica_->aside.clear(), replica_->known.clear();
      replica_back();
      EXPECT_TRUE(settle([&] { return journal_->usage().needs_full_resync; }, 60));
      EXPECT_TRUE(replica_->points.empty());
      resync_all();
      ASSERT_TRUE(settle([&] { return normal(); }, 600)) << journal_->usage().ship_error;
      wait_shipped();
      for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
      crash(sim::Crash::kKill);
    }
  }
}

// Its creation is at the replica, and the answer was lost; it is removed, and the events are folded, also after a start.
TEST_F(LimitTest, AFileWhoseCreationTheReplicaMayHaveIsSaidToBeGone) {
  options_.settings.limit_age = std::chrono::seconds(20);
  for (const int starts : {0, 1, 2}) {
    SCOPED_TRACE(std::to_string(starts) + " starts");
    open_journal();
    reconcile_all();
    wait_shipped();
    replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
      if (r.method == "PUT") replica_->take_silently(r);
      return net::HttpResponse::json(503, R"({"error":"answer lost"})");
    };
    wire::Mark mark;
    mark.kind = wire::MarkKind::kCreate;
    mark.number = EventNumber(static_cast<uint64_t>(starts + 1) * 100'000);
    mark.origin = options_.source;
    mark.node.inode = InodeNumber(mark.number.value);
    mark.node.parent = InodeNumber(1);
    mark.node.kind = wire::NodeKind::kFifo;
    mark.name = "fifo";
    journal_->mark(mark);
    ASSERT_TRUE(settle([&] { return degraded(); }, 120));
    replica_away();
    mark.kind = wire::MarkKind::kUnlink;
    mark.number = mark.number.next();
    mark.old_parent = InodeNumber(1);
    mark.old_name = std::exchange(mark.name, {});
    mark.replaced_inode = mark.node.inode;
    const EventNumber removed = mark.number;
    journal_->mark(mark);
    for (int i = 0; i < starts; ++i) {
      world_.run_for(std::chrono::seconds(1));
      crash(sim::Crash::kPowerLoss);
      open_journal();
      reconcile_all();
    }
    mark = {};
    mark.kind = wire::MarkKind::kSetAttr;
    mark.origin = options_.source;
    mark.node.inode = InodeNumber(7);
    for (uint32_t i = 0; i < limits::kEventsFoldedAt; ++i) {
      mark.number = EventNumber(removed.value + 1 + i);
      journal_->mark(mark);
    }
    EXPECT_LT(journal_->usage().records_unstaged, 100u) << "they were folded";
    replica_back();
    expect_level();
    auto is_it = [&](const wire::Mark& m) { return m.number == removed; };
    EXPECT_TRUE(std::any_of(replica_->marks.begin(), replica_->marks.end(), is_it));
    crash(sim::Crash::kKill);
  }
}

}  // namespace
}  // namespace tidemark::journal
