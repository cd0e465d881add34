// Names, trees, points and bytes as readers see them.
#include <algorithm>
#include <random>

#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kA = test_uuid(1), kB = test_uuid(2), kC = test_uuid(3);

std::map<std::string, std::string> tree(Harness& h, const std::string& point) {
  std::map<std::string, std::string> out;
  const Json answer = h.get("/v1/points/" + point + "/tree").json();
  for (const auto& e : answer["entries"]) {
    if (e["path"].is_null()) out["(" + e["uuid"].get<std::string>() + ")"] = "nameless";
    else out[e["path"]] = e["uuid"].is_null() ? e["kind"].get<std::string>() : e["uuid"].get<std::string>();
  }
  return out;
}
using Names = std::map<std::string, std::string>;

TEST(Names, EveryPointShowsItsOwnTreeAndRemovedImagesStayReachable) {
  Harness h;
  BatchMaker host("host1");
  h.put(host, host.make({{.image = kA, .pieces = {{0, pattern(1, 4096)}}}},
                        {create_mark(1, "host1", 2, kA, "a.img"),
                         create_mark(2, "host1", 3, {}, "dir", 1, wire::NodeKind::kDirectory)}));
  h.put(host, host.make({}, {rename_mark(3, "host1", 2, kA, "a.img", "moved.img", 1, 3)}));
  h.put(host, host.make({{.image = kB, .pieces = {{0, pattern(2, 4096)}}}},
                        {create_mark(4, "host1", 4, kB, "moved.img.new", 3)}));
  auto over = rename_mark(5, "host1", 4, kB, "moved.img.new", "moved.img", 3, 3);
  over.replaced = kA;
  over.replaced_inode = InodeNumber(2);
  h.put(host, host.make({}, {over}));
  h.put(host, host.make({}, {unlink_mark(6, "host1", 4, kB, "moved.img", 3)}));
  h.restart();
  EXPECT_EQ(tree(h, "1"), (Names{{"a.img", kA.to_string()}, {"dir", "directory"}}));
  EXPECT_EQ(tree(h, "2"), (Names{{"dir", "directory"}, {"dir/moved.img", kA.to_string()}}));
  EXPECT_EQ(tree(h, "4"),
            (Names{{"dir", "directory"}, {"dir/moved.img", kB.to_string()}, {"(" + kA.to_string() + ")", "nameless"}}));
  EXPECT_EQ(tree(h, "5").size(), 3u);
  const Json nameless = h.get("/v1/points/4/tree").json()["entries"].back();
  EXPECT_TRUE(nameless["mode"].is_null() && nameless["uid"].is_null() && nameless["gid"].is_null()) << nameless;
  EXPECT_EQ(h.data("5", kA, "bytes=0-4095"), std::string(as_text(pattern(1, 4096))));
  EXPECT_EQ(h.data("5", kB, "bytes=0-4095"), std::string(as_text(pattern(2, 4096))));
  EXPECT_EQ(h.get("/v1/points/1/images/" + kB.to_string()).status, 404);
}

TEST(Names, ATreeNamesFifosSocketsAndDevices) {
  Harness h;
  BatchMaker host("host1");
  auto device = create_mark(3, "host1", 4, {}, "disk", 1, wire::NodeKind::kBlockDevice);
  device.node.target = "8:1";
  auto newer = create_mark(5, "host1", 6, {}, "newer", 1, static_cast<wire::NodeKind>(9));   // of a version to come
  h.put(host, host.make({}, {create_mark(1, "host1", 2, {}, "fifo", 1, wire::NodeKind::kFifo),
                             create_mark(2, "host1", 3, {}, "sock", 1, wire::NodeKind::kSocket), device,
                             create_mark(4, "host1", 5, {}, "tty", 1, wire::NodeKind::kCharDevice), newer}));
  h.put(host, host.make({}, {unlink_mark(6, "host1", 3, {}, "sock")}));
  h.restart();
  EXPECT_EQ(tree(h, "1"), (Names{{"fifo", "fifo"}, {"sock", "socket"}, {"disk", "block_device"}, {"tty", "char_device"},
                                 {"newer", "unknown"}}));
  EXPECT_EQ(tree(h, "2").count("sock"), 0u);
  const Json entries = h.get("/v1/points/2/tree").json()["entries"];
  for (const auto& e : entries)
    EXPECT_EQ(e["target"], e["path"] == "disk" ? Json("8:1") : Json(nullptr)) << e["path"];
}

