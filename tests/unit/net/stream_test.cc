// Streams between nodes that trust each other: bytes, bounds, endings, rotation.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/net/stream_endpoints.h"
#include "stream_pair.h"

namespace tidemark::net {
namespace {

Bytes random_bytes(size_t size, uint32_t seed) {
  std::mt19937_64 random(seed);
  Bytes out(size);
  for (size_t i = 0; i + 8 <= size; i += 8) store_le(out.data() + i, random());
  return out;
}

TEST_F(StreamTest, BothEndsKnowEachOther) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  EXPECT_EQ(client.stream->peer().node, "shared1");
  EXPECT_EQ(client.stream->peer().role, Role::kShared);
  EXPECT_EQ(accepted[0]->stream->peer().node, "host1");
  EXPECT_EQ(accepted[0]->stream->peer().role, Role::kHost);
  EXPECT_EQ(accepted[0]->stream->peer().cluster, cluster.uuid());
}

TEST_F(StreamTest, HeadAndPayloadArriveInOrder) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  client.stream->send(as_bytes("one "), as_bytes("two "));
  client.stream->send(as_bytes("three"), {});
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1 && accepted[0]->received.size() == 13; }));
  EXPECT_EQ(as_text(accepted[0]->received), "one two three");
  accepted[0]->stream->send(as_bytes("back"), {});
  ASSERT_TRUE(wait_for([&] { return client.received.size() == 4; }));
  EXPECT_EQ(as_text(client.received), "back");
}

// A link slower than its senders, whose queue stays as long as it is.
TEST(OutBuffer, ALongQueueIsNotMovedMoreThanIsSent) {
  constexpr size_t kPiece = 16 << 10, kQueued = 60, kRounds = 10'000;
  OutBuffer buffer;
  buffer.append(Bytes(kQueued * kPiece, 0).data(), kQueued * kPiece);
  uint64_t moved = 0;
  for (size_t round = 0; round < kRounds; ++round) {
    buffer.consume(kPiece);
    const uint8_t* before = buffer.data();
    const size_t size = buffer.size();
    buffer.append(Bytes(kPiece, static_cast<uint8_t>(round)).data(), kPiece);
    if (buffer.data() != before) moved += size;
  }
  EXPECT_LT(moved, 2 * kRounds * kPiece);
  ASSERT_EQ(buffer.size(), kQueued * kPiece);
  for (size_t at = 0; at < kQueued; ++at)
    ASSERT_EQ(buffer.data()[at * kPiece], static_cast<uint8_t>(kRounds - kQueued + at)) << at;
}

TEST_F(StreamTest, FlushSendsBeforeTheTurnEnds) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  client.stream->send(as_bytes("x"), {});
  EXPECT_GT(client.stream->unsent_bytes(), 0u);
  client.stream->flush();
  EXPECT_EQ(client.stream->unsent_bytes(), 0u);
}

TEST_F(StreamTest, BigTransfersBothWaysAtOnceAreWhole) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  Bytes up = random_bytes(40'000'003, 1), down = random_bytes(30'000'001, 2);
  size_t up_at = 0, down_at = 0;
  std::mt19937 random(3);
  auto feed = [&](Stream& stream, const Bytes& data, size_t& at) {
    while (at < data.size() && stream.unsent_bytes() < (4u << 20)) {
      size_t head = std::min<size_t>(random() % 5000, data.size() - at);
      size_t payload = std::min<size_t>(random() % 100'000, data.size() - at - head);
      stream.send(ByteSpan(data).subspan(at, head), ByteSpan(data).subspan(at + head, payload));
      at += head + payload;
    }
  };
  ASSERT_TRUE(wait_for([&] {
    feed(*client.stream, up, up_at);
    feed(*accepted[0]->stream, down, down_at);
    return accepted[0]->received.size() == up.size() && client.received.size() == down.size();
  }));
  EXPECT_EQ(digest64(accepted[0]->received), digest64(up));
  EXPECT_EQ(digest64(client.received), digest64(down));
}

TEST_F(StreamTest, BytesSentBeforeTheOtherEndStartedAreHeldBack) {
  std::unique_ptr<Stream> server;
  auto made = network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                               [&](std::unique_ptr<Stream> s) { server = std::move(s); });
  ASSERT_TRUE(made.is_ok());
  listener = std::move(made).value();
  End client, end;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  client.stream->send(as_bytes("early"), {});
  client.stream->flush();
  ASSERT_TRUE(wait_for([&] { return server != nullptr; }));
  for (int i = 0; i < 20; ++i) env.turn(std::chrono::milliseconds(1));
  end.take(std::move(server));
  ASSERT_TRUE(wait_for([&] { return end.received.size() == 5; }));
  EXPECT_EQ(as_text(end.received), "early");
}

