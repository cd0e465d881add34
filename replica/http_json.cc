// JSON texts of API.md: the only place here that knows nlohmann-json.
#include <nlohmann/json.hpp>

#include <algorithm>

#include "replica/http_api.h"

namespace tidemark::replica {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kAlarmsShown = 100;
constexpr size_t kHeldShown = 100;     // of each source
constexpr uint32_t kPointsShown = 10;

// Names may hold any bytes; those that are not UTF-8 are replaced rather than failing the answer.
std::string text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

const char* kind_name(const PointRecord& r) {
  if (r.kind == journal::BatchKind::kResync) return "resync";
  return r.name.empty() ? "cut" : "named";
}

Json to_json(const Point& p) {
  Json json{{"id", p.id.value}, {"source", p.record.source}, {"generation", p.record.generation.to_string()},
          {"batch", p.record.number.value}, {"label", p.record.label.to_string()},
          {"name", p.record.name.empty() ? Json(nullptr) : Json(p.record.name)}, {"kind", kind_name(p.record)}};
  if (p.branch) json["branch"] = true;
  if (!p.without.empty()) json["without"] = p.without;
  return json;
}

const char* node_kind_name(wire::NodeKind kind) {
  switch (kind) {
    case wire::NodeKind::kImage: return "image";
    case wire::NodeKind::kDirectory: return "directory";
    case wire::NodeKind::kSymlink: return "symlink";
    case wire::NodeKind::kFifo: return "fifo";
    case wire::NodeKind::kSocket: return "socket";
    case wire::NodeKind::kCharDevice: return "char_device";
    case wire::NodeKind::kBlockDevice: return "block_device";
  }
  return "unknown";
}

std::string digest_hex(const Digest128& d) {
  uint8_t bytes[16];
  store_le(bytes, d.low);
  store_le(bytes + 8, d.high);
  return to_hex(bytes);
}

Json damage_json(const std::vector<Damage>& damaged) {
  Json list = Json::array();
  for (const Damage& d : damaged) {
    list.push_back({{"offset", d.extent.offset}, {"length", d.extent.length}, {"reason", d.status.message()}});
  }
  return list;
}

Json held_json(const Catalog& catalog, const std::string& source) {
  const OrderState& order = catalog.order;
  Json held = Json::array();
  auto it = order.sources.find(source);
  if (it == order.sources.end()) return held;
  for (size_t i = 0; i < it->second.waiting.size() && i < kHeldShown; ++i) {
    Json waits = Json::array();
    for (const Wait& wait : waits_of(order, it->second, i)) waits.push_back(wait.to_string());
    const WallTime since = catalog.held_since(it->second.waiting[i]);
    held.push_back({{"batch", it->second.waiting[i].number.value},
                    {"since", since.ns == 0 ? Json(nullptr) : Json(since.to_string())},
                    {"waits_for", std::move(waits)}});
  }
  return held;
}

Json branches_json(Replica& replica) {
  Json list = Json::array();
  auto snapshot = replica.store().snapshot();
  auto cursor = snapshot->cursor(kBranches);
  for (bool found = cursor->first(); found && list.size() < kAlarmsShown; found = cursor->next()) {
    auto r = wire::decode<BranchRecord>(cursor->value());
    if (!r) continue;
    list.push_back({{"image", r->image.to_string()}, {"epoch", r->epoch.value}, {"newer_epoch", r->newer.value},
                    {"source", r->source}, {"generation", r->generation.to_string()}, {"batch", r->number.value},
                    {"first", r->first.value}, {"last", r->last.value}, {"point", r->point.value}});
  }
  return list;
}

Json sources_json(Replica& replica) {
  const Catalog& catalog = replica.catalog();
  Json sources = Json::array();
  for (const auto& [name, source] : catalog.sources) {
    const StreamRecord* stream = catalog.stream(name, source.generation);
    auto order = catalog.order.sources.find(name);
    const size_t held = order == catalog.order.sources.end() ? 0 : order->second.waiting.size();
    sources.push_back(
        {{"source", name},
         {"role", std::string(net::role_name(static_cast<net::Role>(source.role)))},
         {"generation", source.generation.to_string()},
         {"expected", stream != nullptr ? stream->expected.value : 1},
         {"accepted", stream != nullptr ? stream->accepted.value : 0},
         {"applied", stream != nullptr ? stream->applied.value : 0},
         {"incarnation", source.incarnation.value},
         {"newest_label", source.newest_label.ns == 0 ? Json(nullptr) : Json(source.newest_label.to_string())},
         {"held_batches", held},
         {"held", held_json(catalog, name)}});
  }
  return sources;
}

}  // namespace

