// The HTTP clients, keep-alive and blocking: what they trust, and how their failures are told.
#include <atomic>
#include <thread>

#include "http_pair.h"
#include "raw_client.h"
#include "shared/net/blocking_http.h"

namespace tidemark::net {
namespace {

class HttpClientTest : public HttpTest {
 protected:
  template <typename Work>
  auto meanwhile(Work work) {
    std::optional<decltype(work())> out;
    std::atomic<bool> done = false;
    std::thread thread([&] {
      out.emplace(work());
      done = true;
      env.post([] {});
    });
    EXPECT_TRUE(wait_for([&] { return done.load(); }));
    thread.join();
    return std::move(*out);
  }
  Status outcome(const HttpClientOptions& options) {
    auto client = client_of(options);
    return ask(*client, get("/")).status();
  }
};

TEST_F(HttpClientTest, ServerDownIsUnavailableAndItsReturnIsNoticed) {
  serve_tls(say("up"));
  HttpClientOptions options = tls_options();
  uint16_t port = server->port();
  auto client = client_of(options);
  EXPECT_TRUE(ask(*client, get("/")).is_ok());
  server.reset();
  auto down = ask(*client, get("/"));
  EXPECT_EQ(down.status().code(), Code::kUnavailable) << down.status().to_string();
  EXPECT_THAT(down.status().message(), ::testing::HasSubstr(options.url));
  serve({.tls = replica, .roles_accepted = {Role::kHost}, .address = loopback(port)}, say("up again"));
  auto again = ask(*client, get("/"));
  ASSERT_TRUE(again.is_ok()) << again.status().to_string();
  EXPECT_EQ(as_text(again->body), "up again");
}

TEST_F(HttpClientTest, AnyHttpStatusIsAnAnswer) {
  serve_tls([](HttpRequest request, Callback<HttpResponse> done) {
    done(HttpResponse::text(std::stoi(request.target.substr(1)), "said"));
  });
  auto client = client_of(tls_options());
  for (int status : {200, 404, 409, 422, 500, 503}) {
    auto answer = ask(*client, get(std::string("/").append(std::to_string(status))));
    ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
    EXPECT_EQ(answer->status, status);
    EXPECT_EQ(as_text(answer->body), "said");
  }
}

TEST_F(HttpClientTest, ServerOfAnotherAuthorityIsRefused) {
  Cluster other;
  serve({.tls = other.node("replica1", Role::kReplica), .roles_accepted = {Role::kHost}}, say("x"));
  Status status = outcome(tls_options());
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("does not chain"));
}

TEST_F(HttpClientTest, ServerOfAnotherRoleIsRefused) {
  serve({.tls = cluster.node("shared1", Role::kShared), .roles_accepted = {Role::kHost}}, say("x"));
  Status status = outcome(tls_options());
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("has role shared, not replica"));
  EXPECT_TRUE(logged("server_refused"));
}

TEST_F(HttpClientTest, ServerMustBeNamedByTheUrlOrByNode) {
  pki::IssueOptions issue{.authority_directory = cluster.directory().path(), .node = "far", .role = Role::kReplica};
  auto nameless = pki::issue(issue);  // names only itself, not 127.0.0.1
  ASSERT_TRUE(nameless.is_ok());
  serve({.tls = *nameless, .roles_accepted = {Role::kHost}}, say("x"));
  EXPECT_EQ(outcome(tls_options()).code(), Code::kPermission);
  HttpClientOptions by_node = tls_options();
  by_node.server_node = "far";
  EXPECT_TRUE(outcome(by_node).is_ok());
  by_node.server_node = "near";
  Status wrong = outcome(by_node);
  EXPECT_EQ(wrong.code(), Code::kPermission);
  EXPECT_THAT(wrong.message(), ::testing::HasSubstr("that of far, not of near"));
}

