// Bugs planted on purpose: each breaks one rule, to show that the simulator catches its breach (shared/docs/testing.md lists
// them). Only in a build with TIDEMARK_PLANTED_BUGS; in every other one they are the constant false.
#pragma once

#ifdef TIDEMARK_PLANTED_BUGS
#include <cstdlib>
#include <string_view>

namespace tidemark {
// The one bug of this process, by its name, from the environment.
inline std::string_view planted_bug() {
  static const char* const name = std::getenv("TIDEMARK_PLANTED_BUG");
  return name == nullptr ? std::string_view() : name;
}
}  // namespace tidemark
#define TM_PLANTED(name) (::tidemark::planted_bug() == (name))
#else
#define TM_PLANTED(name) false
#endif
