#include "replica/intake.h"

#include <algorithm>
#include <chrono>

#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::replica {
namespace {

const log::Logger kLog("intake");

// Of batches for which there was no room: a try may lay out much before it finds that out.
constexpr io::Duration kTryAfterMin = std::chrono::seconds(5), kTryAfterMax = std::chrono::minutes(5);

SegmentRecord segment_record(const PartName& name, const journal::SegmentReader& reader) {
  SegmentRecord record{.source = name.source, .generation = name.generation, .number = name.number, .part = name.part,
                       .prefix_bytes = reader.prefix_bytes(), .payload_bytes = reader.payload_bytes()};
  Writer w(record.chunks);
  for (uint32_t i = 0; i < reader.chunk_count(); ++i) {
    auto place = reader.chunk(i);
    w.u32(static_cast<uint32_t>(place.stored.length)).u64(place.checksum);
  }
  return record;
}

// What is acknowledged must be readable: every chunk gives its bytes, or the part is refused.
Status check_chunks(const journal::SegmentReader& reader, ByteSpan body) {
  Bytes raw(journal::kSegmentChunkBytes);
  for (uint32_t i = 0; i < reader.chunk_count(); ++i) {
    auto place = reader.chunk(i);
    ByteSpan stored = body.subspan(place.stored.offset, place.stored.length);
    Status s = journal::decode_chunk(stored, place.checksum, MutableByteSpan(raw).first(place.raw_bytes));
    if (!s) return s.with_context("chunk " + std::to_string(i));
  }
  return Status::ok();
}

bool is_complete(const BatchRecord& record) {
  return std::all_of(record.parts.begin(), record.parts.end(), [](const PartRecord& p) { return p.present != 0; });
}

}  // namespace

// One PUT. The worker and the file write use `body`; the loop waits for both.
struct Intake::Upload {
  PartName name;
  net::Role role = net::Role::kHost;
  Bytes body;
  Sha256 claimed{}, digest{};
  std::optional<Result<journal::SegmentReader>> reader;
  std::optional<Result<std::string>> incoming;   // path, once written; none: not tried
  int waiting = 0;
  Callback<PutAnswer> done;
};

Intake::Intake(io::Env& env, kv::Store& store, SegmentFiles& files, Catalog& catalog, std::string directory,
               size_t held_batches_max, size_t step_extents, Alarm alarm)
    : env_(env),
      store_(store),
      files_(files),
      catalog_(catalog),
      directory_(std::move(directory)),
      held_batches_max_(held_batches_max),
      step_extents_(step_extents),
      alarm_(std::move(alarm)) {}
Intake::~Intake() = default;

void Intake::start() { wake(); }

void Intake::release(const std::string& source) {
  if (!broken_) return;
  std::vector<ApplyAction> actions = replica::release(catalog_.order, source);
  for (ApplyAction& action : actions) catalog_.ready.push_back(std::move(action));
  wake();
}

void Intake::put(PartName name, net::Role role, Bytes body, Sha256 claimed, Callback<PutAnswer> done) {
  auto up = std::make_shared<Upload>();   // shared by the worker, the file write and the lane
  up->name = std::move(name);
  up->role = role;
  up->body = std::move(body);
  up->claimed = claimed;
  up->done = std::move(done);
  ++in_flight_;
  ++taking_[{up->name.source, up->name.generation}];
  counters_.received_bytes += up->body.size();
  receive(up);
}

// Whether the bytes are worth writing before they were judged.
bool Intake::may_be_new(const PartName& name) const {
  const StreamRecord* stream = catalog_.stream(name.source, name.generation);
  return broken_.is_ok() && name.number >= (stream != nullptr ? stream->expected : BatchNumber(1));
}

void Intake::receive(const std::shared_ptr<Upload>& up) {
  up->waiting = 2;
  auto one_done = [this, up] { if (--up->waiting == 0) received(up); };
  auto work = [up] {
    up->digest = journal::sha256(up->body);
    up->reader.emplace(journal::SegmentReader::parse_whole(up->body));
    if (!*up->reader) return;
    if (Status s = check_chunks(**up->reader, up->body); !s) up->reader.emplace(std::move(s));
  };
  env_.offload(work, one_done);
  auto space = env_.files().space(directory_);
  if (!may_be_new(up->name)) return one_done();
  if (space && space->available < up->body.size() + kSpaceReserveBytes) {
    up->incoming.emplace(Status(Code::kOutOfSpace, "the replica's storage is full"));
    return one_done();
  }
  files_.write_incoming(up->body, [up, one_done](Result<std::string> path) {
    up->incoming.emplace(std::move(path));
    one_done();
  });
}

