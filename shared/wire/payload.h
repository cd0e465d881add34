// Payload: the data part of a frame in memory aligned to 4096, so that it can go to an O_DIRECT file
// without a further copy. Buffers come from a pool and return to it; the steady state does not
// allocate. Loop thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/io/file.h"

namespace tidemark::wire {

class PayloadPool;

// Move-only; gives its buffer back when destroyed. The buffer's capacity is a multiple of 4096.
class Payload {
 public:
  Payload() = default;
  Payload(Payload&& o) noexcept;
  Payload& operator=(Payload&& o) noexcept;
  ~Payload();

  ByteSpan span() const { return {buffer_.data(), size_}; }
  MutableByteSpan span() { return {buffer_.data(), size_}; }
  uint8_t* data() { return buffer_.data(); }
  size_t size() const { return size_; }
  size_t capacity() const { return buffer_.size(); }
  bool empty() const { return size_ == 0; }
  // At most capacity().
  void resize(size_t size);

 private:
  friend class PayloadPool;
  io::AlignedBuffer buffer_;
  size_t size_ = 0;
  std::shared_ptr<PayloadPool> pool_;  // shared: a payload may outlive the connection that read it
};

// Keeps at most limits::kPayloadBytesKeptMax of idle buffers; what is more is freed.
class PayloadPool : public std::enable_shared_from_this<PayloadPool> {
 public:
  static std::shared_ptr<PayloadPool> make() { return std::make_shared<PayloadPool>(); }
  // Contents are not cleared.
  Payload take(size_t size);

 private:
  friend class Payload;
  void give_back(io::AlignedBuffer buffer);
  static constexpr size_t kClasses = 4;
  std::vector<io::AlignedBuffer> kept_[kClasses];
  size_t kept_bytes_ = 0;
};

}  // namespace tidemark::wire
