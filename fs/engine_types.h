// What an engine is made with and asked for: options, the memory of requests, changes of attributes; what it counts.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "shared/base/bytes.h"
#include "shared/base/config.h"
#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

class Survivor;

struct EngineOptions {
  config::Host config;
  Uuid cluster;                          // of this host's certificate
  Survivor* survivor = nullptr;          // what this run leaves to a successor; null: nothing
  bool successor = false;                // the survivor is of a run before, whose mount stands
  bool after_reset = false;              // an operator's word that the state before this one was lost
};

// Owns the memory of requests. Where a brick hangs, a request is answered while a device may still use its memory.
class MemoryKeeper {
 public:
  virtual ~MemoryKeeper() = default;
  // `memory` stays as it is until landed(). Gives other memory, of the same size, for what a read is answered with.
  virtual MutableByteSpan keep(ByteSpan memory) = 0;
  virtual void landed(ByteSpan memory) = 0;
};

using Done = Callback<Status>;
using AttrDone = Callback<Result<wire::Attr>>;
struct HandleId { uint64_t value = 0; };  // table index + 1

// The kernel's own number of a request, the same when a successor is handed it once more.
struct RequestId {
  uint64_t number = 0;                   // 0: it has none
  bool again = false;                    // it is handed out once more: a run before may have carried it out
};

struct SetAttr {
  uint32_t mask = 0;                     // wire::SetAttrMask
  wire::Attr values;
  bool set_size = false;
  bool touch = false;                    // the times move even if the size stays
  uint64_t size = 0;
  HandleId handle;                       // by which the size is set; 0: by the name
  uint64_t tag = 0;                      // names the request for interrupt(); 0: it cannot be interrupted
};

// A file on this host.
struct Branch {
  ImageId image;
  Epoch epoch;
  std::string file;
  uint64_t bytes = 0;
  uint64_t unreadable_bytes = 0;         // left out: its list of extents names them
};

constexpr std::chrono::seconds kRetry{1};              // between attempts of what runs until it succeeds
constexpr std::chrono::seconds kOpportunityInterval{1};  // between attempts made as guests ask
constexpr std::chrono::seconds kShipWait{30};          // for what is known here to be at the replica

// The shared node answered, and will not do it: neither link nor epoch is over.
inline bool is_refusal(const Status& status) {
  return !status && status.code() != Code::kUnavailable && status.code() != Code::kFenced;
}

struct EngineCounts {                    // for metrics
  uint64_t reads = 0, writes = 0, flushes = 0, read_bytes = 0, write_bytes = 0, errors = 0;
  uint64_t link_losses = 0, resynced_bytes = 0, filled_bytes = 0, alone = 0, local_failures = 0, lost = 0, hung = 0,
           repaired_own = 0, repaired_shared = 0;
};

}  // namespace tidemark::fs
