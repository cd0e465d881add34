#include "shared/cli/in_use.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

namespace tidemark::cli {
namespace {

Status held(const std::string& path) {
  return {Code::kBusy, path + " is in use: stop the daemon first; fsck works offline"};
}

}  // namespace

// LMDB keeps a lock on the first byte of its lock file while the store is open.
Status store_is_free(const std::string& directory) {
  const std::string path = directory + "/lock.mdb";
  int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return Status::ok();
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  int rc = ::fcntl(fd, F_GETLK, &lock);
  ::close(fd);
  return rc == 0 && lock.l_type != F_UNLCK ? held(directory) : Status::ok();
}

Status object_is_free(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Status::ok();       // said when it is looked at
  bool taken = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  ::close(fd);
  return taken || errno != EWOULDBLOCK ? Status::ok() : held(path);
}

}  // namespace tidemark::cli
