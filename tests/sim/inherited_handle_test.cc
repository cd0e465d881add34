// Handles that a daemon's successor has from the run before: fenced where the image was taken by force meanwhile,
// whichever of the two hears of it; and only there.
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Status take_by_force(Lab& lab) {
  auto report = lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}");
  if (!report) return report.status();
  return report->find("\"taken\":true") != std::string::npos ? Status::ok() : Status(Code::kBusy, *report);
}

// An image that host 1 writes on the shared copy alone, its own having failed: no successor carries such a tenure on.
// `clean`: nothing of it is dirty any more.
Result<fs::HandleId> open_behind(Lab& lab, bool clean) {
  auto handle = lab.open_filled("host1");
  if (!handle) return handle;
  lab.world.inject("host1", FileFault{.times = UINT64_MAX, .operations = kRead | kWrite | kSync, .path_contains = ".data"});
  if (Status s = lab.write("host1", *handle, 0, 'b'); !s) return s;
  if (Status s = lab.flush("host1", *handle); !s) return s;
  if (clean) lab.world.run_for(seconds(20));
  return handle;
}

class ByDirt : public ::testing::TestWithParam<bool> {
 protected:
  bool clean() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Inherited, ByDirt, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Clean" : "Dirty"; });

// The guest that was there goes on upon blocks that are not its own any more: not a byte of the new line does it get.
TEST_P(ByDirt, AHandleOfTheRunBeforeIsFencedByATakeover) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto old = open_behind(lab, clean());
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    const bool cut_off = seed % 2 == 0;   // it was there, and heard nothing
    if (cut_off) lab.world.partition("host1", "shared1");
    else lab.crash("host1", Crash::kKill);
    ASSERT_TRUE(take_by_force(lab).is_ok());
    const bool writes = seed % 4 < 2;     // nobody has written yet, else
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    if (writes) {
      ASSERT_TRUE(lab.write("host2", *second, 0, 'c').is_ok());
      ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    }
    lab.engine("host2").release(*second);
    if (cut_off) lab.crash("host1", Crash::kKill);
    lab.world.clear_faults("host1");
    lab.succeed("host1");
    auto out = std::make_shared<Bytes>(4096);
    std::optional<Status> waited;
    if (cut_off) {   // asked while nobody can say
      lab.engine("host1").read(*old, 0, *out, io::IoMode::kQueued, [&, out](Result<size_t> n) { waited = n.status(); });
      lab.world.run_for(seconds(3));
      EXPECT_FALSE(waited.has_value());
      lab.world.heal_all();
      ASSERT_TRUE(lab.world.run_until([&] { return waited.has_value(); }, seconds(30)));
      EXPECT_EQ(errno_of(*waited), EIO);
    }
    const bool reads_first = seed % 3 != 0;
    for (int runs = 0; runs < 3; ++runs) {   // the second run finds that the word of the takeover was answered
      if (reads_first || runs != 0) {
        auto byte = lab.read("host1", *old, 0);
        EXPECT_EQ(errno_of(byte.status()), EIO) << "run " << runs << (byte ? " reads another host's line" : "");
      }
      EXPECT_EQ(errno_of(lab.write("host1", *old, 4096, 'z')), EIO) << "run " << runs;
      EXPECT_EQ(errno_of(lab.flush("host1", *old)), EIO) << "run " << runs;
      lab.crash("host1", Crash::kKill);
      lab.succeed("host1");
    }
    lab.engine("host1").release(*old);
    lab.world.run_for(seconds(2));   // its link is up
    auto third = lab.open("host2");
    ASSERT_TRUE(third.is_ok()) << third.status().to_string();
    for (uint64_t offset : {0u, 4096u}) {
      auto byte = lab.read("host2", *third, offset);
      ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
      EXPECT_EQ(*byte, offset != 0 ? 'a' : writes ? 'c' : 'b');
    }
    // A guest that begins anew reads the main line, and writes it.
    auto anew = lab.open("host1");
    ASSERT_TRUE(anew.is_ok()) << anew.status().to_string();
    EXPECT_TRUE(lab.write("host1", *anew, 8192, 'd').is_ok());
    auto byte = lab.read("host1", *anew, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == (writes ? 'c' : 'b')) << byte.status().to_string();
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// It had gone on alone, a sync of its own copy failed, and so its successor must ask: what it wrote alone is a branch,
// and its guest is told.
TEST(InheritedHandle, OneThatWroteAloneIsFencedAndItsTailIsKept) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto old = lab.open_filled("host1");
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *old, 0, 't').is_ok());
    lab.world.inject("host1", FileFault{.operations = kSync, .path_contains = ".data"});
    EXPECT_FALSE(lab.flush("host1", *old).is_ok());
    ASSERT_TRUE(take_by_force(lab).is_ok());
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 4096, 'c').is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    const bool closed = seed % 2 == 0;
    if (closed) lab.engine("host2").release(*second);
    lab.crash("host1", Crash::kKill);
    lab.succeed("host1");
    lab.world.heal_all();
    EXPECT_EQ(errno_of(lab.read("host1", *old, 4096).status()), EIO);
    EXPECT_EQ(errno_of(lab.write("host1", *old, 0, 'z')), EIO);
    ASSERT_TRUE(lab.world.run_until([&] { return lab.engine("host1").branches().size() == 1; }, seconds(60)));
    EXPECT_EQ(errno_of(lab.write("host1", *old, 0, 'z')), EIO);
    EXPECT_EQ(errno_of(lab.flush("host1", *old)), EIO);
    auto byte = lab.read("host2", *second, 0);
    EXPECT_TRUE(closed || (byte.is_ok() && *byte == 'a')) << byte.status().to_string();
    lab.engine("host1").release(*old);
    auto anew = lab.open("host1");
    ASSERT_TRUE(anew.is_ok()) << anew.status().to_string();
    byte = lab.read("host1", *anew, 4096);
    EXPECT_TRUE(byte.is_ok() && *byte == 'c') << byte.status().to_string();
  }
}

