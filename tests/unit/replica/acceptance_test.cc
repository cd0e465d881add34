// What the replica takes, refuses and holds, request by request.
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kImage = test_uuid(1), kOther = test_uuid(2);

SliceSpec slice(const Uuid& image, uint64_t seed, uint64_t offset = 0) {
  return {.image = image, .pieces = {{offset, pattern(seed, 8192)}}};
}

class Acceptance : public ::testing::Test {
 protected:
  BatchMaker::Made first() { return host1.make({slice(kImage, 1)}, {create_mark(1, "host1", 2, kImage, "a.img")}); }
  Json status() { return h.get("/v1/status").json(); }
  bool has_alarm(const std::string& kind) {
    const Json s = status();
    for (const auto& a : s["alarms"]) {
      if (a["kind"] == kind) return true;
    }
    return false;
  }
  void expect_nothing_kept(const Uuid& generation) {
    auto answer =
        h.ask({.method = "GET", .target = "/v1/sources/host1/" + generation.to_string()}, "host1", net::Role::kHost);
    EXPECT_EQ(answer.json()["expected"], 1);
    EXPECT_EQ(answer.json()["parts"].size(), 0u);
    EXPECT_EQ(status()["points"], 0);
    auto left = h.env->files().list("/state/incoming");
    ASSERT_TRUE(left.is_ok());
    EXPECT_TRUE(left->empty());
  }

  Harness h;
  BatchMaker host1{"host1"}, host2{"host2"};
};

TEST_F(Acceptance, AppliesAtOnceWhatNothingHolds) {
  auto made = first();
  auto answer = h.put(host1, made);
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json(), Json::parse(R"({"durable":true,"complete":true,"applied":true,"point":1,"waits_for":[]})"));
  EXPECT_EQ(h.data("1", kImage, "bytes=0-8191"), std::string(as_text(pattern(1, 8192))));
  auto source = h.ask({.method = "GET", .target = "/v1/sources/host1/" + host1.generation().to_string()}, "host1",
                      net::Role::kHost)
                    .json();
  EXPECT_EQ(source["expected"], 2);
  EXPECT_EQ(source["applied"], 1);
  EXPECT_EQ(source["last_digest"], to_hex(host1.previous()));
}

// Told before, a power cut would make a replica that has gone back of one that never had it. Told that it is not there,
// a source that gave up waiting would send another one in its place.
TEST_F(Acceptance, ASourceIsToldOfABatchOnceItIsDurable) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto known = [&] {
    return h.ask({.method = "GET", .target = "/v1/sources/host1/" + host1.generation().to_string()}, "host1",
                 net::Role::kHost);
  };
  h.world.set_store_fault("replica", sim::StoreFault{.delay = std::chrono::seconds(1)});
  auto made = host1.make({slice(kImage, 2)});
  net::HttpRequest put{.method = "PUT", .target = "/v1/batches/host1/" + host1.generation().to_string() + "/2/0"};
  put.headers["x-tidemark-digest"] = to_hex(journal::sha256(made.parts[0]));
  put.body = made.parts[0];
  put.peer = {kTestCluster, net::Role::kHost, "host1"};
  int status = 0;
  h.replica->handle(std::move(put), [&](net::HttpResponse r) { status = r.status; });
  h.world.run_for(std::chrono::milliseconds(500));
  ASSERT_EQ(status, 0) << "its commit is under way";
  EXPECT_EQ(known().status, 503);
  ASSERT_TRUE(h.world.run_until([&] { return status != 0; }, std::chrono::seconds(10)));
  EXPECT_EQ(status, 200);
  EXPECT_EQ(known().json()["expected"], 3);
}

TEST_F(Acceptance, RepeatedPartIsAnsweredAsBefore) {
  auto made = first();
  const auto before = h.put(host1, made);
  EXPECT_EQ(h.put(host1, made).body, before.body);
  h.restart();
  EXPECT_EQ(h.put(host1, made).body, before.body);
  EXPECT_EQ(status()["points"], 1);
}

