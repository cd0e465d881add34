#include <optional>

#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::Type;

// A copy whose objects were cut short, and are long again, is its holder's alone, which compares all of it: durably so.
class CutCopyTest : public NodeTest {
 protected:
  static constexpr uint32_t kSize = 1u << 20;
  void begin() {
    a_ = host("host1");
    b_ = host("host2");
    held_ = held_image(*a_, "disk.img", kSize);
    ASSERT_TRUE(a_->write(held_.image, held_.epoch, 0, Bytes(kSize, 7)));
    ASSERT_TRUE(flush());
    ASSERT_EQ(read_code(*b_), Code::kOk);
    cut(4096);
    ASSERT_EQ(read_code(*b_), Code::kCorruption);
    cut(kSize / 2);   // there are two
    world_.run_for(std::chrono::seconds(6));   // until what was open is closed
  }
  void cut(uint64_t bytes) {
    for (const auto& [path, contents] : world_.files("shared", "/")) {
      if (path.ends_with(".data")) { ASSERT_TRUE(world_.cut_short("shared", path, bytes).is_ok()); }
    }
  }
  void restart(sim::Crash crash) {
    restart_node(crash);
    ASSERT_TRUE(a_->connect(port_, cluster_));
    ASSERT_TRUE(b_->connect(port_, cluster_));
  }
  Code read_code(HostClient& h) { return h.read(held_.image, kSize / 2, 4096).status().code(); }
  Status flush() { return a_->ask<wire::Flushed>(Type::kFlush, wire::Flush{held_.image, held_.epoch}).status(); }
  Code resume(uint8_t alone) {
    wire::Resume say{held_.image, held_.epoch, kSize, Generation(1), alone};
    return a_->ask<wire::Resumed>(Type::kResume, say).status().code();
  }
  Code hash() { return a_->ask<wire::Hashes>(Type::kHash, hash_of(held_.image, {0, kSize}, 65536)).status().code(); }
  Status repair() {
    const wire::Repair all{held_.image, held_.epoch, {0, kSize}, 0};
    return a_->tell(Type::kRepair, wire::encode(all), Bytes(kSize, 7));
  }

  std::unique_ptr<HostClient> a_, b_;
  Held held_;
};

TEST_F(CutCopyTest, ServesNothingUntilItsHolderHasComparedAllOfIt) {
  begin();
  EXPECT_FALSE(a_->invalidated.empty()) << "its holder is told";
  for (int round = 0; round < 3; ++round) {
    EXPECT_NE(read_code(*b_), Code::kOk);
    EXPECT_EQ(resume(0), Code::kCorruption) << "that it lacks nothing is not so";
    EXPECT_EQ(resume(2), Code::kOk);
    EXPECT_EQ(hash(), Code::kCorruption) << "of the dirty regions alone";
    EXPECT_EQ(repair().code(), Code::kCorruption);
    EXPECT_EQ(a_->write(held_.image, held_.epoch, 0, Bytes(4096, 7)).status().code(), Code::kCorruption);
    EXPECT_EQ(flush().code(), Code::kCorruption);
    EXPECT_EQ(read_code(*b_), Code::kIoError) << "its holder is alone";
    restart(round == 0 ? sim::Crash::kKill : sim::Crash::kPowerLoss);
  }
  ASSERT_EQ(resume(3), Code::kOk);
  EXPECT_NE(read_code(*b_), Code::kOk);
  ASSERT_EQ(resume(2), Code::kOk);   // once more, in that session
  EXPECT_EQ(hash(), Code::kOk);
  EXPECT_TRUE(repair());
  EXPECT_TRUE(flush());
  EXPECT_NE(read_code(*b_), Code::kOk);
  ASSERT_EQ(resume(0), Code::kOk);
  EXPECT_EQ(read_code(*b_), Code::kOk);
  restart(sim::Crash::kKill);
  ASSERT_EQ(resume(0), Code::kOk);
  EXPECT_EQ(read_code(*b_), Code::kOk);
  EXPECT_NE(node_->status_json().find("\"outdated\":false"), std::string::npos);
}

TEST_F(CutCopyTest, IsNotMendedByAHolderThatLacksSomethingItself) {
  begin();
  wire::Level level{held_.image, 0, Bytes(1, 1), 1};
  ASSERT_TRUE(a_->tell(Type::kLevel, wire::encode(level)));
  ASSERT_EQ(resume(3), Code::kOk);
  EXPECT_EQ(hash(), Code::kCorruption);
}

// Another host, whose copy is whole on record, reads and asks for the tenure once a second: it is refused, and no more.
TEST_F(CutCopyTest, IsMendedWhileAnotherHostAsksForTheTenure) {
  begin();
  Result<wire::Grant> map = b_->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held_.image});
  ASSERT_TRUE(map) << map.status().message();
  ASSERT_TRUE(b_->tell(Type::kLevel, wire::encode(wire::Level{held_.image, map->map_cut, map->stale_regions})));
  ASSERT_EQ(resume(3), Code::kOk);
  EXPECT_EQ(b_->acquire(held_.image, 0).status().code(), Code::kBusy);
  EXPECT_EQ(hash(), Code::kOk);
  EXPECT_TRUE(repair());
  ASSERT_EQ(resume(0), Code::kOk);
  EXPECT_EQ(read_code(*b_), Code::kOk);
}

