// How long a guest waits while a daemon is replaced: writes at depth one, every write stamped, and reads it all back.
//
//   stall_writer FILE BLOCKS [REPORT [PAUSE_MS]]
//
// Writes stamped 4 KiB blocks with O_DIRECT, one at a time, over and over, syncing after every eighth, until standard
// input ends or brings a "q". Then every block must hold its last stamp. Any error ends it with 1. Prints
// "writes N longest_ms L stood_ms S", S being all gaps of kStoodMs and more together; REPORT, if given, gets the number of
// writes as it grows. A byte "r" on standard input begins a new measurement: the gaps so far are printed and forgotten.
// With PAUSE_MS between two writes, on a plain file, it says how long the disk itself, or the machine, stood still.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr size_t kBlock = 4096;
constexpr uint64_t kSyncEvery = 8, kReportEvery = 64;
constexpr double kStoodMs = 250;
using Clock = std::chrono::steady_clock;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "stall_writer: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

void fill(uint8_t* data, uint64_t block, uint64_t stamp) {
  for (size_t i = 0; i < kBlock; i += 16) {
    std::memcpy(data + i, &stamp, 8);
    std::memcpy(data + i + 8, &block, 8);
  }
}

struct Gaps {
  double longest = 0, stood = 0;
  Clock::time_point last = Clock::now();
  void completed() {
    Clock::time_point now = Clock::now();
    const double ms = std::chrono::duration<double, std::milli>(now - last).count();
    longest = std::max(longest, ms);
    if (ms >= kStoodMs) stood += ms;
    last = now;
  }
  void print(uint64_t writes) const {
    std::printf("writes %" PRIu64 " longest_ms %.0f stood_ms %.0f\n", writes, longest, stood);
    std::fflush(stdout);
  }
};

// False at the end of standard input.
bool listen(Gaps& gaps, uint64_t writes, int pause_ms) {
  pollfd in{0, POLLIN, 0};
  if (::poll(&in, 1, pause_ms) <= 0) return true;
  char c;
  if (::read(0, &c, 1) <= 0) return false;
  if (c == 'q') return false;
  if (c == 'r') {
    gaps.print(writes);
    gaps = {};
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "stall_writer FILE BLOCKS [REPORT [PAUSE_MS]]\n"), 2;
  const uint64_t blocks = std::strtoull(argv[2], nullptr, 10);
  int fd = ::open(argv[1], O_RDWR | O_DIRECT);
  if (fd < 0) die(argv[1]);
  const int pause_ms = argc > 4 ? std::atoi(argv[4]) : 0;
  int report = argc > 3 ? ::open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
  auto* data = static_cast<uint8_t*>(
      ::mmap(nullptr, kBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (data == MAP_FAILED) die("memory");
  std::vector<uint64_t> stamps(blocks);
  uint64_t writes = 0, place = 1;
  Gaps gaps;
  while (listen(gaps, writes, pause_ms)) {
    place = place * 6364136223846793005u + 1442695040888963407u;
    const uint64_t block = (place >> 33) % blocks;
    fill(data, block, ++writes);
    if (::pwrite(fd, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock))
      die("write " + std::to_string(writes));
    stamps[block] = writes;
    gaps.completed();
    if (writes % kSyncEvery == 0) {
      if (::fdatasync(fd) != 0) die("sync");
      gaps.completed();
    }
    if (report >= 0 && writes % kReportEvery == 0) {
      std::string text = std::to_string(writes) + "\n";
      if (::pwrite(report, text.data(), text.size(), 0) < 0) die("report");
    }
  }
  gaps.print(writes);
  for (uint64_t block = 0; block < blocks; ++block) {
    if (stamps[block] == 0) continue;
    if (::pread(fd, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock)) die("read");
    std::vector<uint8_t> want(kBlock);
    fill(want.data(), block, stamps[block]);
    if (std::memcmp(want.data(), data, kBlock) == 0) continue;
    uint64_t found;
    std::memcpy(&found, data, 8);
    std::fprintf(stderr, "stall_writer: block %" PRIu64 " holds stamp %" PRIu64 ", not %" PRIu64 "\n", block, found,
                 stamps[block]);
    return 1;
  }
  return 0;
}
