// A host crashes, and the shared brick refuses what its recovery has to write there: its own copy, where that is whole and
// decides, serves at once. Nobody is given the older blocks of the shared one, whatever crashes again meanwhile, and once
// the brick takes writes all copies become equal.
#include <set>
#include <vector>

#include "tests/repeat.h"
#include "tests/sim/site.h"

namespace tidemark::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::seconds;

constexpr Duration kLongest = seconds(7);   // the shared node's deadline for a brick, and what a start takes

struct Refusal {
  const char* name;
  uint16_t operations;
  int error;
  bool hangs = false;
  bool reads() const { return (operations & kRead) != 0; }
};
const Refusal kRefusals[] = {
    {"WritesGiveEio", kWrite, 5},   {"BrickIsFull", kWrite, 28},
    {"WritesHang", kWrite, 0, true},   {"AllGiveEio", kRead | kMutatingFileOps, 5},
    {"AllHang", kRead | kMutatingFileOps, 0, true}, {"SyncsGiveEio", kSync, 5},
    {"SyncsHang", kSync, 0, true},
};

class RefusedRecoveryTest : public testing::TestWithParam<Refusal> {
 protected:
  // host1 holds the image, full of 'a' and flushed; host2 has it open for reading.
  void begin(Lab& lab) {
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    writer_ = *first;
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    reader_ = *second;
    auto got = lab.read("host2", reader_, 0);
    ASSERT_TRUE(got.is_ok() && *got == 'a');
  }
  // What host1 acknowledged, the shared copy lacks.
  void write_alone_and_crash(Lab& lab, Crash kind) {
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", writer_, 0, 'x').is_ok());   // on its way there when the link is cut
    ASSERT_TRUE(lab.write("host1", writer_, 0, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", writer_).is_ok());
    lab.crash("host1", kind);
    lab.world.heal_all();
  }
  void refuse(Lab& lab) {
    const Refusal& r = GetParam();
    lab.world.inject("shared1", FileFault{1, UINT64_MAX, r.operations, "/brick", r.error, r.hangs});
  }
  // Its bricks serve while it opens them: else it does not start at all.
  void start_shared(Lab& lab) {
    lab.world.clear_faults("shared1");
    lab.start("shared1");
    refuse(lab);
  }
  void heal(Lab& lab) {
    lab.world.clear_faults("shared1");
    lab.world.release_hung("shared1");
  }
  void open_again(Lab& lab) {
    begun_ = lab.world.elapsed();
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    writer_ = *again;
  }
  void expect_byte(Lab& lab, const std::string& host, uint64_t offset, uint8_t byte) {
    auto got = lab.read(host, host == "host1" ? writer_ : reader_, offset);
    ASSERT_TRUE(got.is_ok()) << host << " at " << offset << ": " << got.status().to_string();
    EXPECT_EQ(*got, byte) << host << " at " << offset;
  }
  void expect_served(Lab& lab, uint8_t byte, Duration first = kLongest) {
    expect_byte(lab, "host1", 0, 'b');
    EXPECT_LE(lab.world.elapsed() - begun_, first) << "the first read";
    begun_ = lab.world.elapsed();
    Status wrote = lab.write("host1", writer_, 8192, byte);
    EXPECT_TRUE(wrote.is_ok()) << wrote.to_string();
    EXPECT_LE(lab.world.elapsed() - begun_, kLongest) << "the first write";
    begun_ = lab.world.elapsed();
    Status flushed = lab.flush("host1", writer_);
    EXPECT_TRUE(flushed.is_ok()) << flushed.to_string();
    EXPECT_LE(lab.world.elapsed() - begun_, kLongest) << "the first flush";
    expect_byte(lab, "host1", 8192, byte);
  }
  void expect_nothing_old(Lab& lab, uint64_t offset, uint8_t byte) {
    auto got = lab.read("host2", reader_, offset);
    EXPECT_TRUE(!got.is_ok() || *got == byte) << "old bytes at " << offset;
  }
  // A write that fails may have been carried out all the same: then the copies may be equal, and level, again.
  bool outdated(Lab& lab) { return lab.shared_status().find("\"outdated\":true") != std::string::npos; }
  void expect_not_taken(Lab& lab) {
    const bool may_be_level = GetParam().error != 0 && (GetParam().operations & kWrite) != 0;
    if (may_be_level && !outdated(lab)) return;
    EXPECT_TRUE(outdated(lab)) << lab.shared_status();
    auto taken = lab.take_at_shared(R"({"images":["disk.img"],"force":true})");
    EXPECT_EQ(taken.status().code(), Code::kBusy) << "the shared copy was taken for level";
  }
  void expect_equal(Lab& lab, Site* site, uint8_t byte) {
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    ASSERT_TRUE(lab.write("host1", writer_, 2 * Lab::kRegion, 'e').is_ok());   // it holds on to the tenure
    ASSERT_TRUE(lab.flush("host1", writer_).is_ok());
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << lab.shared_status();
    EXPECT_EQ(site != nullptr ? site->verify("host1") : lab.verify("host1"), "");
    for (const char* host : {"host1", "host2"}) {
      expect_byte(lab, host, 0, 'b');
      expect_byte(lab, host, 8192, byte);
      expect_byte(lab, host, Lab::kRegion, 'a');
    }
  }

  fs::HandleId writer_, reader_;
  Duration begun_{};
};

TEST_P(RefusedRecoveryTest, OfAHostThatWasAloneIsServedByItsOwnCopyAgainAndAgain) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + (kind == Crash::kKill ? ", killed" : ", power cut"));
      Lab lab(seed, false, Plant::kNone, Ships::kYes);
      Site site(lab);
      begin(lab);
      write_alone_and_crash(lab, kind);
      refuse(lab);
      uint8_t byte = 'b';
      for (Crash next : {kind, Crash::kKill, Crash::kPowerLoss}) {
        lab.start("host1");
        open_again(lab);
        expect_served(lab, ++byte);
        expect_not_taken(lab);
        expect_nothing_old(lab, 0, 'b');
        expect_nothing_old(lab, 8192, byte);
        if (next == Crash::kPowerLoss) lab.world.run_for(seconds(8));   // it has resumed, and was refused again
        expect_nothing_old(lab, 8192, byte);
        if (byte == 'e') break;
        lab.crash("host1", next);
        expect_not_taken(lab);
      }
      heal(lab);
      expect_equal(lab, &site, byte);
    }
  }
}

