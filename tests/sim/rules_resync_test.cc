// A replica that was emptied or put back, and brought level by an operator's word on each node: every image is sent by
// the host that answers for it, wherever it was moved meanwhile. And what a host hands over that cannot ship it exactly.
#include <set>

#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

class RulesOfResync {
 public:
  explicit RulesOfResync(uint64_t seed) : lab(seed, false, Plant::kNone, Ships::kYes), site(std::make_unique<Site>(lab)) {}

  // Another one, which has nothing.
  void replace_replica() {
    site.reset();
    site = std::make_unique<Site>(lab, "/state-2");
  }
  // As it was then.
  std::shared_ptr<const World::Kept> back_up() {
    site.reset();
    auto kept = lab.world.keep("replica1", {"/state"});
    site = std::make_unique<Site>(lab);
    return kept;
  }
  void put_back(const World::Kept& kept) {
    site.reset();
    lab.world.put_back("replica1", kept);
    site = std::make_unique<Site>(lab);
  }
  void say(const std::string& host) {
    lab.world.run_for(seconds(5));
    auto said = lab.resync_replica(host);
    ASSERT_TRUE(said.is_ok()) << said.status().to_string();
    lab.world.run_for(seconds(60));
  }
  // All nodes have noticed, and the word is said on the first of them.
  void say_names() {
    lab.world.run_for(seconds(60));
    auto said = lab.resync_names();
    ASSERT_TRUE(said.is_ok()) << said.status().to_string();
    lab.world.run_for(seconds(10));
  }
  void stop(const std::string& host) {
    auto stopped = lab.wait<Status>([&](auto done) { lab.engine(host).stop(seconds(20), std::move(done)); });
    ASSERT_TRUE(stopped.is_ok()) << stopped.to_string();
    lab.crash(host, Crash::kKill);
  }
  void write(const std::string& host, uint64_t offset, uint8_t byte, uint64_t length = 4096) {
    auto handle = lab.open(host);
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    Status wrote = lab.write(host, *handle, offset, byte, length);
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
    ASSERT_TRUE(lab.flush(host, *handle).is_ok());
    lab.engine(host).release(*handle);
  }
  void fill(const std::string& host) {
    auto handle = lab.open_filled(host);
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    lab.engine(host).release(*handle);
    lab.world.run_for(seconds(20));
  }
  // The replica has all of it, and nobody says otherwise.
  void expect_level(const std::string& host) {
    for (const char* each : {"host1", "host2"}) {
      EXPECT_TRUE(lab.healthy(each)) << lab.engine(each).status_json();
    }
    EXPECT_EQ(site->verify(host), "");
  }

  Lab lab;
  std::unique_ptr<Site> site;
};

// The epoch that a rebuilt shared node gives to what nobody holds is in nobody's journal.
TEST(Rules, AnImageThatNobodyHoldsAfterARebuildIsSentByItsLastHolder) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host1");
    t.stop("host1");
    t.lab.crash("shared1", Crash::kKill);
    t.lab.world.wipe("shared1", {"/state"});
    t.lab.rebuild_from = {"host1", "host2"};
    t.lab.start("shared1");
    t.lab.start("host1");
    ASSERT_TRUE(t.lab.healthy("host1") && t.lab.healthy("host2"));
    t.replace_replica();
    t.say_names();
    t.say("host1");
    t.say("host2");
    t.write("host1", 0, 'b');
    t.expect_level("host1");
  }
}

// Two hosts had it in turn: the one that wrote last sends it, and only that one.
TEST(Rules, AnImageThatNobodyHoldsIsNotSentByAnEarlierHolder) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host1");
    t.write("host2", Lab::kRegion, 'b');
    t.lab.world.run_for(seconds(20));
    t.stop("host2");
    t.lab.start("host2");
    t.replace_replica();
    t.say_names();
    t.say("host2");
    t.say("host1");
    t.write("host2", 0, 'c');
    t.expect_level("host2");
    EXPECT_EQ(t.site->branches(), 0u);
  }
}

