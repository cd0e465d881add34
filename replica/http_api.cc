#include "replica/http_api.h"

#include <algorithm>
#include <charconv>

#include "shared/base/log.h"

namespace tidemark::replica {
namespace {

const log::Logger kLog("http");
using Reply = Callback<net::HttpResponse>;

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

std::optional<std::string> decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') { out.push_back(text[i]); continue; }
    uint8_t byte = 0;
    if (i + 2 >= text.size()) return std::nullopt;
    auto [end, error] = std::from_chars(text.data() + i + 1, text.data() + i + 3, byte, 16);
    if (error != std::errc() || end != text.data() + i + 3) return std::nullopt;
    out.push_back(static_cast<char>(byte));
    i += 2;
  }
  return out;
}

bool is_source_name(const std::string& name) {
  return !name.empty() && name.size() <= 63 && name[0] != '.' &&
         name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") ==
             std::string::npos;
}

// The requests of one kind of path each; a Reply is called exactly once.
class Request {
 public:
  Request(Replica& replica, net::HttpRequest request, Target target, Reply reply)
      : replica_(replica), http_(std::move(request)), target_(std::move(target)), reply_(std::move(reply)) {}

  void run() {
    const auto& p = target_.path;
    if (p.size() < 2 || p[0] != "v1") return fail(404, "not_found", "no such path");
    if (p[1] == "sources" || p[1] == "batches") return source_request();
    if (!reader_role())
      return fail(403, "permission",
                  "a certificate of role " + std::string(net::role_name(http_.peer.role)) + " may not read");
    if (p.size() == 2 && p[1] == "status") return get_only() ? ok(status_text(replica_)) : method();
    if (p[1] != "points") return fail(404, "not_found", "no such path");
    if (p.size() == 2) return get_only() ? list_points() : method();
    if (p.size() == 3 && p[2] == "resolve") return get_only() ? resolve() : method();
    auto point = replica_.reader().resolve(p[2]);
    if (!point) return fail(point.status());
    if (p.size() == 3) return get_only() ? ok(point_json(*point)) : method();
    if (p.size() == 4 && p[3] == "tree") return get_only() ? tree(point->id) : method();
    if (p.size() >= 5 && p[3] == "images") return image_request(point->id);
    fail(404, "not_found", "no such path");
  }

 private:
  bool get_only() const { return http_.method == "GET"; }
  bool reader_role() const {
    return http_.peer.role == net::Role::kHost || http_.peer.role == net::Role::kOperator ||
           http_.peer.role == net::Role::kShared;
  }
  void ok(std::string json) { reply_(net::HttpResponse::json(200, std::move(json))); }
  void fail(int status, const std::string& error, const std::string& reason) {
    if (status == 403 || status == 400) {
      kLog.warning("request_refused",
                   {{"peer", http_.peer.node}, {"target", http_.target}, {"status", status}, {"reason", reason}});
    }
    reply_(error_response(status, error, reason));
  }
  void fail(const Status& status) { reply_(error_response(status)); }
  void method() { fail(405, "method", "not offered on this path"); }

  void source_request() {
    const auto& p = target_.path;
    if (p.size() != (p[1] == "sources" ? 4u : 6u)) return fail(404, "not_found", "no such path");
    const bool source_role = http_.peer.role == net::Role::kHost || http_.peer.role == net::Role::kShared;
    if (!source_role || http_.peer.node != p[2]) {
      return fail(403, "permission",
                  "source " + p[2] + " is not the certificate's name and role (" + http_.peer.node + ", " +
                      std::string(net::role_name(http_.peer.role)) + ")");
    }
    auto generation = Uuid::parse(p[3]);
    if (!is_source_name(p[2]) || !generation) return fail(400, "malformed", "the path is not /SOURCE/GENERATION/...");
    if (p[1] == "sources") {
      if (!get_only()) return method();
      // What it has of the stream is about to change, and may not: a source must not go by either number.
      if (replica_.intake().taking(p[2], *generation)) {
        return fail(503, "unavailable", "a part of this stream is being taken: ask again");
      }
      Result<std::string> known = source_json(replica_, p[2], *generation);
      return known ? ok(std::move(*known)) : fail(known.status());
    }
    if (http_.method != "PUT") return method();
    auto number = parse_number(p[4]), part = parse_number(p[5]);
    if (!number || !part || *number == 0 || *part >= journal::kSegmentPartsMax) {
      return fail(400, "malformed", "batch number or part is not a number in range");
    }
    if (http_.body.size() > limits::kBatchPartBytesMax) return fail(413, "too_large", "a part is at most 64 MiB");
    auto digest = journal::parse_digest(http_.headers["x-tidemark-digest"]);
    if (!digest || *digest == Sha256{}) return fail(400, "malformed", "x-tidemark-digest is not a SHA-256");
    PartName name{p[2], *generation, BatchNumber(*number), static_cast<uint32_t>(*part)};
    replica_.intake().put(std::move(name), http_.peer.role, std::move(http_.body), *digest,
                          [reply = std::move(reply_)](PutAnswer answer) mutable {
                            reply(net::HttpResponse::json(answer.status, put_json(answer)));
                          });
  }