TEST_F(HttpClientTest, ExpiredServerNamesTheClock) {
  WallTime now = env.wall();
  pki::Validity past{.not_before = WallTime{now.ns - 7'200'000'000'000},
                     .not_after = WallTime{now.ns - 3'600'000'000'000}};
  serve({.tls = cluster.node("old", Role::kReplica, past), .roles_accepted = {Role::kHost}}, say("x"));
  Status status = outcome(tls_options());
  EXPECT_EQ(status.code(), Code::kPermission);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("certificate of old expired at"));
  EXPECT_THAT(status.message(), ::testing::HasSubstr("this machine's clock says"));
}

TEST_F(HttpClientTest, OurRefusedCertificateIsToldAsPermission) {
  serve_tls(say("x"), {Role::kShared});
  Status status = outcome(tls_options());
  EXPECT_FALSE(status.is_ok());
  EXPECT_TRUE(logged("has role host, not shared"));
  EXPECT_EQ(status.code(), Code::kPermission) << status.to_string();
}

TEST_F(HttpClientTest, RotatedCertificateIsUsedForTheNextConnection) {
  std::vector<std::string> seen;
  auto handler = [&](HttpRequest request, Callback<HttpResponse> done) {
    seen.push_back(request.peer.node);
    HttpResponse response = HttpResponse::text(200, "x");
    response.headers["connection"] = "close";
    done(std::move(response));
  };
  serve_tls(handler);
  auto client = client_of(tls_options());
  ASSERT_TRUE(ask(*client, get("/")).is_ok());
  TlsFiles other = cluster.node("host9", Role::kHost);
  std::filesystem::rename(other.certificate, host.certificate);
  std::filesystem::rename(other.key, host.key);
  uint16_t port = server->port();
  server.reset();  // ends the kept connection
  serve({.tls = replica, .roles_accepted = {Role::kHost}, .address = loopback(port)}, handler);
  ASSERT_TRUE(ask(*client, get("/")).is_ok());
  EXPECT_THAT(seen, ::testing::ElementsAre("host1", "host9"));
}

TEST_F(HttpClientTest, StalledServerIsUnavailable) {
  std::vector<Callback<HttpResponse>> open;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) { open.push_back(std::move(done)); });
  HttpClientOptions options = plain_options();
  options.stall_timeout = std::chrono::milliseconds(1000);
  EXPECT_EQ(outcome(options).code(), Code::kUnavailable);
  server.reset();
}

TEST_F(HttpClientTest, DestroyingTheClientCancelsWithoutACallback) {
  std::vector<Callback<HttpResponse>> open;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) { open.push_back(std::move(done)); });
  auto client = client_of(plain_options());
  bool called = false;
  client->request(get("/"), [&](Result<HttpResponse>) { called = true; });
  ASSERT_TRUE(wait_for([&] { return !open.empty(); }));
  client.reset();
  open[0](HttpResponse::text(200, "late"));
  for (int i = 0; i < 20; ++i) env.turn(std::chrono::milliseconds(1));
  EXPECT_FALSE(called);
}

