// A host without the tenure reads the shared copy: never one that lacks what the holder acknowledged.
#include <algorithm>
#include <cerrno>

#include "shared/base/log.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;


struct OtherReader : testing::Test {
  ~OtherReader() override { log::set_sink_for_testing(nullptr); }
  // host1 holds the image with 'a' in it, flushed, and has it open; host2 has it open for reading.
  void begin(Lab& lab) {
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    writer = *first;
    ASSERT_TRUE(lab.write("host1", writer, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", writer).is_ok());
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    reader = *second;
    auto r = lab.read("host2", reader, 0);
    ASSERT_TRUE(r.is_ok()) << r.status().to_string();
    ASSERT_EQ(*r, 'a');
  }
  void go_alone(Lab& lab) {
    lab.world.partition("host1", "shared1");
    Status wrote = lab.write("host1", writer, 0, 'b');
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
  }
  void heal(Lab& lab) { lab.world.heal("host1", "shared1"), lab.world.heal("shared1", "host1"); }
  void expect_new(Lab& lab) {
    auto r = lab.read("host2", reader, 0);
    ASSERT_TRUE(r.is_ok()) << r.status().to_string();
    EXPECT_EQ(*r, 'b');
  }
  // host1 has the image by force from host2, which is lost, and a copy of it; `staged`: so is what stands in for host2.
  void take(Lab& lab, bool staged = true) {
    lab.add_third_host();
    auto lost = lab.open_filled("host2");
    ASSERT_TRUE(lost.is_ok()) << lost.status().to_string();
    lab.crash("host2", Crash::kKill);
    auto taken = lab.take_at_shared(R"({"images":["/disk.img"],"force":true})");
    ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
    auto opened = lab.open("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    writer = *opened;
    if (!staged) lab.world.inject("host1", FileFault{1, UINT64_MAX, kWrite, "/spool/"});
    ASSERT_TRUE(lab.read("host1", writer, 0).is_ok());   // it takes a free tenure, and fills its copy
    auto filled = [&] { return lab.engine("host1").status_json().find("\"mirror\":\"mirrored\"") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(filled, seconds(20))) << lab.engine("host1").status_json();
  }
  // host1 is in its recovery, which the slow reads of the shared brick hold up, and ends; host3 has the image open.
  void expect_nothing_old_in_recovery(Lab& lab, fs::HandleId other) {
    auto status = [&] { return lab.engine("host1").status_json(); };
    auto recovers = [&] { return status().find("\"recovering\":true") != std::string::npos; };
    auto connected = [&] { return status().find("\"connected\":true,\"connections\"") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(connected, seconds(20))) << status();
    lab.world.run_for(seconds(1));
    ASSERT_TRUE(recovers()) << "the test sees nothing: " << status();
    auto asked = lab.take_at_shared(R"({"images":["/disk.img"],"dry_run":true})");
    ASSERT_TRUE(asked.is_ok()) << asked.status().to_string();
    EXPECT_NE(asked->find("\"level\":false"), std::string::npos) << *asked;
    auto early = lab.read("host3", other, 0);
    EXPECT_TRUE(!early || *early == 'b') << "old bytes";
    lab.world.slow_reads("shared1", "/brick", seconds(0));
    ASSERT_TRUE(lab.healthy("host1"));
    auto r = lab.read("host3", other, 0);
    ASSERT_TRUE(r.is_ok()) << r.status().to_string();
    EXPECT_EQ(*r, 'b');
    EXPECT_EQ(lab.verify("host1"), "");
  }
  Result<uint64_t> seek(Lab& lab, const std::string& host, uint64_t offset, bool data) {
    return lab.wait<Result<uint64_t>>(
        [&](auto done) { lab.engine(host).seek(host == "host1" ? writer : reader, offset, data, std::move(done)); });
  }
  fs::HandleId writer, reader;
};

TEST_F(OtherReader, GetsAnErrorWhileTheHolderIsAloneAndItsWritesOnceItIsBack) {
  Lab lab(1);
  begin(lab);
  go_alone(lab);
  auto r = lab.read("host2", reader, 0);
  ASSERT_FALSE(r.is_ok()) << "old bytes: " << *r;
  EXPECT_EQ(r.status().sys_errno(), EIO) << r.status().to_string();
  heal(lab);
  expect_new(lab);
}

TEST_F(OtherReader, WaitsForTheRecoveryOfAHolderThatWasAlone) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    Lab lab(seed);
    begin(lab);
    go_alone(lab);
    lab.crash("host1", Crash::kKill);
    heal(lab);
    lab.start("host1");
    for (int i = 0; i < 3 && !lab.engine("host1").healthy(); ++i) {
      auto r = lab.read("host2", reader, 0);
      EXPECT_TRUE(!r || *r == 'b') << "seed " << seed;
    }
    ASSERT_TRUE(lab.healthy("host1"));
    expect_new(lab);
  }
}

TEST_F(OtherReader, ReadsWhatAHolderThatCrashedAndIsIdleHadWritten) {
  Lab lab(1);
  begin(lab);
  ASSERT_TRUE(lab.write("host1", writer, 0, 'b').is_ok());
  ASSERT_TRUE(lab.flush("host1", writer).is_ok());
  lab.crash("host1", Crash::kKill);
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  expect_new(lab);
}

TEST_F(OtherReader, SeesNothingOldAfterThePowerCutOfTheSharedNode) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    Lab lab(seed);
    begin(lab);
    ASSERT_TRUE(lab.write("host1", writer, 0, 'b').is_ok());
    lab.crash("shared1", Crash::kPowerLoss);
    lab.start("shared1");
    for (int i = 0; i < 4; ++i) {
      auto r = lab.read("host2", reader, 0);
      EXPECT_TRUE(!r || *r == 'b') << "seed " << seed;
    }
    ASSERT_TRUE(lab.healthy("host1"));
    expect_new(lab);
  }
}

