// When the loop polls before it sleeps, and that it is woken while it polls.
#include "shared/io/busy_poll.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "shared/io/real_env.h"

namespace tidemark::io {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kMax = microseconds(100);

void feed(BusyPoll& poll, Duration waited, int times) {
  for (int i = 0; i < times; ++i) poll.waited(waited);
}

TEST(BusyPoll, PollsAfterShortWaitsOnly) {
  BusyPoll poll(kMax);
  EXPECT_EQ(poll.budget(), Duration::zero()) << "an idle daemon sleeps";
  feed(poll, microseconds(40), 1);
  EXPECT_EQ(poll.budget(), kMax);
  feed(poll, milliseconds(5), 1);
  EXPECT_EQ(poll.budget(), Duration::zero());
}

TEST(BusyPoll, OneLongWaitAmongManyShortOnesDoesNotEndIt) {
  BusyPoll poll(kMax);
  feed(poll, microseconds(40), 20);
  feed(poll, milliseconds(3), 1);
  EXPECT_EQ(poll.budget(), kMax);
  feed(poll, milliseconds(3), 1);
  EXPECT_EQ(poll.budget(), Duration::zero());
}

TEST(BusyPoll, NeverPollsWhereEverySecondWaitIsLong) {
  BusyPoll poll(kMax);
  int polled = 0;
  for (int i = 0; i < 1000; ++i) {
    feed(poll, i % 2 == 0 ? Duration(microseconds(20)) : Duration(milliseconds(1)), 1);
    if (poll.budget() > Duration::zero()) ++polled;
  }
  EXPECT_LE(polled, 1);
}

TEST(BusyPoll, RecoversSoonAfterALongIdleTime) {
  BusyPoll poll(kMax);
  feed(poll, seconds(1), 1000);
  feed(poll, microseconds(20), 4);
  EXPECT_EQ(poll.budget(), kMax);
}

TEST(BusyPoll, ALoopThatPollsServesDescriptorsAndPostedFunctions) {
  RealEnv env({.busy_poll_max = milliseconds(50)});
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  int read_bytes = 0;
  int posted = 0;
  ASSERT_TRUE(env.add_fd(fds[0], EPOLLIN, [&](uint32_t) {
    char c;
    ASSERT_EQ(::read(fds[0], &c, 1), 1);
    ++read_bytes;
  }).is_ok());
  // Each round waits for the one before, so that the loop is waiting, and after the first rounds polling, in most.
  std::atomic<int> rounds = 0;
  std::thread other([&] {
    for (int i = 0; i < 200; ++i) {
      while (rounds.load() < i) std::this_thread::yield();
      if (i % 2 == 0) {
        EXPECT_EQ(::write(fds[1], "x", 1), 1);
      } else {
        env.post([&] { ++posted; });
      }
    }
  });
  bool all = env.run_until([&] { rounds = read_bytes + posted; return rounds == 200; }, seconds(20));
  other.join();
  EXPECT_TRUE(all);
  EXPECT_EQ(read_bytes, 100);
  EXPECT_EQ(posted, 100);
  env.remove_fd(fds[0]);
  ::close(fds[0]);
  ::close(fds[1]);
}

}  // namespace
}  // namespace tidemark::io
