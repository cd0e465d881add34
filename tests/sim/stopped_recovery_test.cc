// A host is stopped in the midst of the recovery that follows its crash: unmounted, or shut down. What only its copy has,
// and what nobody has compared yet, stays its own until it is back: no other host is given the image meanwhile.
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

enum class Before { kAlone, kWriteUnderWay };   // what host1 had done when it crashed
enum class Link { kUp, kLost };                 // as it is stopped
enum class Other { kReads, kWaits };            // host2: reads afterwards, or waits for the image already

struct Case {
  Before before;
  Link link;
  Other other;
};

class StoppedRecoveryTest : public testing::TestWithParam<Case> {
 protected:
  bool recovers(Lab& lab) { return lab.engine("host1").status_json().find("\"recovering\":true") != std::string::npos; }
  bool held_by_host1(Lab& lab) { return lab.shared_status().find("\"holder\":\"host1\"") != std::string::npos; }

  // Back after a crash: it holds the image again, and compares what is dirty for a long time.
  void begin_recovery(Lab& lab) {
    auto handle = lab.open_filled("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    lab.world.run_for(seconds(30));   // what was written is clean
    lab.world.partition("host1", "shared1");
    if (GetParam().before == Before::kAlone) {
      ASSERT_TRUE(lab.write("host1", *handle, 0, 'b', Lab::kImageBytes).is_ok());
      ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
    } else {   // on its way to the shared node, and never answered: the host's copy alone has it
      auto data = std::make_shared<Bytes>(Lab::kImageBytes, 'b');   // shared with the write
      lab.engine("host1").write(*handle, 0, *data, io::IoMode::kQueued, [data](Result<size_t>) {});
      lab.world.run_for(milliseconds(500));
    }
    lab.crash("host1", Crash::kKill);
    lab.world.heal_all();
    lab.world.slow_reads("shared1", "/brick", milliseconds(4900));
    lab.start("host1");
    lab.world.run_for(milliseconds(300));
    ASSERT_TRUE(recovers(lab) && held_by_host1(lab)) << "it has ended";
  }
  void stop(Lab& lab) {
    const Duration begun = lab.world.elapsed();
    auto stopped = lab.wait<Status>([&](auto done) { lab.engine("host1").stop(milliseconds(500), std::move(done)); });
    EXPECT_TRUE(stopped.is_ok()) << stopped.to_string();
    EXPECT_LE(lab.world.elapsed() - begun, seconds(2));
    lab.crash("host1", Crash::kKill);   // its process ends
    lab.world.heal_all();
  }
  // Of the next run, in which all is well again.
  void expect_level(Lab& lab, fs::HandleId reader) {
    lab.world.slow_reads("shared1", "/brick", seconds(0));
    lab.start("host1");
    auto handle = lab.open("host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_TRUE(lab.engine("host1").branches().empty());
    for (uint64_t offset = 0; offset < Lab::kImageBytes; offset += Lab::kRegion) {
      for (const char* host : {"host1", "host2"}) {
        auto got = lab.read(host, host == std::string("host1") ? *handle : reader, offset);
        ASSERT_TRUE(got.is_ok()) << host << ": " << got.status().to_string();
        EXPECT_TRUE(*got == 'b') << host << " at " << offset << ": " << *got;
      }
    }
    ASSERT_TRUE(lab.write("host1", *handle, 0, 'd').is_ok());
    ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
    EXPECT_EQ(lab.verify("host1"), "");
  }
};

TEST_P(StoppedRecoveryTest, GivesNothingAwayThatIsNotReconciled) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin_recovery(lab);
    if (testing::Test::HasFatalFailure()) return;
    auto reader = lab.open("host2");
    ASSERT_TRUE(reader.is_ok()) << reader.status().to_string();
    std::optional<Status> wrote;
    const Bytes data(4096, 'c');
    if (GetParam().other == Other::kWaits) {
      lab.engine("host2").write(*reader, 0, data, io::IoMode::kQueued, [&](const auto& n) { wrote = n.status(); });
      lab.world.run_for(milliseconds(500));
    }
    if (GetParam().link == Link::kLost) lab.world.partition("host1", "shared1");
    stop(lab);
    EXPECT_TRUE(held_by_host1(lab)) << lab.shared_status();
    if (GetParam().other == Other::kWaits) {
      ASSERT_TRUE(lab.world.run_until([&] { return wrote.has_value(); }, seconds(60)));
      EXPECT_EQ(wrote->code(), Code::kBusy) << "it was given away unreconciled";
    } else {
      auto got = lab.read("host2", *reader, 0);
      EXPECT_TRUE(!got.is_ok()) << "it reads " << *got << ", and no more is known to be right";
    }
    expect_level(lab, *reader);
  }
}

INSTANTIATE_TEST_SUITE_P(Stops, StoppedRecoveryTest,
                         testing::Values(Case{Before::kAlone, Link::kUp, Other::kReads},
                                         Case{Before::kAlone, Link::kUp, Other::kWaits},
                                         Case{Before::kAlone, Link::kLost, Other::kReads},
                                         Case{Before::kWriteUnderWay, Link::kUp, Other::kReads},
                                         Case{Before::kWriteUnderWay, Link::kUp, Other::kWaits},
                                         Case{Before::kWriteUnderWay, Link::kLost, Other::kReads}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return std::string(c.before == Before::kAlone ? "AfterATimeAlone" : "AfterAWriteUnderWay") +
                                  (c.link == Link::kUp ? "" : "WithoutTheLink") +
                                  (c.other == Other::kWaits ? "WhileAnotherHostWaits" : "");
                         });

}  // namespace
}  // namespace tidemark::sim
