// FIFOs, sockets, devices: names with attributes as any others. What goes through them the kernel does by itself.
#include <linux/capability.h>
#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include <map>
#include <thread>

#include "posix_support.h"

namespace tidemark::conformance {
namespace {

class Special : public Posix {};
class Fifo : public Posix {};
class Socket : public Posix {};
class Device : public Posix {};

struct Kind {
  const char* name;
  mode_t type;
  dev_t device;
  unsigned char listed;
};
const Kind kKinds[] = {{"fifo", S_IFIFO, 0, DT_FIFO},
                       {"sock", S_IFSOCK, 0, DT_SOCK},
                       {"char", S_IFCHR, makedev(1, 3), DT_CHR},
                       {"block", S_IFBLK, makedev(259, 70'000), DT_BLK}};

int make(const Kind& kind, mode_t mode = 0644) { return err(::mknod(kind.name, kind.type | mode, kind.device)); }
void make_all() {
  for (const Kind& kind : kKinds) ASSERT_EQ(make(kind), 0) << kind.name;
}
// A socket of its own, bound there.
int bound(const char* name) {
  int s = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{AF_UNIX, {}};
  strncpy(address.sun_path, name, sizeof address.sun_path - 1);
  if (::bind(s, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return s;
  int error = errno;
  ::close(s);
  errno = error;
  return -1;
}
int connect_to(const char* name) {
  Fd s(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{AF_UNIX, {}};
  strncpy(address.sun_path, name, sizeof address.sun_path - 1);
  return err(::connect(s, reinterpret_cast<sockaddr*>(&address), sizeof address));
}

TEST_F(Special, HaveTypeModeOwnerAndNumber) {
  for (const Kind& kind : kKinds) {
    EXPECT_EQ(moved(".", [&] { EXPECT_EQ(make(kind, 06751), 0); }), "mc") << kind.name;
    struct stat st = stat_of(kind.name);
    EXPECT_EQ(st.st_mode, kind.type | 06751u) << kind.name;
    EXPECT_EQ(st.st_rdev, kind.device) << kind.name;
    EXPECT_EQ(st.st_nlink, 1u);
    EXPECT_EQ(st.st_size, 0);
    EXPECT_EQ(st.st_blocks, 0);
    EXPECT_EQ(st.st_uid, 0u);
    EXPECT_EQ(st.st_gid, 0u);
  }
  ::umask(027);
  EXPECT_EQ(err(::mkfifo("masked", 0777)), 0);
  ::umask(0);
  EXPECT_EQ(stat_of("masked").st_mode & 07777, 0750u);
}
TEST_F(Special, AreTheCallersAndOfTheDirectorysGroup) {
  ASSERT_EQ(::chmod(".", 0777), 0);
  make_dir("g", 02777);
  ASSERT_EQ(::chown("g", 0, kGuests), 0);
  ASSERT_EQ(::chmod("g", 02777), 0);
  for (const char* name : {"f", "g/f"}) {
    EXPECT_EQ(as(kAlice, kStaff, [&] { return err(::mkfifo(name, 0640)); }), 0);
    EXPECT_EQ(stat_of(name).st_uid, kAlice);
  }
  EXPECT_EQ(stat_of("f").st_gid, kStaff);
  EXPECT_EQ(stat_of("g/f").st_gid, kGuests);
}
TEST_F(Special, AreListedWithTypeAndInode) {
  make_all();
  std::map<std::string, unsigned char> types;
  DIR* dir = ::opendir(".");
  ASSERT_NE(dir, nullptr);
  while (dirent* e = ::readdir(dir)) {
    types[e->d_name] = e->d_type;
    if (e->d_name[0] != '.') { EXPECT_EQ(e->d_ino, stat_of(e->d_name).st_ino); }
  }
  ::closedir(dir);
  for (const Kind& kind : kKinds) EXPECT_EQ(types[kind.name], kind.listed) << kind.name;
}
TEST_F(Special, RefuseWhatIsThere) {
  make_file("f");
  make_dir("d");
  make_link("none", "l");
  make_all();
  for (const char* name : {"f", "d", "l", "fifo", "sock", "char", "block"}) {
    EXPECT_EQ(err(::mkfifo(name, 0644)), EEXIST) << name;
    EXPECT_EQ(err(::mknod(name, S_IFSOCK | 0644, 0)), EEXIST) << name;
  }
  EXPECT_EQ(err(::mkfifo("f/x", 0644)), ENOTDIR);
  EXPECT_EQ(err(::mkfifo("fifo/x", 0644)), ENOTDIR);
  EXPECT_EQ(err(::mkfifo("none/x", 0644)), ENOENT);
  EXPECT_EQ(err(::mkfifo(std::string(256, 'n').c_str(), 0644)), ENAMETOOLONG);
  EXPECT_EQ(err(::mkfifo(std::string(255, 'n').c_str(), 0644)), 0);
  ASSERT_EQ(::chmod(".", 0755), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::mkfifo("other", 0644)); }), EACCES);
}
TEST_F(Special, TakeModeOwnerAndTimes) {
  make_all();
  for (const Kind& kind : kKinds) {
    EXPECT_EQ(moved(kind.name, [&] { EXPECT_EQ(::chmod(kind.name, 0123), 0); }), "c");
    EXPECT_EQ(moved(kind.name, [&] { EXPECT_EQ(::chown(kind.name, kAlice, kStaff), 0); }), "c");
    const timespec times[2] = {{1'000'000'000, 1}, {2'000'000'000, 2}};
    EXPECT_EQ(::utimensat(AT_FDCWD, kind.name, times, 0), 0);
    struct stat st = stat_of(kind.name);
    EXPECT_EQ(st.st_mode, kind.type | 0123u) << kind.name;
    EXPECT_EQ(st.st_uid, kAlice);
    EXPECT_EQ(st.st_gid, kStaff);
    EXPECT_TRUE(st.st_atim == times[0] && st.st_mtim == times[1]) << kind.name;
    EXPECT_EQ(as(kBob, kStaff, [&] { return err(::chmod(kind.name, 0777)); }), EPERM);
    EXPECT_EQ(err(::truncate(kind.name, 0)), EINVAL) << kind.name;
  }
}
TEST_F(Special, LoseSetIdBitsWhenTheirOwnerGivesThemAGroup) {
  ASSERT_EQ(::chmod(".", 0777), 0);
  for (const Kind& kind : kKinds) {
    ASSERT_EQ(make(kind), 0);
    ASSERT_EQ(::chown(kind.name, kAlice, kStaff), 0);
    ASSERT_EQ(::chmod(kind.name, 06555), 0);
    EXPECT_EQ(as(kAlice, kStaff, [&] { return err(::chown(kind.name, -1, kGuests)); }, {kGuests}), 0);
    EXPECT_EQ(stat_of(kind.name).st_mode & 07777, 0555u) << kind.name;
  }
}
TEST_F(Special, TakeTrustedAttributesAlone) {
  make_all();
  for (const Kind& kind : kKinds) {
    EXPECT_EQ(err(::setxattr(kind.name, "user.x", "1", 1, 0)), EPERM) << kind.name;
    EXPECT_EQ(err(::setxattr(kind.name, "trusted.x", "12", 2, 0)), 0) << kind.name;
    char value[8];
    EXPECT_EQ(::getxattr(kind.name, "trusted.x", value, sizeof value), 2) << kind.name;
  }
}
TEST_F(Special, AreMovedAndReplaced) {
  make_dir("d");
  for (const Kind& kind : kKinds) {
    ASSERT_EQ(make(kind), 0);
    const ino_t inode = stat_of(kind.name).st_ino;
    EXPECT_EQ(moved("d", [&] { EXPECT_EQ(::rename(kind.name, "d/x"), 0); }), "mc") << kind.name;
    EXPECT_EQ(stat_of("d/x").st_ino, inode);
    EXPECT_EQ(stat_of("d/x").st_mode, kind.type | 0644u);
    make_file("f");
    EXPECT_EQ(rename_with("f", "d/x", RENAME_NOREPLACE), EEXIST);
    EXPECT_EQ(rename_with("f", "d/x", RENAME_EXCHANGE), 0);
    EXPECT_EQ(stat_of("f").st_ino, inode);
    EXPECT_TRUE(S_ISREG(stat_of("d/x").st_mode));
    EXPECT_EQ(err(::rename("f", "d")), EISDIR);
    EXPECT_EQ(err(::rename("d", "f")), ENOTDIR);
    EXPECT_EQ(err(::rename("f", "d/x")), 0);      // over an image
    EXPECT_EQ(stat_of("d/x").st_ino, inode);
    make_file("g", 0644, "image");
    EXPECT_EQ(err(::rename("g", "d/x")), 0);      // an image over it
    EXPECT_EQ(read_file("d/x"), "image");
    ASSERT_EQ(::unlink("d/x"), 0);
  }
  EXPECT_EQ(stat_of("d").st_nlink, 2u);
}
TEST_F(Special, AreRemoved) {
  make_all();
  for (const Kind& kind : kKinds) {
    EXPECT_EQ(err(::rmdir(kind.name)), ENOTDIR) << kind.name;
    EXPECT_EQ(moved(".", [&] { EXPECT_EQ(::unlink(kind.name), 0); }), "mc") << kind.name;
    EXPECT_FALSE(exists(kind.name));
    EXPECT_EQ(err(::unlink(kind.name)), ENOENT);
  }
}
TEST_F(Special, GoOnWithoutAName) {
  ASSERT_EQ(::mkfifo("f", 0644), 0);
  Fd fd(::open("f", O_RDWR));
  ASSERT_EQ(::unlink("f"), 0);
  EXPECT_EQ(fresh_stat(fd).st_nlink, 0u);
  EXPECT_TRUE(S_ISFIFO(fresh_stat(fd).st_mode));
  char byte = 'x';
  EXPECT_EQ(::write(fd, &byte, 1), 1);
  EXPECT_EQ(::read(fd, &byte, 1), 1);
}

TEST_F(Fifo, BytesGoFromAWriterToAReader) {
  ASSERT_EQ(::mkfifo("f", 0644), 0);
  EXPECT_EQ(err(::open("f", O_WRONLY | O_NONBLOCK)), ENXIO);
  std::string sent(300'000, 0), got;
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 7 % 251);
  std::thread writer([&] {
    Fd to(::open("f", O_WRONLY));
    for (size_t at = 0; at < sent.size();) {
      ssize_t n = ::write(to, sent.data() + at, sent.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
  });
  {
    Fd from(::open("f", O_RDONLY));
    ASSERT_EQ(::rename("f", "g"), 0);   // under them
    char buffer[4096];
    for (ssize_t n; (n = ::read(from, buffer, sizeof buffer)) > 0;) got.append(buffer, static_cast<size_t>(n));
  }
  writer.join();
  EXPECT_TRUE(got == sent) << got.size();
  EXPECT_EQ(stat_of("g").st_size, 0);
}
TEST_F(Fifo, PermissionsAreThoseOfAFile) {
  ASSERT_EQ(::chmod(".", 0755), 0);
  ASSERT_EQ(::mkfifo("f", 0640), 0);
  ASSERT_EQ(::chown("f", 0, kStaff), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("f", O_RDONLY | O_NONBLOCK)); }), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return err(::open("f", O_RDWR | O_NONBLOCK)); }), EACCES);
  EXPECT_EQ(as(kAlice, kGuests, [] { return err(::open("f", O_RDONLY | O_NONBLOCK)); }), EACCES);
}
// On the mount what goes through does not move the times (posix.md).
TEST_F(Fifo, TimesOfWhatGoesThrough) {
  ASSERT_EQ(::mkfifo("f", 0644), 0);
  Fd fd(::open("f", O_RDWR));
  EXPECT_EQ(moved("f", [&] { EXPECT_EQ(::write(fd, "x", 1), 1); }), native ? "mc" : "");
}

TEST_F(Socket, IsBoundAndConnectedTo) {
  ::umask(022);
  Fd s(bound("s"));
  ::umask(0);
  ASSERT_GE(s, 0) << strerror(errno);
  EXPECT_EQ(stat_of("s").st_mode, S_IFSOCK | 0755u);
  EXPECT_EQ(connect_to("s"), ECONNREFUSED);   // it does not listen yet
  ASSERT_EQ(::listen(s, 4), 0);
  Fd client(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{AF_UNIX, "s"};
  ASSERT_EQ(::connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << strerror(errno);
  Fd peer(::accept(s, nullptr, nullptr));
  char got[8] = {};
  EXPECT_EQ(::write(client, "hello", 5), 5);
  EXPECT_EQ(::read(peer, got, sizeof got), 5);
  EXPECT_STREQ(got, "hello");
  EXPECT_EQ(err(bound("s")), EADDRINUSE);
  EXPECT_EQ(err(::open("s", O_RDONLY)), ENXIO);
  ASSERT_EQ(::rename("s", "moved"), 0);
  EXPECT_EQ(connect_to("s"), ENOENT);
  EXPECT_EQ(connect_to("moved"), 0);
  ASSERT_EQ(::chmod(".", 0755), 0);
  EXPECT_EQ(as(kAlice, kStaff, [] { return connect_to("moved"); }), EACCES);
  s.close();
  EXPECT_EQ(connect_to("moved"), ECONNREFUSED);
}

TEST_F(Device, NeedsACapabilityAndIsNeverOpened) {
  make_all();
  EXPECT_EQ(without_capability(CAP_MKNOD, [] { return err(::mknod("c", S_IFCHR | 0644, makedev(1, 3))); }), EPERM);
  EXPECT_EQ(without_capability(CAP_MKNOD, [] { return err(::mknod("b", S_IFBLK | 0644, makedev(7, 0))); }), EPERM);
  EXPECT_EQ(without_capability(CAP_MKNOD, [] { return err(::mkfifo("f", 0644)); }), 0);
  EXPECT_EQ(err(::open("char", O_RDWR)), native ? 0 : EACCES);
  EXPECT_EQ(err(::open("block", O_RDONLY)), native ? ENXIO : EACCES);
}
TEST_F(Device, KeepsEveryNumberThatLinuxHas) {
  const dev_t numbers[] = {makedev(0, 1), makedev(1, 3), makedev(8, 255), makedev(8, 256), makedev(4095, (1u << 20) - 1)};
  for (dev_t number : numbers) {
    ASSERT_EQ(::mknod("b", S_IFBLK | 0600, number), 0);
    EXPECT_EQ(stat_of("b").st_rdev, number);
    ASSERT_EQ(::unlink("b"), 0);
  }
}

}  // namespace
}  // namespace tidemark::conformance
