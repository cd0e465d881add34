// What readers ask: points, trees, images at a point, their bytes. Short look-ups are answered at
// once from LMDB; walks run on a worker with a snapshot of their own. Loop thread only. Memory is
// bounded: a read is at most kReadBytesMax, a page of a listing has its count.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "replica/catalog.h"
#include "replica/history.h"
#include "replica/names.h"
#include "replica/segment_files.h"
#include "shared/base/digest.h"
#include "shared/base/task.h"

namespace tidemark::replica {

inline constexpr uint64_t kReadBytesMax = 1ull << 20;
inline constexpr uint64_t kHashBytesMax = 64ull << 20;     // of one request
inline constexpr size_t kHashRequestBytesMax = 4096;       // of its body
inline constexpr uint32_t kListCountMax = 10000;           // entries of one page
inline constexpr size_t kTreesKeptMax = 4;

struct Point {
  PointId id;
  PointRecord record;
  bool branch = false;                // of the image that was asked for: lost to a tenure taken by force
  std::vector<std::string> without{};   // what its batch stands in for and that never came
};
struct PointQuery {
  std::optional<ImageId> image;   // only points whose batch changed it, unless `all`
  bool all = false;
  PointId after;
  uint32_t count = 1000;
  bool newest = false;            // the last `count`, not the first
};
// One image as it was at a time.
struct ImageQuery {
  std::optional<ImageId> image;   // none: the one that `path` named then
  std::string path;
  WallTime at;
};
struct ImagePoint {
  ImageId image;
  Point point;                    // with what it is without of this image alone
};
struct PointPage {
  std::vector<Point> points;      // oldest first
  PointId next;                   // 0: no more
};

// One image at one point.
struct ReadTarget {
  ImageId id;
  ImageIndex image;
  PointId point;
  ImageVersion version;
};
struct Damage { Extent extent; Status status; };
struct ReadResult {
  Bytes bytes;                    // zeros where nothing is stored, past the end, and where damaged
  std::vector<Damage> damaged;
};
struct ExtentPage {
  std::vector<Extent> extents;    // adjacent ones joined, holes left out, cut at the image's size
  uint64_t next = 0;              // go on from here; the image's size at the end
};
struct HashResult {
  std::vector<Digest128> digests;
  std::vector<Damage> damaged;
};
using Tree = std::shared_ptr<const std::vector<TreeEntry>>;   // shared by the cache and answers under way

class Reader {
 public:
  Reader(io::Env& env, kv::Store& store, SegmentFiles& files, const Catalog& catalog);

  // Durable: a batch whose commit is under way does not count yet.
  PointId newest() const;
  Result<Point> point(PointId id);
  // An id (decimal), `latest`, or a name (the newest point that bears it).
  Result<Point> resolve(const std::string& text);
  Result<Point> by_name(const std::string& name);
  // The newest point labelled not later. Labels never order: among those not later, the one applied last.
  Result<Point> by_time(WallTime at);
  // Of those that show nothing of the image that is labelled later: by_time() may take a point of another host, applied
  // long after the image's own of that time.
  void by_time(const ImageQuery& query, Callback<Result<ImagePoint>> done);
  // What a path names at a point.
  Result<ImageId> image_of_path(const std::string& path, PointId point);
  Result<PointPage> points(const PointQuery& query);

  void tree(PointId point, Callback<Result<Tree>> done);
  Result<ReadTarget> target(PointId point, const ImageId& image);
  // At most kReadBytesMax. `fresh`: from storage, past the caches.
  void read(const ReadTarget& target, Extent range, bool fresh, Callback<Result<ReadResult>> done);
  void extents(const ReadTarget& target, uint64_t offset, uint32_t count, Callback<Result<ExtentPage>> done);
  void allocated(const ReadTarget& target, Callback<Result<uint64_t>> done);
  // Keyed digests of units of the range, from storage. A damaged unit's digest is zero.
  void hash(const ReadTarget& target, Extent range, uint32_t unit, const DigestKey& key,
            Callback<Result<HashResult>> done);

  uint64_t read_bytes() const { return read_bytes_; }
  bool idle() { return busy_ == 0; }

 private:
  struct HashJob;
  struct CutOffsNamed {
    std::optional<ImageId> image;   // this one alone
    size_t max = SIZE_MAX;          // how many more there are is said
  };
  Result<Point> complete_point(kv::Snapshot& snapshot, Point point, const CutOffsNamed& named) const;
  void hash_next(const std::shared_ptr<HashJob>& job);
  io::Env& env_;
  kv::Store& store_;
  SegmentFiles& files_;
  const Catalog& catalog_;
  std::list<std::pair<PointId, Tree>> trees_;                 // newest used first
  std::map<std::pair<ImageIndex, PointId>, uint64_t> allocated_;
  uint64_t read_bytes_ = 0;
  uint64_t busy_ = 0;             // walks on a worker
};

}  // namespace tidemark::replica