TEST_F(Acceptance, SameNumberWithOtherBytesIsAConflictAndAnAlarm) {
  auto made = first();
  ASSERT_EQ(h.put(host1, made).status, 200);
  BatchMaker again("host1");
  auto other = again.make({slice(kImage, 2)}, {create_mark(1, "host1", 2, kImage, "a.img")});
  auto answer = h.put(again, other);
  EXPECT_EQ(answer.status, 409);
  EXPECT_EQ(answer.json()["error"], "conflict");
  EXPECT_EQ(answer.json()["have"], to_hex(journal::sha256(made.parts[0])));
  EXPECT_EQ(answer.json()["got"], to_hex(journal::sha256(other.parts[0])));
  EXPECT_TRUE(has_alarm("conflict"));
  EXPECT_EQ(h.data("1", kImage, "bytes=0-8191"), std::string(as_text(pattern(1, 8192))));
  h.restart();
  EXPECT_TRUE(has_alarm("conflict"));
}

TEST_F(Acceptance, DamagedRepetitionIsAConflictToo) {
  auto made = first();
  ASSERT_EQ(h.put(host1, made).status, 200);
  Bytes damaged = made.parts[0];
  damaged.back() ^= 1;
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0, damaged).json()["error"], "conflict");
}

TEST_F(Acceptance, OutOfOrderNamesTheExpectedNumber) {
  first();
  auto second = host1.make({slice(kImage, 3)});
  auto answer = h.put(host1, second);
  EXPECT_EQ(answer.status, 409);
  EXPECT_EQ(answer.json()["error"], "out_of_order");
  EXPECT_EQ(answer.json()["expected"], 1);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, EveryDamagedByteClassIsRefusedAndNothingKept) {
  auto made = first();
  const Bytes& good = made.parts[0];
  const uint64_t prefix = journal::SegmentReader::parse_whole(good)->prefix_bytes();
  // Preamble: magic, version, lengths, checksums; head; chunks; and every truncation at a border.
  for (uint64_t at :
       {uint64_t{0}, uint64_t{8}, uint64_t{10}, uint64_t{12}, uint64_t{16}, uint64_t{24}, uint64_t{32}, uint64_t{40},
        uint64_t{48}, uint64_t{56}, uint64_t{64}, uint64_t{100}, prefix - 1, prefix, good.size() - 1}) {
    Bytes bad = good;
    bad[at] ^= 0x5A;
    auto answer = h.put_bytes("host1", host1.generation(), 1, 0, bad);
    EXPECT_EQ(answer.status, 422) << "byte " << at;
    EXPECT_FALSE(answer.json()["reason"].get<std::string>().empty());
  }
  for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{64}, prefix - 1, prefix, good.size() - 1}) {
    EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0,
                          Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(length)))
                  .status,
              422)
        << length;
  }
  Bytes longer = good;
  longer.push_back(0);
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0, longer).status, 422);
  expect_nothing_kept(host1.generation());
  EXPECT_EQ(h.put(host1, made).status, 200);
}

TEST_F(Acceptance, TruncatedBodyDoesNotMatchItsDigest) {
  auto made = first();
  Bytes half(made.parts[0].begin(), made.parts[0].begin() + 100);
  auto answer =
      h.put_bytes("host1", host1.generation(), 1, 0, half, net::Role::kHost, to_hex(journal::sha256(made.parts[0])));
  EXPECT_EQ(answer.status, 422);
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0, half, net::Role::kHost, "00").status, 400);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, PathAndPartMustAgree) {
  auto made = first();
  EXPECT_EQ(h.put_bytes("host2", host1.generation(), 1, 0, made.parts[0]).status, 422);
  EXPECT_EQ(h.put_bytes("host1", test_uuid(9), 1, 0, made.parts[0]).status, 422);
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 2, 0, made.parts[0]).status, 409);
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 1, made.parts[0]).status, 422);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, SourceMustBeTheCertificatesNameAndRole) {
  auto made = first();
  net::HttpRequest request{.method = "PUT", .target = "/v1/batches/host1/" + host1.generation().to_string() + "/1/0"};
  request.headers["x-tidemark-digest"] = to_hex(journal::sha256(made.parts[0]));
  request.body = made.parts[0];
  EXPECT_EQ(h.ask(request, "host2", net::Role::kHost).status, 403);
  EXPECT_EQ(h.ask(request, "host1", net::Role::kOperator).status, 403);
  EXPECT_EQ(h.ask({.method = "GET", .target = "/v1/status"}, "w", net::Role::kWitness).status, 403);
  EXPECT_EQ(h.ask({.method = "GET", .target = "/v1/sources/host1/" + host1.generation().to_string()}, "host2",
                  net::Role::kHost)
                .status,
            403);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, WrongPreviousDigestIsRefused) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  host1.set_chain(BatchNumber(2), journal::sha256(as_bytes("another past")));
  auto answer = h.put(host1, host1.make({slice(kImage, 3)}));
  EXPECT_EQ(answer.status, 422);
  EXPECT_NE(answer.json()["reason"].get<std::string>().find("previous digest"), std::string::npos);
}

