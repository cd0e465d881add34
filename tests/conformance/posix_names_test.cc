// Names: mkdir, rmdir, unlink, rename, symlink, and what an image directory refuses (link).
#include <limits.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class Mkdir : public Posix {};
class Rmdir : public Posix {};
class Unlink : public Posix {};
class Rename : public Posix {};
class Symlink : public Posix {};
class Path : public Posix {};
class Refused : public Posix {};

nlink_t links(const std::string& name) { return stat_of(name).st_nlink; }
ino_t inode(const std::string& name) { return stat_of(name).st_ino; }

TEST_F(Mkdir, MakesAnEmptyDirectoryOfTheCaller) {
  ASSERT_EQ(::chmod(".", 0777), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::mkdir("d", 0750)); }), 0);
  struct stat st = stat_of("d");
  EXPECT_TRUE(S_ISDIR(st.st_mode));
  EXPECT_EQ(st.st_mode & 07777, 0750u);
  EXPECT_EQ(st.st_uid, kAlice);
  EXPECT_EQ(st.st_gid, kStaff);
  EXPECT_EQ(st.st_nlink, 2u);
  EXPECT_EQ(::mkdir("sticky", 01777), 0);
  EXPECT_EQ(stat_of("sticky").st_mode & 07777, 01777u);
}
TEST_F(Mkdir, MovesTheParentsTimesAndLinks) {
  make_dir("p");
  EXPECT_EQ(moved("p", [] { ::mkdir("p/d", 0755); }), "mc");
  EXPECT_EQ(links("p"), 3u);
  EXPECT_EQ(moved("p", [] { ::mkdir("p/d", 0755); }), "");
  EXPECT_EQ(moved("p", [] { ::rmdir("p/d"); }), "mc");
  EXPECT_EQ(links("p"), 2u);
}
TEST_F(Mkdir, RefusesWhatIsThere) {
  make_file("f");
  make_dir("d");
  make_link("none", "l");
  for (const char* name : {"f", "d", "l", "."}) EXPECT_EQ(err(::mkdir(name, 0755)), EEXIST) << name;
  EXPECT_EQ(err(::mkdir("none/d", 0755)), ENOENT);
  EXPECT_EQ(err(::mkdir("f/d", 0755)), ENOTDIR);
}

TEST_F(Rmdir, RefusesWhatIsNotAnEmptyDirectory) {
  make_dir("d");
  make_file("d/f");
  make_link("d", "l");
  EXPECT_EQ(err(::rmdir("d")), ENOTEMPTY);
  EXPECT_EQ(err(::rmdir("d/f")), ENOTDIR);
  EXPECT_EQ(err(::rmdir("l")), ENOTDIR);
  EXPECT_EQ(err(::rmdir("none")), ENOENT);
  EXPECT_EQ(err(::rmdir("d/.")), EINVAL);
  EXPECT_EQ(err(::rmdir("d/..")), ENOTEMPTY);
  EXPECT_EQ(err(::rmdir("d/f/x")), ENOTDIR);
  EXPECT_EQ(::unlink("d/f"), 0);
  EXPECT_EQ(::rmdir("d"), 0);
  EXPECT_FALSE(exists("d"));
}
TEST_F(Rmdir, AnOpenDirectoryGoesOnWithoutNames) {
  make_dir("d");
  Fd fd(::open("d", O_RDONLY | O_DIRECTORY));
  EXPECT_EQ(::rmdir("d"), 0);
  struct stat st{};
  tick();
  EXPECT_EQ(err(::fstat(fd, &st)), 0);
  EXPECT_EQ(st.st_nlink, 0u);
  EXPECT_EQ(err(::openat(fd, "f", O_CREAT | O_WRONLY, 0644)), ENOENT);
  EXPECT_EQ(err(::mkdirat(fd, "f", 0755)), ENOENT);
  EXPECT_EQ(fresh_stat(fd).st_nlink, 0u);
}

