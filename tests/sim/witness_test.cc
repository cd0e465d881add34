// Two hosts, a shared node and a witness under every partition: at most one side acknowledges writes.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Writes stamps to a block of its own for ever, opening the image anew after an error. What was acknowledged must be
// found in the end: if both sides of a partition acknowledge, one side's stamps are in a branch, and its block is old.
class Writer {
 public:
  Writer(Lab& lab, std::string host, uint64_t offset) : lab_(lab), host_(std::move(host)), offset_(offset) {}

  void turn() {
    if (stopped || waits_ || !lab_.world.running(host_)) return later();
    waits_ = true;
    if (!handle_) return open();
    ++stamp_;
    data_ = std::make_shared<Bytes>(4096);
    store_le<uint64_t>(data_->data(), stamp_);
    auto done = [this, run = run_, stamp = stamp_, data = data_](Result<size_t> n) {
      if (run != run_) return;
      if (n) acknowledged = stamp;
      else release();
      again();
    };
    lab_.engine(host_).write(*handle_, offset_, *data_, io::IoMode::kQueued, std::move(done));
  }
  // The host's process has gone: so have its handle and the answers under way.
  void crashed() {
    ++run_;
    handle_.reset();
    waits_ = false;
  }

  uint64_t acknowledged = 0;
  bool stopped = false;

 private:
  void open() {
    auto found = [this, run = run_](Result<wire::Attr> attr) {
      if (run != run_) return;
      if (!attr) return again();
      lab_.engine(host_).open_image(attr->inode, [this, run](Result<fs::HandleId> handle) {
        if (run != run_) return;
        if (handle) handle_ = *handle;
        again();
      });
    };
    lab_.engine(host_).lookup(InodeNumber(1), "disk.img", std::move(found));
  }
  void release() {
    lab_.engine(host_).release(*handle_);
    handle_.reset();
  }
  void again() {
    waits_ = false;
    later();
  }
  void later() {
    if (armed_ || stopped) return;
    armed_ = true;
    lab_.world.at(milliseconds(200), [this] {
      armed_ = false;
      turn();
    });
  }

  Lab& lab_;
  const std::string host_;
  const uint64_t offset_;
  std::optional<fs::HandleId> handle_;
  std::shared_ptr<Bytes> data_;   // shared with a request that may outlive this turn
  uint64_t stamp_ = 0, run_ = 0;
  bool waits_ = false, armed_ = false;
};

uint64_t stamp_at(Lab& lab, const std::string& host, fs::HandleId handle, uint64_t offset) {
  auto data = std::make_shared<Bytes>(4096);
  for (int tries = 0; tries < 20; ++tries) {
    auto n = lab.wait<Result<size_t>>([&](auto done) {
      lab.engine(host).read(handle, offset, *data, io::IoMode::kQueued, std::move(done));
    });
    if (n) return load_le<uint64_t>(data->data());
  }
  ADD_FAILURE() << host << " cannot read";
  return 0;
}

