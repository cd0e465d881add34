#include "shared/image/convert.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>

#include "tests/unit/image/vhd_fixture.h"

namespace tidemark::image {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

uint64_t allocated(const std::string& path) {
  struct stat st;
  EXPECT_EQ(::stat(path.c_str(), &st), 0);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

class ConvertTest : public ImageFileTest, public ::testing::WithParamInterface<OutputFormat> {};

TEST_P(ConvertTest, RoundTripsAtAnySize) {
  for (size_t size :
       {size_t{0}, size_t{1}, size_t{512}, size_t{4097}, size_t{2u << 20}, size_t{5u << 20}, (size_t{9} << 20) + 777}) {
    Bytes disk = some_disk(size, static_cast<uint32_t>(size));
    spit(path("raw"), disk);
    ASSERT_TRUE(convert(path("raw"), path("x"), GetParam()).is_ok());
    Bytes got = contents_of(path("x"));
    if (GetParam() != OutputFormat::kRaw) disk.resize((size + 511) / 512 * 512);
    EXPECT_EQ(got.size(), disk.size());
    EXPECT_TRUE(got == disk) << size;
    EXPECT_EQ(image_file_info(path("x"))->format, GetParam());
    EXPECT_EQ(image_file_info(path("x"))->virtual_size, disk.size());
    ASSERT_TRUE(convert(path("x"), path("back"), OutputFormat::kRaw).is_ok());
    EXPECT_TRUE(slurp(path("back")) == disk);
    for (const char* name : {"x", "back", "raw"}) std::filesystem::remove(path(name));
  }
}

TEST_P(ConvertTest, ReadsAtAnyOffset) {
  Bytes disk = some_disk(6u << 20);
  spit(path("raw"), disk);
  ASSERT_TRUE(convert(path("raw"), path("x"), GetParam()).is_ok());
  auto source = std::move(open_image_file(path("x"))).value();
  std::mt19937 random(4);
  for (int i = 0; i < 300; ++i) {
    size_t offset = random() % disk.size(), length = random() % std::min<size_t>(disk.size() - offset, 3u << 20);
    Bytes out(length, 0xEE);
    ASSERT_TRUE(source->read(offset, out).is_ok());
    ASSERT_TRUE(std::equal(out.begin(), out.end(), disk.begin() + static_cast<long>(offset))) << offset;
  }
}

TEST_P(ConvertTest, HolesAndZerosStayThin) {
  Bytes disk(64u << 20, 0);
  disk[40u << 20] = 1;
  spit(path("raw"), disk);  // all of it allocated
  ASSERT_TRUE(convert(path("raw"), path("x"), GetParam()).is_ok());
  EXPECT_LE(allocated(path("x")), 64u << 10);
  EXPECT_TRUE(contents_of(path("x")) == disk);
  if (GetParam() == OutputFormat::kDynamicVhd) { EXPECT_LT(std::filesystem::file_size(path("x")), 3u << 20); }
}

TEST_P(ConvertTest, ACancelledOrFailedWriteLeavesNothing) {
  spit(path("raw"), some_disk(8u << 20));
  auto source = std::move(open_image_file(path("raw"))).value();
  int calls = 0;
  Status s = write_image_file(*source, path("x"),
                              {.format = GetParam(), .progress = [&](uint64_t, uint64_t) { return ++calls < 4; }});
  EXPECT_EQ(s.code(), Code::kCancelled);
  EXPECT_THAT(names(), ElementsAre("raw"));
  std::filesystem::resize_file(path("raw"), 1u << 20);  // behind the reader's back
  s = write_image_file(*source, path("x"), {.format = GetParam()});
  EXPECT_THAT(s.message(), HasSubstr("became shorter"));
  EXPECT_THAT(names(), ElementsAre("raw"));
}

TEST_P(ConvertTest, ATakenNameIsKeptUnlessAsked) {
  spit(path("raw"), some_disk(1u << 20));
  spit(path("x"), {1, 2, 3});
  EXPECT_EQ(convert(path("raw"), path("x"), GetParam()).code(), Code::kAlreadyExists);
  EXPECT_EQ(slurp(path("x")), (Bytes{1, 2, 3}));
  auto source = std::move(open_image_file(path("raw"))).value();
  EXPECT_TRUE(write_image_file(*source, path("x"), {.format = GetParam(), .overwrite = true}).is_ok());
  EXPECT_TRUE(contents_of(path("x")) == some_disk(1u << 20));
  EXPECT_THAT(names(), ElementsAre("raw", "x"));
}

TEST_P(ConvertTest, ProgressEndsAtTheWhole) {
  spit(path("raw"), some_disk(4u << 20));
  auto source = std::move(open_image_file(path("raw"))).value();
  uint64_t last = 0, total = 0;
  auto progress = [&](uint64_t d, uint64_t t) {
    EXPECT_GE(d, last);
    last = d, total = t;
    return true;
  };
  ASSERT_TRUE(write_image_file(*source, path("x"), {.format = GetParam(), .progress = progress}).is_ok());
  EXPECT_EQ(last, 4u << 20);
  EXPECT_EQ(total, 4u << 20);
}

INSTANTIATE_TEST_SUITE_P(Formats, ConvertTest,
                         ::testing::Values(OutputFormat::kRaw, OutputFormat::kFixedVhd, OutputFormat::kDynamicVhd),
                         [](const auto& info) {
                           std::string name(format_name(info.param));
                           std::erase(name, '-');
                           return name;
                         });

// A rename would replace the link, or a device's node, and the bytes lie beside what was meant.
TEST_F(ImageFileTest, OnlyARegularFileIsReplaced) {
  spit(path("raw"), some_disk(1u << 20));
  spit(path("target"), {1, 2, 3});
  std::filesystem::create_symlink("target", path("link"));
  std::filesystem::create_directory(path("directory"));
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  const auto before = names();
  auto source = std::move(open_image_file(path("raw"))).value();
  for (const char* name : {"link", "directory", "fifo"}) {
    for (bool overwrite : {false, true}) {
      Status s = write_image_file(*source, path(name), {.overwrite = overwrite});
      EXPECT_EQ(s.code(), Code::kInvalidArgument) << name << s.to_string();
    }
  }
  EXPECT_EQ(names(), before);
  EXPECT_TRUE(std::filesystem::is_symlink(path("link")));
  EXPECT_EQ(slurp(path("target")), (Bytes{1, 2, 3}));
}

TEST_F(ImageFileTest, WhatIsMadeIsItsOwnersAloneAndWhatIsReplacedKeepsOwnerAndMode) {
  spit(path("raw"), some_disk(1u << 20));
  auto source = std::move(open_image_file(path("raw"))).value();
  struct stat s {};
  ASSERT_TRUE(write_image_file(*source, path("x"), {}).is_ok());
  ASSERT_EQ(::stat(path("x").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0600u);
  ASSERT_EQ(::chmod(path("x").c_str(), 0640), 0);
  const uid_t owner = ::geteuid() == 0 ? 12345 : ::geteuid();
  ASSERT_EQ(::chown(path("x").c_str(), owner, ::getegid()), 0);
  ASSERT_TRUE(write_image_file(*source, path("x"), {.overwrite = true}).is_ok());
  ASSERT_EQ(::stat(path("x").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0640u);
  EXPECT_EQ(s.st_uid, owner);
  ASSERT_TRUE(write_image_file(*source, path("new"), {.overwrite = true}).is_ok());
  ASSERT_EQ(::stat(path("new").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0600u);
}

TEST_F(ImageFileTest, NewDisksAreEmptyAndHaveTheirSize) {
  for (const char* name : {"a.vhd", "a.img"}) {
    OutputFormat format = format_for_name(name);
    ASSERT_TRUE(create_image_file(path(name), 1ull << 33, {.format = format}).is_ok());
    auto info = image_file_info(path(name));
    EXPECT_EQ(info->virtual_size, 1ull << 33);
    EXPECT_LE(info->allocated, 8192u);
  }
  EXPECT_EQ(format_for_name("x.VHD"), OutputFormat::kFixedVhd);
  EXPECT_EQ(format_for_name("vhd"), OutputFormat::kRaw);
  EXPECT_EQ(create_image_file(path("b.vhd"), vhd::kDiskBytesMax + 512, {.format = OutputFormat::kFixedVhd}).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(create_image_file(path("b.img"), ~0ull, {}).code(), Code::kInvalidArgument);
  EXPECT_EQ(create_image_file(path("none/b.img"), 4096, {}).code(), Code::kNotFound);
  EXPECT_THAT(names(), ElementsAre("a.img", "a.vhd"));
}

TEST_F(ImageFileTest, AFixedDisksFooterMovesWithItsEnd) {
  Bytes disk = some_disk(4u << 20);
  spit(path("raw"), disk);
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kFixedVhd).is_ok());
  Uuid id = image_file_info(path("x.vhd"))->vhd->footer.unique_id;
  for (uint64_t size : {6u << 20, (6u << 20) + 512u, 2u << 20, 2u << 20, 3u << 20}) {
    ASSERT_TRUE(resize_image_file(path("x.vhd"), size).is_ok());
    disk.resize(size);
    auto info = image_file_info(path("x.vhd"));
    ASSERT_TRUE(info->validity.is_ok()) << info->validity.to_string();
    EXPECT_EQ(info->virtual_size, size);
    EXPECT_EQ(info->file_size, size + 512);
    EXPECT_EQ(info->vhd->footer.unique_id, id);
    EXPECT_EQ(info->vhd->footer.original_size, 4u << 20);
    EXPECT_TRUE(contents_of(path("x.vhd")) == disk) << "no old footer shows in what was added";
  }
  EXPECT_EQ(resize_image_file(path("x.vhd"), 1000).code(), Code::kInvalidArgument);
  EXPECT_EQ(resize_image_file(path("x.vhd"), vhd::kDiskBytesMax + 512).code(), Code::kInvalidArgument);
}

// As VirtualBox writes it: a geometry rounded down, data up to current_size.
class RoundedGeometryTest : public ImageFileTest {
 protected:
  static constexpr uint64_t kDisk = 30u << 20;
  // The file of kDisk bytes, its last 512 bytes 0xA5; `at_end` changes the footer before it is written again.
  Bytes make(OutputFormat format, const std::function<void(vhd::Footer&)>& at_end) {
    Bytes disk = some_disk(kDisk);
    std::fill(disk.end() - 512, disk.end(), 0xA5);
    spit(path("raw"), disk);
    std::filesystem::remove(path("x.vhd"));
    EXPECT_TRUE(convert(path("raw"), path("x.vhd"), format).is_ok());
    Bytes file = slurp(path("x.vhd"));
    vhd::Footer footer = *vhd::decode_footer(ByteSpan(file).last(512));
    EXPECT_LT(footer.geometry.bytes(), kDisk);
    at_end(footer);
    auto sector = vhd::encode_footer(footer);
    std::copy(sector.begin(), sector.end(), file.end() - 512);
    if (format == OutputFormat::kDynamicVhd) std::copy(sector.begin(), sector.end(), file.begin());
    spit(path("x.vhd"), file);
    return disk;
  }
  static void of_virtualbox(vhd::Footer& footer) { footer.creator_app = {'v', 'b', 'o', 'x'}; }
};

TEST_F(RoundedGeometryTest, TheDisksEndIsKept) {
  for (OutputFormat format : {OutputFormat::kFixedVhd, OutputFormat::kDynamicVhd}) {
    Bytes disk = make(format, of_virtualbox);
    EXPECT_EQ(image_file_info(path("x.vhd"))->virtual_size, kDisk);
    ASSERT_TRUE(convert(path("x.vhd"), path("out"), OutputFormat::kRaw).is_ok());
    EXPECT_TRUE(slurp(path("out")) == disk) << format_name(format);
    std::filesystem::remove(path("out"));
  }
}

// Its table may have been made for the geometry: no block beyond could ever be written.
TEST_F(RoundedGeometryTest, ATableThatEndsBeforeIsTheDisksEnd) {
  Bytes disk = make(OutputFormat::kDynamicVhd, [](vhd::Footer& footer) {
    footer.creator_app = {'v', 'p', 'c', ' '};
    footer.current_size = kDisk + 4096;   // into a block of its own
  });
  auto info = image_file_info(path("x.vhd"));
  EXPECT_TRUE(info->validity.is_ok()) << info->validity.to_string();
  EXPECT_EQ(info->virtual_size, kDisk);
  EXPECT_TRUE(contents_of(path("x.vhd")) == disk);
  // Where the size is what counts, such a table is damaged.
  make(OutputFormat::kDynamicVhd, [](vhd::Footer& footer) { footer.current_size = kDisk + 4096; });
  EXPECT_THAT(open_error(path("x.vhd")), HasSubstr("max table entries"));
}

TEST_F(RoundedGeometryTest, AGeometryBeyondTheFileIsRefused) {
  make(OutputFormat::kFixedVhd, [](vhd::Footer& footer) {
    of_virtualbox(footer);
    footer.geometry.cylinders += 2;
  });
  EXPECT_THAT(open_error(path("x.vhd")), HasSubstr("geometry gives a disk of"));
}

TEST_F(ImageFileTest, AShrinkInterruptedBeforeTheCutIsFinishedByTheNext) {
  Bytes disk = some_disk(4u << 20);
  spit(path("raw"), disk);
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kFixedVhd).is_ok());
  Bytes before = slurp(path("x.vhd"));
  ASSERT_TRUE(resize_image_file(path("x.vhd"), 1u << 20).is_ok());
  Bytes after = slurp(path("x.vhd"));
  std::copy(after.begin(), after.end(), before.begin());  // footer written, file not yet cut
  spit(path("x.vhd"), before);
  EXPECT_EQ(image_file_info(path("x.vhd"))->virtual_size, 4u << 20);
  ASSERT_TRUE(resize_image_file(path("x.vhd"), 1u << 20).is_ok());
  disk.resize(1u << 20);
  EXPECT_TRUE(contents_of(path("x.vhd")) == disk);
}

TEST_F(ImageFileTest, RawIsResizedDynamicAndFooterlessAreNot) {
  spit(path("raw"), Bytes(5000, 1));
  ASSERT_TRUE(resize_image_file(path("raw"), 12345).is_ok());
  EXPECT_EQ(std::filesystem::file_size(path("raw")), 12345u);
  ASSERT_TRUE(create_image_file(path("d.vhd"), 8u << 20, {.format = OutputFormat::kDynamicVhd}).is_ok());
  EXPECT_EQ(resize_image_file(path("d.vhd"), 16u << 20).code(), Code::kUnsupported);
  spit(path("broken.vhd"), Bytes(5000, 1));
  EXPECT_EQ(resize_image_file(path("broken.vhd"), 8192).code(), Code::kCorruption);
  EXPECT_EQ(std::filesystem::file_size(path("broken.vhd")), 5000u);
}

// A broken download, or one that was padded: its only footer is not in its last sector.
TEST_F(ImageFileTest, AFileNamedVhdWithoutAFooterHasAProblem) {
  spit(path("raw"), some_disk(4u << 20));
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kFixedVhd).is_ok());
  EXPECT_TRUE(image_file_info(path("x.vhd"))->validity.is_ok());
  for (uint64_t size : {4u << 20, 1u << 20, (4u << 20) + 511, (4u << 20) + 4096}) {
    std::filesystem::resize_file(path("x.vhd"), size);
    EXPECT_EQ(image_file_info(path("x.vhd"))->validity.code(), Code::kCorruption) << size;
    EXPECT_TRUE(image_file_info(path("x.vhd"), InputFormat::kRaw)->validity.is_ok());
    EXPECT_EQ(resize_image_file(path("x.vhd"), 8u << 20).code(), Code::kCorruption);
  }
  ASSERT_TRUE(resize_image_file(path("x.vhd"), 8u << 20, InputFormat::kRaw).is_ok());
  EXPECT_TRUE(image_file_info(path("raw"))->validity.is_ok());
}

TEST_F(ImageFileTest, SectorsThatTheBitmapDoesNotHaveReadAsZeros) {
  Bytes disk(4u << 20, 9);
  spit(path("raw"), disk);
  ASSERT_TRUE(convert(path("raw"), path("x.vhd"), OutputFormat::kDynamicVhd).is_ok());
  Bytes file = slurp(path("x.vhd"));
  file[2048] &= 0x7F;     // block 0, sector 0
  file[2048 + 1] = 0x0F;  // sectors 8 to 11
  spit(path("x.vhd"), file);
  std::fill_n(disk.begin(), 512, 0);
  std::fill_n(disk.begin() + 8 * 512, 4 * 512, 0);
  EXPECT_TRUE(contents_of(path("x.vhd")) == disk);
  auto source = std::move(open_image_file(path("x.vhd"))).value();
  EXPECT_EQ(source->next_data(0)->offset, 512u);
  Bytes out(2u << 20);
  ASSERT_TRUE(source->read(100, out).is_ok());
  EXPECT_TRUE(std::equal(out.begin(), out.end(), disk.begin() + 100));
}

}  // namespace
}  // namespace tidemark::image