TEST_F(CutCopyTest, OfNobodyIsTakenAsItIsByAnOperatorsWord) {
  begin();
  ASSERT_TRUE(a_->yield(held_.image, held_.epoch));
  EXPECT_EQ(read_code(*b_), Code::kCorruption);
  EXPECT_EQ(read_code(*a_), Code::kCorruption);
  auto take = [&](const std::string& more) {
    std::optional<Result<std::string>> said;
    const std::string word = R"({"images":["/disk.img"])" + more + "}";
    node_->takeover(word, [&](Result<std::string> r) { said.emplace(std::move(r)); });
    EXPECT_TRUE(world_.run_until([&] { return said.has_value(); }, std::chrono::seconds(10)));
    return *said;
  };
  EXPECT_EQ(take("").status().code(), Code::kBusy);
  auto shown = take(R"(,"accept_loss":true,"dry_run":true)");
  ASSERT_TRUE(shown) << shown.status().to_string();
  EXPECT_EQ(read_code(*b_), Code::kCorruption) << "only shown";
  cut(4096);
  EXPECT_EQ(take(R"(,"accept_loss":true)").status().code(), Code::kBusy) << "it is too short to be taken";
  cut(kSize / 2);
  auto taken = take(R"(,"accept_loss":true)");
  ASSERT_TRUE(taken) << taken.status().to_string();
  EXPECT_NE(taken->find("\"taken\":true"), std::string::npos) << *taken;
  EXPECT_EQ(read_code(*b_), Code::kOk);
  restart(sim::Crash::kPowerLoss);
  EXPECT_EQ(read_code(*b_), Code::kOk);
}

// It has a tail to keep as a branch, and hears so before it hears of a copy that is not its to mend.
TEST_F(CutCopyTest, DoesNotHideFromAHostThatItWasFencedOrThatAnotherHoldsIt) {
  a_ = host("host1");
  b_ = host("host2");
  auto c = host("host3");
  held_ = held_image(*a_, "disk.img", kSize);
  ASSERT_TRUE(a_->write(held_.image, held_.epoch, 0, Bytes(kSize, 7)));
  ASSERT_TRUE(flush());
  std::optional<Result<std::string>> taken;
  node_->takeover(R"({"images":["/disk.img"],"force":true})",
                  [&](Result<std::string> r) { taken.emplace(std::move(r)); });
  b_->run([&] { return taken.has_value(); });
  ASSERT_TRUE(*taken) << taken->status().message();
  Result<wire::Grant> grant = b_->acquire(held_.image);
  ASSERT_TRUE(grant) << grant.status().message();
  ASSERT_TRUE(b_->write(held_.image, grant->epoch, 0, Bytes(4096, 8)));
  cut(4096);
  ASSERT_EQ(read_code(*c), Code::kCorruption);

  ASSERT_TRUE(a_->connect(port_, cluster_));
  EXPECT_EQ(a_->acquire(held_.image).status().code(), Code::kFenced);
  ASSERT_TRUE(a_->tell(Type::kFenceSeen, wire::encode(wire::FenceSeen{held_.image, Epoch(UINT64_MAX)})));
  EXPECT_EQ(a_->acquire(held_.image, 0).status().code(), Code::kBusy);
  ASSERT_TRUE(b_->yield(held_.image, grant->epoch));
  EXPECT_EQ(a_->acquire(held_.image).status().code(), Code::kCorruption);
}

// Who waits for it was not asked about its copy when it came.
TEST_F(CutCopyTest, IsNotGrantedToAWaiterWithoutAWholeCopy) {
  begin();
  auto c = host("host3");
  std::vector<Code> refused;
  std::vector<HostClient*> waiters{b_.get(), c.get(), b_.get()};
  for (HostClient* waiter : waiters) {
    waiter->link->request<wire::Grant>(Type::kAcquire, wire::Acquire{held_.image, 5000},
                                       [&](Result<wire::Grant> g) { refused.push_back(g.status().code()); });
  }
  a_->run([&] { return !a_->recalls.empty(); });
  EXPECT_TRUE(refused.empty());
  ASSERT_TRUE(a_->yield(held_.image, held_.epoch));
  a_->run([&] { return refused.size() == waiters.size(); });
  EXPECT_EQ(refused, std::vector<Code>(waiters.size(), Code::kCorruption));
  Result<wire::Grant> again = a_->acquire(held_.image, 0);
  ASSERT_TRUE(again) << again.status().message();
  EXPECT_EQ(again->epoch, held_.epoch.next()) << "nobody had it in between";
}