TEST_F(HttpClientTest, BadOptionsAreRefusedAtOnce) {
  EXPECT_EQ(network().http_client({.url = "ftp://x"}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(network().http_client({.url = "https://x"}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(network().http_client({.url = "http://x", .tls = host}).status().code(), Code::kInvalidArgument);
  TlsFiles open_key = host;
  std::filesystem::permissions(host.key, std::filesystem::perms(0644));
  EXPECT_EQ(network().http_client({.url = "https://x", .tls = open_key}).status().code(), Code::kPermission);
}

TEST_F(HttpClientTest, AHeaderCannotSmuggleALine) {
  serve({}, say("x"));
  auto client = client_of(plain_options());
  HttpRequest request = get("/");
  request.headers["x"] = "a\r\nInjected: b";
  EXPECT_EQ(ask(*client, std::move(request)).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(ask(*client, get("/a b\r\nX: y")).status().code(), Code::kInvalidArgument);
}

TEST_F(HttpClientTest, BlockingCallsWork) {
  serve_tls([](HttpRequest request, Callback<HttpResponse> done) {
    done(HttpResponse::text(200, request.method + " " + std::to_string(request.body.size())));
  });
  HttpClientOptions options = tls_options();
  auto answer = meanwhile([&] { return call(options, put("/", Bytes(10))); });
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(as_text(answer->body), "PUT 10");
  uint64_t fed = 0, told = 0;
  Upload up{.size = 3'000'000,
            .source = [&](MutableByteSpan out) -> Result<size_t> {
              size_t n = std::min<size_t>(out.size(), 3'000'000 - fed);
              fed += n;
              return n;
            },
            .progress = [&](uint64_t done, uint64_t) { told = done; return true; }};
  auto uploaded = meanwhile([&] { return upload(options, {.method = "PUT", .target = "/"}, std::move(up)); });
  ASSERT_TRUE(uploaded.is_ok()) << uploaded.status().to_string();
  EXPECT_EQ(as_text(uploaded->body), "PUT 3000000");
  EXPECT_EQ(told, 3'000'000u);
}

TEST_F(HttpClientTest, DownloadsAskForARangeAndStopWhenTold) {
  serve_tls([](HttpRequest request, Callback<HttpResponse> done) {
    HttpResponse response = HttpResponse::text(request.target == "/ranges" ? 206
                                               : request.target == "/none" ? 404
                                                                           : 200,
                                               request.headers["range"]);
    done(std::move(response));
  });
  HttpClientOptions options = tls_options();
  std::string got;
  auto sink = [&](ByteSpan bytes) { got += as_text(bytes); return Status::ok(); };
  auto fetch = [&](std::string target, Download download) {
    got.clear();
    return meanwhile([&] { return net::download(options, get(target), std::move(download)); });
  };
  ASSERT_TRUE(fetch("/ranges", {.range = Extent{100, 50}, .sink = sink}).is_ok());
  EXPECT_EQ(got, "bytes=100-149");
  ASSERT_TRUE(fetch("/ranges", {.range = Extent{100, 0}, .sink = sink}).is_ok());
  EXPECT_EQ(got, "bytes=100-");
  EXPECT_EQ(fetch("/whole", {.range = Extent{1, 2}, .sink = sink}).status().code(), Code::kUnsupported);
  EXPECT_EQ(got, "");
  auto missing = fetch("/none", {.range = Extent{1, 2}, .sink = sink});
  ASSERT_TRUE(missing.is_ok());
  EXPECT_EQ(missing->status, 404);
  EXPECT_EQ(as_text(missing->body), "bytes=1-2");
  EXPECT_EQ(got, "");
  auto full = [](ByteSpan) { return Status(Code::kOutOfSpace, "disk full"); };
  EXPECT_EQ(fetch("/ranges", {.range = Extent{1, 2}, .sink = full}).status().code(), Code::kOutOfSpace);
  auto give_up = [](uint64_t, uint64_t) { return false; };
  EXPECT_EQ(fetch("/ranges", {.sink = sink, .progress = give_up}).status().code(), Code::kCancelled);
}

TEST_F(HttpClientTest, ABodyIsSentNoFasterThanItsRate) {
  size_t received = 0;
  serve_tls([&](HttpRequest r, Callback<HttpResponse> done) {
    received = r.body.size();
    done(HttpResponse::text(200, "got it"));
  });
  auto client = client_of(tls_options());
  HttpRequest request = put("/slow", Bytes(600 << 10, 7));
  request.bytes_per_second_max = 256 << 10;
  auto begin = std::chrono::steady_clock::now();
  auto answer = ask(*client, std::move(request));
  auto took = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(received, 600u << 10);
  EXPECT_GE(took, std::chrono::milliseconds(1500));
}

}  // namespace
}  // namespace tidemark::net
