// Handovers of a tenure, and a host's brick, each in the one situation that once went wrong or that must be shown.
#include "journal/records.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// What a host durably knows of its tenure of the one image.
Result<journal::TenureRow> tenure_of(Lab& lab, const std::string& host) {
  auto rows = lab.world.committed(host, "/state/journal", "images");
  if (rows.size() != 1) return Status(Code::kNotFound, std::to_string(rows.size()) + " rows");
  return journal::decode_tenure(rows.begin()->second);
}

// Whether all of the host's writes up to this one are on its disk as segments, which a restart ships as they are.
bool staged(Lab& lab, const std::string& host, const WriteSequence& through) {
  for (const auto& [key, value] : lab.world.committed(host, "/state/journal", "batches")) {
    auto row = journal::decode_batch_row(value);
    if (row && row->state == journal::BatchState::kStaged && WriteSequence{row->incarnation, row->last} >= through) return true;
  }
  return false;
}

// The next tenure's batches wait at the replica for what the old holder wrote: a power cut must not take that away.
TEST(Handover, WhatTheNextTenureNamesAsItsParentSurvivesAPowerCutOfTheOldHolder) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.engine("host1").set_shipping_paused(true);     // nothing is staged for any other reason
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.engine("host1").release(*first);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 4096, 'b').is_ok());
    lab.crash("host1", Crash::kPowerLoss);
    auto tenure = tenure_of(lab, "host2");
    ASSERT_TRUE(tenure.is_ok()) << tenure.status().to_string();
    EXPECT_EQ(tenure->parent.source, "host1");
    EXPECT_GT(tenure->parent.last.counter.value, 0u);
    EXPECT_TRUE(staged(lab, "host1", tenure->parent.last)) << "seed " << seed;
  }
}

// Whether the host's only image comes to be shown as in that state.
bool comes_to_be(Lab& lab, const std::string& host, const char* state) {
  const std::string shown = "\"mirror\":\"" + std::string(state) + '"';
  return lab.world.run_until([&] { return lab.engine(host).status_json().find(shown) != std::string::npos; }, seconds(60));
}

// What is on record as older than the shared copy is taken from there after a crash, whatever the host wrote since.
void expect_writes_alone_survive(Lab& lab, const std::string& host, fs::HandleId handle) {
  ASSERT_TRUE(comes_to_be(lab, host, "mirrored")) << lab.engine(host).status_json();
  lab.world.partition(host, "shared1");
  ASSERT_TRUE(lab.write(host, handle, Lab::kRegion, 'z').is_ok());
  ASSERT_TRUE(lab.flush(host, handle).is_ok());
  lab.crash(host, Crash::kKill);
  lab.world.heal_all();
  lab.start(host);
  auto again = lab.open(host);
  ASSERT_TRUE(again.is_ok()) << again.status().to_string();
  auto got = lab.read(host, *again, Lab::kRegion);
  ASSERT_TRUE(got.is_ok()) << got.status().to_string();
  EXPECT_EQ(static_cast<char>(*got), 'z') << "acknowledged, and flushed";
}

// The image is all written and closed on host1, and opened on host2.
Result<fs::HandleId> fill_on_host1_and_open_on_host2(Lab& lab) {
  auto first = lab.open_filled("host1");
  if (!first) return first;
  if (!lab.healthy("host1")) return Status(Code::kUnavailable, "host1 is not level");
  lab.engine("host1").release(*first);
  lab.world.run_for(seconds(5));
  return lab.open("host2");
}

TEST(Handover, ACopyThatIsFilledWhileTheSharedNodeStartsAnewIsOnRecordAsLevel) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto second = fill_on_host1_and_open_on_host2(lab);
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.slow_reads("shared1", "/brick", seconds(1));
    ASSERT_TRUE(lab.write("host2", *second, 0, 'b').is_ok());
    ASSERT_TRUE(comes_to_be(lab, "host2", "filling")) << lab.engine("host2").status_json();
    lab.crash("shared1", Crash::kKill);
    lab.start("shared1");
    lab.world.slow_reads("shared1", "/brick", seconds(0));
    expect_writes_alone_survive(lab, "host2", *second);
  }
}

TEST(Handover, WhatIsOnRecordBeyondTheEndOfAShrunkImageGoesBeforeItGrowsAgain) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto second = fill_on_host1_and_open_on_host2(lab);
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.write("host2", *second, 0, 'b').is_ok());
    ASSERT_TRUE(comes_to_be(lab, "host2", "mirrored")) << lab.engine("host2").status_json();
    lab.engine("host2").release(*second);
    auto first = lab.open("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'c', Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab.resize("host1", lab.inode_of("host1"), 0).is_ok());
    lab.engine("host1").release(*first);
    lab.world.run_for(seconds(5));
    second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.resize("host2", lab.inode_of("host2"), Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab.write("host2", *second, 0, 'd', Lab::kImageBytes).is_ok());
    expect_writes_alone_survive(lab, "host2", *second);
  }
}

