// What the store promises when the storage below it fails.
#include <gmock/gmock.h>

#include "tests/unit/image/store_fixture.h"

namespace tidemark::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class StoreFaultTest : public StoreTest {
 protected:
  void interrupt_resizes(bool opened_anew);
};

TEST_F(StoreFaultTest, AFailedSyncChangesTheLossIdDurablyBeforeItIsReported) {
  auto group = open_group(options(2, 2));
  auto copy = *group->create(image_id(1), 1u << 20);
  LossId before = group->loss_id();
  ASSERT_TRUE(write(*copy, 0, Bytes(200'000, 1)).is_ok());
  env_.faults.fail_sync = true;
  LossId seen;
  Status s = wait([&](Callback<Status> done) {
    copy->sync(io::IoMode::kInline, [&, d = std::move(done)](Status r) mutable {
      seen = group->loss_id();
      d(std::move(r));
    });
  });
  EXPECT_EQ(s.code(), Code::kIoError);
  EXPECT_NE(seen, before);
  env_.faults.fail_sync = false;
  copy.reset();
  group.reset();
  EXPECT_EQ(open_group(options(2, 2))->loss_id(), seen);
}

TEST_F(StoreFaultTest, AFailedSyncIsToldOfItsImageWhoeverAskedForIt) {
  auto group = open_group(options(2, 2));
  std::vector<ImageId> told;
  group->on_failed_sync([&](ImageId id) { told.push_back(id); });
  auto copy = *group->create(image_id(1), 65536), other = *group->create(image_id(2), 65536);
  ASSERT_TRUE(sync(*copy).is_ok() && sync(*other).is_ok());
  ASSERT_TRUE(write(*other, 0, Bytes(512, 1)).is_ok());
  env_.faults.fail_sync = true;
  EXPECT_FALSE(sync(*other).is_ok());
  Status grown = wait([&](Callback<Status> done) { copy->resize(1u << 20, Generation(2), std::move(done)); });
  EXPECT_FALSE(grown.is_ok());
  EXPECT_THAT(told, testing::Each(testing::AnyOf(image_id(1), image_id(2))));
  EXPECT_THAT(told, testing::IsSupersetOf({image_id(1), image_id(2)}));
}

TEST_F(StoreFaultTest, ASyncCoversOnlyWhatItMust) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 65536);
  ASSERT_TRUE(sync(*copy).is_ok());
  env_.faults.fail_sync = true;
  EXPECT_TRUE(sync(*copy).is_ok()) << "nothing was written since";
  ASSERT_TRUE(write(*copy, 0, Bytes(512, 1)).is_ok());
  EXPECT_FALSE(sync(*copy).is_ok());
  EXPECT_FALSE(sync(*copy).is_ok()) << "what failed is not taken as durable";
}

// One of them is told of the error, which may be the last to answer.
TEST_F(StoreFaultTest, NoneOfTheSyncsThatOverlapOneThatFailsIsReportedAsGood) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 65536);
  for (size_t fails = 0; fails < 3; ++fails) {
    for (size_t last = 0; last < 3; ++last) {
      SCOPED_TRACE(std::to_string(fails) + " fails, " + std::to_string(last) + " is the last to answer");
      ASSERT_TRUE(write(*copy, 0, Bytes(512, 1)).is_ok());
      env_.faults.hold_syncs = true;
      std::optional<Status> synced[3];
      for (auto& s : synced) copy->sync(io::IoMode::kQueued, [&s](Status status) { s = std::move(status); });
      auto held = std::exchange(env_.faults.held_syncs, {});
      env_.faults.hold_syncs = false;
      ASSERT_EQ(held.size(), 3u);
      const LossId before = group->loss_id();
      for (size_t i = 1; i <= 3; ++i) {
        const size_t now = (last + i) % 3;
        held[now](now == fails ? injected("sync") : Status::ok());
      }
      ASSERT_TRUE(real_.run_until([&] { return copy->idle(); }, std::chrono::seconds(60)));
      EXPECT_TRUE(sync_failed_between(before, group->loss_id()));
      for (const auto& s : synced) EXPECT_EQ(s->code(), Code::kIoError);
      EXPECT_TRUE(sync(*copy).is_ok()) << "begun after the error was known";
    }
  }
}

