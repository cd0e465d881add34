// What only LMDB has: a full map, a full disk, group commit, another process's readers.
#include "shared/kv/lmdb_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <utility>

#include "shared/io/real_env.h"

namespace {
std::atomic<int> syncs_of_data = 0;
}
// Stands before the C library's, for LMDB too.
extern "C" int fdatasync(int fd) {
  ++syncs_of_data;
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

namespace tidemark::kv {
namespace {

constexpr auto kWait = std::chrono::seconds(30);

class LmdbStoreTest : public ::testing::Test {
 protected:
  LmdbStoreTest() : env({.open_store = open_lmdb_store}) {
    std::string pattern = "/var/tmp/tidemark_kv_XXXXXX";
    directory = ::mkdtemp(pattern.data());
  }
  ~LmdbStoreTest() override {
    store.reset();
    if (mounted) {
      EXPECT_EQ(::umount((directory + "/small").c_str()), 0);
    }
    std::filesystem::remove_all(directory);
  }
  void open(const std::string& path, uint64_t map_bytes = 1 << 30) {
    auto opened = env.open_store(path, {.tables = {"t"}, .map_bytes_max = map_bytes});
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    store = std::move(*opened);
  }
  Status commit(WriteBatch batch) {
    std::optional<Status> result;
    store->commit(std::move(batch), [&](Status s) { result = std::move(s); });
    EXPECT_TRUE(env.run_until([&] { return result.has_value(); }, kWait));
    return result.value_or(Status(Code::kUnavailable, "no answer"));
  }
  static WriteBatch put(uint64_t key, size_t value_bytes) {
    WriteBatch batch;
    batch.put(0, key_u64(key), Bytes(value_bytes, 'v'));
    return batch;
  }
  static WriteBatch erase(uint64_t from, uint64_t to) {
    WriteBatch batch;
    batch.erase_range(0, key_u64(from), key_u64(to));
    return batch;
  }
  // Fills the store, checks that it refuses without harm, makes room and goes on.
  void fill_and_recover() {
    uint64_t key = 0;
    Status status;
    while ((status = commit(put(key, 20'000))).is_ok()) ASSERT_LT(++key, 10'000u) << "it is never full";
    EXPECT_EQ(status.code(), Code::kOutOfSpace) << status.to_string();
    ASSERT_GT(key, 3u);
    EXPECT_EQ(commit(put(key, 20'000)).code(), Code::kOutOfSpace);
    EXPECT_EQ(store->snapshot()->get(0, key_u64(key)).status().code(), Code::kNotFound);
    EXPECT_EQ(store->snapshot()->get(0, key_u64(key - 1))->size(), 20'000u);
    ASSERT_TRUE(commit(erase(0, key / 2)).is_ok());
    // The pages freed serve from the commit after next on: an older view might still need them.
    ASSERT_TRUE(commit(erase(0, key / 2)).is_ok());
    EXPECT_TRUE(commit(put(key + 1, 1000)).is_ok());
  }

  io::RealEnv env;
  std::string directory;
  bool mounted = false;
  std::unique_ptr<Store> store;
};

TEST_F(LmdbStoreTest, FullMapIsOutOfSpaceAndTheStoreGoesOn) {
  open(directory + "/s", 1 << 20);
  fill_and_recover();
}

TEST_F(LmdbStoreTest, AStoreWhoseMapIsFullTakesMoreOpenedWithALargerOne) {
  open(directory + "/s", 1 << 20);
  uint64_t key = 0;
  while (commit(put(key, 20'000)).is_ok()) ASSERT_LT(++key, 10'000u) << "it is never full";
  store.reset();
  open(directory + "/s", 8 << 20);
  EXPECT_EQ(store->usage()->map_bytes, uint64_t{8} << 20);
  for (uint64_t more = 0; more < key; ++more) ASSERT_TRUE(commit(put(key + more, 20'000)).is_ok()) << more;
  store.reset();
  open(directory + "/s", 1 << 20);   // by an earlier program
  EXPECT_EQ(store->snapshot()->get(0, key_u64(2 * key - 1))->size(), 20'000u);
}

TEST_F(LmdbStoreTest, FullDiskIsOutOfSpaceAndTheStoreGoesOn) {
  std::string mount = directory + "/small";
  std::filesystem::create_directory(mount);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=16m") != 0) FAIL() << "needs root: run as root";
  mounted = true;
  open(mount + "/s");
  fill_and_recover();
}

// The descriptor by which LMDB writes its meta page.
int meta_descriptor() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::filesystem::path file = std::filesystem::read_symlink(entry.path(), error);
    const int fd = std::stoi(entry.path().filename());
    if (!error && file.filename() == "data.mdb" && (::fcntl(fd, F_GETFL) & O_DSYNC) != 0) return fd;
  }
  return -1;
}

// LMDB refuses whoever reads as well, then; the daemon lives on, and opens the store anew.
TEST_F(LmdbStoreTest, AMetaPageThatCannotBeWrittenEndsNeitherTheProcessNorWhatWasCommitted) {
  for (const char* other : {"/dev/zero", "/dev/full"}) {   // read-only; without room
    SCOPED_TRACE(other);
    store.reset();
    open(directory + other);
    ASSERT_TRUE(commit(put(1, 10)).is_ok());
    const int fd = meta_descriptor();
    ASSERT_GE(fd, 0);
    const int bad = ::open(other, std::string(other) == "/dev/full" ? O_WRONLY : O_RDONLY);
    ASSERT_GE(bad, 0);
    ASSERT_EQ(::dup2(bad, fd), fd);
    ::close(bad);
    EXPECT_FALSE(commit(put(2, 10)).is_ok());
    EXPECT_FALSE(store->try_snapshot().is_ok());
    EXPECT_FALSE(store->usage().is_ok());
    EXPECT_FALSE(commit(put(2, 10)).is_ok());
    store.reset();
    open(directory + other);
    EXPECT_TRUE(store->snapshot()->get(0, key_u64(1)).is_ok());
    ASSERT_TRUE(commit(put(2, 10)).is_ok());
    EXPECT_TRUE(store->snapshot()->get(0, key_u64(2)).is_ok());
  }
}

// Else a power cut could bring back the meta page that was taken back, with pages that have been written over.
TEST_F(LmdbStoreTest, AStoreThatIsOpenedAnewIsOnDiskAsItIsRead) {
  open(directory + "/s");
  ASSERT_TRUE(commit(put(1, 10)).is_ok());
  store.reset();
  const int before = syncs_of_data;
  open(directory + "/s");
  EXPECT_GT(syncs_of_data, before);
}

// LMDB writes its lock file through a map: without room for it the first write would be a SIGBUS.
TEST_F(LmdbStoreTest, OpeningOnAFullDiskIsOutOfSpace) {
  std::string mount = directory + "/small";
  std::filesystem::create_directory(mount);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=1m") != 0) FAIL() << "needs root: run as root";
  mounted = true;
  std::ofstream fill(mount + "/fill");
  while (fill << std::string(4096, 'x') << std::flush) {}
  fill.close();
  auto refused = open_lmdb_store(env, mount + "/s", {.tables = {"a"}});
  ASSERT_FALSE(refused.is_ok());
  EXPECT_EQ(refused.status().code(), Code::kOutOfSpace) << refused.status().to_string();
  std::filesystem::remove(mount + "/fill");
  auto opened = open_lmdb_store(env, mount + "/s", {.tables = {"a"}});
  EXPECT_TRUE(opened.is_ok()) << opened.status().to_string();
}

TEST_F(LmdbStoreTest, QueuedCommitsShareTransactions) {
  open(directory + "/s");
  constexpr int kCount = 5000;
  int done = 0;
  for (int i = 0; i < kCount; ++i) {
    store->commit(put(static_cast<uint64_t>(i), 100), [&](Status s) { EXPECT_TRUE(s.is_ok()); ++done; });
  }
  ASSERT_TRUE(env.run_until([&] { return done == kCount; }, kWait));
  auto usage = store->usage();
  ASSERT_TRUE(usage.is_ok());
  // A transaction of its own for each would leave its old pages behind on the free list; and
  // appended keys fill their pages: 5000 * 108 bytes and the nodes' headers.
  EXPECT_LT(usage->used_bytes, 900'000u);
}

TEST_F(LmdbStoreTest, AppendedAndInsertedKeysMix) {
  open(directory + "/s");
  WriteBatch batch;
  for (uint64_t k : {5, 6, 3, 7, 4, 7, 9, 8}) batch.put(0, key_u64(k), Bytes{static_cast<uint8_t>(k)});
  batch.erase(0, key_u64(9));
  batch.put(0, key_u64(8), Bytes{88});
  batch.put(0, key_u64(10), Bytes{10});
  batch.erase_range(0, key_u64(10), {});
  batch.put(0, key_u64(9), Bytes{99});
  ASSERT_TRUE(commit(std::move(batch)).is_ok());
  std::vector<int> values;
  auto snapshot = store->snapshot();
  auto cursor = snapshot->cursor(0);
  for (bool there = cursor->first(); there; there = cursor->next()) values.push_back(cursor->value()[0]);
  EXPECT_THAT(values, ::testing::ElementsAre(3, 4, 5, 6, 7, 88, 99));
}

TEST_F(LmdbStoreTest, ManySnapshotsAtOnceAndAfterwards) {
  open(directory + "/s");
  ASSERT_TRUE(commit(put(1, 10)).is_ok());
  for (int round = 0; round < 3; ++round) {
    std::vector<std::unique_ptr<Snapshot>> held;
    for (int i = 0; i < 200; ++i) held.push_back(store->snapshot());
    for (auto& snapshot : held) EXPECT_TRUE(snapshot->get(0, key_u64(1)).is_ok());
  }
}

TEST_F(LmdbStoreTest, CallbackMayDestroyTheStore) {
  open(directory + "/s");
  int called = 0;
  store->commit(put(1, 10), [&](Status) { ++called; store.reset(); });
  store->commit(put(2, 10), [&](Status) { ++called; });
  ASSERT_TRUE(env.run_until([&] { return called > 0; }, kWait));
  env.turn({});
  EXPECT_EQ(called, 1);
  EXPECT_EQ(store, nullptr);
}

// It reads the store that this process has open, as `tidemark journal inspect` does; begun before that is opened.
class ReadingProcess {
 public:
  explicit ReadingProcess(const std::string& path) {
    EXPECT_EQ(::pipe(go_), 0);
    EXPECT_EQ(::pipe(reads_), 0);
    child_ = ::fork();
    if (child_ != 0) return;
    ::close(go_[1]);   // its end is the parent's
    io::RealEnv own({.open_store = open_lmdb_store});
    char byte = 0;
    if (::read(go_[0], &byte, 1) != 1) ::_exit(1);
    auto opened = own.open_store(path, {.tables = {"t"}, .read_only = true});
    if (!opened) ::_exit(2);
    auto snapshot = (*opened)->snapshot();
    if (!snapshot->get(0, key_u64(1)) || ::write(reads_[1], &byte, 1) != 1) ::_exit(3);
    for (;;) ::pause();
  }
  ~ReadingProcess() {
    if (child_ > 0) kill();
    for (int fd : {go_[0], go_[1], reads_[0], reads_[1]}) ::close(fd);
  }
  // True once it has its snapshot.
  bool begin() {
    ::close(std::exchange(reads_[1], -1));   // its end tells of its own
    char byte = 0;
    return child_ > 0 && ::write(go_[1], &byte, 1) == 1 && ::read(reads_[0], &byte, 1) == 1;
  }
  void kill() {
    EXPECT_EQ(::kill(child_, SIGKILL), 0);
    int status = 0;
    EXPECT_EQ(::waitpid(child_, &status, 0), child_);
    EXPECT_TRUE(WIFSIGNALED(status));
    child_ = 0;
  }

 private:
  int go_[2], reads_[2];
  pid_t child_ = -1;
};

TEST_F(LmdbStoreTest, AProcessThatIsKilledAsItReadsKeepsNoPages) {
  ReadingProcess reader(directory + "/s");
  open(directory + "/s");
  ASSERT_TRUE(commit(put(1, 100'000)).is_ok());
  ASSERT_TRUE(reader.begin());
  reader.kill();
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(commit(put(1, 100'000)).is_ok()) << i;
  EXPECT_LT(store->usage()->file_bytes, 16u << 20);
}

// The pages that it kept serve though the map has no others left.
TEST_F(LmdbStoreTest, AMapThatAProcessFilledAsItReadIsFreeOnceThatIsKilled) {
  ReadingProcess reader(directory + "/s");
  open(directory + "/s", 8 << 20);
  ASSERT_TRUE(commit(put(1, 100'000)).is_ok());
  ASSERT_TRUE(reader.begin());
  Status status;
  for (int i = 0; (status = commit(put(1, 100'000))).is_ok(); ++i) ASSERT_LT(i, 300) << "it keeps nothing";
  EXPECT_EQ(status.code(), Code::kOutOfSpace) << status.to_string();
  reader.kill();
  status = commit(put(1, 100'000));   // it may be the one by which such a process is looked for
  EXPECT_TRUE(status.is_ok() || status.code() == Code::kOutOfSpace) << status.to_string();
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(commit(put(1, 100'000)).is_ok()) << i;
}

// What a process says on standard error that meets pages which are not there: as one does whose disk cannot read them.
std::string last_words(const std::string& path, bool writing) {
  int pipe[2];
  EXPECT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core{};
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::dup2(pipe[1], STDERR_FILENO);
    io::RealEnv own({.open_store = open_lmdb_store});
    auto opened = own.open_store(path, {.tables = {"t"}});
    WriteBatch one, another;
    one.put(0, key_u64(1), Bytes(10, 'v'));
    another.put(0, key_u64(2), Bytes(10, 'v'));
    if (!opened || !(*opened)->commit_and_wait(std::move(one))) ::_exit(1);
    if (::truncate((path + "/data.mdb").c_str(), 2 * 4096) != 0) ::_exit(2);   // the meta pages stay
    const bool good = writing ? (*opened)->commit_and_wait(std::move(another)).is_ok()
                              : (*opened)->snapshot()->get(0, key_u64(1)).is_ok();
    ::_exit(good ? 3 : 4);
  }
  ::close(pipe[1]);
  std::string said;
  char piece[512];
  for (ssize_t n; (n = ::read(pipe[0], piece, sizeof piece)) > 0;) said.append(piece, static_cast<size_t>(n));
  ::close(pipe[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status << ": " << said;
  return said;
}

TEST_F(LmdbStoreTest, APageThatCannotBeReadEndsTheProcessWithTheStoresName) {
  for (bool writing : {false, true}) {   // on the caller's thread; on the store's own
    const std::string path = directory + (writing ? "/w" : "/r");
    const std::string said = last_words(path, writing);
    EXPECT_THAT(said, ::testing::HasSubstr("store page_unreadable file=" + path + "/data.mdb "));
    EXPECT_THAT(said, ::testing::ContainsRegex("page=[0-9]+\n"));
  }
}

TEST_F(LmdbStoreTest, AcknowledgedCommitSurvivesAKill) {
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    io::RealEnv own({.open_store = open_lmdb_store});
    auto opened = own.open_store(directory + "/s", {.tables = {"t"}});
    if (!opened) ::_exit(1);
    uint64_t acknowledged = 0;
    for (uint64_t i = 1;; ++i) {
      (*opened)->commit(put(i, 500), [&, i](Status s) {
        if (!s) ::_exit(2);
        acknowledged = i;
        if (::write(pipe[1], &acknowledged, sizeof acknowledged) != sizeof acknowledged) ::_exit(3);
      });
      own.turn({});
    }
  }
  ::close(pipe[1]);
  uint64_t acknowledged = 0;
  while (acknowledged < 100)
    ASSERT_EQ(::read(pipe[0], &acknowledged, sizeof acknowledged), ssize_t{sizeof acknowledged});
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  while (::read(pipe[0], &acknowledged, sizeof acknowledged) == sizeof acknowledged) {}
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  ::close(pipe[0]);
  open(directory + "/s", 64ull << 30);
  auto snapshot = store->snapshot();
  for (uint64_t i = 1; i <= acknowledged; ++i) ASSERT_TRUE(snapshot->get(0, key_u64(i)).is_ok()) << i;
}

}  // namespace
}  // namespace tidemark::kv
