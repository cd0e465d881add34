// A recorder of synced writes: writes stamped 4 KiB blocks at depth 8, calls fdatasync in each thread
// every 16 writes, and only then notes the stamps in ACKS (itself a file outside of the mount). When the file
// goes away (EIO, ENOTCONN) it says so and exits 1. `--check` holds the image against the notes: no block may be
// older than its last synced stamp. After a power cut a later write, which nobody was promised, may have torn a block:
// `--check-sectors` asks that of each sector of 512 bytes.
//
// COUNTS, if given, holds four 64-bit numbers as they grow: writes issued, answered and synced, and syncs under way.
//
//   ack_writer IMAGE ACKS SEED [COUNTS]          ack_writer --check|--check-sectors IMAGE ACKS
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kBlock = 4096, kSector = 512;
constexpr int kThreads = 8;
struct Note { uint64_t block, stamp; };
struct Counts { std::atomic<uint64_t> issued, answered, synced, syncs; };

// Seen by others while this goes on, and after it was killed.
Counts* map_counts(const char* path) {
  int fd = path == nullptr ? -1 : ::open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (path != nullptr && (fd < 0 || ::ftruncate(fd, sizeof(Counts)) != 0)) { std::perror(path); std::exit(2); }
  void* at = ::mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) { std::perror("mmap"); std::exit(2); }
  return static_cast<Counts*>(at);
}

void fill(uint8_t* data, uint64_t block, uint64_t stamp) {
  for (size_t i = 0; i < kBlock; i += 16) {
    std::memcpy(data + i, &stamp, 8);
    std::memcpy(data + i + 8, &block, 8);
  }
}

[[noreturn]] void refused(const char* what, uint64_t block) {
  std::fprintf(stderr, "ack_writer: %s, block %" PRIu64 ": %s\n", what, block, std::strerror(errno));
  std::_Exit(1);
}

int write_all(const char* image, const char* notes, uint64_t seed, const char* counts_path) {
  Counts& counts = *map_counts(counts_path);
  int fd = ::open(image, O_RDWR | O_DIRECT);
  int out = ::open(notes, O_WRONLY | O_CREAT | O_APPEND, 0600);
  struct stat st {};
  if (fd < 0 || out < 0 || ::fstat(fd, &st) != 0) { std::perror(image); return 2; }
  uint64_t blocks = static_cast<uint64_t>(st.st_size) / kBlock;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      void* memory = nullptr;
      if (posix_memalign(&memory, kBlock, kBlock) != 0) std::_Exit(2);
      auto* data = static_cast<uint8_t*>(memory);
      std::mt19937_64 random(seed * 100 + static_cast<uint64_t>(t));
      uint64_t stamp = seed << 40;
      std::vector<Note> pending;
      for (;;) {
        uint64_t block = random() % (blocks / kThreads) * kThreads + static_cast<uint64_t>(t);
        fill(data, block, ++stamp);
        ++counts.issued;
        if (::pwrite(fd, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock))
          refused("write", block);
        ++counts.answered;
        pending.push_back({block, stamp});
        if (pending.size() < 16) continue;
        ++counts.syncs;
        if (::fdatasync(fd) != 0) refused("fdatasync", block);
        --counts.syncs;
        size_t bytes = pending.size() * sizeof(Note);
        if (::write(out, pending.data(), bytes) != static_cast<ssize_t>(bytes)) std::_Exit(2);
        counts.synced += pending.size();
        pending.clear();
      }
    });
  }
  for (auto& t : threads) t.join();
  return 0;
}

int check(const char* image, const char* notes, size_t unit) {
  FILE* in = std::fopen(notes, "rb");
  int fd = ::open(image, O_RDONLY);
  if (in == nullptr || fd < 0) { std::perror(image); return 2; }
  std::unordered_map<uint64_t, uint64_t> synced;
  Note note;
  while (std::fread(&note, sizeof note, 1, in) == 1) synced[note.block] = std::max(synced[note.block], note.stamp);
  std::fclose(in);
  size_t lost = 0;
  for (auto [block, stamp] : synced) {
    uint8_t data[kBlock], whole[kBlock];
    if (::pread(fd, data, kBlock, static_cast<off_t>(block * kBlock)) != static_cast<ssize_t>(kBlock)) { std::perror("pread"); return 2; }
    for (size_t at = 0; at < kBlock; at += unit) {
      uint64_t have = 0;
      std::memcpy(&have, data + at, 8);
      fill(whole, block, have);
      if (have >= stamp && std::memcmp(whole, data + at, unit) == 0) continue;
      if (++lost <= 5) {
        std::fprintf(stderr, "block %" PRIu64 " at %zu: holds %" PRIu64 ", synced was %" PRIu64 "\n", block, at, have, stamp);
      }
      break;
    }
  }
  std::fprintf(stderr, "%zu synced blocks, %zu lost\n", synced.size(), lost);
  return lost == 0 && !synced.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--check") == 0) return check(argv[2], argv[3], kBlock);
  if (argc == 4 && std::strcmp(argv[1], "--check-sectors") == 0) return check(argv[2], argv[3], kSector);
  if (argc == 4 || argc == 5) {
    return write_all(argv[1], argv[2], std::strtoull(argv[3], nullptr, 10), argc == 5 ? argv[4] : nullptr);
  }
  std::fprintf(stderr, "usage: ack_writer IMAGE ACKS SEED [COUNTS] | ack_writer --check|--check-sectors IMAGE ACKS\n");
  return 2;
}
