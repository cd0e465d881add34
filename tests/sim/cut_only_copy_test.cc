// A host's copy that was cut short while no other had all of it, in other ways than by going on alone; and its end.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class CutOnlyCopyTest : public testing::TestWithParam<uint64_t> {
 protected:
  void cut() {
    for (const std::string& object : lab_.objects("host1")) {
      whole_[object] = lab_.world.files("host1", "/").at(object).size();
      Status s = lab_.world.cut_short("host1", object, 8192);
      ASSERT_TRUE(s.is_ok()) << s.to_string();
    }
  }
  void lengthen() {
    for (const auto& [object, bytes] : whole_) {
      Status s = lab_.world.cut_short("host1", object, bytes);
      ASSERT_TRUE(s.is_ok()) << s.to_string();
    }
  }
  bool resyncing() { return lab_.engine("host1").status_json().find("\"resync\":{") != std::string::npos; }

  Lab lab_{GetParam()};
  std::map<std::string, uint64_t> whole_;   // object: bytes
};

// The shared node lost its power, and with it what was not flushed there. Until that is copied there again, only the
// host's copy has it, whoever asks, and whichever run of its daemon.
TEST_P(CutOnlyCopyTest, InAResyncOfWhatTheSharedNodeLostItIsNotGivenUpByASuccessor) {
  lab_.resync_rate = Lab::kRegion;
  lab_.pause = true;   // so that it does not go on alone meanwhile
  lab_.crash("host1", Crash::kKill);
  lab_.start("host1");
  auto handle = lab_.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab_.world.run_for(seconds(5));
  ASSERT_TRUE(lab_.write("host1", *handle, 0, 'c', Lab::kImageBytes).is_ok());
  lab_.crash("shared1", Crash::kPowerLoss);
  lab_.start("shared1");
  ASSERT_TRUE(lab_.world.run_until([&] { return resyncing(); }, seconds(20)));
  cut();
  EXPECT_FALSE(lab_.read("host1", *handle, 3 * Lab::kRegion).is_ok());
  lab_.world.run_for(milliseconds(100));
  lab_.crash("host1", Crash::kKill);
  lengthen();
  lab_.succeed("host1");
  lab_.world.run_for(seconds(10));
  for (uint64_t at = 0; at < Lab::kImageBytes; at += Lab::kRegion) {
    auto got = lab_.read("host1", *handle, at);
    EXPECT_TRUE(!got.is_ok() || *got == 'c') << "at " << at << ": what was acknowledged is an older block";
  }
  EXPECT_NE(lab_.engine("host1").status_json().find("was cut short"), std::string::npos);
  auto taken = lab_.wait<Result<std::string>>([&](auto done) {
    lab_.engine("host1").takeover(R"({"images":["/disk.img"],"accept_loss":true})", std::move(done));
  });
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  ASSERT_TRUE(lab_.healthy("host1")) << lab_.engine("host1").status_json();
  EXPECT_EQ(lab_.verify("host1"), "");
}

TEST_P(CutOnlyCopyTest, ItsBlocksAreFreedWithItsName) {
  auto handle = lab_.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  lab_.world.partition("host1", "shared1");
  ASSERT_TRUE(lab_.write("host1", *handle, 0, 'c').is_ok());
  cut();
  EXPECT_FALSE(lab_.read("host1", *handle, 3 * Lab::kRegion).is_ok());
  lab_.world.run_for(milliseconds(10));
  lab_.crash("host1", Crash::kKill);
  lengthen();
  lab_.world.heal_all();
  lab_.start("host1");
  lab_.world.run_for(seconds(10));
  Status gone = lab_.wait<Status>([&](auto done) {
    lab_.engine("host1").unlink(InodeNumber(1), "disk.img", false, std::move(done));
  });
  ASSERT_TRUE(gone.is_ok()) << gone.to_string();
  auto left = [&] {
    std::string out;
    for (const auto& [path, bytes] : lab_.world.files("host1", "/brick1/objects")) out += path + " ";
    return out;
  };
  EXPECT_TRUE(lab_.world.run_until([&] { return left().empty(); }, seconds(30))) << left();
}

INSTANTIATE_TEST_SUITE_P(Seeds, CutOnlyCopyTest, testing::Range<uint64_t>(1, 9));

}  // namespace
}  // namespace tidemark::sim
