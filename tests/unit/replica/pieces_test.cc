// Pieces of a resync: kept aside until the batch that ends it, applied with it at one point, the newer over the older.
#include <gtest/gtest.h>

#include <functional>

#include "replica/overlay.h"
#include "tests/repeat.h"
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

// host1's lost tenure made it longer; the one that host2 took by force does so too, before its first cut.
TEST_F(PiecesTest, OfAnImageThatIsWholeNothingIsLeftOfWhatALostTenureAdded) {
  const WriteSequence held{Incarnation(1), host1.counter()};
  SliceSpec tail = slice(kOne, {units(3, 5, 'l')}, 8 * kUnit);
  ASSERT_EQ(h.put(host1, host1.make({tail})).json()["applied"], true);
  wire::Mark opened = create_of(kOne, 7, "host2"), whole = opened;
  opened.kind = wire::MarkKind::kOpenWrite;
  whole.kind = wire::MarkKind::kWhole;
  SliceSpec taken = slice(kOne, {units(0, 1, 'n'), {.offset = kUnit, .data = {}, .zeros = 3 * kUnit}}, 8 * kUnit);
  taken.epoch = Epoch(2);
  taken.parent = {Epoch(1), "host1", held, wire::kTaken};
  auto answer = h.put(host2, host2.make({taken}, {opened, whole}));
  ASSERT_EQ(answer.json()["applied"], true) << answer.body;
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'n'}, {7, '\0'}}));
}

// The end of host2's resync was applied, and the answer lost: the mark comes again, with nothing of the image.
TEST_F(PiecesTest, AnImageThatIsSaidToBeWholeOnceMoreKeepsWhatItHas) {
  const WriteSequence held{Incarnation(1), host1.counter()};
  wire::Mark opened = create_of(kOne, 7, "host2"), whole = opened;
  opened.kind = wire::MarkKind::kOpenWrite;
  whole.kind = wire::MarkKind::kWhole;
  SliceSpec taken = slice(kOne, {units(0, 4, 'n')});
  taken.epoch = Epoch(7);
  taken.parent = {Epoch(1), "host1", held, wire::kTaken};
  host2.kind = journal::BatchKind::kPiece;
  ASSERT_EQ(h.put(host2, host2.make({taken}, {opened})).status, 200);
  taken.pieces.clear();
  host2.kind = journal::BatchKind::kResync;
  ASSERT_EQ(h.put(host2, host2.make({taken}, {whole})).json()["applied"], true);
  ASSERT_EQ(h.data("latest", kOne), bytes_of({{4, 'n'}}));
  ASSERT_EQ(h.put(host2, host2.make({taken}, {whole})).json()["applied"], true);
  EXPECT_EQ(points(), 3u);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{4, 'n'}}));
}

TEST_F(PiecesTest, ItsSourceIsToldOfWhichPointABatchWasThatWasHeld) {
  host1.kind = journal::BatchKind::kPiece;
  const auto made = host1.make({slice(kOne, {units(0, 2, 'b')})});
  const std::string target = "/v1/points/resolve?generation=" + host1.generation().to_string() + "&batch=";
  auto ask = [&](const std::string& number, const std::string& source = "host1") {
    return h.ask({.method = "GET", .target = target + number}, source, net::Role::kHost);
  };
  const std::string number = std::to_string(made.number.value);
  EXPECT_EQ(ask(number).status, 404) << "it has not come";
  ASSERT_EQ(h.put(host1, made).json()["applied"], false);
  EXPECT_EQ(ask(number).status, 404) << "it waits";
  ASSERT_EQ(end({slice(kOne, {units(3, 1, 'c')})}).json()["applied"], true);
  EXPECT_EQ(ask(number).json()["id"], 2);
  EXPECT_EQ(ask("1").json()["id"], 1);
  EXPECT_EQ(ask(number, "host2").status, 404) << "another source's";
  EXPECT_EQ(ask("x").status, 400);
}

