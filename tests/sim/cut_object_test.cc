// A data object is cut short behind its daemon's back, while that has it open: what is gone is never read as zeros, nor made
// a hole by a later write. The host's copy is filled anew from the shared one; the shared node says that its own is damaged.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr uint64_t kLeft = 8192, kGone = 8192;
constexpr uint64_t kLast = Lab::kImageBytes - 4096;

class CutObjectTest : public testing::TestWithParam<uint64_t> {
 protected:
  void begin() {
    auto opened = lab_.open_filled("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
    lab_.world.run_for(seconds(5));   // staged: only the guest reads
  }
  void cut(const std::string& node, uint64_t left = kLeft) {
    for (const std::string& object : lab_.objects(node)) {
      whole_[{node, object}] = lab_.world.files(node, "/").at(object).size();
      Status s = lab_.world.cut_short(node, object, left);
      ASSERT_TRUE(s.is_ok()) << s.to_string();
    }
  }
  // By somebody who thinks that the length was all: what it had is zeros.
  void lengthen() {
    for (const auto& [object, bytes] : whole_) {
      Status s = lab_.world.cut_short(object.first, object.second, bytes);
      ASSERT_TRUE(s.is_ok()) << s.to_string();
    }
  }
  // Another host's, of what was written before it was cut: what it had, or an error.
  void other_reads(uint64_t offset = kGone) {
    if (reader_.value == 0) {
      auto opened = lab_.open("host2");
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      reader_ = *opened;
    }
    auto got = lab_.read("host2", reader_, offset);
    EXPECT_TRUE(!got.is_ok() || *got == 'a') << int{*got} << " at " << offset;
  }
  // At a region a second.
  void begin_slow() {
    lab_.resync_rate = Lab::kRegion;
    lab_.crash("host1", Crash::kKill);
    lab_.start("host1");
    begin();
  }
  bool resyncing() { return lab_.engine("host1").status_json().find("\"resync\":{") != std::string::npos; }
  void expect_level_everywhere() {
    lab_.world.run_for(seconds(1));   // the holder has heard of it
    expect_level();
    auto got = lab_.read("host2", reader_, kGone);
    ASSERT_TRUE(got.is_ok()) << got.status().to_string();
    EXPECT_EQ(*got, 'a');
    EXPECT_NE(lab_.shared_status().find("\"outdated\":false"), std::string::npos) << lab_.shared_status();
    EXPECT_EQ(lab_.shared_status().find("cut short"), std::string::npos) << lab_.shared_status();
  }
  void found_then_crash(const std::string& node, Crash kind) {
    begin();
    cut("shared1");
    other_reads();
    lab_.world.run_for(std::chrono::milliseconds(GetParam() * 900));
    lab_.crash(node, kind);
    lengthen();
    lab_.start(node);
    other_reads();
    if (node == "host1") {
      auto opened = lab_.open("host1");
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      handle_ = *opened;
      ASSERT_TRUE(lab_.write("host1", handle_, 0, 'a').is_ok());   // whoever writes finds out
    }
    expect_level_everywhere();
  }
  // host1 is alone, has written there, and knows of the cut; its daemon ends.
  void alone_cut_and_long_again() {
    begin();
    lab_.world.partition("host1", "shared1");
    ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
    cut("host1");
    EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
    lab_.world.run_for(std::chrono::milliseconds(10));
    lab_.crash("host1", GetParam() % 2 == 0 ? Crash::kKill : Crash::kPowerLoss);
    lengthen();
  }
  void host1_in(Duration time) {
    lab_.start("host1");
    lab_.world.heal_all();
    lab_.world.run_for(time);
    auto opened = lab_.open("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
  }
  Result<std::string> take_at_host(const std::string& request) {
    return lab_.wait<Result<std::string>>([&](auto done) { lab_.engine("host1").takeover(request, std::move(done)); });
  }
  // Its holder, which is level, has given it back; then the shared copy is found cut short.
  void given_back_and_cut() {
    begin();
    auto stopped = lab_.wait<Status>([&](auto done) { lab_.engine("host1").stop(seconds(20), std::move(done)); });
    ASSERT_TRUE(stopped.is_ok()) << stopped.to_string();
    lab_.crash("host1", Crash::kKill);
    cut("shared1");
    other_reads();
  }
  void host1_again() {
    lab_.start("host1");
    auto opened = lab_.open("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
  }
  void expect_byte(uint64_t offset, uint8_t byte, uint64_t length = 4096) {
    auto got = lab_.read("host1", handle_, offset, length);
    ASSERT_TRUE(got.is_ok()) << got.status().to_string();
    EXPECT_EQ(*got, byte) << offset;
  }
  void expect_level() {
    ASSERT_TRUE(lab_.healthy("host1", seconds(20))) << lab_.engine("host1").status_json();
    EXPECT_EQ(lab_.verify("host1"), "");
    expect_byte(kGone, 'a');
  }

  Lab lab_{GetParam()};
  fs::HandleId handle_, reader_;
  std::map<std::pair<std::string, std::string>, uint64_t> whole_;   // node, object: bytes
};

TEST_P(CutObjectTest, AReadOfTheHostsIsAnsweredFromTheSharedCopyAndTheCopyFilledAnew) {
  begin();
  cut("host1");
  expect_byte(kGone, 'a');
  lab_.world.run_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(lab_.engine("host1").healthy()) << "its copy is not whole";
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'b').is_ok());
  expect_level();
  expect_byte(kLast, 'b');
}

TEST_P(CutObjectTest, AWriteThatMustReadThereFirstMeetsItToo) {
  begin();
  cut("host1");
  ASSERT_TRUE(lab_.write("host1", handle_, kLast + 512, 'b', 1024).is_ok());
  expect_level();
  expect_byte(kGone, 'a');
}

TEST_P(CutObjectTest, AFlushMeetsIt) {
  begin();
  cut("host1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'b').is_ok());
  ASSERT_TRUE(lab_.flush("host1", handle_).is_ok());
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'b').is_ok());
  expect_level();
  expect_byte(0, 'b');
  expect_byte(kLast, 'b');
}

