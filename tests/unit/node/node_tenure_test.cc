#include "tests/unit/node/refused_writes.h"

namespace tidemark::node {
namespace {

using wire::MarkKind;
using wire::Type;

constexpr uint64_t kRegion = 1u << 20;   // of the fixture

TEST_F(NodeTest, ATenureMovesByRecallAndYieldThirtyTimes) {
  auto a = host("host1"), b = host("host2");
  Result<wire::Attr> attr = a->create("disk.img");
  ASSERT_TRUE(attr);
  uint64_t epoch = 0;
  WriteSequence last;
  for (int i = 0; i < 30; ++i) {
    HostClient& to = i % 2 == 0 ? *a : *b;
    HostClient& from = i % 2 == 0 ? *b : *a;
    std::optional<Result<wire::Grant>> granted;
    from.recalls.clear();
    to.link->request<wire::Grant>(Type::kAcquire, wire::Acquire{attr->image, 5000},
                                  [&](Result<wire::Grant> g) { granted.emplace(std::move(g)); });
    if (i > 0) {
      from.run([&] { return !from.recalls.empty(); });
      EXPECT_FALSE(granted);
      EXPECT_EQ(from.recalls[0].epoch.value, epoch);
      EXPECT_EQ(from.recalls[0].wanted_by, to.hello.node);
      ASSERT_TRUE(from.yield(attr->image, Epoch(epoch)));
    }
    to.run([&] { return granted.has_value(); });
    ASSERT_TRUE(*granted) << granted->status().message();
    wire::Grant& g = **granted;
    EXPECT_EQ(g.epoch.value, epoch + 1);
    if (i > 0) {
      EXPECT_EQ(g.parent.epoch.value, epoch);
      EXPECT_EQ(g.parent.source, from.hello.node);
      EXPECT_EQ(g.parent.last, last);
      EXPECT_EQ(g.parent.clean, 1);
    }
    epoch = g.epoch.value;
    if (i == 0) { ASSERT_TRUE(to.resize(attr->image, g.epoch, 4 * kRegion, 1)); }
    ASSERT_TRUE(
        to.write(attr->image, g.epoch, static_cast<uint64_t>(i) * 4096, Bytes(4096, static_cast<uint8_t>(i + 1))));
    last = {to.hello.incarnation, to.counter};
    EXPECT_EQ(from.write(attr->image, Epoch(epoch - 1), 0, Bytes(512, 9)).status().code(), Code::kFenced);
    EXPECT_EQ(from.write(attr->image, Epoch(epoch), 0, Bytes(512, 9)).status().code(), Code::kFenced);
  }
  Result<Bytes> got = a->read(attr->image, 0, 30 * 4096);
  ASSERT_TRUE(got);
  for (size_t i = 0; i < 30; ++i) EXPECT_EQ((*got)[i * 4096], i + 1);
  uint64_t starts = 0, number = 0;
  for (const wire::Mark& m : marks_) {
    EXPECT_GT(m.number.value, number);
    number = m.number.value;
    starts += m.kind == MarkKind::kTenureStart;
  }
  EXPECT_EQ(starts, 30u);
}

TEST_F(NodeTest, ABusyAnswerNamesTheHolder) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  Result<wire::Grant> g = b->acquire(held.image, 300);
  ASSERT_FALSE(g);
  EXPECT_EQ(g.status().code(), Code::kBusy);
  EXPECT_NE(g.status().message().find("host1 (connected)"), std::string::npos) << g.status().message();
  EXPECT_NE(g.status().message().find("/disk.img"), std::string::npos);
  EXPECT_EQ(a->recalls.size(), 1u);
  EXPECT_NE(warnings_.find("holder=host1"), std::string::npos) << warnings_;
  g = b->acquire(held.image, 0);
  EXPECT_EQ(g.status().code(), Code::kBusy);
  EXPECT_EQ(a->recalls.size(), 1u) << "who does not wait recalls nobody";

