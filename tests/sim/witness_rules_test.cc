// With a witness, case by case: who goes on alone, when a tenure moves by itself, what an operator may force, and what is
// answered meanwhile. witness_test.cc has the partitions at random.
#include "tests/repeat.h"
#include "tests/sim/stamp_writer.h"
#include "tests/sim/witness_lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// By itself, and on the first write of the other host, once the lease has run out.
TEST(Witness, TheTenureOfAHostThatIsGoneMovesByItself) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    lab.world.run_for(seconds(5));       // terms are asked for when both copies are level
    lab.crash("host1", Crash::kKill);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    EXPECT_FALSE(lab.write("host2", *second, 4096, 'b').is_ok()) << "seed " << seed << ": the lease has not run out";
    lab.world.run_for(seconds(6));
    Status wrote = lab.write("host2", *second, 4096, 'b');
    EXPECT_TRUE(wrote.is_ok()) << "seed " << seed << ": " << wrote.to_string();
    auto byte = lab.read("host2", *second, 0);
    ASSERT_TRUE(byte.is_ok());
    EXPECT_EQ(*byte, 'a');
  }
}

TEST(Witness, ACutOffHostGoesOnAloneWithItsVoteAndNobodyElseDoes) {
  Lab lab(1, true);
  auto first = cut_off_after_a_write(lab);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  EXPECT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
  lab.world.run_for(seconds(20));
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  EXPECT_EQ(lab.write("host2", *second, 4096, 'b').code(), Code::kBusy);
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  EXPECT_EQ(lab.verify("host1"), "");
}

// The daemon dies with its link: the one that follows on the same mount must not take the tenure for granted, which
// the shared node has given to host 2 meanwhile.
TEST(Witness, ASuccessorWithoutALinkDoesNotGoOnBesideAnotherHost) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.world.run_for(seconds(5));
    lab.crash("host1", Crash::kKill);
    lab.world.partition("host1", "shared1");
    const bool early = seed % 3 == 0;          // before the lease has run out
    if (seed % 3 != 2) lab.world.partition("host1", "witness1");
    if (early) lab.succeed("host1");
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    auto data = std::make_shared<Bytes>(4096, 'u');
    std::optional<Result<size_t>> mine, read;
    auto read_into = std::make_shared<Bytes>(4096);
    auto ask_host1 = [&] {
      lab.engine("host1").write(*first, 0, *data, io::IoMode::kQueued, [&](Result<size_t> n) { mine = std::move(n); });
      lab.engine("host1").read(*first, 4096, *read_into, io::IoMode::kQueued, [&](Result<size_t> n) { read = std::move(n); });
    };
    if (early) ask_host1();
    Status taken(Code::kBusy, "not asked yet");
    for (int tries = 0; tries < 10 && !taken; ++tries) taken = lab.write("host2", *second, 4096, 'b');
    ASSERT_TRUE(taken.is_ok()) << "seed " << seed << ": " << taken.to_string();
    if (!early) lab.succeed("host1"), ask_host1();
    lab.world.run_for(seconds(30));
    EXPECT_FALSE(mine && mine->is_ok()) << "seed " << seed << ": both sides acknowledge";
    EXPECT_FALSE(read && read->is_ok()) << "seed " << seed << ": an old block is read";
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(errno_of(lab.write("host1", *first, 0, 'z')), EIO) << "seed " << seed;
    lab.engine("host2").release(*second);
    lab.engine("host1").release(*first);
    auto third = lab.open("host1");
    ASSERT_TRUE(third.is_ok()) << third.status().to_string();
    EXPECT_TRUE(lab.write("host1", *third, 8192, 'c').is_ok()) << "seed " << seed;
    auto byte = lab.read("host1", *third, 4096);
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << "seed " << seed;
    EXPECT_EQ(lab.verify("host1"), "") << "seed " << seed;
  }
}

