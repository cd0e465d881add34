// What is cut off or punched out of an image while the own copy is being filled: nobody waits until it was copied first,
// and what stays of it is what the other host left, on all copies.
#include <charconv>

#include "shared/base/metrics.h"
#include "tests/sim/lab.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr uint64_t kRegion = Lab::kRegion;
constexpr uint64_t kCut = 2 * kRegion + 8192 + 100;   // within a region, and within a block

// host1 has 'a' everywhere, host2 wrote 'b' over it, and host1's copy, at its turn again, is filled very slowly.
class ClearedFill : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
    ASSERT_TRUE(lab_.healthy("host1"));
    lab_.engine("host1").release(*handle_);
    lab_.world.run_for(seconds(5));
    auto second = lab_.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab_.write("host2", *second, 0, 'b', Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab_.flush("host2", *second).is_ok());
    lab_.engine("host2").release(*second);
    ASSERT_TRUE(lab_.healthy("host2"));
    lab_.crash("host1", Crash::kKill);
    lab_.resync_rate = kRegion / 16;
    lab_.start("host1");
    lab_.engine("host1").register_metrics(registry_);
    handle_ = lab_.open("host1");
    ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
    ASSERT_TRUE(lab_.write("host1", *handle_, 0, 'c').is_ok());
    ASSERT_NE(lab_.engine("host1").status_json().find("\"filling\""), std::string::npos)
        << lab_.engine("host1").status_json();
    inode_ = lab_.inode_of("host1");
    filled_before_ = filled();
  }
  uint64_t filled() {
    const std::string metrics = registry_.text(), name = "\ntidemark_fs_filled_bytes_total ";
    const size_t at = metrics.find(name);
    uint64_t value = UINT64_MAX;
    if (at != std::string::npos)
      std::from_chars(metrics.data() + at + name.size(), metrics.data() + metrics.size(), value);
    return value;
  }
  uint64_t filled_for_it() { return filled() - filled_before_; }
  Status punch(Extent extent) {
    return lab_.wait<Status>([&](auto done) {
      lab_.engine("host1").fallocate(*handle_, fs::Engine::Fallocate::kPunch, extent, std::move(done));
    }, seconds(1));
  }
  Status cut(uint64_t size) {
    fs::SetAttr change;
    change.set_size = true;
    change.size = size;
    return lab_.wait<Result<wire::Attr>>(
        [&](auto done) { lab_.engine("host1").setattr(inode_, change, std::move(done)); }, seconds(1)).status();
  }
  void expect_bytes(uint64_t offset, uint64_t length, uint8_t byte) {
    auto got = lab_.read("host1", *handle_, offset, length);
    ASSERT_TRUE(got.is_ok()) << got.status().to_string();
    EXPECT_EQ(*got, byte) << "at " << offset;
  }
  // Read as it is now, and when the own copy is level; and the three copies are equal.
  template <class Check>
  void now_and_when_level(Check&& check) {
    check();
    ASSERT_TRUE(lab_.healthy("host1", seconds(600))) << lab_.engine("host1").status_json();
    check();
    EXPECT_EQ(site_.verify("host1"), "");
  }

  metrics::Registry registry_;
  Lab lab_{13, false, Plant::kNone, Ships::kYes};
  Site site_{lab_};
  Result<fs::HandleId> handle_ = lab_.open_filled("host1");
  InodeNumber inode_;
  uint64_t filled_before_ = 0;
};

TEST_F(ClearedFill, ATruncationToNothingCopiesNothing) {
  Status done = cut(0);
  ASSERT_TRUE(done.is_ok()) << done.to_string();
  EXPECT_EQ(filled_for_it(), 0u);
  ASSERT_TRUE(lab_.resize("host1", inode_, Lab::kImageBytes).is_ok());
  now_and_when_level([&] { expect_bytes(0, Lab::kImageBytes, 0); });
}

