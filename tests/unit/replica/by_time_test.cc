// What is asked by time, where points are not in the order of their labels.
#include "replica/by_time.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "replica/intake.h"
#include "tests/unit/replica/real_store.h"

namespace tidemark::replica {
namespace {

constexpr ImageIndex kImage{1}, kNeighbour{2};
constexpr uint64_t kNewest = 6000, kLagging = 4500;   // from this one on each third is of a source that lags

class ByTimeTest : public ::testing::Test {
 protected:
  ByTimeTest()
      : env_(real_options()), store_(std::move(*env_.open_store(directory_.path(), {.tables = table_names()}))),
        labels_(kNewest + 1) {
    std::map<uint64_t, int64_t> least;
    kv::WriteBatch out;
    for (uint64_t id = 1; id <= kNewest; ++id) {
      const bool lags = id >= kLagging && id % 3 == 0;
      labels_[id] = static_cast<int64_t>(10 * (lags ? id - kLagging : id) + random_() % 50);
      put_record(out, replica::kPoints, kv::key_u64(id), PointRecord{.label = WallTime{labels_[id]}});
      const auto [block, fresh] = least.try_emplace(id / kPointsInBlock, labels_[id]);
      block->second = std::min(block->second, labels_[id]);
      if (lags || random_() % 4 != 0) continue;
      versions_.insert(id);
      put_record(out, kImageVersions, image_point_key(kImage, PointId(id)), ImageVersion{});
    }
    for (const auto& [block, label] : least) {
      Bytes value(8);
      store_le(value.data(), label);
      out.put(kLabelBlocks, kv::key_u64(block), value);
    }
    EXPECT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  }
  // 0: none. Nothing of the image that is labelled later may show, if one is asked for.
  uint64_t model(int64_t at, bool of_image) const {
    for (uint64_t id = kNewest; id > 0; --id) {
      if (labels_[id] > at) continue;
      if (!of_image) return id;
      auto after = versions_.upper_bound(id);
      if (after == versions_.begin()) return 0;
      if (labels_[*std::prev(after)] <= at) return id;
    }
    return 0;
  }

  TempDirectory directory_{TempDirectory::On::kMemory};
  io::RealEnv env_;
  std::unique_ptr<kv::Store> store_;
  std::mt19937_64 random_{19};
  std::vector<int64_t> labels_;
  std::set<uint64_t> versions_;   // of kImage
};

TEST_F(ByTimeTest, LabelsInAnyOrderMatchTheModel) {
  auto snapshot = store_->snapshot();
  uint64_t others = 0;
  for (int i = 0; i < 500; ++i) {
    const auto at = static_cast<int64_t>(random_() % (10 * kNewest + 100));
    auto any = newest_labelled(*snapshot, PointId(UINT64_MAX), WallTime{at});
    auto of_image = newest_labelled(*snapshot, kImage, WallTime{at});
    auto of_none = newest_labelled(*snapshot, kNeighbour, WallTime{at});
    ASSERT_TRUE(any && of_image && of_none);
    EXPECT_EQ(any->value, model(at, false)) << at;
    EXPECT_EQ(of_image->value, model(at, true)) << at;
    EXPECT_EQ(of_none->value, 0u);
    others += *any != *of_image ? 1 : 0;
  }
  EXPECT_GT(others, 50u);
}

TEST_F(ByTimeTest, OfABlockWhoseLeastLabelIsDamagedEachPointIsLookedAt) {
  kv::WriteBatch out;
  out.put(kLabelBlocks, kv::key_u64(kNewest / kPointsInBlock), {});
  ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  const int64_t at = labels_[kNewest];
  auto found = newest_labelled(*store_->snapshot(), PointId(UINT64_MAX), WallTime{at});
  ASSERT_TRUE(found.is_ok()) << found.status().to_string();
  EXPECT_EQ(found->value, model(at, false));
}

}  // namespace
}  // namespace tidemark::replica
