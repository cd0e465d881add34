// Sizes and space: truncate, ftruncate, posix_fallocate, fallocate's modes, holes, st_blocks, limits.
#include <linux/falloc.h>
#include <sys/resource.h>

#include <csignal>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class Truncate : public Posix {};
class Allocate : public Posix {};
class Holes : public Posix {};
class Limits : public Posix {};

off_t size_of(const std::string& name) { return stat_of(name).st_size; }

TEST_F(Truncate, ShrinksAndGrowsWithZeros) {
  make_file("f", 0644, std::string(10000, 'x'));
  for (off_t size : {12345, 3, 4096, 4097, 0, 100000, 4095}) {
    EXPECT_EQ(::truncate("f", size), 0);
    EXPECT_EQ(size_of("f"), size);
  }
  EXPECT_EQ(read_file("f"), std::string(4095, '\0'));
  Fd fd(::open("f", O_RDWR));
  ASSERT_EQ(::pwrite(fd, "abcdef", 6, 0), 6);
  EXPECT_EQ(::ftruncate(fd, 3), 0);
  EXPECT_EQ(::ftruncate(fd, 8), 0);
  EXPECT_EQ(read_file("f"), std::string("abc\0\0\0\0\0", 8)) << "what was cut off does not come back";
}
TEST_F(Truncate, MovesTimes) {
  make_file("f", 0644, "contents");
  Fd fd(::open("f", O_RDWR));
  EXPECT_EQ(moved("f", [] { ::truncate("f", 3); }), "mc");
  EXPECT_EQ(moved("f", [] { ::truncate("f", 30); }), "mc");
  EXPECT_EQ(moved("f", [&] { ::ftruncate(fd, 10); }), "mc");
  EXPECT_EQ(moved("f", [&] { ::ftruncate(fd, 10); }), "mc") << "they move in any case";
  EXPECT_EQ(moved("f", [] { ::truncate("f", 10); }), "mc");
  EXPECT_EQ(moved("f", [] { EXPECT_EQ(err(::truncate("f", -1)), EINVAL); }), "");
}
TEST_F(Truncate, Errors) {
  make_file("f");
  make_dir("d");
  make_link("l", "l");
  EXPECT_EQ(err(::truncate("none", 0)), ENOENT);
  EXPECT_EQ(err(::truncate("f/x", 0)), ENOTDIR);
  EXPECT_EQ(err(::truncate("d", 0)), EISDIR);
  EXPECT_EQ(err(::truncate("l", 0)), ELOOP);
  EXPECT_EQ(err(::truncate("f", -1)), EINVAL);
  Fd fd(::open("f", O_RDWR)), dir(::open("d", O_RDONLY));
  EXPECT_EQ(err(::ftruncate(fd, -1)), EINVAL);
  EXPECT_EQ(err(::ftruncate(dir, 0)), EINVAL);
}
TEST_F(Truncate, FollowsLinks) {
  make_file("f", 0644, "contents");
  make_link("f", "l");
  EXPECT_EQ(::truncate("l", 2), 0);
  EXPECT_EQ(size_of("f"), 2);
}