// The shared node loses its power while the host is alone: what it was told is durable there.
TEST_P(RefusedRecoveryTest, IsRememberedByASharedNodeThatCrashes) {
  for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
    Lab lab(1);
    begin(lab);
    write_alone_and_crash(lab, kind);
    refuse(lab);
    lab.start("host1");
    open_again(lab);
    expect_served(lab, 'c');
    lab.crash("shared1", kind);
    lab.crash("host1", Crash::kKill);
    start_shared(lab);
    expect_not_taken(lab);
    expect_nothing_old(lab, 0, 'b');
    heal(lab);
    lab.start("host1");
    open_again(lab);
    expect_equal(lab, nullptr, 'c');
  }
}

// Writes that nobody was answered, on one copy, on both or on none: what is read once stays.
TEST_P(RefusedRecoveryTest, OfWritesThatWereUnderWayGivesOneAnswer) {
  int alone = 0;
  for (uint64_t seed = 1; seed <= seeds_of(15); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    begin(lab);
    auto data = std::make_shared<Bytes>(Lab::kImageBytes, 'b');   // shared with the write
    lab.engine("host1").write(writer_, 0, *data, io::IoMode::kQueued, [data](Result<size_t>) {});
    lab.world.run_for(microseconds(100) * seed);
    lab.crash("host1", Crash::kKill);
    refuse(lab);
    lab.start("host1");
    open_again(lab);
    Bytes seen;
    for (uint64_t at = 0; at < Lab::kImageBytes; at += 4096) {
      auto got = lab.read("host1", writer_, at, 512);
      ASSERT_TRUE(got.is_ok()) << got.status().to_string();
      EXPECT_LE(lab.world.elapsed() - begun_, kLongest);
      seen.push_back(*got);
      EXPECT_TRUE(*got == 'a' || *got == 'b') << int{*got};
    }
    alone += lab.engine("host1").status_json().find("local only") != std::string::npos ? 1 : 0;
    if (seed % 2 == 0) {
      ASSERT_TRUE(lab.flush("host1", writer_).is_ok());
      lab.crash("host1", Crash::kPowerLoss);
      lab.start("host1");
      open_again(lab);
    }
    for (size_t i = 0; i < seen.size(); i += 13) {
      auto got = lab.read("host2", reader_, i * 4096, 512);
      EXPECT_TRUE(!got.is_ok() || *got == seen[i]) << "block " << i;
    }
    heal(lab);
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_EQ(site.verify("host1"), "");
    for (const char* host : {"host1", "host2"}) {
      for (size_t i = 0; i < seen.size(); ++i) {
        auto got = lab.read(host, host == std::string("host1") ? writer_ : reader_, i * 4096, 512);
        ASSERT_TRUE(got.is_ok()) << got.status().to_string();
        EXPECT_EQ(*got, seen[i]) << host << " block " << i;
      }
    }
  }
  EXPECT_GT(alone, 0);
}

