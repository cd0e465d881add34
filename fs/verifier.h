// verify: rereads every copy's storage at one common point and compares keyed hashes; works under load.
//
// The point is a cut of the journal. The image's bytes are frozen at that moment: writes that come later preserve old
// blocks first. Host and shared copies are compared chunk by chunk with writes to the chunk held off (verifier.cc); the
// same chunk with the preserved blocks laid over is the image at the cut, whose hashes the replica must have at its
// point (verifier_replica.cc). Nothing is repaired: that is a scrub's (scrubber.h). Loop thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fs/copies.h"

namespace tidemark::fs {

struct Receipt;
struct VerifyRun;

class Verifier {
 public:
  explicit Verifier(Copies& copies) : copies_(copies) {}
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // Paths or UUIDs; empty: all. One at a time (kBusy). `done` gets the result of control-api.md, as JSON.
  void start(std::vector<std::string> names, UniqueFunction<void(uint64_t done, uint64_t total)> progress,
             Callback<Result<std::string>> done);
  // Found since the start of the daemon, an image that could not be read as one more.
  const uint64_t& differences() const { return differences_; }

 private:
  Task<void> run_verify(std::shared_ptr<VerifyRun> run);
  Task<Status> verify_image(VerifyRun& run, Image& image);
  // ---- host and shared copy
  Task<Status> verify_copies(VerifyRun& run, Image& image, uint64_t size);
  Task<Status> verify_chunk(VerifyRun& run, Image& image, Extent range, uint64_t size);
  Task<void> narrow_shared(VerifyRun& run, Image& image, Extent unit, ByteSpan bytes);
  Task<Result<bool>> hole_on_both(Image& image, Extent range);
  // ---- verifier_replica.cc
  Task<Status> verify_replica(VerifyRun& run, Image& image, uint64_t size, std::shared_ptr<const Receipt> receipt);
  Task<Status> verify_facts(VerifyRun& run, Image& image, uint64_t size, std::string point);
  Task<Status> verify_data(VerifyRun& run, Image& image, uint64_t size, std::string target);
  Task<void> narrow_replica(VerifyRun& run, Image& image, std::string target, Extent unit);
  Task<uint64_t> replica_hole(std::string target, uint64_t at, uint64_t size);

  Copies& copies_;
  bool running_ = false;
  uint64_t differences_ = 0;
};

}  // namespace tidemark::fs
