#include "shared/io/real_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "shared/base/digest.h"
#include "shared/base/limits.h"

namespace tidemark::io {
namespace {

constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kReadFileBytesMax = 256ull << 20;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor other) noexcept { std::swap(fd_, other.fd_); return *this; }
  ~Descriptor() { if (fd_ >= 0) ::close(fd_); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

int open_retrying(const char* path, int flags, mode_t mode = 0) {
  int fd;
  do fd = ::open(path, flags | O_CLOEXEC, mode); while (fd < 0 && errno == EINTR);
  return fd;
}

std::string parent_directory(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

FileStat to_file_stat(const struct statx& st) { return {st.stx_size, st.stx_blocks * 512, S_ISDIR(st.stx_mode)}; }

// Such a file system asks somebody else for a size before it reads, even of a submission that must not wait.
bool may_block_submission(int fd) {
  constexpr long kFuse = 0x65735546, kNfs = 0x6969, kCifs = 0xff534d42, kSmb2 = 0xfe534d42, kCeph = 0x00c36400;
  struct statfs fs;
  if (::fstatfs(fd, &fs) != 0) return false;
  const auto type = static_cast<long>(fs.f_type);
  return type == kFuse || type == kNfs || type == kCifs || type == kSmb2 || type == kCeph;
}

// Its page cache never holds what a direct write of this machine has replaced: what overlaps the write is thrown out
// before it is sent, and again before it is answered (ext4, XFS: iomap_dio_rw), unless it fails: Ring::try_again.
bool cache_follows_direct_writes(int fd) {
  constexpr long kExt4 = 0xef53, kXfs = 0x58465342;
  struct statfs fs;
  return ::fstatfs(fd, &fs) == 0 && (static_cast<long>(fs.f_type) == kExt4 || static_cast<long>(fs.f_type) == kXfs);
}

class RealFile final : public File {
 public:
  RealFile(RealFileSystem& files, std::string path, int fd, bool direct, const OpenOptions& options)
      : files_(files), path_(std::move(path)), fd_(fd), direct_(direct), background_(options.background),
        whole_(options.whole), away_(may_block_submission(fd)), cached_(direct && cache_follows_direct_writes(fd)) {}

  ~RealFile() override {
    TM_CHECK(in_flight_ == 0 || files_.over(), "file destroyed with operations in flight");
  }

  void read(uint64_t offset, MutableByteSpan out, IoMode mode, Callback<Status> done) override {
    transfer(Ring::Kind::kRead, offset, out.data(), out.size(), mode, std::move(done));
  }
  // Long reads stay direct: they are faster, and would push out what is read again.
  void read_cached(uint64_t offset, MutableByteSpan out, IoMode mode, Callback<Status> done) override {
    if (out.empty() || out.size() > limits::kCachedReadBytesMax || !open_cached())
      return read(offset, out, mode, std::move(done));
    start({.kind = Ring::Kind::kRead, .fd = cached_fd_.get(), .direct_fd = fd_.get(), .offset = offset,
           .data = out.data(), .length = out.size(), .whole = whole_, .path = &path_},
          mode, std::move(done));
  }
  void write(uint64_t offset, ByteSpan data, IoMode mode, Callback<Status> done) override {
    transfer(Ring::Kind::kWrite, offset, const_cast<uint8_t*>(data.data()), data.size(), mode, std::move(done));
  }
  void sync(IoMode mode, Callback<Status> done) override {
    start({.kind = Ring::Kind::kDataSync, .fd = fd_.get(), .path = &path_}, mode, std::move(done));
  }
  void punch(uint64_t offset, uint64_t length, Callback<Status> done) override {
    fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length, std::move(done));
  }
  void allocate(uint64_t offset, uint64_t length, Callback<Status> done) override {
    fallocate(FALLOC_FL_KEEP_SIZE, offset, length, std::move(done));
  }

  Status truncate(uint64_t size) override {
    int rc;
    do rc = ::ftruncate(fd_.get(), static_cast<off_t>(size)); while (rc != 0 && errno == EINTR);
    if (rc != 0) return Status::from_errno(errno, path_ + ": truncate to " + std::to_string(size));
    return Status::ok();
  }

  Result<Extent> next_data(uint64_t offset) override {
    TM_ASSIGN_OR_RETURN(FileStat now, stat());
    if (offset >= now.size) return Extent{now.size, 0};
    off_t begin = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
    if (begin < 0 && errno == ENXIO) return Extent{now.size, 0};
    if (begin < 0) return Status::from_errno(errno, path_ + ": seek to data");
    off_t end = ::lseek(fd_.get(), begin, SEEK_HOLE);
    if (end < 0) return Status::from_errno(errno, path_ + ": seek to hole");
    return Extent{static_cast<uint64_t>(begin), static_cast<uint64_t>(end - begin)};
  }

  Result<FileStat> stat() override {
    struct statx st;
    TM_RETURN_IF_ERROR(run_blocking(stat_request(st)));
    return to_file_stat(st);
  }
  void ask_stat(IoMode mode, Callback<Result<FileStat>> done) override {
    auto out = std::make_shared<struct statx>();   // shared with the operation
    start(stat_request(*out), mode, [out, done = std::move(done)](Status status) mutable {
      if (!status) return done(std::move(status));
      done(to_file_stat(*out));
    });
  }
  bool is_direct() const override { return direct_; }

 private:
  // Opened when it is first wanted: most images of many are only open. Where it cannot be, or would take one of the
  // last descriptors, reads are direct. Nothing is read ahead: what was not asked for is in nobody's order with the
  // writes above, and a bad sector would be its neighbours' error and delay.
  bool open_cached() {
    if (!cached_ || cached_fd_.valid()) return cached_;
    const std::string self = "/proc/self/fd/" + std::to_string(fd_.get());   // whatever has its name by now
    Descriptor opened(open_retrying(self.c_str(), O_RDONLY | O_NOATIME));
    rlimit most{};
    cached_ = opened.valid() && ::getrlimit(RLIMIT_NOFILE, &most) == 0 &&
              static_cast<rlim_t>(opened.get()) < most.rlim_cur / 2 &&
              ::posix_fadvise(opened.get(), 0, 0, POSIX_FADV_RANDOM) == 0;
    if (cached_) cached_fd_ = std::move(opened);
    return cached_;
  }

  Ring::Request stat_request(struct statx& out) {
    return {.kind = Ring::Kind::kStat, .fd = fd_.get(), .data = reinterpret_cast<uint8_t*>(&out), .path = &path_};
  }

  void transfer(Ring::Kind kind, uint64_t offset, uint8_t* data, size_t length, IoMode mode, Callback<Status> done) {
    auto bits = offset | length | reinterpret_cast<uintptr_t>(data);
    if (length == 0 || (direct_ && bits % kAlignment != 0)) {
      Status status;
      if (length != 0) status = Status(Code::kInvalidArgument, path_ + ": direct I/O that is not aligned to 4096");
      finish_early(std::move(status), mode, std::move(done));
      return;
    }
    start({.kind = kind, .fd = fd_.get(), .offset = offset, .data = data, .length = length, .direct = direct_,
           .whole = whole_, .away = away_, .path = &path_},
          mode, std::move(done));
  }

  void fallocate(int mode, uint64_t offset, uint64_t length, Callback<Status> done) {
    if (length == 0) {
      finish_early(Status::ok(), IoMode::kQueued, std::move(done));
      return;
    }
    start({.kind = Ring::Kind::kFallocate, .fd = fd_.get(), .fallocate_mode = mode, .offset = offset,
           .length = length, .path = &path_},
          IoMode::kQueued, std::move(done));
  }

  void finish_early(Status status, IoMode mode, Callback<Status> done) {
    if (mode == IoMode::kInline) {
      done(std::move(status));
      return;
    }
    ++in_flight_;
    files_.env().post([this, status = std::move(status), done = std::move(done)]() mutable {
      --in_flight_;
      done(std::move(status));
    });
  }

  void start(const Ring::Request& request, IoMode mode, Callback<Status> done) {
    if (mode == IoMode::kInline) {
      ++in_flight_;
      InlineOperation operation{request, &in_flight_, std::move(done)};
      if (files_.at_base(operation)) return;
      Status status = run_blocking(request);
      --in_flight_;
      operation.done(std::move(status));
      return;
    }
    ++in_flight_;
    if (Ring* ring = background_ ? nullptr : files_.ring(); ring != nullptr) {
      ring->queue(request, &in_flight_, std::move(done));
      return;
    }
    auto result = std::make_shared<Status>();   // shared by the worker and the completion
    files_.env().offload([request, result] { *result = run_blocking(request); },
                         [this, result, done = std::move(done)]() mutable {
                           --in_flight_;
                           done(std::move(*result));
                         });
  }

  RealFileSystem& files_;
  const std::string path_;
  Descriptor fd_;
  const bool direct_;
  const bool background_;
  const bool whole_;
  const bool away_;
  bool cached_;               // read_cached() is more than read()
  Descriptor cached_fd_{-1};
  uint32_t in_flight_ = 0;
};

}  // namespace

Status run_blocking(const Ring::Request& request) {
  Ring::Request r = request;
  auto failed = [&](const char* verb) {
    return Status::from_errno(errno, *r.path + ": " + verb + " at " + std::to_string(r.offset));
  };
  auto gave_up = [&](const char* verb) {
    Status status = failed(verb);
    static_cast<void>(Ring::try_again(r, errno));
    return status;
  };
  switch (r.kind) {
    case Ring::Kind::kRead:
      while (r.length > 0) {
        ssize_t n = ::pread(r.fd, r.data, r.length, static_cast<off_t>(r.offset));
        if (n < 0 && (errno == EINTR || Ring::try_again(r, errno))) continue;
        if (n < 0) return failed("read");
        auto moved = static_cast<uint64_t>(n);
        if (moved == 0 || (r.direct && moved < r.length && moved % kSectorBytes != 0)) {
          return Ring::at_end_of_file(r, moved);
        }
        r.offset += moved, r.data += moved, r.length -= moved;
      }
      return Status::ok();
    case Ring::Kind::kWrite:
      while (r.length > 0) {
        ssize_t n = ::pwrite(r.fd, r.data, r.length, static_cast<off_t>(r.offset));
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;
        if (n <= 0) return gave_up("write");
        r.offset += static_cast<uint64_t>(n), r.data += n, r.length -= static_cast<uint64_t>(n);
      }
      return Status::ok();
    case Ring::Kind::kDataSync:
      while (::fdatasync(r.fd) != 0) {
        if (errno != EINTR) return failed("fdatasync");
      }
      return Status::ok();
    case Ring::Kind::kFallocate:
      while (::fallocate(r.fd, r.fallocate_mode, static_cast<off_t>(r.offset), static_cast<off_t>(r.length)) != 0) {
        if (errno != EINTR) return gave_up("fallocate");
      }
      return Status::ok();
    case Ring::Kind::kStat:
      if (::statx(r.fd, "", AT_EMPTY_PATH, Ring::kStatMask, reinterpret_cast<struct statx*>(r.data)) != 0)
        return failed("stat");
      return Status::ok();
  }
  return Status(Code::kInvalidArgument, "unknown file operation");
}

Result<std::unique_ptr<File>> RealFileSystem::open(const std::string& path, const OpenOptions& options) {
  int flags = options.read_only ? O_RDONLY : O_RDWR;
  if (options.create) flags |= O_CREAT;
  if (options.create && options.exclusive) flags |= O_EXCL;
  bool direct = options.direct;
  int fd = open_retrying(path.c_str(), flags | (direct ? O_DIRECT : 0), options.mode);
  if (fd < 0 && errno == EINVAL && direct) {
    direct = false;
    // The refused attempt may have created the file already.
    fd = open_retrying(path.c_str(), flags & ~O_EXCL, options.mode);
  }
  if (fd < 0) return Status::from_errno(errno, path + ": open");
  // Until the last write on it has ended, also one that outlives a killed process: whoever starts after that process
  // can wait for the lock. Where a file system has no such locks, nobody waits.
  if (options.direct && !options.read_only && ::flock(fd, LOCK_SH | LOCK_NB) != 0) errno = 0;
  return std::unique_ptr<File>(std::make_unique<RealFile>(*this, path, fd, direct, options));
}

Result<FileStat> RealFileSystem::stat(const std::string& path) {
  struct statx st;
  if (::statx(AT_FDCWD, path.c_str(), 0, Ring::kStatMask, &st) != 0)
    return Status::from_errno(errno, path + ": stat");
  return to_file_stat(st);
}

Status RealFileSystem::make_directories(const std::string& path) {
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    std::string part = path.substr(0, end);
    bool made = !part.empty() && ::mkdir(part.c_str(), 0700) == 0;
    // A new directory's name must survive a power cut as surely as what will be synced inside it.
    if (made) TM_RETURN_IF_ERROR(sync_directory(parent_directory(part)));
    if (!part.empty() && !made) {
      int error = errno;
      struct stat st;
      bool there = ::stat(part.c_str(), &st) == 0;
      if (there && !S_ISDIR(st.st_mode)) error = ENOTDIR;
      if (!there || !S_ISDIR(st.st_mode)) return Status::from_errno(error, part + ": make directory");
    }
    if (end == std::string::npos) return Status::ok();
  }
}

