#include "replica/reader.h"

#include <algorithm>
#include <set>

#include "replica/by_time.h"
#include "replica/intake.h"

namespace tidemark::replica {
namespace {

constexpr uint64_t kLeavesOfWalkMax = 16384;   // visited for one page of extents
constexpr size_t kAllocatedKeptMax = 4096;

std::vector<ChunkId> chunks_of(const std::vector<StoredRun>& runs) {
  std::vector<ChunkId> chunks;
  for (const StoredRun& run : runs) {
    const uint64_t first = run.position / journal::kSegmentChunkBytes;
    const uint64_t last = (run.position + run.length - 1) / journal::kSegmentChunkBytes;
    for (uint64_t i = first; i <= last; ++i) chunks.push_back({run.segment, static_cast<uint32_t>(i)});
  }
  return chunks;
}

void copy_run(const StoredRun& run, uint64_t base, const ChunkMap& chunks, ReadResult& out) {
  for (uint32_t done = 0; done < run.length;) {
    const uint64_t position = run.position + done;
    const uint64_t within = position % journal::kSegmentChunkBytes;
    const uint32_t take =
        static_cast<uint32_t>(std::min<uint64_t>(run.length - done, journal::kSegmentChunkBytes - within));
    const auto it = chunks.find({run.segment, static_cast<uint32_t>(position / journal::kSegmentChunkBytes)});
    const uint64_t offset = run.offset + done;
    if (it == chunks.end() || !it->second->status) {
      out.damaged.push_back(
          {{offset, take},
           it == chunks.end() ? Status(Code::kCorruption, "a chunk was not read") : it->second->status});
    } else if (within + take > it->second->bytes.size()) {
      out.damaged.push_back({{offset, take},
                             Status(Code::kCorruption, "the index names bytes past the end of segment " +
                                                           std::to_string(run.segment.value))});
    } else {
      std::copy_n(it->second->bytes.begin() + static_cast<ptrdiff_t>(within), take,
                  out.bytes.begin() + static_cast<ptrdiff_t>(offset - base));
    }
    done += take;
  }
}

// Allocated extents from `offset` on. Whole leaves that hold nothing are stepped over by the index.
Result<ExtentPage> walk(kv::Snapshot& snapshot, const ReadTarget& target, uint64_t offset, size_t count_max,
                        uint64_t leaves_max) {
  HistoryView view(snapshot, target.image, target.point);
  const uint64_t size = target.version.size;
  ExtentPage page;
  page.next = size;
  uint64_t visited = 0;
  for (auto leaf = view.next_leaf(offset / kLeafBytes); leaf && *leaf * kLeafBytes < size;
       leaf = view.next_leaf(*leaf + 1)) {
    if (++visited > leaves_max && !page.extents.empty()) {
      page.next = *leaf * kLeafBytes;
      break;
    }
    Leaf units;
    TM_RETURN_IF_ERROR(view.load(*leaf, units));
    std::vector<StoredRun> runs;
    append_runs(units, *leaf, {offset, size - offset}, runs);
    for (const StoredRun& run : runs) {
      if (!page.extents.empty() && page.extents.back().end() == run.offset) page.extents.back().length += run.length;
      else page.extents.push_back({run.offset, run.length});
    }
    if (page.extents.size() > count_max) {
      page.next = page.extents[count_max].offset;
      page.extents.resize(count_max);
      break;
    }
  }
  return page;
}

}  // namespace

Reader::Reader(io::Env& env, kv::Store& store, SegmentFiles& files, const Catalog& catalog)
    : env_(env), store_(store), files_(files), catalog_(catalog) {}

PointId Reader::newest() const {
  auto snapshot = store_.snapshot();
  auto cursor = snapshot->cursor(kPoints);
  return cursor->last() ? point_of_key(cursor->key()) : PointId(0);
}

// With what it is without: whoever asks for a point is told, however they ask.
Result<Point> Reader::complete_point(kv::Snapshot& snapshot, Point point, const CutOffsNamed& named) const {
  auto gap = read_record<GapRecord>(snapshot, kGaps, kv::key_u64(point.id.value));
  if (gap) point.without = std::move(gap->without);
  else if (gap.status().code() != Code::kNotFound) return gap.status();
  size_t count = 0;
  for (const auto& [of, cut] : catalog_.cut_offs) {
    if (named.image && of.first != *named.image) continue;
    if (point.id < of.second || (cut.until.value != 0 && point.id >= cut.until) || ++count > named.max) continue;
    point.without.push_back("image " + of.first.to_string() + ", which goes on upon writes of " + cut.source +
                            " that were lost with its journal: it is shown as it was before them");
  }
  if (count > named.max) {
    point.without.push_back(std::to_string(count - named.max) + " images more that go on upon such writes: the point "
                            "by itself names them all");
  }
  return point;
}

Result<Point> Reader::point(PointId id) {
  auto snapshot = store_.snapshot();
  auto record = read_record<PointRecord>(*snapshot, kPoints, kv::key_u64(id.value));
  if (record) return complete_point(*snapshot, {id, std::move(*record)}, {});
  if (record.status().code() != Code::kNotFound) return record.status();
  if (newest().value == 0) return Status(Code::kNotFound, "there is no recovery point yet");
  return Status(Code::kNotFound, "no point " + std::to_string(id.value) + "; the oldest is 1, the newest " +
                                     std::to_string(newest().value));
}

Result<Point> Reader::resolve(const std::string& text) {
  if (text == "latest") return point(newest());
  if (!text.empty() && text.size() < 20 && text.find_first_not_of("0123456789") == std::string::npos) {
    return point(PointId(std::stoull(text)));
  }
  return by_name(text);
}

Result<Point> Reader::by_name(const std::string& name) {
  if (name.empty() || name.size() > limits::kNameBytesMax) return Status(Code::kNotFound, "no such point");
  auto snapshot = store_.snapshot();
  auto cursor = snapshot->cursor(kPointNames);
  const Bytes end = point_name_key(name, PointId(UINT64_MAX));
  if (!cursor->seek_before(end) || cursor->key().size() != end.size() ||
      !starts_with(cursor->key(), ByteSpan(end).first(end.size() - 8))) {
    return Status(Code::kNotFound, "no point is named " + name);
  }
  return point(point_of_key(cursor->key()));
}

Result<Point> Reader::by_time(WallTime at) {
  TM_ASSIGN_OR_RETURN(const PointId id, newest_labelled(*store_.snapshot(), PointId(UINT64_MAX), at));
  if (id.value != 0) return point(id);
  if (newest().value == 0) return Status(Code::kNotFound, "there is no recovery point yet");
  auto oldest = point(PointId(1)), last = point(newest());
  return Status(Code::kNotFound, "no point is labelled " + at.to_string() + " or earlier; the oldest is 1" +
                                     (oldest ? " (" + oldest->record.label.to_string() + ")" : "") + ", the newest " +
                                     std::to_string(newest().value) +
                                     (last ? " (" + last->record.label.to_string() + ")" : ""));
}

namespace {
// The image that is asked for and the point that shows it as of then, on a worker.
Result<std::pair<ImageId, PointId>> find_by_time(kv::Snapshot& snapshot, const ImageQuery& query) {
  NamedImage asked{query.image.value_or(ImageId())};
  if (!query.image) {
    TM_ASSIGN_OR_RETURN(const PointId through, newest_labelled(snapshot, PointId(UINT64_MAX), query.at));
    auto named = image_of_path(snapshot, query.path, through, query.at);
    if (!named) return named.status().with_context("at " + query.at.to_string());
    asked = *named;
  }
  const ImageId& image = asked.image;
  auto record = read_record<ImageRecord>(snapshot, kImages, image.bytes);
  if (!record) {
    return record.status().code() == Code::kNotFound ? Status(Code::kNotFound, "no image " + image.to_string())
                                                     : record.status();
  }
  TM_ASSIGN_OR_RETURN(const PointId point, newest_labelled(snapshot, record->index, query.at, asked.renamed));
  if (point.value != 0) return std::pair(image, point);
  return Status(Code::kNotFound, "no point of image " + image.to_string() + " is labelled " + query.at.to_string() +
                                     " or earlier");
}
}  // namespace

void Reader::by_time(const ImageQuery& query, Callback<Result<ImagePoint>> done) {
  if (auto any = by_time(query.at); !any) return done(any.status());
  struct Job {
    std::unique_ptr<kv::Snapshot> snapshot;
    Result<std::pair<ImageId, PointId>> found = Status(Code::kNotFound, "not looked for yet");
    Callback<Result<ImagePoint>> done;
  };
  auto job = std::make_shared<Job>();   // shared with the worker
  job->snapshot = store_.snapshot();
  job->done = std::move(done);
  ++busy_;
  auto work = [job, query] { job->found = find_by_time(*job->snapshot, query); job->snapshot.reset(); };
  env_.offload(work, [this, job] {
    --busy_;
    if (!job->found) return job->done(job->found.status());
    const auto [image, id] = *job->found;
    auto snapshot = store_.snapshot();
    auto record = read_record<PointRecord>(*snapshot, kPoints, kv::key_u64(id.value));
    if (!record) return job->done(record.status());
    auto point = complete_point(*snapshot, {id, std::move(*record)}, {image});
    if (!point) return job->done(point.status());
    job->done(ImagePoint{image, std::move(*point)});
  });
}

Result<ImageId> Reader::image_of_path(const std::string& path, PointId point) {
  TM_ASSIGN_OR_RETURN(NamedImage named, replica::image_of_path(*store_.snapshot(), path, point, WallTime{INT64_MAX}));
  return named.image;
}

Result<PointPage> Reader::points(const PointQuery& query) {
  PointPage page;
  const uint32_t count = std::min(query.count, kListCountMax);
  auto snapshot = store_.snapshot();
  const Catalog::Image* image = query.image ? catalog_.image(*query.image) : nullptr;
  if (query.image && image == nullptr) return Status(Code::kNotFound, "no image " + query.image->to_string());
  const bool by_image = image != nullptr && !query.all;
  std::set<PointId> branched;
  if (image != nullptr) {
    auto branches = snapshot->cursor(kBranches);
    const Bytes first = kv::KeyBuilder().u32(static_cast<uint32_t>(image->index.value)).bytes();
    for (bool found = branches->seek(first); found && starts_with(branches->key(), first); found = branches->next()) {
      TM_ASSIGN_OR_RETURN(BranchRecord record, wire::decode<BranchRecord>(branches->value()));
      branched.insert(record.point);
    }
  }
  auto cursor = snapshot->cursor(by_image ? kImageVersions : kPoints);
  const auto key = [&](PointId id) {
    return by_image ? image_point_key(image->index, id) : kv::KeyBuilder().u64(id.value).bytes();
  };
  const Bytes from = key(query.after.next()), end = key(PointId(UINT64_MAX));
  const auto within = [&](ByteSpan k) {
    return (!by_image || starts_with(k, ByteSpan(from).first(4))) &&
           !std::lexicographical_compare(k.begin(), k.end(), from.begin(), from.end());
  };
  bool found = query.newest ? cursor->seek_before(end) : cursor->seek(from);
  for (; found && within(cursor->key()); found = query.newest ? cursor->previous() : cursor->next()) {
    const PointId id = point_of_key(cursor->key());
    if (page.points.size() >= count) {
      if (!query.newest) page.next = page.points.empty() ? query.after : page.points.back().id;
      break;
    }
    TM_ASSIGN_OR_RETURN(PointRecord record, read_record<PointRecord>(*snapshot, kPoints, kv::key_u64(id.value)));
    Point point{.id = id, .record = std::move(record), .branch = branched.contains(id)};
    TM_ASSIGN_OR_RETURN(point, complete_point(*snapshot, std::move(point), {query.image, kCutOffNamed}));
    page.points.push_back(std::move(point));
  }
  if (query.newest) std::reverse(page.points.begin(), page.points.end());
  return page;
}

void Reader::tree(PointId point, Callback<Result<Tree>> done) {
  for (auto it = trees_.begin(); it != trees_.end(); ++it) {
    if (it->first != point) continue;
    trees_.splice(trees_.begin(), trees_, it);
    return done(trees_.front().second);
  }
  struct Job {
    std::unique_ptr<kv::Snapshot> snapshot;
    std::optional<Result<std::vector<TreeEntry>>> tree;
    Callback<Result<Tree>> done;
  };
  auto job = std::make_shared<Job>();   // shared with the worker
  job->snapshot = store_.snapshot();
  job->done = std::move(done);
  ++busy_;
  auto work = [job, point] { job->tree.emplace(tree_at(*job->snapshot, point)); job->snapshot.reset(); };
  env_.offload(work, [this, job, point] {
    --busy_;
    if (!*job->tree) return job->done(job->tree->status());
    Tree tree = std::make_shared<const std::vector<TreeEntry>>(std::move(**job->tree));
    trees_.emplace_front(point, tree);
    if (trees_.size() > kTreesKeptMax) trees_.pop_back();
    job->done(std::move(tree));
  });
}

Result<ReadTarget> Reader::target(PointId point, const ImageId& id) {
  const Catalog::Image* image = catalog_.image(id);
  if (image == nullptr) return Status(Code::kNotFound, "no image " + id.to_string());
  auto version = image_at(*store_.snapshot(), image->index, point);
  if (!version && version.status().code() == Code::kNotFound) {
    return Status(Code::kNotFound,
                  "image " + id.to_string() + " does not exist at point " + std::to_string(point.value));
  }
  if (!version) return version.status();
  return ReadTarget{id, image->index, point, std::move(*version)};
}

void Reader::read(const ReadTarget& target, Extent range, bool fresh, Callback<Result<ReadResult>> done) {
  TM_CHECK(range.length <= kReadBytesMax, "read in pieces");
  ReadResult result;
  result.bytes.resize(range.length);
  if (range.offset >= target.version.size || range.length == 0) return done(std::move(result));
  const Extent within{range.offset, std::min(range.length, target.version.size - range.offset)};
  std::vector<StoredRun> runs;
  {
    auto snapshot = store_.snapshot();
    HistoryView view(*snapshot, target.image, target.point);
    Leaf leaf;
    for (uint64_t index = within.offset / kLeafBytes; index * kLeafBytes < within.end(); ++index) {
      Status loaded = view.load(index, leaf);
      if (!loaded) return done(std::move(loaded));
      append_runs(leaf, index, within, runs);
    }
  }
  read_bytes_ += within.length;
  if (runs.empty()) return done(std::move(result));
  std::vector<ChunkId> chunks = chunks_of(runs);
  files_.read_chunks(std::move(chunks), fresh, [base = range.offset, runs = std::move(runs), result = std::move(result),
                                                done = std::move(done)](ChunkMap found) mutable {
    for (const StoredRun& run : runs) copy_run(run, base, found, result);
    done(std::move(result));
  });
}

void Reader::extents(const ReadTarget& target, uint64_t offset, uint32_t count, Callback<Result<ExtentPage>> done) {
  struct Job {
    std::unique_ptr<kv::Snapshot> snapshot;
    std::optional<Result<ExtentPage>> page;
    Callback<Result<ExtentPage>> done;
  };
  if (offset >= target.version.size) return done(ExtentPage{.next = target.version.size});
  auto job = std::make_shared<Job>();   // shared with the worker
  job->snapshot = store_.snapshot();
  job->done = std::move(done);
  ++busy_;
  auto work = [job, target, offset, count] {
    job->page.emplace(walk(*job->snapshot, target, offset, std::min(count, kListCountMax), kLeavesOfWalkMax));
    job->snapshot.reset();
  };
  env_.offload(work, [this, job] { --busy_; job->done(std::move(*job->page)); });
}

void Reader::allocated(const ReadTarget& target, Callback<Result<uint64_t>> done) {
  if (auto it = allocated_.find({target.image, target.point}); it != allocated_.end()) return done(it->second);
  struct Job {
    std::unique_ptr<kv::Snapshot> snapshot;
    Status status;
    uint64_t bytes = 0;
    Callback<Result<uint64_t>> done;
  };
  auto job = std::make_shared<Job>();   // shared with the worker
  job->snapshot = store_.snapshot();
  job->done = std::move(done);
  ++busy_;
  auto work = [job, target] {
    for (uint64_t offset = 0; offset < target.version.size && job->status;) {
      auto page = walk(*job->snapshot, target, offset, kListCountMax, kLeavesOfWalkMax);
      if (!page) { job->status = page.status(); break; }
      for (const Extent& e : page->extents) job->bytes += e.length;
      offset = page->next;
    }
    job->snapshot.reset();
  };
  env_.offload(work, [this, job, target] {
    --busy_;
    if (!job->status) return job->done(job->status);
    if (allocated_.size() >= kAllocatedKeptMax) allocated_.clear();
    allocated_[{target.image, target.point}] = job->bytes;
    job->done(job->bytes);
  });
}

// Read piece by piece; each piece is whole units, and hashed on a worker.
struct Reader::HashJob {
  ReadTarget target;
  Extent range;
  uint32_t unit = 0;
  uint64_t done_bytes = 0;
  DigestKey key;
  Bytes piece;
  HashResult result;
  Callback<Result<HashResult>> done;

