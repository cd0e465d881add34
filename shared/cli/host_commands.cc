// host: the daemon replaced under its guests; another host for the cluster.

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"
#include "shared/net/pki.h"

namespace tidemark::cli {
namespace {
constexpr std::chrono::seconds kRestartMax{60};
constexpr std::chrono::milliseconds kLook{50};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string line(const char* key, const std::string& value) { return std::string(key) + " = " + quoted(value) + "\n"; }

std::string link(const char* section, const std::string& url, const std::string& node) {
  return std::string("\n[") + section + "]\n" + line("url", url) + (node.empty() ? "" : line("node", node));
}

// The new host's file: places of its own, the cluster's addresses as the other host has them.
std::string host_file(const HostAddOptions& o, const config::Host& like, const net::TlsFiles& tls) {
  std::string bricks;
  for (const std::string& brick : o.bricks) bricks += (bricks.empty() ? "" : ", ") + quoted(brick);
  std::string out = "# Made by `tidemark host add`; examples/host.toml explains every key.\n[node]\n";
  out += line("name", o.name) + line("role", "host") + line("state_dir", o.state) + line("run_dir", o.run);
  out += "\n[tls]\n" + line("authority", tls.authority) + line("certificate", tls.certificate) + line("key", tls.key);
  out += "\n[storage]\n" + line("group", like.storage.group) + "bricks = [" + bricks + "]\n";
  out += "\n[shared]\n" + line("address", like.shared->address);
  if (!like.shared->node.empty()) out += line("node", like.shared->node);
  if (like.replica) out += link("replica", like.replica->url, like.replica->node);
  if (like.witness) {
    out += link("witness", like.witness->url, like.witness->node);
    out += std::string("in_replica = ") + (like.witness->in_replica ? "true" : "false") + "\n";
  }
  out += "\n[autonomy]\n" + line("policy", like.may_go_alone ? "continue" : "pause");
  return out + "\n[mount]\n" + line("path", o.mount);
}

namespace stdfs = std::filesystem;

Status bad(const std::string& what) { return Status(Code::kInvalidArgument, what); }

// Absent, or an empty directory.
bool unused(const std::string& path) {
  std::error_code error;
  return !stdfs::exists(path, error) || (stdfs::is_directory(path, error) && stdfs::is_empty(path, error));
}

bool within(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory.ends_with('/') ? directory : directory + "/");
}

// Absolute, without what is not written in a configuration.
Status make_absolute(const char* option, std::string& path) {
  if (path.empty()) return bad(std::string(option) + " is empty");
  for (unsigned char c : path)
    if (c < ' ' || c == 0x7f) return bad(std::string(option) + " " + printable(path) + ": a control character");
  std::error_code error;
  path = stdfs::absolute(path, error).lexically_normal().string();
  if (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return error ? bad(std::string(option) + " " + path + ": " + error.message()) : Status::ok();
}

// Names that another node of the cluster has, as far as it can be told from here.
Status check_name(const HostAddOptions& o, const config::Host& like) {
  std::vector<std::string> taken{like.node.name, like.shared->node};
  if (like.replica) taken.push_back(like.replica->node);
  if (like.witness) taken.push_back(like.witness->node);
  if (std::find(taken.begin(), taken.end(), o.name) != taken.end())
    return Status(Code::kAlreadyExists, o.name + " is the name of another node of this cluster: choose another");
  std::error_code error;
  const std::string issued = o.authority + "/" + o.name + ".pem";
  if (stdfs::exists(issued, error))
    return Status(Code::kAlreadyExists, issued + " is there: a node of that name was made before: choose another");
  for (const char* end : {".toml", ".pem", ".key"}) {
    const std::string file = o.output + "/" + o.name + end;
    if (stdfs::exists(file, error))
      return Status(Code::kAlreadyExists, file + " is there: choose another name or --out");
  }
  return Status::ok();
}

// Each directory is the new host's alone.
Status check_places(const HostAddOptions& o, const config::Host& like) {
  std::vector<std::pair<std::string, std::string>> mine{{"--state", o.state}, {"--mount", o.mount}};
  for (const std::string& brick : o.bricks) mine.emplace_back("--brick", brick);
  std::vector<std::string> theirs{like.node.state_dir, like.mount.path};
  theirs.insert(theirs.end(), like.storage.bricks.begin(), like.storage.bricks.end());
  if (!o.elsewhere && o.run == like.node.run_dir) return bad("--run " + o.run + " is " + like.node.name + "'s");
  for (size_t i = 0; i < mine.size(); ++i) {
    const auto& [option, path] = mine[i];
    for (size_t j = 0; j < mine.size(); ++j) {
      if (j != i && within(path, mine[j].second))
        return bad(option + " " + path + " is within " + mine[j].first + ": give each a directory of its own");
    }
    if (o.elsewhere) continue;
    for (const std::string& other : theirs)
      if (within(path, other) || within(other, path))
        return bad(option + " " + path + ": " + other + " is " + like.node.name + "'s (another machine: --elsewhere)");
    if (!unused(path)) return bad(option + " " + path + " is in use: give an empty directory");
  }
  return Status::ok();
}

// What was made, until it is kept: else it goes, last first.
class Made {
 public:
  Made() = default;
  Made(const Made&) = delete;
  Made& operator=(const Made&) = delete;
  ~Made() {
    std::error_code ignored;   // nothing of it is in use: what stays is an empty directory
    for (auto path = paths_.rbegin(); path != paths_.rend(); ++path) stdfs::remove(*path, ignored);
  }
  // With the parents that are missing.
  Status directory(const std::string& path) {
    std::vector<std::string> missing;
    std::error_code error;
    for (stdfs::path at = path; !at.empty() && !stdfs::exists(at, error); at = at.parent_path()) {
      missing.push_back(at.string());
      if (at == at.parent_path()) break;
    }
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
      stdfs::create_directory(*at, error);
      if (error) return Status(Code::kIoError, *at + ": " + error.message());
      paths_.push_back(*at);
    }
    if (!stdfs::is_directory(path, error)) return bad(path + " is no directory");
    return Status::ok();
  }
  void add(std::string path) { paths_.push_back(std::move(path)); }
  void keep() { paths_.clear(); }

 private:
  std::vector<std::string> paths_;
};

}  // namespace

