// A link of constant length: a TCP proxy that holds every byte back by the same time, both ways, at any rate.
//
//   far_link LISTEN_PORT TARGET_ADDRESS TARGET_PORT MICROSECONDS
//
// Listens on 127.0.0.1 until it is killed. Bytes leave in order, MICROSECONDS after the kernel received them, so any
// number of frames are under way at once. One thread, which sleeps between events: it takes as little of the processor
// from what is measured as a proxy can. Its wake-ups, which here take as long as a third of what is asked for, are not
// added to it: a piece's time begins with the kernel's time stamp (SO_TIMESTAMPNS), and a sleep is shorter by what the
// last ones took longer.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <list>
#include <memory>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kUnderWayMax = 8u << 20;   // bytes of one direction: more than any link of a millisecond holds
constexpr int64_t kLateMaxNs = 60'000;      // a wake-up that took longer is not one: the processors were taken

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::_Exit(1);
}

// One direction of a connection: a ring of bytes, and when each piece of it is due. Nothing blocks; epoll
// tells about edges only, so that what is readable or writable is remembered here.
class Way {
 public:
  Way(int from, int to, Clock::duration delay) : from_(from), to_(to), delay_(delay), ring_(kUnderWayMax) {}
  void on_readable() { readable_ = true; }
  void on_writable() { writable_ = true; }
  bool ended() const { return ended_; }
  // When this way must be looked at again, whatever else happens.
  Clock::time_point due() const {
    return pieces_.empty() || !writable_ ? Clock::time_point::max() : pieces_.front().due;
  }
  void go_on() {
    send_due();     // what is due makes room
    receive();
    if (closed_ && pieces_.empty() && !ended_) {
      ended_ = true;
      ::shutdown(to_, SHUT_WR);
    }
  }

 private:
  struct Piece {
    Clock::time_point due;
    size_t size;
  };
  void receive() {
    while (readable_ && !closed_ && held_ < ring_.size()) {
      const size_t at = (first_ + held_) % ring_.size();
      const size_t room = std::min(ring_.size() - held_, ring_.size() - at);
      iovec into{.iov_base = &ring_[at], .iov_len = room};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(timespec))];
      msghdr message{};
      message.msg_iov = &into;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      const ssize_t n = ::recvmsg(from_, &message, MSG_DONTWAIT);
      if (n < 0 && errno == EAGAIN) {
        readable_ = false;
      } else if (n <= 0) {
        closed_ = true;
      } else {
        held_ += static_cast<size_t>(n);
        pieces_.push_back({Clock::now() - since_received(message) + delay_, static_cast<size_t>(n)});
      }
    }
  }
  // How long the last of these bytes have been here.
  Clock::duration since_received(msghdr& message) const {
    timespec at{}, now{};
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c))
      if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) std::memcpy(&at, CMSG_DATA(c), sizeof at);
    if (at.tv_sec == 0) return {};
    ::clock_gettime(CLOCK_REALTIME, &now);
    const std::chrono::nanoseconds age((now.tv_sec - at.tv_sec) * 1'000'000'000 + now.tv_nsec - at.tv_nsec);
    return std::clamp<Clock::duration>(age, {}, delay_);
  }
  void send_due() {
    while (writable_ && !pieces_.empty() && pieces_.front().due <= Clock::now()) {
      Piece& piece = pieces_.front();
      const ssize_t n = ::send(to_, &ring_[first_], std::min(piece.size, ring_.size() - first_),
                               MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EAGAIN) {
        writable_ = false;
      } else if (n < 0) {
        closed_ = true;
        pieces_.clear();
      } else {
        const auto sent = static_cast<size_t>(n);
        first_ = (first_ + sent) % ring_.size();
        held_ -= sent;
        piece.size -= sent;
        if (piece.size == 0) pieces_.pop_front();
        if (held_ == 0) first_ = 0;   // what is in the caches is used again
      }
    }
  }

  const int from_, to_;
  const Clock::duration delay_;
  std::vector<uint8_t> ring_;
  size_t first_ = 0, held_ = 0;
  std::deque<Piece> pieces_;
  bool readable_ = true, writable_ = true, closed_ = false, ended_ = false;
};

