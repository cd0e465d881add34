// How often a test repeats itself: sanitized builds are ten times as slow, and find what they look for in fewer rounds.
#pragma once

namespace tidemark {

template <class T>
constexpr T repeat([[maybe_unused]] T full, [[maybe_unused]] T sanitized) {
#ifdef TIDEMARK_SANITIZED
  return sanitized;
#else
  return full;
#endif
}

}  // namespace tidemark
