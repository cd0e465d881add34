// The journal's own disk full or failing: guests go on, nothing is relied on that does not stand, and it recovers by itself.
#include <gtest/gtest.h>

#include "tests/repeat.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class DiskTest : public LimitTest {
 protected:
  DiskTest() { options_.settings.limit_bytes = 64u << 20; }
  // Every commit fails from now on, until `good_disk()`.
  void full_disk() {
    full_ = true;
    keep_full();
  }
  void good_disk() {
    full_ = false;
    world_.fail_next_commit("host1", Status::ok());
  }
  void keep_full() {
    if (!full_) return;
    world_.fail_next_commit("host1", Status(Code::kOutOfSpace, "no space left"));
    world_.at(std::chrono::microseconds(200), [this] { keep_full(); });
  }
  bool outdated() {
    auto bytes = env_->files().read_file("/state/journal-outdated");
    return bytes && (*bytes)[8] == 1;
  }
  bool full_ = false;
};

TEST_F(DiskTest, AFullDiskNeverStopsTheGuestAndRecoversByItself) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  EXPECT_FALSE(outdated());
  full_disk();
  run_load(400, 16);        // cold regions too: each answer came without an error
  ASSERT_TRUE(settle([&] { return degraded(); }, 30));
  EXPECT_TRUE(outdated());
  EXPECT_NE(journal_->usage().disk_failure.find("no space left"), std::string::npos);
  EXPECT_EQ(spool_files(), 0u) << "room is made of what there is";
  run_load(400, 16);
  world_.run_for(std::chrono::seconds(5));
  EXPECT_TRUE(journal_->condition());
  good_disk();
  run_load(100, 8);
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
  run_load(100, 8);
  expect_level();
}

TEST_F(DiskTest, NoWriteToACleanRegionGoesOnBeforeTheMarkStands) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  // The disk takes nothing at all, the mark neither.
  sim::FileFault fault;
  fault.path_contains = "journal-outdated";
  fault.nth = 1;
  fault.times = UINT64_MAX;
  fault.operations = sim::kMutatingFileOps;
  fault.error = 5;
  world_.inject("host1", fault);
  full_disk();
  bool answered = false;
  add_image(9, 200 * kG);
  Slot clean = journal_->attach(image_id(9), 200 * kG);
  journal_->set_level(clean, true);
  journal_->mark_dirty(clean, {0, kG}, [&](Status status) { answered = status.is_ok(); });
  world_.run_for(std::chrono::seconds(10));
  EXPECT_FALSE(answered);
  world_.clear_faults("host1");
  ASSERT_TRUE(settle([&] { return answered; }, 30)) << "the mark stands now";
  EXPECT_TRUE(outdated());
}

// The mark in the journal's own directory stands; that in a brick whose device hangs is not waited for.
class HungBrickTest : public DiskTest {
 protected:
  HungBrickTest() { options_.reserve_directories = {"/brick"}; }
  void begin() {
    ASSERT_TRUE(world_.start("host1").files().make_directories("/brick"));
    world_.crash("host1", sim::Crash::kKill);
    open_journal();
    run_load(50, 8);
    wait_shipped();
    clean_ = journal_->attach(image_id(9), 200 * kG);
    journal_->set_level(clean_, true);
  }
  void hang() {
    sim::FileFault fault;
    fault.path_contains = "/brick/journal-outdated";
    fault.times = UINT64_MAX;
    fault.operations = static_cast<uint16_t>(sim::FileOp::kWrite);
    fault.hangs = true;
    world_.inject("host1", fault);
  }
  void release() {
    world_.clear_faults("host1");
    world_.release_hung("host1");
  }
  // A write to the next clean region goes on while the journal's disk takes nothing.
  bool goes_on() {
    auto answered = std::make_shared<bool>(false);
    journal_->mark_dirty(clean_, {next_, kG}, [answered](Status status) { *answered = status.is_ok(); });
    next_ += 16 * kG;
    return settle([&] { return *answered; }, 30);
  }
  Slot clean_;
  uint64_t next_ = 0;
};