net::HttpResponse error_response(int status, const std::string& error, const std::string& reason) {
  return net::HttpResponse::json(status, text({{"error", error}, {"reason", reason}}));
}

std::string put_json(const PutAnswer& a) {
  if (a.status == 200) {
    return text({{"durable", true}, {"complete", a.complete}, {"applied", a.applied},
                 {"point", a.applied ? Json(a.point.value) : Json(nullptr)}, {"waits_for", a.waits_for}});
  }
  Json json{{"error", a.error}, {"reason", a.reason}};
  if (a.expected.value != 0) json["expected"] = a.expected.value;
  if (!a.have.empty()) json["have"] = a.have;
  if (!a.got.empty()) json["got"] = a.got;
  return text(json);
}

// Durable numbers alone: of a commit that never ends a source would make a replica that has gone back.
Result<std::string> source_json(Replica& replica, const std::string& source, const Uuid& generation) {
  auto snapshot = replica.store().snapshot();
  auto known = read_record<StreamRecord>(*snapshot, kStreams, stream_key(source, generation));
  if (!known && known.status().code() != Code::kNotFound) return known.status().with_context("table streams");
  const StreamRecord stream = known ? *known : StreamRecord{};
  Json parts = Json::array();
  auto record = read_record<BatchRecord>(*snapshot, kBatches, batch_key(source, generation, stream.expected));
  if (record) {
    for (size_t i = 0; i < record->parts.size(); ++i) {
      if (record->parts[i].present != 0) parts.push_back(i);
    }
  }
  return text({{"expected", stream.expected.value},
               {"last_digest", to_hex(stream.last_digest)},
               {"parts", std::move(parts)},
               {"accepted", stream.accepted.value},
               {"applied", stream.applied.value},
               {"held", held_json(replica.catalog(), source)},
               {"store", replica.catalog().meta.store.to_string()}});
}

std::string status_text(Replica& replica) {
  const Catalog& catalog = replica.catalog();
  const IntakeCounters& c = replica.intake().counters();
  Json alarms = Json::array();
  for (const AlarmRecord& a : replica.alarms(kAlarmsShown)) {
    alarms.push_back({{"kind", a.kind}, {"subject", a.subject}, {"text", a.text}, {"first", a.first.to_string()},
                      {"last", a.last.to_string()}, {"count", a.count}});
  }
  const PointId newest = replica.reader().newest();
  Json points = Json::array();
  for (uint64_t id = newest.value; id > 0 && points.size() < kPointsShown; --id) {
    if (auto point = replica.reader().point(PointId(id)); point) points.push_back(to_json(*point));
  }
  Json usage = nullptr;
  if (auto u = replica.store().usage(); u)
    usage = {{"index_bytes", u->file_bytes}, {"index_used_bytes", u->used_bytes}, {"index_bytes_max", u->map_bytes}};
  const auto reasons = replica.health();
  return text({{"node", replica.options().node},
               {"role", "replica"},
               {"store", catalog.meta.store.to_string()},
               {"healthy", reasons.empty()},
               {"reasons", reasons},
               {"sources", sources_json(replica)},
               {"held_batches", catalog.order.held()},
               {"images", catalog.images.size()},
               {"points", newest.value},
               {"newest_points", std::move(points)},
               {"storage", std::move(usage)},
               {"since_start",
                {{"batches_accepted", c.batches_accepted},
                 {"batches_applied", c.batches_applied},
                 {"parts_repeated", c.parts_repeated},
                 {"refused", c.refused},
                 {"conflicts", c.conflicts},
                 {"received_bytes", c.received_bytes},
                 {"applied_payload_bytes", c.applied_payload_bytes},
                 {"apply_seconds", c.apply_seconds}}},
               {"branches", branches_json(replica)},
               {"alarms", std::move(alarms)}});
}

