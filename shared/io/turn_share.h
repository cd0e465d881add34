// How much of its work one turn of a loop takes.
//
// Half of what is under way: so that one half is at the disks, or at the other end, while the other is answered and
// asked for anew, instead of all of it in turns. Never so little that each piece of work pays for a turn of its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "shared/base/limits.h"

namespace tidemark::io {

// Of requests, or of completions, while `under_way` of them are begun and not finished.
constexpr uint32_t turn_share(size_t under_way) {
  return static_cast<uint32_t>(std::clamp<size_t>(under_way / 2, limits::kTurnShareMin, limits::kTurnShareMax));
}

}  // namespace tidemark::io