TEST(Names, LastWriterByEventNumberWhateverArrivesFirst) {
  // host1 renames a to b (event 3), host2 then makes a new a (event 4), host1 then removes b (event 5).
  for (int order = 0; order < 2; ++order) {
    Harness h;
    BatchMaker host1("host1"), host2("host2");
    h.put(host1, host1.make({}, {create_mark(1, "host1", 2, kA, "a")}));
    auto rename = host1.make({}, {rename_mark(3, "host1", 2, kA, "a", "b"), unlink_mark(5, "host1", 2, kA, "b")});
    auto create = host2.make({}, {create_mark(4, "host2", 3, kB, "a")});
    if (order == 0) { h.put(host1, rename); h.put(host2, create); }
    else { h.put(host2, create); h.put(host1, rename); }
    EXPECT_EQ(tree(h, "latest"), (Names{{"a", kB.to_string()}, {"(" + kA.to_string() + ")", "nameless"}}));
  }
}

TEST(Names, SharedNodesRecordGivesExistenceAndCorroborates) {
  Harness h;
  BatchMaker host1("host1"), host2("host2"), shared("shared");
  auto create = create_mark(1, "host1", 2, kA, "a.img");
  ASSERT_EQ(h.put(shared, shared.make({}, {create}), 0, net::Role::kShared).status, 200);
  EXPECT_EQ(tree(h, "latest"), Names{});   // visible in the host's own batch only
  // It exists: another host's writes need not wait for the creator's batch.
  EXPECT_EQ(h.put(host2, host2.make({{.image = kA, .pieces = {{0, pattern(1, 4096)}}}}, {open_mark("host2", 2, kA)}))
                .json()["applied"],
            true);
  // The creator may have died before it shipped: what was written since is not left without a name.
  EXPECT_EQ(tree(h, "latest"), (Names{{"a.img", kA.to_string()}}));
  h.restart();
  h.put(host1, host1.make({}, {create}));
  EXPECT_EQ(tree(h, "latest"), (Names{{"a.img", kA.to_string()}}));
  EXPECT_EQ(h.get("/v1/status").json()["alarms"].size(), 0u);
  // The two records of one event differ: told, and the first one stays.
  auto other = create_mark(2, "host1", 3, kB, "b.img");
  h.put(host1, host1.make({}, {other}));
  other.name = "c.img";
  h.put(shared, shared.make({}, {other}), 0, net::Role::kShared);
  EXPECT_EQ(h.get("/v1/status").json()["alarms"][0]["kind"], "event_mismatch");
  EXPECT_EQ(tree(h, "latest").count("b.img"), 1u);
}

wire::Mark session_mark(const std::string& origin, uint64_t event) {
  wire::Mark m;
  m.kind = wire::MarkKind::kSession;
  m.origin = origin;
  m.node.event = EventNumber(event);
  return m;
}

