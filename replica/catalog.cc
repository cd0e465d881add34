#include "replica/catalog.h"

#include <algorithm>

#include "shared/wire/features.h"

namespace tidemark::replica {
namespace {

constexpr uint8_t kCreated = 1, kRemoved = 2;   // ImageRecord::heard
const ByteSpan kMetaKey = as_bytes("store"), kApplyingKey = as_bytes("applying"), kDecidedKey = as_bytes("decided");

Result<HeldRecord> held_record(ByteSpan value) {
  auto record = wire::decode<HeldRecord>(value);
  if (record) return record;
  HeldRecord older;
  older.full = false;
  wire::Decoder in(value);
  older.fields(in);
  if (!in.done()) return record.status();
  return older;
}

Result<Catalog::StreamId> parse_stream_key(ByteSpan key) {
  if (key.size() < 18 || key[key.size() - 17] != 0)
    return Status(Code::kCorruption, "streams: a key has the wrong form");
  Catalog::StreamId id;
  id.first = std::string(as_text(key.first(key.size() - 17)));
  std::copy_n(key.end() - 16, 16, id.second.bytes.begin());
  return id;
}

}  // namespace

Result<Catalog> Catalog::load(kv::Store& store, const Uuid& cluster, const Uuid& new_store) {
  auto meta = read_record<MetaRecord>(*store.snapshot(), kMeta, kMetaKey);
  if (!meta && meta.status().code() != Code::kNotFound) return meta.status().with_context("table meta");
  if (!meta) {
    Catalog fresh;
    fresh.meta.store = new_store;
    fresh.meta.cluster = cluster;
    kv::WriteBatch out;
    fresh.put_meta(out);
    TM_RETURN_IF_ERROR(store.commit_and_wait(std::move(out)));
    return fresh;
  }
  if (meta->version != kStoreVersion && meta->version != kStoreVersionInSteps) {
    return Status(Code::kUnsupported, "the store has version " + std::to_string(meta->version) +
                                          "; this program knows " + std::to_string(kStoreVersion));
  }
  if (meta->cluster != cluster) {
    return Status(Code::kPermission, "the store belongs to cluster " + meta->cluster.to_string() +
                                         ", the certificate to " + cluster.to_string() +
                                         ": give the replica a directory of its own");
  }
  auto snapshot = store.snapshot();
  TM_ASSIGN_OR_RETURN(Catalog out, load_tables(*snapshot));
  out.meta = *meta;
  // An earlier program did not store it with what the pieces of a resync had made.
  for (const auto& [id, image] : out.images) out.meta.next_image = std::max(out.meta.next_image, image.index.next());
  return out;
}

Result<Catalog> Catalog::load_tables(kv::Snapshot& snapshot) {
  Catalog out;
  auto sources = snapshot.cursor(kSources);
  for (bool found = sources->first(); found; found = sources->next()) {
    TM_ASSIGN_OR_RETURN(SourceRecord record, wire::decode<SourceRecord>(sources->value()));
    std::string name(as_text(sources->key()));
    out.order.sources[name].applied = record.applied;
    out.sources.emplace(std::move(name), std::move(record));
  }
  auto streams = snapshot.cursor(kStreams);
  for (bool found = streams->first(); found; found = streams->next()) {
    TM_ASSIGN_OR_RETURN(StreamId id, parse_stream_key(streams->key()));
    TM_ASSIGN_OR_RETURN(StreamRecord record, wire::decode<StreamRecord>(streams->value()));
    out.streams.emplace(std::move(id), std::move(record));
  }
  auto alarms = snapshot.cursor(kAlarms);
  for (bool found = alarms->first(); found; found = alarms->next()) ++out.alarms;
  TM_RETURN_IF_ERROR(load_images(snapshot, out));
  auto taken = snapshot.cursor(kTakenTenures);
  for (bool found = taken->first(); found; found = taken->next()) {
    TM_ASSIGN_OR_RETURN(Taken record, wire::decode<Taken>(taken->value()));
    note_taken(out.order, record);
  }
  auto overtaken = snapshot.cursor(kOvertaken);
  for (bool found = overtaken->first(); found; found = overtaken->next()) {
    TM_ASSIGN_OR_RETURN(Overtaken record, wire::decode<Overtaken>(overtaken->value()));
    note_overtaken(out.order, record);
  }
  TM_RETURN_IF_ERROR(load_lost(snapshot, out));
  TM_RETURN_IF_ERROR(load_held(snapshot, out));
  return out;
}

Status Catalog::load_lost(kv::Snapshot& snapshot, Catalog& out) {
  auto lost = snapshot.cursor(kLost);
  for (bool found = lost->first(); found; found = lost->next()) {
    TM_ASSIGN_OR_RETURN(const LostRecord record, wire::decode<LostRecord>(lost->value()));
    note_lost(out.order, record.source, {record.after, record.before});
  }
  auto cuts = snapshot.cursor(kCutOff);
  for (bool found = cuts->first(); found; found = cuts->next()) {
    TM_ASSIGN_OR_RETURN(CutOffRecord record, wire::decode<CutOffRecord>(cuts->value()));
    if (cuts->key().size() != 24) return Status(Code::kCorruption, "cut_off: a key has the wrong form");
    ImageId image;
    std::copy_n(cuts->key().begin(), 16, image.bytes.begin());
    if (record.until.value == 0) out.order.cut_off[image] = {image, record.epoch, record.source, record.through};
    out.cut_offs.emplace(std::pair(image, point_of_key(cuts->key())), std::move(record));
  }
  return Status::ok();
}

Status Catalog::load_images(kv::Snapshot& snapshot, Catalog& out) {
  auto images = snapshot.cursor(kImages);
  auto versions = snapshot.cursor(kImageVersions);
  std::map<ImageIndex, ImageId> with_index;
  for (bool found = images->first(); found; found = images->next()) {
    TM_ASSIGN_OR_RETURN(ImageRecord record, wire::decode<ImageRecord>(images->value()));
    if (images->key().size() != 16) return Status(Code::kCorruption, "images: a key has the wrong form");
    ImageId id;
    std::copy_n(images->key().begin(), 16, id.bytes.begin());
    Image image{.index = record.index};
    image.created = (record.heard & kCreated) != 0;
    image.removed = (record.heard & kRemoved) != 0;
    const Bytes end = image_point_key(record.index, PointId(UINT64_MAX));
    if (versions->seek_before(end) && starts_with(versions->key(), ByteSpan(end).first(4))) {
      TM_ASSIGN_OR_RETURN(image.newest, wire::decode<ImageVersion>(versions->value()));
      image.has_version = true;
      out.order.epochs[id] = image.newest.epoch;
    }
    if (image.created) out.order.created.insert(id);
    const auto [other, alone] = with_index.try_emplace(image.index, id);
    if (!alone) out.mixed.emplace_back(other->second, id);
    out.images.emplace(id, std::move(image));
  }
  return Status::ok();
}

// The batch before it in its stream is a piece. Those that came in part are given up: it stands in their place.
Result<bool> Catalog::ends_resync(kv::Snapshot& snapshot, const BatchFacts& facts) {
  auto cursor = snapshot.cursor(kBatches);
  const Bytes here = batch_key(facts.source, facts.generation, facts.number);
  const ByteSpan stream = ByteSpan(here).first(here.size() - 8);
  for (bool found = cursor->seek_before(here); found && starts_with(cursor->key(), stream);
       found = cursor->previous()) {
    TM_ASSIGN_OR_RETURN(BatchRecord before, wire::decode<BatchRecord>(cursor->value()));
    if (before.state != BatchState::kPartial) return before.kind == journal::BatchKind::kPiece;
  }
  return false;
}

Bytes Catalog::piece_value(const BatchFacts& piece) {
  Bytes out;
  for (const SliceFacts& slice : piece.slices) {
    if (slice.whole) Writer(out).uuid(slice.image);
  }
  return out;
}

Result<std::vector<ImageId>> Catalog::whole_of_pieces(kv::Snapshot& snapshot, const BatchFacts& end) {
  std::vector<ImageId> out;
  const Bytes first = batch_key(end.source, end.generation, BatchNumber(0));
  const Bytes here = batch_key(end.source, end.generation, end.number);
  auto cursor = snapshot.cursor(kPieces);
  for (bool found = cursor->seek(first); found; found = cursor->next()) {
    const ByteSpan key = cursor->key();
    if (!std::lexicographical_compare(key.begin(), key.end(), here.begin(), here.end())) break;
    TM_ASSIGN_OR_RETURN(const Bytes bytes, snapshot.get(kPieces, key));   // a damaged one is not taken for none
    Reader value(bytes);
    for (size_t i = 0; i < bytes.size() / 16; ++i) out.push_back(value.uuid());
    if (!value.done()) return Status(Code::kCorruption, "a value of table pieces has the wrong length");
  }
  return out;
}

// Of the batch that was being applied, the first in `ready`. None: an earlier program began with it.
Status Catalog::load_decided(kv::Snapshot& snapshot, Catalog& out) {
  auto decided = read_record<DecidedRecord>(snapshot, kMeta, kDecidedKey);
  if (!decided && decided.status().code() != Code::kNotFound) return decided.status().with_context("table meta");
  if (!decided || decided->point != out.applying->point) return Status::ok();
  ApplyAction& action = out.ready.front();
  action.branched = std::move(decided->branched);
  action.newer = std::move(decided->newer);
  action.unlike = std::move(decided->unlike);
  action.overtaken = std::move(decided->overtaken);
  // Lost only since then: what it holds of such an image stands.
  std::erase_if(action.cut_off, [&](const CutOff& cut) {
    const bool left_out = std::ranges::find(action.branched, cut.image) != action.branched.end();
    if (!left_out) out.order.cut_off.erase(cut.image);
    return !left_out;
  });
  decided_before(out.order, action);
  return Status::ok();
}

Status Catalog::load_held(kv::Snapshot& snapshot, Catalog& out) {
  auto applying = read_record<ApplyingRecord>(snapshot, kMeta, kApplyingKey);
  if (applying) out.applying = std::move(*applying);
  else if (applying.status().code() != Code::kNotFound) return applying.status();
  auto held = snapshot.cursor(kHeld);
  auto is_applied = [&](const BatchFacts& facts) {
    return out.applying && facts.source == out.applying->source && facts.generation == out.applying->generation &&
           facts.number == out.applying->number;
  };
  for (bool found = out.applying && held->first(); found; found = held->next()) {
    TM_ASSIGN_OR_RETURN(HeldRecord record, held_record(held->value()));
    if (!is_applied(record.facts)) continue;
    out.order.resyncs.insert({record.facts.source, record.facts.generation, record.facts.number});
    out.ready.push_back(resume(out.order, std::move(record.facts)));
    out.ready.back().given_up = out.applying->given_up;
    out.ready.back().gaps = out.applying->gaps;
  }
  if (out.applying && out.ready.empty()) {
    return Status(Code::kCorruption, "the batch that was being applied is not held: " + out.applying->source + "/" +
                                         std::to_string(out.applying->number.value));
  }
  if (out.applying) TM_RETURN_IF_ERROR(load_decided(snapshot, out));
  for (bool found = held->first(); found; found = held->next()) {
    TM_ASSIGN_OR_RETURN(HeldRecord record, held_record(held->value()));
    const BatchFacts& facts = record.facts;
    WallTime since;
    if (auto stored = snapshot.get(kHeldSince, held->key()); stored && stored->size() == 8) {
      since.ns = load_le<int64_t>(stored->data());
    }
    out.held_[{{facts.source, facts.generation}, facts.number}] = {load_be64(held->key().data()), since};
    if (is_applied(facts)) continue;
    TM_ASSIGN_OR_RETURN(bool ends, ends_resync(snapshot, facts));
    if (ends) out.order.resyncs.insert({facts.source, facts.generation, facts.number});
    for (ApplyAction& action : step(out.order, std::move(record.facts))) out.ready.push_back(std::move(action));
  }
  return Status::ok();
}

const SourceRecord* Catalog::source(const std::string& name) const {
  auto it = sources.find(name);
  return it == sources.end() ? nullptr : &it->second;
}
const StreamRecord* Catalog::stream(const std::string& name, const Uuid& generation) const {
  auto it = streams.find({name, generation});
  return it == streams.end() ? nullptr : &it->second;
}
const Catalog::Image* Catalog::image(const ImageId& id) const {
  auto it = images.find(id);
  return it == images.end() ? nullptr : &it->second;
}

Catalog::Image& Catalog::add_image(const ImageId& id, kv::WriteBatch& out) {
  auto [it, added] = images.try_emplace(id);
  if (added) {
    it->second.index = meta.next_image;
    meta.next_image = meta.next_image.next();
    put_image(id, it->second, out);
  }
  return it->second;
}

void Catalog::mark_created(const ImageId& id, kv::WriteBatch& out) {
  Image& image = add_image(id, out);
  if (image.created) return;
  image.created = true;
  put_image(id, image, out);
}
void Catalog::put_image(const ImageId& id, const Image& image, kv::WriteBatch& out) {
  const int heard = (image.created ? kCreated : 0) | (image.removed ? kRemoved : 0);
  put_record(out, kImages, id.bytes, ImageRecord{image.index, static_cast<uint8_t>(heard)});
}

void Catalog::put_meta(kv::WriteBatch& out) const { put_record(out, kMeta, kMetaKey, meta); }

void Catalog::put_source(const std::string& name, const SourceRecord& record, kv::WriteBatch& out) {
  sources[name] = record;
  put_record(out, kSources, as_bytes(name), record);
}
void Catalog::put_stream(const StreamId& id, const StreamRecord& record, kv::WriteBatch& out) {
  streams[id] = record;
  put_record(out, kStreams, stream_key(id.first, id.second), record);
}

void Catalog::hold(const BatchFacts& facts, WallTime since, kv::WriteBatch& out) {
  const uint64_t key = meta.next_held++;
  held_[{{facts.source, facts.generation}, facts.number}] = {key, since};
  put_record(out, kHeld, kv::key_u64(key), HeldRecord{facts});
  Bytes value;
  Writer(value).i64(since.ns);
  out.put(kHeldSince, kv::key_u64(key), value);
}
void Catalog::unhold(const BatchFacts& facts, kv::WriteBatch& out) {
  auto it = held_.find({{facts.source, facts.generation}, facts.number});
  if (it == held_.end()) return;   // applied as it arrived
  out.erase(kHeld, kv::key_u64(it->second.key));
  out.erase(kHeldSince, kv::key_u64(it->second.key));
  held_.erase(it);
}
void Catalog::begin_applying(const ApplyAction& action, kv::WriteBatch& out) {
  const BatchFacts& batch = action.batch;
  applying = ApplyingRecord{meta.next_point, batch.source, batch.generation, batch.number,
                            action.given_up, action.gaps};
  meta.version = kStoreVersionInSteps;
  put_record(out, kMeta, kApplyingKey, *applying);
  put_record(out, kMeta, kDecidedKey,
             DecidedRecord{meta.next_point, action.branched, action.newer, action.unlike, action.overtaken});
  put_meta(out);
}
void Catalog::end_applying(kv::WriteBatch& out) {
  if (!applying) return;
  applying.reset();
  meta.version = kStoreVersion;
  out.erase(kMeta, kApplyingKey);
  out.erase(kMeta, kDecidedKey);
}
void Catalog::put_taken(const Taken& taken, kv::WriteBatch& out) {
  const Bytes key = kv::KeyBuilder().uuid(taken.image).u64(taken.epoch.value).bytes();
  if (note_taken(order, taken)) put_record(out, kTakenTenures, key, taken);
}
void Catalog::put_overtaken(const Overtaken& overtaken, kv::WriteBatch& out) {
  const WriteSequence& through = order.sources[overtaken.source].overtaken[overtaken.image];
  put_record(out, kOvertaken, marked_key(overtaken.source, overtaken.image),
             Overtaken{overtaken.image, overtaken.source, std::max(through, overtaken.through)});
}

// Its other source's batches that are held count: they were sent, and will be applied.
void Catalog::put_lost(const std::string& name, Incarnation first, kv::WriteBatch& out) {
  const OrderState::Source& source = order.sources[name];
  LostRecord lost{.source = name, .after = source.applied, .before = Incarnation(0)};
  if (!source.waiting.empty()) lost.after = std::max(lost.after, source.waiting.back().last);
  // The new journal may have counted up since it began, without a batch that came.
  if (first.value > wire::kIncarnationsSkipped) lost.before = Incarnation(first.value - wire::kIncarnationsSkipped);
  if (const SourceRecord* known = this->source(name)) lost.before = std::max(lost.before, known->incarnation.next());
  if (lost.before <= lost.after.incarnation) return;
  put_record(out, kLost, lost_key(name, lost.before), lost);
  note_lost(order, name, {lost.after, lost.before});
}

std::map<std::pair<ImageId, PointId>, CutOffRecord>::iterator Catalog::open_cut_off(const ImageId& image) {
  auto newest = cut_offs.upper_bound({image, PointId(UINT64_MAX)});
  if (newest == cut_offs.begin()) return cut_offs.end();
  --newest;
  return newest->first.first == image && newest->second.until.value == 0 ? newest : cut_offs.end();
}
bool Catalog::put_cut_off(const CutOff& cut, PointId from, kv::WriteBatch& out) {
  if (open_cut_off(cut.image) != cut_offs.end()) return false;
  const Image* known = image(cut.image);
  const uint8_t removed = known != nullptr && known->removed;
  const CutOffRecord record{cut.epoch, cut.source, cut.through, PointId(0), removed};
  cut_offs[{cut.image, from}] = record;
  put_record(out, kCutOff, cut_off_key(cut.image, from), record);
  return true;
}
void Catalog::end_cut_off(const ImageId& image, PointId until, kv::WriteBatch& out) {
  auto open = open_cut_off(image);
  if (open == cut_offs.end()) return;
  open->second.until = until;
  put_record(out, kCutOff, cut_off_key(image, open->first.second), open->second);
}
void Catalog::note_removed(const ImageId& image, kv::WriteBatch& out) {
  auto known = images.find(image);
  if (known != images.end() && !known->second.removed) {
    known->second.removed = true;
    put_image(image, known->second, out);
  }
  auto open = open_cut_off(image);
  if (open == cut_offs.end()) return;
  open->second.removed = 1;
  put_record(out, kCutOff, cut_off_key(image, open->first.second), open->second);
}
WallTime Catalog::held_since(const BatchFacts& facts) const {
  auto it = held_.find({{facts.source, facts.generation}, facts.number});
  return it == held_.end() ? WallTime{} : it->second.since;
}

}  // namespace tidemark::replica
