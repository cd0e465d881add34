// What a failed sync was to make durable reads as it was written, and may be on no disk; the next sync does not bring it
// there (SimCrash.FailedSyncIsNotHealedByTheNext). Nothing counts as durable before it was written again.
#include "shared/base/log.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kPlaces = 16, kApart = Lab::kImageBytes / kPlaces;

// What is logged while it lives.
struct Logged {
  Logged() {
    log::set_sink_for_testing([this](log::Level, std::string_view, std::string_view line) { lines += std::string(line) + "\n"; });
  }
  Logged(const Logged&) = delete;
  Logged& operator=(const Logged&) = delete;
  ~Logged() { log::set_sink_for_testing(nullptr); }
  bool has(std::string_view what) const { return lines.find(what) != std::string::npos; }
  std::string lines;
};

class FailedSync : public testing::Test {
 public:
  // An image with 'a', flushed, and 'b' in a part of it, not flushed yet.
  void begin(Lab& lab) {
    image_ = lab.open_filled("host1");
    ASSERT_TRUE(image_.is_ok()) << image_.status().to_string();
    ASSERT_TRUE(lab.healthy("host1"));
    write_places(lab, 'b');
  }
  void write_places(Lab& lab, uint8_t byte) {
    for (uint64_t b = 0; b < kPlaces; ++b) ASSERT_TRUE(lab.write("host1", *image_, b * kApart, byte).is_ok());
  }
  void open_again(Lab& lab) {
    image_ = lab.open("host1");
    ASSERT_TRUE(image_.is_ok()) << image_.status().to_string();
  }
  void fail_next_sync(Lab& lab, const std::string& node, uint64_t times = 1) {
    lab.world.inject(node, FileFault{.times = times, .operations = kSync, .path_contains = ".data"});
  }
  // The sync of host1's own copy with which these would be durable.
  void write_and_fail_to_sync(Lab& lab, uint8_t byte) {
    ASSERT_NO_FATAL_FAILURE(write_places(lab, byte));
    fail_next_sync(lab, "host1");
    ASSERT_FALSE(lab.flush("host1", *image_).is_ok());
  }
  void begin_alone_and_fail_to_sync(Lab& lab) {
    ASSERT_NO_FATAL_FAILURE(begin(lab));
    lab.world.partition("host1", "shared1");
    write_and_fail_to_sync(lab, 'b');
  }
  // The shared node's, of what is asked for.
  template <class F>
  void fail_sync_there(Lab& lab, F&& ask) {
    Logged log;
    fail_next_sync(lab, "shared1");
    ask();
    ASSERT_TRUE(lab.world.run_until([&] { return log.has("sync_failed"); }, seconds(30))) << log.lines;
  }
  void fail_flush_there(Lab& lab) {
    fail_sync_there(lab, [&] { lab.engine("host1").flush(*image_, io::IoMode::kQueued, [](Status) {}); });
  }
  void flush_alone_and_fail_there(Lab& lab) {
    Logged log;
    fail_next_sync(lab, "shared1");
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok()) << "the own copy has it";
    ASSERT_TRUE(log.has("sync_failed")) << log.lines;
  }
  void set_mirror(Lab& lab, const std::string& policy) {
    auto attr = lab.wait<Result<wire::Attr>>(
        [&](auto done) { lab.engine("host1").lookup(InodeNumber(1), "disk.img", std::move(done)); });
    ASSERT_TRUE(attr.is_ok()) << attr.status().to_string();
    wire::SetXattr mirror;
    mirror.inode = attr->inode;
    mirror.name = "user.tidemark.mirror";
    mirror.value.assign(policy.begin(), policy.end());
    Status set = lab.wait<Status>([&](auto done) { lab.engine("host1").set_xattr(mirror, std::move(done)); });
    ASSERT_TRUE(set.is_ok()) << set.to_string();
  }
  void lose_power(Lab& lab, const std::string& node) {
    lab.crash(node, Crash::kPowerLoss);
    lab.start(node);
    lab.world.heal_all();
    lab.world.run_for(seconds(8));
  }
  void mirror_none(Lab& lab) {
    set_mirror(lab, "none");
    lab.world.run_for(seconds(2));
  }
  void expect_places(Lab& lab, const std::string& host, fs::HandleId image, uint8_t byte) {
    for (uint64_t b = 0; b < kPlaces; ++b) {
      auto got = lab.read(host, image, b * kApart);
      EXPECT_TRUE(got.is_ok() && *got == byte)
          << "block " << b << " reads " << (got ? std::string(1, static_cast<char>(*got)) : got.status().to_string());
    }
  }
  void expect_b_on_both(Lab& lab, const std::string& host, fs::HandleId image) {
    expect_places(lab, host, image, 'b');
    ASSERT_TRUE(lab.healthy(host));
    EXPECT_EQ(lab.verify(host), "");
  }
  void expect_b_after_power_loss(Lab& lab, const std::string& host, fs::HandleId image) {
    lose_power(lab, "shared1");
    ASSERT_TRUE(lab.healthy(host));
    expect_b_on_both(lab, host, image);
  }
  Result<fs::HandleId> image_ = Status(Code::kNotFound, "not open");
};

