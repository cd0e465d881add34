// What only files of the kernel have: full disks, buffered fallback, mount identities.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <functional>
#include <random>

#include "shared/base/limits.h"
#include "shared/io/file.h"
#include "shared/io/real_env.h"
#include "shared/io/real_files.h"
#include "shared/io/ring.h"
#include "tests/repeat.h"

namespace tidemark::io {
namespace {

constexpr auto kAtMost = std::chrono::seconds(20);

class RealFiles : public ::testing::TestWithParam<bool> {
 protected:
  RealFiles() : env({.use_io_uring = GetParam()}) {
    std::string pattern = "/var/tmp/tidemark_io_XXXXXX";
    directory = ::mkdtemp(pattern.data());
  }
  ~RealFiles() override { std::filesystem::remove_all(directory); }
  template <typename F>
  Status wait(F start) {
    std::optional<Status> result;
    start([&](Status s) { result = std::move(s); });
    EXPECT_TRUE(env.run_until([&] { return result.has_value(); }, kAtMost));
    return result.value_or(Status(Code::kUnavailable, "no answer"));
  }
  RealEnv env;
  std::string directory;
};
INSTANTIATE_TEST_SUITE_P(Ways, RealFiles, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "io_uring" : "threads"; });

TEST_P(RealFiles, FullFileSystemIsOutOfSpaceAndErrorNamesTheFile) {
  std::string mount = directory + "/small";
  std::filesystem::create_directory(mount);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=256k") != 0) FAIL() << "needs root: run as root";
  {
    auto file = std::move(*env.files().open(mount + "/f", {.create = true}));
    Bytes data(1 << 20, 7);
    for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
      Status status = wait([&](auto done) { file->write(0, data, mode, std::move(done)); });
      EXPECT_EQ(status.code(), Code::kOutOfSpace);
      EXPECT_THAT(status.message(), ::testing::HasSubstr(mount + "/f"));
    }
    EXPECT_NE(*env.files().mount_identity(mount), *env.files().mount_identity(directory));
    EXPECT_EQ(env.files().write_file_atomically(mount + "/g", data).code(), Code::kOutOfSpace);
  }
  EXPECT_EQ(::umount(mount.c_str()), 0);
}

TEST_P(RealFiles, DirectFallsBackToBufferedWhereItIsRefused) {
  // procfs has no O_DIRECT.
  auto file = env.files().open("/proc/self/oom_score_adj", {.direct = true, .read_only = true});
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  EXPECT_FALSE((*file)->is_direct());
  Bytes text(3);
  EXPECT_TRUE(wait([&](auto done) { (*file)->read(0, text, IoMode::kInline, std::move(done)); }).is_ok());
}

// Whether the page cache has this block of the file.
bool is_cached(const std::string& path, off_t offset) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  void* mapped = ::mmap(nullptr, File::kAlignment, PROT_READ, MAP_SHARED, fd, offset);
  unsigned char resident = 0;
  EXPECT_EQ(::mincore(mapped, File::kAlignment, &resident), 0);
  const bool there = (resident & 1) != 0;
  ::munmap(mapped, File::kAlignment);
  ::close(fd);
  return there;
}

void forget_cached(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(fd);
}

