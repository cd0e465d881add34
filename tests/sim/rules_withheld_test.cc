// What an image whose blocks cannot be read means for its tenure: nobody follows upon what the replica lacks of it.
#include "shared/base/log.h"
#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kForEver = UINT64_MAX;
// The shared node's objects with the image's even and odd regions.
constexpr const char* kEven = ".0.data";
constexpr const char* kOdd = ".1.data";

class RulesOfWithheld {
 public:
  explicit RulesOfWithheld(uint64_t seed) : lab(seed, false, Plant::kNone, Ships::kYes), site(lab) {
    auto opened = lab.open_filled("host1");
    if (!opened) ADD_FAILURE() << opened.status().to_string();
    else first = *opened;
    lab.world.run_for(seconds(40));          // shipped, and the dirty-region log is clean
  }
  // host1 has written 'b', which is not staged yet: its own brick fails, and the shared one has bad sectors there.
  void begin_unreadable(bool slow = false) {
    lab.world.inject("host1", FileFault{.times = kForEver, .path_contains = "/brick1"});
    lab.engine("host1").set_shipping_paused(true);
    ASSERT_TRUE(lab.write("host1", first, 3 * Lab::kRegion, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", first).is_ok());
    lab.world.inject("shared1", FileFault{.times = kForEver, .operations = kRead, .path_contains = kOdd, .hangs = slow});
  }
  void mended() {
    lab.world.clear_faults("host1");
    lab.world.clear_faults("shared1");
    lab.engine("host1").set_shipping_paused(false);
  }
  Status second_writes() {
    auto opened = lab.open("host2");
    if (!opened) return opened.status();
    Status wrote = lab.write("host2", *opened, 0, 'c');
    lab.engine("host2").release(*opened);
    return wrote;
  }
  // host1 dies, and host2 takes the image by force, which cannot be read on one of the shared bricks then.
  void take_unreadable() {
    lab.crash("host1", Crash::kKill);
    auto taken = lab.take_at_shared(R"({"images":["/disk.img"],"force":true})");
    ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
    auto opened = lab.open("host2");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    second = *opened;
    lab.world.inject("shared1", FileFault{.times = kForEver, .operations = kRead, .path_contains = kEven});
    ASSERT_TRUE(lab.write("host2", second, Lab::kRegion, 'c').is_ok());   // on the other one
  }
  // host2 goes on, and the replica has all of it.
  void expect_moved() {
    lab.world.run_for(seconds(10));
    Status wrote = second_writes();
    EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
    EXPECT_TRUE(lab.healthy("host2"));
    EXPECT_EQ(site.verify("host2"), "") << "the replica lacks what was acknowledged";
    EXPECT_EQ(site.branches(), 0u) << "the main line was kept aside";
  }

  Lab lab;
  Site site;
  fs::HandleId first, second;
};

TEST(Rules, AnImageThatCannotBeReadAnyMoreAsItIsHandedOverStaysWhereItIs) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.begin_unreadable();
    t.lab.engine("host1").release(t.first);
    EXPECT_EQ(t.second_writes().code(), Code::kBusy) << "it follows upon what the replica lacks";
    t.mended();
    t.expect_moved();
  }
}

TEST(Rules, AHostThatKeepsAnImageBecauseItCannotBeReadSaysSoOnce) {
  RulesOfWithheld t(1);
  t.begin_unreadable();
  t.lab.engine("host1").release(t.first);
  size_t told = 0;
  log::set_sink_for_testing([&](log::Level, std::string_view, std::string_view line) {
    if (line.find("yield_waits") != std::string_view::npos) ++told;
  });
  EXPECT_EQ(t.second_writes().code(), Code::kBusy);
  log::set_sink_for_testing({});
  EXPECT_EQ(told, 1u);
  std::vector<std::string> reasons;
  EXPECT_FALSE(t.lab.engine("host1").healthy(&reasons));
  EXPECT_EQ(std::ranges::count_if(reasons, [](const auto& r) { return r.starts_with("disk.img: host2 wants"); }), 1);
  t.mended();
  t.expect_moved();
  t.lab.engine("host1").healthy(&reasons);
  EXPECT_EQ(std::ranges::count_if(reasons, [](const auto& r) { return r.find(" wants ") != std::string::npos; }), 0);
}

// A disk tries for seconds before it says so.
TEST(Rules, NorIsOneHandedOverOfWhichTheFirstReadHasFailed) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.begin_unreadable(true);
    t.lab.engine("host1").release(t.first);
    auto second = t.lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    const Bytes data(4096, 'c');
    std::optional<Code> wrote;
    t.lab.engine("host2").write(*second, 0, data, io::IoMode::kQueued, [&](const auto& n) { wrote = n.status().code(); });
    t.lab.world.run_for(milliseconds(3500));
    ASSERT_GT(t.lab.world.hung("shared1"), 0u);
    t.lab.engine("host1").set_shipping_paused(false);
    t.lab.world.clear_faults("shared1");
    t.lab.world.inject("shared1", FileFault{.times = kForEver, .operations = kRead, .path_contains = kOdd});
    t.lab.world.release_hung("shared1", 5);
    ASSERT_TRUE(t.lab.world.run_until([&] { return wrote.has_value(); }, seconds(120)));
    EXPECT_EQ(*wrote, Code::kBusy) << "it follows upon what the replica lacks";
    t.lab.engine("host2").release(*second);
    t.lab.world.run_for(seconds(5));
    t.mended();
    t.expect_moved();
  }
}