// It is moved between the two words, and the first host's is said before it has it.
TEST(Rules, AnImageThatIsMovedBetweenTheWordsIsSentByTheHostThatHadIt) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host2");
    const auto kept = t.back_up();
    t.write("host2", Lab::kRegion, 'b');     // the replica loses it
    t.lab.world.run_for(seconds(20));
    t.put_back(*kept);
    t.say_names();
    t.say("host1");
    t.write("host1", 0, 'c');
    t.lab.world.run_for(seconds(60));
    t.say("host2");
    t.expect_level("host1");
  }
}

// It was written while the replica was away, and moved before the replica was replaced: the host that had it has yet to
// ship that, and says in its new stream that it may.
TEST(Rules, WhatWasWrittenBeforeAnImageMovedIsShippedToAReplacedReplica) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    auto handle = t.lab.open_filled("host2");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    t.lab.world.run_for(seconds(20));
    for (const char* host : {"host1", "host2"}) t.lab.world.partition(host, "replica1");
    ASSERT_TRUE(t.lab.write("host2", *handle, Lab::kRegion, 'b').is_ok());
    t.lab.engine("host2").release(*handle);
    t.write("host1", 0, 'c');
    t.replace_replica();
    t.lab.world.heal_all();
    t.say_names();
    for (const char* host : {"host1", "host2"}) t.say(host);
    t.lab.world.run_for(seconds(60));
    t.expect_level("host1");
  }
}

// Nobody held it when the replica was lost. A host that has said the word takes it before its last holder has: what that
// one will send of its other images is no word of this one.
TEST(Rules, AnImageThatIsTakenBeforeItsLastHolderHasSaidTheWordIsSentByWhoeverTakesIt) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host2");
    t.stop("host2");
    t.replace_replica();
    t.say_names();
    t.say("host1");
    t.write("host1", 0, 'b');
    t.lab.start("host2");
    t.lab.world.run_for(seconds(60));
    t.say("host2");
    t.expect_level("host1");
  }
}

// The host was added after the backup that the replica is put back from: nothing of its stream is there, and yet the
// replica is not empty.
TEST(Rules, AReplicaThatWasPutBackIsSentHolesToo) {
  constexpr uint64_t kStep = limits::kRegionBytesMin;
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host1");
    ASSERT_TRUE(t.lab.resize("host1", t.lab.inode_of("host1"), 2 * kStep).is_ok());
    t.write("host1", kStep, 'b', 65536);
    t.lab.world.run_for(seconds(20));
    const auto kept = t.back_up();
    t.lab.add_third_host();
    t.lab.world.run_for(seconds(5));
    auto handle = t.lab.open("host3");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    Status punched = t.lab.wait<Status>([&](auto done) {
      t.lab.engine("host3").fallocate(*handle, fs::Engine::Fallocate::kPunch, {kStep, kStep}, std::move(done));
    });
    ASSERT_TRUE(punched.is_ok()) << punched.to_string();
    t.lab.engine("host3").release(*handle);
    ASSERT_TRUE(t.lab.healthy("host3"));
    t.lab.world.run_for(seconds(20));
    t.stop("host3");
    t.put_back(*kept);
    t.lab.start("host3");                    // which does not touch the image
    t.say_names();
    for (const char* host : {"host1", "host3"}) t.say(host);
    t.write("host3", 0, 'c');
    t.expect_level("host3");
  }
}

