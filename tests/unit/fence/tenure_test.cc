#include "shared/fence/tenure.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <sstream>

#include "tests/repeat.h"

namespace tidemark::fence {
namespace {

using K = Action::Kind;

WriteSequence at(uint64_t incarnation, uint64_t counter) { return {Incarnation(incarnation), Counter(counter)}; }

// "ended:a@1 started:b@2<1a(1,7) grant#5 recall:b->c busy#4:a fenced@3 accepted"
std::string show(const std::vector<Action>& actions) {
  std::ostringstream out;
  for (const Action& a : actions) {
    if (out.tellp() > 0) out << ' ';
    auto parent = [&] {
      out << '<' << a.parent.epoch.value << a.parent.source << '(' << a.parent.last.incarnation.value << ','
          << a.parent.last.counter.value << ')' << (a.parent.clean ? "" : "!") << (a.parent.taken ? "taken" : "");
    };
    switch (a.kind) {
      case K::kEnded: out << "ended:" << a.host << '@' << a.epoch.value; break;
      case K::kStarted: out << "started:" << a.host << '@' << a.epoch.value; parent(); break;
      case K::kGrant: out << "grant#" << a.ticket; break;
      case K::kRecall: out << "recall:" << a.host << "->" << a.wanted_by; break;
      case K::kBusy: out << "busy#" << a.ticket << ':' << a.host; break;
      case K::kAccepted: out << "accepted"; break;
      case K::kFenced: out << "fenced@" << a.epoch.value; break;
    }
  }
  return out.str();
}

struct Line {
  Event event;
  std::string actions;
  bool durable;
};

void run(const std::vector<Line>& script) {
  State state;
  size_t n = 0;
  for (const Line& line : script) {
    Outcome out = step(state, line.event);
    EXPECT_EQ(show(out.actions), line.actions) << "line " << n;
    EXPECT_EQ(out.durable, line.durable) << "line " << n;
    state = out.state;
    ++n;
  }
}

TEST(Tenure, AFreeImageIsGrantedAtOnce) {
  run({{Event::acquire("a", 1, false), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::first_write("a", Epoch(1)), "accepted", false},
       {Event::yield("a", Epoch(1), at(1, 7)), "ended:a@1 accepted", true},
       {Event::acquire("b", 2, false), "started:b@2<1a(1,7) grant#2", true}});
}

TEST(Tenure, AnotherWaitsForTheHoldersWord) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::acquire("b", 2, false), "busy#2:a", false},
       {Event::acquire("b", 3, true), "recall:a->b", false},
       {Event::yield("a", Epoch(1), at(1, 7)), "ended:a@1 accepted started:b@2<1a(1,7) grant#3", true},
       {Event::timeout(3), "", false}});
}

TEST(Tenure, WaitingEndsWithTheTime) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::acquire("b", 2, true), "recall:a->b", false},
       {Event::timeout(2), "busy#2:a", false},
       {Event::yield("a", Epoch(1), at(1, 1)), "ended:a@1 accepted", true}});
}

TEST(Tenure, WaitersAreServedInOrderAndTheNextRecalls) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::acquire("b", 2, true), "recall:a->b", false},
       {Event::acquire("c", 3, true), "recall:a->b", false},
       {Event::acquire("b", 4, true), "recall:a->b", false},
       {Event::yield("a", Epoch(1), at(1, 7)), "ended:a@1 accepted started:b@2<1a(1,7) grant#2 grant#4 recall:b->c",
        true},
       {Event::yield("b", Epoch(2), at(4, 9)), "ended:b@2 accepted started:c@3<2b(4,9) grant#3", true}});
}

TEST(Tenure, TheSameHostAlwaysGetsItBackInANewEpoch) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::acquire("a", 2, false, at(1, 5)), "ended:a@1 started:a@2<1a(1,5)! grant#2", true},
       {Event::yield("a", Epoch(1), at(1, 5)), "fenced@2", false},
       {Event::yield("a", Epoch(2), at(2, 1)), "ended:a@2 accepted", true},
       {Event::acquire("a", 3, false, at(2, 1)), "started:a@3<2a(2,1) grant#3", true}});
}

TEST(Tenure, AnEpochWithoutWritesIsNobodysParent) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::yield("a", Epoch(1), at(1, 7)), "ended:a@1 accepted", true},
       {Event::acquire("b", 2, true), "started:b@2<1a(1,7) grant#2", true},
       {Event::yield("b", Epoch(2), at(9, 0)), "ended:b@2 accepted", true},
       {Event::acquire("c", 3, true), "started:c@3<1a(1,7) grant#3", true},
       {Event::acquire("c", 4, true), "ended:c@3 started:c@4<1a(1,7) grant#4", true}});
}

