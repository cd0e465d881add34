// Another loss id: every image that had writes which no sync of its own had covered is level no more, from that moment.
#include "tests/unit/node/refused_writes.h"

namespace tidemark::node {
namespace {

using wire::Type;

constexpr auto kRead = static_cast<uint16_t>(sim::FileOp::kRead), kWrite = static_cast<uint16_t>(sim::FileOp::kWrite),
               kSync = static_cast<uint16_t>(sim::FileOp::kSync);

// Two images with writes that no sync covers, of one host; and how the sync of the first one fails.
class FailedSyncs : public RefusedWrites {
 protected:
  void TearDown() override {
    world_.clear_faults("shared");
    world_.release_hung("shared");
    world_.run_for(std::chrono::seconds(1));
  }
  void begin() {
    a_ = host("host1");
    b_ = host("host2");
    failing_ = held_image(*a_, "failing.img", kImageBytes);
    held_ = held_image(*a_, "held.img", kImageBytes);
    // Over both stripes.
    for (const Held& h : {failing_, held_}) ASSERT_TRUE(a_->write(h.image, h.epoch, 0, Bytes(256u << 10, 1)));
  }
  void begin_flush(HostClient& h, const Held& held) {
    h.link->request<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch}, [](Result<wire::Flushed>) {});
  }
  // The other one was flushed at once, and its holder is gone before it has said a word.
  void expect_outdated() {
    EXPECT_FALSE(b_->read(held_.image, 0, 4096));
    a_->link.reset();
    world_.run_for(std::chrono::seconds(6));
    EXPECT_EQ(take("/held.img"), Code::kBusy);
  }

  std::unique_ptr<HostClient> a_, b_;
  Held failing_, held_;
};

TEST_F(FailedSyncs, AreNotedWhenTheFlushHadBeenGivenUp) {
  begin();
  world_.inject("shared", sim::FileFault{.operations = kSync, .path_contains = "objects", .hangs = true});
  begin_flush(*a_, failing_);
  world_.run_for(std::chrono::seconds(8));
  ASSERT_EQ(world_.hung("shared"), 1u);
  EXPECT_TRUE(b_->read(held_.image, 0, 4096)) << "nothing is lost yet";
  const LossId before = group_loss();
  world_.release_hung("shared", EIO);
  ASSERT_TRUE(world_.run_until([&] { return group_loss() != before; }, std::chrono::seconds(1)));
  ASSERT_TRUE(flush(*a_, held_));
  expect_outdated();
}

TEST_F(FailedSyncs, AreNotedWhileAnotherStripeIsStillBeingSynced) {
  begin();
  world_.inject("shared", sim::FileFault{.operations = kSync, .path_contains = "objects"});
  world_.inject("shared", sim::FileFault{.operations = kSync, .path_contains = "objects", .hangs = true});
  const LossId before = group_loss();
  begin_flush(*a_, failing_);
  ASSERT_TRUE(world_.run_until([&] { return group_loss() != before; }, std::chrono::seconds(1)));
  ASSERT_EQ(world_.hung("shared"), 1u);
  ASSERT_TRUE(flush(*a_, held_));
  expect_outdated();
}

TEST_F(FailedSyncs, AreNotedWhenATakeoverHadGivenThatSyncUp) {
  begin();
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  world_.inject("shared", sim::FileFault{.operations = kSync, .path_contains = "objects", .hangs = true});
  EXPECT_EQ(take("/third.img"), Code::kOk);
  ASSERT_EQ(world_.hung("shared"), 1u);
  ASSERT_TRUE(b_->connect(port_, cluster_));   // its sessions were ended
  const LossId before = group_loss();
  world_.release_hung("shared", EIO);
  ASSERT_TRUE(world_.run_until([&] { return group_loss() != before; }, std::chrono::seconds(1)));
  ASSERT_TRUE(flush(*a_, held_));
  expect_outdated();
}

// Its writes of before the crash are as unsynced as they were: the flush that ends its recovery does not make it good.
TEST_F(FailedSyncs, AreNotedForAHolderThatIsBackAfterACrash) {
  begin();
  ASSERT_TRUE(flush(*a_, failing_));
  world_.crash("host1", sim::Crash::kKill);
  a_ = std::make_unique<HostClient>(world_, "host1");
  a_->hello.incarnation = Incarnation(2);
  a_->hello.nonce.bytes[0] = 2;
  ASSERT_TRUE(a_->connect(port_, cluster_));
  Result<wire::Grant> grant = a_->acquire(held_.image);
  ASSERT_TRUE(grant) << grant.status().message();
  held_.epoch = grant->epoch;
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  fail_next_sync();
  EXPECT_FALSE(flush(*b_, third));
  ASSERT_TRUE(b_->connect(port_, cluster_));
  ASSERT_TRUE(resume(*b_, third, 0));
  ASSERT_TRUE(flush(*a_, held_));
  EXPECT_TRUE(outdated());
  EXPECT_TRUE(made_equal(*a_, held_));
}