TEST(Names, WhatADeadHostNeverToldComesFromTheSharedNode) {
  // host1 dies with events 3 to 6 untold: a became b, dead went, b became c, new came. It comes back and goes on.
  const std::vector<wire::Mark> lost = {
      rename_mark(3, "host1", 2, kA, "a", "b"), unlink_mark(4, "host1", 3, kB, "dead"),
      rename_mark(5, "host1", 2, kA, "b", "c"), create_mark(6, "host1", 4, kC, "new")};
  for (int order = 0; order < 3; ++order) {
    Harness h;
    BatchMaker host1("host1"), host2("host2"), shared("shared");
    h.put(host1, host1.make({{.image = kA, .pieces = {{0, pattern(1, 4096)}}}},
                            {create_mark(1, "host1", 2, kA, "a"), create_mark(2, "host1", 3, kB, "dead")}));
    auto told = shared.make({}, lost);
    const auto later = create_mark(7, "host1", 5, {}, "later", 1, wire::NodeKind::kDirectory);
    if (order == 0) {
      ASSERT_EQ(h.put(shared, told, 0, net::Role::kShared).status, 200);
      EXPECT_TRUE(tree(h, "latest").contains("a"));   // its own records may still come
      // Another host's session says nothing of host1's events.
      ASSERT_EQ(h.put(host2, host2.make({}, {session_mark("host2", 6)})).status, 200);
      EXPECT_TRUE(tree(h, "latest").contains("a"));
      h.restart();
      ASSERT_EQ(h.put(host1, host1.make({}, {session_mark("host1", 6), later})).status, 200);
    } else if (order == 1) {
      ASSERT_EQ(h.put(host1, host1.make({}, {session_mark("host1", 6), later})).status, 200);
      h.restart();
      ASSERT_EQ(h.put(shared, told, 0, net::Role::kShared).status, 200);
    } else {
      // Event 3 was durable after all and is not applied twice.
      ASSERT_EQ(h.put(shared, told, 0, net::Role::kShared).status, 200);
      ASSERT_EQ(h.put(host1, host1.make({}, {lost[0]})).status, 200);
      EXPECT_TRUE(tree(h, "latest").contains("b"));
      ASSERT_EQ(h.put(host1, host1.make({}, {session_mark("host1", 6), later})).status, 200);
    }
    const Names now = {{"(" + kB.to_string() + ")", "nameless"}, {"c", kA.to_string()}, {"later", "directory"},
                       {"new", kC.to_string()}};
    EXPECT_EQ(tree(h, "latest"), now) << "order " << order;
    EXPECT_EQ(h.get("/v1/points/latest/images/" + kC.to_string()).status, 200) << "order " << order;
    EXPECT_EQ(h.get("/v1/status").json()["alarms"].size(), 0u);
  }
}

TEST(Names, TenureMarksAreAboutTheImageAlone) {
  Harness h;
  BatchMaker host1("host1"), shared("shared");
  auto start = open_mark("host1", 2, kA);
  start.kind = wire::MarkKind::kTenureStart;
  start.number = EventNumber(7);
  start.epoch = Epoch(3);
  start.parent = {.epoch = Epoch(2), .source = "host2", .last = {Incarnation(1), Counter(9)}};
  ASSERT_EQ(h.put(host1, host1.make({}, {start})).status, 200);
  start.name = "known by this name at the shared node";
  start.node.parent = InodeNumber(5);
  ASSERT_EQ(h.put(shared, shared.make({}, {start}), 0, net::Role::kShared).status, 200);
  EXPECT_EQ(h.get("/v1/status").json()["alarms"].size(), 0u);
  start.number = EventNumber(8);
  ASSERT_EQ(h.put(host1, host1.make({}, {start})).status, 200);
  start.epoch = Epoch(4);
  ASSERT_EQ(h.put(shared, shared.make({}, {start}), 0, net::Role::kShared).status, 200);
  EXPECT_EQ(h.get("/v1/status").json()["alarms"][0]["kind"], "event_mismatch");
}

// As a resync of the shared node ends: it has told all names that there were at event `upto`.
wire::Mark told_all_mark(uint64_t number, uint64_t upto) {
  wire::Mark m = session_mark("shared", upto);
  m.number = EventNumber(number);
  return m;
}

