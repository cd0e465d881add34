#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "shared/base/status.h"
#include "shared/io/file.h"

namespace tidemark::io {
namespace {

// Pieces of one size, several to a mapping on huge pages: a piece of a MiB has no boundary of its own there, and alone
// would leave half of its last page unused. A mapping goes once all its pieces are free, but for one of each size.
class HugePieces {
 public:
  uint8_t* take(size_t size) {
    std::lock_guard lock(mutex_);
    auto has_room = [size](const auto& m) { return m.second.piece == size && m.second.taken != kAll; };
    auto in = std::find_if(mappings_.begin(), mappings_.end(), has_room);
    if (in == mappings_.end()) in = map(size);
    const int i = std::countr_one(in->second.taken);
    in->second.taken |= 1u << i;
    return in->first + static_cast<size_t>(i) * size;
  }
  void give_back(uint8_t* piece) {
    std::lock_guard lock(mutex_);
    auto of = std::prev(mappings_.upper_bound(piece));
    Mapping& mapping = of->second;
    mapping.taken &= ~(1u << static_cast<size_t>(piece - of->first) / mapping.piece);
    if (mapping.taken != 0) return;
    for (auto& [begin, other] : mappings_) {
      if (begin == of->first || other.piece != mapping.piece || other.taken != 0) continue;
      TM_CHECK(::munmap(of->first, bytes(mapping.piece)) == 0, "munmap of a mapping of one's own");
      mappings_.erase(of);
      return;
    }
  }

 private:
  static constexpr size_t kHugePage = 2u << 20;
  static constexpr unsigned kPieces = 8;
  static constexpr uint32_t kAll = (1u << kPieces) - 1;
  struct Mapping {
    size_t piece;
    uint32_t taken = 0;   // a bit each
  };
  using Mappings = std::map<uint8_t*, Mapping>;   // by where they begin

  static size_t bytes(size_t piece) { return (kPieces * piece + kHugePage - 1) / kHugePage * kHugePage; }
  Mappings::iterator map(size_t piece) {
    const size_t size = bytes(piece), with_slack = size + kHugePage;
    void* at = ::mmap(nullptr, with_slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<uint8_t*>(at);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    const bool cut = (before == 0 || ::munmap(begin, before) == 0) &&
                     ::munmap(begin + before + size, with_slack - before - size) == 0;
    TM_CHECK(cut, "munmap of a mapping of one's own");
    begin += before;
    static_cast<void>(::madvise(begin, size, MADV_HUGEPAGE));   // a kernel without them has small ones
    return mappings_.emplace(begin, Mapping{piece}).first;
  }

  std::mutex mutex_;
  Mappings mappings_;
};

HugePieces& huge_pieces() {
  static auto* const all = new HugePieces;   // for good: buffers outlive what is destroyed at the end
  return *all;
}

size_t rounded(size_t size) { return (size + File::kAlignment - 1) / File::kAlignment * File::kAlignment; }

}  // namespace

AlignedBuffer::AlignedBuffer(size_t size) {
  if (size == 0) return;
  size_ = rounded(size);
  data_ = static_cast<uint8_t*>(std::aligned_alloc(File::kAlignment, size_));
  if (data_ == nullptr) throw std::bad_alloc();
}

AlignedBuffer AlignedBuffer::huge(size_t size) {
#ifdef __SANITIZE_ADDRESS__
  return AlignedBuffer(size);   // with bounds that it sees
#else
  AlignedBuffer out;
  out.size_ = rounded(size);
  out.data_ = huge_pieces().take(out.size_);
  out.huge_ = true;
  return out;
#endif
}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(huge_, o.huge_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (huge_) huge_pieces().give_back(data_);
  else std::free(data_);
}

}  // namespace tidemark::io
