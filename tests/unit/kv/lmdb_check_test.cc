// Damage to a store's file: every flipped byte that matters is found before LMDB maps it; what is sound can be read.
#include "shared/kv/lmdb_check.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"
#include "tests/repeat.h"

namespace tidemark::kv {
namespace {

class LmdbCheckTest : public ::testing::Test {
 protected:
  LmdbCheckTest() : env({.open_store = open_lmdb_store}) {
    std::string pattern = "/var/tmp/tidemark_kvc_XXXXXX";
    directory = ::mkdtemp(pattern.data());
    path = directory + "/store";
    file = path + "/data.mdb";
  }
  ~LmdbCheckTest() override { std::filesystem::remove_all(directory); }

  Result<std::unique_ptr<Store>> open(bool read_only = false) {
    return env.open_store(path, {.tables = {"small", "large"}, .map_bytes_max = 1 << 30, .read_only = read_only});
  }
  // Two tables, deep enough for branch pages, with long values, and with pages freed again.
  void fill() {
    auto store = open();
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    for (uint64_t round = 0; round < 20; ++round) {
      WriteBatch batch;
      for (uint64_t i = 0; i < 100; ++i) batch.put(0, key_u64(round * 100 + i), Bytes(40, static_cast<uint8_t>(i)));
      batch.put(1, key_u64(round), Bytes(9000, static_cast<uint8_t>(round)));
      if (round > 10) batch.erase_range(0, key_u64((round - 10) * 100), key_u64((round - 10) * 100 + 50));
      ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)).is_ok());
    }
  }
  Bytes contents() {
    std::ifstream in(file, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(in), {});
  }
  static Bytes read(Snapshot& snapshot, Table table, uint64_t key) {
    auto value = snapshot.get(table, key_u64(key));
    EXPECT_TRUE(value.is_ok()) << value.status().to_string();
    return value.is_ok() ? *value : Bytes();
  }
  uint64_t last_page() {                 // as the newer meta page has it
    const Bytes all = contents();
    auto at = [&](uint64_t offset) { return load_le<uint64_t>(all.data() + offset); };
    const uint64_t newer = at(16 + 128) > at(4096 + 16 + 128) ? 0 : 4096;
    return at(newer + 16 + 120);
  }
  void put(uint64_t at, uint8_t byte) {
    int fd = ::open(file.c_str(), O_WRONLY);
    ASSERT_EQ(::pwrite(fd, &byte, 1, static_cast<off_t>(at)), 1);
    ::close(fd);
  }

  io::RealEnv env;
  std::string directory, path, file;
};

TEST_F(LmdbCheckTest, ASoundStoreHasNoProblemAndAllItsEntries) {
  fill();
  uint64_t small = 0, large = 0;
  auto check = check_store(path, [&](const std::string& table, ByteSpan, ByteSpan value) {
    small += table == "small" && value.size() == 40;
    large += table == "large" && value.size() == 9000;
  });
  ASSERT_TRUE(check.is_ok()) << check.status().to_string();
  EXPECT_TRUE(check->problems.empty()) << check->problems.front();
  EXPECT_TRUE(check->sealed);
  EXPECT_EQ(check->tables, (std::set<std::string>{"large", "small"}));
  EXPECT_EQ(small, 2000u - 9 * 50);
  EXPECT_EQ(large, 20u);
}