  void digest_piece() {
    for (uint64_t at = 0; at < piece.size(); at += unit) {
      const Extent of_unit{range.offset + done_bytes + at, std::min<uint64_t>(unit, piece.size() - at)};
      const bool damaged = std::any_of(result.damaged.begin(), result.damaged.end(),
                                       [&](const Damage& d) { return d.extent.overlaps(of_unit); });
      result.digests.push_back(damaged ? Digest128{} : keyed_digest(key, ByteSpan(piece).subspan(at, of_unit.length)));
    }
  }
};

void Reader::hash(const ReadTarget& target, Extent range, uint32_t unit, const DigestKey& key,
                  Callback<Result<HashResult>> done) {
  TM_CHECK(unit >= kUnitBytes && unit <= kReadBytesMax && range.length <= kHashBytesMax, "checked by the caller");
  auto job = std::make_shared<HashJob>();   // shared by the reads and the worker
  job->target = target;
  job->range = range;
  job->unit = unit;
  job->key = key;
  job->done = std::move(done);
  hash_next(job);
}

void Reader::hash_next(const std::shared_ptr<HashJob>& job) {
  const uint64_t left = job->range.length - job->done_bytes;
  if (left == 0) return job->done(std::move(job->result));
  const uint64_t take = std::min<uint64_t>(left, kReadBytesMax / job->unit * job->unit);
  read(job->target, {job->range.offset + job->done_bytes, take}, true, [this, job](Result<ReadResult> piece) {
    if (!piece) return job->done(piece.status());
    job->piece = std::move(piece->bytes);
    for (Damage& d : piece->damaged) job->result.damaged.push_back(std::move(d));
    ++busy_;
    env_.offload([job] { job->digest_piece(); }, [this, job] {
      --busy_;
      job->done_bytes += job->piece.size();
      hash_next(job);
    });
  });
}

}  // namespace tidemark::replica