// The shared node's sync fails, the host flushes alone and makes the copies equal; whoever dies in between. From then on
// the shared copy has it on its disk.
TEST_F(FailedSync, OfTheSharedCopyIsMadeGoodByWriting) {
  enum Between { kNothing, kSharedIsKilled, kHostIsKilled, kHostLosesPower, kLast };
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    ASSERT_NO_FATAL_FAILURE(flush_alone_and_fail_there(lab));
    const auto between = static_cast<Between>(seed % kLast);
    const std::string dies = between == kNothing ? "" : between == kSharedIsKilled ? "shared1" : "host1";
    if (!dies.empty()) {
      lab.crash(dies, between == kHostLosesPower ? Crash::kPowerLoss : Crash::kKill);
      lab.start(dies);
    }
    if (dies == "host1") {
      ASSERT_NO_FATAL_FAILURE(open_again(lab));
    }
    lab.world.run_for(seconds(8));
    ASSERT_TRUE(lab.healthy("host1"));
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lose_power(lab, "shared1");
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "") << "case " << between;
    lab.engine("host1").release(*image_);
    auto there = lab.open("host2");
    ASSERT_TRUE(there.is_ok()) << there.status().to_string();
    ASSERT_TRUE(lab.write("host2", *there, kApart / 2, 'c').is_ok());
    expect_places(lab, "host2", *there, 'b');
  }
}

// The same of what is a hole again.
TEST_F(FailedSync, OfTheSharedCopyIsMadeGoodForHoles) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    Status punched = lab.wait<Status>([&](auto done) {
      lab.engine("host1").fallocate(*image_, fs::Engine::Fallocate::kPunch, {0, Lab::kImageBytes / 2}, std::move(done));
    });
    ASSERT_TRUE(punched.is_ok()) << punched.to_string();
    ASSERT_NO_FATAL_FAILURE(flush_alone_and_fail_there(lab));
    lab.world.run_for(seconds(8));
    ASSERT_TRUE(lab.healthy("host1"));
    lose_power(lab, "shared1");
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// The own copy's sync fails while the host is alone: its guest hears so, and a flush that is acknowledged later holds.
TEST_F(FailedSync, OfTheOwnCopyAloneIsMadeGoodBeforeAFlushIsAcknowledged) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    ASSERT_NO_FATAL_FAILURE(begin_alone_and_fail_to_sync(lab));
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    if (seed % 2 == 0) {   // resynced, and clean: it is not compared after the crash
      lab.world.heal_all();
      ASSERT_TRUE(lab.healthy("host1"));
      ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
      lab.world.run_for(seconds(60));
    }
    lose_power(lab, "host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    expect_b_on_both(lab, "host1", *image_);
  }
}

