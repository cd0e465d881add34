// The one source of chance in a simulation: xoshiro256** seeded by splitmix64. The same on every
// platform, unlike the standard library's distributions.
#pragma once

#include <chrono>
#include <cstdint>

#include "shared/base/bytes.h"

namespace tidemark::sim {

using Duration = std::chrono::nanoseconds;

struct DurationRange {
  Duration min{}, max{};
};

class Random {
 public:
  explicit Random(uint64_t seed) {
    for (auto& word : state_) {
      seed += 0x9E3779B97F4A7C15ull;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
      word = z ^ (z >> 31);
    }
  }
  uint64_t next() {
    uint64_t result = rotate(state_[1] * 5, 7) * 9;
    uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  bool chance(uint64_t part, uint64_t of) { return below(of) < part; }
  bool coin() { return (next() >> 63) != 0; }
  Duration in(DurationRange r) {
    return r.min + Duration(static_cast<int64_t>(below(static_cast<uint64_t>((r.max - r.min).count()) + 1)));
  }
  void fill(MutableByteSpan out) {
    for (auto& b : out) b = static_cast<uint8_t>(next() >> 56);
  }

 private:
  static uint64_t rotate(uint64_t x, int k) { return x << k | x >> (64 - k); }
  uint64_t state_[4];
};

}  // namespace tidemark::sim