TEST_F(StreamTest, UnsentBytesGrowWhileThePeerDoesNotReadAndDrainWhenItDoes) {
  std::unique_ptr<Stream> server;  // not started: it does not read
  auto made = network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                               [&](std::unique_ptr<Stream> s) { server = std::move(s); });
  ASSERT_TRUE(made.is_ok());
  listener = std::move(made).value();
  End client, end;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return server != nullptr; }));
  Bytes piece = random_bytes(1 << 20, 7);
  for (int i = 0; i < 40; ++i) client.stream->send(piece, {});
  for (int i = 0; i < 20; ++i) env.turn(std::chrono::milliseconds(1));
  EXPECT_GT(client.stream->unsent_bytes(), 20u << 20);
  end.take(std::move(server));
  ASSERT_TRUE(wait_for([&] { return end.received.size() == 40u << 20; }));
  EXPECT_EQ(client.stream->unsent_bytes(), 0u);
  EXPECT_FALSE(client.closed.has_value());
}

// A guest may have more under way than the link takes in a moment.
TEST_F(StreamTest, APeerThatReadsIsSentMoreThanTheBoundInOneTurn) {
  std::unique_ptr<Stream> server;
  uint64_t received = 0;
  auto made = network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                               [&](std::unique_ptr<Stream> s) {
                                 server = std::move(s);
                                 server->start({.on_data = [&](ByteSpan data) { received += data.size(); },
                                                .on_close = [](Status) {}});
                               });
  ASSERT_TRUE(made.is_ok());
  listener = std::move(made).value();
  const Bytes piece(1 << 20);
  const uint64_t total = 2 * limits::kStreamUnsentBytesMax + 16 * piece.size();
  // In a turn that lasts for seconds, where the machine stands still, a peer takes nothing and is given up: once more.
  for (int i = 0; i < 3 && received != total; ++i) {
    server.reset();
    received = 0;
    End client;
    ASSERT_TRUE(connect(to_listener(host), client).is_ok());
    ASSERT_TRUE(wait_for([&] { return server != nullptr; }));
    const io::BootTime begun = env.now();
    for (uint64_t sent = 0; sent < total; sent += piece.size()) client.stream->send(piece, {});
    const bool at_once = env.now() - begun < std::chrono::seconds(2);
    EXPECT_TRUE(wait_for([&] { return received == total || client.closed.has_value(); }));
    if (at_once) {
      EXPECT_EQ(received, total) << (client.closed ? client.closed->to_string() : "");
    }
  }
  EXPECT_EQ(received, total);
}

TEST_F(StreamTest, APeerThatNeverReadsIsGivenUpAtTheBound) {
  std::unique_ptr<Stream> server;
  auto made = network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                               [&](std::unique_ptr<Stream> s) { server = std::move(s); });
  ASSERT_TRUE(made.is_ok());
  listener = std::move(made).value();
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  Bytes piece(1 << 20);
  size_t sent = 0;
  const io::BootTime begun = env.now();
  while (sent < 3 * limits::kStreamUnsentBytesMax) {
    client.stream->send(piece, {});
    sent += piece.size();
  }
  auto wait = [&](int milliseconds) {
    bool over = false;
    env.after(std::chrono::milliseconds(milliseconds), [&] { over = true; });
    return wait_for([&] { return over; });
  };
  const bool at_once = env.now() - begun < std::chrono::seconds(2);   // else it was given up for that, and rightly
  ASSERT_TRUE(wait(1000));
  if (at_once) {
    EXPECT_FALSE(client.closed.has_value()) << "its kernel may take more";
  }
  for (int i = 0; i < 100 && !client.closed; ++i) {
    client.stream->send(as_bytes("one more"), {});
    ASSERT_TRUE(wait(100));
  }
  ASSERT_TRUE(client.closed.has_value());
  EXPECT_THAT(client.closed->message(), ::testing::HasSubstr("does not read"));
}

// Whoever is sent more than it takes must not have all of this node's memory, though it take a little now and then.
TEST_F(StreamTest, NoPeerIsKeptMoreForThanTheSecondBound) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  const Bytes piece(1 << 20);
  constexpr uint64_t kMost = limits::kPeerPayloadBytesMax + 2 * limits::kStreamUnsentBytesMax;
  size_t most = 0;
  for (uint64_t sent = 0; sent < kMost + 32 * piece.size(); sent += piece.size()) {
    client.stream->send(piece, {});
    most = std::max(most, client.stream->unsent_bytes());
  }
  EXPECT_LE(most, kMost + 2 * piece.size());
  ASSERT_TRUE(wait_for([&] { return client.closed.has_value(); }));
  EXPECT_THAT(client.closed->message(), ::testing::HasSubstr("does not read"));
}