// The same where nobody flushes again before the copies are equal, or where the daemon is killed before that.
TEST_F(FailedSync, OfTheOwnCopyAloneIsMadeGoodBeforeTheCopiesCountAsEqual) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    ASSERT_NO_FATAL_FAILURE(begin_alone_and_fail_to_sync(lab));
    const bool killed = seed % 2 == 0;
    if (killed) {
      lab.crash("host1", Crash::kKill);
      lab.start("host1");
    }
    lab.world.heal_all();
    lab.world.run_for(seconds(8));
    if (killed) {
      ASSERT_NO_FATAL_FAILURE(open_again(lab));
    }
    ASSERT_TRUE(lab.healthy("host1"));
    lab.world.run_for(seconds(60));
    lose_power(lab, "host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    expect_b_on_both(lab, "host1", *image_);
  }
}

// Of an image that is on its host alone, which is killed in between or not.
TEST_F(FailedSync, OfTheOnlyCopyIsMadeGoodBeforeAFlushIsAcknowledged) {
  for (uint64_t seed = 1; seed <= seeds_of(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    mirror_none(lab);
    ASSERT_NO_FATAL_FAILURE(write_and_fail_to_sync(lab, 'b'));
    if (seed % 2 == 0) {
      lab.crash("host1", Crash::kKill);
      lab.start("host1");
      lab.world.run_for(seconds(8));
      ASSERT_NO_FATAL_FAILURE(open_again(lab));
    }
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lose_power(lab, "host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    expect_places(lab, "host1", *image_, 'b');
  }
}

// The same while the host's journal takes nothing: what its dirty-region log does not have is written again, too.
TEST_F(FailedSync, OfTheOnlyCopyIsMadeGoodWhereTheDirtyRegionLogDoesNotHaveAllOfIt) {
  for (uint64_t seed = 1; seed <= seeds_of(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    set_mirror(lab, "none");
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lab.world.run_for(seconds(60));   // nothing is dirty
    lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/drl", .status = Status(Code::kOutOfSpace, "full")});
    ASSERT_NO_FATAL_FAILURE(write_and_fail_to_sync(lab, 'c'));
    lab.crash("host1", Crash::kKill);
    lab.world.set_store_fault("host1", std::nullopt);
    lab.start("host1");
    for (uint64_t run = 0; run < 2; ++run) {
      ASSERT_NO_FATAL_FAILURE(open_again(lab));
      SCOPED_TRACE("run " + std::to_string(run));
      expect_places(lab, "host1", *image_, 'c');
      ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
      if (run == 0) lose_power(lab, "host1");
    }
  }
}

// One that was on its host alone is copied, the shared node's sync of that fails, and the host crashes, and once more in its
// recovery, its mount gone or standing: that is known until all of it was written again.
TEST_F(FailedSync, OfTheSharedCopyOfOneThatWasOnItsHostAloneIsMadeGoodByASecondRecovery) {
  for (uint64_t seed = 1; seed <= seeds_of(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    mirror_none(lab);
    ASSERT_TRUE(lab.write("host1", *image_, 0, 'b', Lab::kImageBytes).is_ok());
    ASSERT_NO_FATAL_FAILURE(fail_sync_there(lab, [&] { set_mirror(lab, "sync"); }));
    lab.crash("host1", Crash::kKill);

    lab.resync_rate = Lab::kRegion;   // a second
    lab.start("host1");
    auto comparing = [&] { return lab.engine("host1").status_json().find("\"resync\":{") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(comparing, seconds(20)));
    lab.crash("host1", Crash::kKill);

    lab.resync_rate = 0;
    if (seed % 2 == 0) lab.start("host1");
    else lab.succeed("host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lose_power(lab, "shared1");
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_EQ(lab.verify("host1"), "");
  }
}

// A grow syncs what was written before it: its failure is one like a flush's.
TEST_F(FailedSync, OfAGrowIsMadeGoodBeforeAFlushIsAcknowledged) {
  enum Case { kOnlyCopy, kAlone, kResynced, kResyncedUnflushed, kLast };
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const auto now = static_cast<Case>(seed % kLast);
    Lab lab(seed);
    begin(lab);
    ASSERT_NO_FATAL_FAILURE(write_places(lab, 'c'));
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    if (now == kOnlyCopy) mirror_none(lab);
    else lab.world.partition("host1", "shared1");
    ASSERT_NO_FATAL_FAILURE(write_places(lab, 'b'));
    fail_next_sync(lab, "host1");
    EXPECT_FALSE(lab.write("host1", *image_, Lab::kImageBytes, 'b').is_ok());
    EXPECT_TRUE(now == kResyncedUnflushed || lab.flush("host1", *image_).is_ok());
    if (now == kResynced || now == kResyncedUnflushed) {   // and clean: it is not compared after the crash
      lab.world.heal_all();
      ASSERT_TRUE(lab.healthy("host1"));
      lab.world.run_for(seconds(60));
    }
    lose_power(lab, "host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    expect_places(lab, "host1", *image_, 'b');
    if (now == kOnlyCopy) continue;
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "") << "case " << now;
  }
}

// The own copy has failed, and the host crashes, its mount gone or standing, with a sync of the shared copy failed or not: what
// that one alone has is durable there once a flush was acknowledged.
TEST_F(FailedSync, OfTheSharedCopyThatIsTheOnlyOneIsMadeGoodByTheRecovery) {
  for (const bool fails : {true, false}) {
    for (const bool stands : {false, true}) {
      for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed) + (fails ? ", the sync fails" : "") + (stands ? ", the mount stands" : ""));
        Lab lab(seed);
        begin(lab);
        lab.world.inject("host1", FileFault{1, UINT64_MAX, kWrite, "/brick1"});
        ASSERT_NO_FATAL_FAILURE(write_places(lab, 'b'));
        if (fails) {
          ASSERT_NO_FATAL_FAILURE(fail_flush_there(lab));
        }
        lab.crash("host1", Crash::kKill);
        lab.world.inject("host1", FileFault{1, UINT64_MAX, kRead, ".meta"});
        if (stands) {
          lab.succeed("host1");
        } else {
          lab.start("host1");
          ASSERT_NO_FATAL_FAILURE(open_again(lab));
          ASSERT_TRUE(lab.write("host1", *image_, kApart / 2, 'c').is_ok());
        }
        expect_places(lab, "host1", *image_, 'b');
        ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
        lose_power(lab, "shared1");
        expect_places(lab, "host1", *image_, 'b');
      }
    }
  }
}

// The own copy fails while the recovery makes the two equal.
TEST_F(FailedSync, OfTheSharedCopyIsMadeGoodWhereTheOwnOneFailsInTheRecovery) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    ASSERT_NO_FATAL_FAILURE(fail_flush_there(lab));
    lab.crash("host1", Crash::kKill);
    lab.world.inject("host1", FileFault{1, UINT64_MAX, kRead, ".data"});
    lab.start("host1");
    ASSERT_NO_FATAL_FAILURE(open_again(lab));
    ASSERT_TRUE(lab.write("host1", *image_, kApart / 2, 'c').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lose_power(lab, "shared1");
    expect_places(lab, "host1", *image_, 'b');
  }
}