// What the witness has said to the run before, and the terms under which it may be asked, count for the one that follows.
TEST(Witness, ASuccessorGoesOnAloneWithTheVoteOfItsMount) {
  for (bool voted : {false, true}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.world.run_for(seconds(5));
    lab.world.partition("host1", "shared1");
    if (voted) {
      ASSERT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
      lab.world.partition("host1", "witness1");   // is not asked again
    }
    lab.crash("host1", Crash::kKill);
    lab.succeed("host1");
    EXPECT_TRUE(lab.write("host1", *first, 4096, 'u').is_ok()) << "voted " << voted;
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    EXPECT_EQ(lab.write("host2", *second, 8192, 'b').code(), Code::kBusy) << "voted " << voted;
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1"));
    EXPECT_EQ(lab.verify("host1"), "");
    auto byte = lab.read("host2", *second, 4096);
    EXPECT_TRUE(byte.is_ok() && *byte == 'u') << "voted " << voted;
  }
}

// A live restart with all links whole asks the witness for nothing.
TEST(Witness, ASuccessorWithALinkDoesNotUseTheVote) {
  Lab lab(1, true);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  lab.world.run_for(seconds(5));
  for (int runs = 0; runs < 3; ++runs) {
    lab.crash("host1", Crash::kKill);
    lab.succeed("host1");
    ASSERT_TRUE(lab.write("host1", *first, 4096, 'u').is_ok());
    ASSERT_TRUE(lab.healthy("host1"));
  }
  for (const auto& [key, value] : lab.world.committed("witness1", "/state/witness", "records")) {
    auto record = wire::decode<witness::Record>(value);
    ASSERT_TRUE(record.is_ok());
    EXPECT_EQ(record->verdict, witness::Verdict::kUndecided);
  }
}

Status take(Lab& lab, const std::string& more = "") {
  auto report = lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true" + more + "}");
  if (!report) return report.status();
  return report->find("\"taken\":true") != std::string::npos ? Status::ok() : Status(Code::kBusy, *report);
}
const std::string kAcceptLoss = ",\"accept_loss\":true";

// A healthy holder is not left to go on alone between the end of its session and its word that the tenure is over.
TEST(Witness, AForcedTakeoverStopsTheHolderFirst) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed, true);
    auto made = lab.open("host1", true);
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    lab.engine("host1").release(*made);
    StampWriter writer(lab, "host1", 0, milliseconds(1));
    writer.turn();
    lab.world.run_for(seconds(5) + milliseconds(seed));
    const bool cut_off = seed % 2 == 0;        // it does not know of the takeover, and sees the witness
    if (cut_off) lab.world.partition("host1", "shared1");
    ASSERT_TRUE(take(lab).is_ok()) << "seed " << seed;
    lab.world.run_for(seconds(20));
    writer.stopped = true;
    lab.world.heal_all();
    lab.world.run_for(seconds(10));
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    EXPECT_GE(stamp_at(lab, "host2", *second, 0), writer.acknowledged) << "seed " << seed << ": acknowledged alone";
    EXPECT_GT(writer.acknowledged, 100u);
  }
}

// The witness has let the holder go on alone: what it has acknowledged since is lost to the main line, so that it takes
// a second word. The same where the witness does not answer, for it may let the holder go on in the next moment.
TEST(Witness, AForcedTakeoverThatTheWitnessDoesNotBearTakesASecondWord) {
  for (bool silent : {false, true}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.world.run_for(seconds(5));
    lab.world.partition("host1", "shared1");
    if (silent) {
      lab.world.partition("shared1", "witness1");
    } else {
      ASSERT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
    }
    Status taken = take(lab);
    EXPECT_EQ(taken.code(), Code::kBusy) << taken.to_string();
    EXPECT_NE(taken.message().find("--accept-loss"), std::string::npos) << taken.message();
    EXPECT_EQ(lab.shared_status().find("\"outdated\":true") != std::string::npos, !silent);
    if (silent) {   // nothing was decided: the holder goes on when it is back
      lab.world.heal_all();
      EXPECT_TRUE(lab.write("host1", *first, 0, 'b').is_ok());
      lab.world.partition("host1", "shared1");
      lab.world.partition("shared1", "witness1");
    }
    ASSERT_TRUE(take(lab, kAcceptLoss).is_ok());
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    EXPECT_TRUE(lab.write("host2", *second, 4096, 'b').is_ok());
  }
}

