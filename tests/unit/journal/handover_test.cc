// Handovers: a cut that is staged before the tenure is given away, and the regions that are clean after it.
#include <gtest/gtest.h>

#include <algorithm>

#include "journal/records.h"
#include "shared/base/limits.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {
namespace {

// What a handover relies on: from the answer on, a power cut changes neither the batch nor what it holds.
TEST_F(JournalTest, AStagedHandoverCutSurvivesAPowerCutAndIsShippedAsItWas) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  journal_->pause_shipping(true);
  run_load(100, 8);
  Point point = journal_->cut(Journal::CutReason::kHandover, {});
  Status staged(Code::kBusy, "not yet");
  journal_->when_staged(point.batch, [&](Status s) { staged = std::move(s); });
  ASSERT_TRUE(settle([&] { return staged.code() != Code::kBusy; })) << "shipping that is paused does not hold it up";
  ASSERT_TRUE(staged) << staged.to_string();
  Images at_cut = copy_.images;
  Incarnation incarnation = journal_->incarnation();
  size_t before = replica_->points.size();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  wait_shipped();
  ASSERT_GT(replica_->points.size(), before);
  const auto& first = replica_->points[before];
  EXPECT_EQ(first.number, point.batch);
  EXPECT_EQ(first.kind, BatchKind::kNormal);
  EXPECT_EQ(first.incarnation, incarnation);
  EXPECT_EQ(first.last, point.counter);
  EXPECT_EQ(first.images, at_cut);
  expect_points_right();
}

TEST_F(JournalTest, WhoWaitsForStagingHearsThatItsCutWasGivenUpOrCannotBeStaged) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(50, 8);
  Status staged(Code::kBusy, "not yet");
  auto wait_for = [&](BatchNumber batch) {
    staged = Status(Code::kBusy, "not yet");
    journal_->when_staged(batch, [&](Status s) { staged = std::move(s); });
    return settle([&] { return staged.code() != Code::kBusy; });
  };
  Point open{BatchNumber(journal_->usage().newest_closed.value + 1), {}, {}, {}};
  ASSERT_TRUE(wait_for(open.batch));
  EXPECT_EQ(staged.code(), Code::kCancelled) << "it is open";
  copy_.fail_reads = 1;
  Point point = journal_->cut(Journal::CutReason::kHandover, {});
  ASSERT_TRUE(wait_for(point.batch));
  EXPECT_EQ(staged.code(), Code::kCancelled);
  // What was given up is in the next cut, which need not wait for the stager's next try.
  auto begun = world_.elapsed();
  point = journal_->cut(Journal::CutReason::kHandover, {});
  ASSERT_TRUE(wait_for(point.batch));
  EXPECT_TRUE(staged) << staged.to_string();
  EXPECT_LT(world_.elapsed() - begun, std::chrono::milliseconds(500));
  wait_shipped();
  EXPECT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
  // Nothing is cut before a crash's regions are reconciled, so nothing can be handed over.
  run_load(20, 8);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  ASSERT_FALSE(journal_->dirty_after_crash().empty());
  ASSERT_TRUE(wait_for(journal_->cut(Journal::CutReason::kHandover, {}).batch));
  EXPECT_FALSE(staged);
}

TEST_F(JournalTest, ATenureGivenBackLeavesNoRegionOfItsImageDirty) {
  for (int i = 0; i < 2; ++i) add_image(i, 128 * kG);
  open_journal();
  run_load(60, 8);
  Slot over = slot(image_id(0)), kept = slot(image_id(1));
  journal_->tenure_over(over);
  world_.run_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(journal_->dirty_regions(over).empty()) << "nobody said that it is durable";
  Point point = journal_->cut(Journal::CutReason::kHandover, {});
  Status staged(Code::kBusy, "not yet");
  journal_->when_staged(point.batch, [&](Status s) { staged = std::move(s); });
  ASSERT_TRUE(settle([&] { return staged.is_ok(); }));
  journal_->note_durable(over, point.counter);
  journal_->tenure_over(over);
  world_.run_for(std::chrono::milliseconds(100));
  EXPECT_TRUE(journal_->dirty_regions(over).empty());
  EXPECT_FALSE(journal_->dirty_regions(kept).empty());
  crash(sim::Crash::kPowerLoss);
  open_journal();
  ASSERT_EQ(journal_->dirty_after_crash().size(), 1u);
  EXPECT_EQ(journal_->dirty_after_crash().front().image, image_id(1));
}

