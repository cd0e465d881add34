// status, mark, verify, scrub: what asks the running daemon.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"

namespace tidemark::cli {
namespace {

std::string size_of(const Json& j, const char* key) { return config::format_size(number(j, key)); }

std::string shared_line(const Json& shared) {
  if (!shared.is_object()) return "";
  std::string out = "shared   " + text(shared, "node", "?") + " at " + text(shared, "address", "?") + ": ";
  out += flag(shared, "connected") ? "connected" : "NOT CONNECTED";
  if (number(shared, "connections") > 0) out += ", " + std::to_string(number(shared, "connections")) + " connections";
  if (number(shared, "rtt_us") > 0) out += ", round trip " + std::to_string(number(shared, "rtt_us")) + " us";
  return out + "\n";
}

std::string replica_line(const Json& replica) {
  if (!replica.is_object() || text(replica, "url", "?").empty()) return "replica  none configured: nothing is shipped off-site\n";
  std::string out = "replica  " + text(replica, "url", "?") + ": " + (flag(replica, "connected") ? "connected" : "NOT CONNECTED");
  if (!text(replica, "error").empty()) out += " (" + text(replica, "error") + ")";
  return out + "\n";
}

// The limit, how near it is, and what follows from it.
std::string limit_line(const Json& journal) {
  if (number(journal, "limit_bytes") == 0) return "";
  std::string out = "\n         limit " + size_of(journal, "limit_bytes") + " or " + format_seconds(real(journal, "limit_age_s"));
  if (at(journal, "full_in_s").is_number()) out += ", full in " + format_seconds(real(journal, "full_in_s")) + " as things go";
  if (number(journal, "ship_rate_bytes") > 0) out += ", shipped at " + size_of(journal, "ship_rate_bytes") + "/s at most";
  const std::string shipping = text(journal, "shipping");
  if (shipping == "degraded") {
    out += "\n         DEGRADED: " + text(journal, "degraded_why") + "; " + size_of(journal, "resync_left_bytes") +
           " to send when the replica answers";
  } else if (shipping == "resyncing" || number(journal, "resync_left_bytes") > 0) {
    out += "\n         RESYNCING the replica: " + size_of(journal, "resync_left_bytes") + " left";
  }
  if (number(journal, "points_given_up") > 0) out += "\n         " + text(journal, "points_given_up") + " points given up";
  if (const Json& names = at(journal, "names_given_up"); names.is_array() && !names.empty()) {
    out += ", names lost:";
    for (const Json& name : names) out += " " + printable(name.is_string() ? name.get<std::string>() : name.dump());
  }
  if (flag(journal, "needs_full_resync")) out += "\n         the replica was replaced: tidemark journal resync-replica";
  return out;
}

std::string journal_line(const Json& journal) {
  if (!journal.is_object()) return "";
  std::string out = "journal  " + size_of(journal, "journal_bytes") + ", spool " + size_of(journal, "spool_bytes") + " in " +
                    std::to_string(number(journal, "spool_batches")) + " batches, RPO now " +
                    format_seconds(real(journal, "rpo_s"));
  if (flag(journal, "shipping_paused")) out += ", SHIPPING PAUSED";
  out += limit_line(journal);
  if (!text(journal, "ship_error").empty()) out += "\n         shipping fails: " + text(journal, "ship_error");
  return out + "\n";
}

std::string scrub_line(const Json& scrub) {
  if (!scrub.is_object() || (number(scrub, "runs") == 0 && !flag(scrub, "running"))) return "";
  std::string out = "scrub    ";
  if (flag(scrub, "running")) out += size_of(scrub, "done_bytes") + " of " + size_of(scrub, "total_bytes");
  else out += "last ended " + text(scrub, "ended");
  if (flag(scrub, "stopped")) out += flag(scrub, "running") ? ", stopping" : ", stopped before its end";
  const uint64_t repaired = number(scrub, "repaired_host_bytes") + number(scrub, "repaired_shared_bytes");
  if (repaired != 0) out += ", " + config::format_size(repaired) + " repaired";
  if (number(scrub, "undecided_bytes") != 0) out += ", " + size_of(scrub, "undecided_bytes") + " UNDECIDED";
  return out + "\n";
}

std::string restart_line(const Json& restart) {
  if (!restart.is_object()) return "";
  std::string out = "restart  ";
  if (flag(restart, "available")) out += "live: guests only wait while the daemon is replaced";
  else out += "not live (" + text(restart, "why") + "): should the daemon die, its mount dies";
  if (number(restart, "successors") != 0) out += "; replaced " + text(restart, "successors") + " times since the mount";
  return out + "\n";
}

// What makes copies level, while it is under way.
std::string resync_lines(const Json& images) {
  std::string out;
  if (!images.is_array()) return out;
  for (const Json& i : images) {
    const Json& run = at(i, "resync");
    if (!run.is_object()) continue;
    out += "level    " + text(i, "path", "(no name)") + ": " + size_of(run, "bytes_left") + " of " + size_of(run, "bytes_total") + " left";
    if (flag(run, "waits")) out += ", waits its turn";
    if (number(run, "bytes_per_s") != 0) out += ", " + size_of(run, "bytes_per_s") + " a second";
    if (at(run, "seconds_left").is_number()) out += ", done in " + format_seconds(real(run, "seconds_left"));
    out += "\n";
  }
  return out;
}

std::string image_table(const Json& images) {
  Table table({"IMAGE", "SIZE", "ALLOCATED", "EPOCH", "WRITER", "MIRROR", "STALE", "RPO", "UUID"});
  table.right({1, 2, 3, 6, 7});
  for (const Json& i : images) {
    std::string path = text(i, "path", "(no name)");
    if (path.size() > 1 && path.front() == '/') path.erase(0, 1);
    std::string writer = text(i, "writer", text(i, "holder"));
    table.row({path, size_of(i, "size"), size_of(i, "allocated"), text(i, "epoch", "-"), writer.empty() ? "-" : writer,
               text(i, "mirror", "-"),
               number(i, "stale_bytes") == 0 ? "0" : size_of(i, "stale_bytes"),
               at(i, "rpo_s").is_number() ? format_seconds(real(i, "rpo_s")) : "-", text(i, "uuid")});
  }
  return table.empty() ? "no images\n" : table.text();
}

}  // namespace

std::string status_text(const Json& s) {
  std::string out = text(s, "node") + " (" + text(s, "role") + ", " + text(s, "version") + "): " +
                    (flag(s, "healthy") ? "healthy" : "NOT HEALTHY") + "\n";
  for (const Json& reason : at(s, "reasons")) out += "  - " + (reason.is_string() ? reason.get<std::string>() : reason.dump()) + "\n";
  for (const Json& note : at(s, "notes")) out += "note     " + (note.is_string() ? note.get<std::string>() : note.dump()) + "\n";
  if (!text(s, "mount").empty()) out += "mount    " + text(s, "mount") + "\n";
  out += restart_line(at(s, "restart"));
  if (text(s, "role") == "host") out += shared_line(at(s, "shared")) + replica_line(at(s, "replica"));
  out += journal_line(at(s, "journal")) + scrub_line(at(s, "scrub"));
  out += resync_lines(at(s, "images"));
  for (const Json& host : at(s, "hosts")) {
    out += "host     " + text(host, "host", text(host, "node")) + ": " + (flag(host, "connected") ? "connected" : "not connected") + "\n";
  }
  if (at(s, "missing_kernel_features").is_array() && !at(s, "missing_kernel_features").empty()) {
    out += "kernel   missing:";
    for (const Json& f : at(s, "missing_kernel_features")) out += " " + (f.is_string() ? f.get<std::string>() : f.dump());
    out += "\n";
  }
  std::string shown;
  if (at(s, "images").is_array()) shown = "\n" + image_table(at(s, "images"));
  return out + shown;
}

// The daemon shows the images that it knows of; it knows those of a directory that was listed. Names alone are asked for:
// attributes of ten thousand images take many seconds.
void list_names(const std::string& mount) {
  constexpr size_t kNamesMax = 20000;
  std::error_code error;
  std::filesystem::recursive_directory_iterator walk(mount, error), end;
  for (size_t seen = 0; !error && walk != end && seen < kNamesMax; ++seen) walk.increment(error);
}

Outcome show_status(Context& context) {
  TM_ASSIGN_OR_RETURN(Json status, context.control_get("/v1/status"));
  // The daemon lists the images in use. The others are looked up through the mount, but only while
  // the shared node can answer for it: a status must not hang on what it is asked about.
  if (text(status, "role") == "host" && flag(at(status, "shared"), "connected") && !text(status, "mount").empty()) {
    list_names(text(status, "mount"));
    TM_ASSIGN_OR_RETURN(status, context.control_get("/v1/status"));
  }
  context.result(status, text(status, "role") == "replica" ? replica_status_text(status) : status_text(status));
  return 0;
}

std::string mark_text(const Json& answer) {
  const std::string name = text(answer, "name");
  return "batch " + text(answer, "batch") + " cut at " + text(answer, "label") + (name.empty() ? "" : ", name " + printable(name));
}

Outcome mark(Context& context, const MarkOptions& o) {
  Json request{{"name", o.name}, {"wait", o.wait}, {"timeout_s", o.timeout_s}};
  TM_ASSIGN_OR_RETURN(Json answer, context.control_post("/v1/mark", request, o.timeout_s + 30));
  std::string line = mark_text(answer);
  if (o.wait) {
    if (!flag(answer, "durable")) {
      context.result(answer, line + ": not yet durable at the replica");
      return exit_code_of(Status(Code::kUnavailable, ""));
    }
    line += at(answer, "point").is_number() ? ": durable at the replica, recovery point " + text(answer, "point")
                                            : ": durable at the replica, which holds it until what must come before is there";
  }
  context.result(answer, line);
  return 0;
}

int verify_exit_code(const Json& result) { return flag(result, "equal") ? 0 : kExitDivergence; }

std::string verify_text(const Json& result) {
  Table table({"IMAGE", "RESULT", "COMPARED", "HOST", "SHARED", "REPLICA", "POINT"});
  table.right({2, 6});
  std::string differences;
  for (const Json& image : at(result, "images")) {
    const Json& copies = at(image, "copies");
    const Json& found = at(image, "differences");
    bool differs = found.is_array() && !found.empty();
    const std::string error = text(image, "error");
    std::string verdict = flag(image, "equal") ? "equal" : differs ? "DIFFERENT" : "not level";
    if (!error.empty()) verdict = "DAMAGED";
    else if (flag(image, "skipped")) verdict = "skipped";
    std::string name = text(image, "path", text(image, "uuid"));
    table.row({name, verdict, size_of(image, "bytes_compared"), text(copies, "host", "-"), text(copies, "shared", "-"),
               text(copies, "replica", "-"), text(image, "point", "-")});
    if (!error.empty()) differences += printable(name) + ": " + printable(error) + "\n";
    else if (!text(image, "note").empty()) differences += printable(name) + ": " + printable(text(image, "note")) + "\n";
    for (const Json& d : found) {
      if (const std::string what = text(d, "what"); !what.empty()) {
        differences += printable(name) + ": copy of " + text(d, "copy") + " has another " + what + ": " +
                       printable(text(d, "there", "none")) + ", not " + printable(text(d, "here", "none")) + "\n";
        continue;
      }
      differences += printable(name) + ": copy of " + text(d, "copy") + " differs at offset " + text(d, "offset") + ", " +
                     text(d, "length") + " bytes\n";
    }
  }
  return (table.empty() ? "no images\n" : table.text()) + differences;
}

namespace {

Result<Json> image_names(Context& context, const std::vector<std::string>& names) {
  Json images = Json::array();
  for (const std::string& name : names) {
    TM_ASSIGN_OR_RETURN(ImageName image, name_image(context, name));
    images.push_back(image.uuid ? image.uuid->to_string() : image.path);
  }
  return images;
}

// Waits for a job of the daemon's; its result.
Result<Json> await_job(Context& context, const std::string& what, const Json& started) {
  const std::string job = text(started, "job");
  ProgressBar bar(what, context.progress_wanted());
  for (;;) {
    TM_ASSIGN_OR_RETURN(Json state, context.control_get("/v1/jobs/" + percent_encode(job)));
    bar.update(number(state, "done_bytes"), number(state, "total_bytes"));
    if (text(state, "state") == "done") return at(state, "result");
    if (text(state, "state") == "failed") {
      const Json& error = at(state, "error");
      if (error.is_object()) return status_of_answer(500, dump(error, -1), what);
      return Status(Code::kIoError, what + ": " + text(state, "error", "failed"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // lint: allow sleep_for: the pace of asking
  }
}

}  // namespace

Outcome verify(Context& context, const VerifyOptions& o) {
  TM_ASSIGN_OR_RETURN(Json images, image_names(context, o.images));
  TM_ASSIGN_OR_RETURN(Json started, context.control_post("/v1/verify", Json{{"images", images}}));
  TM_ASSIGN_OR_RETURN(Json result, await_job(context, "verify", started));
  context.result(result, verify_text(result));
  return verify_exit_code(result);
}

std::string scrub_text(const Json& result) {
  Table table({"IMAGE", "COMPARED", "SKIPPED", "VOUCHED", "REPAIRED", "UNDECIDED"});
  table.right({1, 2, 3, 4, 5});
  std::string found;
  for (const Json& image : at(result, "images")) {
    const std::string name = text(image, "path", text(image, "uuid"));
    table.row({name, size_of(image, "bytes_compared"), size_of(image, "bytes_skipped"), size_of(image, "bytes_vouched"),
               std::to_string(at(image, "repaired").size()), std::to_string(at(image, "undecided").size())});
    if (!text(image, "note").empty()) found += printable(name) + ": " + printable(text(image, "note")) + "\n";
    for (const Json& r : at(image, "repaired")) {
      found += printable(name) + ": the " + text(r, "copy") + " copy had rotted at offset " + text(r, "offset") + ", " +
               text(r, "length") + " bytes: repaired\n";
    }
    for (const Json& u : at(image, "undecided")) {
      found += printable(name) + ": UNDECIDED at offset " + text(u, "offset") + ", " + text(u, "length") + " bytes: host " +
               text(u, "host") + ", shared " + text(u, "shared") + ": " + printable(text(u, "reason")) + "\n";
    }
  }
  if (flag(result, "stopped")) found += "stopped before its end: the rest was not looked at\n";
  return (table.empty() ? "no images\n" : table.text()) + found;
}

Outcome scrub(Context& context, const ScrubOptions& o) {
  if (o.stop) {
    if (o.all || !o.images.empty()) return Status(Code::kInvalidArgument, "--stop ends the one that runs: name no image");
    TM_ASSIGN_OR_RETURN(Json stopping, context.control_post("/v1/scrub/stop", Json::object()));
    context.result(stopping, "the scrub is being stopped");
    return 0;
  }
  if (o.images.empty() != o.all) return Status(Code::kInvalidArgument, "name images, or give --all");
  TM_ASSIGN_OR_RETURN(Json images, image_names(context, o.images));
  uint64_t rate = 0;
  if (o.rate != "0") { TM_ASSIGN_OR_RETURN(rate, config::parse_size(o.rate)); }
  TM_ASSIGN_OR_RETURN(Json started, context.control_post("/v1/scrub", Json{{"images", images}, {"bytes_per_second", rate},
                                                                           {"trust_replica", o.trust_replica}}));
  TM_ASSIGN_OR_RETURN(Json result, await_job(context, "scrub", started));
  context.result(result, scrub_text(result));
  if (!flag(result, "clean")) return kExitDivergence;
  return flag(result, "stopped") ? exit_code_of(Status(Code::kCancelled, "")) : 0;
}

}  // namespace tidemark::cli