TEST(Names, OfWhatIsGoneNothingComesBackAfterAllNamesWereTold) {
  const auto vms = create_mark(2, "host1", 3, {}, "vms", 1, wire::NodeKind::kDirectory);
  const auto prod = create_mark(61, "shared", 3, {}, "prod", 1, wire::NodeKind::kDirectory);
  const auto b_img = create_mark(62, "shared", 4, kB, "b.img", 3);
  for (const bool late_first : {false, true}) {
    Harness h;
    BatchMaker host1("host1"), host2("host2"), shared("shared");
    // Of a backup; since then gone.img went, and vms became prod.
    ASSERT_EQ(h.put(host1, host1.make({}, {create_mark(1, "host1", 2, kA, "gone.img"), vms,
                                           create_mark(3, "host1", 4, kB, "b.img", 3)})).status, 200);
    auto late = host2.make({}, {create_mark(10, "host2", 5, kC, "made and gone")});
    auto all = shared.make({}, {prod, b_img, told_all_mark(63, 60)});
    if (late_first) { ASSERT_EQ(h.put(host2, late).status, 200); }
    ASSERT_EQ(h.put(shared, all, 0, net::Role::kShared).status, 200);
    h.restart();
    if (!late_first) { ASSERT_EQ(h.put(host2, late).status, 200); }
    Names named;
    for (const auto& [path, what] : tree(h, "latest"))
      if (what != "nameless") named[path] = what;
    EXPECT_EQ(named, (Names{{"prod", "directory"}, {"prod/b.img", kB.to_string()}})) << late_first;
    EXPECT_TRUE(tree(h, "1").contains("gone.img")) << "what points showed before stays";
    // What comes after it binds as ever; a host's word of that kind counts for nothing.
    auto word = told_all_mark(90, 80);
    word.origin = "host1";
    const auto anew = create_mark(64, "host1", 6, {}, "vms", 1, wire::NodeKind::kDirectory);
    ASSERT_EQ(h.put(host1, host1.make({}, {word, anew})).status, 200);
    EXPECT_TRUE(tree(h, "latest").contains("vms"));
    EXPECT_TRUE(tree(h, "latest").contains("prod/b.img"));
  }
}

// A shared node of before grants a tenure with the number of a rename that came just after its start.
TEST(Names, ATenuresMarkStandsForNoOtherEventOfItsNumber) {
  for (const bool shared_first : {false, true}) {
    Harness h;
    BatchMaker host1("host1"), host2("host2"), shared("shared");
    h.put(host1, host1.make({}, {create_mark(1, "host1", 2, kA, "disk.img")}));
    auto start = open_mark("host1", 2, kA);
    start.kind = wire::MarkKind::kTenureStart;
    start.number = EventNumber(7);
    start.epoch = Epoch(1);
    const auto rename = rename_mark(7, "host2", 2, kA, "disk.img", "vm.img");
    auto told = shared.make({}, {rename});
    if (shared_first) { ASSERT_EQ(h.put(shared, told, 0, net::Role::kShared).status, 200); }
    ASSERT_EQ(h.put(host1, host1.make({}, {start})).status, 200);
    if (!shared_first) { ASSERT_EQ(h.put(shared, told, 0, net::Role::kShared).status, 200); }
    ASSERT_EQ(h.put(host2, host2.make({}, {rename})).status, 200);
    EXPECT_EQ(tree(h, "latest"), (Names{{"vm.img", kA.to_string()}})) << shared_first;
  }
}

TEST(Points, AreFoundByIdNameAndTime) {
  Harness h;
  BatchMaker ahead("host1"), host2("host2");
  ahead.label.ns += 3600'000'000'000;   // its clock runs an hour ahead
  h.put(host2, host2.make({}, {create_mark(1, "host2", 2, kA, "a")}));                         // 1: 10:00:00
  h.put(ahead, ahead.make({}, {}, "before upgrade"));                                          // 2: 11:00:00
  h.put(host2, host2.make({{.image = kA, .pieces = {{0, pattern(1, 4096)}}}}));                // 3: 10:00:01
  h.put(ahead, ahead.make({}, {}, "before upgrade"));                                          // 4: 11:00:01
  auto id = [&](const std::string& query) { return h.get("/v1/points/resolve?" + query).json().value("id", 0); };
  EXPECT_EQ(id("at=2026-11-21T10:00:00.500Z"), 1);
  EXPECT_EQ(id("at=2026-11-21T10:30:00Z"), 3);
  EXPECT_EQ(id("at=2026-11-21T12:00:00Z"), 4);
  EXPECT_EQ(id("name=before%20upgrade"), 4);
  EXPECT_EQ(id("id=2"), 2);
  auto early = h.get("/v1/points/resolve?at=2020-01-01T00:00:00Z");
  EXPECT_EQ(early.status, 404);
  EXPECT_NE(early.json()["reason"].get<std::string>().find("newest 4"), std::string::npos);
  EXPECT_EQ(h.get("/v1/points/resolve?at=yesterday").status, 400);
  EXPECT_EQ(h.get("/v1/points/99/tree").status, 404);
  auto of_image = h.get("/v1/points?image=" + kA.to_string()).json()["points"];
  ASSERT_EQ(of_image.size(), 2u);
  EXPECT_EQ(of_image[1]["id"], 3);
  EXPECT_EQ(h.get("/v1/points?image=" + kA.to_string() + "&all=1").json()["points"].size(), 4u);
  auto page = h.get("/v1/points?after=1&count=2").json();
  EXPECT_EQ(page["points"][0]["id"], 2);
  EXPECT_EQ(page["next"], 3);
}