// Another host's epoch 2, this host's 3 and 4, as after a crash: what of 3 is in one batch with 4 still follows epoch 2.
TEST_F(JournalTest, ATenureAfterAnOwnOneStillNamesTheOtherHostsBeforeIt) {
  add_image(0, 128 * kG);
  open_journal();
  wire::TenureParent other{.epoch = Epoch(2), .source = "host2", .last = {Incarnation(7), Counter(9)}};
  journal_->set_tenure(slot(image_id(0)), Epoch(3), other);
  run_load(20, 4);
  wire::TenureParent own{.epoch = Epoch(3), .source = options_.source, .last = {Incarnation(1), Counter(1)}};
  journal_->set_tenure(slot(image_id(0)), Epoch(4), own);
  world_.run_for(std::chrono::seconds(1));
  auto stored = [&] {
    auto rows = world_.committed("host1", options_.directory + "/journal", "images");
    return decode_tenure(rows.begin()->second);
  };
  ASSERT_TRUE(stored().is_ok());
  EXPECT_EQ(stored()->epoch, Epoch(4));
  EXPECT_EQ(stored()->parent.source, "host2");
  EXPECT_EQ(stored()->parent.last, other.last);
  wire::TenureParent newer{.epoch = Epoch(5), .source = "host3", .last = {Incarnation(2), Counter(3)}};
  journal_->set_tenure(slot(image_id(0)), Epoch(6), newer);
  world_.run_for(std::chrono::seconds(1));
  EXPECT_EQ(stored()->parent.source, "host3");
}

// The next tenure's batches wait at the replica for the one in which this one ended. That one must itself wait for what
// came before, though nothing was written.
TEST_F(JournalTest, TheBatchInWhichATenureEndsNamesItsImageAndParentThoughNothingWasWritten) {
  add_image(0, 128 * kG);
  add_image(1, 128 * kG);
  open_journal();
  wait_shipped();
  std::vector<SegmentImage> named;
  replica_->interfere = [&](const net::HttpRequest& request) -> std::optional<net::HttpResponse> {
    auto part = request.method == "PUT" ? SegmentReader::parse_whole(request.body) : Result<SegmentReader>(Status(Code::kNotFound, ""));
    if (part) named.insert(named.end(), part->head().images.begin(), part->head().images.end());
    return std::nullopt;
  };
  wire::Mark end;
  end.kind = wire::MarkKind::kTenureEnd;
  end.node.image = image_id(0);
  end.epoch = Epoch(3);
  journal_->mark(end);
  wait_shipped();
  ASSERT_EQ(named.size(), 1u);
  EXPECT_EQ(named[0].image, image_id(0));
  EXPECT_EQ(named[0].epoch, Epoch(3));
  EXPECT_EQ(named[0].parent.source, parent_.source);
  EXPECT_EQ(named[0].parent.last, parent_.last);
  EXPECT_EQ(named[0].size, 128 * kG);
  // Of a tenure that was taken to be given back alone, the journal holds nothing: what it has of the image is older.
  named.clear();
  end.epoch = Epoch(9);
  journal_->mark(end);
  wait_shipped();
  EXPECT_TRUE(named.empty());
  // A crash before the batch is staged leaves it to the one in its place. (Staging stands still at the other image.)
  copy_.hold_reads = true;
  submit({image_id(1), RecordKind::kWrite, {0, kG}, 0, Bytes(kG, 1)});
  world_.run_for(std::chrono::milliseconds(100));
  end.epoch = Epoch(3);
  journal_->mark(end);
  world_.run_for(std::chrono::milliseconds(200));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  wait_shipped();
  ASSERT_EQ(named.size(), 2u);
  EXPECT_EQ(named[0].image, image_id(0));
  EXPECT_EQ(named[0].parent.source, parent_.source);
}

