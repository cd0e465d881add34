#include "fs/survivor.h"

#include <gtest/gtest.h>

namespace tidemark::fs {
namespace {

class SurvivorTest : public testing::Test {
 protected:
  Survivor attach() {
    auto s = Survivor::attach(memory_);
    EXPECT_TRUE(s) << s.status().to_string();
    return *s;
  }
  static ImageId image(uint8_t n) {
    ImageId id;
    id.bytes[0] = n;
    return id;
  }
  Bytes memory_ = Bytes(Survivor::kBytes, 0);
};

TEST_F(SurvivorTest, HandlesGoOnWithTheNextRun) {
  attach().opened({3, InodeNumber(30), image(1), false}, 77);
  attach().opened({9, InodeNumber(90), image(2), false}, 78);
  attach().wrote(9);
  attach().opened({4, InodeNumber(40), image(3), false}, 79);
  attach().closed(4);
  auto handles = attach().handles();
  ASSERT_EQ(handles.size(), 2u);
  EXPECT_EQ(handles[0].index, 3u);
  EXPECT_EQ(handles[0].inode, InodeNumber(30));
  EXPECT_EQ(handles[0].image, image(1));
  EXPECT_FALSE(handles[0].wrote);
  EXPECT_EQ(handles[1].index, 9u);
  EXPECT_TRUE(handles[1].wrote);
  EXPECT_EQ(attach().opened_by(77, InodeNumber(30)), 3u);
  EXPECT_FALSE(attach().opened_by(77, InodeNumber(31)));
  EXPECT_FALSE(attach().opened_by(79, InodeNumber(40)));   // closed
  EXPECT_FALSE(attach().opened_by(0, InodeNumber(30)));
}

TEST_F(SurvivorTest, AHandleThatIsBeingClosedIsNotOpenAndKeepsItsNumber) {
  attach().opened({3, InodeNumber(30), image(1), false}, 77);
  attach().begin_close(3);
  EXPECT_TRUE(attach().handles().empty());
  EXPECT_FALSE(attach().opened_by(77, InodeNumber(30)));
  EXPECT_EQ(attach().closing(), std::vector<uint32_t>{3});
  attach().closed(3);
  EXPECT_TRUE(attach().closing().empty());
  attach().begin_close(3);
  attach().opened({3, InodeNumber(40), image(2), false}, 78);
  EXPECT_TRUE(attach().closing().empty());
  ASSERT_EQ(attach().handles().size(), 1u);
}

TEST_F(SurvivorTest, ATenureIsKeptAsItWasLastHeld) {
  SavedTenure t{image(1), InodeNumber(5), Epoch(7), {Epoch(6), "host2", {Incarnation(3), Counter(44)}, 0},
                LossId(11), LossId(12), true, Generation(21), true, true};
  attach().hold(t);
  t.epoch = Epoch(8);
  attach().hold(t);
  SavedTenure other = t;
  other.image = image(2);
  attach().hold(other);
  attach().let_go(image(2));
  auto tenures = attach().tenures();
  ASSERT_EQ(tenures.size(), 1u);
  EXPECT_EQ(tenures[0].image, image(1));
  EXPECT_EQ(tenures[0].inode, InodeNumber(5));
  EXPECT_EQ(tenures[0].epoch, Epoch(8));
  EXPECT_EQ(tenures[0].parent.epoch, Epoch(6));
  EXPECT_EQ(tenures[0].parent.source, "host2");
  EXPECT_EQ(tenures[0].parent.last.incarnation, Incarnation(3));
  EXPECT_EQ(tenures[0].parent.last.counter, Counter(44));
  EXPECT_EQ(tenures[0].parent.clean, 0);
  EXPECT_EQ(tenures[0].host_loss, LossId(11));
  EXPECT_EQ(tenures[0].shared_loss, LossId(12));
  EXPECT_TRUE(tenures[0].mirror_none);
  EXPECT_EQ(tenures[0].terms, Generation(21));
  EXPECT_TRUE(tenures[0].witnessed);
  EXPECT_TRUE(tenures[0].asks_first);
  attach().let_go(image(1));
  attach().hold({image(3), InodeNumber(5), Epoch(9), {}, LossId(11), LossId(12)});   // where the other stood
  EXPECT_EQ(attach().tenures().at(0).terms, Generation(0));
  EXPECT_FALSE(attach().tenures().at(0).witnessed);
  EXPECT_FALSE(attach().tenures().at(0).asks_first);
}

TEST_F(SurvivorTest, MoreTenuresThanThereIsRoomForAreNotKept) {
  Survivor s = attach();
  for (uint32_t i = 0; i <= Survivor::kTenuresMax; ++i) {
    SavedTenure t;
    t.image.bytes[0] = static_cast<uint8_t>(i);
    t.image.bytes[1] = static_cast<uint8_t>(i >> 8);
    t.image.bytes[2] = static_cast<uint8_t>(i >> 16);
    s.hold(t);
  }
  EXPECT_EQ(attach().tenures().size(), Survivor::kTenuresMax);
}

TEST_F(SurvivorTest, AChangeOfNamesIsKnownUntilItIsAnswered) {
  attach().begin_change(100, InodeNumber(1));
  attach().begin_change(102, InodeNumber(0));
  attach().end_change(100);
  EXPECT_FALSE(attach().change(100));
  EXPECT_EQ(attach().change(102), InodeNumber(0));
  EXPECT_FALSE(attach().change(0));
}

TEST_F(SurvivorTest, AnEndIsKeptUntilItIsForgotten) {
  attach().keep_end(image(1), 0);
  attach().keep_end(image(2), 700);
  attach().keep_end(image(1), 300);
  EXPECT_EQ(attach().end_of(image(1)), 300u);
  EXPECT_FALSE(attach().end_of(image(3)));
  attach().forget_end(image(1));
  EXPECT_FALSE(attach().end_of(image(1)));
  attach().keep_end(image(3), 0);
  EXPECT_EQ(attach().end_of(image(3)), 0u);
  EXPECT_EQ(attach().end_of(image(2)), 700u);
}

TEST_F(SurvivorTest, ALossIsKeptUntilItIsSaid) {
  attach().keep_lost(image(1), true);
  attach().keep_lost(image(2), true);
  attach().keep_lost(image(1), true);
  attach().keep_lost(image(3), false);
  EXPECT_TRUE(attach().lost(image(1)));
  EXPECT_FALSE(attach().lost(image(3)));
  attach().keep_lost(image(1), false);
  EXPECT_FALSE(attach().lost(image(1)));
  EXPECT_TRUE(attach().lost(image(2)));
}

TEST_F(SurvivorTest, WhatWasAgreedIsKept) {
  EXPECT_TRUE(attach().request().empty());
  attach().keep_request(as_bytes("question"));
  attach().keep_answer(as_bytes("answer"));
  attach().set_can_resend(true);
  EXPECT_EQ(as_text(attach().request()), "question");
  EXPECT_EQ(as_text(attach().answer()), "answer");
  EXPECT_TRUE(attach().can_resend());
}

TEST_F(SurvivorTest, AnotherLayoutIsRefused) {
  attach();
  memory_[8] ^= 2;   // the version
  EXPECT_EQ(Survivor::attach(memory_).status().code(), Code::kUnsupported);
  memory_[8] ^= 2;
  memory_[0] ^= 1;
  EXPECT_EQ(Survivor::attach(memory_).status().code(), Code::kUnsupported);
}

}  // namespace
}  // namespace tidemark::fs
