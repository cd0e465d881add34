// Which regions are dirty: after a stop, at rest, while the copies are not level, as the image grows, after a crash.
#include <gtest/gtest.h>

#include "journal/journal.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {
namespace {

TEST_F(JournalTest, ACleanStopLeavesNothingDirtyAndStagesEverything) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(100, 16);
  journal_->note_durable(slot(image_id(0)), journal_->last_finished());
  Status closed(Code::kBusy, "not yet");
  journal_->close(std::chrono::seconds(10), [&](Status s) { closed = std::move(s); });
  ASSERT_TRUE(settle([&] { return closed.code() != Code::kBusy; }));
  EXPECT_TRUE(closed) << closed.to_string();
  Incarnation before = journal_->incarnation();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  EXPECT_TRUE(journal_->dirty_after_crash().empty());
  EXPECT_EQ(journal_->incarnation(), before.next());
  run_load(20, 4);
  wait_shipped();
  expect_points_right();
  for (const auto& p : replica_->points) EXPECT_EQ(p.kind, BatchKind::kNormal);
}

TEST_F(JournalTest, RegionsAreCleanedOnlyWhenIdleDurableAndCommitted) {
  add_image(0, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  run_load(10, 4);
  EXPECT_TRUE(journal_->is_dirty(s, {0, kG}));
  EXPECT_EQ(journal_->counters(s).dirty_regions, 1u);
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, {0, kG})) << "nobody said that it is durable";
  journal_->note_durable(s, journal_->last_finished());
  journal_->set_level(s, false);
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, {0, kG})) << "the copies are not level";
  journal_->set_level(s, true);
  world_.run_for(std::chrono::seconds(3));
  EXPECT_FALSE(journal_->is_dirty(s, {0, kG}));
  EXPECT_TRUE(journal_->dirty_regions(s).empty());
  crash(sim::Crash::kPowerLoss);
  open_journal();
  EXPECT_TRUE(journal_->dirty_after_crash().empty());
}

TEST_F(JournalTest, WhileNotLevelOnlyRegionsMadeEqualAndNotWrittenSinceAreCleaned) {
  add_image(0, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  run_load(10, 4);
  journal_->set_level(s, false);
  const uint64_t bytes = journal_->region_bytes(s);
  const Counter last = journal_->last_finished();
  ASSERT_TRUE(journal_->is_dirty(s, {0, kG}));
  journal_->note_equal(s, {RegionIndex(0)}, bytes, Counter(0));
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, {0, kG})) << "written since";
  journal_->set_level(s, false);
  journal_->note_equal(s, {RegionIndex(0)}, 2 * bytes, last);
  journal_->note_equal(s, {RegionIndex(1)}, bytes, last);
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, {0, kG})) << "of another size, another region, and forgotten";
  journal_->note_equal(s, {RegionIndex(0)}, bytes, last);
  world_.run_for(std::chrono::seconds(3));
  EXPECT_FALSE(journal_->is_dirty(s, {0, kG}));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  EXPECT_TRUE(journal_->dirty_after_crash().empty());
}