// Given back before the crash, and taken again from the host that wrote it since, while another image is not reconciled: the
// recovery's batch is of the new tenure, and this host's copy has not been filled yet.
TEST_F(JournalTest, WhatACrashLeftOfAnImageThatAnotherHostWroteSinceIsShippedAsThatOneLeftIt) {
  for (int i = 0; i < 2; ++i) add_image(i, 64 * kG);
  open_journal();
  for (int i = 0; i < 2; ++i) {
    bool done = false;
    submit({image_id(i), RecordKind::kWrite, {0, 64 * kG}, 0, Bytes(64 * kG, 0x11)}, [&] { done = true; });
    ASSERT_TRUE(settle([&] { return done; }));
  }
  wait_shipped();
  crash(sim::Crash::kKill);
  open_journal();
  ASSERT_EQ(journal_->dirty_after_crash().size(), 2u);
  journal_->reconciled(image_id(0));
  copy_.unfilled[image_id(0)] = copy_.images[image_id(0)];
  copy_.images[image_id(0)].assign(64 * kG, 0x22);            // by host2, in epoch 4
  journal_->set_tenure(slot(image_id(0)), Epoch(5), {Epoch(4), "host2", {Incarnation(1), Counter(9)}, 1});
  journal_->reconciled(image_id(1));
  wait_shipped();
  EXPECT_EQ(replica_->images[image_id(0)], Bytes(64 * kG, 0x22)) << "older blocks would lie upon that host's";
  EXPECT_EQ(replica_->images[image_id(1)], Bytes(64 * kG, 0x11));
}

// As above, but the recovery's batch is cut by then, and being staged: should that fail, the open batch takes it over, which is
// of the new tenure.
class GivenUpTest : public JournalTest {
 protected:
  explicit GivenUpTest(const sim::WorldOptions& options = {}) : JournalTest(options) {}
  void SetUp() override {
    for (int i = 0; i < 3; ++i) add_image(i, 64 * kG);
    open_journal();
    for (int i = 0; i < 3; ++i) change(i, RecordKind::kWrite);
    wait_shipped();
  }
  void change(int n, RecordKind kind) {
    bool done = false;
    const bool write = kind == RecordKind::kWrite;
    submit({image_id(n), kind, {0, 64 * kG}, 0, write ? Bytes(64 * kG, 0x11) : Bytes()}, [&] { done = true; });
    ASSERT_TRUE(settle([&] { return done; }));
  }
  // The first block's read fails, at once; another one's has not ended.
  void stage_to_fail() {
    copy_.hold_reads = true;
    copy_.fail_reads = 1;
  }
  void wait_for_gate() {
    world_.run_for(std::chrono::milliseconds(100));
    ASSERT_FALSE(copy_.held.empty());
  }
  // host2 had it in between, in epoch 4; nothing of that is on this host's copy yet.
  void take_back() {
    copy_.unfilled[image_id(0)] = copy_.images[image_id(0)];
    copy_.images[image_id(0)].assign(64 * kG, 0x22);
    journal_->set_tenure(slot(image_id(0)), Epoch(5), {Epoch(4), "host2", {Incarnation(1), Counter(9)}, 1});
  }
  void crash_and_go_on() {
    world_.run_for(std::chrono::seconds(1));
    crash(sim::Crash::kPowerLoss);
    parent_ = {Epoch(5), options_.source, {Incarnation(1), Counter(9)}, 1};
    tenure_ = Epoch(6);
    open_journal();
    reconcile_all();
  }
  void expect_as_host2_left_it() {
    wait_shipped();
    EXPECT_EQ(replica_->images[image_id(0)], Bytes(64 * kG, 0x22)) << "older blocks would lie upon that host's";
    EXPECT_EQ(replica_->images[image_id(1)], copy_.images[image_id(1)]);
  }
};

TEST_F(GivenUpTest, WhatACrashLeftIsShippedAsAnotherHostLeftItThoughItWasCutBefore) {
  crash(sim::Crash::kKill);
  open_journal();
  ASSERT_EQ(journal_->dirty_after_crash().size(), 3u);
  stage_to_fail();
  reconcile_all();
  wait_for_gate();
  take_back();
  copy_.open_gate();
  expect_as_host2_left_it();
}

// Given away with a cut that could not be staged, and zeros in it, which nobody reads.
TEST_F(GivenUpTest, SoIsACutThatWasGivenUpAfterTheTenureWasTakenBack) {
  journal_->pause_shipping(true);
  change(0, RecordKind::kZero);
  for (int i : {1, 2}) change(i, RecordKind::kWrite);
  stage_to_fail();
  journal_->cut(Journal::CutReason::kHandover, {});
  journal_->pause_shipping(false);
  wait_for_gate();
  take_back();
  copy_.open_gate();
  expect_as_host2_left_it();
}