// It is told the new loss id with its grant, and has nothing to say of it.
TEST_F(FailedSyncs, OfBeforeAGrantAreOverWithTheRecoveryThatFollowsIt) {
  begin();
  ASSERT_TRUE(flush(*a_, failing_));
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  sim::StoreFault slow;
  slow.delay = std::chrono::milliseconds(300);
  world_.set_store_fault("shared", slow);
  std::optional<Result<wire::Grant>> grant;
  a_->link->request<wire::Grant>(Type::kAcquire, wire::Acquire{held_.image, 0, 0},
                                 [&](Result<wire::Grant> g) { grant.emplace(std::move(g)); });
  world_.run_for(std::chrono::milliseconds(50));
  const LossId before = group_loss();
  fail_next_sync();
  begin_flush(*b_, third);
  ASSERT_TRUE(world_.run_until([&] { return group_loss() != before; }, std::chrono::milliseconds(100)));
  ASSERT_FALSE(grant) << "the failure is to come first";
  a_->run([&] { return grant.has_value(); });
  ASSERT_TRUE(*grant) << grant->status().message();
  EXPECT_EQ((*grant)->loss_id, group_loss());
  world_.set_store_fault("shared", {});
  held_.epoch = (*grant)->epoch;
  EXPECT_FALSE(b_->read(held_.image, 0, 4096));
  ASSERT_TRUE(flush(*a_, held_));
  EXPECT_TRUE(b_->read(held_.image, 0, 4096));
}

// It keeps every host from the image, for as long as that takes, or for good.
TEST_F(FailedSyncs, OfATakingShowWhatIsWrittenAgainForThemAndWhyItIsNot) {
  begin();
  auto shows = [&](const std::string& what) { return node_->status_json().find(what) != std::string::npos; };
  const std::string name = "\"/held.img: a sync of it had failed";
  EXPECT_FALSE(shows(name));
  fail_next_sync();
  ASSERT_EQ(take("/held.img"), Code::kOk);
  world_.inject("shared", sim::FileFault{.times = UINT64_MAX, .operations = 1, .path_contains = "objects"});
  EXPECT_FALSE(b_->acquire(held_.image));
  EXPECT_TRUE(shows("the last try failed: ")) << node_->status_json();
  world_.clear_faults("shared");
  world_.slow_reads("shared", "objects", std::chrono::milliseconds(200));
  std::optional<Result<wire::Grant>> grant;
  b_->link->request<wire::Grant>(Type::kAcquire, wire::Acquire{held_.image, 5000, 0},
                                 [&](Result<wire::Grant> g) { grant.emplace(std::move(g)); });
  world_.run_for(std::chrono::milliseconds(100));
  EXPECT_TRUE(shows("0 of 262144 bytes so far")) << node_->status_json();
  b_->run([&] { return grant.has_value(); });
  ASSERT_TRUE(*grant) << grant->status().message();
  EXPECT_FALSE(shows(name)) << node_->status_json();
}

// A taking does not wait for a sync that hangs. Whether that one fails in the end may be heard by nobody, or only once
// the next tenure has begun: what it was to cover is written again before that.
class HungTaking : public FailedSyncs {
 protected:
  void SetUp() override {
    begin();
    world_.inject("shared", sim::FileFault{.operations = kSync, .path_contains = "objects", .hangs = true});
    ASSERT_EQ(take("/held.img"), Code::kOk);
    ASSERT_EQ(world_.hung("shared"), 1u);
  }
  void expect_written_again_for_the_next() {
    const Result<wire::Grant> next = b_->acquire(held_.image);
    ASSERT_TRUE(next) << next.status().message();
    EXPECT_NE(warnings_.find("main_line_written_again"), std::string::npos);
  }
};

TEST_F(HungTaking, IsInDoubtWhileItHangs) {
  EXPECT_EQ(b_->acquire(held_.image).status().code(), Code::kIoError) << "no other sync of it counts meanwhile";
  EXPECT_NE(warnings_.find("main_line_written_again"), std::string::npos);
}

TEST_F(HungTaking, IsInDoubtAfterTheNodeWasKilledMeanwhile) {
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(b_->connect(port_, cluster_));
  expect_written_again_for_the_next();
}

