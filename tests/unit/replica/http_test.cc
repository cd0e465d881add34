// The replica behind its real HTTPS server: certificates, roles, streams, garbage.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "replica/replica.h"
#include "shared/net/pki.h"
#include "tests/unit/replica/batch_maker.h"
#include "tests/unit/replica/real_store.h"

namespace tidemark::replica {
namespace {

using Json = nlohmann::json;
constexpr auto kWait = std::chrono::seconds(30);
const Uuid kA = test_uuid(1);

class HttpTest : public ::testing::Test {
 protected:
  HttpTest() : env_(real_options()) {
    cluster_ = kTestCluster;
    TM_CHECK(net::pki::init_authority(pki(), {.cluster = cluster_}).is_ok(), "authority");
    auto files = issue("replica1", net::Role::kReplica);
    replica_ = std::move(
        *Replica::open(env_, {.directory = directory_.path() + "/state", .cluster = cluster_, .node = "replica1"}));
    auto server =
        env_.network().serve_http({.tls = files,
                                   .roles_accepted = {net::Role::kHost, net::Role::kShared, net::Role::kOperator},
                                   .address = {"127.0.0.1", 0}},
                                  [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
                                    replica_->handle(std::move(request), std::move(reply));
                                  });
    TM_CHECK(server.is_ok(), server.status().message().c_str());
    server_ = std::move(*server);
  }
  ~HttpTest() override {
    server_.reset();
    bool closed = false;
    replica_->close([&] { closed = true; });
    EXPECT_TRUE(env_.run_until([&] { return closed; }, kWait));
  }

  std::string pki() const { return directory_.path() + "/pki"; }
  net::TlsFiles issue(const std::string& node, net::Role role) {
    auto files = net::pki::issue({.authority_directory = pki(), .node = node, .role = role, .names = {"127.0.0.1"}});
    TM_CHECK(files.is_ok(), files.status().message().c_str());
    return *files;
  }
  std::unique_ptr<net::HttpClient> client(const net::TlsFiles& files) {
    auto made =
        env_.network().http_client({.url = "https://127.0.0.1:" + std::to_string(server_->port()), .tls = files});
    TM_CHECK(made.is_ok(), made.status().message().c_str());
    return std::move(*made);
  }
  Result<net::HttpResponse> ask(net::HttpClient& client, net::HttpRequest request) {
    std::optional<Result<net::HttpResponse>> answer;
    client.request(std::move(request), [&](Result<net::HttpResponse> r) { answer.emplace(std::move(r)); });
    EXPECT_TRUE(env_.run_until([&] { return answer.has_value(); }, kWait));
    return std::move(*answer);
  }
  net::HttpRequest put_request(const BatchMaker& maker, const BatchMaker::Made& made) {
    net::HttpRequest request{.method = "PUT",
                             .target = "/v1/batches/" + maker.source() + "/" + maker.generation().to_string() + "/" +
                                       std::to_string(made.number.value) + "/0"};
    request.headers["x-tidemark-digest"] = to_hex(journal::sha256(made.parts[0]));
    request.body = made.parts[0];
    return request;
  }
  static Json json(const Result<net::HttpResponse>& r) {
    return Json::parse(r->body.begin(), r->body.end(), nullptr, false);
  }

