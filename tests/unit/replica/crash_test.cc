// The replica dies at every file operation and every commit of a small history, and goes on.
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kA = test_uuid(1), kB = test_uuid(2), kC = test_uuid(3);

struct Shipment { const BatchMaker* maker; BatchMaker::Made made; uint32_t part; };

// Two hosts; host2's batch arrives before what it waits for; one batch has two parts.
class History {
 public:
  History() {
    auto a1 = host1.make({{.image = kA, .pieces = {{0, pattern(1, 8192)}}}}, {create_mark(1, "host1", 2, kA, "a.img")});
    auto a2 =
        host1.make({{.image = kA, .pieces = {{4096, pattern(2, 4096)}, {65536, pattern(3, 4096)}}}}, {}, "named", 2);
    auto b1 = host2.make({{.image = kA,
                           .epoch = Epoch(2),
                           .parent = {.epoch = Epoch(1), .source = "host1", .last = a2.last},
                           .pieces = {{0, pattern(4, 4096)}}},
                          {.image = kB, .pieces = {{0, pattern(5, 4096)}}}},
                         {open_mark("host2", 2, kA), create_mark(2, "host2", 3, kB, "b.img")});
    auto a3 = host1.make({}, {rename_mark(3, "host1", 2, kA, "a.img", "c.img")});
    shipments = {{&host1, a1, 0}, {&host2, b1, 0}, {&host1, a2, 1}, {&host1, a2, 0}, {&host1, a3, 0}};
  }
  BatchMaker host1{"host1"}, host2{"host2"};
  std::vector<Shipment> shipments;
};

// Ships everything, each part until it is answered; restarts the replica whenever it died.
void ship(Harness& h, const History& history, int& deaths) {
  for (const Shipment& s : history.shipments) {
    for (int attempt = 0;; ++attempt) {
      ASSERT_LT(attempt, 4);
      auto answer = h.put(*s.maker, s.made, s.part);
      if (answer.status == 200) break;
      ASSERT_EQ(answer.status, 0) << answer.body;
      ++deaths;
      h.reopen_after_crash();
    }
  }
}

void check(Harness& h) {
  // What was held may be applied a moment after the last answer.
  h.world.run_until([&] { return h.replica->intake().idle(); }, std::chrono::seconds(10));
  const Json status = h.get("/v1/status").json();
  ASSERT_EQ(status["points"], 4) << status.dump();
  EXPECT_EQ(status["held_batches"], 0);
  EXPECT_EQ(status["alarms"].size(), 0u) << status["alarms"].dump();
  EXPECT_EQ(h.data("1", kA, "bytes=0-8191"), std::string(as_text(pattern(1, 8192))));
  EXPECT_EQ(h.data("named", kA, "bytes=4096-8191"), std::string(as_text(pattern(2, 4096))));
  EXPECT_EQ(h.data("named", kA, "bytes=65536-69631"), std::string(as_text(pattern(3, 4096))));
  EXPECT_EQ(h.data("latest", kA, "bytes=0-4095"), std::string(as_text(pattern(4, 4096))));
  EXPECT_EQ(h.data("latest", kB, "bytes=0-4095"), std::string(as_text(pattern(5, 4096))));
  std::vector<std::string> paths;
  const Json tree = h.get("/v1/points/latest/tree").json();
  for (const auto& e : tree["entries"]) paths.push_back(e["path"]);
  EXPECT_EQ(paths, (std::vector<std::string>{"b.img", "c.img"}));
  EXPECT_TRUE(h.env->files().list("/state/incoming")->empty());
}

void crash_everywhere(bool at_commits, sim::Crash kind, uint64_t most) {
  const History history;
  uint64_t nth = 1;
  for (;; ++nth) {
    SCOPED_TRACE((at_commits ? "commit " : "file operation ") + std::to_string(nth));
    Harness h(nth);
    h.world.inject("replica", sim::CrashPoint{.nth = nth, .at_commits = at_commits, .kind = kind});
    int deaths = 0;
    ship(h, history, deaths);
    if (testing::Test::HasFatalFailure()) return;
    h.world.clear_faults("replica");
    check(h);
    if (testing::Test::HasFailure() || deaths == 0) break;
    ASSERT_LT(nth, most);
  }
  EXPECT_GT(nth, 4u) << "the crash points were not reached";
}

TEST(Crash, AtEveryFileOperationThenGoesOn) { crash_everywhere(false, sim::Crash::kKill, 200); }
TEST(Crash, AtEveryFileOperationWithPowerLoss) { crash_everywhere(false, sim::Crash::kPowerLoss, 200); }
TEST(Crash, AtEveryCommit) { crash_everywhere(true, sim::Crash::kKill, 100); }
TEST(Crash, AtEveryCommitWithPowerLoss) { crash_everywhere(true, sim::Crash::kPowerLoss, 100); }

