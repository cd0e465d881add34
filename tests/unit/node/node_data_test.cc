#include <random>

#include "shared/base/limits.h"
#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::Type;

Bytes pattern(size_t size, uint8_t seed) {
  Bytes out(size);
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<uint8_t>(i * 31 + seed);
  return out;
}

TEST_F(NodeTest, AWriteIsReadBackByAnyHost) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Bytes data = pattern(5000, 1);
  Result<wire::Applied> applied = a->write(held.image, held.epoch, 70000, data);
  ASSERT_TRUE(applied) << applied.status().message();
  EXPECT_EQ(applied->loss_id, a->answer.loss_id);
  Result<Bytes> got = b->read(held.image, 69999, 5002);
  ASSERT_TRUE(got);
  EXPECT_EQ((*got)[0], 0);
  EXPECT_EQ(Bytes(got->begin() + 1, got->end() - 1), data);
  Result<Bytes> past = b->read(held.image, (1u << 20) - 10, 100);
  ASSERT_TRUE(past);
  EXPECT_EQ(*past, Bytes(100, 0));
}

TEST_F(NodeTest, CoordinatorSequencesGrowAndAreNeverUsedAgain) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  uint64_t last = 0;
  for (int i = 0; i < 5; ++i) {
    Result<wire::Applied> applied = a->write(held.image, held.epoch, 0, pattern(512, 1));
    ASSERT_TRUE(applied);
    EXPECT_GT(applied->coordinator.value, last);
    last = applied->coordinator.value;
  }
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  Result<wire::Resumed> resumed =
      a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 0});
  ASSERT_TRUE(resumed) << resumed.status().message();
  EXPECT_GE(resumed->coordinator.value, last);
  Result<wire::Applied> applied = a->write(held.image, held.epoch, 0, pattern(512, 2));
  ASSERT_TRUE(applied);
  EXPECT_GT(applied->coordinator.value, last);
}

TEST_F(NodeTest, AFlushedWriteSurvivesAPowerLossAndTheLossIdChanges) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Bytes data = pattern(300000, 5);
  ASSERT_TRUE(a->write(held.image, held.epoch, 4096, data));
  Result<wire::Flushed> flushed = a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch});
  ASSERT_TRUE(flushed) << flushed.status().message();
  LossId before = flushed->loss_id;
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_NE(a->answer.loss_id, before);
  EXPECT_EQ(a->answer.boot, Incarnation(2));
  Result<Bytes> got = a->read(held.image, 4096, 300000);
  ASSERT_TRUE(got);
  EXPECT_EQ(*got, data);
}

TEST_F(NodeTest, AnAppliedWriteSurvivesAKillUnderTheSameLossId) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Bytes data = pattern(8192, 5);
  Result<wire::Applied> applied = a->write(held.image, held.epoch, 4096, data);
  ASSERT_TRUE(applied);
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->answer.loss_id, applied->loss_id);
  EXPECT_EQ(*a->read(held.image, 4096, 8192), data);
}

TEST_F(NodeTest, AFailedSyncFailsTheFlushAndChangesTheLossId) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Result<wire::Applied> applied = a->write(held.image, held.epoch, 0, pattern(4096, 1));
  ASSERT_TRUE(applied);
  sim::FileFault fault;
  fault.operations = static_cast<uint16_t>(sim::FileOp::kSync);
  world_.inject("shared", fault);
  EXPECT_FALSE(a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch}));
  Result<wire::Flushed> again = a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch});
  ASSERT_TRUE(again);
  EXPECT_NE(again->loss_id, applied->loss_id);
}

TEST_F(NodeTest, OverlappingWritesOfABadHostStillApplyWhole) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  int answered = 0;
  std::vector<Bytes> data;
  for (uint8_t i = 0; i < 40; ++i) data.push_back(Bytes(10000, i));
  for (const Bytes& d : data) {
    a->send_write(held.image, held.epoch, 1000, d, [&](Result<wire::Applied> r) { answered += r ? 1 : 0; });
  }
  a->run([&] { return answered == 40; });
  EXPECT_EQ(*a->read(held.image, 1000, 10000), data.back());
}

