// A storage group in a scratch directory on the real Env, through a file system whose faults a test chooses.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shared/image/side_file.h"
#include "shared/image/store.h"
#include "shared/io/real_env.h"
#include "shared/kv/store.h"

namespace tidemark::image {

struct Faults {
  bool refuse_punch = false;  // as a file system without hole punching
  bool fail_sync = false;
  bool fail_atomic_writes = false;
  int fail_after_changes = -1;  // changes of names and files let through; later ones get EIO; -1: all
  struct HeldStat {
    io::File* file;
    Callback<Result<io::FileStat>> done;
  };
  bool hold_stat = false;        // the next ask_stat is `held`: the test answers it
  std::optional<HeldStat> held;
  bool hold_syncs = false;       // they are `held_syncs`: the test answers them
  std::vector<Callback<Status>> held_syncs;
  bool change_fails() { return fail_after_changes >= 0 && fail_after_changes-- <= 0 && (fail_after_changes = 0, true); }
};

inline Status injected(const char* what) { return Status::from_errno(EIO, std::string("injected: ") + what); }

class FaultyFile final : public io::File {
 public:
  FaultyFile(std::unique_ptr<io::File> inner, Faults& faults) : inner_(std::move(inner)), faults_(faults) {}
  void read(uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Status> done) override {
    inner_->read(offset, out, mode, std::move(done));
  }
  void write(uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Status> done) override {
    inner_->write(offset, data, mode, std::move(done));
  }
  void sync(io::IoMode mode, Callback<Status> done) override {
    if (faults_.hold_syncs) return faults_.held_syncs.push_back(std::move(done));
    if (faults_.fail_sync) return done(injected("sync"));
    inner_->sync(mode, std::move(done));
  }
  void punch(uint64_t offset, uint64_t length, Callback<Status> done) override {
    if (faults_.refuse_punch) return done(Status::from_errno(EOPNOTSUPP, "punch"));
    inner_->punch(offset, length, std::move(done));
  }
  void allocate(uint64_t offset, uint64_t length, Callback<Status> done) override {
    inner_->allocate(offset, length, std::move(done));
  }
  Status truncate(uint64_t size) override {
    if (faults_.change_fails()) return injected("truncate");
    return inner_->truncate(size);
  }
  Result<Extent> next_data(uint64_t offset) override { return inner_->next_data(offset); }
  Result<io::FileStat> stat() override { return inner_->stat(); }
  void ask_stat(io::IoMode mode, Callback<Result<io::FileStat>> done) override {
    if (std::exchange(faults_.hold_stat, false)) {
      faults_.held = Faults::HeldStat{inner_.get(), std::move(done)};
      return;
    }
    inner_->ask_stat(mode, std::move(done));
  }
  bool is_direct() const override { return inner_->is_direct(); }

 private:
  std::unique_ptr<io::File> inner_;
  Faults& faults_;
};

class FaultyFiles final : public io::FileSystem {
 public:
  FaultyFiles(io::FileSystem& inner, Faults& faults) : inner_(inner), faults_(faults) {}
  Result<std::unique_ptr<io::File>> open(const std::string& path, const io::OpenOptions& options) override {
    if (options.create && faults_.change_fails()) return injected("create");
    auto file = inner_.open(path, options);
    if (!file) return file.status();
    return std::unique_ptr<io::File>(std::make_unique<FaultyFile>(std::move(file).value(), faults_));
  }
  Result<io::FileStat> stat(const std::string& path) override { return inner_.stat(path); }
  Status make_directories(const std::string& path) override {
    return faults_.change_fails() ? injected("mkdir") : inner_.make_directories(path);
  }
  Result<std::vector<std::string>> list(const std::string& d) override { return inner_.list(d); }
  Status rename(const std::string& from, const std::string& to) override { return inner_.rename(from, to); }
  Status unlink(const std::string& path) override {
    return faults_.change_fails() ? injected("unlink") : inner_.unlink(path);
  }
  Status sync_directory(const std::string& path) override {
    return faults_.change_fails() ? injected("sync directory") : inner_.sync_directory(path);
  }
  Result<Space> space(const std::string& path) override { return inner_.space(path); }
  Result<uint64_t> mount_identity(const std::string& path) override { return inner_.mount_identity(path); }
  Result<Bytes> read_file(const std::string& path) override { return inner_.read_file(path); }
  Status write_file_atomically(const std::string& path, ByteSpan data, uint32_t mode) override {
    if (faults_.fail_atomic_writes || faults_.change_fails()) return injected("write file");
    return inner_.write_file_atomically(path, data, mode);
  }

