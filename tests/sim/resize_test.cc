// Sizes that changed on one copy and not on another: alone, on a line that lost, in a resize that failed, in a crash.
#include <tuple>

#include "shared/base/limits.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kRegion = Lab::kRegion;
constexpr int kNoSpace = 28, kEio = 5;

// host1 is cut off and goes on alone; host2 takes the image, of which host1 keeps its tail when it is back.
class LostLine : public testing::Test {
 protected:
  void begin() {
    auto first = lab_.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    first_ = *first;
    inode_ = lab_.inode_of("host1");
    ASSERT_TRUE(lab_.healthy("host1"));
    lab_.world.partition("host1", "shared1");
  }
  void take() {
    auto taken = lab_.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}");
    ASSERT_TRUE(taken.is_ok() && taken->find("\"taken\":true") != std::string::npos)
        << (taken ? *taken : taken.status().to_string());
    auto second = lab_.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    second_ = *second;
  }
  void come_back() {
    lab_.engine("host2").release(second_);
    lab_.world.heal_all();
    ASSERT_TRUE(lab_.world.run_until([&] { return lab_.engine("host1").branches().size() == 1; }, seconds(120)));
    ASSERT_TRUE(lab_.healthy("host1"));
    lab_.engine("host1").release(first_);
    auto again = lab_.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    first_ = *again;
  }
  int byte_on(const char* host, fs::HandleId handle, uint64_t offset) {
    auto got = lab_.read(host, handle, offset);
    EXPECT_TRUE(got.is_ok()) << got.status().to_string();
    return got ? *got : -1;
  }

  Lab lab_{7};
  fs::HandleId first_, second_;
  InodeNumber inode_;
};

TEST_F(LostLine, AShrinkOfItCutsNothingOffTheMainLine) {
  begin();
  ASSERT_TRUE(lab_.resize("host1", inode_, kRegion).is_ok());
  take();
  ASSERT_TRUE(lab_.write("host2", second_, 2 * kRegion, 'b').is_ok());
  ASSERT_TRUE(lab_.flush("host2", second_).is_ok());
  come_back();
  EXPECT_EQ(byte_on("host1", first_, 2 * kRegion), 'b');
  ASSERT_TRUE(lab_.write("host1", first_, 0, 'c').is_ok());
  EXPECT_EQ(byte_on("host1", first_, 2 * kRegion), 'b');
  ASSERT_TRUE(lab_.healthy("host1"));
  EXPECT_EQ(lab_.verify("host1"), "");
}

// Each line was resized once, so that both sizes have the same number.
TEST_F(LostLine, AGrowOfItIsNotSeenWhereTheMainLineGrowsLater) {
  begin();
  ASSERT_TRUE(lab_.resize("host1", inode_, 8 * kRegion).is_ok());
  ASSERT_TRUE(lab_.write("host1", first_, 0, 't', 8 * kRegion).is_ok());
  take();
  ASSERT_TRUE(lab_.resize("host2", inode_, 5 * kRegion).is_ok());
  ASSERT_TRUE(lab_.write("host2", second_, 0, 'b').is_ok());
  ASSERT_TRUE(lab_.flush("host2", second_).is_ok());
  come_back();
  ASSERT_TRUE(lab_.write("host1", first_, 0, 'c').is_ok());
  ASSERT_TRUE(lab_.healthy("host1"));
  ASSERT_TRUE(lab_.resize("host1", inode_, 8 * kRegion).is_ok());
  EXPECT_EQ(byte_on("host1", first_, 6 * kRegion), 0);
  ASSERT_TRUE(lab_.healthy("host1"));
  EXPECT_EQ(lab_.verify("host1"), "");
}

// By host1, which waits where it may not go on alone.
Result<fs::HandleId> open_under_pause(Lab& lab) {
  lab.pause = true;
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  return lab.open_filled("host1");
}

