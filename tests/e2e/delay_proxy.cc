// A TCP proxy on loopback that delays what clients send on some of their connections.
//
//   delay_proxy LISTEN_PORT TARGET_PORT MS     holds every second connection (the 2nd, 4th, ...) back by MS
//
// Bytes come out in order, MS after they came in: latency, no limit of the rate. `stats` on standard
// input answers with one line a connection, "NUMBER OPEN DELAY_MS BYTES_FROM_CLIENT", then "end". It ends with its
// standard input.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kHeldBytesMax = 64u << 20;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::_Exit(1);
}

// One direction: a reader stamps what it gets, a writer sends it when it is due.
class Pipe {
 public:
  Pipe(int from, int to, std::chrono::milliseconds delay) : from_(from), to_(to), delay_(delay) {}
  void run(std::atomic<uint64_t>* counted) {
    std::thread writer([this] { write_all(); });
    std::vector<uint8_t> buffer(256u << 10);
    for (;;) {
      ssize_t n = ::recv(from_, buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      if (counted != nullptr) counted->fetch_add(static_cast<uint64_t>(n));
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return held_bytes_ < kHeldBytesMax || broken_; });
      held_.push_back({Clock::now() + delay_, {buffer.begin(), buffer.begin() + n}});
      held_bytes_ += static_cast<size_t>(n);
      changed_.notify_all();
    }
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    writer.join();
  }

 private:
  struct Piece {
    Clock::time_point due;
    std::vector<uint8_t> bytes;
  };
  void write_all() {
    for (;;) {
      Piece piece;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !held_.empty() || ended_; });
        if (held_.empty()) break;
        piece = std::move(held_.front());
        held_.pop_front();
        held_bytes_ -= piece.bytes.size();
      }
      changed_.notify_all();
      std::this_thread::sleep_until(piece.due);
      for (size_t at = 0; at < piece.bytes.size();) {
        ssize_t n = ::send(to_, piece.bytes.data() + at, piece.bytes.size() - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return give_up();
        at += static_cast<size_t>(n);
      }
    }
    ::shutdown(to_, SHUT_WR);
  }
  void give_up() {
    {
      std::lock_guard lock(mutex_);
      broken_ = true;
    }
    changed_.notify_all();
    ::shutdown(from_, SHUT_RD);
  }

  int from_, to_;
  std::chrono::milliseconds delay_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> held_;
  size_t held_bytes_ = 0;
  bool ended_ = false, broken_ = false;
};

struct Relay {
  int client = -1, server = -1;
  std::chrono::milliseconds delay{0};
  std::atomic<uint64_t> from_client{0};
  std::atomic<bool> open{true};
  void run() {
    Pipe up(client, server, delay), down(server, client, {});
    std::thread back([&] { down.run(nullptr); });
    up.run(&from_client);
    back.join();
    open = false;
    ::close(client);
    ::close(server);
  }
};

sockaddr_in loopback(int port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<uint16_t>(port));
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

int socket_without_delay() {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  int on = 1;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) die("TCP_NODELAY");
  if (::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) die("SO_REUSEADDR");
  return fd;
}

class Proxy {
 public:
  Proxy(int listen_port, int target_port, int delay_ms) : target_(loopback(target_port)), delay_(delay_ms) {
    listener_ = socket_without_delay();
    sockaddr_in own = loopback(listen_port);
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&own), sizeof own) != 0) die("bind");
    if (::listen(listener_, 64) != 0) die("listen");
  }
  void accept_all() {
    for (;;) {
      int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client < 0) continue;
      int on = 1;
      if (::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) die("TCP_NODELAY");
      int server = socket_without_delay();
      if (::connect(server, reinterpret_cast<const sockaddr*>(&target_), sizeof target_) != 0) {
        ::close(client);
        ::close(server);
        continue;
      }
      add(client, server);
    }
  }
  void print_stats() {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < relays_.size(); ++i) {
      const Relay& r = *relays_[i];
      std::printf("%zu %s %lld %llu\n", i + 1, r.open ? "open" : "closed", static_cast<long long>(r.delay.count()),
                  static_cast<unsigned long long>(r.from_client));
    }
    std::printf("end\n");
    std::fflush(stdout);
  }

 private:
  void add(int client, int server) {
    std::lock_guard lock(mutex_);
    relays_.push_back(std::make_unique<Relay>());
    Relay& r = *relays_.back();
    r.client = client;
    r.server = server;
    if (relays_.size() % 2 == 0) r.delay = std::chrono::milliseconds(delay_);
    std::thread([&r] { r.run(); }).detach();
  }

  int listener_ = -1;
  sockaddr_in target_;
  int delay_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Relay>> relays_;   // kept until the end: the statistics name them all
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: delay_proxy LISTEN_PORT TARGET_PORT MS\n");
    return 2;
  }
  static Proxy proxy(std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]));
  std::thread([] { proxy.accept_all(); }).detach();
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line == "stats") proxy.print_stats();
  }
  std::_Exit(0);
}
