// The tenure of one image: which host may write it, and in which epoch.
//
//            acquire (grant: epoch + 1)            acquire by another: wait, recall
//   free ---------------------------> held by H ------------------------------------+
//    ^                                 |  ^  |                                       |
//    |            yield by H           |  |  +-- acquire by H (it lost its state):   |
//    +---------------------------------+  |      grant, epoch + 1, parent not clean  |
//                                         |                                          |
//                                         +--- yield by H: grant to the first waiter +
//                                         |
//                                         +--- preempt: free, or granted to the first waiter; H is fenced: its
//                                              requests are refused until it has said that it knows
//
// Invariants: the epoch only grows, by one with each grant; only the holder of the newest epoch may
// write; a ticket is answered at most once. A holder that is not connected still holds: nothing here
// ends a tenure without its word but preempt, which an operator orders.
//
// The parent of a grant names the newest earlier epoch that was written, so that no writer's batches
// can be overtaken through an epoch in which nothing was written.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "shared/base/ids.h"

namespace tidemark::fence {

struct Parent {
  Epoch epoch;            // 0: never written
  std::string source;
  WriteSequence last;
  bool clean = true;      // false: not the holder's own word
  // By force, or given back unshipped: what the shared copy holds is the main line, all else of older epochs a branch.
  bool taken = false;
  bool operator==(const Parent&) const = default;
};

// Names one waiting request; the caller's to choose, unique among those waiting.
using Ticket = uint64_t;

struct Waiter {
  Ticket ticket = 0;
  std::string host;
  bool operator==(const Waiter&) const = default;
};

struct State {
  // Durable: the caller stores these before it carries out actions of an outcome marked `durable`.
  Epoch epoch;                 // newest granted; 0: none yet
  std::string holder;          // empty: free
  std::string last_holder;     // of `epoch`
  bool written = false;        // something was written in `epoch`, as far as the shared node knows
  Parent parent;               // of `epoch`; once it is free: of the next one
  std::map<std::string, Epoch> fenced;   // hosts whose tenure was taken and who have not said yet that they know
  // Not durable: waiting requests end with their sessions.
  std::vector<Waiter> waiters;

  bool operator==(const State&) const = default;
};

struct Event {
  enum class Kind : uint8_t {
    kAcquire,       // host, ticket, may_wait, last_applied
    kTimeout,       // ticket
    kYield,         // host, epoch, last, unshipped
    kResume,        // host, epoch
    kFirstWrite,    // host, epoch: becomes durable before the write is applied
    kHostGone,      // host: its waiting requests are void; what it holds it goes on holding
    kPreempt,       // last_applied: the holder loses the tenure without its word
    kFenceSeen,     // host, epoch: it knows, and has put aside what only it had
  };
  Kind kind = Kind::kAcquire;
  std::string host;
  Ticket ticket = 0;
  Epoch epoch;
  bool may_wait = false;
  bool unshipped = false;      // yield: what the tenure wrote is in no batch that will be shipped as it is
  WriteSequence last;          // yield: the tenure's last write, counter 0: none
  WriteSequence last_applied;  // acquire, preempt: the last of this epoch that the shared copy holds

  static Event acquire(std::string host, Ticket ticket, bool may_wait, WriteSequence last_applied = {});
  static Event timeout(Ticket ticket);
  static Event yield(std::string host, Epoch epoch, WriteSequence last);
  static Event resume(std::string host, Epoch epoch);
  static Event first_write(std::string host, Epoch epoch);
  static Event host_gone(std::string host);
  static Event preempt(WriteSequence last_applied);
  static Event fence_seen(std::string host, Epoch epoch);
};

struct Action {
  enum class Kind : uint8_t {
    kEnded,     // host, epoch, parent: the tenure of `epoch` is over; `parent` is what it left behind
    kStarted,   // host, epoch, parent: a tenure began (once for each epoch)
    kGrant,     // ticket, host, epoch, parent: answer the request
    kRecall,    // host (the holder), epoch, wanted_by
    kBusy,      // ticket, host (the holder), epoch: refuse
    kAccepted,  // the yield, resume, preempt or fence_seen is taken
    kFenced,    // ticket or 0: the acquire, yield, resume or write is refused: `epoch` is the newest
  };
  Kind kind = Kind::kGrant;
  Ticket ticket = 0;
  std::string host;
  Epoch epoch;
  Parent parent;
  std::string wanted_by;
  bool operator==(const Action&) const = default;
};

struct Outcome {
  State state;
  std::vector<Action> actions;   // in order
  bool durable = false;          // the state's durable part changed
};

Outcome step(const State& state, const Event& event);

// The hot path's question, for every mirrored write.
inline bool may_write(const State& state, const std::string& host, Epoch epoch) {
  return epoch == state.epoch && epoch.value != 0 && state.holder == host;
}

}  // namespace tidemark::fence
