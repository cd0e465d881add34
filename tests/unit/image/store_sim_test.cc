// The store on a simulated machine: what a kill or a power cut at any file operation leaves of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "shared/image/store.h"
#include "tests/repeat.h"
#include "tests/sim/sim_env.h"

namespace tidemark::image {
namespace {

constexpr size_t kSector = 512;

ImageId some_image() { return Uuid::from_random({4, 2}); }

// What each sector may hold after a power cut: its content at the last acknowledged sync, any later one, or
// the beginning of a later one before the rest of the synced one (a torn sector).
class DiskModel {
 public:
  explicit DiskModel(uint64_t size) : current(size), versions_(size / kSector) { synced(); }
  void change(uint64_t offset, ByteSpan data) {
    std::copy(data.begin(), data.end(), current.begin() + static_cast<long>(offset));
    for (size_t i = offset / kSector; i * kSector < offset + data.size(); ++i)
      versions_[i].push_back(sector_of(current, i));
  }
  void synced() {
    for (size_t i = 0; i < versions_.size(); ++i) versions_[i] = {sector_of(current, i)};
  }
  bool allows(ByteSpan disk) const {
    for (size_t i = 0; i < versions_.size(); ++i) {
      if (!allows_sector(versions_[i], disk.subspan(i * kSector, kSector))) return false;
    }
    return true;
  }
  void found(ByteSpan disk) {
    current.assign(disk.begin(), disk.end());
    synced();
  }
  Bytes current;

 private:
  using Versions = std::vector<Bytes>;  // the durable one first
  static Bytes sector_of(const Bytes& disk, size_t i) {
    auto begin = disk.begin() + static_cast<long>(i * kSector);
    return Bytes(begin, begin + kSector);
  }
  static bool allows_sector(const Versions& versions, ByteSpan found) {
    const Bytes& durable = versions.front();
    auto kept = std::mismatch(found.rbegin(), found.rend(), durable.rbegin()).first - found.rbegin();
    size_t changed = kSector - static_cast<size_t>(kept);
    return std::any_of(versions.begin(), versions.end(), [&](const Bytes& version) {
      return std::equal(found.begin(), found.begin() + static_cast<long>(changed), version.begin());
    });
  }
  std::vector<Versions> versions_;
};

class StoreSim {
 public:
  explicit StoreSim(uint64_t seed, uint32_t bricks, uint32_t stripes)
      : StoreSim(sim::WorldOptions{.seed = seed}, bricks, stripes) {}
  StoreSim(const sim::WorldOptions& options, uint32_t bricks, uint32_t stripes) : world(options) {
    world.add_node({.name = "host1"});
    options_.name = "main";
    for (uint32_t i = 0; i < bricks; ++i) options_.bricks.push_back("/bricks/" + std::to_string(i));
    options_.stripe_unit = kStripeUnitMin;
    options_.stripe_count = stripes;
    restart();
  }
  ~StoreSim() {
    world.crash("host1", sim::Crash::kKill);
    copy.reset();
  }

  void restart(io::Duration io_deadline) {
    options_.io_deadline = std::chrono::duration_cast<decltype(options_.io_deadline)>(io_deadline);
    world.crash("host1", sim::Crash::kKill);
    restart();
  }
  void restart(const std::vector<KnownRun>& runs) {
    options_.known_runs = runs;
    restart();
  }
  void restart() {
    copy.reset();
    group.reset();
    auto opened = StorageGroup::open(world.start("host1"), options_);
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    group = std::move(opened).value();
    options_.expected_group = group->group_id();
  }
  bool alive() { return world.running("host1"); }

