// Corrupt input, field by field: the error names the field, and nothing is read beyond the file.
#include <gmock/gmock.h>

#include "tests/unit/image/vhd_fixture.h"

namespace tidemark::image {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kDisk = 5u << 20;

struct Damage {
  const char* name;
  bool dynamic;
  uint64_t at;  // in the footer, or for a dynamic disk in the file
  Bytes bytes;
  std::vector<uint64_t> reseal;  // checksums to be made right again: offsets of footers / the header
  const char* says;
};

Bytes be32(uint32_t v) {
  Bytes out(4);
  store_be32(out.data(), v);
  return out;
}
Bytes be64(uint64_t v) {
  Bytes out(8);
  store_be64(out.data(), v);
  return out;
}

void reseal(Bytes& file, uint64_t at, size_t length, size_t checksum_at) {
  store_be32(file.data() + at + checksum_at, 0);
  uint32_t sum = 0;
  for (size_t i = 0; i < length; ++i) sum += file[at + i];
  store_be32(file.data() + at + checksum_at, ~sum);
}

class CorruptVhdTest : public ImageFileTest, public ::testing::WithParamInterface<Damage> {};

TEST_P(CorruptVhdTest, TheFieldIsNamed) {
  const Damage& d = GetParam();
  spit(path("raw"), some_disk(kDisk));
  ASSERT_TRUE(
      convert(path("raw"), path("x.vhd"), d.dynamic ? OutputFormat::kDynamicVhd : OutputFormat::kFixedVhd).is_ok());
  Bytes file = slurp(path("x.vhd"));
  const uint64_t end = file.size() - 512;
  // Footer fields are damaged in the footer and, where there is one, in its copy.
  bool in_footer = d.at < 512;
  if (in_footer) {
    std::copy(d.bytes.begin(), d.bytes.end(), file.begin() + static_cast<long>(end + d.at));
    if (!d.reseal.empty()) reseal(file, end, 512, 64);
    if (d.dynamic) std::copy(file.end() - 512, file.end(), file.begin());
  } else {
    std::copy(d.bytes.begin(), d.bytes.end(), file.begin() + static_cast<long>(d.at));
    if (!d.reseal.empty()) reseal(file, 512, 1024, 36);
  }
  spit(path("x.vhd"), file);
  EXPECT_THAT(open_error(path("x.vhd"), InputFormat::kVpc), AllOf(HasSubstr(path("x.vhd")), HasSubstr(d.says)));
  auto info = image_file_info(path("x.vhd"), InputFormat::kVpc);
  ASSERT_TRUE(info.is_ok()) << "damaged images can still be shown";
  EXPECT_FALSE(info->validity.is_ok());
  // Nothing half-made is left by an import of it.
  auto source = open_image_file(path("x.vhd"), InputFormat::kVpc);
  EXPECT_FALSE(source.is_ok());
}

const uint64_t kHeader = 512, kTable = 1536;
INSTANTIATE_TEST_SUITE_P(
    Fields, CorruptVhdTest,
    ::testing::Values(Damage{"FooterCookie", false, 0, {'x'}, {}, "footer: cookie"},
                      Damage{"FooterChecksum", false, 64, {1, 2, 3, 4}, {}, "footer: checksum"},
                      Damage{"FooterAnyByte", false, 300, {1}, {}, "footer: checksum"},
                      Damage{"FooterVersion", false, 12, be32(0x00020000), {1}, "footer: version"},
                      Damage{"FixedDataOffset", false, 16, be64(512), {1}, "footer: data offset"},
                      Damage{"CurrentSizeOverLimit", false, 48, be64(~0ull), {1}, "footer: current size"},
                      Damage{"CurrentSizeOdd", false, 48, be64(kDisk - 1), {1}, "footer: current size"},
                      Damage{"CurrentSizePastFile", false, 48, be64(kDisk + 512), {1}, "footer: current size"},
                      Damage{"CreatorThatCountsByZeroGeometry",
                             false,
                             28,
                             {'v', 'p', 'c', ' ', 0, 0, 0, 0, 0, 0,    0, 0, 0, 0, 0, 0,
                              0,   0,   0,   0,   0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 4, 17},
                             {1},
                             "footer: geometry"},
                      Damage{"DiskTypeUnknown", false, 60, be32(77), {1}, "footer: disk type"},
                      Damage{"DiskTypeDifferencing", false, 60, be32(4), {1}, "differencing"},
                      Damage{"FixedSaidToBeDynamic", false, 60, be32(3), {1}, "footer: data offset"},
                      Damage{"SavedState", false, 84, {2}, {1}, "footer: saved state"},
                      Damage{"DynamicFooterCookies", true, 0, {'x'}, {}, "footer: cookie"},
                      Damage{"DynamicFooterChecksums", true, 65, {0x5A}, {}, "footer: checksum"},
                      Damage{"DynamicDataOffsetOdd", true, 16, be64(513), {1}, "footer: data offset"},
                      Damage{"DynamicDataOffsetPastFile", true, 16, be64(1ull << 40), {1}, "footer: data offset"},
                      Damage{"DynamicDataOffsetHuge", true, 16, be64(~0ull - 511), {1}, "footer: data offset"},
                      Damage{"DynamicSizeOverTable", true, 48, be64(kDisk * 2), {1}, "header: max table entries"},
                      Damage{"HeaderCookie", true, kHeader, {'x'}, {1}, "header: cookie"},
                      Damage{"HeaderChecksum", true, kHeader + 36, {1, 2, 3, 4}, {}, "header: checksum"},
                      Damage{"HeaderVersion", true, kHeader + 24, be32(0x00030000), {1}, "header: version"},
                      Damage{"HeaderDataOffset", true, kHeader + 8, be64(4096), {1}, "header: data offset"},
                      Damage{"TableOffsetOdd", true, kHeader + 16, be64(1537), {1}, "header: table offset"},
                      Damage{"TableOffsetPastFile", true, kHeader + 16, be64(1ull << 41), {1}, "header: table offset"},
                      Damage{"TableOffsetHuge", true, kHeader + 16, be64(~0ull - 511), {1}, "header: table offset"},
                      Damage{"TableOffsetOnHeader", true, kHeader + 16, be64(1024), {1}, "header: table offset"},
                      Damage{"TableEntriesTooFew", true, kHeader + 28, be32(2), {1}, "header: max table entries"},
                      Damage{"BlockSizeZero", true, kHeader + 32, be32(0), {1}, "header: block size"},
                      Damage{"BlockSizeNoPowerOfTwo", true, kHeader + 32, be32(3u << 20), {1}, "header: block size"},
                      Damage{"BlockSizeTiny", true, kHeader + 32, be32(512), {1}, "header: block size"},
                      Damage{"BlockSizeHuge", true, kHeader + 32, be32(1u << 31), {1}, "header: block size"},
                      Damage{"EntryPastFile", true, kTable + 4, be32(0xFFFFFFFE), {}, "BAT: entry 1"},
                      Damage{"EntryOnHeader", true, kTable + 4, be32(1), {}, "BAT: entry 1"},
                      Damage{"EntryOnTable", true, kTable + 4, be32(3), {}, "BAT: entry"},
                      Damage{"EntryTwice", true, kTable + 4, be32(4), {}, "overlaps entry"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(ImageFileTest, TruncationAnywhereIsAnErrorAndNeverACrash) {
  spit(path("raw"), some_disk(5u << 20));
  for (OutputFormat format : {OutputFormat::kFixedVhd, OutputFormat::kDynamicVhd}) {
    std::filesystem::remove(path("x.vhd"));
    ASSERT_TRUE(convert(path("raw"), path("x.vhd"), format).is_ok());
    Bytes file = slurp(path("x.vhd"));
    for (size_t keep : {size_t{0}, size_t{1}, size_t{511}, size_t{512}, size_t{513}, size_t{1536}, size_t{1540},
                        file.size() / 2, file.size() - 1}) {
      spit(path("cut"), Bytes(file.begin(), file.begin() + static_cast<long>(keep)));
      std::string error = open_error(path("cut"), InputFormat::kVpc);
      // A dynamic disk that lost only its last footer is served from the copy.
      bool copy_serves = format == OutputFormat::kDynamicVhd && keep == file.size() - 1;
      EXPECT_EQ(error.empty(), copy_serves) << keep << ": " << error;
    }
  }
}

TEST_F(ImageFileTest, AGuessedFormatNamesTheWayOut) {
  Bytes disk(8192, 1);
  std::string cookie = "conectix";
  std::copy(cookie.begin(), cookie.end(), disk.end() - 512);
  spit(path("raw"), disk);
  EXPECT_THAT(open_error(path("raw")), AllOf(HasSubstr("checksum"), HasSubstr("format raw")));
  EXPECT_EQ(contents_of(path("raw"), InputFormat::kRaw), disk);
}

TEST_F(ImageFileTest, ADamagedLastFooterOfADynamicDiskIsShownAndTheCopyServes) {
  Bytes disk = some_disk(5u << 20);
  spit(path("raw"), disk);
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kDynamicVhd).is_ok());
  Bytes file = slurp(path("x.vhd"));
  file[file.size() - 100] ^= 1;
  spit(path("x.vhd"), file);
  EXPECT_EQ(contents_of(path("x.vhd")), disk);
  auto info = image_file_info(path("x.vhd"));
  EXPECT_TRUE(info->vhd->footer_copy_used);
  EXPECT_TRUE(info->validity.is_ok());
}

TEST_F(ImageFileTest, FooterAndCopyThatDisagreeAreRefused) {
  spit(path("raw"), some_disk(5u << 20));
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kDynamicVhd).is_ok());
  Bytes file = slurp(path("x.vhd"));
  store_be64(file.data() + 48, 4u << 20);
  reseal(file, 0, 512, 64);
  spit(path("x.vhd"), file);
  EXPECT_THAT(open_error(path("x.vhd")), HasSubstr("differs from the footer copy"));
}

}  // namespace
}  // namespace tidemark::image