Result<std::vector<std::string>> RealFileSystem::list(const std::string& directory) {
  DIR* dir = ::opendir(directory.c_str());
  if (dir == nullptr) return Status::from_errno(errno, directory + ": list");
  std::vector<std::string> names;
  errno = 0;
  while (dirent* entry = ::readdir(dir)) {
    std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  int error = errno;
  ::closedir(dir);
  if (error != 0) return Status::from_errno(error, directory + ": list");
  std::sort(names.begin(), names.end());
  return names;
}

Status RealFileSystem::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return Status::from_errno(errno, from + ": rename to " + to);
  return Status::ok();
}

Status RealFileSystem::unlink(const std::string& path) {
  // Directories too, as remove(3): the layers above know only names.
  if (::remove(path.c_str()) != 0) return Status::from_errno(errno, path + ": unlink");
  return Status::ok();
}

Status RealFileSystem::sync_directory(const std::string& path) {
  Descriptor fd(open_retrying(path.c_str(), O_RDONLY));
  if (!fd.valid()) return Status::from_errno(errno, path + ": open for a sync");
  while (::fsync(fd.get()) != 0) {
    if (errno != EINTR) return Status::from_errno(errno, path + ": sync");
  }
  return Status::ok();
}

Result<FileSystem::Space> RealFileSystem::space(const std::string& path) {
  struct statvfs st;
  if (::statvfs(path.c_str(), &st) != 0) return Status::from_errno(errno, path + ": space");
  return Space{st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize};
}