// host2's resync and a batch of host1 wait for each other: the resync goes first. host1's named point then has the one
// image as host2 wrote it later, and says so to whoever asks for it, also after a restart; of the other it is right.
TEST_F(PiecesTest, APointBehindACircleSaysWhichImageItIsWithout) {
  auto made = host1.make({slice(kOther, {units(0, 1, 'o')}, kUnit)}, {create_of(kOther, 2, "host1")});
  ASSERT_EQ(h.put(host1, made).status, 200);
  const WriteSequence of_host1{Incarnation(1), Counter(host1.counter().value + 2)};
  wire::Mark opened = create_of(kOne, 7, "host2");
  opened.kind = wire::MarkKind::kOpenWrite;
  SliceSpec later = slice(kOne, {units(0, 4, 'n')});
  later.epoch = Epoch(3);
  later.parent = {Epoch(2), "host1", of_host1, 1};
  host2.kind = journal::BatchKind::kPiece;
  ASSERT_EQ(h.put(host2, host2.make({later}, {opened})).status, 200);
  later.pieces.clear();
  host2.kind = journal::BatchKind::kResync;
  const auto end = host2.make({later});
  SliceSpec older = slice(kOne, {units(0, 1, 'm')}), other = slice(kOther, {units(0, 1, 'p')}, kUnit);
  older.epoch = Epoch(2);
  other.epoch = Epoch(5);
  other.parent = {Epoch(4), "host2", end.last, 1};
  const auto named = host1.make({older, other}, {}, "mark");
  ASSERT_EQ(named.last, of_host1);
  ASSERT_EQ(h.put(host1, named).json()["applied"], false);
  ASSERT_EQ(h.put(host2, end).json()["applied"], true);
  ASSERT_EQ(h.data("mark", kOne), bytes_of({{4, 'n'}}));
  EXPECT_EQ(h.data("mark", kOther), bytes_of({{1, 'p'}}));
  for (int round = 0; round < 2; ++round, h.restart()) {
    for (const char* asked : {"/v1/points/resolve?name=mark", "/v1/points/mark", "/v1/points/resolve?id=latest"}) {
      const Json without = h.get(asked).json()["without"];
      ASSERT_EQ(without.size(), 1u) << asked << ": " << without;
      EXPECT_NE(without[0].get<std::string>().find(kOne.to_string()), std::string::npos) << without;
    }
    EXPECT_FALSE(h.get("/v1/points/2").json().contains("without"));
  }
}

// What a piece made is known before its end is there: whatever reads the catalogue anew between the two, another
// source's new image is kept apart from it.
class NewImagesTest : public PiecesTest, public testing::WithParamInterface<bool> {};

TEST_P(NewImagesTest, WhatAPieceMadeAndWhatAnotherSourceMakesAreTwo) {
  host1.kind = journal::BatchKind::kPiece;
  const auto made = host1.make({slice(kOther, {units(0, 4, 'x')})}, {create_of(kOther, 2, "host1")});
  ASSERT_EQ(h.put(host1, made).status, 200);
  const Uuid third = test_uuid(3, 0x11);
  const auto next = host2.make({slice(third, {units(0, 4, 'z')})}, {create_of(third, 3, "host2")});
  if (GetParam()) {
    h.restart();
  } else {
    h.world.fail_next_commit("replica", Status(Code::kOutOfSpace, "full"));
    ASSERT_EQ(h.put(host2, next).status, 507);
  }
  ASSERT_EQ(h.put(host2, next).json()["applied"], true);
  ASSERT_EQ(end({slice(kOther, {units(3, 1, 'y')})}).json()["applied"], true);
  EXPECT_EQ(h.data("latest", third), bytes_of({{4, 'z'}}));
  EXPECT_EQ(h.data("latest", kOther), bytes_of({{3, 'x'}, {1, 'y'}}));
  h.restart();
  EXPECT_TRUE(h.replica->health().empty());
}
INSTANTIATE_TEST_SUITE_P(AfterARestartOrAFullStore, NewImagesTest, testing::Bool());

