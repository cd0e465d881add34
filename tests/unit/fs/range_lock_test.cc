#include "fs/range_lock.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

namespace tidemark::fs {
namespace {

using Hold = RangeLock::Hold;

struct Request {
  Hold hold;
  bool granted = false;
  Request(RangeLock& lock, Extent extent, bool exclusive) {
    hold.extent = extent;
    hold.exclusive = exclusive;
    if (lock.acquire(hold)) granted = true;
    else hold.granted = [this] { granted = true; };
  }
};

TEST(RangeLock, WritesInOneGranuleAreOrdered) {
  RangeLock lock;
  Request a(lock, {0, 512}, true), b(lock, {3584, 512}, true), c(lock, {4096, 512}, true);
  EXPECT_TRUE(a.granted);
  EXPECT_FALSE(b.granted);
  EXPECT_TRUE(c.granted);
  lock.release(a.hold);
  EXPECT_TRUE(b.granted);
}

TEST(RangeLock, ReadsShareAndWaitForWrites) {
  RangeLock lock;
  Request r1(lock, {0, 8192}, false), r2(lock, {4096, 4096}, false), w(lock, {4096, 1}, true),
      r3(lock, {4096, 1}, false);
  EXPECT_TRUE(r1.granted);
  EXPECT_TRUE(r2.granted);
  EXPECT_FALSE(w.granted);
  EXPECT_FALSE(r3.granted) << "a read does not overtake a waiting write";
  lock.release(r1.hold);
  EXPECT_FALSE(w.granted);
  lock.release(r2.hold);
  EXPECT_TRUE(w.granted);
  EXPECT_FALSE(r3.granted);
  lock.release(w.hold);
  EXPECT_TRUE(r3.granted);
}

TEST(RangeLock, OverlappingWaitersKeepTheirOrder) {
  RangeLock lock;
  Request a(lock, {0, 4096}, true), b(lock, {0, 8192}, true), c(lock, {4096, 4096}, true);
  EXPECT_FALSE(c.granted) << "c is free now, but came after b, which needs its range";
  lock.release(a.hold);
  EXPECT_TRUE(b.granted);
  EXPECT_FALSE(c.granted);
  lock.release(b.hold);
  EXPECT_TRUE(c.granted);
}

TEST(RangeLock, WholeImageWaitsForAllAndHoldsAllOff) {
  RangeLock lock;
  Request a(lock, {1ull << 40, 4096}, true), all(lock, {0, UINT64_MAX}, true), b(lock, {0, 1}, true);
  EXPECT_FALSE(all.granted);
  EXPECT_FALSE(b.granted);
  lock.release(a.hold);
  EXPECT_TRUE(all.granted);
  lock.release(all.hold);
  EXPECT_TRUE(b.granted);
}

TEST(RangeLock, WithdrawnWaiterLetsLaterOnesPass) {
  RangeLock lock;
  Request a(lock, {0, 4096}, true), b(lock, {0, 8192}, true), c(lock, {4096, 4096}, true);
  EXPECT_TRUE(lock.withdraw(b.hold));
  EXPECT_TRUE(c.granted);
  EXPECT_FALSE(lock.withdraw(a.hold)) << "held places are released";
}

// Random requests: at no time do two conflicting ones hold, overlapping ones are granted as they came, all are granted.
TEST(RangeLock, RandomLoadNeverConflictsNorReordersNorStarves) {
  std::mt19937_64 random(7);
  RangeLock lock;
  struct Item { Hold hold; uint64_t number = 0; bool granted = false; };
  std::vector<std::unique_ptr<Item>> live;
  uint64_t next = 0, finished = 0;
  auto overlaps = [](const Item& a, const Item& b) {
    uint64_t af = a.hold.extent.offset / 4096, al = (a.hold.extent.end() - 1) / 4096;
    uint64_t bf = b.hold.extent.offset / 4096, bl = (b.hold.extent.end() - 1) / 4096;
    return af <= bl && bf <= al && (a.hold.exclusive || b.hold.exclusive);
  };
  for (int step = 0; step < 20000; ++step) {
    if (live.size() < 40 && random() % 2 == 0) {
      auto item = std::make_unique<Item>();
      item->number = next++;
      item->hold.extent = {random() % 100000, 1 + random() % 30000};
      item->hold.exclusive = random() % 3 != 0;
      Item* p = item.get();
      live.push_back(std::move(item));
      p->hold.granted = [p] { p->granted = true; };
      if (lock.acquire(p->hold)) p->granted = true;
    } else if (!live.empty()) {
      size_t at = random() % live.size();
      if (!live[at]->granted) continue;
      lock.release(live[at]->hold);
      live.erase(live.begin() + static_cast<ptrdiff_t>(at));
      ++finished;
    }
    for (size_t i = 0; i < live.size(); ++i)
      for (size_t j = i + 1; j < live.size(); ++j) {
        if (!overlaps(*live[i], *live[j])) continue;
        ASSERT_FALSE(live[i]->granted && live[j]->granted);
        ASSERT_FALSE(live[j]->granted && live[i]->number < live[j]->number) << "a later request overtook";
      }
  }
  EXPECT_GT(finished, 1000u);
  while (!live.empty()) {
    bool progress = false;
    for (size_t i = 0; i < live.size(); ++i) {
      if (!live[i]->granted) continue;
      lock.release(live[i]->hold);
      live.erase(live.begin() + static_cast<ptrdiff_t>(i));
      progress = true;
      break;
    }
    ASSERT_TRUE(progress) << "all wait: a deadlock";
  }
  EXPECT_TRUE(lock.idle());
}

}  // namespace
}  // namespace tidemark::fs
