// A TCP proxy on loopback that delays what clients send on some of their connections, and fails on command.
//
//   delay_proxy LISTEN_PORT TARGET_PORT MS     holds every second connection (the 2nd, 4th, ...) back by MS
//
// Bytes come out in order, MS after they came in: latency, no limit of the rate. Commands on standard input, each
// answered by a line "end"; it ends with its standard input:
//
//   stats          one line a connection before, "NUMBER OPEN DELAY_MS BYTES_FROM_CLIENT BYTES_TO_TARGET": the last are fewer
//                  while some are held
//   hold WAY       up (from the clients), down or both: nothing passes that way on any connection, also on new ones;
//                  nobody is told, as with a cable pulled
//   pass [WAY]     all passes again, that way or both: what was held comes late, as by retransmission
//   reset WAY N    all connections are reset once N more bytes went that way on any of them: in mid-frame
//   resets         how many times that happened: a line "N" before
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

enum Way { kUp, kDown };

void disconnect(int fd) {   // by a reset, whoever reads or writes it
  sockaddr unspecified{};
  unspecified.sa_family = AF_UNSPEC;
  if (::connect(fd, &unspecified, sizeof unspecified) != 0) std::perror("disconnect");
}

// What all connections have in common.
struct Faults {
  std::mutex mutex;                      // guards the following
  std::condition_variable changed;
  bool held[2] = {false, false};
  int64_t until_reset[2] = {-1, -1};     // bytes; negative: no reset is planned
  std::atomic<uint64_t> resets{0};

  // Waits as long as nothing passes; how many of `wanted` bytes may go, and whether a reset comes after them.
  size_t take(Way way, size_t wanted, bool* reset) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !held[way]; });
    int64_t& left = until_reset[way];
    *reset = left >= 0 && static_cast<uint64_t>(left) <= wanted;
    if (left < 0) return wanted;
    size_t part = *reset ? static_cast<size_t>(left) : wanted;
    left = *reset ? -1 : left - static_cast<int64_t>(part);
    return part;
  }
};
Faults faults;
void reset_all();

// One direction: a reader stamps what it gets, a writer sends it when it is due.
class Pipe {
 public:
  Pipe(Way way, int from, int to, std::chrono::milliseconds delay) : way_(way), from_(from), to_(to), delay_(delay) {}
  uint64_t received() const { return received_; }
  uint64_t sent() const { return sent_; }
  void run() {
    std::thread writer([this] { write_all(); });
    std::vector<uint8_t> buffer(256u << 10);
    for (;;) {
      ssize_t n = ::recv(from_, buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      received_ += static_cast<uint64_t>(n);
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
      bool reset = false;
      const size_t size = faults.take(way_, piece.bytes.size(), &reset);
      for (size_t at = 0; at < size;) {
        ssize_t n = ::send(to_, piece.bytes.data() + at, size - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return give_up();
        at += static_cast<size_t>(n);
        sent_ += static_cast<uint64_t>(n);
      }
      if (reset) reset_all();
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

  const Way way_;
  int from_, to_;
  std::chrono::milliseconds delay_;
  std::atomic<uint64_t> received_{0}, sent_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> held_;
  size_t held_bytes_ = 0;
  bool ended_ = false, broken_ = false;
};

struct Relay {
  const int client, server;
  const std::chrono::milliseconds delay{0};
  Pipe up, down;
  std::mutex mutex;                      // of the two descriptors' end
  std::atomic<bool> open{true};
  Relay(int from, int to, std::chrono::milliseconds held_back)
      : client(from), server(to), delay(held_back), up(kUp, from, to, held_back), down(kDown, to, from, {}) {}
  void run() {
    std::thread back([&] { down.run(); });
    up.run();
    back.join();
    std::lock_guard lock(mutex);
    open = false;
    ::close(client);
    ::close(server);
  }
  void reset() {
    std::lock_guard lock(mutex);
    if (!open) return;
    disconnect(client);
    disconnect(server);
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
      std::printf("%zu %s %lld %llu %llu\n", i + 1, r.open ? "open" : "closed", static_cast<long long>(r.delay.count()),
                  static_cast<unsigned long long>(r.up.received()), static_cast<unsigned long long>(r.up.sent()));
    }
  }
  void reset_all() {
    std::lock_guard lock(mutex_);
    for (auto& relay : relays_) relay->reset();
  }

 private:
  void add(int client, int server) {
    std::lock_guard lock(mutex_);
    const bool delayed = relays_.size() % 2 == 1;
    relays_.push_back(std::make_unique<Relay>(client, server, std::chrono::milliseconds(delayed ? delay_ : 0)));
    Relay& r = *relays_.back();
    std::thread([&r] { r.run(); }).detach();
  }

  int listener_ = -1;
  sockaddr_in target_;
  int delay_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Relay>> relays_;   // kept until the end: the statistics name them all
};

Proxy* the_proxy = nullptr;   // for the pipes; lives as long as the process
void reset_all() {
  the_proxy->reset_all();
  ++faults.resets;
}

bool obey(const std::string& line) {
  char verb[16] = "", way[16] = "";
  long long bytes = 0;
  const int words = std::sscanf(line.c_str(), "%15s %15s %lld", verb, way, &bytes);
  const std::string v = verb, w = way;
  if (v == "stats") return the_proxy->print_stats(), true;
  if (v == "resets") return std::printf("%llu\n", static_cast<unsigned long long>(faults.resets)), true;
  std::lock_guard lock(faults.mutex);
  const bool both = words == 1 || w == "both";
  if (v == "pass" && (both || w == "up" || w == "down")) {
    faults.held[kUp] = faults.held[kUp] && !both && w != "up";
    faults.held[kDown] = faults.held[kDown] && !both && w != "down";
  } else if (v == "hold" && (w == "up" || w == "down" || w == "both")) {
    faults.held[kUp] = faults.held[kUp] || w != "down";
    faults.held[kDown] = faults.held[kDown] || w != "up";
  } else if (v == "reset" && words == 3 && bytes >= 0 && (w == "up" || w == "down")) {
    faults.until_reset[w == "up" ? kUp : kDown] = bytes;
  } else {
    return false;
  }
  faults.changed.notify_all();
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: delay_proxy LISTEN_PORT TARGET_PORT MS\n");
    return 2;
  }
  static Proxy proxy(std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]));
  the_proxy = &proxy;
  std::thread([] { proxy.accept_all(); }).detach();
  std::string line;
  while (std::getline(std::cin, line)) {
    if (!obey(line)) std::fprintf(stderr, "delay_proxy: unknown command: %s\n", line.c_str());
    std::printf("end\n");
    std::fflush(stdout);
  }
  std::_Exit(0);
}