TEST_F(PiecesTest, AStoreThatNamesATakenIndexAsTheNextOneIsMended) {
  auto meta = read_record<MetaRecord>(*h.replica->store().snapshot(), kMeta, as_bytes("store"));
  ASSERT_TRUE(meta.is_ok());
  meta->next_image = ImageIndex(1);   // that of kOne
  kv::WriteBatch out;
  put_record(out, kMeta, as_bytes("store"), *meta);
  ASSERT_TRUE(h.replica->store().commit_and_wait(std::move(out)).is_ok());
  h.restart();
  ASSERT_EQ(h.put(host2, host2.make({slice(kOther, {units(0, 4, 'z')})}, {create_of(kOther, 2, "host2")})).status, 200);
  EXPECT_EQ(h.data("latest", kOther), bytes_of({{4, 'z'}}));
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{4, 'a'}}));
}

TEST_F(PiecesTest, AStoreThatHasTwoImagesInOnePlaceSaysSo) {
  kv::WriteBatch out;
  put_record(out, kImages, kOther.bytes, ImageRecord{ImageIndex(1), 1});
  ASSERT_TRUE(h.replica->store().commit_and_wait(std::move(out)).is_ok());
  h.restart();
  const std::vector<std::string> reasons = h.replica->health();
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find(kOne.to_string()), std::string::npos) << reasons[0];
  EXPECT_NE(reasons[0].find(kOther.to_string()), std::string::npos) << reasons[0];
  ASSERT_EQ(h.replica->alarms(10).size(), 1u);
  EXPECT_EQ(h.replica->alarms(10)[0].kind, "mixed_images");
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

// Another host cuts the image between a piece and the end, and its own batch that says so becomes a branch.
TEST_F(PiecesTest, WhatWasCutOffSinceAPieceDoesNotComeBack) {
  piece({slice(kOne, {units(1, 3, 'b')})});
  piece({slice(kOne, {units(3, 1, 'c')})});
  ASSERT_EQ(end({slice(kOne, {}, 2 * kUnit)}).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'a'}, {1, 'b'}}));
  ASSERT_EQ(h.put(host1, host1.make({slice(kOne, {})})).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{1, 'a'}, {1, 'b'}, {2, '\0'}}));
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

// Room is made, and nobody sends anything more.
TEST_F(PiecesTest, AFullStoreSaysSoAndGoesOnByItselfOnceThereIsRoom) {
  piece({slice(kOne, {units(0, 4, 'b')})});
  host1.kind = journal::BatchKind::kResync;
  const auto made = host1.make({slice(kOne, {units(3, 1, 'c')})});
  const uint64_t before = h.world.commits("replica");
  std::function<void()> fill = [&] {   // once the end is taken
    if (h.world.commits("replica") == before) return h.world.at(std::chrono::microseconds(1), fill);
    const Status full(Code::kOutOfSpace, "full");
    h.world.set_store_fault("replica", sim::StoreFault{.path_contains = "/state/store", .status = full});
  };
  fill();
  const Harness::Answer answer = h.put(host1, made);
  ASSERT_EQ(answer.status, 200) << answer.body;
  ASSERT_EQ(answer.json()["applied"], false);
  for (int i = 0; i < 20; ++i) {
    h.world.run_for(std::chrono::seconds(61));
    ASSERT_FALSE(h.replica->health().empty()) << "it stands still";
  }
  EXPECT_EQ(points(), 1u);
  h.world.set_store_fault("replica", std::nullopt);
  h.world.run_for(std::chrono::minutes(10));
  ASSERT_EQ(points(), 2u);
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{3, 'b'}, {1, 'c'}}));
  EXPECT_TRUE(h.replica->health().empty()) << h.replica->health().front();
}

