#include "fs/mirror_state.h"

#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {

MirrorStep without_link(const MirrorFacts& f) {
  const bool whole = f.copy_whole || TM_PLANTED("go on alone with a copy that is not whole");
  const bool handshaken = f.handshaken || TM_PLANTED("go on alone without a handshake");
  bool alone_allowed = whole && handshaken && (!f.asks_first || f.witnessed);
  return {alone_allowed ? MirrorState::kLocalOnly : MirrorState::kWaiting, kUnlevel | kWakeParked};
}

MirrorStep resynced_or_filling(const MirrorFacts& f) {
  if (f.copy_whole) return {MirrorState::kMirrored, kRelevel | kResendUnknown | kWakeParked};
  return {MirrorState::kFilling, kRelevel | kStartFill | kResendUnknown | kWakeParked};
}

bool holds_tenure(MirrorState s) {
  return s == MirrorState::kMirrored || s == MirrorState::kFilling || s == MirrorState::kWaiting ||
         s == MirrorState::kLocalOnly || s == MirrorState::kResyncing;
}

}  // namespace

MirrorStep step(const MirrorFacts& f, MirrorState state, MirrorEvent event) {
  if (f.policy_none) {
    if (event == MirrorEvent::kFencedOff) return {MirrorState::kFenced, kWakeParked};
    if (event == MirrorEvent::kYielded) return {MirrorState::kReadingShared, kWakeParked};
    if (event == MirrorEvent::kGranted) return {MirrorState::kNone, kRelevel | kWakeParked};
    return {state, kNoAction};
  }
  switch (event) {
    case MirrorEvent::kGranted:
      if (f.alone) return {MirrorState::kResyncing, kUnlevel | kStartResync | kResendUnknown | kWakeParked};
      return resynced_or_filling(f);
    case MirrorEvent::kYielded: return {MirrorState::kReadingShared, kWakeParked};
    case MirrorEvent::kFencedOff: return {MirrorState::kFenced, kUnlevel | kWakeParked};
    default: break;
  }
  if (!holds_tenure(state)) return {state, kNoAction};
  switch (event) {
    case MirrorEvent::kLinkLost:
    case MirrorEvent::kRefused:
      return without_link(f);
    case MirrorEvent::kResumed:
      if (f.alone) return {MirrorState::kResyncing, kUnlevel | kStartResync | kResendUnknown | kWakeParked};
      return resynced_or_filling(f);
    case MirrorEvent::kResumedOther:
      return {MirrorState::kResyncing, kUnlevel | kStartResync | kResendUnknown | kWakeParked};
    case MirrorEvent::kLossChanged:
      if (!sends_mirror(state)) return {state, kNoAction};
      return {MirrorState::kResyncing, kUnlevel | kStartResync};
    case MirrorEvent::kEqual:
      if (state != MirrorState::kResyncing) return {state, kNoAction};
      return resynced_or_filling(f);
    case MirrorEvent::kWitnessed:
      if (state != MirrorState::kWaiting) return {state, kNoAction};
      return without_link(f);
    case MirrorEvent::kFilled:
      if (state == MirrorState::kFilling && f.copy_whole) return {MirrorState::kMirrored, kWakeParked};
      return {state, kNoAction};
    default: return {state, kNoAction};
  }
}

std::string_view mirror_state_name(MirrorState state) {
  switch (state) {
    case MirrorState::kReadingShared: return "reading shared";
    case MirrorState::kMirrored: return "mirrored";
    case MirrorState::kFilling: return "filling";
    case MirrorState::kWaiting: return "waiting";
    case MirrorState::kLocalOnly: return "local only";
    case MirrorState::kResyncing: return "resyncing";
    case MirrorState::kFenced: return "fenced";
    case MirrorState::kNone: return "none";
  }
  return "unknown";
}

}  // namespace tidemark::fs