// In the pages that a tree uses, no byte of a value, a pointer or a header can change unseen.
TEST_F(LmdbCheckTest, EveryFlippedByteIsFoundOrHarmless) {
  fill();
  std::map<std::pair<std::string, Bytes>, Bytes> sound;
  auto collect = [](auto& into) {
    return [&into](const std::string& table, ByteSpan key, ByteSpan value) {
      into[{table, Bytes(key.begin(), key.end())}] = Bytes(value.begin(), value.end());
    };
  };
  ASSERT_TRUE(check_store(path, collect(sound)).is_ok());
  const Bytes original = contents();
  size_t found = 0, harmless = 0;
  const uint64_t step = repeat(331, 4093);
  for (uint64_t at = 0; at < original.size(); at += step) {
    put(at, original[at] ^ 0x5a);
    std::map<std::pair<std::string, Bytes>, Bytes> left;
    auto check = check_store(path, collect(left));
    ASSERT_TRUE(check.is_ok()) << "byte " << at << ": " << check.status().to_string();
    if (check->problems.empty()) {
      ++harmless;
      // The older meta page may be taken after damage to the newer one's number: an older state, whole.
      if (at >= 8192) {
        ASSERT_TRUE(left == sound) << "byte " << at << " (page " << at / 4096 << ", " << at % 4096
                                   << ") changed an entry unseen: " << left.size() << " entries of " << sound.size();
      }
    } else {
      ++found;
      for (const auto& [key, value] : left) {
        auto was = sound.find(key);
        if (at < 8192 || check->catalogue_damaged) continue;
        ASSERT_TRUE(was != sound.end() && was->second == value) << "byte " << at << ": a wrong entry counts as sound";
      }
      EXPECT_EQ(open().status().code(), Code::kCorruption) << "byte " << at;
    }
    put(at, original[at]);
  }
  EXPECT_GT(found, original.size() / step / 3);
  EXPECT_GT(harmless, 0u);               // freed pages, and what is unused within pages
  EXPECT_TRUE(open().is_ok());
}

TEST_F(LmdbCheckTest, ATruncatedFileIsRefusedAndNotMapped) {
  fill();
  const uint64_t size = std::filesystem::file_size(file);
  for (uint64_t left : {size - 4096, size / 2, uint64_t{8192}, uint64_t{4096}, uint64_t{100}}) {
    std::filesystem::resize_file(file, left);
    auto opened = open();
    ASSERT_FALSE(opened.is_ok()) << left;
    EXPECT_EQ(opened.status().code(), Code::kCorruption) << opened.status().to_string();
    EXPECT_NE(opened.status().message().find("tidemark fsck"), std::string::npos) << opened.status().to_string();
    EXPECT_FALSE(open(true).is_ok());
  }
}

// Taken at the end of the file and given back in one transaction a page is never written; the meta page counts it.
TEST_F(LmdbCheckTest, AFileThatLacksOnlyPagesThatWereNeverWrittenIsOpened) {
  fill();
  {
    auto store = open();
    ASSERT_TRUE(store.is_ok());
    WriteBatch batch;
    batch.put(0, key_u64(2000), Bytes(40, 1));
    batch.put(1, key_u64(100), Bytes(200'000, 1));
    batch.erase(1, key_u64(100));
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)).is_ok());
  }
  const uint64_t size = std::filesystem::file_size(file);
  ASSERT_LT(size / 4096, last_page() + 1);   // as LMDB left it: else this tests nothing
  for (bool read_only : {true, false, true}) {
    auto store = open(read_only);
    ASSERT_TRUE(store.is_ok()) << (read_only ? "read only: " : "") << store.status().to_string();
    EXPECT_EQ(read(*(*store)->snapshot(), 1, 19), Bytes(9000, 19));
  }
  std::filesystem::resize_file(file, size / 2);   // and now also some that are referred to
  for (bool read_only : {true, false}) {
    auto store = open(read_only);
    ASSERT_FALSE(store.is_ok()) << read_only;
    EXPECT_EQ(store.status().code(), Code::kCorruption) << store.status().to_string();
  }
}

