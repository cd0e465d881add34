// With a witness: a host whose lease is over, or may be, answers nothing old, whatever kept it from noticing.
#include "tests/sim/witness_lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A read that waits behind a write of unknown outcome when the tenure is lost: what the new holder wrote is not for it.
TEST(Witness, AReadOfTheOldHolderNeverSeesTheNewOnesBlocks) {
  Lab lab(1, true);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
  lab.world.run_for(seconds(5));
  lab.world.partition("host1", "shared1");
  lab.world.partition("host1", "witness1");
  auto data = std::make_shared<Bytes>(4096, 'u');
  auto out = std::make_shared<Bytes>(4096);
  std::optional<Result<size_t>> wrote, read;
  lab.engine("host1").write(*first, 0, *data, io::IoMode::kQueued, [&](Result<size_t> n) { wrote = std::move(n); });
  lab.engine("host1").read(*first, 0, *out, io::IoMode::kQueued, [&](Result<size_t> n) { read = std::move(n); });
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  Status taken(Code::kBusy, "not asked yet");
  for (int tries = 0; tries < 10 && !taken; ++tries) taken = lab.write("host2", *second, 0, 'b');
  ASSERT_TRUE(taken.is_ok()) << taken.to_string();
  EXPECT_FALSE(wrote || read);
  lab.world.heal_all();
  ASSERT_TRUE(lab.world.run_until([&] { return wrote && read; }, seconds(60)));
  EXPECT_FALSE(wrote->is_ok());
  EXPECT_FALSE(read->is_ok()) << "it reads '" << out->front() << "'";
}

// A holder that was back for a moment answers reads from its own copy until its lease has run out once more.
TEST(Witness, ALeaseBeginsAnewWhenItsHolderWasBack) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open("host1", true);
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(5));
    lab.world.partition("host1", "witness1");
    lab.world.partition("host1", "shared1");
    lab.world.reset_connections("host1", "shared1");
    lab.world.run_for(seconds(9));
    lab.world.set_latency("shared1", "witness1", {seconds(12), seconds(12)});
    Status early = lab.write("host2", *second, 4096, 'x');   // the question is on its way when this has been refused
    EXPECT_EQ(early.code(), Code::kBusy) << early.to_string();
    lab.world.heal("host1", "shared1");
    lab.world.heal("shared1", "host1");
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    ASSERT_TRUE(lab.write("host1", *first, 0, 'c').is_ok()) << "seed " << seed;
    lab.world.partition("host1", "shared1");
    lab.world.reset_connections("host1", "shared1");
    const Duration left = lab.world.elapsed();
    ASSERT_TRUE(moves(lab, *second, seconds(90))) << "seed " << seed;
    EXPECT_GE(lab.world.elapsed() - left, seconds(10)) << "seed " << seed;
  }
}

// A read that was begun while the tenure stood, and lands when another host has it, is not answered with what it found.
TEST(Witness, AReadFromASlowDiskIsNotAnsweredAfterTheLease) {
  Lab lab(1, true);
  auto first = lab.open("host1", true);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  ASSERT_TRUE(lab.write("host1", *first, 4096, 'a').is_ok());
  ASSERT_TRUE(lab.flush("host1", *first).is_ok());
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  lab.world.run_for(seconds(5));
  lab.world.slow_reads("host1", "/", seconds(120));
  auto data = std::make_shared<Bytes>(4096);
  std::optional<Result<size_t>> read;
  lab.engine("host1").read(*first, 4096, *data, io::IoMode::kQueued, [&](Result<size_t> n) { read = std::move(n); });
  lab.world.partition("host1", "shared1");
  lab.world.partition("host1", "witness1");
  ASSERT_TRUE(moves(lab, *second, seconds(90)));
  EXPECT_FALSE(read.has_value());
  lab.world.run_for(seconds(120));
  EXPECT_FALSE(read && read->is_ok()) << "an old block is read";
  lab.world.slow_reads("host1", "", Duration(0));
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
}

Result<uint64_t> seek(Lab& lab, fs::HandleId handle, uint64_t offset, bool data) {
  return lab.wait<Result<uint64_t>>(
      [&](auto done) { lab.engine("host1").seek(handle, offset, data, std::move(done)); });
}

// What another host may have written since is neither a hole nor beyond the end: a copy made there would lack it, without
// an error.
TEST(Witness, AHostThatWaitsTellsOfNoHoles) {
  Lab lab(1, true);
  auto first = cut_off_after_a_write(lab);
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  auto hole = seek(lab, *first, Lab::kRegion, true);
  EXPECT_EQ(hole.status().sys_errno(), ENXIO);   // it still holds it, for all that is known
  lab.world.partition("host1", "witness1");
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  Status taken(Code::kBusy, "not asked yet");
  for (int tries = 0; tries < 10 && !taken; ++tries) taken = lab.write("host2", *second, 2 * Lab::kRegion, 'b');
  ASSERT_TRUE(taken.is_ok()) << taken.to_string();
  ASSERT_TRUE(lab.write("host2", *second, Lab::kImageBytes, 'b').is_ok());
  auto data = seek(lab, *first, Lab::kRegion, true);
  EXPECT_TRUE(data.is_ok() && *data <= 2 * Lab::kRegion) << (data ? std::to_string(*data) : data.status().to_string());
  hole = seek(lab, *first, Lab::kRegion, false);
  EXPECT_TRUE(!hole || *hole >= Lab::kImageBytes) << *hole;
  auto end = seek(lab, *first, Lab::kImageBytes, true);
  ASSERT_FALSE(end.is_ok());
  EXPECT_NE(end.status().sys_errno(), ENXIO) << "this is not the end";
}

