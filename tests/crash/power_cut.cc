// A file system for tests that passes a directory through and forgets, on command, what was not synced.
//
//   power_cut DIRECTORY MOUNT_POINT SOCKET [deaf]   serves in the foreground; deaf: takes no notice of syncs
//   power_cut tell SOCKET COMMAND                   prints the answer
//
//   unsynced             how many sectors and changes of names are not durable
//   freeze               from now on nothing is answered: the power goes here
//   thaw                 goes on after all
//   cut STYLE SEED       after a freeze, once its users are being killed: forgets (drop, keep or mix), and ends
//   fail, heal           every request gets EIO, until healed
//   spoil PATH OFFSET N  the pages of these bytes of the file at /PATH cannot be read (EIO) until they are written whole
//
// It is cached and writes through, as a disk's file system does: LMDB maps its lock file shared. Every request holds
// one lock, so a cut is one moment for all files; a write with O_DSYNC may be cut between its write and its sync.
#define FUSE_USE_VERSION 314
#include <dirent.h>
#include <fcntl.h>
#include <fuse.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "tests/crash/medium.h"

namespace tidemark::crash {
namespace {

struct Server {
  std::mutex mutex;                 // guards all below
  std::condition_variable changed;
  bool frozen = false, failing = false;
  bool deaf = false;
  std::optional<Medium> medium;
  std::map<std::pair<dev_t, ino_t>, std::set<uint64_t>> spoiled;   // pages of files
  std::string socket_path;
};
Server server;

// Held by every request; waits as long as the power is off.
class Turn {
 public:
  Turn() : lock_(server.mutex) {
    server.changed.wait(lock_, [] { return !server.frozen; });
  }
  bool fails() const { return server.failing; }
  Medium* operator->() const { return &*server.medium; }