// The witness bears it, and while it was asked the sync of another image has failed there: nothing is taken unsaid.
TEST(Witness, ACopyThatMayLackWritesWhenTheWitnessAnswersIsNotTaken) {
  for (bool by_itself : {false, true}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    auto other = lab.open("host2", true, "other.img");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(5));
    ASSERT_TRUE(lab.write("host2", *other, 0, 'a').is_ok());
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.world.run_until([&] {   // its terms
      return lab.world.committed("witness1", "/state/witness", "records").size() == 2;
    }, seconds(10)));
    lab.crash("host1", Crash::kKill);   // linked it would make the copy good at once
    if (by_itself) lab.world.run_for(seconds(12));
    ASSERT_TRUE(lab.write("host2", *other, 0, 'b').is_ok());   // to be synced
    lab.world.set_latency("shared1", "witness1", {seconds(2), seconds(2)});
    bool flushed = false;
    lab.world.at(milliseconds(500), [&] {
      lab.world.inject("shared1", FileFault{.operations = kSync, .path_contains = ".data"});
      lab.engine("host2").flush(*other, io::IoMode::kQueued, [&flushed](Status) { flushed = true; });
    });
    const Status taken = by_itself ? lab.write("host2", *second, 4096, 'b') : take(lab);
    EXPECT_EQ(taken.code(), Code::kBusy) << taken.to_string();
    lab.world.run_for(seconds(20));
    EXPECT_TRUE(flushed);
    EXPECT_NE(lab.shared_status().find("\"outdated\":true"), std::string::npos);
    lab.start("host1");
    lab.world.set_latency("shared1", "witness1", {milliseconds(1), milliseconds(1)});
    ASSERT_TRUE(lab.healthy("host1"));
    auto byte = lab.read("host2", *second, 0);
    EXPECT_TRUE(byte.is_ok() && *byte == 'a');
  }
}

// What the shared node has learned of its own copy stands, whoever asks next.
TEST(Witness, AVerdictAgainstTheSharedCopyIsKept) {
  Lab lab(1, true);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  lab.world.run_for(seconds(5));
  lab.world.partition("host1", "shared1");
  EXPECT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
  lab.world.run_for(seconds(40));      // its session is over, and the lease
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  EXPECT_EQ(lab.write("host2", *second, 4096, 'b').code(), Code::kBusy);
  EXPECT_NE(lab.shared_status().find("\"outdated\":true"), std::string::npos);
  lab.world.partition("shared1", "witness1");
  for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
    lab.crash("shared1", kind);
    lab.start("shared1");
    lab.world.run_for(seconds(8));
    EXPECT_NE(lab.shared_status().find("\"outdated\":true"), std::string::npos);
  }
  EXPECT_EQ(take(lab).code(), Code::kBusy);
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  EXPECT_EQ(lab.verify("host1"), "");
  EXPECT_EQ(lab.shared_status().find("\"outdated\":true"), std::string::npos);
}

// Whether host 1's write and one of host 2's were acknowledged, both sent when host 1 had lost the shared node.
std::pair<bool, bool> who_goes_on(Lab& lab, fs::HandleId first) {
  auto second = lab.open("host2");
  EXPECT_TRUE(second.is_ok()) << second.status().to_string();
  lab.world.partition("host1", "shared1");
  auto data = std::make_shared<Bytes>(4096, 'x');
  auto alone = std::make_shared<bool>(false);   // shared with the write, likewise its data
  lab.engine("host1").write(first, 0, *data, io::IoMode::kQueued, [alone, data](Result<size_t> n) { *alone = n.is_ok(); });
  const bool moved = second.is_ok() && moves(lab, *second, seconds(60));
  return {*alone, moved};
}

// With `continue` it goes on at once: so it takes no terms, under which the shared node could get the vote.
TEST(Witness, AHostThatDoesNotAskKeepsItsTenure) {
  Lab lab(1, true);
  lab.crash("host1", Crash::kKill);
  lab.continues = true;
  lab.start("host1");
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  lab.world.run_for(seconds(5));
  EXPECT_NE(lab.engine("host1").status_json().find("without asking the witness"), std::string::npos);
  const auto [alone, moved] = who_goes_on(lab, *first);
  EXPECT_TRUE(alone);
  EXPECT_FALSE(moved) << "both sides acknowledge";
}

