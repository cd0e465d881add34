// A brick hangs: operations on it do not end. Nobody waits longer than the deadline, and what lands long afterwards changes
// no block that was written since.
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr Duration kLongest = seconds(6);   // [storage] io_deadline and a second
constexpr uint64_t kOffsets[] = {0, 8192, Lab::kRegion};

struct Hang {
  const char* name;
  uint16_t operations;
  int end;                                  // how they end in the end: 0, or an errno
};
const Hang kHangs[] = {
    {"Writes", kWrite, 0},
    {"Syncs", kSync, 0},
    {"SyncsThatFailInTheEnd", kSync, 5},
    {"Reads", kRead, 0},
    {"AllThatFailInTheEnd", kRead | kMutatingFileOps, 5},
    {"All", kRead | kMutatingFileOps, 0},
};

class HangTest : public testing::TestWithParam<Hang> {
 protected:
  void begin(Lab& lab) {
    auto handle = lab.open("host1", true);
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    handle_ = *handle;
    ASSERT_TRUE(lab.write("host1", handle_, 0, 'a', Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab.flush("host1", handle_).is_ok());
  }
  // Writes, flushes and reads: no error, and no answer later than the deadline allows.
  void work(Lab& lab, uint8_t byte) {
    for (uint64_t offset : kOffsets) {
      timed(lab, [&] { return lab.write("host1", handle_, offset, byte); });
      timed(lab, [&] { return lab.flush("host1", handle_); });
      timed(lab, [&] {
        auto got = lab.read("host1", handle_, offset);
        EXPECT_TRUE(!got || *got == byte);
        return got.status();
      });
    }
    timed(lab, [&] {
      auto old = lab.read("host1", handle_, 3 * Lab::kRegion);
      EXPECT_TRUE(!old || *old == 'a');
      return old.status();
    });
  }
  template <class F>
  void timed(Lab& lab, F&& fn) {
    const Duration begun = lab.world.elapsed();
    Status status = fn();
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_LE(lab.world.elapsed() - begun, kLongest);
  }
  void expect_bytes(Lab& lab, uint8_t byte) {
    for (uint64_t offset : kOffsets) {
      auto got = lab.read("host1", handle_, offset);
      ASSERT_TRUE(got.is_ok()) << got.status().to_string();
      EXPECT_EQ(*got, byte);
    }
  }

  fs::HandleId handle_;
};

TEST_P(HangTest, OfTheHostIsLeftAndFilledAgainOnceItAnswers) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.world.inject("host1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick1", 0, true});
    work(lab, 'b');
    EXPECT_GT(lab.world.hung("host1"), 0u);
    EXPECT_FALSE(lab.engine("host1").healthy());
    // Written after the brick was left; then what hung lands.
    for (uint64_t offset : kOffsets) ASSERT_TRUE(lab.write("host1", handle_, offset, 'c').is_ok());
    ASSERT_TRUE(lab.flush("host1", handle_).is_ok());
    lab.world.run_for(seconds(90));   // nothing is opened anew while anything may still land
    lab.world.clear_faults("host1");
    lab.world.release_hung("host1", GetParam().end);
    ASSERT_TRUE(lab.healthy("host1")) << "the copy did not become level";
    EXPECT_EQ(lab.landed_late, lab.hung);
    EXPECT_EQ(lab.verify("host1"), "");
    // From the host's own copy now.
    lab.world.partition("host1", "shared1");
    lab.world.run_for(seconds(30));
    expect_bytes(lab, 'c');
  }
}

// Part of what hangs was sent in a session that is gone by the deadline.
TEST_P(HangTest, OfTheHostIsLeftThoughTheLinkWasLostMeanwhile) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.world.inject("host1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick1", 0, true});
    lab.world.at(seconds(1), [&] { lab.world.reset_connections("host1", "shared1"); });
    work(lab, 'b');
    EXPECT_GT(lab.world.hung("host1"), 0u);
    lab.world.clear_faults("host1");
    lab.world.release_hung("host1", GetParam().end);
    ASSERT_TRUE(lab.healthy("host1")) << "the copy did not become level";
    EXPECT_EQ(lab.verify("host1"), "");
    expect_bytes(lab, 'b');
  }
}

TEST_P(HangTest, OfTheHostOutlivesACrash) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      Lab lab(seed);
      begin(lab);
      lab.world.inject("host1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick1", 0, true});
      work(lab, 'b');
      EXPECT_GT(lab.world.hung("host1"), 0u);
      lab.crash("host1", kind);
      lab.world.clear_faults("host1");
      lab.start("host1");
      auto again = lab.open("host1");
      ASSERT_TRUE(again.is_ok()) << again.status().to_string();
      handle_ = *again;
      expect_bytes(lab, 'b');
      ASSERT_TRUE(lab.write("host1", handle_, 16384, 'c').is_ok());
      ASSERT_TRUE(lab.healthy("host1")) << "the copy did not become level";
      EXPECT_EQ(lab.verify("host1"), "");
    }
  }
}

// No copy is whole without it: requests wait for the brick, as they would without Tidemark, and none is lost.
TEST_P(HangTest, OfAHostThatIsAloneIsWaitedFor) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", handle_, 0, 'b').is_ok());
    lab.world.inject("host1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick1", 0, true});
    size_t hung = 0;
    const Duration begun = lab.world.elapsed();
    lab.world.at(seconds(30), [&] {
      hung = lab.world.hung("host1");
      lab.world.clear_faults("host1");
      lab.world.release_hung("host1");
    });
    for (uint64_t offset : kOffsets) {
      Status wrote = lab.write("host1", handle_, offset, 'c');
      EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
    }
    Status flushed = lab.flush("host1", handle_);
    EXPECT_TRUE(flushed.is_ok()) << flushed.to_string();
    expect_bytes(lab, 'c');
    EXPECT_GT(hung, 0u);
    EXPECT_GE(lab.world.elapsed() - begun, seconds(30)) << "answered by a copy that is not whole";
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1")) << "the copies did not become level";
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

