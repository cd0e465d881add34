#include <gtest/gtest.h>

#include "shared/node/behind.h"
#include "shared/node/order.h"

namespace tidemark::node {
namespace {

TEST(BehindMap, LevelClearsOnlyWhatWasNotMarkedAgain) {
  BehindMap map(Incarnation(1));
  EXPECT_TRUE(map.mark(3));
  EXPECT_FALSE(map.mark(3));
  EXPECT_TRUE(map.mark(9));
  EXPECT_EQ(map.bitmap(), (Bytes{0x08, 0x02}));
  uint64_t cut = map.hand_out();
  EXPECT_FALSE(map.is_marked(3)) << "a mark made before the hand-out could be cleared by it";
  EXPECT_TRUE(map.mark(3));
  EXPECT_EQ(map.clear({0xFF, 0xFF}, cut), std::vector<uint32_t>{9});
  EXPECT_EQ(map.bitmap(), Bytes{0x08});
  EXPECT_EQ(map.clear({0xFF}, map.hand_out()), std::vector<uint32_t>{3});
  EXPECT_TRUE(map.bitmap().empty());
}

TEST(BehindMap, ALaterRunsMarksAreAboveEarlierHandOuts) {
  BehindMap before(Incarnation(1));
  for (int i = 0; i < 100; ++i) before.hand_out();
  uint64_t cut = before.hand_out();
  BehindMap after(Incarnation(2));
  after.load(4, cut);
  EXPECT_TRUE(after.mark(4));
  EXPECT_TRUE(after.clear({0xFF}, cut).empty());
}

TEST(BehindMap, ACoarserMapVoidsEarlierHandOuts) {
  BehindMap map(Incarnation(1));
  map.mark(4);
  map.mark(7);
  uint64_t cut = map.hand_out();
  map.coarsen(4);
  EXPECT_EQ(map.bitmap(), Bytes{0x02});
  EXPECT_TRUE(map.clear({0xFF}, cut).empty());
  EXPECT_EQ(map.clear({0xFF}, map.hand_out()).size(), 1u);
}

struct TestOp {
  Extent range;
  bool exclusive = true;
};

TEST(OrderTable, OverlapsRunInTheOrderOfArrival) {
  OrderTable<TestOp> table;
  std::vector<TestOp*> next;
  TestOp a{{0, 10}}, b{{4095, 1}}, c{{4096, 100}}, d{{0, 8192}}, e{{100, 1}};
  EXPECT_TRUE(table.admit(&a));
  EXPECT_FALSE(table.admit(&b)) << "the same granule";
  EXPECT_TRUE(table.admit(&c));
  EXPECT_FALSE(table.admit(&d));
  EXPECT_FALSE(table.admit(&e)) << "never before one that came earlier";
  table.release(&a, next);
  EXPECT_EQ(next, std::vector<TestOp*>{&b});
  next.clear();
  table.release(&b, next);
  EXPECT_TRUE(next.empty());
  table.release(&c, next);
  EXPECT_EQ(next, std::vector<TestOp*>{&d});
  next.clear();
  table.release(&d, next);
  EXPECT_EQ(next, std::vector<TestOp*>{&e});
  next.clear();
  table.release(&e, next);
  EXPECT_TRUE(table.empty());
}

TEST(OrderTable, ReadersRunBesideReaders) {
  OrderTable<TestOp> table;
  std::vector<TestOp*> next;
  TestOp r1{{0, 4096}, false}, r2{{0, 4096}, false}, w{{0, 1}, true}, r3{{0, 1}, false};
  EXPECT_TRUE(table.admit(&r1));
  EXPECT_TRUE(table.admit(&r2));
  EXPECT_FALSE(table.admit(&w));
  EXPECT_FALSE(table.admit(&r3)) << "a stream of readers must not starve a writer";
  table.release(&r1, next);
  EXPECT_TRUE(next.empty());
  table.release(&r2, next);
  EXPECT_EQ(next, std::vector<TestOp*>{&w});
}

}  // namespace
}  // namespace tidemark::node