TEST_F(NodeTest, ZeroDiscardAndAllocate) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(300000, 0xAA)));
  auto zero = [&](uint64_t offset, uint64_t length, uint8_t kind) {
    a->counter = a->counter.next();
    return a
        ->ask<wire::Applied>(
            Type::kZero, wire::Zero{held.image, held.epoch, {a->hello.incarnation, a->counter}, {offset, length}, kind})
        .status();
  };
  EXPECT_TRUE(zero(1000, 5000, 0));
  EXPECT_TRUE(zero(65536, 65536, 1));
  EXPECT_TRUE(zero(0, 4096, 2)) << "allocating leaves the contents";
  EXPECT_FALSE(zero(1u << 20, 1, 0));
  EXPECT_FALSE(zero(UINT64_MAX, 4096, 0));
  Bytes want(300000, 0xAA);
  std::fill(want.begin() + 1000, want.begin() + 6000, 0);
  std::fill(want.begin() + 65536, want.begin() + 131072, 0);
  EXPECT_EQ(*a->read(held.image, 0, 300000), want);
}

TEST_F(NodeTest, ResizeIsDurableRepeatableAndOrderedByItsGeneration) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 100000);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(100000, 1)));
  EXPECT_TRUE(a->resize(held.image, held.epoch, 50000, 2));
  EXPECT_TRUE(a->resize(held.image, held.epoch, 50000, 2)) << "said again after a lost answer";
  EXPECT_FALSE(a->resize(held.image, held.epoch, 70000, 2));
  EXPECT_TRUE(a->resize(held.image, held.epoch, 90000, 3));
  EXPECT_FALSE(a->resize(held.image, held.epoch, limits::kImageBytesMax + 1, 4));
  // Refused, it goes on alone for all that is known here, until it says that the copies are level.
  EXPECT_FALSE(b->read(held.image, 0, 4096));
  for (uint8_t alone : {2, 0}) {
    ASSERT_TRUE(a->ask<wire::Resumed>(wire::Type::kResume,
                                      wire::Resume{held.image, held.epoch, 90000, Generation(3), alone}));
  }
  Result<wire::Attr> attr = b->lookup("disk.img");
  ASSERT_TRUE(attr);
  EXPECT_EQ(attr->size, 90000u);
  EXPECT_EQ(attr->size_generation, Generation(3));
  EXPECT_EQ(attr->holder, "host1");
  EXPECT_FALSE(b->invalidated.empty());
  Bytes want(90000, 0);
  std::fill(want.begin(), want.begin() + 50000, 1);
  EXPECT_EQ(*b->read(held.image, 0, 90000), want);
  EXPECT_FALSE(a->write(held.image, held.epoch, 89999, Bytes(2, 1)));
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(b->connect(port_, cluster_));
  EXPECT_EQ(b->lookup("disk.img")->size, 90000u);
}

TEST_F(NodeTest, ResumeAdoptsTheNewerSize) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 100000);
  auto resume = [&](uint64_t size, uint64_t generation) {
    return a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, size, Generation(generation), 1});
  };
  Result<wire::Resumed> r = resume(200000, 5);
  ASSERT_TRUE(r) << r.status().message();
  EXPECT_EQ(r->size, 200000u);
  EXPECT_EQ(r->size_generation, Generation(5));
  r = resume(1, 1);
  ASSERT_TRUE(r);
  EXPECT_EQ(r->size, 200000u) << "the shared node's is newer: the host adopts it";
  EXPECT_TRUE(a->write(held.image, held.epoch, 199000, Bytes(1000, 1)));
}

TEST_F(NodeTest, RepairWritesWithoutASequence) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Result<wire::Applied> before = a->write(held.image, held.epoch, 0, pattern(4096, 1));
  ASSERT_TRUE(before);
  Bytes data = pattern(8192, 9);
  EXPECT_TRUE(a->tell(Type::kRepair, wire::encode(wire::Repair{held.image, held.epoch, {4096, 8192}, 0}), data));
  EXPECT_TRUE(a->tell(Type::kRepair, wire::encode(wire::Repair{held.image, held.epoch, {0, 4096}, 1})));
  EXPECT_EQ(*a->read(held.image, 4096, 8192), data);
  EXPECT_EQ(*a->read(held.image, 0, 4096), Bytes(4096, 0));
  Result<wire::Applied> after = a->write(held.image, held.epoch, 0, pattern(4096, 1));
  EXPECT_EQ(after->coordinator.value, before->coordinator.value + 1);
  auto b = host("host2");
  EXPECT_EQ(b->tell(Type::kRepair, wire::encode(wire::Repair{held.image, held.epoch, {0, 4096}, 1})).code(),
            Code::kFenced);
}