  // The completion, or nothing if the process died first.
  template <typename Start>
  std::optional<Status> wait(Start start) {
    auto result = std::make_shared<std::optional<Status>>();  // shared with a callback that may never run
    start([result](Status s) { *result = std::move(s); });
    world.run_until([&] { return result->has_value() || !alive(); }, std::chrono::hours(1));
    if (!alive()) return std::nullopt;
    return *result;
  }
  std::optional<Status> write(uint64_t offset, ByteSpan data) {
    auto mode = world.random().coin() ? io::IoMode::kInline : io::IoMode::kQueued;
    return wait([&](Callback<Status> done) { copy->write(offset, data, mode, std::move(done)); });
  }
  std::optional<Status> zero(uint64_t offset, uint64_t length) {
    return wait([&](Callback<Status> done) { copy->zero(offset, length, std::move(done)); });
  }
  std::optional<Status> sync() {
    return wait([&](Callback<Status> done) { copy->sync(io::IoMode::kInline, std::move(done)); });
  }
  std::optional<Status> resize(uint64_t size) {
    return wait([&](Callback<Status> done) { copy->resize(size, copy->size_generation().next(), std::move(done)); });
  }
  Bytes contents() {
    Bytes out(copy->size());
    auto read = wait([&](Callback<Status> done) { copy->read(0, out, io::IoMode::kQueued, std::move(done)); });
    EXPECT_TRUE(read && read->is_ok());
    return out;
  }

  sim::World world;
  std::unique_ptr<StorageGroup> group;
  std::unique_ptr<ImageCopy> copy;

