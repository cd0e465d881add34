// Consolidation against a model that paints unit by unit.
#include "journal/consolidate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>

#include "journal/granule_map.h"
#include "journal/journal.h"
#include "journal/records.h"

namespace tidemark::journal {
namespace {

constexpr uint64_t kU = kSegmentUnit;

// What each unit becomes, one record after the other.
std::map<uint64_t, ExtentKind> paint(std::vector<ChangeRecord> records, uint64_t size) {
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.counter < b.counter; });
  std::map<uint64_t, ExtentKind> units;
  for (const ChangeRecord& r : records) {
    uint64_t begin = r.offset, end = r.offset + r.length;
    if (r.kind == RecordKind::kResize) end = (end + kU - 1) / kU * kU;
    if (begin >= end || r.length == 0) continue;
    for (uint64_t u = begin / kU; u * kU < end; ++u) {
      bool whole = begin <= u * kU && (u + 1) * kU <= end;
      ExtentKind kind = ExtentKind::kData;
      if (whole && r.kind == RecordKind::kZero) kind = ExtentKind::kZero;
      if (whole && (r.kind == RecordKind::kDiscard || r.kind == RecordKind::kResize)) kind = ExtentKind::kDiscard;
      units[u] = kind;
    }
  }
  for (auto& [u, kind] : units) {
    if (kind == ExtentKind::kData && u * kU >= (size + kU - 1) / kU * kU) kind = ExtentKind::kDiscard;
  }
  return units;
}

std::vector<ChangeRecord> random_records(std::mt19937_64& rng, int count, bool mixed, uint64_t span) {
  std::vector<ChangeRecord> out;
  uint64_t align = rng() % 3 == 0 ? 1 : rng() % 2 == 0 ? 512 : 4096;
  for (int i = 0; i < count; ++i) {
    ChangeRecord r;
    r.counter = static_cast<uint64_t>(i) + 1;
    r.slot = static_cast<uint32_t>(rng() % 3);
    r.offset = rng() % span / align * align;
    r.length = (rng() % (span / 8) + 1 + align - 1) / align * align;
    r.kind = mixed ? static_cast<RecordKind>(1 + rng() % 4) : RecordKind::kWrite;
    out.push_back(r);
  }
  std::shuffle(out.begin(), out.end(), rng);
  return out;
}

TEST(Consolidate, EqualsTheModelOnRandomRecords) {
  std::mt19937_64 rng(42);
  for (int round = 0; round < 2000; ++round) {
    uint64_t span = (1 + rng() % 64) * kU;
    auto records = random_records(rng, static_cast<int>(rng() % 40), round % 4 != 0, span);
    uint64_t size = rng() % (span + kU);
    auto images = consolidate(records, [&](uint32_t) { return size; });
    std::map<uint32_t, std::vector<ChangeRecord>> by_slot;
    for (const auto& r : records) by_slot[r.slot].push_back(r);
    ASSERT_EQ(images.size(), by_slot.size());
    for (const ImageExtents& image : images) {
      std::map<uint64_t, ExtentKind> got;
      const PlainExtent* before = nullptr;
      for (const PlainExtent& e : image.extents) {
        ASSERT_EQ(e.extent.offset % kU, 0u);
        ASSERT_EQ(e.extent.length % kU, 0u);
        ASSERT_GT(e.extent.length, 0u);
        if (before != nullptr) {
          ASSERT_LE(before->extent.end(), e.extent.offset);
          bool joinable = before->extent.end() == e.extent.offset && before->kind == e.kind;
          ASSERT_FALSE(joinable) << "neighbours are joined";
        }
        before = &e;
        for (uint64_t at = e.extent.offset; at < e.extent.end(); at += kU) got[at / kU] = e.kind;
      }
      ASSERT_EQ(got, paint(by_slot[image.slot], size)) << "round " << round;
    }
  }
}

TEST(Consolidate, ShrinkBecomesADiscardOfTheTail) {
  std::vector<ChangeRecord> records = {{1, 0, 16 * kU, 0, RecordKind::kWrite},
                                       {2, 4 * kU, 12 * kU, 0, RecordKind::kResize},
                                       {3, 16 * kU, 0, 0, RecordKind::kResize}};   // grown again: reads zeros
  auto images = consolidate(records, [](uint32_t) { return 16 * kU; });
  std::vector<PlainExtent> expected = {{ExtentKind::kData, {0, 4 * kU}}, {ExtentKind::kDiscard, {4 * kU, 12 * kU}}};
  EXPECT_EQ(images[0].extents, expected);
}

TEST(Consolidate, HundredThousandRecordsInTime) {
  std::mt19937_64 rng(1);
  std::vector<ChangeRecord> records;
  for (uint64_t i = 0; i < 100'000; ++i) {
    records.push_back({i + 1, rng() % (1ull << 18) * kU, kU, 0, rng() % 50 == 0 ? RecordKind::kZero : RecordKind::kWrite});
  }
  auto start = std::chrono::steady_clock::now();
  auto images = consolidate(records, [](uint32_t) { return 1ull << 40; });
  auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
  EXPECT_FALSE(images[0].extents.empty());
  RecordProperty("milliseconds", static_cast<int>(ms));
  EXPECT_LT(ms, 5000);   // generous: sanitizers and a busy machine; the figure itself is reported
}

