#include "fs/pace.h"

#include <algorithm>

#include "fs/image.h"
#include "fs/mirror.h"

namespace tidemark::fs {
namespace {
constexpr std::chrono::milliseconds kStandBack{2};   // before a unit, while guests' requests are under way
constexpr std::chrono::milliseconds kLookForTurn{100};
}  // namespace

bool waited_for(const Image& im) {
  return im.recovering || (im.state == MirrorState::kResyncing && !im.facts.alone);
}

Task<bool> Pace::take_turn(Image& im, uint64_t bytes) {
  const Epoch epoch = im.epoch;
  im.run = {bytes, 0, copies_.env().now(), true};
  while (turns_taken_ >= limits_.images && !waited_for(im)) {
    co_await copies_.sleep(kLookForTurn);
    if (im.held && im.epoch == epoch && im.local() && !im.yielding && mirror_.up()) continue;
    im.run = {};
    co_return false;
  }
  ++turns_taken_;
  im.run.waits = false;
  im.run.begun = copies_.env().now();
  co_return true;
}

void Pace::end_turn(Image& im) {
  im.run = {};
  --turns_taken_;
}

Task<void> Pace::wait(const Image& im, uint64_t bytes) {
  if (waited_for(im)) co_return;
  if (copies_.in_flight() != 0) co_await copies_.sleep(kStandBack);
  const uint64_t rate = limits_.rate;
  if (rate == 0) co_return;
  const auto cost = io::Duration(static_cast<int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate)));
  const io::BootTime now = copies_.env().now(), begin = std::max(now, paced_until_);
  paced_until_ = begin + cost;
  if (begin > now) co_await copies_.sleep(begin - now);
}

uint64_t LevelRun::rate(io::BootTime now) const {
  if (total == 0 || waits) return 0;
  const double seconds = static_cast<double>((now - begun).count()) / 1e9;
  return seconds < 0.1 ? 0 : static_cast<uint64_t>(static_cast<double>(done) / seconds);
}

}  // namespace tidemark::fs
