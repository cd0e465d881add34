// Offline, read-only look into a journal's directory, for `tidemark journal inspect`. Structures only;
// printing is the command's. Works beside a running daemon too: another process may read its LMDB.
#pragma once

#include <string>
#include <vector>

#include "journal/journal.h"
#include "journal/records.h"
#include "journal/segment.h"
#include "shared/io/env.h"

namespace tidemark::journal {

struct InspectOptions {
  size_t records_max = 100;      // the newest so many are listed; all are counted and checked
  bool verify_spool = false;     // read every segment file whole: checksums and digests
};

struct InspectedRecord {
  BatchNumber batch;
  Incarnation incarnation;
  ImageId image;
  StoredRecord record;           // record.kind: RecordKind, or kAbandonedRecord
};
struct InspectedBatch {
  BatchNumber number;
  BatchRow row;
};
struct InspectedSegment {
  std::string file;
  uint64_t bytes = 0;
  BatchHeader header;
  size_t images = 0, marks = 0;
  uint64_t data_bytes = 0, zero_bytes = 0, discard_bytes = 0;
  Status problem;                // OK, or what is wrong with it
};
struct InspectedImage {
  ImageId image;
  TenureRow tenure;
};
struct InspectedDirty {
  ImageId image;
  DrlImageRow row;
  uint64_t dirty_regions = 0;
};
struct Inspection {
  Uuid generation, cluster;
  std::string source;
  Incarnation incarnation;
  bool clean_stop = false;
  Uuid replica_store;
  BatchNumber newest_durable;
  WallTime newest_durable_label;
  uint64_t record_count = 0, mark_count = 0;
  std::vector<InspectedRecord> records;      // newest last
  std::vector<StoredMark> marks;             // unstaged ones
  std::vector<InspectedBatch> batches;
  std::vector<InspectedSegment> segments;
  std::vector<InspectedImage> images;
  std::vector<InspectedDirty> dirty;
  std::vector<std::string> problems;         // everything that breaks FORMAT.md; empty: sound
};

// kNotFound if there is no journal; kCorruption only if nothing can be read at all. Blocking.
Result<Inspection> inspect(io::Env& env, const std::string& directory, const InspectOptions& options);

}  // namespace tidemark::journal
