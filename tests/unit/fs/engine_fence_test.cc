// A host that learns that its tenure was taken by force, while other things go wrong: what only it has is kept, and the
// image is used again there, or freed.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class FenceTest : public EngineTest {
 protected:
  // Host 1 has written alone what host 2, which has taken the image, does not have. Its link is down still.
  File start_taken() {
    File f = start_written();
    EXPECT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_TRUE(wait(flush(f)));
    lose_link(1);
    EXPECT_TRUE(write_now(f, 0, 0x22, 4096));
    EXPECT_TRUE(wait(take_over(2, R"({"images": ["a.img"], "force": true, "accept_loss": true})")));
    return f;
  }
};

// "No such file" of this host's own file system says nothing of the image.
TEST_F(FenceTest, ABranchWhoseDirectoryIsMissedIsKeptAllTheSame) {
  File f = start_taken();
  constexpr uint16_t kOpens = static_cast<uint16_t>(sim::FileOp::kOpen);
  world_->inject("host1",
                 sim::FileFault{.times = 2, .operations = kOpens, .path_contains = ".branch", .error = ENOENT});
  heal_link(1);
  EXPECT_TRUE(until([&] { return engine(1).branches().size() == 1; }));
  EXPECT_TRUE(until([&] { return mirror(f) != "fenced"; })) << "nobody uses it here before the next start";
  close(f);
  f = open(1, "a.img");
  EXPECT_TRUE(until([&] { return write_now(f, kMiB, 0x33, 4096).is_ok(); }));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x11);
}

// It was taken, then removed. The link goes once more in whichever moment of that being found out.
TEST_F(FenceTest, AnImageThatWasTakenAndRemovedIsFreedWheneverTheLinkGoes) {
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    File f = start_taken();
    ASSERT_TRUE(wait(unlink(2, "a.img")));
    world_->run_for(std::chrono::minutes(15));   // the shared node keeps it so long for a host that is away
    ASSERT_FALSE(has_blocks("shared1", f));
    heal_link(1);
    ASSERT_TRUE(until([&] { return engine(1).branches().size() == 1; }));
    world_->run_for(std::chrono::microseconds(500 * i));
    lose_link(1);
    heal_link(1);
    EXPECT_TRUE(until([&] { return linked(1) && mirror(f) != "fenced"; }));
    EXPECT_TRUE(has_blocks("host1", f)) << "it is open";
    close(f);
    EXPECT_TRUE(until([&] { return !has_blocks("host1", f); }));
    EXPECT_EQ(engine(1).branches().size(), 1u);
    crash_all();
  }
}

// As long as an operator's list of names may be, it must not end the daemon that serves guests.
TEST_F(EngineTest, ATakeoverOfMoreNamesThanAFrameHoldsIsRefused) {
  File f = start_written();
  std::string names;
  while (names.size() < 1100u << 10) names += (names.empty() ? "\"/" : ",\"/") + std::string(200, 'x') + '"';
  Pending taken = take_over(1, "{\"images\":[" + names + "]}");
  EXPECT_EQ(wait(taken).code(), Code::kInvalidArgument) << taken->answer.value_or(Status()).to_string();
  EXPECT_TRUE(linked(1));
  EXPECT_TRUE(write_now(f, 0, 0x22, 4096));
}

}  // namespace
}  // namespace tidemark::fs