 private:
  StorageGroupOptions options_;
};

class StoreCrashTest : public ::testing::TestWithParam<sim::Crash> {};

TEST_P(StoreCrashTest, AcknowledgedSyncsHoldAndAKillLosesNothingAcknowledged) {
  for (uint64_t seed = 1; seed <= seeds_of(16); ++seed) {
    SCOPED_TRACE(seed);
    const uint64_t size = 300 * kSector;
    StoreSim sim(seed, 3, seed % 3 + 1);
    sim.copy = *sim.group->create(some_image(), size);
    DiskModel model(size);
    LossId loss_id = sim.group->loss_id();
    for (int crash = 0; crash < 5; ++crash) {
      sim.world.inject("host1", sim::CrashPoint{.nth = 1 + sim.world.random().below(60), .kind = GetParam()});
      while (sim.alive()) {
        uint64_t first = sim.world.random().below(300),
                 count = 1 + sim.world.random().below(std::min<uint64_t>(300 - first, 40));
        Bytes data(count * kSector);
        sim.world.random().fill(data);
        bool zeroes = sim.world.random().chance(1, 5);
        if (zeroes) std::fill(data.begin(), data.end(), 0);
        model.change(first * kSector, data);
        auto done = zeroes ? sim.zero(first * kSector, data.size()) : sim.write(first * kSector, data);
        if (!done) break;
        ASSERT_TRUE(done->is_ok());
        if (GetParam() == sim::Crash::kKill) model.synced();
        if (!sim.world.random().chance(1, 4)) continue;
        auto synced = sim.sync();
        if (synced) {
          ASSERT_TRUE(synced->is_ok());
          model.synced();
        }
      }
      sim.restart();
      EXPECT_EQ(sim.group->loss_id() != loss_id, GetParam() == sim::Crash::kPowerLoss);
      loss_id = sim.group->loss_id();
      sim.copy = *sim.group->open_image(some_image());
      Bytes found = sim.contents();
      ASSERT_TRUE(model.allows(found));
      // What was found is what a reader sees from now on; make it the durable state, as a recovery would.
      model.found(found);
      ASSERT_TRUE(sim.write(0, Bytes(found.begin(), found.end()))->is_ok());
      ASSERT_TRUE(sim.sync()->is_ok());
    }
  }
}

TEST_P(StoreCrashTest, CreateRemoveAndResizeAreWholeOrNotAtAll) {
  for (uint64_t seed = 1; seed <= seeds_of(60); ++seed) {
    SCOPED_TRACE(seed);
    StoreSim sim(seed, 2, 2);
    for (int crash = 0; crash < 6; ++crash) {
      sim.world.inject("host1", sim::CrashPoint{.nth = 1 + sim.world.random().below(25), .kind = GetParam()});
      std::set<uint64_t> sizes;  // that a restart may find; 0: no image
      if (auto opened = sim.group->open_image(some_image()))
        sizes = {(*opened)->size()}, sim.copy = std::move(opened).value();
      else
        sizes = {0};
      while (sim.alive()) {
        if (!sim.copy) {
          sizes.insert(200 * kSector);
          auto made = sim.group->create(some_image(), 200 * kSector);
          if (!sim.alive()) break;
          ASSERT_TRUE(made.is_ok()) << made.status().to_string();
          sim.copy = std::move(made).value();
          sizes = {200 * kSector};
          auto written = sim.write(0, Bytes(200 * kSector, 0xAA));
          if (written) { ASSERT_TRUE(written->is_ok()); }
        } else if (sim.world.random().chance(1, 4)) {
          sizes.insert(0);
          Status removed = sim.group->remove(some_image());
          if (!sim.alive()) break;
          ASSERT_TRUE(removed.is_ok()) << removed.to_string();
          sim.copy.reset();
          sizes = {0};
        } else {
          uint64_t size = (1 + sim.world.random().below(400)) * kSector;
          sizes.insert(size);
          auto resized = sim.resize(size);
          if (!resized) break;
          ASSERT_TRUE(resized->is_ok()) << resized->to_string();
          sizes = {size};
        }
      }
      sim.restart();
      auto catalogue = sim.group->list();
      ASSERT_TRUE(catalogue.is_ok());
      ASSERT_TRUE(catalogue->damaged.empty()) << catalogue->damaged[0].to_string();
      uint64_t found = catalogue->images.empty() ? 0 : catalogue->images[0].size;
      EXPECT_TRUE(sizes.contains(found)) << found;
      ASSERT_TRUE(sim.group->sweep_orphans().is_ok());
      if (found == 0) continue;
      auto opened = sim.group->open_image(some_image());
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    }
  }
}

TEST_P(StoreCrashTest, WhatAShrinkCutOffStaysGone) {
  for (uint64_t seed = 1; seed <= seeds_of(40); ++seed) {
    SCOPED_TRACE(seed);
    StoreSim sim(seed, 2, 2);
    sim.copy = *sim.group->create(some_image(), 1000 * kSector);
    ASSERT_TRUE(sim.write(0, Bytes(1000 * kSector, 0xAA))->is_ok());
    ASSERT_TRUE(sim.sync()->is_ok());
    const uint64_t kept = sim.world.random().below(900 * kSector);
    for (uint64_t size : {kept, 1000 * kSector}) {
      sim.world.inject("host1", sim::CrashPoint{.nth = 1 + sim.world.random().below(12), .kind = GetParam()});
      (void)sim.resize(size);  // may die on the way
      sim.world.crash("host1", GetParam());
      sim.restart();
      sim.copy = *sim.group->open_image(some_image());
      if (sim.copy->size() != size) { ASSERT_TRUE(sim.resize(size)->is_ok()); }
    }
    Bytes expected(1000 * kSector, 0);
    std::fill_n(expected.begin(), kept, 0xAA);
    ASSERT_TRUE(sim.contents() == expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, StoreCrashTest, ::testing::Values(sim::Crash::kKill, sim::Crash::kPowerLoss),
                         [](const auto& info) { return info.param == sim::Crash::kKill ? "Kill" : "PowerLoss"; });

TEST(StoreSimulation, AFullDiskIsToldAndHarmsNothing) {
  StoreSim sim(3, 1, 1);
  sim.copy = *sim.group->create(some_image(), 1u << 20);
  ASSERT_TRUE(sim.write(0, Bytes(65536, 1))->is_ok());
  sim.world.set_disk_bytes("host1", 80'000);
  EXPECT_EQ(sim.write(65536, Bytes(65536, 2))->code(), Code::kOutOfSpace);
  EXPECT_TRUE(sim.write(0, Bytes(65536, 3))->is_ok()) << "what is allocated can be overwritten";
  Bytes found = sim.contents();
  EXPECT_EQ(found[0], 3);
  EXPECT_EQ(found[65536], 0);
}

struct CutImage : StoreSim {
  static constexpr uint64_t kSize = 1u << 20;
  explicit CutImage(uint64_t seed, uint32_t stripes) : StoreSim(seed, 2, stripes) {
    copy = *group->create(some_image(), kSize);
    EXPECT_TRUE(write(0, Bytes(kSize, 1))->is_ok());
    EXPECT_TRUE(sync()->is_ok());
  }
  void cut_at(uint64_t bytes) {
    int objects = 0;
    for (const auto& [path, contents] : world.files("host1", "/bricks")) {
      if (!path.ends_with(".data")) continue;
      ++objects;
      EXPECT_TRUE(world.cut_short("host1", path, bytes).is_ok());
    }
    EXPECT_NE(objects, 0);
  }
  Status read_at(uint64_t offset) {
    Bytes out(4096);
    auto done = wait([&](Callback<Status> d) { copy->read(offset, out, io::IoMode::kQueued, std::move(d)); });
    return done ? *done : Status(Code::kCancelled, "dead");
  }
};

TEST(StoreSimulation, WhatACutTookIsNeverMadeAHole) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    {   // by a write, or a reservation, of the last granule: it is refused
      CutImage sim(seed, seed % 2 + 1);
      sim.cut_at(8192);
      const uint64_t length = seed % 3 == 0 ? 512 : 4096, last = CutImage::kSize - length;
      auto done = seed % 4 == 0 ? sim.wait([&](Callback<Status> d) { sim.copy->allocate(last, length, std::move(d)); })
                                : sim.write(last, Bytes(length, 2));
      ASSERT_EQ(done->code(), Code::kCorruption) << done->to_string();
      EXPECT_EQ(sim.read_at(512 << 10).code(), Code::kCorruption);
    }
    {   // by one between: the next sync finds it, and nothing before it counts from then on
      CutImage sim(seed, seed % 2 + 1);
      sim.cut_at(8192);
      ASSERT_TRUE(sim.write(512 << 10, Bytes(4096, 2))->is_ok());
      EXPECT_EQ(sim.sync()->code(), Code::kCorruption);
      EXPECT_EQ(sim.read_at(256 << 10).code(), Code::kCorruption);
    }
    {   // what was written below the cut leaves the rest readable
      CutImage sim(seed, 1);
      ASSERT_TRUE(sim.write(4096, Bytes(4096, 2))->is_ok());
      sim.cut_at(512 << 10);
      EXPECT_EQ(sim.read_at(768 << 10).code(), Code::kCorruption);
      EXPECT_TRUE(sim.read_at(4096).is_ok());
      EXPECT_TRUE(sim.read_at(256 << 10).is_ok());
    }
  }
}

// Killed at any moment of an opening; then the power goes while the next one has just told its state what it found.
TEST(StoreSimulation, AKillAndThenAPowerCutRefuseNoBrick) {
  for (uint64_t seed = 1; seed <= seeds_of(12); ++seed) {
    for (uint64_t nth = 1;; ++nth) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", operation " + std::to_string(nth));
      StoreSim sim(seed, 2, 1);
      std::vector<KnownRun> runs;
      auto keep = [&](const std::vector<KnownRun>& now) {
        if (!sim.alive()) return Status(Code::kIoError, "the process is dead");
        runs = now;
        return Status::ok();
      };
      ASSERT_TRUE(sim.group->begin_run(keep));
      sim.world.crash("host1", sim::Crash::kKill);
      sim.restart(runs);
      sim.world.inject("host1", sim::CrashPoint{.nth = nth});
      const bool begun = sim.group->begin_run(keep).is_ok();
      sim.world.clear_faults("host1");
      if (sim.alive()) sim.world.crash("host1", sim::Crash::kKill);
      sim.restart(runs);
      EXPECT_FALSE(sim.group->begin_run([&](const std::vector<KnownRun>& now) {
        EXPECT_TRUE(keep(now));
        sim.world.crash("host1", sim::Crash::kPowerLoss);
        return Status(Code::kIoError, "the power is gone");
      }));
      sim.restart(runs);
      if (HasFatalFailure()) return;
      ASSERT_TRUE(sim.group->begin_run(keep));
      if (!begun) continue;
      EXPECT_GT(nth, 4u);   // it did crash at some
      break;
    }
  }
}

// The side file has a size that was refused, or may have it after a loss of power, and cannot be written: the next open
// would cut the image there, or find it shorter. What is called done from then on holds, whatever the next open finds.
TEST(StoreSimulation, NothingCountsWhileTheSideFileMayHaveASizeThatWasRefused) {
  constexpr uint64_t kSize = 1u << 20;
  const auto only = [](sim::FileOp op) { return static_cast<uint16_t>(op); };
  for (uint64_t seed = 1; seed <= seeds_of(60); ++seed) {
    for (uint64_t refused : {uint64_t{0}, kSize / 2, 2 * kSize}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", to " + std::to_string(refused));
      StoreSim sim(seed, 2, seed % 2 + 1);
      const auto fail = [&](sim::FileOp op, const char* path, uint64_t nth, uint64_t times) {
        sim.world.inject("host1", {.nth = nth, .times = times, .operations = only(op), .path_contains = path});
      };
      sim.copy = *sim.group->create(some_image(), kSize);
      ASSERT_TRUE(sim.write(0, Bytes(kSize, 1))->is_ok());
      ASSERT_TRUE(sim.sync()->is_ok());
      const bool written_back = seed % 4 < 2;   // the former size, though its name is not durable
      fail(sim::FileOp::kSyncDirectory, "objects", 1, written_back ? 2 : 1);
      if (!written_back) fail(sim::FileOp::kWrite, ".meta", 2, 1u << 20);
      ASSERT_FALSE(sim.resize(refused)->is_ok());
      if (written_back) fail(sim::FileOp::kWrite, ".meta", 1, 1u << 20);
      EXPECT_EQ(sim.copy->size(), kSize);
      EXPECT_FALSE(sim.resize(refused)->is_ok());
      EXPECT_FALSE(sim.write(kSize - 4096, Bytes(4096, 2))->is_ok());
      EXPECT_FALSE(sim.sync()->is_ok());
      EXPECT_EQ(sim.contents(), Bytes(kSize, 1));
      sim.world.clear_faults("host1");
      EXPECT_FALSE(sim.write(kSize - 4096, Bytes(4096, 2))->is_ok()) << "tried again without a pause";
      sim.world.run_for(std::chrono::seconds(2));
      const bool goes_on = seed % 3 != 0;
      if (goes_on) {
        EXPECT_TRUE(sim.write(kSize - 4096, Bytes(4096, 2))->is_ok());
        EXPECT_TRUE(sim.sync()->is_ok());
      }
      sim.world.crash("host1", seed % 5 < 2 ? sim::Crash::kKill : sim::Crash::kPowerLoss);
      sim.restart();
      auto found = sim.group->open_image(some_image());
      ASSERT_TRUE(found.is_ok()) << found.status().to_string();
      sim.copy = std::move(*found);
      EXPECT_TRUE(sim.copy->size() == kSize || (!goes_on && sim.copy->size() == refused)) << sim.copy->size();
      const Bytes now = sim.contents();
      if (goes_on && now.size() == kSize) { EXPECT_EQ(now.back(), 2); }
      if (!now.empty()) { EXPECT_EQ(now.front(), 1); }
    }
  }
}

