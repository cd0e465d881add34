// HTTP between two nodes.
#include "tests/contract/harness.h"

namespace tidemark::contract {
namespace {

using net::HttpRequest;
using net::HttpResponse;
using net::Role;

class HttpContract : public ContractTest {
 protected:
  void serve(net::HttpHandler handler, uint64_t body_bytes_max = 1 << 20) {
    auto made = env().network().serve_http({.tls = harness->server_tls(), .roles_accepted = {Role::kHost},
                                            .address = {"127.0.0.1", 0}, .body_bytes_max = body_bytes_max},
                                           std::move(handler));
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    server = std::move(*made);
    client = make_client(Role::kShared);
  }
  std::unique_ptr<net::HttpClient> make_client(Role server_role) {
    auto made = harness->client_env().network().http_client(
        {.url = "https://" + harness->server_host() + ":" + std::to_string(server->port()), .tls = harness->client_tls(),
         .server_role = server_role});
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    return made ? std::move(*made) : nullptr;
  }
  Result<HttpResponse> ask(HttpRequest request) { return ask(*client, std::move(request)); }
  Result<HttpResponse> ask(net::HttpClient& c, HttpRequest request) {
    return wait<Result<HttpResponse>>([&](auto done) { c.request(std::move(request), std::move(done)); });
  }

