#include "fs/name_cache.h"

#include <gtest/gtest.h>

#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"

#include <filesystem>

namespace tidemark::fs {
namespace {

class NameCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tidemark-names-XXXXXX";
    directory_ = mkdtemp(name);
    reopen();
  }
  void TearDown() override {
    cache_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  void reopen() {
    cache_.reset();
    store_.reset();
    kv::StoreOptions options;
    options.tables = {"attr", "entry"};
    auto store = env_.open_store(directory_ + "/kv", options);
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    store_ = std::move(*store);
    cache_ = std::make_unique<NameCache>(*store_, NameCache::Tables{0, 1});
    ASSERT_TRUE(cache_->load().is_ok());
  }
  static wire::Attr node(uint64_t inode, uint64_t parent, wire::NodeKind kind) {
    wire::Attr a;
    a.inode = InodeNumber(inode);
    a.parent = InodeNumber(parent);
    a.kind = kind;
    if (kind == wire::NodeKind::kImage) a.image.bytes[0] = static_cast<uint8_t>(inode);
    return a;
  }

  std::string directory_;
  io::RealEnv env_{io::RealEnvOptions{.open_store = kv::open_lmdb_store}};
  std::unique_ptr<kv::Store> store_;
  std::unique_ptr<NameCache> cache_;
};

TEST_F(NameCacheTest, WhatIsNoImageAndLostItsNameIsForgottenAtTheNextStart) {
  const InodeNumber root(1), fifo(4), image(5), directory(6);
  cache_->put(node(1, 1, wire::NodeKind::kDirectory));
  cache_->put_entry(root, "fifo", node(4, 1, wire::NodeKind::kFifo));
  cache_->put_entry(root, "vm", node(5, 1, wire::NodeKind::kImage));
  cache_->put_entry(root, "d", node(6, 1, wire::NodeKind::kDirectory));
  cache_->erase_entry(root, "fifo");
  cache_->erase_entry(root, "vm");
  EXPECT_TRUE(cache_->get(fifo)) << "who has it open may ask";
  ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
  for (int starts = 0; starts < 2; ++starts) {
    reopen();
    EXPECT_FALSE(cache_->get(fifo));
    for (InodeNumber kept : {root, image, directory}) EXPECT_TRUE(cache_->get(kept)) << kept.value;
    ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
  }
}

TEST_F(NameCacheTest, OfWhatIsNoImageAndLostItsNameTheLastAreKept) {
  constexpr uint64_t kCount = 5000, kFirst = 100;
  const InodeNumber root(1), moved(2), image(3), over(4), last(kFirst + kCount - 1);
  auto directory = [](uint64_t inode) { return node(inode, 1, wire::NodeKind::kDirectory); };
  cache_->put(directory(1));
  cache_->put_entry(root, "before", directory(2));
  cache_->erase_entry(root, "before");
  cache_->put_entry(root, "after", directory(2));
  cache_->put_entry(root, "vm", node(3, 1, wire::NodeKind::kImage));
  cache_->erase_entry(root, "vm");
  cache_->put_entry(root, "link", directory(4));
  cache_->put_entry(root, "link", directory(5));   // as a rename over it
  for (uint64_t i = 0; i < kCount; ++i) {
    cache_->put_entry(root, "lock", directory(kFirst + i));
    cache_->erase_entry(root, "lock");
    ASSERT_TRUE(cache_->get(InodeNumber(kFirst + i))) << "who has it open may ask";
  }
  EXPECT_TRUE(cache_->get(last));
  EXPECT_FALSE(cache_->get(InodeNumber(kFirst)));
  EXPECT_FALSE(cache_->get(over));
  for (InodeNumber kept : {root, moved, image, InodeNumber(5)}) EXPECT_TRUE(cache_->get(kept)) << kept.value;
  EXPECT_TRUE(cache_->lookup(root, "after"));
}

TEST_F(NameCacheTest, KeepsADevicesNumber) {
  wire::Attr device = node(4, 1, wire::NodeKind::kCharDevice);
  device.target = "1:3";
  cache_->put_entry(InodeNumber(1), "null", device);
  ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
  reopen();
  auto known = cache_->lookup(InodeNumber(1), "null");
  ASSERT_TRUE(known);
  EXPECT_EQ(known->kind, wire::NodeKind::kCharDevice);
  EXPECT_EQ(known->target, "1:3");
  EXPECT_TRUE(cache_->images().empty());
}

TEST_F(NameCacheTest, KnowsPathsAndImagesAgainAfterARestart) {
  cache_->put_entry(InodeNumber(1), "vms", node(2, 1, wire::NodeKind::kDirectory));
  cache_->put_entry(InodeNumber(2), "a.img", node(3, 2, wire::NodeKind::kImage));
  // What was asked for is committed in order: once this is durable, so is what came before.
  ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
  reopen();
  EXPECT_EQ(cache_->path_of(InodeNumber(3)), "vms/a.img");
  ASSERT_TRUE(cache_->resolve("vms/a.img"));
  EXPECT_EQ(cache_->resolve("/vms/a.img")->inode, InodeNumber(3));
  EXPECT_EQ(cache_->resolve(node(3, 2, wire::NodeKind::kImage).image.to_string())->inode, InodeNumber(3));
  EXPECT_FALSE(cache_->resolve("vms/b.img"));
}

TEST_F(NameCacheTest, ListsOneDirectoryInNameOrderAndPages) {
  for (uint64_t i = 0; i < 5; ++i)
    cache_->put_entry(InodeNumber(1), std::string(1, static_cast<char>('e' - i)),
                      node(10 + i, 1, wire::NodeKind::kImage));
  cache_->put_entry(InodeNumber(2), "aa", node(20, 2, wire::NodeKind::kImage));
  wire::DirEntries first = cache_->list(InodeNumber(1), "", 3);
  ASSERT_EQ(first.entries.size(), 3u);
  EXPECT_EQ(first.end, 0);
  EXPECT_EQ(first.entries[0].name, "a");
  wire::DirEntries rest = cache_->list(InodeNumber(1), "c", 3);
  ASSERT_EQ(rest.entries.size(), 2u);
  EXPECT_EQ(rest.end, 1);
}

TEST_F(NameCacheTest, ARenamedEntryLeavesNothingBehind) {
  wire::Attr a = node(3, 1, wire::NodeKind::kImage);
  cache_->put_entry(InodeNumber(1), "old", a);
  cache_->erase_entry(InodeNumber(1), "old");
  cache_->put_entry(InodeNumber(1), "new", a);
  EXPECT_FALSE(cache_->lookup(InodeNumber(1), "old"));
  EXPECT_EQ(cache_->path_of(InodeNumber(3)), "new");
}

// As when the answer of a rename is lost, or another host renames: nobody has erased the former entry.
TEST_F(NameCacheTest, ANodeThatIsFoundElsewhereHasThatNameAlone) {
  const InodeNumber root(1), image(3), replaced(4);
  cache_->put_entry(root, "new", node(3, 1, wire::NodeKind::kImage));
  cache_->put_entry(root, "name", node(4, 1, wire::NodeKind::kImage));
  cache_->put_entry(root, "name", node(3, 1, wire::NodeKind::kImage));
  for (int starts = 0; starts < 2; ++starts) {
    EXPECT_EQ(cache_->path_of(image), "name");
    EXPECT_FALSE(cache_->lookup(root, "new"));
    EXPECT_EQ(cache_->path_of(replaced), "") << "another has its name";
    EXPECT_EQ(cache_->images().size(), 1u);
    ASSERT_EQ(cache_->entries().size(), 1u);
    EXPECT_EQ(cache_->entries()[0].name, "name");
    ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
    reopen();
  }
}

// As a version before left it: which of the two is the true one only the shared node can say.
TEST_F(NameCacheTest, OfTwoNamesOfOneNodeBothAreKnownUntilOneIsFoundTrue) {
  const InodeNumber root(1), image(3), other(4);
  auto row = [](const char* name) { return kv::KeyBuilder().u64(1).text(name).bytes(); };
  for (const char* found : {"former", "newer"}) {
    SCOPED_TRACE(found);
    cache_->put(node(3, 1, wire::NodeKind::kImage));
    kv::WriteBatch both;
    for (const char* name : {"former", "newer"}) both.put(1, row(name), kv::key_u64(3));
    ASSERT_TRUE(store_->commit_and_wait(std::move(both)).is_ok());
    for (int starts = 0; starts < 2; ++starts) {
      reopen();
      for (const char* name : {"former", "newer"}) EXPECT_TRUE(cache_->lookup(root, name)) << name;
      EXPECT_EQ(cache_->entries().size(), 1u);
      ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
    }
    const std::string_view untrue = found == std::string_view("former") ? "newer" : "former";
    cache_->put_entry(root, found, node(3, 1, wire::NodeKind::kImage));
    EXPECT_FALSE(cache_->lookup(root, std::string(untrue)));
    cache_->put_entry(root, std::string(untrue), node(4, 1, wire::NodeKind::kImage));
    for (int starts = 0; starts < 2; ++starts) {
      EXPECT_EQ(cache_->path_of(image), found);
      EXPECT_EQ(cache_->path_of(other), untrue);
      EXPECT_EQ(cache_->lookup(root, std::string(untrue))->inode, other);
      ASSERT_TRUE(store_->commit_and_wait({}).is_ok());
      reopen();
    }
    cache_->erase_entry(root, std::string(untrue));
    cache_->erase(other);
  }
}

// As of a catalogue that was made anew.
TEST_F(NameCacheTest, AnImageIsKnownByTheNumberThatItHasNow) {
  wire::Attr a = node(7, 1, wire::NodeKind::kImage), b = node(8, 1, wire::NodeKind::kImage);
  cache_->put_entry(InodeNumber(1), "a", a);
  cache_->put_entry(InodeNumber(1), "b", b);
  const ImageId first = a.image, second = b.image;
  a.image = second;                      // 7 is b's, and a has another one
  cache_->put_entry(InodeNumber(1), "b", a);
  EXPECT_FALSE(cache_->by_image(first)) << "b would be taken for it";
  for (int run = 0; run < 2; ++run) {
    ASSERT_TRUE(cache_->by_image(second));
    EXPECT_EQ(cache_->by_image(second)->inode, InodeNumber(7));
    EXPECT_FALSE(cache_->get(InodeNumber(8)));
    ASSERT_TRUE(cache_->lookup(InodeNumber(1), "b"));
    EXPECT_EQ(cache_->lookup(InodeNumber(1), "b")->image, second);
    reopen();
  }
  wire::Attr moved = node(9, 1, wire::NodeKind::kImage);
  moved.image = first;
  cache_->put(moved);
  EXPECT_EQ(cache_->by_image(first)->inode, InodeNumber(9));
  cache_->erase(InodeNumber(7));
  EXPECT_TRUE(cache_->by_image(first));
}

}  // namespace
}  // namespace tidemark::fs