// The side file was not touched, and cannot be read either: nothing could be looked at, and nothing need be.
TEST(StoreSimulation, AResizeThatCouldOpenNoFileLeavesNoDoubt) {
  constexpr uint64_t kSize = 1u << 20;
  for (int error : {ENOENT, EMFILE, ENFILE}) {
    for (uint64_t refused : {uint64_t{0}, 2 * kSize}) {
      SCOPED_TRACE("error " + std::to_string(error) + ", to " + std::to_string(refused));
      StoreSim sim(7, 2, 2);
      sim.copy = *sim.group->create(some_image(), kSize);
      ASSERT_TRUE(sim.write(0, Bytes(kSize, 1))->is_ok());
      for (sim::FileOp op : {sim::FileOp::kRead, sim::FileOp::kWrite}) {
        sim.world.inject("host1", {.times = 1u << 20, .operations = static_cast<uint16_t>(op), .path_contains = ".meta",
                                   .error = error});
      }
      ASSERT_FALSE(sim.resize(refused)->is_ok());
      EXPECT_TRUE(sim.write(kSize - 4096, Bytes(4096, 2))->is_ok());
      EXPECT_TRUE(sim.sync()->is_ok());
      sim.world.clear_faults("host1");
      sim.world.crash("host1", sim::Crash::kPowerLoss);
      sim.restart();
      sim.copy = *sim.group->open_image(some_image());
      ASSERT_EQ(sim.copy->size(), kSize);
      EXPECT_EQ(sim.contents().back(), 2);
    }
  }
}

