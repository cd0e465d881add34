#include "shared/cli/output.h"

#include <gtest/gtest.h>

namespace tidemark::cli {
namespace {

TEST(Table, AlignsColumnsByWidthNotBytes) {
  Table t({"NAME", "SIZE"});
  t.right({1});
  t.row({"ä", "1 B"});
  t.row({"disk", "10 KiB"});
  EXPECT_EQ(t.text(), "NAME    SIZE\nä        1 B\ndisk  10 KiB\n");
}

TEST(Table, ANameCannotWriteToTheTerminal) {
  Table t({"NAME"});
  t.row({"a\x1b[2Jb\n"});
  EXPECT_EQ(t.text(), "NAME\na\\x1b[2Jb\\x0a\n");
}

TEST(FormatSeconds, PicksItsUnit) {
  EXPECT_EQ(format_seconds(0), "0 s");
  EXPECT_EQ(format_seconds(1.44), "1.4 s");
  EXPECT_EQ(format_seconds(200), "3 min 20 s");
  EXPECT_EQ(format_seconds(7500), "2 h 5 min");
}

TEST(ProgressBar, ShowsPartRateAndRest) {
  EXPECT_EQ(ProgressBar::line("x", 0, 0, 0, 0), "x [########################] 100%  0 B of 0 B");
  EXPECT_EQ(ProgressBar::line("x", 512ull << 20, 1ull << 30, 0, 2),
            "x [############............] 50%  512.0 MiB of 1.0 GiB  256.0 MiB/s  2 s left");
  EXPECT_EQ(ProgressBar::line("x", 75, 100, 50, 1), "x [##################......] 75%  75 B of 100 B  25 B/s  1 s left");
}

}  // namespace
}  // namespace tidemark::cli
