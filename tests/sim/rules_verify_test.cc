// What `verify` may call equal: all copies, compared at its cut. One that it could not compare is none of them.
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;
using nlohmann::json;

class RulesOfVerify : public testing::Test {
 protected:
  RulesOfVerify() {
    auto opened = lab.open_filled("host1");
    if (!opened) ADD_FAILURE() << opened.status().to_string();
    else image = *opened;
    lab.world.run_for(seconds(10));
  }
  void begin(const std::string& host) {
    said.reset();
    lab.engine(host).verifier().start({}, [](uint64_t, uint64_t) {}, [this](Result<std::string> r) {
      said = r ? json::parse(*r) : json(r.status().to_string());
    });
  }
  const json& result() {
    lab.world.run_until([&] { return said.has_value(); }, seconds(120));
    if (!said) said = "no answer";
    return *said;
  }
  Status mark(bool shipped) {
    return lab.wait<Result<std::string>>([&](auto done) {
      lab.engine("host1").mark("", shipped, seconds(60), std::move(done));
    }).status();
  }

  Lab lab{1, false, Plant::kNone, Ships::kYes};
  Site site{lab};
  fs::HandleId image;
  std::optional<json> said;
};

// Its cut is shipped long before the host's and the shared copy are compared, and so are as many after it as the journal
// remembers.
TEST_F(RulesOfVerify, ALongOneComparesTheReplica) {
  lab.world.slow_reads("shared1", "/brick", seconds(1));
  lab.world.slow_reads("host1", "/brick", seconds(4));
  begin("host1");
  lab.world.run_for(std::chrono::milliseconds(200));   // its cut is made
  for (int i = 1; i <= 80; ++i) {
    const Status marked = mark(i % 10 == 0);
    ASSERT_TRUE(marked.is_ok()) << marked.to_string();
  }
  ASSERT_FALSE(said.has_value()) << "it was too short to tell";
  lab.world.slow_reads("shared1", "/brick", Duration(0));
  lab.world.slow_reads("host1", "/brick", Duration(0));
  const json& all = result();
  ASSERT_EQ(all["equal"], true) << all;
  EXPECT_EQ(all["images"][0]["copies"]["replica"], "level") << all;
  EXPECT_TRUE(all["images"][0]["point"].is_number()) << all;
}

TEST_F(RulesOfVerify, WhileTheReplicaIsAwayNothingIsCalledEqual) {
  lab.world.partition("host1", "replica1");
  ASSERT_TRUE(lab.write("host1", image, 0, 'b').is_ok());
  begin("host1");
  const json all = result();
  EXPECT_EQ(all["equal"], false) << all;
  ASSERT_EQ(all["images"].size(), 1u) << all;
  EXPECT_EQ(all["images"][0]["equal"], false) << all;
  EXPECT_EQ(all["images"][0]["differences"].size(), 0u) << all;
  EXPECT_EQ(all["images"][0]["copies"], json({{"host", "level"}, {"shared", "level"}, {"replica", "behind"}})) << all;
  lab.world.heal_all();
  EXPECT_EQ(site.verify("host1"), "");
}

// Degraded and resyncing none is cut: the batch that is shipped next is of a later state.
TEST_F(RulesOfVerify, WithoutACutTheReplicaIsNotCompared) {
  lab.world.partition("host1", "replica1");
  ASSERT_TRUE(lab.resync_replica("host1").is_ok());
  auto degraded = [&] { return lab.engine("host1").status_json().find("\"shipping\":\"degraded\"") != std::string::npos; };
  ASSERT_TRUE(lab.world.run_until(degraded, seconds(60)));
  lab.world.slow_reads("shared1", "/brick", seconds(1));
  begin("host1");
  lab.world.run_for(std::chrono::milliseconds(200));   // what it compares is fixed
  ASSERT_TRUE(lab.write("host1", image, 0, 'z').is_ok());
  lab.world.heal_all();
  lab.world.slow_reads("shared1", "/brick", Duration(0));
  const json all = result();
  EXPECT_EQ(all["equal"], false) << all;
  EXPECT_EQ(all["images"][0]["differences"].size(), 0u) << all;
  EXPECT_EQ(all["images"][0]["copies"]["replica"], "behind") << all;
  EXPECT_EQ(site.verify("host1"), "");
}

