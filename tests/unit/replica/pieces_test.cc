// Pieces of a resync: kept aside until the batch that ends it, applied with it at one point, the newer over the older.
#include <gtest/gtest.h>

#include "replica/overlay.h"
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kOne = test_uuid(1, 0x11), kOther = test_uuid(2, 0x11);
constexpr uint64_t kUnit = 4096;

wire::Mark create_of(const Uuid& image, uint64_t number, const std::string& origin) {
  wire::Mark mark;
  mark.kind = wire::MarkKind::kCreate;
  mark.number = EventNumber(number);
  mark.origin = origin;
  mark.node.image = image;
  mark.node.inode = InodeNumber(number + 10);
  mark.node.parent = InodeNumber(1);
  mark.name = "image" + std::to_string(number);
  return mark;
}
Piece units(uint64_t first, uint64_t count, uint8_t value) { return {first * kUnit, Bytes(count * kUnit, value)}; }
std::string bytes_of(std::initializer_list<std::pair<uint64_t, char>> runs) {
  std::string out;
  for (auto [count, value] : runs) out += std::string(count * kUnit, value);
  return out;
}

class PiecesTest : public testing::Test {
 protected:
  PiecesTest() {
    auto made = host1.make({slice(kOne, {units(0, 4, 'a')})}, {create_of(kOne, 1, "host1")});
    EXPECT_EQ(h.put(host1, made).json()["applied"], true);
  }
  static SliceSpec slice(const Uuid& image, std::vector<Piece> pieces, uint64_t size = 4 * kUnit) {
    return {.image = image, .size = size, .pieces = std::move(pieces)};
  }
  Harness::Answer piece(std::vector<SliceSpec> slices, uint32_t parts = 1) {
    host1.kind = journal::BatchKind::kPiece;
    auto made = host1.make(std::move(slices), {}, {}, parts);
    Harness::Answer answer;
    for (uint32_t part = 0; part < parts; ++part) answer = h.put(host1, made, part);
    return answer;
  }
  Harness::Answer end(std::vector<SliceSpec> slices) {
    host1.kind = journal::BatchKind::kResync;
    return h.put(host1, host1.make(std::move(slices)));
  }
  size_t points() { return h.get("/v1/points").json()["points"].size(); }
  Harness h;
  BatchMaker host1{"host1"}, host2{"host2"};
};

TEST_F(PiecesTest, NothingOfThemIsShownBeforeTheEnd) {
  auto answer = piece({slice(kOne, {units(0, 2, 'b')})});
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json()["complete"], true);
  EXPECT_EQ(answer.json()["applied"], false);
  EXPECT_EQ(answer.json()["waits_for"][0], "the end of its resync");
  // Another source's points go on meanwhile, and show what was.
  auto made = host2.make({slice(kOther, {units(0, 1, 'x')}, kUnit)}, {create_of(kOther, 2, "host2")});
  ASSERT_EQ(h.put(host2, made).json()["applied"], true);
  EXPECT_EQ(points(), 2u);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{4, 'a'}}));
  EXPECT_EQ(end({slice(kOne, {units(3, 1, 'c')})}).json()["applied"], true);
  EXPECT_EQ(points(), 3u);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{2, 'b'}, {1, 'a'}, {1, 'c'}}));
  EXPECT_EQ(h.data("2", kOne), bytes_of({{4, 'a'}}));
  EXPECT_EQ(h.get("/v1/points/latest").json()["kind"], "resync");
}

TEST_F(PiecesTest, AnImageThatAPieceSaysIsWholeIsAppliedWithoutWhatNeverComes) {
  wire::Mark opened = create_of(kOne, 7, "host2"), whole = opened;
  opened.kind = wire::MarkKind::kOpenWrite;
  whole.kind = wire::MarkKind::kWhole;
  auto taken = [&](std::vector<Piece> pieces) {
    SliceSpec out = slice(kOne, std::move(pieces));
    out.epoch = Epoch(2);
    out.parent = {Epoch(1), "host1", {Incarnation(1), Counter(1'000'000)}, wire::kTaken};
    return out;
  };
  host2.kind = journal::BatchKind::kPiece;
  ASSERT_EQ(h.put(host2, host2.make({taken({units(0, 4, 'z')})}, {opened, whole})).status, 200);
  host2.kind = journal::BatchKind::kResync;
  auto answer = h.put(host2, host2.make({taken({units(0, 1, 'y')})}));
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json()["applied"], false) << "what host1 has not sent yet is waited for";
  EXPECT_EQ(points(), 1u);
  // It is known after a restart, too.
  h.restart();
  h.world.run_for(std::chrono::hours(2));
  EXPECT_EQ(points(), 2u);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'y'}, {3, 'z'}}));
}

