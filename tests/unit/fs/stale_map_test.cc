#include "fs/stale_map.h"

#include <gtest/gtest.h>

namespace tidemark::fs {
namespace {

TEST(StaleMap, AllMeansEveryRegionOfTheSize) {
  StaleMap map;
  map.set_all(10ull << 20, 4ull << 20);
  EXPECT_EQ(map.count(), 3u);
  EXPECT_TRUE(map.stale({(10ull << 20) - 1, 1}));
  EXPECT_EQ(map.stale_bytes(10ull << 20), 10ull << 20);
  for (uint64_t r : {0u, 1u, 2u}) map.clear(r);
  EXPECT_TRUE(map.none());
}

TEST(StaleMap, ARangeIsStaleIfAnyPartIs) {
  StaleMap map;
  map.set_bitmap({0b00000100}, 64ull << 20, 4ull << 20);
  EXPECT_FALSE(map.stale({0, 8ull << 20}));
  EXPECT_TRUE(map.stale({0, (8ull << 20) + 1}));
  EXPECT_TRUE(map.stale({(12ull << 20) - 1, 1}));
  EXPECT_FALSE(map.stale({12ull << 20, 4096}));
  EXPECT_FALSE(map.stale({9ull << 20, 0}));
  EXPECT_EQ(map.next(0), 2u);
  EXPECT_EQ(map.next(3), UINT64_MAX);
}

TEST(StaleMap, BitsPastTheSizeAreIgnored) {
  StaleMap map;
  map.set_bitmap({0xff, 0xff, 0xff}, 5ull << 20, 4ull << 20);
  EXPECT_EQ(map.count(), 2u);
  map.clear(1);
  map.clear(1);
  map.clear(99);
  EXPECT_EQ(map.count(), 1u);
}

}  // namespace
}  // namespace tidemark::fs
