#include "journal/inspect.h"

#include <bit>
#include <deque>
#include <map>
#include <optional>

#include "journal/shipper.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

class Inspector {
 public:
  Inspector(io::Env& env, const std::string& directory, const InspectOptions& options)
      : env_(env), directory_(directory), options_(options) {}

  Result<Inspection> run() {
    kv::StoreOptions journal{.tables = journal_table_names(), .read_only = true};
    TM_ASSIGN_OR_RETURN(auto store, env_.open_store(directory_ + "/journal", journal));
    auto snapshot = store->snapshot();
    TM_RETURN_IF_ERROR(read_meta(*snapshot));
    read_images(*snapshot);
    read_batches(*snapshot);
    read_records(*snapshot);
    if (auto marks = read_marks(*snapshot)) {
      out_.mark_count = marks->size();
      out_.marks = std::move(*marks);
    } else {
      problem(marks.status());
    }
    read_drl();
    read_spool();
    return std::move(out_);
  }

 private:
  void problem(std::string what) { out_.problems.push_back(std::move(what)); }
  void problem(const Status& status) { problem(status.to_string()); }

  Status read_meta(kv::Snapshot& snapshot) {
    TM_ASSIGN_OR_RETURN(Bytes journal, snapshot.get(kMetaTable, as_bytes("journal")));
    Reader r(journal);
    if (uint16_t version = r.u16(); version != 1) {
      return Status(Code::kUnsupported, directory_ + ": journal version " + std::to_string(version) + " is not known here");
    }
    out_.generation = r.uuid();
    out_.source = r.text();
    out_.cluster = r.uuid();
    if (!r.done()) problem("row `journal` has the wrong length");
    if (auto row = snapshot.get(kMetaTable, as_bytes("incarnation"))) {
      Reader i(*row);
      out_.incarnation = i.id<Incarnation>();
      i.uuid();
      out_.clean_stop = i.u8() != 0;
      if (!i.done()) problem("row `incarnation` has the wrong length");
    } else {
      problem(row.status().with_context("row `incarnation`"));
    }
    auto row = snapshot.get(kMetaTable, as_bytes("replica"));
    if (!row) return Status::ok();   // nothing was ever shipped
    if (auto replica = decode_replica_row(*row)) {
      out_.replica_store = replica->store;
      out_.newest_durable = replica->newest;
      out_.newest_durable_label = replica->label;
    } else {
      problem(replica.status());
    }
    return Status::ok();
  }

  void read_images(kv::Snapshot& snapshot) {
    auto cursor = snapshot.cursor(kImagesTable);
    for (bool more = cursor->first(); more; more = cursor->next()) {
      ImageId id = Reader(cursor->key()).uuid();
      if (auto row = decode_tenure(cursor->value())) out_.images.push_back({id, *row});
      else problem(row.status().with_context("image " + id.to_string()));
    }
  }

  void read_batches(kv::Snapshot& snapshot) {
    auto cursor = snapshot.cursor(kBatchesTable);
    for (bool more = cursor->first(); more; more = cursor->next()) {
      if (cursor->key().size() != 8) { problem("a key of table batches has the wrong length"); continue; }
      BatchNumber number(load_be64(cursor->key().data()));
      if (auto row = decode_batch_row(cursor->value())) out_.batches.push_back({number, std::move(*row)});
      else problem(row.status().with_context("batch " + std::to_string(number.value)));
    }
  }

  void read_records(kv::Snapshot& snapshot) {
    std::map<std::pair<Incarnation, uint32_t>, ImageId> slots;
    auto rows = snapshot.cursor(kSlotsTable);
    for (bool more = rows->first(); more; more = rows->next()) {
      if (rows->key().size() != 12 || rows->value().size() != 16) { problem("a row of table slots is malformed"); continue; }
      slots[{Incarnation(load_be64(rows->key().data())), load_be32(rows->key().data() + 8)}] = Reader(rows->value()).uuid();
    }
    std::deque<InspectedRecord> newest;
    auto cursor = snapshot.cursor(kRecordsTable);
    for (bool more = cursor->first(); more; more = cursor->next()) {
      if (cursor->key().size() != 12) { problem("a key of table records has the wrong length"); continue; }
      BatchNumber batch(load_be64(cursor->key().data()));
      auto unpacked = unpack_records(cursor->value());
      if (!unpacked) { problem(unpacked.status().with_context("records of batch " + std::to_string(batch.value))); continue; }
      for (const StoredRecord& record : unpacked->records) {
        ++out_.record_count;
        auto slot = slots.find({unpacked->incarnation, record.slot});
        if (slot == slots.end()) problem("a record names slot " + std::to_string(record.slot) + ", which no row explains");
        newest.push_back({batch, unpacked->incarnation, slot == slots.end() ? ImageId() : slot->second, record});
        if (newest.size() > options_.records_max) newest.pop_front();
      }
    }
    out_.records.assign(newest.begin(), newest.end());
  }

