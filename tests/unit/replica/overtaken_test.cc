// Images whose newer tenure was applied before an older one: the older holder's points say so, each of them, and only
// those that do not show the image as that host had it.
#include <gtest/gtest.h>

#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kOne = test_uuid(1, 0x11), kOther = test_uuid(2, 0x11);
constexpr uint64_t kUnit = 4096;
constexpr uint64_t kLaidOut = 4;   // commits of a resync's end until its blocks are at its point

Piece units(uint64_t first, uint64_t count, char value) {
  return {first * kUnit, Bytes(count * kUnit, static_cast<uint8_t>(value))};
}
SliceSpec slice(const Uuid& image, uint64_t epoch, std::vector<Piece> pieces, wire::TenureParent parent = {}) {
  return {.image = image, .epoch = Epoch(epoch), .parent = parent, .size = 4 * kUnit, .pieces = std::move(pieces)};
}
std::string all(char value) { return std::string(4 * kUnit, value); }
// The shared node's word that host1's tenure of `kOne` was taken, and how far the shared copy had it.
wire::Mark taken_from_host1(WriteSequence known) {
  wire::Mark ended = open_mark("shared1", 11, kOne);
  ended.kind = wire::MarkKind::kTenureEnd;
  ended.number = EventNumber(9);
  ended.epoch = Epoch(2);
  ended.parent = {Epoch(2), "host1", known, wire::kTaken};
  return ended;
}
std::vector<std::string> texts(const Json& point) { return point.value("without", std::vector<std::string>{}); }

class OvertakenTest : public testing::Test {
 protected:
  OvertakenTest() {
    auto made = host1.make({slice(kOne, 2, {units(0, 4, 'a')}), slice(kOther, 1, {units(0, 4, 'o')})},
                           {create_mark(1, "host1", 11, kOne, "one"), create_mark(2, "host1", 12, kOther, "other")});
    EXPECT_EQ(h.put(host1, made).json()["applied"], true);
  }
  WriteSequence of_host1(uint64_t counter) const { return {host1.incarnation, Counter(counter)}; }
  std::vector<std::string> without(const std::string& point) { return texts(h.get("/v1/points/" + point).json()); }
  // An answer that did not come is asked for again, of the replica that was started anew.
  void put(const BatchMaker& host, const BatchMaker::Made& made) {
    for (int tries = 0; tries < 3; ++tries) {
      if (h.put(host, made).status == 200) return;
      h.reopen_after_crash();
    }
    FAIL() << "it is not taken";
  }
  // host2's resync of `kOne` and host1's batches wait for each other. Of host1's the first, which is named, holds
  // nothing of that image; the second ends its tenure there; the third comes after that.
  void circle(uint64_t crash_at) {
    const WriteSequence tenure_end = of_host1(host1.counter().value + 2);
    host2.kind = journal::BatchKind::kPiece;
    auto newer = slice(kOne, 3, {units(0, 4, 'n')}, {Epoch(2), "host1", tenure_end, 1});
    auto piece = host2.make({newer}, {open_mark("host2", 11, kOne), open_mark("host2", 12, kOther)});
    newer.pieces.clear();
    host2.kind = journal::BatchKind::kResync;
    auto end = host2.make({newer});
    auto named = host1.make({slice(kOther, 5, {units(0, 4, 'p')}, {Epoch(4), "host2", end.last, 1})}, {}, "mark");
    auto last = host1.make({slice(kOne, 2, {units(0, 1, 'm')})});
    EXPECT_EQ(last.last, tenure_end);
    auto later = host1.make({slice(kOther, 5, {units(0, 4, 'q')})});
    put(host2, piece);
    for (const auto* made : {&named, &last, &later}) put(host1, *made);
    if (crash_at != 0) h.world.inject("replica", sim::CrashPoint{.nth = crash_at, .at_commits = true});
    put(host2, end);
  }
  Harness h;
  BatchMaker host1{"host1"}, host2{"host2"};
};