 private:
  std::unique_lock<std::mutex> lock_;
};

struct Handle {
  int fd = -1;
  bool synchronous = false;         // O_SYNC or O_DSYNC
  std::shared_ptr<Unsynced> file;   // shared with the medium's table
};
Handle& handle_of(const fuse_file_info* info) { return *reinterpret_cast<Handle*>(info->fh); }
int result(int rc) { return rc == 0 ? 0 : -errno; }

int do_getattr(const char* path, struct stat* st, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  return result(info != nullptr ? ::fstat(handle_of(info).fd, st) : ::lstat(turn->real(path).c_str(), st));
}

int open_handle(const Turn& turn, const char* path, fuse_file_info* info, int create, mode_t mode) {
  const std::string real = turn->real(path);
  struct stat st {};
  const bool there = ::lstat(real.c_str(), &st) == 0;
  int fd = ::open(real.c_str(), O_RDWR | O_CLOEXEC | create, mode);
  if (fd < 0) return -errno;
  if (!there) turn->created_file(path, fd);
  info->fh = reinterpret_cast<uint64_t>(
      new Handle{fd, (info->flags & (O_SYNC | O_DSYNC)) != 0, turn->find(fd)});   // until do_release
  info->keep_cache = 1;
  return 0;
}

int do_open(const char* path, fuse_file_info* info) {
  Turn turn;
  return turn.fails() ? -EIO : open_handle(turn, path, info, 0, 0);
}

int do_create(const char* path, mode_t mode, fuse_file_info* info) {
  Turn turn;
  return turn.fails() ? -EIO : open_handle(turn, path, info, O_CREAT | (info->flags & O_EXCL), mode);
}

int do_release(const char*, fuse_file_info* info) {
  Turn turn;
  ::close(handle_of(info).fd);
  delete &handle_of(info);
  return 0;
}

// The bad pages of the file; null: none.
std::set<uint64_t>* spoiled(int fd) {
  struct stat st {};
  if (server.spoiled.empty() || ::fstat(fd, &st) != 0) return nullptr;
  auto file = server.spoiled.find({st.st_dev, st.st_ino});
  return file == server.spoiled.end() ? nullptr : &file->second;
}

int do_read(const char*, char* out, size_t size, off_t offset, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  if (const auto* pages = spoiled(handle_of(info).fd)) {
    auto bad = pages->lower_bound(static_cast<uint64_t>(offset) / kPageBytes);
    if (bad != pages->end() && *bad * kPageBytes < static_cast<uint64_t>(offset) + size) return -EIO;
  }
  ssize_t n = ::pread(handle_of(info).fd, out, size, offset);
  return n < 0 ? -errno : static_cast<int>(n);
}

int do_write(const char*, const char* data, size_t size, off_t offset, fuse_file_info* info) {
  Handle& handle = handle_of(info);
  int written;
  {
    Turn turn;
    if (turn.fails()) return -EIO;
    written = turn->write(*handle.file, handle.fd, static_cast<uint64_t>(offset), data, size);
    auto* pages = written > 0 ? spoiled(handle.fd) : nullptr;
    const uint64_t end = static_cast<uint64_t>(offset) + static_cast<uint64_t>(std::max(written, 0));
    if (pages != nullptr)
      std::erase_if(*pages, [&](uint64_t page) {
        return page * kPageBytes >= static_cast<uint64_t>(offset) && (page + 1) * kPageBytes <= end;
      });
  }
  if (written <= 0 || !handle.synchronous) return written;
  Turn turn;
  if (turn.fails()) return -EIO;
  if (!server.deaf) {
    turn->sync_range(*handle.file, handle.fd, static_cast<uint64_t>(offset), static_cast<uint64_t>(written));
  }
  return written;
}

int do_truncate(const char* path, off_t size, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  int fd = info != nullptr ? handle_of(info).fd : ::open(turn->real(path).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return -errno;
  int rc = turn->truncate(*turn->find(fd), fd, static_cast<uint64_t>(size));
  if (info == nullptr) ::close(fd);
  return rc;
}

int do_fallocate(const char*, int mode, off_t offset, off_t length, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  Handle& handle = handle_of(info);
  return turn->allocate(*handle.file, handle.fd, mode, static_cast<uint64_t>(offset), static_cast<uint64_t>(length));
}

off_t do_lseek(const char*, off_t offset, int whence, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  off_t at = ::lseek(handle_of(info).fd, offset, whence);
  return at < 0 ? -errno : at;
}

int do_fsync(const char*, int, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  if (!server.deaf) turn->sync(*handle_of(info).file, handle_of(info).fd);
  return 0;
}

// An open directory is known by its path (libfuse gives none where there is a handle).
std::string& directory_of(const fuse_file_info* info) { return *reinterpret_cast<std::string*>(info->fh); }

int do_opendir(const char* path, fuse_file_info* info) {
  info->fh = reinterpret_cast<uint64_t>(new std::string(path));   // until do_releasedir
  return 0;
}

int do_releasedir(const char*, fuse_file_info* info) {
  delete &directory_of(info);
  return 0;
}

int do_fsyncdir(const char*, int, fuse_file_info* info) {
  Turn turn;
  if (turn.fails()) return -EIO;
  if (!server.deaf) turn->sync_directory(directory_of(info));
  return 0;
}

int do_readdir(const char*, void* buffer, fuse_fill_dir_t fill, off_t, fuse_file_info* info, fuse_readdir_flags) {
  Turn turn;
  if (turn.fails()) return -EIO;
  DIR* dir = ::opendir(turn->real(directory_of(info)).c_str());
  if (dir == nullptr) return -errno;
  while (dirent* entry = ::readdir(dir)) {
    struct stat st {};
    st.st_ino = entry->d_ino;
    st.st_mode = static_cast<mode_t>(entry->d_type) << 12;
    if (fill(buffer, entry->d_name, &st, 0, fuse_fill_dir_flags{}) != 0) break;
  }
  ::closedir(dir);
  return 0;
}

// Names: carried out in the directory, then noted.
template <typename Change>
int add_name(const char* path, Change change) {
  Turn turn;
  if (turn.fails()) return -EIO;
  if (change(turn->real(path)) != 0) return -errno;
  turn->created(path);
  return 0;
}
int do_mkdir(const char* path, mode_t mode) {
  return add_name(path, [&](const std::string& real) { return ::mkdir(real.c_str(), mode); });
}
int do_symlink(const char* target, const char* path) {
  return add_name(path, [&](const std::string& real) { return ::symlink(target, real.c_str()); });
}
int do_link(const char* from, const char* path) {
  return add_name(path, [&](const std::string& real) {
    return ::link((real.substr(0, real.size() - std::strlen(path)) + from).c_str(), real.c_str());
  });
}
int do_remove(const char* path) {
  Turn turn;
  return turn.fails() ? -EIO : turn->remove(path);
}
int do_rename(const char* from, const char* to, unsigned flags) {
  Turn turn;
  if (turn.fails()) return -EIO;
  if ((flags & ~RENAME_NOREPLACE) != 0) return -EINVAL;
  return turn->rename(from, to, (flags & RENAME_NOREPLACE) == 0);
}
int do_readlink(const char* path, char* out, size_t size) {
  Turn turn;
  if (turn.fails()) return -EIO;
  ssize_t n = ::readlink(turn->real(path).c_str(), out, size - 1);
  if (n < 0) return -errno;
  out[n] = '\0';
  return 0;
}
// Modes, owners and times are not what is tested: durable at once.
int do_chmod(const char* path, mode_t mode, fuse_file_info*) {
  Turn turn;
  return turn.fails() ? -EIO : result(::chmod(turn->real(path).c_str(), mode));
}
int do_chown(const char* path, uid_t user, gid_t group, fuse_file_info*) {
  Turn turn;
  return turn.fails() ? -EIO : result(::lchown(turn->real(path).c_str(), user, group));
}
int do_utimens(const char* path, const timespec times[2], fuse_file_info*) {
  Turn turn;
  return turn.fails() ? -EIO : result(::utimensat(AT_FDCWD, turn->real(path).c_str(), times, AT_SYMLINK_NOFOLLOW));
}
int do_statfs(const char* path, struct statvfs* st) {
  Turn turn;
  return turn.fails() ? -EIO : result(::statvfs(turn->real(path).c_str(), st));
}

// ---- commands -------------------------------------------------------------------------------------
std::string cut(std::istringstream& words) {
  std::string style;
  uint64_t seed = 0;
  static const std::map<std::string, CutStyle> kStyles{
      {"drop", CutStyle::kDrop}, {"keep", CutStyle::kKeep}, {"mix", CutStyle::kMix}};
  if (!(words >> style >> seed) || !kStyles.contains(style)) return "error: cut drop|keep|mix SEED";
  if (!server.frozen) return "error: freeze first";
  CutReport r = server.medium->cut(kStyles.at(style), seed);
  std::ostringstream out;
  out << "sectors " << r.sectors << " dropped " << r.dropped << " torn_pages " << r.torn_pages << " sizes " << r.sizes
      << " sizes_dropped " << r.sizes_dropped << " names " << r.names << " names_dropped " << r.names_dropped;
  return out.str();
}

std::string spoil(std::istringstream& words) {
  std::string path;
  uint64_t offset = 0, length = 0;
  struct stat st {};
  if (!(words >> path >> offset >> length)) return "error: spoil PATH OFFSET LENGTH";
  if (::stat(server.medium->real(path).c_str(), &st) != 0) return "error: no such file";
  auto& pages = server.spoiled[{st.st_dev, st.st_ino}];
  for (uint64_t page = offset / kPageBytes; page * kPageBytes < offset + length; ++page) pages.insert(page);
  return "ok";
}

std::string obey(const std::string& line) {
  std::istringstream words(line);
  std::string verb;
  words >> verb;
  std::lock_guard lock(server.mutex);
  if (verb == "cut") return cut(words);
  if (verb == "spoil") return spoil(words);
  if (verb == "unsynced") {
    return "sectors " + std::to_string(server.medium->unsynced_sectors()) + " names " +
           std::to_string(server.medium->unsynced_names());
  }
  if (verb == "freeze") server.frozen = true;
  else if (verb == "thaw") server.frozen = false;
  else if (verb == "fail") server.failing = true;
  else if (verb == "heal") server.failing = false;
  else return "error: unknown command " + line;
  server.changed.notify_all();
  return "ok";
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    std::fprintf(stderr, "power_cut: %s: too long for a socket\n", path.c_str());
    std::exit(2);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

std::string receive_line(int fd) {
  std::string line;
  char c;
  while (::recv(fd, &c, 1, 0) == 1 && c != '\n') line += c;
  return line;
}

bool send_line(int fd, const std::string& line) {
  const std::string text = line + "\n";
  return ::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

void listen_to_commands(int listener) {
  for (;;) {
    int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    const std::string line = receive_line(client), answer = obey(line);
    if (!send_line(client, answer)) std::fprintf(stderr, "power_cut: nobody waits for: %s\n", answer.c_str());
    ::close(client);
    // The end of this process aborts what it has not answered: those who wait are being killed.
    if (line.starts_with("cut ") && !answer.starts_with("error")) std::_Exit(0);
  }
}

void* do_init(fuse_conn_info* connection, fuse_config* config) {
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_WRITEBACK_CACHE);
  config->use_ino = 1;
  config->hard_remove = 1;          // an open file that loses its name goes on by its handle
  config->nullpath_ok = 1;
  config->kernel_cache = 1;
  int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = address_of(server.socket_path);
  ::unlink(server.socket_path.c_str());
  if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 8) != 0) {
    std::perror(server.socket_path.c_str());
    std::_Exit(1);
  }
  std::thread([listener] { listen_to_commands(listener); }).detach();
  return nullptr;
}

fuse_operations operations() {
  fuse_operations o{};
  o.init = do_init;
  o.getattr = do_getattr;
  o.open = do_open;
  o.create = do_create;
  o.release = do_release;
  o.read = do_read;
  o.write = do_write;
  o.truncate = do_truncate;
  o.fallocate = do_fallocate;
  o.lseek = do_lseek;
  o.fsync = do_fsync;
  o.opendir = do_opendir;
  o.releasedir = do_releasedir;
  o.fsyncdir = do_fsyncdir;
  o.readdir = do_readdir;
  o.mkdir = do_mkdir;
  o.symlink = do_symlink;
  o.link = do_link;
  o.unlink = do_remove;
  o.rmdir = do_remove;
  o.rename = do_rename;
  o.readlink = do_readlink;
  o.chmod = do_chmod;
  o.chown = do_chown;
  o.utimens = do_utimens;
  o.statfs = do_statfs;
  return o;
}

int tell(const std::string& socket_path, const std::string& line) {
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = address_of(socket_path);
  if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    std::perror(socket_path.c_str());
    return 1;
  }
  const std::string answer = send_line(fd, line) ? receive_line(fd) : "";
  std::printf("%s\n", answer.c_str());
  return answer.empty() || answer.starts_with("error") ? 1 : 0;
}

int serve(const std::string& directory, const std::string& mount_point, const std::string& socket_path, bool deaf) {
  server.medium.emplace(directory);
  server.socket_path = socket_path;
  server.deaf = deaf;
  std::string words[] = {"power_cut", "-f", "-o", "fsname=power_cut,default_permissions,allow_other", mount_point};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), words[4].data(), nullptr};
  fuse_operations table = operations();
  return ::fuse_main(5, arguments, &table, nullptr);
}

}  // namespace
}  // namespace tidemark::crash

int main(int argc, char** argv) {
  using namespace tidemark::crash;
  if (argc == 4 && std::strcmp(argv[1], "tell") == 0) return tell(argv[2], argv[3]);
  const bool deaf = argc == 5 && std::strcmp(argv[4], "deaf") == 0;
  if (argc == 4 || deaf) {
    ::umask(0);
    return serve(argv[1], argv[2], argv[3], deaf);
  }
  std::fprintf(stderr, "usage: power_cut DIRECTORY MOUNT_POINT SOCKET [deaf] | power_cut tell SOCKET COMMAND\n");
  return 2;
}