// What takes long since it is long is no hang; a step of it that hangs is one.
class LongWorkTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSize = 64u << 20;
  static constexpr std::chrono::milliseconds kDeadline{500};
  static constexpr std::chrono::milliseconds kEach{12};
  LongWorkTest() : sim_({.seed = 5, .file_latency = {kEach, kEach}}, 2, 2) {
    sim_.restart(kDeadline);
    sim_.copy = *sim_.group->create(some_image(), kSize);
    sim_.group->on_overdue([this](ImageId) { ++told_; });
    sim::FileFault no_punch;
    no_punch.times = UINT64_MAX;
    no_punch.operations = static_cast<uint16_t>(sim::FileOp::kPunch);
    no_punch.error = EOPNOTSUPP;
    sim_.world.inject("host1", no_punch);
  }
  void begin_zero() {
    sim_.copy->zero(0, kSize, [this](Status s) { zeroed_ = std::move(s); });
  }
  StoreSim sim_;
  std::optional<Status> zeroed_;
  int told_ = 0;
};

TEST_F(LongWorkTest, ADiscardThatIsWrittenAsZerosIsNoHang) {
  for (uint64_t at = 0; at < kSize; at += kSize / 8) ASSERT_TRUE(sim_.write(at, Bytes(4096, 3))->is_ok());
  const auto begun = sim_.world.elapsed();
  begin_zero();
  ASSERT_TRUE(sim_.world.run_until([&] { return zeroed_.has_value(); }, std::chrono::minutes(1)));
  EXPECT_TRUE(zeroed_->is_ok()) << zeroed_->to_string();
  EXPECT_GT(sim_.world.elapsed() - begun, 2 * kDeadline) << "nothing was shown";
  EXPECT_EQ(told_, 0);
  EXPECT_TRUE(sim_.copy->idle());
  EXPECT_EQ(sim_.contents(), Bytes(kSize, 0));
}

