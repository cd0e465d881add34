// open with its flags, and reading and writing through what it gave.
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <csignal>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class Open : public Posix {};
class Io : public Posix {};

TEST_F(Open, CreatesAnEmptyFileOfTheCaller) {
  ASSERT_EQ(::chmod(".", 0777), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("f", O_CREAT | O_WRONLY, 0640)); }), 0);
  struct stat st = stat_of("f");
  EXPECT_TRUE(S_ISREG(st.st_mode));
  EXPECT_EQ(st.st_mode & 07777, 0640u);
  EXPECT_EQ(st.st_uid, kAlice);
  EXPECT_EQ(st.st_gid, kStaff);
  EXPECT_EQ(st.st_size, 0);
  EXPECT_EQ(st.st_nlink, 1u);
  Fd(::open("g", O_CREAT | O_WRONLY, 06711));
  EXPECT_EQ(stat_of("g").st_mode & 07777, 06711u);
}
TEST_F(Open, CreationMovesTheParentsTimesOpeningDoesNot) {
  make_dir("d");
  EXPECT_EQ(moved("d", [] { Fd(::open("d/f", O_CREAT | O_WRONLY, 0644)); }), "mc");
  EXPECT_EQ(moved("d", [] { Fd(::open("d/f", O_CREAT | O_WRONLY, 0644)); }), "");
  EXPECT_EQ(moved("d/f", [] { Fd(::open("d/f", O_RDWR)); }), "");
}
TEST_F(Open, ExclusiveCreationRefusesAnyName) {
  make_file("f");
  make_dir("d");
  make_link("none", "dangling");
  for (const char* name : {"f", "d", "dangling"})
    EXPECT_EQ(err(::open(name, O_CREAT | O_EXCL | O_WRONLY, 0644)), EEXIST) << name;
}
TEST_F(Open, CreationFollowsADanglingLink) {
  make_link("target", "l");
  Fd fd(::open("l", O_CREAT | O_WRONLY, 0644));
  EXPECT_GE(fd, 0);
  EXPECT_TRUE(exists("target"));
}
TEST_F(Open, TruncationEmptiesAndMovesTimes) {
  make_file("f", 0644, "contents");
  EXPECT_EQ(moved("f", [] { Fd(::open("f", O_WRONLY | O_TRUNC)); }), "mc");
  EXPECT_EQ(stat_of("f").st_size, 0);
  EXPECT_EQ(moved("f", [] { Fd(::open("f", O_WRONLY | O_TRUNC)); }), "mc") << "an empty one too";
  make_file("g", 0644, "contents");
  Fd fd(::open("g", O_CREAT | O_RDWR | O_TRUNC, 0600));
  EXPECT_EQ(stat_of("g").st_size, 0);
  EXPECT_EQ(stat_of("g").st_mode & 07777, 0644u);
  char c;
  EXPECT_EQ(::read(fd, &c, 1), 0);
}
TEST_F(Open, AppendWritesAtTheEnd) {
  make_file("f", 0644, "one");
  Fd a(::open("f", O_WRONLY | O_APPEND)), b(::open("f", O_WRONLY | O_APPEND));
  EXPECT_EQ(::write(a, "two", 3), 3);
  EXPECT_EQ(::write(b, "three", 5), 5);
  EXPECT_EQ(::lseek(a, 0, SEEK_SET), 0);
  EXPECT_EQ(::write(a, "four", 4), 4);
  EXPECT_EQ(read_file("f"), "onetwothreefour");
  ASSERT_EQ(::ftruncate(b, 3), 0);
  EXPECT_EQ(::write(a, "five", 4), 4);
  EXPECT_EQ(read_file("f"), "onefive");
}
TEST_F(Open, NoFollowAndDirectory) {
  make_file("f");
  make_dir("d");
  make_link("f", "l");
  make_link("d", "ld");
  EXPECT_EQ(err(::open("l", O_RDONLY | O_NOFOLLOW)), ELOOP);
  EXPECT_EQ(err(::open("ld", O_RDONLY | O_NOFOLLOW)), ELOOP);
  EXPECT_EQ(err(::open("f", O_RDONLY | O_DIRECTORY)), ENOTDIR);
  EXPECT_EQ(err(::open("l", O_RDONLY | O_DIRECTORY)), ENOTDIR);
  EXPECT_EQ(err(::open("ld", O_RDONLY | O_DIRECTORY | O_NOFOLLOW)), ENOTDIR);
  EXPECT_EQ(err(::open("ld", O_RDONLY | O_DIRECTORY)), 0);
  Fd path(::open("l", O_PATH | O_NOFOLLOW));
  ASSERT_GE(path, 0);
  struct stat st{};
  EXPECT_EQ(::fstat(path, &st), 0);
  EXPECT_TRUE(S_ISLNK(st.st_mode));
}
TEST_F(Open, DirectoriesAreNotWritten) {
  make_dir("d");
  for (int flags : {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_TRUNC, O_CREAT | O_RDONLY})
    EXPECT_EQ(err(::open("d", flags, 0644)), EISDIR) << flags;
  Fd fd(::open("d", O_RDONLY));
  char c;
  EXPECT_EQ(err(::read(fd, &c, 1)), EISDIR);
}
TEST_F(Open, ErrorsOfThePath) {
  make_file("f");
  EXPECT_EQ(err(::open("none", O_RDONLY)), ENOENT);
  EXPECT_EQ(err(::open("none/x", O_CREAT | O_WRONLY, 0644)), ENOENT);
  EXPECT_EQ(err(::open("f/x", O_CREAT | O_WRONLY, 0644)), ENOTDIR);
  EXPECT_EQ(err(::open("new/", O_CREAT | O_WRONLY, 0644)), EISDIR);
  EXPECT_EQ(err(::open("", O_RDONLY)), ENOENT);
  EXPECT_EQ(err(::open("f/", O_RDONLY)), ENOTDIR);
}
TEST_F(Open, AccessModeBinds) {
  make_file("f", 0644, "data");
  Fd r(::open("f", O_RDONLY)), w(::open("f", O_WRONLY));
  char c;
  EXPECT_EQ(err(::write(r, "x", 1)), EBADF);
  EXPECT_EQ(err(::read(w, &c, 1)), EBADF);
  EXPECT_EQ(err(::ftruncate(r, 0)), EINVAL);
  EXPECT_EQ(::posix_fallocate(r, 0, 10), EBADF);
}
TEST_F(Open, ARunningProgramIsBusy) {
  Fd source(::open("/bin/sleep", O_RDONLY | O_CLOEXEC));
  ASSERT_GE(source, 0);
  {
    Fd out(::open("program", O_CREAT | O_WRONLY | O_CLOEXEC, 0755));
    std::vector<char> buffer(1 << 16);
    ssize_t n;
    while ((n = ::read(source, buffer.data(), buffer.size())) > 0)
      ASSERT_EQ(::write(out, buffer.data(), static_cast<size_t>(n)), n);
  }
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  pid_t child = ::fork();
  if (child == 0) {
    ::execl("./program", "sleep", "60", nullptr);
    ::_exit(errno);
  }
  ::close(ready[1]);
  char c;
  EXPECT_EQ(::read(ready[0], &c, 1), 0) << "closed by the execution";
  ::close(ready[0]);
  EXPECT_EQ(err(::open("program", O_WRONLY)), ETXTBSY);
  EXPECT_EQ(err(::truncate("program", 1)), ETXTBSY);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << "exit " << WEXITSTATUS(status);
  EXPECT_EQ(err(::open("program", O_WRONLY)), 0);
}

