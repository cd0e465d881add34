// Certificates that count no longer: their handshakes are refused, and what they have open ends.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <future>
#include <thread>

#include "http_pair.h"
#include "shared/net/openssl_handles.h"
#include "shared/net/revocation_memory.h"
#include "shared/net/tls_context.h"
#include "stream_pair.h"

namespace tidemark::net {
namespace {

pki::Revocation revoke(const Cluster& cluster, const TlsFiles& files) {
  auto done = pki::revoke({.authority_directory = cluster.directory().path(), .certificate = files.certificate});
  EXPECT_TRUE(done.is_ok()) << done.status().to_string();
  return done ? *done : pki::Revocation{};
}

// This process can open nothing more.
class FewDescriptors {
 public:
  FewDescriptors() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const int next = ::dup(STDERR_FILENO);
    rlimit now{.rlim_cur = static_cast<rlim_t>(next), .rlim_max = before_.rlim_max};
    ::close(next);
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &now), 0);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  rlimit before_{};
};

class RevokedStreamTest : public StreamTest {
 protected:
  End& accepted_of(const std::string& node) {
    for (auto& end : accepted)
      if (end->stream->peer().node == node) return *end;
    ADD_FAILURE() << node << " was not accepted";
    return *accepted.front();
  }
  TlsFiles other = cluster.node("host2", Role::kHost);
};

TEST_F(RevokedStreamTest, OpenStreamsOfTheNodeEndAndItsHandshakesAreRefused) {
  listen(shared);
  End first, second;
  ASSERT_TRUE(connect(to_listener(host), first).is_ok());
  ASSERT_TRUE(connect(to_listener(other), second).is_ok());
  ASSERT_TRUE(wait_for([&] { return accepted.size() == 2; }));
  pki::Revocation done = revoke(cluster, host);
  EXPECT_EQ(done.identity.node, "host1");
  End& ended = accepted_of("host1");
  End& stays = accepted_of("host2");
  ASSERT_TRUE(wait_for([&] { return first.closed.has_value() && ended.closed.has_value(); }));
  EXPECT_EQ(ended.closed->code(), Code::kPermission) << ended.closed->to_string();
  EXPECT_THAT(ended.closed->message(), ::testing::HasSubstr("host1 was revoked"));

  EXPECT_FALSE(stays.closed.has_value());
  second.stream->send(Bytes(100, 7), {});
  EXPECT_TRUE(wait_for([&] { return stays.received.size() == 100; }));

  End again;
  Status refused = connect(to_listener(host), again);
  bool late = refused.is_ok() && wait_for([&] { return again.closed.has_value(); });   // TLS 1.3 tells a client late
  EXPECT_EQ((late ? *again.closed : refused).code(), Code::kPermission);
  EXPECT_TRUE(logged("host1 was revoked (serial " + done.serial));
  EXPECT_EQ(accepted.size(), 2u);

  TlsFiles renewed = cluster.node("host1", Role::kHost, {}, true);
  End back;
  Status status = connect(to_listener(renewed), back);
  EXPECT_TRUE(status.is_ok()) << "a new certificate of the same node counts: " << status.to_string();
  EXPECT_TRUE(wait_for([&] { return accepted.size() == 3; }));
}

TEST_F(RevokedStreamTest, AClientLeavesAServerThatIsRevoked) {
  listen(shared);
  End end;
  ASSERT_TRUE(connect(to_listener(host), end).is_ok());
  revoke(cluster, shared);
  ASSERT_TRUE(wait_for([&] { return end.closed.has_value(); }));
  End again;
  EXPECT_EQ(connect(to_listener(host), again).code(), Code::kPermission);
}

TEST_F(RevokedStreamTest, AListThatIsNotTheAuthoritysIsNotTakenAndOneThatVanishesStillCounts) {
  listen(shared);
  End first;
  ASSERT_TRUE(connect(to_listener(host), first).is_ok());
  const std::string list = cluster.directory() / "revoked.pem";
  {
    Cluster foreign;
    revoke(foreign, foreign.node("host1", Role::kHost));
    std::filesystem::copy_file(foreign.directory() / "revoked.pem", list);
  }
  EXPECT_TRUE(logged("certificate_files_unusable"));
  EXPECT_FALSE(first.closed.has_value());
  io::RealEnv fresh({.make_network = make_real_network});
  auto refused = fresh.network().listen({.address = loopback(), .tls = shared, .roles_accepted = {Role::kHost}},
                                        [](std::unique_ptr<Stream>) {});
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument) << "none is begun with";
  EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("revoked.pem"));

  std::filesystem::remove(list);
  revoke(cluster, host);
  ASSERT_TRUE(wait_for([&] { return first.closed.has_value(); }));
  std::filesystem::remove(list);
  End again;
  Status status = connect(to_listener(host), again);
  bool late = status.is_ok() && wait_for([&] { return again.closed.has_value(); });
  EXPECT_EQ((late ? *again.closed : status).code(), Code::kPermission);
  EXPECT_TRUE(logged("revocation_list_gone"));
}

