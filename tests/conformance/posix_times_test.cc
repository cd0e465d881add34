// Times: utimensat, and what reads, writes and closes do to them.
#include <sys/ioctl.h>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class Utimes : public Posix {};
class Stamps : public Posix {};

int set(const char* name, timespec atime, timespec mtime, int flags = 0) {
  timespec both[2] = {atime, mtime};
  return err(::utimensat(AT_FDCWD, name, both, flags));
}
constexpr timespec kNow{0, UTIME_NOW}, kOmit{0, UTIME_OMIT};

TEST_F(Utimes, SetsBothToTheNanosecond) {
  make_file("f");
  make_dir("d");
  make_link("f", "l");
  timespec a{1234567890, 123456789}, m{987654321, 987654321};
  for (const char* name : {"f", "d"}) {
    EXPECT_EQ(set(name, a, m), 0);
    EXPECT_TRUE(stat_of(name).st_atim == a) << name;
    EXPECT_TRUE(stat_of(name).st_mtim == m) << name;
  }
  EXPECT_EQ(set("l", m, a, AT_SYMLINK_NOFOLLOW), 0);
  EXPECT_TRUE(stat_of("l").st_atim == m && stat_of("l").st_mtim == a);
  EXPECT_TRUE(stat_of("f").st_mtim == m) << "the link's target is untouched";
  EXPECT_EQ(set("l", {5, 6}, {7, 8}), 0);
  EXPECT_TRUE(stat_of("f").st_mtim == (timespec{7, 8}));
}
TEST_F(Utimes, NowAndOmit) {
  make_file("f");
  ASSERT_EQ(set("f", {1, 1}, {2, 2}), 0);
  EXPECT_EQ(set("f", kOmit, {3, 3}), 0);
  EXPECT_TRUE(stat_of("f").st_atim == (timespec{1, 1}) && stat_of("f").st_mtim == (timespec{3, 3}));
  EXPECT_EQ(set("f", {4, 4}, kOmit), 0);
  EXPECT_TRUE(stat_of("f").st_atim == (timespec{4, 4}) && stat_of("f").st_mtim == (timespec{3, 3}));
  time_t before = ::time(nullptr);
  EXPECT_EQ(set("f", kNow, kOmit), 0);
  EXPECT_GE(stat_of("f").st_atim.tv_sec, before - 1);
  EXPECT_TRUE(stat_of("f").st_mtim == (timespec{3, 3}));
  EXPECT_EQ(::utimensat(AT_FDCWD, "f", nullptr, 0), 0);
  EXPECT_GE(stat_of("f").st_mtim.tv_sec, before - 1);
  EXPECT_EQ(moved("f", [] { EXPECT_EQ(set("f", kOmit, kOmit), 0); }), "");
}
TEST_F(Utimes, MovesCtime) {
  make_file("f");
  EXPECT_EQ(moved("f", [] { set("f", {1, 1}, kOmit); }), "c");
  EXPECT_EQ(moved("f", [] { set("f", {1, 1}, {1, 1}); }), "mc");
}
TEST_F(Utimes, BeforeTheEpochAndFarAhead) {
  make_file("f");
  for (timespec t : {timespec{-1, 0}, timespec{-1, 999999999}, timespec{-2000000000, 5}, timespec{0, 1},
                     timespec{2147483648, 7}, timespec{4294967296, 9}, timespec{9000000000, 123}}) {
    EXPECT_EQ(set("f", t, t), 0) << t.tv_sec;
    EXPECT_TRUE(stat_of("f").st_mtim == t && stat_of("f").st_atim == t) << t.tv_sec;
  }
}
TEST_F(Utimes, BeyondWhatCanBeKeptIsTheNearestThatCan) {
  make_file("f");
  ASSERT_EQ(set("f", {INT64_MAX, 0}, {INT64_MIN, 0}), 0);
  EXPECT_GT(stat_of("f").st_atim.tv_sec, 9000000000);
  EXPECT_LE(stat_of("f").st_mtim.tv_sec, -2000000000);
}
TEST_F(Utimes, RefusesWhatIsNoTime) {
  make_file("f");
  EXPECT_EQ(set("f", {0, 1000000000}, {0, 0}), EINVAL);
  EXPECT_EQ(set("f", {0, 0}, {0, -1}), EINVAL);
  EXPECT_EQ(set("none", kNow, kNow), ENOENT);
  EXPECT_EQ(set("f/x", kNow, kNow), ENOTDIR);
}
TEST_F(Utimes, WhoMay) {
  make_file("f", 0646);
  ASSERT_EQ(::chown("f", kAlice, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return set("f", {1, 1}, {2, 2}); }), 0);
  EXPECT_EQ(as(kBob, kGuests, [] { return set("f", {1, 1}, {2, 2}); }), EPERM);
  EXPECT_EQ(as(kBob, kGuests, [] { return set("f", kNow, kOmit); }), EPERM);
  EXPECT_EQ(as(kBob, kGuests, [] { return set("f", kNow, kNow); }), 0) << "a writer may set both to now";
  EXPECT_EQ(as(kBob, kStaff, [] { return set("f", kNow, kNow); }), EACCES);
  EXPECT_EQ(as(kBob, kStaff, [] { return set("f", kOmit, kOmit); }), 0);
}
TEST_F(Utimes, StayAfterTheFileWasWrittenAndClosed) {
  for (int i = 0; i < 20; ++i) {
    std::string name = "f" + std::to_string(i);
    make_file(name, 0644, "contents");
    timespec t{1000000 + i, 42};
    ASSERT_EQ(set(name.c_str(), t, t), 0);
    EXPECT_TRUE(stat_of(name).st_mtim == t) << name;
  }
  EXPECT_TRUE(stays([] {
    for (int i = 0; i < 20; ++i)
      if (fresh_stat("f" + std::to_string(i)).st_mtim.tv_sec != 1000000 + i) return false;
    return true;
  }));
}
TEST_F(Utimes, StayWhileTheFileIsOpenAndWasWritten) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  ASSERT_EQ(::write(fd, "x", 1), 1);
  timespec both[2] = {{11, 1}, {12, 2}};
  ASSERT_EQ(::futimens(fd, both), 0);
  EXPECT_TRUE(stat_of("f").st_mtim == both[1]);
  ASSERT_EQ(::fsync(fd), 0);
  fd.close();
  EXPECT_TRUE(stays([&] { return fresh_stat("f").st_mtim == both[1]; }));
}

