#include <cstdlib>
#include <new>

#include "shared/io/file.h"

namespace tidemark::io {

AlignedBuffer::AlignedBuffer(size_t size) {
  if (size == 0) return;
  size_ = (size + File::kAlignment - 1) / File::kAlignment * File::kAlignment;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(File::kAlignment, size_));
  if (data_ == nullptr) throw std::bad_alloc();
}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& o) noexcept {
  if (this != &o) {
    std::free(data_);
    data_ = o.data_;
    size_ = o.size_;
    o.data_ = nullptr;
    o.size_ = 0;
  }
  return *this;
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

}  // namespace tidemark::io
