// The map of what the replica lacks.
#include "journal/lacks.h"

#include <gtest/gtest.h>

#include "shared/base/limits.h"

namespace tidemark::journal {
namespace {

ImageId an_image(uint8_t n) {
  std::array<uint8_t, 16> bytes{};
  bytes.fill(n);
  return Uuid::from_random(bytes);
}

TEST(LackMapTest, TakesWholeRegionsInOrderAndForgetsThemOnceStaged) {
  LackMap map(4 << 20);
  EXPECT_TRUE(map.set(an_image(1), {5 << 20, 1}));
  EXPECT_FALSE(map.set(an_image(1), {4 << 20, 4 << 20}));
  EXPECT_TRUE(map.set(an_image(1), {8 << 20, 1}));
  EXPECT_TRUE(map.set(an_image(2), {0, 9 << 20}));
  EXPECT_EQ(map.bytes(), 20u << 20);
  auto taken = map.take(8 << 20);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].extent, (Extent{4 << 20, 8 << 20}));
  EXPECT_EQ(map.bytes(), 20u << 20) << "not before they are staged";
  map.staged(taken);
  EXPECT_EQ(map.bytes(), 12u << 20);
  taken = map.take(1);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].extent, (Extent{0, 4 << 20})) << "at least one";
  map.untake();
  taken = map.take(UINT64_MAX);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].extent, (Extent{0, 12 << 20}));
  EXPECT_TRUE(map.empty());
  EXPECT_EQ(map.bytes(), 12u << 20);
}

TEST(LackMapTest, StaysBoundedForTheLargestImage) {
  LackMap map(4 << 20);
  EXPECT_TRUE(map.set(an_image(1), {0, 1}));
  EXPECT_TRUE(map.set(an_image(1), {limits::kImageBytesMax - 1, 1}));
  auto taken = map.take(UINT64_MAX);
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_LE(limits::kImageBytesMax / taken[0].extent.length, limits::kRegionsPerImageMax);
  EXPECT_EQ(taken[1].extent.end(), limits::kImageBytesMax);
}

}  // namespace
}  // namespace tidemark::journal