TEST_F(Io, ReadsAndWritesAnywhere) {
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  EXPECT_EQ(::pwrite(fd, "end", 3, 10000), 3);
  EXPECT_EQ(stat_of("f").st_size, 10003);
  std::string all = read_file("f");
  EXPECT_EQ(all, std::string(10000, '\0') + "end");
  char buffer[16];
  EXPECT_EQ(::pread(fd, buffer, 16, 9999), 4);
  EXPECT_EQ(::pread(fd, buffer, 16, 10003), 0);
  EXPECT_EQ(::pread(fd, buffer, 16, 1 << 20), 0);
  EXPECT_EQ(err(::pread(fd, buffer, 16, -1)), EINVAL);
  EXPECT_EQ(::write(fd, "", 0), 0);
  EXPECT_EQ(stat_of("f").st_size, 10003);
  iovec parts[2] = {{const_cast<char*>("abc"), 3}, {const_cast<char*>("defg"), 4}};
  EXPECT_EQ(::pwritev(fd, parts, 2, 5), 7);
  EXPECT_EQ(::pread(fd, buffer, 7, 5), 7);
  EXPECT_EQ(std::string(buffer, 7), "abcdefg");
}
TEST_F(Io, LargeUnalignedTransfersAreWhole) {
  std::string data((3u << 20) + 1234, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7 + i / 4096);
  Fd fd(::open("f", O_CREAT | O_RDWR, 0644));
  EXPECT_EQ(::pwrite(fd, data.data(), data.size(), 777), static_cast<ssize_t>(data.size()));
  std::string back(data.size(), '\0');
  EXPECT_EQ(::pread(fd, back.data(), back.size(), 777), static_cast<ssize_t>(back.size()));
  EXPECT_EQ(back, data);
}
TEST_F(Io, PrivateMapsShowTheContents) {
  std::string data(20000, 'm');
  make_file("f", 0644, data);
  Fd fd(::open("f", O_RDWR));
  auto* at = static_cast<char*>(::mmap(nullptr, 20000, PROT_READ, MAP_PRIVATE, fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_EQ(std::string(at, 20000), data);
  EXPECT_EQ(at[20000], 0) << "the page's rest is zero";
  ASSERT_EQ(::pwrite(fd, "new", 3, 8192), 3);
  EXPECT_EQ(std::string(at + 8192, 3), "new") << "a write is seen in the map";
  ::munmap(at, 20000);
}
TEST_F(Io, SharedMapsAreRefused) {
  make_file("f", 0644, "data");
  Fd fd(::open("f", O_RDWR));
  void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (native) EXPECT_NE(at, MAP_FAILED);
  else EXPECT_TRUE(at == MAP_FAILED && errno == ENODEV) << strerror(errno);
}
TEST_F(Io, LocksOfTwoProcessesExclude) {
  make_file("f", 0644, "data");
  Fd fd(::open("f", O_RDWR));
  struct flock whole{F_WRLCK, SEEK_SET, 100, 1, 0};
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &whole), 0);
  auto try_lock = [] {
    Fd own(::open("f", O_RDWR));
    struct flock wanted{F_WRLCK, SEEK_SET, 0, 0, 0};
    return err(::fcntl(own, F_OFD_SETLK, &wanted));
  };
  EXPECT_THAT(as(0, 0, try_lock), ::testing::AnyOf(EAGAIN, EACCES));
  whole.l_type = F_UNLCK;
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &whole), 0);
  EXPECT_EQ(as(0, 0, try_lock), 0);
  ASSERT_EQ(::flock(fd, LOCK_EX | LOCK_NB), 0);
  auto try_flock = [] { return err(::flock(Fd(::open("f", O_RDWR)), LOCK_EX | LOCK_NB)); };
  EXPECT_EQ(as(0, 0, try_flock), EWOULDBLOCK);
}

}  // namespace
}  // namespace tidemark::conformance
