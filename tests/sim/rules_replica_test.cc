// Rules of the way to the replica that a second guard stands behind, as rules_test.cc has those of the two copies.
#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

// A host asks what the replica has before it sends a batch again; the network asks nobody.
TEST(Rules, ABatchThatComesAgainChangesNothing) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    lab.world.run_for(seconds(10));
    const std::vector<net::HttpRequest> early = site.batches;
    ASSERT_FALSE(early.empty()) << "seed " << seed;
    ASSERT_TRUE(lab.write("host1", *image, 8192, 'b', 16384).is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.run_for(seconds(10));
    ASSERT_GT(site.batches.size(), early.size()) << "seed " << seed;
    for (const net::HttpRequest& batch : early) EXPECT_EQ(site.deliver(batch), 200) << "seed " << seed;
    EXPECT_EQ(site.verify("host1"), "") << "seed " << seed << ": an old batch was applied again";
  }
}

// The journal's disk takes long, that of the dirty-region log does not: what was written and flushed meanwhile is level
// on both copies, and stays dirty all the same, for the replica's sake, until its records are durable.
TEST(Rules, ARegionStaysDirtyUntilItsRecordsAreDurable) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    lab.world.run_for(seconds(40));          // shipped, and the dirty-region log is clean
    lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/journal", .delay = seconds(60)});
    ASSERT_TRUE(lab.write("host1", *image, 8192, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.run_for(seconds(20));
    lab.crash("host1", Crash::kKill);
    lab.world.set_store_fault("host1", std::nullopt);
    lab.start("host1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(lab.write("host1", *again, Lab::kImageBytes - 4096, 'c').is_ok());
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(site.verify("host1"), "") << "seed " << seed << ": the replica lacks what was never shipped";
  }
}

// A host without a copy of its own has written, and was killed before it had staged that. Its next run makes an empty
// copy and fills it: until a region is filled, what is shipped of it is read from the shared copy.
TEST(Rules, WhatOnlyTheSharedCopyHoldsIsShippedFromThere) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto first = lab.open_filled("host2");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.engine("host2").release(*first);
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .path_contains = "/brick1"});
    auto second = lab.open("host1");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host1", *second, 3 * Lab::kRegion, 'b').is_ok()) << "seed " << seed;
    lab.crash("host1", Crash::kKill);
    lab.world.clear_faults("host1");
    lab.world.partition("host1", "shared1");
    lab.resync_rate = 16 << 10;
    lab.start("host1");
    lab.world.run_for(seconds(3));
    lab.world.heal_all();
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(lab.write("host1", *again, 0, 'c').is_ok()) << "seed " << seed;
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(site.verify("host1"), "") << "seed " << seed;
  }
}

// The same of a host whose brick failed: its next run opens the old copy. The dirty-region log is clean, so that no
// recovery compares what is to be shipped.
TEST(Rules, WhatAFailedCopyLacksIsShippedFromTheSharedOneAfterARestart) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    lab.world.run_for(seconds(40));
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .path_contains = "/brick1"});
    lab.engine("host1").set_shipping_paused(true);
    ASSERT_TRUE(lab.write("host1", *image, 3 * Lab::kRegion, 'b').is_ok()) << "seed " << seed;
    ASSERT_TRUE(lab.flush("host1", *image).is_ok()) << "seed " << seed;
    auto clean = [&] { return lab.world.committed("host1", "/state/drl", "regions").empty(); };
    ASSERT_TRUE(lab.world.run_until(clean, seconds(60))) << "seed " << seed;
    lab.crash("host1", Crash::kKill);
    lab.world.clear_faults("host1");
    lab.resync_rate = 16 << 10;
    lab.start("host1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(lab.write("host1", *again, 0, 'c').is_ok()) << "seed " << seed;
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(site.verify("host1"), "") << "seed " << seed << ": an old block was shipped";
  }
}

