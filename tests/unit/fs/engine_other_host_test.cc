// What a host that does not hold an image is told of it: never less than what its holder was answered.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {

TEST_F(EngineTest, AnotherHostReadsToTheEndOfAnImageThatHasJustGrown) {
  File a = start_written();
  File b = open(2, "a.img");
  for (uint64_t round = 1; round <= 30; ++round) {
    const uint64_t end = 8 * kMiB + round * 4096;
    ASSERT_TRUE(round % 2 != 0 ? wait(resize(a, end)) : write_now(a, end - 4096, 0x22, 4096));
    Pending r = read(b, end - 4096, 8192);
    ASSERT_TRUE(wait(r));
    EXPECT_EQ(r->bytes.size(), 4096u) << "in round " << round;
    EXPECT_EQ(r->bytes[0], round % 2 == 0 ? 0x22 : 0);
  }
}

TEST_F(EngineTest, AnotherHostReadsNothingBeyondTheEndOfAnImageThatHasJustShrunk) {
  File a = start_written();
  File b = open(2, "a.img");
  for (int round = 0; round < 60; ++round) {
    ASSERT_TRUE(write_now(a, kMiB, 0x22, 8192));
    ASSERT_EQ(byte_at(b, kMiB, 8192), 0x22);
    Pending shrink = resize(a, kMiB);
    world_->run_for(std::chrono::microseconds(25 * round));
    Pending r = read(b, kMiB - 4096, 8192);
    ASSERT_TRUE(wait(r));
    if (r->bytes.size() != 4096u) { EXPECT_EQ(r->bytes[4096], 0x22) << "in round " << round; }
    ASSERT_TRUE(wait(shrink));
  }
}

TEST_F(EngineTest, AnotherHostSeesTheDataBehindTheOldEnd) {
  File a = start_written();
  File b = open(2, "a.img");
  uint64_t end = 8 * kMiB;
  for (int round = 0; round < 10; ++round) {
    ASSERT_TRUE(write_now(a, end + kMiB, 0x33, 4096));
    Pending data = seek(b, end, true);
    ASSERT_TRUE(wait(data)) << "in round " << round;
    EXPECT_EQ(data->number, end + kMiB);
    end += kMiB + 4096;
    ASSERT_TRUE(write_now(a, end, 0x33, kMiB));
    Pending hole = seek(b, end - 4096, false);
    ASSERT_TRUE(wait(hole));
    EXPECT_EQ(hole->number, end + kMiB) << "in round " << round;
    end += kMiB;
  }
}

TEST_F(EngineTest, TheAttributesOfAnOpenImageAreBelievedOnlyWhereItIsHeld) {
  File a = start_written();
  File b = open(2, "a.img");
  EXPECT_TRUE(engine(1).may_be_cached(a.handle));
  EXPECT_FALSE(engine(2).may_be_cached(b.handle));
  int told = 0;
  engine(1).on_giving_up([&](InodeNumber inode) {
    EXPECT_EQ(inode, a.inode);
    EXPECT_FALSE(engine(1).may_be_cached(a.handle));
    ++told;
  });
  File again = open(1, "a.img");
  close(a);
  a = again;                              // it has not written: the tenure may go
  EXPECT_TRUE(write_now(b, 0, 0x44, 4096));
  EXPECT_EQ(told, 1);
  EXPECT_TRUE(engine(2).may_be_cached(b.handle));
  EXPECT_FALSE(engine(1).may_be_cached(a.handle));
  EXPECT_EQ(byte_at(a, 0, 4096), 0x44);
  engine(1).on_giving_up(nullptr);
}

TEST_F(EngineTest, WhatAnotherHostHasSetStaysAsTheHolderMakesTheImageLonger) {
  File a = start_written();
  File b = open(2, "a.img");
  SetAttr change;
  change.mask = wire::kSetUid | wire::kSetAtime;
  change.values.uid = 7;
  change.values.atime = WallTime{12345};
  wire::SetXattr value{b.inode, "user.of", {'b'}};
  std::optional<Status> changed, set;
  engine(2).setattr(b.inode, change, [&](Result<wire::Attr> r) { changed = r.status(); });
  engine(2).set_xattr(value, [&](Status s) { set = s; });
  ASSERT_TRUE(until([&] { return changed && set; }));
  ASSERT_TRUE(changed->is_ok() && set->is_ok());
  auto expect_them = [&](const char* when) {
    Pending r = getattr(a);
    ASSERT_TRUE(wait(r)) << when;
    EXPECT_EQ(r->attr.uid, 7u) << when;
    EXPECT_EQ(r->attr.atime.ns, 12345) << when;
    ASSERT_EQ(r->attr.xattrs.size(), 1u) << when;
    EXPECT_EQ(r->attr.xattrs[0].second, Bytes{'b'}) << when;
  };
  world_->run_for(seconds(1));
  expect_them("before");
  ASSERT_TRUE(write_now(a, 8 * kMiB, 0x22, 4096));
  expect_them("after");
  Pending r = getattr(a);
  ASSERT_TRUE(wait(r));
  EXPECT_EQ(r->attr.size, 8 * kMiB + 4096);
  EXPECT_EQ(r->attr.holder, "host1");
  ASSERT_TRUE(wait(unlink(2, "a.img")));
  world_->run_for(seconds(1));
  ASSERT_TRUE(write_now(a, 8 * kMiB + 4096, 0x22, 4096));
  r = getattr(a);
  ASSERT_TRUE(wait(r));
  EXPECT_EQ(r->attr.nlink, 0u);
}

// Of what is open here and was neither read nor written: the shared node hears that it is used, and that is all.
TEST_F(EngineTest, AnUnlinkWaitsForNoHolder) {
  File a = start_written();
  File b = open(2, "a.img");
  close(a);
  EXPECT_TRUE(wait(unlink(2, "a.img"), seconds(1)));
  world_->run_for(std::chrono::minutes(30));
  EXPECT_EQ(byte_at(b, 0, kMiB), 0x11) << "it is open";
  File d = create(1, "d.img", kMiB);
  ASSERT_TRUE(write_now(d, 0, 0x11, 4096));
  open(2, "d.img");
  lose_link(1);
  world_->run_for(seconds(2));            // the shared node has noticed
  EXPECT_TRUE(wait(unlink(2, "d.img"), seconds(1))) << "its holder is away";
}

TEST_F(EngineTest, VerifyOfAVastSparseImagePassesOverItsHoles) {
  start();
  constexpr uint64_t kSize = 1ull << 42;
  File f = create(1, "huge.img", kSize);
  ASSERT_TRUE(write_now(f, 0, 0x11, 4096));
  ASSERT_TRUE(write_now(f, kSize / 2 + 12345 * 4096, 0x22, kMiB));
  ASSERT_TRUE(write_now(f, kSize - 4096, 0x33, 4096));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(verify(f), "");
}

}  // namespace tidemark::fs
