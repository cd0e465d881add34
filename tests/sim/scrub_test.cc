// Blocks that rot on one copy behind the daemons' backs: a scrub finds them and repairs them from the good copy, or says that
// it cannot know. Never does it overwrite the good copy, whatever was written, moved or restarted since the scrub before.
#include <nlohmann/json.hpp>

#include "fs/scrubber.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using nlohmann::json;
using std::chrono::seconds;

constexpr uint64_t kBlock = 4096, kBlocks = Lab::kImageBytes / kBlock;

class ScrubTest : public testing::TestWithParam<uint64_t> {
 protected:
  void begin() {
    auto opened = lab_.open("host1", true);
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
    ASSERT_TRUE(lab_.write("host1", handle_, 0, 'a', Lab::kImageBytes).is_ok());
    quiet();
  }
  void write(uint64_t offset, uint8_t byte) {
    Status wrote = lab_.write("host1", handle_, offset, byte, kBlock);
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
  }
  // All written is flushed, and the dirty-region log is clean.
  void quiet() {
    ASSERT_TRUE(lab_.flush("host1", handle_).is_ok());
    lab_.world.run_for(seconds(40));
  }
  void restart(const std::string& node, Crash kind) {
    lab_.crash(node, kind);
    lab_.world.run_for(seconds(1));
    lab_.start(node);
    if (node == "host1") {
      auto again = lab_.open("host1");
      ASSERT_TRUE(again.is_ok()) << again.status().to_string();
      handle_ = *again;
    }
    ASSERT_TRUE(lab_.healthy("host1"));
  }
  json scrub() {
    Result<std::string> r = Status(Code::kUnavailable, "not asked");
    // The link may be noticed to be dead only now.
    for (int i = 0; i < 5 && r.status().code() == Code::kUnavailable; ++i) {
      if (i > 0) lab_.world.run_for(seconds(5));
      r = lab_.wait<Result<std::string>>(
          [&](auto done) { lab_.engine("host1").scrubber().start({}, [](uint64_t, uint64_t) {}, std::move(done)); });
    }
    EXPECT_TRUE(r.is_ok()) << r.status().to_string();
    lab_.world.run_for(seconds(1));        // what it keeps is committed
    return r ? json::parse(*r) : json();
  }
  static std::string repaired(const json& result) {   // "host@65536 shared@0"
    std::string out;
    for (const json& image : result["images"])
      for (const json& r : image["repaired"])
        out += (out.empty() ? "" : " ") + r["copy"].get<std::string>() + "@" + std::to_string(r["offset"].get<uint64_t>());
    return out;
  }
  static bool undecided(const json& result, uint64_t offset) {
    for (const json& u : result["images"][0]["undecided"]) {
      uint64_t at = u["offset"], length = u["length"];
      if (offset >= at && offset < at + length) return true;
    }
    return false;
  }
  static constexpr uint64_t kStripeUnit = 64 << 10;
  Bytes copy(const std::string& node) {
    const auto files = lab_.world.files(node, "/");
    const std::vector<std::string> paths = lab_.objects(node);
    Bytes out;
    for (uint64_t unit = 0; unit * kStripeUnit < Lab::kImageBytes; ++unit) {
      const Bytes& object = files.at(paths[unit % paths.size()]);
      auto from = object.begin() + static_cast<ptrdiff_t>(unit / paths.size() * kStripeUnit);
      out.insert(out.end(), from, from + kStripeUnit);
    }
    return out;
  }
  void put(const std::string& node, uint64_t offset, ByteSpan bytes) {
    const std::vector<std::string> paths = lab_.objects(node);
    const uint64_t unit = offset / kStripeUnit;
    Status s = lab_.world.set_bytes(node, paths[unit % paths.size()], unit / paths.size() * kStripeUnit + offset % kStripeUnit, bytes);
    ASSERT_TRUE(s.is_ok()) << s.to_string();
  }
  void rot(const std::string& node, uint64_t offset) {
    uint8_t byte = copy(node)[offset + 100] ^ 0xff;
    put(node, offset + 100, {&byte, 1});
  }
  void spoil(const std::string& node, uint64_t offset) {
    const std::vector<std::string> paths = lab_.objects(node);
    const uint64_t unit = offset / kStripeUnit;
    const Extent range{unit / paths.size() * kStripeUnit + offset % kStripeUnit, kBlock};
    Status s = lab_.world.spoil(node, paths[unit % paths.size()], range);
    ASSERT_TRUE(s.is_ok()) << s.to_string();
  }
  void expect_byte(uint64_t offset, uint8_t byte) {
    auto got = lab_.read("host1", handle_, offset);
    ASSERT_TRUE(got.is_ok()) << got.status().to_string();
    EXPECT_EQ(*got, byte);
  }

