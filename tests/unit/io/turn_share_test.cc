// How much of its work a turn of the loop takes.
#include "shared/io/turn_share.h"

#include <gtest/gtest.h>

namespace tidemark::io {
namespace {

TEST(TurnShare, IsHalfOfWhatIsUnderWayWithinTheBounds) {
  EXPECT_EQ(turn_share(0), 8U);
  EXPECT_EQ(turn_share(16), 8U);
  EXPECT_EQ(turn_share(24), 12U);
  EXPECT_EQ(turn_share(32), 16U);
  EXPECT_EQ(turn_share(1000), 16U);
}

}  // namespace
}  // namespace tidemark::io
