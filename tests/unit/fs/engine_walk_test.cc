// What a verify or a scrub of an image does to those who use it, and they to it: it is nobody's handle.
#include <nlohmann/json.hpp>

#include "fs/scrubber.h"
#include "fs/verifier.h"
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

using nlohmann::json;

enum class Walk { kVerify, kScrub };

class WalkTest : public EngineTest, public testing::WithParamInterface<Walk> {
 protected:
  // Of all images, by host 2. `step` runs before every chunk but the first.
  Pending begin_walk(UniqueFunction<void()> step = [] {}) {
    auto r = std::make_shared<Request>();
    auto progress = [step = std::move(step)](uint64_t, uint64_t) mutable { step(); };
    auto done = [r](Result<std::string> result) {
      r->text = result ? *result : std::string();
      r->answer = result.status();
    };
    if (GetParam() == Walk::kVerify) engine(2).verifier().start({}, std::move(progress), std::move(done));
    else engine(2).scrubber().start({}, std::move(progress), std::move(done));
    return r;
  }
  // An image that host 1 has written, and nobody has open.
  File written_by_host1(const std::string& name = "a.img") {
    File f = create(1, name, 8 * kMiB);
    for (uint64_t at = 0; at < 8 * kMiB; at += kMiB) EXPECT_TRUE(write_now(f, at, 0x11, kMiB));
    EXPECT_TRUE(wait(flush(f)));
    close(f);
    f.host = 2;
    return f;
  }
  int times_logged(const std::string& event) const {
    int times = 0;
    for (size_t at = log_.find(event); at != std::string::npos; at = log_.find(event, at + 1)) ++times;
    return times;
  }
  json shown(const File& f) {
    const json status = json::parse(engine(f.host).status_json());
    for (const json& image : status["images"])
      if (image["uuid"] == f.image.to_string()) return image;
    return {};
  }
};

TEST_P(WalkTest, IsNoHandle) {
  start();
  File f = written_by_host1();
  int steps = 0;
  Pending walk = begin_walk([&] {
    ++steps;
    EXPECT_EQ(shown(f)["open_handles"], 0);
    EXPECT_FALSE(survivors_[2]->end_of(f.image)) << "nobody appends there";
  });
  Pending attr = getattr(f);
  ASSERT_TRUE(wait(attr));
  EXPECT_TRUE(engine(2).may_be_cached(attr->attr)) << "nobody has it open";
  ASSERT_TRUE(wait(walk));
  EXPECT_GT(steps, 1);
  EXPECT_FALSE(survivors_[2]->end_of(f.image)) << "there is room for so many, and this one is never forgotten";
}

TEST_P(WalkTest, KeepsNothingOfWhoClosesMeanwhile) {
  start();
  File f = written_by_host1();
  f = open(2, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
  ASSERT_TRUE(survivors_[2]->end_of(f.image)) << "as host 1 left it";
  bool closed = false;
  Pending walk = begin_walk([&] {
    if (!std::exchange(closed, true)) close(f);
    EXPECT_FALSE(survivors_[2]->end_of(f.image));
  });
  ASSERT_TRUE(wait(walk));
  EXPECT_TRUE(closed);
}

// Its copies are needed until the walk is through, and no longer.
TEST_P(WalkTest, OutlivesTheNameAndTheLastHandle) {
  start();
  File f = written_by_host1();
  f = open(2, "a.img");
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  Pending removed;
  Pending walk = begin_walk([&] {
    if (removed) return;
    removed = unlink(2, "a.img");
    close(f);
  });
  ASSERT_EQ(wait(walk).to_string(), "ok");
  ASSERT_TRUE(wait(removed));
  const json result = json::parse(walk->text);
  ASSERT_EQ(result["images"].size(), 1u) << walk->text;
  EXPECT_EQ(result["images"][0]["bytes_compared"], 8 * kMiB) << walk->text;
  EXPECT_TRUE(until([&] { return logged("image_removed") && !has_blocks("shared1", f); }));
}

// While an earlier one kept it waiting.
TEST_P(WalkTest, LeavesOutWhatWasRemovedBeforeItsTurn) {
  start();
  File busy = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(busy, 0, 0x11, kMiB));
  written_by_host1("b.img");
  File known = open(2, "b.img");
  close(known);
  log_.clear();
  Pending walk = begin_walk();
  ASSERT_TRUE(until([&] { return logged("recalled"); }));
  ASSERT_TRUE(wait(unlink(1, "b.img")));
  ASSERT_TRUE(until([&] { return times_logged("fs image_removed") == 2; }, seconds(10)));   // by both hosts
  EXPECT_FALSE(walk->answer);
  close(busy);
  ASSERT_EQ(wait(walk).to_string(), "ok");
  const json result = json::parse(walk->text);
  ASSERT_EQ(result["images"].size(), 1u) << walk->text;
  EXPECT_EQ(result["images"][0]["path"], "a.img");
}

// A file's name may hold any bytes; a result is JSON, which may not.
TEST_P(WalkTest, StandsNamesThatAreNoUtf8) {
  start();
  written_by_host1("caf\xe9.img");
  Pending walk = begin_walk();
  ASSERT_EQ(wait(walk).to_string(), "ok");
  const json result = json::parse(walk->text);
  ASSERT_EQ(result["images"].size(), 1u) << walk->text;
  EXPECT_TRUE(result["images"][0]["path"].get<std::string>().starts_with("caf")) << walk->text;
}

// A name that no segment takes would cost the point, though the mark had been answered; another kind names points already.
TEST_F(EngineTest, AMarkWithANameThatNoPointCanHaveIsRefused) {
  start();
  auto code = [&](const std::string& name) {
    auto r = std::make_shared<Request>();
    engine(1).mark(name, false, seconds(1), [r](Result<std::string> said) { r->answer = said.status(); });
    return wait(r).code();
  };
  for (const std::string& bad : {std::string(256, 'x'), std::string("17"), std::string("latest"), std::string("a\nb"),
                                 std::string("2026-11-21T10:00:05Z")})
    EXPECT_EQ(code(bad), Code::kInvalidArgument) << bad;
  for (const std::string& good : {std::string(255, 'x'), std::string("before-17"), std::string()})
    EXPECT_EQ(code(good), Code::kOk) << good;
}

INSTANTIATE_TEST_SUITE_P(Walks, WalkTest, testing::Values(Walk::kVerify, Walk::kScrub),
                         [](const auto& info) { return info.param == Walk::kVerify ? "Verify" : "Scrub"; });

}  // namespace
}  // namespace tidemark::fs