// host2's cut is at the replica before what host1 wrote of the image earlier.
TEST_F(RulesOfVerify, ItWaitsForWhatMustComeBeforeItsCut) {
  lab.world.partition("host1", "replica1");
  ASSERT_TRUE(lab.write("host1", image, 0, 'b').is_ok());
  ASSERT_TRUE(lab.flush("host1", image).is_ok());
  lab.engine("host1").release(image);
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  ASSERT_TRUE(lab.write("host2", *second, 8192, 'c').is_ok());
  ASSERT_TRUE(lab.healthy("host2"));
  begin("host2");
  lab.world.run_for(seconds(5));
  ASSERT_FALSE(said.has_value()) << *said;
  lab.world.heal_all();
  const json& all = result();
  EXPECT_EQ(all["equal"], true) << all;
  EXPECT_EQ(all["images"][0]["copies"]["replica"], "level") << all;
  EXPECT_EQ(site.verify("host2"), "");
}

// The host was alone, and the shared copy cannot be synced: what it may lack is known, and no sign of a fault.
TEST_F(RulesOfVerify, WhatAResyncHasNotMadeEqualYetIsNotCalledDifferent) {
  lab.world.partition("host1", "shared1");
  ASSERT_TRUE(lab.write("host1", image, 0, 'b').is_ok());
  ASSERT_TRUE(lab.write("host1", image, 3 * Lab::kRegion, 'c').is_ok());
  lab.world.inject("shared1", FileFault{1, UINT64_MAX, kSync, ".data"});
  lab.world.heal_all();
  auto linked = [&] { return json::parse(lab.engine("host1").status_json())["shared"]["connected"] == true; };
  ASSERT_TRUE(lab.world.run_until(linked, seconds(60)));
  begin("host1");
  const json all = result();
  lab.world.clear_faults("shared1");
  ASSERT_TRUE(all.is_object()) << all;
  EXPECT_EQ(all["equal"], false) << all;
  ASSERT_EQ(all["images"].size(), 1u) << all;
  EXPECT_EQ(all["images"][0]["differences"].size(), 0u) << all;
  EXPECT_EQ(all["images"][0]["copies"]["host"], "level") << all;
  EXPECT_EQ(all["images"][0]["copies"]["shared"], "behind") << all;
  EXPECT_EQ(lab.engine("host1").verifier().differences(), 0u);
  EXPECT_EQ(site.verify("host1"), "");
}

// No other host has it: none may be sent from host to host, and told that all is equal.
TEST_F(RulesOfVerify, AnImageWhoseTenureCannotBeHadIsNotCalledEqual) {
  lab.engine("host1").release(image);
  lab.world.set_store_fault("host2", StoreFault{.path_contains = "/state/names", .status = Status(Code::kOutOfSpace, "full")});
  begin("host2");
  const json all = result();
  lab.world.set_store_fault("host2", std::nullopt);
  ASSERT_TRUE(all.is_object()) << all;
  EXPECT_EQ(all["equal"], false) << all;
  ASSERT_EQ(all["images"].size(), 1u) << all;
  EXPECT_EQ(all["images"][0]["equal"], false) << all;
  EXPECT_FALSE(all["images"][0].contains("skipped")) << all;
  EXPECT_NE(all["images"][0]["note"].get<std::string>().find("full"), std::string::npos) << all;
  EXPECT_EQ(site.verify("host2"), "");
}

// One that another host writes is that host's to compare.
TEST_F(RulesOfVerify, AnImageThatAnotherHostWritesIsSkipped) {
  begin("host2");
  const json& all = result();
  ASSERT_TRUE(all.is_object()) << all;
  EXPECT_EQ(all["equal"], true) << all;
  ASSERT_EQ(all["images"].size(), 1u) << all;
  EXPECT_EQ(all["images"][0]["skipped"], true) << all;
}

}  // namespace
}  // namespace tidemark::sim