TEST_F(Unlink, TakesTheNameAndMovesTheParentsTimes) {
  make_dir("d");
  make_file("d/f");
  EXPECT_EQ(moved("d", [] { EXPECT_EQ(::unlink("d/f"), 0); }), "mc");
  EXPECT_EQ(err(::unlink("d/f")), ENOENT);
  make_link("none", "l");
  EXPECT_EQ(::unlink("l"), 0);
  EXPECT_FALSE(exists("l"));
}
TEST_F(Unlink, RefusesDirectories) {
  make_dir("d");
  make_file("f");
  EXPECT_EQ(err(::unlink("d")), EISDIR);
  EXPECT_EQ(err(::unlink("f/x")), ENOTDIR);
  EXPECT_EQ(moved("d", [] { EXPECT_EQ(err(::unlink("d/none")), ENOENT); }), "");
}
TEST_F(Unlink, AnOpenFileGoesOn) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  ASSERT_EQ(::write(fd, "before", 6), 6);
  EXPECT_EQ(::unlink("f"), 0);
  struct stat st{};
  EXPECT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_nlink, 0u);
  EXPECT_EQ(st.st_size, 6);
  EXPECT_EQ(::pwrite(fd, "after!!", 7, 0), 7);
  char buffer[8] = {};
  EXPECT_EQ(::pread(fd, buffer, 8, 0), 7);
  EXPECT_STREQ(buffer, "after!!");
  EXPECT_EQ(::ftruncate(fd, 100), 0);
  EXPECT_EQ(::fchmod(fd, 0600), 0);
  EXPECT_EQ(::fsync(fd), 0);
  st = fresh_stat(fd);
  EXPECT_EQ(st.st_nlink, 0u);
  EXPECT_EQ(st.st_size, 100);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  make_file("f", 0644, "another");
  EXPECT_NE(inode("f"), st.st_ino);
}
// Neither read nor written before: the way of tmpfile(). And one that rename replaces.
TEST_F(Unlink, AFileThatWasOnlyOpenedGoesOn) {
  for (bool made_before : {false, true}) {
    for (bool replaced : {false, true}) {
      if (made_before) ::close(::open("f", O_CREAT | O_WRONLY, 0644));
      Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
      ASSERT_GE(fd, 0);
      if (replaced) make_file("g", 0644, "another");
      EXPECT_EQ(err(replaced ? ::rename("g", "f") : ::unlink("f")), 0);
      EXPECT_EQ(err(::fchmod(fd, 0640)), 0);
      EXPECT_EQ(err(::fsetxattr(fd, "user.a", "b", 1, 0)), 0);
      EXPECT_EQ(err(static_cast<int>(::write(fd, "after", 5))), 0);
      char buffer[6] = {};
      EXPECT_EQ(::pread(fd, buffer, 5, 0), 5);
      EXPECT_STREQ(buffer, "after");
      struct stat st = fresh_stat(fd);
      EXPECT_EQ(st.st_nlink, 0u);
      EXPECT_EQ(st.st_size, 5);
      EXPECT_EQ(st.st_mode & 07777, 0640u);
      const timespec times[2] = {{5, 0}, {6, 7}};
      EXPECT_EQ(err(::futimens(fd, times)), 0);
      if (replaced) {
        EXPECT_EQ(read_file("f"), "another");
      }
      ::unlink("f");
    }
  }
}
TEST_F(Unlink, MovesCtimeOfAnOpenFile) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  struct stat before{}, after{};
  ASSERT_EQ(::fstat(fd, &before), 0);
  tick();
  ASSERT_EQ(::unlink("f"), 0);
  ASSERT_EQ(::fstat(fd, &after), 0);
  EXPECT_TRUE(before.st_ctim < after.st_ctim);
}