void Intake::received(const std::shared_ptr<Upload>& up) {
  lane_.push_back(up);
  wake();
}

// Whoever makes room says so to nobody, and a batch that was taken is not sent again.
void Intake::try_again() {
  if (!stalled_ && env_.now() >= try_at_) wake();
}

void Intake::wake() {
  if (lane_running_ || (lane_.empty() && catalog_.ready.empty())) return;
  lane_running_ = true;
  // Posted, so that the lane never runs inside its own completion.
  env_.post([this] { tasks_.spawn(run_lane()); });
}

Task<void> Intake::run_lane() {
  // For want of space: tried again once a part was taken, or after a while. A try may lay out a whole resync.
  bool stalled = !stalled_ && env_.now() < try_at_;
  for (;;) {
    if (!catalog_.ready.empty() && broken_ && !stalled) {
      Status s = co_await apply_ready();
      if (!s) kLog.warning("apply_failed", {{"reason", s}});
      stalled = !s;
      note_stalled(std::move(s));
    }
    if (lane_.empty()) {
      if (catalog_.ready.empty() || !broken_ || stalled) break;
      continue;
    }
    std::shared_ptr<Upload> up = std::move(lane_.front());
    lane_.pop_front();
    const uint64_t accepted = counters_.parts_accepted;
    PutAnswer answer = co_await process(up);
    if (up->incoming && *up->incoming) files_.drop_incoming(**up->incoming);   // not kept
    if (answer.status == 507) full_ = Status(Code::kOutOfSpace, answer.reason);
    if (answer.status == 200 && counters_.parts_accepted != accepted) {   // there was room for it
      stalled = false;
      full_ = Status::ok();
    }
    --in_flight_;
    auto taken = taking_.find({up->name.source, up->name.generation});
    if (--taken->second == 0) taking_.erase(taken);
    up->done(std::move(answer));
  }
  lane_running_ = false;
  if (!stalled && catalog_.ready.empty()) note_stalled(Status::ok());
}

void Intake::note_stalled(Status status) {
  const bool again = !stalled_;
  stalled_ = std::move(status);
  if (stalled_) return;
  try_after_ = again ? std::min(kTryAfterMax, 2 * try_after_) : kTryAfterMin;
  try_at_ = env_.now() + try_after_;
}

Result<std::optional<BatchRecord>> Intake::stored_batch(const PartName& name) {
  auto record =
      read_record<BatchRecord>(*store_.snapshot(), kBatches, batch_key(name.source, name.generation, name.number));
  if (record) return std::optional<BatchRecord>(std::move(*record));
  if (record.status().code() == Code::kNotFound) return std::optional<BatchRecord>();
  return record.status();
}

PutAnswer Intake::refuse(const Upload& up, int status, std::string error, std::string reason) {
  ++counters_.refused;
  kLog.warning("part_refused",
               {{"part", up.name.to_string()}, {"status", status}, {"error", error}, {"reason", reason}});
  return {.status = status, .error = std::move(error), .reason = std::move(reason)};
}

