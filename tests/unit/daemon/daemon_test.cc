// The real daemon shell: sockets, readiness, signals, exit codes.
#include "shared/daemon/daemon.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "shared/net/real_network.h"

namespace tidemark::daemon {
namespace {

class DaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string base = testing::TempDir() + "tidemark-daemon-XXXXXX";
    ASSERT_NE(mkdtemp(base.data()), nullptr);
    directory_ = base;
    std::ofstream(file_ = directory_ + "/x.toml") << "[node]\nname = \"n\"\n[metrics]\nlisten = \"x\"\n";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  Options options() {
    Options o;
    o.program = "tidemark-test";
    o.config_file = file_;
    o.node = {"n", "shared", directory_ + "/state", directory_ + "/run"};
    o.metrics.address = "127.0.0.1:0";
    o.log.file = directory_ + "/log";
    return o;
  }
  // Another program's listener, and its address.
  static int take_port(std::string& at) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(fd, 1), 0);
    socklen_t size = sizeof address;
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    at = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    return fd;
  }
  std::string directory_, file_;
};

TEST_F(DaemonTest, ServesControlSocketUntilTheSignal) {
  auto d = Daemon::create(options());
  ASSERT_TRUE(d) << d.status().to_string();
  Daemon& daemon = **d;
  daemon.routes().get("/v1/status",
                      [](const Request&) -> Result<std::string> { return std::string(R"({"node":"n"})"); });
  std::vector<std::string> reasons;
  daemon.set_health([&] { return reasons; });
  std::unique_ptr<net::HttpClient> client;
  std::vector<int> statuses;
  bool stop_called = false;
  auto ask = [&](std::string target, UniqueFunction<void(net::HttpResponse)> then) {
    net::HttpRequest request;
    request.method = "GET";
    request.target = std::move(target);
    client->request(std::move(request), [&, then = std::move(then)](Result<net::HttpResponse> r) mutable {
      ASSERT_TRUE(r) << r.status().to_string();
      statuses.push_back(r->status);
      then(std::move(*r));
    });
  };
  int code = daemon.run(
      [&](Callback<Status> ready) {
        net::HttpClientOptions o;
        o.url = "http://localhost";
        o.unix_socket = daemon.options().node.control_socket();
        client = std::move(*daemon.env().network().http_client(o));
        ready({});
        ask("/v1/status", [&](net::HttpResponse r) {
          EXPECT_EQ(as_text(r.body), R"({"node":"n"})");
          ask("/healthz", [&](net::HttpResponse) {
            reasons.push_back("stale");
            ask("/healthz", [&](net::HttpResponse r) {
              EXPECT_NE(as_text(r.body).find("stale"), std::string_view::npos);
              ask("/metrics", [&](net::HttpResponse r) {
                EXPECT_NE(as_text(r.body).find("tidemark_build_info"), std::string_view::npos);
                kill(getpid(), SIGTERM);
              });
            });
          });
        });
      },
      [&](UniqueFunction<void()> done) {
        stop_called = true;
        client.reset();
        done();
      });
  EXPECT_EQ(code, 0);
  EXPECT_TRUE(stop_called);
  EXPECT_EQ(statuses, (std::vector<int>{200, 200, 503, 200}));
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/run/metrics.address"));
  d->reset();
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/run/n.pid"));
}

TEST_F(DaemonTest, AKeyThatOthersMayReadIsRefusedBeforeAnythingIsMade) {
  for (const char* name : {"ca.pem", "n.pem", "n.key"}) std::ofstream(directory_ + "/" + name) << "x";
  std::filesystem::permissions(directory_ + "/n.key", std::filesystem::perms(0644));
  std::ofstream(file_) << "[node]\nname = \"n\"\nrole = \"shared\"\nstate_dir = \"state\"\n"
                       << "[tls]\nauthority = \"ca.pem\"\ncertificate = \"n.pem\"\nkey = \"n.key\"\n"
                       << "[storage]\nbricks = [\"brick\"]\n"
                       << "[listen]\naddress = \"127.0.0.1:0\"\n";
  auto d = Daemon::create(options());
  ASSERT_FALSE(d);
  EXPECT_EQ(d.status().code(), Code::kInvalidArgument);
  EXPECT_EQ(d.status().message(),
            file_ + ":8: [tls] key: " + directory_ + "/n.key may be read by others than its owner: chmod 600 it");
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/state"));
}

