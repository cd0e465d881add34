// A missing, empty or foreign store is never taken for a new one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "shared/image/side_file.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"
#include "shared/state/identity.h"

namespace tidemark::state {
namespace {

namespace stdfs = std::filesystem;
using ::testing::HasSubstr;

class StateTest : public ::testing::Test {
 protected:
  StateTest() : env_({.open_store = kv::open_lmdb_store}) {
    std::string pattern = "/var/tmp/tidemark_state_XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    stdfs::create_directories(root_ + "/brick");
    spec_ = {root_ + "/state", env_.random_uuid(), "host", "host1", parts_of_host(), {root_ + "/brick"}, "/c.toml"};
  }
  ~StateTest() override { stdfs::remove_all(root_); }

  std::string path(const std::string& name) { return root_ + "/state/" + name; }
  void write(const std::string& store, const std::string& text) {
    kv::StoreOptions options;
    options.tables = {"t"};
    auto opened = env_.open_store(path(store), options);
    ASSERT_TRUE(opened) << opened.status().to_string();
    kv::WriteBatch batch;
    batch.put(0, as_bytes("k"), as_bytes(text));
    ASSERT_TRUE((*opened)->commit_and_wait(std::move(batch)));
  }
  std::string read(const std::string& store) {
    kv::StoreOptions options;
    options.tables = {"t"};
    auto opened = env_.open_store(path(store), options);
    if (!opened) return opened.status().to_string();
    auto value = (*opened)->snapshot()->get(0, as_bytes("k"));
    return value ? std::string(as_text(*value)) : value.status().to_string();
  }
  void mark_brick() {
    image::BrickMarker marker;
    marker.state = image::BrickMarker::State::kReady;
    marker.brick = env_.random_uuid();
    marker.group = env_.random_uuid();
    marker.count = 1;
    marker.name = "g";
    ASSERT_TRUE(env_.files().write_file_atomically(root_ + "/brick/tidemark.brick", image::encode_marker(marker)));
  }
  void started() {   // a daemon has run here
    auto identity = check_in(env_, spec_);
    ASSERT_TRUE(identity) << identity.status().to_string();
    for (const char* store : {"names", "journal", "drl"}) write(store, std::string("of ") + store);
    mark_brick();
  }
  void expect_refused(const std::string& why) {
    auto identity = check_in(env_, spec_);
    ASSERT_FALSE(identity);
    EXPECT_EQ(identity.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(identity.status().message(), HasSubstr(why));
    EXPECT_THAT(identity.status().message(), HasSubstr("tidemark --config /c.toml state reset"));
  }

  io::RealEnv env_;
  std::string root_;
  Spec spec_;
};

TEST_F(StateTest, AFirstStartMakesAllAndTheNextOneFindsThem) {
  auto first = check_in(env_, spec_);
  ASSERT_TRUE(first) << first.status().to_string();
  EXPECT_EQ(first->stage, Identity::Stage::kReady);
  EXPECT_EQ(first->parts.size(), 3u);
  write("names", "kept");
  auto second = check_in(env_, spec_);
  ASSERT_TRUE(second) << second.status().to_string();
  EXPECT_EQ(second->state, first->state);
  EXPECT_EQ(second->parts, first->parts);
  EXPECT_EQ(read("names"), "kept");
}

TEST_F(StateTest, WhereARunBeforeHadAStateNoneIsALostOne) {
  spec_.had_before = true;
  expect_refused("holds no state, while the run before");
  EXPECT_FALSE(stdfs::exists(path("identity")));
  spec_.had_before = false;
  started();
  spec_.had_before = true;
  EXPECT_TRUE(check_in(env_, spec_));
}

TEST_F(StateTest, AMissingStoreIsRefusedByItsNameAndNothingIsMade) {
  for (const char* store : {"names", "journal", "drl"}) {
    started();
    stdfs::rename(path(store), root_ + "/aside");
    expect_refused(path(store) + " is missing");
    EXPECT_FALSE(stdfs::exists(path(store)));
    stdfs::rename(root_ + "/aside", path(store));
    EXPECT_TRUE(check_in(env_, spec_)) << store;
    stdfs::remove_all(root_ + "/state");
    stdfs::remove(root_ + "/brick/tidemark.brick");
  }
}

TEST_F(StateTest, AnEmptiedStoreIsRefused) {
  for (const char* store : {"names", "journal", "drl"}) {
    started();
    stdfs::copy_file(path(store) + "/data.mdb", root_ + "/aside");
    stdfs::resize_file(path(store) + "/data.mdb", 0);
    expect_refused("emptied or replaced");
    stdfs::remove_all(path(store));
    write(store, "another");   // made by a program that knows no tags
    expect_refused("emptied or replaced");
    stdfs::remove_all(path(store));
    expect_refused("is missing");
    stdfs::remove_all(root_ + "/state");
    stdfs::remove(root_ + "/aside");
    stdfs::remove(root_ + "/brick/tidemark.brick");
  }
}

TEST_F(StateTest, AnotherNodesStoreIsRefused) {
  started();
  Spec other = spec_;
  other.directory = root_ + "/other";
  other.node = "host2";
  other.bricks.clear();
  ASSERT_TRUE(check_in(env_, other));
  stdfs::remove_all(path("names"));
  stdfs::copy(root_ + "/other/names", path("names"));
  expect_refused("of host2");
  other.directory = spec_.directory;
  auto whole = check_in(env_, other);
  ASSERT_FALSE(whole);
  EXPECT_THAT(whole.status().message(), HasSubstr("is of host host1"));
  Spec foreign = spec_;
  foreign.cluster = env_.random_uuid();
  EXPECT_THAT(check_in(env_, foreign).status().message(), HasSubstr("/c.toml: [tls] certificate must be one of"));
}

TEST_F(StateTest, AnEmptyStateBesideABrickInUseIsRefused) {
  started();
  stdfs::remove_all(root_ + "/state");
  expect_refused("holds no state that knows it");
  EXPECT_FALSE(stdfs::exists(path("identity")));
  stdfs::remove(root_ + "/brick/tidemark.brick");
  EXPECT_TRUE(check_in(env_, spec_));   // neither: a first start
}

TEST_F(StateTest, AnOlderLayoutIsAdoptedOnceAndOnlyIfWhole) {
  for (const char* store : {"names", "journal", "drl"}) write(store, "old");
  mark_brick();
  stdfs::rename(path("drl"), root_ + "/aside");
  expect_refused(path("drl") + " is missing");
  stdfs::rename(root_ + "/aside", path("drl"));
  auto adopted = check_in(env_, spec_);
  ASSERT_TRUE(adopted) << adopted.status().to_string();
  EXPECT_EQ(read("journal"), "old");
  stdfs::remove_all(path("drl"));
  write("drl", "old");
  expect_refused("emptied or replaced");
}

TEST_F(StateTest, ALostIdentityFileIsWrittenAnewFromTheStores) {
  started();
  auto before = look(env_, spec_);
  ASSERT_TRUE(before);
  stdfs::remove(path("identity"));
  auto after = check_in(env_, spec_);
  ASSERT_TRUE(after) << after.status().to_string();
  EXPECT_EQ(after->state, before->identity->state);
  EXPECT_EQ(after->parts, before->identity->parts);
  // But not from stores of several states.
  stdfs::remove(path("identity"));
  stdfs::remove_all(path("drl"));
  write("drl", "another");
  expect_refused("not of one node's state");
}

TEST_F(StateTest, AnInterruptedFirstStartIsFinished) {
  for (size_t left = 0; left < 3; ++left) {
    auto first = check_in(env_, spec_);
    ASSERT_TRUE(first);
    first->stage = Identity::Stage::kInitializing;
    ASSERT_TRUE(env_.files().write_file_atomically(path("identity"), encode_identity(*first)));
    for (size_t i = left; i < 3; ++i) stdfs::remove_all(path(first->parts[i].name));
    auto again = check_in(env_, spec_);
    ASSERT_TRUE(again) << again.status().to_string();
    EXPECT_EQ(again->state, first->state);
    EXPECT_EQ(again->stage, Identity::Stage::kReady);
    auto found = look(env_, spec_);
    ASSERT_TRUE(found);
    for (const auto& part : found->parts) EXPECT_TRUE(part.tag && part.tag->part == first->find(part.spec.name)->id);
  }
}

TEST_F(StateTest, AWitnessThatLostItsStoreBeginsAnewAndAReplicaWithoutSegmentsDoesNot) {
  spec_.role = "replica";
  spec_.bricks.clear();
  spec_.parts = parts_of_replica(false);
  ASSERT_TRUE(check_in(env_, spec_));
  spec_.parts = parts_of_replica(true);   // the witness is turned on later
  ASSERT_TRUE(check_in(env_, spec_));
  stdfs::remove_all(path("witness"));
  ASSERT_TRUE(check_in(env_, spec_));
  stdfs::remove_all(path("witness"));
  write("witness", "another's");   // the history beside it is not to be set aside for that
  const auto refused = check_in(env_, spec_);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.status().message(), HasSubstr("move " + path("witness") + " away"));
  EXPECT_THAT(refused.status().message(), ::testing::Not(HasSubstr("state reset")));
  stdfs::remove_all(path("witness"));
  ASSERT_TRUE(check_in(env_, spec_));
  stdfs::remove_all(path("replica/segments"));
  expect_refused("replica/segments is missing");
  stdfs::create_directories(path("replica/segments"));
  expect_refused("emptied or replaced");
}

TEST_F(StateTest, AnyFlippedByteOfTheFileOrATagIsNoticed) {
  ASSERT_TRUE(check_in(env_, spec_));
  auto bytes = env_.files().read_file(path("identity"));
  ASSERT_TRUE(bytes);
  for (size_t i = 0; i < bytes->size(); ++i) {
    Bytes flipped = *bytes;
    flipped[i] ^= 0x10;
    EXPECT_FALSE(decode_identity(flipped)) << i;
    EXPECT_FALSE(decode_identity(ByteSpan(*bytes).first(i))) << i;
  }
  Bytes tag = encode_tag({env_.random_uuid(), env_.random_uuid(), spec_.cluster, "host1", "names"});
  for (size_t i = 0; i < tag.size(); ++i) {
    Bytes flipped = tag;
    flipped[i] ^= 0x10;
    EXPECT_FALSE(decode_tag(flipped)) << i;
  }
}

TEST_F(StateTest, WhatIsLeftIsSetAsideNotDeleted) {
  started();
  stdfs::create_directories(root_ + "/brick/objects/ab");
  std::ofstream(root_ + "/brick/objects/ab/x.data") << "blocks";
  stdfs::remove_all(path("drl"));
  auto dry = set_aside(env_, spec_, true, true);
  ASSERT_TRUE(dry);
  EXPECT_TRUE(stdfs::exists(path("names/data.mdb")));
  auto done = set_aside(env_, spec_, true, false);
  ASSERT_TRUE(done) << done.status().to_string();
  EXPECT_EQ(done->to, dry->to);
  EXPECT_TRUE(stdfs::exists(path("lost-1/names/data.mdb")));
  EXPECT_TRUE(stdfs::exists(root_ + "/brick/tidemark.brick-lost-1/objects/ab/x.data"));
  EXPECT_FALSE(stdfs::exists(root_ + "/brick/objects"));
  auto identity = check_in(env_, spec_);
  ASSERT_TRUE(identity) << identity.status().to_string();
  EXPECT_TRUE(identity->after_reset);
  EXPECT_THAT(read("names"), HasSubstr("not"));
}

}  // namespace
}  // namespace tidemark::state
