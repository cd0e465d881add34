// The journal as a whole, in the simulator: points exact at random cuts, preserving, crashes, shipping.
#include "journal/journal.h"

#include <gtest/gtest.h>

#include "journal/inspect.h"
#include "journal/records.h"
#include "shared/base/log.h"
#include "shared/io/file.h"
#include "shared/kv/store.h"
#include "tests/repeat.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {
namespace {

class JournalSeeds : public JournalTest, public testing::WithParamInterface<uint64_t> {
 protected:
  JournalSeeds() : JournalTest({.seed = GetParam()}) {}
};

TEST_P(JournalSeeds, EveryPointHoldsExactlyWhatWasBegunBeforeItsCut) {
  for (int i = 0; i < 3; ++i) add_image(i, 128 * kG);
  open_journal();
  for (int i = 0; i < 8; ++i) {
    run_load(150, 32);
    if (i % 2 == 0) journal_->cut(Journal::CutReason::kNamed, "p" + std::to_string(i));
  }
  wait_shipped();
  expect_points_right();
  EXPECT_GT(replica_->points.size(), 6u);
  Images model = model_at(journal_->incarnation(), Counter(UINT64_MAX));
  EXPECT_EQ(replica_->images, model);
  EXPECT_EQ(journal_->usage().records_unstaged, 0u);
  EXPECT_EQ(journal_->usage().preserved_bytes, 0u);
  EXPECT_EQ(journal_->usage().spool_bytes, 0u);
  EXPECT_EQ(journal_->usage().rpo_ns, 0);
  EXPECT_TRUE(env_->files().list("/state/spool")->empty());
}

TEST_P(JournalSeeds, ACrashAtAnyMomentLosesNothing) {
  for (int i = 0; i < 2; ++i) add_image(i, 128 * kG);
  for (int round = 0; round < 6; ++round) {
    open_journal();
    reconcile_all();
    // Requests are under way when it dies.
    for (int i = 0; i < 60; ++i) {
      Op op = random_op();
      if (!op.image.is_nil()) submit(std::move(op));
      world_.run_for(std::chrono::microseconds(world_.random().below(6000)));
    }
    crash(world_.random().coin() ? sim::Crash::kKill : sim::Crash::kPowerLoss);
  }
  open_journal();
  reconcile_all();
  run_load(50, 8);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->images, model_at(journal_->incarnation(), Counter(UINT64_MAX)));
}