  TempDirectory directory_;
  Uuid cluster_;
  io::RealEnv env_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<net::HttpServer> server_;
};

TEST_F(HttpTest, BatchInAndEveryReadersPathOut) {
  auto host = client(issue("host1", net::Role::kHost)), op = client(issue("admin", net::Role::kOperator));
  BatchMaker maker("host1");
  const Bytes bytes = pattern(3, 2 << 20);
  auto made = maker.make({{.image = kA, .size = 4 << 20, .pieces = {{1 << 20, bytes}}}},
                         {create_mark(1, "host1", 2, kA, "disk.img")}, "first");
  auto answer = ask(*host, put_request(maker, made));
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  ASSERT_EQ(answer->status, 200);
  EXPECT_EQ(json(answer)["applied"], true);

  std::string whole(4 << 20, '\0');
  whole.replace(1 << 20, bytes.size(), as_text(bytes));
  const std::string image = "/v1/points/first/images/" + kA.to_string();
  auto data = ask(*op, {.method = "GET", .target = image + "/data"});
  ASSERT_TRUE(data.is_ok()) << data.status().to_string();
  EXPECT_EQ(data->status, 200);
  EXPECT_TRUE(as_text(data->body) == whole);
  net::HttpRequest ranged{.method = "GET", .target = image + "/data"};
  ranged.headers["range"] = "bytes=1000000-1999999";
  auto part = ask(*op, std::move(ranged));
  EXPECT_EQ(part->status, 206);
  EXPECT_TRUE(as_text(part->body) == whole.substr(1000000, 1000000));
  auto head = ask(*op, {.method = "HEAD", .target = image + "/data"});
  EXPECT_EQ(head->status, 200);
  EXPECT_EQ(head->headers["content-length"], std::to_string(whole.size()));
  EXPECT_EQ(json(ask(*op, {.method = "GET", .target = image}))["allocated"], bytes.size());
  auto tree = json(ask(*op, {.method = "GET", .target = "/v1/points/latest/tree"}));
  EXPECT_EQ(tree["entries"][0]["path"], "disk.img");
  EXPECT_EQ(json(ask(*op, {.method = "GET", .target = "/v1/status"}))["points"], 1);

  net::HttpRequest hash{.method = "POST", .target = image + "/hash"};
  DigestKey key;
  key.secret.fill(0x42);
  const std::string body =
      Json{{"offset", 0}, {"length", whole.size()}, {"unit", 65536}, {"key", to_hex(key.secret)}}.dump();
  hash.body.assign(body.begin(), body.end());
  auto digests = json(ask(*op, std::move(hash)))["digests"];
  ASSERT_EQ(digests.size(), whole.size() / 65536);
  for (size_t i = 0; i < digests.size(); ++i) {
    const Digest128 d = keyed_digest(key, as_bytes(whole).subspan(i * 65536, 65536));
    uint8_t expected[16];
    store_le(expected, d.low);
    store_le(expected + 8, d.high);
    EXPECT_EQ(digests[i], to_hex(expected)) << i;
  }
}

// What is parsed takes many times its bytes, and the loop stands still meanwhile.
TEST_F(HttpTest, TheIndexOutgrowsAnyDisk) {
  EXPECT_EQ(replica_->store().usage()->map_bytes, kIndexBytesMax);
}

TEST_F(HttpTest, ALongRequestForHashesIsRefusedUnparsed) {
  auto host = client(issue("host1", net::Role::kHost));
  BatchMaker maker("host1");
  ASSERT_EQ(ask(*host, put_request(maker, maker.make({{.image = kA, .size = 4096}},
                                                     {create_mark(1, "host1", 2, kA, "disk.img")})))
                ->status,
            200);
  net::HttpRequest hash{.method = "POST", .target = "/v1/points/latest/images/" + kA.to_string() + "/hash"};
  hash.body.assign(1 << 20, '[');
  auto answer = ask(*host, hash);
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(answer->status, 413);
  hash.body.assign(4096, '[');
  EXPECT_EQ(ask(*host, hash)->status, 400);
}

TEST_F(HttpTest, WrongNameRoleAndClusterChangeNothing) {
  BatchMaker maker("host1");
  auto made = maker.make({}, {create_mark(1, "host1", 2, kA, "disk.img")});
  auto other = client(issue("host2", net::Role::kHost));
  EXPECT_EQ(ask(*other, put_request(maker, made))->status, 403);
  auto op = client(issue("host1", net::Role::kOperator));
  EXPECT_EQ(ask(*op, put_request(maker, made))->status, 403);
  EXPECT_EQ(json(ask(*op, {.method = "GET", .target = "/v1/status"}))["points"], 0);

  const std::string foreign = directory_.path() + "/foreign";
  ASSERT_TRUE(net::pki::init_authority(foreign, {}).is_ok());
  auto theirs = net::pki::issue(
      {.authority_directory = foreign, .node = "host1", .role = net::Role::kHost, .names = {"127.0.0.1"}});
  ASSERT_TRUE(theirs.is_ok());
  auto stranger = client(*theirs);
  EXPECT_FALSE(ask(*stranger, put_request(maker, made)).is_ok());
  EXPECT_EQ(json(ask(*op, {.method = "GET", .target = "/v1/status"}))["points"], 0);
}

TEST_F(HttpTest, NonsenseIsAnsweredAndTheServerGoesOn) {
  auto op = client(issue("admin", net::Role::kOperator));
  const std::vector<std::pair<std::string, int>> requests = {{"/", 404},
                                                             {"/v1/nothing", 404},
                                                             {"/v1/points/%zz", 400},
                                                             {"/v1/points/no-such-name/tree", 404},
                                                             {"/v1/points/18446744073709551616", 404},
                                                             {"/v1/points/latest", 404},
                                                             {"/v1/points?image=x", 400},
                                                             {"/v1/points?after=-1", 400},
                                                             {"/v1/sources/host1/x", 403}};
  for (const auto& [target, status] : requests) {
    auto answer = ask(*op, {.method = "GET", .target = target});
    ASSERT_TRUE(answer.is_ok()) << target;
    EXPECT_EQ(answer->status, status) << target;
    EXPECT_TRUE(json(answer).contains("reason")) << target;
  }
  EXPECT_EQ(ask(*op, {.method = "DELETE", .target = "/v1/points"})->status, 405);
  auto host = client(issue("host1", net::Role::kHost));
  EXPECT_EQ(ask(*host, {.method = "PUT", .target = "/v1/batches/host1/x/1/0"})->status, 400);
  EXPECT_EQ(ask(*host, {.method = "GET", .target = "/v1/status"})->status, 200);
}

}  // namespace
}  // namespace tidemark::replica