// It took the image by force, went on alone before a write of its reached the shared node, and crashed: the sync with which
// its tenure begins anew is no word that the copies are level.
TEST_F(OtherReader, GetsNothingOldOfAHolderThatTookTheImageAndWasAlone) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    ASSERT_NO_FATAL_FAILURE(take(lab));
    go_alone(lab);
    lab.crash("host1", Crash::kKill);
    heal(lab);
    lab.world.slow_reads("shared1", "/brick", seconds(1));
    lab.start("host1");
    auto other = lab.open("host3");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    expect_nothing_old_in_recovery(lab, *other);
  }
}

// A recovery that begins the tenure of a taken image anew syncs the shared copy first, which has lost a write of the tenure
// before: that sync is no word that the copies are level.
TEST_F(OtherReader, GetsNothingOldWhileTheRecoveryOfAHolderThatTookTheImageHasNotEnded) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    ASSERT_NO_FATAL_FAILURE(take(lab, false));
    Status wrote = lab.write("host1", writer, 0, 'b');
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
    lab.crash("host1", Crash::kKill);
    lab.crash("shared1", Crash::kPowerLoss);
    lab.start("shared1");
    lab.world.clear_faults("host1");
    lab.world.run_for(seconds(3));   // host3 is linked again
    auto other = lab.open("host3");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    lab.world.slow_reads("shared1", "/brick", seconds(1));
    lab.start("host1");
    ASSERT_NO_FATAL_FAILURE(expect_nothing_old_in_recovery(lab, *other));
    EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << lab.shared_status();
  }
}

