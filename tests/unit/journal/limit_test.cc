// The journal's limit, the resync after it, and a replica that was replaced: whatever is given up on the way, each point
// that the replica shows is exact, and in the end it has everything.
#include <gtest/gtest.h>

#include "tests/repeat.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

TEST_F(LimitTest, AtTheLimitOfBytesPointsAreGivenUpAndAResyncEndsInOne) {
  open_journal();
  run_load(100, 8);
  wait_shipped();
  replica_away();
  size_t shown = replica_->points.size();
  Point named = journal_->cut(Journal::CutReason::kNamed, "keep me");
  Status waited;
  journal_->when_shipped(named.batch, [&](Result<std::string> r) { waited = r.status(); });
  load_until([&] { return degraded(); });
  EXPECT_EQ(waited.code(), Code::kCancelled) << "who waits for a point hears that it was given up";
  EXPECT_LT(largest_spool_, 2u << 20);
  ASSERT_TRUE(settle([&] { return spool_files() == 0; })) << "room is made";
  Usage u = journal_->usage();
  EXPECT_GT(u.points_given_up, 0u);
  EXPECT_EQ(u.names_given_up, std::vector<std::string>{"keep me"});
  EXPECT_GT(u.resync_left_bytes, 0u);
  EXPECT_NE(u.degraded_why.find("limit_bytes"), std::string::npos) << u.degraded_why;

  // Whatever is written now costs no room, and no cut is made.
  for (int i = 0; i < 10; ++i) run_load(200, 16);
  EXPECT_EQ(spool_files(), 0u);
  EXPECT_EQ(journal_->usage().records_unstaged, 0u);
  Point lost = journal_->cut(Journal::CutReason::kNamed, "too late");
  journal_->when_shipped(lost.batch, [&](Result<std::string> r) { waited = r.status(); });
  EXPECT_EQ(waited.code(), Code::kCancelled);
  EXPECT_EQ(lost.refused.code(), Code::kCancelled) << "said at once, also where nobody waits";
  EXPECT_TRUE(named.refused.is_ok());
  EXPECT_EQ(journal_->usage().names_given_up.back(), "too late");
  EXPECT_EQ(replica_->points.size(), shown);

  replica_back();
  for (int i = 0; i < 20 && !normal(); ++i) run_load(60, 8);
  expect_level();
  EXPECT_GT(replica_->pieces, 1u);
  EXPECT_EQ(replica_->points[shown].kind, BatchKind::kResync) << "the first point shown is the resync's end";
}

TEST_F(LimitTest, WhileTheReplicaAnswersABatchLargerThanASmallLimitIsAPointLikeAnyOther) {
  options_.settings.limit_bytes = 64u << 10;
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  for (int i = 0; i < 10; ++i) run_load(100, 8);
  Status waited(Code::kUnavailable, "nobody answered");
  Point point = journal_->cut(Journal::CutReason::kNamed, "large");
  journal_->when_shipped(point.batch, [&](Result<std::string> r) { waited = r.status(); });
  wait_shipped();
  EXPECT_TRUE(waited) << waited.to_string();
  EXPECT_TRUE(normal());
  EXPECT_EQ(journal_->usage().points_given_up, 0u);
  expect_points_right();
}

