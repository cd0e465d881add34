// What the store promises when the storage below it fails.
#include <gmock/gmock.h>

#include "tests/unit/image/store_fixture.h"

namespace tidemark::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class StoreFaultTest : public StoreTest {};

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

TEST_F(StoreFaultTest, AnInterruptedResizeLeavesOneOfBothSizesAndZerosAfterIt) {
  for (uint64_t target : {100'001ull, 900'000ull}) {
    for (int n = 0;; ++n) {
      auto group = open_group(options(2, 2));
      auto copy = *group->create(image_id(1), 500'000);
      ASSERT_TRUE(write(*copy, 0, Bytes(500'000, 3)).is_ok());
      env_.faults.fail_after_changes = n;
      bool resized = resize(*copy, target).is_ok();
      env_.faults.fail_after_changes = -1;
      uint64_t said = copy->size();
      copy.reset();
      copy = *group->open_image(image_id(1));
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

TEST_F(StoreFaultTest, DamagedImagesCanBeRemoved) {
  auto group = open_group(options(1));
  ASSERT_TRUE(group->create(image_id(1), 4096).is_ok());
  flip_byte(metadata_path(brick(0), image_id(1)), 40);
  EXPECT_TRUE(group->remove(image_id(1)).is_ok());
  EXPECT_TRUE(group->create(image_id(1), 4096).is_ok());
}

}  // namespace
}  // namespace tidemark::image