TEST_F(OvertakenTest, APointWhoseBatchHoldsNothingOfTheImageSaysItToo) {
  circle(0);
  for (int round = 0; round < 2; ++round, h.restart()) {
    ASSERT_EQ(h.data("mark", kOne), all('n'));
    EXPECT_EQ(h.data("mark", kOther), all('p'));
    const std::string text =
        "image " + kOne.to_string() + ", which is shown as epoch 3 has it, not as host1 had it then";
    EXPECT_EQ(without("mark"), std::vector<std::string>{text});
    EXPECT_EQ(without("4"), std::vector<std::string>{text});   // where the tenure ends
    EXPECT_EQ(without("2"), std::vector<std::string>{});       // host2's own
    EXPECT_EQ(without("5"), std::vector<std::string>{});       // host1 has given it back by then
  }
}

TEST(Overtaken, IsKnownAfterACrashAtEveryCommit) {
  class Run : public OvertakenTest {
   public:
    void TestBody() override {}
    void go(uint64_t nth) {
      circle(nth);
      h.world.run_for(std::chrono::seconds(5));
      EXPECT_EQ(h.data("mark", kOne), all('n'));
      EXPECT_EQ(without("mark").size(), 1u) << "crashed at commit " << nth;
      EXPECT_EQ(without("4").size(), 1u) << "crashed at commit " << nth;
      EXPECT_EQ(without("5").size(), 0u) << "crashed at commit " << nth;
    }
  };
  for (uint64_t nth = 1; nth < 15; ++nth) Run().go(nth);
}

// What a resync's end shows of an image that its host has given back long since is right.
TEST_F(OvertakenTest, TheEndOfAResyncAfterTheTenureIsNotWithoutTheImage) {
  const WriteSequence tenure_end = of_host1(host1.counter().value + 2);
  host2.kind = journal::BatchKind::kPiece;
  auto newer = slice(kOne, 3, {units(0, 4, 'n')}, {Epoch(2), "host1", tenure_end, 1});
  put(host2, host2.make({newer}, {open_mark("host2", 11, kOne), open_mark("host2", 12, kOther)}));
  newer.pieces.clear();
  host2.kind = journal::BatchKind::kResync;
  auto end = host2.make({newer});
  put(host1, host1.make({slice(kOther, 5, {units(0, 4, 'p')}, {Epoch(4), "host2", end.last, 1})}, {}, "mark"));
  host1.kind = journal::BatchKind::kPiece;
  put(host1, host1.make({slice(kOne, 2, {units(0, 1, 'm')})}));
  host1.kind = journal::BatchKind::kResync;
  auto own = host1.make({slice(kOne, 2, {})});
  EXPECT_LT(tenure_end, own.last);
  put(host1, own);
  put(host2, end);
  ASSERT_EQ(h.data("latest", kOne), all('n'));
  EXPECT_EQ(h.data("latest", kOther), all('p'));
  EXPECT_EQ(h.get("/v1/points/latest").json()["source"], "host1");
  EXPECT_EQ(without("mark").size(), 1u);
  EXPECT_EQ(without("latest"), std::vector<std::string>{});
}

// Of a tenure that was taken by force the point shows what is left, whatever the new one has written by then.
TEST_F(OvertakenTest, APointOfALostTenureSaysThatItWasTaken) {
  BatchMaker shared("shared1");
  const wire::Mark ended = taken_from_host1(of_host1(host1.counter().value));
  ASSERT_EQ(h.put(shared, shared.make({}, {ended}), 0, net::Role::kShared).status, 200);
  put(host1, host1.make({slice(kOne, 2, {units(0, 4, 'b')}), slice(kOther, 1, {units(0, 4, 'p')})}));
  ASSERT_EQ(h.data("latest", kOne), all('a'));
  EXPECT_EQ(without("latest"), std::vector<std::string>{"image " + kOne.to_string() +
                                   ", which was taken from host1 by force: what it wrote there is a branch"});
}