  world_.crash("host1", sim::Crash::kKill);
  g = b->acquire(held.image, 60000);
  ASSERT_FALSE(g) << "a host that is not connected still holds";
  EXPECT_NE(g.status().message().find("host1 (not connected)"), std::string::npos) << g.status().message();
}

TEST_F(NodeTest, TheSameHostGetsItBackAfterItsCrash) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  Counter last = a->counter;
  world_.crash("host1", sim::Crash::kPowerLoss);
  a.reset();
  auto again = std::make_unique<HostClient>(world_, "host1");
  again->hello.incarnation = Incarnation(2);
  again->hello.nonce.bytes[0] = 2;
  ASSERT_TRUE(again->connect(port_, cluster_));
  Result<wire::Grant> g = again->acquire(held.image);
  ASSERT_TRUE(g) << g.status().message();
  EXPECT_EQ(g->epoch, held.epoch.next());
  EXPECT_EQ(g->parent.epoch, held.epoch);
  EXPECT_EQ(g->parent.source, "host1");
  EXPECT_EQ(g->parent.last, (WriteSequence{Incarnation(1), last}));
  EXPECT_EQ(g->parent.clean, 0);
  EXPECT_EQ(again->write(held.image, held.epoch, 0, Bytes(512, 1)).status().code(), Code::kFenced);
  EXPECT_TRUE(again->write(held.image, g->epoch, 0, Bytes(512, 1)));
}

// What its next tenure follows upon is what this one did: nothing of a lost host's is taken for the recovering one's.
TEST_F(NodeTest, ARecoveryThatSaysThatTheCopiesDifferHasNotWrittenYet) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  Result<wire::Grant> g = a->acquire(held.image);
  ASSERT_TRUE(g);
  for (uint8_t alone : {4, 2}) {
    const Epoch said = g->epoch;
    ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, said, kRegion, Generation(1), alone}));
    g = a->acquire(held.image);
    ASSERT_TRUE(g);
    EXPECT_EQ(g->parent.epoch, alone == 4 ? held.epoch : said);
  }
}

TEST_F(NodeTest, TenuresAndEpochsSurviveARestart) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(b->connect(port_, cluster_));
  EXPECT_EQ(b->acquire(held.image, 0).status().code(), Code::kBusy);
  EXPECT_EQ(b->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, kRegion, Generation(1), 0})
                .status()
                .code(),
            Code::kFenced);
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, kRegion, Generation(1), 0}));
  ASSERT_TRUE(a->yield(held.image, held.epoch));
  ASSERT_TRUE(a->yield(held.image, held.epoch)) << "said again after a lost answer";
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(b->connect(port_, cluster_));
  Result<wire::Grant> g = b->acquire(held.image);
  ASSERT_TRUE(g);
  EXPECT_EQ(g->epoch, held.epoch.next());
  EXPECT_EQ(g->parent.clean, 1);
  EXPECT_EQ(g->parent.source, "host1");
}

TEST_F(NodeTest, AWaitersRecallIsRepeatedWhenTheHolderReturns) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  std::optional<Result<wire::Grant>> granted;
  b->link->request<wire::Grant>(Type::kAcquire, wire::Acquire{held.image, 5000},
                                [&](Result<wire::Grant> g) { granted.emplace(std::move(g)); });
  a->run([&] { return a->recalls.size() == 1; });
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, kRegion, Generation(1), 0}));
  a->run([&] { return a->recalls.size() == 2; });
  ASSERT_TRUE(a->yield(held.image, held.epoch));
  b->run([&] { return granted.has_value(); });
  EXPECT_TRUE(*granted);
}