// A sync waits for those that were under way when it ended, not for later ones.
TEST_F(StoreFaultTest, SyncsThatOverlapWithoutEndAreAllAnswered) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 65536);
  ASSERT_TRUE(write(*copy, 0, Bytes(512, 1)).is_ok());
  env_.faults.hold_syncs = true;
  std::optional<Status> synced[6];
  auto begin = [&](size_t i) {
    copy->sync(io::IoMode::kQueued, [&s = synced[i]](Status status) { s = std::move(status); });
  };
  auto& held = env_.faults.held_syncs;
  begin(0);
  for (size_t i = 1; i < 6; ++i) {
    begin(i);
    held[i - 1](Status::ok());
    if (i < 2) continue;
    ASSERT_TRUE(real_.run_until([&] { return synced[i - 2].has_value(); }, std::chrono::seconds(60))) << i;
    EXPECT_TRUE(synced[i - 2]->is_ok());
    EXPECT_FALSE(synced[i - 1].has_value()) << i;
  }
  held[5](Status::ok());
  ASSERT_TRUE(real_.run_until([&] { return copy->idle(); }, std::chrono::seconds(60)));
  held.clear();
}

TEST_F(StoreFaultTest, AnImageJustOpenedIsNotTakenAsDurable) {
  auto group = open_group(options(1));
  ASSERT_TRUE(group->create(image_id(1), 65536).is_ok());
  auto copy = *group->open_image(image_id(1));
  env_.faults.fail_sync = true;
  EXPECT_FALSE(sync(*copy).is_ok()) << "an earlier process may have left writes unsynced";
}