TEST_F(Acceptance, ImageWithoutAMarkInItsOwnStreamIsRefused) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto answer = h.put(host2, host2.make({slice(kImage, 4)}));   // created by host1, not opened by host2
  EXPECT_EQ(answer.status, 422);
  EXPECT_NE(answer.json()["reason"].get<std::string>().find(kImage.to_string()), std::string::npos);
  EXPECT_EQ(status()["points"], 1);
}

TEST_F(Acceptance, MarkedButNotYetCreatedIsHeldAndShown) {
  auto held = host2.make({slice(kImage, 4)}, {open_mark("host2", 2, kImage)});
  auto answer = h.put(host2, held);
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json()["complete"], true);
  EXPECT_EQ(answer.json()["applied"], false);
  ASSERT_EQ(answer.json()["waits_for"].size(), 1u);
  EXPECT_NE(answer.json()["waits_for"][0].get<std::string>().find(kImage.to_string()), std::string::npos);
  auto behind = host2.make({}, {});
  EXPECT_EQ(h.put(host2, behind).json()["waits_for"][0], "batch 1 of the same source");
  h.restart();
  Json s = status();
  EXPECT_EQ(s["held_batches"], 2);
  EXPECT_EQ(s["sources"][0]["held"][0]["batch"], 1);
  EXPECT_EQ(s["points"], 0);
  // The create arrives with host1: everything follows.
  auto created = h.put(host1, host1.make({}, {create_mark(1, "host1", 2, kImage, "a.img")}));
  EXPECT_EQ(created.json()["applied"], true);
  s = status();
  EXPECT_EQ(s["held_batches"], 0);
  EXPECT_EQ(s["points"], 3);
  EXPECT_EQ(h.put(host2, held).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kImage, "bytes=0-8191"), std::string(as_text(pattern(4, 8192))));
}

TEST_F(Acceptance, WaitsForTheParentsWrites) {
  auto a1 = host1.make({slice(kImage, 1)}, {create_mark(1, "host1", 2, kImage, "a.img")});
  auto a2 = host1.make({slice(kImage, 2)});
  SliceSpec taken = slice(kImage, 3);
  taken.epoch = Epoch(2);
  taken.parent = {.epoch = Epoch(1), .source = "host1", .last = a2.last};
  auto b1 = host2.make({taken}, {open_mark("host2", 2, kImage)});
  EXPECT_EQ(h.put(host2, b1).json()["applied"], false);
  ASSERT_EQ(h.put(host1, a1).status, 200);
  EXPECT_EQ(h.put(host2, b1).json()["applied"], false);
  ASSERT_EQ(h.put(host1, a2).status, 200);
  EXPECT_EQ(h.put(host2, b1).json()["applied"], true);
  EXPECT_EQ(h.put(host2, b1).json()["point"], 3);
  EXPECT_EQ(h.data("2", kImage, "bytes=0-8191"), std::string(as_text(pattern(2, 8192))));
  EXPECT_EQ(h.data("3", kImage, "bytes=0-8191"), std::string(as_text(pattern(3, 8192))));
}

TEST_F(Acceptance, OlderEpochGoesToABranchAndAnAlarm) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  SliceSpec taken = slice(kImage, 3);
  taken.epoch = Epoch(2);
  ASSERT_EQ(h.put(host2, host2.make({taken}, {open_mark("host2", 2, kImage)})).status, 200);
  auto late = host1.make({slice(kImage, 5), slice(kOther, 6)}, {create_mark(2, "host1", 3, kOther, "b.img")});
  auto answer = h.put(host1, late);
  EXPECT_EQ(answer.json()["applied"], true);
  EXPECT_EQ(h.data("latest", kImage, "bytes=0-8191"), std::string(as_text(pattern(3, 8192))));
  EXPECT_EQ(h.data("latest", kOther, "bytes=0-8191"), std::string(as_text(pattern(6, 8192))));
  EXPECT_TRUE(has_alarm("branch"));
  EXPECT_EQ(status()["branches"][0]["image"], kImage.to_string());
}