TEST_F(LimitTest, AtTheLimitOfAgeTheSameHappens) {
  options_.settings.limit_bytes = 1ull << 30;
  options_.settings.limit_age = std::chrono::seconds(30);
  open_journal();
  run_load(100, 8);
  wait_shipped();
  replica_away();
  run_load(100, 8);
  world_.run_for(std::chrono::seconds(20));
  EXPECT_FALSE(degraded());
  EXPECT_GT(journal_->usage().oldest_unshipped_ns, 15'000'000'000);
  world_.run_for(std::chrono::seconds(15));
  EXPECT_TRUE(degraded());
  EXPECT_NE(journal_->usage().degraded_why.find("limit_age"), std::string::npos);
  replica_back();
  expect_level();
}

TEST_F(LimitTest, TM_UNSANITIZED(TheTimeToTheLimitIsForetold)) {
  options_.settings.limit_bytes = 64u << 20;
  open_journal();
  replica_away();
  EXPECT_EQ(journal_->usage().full_in_ns, -1);
  for (int i = 0; i < 200; ++i) {
    run_load(30, 8);
    world_.run_for(std::chrono::milliseconds(100));
  }
  Usage u = journal_->usage();
  ASSERT_GT(u.full_in_ns, 0);
  double rate = static_cast<double>(u.spool_bytes) / 20;
  double left = static_cast<double>(u.limit_bytes - u.spool_bytes) / rate;
  EXPECT_NEAR(static_cast<double>(u.full_in_ns) / 1e9, left, left / 2);
}

TEST_F(LimitTest, EventsOfGivenUpBatchesStillReachTheReplica) {
  open_journal();
  run_load(20, 8);
  wait_shipped();
  replica_away();
  wire::Mark mark;
  mark.kind = wire::MarkKind::kCreate;
  mark.number = EventNumber(77);
  mark.name = "staged.img";
  journal_->mark(mark);
  load_until([&] { return degraded(); });
  mark.number = EventNumber(78);
  mark.name = "later.img";
  journal_->mark(mark);
  world_.run_for(std::chrono::seconds(1));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  replica_back();
  expect_level();
  for (uint64_t number : {77, 78}) {
    EXPECT_EQ(std::count_if(replica_->marks.begin(), replica_->marks.end(), [&](const auto& m) { return m.number.value == number; }), 1)
        << number;
  }
}

TEST_F(LimitTest, TM_UNSANITIZED(EventsAreFoldedToABoundWhileDegradedAndTheNamesAreRightAfterwards)) {
  open_journal();
  run_load(20, 8);
  wait_shipped();
  replica_away();
  load_until([&] { return degraded(); });
  // Each round makes an image, gives it the one name that is used, and removes the one that had it.
  uint64_t event = 100, largest = 0;
  auto mark = [&](wire::MarkKind kind, uint64_t inode) {
    wire::Mark m;
    m.kind = kind;
    m.number = EventNumber(++event);
    m.origin = "host1";
    m.node.inode = InodeNumber(inode);
    m.node.parent = InodeNumber(1);
    std::array<uint8_t, 16> bytes{};
    store_be64(bytes.data() + 8, inode);
    m.node.image = Uuid::from_random(bytes);
    return m;
  };
  constexpr uint64_t kRounds = 35'000;
  for (uint64_t inode = 10; inode < 10 + kRounds; ++inode) {
    wire::Mark create = mark(wire::MarkKind::kCreate, inode);
    create.name = "new" + std::to_string(inode);
    journal_->mark(create);
    wire::Mark rename = mark(wire::MarkKind::kRename, inode);
    rename.old_parent = InodeNumber(1);
    rename.old_name = create.name;
    rename.name = "disk.img";
    rename.replaced = inode == 10 ? ImageId() : mark(wire::MarkKind::kUnlink, inode - 1).node.image;
    rename.replaced_inode = InodeNumber(inode == 10 ? 0 : inode - 1);
    journal_->mark(rename);
    if (!rename.replaced.is_nil()) journal_->forget(rename.replaced);
    largest = std::max(largest, journal_->usage().records_unstaged);
    if (inode % 1000 == 0) world_.run_for(std::chrono::milliseconds(200));
  }
  EXPECT_LE(largest, 2 * limits::kEventsFoldedAt) << "of " << 2 * kRounds;
  world_.run_for(std::chrono::seconds(1));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  EXPECT_LE(journal_->usage().records_unstaged, 2 * limits::kEventsFoldedAt) << "they do not come back";
  size_t told = replica_->marks.size();
  replica_back();
  expect_level();
  EXPECT_LE(replica_->marks.size() - told, 2 * limits::kEventsFoldedAt);
  std::map<std::string, std::pair<EventNumber, uint64_t>> names;    // the last writer's
  auto set = [&](const std::string& name, EventNumber number, uint64_t inode) {
    auto& known = names[name];
    if (number >= known.first) known = {number, inode};
  };
  EventNumber session;
  for (const wire::Mark& m : replica_->marks) {
    if (m.kind == wire::MarkKind::kSession) session = std::max(session, m.node.event);
    if (m.kind == wire::MarkKind::kRename) set(m.old_name, m.number, 0);
    if (m.kind == wire::MarkKind::kRename || m.kind == wire::MarkKind::kCreate) set(m.name, m.number, m.node.inode.value);
  }
  EXPECT_EQ(names["disk.img"].second, 9 + kRounds);
  for (const auto& [name, last] : names) EXPECT_EQ(last.second != 0, name == "disk.img") << name;
  EXPECT_GT(session.value, 100u) << "what will not be told is said to be so";
}

TEST_F(LimitTest, AReplicaThatTookABatchAndCouldNotSaySoIsTakenAtItsWord) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  // It applies two batches more, and every answer is lost.
  uint64_t until = replica_->expected + 2;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method == "PUT" && replica_->expected < until) replica_->take_silently(r);
    return net::HttpResponse::json(503, R"({"error":"answer lost"})");
  };
  load_until([&] { return degraded(); });
  EXPECT_EQ(replica_->expected, until - 1) << "the first of them is sent again and again";
  replica_back();
  run_load(50, 8);
  expect_level();
}