// The link stands, and the shared copy can be read: it lacks what its brick refused, and the holder acknowledged alone.
TEST_F(OtherReader, GetsNothingOldWhileTheSharedNodeRefusesTheHoldersWrites) {
  for (int error : {EIO, ENOSPC}) {
    Lab lab(1);
    begin(lab);
    lab.world.inject("shared1", FileFault{1, UINT64_MAX, kWrite, "/brick", error});
    ASSERT_TRUE(lab.write("host1", writer, 0, 'b', Lab::kRegion).is_ok());
    auto r = lab.read("host2", reader, 0, Lab::kRegion);
    EXPECT_TRUE(r ? *r == 'b' : r.status().code() != Code::kCorruption) << "errno " << error << ": old bytes";
    lab.world.clear_faults("shared1");
    ASSERT_TRUE(lab.healthy("host1"));
    expect_new(lab);
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// What was refused is of the tenure in which it was: after the recovery the copies are level, and count as such.
TEST_F(OtherReader, ReadsAgainOnceAHolderWhoseWritesWereRefusedHasRecovered) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    Lab lab(seed);
    begin(lab);
    lab.world.inject("shared1", FileFault{1, UINT64_MAX, kWrite, "/brick"});
    ASSERT_TRUE(lab.write("host1", writer, 0, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", writer).is_ok());
    lab.crash("host1", Crash::kPowerLoss);
    lab.world.clear_faults("shared1");
    lab.start("host1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(lab.healthy("host1"));
    ASSERT_TRUE(lab.write("host1", *again, 2 * Lab::kRegion, 'c').is_ok());   // it holds on to the tenure
    ASSERT_TRUE(lab.flush("host1", *again).is_ok());
    EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << lab.shared_status();
    expect_new(lab);
  }
}

// The flush of a recovery hangs with the brick, and is refused; the brick answers again, and so does the flush that is
// tried again. The holder goes on alone all the same until it has resumed.
TEST_F(OtherReader, GetsNothingOldAfterAFlushOfTheHoldersRecoveryWasRefused) {
  for (uint64_t seed = 1; seed <= 14; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    ASSERT_TRUE(lab.write("host1", writer, 0, 'a').is_ok());   // not flushed: it is recovered
    lab.crash("host1", Crash::kKill);
    lab.world.inject("shared1", FileFault{1, UINT64_MAX, static_cast<uint16_t>(FileOp::kSync), "/brick", 0, true});
    lab.start("host1");
    ASSERT_TRUE(lab.world.run_until([&] { return lab.world.hung("shared1") != 0; }, seconds(60)));
    lab.world.run_for(std::chrono::milliseconds(5500) + seed * std::chrono::milliseconds(500));
    lab.world.clear_faults("shared1");
    lab.world.release_hung("shared1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    Status wrote = lab.write("host1", *again, 0, 'b');
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
    auto r = lab.read("host2", reader, 0);
    EXPECT_TRUE(!r || *r == 'b') << "old bytes";
    ASSERT_TRUE(lab.healthy("host1"));
    expect_new(lab);
    EXPECT_EQ(lab.verify("host1"), "");
    ASSERT_TRUE(lab.flush("host1", *again).is_ok());
    EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << lab.shared_status();
  }
}

// What lies beyond the end that the reader knows counts as what lies before it: no end of file that is not the end.
TEST_F(OtherReader, IsToldOfNoEndThatTheHolderHasMovedAlone) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Lab lab(seed);
    begin(lab);
    go_alone(lab);
    ASSERT_TRUE(lab.write("host1", writer, Lab::kImageBytes, 'b', Lab::kRegion).is_ok());
    ASSERT_TRUE(lab.flush("host1", writer).is_ok());
    for (uint64_t at : {Lab::kImageBytes, Lab::kImageBytes - 4096}) {   // at the old end, and across it
      auto r = lab.read("host2", reader, at, 8192);
      ASSERT_FALSE(r.is_ok()) << "seed " << seed << ": an end at " << Lab::kImageBytes;
      EXPECT_EQ(r.status().sys_errno(), EIO) << r.status().to_string();
    }
    heal(lab);
    auto r = lab.read("host2", reader, Lab::kImageBytes, Lab::kRegion);
    ASSERT_TRUE(r.is_ok()) << r.status().to_string();
    EXPECT_EQ(*r, 'b');
  }
}

TEST_F(OtherReader, IsToldOfNoEndWhileItIsCutOffItself) {
  Lab lab(1);
  begin(lab);
  lab.world.partition("host2", "shared1");
  lab.world.partition("shared1", "host2");
  ASSERT_TRUE(lab.write("host1", writer, Lab::kImageBytes, 'b', Lab::kRegion).is_ok());
  lab.world.run_for(seconds(3));
  auto r = lab.read("host2", reader, Lab::kImageBytes, Lab::kRegion);
  EXPECT_FALSE(r.is_ok()) << "an end at " << Lab::kImageBytes;   // it waits
  EXPECT_FALSE(seek(lab, "host2", Lab::kImageBytes, true).is_ok());
  lab.world.heal_all();
  r = lab.read("host2", reader, Lab::kImageBytes, Lab::kRegion);
  ASSERT_TRUE(r.is_ok()) << r.status().to_string();
  EXPECT_EQ(*r, 'b');
}

// Its read waits for the link, and so does what it asked for meanwhile: the tenure, should it be free.
TEST_F(OtherReader, GoesOnWhereTheLinkDiesUnderARead) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Lab lab(seed);
    begin(lab);
    lab.world.run_for(seconds(2));
    auto data = std::make_shared<Bytes>(4096);                    // shared with the read
    auto got = std::make_shared<std::optional<Result<size_t>>>();   // likewise
    lab.engine("host2").read(reader, 0, *data, io::IoMode::kQueued,
                             [data, got](Result<size_t> n) { got->emplace(std::move(n)); });
    lab.world.run_for(std::chrono::microseconds(seed * 10));
    lab.crash("shared1", Crash::kKill);
    lab.start("shared1");
    ASSERT_TRUE(lab.world.run_until([&] { return got->has_value(); }, seconds(60))) << "seed " << seed;
    ASSERT_TRUE((*got)->is_ok()) << (*got)->status().to_string();
    EXPECT_EQ(data->front(), 'a');
  }
}

