// What a scrub that runs knows; shared by scrubber.cc, which walks the blocks, and scrubber_settle.cc, which repairs
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fs/scrubber.h"
#include "journal/journal.h"

namespace tidemark::fs {

inline constexpr uint64_t kScrubBlock = journal::kKeptBlockBytes;
inline constexpr uint32_t kScrubUnit = journal::kKeptUnitBytes;

// A piece whose copies differ, and nothing told which one is right.
struct Undecided {
  Extent piece;
  Digest128 host, shared;                // under the run's key
  std::string why;
};

struct ScrubRun {
  ScrubOptions options;
  std::vector<ImageId> images;
  UniqueFunction<void(uint64_t, uint64_t)> progress;
  Callback<Result<std::string>> done;
  DigestKey key;
  io::BootTime began;
  uint64_t paced = 0;                    // bytes since then
  nlohmann::json result;

  // Of the image at hand.
  nlohmann::json image;
  uint64_t compared = 0, skipped = 0, kept = 0, unsure = 0;
  std::vector<Undecided> undecided;
  std::vector<Extent> repairing;         // on record as undecided, and not synced yet
  LossId shared_loss;                    // of the shared copy when the first of those was put there
  bool repaired = false;                 // there is, or was, something on record
  uint64_t reached = 0;                  // what lies beyond it was not looked at
  std::vector<Extent> carried;           // undecided before, and not looked at now
};

// One block of both copies, and what is known of it. Units are kScrubUnit long; the last may be shorter.
struct ScrubBlock {
  Extent range;
  std::shared_ptr<io::AlignedBuffer> bytes;            // of the own copy; shared with the operations
  std::vector<std::optional<Digest128>> host, shared;  // absent: it could not be read
  std::optional<std::vector<Digest128>> kept;
  Extent unit(uint64_t i) const {
    uint64_t at = i * journal::kKeptUnitBytes;
    return {range.offset + at, std::min(journal::kKeptUnitBytes, range.length - at)};
  }
  MutableByteSpan own(Extent piece) { return bytes->span().subspan(piece.offset - range.offset, piece.length); }
};

inline void list_in(nlohmann::json& to, nlohmann::json entry) {
  constexpr size_t kListedMax = 1000;
  if (to.size() < kListedMax) to.push_back(std::move(entry));
}

}  // namespace tidemark::fs