TEST_F(PiecesTest, WhatIsNewerLiesOverWhatIsOlder) {
  piece({slice(kOne, {units(0, 4, 'b')})});
  piece({slice(kOne, {units(1, 2, 'c')})}, 2);
  piece({slice(kOne, {Piece{.offset = 2 * kUnit, .data = {}, .zeros = kUnit}})});
  end({slice(kOne, {units(0, 1, 'd')})});
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'd'}, {1, 'c'}, {1, '\0'}, {1, 'b'}}));
}

TEST_F(PiecesTest, TheyOutliveARestartAndTheImageThatTheEndDoesNotNameIsLeftOut) {
  auto made = host1.make({slice(kOther, {units(0, 1, 'o')}, kUnit)}, {create_of(kOther, 3, "host1")});
  ASSERT_EQ(h.put(host1, made).json()["applied"], true);
  piece({slice(kOne, {units(0, 4, 'b')}), slice(kOther, {units(0, 1, 'p')}, kUnit)});
  h.restart();
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{4, 'a'}}));
  EXPECT_EQ(end({slice(kOne, {})}).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{4, 'b'}}));
  EXPECT_EQ(h.data("latest", kOther), bytes_of({{1, 'o'}}));
  h.restart();
  // They are done with: the next batch does not bring them again.
  ASSERT_EQ(h.put(host1, host1.make({slice(kOne, {units(1, 1, 'e')})})).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'b'}, {1, 'e'}, {2, 'b'}}));
}

TEST_F(PiecesTest, AResyncThatBeganAgainDropsWhatCameInPart) {
  host1.kind = journal::BatchKind::kPiece;
  host1.supersedes_first = BatchNumber(2);
  host1.supersedes_last = BatchNumber(4);
  const Sha256 previous = host1.previous();
  auto half = host1.make({slice(kOne, {units(0, 1, 'b'), units(2, 1, 'b')})}, {}, {}, 2);
  ASSERT_EQ(h.put(host1, half, 0).json()["complete"], false);
  host1.set_chain(BatchNumber(9), previous);
  host1.kind = journal::BatchKind::kPiece;
  host1.supersedes_first = BatchNumber(2);
  host1.supersedes_last = BatchNumber(8);
  ASSERT_EQ(h.put(host1, host1.make({slice(kOne, {units(1, 1, 'c')})})).json()["complete"], true);
  EXPECT_EQ(end({slice(kOne, {})}).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'a'}, {1, 'c'}, {2, 'a'}}));
}

TEST(OverlayTest, SplitsWhatIsCoveredInTheMiddle) {
  Overlay overlay;
  overlay.lay({{0, 10 * kUnit}, SegmentId(1), 0});
  overlay.lay({{2 * kUnit, 3 * kUnit}, SegmentId(2), 7 * kUnit});
  overlay.lay({{4 * kUnit, kUnit}, SegmentId(0), 0});
  overlay.lay({{9 * kUnit, 4 * kUnit}, SegmentId(3), 0});
  std::vector<std::array<uint64_t, 4>> got;
  for (const Change& c : overlay.take()) {
    got.push_back({c.extent.offset / kUnit, c.extent.length / kUnit, c.segment.value, c.position / kUnit});
  }
  EXPECT_EQ(got,
            (std::vector<std::array<uint64_t, 4>>{
                {0, 2, 1, 0}, {2, 2, 2, 7}, {4, 1, 0, 0}, {5, 4, 1, 5}, {9, 4, 3, 0}}));
  EXPECT_TRUE(overlay.take().empty());
}

}  // namespace
}  // namespace tidemark::replica