// Nor had it been staged when this host crashed, in the tenure that followed.
TEST_F(GivenUpTest, SoIsWhatWasNotStagedWhenThisHostCrashedInItsNextTenure) {
  journal_->pause_shipping(true);
  change(0, RecordKind::kZero);
  for (int i : {1, 2}) change(i, RecordKind::kWrite);
  stage_to_fail();
  journal_->cut(Journal::CutReason::kHandover, {});
  journal_->pause_shipping(false);
  wait_for_gate();
  take_back();
  crash_and_go_on();
  expect_as_host2_left_it();
}

// That tenure had only just begun: what is known of the dirty regions is of the one before it.
TEST_F(GivenUpTest, SoIsWhatWasDirtyAsThisHostCrashedWhileItsNextTenureBegan) {
  bool noted = false;
  journal_->note_copies(slot(image_id(0)), LossId(1), LossId(2), false, [&](const Status& s) { noted = s.is_ok(); });
  ASSERT_TRUE(settle([&] { return noted; }));
  take_back();
  crash_and_go_on();
  const auto& dirty = journal_->dirty_after_crash();
  ASSERT_EQ(dirty.size(), 3u);
  EXPECT_EQ(std::count_if(dirty.begin(), dirty.end(), [](const DirtyImage& d) { return d.epoch == Epoch(3); }), 1);
  expect_as_host2_left_it();
}

// What a worker has of it just then comes back late.
class GivenUpWithAWorkerTest : public GivenUpTest {
 protected:
  static constexpr sim::DurationRange kLate{std::chrono::milliseconds(200), std::chrono::milliseconds(200)};
  GivenUpWithAWorkerTest() : GivenUpTest({.offload_latency = kLate}) { options_.open_records_max = 64; }
  // Zeros, in a cut for a handover; it is given up for too many cuts, in another one.
  void give_up_what_a_worker_has() {
    journal_->pause_shipping(true);
    uint64_t done = 0;
    for (uint64_t i = 0; i < 64; ++i) submit({image_id(0), RecordKind::kZero, {i * kG, kG}, 0, {}}, [&] { ++done; });
    ASSERT_TRUE(settle([&] { return done == 64; }));
    ASSERT_LT(journal_->usage().records_unstaged, 64u) << "they are with the worker";
    journal_->cut(Journal::CutReason::kHandover, {});
    take_back();
    for (uint32_t i = 0; i < limits::kClosedBatchesMax; ++i) journal_->cut(Journal::CutReason::kNamed, std::to_string(i));
    ASSERT_EQ(journal_->usage().closed_batches, 1u);
  }
};

TEST_F(GivenUpWithAWorkerTest, ItIsShippedAsAnotherHostLeftItSince) {
  give_up_what_a_worker_has();
  world_.run_for(std::chrono::seconds(1));
  EXPECT_EQ(journal_->usage().closed_batches, 0u) << "nothing that is read from now on is of that cut";
  journal_->pause_shipping(false);
  expect_as_host2_left_it();
}

// No cut is made between two tenures while another image is not reconciled: what is consolidated is of both.
TEST_F(GivenUpWithAWorkerTest, SoIsWhatARecoverysBatchHasOfTwoTenuresAfterACrash) {
  crash(sim::Crash::kKill);
  open_journal();
  journal_->reconciled(image_id(0));
  uint64_t done = 0;
  auto submit_40 = [&](RecordKind kind, const Bytes& data) {
    for (uint64_t i = 0; i < 40; ++i) submit({image_id(0), kind, {i * kG, kG}, 0, data}, [&] { ++done; });
  };
  submit_40(RecordKind::kZero, {});
  ASSERT_TRUE(settle([&] { return done == 40; }));
  take_back();
  submit_40(RecordKind::kWrite, Bytes(kG, 0x22));
  ASSERT_TRUE(settle([&] { return done == 80; }));
  world_.run_for(std::chrono::seconds(1));
  ASSERT_LT(journal_->usage().records_unstaged, 80u) << "they were consolidated";
  crash_and_go_on();
  expect_as_host2_left_it();
}

TEST_F(GivenUpWithAWorkerTest, SoItIsAfterACrash) {
  give_up_what_a_worker_has();
  crash_and_go_on();
  expect_as_host2_left_it();
}

}  // namespace
}  // namespace tidemark::journal