// The sync of a taking fails: what the lost holder had not flushed is written again before the next tenure begins.
TEST_F(FailedSync, OfATakingIsMadeGoodBeforeTheNextTenureBegins) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.crash("host1", Crash::kKill);
    fail_next_sync(lab, "shared1", seed % 3 == 1 ? 3 : 1);   // so does writing it again, at first
    {
      Logged log;
      auto taken = lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}");
      ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
      ASSERT_TRUE(log.has("taken_unsynced")) << log.lines;
    }
    if (seed % 3 == 0) {   // what it has in memory is still all there
      lab.crash("shared1", Crash::kKill);
      lab.start("shared1");
      lab.world.run_for(seconds(8));
    }
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    const auto wrote = [&] { return lab.write("host2", *second, kApart / 2, 'c').is_ok(); };
    ASSERT_TRUE(wrote() || wrote() || wrote());   // an error while it cannot be made good
    expect_b_after_power_loss(lab, "host2", *second);
  }
}

// The taking could not try, and the sync with which the next tenure begins fails.
TEST_F(FailedSync, OfTheTenureAfterATakingIsMadeGoodBeforeItBegins) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.crash("host1", Crash::kKill);
    lab.crash("shared1", Crash::kKill);      // nobody has the copy open
    lab.start("shared1");
    lab.world.run_for(seconds(8));           // until host 2 has noticed, and is back
    Logged log;
    lab.world.inject("shared1", FileFault{1, 1, static_cast<uint16_t>(FileOp::kRead), ".meta", 5});
    ASSERT_TRUE(lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}").is_ok());
    ASSERT_TRUE(log.has("taken_unsynced")) << log.lines;
    fail_next_sync(lab, "shared1");
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    const auto wrote = [&] { return lab.write("host2", *second, kApart / 2, 'c').is_ok(); };
    ASSERT_TRUE(wrote() || wrote());
    ASSERT_TRUE(log.has("sync_failed")) << log.lines;
    expect_b_after_power_loss(lab, "host2", *second);
  }
}