TEST_F(RevokedStreamTest, AnOlderListDoesNotBringACertificateBack) {
  listen(shared);
  revoke(cluster, other);
  const std::string list = cluster.directory() / "revoked.pem", older = list + ".older";
  std::filesystem::copy_file(list, older);
  revoke(cluster, host);
  End refused, again;
  auto connects = [&](const TlsFiles& files, End& end) {
    Status status = connect(to_listener(files), end);
    return status.is_ok() && !wait_for([&] { return end.closed.has_value(); });
  };
  ASSERT_FALSE(connects(host, refused));
  std::filesystem::rename(older, list);
  EXPECT_FALSE(connects(host, again));
  EXPECT_TRUE(logged("revocation_list_older"));
}

size_t revoked_now(const TlsFiles& files) {
  auto context = TlsContext::load(files);
  EXPECT_TRUE(context.is_ok()) << context.status().to_string();
  return context && (*context)->revoked() ? (*context)->revoked()->size() : 0;
}

// What a daemon saw is in a file of its state directory: keep_revocations() is what it does at its start.
TEST_F(RevokedStreamTest, AnOlderListIsNotBelievedAfterARestartEither) {
  TempDir state;
  const std::string kept = state / "revoked", list = cluster.directory() / "revoked.pem", older = list + ".older";
  ASSERT_TRUE(keep_revocations(kept).is_ok());
  revoke(cluster, other);
  std::filesystem::copy_file(list, older);
  revoke(cluster, host);
  ASSERT_EQ(revoked_now(shared), 2u);
  std::filesystem::rename(older, list);
  ASSERT_TRUE(keep_revocations(state / "of_another_node").is_ok());
  EXPECT_EQ(revoked_now(shared), 1u) << "one that never saw the newer list";

  ASSERT_TRUE(keep_revocations(kept).is_ok());
  EXPECT_EQ(revoked_now(shared), 2u);
  EXPECT_TRUE(logged("revocation_list_older file=" + list + " number=1 newest_seen=2 lacks=1"));
  listen(shared);
  End end;
  Status status = connect(to_listener(host), end);
  const bool late = status.is_ok() && wait_for([&] { return end.closed.has_value(); });
  EXPECT_EQ((late ? *end.closed : status).code(), Code::kPermission);

  std::filesystem::remove(list);
  ASSERT_TRUE(keep_revocations(kept).is_ok());
  EXPECT_EQ(revoked_now(shared), 2u) << "nor does a list that is gone bring anybody back";
  EXPECT_TRUE(logged("revocation_list_gone"));

  std::fstream(kept, std::ios::in | std::ios::out | std::ios::binary).seekp(20).put('!');
  Status damaged = keep_revocations(kept);
  EXPECT_EQ(damaged.code(), Code::kCorruption);
  EXPECT_THAT(damaged.message(), ::testing::HasSubstr(kept));
  EXPECT_TRUE(keep_revocations("").is_ok());
}

