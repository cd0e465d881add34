#include <random>

#include "shared/base/limits.h"
#include "shared/wire/features.h"
#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::Type;

TEST_F(NodeTest, HelloIsRefusedForWhatItMustNot) {
  auto a = host("host1");
  struct Case { const char* what; std::function<void(wire::Hello&)> change; };
  const Case cases[] = {
      {"another cluster", [](wire::Hello& h) { h.cluster.bytes[0] ^= 1; }},
      {"another node's name", [](wire::Hello& h) { h.node = "host1"; }},
      {"another digest algorithm", [](wire::Hello& h) { h.digest_algorithm = 9; }},
      {"no version", [](wire::Hello& h) { h.version = 0; }},
      {"incarnation 0", [](wire::Hello& h) { h.incarnation = Incarnation(0); }},
      {"an unknown session", [](wire::Hello& h) { h.session = 12345; }},
      {"another host's session", [&](wire::Hello& h) { h.session = a->answer.session; }},
  };
  HostClient b(world_, "host2");
  b.hello.cluster = cluster_;
  for (const Case& c : cases) {
    ASSERT_TRUE(b.open_link(port_));
    wire::Hello hello = b.hello;
    c.change(hello);
    Result<wire::HelloAnswer> answer = b.ask<wire::HelloAnswer>(Type::kHello, hello);
    EXPECT_FALSE(answer) << c.what;
    b.run([&] { return b.closed.has_value(); });
  }
  EXPECT_TRUE(b.connect(port_, cluster_)) << "the right one is welcome afterwards";
  EXPECT_TRUE(a->create("still-there"));
}

TEST_F(NodeTest, AKnownIncarnationWithAnotherNonceIsRefused) {
  auto a = host("host1");
  a->hello.nonce.bytes[5] = 77;
  Status s = a->connect(port_, cluster_);
  EXPECT_EQ(s.code(), Code::kPermission) << s.message();
  a->hello.incarnation = Incarnation(5);
  EXPECT_TRUE(a->connect(port_, cluster_));
  a->hello.incarnation = Incarnation(3);
  EXPECT_FALSE(a->connect(port_, cluster_)) << "older than the newest";
  restart_node(sim::Crash::kPowerLoss);
  a->hello.incarnation = Incarnation(1);
  EXPECT_FALSE(a->connect(port_, cluster_)) << "known after a restart";
}

TEST_F(NodeTest, ASessionIsOfSeveralConnectionsAndEndsWithAny) {
  auto a = host("host1");
  HostClient& first = *a;
  std::unique_ptr<wire::Connection> one = std::move(first.link);
  first.hello.session = first.answer.session;
  ASSERT_TRUE(first.connect(port_, cluster_)) << "joins";
  EXPECT_EQ(first.answer.session, first.hello.session);
  ASSERT_TRUE(first.create("by-second-connection"));
  one->close(Status(Code::kUnavailable, "cut"));
  first.run([&] { return first.closed.has_value(); });
  first.hello.session = 0;
  ASSERT_TRUE(first.connect(port_, cluster_));
  EXPECT_TRUE(first.lookup("by-second-connection"));
}

TEST_F(NodeTest, ANewSessionSupersedesTheOlder) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  std::unique_ptr<wire::Connection> old = std::move(a->link);
  int failed = 0, ok = 0;
  Bytes data(4096, 3);
  for (uint64_t i = 0; i < 50; ++i) {
    old->send_write({held.image, held.epoch, {Incarnation(1), Counter(100 + i)}, i * 4096, 0}, data, digest64(data),
                    [&](Result<wire::Applied> r) { r ? ++ok : ++failed; });
  }
  ASSERT_TRUE(a->connect(port_, cluster_));
  // What the old session had begun is on the copy; nothing of it comes later.
  Result<Bytes> before = a->read(held.image, 0, 50 * 4096);
  a->run([&] { return ok + failed == 50; });
  world_.run_for(std::chrono::seconds(5));
  EXPECT_EQ(*before, *a->read(held.image, 0, 50 * 4096));
}

TEST_F(NodeTest, NothingIsServedBeforeHello) {
  HostClient a(world_, "host1");
  ASSERT_TRUE(a.open_link(port_));
  EXPECT_FALSE(a.lookup("x"));
  a.run([&] { return a.closed.has_value(); });
}

