// Intake, second half: batches into the history, commits, and what is dropped on the way.
#include <algorithm>

#include "replica/intake.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::replica {
namespace {
const log::Logger kLog("intake");
}

Task<Result<std::vector<journal::SegmentHead>>> Intake::heads_of(const BatchRecord& record,
                                                                 const journal::SegmentHead* own, uint32_t own_part) {
  std::vector<journal::SegmentHead> heads;
  for (uint32_t i = 0; i < record.parts.size(); ++i) {
    if (own != nullptr && i == own_part) {
      heads.push_back(*own);
      continue;
    }
    const SegmentId id = record.parts[i].segment;
    auto head = co_await async<Result<journal::SegmentHead>>(
        [&](Callback<Result<journal::SegmentHead>> done) { files_.read_head(id, std::move(done)); });
    if (!head) co_return head.status();
    heads.push_back(std::move(*head));
  }
  co_return heads;
}

// Every image of the batch was created or opened for writing in this source's own stream.
Status Intake::check_bound(const std::vector<journal::SegmentHead>& heads, const std::string& source) {
  std::unordered_set<ImageId> bound;
  for (const auto& head : heads) {
    for (const auto& m : head.marks) {
      if (binds(m.mark.kind)) bound.insert(m.mark.node.image);
    }
  }
  auto snapshot = store_.snapshot();
  for (const auto& slice : heads.front().images) {
    if (bound.contains(slice.image)) continue;
    auto marked = snapshot->get(kMarked, marked_key(source, slice.image));
    if (marked) continue;
    if (marked.status().code() != Code::kNotFound) return marked.status();
    return Status(Code::kInvalidArgument,
                  "image " + slice.image.to_string() + " has no create or open mark in the stream of " + source);
  }
  return Status::ok();
}

// Whether the batch would be held if it were taken now.
bool Intake::would_wait(const std::vector<journal::SegmentHead>& heads) const {
  std::vector<const journal::SegmentHead*> parts;
  for (const auto& head : heads) parts.push_back(&head);
  const BatchFacts facts = facts_of(parts);
  auto source = catalog_.order.sources.find(facts.source);
  if (source != catalog_.order.sources.end() && !source->second.waiting.empty()) return true;
  const std::vector<Wait> waits = waits_of(catalog_.order, facts);
  return std::any_of(waits.begin(), waits.end(), [&](const Wait& wait) {
    const bool own = std::find(facts.created.begin(), facts.created.end(), wait.image) != facts.created.end();
    return wait.kind != Wait::Kind::kCreate || !own;
  });
}

void Intake::drop_batch(const PartName& name, const BatchRecord& record, kv::WriteBatch& out) {
  for (uint32_t i = 0; i < record.parts.size(); ++i) {
    if (record.parts[i].present == 0) continue;
    doomed_.push_back({.source = name.source, .generation = name.generation, .number = name.number, .part = i});
    out.erase(kSegments, kv::key_u64(record.parts[i].segment.value));
    out.erase(kBatches, batch_key(name.source, name.generation, name.number));
  }
}

// Parts of a batch that was never finished, and in whose place another one stands now.
Status Intake::drop_superseded(const journal::BatchHeader& header, kv::WriteBatch& out) {
  if (header.supersedes_first.value == 0) return Status::ok();
  auto snapshot = store_.snapshot();
  auto cursor = snapshot->cursor(kBatches);
  const Bytes end = batch_key(header.source, header.generation, header.number);
  for (bool found = cursor->seek(batch_key(header.source, header.generation, header.supersedes_first)); found;
       found = cursor->next()) {
    const ByteSpan key = cursor->key();
    if (!std::lexicographical_compare(key.begin(), key.end(), end.begin(), end.end())) break;
    TM_ASSIGN_OR_RETURN(BatchRecord partial, wire::decode<BatchRecord>(cursor->value()));
    const BatchNumber number(load_be64(key.data() + key.size() - 8));
    if (partial.state == BatchState::kPartial) drop_batch({header.source, header.generation, number, 0}, partial, out);
  }
  kLog.warning("batches_superseded", {{"source", header.source}, {"first", header.supersedes_first},
                                      {"last", header.supersedes_last}, {"by", header.number}});
  return Status::ok();
}