TEST_F(HungTaking, IsInDoubtNoMoreOnceItHasEndedWell) {
  world_.release_hung("shared");
  world_.run_for(std::chrono::seconds(1));
  const Result<wire::Grant> next = b_->acquire(held_.image);
  ASSERT_TRUE(next) << next.status().message();
  EXPECT_EQ(warnings_.find("main_line_written_again"), std::string::npos);
}

// The old sync ends well, and the doubt with it, while a piece was read and not written yet.
TEST_F(HungTaking, IsGrantedToNobodyWhileItIsStillBeingWrittenAgain) {
  world_.inject("shared", sim::FileFault{.operations = kRead, .path_contains = ".data", .hangs = true});
  EXPECT_EQ(b_->acquire(held_.image).status().code(), Code::kIoError);
  world_.inject("shared", sim::FileFault{.operations = kWrite, .path_contains = "objects", .hangs = true});
  world_.release_hung("shared");
  world_.run_for(std::chrono::seconds(1));
  EXPECT_FALSE(b_->acquire(held_.image)) << "what it writes would be written over with older bytes";
  world_.release_hung("shared");
  world_.run_for(std::chrono::seconds(1));
  const Result<wire::Grant> next = b_->acquire(held_.image);
  ASSERT_TRUE(next) << next.status().message();
  ASSERT_TRUE(b_->write(held_.image, next->epoch, 0, Bytes(4096, 2)));
  const auto read = b_->read(held_.image, 0, 4096);
  ASSERT_TRUE(read) << read.status().message();
  EXPECT_EQ(*read, Bytes(4096, 2));
}

// Whoever asks is told so meanwhile, each time.
TEST_F(HungTaking, KeepsNobodyWaitingWhileAllThatIsWrittenAgainHangs) {
  const sim::FileFault all{.times = UINT64_MAX, .operations = kSync, .path_contains = "objects", .hangs = true};
  world_.inject("shared", all);
  for (int i = 0; i < 2; ++i) {
    const sim::Duration before = world_.elapsed();
    const Result<wire::Grant> next = b_->acquire(held_.image);
    EXPECT_EQ(next.status().code(), Code::kIoError) << next.status().message();
    EXPECT_LT(world_.elapsed() - before, std::chrono::seconds(12));
  }
  world_.clear_faults("shared");
  world_.release_hung("shared");
  world_.run_for(std::chrono::seconds(3));
  const Result<wire::Grant> next = b_->acquire(held_.image);
  EXPECT_TRUE(next) << next.status().message();
}

TEST_F(HungTaking, ThatEndsWellDoesNotCountOnceAnotherSyncHasFailed) {
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  fail_next_sync();
  EXPECT_FALSE(flush(*b_, third));
  world_.release_hung("shared");
  world_.run_for(std::chrono::seconds(1));
  ASSERT_TRUE(b_->connect(port_, cluster_));
  expect_written_again_for_the_next();
}

// A taking that could not even try: nothing covers what the lost holder had not flushed.
class UnsyncedTaking : public FailedSyncs {
 protected:
  void SetUp() override {
    begin();
    restart_node(sim::Crash::kKill);   // nobody has the copy open
    ASSERT_TRUE(b_->connect(port_, cluster_));
    c_ = host("host3");
    other_ = held_image(*b_, "other.img", kImageBytes);
    ASSERT_TRUE(b_->write(other_.image, other_.epoch, 0, Bytes(4096, 1)));
    world_.inject("shared", sim::FileFault{.operations = kRead, .path_contains = ".meta"});
    ASSERT_EQ(take("/held.img"), Code::kOk);
    ASSERT_NE(warnings_.find("taken_unsynced"), std::string::npos);
  }
  void fail_a_sync_of_another() {
    fail_next_sync();
    const LossId before = group_loss();
    EXPECT_FALSE(flush(*b_, other_));
    EXPECT_NE(group_loss(), before);
    ASSERT_TRUE(b_->connect(port_, cluster_));
  }
  void acquire(HostClient& h) {
    warnings_.clear();
    const Result<wire::Grant> next = h.acquire(held_.image);
    ASSERT_TRUE(next) << next.status().message();
    held_.epoch = next->epoch;
  }
  bool written_again() const { return warnings_.find("main_line_written_again") != std::string::npos; }
  Status give_back_unused(HostClient& h) {
    return h.ask<wire::Yielded>(Type::kYield, wire::Yield{held_.image, held_.epoch, {}}).status();
  }

  std::unique_ptr<HostClient> c_;
  Held other_;
};

TEST_F(UnsyncedTaking, IsInDoubtOnceAnotherImagesSyncHasFailed) {
  fail_a_sync_of_another();
  acquire(*c_);
  EXPECT_TRUE(written_again());
}