TEST_F(StreamTest, CloseTellsBothEndsOnce) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  client.stream->close(Status(Code::kCancelled, "done with it"));
  EXPECT_FALSE(client.closed.has_value()) << "not inline";
  client.stream->close(Status(Code::kBusy, "a second reason counts for nothing"));
  client.stream->send(as_bytes("nowhere"), {});
  ASSERT_TRUE(wait_for([&] { return client.closed && accepted[0]->closed; }));
  EXPECT_EQ(client.closed->code(), Code::kCancelled);
  EXPECT_EQ(accepted[0]->closed->code(), Code::kUnavailable);
}

TEST_F(StreamTest, DestroyingAStreamTellsOnlyThePeer) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  client.stream->send(as_bytes("never flushed"), {});
  client.stream.reset();
  ASSERT_TRUE(wait_for([&] { return accepted[0]->closed.has_value(); }));
  EXPECT_FALSE(client.closed.has_value());
}

TEST_F(StreamTest, AStreamMayBeDestroyedInItsOwnCallbacks) {
  listen(shared);
  End client;
  ASSERT_TRUE(connect(to_listener(host), client).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  std::unique_ptr<Stream> second;
  bool destroyed = false;
  network().connect(to_listener(host), [&](Result<std::unique_ptr<Stream>> s) {
    ASSERT_TRUE(s.is_ok());
    second = std::move(s).value();
    second->start({.on_data = [&](ByteSpan) { second.reset(); destroyed = true; }, .on_close = [](Status) { FAIL(); }});
  });
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 2; }));
  accepted[1]->stream->send(as_bytes("go"), {});
  ASSERT_TRUE(wait_for([&] { return destroyed && accepted[1]->closed; }));

  std::unique_ptr<Stream> third;
  bool gone = false;
  network().connect(to_listener(host), [&](Result<std::unique_ptr<Stream>> s) {
    ASSERT_TRUE(s.is_ok());
    third = std::move(s).value();
    third->start({.on_data = [](ByteSpan) {}, .on_close = [&](Status) { third.reset(); gone = true; }});
  });
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 3; }));
  accepted[2]->stream.reset();
  ASSERT_TRUE(wait_for([&] { return gone; }));
}

TEST_F(StreamTest, ReconnectsAfterTheListenerWasGone) {
  listen(shared);
  End first, second;
  auto options = to_listener(host);
  ASSERT_TRUE(connect(options, first).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  listener.reset();
  accepted.clear();
  ASSERT_TRUE(wait_for([&] { return first.closed.has_value(); }));
  End refused;
  EXPECT_EQ(connect(options, refused).code(), Code::kUnavailable);
  auto made = network().listen({.address = options.address, .tls = shared, .roles_accepted = {Role::kHost}},
                               [this](std::unique_ptr<Stream> s) {
                                 accepted.push_back(std::make_unique<End>());
                                 accepted.back()->take(std::move(s));
                               });
  ASSERT_TRUE(made.is_ok()) << made.status().to_string();
  listener = std::move(made).value();
  ASSERT_TRUE(connect(options, second).is_ok());
  second.stream->send(as_bytes("again"), {});
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1 && accepted[0]->received.size() == 5; }));
}

TEST_F(StreamTest, RotatedCertificatesAreTakenAtTheNextHandshake) {
  listen(shared);
  End before, between, after;
  ASSERT_TRUE(connect(to_listener(host), before).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 1; }));
  // The same file names are to hold another node's pair, so that the peer can tell.
  TlsFiles other = cluster.node("host9", Role::kHost);
  std::filesystem::rename(other.certificate, host.certificate);
  // Half of it: key and certificate do not match, so the old pair stays in use.
  ASSERT_TRUE(connect(to_listener(host), between).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 2; }));
  EXPECT_EQ(accepted.back()->stream->peer().node, "host1");
  EXPECT_TRUE(logs.contains("certificate_files_unusable"));
  std::filesystem::rename(other.key, host.key);
  ASSERT_TRUE(connect(to_listener(host), after).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 3; }));
  EXPECT_EQ(accepted.back()->stream->peer().node, "host9");
  before.stream->send(as_bytes("the running connection goes on"), {});
  ASSERT_TRUE(wait_for([&] { return accepted[0]->received.size() == 30; }));
}

