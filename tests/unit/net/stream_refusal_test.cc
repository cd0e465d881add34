// Peers that must not get in: each is refused with a reason in the log, and the listener goes on.
#include <atomic>
#include <thread>

#include "raw_client.h"
#include "stream_pair.h"

namespace tidemark::net {
namespace {

class RefusalTest : public StreamTest {
 protected:
  // Runs `work` on another thread while the loop turns.
  std::string meanwhile(std::function<std::string()> work) {
    std::string out;
    std::atomic<bool> done = false;
    std::thread thread([&] { out = work(); done = true; env.post([] {}); });
    EXPECT_TRUE(wait_for([&] { return done.load(); }));
    thread.join();
    return out;
  }
  // The client of TLS 1.3 has finished before the server has judged it: refused at the latest by its close.
  Status outcome(const Network::ConnectOptions& options) {
    End end;
    Status status = connect(options, end);
    if (!status) return status;
    EXPECT_TRUE(wait_for([&] { return end.closed.has_value(); }));
    return end.closed.value_or(Status::ok());
  }
  void expect_still_serving() {
    size_t known = accepted.size();
    End good;
    ASSERT_TRUE(connect(to_listener(host), good).is_ok());
    good.stream->send(as_bytes("hello"), {});
    ASSERT_TRUE(wait_for([&] { return accepted.size() == known + 1 && accepted.back()->received.size() == 5; }));
  }
};

TEST_F(RefusalTest, ClientOfAnotherAuthority) {
  Cluster other;
  TlsFiles foreign = other.node("host1", Role::kHost);
  foreign.authority = host.authority;  // it knows our authority, but has no certificate of it
  listen(shared);
  Status status = outcome(to_listener(foreign));
  EXPECT_EQ(status.code(), Code::kPermission) << status.to_string();
  EXPECT_THAT(status.message(), ::testing::HasSubstr("unknown ca"));
  EXPECT_TRUE(logs.contains("does not chain to this cluster's authority"));
  EXPECT_TRUE(accepted.empty());
  expect_still_serving();
}

TEST_F(RefusalTest, ServerOfAnotherAuthority) {
  Cluster other;
  listen(other.node("shared1", Role::kShared));
  Status status = outcome(to_listener(host));
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("does not chain"));
}

TEST_F(RefusalTest, ClientWithTheWrongRole) {
  listen(shared, {Role::kHost});
  Status status = outcome(to_listener(cluster.node("replica1", Role::kReplica)));
  EXPECT_EQ(status.code(), Code::kPermission) << status.to_string();
  EXPECT_TRUE(logs.contains("has role replica, not host"));
  EXPECT_TRUE(accepted.empty());
  expect_still_serving();
}

TEST_F(RefusalTest, ServerWithTheWrongRole) {
  listen(cluster.node("host2", Role::kHost));
  auto options = to_listener(host);
  options.peer_node.clear();
  Status status = outcome(options);
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("has role host, not shared"));
  EXPECT_TRUE(logs.contains("handshake_refused peer=127.0.0.1"));
}

TEST_F(RefusalTest, ServerWithTheWrongName) {
  listen(cluster.node("shared2", Role::kShared));
  Status status = outcome(to_listener(host));
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("that of shared2, not of shared1"));
}

TEST_F(RefusalTest, ExpiredCertificateNamesTheClock) {
  WallTime now = env.wall();
  pki::Validity past{.not_before = WallTime{now.ns - 3'600'000'000'000},
                     .not_after = WallTime{now.ns - 60'000'000'000}};
  listen(shared);
  Status status = outcome(to_listener(cluster.node("late", Role::kHost, past)));
  EXPECT_EQ(status.code(), Code::kPermission) << status.to_string();
  EXPECT_TRUE(logs.contains("certificate of late expired at"));
  EXPECT_TRUE(logs.contains("this machine's clock says " + now.to_string().substr(0, 11)));
  expect_still_serving();
}

TEST_F(RefusalTest, CertificateOfTomorrow) {
  WallTime now = env.wall();
  listen(cluster.node("shared1", Role::kShared, {.not_before = WallTime{now.ns + 3'600'000'000'000}}, true));
  Status status = outcome(to_listener(host));
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("is not valid before"));
  EXPECT_THAT(status.message(), ::testing::HasSubstr("this machine's clock says"));
}

TEST_F(RefusalTest, Tls12Client) {
  listen(shared);
  std::string answer = meanwhile([&] {
    return talk_tls(listener->port(), {.max_version = tls_1_2_version(), .files = &host});
  });
  EXPECT_THAT(answer, ::testing::HasSubstr("protocol version"));
  EXPECT_TRUE(logs.contains("unsupported protocol")) << ::testing::PrintToString(logs.lines());
  expect_still_serving();
}

TEST_F(RefusalTest, ClientWithoutACertificate) {
  listen(shared);
  std::string answer = meanwhile([&] { return talk_tls(listener->port(), {.send = "hello"}); });
  EXPECT_THAT(answer, ::testing::HasSubstr("certificate required"));
  EXPECT_TRUE(logs.contains("peer did not return a certificate"));
  expect_still_serving();
}

TEST_F(RefusalTest, GarbageAndPlainHttp) {
  listen(shared);
  std::string garbage(100'000, '\x5a');
  meanwhile([&] { return talk_plain(listener->port(), garbage); });
  EXPECT_TRUE(logs.contains("handshake_refused"));
  meanwhile([&] { return talk_plain(listener->port(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); });
  EXPECT_TRUE(logs.contains("http request")) << ::testing::PrintToString(logs.lines());
  meanwhile([&] { return talk_plain(listener->port(), ""); });
  EXPECT_TRUE(logs.contains("closed the connection during the handshake"));
  EXPECT_TRUE(accepted.empty());
  expect_still_serving();
}

}  // namespace
}  // namespace tidemark::net