// The sync of a taking hangs, is given up, and fails when the next tenure has been granted: the sync with which that one
// begins ends well, and covers nothing of what was to be covered by the other.
TEST_F(FailedSync, OfATakingThatHadBeenGivenUpIsMadeGoodBeforeTheNextTenureBegins) {
  for (uint64_t seed = 1; seed <= seeds_of(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    lab.crash("host1", Crash::kKill);
    lab.world.inject("shared1", FileFault{.times = 2, .operations = kSync, .path_contains = ".data", .hangs = true});
    ASSERT_TRUE(lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}").is_ok());
    ASSERT_EQ(lab.world.hung("shared1"), 2u) << "a stripe each";
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    const milliseconds slow(200);   // so that there is a moment between the grant and what the host makes of it
    lab.world.set_latency("host2", "shared1", {slow, slow});
    lab.world.set_latency("shared1", "host2", {slow, slow});
    Bytes data(4096, 'c');
    std::optional<Result<size_t>> wrote;
    {
      Logged log;
      lab.engine("host2").write(*second, kApart / 2, data, io::IoMode::kQueued,
                                [&](Result<size_t> n) { wrote.emplace(std::move(n)); });
      ASSERT_TRUE(lab.world.run_until([&] { return log.has("tenure_started"); }, seconds(10))) << log.lines;
      lab.world.run_for(milliseconds(100));
    }
    lab.world.release_hung("shared1", EIO);
    ASSERT_TRUE(lab.world.run_until([&] { return wrote.has_value(); }, seconds(60)));
    ASSERT_TRUE(wrote->is_ok() || lab.write("host2", *second, kApart / 2, 'c').is_ok());
    expect_b_after_power_loss(lab, "host2", *second);
  }
}

// The own copy has failed, and the shared one has a block besides that cannot be read: that one is lost, and said to be;
// the others are made good, and the guest's flush does not wait for ever.
TEST_F(FailedSync, OfTheSharedCopyAloneIsMadeGoodAroundABadSector) {
  for (uint64_t seed = 1; seed <= seeds_of(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab);
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .path_contains = "/brick"});
    ASSERT_NO_FATAL_FAILURE(write_places(lab, 'b'));
    const uint64_t bad = seed % 2 == 0 ? 4096 : 0;     // beside what is in doubt, or of it
    ASSERT_TRUE(lab.world.spoil("shared1", lab.objects("shared1").front(), {bad, 4096}).is_ok());
    fail_next_sync(lab, "shared1");
    const Status flushed = lab.flush("host1", *image_);
    EXPECT_EQ(flushed.code(), Code::kIoError) << flushed.to_string();
    const auto flushes = [&] { return lab.flush("host1", *image_).is_ok(); };
    ASSERT_TRUE(flushes() || flushes());   // it came before the block was met, maybe
    EXPECT_FALSE(lab.read("host1", *image_, bad).is_ok());
    ASSERT_TRUE(lab.write("host1", *image_, bad, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image_).is_ok());
    lose_power(lab, "shared1");
    expect_places(lab, "host1", *image_, 'b');
    lab.world.clear_faults("host1");
    ASSERT_TRUE(lab.healthy("host1"));
    expect_b_on_both(lab, "host1", *image_);
  }
}

}  // namespace
}  // namespace tidemark::sim