TEST_F(StreamTest, ConnectGivesUpAfterItsTimeout) {
  // A socket that listens and never accepts: TCP connects, TLS never answers.
  auto silent = network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                 [](std::unique_ptr<Stream>) {});
  ASSERT_TRUE(silent.is_ok());
  io::RealEnv other({.make_network = make_real_network});  // its loop does not turn
  auto asleep = other.network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                       [](std::unique_ptr<Stream>) {});
  ASSERT_TRUE(asleep.is_ok());
  Network::ConnectOptions options{.address = loopback((*asleep)->port()), .tls = host, .peer_role = Role::kShared,
                                  .timeout = std::chrono::milliseconds(50)};
  End client;
  Status status = connect(options, client);
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("50 ms"));
  asleep = Status(Code::kCancelled, "before its Env");
}

TEST_F(StreamTest, NamesAreResolved) {
  listen(shared);
  End client;
  auto options = to_listener(host);
  options.address.host = "localhost";
  EXPECT_TRUE(connect(options, client).is_ok());
  End nobody;
  options.address.host = "no-such-name.invalid";
  EXPECT_EQ(connect(options, nobody).code(), Code::kUnavailable);
}

// A name server of the tests': "localhost" has `addresses`, once it is not `stuck`, unless it `fails`.
struct NameServer {
  std::mutex mutex;
  std::condition_variable changed;
  bool stuck = false, fails = false;      // guarded by mutex
  int asked = 0;                          // guarded by mutex
  std::vector<SocketAddress> addresses;   // guarded by mutex
  void set(bool is_stuck, bool does_fail) {
    std::lock_guard lock(mutex);
    stuck = is_stuck;
    fails = does_fail;
    changed.notify_all();
  }
  static NameServer*& one() {
    static NameServer* server = nullptr;
    return server;
  }
  static NameLookups::Found look_up(const Address&) {
    NameServer& server = *one();
    std::unique_lock lock(server.mutex);
    ++server.asked;
    server.changed.wait(lock, [&] { return !server.stuck; });
    if (server.fails) return Status(Code::kUnavailable, "no name server");
    return server.addresses;
  }
};

class NamedTest : public NetTest {
 protected:
  NamedTest() {
    NameServer::one() = &names;
    auto made = other.network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                       [this](std::unique_ptr<Stream> s) { accepted.push_back(std::move(s)); });
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    listener = std::move(made).value();
    names.addresses = *parse_numeric(loopback(listener->port()));
  }
  ~NamedTest() override {
    names.set(false, false);
    accepted.clear();
    listener.reset();
  }
  Status connect(std::chrono::milliseconds timeout) {
    std::optional<Status> result;
    other.network().connect({.address = {"localhost", 1}, .tls = host, .peer_role = Role::kShared, .timeout = timeout},
                            [&](Result<std::unique_ptr<Stream>> s) { result = s.status(); });
    if (!other.run_until([&] { return result.has_value(); }, kWait)) return Status(Code::kCancelled, "never answered");
    return *result;
  }

  NameServer names;
  io::RealEnv other{{.make_network = [](io::Env& e, io::Poller& p) {
    return std::unique_ptr<Network>(new RealNetwork(e, p, {.look_up = NameServer::look_up}));
  }}};
  TlsFiles host = cluster.node("host1", Role::kHost), shared = cluster.node("shared1", Role::kShared);
  std::unique_ptr<Listener> listener;
  std::vector<std::unique_ptr<Stream>> accepted;
};

TEST_F(NamedTest, ALookUpThatHangsHoldsNothingElseUpAndIsNotBegunTwice) {
  names.set(true, false);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(connect(std::chrono::milliseconds(50)).code(), Code::kUnavailable);
  bool done = false;
  other.offload([] {}, [&] { done = true; });
  EXPECT_TRUE(other.run_until([&] { return done; }, kWait)) << "the workers look names up";
  {
    std::lock_guard lock(names.mutex);
    EXPECT_EQ(names.asked, 1);
  }
  names.set(false, false);
  EXPECT_TRUE(connect(kWait).is_ok());
}

TEST_F(NamedTest, WhatWasFoundLastServesWhileTheNameServerIsAway) {
  ASSERT_TRUE(connect(kWait).is_ok());
  names.set(false, true);
  Status status = connect(kWait);
  EXPECT_TRUE(status.is_ok()) << status.to_string();
  EXPECT_TRUE(logged("name_not_found"));
  names.set(true, true);
  status = connect(kWait);
  EXPECT_TRUE(status.is_ok()) << status.to_string();
}

