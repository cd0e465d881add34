// The replica's reader interface (replica/API.md) as a client sees it. Blocking.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/cli/http.h"
#include "shared/cli/json.h"

namespace tidemark::cli {

struct Point {
  uint64_t id = 0;
  std::string source, label, name, kind;
  uint64_t batch = 0;
  Json json;
  // What it is without, as the replica says it: of one image not what is said of another alone. Nil: all of it.
  std::vector<std::string> without(const Uuid& image) const;
  std::string to_string() const;   // "17 (host1, 2026-11-21T10:00:05.000Z, name before-upgrade)"
};

struct PointImage {
  Uuid uuid;
  std::string path;                // empty: nameless at that point
  bool path_exact = false;         // it was found by these bytes; else as shown: what is no UTF-8 is replaced
  uint64_t size = 0, allocated = 0;
  uint32_t mode = 0600;            // where it is not told
  int64_t uid = -1, gid = -1;      // -1: not told
};

class ReplicaClient {
 public:
  explicit ReplicaClient(Http http) : http_(std::move(http)) {}

  Result<Json> status();
  // The id of its history: points of another are others, whatever their numbers.
  Result<std::string> store();
  // `latest`, decimal id, RFC 3339 time, or name, in this order. A time is looked up for the image that is named, by path
  // (then) or UUID: what of it is labelled later is not shown at the point. The point's `image` is its UUID; of a path that
  // names none there is none. A replica of before takes no notice of either: any source's point, without `image`.
  Result<Point> resolve(const std::string& text, const std::string& path = "", const std::optional<Uuid>& uuid = {});
  // Calls `each` for the points after `after`, oldest first, until it says false. Nil image: all points.
  Status points(const std::optional<Uuid>& image, uint64_t after, const std::function<bool(Point)>& each);
  // The last `count` of them, oldest first; 0: all.
  Result<std::vector<Point>> newest_points(const std::optional<Uuid>& image, uint64_t after, uint64_t count);
  Result<Json> tree(const Point& point);
  // An image by path or UUID at a point; kNotFound says which point was looked at. By path it has that one, whatever
  // bytes it is of.
  Result<PointImage> image(const Point& point, const std::string& path, const std::optional<Uuid>& uuid);
  // The first extent with data at or after `offset`, length 0 at the size. Asked in pages, kept.
  Result<Extent> next_data(const Point& point, const PointImage& image, uint64_t offset);
  Status read(const Point& point, const PointImage& image, uint64_t offset, MutableByteSpan out);

 private:
  static std::string base(const Point& point, const Uuid& image);
  Status load_extents(const Point& point, const PointImage& image, uint64_t offset);

  Http http_;
  std::string extents_of_;           // what `extents_` belongs to
  std::vector<Extent> extents_;      // a page of it
  uint64_t extents_begin_ = 0, extents_end_ = 0;   // the range that the page tells about
};

}  // namespace tidemark::cli