// And where it has given the image away, and dies before its regions are noted to be clean: they are shipped once more,
// whole, under its own tenure, which is not the newest any more.
TEST(Rules, WhatAFailedCopyLacksIsShippedFromTheSharedOneAfterAHandover) {
  size_t dirty = 0;
  // As many more, within reason, as it takes until a crash has come in time.
  for (uint64_t seed = 1; seed <= seeds_of(10) || (dirty == 0 && seed <= 100); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.world.run_for(seconds(40));
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .path_contains = "/brick1"});
    ASSERT_TRUE(lab.write("host1", *first, 3 * Lab::kRegion, 'b').is_ok()) << "seed " << seed;
    lab.engine("host1").release(*first);
    lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/drl", .delay = seconds(60)});
    lab.world.partition("host2", "replica1");
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'c').is_ok()) << "seed " << seed;
    lab.crash("host1", Crash::kKill);
    lab.world.set_store_fault("host1", std::nullopt);
    lab.world.clear_faults("host1");
    dirty += lab.world.committed("host1", "/state/drl", "regions").size();   // what was under way may have landed
    lab.start("host1");
    lab.world.run_for(seconds(10));
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host2")) << "seed " << seed;
    EXPECT_EQ(site.verify("host2"), "") << "seed " << seed << ": an old block was shipped";
  }
  EXPECT_GT(dirty, 0u) << "no crash came before the regions were clean";
}

// An image goes from one host to a third by way of a second, which had it for a while and wrote nothing. The first one's
// batches are late: the third one's wait for them all the same, though what comes before theirs is the second's.
TEST(Rules, ATenureInWhichNothingWasWrittenLetsNoOlderBatchBeOvertaken) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    lab.add_third_host();
    Site site(lab);
    auto first = lab.open_filled("host3");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.world.run_for(seconds(10));
    lab.world.partition("host3", "replica1");
    ASSERT_TRUE(lab.write("host3", *first, 0, 'b').is_ok());
    // Wanted elsewhere, but not for long enough: host3 gives it back as soon as it can, and then nobody has it.
    auto refused = lab.open("host1");
    ASSERT_TRUE(refused.is_ok()) << refused.status().to_string();
    ASSERT_EQ(lab.write("host1", *refused, 0, 'x').code(), Code::kBusy);
    lab.engine("host1").release(*refused);
    lab.engine("host3").release(*first);
    lab.world.run_for(seconds(3));
    // A free image is taken by whoever reads it.
    auto reader = lab.open("host1");
    ASSERT_TRUE(reader.is_ok()) << reader.status().to_string();
    EXPECT_EQ(*lab.read("host1", *reader, 0), 'b');
    lab.world.run_for(seconds(3));
    ASSERT_NE(lab.engine("host1").status_json().find("\"writer\":\"host1\""), std::string::npos) << "seed " << seed;
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 8192, 'c').is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    lab.world.run_for(seconds(10));          // all but host3's have come
    lab.world.heal_all();
    lab.world.run_for(seconds(30));
    EXPECT_EQ(site.verify("host2"), "") << "seed " << seed;
    EXPECT_EQ(site.branches(), 0u) << "seed " << seed << ": the main line was kept aside";
  }
}