// The loop reads lists, too; and the next one after this is not waited for at all.
TEST_F(RevokedStreamTest, AListCountsThoughTheDiskThatIsToKeepItHangs) {
  TempDir state;
  const std::string kept = state / "revoked";
  ASSERT_TRUE(keep_revocations(kept).is_ok());
  std::promise<void> thaw;
  std::atomic<int> begun = 0, written = 0;
  set_kept_writer_for_testing([&, thawed = thaw.get_future().share()](const std::string& file, ByteSpan bytes) {
    ++begun;
    env.post([] {});
    thawed.wait();
    Status status = write_pem_file(file, bytes, 0600, true);
    ++written;
    env.post([] {});
    return status;
  });
  revoke(cluster, other);
  EXPECT_EQ(revoked_now(shared), 1u);
  ASSERT_TRUE(wait_for([&] { return begun.load() == 1; }));
  EXPECT_TRUE(logged("revocations_kept_late"));
  revoke(cluster, host);
  EXPECT_EQ(revoked_now(shared), 2u);
  EXPECT_EQ(begun.load(), 1);
  EXPECT_EQ(written.load(), 0);
  thaw.set_value();
  EXPECT_TRUE(wait_for([&] { return written.load() == 2; })) << "what came meanwhile is kept as well";
  set_kept_writer_for_testing({});
  ASSERT_TRUE(keep_revocations(kept).is_ok());
  std::filesystem::remove(cluster.directory() / "revoked.pem");
  EXPECT_EQ(revoked_now(shared), 2u);
  EXPECT_TRUE(keep_revocations("").is_ok());
}

TEST_F(RevokedStreamTest, ADiskThatKeepsNoListIsNotAskedAtEachRequest) {
  TempDir state;
  ASSERT_TRUE(keep_revocations(state / "revoked").is_ok());
  std::atomic<int> tried = 0;
  set_kept_writer_for_testing([&](const std::string& file, ByteSpan) {
    ++tried;
    return Status::from_errno(ENOSPC, file);
  });
  revoke(cluster, other);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(revoked_now(shared), 1u);
    EXPECT_TRUE(logged("revocations_not_kept"));   // by a thread, which is waited for no longer than a moment
  }
  EXPECT_EQ(tried.load(), 1);
  revoke(cluster, host);
  EXPECT_EQ(revoked_now(shared), 2u);
  EXPECT_TRUE(wait_for([&] { return tried.load() == 2; })) << "what is new is tried at once";
  set_kept_writer_for_testing({});
  EXPECT_TRUE(keep_revocations("").is_ok());
}

TEST(Revoke, NamesTheCertificateOnceAndRefusesForeignOnes) {
  Cluster cluster, foreign;
  TlsFiles host = cluster.node("host1", Role::kHost);
  pki::RevokeOptions options{.authority_directory = cluster.directory().path(), .certificate = host.certificate,
                             .dry_run = true};
  ASSERT_TRUE(pki::revoke(options));
  EXPECT_FALSE(std::filesystem::exists(cluster.directory() / "revoked.pem"));
  EXPECT_FALSE(revoke(cluster, host).again);
  EXPECT_TRUE(revoke(cluster, host).again);
  options.certificate = foreign.node("host1", Role::kHost).certificate;
  EXPECT_EQ(pki::revoke(options).status().code(), Code::kInvalidArgument);
}

// Two operators, or a script that goes on meanwhile: each is told that its certificate is on the list.
TEST(Revoke, TwoAtOnceAreBothOnTheList) {
  Cluster cluster;
  for (int round = 0; round < 25; ++round) {
    const TlsFiles first = cluster.node("host1", Role::kHost, {}, true);
    const TlsFiles second = cluster.node("host2", Role::kHost, {}, true);
    std::string serials[2];
    std::thread one([&] { serials[0] = revoke(cluster, first).serial; });
    std::thread two([&] { serials[1] = revoke(cluster, second).serial; });
    one.join();
    two.join();
    auto context = TlsContext::load(cluster.node("shared1", Role::kShared, {}, true));
    ASSERT_TRUE(context.is_ok()) << context.status().to_string();
    for (const std::string& serial : serials) ASSERT_TRUE((*context)->is_revoked(serial)) << "round " << round;
  }
}

