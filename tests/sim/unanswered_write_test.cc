// A write of an image that waits for the shared node (its own copy is being filled) has no answer for as long as that is
// away: the host's other images go on, and so do their recovery points.
#include <optional>

#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

class UnansweredWrite {
 public:
  explicit UnansweredWrite(uint64_t seed) : lab(seed, false, Plant::kNone, Ships::kYes), site(lab) {
    auto filled = lab.open_filled("host2");
    EXPECT_TRUE(filled.is_ok());
    lab.engine("host2").release(*filled);
    lab.crash("host1", Crash::kKill);
    lab.resync_rate = 4 << 10;
    lab.start("host1");
    auto second = lab.open("host1", true, "other.img");
    auto first = lab.open("host1");
    if (!first || !second) {
      ADD_FAILURE() << first.status().to_string() << ", " << second.status().to_string();
      return;
    }
    filling = *first;
    other = *second;
    EXPECT_TRUE(lab.write("host1", other, 0, 'o', Lab::kImageBytes).is_ok());
    EXPECT_TRUE(lab.flush("host1", other).is_ok());
    EXPECT_TRUE(lab.write("host1", filling, 0, 'b').is_ok());
  }
  void write_unanswered() {
    lab.engine("host1").write(filling, 4096, data_, io::IoMode::kQueued, [this](auto n) { answered = n.status().code(); });
  }
  // The other image's guest goes on, and what it has flushed is a point.
  void expect_points() {
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(lab.write("host1", other, 8192, static_cast<uint8_t>('A' + i)).is_ok());
      ASSERT_TRUE(lab.flush("host1", other).is_ok());
      lab.world.run_for(seconds(1));
    }
    EXPECT_FALSE(answered) << "it has no answer, and is told one";
    auto marked = lab.wait<Result<std::string>>(
        [&](auto done) { lab.engine("host1").mark("alone", true, seconds(30), std::move(done)); });
    ASSERT_TRUE(marked.is_ok()) << marked.status().to_string();
    auto attr = lab.wait<Result<wire::Attr>>(
        [&](auto done) { lab.engine("host1").lookup(InodeNumber(1), "other.img", std::move(done)); });
    ASSERT_TRUE(attr.is_ok()) << attr.status().to_string();
    const std::string bytes = site.ask("/v1/points/alone/images/" + attr->image.to_string() + "/data");
    ASSERT_GT(bytes.size(), 8192u) << bytes;
    EXPECT_EQ(bytes[8192], 'A' + 19);
  }
  // All copies of these images; none named: of all.
  std::string verify(const std::string& host, const std::vector<std::string>& images = {}) {
    nlohmann::json said;
    for (int tries = 0; tries < 60; ++tries, lab.world.run_for(seconds(1))) {
      auto r = lab.wait<Result<std::string>>(
          [&](auto done) { lab.engine(host).verifier().start(images, [](uint64_t, uint64_t) {}, std::move(done)); });
      if (!r) return r.status().to_string();
      said = nlohmann::json::parse(*r);
      bool level = said["equal"] == true;
      for (const auto& image : said["images"]) level = level && image["copies"]["replica"] == "level";
      if (level) return "";
    }
    return said.dump();
  }

  Lab lab;
  Site site;
  fs::HandleId filling, other;
  std::optional<Code> answered;

 private:
  const Bytes data_ = Bytes(4096, 'c');
};

TEST(UnansweredWriteTest, HoldsUpNoPointOfOtherImages) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    UnansweredWrite t(seed);
    t.write_unanswered();
    t.lab.world.partition("host1", "shared1");
    t.lab.world.partition("host2", "shared1");
    t.expect_points();
    t.lab.world.heal_all();
    ASSERT_TRUE(t.lab.world.run_until([&] { return t.answered.has_value(); }, seconds(60)));
    EXPECT_EQ(*t.answered, Code::kOk);
    ASSERT_TRUE(t.lab.healthy("host1", seconds(300)));
    auto read = t.lab.read("host1", t.filling, 4096);
    EXPECT_TRUE(read && *read == 'c');
    EXPECT_EQ(t.verify("host1"), "");
  }
}

// The host dies: its records say what it had not been told.
TEST(UnansweredWriteTest, IsEqualOnAllCopiesAfterACrash) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    UnansweredWrite t(seed);
    t.write_unanswered();
    t.lab.world.partition("host1", "shared1");
    t.expect_points();
    t.lab.crash("host1", seed % 2 == 0 ? Crash::kKill : Crash::kPowerLoss);
    t.lab.world.heal_all();
    t.lab.start("host1");
    auto again = t.lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(t.lab.write("host1", *again, 3 * Lab::kRegion, 'd').is_ok());
    ASSERT_TRUE(t.lab.healthy("host1", seconds(300)));
    EXPECT_EQ(t.verify("host1"), "");
  }
}

// The shared copy has it, only the answer was lost: what another host takes by force follows upon all of it.
TEST(UnansweredWriteTest, IsNoBranchWhereTheSharedCopyHasItAndItsTenureIsTaken) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    UnansweredWrite t(seed);
    t.lab.world.cut("shared1", "host1");
    t.write_unanswered();
    t.lab.world.run_for(seconds(1));
    t.lab.world.partition("host1", "shared1");
    t.expect_points();
    auto taken = t.lab.take_at_shared(R"({"images":["/disk.img"],"force":true})");
    ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
    auto image = t.lab.open("host2");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(t.lab.write("host2", *image, 3 * Lab::kRegion, 'd').is_ok());
    auto read = t.lab.read("host2", *image, 4096);
    EXPECT_TRUE(read && *read == 'c');
    t.lab.world.heal_all();
    ASSERT_TRUE(t.lab.world.run_until([&] { return t.answered.has_value(); }, seconds(60)));
    EXPECT_NE(*t.answered, Code::kOk);
    t.lab.world.run_for(seconds(20));
    EXPECT_EQ(t.site.branches(), 0u);
    EXPECT_EQ(t.verify("host2", {"disk.img"}), "");
  }
}

}  // namespace
}  // namespace tidemark::sim
