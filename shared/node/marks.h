// MarkSink: where the shared node's own stream of time marks goes. The real one is a journal that ships
// to the replica (journal_marks.h).
#pragma once

#include <string>
#include <vector>

#include "shared/base/function.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::node {

class MarkSink {
 public:
  struct Usage {
    uint64_t spool_bytes = 0, spool_batches = 0, journal_bytes = 0;
    bool replica_configured = false, shipping_paused = false;
    std::string ship_error;
    int64_t rpo_ns = 0;
    Incarnation incarnation;
    Uuid generation;
    BatchNumber newest_closed, newest_durable;
    uint64_t closed_batches = 0, records_unstaged = 0, last_finished = 0;
    std::string json;                          // all of the journal's, for status
    std::vector<std::string> reasons;          // what speaks against being healthy
  };
  virtual ~MarkSink() = default;
  // In the order of their numbers. A mark may be given again after a crash; the replica merges by number.
  virtual void record(const wire::Mark& mark) = 0;
  // The image is no more, nowhere: what was recorded of it may be left out where nobody has been told yet.
  virtual void forget(const ImageId&) {}
  // OK once all marks recorded so far can no longer be lost with this node; kUnavailable: ask again later.
  virtual void settle(Callback<Status> done) = 0;
  virtual Usage usage() const = 0;
  // The replica was emptied or replaced, and is to be taken: an operator's word. No crash forgets that after `done`.
  virtual void resync_replica(Callback<Status> done) { done(Status::ok()); }
  virtual void stop(UniqueFunction<void()> done) = 0;
};

// Drops everything: for tests of what is not marks.
class NoMarks final : public MarkSink {
 public:
  void record(const wire::Mark&) override {}
  void settle(Callback<Status> done) override { done(Status::ok()); }
  Usage usage() const override { return {}; }
  void stop(UniqueFunction<void()> done) override { done(); }
};

}  // namespace tidemark::node
