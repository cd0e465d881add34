// The numbers of events: who is told which, and what of their marks is kept.
#include <algorithm>

#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::MarkKind;
using wire::Type;

// The host journals it: another event's number would stand for that event at the replica.
TEST_F(NodeTest, AGrantNamesTheEventOfItsTenuresStartWhateverCameSince) {
  auto a = host("host1");
  Result<wire::Attr> attr = a->create("disk.img");
  ASSERT_TRUE(attr);
  world_.set_store_fault("shared", sim::StoreFault{.path_contains = "/state", .delay = std::chrono::seconds(1)});
  std::optional<Result<wire::Grant>> granted;
  std::optional<Result<wire::Changed>> renamed;
  a->link->request<wire::Grant>(Type::kAcquire, wire::Acquire{attr->image, 5000},
                                [&](Result<wire::Grant> g) { granted.emplace(std::move(g)); });
  a->link->request<wire::Changed>(Type::kRename, wire::Rename{InodeNumber(1), "disk.img", InodeNumber(1), "vm.img", 0},
                                  [&](Result<wire::Changed> c) { renamed.emplace(std::move(c)); });
  a->run([&] { return granted && renamed; });
  ASSERT_TRUE(*granted) << granted->status().message();
  ASSERT_TRUE(*renamed) << renamed->status().message();
  auto start = std::find_if(marks_.begin(), marks_.end(),
                            [](const wire::Mark& m) { return m.kind == MarkKind::kTenureStart; });
  ASSERT_NE(start, marks_.end());
  EXPECT_EQ((*granted)->event, start->number);
  EXPECT_GT((*renamed)->mark.number, start->number);
}

// The host's stream will say that it tells of no event up to that one any more.
TEST_F(NodeTest, AHelloIsAnsweredWithAnEventThatIsDurable) {
  auto a = host("host1");
  ASSERT_TRUE(a->create("first"));
  HostClient b(world_, "host2");
  b.hello.cluster = cluster_;
  ASSERT_TRUE(b.open_link(port_));
  world_.set_store_fault("shared", sim::StoreFault{.path_contains = "/state", .delay = std::chrono::seconds(1)});
  std::optional<Result<wire::HelloAnswer>> met;
  EventNumber durable;
  b.link->request<wire::HelloAnswer>(Type::kHello, b.hello, [&](Result<wire::HelloAnswer> answer) {
    met.emplace(std::move(answer));
    durable = marks_.back().number;
  });
  world_.run_for(std::chrono::milliseconds(500));   // its session is being recorded
  ASSERT_FALSE(met);
  a->link->request<wire::Changed>(Type::kCreate, wire::Create{InodeNumber(1), "second", wire::NodeKind::kImage, 0644},
                                  [](Result<wire::Changed>) {});
  b.run([&] { return met.has_value(); });
  ASSERT_TRUE(*met) << met->status().message();
  EXPECT_LE((*met)->event, durable);
}

// A replica that does not answer leaves the question open, for a day where it must be.
TEST_F(NodeTest, MarksThatAreKeptStayWithinTheirLimitsWhileTheReplicaIsAway) {
  auto a = host("host1");
  for (const bool in_bytes : {false, true}) {
    replica_answers_ = false;
    marks_max_ = in_bytes ? 1000 : 4;
    marks_bytes_max_ = in_bytes ? 64u << 10 : 1u << 20;
    restart_node(sim::Crash::kPowerLoss);
    ASSERT_TRUE(a->connect(port_, cluster_));
    Result<wire::Attr> file = a->create(in_bytes ? "b" : "a");
    ASSERT_TRUE(file);
    world_.run_for(std::chrono::seconds(6));   // asked, and not answered
    wire::SetXattr large{file->inode, "user.large", Bytes(16u << 10, 7), 0, 0};
    for (int i = 0; i < 12; ++i) ASSERT_TRUE(a->ask<wire::Changed>(Type::kSetXattr, large));
    world_.run_for(std::chrono::seconds(11));
    const EventNumber newest = marks_.back().number;
    marks_.clear();
    restart_node(sim::Crash::kPowerLoss);
    ASSERT_FALSE(marks_.empty());
    EXPECT_LE(marks_.size(), in_bytes ? 3u : 4u);
    EXPECT_EQ(marks_.back().number, newest);
  }
}

}  // namespace
}  // namespace tidemark::node