  std::unique_ptr<net::HttpServer> server;
  std::unique_ptr<net::HttpClient> client;
};
INSTANTIATE_TEST_SUITE_P(Envs, HttpContract, ::testing::Values("real", "sim"),
                         [](const auto& info) { return info.param; });

TEST_P(HttpContract, RequestAndResponseCarryEverything) {
  serve([&](HttpRequest request, Callback<HttpResponse> done) {
    EXPECT_EQ(request.method, "PUT");
    EXPECT_EQ(request.target, "/v1/batch?n=7");
    EXPECT_EQ(request.headers["x-digest"], "abc");
    EXPECT_EQ(request.peer.node, "host1");
    EXPECT_EQ(request.peer.role, Role::kHost);
    HttpResponse response;
    response.status = 202;
    response.headers["x-next"] = "8";
    response.body = request.body;
    done(std::move(response));
  });
  auto response = ask({.method = "PUT", .target = "/v1/batch?n=7", .headers = {{"x-digest", "abc"}}, .body = pattern(200'000, 5)});
  ASSERT_TRUE(response.is_ok()) << response.status().to_string();
  EXPECT_EQ(response->status, 202);
  EXPECT_EQ(response->headers["x-next"], "8");
  EXPECT_EQ(response->body, pattern(200'000, 5));
}

TEST_P(HttpContract, AnyStatusIsAResponse) {
  serve([](HttpRequest, Callback<HttpResponse> done) { done(HttpResponse::text(409, "expected 5")); });
  auto response = ask({.method = "GET", .target = "/"});
  ASSERT_TRUE(response.is_ok());
  EXPECT_EQ(response->status, 409);
  EXPECT_EQ(as_text(response->body), "expected 5");
}

TEST_P(HttpContract, AnswerMayComeLaterAndOutOfOrder) {
  std::vector<Callback<HttpResponse>> waiting;
  serve([&](HttpRequest, Callback<HttpResponse> done) { waiting.push_back(std::move(done)); });
  std::vector<int> statuses;
  auto note = [&](Result<HttpResponse> r) { statuses.push_back(r ? r->status : -1); };
  client->request({.method = "GET", .target = "/1"}, note);
  client->request({.method = "GET", .target = "/2"}, note);
  ASSERT_TRUE(run_until([&] { return waiting.size() == 2; }));
  waiting[1](HttpResponse::text(201, ""));
  ASSERT_TRUE(run_until([&] { return statuses.size() == 1; }));
  waiting[0](HttpResponse::text(202, ""));
  ASSERT_TRUE(run_until([&] { return statuses.size() == 2; }));
  EXPECT_THAT(statuses, ::testing::UnorderedElementsAre(201, 202));
}

TEST_P(HttpContract, BodyIsPulledPieceByPiece) {
  Bytes whole = pattern(700'000, 9);
  size_t at = 0;
  serve([&](HttpRequest, Callback<HttpResponse> done) {
    HttpResponse response;
    response.content_length = whole.size();
    response.source = [&](size_t max, Callback<Result<Bytes>> piece) {
      size_t n = std::min(max, std::min<size_t>(100'000, whole.size() - at));
      Bytes next(whole.begin() + static_cast<ptrdiff_t>(at), whole.begin() + static_cast<ptrdiff_t>(at + n));
      at += n;
      env().post([piece = std::move(piece), next = std::move(next)]() mutable { piece(std::move(next)); });
    };
    done(std::move(response));
  });
  auto response = ask({.method = "GET", .target = "/"});
  ASSERT_TRUE(response.is_ok()) << response.status().to_string();
  EXPECT_EQ(response->body, whole);
}

TEST_P(HttpContract, HeadHasNoBody) {
  serve([](HttpRequest, Callback<HttpResponse> done) { done(HttpResponse::text(200, "12345")); });
  auto response = ask({.method = "HEAD", .target = "/"});
  ASSERT_TRUE(response.is_ok()) << response.status().to_string();
  EXPECT_EQ(response->headers["content-length"], "5");
  EXPECT_TRUE(response->body.empty());
}

TEST_P(HttpContract, LargeBodyIsRefusedUnread) {
  bool handled = false;
  serve([&](HttpRequest, Callback<HttpResponse> done) { handled = true; done(HttpResponse::text(200, "")); }, 1000);
  auto response = ask({.method = "PUT", .target = "/", .body = Bytes(1001)});
  ASSERT_TRUE(response.is_ok()) << response.status().to_string();
  EXPECT_EQ(response->status, 413);
  EXPECT_FALSE(handled);
}

TEST_P(HttpContract, NobodyListeningIsUnavailable) {
  serve([](HttpRequest, Callback<HttpResponse> done) { done(HttpResponse::text(200, "")); });
  server.reset();
  EXPECT_EQ(ask({.method = "GET", .target = "/"}).status().code(), Code::kUnavailable);
}

TEST_P(HttpContract, ServerOfAnotherRoleIsRefused) {
  serve([](HttpRequest, Callback<HttpResponse> done) { done(HttpResponse::text(200, "")); });
  auto other = make_client(Role::kReplica);
  EXPECT_EQ(ask(*other, {.method = "GET", .target = "/"}).status().code(), Code::kPermission);
}

TEST_P(HttpContract, DestroyedClientCallsNobodyBack) {
  std::vector<Callback<HttpResponse>> waiting;
  serve([&](HttpRequest, Callback<HttpResponse> done) { waiting.push_back(std::move(done)); });
  bool called = false;
  client->request({.method = "GET", .target = "/"}, [&](Result<HttpResponse>) { called = true; });
  ASSERT_TRUE(run_until([&] { return waiting.size() == 1; }));
  client.reset();
  waiting[0](HttpResponse::text(200, ""));
  harness->run_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(called);
}

TEST_P(HttpContract, UnixSocketServesWithoutTls) {
  auto made = env().network().serve_http({.unix_socket = path("s")}, [](HttpRequest request, Callback<HttpResponse> done) {
    done(HttpResponse::json(200, "{\"target\":\"" + request.target + "\"}"));
  });
  ASSERT_TRUE(made.is_ok()) << made.status().to_string();
  auto local = env().network().http_client({.url = "http://localhost", .unix_socket = path("s")});
  ASSERT_TRUE(local.is_ok());
  auto response = ask(**local, {.method = "GET", .target = "/status"});
  ASSERT_TRUE(response.is_ok()) << response.status().to_string();
  EXPECT_EQ(as_text(response->body), "{\"target\":\"/status\"}");
}

}  // namespace
}  // namespace tidemark::contract
