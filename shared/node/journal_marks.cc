#include "shared/node/journal_marks.h"

#include <algorithm>
#include <utility>

#include "journal/journal.h"
#include "shared/base/log.h"
#include "shared/net/network.h"

namespace tidemark::node {

namespace {

const log::Logger kLog("node.marks");
constexpr std::chrono::milliseconds kCloseMax{5000};

// A stream of marks alone has no blocks to stage.
class NoBlocks final : public journal::BlockSource {
 public:
  void read_block(const ImageId& image, Extent, Wanted, MutableByteSpan, Callback<Status> done) override {
    done(Status(Code::kNotFound, "the shared node journals no blocks of image " + image.to_string()));
  }
};

}  // namespace

JournalMarks::JournalMarks() = default;
JournalMarks::~JournalMarks() = default;

Result<std::unique_ptr<MarkSink>> JournalMarks::open(io::Env& env, JournalMarksOptions options) {
  auto out = std::unique_ptr<JournalMarks>(new JournalMarks());
  out->blocks_ = std::make_unique<NoBlocks>();
  journal::Options o;
  o.directory = options.directory;
  o.source = options.source;
  o.cluster = options.cluster;
  o.settings = options.settings;
  o.reserve_directories = options.reserve_directories;
  TM_ASSIGN_OR_RETURN(out->journal_, journal::Journal::open(env, std::move(o), *out->blocks_));
  for (const journal::DirtyImage& dirty : out->journal_->dirty_after_crash()) out->journal_->reconciled(dirty.image);
  out->replica_ = options.replica != nullptr;
  if (out->replica_) out->journal_->start_shipping(std::move(options.replica));
  return std::unique_ptr<MarkSink>(std::move(out));
}

void JournalMarks::record(const wire::Mark& mark) { journal_->mark(mark); }
void JournalMarks::forget(const ImageId& image) { journal_->forget(image); }

void JournalMarks::settle(Callback<Status> done) {
  if (!replica_) return done(Status(Code::kUnavailable, "no replica is configured"));
  journal::Point point = journal_->cut(journal::Journal::CutReason::kHandover);
  journal_->when_shipped(point.batch, [done = std::move(done)](Result<std::string> receipt) mutable {
    done(receipt ? Status::ok() : receipt.status());
  });
}

MarkSink::Usage JournalMarks::usage() const {
  journal::Usage u = journal_->usage();
  Usage out;
  out.spool_bytes = u.spool_bytes;
  out.spool_batches = u.spool_batches;
  out.journal_bytes = u.journal_bytes;
  out.replica_configured = replica_;
  out.shipping_paused = u.shipping_paused;
  out.ship_error = u.ship_error;
  out.rpo_ns = u.rpo_ns;
  out.incarnation = journal_->incarnation();
  out.generation = journal_->generation();
  out.newest_closed = u.newest_closed;
  out.newest_durable = u.newest_durable;
  out.closed_batches = u.closed_batches;
  out.records_unstaged = u.records_unstaged;
  out.last_finished = journal_->last_finished().value;
  out.json = journal::usage_json(u);
  out.reasons = journal::usage_reasons(u);
  return out;
}

void JournalMarks::resync_replica(Callback<Status> done) { journal_->resync_replica({}, std::move(done)); }

void JournalMarks::stop(UniqueFunction<void()> done) {
  journal_->close(kCloseMax, [done = std::move(done)](Status status) mutable {
    if (!status) kLog.warning("journal_close", {{"error", status}});
    done();
  });
}

}  // namespace tidemark::node
