// What fsck mends of a host's state, and what it leaves alone because a block could be lost.
#include "shared/cli/fsck.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "journal/outdated.h"
#include "journal/records.h"
#include "shared/image/side_file.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_check.h"
#include "shared/kv/lmdb_store.h"
#include "shared/node/catalogue.h"

namespace tidemark::cli {
namespace {

namespace fs = std::filesystem;

// The real files, and an end that comes before the Nth change: of the process, or an error.
class CutFiles final : public io::FileSystem {
 public:
  explicit CutFiles(io::FileSystem& real) : real_(real) {}
  int left = 0;                          // changes until the end; 0: none
  bool kills = false, hit = false;

  Result<std::unique_ptr<io::File>> open(const std::string& path, const io::OpenOptions& o) override { return real_.open(path, o); }
  Result<io::FileStat> stat(const std::string& path) override { return real_.stat(path); }
  Status make_directories(const std::string& path) override { return change([&] { return real_.make_directories(path); }); }
  Result<std::vector<std::string>> list(const std::string& path) override { return real_.list(path); }
  Status rename(const std::string& from, const std::string& to) override { return change([&] { return real_.rename(from, to); }); }
  Status unlink(const std::string& path) override { return change([&] { return real_.unlink(path); }); }
  Status sync_directory(const std::string& path) override { return change([&] { return real_.sync_directory(path); }); }
  Result<Space> space(const std::string& path) override { return real_.space(path); }
  Result<uint64_t> mount_identity(const std::string& path) override { return real_.mount_identity(path); }
  Result<Bytes> read_file(const std::string& path) override { return real_.read_file(path); }
  Status write_file_atomically(const std::string& path, ByteSpan data, uint32_t mode) override {
    return change([&] { return real_.write_file_atomically(path, data, mode); });
  }

 private:
  Status change(const std::function<Status()>& make) {
    if (left != 0 && --left == 0) {
      hit = true;
      if (kills) ::_exit(kKilled);
    }
    return hit ? Status::from_errno(ENOSPC, "planted") : make();
  }
  static constexpr int kKilled = 9;
  io::FileSystem& real_;
};

class CutEnv final : public io::Env {
 public:
  explicit CutEnv(io::RealEnv& real) : real_(real), files_(real.files()) {}
  CutFiles& cut() { return files_; }
  void post(UniqueFunction<void()> fn) override { real_.post(std::move(fn)); }
  io::TimerId after(io::Duration delay, UniqueFunction<void()> fn) override { return real_.after(delay, std::move(fn)); }
  void cancel(io::TimerId id) override { real_.cancel(id); }
  void at_turn_end(UniqueFunction<void()> fn) override { real_.at_turn_end(std::move(fn)); }
  void offload(UniqueFunction<void()> work, UniqueFunction<void()> done) override {
    real_.offload(std::move(work), std::move(done));
  }
  io::BootTime now() override { return real_.now(); }
  WallTime wall() override { return real_.wall(); }
  void random(MutableByteSpan out) override { real_.random(out); }
  io::FileSystem& files() override { return files_; }
  Result<std::unique_ptr<kv::Store>> open_store(const std::string& path, const kv::StoreOptions& options) override {
    return kv::open_lmdb_store(*this, path, options);
  }
  net::Network& network() override { return real_.network(); }
  Uuid boot_id() override { return real_.boot_id(); }

 private:
  io::RealEnv& real_;
  CutFiles files_;
};

class FsckTest : public testing::Test {
 protected:
  FsckTest() : env_({.open_store = kv::open_lmdb_store}) {
    std::string pattern = "/var/tmp/tidemark_fsck_XXXXXX";
    top_ = ::mkdtemp(pattern.data());
    target_ = {"host", top_ + "/state", {top_ + "/brick"}};
    fs::create_directories(target_.state);
    fs::create_directories(target_.bricks[0]);
    image::BrickMarker marker;
    marker.state = image::BrickMarker::State::kReady;
    marker.brick = brick_ = env_.random_uuid();
    marker.count = 1;
    marker.name = "default";
    write(target_.bricks[0] + "/" + std::string(image::kMarkerName), image::encode_marker(marker));
    journal::DrlImageRow row;
    row.region_bytes = 4 << 20;
    row.alone = true;
    fill("drl", journal::drl_table_names(), {{0, image_.bytes, journal::encode_drl_image(row)}});
    fill("names", {"attr", "entry", "flag", "meta"}, {{2, image_.bytes, Bytes{1}}, {3, as_bytes("group"), Bytes(16, 7)}});
  }
  ~FsckTest() override { fs::remove_all(top_); }