TEST_F(Acceptance, PartsInAnyOrderMakeOneBatch) {
  SliceSpec s{.image = kImage,
              .pieces = {{0, pattern(1, 4096)}, {65536, pattern(2, 8192)}, {131072, pattern(3, 4096)}}};
  auto made = host1.make({s}, {create_mark(1, "host1", 2, kImage, "a.img")}, "", 3);
  EXPECT_EQ(h.put(host1, made, 2).json()["complete"], false);
  EXPECT_EQ(h.put(host1, made, 0).json()["complete"], false);
  h.restart();
  auto source = h.ask({.method = "GET", .target = "/v1/sources/host1/" + host1.generation().to_string()}, "host1",
                      net::Role::kHost)
                    .json();
  EXPECT_EQ(source["parts"], Json::parse("[0,2]"));
  EXPECT_EQ(h.put(host1, made, 1).json()["applied"], true);
  EXPECT_EQ(h.data("latest", kImage, "bytes=65536-73727"), std::string(as_text(pattern(2, 8192))));
  EXPECT_EQ(h.data("latest", kImage, "bytes=131072-135167"), std::string(as_text(pattern(3, 4096))));
  EXPECT_EQ(h.put(host1, host1.make({slice(kImage, 9)})).json()["applied"], true);
}

TEST_F(Acceptance, UnboundBatchInPartsLeavesNothing) {
  SliceSpec s{.image = kImage, .pieces = {{0, pattern(1, 4096)}, {65536, pattern(2, 8192)}}};
  auto made = host1.make({s}, {}, "", 2);
  EXPECT_EQ(h.put(host1, made, 0).status, 200);
  EXPECT_EQ(h.put(host1, made, 1).status, 422);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, ResyncSupersedesMissingNumbers) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  const Sha256 previous = host1.previous();
  host1.restart();
  host1.set_chain(BatchNumber(4), previous);
  host1.kind = journal::BatchKind::kResync;
  host1.supersedes_first = BatchNumber(2);
  host1.supersedes_last = BatchNumber(3);
  auto resync = host1.make({slice(kImage, 7)});
  EXPECT_EQ(resync.number.value, 4u);
  auto answer = h.put(host1, resync);
  EXPECT_EQ(answer.json()["applied"], true) << answer.body;
  EXPECT_EQ(h.put(host1, host1.make({slice(kImage, 8)})).json()["applied"], true);
  EXPECT_EQ(h.get("/v1/points").json()["points"][1]["kind"], "resync");
}

TEST_F(Acceptance, KnownIncarnationWithAnotherNonceIsRefused) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  host1.nonce = test_uuid(77, 0x0E);
  EXPECT_EQ(h.put(host1, host1.make({slice(kImage, 2)})).status, 422);
}

TEST_F(Acceptance, NewGenerationFollowsAndTheOldOneIsOver) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto late = host1.make({slice(kImage, 2)});
  BatchMaker again("host1", 2);
  again.restart();
  EXPECT_EQ(h.put(again, again.make({slice(kImage, 3)})).json()["applied"], true);
  auto answer = h.put(host1, late);
  EXPECT_EQ(answer.status, 409);
  EXPECT_EQ(answer.json()["error"], "old_generation");
  EXPECT_TRUE(has_alarm("old_generation"));
}

// A clock that stands still or was set back: the journal made anew counts from where the lost one did, or from before.
TEST_F(Acceptance, TheSharedNodesNewJournalMayCountFromAnywhere) {
  BatchMaker lost("shared1"), same("shared1", 2), before("shared1", 3);
  lost.incarnation = same.incarnation = Incarnation(50);
  before.incarnation = Incarnation(3);
  same.nonce = test_uuid(51, 0x0E);
  auto made = lost.make({}, {create_mark(1, "host1", 2, kImage, "a.img")});
  ASSERT_EQ(h.put(lost, made, 0, net::Role::kShared).status, 200);
  for (BatchMaker* anew : {&same, &before}) {
    auto answer = h.put(*anew, anew->make({}, {open_mark("host1", 2, kImage)}), 0, net::Role::kShared);
    EXPECT_EQ(answer.json()["applied"], true) << answer.body;
  }
  auto late = h.put(lost, lost.make({}, {open_mark("host1", 2, kImage)}), 0, net::Role::kShared);
  EXPECT_EQ(late.json()["error"], "old_generation");
}

