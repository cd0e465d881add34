#include "replica/segment_files.h"

#include <algorithm>
#include <cstdio>

#include "shared/base/log.h"

namespace tidemark::replica {
namespace {

const log::Logger kLog("segments");
constexpr size_t kChunkEntryBytes = 12;  // of SegmentRecord::chunks

uint64_t aligned_down(uint64_t v) { return v / io::File::kAlignment * io::File::kAlignment; }
uint64_t aligned_up(uint64_t v) { return aligned_down(v + io::File::kAlignment - 1); }

std::string directory_of(const std::string& root, const SegmentRecord& r) {
  return root + "/segments/" + r.source + "/" + r.generation.to_string();
}

}  // namespace

struct SegmentFiles::OpenSegment {
  std::string name;
  std::unique_ptr<io::File> file;
  SegmentRecord record;
  std::vector<uint64_t> stored_at;   // [i]: where chunk i begins in the file; one more at the end
  std::list<SegmentId>::iterator used;

  size_t chunk_count() const { return stored_at.size() - 1; }
  uint64_t checksum(uint32_t i) const { return load_le<uint64_t>(record.chunks.data() + i * kChunkEntryBytes + 4); }
  uint32_t raw_bytes(uint32_t i) const {
    const uint64_t begin = static_cast<uint64_t>(i) * journal::kSegmentChunkBytes;
    return static_cast<uint32_t>(std::min<uint64_t>(journal::kSegmentChunkBytes, record.payload_bytes - begin));
  }
};

// Chunks that lie next to each other in one file, read at once.
struct SegmentFiles::Piece {
  std::shared_ptr<OpenSegment> segment;
  SegmentId id;
  uint32_t first = 0, count = 0;
  uint64_t read_at = 0;              // aligned
  io::AlignedBuffer buffer;
  Status status;
  std::vector<std::pair<ChunkId, std::shared_ptr<Chunk>>> chunks;

