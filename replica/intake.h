// The way of a part into the store, and of a complete batch into the history.
//
//   put() -- on a worker: SHA-256, parse, checksums; meanwhile the bytes go to incoming/, synced --
//     lane: judged, checked, renamed into place, committed -- complete? ordered -- applied -- answered
//
// The lane is one coroutine for the whole replica: parts are judged and batches applied one at a
// time, each batch in one LMDB transaction (together with its acceptance where nothing holds it).
// A piece of a resync joins its stream and nothing else: it is applied with the batch of another kind that ends the
// resync, at that one's point, so that what lies between is never shown. That is done in steps (intake_resync.cc).
// Nothing is answered with 200 before the file, its directory and the commit are durable.
// Loop thread only.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "replica/acceptance.h"
#include "replica/apply.h"
#include "replica/catalog.h"
#include "replica/segment_files.h"
#include "shared/base/task.h"

namespace tidemark::replica {

// Held batches; a part that would make one more is answered 503 until some were applied.
inline constexpr size_t kHeldBatchesMax = 65536;
inline constexpr uint64_t kSpaceReserveBytes = 64ull << 20;   // parts are answered 507 when less would be left
inline constexpr size_t kStepExtents = 4096;   // of a resync, laid out in one write batch; likewise leaves
inline constexpr uint64_t kPointsInBlock = 1024;              // of kLabelBlocks

struct PutAnswer {
  int status = 200;               // of HTTP
  bool complete = false, applied = false;
  PointId point;
  std::vector<std::string> waits_for;
  std::string error, reason;      // other than 200
  BatchNumber expected;           // 409 out_of_order
  std::string have, got;          // 409 conflict
};

struct IntakeCounters {
  uint64_t parts_accepted = 0, parts_repeated = 0, batches_accepted = 0, batches_applied = 0, refused = 0,
           conflicts = 0;
  uint64_t received_bytes = 0, applied_payload_bytes = 0, branches = 0, event_mismatches = 0;
  double apply_seconds = 0;
  uint64_t steps = 0, step_rows_max = 0;   // of resyncs' ends; the most rows that one of them changed
};

class Intake {
 public:
  using Alarm = std::function<void(const std::string& kind, const std::string& subject, const std::string& text)>;
  Intake(io::Env& env, kv::Store& store, SegmentFiles& files, Catalog& catalog, std::string directory,
         size_t held_batches_max, size_t step_extents, Alarm alarm);
  ~Intake();

  // Applies what was ready when the store was opened.
  void start();
  // `claimed` is the digest that the sender gave.
  void put(PartName name, net::Role role, Bytes body, Sha256 claimed, Callback<PutAnswer> done);

  // The source's first held batch has waited long enough for what its whole images stand in for.
  void release(const std::string& source);

  // Whether a part of this stream was received and is not answered yet, though nobody may wait for the answer any more.
  bool taking(const std::string& source, const Uuid& generation) const {
    return taking_.contains({source, generation});
  }
  const IntakeCounters& counters() const { return counters_; }
  bool idle() const { return in_flight_ == 0 && !lane_running_; }
  // Why batches that could be applied are not: the store is full.
  const Status& stalled() const { return stalled_; }
  // Why the newest part was refused for want of space; OK once one was taken since.
  const Status& full() const { return full_; }
  // Asked now and then: tries to apply these again, ever less often, once in five minutes in the end.
  void try_again();
  // Not OK once the store has failed: nothing is accepted any more, restart the daemon.
  const Status& broken() const { return broken_; }

 private:
  struct Upload;
  struct Batch;
  void receive(const std::shared_ptr<Upload>& up);
  void received(const std::shared_ptr<Upload>& up);
  Result<std::optional<BatchRecord>> stored_batch(const PartName& name);
  bool may_be_new(const PartName& name) const;

  void wake();
  void note_stalled(Status status);
  Task<void> run_lane();
  Task<PutAnswer> process(std::shared_ptr<Upload> up);
  Task<PutAnswer> accept(std::shared_ptr<Upload> up, std::optional<BatchRecord> stored);
  Task<PutAnswer> complete(std::shared_ptr<Upload> up, BatchRecord record, std::vector<journal::SegmentHead> heads,
                           kv::WriteBatch out);
  Task<Result<std::vector<journal::SegmentHead>>> heads_of(const BatchRecord& record, const journal::SegmentHead* own,
                                                           uint32_t own_part);
  Task<Status> apply_ready();
  Task<Status> apply(ApplyAction action, std::vector<journal::SegmentHead> heads, kv::WriteBatch out);
  Task<Status> commit(kv::WriteBatch out);

  PutAnswer answer_judgement(const Upload& up, const Judgement& judgement);
  PutAnswer answer_stored(const PartName& name, const BatchRecord& record);
  PutAnswer refuse(const Upload& up, int status, std::string error, std::string reason);
  void add_part(BatchRecord& record, const Upload& up, SegmentId id);
  Status check_bound(const std::vector<journal::SegmentHead>& heads, const std::string& source);
  bool would_wait(const std::vector<journal::SegmentHead>& heads) const;
  void drop_batch(const PartName& name, const BatchRecord& record, kv::WriteBatch& out);
  Status drop_superseded(const journal::BatchHeader& header, kv::WriteBatch& out);
  std::vector<BatchNumber> pieces_before(const PartName& name);
  Result<bool> find_pieces(BatchFacts& end);

  // intake_resync.cc
  struct Step;
  struct LaidImage { ImageIndex index; std::optional<uint64_t> shrink_to; uint64_t size = 0; };
  using LaidImages = std::map<ImageId, LaidImage>;
  Task<Status> take_step(std::function<void(Step&)> work);
  Task<Status> clear_laid();
  Task<Status> lay_part(const journal::SegmentHead& head, SegmentId segment, const LaidImages& named);
  Task<Status> lay_out(const PartName& name, const BatchRecord& end, const std::vector<journal::SegmentHead>& heads,
                       const std::vector<BatchNumber>& pieces, const LaidImages& named,
                       std::vector<wire::Mark>& marks);
  Task<Status> publish_laid(const LaidImages& named, PointId point, uint64_t& leaves);
  Task<Status> prepare_resync(const ApplyAction& action, const BatchRecord& record, ApplyInput& input,
                              const std::vector<BatchNumber>& pieces, uint64_t& leaves);

  void note_removed(const ApplyInput& input, kv::WriteBatch& out);
  void finish_apply(const ApplyAction& action, BatchRecord record, ApplyOutput& built, kv::WriteBatch& out);
  Status finish_pieces(const PartName& name, const std::vector<BatchNumber>& numbers, PointId point,
                       kv::WriteBatch& out);
  void put_point(PointId id, const ApplyAction& action, const BatchRecord& record, kv::WriteBatch& out);
  void report(const ApplyAction& action, const ApplyOutput& built, const std::string& name);

  io::Env& env_;
  kv::Store& store_;
  SegmentFiles& files_;
  Catalog& catalog_;
  const std::string directory_;
  const size_t held_batches_max_;
  const size_t step_extents_;
  const Alarm alarm_;
  std::deque<std::shared_ptr<Upload>> lane_;
  bool lane_running_ = false;
  uint64_t in_flight_ = 0;        // uploads not yet answered
  std::map<Catalog::StreamId, uint64_t> taking_;   // how many of them, where there are any
  std::vector<SegmentRecord> doomed_;   // files to remove once the next commit is durable
  IntakeCounters counters_;
  Status broken_, stalled_, full_;
  io::BootTime try_at_;           // while it is stalled
  io::Duration try_after_{};
  TaskGroup tasks_;
};

}  // namespace tidemark::replica
