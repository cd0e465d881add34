// The shared node's catalogue is lost, its bricks with it or not, while a host writes. It is made anew from what its hosts
// know, and it, or the host that writes, dies in the midst of that, again and again.
#include <nlohmann/json.hpp>

#include "tests/sim/stamp_writer.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class RebuildTest : public testing::TestWithParam<uint64_t> {
 protected:
  nlohmann::json shared() { return nlohmann::json::parse(lab_.shared_status()); }
  uint64_t epoch() { return shared()["images"].at(0)["epoch"].get<uint64_t>(); }
  void crash_and_start(const std::string& node, Crash kind) {
    lab_.crash(node, kind);
    if (node == "host1") writer_.crashed();
    lab_.world.run_for(random().in({milliseconds(10), seconds(3)}));
    lab_.start(node);
  }
  Random& random() { return lab_.world.random(); }
  void expect_all(const std::string& host) {
    auto handle = lab_.open(host);
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    EXPECT_GE(stamp_at(lab_, host, *handle, 0), writer_.acknowledged) << host << " lacks what was acknowledged";
    for (uint64_t at = Lab::kRegion; at < Lab::kImageBytes; at += Lab::kRegion) {
      auto byte = lab_.read(host, *handle, at);
      EXPECT_TRUE(byte.is_ok() && *byte == 'a') << host << " at " << at << ": " << byte.status().to_string();
    }
    lab_.engine(host).release(*handle);
  }

  Lab lab_{GetParam()};
  StampWriter writer_{lab_, "host1", 0, milliseconds(50)};
};

TEST_P(RebuildTest, NothingAcknowledgedIsLostAndEpochsOnlyGrow) {
  auto first = lab_.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  lab_.engine("host1").release(*first);
  writer_.turn();
  lab_.world.run_for(random().in({seconds(1), seconds(20)}));
  const uint64_t epoch_before = epoch();

  lab_.crash("shared1", random().coin() ? Crash::kKill : Crash::kPowerLoss);
  std::vector<std::string> lost{"/state"};
  if (random().coin()) lost.insert(lost.end(), {"/brick1", "/brick2"});
  lab_.world.wipe("shared1", lost);
  lab_.world.run_for(random().in({milliseconds(10), seconds(8)}));
  lab_.rebuild_from = {"host1", "host2"};
  lab_.start("shared1");
  for (uint64_t left = random().below(4); left > 0; --left) {
    lab_.world.run_for(random().in({milliseconds(1), seconds(2)}));
    if (random().coin()) crash_and_start("shared1", random().coin() ? Crash::kKill : Crash::kPowerLoss);
    else crash_and_start("host1", Crash::kKill);   // it may be alone: with its power goes what was not flushed
  }
  const uint64_t acknowledged = writer_.acknowledged;
  lab_.world.run_for(seconds(10));
  EXPECT_GT(writer_.acknowledged, acknowledged) << "it writes on meanwhile";
  writer_.stopped = true;
  ASSERT_TRUE(lab_.healthy("host1")) << lab_.engine("host1").status_json();
  ASSERT_TRUE(lab_.healthy("host2")) << lab_.engine("host2").status_json();
  EXPECT_TRUE(shared()["rebuilding"].is_null());
  EXPECT_GE(epoch(), epoch_before);
  crash_and_start("host1", Crash::kKill);          // nobody holds an open handle
  ASSERT_TRUE(lab_.healthy("host1")) << lab_.engine("host1").status_json();
  EXPECT_EQ(lab_.verify("host1"), "");
  expect_all("host1");
  expect_all("host2");

  auto second = lab_.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  ASSERT_TRUE(lab_.write("host2", *second, 3 * Lab::kRegion, 'b').is_ok());
  EXPECT_GT(epoch(), epoch_before) << "a new tenure has an epoch of its own";
  ASSERT_TRUE(lab_.healthy("host2"));
  EXPECT_EQ(lab_.verify("host2"), "");
}

INSTANTIATE_TEST_SUITE_P(Seeds, RebuildTest, testing::Range<uint64_t>(1, 41));

}  // namespace
}  // namespace tidemark::sim