// Degraded, and its copy not filled yet: what it will send of the image is as the next holder has it by then.
TEST(Rules, NoPointOfTheNextHolderShowsWhatItWroteLater) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RulesOfResync t(seed);
    t.fill("host2");
    ASSERT_EQ(t.site->verify("host2"), "");
    t.lab.resync_rate = 4 << 10;
    t.lab.limit_age = seconds(10);
    t.stop("host1");
    t.lab.start("host1");
    t.lab.world.run_for(seconds(5));
    auto first = t.lab.open("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    t.lab.world.partition("host1", "replica1");
    ASSERT_TRUE(t.lab.write("host1", *first, 2 * Lab::kRegion, 'b').is_ok());
    auto degraded = [&] { return t.lab.engine("host1").status_json().find("\"shipping\":\"degraded\"") != std::string::npos; };
    ASSERT_TRUE(t.lab.world.run_until(degraded, seconds(60))) << t.lab.engine("host1").status_json();
    ASSERT_NE(t.lab.engine("host1").status_json().find("\"mirror\":\"filling\""), std::string::npos);
    ASSERT_TRUE(t.lab.write("host1", *first, 2 * Lab::kRegion + 8192, 'b').is_ok());
    t.lab.engine("host1").release(*first);
    const auto began = t.lab.world.elapsed();
    auto second = t.lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(t.lab.write("host2", *second, 0, 'c').is_ok());
    EXPECT_LT(t.lab.world.elapsed() - began, seconds(4)) << "the guest waits";
    auto marked = t.lab.wait<Result<std::string>>(
        [&](auto done) { t.lab.engine("host2").mark("c1", false, seconds(0), std::move(done)); });
    ASSERT_TRUE(marked.is_ok()) << marked.status().to_string();
    t.lab.world.run_for(seconds(2));
    ASSERT_TRUE(t.lab.write("host2", *second, Lab::kRegion, 'd').is_ok());
    ASSERT_TRUE(t.lab.flush("host2", *second).is_ok());
    t.lab.world.run_for(seconds(2));
    t.lab.world.heal_all();
    t.lab.world.run_for(seconds(90));
    const auto status = nlohmann::json::parse(t.lab.engine("host2").status_json());
    const std::string uuid = status["images"][0]["uuid"];
    auto at = [&](uint64_t offset) {
      return t.site->ask("/v1/points/c1/images/" + uuid + "/data", "bytes=" + std::to_string(offset) + "-" + std::to_string(offset + 3));
    };
    EXPECT_EQ(at(0), "cccc");
    EXPECT_EQ(at(Lab::kRegion), "aaaa") << "written after the point";
    EXPECT_EQ(at(2 * Lab::kRegion), "bbbb");
    EXPECT_EQ(at(2 * Lab::kRegion + 8192), "bbbb");
    ASSERT_TRUE(t.lab.healthy("host1") && t.lab.healthy("host2"));
    EXPECT_EQ(t.site->verify("host2"), "");
  }
}

// Names that were removed or moved since the backup are told by nobody again: that all of them were told says so.
TEST(Rules, AReplicaThatWentBackForgetsTheNamesThatAreGone) {
  RulesOfResync t(1);
  const InodeNumber root(1);
  auto make = [&](InodeNumber parent, const std::string& name, wire::NodeKind kind) {
    return t.lab.wait<Result<wire::Attr>>([&](auto done) {
      wire::Create request;
      request.parent = parent;
      request.name = name;
      request.kind = kind;
      request.mode = 0700;
      t.lab.engine("host1").create(std::move(request), std::move(done));
    });
  };
  auto vms = make(root, "vms", wire::NodeKind::kDirectory);
  ASSERT_TRUE(vms.is_ok()) << vms.status().to_string();
  ASSERT_TRUE(make(vms->inode, "b.img", wire::NodeKind::kImage).is_ok());
  ASSERT_TRUE(make(root, "gone.img", wire::NodeKind::kImage).is_ok());
  t.fill("host1");
  t.lab.world.run_for(seconds(40));
  const auto backup = t.back_up();
  auto done_by_host1 = [&](auto begin) {
    Status done = t.lab.wait<Status>(begin);
    EXPECT_TRUE(done.is_ok()) << done.to_string();
  };
  done_by_host1([&](auto done) { t.lab.engine("host1").unlink(root, "gone.img", false, std::move(done)); });
  done_by_host1([&](auto done) {
    t.lab.engine("host1").rename(wire::Rename{root, "vms", root, "prod", 0}, std::move(done));
  });
  t.lab.world.run_for(seconds(40));
  t.put_back(*backup);
  auto paths = [&] {
    std::set<std::string> out;
    const auto tree = nlohmann::json::parse(t.site->ask("/v1/points/latest/tree"));
    for (const auto& e : tree["entries"])
      if (!e["path"].is_null()) out.insert(e["path"].get<std::string>());
    return out;
  };
  ASSERT_EQ(paths(), (std::set<std::string>{"disk.img", "gone.img", "vms", "vms/b.img"}));
  t.say_names();
  t.say("host1");
  t.say("host2");
  EXPECT_EQ(paths(), (std::set<std::string>{"disk.img", "prod", "prod/b.img"}));
}

