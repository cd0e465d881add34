// What a daemon's configuration says of its own certificate and of the servers it asks over HTTPS.
#pragma once

#include <string>

#include "shared/base/config.h"
#include "shared/base/status.h"
#include "shared/net/network.h"

namespace tidemark::daemon {

net::TlsFiles files_of(const config::Tls& tls);
net::HttpClientOptions client_of(const config::ReplicaLink& link, const config::Tls& tls);
net::HttpClientOptions client_of(const config::WitnessLink& link, const config::Tls& tls);

// Cluster, role and name that the certificate gives this node, which must be those of [node]. The error names the
// file and line, and what to do.
Result<net::PeerIdentity> own_identity(const std::string& config_file, const config::Node& node,
                                       const config::Tls& tls);

}  // namespace tidemark::daemon