TEST_P(CutObjectTest, VerifyMeetsIt) {
  begin();
  cut("host1");
  EXPECT_NE(lab_.verify("host1"), "");
  expect_level();
}

// No other copy has what it acknowledged: an error, and the two are not called level.
TEST_P(CutObjectTest, OfAHostThatIsAloneItIsAnErrorAndNothingIsWrittenBeyond) {
  begin();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  cut("host1");
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  EXPECT_FALSE(lab_.write("host1", handle_, kLast, 'b').is_ok()) << "what lies before it would become a hole";
  EXPECT_FALSE(lab_.flush("host1", handle_).is_ok());
  expect_byte(0, 'c');
  lab_.world.heal_all();
  lab_.world.run_for(seconds(20));
  for (auto [offset, byte] : {std::pair<uint64_t, uint8_t>{0, 'c'}, {kGone, 'a'}, {kLast, 'a'}}) {
    auto got = lab_.read("host1", handle_, offset);
    EXPECT_TRUE(!got.is_ok() || *got == byte) << offset;
  }
  EXPECT_FALSE(lab_.engine("host1").healthy());
}

// Its length says nothing of what is in it: it does not count before an operator says so.
TEST_P(CutObjectTest, OfAHostThatIsAloneOneThatIsLongAgainDoesNotCountAfterAStart) {
  alone_cut_and_long_again();
  host1_in(seconds(10));
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  EXPECT_FALSE(lab_.write("host1", handle_, 0, 'd').is_ok());
  EXPECT_NE(lab_.engine("host1").status_json().find("was cut short"), std::string::npos) << lab_.engine("host1").status_json();
  other_reads();
  lab_.crash("host1", Crash::kKill);
  host1_in(seconds(10));
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  other_reads();
  auto taken = take_at_host(R"({"images":["/disk.img"],"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  ASSERT_TRUE(lab_.healthy("host1", seconds(30))) << lab_.engine("host1").status_json();
  expect_byte(0, 'c');
  expect_byte(kGone, 0);
  EXPECT_EQ(lab_.verify("host1"), "");
  lab_.crash("host1", Crash::kPowerLoss);   // and so it stays
  host1_again();
  expect_byte(kGone, 0);
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'd').is_ok());
  ASSERT_TRUE(lab_.healthy("host1", seconds(30)));
  EXPECT_EQ(lab_.verify("host1"), "");
}