TEST_F(Rename, MovesTheSameFile) {
  make_dir("a");
  make_dir("b");
  make_file("a/f", 0644, "contents");
  ino_t was = inode("a/f");
  struct stat a = stat_of("a"), b = stat_of("b");
  tick();
  EXPECT_EQ(moved("a/f", [] { EXPECT_EQ(::rename("a/f", "a/g"), 0); ::rename("a/g", "a/f"); }), "c");
  EXPECT_EQ(::rename("a/f", "b/g"), 0);
  EXPECT_FALSE(exists("a/f"));
  EXPECT_EQ(inode("b/g"), was);
  EXPECT_EQ(read_file("b/g"), "contents");
  EXPECT_TRUE(a.st_mtim < stat_of("a").st_mtim && a.st_ctim < stat_of("a").st_ctim);
  EXPECT_TRUE(b.st_mtim < stat_of("b").st_mtim && b.st_ctim < stat_of("b").st_ctim);
}
TEST_F(Rename, OntoItselfDoesNothing) {
  make_file("f");
  EXPECT_EQ(moved("f", [] { EXPECT_EQ(::rename("f", "f"), 0); }), "");
  EXPECT_EQ(::rename("f", "./f"), 0);
  EXPECT_TRUE(exists("f"));
}
TEST_F(Rename, ReplacesAFileThatStaysReadable) {
  make_file("new", 0644, "new");
  make_file("old", 0644, "old");
  Fd fd(::open("old", O_RDONLY));
  EXPECT_EQ(::rename("new", "old"), 0);
  EXPECT_EQ(read_file("old"), "new");
  char buffer[4] = {};
  EXPECT_EQ(::read(fd, buffer, 3), 3);
  EXPECT_STREQ(buffer, "old");
  struct stat st{};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_nlink, 0u);
}
TEST_F(Rename, DirectoriesTakeTheirParentsLinks) {
  make_dir("a");
  make_dir("b");
  make_dir("a/d");
  make_file("a/d/f");
  EXPECT_EQ(::rename("a/d", "b/e"), 0);
  EXPECT_EQ(links("a"), 2u);
  EXPECT_EQ(links("b"), 3u);
  EXPECT_EQ(inode("b/e/.."), inode("b"));
  EXPECT_TRUE(exists("b/e/f"));
}
TEST_F(Rename, OverDirectoriesAndFiles) {
  make_dir("d");
  make_dir("empty");
  make_dir("full");
  make_file("full/f");
  make_file("file");
  make_link("file", "l");
  EXPECT_EQ(err(::rename("d", "full")), ENOTEMPTY);
  EXPECT_EQ(err(::rename("d", "file")), ENOTDIR);
  EXPECT_EQ(err(::rename("d", "l")), ENOTDIR);
  EXPECT_EQ(err(::rename("file", "d")), EISDIR);
  EXPECT_EQ(err(::rename("l", "d")), EISDIR);
  nlink_t before = links(".");
  EXPECT_EQ(::rename("d", "empty"), 0);
  EXPECT_EQ(links("."), before - 1);
  EXPECT_EQ(::rename("full", "empty"), 0);
  EXPECT_TRUE(exists("empty/f"));
  EXPECT_EQ(::rename("l", "file"), 0);
  EXPECT_TRUE(S_ISLNK(stat_of("file").st_mode));
}
TEST_F(Rename, NeverIntoItself) {
  make_dir("d");
  make_dir("d/e");
  make_dir("d/e/f");
  EXPECT_EQ(err(::rename("d", "d/x")), EINVAL);
  EXPECT_EQ(err(::rename("d", "d/e/f")), EINVAL);
  EXPECT_EQ(err(::rename("d/e", "d/e/f/g")), EINVAL);
  EXPECT_EQ(err(::rename("d/e/f", "d")), ENOTEMPTY);
  EXPECT_THAT(err(::rename("d/.", "x")), ::testing::AnyOf(EINVAL, EBUSY));
  EXPECT_THAT(err(::rename("d/..", "x")), ::testing::AnyOf(EINVAL, EBUSY));
}
TEST_F(Rename, ErrorsOfThePath) {
  make_file("f");
  EXPECT_EQ(err(::rename("none", "x")), ENOENT);
  EXPECT_EQ(err(::rename("f", "none/x")), ENOENT);
  EXPECT_EQ(err(::rename("f/x", "y")), ENOTDIR);
  EXPECT_EQ(err(::rename("f", "f/x")), ENOTDIR);
  EXPECT_EQ(err(::rename("f", std::string(256, 'n').c_str())), ENAMETOOLONG);
  EXPECT_EQ(err(::rename("f", "g/")), ENOTDIR);
}
TEST_F(Rename, NoReplaceKeepsWhatIsThere) {
  make_file("a", 0644, "a");
  make_file("b", 0644, "b");
  EXPECT_EQ(rename_with("a", "b", RENAME_NOREPLACE), EEXIST);
  EXPECT_EQ(read_file("b"), "b");
  EXPECT_EQ(rename_with("a", "c", RENAME_NOREPLACE), 0);
  EXPECT_EQ(read_file("c"), "a");
  EXPECT_EQ(rename_with("none", "b", RENAME_NOREPLACE), ENOENT);
}
TEST_F(Rename, ExchangeSwapsAnyTwo) {
  make_file("f", 0644, "file");
  make_dir("p");
  make_dir("p/d");
  make_file("p/d/x");
  ino_t file = inode("f"), dir = inode("p/d");
  nlink_t top = links(".");
  EXPECT_EQ(rename_with("f", "p/d", RENAME_EXCHANGE), 0);
  EXPECT_EQ(inode("f"), dir);
  EXPECT_EQ(inode("p/d"), file);
  EXPECT_EQ(read_file("p/d"), "file");
  EXPECT_TRUE(exists("f/x"));
  EXPECT_EQ(links("."), top + 1);
  EXPECT_EQ(links("p"), 2u);
  EXPECT_EQ(inode("f/.."), inode("."));
  EXPECT_EQ(rename_with("f", "none", RENAME_EXCHANGE), ENOENT);
  EXPECT_EQ(rename_with("p", "p/d", RENAME_EXCHANGE), EINVAL);
  EXPECT_EQ(rename_with("f", "p", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL);
  EXPECT_EQ(rename_with("f", "p", 1u << 9), EINVAL);
}

TEST_F(Symlink, KeepsItsTargetAsGiven) {
  for (std::string target : {std::string("x"), std::string("../a//b/"), std::string("/abs"), std::string(1000, 't')}) {
    make_link(target, "l");
    char buffer[PATH_MAX + 1];
    ASSERT_EQ(::readlink("l", buffer, sizeof buffer), static_cast<ssize_t>(target.size()));
    EXPECT_EQ(std::string(buffer, target.size()), target);
    EXPECT_EQ(stat_of("l").st_size, static_cast<off_t>(target.size()));
    EXPECT_EQ(::readlink("l", buffer, 1), 1);
    ASSERT_EQ(::unlink("l"), 0);
  }
  EXPECT_EQ(::symlink(std::string(PATH_MAX - 1, 'p').c_str(), "long"), 0);
  EXPECT_EQ(stat_of("long").st_size, PATH_MAX - 1);
  EXPECT_EQ(err(::symlink(std::string(PATH_MAX, 'p').c_str(), "longer")), ENAMETOOLONG);
}
TEST_F(Symlink, Errors) {
  make_file("f");
  make_dir("d");
  make_link("l", "l");
  EXPECT_EQ(err(::symlink("x", "f")), EEXIST);
  EXPECT_EQ(err(::symlink("x", "d")), EEXIST);
  EXPECT_EQ(err(::symlink("x", "l")), EEXIST);
  EXPECT_EQ(err(::symlink("", "empty")), ENOENT);
  EXPECT_EQ(err(::symlink("x", "f/l")), ENOTDIR);
  EXPECT_EQ(err(::symlink("x", "none/l")), ENOENT);
  EXPECT_EQ(err(::symlink("x", std::string(256, 'n').c_str())), ENAMETOOLONG);
  char buffer[8];
  EXPECT_EQ(err(::readlink("f", buffer, 8)), EINVAL);
  EXPECT_EQ(err(::readlink("d", buffer, 8)), EINVAL);
  EXPECT_EQ(err(::open("l", O_RDONLY)), ELOOP);
  EXPECT_EQ(moved("d", [] { EXPECT_EQ(::symlink("x", "d/l"), 0); }), "mc");
}

TEST_F(Path, NamesOf255BytesAndAllBytes) {
  std::string most(255, 'n'), over(256, 'n');
  make_file(most);
  EXPECT_TRUE(exists(most));
  EXPECT_EQ(err(::open(over.c_str(), O_CREAT | O_WRONLY, 0644)), ENAMETOOLONG);
  EXPECT_EQ(err(::mkdir(over.c_str(), 0755)), ENAMETOOLONG);
  EXPECT_EQ(err(::unlink(over.c_str())), ENAMETOOLONG);
  EXPECT_EQ(err(::rmdir(over.c_str())), ENAMETOOLONG);
  EXPECT_EQ(err(::truncate(over.c_str(), 0)), ENAMETOOLONG);
  EXPECT_EQ(err(::mknod(over.c_str(), S_IFREG | 0644, 0)), ENAMETOOLONG);
  EXPECT_EQ(::rename(most.c_str(), std::string(255, 'm').c_str()), 0);
  std::string odd;
  for (int c = 1; c < 256; ++c)
    if (c != '/') odd.push_back(static_cast<char>(c));
  make_file(odd);
  make_file("Case");
  make_file("case");
  std::vector<std::string> names;
  DIR* dir = ::opendir(".");
  ASSERT_NE(dir, nullptr);
  while (dirent* e = ::readdir(dir)) names.push_back(e->d_name);
  ::closedir(dir);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(".", "..", odd, "Case", "case", std::string(255, 'm')));
}
TEST_F(Path, DeepDirectoriesAndLongPaths) {
  std::string part(200, 'd');
  int deep = 0;
  for (; deep < 40; ++deep) {
    ASSERT_EQ(::mkdir(part.c_str(), 0755), 0);
    ASSERT_EQ(::chdir(part.c_str()), 0);
  }
  make_file("bottom", 0644, "deep");
  EXPECT_EQ(read_file("bottom"), "deep");
  EXPECT_EQ(::rename("bottom", "../bottom"), 0);
  EXPECT_EQ(read_file("../bottom"), "deep");
  EXPECT_EQ(::unlink("../bottom"), 0);
  for (; deep > 0; --deep) {
    ASSERT_EQ(::chdir(".."), 0);
    ASSERT_EQ(::rmdir(part.c_str()), 0);
  }
  std::string path;
  while (path.size() + 2 < PATH_MAX - 1) path += "./";
  make_file("f");
  EXPECT_TRUE(exists(path + "f"));
  std::string over = path + "././f";
  struct stat st;
  EXPECT_EQ(err(::lstat(over.c_str(), &st)), ENAMETOOLONG);
}
TEST_F(Path, LoopsAndChainsOfLinks) {
  make_file("f");
  std::string before = "f";
  for (int i = 0; i < 41; ++i) {
    make_link(before, "l" + std::to_string(i));
    before = "l" + std::to_string(i);
  }
  EXPECT_GE(::open("l39", O_RDONLY), 0);
  EXPECT_EQ(err(::open("l40", O_RDONLY)), ELOOP);
  EXPECT_EQ(err(::truncate("l40", 0)), ELOOP);
}

