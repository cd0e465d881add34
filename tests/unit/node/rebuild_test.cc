// Every row of the plan by which a lost catalogue is made anew.
#include <gtest/gtest.h>

#include "shared/node/rebuild.h"

namespace tidemark::node {
namespace {

class RebuildPlanTest : public ::testing::Test {
 protected:
  static ImageId image(uint8_t n) {
    ImageId id;
    id.bytes[0] = n;
    return id;
  }
  wire::ReportEntry& entry(const std::string& host, uint64_t inode, const std::string& name, uint64_t event = 1) {
    HostReport& report = reports[host];
    report.complete = true;
    report.cut = {Incarnation(7), Counter(reports.size() * 100)};
    wire::ReportEntry& e = report.entries.emplace_back();
    e.name = name;
    e.attr.inode = InodeNumber(inode);
    e.attr.parent = kRootInode;
    e.attr.image = image(static_cast<uint8_t>(inode));
    e.attr.size = 8 << 20;
    e.attr.event = EventNumber(event);
    return e;
  }
  static void tenure(wire::ReportEntry& e, uint64_t newest, uint64_t own, uint8_t copy, bool held = false) {
    e.attr.epoch = Epoch(newest);
    e.own = Epoch(own);
    e.copy = copy;
    e.held = held ? 1 : 0;
  }
  void brick(uint8_t n, uint64_t size) { bricks.push_back({image(n), {}, size, Generation(3)}); }
  RebuildPlan plan() { return plan_rebuild({reports, bricks, {1'800'000'000ll * 1'000'000'000}, 4 << 20, epochs}); }
  const RebuildPlan::Placed& only(const RebuildPlan& p) { return p.images.at(image(2)); }