TEST_P(RealFiles, CachedReadsStayInThePageCacheAndLongOrDirectOnesDoNot) {
  const std::string path = directory + "/f";
  auto file = std::move(*env.files().open(path, {.create = true, .direct = true}));
  ASSERT_TRUE(file->is_direct());
  AlignedBuffer buffer(2 * limits::kCachedReadBytesMax);
  ASSERT_TRUE(wait([&](auto done) { file->write(0, buffer.span(), IoMode::kQueued, std::move(done)); }));
  const MutableByteSpan block = buffer.span().first(File::kAlignment);
  ASSERT_TRUE(wait([&](auto done) { file->read(0, block, IoMode::kInline, std::move(done)); }));
  EXPECT_FALSE(is_cached(path, 0));
  ASSERT_TRUE(wait([&](auto done) { file->read_cached(0, buffer.span(), IoMode::kInline, std::move(done)); }));
  EXPECT_FALSE(is_cached(path, 0));
  ASSERT_TRUE(wait([&](auto done) { file->read_cached(0, block, IoMode::kInline, std::move(done)); }));
  EXPECT_TRUE(is_cached(path, 0));
  EXPECT_FALSE(is_cached(path, File::kAlignment));   // nothing is read ahead
  ASSERT_TRUE(wait([&](auto done) { file->read_cached(File::kAlignment, block, IoMode::kInline, std::move(done)); }));
  EXPECT_FALSE(is_cached(path, 2 * File::kAlignment));
  // What the disk has and what the file lost: nothing that was cut off stays readable.
  ASSERT_TRUE(file->truncate(0));
  ASSERT_TRUE(wait([&](auto done) { file->read_cached(0, block, IoMode::kQueued, std::move(done)); }));
  EXPECT_THAT(Bytes(block.begin(), block.end()), ::testing::Each(0));
  auto whole = std::move(*env.files().open(path, {.direct = true, .whole = true}));
  EXPECT_EQ(wait([&](auto done) { whole->read_cached(0, block, IoMode::kQueued, std::move(done)); }).code(),
            Code::kCorruption);
}

// What such a write has left on the disk is not known: nobody may go on reading what was there before.
TEST_P(RealFiles, NothingStaysCachedOfAFileThatAWriteFailedOn) {
  const std::string path = directory + "/f";
  auto file = std::move(*env.files().open(path, {.create = true, .direct = true}));
  AlignedBuffer block(File::kAlignment);
  for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
    ASSERT_TRUE(wait([&](auto done) { file->write(0, block.span(), mode, std::move(done)); }));
    ASSERT_TRUE(wait([&](auto done) { file->read_cached(0, block.span(), mode, std::move(done)); }));
    ASSERT_TRUE(is_cached(path, 0));
    rlimit old;
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit small{File::kAlignment, old.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    Status failed = wait([&](auto done) { file->write(2 * File::kAlignment, block.span(), mode, std::move(done)); });
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
    EXPECT_FALSE(failed);
    EXPECT_FALSE(is_cached(path, 0));
  }
}

// Not after an error of the disk, which was asked again by then: a bad sector is slow each time.
TEST_P(RealFiles, AReadThatThePageCacheRefusesIsTriedPastItUnlessTheDiskFailed) {
  const std::string path = directory + "/f";
  auto file = std::move(*env.files().open(path, {.create = true, .direct = true}));
  AlignedBuffer block(File::kAlignment);
  std::memset(block.data(), 7, block.size());
  ASSERT_TRUE(wait([&](auto done) { file->write(0, block.span(), IoMode::kQueued, std::move(done)); }));
  std::memset(block.data(), 0, block.size());
  int no_reads = ::open(path.c_str(), O_WRONLY | O_CLOEXEC), reads = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  Ring::Request request{.kind = Ring::Kind::kRead, .fd = no_reads, .direct_fd = reads, .data = block.data(),
                        .length = block.size(), .path = &path};
  auto carry_out = [&]() -> Status {
    if (!GetParam()) return run_blocking(request);
    std::string why;
    auto ring = Ring::create(&why);
    if (ring == nullptr) return Status(Code::kUnsupported, why);
    uint32_t in_flight = 1;
    std::optional<Status> result;
    ring->queue(request, &in_flight, [&](Status s) { result = std::move(s); });
    for (int turns = 0; !result && turns < 100'000; ++turns) {
      ring->prepare(false);
      ring->enter();
      ring->reap();
    }
    return result.value_or(Status(Code::kUnavailable, "no answer"));
  };
  Status done = carry_out();
  EXPECT_TRUE(done) << done.to_string();
  EXPECT_EQ(block.data()[0], 7);
  request.direct_fd = -1;
  EXPECT_FALSE(carry_out());
  int bad = ::open("/proc/self/mem", O_RDONLY | O_CLOEXEC);   // nothing is at 0: EIO
  request.fd = bad;
  request.direct_fd = reads;
  EXPECT_EQ(carry_out().code(), Code::kIoError);
  ::close(bad);
  ::close(no_reads);
  ::close(reads);
}