// It falls again at every commit and every operation on files of that recovery, or the shared node does.
TEST_P(RefusedRecoveryTest, ThatIsCutShortAnywhereIsTakenUpAgain) {
  for (const std::string node : {"host1", "shared1"}) {
    for (const bool at_commits : {true, false}) {
      bool hit = true;
      for (uint64_t nth = 1; hit; nth += repeat(1, 17)) {
        const Crash kind = nth % 2 == 0 ? Crash::kKill : Crash::kPowerLoss;
        SCOPED_TRACE(node + (at_commits ? " commit " : " file operation ") + std::to_string(nth));
        Lab lab(nth);
        begin(lab);
        write_alone_and_crash(lab, Crash::kKill);
        refuse(lab);
        lab.start("host1");
        lab.world.inject(node, CrashPoint{nth, at_commits, kMutatingFileOps, kind});
        auto over = [&] {
          return !lab.world.running(node) || lab.engine("host1").status_json().find("\"recovering\":false") != std::string::npos;
        };
        ASSERT_TRUE(lab.world.run_until(over, seconds(20))) << "it waits: " << lab.engine("host1").status_json();
        hit = !lab.world.running(node);
        if (hit) {
          lab.crash(node, kind);
          if (node == "host1") lab.start(node);
          else start_shared(lab);
        } else {
          lab.world.clear_faults(node);
          refuse(lab);
        }
        open_again(lab);
        expect_served(lab, 'c', hit && node == "shared1" ? 2 * kLongest + seconds(1) : kLongest);   // it connects anew
        expect_not_taken(lab);
        expect_nothing_old(lab, 0, 'b');
        heal(lab);
        expect_equal(lab, nullptr, 'c');
      }
    }
  }
}

// It was not alone, and lost its power: the shared copy alone has what was acknowledged and not flushed. Where that can be
// read nothing need be written there; where it cannot, it is waited for.
TEST_P(RefusedRecoveryTest, OfAHostThatLostItsPowerTakesWhatOnlyTheSharedCopyHas) {
  for (uint64_t seed = 1; seed <= seeds_of(5); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    begin(lab);
    ASSERT_TRUE(lab.write("host1", writer_, 0, 'b').is_ok());
    lab.crash("host1", Crash::kPowerLoss);
    refuse(lab);
    lab.start("host1");
    open_again(lab);
    if (GetParam().reads()) {
      auto got = lab.read("host1", writer_, 0);
      EXPECT_FALSE(got.is_ok()) << "from a copy that may lack it";
      heal(lab);
      expect_byte(lab, "host1", 0, 'b');
      ASSERT_TRUE(lab.write("host1", writer_, 8192, 'c').is_ok());
    } else {
      expect_served(lab, 'c');
      expect_nothing_old(lab, 0, 'b');
      heal(lab);
    }
    expect_equal(lab, &site, 'c');
  }
}

// The image grew while the host was alone: what the shared node is to take first is its size.
TEST_P(RefusedRecoveryTest, TellsANewSizeOnceItIsTaken) {
  for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
    Lab lab(1, false, Plant::kNone, Ships::kYes);
    Site site(lab);
    begin(lab);
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", writer_, 0, 'x').is_ok());
    ASSERT_TRUE(lab.write("host1", writer_, 0, 'b').is_ok());
    ASSERT_TRUE(lab.write("host1", writer_, Lab::kImageBytes, 'b', Lab::kRegion).is_ok());
    ASSERT_TRUE(lab.flush("host1", writer_).is_ok());
    lab.crash("host1", kind);
    lab.world.heal_all();
    refuse(lab);
    lab.start("host1");
    open_again(lab);
    expect_served(lab, 'c');
    expect_byte(lab, "host1", Lab::kImageBytes, 'b');
    expect_not_taken(lab);
    expect_nothing_old(lab, Lab::kImageBytes, 'b');
    heal(lab);
    expect_equal(lab, &site, 'c');
    expect_byte(lab, "host2", Lab::kImageBytes, 'b');
  }
}

// With a witness it may not go on alone unasked, and after a crash it may not ask: it waits, and loses nothing.
TEST_P(RefusedRecoveryTest, WaitsWhereItMayNotGoOnAlone) {
  Lab lab(1, true);
  begin(lab);
  write_alone_and_crash(lab, Crash::kKill);
  refuse(lab);
  lab.start("host1");
  open_again(lab);
  auto got = lab.read("host1", writer_, 0);
  EXPECT_TRUE(!got.is_ok() || !outdated(lab)) << "answered without the witness's word";
  expect_nothing_old(lab, 0, 'b');
  heal(lab);
  expect_byte(lab, "host1", 0, 'b');
  ASSERT_TRUE(lab.write("host1", writer_, 8192, 'c').is_ok());
  expect_equal(lab, nullptr, 'c');
}