// It stands still when the shared node has taken its word that the copies are equal, and has not heard that yet: then
// another host may have the image when it goes on.
TEST(Witness, AHostThatStoodStillAtTheEndOfAResyncReadsNothingOld) {
  for (uint64_t seed = 1; seed <= seeds_of(8); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    auto other = lab.open("host2", true, "other.img");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    lab.world.run_for(seconds(5));
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok());
    ASSERT_TRUE(lab.write("host2", *other, 0, 'a').is_ok());
    auto outdated = [&] {
      return lab.shared_status().find("\"outdated\":true,\"path\":\"/disk.img\"") != std::string::npos;
    };
    // Another image's sync fails there: of this one the link stands, and its vote is nobody's yet.
    lab.world.inject("shared1", FileFault{.operations = kSync, .path_contains = ".data"});
    lab.engine("host2").flush(*other, io::IoMode::kQueued, [](Status) {});
    ASSERT_TRUE(lab.world.run_until(outdated, seconds(30))) << "seed " << seed;
    ASSERT_TRUE(lab.write("host1", *first, 0, 'a').is_ok()) << "seed " << seed;
    ASSERT_TRUE(lab.world.run_until([&] { return !outdated(); }, seconds(30))) << "seed " << seed;
    lab.world.stand_still("host1");
    ASSERT_TRUE(moves(lab, *second, seconds(90))) << "seed " << seed;
    auto data = std::make_shared<Bytes>(4096);   // shared with the read
    auto read = std::make_shared<std::optional<Result<size_t>>>();
    lab.engine("host1").read(*first, 4096, *data, io::IoMode::kInline,
                             [data, read](Result<size_t> n) { read->emplace(std::move(n)); });
    lab.world.go_on("host1");
    EXPECT_TRUE(lab.world.run_until([&] { return read->has_value(); }, seconds(60))) << "seed " << seed;
    EXPECT_FALSE(*read && (*read)->is_ok() && data->front() == 'a') << "seed " << seed << ": an old block is read";
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
  }
}

// The link is reset, or dead without a word: the shared node has heard its holder a moment ago, and does not know yet.
TEST(Witness, NobodyReadsWithoutWhatAHostHasAcknowledgedAlone) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.run_for(seconds(5));
    lab.world.run_for(milliseconds(37 * seed));
    const bool reset = seed % 2 == 0;
    const Duration gone = lab.world.elapsed();
    lab.world.partition("host1", "shared1");
    if (reset) lab.world.reset_end("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *first, 0, 't').is_ok()) << "seed " << seed;
    EXPECT_LT(lab.world.elapsed() - gone, milliseconds(2000)) << "seed " << seed;   // dead without a word: no longer
    auto byte = lab.read("host2", *second, 0);
    EXPECT_FALSE(byte.is_ok() && *byte == 'a') << "seed " << seed << ": an old block is read";
  }
}

// The vote of an earlier time counts until new terms are asked for; but the shared node has heard this host since.
TEST(Witness, NobodyReadsWithoutWhatAHostAcknowledgesWithAnEarlierVote) {
  constexpr size_t kImages = 40;
  Lab lab(1, true);
  const std::vector<fs::HandleId> images = open_many(lab, kImages);
  ASSERT_EQ(images.size(), kImages);
  std::vector<fs::HandleId> elsewhere;
  for (size_t i = 0; i < kImages; ++i) {
    auto handle = lab.open("host2", false, "disk" + std::to_string(i));
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    elsewhere.push_back(*handle);
  }
  lab.world.partition("host1", "shared1");
  for (fs::HandleId image : images) ASSERT_TRUE(lab.write("host1", image, 0, 'b').is_ok());
  lab.crash("witness1", Crash::kKill);
  lab.world.heal_all();
  auto mirrored = [&, next = Duration(0)]() mutable {
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + milliseconds(100);
    const std::string status = lab.engine("host1").status_json();
    for (const char* other : {"\"local only\"", "\"waiting\"", "\"resyncing\""})
      if (status.find(other) != std::string::npos) return false;
    return true;
  };
  ASSERT_TRUE(lab.world.run_until(mirrored, seconds(30)));
  lab.world.partition("host1", "shared1");
  lab.world.reset_end("host1", "shared1");
  std::vector<size_t> wrote;
  auto data = std::make_shared<Bytes>(4096, 't');
  for (size_t i = 0; i < kImages; ++i) {
    lab.engine("host1").write(images[i], 0, *data, io::IoMode::kQueued, [&wrote, i, data](Result<size_t> n) {
      if (n) wrote.push_back(i);
    });
  }
  ASSERT_TRUE(lab.world.run_until([&] { return !wrote.empty(); }, seconds(3))) << "no image had its vote any more";
  const size_t first = wrote.front();
  auto byte = lab.read("host2", elsewhere[first], 0);
  EXPECT_FALSE(byte.is_ok() && *byte == 'b') << "an old block is read";
  lab.world.heal_all();
  lab.start("witness1");
  ASSERT_TRUE(lab.healthy("host1"));
  byte = lab.read("host2", elsewhere[first], 0);
  EXPECT_TRUE(byte.is_ok() && *byte == 't');
}

}  // namespace
}  // namespace tidemark::sim
