// Memory for what staging reads of the own copy: kept from one block to the next. Loop thread only.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "shared/io/file.h"

namespace tidemark::fs {

class StageBuffers {
 public:
  // At least `size` bytes.
  io::AlignedBuffer take(size_t size) {
    if (kept_.empty() || kept_.back().size() < size) return io::AlignedBuffer(std::max(size, kBytes));
    io::AlignedBuffer buffer = std::move(kept_.back());
    kept_.pop_back();
    return buffer;
  }
  void give_back(io::AlignedBuffer buffer) {
    if (kept_.size() < kKeptMax) kept_.push_back(std::move(buffer));
  }

 private:
  static constexpr size_t kBytes = 64u << 10, kKeptMax = 16;
  std::vector<io::AlignedBuffer> kept_;
};

}  // namespace tidemark::fs