TEST_F(HungBrickTest, TheGuestGoesOnOnceOnePlaceHasTheMark) {
  begin();
  hang();
  full_disk();
  EXPECT_TRUE(goes_on());
  EXPECT_TRUE(outdated());
  // The disk has room, and is full again, while the brick still hangs.
  good_disk();
  world_.run_for(std::chrono::seconds(20));
  EXPECT_TRUE(outdated()) << "it is not taken back before the brick's is";
  full_disk();
  EXPECT_TRUE(goes_on());
  good_disk();
  release();
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
  run_load(50, 8);
  expect_level();
}

TEST_F(HungBrickTest, TheGuestGoesOnWhereTheBrickHangsAsTheMarkIsTakenBack) {
  begin();
  full_disk();
  EXPECT_TRUE(goes_on());
  world_.run_for(std::chrono::seconds(5));
  hang();
  good_disk();
  world_.run_for(std::chrono::seconds(20));
  EXPECT_TRUE(outdated()) << "the journal's own place is the last";
  full_disk();
  EXPECT_TRUE(goes_on());
  release();
  world_.run_for(std::chrono::seconds(5));
  EXPECT_TRUE(outdated());
  good_disk();
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
}

TEST_F(DiskTest, TM_UNSANITIZED(WhatWaitsForADiskThatTakesNotEvenTheMarkIsBounded)) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  sim::FileFault fault;
  fault.path_contains = "journal-outdated";
  fault.times = UINT64_MAX;
  world_.inject("host1", fault);
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/journal", .status = Status(Code::kIoError, "gone")});
  wire::Mark mark;
  mark.kind = wire::MarkKind::kRename;
  mark.name = mark.old_name = std::string(255, 'n');
  uint64_t marks = 0;
  for (; journal_->condition() && marks < 1'000'000; ++marks) {
    journal_->mark(mark);
    if (marks % 10'000 == 0) world_.run_for(std::chrono::milliseconds(50));
  }
  EXPECT_FALSE(journal_->condition()) << "after " << marks;
}

TEST_F(DiskTest, ACrashUnderTheMarkMakesEverythingDirtyAndSendsItAll) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  full_disk();
  run_load(300, 16);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  run_load(200, 16);
  good_disk();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  auto dirty = journal_->dirty_after_crash();
  ASSERT_EQ(dirty.size(), copy_.images.size());
  for (const DirtyImage& d : dirty) {
    EXPECT_GE(d.regions.size() * d.region_bytes, copy_.images.at(d.image).size());
  }
  EXPECT_TRUE(outdated()) << "until all is reconciled";
  reconcile_all();
  run_load(50, 8);
  expect_level();
  ASSERT_TRUE(settle([&] { return !outdated(); }, 30));
}

// What was committed and not staged gives its images slots before anything else is known of them.
TEST_F(DiskTest, ACrashUnderTheMarkMakesImagesWithUnstagedRecordsDirtyToo) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  world_.run_for(std::chrono::seconds(1));
  full_disk();
  run_load(300, 16);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  good_disk();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  auto dirty = journal_->dirty_after_crash();
  ASSERT_EQ(dirty.size(), copy_.images.size());
  for (const DirtyImage& d : dirty) EXPECT_TRUE(d.whole) << d.regions.size() << " regions";
  reconcile_all();
  run_load(50, 8);
  expect_level();
}

TEST_F(DiskTest, AnIoErrorIsOutlivedWithStoresOpenedAnew) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  world_.fail_next_commit("host1", Status(Code::kIoError, "input/output error"));
  run_load(400, 16);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  EXPECT_TRUE(journal_->condition()) << "no reason to stop";
  run_load(200, 16);
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  expect_level();
  run_load(100, 8);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  run_load(50, 8);
  expect_level();
}

// The loops that make room (sending, staging, giving the spool up) are in the midst of it when the disk fails.
class BusyDiskTest : public DiskTest, public testing::WithParamInterface<Code> {
 protected:
  void broken_disk() {
    world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/journal", .status = Status(GetParam(), "the disk's own error")});
  }
  void repaired_disk() { world_.set_store_fault("host1", {}); }
  void expect_outlived() {
    run_load(400, 16);
    ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 60));
    ASSERT_TRUE(settle([&] { return spool_files() == 0; }, 60)) << "room is made of what there is";
    run_load(200, 16);
    EXPECT_TRUE(journal_->condition());
    repaired_disk();
    ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
    EXPECT_FALSE(outdated());
    run_load(100, 8);
    expect_level();
    // What was answered under the mark is in the stores now.
    crash(sim::Crash::kPowerLoss);
    open_journal();
    reconcile_all();
    run_load(50, 8);
    expect_level();
  }
};

