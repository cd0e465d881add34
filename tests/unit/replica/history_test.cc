// The versioned extent index against a model that keeps every version of every unit.
#include "replica/history.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/unit/replica/real_store.h"

namespace tidemark::replica {
namespace {

class HistoryTest : public ::testing::Test {
 protected:
  HistoryTest()
      : env_(real_options()), store_(std::move(*env_.open_store(directory_.path(), {.tables = table_names()}))) {}
  void apply(ImageIndex image, PointId point, std::optional<uint64_t> shrink, const std::vector<Change>& changes,
             size_t spread_leaves_max = kSpreadLeavesMax) {
    kv::WriteBatch out;
    auto snapshot = store_->snapshot();
    HistoryWriter writer(*snapshot, out, spread_leaves_max);
    ASSERT_TRUE(writer.apply(image, point, shrink, changes).is_ok());
    ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  }
  uint64_t rows(Table table) {
    auto snapshot = store_->snapshot();
    auto cursor = snapshot->cursor(table);
    uint64_t count = 0;
    for (bool found = cursor->first(); found; found = cursor->next()) ++count;
    return count;
  }
  Leaf load(ImageIndex image, PointId point, uint64_t leaf) {
    auto snapshot = store_->snapshot();
    Leaf out;
    Status s = HistoryView(*snapshot, image, point).load(leaf, out);
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    return out;
  }