// The shared node has no room for the note of it: the guest hears of that, and goes on with the size from before.
TEST(Resize, WhatTheSharedNodeRefusesChangesNeitherCopy) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto first = open_under_pause(lab);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    const InodeNumber inode = lab.inode_of("host1");
    lab.world.inject("shared1", FileFault{1, 1, kMutatingFileOps, ".meta", kNoSpace});
    ASSERT_FALSE(lab.resize("host1", inode, kRegion).is_ok()) << "no fault came";
    ASSERT_TRUE(lab.healthy("host1"));
    lab.engine("host1").release(*first);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 2 * kRegion, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host2", *second).is_ok());
    lab.engine("host2").release(*second);
    first = lab.open("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'c').is_ok());
    auto got = lab.read("host1", *first, 2 * kRegion);
    ASSERT_TRUE(got.is_ok()) << got.status().to_string();
    EXPECT_EQ(*got, 'b');
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// Half way: its side file has the new size, and the former one could not be written back. Many other images are written
// before anybody asks for this one again, and idle copies are closed: an open would cut it.
TEST(Resize, WhatTheSharedNodeRefusedIsNotAdoptedOnceItsCopyIsIdle) {
  Lab lab(3);
  auto first = open_under_pause(lab);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  const std::string object = lab.objects("shared1").front();
  const std::string side = object.substr(object.rfind('/') + 1, 36) + ".meta";
  lab.world.inject("shared1", FileFault{1, 1, static_cast<uint16_t>(FileOp::kSyncDirectory), "objects", kEio});
  lab.world.inject("shared1", FileFault{2, 1u << 20, kWrite, side, kEio});
  ASSERT_FALSE(lab.resize("host1", lab.inode_of("host1"), kRegion).is_ok()) << "no fault came";
  lab.world.partition("host1", "shared1");
  for (uint32_t i = 0; i <= limits::kImagesOpenMax; ++i) {
    auto other = lab.open("host2", true, "other" + std::to_string(i));
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    ASSERT_TRUE(lab.write("host2", *other, 0, 'o').is_ok());
    lab.engine("host2").release(*other);
  }
  lab.world.run_for(seconds(60));
  lab.world.clear_faults("shared1");
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  auto got = lab.read("host1", *first, 2 * kRegion);
  EXPECT_TRUE(got.is_ok() && *got == 'a') << "an acknowledged write is lost: " << got.status().to_string();
  EXPECT_EQ(lab.verify("host1"), "");
}

// The shared node has it, its answer is lost with the link, and the resume that follows gives the own copy the size.
TEST(Resize, OneWhoseAnswerIsLostIsDoneOnceAndCostsNoCopy) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto first = open_under_pause(lab);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    const InodeNumber inode = lab.inode_of("host1");
    fs::SetAttr change;
    change.set_size = true;
    change.size = 6 * kRegion;
    std::optional<Status> done;
    lab.world.cut("shared1", "host1");
    lab.engine("host1").setattr(inode, change, [&](Result<wire::Attr> attr) { done = attr.status(); });
    lab.world.run_for(std::chrono::milliseconds(500));
    ASSERT_FALSE(done) << "its answer came";
    lab.world.reset_connections("host1", "shared1");
    lab.world.heal_all();
    ASSERT_TRUE(lab.world.run_until([&] { return done.has_value(); }, seconds(60)));
    EXPECT_TRUE(done->is_ok()) << done->to_string();
    ASSERT_TRUE(lab.healthy("host1", seconds(10))) << lab.engine("host1").status_json();
    ASSERT_TRUE(lab.write("host1", *first, 5 * kRegion, 'b').is_ok());
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// At every operation of either node, alone or with the other one; and one of them loses its power once more when what
// was written next is flushed. On the shared brick and in no catalogue yet, or on one copy and not on the other: the
// size that counts is known before the next write is acknowledged.
class CutResize : public testing::TestWithParam<std::tuple<std::string, int, int>> {
 protected:
  // False: it was done before that operation.
  bool cut(const CrashPoint& at, uint64_t size) {
    const std::string node = std::get<0>(GetParam()), other = node == "host1" ? "shared1" : "host1";
    const int others = std::get<1>(GetParam());   // fate, in that moment: none, kill, loss of power
    lab_->world.inject(node, at);
    fs::SetAttr change;
    change.set_size = true;
    change.size = size;
    auto done = std::make_shared<bool>(false);   // with an answer that may come late
    lab_->engine("host1").setattr(inode_, change, [done](Result<wire::Attr>) { *done = true; });
    EXPECT_TRUE(lab_->world.run_until([&] { return *done || !lab_->world.running(node); }, seconds(60)));
    const bool hit = !lab_->world.running(node);
    lab_->world.clear_faults(node);
    if (!hit) return false;
    lab_->crash(node, at.kind);
    if (others != 0) lab_->crash(other, others == 1 ? Crash::kKill : Crash::kPowerLoss);
    return true;
  }
  void start_those_down() {
    for (const char* n : {"shared1", "host1"}) if (!lab_->world.running(n)) start(n);
  }
  void start(const std::string& node) {
    lab_->start(node);
    if (node != "host1") return;
    ASSERT_TRUE(lab_->world.run_until([&] { return (handle_ = lab_->open("host1")).is_ok(); }, seconds(20)))
        << handle_.status().to_string();
  }
  uint64_t size_at(const std::string& host) {
    auto attr = lab_->wait<Result<wire::Attr>>(
        [&](auto done) { lab_->engine(host).lookup(InodeNumber(1), "disk.img", std::move(done)); });
    return attr ? attr->size : UINT64_MAX;
  }
  void expect_written() {
    auto got = lab_->read("host1", *handle_, 3 * kRegion);
    EXPECT_TRUE(got.is_ok() && *got == 'w') << "an acknowledged write is lost: " << got.status().to_string();
  }

  std::unique_ptr<Lab> lab_;
  Result<fs::HandleId> handle_ = Status(Code::kNotFound, "not opened");
  InodeNumber inode_;
};

TEST_P(CutResize, CutsNothingOffThatWasAcknowledgedSince) {
  const int loses = std::get<2>(GetParam());   // its power, later: none, the shared node, the host
  for (uint64_t size : {uint64_t{0}, kRegion + 100, 6 * kRegion + 100}) {
    for (const bool at_commits : {true, false}) {
      bool hit = true;
      for (uint64_t nth = 1; hit; nth += repeat(1, 23)) {
        for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
          SCOPED_TRACE((at_commits ? "commit " : "file operation ") + std::to_string(nth) + ", to " +
                       std::to_string(size) + (kind == Crash::kKill ? ", kill" : ", loss of power"));
          lab_ = std::make_unique<Lab>(nth * 131 + size);
          handle_ = nth % 2 == 0 ? open_under_pause(*lab_) : lab_->open_filled("host1");
          ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
          inode_ = lab_->inode_of("host1");
          lab_->world.run_for(seconds(30));
          hit = cut({nth, at_commits, kMutatingFileOps, kind}, size);
          start_those_down();
          ASSERT_FALSE(HasFailure());
          ASSERT_TRUE(lab_->write("host1", *handle_, 3 * kRegion, 'w').is_ok());
          ASSERT_TRUE(lab_->flush("host1", *handle_).is_ok());
          lab_->world.run_for(seconds(10));
          if (loses != 0) {
            const std::string node = loses == 1 ? "shared1" : "host1";
            lab_->crash(node, Crash::kPowerLoss);
            start(node);
            lab_->world.run_for(seconds(10));
          }
          expect_written();
          EXPECT_TRUE(lab_->resize("host1", inode_, 7 * kRegion).is_ok());
          ASSERT_TRUE(lab_->healthy("host1"));
          expect_written();
          auto end = lab_->read("host1", *handle_, 6 * kRegion);
          EXPECT_TRUE(end.is_ok() && *end == 0) << end.status().to_string();
          EXPECT_EQ(lab_->verify("host1"), "");
          ASSERT_FALSE(HasFailure());
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Anywhere, CutResize,
                         testing::Combine(testing::Values(std::string("shared1"), std::string("host1")),
                                          testing::Range(0, 3), testing::Range(0, 3)));

// On the shared brick, maybe, and in nobody's answer. The guest goes on, or makes another one, to another size, of the
// same number, and what it writes then is on the copy of its host alone. Both meet when the link is back, in a grant if
// that host was started anew before.
class CutResizeThenAlone : public CutResize {};

TEST_P(CutResizeThenAlone, WhatWasAcknowledgedAloneCounts) {
  const int anew = std::get<2>(GetParam());   // its fate: none, kill, loss of power
  for (uint64_t size : {kRegion + 100, 6 * kRegion + 100}) {
    for (uint64_t another : {Lab::kImageBytes, 2 * kRegion + 50, 8 * kRegion}) {
      for (const bool at_commits : {true, false}) {
        bool hit = true;
        for (uint64_t nth = 1; hit; nth += repeat(1, 9)) {
          SCOPED_TRACE((at_commits ? "commit " : "file operation ") + std::to_string(nth) + ", to " +
                       std::to_string(size) + ", then to " + std::to_string(another));
          lab_ = std::make_unique<Lab>(nth * 131 + size, false, Plant::kNone, Ships::kYes);
          Site site(*lab_);
          handle_ = lab_->open_filled("host1");
          ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
          inode_ = lab_->inode_of("host1");
          lab_->world.run_for(seconds(30));
          hit = cut({nth, at_commits, kMutatingFileOps, Crash::kKill}, size);
          if (!hit) break;
          lab_->succeed("host1");
          if (another != Lab::kImageBytes) { ASSERT_TRUE(lab_->resize("host1", inode_, another).is_ok()); }
          ASSERT_TRUE(lab_->write("host1", *handle_, another - 4096, 'w').is_ok());
          ASSERT_TRUE(lab_->flush("host1", *handle_).is_ok());
          if (anew != 0) {
            lab_->crash("host1", anew == 1 ? Crash::kKill : Crash::kPowerLoss);
            if (nth % 2 == 0) lab_->world.inject("host1", FileFault{1, 2, kMutatingFileOps, ".meta", kNoSpace});
            lab_->start("host1");
          }
          lab_->world.run_for(seconds(10));
          lab_->start("shared1");
          ASSERT_TRUE(lab_->world.run_until([&] { return (handle_ = lab_->open("host1")).is_ok(); }, seconds(20)));
          ASSERT_TRUE(lab_->healthy("host1")) << lab_->engine("host1").status_json();
          lab_->world.clear_faults("host1");
          EXPECT_EQ(size_at("host1"), another);
          EXPECT_TRUE(lab_->world.run_until([&] { return size_at("host2") == another; }, seconds(20)));
          auto got = lab_->read("host1", *handle_, another - 4096);
          EXPECT_TRUE(got.is_ok() && *got == 'w') << "an acknowledged write is lost: " << got.status().to_string();
          EXPECT_TRUE(lab_->resize("host1", inode_, 9 * kRegion).is_ok());
          auto end = lab_->read("host1", *handle_, 8 * kRegion);
          EXPECT_TRUE(end.is_ok() && *end == 0) << end.status().to_string();
          ASSERT_TRUE(lab_->healthy("host1"));
          EXPECT_EQ(site.verify("host1"), "");
          ASSERT_FALSE(HasFailure());
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Anywhere, CutResizeThenAlone,
                         testing::Combine(testing::Values(std::string("shared1")), testing::Values(1),
                                          testing::Range(0, 3)));

// By both copies, by the shared one half way, and its undoing, too. Its daemon dies before its brick has taken anything
// of that image again, and the next one finds the size that was refused.
TEST(Resize, AShrinkThatBothCopiesRefusedCutsNothingOffThatWasWrittenAloneSince) {
  for (const bool pauses : {false, true}) {
    for (const bool anew : {false, true}) {
      SCOPED_TRACE((pauses ? "pause" : "continue") + std::string(anew ? ", started anew" : ""));
      if (pauses && anew) continue;   // then nothing is acknowledged alone
      Lab lab(3);
      auto handle = pauses ? open_under_pause(lab) : lab.open_filled("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      lab.world.inject("shared1", FileFault{1, 1, static_cast<uint16_t>(FileOp::kSyncDirectory), "objects", kEio});
      lab.world.inject("shared1", FileFault{2, 1u << 20, kWrite, ".meta", kEio});
      lab.world.inject("host1", FileFault{1, 1, kWrite, ".meta", kEio});
      ASSERT_FALSE(lab.resize("host1", lab.inode_of("host1"), kRegion).is_ok()) << "no fault came";
      if (!pauses) {
        ASSERT_TRUE(lab.write("host1", *handle, 3 * kRegion, 'w').is_ok());
        ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
      }
      lab.crash("shared1", Crash::kKill);
      lab.world.clear_faults("shared1");
      lab.world.clear_faults("host1");
      if (anew) {
        lab.crash("host1", Crash::kPowerLoss);
        lab.start("host1");
      }
      lab.start("shared1");
      if (anew) {
        ASSERT_TRUE(lab.world.run_until([&] { return (handle = lab.open("host1")).is_ok(); }, seconds(20)));
      }
      ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
      auto got = lab.read("host1", *handle, 3 * kRegion);
      EXPECT_TRUE(got.is_ok() && *got == (pauses ? 'a' : 'w')) << got.status().to_string();
      EXPECT_EQ(lab.verify("host1"), "");
    }
  }
}

// In a resync the host's copy is the one that nobody can do without.
TEST(Resize, WhatTheOwnCopyRefusesInAResyncChangesNeitherCopy) {
  Lab lab(3);
  lab.resync_rate = kRegion;
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  auto first = lab.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  const InodeNumber inode = lab.inode_of("host1");
  lab.world.partition("host1", "shared1");
  ASSERT_TRUE(lab.write("host1", *first, 0, 'b', Lab::kImageBytes).is_ok());
  lab.world.heal_all();
  const auto resyncing = [&] { return lab.engine("host1").status_json().find("resyncing") != std::string::npos; };
  ASSERT_TRUE(lab.world.run_until(resyncing, seconds(60))) << lab.engine("host1").status_json();
  lab.world.inject("host1", FileFault{1, 1, kMutatingFileOps, ".meta", kNoSpace});
  ASSERT_FALSE(lab.resize("host1", inode, kRegion).is_ok()) << "no fault came";
  ASSERT_TRUE(lab.write("host1", *first, 2 * kRegion, 'c').is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  ASSERT_TRUE(lab.healthy("host1"));
  lab.world.run_for(seconds(10));
  auto got = lab.read("host1", *first, 2 * kRegion);
  ASSERT_TRUE(got.is_ok()) << got.status().to_string();
  EXPECT_EQ(*got, 'c');
  EXPECT_EQ(lab.verify("host1"), "");
}

// What the guest was told has failed it goes on reading: the replica shows that, too.
TEST(Resize, WhatFailedAloneIsNotShippedAsDone) {
  Lab lab(5, false, Plant::kNone, Ships::kYes);
  Site site(lab);
  auto first = lab.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_EQ(site.verify("host1"), "");
  lab.world.partition("host1", "shared1");
  ASSERT_TRUE(lab.write("host1", *first, 0, 'b').is_ok()) << "alone";
  lab.world.inject("host1", FileFault{1, 1, kMutatingFileOps, ".meta", kNoSpace});
  ASSERT_FALSE(lab.resize("host1", lab.inode_of("host1"), kRegion).is_ok()) << "no fault came";
  lab.world.inject("host1", FileFault{1, 1, static_cast<uint16_t>(FileOp::kPunch), "/brick1", kEio});
  const fs::Engine::Fallocate punch = fs::Engine::Fallocate::kPunch;
  Status punched = lab.wait<Status>([&](auto done) {
    lab.engine("host1").fallocate(*first, punch, {2 * kRegion, kRegion}, std::move(done));
  });
  ASSERT_FALSE(punched.is_ok()) << "no fault came";
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  auto got = lab.read("host1", *first, 2 * kRegion);
  ASSERT_TRUE(got.is_ok()) << got.status().to_string();
  EXPECT_EQ(*got, 'a');
  EXPECT_EQ(site.verify("host1"), "");
}

// An image of `mirror = none` has grown just before its host lost power: the replica gets what was flushed there.
TEST(Resize, WhatWasFlushedBehindTheOldEndOfAnImageOfOneCopyReachesTheReplicaAfterACrash) {
  Lab lab(5, false, Plant::kNone, Ships::kYes);
  Site site(lab);
  auto first = lab.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  wire::SetXattr policy;
  policy.inode = lab.inode_of("host1");
  policy.name = "user.tidemark.mirror";
  const std::string none = "none";
  policy.value.assign(none.begin(), none.end());
  lab.engine("host1").release(*first);
  lab.world.run_for(seconds(10));
  Status set = lab.wait<Status>([&](auto done) { lab.engine("host1").set_xattr(policy, std::move(done)); });
  ASSERT_TRUE(set.is_ok()) << set.to_string();
  first = lab.open("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'b').is_ok());
  lab.world.run_for(seconds(10));
  lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/journal", .delay = seconds(2)});
  ASSERT_TRUE(lab.write("host1", *first, Lab::kImageBytes, 'g', 2 * kRegion).is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  lab.crash("host1", Crash::kPowerLoss);
  lab.world.clear_faults("host1");
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  first = lab.open("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  auto got = lab.read("host1", *first, Lab::kImageBytes);
  ASSERT_TRUE(got.is_ok()) << got.status().to_string();
  EXPECT_EQ(*got, 'g');
  EXPECT_EQ(site.verify("host1", "absent"), "");
}

}  // namespace
}  // namespace tidemark::sim