  void list_points() {
    PointQuery query;
    if (std::string image = target_.get("image"); !image.empty()) {
      query.image = Uuid::parse(image);
      if (!query.image) return fail(400, "malformed", "image is not a UUID");
    }
    query.all = target_.get("all") == "1";
    query.newest = target_.get("newest") == "1";
    auto number = [this](const char* key, uint64_t otherwise) {
      const std::string text = target_.get(key);
      return text.empty() ? std::optional<uint64_t>(otherwise) : parse_number(text);
    };
    auto after = number("after", 0), count = number("count", 1000);
    if (!after || !count || *count == 0) return fail(400, "malformed", "after or count is not a number");
    query.after = PointId(*after);
    query.count = static_cast<uint32_t>(std::min<uint64_t>(*count, kListCountMax));
    auto page = replica_.reader().points(query);
    if (!page) return fail(page.status());
    ok(points_json(*page));
  }

  void resolve() {
    Result<Point> point = Status(Code::kInvalidArgument, "one of at, name, id is wanted");
    const std::string image = target_.get("image"), path = target_.get("path");
    const auto uuid = Uuid::parse(image);
    if (!image.empty() && !uuid) return fail(400, "malformed", "image is not a UUID");
    if (target_.query.contains("at")) {
      auto at = WallTime::parse(target_.get("at"));
      if (!at) return fail(400, "malformed", "at is not a time like 2026-11-21T10:00:05Z");
      if (uuid || !path.empty()) return resolve_image({uuid, path, *at});
      point = replica_.reader().by_time(*at);
    } else if (target_.query.contains("name")) {
      point = replica_.reader().by_name(target_.get("name"));
    } else if (const std::string id = target_.get("id"); id == "latest" || parse_number(id)) {
      point = replica_.reader().resolve(id);
    } else if (target_.query.contains("batch")) {
      auto generation = Uuid::parse(target_.get("generation"));
      auto number = parse_number(target_.get("batch"));
      if (!generation || !number) return fail(400, "malformed", "generation and batch are wanted");
      point = point_of_batch(*generation, BatchNumber(*number));
    }
    if (!point) return fail(point.status());
    if (path.empty()) return ok(point_json(*point));
    auto named = replica_.reader().image_of_path(path, point->id);
    if (!named && named.status().code() != Code::kNotFound) return fail(named.status());
    ok(point_json(*point, named ? *named : ImageId()));
  }

  void resolve_image(const ImageQuery& query) {
    replica_.reader().by_time(query, [reply = std::move(reply_)](Result<ImagePoint> found) mutable {
      reply(found ? net::HttpResponse::json(200, point_json(found->point, found->image))
                  : error_response(found.status()));
    });
  }

  // Of the asking source's own: what its receipt could not say while it was held.
  Result<Point> point_of_batch(const Uuid& generation, BatchNumber number) {
    auto record = read_record<BatchRecord>(*replica_.store().snapshot(), kBatches,
                                           batch_key(http_.peer.node, generation, number));
    if (!record) return record.status();
    if (record->state != BatchState::kApplied) return Status(Code::kNotFound, "the batch is not applied yet");
    return replica_.reader().resolve(std::to_string(record->point.value));
  }

  void tree(PointId point) {
    replica_.reader().tree(point, [reply = std::move(reply_)](Result<Tree> tree) mutable {
      reply(tree ? net::HttpResponse::json(200, tree_json(**tree)) : error_response(tree.status()));
    });
  }

