// Modes, owners, and who may do what (chmod, chown, set-id bits, sticky and set-group-id directories).
#include <linux/capability.h>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

mode_t mode_of(const std::string& path) { return stat_of(path).st_mode & 07777; }

class Chmod : public Posix {};
class Chown : public Posix {};
class SetId : public Posix {};
class Sticky : public Posix {};
class Access : public Posix {};

TEST_F(Chmod, SetsEveryBitOfFilesAndDirectories) {
  make_file("f");
  make_dir("d");
  for (mode_t mode : {0000, 0111, 0200, 0444, 0644, 0755, 0777, 01755, 02755, 04755, 07777, 06000}) {
    EXPECT_EQ(::chmod("f", mode), 0);
    EXPECT_EQ(mode_of("f"), mode);
    EXPECT_EQ(::chmod("d", mode), 0);
    EXPECT_EQ(mode_of("d"), mode);
  }
}
TEST_F(Chmod, FollowsSymbolicLinks) {
  make_file("f", 0644);
  make_link("f", "l");
  EXPECT_EQ(::chmod("l", 0600), 0);
  EXPECT_EQ(mode_of("f"), 0600u);
  EXPECT_EQ(mode_of("l"), 0777u);
}
TEST_F(Chmod, MovesCtimeOnly) {
  make_file("f");
  make_dir("d");
  EXPECT_EQ(moved("f", [] { ::chmod("f", 0600); }), "c");
  EXPECT_EQ(moved("f", [] { ::chmod("f", 0600); }), "c");
  EXPECT_EQ(moved("d", [] { ::chmod("d", 0700); }), "c");
  Fd fd(::open("f", O_RDONLY));
  EXPECT_EQ(moved("f", [&] { ::fchmod(fd, 0640); }), "c");
}
TEST_F(Chmod, AfterAWriteCtimeIsTheLatter) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  ASSERT_EQ(::write(fd, "x", 1), 1);
  EXPECT_EQ(moved("f", [&] { ::fchmod(fd, 0600); }), "c");
  struct stat open = stat_of("f");
  fd.close();
  EXPECT_TRUE(stays([&] { return fresh_stat("f").st_ctim == open.st_ctim; }))
      << "the time of the write, told at the close, is the older one";
}
TEST_F(Chmod, FailedCallMovesNothing) {
  make_file("f");
  EXPECT_EQ(moved("f", [] { EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chmod("f", 0)); }), EPERM); }), "");
  EXPECT_EQ(mode_of("f"), 0644u);
}
TEST_F(Chmod, OnlyTheOwnerMay) {
  make_file("f");
  ASSERT_EQ(::chown("f", kAlice, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chmod("f", 0600)); }), 0);
  EXPECT_EQ(as(kBob, kStaff, [] { return err(::chmod("f", 0666)); }), EPERM);
  EXPECT_EQ(mode_of("f"), 0600u);
}
TEST_F(Chmod, ErrorsOfThePath) {
  make_file("f");
  make_link("l1", "l2");
  make_link("l2", "l1");
  EXPECT_EQ(err(::chmod("none", 0644)), ENOENT);
  EXPECT_EQ(err(::chmod("f/x", 0644)), ENOTDIR);
  EXPECT_EQ(err(::chmod("l1", 0644)), ELOOP);
  EXPECT_EQ(err(::chmod("l1/x", 0644)), ELOOP);
  EXPECT_EQ(err(::chmod(std::string(256, 'n').c_str(), 0644)), ENAMETOOLONG);
  make_dir("d", 0700);
  make_file("d/f");
  ASSERT_EQ(::chown("d/f", kAlice, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chmod("d/f", 0644)); }), EACCES);
}
TEST_F(Chmod, SetGroupIdGoesWhereTheCallerIsNotOfTheGroup) {
  make_file("f", 0755);
  ASSERT_EQ(::chown("f", kAlice, kGuests), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chmod("f", 02755)); }), 0);
  EXPECT_EQ(mode_of("f"), 0755u);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chmod("f", 02755)); }, {kGuests}), 0);
  EXPECT_EQ(mode_of("f"), 02755u);
}

