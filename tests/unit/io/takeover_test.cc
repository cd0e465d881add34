// An inline file operation that does not come back, or a submission: the loop goes on without it. It hangs because the
// memory that is to be filled is missing until this test says so (userfaultfd).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "shared/io/file.h"
#include "shared/io/real_env.h"

namespace tidemark::io {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
constexpr size_t kPage = 4096;

// Memory that a read blocks on.
class MissingMemory {
 public:
  MissingMemory() {
    fd_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api{};
    api.api = UFFD_API;
    void* at = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data_ = static_cast<uint8_t*>(at);
    uffdio_register ask{};
    ask.range = {reinterpret_cast<uint64_t>(at), kPage};
    ask.mode = UFFDIO_REGISTER_MODE_MISSING;
    ok_ = fd_ >= 0 && at != MAP_FAILED && ::ioctl(fd_, UFFDIO_API, &api) == 0 &&
          ::ioctl(fd_, UFFDIO_REGISTER, &ask) == 0;
  }
  ~MissingMemory() {
    if (fd_ >= 0) ::close(fd_);
    ::munmap(data_, kPage);
  }
  bool ok() const { return ok_; }
  MutableByteSpan span() { return {data_, kPage}; }
  void provide() {
    uffdio_zeropage zero{};
    zero.range = {reinterpret_cast<uint64_t>(data_), kPage};
    EXPECT_EQ(::ioctl(fd_, UFFDIO_ZEROPAGE, &zero), 0) << errno;
  }