// A live restart under another policy: the shared node has terms of the tenure, and may get the vote.
TEST(Witness, ATenureAsksAsItDidWhenItBegan) {
  for (bool voted : {false, true}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.world.run_for(seconds(5));
    lab.crash("host1", Crash::kKill);
    lab.continues = true;
    lab.succeed("host1");
    ASSERT_TRUE(lab.healthy("host1"));
    lab.world.run_for(seconds(5));
    if (!voted) lab.world.partition("host1", "witness1");
    const auto [alone, moved] = who_goes_on(lab, *first);
    EXPECT_EQ(alone, voted);
    EXPECT_EQ(moved, !voted);
  }
}

// The link was away for so short a time that the vote came when nobody needed it any more: the next loss of either side
// finds new terms.
TEST(Witness, AVoteThatCameTooLateDoesNotCountTheNextTime) {
  for (bool host_asked : {true, false}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(5));
    const std::string asks = host_asked ? "host1" : "shared1";
    lab.world.set_latency(asks, "witness1", {seconds(2), seconds(2)});
    lab.world.partition("host1", "shared1");
    lab.world.reset_connections("host1", "shared1");
    lab.world.run_for(seconds(11));
    if (!host_asked) {   // the question is on its way when this has been refused
      EXPECT_FALSE(lab.write("host2", *second, 4096, 'x').is_ok());
    }
    lab.world.set_latency(asks, "witness1", {milliseconds(1), milliseconds(1)});
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1"));
    lab.world.run_for(seconds(20));
    if (host_asked) {
      lab.crash("host1", Crash::kKill);
      EXPECT_TRUE(moves(lab, *second, seconds(60))) << "the vote was spent";
    } else {
      lab.crash("shared1", Crash::kKill);
      EXPECT_TRUE(lab.write("host1", *first, 8192, 'c').is_ok()) << "the vote was spent";
    }
  }
}

// Its server has connections for so many; and a guest's image does not wait for its turn behind idle ones.
TEST(Witness, OfManyImagesAFewAreAskedForAtATimeThoseOfGuestsFirst) {
  constexpr size_t kImages = 100, kAtOnce = 16;
  Lab lab(1, true);
  const std::vector<fs::HandleId> images = open_many(lab, kImages);
  ASSERT_EQ(images.size(), kImages);
  lab.world.set_latency("host1", "witness1", {milliseconds(300), milliseconds(300)});
  lab.world.partition("host1", "shared1");
  const size_t guests = kImages / 2;
  auto data = std::make_shared<Bytes>(4096, 't');
  std::optional<Result<size_t>> wrote;
  lab.engine("host1").write(images[guests], 0, *data, io::IoMode::kQueued, [&](Result<size_t> n) { wrote = std::move(n); });
  size_t before = 0, at_write = 0, most = 0;
  auto all = [&, next = Duration(0)]() mutable {
    if (wrote && at_write == 0) at_write = let_go_on(lab);
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + milliseconds(100);
    const size_t now = let_go_on(lab);
    most = std::max(most, now - before);   // in less time than one question takes
    before = now;
    return now == kImages;
  };
  ASSERT_TRUE(lab.world.run_until(all, seconds(60)));
  EXPECT_LE(most, kAtOnce);
  ASSERT_TRUE(wrote && wrote->is_ok());
  EXPECT_LE(at_write, 4 * kAtOnce);
}

// Each question costs the thread by which the shared node hears all hosts.
TEST(Witness, OfAHostThatIsTakenFromAFewImagesAreAskedForAtATime) {
  constexpr size_t kImages = 100, kAtOnce = 16;
  Lab lab(1, true);
  ASSERT_EQ(open_many(lab, kImages).size(), kImages);
  lab.crash("host1", Crash::kKill);
  lab.world.set_latency("shared1", "witness1", {milliseconds(300), milliseconds(300)});
  lab.begin_take(R"({"host":"host1","force":true})");
  size_t before = 0, most = 0;
  ASSERT_TRUE(lab.world.run_until([&, next = Duration(0)]() mutable {
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + milliseconds(100);
    const size_t now = recorded(lab, witness::Verdict::kFenced);
    most = std::max(most, now - before);   // in less time than one question takes
    before = now;
    return now == kImages;
  }, seconds(60)));
  EXPECT_LE(most, kAtOnce);
  for (size_t i : {size_t(0), kAtOnce, kImages - 1}) {
    auto handle = lab.open("host2", false, "disk" + std::to_string(i));
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    Status wrote = lab.write("host2", *handle, 4096, 'b');
    EXPECT_TRUE(wrote.is_ok()) << i << ": " << wrote.to_string();
  }
}