TEST(Tenure, AResumeIsTheHoldersAndRecallsAgain) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::acquire("b", 2, true), "recall:a->b", false},
       {Event::host_gone("a"), "", false},
       {Event::resume("b", Epoch(1)), "fenced@1", false},
       {Event::resume("a", Epoch(0)), "fenced@1", false},
       {Event::resume("a", Epoch(1)), "accepted recall:a->b", false},
       {Event::host_gone("b"), "", false},
       {Event::yield("a", Epoch(1), at(1, 1)), "ended:a@1 accepted", true},
       {Event::yield("a", Epoch(1), at(1, 1)), "accepted", false},
       {Event::resume("a", Epoch(1)), "fenced@1", false}});
}

TEST(Tenure, APreemptEndsItWithoutTheHoldersWord) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::acquire("b", 2, true), "recall:a->b", false},
       {Event::preempt(at(1, 3)), "ended:a@1 accepted started:b@2<1a(1,3)!taken grant#2", true},
       {Event::resume("a", Epoch(1)), "fenced@2", false},
       {Event::yield("a", Epoch(1), at(1, 3)), "fenced@2", false},
       {Event::first_write("a", Epoch(1)), "fenced@2", false}});
}

// The next tenure stands in for what is not shipped; nobody lost anything.
TEST(Tenure, OneGivenBackUnshippedIsFollowedAsOneThatWasTakenAndItsHolderMayHaveItAgain) {
  Event unshipped = Event::yield("a", Epoch(1), at(1, 3));
  unshipped.unshipped = true;
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::acquire("b", 2, true), "recall:a->b", false},
       {unshipped, "ended:a@1 accepted started:b@2<1a(1,3)taken grant#2", true},
       {Event::yield("b", Epoch(2), {}), "ended:b@2 accepted", true},
       {Event::acquire("a", 3, true), "started:a@3<1a(1,3)taken grant#3", true},
       {Event::yield("a", Epoch(3), at(1, 4)), "ended:a@3 accepted", true},
       {Event::acquire("b", 4, true), "started:b@4<3a(1,4) grant#4", true}});
}

TEST(Tenure, WhoLostOneByForceGetsNoneBeforeItHasSaidThatItKnows) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::preempt(at(1, 3)), "ended:a@1 accepted", true},
       {Event::yield("a", Epoch(1), at(1, 3)), "fenced@1", false},   // not taken for one whose answer was lost
       {Event::acquire("a", 2, true), "fenced@1", false},
       {Event::fence_seen("a", Epoch(0)), "accepted", false},        // of an earlier one
       {Event::acquire("a", 3, true), "fenced@1", false},
       {Event::fence_seen("a", Epoch(1)), "accepted", true},
       {Event::fence_seen("a", Epoch(1)), "accepted", false},
       {Event::acquire("a", 4, true), "started:a@2<1a(1,3)!taken grant#4", true}});
}

// What the holder wrote alone is not of the main line, even where nothing of it ever reached the shared copy.
TEST(Tenure, ATenureTakenBeforeItsFirstWriteStillSaysSo) {
  run({{Event::acquire("a", 1, true), "started:a@1<0(0,0) grant#1", true},
       {Event::first_write("a", Epoch(1)), "accepted", true},
       {Event::yield("a", Epoch(1), at(1, 7)), "ended:a@1 accepted", true},
       {Event::acquire("b", 2, true), "started:b@2<1a(1,7) grant#2", true},
       {Event::preempt({}), "ended:b@2 accepted", true},
       {Event::acquire("c", 3, true), "started:c@3<1a(1,7)!taken grant#3", true},
       {Event::first_write("c", Epoch(3)), "accepted", true},
       {Event::yield("c", Epoch(3), at(1, 1)), "ended:c@3 accepted", true},
       {Event::acquire("a", 4, true), "started:a@4<3c(1,1) grant#4", true}});
}

TEST(Tenure, OnlyTheNewestEpochsHolderMayWrite) {
  State s;
  EXPECT_FALSE(may_write(s, "", Epoch(0)));
  s = step(s, Event::acquire("a", 1, true)).state;
  EXPECT_TRUE(may_write(s, "a", Epoch(1)));
  EXPECT_FALSE(may_write(s, "b", Epoch(1)));
  EXPECT_FALSE(may_write(s, "a", Epoch(2)));
  s = step(s, Event::yield("a", Epoch(1), {})).state;
  EXPECT_FALSE(may_write(s, "a", Epoch(1)));
}

