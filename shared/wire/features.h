// Feature bits of Hello: offered by the host, ignored by a shared node that does not know them.
#pragma once

#include <cstdint>

namespace tidemark::wire {

// This run goes on for the one before it on a mount that stands: images that are open stay open.
inline constexpr uint64_t kFeatureSuccessor = 1;
// An operator's word that this host's state before the present one was lost: without it a host that comes with another
// journal is refused, since a disk that is not mounted looks the same.
inline constexpr uint64_t kFeatureReset = 2;
// The answer may be HelloAnswerMore.
inline constexpr uint64_t kFeatureHelloMore = 4;
// With session 0: no session is opened yet. The answer is Met, by which the host judges whether the state of both ends
// is of one time, and from where on its own numbers are new; then it says Hello again, without this bit.
inline constexpr uint64_t kFeatureMeet = 8;
// Resume may say 3 in `alone`: all of the image is compared.
inline constexpr uint64_t kFeatureCompare = 16;
// Either end knows FIFOs, sockets and devices. They are not shown to a host that does not offer it, and not sent to a
// shared node that does not answer with it.
inline constexpr uint64_t kFeatureSpecialFiles = 32;
// A tenure may end by kYieldUnshipped.
inline constexpr uint64_t kFeatureYieldUnshipped = 64;
// Create is CreateOnce, between two ends that both have it.
inline constexpr uint64_t kFeatureCreateOnce = 128;

// Met's floor lies so far above what was seen of the host: it may have run and shipped without ever reaching the shared
// node. So a journal made anew begins farther above all that a lost one counted.
inline constexpr uint64_t kIncarnationsSkipped = 1000;

}  // namespace tidemark::wire