// Nothing was taken: whatever the successor could not carry on, its guests do not notice.
TEST_P(ByDirt, AHandleOfTheRunBeforeGoesOnWhereNothingWasTaken) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto old = open_behind(lab, clean());
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    if (seed % 2 == 0) lab.world.clear_faults("host1");
    lab.crash("host1", Crash::kKill);
    if (seed % 3 == 0) {   // its unsynced writes are gone, and with them its loss id
      lab.crash("shared1", Crash::kPowerLoss);
      lab.start("shared1");
    }
    lab.succeed("host1");
    for (int runs = 0; runs < 2; ++runs) {
      auto byte = lab.read("host1", *old, 0);
      EXPECT_TRUE(byte.is_ok() && *byte == 'b') << "run " << runs << ": " << byte.status().to_string();
      Status wrote = lab.write("host1", *old, 4096, 'b');
      EXPECT_TRUE(wrote.is_ok()) << "run " << runs << ": " << wrote.to_string();
      EXPECT_TRUE(lab.flush("host1", *old).is_ok());
      lab.crash("host1", Crash::kKill);
      lab.succeed("host1");
    }
    lab.world.clear_faults("host1");
    EXPECT_TRUE(lab.write("host1", *old, 8192, 'b').is_ok());
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// A guest of the run before has written: its image is not given away beneath it, whenever the other host asks.
TEST_P(ByDirt, AWriterOfTheRunBeforeKeepsItsImage) {
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto old = open_behind(lab, clean());
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.crash("host1", Crash::kKill);
    if (seed % 2 == 0) lab.world.clear_faults("host1");
    lab.succeed("host1");
    lab.world.run_for(milliseconds(3 * seed));
    EXPECT_EQ(lab.write("host2", *second, 0, 'c').code(), Code::kBusy);
    auto byte = lab.read("host1", *old, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
    EXPECT_TRUE(lab.write("host1", *old, 4096, 'b').is_ok());
    lab.world.clear_faults("host1");
    lab.engine("host1").release(*old);
    EXPECT_TRUE(lab.write("host2", *second, 0, 'c').is_ok());
  }
}

// It had tried to write and was told that the image is another host's: that is no takeover, and it may try again.
TEST(InheritedHandle, OneWhoseWriteWasRefusedGoesOn) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto first = lab.open_filled("host2");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    auto old = lab.open("host1");
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    EXPECT_EQ(lab.write("host1", *old, 0, 'z').code(), Code::kBusy);
    lab.crash("host1", Crash::kKill);
    lab.succeed("host1");
    lab.world.run_for(milliseconds(seed % 4 * 700));
    const io::BootTime asked = lab.world.process("host1")->now();
    auto byte = lab.read("host1", *old, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == 'a') << byte.status().to_string();
    EXPECT_LT(lab.world.process("host1")->now() - asked, seconds(3)) << "a read waits for a tenure";
    EXPECT_EQ(lab.write("host1", *old, 0, 'z').code(), Code::kBusy);
    EXPECT_TRUE(lab.write("host2", *first, 0, 'b').is_ok());
    lab.engine("host2").release(*first);
    EXPECT_TRUE(lab.write("host1", *old, 4096, 'z').is_ok());
    byte = lab.read("host1", *old, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
  }
}

// An idle holder has given it away meanwhile, as whoever asks is granted it: a reader reads on, and may write later.
TEST(InheritedHandle, AReaderGoesOnAfterAHandover) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.engine("host1").release(*first);
    auto old = lab.open("host1");
    ASSERT_TRUE(old.is_ok()) << old.status().to_string();
    ASSERT_TRUE(lab.healthy("host1"));
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    lab.crash("host1", Crash::kKill);
    lab.succeed("host1");
    auto byte = lab.read("host1", *old, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
    lab.engine("host2").release(*second);
    EXPECT_TRUE(lab.write("host1", *old, 4096, 'c').is_ok());
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

}  // namespace
}  // namespace tidemark::sim
