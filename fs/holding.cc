#include "fs/holding.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fuse");
constexpr size_t kWordBytesMax = 1024;
}  // namespace

Status send_word(int socket, Word word, std::string_view text, int descriptor) {
  std::string bytes(1, static_cast<char>(word));
  bytes.append(text.substr(0, kWordBytesMax - 1));
  iovec io{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &descriptor, sizeof descriptor);
  }
  ssize_t n;
  do n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n < 0 ? Status::from_errno(errno, "the holder's socket") : Status::ok();
}

Result<Heard> hear_word(int socket) {
  char bytes[kWordBytesMax];
  iovec io{bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do n = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Status(Code::kUnavailable, "no word");
  if (n <= 0) return Status(Code::kNotFound, "the other end is gone");
  Heard heard{static_cast<Word>(bytes[0]), std::string(bytes + 1, static_cast<size_t>(n) - 1), -1};
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c))
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
      memcpy(&heard.descriptor, CMSG_DATA(c), sizeof heard.descriptor);
  return heard;
}

bool Holding::asks_for_successor() {
  const char* given = ::getenv(kHolderVariable);
  return given != nullptr && std::string_view(given) == kHolderAsks;
}

Result<std::unique_ptr<Holding>> Holding::from_environment() {
  const char* given = ::getenv(kHolderVariable);
  if (given == nullptr) return std::unique_ptr<Holding>();
  int socket = -1, memory = -1, session = -1;
  if (sscanf(given, "%d,%d,%d", &socket, &memory, &session) != 3)
    return Status(Code::kInvalidArgument, std::string(kHolderVariable) + " is set by tidemark-fs alone: unset it");
  ::unsetenv(kHolderVariable);
  for (int fd : {socket, memory, session})
    if (fd >= 0 && ::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
      return Status::from_errno(errno, std::string(kHolderVariable) + " names what is not open: unset it");
  void* at = ::mmap(nullptr, Survivor::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  if (at == MAP_FAILED) return Status::from_errno(errno, "the survivor's memory");
  ::close(memory);
  MutableByteSpan span(static_cast<uint8_t*>(at), Survivor::kBytes);
  auto survivor = Survivor::attach(span);
  if (!survivor) return survivor.status();
  return std::unique_ptr<Holding>(new Holding(socket, session, span, *survivor));
}

Holding::~Holding() {
  if (env_ != nullptr) env_->remove_fd(socket_);
  ::close(socket_);
  ::munmap(memory_.data(), memory_.size());
}

void Holding::mounted(int session) {
  if (Status s = send_word(socket_, Word::kMounted, {}, session); !s) kLog.error("not_held", {{"error", s}});
}

void Holding::ready(bool background) {
  if (background) {   // whoever reads what the mount command prints is not to wait for the daemon's end
    int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd : {0, 1, 2})
      if (null >= 0) ::dup2(null, fd);
    if (null > 2) ::close(null);
  }
  if (Status s = send_word(socket_, Word::kReady); !s) kLog.error("ready_not_told", {{"error", s}});
}

void Holding::stopping() {
  if (Status s = send_word(socket_, Word::kStopping); !s) kLog.warning("stop_not_told", {{"error", s}});
}

Status Holding::ask_replacement() {
  refusal_.clear();
  return send_word(socket_, Word::kReplace);
}

Status Holding::watch(io::RealEnv& env, UniqueFunction<void()> hand_over) {
  hand_over_ = std::move(hand_over);
  TM_RETURN_IF_ERROR(env.add_fd(socket_, EPOLLIN, [this](uint32_t) { hear(); }));
  env_ = &env;
  return Status::ok();
}

void Holding::hear() {
  for (;;) {
    auto heard = hear_word(socket_);
    if (!heard) {
      if (heard.status().code() == Code::kNotFound && env_ != nullptr) {  // its end ends this process, too
        env_->remove_fd(socket_);
        env_ = nullptr;
      }
      return;
    }
    if (heard->descriptor >= 0) ::close(heard->descriptor);
    if (heard->word == Word::kHandOver && hand_over_) std::exchange(hand_over_, nullptr)();
    if (heard->word == Word::kRefused) {
      ++refusals_;
      refusal_ = heard->text;
      kLog.error("not_replaced", {{"reason", refusal_}});
    }
  }
}

}  // namespace tidemark::fs
