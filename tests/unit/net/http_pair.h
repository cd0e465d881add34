// A server with a handler of the test's own, and clients of it.
#pragma once

#include "cluster.h"
#include "raw_client.h"

namespace tidemark::net {

class HttpTest : public NetTest {
 protected:
  void serve(HttpServerOptions options, HttpHandler handler) {
    if (options.unix_socket.empty() && options.address.host.empty()) options.address = loopback();
    auto made = network().serve_http(options, std::move(handler));
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    server = std::move(made).value();
  }
  void serve_tls(HttpHandler handler, std::vector<Role> roles = {Role::kHost}) {
    serve({.tls = replica, .roles_accepted = std::move(roles)}, std::move(handler));
  }
  HttpClientOptions tls_options() {
    return {.url = "https://127.0.0.1:" + std::to_string(server->port()), .tls = host};
  }
  HttpClientOptions plain_options() { return {.url = "http://127.0.0.1:" + std::to_string(server->port())}; }
  std::unique_ptr<HttpClient> client_of(const HttpClientOptions& options) {
    auto made = network().http_client(options);
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    return made ? std::move(made).value() : nullptr;
  }
  Result<HttpResponse> ask(HttpClient& client, HttpRequest request) {
    std::optional<Result<HttpResponse>> answer;
    client.request(std::move(request), [&](Result<HttpResponse> r) { answer.emplace(std::move(r)); });
    if (!wait_for([&] { return answer.has_value(); })) return Status(Code::kCancelled, "never answered");
    return std::move(*answer);
  }
  static HttpRequest get(std::string target) { return {.method = "GET", .target = std::move(target)}; }
  static HttpRequest put(std::string target, Bytes body) {
    return {.method = "PUT", .target = std::move(target), .body = std::move(body)};
  }
  static HttpHandler say(std::string text) {
    return [text](HttpRequest, Callback<HttpResponse> done) { done(HttpResponse::text(200, text)); };
  }

  TlsFiles host = cluster.node("host1", Role::kHost);
  TlsFiles replica = cluster.node("replica1", Role::kReplica);
  std::unique_ptr<HttpServer> server;
};

}  // namespace tidemark::net