TEST_P(BusyDiskTest, WhileABatchIsSent) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_->hold_answers = true;
  run_load(100, 8);
  ASSERT_TRUE(settle([&] { return !replica_->held.empty(); }));
  broken_disk();
  replica_->release_answers();
  expect_outlived();
}

TEST_P(BusyDiskTest, WhileABatchIsStaged) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  run_load(100, 8);
  copy_.hold_reads = true;
  Point cut = journal_->cut(Journal::CutReason::kHandover, {});
  ASSERT_TRUE(settle([&] { return !copy_.held.empty(); }));
  Status staged(Code::kBusy, "not yet");
  journal_->when_staged(cut.batch, [&](Status s) { staged = std::move(s); });
  broken_disk();
  copy_.open_gate();
  ASSERT_TRUE(settle([&] { return degraded(); }, 60));
  EXPECT_FALSE(staged) << "nothing is durable on such a disk";
  EXPECT_NE(staged.code(), Code::kBusy) << "a handover hears of it";
  expect_outlived();
}

TEST_P(BusyDiskTest, WhileTheSpoolIsGivenUp) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  run_load(100, 8);
  ASSERT_TRUE(settle([&] { return spool_files() > 1; }));
  replica_back();
  broken_disk();
  resync({});
  expect_outlived();
}

TEST_P(BusyDiskTest, WhileTheJournalIsClosed) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  broken_disk();
  Status closed(Code::kBusy, "not yet");
  journal_->close(std::chrono::seconds(10), [&](Status s) { closed = std::move(s); });
  ASSERT_TRUE(settle([&] { return closed.code() != Code::kBusy; }, 60));
  EXPECT_FALSE(closed) << "no clean stop";
  repaired_disk();
  crash(sim::Crash::kKill);
  open_journal();
  EXPECT_FALSE(journal_->dirty_after_crash().empty());
  reconcile_all();
  run_load(50, 8);
  expect_level();
}

INSTANTIATE_TEST_SUITE_P(Errors, BusyDiskTest, testing::Values(Code::kOutOfSpace, Code::kIoError),
                         [](const auto& error) { return error.param == Code::kIoError ? "IoError" : "OutOfSpace"; });

// Such a store may be unreadable until it is opened anew: what only it has of the batches that are given up is told then.
TEST_F(DiskTest, AStoreThatCannotBeReadEitherIsOutlived) {
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_away();
  wire::Mark mark;
  mark.kind = wire::MarkKind::kCreate;
  mark.number = EventNumber(77);
  mark.name = "staged.img";
  journal_->mark(mark);
  run_load(100, 8);
  ASSERT_TRUE(settle([&] { return spool_files() > 1; }));
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state", .status = Status(Code::kIoError, "gone"), .reads = true});
  run_load(100, 8);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  mark.number = EventNumber(78);
  mark.name = "later.img";
  journal_->mark(mark);
  run_load(400, 16);
  world_.run_for(std::chrono::seconds(12));
  EXPECT_TRUE(journal_->condition());
  world_.set_store_fault("host1", {});
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  replica_back();
  run_load(50, 8);
  expect_level();
  for (uint64_t number : {77, 78}) {
    EXPECT_EQ(std::count_if(replica_->marks.begin(), replica_->marks.end(), [&](const auto& m) { return m.number.value == number; }), 1)
        << number;
  }
}

TEST_F(DiskTest, StoresThatCannotBeOpenedAnewAreTriedAgainAndNobodyFallsOverTheirAbsence) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/journal", .status = Status(Code::kIoError, "read-only"), .opens = true});
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  world_.run_for(std::chrono::seconds(12));
  run_load(400, 16);        // cold regions
  resync({});
  EXPECT_GT(journal_->usage().resync_left_bytes, 0u);
  world_.run_for(std::chrono::seconds(12));
  EXPECT_TRUE(journal_->condition());
  world_.set_store_fault("host1", {});
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
  run_load(50, 8);
  expect_level();
}

