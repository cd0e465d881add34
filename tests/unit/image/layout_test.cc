#include "shared/image/layout.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace tidemark::image {
namespace {

std::vector<Uuid> some_bricks(size_t n) {
  std::vector<Uuid> out(n);
  for (size_t i = 0; i < n; ++i) out[i].bytes[15] = static_cast<uint8_t>(i + 1);
  return out;
}

Layout layout_of(uint32_t unit, size_t stripes) { return *Layout::make(Generation(1), unit, some_bricks(stripes)); }

TEST(Layout, OneStripeIsTheIdentity) {
  Layout layout = layout_of(kStripeUnitMin, 1);
  Piece piece = layout.first_piece({123456789, 1u << 20});
  EXPECT_EQ(piece.object_offset, 123456789u);
  EXPECT_EQ(piece.length, 1u << 20);
  EXPECT_EQ(layout.object_bytes(0, 987654321), 987654321u);
}

TEST(Layout, PiecesCoverARangeOnceAndMapBack) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; ++round) {
    size_t stripes = 1 + random() % 7;
    Layout layout = layout_of(kStripeUnitMin * static_cast<uint32_t>(1 + random() % 5), stripes);
    Extent range{random() % (1ull << 40), 1 + random() % (4u << 20)};
    Extent rest = range;
    std::map<uint32_t, std::pair<uint64_t, uint64_t>> per_object;  // first offset, bytes
    while (rest.length != 0) {
      Piece piece = layout.first_piece(rest);
      ASSERT_GT(piece.length, 0u);
      ASSERT_LE(piece.length, rest.length);
      ASSERT_EQ(piece.image_offset, rest.offset);
      ASSERT_EQ(layout.image_offset(piece.stripe, piece.object_offset), rest.offset);
      ASSERT_EQ(layout.image_offset(piece.stripe, piece.object_offset + piece.length - 1),
                rest.offset + piece.length - 1);
      auto [it, fresh] = per_object.try_emplace(piece.stripe, piece.object_offset, 0);
      ASSERT_EQ(it->second.first + it->second.second, piece.object_offset) << "an object's part is contiguous";
      it->second.second += piece.length;
      rest = {rest.offset + piece.length, rest.length - piece.length};
    }
    for (uint32_t stripe = 0; stripe < stripes; ++stripe) {
      Piece whole = layout.object_range(range, stripe);
      auto it = per_object.find(stripe);
      ASSERT_EQ(whole.length, it == per_object.end() ? 0 : it->second.second);
      if (whole.length != 0) { ASSERT_EQ(whole.object_offset, it->second.first); }
    }
  }
}

TEST(Layout, ObjectSizesAddUpAndOnlyOneEndsPartially) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 2000; ++round) {
    size_t stripes = 1 + random() % 7;
    Layout layout = layout_of(kStripeUnitMin, stripes);
    uint64_t size = random() % (1ull << 32), total = 0;
    int partial = 0;
    for (uint32_t i = 0; i < stripes; ++i) {
      total += layout.object_bytes(i, size);
      partial += layout.object_bytes(i, size) % kStripeUnitMin != 0;
    }
    ASSERT_EQ(total, size);
    ASSERT_LE(partial, 1);
  }
}

TEST(Layout, BadParametersAreRefused) {
  EXPECT_FALSE(Layout::make(Generation(1), 4096, some_bricks(1)).is_ok());
  EXPECT_FALSE(Layout::make(Generation(1), kStripeUnitMin + 512, some_bricks(1)).is_ok());
  EXPECT_FALSE(Layout::make(Generation(1), kStripeUnitMin, {}).is_ok());
  EXPECT_FALSE(Layout::make(Generation(1), kStripeUnitMin, {Uuid::nil(), Uuid::nil()}).is_ok());
  EXPECT_FALSE(Layout::make(Generation(1), kStripeUnitMin, some_bricks(257)).is_ok());
}

TEST(Layout, EncodingRoundTripsAndRefusesGarbage) {
  Layout layout = layout_of(kStripeUnitDefault, 3);
  Bytes bytes;
  Writer writer(bytes);
  layout.encode(writer);
  Reader in(bytes);
  EXPECT_EQ(*Layout::decode(in), layout);
  EXPECT_TRUE(in.done());
  for (size_t cut = 0; cut < bytes.size(); ++cut) {
    Reader shorter(ByteSpan(bytes).first(cut));
    EXPECT_FALSE(Layout::decode(shorter).is_ok()) << cut;
  }
  Bytes huge = bytes;
  store_le<uint32_t>(huge.data() + 16, 0xFFFFFFFF);
  Reader in_huge(huge);
  EXPECT_EQ(Layout::decode(in_huge).status().code(), Code::kCorruption);
  Bytes copies = bytes;
  store_le<uint32_t>(copies.data() + 12, 2);
  Reader in_copies(copies);
  EXPECT_EQ(Layout::decode(in_copies).status().code(), Code::kUnsupported);
}

}  // namespace
}  // namespace tidemark::image
