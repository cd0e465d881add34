#include "shared/image/vhd.h"

#include <gtest/gtest.h>

#include <random>

#include "shared/base/digest.h"

namespace tidemark::image::vhd {
namespace {

constexpr uint64_t kMiB = 1u << 20, kGiB = 1u << 30;

TEST(VhdGeometry, FollowsTheSpecification) {
  // Sizes and geometries as qemu-img and Hyper-V compute them.
  EXPECT_EQ(geometry_for(1 * kMiB), (Geometry{30, 4, 17}));
  EXPECT_EQ(geometry_for(10 * kMiB), (Geometry{301, 4, 17}));
  EXPECT_EQ(geometry_for(100 * kMiB), (Geometry{1003, 12, 17}));
  EXPECT_EQ(geometry_for(1 * kGiB), (Geometry{2080, 16, 63}));
  EXPECT_EQ(geometry_for(100 * kGiB), (Geometry{51400, 16, 255}));
  EXPECT_EQ(geometry_for(127 * kGiB), (Geometry{65278, 16, 255}));
  EXPECT_EQ(geometry_for(2040 * kGiB), (Geometry{65535, 16, 255}));
  EXPECT_EQ(geometry_for(0), (Geometry{0, 4, 17}));
}

TEST(VhdGeometry, NeverExceedsTheDisk) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 100'000; ++i) {
    uint64_t size = random() >> (23 + random() % 32);
    ASSERT_LE(geometry_for(size).bytes(), size) << size;
  }
}

TEST(VhdFooter, RoundTrips) {
  Footer footer =
      *make_footer(DiskType::kDynamic, 30 * kMiB, Uuid::from_random({9, 8, 7}), WallTime{1'700'000'000'000'000'000});
  footer.saved_state = 1;
  footer.original_size = 20 * kMiB;
  auto bytes = encode_footer(footer);
  auto back = decode_footer(bytes);
  ASSERT_TRUE(back.is_ok()) << back.status().to_string();
  EXPECT_EQ(encode_footer(*back), bytes);
  EXPECT_EQ(back->geometry, footer.geometry);
  EXPECT_EQ(wall_time(back->timestamp).ns, 1'700'000'000'000'000'000);
  EXPECT_EQ(disk_bytes(*back), 30 * kMiB);
}

TEST(VhdFooter, BytesDoNotChange) {
  Footer footer =
      *make_footer(DiskType::kFixed, 64 * kMiB, Uuid::from_random({1, 2, 3}), WallTime{1'700'000'000'000'000'000});
  auto bytes = encode_footer(footer);
  EXPECT_EQ(to_hex(ByteSpan(bytes).first(96)),
            "636f6e65637469780000000200010000ffffffffffffffff2ce6ad8077696e20000600015769326b"
            "0000000004000000000000000400000003c3081100000002ffffede7"
            "01020300000040008000000000000000"
            "000000000000000000000000");
}

TEST(VhdFooter, LimitsOnCreation) {
  EXPECT_FALSE(make_footer(DiskType::kFixed, 1000, {}, {}).is_ok());
  EXPECT_FALSE(make_footer(DiskType::kFixed, kDiskBytesMax + 512, {}, {}).is_ok());
  EXPECT_TRUE(make_footer(DiskType::kFixed, kDiskBytesMax, {}, {}).is_ok());
  EXPECT_EQ(vhd_time(WallTime{0}), 0u) << "before 2000";
}

TEST(VhdFooter, WhoWroteItDecidesWhereTheSizeComesFrom) {
  Footer footer = *make_footer(DiskType::kFixed, 30 * kMiB, {}, {});
  for (const char* app : {"win ", "qem2", "d2v ", "CTXS", "tap\0", "wa\0\0"}) {
    std::copy_n(app, 4, footer.creator_app.begin());
    EXPECT_EQ(disk_bytes(footer), 30 * kMiB) << app;
  }
  // VirtualBox rounds the geometry down and writes up to current_size: the larger counts, lest the end be cut off.
  ASSERT_LT(footer.geometry.bytes(), 30 * kMiB);
  Geometry larger = footer.geometry;
  larger.cylinders = static_cast<uint16_t>(larger.cylinders + 2);
  for (const char* app : {"vpc ", "qemu", "vbox", "none"}) {
    std::copy_n(app, 4, footer.creator_app.begin());
    EXPECT_EQ(disk_bytes(footer), 30 * kMiB) << app;
    Footer by_geometry = footer;
    by_geometry.geometry = larger;
    EXPECT_EQ(disk_bytes(by_geometry), larger.bytes()) << app;
  }
  footer.geometry = {65535, 16, 255};
  EXPECT_EQ(disk_bytes(footer), 30 * kMiB) << "a geometry at its maximum says nothing";
}

TEST(VhdHeader, RoundTrips) {
  DynamicHeader header;
  header.table_entries = 15;
  auto bytes = encode_header(header);
  auto back = decode_header(bytes, 30 * kMiB, 64 * kMiB);
  ASSERT_TRUE(back.is_ok()) << back.status().to_string();
  EXPECT_EQ(back->table_entries, 15u);
  EXPECT_EQ(back->block_bytes, kBlockBytesDefault);
  EXPECT_EQ(back->bitmap_bytes(), 512u);
  DynamicHeader big;
  big.block_bytes = 8u << 20;
  EXPECT_EQ(big.bitmap_bytes(), 2048u);
  big.block_bytes = 256u << 10;
  EXPECT_EQ(big.bitmap_bytes(), 512u);
}

TEST(VhdTable, RoundTripsPaddedToASector) {
  std::vector<uint32_t> entries(130, kFreeEntry);
  DynamicHeader header;
  header.table_entries = 130;
  entries[129] = 5;  // after footer copy, header (2 sectors) and table (2 sectors)
  Bytes bytes = encode_table(entries);
  EXPECT_EQ(bytes.size(), 1024u);
  auto back = decode_table(bytes, header, 260 * kMiB, kHeaderOffset, 4 * kMiB);
  ASSERT_TRUE(back.is_ok()) << back.status().to_string();
  EXPECT_EQ(*back, entries);
}

}  // namespace
}  // namespace tidemark::image::vhd
