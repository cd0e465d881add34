// Files and names.
#include "tests/contract/harness.h"

namespace tidemark::contract {
namespace {

using io::IoMode;
using ::testing::ElementsAre;

class FilesContract : public ContractTest {
 protected:
  std::unique_ptr<io::File> open(const std::string& name, io::OpenOptions options = {.create = true}) {
    auto file = files().open(path(name), options);
    EXPECT_TRUE(file.is_ok()) << file.status().to_string();
    return file ? std::move(*file) : nullptr;
  }
  Status write(io::File& f, uint64_t offset, ByteSpan data, IoMode mode = IoMode::kQueued) {
    return wait<Status>([&](auto done) { f.write(offset, data, mode, std::move(done)); });
  }
  Status read(io::File& f, uint64_t offset, MutableByteSpan out, IoMode mode = IoMode::kQueued) {
    return wait<Status>([&](auto done) { f.read(offset, out, mode, std::move(done)); });
  }
  Status sync(io::File& f, IoMode mode = IoMode::kQueued) {
    return wait<Status>([&](auto done) { f.sync(mode, std::move(done)); });
  }
};
INSTANTIATE_TEST_SUITE_P(Envs, FilesContract, ::testing::Values("real", "real_without_io_uring", "sim"),
                         [](const auto& info) { return info.param; });

TEST_P(FilesContract, WhatWasWrittenIsReadInBothModes) {
  auto f = open("f");
  for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
    Bytes data = pattern(10'000, mode == IoMode::kQueued ? 1 : 2), back(10'000);
    ASSERT_TRUE(write(*f, 777, data, mode).is_ok());
    ASSERT_TRUE(read(*f, 777, back, mode).is_ok());
    EXPECT_EQ(data, back);
    EXPECT_TRUE(sync(*f, mode).is_ok());
  }
  EXPECT_EQ(f->stat()->size, 10'777u);
}

TEST_P(FilesContract, QueuedOperationNeverCallsBackInline) {
  auto f = open("f");
  Bytes data = pattern(4096, 3);
  bool done = false;
  f->write(0, data, IoMode::kQueued, [&](Status s) { EXPECT_TRUE(s.is_ok()); done = true; });
  EXPECT_FALSE(done);
  EXPECT_TRUE(run_until([&] { return done; }));
}

TEST_P(FilesContract, ShortReadIsFilledWithZeros) {
  auto f = open("f");
  ASSERT_TRUE(write(*f, 0, pattern(1000, 1)).is_ok());
  for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
    Bytes back(5000, 0xee), expected = pattern(1000, 1);
    expected.resize(5000);
    ASSERT_TRUE(read(*f, 0, back, mode).is_ok());
    EXPECT_EQ(back, expected);
    Bytes beyond(100, 0xee);
    ASSERT_TRUE(read(*f, 90'000, beyond, mode).is_ok());
    EXPECT_EQ(beyond, Bytes(100));
  }
}

TEST_P(FilesContract, ReadingPastTheEndOfAWholeFileIsAnError) {
  {
    auto f = open("f");
    ASSERT_TRUE(write(*f, 0, pattern(3 * 4096 + 512, 1)).is_ok());
    ASSERT_TRUE(sync(*f).is_ok());
  }
  for (bool direct : {false, true}) {
    auto f = open("f", {.direct = direct, .whole = true});
    io::AlignedBuffer buffer(5 * 4096);
    for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
      EXPECT_TRUE(read(*f, 0, buffer.span().first(3 * 4096), mode).is_ok());
      for (uint64_t offset : {uint64_t{0}, uint64_t{3 * 4096}, uint64_t{4 * 4096}}) {
        Status past = read(*f, offset, buffer.span().first(4 * 4096), mode);
        EXPECT_EQ(past.code(), Code::kCorruption) << offset << ": " << past.to_string();
      }
      EXPECT_TRUE(read(*f, 4 * 4096, {}, mode).is_ok());
    }
  }
}

TEST_P(FilesContract, ManyOperationsAtOnceAllComplete) {
  auto f = open("f", {.create = true, .direct = true});
  constexpr int kCount = 1500;   // more than the ring's submission queue holds
  io::AlignedBuffer out(4096 * kCount), in(4096 * kCount);
  for (size_t i = 0; i < out.size(); ++i) out.data()[i] = static_cast<uint8_t>(i / 4096 * 7 + i);
  int done = 0;
  auto count = [&](Status s) { EXPECT_TRUE(s.is_ok()) << s.to_string(); ++done; };
  for (size_t i = 0; i < kCount; ++i) f->write(i * 4096, out.span().subspan(i * 4096, 4096), IoMode::kQueued, count);
  ASSERT_TRUE(run_until([&] { return done == kCount; }));
  for (size_t i = 0; i < kCount; ++i) f->read(i * 4096, in.span().subspan(i * 4096, 4096), IoMode::kQueued, count);
  ASSERT_TRUE(run_until([&] { return done == 2 * kCount; }));
  EXPECT_EQ(std::memcmp(out.data(), in.data(), out.size()), 0);
}

TEST_P(FilesContract, DirectTailOfAFileReadsAsZerosPastItsEnd) {
  {
    auto f = open("f");
    ASSERT_TRUE(write(*f, 0, pattern(5000, 9)).is_ok());
    ASSERT_TRUE(sync(*f).is_ok());
  }
  auto f = open("f", {.direct = true});
  io::AlignedBuffer buffer(3 * 4096);
  std::memset(buffer.data(), 0xee, buffer.size());
  for (IoMode mode : {IoMode::kQueued, IoMode::kInline}) {
    ASSERT_TRUE(read(*f, 0, buffer.span(), mode).is_ok());
    Bytes expected = pattern(5000, 9);
    expected.resize(buffer.size());
    EXPECT_EQ(Bytes(buffer.data(), buffer.data() + buffer.size()), expected);
  }
}

TEST_P(FilesContract, UnalignedDirectOperationIsRefused) {
  auto f = open("f", {.create = true, .direct = true});
  ASSERT_TRUE(f->is_direct()) << "this file system has no O_DIRECT: set TMPDIR to a directory on another";
  io::AlignedBuffer buffer(8192);
  EXPECT_EQ(write(*f, 100, buffer.span()).code(), Code::kInvalidArgument);
  EXPECT_EQ(write(*f, 0, buffer.span().first(100)).code(), Code::kInvalidArgument);
  EXPECT_EQ(read(*f, 0, buffer.span().subspan(8, 4096)).code(), Code::kInvalidArgument);
  EXPECT_EQ(f->stat()->size, 0u);
}

TEST_P(FilesContract, EmptyOperationsSucceed) {
  auto f = open("f");
  EXPECT_TRUE(write(*f, 5, {}).is_ok());
  EXPECT_TRUE(read(*f, 5, {}).is_ok());
  EXPECT_TRUE(wait<Status>([&](auto done) { f->punch(0, 0, std::move(done)); }).is_ok());
  EXPECT_EQ(f->stat()->size, 0u);
}

TEST_P(FilesContract, PunchedRangeReadsAsZerosAndIsAHole) {
  auto f = open("f");
  Bytes data = pattern(65'536, 4);
  ASSERT_TRUE(write(*f, 0, data).is_ok());
  ASSERT_TRUE(sync(*f).is_ok());
  uint64_t before = f->stat()->allocated;
  ASSERT_TRUE(wait<Status>([&](auto done) { f->punch(16'384, 16'384, std::move(done)); }).is_ok());
  Bytes back(65'536);
  ASSERT_TRUE(read(*f, 0, back).is_ok());
  std::fill(data.begin() + 16'384, data.begin() + 32'768, 0);
  EXPECT_EQ(back, data);
  EXPECT_EQ(f->stat()->size, 65'536u);
  EXPECT_LT(f->stat()->allocated, before);
  EXPECT_EQ(*f->next_data(0), (Extent{0, 16'384}));
  EXPECT_EQ(*f->next_data(20'000), (Extent{32'768, 32'768}));
  EXPECT_EQ(*f->next_data(40'000), (Extent{40'000, 25'536}));
}

TEST_P(FilesContract, NextDataOfAThinFileEndsAtItsSize) {
  auto f = open("f");
  ASSERT_TRUE(f->truncate(1 << 20).is_ok());
  EXPECT_EQ(*f->next_data(0), (Extent{1 << 20, 0}));
  ASSERT_TRUE(write(*f, 524'288, pattern(4096, 1)).is_ok());
  EXPECT_EQ(*f->next_data(0), (Extent{524'288, 4096}));
  EXPECT_EQ(*f->next_data(528'384), (Extent{1 << 20, 0}));
  EXPECT_EQ(*f->next_data(2 << 20), (Extent{1 << 20, 0}));
}

TEST_P(FilesContract, AllocateKeepsSizeAndContents) {
  auto f = open("f");
  ASSERT_TRUE(write(*f, 0, pattern(4096, 6)).is_ok());
  ASSERT_TRUE(wait<Status>([&](auto done) { f->allocate(0, 1 << 20, std::move(done)); }).is_ok());
  EXPECT_EQ(f->stat()->size, 4096u);
  EXPECT_GE(f->stat()->allocated, 1u << 20);
  Bytes back(4096);
  ASSERT_TRUE(read(*f, 0, back).is_ok());
  EXPECT_EQ(back, pattern(4096, 6));
}

TEST_P(FilesContract, WhatTruncateCutOffComesBackAsZeros) {
  auto f = open("f");
  ASSERT_TRUE(write(*f, 0, pattern(10'000, 6)).is_ok());
  ASSERT_TRUE(f->truncate(5000).is_ok());
  EXPECT_EQ(f->stat()->size, 5000u);
  ASSERT_TRUE(f->truncate(10'000).is_ok());
  Bytes back(10'000), expected = pattern(5000, 6);
  expected.resize(10'000);
  ASSERT_TRUE(read(*f, 0, back).is_ok());
  EXPECT_EQ(back, expected);
}

TEST_P(FilesContract, OpenSaysWhatIsWrong) {
  EXPECT_EQ(files().open(path("none"), {}).status().code(), Code::kNotFound);
  EXPECT_EQ(files().open(path("no/such/f"), {.create = true}).status().code(), Code::kNotFound);
  open("f");
  EXPECT_EQ(files().open(path("f"), {.create = true, .exclusive = true}).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(files().open(path("f/g"), {.create = true}).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(write(*open("f", {.read_only = true}), 0, pattern(10, 0)).is_ok());
}

TEST_P(FilesContract, NamesAreMadeListedRenamedRemoved) {
  ASSERT_TRUE(files().make_directories(path("a/b/c")).is_ok());
  ASSERT_TRUE(files().make_directories(path("a/b")).is_ok());
  open("a/two");
  open("a/one");
  EXPECT_THAT(*files().list(path("a")), ElementsAre("b", "one", "two"));
  EXPECT_TRUE(files().stat(path("a/b"))->is_directory);
  ASSERT_TRUE(files().write_file_atomically(path("a/two"), pattern(10, 2)).is_ok());
  ASSERT_TRUE(files().rename(path("a/two"), path("a/one")).is_ok());
  EXPECT_THAT(*files().list(path("a")), ElementsAre("b", "one"));
  EXPECT_EQ(*files().read_file(path("a/one")), pattern(10, 2));
  ASSERT_TRUE(files().sync_directory(path("a")).is_ok());
  ASSERT_TRUE(files().unlink(path("a/one")).is_ok());
  EXPECT_EQ(files().unlink(path("a/one")).code(), Code::kNotFound);
  EXPECT_EQ(files().rename(path("a/one"), path("a/x")).code(), Code::kNotFound);
  EXPECT_EQ(files().stat(path("a/one")).status().code(), Code::kNotFound);
  EXPECT_EQ(files().list(path("zzz")).status().code(), Code::kNotFound);
  EXPECT_EQ(files().unlink(path("a")).code(), Code::kAlreadyExists) << "it holds b";
  EXPECT_EQ(files().make_directories(path("a/b/c")).code(), Code::kOk);
  open("plain");
  EXPECT_FALSE(files().make_directories(path("plain/x")).is_ok());
}

TEST_P(FilesContract, RenamedDirectoryTakesItsFilesAlong) {
  ASSERT_TRUE(files().make_directories(path("old/sub")).is_ok());
  ASSERT_TRUE(files().write_file_atomically(path("old/sub/f"), pattern(3, 1)).is_ok());
  ASSERT_TRUE(files().rename(path("old"), path("new")).is_ok());
  EXPECT_EQ(*files().read_file(path("new/sub/f")), pattern(3, 1));
  EXPECT_EQ(files().stat(path("old")).status().code(), Code::kNotFound);
}

TEST_P(FilesContract, UnlinkedFileLivesWhileItIsOpen) {
  auto f = open("f");
  ASSERT_TRUE(write(*f, 0, pattern(100, 1)).is_ok());
  ASSERT_TRUE(files().unlink(path("f")).is_ok());
  Bytes back(100);
  ASSERT_TRUE(read(*f, 0, back).is_ok());
  EXPECT_EQ(back, pattern(100, 1));
}

TEST_P(FilesContract, AtomicWriteReplacesAndLeavesNothingElse) {
  ASSERT_TRUE(files().write_file_atomically(path("f"), pattern(5000, 1)).is_ok());
  ASSERT_TRUE(files().write_file_atomically(path("f"), pattern(10, 2)).is_ok());
  EXPECT_EQ(*files().read_file(path("f")), pattern(10, 2));
  EXPECT_THAT(*files().list(harness->directory()), ElementsAre("f"));
  EXPECT_EQ(files().read_file(path("none")).status().code(), Code::kNotFound);
}

TEST_P(FilesContract, SpaceAndMountAreKnown) {
  auto space = files().space(harness->directory());
  ASSERT_TRUE(space.is_ok());
  EXPECT_GT(space->total, 0u);
  EXPECT_LE(space->available, space->total);
  EXPECT_EQ(*files().mount_identity(harness->directory()), *files().mount_identity(harness->directory()));
  EXPECT_FALSE(files().mount_identity(path("none")).is_ok());
}

}  // namespace
}  // namespace tidemark::contract
