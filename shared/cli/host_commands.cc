// host: the daemon replaced under its guests; another host for the cluster.

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

}  // namespace

// Nothing is to be told to the cluster: who has a certificate of its authority is a host of it from its first
// connection.
Outcome host_add(Context& context, HostAddOptions o) {
  TM_ASSIGN_OR_RETURN(std::string like_file, context.config_file());
  TM_ASSIGN_OR_RETURN(config::Host like, config::load_host(like_file));
  if (!like.shared) return Status(Code::kInvalidArgument, like_file + ": no [shared] to copy");
  namespace stdfs = std::filesystem;
  std::error_code error;
  o.output = stdfs::absolute(o.output, error).lexically_normal().string();
  if (o.state.empty()) o.state = "/var/lib/tidemark/" + o.name;
  if (o.run.empty()) o.run = "/run/tidemark/" + o.name;
  for (std::string* path : {&o.state, &o.run, &o.mount}) *path = stdfs::absolute(*path, error).string();
  for (std::string& brick : o.bricks) brick = stdfs::absolute(brick, error).string();
  const std::string file = o.output + "/" + o.name + ".toml";
  if (stdfs::exists(file, error)) return Status(Code::kAlreadyExists, file + " is there: choose another name or --out");
  net::pki::IssueOptions issue;
  issue.authority_directory = o.authority;
  issue.node = o.name;
  issue.role = net::Role::kHost;
  issue.names = o.names;
  issue.validity.days = o.days;
  issue.out_directory = o.output;
  TM_ASSIGN_OR_RETURN(net::TlsFiles made, net::pki::issue(issue));
  for (std::string* path : {&made.authority, &made.certificate, &made.key})
    *path = stdfs::absolute(*path, error).string();
  std::ofstream out(file);
  out << host_file(o, like, made) << std::flush;
  if (!out) return Status(Code::kIoError, file + ": cannot be written");
  std::vector<std::string> make{o.state, o.mount};
  make.insert(make.end(), o.bricks.begin(), o.bricks.end());
  for (const std::string& directory : make) {
    stdfs::create_directories(directory, error);
    if (error) return Status(Code::kIoError, directory + ": " + error.message());
  }
  auto good = config::load_host(file);
  if (!good) return good.status();
  Json j{{"config", file}, {"certificate", made.certificate}, {"key", made.key}, {"mount", o.mount}};
  context.result(j, "host " + printable(o.name) + ": " + printable(file) + "\nstart it: tidemark-fs --config " +
                        printable(file) + " (its directories are made; copy the files and make them there, if it is "
                        "another machine)");
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
