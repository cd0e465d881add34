// What is known of a verify that runs; shared by verifier.cc and verifier_replica.cc.
#pragma once

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

#include "fs/image.h"
#include "shared/base/digest.h"
#include "shared/base/task.h"

namespace tidemark::fs {

inline constexpr uint32_t kVerifyUnit = 64u << 10;       // one digest for so much
inline constexpr uint32_t kVerifyFine = 4096;            // where units differ
inline constexpr uint64_t kVerifyWindow = 64ull << 20;   // the replica is asked about at once

// A piece in which host and shared copy differ. Which of the two is wrong, the replica decides.
struct Suspect {
  Extent piece;
  Digest128 host, shared;
};

struct VerifyRun {
  std::vector<ImageId> images;
  UniqueFunction<void(uint64_t, uint64_t)> progress;
  Callback<Result<std::string>> done;
  DigestKey key;
  uint64_t done_bytes = 0, total_bytes = 0;
  nlohmann::json result;

  bool shipping_stuck = false;          // a cut did not arrive: the next images do not wait for theirs
  bool held = false;                    // one arrived and was held: theirs are asked about once

  // Of the image at hand.
  nlohmann::json image;
  std::string path_at_cut;
  bool withheld = false;                // at the cut: what the replica has of it is older
  std::string no_cut;                   // why none was made: what is shipped next is of a later state
  uint64_t compared = 0;
  bool equal = true;
  bool behind = false;                  // the own copy, somewhere
  bool apart = false;                   // somewhere host and shared copy are still to be made equal: not compared
  std::vector<Suspect> suspects;
  bool decided = false;                 // the replica was asked about the suspects
  // Of the bytes at the cut: by window, one a kVerifyUnit. Those that are not there are holes on host and shared node.
  std::unordered_map<uint64_t, std::vector<Digest128>> frozen;
};

// The digests of the window around `at`, of zeros where nothing else was seen.
std::vector<Digest128>& digests_around(VerifyRun& run, uint64_t at, uint64_t size);
void advance(VerifyRun& run, uint64_t bytes);
void differ(VerifyRun& run, const Image& image, std::string_view copy, Extent where);
// A name may hold any bytes: those that are no UTF-8 replaced, as the replica's answers have them.
std::string as_shown(const std::string& name);

}  // namespace tidemark::fs