TEST_F(Allocate, PosixFallocateGrowsAndKeepsContents) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  EXPECT_EQ(::posix_fallocate(fd, 0, 567), 0);
  EXPECT_EQ(size_of("f"), 567);
  ASSERT_EQ(::pwrite(fd, "abc", 3, 0), 3);
  EXPECT_EQ(::posix_fallocate(fd, 20000, 3456), 0);
  EXPECT_EQ(size_of("f"), 23456);
  EXPECT_EQ(::posix_fallocate(fd, 0, 100), 0);
  EXPECT_EQ(size_of("f"), 23456);
  EXPECT_EQ(read_file("f"), "abc" + std::string(23453, '\0'));
  EXPECT_EQ(::posix_fallocate(fd, 0, 0), EINVAL);
  EXPECT_EQ(::posix_fallocate(fd, -1, 10), EINVAL);
  EXPECT_EQ(::posix_fallocate(fd, 0, -1), EINVAL);
  EXPECT_EQ(moved("f", [&] { ::posix_fallocate(fd, 0, 40000); }), "mc");
  EXPECT_EQ(moved("f", [&] { ::posix_fallocate(fd, 0, 40000); }), "mc") << "within the file too";
}
TEST_F(Allocate, ReservesBlocks) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  ASSERT_EQ(::ftruncate(fd, 8 << 20), 0);
  EXPECT_LT(stat_of("f").st_blocks, 64);
  ASSERT_EQ(::fallocate(fd, 0, 1 << 20, 2 << 20), 0);
  EXPECT_GE(stat_of("f").st_blocks, (2 << 20) / 512);
  EXPECT_LT(stat_of("f").st_blocks, (3 << 20) / 512);
}
TEST_F(Allocate, KeepSizeKeepsTheSize) {
  make_file("f", 0644, "contents");
  Fd fd(::open("f", O_RDWR));
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 20), 0);
  EXPECT_EQ(size_of("f"), 8);
  EXPECT_EQ(read_file("f"), "contents");
}
TEST_F(Allocate, PunchAndZeroLeaveTheRest) {
  std::string data(100000, 'x');
  make_file("f", 0644, data);
  Fd fd(::open("f", O_RDWR));
  auto zeroed = [&](size_t at, size_t n) { std::fill_n(data.begin() + static_cast<long>(at), n, '\0'); };
  EXPECT_EQ(moved("f", [&] { ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 30000); }), "mc");
  zeroed(5000, 30000);
  EXPECT_EQ(read_file("f"), data);
  EXPECT_EQ(moved("f", [&] { ::fallocate(fd, FALLOC_FL_ZERO_RANGE, 50000, 1); }), "mc");
  zeroed(50000, 1);
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 90000, 50000), 0);
  zeroed(90000, 10000);
  EXPECT_EQ(read_file("f"), data);
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 200000, 1000), 0);
  EXPECT_EQ(size_of("f"), 100000);
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_ZERO_RANGE, 99000, 3000), 0);
  EXPECT_EQ(size_of("f"), 102000);
  EXPECT_EQ(err(::fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096)), EOPNOTSUPP) << "a hole keeps the size";
}
TEST_F(Allocate, CollapseAndInsertAreRefused) {
  make_file("f", 0644, std::string(16384, 'x'));
  Fd fd(::open("f", O_RDWR));
  EXPECT_EQ(err(::fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 4096)), native ? 0 : EOPNOTSUPP);
  EXPECT_EQ(err(::fallocate(fd, FALLOC_FL_INSERT_RANGE, 4096, 4096)), native ? 0 : EOPNOTSUPP);
  EXPECT_EQ(size_of("f"), 16384);
}