TEST_F(ClearedFill, ATruncationCopiesAtMostTheRegionOfTheNewEnd) {
  Status done = cut(kCut);
  ASSERT_TRUE(done.is_ok()) << done.to_string();
  EXPECT_LE(filled_for_it(), kRegion);
  ASSERT_TRUE(lab_.resize("host1", inode_, Lab::kImageBytes).is_ok());
  now_and_when_level([&] {
    expect_bytes(kRegion, kCut - kRegion, 'b');
    expect_bytes(kCut, Lab::kImageBytes - kCut, 0);
  });
}

TEST_F(ClearedFill, APunchOfWholeRegionsCopiesNothing) {
  Status done = punch({kRegion, 2 * kRegion});
  ASSERT_TRUE(done.is_ok()) << done.to_string();
  EXPECT_EQ(filled_for_it(), 0u);
  now_and_when_level([&] {
    expect_bytes(kRegion, 2 * kRegion, 0);
    expect_bytes(3 * kRegion, kRegion, 'b');
  });
}

TEST_F(ClearedFill, APunchCopiesAtMostTheRegionsOfItsEnds) {
  Status done = punch({kRegion + 100, 2 * kRegion + 5000});
  ASSERT_TRUE(done.is_ok()) << done.to_string();
  EXPECT_LE(filled_for_it(), 2 * kRegion);
  now_and_when_level([&] {
    expect_bytes(kRegion, 100, 'b');
    expect_bytes(kRegion + 100, 2 * kRegion + 5000, 0);
    expect_bytes(3 * kRegion + 5100, kRegion - 5100, 'b');
  });
}

// It was acknowledged, and what the shared node had not synced yet it gets again from this host.
TEST_F(ClearedFill, APunchOutlivesALossOfPowerOfTheSharedNode) {
  ASSERT_TRUE(punch({kRegion, 2 * kRegion}).is_ok());
  lab_.crash("shared1", Crash::kPowerLoss);
  lab_.start("shared1");
  now_and_when_level([&] {
    expect_bytes(kRegion, 2 * kRegion, 0);
    expect_bytes(3 * kRegion, kRegion, 'b');
  });
}

// The next write of what was cleared: its region is filled for it, with zeros.
TEST_F(ClearedFill, WhatIsWrittenThereNextIsNotUndone) {
  ASSERT_TRUE(punch({kRegion, 2 * kRegion}).is_ok());
  ASSERT_TRUE(lab_.write("host1", *handle_, kRegion + 4096, 'd').is_ok());
  ASSERT_TRUE(cut(2 * kRegion).is_ok());
  ASSERT_TRUE(lab_.write("host1", *handle_, 3 * kRegion, 'e').is_ok());
  now_and_when_level([&] {
    expect_bytes(kRegion, 4096, 0);
    expect_bytes(kRegion + 4096, 4096, 'd');
    expect_bytes(kRegion + 8192, 2 * kRegion - 8192, 0);
    expect_bytes(3 * kRegion, 4096, 'e');
  });
}

// This host's copy has what it cleared, or what it had before the other host's tenure: neither goes to the replica.
TEST_F(ClearedFill, WhatTheSharedNodeRefusedToClearIsShippedAsItIsThere) {
  lab_.world.inject("shared1", FileFault{1, 1, static_cast<uint16_t>(FileOp::kPunch), "/brick", 5});
  ASSERT_FALSE(punch({kRegion, 2 * kRegion}).is_ok()) << "no fault came";
  const std::string data = site_.mark("host1", "refused");
  ASSERT_NE(data, "");
  for (uint64_t at = kRegion; at < 3 * kRegion; at += 4096) {
    auto there = lab_.read("host1", *handle_, at);
    ASSERT_TRUE(there.is_ok()) << there.status().to_string();
    const std::string shown = site_.ask(data, "bytes=" + std::to_string(at) + "-" + std::to_string(at + 4095));
    ASSERT_EQ(shown, std::string(4096, static_cast<char>(*there))) << "at " << at;
  }
  now_and_when_level([&] { expect_bytes(3 * kRegion, kRegion, 'b'); });
}

}  // namespace
}  // namespace tidemark::sim