// Of a host that is alone one image's data object is cut short. The point of the others' writes is shipped, and says so.
TEST(Rules, AnImageThatCannotBeReadHoldsUpNoOthersShipping) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    const std::string object = lab.objects("host1").front();
    auto other = lab.open("host1", true, "other.img");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    lab.world.run_for(seconds(5));
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *image, 3 * Lab::kRegion, 'b').is_ok());
    const uint64_t whole = lab.world.files("host1", "/").at(object).size();
    ASSERT_TRUE(lab.world.cut_short("host1", object, 8192).is_ok());
    ASSERT_TRUE(lab.write("host1", *other, 0, 'c').is_ok());
    auto point = [&](const std::string& name) {
      return lab.wait<Result<std::string>>([&](auto done) { lab.engine("host1").mark(name, true, seconds(20), std::move(done)); });
    };
    auto marked = point("one");
    if (!marked) marked = point("two");      // the first is given up as it finds out
    EXPECT_TRUE(marked.is_ok()) << "seed " << seed << ": " << marked.status().to_string();
    std::vector<std::string> reasons;
    EXPECT_FALSE(lab.engine("host1").healthy(&reasons));
    EXPECT_TRUE(std::ranges::any_of(reasons, [](const auto& r) { return r.find("cannot be read") != std::string::npos; }));
    const auto points = nlohmann::json::parse(site.ask("/v1/points?count=1000"))["points"];
    ASSERT_FALSE(points.empty());
    EXPECT_TRUE(points.back().contains("without")) << points.back().dump();
    // Nor after a crash.
    ASSERT_TRUE(lab.world.cut_short("host1", object, whole).is_ok());
    lab.crash("host1", Crash::kPowerLoss);
    lab.start("host1");
    lab.world.heal_all();
    lab.world.run_for(seconds(10));
    auto third = lab.open("host1", true, "third.img");
    ASSERT_TRUE(third.is_ok()) << third.status().to_string();
    ASSERT_TRUE(lab.write("host1", *third, 0, 'd').is_ok());
    EXPECT_TRUE(point("three").is_ok()) << "seed " << seed << ": it holds up the others after a crash, too";
  }
}

// A shared copy that was cut short and is taken for what it holds: so it is at the replica, whose older points have the rest.
TEST(Rules, WhatAnOperatorAcceptsOfACutCopyIsWhatTheReplicaShows) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.world.run_for(seconds(10));
    lab.engine("host1").release(*first);
    auto stopped = lab.wait<Status>([&](auto done) { lab.engine("host1").stop(seconds(20), std::move(done)); });
    ASSERT_TRUE(stopped.is_ok()) << stopped.to_string();
    lab.crash("host1", Crash::kKill);
    for (const std::string& object : lab.objects("shared1")) {
      const uint64_t whole = lab.world.files("shared1", "/").at(object).size();
      ASSERT_TRUE(lab.world.cut_short("shared1", object, 8192).is_ok());
      auto reader = lab.open("host2");
      ASSERT_TRUE(reader.is_ok()) << reader.status().to_string();
      EXPECT_FALSE(lab.read("host2", *reader, 0, Lab::kImageBytes).is_ok());
      ASSERT_TRUE(lab.world.cut_short("shared1", object, whole).is_ok());
    }
    lab.world.run_for(seconds(3));
    auto taken = lab.take_at_shared(R"({"images":["/disk.img"],"force":true,"accept_loss":true})");
    ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
    lab.world.run_for(seconds(6));
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'c').is_ok());
    ASSERT_TRUE(lab.healthy("host2")) << "seed " << seed;
    EXPECT_EQ(site.verify("host2"), "") << "seed " << seed << ": the replica has what nobody else has";
  }
}

// The host's older copy is being filled when an operator has it send all that it answers for.
TEST(Rules, AResyncOfTheReplicaSendsWhatTheOwnCopyIsNotFilledWithYet) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_EQ(site.verify("host1"), "");
    lab.engine("host1").release(*first);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'b', Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    ASSERT_EQ(site.verify("host2"), "");
    lab.engine("host2").release(*second);
    lab.resync_rate = 4 << 10;
    lab.crash("host1", Crash::kKill);
    lab.start("host1");
    first = lab.open("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'c').is_ok());
    ASSERT_NE(lab.engine("host1").status_json().find("\"mirror\":\"filling\""), std::string::npos);
    auto begun = lab.resync_replica("host1");
    ASSERT_TRUE(begun.is_ok()) << begun.status().to_string();
    ASSERT_TRUE(lab.healthy("host1", seconds(600))) << lab.engine("host1").status_json();
    EXPECT_EQ(site.verify("host1"), "");
  }
}

// All that was on host1's disks is gone, an operator has said so, and it is started anew. It knows no name before it is
// let in, which is once the shared node has given the old connections up.
void lose_host1(Lab& lab) {
  lab.crash("host1", Crash::kPowerLoss);
  lab.world.wipe("host1", {"/state", "/brick1"});
  lab.after_reset = true;
  lab.start("host1");
  lab.world.run_for(seconds(40));
}