// Also where another brick gets on with its part.
TEST_F(LongWorkTest, AStepOfADiscardThatHangsIsTold) {
  begin_zero();
  sim_.world.run_for(std::chrono::milliseconds(100));
  EXPECT_EQ(told_, 0);
  sim_.world.inject("host1", {.path_contains = "/bricks/1", .hangs = true});
  sim_.world.run_for(kDeadline + kDeadline / 2);
  EXPECT_FALSE(zeroed_);
  EXPECT_GT(told_, 0);
  sim_.world.release_hung("host1");
  ASSERT_TRUE(sim_.world.run_until([&] { return zeroed_.has_value(); }, std::chrono::minutes(1)));
  EXPECT_TRUE(zeroed_->is_ok());
}

TEST(StoreSimulation, ASeedReplaysExactly) {
  auto hash = [] {
    StoreSim sim(11, 3, 3);
    sim.copy = *sim.group->create(some_image(), 1u << 20);
    for (int i = 0; i < 50; ++i) {
      Bytes data(1 + sim.world.random().below(9000));
      sim.world.random().fill(data);
      EXPECT_TRUE(sim.write(sim.world.random().below(1'000'000), data)->is_ok());
    }
    return sim.world.trace_hash();
  };
  EXPECT_EQ(hash(), hash());
}

}  // namespace
}  // namespace tidemark::image
