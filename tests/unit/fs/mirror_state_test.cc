#include "fs/mirror_state.h"

#include <gtest/gtest.h>

namespace tidemark::fs {
namespace {

using S = MirrorState;
using E = MirrorEvent;
constexpr S kAllStates[] = {S::kReadingShared, S::kMirrored,  S::kFilling, S::kWaiting,
                            S::kLocalOnly,     S::kResyncing, S::kFenced};
constexpr E kAllEvents[] = {E::kGranted,      E::kYielded,     E::kLinkLost, E::kRefused, E::kResumed,
                            E::kResumedOther, E::kLossChanged, E::kEqual,    E::kFilled,  E::kFencedOff,
                            E::kWitnessed};
const MirrorFacts kWhole{.copy_whole = true, .handshaken = true};
const MirrorFacts kBehind{.copy_whole = false, .handshaken = true};

TEST(MirrorState, GoesAloneOnlyWithAWholeCopyAndAHandshake) {
  EXPECT_EQ(step(kWhole, S::kMirrored, E::kLinkLost).next, S::kLocalOnly);
  EXPECT_EQ(step(kBehind, S::kFilling, E::kLinkLost).next, S::kWaiting);
  EXPECT_EQ(step({.copy_whole = true, .handshaken = false}, S::kMirrored, E::kLinkLost).next, S::kWaiting);
}

TEST(MirrorState, WithPauseItGoesAloneOnlyWithTheWitnesssRecord) {
  MirrorFacts pause = kWhole;
  pause.asks_first = true;
  EXPECT_EQ(step(pause, S::kMirrored, E::kLinkLost).next, S::kWaiting);
  EXPECT_EQ(step(pause, S::kWaiting, E::kWitnessed).next, S::kWaiting) << "without the record itself";
  pause.witnessed = true;
  EXPECT_EQ(step(pause, S::kWaiting, E::kWitnessed).next, S::kLocalOnly);
  EXPECT_EQ(step(pause, S::kResyncing, E::kLinkLost).next, S::kLocalOnly) << "its vote stands until new terms are asked for";
  pause.copy_whole = false;
  EXPECT_EQ(step(pause, S::kWaiting, E::kWitnessed).next, S::kWaiting);
  EXPECT_EQ(step(kWhole, S::kFenced, E::kWitnessed).next, S::kFenced);
}

TEST(MirrorState, LosingTheLinkStopsCleaningAtOnce) {
  for (S s : {S::kMirrored, S::kFilling, S::kResyncing, S::kLocalOnly, S::kWaiting})
    EXPECT_TRUE(step(kWhole, s, E::kLinkLost).actions & kUnlevel);
}

TEST(MirrorState, MirroredAgainWithoutResyncOnlyIfNothingWasMissed) {
  EXPECT_EQ(step(kWhole, S::kLocalOnly, E::kResumed).next, S::kMirrored);
  MirrorFacts alone = kWhole;
  alone.alone = true;
  MirrorStep s = step(alone, S::kLocalOnly, E::kResumed);
  EXPECT_EQ(s.next, S::kResyncing);
  EXPECT_TRUE(s.actions & kStartResync);
  EXPECT_FALSE(s.actions & kRelevel);
  EXPECT_EQ(step(kWhole, S::kWaiting, E::kResumedOther).next, S::kResyncing);
}

TEST(MirrorState, OnlyEqualCopiesEndAResync) {
  for (E e : {E::kResumed, E::kFilled, E::kGranted}) {
    if (e == E::kGranted) continue;  // a grant begins anew
    MirrorFacts f = kWhole;
    f.alone = true;
    EXPECT_EQ(step(f, S::kResyncing, e).next, S::kResyncing);
  }
  EXPECT_EQ(step(kWhole, S::kResyncing, E::kEqual).next, S::kMirrored);
  EXPECT_EQ(step(kBehind, S::kResyncing, E::kEqual).next, S::kFilling);
}

TEST(MirrorState, FencedIsLeftOnlyByANewGrant) {
  for (E e : kAllEvents) {
    S next = step(kWhole, S::kFenced, e).next;
    S expected = e == E::kGranted ? S::kMirrored : e == E::kYielded ? S::kReadingShared : S::kFenced;
    EXPECT_EQ(next, expected);
  }
}

// Over every state and event: regions may be cleaned again only on entering a state in which both copies are level.
TEST(MirrorState, RelevelsOnlyIntoLevelStates) {
  for (S s : kAllStates)
    for (E e : kAllEvents)
      for (bool whole : {false, true})
        for (bool alone : {false, true}) {
          MirrorStep r = step({.copy_whole = whole, .handshaken = true, .alone = alone}, s, e);
          bool relevels = (r.actions & kRelevel) != 0, fresh = r.next != s;
          EXPECT_TRUE(!relevels || r.next == S::kMirrored || r.next == S::kFilling);
          EXPECT_TRUE(r.next != S::kMirrored || !fresh || whole);
          EXPECT_TRUE(r.next != S::kResyncing || !fresh || (r.actions & kStartResync) != 0);
          EXPECT_TRUE(r.next != S::kLocalOnly || !fresh || (whole && (r.actions & kUnlevel) != 0));
        }
}

TEST(MirrorState, PolicyNoneIgnoresTheLink) {
  MirrorFacts none{.policy_none = true};
  EXPECT_EQ(step(none, S::kReadingShared, E::kGranted).next, S::kNone);
  for (E e : {E::kLinkLost, E::kResumed, E::kResumedOther, E::kLossChanged, E::kRefused})
    EXPECT_EQ(step(none, S::kNone, e).next, S::kNone);
  EXPECT_FALSE(sends_mirror(S::kNone));
}

}  // namespace
}  // namespace tidemark::fs
