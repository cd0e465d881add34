// Which directories a group takes as its bricks, and how it says no.
#include <gmock/gmock.h>

#include <algorithm>

#include "shared/base/digest.h"
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
  LossId first = group->loss_id(), told;
  group = open_group(options(2));
  EXPECT_EQ(group->loss_id(), first) << "a mere restart loses nothing";
  group->on_failed_sync([&](ImageId) { told = group->loss_id(); });
  EXPECT_TRUE(group->note_failed_sync(ImageId()).is_ok());
  LossId second = group->loss_id();
  EXPECT_NE(second, first);
  EXPECT_TRUE(sync_failed_between(first, second));
  EXPECT_EQ(told, second);
  group = open_group(options(2));
  EXPECT_EQ(group->loss_id(), second);
  env_.boot = Uuid::from_random({1, 2, 3});
  group = open_group(options(2));
  EXPECT_NE(group->loss_id(), second);
  EXPECT_FALSE(sync_failed_between(second, group->loss_id())) << "a mere boot";
  EXPECT_TRUE(sync_failed_between(first, group->loss_id()));
  EXPECT_TRUE(sync_failed_between(LossId(), group->loss_id())) << "who knows";
}

TEST_F(BrickTest, AFailedSyncThatCannotBeRecordedIsTold) {
  auto group = open_group(options(2));
  LossId first = group->loss_id();
  env_.faults.fail_atomic_writes = true;
  EXPECT_FALSE(group->note_failed_sync(ImageId()).is_ok());
  EXPECT_TRUE(group->lost());
  EXPECT_NE(group->loss_id(), first);
}

// Daemons' openings: what their state keeps of the bricks is given to the next one.
class RunTest : public BrickTest {
 protected:
  // As a host opens its bricks; a shared node knows their runs alone.
  std::unique_ptr<StorageGroup> begin(bool host = true) {
    auto group = open_group(host ? known() : known_runs_only());
    if (group == nullptr) return nullptr;
    group_ = group->group_id();
    bricks_.clear();
    for (const auto& b : group->bricks()) bricks_.push_back(b.id);
    EXPECT_TRUE(group->begin_run([this](const std::vector<KnownRun>& runs) {
      if (save_fails_in_ != 0 && --save_fails_in_ == 0) return Status(Code::kIoError, "the state is not kept");
      return runs_ = runs, Status::ok();
    }));
    return group;
  }
  StorageGroupOptions known() const {
    StorageGroupOptions o = known_runs_only();
    o.known_bricks = bricks_;
    return o;
  }
  StorageGroupOptions known_runs_only() const {
    StorageGroupOptions o = options(2, 2);
    o.expected_group = group_;
    o.known_runs = runs_;
    return o;
  }
  std::string marker(uint32_t i) const { return brick(i) + "/tidemark.brick"; }
  uint32_t version(uint32_t i) {
    auto bytes = env_.files().read_file(marker(i));
    return bytes ? load_le<uint32_t>(bytes->data() + 8) : 0;
  }
  // As another version wrote it: the older one's ends before the run.
  void rewrite(uint32_t i, uint32_t version) {
    Bytes bytes = *env_.files().read_file(marker(i));
    bytes.resize(bytes.size() - (version == 1 ? 32 : 8));
    store_le<uint32_t>(bytes.data() + 8, version);
    const uint64_t checksum = digest64(bytes);
    Writer(bytes).u64(checksum);
    ASSERT_TRUE(env_.files().write_file_atomically(marker(i), bytes, 0600));
  }
  void copy(const std::string& from, const std::string& to) {
    fs::remove_all(to);
    fs::copy(from, to, fs::copy_options::recursive);
  }
  static bool all_there(const StorageGroup& group) {
    auto bricks = group.bricks();
    return std::all_of(bricks.begin(), bricks.end(), [](const auto& b) { return b.status.is_ok(); });
  }

  Uuid group_;
  std::vector<Uuid> bricks_;
  std::vector<KnownRun> runs_;
  int save_fails_in_ = 0;            // 0: none does
};