// No image waits for that behind others.
TEST(Witness, ATakeoverOfManyImagesIsRefusedInTheTimeOfOneSilence) {
  constexpr size_t kImages = 60;
  Lab lab(1, true);
  ASSERT_EQ(open_many(lab, kImages).size(), kImages);
  lab.crash("host1", Crash::kKill);
  lab.world.partition("shared1", "witness1");
  const Duration begun = lab.world.elapsed();
  auto taken = lab.take_at_shared(R"({"host":"host1","force":true})");
  EXPECT_EQ(taken.status().code(), Code::kBusy) << taken.status().to_string();
  EXPECT_NE(taken.status().message().find("disk59: the witness gives no vote"), std::string::npos);
  EXPECT_LT(lab.world.elapsed() - begun, seconds(40));   // its client waits for 30 s
  taken = lab.take_at_shared(R"({"host":"host1","force":true,"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  auto handle = lab.open("host2", false, "disk59");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  EXPECT_TRUE(lab.write("host2", *handle, 4096, 'b').is_ok());
}

// Its disk hangs: it answers whoever looks for it, and keeps no record.
TEST(Witness, ATakeoverDoesNotWaitForEachOfManyRecordsThatAreNotKept) {
  constexpr size_t kImages = 60;
  Lab lab(1, true);
  ASSERT_EQ(open_many(lab, kImages).size(), kImages);
  lab.crash("host1", Crash::kKill);
  lab.world.set_store_fault("witness1", StoreFault{.path_contains = "/witness", .delay = seconds(3600)});
  const Duration begun = lab.world.elapsed();
  auto taken = lab.take_at_shared(R"({"host":"host1","force":true,"accept_loss":true})");
  ASSERT_TRUE(taken.is_ok()) << taken.status().to_string();
  EXPECT_LT(lab.world.elapsed() - begun, seconds(45));
  auto handle = lab.open("host2", false, "disk59");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  EXPECT_TRUE(lab.write("host2", *handle, 4096, 'b').is_ok());
}

// What an operator takes is its old holder's.
TEST(Witness, AnImageThatMovedBeforeItsTurnIsLeftToItsNewHolder) {
  constexpr size_t kImages = 40;
  Lab lab(1, true);
  const std::vector<fs::HandleId> images = open_many(lab, kImages);
  ASSERT_EQ(images.size(), kImages);
  lab.engine("host1").release(images.back());
  std::string named;   // in this order they are asked for
  for (size_t i = 0; i < kImages; ++i) named += (i == 0 ? "\"disk" : ",\"disk") + std::to_string(i) + "\"";
  lab.world.set_latency("shared1", "witness1", {seconds(3), seconds(3)});
  lab.begin_take("{\"images\":[" + named + "],\"force\":true}");
  auto handle = lab.open("host2", false, "disk" + std::to_string(kImages - 1));
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  ASSERT_TRUE(lab.write("host2", *handle, 4096, 'b').is_ok());   // its holder gives it back when it is asked to
  lab.world.run_for(seconds(30));
  EXPECT_EQ(recorded(lab, witness::Verdict::kFenced), kImages - 1);
  EXPECT_TRUE(lab.write("host2", *handle, 8192, 'c').is_ok());
}

// Whichever of many images is asked for while it is silent, all go on soon once it answers.
TEST(Witness, ASilentWitnessThatAnswersAgainLetsAllImagesGoOn) {
  constexpr size_t kImages = 40;
  Lab lab(1, true);
  const std::vector<fs::HandleId> images = open_many(lab, kImages);
  ASSERT_EQ(images.size(), kImages);
  lab.world.partition("host1", "shared1");
  lab.crash("witness1", Crash::kKill);
  lab.world.run_for(seconds(30));
  lab.start("witness1");
  ASSERT_TRUE(lab.world.run_until([&, next = Duration(0)]() mutable {
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + milliseconds(100);
    return let_go_on(lab) == kImages;
  }, seconds(15)));
  for (fs::HandleId image : images) EXPECT_TRUE(lab.write("host1", image, 0, 't').is_ok());
}

// The link is back, the copies are not level yet, and the shared copy's disk is full: as long as the vote counts that is
// no guest's error.
TEST(Witness, ARefusedWriteGoesOnWithAnEarlierVote) {
  Lab lab(1, true);
  auto first = cut_off_after_a_write(lab);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'b').is_ok());   // the vote
  lab.world.inject("shared1", FileFault{1, UINT64_MAX, static_cast<uint16_t>(FileOp::kWrite), "/brick", 28});
  lab.world.heal_all();
  for (int i = 0; i < 60; ++i) {
    Status wrote = lab.write("host1", *first, 4096, static_cast<uint8_t>('c' + i % 20));
    EXPECT_TRUE(wrote.is_ok()) << i << ": " << wrote.to_string();
    lab.world.run_for(milliseconds(300));
  }
  lab.world.clear_faults("shared1");
  ASSERT_TRUE(lab.healthy("host1"));
}

