// Segment files: what was written reads back; whatever was damaged is refused.
#include "journal/segment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

namespace tidemark::journal {
namespace {

Uuid uuid(uint8_t n) {
  Uuid u;
  u.bytes.fill(n);
  return u;
}

SegmentHead sample_head() {
  SegmentHead h;
  h.batch.cluster = uuid(1);
  h.batch.source = "host1";
  h.batch.generation = uuid(2);
  h.batch.number = BatchNumber(7);
  h.batch.incarnation = Incarnation(3);
  h.batch.nonce = uuid(4);
  h.batch.first = Counter(10);
  h.batch.last = Counter(20);
  h.batch.label = WallTime{1234567};
  h.batch.point_name = "before-upgrade";
  h.batch.previous.fill(9);
  SegmentImage image;
  image.image = uuid(5);
  image.epoch = Epoch(2);
  image.parent = {Epoch(1), "host2", {Incarnation(8), Counter(99)}, 1};
  image.first = Counter(10);
  image.last = Counter(19);
  image.size = 1 << 20;
  h.images.push_back(image);
  SegmentMark mark;
  mark.counter = Counter(15);
  mark.mark.kind = wire::MarkKind::kOpenWrite;
  mark.mark.origin = "host1";
  h.marks.push_back(mark);
  return h;
}

Bytes random_bytes(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  Bytes out(n);
  for (auto& b : out) b = static_cast<uint8_t>(rng());
  return out;
}

// Half of the payload compresses, half does not.
struct Sample {
  SegmentHead head = sample_head();
  Bytes payload;
  Bytes file;
  Sample() {
    head.extents = {{0, ExtentKind::kZero, {0, 8192}, 0},
                    {0, ExtentKind::kData, {8192, 3 * 65536}, 0},
                    {0, ExtentKind::kDiscard, {8192 + 3 * 65536, 4096}, 0},
                    {0, ExtentKind::kData, {524288, 4096}, 3 * 65536}};
    payload = random_bytes(3 * 65536 + 4096, 1);
    std::fill(payload.begin() + 65536, payload.begin() + 2 * 65536, 42);
    auto written = write_segment(head, payload);
    EXPECT_TRUE(written) << written.status().to_string();
    if (written) file = *written;
  }
};

TEST(Segment, RoundTrip) {
  Sample s;
  auto r = SegmentReader::parse_whole(s.file);
  ASSERT_TRUE(r) << r.status().to_string();
  const SegmentHead& h = r->head();
  EXPECT_EQ(h.batch.source, "host1");
  EXPECT_EQ(h.batch.number, BatchNumber(7));
  EXPECT_EQ(h.batch.point_name, "before-upgrade");
  EXPECT_EQ(h.batch.previous, s.head.batch.previous);
  ASSERT_EQ(h.images.size(), 1u);
  EXPECT_EQ(h.images[0].parent.source, "host2");
  EXPECT_EQ(h.images[0].parent.last.counter, Counter(99));
  ASSERT_EQ(h.marks.size(), 1u);
  EXPECT_EQ(h.marks[0].mark.kind, wire::MarkKind::kOpenWrite);
  ASSERT_EQ(h.extents.size(), 4u);
  EXPECT_EQ(h.extents[3].position, 3u * 65536);
  EXPECT_LT(s.file.size(), s.payload.size());   // the compressible chunk was compressed
  EXPECT_EQ(*SegmentReader::prefix_bytes(ByteSpan(s.file).first(kSegmentPreambleBytes)), r->prefix_bytes());
}

TEST(Segment, AnyRangeReadsBackFromThePrefixAlone) {
  Sample s;
  uint64_t prefix = *SegmentReader::prefix_bytes(s.file);
  auto r = SegmentReader::parse(ByteSpan(s.file).first(prefix));
  ASSERT_TRUE(r);
  SegmentReader::Pread pread = [&](uint64_t offset, MutableByteSpan out) {
    if (offset + out.size() > s.file.size()) return Status(Code::kIoError, "past the end");
    std::copy_n(s.file.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return Status::ok();
  };
  std::mt19937 rng(5);
  for (int i = 0; i < 300; ++i) {
    uint64_t a = rng() % (s.payload.size() + 1), b = rng() % (s.payload.size() + 1);
    Extent e{std::min(a, b), std::max(a, b) - std::min(a, b)};
    Bytes out(e.length);
    Status status = r->read(e, pread, out);
    ASSERT_TRUE(status) << status.to_string();
    ASSERT_TRUE(std::equal(out.begin(), out.end(), s.payload.begin() + static_cast<ptrdiff_t>(e.offset)));
  }
}

TEST(Segment, EveryFlippedByteIsFound) {
  Sample s;
  uint64_t prefix = *SegmentReader::prefix_bytes(s.file);
  for (size_t i = 0; i < s.file.size(); i += i < prefix ? 1 : 997) {
    Bytes damaged = s.file;
    damaged[i] ^= 0x10;
    ASSERT_FALSE(SegmentReader::parse_whole(damaged)) << "byte " << i;
  }
}

TEST(Segment, EveryTruncationAndExtensionIsFound) {
  Sample s;
  for (size_t n = 0; n < s.file.size(); n += n < 1024 ? 1 : 1009) {
    ASSERT_FALSE(SegmentReader::parse_whole(ByteSpan(s.file).first(n))) << "length " << n;
  }
  Bytes longer = s.file;
  longer.push_back(0);
  EXPECT_FALSE(SegmentReader::parse_whole(longer));
}

struct Broken {
  const char* rule;
  std::function<void(SegmentHead&)> breakage;
};

class SegmentRule : public testing::TestWithParam<Broken> {};

// A source that breaks a rule cannot even write it; a hostile one is caught by the same check on reading.
TEST_P(SegmentRule, IsEnforced) {
  Sample s;
  GetParam().breakage(s.head);
  auto written = write_segment(s.head, s.payload);
  ASSERT_FALSE(written) << GetParam().rule;
  EXPECT_EQ(written.status().code(), Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, SegmentRule,
    testing::Values(
        Broken{"number 0", [](SegmentHead& h) { h.batch.number = {}; }},
        Broken{"part past parts", [](SegmentHead& h) { h.batch.part = 1; }},
        Broken{"no parts", [](SegmentHead& h) { h.batch.parts = 0; }},
        Broken{"empty source", [](SegmentHead& h) { h.batch.source.clear(); }},
        Broken{"long source", [](SegmentHead& h) { h.batch.source.assign(256, 'a'); }},
        Broken{"long point", [](SegmentHead& h) { h.batch.point_name.assign(256, 'a'); }},
        Broken{"nil cluster", [](SegmentHead& h) { h.batch.cluster = {}; }},
        Broken{"incarnation 0", [](SegmentHead& h) { h.batch.incarnation = {}; }},
        Broken{"counters reversed", [](SegmentHead& h) { h.batch.first = Counter(30); }},
        Broken{"last counter is the largest number", [](SegmentHead& h) { h.batch.last = Counter(UINT64_MAX); }},
        Broken{"unknown kind", [](SegmentHead& h) { h.batch.kind = static_cast<BatchKind>(4); }},
        Broken{"normal batch supersedes", [](SegmentHead& h) { h.batch.supersedes_first = h.batch.supersedes_last = BatchNumber(6); }},
        Broken{"supersedes a gap", [](SegmentHead& h) {
          h.batch.kind = BatchKind::kResync;
          h.batch.supersedes_first = h.batch.supersedes_last = BatchNumber(5);
        }},
        Broken{"no previous digest", [](SegmentHead& h) { h.batch.previous = {}; }},
        Broken{"previous digest of the first", [](SegmentHead& h) { h.batch.number = BatchNumber(1); }},
        Broken{"image twice", [](SegmentHead& h) { h.images.push_back(h.images[0]); }},
        Broken{"nil image", [](SegmentHead& h) { h.images[0].image = {}; }},
        Broken{"image counter outside", [](SegmentHead& h) { h.images[0].last = Counter(21); }},
        Broken{"parent not older", [](SegmentHead& h) { h.images[0].parent.epoch = Epoch(2); }},
        Broken{"huge image", [](SegmentHead& h) { h.images[0].size = UINT64_MAX; }},
        Broken{"mark outside", [](SegmentHead& h) { h.marks[0].counter = Counter(9); }},
        Broken{"mark of unknown kind", [](SegmentHead& h) { h.marks[0].mark.kind = static_cast<wire::MarkKind>(99); }},
        Broken{"marks not ascending", [](SegmentHead& h) { h.marks.push_back(h.marks[0]); }},
        Broken{"extent of no image", [](SegmentHead& h) { h.extents[0].image = 1; }},
        Broken{"unknown extent kind", [](SegmentHead& h) { h.extents[0].kind = static_cast<ExtentKind>(0); }},
        Broken{"empty extent", [](SegmentHead& h) { h.extents[0].extent.length = 0; }},
        Broken{"unaligned extent", [](SegmentHead& h) { h.extents[0].extent.offset = 512; }},
        Broken{"overflowing extent", [](SegmentHead& h) { h.extents[2].extent.length = UINT64_MAX - 4095; }},
        Broken{"overlap", [](SegmentHead& h) { h.extents[0].extent.length = 12288; }},
        Broken{"position of a zero extent", [](SegmentHead& h) { h.extents[0].position = 4096; }},
        Broken{"gap in the payload", [](SegmentHead& h) { h.extents[1].position = 4096; }},
        Broken{"data past the end", [](SegmentHead& h) { h.images[0].size = 524288; }},
        Broken{"payload shorter than the extents", [](SegmentHead& h) { h.extents[3].extent.length = 8192; }}));

TEST(Segment, HostileHeadWithGoodChecksumsIsRefused) {
  // Re-seal a damaged head: structure checks must stand without the checksums' help.
  Sample s;
  uint64_t prefix = *SegmentReader::prefix_bytes(s.file);
  std::mt19937 rng(11);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    Bytes file = s.file;
    size_t at = kSegmentPreambleBytes + rng() % (prefix - kSegmentPreambleBytes);
    file[at] = static_cast<uint8_t>(rng());
    ByteSpan head = ByteSpan(file).subspan(kSegmentPreambleBytes, prefix - kSegmentPreambleBytes);
    store_le<uint64_t>(file.data() + 48, digest64(head));
    store_le<uint64_t>(file.data() + 56, digest64(ByteSpan(file).first(56)));
    auto r = SegmentReader::parse_whole(file);
    if (!r) { ++refused; continue; }
    ASSERT_EQ(r->file_bytes(), file.size());   // what is accepted keeps its bounds
  }
  EXPECT_GT(refused, 300);
}

TEST(Segment, OtherVersionIsUnsupported) {
  Sample s;
  store_le<uint16_t>(s.file.data() + 8, 2);
  store_le<uint64_t>(s.file.data() + 56, digest64(ByteSpan(s.file).first(56)));
  EXPECT_EQ(SegmentReader::parse(s.file).status().code(), Code::kUnsupported);
}

TEST(Segment, BatchWithoutPayload) {
  SegmentHead h = sample_head();
  h.batch.number = BatchNumber(1);
  h.batch.previous = {};
  auto file = write_segment(h, {});
  ASSERT_TRUE(file) << file.status().to_string();
  auto r = SegmentReader::parse_whole(*file);
  ASSERT_TRUE(r);
  EXPECT_EQ(r->payload_bytes(), 0u);
  EXPECT_EQ(r->chunk_count(), 0u);
}

TEST(Segment, SupersededNumbersAreCarried) {
  SegmentHead h = sample_head();
  h.batch.kind = BatchKind::kResync;
  h.batch.supersedes_first = BatchNumber(4);
  h.batch.supersedes_last = BatchNumber(6);
  auto file = write_segment(h, {});
  ASSERT_TRUE(file) << file.status().to_string();
  EXPECT_EQ(SegmentReader::parse(*file)->head().batch.supersedes_first, BatchNumber(4));
}

TEST(Digest, KnownAnswerAndText) {
  // FIPS 180-2: SHA-256("abc").
  EXPECT_EQ(digest_text(sha256(as_bytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest_text(Sha256{}), "");
  EXPECT_EQ(*parse_digest(digest_text(sha256({}))), sha256({}));
  EXPECT_FALSE(parse_digest("abc"));
  EXPECT_FALSE(parse_digest(std::string(64, 'g')));
}

}  // namespace
}  // namespace tidemark::journal