// The point that was to be the first one after a crash is given up as any other, before anything is reconciled.
TEST_F(LimitTest, ANameThatWaitsForARecoveryIsGivenUpWithTheOtherPoints) {
  open_journal();
  run_load(100, 8);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  ASSERT_FALSE(journal_->dirty_after_crash().empty());
  const Point held = journal_->cut(Journal::CutReason::kNamed, "held");
  EXPECT_EQ(held.name, "held");
  std::optional<Status> waited;
  journal_->when_shipped(held.batch, [&](Result<std::string> r) { waited = r.status(); });
  resync_all();
  ASSERT_TRUE(settle([&] { return degraded() || journal_->usage().shipping == Shipping::kResyncing; }));
  ASSERT_TRUE(waited.has_value()) << "it waits for a point that is not made";
  EXPECT_EQ(waited->code(), Code::kCancelled) << waited->to_string();
  EXPECT_EQ(journal_->usage().names_given_up, std::vector<std::string>{"held"});
  reconcile_all();
  expect_level();
  for (const auto& point : replica_->points) EXPECT_NE(point.name, "held");
}

TEST_F(LimitTest, NoNumberIsGivenOutAgainAfterACleanStopWhileDegraded) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  uint64_t until = replica_->expected + 2;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method == "PUT" && replica_->expected < until) replica_->take_silently(r);
    return net::HttpResponse::json(503, R"({"error":"answer lost"})");
  };
  load_until([&] { return degraded(); });
  // Once more: what the first opening took over is known to the second.
  for (int i = 0; i < 2; ++i) {
    for (const auto& [image, s] : slots_) journal_->note_durable(s, journal_->last_finished());
    close_cleanly();
    open_journal();
    EXPECT_TRUE(journal_->dirty_after_crash().empty());
    reconcile_all();
    EXPECT_TRUE(degraded());
  }
  replica_back();
  run_load(50, 8);
  expect_level();
}

TEST_F(LimitTest, TheLimitAgainInTheMidstOfAResync) {
  options_.settings.limit_age = std::chrono::seconds(20);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  load_until([&] { return degraded(); });
  uint64_t taken = 0;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method == "PUT" && taken++ >= 2) return net::HttpResponse::json(503, "{}");
    return std::nullopt;
  };
  ASSERT_TRUE(settle([&] { return taken > 2; }));
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return degraded(); }, 120));
  run_load(50, 8);
  replica_back();
  expect_level();
}

TEST_F(LimitTest, AReplacedReplicaIsRefusedUntilAnOperatorSaysSoAndThenBroughtLevelUnderLoad) {
  open_journal();
  run_load(200, 8);
  wait_shipped();
  expect_points_right();
  empty_replica();
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return journal_->usage().needs_full_resync; }, 60));
  EXPECT_TRUE(journal_->usage().replica_empty);
  EXPECT_NE(journal_->usage().ship_error.find("resync-replica"), std::string::npos) << journal_->usage().ship_error;
  world_.run_for(std::chrono::seconds(40));
  EXPECT_TRUE(replica_->points.empty()) << "never taken silently";

  resync_all();
  for (int i = 0; i < 10; ++i) run_load(40, 8);
  ASSERT_TRUE(settle([&] { return !replica_->points.empty(); }, 120)) << journal_->usage().ship_error;
  expect_level();
  EXPECT_FALSE(journal_->usage().needs_full_resync);
}

// A backup of it was put back in which nothing of this stream is yet: others' streams may be.
TEST_F(LimitTest, AReplicaThatWentBackToBeforeThisStreamIsNotTakenForAnEmptyOne) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  const Uuid store = replica_->store;
  empty_replica();
  replica_->store = store;
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return journal_->usage().needs_full_resync; }, 60));
  EXPECT_FALSE(journal_->usage().replica_empty);
}

