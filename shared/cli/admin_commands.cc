// pki and config: what needs no running daemon.

#include <chrono>
#include <filesystem>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"
#include "shared/net/pki.h"
#include "shared/net/tls_context.h"

namespace tidemark::cli {
namespace {

Json json_of(const std::string& file, const net::pki::CertificateInfo& info) {
  Json j{{"file", file},
         {"subject", info.subject},
         {"issuer", info.issuer},
         {"authority", info.is_authority},
         {"cluster", info.cluster.to_string()},
         {"not_before", info.not_before.to_string()},
         {"not_after", info.not_after.to_string()},
         {"serial", info.serial},
         {"fingerprint", info.fingerprint},
         {"names", info.names}};
  if (info.identity) {
    j["node"] = info.identity->node;
    j["role"] = net::role_name(info.identity->role);
  }
  return j;
}

std::string text_of(const Json& j) {
  std::string out = printable(text(j, "file")) + "\n";
  if (flag(j, "authority")) out += "  authority of cluster " + text(j, "cluster") + "\n";
  else out += "  node " + printable(text(j, "node")) + ", role " + text(j, "role") + ", cluster " + text(j, "cluster") + "\n";
  out += "  valid from " + text(j, "not_before") + " to " + text(j, "not_after") + "\n";
  std::string names;
  for (const Json& n : at(j, "names")) names += (names.empty() ? "" : ", ") + printable(n.get<std::string>());
  if (!names.empty()) out += "  reached as " + names + "\n";
  return out + "  SHA-256 " + text(j, "fingerprint") + "\n";
}

WallTime wall_now() {
  return {std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count()};
}

// What a peer would refuse, found before the daemon starts: another node's or cluster's certificate, one that is not
// valid now, a key that is not its own.
Status check_certificates(const std::string& file, const config::Node& node, const config::Tls& tls) {
  auto wrong = [&](const char* key, const std::string& what, const std::string& remedy) {
    return Status(Code::kInvalidArgument, config::locate(file, "tls", key) + ": " + what + ": " + remedy);
  };
  const std::string issue = "make one with tidemark pki issue " + node.name + " --role " + node.role;
  auto authority = net::pki::inspect(tls.authority);
  const std::string copy = "copy the cluster's ca.pem there";
  if (!authority) return wrong("authority", authority.status().message(), copy);
  if (!authority->is_authority) return wrong("authority", tls.authority + " is no authority", copy);
  auto own = net::pki::inspect(tls.certificate);
  if (!own) return wrong("certificate", own.status().message(), issue);
  if (!own->identity || own->identity->node != node.name || net::role_name(own->identity->role) != node.role) {
    std::string whose = "no node's";
    if (own->identity) whose = std::string(net::role_name(own->identity->role)) + " " + own->identity->node + "'s";
    std::string what = tls.certificate + " is " + whose + ", not " + node.role + " " + node.name + "'s";
    return wrong("certificate", what, issue);
  }
  if (own->cluster != authority->cluster) {
    std::string what = tls.certificate + " is of cluster " + own->cluster.to_string() + ", the authority of cluster " +
                       authority->cluster.to_string();
    return wrong("certificate", what, "issue it with this cluster's authority");
  }
  for (const auto& [key, info] : {std::pair{"authority", &*authority}, {"certificate", &*own}}) {
    WallTime now = wall_now();
    const std::string& path = info == &*own ? tls.certificate : tls.authority;
    const std::string clock = "; this machine's clock says " + now.to_string();
    if (info->not_after < now) return wrong(key, path + " expired at " + info->not_after.to_string() + clock, issue);
    if (now < info->not_before) {
      std::string what = path + " is not valid before " + info->not_before.to_string() + clock;
      return wrong(key, what, "set the clock, or " + issue);
    }
  }
  auto pair = net::TlsContext::load({tls.authority, tls.certificate, tls.key});
  return pair ? Status() : wrong("key", pair.status().message(), "copy NODE.pem and NODE.key of one issue");
}

Status check_file(const std::string& file, std::string& role) {
  TM_ASSIGN_OR_RETURN(role, config::role_of(file));
  if (role == "host") {
    TM_ASSIGN_OR_RETURN(config::Host c, config::load_host(file));
    TM_RETURN_IF_ERROR(config::check_paths(file, c.tls, &c.storage));
    std::error_code error;   // a mount whose daemon is gone is there as well
    auto there = std::filesystem::status(c.mount.path, error).type();
    if (!c.mount.path.empty() && there == std::filesystem::file_type::not_found) {
      return {Code::kInvalidArgument, config::locate(file, "mount", "path") + ": " + c.mount.path +
                                          " is missing: create the directory"};
    }
    return check_certificates(file, c.node, c.tls);
  }
  if (role == "shared") {
    TM_ASSIGN_OR_RETURN(config::Shared c, config::load_shared(file));
    TM_RETURN_IF_ERROR(config::check_paths(file, c.tls, &c.storage));
    return check_certificates(file, c.node, c.tls);
  }
  if (role == "witness") {
    TM_ASSIGN_OR_RETURN(config::Witness c, config::load_witness(file));
    TM_RETURN_IF_ERROR(config::check_paths(file, c.tls, nullptr));
    return check_certificates(file, c.node, c.tls);
  }
  TM_ASSIGN_OR_RETURN(config::Replica c, config::load_replica(file));
  TM_RETURN_IF_ERROR(config::check_paths(file, c.tls, nullptr));
  return check_certificates(file, c.node, c.tls);
}

}  // namespace

Outcome pki_init(Context& context, const PkiInitOptions& o) {
  net::pki::AuthorityOptions options;
  if (!o.cluster.empty()) {
    auto uuid = Uuid::parse(o.cluster);
    if (!uuid) return Status(Code::kInvalidArgument, "bad cluster \"" + o.cluster + "\": write a UUID, or leave it out");
    options.cluster = *uuid;
  }
  options.validity.days = o.days;
  options.force = o.force;
  TM_ASSIGN_OR_RETURN(net::pki::Authority made, net::pki::init_authority(o.directory, options));
  Json j{{"cluster", made.cluster.to_string()}, {"certificate", made.certificate}, {"key", made.key}};
  context.result(j, "authority of cluster " + made.cluster.to_string() + ": " + printable(made.certificate) + " and " +
                        printable(made.key) + " (keep the key away from the nodes)");
  return 0;
}

Outcome pki_issue(Context& context, const PkiIssueOptions& o) {
  auto role = net::parse_role(o.role);
  if (!role) {
    return Status(Code::kInvalidArgument, "bad role \"" + o.role + "\": write host, shared, replica, witness or operator");
  }
  net::pki::IssueOptions options;
  options.authority_directory = o.directory;
  options.node = o.node;
  options.role = *role;
  options.names = o.names;
  options.validity.days = o.days;
  for (auto [text, time] : {std::pair{&o.not_before, &options.validity.not_before}, {&o.not_after, &options.validity.not_after}}) {
    if (text->empty()) continue;
    *time = WallTime::parse(*text);
    if (!*time) return Status(Code::kInvalidArgument, "bad time \"" + *text + "\": write it as 2026-11-21T10:00:05Z");
  }
  options.out_directory = o.output;
  options.force = o.force;
  TM_ASSIGN_OR_RETURN(net::TlsFiles made, net::pki::issue(options));
  Json j{{"node", o.node}, {"role", o.role}, {"authority", made.authority}, {"certificate", made.certificate}, {"key", made.key}};
  context.result(j, "certificate of " + o.role + " " + printable(o.node) + ": " + printable(made.certificate) + " and " +
                        printable(made.key));
  return 0;
}

Outcome pki_revoke(Context& context, const PkiRevokeOptions& o) {
  net::pki::RevokeOptions options;
  options.authority_directory = o.directory;
  options.dry_run = o.dry_run;
  options.certificate = o.certificate;
  std::error_code error;
  if (o.certificate.find('/') == std::string::npos && !std::filesystem::exists(o.certificate, error)) {
    options.certificate = o.directory + "/" + o.certificate + ".pem";
  }
  TM_ASSIGN_OR_RETURN(net::pki::Revocation done, net::pki::revoke(options));
  const std::string role(net::role_name(done.identity.role));
  Json j{{"node", done.identity.node}, {"role", role}, {"serial", done.serial}, {"list", done.list},
         {"already", done.again}, {"dry_run", o.dry_run}};
  std::string what = "certificate of " + role + " " + printable(done.identity.node) + " (serial " + done.serial + ")";
  if (done.again) what += " was revoked already: " + printable(done.list);
  else if (o.dry_run) what += " would be revoked in " + printable(done.list);
  else what += " is revoked: copy " + printable(done.list) + " beside ca.pem on every node";
  context.result(j, what);
  return 0;
}

Outcome pki_show(Context& context, const std::vector<std::string>& files) {
  Json list = Json::array();
  std::string out;
  for (const std::string& file : files) {
    TM_ASSIGN_OR_RETURN(net::pki::CertificateInfo info, net::pki::inspect(file));
    list.push_back(json_of(file, info));
    out += text_of(list.back());
  }
  context.result(list, out);
  return 0;
}

Outcome config_check(Context& context, const std::vector<std::string>& asked) {
  std::vector<std::string> files = asked;
  if (files.empty()) {
    TM_ASSIGN_OR_RETURN(std::string file, context.config_file());
    files.push_back(std::move(file));
  }
  Json list = Json::array();
  std::string out;
  int code = 0;
  for (const std::string& file : files) {
    std::string role;
    Status s = check_file(file, role);
    Json j{{"file", file}, {"good", s.is_ok()}};
    if (!role.empty()) j["role"] = role;
    if (!s) {
      j["error"] = s.message();
      code = 2;
    }
    list.push_back(j);
    out += s ? printable(file) + ": good (" + role + ")\n" : printable(s.message()) + "\n";
  }
  context.result(list, out);
  return code;
}

}  // namespace tidemark::cli
