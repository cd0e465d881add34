// Every bound of a queue, batch, frame and retry. A number that stands elsewhere is a defect.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidemark::limits {

inline constexpr uint32_t kIoBytesMax = 1u << 20;             // largest guest read or write (FUSE max_write)
inline constexpr uint32_t kFrameBodyBytesMax = 1u << 20;      // message fields of a mirror frame
inline constexpr uint32_t kFramePayloadBytesMax = 1u << 20;   // data of a mirror frame
inline constexpr uint32_t kOrderGranule = 4096;               // overlap and preserve granule, bytes
inline constexpr uint32_t kRequestsInFlightMax = 1024;        // FUSE requests in flight (max_background)
inline constexpr uint32_t kFuseDrainMax = 64;                 // requests taken in one turn of the loop
inline constexpr uint64_t kStreamUnsentBytesMax = 64ull << 20;
inline constexpr uint32_t kOffloadThreads = 2;
inline constexpr uint64_t kRegionBytesMin = 4ull << 20;       // region of the dirty-region log
inline constexpr uint32_t kRegionsPerImageMax = 65536;
inline constexpr uint64_t kBatchPartBytesMax = 64ull << 20;   // compressed part of a shipped batch
inline constexpr uint32_t kClosedBatchesMax = 64;             // closed and not yet staged
inline constexpr uint64_t kPreservedBytesMax = 64ull << 20;   // old blocks kept for closed batches
inline constexpr uint64_t kImageBytesMax = 64ull << 40;
inline constexpr uint32_t kNameBytesMax = 255;
inline constexpr uint32_t kXattrBytesMax = 64u << 10;
inline constexpr int kTenureWaitSecondsMax = 5;               // a write waits so long for the other host's release

}  // namespace tidemark::limits
