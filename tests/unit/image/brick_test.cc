// Which directories a group takes as its bricks, and how it says no.
#include <gmock/gmock.h>

#include "tests/unit/image/store_fixture.h"

namespace tidemark::image {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class BrickTest : public StoreTest {};

TEST_F(BrickTest, EmptyBricksBecomeAGroupThatIsFoundAgain) {
  Uuid id = open_group(options(3))->group_id();
  StorageGroupOptions known = options(3);
  known.expected_group = id;
  auto group = open_group(known);
  EXPECT_EQ(group->group_id(), id);
  EXPECT_EQ(group->name(), "main");
  EXPECT_GT(group->space()->total, 0u);
}

TEST_F(BrickTest, TheOrderOfTheListDoesNotMatter) {
  open_group(options(3));
  StorageGroupOptions turned = options(3);
  std::swap(turned.bricks[0], turned.bricks[2]);
  EXPECT_NE(open_group(turned), nullptr);
}

TEST_F(BrickTest, AMissingDirectoryIsNamed) {
  open_group(options(2));
  fs::remove_all(brick(1));
  EXPECT_THAT(open_error(options(2)), AllOf(HasSubstr(brick(1)), HasSubstr("does not exist"), HasSubstr("mount")));
}

TEST_F(BrickTest, AnEmptyReplacedBrickIsNamed) {
  open_group(options(2));
  fs::remove_all(brick(0));
  fs::create_directories(brick(0));
  EXPECT_THAT(open_error(options(2)),
              AllOf(HasSubstr(brick(0)), HasSubstr("is empty"), HasSubstr("mount the right device")));
}

TEST_F(BrickTest, AnUnmountedOnlyBrickIsNoFreshStart) {
  StorageGroupOptions known = options(1);
  known.expected_group = open_group(options(1))->group_id();
  fs::remove_all(brick(0));
  fs::create_directories(brick(0));
  EXPECT_THAT(open_error(known), HasSubstr("is empty"));
  EXPECT_TRUE(fs::is_empty(brick(0)));
}

TEST_F(BrickTest, AForeignBrickIsNamed) {
  open_group(options(2));
  StorageGroupOptions other = options(2);
  for (auto& b : other.bricks) b += "-other";
  open_group(other);
  StorageGroupOptions mixed = options(2);
  mixed.bricks[1] = other.bricks[1];
  EXPECT_THAT(open_error(mixed), AllOf(HasSubstr(other.bricks[1]), HasSubstr("belongs to another group")));
}

TEST_F(BrickTest, ADirectoryWithOtherFilesIsNotTaken) {
  fs::create_directories(brick(0));
  std::ofstream(brick(0) + "/precious") << "x";
  EXPECT_THAT(open_error(options(1)), AllOf(HasSubstr(brick(0)), HasSubstr("other files")));
  EXPECT_FALSE(fs::exists(brick(0) + "/tidemark.brick"));
}

TEST_F(BrickTest, LostAndFoundDoesNotCount) {
  fs::create_directories(brick(0) + "/lost+found");
  EXPECT_NE(open_group(options(1)), nullptr);
}

TEST_F(BrickTest, WrongNameCountAndDuplicatesAreRefused) {
  open_group(options(2));
  StorageGroupOptions named = options(2);
  named.name = "backup";
  EXPECT_THAT(open_error(named), HasSubstr("\"backup\""));
  EXPECT_THAT(open_error(options(1)), HasSubstr("one of 2 bricks"));
  StorageGroupOptions twice = options(2);
  twice.bricks[1] = twice.bricks[0];
  EXPECT_THAT(open_error(twice), HasSubstr("list each brick once"));
  StorageGroupOptions fresh_twice = twice;
  for (auto& b : fresh_twice.bricks) b = root_ + "/fresh";
  EXPECT_THAT(open_error(fresh_twice), HasSubstr("list each brick once"));
  EXPECT_THAT(open_error(options(2, 3)), HasSubstr("stripe count"));
  StorageGroupOptions unit = options(2);
  unit.stripe_unit = 1000;
  EXPECT_THAT(open_error(unit), HasSubstr("stripe unit"));
}

TEST_F(BrickTest, EveryFlippedByteOfAMarkerIsNoticed) {
  open_group(options(1));
  std::string path = brick(0) + "/tidemark.brick";
  for (uint64_t i = 0; i < fs::file_size(path); ++i) {
    flip_byte(path, i);
    EXPECT_THAT(open_error(options(1)), HasSubstr(path)) << "byte " << i;
    flip_byte(path, i);
  }
  EXPECT_EQ(open_error(options(1)), "");
}

TEST_F(BrickTest, AnInterruptedFirstStartIsFinishedByTheNext) {
  for (int n = 0;; ++n) {
    env_.faults.fail_after_changes = n;
    bool done = StorageGroup::open(env_, options(3)).is_ok();
    env_.faults.fail_after_changes = -1;
    EXPECT_NE(open_group(options(3)), nullptr) << "after failing change " << n;
    for (int i = 0; i < 3; ++i) fs::remove_all(brick(static_cast<uint32_t>(i)));
    if (done) break;
  }
}

TEST_F(BrickTest, LossIdChangesWithBootAndFailedSyncAndSurvivesARestart) {
  auto group = open_group(options(2));
  LossId first = group->loss_id();
  group = open_group(options(2));
  EXPECT_EQ(group->loss_id(), first) << "a mere restart loses nothing";
  EXPECT_TRUE(group->note_failed_sync().is_ok());
  LossId second = group->loss_id();
  EXPECT_NE(second, first);
  group = open_group(options(2));
  EXPECT_EQ(group->loss_id(), second);
  env_.boot = Uuid::from_random({1, 2, 3});
  group = open_group(options(2));
  EXPECT_NE(group->loss_id(), second);
}

TEST_F(BrickTest, AFailedSyncThatCannotBeRecordedIsTold) {
  auto group = open_group(options(2));
  LossId first = group->loss_id();
  env_.faults.fail_atomic_writes = true;
  EXPECT_FALSE(group->note_failed_sync().is_ok());
  EXPECT_TRUE(group->lost());
  EXPECT_NE(group->loss_id(), first);
}

}  // namespace
}  // namespace tidemark::image