  void read_drl() {
    kv::StoreOptions drl{.tables = drl_table_names(), .map_bytes_max = 8ull << 30, .read_only = true};
    drl.tables.resize(kDrlDigestsTable);   // which an older version's log does not have
    auto store = env_.open_store(directory_ + "/drl", drl);
    if (!store) return problem(store.status().with_context("dirty-region log"));
    auto snapshot = (*store)->snapshot();
    std::map<ImageId, uint64_t> counts;
    auto pages = snapshot->cursor(kDrlRegionsTable);
    for (bool more = pages->first(); more; more = pages->next()) {
      ImageId id = Reader(pages->key()).uuid();
      if (pages->key().size() != 24 || pages->value().size() != kDrlPageBytes) {
        problem("a page of the dirty-region log is malformed, image " + id.to_string());
        continue;
      }
      for (uint8_t byte : pages->value()) counts[id] += static_cast<uint64_t>(std::popcount(byte));
    }
    auto rows = snapshot->cursor(kDrlImagesTable);
    for (bool more = rows->first(); more; more = rows->next()) {
      ImageId id = Reader(rows->key()).uuid();
      if (auto row = decode_drl_image(rows->value())) out_.dirty.push_back({id, *row, counts[id]});
      else problem(row.status().with_context("image " + id.to_string()));
      counts.erase(id);
    }
    for (const auto& [id, count] : counts) problem("dirty regions of an image without a row: " + id.to_string());
  }

  void read_spool() {
    std::map<std::string, PartInfo> expected;
    for (const InspectedBatch& b : out_.batches) {
      if (b.row.state != BatchState::kStaged) continue;
      for (uint32_t i = 0; i < b.row.parts.size(); ++i) expected[spool_file_name(b.number, i)] = b.row.parts[i];
    }
    auto names = env_.files().list(directory_ + "/spool");
    if (!names) return problem(names.status().with_context("spool"));
    for (const std::string& name : *names) {
      InspectedSegment segment;
      segment.file = name;
      auto it = expected.find(name);
      segment.problem = read_segment(directory_ + "/spool/" + name, it == expected.end() ? nullptr : &it->second, segment);
      // A file that no row names was being written when the daemon stopped: no fault.
      if (!segment.problem && it != expected.end()) problem(segment.problem.with_context(name));
      if (it != expected.end()) expected.erase(it);
      out_.segments.push_back(std::move(segment));
    }
    for (const auto& [name, part] : expected) problem("segment file is missing: " + name);
  }

  Status read_segment(const std::string& path, const PartInfo* expected, InspectedSegment& out) {
    TM_ASSIGN_OR_RETURN(Bytes bytes, env_.files().read_file(path));
    out.bytes = bytes.size();
    TM_ASSIGN_OR_RETURN(SegmentReader reader,
                        options_.verify_spool ? SegmentReader::parse_whole(bytes) : SegmentReader::parse(bytes));
    const SegmentHead& head = reader.head();
    out.header = head.batch;
    out.images = head.images.size();
    out.marks = head.marks.size();
    for (const SegmentExtent& e : head.extents) {
      uint64_t& sum = e.kind == ExtentKind::kData ? out.data_bytes : e.kind == ExtentKind::kZero ? out.zero_bytes : out.discard_bytes;
      sum += e.extent.length;
    }
    if (expected == nullptr) return Status::ok();
    if (bytes.size() != expected->bytes) return Status(Code::kCorruption, "its length is not the one recorded");
    if (options_.verify_spool && sha256(bytes) != expected->digest) {
      return Status(Code::kCorruption, "its digest is not the one recorded");
    }
    return Status::ok();
  }

  io::Env& env_;
  const std::string directory_;
  const InspectOptions options_;
  Inspection out_;
};

}  // namespace

Result<Inspection> inspect(io::Env& env, const std::string& directory, const InspectOptions& options) {
  auto there = env.files().stat(directory + "/journal");
  if (!there) return there.status().with_context("no journal here");
  return Inspector(env, directory, options).run();
}

}  // namespace tidemark::journal