TEST_F(RunTest, NoStripeIsReadFromABrickOfAnEarlierTime) {
  const ImageId id = Uuid::from_random({7, 7});
  auto group = begin();
  auto image = *group->create(id, 4 * kStripeUnitMin);
  ASSERT_TRUE(write(*image, 0, Bytes(4 * kStripeUnitMin, 0x11)));
  ASSERT_TRUE(sync(*image));
  image.reset();
  group.reset();
  for (uint32_t i : {0, 1}) copy(brick(i), root_ + "/old" + std::to_string(i));
  group = begin();
  image = *group->open_image(id);
  ASSERT_TRUE(write(*image, 0, Bytes(4 * kStripeUnitMin, 0x22)));
  ASSERT_TRUE(sync(*image));
  image.reset();
  group.reset();
  for (uint32_t i : {0, 1}) {
    SCOPED_TRACE(i);
    copy(brick(i), root_ + "/new");
    copy(root_ + "/old" + std::to_string(i), brick(i));
    EXPECT_THAT(open_error(known_runs_only()), AllOf(HasSubstr(brick(i)), HasSubstr("earlier time")));
    group = open_group(known());
    EXPECT_FALSE(all_there(*group));
    auto opened = group->open_image(id);
    EXPECT_EQ(opened.status().code(), Code::kIoError) << opened.status().to_string();
    EXPECT_THAT(opened.status().message(), AllOf(HasSubstr(brick(i)), HasSubstr("earlier time")));
    EXPECT_EQ(group->look_at(id).code(), Code::kIoError);
    copy(root_ + "/new", brick(i));
    ASSERT_TRUE(group->look_at_bricks());
    if (opened) opened->reset();
    image = *group->open_image(id);
    EXPECT_EQ(read(*image, 0, 4 * kStripeUnitMin), Bytes(4 * kStripeUnitMin, 0x22));
    image.reset();
    group.reset();
  }
}

TEST_F(RunTest, TheFirstOpeningAfterAnUpgradeLeavesTheMarkersAsTheOlderVersionKnowsThem) {
  for (bool host : {true, false}) {
    SCOPED_TRACE(host);
    begin(host).reset();
    EXPECT_EQ(version(0), kMarkerVersion) << "a new group has nothing to go back to";
    for (uint32_t i : {0, 1}) rewrite(i, 1);
    runs_.clear();
    auto group = begin(host);
    EXPECT_EQ(version(0), 1u);
    EXPECT_TRUE(group->note_failed_sync(ImageId()));
    EXPECT_EQ(version(1), 1u);
    ASSERT_EQ(runs_.size(), 2u);
    EXPECT_EQ(runs_[0].last, BrickRun());
    EXPECT_EQ(runs_[0].opening, BrickRun());
    group.reset();
    group = begin(host);
    EXPECT_TRUE(all_there(*group));
    for (uint32_t i : {0, 1}) EXPECT_EQ(version(i), kMarkerVersion);
    EXPECT_EQ(runs_[1].last.number, 1u);
    group.reset();
    EXPECT_TRUE(all_there(*begin(host)));
    group_ = {};
    bricks_.clear();
    runs_.clear();
    for (uint32_t i : {0, 1}) fs::remove_all(brick(i));
  }
}

// A program that is too old says so, instead of going on without its copies.
TEST_F(RunTest, AMarkerOfANewerVersionIsNoAbsentBrick) {
  begin().reset();
  rewrite(1, kMarkerVersion + 1);
  auto group = StorageGroup::open(env_, known());
  EXPECT_EQ(group.status().code(), Code::kUnsupported) << group.status().to_string();
  EXPECT_THAT(group.status().message(), AllOf(HasSubstr(brick(1)), HasSubstr("use a newer Tidemark")));
  EXPECT_THAT(open_error(known_runs_only()), HasSubstr("use a newer Tidemark"));
}

