#include "shared/image/posix_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

namespace tidemark::image {

PosixFile& PosixFile::operator=(PosixFile&& o) noexcept {
  if (this != &o) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(o.fd_, -1);
    path_ = std::move(o.path_);
  }
  return *this;
}

PosixFile::~PosixFile() {
  if (fd_ >= 0) ::close(fd_);  // what had to be durable was synced
}

Result<PosixFile> PosixFile::open(const std::string& path, int flags, mode_t mode) {
  PosixFile file;
  file.fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (file.fd_ < 0) return Status::from_errno(errno, path);
  file.path_ = path;
  return file;
}

Result<struct stat> PosixFile::stat() const {
  struct stat st;
  if (::fstat(fd_, &st) != 0) return Status::from_errno(errno, path_);
  return st;
}

Result<uint64_t> PosixFile::size() const {
  TM_ASSIGN_OR_RETURN(struct stat st, stat());
  if (S_ISREG(st.st_mode)) return static_cast<uint64_t>(st.st_size);
  off_t end = ::lseek(fd_, 0, SEEK_END);  // a block device
  if (!S_ISBLK(st.st_mode) || end < 0) {
    return Status(Code::kInvalidArgument, path_ + ": neither a regular file nor a block device");
  }
  return static_cast<uint64_t>(end);
}

Status PosixFile::read(uint64_t offset, MutableByteSpan out) const {
  while (!out.empty()) {
    ssize_t n = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::from_errno(errno, path_ + ": read");
    if (n == 0)
      return Status(Code::kIoError,
                    path_ + ": ends at " + std::to_string(offset) + "; it became shorter while it was read");
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status PosixFile::write(uint64_t offset, ByteSpan data) const {
  while (!data.empty()) {
    ssize_t n = ::pwrite(fd_, data.data(), data.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Status::from_errno(n < 0 ? errno : EIO, path_ + ": write");
    offset += static_cast<uint64_t>(n);
    data = data.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status PosixFile::truncate(uint64_t size) const {
  return ::ftruncate(fd_, static_cast<off_t>(size)) == 0 ? Status::ok()
                                                         : Status::from_errno(errno, path_ + ": set size");
}

Status PosixFile::sync() const {
  return ::fsync(fd_) == 0 ? Status::ok() : Status::from_errno(errno, path_ + ": fsync");
}

Result<bool> PosixFile::lock_exclusively() const {
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return true;
  if (errno == EWOULDBLOCK)
    return Status(Code::kBusy, path_ + ": another process works on it: wait for it, or end it");
  // NFS without its lock service, some FUSE servers.
  if (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  return Status::from_errno(errno, path_ + ": lock");
}

Status PosixFile::take_owner_and_mode_of(const std::string& path) const {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0) return errno == ENOENT ? Status::ok() : Status::from_errno(errno, path);
  mode_t mode = st.st_mode & 0777;
  if (::fchown(fd_, st.st_uid, st.st_gid) != 0) {
    if (errno != EPERM && errno != EINVAL) return Status::from_errno(errno, path_ + ": set owner");
    mode &= 0700;
  }
  // A file system without modes has what its mount says.
  if (::fchmod(fd_, mode) != 0 && errno != EPERM && errno != EOPNOTSUPP) {
    return Status::from_errno(errno, path_ + ": set mode");
  }
  return {};
}

Result<Extent> PosixFile::next_data(uint64_t offset, uint64_t end) const {
  if (offset >= end) return Extent{end, 0};
  off_t data = ::lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno != ENXIO) return Extent{offset, end - offset};
  if (data < 0) {
    // Nothing but holes, or a file that was cut meanwhile: what was cut off is not zeros.
    TM_ASSIGN_OR_RETURN(uint64_t now, size());
    if (now < end)
      return Status(Code::kIoError,
                    path_ + ": ends at " + std::to_string(now) + "; it became shorter while it was read");
    return Extent{end, 0};
  }
  uint64_t begin = static_cast<uint64_t>(data);
  if (begin >= end) return Extent{end, 0};
  off_t hole = ::lseek(fd_, data, SEEK_HOLE);
  uint64_t stop = hole < 0 ? end : std::min(end, static_cast<uint64_t>(hole));
  return Extent{begin, stop - begin};
}

Status check_replaceable(const std::string& path) {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0 || S_ISREG(st.st_mode)) return {};
  std::string what = " is no regular file: name one, and copy that there (dd bs=4M conv=fsync)";
  if (S_ISDIR(st.st_mode)) what = " is a directory: name a file in it";
  if (S_ISLNK(st.st_mode)) what = " is a link: name the file that it stands for";
  return {Code::kInvalidArgument, path + what};
}

Result<TemporaryFile> TemporaryFile::create(const std::string& path) {
  uint32_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random) return Status::from_errno(errno, "getrandom");
  char suffix[16];
  std::snprintf(suffix, sizeof suffix, ".%08x.part", random);
  TemporaryFile out;
  std::string name = path + suffix;
  TM_ASSIGN_OR_RETURN(out.file_, PosixFile::open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
  out.path_ = path;
  out.temporary_ = std::move(name);
  return out;
}

TemporaryFile::~TemporaryFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());  // best effort on a path that has failed already
}

Status TemporaryFile::commit(bool overwrite) {
  if (overwrite) TM_RETURN_IF_ERROR(file_.take_owner_and_mode_of(path_));
  TM_RETURN_IF_ERROR(file_.sync());
  unsigned flags = overwrite ? 0 : RENAME_NOREPLACE;
  int result = ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), flags);
  if (result != 0 && errno == EINVAL && flags != 0) {
    // The file system has no such rename: look first, so that only a race could replace a file.
    struct stat st;
    if (::stat(path_.c_str(), &st) == 0)
      return Status(Code::kAlreadyExists, path_ + ": exists; remove it or ask to overwrite");
    result = ::rename(temporary_.c_str(), path_.c_str());
  }
  if (result != 0 && errno == EEXIST)
    return Status(Code::kAlreadyExists, path_ + ": exists; remove it or ask to overwrite");
  if (result != 0) return Status::from_errno(errno, path_ + ": rename");
  temporary_.clear();
  size_t slash = path_.rfind('/');
  std::string directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path_.substr(0, slash);
  TM_ASSIGN_OR_RETURN(PosixFile folder, PosixFile::open(directory, O_RDONLY | O_DIRECTORY));
  Status synced = folder.sync();
  return synced.sys_errno() == EINVAL ? Status::ok() : synced;  // a file system whose directories cannot be synced
}

}  // namespace tidemark::image