// A whole image stood in for what did not come. Should that come late, each of its points says what it shows.
TEST_F(OvertakenTest, APointThatCameTooLateForAGapSaysIt) {
  const WriteSequence tenure_end = of_host1(host1.counter().value + 2);
  wire::Mark whole = open_mark("host2", 11, kOne);
  whole.kind = wire::MarkKind::kWhole;
  put(host2, host2.make({slice(kOne, 3, {units(0, 4, 'n')}, {Epoch(2), "host1", tenure_end, wire::kTaken})},
                        {open_mark("host2", 11, kOne), whole}));
  h.world.run_for(std::chrono::hours(1));
  ASSERT_EQ(h.data("latest", kOne), all('n'));
  h.restart();
  put(host1, host1.make({slice(kOther, 1, {units(0, 4, 'p')})}, {}, "late"));
  ASSERT_EQ(h.data("late", kOne), all('n'));
  EXPECT_EQ(without("late").size(), 1u);
}

// What was decided of a batch that is applied in steps stays, whatever is heard before it is: its blocks lie at its
// point by then, which an image that it is to leave out now would be shown with.
TEST(Overtaken, WhatWasDecidedOfAResyncsEndOutlivesACrash) {
  int reached = 0;   // it was heard of between the steps
  for (int us = 1; us < 4000; us += us < 200 ? 5 : 100) {
    Harness h;
    BatchMaker host1("host1"), shared("shared1");
    auto made = host1.make({slice(kOne, 2, {units(0, 4, 'a')})}, {create_mark(1, "host1", 11, kOne, "one")});
    ASSERT_EQ(h.put(host1, made).status, 200);
    const WriteSequence known{host1.incarnation, host1.counter()};
    host1.kind = journal::BatchKind::kPiece;
    ASSERT_EQ(h.put(host1, host1.make({slice(kOne, 2, {units(0, 4, 'b')})})).status, 200);
    host1.kind = journal::BatchKind::kResync;
    const auto end = host1.make({slice(kOne, 2, {})});
    // The store is full once the blocks lie at the point, and has room again at one moment or another.
    const uint64_t before = h.world.commits("replica");
    std::function<void()> fill = [&] {
      if (h.world.commits("replica") < before + kLaidOut) return h.world.at(std::chrono::microseconds(1), fill);
      const Status full(Code::kOutOfSpace, "full");
      h.world.set_store_fault("replica", sim::StoreFault{.path_contains = "/state/store", .status = full});
    };
    fill();
    ASSERT_EQ(h.put(host1, end).json()["applied"], false);
    h.world.at(std::chrono::microseconds(us), [&] {
      h.world.set_store_fault("replica", std::nullopt);
      h.world.inject("replica", sim::CrashPoint{.nth = 2, .at_commits = true});
    });
    const auto taken = shared.make({}, {taken_from_host1(known)});
    if (h.put(shared, taken, 0, net::Role::kShared).status == 0) h.reopen_after_crash();
    const std::string stream = "/v1/sources/shared1/" + shared.generation().to_string();
    const Json now = h.ask({.method = "GET", .target = stream}, "shared1", net::Role::kShared).json();
    const bool heard = now["expected"] == 2;
    reached += heard && h.get("/v1/points").json()["points"].size() == 1;
    h.world.run_for(std::chrono::minutes(10));
    if (!h.env->alive()) h.reopen_after_crash();
    h.world.run_for(std::chrono::minutes(10));
    EXPECT_EQ(h.get("/v1/points/2").json()["source"], "host1");
    EXPECT_EQ(h.data("2", kOne), all('b')) << us;
    EXPECT_TRUE(texts(h.get("/v1/points/2").json()).empty()) << us;
  }
  EXPECT_GT(reached, 0);
}

}  // namespace
}  // namespace tidemark::replica
