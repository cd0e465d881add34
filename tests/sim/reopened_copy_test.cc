// A resize of an image whose own copy failed and is opened anew meanwhile.
#include <cerrno>

#include "tests/sim/lab.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// The own copy failed once and is opened anew after thirty seconds, at any moment of a resize that the shared node takes
// its time for, as it does for all that it notes: its answers to the two come in either order.
class ReopenedCopy : public testing::TestWithParam<int> {
 protected:
  // Answered once it is level again.
  Status resize_as_it_reopens(uint64_t size) {
    const InodeNumber inode = lab_.inode_of("host1");
    lab_.world.run_for(seconds(5));
    lab_.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", EIO});
    if (Status s = lab_.write("host1", *handle_, 0, 'b'); !s) return s;
    EXPECT_FALSE(lab_.engine("host1").healthy()) << "no fault came";
    lab_.world.set_store_fault("shared1", StoreFault{.path_contains = "/catalogue", .delay = milliseconds(300)});
    lab_.world.run_for(seconds(29) + milliseconds(100) * GetParam());
    wire::Create other;
    other.parent = InodeNumber(1);
    other.name = "directory";
    other.kind = wire::NodeKind::kDirectory;
    other.mode = 0700;
    lab_.engine("host2").create(std::move(other), [](auto) {});
    lab_.world.run_for(milliseconds(250));
    Status done = lab_.resize("host1", inode, size);
    lab_.world.set_store_fault("shared1", {});
    return done;
  }
  int byte_at(uint64_t offset) {
    auto got = lab_.read("host1", *handle_, offset);
    EXPECT_TRUE(got.is_ok()) << got.status().to_string();
    return got ? *got : -1;
  }

  Lab lab_{11, false, Plant::kNone, Ships::kYes};
  Site site_{lab_};
  Result<fs::HandleId> handle_ = lab_.open_filled("host1");
};

TEST_P(ReopenedCopy, OfAnImageThatGrowsMeanwhileLosesNothingFromAPoint) {
  ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
  Status grown = resize_as_it_reopens(6 * Lab::kRegion);
  ASSERT_TRUE(grown.is_ok()) << grown.to_string();
  ASSERT_TRUE(lab_.write("host1", *handle_, 5 * Lab::kRegion, 'w').is_ok());
  ASSERT_TRUE(lab_.flush("host1", *handle_).is_ok());
  const std::string data = site_.mark("host1", "grown");
  ASSERT_NE(data, "");
  const std::string range = "bytes=" + std::to_string(5 * Lab::kRegion) + "-" + std::to_string(5 * Lab::kRegion + 4095);
  const std::string shown = site_.ask(data, range);
  EXPECT_EQ(shown, std::string(4096, 'w'));
  ASSERT_TRUE(lab_.healthy("host1"));
  EXPECT_EQ(site_.verify("host1"), "");
}

TEST_P(ReopenedCopy, OfAnImageThatShrinksMeanwhileHasNothingOfWhatWasCutOff) {
  ASSERT_TRUE(handle_.is_ok()) << handle_.status().to_string();
  Status cut = resize_as_it_reopens(Lab::kRegion);
  ASSERT_TRUE(cut.is_ok()) << cut.to_string();
  ASSERT_TRUE(lab_.healthy("host1"));
  ASSERT_TRUE(lab_.resize("host1", lab_.inode_of("host1"), Lab::kImageBytes).is_ok());
  EXPECT_EQ(byte_at(2 * Lab::kRegion), 0);
  ASSERT_TRUE(lab_.healthy("host1"));
  EXPECT_EQ(site_.verify("host1"), "");
}
INSTANTIATE_TEST_SUITE_P(Moments, ReopenedCopy, testing::Range(0, 41));

}  // namespace
}  // namespace tidemark::sim