// The pieces of a resync that the batch ends.
std::vector<BatchNumber> Intake::pieces_before(const PartName& name) {
  std::vector<BatchNumber> numbers;
  auto snapshot = store_.snapshot();
  auto cursor = snapshot->cursor(kPieces);
  const Bytes end = batch_key(name.source, name.generation, name.number);
  const Bytes first = batch_key(name.source, name.generation, BatchNumber(0));
  for (bool found = cursor->seek(first); found; found = cursor->next()) {
    const ByteSpan key = cursor->key();
    if (!std::lexicographical_compare(key.begin(), key.end(), end.begin(), end.end())) break;
    numbers.push_back(BatchNumber(load_be64(key.data() + key.size() - 8)));
  }
  return numbers;
}

Status Intake::finish_pieces(const PartName& name, const std::vector<BatchNumber>& numbers, PointId point,
                             kv::WriteBatch& out) {
  auto snapshot = store_.snapshot();
  for (const BatchNumber number : numbers) {
    const Bytes key = batch_key(name.source, name.generation, number);
    TM_ASSIGN_OR_RETURN(BatchRecord record, read_record<BatchRecord>(*snapshot, kBatches, key));
    record.state = BatchState::kApplied;
    record.point = point;
    put_record(out, kBatches, key, record);
    out.erase(kPieces, key);
  }
  return Status::ok();
}

Task<Status> Intake::apply_ready() {
  while (!catalog_.ready.empty()) {
    ApplyAction action = std::move(catalog_.ready.front());
    catalog_.ready.pop_front();
    const PartName name{action.batch.source, action.batch.generation, action.batch.number, 0};
    auto record = stored_batch(name);
    Status status;
    if (!record) status = record.status();
    else if (!*record) status = Status(Code::kCorruption, "batch " + name.to_string() + " is held and has no record");
    if (status) {
      auto heads = co_await heads_of(**record, nullptr, 0);
      if (heads) {
        kv::WriteBatch out;
        Status s = co_await apply(std::move(action), std::move(*heads), std::move(out));
        if (!s) co_return s;
        continue;
      }
      status = heads.status();
    }
    // A held part cannot be read: nothing after it may be applied, so the store stands still and says so.
    alarm_("held_batch_damaged", name.to_string(), status.to_string());
    broken_ = status;
    co_return status;
  }
  co_return Status::ok();
}

Task<Status> Intake::apply(ApplyAction action, std::vector<journal::SegmentHead> heads, kv::WriteBatch out) {
  const int64_t began = env_.now().ns;
  const PartName name{action.batch.source, action.batch.generation, action.batch.number, 0};
  struct Job {
    ApplyInput input;
    ApplyOutput output;
    std::unique_ptr<kv::Snapshot> snapshot;
  };
  auto job = std::make_shared<Job>();   // shared with the worker
  job->input = {.action = action, .point = catalog_.meta.next_point, .heads = std::move(heads)};
  BatchRecord record;
  for (const auto& op : out.ops()) {     // accepted in this same commit
    if (op.table == kBatches && op.key == batch_key(name.source, name.generation, name.number)) {
      auto decoded = wire::decode<BatchRecord>(op.value);
      if (decoded) record = std::move(*decoded);
    }
  }
  if (record.parts.empty()) {
    auto stored = stored_batch(name);
    if (!stored || !*stored) co_return Status(Code::kCorruption, "batch " + name.to_string() + " has no record");
    record = std::move(**stored);
  }
  for (const PartRecord& part : record.parts) job->input.segments.push_back(part.segment);
  const std::vector<BatchNumber> pieces = pieces_before(name);
  uint64_t leaves = 0;
  if (!pieces.empty()) {
    Status prepared = co_await prepare_resync(action, record, job->input, pieces, leaves);
    // For want of space it stands first, and is tried again.
    if (!prepared && (prepared.code() == Code::kOutOfSpace || !broken_)) co_return prepared;
    if (!prepared) {
      alarm_("held_batch_damaged", name.to_string(), prepared.to_string());
      broken_ = prepared;
      co_return broken_;
    }
  }
  if (const SourceRecord* source = catalog_.source(name.source)) {
    job->input.is_shared_node = source->role == static_cast<uint8_t>(net::Role::kShared);
  }
  std::vector<ImageId> ids = images_of(job->input.heads);
  for (const wire::Mark& mark : job->input.marks_before) {
    if (mark.kind == wire::MarkKind::kCreate && !mark.node.image.is_nil()) ids.push_back(mark.node.image);
  }
  for (const ImageId& id : ids) {
    if (const Catalog::Image* image = catalog_.image(id)) job->input.images[id] = *image;
    auto taken = catalog_.order.taken.find(id);
    if (taken != catalog_.order.taken.end()) job->input.taken[id] = taken->second;
  }
  job->snapshot = store_.snapshot();
  co_await async<bool>([&](Callback<bool> done) {
    env_.offload([job] { job->output = build_changes(*job->snapshot, job->input); job->snapshot.reset(); },
                 [d = std::make_shared<Callback<bool>>(std::move(done))] { (*d)(true); });
  });
  if (!job->output.status) {
    alarm_("apply_failed", name.to_string(), job->output.status.to_string());
    broken_ = job->output.status;
    co_return broken_;
  }
  Status finished = finish_pieces(name, pieces, catalog_.meta.next_point, job->output.changes);
  if (!finished) {
    broken_ = finished;
    co_return broken_;
  }
  uint64_t payload = 0;
  for (const auto& head : job->input.heads) {
    for (const auto& e : head.extents) payload += e.kind == journal::ExtentKind::kData ? e.extent.length : 0;
  }
  if (TM_PLANTED("skip a batch") && name.number.value % 16 == 0) job->output.changes = {};
  out.append(std::move(job->output.changes));
  job->output.leaves += leaves;
  catalog_.end_applying(out);
  note_removed(job->input, out);
  finish_apply(action, std::move(record), job->output, out);
  Status s = co_await commit(std::move(out));
  if (!s) co_return s;
  ++counters_.batches_applied;
  counters_.applied_payload_bytes += payload;
  counters_.apply_seconds += static_cast<double>(env_.now().ns - began) * 1e-9;
  report(action, job->output, job->input.heads.front().batch.point_name);
  if (!pieces.empty()) co_return co_await clear_laid();
  co_return Status::ok();
}

