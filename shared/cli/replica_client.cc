#include "shared/cli/replica_client.h"

#include <algorithm>
#include <deque>
#include <iterator>

namespace tidemark::cli {
namespace {

constexpr uint64_t kPointsPerPage = 1000;
constexpr uint64_t kNewestPointsMax = 10000;   // that the replica finds from the end
constexpr uint64_t kExtentsPerPage = 4096;
constexpr uint64_t kGapBytesMax = 256 << 10;

Point point_of(const Json& j) {
  Point p;
  p.id = number(j, "id");
  p.source = text(j, "source");
  p.label = text(j, "label");
  p.name = text(j, "name");
  p.kind = text(j, "kind");
  p.batch = number(j, "batch");
  p.json = j;
  return p;
}

std::string without_slash(std::string path) {
  while (!path.empty() && path.front() == '/') path.erase(0, 1);
  return path;
}

PointImage image_of(const Json& j) {
  PointImage out;
  if (auto uuid = Uuid::parse(text(j, "uuid"))) out.uuid = *uuid;
  out.path = without_slash(text(j, "path"));
  out.size = number(j, "size");
  out.allocated = number(j, "allocated");
  out.mode = static_cast<uint32_t>(number(j, "mode", 0600)) & 07777;
  if (at(j, "uid").is_number()) out.uid = static_cast<int64_t>(number(j, "uid"));
  if (at(j, "gid").is_number()) out.gid = static_cast<int64_t>(number(j, "gid"));
  return out;
}

}  // namespace

std::vector<std::string> Point::without(const Uuid& image) const {
  std::vector<std::string> out;
  for (const Json& w : at(json, "without")) {
    std::string said = w.is_string() ? w.get<std::string>() : dump(w, -1);
    const bool of_another = said.starts_with("image ") && !said.starts_with("image " + image.to_string());
    if (image.is_nil() || !of_another) out.push_back(std::move(said));
  }
  return out;
}

std::string Point::to_string() const {
  std::string out = std::to_string(id) + " (" + source + (label.empty() ? "" : ", " + label);
  return out + (name.empty() ? "" : ", name " + name) + ")";
}

Result<Json> ReplicaClient::status() { return http_.get("/v1/status"); }

Result<std::string> ReplicaClient::store() {
  TM_ASSIGN_OR_RETURN(Json j, status());
  return text(j, "store");
}

Result<Point> ReplicaClient::resolve(const std::string& asked, const std::string& path, const std::optional<Uuid>& uuid) {
  std::string query;
  bool digits = !asked.empty() && std::all_of(asked.begin(), asked.end(), [](unsigned char c) { return std::isdigit(c); });
  if (asked == "latest" || digits) query = "id=" + asked;
  else if (WallTime::parse(asked)) query = "at=" + percent_encode(asked);
  else query = "name=" + percent_encode(asked);
  if (uuid) query += "&image=" + uuid->to_string();
  else if (!path.empty()) query += "&path=" + percent_encode(path);
  auto j = http_.get("/v1/points/resolve?" + query);
  if (!j) return j.status().with_context("recovery point " + asked);
  return point_of(*j);
}

Status ReplicaClient::points(const std::optional<Uuid>& image, uint64_t after, const std::function<bool(Point)>& each) {
  std::string filter = image ? "&image=" + image->to_string() : "";
  for (;;) {
    auto page = http_.get("/v1/points?after=" + std::to_string(after) + "&count=" + std::to_string(kPointsPerPage) + filter);
    if (!page) return page.status();
    uint64_t last = after;
    for (const Json& j : at(*page, "points")) {
      last = number(j, "id");
      if (!each(point_of(j))) return {};
    }
    if (at(*page, "points").empty()) return {};
    // `next` is where the next page begins; without it this was the last one.
    uint64_t next = number(*page, "next");
    if (next == 0) return {};
    after = std::max(next, last);
  }
}

Result<std::vector<Point>> ReplicaClient::newest_points(const std::optional<Uuid>& image, uint64_t after, uint64_t count) {
  std::deque<Point> newest;
  auto keep = [&](Point p) {
    newest.push_back(std::move(p));
    if (count != 0 && newest.size() > count) newest.pop_front();
    return true;
  };
  bool more = true;
  if (count != 0 && count <= kNewestPointsMax) {
    std::string target = "/v1/points?after=" + std::to_string(after) + "&newest=1&count=" + std::to_string(count);
    if (image) target += "&image=" + image->to_string();
    TM_ASSIGN_OR_RETURN(Json page, http_.get(target));
    for (const Json& j : at(page, "points")) keep(point_of(j));
    // An older replica begins with the oldest: it is gone through to the end.
    after = number(page, "next");
    more = after != 0;
  }
  if (more) TM_RETURN_IF_ERROR(points(image, after, keep));
  return std::vector<Point>(std::make_move_iterator(newest.begin()), std::make_move_iterator(newest.end()));
}

Result<Json> ReplicaClient::tree(const Point& point) {
  return http_.get("/v1/points/" + std::to_string(point.id) + "/tree");
}

std::string ReplicaClient::base(const Point& point, const Uuid& image) {
  return "/v1/points/" + std::to_string(point.id) + "/images/" + image.to_string();
}

Result<PointImage> ReplicaClient::image(const Point& point, const std::string& path, const std::optional<Uuid>& by_uuid) {
  std::optional<Uuid> uuid = by_uuid;
  const bool by_path = !uuid && !path.empty();
  // The replica knows best: what it shows of a name that is no UTF-8 is another. One of before does not say.
  if (by_path) uuid = Uuid::parse(text(point.json, "image"));
  if (by_path && !uuid) {
    TM_ASSIGN_OR_RETURN(Point named, resolve(std::to_string(point.id), path));
    uuid = Uuid::parse(text(named.json, "image"));
  }
  TM_ASSIGN_OR_RETURN(Json j, tree(point));
  PointImage found;
  for (const Json& entry : at(j, "entries")) {
    PointImage one = image_of(entry);
    if (one.uuid.is_nil() || (uuid ? one.uuid != *uuid : one.path != path || path.empty())) continue;
    found = one;
    break;
  }
  if (found.uuid.is_nil() && !uuid) {
    return Status(Code::kNotFound, "no image " + path + " at recovery point " + point.to_string() +
                                       ": see tidemark replica images --at " + std::to_string(point.id));
  }
  TM_ASSIGN_OR_RETURN(Json info, http_.get(base(point, uuid ? *uuid : found.uuid)));
  PointImage exact = image_of(info);
  found.uuid = uuid ? *uuid : found.uuid;
  found.size = exact.size;
  found.allocated = exact.allocated;
  // Of an image without a name a replica of before says zeros.
  if (found.path.empty()) {
    found.mode = PointImage().mode;
    found.uid = found.gid = -1;
  }
  found.path_exact = by_path && uuid;
  if (by_path) found.path = path;
  else if (found.path.empty()) found.path = exact.path;
  return found;
}

Status ReplicaClient::load_extents(const Point& point, const PointImage& image, uint64_t offset) {
  std::string target = base(point, image.uuid) + "/extents?offset=" + std::to_string(offset) +
                       "&count=" + std::to_string(kExtentsPerPage);
  auto page = http_.get(target);
  if (!page) return page.status();
  extents_.clear();
  for (const Json& e : at(*page, "extents")) {
    if (!e.is_array() || e.size() != 2 || !e[0].is_number() || !e[1].is_number()) {
      return {Code::kCorruption, "the replica's list of extents is malformed"};
    }
    Extent extent{e[0].get<uint64_t>(), e[1].get<uint64_t>()};
    uint64_t from = extents_.empty() ? 0 : extents_.back().end();
    if (extent.offset < from || extent.length == 0 || extent.length > image.size || extent.offset > image.size - extent.length) {
      return {Code::kCorruption, "the replica's list of extents is out of order or beyond the image's size"};
    }
    extents_.push_back(extent);
  }
  uint64_t next = number(*page, "next");
  bool more = next > offset && next < image.size && !extents_.empty();
  extents_begin_ = offset;
  extents_end_ = more ? next : image.size;
  extents_of_ = target.substr(0, target.find('?'));
  return {};
}

Result<Extent> ReplicaClient::next_data(const Point& point, const PointImage& image, uint64_t offset) {
  while (offset < image.size) {
    bool loaded = extents_of_ == base(point, image.uuid) + "/extents" && offset >= extents_begin_ && offset < extents_end_;
    if (!loaded) TM_RETURN_IF_ERROR(load_extents(point, image, offset));
    uint64_t begin = image.size, end = 0;
    for (const Extent& e : extents_) {
      if (e.end() <= offset) continue;
      // A request costs more than the zeros of a small gap, which the writer leaves out again.
      if (end != 0 && e.offset - end > kGapBytesMax) break;
      begin = std::min(begin, std::max(e.offset, offset));
      end = e.end();
    }
    if (end != 0) return Extent{begin, end - begin};
    offset = extents_end_;
  }
  return Extent{image.size, 0};
}

Status ReplicaClient::read(const Point& point, const PointImage& image, uint64_t offset, MutableByteSpan out) {
  return http_.read_range(base(point, image.uuid) + "/data", offset, out);
}

}  // namespace tidemark::cli