  // The copies differ and host1 says so, or they are equal; the next scrub mends them.
  void expect_alarm_until_mended() {
    lab_.world.run_for(seconds(20));
    EXPECT_TRUE(copy("host1") == copy("shared1") || !lab_.engine("host1").healthy()) << lab_.engine("host1").status_json();
    json mended = scrub();
    EXPECT_EQ(mended["clean"], true) << mended.dump();
    EXPECT_TRUE(lab_.healthy("host1")) << lab_.engine("host1").status_json();
    EXPECT_EQ(lab_.verify("host1"), "");
  }

  Lab lab_{GetParam()};
  fs::HandleId handle_;
};

TEST_P(ScrubTest, EachCopysRotIsRepairedFromTheOther) {
  begin();
  json first = scrub();
  EXPECT_EQ(first["clean"], true) << first.dump();
  EXPECT_EQ(first["images"][0]["bytes_vouched"], Lab::kImageBytes) << first.dump();
  rot("host1", 0);
  rot("shared1", Lab::kRegion);
  json second = scrub();
  EXPECT_EQ(second["clean"], true) << second.dump();
  EXPECT_EQ(repaired(second), "host@0 shared@65536");
  expect_byte(0, 'a');
  expect_byte(Lab::kRegion, 'a');
  EXPECT_EQ(lab_.verify("host1"), "");
  EXPECT_EQ(repaired(scrub()), "");
}

// The repair was written, and not synced: whatever a loss of power makes of it is on record.
TEST_P(ScrubTest, ARepairThatIsLostWithThePowerIsStillAnAlarm) {
  begin();
  scrub();
  for (uint64_t at = 0; at < kBlocks / 4; ++at) rot("host1", at * kBlock);
  const Bytes rotten = copy("host1");
  lab_.engine("host1").scrubber().start({}, [](uint64_t, uint64_t) {}, [](Result<std::string>) {});
  ASSERT_TRUE(lab_.world.run_until([&] { return copy("host1") != rotten; }, seconds(60)));
  lab_.crash("host1", Crash::kPowerLoss);
  lab_.world.run_for(seconds(1));
  lab_.start("host1");
  auto again = lab_.open("host1");
  ASSERT_TRUE(again.is_ok()) << again.status().to_string();
  handle_ = *again;
  expect_alarm_until_mended();
  expect_byte(0, 'a');
}

// The shared node loses its power while the host's own copy is synced: what was repaired there was never synced.
TEST_P(ScrubTest, ARepairThatTheSharedCopyLostBeforeTheFlushIsStillAnAlarm) {
  begin();
  scrub();
  for (uint64_t at = 0; at < kBlocks / 4; ++at) rot("shared1", at * kBlock);
  rot("host1", 3 * Lab::kRegion);        // so that there is something to sync
  lab_.world.inject("host1", FileFault{1, 1, kSync, ".data", 0, true});
  lab_.engine("host1").scrubber().start({}, [](uint64_t, uint64_t) {}, [](Result<std::string>) {});
  ASSERT_TRUE(lab_.world.run_until([&] { return lab_.world.hung("host1") != 0; }, seconds(60)));
  lab_.crash("shared1", Crash::kPowerLoss);
  lab_.start("shared1");
  lab_.world.run_for(seconds(3));
  lab_.world.release_hung("host1");
  expect_alarm_until_mended();
}

TEST_P(ScrubTest, DigestsOutliveRestarts) {
  begin();
  scrub();
  restart("host1", Crash::kPowerLoss);
  restart("shared1", Crash::kKill);
  write(3 * Lab::kRegion, 'b');          // the tenure goes on with the next epoch
  rot("shared1", 0);
  quiet();
  json result = scrub();
  // The write took its block's digests along: they are of the whole mebibyte.
  EXPECT_TRUE(undecided(result, 0) || repaired(result) == "shared@0") << result.dump();
  EXPECT_EQ(copy("host1")[100], 'a');
}

TEST_P(ScrubTest, BothRottenInOneUnitArePutTogether) {
  begin();
  scrub();
  rot("host1", 4096);
  rot("shared1", 12288);
  json result = scrub();
  EXPECT_EQ(result["clean"], true) << result.dump();
  expect_byte(4096, 'a');
  expect_byte(12288, 'a');
  EXPECT_EQ(lab_.verify("host1"), "");
}

