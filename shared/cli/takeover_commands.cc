// image takeover, image branches: images whose holder is gone, and what a holder lost.

#include "shared/cli/commands.h"
#include "shared/cli/output.h"

namespace tidemark::cli {
namespace {

std::string away(const Json& image) {
  if (flag(image, "connected")) return "connected";
  if (!at(image, "away_s").is_number()) return "not seen since the shared node started";
  return "away for " + std::to_string(number(image, "away_s")) + " s";
}

// The replica's newest point of an image; empty when the replica cannot be asked.
std::string newest_point(Context& context, const std::string& uuid) {
  auto replica = context.replica();
  auto id = Uuid::parse(uuid);
  if (!replica || !id) return "";
  std::string newest;
  Status s = (*replica)->points(id, 0, [&](Point p) {
    newest = p.to_string();
    return true;
  });
  return s ? newest : "";
}

}  // namespace

std::string takeover_text(const Json& report) {
  std::string out;
  for (const Json& image : at(report, "images")) {
    const std::string action = text(image, "action");
    out += printable(text(image, "path")) + " (" + text(image, "uuid") + "), epoch " + text(image, "epoch") + "\n";
    if (action == "none") {
      out += "  " + text(image, "reason") + "\n";
      continue;
    }
    const char* verb = action == "refused" ? "REFUSED" : flag(report, "taken") ? "taken" : "would be taken";
    const std::string holder = text(image, "holder");
    const std::string whose = holder.empty() ? " as it is: nobody holds it" : " from " + holder + ", " + away(image);
    out += std::string("  ") + verb + whose + "\n";
    if (action == "refused") out += "  " + text(image, "reason") + "\n";
    out += "  shared copy: " + text(image, "copy") + "\n  tail: " + text(image, "tail") + "\n";
    const bool asks = !text(image, "witness").empty() && !flag(report, "taken");
    if (asks) out += "  witness: " + text(image, "witness") + "\n";
    if (!text(image, "newest_point").empty()) out += "  newest point: " + text(image, "newest_point") + "\n";
  }
  return out.empty() ? "no images\n" : out;
}

Outcome image_takeover(Context& context, const TakeoverOptions& o) {
  if (o.images.empty() == o.host.empty()) {
    return Status(Code::kInvalidArgument, "name images, or all of a host's with --host HOST");
  }
  Json body{{"force", o.force}, {"accept_loss", o.accept_loss}, {"dry_run", o.dry_run}};
  if (!o.host.empty()) body["host"] = o.host;
  else body["images"] = Json::array();
  TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
  for (const std::string& name : o.images) {
    if (config->mount.empty()) {   // the shared node: paths are those of the name space
      body["images"].push_back(name);
      continue;
    }
    TM_ASSIGN_OR_RETURN(ImageName image, name_image(context, name));
    body["images"].push_back(image.uuid ? image.uuid->to_string() : image.path);
  }
  TM_ASSIGN_OR_RETURN(Json report, context.control_post("/v1/images/takeover", body));
  bool refused = false;
  for (Json& image : report["images"]) {
    refused = refused || text(image, "action") == "refused";
    if (text(image, "action") != "none" && !flag(image, "level")) {
      image["newest_point"] = newest_point(context, text(image, "uuid"));
    }
  }
  context.result(report, takeover_text(report));
  return refused ? exit_code_of(Status(Code::kBusy, "")) : 0;
}

Outcome image_abort(Context& context, const std::string& name) {
  TM_ASSIGN_OR_RETURN(ImageName image, name_image(context, name));
  Json body{{"image", image.uuid ? image.uuid->to_string() : image.path}};
  TM_ASSIGN_OR_RETURN(Json answer, context.control_post("/v1/images/abort", body));
  context.result(answer, printable(name) + ": " + text(answer, "aborted") + " waiting requests were answered with an error");
  return 0;
}

Outcome image_branches(Context& context) {
  TM_ASSIGN_OR_RETURN(Json status, context.control_get("/v1/status"));
  const Json& branches = at(status, "branches");
  Table table({"IMAGE", "EPOCH", "SIZE", "UNREADABLE", "UUID", "FILE"});
  table.right({1, 2, 3});
  Json list = Json::array();
  for (const Json& b : branches) {
    table.row({text(b, "path", "-"), text(b, "epoch"), config::format_size(number(b, "bytes")),
               config::format_size(number(b, "unreadable_bytes")), text(b, "uuid"), text(b, "file")});
    list.push_back(b);
  }
  context.result(Json{{"branches", list}}, table.empty() ? "no branches on this host" : table.text());
  return 0;
}

}  // namespace tidemark::cli
