// Events that sources folded while the replica was away (journal/fold.h): whichever of them did, and whenever, the
// replica has the same names in the end, and no batch waits for what was left out.
#include "journal/fold.h"

#include <algorithm>
#include <set>

#include "shared/node/names.h"
#include "tests/repeat.h"
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

using Names = std::map<std::string, std::string>;   // path to image, or what it is

struct Stream {
  explicit Stream(const std::string& name) : maker(name) {}
  BatchMaker maker;
  std::vector<journal::SegmentMark> marks;          // not shipped yet
  std::set<ImageId> written;                        // likewise
  std::set<Counter> told;                           // of `marks`: the replica has them, and could not say so
  bool degraded = false;
  uint64_t counter = 0;
};

// Two hosts and the shared node: every event goes into the shared node's stream and its host's own.
class FoldTest : public testing::TestWithParam<int> {
 protected:
  void tell(const wire::Mark& mark) {
    for (Stream* s : {&shared, of(mark.origin)}) {
      s->marks.push_back({Counter(++s->counter), mark});
      if (s->degraded && s->marks.size() >= fold_at) fold(*s);
    }
  }
  Stream* of(const std::string& name) { return name == "host1" ? &host1 : &host2; }
  void fold(Stream& s) {
    s.marks = journal::fold_marks(std::move(s.marks), s.maker.source(),
                                  [&](const ImageId& id) { return gone.contains(id) && !s.written.contains(id); },
                                  [&](Counter counter) { return s.told.contains(counter); });
  }
  void ship(Stream& s, bool answered = true) {
    if (s.degraded && rng.coin()) fold(s);
    s.degraded = !answered;
    std::vector<SliceSpec> slices;
    for (const ImageId& image : s.written) {
      slices.push_back({.image = image, .epoch = Epoch(++epoch), .pieces = {{0, pattern(epoch, 4096)}}});
    }
    std::vector<wire::Mark> marks;
    for (const journal::SegmentMark& m : s.marks) marks.push_back(m.mark);
    s.told.clear();
    for (const journal::SegmentMark& m : s.marks)
      if (!answered) s.told.insert(m.counter);
    if (answered) s.marks.clear();
    if (answered) s.written.clear();
    auto role = &s == &shared ? net::Role::kShared : net::Role::kHost;
    auto answer = h.put(s.maker, s.maker.make(std::move(slices), std::move(marks)), 0, role);
    ASSERT_EQ(answer.status, 200) << answer.body;
  }

