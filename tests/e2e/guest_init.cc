// The first and only process of a small guest (53_live_restart_guest.sh, 67_migration.sh): writes and syncs its disks at
// depth one, and says on the console how that goes. Static. Drivers that its kernel has as modules lie in /lib, in the
// order of /lib/order.
//
// On the kernel's command line:
//   TIDEMARK_DISKS=DEVICE,...   each record goes to all of them; /dev/nvme0n1 unless given
//   TIDEMARK_SECONDS=N          for so long, or until a line comes from the console; then all is read back and the guest
//                               powers off
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
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

void fail(const std::string& what) {
  std::printf("GUEST ERROR %s: %s\n", what.c_str(), std::strerror(errno));
  end();
}

void load_modules() {
  std::ifstream order("/lib/order");
  for (std::string name; std::getline(order, name);) {
    int module = ::open(("/lib/" + name).c_str(), O_RDONLY);
    const bool loaded = module >= 0 && ::syscall(SYS_finit_module, module, "", 0) == 0;
    if (!loaded && errno != EEXIST) fail(name);
    ::close(module);
  }
}

std::vector<int> open_disks() {
  const char* named = std::getenv("TIDEMARK_DISKS");
  std::istringstream names(named != nullptr ? named : "/dev/nvme0n1");
  std::vector<int> disks;
  for (std::string name; std::getline(names, name, ',');) {
    int disk = -1;
    for (int i = 0; i < 100 && disk < 0; ++i) {          // its driver may not have found it yet
      if (i != 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
      disk = ::open(name.c_str(), O_RDWR | O_DIRECT);
    }
    if (disk < 0) fail(name);
    disks.push_back(disk);
  }
  return disks;
}

bool told_to_end() {
  pollfd console{0, POLLIN, 0};
  return ::poll(&console, 1, 0) == 1 && (console.revents & POLLIN) != 0;
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
  load_modules();
  const std::vector<int> disks = open_disks();
  auto* data = static_cast<uint8_t*>(
      ::mmap(nullptr, kBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::vector<uint64_t> stamps(kBlocks);
  uint64_t writes = 0, place = 7;
  double longest_ms = 0;
  Clock::time_point last = Clock::now();
  std::printf("GUEST UP\n");
  while (Clock::now() < until && !told_to_end()) {
    place = place * 6364136223846793005u + 1442695040888963407u;
    const uint64_t block = (place >> 33) % kBlocks;
    const auto at = static_cast<off_t>(block * kBlock);
    fill(data, block, ++writes);
    for (int disk : disks) {
      if (::pwrite(disk, data, kBlock, at) != static_cast<ssize_t>(kBlock)) fail("write");
      if (::fdatasync(disk) != 0) fail("sync");
    }
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
    fill(want.data(), block, stamps[block]);
    for (int disk : disks) {
      if (::pread(disk, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock)) fail("read");
      errno = 0;
      if (std::memcmp(want.data(), data, kBlock) != 0) fail("a block is not the last one written");
    }
  }
  std::printf("GUEST DONE writes %" PRIu64 " longest_ms %.0f\n", writes, longest_ms);
  end();
}