TEST(Points, TheNewestAreFoundFromTheEnd) {
  Harness h;
  BatchMaker host("host1");
  auto write = [&](const Uuid& image, uint8_t seed) {
    h.put(host, host.make({{.image = image, .pieces = {{0, pattern(seed, 4096)}}}}));
  };
  h.put(host, host.make({}, {create_mark(1, "host1", 2, kA, "a"), create_mark(2, "host1", 3, kB, "b"),
                             create_mark(3, "host1", 4, kC, "c")}));
  for (uint8_t i = 0; i < 3; ++i) {   // A at 2, 5, 8; B at 3, 6, 9; C at 4, 7, 10
    write(kA, i);
    write(kB, i);
    write(kC, i);
  }
  auto ids = [&](const std::string& query) {
    const Json page = h.get("/v1/points?newest=1" + query).json();
    EXPECT_TRUE(page["next"].is_null()) << query;
    std::vector<uint64_t> out;
    for (const auto& p : page["points"]) out.push_back(p["id"]);
    return out;
  };
  using Ids = std::vector<uint64_t>;
  const std::string of_b = "&image=" + kB.to_string();
  EXPECT_EQ(ids("&count=3"), (Ids{8, 9, 10}));
  EXPECT_EQ(ids("&count=3&after=8"), (Ids{9, 10}));
  EXPECT_EQ(ids("&count=3&after=10"), Ids{});
  EXPECT_EQ(ids("").size(), 10u);
  EXPECT_EQ(ids("&count=2" + of_b), (Ids{6, 9}));
  EXPECT_EQ(ids("&count=9" + of_b), (Ids{1, 3, 6, 9}));
  EXPECT_EQ(ids("&count=9&after=3" + of_b), (Ids{6, 9}));
  EXPECT_EQ(ids("&count=2&all=1" + of_b), (Ids{9, 10}));
}