// Others wait for its writes by their numbers.
TEST_F(Acceptance, AHostsNewJournalMustCountOnFromTheLostOne) {
  host1.incarnation = Incarnation(50);
  ASSERT_EQ(h.put(host1, first()).status, 200);
  for (uint64_t number : {50, 3}) {
    BatchMaker anew("host1", 2);
    anew.incarnation = Incarnation(number);
    anew.nonce = test_uuid(51, 0x0E);
    auto answer = h.put(anew, anew.make({slice(kImage, 3)}));
    EXPECT_EQ(answer.status, 422);
    EXPECT_NE(answer.body.find("tidemark state reset"), std::string::npos) << answer.body;
  }
  BatchMaker anew("host1", 2);
  anew.incarnation = Incarnation(51);
  EXPECT_EQ(h.put(anew, anew.make({slice(kImage, 3)})).json()["applied"], true);
}

TEST_F(Acceptance, AnotherClustersBatchIsRefused) {
  auto made = first();
  auto head = journal::SegmentReader::parse_whole(made.parts[0])->head();
  head.batch.cluster = test_uuid(5);
  auto bytes = journal::write_segment(head, pattern(1, 8192));
  ASSERT_TRUE(bytes.is_ok());
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0, *bytes).status, 422);
}

TEST_F(Acceptance, FullStoreRefusesAndGoesOnAfterwards) {
  auto made = first();
  h.world.fail_next_commit("replica", Status(Code::kOutOfSpace, "full"));
  EXPECT_EQ(h.put(host1, made).status, 507);
  expect_nothing_kept(host1.generation());
  ASSERT_EQ(h.replica->health().size(), 1u) << "a source waits";
  EXPECT_NE(h.replica->health()[0].find("refused"), std::string::npos) << h.replica->health()[0];
  EXPECT_EQ(h.put(host1, made).json()["applied"], true);
  EXPECT_TRUE(h.replica->health().empty()) << h.replica->health()[0];
}

TEST_F(Acceptance, FailedStoreRefusesAndIsUnhealthy) {
  auto made = first();
  h.world.fail_next_commit("replica", Status::from_errno(5, "commit"));
  EXPECT_EQ(h.put(host1, made).status, 503);
  EXPECT_EQ(h.put(host1, made).status, 503);
  EXPECT_FALSE(h.replica->health().empty());
}

TEST_F(Acceptance, FullStoreAtTheLastPartDoesNotCallItDurable) {
  auto made = host1.make({{.image = kImage, .pieces = {{0, pattern(1, 8192)}, {65536, pattern(2, 8192)}}}},
                         {create_mark(1, "host1", 2, kImage, "a.img")}, {}, 2);
  ASSERT_EQ(h.put(host1, made, 0).status, 200);
  h.world.fail_next_commit("replica", Status(Code::kOutOfSpace, "full"));
  auto answer = h.put(host1, made, 1);
  EXPECT_EQ(answer.status, 507) << answer.body;
  auto source = h.ask({.method = "GET", .target = "/v1/sources/host1/" + host1.generation().to_string()}, "host1",
                      net::Role::kHost);
  EXPECT_EQ(source.json()["parts"], Json::parse("[0]"));
  EXPECT_EQ(h.put(host1, made, 1).json()["applied"], true);
}

// The bound on held batches must not refuse the one batch that would let them go.
TEST_F(Acceptance, TheBatchThatHeldOnesWaitForIsTakenAtTheBound) {
  h.held_batches_max = 2;
  h.restart();
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto wanted = host1.make({slice(kImage, 2)});
  SliceSpec later = slice(kImage, 3);
  later.epoch = Epoch(2);
  later.parent = {.epoch = Epoch(1), .source = "host1", .last = wanted.last};
  EXPECT_EQ(h.put(host2, host2.make({later}, {open_mark("host2", 2, kImage)})).json()["applied"], false);
  EXPECT_EQ(h.put(host2, host2.make({later})).json()["applied"], false);
  auto third = host2.make({later});
  auto refused = h.put(host2, third);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.json()["error"], "held");
  EXPECT_EQ(h.put(host1, wanted).json()["applied"], true);
  EXPECT_EQ(h.put(host2, third).json()["applied"], true);
  EXPECT_EQ(status()["held_batches"], 0);
}

