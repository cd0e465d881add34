#include "fs/unsynced.h"

#include <gtest/gtest.h>

namespace tidemark::fs {
namespace {

// A flush that finds nothing to do is acknowledged at once: a wrong zero here is a false acknowledgement.
TEST(Unsynced, FlushesThatOverlapCoverWhatHadFinishedWhenEachBegan) {
  Unsynced writes;
  for (int i = 0; i < 10; ++i) writes.finish();
  uint64_t first = writes.mark();
  for (int i = 0; i < 5; ++i) writes.finish();
  uint64_t second = writes.mark();
  for (int i = 0; i < 3; ++i) writes.finish();
  writes.cover(first);
  writes.cover(second);
  EXPECT_TRUE(writes.any()) << "three writes came after the second flush began";
  writes.cover(writes.mark());
  EXPECT_FALSE(writes.any());
}

TEST(Unsynced, ALateAnswerToAnOlderFlushTakesNothingBack) {
  Unsynced writes;
  writes.finish();
  uint64_t older = writes.mark();
  writes.finish();
  writes.cover(writes.mark());
  writes.cover(older);
  EXPECT_FALSE(writes.any());
}

TEST(Unsynced, WhatIsClearedIsNotCountedAgain) {
  Unsynced writes;
  writes.finish();
  uint64_t before = writes.mark();
  writes.clear();
  EXPECT_FALSE(writes.any());
  writes.finish();
  writes.cover(before);
  EXPECT_TRUE(writes.any());
}

}  // namespace
}  // namespace tidemark::fs
