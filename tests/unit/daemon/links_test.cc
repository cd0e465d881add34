// What a daemon's configuration says of certificates is what the connections go by.
#include "shared/daemon/links.h"

#include "tests/unit/net/cluster.h"

namespace tidemark::daemon {
namespace {

class LinksTest : public net::NetTest {
 protected:
  static config::Tls tls_of(const net::TlsFiles& files) { return {files.authority, files.certificate, files.key}; }
  Status ask(const net::HttpClientOptions& options) {
    auto client = network().http_client(options);
    if (!client) return client.status();
    std::optional<Status> answer;
    (*client)->request({.method = "GET", .target = "/"},
                       [&](Result<net::HttpResponse> r) { answer = r ? Status::ok() : r.status(); });
    if (!wait_for([&] { return answer.has_value(); })) return {Code::kCancelled, "never answered"};
    return *answer;
  }
  std::string serve(const std::string& node, net::Role role) {
    auto made = network().serve_http(
        {.tls = cluster.node(node, role), .roles_accepted = {net::Role::kHost}, .address = {"127.0.0.1", 0}},
        [](net::HttpRequest, Callback<net::HttpResponse> done) { done(net::HttpResponse::text(200, "here")); });
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    if (made) server = std::move(*made);
    return made ? "https://127.0.0.1:" + std::to_string(server->port()) : "";
  }

  std::unique_ptr<net::HttpServer> server;
  config::Tls host = tls_of(cluster.node("host1", net::Role::kHost));
};

TEST_F(LinksTest, AReplicaOfAnotherNameIsRefused) {
  const std::string url = serve("replica1", net::Role::kReplica);
  Status named = ask(client_of(config::ReplicaLink{url, "replica1"}, host));
  EXPECT_TRUE(named.is_ok()) << named.to_string();
  Status any = ask(client_of(config::ReplicaLink{url, ""}, host));
  EXPECT_TRUE(any.is_ok()) << any.to_string();
  EXPECT_EQ(ask(client_of(config::ReplicaLink{url, "replica2"}, host)).code(), Code::kPermission);
}

TEST_F(LinksTest, AWitnessIsAskedInItsOwnRole) {
  const std::string url = serve("witness1", net::Role::kWitness);
  Status alone = ask(client_of(config::WitnessLink{url, "witness1", false}, host));
  EXPECT_TRUE(alone.is_ok()) << alone.to_string();
  EXPECT_EQ(ask(client_of(config::WitnessLink{url, "witness1", true}, host)).code(), Code::kPermission);
  EXPECT_EQ(ask(client_of(config::WitnessLink{url, "witness2", false}, host)).code(), Code::kPermission);
}

TEST_F(LinksTest, TheOwnCertificateIsOfTheNodeThatTheConfigurationNames) {
  const std::string file = cluster.directory() / "host.toml";
  std::ofstream(file) << "[node]\n[tls]\ncertificate = \"x\"\n";
  auto own = own_identity(file, {.name = "host1", .role = "host"}, host);
  ASSERT_TRUE(own.is_ok()) << own.status().to_string();
  EXPECT_EQ(own->cluster, cluster.uuid());
  auto named = own_identity(file, {.name = "host2", .role = "host"}, host);
  EXPECT_EQ(named.status().message(),
            file + ":3: [tls] certificate: " + host.certificate +
                " is of host host1, [node] says host host2: make one with tidemark pki issue host2 --role host");
  EXPECT_EQ(own_identity(file, {.name = "host1", .role = "shared"}, host).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(own_identity(file, {.name = "host1", .role = "host"}, {host.authority, host.authority, host.key}));
}

}  // namespace
}  // namespace tidemark::daemon