TEST_F(JournalTest, RegionSizeGrowsWithTheImageAndKeepsItsMarks) {
  add_image(0, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  run_load(5, 2);
  EXPECT_EQ(journal_->region_bytes(s), 4u << 20);
  uint64_t size = 1ull << 40;
  journal_->set_size(s, size);
  EXPECT_EQ(journal_->region_bytes(s), 16u << 20);
  EXPECT_FALSE(journal_->is_dirty(s, {4 << 20, kG})) << "it joined a dirty region, which no crash would show yet";
  EXPECT_TRUE(settle([&] { return journal_->is_dirty(s, {0, kG}); }));
  EXPECT_TRUE(journal_->is_dirty(s, {4 << 20, kG}));
  Status marked(Code::kBusy, "");
  journal_->mark_dirty(s, {size - kG, kG}, [&](Status st) { marked = std::move(st); });
  ASSERT_TRUE(settle([&] { return marked.code() != Code::kBusy; }));
  EXPECT_TRUE(marked);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  ASSERT_EQ(journal_->dirty_after_crash().size(), 1u);
  EXPECT_EQ(journal_->dirty_after_crash()[0].region_bytes, 16u << 20);
  EXPECT_EQ(journal_->dirty_after_crash()[0].regions, (std::vector{RegionIndex(0), RegionIndex(65535)}));
}

// What a scrub has kept is forgotten as the regions grow; where its disk is slow, it is still there under the next key.
TEST_F(JournalTest, NoKeptDigestIsFoundUnderAnotherKey) {
  add_image(0, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  const Extent block{0, 128 * kG};
  const std::vector<Digest128> digests(block.length / kKeptUnitBytes);
  journal_->digest_key(s);
  ASSERT_TRUE(journal_->keep_digests(s, block, digests));
  ASSERT_TRUE(settle([&] { return journal_->kept_digests(s, block).has_value(); }));
  sim::StoreFault slow;
  slow.delay = std::chrono::seconds(20);
  world_.set_store_fault("host1", slow);
  journal_->set_size(s, 1ull << 40);
  journal_->digest_key(s);
  EXPECT_FALSE(journal_->kept_digests(s, block)) << "taken by a key that is gone";
  world_.set_store_fault("host1", std::nullopt);
}

TEST_F(JournalTest, NotesOfTheCopiesSurviveACrash) {
  add_image(0, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  Status noted(Code::kBusy, "");
  journal_->note_copies(s, LossId(11), LossId(22), true, [&](Status st) { noted = std::move(st); });
  ASSERT_TRUE(settle([&] { return noted.code() != Code::kBusy; }));
  run_load(3, 1);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  ASSERT_EQ(journal_->dirty_after_crash().size(), 1u);
  const DirtyImage& d = journal_->dirty_after_crash()[0];
  EXPECT_EQ(d.host_loss_id, LossId(11));
  EXPECT_EQ(d.shared_loss_id, LossId(22));
  EXPECT_TRUE(d.alone);
  EXPECT_EQ(d.epoch, Epoch(3));
}

// Its other copy does not answer for long.
TEST_F(JournalTest, AWriteThatIsSetAsideHoldsUpNoCutAndItsRegionStaysDirty) {
  for (int i = 0; i < 2; ++i) add_image(i, 128 * kG);
  open_journal();
  Slot s = slot(image_id(0));
  auto& ops = history_[journal_->incarnation().value].ops;
  const Op op{image_id(0), RecordKind::kWrite, {kG, kG}, 0, Bytes(kG, 0x5a)};
  bool dirty = false;
  journal_->mark_dirty(s, op.extent, [&](const Status& status) { dirty = status.is_ok(); });
  ASSERT_TRUE(settle([&] { return dirty; }));
  Ticket ticket = journal_->begin(s, op.kind, op.extent);
  ops[ticket.sequence.counter.value] = op;
  apply_op(copy_.images, op.image, op.kind, op.extent, op.data);
  Point waits = journal_->cut(Journal::CutReason::kNamed, "waits");
  world_.run_for(std::chrono::seconds(10));
  EXPECT_EQ(journal_->usage().closed_batches, 1u);
  EXPECT_EQ(usage_reasons(journal_->usage()).size(), 1u);

  journal_->set_aside(ticket);
  ASSERT_TRUE(settle([&] { return journal_->usage().newest_durable >= waits.batch; }));
  EXPECT_TRUE(usage_reasons(journal_->usage()).empty());
  expect_points_right();
  submit({image_id(1), RecordKind::kWrite, {0, kG}, 0, Bytes(kG, 0x66)});
  world_.run_for(std::chrono::seconds(1));
  EXPECT_EQ(journal_->last_finished().value, ticket.sequence.counter.value + 1) << "what others make durable is known";
  for (int i = 0; i < 2; ++i) journal_->note_durable(slot(image_id(i)), journal_->last_finished());
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, op.extent));
  EXPECT_FALSE(journal_->is_dirty(slot(image_id(1)), {0, kG}));

  const uint64_t points = replica_->points.size();
  journal_->take_up(ticket);
  ops[ticket.sequence.counter.value] = op;
  journal_->finish(ticket, CoordinatorSequence(7), 1);
  wait_shipped();
  EXPECT_GT(replica_->points.size(), points);
  expect_points_right();
  EXPECT_TRUE(replica_->points.back().changed.contains(op.image)) << "the other copy may be all that counts of it by now";
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(journal_->is_dirty(s, op.extent)) << "not durable there yet";
  journal_->note_durable(s, journal_->last_finished());
  world_.run_for(std::chrono::seconds(30));
  EXPECT_FALSE(journal_->is_dirty(s, op.extent));
}

}  // namespace
}  // namespace tidemark::journal