// Of an image that nobody can name any more nobody is told that it is cut off.
void Intake::note_removed(const ApplyInput& input, kv::WriteBatch& out) {
  auto note = [&](const wire::Mark& mark) {
    const bool removes = mark.kind == wire::MarkKind::kUnlink || mark.kind == wire::MarkKind::kRename;
    if (removes && !mark.replaced.is_nil()) catalog_.note_removed(mark.replaced, out);
  };
  for (const wire::Mark& mark : input.marks_before) note(mark);
  for (const auto& head : input.heads) {
    for (const auto& m : head.marks) note(m.mark);
  }
}

void Intake::finish_apply(const ApplyAction& action, BatchRecord record, ApplyOutput& built, kv::WriteBatch& out) {
  const PointId point = catalog_.meta.next_point;
  catalog_.meta.next_point = point.next();
  record.state = BatchState::kApplied;
  record.point = point;
  const BatchFacts& batch = action.batch;
  put_record(out, kBatches, batch_key(batch.source, batch.generation, batch.number), record);
  put_point(point, action, record, out);
  GapRecord gap;
  for (const Wait& wait : action.gaps) gap.without.push_back(wait.to_string());
  for (const ImageId& image : built.withheld)
    gap.without.push_back("image " + image.to_string() + ", which " + batch.source + " cannot read");
  for (const Unlike& unlike : action.unlike) {
    const std::string image = "image " + unlike.image.to_string();
    if (unlike.taken != 0) {
      gap.without.push_back(image + ", which was taken from " + batch.source +
                            " by force: what it wrote there is a branch");
    } else {
      gap.without.push_back(image + ", which is shown as epoch " + std::to_string(unlike.epoch.value) +
                            " has it, not as " + batch.source + " had it then");
    }
  }
  for (const Overtaken& overtaken : action.overtaken) catalog_.put_overtaken(overtaken, out);
  for (const CutOff& cut : action.cut_off) {
    if (catalog_.put_cut_off(cut, point, out)) built.cut_off.push_back(cut);
  }
  for (const ImageId& image : action.made_good) catalog_.end_cut_off(image, point, out);
  if (!gap.without.empty()) {
    put_record(out, kGaps, kv::key_u64(point.value), gap);
  }
  for (auto& [id, version] : built.versions) {
    Catalog::Image& image = catalog_.add_image(id, out);
    image.newest = version;
    image.has_version = true;
  }
  if (const StreamRecord* known = catalog_.stream(batch.source, batch.generation)) {
    StreamRecord stream = *known;
    stream.applied = batch.number;
    catalog_.put_stream({batch.source, batch.generation}, stream, out);
  }
  if (const SourceRecord* known = catalog_.source(batch.source)) {
    SourceRecord source = *known;
    source.applied = std::max(source.applied, batch.last);
    source.newest_label = record.label;
    catalog_.put_source(batch.source, source, out);
  }
  catalog_.unhold(batch, out);
  catalog_.put_meta(out);
}