TEST_P(ScrubTest, WithoutADigestNothingIsOverwritten) {
  begin();
  rot("shared1", 8192);
  const Bytes host = copy("host1"), shared = copy("shared1");
  json result = scrub();
  EXPECT_EQ(result["clean"], false) << result.dump();
  EXPECT_EQ(repaired(result), "");
  ASSERT_EQ(result["undecided"], 1) << result.dump();
  EXPECT_TRUE(undecided(result, 8192));
  EXPECT_EQ(copy("host1"), host);
  EXPECT_EQ(copy("shared1"), shared);
  EXPECT_FALSE(lab_.engine("host1").healthy()) << "an undecided block is no good health";
  // A guest's write makes the copies equal again.
  write(8192, 'b');
  quiet();
  EXPECT_EQ(scrub()["clean"], true);
  EXPECT_TRUE(lab_.engine("host1").healthy());
}

// Whether digests are kept or not: what only one copy can read is taken from it.
TEST_P(ScrubTest, WhatOneCopyCannotReadIsTakenFromTheOther) {
  begin();
  for (bool vouched : {false, true}) {
    SCOPED_TRACE(vouched);
    if (vouched) scrub();
    spoil("shared1", 8192);
    spoil("host1", Lab::kRegion + 4096);
    json result = scrub();
    EXPECT_EQ(result["clean"], true) << result.dump();
    EXPECT_EQ(repaired(result), vouched ? "shared@0 host@65536" : "shared@8192 host@69632");
    EXPECT_EQ(copy("host1"), Bytes(Lab::kImageBytes, 'a'));
    EXPECT_EQ(copy("shared1"), Bytes(Lab::kImageBytes, 'a'));
    EXPECT_EQ(repaired(scrub()), "") << "a repaired sector is read again";
    write(8192, 'b');                    // without digests the second time round begins as the first
    write(8192, 'a');
    quiet();
  }
  EXPECT_EQ(lab_.verify("host1"), "");
}

// Guests read from the own copy, whatever the shared one cannot read.
TEST_P(ScrubTest, ABadSectorOfTheSharedCopyIsNoErrorOfAGuest) {
  begin();
  spoil("shared1", 8192);
  expect_byte(8192, 'a');
  EXPECT_EQ(repaired(scrub()), "shared@8192");
}

// A bad sector says nothing of its neighbours: where these differ the copy with the bad sector may be the right one.
TEST_P(ScrubTest, NeighboursOfABadSectorAreNotOverwritten) {
  begin();
  spoil("host1", 8192);
  rot("shared1", 12288);
  json result = scrub();
  EXPECT_EQ(repaired(result), "host@8192");
  EXPECT_TRUE(undecided(result, 12288)) << result.dump();
  EXPECT_EQ(copy("host1"), Bytes(Lab::kImageBytes, 'a'));
  write(12288, 'b');
  quiet();
  EXPECT_EQ(scrub()["clean"], true);
}

// With digests the second scrub puts them together.
TEST_P(ScrubTest, ABadSectorBesideRotOfTheOtherCopy) {
  begin();
  scrub();
  spoil("host1", 8192);
  rot("shared1", 12288);
  EXPECT_TRUE(undecided(scrub(), 12288));
  EXPECT_EQ(scrub()["clean"], true);
  EXPECT_EQ(copy("host1"), Bytes(Lab::kImageBytes, 'a'));
  EXPECT_EQ(copy("shared1"), Bytes(Lab::kImageBytes, 'a'));
}

TEST_P(ScrubTest, WhatNoCopyCanReadIsSaid) {
  begin();
  spoil("host1", 8192);
  spoil("shared1", 8192);
  json result = scrub();
  EXPECT_EQ(repaired(result), "");
  ASSERT_EQ(result["undecided"], 1) << result.dump();
  EXPECT_TRUE(undecided(result, 8192));
  write(8192, 'b');
  quiet();
  EXPECT_EQ(scrub()["clean"], true);
  expect_byte(8192, 'b');
}

// A digest is of what was written last: once its region was written again, an old one must not bring old blocks back.
TEST_P(ScrubTest, ALostWriteIsNotUndoneByAnOldDigest) {
  for (const std::string loser : {"host1", "shared1"}) {
    SCOPED_TRACE(loser);
    if (loser == "host1") begin();
    scrub();
    const uint64_t offset = loser == "host1" ? 0 : Lab::kRegion;
    const Bytes before = copy(loser);
    write(offset, 'b');
    quiet();
    put(loser, offset, ByteSpan(before).subspan(offset, kBlock));
    json result = scrub();
    EXPECT_EQ(repaired(result), "") << result.dump();
    EXPECT_TRUE(undecided(result, offset)) << result.dump();
    EXPECT_EQ(copy(loser == "host1" ? "shared1" : "host1")[offset], 'b');
    write(offset, 'a');
    quiet();
  }
}