// What they could not be read for may lie outside them, and pass without a trace on them.
TEST_F(RevokedStreamTest, FilesThatCouldNotBeReadOnceAreReadAgain) {
  TlsContexts contexts;
  const WallTime begun = env.wall();
  auto after = [&](int seconds) { return WallTime{begun.ns + seconds * 1'000'000'000ll}; };
  auto revoked_at = [&](int seconds) {
    auto context = contexts.get(shared, after(seconds));
    EXPECT_TRUE(context.is_ok()) << context.status().to_string();
    return context && (*context)->revoked() ? (*context)->revoked()->size() : 0;
  };
  EXPECT_EQ(revoked_at(0), 0u);
  revoke(cluster, host);
  {
    const FewDescriptors none_left;
    EXPECT_EQ(revoked_at(1), 0u);
    EXPECT_EQ(revoked_at(12), 0u);
  }
  EXPECT_EQ(revoked_at(13), 0u) << "not at every handshake";
  EXPECT_EQ(revoked_at(23), 1u);
  const auto lines = logs.lines();
  EXPECT_EQ(std::ranges::count_if(lines, [](const std::string& l) { return l.find("_unusable") != l.npos; }), 1);
}

class RevokedHttpTest : public HttpTest {};

TEST_F(RevokedHttpTest, AnAnswerUnderWayIsCutAndTheNextConnectionRefused) {
  // A body that goes on for ever, a byte at a time.
  serve_tls([this](HttpRequest, Callback<HttpResponse> done) {
    HttpResponse response;
    response.content_length = 1ull << 40;
    response.source = [this](size_t, Callback<Result<Bytes>> piece) {
      env.after(std::chrono::milliseconds(5), [piece = std::move(piece)]() mutable { piece(Bytes(1, 'x')); });
    };
    done(std::move(response));
  });
  auto client = client_of(tls_options());
  std::optional<Status> ended;
  client->request(get("/"), [&](Result<HttpResponse> r) { ended = r.status(); });
  env.run_until([&] { return false; }, std::chrono::milliseconds(200));
  ASSERT_FALSE(ended.has_value());
  revoke(cluster, host);
  ASSERT_TRUE(wait_for([&] { return ended.has_value(); }));
  EXPECT_EQ(ended->code(), Code::kUnavailable) << ended->to_string();
  EXPECT_TRUE(logged("its certificate was revoked"));
  EXPECT_EQ(ask(*client, get("/")).status().code(), Code::kPermission);
}

TEST_F(RevokedHttpTest, AClientRefusesAServerThatIsRevoked) {
  serve_tls(say("here"));
  revoke(cluster, replica);
  auto client = client_of(tls_options());
  auto answer = ask(*client, get("/"));
  EXPECT_EQ(answer.status().code(), Code::kPermission) << answer.status().to_string();
  EXPECT_THAT(answer.status().message(), ::testing::HasSubstr("revoked"));
  client.reset();
  std::filesystem::remove(cluster.directory() / "revoked.pem");
  auto another = client_of(tls_options());
  EXPECT_EQ(ask(*another, get("/")).status().code(), Code::kPermission) << "its list is gone";
}

// OpenSSL renews no key by itself: this server does.
TEST(HttpKeys, AreRenewedWithinALongAnswer) {
  LogCapture logs;
  Cluster cluster;
  io::RealEnv env({.make_network = [](io::Env& e, io::Poller& p) {
    return std::unique_ptr<Network>(new RealNetwork(e, p, {.records_per_key = 8}));
  }});
  TlsFiles replica = cluster.node("replica1", Role::kReplica), host = cluster.node("host1", Role::kHost);
  Bytes body(4'000'000);
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  auto server = env.network().serve_http(
      {.tls = replica, .roles_accepted = {Role::kHost}, .address = loopback()},
      [&](HttpRequest, Callback<HttpResponse> done) {
        HttpResponse response;
        response.content_length = body.size();
        response.source = [&, at = size_t{0}](size_t max, Callback<Result<Bytes>> piece) mutable {
          size_t n = std::min(max, body.size() - at);
          Bytes bytes(body.begin() + static_cast<ptrdiff_t>(at), body.begin() + static_cast<ptrdiff_t>(at + n));
          at += n;
          piece(std::move(bytes));
        };
        done(std::move(response));
      });
  ASSERT_TRUE(server.is_ok()) << server.status().to_string();
  int updates = 0;
  RawTls options{.files = &host, .send = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
                 .key_updates = &updates};
  std::string answer;
  std::atomic<bool> over = false;
  std::thread client([&, port = (*server)->port()] {
    answer = talk_tls(port, options);
    over = true;
    env.post([] {});
  });
  EXPECT_TRUE(env.run_until([&] { return over.load(); }, kWait));
  client.join();
  ASSERT_GT(answer.size(), body.size()) << answer.substr(0, 200);
  EXPECT_TRUE(std::equal(body.begin(), body.end(), answer.end() - static_cast<ptrdiff_t>(body.size()),
                         [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
  EXPECT_GT(updates, 10);
  server = Status(Code::kCancelled, "before its Env");
}

}  // namespace
}  // namespace tidemark::net