struct Connection {
  int client, server;
  Way up, down;
  Connection(int c, int s, Clock::duration delay) : client(c), server(s), up(c, s, delay), down(s, c, delay) {}
  ~Connection() {
    ::close(client);
    ::close(server);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
};

sockaddr_in address(const char* ip, int port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<uint16_t>(port));
  if (::inet_pton(AF_INET, ip, &a.sin_addr) != 1) die(ip);
  return a;
}
void set(int fd, int level, int option) {
  const int on = 1;
  if (::setsockopt(fd, level, option, &on, sizeof on) != 0) die("setsockopt");
}
int listen_on(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) die("socket");
  set(fd, SOL_SOCKET, SO_REUSEADDR);
  const sockaddr_in own = address("127.0.0.1", port);
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) die("bind");
  if (::listen(fd, 64) != 0) die("listen");
  return fd;
}
int connect_to(const sockaddr_in& target) {   // -1: nobody there
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  set(fd, IPPROTO_TCP, TCP_NODELAY);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0) return fd;
  ::close(fd);
  return -1;
}

class Link {
 public:
  Link(int port, const sockaddr_in& target, Clock::duration delay)
      : listener_(listen_on(port)), poll_(::epoll_create1(EPOLL_CLOEXEC)), target_(target), delay_(delay) {
    if (poll_ < 0) die("epoll_create1");
    epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
    if (::epoll_ctl(poll_, EPOLL_CTL_ADD, listener_, &event) != 0) die("epoll_ctl");
  }
  [[noreturn]] void run() {
    for (;;) {
      wait();
      connections_.remove_if([](const auto& c) {
        c->up.go_on();
        c->down.go_on();
        return c->up.ended() && c->down.ended();
      });
    }
  }

 private:
  void wait() {
    auto due = Clock::time_point::max();
    for (const auto& c : connections_) due = std::min({due, c->up.due(), c->down.due()});
    timespec left{};
    const bool timed = due != Clock::time_point::max();
    int64_t ns = 0;
    const auto asked = Clock::now();
    if (timed) {
      ns = std::max<int64_t>(0, std::chrono::nanoseconds(due - asked).count() - late_ns_);
      left = {ns / 1'000'000'000, ns % 1'000'000'000};
    }
    epoll_event events[64];
    const int n = ::epoll_pwait2(poll_, events, 64, timed ? &left : nullptr, nullptr);
    if (n < 0 && errno != EINTR) die("epoll_pwait2");
    if (n == 0 && ns > 0) {
      const int64_t late = std::chrono::nanoseconds(Clock::now() - asked).count() - ns;
      late_ns_ += (std::clamp<int64_t>(late, 0, kLateMaxNs) - late_ns_) / 8;
    }
    for (int i = 0; i < n; ++i) {
      if (events[i].data.ptr == nullptr) {
        accept_all();
      } else {
        note(*static_cast<Connection*>(events[i].data.ptr));
      }
    }
  }
  // Which of the two descriptors it was is not told: looking once too often costs a call, not an error.
  void note(Connection& c) {
    for (Way* way : {&c.up, &c.down}) {
      way->on_readable();
      way->on_writable();
    }
  }
  void accept_all() {
    for (int client; (client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) {
      const int server = connect_to(target_);
      if (server < 0) {
        ::close(client);
        continue;
      }
      set(client, IPPROTO_TCP, TCP_NODELAY);
      for (int fd : {client, server}) set(fd, SOL_SOCKET, SO_TIMESTAMPNS);
      connections_.push_back(std::make_unique<Connection>(client, server, delay_));
      watch(client);
      watch(server);
    }
  }
  void watch(int fd) {
    epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = connections_.back().get()}};
    if (::epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &event) != 0) die("epoll_ctl");
  }

  const int listener_, poll_;
  const sockaddr_in target_;
  const Clock::duration delay_;
  int64_t late_ns_ = 0;                      // how much longer a sleep takes than is asked for, lately
  std::list<std::unique_ptr<Connection>> connections_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: far_link LISTEN_PORT TARGET_ADDRESS TARGET_PORT MICROSECONDS\n");
    return 2;
  }
  if (::prctl(PR_SET_TIMERSLACK, 1) != 0) die("prctl");   // a sleep ends when it is due, not 50 us later
  Link(std::atoi(argv[1]), address(argv[2], std::atoi(argv[3])), std::chrono::microseconds(std::atoi(argv[4]))).run();
}