// Crashes of both nodes, lost links and refusals of every kind in any order. What was flushed stays; what nobody was
// answered may be there or not; no other host reads anything else.
class Mix {
 public:
  explicit Mix(uint64_t seed) : lab_(seed, false, Plant::kNone, Ships::kYes), site_(lab_) {}

  void run() {
    auto opened = lab_.open_filled("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    writer_ = *opened;
    opened = lab_.open("host2");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    reader_ = *opened;
    for (int i = 0; i < 24 && !testing::Test::HasFailure(); ++i) turn();
    refusal_ = nullptr;
    lab_.world.heal_all();
    lab_.world.clear_faults("shared1");
    lab_.world.release_hung("shared1");
    lab_.world.run_for(seconds(20));
    ASSERT_TRUE(lab_.write("host1", writer_, kBlocks * kStride, 'z').is_ok());   // it takes the tenure
    ASSERT_TRUE(lab_.flush("host1", writer_).is_ok());
    ASSERT_TRUE(lab_.healthy("host1")) << lab_.engine("host1").status_json();
    EXPECT_EQ(site_.verify("host1"), "");
    for (uint64_t b = 0; b < kBlocks; ++b) EXPECT_TRUE(look("host1", b)) << "no answer";
  }

 private:
  static constexpr uint64_t kBlocks = 7, kStride = 8 * 4096;

  void turn() {
    Random& random = lab_.world.random();
    const Crash kind = random.coin() ? Crash::kKill : Crash::kPowerLoss;
    switch (random.below(9)) {
      case 0:
      case 1:
      case 2: return write(random.below(kBlocks));
      case 3: return static_cast<void>(look("host1", random.below(kBlocks)));
      case 4: return static_cast<void>(look("host2", random.below(kBlocks)));
      case 5: return restart("host1", kind);
      case 6: return restart("shared1", kind);
      case 7:
        lab_.world.clear_faults("shared1");
        if (random.coin()) lab_.world.release_hung("shared1");
        refusal_ = random.below(4) == 0 ? nullptr : &kRefusals[random.below(std::size(kRefusals))];
        return refuse();
      default:
        if (random.coin()) lab_.world.partition("host1", "shared1");
        else lab_.world.heal_all();
        lab_.world.run_for(std::chrono::milliseconds(random.below(8000)));
    }
  }
  void refuse() {
    if (refusal_ == nullptr) return;
    const Refusal& r = *refusal_;
    lab_.world.inject("shared1", FileFault{1, UINT64_MAX, r.operations, "/brick", r.error, r.hangs});
  }
  void restart(const std::string& node, Crash kind) {
    lab_.crash(node, kind);
    lab_.world.clear_faults(node);
    lab_.start(node);
    if (node == "shared1") return refuse();
    lab_.world.heal_all();
    auto opened = lab_.open("host1");
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    writer_ = *opened;
  }
  void write(uint64_t block) {
    const uint8_t byte = ++last_;
    may_be_[block].insert(byte);
    if (!lab_.write("host1", writer_, block * kStride, byte) || !lab_.flush("host1", writer_)) return;
    may_be_[block] = {byte};
  }
  // Byte by byte: a power cut may have torn a sector that was not flushed.
  bool look(const std::string& host, uint64_t block) {
    auto got = lab_.read_bytes(host, host == "host1" ? writer_ : reader_, block * kStride, 512);
    if (!got) return false;
    for (uint8_t byte : std::set<uint8_t>(got->begin(), got->end()))
      EXPECT_TRUE(may_be_[block].contains(byte)) << host << " reads " << int{byte} << " of block " << block;
    return true;
  }

  Lab lab_;
  Site site_;
  fs::HandleId writer_, reader_;
  const Refusal* refusal_ = nullptr;
  uint8_t last_ = 'a';
  std::vector<std::set<uint8_t>> may_be_ = std::vector<std::set<uint8_t>>(kBlocks, {uint8_t{'a'}});
};

TEST(RefusedRecoveryMix, NothingIsLostInAnyOrderOfCrashesAndRefusals) {
  for (uint64_t seed = 1; seed <= seeds_of(40); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Mix(seed).run();
    if (testing::Test::HasFailure()) break;
  }
}

INSTANTIATE_TEST_SUITE_P(Refusals, RefusedRecoveryTest, testing::ValuesIn(kRefusals), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tidemark::sim