TEST_F(NodeTest, ABehindMapNamesWhatTheOtherWrote) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 20 * kRegion);
  Result<wire::Grant> first = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  ASSERT_TRUE(first);
  EXPECT_EQ(first->copy_known, 0);
  EXPECT_EQ(first->epoch, Epoch(0));
  EXPECT_EQ(first->region_bytes, kRegion);
  EXPECT_EQ(first->stale_regions, (Bytes{0xFF, 0xFF, 0x0F})) << "a host without a copy lacks everything";
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, first->map_cut, first->stale_regions})));

  ASSERT_TRUE(a->write(held.image, held.epoch, 9 * kRegion - 4096, Bytes(8192, 1)));
  Result<wire::Grant> second = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  EXPECT_EQ(second->copy_known, 1);
  EXPECT_EQ(second->stale_regions, (Bytes{0x00, 0x03}));
  ASSERT_TRUE(a->write(held.image, held.epoch, 8 * kRegion, Bytes(4096, 2)));
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, second->map_cut, second->stale_regions})));
  Result<wire::Grant> third = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  EXPECT_EQ(third->stale_regions, (Bytes{0x00, 0x01})) << "marked again after the hand-out: not cleared";

  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(b->connect(port_, cluster_));
  Result<wire::Grant> fourth = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  EXPECT_EQ(fourth->stale_regions, (Bytes{0x00, 0x01}));
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, fourth->map_cut, {0x04}, 1})));
  EXPECT_EQ(b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image})->stale_regions, (Bytes{0x04, 0x01}))
      << "a host may say what its own copy lost";
  EXPECT_EQ(b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image, 1})->stale_regions,
            (Bytes{0xFF, 0xFF, 0x0F}));
}

TEST_F(NodeTest, ShrinksAreBehindToTheOldEnd) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 8 * kRegion);
  Result<wire::Grant> g = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, g->map_cut, g->stale_regions})));
  ASSERT_TRUE(a->resize(held.image, held.epoch, 5 * kRegion, 2));
  ASSERT_TRUE(a->resize(held.image, held.epoch, 8 * kRegion, 3));
  EXPECT_EQ(b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image})->stale_regions, (Bytes{0xE0}));
}

// The mark is durable before the shared copy changes: a kill at every commit and file operation.
TEST_F(NodeTest, TheBehindMarkIsDurableBeforeTheCopyChanges) {
  for (bool at_commits : {false, true}) {
    for (uint64_t nth = 1; nth <= 12; ++nth) {
      auto a = host("host1"), b = host("host2");
      Held held = held_image(*a, "disk" + std::to_string(at_commits) + "-" + std::to_string(nth), 4 * kRegion);
      Result<wire::Grant> g = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
      ASSERT_TRUE(g);
      ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, g->map_cut, g->stale_regions})));
      sim::CrashPoint point;
      point.nth = nth;
      point.at_commits = at_commits;
      point.kind = sim::Crash::kPowerLoss;
      world_.inject("shared", point);
      bool done = false;
      a->send_write(held.image, held.epoch, 2 * kRegion, Bytes(4096, 7), [&](Result<wire::Applied>) { done = true; });
      ASSERT_TRUE(world_.run_until([&] { return done || !world_.running("shared"); }, std::chrono::minutes(2)));
      world_.clear_faults("shared");
      restart_node(sim::Crash::kPowerLoss);
      ASSERT_TRUE(b->connect(port_, cluster_));
      ASSERT_TRUE(a->connect(port_, cluster_));
      // By its holder: others may not read it before that one has resumed.
      Result<Bytes> bytes = a->read(held.image, 2 * kRegion, 4096);
      ASSERT_TRUE(bytes) << bytes.status().message();
      bool changed = *bytes != Bytes(4096, 0);
      Result<wire::Grant> map = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
      ASSERT_TRUE(map);
      bool marked = map->stale_regions == Bytes{0x04};
      EXPECT_TRUE(marked || !changed) << (at_commits ? "commit " : "operation ") << nth;
      world_.crash("host1", sim::Crash::kKill);
      world_.crash("host2", sim::Crash::kKill);
    }
  }
}