TEST_F(DiskTest, WhoeverWaitsForACommitUnderWayIsAnsweredUnderTheMark) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  Slot cold = journal_->attach(image_id(9), 200 * kG);
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/drl",
                                                  .status = Status(Code::kIoError, "after long"), .delay = std::chrono::seconds(20)});
  bool answered = false;
  journal_->mark_dirty(cold, {0, kG}, [&](Status status) { answered = status.is_ok(); });
  world_.run_for(std::chrono::milliseconds(10));
  world_.fail_next_commit("host1", Status(Code::kIoError, "input/output error"));
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return answered; }, 10)) << "the mark stands for it";
  EXPECT_TRUE(outdated());
  world_.run_for(std::chrono::seconds(30));
  world_.set_store_fault("host1", {});
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
}

TEST_F(DiskTest, WhatAnImageGrewByUnderTheMarkIsDirtyAndSent) {
  parent_ = {};             // no image is lacked whole for another reason
  open_journal();
  run_load(50, 8);
  wait_shipped();
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "", .status = Status(Code::kOutOfSpace, "no space left")});
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 30));
  ImageId grown = image_id(0);
  bool done = false;
  submit({grown, RecordKind::kResize, {400 * kG, 0}, 0, {}}, [&] { done = true; });
  ASSERT_TRUE(settle([&] { return done; }));
  submit({grown, RecordKind::kWrite, {390 * kG, kG}, 0, Bytes(kG, 3)}, [&] { done = false; });
  ASSERT_TRUE(settle([&] { return !done; }));
  crash(sim::Crash::kPowerLoss);
  world_.set_store_fault("host1", {});
  open_journal();
  for (const DirtyImage& d : journal_->dirty_after_crash()) EXPECT_TRUE(d.whole) << d.image.to_string();
  reconcile_all();
  expect_level();
}

TEST_F(DiskTest, ADirtyLogThatIsCommittingIsNotReplaced) {
  options_.settings.cut_interval = std::chrono::seconds(60);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  Slot cold = journal_->attach(image_id(9), 200 * kG);
  // The log's commit hangs, the journal's fails.
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/drl", .delay = std::chrono::seconds(20)});
  bool alone = false;
  journal_->note_copies(cold, LossId(), LossId(), true, [&](Status status) { alone = status.is_ok(); });
  world_.run_for(std::chrono::milliseconds(10));
  world_.fail_next_commit("host1", Status(Code::kIoError, "input/output error"));
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return degraded() && outdated(); }, 15));
  ASSERT_TRUE(settle([&] { return alone; }, 40)) << "whoever waits for that commit hears of it";
  world_.set_store_fault("host1", {});
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated());
}

// It does not fail: it does not answer, and the guest goes on where regions are dirty.
TEST_F(DiskTest, TM_UNSANITIZED(WhatWaitsForADiskThatHangsIsBounded)) {
  options_.settings.cut_interval = std::chrono::hours(1);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/", .delay = std::chrono::hours(1)});
  auto& rng = world_.random();
  uint64_t most = 0;
  for (int i = 0; i < 3'000'000; ++i) {
    const Slot s = slot(image_id(i % 3));
    journal_->finish(journal_->begin(s, RecordKind::kWrite, {rng.below(60) * kG, 512}), CoordinatorSequence(0), 1);
    if (i % 1000 != 0) continue;
    journal_->finish(journal_->begin(s, RecordKind::kResize, {200 * kG, 0}), CoordinatorSequence(0), 0);
    world_.run_for(std::chrono::milliseconds(10));
    most = std::max(most, journal_->usage().pending_bytes);
  }
  EXPECT_LT(most, 32u << 20);
  EXPECT_GT(most, 1u << 20);
  EXPECT_TRUE(journal_->condition());
  world_.set_store_fault("host1", {});
  world_.run_for(std::chrono::hours(1));
  wait_shipped();
}

}  // namespace
}  // namespace tidemark::journal
