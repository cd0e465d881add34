// The journal's disk is gone for a while, and what stands in its place meanwhile is not it: nothing is made anew there, and
// nothing that it holds counts.
#include <gtest/gtest.h>

#include "journal/records.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class LostDiskTest : public LimitTest {
 protected:
  LostDiskTest() {
    options_.settings.limit_bytes = 64u << 20;
    options_.reserve_directories = {"/brick"};
  }
  bool outdated(const std::string& directory) {
    auto bytes = env_->files().read_file(directory + "/journal-outdated");
    return bytes && (*bytes)[8] == 1;
  }
  void begin() {
    ASSERT_TRUE(world_.start("host1").files().make_directories("/brick"));
    world_.crash("host1", sim::Crash::kKill);
    open_journal();
    run_load(50, 8);
    wait_shipped();
  }
  // Nothing of the state directory's disk answers, nor takes the mark: that stands in the brick.
  void lose_disk() {
    sim::FileFault fault;
    fault.path_contains = "/state/journal-outdated";
    fault.times = UINT64_MAX;
    fault.operations = static_cast<uint16_t>(sim::FileOp::kWrite) | static_cast<uint16_t>(sim::FileOp::kSync);
    world_.inject("host1", fault);
    world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/", .status = Status(Code::kIoError, "the disk is gone")});
    run_load(200, 16);
    ASSERT_TRUE(settle([&] { return degraded() && outdated("/brick"); }, 30));
  }
  // It was unmounted; what it was mounted upon can be written.
  void unmount() {
    world_.clear_faults("host1");
    world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/", .forgets = true});
    run_load(200, 16);
    world_.run_for(std::chrono::seconds(30));
    run_load(200, 16);
  }
  void mount() { world_.set_store_fault("host1", {}); }
  void expect_lost() {
    EXPECT_FALSE(journal_->usage().disk_failure.empty()) << "it is taken for the disk that was there";
    EXPECT_TRUE(outdated("/brick") || outdated("/state"));
    EXPECT_TRUE(journal_->condition());
  }
  void expect_all_dirty() {
    auto dirty = journal_->dirty_after_crash();
    ASSERT_EQ(dirty.size(), copy_.images.size());
    for (const DirtyImage& d : dirty) EXPECT_TRUE(d.whole) << d.regions.size() << " regions of " << d.image.to_string();
  }
};

TEST_F(LostDiskTest, NothingIsMadeAnewWhereItWasMounted) {
  begin();
  lose_disk();
  unmount();
  expect_lost();
  EXPECT_TRUE(world_.committed("host1", "/another disk/state/journal", "meta").empty());
  mount();
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  EXPECT_FALSE(outdated("/brick") || outdated("/state"));
  run_load(100, 8);
  expect_level();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  EXPECT_FALSE(degraded());
  reconcile_all();
  run_load(50, 8);
  expect_level();
}

TEST_F(LostDiskTest, ACrashWhileItIsNotThereMakesEverythingDirty) {
  begin();
  lose_disk();
  unmount();
  crash(sim::Crash::kPowerLoss);
  mount();
  open_journal();
  expect_all_dirty();
  reconcile_all();
  run_load(50, 8);
  expect_level();
}

// A copy of it of an earlier time, say.
TEST_F(LostDiskTest, AJournalOfAnotherRunIsNotTakenForIt) {
  begin();
  world_.set_store_fault("host1", sim::StoreFault{.path_contains = "/state/", .status = Status(Code::kIoError, "the disk is gone"), .opens = true});
  run_load(200, 16);
  ASSERT_TRUE(settle([&] { return degraded() && outdated("/brick"); }, 30));
  world_.run_for(std::chrono::seconds(10));    // the stores are closed
  Bytes ours, other;
  auto put_nonce = [&](const Bytes& row) {
    auto store = env_->open_store("/state/journal", {.tables = journal_table_names()});
    ASSERT_TRUE(store) << store.status().to_string();
    ours = *(*store)->snapshot()->get(kMetaTable, as_bytes("incarnation"));
    other = ours;
    other[10] ^= 1;                            // a byte of its nonce
    kv::WriteBatch batch;
    batch.put(kMetaTable, as_bytes("incarnation"), row.empty() ? other : row);
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)));
  };
  world_.set_store_fault("host1", {});
  put_nonce({});
  const Bytes before = ours;
  run_load(200, 16);
  world_.run_for(std::chrono::seconds(30));
  expect_lost();
  EXPECT_NE(journal_->usage().disk_failure.find("another journal"), std::string::npos) << journal_->usage().disk_failure;
  put_nonce(before);
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  run_load(100, 8);
  expect_level();
}

// The file that was opened at the start is on a disk that is gone for good; that of the same name takes the mark's end.
TEST_F(LostDiskTest, ItsMarkIsThatOfTheDiskThatIsThereNow) {
  begin();
  lose_disk();
  // As that file stands there after a failure: it may say so, and not durably.
  ASSERT_TRUE(env_->files().unlink("/state/journal-outdated"));
  mount();
  world_.run_for(std::chrono::seconds(30));
  world_.clear_faults("host1");
  ASSERT_TRUE(settle([&] { return journal_->usage().disk_failure.empty(); }, 60));
  ASSERT_TRUE(env_->files().stat("/state/journal-outdated").is_ok());
  EXPECT_FALSE(outdated("/brick") || outdated("/state"));
  expect_level();
  crash(sim::Crash::kPowerLoss);
  open_journal();
  EXPECT_FALSE(degraded());
  reconcile_all();
  expect_level();
}

}  // namespace
}  // namespace tidemark::journal