TEST_F(NodeTest, HashesRereadStorageAndNameHoles) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1000000);
  Bytes data = pattern(100000, 3);
  ASSERT_TRUE(a->write(held.image, held.epoch, 262144, data));
  wire::Hash ask = hash_of(held.image, {0, 1000000}, 65536);
  Result<wire::Hashes> got = a->ask<wire::Hashes>(Type::kHash, ask);
  ASSERT_TRUE(got) << got.status().message();
  ASSERT_EQ(got->digests.size(), 16u);
  Bytes whole(1000000, 0);
  std::copy(data.begin(), data.end(), whole.begin() + 262144);
  for (size_t i = 0; i < 16; ++i) {
    size_t length = std::min<size_t>(65536, whole.size() - i * 65536);
    EXPECT_EQ(got->digests[i], keyed_digest(ask.key, ByteSpan(whole).subspan(i * 65536, length))) << i;
    EXPECT_EQ(got->holes[i], i == 4 || i == 5 ? 0 : 1) << i;
  }
  EXPECT_FALSE(a->ask<wire::Hashes>(Type::kHash, hash_of(held.image, {0, limits::kHashBytesMax + 1}, 65536)));
  EXPECT_FALSE(a->ask<wire::Hashes>(Type::kHash, hash_of(held.image, {0, 4096}, 1000)));
  EXPECT_FALSE(a->ask<wire::Hashes>(Type::kHash, hash_of(held.image, {0, 4096}, 0)));

  Result<wire::ExtentList> extents = a->ask<wire::ExtentList>(Type::kExtents, wire::Extents{held.image, 0, 100});
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->extents.size(), 1u);
  EXPECT_LE(extents->extents[0].offset, 262144u);
  EXPECT_GE(extents->extents[0].end(), 362144u);
  EXPECT_EQ(extents->next_offset, 1000000u);
}

TEST_F(NodeTest, AnImageWithoutAMirrorHasNoBlocksHere) {
  auto a = host("host1");
  Result<wire::Attr> attr = a->create("local.img", InodeNumber(1), wire::NodeKind::kImage, 0);
  ASSERT_TRUE(attr);
  Result<wire::Grant> grant = a->acquire(attr->image);
  ASSERT_TRUE(grant);
  EXPECT_TRUE(a->resize(attr->image, grant->epoch, 1u << 20, 1));
  EXPECT_EQ(a->lookup("local.img")->size, 1u << 20);
  Status told = a->write(attr->image, grant->epoch, 0, Bytes(4096, 1)).status();
  EXPECT_EQ(told.code(), Code::kUnavailable) << "its holder will hear of it";
  EXPECT_EQ(a->read(attr->image, 0, 4096).status().code(), Code::kUnsupported);
}

// A model disk under many overlapping requests of the holder's own making, with crashes between.
TEST_F(NodeTest, RandomWritesMatchAModelOverRestarts) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Bytes model(1u << 20, 0);
  std::mt19937_64 random(5);
  for (int round = 0; round < 6; ++round) {
    int answered = 0, sent = 0;
    for (int i = 0; i < 60; ++i) {
      // One granule each: nothing that overlaps is in flight, as the protocol demands of a host.
      uint64_t granule = (random() % 4) * 64 + static_cast<uint64_t>(i);
      uint64_t offset = granule * 4096 + random() % 2000;
      Bytes data(1 + random() % 2000, static_cast<uint8_t>(random()));
      std::copy(data.begin(), data.end(), model.begin() + static_cast<ptrdiff_t>(offset));
      a->send_write(
          held.image, held.epoch, offset, data, [&](Result<wire::Applied> r) { answered += r ? 1 : 0; },
          random() % 8 == 0);
      ++sent;
    }
    a->run([&] { return answered == sent; });
    EXPECT_EQ(*a->read(held.image, 0, 1u << 20), model);
    if (round % 2 == 0) continue;
    if (round % 4 == 3) { ASSERT_TRUE(a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch})); }
    restart_node(round % 4 == 3 ? sim::Crash::kPowerLoss : sim::Crash::kKill);
    ASSERT_TRUE(a->connect(port_, cluster_));
    ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 0}));
    EXPECT_EQ(*a->read(held.image, 0, 1u << 20), model) << "round " << round;
  }
}