TEST_F(NodeTest, HostileFramesCloseTheirConnectionAndNothingElse) {
  auto good = host("host1");
  Held held = held_image(*good, "disk.img", 1u << 20);
  Bytes data(4096, 3);
  ASSERT_TRUE(good->write(held.image, held.epoch, 0, data));
  std::string before = node_->status_json();
  auto bad = host("host2");
  std::mt19937_64 random(3);
  for (uint16_t type = 1; type <= 41; ++type) {
    if (!wire::is_known_type(type) || type == 1 || type == 2) continue;
    if (!bad->link || bad->closed) { ASSERT_TRUE(bad->connect(port_, cluster_)); }
    Bytes body(random() % 200);
    for (uint8_t& b : body) b = static_cast<uint8_t>(random());
    bool notify = wire::is_notification(static_cast<Type>(type));
    if (notify) bad->link->respond(static_cast<Type>(type), 0, ByteSpan(body));
    else { EXPECT_FALSE(bad->tell(static_cast<Type>(type), body)) << type; }
    bad->run([&] { return bad->closed.has_value(); });
  }
  EXPECT_NE(warnings_.find("frame_refused peer=\"host host2\""), std::string::npos) << warnings_;
  EXPECT_TRUE(errors_.empty()) << errors_;
  EXPECT_EQ(*good->read(held.image, 0, 4096), data);
  EXPECT_TRUE(good->write(held.image, held.epoch, 0, data));
}

TEST_F(NodeTest, ReadsOfAHostThatDoesNotListenAreBounded) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 2u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 1)));
  int answered = 0;
  world_.cut("shared", "host1");
  for (int i = 0; i < 200; ++i) {
    a->link->send_request(Type::kRead, wire::Read{held.image, 0, 1u << 20}, {},
                          [&](Result<wire::Answer> r) { answered += r ? 1 : 0; });
  }
  world_.run_for(std::chrono::seconds(2));
  EXPECT_EQ(answered, 0);
  world_.heal("shared", "host1");
  a->run([&] { return answered == 200; });
}

TEST_F(NodeTest, StatusShowsHostsImagesAndWhoIsBehind) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 3u << 20);
  ASSERT_TRUE(b->ask<wire::Grant>(Type::kStaleMap, wire::StaleMap{held.image}));
  std::string status = node_->status_json();
  for (const char* want : {"\"node\":\"shared\"", "\"healthy\":true", "\"host\":\"host1\"", "\"path\":\"/disk.img\"",
                           "\"holder\":\"host1\"", "\"host2\":3145728", "\"epoch\":1"}) {
    EXPECT_NE(status.find(want), std::string::npos) << want << " in " << status;
  }
  EXPECT_TRUE(node_->unhealthy_reasons().empty());
}

TEST_F(NodeTest, StopFinishesWhatWasBegun) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  for (uint64_t i = 0; i < 20; ++i)
    a->send_write(held.image, held.epoch, i * 4096, Bytes(4096, 1), [](Result<wire::Applied>) {});
  world_.run_for(std::chrono::milliseconds(1));
  bool stopped = false;
  node_->stop([&] { stopped = true; });
  EXPECT_TRUE(world_.run_until([&] { return stopped; }, std::chrono::seconds(10)));
  node_.reset();
  world_.crash("shared", sim::Crash::kKill);
  start_node();
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_TRUE(a->lookup("disk.img"));
}

TEST_F(NodeTest, AFailedCatalogueIsFatalAndNothingIsAnswered) {
  auto a = host("host1");
  world_.fail_next_commit("shared", Status::from_errno(EIO, "disk"));
  EXPECT_FALSE(a->create("x"));
  EXPECT_FALSE(node_->unhealthy_reasons().empty());
  EXPECT_NE(errors_.find("catalogue_failed"), std::string::npos);
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(errno_of(a->lookup("x").status()), ENOENT);
}