TEST(Rules, WhatALostJournalHadNotShippedIsShippedWithTheNextTenure) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    lab.world.run_for(seconds(10));
    lab.engine("host1").set_shipping_paused(true);
    ASSERT_TRUE(lab.write("host1", *image, 8192, 'b', 16384).is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lose_host1(lab);
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    image = lab.open("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(lab.write("host1", *image, 3 * Lab::kRegion, 'c').is_ok());
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_EQ(site.verify("host1"), "") << "the replica lacks what was never shipped";
    EXPECT_EQ(nlohmann::json::parse(site.ask("/v1/status"))["healthy"], true);
  }
}

// host1 gives the image away, which host2 writes, and loses its journal with what it had not shipped.
Result<fs::HandleId> goes_on_upon_lost_writes(Lab& lab) {
  auto first = lab.open_filled("host1");
  if (!first) return first;
  lab.world.run_for(seconds(10));
  lab.world.partition("host1", "replica1");
  if (Status s = lab.write("host1", *first, 8192, 'b', 16384); !s) return s;
  lab.engine("host1").release(*first);
  auto second = lab.open("host2");
  if (!second) return second;
  if (Status s = lab.write("host2", *second, 3 * Lab::kRegion, 'c'); !s) return s;
  lab.world.run_for(seconds(5));
  lab.world.heal_all();
  lose_host1(lab);
  return second;
}

// It had given the image away by then: host2 goes on with it, and is asked for all of it.
TEST(Rules, WhatALostJournalHadNotShippedIsMissedAtTheReplicaUntilTheNextHolderSendsIt) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    auto second = goes_on_upon_lost_writes(lab);
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(20));
    ASSERT_TRUE(lab.write("host2", *second, 2 * Lab::kRegion, 'd').is_ok());
    lab.world.run_for(seconds(20));
    const auto status = nlohmann::json::parse(site.ask("/v1/status"));
    EXPECT_EQ(status["held_batches"], 0);
    EXPECT_EQ(status["healthy"], false) << status.dump();
    EXPECT_TRUE(status["newest_points"][0].contains("without")) << status.dump();
    auto begun = lab.resync_replica("host2");
    ASSERT_TRUE(begun.is_ok()) << begun.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'e').is_ok());
    ASSERT_TRUE(lab.healthy("host2", seconds(600))) << lab.engine("host2").status_json();
    EXPECT_EQ(site.verify("host2"), "");
    const auto after = nlohmann::json::parse(site.ask("/v1/status"));
    EXPECT_EQ(after["healthy"], true) << after.dump();
    EXPECT_FALSE(after["newest_points"][0].contains("without")) << after.dump();
  }
}

// The next holder reaches its journal's limit, started anew, and nobody uses the image there: what it sends of it then
// counts as all of it.
TEST(Rules, WhatALostJournalHadNotShippedIsMissedWhereTheNextHoldersLimitGivesUpWhatItHadStaged) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    lab.limit_age = seconds(60);
    lab.crash("host2", Crash::kKill);
    lab.start("host2");
    auto second = goes_on_upon_lost_writes(lab);
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(60));          // both copies are level, and its dirty-region log is clean
    ASSERT_EQ(nlohmann::json::parse(site.ask("/v1/status"))["healthy"], false);
    lab.world.partition("host2", "replica1");
    ASSERT_TRUE(lab.write("host2", *second, 2 * Lab::kRegion, 'd').is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    lab.engine("host2").release(*second);
    lab.world.run_for(seconds(30));
    lab.crash("host2", Crash::kKill);
    lab.start("host2");
    lab.world.run_for(seconds(120));
    lab.world.heal_all();
    lab.world.run_for(seconds(120));
    const auto status = nlohmann::json::parse(site.ask("/v1/status"));
    const bool good = status["healthy"] != true || site.verify("host2").empty();
    EXPECT_TRUE(good) << "it is called good, and is not equal: " << status.dump();
  }
}

