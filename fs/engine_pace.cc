// How fast copies are made level: guests first, so many images at once, so many bytes a second ([resync]).
#include <algorithm>

#include "fs/engine.h"

namespace tidemark::fs {
namespace {
constexpr std::chrono::milliseconds kStandBack{2};   // before a unit, while guests' requests are under way
constexpr std::chrono::milliseconds kLookForTurn{100};
}  // namespace

// Somebody waits for it: requests for a recovery, flushes for a resync of a copy that may have lost writes.
bool Engine::waited_for(const Image& im) const {
  return im.recovering || (im.state == MirrorState::kResyncing && !im.facts.alone);
}

// Waits until few enough other images are being made level. True: end_turn() has to follow. False: it is over for this
// image meanwhile.
Task<bool> Engine::take_turn(Image& im, uint64_t bytes) {
  const Epoch epoch = im.epoch;
  im.run = {bytes, 0, env_.now(), true};
  while (turns_taken_ >= options_.config.resync.images && !waited_for(im)) {
    co_await sleep(kLookForTurn);
    if (im.held && im.epoch == epoch && im.local() && !im.yielding && mirror_->up()) continue;
    im.run = {};
    co_return false;
  }
  ++turns_taken_;
  im.run.waits = false;
  im.run.begun = env_.now();
  co_return true;
}

void Engine::end_turn(Image& im) {
  im.run = {};
  --turns_taken_;
}

// Before so many bytes are compared or copied.
Task<void> Engine::pace(Image& im, uint64_t bytes) {
  if (waited_for(im)) co_return;
  if (ops_in_flight_ != 0) co_await sleep(kStandBack);
  const uint64_t rate = options_.config.resync.rate;
  if (rate == 0) co_return;
  const auto cost = io::Duration(static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate)));
  const io::BootTime now = env_.now(), begin = std::max(now, paced_until_);
  paced_until_ = begin + cost;
  if (begin > now) co_await sleep(begin - now);
}

uint64_t Engine::level_left(const Image& im) const { return im.run.total - std::min(im.run.total, im.run.done); }

// Bytes a second so far; 0: not known yet.
uint64_t Engine::level_rate(const Image& im) const {
  if (im.run.total == 0 || im.run.waits) return 0;
  const double seconds = static_cast<double>((env_.now() - im.run.begun).count()) / 1e9;
  return seconds < 0.1 ? 0 : static_cast<uint64_t>(static_cast<double>(im.run.done) / seconds);
}

}  // namespace tidemark::fs