TEST(Rules, AHostThatStopsGivesNoImageAwayThatItCannotReadAnyMore) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.begin_unreadable();
    auto stopped = t.lab.wait<Status>([&](auto done) { t.lab.engine("host1").stop(seconds(20), std::move(done)); });
    EXPECT_TRUE(stopped.is_ok()) << stopped.to_string();
    t.lab.crash("host1", Crash::kKill);
    EXPECT_EQ(t.second_writes().code(), Code::kBusy) << "it follows upon what the replica lacks";
    t.lab.world.clear_faults("host1");
    t.lab.world.clear_faults("shared1");
    t.lab.start("host1");
    t.lab.world.run_for(seconds(20));
    t.expect_moved();
  }
}

// Started anew, it does not know the image that it is asked for. Whether it cannot be read is known already, or found out only
// as it is given back.
TEST(Rules, AHostThatIsBackAfterACrashGivesNoImageAwayThatItCannotRead) {
  size_t known = 0, found_out = 0;
  for (uint64_t seed = 1; seed <= seeds_of(16); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.begin_unreadable();
    ASSERT_TRUE(t.lab.world.run_until([&] { return t.lab.world.committed("host1", "/state/drl", "regions").empty(); }, seconds(60)));
    const bool late = seed % 2 == 0;
    if (!late) {
      t.lab.engine("host1").set_shipping_paused(false);
      t.lab.world.run_for(seconds(15));      // a batch without it is staged
    }
    t.lab.crash("host1", Crash::kKill);
    t.lab.world.clear_faults("host1");
    t.lab.start("host1");
    t.lab.world.run_for(milliseconds(20 * seed));
    log::set_sink_for_testing([&](log::Level, std::string_view, std::string_view line) {
      if (line.find("recall_unknown") != std::string_view::npos) ++(late ? found_out : known);
    });
    const Status wrote = t.second_writes();
    log::set_sink_for_testing({});
    EXPECT_EQ(wrote.code(), Code::kBusy) << "it follows upon what the replica lacks";
    t.mended();
    t.expect_moved();
  }
  EXPECT_GT(known, 0u) << "it was always taken up before";
  EXPECT_GT(found_out, 0u) << "it was always taken up before";
}

// host1 has died with what it had not shipped, and host2 takes the image by force: its first batch, which holds all of it,
// stands in. Where the shared copy cannot be read just then, the batch comes later, and stands in all the same.
TEST(Rules, AnImageTakenByForceStandsInForTheLostHostHoweverLateItCanBeRead) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.lab.world.partition("host1", "replica1");
    ASSERT_TRUE(t.lab.write("host1", t.first, Lab::kRegion, 'b').is_ok());
    ASSERT_TRUE(t.lab.flush("host1", t.first).is_ok());
    ASSERT_NO_FATAL_FAILURE(t.take_unreadable());
    t.lab.world.run_for(seconds(10));
    EXPECT_NE(t.lab.engine("host2").status_json().find("cannot be read"), std::string::npos);
    t.lab.world.clear_faults("shared1");
    ASSERT_TRUE(t.lab.healthy("host2"));
    EXPECT_EQ(t.site.verify("host2"), "") << "host2's batches wait for what never comes";
  }
}

// Nobody waits for an image that is not there any more.
TEST(Rules, AnImageTakenByForceThatCannotBeReadIsFreedWithItsName) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE(seed);
    RulesOfWithheld t(seed);
    t.lab.world.partition("host1", "replica1");
    ASSERT_NO_FATAL_FAILURE(t.take_unreadable());
    auto says_so = [&] { return t.lab.engine("host2").status_json().find("cannot be read") != std::string::npos; };
    ASSERT_TRUE(t.lab.world.run_until(says_so, seconds(60)));
    t.lab.engine("host2").release(t.second);
    const Status gone = t.lab.wait<Status>(
        [&](auto done) { t.lab.engine("host2").unlink(InodeNumber(1), "disk.img", false, std::move(done)); });
    ASSERT_TRUE(gone.is_ok()) << gone.to_string();
    ASSERT_TRUE(t.lab.open("host2", true, "other.img").is_ok());
    auto objects = [&] { return t.lab.world.files("host2", "/brick1/objects").size(); };
    const size_t both = objects();
    EXPECT_TRUE(t.lab.world.run_until([&] { return objects() < both; }, seconds(60))) << "its blocks are not freed";
    EXPECT_TRUE(t.lab.world.run_until([&] { return !says_so(); }, seconds(60))) << t.lab.engine("host2").status_json();
  }
}

}  // namespace
}  // namespace tidemark::sim
