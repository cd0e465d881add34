// What a scrub is asked for, and what the engine keeps of scrubs. Engine-private, but for the options.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "shared/base/digest.h"
#include "shared/base/ids.h"
#include "shared/net/network.h"

namespace tidemark::fs {

struct ScrubOptions {
  std::vector<std::string> images;       // paths or UUIDs; empty: all
  uint64_t bytes_per_second = 0;         // of one copy; 0: as fast as guests leave room
  bool trust_replica = false;            // where nothing else tells, the replica's newest point does
};

struct ScrubState {
  bool running = false;
  bool stop = false;                     // the run under way is to end; of the last one: it ended before its time
  uint64_t done = 0, total = 0;          // bytes, of the run under way or the last one
  uint64_t runs = 0, bytes = 0;          // since the start of the daemon, as all that follows
  uint64_t repaired_host = 0, repaired_shared = 0;         // bytes
  uint64_t read_errors = 0;              // units that a copy could not read
  WallTime ended;                        // of the last run; 0: none
  std::map<ImageId, std::vector<Extent>> undecided;        // by the last run over the image; durable (engine_alarms.cc)
  uint64_t undecided_bytes() const {
    uint64_t sum = 0;
    for (const auto& [id, pieces] : undecided)
      for (const Extent& piece : pieces) sum += piece.length;
    return sum;
  }
};

// Asks the replica for digests of a range, one for each `unit` bytes, under a key that it cannot have known before.
net::HttpRequest digests_request(const std::string& target, Extent range, uint32_t unit, const DigestKey& key);
std::string hex_of(const Digest128& digest);

}  // namespace tidemark::fs
