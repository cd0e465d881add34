// Times of an image: those of its last write are shown and told, whatever becomes of other requests; changes move ctime.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class TimesTest : public EngineTest {
 protected:
  wire::Attr attr_of(const File& f) {
    Pending r = getattr(f);
    EXPECT_TRUE(wait(r));
    return r->attr;
  }
  Result<wire::Attr> set(const File& f, uint32_t mask) {
    SetAttr change;
    change.mask = mask | wire::kSetCtime;
    change.values.mode = 0640;
    change.values.mtime = WallTime{12345};
    change.values.ctime = WallTime{options_.wall_start.ns + world_->elapsed().count()};
    std::optional<Result<wire::Attr>> answer;
    engine(f.host).setattr(f.inode, change, [&](Result<wire::Attr> r) { answer.emplace(std::move(r)); });
    if (!until([&] { return answer.has_value(); })) return Status(Code::kCancelled, "no answer in time");
    return *answer;
  }
};

TEST_F(TimesTest, AChangeOfTimesThatFailsLeavesThoseOfTheLastWrite) {
  File f = start_written();
  lose_link(1);
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  const WallTime written = attr_of(f).mtime;
  ASSERT_FALSE(set(f, wire::kSetMtime));
  EXPECT_EQ(attr_of(f).mtime, written);
  heal_link(1);
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  close(f);
  world_->run_for(seconds(1));
  EXPECT_EQ(attr_of(open(2, "a.img")).mtime, written);
}

TEST_F(TimesTest, AreShownAlsoWhereTheLinkWasLostAsTheyWereTold) {
  File f = start_written();
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  const WallTime written = attr_of(f).mtime;
  cut_link(1);
  close(f);
  ASSERT_TRUE(until([&] { return logged("times_not_kept"); }));
  EXPECT_EQ(attr_of(f).mtime, written);
}

TEST_F(TimesTest, AChangeMovesCtimeWhateverTheClocksSay) {
  start();
  world_->jump_wall("shared1", std::chrono::hours(1));
  File f = create(1, "a.img", kMiB);
  const wire::Attr made = attr_of(f);
  auto changed = set(f, wire::kSetMode);
  ASSERT_TRUE(changed);
  EXPECT_GT(changed->ctime, made.ctime);
  auto again = set(f, wire::kSetMode);
  ASSERT_TRUE(again);
  EXPECT_GT(again->ctime, changed->ctime);
}

}  // namespace
}  // namespace tidemark::fs