TEST_P(CutObjectTest, OneThatAStartHasFoundShortDoesNotCountEither) {
  begin();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  lab_.crash("host1", Crash::kPowerLoss);
  cut("host1");
  host1_in(seconds(3));
  auto taken = take_at_host(R"({"images":["/disk.img"],"accept_loss":true})");
  ASSERT_FALSE(taken.is_ok()) << "it is short";
  EXPECT_NE(taken.status().message().find("cut short"), std::string::npos) << taken.status().to_string();
  lengthen();
  lab_.world.run_for(seconds(10));
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  other_reads();
}

// The other word: the shared copy goes on, without what the host wrote alone.
TEST_P(CutObjectTest, OfAHostThatIsAloneItIsFilledAnewOnceItsTenureWasTaken) {
  alone_cut_and_long_again();
  host1_in(seconds(10));
  auto taken = lab_.take_at_shared(R"({"images":["/disk.img"],"force":true,"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  lab_.world.run_for(seconds(10));
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'd').is_ok());
  expect_level();
}

// Its recovery has been granted the image anew: the tenure in which it was alone is over, and nobody has taken it.
TEST_P(CutObjectTest, OfAHostThatWasAloneItIsNotGivenUpWhereItsRecoveryWasCutShort) {
  begin_slow();
  lab_.world.partition("host1", "shared1");
  for (uint64_t at = 0; at < Lab::kImageBytes; at += Lab::kRegion) ASSERT_TRUE(lab_.write("host1", handle_, at, 'c').is_ok());
  lab_.crash("host1", Crash::kKill);
  lab_.world.heal_all();
  lab_.start("host1");
  ASSERT_TRUE(lab_.world.run_until([&] { return resyncing(); }, seconds(20)));
  const bool found_by_start = GetParam() % 2 == 0;
  if (!found_by_start) {
    cut("host1");
    lab_.world.run_for(seconds(3));
  }
  lab_.crash("host1", Crash::kKill);
  if (found_by_start) cut("host1");
  else lengthen();
  host1_in(seconds(10));
  EXPECT_NE(lab_.engine("host1").status_json().find("was cut short"), std::string::npos) << lab_.engine("host1").status_json();
  for (uint64_t at : {uint64_t{0}, kGone}) EXPECT_FALSE(lab_.read("host1", handle_, at).is_ok()) << at;
  auto taken = lab_.take_at_shared(R"({"images":["/disk.img"],"force":true})");
  EXPECT_EQ(taken.status().code(), Code::kBusy) << "without a word for what is lost";
  if (found_by_start) lengthen();
  taken = take_at_host(R"({"images":["/disk.img"],"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  ASSERT_TRUE(lab_.healthy("host1", seconds(30))) << lab_.engine("host1").status_json();
  expect_byte(0, 'c');
  expect_byte(kGone, 0);
  EXPECT_EQ(lab_.verify("host1"), "");
}

// What a write beyond the cut makes of it looks like a hole.
TEST_P(CutObjectTest, OfAHostThatIsAloneNothingBeforeAWriteBeyondItIsReadAsZeros) {
  begin();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  cut("host1");
  Status wrote = lab_.write("host1", handle_, 2 * Lab::kRegion, 'b');
  EXPECT_FALSE(lab_.flush("host1", handle_).is_ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
    EXPECT_FALSE(lab_.read("host1", handle_, 2 * Lab::kRegion - 4096).is_ok());
    lab_.world.run_for(seconds(2));
  }
  EXPECT_FALSE(lab_.engine("host1").healthy());
}

// Nor before any flush; and a write of less than a block there does not make zeros of the rest.
TEST_P(CutObjectTest, WhatLiesBeforeAWriteBeyondItIsNotReadAsZeros) {
  begin();
  cut("host1");
  ASSERT_TRUE(lab_.write("host1", handle_, 2 * Lab::kRegion, 'b').is_ok());
  ASSERT_TRUE(lab_.write("host1", handle_, Lab::kRegion + 512, 'd', 1024).is_ok());
  expect_byte(kGone, 'a');
  expect_byte(Lab::kRegion, 'a', 512);
  expect_byte(2 * Lab::kRegion, 'b');
  expect_level();
}

TEST_P(CutObjectTest, OfAHostThatIsAloneItIsAnError) {
  begin();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  cut("host1");
  ASSERT_TRUE(lab_.write("host1", handle_, 2 * Lab::kRegion, 'b').is_ok());
  if (GetParam() % 2 == 0) {
    EXPECT_FALSE(lab_.write("host1", handle_, Lab::kRegion + 512, 'd', 1024).is_ok());
  }
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  EXPECT_FALSE(lab_.read("host1", handle_, 2 * Lab::kRegion - 4096).is_ok());
}

// Afterwards nothing would show that it had been cut.
TEST_P(CutObjectTest, OfAHostThatIsAloneItsEndIsNotWritten) {
  begin();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  cut("host1");
  EXPECT_FALSE(lab_.write("host1", handle_, kLast, 'b').is_ok());
  EXPECT_FALSE(lab_.read("host1", handle_, kGone).is_ok());
  expect_byte(0, 'c');
}

TEST_P(CutObjectTest, AWriteToItsEndMeetsIt) {
  begin();
  cut("host1");
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'b').is_ok());
  expect_byte(kGone, 'a');
  expect_level();
  expect_byte(kLast, 'b');
}