TEST_F(LimitTest, AFullResyncThatWasAskedForGoesOnAfterACrash) {
  open_journal();
  run_load(200, 8);
  wait_shipped();
  replica_away();
  empty_replica();
  resync_all();
  ASSERT_TRUE(settle([&] { return degraded(); }));
  world_.run_for(std::chrono::seconds(1));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  EXPECT_TRUE(degraded());
  replica_back();
  run_load(50, 8);
  expect_level();
}

TEST_F(LimitTest, AnImageThatWasRemovedMeanwhileHoldsNothingUp) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  load_until([&] { return degraded(); });
  ImageId gone = image_id(2);
  journal_->detach(slots_.at(gone));
  copy_.images.erase(gone);
  replica_back();
  ASSERT_TRUE(settle([&] { return normal(); }, 120)) << journal_->usage().ship_error;
  wait_shipped();
  for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes);
}

// What the guest was told has failed is read and sent, all of it: more than a batch may have.
TEST_F(LimitTest, APunchOfAHugeImageThatFailedIsGivenUpForRegions) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  const Slot huge = journal_->attach(image_id(9), uint64_t{1} << 44);
  journal_->set_tenure(huge, Epoch(3), {});
  bool dirty = false;
  journal_->mark_dirty(huge, {0, uint64_t{1} << 44}, [&](const Status& status) { dirty = status.is_ok(); });
  ASSERT_TRUE(settle([&] { return dirty; }));
  journal_->failed(journal_->begin(huge, RecordKind::kDiscard, {0, uint64_t{1} << 44}), CoordinatorSequence(0));
  EXPECT_FALSE(degraded());
  ASSERT_TRUE(settle([&] { return degraded(); }));
  EXPECT_GE(journal_->usage().resync_left_bytes, uint64_t{1} << 44);
  journal_->detach(huge);
  replica_back();
  expect_level();
}

TEST_F(LimitTest, TheEndOfAResyncWaitsForAWriteBegunBefore) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  parent_ = {};             // no image is lacked whole
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  // All that is lacked is of an image that nobody knows; a write begun while degraded is not answered yet.
  resync({{image_id(9), {0, kG}}});
  ASSERT_TRUE(settle([&] { return degraded(); }));
  ImageId written = image_id(0);
  Bytes data(kG, 9);
  Ticket ticket = journal_->begin(slot(written), RecordKind::kWrite, {0, kG});
  history_[journal_->incarnation().value].ops[ticket.sequence.counter.value] = {written, RecordKind::kWrite, {0, kG}, 0, data};
  replica_back();
  world_.run_for(std::chrono::seconds(30));
  EXPECT_FALSE(normal()) << "the resync has ended without it";
  apply_op(copy_.images, written, RecordKind::kWrite, {0, kG}, data);
  journal_->finish(ticket, CoordinatorSequence(ticket.sequence.counter.value), 1);
  expect_level();
}

TEST_F(LimitTest, ATenureThatFollowsAnotherAsTheResyncEndsIsSentWhole) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  run_load(50, 8);
  resync({});
  ASSERT_TRUE(settle([&] { return degraded(); }));
  replica_back();
  // The resync's last batch is cut and not staged yet.
  ASSERT_TRUE(settle([&] { return journal_->usage().resync_left_bytes == 0 && journal_->usage().closed_batches > 0; }));
  BatchNumber piece = journal_->usage().newest_closed;
  ASSERT_TRUE(settle([&] { return journal_->usage().newest_closed > piece; }));
  ASSERT_EQ(journal_->usage().shipping, Shipping::kResyncing);
  ImageId image = image_id(1);
  history_[journal_->incarnation().value].base = {};
  for (uint8_t& b : copy_.images[image]) b = 0x42;    // by that other host
  journal_->set_tenure(slot(image), Epoch(5), {Epoch(4), "host2", {Incarnation(1), Counter(9)}, 1});
  ASSERT_TRUE(settle([&] { return normal(); }, 120)) << journal_->usage().ship_error;
  wait_shipped();
  EXPECT_EQ(replica_->images[image], copy_.images[image]);
}