// host2's link was down while vm.img was ruined and replaced: what it wrote before is applied after that.
TEST(Points, OfAnImageShowNothingOfItThatIsLabelledLater) {
  Harness h;
  BatchMaker host1("host1"), host2("host2");
  const int64_t ten = host1.label.ns;
  auto set_label = [ten](BatchMaker& host, int64_t second) { host.label.ns = ten + second * 1'000'000'000; };
  auto directory = [](uint64_t event, const std::string& name) {
    return create_mark(event, "host2", 10 + event, {}, name, 1, wire::NodeKind::kDirectory);
  };
  const Bytes good = pattern(1, 4096);
  h.put(host1, host1.make({{.image = kA, .pieces = {{0, good}}}}, {create_mark(1, "host1", 2, kA, "vm.img")}));
  h.put(host2, host2.make({}, {directory(2, "x")}));   // 2: 10:00:00
  set_label(host1, 600);
  h.put(host1, host1.make({{.image = kA, .pieces = {{0, pattern(2, 4096)}}}}));   // 3: 10:10:00
  h.put(host1, host1.make({}, {unlink_mark(4, "host1", 2, kA, "vm.img")}));   // 4: 10:10:01
  h.put(host1, host1.make({{.image = kB, .pieces = {{0, pattern(3, 4096)}}}},
                          {create_mark(5, "host1", 4, kB, "vm.img")}));   // 5: 10:10:02
  set_label(host2, 30);
  h.put(host2, host2.make({}, {directory(3, "y")}));   // 6: 10:00:30
  set_label(host2, 605);
  h.put(host2, host2.make({}, {directory(6, "z")}));   // 7: 10:10:05
  auto ask = [&](const std::string& query) {
    const Json found = h.get("/v1/points/resolve?" + query).json();
    return std::pair(found.value("id", 0), found.value("image", ""));
  };
  const std::string a = kA.to_string(), b = kB.to_string();
  EXPECT_EQ(ask("at=2026-11-21T10:05:00Z"), std::pair(6, std::string()));
  EXPECT_EQ(ask("at=2026-11-21T10:05:00Z&image=" + a), std::pair(2, a));
  EXPECT_EQ(ask("at=2026-11-21T10:05:00Z&path=vm.img"), std::pair(2, a));
  EXPECT_EQ(h.data("2", kA, "bytes=0-4095"), std::string(as_text(good)));
  EXPECT_EQ(ask("at=2026-11-21T10:10:00.500Z&path=vm.img"), std::pair(3, a));   // it has its name there
  EXPECT_EQ(ask("at=2026-11-21T10:10:00.500Z&image=" + a), std::pair(6, a));
  EXPECT_EQ(ask("at=2026-11-21T10:10:02.500Z&path=vm.img"), std::pair(6, b));
  EXPECT_EQ(ask("at=2026-11-21T10:10:10Z&image=" + a), std::pair(7, a));
  for (const char* none : {"at=2026-11-21T10:10:01.500Z&path=vm.img", "at=2026-11-21T10:05:00Z&path=x",
                           "at=2026-11-21T10:05:00Z&path=vm.img/x", "at=2020-01-01T00:00:00Z&path=vm.img"}) {
    EXPECT_EQ(h.get(std::string("/v1/points/resolve?") + none).status, 404) << none;
  }
  EXPECT_EQ(h.get("/v1/points/resolve?at=2026-11-21T10:05:00Z&image=" + b).status, 404);
  EXPECT_EQ(h.get("/v1/points/resolve?at=2026-11-21T10:05:00Z&image=" + kC.to_string()).status, 404);
  EXPECT_EQ(h.get("/v1/points/resolve?at=2026-11-21T10:05:00Z&image=vm.img").status, 400);
  // By id, name and latest a path is what it is at the point.
  EXPECT_EQ(ask("id=3&path=/vm.img"), std::pair(3, a));
  EXPECT_EQ(ask("id=4&path=vm.img"), std::pair(4, std::string()));
  EXPECT_EQ(ask("id=latest&path=vm.img"), std::pair(7, b));
}

TEST(Points, AnImageMadeByAHostWhoseClockRunsAheadIsFoundByTime) {
  Harness h;
  BatchMaker ahead("host1"), host2("host2");
  ahead.label.ns += 3600'000'000'000;
  h.put(ahead, ahead.make({}, {create_mark(1, "host1", 2, {}, "d", 1, wire::NodeKind::kDirectory)}));   // 1: 11:00:00
  auto made = ahead.make({{.image = kA, .pieces = {{0, pattern(1, 4096)}}}},
                         {create_mark(2, "host1", 3, kA, "caf\xe9", 2)});
  h.put(ahead, made);   // 2: 11:00:01
  SliceSpec next{.image = kA, .epoch = Epoch(2), .pieces = {{0, pattern(2, 4096)}}};
  next.parent = {.epoch = Epoch(1), .source = "host1", .last = made.last};
  h.put(host2, host2.make({next}, {open_mark("host2", 3, kA)}));   // 3: 10:00:00
  const Json found = h.get("/v1/points/resolve?at=2026-11-21T10:30:00Z&path=d/caf%e9").json();
  EXPECT_EQ(found.value("id", 0), 3) << found.dump();
  EXPECT_EQ(found.value("image", ""), kA.to_string());
}

TEST(Data, RangesSizesHolesAndExtents) {
  Harness h;
  BatchMaker host("host1");
  const uint64_t size = 3 * kLeafBytes + 1000;
  h.put(host, host.make({{.image = kA,
                          .size = size,
                          .pieces = {{0, pattern(1, 4096)},
                                     {kLeafBytes - 4096, pattern(2, 8192)},
                                     {3 * kLeafBytes, pattern(3, 4096)}}}},
                        {create_mark(1, "host1", 2, kA, "a.img")}));
  h.put(host, host.make({{.image = kA, .size = 4500, .pieces = {}}}));
  h.put(host, host.make({{.image = kA, .size = 3 * kLeafBytes, .pieces = {{8192, {}, 4096}}}}));
  const std::string base = "/v1/points/1/images/" + kA.to_string();
  std::string whole(size, '\0');
  auto lay = [&whole](uint64_t offset, const Bytes& bytes) {
    const size_t n = std::min<size_t>(bytes.size(), whole.size() - offset);
    std::copy_n(bytes.begin(), n, whole.begin() + static_cast<ptrdiff_t>(offset));
  };
  lay(0, pattern(1, 4096));
  lay(kLeafBytes - 4096, pattern(2, 8192));
  lay(3 * kLeafBytes, pattern(3, 4096));
  EXPECT_EQ(h.data("1", kA), whole);
  auto part = h.get(base + "/data", "bytes=1048000-1049999");
  EXPECT_EQ(part.status, 206);
  EXPECT_EQ(part.headers["content-range"], "bytes 1048000-1049999/" + std::to_string(size));
  EXPECT_EQ(part.body, whole.substr(1048000, 2000));
  EXPECT_EQ(h.data("1", kA, "bytes=-500"), whole.substr(size - 500));
  EXPECT_EQ(h.data("1", kA, "bytes=3000000-"), whole.substr(3000000));
  EXPECT_EQ(h.get(base + "/data", "bytes=" + std::to_string(size) + "-").status, 416);
  auto head = h.ask({.method = "HEAD", .target = base + "/data"});
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.body.empty());
  auto info = h.get(base).json();
  EXPECT_EQ(info["size"], size);
  EXPECT_EQ(info["path"], "a.img");
  EXPECT_EQ(info["allocated"], 4096 + 8192 + 1000);
  auto extents = h.get(base + "/extents?offset=0&count=2").json();
  EXPECT_EQ(extents["extents"], Json::parse("[[0,4096],[1044480,8192]]"));
  EXPECT_EQ(extents["next"], 3 * kLeafBytes);
  EXPECT_EQ(h.get(base + "/extents?offset=1044500").json()["extents"], Json::parse("[[1044500,8172],[3145728,1000]]"));
  // Shrunk inside the second unit, grown again: what was cut off reads as zeros.
  std::string grown(3 * kLeafBytes, '\0');
  grown.replace(0, 4096, whole, 0, 4096);
  EXPECT_EQ(h.data("2", kA), whole.substr(0, 4500));
  EXPECT_EQ(h.data("3", kA), grown);
  EXPECT_EQ(h.data("1", kA), whole);
}

