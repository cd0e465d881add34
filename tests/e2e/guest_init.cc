// The first and only process of a small guest (53_live_restart_guest.sh): writes and syncs its disk at depth one, and says
// on the console how that goes. Static; its disk is /dev/nvme0n1, the driver of which is in the kernel.
//
//   TIDEMARK_SECONDS=N on the kernel's command line: for so long; then all is read back and the guest powers off.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr size_t kBlock = 4096;
constexpr uint64_t kBlocks = 4096, kSayEvery = 50;
using Clock = std::chrono::steady_clock;

void end() {
  std::fflush(stdout);
  ::sync();
  ::reboot(RB_POWER_OFF);
}

void fail(const char* what) {
  std::printf("GUEST ERROR %s: %s\n", what, std::strerror(errno));
  end();
}

void fill(uint8_t* data, uint64_t block, uint64_t stamp) {
  for (size_t i = 0; i < kBlock; i += 16) {
    std::memcpy(data + i, &stamp, 8);
    std::memcpy(data + i + 8, &block, 8);
  }
}

}  // namespace

int main() {
  ::mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  int console = ::open("/dev/console", O_RDWR);
  for (int fd : {0, 1, 2}) ::dup2(console, fd);
  const char* seconds = std::getenv("TIDEMARK_SECONDS");
  const auto until = Clock::now() + std::chrono::seconds(seconds != nullptr ? std::strtol(seconds, nullptr, 10) : 10);
  int disk = ::open("/dev/nvme0n1", O_RDWR | O_DIRECT);
  if (disk < 0) fail("open");
  auto* data = static_cast<uint8_t*>(
      ::mmap(nullptr, kBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::vector<uint64_t> stamps(kBlocks);
  uint64_t writes = 0, place = 7;
  double longest_ms = 0;
  Clock::time_point last = Clock::now();
  std::printf("GUEST UP\n");
  while (Clock::now() < until) {
    place = place * 6364136223846793005u + 1442695040888963407u;
    const uint64_t block = (place >> 33) % kBlocks;
    fill(data, block, ++writes);
    if (::pwrite(disk, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock)) fail("write");
    if (::fdatasync(disk) != 0) fail("sync");
    stamps[block] = writes;
    Clock::time_point now = Clock::now();
    longest_ms = std::max(longest_ms, std::chrono::duration<double, std::milli>(now - last).count());
    last = now;
    if (writes % kSayEvery == 0) std::printf("GUEST WRITES %" PRIu64 "\n", writes);
    std::fflush(stdout);
  }
  std::vector<uint8_t> want(kBlock);
  for (uint64_t block = 0; block < kBlocks; ++block) {
    if (stamps[block] == 0) continue;
    if (::pread(disk, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock)) fail("read");
    fill(want.data(), block, stamps[block]);
    errno = 0;
    if (std::memcmp(want.data(), data, kBlock) != 0) fail("a block is not the last one written");
  }
  std::printf("GUEST DONE writes %" PRIu64 " longest_ms %.0f\n", writes, longest_ms);
  end();
}
