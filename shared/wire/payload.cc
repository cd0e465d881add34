#include "shared/wire/payload.h"

#include <utility>

#include "shared/base/limits.h"
#include "shared/base/status.h"

namespace tidemark::wire {

namespace {
constexpr size_t kClassBytes[] = {4096, 16384, 131072, limits::kFramePayloadBytesMax};
}

Payload::Payload(Payload&& o) noexcept
    : buffer_(std::move(o.buffer_)), size_(std::exchange(o.size_, 0)), pool_(std::move(o.pool_)) {}

Payload& Payload::operator=(Payload&& o) noexcept {
  if (this == &o) return *this;
  if (pool_) pool_->give_back(std::move(buffer_));
  buffer_ = std::move(o.buffer_);
  size_ = std::exchange(o.size_, 0);
  pool_ = std::move(o.pool_);
  return *this;
}

Payload::~Payload() {
  if (pool_) pool_->give_back(std::move(buffer_));
}

void Payload::resize(size_t size) {
  TM_CHECK(size <= buffer_.size(), "payload grown past its buffer");
  size_ = size;
}

Payload PayloadPool::take(size_t size) {
  Payload out;
  if (size == 0) return out;
  out.size_ = size;
  for (size_t i = 0; i < kClasses; ++i) {
    if (size > kClassBytes[i]) continue;
    out.pool_ = shared_from_this();
    if (kept_[i].empty()) {
      out.buffer_ = io::AlignedBuffer(kClassBytes[i]);
    } else {
      out.buffer_ = std::move(kept_[i].back());
      kept_[i].pop_back();
      kept_bytes_ -= kClassBytes[i];
    }
    return out;
  }
  out.buffer_ = io::AlignedBuffer(size);
  return out;
}

void PayloadPool::give_back(io::AlignedBuffer buffer) {
  if (kept_bytes_ + buffer.size() > limits::kPayloadBytesKeptMax) return;
  for (size_t i = 0; i < kClasses; ++i) {
    if (buffer.size() != kClassBytes[i]) continue;
    kept_bytes_ += buffer.size();
    kept_[i].push_back(std::move(buffer));
    return;
  }
}

}  // namespace tidemark::wire