std::string point_json(const Point& point, const ImageId& image) {
  Json json = to_json(point);
  if (!image.is_nil()) json["image"] = image.to_string();
  return text(json);
}

std::string points_json(const PointPage& page) {
  Json list = Json::array();
  for (const Point& p : page.points) list.push_back(to_json(p));
  return text({{"points", std::move(list)}, {"next", page.next.value == 0 ? Json(nullptr) : Json(page.next.value)}});
}

std::string tree_json(const std::vector<TreeEntry>& tree) {
  Json list = Json::array();
  for (const TreeEntry& e : tree) {
    list.push_back({{"path", e.path ? Json(*e.path) : Json(nullptr)},
                    {"uuid", e.image.is_nil() ? Json(nullptr) : Json(e.image.to_string())},
                    {"kind", node_kind_name(e.kind)},
                    {"size", e.size},
                    {"mode", e.path ? Json(e.mode) : Json(nullptr)},
                    {"uid", e.path ? Json(e.uid) : Json(nullptr)},
                    {"gid", e.path ? Json(e.gid) : Json(nullptr)},
                    {"target", e.target.empty() ? Json(nullptr) : Json(e.target)},
                    {"epoch", e.epoch.value}});
  }
  return text({{"entries", std::move(list)}});
}

std::string image_json(const ReadTarget& t, const std::optional<std::string>& path, uint64_t allocated) {
  return text({{"uuid", t.id.to_string()}, {"path", path ? Json(*path) : Json(nullptr)}, {"point", t.point.value},
               {"size", t.version.size}, {"allocated", allocated}, {"epoch", t.version.epoch.value},
               {"source", t.version.source}});
}

std::string extents_json(const ExtentPage& page) {
  Json list = Json::array();
  for (const Extent& e : page.extents) list.push_back({e.offset, e.length});
  return text({{"extents", std::move(list)}, {"next", page.next}});
}

std::string hash_json(const HashResult& result) {
  Json digests = Json::array();
  for (const Digest128& d : result.digests) digests.push_back(digest_hex(d));
  return text({{"digests", std::move(digests)}, {"corrupt", damage_json(result.damaged)}});
}

Result<HashRequest> parse_hash_request(ByteSpan body) {
  auto bad = [](const char* reason) { return Status(Code::kInvalidArgument, reason); };
  const Json json = Json::parse(body.begin(), body.end(), nullptr, false);
  if (!json.is_object()) return bad("the body is not a JSON object");
  auto number = [&json](const char* key) -> std::optional<uint64_t> {
    auto it = json.find(key);
    return it != json.end() && it->is_number_unsigned() ? std::optional<uint64_t>(it->get<uint64_t>()) : std::nullopt;
  };
  auto offset = number("offset"), length = number("length"), unit = number("unit");
  if (!offset || !length || !unit || *offset > limits::kImageBytesMax || *length > limits::kImageBytesMax) {
    return bad("offset, length and unit are wanted");
  }
  if (*unit < kUnitBytes || *unit > kReadBytesMax || *unit % kUnitBytes != 0)
    return bad("unit is a multiple of 4096, at most 1 MiB");
  auto key = json.find("key");
  if (key == json.end() || !key->is_string()) return bad("key is wanted");
  const std::string& hex = key->get_ref<const std::string&>();
  HashRequest request{.range = {*offset, *length}, .unit = static_cast<uint32_t>(*unit)};
  if (hex.size() != 2 * request.key.secret.size()) return bad("key is 192 bytes in hexadecimal");
  for (size_t i = 0; i < request.key.secret.size(); ++i) {
    auto nibble = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    const int high = nibble(hex[2 * i]), low = nibble(hex[2 * i + 1]);
    if (high < 0 || low < 0) return bad("key is 192 bytes in hexadecimal");
    request.key.secret[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return request;
}

}  // namespace tidemark::replica