TEST_P(CutObjectTest, AWriteToTheEndOfTheSharedOneMeetsIt) {
  begin();
  cut("shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'b').is_ok());
  EXPECT_NE(lab_.shared_status().find("\"outdated\":true"), std::string::npos) << lab_.shared_status();
  EXPECT_FALSE(lab_.engine("host1").healthy());
  lab_.world.run_for(seconds(30));
  EXPECT_FALSE(lab_.engine("host1").healthy()) << "the rest of it is not there";
  expect_byte(kGone, 'a');
}

TEST_P(CutObjectTest, TheSharedNodeSaysThatItsCopyIsDamaged) {
  begin();
  cut("shared1");
  EXPECT_NE(lab_.verify("host1"), "") << "it is not level";
  auto says = [&](const char* what) { return lab_.shared_status().find(what) != std::string::npos; };
  EXPECT_TRUE(lab_.world.run_until([&] { return says("it was cut short"); }, seconds(5))) << lab_.shared_status();
  EXPECT_TRUE(says("\"healthy\":false"));
  ASSERT_TRUE(lab_.write("host1", handle_, kLast, 'b').is_ok()) << "the host goes on with its own copy";
  expect_byte(kLast, 'b');
  expect_byte(kGone, 'a');
}

// The length says nothing of what is in it.
TEST_P(CutObjectTest, ASharedOneThatIsLongAgainCountsOnceAllOfItWasCompared) {
  begin();
  cut("shared1");
  other_reads();
  lengthen();
  for (int i = 0; i < 5; ++i) other_reads();
  expect_level_everywhere();
}

TEST_P(CutObjectTest, SoItDoesWhereTheHoldersFlushHasFoundIt) {
  begin();
  other_reads(0);
  cut("shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'a').is_ok());
  ASSERT_TRUE(lab_.flush("host1", handle_).is_ok());
  lengthen();
  for (int i = 0; i < 5; ++i) other_reads();
  expect_level_everywhere();
}

TEST_P(CutObjectTest, SoItDoesAfterAPowerCutOfTheSharedNode) { found_then_crash("shared1", Crash::kPowerLoss); }
TEST_P(CutObjectTest, SoItDoesAfterAKillOfTheSharedNode) { found_then_crash("shared1", Crash::kKill); }
TEST_P(CutObjectTest, SoItDoesAfterAPowerCutOfTheHolder) { found_then_crash("host1", Crash::kPowerLoss); }
TEST_P(CutObjectTest, SoItDoesAfterAKillOfTheHolder) { found_then_crash("host1", Crash::kKill); }

// Found again while its holder is away: what that had compared by then counts no more.
TEST_P(CutObjectTest, OneThatIsCutOnceMoreIsComparedFromTheBeginning) {
  begin_slow();
  cut("shared1");
  other_reads();
  lengthen();
  ASSERT_TRUE(lab_.world.run_until([&] { return resyncing(); }, seconds(20)));
  lab_.world.run_for(std::chrono::milliseconds(2500));
  ASSERT_TRUE(resyncing()) << lab_.engine("host1").status_json();
  lab_.world.partition("host1", "shared1");
  cut("shared1");
  lab_.crash("shared1", GetParam() % 2 == 0 ? Crash::kKill : Crash::kPowerLoss);
  lab_.start("shared1");
  lengthen();
  lab_.world.heal_all();
  expect_level_everywhere();
}

// The host's own: it is not the shared one that its status names.
TEST_P(CutObjectTest, AResyncThatMeetsItsSourceCutShortBlamesNotTheOtherCopy) {
  begin_slow();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c', Lab::kImageBytes).is_ok());
  lab_.world.heal_all();
  ASSERT_TRUE(lab_.world.run_until([&] { return resyncing(); }, seconds(20)));
  cut("host1", Lab::kImageBytes - 4096);   // a sync meets it, long before a read
  for (int i = 0; i < 40; ++i) {
    lab_.world.run_for(std::chrono::milliseconds(500));
    const std::string status = lab_.engine("host1").status_json();
    ASSERT_EQ(status.find("the shared copy is damaged"), std::string::npos) << status;
    ASSERT_FALSE(lab_.engine("host1").healthy());
  }
}

// Nobody has a copy that is whole: an operator's word, as for all that is known to be lacking.
TEST_P(CutObjectTest, AnOperatorMayTakeItAsItIs) {
  begin();
  cut("shared1");
  other_reads();
  lab_.crash("host1", Crash::kPowerLoss);
  const std::string word = R"({"images":["/disk.img"],"force":true)";
  auto taken = lab_.take_at_shared(word + "}");
  EXPECT_FALSE(taken.is_ok()) << *taken;
  lengthen();
  lab_.world.run_for(seconds(3));
  EXPECT_FALSE(lab_.read("host2", reader_, kGone).is_ok());
  EXPECT_FALSE(lab_.take_at_shared(word + "}").is_ok());
  taken = lab_.take_at_shared(word + R"(,"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  lab_.world.run_for(seconds(6));   // opened anew
  auto got = lab_.read("host2", reader_, 0);
  ASSERT_TRUE(got.is_ok()) << got.status().to_string();
  EXPECT_EQ(*got, 'a');
  ASSERT_TRUE(lab_.write("host2", reader_, kGone, 'd').is_ok());
  ASSERT_TRUE(lab_.healthy("host2"));
  EXPECT_EQ(lab_.verify("host2"), "");
}

// Whatever any host has: what was accepted is what everybody reads.
TEST_P(CutObjectTest, WhatAnOperatorHasTakenIsWhatAllHostsRead) {
  given_back_and_cut();
  lengthen();
  lab_.world.run_for(seconds(3));
  auto taken = lab_.take_at_shared(R"({"images":["/disk.img"],"force":true,"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  lab_.world.run_for(seconds(6));
  auto accepted = lab_.read("host2", reader_, kGone);
  ASSERT_TRUE(accepted.is_ok()) << accepted.status().to_string();
  host1_again();
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'c').is_ok());
  expect_byte(kGone, *accepted);
  ASSERT_TRUE(lab_.healthy("host1"));
  EXPECT_EQ(lab_.verify("host1"), "");
}

TEST_P(CutObjectTest, OneThatIsStillShortIsTakenByNobody) {
  begin();
  cut("shared1");
  other_reads();
  lab_.crash("host1", Crash::kPowerLoss);
  auto taken = lab_.take_at_shared(R"({"images":["/disk.img"],"force":true,"accept_loss":true})");
  ASSERT_FALSE(taken.is_ok()) << *taken;
  EXPECT_NE(taken.status().message().find("cut short"), std::string::npos) << taken.status().to_string();
  host1_again();   // and whoever has a whole one goes on with it
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'a').is_ok());
  lengthen();
  expect_level_everywhere();
}

// A host that has nothing to mend it with gets no tenure: it would lock out the one that has.
TEST_P(CutObjectTest, OneThatNobodyHoldsIsMendedByAHostWithAWholeCopy) {
  given_back_and_cut();
  lengthen();
  EXPECT_FALSE(lab_.write("host2", reader_, 0, 'c').is_ok());
  EXPECT_NE(lab_.verify("host2"), "");
  other_reads();
  host1_again();
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'a').is_ok());
  expect_level_everywhere();
}

INSTANTIATE_TEST_SUITE_P(Seeds, CutObjectTest, testing::Range<uint64_t>(1, 9));

}  // namespace
}  // namespace tidemark::sim