// A ring that its thread is stuck with: what it cannot submit, and the rest of what came back in part, goes to another.
TEST(Ring, AnOrphansOperationsGoOnWithItsHeir) {
  std::string why;
  auto ring = Ring::create(&why), heir = Ring::create(&why);
  ASSERT_TRUE(ring != nullptr && heir != nullptr) << why;
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const std::string path = "pipe";
  uint8_t first[8] = {}, second[4] = {};
  uint32_t in_flight = 2, done = 0;
  auto count = [&](Status s) { done += s.is_ok(); };
  ASSERT_EQ(::write(ends[1], "1234", 4), 4);
  Ring::Request request{.kind = Ring::Kind::kRead, .fd = ends[0], .data = first, .length = 8, .path = &path};
  ring->queue(request, &in_flight, count);
  ring->prepare(false);
  ring->enter();
  ASSERT_TRUE(ring->has_ready());
  request.data = second;
  request.length = 4;
  ring->queue(request, &in_flight, count);
  ring->orphan([&](const Ring::Request& left, uint32_t* owner, Callback<Status> end) {
    heir->queue(left, owner, std::move(end));
  });
  EXPECT_EQ(ring->in_flight(), 1u);
  while (ring->has_ready()) ring->reap();
  EXPECT_EQ(ring->in_flight(), 0u);
  EXPECT_EQ(heir->in_flight(), 2u);
  ASSERT_EQ(::write(ends[1], "56789012", 8), 8);
  for (int turns = 0; done < 2 && turns < 100'000; ++turns) {
    heir->prepare(true);
    heir->enter();
    heir->reap();
  }
  EXPECT_EQ(done, 2u);
  EXPECT_EQ(in_flight, 0u);
  EXPECT_EQ(std::memcmp(first, "1234", 4), 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

// Whoever has asked for a file's times must see the next write in them: its inode would be written by each sync.
TEST_P(RealFiles, AskingForAFilesSizeAsksNotForItsTimes) {
  auto coarse = [] {
    timespec now;
    ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return std::pair(now.tv_sec, now.tv_nsec);
  };
  const std::string path = directory + "/f";
  auto file = std::move(*env.files().open(path, {.create = true, .direct = true}));
  AlignedBuffer block(File::kAlignment);
  auto write = [&] { return wait([&](auto done) { file->write(0, block.span(), IoMode::kInline, std::move(done)); }); };
  ASSERT_TRUE(write());
  for (auto ask : std::vector<std::function<void()>>{
           [&] { EXPECT_EQ(file->stat()->size, File::kAlignment); },
           [&] { EXPECT_EQ(env.files().stat(path)->size, File::kAlignment); },
           [&] {
             EXPECT_TRUE(wait([&](auto done) {
               file->ask_stat(IoMode::kQueued, [done = std::move(done)](auto found) mutable { done(found.status()); });
             }));
           }}) {
    // Such a write has the time of the clock's last tick, unless anybody's file was given an exact time since.
    bool coarse_time = false;
    for (int tries = 0; !coarse_time && tries < 200; ++tries) {
      ASSERT_TRUE(write());   // the times that this test asked for
      for (const auto tick = coarse(); coarse() == tick;) {}
      const auto before = coarse();
      ASSERT_TRUE(write());
      ask();
      ASSERT_TRUE(write());
      struct stat found;
      ASSERT_EQ(::stat(path.c_str(), &found), 0);
      coarse_time = std::pair(found.st_mtim.tv_sec, found.st_mtim.tv_nsec) == before;
    }
    EXPECT_TRUE(coarse_time);
  }
}

// Blocks are written while all around them is being read into the cache: what was answered is read from then on.
TEST_P(RealFiles, ACachedReadAfterADirectWriteGetsWhatWasWritten) {
  constexpr size_t kBlocks = 64, kRounds = repeat(2000, 300), kAtOnce = 8;
  constexpr uint64_t kBlock = File::kAlignment;
  auto file = std::move(*env.files().open(directory + "/f", {.create = true, .direct = true}));
  AlignedBuffer all(kBlocks * kBlock), data(kBlock), found(kBlock), around(kAtOnce * kBlock);
  ASSERT_TRUE(wait([&](auto done) { file->write(0, all.span(), IoMode::kQueued, std::move(done)); }));
  auto read = [&](size_t block) {
    return wait([&](auto d) { file->read_cached(block * kBlock, found.span(), IoMode::kInline, std::move(d)); });
  };
  std::mt19937 random(1);
  std::vector<uint8_t> want(kBlocks);
  for (size_t round = 0; round < kRounds; ++round) {
    const size_t block = random() % kBlocks;
    want[block] = static_cast<uint8_t>(random());
    std::memset(data.data(), want[block], kBlock);
    size_t left = kAtOnce + 1;
    auto done = [&](Status s) { EXPECT_TRUE(s) << s.to_string(); --left; };
    for (size_t i = 0; i < kAtOnce; ++i) {   // none of the block itself: who orders these is above
      const size_t other = (block + 1 + random() % (kBlocks - 1)) % kBlocks;
      file->read_cached(other * kBlock, around.span().subspan(i * kBlock, kBlock), IoMode::kQueued, done);
      if (i == kAtOnce / 2) file->write(block * kBlock, data.span(), IoMode::kQueued, done);
    }
    ASSERT_TRUE(env.run_until([&] { return left == 0; }, kAtMost));
    ASSERT_TRUE(read(block));
    ASSERT_EQ(std::memcmp(found.data(), data.data(), kBlock), 0) << "block " << block << " in round " << round;
    if (round % 16 == 0) forget_cached(directory + "/f");
  }
  for (size_t block = 0; block < kBlocks; ++block) {
    ASSERT_TRUE(read(block));
    EXPECT_THAT(Bytes(found.span().begin(), found.span().end()), ::testing::Each(want[block])) << block;
  }
}

TEST_P(RealFiles, WriteBeyondTheLimitOfAFileFailsClearly) {
  rlimit old;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  auto file = std::move(*env.files().open(directory + "/f", {.create = true}));
  rlimit small{100'000, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  Bytes data(200'000, 7);
  // The first call takes a part only; the rest must be tried and its error reported.
  Status status = wait([&](auto done) { file->write(0, data, IoMode::kInline, std::move(done)); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.to_string();
}

// A process stops when it is told to, with reads of its own under way that nobody waits for any more.
TEST_P(RealFiles, TheLoopMayEndWhileFilesOfItsCallbacksAreBeingRead) {
  const std::string path = directory + "/f";
  Bytes data(8 << 20, 7);
  ASSERT_TRUE(env.files().write_file_atomically(path, data).is_ok());
  int calls = 0;
  for (int round = 0; round < 10; ++round) {
    RealEnv other({.use_io_uring = GetParam()});
    for (bool background : {false, true}) {
      struct Reading { std::unique_ptr<File> file; Bytes bytes; };
      auto reading = std::make_shared<Reading>();   // shared with the reads
      auto opened = other.files().open(path, {.read_only = true, .background = background});
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      reading->file = std::move(*opened);
      reading->bytes.resize(data.size());
      for (size_t at = 0; at < data.size(); at += 1 << 20) {
        MutableByteSpan piece = MutableByteSpan(reading->bytes).subspan(at, 1 << 20);
        reading->file->read(at, piece, IoMode::kQueued, [reading, &calls](Status) { ++calls; });
      }
    }
    if (round % 2 == 1) other.turn({});
  }
  EXPECT_LT(calls, 10 * 2 * 8) << "none was under way";
}

}  // namespace
}  // namespace tidemark::io
