#include "shared/daemon/links.h"

#include "shared/net/pki.h"

namespace tidemark::daemon {

net::TlsFiles files_of(const config::Tls& tls) { return {tls.authority, tls.certificate, tls.key}; }

net::HttpClientOptions client_of(const config::ReplicaLink& link, const config::Tls& tls) {
  net::HttpClientOptions out;
  out.url = link.url;
  out.tls = files_of(tls);
  out.server_node = link.node;
  return out;
}

net::HttpClientOptions client_of(const config::WitnessLink& link, const config::Tls& tls) {
  net::HttpClientOptions out;
  out.url = link.url;
  out.tls = files_of(tls);
  out.server_role = link.in_replica ? net::Role::kReplica : net::Role::kWitness;
  out.server_node = link.node;
  return out;
}

Result<net::PeerIdentity> own_identity(const std::string& config_file, const config::Node& node,
                                       const config::Tls& tls) {
  const std::string where = config::locate(config_file, "tls", "certificate") + ": ";
  auto info = net::pki::inspect(tls.certificate);
  if (!info) return info.status().with_context(where + tls.certificate);
  const auto& found = info->identity;
  if (found && net::role_name(found->role) == node.role && found->node == node.name) return *found;
  const std::string is = found ? std::string(net::role_name(found->role)) + " " + found->node : "no node";
  return Status(Code::kInvalidArgument, where + tls.certificate + " is of " + is + ", [node] says " + node.role + " " +
                                            node.name + ": make one with tidemark pki issue " + node.name +
                                            " --role " + node.role);
}

}  // namespace tidemark::daemon