  struct Row { kv::Table table; ByteSpan key; Bytes value; };
  void fill(const std::string& store, const std::vector<std::string>& tables, const std::vector<Row>& rows) {
    auto opened = env_.open_store(target_.state + "/" + store, {.tables = tables});
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    kv::WriteBatch batch;
    for (const Row& row : rows) batch.put(row.table, row.key, row.value);
    ASSERT_TRUE((*opened)->commit_and_wait(std::move(batch)).is_ok());
  }
  std::map<Bytes, Bytes> rows(const std::string& store, const std::vector<std::string>& tables, kv::Table table) {
    std::map<Bytes, Bytes> out;
    auto opened = env_.open_store(target_.state + "/" + store, {.tables = tables});
    EXPECT_TRUE(opened.is_ok()) << opened.status().to_string();
    if (!opened) return out;
    auto snapshot = (*opened)->snapshot();
    auto cursor = snapshot->cursor(table);
    for (bool more = cursor->first(); more; more = cursor->next())
      out[Bytes(cursor->key().begin(), cursor->key().end())] = Bytes(cursor->value().begin(), cursor->value().end());
    return out;
  }
  static Bytes read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(in), {});
  }
  static void write(const std::string& path, const Bytes& bytes) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  // Flips a byte wherever the store's file holds these bytes.
  void damage(const std::string& store, const Bytes& where) {
    const std::string path = target_.state + "/" + store + "/data.mdb";
    Bytes bytes = read(path);
    size_t found = 0;
    for (auto at = bytes.begin();; ++at, ++found) {
      at = std::search(at, bytes.end(), where.begin(), where.end());
      if (at == bytes.end()) break;
      *at ^= 1;
    }
    ASSERT_GT(found, 0u);
    write(path, bytes);
  }
  FsckReport run(bool repair) {
    auto report = fsck(env_, target_, repair);
    EXPECT_TRUE(report.is_ok()) << report.status().to_string();
    return report ? *report : FsckReport();
  }
  bool outdated(const std::string& directory) { return read(directory + "/journal-outdated") == journal::outdated_block(true); }
  size_t kept_aside(const std::string& directory) {
    size_t n = 0;
    for (const auto& entry : fs::directory_iterator(directory)) n += entry.path().string().find(".damaged-") != std::string::npos;
    return n;
  }

  io::RealEnv env_;
  std::string top_;
  FsckTarget target_;
  Uuid brick_;
  ImageId image_ = *Uuid::parse("01234567-89ab-4def-8123-456789abcdef");
};

TEST_F(FsckTest, ASoundStateHasNoFinding) {
  FsckReport report = run(false);
  EXPECT_TRUE(report.findings.empty()) << report.findings.front().what;
  EXPECT_EQ(report.stores, 2u);
}

TEST_F(FsckTest, DirtyRegionsAreReplacedByTheMarkThatAllAreDirty) {
  fill("drl", journal::drl_table_names(), {{1, kv::KeyBuilder().uuid(image_).u64(0), Bytes(journal::kDrlPageBytes, 0xe7)}});
  damage("drl", Bytes(100, 0xe7));
  const Bytes before = read(target_.state + "/drl/data.mdb");
  FsckReport seen = run(false);
  ASSERT_EQ(seen.findings.size(), 1u);
  EXPECT_FALSE(seen.findings[0].fixed);
  EXPECT_EQ(read(target_.state + "/drl/data.mdb"), before) << "it was changed without --repair";
  FsckReport mended = run(true);
  ASSERT_EQ(mended.findings.size(), 1u);
  EXPECT_TRUE(mended.findings[0].fixed) << mended.findings[0].what;
  EXPECT_TRUE(run(false).findings.empty());
  EXPECT_TRUE(outdated(target_.state));
  EXPECT_TRUE(outdated(target_.bricks[0]));
  EXPECT_EQ(kept_aside(target_.state), 1u);
  auto images = rows("drl", journal::drl_table_names(), 0);
  ASSERT_EQ(images.size(), 1u);
  auto row = journal::decode_drl_image(images.begin()->second);
  ASSERT_TRUE(row.is_ok());
  EXPECT_TRUE(row->alone) << "which copy decides is not to be forgotten";
}