// What a host says is stale, it says by regions of the size that it was given; that size may have grown since.
TEST_F(NodeTest, StaleRegionsOfAnOutgrownSizeMakeTheWholeMapStale) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 16 * kRegion);
  Result<wire::Grant> g = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  ASSERT_TRUE(g);
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, g->map_cut, g->stale_regions})));
  ASSERT_TRUE(a->resize(held.image, held.epoch, 131072 * kRegion, 2));
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, g->map_cut, {0x00, 0x01}, 1})));
  Result<wire::Grant> after = b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image});
  ASSERT_TRUE(after);
  ASSERT_GT(after->region_bytes, kRegion);
  uint64_t region = 8 * kRegion / after->region_bytes;   // holds what host2 named
  ASSERT_GT(after->stale_regions.size(), region / 8);
  EXPECT_NE(after->stale_regions[region / 8] >> region % 8 & 1, 0);
}

// ---- writes that the brick refuses --------------------------------------------------------------

// Of a host that is back after a crash: that its next write is applied says nothing of one that was refused.
TEST_F(RefusedWrites, OfAHolderThatIsBackAreNotForgottenByTheNextThatIsApplied) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  world_.crash("host1", sim::Crash::kPowerLoss);
  a = std::make_unique<HostClient>(world_, "host1");
  a->hello.incarnation = Incarnation(2);
  a->hello.nonce.bytes[0] = 2;
  ASSERT_TRUE(a->connect(port_, cluster_));
  Result<wire::Grant> grant = a->acquire(held.image);
  ASSERT_TRUE(grant) << grant.status().message();
  held.epoch = grant->epoch;
  EXPECT_TRUE(outdated());
  refuse_next_write();
  EXPECT_EQ(a->write(held.image, held.epoch, 0, Bytes(4096, 2)).status().code(), Code::kIoError);
  ASSERT_TRUE(a->write(held.image, held.epoch, 8192, Bytes(4096, 3)));
  ASSERT_TRUE(flush(*a, held));
  EXPECT_TRUE(outdated());
  EXPECT_TRUE(made_equal(*a, held));
}

// Its host counts this copy out for it until it has resumed, whatever flush succeeds meanwhile.
TEST_F(RefusedWrites, OfAFlushThatReconcilesAreNotForgottenByTheNextFlush) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  Result<wire::Grant> grant = a->acquire(held.image);
  ASSERT_TRUE(grant) << grant.status().message();
  held.epoch = grant->epoch;
  EXPECT_TRUE(outdated());
  world_.inject("shared", sim::FileFault{.operations = static_cast<uint16_t>(sim::FileOp::kSync),
                                         .path_contains = "objects"});
  EXPECT_EQ(flush(*a, held).code(), Code::kIoError);
  ASSERT_TRUE(flush(*a, held));
  EXPECT_TRUE(outdated());
  EXPECT_FALSE(b->read(held.image, 0, 4096)) << "its holder may have acknowledged more";
  ASSERT_TRUE(resume(*a, held, 1));
  ASSERT_TRUE(flush(*a, held));
  EXPECT_FALSE(outdated());
  EXPECT_TRUE(b->read(held.image, 0, 4096));
}

// Its word that the copies are level was on its way when the write was refused: it does not know of that. It says so
// once more, after it has heard of the refusal.
TEST_F(RefusedWrites, AreNotForgottenForAResumeThatCrossesThem) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(resume(*a, held, 2));
  EXPECT_TRUE(outdated());
  refuse_next_write();
  EXPECT_EQ(a->write(held.image, held.epoch, 0, Bytes(4096, 2)).status().code(), Code::kIoError);
  EXPECT_EQ(resume(*a, held, 0).code(), Code::kUnavailable);
  EXPECT_TRUE(outdated());
  ASSERT_TRUE(flush(*a, held));
  EXPECT_TRUE(outdated());
  ASSERT_TRUE(resume(*a, held, 0));
  EXPECT_FALSE(outdated());
  // A new session's word is of after it all.
  refuse_next_write();
  EXPECT_EQ(a->write(held.image, held.epoch, 0, Bytes(4096, 2)).status().code(), Code::kIoError);
  EXPECT_TRUE(outdated());
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(resume(*a, held, 0));
  EXPECT_FALSE(outdated());
}

