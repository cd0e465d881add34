// The list of certificates that count no longer: `revoked.pem` beside the authority's file, a certificate revocation
// list (RFC 5280) that the authority signed. `tidemark pki revoke` writes it; nodes are given a copy, as of ca.pem, and
// read it again when it changes. No list: nothing is revoked. A list that cannot be read or is not the authority's is
// an error. Its dates are not looked at: an old list still counts. But nothing that a list of this authority revoked
// counts again, whatever list is put there, or none: an older one is said to be that, by its number. A daemon remembers
// it over its restarts.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "shared/base/status.h"

struct x509_st;

namespace tidemark::net {

inline constexpr int kRevocationCheckSeconds = 2;   // between two looks at the list, for the connections that are open

using Revoked = std::set<std::string>;   // serials, hexadecimal

std::string revocation_list_of(const std::string& authority_path);
// What was revoked is kept in this file from now on, and what it holds counts at once; what this process had seen until
// now does not. Empty: kept in memory alone. Before any connection is made. kCorruption: the message says what to do.
Status keep_revocations(const std::string& file);
// Null: there is no list, and none was ever seen.
Result<std::shared_ptr<const Revoked>> load_revoked(const std::string& authority_path, x509_st* authority);
std::string serial_of(const x509_st* certificate);

}  // namespace tidemark::net