TEST_F(StoreFaultTest, CreateIsWholeOrNotAtAll) {
  for (int n = 0;; ++n) {
    auto group = open_group(options(3, 3));
    env_.faults.fail_after_changes = n;
    bool created = group->create(image_id(1), 500'000).is_ok();
    env_.faults.fail_after_changes = -1;
    EXPECT_EQ(group->contains(image_id(1)), created) << "change " << n;
    auto again = created ? group->open_image(image_id(1)) : group->create(image_id(1), 500'000);
    EXPECT_TRUE(again.is_ok()) << "change " << n << ": " << again.status().to_string();
    if (again) again.value().reset();
    ASSERT_TRUE(group->remove(image_id(1)).is_ok());
    if (created) break;
  }
}

TEST_F(StoreFaultTest, RemoveIsFinishedByASweep) {
  for (int n = 0;; ++n) {
    auto group = open_group(options(2, 2));
    ASSERT_TRUE(group->create(image_id(1), 500'000).is_ok());
    ASSERT_TRUE(group->create(image_id(2), 500'000).is_ok());
    env_.faults.fail_after_changes = n;
    bool removed = group->remove(image_id(1)).is_ok();
    env_.faults.fail_after_changes = -1;
    bool held = group->contains(image_id(1));
    EXPECT_FALSE(removed && held);
    ASSERT_TRUE(group->sweep_orphans().is_ok());
    EXPECT_EQ(*group->sweep_orphans(), 0u);
    EXPECT_TRUE(group->open_image(image_id(2)).is_ok());
    bool has_object = fs::exists(object_path(brick(0), image_id(1), Generation(1), 0)) ||
                      fs::exists(object_path(brick(1), image_id(1), Generation(1), 0));
    EXPECT_EQ(has_object, held) << "change " << n;
    if (held) { ASSERT_TRUE(group->remove(image_id(1)).is_ok()); }
    ASSERT_TRUE(group->remove(image_id(2)).is_ok());
    if (removed) break;
  }
}

void StoreFaultTest::interrupt_resizes(bool opened_anew) {
  for (uint64_t target : {100'001ull, 900'000ull}) {
    for (int n = 0;; ++n) {
      auto group = open_group(options(2, 2));
      auto copy = *group->create(image_id(1), 500'000);
      ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
      env_.faults.fail_after_changes = n;
      bool resized = resize(*copy, target).is_ok();
      env_.faults.fail_after_changes = -1;
      uint64_t said = copy->size();
      if (opened_anew) {
        copy.reset();
        copy = *group->open_image(image_id(1));
      }
      EXPECT_EQ(copy->size(), said);
      EXPECT_TRUE(said == 500'000 || said == target);
      if (resized) { EXPECT_EQ(said, target); }
      ASSERT_TRUE(resize(*copy, 1'000'000).is_ok());
      Bytes expected(1'000'000, 0);
      std::fill_n(expected.begin(), std::min<uint64_t>(said, 500'000), 3);
      EXPECT_EQ(read(*copy, 0, 1'000'000), expected) << "target " << target << " change " << n;
      copy.reset();
      ASSERT_TRUE(group->remove(image_id(1)).is_ok());
      if (resized) break;
    }
  }
}

TEST_F(StoreFaultTest, AnInterruptedResizeLeavesOneOfBothSizesAndZerosAfterIt) { interrupt_resizes(true); }
TEST_F(StoreFaultTest, WhatAnInterruptedShrinkLeftIsCutOffByTheNextGrow) { interrupt_resizes(false); }

TEST_F(StoreFaultTest, AnObjectThatWasCutShortIsNotServed) {
  auto group = open_group(options(2, 2));
  auto copy = *group->create(image_id(1), 500'000);
  ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
  std::vector<std::string> objects;
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t at = fs::exists(object_path(brick(0), image_id(1), Generation(1), i)) ? 0 : 1;
    objects.push_back(object_path(brick(at), image_id(1), Generation(1), i));
  }
  copy.reset();
  for (const std::string& object : objects) {
    const uint64_t whole = fs::file_size(object);
    for (uint64_t left : {uint64_t{0}, uint64_t{4096}, whole - 4096, whole - 1}) {
      Bytes kept(whole);
      std::ifstream(object, std::ios::binary).read(reinterpret_cast<char*>(kept.data()), static_cast<long>(whole));
      fs::resize_file(object, left);
      auto opened = group->open_image(image_id(1));
      ASSERT_FALSE(opened.is_ok()) << left;
      EXPECT_EQ(opened.status().code(), Code::kCorruption);
      EXPECT_THAT(opened.status().message(), HasSubstr(object));
      EXPECT_THAT(opened.status().message(),
                  HasSubstr(std::to_string(left) + " bytes instead of " + std::to_string(whole)));
      EXPECT_EQ(group->look_at(image_id(1)).to_string(), opened.status().to_string());
      EXPECT_EQ(fs::file_size(object), left) << "what is left of it is left as it is";
      std::ofstream(object, std::ios::binary).write(reinterpret_cast<char*>(kept.data()), static_cast<long>(whole));
    }
  }
  EXPECT_TRUE(group->look_at(image_id(1)).is_ok());
  auto again = group->open_image(image_id(1));
  ASSERT_TRUE(again.is_ok()) << again.status().to_string();
  EXPECT_EQ(read(**again, 0, 500'000), Bytes(500'000, 3));
}

TEST_F(StoreFaultTest, AnObjectThatIsCutShortWhileItIsOpenIsNotReadAsZeros) {
  constexpr uint64_t kLeft = 20'000, kKept = kLeft / 4096 * 4096;
  for (bool direct : {true, false}) {
    StorageGroupOptions o = options(1);
    o.direct = direct;
    auto group = open_group(o);
    std::vector<std::string> told;
    group->on_damaged([&](ImageId id, const Status& why) {
      EXPECT_EQ(id, image_id(1));
      told.push_back(why.message());
    });
    auto copy = *group->create(image_id(1), 500'000);
    ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
    ASSERT_TRUE(sync(*copy).is_ok());   // found whole: what is left is as it was
    const std::string object = object_path(brick(0), image_id(1), Generation(1), 0);
    fs::resize_file(object, kLeft);
    auto read_code = [&](uint64_t offset, size_t length, io::IoMode mode) {
      Bytes out(length, 0xEE);
      return wait([&](Callback<Status> done) { copy->read(offset, out, mode, std::move(done)); }).code();
    };
    for (io::IoMode mode : {io::IoMode::kInline, io::IoMode::kQueued}) {
      EXPECT_EQ(read(*copy, 0, kKept, mode), Bytes(kKept, 3)) << "what is left of it is served";
      EXPECT_EQ(read_code(0, 100'000, mode), Code::kCorruption);
      EXPECT_EQ(read_code(kLeft + 1, 100, mode), Code::kCorruption) << "not aligned";
      EXPECT_EQ(read_code(400'000, 4096, mode), Code::kCorruption);
      EXPECT_EQ(write(*copy, 300'000, Bytes(100, 4), mode).code(), Code::kCorruption);
      EXPECT_EQ(write(*copy, 499'712, Bytes(288, 4), mode).code(), Code::kCorruption) << "it would make a hole";
      EXPECT_TRUE(write(*copy, 4096, Bytes(4096, 3), mode).is_ok());
    }
    EXPECT_EQ(copy->next_data(0).status().code(), Code::kCorruption);
    EXPECT_EQ(zero(*copy, {100'000, 8192}).code(), Code::kCorruption);
    EXPECT_EQ(sync(*copy).code(), Code::kCorruption) << "what was acknowledged is gone";
    EXPECT_EQ(resize(*copy, 600'000).code(), Code::kCorruption);
    EXPECT_EQ(fs::file_size(object), kLeft) << "nothing was extended over what is missing";
    EXPECT_TRUE(real_.run_until([&] { return !told.empty(); }, std::chrono::seconds(10)));
    EXPECT_THAT(told.front(), HasSubstr(object + " has 20000 bytes instead of 503808: it was cut short"));
    copy.reset();
    EXPECT_EQ(group->open_image(image_id(1)).status().code(), Code::kCorruption);
    ASSERT_TRUE(group->remove(image_id(1)).is_ok());
  }
}

// A guest that only writes: the first sync looks. It is no failed sync: other images lose nothing.
TEST_F(StoreFaultTest, ASyncFindsAnObjectThatWasCutShort) {
  for (io::IoMode mode : {io::IoMode::kInline, io::IoMode::kQueued}) {
    auto group = open_group(options(2, 2));
    auto copy = *group->create(image_id(1), 500'000);
    ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
    const LossId before = group->loss_id();
    for (uint32_t b : {0, 1}) {
      for (uint32_t stripe : {0, 1}) {
        const std::string path = object_path(brick(b), image_id(1), Generation(1), stripe);
        if (fs::exists(path)) fs::resize_file(path, 8192);
      }
    }
    ASSERT_TRUE(write(*copy, 0, Bytes(4096, 4)).is_ok());
    EXPECT_EQ(sync(*copy, mode).code(), Code::kCorruption);
    EXPECT_EQ(group->loss_id(), before);
    EXPECT_EQ(write(*copy, 499'712, Bytes(288, 4), mode).code(), Code::kCorruption);
    EXPECT_EQ(sync(*copy, mode).code(), Code::kCorruption) << "it stays so";
    copy.reset();
    ASSERT_TRUE(group->remove(image_id(1)).is_ok());
  }
}

// The look after a sync is answered late: it saw the object as a shrink had left it, and the image has grown since.
TEST_F(StoreFaultTest, ASyncThatMeetsAShrinkAndAGrowFindsNothingCutShort) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 500'000);
  ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
  env_.faults.hold_stat = true;
  std::optional<Status> synced;
  copy->sync(io::IoMode::kInline, [&](Status s) { synced = std::move(s); });
  ASSERT_TRUE(real_.run_until([&] { return env_.faults.held.has_value(); }, std::chrono::seconds(60)));
  ASSERT_TRUE(resize(*copy, 100'000).is_ok());
  auto found = env_.faults.held->file->stat();
  ASSERT_TRUE(resize(*copy, 500'000).is_ok());
  env_.faults.held->done(std::move(found));
  ASSERT_TRUE(synced.has_value());
  EXPECT_TRUE(synced->is_ok()) << synced->to_string();
  // Of the time before the next look nothing is remembered.
  Bytes tail = read(*copy, 499'000, 1000);
  EXPECT_EQ(tail, Bytes(1000, 0));
  ASSERT_TRUE(write(*copy, 0, Bytes(512, 4)).is_ok());
  fs::resize_file(object_path(brick(0), image_id(1), Generation(1), 0), 200'000 / 4096 * 4096);
  EXPECT_EQ(sync(*copy).code(), Code::kCorruption);
}

TEST_F(StoreFaultTest, AResizeOverAnObjectThatWasCutShortMakesNoHole) {
  for (uint64_t target : {900'000ull, 400'000ull}) {
    auto group = open_group(options(1));
    auto copy = *group->create(image_id(1), 500'000);
    const std::string object = object_path(brick(0), image_id(1), Generation(1), 0);
    fs::resize_file(object, 8192);
    EXPECT_EQ(resize(*copy, target).code(), Code::kCorruption);
    EXPECT_EQ(fs::file_size(object), 8192u);
    copy.reset();
    ASSERT_TRUE(group->remove(image_id(1)).is_ok());
  }
}

TEST_F(StoreFaultTest, DamagedImagesCanBeRemoved) {
  auto group = open_group(options(1));
  ASSERT_TRUE(group->create(image_id(1), 4096).is_ok());
  flip_byte(metadata_path(brick(0), image_id(1)), 40);
  EXPECT_TRUE(group->remove(image_id(1)).is_ok());
  EXPECT_TRUE(group->create(image_id(1), 4096).is_ok());
}

}  // namespace
}  // namespace tidemark::image