  std::map<std::string, HostReport> reports;
  std::vector<image::ImageMetadata> bricks;
  std::map<ImageId, Epoch> epochs;   // at the replica
};

TEST_F(RebuildPlanTest, AHolderThatGoesOnKeepsItsTenureAndItsCopyCounts) {
  tenure(entry("a", 2, "x"), 5, 5, 2, true);
  tenure(entry("b", 2, "x"), 4, 3, 2);
  for (bool bricks_there : {false, true}) {
    if (bricks_there) brick(2, 4 << 20);
    RebuildPlan p = plan();
    EXPECT_EQ(only(p).record.tenure.holder, "a");
    EXPECT_EQ(only(p).record.tenure.epoch, Epoch(5));
    EXPECT_EQ(only(p).record.outdated, 1);
    EXPECT_EQ(only(p).level, "a");
    EXPECT_EQ(only(p).record.has_copy, bricks_there ? 1 : 0);
    EXPECT_EQ(p.nodes.at(0).attr.size, bricks_there ? 4u << 20 : 8u << 20);
  }
}

TEST_F(RebuildPlanTest, WithoutBricksTheNewestWholeCopyCountsInAnEpochAboveAll) {
  tenure(entry("a", 2, "x"), 6, 5, 2);
  tenure(entry("b", 2, "x"), 6, 6, 2);
  RebuildPlan p = plan();
  EXPECT_EQ(only(p).record.tenure.holder, "b");
  EXPECT_GT(only(p).record.tenure.epoch, Epoch(6));
  EXPECT_EQ(only(p).level, "b");
  EXPECT_EQ(only(p).record.outdated, 1);
}

TEST_F(RebuildPlanTest, ACopyOfAnOlderTenureIsNeverTakenForTheNewest) {
  tenure(entry("a", 2, "x"), 6, 5, 2);
  tenure(entry("b", 2, "x"), 6, 6, 1);   // may lack something
  RebuildPlan p = plan();
  EXPECT_EQ(only(p).record.tenure.holder, "");
  EXPECT_EQ(only(p).record.has_copy, 1);   // an error when it is read, not zeros
  EXPECT_TRUE(only(p).level.empty());
  // Nor one whose line another host went on with, who does not report.
  reports.clear();
  tenure(entry("a", 2, "x"), 6, 5, 2);
  RebuildPlan q = plan();
  EXPECT_EQ(only(q).record.tenure.holder, "");
  EXPECT_EQ(only(q).record.has_copy, 1);
}

TEST_F(RebuildPlanTest, WithBricksWhatNobodyHoldsIsFreeAndFollowsItsLastWriter) {
  tenure(entry("a", 2, "x"), 6, 5, 2);
  tenure(entry("b", 2, "x"), 6, 6, 2);
  brick(2, 4 << 20);
  RebuildPlan p = plan();
  const fence::State& tenure = only(p).record.tenure;
  EXPECT_EQ(tenure.holder, "");
  EXPECT_GT(tenure.epoch, Epoch(6));
  EXPECT_EQ(tenure.parent.epoch, Epoch(6));
  EXPECT_EQ(tenure.parent.source, "b");
  EXPECT_EQ(tenure.parent.last, reports.at("b").cut);
  EXPECT_EQ(only(p).record.has_copy, 1);
  EXPECT_EQ(p.nodes.at(0).attr.size, 4u << 20);
}

// A tenure that only the replica has heard of was of a host that does not report.
TEST_F(RebuildPlanTest, EpochsAreAboveWhatTheReplicaHasToo) {
  epochs[image(2)] = Epoch(9);
  epochs[image(3)] = Epoch(4'000'000'000);
  tenure(entry("a", 2, "x"), 6, 6, 2);
  brick(2, 4 << 20);
  brick(3, 4 << 20);
  RebuildPlan p = plan();
  EXPECT_GT(only(p).record.tenure.epoch, Epoch(9));
  EXPECT_EQ(only(p).record.tenure.parent.last, WriteSequence());   // not known
  EXPECT_GT(p.images.at(image(3)).record.tenure.epoch, Epoch(4'000'000'000));
  bricks.clear();
  RebuildPlan q = plan();   // the copy of "a" is of an older tenure
  EXPECT_EQ(only(q).record.tenure.holder, "");
  EXPECT_EQ(only(q).record.has_copy, 1);
}

TEST_F(RebuildPlanTest, AHolderThatIsNotWholeGoesOnWithTheBricks) {
  tenure(entry("a", 2, "x"), 6, 6, 1, true);
  brick(2, 8 << 20);
  RebuildPlan p = plan();
  EXPECT_EQ(only(p).record.tenure.holder, "a");
  EXPECT_EQ(only(p).record.tenure.epoch, Epoch(6));
  EXPECT_EQ(only(p).record.outdated, 0);
  EXPECT_TRUE(only(p).level.empty());   // all of its copy counts as stale
}

TEST_F(RebuildPlanTest, WhatNobodyEverWroteIsEmpty) {
  tenure(entry("a", 2, "x"), 0, 0, 0);
  RebuildPlan p = plan();
  EXPECT_EQ(only(p).record.has_copy, 0);
  EXPECT_EQ(only(p).record.tenure.parent.epoch, Epoch(0));
}

TEST_F(RebuildPlanTest, HostOnlyDataStayWithTheirHost) {
  for (bool held : {true, false}) {
    reports.clear();
    wire::ReportEntry& e = entry("a", 2, "x");
    tenure(e, 3, 3, 2, held);
    e.attr.mirror = 0;
    e.host_only = 1;
    brick(2, 4 << 20);   // of a copy that was given up
    RebuildPlan p = plan();
    EXPECT_EQ(only(p).record.tenure.holder, "a");
    EXPECT_EQ(only(p).record.has_copy, 0);
    EXPECT_EQ(only(p).record.outdated, 1);
    EXPECT_EQ(only(p).level, "a");   // nothing of its copy is stale
    EXPECT_EQ(p.nodes.at(0).attr.size, 8u << 20);
  }
}

// An older copy of it, of the time when it was mirrored, is no copy of it.
TEST_F(RebuildPlanTest, HostOnlyDataThatNobodyReportsAreLost) {
  for (int row = 0; row < 4; ++row) {
    reports.clear();
    epochs.clear();
    wire::ReportEntry& theirs = entry("b", 2, "x");
    tenure(theirs, 3, 2, 2);
    theirs.attr.mirror = 0;
    if (row != 0) {
      wire::ReportEntry& e = entry("a", 2, "x");
      e.attr.mirror = 0;
      e.host_only = 1;
      tenure(e, 3, 3, row == 1 ? 0 : row == 2 ? 1 : 2);   // its copy is gone; is not whole
      if (row == 3) epochs[image(2)] = Epoch(9);          // another host had it since
    }
    RebuildPlan p = plan();
    EXPECT_EQ(only(p).record.tenure.holder, "") << row;
    EXPECT_EQ(only(p).record.has_copy, 1) << row;
    EXPECT_TRUE(only(p).level.empty()) << row;
    EXPECT_NE(only(p).from.find("restore"), std::string::npos) << row;
  }
}

TEST_F(RebuildPlanTest, OfTwoReportsOfANameTheNewerCountsAndNothingIsDropped) {
  entry("a", 2, "old", 5);
  entry("b", 2, "new", 9);
  entry("a", 3, "same", 4);
  entry("b", 4, "same", 8);
  wire::ReportEntry& orphan = entry("b", 5, "orphan", 3);
  orphan.attr.parent = InodeNumber(77);
  brick(9, 1 << 20);
  RebuildPlan p = plan();
  std::map<uint64_t, std::string> names;
  for (const Node& node : p.nodes) {
    names[node.attr.inode.value] = node.name;
    EXPECT_EQ(node.attr.parent, kRootInode);
  }
  EXPECT_EQ(names.at(2), "new");
  EXPECT_EQ(names.at(4), "same");
  EXPECT_EQ(names.at(3), "same.recovered-3");
  EXPECT_EQ(names.at(5), "orphan.recovered-5");
  EXPECT_EQ(p.nodes.size(), 5u);
  EXPECT_EQ(p.nodes.back().name, "recovered-" + image(9).to_string());
  for (const Node& node : p.nodes) EXPECT_LT(node.attr.inode, p.next_inode);
  EXPECT_GT(p.event, EventNumber(9));
}

TEST_F(RebuildPlanTest, AnImageWhoseHostKnowsNoNameOfItGetsAnothersOrOneOfItsOwn) {
  for (uint64_t inode : {2u, 3u}) {
    const std::string none = "recovered-" + image(static_cast<uint8_t>(inode)).to_string();
    tenure(entry("a", inode, none, 9), 5, 5, 2, true);
  }
  entry("b", 2, "older", 3);
  entry("c", 2, "newer", 5);
  RebuildPlan p = plan();
  std::map<uint64_t, std::string> names;
  for (const Node& node : p.nodes) {
    names[node.attr.inode.value] = node.name;
    EXPECT_EQ(p.images.at(node.attr.image).record.tenure.holder, "a");
    EXPECT_EQ(node.attr.event, EventNumber(9)) << "all else is of the newest report";
  }
  EXPECT_EQ(names.at(2), "newer");
  EXPECT_EQ(names.at(3), "recovered-" + image(3).to_string());
}

// It was renamed since, and another was made where it stood: an old report does not know that.
TEST_F(RebuildPlanTest, AnImageOfUnknownNameDoesNotGetOneThatIsAnothersByNow) {
  const std::string none = "recovered-" + image(2).to_string();
  tenure(entry("a", 2, none, 9), 5, 5, 2, true);
  entry("b", 2, "disk", 1);
  entry("c", 3, "disk", 5);
  std::map<uint64_t, std::string> names;
  for (const Node& node : plan().nodes) names[node.attr.inode.value] = node.name;
  EXPECT_EQ(names.at(2), none);
  EXPECT_EQ(names.at(3), "disk");
}

TEST_F(RebuildPlanTest, ADeviceIsPlacedAsItWasAndHasNoBlocks) {
  wire::ReportEntry& e = entry("a", 2, "disk");
  e.attr.kind = wire::NodeKind::kBlockDevice;
  e.attr.image = ImageId();
  e.attr.target = "8:1";
  RebuildPlan p = plan();
  ASSERT_EQ(p.nodes.size(), 1u);
  EXPECT_EQ(p.nodes[0].name, "disk");
  EXPECT_EQ(p.nodes[0].attr.kind, wire::NodeKind::kBlockDevice);
  EXPECT_EQ(p.nodes[0].attr.target, "8:1");
  EXPECT_TRUE(p.images.empty());
}

TEST_F(RebuildPlanTest, DirectoriesInACircleComeToTheRoot) {
  for (uint64_t inode : {2, 3}) {
    wire::ReportEntry& e = entry("a", inode, "d" + std::to_string(inode));
    e.attr.kind = wire::NodeKind::kDirectory;
    e.attr.image = ImageId();
    e.attr.parent = InodeNumber(5 - inode);
  }
  NameSpace names(WallTime{0});
  RebuildPlan p = plan();
  for (const Node& node : p.nodes) names.load(node);
  names.set_counters(p.next_inode, p.event);
  Status loaded = names.finish_loading();
  EXPECT_TRUE(loaded) << loaded.to_string();
}

}  // namespace
}  // namespace tidemark::node
