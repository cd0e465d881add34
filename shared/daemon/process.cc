#include "shared/daemon/process.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstdio>
#include <utility>

namespace tidemark::daemon {

PidFile& PidFile::operator=(PidFile&& o) noexcept {
  if (this != &o) {
    release();
    path_ = std::move(o.path_);
    fd_ = std::exchange(o.fd_, -1);
  }
  return *this;
}

PidFile::~PidFile() { release(); }

void PidFile::release() {
  if (fd_ < 0) return;
  unlink(path_.c_str());
  close(fd_);
  fd_ = -1;
}

Result<PidFile> PidFile::take(const std::string& path) {
  PidFile out;
  out.path_ = path;
  for (;;) {
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return Status::from_errno(errno, path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      char other[32] = {};
      ssize_t n = pread(fd, other, sizeof other - 1, 0);
      close(fd);
      std::string id(other, n > 0 ? static_cast<size_t>(n) : 0);
      while (!id.empty() && id.back() == '\n') id.pop_back();
      return Status(Code::kBusy, path + ": a daemon is running already with pid " + id + ": stop it first");
    }
    // The one before may have removed the file between our open and lock: then ours has no name.
    struct stat ours {}, named {};
    if (fstat(fd, &ours) == 0 && stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino) {
      out.fd_ = fd;
      break;
    }
    close(fd);
  }
  std::string text = std::to_string(getpid()) + "\n";
  if (ftruncate(out.fd_, 0) != 0 || pwrite(out.fd_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return Status::from_errno(errno, path);
  }
  return out;
}

Status PidFile::wait_until_free(const std::string& path, std::chrono::milliseconds limit) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT ? Status::ok() : Status::from_errno(errno, path);
  constexpr int kLookMs = 2;
  bool locked = true;
  for (int64_t left = limit.count(); (locked = flock(fd, LOCK_SH | LOCK_NB) != 0) && left > 0; left -= kLookMs)
    poll(nullptr, 0, kLookMs);
  close(fd);
  if (!locked) return Status::ok();
  return Status(Code::kBusy,
                path + ": the daemon before this one has not ended: try again, or kill the process that it names");
}

Background& Background::operator=(Background&& o) noexcept {
  if (this != &o) {
    if (fd_ >= 0) close(fd_);
    fd_ = std::exchange(o.fd_, -1);
  }
  return *this;
}

Background::~Background() { if (fd_ >= 0) close(fd_); }

Result<Background> Background::enter() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Status::from_errno(errno, "pipe");
  pid_t child = fork();
  if (child < 0) return Status::from_errno(errno, "fork");
  if (child > 0) {
    close(ends[1]);
    char byte = 0;
    ssize_t n = 0;
    do n = read(ends[0], &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1) _exit(0);
    int status = 0;
    if (waitpid(child, &status, 0) == child && WIFEXITED(status)) _exit(WEXITSTATUS(status));
    _exit(1);
  }
  close(ends[0]);
  setsid();
  Background out;
  out.fd_ = ends[1];
  return out;
}

void Background::ready() {
  if (fd_ < 0) return;
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null >= 0) {
    for (int fd : {0, 1, 2}) dup2(null, fd);
    if (null > 2) close(null);
  }
  char byte = 1;
  ssize_t written = write(fd_, &byte, 1);
  (void)written;  // a parent that is gone has nobody to tell
  close(fd_);
  fd_ = -1;
}

Status probe_address(const std::string& host, uint16_t port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  std::string where = host + " port " + std::to_string(port);
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return {Code::kInvalidArgument, "bad address " + host + ": it must be numeric"};
  }
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int on = 1;
  Status out;
  if (fd < 0) out = Status::from_errno(errno, where);
  else if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
           bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
    out = Status::from_errno(errno, where);
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(found);
  return out;
}

bool log_goes_to_journald() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat s {};
  if (stream == nullptr || fstat(2, &s) != 0) return false;
  return std::to_string(s.st_dev) + ":" + std::to_string(s.st_ino) == stream;
}

void notify_systemd(const char* state) { sd_notify(0, state); }

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

Status make_private_directory(const std::string& path) {
  for (size_t slash = 1; slash != std::string::npos;) {
    slash = path.find('/', slash + 1);
    std::string part = path.substr(0, slash);
    if (mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) return Status::from_errno(errno, part);
  }
  struct stat s {};
  if (stat(path.c_str(), &s) != 0) return Status::from_errno(errno, path);
  if (!S_ISDIR(s.st_mode)) return {Code::kInvalidArgument, path + ": is not a directory"};
  return {};
}

}  // namespace tidemark::daemon