Task<PutAnswer> Intake::process(std::shared_ptr<Upload> up) {
  if (!broken_) co_return PutAnswer{.status = 503, .error = "unavailable", .reason = broken_.to_string()};
  if (up->digest != up->claimed) {
    co_return refuse(*up, 422, "malformed",
                     "the body's SHA-256 is " + to_hex(up->digest) + ", x-tidemark-digest says " + to_hex(up->claimed));
  }
  auto stored = stored_batch(up->name);
  if (!stored) co_return refuse(*up, 500, "corruption", stored.status().to_string());
  Judgement judgement = judge_stored(up->name, up->digest, *stored ? &**stored : nullptr);
  if (judgement.kind == Judgement::Kind::kRepeated) {
    ++counters_.parts_repeated;
    if (TM_PLANTED("apply a batch twice") && (*stored)->state == BatchState::kApplied) {
      auto heads = co_await heads_of(**stored, nullptr, 0);
      std::vector<const journal::SegmentHead*> parts;
      for (const auto& part : *heads) parts.push_back(&part);
      ApplyAction again{.batch = facts_of(parts)};
      kv::WriteBatch out;
      Status applied = co_await apply(std::move(again), std::move(*heads), std::move(out));
      if (!applied) co_return refuse(*up, 503, "planted", applied.message());
    }
    co_return answer_stored(up->name, **stored);
  }
  if (judgement.kind != Judgement::Kind::kNew) co_return answer_judgement(*up, judgement);
  if (!*up->reader) co_return refuse(*up, 422, "malformed", up->reader->status().message());
  const journal::SegmentHead& head = (*up->reader)->head();
  const SourceRecord* source = catalog_.source(up->name.source);
  const StreamRecord* known = catalog_.stream(up->name.source, up->name.generation);
  const StreamRecord stream = known != nullptr ? *known : StreamRecord{};
  judgement = judge_new(up->name, source, stream, head.batch);
  if (judgement.kind != Judgement::Kind::kNew) co_return answer_judgement(*up, judgement);
  Status checked = check_part(up->name, catalog_.meta.cluster, source, stream, *stored ? &**stored : nullptr, head);
  if (!checked) co_return refuse(*up, 422, "refused", checked.message());
  co_return co_await accept(up, std::move(*stored));
}

PutAnswer Intake::answer_judgement(const Upload& up, const Judgement& judgement) {
  const StreamRecord* stream = catalog_.stream(up.name.source, up.name.generation);
  const BatchNumber expected = stream != nullptr ? stream->expected : BatchNumber(1);
  PutAnswer answer;
  switch (judgement.kind) {
    case Judgement::Kind::kOutOfOrder:
      answer = {.status = 409,
                .error = "out_of_order",
                .reason = "expected batch " + std::to_string(expected.value),
                .expected = expected};
      break;
    case Judgement::Kind::kOldGeneration:
      answer = {.status = 409,
                .error = "old_generation",
                .reason = "a newer journal generation of this source has begun",
                .expected = expected};
      alarm_("old_generation", up.name.source + "/" + up.name.generation.to_string(),
             "a batch of an abandoned journal generation came: " + up.name.to_string());
      break;
    default:
      answer = {.status = 409, .error = "conflict", .reason = "the same number with other bytes", .expected = expected,
                .have = to_hex(judgement.have), .got = to_hex(up.digest)};
      ++counters_.conflicts;
      alarm_("conflict", up.name.to_string(), "have " + answer.have + ", got " + answer.got);
  }
  ++counters_.refused;
  kLog.warning("part_refused", {{"part", up.name.to_string()}, {"status", answer.status}, {"error", answer.error},
                                {"expected", expected}, {"have", answer.have}, {"got", answer.got}});
  return answer;
}

PutAnswer Intake::answer_stored(const PartName& name, const BatchRecord& record) {
  PutAnswer answer{.complete = record.state != BatchState::kPartial,
                   .applied = record.state == BatchState::kApplied,
                   .point = record.point};
  if (record.state != BatchState::kHeld) return answer;
  if (record.kind == journal::BatchKind::kPiece) {
    answer.waits_for.push_back("the end of its resync");
    return answer;
  }
  auto source = catalog_.order.sources.find(name.source);
  if (source == catalog_.order.sources.end()) return answer;
  const auto& queue = source->second.waiting;
  for (size_t i = 0; i < queue.size(); ++i) {
    if (queue[i].number != name.number || queue[i].generation != name.generation) continue;
    for (const Wait& wait : waits_of(catalog_.order, source->second, i)) answer.waits_for.push_back(wait.to_string());
  }
  return answer;
}

void Intake::add_part(BatchRecord& record, const Upload& up, SegmentId id) {
  const journal::SegmentHead& head = (*up.reader)->head();
  const journal::BatchHeader& b = head.batch;
  if (record.parts.empty()) {
    record.kind = b.kind;
    record.parts.resize(b.parts);
    record.common = common_digest(head);
    record.label = b.label;
    record.name = b.point_name;
    record.incarnation = b.incarnation;
    record.first = b.first;
    record.last = b.last;
    record.supersedes_first = b.supersedes_first;
    record.supersedes_last = b.supersedes_last;
  }
  record.parts[b.part] = {1, Bytes(up.digest.begin(), up.digest.end()), id};
}

