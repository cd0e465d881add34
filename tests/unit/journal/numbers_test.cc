// The numbers of batches: whatever stands under one, in whichever table, no later run gives it out again.
#include <gtest/gtest.h>

#include "journal/records.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class NumbersTest : public LimitTest {
 protected:
  NumbersTest() {
    parent_ = {};             // no image is lacked whole
    options_.settings.limit_bytes = 64u << 20;
    options_.settings.cut_interval = std::chrono::seconds(60);
  }
  void load_and_commit() {
    run_load(30, 8);
    world_.run_for(std::chrono::seconds(1));
  }
  void create(uint64_t number) {
    wire::Mark mark;
    mark.kind = wire::MarkKind::kCreate;
    mark.number = EventNumber(number);
    mark.name = std::to_string(number) + ".img";
    journal_->mark(mark);
  }
  int64_t told(uint64_t number) {
    return std::count_if(replica_->marks.begin(), replica_->marks.end(), [&](const auto& m) { return m.number.value == number; });
  }
};

// The first run crashes; the second is stopped while one image is not reconciled yet, and others were written.
TEST_F(NumbersTest, ACleanStopInTheMidstOfARecoveryLeavesNothingThatALaterStartCannotRead) {
  open_journal();
  load_and_commit();
  wait_shipped();
  load_and_commit();
  crash(sim::Crash::kKill);
  open_journal();
  load_and_commit();
  close_cleanly();
  open_journal();
  reconcile_all();
  load_and_commit();
  wait_shipped();
  for (auto kind : {sim::Crash::kKill, sim::Crash::kPowerLoss}) {
    crash(kind);
    open_journal();
    reconcile_all();
    expect_level();
  }
}

// As an earlier version left it, once the first number had been given out again.
TEST_F(NumbersTest, RecordsOfARunWhoseSlotsWereErasedAreOfBatchesThatWereStaged) {
  open_journal();
  load_and_commit();
  wait_shipped();
  const Bytes key = record_key(BatchNumber(replica_->expected + 1024), 0);
  auto stands = [&](bool put) {
    env_ = &world_.start("host1");
    auto store = env_->open_store("/state/journal", {.tables = journal_table_names()});
    EXPECT_TRUE(store) << store.status().to_string();
    RecordPack pack;
    StoredRecord record;
    record.counter = Counter(7);
    record.slot = 1;
    record.kind = static_cast<uint8_t>(RecordKind::kWrite);
    record.extent = {0, kG};
    pack.add(Incarnation(5), record);
    kv::WriteBatch batch;
    if (put) batch.put(kRecordsTable, key, pack.take());
    EXPECT_TRUE((*store)->commit_and_wait(std::move(batch)));
    const bool found = (*store)->snapshot()->get(kRecordsTable, key).is_ok();
    world_.crash("host1", sim::Crash::kKill);
    return found;
  };
  crash(sim::Crash::kKill);
  ASSERT_TRUE(stands(true));
  open_journal();
  reconcile_all();
  load_and_commit();
  expect_level();
  crash(sim::Crash::kKill);
  EXPECT_FALSE(stands(false));
}

TEST_F(NumbersTest, EventsThatWereNotToldYetOutliveCleanStopsWhileDegraded) {
  open_journal();
  replica_away();
  resync({});
  ASSERT_TRUE(settle([&] { return degraded(); }));
  uint64_t event = 0;
  for (int run = 0; run < 3; ++run) {
    for (int i = 0; i < 10; ++i) {
      if (run == 0) run_load(3, 1);   // counters between them: the next run's own come to those
      create(++event);
    }
    world_.run_for(std::chrono::seconds(1));
    for (const auto& [image, s] : slots_) journal_->note_durable(s, journal_->last_finished());
    close_cleanly();
    open_journal();
    reconcile_all();
    ASSERT_TRUE(degraded());
  }
  replica_back();
  run_load(10, 4);
  expect_level();
  for (uint64_t number = 1; number <= event; ++number) EXPECT_EQ(told(number), 1) << number;
}

}  // namespace
}  // namespace tidemark::journal
