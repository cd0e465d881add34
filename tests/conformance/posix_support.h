// What the POSIX tests share: the directory under test, calls made as another user, and times.
//
//   posix_test DIRECTORY [--native] [gtest's own options]
//
// DIRECTORY is a place in the mount, or, with --native, in a file system that has hard links, devices and shared maps
// too: the same rules hold there, so a rule that ext4 fails is a mistake of the test.
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

namespace tidemark::conformance {

extern std::string directory;   // under test; each case has an empty one of its own below it
extern bool native;             // not the mount: nothing is refused on purpose

// 0, or the errno of a call that returned -1.
template <class T> int err(T result) { return result == T(-1) ? errno : 0; }

// Runs `call` in a child as that user (no capabilities, no other groups); what it returns, 0 to 255, comes back.
int as(uid_t uid, gid_t gid, const std::function<int()>& call, const std::vector<gid_t>& groups = {});
// The same with root's identity but without one capability (CAP_*).
int without_capability(int capability, const std::function<int()>& call);

inline constexpr uid_t kAlice = 65533, kBob = 65532;
inline constexpr gid_t kStaff = 65531, kGuests = 65530;

struct stat stat_of(const std::string& path);    // without following a link
// Asked of the file system itself, whatever the kernel has kept of it.
struct stat fresh_stat(int fd);
struct stat fresh_stat(const std::string& path);
// True of `holds` now and for a while: what comes late (a release, times told after it) changes nothing.
bool stays(const std::function<bool()>& holds);
int rename_with(const std::string& from, const std::string& to, unsigned flags);   // renameat2: 0, or the errno
std::string read_file(const std::string& path);
bool exists(const std::string& path);
inline bool operator==(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }
inline bool operator<(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}
// Waits until the clock that file systems stamp with has gone on, so that two stamps must differ.
void tick();

// A descriptor that closes itself.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { close(); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  operator int() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

// Each case works in a new directory, which is the current one; umask 0; it must leave nothing open in it.
class Posix : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;
  static void make_file(const std::string& name, mode_t mode = 0644, const std::string& contents = "");
  static void make_dir(const std::string& name, mode_t mode = 0755);
  static void make_link(const std::string& target, const std::string& name);
  // What `change` does to a node's times: "mc" if mtime and ctime moved, "" if none.
  static std::string moved(const std::string& name, const std::function<void()>& change);
  std::string here;
};

}  // namespace tidemark::conformance
