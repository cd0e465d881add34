// The simulator's own rules: what a crash leaves, faults, cuts, and that a seed replays.
#include "tests/sim/sim_env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "shared/io/file.h"
#include "shared/kv/store.h"

namespace tidemark::sim {
namespace {

using io::IoMode;
using std::chrono::milliseconds;
using std::chrono::seconds;

const Uuid kCluster = Uuid::from_random({4, 2});

struct Cluster {
  explicit Cluster(uint64_t seed, WorldOptions options = {}) : world((options.seed = seed, options)) {
    world.add_node({.name = "host1", .cluster = kCluster, .role = net::Role::kHost});
    world.add_node({.name = "shared1", .cluster = kCluster, .role = net::Role::kShared});
  }
  template <typename T>
  T wait(UniqueFunction<void(Callback<T>)> start) {
    std::optional<T> result;
    start([&](T value) { result.emplace(std::move(value)); });
    EXPECT_TRUE(world.run_until([&] { return result.has_value(); }, seconds(60)));
    return std::move(*result);
  }
  Status write(io::File& f, uint64_t offset, ByteSpan data) {
    return wait<Status>([&](auto done) { f.write(offset, data, IoMode::kQueued, std::move(done)); });
  }
  Status sync(io::File& f) {
    return wait<Status>([&](auto done) { f.sync(IoMode::kQueued, std::move(done)); });
  }
  Bytes read(SimEnv& env, const std::string& path) {
    auto data = env.files().read_file(path);
    EXPECT_TRUE(data.is_ok()) << data.status().to_string();
    return data ? *data : Bytes{};
  }
  World world;
};

std::unique_ptr<io::File> create(SimEnv& env, const std::string& path) {
  auto file = env.files().open(path, {.create = true});
  EXPECT_TRUE(file.is_ok()) << file.status().to_string();
  EXPECT_TRUE(env.files().sync_directory("/").is_ok());
  return std::move(*file);
}

TEST(SimCrash, KillKeepsWhatWasWritten) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Cluster c(seed);
    auto file = create(c.world.start("host1"), "/f");
    ASSERT_TRUE(c.write(*file, 0, Bytes(8192, 'a')).is_ok());
    c.world.crash("host1", Crash::kKill);
    file.reset();
    EXPECT_EQ(c.read(c.world.start("host1"), "/f"), Bytes(8192, 'a'));
  }
}

TEST(SimCrash, PowerLossKeepsDropsOrTearsUnsyncedSectorsAndNothingElse) {
  std::set<std::string> fates;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Cluster c(seed);
    auto file = create(c.world.start("host1"), "/f");
    ASSERT_TRUE(c.write(*file, 0, Bytes(8192, 'a')).is_ok());
    ASSERT_TRUE(c.sync(*file).is_ok());
    ASSERT_TRUE(c.write(*file, 1024, Bytes(1024, 'b')).is_ok());
    c.world.crash("host1", Crash::kPowerLoss);
    file.reset();
    Bytes after = c.read(c.world.start("host1"), "/f");
    ASSERT_EQ(after.size(), 8192u);
    EXPECT_EQ(Bytes(after.begin(), after.begin() + 1024), Bytes(1024, 'a'));
    EXPECT_EQ(Bytes(after.begin() + 2048, after.end()), Bytes(6144, 'a'));
    auto new_bytes = std::count(after.begin() + 1024, after.begin() + 1536, 'b');
    fates.insert(new_bytes == 512 ? "kept" : new_bytes == 0 ? "dropped" : "torn");
    EXPECT_TRUE(std::is_sorted(after.begin() + 1024, after.begin() + 1536, std::greater<>())) << "the new part comes first";
  }
  EXPECT_THAT(fates, ::testing::ElementsAre("dropped", "kept", "torn"));
}