  void step() {
    const node::Origin origin{rng.coin() ? "host1" : "host2", WallTime{1'000'000'000}};
    const uint64_t dice = rng.below(100);
    Result<node::Change> change = Status(Code::kInvalidArgument, "nothing");
    if (dice < 30) {
      const wire::NodeKind kind = rng.chance(1, 5)   ? wire::NodeKind::kDirectory
                                  : rng.chance(1, 5) ? wire::NodeKind::kFifo
                                                     : wire::NodeKind::kImage;
      change = names.create({.parent = dir(), .name = name(), .kind = kind},
                            kind == wire::NodeKind::kImage ? test_uuid(++images) : ImageId(), origin);
    } else if (dice < 50) {
      change = names.unlink({.parent = dir(), .name = name(), .directory = static_cast<uint8_t>(rng.chance(1, 5))},
                            origin);
    } else if (dice < 75) {
      const uint32_t flags = rng.chance(1, 4) ? 2 : 0;
      change = names.rename({.parent = dir(), .name = name(), .new_parent = dir(), .new_name = name(), .flags = flags},
                            origin);
    } else if (dice < 80) {
      auto node = names.lookup(dir(), name());
      if (node) change = names.set_attr({(*node)->attr.inode, wire::kSetMode, {}}, origin);
    } else if (dice < 90) {
      auto node = names.lookup(dir(), name());
      if (node && !(*node)->attr.image.is_nil()) write((*node)->attr, origin.node);
    } else if (dice < 97) {
      Stream* streams[] = {&host1, &host2, &shared};
      Stream& s = *streams[rng.below(3)];
      if (rng.coin()) s.degraded = true;
      else if (!s.degraded || rng.chance(1, 4)) ship(s, !rng.chance(1, 3));
    }
    if (!change) return;
    tell(change->mark);
    for (const wire::Mark& other : change->others) tell(other);
    for (const ImageId& id : change->nameless) {
      gone.insert(id);
      for (Stream* s : {&host1, &host2}) {
        if (s->degraded) s->written.erase(id);
      }
    }
  }
  void write(const wire::Attr& attr, const std::string& host) {
    wire::Mark start;
    start.kind = wire::MarkKind::kTenureStart;
    start.number = names.take_event();
    start.origin = host;
    start.node = attr;
    start.epoch = Epoch(start.number.value);
    tell(start);
    of(host)->written.insert(attr.image);
  }
  InodeNumber dir() {
    if (rng.chance(2, 3)) return node::kRootInode;
    auto node = names.lookup(node::kRootInode, name());
    return node ? (*node)->attr.inode : node::kRootInode;
  }
  std::string name() { return std::string(1, static_cast<char>('a' + rng.below(5))); }

  Names expected() {
    Names out;
    names.walk(InodeNumber(0), [&](const node::Node& n) {
      const std::string path = names.path(n.attr.inode);
      const char* alone = n.attr.kind == wire::NodeKind::kFifo ? "fifo" : "directory";
      if (path.size() > 1) out[path.substr(1)] = n.attr.image.is_nil() ? alone : n.attr.image.to_string();
      return true;
    });
    return out;
  }
  Names shown() {
    Names out;
    const Json answer = h.get("/v1/points/latest/tree").json();
    for (const auto& e : answer["entries"]) {
      if (!e["path"].is_null()) out[e["path"]] = (e["uuid"].is_null() ? e["kind"] : e["uuid"]).get<std::string>();
    }
    return out;
  }

  Harness h{static_cast<uint64_t>(GetParam()) + 1};
  sim::Random& rng = h.world.random();
  node::NameSpace names{WallTime{1'000'000'000}};
  Stream host1{"host1"}, host2{"host2"}, shared{"shared"};
  std::set<ImageId> gone;
  uint64_t images = 0, epoch = 0;
  size_t fold_at = 1 + static_cast<size_t>(GetParam()) % 12;
};

TEST_P(FoldTest, TheReplicaHasTheSameNames) {
  for (int i = 0; i < 300; ++i) ASSERT_NO_FATAL_FAILURE(step());
  std::vector<Stream*> streams{&host1, &host2, &shared};
  for (size_t i = streams.size(); i > 1; --i) std::swap(streams[i - 1], streams[rng.below(i)]);
  for (Stream* s : streams) ASSERT_NO_FATAL_FAILURE(ship(*s));
  h.world.run_until([&] { return h.replica->intake().idle(); }, std::chrono::seconds(10));
  const Json status = h.get("/v1/status").json();
  EXPECT_EQ(status["held_batches"], 0) << status.dump();
  for (const auto& alarm : status["alarms"]) EXPECT_NE(alarm["kind"], "event_mismatch") << alarm.dump();
  EXPECT_EQ(shown(), expected());
}
INSTANTIATE_TEST_SUITE_P(Seeds, FoldTest, testing::Range(0, repeat(60, 12)));

// The replica needs each of them to know what the hosts had lost.
TEST(Fold, EveryTakeoverOfAnImageIsKept) {
  std::vector<journal::SegmentMark> marks;
  for (uint64_t epoch : {2, 1, 3, 2}) {
    wire::Mark m;
    m.kind = wire::MarkKind::kTenureEnd;
    m.origin = "host" + std::to_string(epoch);
    m.node.image = test_uuid(1);
    m.epoch = Epoch(epoch);
    m.parent.clean = wire::kTaken;
    marks.push_back({Counter(marks.size() + 1), m});
  }
  std::set<uint64_t> epochs;
  for (const auto& m : journal::fold_marks(marks, "shared1", [](const ImageId&) { return false; }))
    EXPECT_TRUE(epochs.insert(m.mark.epoch.value).second);
  EXPECT_EQ(epochs, (std::set<uint64_t>{1, 2, 3}));
}

// Told, and nobody has heard so: that it is gone is told, too, however often it is folded.
TEST(Fold, ANameThatMayHaveBeenToldIsSaidToBeGone) {
  const std::vector<journal::SegmentMark> all{{Counter(1), create_mark(1, "host1", 11, test_uuid(1), "name")},
                                              {Counter(2), unlink_mark(2, "host1", 11, test_uuid(1), "name")},
                                              {Counter(3), create_mark(3, "host1", 12, test_uuid(2), "name")},
                                              {Counter(4), unlink_mark(4, "host1", 12, test_uuid(2), "name")}};
  auto gone = [](const ImageId&) { return true; };
  for (uint64_t told : {1, 3}) {
    auto marks = all;
    for (int i = 0; i < 3; ++i)
      marks = journal::fold_marks(std::move(marks), "shared", gone, [&](Counter c) { return c.value == told; });
    ASSERT_FALSE(marks.empty());
    EXPECT_EQ(marks.back().mark.number, EventNumber(4)) << told;
  }
  EXPECT_TRUE(journal::fold_marks(all, "shared", gone).empty());
}

// host2 made and removed it; host1 made it anew, which its own journal tells, and has not heard that host2 removed
// that, too.
TEST(Fold, ANameThatTwoHostsUsedInTurnIsSaidToBeGoneByTheSharedNode) {
  std::vector<journal::SegmentMark> all{{Counter(1), create_mark(1, "host2", 11, test_uuid(1), "name")},
                                        {Counter(2), unlink_mark(2, "host2", 11, test_uuid(1), "name")},
                                        {Counter(3), create_mark(3, "host1", 12, test_uuid(2), "name")},
                                        {Counter(4), unlink_mark(4, "host2", 12, test_uuid(2), "name")}};
  auto gone = [](const ImageId&) { return true; };
  auto fold = [&](std::vector<journal::SegmentMark> marks, const std::string& source) {
    for (int i = 0; i < 3; ++i) marks = journal::fold_marks(std::move(marks), source, gone);
    return marks;
  };
  Harness h{1};
  auto ship = [&](const std::string& source, const std::vector<journal::SegmentMark>& folded, net::Role role) {
    std::vector<wire::Mark> marks;
    for (const auto& m : folded) marks.push_back(m.mark);
    BatchMaker maker(source);
    EXPECT_EQ(h.put(maker, maker.make({}, std::move(marks)), 0, role).status, 200);
  };
  ship("host1", fold({all[2]}, "host1"), net::Role::kHost);
  ship("host2", fold({all[0], all[1], all[3]}, "host2"), net::Role::kHost);
  ship("shared", fold(all, "shared"), net::Role::kShared);
  h.world.run_until([&] { return h.replica->intake().idle(); }, std::chrono::seconds(10));
  const Json tree = h.get("/v1/points/latest/tree").json();
  EXPECT_FALSE(tree["entries"].empty());
  for (const auto& e : tree["entries"]) EXPECT_TRUE(e["path"].is_null()) << e.dump();
}

// What is kept does not grow with the number of events.
TEST(Fold, OneNameManyTimes) {
  std::vector<journal::SegmentMark> marks;
  auto gone = [](const ImageId&) { return true; };
  uint64_t event = 0;
  for (uint64_t round = 0; round < 1000; ++round) {
    const ImageId image = test_uuid(round + 1);
    marks.push_back({Counter(++event), create_mark(event, "host1", event + 10, image, "name")});
    const uint64_t inode = event + 10;
    marks.push_back({Counter(++event), rename_mark(event, "host1", inode, image, "name", "other")});
    marks.push_back({Counter(++event), unlink_mark(event, "host1", inode, image, "other")});
    if (round % 100 == 0) marks = journal::fold_marks(std::move(marks), "host1", gone);
  }
  marks = journal::fold_marks(std::move(marks), "host1", gone);
  EXPECT_EQ(marks.size(), 1u) << "that nothing of it will be told";
  EXPECT_TRUE(std::is_sorted(marks.begin(), marks.end(), [](auto& a, auto& b) { return a.counter < b.counter; }));
  ASSERT_FALSE(marks.empty());
  EXPECT_EQ(marks[0].mark.kind, wire::MarkKind::kSession);
}

TEST(Fold, ThatAllNamesWereToldIsKeptBesideTheSession) {
  auto session = [](uint64_t number, uint64_t event) {
    wire::Mark m;
    m.kind = wire::MarkKind::kSession;
    m.origin = "shared";
    m.number = EventNumber(number);
    m.node.event = EventNumber(event);
    return m;
  };
  std::vector<journal::SegmentMark> marks{
      {Counter(1), session(21, 20)},
      {Counter(2), session(41, 40)},
      {Counter(3), session(0, 90)},
      {Counter(4), create_mark(50, "shared", 11, {}, "name", 1, wire::NodeKind::kDirectory)},
      {Counter(5), unlink_mark(51, "shared", 11, {}, "name")}};
  marks = journal::fold_marks(std::move(marks), "shared", [](const ImageId&) { return true; });
  ASSERT_EQ(marks.size(), 2u);
  EXPECT_EQ(marks[0].mark.number, EventNumber(41));
  EXPECT_EQ(marks[0].mark.node.event, EventNumber(40));
  EXPECT_EQ(marks[1].mark.number, EventNumber(0));
  EXPECT_EQ(marks[1].mark.node.event, EventNumber(90));
}

TEST(Fold, AnImageThatAnotherHostHeldKeepsItsCreate) {
  const ImageId image = test_uuid(1);
  wire::Mark start = open_mark("host2", 11, image);
  start.kind = wire::MarkKind::kTenureStart;
  std::vector<journal::SegmentMark> marks{{Counter(1), create_mark(1, "host1", 11, image, "name")},
                                          {Counter(2), start},
                                          {Counter(3), unlink_mark(3, "host1", 11, image, "name")}};
  EXPECT_EQ(journal::fold_marks(marks, "shared", [](const ImageId&) { return true; }).size(), 3u);
  marks.erase(marks.begin() + 1);
  EXPECT_TRUE(journal::fold_marks(marks, "shared", [](const ImageId&) { return true; }).empty());
  EXPECT_EQ(journal::fold_marks(marks, "shared", [](const ImageId&) { return false; }).size(), 2u);
}

}  // namespace
}  // namespace tidemark::replica
