// Sends staged batches to the replica: oldest first, parts of one batch side by side, resuming from
// what the replica says it has. A batch leaves the spool only after the replica answered that it is
// durable and complete there.
//
//   asking -> sending -> (answered) sending the next ...
//     ^         | transport error, 5xx: back-off 100 ms to 10 s with jitter
//     +---------+ 409 out of order: ask again. 409 conflict, 422, 4xx, another store: stopped loudly,
//                 tried again slowly, since an operator may repair it.
//
// What went wrong stays the error, and the back-off goes on from there, until a part was taken that was not there before:
// a replica without room answers every question.
//
// At the journal's limit the queue is handed over between two sendings, and the replica is asked what it has until it
// answers: then it is brought level by a resync, which is shipped like all else.
//
// Loop thread only. Owns the spool's files once a batch is given to it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "journal/records.h"
#include "shared/base/task.h"
#include "shared/io/env.h"
#include "shared/net/network.h"

namespace tidemark::journal {

// What the messages about a lost replica say.
inline constexpr std::string_view kFullResyncRemedy =
    "a full resynchronization is needed: `tidemark journal resync-replica` on this node begins it";

struct StagedBatch {
  BatchNumber number, supersedes_first;            // supersedes_first: 0 none
  Sha256 digest{};
  std::vector<PartInfo> parts;
  WallTime label;
  BatchKind kind = BatchKind::kNormal;
  std::string name;
  std::vector<ImageExtent> regions;                // what it changed, in whole regions
  io::BootTime staged_at;
  uint64_t bytes() const { uint64_t n = 0; for (const PartInfo& p : parts) n += p.bytes; return n; }
};

struct ReplicaRow {                                // what was last known of the replica
  Uuid store;
  BatchNumber newest;                              // durable there
  WallTime label;
  Sha256 digest{};
};
Bytes encode_replica_row(const ReplicaRow& row);
Result<ReplicaRow> decode_replica_row(ByteSpan value);

class Shipper {
 public:
  struct Hooks {
    // Makes the batch's end durable here (its row goes, `row` is kept), then `done`.
    std::function<void(const StagedBatch&, const ReplicaRow& row, Callback<Status> done)> forget;
    // Its files are gone too.
    std::function<void(const StagedBatch&, const std::string& receipt)> shipped;
    // The replica has taken one that was given up, after it had said what it has: what it is sent stands for that one, too.
    std::function<void(BatchNumber)> taken_late;
  };
  Shipper(io::Env& env, std::string spool, std::string source, Uuid generation, ReplicaRow known, Hooks hooks);
  ~Shipper();

  void add(StagedBatch batch);
  // `bytes_per_second_max`: of all parts together, which then go one after the other; 0: no limit.
  void start(std::unique_ptr<net::HttpClient> client, uint64_t bytes_per_second_max = 0);
  void pause(bool paused);
  // Gives the whole queue back, as soon as nothing of it is on its way: it is not shipped, nor are its files removed.
  void hand_over(Callback<std::deque<StagedBatch>> done);
  // Asks the replica what it has, until it answers and `judge` finds no fault with that (an empty text).
  struct Facts {
    BatchNumber expected;
    Sha256 last_digest{};                          // of batch expected-1; zeros: none
    Uuid store;
  };
  using Judge = std::function<std::string(const Facts&)>;
  void ask_facts(Judge judge);
  void set_replica(const ReplicaRow& row) { replica_ = row; }
  // The replica has another store, or has gone back: only a full resynchronization helps.
  bool lost() const { return lost_; }
  bool lost_all() const { return lost_ && lost_all_; }
  bool running() const { return client_ != nullptr && !paused_; }
  bool idle() const { return queue_.empty(); }
  bool sending() const { return busy_ && asked_; }
  const ReplicaRow& replica() const { return replica_; }
  const std::string& error() const { return error_; }
  size_t queued() const { return queue_.size(); }
  uint64_t queued_bytes() const { return queued_bytes_; }
  const std::deque<StagedBatch>& queue() const { return queue_; }

 private:
  enum class Outcome : uint8_t { kDone, kRetry, kAskAgain, kStopped };
  struct Answer { int status = 0; std::string body; Status transport; };
  struct PartSend;

  Task<void> run();
  void progressed();
  Task<Outcome> ask();
  Outcome judge_facts(const std::string& body);
  void note_lost(BatchNumber expected, bool replaced);
  void wake_now();
  Task<Outcome> send_batch();
  Task<Outcome> finish_batch(std::string receipt);
  Task<Answer> exchange(net::HttpRequest request);
  Task<Result<Bytes>> read_part(BatchNumber number, uint32_t part, uint64_t bytes);
  Task<void> wait_for_work();
  Task<void> sleep(io::Duration duration);
  Outcome judge_answer(const Answer& answer, const StagedBatch& batch, uint32_t part, bool* complete);
  Outcome judge_state(const std::string& body);
  Outcome stop(const std::string& event, std::string why);
  Outcome retry(std::string why);
  void wake();
  uint32_t parts_at_once() const;
  Task<void> await_allowance(size_t bytes);
  void start_part(std::shared_ptr<PartSend> send, uint32_t part);

  io::Env& env_;
  const std::string spool_, source_;
  const Uuid generation_;
  ReplicaRow replica_;
  Hooks hooks_;
  std::unique_ptr<net::HttpClient> client_;
  std::deque<StagedBatch> queue_;
  uint64_t queued_bytes_ = 0;
  uint64_t rate_ = 0;
  io::BootTime allowed_at_;                        // what was sent has taken its time by then
  Callback<bool> allowed_;
  io::TimerId allowance_timer_;
  bool paused_ = false, asked_ = false;
  bool sending_failed_ = false;                    // since something was taken last
  std::set<uint32_t> parts_there_;                 // of the batch that the replica expects
  std::string error_, error_logged_;
  uint32_t failures_ = 0;
  Callback<std::deque<StagedBatch>> hand_over_;
  Judge judge_;
  bool busy_ = false, lost_ = false, lost_all_ = false;
  UniqueFunction<void()> wake_, sleep_wake_;
  io::TimerId sleep_timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);   // outlived by file and network callbacks
  TaskGroup tasks_;
};

}  // namespace tidemark::journal
