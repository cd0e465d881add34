#include "posix_support.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

namespace tidemark::conformance {

std::string directory;
bool native = false;

namespace {
int in_child(const std::function<int()>& become, const std::function<int()>& call) {
  pid_t child = ::fork();
  if (child == 0) {
    if (become() != 0) ::_exit(255);
    ::_exit(call() & 0xff);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 254;
  return WEXITSTATUS(status);
}
timespec coarse_now() {
  timespec now;
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return now;
}
}  // namespace

int as(uid_t uid, gid_t gid, const std::function<int()>& call, const std::vector<gid_t>& groups) {
  auto become = [&] {
    if (::setgroups(groups.size(), groups.data()) != 0) return -1;
    return ::setresgid(gid, gid, gid) != 0 || ::setresuid(uid, uid, uid) != 0 ? -1 : 0;
  };
  return in_child(become, call);
}

int without_capability(int capability, const std::function<int()>& call) {
  auto become = [&] {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2] = {};
    if (::syscall(SYS_capget, &header, data) != 0) return -1;
    for (auto* set : {&data[capability / 32].effective, &data[capability / 32].permitted})
      *set &= ~(1u << (capability % 32));
    data[capability / 32].inheritable &= ~(1u << (capability % 32));
    return static_cast<int>(::syscall(SYS_capset, &header, data));
  };
  return in_child(become, call);
}

struct stat stat_of(const std::string& path) {
  struct stat st{};
  EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path << ": " << strerror(errno);
  return st;
}

namespace {
struct stat fresh(int fd, const char* path) {
  struct statx now{};
  int flags = AT_STATX_FORCE_SYNC | AT_SYMLINK_NOFOLLOW | (*path == 0 ? AT_EMPTY_PATH : 0);
  EXPECT_EQ(::statx(fd, path, flags, STATX_BASIC_STATS, &now), 0) << path << ": " << strerror(errno);
  struct stat st{};
  st.st_mode = now.stx_mode;
  st.st_nlink = now.stx_nlink;
  st.st_size = static_cast<off_t>(now.stx_size);
  st.st_ino = now.stx_ino;
  st.st_mtim = {now.stx_mtime.tv_sec, now.stx_mtime.tv_nsec};
  st.st_ctim = {now.stx_ctime.tv_sec, now.stx_ctime.tv_nsec};
  return st;
}
}  // namespace

struct stat fresh_stat(int fd) { return fresh(fd, ""); }
struct stat fresh_stat(const std::string& path) { return fresh(AT_FDCWD, path.c_str()); }

bool stays(const std::function<bool()>& holds) {
  for (int i = 0; i < 30; ++i) {
    if (!holds()) return false;
    tick();
  }
  return true;
}

int rename_with(const std::string& from, const std::string& to, unsigned flags) {
  return err(::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags));
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

bool exists(const std::string& path) {
  struct stat st;
  return ::lstat(path.c_str(), &st) == 0;
}

// Two steps of the coarse clock: another file system's stamp may be taken from a clock one step behind.
void tick() {
  for (int step = 0; step < 2; ++step) {
    timespec from = coarse_now(), pause{0, 1'000'000};
    while (coarse_now() == from) ::nanosleep(&pause, nullptr);
  }
}

void Posix::SetUp() {
  static int number = 0;
  ::umask(0);
  here = directory + "/case" + std::to_string(::getpid()) + "." + std::to_string(++number);
  ASSERT_EQ(::mkdir(here.c_str(), 0777), 0) << here << ": " << strerror(errno);
  ASSERT_EQ(::chdir(here.c_str()), 0) << strerror(errno);
}

void Posix::TearDown() {
  ASSERT_EQ(::chdir("/"), 0);
  std::error_code failed;
  std::filesystem::remove_all(here, failed);
  EXPECT_FALSE(failed) << here << ": " << failed.message();
}

void Posix::make_file(const std::string& name, mode_t mode, const std::string& contents) {
  Fd fd(::open(name.c_str(), O_CREAT | O_EXCL | O_WRONLY, mode));
  ASSERT_GE(fd, 0) << name << ": " << strerror(errno);
  ASSERT_EQ(::write(fd, contents.data(), contents.size()), static_cast<ssize_t>(contents.size())) << strerror(errno);
}
void Posix::make_dir(const std::string& name, mode_t mode) {
  ASSERT_EQ(::mkdir(name.c_str(), mode), 0) << name << ": " << strerror(errno);
  ASSERT_EQ(::chmod(name.c_str(), mode), 0);
}
void Posix::make_link(const std::string& target, const std::string& name) {
  ASSERT_EQ(::symlink(target.c_str(), name.c_str()), 0) << name << ": " << strerror(errno);
}

std::string Posix::moved(const std::string& name, const std::function<void()>& change) {
  struct stat before = stat_of(name);
  tick();
  change();
  struct stat after = stat_of(name);
  EXPECT_FALSE(after.st_ctim < before.st_ctim) << "ctime went back";
  std::string out;
  if (!(before.st_mtim == after.st_mtim)) out += "m";
  if (!(before.st_ctim == after.st_ctim)) out += "c";
  return out;
}

}  // namespace tidemark::conformance

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--native") tidemark::conformance::native = true;
    else tidemark::conformance::directory = std::filesystem::absolute(argv[i]);
  }
  if (tidemark::conformance::directory.empty() || ::geteuid() != 0) {
    std::cerr << "posix_test DIRECTORY [--native]: as root\n";
    return 2;
  }
  return RUN_ALL_TESTS();
}