TEST_F(Chown, SetsOwnerAndGroupAlone) {
  make_file("f");
  make_link("f", "l");
  EXPECT_EQ(::chown("f", kAlice, kStaff), 0);
  EXPECT_EQ(stat_of("f").st_uid, kAlice);
  EXPECT_EQ(stat_of("f").st_gid, kStaff);
  EXPECT_EQ(::chown("l", kBob, static_cast<gid_t>(-1)), 0);
  EXPECT_EQ(stat_of("f").st_uid, kBob);
  EXPECT_EQ(stat_of("f").st_gid, kStaff);
  EXPECT_EQ(::chown("f", static_cast<uid_t>(-1), kGuests), 0);
  EXPECT_EQ(stat_of("f").st_gid, kGuests);
  EXPECT_EQ(::lchown("l", kAlice, kStaff), 0);
  EXPECT_EQ(stat_of("l").st_uid, kAlice);
  EXPECT_EQ(stat_of("f").st_uid, kBob);
}
TEST_F(Chown, MovesCtimeEvenWhereNothingChanges) {
  make_file("f");
  make_dir("d");
  make_link("f", "l");
  EXPECT_EQ(moved("f", [] { ::chown("f", kAlice, kStaff); }), "c");
  EXPECT_EQ(moved("f", [] { ::chown("f", kAlice, kStaff); }), "c");
  EXPECT_EQ(moved("f", [] { ::chown("f", -1, -1); }), "c");
  EXPECT_EQ(moved("d", [] { ::chown("d", -1, -1); }), "c");
  EXPECT_EQ(moved("l", [] { ::lchown("l", kAlice, -1); }), "c");
}
TEST_F(Chown, OwnerMayGiveToOwnGroupsOnly) {
  make_file("f");
  ASSERT_EQ(::chown("f", kAlice, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chown("f", -1, kGuests)); }, {kGuests}), 0);
  EXPECT_EQ(stat_of("f").st_gid, kGuests);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chown("f", kAlice, kStaff)); }), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chown("f", -1, kGuests)); }), EPERM);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chown("f", kBob, -1)); }), EPERM);
  EXPECT_EQ(as(kBob, kStaff, [] { return err(::chown("f", kBob, kStaff)); }), EPERM);
  EXPECT_EQ(as(kBob, kStaff, [] { return err(::chown("f", -1, kStaff)); }), EPERM);
}
TEST_F(Chown, TakesSetIdBitsFromFilesNotFromDirectories) {
  make_file("f", 0755);
  make_dir("d");
  for (mode_t mode : {04755, 02755, 06755, 06711}) {
    ASSERT_EQ(::chmod("f", mode), 0);
    EXPECT_EQ(::chown("f", kAlice, kStaff), 0);
    EXPECT_EQ(mode_of("f"), mode & ~06000u) << std::oct << mode;
    ASSERT_EQ(::chmod("f", mode), 0);
    EXPECT_EQ(as(kAlice, kStaff, [] { return err(::chown("f", -1, kGuests)); }, {kGuests}), 0);
    EXPECT_EQ(mode_of("f"), mode & ~06000u) << std::oct << mode;
    ASSERT_EQ(::chmod("d", mode), 0);
    EXPECT_EQ(::chown("d", kAlice, kStaff), 0);
    EXPECT_EQ(mode_of("d"), mode) << std::oct << mode;
  }
  // Without execution by the group the bit means mandatory locking: it stays.
  ASSERT_EQ(::chmod("f", 02644), 0);
  EXPECT_EQ(::chown("f", kBob, kStaff), 0);
  EXPECT_EQ(mode_of("f"), 02644u);
}
TEST_F(Chown, NothingGivenTakesSetIdBitsToo) {
  make_file("f", 0755);
  ASSERT_EQ(::chmod("f", 06755), 0);
  EXPECT_EQ(::chown("f", -1, -1), 0);
  EXPECT_EQ(mode_of("f"), 0755u);
}

