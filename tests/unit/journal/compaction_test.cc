// While nothing is cut (shipping is paused, the replica is away) the open batch grows with what is written. Beyond a number of
// records they are consolidated, then widened to whole regions; where those are as many, the batch is given up to the map.
#include <gtest/gtest.h>

#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class CompactionTest : public LimitTest {
 protected:
  static constexpr uint64_t kPlaces = 256;   // of an image: every other granule
  CompactionTest() {
    options_.settings.limit_bytes = 64u << 20;
    options_.open_records_max = 256;
    for (int i = 0; i < 3; ++i) add_image(i, 2 * kPlaces * kG);
  }
  void begin(uint64_t region_bytes) {
    options_.settings.region_bytes = region_bytes;
    open_journal();
    run_load(50, 8);
    wait_shipped();
    journal_->pause_shipping(true);
  }
  void scatter(uint64_t places, uint8_t byte) {
    for (uint64_t place = 0; place < places; ++place) {
      for (int i = 0; i < 3; ++i) {
        bool done = false;
        submit({image_id(i), RecordKind::kWrite, {2 * place * kG, kG}, 0, Bytes(kG, byte)}, [&] { done = true; });
        ASSERT_TRUE(settle([&] { return done; }));
        most_ = std::max(most_, journal_->usage().records_unstaged);
      }
    }
  }
  void expect_all_there() {
    wait_shipped();
    for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
  }
  uint64_t most_ = 0;
};

TEST_F(CompactionTest, WhatIsWrittenOverAndOverIsConsolidated) {
  begin(256 * kG);
  for (uint8_t byte = 1; byte < 20; ++byte) scatter(30, byte);
  EXPECT_LE(most_, options_.open_records_max);
  EXPECT_FALSE(degraded());
  journal_->pause_shipping(false);
  expect_all_there();
}

// The numbers of what is stored of it are used up at last.
TEST_F(CompactionTest, ButNotForEver) {
  options_.open_serials_max = 1000;
  begin(256 * kG);
  for (uint8_t byte = 1; byte < 20; ++byte) scatter(30, byte);
  ASSERT_TRUE(settle([&] { return degraded(); }));
  const std::string why = journal_->usage().degraded_why;
  EXPECT_NE(why.find("too long a time"), std::string::npos) << why;
  journal_->pause_shipping(false);
  expect_level();
}

TEST_F(CompactionTest, WhereThatIsTooLittleItIsWidenedToRegions) {
  begin(256 * kG);
  for (uint8_t byte = 1; byte < 3; ++byte) scatter(kPlaces, byte);
  EXPECT_LE(most_, options_.open_records_max + 3);
  EXPECT_FALSE(degraded());
  journal_->pause_shipping(false);
  expect_all_there();
}

TEST_F(CompactionTest, SoItIsThroughACrash) {
  begin(256 * kG);
  scatter(kPlaces / 2, 1);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  scatter(kPlaces / 4, 2);
  expect_level();
}

// Over large images those are as many.
TEST_F(CompactionTest, WhereRegionsAreTooManyTheBatchIsGivenUpToTheMap) {
  begin(kG);
  scatter(kPlaces, 1);
  ASSERT_TRUE(degraded());
  const std::string why = journal_->usage().degraded_why;
  EXPECT_NE(why.find("more than 64 regions"), std::string::npos) << why;
  EXPECT_LE(most_, options_.open_records_max + 16);
  EXPECT_LT(journal_->usage().records_unstaged, 20u) << "the map has them";
  journal_->pause_shipping(false);
  run_load(20, 8);
  expect_level();
}

}  // namespace
}  // namespace tidemark::journal
