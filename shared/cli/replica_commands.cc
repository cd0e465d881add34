// replica status, images, points, export, restore.

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "shared/base/digest.h"
#include "shared/cli/commands.h"
#include "shared/cli/output.h"
#include "shared/cli/transfer.h"

namespace tidemark::cli {
namespace {

namespace fs = std::filesystem;

// An image as a command names it: in a mount's tree by path, or by UUID.
Result<ImageName> name_then(Context& context, const std::string& name) {
  if (auto uuid = Uuid::parse(name)) return ImageName{"", uuid};
  if (!name.empty() && name.front() == '/') return name_image(context, name);
  return ImageName{fs::path(name).lexically_normal().string(), std::nullopt};
}

Result<PointImage> find_image(Context& context, ReplicaClient& replica, const Point& point, const std::string& name) {
  TM_ASSIGN_OR_RETURN(ImageName then, name_then(context, name));
  return replica.image(point, then.path, then.uuid);
}

struct Taken {
  Point point;
  PointImage image;
};

// The point to take of an image, and the image there. Says both.
Result<Taken> take_point(Context& context, ReplicaClient& replica, const std::string& at_text, const std::string& name) {
  TM_ASSIGN_OR_RETURN(ImageName then, name_then(context, name));
  TM_ASSIGN_OR_RETURN(Point point, replica.resolve(at_text, then.path, then.uuid));
  context.note("took recovery point " + point.to_string());
  if (WallTime::parse(at_text) && text(point.json, "image").empty()) {
    context.note("the replica is of an older version: if a host's link was down then, the point may show later changes");
  }
  TM_ASSIGN_OR_RETURN(PointImage image, replica.image(point, then.path, then.uuid));
  for (const std::string& text : point.without(image.uuid)) context.note("it is without " + printable(text));
  return Taken{std::move(point), std::move(image)};
}

// What a restore to `point` gives up: the newer points of the image.
constexpr uint64_t kNewerCountedMax = 100000;
struct Newer {
  uint64_t count = 0;               // up to kNewerCountedMax
  bool more = false;                // there are more than that, of which only the last is known
  Point first, last;
  std::vector<std::string> names;   // of those that have one, a few
};

Result<Newer> newer_points(ReplicaClient& replica, const Uuid& image, const Point& point) {
  Newer out;
  Status s = replica.points(image, point.id, [&](Point p) {
    if (out.count == kNewerCountedMax) {
      out.more = true;
      return false;
    }
    if (out.count++ == 0) out.first = p;
    if (!p.name.empty() && out.names.size() < 8) out.names.push_back(p.name);
    out.last = std::move(p);
    return true;
  });
  if (!s) return s;
  if (out.more) {
    TM_ASSIGN_OR_RETURN(std::vector<Point> newest, replica.newest_points(image, point.id, 1));
    if (!newest.empty()) out.last = std::move(newest.back());
  }
  return out;
}

std::string loss_text(const Newer& newer, const Point& point) {
  if (newer.count == 0) return "nothing newer than point " + point.to_string() + " is known: no later change is left out\n";
  std::string out = "what came after point " + point.to_string() + " is not in the result: " + (newer.more ? "more than " : "") +
                    std::to_string(newer.count) + (newer.count == 1 ? " newer point, " : " newer points, from ") +
                    newer.first.label;
  if (newer.count > 1) out += " to " + newer.last.label;
  for (size_t i = 0; i < newer.names.size(); ++i) out += (i == 0 ? ", named " : ", ") + printable(newer.names[i]);
  return out + "; they stay readable at the replica\n";
}

Json loss_json(const Newer& newer) {
  Json j{{"newer_points", newer.count}, {"more", newer.more}, {"names", newer.names}};
  if (newer.count > 0) {
    j["first"] = newer.first.json;
    j["last"] = newer.last.json;
  }
  return j;
}

// The image that a restore is to replace, where it is another one than that which is brought back (that was itself put
// there by a restore, say): none of the points of the one that is brought back has anything of it.
struct Replaced {
  std::string uuid;        // empty: there is none
  std::optional<Point> newest;
};

Result<Replaced> replaced_image(ReplicaClient& replica, const std::string& path, const Uuid& restored) {
  Replaced out;
  auto uuid = Uuid::parse(image_attribute(path, "user.tidemark.uuid"));
  if (!uuid || *uuid == restored) return out;
  out.uuid = uuid->to_string();
  TM_ASSIGN_OR_RETURN(std::vector<Point> newest, replica.newest_points(uuid, 0, 1));
  if (!newest.empty()) out.newest = std::move(newest.back());
  return out;
}

std::string replaced_text(const Replaced& replaced) {
  if (replaced.uuid.empty()) return "";
  return "the image of that name now is another one (" + replaced.uuid + "), all of which is replaced: " +
         (replaced.newest ? "the newest point that has changes of it is " + printable(replaced.newest->to_string())
                          : std::string("it is in no point, nothing keeps it")) + "\n";
}

std::string sources_text(const Json& status) {
  Table table({"SOURCE", "EXPECTED", "APPLIED", "HELD", "WAITS FOR"});
  table.right({1, 2, 3});
  for (const Json& s : at(status, "sources")) {
    const Json& held = at(s, "held");
    std::string count = held.is_array() ? std::to_string(held.size()) : text(s, "held", "0");
    std::string waits = at(s, "waits_for").is_null() || at(s, "waits_for").empty() ? "-" : dump(at(s, "waits_for"), -1);
    if (held.is_array() && !held.empty()) waits = text(held.front(), "waits_for", waits);
    table.row({text(s, "source", text(s, "node")), text(s, "expected", "-"), text(s, "applied", "-"), count, waits});
  }
  return table.empty() ? "no source has shipped anything yet\n" : table.text();
}

}  // namespace

std::string replica_status_text(const Json& status) {
  std::string out = text(status, "node") + " (replica): " + (flag(status, "healthy") ? "healthy" : "NOT HEALTHY") + "\n";
  for (const Json& r : at(status, "reasons")) out += "  - " + printable(r.is_string() ? r.get<std::string>() : dump(r, -1)) + "\n";
  out += text(status, "points", "0") + " recovery points, " + text(status, "images", "0") + " images, " +
         text(status, "held_batches", "0") + " batches held back, index " +
         config::format_size(number(at(status, "storage"), "index_bytes")) + "\n\n" + sources_text(status);
  for (const Json& b : at(status, "branches")) {
    out += "BRANCH image " + text(b, "image") + ", epoch " + text(b, "epoch") + " of " + printable(text(b, "source")) +
           ", kept aside since epoch " + text(b, "newer_epoch") + "\n";
  }
  for (const Json& a : at(status, "alarms")) {
    out += "ALARM " + printable(text(a, "kind")) + " " + printable(text(a, "subject")) + ": " + printable(text(a, "text")) +
           " (last " + text(a, "last") + ", " + text(a, "count") + " times)\n";
  }
  return out;
}

Outcome replica_status(Context& context) {
  TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
  TM_ASSIGN_OR_RETURN(Json status, replica->status());
  context.result(status, replica_status_text(status));
  return 0;
}

Outcome replica_images(Context& context, const std::string& at_text) {
  TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
  TM_ASSIGN_OR_RETURN(Point point, replica->resolve(at_text));
  TM_ASSIGN_OR_RETURN(Json tree, replica->tree(point));
  Table table({"PATH", "KIND", "SIZE", "EPOCH", "UUID"});
  table.right({2, 3});
  for (const Json& e : at(tree, "entries")) {
    std::string path = text(e, "path", "(no name)");
    if (!text(e, "target").empty()) path += " -> " + text(e, "target");
    bool sized = at(e, "size").is_number() && !text(e, "uuid").empty();
    table.row({path, text(e, "kind", "-"), sized ? config::format_size(number(e, "size")) : "-", text(e, "epoch", "-"),
               text(e, "uuid", "-")});
  }
  Json j{{"point", point.json}, {"entries", at(tree, "entries")}};
  context.result(j, "recovery point " + point.to_string() + "\n\n" + (table.empty() ? "no images\n" : table.text()));
  return 0;
}

Outcome replica_points(Context& context, const PointsOptions& o) {
  TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
  std::optional<Uuid> uuid;
  if (!o.image.empty()) {
    uuid = Uuid::parse(o.image);
    if (!uuid) {
      TM_ASSIGN_OR_RETURN(Point latest, replica->resolve("latest"));
      TM_ASSIGN_OR_RETURN(PointImage image, find_image(context, *replica, latest, o.image));
      uuid = image.uuid;
    }
  }
  // One more than is shown tells whether there are more.
  TM_ASSIGN_OR_RETURN(std::vector<Point> newest, replica->newest_points(uuid, o.after, o.count == 0 ? 0 : o.count + 1));
  const bool more = o.count != 0 && newest.size() > o.count;
  if (more) newest.erase(newest.begin());
  // Ids have no gaps; how many of them changed one image nobody counts.
  Json seen = newest.size();
  if (more) seen = uuid ? Json() : Json(newest.back().id - o.after);
  Table table({"POINT", "LABEL", "SOURCE", "BATCH", "KIND", "NAME"});
  table.right({0, 3});
  Json list = Json::array();
  for (const Point& p : newest) {
    const bool gap = at(p.json, "without").is_array();
    const std::string kind = flag(p.json, "branch") ? "branch" : gap ? "after a gap" : p.kind.empty() ? "-" : p.kind;
    table.row({std::to_string(p.id), p.label, p.source, std::to_string(p.batch), kind, p.name});
    list.push_back(p.json);
  }
  std::string out = table.empty() ? "no recovery points\n" : table.text();
  if (more) {
    out += "the newest " + std::to_string(newest.size()) + (uuid ? "; there are more" : " of " + dump(seen, -1)) +
           "; --count 0 shows all\n";
  }
  Json j{{"image", uuid ? Json(uuid->to_string()) : Json()}, {"points", list}, {"count", seen}};
  context.result(j, out);
  return 0;
}

Outcome replica_export(Context& context, const PointExportOptions& o) {
  TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
  TM_ASSIGN_OR_RETURN(Taken taken, take_point(context, *replica, o.at, o.image));
  const Point& point = taken.point;
  const PointImage& image = taken.image;
  TM_ASSIGN_OR_RETURN(std::string store, replica->store());
  ReplicaSource source(*replica, store, point, image);
  TransferOptions options;
  options.note = [&](const std::string& text) { context.note(text); };
  options.path = o.output;
  options.progress_file = partial_path(o.output) + ".progress";
  options.overwrite = o.force;
  ProgressBar bar("export " + fs::path(o.output).filename().string(), context.progress_wanted());
  options.progress = [&](uint64_t done, uint64_t total) { bar.update(done, total); };
  TM_ASSIGN_OR_RETURN(TransferResult done, transfer(source, options));
  Json j{{"file", o.output},   {"image", image.uuid.to_string()},  {"path", image.path},
         {"size", done.size},  {"bytes_moved", done.bytes_moved}, {"resumed_at", done.resumed_at},
         {"point", point.json}};
  context.result(j, "exported " + (image.path.empty() ? image.uuid.to_string() : printable(image.path)) + " at point " +
                        point.to_string() + " to " + printable(o.output) + ", " + config::format_size(done.size) + ", " +
                        config::format_size(done.bytes_moved) + " moved");
  return 0;
}

Outcome replica_restore(Context& context, const RestoreOptions& o) {
  TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
  TM_ASSIGN_OR_RETURN(Taken taken, take_point(context, *replica, o.at, o.image));
  const Point& point = taken.point;
  const PointImage& image = taken.image;
  std::string name = o.as.empty() ? image.path : o.as;
  if (name.empty()) {
    return Status(Code::kInvalidArgument, "image " + image.uuid.to_string() + " had no name then: give one with --as NAME");
  }
  if (o.as.empty() && !image.path_exact && name.find("\xEF\xBF\xBD") != std::string::npos) {
    return Status(Code::kInvalidArgument, "image " + image.uuid.to_string() + " had a name that is no UTF-8 and is not told: " +
                                              "name it by that, or give one with --as NAME");
  }
  TM_ASSIGN_OR_RETURN(ImageName target, name_image(context, name));
  if (target.uuid) return Status(Code::kInvalidArgument, name + " is a UUID: give a path in the mount");
  TM_ASSIGN_OR_RETURN(std::string mount, context.live_mount());
  std::string path = mount + "/" + target.path;
  struct stat s {};
  bool replaces = lstat(path.c_str(), &s) == 0;
  TM_ASSIGN_OR_RETURN(Newer newer, newer_points(*replica, image.uuid, point));
  Json j{{"path", path}, {"image", image.uuid.to_string()}, {"size", image.size}, {"point", point.json},
         {"replaces", replaces}, {"after_point", loss_json(newer)}, {"dry_run", o.dry_run}};
  std::string loss = loss_text(newer, point);
  if (replaces) {
    TM_ASSIGN_OR_RETURN(Replaced replaced, replaced_image(*replica, path, image.uuid));
    loss += replaced_text(replaced);
    if (!replaced.uuid.empty())
      j["replaced"] = {{"uuid", replaced.uuid}, {"newest_point", replaced.newest ? replaced.newest->json : Json()}};
  }
  if (o.dry_run) {
    context.result(j, std::string("would restore ") + config::format_size(image.size) + " to " + printable(path) +
                          (replaces ? ", replacing the image there\n" : "\n") + loss);
    return 0;
  }
  if (replaces && !o.force) {
    return Status(Code::kAlreadyExists, path + " exists already: give --as NAME to restore beside it, or --force to replace it");
  }
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) return Status::from_errno(error.value(), fs::path(path).parent_path().string());
  TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
  TM_ASSIGN_OR_RETURN(std::string store, replica->store());
  ReplicaSource source(*replica, store, point, image);
  TransferOptions options;
  options.note = [&](const std::string& text) { context.note(text); };
  options.path = path;
  // Of this image to this path: it may be brought back under two names at once.
  options.progress_file = config->node.state_dir + "/restore-" + image.uuid.to_string() + "-" +
                          digest128(as_bytes(path)).to_string() + ".progress";
  options.overwrite = o.force;
  // Where owner and mode are not told, those of what is replaced stay.
  const bool told = image.uid >= 0 && image.gid >= 0;
  if (told || !replaces) options.before_rename = [&](const std::string& partial) -> Status {
    if (told && chown(partial.c_str(), static_cast<uid_t>(image.uid), static_cast<gid_t>(image.gid)) != 0 &&
        errno != EPERM) {
      return Status::from_errno(errno, partial);
    }
    if (chmod(partial.c_str(), image.mode) != 0) return Status::from_errno(errno, partial);
    return {};
  };
  ProgressBar bar("restore " + fs::path(path).filename().string(), context.progress_wanted());
  options.progress = [&](uint64_t done, uint64_t total) { bar.update(done, total); };
  TM_ASSIGN_OR_RETURN(TransferResult done, transfer(source, options));
  j["bytes_moved"] = done.bytes_moved;
  j["resumed_at"] = done.resumed_at;
  context.result(j, "restored " + printable(path) + " as at point " + point.to_string() + ", " +
                        config::format_size(done.size) + ", " + config::format_size(done.bytes_moved) + " moved\n" + loss);
  return 0;
}

}  // namespace tidemark::cli