  TempDirectory directory_{TempDirectory::On::kMemory};
  io::RealEnv env_;
  std::unique_ptr<kv::Store> store_;
};

constexpr ImageIndex kImage{1}, kNeighbour{2};
constexpr uint64_t kUnit = kUnitBytes;

bool same(const UnitRef& a, const UnitRef& b) {
  if ((a.segment == 0 || a.valid == 0) && (b.segment == 0 || b.valid == 0)) return true;
  return a == b;
}

bool same(const Leaf& a, const Leaf& b) {
  return std::equal(a.begin(), a.end(), b.begin(), [](const UnitRef& x, const UnitRef& y) { return same(x, y); });
}

// Bytes valid of a unit after a shrink to `size`.
void model_shrink(std::map<uint64_t, UnitRef>& units, uint64_t size) {
  for (auto& [unit, ref] : units) {
    if (unit * kUnit >= size) ref = {};
    else if ((unit + 1) * kUnit > size)
      ref.valid = std::min<uint16_t>(ref.valid, static_cast<uint16_t>(size - unit * kUnit));
  }
}

TEST_F(HistoryTest, ThousandsOfPointsMatchTheModel) {
  std::mt19937_64 random(7);
  constexpr uint64_t kLeaves = 40, kUnits = kLeaves * kLeafUnits;
  constexpr uint64_t kPoints = 4000;
  std::map<uint64_t, UnitRef> now;
  std::map<uint64_t, std::map<uint64_t, UnitRef>> kept;   // some points' whole state
  for (uint64_t p = 1; p <= kPoints; ++p) {
    std::vector<Change> changes;
    std::optional<uint64_t> shrink;
    if (random() % 40 == 0) {
      shrink = random() % (kUnits * kUnit);
      model_shrink(now, *shrink);
    }
    uint64_t at = random() % 64, position = 0;
    while (at < kUnits && changes.size() < 12) {
      uint64_t length = 1 + random() % (random() % 10 == 0 ? 600 : 6);
      const bool zeros = random() % 5 == 0;
      if (zeros && random() % 12 == 0) length = kWideBytesMin / kUnit + random() % 2000;
      length = std::min(length, kUnits - at);
      changes.push_back({{at * kUnit, length * kUnit}, SegmentId(zeros ? 0 : p), zeros ? 0 : position});
      for (uint64_t i = 0; i < length; ++i) {
        now[at + i] = zeros
                          ? UnitRef{}
                          : UnitRef{static_cast<uint32_t>(p), static_cast<uint32_t>(position / kUnit + i), kUnitBytes};
      }
      if (!zeros) position += length * kUnit;
      at += length + random() % (random() % 3 == 0 ? 4000 : 30);
    }
    // Wide zeros stand in either place, as the leaves that they lie over are few or many.
    apply(kImage, PointId(p), shrink, changes, p % 3 == 0 ? kSpreadLeavesMax : p % 3 == 1 ? 20 : 0);
    if (random() % 60 == 0 || p == 1 || p == kPoints) kept[p] = now;
  }
  auto snapshot = store_->snapshot();
  for (auto& [p, units] : kept) {
    HistoryView all(*snapshot, kImage, PointId(p));   // past the first leaves it goes by all wides at once
    for (uint64_t leaf = 0; leaf < kLeaves; ++leaf) {
      Leaf found;
      ASSERT_TRUE(all.load(leaf, found).is_ok());
      ASSERT_TRUE(same(found, load(kImage, PointId(p), leaf))) << "point " << p << " leaf " << leaf;
      for (uint32_t i = 0; i < kLeafUnits; ++i) {
        ASSERT_TRUE(same(found[i], units[leaf * kLeafUnits + i])) << "point " << p << " leaf " << leaf << " unit " << i;
      }
    }
    for (uint64_t leaf : {30, 3, 17}) {   // and backwards
      Leaf found;
      ASSERT_TRUE(all.load(leaf, found).is_ok());
      ASSERT_TRUE(same(found, load(kImage, PointId(p), leaf))) << "point " << p << " leaf " << leaf;
    }
  }
}

// A wide record is in the way of every later load of every leaf of the image.
TEST_F(HistoryTest, DiscardsOverFewLeavesThatWereWrittenLeaveNoWideRecord) {
  constexpr uint64_t kLast = 300, kLeaf = kLeafBytes;
  apply(kImage, PointId(1), {}, {{{0, kUnit}, SegmentId(1), 0}, {{20 * kLeaf, 3 * kUnit}, SegmentId(1), kUnit}});
  for (uint64_t p = 2; p <= kLast; ++p) {
    apply(kImage, PointId(p), {}, {{{16 * kLeaf, 32 * kLeaf}, SegmentId(0), 0}});
    ++p;
    apply(kImage, PointId(p), {}, {{{20 * kLeaf, kUnit}, SegmentId(p), 0}});
  }
  EXPECT_EQ(rows(kWides), 0u);
  EXPECT_EQ(load(kImage, PointId(1), 20)[2].segment, 1u);
  EXPECT_EQ(load(kImage, PointId(2), 20), Leaf{});
  EXPECT_EQ(load(kImage, PointId(kLast), 20), Leaf{});
  EXPECT_EQ(load(kImage, PointId(kLast + 1), 20)[0].segment, kLast + 1);
  EXPECT_EQ(load(kImage, PointId(kLast + 1), 20)[2].segment, 0u);
  EXPECT_EQ(load(kImage, PointId(kLast), 0)[0].segment, 1u);
}

TEST_F(HistoryTest, ADiscardOfWhatIsZerosAlreadyIsNotKept) {
  constexpr uint64_t kLeaf = kLeafBytes;
  const std::vector<Change> discard{{{0, 32 * kLeaf}, SegmentId(0), 0}};
  apply(kImage, PointId(1), {}, {{{20 * kLeaf, kUnit}, SegmentId(1), 0}});
  apply(kImage, PointId(2), {}, discard);
  EXPECT_EQ(rows(kLeaves), 2u);
  for (uint64_t p = 3; p < 50; ++p) apply(kImage, PointId(p), {}, discard);
  EXPECT_EQ(rows(kLeaves), 2u);
  EXPECT_EQ(rows(kWides), 0u);
}

TEST_F(HistoryTest, DiscardsOverManyLeavesAreOneRecordWhereverDataLiesAmongThem) {
  constexpr uint64_t kLeaf = kLeafBytes;
  std::vector<Change> written;
  for (uint64_t leaf = 0; leaf < 40; ++leaf)
    written.push_back({{leaf * kLeaf, 2 * kUnit}, SegmentId(1), leaf * 2 * kUnit});
  apply(kImage, PointId(1), {}, written);
  apply(kImage, PointId(2), {},
        {{{0, 20 * kLeaf}, SegmentId(0), 0}, {{20 * kLeaf, kUnit}, SegmentId(2), 0},
         {{20 * kLeaf + kUnit, 19 * kLeaf}, SegmentId(0), 0}}, 16);
  EXPECT_EQ(rows(kWides), 1u);
  EXPECT_EQ(rows(kLeaves), 41u);
  EXPECT_EQ(load(kImage, PointId(2), 20)[0].segment, 2u);
  EXPECT_EQ(load(kImage, PointId(2), 20)[1].segment, 0u);
  EXPECT_EQ(load(kImage, PointId(2), 39)[0].segment, 0u);
  EXPECT_EQ(load(kImage, PointId(2), 39)[1].segment, 1u);
}

// However many images of a batch are trimmed, what is spread over leaves is bounded. Small ones after a large one are
// spread.
TEST_F(HistoryTest, TheLeavesThatDiscardsAreSpreadOverAreCountedByTheBatch) {
  constexpr ImageIndex kThird{3};
  auto write = [&](ImageIndex image, uint64_t leaves) {
    std::vector<Change> written;
    for (uint64_t leaf = 0; leaf < leaves; ++leaf)
      written.push_back({{leaf * kLeafBytes, kUnit}, SegmentId(1), leaf * kUnit});
    apply(image, PointId(1), {}, written);
  };
  write(kImage, 12);
  write(kNeighbour, 12);
  write(kThird, 4);
  {
    kv::WriteBatch out;
    auto snapshot = store_->snapshot();
    HistoryWriter writer(*snapshot, out, 16);
    const std::vector<Change> discard{{{0, 32 * kLeafBytes}, SegmentId(0), 0}};
    for (ImageIndex image : {kImage, kNeighbour, kThird})
      ASSERT_TRUE(writer.apply(image, PointId(2), {}, discard).is_ok());
    ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  }
  EXPECT_EQ(rows(kWides), 1u);
  for (ImageIndex image : {kImage, kNeighbour, kThird}) {
    EXPECT_EQ(load(image, PointId(1), 3)[0].segment, 1u);
    EXPECT_EQ(load(image, PointId(2), 3), Leaf{});
  }
}

// What is written all the time has few since its last full version, of however many there are.
TEST_F(HistoryTest, OldWideRecordsDoNotSlowWhatIsWrittenNow) {
  constexpr uint64_t kRecords = 20000;
  const std::vector<Extent> range{{0, 64 * kLeafBytes}};
  kv::WriteBatch out;
  for (uint64_t p = 1; p <= kRecords; ++p) out.put(kWides, image_point_key(kImage, PointId(p)), encode_wide({}, range));
  ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  auto snapshot = store_->snapshot();
  auto spent = [&](PointId after, size_t expected) {
    Wides wides(*snapshot, kImage, PointId(kRecords));
    std::vector<Zeroed> zeroed;
    for (uint64_t leaf = 0; leaf < 64; ++leaf) {
      EXPECT_TRUE(wides.of_leaf({leaf * kLeafBytes, kLeafBytes}, after, zeroed).is_ok());
      EXPECT_EQ(zeroed.size(), expected) << leaf;
    }
    return wides.spent();
  };
  EXPECT_LT(spent(PointId(kRecords - 10), 10), kRecords / 2);
  EXPECT_LT(spent(PointId(0), kRecords), 24 * kRecords);
}

TEST_F(HistoryTest, ADamagedWideRecordIsAnErrorForOneLeafAndForMany) {
  std::vector<Change> written;
  for (uint64_t leaf = 0; leaf < 12; ++leaf)
    written.push_back({{leaf * kLeafBytes, kUnit}, SegmentId(1), leaf * kUnit});
  apply(kImage, PointId(1), {}, written);
  kv::WriteBatch out;
  out.put(kWides, image_point_key(kImage, PointId(2)), Bytes{1, 0, 3});
  ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  auto snapshot = store_->snapshot();
  HistoryView view(*snapshot, kImage, PointId(2));
  for (uint64_t leaf = 0; leaf < 12; ++leaf) {
    Leaf found;
    EXPECT_EQ(view.load(leaf, found).code(), Code::kCorruption) << leaf;
  }
}

TEST_F(HistoryTest, ImagesAndPointsDoNotMix) {
  apply(kImage, PointId(1), {}, {{{0, kUnit}, SegmentId(1), 0}});
  apply(kNeighbour, PointId(2), {}, {{{0, kUnit}, SegmentId(2), 0}});
  EXPECT_EQ(load(kImage, PointId(5), 0)[0].segment, 1u);
  EXPECT_EQ(load(kNeighbour, PointId(5), 0)[0].segment, 2u);
  EXPECT_EQ(load(kNeighbour, PointId(1), 0)[0].segment, 0u);
  auto snapshot = store_->snapshot();
  EXPECT_EQ(HistoryView(*snapshot, kImage, PointId(9)).next_leaf(0), std::optional<uint64_t>(0));
  EXPECT_EQ(HistoryView(*snapshot, kImage, PointId(9)).next_leaf(1), std::nullopt);
}

TEST_F(HistoryTest, ShrinkInsideAUnitCutsItsTailUntilItIsWrittenAgain) {
  apply(kImage, PointId(1), {}, {{{0, 4 * kUnit}, SegmentId(1), 0}});
  apply(kImage, PointId(2), kUnit + 100, {});
  EXPECT_EQ(load(kImage, PointId(1), 0)[1].valid, kUnitBytes);
  EXPECT_EQ(load(kImage, PointId(2), 0)[1].valid, 100);
  EXPECT_EQ(load(kImage, PointId(2), 0)[2].segment, 0u);
  std::vector<StoredRun> runs;
  append_runs(load(kImage, PointId(2), 0), 0, {0, 4 * kUnit}, runs);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].length, kUnit + 100);
  apply(kImage, PointId(3), {}, {{{kUnit, kUnit}, SegmentId(3), 0}});
  EXPECT_EQ(load(kImage, PointId(3), 0)[1].valid, kUnitBytes);
}