TEST(SimCrash, WriteDuringASyncIsNotCoveredByIt) {
  bool lost = false;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Cluster c(seed);
    auto file = create(c.world.start("host1"), "/f");
    ASSERT_TRUE(c.write(*file, 0, Bytes(512, 'a')).is_ok());
    std::optional<Status> synced;
    Bytes later(512, 'b');
    int written = 0;
    file->sync(IoMode::kQueued, [&](Status s) { synced = std::move(s); });
    file->write(0, later, IoMode::kQueued, [&](Status) { ++written; });
    ASSERT_TRUE(c.world.run_until([&] { return synced && written == 1; }, seconds(1)));
    c.world.crash("host1", Crash::kPowerLoss);
    file.reset();
    uint8_t last = c.read(c.world.start("host1"), "/f")[511];
    EXPECT_TRUE(last == 'a' || last == 'b');
    lost = lost || last == 'a';
  }
  EXPECT_TRUE(lost);
}

TEST(SimCrash, FailedSyncIsNotHealedByTheNext) {
  bool lost = false;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Cluster c(seed);
    auto file = create(c.world.start("host1"), "/f");
    ASSERT_TRUE(c.write(*file, 0, Bytes(512, 'a')).is_ok());
    c.world.inject("host1", FileFault{.operations = static_cast<uint16_t>(FileOp::kSync)});
    EXPECT_EQ(c.sync(*file).code(), Code::kIoError);
    EXPECT_TRUE(c.sync(*file).is_ok());
    c.world.crash("host1", Crash::kPowerLoss);
    file.reset();
    Bytes after = c.read(c.world.start("host1"), "/f");
    lost = lost || after.size() < 512 || after[511] != 'a';
  }
  EXPECT_TRUE(lost);
}

TEST(SimCrash, ASyncThatEndsAfterALaterOneTakesNothingBack) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Cluster c(seed);
    auto file = create(c.world.start("host1"), "/f");
    ASSERT_TRUE(c.write(*file, 0, Bytes(512, 'a')).is_ok());
    c.world.inject("host1", FileFault{.operations = static_cast<uint16_t>(FileOp::kSync), .hangs = true});
    std::optional<Status> first;
    file->sync(IoMode::kQueued, [&](Status s) { first = std::move(s); });
    ASSERT_TRUE(c.write(*file, 0, Bytes(512, 'b')).is_ok());
    ASSERT_TRUE(file->truncate(8192).is_ok());
    ASSERT_TRUE(c.sync(*file).is_ok());
    ASSERT_TRUE(c.write(*file, 0, Bytes(512, 'c')).is_ok());
    ASSERT_FALSE(first);
    c.world.release_hung("host1");
    ASSERT_TRUE(c.world.run_until([&] { return first.has_value(); }, seconds(1)));
    ASSERT_TRUE(first->is_ok()) << first->to_string();
    c.world.crash("host1", Crash::kPowerLoss);
    file.reset();
    Bytes after = c.read(c.world.start("host1"), "/f");
    ASSERT_EQ(after.size(), 8192u);
    EXPECT_TRUE(after[511] == 'b' || after[511] == 'c') << after[511];
  }
}

TEST(SimCrash, NamesAreAPrefixOfWhatWasNotSynced) {
  std::set<size_t> counts;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Cluster c(seed);
    SimEnv& env = c.world.start("host1");
    create(env, "/synced");
    for (const char* name : {"/a", "/b", "/c"}) ASSERT_TRUE(env.files().open(name, {.create = true}).is_ok());
    c.world.crash("host1", Crash::kPowerLoss);
    auto names = *c.world.start("host1").files().list("/");
    std::vector<std::string> all{"a", "b", "c", "synced"};
    ASSERT_FALSE(names.empty());
    EXPECT_EQ(names.back(), "synced");
    EXPECT_TRUE(std::equal(names.begin(), names.end() - 1, all.begin()));
    counts.insert(names.size());
  }
  EXPECT_EQ(counts.size(), 4u);
}