TEST_F(NamedTest, AnAddressThatSwallowsAllLeavesTimeForTheNext) {
  auto silent = listen_on(loopback());   // TCP connects, TLS never answers
  ASSERT_TRUE(silent.is_ok());
  names.addresses.insert(names.addresses.begin(), parse_numeric(loopback(silent->port))->front());
  Status status = connect(std::chrono::seconds(8));
  EXPECT_TRUE(status.is_ok()) << status.to_string();
  ::close(silent->fd);
}

TEST_F(StreamTest, AUsedPortSaysSo) {
  listen(shared);
  auto second =
      network().listen({.address = loopback(listener->port()), .tls = shared, .roles_accepted = {Role::kHost}},
                       [](std::unique_ptr<Stream>) {});
  ASSERT_FALSE(second.is_ok());
  EXPECT_THAT(second.status().message(), ::testing::HasSubstr("another process has the port"));
}

TEST_F(StreamTest, MissingCertificateFilesAreNamed) {
  TlsFiles wrong = shared;
  wrong.certificate = cluster.directory() / "missing.pem";
  auto made = network().listen({.address = loopback(), .tls = wrong, .roles_accepted = {Role::kHost}},
                               [](std::unique_ptr<Stream>) {});
  EXPECT_EQ(made.status().code(), Code::kNotFound);
  EXPECT_THAT(made.status().message(), ::testing::HasSubstr("missing.pem"));
}

TEST(StreamKeys, AreRenewedWithoutAByteLost) {
  LogCapture logs;
  Cluster cluster;
  io::RealEnv env({.make_network = [](io::Env& e, io::Poller& p) {
    return std::unique_ptr<Network>(new RealNetwork(e, p, {.records_per_key = 3}));
  }});
  TlsFiles shared = cluster.node("shared1", Role::kShared), host = cluster.node("host1", Role::kHost);
  End server, client;
  auto listener = env.network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                       [&](std::unique_ptr<Stream> s) { server.take(std::move(s)); });
  ASSERT_TRUE(listener.is_ok());
  env.network().connect({.address = loopback((*listener)->port()), .tls = host, .peer_role = Role::kShared},
                        [&](Result<std::unique_ptr<Stream>> s) {
                          ASSERT_TRUE(s.is_ok());
                          client.take(std::move(s).value());
                        });
  ASSERT_TRUE(env.run_until([&] { return server.stream && client.stream; }, kWait));
  Bytes up = random_bytes(5'000'000, 4), down = random_bytes(4'000'000, 5);
  client.stream->send(up, {});
  server.stream->send(down, {});
  ASSERT_TRUE(env.run_until(
      [&] { return server.received.size() == up.size() && client.received.size() == down.size(); }, kWait));
  EXPECT_EQ(digest64(server.received), digest64(up));
  EXPECT_EQ(digest64(client.received), digest64(down));
  listener = Status(Code::kCancelled, "before its Env");
}

// The other end counts them: a mirror link carries far more than one key may encrypt.
TEST(StreamKeys, AreRenewedBeforeTheirBound) {
  constexpr uint64_t kRecordsPerKey = 16;
  LogCapture logs;
  Cluster cluster;
  io::RealEnv env({.make_network = [](io::Env& e, io::Poller& p) {
    return std::unique_ptr<Network>(new RealNetwork(e, p, {.records_per_key = kRecordsPerKey}));
  }});
  TlsFiles shared = cluster.node("shared1", Role::kShared), host = cluster.node("host1", Role::kHost);
  End server;
  Bytes down = random_bytes(4'000'000, 6);
  auto listener = env.network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                       [&](std::unique_ptr<Stream> s) {
                                         server.take(std::move(s));
                                         server.stream->send(down, {});
                                       });
  ASSERT_TRUE(listener.is_ok());
  int updates = 0;
  std::string received;
  std::atomic<bool> over = false;
  std::thread client([&, port = (*listener)->port()] {
    received = talk_tls(port, {.files = &host, .key_updates = &updates, .bytes_max = down.size()});
    over = true;
    env.post([] {});
  });
  EXPECT_TRUE(env.run_until([&] { return over.load(); }, kWait));
  client.join();
  EXPECT_EQ(received.size(), down.size()) << received.substr(0, 200);
  EXPECT_EQ(digest64(as_bytes(received)), digest64(down));
  // A record takes 16 KiB at most.
  EXPECT_GE(static_cast<uint64_t>(updates), down.size() / 16384 / kRecordsPerKey);
  listener = Status(Code::kCancelled, "before its Env");
}

}  // namespace
}  // namespace tidemark::net