TEST_F(SetId, AWriteByAnotherTakesTheBits) {
  make_file("f", 0777, "data");
  for (mode_t mode : {04777, 02777, 06777}) {
    ASSERT_EQ(::chmod("f", mode), 0);
    auto write = [] {
      Fd fd(::open("f", O_WRONLY));
      return err(::write(fd, "x", 1));
    };
    EXPECT_EQ(as(kAlice, kStaff, write), 0);
    EXPECT_EQ(mode_of("f"), 0777u) << std::oct << mode;
  }
}
TEST_F(SetId, AWriteByRootKeepsTheBits) {
  make_file("f", 0777, "data");
  ASSERT_EQ(::chmod("f", 06777), 0);
  Fd fd(::open("f", O_WRONLY));
  ASSERT_EQ(::write(fd, "x", 1), 1);
  EXPECT_EQ(mode_of("f"), 06777u);
}
TEST_F(SetId, AWriteWithoutTheCapabilityTakesTheBits) {
  make_file("f", 0777, "data");
  ASSERT_EQ(::chmod("f", 06777), 0);
  Fd fd(::open("f", O_WRONLY));
  EXPECT_EQ(without_capability(CAP_FSETID, [&] { return err(::write(fd, "x", 1)); }), 0);
  EXPECT_EQ(mode_of("f"), 0777u);
}
TEST_F(SetId, TruncationAndAllocationByAnotherTakeTheBits) {
  make_file("f", 0777, std::string(8192, 'x'));
  std::vector<std::function<int()>> changes = {
      [] { return err(::truncate("f", 5000)); },
      [] { return err(::open("f", O_WRONLY | O_TRUNC)); },
      [] { return err(::fallocate(Fd(::open("f", O_WRONLY)), 0, 0, 20000)); },
      [] { return err(::fallocate(Fd(::open("f", O_WRONLY)), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096)); },
  };
  for (const auto& change : changes) {
    ASSERT_EQ(::chmod("f", 06777), 0);
    EXPECT_EQ(as(kAlice, kStaff, change), 0);
    EXPECT_EQ(mode_of("f"), 0777u) << &change - changes.data();
  }
}
TEST_F(SetId, ADirectoryHandsItsGroupOn) {
  make_dir("d");
  ASSERT_EQ(::chown("d", 0, kGuests), 0);
  ASSERT_EQ(::chmod("d", 02777), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] {
    if (::mkdir("d/sub", 0755) != 0 || ::symlink("x", "d/link") != 0) return errno;
    return err(::open("d/file", O_CREAT | O_WRONLY, 02755));
  }), 0);
  EXPECT_EQ(stat_of("d/sub").st_gid, kGuests);
  EXPECT_EQ(mode_of("d/sub"), 02755u);
  EXPECT_EQ(stat_of("d/link").st_gid, kGuests);
  EXPECT_EQ(stat_of("d/file").st_gid, kGuests);
  EXPECT_EQ(mode_of("d/file"), 0755u) << "the creator is not of the group";
  make_dir("plain", 0777);
  ASSERT_EQ(::chown("plain", 0, kGuests), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("plain/f", O_CREAT | O_WRONLY, 0644)); }), 0);
  EXPECT_EQ(stat_of("plain/f").st_gid, kStaff);
  EXPECT_EQ(stat_of("plain/f").st_uid, kAlice);
}

TEST_F(Sticky, OnlyOwnersRemoveAndRename) {
  make_dir("d", 01777);
  ASSERT_EQ(::chown("d", kBob, kStaff), 0);
  for (const char* name : {"d/a", "d/b"}) {
    make_file(name, 0666);
    ASSERT_EQ(::chown(name, kAlice, kStaff), 0);
  }
  make_dir("d/dir", 0777);
  ASSERT_EQ(::chown("d/dir", kAlice, kStaff), 0);
  constexpr uid_t kOther = 65500;
  EXPECT_EQ(as(kOther, kStaff, [] { return err(::unlink("d/a")); }), EPERM);
  EXPECT_EQ(as(kOther, kStaff, [] { return err(::rmdir("d/dir")); }), EPERM);
  EXPECT_EQ(as(kOther, kStaff, [] { return err(::rename("d/a", "d/c")); }), EPERM);
  EXPECT_EQ(as(kOther, kStaff, [] {
    Fd(::open("d/mine", O_CREAT | O_WRONLY, 0644));
    return err(::rename("d/mine", "d/a"));
  }), EPERM);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::rename("d/a", "d/c")); }), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::unlink("d/c")); }), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::rmdir("d/dir")); }), 0);
  EXPECT_EQ(as(kBob, kGuests, [] { return err(::unlink("d/b")); }), 0) << "the directory's owner may";
}