// A resync's end is applied in many steps: the replica dies at each of their commits, shows the point before until all
// is done, and what another source sends meanwhile does not come in between.
class Resync {
 public:
  // `begun_again`: the host gave up its end when a part of it was there already, and made another one.
  explicit Resync(bool begun_again) {
    auto first = host1.make({slice(kA, all('a')), slice(kB, all('a'))},
                            {create_mark(1, "host1", 2, kA, "a.img"), create_mark(2, "host1", 3, kB, "b.img")});
    host1.kind = journal::BatchKind::kPiece;
    auto piece = host1.make({slice(kA, all('b')), slice(kB, all('x'))}, {create_mark(3, "host1", 4, kC, "c.img")});
    host1.kind = journal::BatchKind::kPiece;
    auto second = host1.make({slice(kA, {{4 * kStride, Bytes(4096, 'c')}, {6 * kStride, {}, 4096}})});
    const Sha256 previous = host1.previous();
    host1.kind = journal::BatchKind::kResync;
    auto given_up = host1.make({slice(kA, all('z'))}, {}, {}, 2);
    host1.set_chain(begun_again ? given_up.number.next() : given_up.number, previous);
    if (begun_again) host1.supersedes_first = host1.supersedes_last = given_up.number;
    host1.kind = journal::BatchKind::kResync;
    auto end = host1.make({slice(kA, {{2 * kStride, Bytes(4096, 'd')}}), slice(kB, {}, kSize / 2)},
                          {rename_mark(4, "host1", 2, kA, "a.img", "moved.img")});
    auto other = host2.make({slice(kC, {{0, Bytes(4096, 'o')}})}, {open_mark("host2", 4, kC)});
    shipments = {{&host1, first, 0}, {&host1, piece, 0}, {&host2, other, 0}, {&host1, second, 0}};
    if (begun_again) shipments.push_back({&host1, given_up, 0});
    shipments.push_back({&host1, end, 0});
  }
  static constexpr uint64_t kPieces = 10, kStride = 128 << 10, kSize = kPieces * kStride;   // two leaves
  static SliceSpec slice(const Uuid& image, std::vector<Piece> pieces, uint64_t size = kSize) {
    return {.image = image, .size = size, .pieces = std::move(pieces)};
  }
  static std::vector<Piece> all(char letter) {
    std::vector<Piece> out;
    for (uint64_t i = 0; i < kPieces; ++i) out.push_back({i * kStride, Bytes(4096, static_cast<uint8_t>(letter))});
    return out;
  }
  static std::string shown(Harness& h, const Uuid& image, const std::string& point = "latest") {
    const std::string bytes = h.data(point, image);
    std::string letters;
    for (uint64_t at = 0; at < bytes.size(); at += kStride) letters += bytes[at] == 0 ? '0' : bytes[at];
    return letters;
  }
  static void expect_complete_point(Harness& h) {
    const uint64_t newest = h.get("/v1/status").json()["points"];
    const std::string point = std::to_string(newest);
    EXPECT_EQ(shown(h, kA, point), newest == 3 ? "bbdbcb0bbb" : "aaaaaaaaaa");
    EXPECT_EQ(shown(h, kB, point), newest == 3 ? "xxxxx" : "aaaaaaaaaa");
  }
  BatchMaker host1{"host1"}, host2{"host2"};
  std::vector<Shipment> shipments;
};

void crash_in_resync(sim::Crash kind, bool begun_again = false) {
  const Resync history(begun_again);
  uint64_t nth = 1;
  for (;; ++nth) {
    SCOPED_TRACE("commit " + std::to_string(nth));
    Harness h(nth, 2);
    h.world.inject("replica", sim::CrashPoint{.nth = nth, .at_commits = true, .kind = kind});
    int deaths = 0;
    for (const Shipment& s : history.shipments) {
      for (int attempt = 0;; ++attempt) {
        ASSERT_LT(attempt, 4);
        auto answer = h.put(*s.maker, s.made, s.part);
        if (answer.status == 200) break;
        ASSERT_EQ(answer.status, 0) << answer.body;
        ++deaths;
        h.reopen_after_crash();
        if (&s != &history.shipments.front()) Resync::expect_complete_point(h);
      }
    }
    h.world.clear_faults("replica");
    ASSERT_TRUE(h.world.run_until([&] { return h.replica->intake().idle(); }, std::chrono::seconds(10)));
    const Json status = h.get("/v1/status").json();
    EXPECT_EQ(status["points"], 3) << status.dump();
    EXPECT_EQ(status["held_batches"], 0);
    EXPECT_EQ(status["alarms"].size(), 0u) << status["alarms"].dump();
    EXPECT_EQ(Resync::shown(h, kA), "bbdbcb0bbb");
    EXPECT_EQ(Resync::shown(h, kB), "xxxxx");
    EXPECT_EQ(Resync::shown(h, kC).substr(0, 1), "o");
    h.restart();
    Resync::expect_complete_point(h);
    if (testing::Test::HasFailure() || deaths == 0) break;
    ASSERT_LT(nth, 200u);
  }
  EXPECT_GT(nth, 20u) << "the steps were not reached";
}