// A witness that did not answer is asked again as long as somebody waits.
TEST(Witness, AWitnessThatIsBackIsAskedAgainForThoseThatWait) {
  Lab lab(1, true);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  lab.world.run_for(seconds(5));
  lab.crash("host1", Crash::kKill);
  lab.world.run_for(seconds(12));
  lab.crash("witness1", Crash::kKill);
  lab.world.at(milliseconds(1500), [&] { lab.start("witness1"); });
  Status wrote = lab.write("host2", *second, 4096, 'b');
  EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
}

// Writes that were acknowledged and not flushed went with the shared node's power: its copy is short, and serves nobody
// without a second word, until its holder has said that nothing of its own is missing there.
TEST(Witness, ASharedCopyThatLostUnflushedWritesServesNobodyByItself) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    lab.world.run_for(seconds(5));
    ASSERT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
    lab.world.partition("host1", "shared1");
    lab.world.partition("host1", "witness1");
    lab.crash("shared1", Crash::kPowerLoss);
    lab.start("shared1");
    lab.world.run_for(seconds(20));
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    for (int tries = 0; tries < 3; ++tries) {
      EXPECT_EQ(lab.write("host2", *second, 4096, 'b').code(), Code::kBusy) << "seed " << seed;
    }
    EXPECT_EQ(take(lab).code(), Code::kBusy);
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    lab.world.run_for(seconds(20));
    EXPECT_EQ(lab.shared_status().find("\"outdated\":true"), std::string::npos) << "seed " << seed;
    lab.crash("host1", Crash::kKill);
    ASSERT_TRUE(moves(lab, *second, seconds(60))) << "seed " << seed;
    auto byte = lab.read("host2", *second, 0);
    ASSERT_TRUE(byte.is_ok());
    EXPECT_EQ(*byte, 't') << "seed " << seed;
  }
}

// Of which nobody would have a vote when it is needed.
TEST(Witness, ASilentWitnessIsSeenBeforeItIsNeeded) {
  Lab lab(1, true);
  lab.crash("witness1", Crash::kKill);
  constexpr int kImages = 8;
  for (int i = 0; i < kImages; ++i) {
    auto handle = lab.open("host1", true, "disk" + std::to_string(i));
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    ASSERT_TRUE(lab.write("host1", *handle, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *handle).is_ok());
  }
  lab.world.run_for(seconds(20));
  std::vector<std::string> reasons;
  EXPECT_FALSE(lab.engine("host1").healthy(&reasons));
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("the witness has no vote to give"), std::string::npos) << reasons[0];
  EXPECT_NE(lab.shared_status().find("the witness is silent"), std::string::npos) << lab.shared_status();
  // However many images wait for it, it is asked for once in a while.
  const uint64_t commits = lab.world.commits("shared1");
  lab.world.run_for(seconds(60));
  EXPECT_LT(lab.world.commits("shared1") - commits, 60u);
  lab.start("witness1");
  EXPECT_TRUE(lab.healthy("host1", seconds(5)));
  lab.world.run_for(seconds(1));
  EXPECT_EQ(lab.world.committed("witness1", "/state/witness", "records").size(), size_t(kImages));
  lab.world.run_for(seconds(5));
  EXPECT_EQ(lab.shared_status().find("the witness is silent"), std::string::npos);
  // It goes when all have their terms: nobody but the shared node would see it.
  lab.crash("witness1", Crash::kKill);
  lab.world.run_for(seconds(20));
  EXPECT_TRUE(lab.engine("host1").healthy());
  EXPECT_NE(lab.shared_status().find("the witness is silent"), std::string::npos);
}