TEST_P(HangTest, OfTheSharedNodeIsGoneOnWithout) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.world.inject("shared1", FileFault{1, UINT64_MAX, GetParam().operations, "/brick", 0, true});
    work(lab, 'b');
    // Reads are the own copy's: only what changes or flushes blocks meets the shared one.
    if ((GetParam().operations & (kWrite | kSync)) != 0) {
      EXPECT_GT(lab.world.hung("shared1"), 0u);
      EXPECT_NE(lab.shared_status().find("\"outdated\":true"), std::string::npos) << lab.shared_status();
    }
    for (uint64_t offset : kOffsets) ASSERT_TRUE(lab.write("host1", handle_, offset, 'c').is_ok());
    lab.world.run_for(seconds(60));
    lab.world.clear_faults("shared1");
    lab.world.release_hung("shared1", GetParam().end);
    ASSERT_TRUE(lab.healthy("host1")) << "the copies did not become level";
    ASSERT_TRUE(lab.flush("host1", handle_).is_ok());
    EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << lab.shared_status();
    EXPECT_EQ(lab.verify("host1"), "");
    // The other host sees what the first one wrote.
    lab.engine("host1").release(handle_);
    auto other = lab.open("host2");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    for (uint64_t offset : kOffsets) {
      auto got = lab.read("host2", *other, offset);
      ASSERT_TRUE(got.is_ok()) << got.status().to_string();
      EXPECT_EQ(*got, 'c');
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Operations, HangTest, testing::ValuesIn(kHangs), [](const auto& info) { return std::string(info.param.name); });

// What hangs is given up also where another operation failed before the deadline, and the brick was left for that.
TEST(Hang, IsNotWaitedForOnACopyThatHasFailedMeanwhile) {
  Lab lab(1);
  auto handle = lab.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", 0, true});
  std::optional<Status> written;
  const Bytes bytes(4096, 'b');
  const Duration begun = lab.world.elapsed();
  lab.engine("host1").write(*handle, 0, bytes, io::IoMode::kQueued, [&](Result<size_t> n) { written = n.status(); });
  ASSERT_TRUE(lab.world.run_until([&] { return lab.world.hung("host1") != 0; }, seconds(1)));
  lab.world.inject("host1", FileFault{1, 1, kWrite, "/brick1"});
  EXPECT_TRUE(lab.write("host1", *handle, Lab::kRegion, 'c').is_ok());
  EXPECT_FALSE(lab.engine("host1").healthy()) << "no fault came";
  EXPECT_TRUE(lab.world.run_until([&] { return written.has_value(); }, kLongest));
  EXPECT_TRUE(written && *written) << (written ? written->to_string() : "no answer");
  EXPECT_LE(lab.world.elapsed() - begun, kLongest);
  lab.world.release_hung("host1");
  ASSERT_TRUE(lab.healthy("host1")) << "the copy did not become level";
  EXPECT_EQ(lab.verify("host1"), "");
}

// It changes no byte, and is given up like all else.
TEST(Hang, AReservationIsTheSharedCopysToAnswer) {
  Lab lab(1);
  auto handle = lab.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab.world.inject("host1", FileFault{1, UINT64_MAX, static_cast<uint16_t>(FileOp::kAllocate), "/brick1", 0, true});
  const Duration begun = lab.world.elapsed();
  const Status reserved = lab.wait<Status>([&](auto done) {
    lab.engine("host1").fallocate(*handle, fs::Engine::Fallocate::kAllocate, {0, Lab::kImageBytes}, std::move(done));
  });
  EXPECT_TRUE(reserved) << reserved.to_string();
  EXPECT_LE(lab.world.elapsed() - begun, kLongest);
  EXPECT_GT(lab.world.hung("host1"), 0u) << "no fault came";
}

// An image of which this host has an old copy on that brick, and which it has read, but not held since it started.
TEST(Hang, ReachesAnImageThatWasNeverHeldHere) {
  Lab lab(1);
  auto own = lab.open("host1", true);
  ASSERT_TRUE(own.is_ok()) << own.status().to_string();
  ASSERT_TRUE(lab.write("host1", *own, 0, 'a').is_ok());
  auto other = lab.open("host1", true, "b.img");
  ASSERT_TRUE(other.is_ok()) << other.status().to_string();
  ASSERT_TRUE(lab.write("host1", *other, 0, 'b').is_ok());
  lab.engine("host1").release(*other);
  auto there = lab.open("host2", false, "b.img");
  ASSERT_TRUE(there.is_ok()) << there.status().to_string();
  ASSERT_TRUE(lab.write("host2", *there, 0, 'c').is_ok());
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  own = lab.open("host1");
  other = lab.open("host1", false, "b.img");
  ASSERT_TRUE(own.is_ok() && other.is_ok());
  ASSERT_TRUE(lab.write("host1", *own, 0, 'd').is_ok());
  ASSERT_TRUE(lab.read("host1", *other, 0).is_ok());
  lab.world.inject("host1", FileFault{1, UINT64_MAX, kWrite, "/brick1", 0, true});
  const Duration begun = lab.world.elapsed();
  EXPECT_TRUE(lab.write("host1", *own, 0, 'e').is_ok());
  EXPECT_LE(lab.world.elapsed() - begun, kLongest);
  auto got = lab.read("host1", *other, 0);
  EXPECT_TRUE(got.is_ok() && *got == 'c');
}

}  // namespace
}  // namespace tidemark::sim
