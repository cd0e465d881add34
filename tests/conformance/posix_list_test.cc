// Listing directories, extended attributes, the file system's own figures.
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include <map>
#include <set>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class List : public Posix {};
class Xattr : public Posix {};
class Statfs : public Posix {};

std::map<std::string, ino_t> list(const char* path) {
  std::map<std::string, ino_t> out;
  DIR* dir = ::opendir(path);
  EXPECT_NE(dir, nullptr);
  while (dirent* e = ::readdir(dir)) EXPECT_TRUE(out.emplace(e->d_name, e->d_ino).second) << e->d_name << " twice";
  ::closedir(dir);
  return out;
}

TEST_F(List, ShowsEveryNameOnceWithItsInodeAndType) {
  make_dir("d");
  make_file("d/f");
  make_dir("d/sub");
  make_link("x", "d/l");
  std::map<std::string, ino_t> names = list("d");
  EXPECT_EQ(names.size(), 5u);
  for (const char* name : {".", "..", "f", "sub", "l"})
    EXPECT_EQ(names[name], stat_of(std::string("d/") + name).st_ino) << name;
  DIR* dir = ::opendir("d");
  while (dirent* e = ::readdir(dir)) {
    std::string name = e->d_name;
    EXPECT_EQ(e->d_type, name == "f" ? DT_REG : name == "l" ? DT_LNK : DT_DIR) << name;
  }
  ::closedir(dir);
}
TEST_F(List, ManyNames) {
  for (int i = 0; i < 1500; ++i) ASSERT_EQ(::symlink("x", ("n" + std::to_string(i)).c_str()), 0);
  EXPECT_EQ(list(".").size(), 1502u);
}
TEST_F(List, NamesThatStayAreSeenOnceWhileOthersChange) {
  for (int i = 0; i < 600; ++i) ASSERT_EQ(::symlink("x", ("stay" + std::to_string(i)).c_str()), 0);
  for (int i = 0; i < 600; ++i) ASSERT_EQ(::symlink("x", ("go" + std::to_string(i)).c_str()), 0);
  DIR* dir = ::opendir(".");
  ASSERT_NE(dir, nullptr);
  std::map<std::string, int> seen;
  int i = 0;
  while (dirent* e = ::readdir(dir)) {
    ++seen[e->d_name];
    if (i < 600) {
      ASSERT_EQ(::unlink(("go" + std::to_string(i)).c_str()), 0);
      ASSERT_EQ(::symlink("x", ("added" + std::to_string(i)).c_str()), 0);
      ++i;
    }
  }
  ::closedir(dir);
  for (int n = 0; n < 600; ++n) EXPECT_EQ(seen["stay" + std::to_string(n)], 1) << n;
  for (const auto& [name, count] : seen) EXPECT_EQ(count, 1) << name;
}
TEST_F(List, RewindShowsWhatIsNew) {
  make_file("a");
  DIR* dir = ::opendir(".");
  ASSERT_NE(dir, nullptr);
  std::set<std::string> first, second;
  while (dirent* e = ::readdir(dir)) first.insert(e->d_name);
  make_file("b");
  ASSERT_EQ(::unlink("a"), 0);
  ::rewinddir(dir);
  while (dirent* e = ::readdir(dir)) second.insert(e->d_name);
  ::closedir(dir);
  EXPECT_THAT(first, ::testing::ElementsAre(".", "..", "a"));
  EXPECT_THAT(second, ::testing::ElementsAre(".", "..", "b"));
}
TEST_F(List, SeekGoesBackToAnyPlace) {
  for (int i = 0; i < 700; ++i) ASSERT_EQ(::symlink("x", ("n" + std::to_string(i)).c_str()), 0);
  DIR* dir = ::opendir(".");
  ASSERT_NE(dir, nullptr);
  std::vector<std::pair<long, std::string>> places;
  for (;;) {
    long at = ::telldir(dir);
    dirent* e = ::readdir(dir);
    if (e == nullptr) break;
    places.emplace_back(at, e->d_name);
  }
  ASSERT_EQ(places.size(), 702u);
  for (size_t i : {701ul, 5ul, 350ul, 1ul, 699ul, 0ul}) {
    ::seekdir(dir, places[i].first);
    dirent* e = ::readdir(dir);
    ASSERT_NE(e, nullptr) << i;
    EXPECT_EQ(places[i].second, e->d_name) << i;
  }
  ::closedir(dir);
}
// A listing of many names is under way while `z`, the last of them, changes, and goes on with a look at each name, as
// find and rsync do: the kernel may then be given attributes with each name. They take nothing back.
class ListGoesOn : public Posix {
 protected:
  void SetUp() override {
    Posix::SetUp();
    for (int i = 0; i < 400; ++i) ASSERT_EQ(::symlink("x", ("n" + std::to_string(i)).c_str()), 0);
    make_file("z", 0644, "old");
    make_file("another", 0644, "new");
  }
  static void list_while(const std::function<void()>& changes) {
    DIR* dir = ::opendir(".");
    ASSERT_NE(dir, nullptr);
    ASSERT_NE(::readdir(dir), nullptr);
    changes();
    struct stat st;
    while (dirent* e = ::readdir(dir)) ::fstatat(::dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW);
    ::closedir(dir);
  }
};
TEST_F(ListGoesOn, AndAppendsLandAtTheEnd) {
  Fd fd(::open("z", O_RDWR | O_APPEND));
  list_while([&] { ASSERT_EQ(::write(fd, "first", 5), 5); });
  EXPECT_EQ(stat_of("z").st_size, 8);
  EXPECT_EQ(::write(fd, "second", 6), 6);
  EXPECT_EQ(read_file("z"), "oldfirstsecond");
}
TEST_F(ListGoesOn, AndWhatWasRenamedOverANameIsThere) {
  Fd old(::open("z", O_RDWR));
  list_while([] { ASSERT_EQ(::rename("another", "z"), 0); });
  EXPECT_EQ(read_file("z"), "new");
  EXPECT_FALSE(exists("another"));
}
TEST_F(ListGoesOn, AndWhatWasRemovedStaysSo) {
  Fd old(::open("z", O_RDWR));
  list_while([] { ASSERT_EQ(::unlink("z"), 0); });
  EXPECT_FALSE(exists("z"));
  EXPECT_EQ(::mkdir("z", 0755), 0);
}
TEST_F(ListGoesOn, AndAModeStaysAsItWasSet) {
  list_while([] { ASSERT_EQ(::chmod("z", 0600), 0); });
  EXPECT_EQ(stat_of("z").st_mode & 07777, 0600u);
}
TEST_F(List, TwoReadersDoNotDisturbOneAnother) {
  for (int i = 0; i < 20; ++i) make_file("n" + std::to_string(i));
  DIR *a = ::opendir("."), *b = ::opendir(".");
  ASSERT_TRUE(a != nullptr && b != nullptr);
  std::set<std::string> in_a, in_b;
  for (int i = 0; i < 22; ++i) {
    in_a.insert(::readdir(a)->d_name);
    in_b.insert(::readdir(b)->d_name);
  }
  EXPECT_EQ(::readdir(a), nullptr);
  EXPECT_EQ(in_a.size(), 22u);
  EXPECT_EQ(in_a, in_b);
  ::closedir(a);
  ::closedir(b);
}