// Each part that is refused for the same reason would have the whole resync laid out again.
TEST_F(PiecesTest, RefusedPartsDoNotBringTheNextTryForward) {
  piece({slice(kOne, {units(0, 4, 'b')})});
  host1.kind = journal::BatchKind::kResync;
  const auto made = host1.make({slice(kOne, {units(3, 1, 'c')})});
  const uint64_t before = h.world.commits("replica");
  std::function<void()> fill = [&] {   // once the end is taken, and its blocks begin to be laid out
    if (h.world.commits("replica") < before + 2) return h.world.at(std::chrono::microseconds(1), fill);
    const Status full(Code::kOutOfSpace, "full");
    h.world.set_store_fault("replica", sim::StoreFault{.path_contains = "/state/store", .status = full});
  };
  fill();
  ASSERT_EQ(h.put(host1, made).json()["applied"], false);
  h.world.run_for(std::chrono::minutes(20));   // it is tried once in five minutes by now
  const auto next = host2.make({slice(kOther, {units(0, 1, 'x')}, kUnit)}, {create_of(kOther, 2, "host2")});
  const uint64_t tries = h.replica->intake().counters().steps;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(h.put(host2, next).status, 507);
    h.world.run_for(std::chrono::seconds(1));
  }
  EXPECT_LE(h.replica->intake().counters().steps - tries, 1u);
  h.world.set_store_fault("replica", std::nullopt);
  EXPECT_EQ(h.put(host2, next).status, 200);   // there was room for it: so there may be for the rest
  h.world.run_for(std::chrono::seconds(1));
  EXPECT_EQ(h.data("latest", kOne), bytes_of({{3, 'b'}, {1, 'c'}}));
}

// ---- in steps -------------------------------------------------------------------------------------

TEST(IndexTest, TheReplicaSaysSoWhileThereIsStillRoomInItsIndex) {
  Harness h;
  EXPECT_EQ(h.get("/v1/status").json()["storage"]["index_bytes_max"], kIndexBytesMax);
  h.index_bytes_max = 256 << 10;
  h.restart();
  EXPECT_TRUE(h.replica->health().empty());
  BatchMaker host1("host1");
  const Uuid image = test_uuid(1);
  std::vector<wire::Mark> marks{create_mark(1, "host1", 2, image, "a.img")};
  auto used = [&] { return h.get("/v1/status").json()["storage"]["index_used_bytes"].get<uint64_t>(); };
  for (uint64_t i = 0; used() < h.index_bytes_max / 10 * 9; ++i) {
    EXPECT_TRUE(h.replica->health().empty());
    SliceSpec s{.image = image, .size = 1ull << 40, .pieces = {{i << 20, pattern(i, 4096)}}};
    ASSERT_EQ(h.put(host1, host1.make({s}, std::exchange(marks, {}))).status, 200);
  }
  ASSERT_EQ(h.replica->health().size(), 1u);
  EXPECT_NE(h.replica->health()[0].find("index"), std::string::npos) << h.replica->health()[0];
}

TEST(StepsTest, NoTransactionGrowsWithTheResync) {
  Harness h(1, 64);
  BatchMaker host("host1");
  constexpr uint64_t kUnits = 20'000;
  const uint64_t size = 2 * kUnits * kUnit;
  ASSERT_EQ(h.put(host, host.make({{.image = kOne, .size = size}}, {create_of(kOne, 1, "host1")})).status, 200);
  for (int round = 0; round < 2; ++round) {
    std::vector<Piece> pieces;   // no two of them adjacent
    for (uint64_t i = 0; i < kUnits; ++i) pieces.push_back({.offset = 2 * i * kUnit, .data = {}, .zeros = kUnit});
    for (uint64_t i = 0; i < kUnits; i += 1000) pieces[i] = units(2 * i, 1, static_cast<uint8_t>('a' + round));
    host.kind = journal::BatchKind::kPiece;
    ASSERT_EQ(h.put(host, host.make({{.image = kOne, .size = size, .pieces = std::move(pieces)}})).status, 200);
  }
  host.kind = journal::BatchKind::kResync;
  ASSERT_EQ(h.put(host, host.make({{.image = kOne, .size = size}})).json()["applied"], true);
  const IntakeCounters& counters = h.replica->intake().counters();
  EXPECT_LE(counters.step_rows_max, 2u * 64) << "the leaves are " << size / kLeafBytes;
  EXPECT_GE(counters.steps, 2 * kUnits / 64);
  EXPECT_EQ(h.data("latest", kOne, "bytes=0-4095"), std::string(kUnit, 'b'));
  EXPECT_EQ(h.data("latest", kOne, "bytes=4096-8191"), std::string(kUnit, '\0'));
}