// What an image directory refuses, and with which errno (shared/docs/posix.md). Native file systems take all of it.
TEST_F(Refused, HardLinks) {
  make_file("f");
  make_dir("d");
  ASSERT_EQ(::mkfifo("fifo", 0644), 0);
  EXPECT_EQ(err(::link("f", "g")), native ? 0 : EPERM);
  EXPECT_EQ(err(::link("fifo", "fifo2")), native ? 0 : EPERM);
  EXPECT_EQ(err(::link("d", "e")), EPERM);
  EXPECT_EQ(err(::link("f", "d")), EEXIST);
  EXPECT_EQ(err(::link("none", "g2")), ENOENT);
  EXPECT_EQ(err(::link("f", "none/g")), ENOENT);
  EXPECT_EQ(links("f"), native ? 2u : 1u);
}
TEST_F(Refused, FilesWithoutANameSharedBlocksAndFlags) {
  EXPECT_EQ(err(::open(".", O_TMPFILE | O_RDWR, 0644)), native ? 0 : EOPNOTSUPP);
  make_file("f", 0644, "contents");
  Fd from(::open("f", O_RDONLY)), to(::open("g", O_CREAT | O_RDWR, 0644));
  EXPECT_EQ(err(::ioctl(to, FICLONE, static_cast<int>(from))), EOPNOTSUPP);
  int flags = 0;
  EXPECT_EQ(err(::ioctl(from, FS_IOC_GETFLAGS, &flags)), native ? 0 : ENOTTY);
}
TEST_F(Refused, PlainFilesByMknodAreNot) {
  EXPECT_EQ(err(::mknod("f", S_IFREG | 0640, 0)), 0);
  EXPECT_EQ(err(::mknod("g", 0600, 0)), 0);
  EXPECT_TRUE(S_ISREG(stat_of("f").st_mode));
  EXPECT_EQ(stat_of("f").st_mode & 07777, 0640u);
  EXPECT_EQ(err(::mknod("f", S_IFREG | 0640, 0)), EEXIST);
}

}  // namespace
}  // namespace tidemark::conformance