TEST(Data, RandomWritesOfManyPointsReadBackAsTheyWere) {
  std::mt19937_64 random(11);
  constexpr uint64_t kSize = 4 * kLeafBytes, kUnits = kSize / 4096;
  Harness h(5);
  BatchMaker host("host1");
  std::string now(kSize, '\0');
  std::map<int, std::string> kept;
  constexpr int kPoints = 120;
  for (int p = 1; p <= kPoints; ++p) {
    SliceSpec s{.image = kA, .size = kSize};
    for (uint64_t at = random() % 20; at < kUnits; at += 1 + random() % 400) {
      const uint64_t units = std::min<uint64_t>(1 + random() % 30, kUnits - at);
      Piece piece{.offset = at * 4096};
      if (random() % 4 == 0) piece.zeros = units * 4096;
      else piece.data = pattern(random(), units * 4096);
      const std::string bytes = piece.zeros != 0 ? std::string(piece.zeros, '\0') : std::string(as_text(piece.data));
      now.replace(piece.offset, bytes.size(), bytes);
      at += units;
      s.pieces.push_back(std::move(piece));
    }
    std::vector<wire::Mark> marks;
    if (p == 1) marks.push_back(create_mark(1, "host1", 2, kA, "a.img"));
    auto answer = h.put(host, host.make({s}, marks));
    ASSERT_EQ(answer.status, 200) << answer.body;
    if (random() % 8 == 0 || p == 1 || p == kPoints) kept[p] = now;
    if (random() % 40 == 0) h.restart();
  }
  for (const auto& [p, bytes] : kept) ASSERT_TRUE(h.data(std::to_string(p), kA) == bytes) << "point " << p;
}

}  // namespace
}  // namespace tidemark::replica