TEST(Crash, AtEveryCommitOfAResyncsEnd) { crash_in_resync(sim::Crash::kKill); }
TEST(Crash, AtEveryCommitOfAResyncsEndWithPowerLoss) { crash_in_resync(sim::Crash::kPowerLoss); }
TEST(Crash, AtEveryCommitOfAnEndThatStandsForOneGivenUpInPart) { crash_in_resync(sim::Crash::kKill, true); }

TEST(Faults, EveryFailedFileOperationIsAnsweredAndNothingIsLost) {
  const History history;
  for (uint64_t nth = 1;; ++nth) {
    SCOPED_TRACE("file operation " + std::to_string(nth));
    Harness h(nth);
    h.world.inject("replica", sim::FileFault{.nth = nth});
    int refused = 0;
    for (const Shipment& s : history.shipments) {
      auto answer = h.put(*s.maker, s.made, s.part);
      if (answer.status == 200) continue;
      EXPECT_GE(answer.status, 500) << answer.body;
      ++refused;
      answer = h.put(*s.maker, s.made, s.part);
      ASSERT_EQ(answer.status, 200) << answer.body;
    }
    h.world.clear_faults("replica");
    check(h);
    if (HasFailure() || (refused == 0 && nth > 40)) break;
    ASSERT_LT(nth, 200u);
  }
}

// Killed between making a stream's directory and syncing its name: the next run finds it there, and syncs that.
TEST(Faults, ADirectoryThatAKilledRunMadeIsGivenADurableName) {
  const History history;
  const Shipment& s = history.shipments.front();
  Harness h;
  h.world.inject("replica", sim::CrashPoint{.operations = static_cast<uint16_t>(sim::FileOp::kMakeDirectory)});
  ASSERT_EQ(h.put(*s.maker, s.made).status, 0);
  h.reopen_after_crash();
  const std::string directory = "/state/segments/host1/" + s.maker->generation().to_string();
  ASSERT_TRUE(h.env->files().make_directories(directory).is_ok());
  h.restart();
  const auto syncs = static_cast<uint16_t>(sim::FileOp::kSyncDirectory);
  h.world.inject("replica", sim::FileFault{.nth = 3, .operations = syncs, .path_contains = "/segments"});
  EXPECT_GE(h.put(*s.maker, s.made).status, 500) << "two above it, and its own";
  ASSERT_EQ(h.put(*s.maker, s.made).status, 200);
  // From then on its own alone.
  h.world.inject("replica", sim::FileFault{.nth = 2, .operations = syncs, .path_contains = "/segments"});
  EXPECT_EQ(h.put(*history.shipments[2].maker, history.shipments[2].made, 0).status, 200);
}

TEST(Faults, FlippedByteIsAClearErrorAndAnAlarm) {
  const History history;
  Harness h;
  int deaths = 0;
  ship(h, history, deaths);
  const std::string path =
      "/state/segments/host1/" + history.host1.generation().to_string() + "/0000000000000001-00000.seg";
  auto size = h.env->files().stat(path);
  ASSERT_TRUE(size.is_ok());
  ASSERT_TRUE(h.world.flip_byte("replica", path, size->size - 100).is_ok());
  auto answer = h.get("/v1/points/1/images/" + kA.to_string() + "/data");
  EXPECT_EQ(answer.status, 500);
  EXPECT_NE(answer.json()["reason"].get<std::string>().find("0000000000000001-00000.seg"), std::string::npos)
      << answer.body;
  net::HttpRequest hash{.method = "POST", .target = "/v1/points/1/images/" + kA.to_string() + "/hash"};
  const std::string body =
      Json{{"offset", 0}, {"length", 65536}, {"unit", 4096}, {"key", std::string(384, 'a')}}.dump();
  hash.body.assign(body.begin(), body.end());
  const Json hashed = h.ask(std::move(hash)).json();
  ASSERT_EQ(hashed["digests"].size(), 16u);
  EXPECT_EQ(hashed["digests"][0], std::string(32, '0'));
  EXPECT_NE(hashed["digests"][2], std::string(32, '0'));
  EXPECT_EQ(hashed["corrupt"][0]["offset"], 0);
  EXPECT_EQ(h.get("/v1/status").json()["alarms"][0]["kind"], "corruption");
}

}  // namespace
}  // namespace tidemark::replica