Task<PutAnswer> Intake::accept(std::shared_ptr<Upload> up, std::optional<BatchRecord> stored) {
  if (!up->incoming) co_return PutAnswer{.status = 503, .error = "unavailable", .reason = "send the part again"};
  if (!*up->incoming) {
    const Status& s = up->incoming->status();
    co_return refuse(*up, s.code() == Code::kOutOfSpace ? 507 : 500, std::string(code_name(s.code())), s.message());
  }
  kv::WriteBatch out;
  const SegmentId id = catalog_.meta.next_segment;
  BatchRecord record = stored ? std::move(*stored) : BatchRecord{};
  add_part(record, *up, id);
  const SegmentRecord segment = segment_record(up->name, **up->reader);
  const bool last_part = is_complete(record);
  std::vector<journal::SegmentHead> heads;
  if (last_part) {
    // Everything that can still refuse the batch comes before its last part is kept.
    auto all = co_await heads_of(record, &(*up->reader)->head(), up->name.part);
    if (!all) co_return refuse(*up, 500, "corruption", all.status().message());
    heads = std::move(*all);
    Status bound = check_bound(heads, up->name.source);
    if (!bound) {
      record.parts[up->name.part].present = 0;
      drop_batch(up->name, record, out);
      if (!out.empty()) {
        Status s = co_await commit(std::move(out));
        if (!s) kLog.warning("drop_failed", {{"part", up->name.to_string()}, {"reason", s}});
      }
      co_return refuse(*up, 422, "refused", bound.message());
    }
    // The batch that others wait for is taken however many those are.
    if (catalog_.order.held() >= held_batches_max_ && would_wait(heads)) {
      co_return refuse(*up, 503, "held", "too many batches are held");
    }
  }
  Status kept = files_.keep(**up->incoming, segment);
  if (!kept)
    co_return refuse(*up, kept.code() == Code::kOutOfSpace ? 507 : 500, std::string(code_name(kept.code())),
                     kept.message());
  up->incoming.reset();
  catalog_.meta.next_segment = id.next();
  catalog_.put_meta(out);
  put_record(out, kSegments, kv::key_u64(id.value), segment);
  ++counters_.parts_accepted;
  if (last_part) co_return co_await complete(up, std::move(record), std::move(heads), std::move(out));

  put_record(out, kBatches, batch_key(up->name.source, up->name.generation, up->name.number), record);
  Status s = co_await commit(std::move(out));
  if (!s)
    co_return refuse(*up, s.code() == Code::kOutOfSpace ? 507 : 503, std::string(code_name(s.code())), s.message());
  co_return answer_stored(up->name, record);
}

// Whether the batch ends a resync. What stands in for a host that is gone came with the pieces then; the order looks at
// the end alone.
Result<bool> Intake::find_pieces(BatchFacts& end) {
  auto snapshot = store_.snapshot();
  TM_ASSIGN_OR_RETURN(const bool ends, Catalog::ends_resync(*snapshot, end));
  if (!ends) return false;
  TM_ASSIGN_OR_RETURN(const std::vector<ImageId> whole, Catalog::whole_of_pieces(*snapshot, end));
  for (SliceFacts& slice : end.slices) {
    slice.whole = slice.whole || std::find(whole.begin(), whole.end(), slice.image) != whole.end();
  }
  return true;
}