// What the nemesis may do. Returns what was lost, empty: nothing.
struct Partitioned {
  uint64_t acknowledged = 0, moved = 0, alone = 0;
  std::string lost;
};
Partitioned run_partitions(uint64_t seed, Plant plant = Plant::kNone) {
  Partitioned result;
  Lab lab(seed, true, plant);
  auto made = lab.open("host1", true);
  if (!made) {
    result.lost = made.status().to_string();
    return result;
  }
  lab.engine("host1").release(*made);
  Writer writers[2] = {{lab, "host1", 0}, {lab, "host2", 65536}};
  for (Writer& w : writers) w.turn();
  const std::pair<const char*, const char*> kLinks[] = {
      {"host1", "shared1"}, {"host2", "shared1"}, {"host1", "witness1"}, {"host2", "witness1"}, {"shared1", "witness1"}};
  Random& random = lab.world.random();
  for (int event = 0; event < 14; ++event) {
    lab.world.run_for(random.in({seconds(2), seconds(22)}));
    uint64_t choice = random.below(10);
    if (choice < 6) {
      auto [a, b] = kLinks[random.below(std::size(kLinks))];
      lab.world.partition(a, b);
      if (random.below(2) == 0) lab.world.reset_connections(a, b);
    } else if (choice < 8) {
      lab.world.heal_all();
    } else {
      const char* nodes[] = {"host1", "host2", "shared1", "witness1"};
      const std::string node = nodes[random.below(4)];
      const Crash kind = random.below(2) == 0 ? Crash::kKill : Crash::kPowerLoss;
      // A host that goes on alone and loses its power may lose what was not flushed: only killed here.
      const bool host = node.starts_with("host");
      lab.crash(node, host || node == "shared1" ? Crash::kKill : kind);
      if (host) writers[node == "host1" ? 0 : 1].crashed();
      lab.world.run_for(random.in({milliseconds(100), seconds(15)}));
      lab.start(node);
    }
  }
  lab.world.heal_all();
  for (Writer& w : writers) w.stopped = true;
  if (!lab.healthy("host1") || !lab.healthy("host2")) {
    result.lost = "a host does not get healthy";
    return result;
  }
  lab.world.run_for(seconds(30));
  // Both are started anew: nobody holds an open handle.
  for (int w = 0; w < 2; ++w) {
    const std::string host = w == 0 ? "host1" : "host2";
    lab.crash(host, Crash::kKill);
    writers[w].crashed();
    lab.start(host);
    lab.healthy(host);
    result.acknowledged += writers[w].acknowledged;
  }
  for (const char* host : {"host1", "host2"}) {
    auto handle = lab.open(host);
    if (!handle) {
      result.lost = handle.status().to_string();
      return result;
    }
    for (int w = 0; w < 2; ++w) {
      uint64_t found = stamp_at(lab, host, *handle, w == 0 ? 0 : 65536);
      if (found < writers[w].acknowledged) {
        result.lost = std::string(host) + " reads stamp " + std::to_string(found) + " of host" + std::to_string(w + 1) +
                      ", which had " + std::to_string(writers[w].acknowledged) + " acknowledged";
      }
    }
    lab.engine(host).release(*handle);
  }
  for (const auto& [key, value] : lab.world.committed("witness1", "/state/witness", "records")) {
    auto record = wire::decode<witness::Record>(value);
    if (record) result.moved += record->verdict == witness::Verdict::kFenced, result.alone += record->verdict == witness::Verdict::kOutdated;
  }
  return result;
}

TEST(Witness, AtMostOneSideAcknowledgesUnderEveryPartition) {
  uint64_t first = 1, count = 20, acknowledged = 0;
  if (const char* seeds = std::getenv("TIDEMARK_SIM_SEEDS")) count = std::strtoull(seeds, nullptr, 10);
  if (const char* from = std::getenv("TIDEMARK_SIM_FIRST")) first = std::strtoull(from, nullptr, 10);
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Partitioned run = run_partitions(seed);
    EXPECT_EQ(run.lost, "") << "seed " << seed;
    acknowledged += run.acknowledged;
  }
  EXPECT_GT(acknowledged, 100 * count);
}

// The oracle sees what it is there for.
TEST(Witness, PlantedBugsAreCaught) {
  constexpr uint64_t kSeedsMax = 40;
  for (Plant plant : {Plant::kWitnessForgets, Plant::kHostDoesNotAsk}) {
    uint64_t seed = 1;
    while (seed <= kSeedsMax && run_partitions(seed, plant).lost.find("acknowledged") == std::string::npos) ++seed;
    EXPECT_LE(seed, kSeedsMax) << "planted bug " << static_cast<int>(plant) << " was not caught";
    RecordProperty("seeds_until_bug_" + std::to_string(static_cast<int>(plant)), static_cast<int>(seed));
  }
}

// By itself, and on the first write of the other host, once the lease has run out.
TEST(Witness, TheTenureOfAHostThatIsGoneMovesByItself) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
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

// The image, open on host 1, which has its terms of the witness and then loses the shared node.
Result<fs::HandleId> cut_off_after_a_write(Lab& lab) {
  TM_ASSIGN_OR_RETURN(fs::HandleId image, lab.open("host1", true));
  TM_RETURN_IF_ERROR(lab.write("host1", image, 0, 'a'));
  lab.world.run_for(seconds(5));
  lab.world.partition("host1", "shared1");
  return image;
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
  for (uint64_t seed = 1; seed <= 6; ++seed) {
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

}  // namespace
}  // namespace tidemark::sim