TEST(SimCrash, AtomicFileIsOldOrNewAtEveryCrashPoint) {
  for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
    for (uint64_t nth = 1;; ++nth) {
      Cluster c(nth);
      SimEnv& env = c.world.start("host1");
      ASSERT_TRUE(env.files().write_file_atomically("/f", Bytes(3000, 'o')).is_ok());
      c.world.inject("host1", CrashPoint{.nth = nth, .kind = kind});
      Status status = env.files().write_file_atomically("/f", Bytes(5000, 'n'));
      bool crashed = !c.world.running("host1");
      if (!crashed) {
        EXPECT_TRUE(status.is_ok());
        EXPECT_GT(nth, 3u);
        break;
      }
      // It may have been done before the crash, which is not seen by the process.
      Bytes after = c.read(c.world.start("host1"), "/f");
      EXPECT_TRUE(after == Bytes(3000, 'o') || after == Bytes(5000, 'n')) << "operation " << nth;
    }
  }
}

TEST(SimCrash, NothingOfADeadProcessRuns) {
  Cluster c(3);
  SimEnv& env = c.world.start("host1");
  auto file = create(env, "/f");
  int ran = 0;
  env.post([&] { ++ran; });
  env.after(milliseconds(1), [&] { ++ran; });
  env.at_turn_end([&] { ++ran; });
  env.offload([&] { ++ran; }, [&] { ++ran; });
  Bytes data(512, 'x');
  file->write(0, data, IoMode::kQueued, [&](Status) { ++ran; });
  Uuid boot = env.boot_id();
  c.world.crash("host1", Crash::kKill);
  EXPECT_FALSE(env.alive());
  EXPECT_FALSE(env.files().write_file_atomically("/late", data).is_ok());
  env.post([&] { ++ran; });
  file.reset();
  SimEnv& next = c.world.start("host1");
  c.world.run_for(seconds(1));
  EXPECT_EQ(ran, 0);
  EXPECT_FALSE(next.files().stat("/late").is_ok());
  EXPECT_EQ(next.boot_id(), boot);
  c.world.crash("host1", Crash::kPowerLoss);
  EXPECT_NE(c.world.start("host1").boot_id(), boot);
}

TEST(SimStore, CommitUnderWayIsThereWholeOrNotAtAllAndAcknowledgedOnesForCertain) {
  std::set<bool> fates;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Cluster c(seed);
    auto store = std::move(*c.world.start("host1").open_store("/s", {.tables = {"t"}}));
    auto put = [](std::initializer_list<uint64_t> keys) {
      kv::WriteBatch batch;
      for (uint64_t k : keys) batch.put(0, kv::key_u64(k), {});
      return batch;
    };
    ASSERT_TRUE(c.wait<Status>([&](auto done) { store->commit(put({1}), std::move(done)); }).is_ok());
    bool answered = false;
    store->commit(put({2, 3}), [&](Status) { answered = true; });
    c.world.crash("host1", Crash::kPowerLoss);
    store.reset();
    store = std::move(*c.world.start("host1").open_store("/s", {.tables = {"t"}}));
    auto snapshot = store->snapshot();
    EXPECT_TRUE(snapshot->get(0, kv::key_u64(1)).is_ok());
    bool two = snapshot->get(0, kv::key_u64(2)).is_ok(), three = snapshot->get(0, kv::key_u64(3)).is_ok();
    EXPECT_EQ(two, three);
    EXPECT_FALSE(answered);
    fates.insert(two);
  }
  EXPECT_EQ(fates.size(), 2u);
}

TEST(SimStore, OutOfSpaceLeavesItUsableAndAnIoErrorDoesNot) {
  Cluster c(1);
  auto store = std::move(*c.world.start("host1").open_store("/s", {.tables = {"t"}}));
  auto commit = [&](uint64_t key) {
    kv::WriteBatch batch;
    batch.put(0, kv::key_u64(key), {});
    return c.wait<Status>([&](auto done) { store->commit(std::move(batch), std::move(done)); }).code();
  };
  c.world.fail_next_commit("host1", Status(Code::kOutOfSpace, "full"));
  EXPECT_EQ(commit(1), Code::kOutOfSpace);
  EXPECT_EQ(store->snapshot()->get(0, kv::key_u64(1)).status().code(), Code::kNotFound);
  EXPECT_EQ(commit(2), Code::kOk);
  c.world.fail_next_commit("host1", Status(Code::kIoError, "broken"));
  EXPECT_EQ(commit(3), Code::kIoError);
  EXPECT_EQ(commit(4), Code::kIoError);
}

