// The kept parts: immutable segment files, and checked reads of their chunks.
//
//   incoming/N                           a part being received; removed at start
//   segments/SOURCE/GENERATION/NUMBER-PART.seg   kept parts; written, synced, then renamed into place
//
// A chunk's checksum is verified on every read from storage. Open files and decompressed chunks are
// kept in bounded caches. Loop thread only; decompression runs on a worker.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <set>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "replica/records.h"
#include "shared/io/env.h"
#include "shared/io/file.h"

namespace tidemark::replica {

struct ChunkId {
  SegmentId segment;
  uint32_t index = 0;
  auto operator<=>(const ChunkId&) const = default;
};
struct Chunk {
  Status status;                  // kCorruption or kIoError, naming segment file and chunk
  Bytes bytes;                    // uncompressed
};
// Shared by the cache and the reads that still copy from it.
using ChunkPtr = std::shared_ptr<const Chunk>;
using ChunkMap = std::map<ChunkId, ChunkPtr>;

class SegmentFiles {
 public:
  struct Options {
    std::string directory;
    uint64_t cache_bytes_max = 64ull << 20;
    size_t open_files_max = 256;
  };
  SegmentFiles(io::Env& env, kv::Store& store, Options options);
  ~SegmentFiles();

  // Makes the directories and removes what an earlier run left half received.
  Status start();

  // Writes and syncs a part under a temporary name, told to `done`. `data` must live until then.
  void write_incoming(ByteSpan data, Callback<Result<std::string>> done);
  void drop_incoming(const std::string& path);
  // Gives a received part its name for good, durably.
  Status keep(const std::string& incoming, const SegmentRecord& record);
  void remove(const SegmentRecord& record);
  std::string path_of(const SegmentRecord& record) const;

  // Reads a kept part's preamble and head from storage.
  void read_head(SegmentId id, Callback<Result<journal::SegmentHead>> done);

  // Brings the chunks, each with its own status. `fresh`: from storage, past cache and (where the
  // file system allows) page cache.
  void read_chunks(std::vector<ChunkId> chunks, bool fresh, Callback<ChunkMap> done);

  // Told each damaged chunk, once a read.
  void on_corruption(std::function<void(const std::string& subject, const Status& status)> fn) {
    on_corruption_ = std::move(fn);
  }
  uint64_t cached_bytes() const { return cached_bytes_; }
  bool idle() const { return busy_ == 0; }

 private:
  struct OpenSegment;
  struct ReadJob;
  struct Piece;
  Result<std::shared_ptr<OpenSegment>> open(SegmentId id, bool fresh);
  void plan(ReadJob& job, const std::vector<ChunkId>& missing);
  void finish(const std::shared_ptr<ReadJob>& job);
  ChunkPtr find_cached(ChunkId id);
  void cache(ChunkId id, ChunkPtr chunk);

  io::Env& env_;
  kv::Store& store_;
  const Options options_;
  uint64_t next_incoming_ = 0;
  std::set<std::string> named_;   // directories below segments/ whose names are durable
  uint64_t busy_ = 0;             // operations that still hold files
  std::map<SegmentId, std::shared_ptr<OpenSegment>> open_;  // shared with reads in flight
  std::list<SegmentId> open_used_;                           // newest first
  struct Cached { ChunkPtr chunk; std::list<ChunkId>::iterator used; };
  std::map<ChunkId, Cached> cache_;
  std::list<ChunkId> cache_used_;                            // newest first
  uint64_t cached_bytes_ = 0;
  std::function<void(const std::string&, const Status&)> on_corruption_;
};

}  // namespace tidemark::replica