// Cut off before any of its changes, by an error or by its end: no log without regions serves where the mark does not stand,
// and the next run finishes.
TEST_F(FsckTest, ARepairThatIsCutOffLosesNoMark) {
  fill("drl", journal::drl_table_names(), {{1, kv::KeyBuilder().uuid(image_).u64(0), Bytes(journal::kDrlPageBytes, 0xe7)}});
  damage("drl", Bytes(100, 0xe7));
  fs::copy(top_, top_ + ".kept", fs::copy_options::recursive);
  for (bool kills : {false, true}) {
    bool hit = true;
    for (int n = 1; hit; ++n) {
      fs::remove_all(top_);
      fs::copy(top_ + ".kept", top_, fs::copy_options::recursive);
      int status = 0;
      pid_t child = ::fork();
      if (child == 0) {
        io::RealEnv real({.open_store = kv::open_lmdb_store});
        CutEnv env(real);
        env.cut().left = n;
        env.cut().kills = kills;
        auto report = fsck(env, target_, true);
        ::_exit(env.cut().hit ? 9 : report.is_ok() ? 0 : 1);
      }
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status)) << "signal " << status;
      hit = WEXITSTATUS(status) == 9;
      ASSERT_TRUE(hit || WEXITSTATUS(status) == 0);
      const std::string drl = target_.state + "/drl";
      const bool serves = fs::exists(drl + "/data.mdb") && kv::check_store(drl)->problems.empty();
      EXPECT_TRUE(!serves || outdated(target_.state)) << "change " << n << ", kills " << kills;
      run(true);
      FsckReport after = run(false);
      EXPECT_TRUE(after.findings.empty()) << after.findings.front().what << ", change " << n << ", kills " << kills;
      EXPECT_TRUE(outdated(target_.state)) << "change " << n;
      EXPECT_EQ(rows("drl", journal::drl_table_names(), 0).size(), 1u) << "change " << n << ", kills " << kills;
      EXPECT_EQ(kept_aside(target_.state), 1u) << "the damaged one is kept, change " << n << ", kills " << kills;
      for (const auto& entry : fs::directory_iterator(target_.state))
        EXPECT_EQ(entry.path().string().find(".rebuil"), std::string::npos) << entry.path();
    }
  }
  fs::remove_all(top_ + ".kept");
}

