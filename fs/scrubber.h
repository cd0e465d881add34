// scrub: reads both copies of every block, under load, and has the one repaired that has rotted.
//
// scrubber.cc walks the blocks. Each is held in the order of overlapping requests while it is looked at: nothing is
// written there meanwhile. scrubber_settle.cc decides which of two copies is right, by what is known, and repairs the
// other. What it could not decide is an alarm that outlasts the daemon (scrubber_alarms.cc). Loop thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fs/copies.h"
#include "shared/base/digest.h"
#include "shared/base/ids.h"
#include "shared/kv/store.h"

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
  std::map<ImageId, std::vector<Extent>> undecided;        // by the last run over the image; durable (see load)
  uint64_t undecided_bytes() const {
    uint64_t sum = 0;
    for (const auto& [id, pieces] : undecided)
      for (const Extent& piece : pieces) sum += piece.length;
    return sum;
  }
};

struct ScrubRun;
struct ScrubBlock;
struct Undecided;

class Scrubber {
 public:
  explicit Scrubber(Copies& copies) : copies_(copies) {}
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  // What scrubs of earlier runs of the daemon left undecided, and where it is kept: rows of table `meta`. Once, before
  // all else; the store must outlive this.
  Status load(kv::Store& store, kv::Table meta);
  // Compares the copies and repairs the one that has rotted. One at a time (kBusy). `done` gets the result of
  // control-api.md, as JSON.
  void start(ScrubOptions options, UniqueFunction<void(uint64_t done, uint64_t total)> progress,
             Callback<Result<std::string>> done);
  Result<std::string> stop();            // the one under way, soon; kNotFound if there is none
  // The image is gone, and what is undecided of it with it.
  void forget(const ImageId& id) { set_undecided(id, {}); }
  const ScrubState& state() const { return state_; }       // stays where it is

 private:
  Task<void> run_scrub(std::shared_ptr<ScrubRun> run);
  Task<Status> scrub_image(ScrubRun& run, Image& image);
  Task<uint64_t> holes_of_both(Image& image, uint64_t at);
  Task<void> pace(ScrubRun& run, uint64_t bytes);
  Task<Status> scrub_block(ScrubRun& run, Image& image, Extent range);
  Task<Status> read_for_scrub(Image& image, ScrubBlock& block, const DigestKey& key);
  // ---- scrubber_settle.cc
  Task<Result<bool>> settle_unit(ScrubRun& run, Image& image, ScrubBlock& block, uint64_t unit, const DigestKey& key);
  Task<Result<bool>> settle_unreadable(ScrubRun& run, Image& image, ScrubBlock& block, Extent unit, bool host_read,
                                       const DigestKey& key);
  Task<Status> before_repair(ScrubRun& run, Image& image, Extent range);
  Task<Status> sync_repairs(ScrubRun& run, Image& image);
  Task<Result<bool>> repair_unit(ScrubRun& run, Image& image, ScrubBlock& block, Extent unit, bool host_good,
                                 const DigestKey& key);
  Task<Result<bool>> repair_mixed(ScrubRun& run, Image& image, ScrubBlock& block, Extent unit, Digest128 kept,
                                  const DigestKey& key);
  Task<Result<bool>> confirm(ScrubRun& run, Image& image, Extent unit, std::string_view copy, const DigestKey& key);
  Task<Result<bool>> confirm_shared(Image& image, Extent unit, Digest128 wanted, const DigestKey& key);
  Task<void> decide_by_replica(ScrubRun& run, Image& image);
  Task<bool> repair_if_unchanged(ScrubRun& run, Image& image, const Undecided& undecided, bool host_good);
  // ---- scrubber_alarms.cc
  void set_undecided(const ImageId& id, std::vector<Extent> pieces, bool repaired = false);
  Status record_undecided(const ImageId& id, const std::vector<Extent>& pieces);
  void forget_undecided(const std::vector<ImageId>& known);

  Copies& copies_;
  kv::Store* store_ = nullptr;           // the engine's, from load() on
  kv::Table meta_ = 0;
  ScrubState state_;
};

}  // namespace tidemark::fs