// All of it had been shipped before: nothing is missed, whoever goes on.
TEST(Rules, AJournalThatIsLostWithNothingUnshippedIsNotMissed) {
  Lab lab(1, false, Plant::kNone, Ships::kYes);
  Site site(lab);
  auto first = lab.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  lab.engine("host1").release(*first);
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  ASSERT_TRUE(lab.write("host2", *second, 0, 'b').is_ok());
  ASSERT_EQ(site.verify("host2"), "");
  lose_host1(lab);
  ASSERT_TRUE(lab.write("host2", *second, Lab::kRegion, 'c').is_ok());
  lab.world.run_for(seconds(30));
  EXPECT_EQ(site.verify("host2"), "");
  const auto status = nlohmann::json::parse(site.ask("/v1/status"));
  EXPECT_EQ(status["healthy"], true) << status.dump();
  EXPECT_EQ(status["alarms"].size(), 0u) << status.dump();
}

// An operator was told that it has begun: it is not forgotten, however the daemon ends in that moment.
TEST(Rules, AResyncOfAnEmptiedReplicaThatWasAskedForIsNotForgotten) {
  for (auto kind : {Crash::kKill, Crash::kPowerLoss}) {
    for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
      Lab lab(seed, false, Plant::kNone, Ships::kYes);
      auto before = std::make_unique<Site>(lab);
      auto image = lab.open_filled("host1");
      ASSERT_TRUE(image.is_ok()) << image.status().to_string();
      ASSERT_EQ(before->verify("host1"), "");
      lab.world.run_for(seconds(40));        // the dirty-region log is clean
      before.reset();
      Site site(lab, "/emptied");
      auto names = lab.resync_names();
      lab.crash("shared1", kind);
      ASSERT_TRUE(names.is_ok()) << names.status().to_string();
      lab.start("shared1");
      lab.world.run_for(seconds(5));
      auto begun = lab.resync_replica("host1");
      lab.crash("host1", kind);
      ASSERT_TRUE(begun.is_ok()) << begun.status().to_string();
      lab.start("host1");
      ASSERT_TRUE(lab.open("host1").is_ok());
      EXPECT_TRUE(lab.healthy("host1", seconds(300))) << "seed " << seed << ": " << lab.engine("host1").status_json();
      EXPECT_EQ(lab.shared_status().find("\"needs_full_resync\":true"), std::string::npos) << lab.shared_status();
      EXPECT_EQ(site.verify("host1"), "") << "seed " << seed;
    }
  }
}

// What the replica was restored to is of before the image was cut to nothing, which left no block to be sent.
TEST(Rules, AReplicaThatWentBackLearnsThatAnImageHasNoDataAnyMore) {
  Lab lab(1, false, Plant::kNone, Ships::kYes);
  auto before = std::make_unique<Site>(lab);
  ASSERT_TRUE(lab.open_filled("host1").is_ok());
  lab.world.run_for(seconds(40));
  before.reset();
  const auto backup = lab.world.keep("replica1", {"/state"});
  before = std::make_unique<Site>(lab);
  ASSERT_TRUE(lab.resize("host1", lab.inode_of("host1"), 0).is_ok());
  lab.world.run_for(seconds(40));
  before.reset();
  lab.world.put_back("replica1", *backup);
  Site site(lab);
  auto size = [&] {
    const auto tree = nlohmann::json::parse(site.ask("/v1/points/latest/tree"));
    for (const auto& e : tree["entries"])
      if (e["path"] == "disk.img") return e["size"].get<uint64_t>();
    return UINT64_MAX;
  };
  ASSERT_EQ(size(), Lab::kImageBytes);
  auto names = lab.resync_names();
  ASSERT_TRUE(names.is_ok()) << names.status().to_string();
  auto begun = lab.resync_replica("host1");
  ASSERT_TRUE(begun.is_ok()) << begun.status().to_string();
  lab.world.run_for(seconds(120));
  EXPECT_EQ(size(), 0u) << site.ask("/v1/points/latest/tree");
}

}  // namespace
}  // namespace tidemark::sim
