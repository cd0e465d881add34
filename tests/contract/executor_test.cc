// Posting, timers, the end of a turn, offloading, clocks and chance.
#include <atomic>
#include <thread>

#include "tests/contract/harness.h"

namespace tidemark::contract {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

TM_CONTRACT_SUITE(ExecutorContract);

TEST_P(ExecutorContract, PostedFunctionsRunLaterAndInOrder) {
  std::vector<int> order;
  for (int i = 0; i < 3; ++i) env().post([&order, i] { order.push_back(i); });
  EXPECT_TRUE(order.empty());
  ASSERT_TRUE(run_until([&] { return order.size() == 3; }));
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
}

TEST_P(ExecutorContract, PostFromAPostedFunctionRunsAfterIt) {
  std::vector<int> order;
  env().post([&] {
    env().post([&] { order.push_back(2); });
    order.push_back(1);
  });
  ASSERT_TRUE(run_until([&] { return order.size() == 2; }));
  EXPECT_THAT(order, ElementsAre(1, 2));
}

TEST_P(ExecutorContract, TimersRunInOrderOfTheirDeadlinesAndNeverEarly) {
  std::vector<int> order;
  io::BootTime start = env().now();
  io::BootTime first{};
  env().after(milliseconds(30), [&] { order.push_back(30); });
  env().after(milliseconds(10), [&] { order.push_back(10); first = env().now(); });
  env().after(milliseconds(20), [&] { order.push_back(20); });
  ASSERT_TRUE(run_until([&] { return order.size() == 3; }));
  EXPECT_THAT(order, ElementsAre(10, 20, 30));
  EXPECT_GE(first - start, milliseconds(10));
}

TEST_P(ExecutorContract, CancelledTimerDoesNotRunAndItsFunctionIsDestroyed) {
  auto owned = std::make_shared<int>(0);   // shared with the function, to see it go
  bool ran = false, later = false;
  io::TimerId id = env().after(milliseconds(1), [&ran, owned] { ran = true; });
  EXPECT_EQ(owned.use_count(), 2);
  env().cancel(id);
  EXPECT_EQ(owned.use_count(), 1);
  env().cancel(id);
  env().cancel({});
  env().after(milliseconds(5), [&] { later = true; });
  ASSERT_TRUE(run_until([&] { return later; }));
  EXPECT_FALSE(ran);
}

TEST_P(ExecutorContract, TimerMayCancelAnotherOfTheSameMoment) {
  bool second_ran = false, done = false;
  io::TimerId second;
  env().after(milliseconds(1), [&] { env().cancel(second); });
  second = env().after(milliseconds(1), [&] { second_ran = true; });
  env().after(milliseconds(20), [&] { done = true; });
  ASSERT_TRUE(run_until([&] { return done; }));
  EXPECT_FALSE(second_ran);
}

TEST_P(ExecutorContract, TimerSetInATimerRunsInALaterTurn) {
  int rounds = 0;
  bool posted_between = false;
  UniqueFunction<void()> again = [&] {
    if (++rounds == 1) {
      env().post([&] { posted_between = true; });
      env().after({}, [&] { ++rounds; });
    }
  };
  env().after({}, std::move(again));
  ASSERT_TRUE(run_until([&] { return rounds == 2 && posted_between; }));
}

TEST_P(ExecutorContract, TurnEndRunsAfterTheEventAndIncludesWhatItAdds) {
  std::vector<int> order;
  env().post([&] {
    env().at_turn_end([&] {
      order.push_back(2);
      env().at_turn_end([&] { order.push_back(3); });
    });
    order.push_back(1);
  });
  ASSERT_TRUE(run_until([&] { return order.size() == 3; }));
  EXPECT_THAT(order, ElementsAre(1, 2, 3));
}

TEST_P(ExecutorContract, TurnEndOutsideOfATurnRunsInTheNext) {
  bool ran = false;
  env().at_turn_end([&] { ran = true; });
  EXPECT_FALSE(ran);
  EXPECT_TRUE(run_until([&] { return ran; }));
}

TEST_P(ExecutorContract, OffloadRunsWorkThenDoneOnTheLoop) {
  std::thread::id loop = std::this_thread::get_id();
  int finished = 0;
  std::atomic<int> worked = 0;
  for (int i = 0; i < 20; ++i) {
    env().offload([&] { ++worked; },
                  [&] {
                    EXPECT_EQ(std::this_thread::get_id(), loop);
                    EXPECT_GT(worked.load(), finished);
                    ++finished;
                  });
  }
  EXPECT_EQ(finished, 0);
  EXPECT_TRUE(run_until([&] { return finished == 20; }));
  EXPECT_EQ(worked.load(), 20);
}

TEST_P(ExecutorContract, ClocksAdvance) {
  io::BootTime boot = env().now();
  WallTime wall = env().wall();
  harness->run_for(milliseconds(20));
  EXPECT_GE(env().now() - boot, milliseconds(20));
  EXPECT_GT(env().wall(), wall);
}

TEST_P(ExecutorContract, RandomDiffersAndBootIdStays) {
  EXPECT_NE(env().random_u64(), env().random_u64());
  EXPECT_NE(env().random_uuid(), env().random_uuid());
  EXPECT_FALSE(env().boot_id().is_nil());
  EXPECT_EQ(env().boot_id(), env().boot_id());
}

}  // namespace
}  // namespace tidemark::contract
