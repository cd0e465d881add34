// Every bound of a queue, batch, frame and retry. A number that stands elsewhere is a defect.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidemark::limits {

inline constexpr uint32_t kIoBytesMax = 1u << 20;             // largest guest read or write (FUSE max_write)
inline constexpr uint32_t kFrameBodyBytesMax = 1u << 20;      // message fields of a mirror frame
inline constexpr uint32_t kFramePayloadBytesMax = 1u << 20;   // data of a mirror frame
inline constexpr uint32_t kFrameRequestsMax = 4096;           // unanswered on one mirror connection, each way
inline constexpr size_t kPayloadBytesKeptMax = 64u << 20;     // idle receive buffers of a wire::PayloadPool
inline constexpr uint32_t kOrderGranule = 4096;               // overlap and preserve granule, bytes
inline constexpr uint64_t kCachedReadBytesMax = 64u << 10;     // a longer read of a guest goes past the page cache
inline constexpr uint32_t kRequestsInFlightMax = 1024;        // FUSE requests in flight (max_background)
// A turn of a loop takes half of what is under way, within these bounds (io::turn_share).
inline constexpr uint32_t kTurnShareMin = 8;
inline constexpr uint32_t kTurnShareMax = 16;
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

// Network shells.
inline constexpr int kHandshakeSecondsMax = 10;               // TCP accepted to TLS verified
inline constexpr uint32_t kHandshakesMax = 256;               // of one listener at once; more are refused
inline constexpr uint64_t kTlsRecordsPerKey = 1ull << 22;     // then the sending key is renewed (AES-GCM's bound is 2^24.5)
inline constexpr uint32_t kStreamReadBytes = 64u << 10;       // taken from a socket at once; stays in cache until used
inline constexpr uint32_t kHttpHeaderBytesMax = 64u << 10;
inline constexpr uint32_t kHttpConnectionsMax = 256;          // of one server; more are closed at once
inline constexpr uint64_t kHttpBodyBytesInFlightMax = 512ull << 20;  // of one server; more get 503 before their body is read
inline constexpr int kHttpStallSecondsMax = 30;               // server: a started message makes no progress
inline constexpr int kHttpIdleSecondsMax = 300;               // server: between two requests of a connection
inline constexpr uint32_t kHttpPieceBytes = 256u << 10;       // of a streamed response
inline constexpr uint64_t kHttpResponseBytesMax = 256ull << 20;  // client: larger ones are kUnavailable; stream them instead

inline constexpr size_t kBounceBytesKeptMax = 16u << 20;       // aligned memory an image store keeps for unaligned requests

inline constexpr size_t kJobsKeptMax = 64;                     // background jobs that a daemon remembers
inline constexpr int kStopSecondsMax = 60;                     // a daemon's stop: then it exits with an error

// The shared node.
inline constexpr uint32_t kXattrsPerNodeMax = 64;
inline constexpr uint32_t kXattrTotalBytesMax = 128u << 10;   // of one node: an Attr always fits a frame
inline constexpr uint32_t kSymlinkBytesMax = 4095;
inline constexpr uint32_t kDirEntriesMax = 1024;              // of one answer
inline constexpr uint64_t kCoordinatorReserve = 1ull << 20;   // sequence numbers made durable ahead
inline constexpr uint64_t kHashBytesMax = 64ull << 20;        // of one Hash request
inline constexpr uint32_t kExtentsMax = 4096;                 // of one ExtentList
inline constexpr uint64_t kReadBytesUnsentMax = 32ull << 20;  // of one connection: further reads wait
inline constexpr uint64_t kPeerPayloadBytesMax = 1ull << 30;  // received from one connection and not yet applied
inline constexpr uint32_t kSessionsMax = 256;
inline constexpr uint32_t kConnectionsPerSessionMax = 16;
inline constexpr uint32_t kImagesOpenMax = 512;               // idle copies beyond it are closed
inline constexpr int kNamelessKeepSeconds = 600;              // for a host that is away with a nameless image open
inline constexpr uint32_t kEventsFoldedAt = 4096;             // metadata events kept while the journal is degraded
inline constexpr uint32_t kMarksUnshippedMax = 100000;        // kept to be recorded again after a crash
inline constexpr uint64_t kMarksUnshippedBytesMax = 256u << 20;   // of these: each has its node's extended attributes
inline constexpr uint32_t kEventsUnstagedMax = 1u << 18;      // in a journal's open batch; beyond, it degrades and folds them

}  // namespace tidemark::limits