// The last part of a batch: the batch joins its stream, and the order says what follows.
Task<PutAnswer> Intake::complete(std::shared_ptr<Upload> up, BatchRecord record,
                                 std::vector<journal::SegmentHead> heads, kv::WriteBatch out) {
  const PartName& name = up->name;
  const journal::BatchHeader header = heads.front().batch;
  std::vector<Sha256> digests(record.parts.size());
  for (size_t i = 0; i < digests.size(); ++i) std::copy_n(record.parts[i].digest.begin(), 32, digests[i].begin());
  const Sha256 digest = journal::batch_digest(digests);
  record.digest.assign(digest.begin(), digest.end());
  record.state = BatchState::kHeld;

  // All that may fail comes before anything is changed in memory: nothing of that is committed then.
  std::vector<const journal::SegmentHead*> parts;
  for (const auto& head : heads) parts.push_back(&head);
  BatchFacts facts = facts_of(parts);
  const bool piece = header.kind == journal::BatchKind::kPiece;
  auto ends = piece ? Result<bool>(false) : find_pieces(facts);
  if (!ends) co_return refuse(*up, 500, "corruption", ends.status().to_string());
  if (Status dropped = drop_superseded(header, out); !dropped) {
    doomed_.clear();
    co_return refuse(*up, 500, "corruption", dropped.to_string());
  }
  StreamRecord stream;
  if (const StreamRecord* known = catalog_.stream(name.source, name.generation)) stream = *known;
  stream.expected = name.number.next();
  stream.last_digest = record.digest;
  stream.accepted = name.number;
  catalog_.put_stream({name.source, name.generation}, stream, out);
  SourceRecord source;
  if (const SourceRecord* known = catalog_.source(name.source)) source = *known;
  if (up->role == net::Role::kHost && source.generation != name.generation)
    catalog_.put_lost(name.source, header.incarnation, out);
  source.generation = name.generation;
  source.incarnation = header.incarnation;
  source.nonce = header.nonce;
  source.last = header.last;
  source.role = static_cast<uint8_t>(up->role);
  catalog_.put_source(name.source, source, out);
  for (const auto& head : heads) {
    for (const auto& m : head.marks) {
      if (binds(m.mark.kind) && !m.mark.node.image.is_nil())
        out.put(kMarked, marked_key(name.source, m.mark.node.image), {});
    }
  }
  for (const ImageId& image : facts.created) catalog_.mark_created(image, out);
  if (!facts.created.empty()) catalog_.put_meta(out);   // the new ones have taken indices
  for (const Taken& taken : facts.taken) catalog_.put_taken(taken, out);
  ++counters_.batches_accepted;
  if (piece) {
    for (const ImageId& image : facts.created) catalog_.order.created.insert(image);
    put_record(out, kBatches, batch_key(name.source, name.generation, name.number), record);
    out.put(kPieces, batch_key(name.source, name.generation, name.number), Catalog::piece_value(facts));
    Status kept = co_await commit(std::move(out));
    if (kept) co_return answer_stored(name, record);
    co_return refuse(*up, kept.code() == Code::kOutOfSpace ? 507 : 503, std::string(code_name(kept.code())),
                     kept.message());
  }

  if (*ends) catalog_.order.resyncs.insert({facts.source, facts.generation, facts.number});
  std::vector<ApplyAction> actions = step(catalog_.order, facts);
  const bool at_once = !*ends && catalog_.ready.empty() && !actions.empty() &&
                       actions[0].batch.number == facts.number && actions[0].batch.source == facts.source &&
                       actions[0].batch.generation == facts.generation;
  for (size_t i = at_once ? 1 : 0; i < actions.size(); ++i) catalog_.ready.push_back(std::move(actions[i]));
  put_record(out, kBatches, batch_key(name.source, name.generation, name.number), record);
  Status s;
  if (at_once) {
    s = co_await apply(std::move(actions[0]), std::move(heads), std::move(out));
  } else {
    catalog_.hold(facts, env_.wall(), out);
    catalog_.put_meta(out);
    s = co_await commit(std::move(out));
  }
  if (s && stalled_) s = co_await apply_ready();
  auto now_stored = stored_batch(name);
  // Of a commit that failed the record may show earlier parts, and not this one.
  const bool there = now_stored && *now_stored &&
                     judge_stored(name, up->digest, &**now_stored).kind == Judgement::Kind::kRepeated;
  if (there) {
    if (!s) kLog.warning("apply_failed", {{"part", name.to_string()}, {"reason", s}});
    co_return answer_stored(name, **now_stored);
  }
  if (s) s = now_stored ? Status(Code::kCorruption, "the batch is gone") : now_stored.status();
  co_return refuse(*up, s.code() == Code::kOutOfSpace ? 507 : 503, std::string(code_name(s.code())), s.message());
}

}  // namespace tidemark::replica
