// The HTTP server: bodies, bounds, streamed answers, refusals.
#include <sys/stat.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>

#include "http_pair.h"
#include "raw_client.h"
#include "shared/base/limits.h"
#include "shared/net/blocking_http.h"

namespace tidemark::net {
namespace {

class HttpServerTest : public HttpTest {
 protected:
  // Runs `work` on another thread while the loop turns.
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
  std::string raw(const std::string& bytes) {
    return meanwhile([&] { return talk_plain(server->port(), bytes); });
  }
};

uint64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * 4096;
}

// An endless row of bytes whose period, a prime, fits no buffer's size.
void fill_pattern(MutableByteSpan out, uint64_t offset) {
  static const Bytes kPeriod = [] {
    Bytes b(1'000'003);
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    return b;
  }();
  while (!out.empty()) {
    size_t at = offset % kPeriod.size(), n = std::min(out.size(), kPeriod.size() - at);
    std::memcpy(out.data(), kPeriod.data() + at, n);
    out = out.subspan(n);
    offset += n;
  }
}

bool is_pattern(ByteSpan bytes, uint64_t offset) {
  Bytes expected(bytes.size());
  fill_pattern(expected, offset);
  return std::memcmp(expected.data(), bytes.data(), bytes.size()) == 0;
}

TEST_F(HttpServerTest, RequestReachesTheHandlerWhole) {
  std::optional<HttpRequest> seen;
  serve_tls([&](HttpRequest request, Callback<HttpResponse> done) {
    seen = std::move(request);
    HttpResponse response = HttpResponse::json(201, "{\"next\":7}");
    response.headers["x-tidemark"] = "yes";
    done(std::move(response));
  });
  auto client = client_of(tls_options());
  HttpRequest request = put("/v1/batch?number=6&q=%20", Bytes(100'000, 7));
  request.headers["X-Digest"] = "abc";
  auto answer = ask(*client, std::move(request));
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(answer->status, 201);
  EXPECT_EQ(answer->headers["content-type"], "application/json");
  EXPECT_EQ(answer->headers["x-tidemark"], "yes");
  EXPECT_EQ(as_text(answer->body), "{\"next\":7}");
  ASSERT_TRUE(seen.has_value());
  EXPECT_EQ(seen->method, "PUT");
  EXPECT_EQ(seen->target, "/v1/batch?number=6&q=%20");
  EXPECT_EQ(seen->headers["x-digest"], "abc");
  EXPECT_EQ(seen->body, Bytes(100'000, 7));
  EXPECT_EQ(seen->peer.node, "host1");
  EXPECT_EQ(seen->peer.role, Role::kHost);
  EXPECT_EQ(seen->peer.cluster, cluster.uuid());
}

TEST_F(HttpServerTest, BigBodyArrivesWholeBothWays) {
  serve_tls([](HttpRequest request, Callback<HttpResponse> done) {
    HttpResponse response;
    response.body = std::move(request.body);
    done(std::move(response));
  });
  auto client = client_of(tls_options());
  Bytes body(64 << 20);
  fill_pattern(body, 0);
  auto answer = ask(*client, put("/", std::move(body)));
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(answer->body.size(), 64u << 20);
  EXPECT_TRUE(is_pattern(answer->body, 0));
}

TEST_F(HttpServerTest, ConnectionIsKeptForTheNextRequest) {
  serve({}, say("x"));
  std::string two = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  std::string answer = raw(two);
  size_t first = answer.find("HTTP/1.1 200");
  ASSERT_NE(first, std::string::npos) << answer;
  EXPECT_NE(answer.find("HTTP/1.1 200", first + 1), std::string::npos) << answer;
}

TEST_F(HttpServerTest, HeadHasTheLengthAndNoBody) {
  serve({}, say("twelve bytes"));
  std::string answer = raw("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, ::testing::StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, ::testing::HasSubstr("Content-Length: 12\r\n"));
  EXPECT_THAT(answer, ::testing::EndsWith("\r\n\r\n"));
  auto client = client_of(plain_options());
  auto head = ask(*client, {.method = "HEAD", .target = "/"});
  ASSERT_TRUE(head.is_ok()) << head.status().to_string();
  EXPECT_EQ(head->headers["content-length"], "12");
  EXPECT_TRUE(head->body.empty());
}

TEST_F(HttpServerTest, TooLargeABodyIsRefusedBeforeItIsRead) {
  bool handled = false;
  serve({.body_bytes_max = 1000}, [&](HttpRequest, Callback<HttpResponse> done) { handled = true; done({}); });
  std::string announced = raw("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_THAT(announced, ::testing::StartsWith("HTTP/1.1 413"));
  std::string waits = raw("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n");
  EXPECT_THAT(waits, ::testing::StartsWith("HTTP/1.1 413"));
  std::string chunk = "3e9\r\n" + std::string(1001, 'x') + "\r\n0\r\n\r\n";
  std::string chunked = raw("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk);
  EXPECT_THAT(chunked, ::testing::StartsWith("HTTP/1.1 413"));
  EXPECT_FALSE(handled);
  auto client = client_of(plain_options());
  auto answer = ask(*client, put("/", Bytes(5 << 20)));
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(answer->status, 413);
  EXPECT_EQ(ask(*client, put("/", Bytes(1000)))->status, 200);
  EXPECT_TRUE(logged("request_refused"));
}

TEST_F(HttpServerTest, BodiesBeyondTheBoundOfAllAreRefusedBeforeTheyAreRead) {
  serve({}, say("x"));
  std::vector<std::unique_ptr<OpenConnection>> uploads;  // announced and never sent
  std::string announce = "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 83886080\r\n\r\n";
  for (uint64_t bytes = 83886080; bytes <= limits::kHttpBodyBytesInFlightMax; bytes += 83886080) {
    uploads.push_back(std::make_unique<OpenConnection>(server->port(), announce));
    EXPECT_THAT(uploads.back()->read_some(), ::testing::StartsWith("HTTP/1.1 100"));
  }
  EXPECT_THAT(raw(announce), ::testing::StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(raw("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), ::testing::StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, ExpectContinueIsAnsweredThenTheBodyTaken) {
  serve({}, [](HttpRequest request, Callback<HttpResponse> done) {
    done(HttpResponse::text(200, std::to_string(request.body.size())));
  });
  std::string answer =
      raw("PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, ::testing::StartsWith("HTTP/1.1 100 Continue\r\n"));
  auto client = client_of(plain_options());
  auto sent = ask(*client, put("/", Bytes(3 << 20)));  // curl expects from 1 MiB on
  ASSERT_TRUE(sent.is_ok()) << sent.status().to_string();
  EXPECT_EQ(as_text(sent->body), std::to_string(3 << 20));
}

TEST_F(HttpServerTest, MalformedRequestsGet400AndTheServerGoesOn) {
  serve({}, say("fine"));
  const char* const bad[] = {"garbage\r\n\r\n",
                             "GET / HTTP/9.9\r\n\r\n",
                             "GET  HTTP/1.1\r\n\r\n",
                             "PUT / HTTP/1.1\r\nContent-Length: minus\r\n\r\n",
                             "PUT / HTTP/1.1\r\nA B: c\r\n\r\n",
                             "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                             "\x16\x03\x01\x02\x01\r\n\r\n"};
  for (const char* request : bad) EXPECT_THAT(raw(request), ::testing::StartsWith("HTTP/1.1 400")) << request;
  EXPECT_THAT(raw("GET / HTTP/1.1\r\nX: " + std::string(200'000, 'x') + "\r\n\r\n"),
              ::testing::StartsWith("HTTP/1.1 431"));
  EXPECT_TRUE(logged("request_refused"));
  auto client = client_of(plain_options());
  EXPECT_EQ(as_text(ask(*client, get("/"))->body), "fine");
}

TEST_F(HttpServerTest, ACutRequestIsNotHandled) {
  bool handled = false;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) { handled = true; done({}); });
  EXPECT_EQ(raw("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this"), "");
  EXPECT_FALSE(handled);
  EXPECT_TRUE(logged("request_cut"));
}

TEST_F(HttpServerTest, StreamedAnswerOf100MiBTakesLittleMemory) {
  constexpr uint64_t kSize = 100ull << 20;
  size_t asked_max = 0;
  serve_tls([&](HttpRequest, Callback<HttpResponse> done) {
    HttpResponse response;
    response.content_length = kSize;
    response.source = [&, at = uint64_t{0}](size_t max, Callback<Result<Bytes>> piece) mutable {
      asked_max = std::max(asked_max, max);
      Bytes bytes(std::min<uint64_t>(max, kSize - at));
      fill_pattern(bytes, at);
      at += bytes.size();
      piece(std::move(bytes));
    };
    done(std::move(response));
  });
  HttpClientOptions options = tls_options();
  uint64_t before = resident_bytes(), peak = 0, at = 0, wrong = 0;
  auto answer = meanwhile([&] {
    return download(options, get("/image"), {.sink = [&](ByteSpan bytes) {
      if (!is_pattern(bytes, at)) ++wrong;
      at += bytes.size();
      peak = std::max(peak, resident_bytes());
      return Status::ok();
    }});
  });
  ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
  EXPECT_EQ(at, kSize);
  EXPECT_EQ(wrong, 0u);
  EXPECT_LE(asked_max, 1u << 20);
#ifdef TIDEMARK_ADDRESS_SANITIZER
  before += 200u << 20;  // freed memory rests in quarantine
#endif
  EXPECT_LT(peak, before + (30u << 20));
}

TEST_F(HttpServerTest, AStreamedAnswerThatFailsIsCutNotCompleted) {
  serve({}, [](HttpRequest request, Callback<HttpResponse> done) {
    HttpResponse response;
    response.content_length = 1 << 20;
    bool late = request.target == "/late";
    response.source = [late, calls = 0](size_t, Callback<Result<Bytes>> piece) mutable {
      if (late && calls++ == 0) return piece(Bytes(1000));
      piece(Status(Code::kIoError, "brick gone"));
    };
    done(std::move(response));
  });
  auto client = client_of(plain_options());
  EXPECT_EQ(ask(*client, get("/at-once")).status().code(), Code::kUnavailable);
  EXPECT_EQ(ask(*client, get("/late")).status().code(), Code::kUnavailable);
  EXPECT_TRUE(logged("brick gone"));
}

TEST_F(HttpServerTest, HeadOfAStreamedAnswerNeverPulls) {
  bool pulled = false;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) {
    HttpResponse response;
    response.content_length = 12345;
    response.source = [&](size_t, Callback<Result<Bytes>> piece) { pulled = true; piece(Bytes(1)); };
    done(std::move(response));
  });
  auto client = client_of(plain_options());
  auto head = ask(*client, {.method = "HEAD", .target = "/"});
  ASSERT_TRUE(head.is_ok()) << head.status().to_string();
  EXPECT_EQ(head->headers["content-length"], "12345");
  EXPECT_FALSE(pulled);
}

TEST_F(HttpServerTest, ADroppedRequestIsAnswered500) {
  serve({}, [](HttpRequest, Callback<HttpResponse>) {});
  auto client = client_of(plain_options());
  EXPECT_EQ(ask(*client, get("/"))->status, 500);
}

TEST_F(HttpServerTest, ManyRequestsAtOnceEachGetTheirOwnAnswer) {
  // Answered in the reverse order of arrival, once all are there.
  std::vector<std::pair<std::string, Callback<HttpResponse>>> open;
  serve_tls([&](HttpRequest request, Callback<HttpResponse> done) {
    open.emplace_back(request.target, std::move(done));
    if (open.size() < 20) return;
    while (!open.empty()) {
      auto [target, answer] = std::move(open.back());
      open.pop_back();
      answer(HttpResponse::text(200, std::string("answer to ").append(target)));
    }
  });
  auto client = client_of(tls_options());
  int right = 0, answered = 0;
  for (int i = 0; i < 20; ++i) {
    std::string target = std::string("/").append(std::to_string(i));
    client->request(get(target), [&, target](Result<HttpResponse> answer) {
      ++answered;
      if (answer && as_text(answer->body) == std::string("answer to ").append(target)) ++right;
    });
  }
  ASSERT_TRUE(wait_for([&] { return answered == 20; }));
  EXPECT_EQ(right, 20);
}

// More than the server has connections for, and none is answered before it would have refused some.
TEST_F(HttpServerTest, MoreRequestsThanAServerHasConnectionsForAreAllAnswered) {
  constexpr int kRequests = static_cast<int>(limits::kHttpConnectionsMax) + 144;
  std::vector<Callback<HttpResponse>> open;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) {
    if (open.empty()) {
      env.after(std::chrono::milliseconds(100), [&] {
        for (auto& answer : std::exchange(open, {})) answer(HttpResponse::text(200, "yes"));
      });
    }
    open.push_back(std::move(done));
  });
  auto client = client_of(plain_options());
  int right = 0, answered = 0;
  for (int i = 0; i < kRequests; ++i) {
    client->request(get("/"), [&](Result<HttpResponse> answer) {
      ++answered;
      if (answer && answer->status == 200) ++right;
    });
  }
  ASSERT_TRUE(wait_for([&] { return answered == kRequests; }));
  EXPECT_EQ(right, kRequests);
}

// As many as it would have been, had each been sent at once: they have waited for as long.
TEST_F(HttpServerTest, RequestsBehindThoseThatTimedOutAreNotWaitedForOneAfterAnother) {
  std::vector<Callback<HttpResponse>> open;   // never answered
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) { open.push_back(std::move(done)); });
  HttpClientOptions options = plain_options();
  options.stall_timeout = std::chrono::seconds(1);
  auto client = client_of(options);
  constexpr int kRequests = 200;
  int unavailable = 0;
  for (int i = 0; i < kRequests; ++i) {
    client->request(get("/"), [&](Result<HttpResponse> answer) {
      if (answer.status().code() == Code::kUnavailable) ++unavailable;
    });
  }
  EXPECT_TRUE(wait_for([&] { return unavailable == kRequests; }));
  EXPECT_LT(open.size(), size_t(kRequests) / 2);
}

TEST_F(HttpServerTest, UnixSocketIsPrivateAndServes) {
  TempDir dir;
  std::string path = dir / "control.sock";
  serve({.unix_socket = path}, say("over the socket"));
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  HttpClientOptions options{.url = "http://localhost", .unix_socket = path};
  auto client = client_of(options);
  EXPECT_EQ(as_text(ask(*client, get("/status"))->body), "over the socket");
  auto second = network().serve_http({.unix_socket = path}, say("second"));
  EXPECT_EQ(second.status().code(), Code::kBusy);
  server.reset();
  EXPECT_NE(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(ask(*client, get("/status")).status().code(), Code::kUnavailable);
}

TEST_F(HttpServerTest, AStaleSocketIsReplacedAFileIsNot) {
  TempDir dir;
  std::string path = dir / "control.sock";
  serve({.unix_socket = path}, say("first"));
  std::filesystem::rename(path, dir / "kept.sock");
  server.reset();  // as a crash leaves it: a socket that nobody serves
  std::filesystem::rename(dir / "kept.sock", path);
  serve({.unix_socket = path}, say("second"));
  auto client = client_of({.url = "http://localhost", .unix_socket = path});
  EXPECT_EQ(as_text(ask(*client, get("/"))->body), "second");
  std::ofstream(dir / "file") << "data";
  EXPECT_EQ(network().serve_http({.unix_socket = dir / "file"}, say("x")).status().code(), Code::kAlreadyExists);
  std::string long_path = dir / std::string(120, 'x');
  EXPECT_EQ(network().serve_http({.unix_socket = long_path}, say("x")).status().code(), Code::kInvalidArgument);
}

TEST_F(HttpServerTest, ClosingTheServerEndsWhatIsInFlight) {
  std::vector<Callback<HttpResponse>> open;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) { open.push_back(std::move(done)); });
  auto client = client_of(plain_options());
  std::optional<Status> outcome;
  client->request(get("/"), [&](Result<HttpResponse> r) { outcome = r.status(); });
  ASSERT_TRUE(wait_for([&] { return !open.empty(); }));
  server.reset();
  open.clear();  // answers after the end go nowhere
  ASSERT_TRUE(wait_for([&] { return outcome.has_value(); }));
  EXPECT_EQ(outcome->code(), Code::kUnavailable);
}

TEST_F(HttpServerTest, AServerMayBeClosedByItsOwnHandler) {
  bool handled = false;
  serve({}, [&](HttpRequest, Callback<HttpResponse> done) {
    server.reset();
    handled = true;
    done(HttpResponse::text(200, "too late"));
  });
  auto client = client_of(plain_options());
  EXPECT_EQ(ask(*client, get("/")).status().code(), Code::kUnavailable);
  EXPECT_TRUE(handled);
}

TEST_F(HttpServerTest, WrongPeersAreRefusedWithAReasonInTheLog) {
  serve_tls(say("secret"), {Role::kHost});
  Cluster other;
  TlsFiles foreign = other.node("host1", Role::kHost);
  TlsFiles wrong_role = cluster.node("shared1", Role::kShared);
  auto tls = [&](const RawTls& o) {
    RawTls options = o;
    options.send = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    return meanwhile([&] { return talk_tls(server->port(), options); });
  };
  EXPECT_THAT(tls({.max_version = tls_1_2_version(), .files = &host}), ::testing::HasSubstr("protocol version"));
  EXPECT_TRUE(logged("unsupported protocol"));
  EXPECT_THAT(tls({}), ::testing::StartsWith("error: "));
  EXPECT_TRUE(logged("peer did not return a certificate"));
  EXPECT_THAT(tls({.files = &foreign}), ::testing::StartsWith("error: "));
  EXPECT_TRUE(logged("does not chain to this cluster's authority"));
  EXPECT_THAT(tls({.files = &wrong_role}), ::testing::StartsWith("error: "));
  EXPECT_TRUE(logged("has role shared, not host"));
  EXPECT_THAT(raw("GET / HTTP/1.1\r\n\r\n"), ::testing::Not(::testing::HasSubstr("secret")));
  EXPECT_TRUE(logged("http request"));
  raw(std::string(10'000, '\x7f'));
  auto client = client_of(tls_options());
  EXPECT_EQ(as_text(ask(*client, get("/"))->body), "secret");
}

}  // namespace
}  // namespace tidemark::net