TEST_P(JournalSeeds, ACrashAtEveryCommitOfAColdWriteLeavesItsRegionDirty) {
  for (uint64_t nth = 1; nth < 12; ++nth) {
    copy_.images.clear();
    add_image(static_cast<int>(nth), 128 * kG);
    open_journal();
    reconcile_all();
    ImageId image = image_id(static_cast<int>(nth));
    Bytes before = copy_.images[image];
    world_.inject("host1", sim::CrashPoint{.nth = nth, .at_commits = true, .kind = sim::Crash::kPowerLoss});
    Op op{image, RecordKind::kWrite, {8 * kG, kG}, 0, Bytes(kG, 0xAB)};
    submit(op);
    world_.run_for(std::chrono::milliseconds(400));
    bool changed = copy_.images[image] != before;
    world_.clear_faults("host1");
    if (world_.running("host1")) world_.crash("host1", sim::Crash::kPowerLoss);
    journal_.reset();
    ++generation_of_run_;
    open_journal();
    bool dirty = false;
    for (const DirtyImage& d : journal_->dirty_after_crash()) dirty = dirty || (d.image == image && d.regions == std::vector{RegionIndex(0)});
    EXPECT_TRUE(dirty || !changed) << "commit " << nth;
    reconcile_all();
    wait_shipped();
    // A replica that never heard of the image knows as much as one that has it empty.
    Bytes there = replica_->images[image];
    there.resize(copy_.images[image].size());
    EXPECT_EQ(there, copy_.images[image]) << "commit " << nth;
    crash(sim::Crash::kKill);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, JournalSeeds, testing::Range<uint64_t>(1, repeat(7, 3)));

TEST_F(JournalTest, PreservesWhatEachKindOfChangeOverwritesWhileStagingStandsStill) {
  for (int i = 0; i < 5; ++i) add_image(i, 64 * kG);
  open_journal();
  auto write = [&](int n, uint8_t fill) {
    submit({image_id(n), RecordKind::kWrite, {10 * kG, 20 * kG}, 0, Bytes(20 * kG, fill)});
  };
  for (int i = 0; i < 5; ++i) write(i, 0x70);
  ASSERT_TRUE(settle([&] { return in_flight_.empty(); }));
  copy_.hold_reads = true;
  Point point = journal_->cut(Journal::CutReason::kNamed, "gate");
  ASSERT_TRUE(settle([&] { return !copy_.held.empty(); }));
  // The gate holds staging's reads; those that preserve go on.
  auto gated = std::exchange(copy_.held, {});
  copy_.hold_reads = false;
  write(0, 0x71);
  submit({image_id(1), RecordKind::kZero, {12 * kG, 5 * kG}, 0, {}});
  submit({image_id(2), RecordKind::kDiscard, {11 * kG, 7 * kG + 512}, 0, {}});
  submit({image_id(3), RecordKind::kResize, {15 * kG, 0}, 0, {}});
  // Unlink: all of it is preserved, then it goes.
  bool preserved = false;
  journal_->preserve(slot(image_id(4)), {0, 64 * kG}, [&] { preserved = true; });
  ASSERT_TRUE(settle([&] { return in_flight_.empty() && preserved; }));
  EXPECT_FALSE(journal_->must_preserve(slot(image_id(4)), {0, 64 * kG}));
  copy_.images.erase(image_id(4));
  sizes_.erase(image_id(4));
  journal_->detach(slot(image_id(4)));
  for (auto& fn : gated) fn();
  ASSERT_TRUE(settle([&] { return journal_->usage().newest_durable >= point.batch; }));
  expect_points_right();
  wait_shipped();
  EXPECT_TRUE(replica_->violations.empty());
}

TEST_F(JournalTest, NoRoomForOldBlocksGivesTheBatchUpAndTheNextOneStandsForIt) {
  uint64_t bytes = limits::kPreservedBytesMax + (4u << 20);
  add_image(0, bytes);
  open_journal();
  for (uint64_t at = 0; at < bytes; at += 1u << 20) {
    submit({image_id(0), RecordKind::kWrite, {at, 1u << 20}, 0, Bytes(1u << 20, static_cast<uint8_t>(at >> 20))});
  }
  ASSERT_TRUE(settle([&] { return in_flight_.empty(); }));
  journal_->pause_shipping(true);
  Point lost = journal_->cut(Journal::CutReason::kNamed, "lost");
  bool told = false;
  journal_->preserve(slot(image_id(0)), {0, bytes}, [&] { told = true; });
  EXPECT_TRUE(settle([&] { return told; }));
  EXPECT_FALSE(journal_->must_preserve(slot(image_id(0)), {0, bytes}));
  for (uint64_t at = 0; at < bytes; at += 1u << 20) {
    submit({image_id(0), RecordKind::kWrite, {at, 4096}, 0, Bytes(4096, 0xEE)});
  }
  ASSERT_TRUE(settle([&] { return in_flight_.empty(); }));
  journal_->pause_shipping(false);
  wait_shipped();
  Result<std::string> answer = std::string();
  journal_->when_shipped(BatchNumber(lost.batch.value + 100), [&](Result<std::string> r) { answer = std::move(r); });
  EXPECT_EQ(answer.status().code(), Code::kCancelled);
  for (const auto& p : replica_->points) EXPECT_NE(p.name, "lost");
  EXPECT_EQ(replica_->points.back().kind, BatchKind::kResync);
  EXPECT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
  EXPECT_EQ(journal_->usage().preserved_bytes, 0u);
}

TEST_F(JournalTest, AFailedReadGivesTheBatchUpWithoutFailingTheGuest) {
  add_image(0, 128 * kG);
  open_journal();
  copy_.fail_reads = 3;
  run_load(200, 16);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
}

// A guest that did nothing for an hour would not lose that hour.
TEST_F(JournalTest, WhatIsNotShippedIsAsOldAsItsFirstChange) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(20, 8);
  wait_shipped();
  world_.run_for(std::chrono::hours(1));
  EXPECT_EQ(journal_->usage().rpo_ns, 0);
  journal_->pause_shipping(true);
  run_load(1, 1);
  EXPECT_GT(journal_->usage().rpo_ns, 0);
  EXPECT_LT(journal_->usage().rpo_ns, 1'000'000'000);
  world_.run_for(std::chrono::minutes(5));
  run_load(20, 8);
  EXPECT_NEAR(static_cast<double>(journal_->usage().rpo_ns), 300e9, 1e9);
}

TEST_F(JournalTest, TimeCutsCoalesceWhileShippingIsPausedAndNamedOnesDoNot) {
  add_image(0, 128 * kG);
  open_journal();
  journal_->pause_shipping(true);
  run_load(300, 16);
  world_.run_for(std::chrono::seconds(2));
  EXPECT_EQ(journal_->usage().closed_batches, 0u);
  journal_->cut(Journal::CutReason::kNamed, "a");
  journal_->cut(Journal::CutReason::kHandover, {});
  journal_->cut(Journal::CutReason::kTime, {});
  EXPECT_EQ(journal_->usage().closed_batches, 2u);
  EXPECT_GT(journal_->usage().rpo_ns, 1'000'000'000);
  Result<std::string> answer = std::string();
  journal_->when_shipped(BatchNumber(1), [&](Result<std::string> r) { answer = std::move(r); });
  EXPECT_EQ(answer.status().code(), Code::kUnavailable);
  journal_->pause_shipping(false);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->points.front().name, "a");
}

TEST_F(JournalTest, MarksArriveInOrderAcrossACrash) {
  add_image(0, 128 * kG);
  open_journal();
  auto mark = [&](uint64_t number) {
    wire::Mark m;
    m.kind = wire::MarkKind::kCreate;
    m.number = EventNumber(number);
    m.origin = "host1";
    m.name = std::string(200, static_cast<char>('a' + number % 26));
    // Longer than one LMDB value may be.
    if (number % 5 == 0) m.node.xattrs.emplace_back("user.tidemark.note", Bytes(5000, 1));
    journal_->mark(m);
  };
  for (uint64_t n = 1; n <= 20; ++n) mark(n);
  wait_shipped();
  ASSERT_EQ(replica_->marks.size(), 20u);
  for (uint64_t n = 21; n <= 40; ++n) mark(n);
  journal_->pause_shipping(true);
  world_.run_for(std::chrono::seconds(1));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  for (uint64_t n = 41; n <= 45; ++n) mark(n);
  // Nothing was dirty: the resync batch needs no reconciliation.
  wait_shipped();
  ASSERT_EQ(replica_->marks.size(), 45u);
  for (uint64_t n = 1; n <= 45; ++n) EXPECT_EQ(replica_->marks[n - 1].number, EventNumber(n));
}

TEST_F(JournalTest, ACommitThatFailsIsOutlivedAndColdWritesStillWork) {
  add_image(0, 128 * kG);
  log::set_sink_for_testing([](log::Level, std::string_view, std::string_view) {});
  open_journal();
  run_load(10, 4);
  EXPECT_TRUE(journal_->condition());
  world_.fail_next_commit("host1", Status(Code::kIoError, "injected"));
  run_load(10, 4);
  world_.run_for(std::chrono::seconds(1));
  EXPECT_TRUE(journal_->condition());
  EXPECT_NE(journal_->usage().disk_failure.find("injected"), std::string::npos);
  crash(sim::Crash::kKill);
  log::set_sink_for_testing({});
  open_journal();
  reconcile_all();
  ASSERT_TRUE(settle([&] { return journal_->usage().shipping == Shipping::kNormal; }));
  wait_shipped();
  EXPECT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
}

// Marks and records wait for room; no write fails and nothing is forgotten.
TEST_F(JournalTest, AFullDiskIsWaitedForAndNothingIsLost) {
  log::set_sink_for_testing([](log::Level, std::string_view, std::string_view) {});
  for (int i = 0; i < 6; ++i) add_image(i, 128 * kG);
  open_journal();
  for (int i = 0; i < 12; ++i) {
    world_.fail_next_commit("host1", Status(Code::kOutOfSpace, "full"));
    run_load(10, 4);
    world_.run_for(std::chrono::milliseconds(250));
  }
  EXPECT_TRUE(journal_->condition());
  world_.run_for(std::chrono::seconds(3));
  EXPECT_EQ(journal_->usage().ship_error, "");
  crash(sim::Crash::kPowerLoss);
  log::set_sink_for_testing({});
  open_journal();
  reconcile_all();
  wait_shipped();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(replica_->images[image_id(i)], copy_.images[image_id(i)]);
}

TEST_F(JournalTest, AFrozenImageReadsAsOfItsMomentWhileWritesGoOn) {
  add_image(0, 256 * kG);
  open_journal();
  run_load(100, 16);
  Slot s = slot(image_id(0));
  Bytes expected = copy_.images[image_id(0)];
  ASSERT_TRUE(journal_->freeze(s, expected.size()));
  EXPECT_FALSE(journal_->freeze(s, expected.size()));
  EXPECT_FALSE(journal_->changed_since_freeze({0, expected.size()}));
  for (uint64_t at = 0; at < expected.size(); at += 16 * kG) {
    for (int i = 0; i < 20; ++i) {
      uint64_t offset = world_.random().below(expected.size() / kG - 2) * kG;
      Extent e{offset, 2 * kG};
      bool clash = false;
      for (const InFlight& f : in_flight_) clash = clash || f.extent.overlaps(e);
      if (!clash && e.end() <= sizes_[image_id(0)]) submit({image_id(0), RecordKind::kWrite, e, 0, Bytes(2 * kG, static_cast<uint8_t>(at >> 12 | 1))});
      world_.step();
    }
    ASSERT_TRUE(settle([&] { return in_flight_.empty(); }));
    Extent piece{at, std::min<uint64_t>(16 * kG, expected.size() - at)};
    Bytes got(copy_.images[image_id(0)].begin() + static_cast<ptrdiff_t>(piece.offset),
              copy_.images[image_id(0)].begin() + static_cast<ptrdiff_t>(piece.end()));
    const bool differs = !std::equal(got.begin(), got.end(), expected.begin() + static_cast<ptrdiff_t>(at));
    EXPECT_TRUE(!differs || journal_->changed_since_freeze(piece)) << "offset " << at;
    journal_->overlay_frozen(piece, got);
    journal_->release_frozen(piece);
    ASSERT_TRUE(std::equal(got.begin(), got.end(), expected.begin() + static_cast<ptrdiff_t>(at))) << "offset " << at;
    EXPECT_FALSE(journal_->must_preserve(s, piece) && journal_->usage().closed_batches == 0);
  }
  EXPECT_FALSE(journal_->freeze_broken());
  journal_->end_freeze();
  wait_shipped();
  EXPECT_EQ(journal_->usage().preserved_bytes, 0u);
}

TEST_F(JournalTest, InspectionShowsWhatIsThereAndFindsWhatIsDamaged) {
  ship_ = false;
  add_image(0, 128 * kG);
  open_journal();
  run_load(60, 8);
  Point staged = journal_->cut(Journal::CutReason::kNamed, "kept");
  ASSERT_TRUE(settle([&] { return journal_->usage().closed_batches == 0; }));
  journal_->pause_shipping(true);
  run_load(40, 8);
  world_.run_for(std::chrono::seconds(1));
  Incarnation incarnation = journal_->incarnation();
  uint64_t unstaged = journal_->usage().records_unstaged;
  crash(sim::Crash::kKill);
  env_ = &world_.start("host1");
  auto seen = inspect(*env_, "/state", {.records_max = 10, .verify_spool = true});
  ASSERT_TRUE(seen) << seen.status().to_string();
  EXPECT_TRUE(seen->problems.empty()) << seen->problems.front();
  EXPECT_EQ(seen->source, "host1");
  EXPECT_EQ(seen->incarnation, incarnation);
  EXPECT_FALSE(seen->clean_stop);
  EXPECT_EQ(seen->record_count, unstaged);
  ASSERT_EQ(seen->records.size(), 10u);
  EXPECT_EQ(seen->records.back().image, image_id(0));
  ASSERT_FALSE(seen->segments.empty());
  EXPECT_TRUE(seen->segments.back().problem);
  EXPECT_EQ(seen->segments.back().header.number, staged.batch);
  EXPECT_EQ(seen->segments.back().header.point_name, "kept");
  EXPECT_EQ(seen->dirty.size(), 1u);
  ASSERT_TRUE(world_.flip_byte("host1", "/state/spool/" + seen->segments.back().file, seen->segments.back().bytes - 1));
  auto damaged = inspect(*env_, "/state", {.verify_spool = true});
  ASSERT_TRUE(damaged);
  EXPECT_EQ(damaged->problems.size(), 1u);
  EXPECT_EQ(inspect(*env_, "/nowhere", {}).status().code(), Code::kNotFound);
}

// An older version was gone back to for a while: its runs are in no list, and are this journal's all the same.
TEST_F(JournalTest, RunsOfAVersionThatKeptNoListAreItsOwn) {
  open_journal();
  const Incarnation first = journal_->incarnation();
  const Uuid nonce = journal_->nonce(), older = Uuid::from_random({3, 3}), last = Uuid::from_random({4, 4});
  crash(sim::Crash::kKill);
  {
    env_ = &world_.start("host1");
    auto store = env_->open_store("/state/journal", {.tables = journal_table_names()});
    ASSERT_TRUE(store) << store.status().to_string();
    kv::WriteBatch batch;
    Bytes row;
    Writer(row).id(Incarnation(first.value + 2)).uuid(last).u8(1);   // it had two, as its row "incarnation" says
    batch.put(kMetaTable, as_bytes("incarnation"), row);
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)));
  }
  world_.crash("host1", sim::Crash::kKill);
  for (int run = 0; run < 2; ++run) {
    open_journal();
    EXPECT_EQ(journal_->incarnation().value, first.value + 3 + static_cast<uint64_t>(run));
    EXPECT_TRUE(journal_->knows_run(first, nonce));
    EXPECT_TRUE(journal_->knows_run(first.next(), older));   // of before the list
    EXPECT_TRUE(journal_->knows_run(Incarnation(first.value + 2), last));
    EXPECT_FALSE(journal_->knows_run(Incarnation(first.value + 2), older));
    EXPECT_FALSE(journal_->knows_run(journal_->incarnation(), older));
    EXPECT_FALSE(journal_->knows_run(journal_->incarnation().next(), older));
    crash(sim::Crash::kKill);
  }
}

