// Overlapping writes in flight together, issued in a known order: the last one issued must stand.
//
//   overlap_writer IMAGE EXPECTED BLOCKS DEPTH COUNT SEED
//
// One thread submits writes of one to four 4 KiB blocks by Linux AIO, DEPTH of them in flight at any time, over so few
// blocks that most overlap others in flight. EXPECTED gets the bytes that the order of issue leaves. Prints how many
// writes overlapped one in flight.
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr size_t kBlock = 4096;
constexpr size_t kBlocksMax = 4;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "overlap_writer: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

struct Slot {
  uint8_t* data = nullptr;
  iocb request{};
  size_t first = 0, count = 0;   // blocks; count 0: free
};

void fill(uint8_t* data, uint64_t block, uint64_t stamp) {
  for (size_t i = 0; i < kBlock; i += 16) {
    std::memcpy(data + i, &stamp, 8);
    std::memcpy(data + i + 8, &block, 8);
  }
}

class Writer {
 public:
  Writer(const char* image, size_t blocks, size_t depth, uint64_t seed)
      : blocks_(blocks), random_(seed), slots_(depth), expected_(blocks * kBlock) {
    fd_ = ::open(image, O_RDWR | O_DIRECT);
    if (fd_ < 0) die(image);
    for (Slot& s : slots_) s.data = aligned(kBlocksMax * kBlock);
    if (::syscall(SYS_io_setup, depth, &context_) != 0) die("io_setup");
  }
  void run(uint64_t count) {
    for (uint64_t stamp = 1; stamp <= count; ++stamp) {
      Slot* free = nullptr;
      while ((free = free_slot()) == nullptr) reap(1);
      submit(*free, stamp);
    }
    while (in_flight_ > 0) reap(in_flight_);
    if (::fdatasync(fd_) != 0) die("fdatasync");
  }
  void save(const char* path) const {
    FILE* out = std::fopen(path, "wb");
    if (out == nullptr || std::fwrite(expected_.data(), 1, expected_.size(), out) != expected_.size()) die(path);
    if (std::fclose(out) != 0) die(path);
  }
  uint64_t overlaps() const { return overlaps_; }

 private:
  static uint8_t* aligned(size_t bytes) {
    void* memory = nullptr;
    if (::posix_memalign(&memory, kBlock, bytes) != 0) die("memory");
    return static_cast<uint8_t*>(memory);
  }
  Slot* free_slot() {
    for (Slot& s : slots_)
      if (s.count == 0) return &s;
    return nullptr;
  }
  void submit(Slot& slot, uint64_t stamp) {
    size_t count = 1 + random_() % kBlocksMax, first = random_() % (blocks_ - count + 1);
    for (const Slot& s : slots_) {
      if (s.count != 0 && s.first < first + count && first < s.first + s.count) {
        ++overlaps_;
        break;
      }
    }
    slot.first = first;
    slot.count = count;
    for (size_t b = 0; b < count; ++b) fill(slot.data + b * kBlock, first + b, stamp);
    std::memcpy(expected_.data() + first * kBlock, slot.data, count * kBlock);
    slot.request = {};
    slot.request.aio_data = reinterpret_cast<uint64_t>(&slot);
    slot.request.aio_lio_opcode = IOCB_CMD_PWRITE;
    slot.request.aio_fildes = static_cast<uint32_t>(fd_);
    slot.request.aio_buf = reinterpret_cast<uint64_t>(slot.data);
    slot.request.aio_nbytes = count * kBlock;
    slot.request.aio_offset = static_cast<int64_t>(first * kBlock);
    iocb* list[] = {&slot.request};
    if (::syscall(SYS_io_submit, context_, 1, list) != 1) die("io_submit");
    ++in_flight_;
  }
  void reap(size_t least) {
    std::vector<io_event> events(slots_.size());
    long n = ::syscall(SYS_io_getevents, context_, least, events.size(), events.data(), nullptr);
    if (n < 0 && errno == EINTR) return;
    if (n < 0) die("io_getevents");
    for (long i = 0; i < n; ++i) {
      Slot& slot = *reinterpret_cast<Slot*>(events[static_cast<size_t>(i)].data);
      errno = events[static_cast<size_t>(i)].res < 0 ? static_cast<int>(-events[static_cast<size_t>(i)].res) : 0;
      if (events[static_cast<size_t>(i)].res != static_cast<int64_t>(slot.count * kBlock)) die("write");
      slot.count = 0;
      --in_flight_;
    }
  }

  int fd_ = -1;
  size_t blocks_;
  std::mt19937_64 random_;
  std::vector<Slot> slots_;
  std::vector<uint8_t> expected_;
  aio_context_t context_ = 0;
  size_t in_flight_ = 0;
  uint64_t overlaps_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: overlap_writer IMAGE EXPECTED BLOCKS DEPTH COUNT SEED\n");
    return 2;
  }
  auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 10); };
  Writer writer(argv[1], number(3), number(4), number(6));
  writer.run(number(5));
  writer.save(argv[2]);
  std::printf("%llu\n", static_cast<unsigned long long>(writer.overlaps()));
  return 0;
}
