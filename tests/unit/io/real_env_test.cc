// What only the real loop has: descriptors, signals, wake-ups from other threads.
#include "shared/io/real_env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "shared/kv/store.h"

namespace tidemark::io {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kWait = seconds(20);

class Pipe {
 public:
  Pipe() { EXPECT_EQ(::pipe(fds_), 0); }
  ~Pipe() {
    ::close(fds_[0]);
    ::close(fds_[1]);
  }
  int out() const { return fds_[0]; }
  void put(char c = 'x') { EXPECT_EQ(::write(fds_[1], &c, 1), 1); }
  void take() { char c; EXPECT_EQ(::read(fds_[0], &c, 1), 1); }

 private:
  int fds_[2];
};

TEST(RealEnv, ReadyDescriptorCallsBackUntilItIsDrained) {
  RealEnv env;
  Pipe pipe;
  int calls = 0;
  ASSERT_TRUE(env.add_fd(pipe.out(), EPOLLIN, [&](uint32_t events) {
    EXPECT_TRUE(events & EPOLLIN);
    ++calls;
    pipe.take();
  }).is_ok());
  pipe.put(), pipe.put();
  ASSERT_TRUE(env.run_until([&] { return calls == 2; }, kWait));
  env.turn({});
  EXPECT_EQ(calls, 2);
  env.remove_fd(pipe.out());
}

TEST(RealEnv, RemovedDescriptorIsNotCalledEvenIfItsEventWasCollected) {
  RealEnv env;
  Pipe a, b;
  int calls = 0;
  auto remove_both = [&](uint32_t) {
    ++calls;
    env.remove_fd(a.out());
    env.remove_fd(b.out());
  };
  ASSERT_TRUE(env.add_fd(a.out(), EPOLLIN, remove_both).is_ok());
  ASSERT_TRUE(env.add_fd(b.out(), EPOLLIN, remove_both).is_ok());
  a.put(), b.put();
  ASSERT_TRUE(env.run_until([&] { return calls > 0; }, kWait));
  env.turn({});
  EXPECT_EQ(calls, 1);
}

TEST(RealEnv, DescriptorAddedAnewInACallbackGetsOnlyItsOwnEvents) {
  RealEnv env;
  Pipe a, b;
  int old_calls = 0, new_calls = 0;
  auto replace = [&](uint32_t) {
    ++old_calls;
    for (Pipe* p : {&a, &b}) {
      env.remove_fd(p->out());
      // EPOLLET without a new edge after the first report: each new watch sees its byte once.
      ASSERT_TRUE(env.add_fd(p->out(), EPOLLIN | EPOLLET, [&](uint32_t) { ++new_calls; }).is_ok());
    }
  };
  ASSERT_TRUE(env.add_fd(a.out(), EPOLLIN, replace).is_ok());
  ASSERT_TRUE(env.add_fd(b.out(), EPOLLIN, replace).is_ok());
  a.put(), b.put();
  ASSERT_TRUE(env.run_until([&] { return new_calls == 2; }, kWait));
  EXPECT_EQ(old_calls, 1);
  env.remove_fd(a.out());
  env.remove_fd(b.out());
}

TEST(RealEnv, ModifiedInterestTakesEffect) {
  RealEnv env;
  Pipe pipe;
  int calls = 0;
  ASSERT_TRUE(env.add_fd(pipe.out(), 0, [&](uint32_t) { ++calls; pipe.take(); }).is_ok());
  pipe.put();
  env.turn({});
  EXPECT_EQ(calls, 0);
  ASSERT_TRUE(env.modify_fd(pipe.out(), EPOLLIN).is_ok());
  ASSERT_TRUE(env.run_until([&] { return calls == 1; }, kWait));
  env.remove_fd(pipe.out());
}

TEST(RealEnv, BadDescriptorIsAnError) {
  RealEnv env;
  EXPECT_FALSE(env.add_fd(1000, EPOLLIN, [](uint32_t) {}).is_ok());
}

TEST(RealEnv, PostsOfManyThreadsAllRunAndWakeTheLoop) {
  RealEnv env;
  constexpr int kThreads = 4, kPosts = 20'000;
  int ran = 0;
  std::vector<std::thread> threads;
  std::vector<int> last(kThreads, -1);
  bool in_order = true;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kPosts; ++i) {
        env.post([&, t, i] {
          in_order = in_order && last[static_cast<size_t>(t)] == i - 1;
          last[static_cast<size_t>(t)] = i;
          ++ran;
        });
      }
    });
  }
  EXPECT_TRUE(env.run_until([&] { return ran == kThreads * kPosts; }, kWait));
  EXPECT_TRUE(in_order);
  for (auto& thread : threads) thread.join();
}

// A loop that sleeps through a wake-up is a second late. So is any other now and then where the machine stands still.
TEST(RealEnv, PostFromAnotherThreadEndsALongWait) {
  RealEnv env;
  int late = 0;
  for (int i = 0; i < 1000 && late <= 3; ++i) {
    bool ran = false;
    std::thread poster([&] { env.post([&] { ran = true; }); });
    BootTime start = env.now();
    ASSERT_TRUE(env.run_until([&] { return ran; }, kWait));
    late += env.now() - start >= milliseconds(900);
    poster.join();
  }
  EXPECT_LE(late, 3) << "the loop slept through the wake-up";
}

TEST(RealEnv, StopEndsRunFromAnyThread) {
  RealEnv env;
  bool ran = false;
  env.post([&] { ran = true; });
  std::thread stopper([&] { env.stop(); });
  env.run();
  stopper.join();
  env.post([&] { env.stop(); });
  env.run();
  EXPECT_TRUE(ran);
}

TEST(RealEnv, SignalArrivesOnTheLoop) {
  RealEnv env;
  int got = 0;
  env.on_signal({SIGUSR1}, [&](int signal) { got = signal; });
  ASSERT_EQ(::kill(::getpid(), SIGUSR1), 0);
  EXPECT_TRUE(env.run_until([&] { return got != 0; }, kWait));
  EXPECT_EQ(got, SIGUSR1);
}

TEST(RealEnv, DestroyedWithWorkPendingRunsNothing) {
  auto owned = std::make_shared<int>(0);   // shared with the functions, to see them go
  bool ran = false;
  {
    RealEnv env;
    auto fn = [owned, &ran] { ran = true; };
    env.post(fn);
    env.after(seconds(5), fn);
    env.at_turn_end(fn);
    for (int i = 0; i < 10; ++i) env.offload([] {}, fn);
  }
  EXPECT_FALSE(ran);
  EXPECT_EQ(owned.use_count(), 1);
}

TEST(RealEnv, WithoutAnOpenerStoresAreUnsupported) {
  RealEnv env;
  EXPECT_EQ(env.open_store("/nowhere", {}).status().code(), Code::kUnsupported);
}

}  // namespace
}  // namespace tidemark::io