TEST(GranuleMap, EqualsASetOfNumbers) {
  std::mt19937_64 rng(3);
  GranuleMap map;
  std::set<uint64_t> model;
  for (int i = 0; i < 4000; ++i) {
    uint64_t first = rng() % 5000, end = first + rng() % 200;
    if (rng() % 50 == 0) end = first + 1'000'000;
    switch (rng() % 4) {
      case 0: case 1:
        if (end - first > 1000) break;
        map.set(first, end);
        for (uint64_t g = first; g < end; ++g) model.insert(g);
        break;
      case 2:
        map.clear(first, end);
        model.erase(model.lower_bound(first), model.lower_bound(end));
        break;
      default: {
        auto it = model.lower_bound(first);
        ASSERT_EQ(map.any(first, end), it != model.end() && *it < end);
        std::vector<Extent> runs;
        map.runs(first, end, runs);
        std::vector<uint64_t> got;
        for (const Extent& run : runs) {
          for (uint64_t g = run.offset; g < run.end(); ++g) got.push_back(g);
        }
        ASSERT_EQ(got, std::vector<uint64_t>(it, model.lower_bound(end)));
      }
    }
    ASSERT_EQ(map.population(), model.size());
  }
}

// All of a large image, as a change of it that failed, or a host whose journal was lost, needs.
TEST(GranuleMap, TakesLittleMemoryForLongRangesAndAnswersAsForShortOnes) {
  constexpr uint64_t kUnit = 1u << 17, kGranules = 300 * kUnit;   // the model has an entry for each unit
  std::mt19937_64 rng(5);
  GranuleMap map, into;
  std::vector<bool> model(300);
  size_t bytes_max = 0;
  auto count = [&] { return static_cast<uint64_t>(std::count(model.begin(), model.end(), true)) * kUnit; };
  for (int i = 0; i < 300; ++i) {
    const uint64_t first = rng() % 300, end = std::min<uint64_t>(300, first + 1 + rng() % 100);
    const bool sets = rng() % 2 == 0;
    if (sets) map.set(first * kUnit, end * kUnit);
    else map.clear(first * kUnit, end * kUnit);
    for (uint64_t u = first; u < end; ++u) model[u] = sets;
    ASSERT_EQ(map.population(), count());
    // A few granules of it go, or come, and are back as they were.
    const uint64_t at = rng() % kGranules;
    const bool there = map.contains(at);
    ASSERT_EQ(there, model[at / kUnit]);
    if (there) map.clear(at, at + 1);
    else map.set(at, at + 1);
    ASSERT_NE(map.contains(at), there);
    ASSERT_EQ(map.any(at, at + 1), !there);
    ASSERT_EQ(map.population(), there ? count() - 1 : count() + 1);
    if (rng() % 4 == 0) into.merge(map);
    if (there) map.set(at, at + 1);
    else map.clear(at, at + 1);
    ASSERT_EQ(map.any(first * kUnit, end * kUnit), sets);
    std::vector<Extent> runs, joined;
    map.runs(0, kGranules, runs);
    for (const Extent& run : runs) {
      ASSERT_TRUE(joined.empty() || joined.back().end() <= run.offset) << "in ascending order";
      if (!joined.empty() && joined.back().end() == run.offset) joined.back().length += run.length;
      else joined.push_back(run);
    }
    std::vector<Extent> expected;
    for (uint64_t u = 0; u < 300; ++u) {
      if (!model[u]) continue;
      if (!expected.empty() && expected.back().end() == u * kUnit) expected.back().length += kUnit;
      else expected.push_back({u * kUnit, kUnit});
    }
    ASSERT_EQ(joined, expected);
    bytes_max = std::max(bytes_max, map.memory_bytes());
  }
  for (uint64_t u = 0; u < 300; ++u) into.set(u * kUnit, (u + 1) * kUnit);
  EXPECT_EQ(into.population(), kGranules);
  ASSERT_LT(bytes_max, 256u << 10);
  GranuleMap all;
  all.set(0, uint64_t{1} << 34);   // 64 TiB
  EXPECT_EQ(all.population(), uint64_t{1} << 34);
  EXPECT_LT(all.memory_bytes(), 1u << 10);
}

TEST(RecordPack, RoundTripAndBounds) {
  std::mt19937_64 rng(8);
  RecordPack pack;
  std::vector<StoredRecord> records;
  while (!pack.full()) {
    StoredRecord r;
    r.counter = Counter(1000 + rng() % 100);   // records come in the order of finishing
    r.slot = static_cast<uint32_t>(rng() % 1000);
    r.kind = static_cast<uint8_t>(1 + rng() % 4);
    r.extent = {rng() >> (rng() % 64), rng() >> (rng() % 64)};
    r.epoch = Epoch(rng() % 10);
    r.coordinator = CoordinatorSequence(rng());
    r.digest = r.kind == 1 ? rng() : 0;
    r.label = WallTime{static_cast<int64_t>(1'700'000'000'000 + rng() % 100) * 1'000'000};
    records.push_back(r);
    pack.add(Incarnation(5), r);
  }
  Bytes value = pack.take();
  EXPECT_LE(value.size(), kPackBytesMax);
  EXPECT_TRUE(pack.empty());
  auto unpacked = unpack_records(value);
  ASSERT_TRUE(unpacked) << unpacked.status().to_string();
  EXPECT_EQ(unpacked->incarnation, Incarnation(5));
  ASSERT_EQ(unpacked->records.size(), records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(unpacked->records[i].counter, records[i].counter);
    EXPECT_EQ(unpacked->records[i].extent, records[i].extent);
    EXPECT_EQ(unpacked->records[i].coordinator, records[i].coordinator);
    EXPECT_EQ(unpacked->records[i].digest, records[i].digest);
    EXPECT_EQ(unpacked->records[i].label, records[i].label);
  }
  for (size_t i = 0; i < value.size(); ++i) {
    Bytes damaged = value;
    damaged[i] ^= 1;
    ASSERT_FALSE(unpack_records(damaged)) << "byte " << i;
  }
}

}  // namespace
}  // namespace tidemark::journal
