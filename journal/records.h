// Values of the journal environment (FORMAT.md): packed records, marks, tenures, batches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "journal/journal.h"
#include "journal/segment.h"
#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/kv/store.h"

namespace tidemark::journal {

enum JournalTable : kv::Table {
  kMetaTable, kRecordsTable, kMarksTable, kSlotsTable, kImagesTable, kBatchesTable, kLacksTable, kStagedTable,
};
enum DrlTable : kv::Table { kDrlImagesTable, kDrlRegionsTable, kDrlDigestsTable };
std::vector<std::string> journal_table_names();
std::vector<std::string> drl_table_names();

inline constexpr size_t kPackBytesMax = 1900;           // of a packed value: below LMDB's overflow pages
inline constexpr size_t kMarkPieceBytes = 1900;
inline constexpr uint32_t kDrlPageBytes = 1024;
inline constexpr uint32_t kDrlPageRegions = kDrlPageBytes * 8;
inline constexpr uint8_t kAbandonedRecord = 6;          // a counter spent on nothing

// A record as it stands in LMDB.
struct StoredRecord {
  Counter counter;
  uint32_t slot = 0;
  uint8_t kind = 0;                                     // RecordKind or kAbandonedRecord
  Extent extent;                                        // kResize: new size, and what it cut off
  Epoch epoch;
  CoordinatorSequence coordinator;
  uint64_t digest = 0;
  WallTime label;
};

// Collects records into one value. Allocates only when the value is taken.
class RecordPack {
 public:
  RecordPack() { bytes_.reserve(kPackBytesMax + 64); }
  bool empty() const { return count_ == 0; }
  bool full() const { return bytes_.size() + kRecordBytesMax > kPackBytesMax; }
  void add(Incarnation incarnation, const StoredRecord& record);
  Bytes take();   // the finished value; empty() again

 private:
  static constexpr size_t kRecordBytesMax = 1 + 7 * 10 + 8 + 8;
  Bytes bytes_;
  uint64_t base_counter_ = 0;
  int64_t base_label_ = 0;
  uint16_t count_ = 0;
};
struct UnpackedRecords {
  Incarnation incarnation;
  std::vector<StoredRecord> records;
};
Result<UnpackedRecords> unpack_records(ByteSpan value);

// Keys of records and marks: the batch's number first, so that a staged batch's go as one range.
Bytes record_key(BatchNumber batch, uint32_t serial);
Bytes mark_key(BatchNumber batch, Counter counter, uint32_t piece);
void drop_mark(kv::WriteBatch& out, BatchNumber batch, Counter counter);
Bytes batch_prefix(BatchNumber batch);
void put_mark(kv::WriteBatch& out, BatchNumber batch, Counter counter, const wire::Mark& mark);
struct StoredMark {
  BatchNumber batch;
  Counter counter;
  wire::Mark mark;
};
Result<std::vector<StoredMark>> read_marks(kv::Snapshot& snapshot);

struct TenureRow {
  uint64_t size = 0;
  Epoch epoch;
  wire::TenureParent parent;
  Generation size_generation;
};
Bytes encode_tenure(const TenureRow& row);
Result<TenureRow> decode_tenure(ByteSpan value);

enum class BatchState : uint8_t { kClosed = 1, kStaged = 2, kGivenUp = 3 };
struct PartInfo {
  Sha256 digest{};
  uint64_t bytes = 0;
};
struct BatchRow {
  BatchState state = BatchState::kClosed;
  BatchKind kind = BatchKind::kNormal;
  BatchNumber supersedes_first, supersedes_last;
  Incarnation incarnation;
  Counter first, last;
  WallTime label;
  std::string name;
  Sha256 digest{};
  std::vector<PartInfo> parts;
};
Bytes encode_batch_row(const BatchRow& row);
Result<BatchRow> decode_batch_row(ByteSpan value);

// The regions that a staged batch holds, should it be given up: table `staged`, in pieces.
void put_staged_regions(kv::WriteBatch& out, BatchNumber batch, const std::vector<ImageExtent>& regions);
Result<std::vector<ImageExtent>> decode_staged_regions(ByteSpan value);

// While the replica is not sent every change: meta row `degraded`.
struct DegradedRow {
  bool full = false;                                    // an operator asked for all of it: any replica is taken
  WallTime since;
  uint64_t points_given_up = 0;
  std::string why;
};
Bytes encode_degraded(const DegradedRow& row);
Result<DegradedRow> decode_degraded(ByteSpan value);

struct DrlImageRow {
  uint64_t region_bytes = 0;
  LossId host, shared;
  bool alone = false;
  Epoch epoch;
};
Bytes encode_drl_image(const DrlImageRow& row);
Result<DrlImageRow> decode_drl_image(ByteSpan value);

inline Status bad_journal(const std::string& what) { return Status(Code::kCorruption, "journal: " + what); }

std::string spool_file_name(BatchNumber number, uint32_t part);

}  // namespace tidemark::journal