// What a holder had sent before it went on alone arrives when the link is whole again: that it comes says nothing of the
// holder as it is by then.
TEST_F(OtherReader, GetsNothingOldWhileWhatTheHolderHadSentArrivesLate) {
  struct Read {
    Bytes data = Bytes(4096);
    std::optional<Result<size_t>> got;
  };
  const Bytes sent(4096, 'c');
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.world.partition("host1", "shared1");
    for (uint64_t granule = 1; granule <= 40; ++granule) {
      lab.engine("host1").write(writer, granule * 4096, sent, io::IoMode::kQueued, [](Result<size_t>) {});
      lab.world.run_for(std::chrono::microseconds(500));
    }
    lab.world.run_for(seconds(2));
    ASSERT_TRUE(lab.write("host1", writer, 0, 'b').is_ok());
    std::vector<std::shared_ptr<Read>> reads;   // shared with the answers
    for (int step = 0; step < 400; ++step) {
      lab.world.run_for(std::chrono::microseconds(10));
      if (step == 100) heal(lab);
      auto read = reads.emplace_back(std::make_shared<Read>());
      lab.engine("host2").read(reader, 0, read->data, io::IoMode::kQueued,
                               [read](Result<size_t> n) { read->got.emplace(std::move(n)); });
    }
    auto answered = [](const std::shared_ptr<Read>& r) { return r->got.has_value(); };
    ASSERT_TRUE(lab.world.run_until([&] { return std::ranges::all_of(reads, answered); }, seconds(60)));
    auto old = [](const std::shared_ptr<Read>& r) { return r->got->is_ok() && r->data.front() != 'b'; };
    EXPECT_EQ(std::ranges::count_if(reads, old), 0) << "reads got old bytes";
    ASSERT_TRUE(lab.healthy("host1"));
    expect_new(lab);
  }
}

// More than a second of its writes lies before what says that it is there.
TEST_F(OtherReader, WaitsForAHolderWhoseLinkIsFull) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    bool recalled = false;
    log::set_sink_for_testing([&](log::Level, std::string_view, std::string_view line) {
      recalled = recalled || line.find("recalled") != line.npos;
    });
    Lab lab(seed);
    begin(lab);
    lab.world.run_for(seconds(2));
    recalled = false;
    const Duration full = std::chrono::milliseconds(900);
    lab.world.set_latency("host1", "shared1", {full, full});
    const Bytes sent(4096, 'c');
    auto data = std::make_shared<Bytes>(4096);                       // shared with the read
    auto got = std::make_shared<std::optional<Result<size_t>>>();   // likewise
    for (uint64_t i = 0; i < 150; ++i) {
      lab.engine("host1").write(writer, (1 + i % 40) * 4096, sent, io::IoMode::kQueued, [](Result<size_t>) {});
      lab.world.run_for(std::chrono::milliseconds(100));
      if (i == 30) {
        lab.engine("host2").read(reader, 0, *data, io::IoMode::kQueued,
                                 [data, got](Result<size_t> n) { got->emplace(std::move(n)); });
      }
    }
    EXPECT_TRUE(!got->has_value() || (*got)->is_ok()) << (*got)->status().to_string();
    lab.world.set_latency("host1", "shared1", {std::chrono::microseconds(30), std::chrono::milliseconds(2)});
    ASSERT_TRUE(lab.world.run_until([&] { return got->has_value(); }, seconds(10)));
    ASSERT_TRUE((*got)->is_ok()) << (*got)->status().to_string();
    EXPECT_EQ(data->front(), 'a');
    EXPECT_FALSE(recalled) << "it has to give away what it uses";
  }
}

// A copy made with lseek() would lack it, without an error.
TEST_F(OtherReader, IsToldOfNoHoleThatTheHolderHasFilledAlone) {
  Lab lab(1);
  begin(lab);
  go_alone(lab);
  ASSERT_TRUE(lab.write("host1", writer, 2 * Lab::kRegion, 'b').is_ok());
  ASSERT_TRUE(lab.write("host1", writer, Lab::kImageBytes, 'b').is_ok());
  auto data = seek(lab, "host2", Lab::kRegion, true);
  EXPECT_TRUE(data.is_ok() && *data <= 2 * Lab::kRegion) << (data ? std::to_string(*data) : data.status().to_string());
  auto hole = seek(lab, "host2", Lab::kRegion, false);
  EXPECT_TRUE(!hole || *hole >= Lab::kImageBytes) << *hole;
  auto end = seek(lab, "host2", Lab::kImageBytes, true);
  ASSERT_FALSE(end.is_ok());
  EXPECT_NE(end.status().sys_errno(), ENXIO) << "this is not the end";
  heal(lab);
  ASSERT_TRUE(lab.healthy("host1"));
  data = seek(lab, "host2", Lab::kRegion, true);
  ASSERT_TRUE(data.is_ok()) << data.status().to_string();
  EXPECT_EQ(*data, 2 * Lab::kRegion);
}

}  // namespace
}  // namespace tidemark::sim