// A takeover's sync that hangs is no request: its copy is closed, with the image or with its policy, when it has ended.
TEST_F(NodeTest, ACopyIsNotClosedWhileTheSyncOfATakeoverHangs) {
  auto a = host("host1"), b = host("host2");
  ASSERT_TRUE(a->create("disk.img"));
  const ImageId image = a->lookup("disk.img")->image;
  Result<wire::Grant> grant = b->acquire(image);   // so that it is known to have all of an image of zeros
  ASSERT_TRUE(grant) << grant.status().message();
  ASSERT_TRUE(b->yield(image, grant->epoch));
  grant = a->acquire(image);
  ASSERT_TRUE(grant) << grant.status().message();
  ASSERT_TRUE(a->resize(image, grant->epoch, 1u << 20, 1));
  restart_node(sim::Crash::kKill);               // so that the sync has work
  world_.run_for(std::chrono::minutes(11));      // before that no nameless image is removed after a start
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(b->connect(port_, cluster_));
  wire::Resume resume{image, grant->epoch, 1u << 20, Generation(1), 0};
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, resume));
  world_.inject("shared", sim::FileFault{.times = UINT64_MAX, .operations = static_cast<uint16_t>(sim::FileOp::kSync),
                                         .path_contains = "objects", .hangs = true});
  std::optional<Result<std::string>> taken, changed;
  node_->takeover(R"({"images": ["/disk.img"], "force": true})",
                  [&](Result<std::string> r) { taken.emplace(std::move(r)); });
  b->run([&] { return taken.has_value(); });
  ASSERT_TRUE(*taken) << taken->status().message();
  ASSERT_GT(world_.hung("shared"), 0u);
  node_->set_policy("/disk.img", "none", [&](Result<std::string> r) { changed.emplace(std::move(r)); });
  b->run([&] { return changed.has_value(); });
  EXPECT_EQ(changed->status().code(), Code::kBusy) << changed->status().message();

  ASSERT_TRUE(b->ask<wire::Changed>(Type::kUnlink, wire::Unlink{InodeNumber(1), "disk.img", 0}));
  ASSERT_TRUE(b->tell(Type::kDrop, wire::encode(wire::Drop{image})));
  world_.crash("host1", sim::Crash::kKill);   // its last user
  a = std::make_unique<HostClient>(world_, "host1");
  a->hello.incarnation = Incarnation(2);
  a->hello.nonce.bytes[0] = 2;
  ASSERT_TRUE(a->connect(port_, cluster_));
  auto objects = [&] {
    size_t n = 0;
    for (const auto& [path, bytes] : world_.files("shared", "/")) n += path.ends_with(".data");
    return n;
  };
  world_.run_for(std::chrono::seconds(3));
  EXPECT_GT(objects(), 0u);
  world_.release_hung("shared");
  EXPECT_TRUE(world_.run_until([&] { return objects() == 0; }, std::chrono::minutes(5))) << "it is never removed";
}

// A backup, say, reads an image that another host writes, and asks every second whether it is free: its map says
// already that it lacks everything, and the holder's writes go on without waiting for that to be written once more.
TEST_F(NodeTest, AHostWithoutACopyThatAsksAgainLeavesTheHoldersRegionsWarm) {
  constexpr uint64_t kRegion = 1u << 20;   // of the fixture
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 4 * kRegion);
  auto write_all = [&] {
    for (uint64_t r = 0; r < 4; ++r) ASSERT_TRUE(a->write(held.image, held.epoch, r * kRegion, Bytes(4096, 1)));
  };
  auto cold = [&] {
    const std::string text = metrics_.text(), name = "\ntidemark_shared_cold_writes_total ";
    return std::stoull(text.substr(text.find(name) + name.size()));
  };
  write_all();
  EXPECT_EQ(b->acquire(held.image, 0, true).status().code(), Code::kBusy);
  write_all();
  const uint64_t before = cold();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(b->acquire(held.image, 0, true).status().code(), Code::kBusy);
    write_all();
  }
  EXPECT_EQ(cold(), before);

  // What it lacks once the image has grown, been given to it, or filled in part, is asked for anew.
  ASSERT_TRUE(a->resize(held.image, held.epoch, 6 * kRegion, 2));
  EXPECT_EQ(b->acquire(held.image, 0, true).status().code(), Code::kBusy);
  ASSERT_TRUE(a->yield(held.image, held.epoch));
  auto granted = b->acquire(held.image, 0, true);
  ASSERT_TRUE(granted) << granted.status().message();
  EXPECT_EQ(granted->copy_known, 0);
  EXPECT_EQ(granted->stale_regions, Bytes{0x3F});
  auto again = b->acquire(held.image, 0, true);
  ASSERT_TRUE(again) << again.status().message();
  EXPECT_EQ(again->copy_known, 0);
  EXPECT_EQ(again->stale_regions, Bytes{0x3F});
  EXPECT_GT(again->map_cut, granted->map_cut);
  // The map of the grant before is void: what it names is of a copy that is gone.
  ASSERT_TRUE(b->tell(Type::kLevel, wire::encode(wire::Level{held.image, granted->map_cut, Bytes{0x3F}})));
  auto third = b->acquire(held.image, 0, false);
  ASSERT_TRUE(third) << third.status().message();
  EXPECT_EQ(third->stale_regions, Bytes{0x3F});
}

}  // namespace
}  // namespace tidemark::node