 private:
  int fd_ = -1;
  uint8_t* data_ = nullptr;
  bool ok_ = false;
};

class TakeoverTest : public testing::TestWithParam<bool> {
 protected:
  TakeoverTest() : env_(RealEnvOptions{{}, {}, GetParam()}) {
    char name[] = "/tmp/tidemark-takeover.XXXXXX";
    int fd = ::mkstemp(name);
    path_ = name;
    Bytes content(kPage, 'x');
    EXPECT_EQ(::write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    ::close(fd);
    auto file = env_.files().open(path_, {});
    EXPECT_TRUE(file.is_ok());
    file_ = std::move(*file);
  }
  ~TakeoverTest() override {
    file_.reset();
    ::unlink(path_.c_str());
  }

  RealEnv env_;
  std::string path_;
  std::unique_ptr<File> file_;
};

TEST_P(TakeoverTest, TheLoopGoesOnWhileAReadHangsAndHearsOfItsEnd) {
  MissingMemory missing;
  ASSERT_TRUE(missing.ok()) << "userfaultfd: errno " << errno << " (needs root, or vm.unprivileged_userfaultfd)";
  Bytes before(kPage), meanwhile(kPage), after(kPage), inline_meanwhile(kPage);
  int order = 0, hung_at = 0, meanwhile_at = 0, left = 2;
  auto one_done = [&](Status s) {
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    if (--left == 0) env_.stop();
  };
  auto finish = [&](Status s) {
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    hung_at = ++order;
    EXPECT_EQ(missing.span()[kPage - 1], 'x');
    // The thread that was left behind watches now: inline operations go on, and the loop ends as ever.
    file_->read(0, after, IoMode::kInline, one_done);
  };
  auto provide = [&] {
    EXPECT_EQ(hung_at, 0);
    missing.provide();
  };
  env_.post([&] {
    file_->read(0, before, IoMode::kQueued, one_done);   // with the ring that is left
    file_->read(0, missing.span(), IoMode::kInline, finish);
    env_.after(milliseconds(1), [&] {
      EXPECT_EQ(hung_at, 0);
      file_->read(0, inline_meanwhile, IoMode::kInline, [&](Status s) { EXPECT_TRUE(s.is_ok()); });
      file_->read(0, meanwhile, IoMode::kQueued, [&](Status s) {
        EXPECT_TRUE(s.is_ok());
        meanwhile_at = ++order;
        env_.after(milliseconds(1), provide);
      });
    });
  });
  env_.run();
  EXPECT_EQ(meanwhile_at, 1);
  EXPECT_EQ(hung_at, 2);
  for (const Bytes* bytes : {&before, &meanwhile, &after, &inline_meanwhile}) EXPECT_EQ(bytes->back(), 'x');
}

// Whoever submits may be kept by a device whose queue is full, or that has yet to say where a file's blocks are. What
// has not been submitted by then goes on, and so does what is asked for from then on, though that hang too.
TEST_P(TakeoverTest, TheLoopGoesOnWhileASubmissionHangs) {
  constexpr int kMany = 1000;   // more than are submitted at once
  MissingMemory missing, missing_too;
  ASSERT_TRUE(missing.ok() && missing_too.ok());
  Bytes bytes(kPage), inline_bytes(kPage);
  int many = 0, meanwhile = 0;
  bool provided = false;
  const bool both = env_.has_io_uring();   // of the threads that stand in for it there are few
  const int hang = both ? 2 : 1;
  int hanging = hang;
  auto hung_done = [&](Status s) {
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    EXPECT_TRUE(provided);
    if (--hanging == 0) env_.stop();
  };
  auto meanwhile_done = [&](Status s) {
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    if (++meanwhile < 2) return;
    EXPECT_GT(many, 0);
    EXPECT_EQ(hanging, hang);
    provided = true;
    missing.provide();
    if (both) missing_too.provide();
  };
  env_.post([&] {
    file_->read(0, missing.span(), IoMode::kQueued, hung_done);
    for (int i = 0; i < kMany; ++i) file_->read(0, bytes, IoMode::kQueued, [&](Status s) { many += s.is_ok(); });
    env_.after(milliseconds(1), [&] {
      if (both) file_->read(0, missing_too.span(), IoMode::kQueued, hung_done);
      env_.after(milliseconds(1), [&] {
        file_->read(0, bytes, IoMode::kQueued, meanwhile_done);
        file_->read(0, inline_bytes, IoMode::kInline, meanwhile_done);
      });
    });
  });
  env_.run();
  EXPECT_EQ(many, kMany);
  EXPECT_EQ(meanwhile, 2);
  EXPECT_EQ(missing.span().back(), 'x');
  EXPECT_TRUE(!both || missing_too.span().back() == 'x');
}

// Inline operations that were to follow the submission are found by the other thread before it sleeps.
TEST_P(TakeoverTest, WhatIsLeftOfTheTurnIsNotSleptOn) {
  bool in_time = false;
  // Where the machine stands still it may take over too late for that: once more. One that sleeps does so each time.
  for (int i = 0; i < 3 && !in_time; ++i) {
    MissingMemory missing;
    ASSERT_TRUE(missing.ok());
    Bytes bytes(kPage);
    RealEnv env(RealEnvOptions{{}, {}, GetParam()});
    auto file = env.files().open(path_, {});
    ASSERT_TRUE(file.is_ok()) << file.status().to_string();
    bool done = false;
    int left = 2;
    auto one_done = [&](Status s) {
      EXPECT_TRUE(s.is_ok()) << s.to_string();
      if (--left == 0) env.stop();
    };
    env.post([&] {
      (*file)->read(0, missing.span(), IoMode::kQueued, one_done);
      (*file)->read(0, bytes, IoMode::kInline, [&](Status s) {
        done = s.is_ok();
        one_done(std::move(s));
      });
      env.after(milliseconds(1200), [&] {   // a quarter of a second until it takes over, and then a sleep of one
        in_time = done;
        missing.provide();
      });
    });
    env.run();
  }
  EXPECT_TRUE(in_time);
}

TEST_P(TakeoverTest, ManyInARow) {
  int left = 6;
  std::vector<std::unique_ptr<MissingMemory>> memory;
  for (int i = 0; i < left; ++i) memory.push_back(std::make_unique<MissingMemory>());
  UniqueFunction<void()> next = [&] {
    MissingMemory& missing = *memory[static_cast<size_t>(left - 1)];
    file_->read(0, missing.span(), left % 2 == 0 ? IoMode::kInline : IoMode::kQueued, [&](Status s) {
      EXPECT_TRUE(s.is_ok());
      if (--left == 0) env_.stop();
      else env_.after(milliseconds(100), [&] { next(); });   // the other thread watches again by then
    });
    env_.after(milliseconds(1), [&] { memory[static_cast<size_t>(left - 1)]->provide(); });
  };
  env_.post([&] { next(); });
  env_.run();
  EXPECT_EQ(left, 0);
}

// What hangs for good must not keep a daemon that is told to stop.
TEST_P(TakeoverTest, AStopIsCarriedOutAllTheSame) {
  if (env_.has_io_uring()) {
    EXPECT_EXIT(
        {
          RealEnv env;
          auto file = env.files().open(path_, {});
          MissingMemory missing;
          env.post([&] {
            (*file)->read(0, missing.span(), IoMode::kQueued, [](Status) {});
            env.after(milliseconds(1), [&] { env.stop(); });
          });
          env.run();
          std::_Exit(0);
        },
        testing::ExitedWithCode(EXIT_FAILURE), "");
  }
  EXPECT_EXIT(
      {
        RealEnv env(RealEnvOptions{{}, {}, GetParam()});
        auto file = env.files().open(path_, {});
        MissingMemory missing;
        env.post([&] {
          (*file)->read(0, missing.span(), IoMode::kInline, [](Status) {});
          env.after(milliseconds(1), [&] { env.stop(); });
        });
        env.run();
        std::_Exit(0);
      },
      testing::ExitedWithCode(EXIT_FAILURE), "");
}

// Of descriptors that are free: none but `spare`.
class FewDescriptors {
 public:
  explicit FewDescriptors(rlim_t spare) {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const int lowest = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    ::close(lowest);
    const rlimit few{static_cast<rlim_t>(lowest) + spare, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

// Threads carry out what was queued, and once there is room again a ring is made.
TEST_P(TakeoverTest, WhatIsQueuedIsCarriedOutThoughNoRingCanBeMade) {
  if (!GetParam()) return;
  for (rlim_t spare : {0u, 1u}) {   // a ring needs two
    constexpr size_t kMany = 1000;   // more than are submitted at once
    RealEnv env;
    auto file = env.files().open(path_, {});
    ASSERT_TRUE(file.is_ok() && env.has_io_uring());
    MissingMemory missing;
    ASSERT_TRUE(missing.ok());
    Bytes bytes(kPage), many_bytes(kMany * kPage);   // several threads at once
    size_t many = 0;
    bool meanwhile = false;
    std::optional<FewDescriptors> few;
    auto hung_done = [&](Status s) {
      EXPECT_TRUE(s.is_ok()) << s.to_string();
      EXPECT_TRUE(meanwhile);
    };
    auto one_done = [&](Status s) {
      EXPECT_TRUE(s.is_ok()) << s.to_string();
      ++many;
    };
    auto meanwhile_done = [&](Status s) {
      meanwhile = s.is_ok();
      EXPECT_FALSE(env.has_io_uring());
      few.reset();
      missing.provide();
      env.after(milliseconds(1100), [&] {
        EXPECT_TRUE(env.has_io_uring());
        (*file)->read(0, bytes, IoMode::kQueued, [&](Status) { env.stop(); });
      });
    };
    env.post([&] {
      few.emplace(spare);
      (*file)->read(0, missing.span(), IoMode::kQueued, hung_done);
      for (size_t i = 0; i < kMany; ++i)
        (*file)->read(0, MutableByteSpan(many_bytes).subspan(i * kPage, kPage), IoMode::kQueued, one_done);
      env.after(milliseconds(1), [&] { (*file)->read(0, bytes, IoMode::kQueued, meanwhile_done); });
    });
    env.run();
    EXPECT_EQ(many, kMany);
    EXPECT_TRUE(meanwhile);
  }
}

// The thread that is back asks for the end of what its ring has; where nothing ends, less and less often.
TEST_P(TakeoverTest, TheLoopSleepsWhileAnOperationHangsThatWasSubmitted) {
  if (!GetParam()) return;
  MissingMemory first, submitted, second;
  ASSERT_TRUE(first.ok() && submitted.ok() && second.ok());
  auto sleeps = [] {
    rusage used{};
    EXPECT_EQ(::getrusage(RUSAGE_THREAD, &used), 0);
    return used.ru_nvcsw;
  };
  long before = 0, during = 0;
  auto measured = [&] {
    during = sleeps() - before;
    submitted.provide();
  };
  auto second_done = [&](Status s) {   // its thread is back, and cannot let its ring go
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    before = sleeps();
    env_.after(seconds(1), measured);
  };
  auto hang_anew = [&] {
    file_->read(0, second.span(), IoMode::kInline, second_done);
    env_.after(milliseconds(1), [&] { second.provide(); });
  };
  env_.post([&] {
    file_->read(0, first.span(), IoMode::kQueued, [&](Status) { env_.after(milliseconds(100), hang_anew); });
    env_.after(milliseconds(1), [&] {   // by a thread of the kernel's, as the other one is left alone
      file_->read(0, submitted.span(), IoMode::kQueued, [&](Status s) {
        EXPECT_TRUE(s.is_ok()) << s.to_string();
        env_.stop();
      });
      first.provide();
    });
  });
  env_.run();
  EXPECT_GT(during, 0);
  EXPECT_LT(during, 40);
}

INSTANTIATE_TEST_SUITE_P(Rings, TakeoverTest, testing::Values(true, false),
                         [](const auto& info) { return std::string(info.param ? "IoUring" : "Threads"); });

}  // namespace
}  // namespace tidemark::io