TEST_P(ScrubTest, AnotherHostsWritesEndTheDigests) {
  begin();
  scrub();
  lab_.engine("host1").release(handle_);
  auto other = lab_.open("host2");
  ASSERT_TRUE(other.is_ok());
  ASSERT_TRUE(lab_.write("host2", *other, 0, 'c').is_ok());
  ASSERT_TRUE(lab_.flush("host2", *other).is_ok());
  lab_.engine("host2").release(*other);
  auto again = lab_.open("host1");
  ASSERT_TRUE(again.is_ok());
  handle_ = *again;
  write(Lab::kRegion, 'd');
  ASSERT_TRUE(lab_.healthy("host1"));
  quiet();
  put("host1", 0, Bytes(kBlock, 'a'));   // the fill's write was lost: the old block is there again
  json result = scrub();
  EXPECT_EQ(repaired(result), "") << result.dump();
  EXPECT_EQ(copy("shared1")[0], 'c');
}

// Whatever happened before: the right bytes of every block are on at least one copy after a scrub, on both if it said nothing.
TEST_P(ScrubTest, TheGoodCopyIsNeverOverwritten) {
  begin();
  Random& random = lab_.world.random();
  std::vector<uint8_t> model(kBlocks, 'a');
  uint8_t byte = 1;
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    for (uint64_t n = random.below(6); n > 0; --n) {
      uint64_t block = random.below(kBlocks);
      write(block * kBlock, ++byte);
      model[block] = byte;
    }
    if (random.below(3) == 0) restart(random.below(2) == 0 ? "host1" : "shared1", random.below(2) == 0 ? Crash::kKill : Crash::kPowerLoss);
    if (random.below(4) == 0) {
      uint64_t first = random.below(kBlocks);   // by it a host that was restarted takes its tenure up, without which it waits alone
      write(first * kBlock, ++byte);
      model[first] = byte;
      lab_.world.partition("host1", "shared1");
      lab_.world.run_for(seconds(3));
      uint64_t block = random.below(kBlocks);
      write(block * kBlock, ++byte);
      model[block] = byte;
      lab_.world.heal_all();
      lab_.world.run_for(seconds(20));
    }
    if (HasFatalFailure()) return;
    ASSERT_TRUE(lab_.healthy("host1"));
    if (random.below(2) == 0) quiet();
    if (random.below(2) == 0) scrub();
    lab_.world.run_for(seconds(5));        // should the link prove dead, it is resynced now: a resync may spread rot
    ASSERT_TRUE(lab_.healthy("host1"));
    std::vector<uint8_t> struck(kBlocks, 0);
    const Bytes old_host = copy("host1"), old_shared = copy("shared1");
    for (uint64_t n = random.below(4); n > 0; --n) {   // written meanwhile, and not flushed
      uint64_t block = random.below(kBlocks);
      if (struck[block] != 0) continue;
      write(block * kBlock, ++byte);
      model[block] = byte;
      if (random.below(2) != 0) continue;
      struck[block] = 1;                               // one copy's disk loses the write
      bool host = random.below(2) == 0;
      put(host ? "host1" : "shared1", block * kBlock, ByteSpan(host ? old_host : old_shared).subspan(block * kBlock, kBlock));
    }
    for (uint64_t n = random.below(4); n > 0; --n) {
      uint64_t block = random.below(kBlocks);
      if (struck[block]++ == 0) rot(random.below(2) == 0 ? "host1" : "shared1", block * kBlock);
    }
    json result = scrub();
    const Bytes host = copy("host1"), shared = copy("shared1");
    for (uint64_t block = 0; block < kBlocks; ++block) {
      auto right = [&](const Bytes& bytes) {
        return std::all_of(bytes.begin() + block * kBlock, bytes.begin() + (block + 1) * kBlock, [&](uint8_t b) { return b == model[block]; });
      };
      ASSERT_TRUE(right(host) || right(shared)) << "block " << block << " is nowhere any more: " << result.dump();
      bool named = undecided(result, block * kBlock);
      ASSERT_TRUE(named || (right(host) && right(shared))) << "block " << block << " is wrong and not named: " << result.dump();
      if (!named) continue;
      write(block * kBlock, ++byte);
      model[block] = byte;
    }
    if (HasFatalFailure()) return;
    if (result["clean"] == false) {
      EXPECT_EQ(scrub()["clean"], true);     // and the alarm is over
    }
  }
  quiet();
  EXPECT_EQ(scrub()["clean"], true);
  EXPECT_EQ(lab_.verify("host1"), "");
}

INSTANTIATE_TEST_SUITE_P(Seeds, ScrubTest, testing::Range<uint64_t>(1, repeat(21, 5)));

}  // namespace
}  // namespace tidemark::sim