// Who had gone on alone is not known any more: no direction of a comparison is safe.
TEST_F(FsckTest, WithoutTheCopiesStatesNothingIsMended) {
  journal::DrlImageRow row;
  row.region_bytes = 4 << 20;
  row.alone = true;
  damage("drl", journal::encode_drl_image(row));
  FsckReport report = run(true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_FALSE(report.findings[0].fixed);
  EXPECT_EQ(kept_aside(target_.state), 0u);
  EXPECT_FALSE(outdated(target_.state));
}

TEST_F(FsckTest, NamesAreACacheButFlagsAreNot) {
  fill("names", {"attr", "entry", "flag", "meta"}, {{0, kv::key_u64(5), Bytes(200, 0xa3)}, {0, kv::key_u64(6), Bytes(20, 1)}});
  damage("names", Bytes(200, 0xa3));
  FsckReport report = run(true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_TRUE(report.findings[0].fixed);
  EXPECT_EQ(rows("names", {"attr", "entry", "flag", "meta"}, 0).size(), 1u);
  EXPECT_EQ(rows("names", {"attr", "entry", "flag", "meta"}, 2).at(Bytes(image_.bytes.begin(), image_.bytes.end())), Bytes{1});
  EXPECT_FALSE(outdated(target_.state));
  damage("names", Bytes(16, 7));
  EXPECT_FALSE(run(true).findings.at(0).fixed) << "without the group's id an empty brick is taken for a new one";
}

TEST_F(FsckTest, RecordsGoAndTheMarkStandsForThem) {
  fill("journal", journal::journal_table_names(), {{journal::kRecordsTable, kv::KeyBuilder().u64(1).u32(0), Bytes(500, 0xc1)},
                                                   {journal::kSlotsTable, kv::KeyBuilder().u64(1).u32(0), Bytes(16, 2)},
                                                   {journal::kMetaTable, as_bytes("incarnation"), Bytes(25, 3)}});
  damage("journal", Bytes(300, 0xc1));
  FsckReport report = run(true);
  ASSERT_FALSE(report.findings.empty());
  EXPECT_TRUE(report.findings[0].fixed) << report.findings[0].remedy;
  EXPECT_TRUE(outdated(target_.state));
  EXPECT_TRUE(rows("journal", journal::journal_table_names(), journal::kRecordsTable).empty());
  EXPECT_TRUE(rows("journal", journal::journal_table_names(), journal::kSlotsTable).empty());
  EXPECT_EQ(rows("journal", journal::journal_table_names(), journal::kMetaTable).size(), 1u);
}

// The catalogue says which images must have blocks on the bricks: those of which nothing at all is left are missed too.
TEST_F(FsckTest, ImagesOfTheSharedNodeThatAreGoneFromItsBricksAreNamed) {
  target_.role = "shared";
  target_.group = "default";
  const ImageId whole = *Uuid::parse("11234567-89ab-4def-8123-456789abcdef"), never = *Uuid::parse("21234567-89ab-4def-8123-456789abcdef"),
                nameless = *Uuid::parse("31234567-89ab-4def-8123-456789abcdef");
  {
    auto store = env_.open_store(target_.state + "/catalogue", node::catalogue_options());
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    kv::WriteBatch batch;
    node::ImageRecord record;
    record.inode = InodeNumber(2);
    node::put_image(batch, never, record);
    record.has_copy = 1;
    node::put_image(batch, image_, record);
    node::put_image(batch, whole, record);
    record.nameless = 1;
    node::put_image(batch, nameless, record);
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)).is_ok());
  }
  auto put_copy = [&](const ImageId& id) {
    auto layout = image::Layout::make(Generation(1), image::kStripeUnitDefault, {brick_});
    ASSERT_TRUE(layout.is_ok());
    write(image::metadata_path(target_.bricks[0], id), image::encode_metadata({id, *layout, 4096, Generation(1)}));
    write(image::object_path(target_.bricks[0], id, Generation(1), 0), Bytes(4096, 1));
  };
  put_copy(whole);
  FsckReport report = run(true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].path, image_.to_string());
  EXPECT_NE(report.findings[0].what.find("missing"), std::string::npos) << report.findings[0].what;
  EXPECT_FALSE(report.findings[0].fixed);
  put_copy(image_);
  EXPECT_TRUE(run(false).findings.empty());
  // Objects without their side file are no left-overs if the catalogue knows them.
  fs::remove(image::metadata_path(target_.bricks[0], whole));
  report = run(false);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].path, whole.to_string());
  EXPECT_TRUE(report.notes.empty()) << report.notes.front();
}

TEST_F(FsckTest, WhatWasRevokedIsLookedAtAsTheDaemonDoes) {
  write(target_.state + "/revoked", Bytes(40, 1));
  FsckReport report = run(true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].path, target_.state + "/revoked");
  EXPECT_FALSE(report.findings[0].fixed);
}

// In a process of its own: the rights are given up for good.
TEST_F(FsckTest, WhoMayNotLookIsTold) {
  fs::permissions(target_.state, fs::perms(0));
  fs::permissions(target_.bricks[0], fs::perms(0));
  ASSERT_EQ(::chmod(top_.c_str(), 0755), 0);
  int status = 0;
  pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    io::RealEnv env({.open_store = kv::open_lmdb_store});
    const bool told = fsck_kind(target_.state).status().sys_errno() == EACCES &&
                      fsck_kind(target_.bricks[0]).status().sys_errno() == EACCES &&
                      fsck(env, target_, true).status().sys_errno() == EACCES;
    ::_exit(told ? 0 : 1);
  }
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  fs::permissions(target_.state, fs::perms(0700));
  fs::permissions(target_.bricks[0], fs::perms(0700));
}

TEST_F(FsckTest, AStoreInUseIsLeftAlone) {
  auto open = env_.open_store(target_.state + "/names", {.tables = {"attr", "entry", "flag", "meta"}});
  ASSERT_TRUE(open.is_ok());
  int status = 0;
  pid_t child = ::fork();                // locks of the own process are not seen by it
  if (child == 0) {
    io::RealEnv env({.open_store = kv::open_lmdb_store});
    ::_exit(fsck(env, target_, true).status().code() == Code::kBusy ? 0 : 1);
  }
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace tidemark::cli