TEST_F(LimitTest, StagingGoesOnWhenTheDiskOfTheSpoolHasRoomAgain) {
  options_.settings.limit_bytes = 64u << 20;
  open_journal();
  run_load(50, 8);
  wait_shipped();
  world_.set_disk_bytes("host1", 0);
  world_.run_for(std::chrono::seconds(2));
  ASSERT_EQ(journal_->usage().limit_bytes, 0u);
  Point point = journal_->cut(Journal::CutReason::kNamed, "no room");
  world_.run_for(std::chrono::seconds(2));
  world_.set_disk_bytes("host1", 1ull << 40);
  ASSERT_TRUE(settle([&] { return journal_->usage().newest_durable >= point.batch; }));
}

// What is handed to a worker comes back late.
class SlowWorkersTest : public LimitTest {
 protected:
  static constexpr sim::DurationRange kLate{std::chrono::milliseconds(20), std::chrono::milliseconds(20)};
  SlowWorkersTest() : LimitTest({.offload_latency = kLate}) {}
};

TEST_F(SlowWorkersTest, ABatchWhoseRecordsAreWithAWorkerIsNotGivenUpBeforeTheyAreBack) {
  options_.settings.limit_bytes = 64u << 10;
  options_.settings.cut_bytes = 1ull << 40;
  options_.settings.cut_interval = std::chrono::seconds(1);
  open_journal();
  run_load(100, 8);
  wait_shipped();
  // A batch is on its way that fills the spool: the next cut waits for it.
  replica_->hold_answers = true;
  run_load(200, 8);
  journal_->cut(Journal::CutReason::kNamed, "on its way");
  ASSERT_TRUE(settle([&] { return !replica_->held.empty() && journal_->usage().closed_batches == 0; }));
  ASSERT_GE(journal_->usage().spool_bytes, options_.settings.limit_bytes);
  world_.run_for(std::chrono::milliseconds(1100));
  // So many writes to a new image that the open batch's records go to a worker.
  ImageId fresh = image_id(9);
  add_image(9, 150 * kG);
  for (uint8_t& b : copy_.images[fresh]) b = static_cast<uint8_t>(world_.random().next());
  history_[journal_->incarnation().value].base[fresh] = copy_.images[fresh];
  Slot s = slots_[fresh] = journal_->attach(fresh, 150 * kG);
  for (uint64_t i = 0; i < options_.open_records_max; ++i) {
    Ticket ticket = journal_->begin(s, RecordKind::kWrite, {i % 150 * kG, kG});
    journal_->finish(ticket, CoordinatorSequence(ticket.sequence.counter.value), 1);
  }
  ASSERT_LT(journal_->usage().records_unstaged, options_.open_records_max / 2) << "they are with the worker";
  // The spool is given up meanwhile; when the answer comes, that batch is closed first.
  resync({});
  world_.run_for(std::chrono::milliseconds(1));
  replica_->release_answers();
  ASSERT_TRUE(settle([&] { return degraded(); }));
  EXPECT_EQ(journal_->usage().records_unstaged, 0u);
  ASSERT_TRUE(settle([&] { return normal() || !journal_->usage().ship_error.empty(); }, 600));
  EXPECT_EQ(journal_->usage().ship_error, "") << "what is sent was read, without a second try";
  expect_level();
}

// Crashes anywhere between the limit and the resync's end, each from a seed.
class LimitCrashTest : public LimitTest, public testing::WithParamInterface<int> {
 protected:
  LimitCrashTest() : LimitTest({.seed = static_cast<uint64_t>(GetParam()) + 100}) {}
};

TEST_P(LimitCrashTest, GoesOnWhereItStood) {
  auto& rng = world_.random();
  open_journal();
  run_load(100, 8);
  wait_shipped();
  for (int round = 0; round < 3; ++round) {
    replica_away();
    // Or still in the midst of the last round's resync.
    load_until([&] { return journal_->usage().shipping != Shipping::kNormal; });
    run_load(static_cast<int>(rng.below(100)), 8);
    if (rng.coin()) replica_back();
    if (rng.coin()) run_load(static_cast<int>(rng.below(100)), 8);
    world_.run_for(std::chrono::milliseconds(rng.below(1500)));
    crash(rng.coin() ? sim::Crash::kPowerLoss : sim::Crash::kKill);
    open_journal();
    reconcile_all();
    replica_back();
    if (rng.coin()) run_load(60, 8);
    if (rng.chance(1, 3)) continue;     // the next round begins in the midst of the resync
    expect_level();
  }
  expect_level();
}

INSTANTIATE_TEST_SUITE_P(Seeds, LimitCrashTest, testing::Range(0, repeat(24, 5)));

}  // namespace
}  // namespace tidemark::journal