TEST_F(HistoryTest, ShrinkSurvivesAFullVersion) {
  apply(kImage, PointId(1), {}, {{{0, 4 * kUnit}, SegmentId(1), 0}});
  apply(kImage, PointId(2), 2 * kUnit + 7, {});
  for (uint64_t p = 3; p < 3 + 2 * kDeltasMax; ++p)
    apply(kImage, PointId(p), {}, {{{8 * kUnit, kUnit}, SegmentId(p), 0}});
  const Leaf leaf = load(kImage, PointId(3 + 2 * kDeltasMax), 0);
  EXPECT_EQ(leaf[1].valid, kUnitBytes);
  EXPECT_EQ(leaf[2].valid, 7);
  EXPECT_EQ(leaf[3].segment, 0u);
}

TEST_F(HistoryTest, ZerosOverNothingAreNotStored) {
  kv::WriteBatch out;
  auto snapshot = store_->snapshot();
  HistoryWriter writer(*snapshot, out);
  std::vector<Change> changes{{{0, kWideBytesMin - kLeafBytes}, SegmentId(0), 0}};
  ASSERT_TRUE(writer.apply(kImage, PointId(1), {}, changes).is_ok());
  EXPECT_TRUE(out.empty());
}

TEST_F(HistoryTest, DamagedVersionIsAnErrorNotAGuess) {
  kv::WriteBatch out;
  out.put(kLeaves, leaf_key(kImage, 0, PointId(1)), Bytes{1, 0, 3});
  out.put(kLeaves, leaf_key(kImage, 1, PointId(1)), Bytes{2, 0});
  ASSERT_TRUE(store_->commit_and_wait(std::move(out)).is_ok());
  auto snapshot = store_->snapshot();
  Leaf leaf;
  EXPECT_EQ(HistoryView(*snapshot, kImage, PointId(1)).load(0, leaf).code(), Code::kCorruption);
  EXPECT_EQ(HistoryView(*snapshot, kImage, PointId(1)).load(1, leaf).code(), Code::kCorruption);
}

}  // namespace
}  // namespace tidemark::replica