TEST_F(Xattr, SetGetListRemove) {
  make_file("f");
  make_dir("d");
  for (const char* name : {"f", "d"}) {
    EXPECT_EQ(::setxattr(name, "user.one", "1", 1, 0), 0);
    EXPECT_EQ(::setxattr(name, "user.empty", "", 0, 0), 0);
    EXPECT_EQ(::setxattr(name, "user.one", "long value", 10, 0), 0);
    char buffer[65536];
    EXPECT_EQ(::getxattr(name, "user.one", buffer, sizeof buffer), 10);
    EXPECT_EQ(std::string(buffer, 10), "long value");
    EXPECT_EQ(::getxattr(name, "user.one", nullptr, 0), 10);
    EXPECT_EQ(::getxattr(name, "user.empty", buffer, sizeof buffer), 0);
    EXPECT_EQ(err(::getxattr(name, "user.one", buffer, 9)), ERANGE);
    ssize_t n = ::listxattr(name, buffer, sizeof buffer);
    ASSERT_GT(n, 0);
    EXPECT_EQ(::listxattr(name, nullptr, 0), n);
    EXPECT_EQ(err(::listxattr(name, buffer, static_cast<size_t>(n) - 1)), ERANGE);
    std::set<std::string> names;
    for (const char* at = buffer; at < buffer + n; at += strlen(at) + 1) names.insert(at);
    EXPECT_TRUE(names.count("user.one") == 1 && names.count("user.empty") == 1);
    EXPECT_EQ(::removexattr(name, "user.one"), 0);
    EXPECT_EQ(err(::removexattr(name, "user.one")), ENODATA);
    EXPECT_EQ(err(::getxattr(name, "user.one", buffer, 10)), ENODATA);
  }
}
TEST_F(Xattr, CreateAndReplace) {
  make_file("f");
  EXPECT_EQ(err(::setxattr("f", "user.a", "1", 1, XATTR_REPLACE)), ENODATA);
  EXPECT_EQ(err(::setxattr("f", "user.a", "1", 1, XATTR_CREATE)), 0);
  EXPECT_EQ(err(::setxattr("f", "user.a", "2", 1, XATTR_CREATE)), EEXIST);
  EXPECT_EQ(err(::setxattr("f", "user.a", "3", 1, XATTR_REPLACE)), 0);
}
TEST_F(Xattr, SizesAndNamesAreBounded) {
  make_file("f");
  std::string name = "user." + std::string(250, 'n'), value(3000, 'v'), over(65537, 'v');
  EXPECT_EQ(err(::setxattr("f", name.c_str(), value.data(), value.size(), 0)), 0);
  EXPECT_EQ(err(::setxattr("f", (name + "n").c_str(), "v", 1, 0)), ERANGE);
  EXPECT_EQ(err(::setxattr("f", "user.big", over.data(), over.size(), 0)), E2BIG);
  EXPECT_EQ(err(::setxattr("f", "user.", "v", 1, 0)), EINVAL);
  EXPECT_EQ(err(::setxattr("f", "nothing", "v", 1, 0)), EOPNOTSUPP);
  EXPECT_EQ(err(::setxattr("f", "foreign.x", "v", 1, 0)), EOPNOTSUPP);
  // More than a node may have is refused as a disk that is full, whatever the bound is.
  std::string full(60000, 'v');
  int e = 0;
  for (int i = 0; i < 40 && e == 0; ++i)
    e = err(::setxattr("f", ("user.n" + std::to_string(i)).c_str(), full.data(), full.size(), 0));
  EXPECT_EQ(e, ENOSPC);
  EXPECT_EQ(::getxattr("f", name.c_str(), nullptr, 0), 3000);
}
TEST_F(Xattr, MovesCtimeOnly) {
  make_file("f");
  EXPECT_EQ(moved("f", [] { ::setxattr("f", "user.a", "1", 1, 0); }), "c");
  EXPECT_EQ(moved("f", [] { char c; ::getxattr("f", "user.a", &c, 1); }), "");
  EXPECT_EQ(moved("f", [] { ::removexattr("f", "user.a"); }), "c");
}
TEST_F(Xattr, WhoMay) {
  make_file("f", 0644);
  make_link("f", "l");
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::setxattr("f", "user.a", "1", 1, 0)); }), EACCES);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::setxattr("f", "trusted.a", "1", 1, 0)); }), EPERM);
  EXPECT_EQ(err(::lsetxattr("l", "user.a", "1", 1, 0)), EPERM) << "none of the user's on links";
  EXPECT_EQ(err(::setxattr("f", "trusted.a", "1", 1, 0)), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return static_cast<int>(::listxattr("f", nullptr, 0)); }),
            static_cast<int>(::listxattr("f", nullptr, 0) - sizeof "trusted.a")) << "not shown to users";
  make_dir("sticky", 01777);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::setxattr("sticky", "user.a", "1", 1, 0)); }), EPERM);
}
// What would be kept but never acted on is refused: nobody takes a capability or a list of rights for set.
TEST_F(Xattr, RightsThatAreNotKeptAreRefused) {
  if (native) return;
  make_file("f", 0755);
  const char capability[20] = {1, 0, 0, 2};
  EXPECT_EQ(err(::setxattr("f", "security.capability", capability, sizeof capability, 0)), EOPNOTSUPP);
  // Version 2, then tag, rights and id of the owner, the group, the others.
  const char rights[28] = {2, 0, 0, 0, 1, 0, 7, 0, -1, -1, -1, -1, 4, 0, 5, 0,
                           -1, -1, -1, -1, 32, 0, 5, 0, -1, -1, -1, -1};
  EXPECT_EQ(err(::setxattr("f", "system.posix_acl_access", rights, sizeof rights, 0)), EOPNOTSUPP);
}