TEST_F(DaemonTest, AUsedPortIsOneLineThatNamesFileLineAndRemedy) {
  Options o = options();
  const int fd = take_port(o.metrics.address);
  testing::internal::CaptureStderr();
  auto d = Daemon::create(o);
  ASSERT_FALSE(d);
  int code = fail("tidemark-test", d.status());
  std::string error = testing::internal::GetCapturedStderr();
  close(fd);
  EXPECT_EQ(code, 2);
  EXPECT_EQ(error.rfind("tidemark-test: " + file_ + ":4: [metrics] listen: ", 0), 0u) << error;
  EXPECT_NE(error.find("choose a free port"), std::string::npos) << error;
  EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 1) << error;
}

TEST_F(DaemonTest, OneThatIsWaitedForStartsWithoutItsMetricsAndServesThemOnceThePortIsFree) {
  Options o = options();
  o.metrics_may_wait = true;
  int fd = take_port(o.metrics.address);
  auto d = Daemon::create(o);
  ASSERT_TRUE(d) << d.status().to_string();
  Daemon& daemon = **d;
  std::unique_ptr<net::HttpClient> client;
  UniqueFunction<void()> ask = [&] {
    net::HttpRequest request;
    request.method = "GET";
    request.target = "/healthz";
    client->request(std::move(request), [&](Result<net::HttpResponse> r) {
      ASSERT_TRUE(r) << r.status().to_string();
      if (r->status == 200) return daemon.env().post([&] { daemon.request_stop(); });
      EXPECT_NE(as_text(r->body).find("[metrics] listen"), std::string_view::npos);
      if (fd >= 0) close(std::exchange(fd, -1));
      daemon.env().after(std::chrono::milliseconds(50), [&] { ask(); });
    });
  };
  int code = daemon.run(
      [&](Callback<Status> ready) {
        net::HttpClientOptions http;
        http.url = "http://localhost";
        http.unix_socket = daemon.options().node.control_socket();
        client = std::move(*daemon.env().network().http_client(http));
        ready({});
        ask();
      },
      [&](UniqueFunction<void()> done) {
        client.reset();
        done();
      });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(fd, -1);
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/run/metrics.address"));
}

TEST_F(DaemonTest, AFailedStartGivesItsExitCodeAndNoStop) {
  auto d = Daemon::create(options());
  ASSERT_TRUE(d);
  bool stop_called = false;
  testing::internal::CaptureStderr();
  int code = (*d)->run([](Callback<Status> ready) { ready(Status(Code::kIoError, "brick gone")); },
                       [&](UniqueFunction<void()> done) { stop_called = true; done(); });
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "tidemark-test: brick gone\n");
  EXPECT_EQ(code, 1);
  EXPECT_FALSE(stop_called);
}

TEST_F(DaemonTest, ASecondDaemonOfTheNodeIsRefused) {
  auto first = Daemon::create(options());
  ASSERT_TRUE(first);
  auto second = Daemon::create(options());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.status().code(), Code::kBusy);
}

TEST(Arguments, ExitCodes) {
  Arguments a;
  auto parse = [&](std::vector<std::string> words) {
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    return parse_arguments(static_cast<int>(argv.size()), argv.data(), {"tidemark-test", "A test"}, a);
  };
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  unsetenv("TIDEMARK_CONFIG");
  EXPECT_EQ(parse({"p", "--version"}), 0);
  EXPECT_EQ(parse({"p", "--nonsense"}), 2);
  EXPECT_EQ(parse({"p"}), 2);
  EXPECT_EQ(parse({"p", "--config", "/none.toml", "--check"}), 2);
  EXPECT_EQ(parse({"p", "--config", "/none.toml", "--background"}), std::nullopt);
  testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(a.config, "/none.toml");
  EXPECT_TRUE(a.background);
}

}  // namespace
}  // namespace tidemark::daemon