TEST_F(NodeTest, ARefusedResizeChangesNothing) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  EXPECT_FALSE(a->resize(held.image, held.epoch, uint64_t{1} << 62, 2));
  EXPECT_NE(node_->status_json().find("\"region_bytes\":1048576"), std::string::npos) << node_->status_json();
}

// The copy's side file counts: whoever asks learns the size that the copy has, or it would refuse what lies between.
TEST_F(NodeTest, AHalfDoneShrinkIsToldAtTheNextResume) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(1u << 20, 1)));
  sim::FileFault fault;
  fault.operations = static_cast<uint16_t>(sim::FileOp::kTruncate);
  world_.inject("shared", fault);
  EXPECT_FALSE(a->resize(held.image, held.epoch, 4096, 2));
  wire::Resume ask{held.image, held.epoch, 1u << 20, Generation(1), 2};   // it went on alone
  Result<wire::Resumed> r = a->ask<wire::Resumed>(Type::kResume, ask);
  ASSERT_TRUE(r) << r.status().message();
  EXPECT_EQ(r->size, 4096u);
  EXPECT_EQ(r->size_generation, Generation(2));
  EXPECT_TRUE(a->resize(held.image, held.epoch, 8192, 3));
}

// On striped storage each stripe unit is an extent of its own to the files: one answer walks a bounded number.
TEST_F(NodeTest, OneExtentListWalksABoundedNumberOfStripes) {
  auto a = host("host1");
  constexpr uint64_t kSize = 80ull << 20, kPiecesMax = 1024;
  Held held = held_image(*a, "disk.img", kSize);
  a->counter = a->counter.next();
  wire::Zero allocate{held.image, held.epoch, {a->hello.incarnation, a->counter}, {0, kSize}, 2};
  ASSERT_TRUE(a->ask<wire::Applied>(Type::kZero, allocate));
  uint64_t at = 0;
  int asked = 0;
  while (at < kSize && asked < 100) {
    Result<wire::ExtentList> list = a->ask<wire::ExtentList>(Type::kExtents, wire::Extents{held.image, at, 256});
    ASSERT_TRUE(list);
    ASSERT_EQ(list->extents.size(), 1u);
    EXPECT_EQ(list->extents[0].offset, at);
    EXPECT_LE(list->extents[0].length, kPiecesMax * (64u << 10));
    at = list->next_offset;
    EXPECT_EQ(list->extents[0].end(), at);
    ++asked;
  }
  EXPECT_EQ(at, kSize);
}

// A flush that is answered before a write says so by the number up to which it is durable.
TEST_F(NodeTest, AFlushClaimsNoWriteThatItDidNotWaitFor) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 8u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  int overtaken = 0;
  for (uint64_t i = 1; i <= 40; ++i) {
    std::optional<CoordinatorSequence> flushed, written;
    bool written_first = false;
    a->send_write(held.image, held.epoch, i * 65536, Bytes(65536, 2), [&](Result<wire::Applied> r) {
      ASSERT_TRUE(r);
      written = r->coordinator;
      written_first = !flushed;
    });
    wire::Flush flush{held.image, held.epoch};
    a->link->request<wire::Flushed>(Type::kFlush, flush, [&](Result<wire::Flushed> r) {
      ASSERT_TRUE(r);
      flushed = r->durable_up_to;
    });
    a->run([&] { return flushed && written; });
    if (written_first) continue;
    ++overtaken;
    EXPECT_LT(flushed->value, written->value);
  }
  EXPECT_GT(overtaken, 0);
}

}  // namespace
}  // namespace tidemark::node