// Pieces of every kind, against a model in memory; every other seed shrinks the image at the end.
class StepsRandomTest : public testing::TestWithParam<int> {};

TEST_P(StepsRandomTest, TheEndIsWhatWasLaidOverEachOther) {
  Harness h(static_cast<uint64_t>(GetParam()) + 1, 1 + static_cast<size_t>(GetParam()) % 5);
  sim::Random& rng = h.world.random();
  BatchMaker host("host1");
  constexpr uint64_t kAll = 40 * kLeafBytes / kUnit, kWide = kWideBytesMin / kUnit;
  std::string model(kAll, '\0');   // one letter a unit
  auto random_slice = [&](uint64_t end) {
    SliceSpec slice{.image = kOne, .size = end * kUnit};
    for (uint64_t at = rng.below(300); at < end;) {
      const bool wide = rng.chance(1, 12), zero = wide || rng.chance(1, 3);
      uint64_t count = std::min(wide ? kWide + rng.below(500) : 1 + rng.below(rng.coin() ? 4 : 400), end - at);
      const char letter = zero ? '\0' : static_cast<char>('a' + rng.below(26));
      if (zero) slice.pieces.push_back({.offset = at * kUnit, .data = {}, .zeros = count * kUnit});
      else slice.pieces.push_back(units(at, count, static_cast<uint8_t>(letter)));
      std::fill_n(model.begin() + static_cast<ptrdiff_t>(at), count, letter);
      at += count + (rng.coin() ? 0 : rng.below(1500));
    }
    return slice;
  };
  auto make = [&](journal::BatchKind kind, std::vector<wire::Mark> marks, uint64_t size) {
    host.kind = kind;
    SliceSpec slice = random_slice(size / kUnit);
    // As a source tells of it: what was cut off is zeros.
    if (size < kAll * kUnit) slice.pieces.push_back({.offset = size, .data = {}, .zeros = kAll * kUnit - size});
    const uint32_t parts = 1 + static_cast<uint32_t>(rng.below(3));
    auto made = host.make({std::move(slice)}, std::move(marks), {}, parts);
    for (uint32_t part = 0; part < parts; ++part) {
      auto answer = h.put(host, made, part);
      ASSERT_EQ(answer.status, 200) << answer.body;
    }
  };
  ASSERT_NO_FATAL_FAILURE(make(journal::BatchKind::kNormal, {create_of(kOne, 1, "host1")}, kAll * kUnit));
  uint64_t size = kAll * kUnit;
  for (int round = 0; round < 3; ++round) {
    for (uint64_t i = rng.below(4); i > 0; --i) ASSERT_NO_FATAL_FAILURE(make(journal::BatchKind::kPiece, {}, size));
    if (rng.coin()) h.restart();
    ASSERT_EQ(h.get("/v1/status").json()["points"], round + 1);
    if (round == 2 && GetParam() % 2 != 0) size -= (1 + rng.below(kAll / 2)) * kUnit;
    ASSERT_NO_FATAL_FAILURE(make(journal::BatchKind::kResync, {}, size));
    model.resize(size / kUnit);
    const std::string got = h.data("latest", kOne);
    ASSERT_EQ(got.size(), size);
    for (uint64_t i = 0; i < model.size(); ++i) {
      ASSERT_EQ(got.compare(i * kUnit, kUnit, std::string(kUnit, model[i])), 0) << "round " << round << " unit " << i;
    }
  }
  // What was cut off does not come back, and nothing of the resyncs is left beside the history.
  if (size < kAll * kUnit) {
    ASSERT_EQ(h.put(host, host.make({{.image = kOne, .size = kAll * kUnit}})).status, 200);
    const std::string got = h.data("latest", kOne);
    EXPECT_EQ(got.find_first_not_of('\0', size), std::string::npos);
  }
  auto snapshot = h.replica->store().snapshot();
  for (Table table : {kSpillLeaves, kSpillWides}) EXPECT_FALSE(snapshot->cursor(table)->first());
}
INSTANTIATE_TEST_SUITE_P(Seeds, StepsRandomTest, testing::Range(0, repeat(16, 4)));

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
