// Images that are taken by force again and again: what the hosts that lost them ship late, and what was shown of it.
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kImage = test_uuid(1), kOther = test_uuid(2);

wire::TenureParent taken_from(uint64_t epoch, const char* source, WriteSequence through) {
  return {.epoch = Epoch(epoch), .source = source, .last = through, .clean = wire::kTaken};
}
wire::Mark taken_mark(const char* host, uint64_t epoch, const wire::TenureParent& parent) {
  wire::Mark m;
  m.kind = wire::MarkKind::kTenureEnd;
  m.origin = host;
  m.node.image = kImage;
  m.epoch = Epoch(epoch);
  m.parent = parent;
  return m;
}
wire::Mark whole_mark(const char* host, uint64_t epoch) {
  wire::Mark m = open_mark(host, 2, kImage);
  m.kind = wire::MarkKind::kWhole;
  m.epoch = Epoch(epoch);
  return m;
}
SliceSpec slice(uint64_t seed, uint64_t epoch, const wire::TenureParent& parent = {}) {
  return {.image = kImage, .epoch = Epoch(epoch), .parent = parent, .pieces = {{0, pattern(seed, 4096)}}};
}

class TakeoverTest : public ::testing::Test {
 protected:
  std::string shown(const std::string& point) { return h.data(point, kImage, "bytes=0-4095"); }
  static std::string text(uint64_t seed) { return std::string(as_text(pattern(seed, 4096))); }
  // The points that are listed as lost.
  std::set<uint64_t> lost() {
    std::set<uint64_t> out;
    const Json page = h.get("/v1/points?image=" + kImage.to_string()).json();
    for (const auto& p : page["points"]) {
      if (p.contains("branch")) out.insert(p["id"].get<uint64_t>());
    }
    return out;
  }
  void tell(const std::vector<wire::Mark>& marks) {
    ASSERT_EQ(h.put(shared, shared.make({}, marks), 0, net::Role::kShared).status, 200);
  }
  // host1's writes of epoch 1: what the shared copy had, and what it had not.
  void write_by_host1() {
    auto had = host1.make({slice(1, 1)}, {create_mark(1, "host1", 2, kImage, "a.img")});
    through = had.last;
    ASSERT_EQ(h.put(host1, had).status, 200);
  }

  Harness h;
  BatchMaker host1{"host1"}, host2{"host2"}, host3{"host3"}, shared{"shared1"};
  WriteSequence through;
};

TEST_F(TakeoverTest, WhatTheFirstHostShipsAfterTheSecondTakeoverIsABranch) {
  write_by_host1();
  tell({taken_mark("host1", 1, taken_from(1, "host1", through))});
  tell({taken_mark("host2", 2, taken_from(2, "host2", {Incarnation(1), Counter(5)}))});
  for (uint64_t seed : {2, 3}) {
    ASSERT_EQ(h.put(host1, host1.make({slice(seed, 1)})).status, 200);
    EXPECT_TRUE(shown("latest") == text(1)) << seed;
    h.restart();
  }
  EXPECT_EQ(h.get("/v1/status").json()["branches"].size(), 2u);
}

TEST_F(TakeoverTest, WhatWasShownOfTheFirstHostIsABranchAlsoIfTheSecondNeverShips) {
  write_by_host1();
  ASSERT_EQ(h.put(host1, host1.make({slice(2, 1)})).json()["point"], 2);
  const auto second = taken_from(2, "host2", {Incarnation(1), Counter(5)});
  tell({taken_mark("host1", 1, taken_from(1, "host1", through)), taken_mark("host2", 2, second)});
  auto whole = host3.make({slice(4, 3, second)}, {open_mark("host3", 2, kImage), whole_mark("host3", 3)});
  ASSERT_EQ(h.put(host3, whole).status, 200);
  h.world.run_for(std::chrono::minutes(2));
  EXPECT_TRUE(shown("latest") == text(4));
  EXPECT_EQ(lost(), std::set<uint64_t>{2});
}

}  // namespace
}  // namespace tidemark::replica
