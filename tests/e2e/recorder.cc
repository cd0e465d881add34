// Recovery points against a recorder (issue and acknowledgement of every write are known).
//
//   recorder run IMAGE_FILE LOG BLOCKS DEPTH SECONDS     writes stamped 4 KiB blocks, overlapping, O_DIRECT
//   recorder check LOG POINT_FILE MARK_INDEX              holds one exported point against the log
//
// While `run` goes on, each line read from standard input is a command: `mark` writes a record of the
// moment into the log before and after the caller's own `tidemark mark` (`begin N`, `end N`). A point is
// right when every block holds a stamp that is not older than the last write acknowledged before the
// mark began and not newer than the last write issued before it ended. Stamps of one block only grow.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBlock = 4096;


[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "recorder: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

// Every 8 bytes of a block say which block and which stamp, so that a torn block shows.
void fill(uint8_t* data, uint64_t block, uint64_t stamp) {
  for (size_t i = 0; i < kBlock; i += 16) {
    std::memcpy(data + i, &stamp, 8);
    std::memcpy(data + i + 8, &block, 8);
  }
}

void write_state(FILE* log, const char* word, long mark, std::vector<std::atomic<uint64_t>>& stamps) {
  std::fprintf(log, "%s %ld", word, mark);
  for (auto& s : stamps) std::fprintf(log, " %" PRIu64, s.load());
  std::fprintf(log, "\n");
  std::fflush(log);
}

int run(const char* file, const char* log_path, size_t blocks, int depth, int seconds) {
  int fd = ::open(file, O_RDWR | O_DIRECT);
  if (fd < 0) die(file);
  FILE* log = std::fopen(log_path, "w");
  if (log == nullptr) die(log_path);
  std::vector<std::atomic<uint64_t>> issued(blocks), acknowledged(blocks);
  std::vector<std::mutex> order(blocks);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> writes{0};
  std::vector<std::thread> workers;
  for (int t = 0; t < depth; ++t) {
    workers.emplace_back([&, t] {
      void* memory = nullptr;
      if (posix_memalign(&memory, kBlock, 4 * kBlock) != 0) die("memory");
      auto* data = static_cast<uint8_t*>(memory);
      std::mt19937_64 random(static_cast<uint64_t>(t) + 1);
      while (!stop.load()) {
        // One to four neighbouring blocks in one write: overlaps with other threads' writes.
        size_t count = 1 + random() % 4;
        size_t first = random() % (blocks - count + 1);
        for (size_t b = 0; b < count; ++b) order[first + b].lock();
        for (size_t b = 0; b < count; ++b) fill(data + b * kBlock, first + b, issued[first + b].fetch_add(1) + 1);
        ssize_t n = ::pwrite(fd, data, count * kBlock, static_cast<off_t>(first * kBlock));
        if (n != static_cast<ssize_t>(count * kBlock)) die("pwrite");
        for (size_t b = 0; b < count; ++b) acknowledged[first + b].store(issued[first + b].load());
        for (size_t b = 0; b < count; ++b) order[first + b].unlock();
        writes.fetch_add(1);
      }
      std::free(memory);
    });
  }
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::string line;
  while (std::chrono::steady_clock::now() < end && std::getline(std::cin, line)) {
    long mark = 0;
    if (std::sscanf(line.c_str(), "begin %ld", &mark) == 1) {
      write_state(log, "begin", mark, acknowledged);   // what the point must hold at the least
    } else if (std::sscanf(line.c_str(), "end %ld", &mark) == 1) {
      write_state(log, "end", mark, issued);           // what it may hold at the most
    } else if (line == "stop") {
      break;
    }
    std::printf("done %s\n", line.c_str());
    std::fflush(stdout);
  }
  stop.store(true);
  for (auto& w : workers) w.join();
  std::fclose(log);
  ::close(fd);
  std::fprintf(stderr, "recorder: %" PRIu64 " writes\n", writes.load());
  return 0;
}

int check(const char* log_path, const char* point, long wanted) {
  FILE* log = std::fopen(log_path, "r");
  if (log == nullptr) die(log_path);
  std::vector<uint64_t> least, most;
  char word[16];
  long mark = 0;
  while (std::fscanf(log, "%15s %ld", word, &mark) == 2) {
    std::vector<uint64_t> state;
    int c;
    while ((c = std::fgetc(log)) == ' ') {
      uint64_t v = 0;
      if (std::fscanf(log, "%" SCNu64, &v) != 1) die("log");
      state.push_back(v);
    }
    if (mark == wanted) (std::strcmp(word, "begin") == 0 ? least : most) = std::move(state);
  }
  std::fclose(log);
  if (least.empty() || least.size() != most.size()) { std::fprintf(stderr, "recorder: mark %ld is not in the log\n", wanted); return 1; }
  int fd = ::open(point, O_RDONLY);
  if (fd < 0) die(point);
  int wrong = 0;
  for (size_t b = 0; b < least.size(); ++b) {
    uint8_t data[kBlock];
    if (::pread(fd, data, kBlock, static_cast<off_t>(b * kBlock)) != static_cast<ssize_t>(kBlock)) die("pread");
    uint64_t stamp = 0, block = 0;
    std::memcpy(&stamp, data, 8);
    std::memcpy(&block, data + 8, 8);
    uint8_t whole[kBlock];
    fill(whole, b, stamp);
    bool torn = stamp != 0 && std::memcmp(whole, data, kBlock) != 0;
    if (torn || stamp < least[b] || stamp > most[b]) {
      if (++wrong <= 5)
        std::fprintf(stderr, "mark %ld block %zu: holds %" PRIu64 "%s, must be %" PRIu64 " to %" PRIu64 "\n", wanted, b, stamp,
                     torn ? " (torn)" : "", least[b], most[b]);
    }
  }
  ::close(fd);
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 7 && std::strcmp(argv[1], "run") == 0)
    return run(argv[2], argv[3], std::strtoul(argv[4], nullptr, 10), std::atoi(argv[5]), std::atoi(argv[6]));
  if (argc == 5 && std::strcmp(argv[1], "check") == 0) return check(argv[2], argv[3], std::atol(argv[4]));
  std::fprintf(stderr, "usage: recorder run FILE LOG BLOCKS DEPTH SECONDS | recorder check LOG POINT MARK\n");
  return 2;
}
