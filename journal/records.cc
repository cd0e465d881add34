#include "journal/records.h"

#include <cstdio>

#include "shared/wire/codec.h"

namespace tidemark::journal {
namespace {

constexpr size_t kPackHeadBytes = 8 + 8 + 8 + 2;   // incarnation, base counter, base label, count
constexpr size_t kAtCount = 24;
constexpr size_t kStagedRegionBytes = 16 + 8 + 8;
constexpr size_t kStagedRegionsInPiece = kPackBytesMax / kStagedRegionBytes;

void put_varint(Bytes& out, uint64_t v) {
  while (v >= 0x80) {
    out.push_back(static_cast<uint8_t>(v | 0x80));
    v >>= 7;
  }
  out.push_back(static_cast<uint8_t>(v));
}
uint64_t zigzag(int64_t v) { return static_cast<uint64_t>(v) << 1 ^ static_cast<uint64_t>(v >> 63); }
int64_t unzigzag(uint64_t v) { return static_cast<int64_t>(v >> 1) ^ -static_cast<int64_t>(v & 1); }

// Reader::ok() tells whether it was there; an overlong one makes the record's kind check fail later.
uint64_t get_varint(Reader& r) {
  uint64_t v = 0;
  for (int shift = 0; shift < 64 && r.ok(); shift += 7) {
    uint8_t b = r.u8();
    v |= static_cast<uint64_t>(b & 0x7f) << shift;
    if ((b & 0x80) == 0) break;
  }
  return v;
}

void put_parent(Writer& w, const wire::TenureParent& p) {
  w.id(p.epoch).text(p.source).id(p.last.incarnation).id(p.last.counter).u8(p.clean);
}
wire::TenureParent get_parent(Reader& r) {
  wire::TenureParent p;
  p.epoch = r.id<Epoch>();
  p.source = r.text();
  p.last.incarnation = r.id<Incarnation>();
  p.last.counter = r.id<Counter>();
  p.clean = r.u8();
  return p;
}

}  // namespace

std::vector<std::string> journal_table_names() { return {"meta", "records", "marks", "slots", "images", "batches", "lacks", "staged"}; }
std::vector<std::string> drl_table_names() { return {"images", "regions", "digests"}; }

void RecordPack::add(Incarnation incarnation, const StoredRecord& r) {
  if (count_ == 0) {
    base_counter_ = r.counter.value;
    base_label_ = r.label.ns;
    bytes_.resize(kPackHeadBytes);
    store_le<uint64_t>(bytes_.data(), incarnation.value);
    store_le<uint64_t>(bytes_.data() + 8, base_counter_);
    store_le<int64_t>(bytes_.data() + 16, base_label_);
  }
  bytes_.push_back(r.kind);
  put_varint(bytes_, zigzag(static_cast<int64_t>(r.counter.value - base_counter_)));
  put_varint(bytes_, r.slot);
  put_varint(bytes_, r.extent.offset);
  put_varint(bytes_, r.extent.length);
  put_varint(bytes_, r.epoch.value);
  put_varint(bytes_, r.coordinator.value);
  put_varint(bytes_, zigzag((r.label.ns - base_label_) / 1'000'000));
  if (r.kind == static_cast<uint8_t>(RecordKind::kWrite)) {
    size_t at = bytes_.size();
    bytes_.resize(at + 8);
    store_le<uint64_t>(bytes_.data() + at, r.digest);
  }
  ++count_;
}

Bytes RecordPack::take() {
  store_le<uint16_t>(bytes_.data() + kAtCount, count_);
  uint64_t checksum = digest64(bytes_);
  size_t at = bytes_.size();
  bytes_.resize(at + 8);
  store_le<uint64_t>(bytes_.data() + at, checksum);
  Bytes out(bytes_.begin(), bytes_.end());
  bytes_.clear();
  count_ = 0;
  return out;
}

Result<UnpackedRecords> unpack_records(ByteSpan value) {
  if (value.size() < kPackHeadBytes + 8) return bad_journal("packed records are too short");
  ByteSpan body = value.first(value.size() - 8);
  if (digest64(body) != load_le<uint64_t>(body.data() + body.size())) return bad_journal("packed records fail their checksum");
  Reader r(body);
  UnpackedRecords out;
  out.incarnation = r.id<Incarnation>();
  uint64_t base_counter = r.u64();
  int64_t base_label = r.i64();
  uint16_t count = r.u16();
  for (uint16_t i = 0; i < count && r.ok(); ++i) {
    StoredRecord rec;
    rec.kind = r.u8();
    if (rec.kind < 1 || rec.kind > kAbandonedRecord) return bad_journal("a packed record has an unknown kind");
    rec.counter.value = base_counter + static_cast<uint64_t>(unzigzag(get_varint(r)));
    rec.slot = static_cast<uint32_t>(get_varint(r));
    rec.extent.offset = get_varint(r);
    rec.extent.length = get_varint(r);
    rec.epoch.value = get_varint(r);
    rec.coordinator.value = get_varint(r);
    // Unsigned: a damaged value must not overflow.
    rec.label.ns = static_cast<int64_t>(static_cast<uint64_t>(base_label) +
                                        static_cast<uint64_t>(unzigzag(get_varint(r))) * 1'000'000);
    if (rec.kind == static_cast<uint8_t>(RecordKind::kWrite)) rec.digest = r.u64();
    out.records.push_back(rec);
  }
  if (!r.done()) return bad_journal("packed records have the wrong length");
  return out;
}

Bytes record_key(BatchNumber batch, uint32_t serial) { return kv::KeyBuilder().u64(batch.value).u32(serial).bytes(); }
Bytes mark_key(BatchNumber batch, Counter counter, uint32_t piece) {
  return kv::KeyBuilder().u64(batch.value).u64(counter.value).u32(piece).bytes();
}
Bytes batch_prefix(BatchNumber batch) { return kv::KeyBuilder().u64(batch.value).bytes(); }

void put_mark(kv::WriteBatch& out, BatchNumber batch, Counter counter, const wire::Mark& mark) {
  Bytes bytes = wire::encode(mark);
  uint32_t piece = 0;
  for (size_t at = 0; at < bytes.size(); at += kMarkPieceBytes, ++piece) {
    ByteSpan part = ByteSpan(bytes).subspan(at, std::min(kMarkPieceBytes, bytes.size() - at));
    out.put(kMarksTable, mark_key(batch, counter, piece), part);
  }
}

void drop_mark(kv::WriteBatch& out, BatchNumber batch, Counter counter) {
  out.erase_range(kMarksTable, mark_key(batch, counter, 0), mark_key(batch, counter.next(), 0));
}

Result<std::vector<StoredMark>> read_marks(kv::Snapshot& snapshot) {
  std::vector<StoredMark> out;
  Bytes bytes;
  Bytes prefix;
  auto finish = [&]() -> Status {
    if (prefix.empty()) return Status::ok();
    auto mark = wire::decode<wire::Mark>(bytes);
    if (!mark) return bad_journal("a mark does not decode: " + mark.status().message());
    out.push_back({BatchNumber(load_be64(prefix.data())), Counter(load_be64(prefix.data() + 8)), std::move(*mark)});
    return Status::ok();
  };
  auto cursor = snapshot.cursor(kMarksTable);
  for (bool more = cursor->first(); more; more = cursor->next()) {
    ByteSpan key = cursor->key();
    if (key.size() != 20) return bad_journal("a key of table marks has the wrong length");
    if (load_be32(key.data() + 16) == 0) {
      TM_RETURN_IF_ERROR(finish());
      prefix.assign(key.begin(), key.begin() + 16);
      bytes.clear();
    } else if (prefix.empty() || std::memcmp(prefix.data(), key.data(), 16) != 0) {
      return bad_journal("a mark lacks its first piece");
    }
    bytes.insert(bytes.end(), cursor->value().begin(), cursor->value().end());
  }
  TM_RETURN_IF_ERROR(finish());
  return out;
}

Bytes encode_tenure(const TenureRow& row) {
  Bytes out;
  Writer w(out);
  w.u64(row.size).id(row.epoch);
  put_parent(w, row.parent);
  w.id(row.size_generation);
  return out;
}

Result<TenureRow> decode_tenure(ByteSpan value) {
  Reader r(value);
  TenureRow row;
  row.size = r.u64();
  row.epoch = r.id<Epoch>();
  row.parent = get_parent(r);
  row.size_generation = r.id<Generation>();
  if (!r.done()) return bad_journal("a value of table images has the wrong length");
  return row;
}

Bytes encode_batch_row(const BatchRow& row) {
  Bytes out;
  Writer w(out);
  w.u8(static_cast<uint8_t>(row.state)).u8(static_cast<uint8_t>(row.kind));
  w.id(row.supersedes_first).id(row.supersedes_last).id(row.incarnation).id(row.first).id(row.last);
  w.i64(row.label.ns).text(row.name).raw(row.digest).u32(static_cast<uint32_t>(row.parts.size()));
  for (const PartInfo& part : row.parts) w.raw(part.digest).u64(part.bytes);
  return out;
}

Result<BatchRow> decode_batch_row(ByteSpan value) {
  Reader r(value);
  BatchRow row;
  row.state = static_cast<BatchState>(r.u8());
  row.kind = static_cast<BatchKind>(r.u8());
  row.supersedes_first = r.id<BatchNumber>();
  row.supersedes_last = r.id<BatchNumber>();
  row.incarnation = r.id<Incarnation>();
  row.first = r.id<Counter>();
  row.last = r.id<Counter>();
  row.label.ns = r.i64();
  row.name = r.text();
  auto digest = [&](Sha256& out) {
    ByteSpan b = r.raw(out.size());
    if (!b.empty()) std::copy(b.begin(), b.end(), out.begin());
  };
  digest(row.digest);
  uint32_t parts = r.u32();
  for (uint32_t i = 0; i < parts && r.ok(); ++i) {
    PartInfo part;
    digest(part.digest);
    part.bytes = r.u64();
    row.parts.push_back(part);
  }
  auto state = static_cast<uint8_t>(row.state);
  if (!r.done() || state < 1 || state > 3) return bad_journal("a value of table batches is malformed");
  return row;
}

void put_staged_regions(kv::WriteBatch& out, BatchNumber batch, const std::vector<ImageExtent>& regions) {
  uint32_t piece = 0;
  for (size_t at = 0; at < regions.size(); at += kStagedRegionsInPiece, ++piece) {
    Bytes value;
    Writer w(value);
    for (size_t i = at; i < std::min(regions.size(), at + kStagedRegionsInPiece); ++i) {
      w.uuid(regions[i].image).u64(regions[i].extent.offset).u64(regions[i].extent.length);
    }
    out.put(kStagedTable, record_key(batch, piece), value);
  }
}

Result<std::vector<ImageExtent>> decode_staged_regions(ByteSpan value) {
  std::vector<ImageExtent> out;
  if (value.size() % kStagedRegionBytes != 0) return bad_journal("a value of table staged has the wrong length");
  Reader r(value);
  for (size_t i = 0; i < value.size() / kStagedRegionBytes; ++i) {
    ImageExtent e;
    e.image = r.uuid();
    e.extent.offset = r.u64();
    e.extent.length = r.u64();
    out.push_back(e);
  }
  return out;
}

Bytes encode_degraded(const DegradedRow& row) {
  Bytes out;
  Writer(out).u8(row.full ? 1 : 0).i64(row.since.ns).u64(row.points_given_up).text(row.why);
  return out;
}

Result<DegradedRow> decode_degraded(ByteSpan value) {
  Reader r(value);
  DegradedRow row;
  row.full = r.u8() != 0;
  row.since.ns = r.i64();
  row.points_given_up = r.u64();
  row.why = r.text();
  if (!r.done()) return bad_journal("row `degraded` has the wrong length");
  return row;
}

Bytes encode_drl_image(const DrlImageRow& row) {
  Bytes out;
  out.reserve(64);
  Writer(out).u64(row.region_bytes).id(row.host).id(row.shared).u8(row.alone ? 1 : 0).id(row.epoch);
  return out;
}

Result<DrlImageRow> decode_drl_image(ByteSpan value) {
  Reader r(value);
  DrlImageRow row;
  row.region_bytes = r.u64();
  row.host = r.id<LossId>();
  row.shared = r.id<LossId>();
  row.alone = r.u8() != 0;
  row.epoch = r.id<Epoch>();
  bool power = row.region_bytes >= 4096 && (row.region_bytes & (row.region_bytes - 1)) == 0;
  if (!r.done() || !power) return bad_journal("a value of the dirty-region log's table images is malformed");
  return row;
}

std::string spool_file_name(BatchNumber number, uint32_t part) {
  char name[48];
  std::snprintf(name, sizeof name, "%016llx-%05u.seg", static_cast<unsigned long long>(number.value), part);
  return name;
}

}  // namespace tidemark::journal