// Refused while the catalogue takes in that the copies are level.
TEST_F(RefusedWrites, AreNotForgottenWhenAnEarlierResumeIsAnswered) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(resume(*a, held, 2));
  sim::StoreFault slow;
  slow.delay = std::chrono::milliseconds(300);
  world_.set_store_fault("shared", slow);
  refuse_next_write();
  std::optional<Result<wire::Resumed>> told;
  a->link->request<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, kRegion, Generation(1), 0},
                                  [&](Result<wire::Resumed> r) { told.emplace(std::move(r)); });
  EXPECT_EQ(a->write(held.image, held.epoch, 0, Bytes(4096, 2)).status().code(), Code::kIoError);
  a->run([&] { return told.has_value(); });
  ASSERT_TRUE(*told) << told->status().message();
  world_.set_store_fault("shared", {});
  ASSERT_TRUE(flush(*a, held));
  EXPECT_TRUE(outdated());
  EXPECT_FALSE(b->read(held.image, 0, 4096)) << "what was refused may be acknowledged";
  EXPECT_TRUE(made_equal(*a, held));
}

// A second refusal is not answered before the mark that the first one made is durable.
TEST_F(RefusedWrites, AreAnsweredOnceTheirMarkIsDurable) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  for (uint64_t at : {0u, 8192u}) ASSERT_TRUE(a->write(held.image, held.epoch, at, Bytes(4096, 1)));
  sim::StoreFault slow;
  slow.delay = std::chrono::milliseconds(500);
  world_.set_store_fault("shared", slow);
  world_.inject("shared", sim::FileFault{.times = 2, .operations = static_cast<uint16_t>(sim::FileOp::kWrite),
                                         .path_contains = "objects"});
  int answered = 0;
  for (uint64_t at : {0u, 8192u}) {
    a->send_write(held.image, held.epoch, at, Bytes(4096, 2), [&](Result<wire::Applied> w) {
      EXPECT_EQ(w.status().code(), Code::kIoError);
      ++answered;
    });
  }
  world_.run_for(std::chrono::milliseconds(250));
  EXPECT_EQ(answered, 0);
  world_.set_store_fault("shared", {});
  a->run([&] { return answered == 2; });
  EXPECT_TRUE(outdated());
}