TEST_F(Holes, SeekFindsDataAndHoles) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  constexpr off_t kMiB = 1 << 20;
  ASSERT_EQ(::ftruncate(fd, 16 * kMiB), 0);
  EXPECT_EQ(err(::lseek(fd, 0, SEEK_DATA)), ENXIO);
  EXPECT_EQ(::lseek(fd, 5, SEEK_HOLE), 5);
  std::string data(kMiB, 'x');
  ASSERT_EQ(::pwrite(fd, data.data(), data.size(), 4 * kMiB), kMiB);
  EXPECT_EQ(::lseek(fd, 0, SEEK_DATA), 4 * kMiB);
  EXPECT_EQ(::lseek(fd, 4 * kMiB + 7, SEEK_DATA), 4 * kMiB + 7);
  EXPECT_EQ(::lseek(fd, 4 * kMiB, SEEK_HOLE), 5 * kMiB);
  EXPECT_EQ(::lseek(fd, 9 * kMiB, SEEK_HOLE), 9 * kMiB);
  EXPECT_EQ(err(::lseek(fd, 5 * kMiB, SEEK_DATA)), ENXIO);
  EXPECT_EQ(err(::lseek(fd, 16 * kMiB, SEEK_DATA)), ENXIO);
  EXPECT_EQ(err(::lseek(fd, 16 * kMiB, SEEK_HOLE)), ENXIO);
  EXPECT_EQ(err(::lseek(fd, 17 * kMiB, SEEK_HOLE)), ENXIO);
  EXPECT_EQ(err(::lseek(fd, -1, SEEK_DATA)), ENXIO);
  EXPECT_EQ(::lseek(fd, 0, SEEK_END), 16 * kMiB);
  EXPECT_EQ(::lseek(fd, kMiB, SEEK_END), 17 * kMiB);
  EXPECT_EQ(err(::lseek(fd, -17 * kMiB, SEEK_END)), EINVAL);
}
TEST_F(Holes, BlocksCountWhatIsAllocated) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  ASSERT_EQ(::ftruncate(fd, 64 << 20), 0);
  EXPECT_LT(stat_of("f").st_blocks, 64);
  std::string data(1 << 20, 'x');
  ASSERT_EQ(::pwrite(fd, data.data(), data.size(), 32 << 20), 1 << 20);
  ASSERT_EQ(::fsync(fd), 0);
  blkcnt_t full = stat_of("f").st_blocks;
  EXPECT_GE(full, (1 << 20) / 512);
  EXPECT_LT(full, (2 << 20) / 512);
  ASSERT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 32 << 20, 512 << 10), 0);
  EXPECT_LE(stat_of("f").st_blocks, full - (256 << 10) / 512);
  ASSERT_EQ(::ftruncate(fd, 0), 0);
  EXPECT_LT(stat_of("f").st_blocks, 64);
}
TEST_F(Holes, BlocksAreTrueRightAfterAWrite) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  std::string data(256 << 10, 'x');
  blkcnt_t before = stat_of("f").st_blocks;
  for (int i = 1; i <= 8; ++i) {
    ASSERT_EQ(::pwrite(fd, data.data(), data.size(), static_cast<off_t>(i) << 20), 256 << 10);
    ASSERT_EQ(::fsync(fd), 0);
    blkcnt_t now = stat_of("f").st_blocks;
    EXPECT_GE(now, before + (256 << 10) / 512) << i;
    before = now;
  }
}

TEST_F(Limits, TheSizeIsBounded) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  // ext4 ends at 16 TiB less a block; an image at 64 TiB, or where files on its bricks end: two of ext4 carry 32.
  off_t most = native ? (off_t(1) << 44) - 4096 : off_t(1) << 44, over = off_t(1) << 46;
  EXPECT_EQ(::ftruncate(fd, most), 0);
  EXPECT_EQ(size_of("f"), most);
  EXPECT_EQ(err(::ftruncate(fd, over + 4096)), EFBIG);
  EXPECT_EQ(err(::truncate("f", INT64_MAX)), EFBIG);
  EXPECT_EQ(err(::pwrite(fd, "x", 1, over + 4096)), EFBIG);
  EXPECT_EQ(::posix_fallocate(fd, over + 4096, 1), EFBIG);
  EXPECT_EQ(::posix_fallocate(fd, INT64_MAX - 1, 2), EFBIG);
  EXPECT_EQ(size_of("f"), most);
  EXPECT_EQ(::ftruncate(fd, 0), 0);
}
TEST_F(Limits, TheResourceLimitHolds) {
  make_file("f");
  EXPECT_EQ(as(0, 0, [] {
    rlimit limit{8192, 8192};
    ::signal(SIGXFSZ, SIG_IGN);
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    Fd fd(::open("f", O_RDWR));
    if (err(::ftruncate(fd, 10000)) != EFBIG) return 2;
    if (::pwrite(fd, std::string(5000, 'x').data(), 5000, 5000) != 3192) return 3;  // as much as fits
    if (err(::pwrite(fd, "x", 1, 8192)) != EFBIG) return 4;
    return 0;
  }), 0);
  EXPECT_EQ(size_of("f"), 8192);
}

}  // namespace
}  // namespace tidemark::conformance
