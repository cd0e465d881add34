// Feature bits of Hello: offered by the host, ignored by a shared node that does not know them.
#pragma once

#include <cstdint>

namespace tidemark::wire {

// This run goes on for the one before it on a mount that stands: images that are open stay open.
inline constexpr uint64_t kFeatureSuccessor = 1;

}  // namespace tidemark::wire
