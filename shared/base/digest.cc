#include "shared/base/digest.h"

#define XXH_STATIC_LINKING_ONLY  // for a state on the stack
// On x86 the library picks the widest vectors that the processor has, at run time.
#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <cstdio>

namespace tidemark {

uint64_t digest64(ByteSpan data) { return XXH3_64bits(data.data(), data.size()); }

uint64_t digest64(ByteSpan head, ByteSpan tail) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, head.data(), head.size());
  XXH3_64bits_update(&state, tail.data(), tail.size());
  return XXH3_64bits_digest(&state);
}

struct RunningDigest64::State {
  XXH3_state_t xxh;
};

RunningDigest64::RunningDigest64() : state_(std::make_unique<State>()) { restart(); }
RunningDigest64::~RunningDigest64() = default;
void RunningDigest64::restart() { XXH3_64bits_reset(&state_->xxh); }
void RunningDigest64::add(ByteSpan piece) { XXH3_64bits_update(&state_->xxh, piece.data(), piece.size()); }
uint64_t RunningDigest64::value() const { return XXH3_64bits_digest(&state_->xxh); }

std::string Digest128::to_string() const {
  char out[33];
  std::snprintf(out, sizeof out, "%016llx%016llx", static_cast<unsigned long long>(high),
                static_cast<unsigned long long>(low));
  return out;
}

Digest128 digest128(ByteSpan data) {
  XXH128_hash_t h = XXH3_128bits(data.data(), data.size());
  return {h.low64, h.high64};
}

Digest128 keyed_digest(const DigestKey& key, ByteSpan data) {
  XXH128_hash_t h = XXH3_128bits_withSecret(data.data(), data.size(), key.secret.data(), key.secret.size());
  return {h.low64, h.high64};
}

std::string to_hex(ByteSpan bytes) {
  static const char* hex = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (uint8_t b : bytes) {
    out.push_back(hex[b >> 4]);
    out.push_back(hex[b & 15]);
  }
  return out;
}

}  // namespace tidemark