// What a batch's commit is still making durable is not there for readers; what was there before is.
TEST_F(Acceptance, LatestIsAnsweredWhileABatchIsBeingCommitted) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto made = host1.make({slice(kImage, 2)});
  net::HttpRequest put{.method = "PUT", .target = "/v1/batches/host1/" + host1.generation().to_string() + "/2/0"};
  put.headers["x-tidemark-digest"] = to_hex(journal::sha256(made.parts[0]));
  put.body = made.parts[0];
  put.peer = {kTestCluster, net::Role::kHost, "host1"};
  bool answered = false;
  h.replica->handle(std::move(put), [&](net::HttpResponse) { answered = true; });
  int asked = 0;
  while (!answered) {
    ASSERT_TRUE(h.world.step());
    net::HttpRequest get{.method = "GET", .target = "/v1/points/latest"};
    get.peer = {kTestCluster, net::Role::kOperator, "op"};
    h.replica->handle(std::move(get), [&](net::HttpResponse r) {
      ++asked;
      EXPECT_EQ(r.status, 200) << as_text(r.body);
    });
  }
  EXPECT_GT(asked, 3);
  EXPECT_EQ(h.get("/v1/points/latest").json()["id"], 2);
}

// Names of marks become paths at whoever restores a tree.
TEST_F(Acceptance, NamesThatAreNoNamesAreRefused) {
  for (const std::string name : {"../etc", "a/b", "/", ".", "..", ""}) {
    BatchMaker maker("host1");
    auto made = maker.make({slice(kImage, 1)}, {create_mark(1, "host1", 2, kImage, name)});
    EXPECT_EQ(h.put(maker, made).status, 422) << name;
  }
  expect_nothing_kept(host1.generation());
}

// They become keys of the store: one that it cannot take would stop it for all sources.
TEST_F(Acceptance, OriginsThatAreNoNamesAreRefused) {
  const BatchMaker::Made good = first();
  for (const std::string& node : {std::string(600, 'x'), std::string("host1\0x", 7)}) {
    BatchMaker shared("shared1");
    auto made = shared.make({}, {create_mark(1, node, 2, kImage, "a.img")});
    EXPECT_EQ(h.put(shared, made, 0, net::Role::kShared).status, 422);
  }
  EXPECT_EQ(h.put(host1, good).json()["applied"], true);
}

// A checksum over bytes that do not decompress: to accept them would be to lose what they were.
TEST_F(Acceptance, AChunkThatDoesNotDecompressIsRefused) {
  auto made = first();
  auto head = journal::SegmentReader::parse_whole(made.parts[0])->head();
  journal::SegmentWriter writer(head);
  journal::StoredChunk chunk{.stored = pattern(5, 512), .raw_bytes = 8192};
  chunk.checksum = digest64(chunk.stored);
  writer.add_chunk(chunk);
  auto bytes = writer.finish();
  ASSERT_TRUE(bytes.is_ok()) << bytes.status().to_string();
  bytes->insert(bytes->end(), chunk.stored.begin(), chunk.stored.end());
  EXPECT_EQ(h.put_bytes("host1", host1.generation(), 1, 0, *bytes).status, 422);
  expect_nothing_kept(host1.generation());
}

TEST_F(Acceptance, AHeldBatchSaysSinceWhenAndBecomesAnAlarm) {
  ASSERT_EQ(h.put(host1, first()).status, 200);
  auto wanted = host1.make({slice(kImage, 2)});
  SliceSpec later = slice(kImage, 3);
  later.epoch = Epoch(2);
  later.parent = {.epoch = Epoch(1), .source = "host1", .last = wanted.last};
  ASSERT_EQ(h.put(host2, host2.make({later}, {open_mark("host2", 2, kImage)})).json()["applied"], false);
  const Json held = status()["sources"][1]["held"][0];
  EXPECT_EQ(held["batch"], 1);
  EXPECT_TRUE(held["since"].is_string()) << held.dump();
  EXPECT_EQ(held["waits_for"].size(), 1u);
  EXPECT_TRUE(h.replica->health().empty());
  h.restart();
  EXPECT_EQ(status()["sources"][1]["held"][0], held);
  h.world.run_for(std::chrono::minutes(14));
  EXPECT_TRUE(h.replica->health().empty());
  EXPECT_FALSE(has_alarm("held_too_long"));
  h.world.run_for(std::chrono::minutes(2));
  ASSERT_EQ(h.replica->health().size(), 1u);
  EXPECT_NE(h.replica->health()[0].find("host1 through write"), std::string::npos) << h.replica->health()[0];
  EXPECT_TRUE(has_alarm("held_too_long"));
  EXPECT_EQ(h.put(host1, wanted).json()["applied"], true);
  h.world.run_until([&] { return h.replica->intake().idle(); }, std::chrono::seconds(10));
  EXPECT_TRUE(h.replica->health().empty());
}

}  // namespace
}  // namespace tidemark::replica