// What another process writes meanwhile looks damaged: of a store that is open there only its meta pages are looked at.
TEST_F(LmdbCheckTest, AStoreThatIsOpenElsewhereIsNotLookedAtWhole) {
  fill();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  EXPECT_EQ(check_before_open(path, true).code(), Code::kCorruption);
  int told[2], end[2];
  ASSERT_EQ(::pipe(told), 0);
  ASSERT_EQ(::pipe(end), 0);
  const pid_t child = ::fork();
  if (child == 0) {   // as LMDB holds it
    struct flock lock {};
    lock.l_type = F_RDLCK;
    lock.l_len = 1;
    char byte = ::fcntl(::open((path + "/lock.mdb").c_str(), O_RDWR), F_SETLK, &lock) == 0;
    ::close(end[1]);
    if (::write(told[1], &byte, 1) == 1) byte = static_cast<char>(::read(end[0], &byte, 1));
    ::_exit(0);
  }
  ::close(end[0]);
  char locked = 0;
  EXPECT_EQ(::read(told[0], &locked, 1), 1);
  EXPECT_EQ(locked, 1);
  EXPECT_TRUE(is_open_elsewhere(path));
  EXPECT_TRUE(check_before_open(path, true).is_ok());
  EXPECT_EQ(check_before_open(path, false).code(), Code::kCorruption);
  ::close(end[1]);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_FALSE(is_open_elsewhere(path));
  EXPECT_EQ(check_before_open(path, true).code(), Code::kCorruption);
  for (int fd : {told[0], told[1]}) ::close(fd);
}

TEST_F(LmdbCheckTest, AFlippedValueIsNeverAnswered) {
  fill();
  auto store = open();
  ASSERT_TRUE(store.is_ok());
  const Bytes original = contents();
  const Bytes wanted(9000, 7);
  auto at = std::search(original.begin(), original.end(), wanted.begin(), wanted.end());
  ASSERT_NE(at, original.end());
  put(static_cast<uint64_t>(at - original.begin()) + 5000, 8);   // behind the open store's back
  auto snapshot = (*store)->snapshot();
  EXPECT_EQ(snapshot->get(1, key_u64(7)).status().code(), Code::kCorruption);
  EXPECT_TRUE(snapshot->get(1, key_u64(6)).is_ok());
  auto cursor = snapshot->cursor(1);
  ASSERT_TRUE(cursor->seek(key_u64(7)));
  EXPECT_TRUE(cursor->value().empty());
}

// unsealed.mdb was made as versions before the seal made stores, and is never edited: after an upgrade it is read and
// written as it is, tables that came since included, and an older version could still open it.
TEST_F(LmdbCheckTest, AStoreOfAnOlderVersionIsOpenedAndStaysAsItIs) {
  std::filesystem::create_directories(path);
  std::filesystem::copy_file(UNSEALED_STORE, file);
  auto values = [&](Store& store) {
    auto snapshot = store.snapshot();
    for (uint64_t i = 0; i < 10; ++i) {
      EXPECT_EQ(read(*snapshot, 0, i), Bytes(40, static_cast<uint8_t>(i)));
    }
    EXPECT_EQ(read(*snapshot, 1, 7), Bytes(5000, 7));
  };
  {
    auto inspected = open(true);
    ASSERT_TRUE(inspected.is_ok()) << inspected.status().to_string();
    values(**inspected);
  }
  for (int run = 0; run < 2; ++run) {
    SCOPED_TRACE(run);
    auto store = env.open_store(path, {.tables = {"small", "large", "added"}, .map_bytes_max = 1 << 30});
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    values(**store);
    if (run == 1) {
      EXPECT_EQ(read(*(*store)->snapshot(), 2, 1), Bytes(3000, 1));
    }
    WriteBatch batch;
    batch.put(2, key_u64(1), Bytes(3000, 1));
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)).is_ok());
  }
  auto check = check_store(path);
  ASSERT_TRUE(check.is_ok()) << check.status().to_string();
  EXPECT_TRUE(check->problems.empty()) << check->problems.front();
  EXPECT_FALSE(check->sealed);
  EXPECT_EQ(check->values, 12u);
}

}  // namespace
}  // namespace tidemark::kv