TEST_F(Access, FollowsOwnerGroupAndOthers) {
  make_file("f", 0640, "x");
  ASSERT_EQ(::chown("f", kAlice, kStaff), 0);
  auto open = [](int flags) { return [flags] { return err(::open("f", flags)); }; };
  EXPECT_EQ(as(kAlice, kGuests, open(O_RDWR)), 0);
  EXPECT_EQ(as(kBob, kStaff, open(O_RDONLY)), 0);
  EXPECT_EQ(as(kBob, kGuests, open(O_RDONLY), {kStaff}), 0) << "supplementary groups count";
  EXPECT_EQ(as(kBob, kStaff, open(O_WRONLY)), EACCES);
  EXPECT_EQ(as(kBob, kGuests, open(O_RDONLY)), EACCES);
  ASSERT_EQ(::chmod("f", 0066), 0);
  EXPECT_EQ(as(kAlice, kStaff, open(O_RDONLY)), EACCES) << "the owner's bits count for the owner, not the group's";
  ASSERT_EQ(::chmod("f", 0606), 0);
  EXPECT_EQ(as(kBob, kStaff, open(O_RDONLY)), EACCES);
  EXPECT_EQ(as(kBob, kGuests, open(O_RDWR)), 0);
  EXPECT_EQ(as(kBob, kGuests, [] { return err(::access("f", X_OK)); }), EACCES);
  EXPECT_EQ(::access("f", R_OK | W_OK), 0);
  EXPECT_EQ(err(::access("f", X_OK)), EACCES) << "root too needs one bit of execution";
}
TEST_F(Access, TruncateNeedsWriting) {
  make_file("f", 0644, "x");
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::truncate("f", 0)); }), EACCES);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("f", O_RDONLY | O_TRUNC)); }), EACCES);
  EXPECT_EQ(stat_of("f").st_size, 1);
}
TEST_F(Access, NamesNeedWritingAndSearch) {
  make_dir("d", 0755);
  make_file("d/f", 0666);
  make_dir("d/dir", 0777);
  auto tries = [](const char* where) {
    std::string d(where);
    std::vector<int> out = {err(::open((d + "/new").c_str(), O_CREAT | O_WRONLY, 0644)),
                            err(::mkdir((d + "/newdir").c_str(), 0755)), err(::symlink("x", (d + "/s").c_str())),
                            err(::unlink((d + "/f").c_str())), err(::rmdir((d + "/dir").c_str())),
                            err(::rename((d + "/f").c_str(), (d + "/g").c_str()))};
    for (int e : out)
      if (e != EACCES) return e == 0 ? 200 : e;
    return EACCES;
  };
  EXPECT_EQ(as(kAlice, kStaff, [&] { return tries("d"); }), EACCES);
  ASSERT_EQ(::chmod("d", 0666), 0);
  EXPECT_EQ(as(kAlice, kStaff, [&] { return tries("d"); }), EACCES) << "no search";
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("d/f", O_RDONLY)); }), EACCES);
  EXPECT_EQ(as(kAlice, kStaff, [] { return ::opendir("d") == nullptr ? errno : 0; }), 0);
  ASSERT_EQ(::chmod("d", 0711), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return ::opendir("d") == nullptr ? errno : 0; }), EACCES);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("d/f", O_RDWR)); }), 0);
}
TEST_F(Access, ADirectoryThatMovesNeedsWritingItself) {
  make_dir("a", 0777);
  make_dir("b", 0777);
  make_dir("a/d", 0755);
  ASSERT_EQ(::chown("a/d", kBob, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::rename("a/d", "b/d")); }), EACCES);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::rename("a/d", "a/e")); }), 0) << "in its parent it may";
  EXPECT_EQ(as(kBob, kStaff, [] { return err(::rename("a/e", "b/d")); }), 0);
}
TEST_F(Access, TheUmaskIsTaken) {
  ::umask(027);
  EXPECT_EQ(::mkdir("d", 0777), 0);
  Fd fd(::open("f", O_CREAT | O_WRONLY, 0666));
  ::umask(0);
  EXPECT_EQ(mode_of("d"), 0750u);
  EXPECT_EQ(mode_of("f"), 0640u);
}
TEST_F(Access, ACreatorMayWriteWhatItsModeForbids) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0));
  ASSERT_GE(fd, 0);
  EXPECT_EQ(::write(fd, "abc", 3), 3);
  EXPECT_EQ(mode_of("f"), 0u);
  EXPECT_EQ(::chmod(".", 0777), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] {
    Fd own(::open("g", O_CREAT | O_RDWR, 0444));
    return err(::write(own, "abc", 3));
  }), 0);
}

}  // namespace
}  // namespace tidemark::conformance