// Writes that a crash left unstaged are in the resync batch; the tenure that is given back must name it, though the
// shared node was restarted and does not remember how far that host had written.
TEST(Handover, ATenureGivenBackAfterACrashNamesWhatTheEarlierRunWrote) {
  Lab lab(1);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  lab.engine("host1").set_shipping_paused(true);
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  ASSERT_TRUE(lab.world.run_until([&] { return lab.world.committed("host1", "/state/drl", "regions").empty(); }, seconds(60)));
  lab.crash("host1", Crash::kPowerLoss);
  lab.crash("shared1", Crash::kKill);
  lab.start("shared1");
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1") && lab.healthy("host2"));
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  Status wrote = lab.write("host2", *second, 4096, 'b');
  ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
  auto tenure = tenure_of(lab, "host2");
  ASSERT_TRUE(tenure.is_ok()) << tenure.status().to_string();
  EXPECT_EQ(tenure->parent.source, "host1");
  EXPECT_GT(tenure->parent.last.counter.value, 0u);
  EXPECT_TRUE(staged(lab, "host1", tenure->parent.last));
}

// A host that crashed with every region clean does not touch the image when it is back: it must still give it back.
TEST(Handover, ARestartedHostGivesBackATenureThatItDoesNotKnow) {
  Lab lab(1);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  ASSERT_TRUE(lab.world.run_until([&] { return lab.world.committed("host1", "/state/drl", "regions").empty(); }, seconds(60)));
  lab.crash("host1", Crash::kPowerLoss);
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  Status wrote = lab.write("host2", *second, 4096, 'b');
  EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
  auto byte = lab.read("host2", *second, 0);
  ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
  EXPECT_EQ(*byte, 'a');
}

// The shared node has taken the yield, its answer is lost: the host may hold nothing any more, so it must neither go on
// alone nor be stuck as fenced.
TEST(Handover, AYieldWithoutAnAnswerLeavesNoSecondWriter) {
  for (uint64_t seed = 1; seed <= seeds_of(40); ++seed) {
    Lab lab(seed);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.engine("host1").release(*first);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    // host2 asks for the tenure; what the shared node says to host1 is held back from a random moment on.
    Bytes data(4096, 'b');
    std::optional<Result<size_t>> wrote;
    lab.engine("host2").write(*second, 0, data, io::IoMode::kQueued, [&](Result<size_t> n) { wrote = std::move(n); });
    lab.world.run_for(lab.world.random().in({Duration(0), milliseconds(12)}));
    lab.world.cut("shared1", "host1");
    lab.world.run_for(seconds(3));
    std::optional<Result<size_t>> other;
    Bytes mine(4096, 'c');
    lab.engine("host1").write(*again, 0, mine, io::IoMode::kQueued, [&](Result<size_t> n) { other = std::move(n); });
    lab.world.run_for(seconds(60));
    bool both = wrote && wrote->is_ok() && other && other->is_ok();
    EXPECT_FALSE(both) << "seed " << seed << ": two hosts got writes acknowledged";
    lab.world.heal_all();
    ASSERT_TRUE(lab.world.run_until([&] { return wrote && other; }, seconds(120))) << "seed " << seed;
    // host2 releases: host1 is given the tenure, and not stuck.
    lab.engine("host2").release(*second);
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    Status last = lab.write("host1", *again, 8192, 'd');
    EXPECT_TRUE(last.is_ok()) << "seed " << seed << ": " << last.to_string();
  }
}

// What the shared node said before a restart is not what is: status names no writer that it cannot know of.
TEST(Handover, ARestartedHostDoesNotCallItselfTheWriterOfWhatItDoesNotHold) {
  Lab lab(1);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  auto again = lab.open("host1");                  // what is cached of it now names this host
  ASSERT_TRUE(again.is_ok()) << again.status().to_string();
  EXPECT_NE(lab.engine("host1").status_json().find("\"writer\":\"host1\""), std::string::npos);
  lab.engine("host1").release(*first);
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  ASSERT_TRUE(lab.write("host2", *second, 4096, 'b').is_ok());
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  std::string status = lab.engine("host1").status_json();
  EXPECT_NE(status.find("disk.img"), std::string::npos) << status;
  EXPECT_EQ(status.find("\"writer\":\"host1\""), std::string::npos) << status;
}

// Nothing is asked by anybody: the signs of life alone find out that a link is dead, at both ends.
TEST(Handover, AnIdleLinkThatCarriesNothingAnyMoreIsNoticedAtBothEnds) {
  Lab lab(1);
  auto handle = lab.open("host1", true);
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  ASSERT_TRUE(lab.write("host1", *handle, 0, 'a').is_ok());
  ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
  ASSERT_TRUE(lab.healthy("host1"));
  auto connected = [&] {
    return lab.shared_status().find("\"connected\":false,\"host\":\"host1\"") == std::string::npos;   // keys are sorted
  };
  lab.world.run_for(std::chrono::minutes(10));
  EXPECT_TRUE(connected() && lab.engine("host1").healthy()) << "a quiet link stays: " << lab.shared_status();
  lab.world.partition("host1", "shared1");
  EXPECT_TRUE(lab.world.run_until([&] { return !lab.engine("host1").healthy(); }, std::chrono::seconds(3)));
  EXPECT_TRUE(lab.world.run_until([&] { return !connected(); }, std::chrono::seconds(30))) << lab.shared_status();
  lab.world.heal_all();
  EXPECT_TRUE(lab.healthy("host1") && connected());
}

}  // namespace
}  // namespace tidemark::sim
