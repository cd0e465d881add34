#include "shared/cli/transfer.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

namespace tidemark::cli {
namespace {

// A disk in memory that may fail at its Nth read.
class MemorySource final : public PointSource {
 public:
  MemorySource(Bytes data, std::vector<Extent> extents) : data_(std::move(data)), extents_(std::move(extents)) {}
  uint64_t size() const override { return data_.size(); }
  std::string identity() const override { return identity_; }
  Result<Extent> next_data(uint64_t offset) override {
    for (const Extent& e : extents_) {
      if (e.end() > offset) return Extent{std::max(e.offset, offset), e.end() - std::max(e.offset, offset)};
    }
    return Extent{size(), 0};
  }
  Status read(uint64_t offset, MutableByteSpan out) override {
    ++reads_;
    if (fail_at_ != 0 && reads_ >= fail_at_) return {Code::kUnavailable, "cut"};
    if (before_read_) before_read_(reads_);
    bytes_read_ += out.size();
    std::copy_n(data_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }
  Bytes data_;
  std::vector<Extent> extents_;
  std::string identity_ = "image@7";
  int fail_at_ = 0, reads_ = 0;
  std::function<void(int)> before_read_;
  uint64_t bytes_read_ = 0;
};

class TransferTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string base = testing::TempDir() + "tidemark-transfer-XXXXXX";
    ASSERT_NE(mkdtemp(base.data()), nullptr);
    directory_ = base;
    options_.path = directory_ + "/out.img";
    options_.checkpoint_bytes = 8u << 20;
    options_.progress_file = directory_ + "/progress";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  static MemorySource large() {   // all data, in five pieces and more than two checkpoints
    Bytes data(20u << 20);
    for (size_t i = 0; i < data.size(); i += 512) data[i] = static_cast<uint8_t>(i >> 9 | 1);
    uint64_t size = data.size();
    return MemorySource(std::move(data), {{0, size}});
  }
  Bytes content() {
    std::ifstream in(options_.path, std::ios::binary);
    Bytes bytes(std::filesystem::file_size(options_.path));
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    EXPECT_TRUE(in) << options_.path;
    return bytes;
  }
  std::vector<std::string> names() {
    std::vector<std::string> out;
    for (const auto& e : std::filesystem::directory_iterator(directory_)) out.push_back(e.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
  std::string directory_;
  TransferOptions options_;
};

TEST_F(TransferTest, CopiesDataAndKeepsHoles) {
  Bytes data(32u << 20);
  std::fill_n(data.begin() + (8 << 20), 5000, 0xAB);
  MemorySource source(data, {{8u << 20, 4u << 20}});   // most of the extent is zeros
  auto r = transfer(source, options_);
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_TRUE(content() == data);
  struct stat s {};
  ASSERT_EQ(stat(options_.path.c_str(), &s), 0);
  EXPECT_LE(s.st_blocks * 512, 64 << 10);
  EXPECT_EQ(names(), (std::vector<std::string>{"out.img"}));
}

TEST_F(TransferTest, AnOddSizeAndAnEmptyDiskWork) {
  MemorySource odd(Bytes(4097, 7), {{0, 4097}});
  ASSERT_TRUE(transfer(odd, options_));
  EXPECT_EQ(content(), Bytes(4097, 7));
  options_.overwrite = true;
  MemorySource empty({}, {});
  ASSERT_TRUE(transfer(empty, options_));
  EXPECT_TRUE(content().empty());
}

TEST_F(TransferTest, ABrokenTransferGoesOnWhereItWasDurable) {
  MemorySource source = large();
  source.fail_at_ = 4;   // after 12 MiB: one checkpoint is past
  auto r = transfer(source, options_);
  ASSERT_FALSE(r);
  EXPECT_FALSE(std::filesystem::exists(options_.path));
  source.fail_at_ = 0;
  source.bytes_read_ = 0;
  r = transfer(source, options_);
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_EQ(r->resumed_at, 8u << 20);
  EXPECT_EQ(source.bytes_read_, 12u << 20);
  EXPECT_TRUE(content() == source.data_);
  EXPECT_EQ(names(), (std::vector<std::string>{"out.img"}));
}

TEST_F(TransferTest, APartialFileOfAnotherPointIsNotContinued) {
  MemorySource source = large();
  source.fail_at_ = 4;
  ASSERT_FALSE(transfer(source, options_));
  MemorySource other = large();
  for (uint8_t& b : other.data_) b ^= 0x55;
  other.identity_ = "image@8";
  auto r = transfer(other, options_);
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_EQ(r->resumed_at, 0u);
  EXPECT_TRUE(content() == other.data_);
}

// Its command lives on behind a terminal that was lost, and is typed again, for the same point or a newer one.
TEST_F(TransferTest, OnlyOneWritesToAName) {
  for (const char* point : {"image@7", "image@8"}) {
    MemorySource source = large(), second = large();
    for (uint8_t& b : second.data_) b ^= 0x55;
    second.identity_ = point;
    Status refused;
    source.before_read_ = [&](int read) {
      if (read == 3) refused = transfer(second, options_).status();
    };
    auto r = transfer(source, options_);
    ASSERT_TRUE(r) << r.status().to_string();
    EXPECT_EQ(refused.code(), Code::kBusy) << refused.to_string();
    EXPECT_TRUE(content() == source.data_) << point;
    EXPECT_EQ(second.reads_, 0);
    EXPECT_EQ(names(), (std::vector<std::string>{"out.img"}));
    std::filesystem::remove(options_.path);
  }
}

TEST_F(TransferTest, APartialFileThatAnotherHasReplacedIsNotGivenTheName) {
  MemorySource source = large();
  source.before_read_ = [&](int read) {
    if (read != 3) return;
    std::filesystem::remove(partial_path(options_.path));
    std::ofstream(partial_path(options_.path)) << "another's";
  };
  auto r = transfer(source, options_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.status().code(), Code::kBusy) << r.status().to_string();
  EXPECT_FALSE(std::filesystem::exists(options_.path));
}

// Two hosts restore to one name of the mount: each notes in its own state how far the file is durable.
TEST_F(TransferTest, WhatAnotherHostBeganAnewIsNotContinued) {
  MemorySource source = large();
  source.fail_at_ = 4;
  ASSERT_FALSE(transfer(source, options_));
  TransferOptions elsewhere = options_;
  elsewhere.progress_file = directory_ + "/progress-of-another-host";
  MemorySource same = large();
  same.fail_at_ = 2;   // not as far as the first
  ASSERT_FALSE(transfer(same, elsewhere));
  source.fail_at_ = 0;
  auto r = transfer(source, options_);
  ASSERT_TRUE(r) << r.status().to_string();
  EXPECT_TRUE(content() == source.data_);
}

// Else a power cut could leave it beside a file that was emptied since.
TEST_F(TransferTest, NothingIsDroppedWhileTheProgressThatTellsOfItIsThere) {
  MemorySource source = large();
  source.fail_at_ = 4;
  ASSERT_FALSE(transfer(source, options_));
  struct stat before {}, after {};
  ASSERT_EQ(stat(partial_path(options_.path).c_str(), &before), 0);
  std::filesystem::remove(options_.progress_file);
  std::filesystem::create_directories(options_.progress_file);   // cannot be removed as a file
  ASSERT_FALSE(transfer(source, options_));
  ASSERT_EQ(stat(partial_path(options_.path).c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino);
  EXPECT_EQ(after.st_blocks, before.st_blocks);
}

TEST_F(TransferTest, OnlyARegularFileIsReplacedWhichKeepsItsMode) {
  MemorySource source(Bytes(10, 1), {{0, 10}});
  options_.overwrite = true;
  std::ofstream(directory_ + "/victim") << "kept";
  std::filesystem::create_symlink("victim", options_.path);
  auto r = transfer(source, options_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(names(), (std::vector<std::string>{"out.img", "victim"}));
  EXPECT_TRUE(std::filesystem::is_symlink(options_.path));
  std::filesystem::remove(options_.path);
  struct stat s {};
  ASSERT_TRUE(transfer(source, options_));
  ASSERT_EQ(stat(options_.path.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0600u);
  ASSERT_EQ(chmod(options_.path.c_str(), 0640), 0);
  ASSERT_TRUE(transfer(source, options_));
  ASSERT_EQ(stat(options_.path.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 07777, 0640u);
}

TEST_F(TransferTest, APartialFileIsNoLink) {
  std::ofstream(directory_ + "/victim") << "kept";
  std::filesystem::create_symlink("victim", partial_path(options_.path));
  MemorySource source(Bytes(10, 1), {{0, 10}});
  EXPECT_FALSE(transfer(source, options_));
  EXPECT_EQ(std::filesystem::file_size(directory_ + "/victim"), 4u);
}

TEST_F(TransferTest, ATakenNameIsRefusedUnlessAsked) {
  std::ofstream(options_.path) << "mine";
  MemorySource source(Bytes(10, 1), {{0, 10}});
  auto r = transfer(source, options_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.status().code(), Code::kAlreadyExists);
  EXPECT_EQ(content().size(), 4u);
  options_.overwrite = true;
  ASSERT_TRUE(transfer(source, options_));
  EXPECT_EQ(content(), Bytes(10, 1));
}

}  // namespace
}  // namespace tidemark::cli