// No point is made before the replica is level: whoever asks for one hears so, whether it waits for the point or not.
TEST(Rules, OfAPointThatIsNotMadeNobodyIsToldThatItWas) {
  RulesOfResync t(1);
  t.lab.limit_age = seconds(10);
  t.stop("host1");
  t.lab.start("host1");
  t.fill("host1");
  t.lab.world.partition("host1", "replica1");
  t.write("host1", 0, 'b');
  auto degraded = [&] { return t.lab.engine("host1").status_json().find("\"shipping\":\"degraded\"") != std::string::npos; };
  ASSERT_TRUE(t.lab.world.run_until(degraded, seconds(60))) << t.lab.engine("host1").status_json();
  for (const char* name : {"x", ""}) {
    for (const bool wait : {true, false}) {
      auto marked = t.lab.wait<Result<std::string>>(
          [&](auto done) { t.lab.engine("host1").mark(name, wait, seconds(10), std::move(done)); });
      ASSERT_FALSE(marked.is_ok()) << "waits: " << wait << ": " << *marked;
      EXPECT_EQ(marked.status().code(), Code::kCancelled);
      EXPECT_NE(marked.status().message().find("no point is made"), std::string::npos) << marked.status().message();
    }
  }
}

// As in ATenureInWhichNothingWasWritten..., but the one in between has older batches of its own on the way, and dies: what it gives back then is given back
// by its next run. The next tenure follows the newest writes all the same, not what is left of that host's older tenure.
TEST(Rules, ATenureGivenBackUnusedLetsNoBatchBeOvertakenForItsHostsOlderOnes) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    lab.add_third_host();
    Site site(lab);
    auto give_up = [&](const std::string& holder, fs::HandleId handle, const std::string& wanted_by) {
      auto refused = lab.open(wanted_by);
      ASSERT_TRUE(refused.is_ok()) << refused.status().to_string();
      ASSERT_EQ(lab.write(wanted_by, *refused, 0, 'x').code(), Code::kBusy);
      lab.engine(wanted_by).release(*refused);
      lab.engine(holder).release(handle);
      lab.world.run_for(seconds(3));
    };
    auto first = lab.open_filled("host3");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.world.run_for(seconds(10));
    for (const char* host : {"host1", "host2", "host3"}) lab.world.partition(host, "replica1");
    ASSERT_TRUE(lab.write("host3", *first, 0, 'b').is_ok());       // staged, and not shipped
    give_up("host3", *first, "host2");
    auto second = lab.open("host1");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host1", *second, 8192, 'c').is_ok());   // the newest writes
    give_up("host1", *second, "host2");
    auto reader = lab.open("host3");                               // a free image is taken by whoever reads it
    ASSERT_TRUE(reader.is_ok()) << reader.status().to_string();
    EXPECT_EQ(*lab.read("host3", *reader, 8192), 'c');
    lab.world.run_for(seconds(3));
    ASSERT_NE(lab.engine("host3").status_json().find("\"writer\":\"host3\""), std::string::npos) << "seed " << seed;
    lab.crash("host3", Crash::kKill);
    lab.start("host3");
    lab.world.run_for(seconds(5));
    auto third = lab.open("host2");
    ASSERT_TRUE(third.is_ok()) << third.status().to_string();
    ASSERT_TRUE(lab.world.run_until([&] { return lab.write("host2", *third, 16384, 'd').is_ok(); }, seconds(30)));
    ASSERT_TRUE(lab.flush("host2", *third).is_ok());
    lab.world.run_for(seconds(3));
    lab.world.heal_all();
    lab.world.partition("host1", "replica1");
    lab.world.run_for(seconds(10));          // all but host1's have come
    lab.world.heal_all();
    lab.world.run_for(seconds(30));
    EXPECT_EQ(site.verify("host2"), "") << "seed " << seed;
    EXPECT_EQ(site.branches(), 0u) << "seed " << seed << ": the main line was kept aside";
  }
}

}  // namespace
}  // namespace tidemark::sim