void Intake::put_point(PointId id, const ApplyAction& action, const BatchRecord& record, kv::WriteBatch& out) {
  PointRecord point{.source = action.batch.source, .generation = action.batch.generation, .number = action.batch.number,
                    .label = record.label, .name = record.name, .kind = record.kind, .incarnation = record.incarnation,
                    .last = record.last};
  // What it should have waited for is missing in it: it bears no name that promises a state.
  if (!action.given_up.empty()) point.name.clear();
  put_record(out, kPoints, kv::key_u64(id.value), point);
  if (!point.name.empty()) out.put(kPointNames, point_name_key(point.name, id), {});
  // The smallest label of each block of points, so that a search by time skips blocks.
  const auto block = kv::key_u64(id.value / kPointsInBlock);
  int64_t least = record.label.ns;
  const auto stored = store_.snapshot()->get(kLabelBlocks, block);
  if (stored && stored->size() == 8) least = std::min(least, load_le<int64_t>(stored->data()));
  else if (stored || stored.status().code() != Code::kNotFound) least = INT64_MIN;   // damaged: nothing is known
  Bytes value(8);
  store_le(value.data(), least);
  out.put(kLabelBlocks, block, value);
}

void Intake::report(const ApplyAction& action, const ApplyOutput& built, const std::string& name) {
  const BatchFacts& batch = action.batch;
  kLog.debug("batch_applied", {{"source", batch.source}, {"number", batch.number}, {"leaves", built.leaves}});
  const std::string lost = name.empty() ? "" : " (its point has lost the name " + name + ")";
  for (const Wait& wait : action.given_up) {
    alarm_("circular_wait", batch.source + "/" + std::to_string(batch.number.value),
           "applied before " + wait.to_string() + lost + ", which waits for it: a host gave up batches across a "
           "handover; the points in between are not exact");
  }
  for (const Wait& wait : action.gaps) {
    alarm_("gap", batch.source + "/" + std::to_string(batch.number.value),
           "applied without " + wait.to_string() + ", which did not come: the batch holds the whole image, the points "
           "in between are missing");
  }
  for (const ImageId& image : built.withheld) {
    alarm_("withheld", batch.source + "/" + image.to_string(),
           "batch " + std::to_string(batch.number.value) + " is without image " + image.to_string() + ", which " +
               batch.source + " cannot read: what is shown of it is older than the point");
  }
  for (const CutOff& cut : built.cut_off) {
    const Catalog::Image* image = catalog_.image(cut.image);
    const bool removed = image != nullptr && image->removed;
    alarm_("journal_lost", cut.image.to_string(),
           "epoch " + std::to_string(cut.epoch.value) + " goes on upon writes of " + cut.source + " up to " +
               std::to_string(cut.through.incarnation.value) + ":" + std::to_string(cut.through.counter.value) +
               " that were lost with its journal: the image is shown as it was before them" +
               (removed ? "; it was removed"
                        : " until all of it is sent, by `tidemark journal resync-replica` on the host that has it "
                          "(now " + batch.source + ")"));
  }
  for (const BranchRecord& branch : built.branches) {
    ++counters_.branches;
    alarm_("branch", branch.image.to_string() + "/" + std::to_string(branch.epoch.value) + "/" + branch.source,
           "writes of epoch " + std::to_string(branch.epoch.value) + " by " + branch.source + " came after epoch " +
               std::to_string(branch.newer.value) + " and are kept aside: batch " +
               std::to_string(branch.number.value));
  }
  for (const EventMismatch& mismatch : built.mismatches) {
    ++counters_.event_mismatches;
    alarm_("event_mismatch", std::to_string(mismatch.number.value),
           "the records of event " + std::to_string(mismatch.number.value) + " differ; the second came from " +
               mismatch.source);
  }
}

Task<Status> Intake::commit(kv::WriteBatch out) {
  // The starter captures by reference alone: g++ 12 destroys an awaited temporary's captures twice.
  Status s = co_await async<Status>([&](Callback<Status> done) { store_.commit(std::move(out), std::move(done)); });
  const std::vector<SegmentRecord> doomed = std::exchange(doomed_, {});
  if (s) {
    for (const SegmentRecord& segment : doomed) files_.remove(segment);
    co_return s;
  }
  if (s.code() == Code::kOutOfSpace) {
    // Nothing was changed: memory goes back to what is durable.
    auto loaded = Catalog::load(store_, catalog_.meta.cluster, catalog_.meta.store);
    if (loaded) catalog_ = std::move(*loaded);
    else broken_ = loaded.status();
    kLog.warning("store_full", {{"reason", s}});
  } else {
    broken_ = s;
    kLog.error("store_failed", {{"reason", s}});
  }
  co_return s;
}

}  // namespace tidemark::replica
