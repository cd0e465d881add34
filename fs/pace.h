// How fast copies are made level: guests first, so many images at once, so many bytes a second ([resync]). What is left
// of it, and how fast it goes, is the image's LevelRun. Loop thread only.
#pragma once

#include <cstdint>

#include "fs/copies.h"
#include "shared/base/config.h"

namespace tidemark::fs {

class Mirror;

// Somebody waits for it: requests for a recovery, flushes for a resync of a copy that may have lost writes.
bool waited_for(const Image& image);

class Pace {
 public:
  // What is given must outlive the tasks that wait here.
  Pace(Copies& copies, const Mirror& mirror, const config::Resync& limits)
      : copies_(copies), mirror_(mirror), limits_(limits) {}

  // Waits until few enough other images are being made level. True: end_turn() has to follow. False: it is over for
  // this image meanwhile.
  Task<bool> take_turn(Image& image, uint64_t bytes);
  void end_turn(Image& image);
  // Before so many bytes are compared or copied.
  Task<void> wait(const Image& image, uint64_t bytes);

 private:
  Copies& copies_;
  const Mirror& mirror_;
  const config::Resync& limits_;
  uint32_t turns_taken_ = 0;             // images being made level
  io::BootTime paced_until_;             // what was copied so far is paid for then
};

}  // namespace tidemark::fs