// A second daemon with a copy of the configuration, and a journal of its own, whose incarnations begin far above.
TEST_F(NodeTest, ASecondHostOfALiveNameIsRefusedUntilTheFirstHasGone) {
  auto a = host("host1");
  ASSERT_TRUE(a->create("x"));
  std::unique_ptr<wire::Connection> live = std::move(a->link);
  const wire::Hello first = a->hello;
  a->hello.journal_generation.bytes[3] = 9;
  a->hello.incarnation = Incarnation(1'800'000'000);
  a->hello.nonce.bytes[0] = 2;
  Status refused = a->connect(port_, cluster_);
  EXPECT_EQ(refused.code(), Code::kBusy);
  EXPECT_NE(refused.message().find("certificate of its own"), std::string::npos) << refused.message();
  // The first one is not harmed: not by the attempt, and not when it connects anew.
  a->hello = first;
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_TRUE(a->lookup("x"));
  // A journal that was really lost: its successor is let in when the old connections have ended.
  a->link->close(Status(Code::kUnavailable, "gone"));
  live->close(Status(Code::kUnavailable, "gone"));
  world_.run_for(std::chrono::seconds(1));
  a->hello.journal_generation.bytes[3] = 9;
  a->hello.incarnation = Incarnation(1'800'000'000);
  a->hello.nonce.bytes[0] = 2;
  // But not without an operator's word: a state directory that is not mounted looks the same.
  refused = a->connect(port_, cluster_);
  EXPECT_EQ(refused.code(), Code::kPermission);
  EXPECT_NE(refused.message().find("tidemark state reset"), std::string::npos) << refused.message();
  world_.run_for(std::chrono::seconds(2));
  a->hello.features |= wire::kFeatureReset;
  EXPECT_TRUE(a->connect(port_, cluster_));
}

// A run that a newer one has followed is over: the two would take the tenures from each other.
TEST_F(NodeTest, AnOlderIncarnationIsOverOnceANewerOneCame) {
  auto a = host("host1");
  a->hello.incarnation = Incarnation(5);
  ASSERT_TRUE(a->connect(port_, cluster_));
  a->hello.incarnation = Incarnation(1);
  Status s = a->connect(port_, cluster_);
  EXPECT_EQ(s.code(), Code::kPermission) << s.message();
  a->hello.incarnation = Incarnation(5);
  EXPECT_TRUE(a->connect(port_, cluster_));
}

TEST_F(NodeTest, NothingIsServedBeforeTheHelloWasAnswered) {
  HostClient a(world_, "host1");
  a.hello.cluster = cluster_;
  ASSERT_TRUE(a.open_link(port_));
  std::optional<Status> created;
  a.link->request<wire::HelloAnswer>(Type::kHello, a.hello, [](Result<wire::HelloAnswer>) {});
  wire::Create m{InodeNumber(1), "too-early", wire::NodeKind::kImage, 0644, 0, 0, "", 1};
  a.link->request<wire::Changed>(Type::kCreate, m, [&](Result<wire::Changed> c) { created = c.status(); });
  a.run([&] { return created.has_value(); });
  EXPECT_FALSE(*created);
  a.run([&] { return a.closed.has_value(); });
  auto b = host("host2");
  EXPECT_EQ(errno_of(b->lookup("too-early").status()), ENOENT);
}

// A file's name may hold any bytes; status is JSON, which may not.
TEST_F(NodeTest, StatusStandsNamesThatAreNoUtf8) {
  auto a = host("host1");
  ASSERT_TRUE(a->create("caf\xe9.img"));
  EXPECT_NE(node_->status_json().find("/caf"), std::string::npos);
}

TEST_F(NodeTest, AfterTheCatalogueFailedItStopsAtOnce) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  restart_node(sim::Crash::kKill);   // the next write is cold: it waits for a commit
  ASSERT_TRUE(a->connect(port_, cluster_));
  world_.fail_next_commit("shared", Status::from_errno(EIO, "disk"));
  a->send_write(held.image, held.epoch, 0, Bytes(4096, 1), [](Result<wire::Applied>) {});
  a->run([&] { return !node_->unhealthy_reasons().empty(); });
  bool stopped = false;
  node_->stop([&] { stopped = true; });
  EXPECT_TRUE(world_.run_until([&] { return stopped; }, std::chrono::seconds(5)));
}

// Its report is longer than a frame: the host is told so, and the node goes on serving all of them.
TEST_F(NodeTest, ATakeoverWhoseReportFitsNoFrameIsAnsweredAllTheSame) {
  auto a = host("host1"), b = host("host2");
  InodeNumber parent(1);
  for (int depth = 0; depth < 12; ++depth) {
    auto made = a->create(std::string(250, 'd'), parent, wire::NodeKind::kDirectory);
    ASSERT_TRUE(made) << made.status().message();
    parent = made->inode;
  }
  for (int i = 0; i < 400; ++i) {
    auto made = a->create("disk" + std::to_string(i), parent);
    ASSERT_TRUE(made) << made.status().message();
    ASSERT_TRUE(a->acquire(made->image));
  }
  a->link.reset();
  world_.run_for(std::chrono::seconds(1));
  for (const char* word : {R"({"host":"host1","dry_run":true})", R"({"host":"host1","force":true})"}) {
    auto answer = b->ask<wire::TakeoverAnswer>(wire::Type::kTakeover, wire::Takeover{word});
    EXPECT_EQ(answer.status().code(), Code::kUnsupported) << answer.status().message();
    EXPECT_FALSE(b->closed) << b->closed->message();
  }
  auto one = b->ask<wire::TakeoverAnswer>(wire::Type::kTakeover,
                                          wire::Takeover{R"({"host":"host2","dry_run":true})"});
  EXPECT_TRUE(one || one.status().code() != Code::kUnavailable) << one.status().message();
  EXPECT_TRUE(b->lookup(std::string(250, 'd')));
}

}  // namespace
}  // namespace tidemark::node