Result<uint64_t> RealFileSystem::mount_identity(const std::string& path) {
  struct statx st;
  // The unique mount id is not used again within a boot, unlike the small one (before kernel 6.8).
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U
#endif
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_BASIC_STATS | STATX_MNT_ID | STATX_MNT_ID_UNIQUE, &st) != 0) {
    return Status::from_errno(errno, path + ": mount identity");
  }
  uint8_t parts[16];
  store_le<uint64_t>(parts, st.stx_mnt_id);
  store_le<uint64_t>(parts + 8, gnu_dev_makedev(st.stx_dev_major, st.stx_dev_minor));
  return digest64(parts);
}

Result<Bytes> RealFileSystem::read_file(const std::string& path) {
  Descriptor fd(open_retrying(path.c_str(), O_RDONLY));
  if (!fd.valid()) return Status::from_errno(errno, path + ": open");
  Bytes out;
  uint8_t piece[16384];
  while (true) {
    ssize_t n = ::read(fd.get(), piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Status::from_errno(errno, path + ": read");
    if (n == 0) return out;
    out.insert(out.end(), piece, piece + n);
    if (out.size() > kReadFileBytesMax) return Status(Code::kInvalidArgument, path + ": too large to read whole");
  }
}

Status RealFileSystem::write_file_atomically(const std::string& path, ByteSpan data, uint32_t mode) {
  const std::string temporary = path + ".tmp";
  {
    Descriptor fd(open_retrying(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC, mode));
    if (!fd.valid()) return Status::from_errno(errno, temporary + ": create");
    if (::fchmod(fd.get(), mode) != 0) return Status::from_errno(errno, temporary + ": set mode");
    TM_RETURN_IF_ERROR(run_blocking({.kind = Ring::Kind::kWrite, .fd = fd.get(),
                                     .data = const_cast<uint8_t*>(data.data()), .length = data.size(),
                                     .path = &temporary}));
    while (::fsync(fd.get()) != 0) {
      if (errno != EINTR) return Status::from_errno(errno, temporary + ": fsync");
    }
  }
  TM_RETURN_IF_ERROR(rename(temporary, path));
  return sync_directory(parent_directory(path));
}

Status await_earlier_writes(const std::vector<std::string>& directories, std::chrono::milliseconds limit) {
  constexpr int kLookMs = 2;
  auto left_ms = limit.count();
  for (const std::string& directory : directories) {
    std::error_code error;
    std::filesystem::recursive_directory_iterator at(directory, error), end;
    for (; !error && at != end; at.increment(error)) {
      if (!at->is_regular_file(error)) continue;
      const std::string path = at->path().string();
      Descriptor fd(open_retrying(path.c_str(), O_RDONLY | O_NOATIME));
      if (!fd.valid()) continue;   // the storage group says what is wrong with it
      bool taken = false;
      while (!(taken = ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) && errno == EWOULDBLOCK && left_ms > 0) {
        left_ms -= kLookMs;
        ::poll(nullptr, 0, kLookMs);
        errno = EWOULDBLOCK;
      }
      if (!taken && errno == EWOULDBLOCK) {
        return Status(Code::kUnavailable,
                      path + ": in use by another process, or a write of the run before has not ended: try again");
      }
    }
  }
  return Status::ok();
}

}  // namespace tidemark::io
