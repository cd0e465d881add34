// Streams between two nodes.
#include "tests/contract/harness.h"

namespace tidemark::contract {
namespace {

using net::Role;
using net::Stream;

struct End {
  std::unique_ptr<Stream> stream;
  Bytes received;
  std::optional<Status> closed;
  void take(std::unique_ptr<Stream> s) {
    stream = std::move(s);
    start();
  }
  void start() {
    stream->start({.on_data = [this](ByteSpan data) { received.insert(received.end(), data.begin(), data.end()); },
                   .on_close = [this](Status why) { EXPECT_FALSE(closed) << "closed twice"; closed = std::move(why); }});
  }
};

class StreamContract : public ContractTest {
 protected:
  void listen(std::vector<Role> roles = {Role::kHost}, bool start_at_once = true) {
    auto made = env().network().listen({.address = {"127.0.0.1", 0}, .tls = harness->server_tls(), .roles_accepted = roles},
                                       [this, start_at_once](std::unique_ptr<Stream> s) {
                                         accepted = std::make_unique<End>();
                                         if (start_at_once) accepted->take(std::move(s));
                                         else accepted->stream = std::move(s);
                                       });
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    listener = std::move(*made);
    ASSERT_NE(listener->port(), 0);
  }
  Result<std::unique_ptr<Stream>> try_connect(Role role = Role::kShared, std::string node = "shared1") {
    net::Network::ConnectOptions options{.address = {harness->server_host(), listener->port()},
                                         .tls = harness->client_tls(), .peer_role = role, .peer_node = node};
    return wait<Result<std::unique_ptr<Stream>>>([&](auto done) {
      harness->client_env().network().connect(options, std::move(done));
    });
  }
  void connect() {
    auto stream = try_connect();
    ASSERT_TRUE(stream.is_ok()) << stream.status().to_string();
    client.take(std::move(*stream));
    ASSERT_TRUE(run_until([&] { return accepted != nullptr; }));
  }

  std::unique_ptr<net::Listener> listener;
  End client;
  std::unique_ptr<End> accepted;
};
INSTANTIATE_TEST_SUITE_P(Envs, StreamContract, ::testing::Values("real", "sim"),
                         [](const auto& info) { return info.param; });

TEST_P(StreamContract, BytesArriveInOrderBothWays) {
  listen();
  connect();
  Bytes there = pattern(300'000, 1), back = pattern(200'000, 2);
  for (size_t at = 0; at < there.size(); at += 1000) client.stream->send(ByteSpan(there).subspan(at, 400), ByteSpan(there).subspan(at + 400, 600));
  accepted->stream->send(back);
  accepted->stream->flush();
  ASSERT_TRUE(run_until([&] { return accepted->received.size() == there.size() && client.received.size() == back.size(); }));
  EXPECT_EQ(accepted->received, there);
  EXPECT_EQ(client.received, back);
  EXPECT_EQ(client.stream->unsent_bytes(), 0u);
}

TEST_P(StreamContract, BothEndsKnowTheirPeer) {
  listen();
  connect();
  EXPECT_EQ(client.stream->peer().node, "shared1");
  EXPECT_EQ(client.stream->peer().role, Role::kShared);
  EXPECT_EQ(accepted->stream->peer().node, "host1");
  EXPECT_EQ(accepted->stream->peer().role, Role::kHost);
  EXPECT_EQ(accepted->stream->peer().cluster, client.stream->peer().cluster);
}

TEST_P(StreamContract, DataWaitsForStart) {
  listen({Role::kHost}, false);
  connect();
  client.stream->send(pattern(5000, 7));
  client.stream->flush();
  harness->run_for(std::chrono::milliseconds(30));
  EXPECT_TRUE(accepted->received.empty());
  accepted->start();
  ASSERT_TRUE(run_until([&] { return accepted->received.size() == 5000; }));
  EXPECT_EQ(accepted->received, pattern(5000, 7));
}

TEST_P(StreamContract, CloseGivesItsReasonHereAndUnavailableThere) {
  listen();
  connect();
  client.stream->close(Status(Code::kCancelled, "enough"));
  EXPECT_FALSE(client.closed) << "never inline";
  ASSERT_TRUE(run_until([&] { return client.closed && accepted->closed; }));
  EXPECT_EQ(client.closed->code(), Code::kCancelled);
  EXPECT_EQ(accepted->closed->code(), Code::kUnavailable);
}

TEST_P(StreamContract, DestroyedStreamClosesThePeerOnly) {
  listen();
  connect();
  accepted->stream.reset();
  ASSERT_TRUE(run_until([&] { return client.closed.has_value(); }));
  EXPECT_FALSE(accepted->closed);
  EXPECT_FALSE(client.closed->is_ok());
}

TEST_P(StreamContract, StreamMayBeDestroyedInOnClose) {
  listen();
  auto stream = try_connect();
  ASSERT_TRUE(stream.is_ok());
  auto held = std::move(*stream);
  bool closed = false;
  held->start({.on_data = [](ByteSpan) {}, .on_close = [&](Status) { held.reset(); closed = true; }});
  ASSERT_TRUE(run_until([&] { return accepted != nullptr; }));
  accepted->stream.reset();
  EXPECT_TRUE(run_until([&] { return closed; }));
}

TEST_P(StreamContract, NobodyListeningIsUnavailable) {
  listen();
  uint16_t port = listener->port();
  listener.reset();
  net::Network::ConnectOptions options{.address = {harness->server_host(), port}, .tls = harness->client_tls()};
  auto stream = wait<Result<std::unique_ptr<Stream>>>([&](auto done) {
    harness->client_env().network().connect(options, std::move(done));
  });
  EXPECT_EQ(stream.status().code(), Code::kUnavailable);
}

TEST_P(StreamContract, WrongNameOrRoleOfTheServerIsRefused) {
  listen();
  EXPECT_EQ(try_connect(Role::kReplica).status().code(), Code::kPermission);
  EXPECT_EQ(try_connect(Role::kShared, "shared2").status().code(), Code::kPermission);
  EXPECT_TRUE(try_connect(Role::kShared, "").is_ok());
}

TEST_P(StreamContract, ClientOfAnotherRoleIsRefused) {
  listen({Role::kOperator});
  auto stream = try_connect();
  // TLS 1.3 lets a client finish its handshake before the server has judged: then the close tells.
  if (stream.is_ok()) {
    client.take(std::move(*stream));
    EXPECT_TRUE(run_until([&] { return client.closed.has_value(); }));
  } else {
    EXPECT_TRUE(stream.status().code() == Code::kPermission || stream.status().code() == Code::kUnavailable);
  }
  EXPECT_EQ(accepted, nullptr);
}

TEST_P(StreamContract, TakenPortIsRefused) {
  listen();
  auto second = env().network().listen(
      {.address = {"127.0.0.1", listener->port()}, .tls = harness->server_tls(), .roles_accepted = {Role::kHost}},
      [](std::unique_ptr<Stream>) {});
  EXPECT_FALSE(second.is_ok());
}

}  // namespace
}  // namespace tidemark::contract