// An empty one in its place knows no image; both ends are there, and level, and register what is held anew.
TEST(Witness, AReplacedWitnessHasItsVotesBeforeTheyAreNeeded) {
  for (bool host_dies : {false, true}) {
    Lab lab(1, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    lab.world.run_for(seconds(10));
    lab.crash("witness1", Crash::kKill);
    lab.world.wipe("witness1", {"/state/witness"});
    lab.start("witness1");
    lab.world.run_for(seconds(20));
    EXPECT_EQ(lab.world.committed("witness1", "/state/witness", "records").size(), 1u);
    ASSERT_TRUE(lab.healthy("host1"));
    if (host_dies) {
      auto second = lab.open("host2");
      ASSERT_TRUE(second.is_ok()) << second.status().to_string();
      lab.crash("host1", Crash::kKill);
      EXPECT_TRUE(moves(lab, *second, seconds(60)));
    } else {
      lab.world.partition("host1", "shared1");
      EXPECT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
    }
  }
}

TEST(Witness, ASilentWitnessMeansWaitingWhichAnOperatorMayEnd) {
  Lab lab(1, true);
  auto first = cut_off_after_a_write(lab);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  lab.world.partition("host1", "witness1");
  Status answer(Code::kCancelled, "none yet");
  auto data = std::make_shared<Bytes>(4096, 't');
  lab.engine("host1").write(*first, 0, *data, io::IoMode::kQueued, [&answer](Result<size_t> n) { answer = n ? Status::ok() : n.status(); });
  lab.world.run_for(seconds(60));
  EXPECT_EQ(answer.code(), Code::kCancelled) << "it was answered: " << answer.to_string();
  EXPECT_NE(lab.engine("host1").status_json().find("requests wait for the shared node or the witness"), std::string::npos);
  auto aborted = lab.wait<Result<std::string>>([&](auto done) { lab.engine("host1").abort_waiting("disk.img", std::move(done)); });
  ASSERT_TRUE(aborted.is_ok()) << aborted.status().to_string();
  EXPECT_EQ(*aborted, "{\"aborted\":1}");
  EXPECT_EQ(errno_of(answer), EIO);
}

// Wherever a write waits when its own copy has failed and the link goes: for the shared node's answer, or for its word
// that it knows of the failure.
TEST(Witness, AbortEndsTheWaitingOfAWriteWhoseOwnCopyFailed) {
  size_t waited = 0;
  for (int events = 1; events < 200; ++events) {
    Lab lab(3, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    lab.world.run_for(seconds(5));
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .operations = static_cast<uint16_t>(FileOp::kWrite),
                                        .path_contains = "/brick"});
    auto data = std::make_shared<Bytes>(4096, 't');
    std::optional<Result<size_t>> answer;
    lab.engine("host1").write(*first, 0, *data, io::IoMode::kQueued, [&](Result<size_t> n) { answer = std::move(n); });
    for (int i = 0; i < events && !answer; ++i) lab.world.step();
    if (answer) break;
    ++waited;
    lab.world.partition("host1", "shared1");
    lab.world.partition("host1", "witness1");
    lab.world.run_for(seconds(20));
    if (answer) continue;
    auto aborted = lab.wait<Result<std::string>>(
        [&](auto done) { lab.engine("host1").abort_waiting("disk.img", std::move(done)); });
    ASSERT_TRUE(aborted.is_ok()) << aborted.status().to_string();
    ASSERT_TRUE(answer.has_value()) << "cut off after " << events << " events";
    EXPECT_EQ(errno_of(answer->status()), EIO);
  }
  EXPECT_GT(waited, 3u);
}

}  // namespace
}  // namespace tidemark::sim