TEST_F(Stamps, AWriteMovesMtimeAndCtime) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  EXPECT_EQ(moved("f", [&] { ::write(fd, "x", 1); }), "mc");
  EXPECT_EQ(moved("f", [&] { ::pwrite(fd, "y", 1, 0); }), "mc");
  EXPECT_EQ(moved("f", [&] { ::write(fd, "", 0); }), "");
  EXPECT_EQ(moved("f", [&] { ::fsync(fd); }), "");
  EXPECT_EQ(moved("f", [&] { char c; ::pread(fd, &c, 1, 0); }), "");
  struct stat st = stat_of("f");
  EXPECT_TRUE(st.st_mtim == st.st_ctim);
}
TEST_F(Stamps, StayTheSameAfterTheClose) {
  struct stat open{};
  {
    Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
    ASSERT_EQ(::write(fd, "x", 1), 1);
    tick();
    ASSERT_EQ(::fstat(fd, &open), 0);
  }
  EXPECT_TRUE(stays([&] {
    struct stat now = fresh_stat("f");
    return now.st_mtim == open.st_mtim && now.st_ctim == open.st_ctim;
  }));
}
TEST_F(Stamps, ACreationStampsAllThree) {
  timespec before;
  ::clock_gettime(CLOCK_REALTIME_COARSE, &before);
  make_file("f");
  make_dir("d");
  make_link("x", "l");
  for (const char* name : {"f", "d", "l"}) {
    struct stat st = stat_of(name);
    for (timespec t : {st.st_atim, st.st_mtim, st.st_ctim}) EXPECT_FALSE(t < before) << name;
  }
}

}  // namespace
}  // namespace tidemark::conformance
