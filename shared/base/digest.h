// Digests. XXH3-64 detects accidents (frames, records, segments). What decides equality between
// copies is KeyedDigest: XXH3-128 under a fresh random secret, since guests choose their data.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "shared/base/bytes.h"

namespace tidemark {

inline constexpr uint8_t kDigestXxh3 = 1;     // algorithm id written in every format
inline constexpr uint32_t kDigestUnit = 4096;  // bytes; the last unit of a size may be partial

uint64_t digest64(ByteSpan data);
uint64_t digest64(ByteSpan head, ByteSpan tail);  // of the concatenation

// digest64 of bytes that come in pieces, each looked at while it is still in the processor's cache.
class RunningDigest64 {
 public:
  RunningDigest64();
  ~RunningDigest64();
  RunningDigest64(const RunningDigest64&) = delete;
  RunningDigest64& operator=(const RunningDigest64&) = delete;
  void restart();
  void add(ByteSpan piece);
  uint64_t value() const;   // of what was added since the restart

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct Digest128 {
  uint64_t low = 0, high = 0;
  auto operator<=>(const Digest128&) const = default;
  std::string to_string() const;  // 32 hexadecimal digits
};
Digest128 digest128(ByteSpan data);

// 192 secret bytes drawn afresh for each comparison run and told to the other copy over TLS.
struct DigestKey {
  std::array<uint8_t, 192> secret{};
};
Digest128 keyed_digest(const DigestKey& key, ByteSpan data);

// SHA-256 is for chaining batches and naming certificates.
using Sha256 = std::array<uint8_t, 32>;
std::string to_hex(ByteSpan bytes);

}  // namespace tidemark
