#include "fs/mount_point.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <fstream>
#include <sstream>

#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fuse");

bool is_dead(int error) { return error == ENOTCONN || error == ECONNABORTED; }

// 0, or the errno. The kernel answers stat() of a mount that just died from its cache for a while, statfs() never.
int look_at(const std::string& path, struct stat& st) {
  struct statfs fs;
  if (::stat(path.c_str(), &st) != 0 || ::statfs(path.c_str(), &fs) != 0) return errno;
  return 0;
}

Status wrong(const std::string& path, const std::string& why) {
  return Status(Code::kInvalidArgument, "mount point " + path + ": " + why);
}

// As /proc/self/mountinfo writes a path: blanks and backslashes as octal numbers.
std::string unescaped(const std::string& field) {
  std::string out;
  for (size_t i = 0; i < field.size(); ++i) {
    if (field[i] != '\\' || i + 3 >= field.size()) {
      out.push_back(field[i]);
      continue;
    }
    out.push_back(static_cast<char>(std::stoi(field.substr(i + 1, 3), nullptr, 8)));
    i += 3;
  }
  return out;
}

// The type of what is mounted there last; empty: nothing is.
std::string mounted_type(const std::string& path) {
  char real[PATH_MAX];
  if (::realpath(path.c_str(), real) == nullptr) return {};
  std::ifstream table("/proc/self/mountinfo");
  std::string line, found;
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string word, at, type;
    for (int i = 0; words >> word; ++i) {
      if (i == 4) at = unescaped(word);
      if (word == "-") {
        words >> type;
        break;
      }
    }
    if (at == real) found = type;
  }
  return found;
}
}  // namespace

Status check_mount_point(const std::string& path) {
  struct stat st;
  if (int error = look_at(path, st); error != 0) {
    if (is_dead(error)) return Status::ok();
    if (error == ENOENT) return wrong(path, "it is missing: create the directory, or name another");
    return Status(Code::kInvalidArgument,
                  Status::from_errno(error, "mount point " + path).message() + ": name one that this user can reach");
  }
  if (!S_ISDIR(st.st_mode)) return wrong(path, "it is no directory: name one");
  std::string type = mounted_type(path);
  if (!type.empty())
    return wrong(path, "a file system of type " + type + " is mounted there: unmount it, or name another directory");
  return Status::ok();
}

Status clear_dead_mount(const std::string& path) {
  for (int i = 0; i < 16; ++i) {
    struct stat st;
    const int error = look_at(path, st);
    if (error == 0) {
      if (!S_ISDIR(st.st_mode)) return wrong(path, "it is no directory: name one");
      return Status::ok();
    }
    if (!is_dead(error)) return Status::from_errno(error, "mount point " + path);
    kLog.info("dead_mount_removed", {{"path", path}});
    if (::umount2(path.c_str(), MNT_DETACH) != 0)
      return Status::from_errno(errno, "unmounting the dead mount at " + path);
  }
  return Status(Code::kBusy, path + ": too many dead mounts on top of one another");
}

}  // namespace tidemark::fs