  void image_request(PointId point) {
    const auto& p = target_.path;
    auto id = Uuid::parse(p[4]);
    if (!id) return fail(400, "malformed", "the image is not a UUID");
    auto target = replica_.reader().target(point, *id);
    if (!target) return fail(target.status());
    if (p.size() == 5) return get_only() ? image(*target) : method();
    if (p.size() != 6) return fail(404, "not_found", "no such path");
    if (p[5] == "data") return get_only() || http_.method == "HEAD" ? data(*target) : method();
    if (p[5] == "extents") return get_only() ? extents(*target) : method();
    if (p[5] == "hash") return http_.method == "POST" ? hash(*target) : method();
    fail(404, "not_found", "no such path");
  }

  void image(const ReadTarget& target) {
    Replica& replica = replica_;
    replica.reader().tree(target.point, [&replica, target, reply = std::move(reply_)](Result<Tree> tree) mutable {
      if (!tree) return reply(error_response(tree.status()));
      std::optional<std::string> path;
      for (const TreeEntry& entry : **tree) {
        if (entry.image == target.id && entry.path) { path = entry.path; break; }
      }
      replica.reader().allocated(target, [target, path, reply = std::move(reply)](Result<uint64_t> allocated) mutable {
        reply(allocated ? net::HttpResponse::json(200, image_json(target, path, *allocated))
                        : error_response(allocated.status()));
      });
    });
  }

  void data(const ReadTarget& target) {
    const uint64_t size = target.version.size;
    auto header = http_.headers.find("range");
    ByteRange range{.extent = {0, size}};
    if (header != http_.headers.end()) range = parse_range(header->second, size);
    net::HttpResponse response;
    response.headers["accept-ranges"] = "bytes";
    response.headers["x-tidemark-point"] = std::to_string(target.point.value);
    if (range.unsatisfiable) {
      response = error_response(416, "range", "the image has " + std::to_string(size) + " bytes");
      response.headers["content-range"] = "bytes */" + std::to_string(size);
      return reply_(std::move(response));
    }
    response.status = range.whole ? 200 : 206;
    response.headers["content-type"] = "application/octet-stream";
    if (!range.whole) {
      response.headers["content-range"] = "bytes " + std::to_string(range.extent.offset) + "-" +
                                          std::to_string(range.extent.end() - 1) + "/" + std::to_string(size);
    }
    response.content_length = range.extent.length;
    if (http_.method == "HEAD" || range.extent.length == 0) return reply_(std::move(response));
    stream(target, range.extent, std::move(response));
  }

  // The first piece is read before the status is sent, so that damage there is a clear error; later
  // damage ends the connection short of content-length.
  void stream(const ReadTarget& target, Extent range, net::HttpResponse response) {
    Replica& replica = replica_;
    const Extent first{range.offset, std::min<uint64_t>(range.length, limits::kHttpPieceBytes)};
    auto start = [&replica, target, range, response = std::move(response),
                  reply = std::move(reply_)](Result<ReadResult> piece) mutable {
      if (!piece) return reply(error_response(piece.status()));
      if (!piece->damaged.empty()) return reply(error_response(500, "corruption", damage_text(piece->damaged[0])));
      response.source = body_source(replica, target, range, std::move(piece->bytes));
      reply(std::move(response));
    };
    replica.reader().read(target, first, false, std::move(start));
  }

  static std::string damage_text(const Damage& d) {
    return "image bytes " + std::to_string(d.extent.offset) + " to " + std::to_string(d.extent.end()) + ": " +
           d.status.message();
  }

  static net::HttpResponse::BodySource body_source(Replica& replica, ReadTarget target, Extent range, Bytes first) {
    return [&replica, target = std::move(target), range, done = uint64_t{0}, first = std::move(first)](
               size_t max, Callback<Result<Bytes>> piece) mutable {
      if (!first.empty() && first.size() <= max) {
        done += first.size();
        return piece(std::exchange(first, {}));
      }
      first.clear();   // asked for less than a piece: read again from the beginning
      const uint64_t take = std::min({range.length - done, static_cast<uint64_t>(max), kReadBytesMax});
      if (take == 0) return piece(Bytes{});
      const Extent next{range.offset + done, take};
      done += take;
      replica.reader().read(target, next, false, [piece = std::move(piece)](Result<ReadResult> read) mutable {
        if (!read) return piece(read.status());
        if (!read->damaged.empty()) return piece(Status(Code::kCorruption, damage_text(read->damaged[0])));
        piece(std::move(read->bytes));
      });
    };
  }

