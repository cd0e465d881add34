// Certificates of a cluster: one authority, one pair (certificate, key) a node.
//
//   authority   subject "O=tidemark, CN=<cluster uuid>", ca.pem and ca.key
//   node        CN = node name, SAN: DNS:node name, the names and addresses it is reached by, and
//               URI:tidemark://<cluster uuid>/<role>/<node name>, which is what peers check
//
// Keys are EC P-256 and written 0600. Everything is dated two days back, so that a cluster whose
// clocks differ works from its first minute. Nothing is overwritten without `force`. Blocking; for
// the command line and tests.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shared/net/network.h"

namespace tidemark::net::pki {

struct Validity {
  std::optional<WallTime> not_before;  // default: two days ago
  std::optional<WallTime> not_after;   // default: `days` from now; never later than the authority's
  int days = 825;
};

struct AuthorityOptions {
  Uuid cluster;           // nil: a new random one
  Validity validity{.days = 3650};
  bool force = false;     // overwrite: every certificate issued before becomes worthless
};

struct Authority {
  Uuid cluster;
  std::string certificate;  // paths written
  std::string key;
};
// Makes `directory` if need be, then ca.pem (0644) and ca.key (0600) in it.
Result<Authority> init_authority(const std::string& directory, const AuthorityOptions& options);

bool is_node_name(std::string_view name);   // [A-Za-z0-9._-], at most 63, begins with a letter or digit

struct IssueOptions {
  std::string authority_directory;
  std::string node;                  // is_node_name()
  Role role = Role::kHost;
  std::vector<std::string> names;    // further DNS names and numeric addresses it is reached by
  Validity validity;
  std::string out_directory;         // empty: the authority's
  bool force = false;
};
// Writes NODE.pem (0644) and NODE.key (0600).
Result<TlsFiles> issue(const IssueOptions& options);

struct RevokeOptions {
  std::string authority_directory;
  std::string certificate;           // path of the one that is to count no longer
  bool dry_run = false;
};
struct Revocation {
  std::string list;                  // path written: revoked.pem, to be given to every node beside its ca.pem
  std::string serial;                // hexadecimal
  PeerIdentity identity;
  bool again = false;                // it stood in the list already; nothing was written
};
Result<Revocation> revoke(const RevokeOptions& options);

struct CertificateInfo {
  std::string subject;               // common name
  std::string issuer;                // common name
  bool is_authority = false;
  Uuid cluster;
  std::optional<PeerIdentity> identity;   // of a node's certificate
  std::vector<std::string> names;    // DNS names and addresses
  WallTime not_before, not_after;
  std::string serial;                // hexadecimal
  std::string fingerprint;           // SHA-256 of the certificate, hexadecimal
};
Result<CertificateInfo> inspect(const std::string& certificate_path);

}  // namespace tidemark::net::pki