TEST(SimDisk, FullDiskIsOutOfSpaceAndPunchMakesRoom) {
  Cluster c(1);
  auto file = create(c.world.start("host1"), "/f");
  c.world.set_disk_bytes("host1", 16'384);
  EXPECT_TRUE(c.write(*file, 0, Bytes(16'384, 'a')).is_ok());
  EXPECT_EQ(c.write(*file, 16'384, Bytes(4096, 'b')).code(), Code::kOutOfSpace);
  EXPECT_TRUE(c.write(*file, 0, Bytes(4096, 'c')).is_ok());
  ASSERT_TRUE(c.wait<Status>([&](auto done) { file->punch(0, 4096, std::move(done)); }).is_ok());
  EXPECT_TRUE(c.write(*file, 16'384, Bytes(4096, 'b')).is_ok());
}

TEST(SimDisk, FlippedByteStaysThroughAPowerLoss) {
  Cluster c(1);
  auto file = create(c.world.start("host1"), "/f");
  ASSERT_TRUE(c.write(*file, 0, Bytes(1000, 'a')).is_ok());
  ASSERT_TRUE(c.sync(*file).is_ok());
  ASSERT_TRUE(c.world.flip_byte("host1", "/f", 700).is_ok());
  c.world.crash("host1", Crash::kPowerLoss);
  file.reset();
  Bytes after = c.read(c.world.start("host1"), "/f");
  EXPECT_EQ(after[700], static_cast<uint8_t>('a' ^ 0xff));
  EXPECT_EQ(after[699], 'a');
}

TEST(SimClock, WallClocksDifferDriftAndJumpWhileBootTimeOnlyGrows) {
  World world({.seed = 5});
  world.add_node({.name = "a"});
  world.add_node({.name = "b", .wall_offset = std::chrono::hours(1), .drift_ppm = 100'000});
  SimEnv& a = world.start("a");
  SimEnv& b = world.start("b");
  EXPECT_EQ(b.wall().ns - a.wall().ns, Duration(std::chrono::hours(1)).count());
  auto boot_a = a.now(), boot_b = b.now();
  bool rang = false;
  b.after(seconds(11), [&] { rang = true; });
  world.run_for(milliseconds(9999));
  EXPECT_FALSE(rang);
  world.run_for(milliseconds(2));
  EXPECT_TRUE(rang) << "eleven of its seconds are ten of the world's";
  EXPECT_EQ((a.now() - boot_a).count() / 1'000'000, 10'001);
  EXPECT_EQ((b.now() - boot_b).count() / 1'000'000, 11'001);
  WallTime before = a.wall();
  world.jump_wall("a", -seconds(100));
  EXPECT_LT(a.wall(), before);
}

struct Pair {
  explicit Pair(Cluster& cluster) : c(cluster) {
    SimEnv& shared = c.world.start("shared1");
    listener = std::move(*shared.network().listen(
        {.address = {"0.0.0.0", 7400}, .roles_accepted = {net::Role::kHost}}, [this](std::unique_ptr<net::Stream> s) {
          server = std::move(s);
          server->start({.on_data = [this](ByteSpan d) { received.insert(received.end(), d.begin(), d.end()); ++deliveries; },
                         .on_close = [this](Status s) { server_closed = std::move(s); }});
        }));
    connect();
  }
  void connect() {
    SimEnv* env = c.world.process("host1");
    if (env == nullptr) env = &c.world.start("host1");
    auto result = c.wait<Result<std::unique_ptr<net::Stream>>>([&](auto done) {
      env->network().connect({.address = {"shared1", 7400}, .peer_role = net::Role::kShared}, std::move(done));
    });
    connected = result.status();
    if (!result) return;
    client = std::move(*result);
    client->start({.on_data = [](ByteSpan) {}, .on_close = [this](Status s) { client_closed = std::move(s); }});
  }
  Cluster& c;
  std::unique_ptr<net::Listener> listener;
  std::unique_ptr<net::Stream> client, server;
  Bytes received;
  int deliveries = 0;
  Status connected;
  std::optional<Status> client_closed, server_closed;
};

TEST(SimNetwork, CutHoldsBytesBackOneWayUntilItHeals) {
  Cluster c(9);
  Pair pair(c);
  c.world.cut("host1", "shared1");
  pair.client->send(Bytes(100, 'x'));
  c.world.run_for(seconds(5));
  EXPECT_TRUE(pair.received.empty());
  EXPECT_FALSE(pair.client_closed);
  c.world.heal("host1", "shared1");
  c.world.run_for(seconds(1));
  EXPECT_EQ(pair.received, Bytes(100, 'x'));
}

TEST(SimNetwork, CutThatLastsBreaksTheConnectionAndNewOnesTimeOut) {
  Cluster c(9);
  Pair pair(c);
  c.world.partition("host1", "shared1");
  pair.client->send(Bytes(100, 'x'));
  c.world.run_for(seconds(30));
  ASSERT_TRUE(pair.client_closed && pair.server_closed);
  EXPECT_EQ(pair.client_closed->code(), Code::kUnavailable);
  EXPECT_TRUE(pair.received.empty());
  pair.connect();
  EXPECT_EQ(pair.connected.code(), Code::kUnavailable);
  c.world.heal_all();
  pair.connect();
  EXPECT_TRUE(pair.connected.is_ok());
}

TEST(SimNetwork, PeerSeesAKilledProcessCloseAndAPowerLossLater) {
  for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) {
    Cluster c(11);
    Pair pair(c);
    ASSERT_TRUE(c.world.run_until([&] { return pair.server != nullptr; }, seconds(1)));
    c.world.crash("host1", kind);
    pair.client.reset();
    c.world.run_for(milliseconds(500));
    EXPECT_EQ(pair.server_closed.has_value(), kind == Crash::kKill);
    c.world.run_for(seconds(10));
    EXPECT_TRUE(pair.server_closed.has_value());
    EXPECT_FALSE(pair.client_closed) << "a dead process hears nothing";
  }
}

TEST(SimNetwork, ConnectionToADeadNodeIsRefused) {
  Cluster c(9);
  Pair pair(c);
  c.world.crash("shared1", Crash::kKill);
  pair.listener.reset();
  pair.server.reset();
  pair.connect();
  EXPECT_EQ(pair.connected.code(), Code::kUnavailable);
}

TEST(SimNetwork, ResetLosesATailAndTellsBothEnds) {
  bool lost = false;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Cluster c(seed);
    Pair pair(c);
    ASSERT_TRUE(c.world.run_until([&] { return pair.server != nullptr; }, seconds(1)));
    Bytes sent(10'000);
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<uint8_t>(i / 100);
    for (size_t at = 0; at < sent.size(); at += 100) {
      pair.client->send(ByteSpan(sent).subspan(at, 100));
      pair.client->flush();
    }
    c.world.run_until([&] { return pair.deliveries >= 20; }, seconds(1));
    c.world.reset_connections("shared1", "host1");
    c.world.run_for(seconds(1));
    ASSERT_TRUE(pair.client_closed && pair.server_closed);
    ASSERT_LE(pair.received.size(), sent.size());
    EXPECT_TRUE(std::equal(pair.received.begin(), pair.received.end(), sent.begin())) << "a prefix";
    lost = lost || pair.received.size() < sent.size();
  }
  EXPECT_TRUE(lost);
}

TEST(SimNetwork, HttpAnswerLostMeansAppliedButUnavailable) {
  for (bool answer : {false, true}) {
    Cluster c(2, {.http_request_lost_per_million = answer ? 0u : 1'000'000u,
                  .http_answer_lost_per_million = answer ? 1'000'000u : 0u});
    int applied = 0;
    auto server = std::move(*c.world.start("shared1").network().serve_http(
        {.roles_accepted = {net::Role::kHost}, .address = {"0.0.0.0", 80}},
        [&](net::HttpRequest, Callback<net::HttpResponse> done) { ++applied; done(net::HttpResponse::text(200, "")); }));
    auto client = std::move(*c.world.start("host1").network().http_client({.url = "http://shared1:80"}));
    auto result = c.wait<Result<net::HttpResponse>>([&](auto done) {
      client->request({.method = "POST", .target = "/"}, std::move(done));
    });
    EXPECT_EQ(result.status().code(), Code::kUnavailable);
    EXPECT_EQ(applied, answer ? 1 : 0);
  }
}

TEST(SimNetwork, HttpServerKilledAtWorkIsUnavailable) {
  Cluster c(2);
  Callback<net::HttpResponse> held;
  auto server = std::move(*c.world.start("shared1").network().serve_http(
      {.address = {"0.0.0.0", 80}}, [&](net::HttpRequest, Callback<net::HttpResponse> done) { held = std::move(done); }));
  auto client = std::move(*c.world.start("host1").network().http_client({.url = "http://shared1:80"}));
  std::optional<Code> code;
  client->request({.method = "POST", .target = "/"}, [&](Result<net::HttpResponse> r) { code = r.status().code(); });
  ASSERT_TRUE(c.world.run_until([&] { return static_cast<bool>(held); }, seconds(1)));
  c.world.crash("shared1", Crash::kKill);
  server.reset();
  held = nullptr;
  c.world.run_for(seconds(1));
  EXPECT_EQ(code, Code::kUnavailable);
}

// A busy little cluster with faults; its trace must depend on the seed and on nothing else.
uint64_t trace_of(uint64_t seed) {
  Cluster c(seed, {.reset_per_million = 20'000});
  Pair pair(c);
  SimEnv& host = *c.world.process("host1");
  auto file = create(host, "/f");
  auto store = std::move(*host.open_store("/s", {.tables = {"t"}}));
  std::vector<Bytes> buffers(50);
  int done = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    buffers[i].resize(4096);
    host.random(buffers[i]);
    file->write(i * 4096, buffers[i], i % 2 == 0 ? IoMode::kQueued : IoMode::kInline, [&](Status) {
      ++done;
      if (!pair.client_closed) pair.client->send(Bytes(300, 'z'));
      kv::WriteBatch batch;
      batch.put(0, kv::key_u64(static_cast<uint64_t>(done)), {});
      store->commit(std::move(batch), [](Status) {});
    });
    host.after(milliseconds(static_cast<int64_t>(c.world.random().below(20))), [] {});
  }
  c.world.at(milliseconds(2), [&] { c.world.partition("host1", "shared1"); });
  c.world.at(milliseconds(9), [&] { c.world.heal_all(); });
  c.world.run_for(seconds(1));
  EXPECT_EQ(done, 50);
  c.world.crash("host1", Crash::kPowerLoss);
  file.reset();
  store.reset();
  pair.client.reset();
  c.world.run_for(seconds(1));
  return c.world.trace_hash();
}

TEST(SimTrace, SeedReplaysExactlyAndSeedsDiffer) {
  std::set<uint64_t> traces;
  for (uint64_t seed = 100; seed < 120; ++seed) {
    uint64_t trace = trace_of(seed);
    EXPECT_EQ(trace, trace_of(seed));
    traces.insert(trace);
  }
  EXPECT_EQ(traces.size(), 20u);
}

}  // namespace
}  // namespace tidemark::sim
