// The mirror state of one image on one host. Pure: step(facts, state, event) -> next state and what to do.
//
//                    granted (copy whole)
//   reading shared ----------------------------------> mirrored <----------------------+
//      ^  ^   |                                        |   ^  |  ^                     |
//      |  |   | granted (copy behind)        link lost |   |  |  | filled              | equal
//      |  |   +-----------------> filling -------------|---|--|--+                     |
//      |  |   yielded              |  ^    link lost   |   |  | loss id changed        |
//      |  +------------------------+  +--- waiting <---+   |  +------------------> resyncing
//      |                                   (may not go     |                        |  ^
//      |  yielded                           alone)         | resumed, same loss id, |  | resumed: alone, or
//      +------- mirrored                                   | nothing acknowledged   |  | another loss id
//                                                          | without the mirror     |  |
//                                                      local only <-----------------+--+
//                                                          link lost, or the shared node refuses a write
//
//   fenced: from any state, when the shared node answers kFenced; left only by a new grant.
//   none:   the image's policy; its data are this host's alone.
//
// Going alone (local only) needs: the own copy whole, a handshake for this tenure in this incarnation and, where the
// autonomy is `pause`, the witness's record. Where that does not hold the state is `waiting`, and requests that need
// the shared node wait, with `pause` all of them.
//
//   waiting --witnessed--> local only
#pragma once

#include <cstdint>
#include <string_view>

namespace tidemark::fs {

enum class MirrorState : uint8_t {
  kReadingShared,
  kMirrored,
  kFilling,
  kWaiting,
  kLocalOnly,
  kResyncing,
  kFenced,
  kNone
};

enum class MirrorEvent : uint8_t {
  kGranted,        // a tenure began (or was given anew) and the link is up
  kYielded,
  kLinkLost,
  kRefused,        // the shared node answered a write with an error that is not kFenced
  kResumed,        // the link is back, the tenure stands, the shared copy can have lost nothing
  kResumedOther,   // the same, but its loss id is another one
  kLossChanged,    // an answer on a standing link carries another loss id
  kEqual,          // resync done: all equal and durable on both
  kFilled,         // the own copy has no stale region left
  kFencedOff,
  kWitnessed,      // the witness has recorded that this host may go on alone
};

struct MirrorFacts {
  bool policy_none = false;   // mirror = none
  bool copy_whole = false;    // the own copy exists, nothing in it stale, broken or unreconciled
  bool handshaken = false;    // a handshake for this tenure succeeded in this incarnation
  bool asks_first = false;    // autonomy = pause as this tenure began: it goes on alone only with the witness's record
  bool witnessed = false;     // which it has for this tenure, and goes by since the link was last there
  bool alone = false;         // it is durably noted that writes may have been acknowledged without the shared copy
};

enum MirrorAction : uint32_t {
  kNoAction = 0,
  kUnlevel = 1,        // set_level(false): no region is cleaned from now on
  kRelevel = 2,        // set_level(true)
  kStartResync = 4,
  kStartFill = 8,
  kResendUnknown = 16, // writes whose outcome is unknown are sent again
  kWakeParked = 32,    // requests that waited for the state to change look again
};

struct MirrorStep {
  MirrorState next;
  uint32_t actions = kNoAction;
};

MirrorStep step(const MirrorFacts& facts, MirrorState state, MirrorEvent event);
// Writes go to the shared node too.
constexpr bool sends_mirror(MirrorState s) {
  return s == MirrorState::kMirrored || s == MirrorState::kFilling || s == MirrorState::kResyncing;
}
// As `status` shows it.
std::string_view mirror_state_name(MirrorState state);

}  // namespace tidemark::fs
