// How often a test repeats itself: sanitized builds are ten times as slow, and find what they look for in fewer rounds.
#pragma once

#include <cstdint>

// The name of a test of how much, how fast or of the oracle itself: under a sanitizer it is listed as disabled.
#ifdef TIDEMARK_SANITIZED
#define TM_UNSANITIZED(name) DISABLED_##name
#else
#define TM_UNSANITIZED(name) name
#endif

namespace tidemark {

template <class T>
constexpr T repeat([[maybe_unused]] T full, [[maybe_unused]] T sanitized) {
#ifdef TIDEMARK_SANITIZED
  return sanitized;
#else
  return full;
#endif
}

// Seeds of a scenario: a fifth, and two at least.
constexpr uint64_t seeds_of(uint64_t full) { return repeat(full, full < 10 ? uint64_t{2} : full / 5); }

}  // namespace tidemark