// What the clock said is a guess: the number is raised to what others know before anything is counted.
TEST_F(JournalTest, ARaisedIncarnationIsCountedOnFrom) {
  open_journal();
  const Incarnation first = journal_->incarnation(), raised(first.value + 5000);
  const Uuid nonce = journal_->nonce();
  EXPECT_TRUE(journal_->raise_incarnation(first));   // it is not below
  EXPECT_EQ(journal_->incarnation(), first);
  ASSERT_TRUE(journal_->raise_incarnation(raised));
  EXPECT_EQ(journal_->incarnation(), raised);
  crash(sim::Crash::kPowerLoss);
  add_image(0, 64 * kG);
  open_journal();
  EXPECT_EQ(journal_->incarnation(), raised.next());
  EXPECT_TRUE(journal_->knows_run(raised, nonce));
  EXPECT_TRUE(journal_->knows_run(journal_->incarnation(), journal_->nonce()));
  EXPECT_FALSE(journal_->knows_run(raised, journal_->nonce()));
  EXPECT_FALSE(journal_->knows_run(journal_->incarnation().next(), journal_->nonce()));
  // Its writes have their numbers: only the next run can have others.
  run_load(20, 4);
  const Incarnation more(raised.value + 9000);
  EXPECT_EQ(journal_->raise_incarnation(more).code(), Code::kUnavailable);
  EXPECT_EQ(journal_->incarnation(), raised.next());
  wait_shipped();
  bool closed = false;
  journal_->close(std::chrono::seconds(20), [&](Status) { closed = true; });
  ASSERT_TRUE(settle([&] { return closed; }));
  crash(sim::Crash::kKill);
  open_journal();
  EXPECT_EQ(journal_->incarnation(), more.next());
}

TEST_F(JournalTest, AnotherNodesJournalIsRefused) {
  open_journal();
  crash(sim::Crash::kKill);
  env_ = &world_.start("host1");
  copy_.env = env_;
  options_.source = "host9";
  auto opened = Journal::open(*env_, options_, copy_);
  EXPECT_EQ(opened.status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace tidemark::journal