TEST_F(UnsyncedTaking, IsNotInDoubtBeforeThat) {
  acquire(*c_);
  EXPECT_FALSE(written_again());
}

TEST_F(UnsyncedTaking, IsInDoubtOnceASyncHasFailedBeforeTheNextTenuresFirst) {
  acquire(*c_);
  fail_a_sync_of_another();
  ASSERT_EQ(take("/held.img"), Code::kOk) << "what is here is all that there is";
  acquire(*b_);
  EXPECT_TRUE(written_again());
}

TEST_F(UnsyncedTaking, IsNotInDoubtAfterTheNextTenuresFirstSync) {
  acquire(*c_);
  ASSERT_TRUE(flush(*c_, held_));
  fail_a_sync_of_another();
  ASSERT_TRUE(give_back_unused(*c_));
  acquire(*c_);
  EXPECT_FALSE(written_again());
}

TEST_F(UnsyncedTaking, IsInDoubtWhereTheNodeDiedBeforeItCouldNoteTheFailedSync) {
  sim::StoreFault slow;
  slow.delay = std::chrono::seconds(60);
  world_.set_store_fault("shared", slow);
  fail_next_sync();
  const LossId before = group_loss();
  begin_flush(*b_, other_);
  ASSERT_TRUE(world_.run_until([&] { return group_loss() != before; }, std::chrono::seconds(1)));
  world_.crash("shared", sim::Crash::kKill);
  node_.reset();
  world_.set_store_fault("shared", {});
  start_node();
  ASSERT_TRUE(c_->connect(port_, cluster_));
  acquire(*c_);
  EXPECT_TRUE(written_again());
}

// Whoever is next follows upon the same as the one who gave it back.
TEST_F(UnsyncedTaking, IsInDoubtAfterATenureThatWasGivenBackUnused) {
  acquire(*c_);
  fail_next_sync();
  ASSERT_FALSE(flush(*c_, held_));
  ASSERT_TRUE(c_->connect(port_, cluster_));
  ASSERT_TRUE(give_back_unused(*c_));
  acquire(*c_);
  EXPECT_TRUE(written_again());
}

TEST_F(UnsyncedTaking, IsWrittenAgainOnlyOnceHoweverOftenASyncOfAnotherFails) {
  fail_a_sync_of_another();
  acquire(*c_);
  ASSERT_TRUE(written_again());
  ASSERT_TRUE(resume(*b_, other_, 2));
  ASSERT_TRUE(resume(*b_, other_, 0));
  ASSERT_TRUE(b_->write(other_.image, other_.epoch, 0, Bytes(4096, 2)));
  fail_a_sync_of_another();
  acquire(*c_);
  EXPECT_FALSE(written_again());
}

// Its own sync covered all.
TEST_F(FailedSyncs, OfAnotherImageAreOfNoAccountToOneThatWasTakenAndSynced) {
  begin();
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  ASSERT_EQ(take("/held.img"), Code::kOk);
  fail_next_sync();
  EXPECT_FALSE(flush(*b_, third));
  auto c = host("host3");
  const Result<wire::Grant> next = c->acquire(held_.image);
  ASSERT_TRUE(next) << next.status().message();
  EXPECT_EQ(warnings_.find("main_line_written_again"), std::string::npos);
}

// Its holder gave it back by its own word, all of it flushed: nobody was lost, though the next tenure stands in for
// what is not shipped. So it is after a restart, too.
TEST_F(FailedSyncs, OfAnotherImageAreOfNoAccountToOneThatWasGivenBackUnshipped) {
  begin();
  for (const Held& h : {failing_, held_}) ASSERT_TRUE(flush(*a_, h));
  ASSERT_TRUE(a_->ask<wire::Yielded>(Type::kYieldUnshipped,
                                     wire::Yield{held_.image, held_.epoch, {a_->hello.incarnation, a_->counter}}));
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(b_->connect(port_, cluster_));
  Held third = held_image(*b_, "third.img", kImageBytes);
  ASSERT_TRUE(b_->write(third.image, third.epoch, 0, Bytes(4096, 1)));
  fail_next_sync();
  EXPECT_FALSE(flush(*b_, third));
  auto c = host("host3");
  const Result<wire::Grant> next = c->acquire(held_.image);
  ASSERT_TRUE(next) << next.status().message();
  EXPECT_EQ(next->parent.clean, wire::kTaken) << "its first batch holds all of the image";
  EXPECT_EQ(warnings_.find("main_line_written_again"), std::string::npos);
}

}  // namespace
}  // namespace tidemark::node