TEST_F(Statfs, TellsRoomAndLimits) {
  struct statvfs st{};
  ASSERT_EQ(::statvfs(".", &st), 0);
  EXPECT_EQ(st.f_namemax, 255u);
  EXPECT_GT(st.f_blocks, 0u);
  EXPECT_LE(st.f_bavail, st.f_blocks);
  EXPECT_GT(st.f_bavail, 0u);
  EXPECT_GT(st.f_files, 0u);
  EXPECT_GT(st.f_ffree, 0u);
  EXPECT_LE(st.f_ffree, st.f_files);
  EXPECT_EQ(::pathconf(".", _PC_NAME_MAX), 255);
  Fd fd(::open(".", O_RDONLY));
  struct statvfs same{};
  ASSERT_EQ(::fstatvfs(fd, &same), 0);
  EXPECT_EQ(same.f_blocks, st.f_blocks);
}
// The file system below is others', too, who may give up as much meanwhile: then it is tried again.
TEST_F(Statfs, AFileTakesItsRoom) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  const std::string data(8 << 20, 'x');
  bool less = false;
  for (int tries = 0; tries < 20 && !less; ++tries) {
    struct statvfs before{}, after{};
    ASSERT_EQ(::ftruncate(fd, 0), 0);
    ASSERT_EQ(::fsync(fd), 0);
    ASSERT_EQ(::statvfs(".", &before), 0);
    ASSERT_EQ(::pwrite(fd, data.data(), data.size(), 0), 8 << 20);
    ASSERT_EQ(::fsync(fd), 0);
    ASSERT_EQ(::statvfs(".", &after), 0);
    less = after.f_bavail < before.f_bavail;
  }
  EXPECT_TRUE(less);
}

}  // namespace
}  // namespace tidemark::conformance