 private:
  io::FileSystem& inner_;
  Faults& faults_;
};

class FaultyEnv final : public io::Env {
 public:
  explicit FaultyEnv(io::Env& inner) : inner_(inner), files_(inner.files(), faults) {}
  void post(UniqueFunction<void()> fn) override { inner_.post(std::move(fn)); }
  io::TimerId after(io::Duration delay, UniqueFunction<void()> fn) override {
    return inner_.after(delay, std::move(fn));
  }
  void cancel(io::TimerId id) override { inner_.cancel(id); }
  void at_turn_end(UniqueFunction<void()> fn) override { inner_.at_turn_end(std::move(fn)); }
  void offload(UniqueFunction<void()> work, UniqueFunction<void()> done) override {
    inner_.offload(std::move(work), std::move(done));
  }
  io::BootTime now() override { return inner_.now(); }
  WallTime wall() override { return inner_.wall(); }
  void random(MutableByteSpan out) override { inner_.random(out); }
  io::FileSystem& files() override { return files_; }
  Result<std::unique_ptr<kv::Store>> open_store(const std::string& path, const kv::StoreOptions& o) override {
    return inner_.open_store(path, o);
  }
  net::Network& network() override { return inner_.network(); }
  Uuid boot_id() override { return boot.value_or(inner_.boot_id()); }

  Faults faults;
  std::optional<Uuid> boot;  // as after a reboot

 private:
  io::Env& inner_;
  FaultyFiles files_;
};

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidemark-image-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  ~StoreTest() override { std::filesystem::remove_all(root_); }

  StorageGroupOptions options(uint32_t bricks, uint32_t stripes = 1) const {
    StorageGroupOptions o;
    o.name = "main";
    for (uint32_t i = 0; i < bricks; ++i) o.bricks.push_back(brick(i));
    o.stripe_unit = kStripeUnitMin;
    o.stripe_count = stripes;
    return o;
  }
  std::string brick(uint32_t i) const { return root_ + "/b" + std::to_string(i); }
  std::unique_ptr<StorageGroup> open_group(const StorageGroupOptions& o) {
    auto group = StorageGroup::open(env_, o);
    EXPECT_TRUE(group.is_ok()) << group.status().to_string();
    return group ? std::move(group).value() : nullptr;
  }
  std::string open_error(const StorageGroupOptions& o) {
    auto group = StorageGroup::open(env_, o);
    return group ? "" : group.status().message();
  }

  // Waits for one completion.
  template <typename Start>
  Status wait(Start start) {
    std::optional<Status> result;
    start([&](Status s) { result = std::move(s); });
    EXPECT_TRUE(real_.run_until([&] { return result.has_value(); }, std::chrono::seconds(60)));
    return *result;
  }
  Status write(ImageCopy& copy, uint64_t offset, ByteSpan data, io::IoMode mode = io::IoMode::kInline) {
    return wait([&](Callback<Status> done) { copy.write(offset, data, mode, std::move(done)); });
  }
  Status zero(ImageCopy& copy, Extent range) {
    return wait([&](Callback<Status> done) { copy.zero(range.offset, range.length, std::move(done)); });
  }
  Status sync(ImageCopy& copy, io::IoMode mode = io::IoMode::kInline) {
    return wait([&](Callback<Status> done) { copy.sync(mode, std::move(done)); });
  }
  Status resize(ImageCopy& copy, uint64_t size) {
    return wait([&](Callback<Status> done) { copy.resize(size, copy.size_generation().next(), std::move(done)); });
  }
  Bytes read(ImageCopy& copy, uint64_t offset, size_t length, io::IoMode mode = io::IoMode::kInline) {
    Bytes out(length, 0xEE);
    Status s = wait([&](Callback<Status> done) { copy.read(offset, out, mode, std::move(done)); });
    EXPECT_TRUE(s.is_ok()) << s.to_string();
    return out;
  }
  static void flip_byte(const std::string& path, uint64_t offset) {
    std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(static_cast<std::streamoff>(offset));
    char c = static_cast<char>(f.get() ^ 0x5A);
    f.seekp(static_cast<std::streamoff>(offset));
    f.put(c);
  }

  std::string root_;
  io::RealEnv real_;
  FaultyEnv env_{real_};
};

inline ImageId image_id(uint8_t n) {
  std::array<uint8_t, 16> bytes{};
  bytes[0] = n;
  return Uuid::from_random(bytes);
}

}  // namespace tidemark::image