// Nothing is to be told to the cluster: who has a certificate of its authority is a host of it from its first
// connection. All is looked at first, made aside, and gets its names at the end; a failure leaves nothing behind.
Outcome host_add(Context& context, HostAddOptions o) {
  TM_ASSIGN_OR_RETURN(std::string like_file, context.config_file());
  TM_ASSIGN_OR_RETURN(config::Host like, config::load_host(like_file));
  if (!like.shared) return bad(like_file + ": no [shared] to copy");
  if (!net::pki::is_node_name(o.name) || o.name == "ca")
    return bad("NAME: letters, digits, '.', '-', '_', at most 63, beginning with a letter or digit, not \"ca\"");
  if (o.state.empty()) o.state = "/var/lib/tidemark/" + o.name;
  if (o.run.empty()) o.run = "/run/tidemark/" + o.name;
  TM_RETURN_IF_ERROR(make_absolute("--dir", o.authority));
  TM_RETURN_IF_ERROR(make_absolute("--out", o.output));
  TM_RETURN_IF_ERROR(make_absolute("--state", o.state));
  TM_RETURN_IF_ERROR(make_absolute("--run", o.run));
  TM_RETURN_IF_ERROR(make_absolute("--mount", o.mount));
  for (std::string& brick : o.bricks) TM_RETURN_IF_ERROR(make_absolute("--brick", brick));
  TM_RETURN_IF_ERROR(check_name(o, like));
  TM_RETURN_IF_ERROR(check_places(o, like));

  Made made, aside;
  TM_RETURN_IF_ERROR(made.directory(o.output));
  const std::string workshop = o.output + "/." + o.name + ".adding";
  TM_RETURN_IF_ERROR(aside.directory(workshop));
  for (const char* end : {".pem", ".key", ".toml"}) aside.add(workshop + "/" + o.name + end);
  net::pki::IssueOptions issue;
  issue.authority_directory = o.authority;
  issue.node = o.name;
  issue.role = net::Role::kHost;
  issue.names = o.names;
  issue.validity.days = o.days;
  issue.out_directory = workshop;
  issue.force = true;   // left of one that was killed
  TM_ASSIGN_OR_RETURN(net::TlsFiles tls, net::pki::issue(issue));
  const std::string file = o.output + "/" + o.name + ".toml";
  tls.certificate = o.output + "/" + o.name + ".pem";
  tls.key = o.output + "/" + o.name + ".key";
  std::ofstream out(workshop + "/" + o.name + ".toml");
  out << host_file(o, like, tls) << std::flush;
  if (!out) return Status(Code::kIoError, workshop + ": the configuration cannot be written");
  std::vector<std::string> make{o.state, o.mount};
  make.insert(make.end(), o.bricks.begin(), o.bricks.end());
  if (o.elsewhere) make.clear();
  for (const std::string& directory : make) TM_RETURN_IF_ERROR(made.directory(directory));
  if (!o.elsewhere) {
    auto good = config::load_host(workshop + "/" + o.name + ".toml");
    if (!good) return good.status();
  }
  for (const char* end : {".key", ".pem", ".toml"}) {
    std::error_code error;
    stdfs::rename(workshop + "/" + o.name + end, o.output + "/" + o.name + end, error);
    if (error) return Status(Code::kIoError, o.output + "/" + o.name + end + ": " + error.message());
    made.add(o.output + "/" + o.name + end);
  }
  made.keep();
  Json j{{"config", file}, {"certificate", tls.certificate}, {"key", tls.key}, {"mount", o.mount}};
  context.result(j, "host " + printable(o.name) + ": " + printable(file) + "\nstart it: tidemark-fs --config " +
                        printable(file) + (o.elsewhere ? " (there: copy the files, and make its directories)"
                                                       : " (its directories are made)"));
  return 0;
}

Outcome host_restart(Context& context) {
  TM_ASSIGN_OR_RETURN(Json before, context.control_post("/v1/restart", Json::object()));
  const auto until = std::chrono::steady_clock::now() + kRestartMax;
  while (std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(kLook);   // lint: allow sleep_for: the pace of asking
    auto now = context.control_get("/v1/restart");
    if (!now) continue;
    if (number(*now, "refusals") > number(before, "refusals"))
      return Status(Code::kInvalidArgument, "not restarted: " + text(*now, "refusal"));
    if (number(*now, "successors") == number(before, "successors")) continue;
    context.result(*now, "restarted: the daemon is now process " + text(*now, "daemon_pid") + ", before it was " +
                             text(before, "daemon_pid"));
    return 0;
  }
  return Status(Code::kUnavailable, "the daemon has not come back yet: see its log");
}

}  // namespace tidemark::cli
