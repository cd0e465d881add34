// The list of certificates that count no longer: `revoked.pem` beside the authority's file, a certificate revocation
// list (RFC 5280) that the authority signed. `tidemark pki revoke` writes it; nodes are given a copy, as of ca.pem, and
// read it again when it changes. No list: nothing is revoked. A list that cannot be read or is not the authority's is
// an error. Its dates are not looked at: an old list still counts. But while a process runs nothing that a list of this
// path revoked counts again, whatever list is put there: an older one is said to be that.
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
// Null: there is no list, and was none in the life of this process.
Result<std::shared_ptr<const Revoked>> load_revoked(const std::string& authority_path, x509_st* authority);
std::string serial_of(const x509_st* certificate);

}  // namespace tidemark::net
