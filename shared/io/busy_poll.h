// When it pays to poll for an event instead of sleeping until it comes.
//
// A sleeping thread's processor goes idle, and waking it costs more than the event itself when the
// events of a guest's small synchronous writes come every few tens of microseconds. So a wait polls
// for a while if the waits before it were short; one that proves long is paid for once or twice, then
// the loop sleeps at once until waits are short again. Pure: the loop gives it the times.
// As the halt polling of KVM (Documentation/virt/kvm/halt-polling.rst), with a count instead of a growing window.
#pragma once

#include <algorithm>

#include "shared/io/env.h"

namespace tidemark::io {

class BusyPoll {
 public:
  // Polls no longer than `max` a wait; zero: never.
  explicit BusyPoll(Duration max) : max_(max) {}

  // How long the wait that begins now may poll before it sleeps.
  Duration budget() const { return credit_ > 0 ? max_ : Duration::zero(); }
  // The wait has ended with something to do after `waited`, polling and sleeping together.
  void waited(Duration waited) {
    // Long waits weigh more: where every second wait is long, polling never pays.
    if (waited <= max_) credit_ = std::min(credit_ + 1, kCreditMax);
    else credit_ = std::max(credit_ - 3, kCreditMin);
  }
  bool enabled() const { return max_ > Duration::zero(); }

 private:
  static constexpr int kCreditMax = 6;
  static constexpr int kCreditMin = -3;
  Duration max_;
  int credit_ = 0;
};

}  // namespace tidemark::io