  void extents(const ReadTarget& target) {
    auto offset = target_.query.contains("offset") ? parse_number(target_.get("offset")) : 0;
    auto count = target_.query.contains("count") ? parse_number(target_.get("count")) : 1000;
    if (!offset || !count || *count == 0) return fail(400, "malformed", "offset or count is not a number");
    replica_.reader().extents(
        target, *offset, static_cast<uint32_t>(std::min<uint64_t>(*count, kListCountMax)),
        [reply = std::move(reply_)](Result<ExtentPage> page) mutable {
          reply(page ? net::HttpResponse::json(200, extents_json(*page)) : error_response(page.status()));
        });
  }

  void hash(const ReadTarget& target) {
    // Judged before it is parsed, on the loop: what is parsed may take a hundred times its bytes.
    if (http_.body.size() > kHashRequestBytesMax) return fail(413, "too_large", "a request for hashes is short");
    auto request = parse_hash_request(http_.body);
    if (!request) return fail(400, "malformed", request.status().message());
    if (request->range.length > kHashBytesMax) return fail(413, "too_large", "at most 64 MiB are hashed at once");
    replica_.reader().hash(
        target, request->range, request->unit, request->key,
        [reply = std::move(reply_)](Result<HashResult> result) mutable {
          reply(result ? net::HttpResponse::json(200, hash_json(*result)) : error_response(result.status()));
        });
  }

  Replica& replica_;
  net::HttpRequest http_;
  Target target_;
  Reply reply_;
};

}  // namespace

std::optional<Target> Target::parse(std::string_view text) {
  Target target;
  const size_t mark = text.find('?');
  std::string_view path = text.substr(0, mark);
  std::string_view query = mark == std::string_view::npos ? std::string_view() : text.substr(mark + 1);
  if (path.empty() || path[0] != '/') return std::nullopt;
  for (path.remove_prefix(1); !path.empty();) {
    const size_t slash = path.find('/');
    auto piece = decode(path.substr(0, slash));
    if (!piece) return std::nullopt;
    target.path.push_back(std::move(*piece));
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view pair = query.substr(0, end);
    const size_t equals = pair.find('=');
    auto key = decode(pair.substr(0, equals));
    auto value = decode(equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1));
    if (!key || !value) return std::nullopt;
    target.query[*key] = *value;
    query = end == std::string_view::npos ? std::string_view() : query.substr(end + 1);
  }
  return target;
}

std::string Target::get(const std::string& key) const {
  auto it = query.find(key);
  return it == query.end() ? std::string() : it->second;
}

ByteRange parse_range(const std::string& header, uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  const ByteRange whole{.extent = {0, size}};
  if (!std::string_view(header).starts_with(kUnit)) return whole;
  const std::string_view range = std::string_view(header).substr(kUnit.size());
  const size_t dash = range.find('-');
  if (dash == std::string_view::npos || range.find(',') != std::string_view::npos) return whole;
  auto first = parse_number(range.substr(0, dash)), last = parse_number(range.substr(dash + 1));
  if (range.substr(0, dash).empty() && last) {   // the last N bytes
    const uint64_t length = std::min(*last, size);
    if (length == 0) return {.whole = false, .unsatisfiable = true};
    return {.whole = false, .extent = {size - length, length}};
  }
  const bool open_end = range.substr(dash + 1).empty();
  if (!first || (!last && !open_end) || (last && *last < *first)) return whole;
  if (*first >= size) return {.whole = false, .unsatisfiable = true};
  const uint64_t end = open_end ? size : std::min(*last, size - 1) + 1;
  return {.whole = false, .extent = {*first, end - *first}};
}

net::HttpResponse error_response(const Status& status) {
  return error_response(http_status_of(status), std::string(code_name(status.code())), status.message());
}

void answer_request(Replica& replica, net::HttpRequest request, Reply reply) {
  auto target = Target::parse(request.target);
  if (!target) return reply(error_response(400, "malformed", "the target cannot be decoded"));
  Request(replica, std::move(request), std::move(*target), std::move(reply)).run();
}

}  // namespace tidemark::replica