// A random walk against what must hold whatever happens.
TEST(Tenure, ARandomWalkNeverHasTwoHoldersInOneEpoch) {
  const std::vector<std::string> hosts = {"a", "b", "c"};
  for (uint64_t seed = 1; seed <= seeds_of(300); ++seed) {
    std::mt19937_64 random(seed);
    State state;
    std::map<uint64_t, std::string> holder_of;          // by epoch
    std::set<Ticket> open;
    std::string model_holder;
    std::map<std::string, Epoch> fenced_at;
    std::set<std::string> fenced;                       // lost one by force, and have not said that they know
    Parent newest_written;
    Ticket next = 0;
    uint64_t counter = 0, written_at = 0;
    for (int i = 0; i < 200; ++i) {
      const std::string& host = hosts[random() % hosts.size()];
      Epoch epoch(random() % 4 == 0 ? random() % (state.epoch.value + 2) : state.epoch.value);
      Event event;
      switch (random() % 8) {
        case 0: case 1: {
          event = Event::acquire(host, ++next, random() % 3 != 0, at(1, written_at));
          open.insert(next);
          break;
        }
        case 2: event = Event::timeout(random() % (next + 1)); break;
        case 3: event = Event::yield(host, epoch, at(1, state.written ? written_at : 0)); break;
        case 4: event = Event::resume(host, epoch); break;
        case 5: event = Event::first_write(host, epoch); break;
        case 6: event = Event::fence_seen(host, epoch); break;
        default: event = random() % 4 == 0 ? Event::preempt(at(1, written_at)) : Event::host_gone(host); break;
      }
      bool allowed = may_write(state, event.host, event.epoch);
      Outcome out = step(state, event);
      ASSERT_GE(out.state.epoch, state.epoch) << "seed " << seed;
      if (event.kind == Event::Kind::kFirstWrite && allowed) written_at = ++counter;
      if (event.kind == Event::Kind::kHostGone) {
        for (const Waiter& w : state.waiters) if (w.host == event.host) open.erase(w.ticket);
      }
      for (const Action& a : out.actions) {
        if (a.kind == K::kEnded) {
          ASSERT_EQ(a.host, model_holder) << "seed " << seed;
          bool own_word = event.kind == Event::Kind::kYield || event.kind == Event::Kind::kPreempt ||
                          (event.kind == Event::Kind::kAcquire && event.host == model_holder);
          ASSERT_TRUE(own_word) << "seed " << seed;
          if (state.written) newest_written = {a.epoch, a.host, at(1, written_at), event.kind == Event::Kind::kYield};
          if (event.kind == Event::Kind::kPreempt) {
            newest_written.clean = false;
            newest_written.taken = true;
            fenced.insert(a.host);
            fenced_at[a.host] = a.epoch;
          }
          model_holder.clear();
        }
        if (a.kind == K::kStarted) {
          ASSERT_TRUE(model_holder.empty()) << "seed " << seed << ": granted while another holds";
          ASSERT_TRUE(holder_of.emplace(a.epoch.value, a.host).second) << "seed " << seed << ": epoch given twice";
          ASSERT_EQ(a.parent, newest_written) << "seed " << seed;
          ASSERT_FALSE(fenced.contains(a.host)) << "seed " << seed << ": granted to one that does not know";
          model_holder = a.host;
          ASSERT_TRUE(out.durable);
        }
        if (a.kind == K::kGrant) {
          ASSERT_EQ(holder_of[a.epoch.value], a.host) << "seed " << seed;
        }
        if (a.kind == K::kGrant || a.kind == K::kBusy || (a.kind == K::kFenced && a.ticket != 0)) {
          ASSERT_EQ(open.erase(a.ticket), 1u) << "seed " << seed << ": ticket answered twice";
        }
      }
      ASSERT_EQ(out.state.holder, model_holder);
      // Known again once it has named that epoch, or a newer one.
      if (event.kind == Event::Kind::kFenceSeen && fenced.contains(event.host)) {
        if (event.epoch >= fenced_at[event.host]) fenced.erase(event.host);
      }
      state = out.state;
      // Nobody waits for a free image, and no host for itself.
      ASSERT_TRUE(!state.holder.empty() || state.waiters.empty()) << "seed " << seed;
      for (const Waiter& w : state.waiters) ASSERT_NE(w.host, state.holder) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace tidemark::fence
