#include <gtest/gtest.h>

#include "shared/base/config.h"

namespace tidemark::config {
namespace {

TEST(ParseSize, TakesBytesAndBinaryUnits) {
  EXPECT_EQ(*parse_size("512"), 512u);
  EXPECT_EQ(*parse_size("64KiB"), 65536u);
  EXPECT_EQ(*parse_size("64K"), 65536u);
  EXPECT_EQ(*parse_size("4 MB"), 4u << 20);
  EXPECT_EQ(*parse_size("1.5GiB"), 3ull << 29);
  EXPECT_EQ(*parse_size("1TiB"), 1ull << 40);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "1.5", "1XiB", "1..5G", "99999999999999999999", "99999999999T", "1 2"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(ParseDuration, TakesUnitsOnly) {
  EXPECT_EQ(parse_duration("250ms")->count(), 250);
  EXPECT_EQ(parse_duration("5s")->count(), 5000);
  EXPECT_EQ(parse_duration("1.5s")->count(), 1500);
  EXPECT_EQ(parse_duration("1m")->count(), 60000);
  for (const char* text : {"", "5", "s", "5x", "-5s", "9999999999999h"}) EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(FormatSize, UsesBinaryUnits) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(2ull << 30), "2.0 GiB");
}

}  // namespace
}  // namespace tidemark::config