  void decode() {
    for (uint32_t i = first; i < first + count; ++i) {
      auto chunk = std::make_shared<Chunk>();
      chunk->status = status;
      if (status) {
        const uint64_t begin = segment->stored_at[i], length = segment->stored_at[i + 1] - begin;
        chunk->bytes.resize(segment->raw_bytes(i));
        Status s =
            journal::decode_chunk(buffer.span().subspan(begin - read_at, length), segment->checksum(i), chunk->bytes);
        if (!s) chunk->status = s.with_context("segment file " + segment->name + " chunk " + std::to_string(i));
      }
      chunks.emplace_back(ChunkId{id, i}, std::move(chunk));
    }
    buffer = {};
  }
};

struct SegmentFiles::ReadJob {
  ChunkMap found;
  std::vector<std::unique_ptr<Piece>> pieces;
  size_t unread = 0;
  bool fresh = false;
  Callback<ChunkMap> done;
};

SegmentFiles::SegmentFiles(io::Env& env, kv::Store& store, Options options)
    : env_(env), store_(store), options_(std::move(options)) {}
SegmentFiles::~SegmentFiles() = default;

Status SegmentFiles::start() {
  io::FileSystem& files = env_.files();
  const std::string incoming = options_.directory + "/incoming";
  TM_RETURN_IF_ERROR(files.make_directories(incoming));
  TM_RETURN_IF_ERROR(files.make_directories(options_.directory + "/segments"));
  TM_RETURN_IF_ERROR(files.sync_directory(options_.directory));
  TM_ASSIGN_OR_RETURN(std::vector<std::string> left, files.list(incoming));
  for (const std::string& name : left) TM_RETURN_IF_ERROR(files.unlink(incoming + "/" + name));
  return Status::ok();
}

std::string SegmentFiles::path_of(const SegmentRecord& r) const {
  char name[40];
  std::snprintf(name, sizeof name, "/%016llx-%05u.seg", static_cast<unsigned long long>(r.number.value), r.part);
  return directory_of(options_.directory, r) + name;
}

void SegmentFiles::write_incoming(ByteSpan data, Callback<Result<std::string>> done) {
  std::string path = options_.directory + "/incoming/" + std::to_string(++next_incoming_);
  auto opened = env_.files().open(path, {.create = true});
  if (!opened) return done(opened.status());
  std::shared_ptr<io::File> file = std::move(*opened);   // kept by whichever callback comes last
  ++busy_;
  auto finish = std::make_shared<Callback<Result<std::string>>>(std::move(done));
  auto fail = [this, path, finish](const Status& s) {
    --busy_;
    drop_incoming(path);
    (*finish)(s.with_context(path));
  };
  io::File& f = *file;
  f.write(0, data, io::IoMode::kQueued, [this, file, path, finish, fail](Status s) mutable {
    if (!s) return fail(s);
    io::File& g = *file;
    g.sync(io::IoMode::kQueued, [this, file = std::move(file), path, finish, fail](Status t) mutable {
      // The descriptor closes after the file's own completion has run to its end.
      env_.post([file = std::move(file)] {});
      if (!t) return fail(t);
      --busy_;
      (*finish)(path);
    });
  });
}

void SegmentFiles::drop_incoming(const std::string& path) {
  Status s = env_.files().unlink(path);
  if (!s && s.code() != Code::kNotFound) kLog.warning("incoming_not_removed", {{"path", path}, {"reason", s}});
}

Status SegmentFiles::keep(const std::string& incoming, const SegmentRecord& record) {
  io::FileSystem& files = env_.files();
  const std::string directory = directory_of(options_.directory, record);
  // Once in each run, though it is there: the run that made it may have been killed before its name was synced.
  if (!named_.contains(directory) || !files.stat(directory)) {
    TM_RETURN_IF_ERROR(files.make_directories(directory));
    TM_RETURN_IF_ERROR(files.sync_directory(options_.directory + "/segments/" + record.source));
    TM_RETURN_IF_ERROR(files.sync_directory(options_.directory + "/segments"));
    named_.insert(directory);
  }
  TM_RETURN_IF_ERROR(files.rename(incoming, path_of(record)));
  return files.sync_directory(directory);
}

void SegmentFiles::remove(const SegmentRecord& record) {
  Status s = env_.files().unlink(path_of(record));
  if (!s) kLog.warning("segment_not_removed", {{"path", path_of(record)}, {"reason", s}});
}

Result<std::shared_ptr<SegmentFiles::OpenSegment>> SegmentFiles::open(SegmentId id, bool fresh) {
  if (auto it = open_.find(id); it != open_.end() && !fresh) {
    open_used_.splice(open_used_.begin(), open_used_, it->second->used);
    return it->second;
  }
  auto snapshot = store_.snapshot();
  auto record = read_record<SegmentRecord>(*snapshot, kSegments, kv::key_u64(id.value));
  if (!record) return record.status().with_context("segment " + std::to_string(id.value));
  auto segment = std::make_shared<OpenSegment>();
  segment->record = std::move(*record);
  segment->name = path_of(segment->record).substr(options_.directory.size() + 1);
  uint64_t at = segment->record.prefix_bytes;
  segment->stored_at.push_back(at);
  for (size_t i = 0; i + kChunkEntryBytes <= segment->record.chunks.size(); i += kChunkEntryBytes) {
    segment->stored_at.push_back(at += load_le<uint32_t>(segment->record.chunks.data() + i));
  }
  auto file = env_.files().open(path_of(segment->record), {.direct = fresh, .read_only = true});
  if (!file) {
    // A kept file that is gone is damage, not an unknown name.
    return Status(file.status().code() == Code::kNotFound ? Code::kCorruption : file.status().code(),
                  "segment file " + segment->name + ": " + file.status().message());
  }
  segment->file = std::move(*file);
  if (fresh) return segment;   // opened for direct reads, for this one job
  open_used_.push_front(id);
  segment->used = open_used_.begin();
  open_[id] = segment;
  if (open_.size() > options_.open_files_max) {
    open_.erase(open_used_.back());
    open_used_.pop_back();
  }
  return segment;
}

ChunkPtr SegmentFiles::find_cached(ChunkId id) {
  auto it = cache_.find(id);
  if (it == cache_.end()) return nullptr;
  cache_used_.splice(cache_used_.begin(), cache_used_, it->second.used);
  return it->second.chunk;
}

void SegmentFiles::cache(ChunkId id, ChunkPtr chunk) {
  if (!chunk->status || cache_.contains(id)) return;
  cached_bytes_ += chunk->bytes.size();
  cache_used_.push_front(id);
  cache_[id] = {std::move(chunk), cache_used_.begin()};
  while (cached_bytes_ > options_.cache_bytes_max && !cache_used_.empty()) {
    auto oldest = cache_.find(cache_used_.back());
    cached_bytes_ -= oldest->second.chunk->bytes.size();
    cache_.erase(oldest);
    cache_used_.pop_back();
  }
}

void SegmentFiles::plan(ReadJob& job, const std::vector<ChunkId>& missing) {
  for (size_t i = 0; i < missing.size();) {
    size_t count = 1;
    while (i + count < missing.size() && missing[i + count].segment == missing[i].segment &&
           missing[i + count].index == missing[i].index + count) {
      ++count;
    }
    auto piece = std::make_unique<Piece>();
    piece->id = missing[i].segment;
    piece->first = missing[i].index;
    piece->count = static_cast<uint32_t>(count);
    auto segment = open(piece->id, job.fresh);
    if (!segment) {
      piece->status = segment.status();
    } else if (piece->first + count > (*segment)->chunk_count()) {
      piece->status =
          Status(Code::kCorruption, "segment file " + (*segment)->name + ": the index names a chunk past its end");
    } else {
      piece->segment = *segment;
      piece->read_at = aligned_down((*segment)->stored_at[piece->first]);
      piece->buffer = io::AlignedBuffer(aligned_up((*segment)->stored_at[piece->first + count]) - piece->read_at);
    }
    job.pieces.push_back(std::move(piece));
    i += count;
  }
}

void SegmentFiles::read_chunks(std::vector<ChunkId> chunks, bool fresh, Callback<ChunkMap> done) {
  std::sort(chunks.begin(), chunks.end());
  chunks.erase(std::unique(chunks.begin(), chunks.end()), chunks.end());
  auto job = std::make_shared<ReadJob>();   // shared by its reads' completions
  job->fresh = fresh;
  std::vector<ChunkId> missing;
  for (const ChunkId& id : chunks) {
    ChunkPtr cached = fresh ? nullptr : find_cached(id);
    if (cached != nullptr) job->found[id] = std::move(cached);
    else missing.push_back(id);
  }
  if (missing.empty()) return done(std::move(job->found));
  job->done = std::move(done);
  ++busy_;
  plan(*job, missing);
  job->unread = 1;   // held until every read was submitted
  auto one_read = [this, job] { if (--job->unread == 0) finish(job); };
  for (auto& piece : job->pieces) {
    if (piece->segment == nullptr) continue;
    ++job->unread;
    piece->segment->file->read(piece->read_at, piece->buffer.span(), io::IoMode::kQueued,
                               [one_read, p = piece.get()](Status s) {
                                 p->status = s ? s : s.with_context("segment file " + p->segment->name);
                                 one_read();
                               });
  }
  one_read();
}

void SegmentFiles::finish(const std::shared_ptr<ReadJob>& job) {
  auto work = [job] { for (auto& piece : job->pieces) piece->decode(); };
  env_.offload(work, [this, job] {
    --busy_;
    for (auto& piece : job->pieces) {
      bool told = false;
      for (auto& [id, chunk] : piece->chunks) {
        if (!chunk->status && !std::exchange(told, true) && on_corruption_) {
          on_corruption_(
              piece->segment != nullptr ? piece->segment->name : "segment " + std::to_string(id.segment.value),
              chunk->status);
        }
        if (!job->fresh) cache(id, chunk);
        job->found[id] = std::move(chunk);
      }
    }
    job->pieces.clear();
    job->done(std::move(job->found));
  });
}

void SegmentFiles::read_head(SegmentId id, Callback<Result<journal::SegmentHead>> done) {
  auto segment = open(id, false);
  if (!segment) return done(segment.status());
  struct Job {
    std::shared_ptr<OpenSegment> segment;
    Bytes prefix;
    Status status;
    std::optional<Result<journal::SegmentHead>> head;
    Callback<Result<journal::SegmentHead>> done;
  };
  auto job = std::make_shared<Job>();   // shared by the read and the worker
  job->segment = *segment;
  job->prefix.resize(job->segment->record.prefix_bytes);
  job->done = std::move(done);
  ++busy_;
  job->segment->file->read(0, job->prefix, io::IoMode::kQueued, [this, job](Status s) {
    job->status = std::move(s);
    auto parse = [job] {
      if (!job->status) { job->head.emplace(job->status); return; }
      auto reader = journal::SegmentReader::parse(job->prefix);
      if (reader) job->head.emplace(reader->head());
      else job->head.emplace(reader.status().with_context("segment file " + job->segment->name));
    };
    env_.offload(parse, [this, job] {
      --busy_;
      if (!*job->head && on_corruption_) on_corruption_(job->segment->name, job->head->status());
      job->done(std::move(*job->head));
    });
  });
}

}  // namespace tidemark::replica