TEST_F(RunTest, ABrickThatWasSwappedBackIsTheOneThatItWas) {
  begin().reset();
  copy(marker(1), root_ + "/old");
  auto group = begin();
  EXPECT_TRUE(group->note_failed_sync(ImageId()));
  group.reset();
  copy(marker(1), root_ + "/new");
  copy(root_ + "/old", marker(1));
  group = begin();
  EXPECT_FALSE(all_there(*group));
  copy(root_ + "/new", marker(1));
  ASSERT_TRUE(group->look_at_bricks());
  EXPECT_TRUE(all_there(*group));
  EXPECT_TRUE(group->note_failed_sync(ImageId()));
  group.reset();
  EXPECT_TRUE(all_there(*begin()));
  EXPECT_EQ(open_error(known_runs_only()), "");
}

// Cloned while its place was empty, mounted again within the run, written, and then the clone put in its place.
TEST_F(RunTest, ABrickThatComesBackWithinARunIsCounted) {
  begin().reset();
  fs::rename(brick(1), root_ + "/away");
  auto group = begin();
  EXPECT_FALSE(all_there(*group));
  copy(root_ + "/away", root_ + "/clone");
  fs::rename(root_ + "/away", brick(1));
  ASSERT_TRUE(group->look_at_bricks());
  EXPECT_TRUE(all_there(*group));
  ASSERT_TRUE(group->look_at_bricks());
  group.reset();
  copy(brick(1), root_ + "/newest");
  copy(root_ + "/clone", brick(1));
  EXPECT_FALSE(all_there(*begin()));
  copy(root_ + "/newest", brick(1));
  EXPECT_TRUE(all_there(*begin()));
}

// Its device was detached, and its files are open still: a marker in the empty directory would make a brick of that.
TEST_F(RunTest, AFailedSyncIsRecordedOnNothingButItsBricks) {
  auto group = begin();
  auto away = [&](uint32_t i) { return root_ + "/away" + std::to_string(i); };
  auto detach = [&](uint32_t i) {
    fs::rename(brick(i), away(i));
    fs::create_directories(brick(i));
  };
  detach(0);
  const LossId before = group->loss_id();
  EXPECT_TRUE(group->note_failed_sync(ImageId())) << "the other brick has it";
  EXPECT_TRUE(fs::is_empty(brick(0)));
  ASSERT_TRUE(group->look_at_bricks());
  EXPECT_FALSE(all_there(*group));
  detach(1);
  EXPECT_FALSE(group->note_failed_sync(ImageId()));
  EXPECT_TRUE(fs::is_empty(brick(1)));
  EXPECT_TRUE(group->lost());
  for (uint32_t i : {0, 1}) {
    fs::remove_all(brick(i));
    fs::rename(away(i), brick(i));
  }
  ASSERT_TRUE(group->look_at_bricks());
  EXPECT_TRUE(all_there(*group));
  EXPECT_FALSE(group->lost()) << "it is recorded by now";
  const LossId now = group->loss_id();
  EXPECT_TRUE(sync_failed_between(before, now));
  group.reset();
  group = begin();
  EXPECT_TRUE(all_there(*group));
  EXPECT_FALSE(sync_failed_between(now, group->loss_id()));
}

// A kill or a failure at any step of that leaves a brick that is of this time; and it is not used before it is counted.
TEST_F(RunTest, ABrickThatComesBackIsOfThisTimeWhateverFails) {
  for (int save : {0, 1, 2}) {   // that fails
    SCOPED_TRACE(save);
    begin().reset();
    fs::rename(brick(1), root_ + "/away");
    auto group = begin();
    fs::rename(root_ + "/away", brick(1));
    save_fails_in_ = save;
    ASSERT_TRUE(group->look_at_bricks());
    EXPECT_EQ(all_there(*group), save == 0 || save == 2);
    save_fails_in_ = 0;
    ASSERT_TRUE(group->look_at_bricks());
    EXPECT_TRUE(all_there(*group));
    group.reset();
    EXPECT_TRUE(all_there(*begin()));
  }
  fs::rename(brick(1), root_ + "/away");
  auto group = begin();
  fs::rename(root_ + "/away", brick(1));
  env_.faults.fail_atomic_writes = true;
  ASSERT_TRUE(group->look_at_bricks());
  EXPECT_TRUE(all_there(*group));
  env_.faults.fail_atomic_writes = false;
  group.reset();
  EXPECT_TRUE(all_there(*begin()));
}

}  // namespace
}  // namespace tidemark::image
