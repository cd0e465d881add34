// `mirror = none` gives the shared copy up, and `sync` begins an empty one: the host that holds the image may hear of neither
// before both have happened, and takes what is there for level. Nobody is served from it before all of it was compared.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

class GivenUpCopyTest : public testing::TestWithParam<uint64_t> {
 protected:
  void begin() {
    auto opened = lab_.open_filled("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
    lab_.world.run_for(seconds(2));
  }
  void to_none_and_back() {
    for (const char* policy : {"none", "sync"}) {
      Status set = lab_.set_mirror(policy);
      ASSERT_TRUE(set.is_ok()) << set.to_string();
    }
  }
  // Before the holder could hear of it: its link is gone until then, or its questions are on their way.
  void unheard(bool link_lost) {
    begin();
    if (link_lost) lab_.world.partition("host1", "shared1");
    to_none_and_back();
    if (link_lost) lab_.world.heal_all();
  }
  // The bytes are there, or nothing is read: never zeros.
  void other_reads(fs::HandleId handle) {
    for (uint64_t at = 0; at < Lab::kImageBytes; at += Lab::kRegion) {
      auto got = lab_.read("host2", handle, at);
      EXPECT_TRUE(!got.is_ok() || *got == 'a') << int{*got} << " at " << at;
    }
  }
  void expect_level(const std::string& host, fs::HandleId handle, uint8_t first = 'a') {
    ASSERT_TRUE(lab_.healthy(host, seconds(60))) << lab_.engine(host).status_json();
    EXPECT_EQ(lab_.verify(host), "");
    for (uint64_t at = 0; at < Lab::kImageBytes; at += Lab::kRegion) {
      auto got = lab_.read(host, handle, at);
      ASSERT_TRUE(got.is_ok()) << got.status().to_string();
      EXPECT_EQ(*got, at == 0 ? first : 'a') << at;
    }
    EXPECT_NE(lab_.shared_status().find("\"outdated\":false"), std::string::npos) << lab_.shared_status();
    EXPECT_EQ(lab_.shared_status().find("given up"), std::string::npos) << lab_.shared_status();
  }

  Lab lab_{GetParam()};
  fs::HandleId handle_;
};

TEST_P(GivenUpCopyTest, IsMadeLevelThoughItsHolderHeardOfNeitherChange) {
  unheard(GetParam() % 2 == 0);
  lab_.world.run_for(seconds(10));   // nobody uses it
  expect_level("host1", handle_);
}

TEST_P(GivenUpCopyTest, ServesNoZerosToTheNextHost) {
  unheard(GetParam() % 2 == 0);
  auto reader = lab_.open("host2");
  ASSERT_TRUE(reader.is_ok()) << reader.status().to_string();
  other_reads(*reader);
  lab_.engine("host1").release(handle_);
  other_reads(*reader);
  ASSERT_TRUE(lab_.world.run_until([&] { return lab_.write("host2", *reader, 0, 'b').is_ok(); }, seconds(60)));
  expect_level("host2", *reader, 'b');
}

TEST_P(GivenUpCopyTest, IsNotLevelByAWriteOfAHolderThatHeardOfNeither) {
  unheard(GetParam() % 2 == 0);
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'b').is_ok());
  ASSERT_TRUE(lab_.flush("host1", handle_).is_ok());
  expect_level("host1", handle_, 'b');
}

TEST_P(GivenUpCopyTest, NorWhereAnyOfThemIsKilledMeanwhile) {
  unheard(GetParam() % 2 == 0);
  lab_.world.run_for(std::chrono::milliseconds(GetParam() * 40));
  const std::string dies = GetParam() % 3 == 0 ? "shared1" : "host1";
  lab_.crash(dies, GetParam() % 5 == 0 ? Crash::kPowerLoss : Crash::kKill);
  lab_.start(dies);
  Result<fs::HandleId> reader = Status(Code::kNotFound, "not open");
  ASSERT_TRUE(lab_.world.run_until([&] { return (reader = lab_.open("host2")).is_ok(); }, seconds(30)));
  other_reads(*reader);
  if (dies == "host1") {
    auto opened = lab_.open("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    handle_ = *opened;
  }
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'b').is_ok());
  expect_level("host1", handle_, 'b');
}

// The holder knows, and says so at once: one comparison, and writes go on.
TEST_P(GivenUpCopyTest, IsComparedOnceByAHolderThatHeardOfBoth) {
  begin();
  ASSERT_TRUE(lab_.set_mirror("none").is_ok());
  lab_.world.run_for(seconds(2));
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'b').is_ok());
  ASSERT_TRUE(lab_.set_mirror("sync").is_ok());
  lab_.world.run_for(std::chrono::milliseconds(GetParam() * 10));
  ASSERT_TRUE(lab_.write("host1", handle_, 0, 'b').is_ok());
  lab_.world.run_for(seconds(2));
  expect_level("host1", handle_, 'b');
}

INSTANTIATE_TEST_SUITE_P(Seeds, GivenUpCopyTest, testing::Range<uint64_t>(1, 9));

}  // namespace
}  // namespace tidemark::sim
