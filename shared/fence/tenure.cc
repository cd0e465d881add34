#include "shared/fence/tenure.h"

#include <algorithm>
#include <utility>

namespace tidemark::fence {

Event Event::acquire(std::string host, Ticket ticket, bool may_wait, WriteSequence last_applied) {
  Event e;
  e.kind = Kind::kAcquire;
  e.host = std::move(host);
  e.ticket = ticket;
  e.may_wait = may_wait;
  e.last_applied = last_applied;
  return e;
}
Event Event::timeout(Ticket ticket) {
  Event e;
  e.kind = Kind::kTimeout;
  e.ticket = ticket;
  return e;
}
Event Event::yield(std::string host, Epoch epoch, WriteSequence last) {
  Event e;
  e.kind = Kind::kYield;
  e.host = std::move(host);
  e.epoch = epoch;
  e.last = last;
  return e;
}
Event Event::resume(std::string host, Epoch epoch) {
  Event e;
  e.kind = Kind::kResume;
  e.host = std::move(host);
  e.epoch = epoch;
  return e;
}
Event Event::first_write(std::string host, Epoch epoch) {
  Event e = resume(std::move(host), epoch);
  e.kind = Kind::kFirstWrite;
  return e;
}
Event Event::host_gone(std::string host) {
  Event e;
  e.kind = Kind::kHostGone;
  e.host = std::move(host);
  return e;
}
Event Event::preempt(WriteSequence last_applied) {
  Event e;
  e.kind = Kind::kPreempt;
  e.last_applied = last_applied;
  return e;
}

Event Event::fence_seen(std::string host, Epoch epoch) {
  Event e = resume(std::move(host), epoch);
  e.kind = Kind::kFenceSeen;
  return e;
}

namespace {

// One event's changes to one state.
class Stepper {
 public:
  explicit Stepper(const State& state) { out_.state = state; }

  Outcome take(const Event& event) {
    switch (event.kind) {
      case Event::Kind::kAcquire: acquire(event); break;
      case Event::Kind::kTimeout: timeout(event.ticket); break;
      case Event::Kind::kYield: yield(event); break;
      case Event::Kind::kResume: resume(event); break;
      case Event::Kind::kFirstWrite: first_write(event); break;
      case Event::Kind::kHostGone:
        std::erase_if(s().waiters, [&](const Waiter& w) { return w.host == event.host; });
        break;
      case Event::Kind::kPreempt: preempt(event); break;
      case Event::Kind::kFenceSeen: fence_seen(event); break;
    }
    return std::move(out_);
  }

 private:
  State& s() { return out_.state; }
  Action& act(Action::Kind kind) {
    Action& a = out_.actions.emplace_back();
    a.kind = kind;
    a.epoch = s().epoch;
    return a;
  }

  void acquire(const Event& e) {
    if (s().fenced.contains(e.host)) return fenced(e.ticket);
    if (!s().holder.empty() && s().holder != e.host) {
      if (!e.may_wait) return busy(e.ticket);
      s().waiters.push_back({e.ticket, e.host});
      return recall();
    }
    // The holder itself asks: it has lost what it knew of its tenure (a crash), and starts a new one.
    if (!s().holder.empty()) end(s().written, e.last_applied, false);
    start(e.host, e.ticket);
    recall();
  }

  void timeout(Ticket ticket) {
    if (std::erase_if(s().waiters, [&](const Waiter& w) { return w.ticket == ticket; }) > 0) busy(ticket);
  }

  void yield(const Event& e) {
    // Said again after a lost answer.
    if (s().holder.empty() && s().epoch == e.epoch && s().last_holder == e.host && e.epoch.value != 0) {
      act(Action::Kind::kAccepted);
      return;
    }
    if (!may_write(s(), e.host, e.epoch)) return fenced();
    end(e.last.counter.value != 0, e.last, true);
    if (e.unshipped && e.last.counter.value != 0) stand_in();
    act(Action::Kind::kAccepted);
    grant_first_waiter();
  }

  void resume(const Event& e) {
    if (!may_write(s(), e.host, e.epoch)) return fenced();
    act(Action::Kind::kAccepted);
    recall();
  }

  void first_write(const Event& e) {
    if (!may_write(s(), e.host, e.epoch)) return fenced();
    if (!s().written) {
      s().written = true;
      out_.durable = true;
    }
    act(Action::Kind::kAccepted);
  }

  void preempt(const Event& e) {
    if (s().holder.empty()) return;
    const std::string host = s().holder;
    end(s().written, e.last_applied, false);
    // Also where nothing was written there, as far as is known: what the holder wrote alone is not of the main line.
    s().parent.clean = false;
    stand_in();
    s().fenced[host] = s().epoch;
    s().last_holder.clear();   // a yield said again would be taken for one that was answered
    act(Action::Kind::kAccepted);
    grant_first_waiter();
  }

  void fence_seen(const Event& e) {
    auto it = s().fenced.find(e.host);
    if (it != s().fenced.end() && it->second <= e.epoch) {
      s().fenced.erase(it);
      out_.durable = true;
    }
    act(Action::Kind::kAccepted);
  }

  void grant_first_waiter() {
    if (s().waiters.empty()) return;
    Waiter first = s().waiters.front();
    s().waiters.erase(s().waiters.begin());
    start(first.host, first.ticket);
    recall();
  }

  void end(bool written, WriteSequence last, bool clean) {
    if (written) s().parent = {s().epoch, s().holder, last, clean};
    Action& a = act(Action::Kind::kEnded);
    a.host = s().holder;
    a.parent = s().parent;
    s().holder.clear();
    out_.durable = true;
  }

  // The next tenure holds all of the image, whatever is shipped of the one that has just ended.
  void stand_in() {
    s().parent.taken = true;
    out_.actions.back().parent = s().parent;
  }

  void start(const std::string& host, Ticket ticket) {
    s().epoch = s().epoch.next();
    s().holder = s().last_holder = host;
    s().written = false;
    out_.durable = true;
    Action& a = act(Action::Kind::kStarted);
    a.host = host;
    a.parent = s().parent;
    grant(host, ticket);
    // Other requests of the same host get the same tenure: one more would end the one just granted.
    for (const Waiter& w : s().waiters) {
      if (w.host == host) grant(host, w.ticket);
    }
    std::erase_if(s().waiters, [&](const Waiter& w) { return w.host == host; });
  }

  void grant(const std::string& host, Ticket ticket) {
    Action& a = act(Action::Kind::kGrant);
    a.ticket = ticket;
    a.host = host;
    a.parent = s().parent;
  }

  void recall() {
    if (s().waiters.empty()) return;
    Action& a = act(Action::Kind::kRecall);
    a.host = s().holder;
    a.wanted_by = s().waiters.front().host;
  }

  void busy(Ticket ticket) {
    Action& a = act(Action::Kind::kBusy);
    a.ticket = ticket;
    a.host = s().holder;
  }

  void fenced(Ticket ticket = 0) {
    Action& a = act(Action::Kind::kFenced);
    a.ticket = ticket;
    a.host = s().holder;
  }

  Outcome out_;
};

}  // namespace

Outcome step(const State& state, const Event& event) { return Stepper(state).take(event); }

}  // namespace tidemark::fence
