#include "shared/io/timer_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidemark::io {
namespace {

using ::testing::ElementsAre;

struct Timers {
  TimerQueue queue;
  std::vector<int> ran;
  TimerId add(int64_t at, int name) { return queue.add({at}, [this, name] { ran.push_back(name); }); }
  void run(int64_t now) {
    while (auto fn = queue.take_due({now})) fn();
  }
};

TEST(TimerQueue, RunsDueOnesByDeadlineThenByOrderOfAdding) {
  Timers t;
  t.add(20, 1), t.add(10, 2), t.add(20, 3), t.add(30, 4);
  t.run(20);
  EXPECT_THAT(t.ran, ElementsAre(2, 1, 3));
  EXPECT_EQ(t.queue.next_deadline()->ns, 30);
}

TEST(TimerQueue, CancelledTopDoesNotShowAsDeadline) {
  Timers t;
  TimerId first = t.add(10, 1);
  t.add(20, 2);
  t.queue.cancel(first);
  EXPECT_EQ(t.queue.next_deadline()->ns, 20);
  t.run(100);
  EXPECT_THAT(t.ran, ElementsAre(2));
  EXPECT_FALSE(t.queue.next_deadline());
  t.queue.cancel(first);
}

TEST(TimerQueue, ManyCancelledOnesLeaveTheLivingInOrder) {
  Timers t;
  std::vector<TimerId> ids;
  for (int i = 0; i < 10'000; ++i) ids.push_back(t.add(10'000 - i, i));
  for (int i = 0; i < 10'000; ++i) {
    if (i % 1000 != 0) t.queue.cancel(ids[static_cast<size_t>(i)]);
  }
  EXPECT_EQ(t.queue.size(), 10u);
  t.run(20'000);
  EXPECT_THAT(t.ran, ElementsAre(9000, 8000, 7000, 6000, 5000, 4000, 3000, 2000, 1000, 0));
}

TEST(TimerQueue, DestructorOfACancelledFunctionMayCancelAnother) {
  Timers t;
  TimerId other = t.add(5, 1);
  struct CancelsInDestructor {
    TimerQueue* queue;
    TimerId id;
    ~CancelsInDestructor() { queue->cancel(id); }
  };
  auto owned = std::make_shared<CancelsInDestructor>(&t.queue, other);   // shared: UniqueFunction moves it
  TimerId holder = t.queue.add({6}, [owned] {});
  owned.reset();
  t.queue.cancel(holder);
  EXPECT_EQ(t.queue.size(), 0u);
}

}  // namespace
}  // namespace tidemark::io