// The loss id is of all images: of those with writes that no sync has covered, what was applied may be gone as well.
TEST_F(RefusedWrites, ASyncThatFailsLeavesNoImageLevelThatItMayHaveSpoilt) {
  auto a = host("host1"), b = host("host2");
  Held failing = held_image(*a, "failing.img", kRegion), held = held_image(*a, "held.img", kRegion),
       synced = held_image(*a, "synced.img", kRegion);
  for (const Held& h : {failing, held, synced}) ASSERT_TRUE(a->write(h.image, h.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(flush(*a, synced));
  fail_next_sync();
  EXPECT_EQ(flush(*a, failing).code(), Code::kIoError);
  EXPECT_FALSE(b->read(failing.image, 0, 4096));
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  EXPECT_TRUE(b->read(synced.image, 0, 4096));
  // Applied and synced again, without what was lost: not before the host has said that it has made the copies equal.
  ASSERT_TRUE(a->write(held.image, held.epoch, 8192, Bytes(4096, 1)));
  ASSERT_TRUE(flush(*a, held));
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  EXPECT_EQ(resume(*a, held, 0).code(), Code::kUnavailable) << "it may have been said before";
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  EXPECT_FALSE(resume(*a, held, 0)) << "nothing in that session has told what was lost";
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(resume(*a, failing, 2));
  ASSERT_TRUE(resume(*a, failing, 0));
  EXPECT_TRUE(made_equal(*a, held));
  EXPECT_TRUE(b->read(held.image, 0, 4096));
}

// In a session of before it says that nothing is missing, not knowing better.
TEST_F(RefusedWrites, ASyncThatFailsIsToldToASessionThatResumesAfterIt) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "held.img", kRegion), failing = held_image(*b, "failing.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(b->write(failing.image, failing.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(a->connect(port_, cluster_));
  fail_next_sync();
  EXPECT_EQ(flush(*b, failing).code(), Code::kIoError);
  EXPECT_EQ(resume(*a, held, 0).code(), Code::kUnavailable);
  EXPECT_TRUE(a->closed);
  EXPECT_TRUE(outdated());
  const LossId before = a->answer.loss_id;
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_NE(a->answer.loss_id, before);
  for (uint8_t alone : {2, 0}) ASSERT_TRUE(resume(*b, failing, alone));
  EXPECT_TRUE(made_equal(*a, held));
  EXPECT_TRUE(b->read(held.image, 0, 4096));
}

// Whether what a run before applied was synced only its holder knows: one that has nothing to ask is asked.
TEST_F(RefusedWrites, ASyncThatFailsIsToldToTheHolderOfWhatAnEarlierRunApplied) {
  auto a = host("host1");
  Held held = held_image(*a, "held.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  ASSERT_TRUE(flush(*a, held));
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(resume(*a, held, 0));
  auto b = host("host2");
  Held failing = held_image(*b, "failing.img", kRegion);
  ASSERT_TRUE(b->write(failing.image, failing.epoch, 0, Bytes(4096, 1)));
  fail_next_sync();
  EXPECT_EQ(flush(*b, failing).code(), Code::kIoError);
  a->run([&] { return a->closed.has_value(); });
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(resume(*a, held, 0));
  EXPECT_TRUE(b->read(held.image, 0, 4096));
}

// Neither changes what a reader sees, and the holder goes on with both copies: nothing would ever end the mark.
TEST_F(RefusedWrites, OfAReservationOrARepairLeaveTheCopyLevel) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  world_.inject("shared", sim::FileFault{.times = 2, .path_contains = "objects", .error = 28});
  const WriteSequence none{Incarnation(1), Counter(0)};
  EXPECT_EQ(a->tell(Type::kZero, wire::encode(wire::Zero{held.image, held.epoch, none, {0, 8192}, 2})).code(),
            Code::kOutOfSpace);
  const Bytes block(4096, 1);
  EXPECT_EQ(a->tell(Type::kRepair, wire::encode(wire::Repair{held.image, held.epoch, {0, 4096}, 0}), block).code(),
            Code::kOutOfSpace);
  EXPECT_FALSE(outdated());
  EXPECT_TRUE(b->read(held.image, 0, 4096));
}

// The verdict is never `healthy` while this copy lacks what a host acknowledged; a moment of it is not worth an alarm.
TEST_F(RefusedWrites, AreAReasonWhileTheHolderIsAwayOrDoesNotMendThem) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", kRegion);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  auto named = [&] {
    std::string all;
    for (const std::string& reason : node_->unhealthy_reasons()) all += reason + "\n";
    return all.find("/disk.img") != std::string::npos && all.find("host1") != std::string::npos;
  };
  world_.run_for(std::chrono::seconds(2));
  ASSERT_TRUE(resume(*a, held, 2));
  world_.run_for(std::chrono::seconds(2));
  EXPECT_TRUE(outdated());
  EXPECT_FALSE(named()) << "it is being mended";
  a->link.reset();
  a->run([&] { return node_->status_json().find("\"holder_connected\":false") != std::string::npos; });
  EXPECT_TRUE(named());
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_FALSE(named());
  ASSERT_TRUE(resume(*a, held, 2));
  world_.run_for(std::chrono::seconds(40));
  EXPECT_TRUE(named()) << "it has not been mended";
  ASSERT_TRUE(resume(*a, held, 0));
  EXPECT_FALSE(named());
  world_.run_for(std::chrono::seconds(2));
  ASSERT_TRUE(resume(*a, held, 2));
  world_.run_for(std::chrono::seconds(2));
  EXPECT_FALSE(named()) << "the time counts anew";
}

}  // namespace
}  // namespace tidemark::node
