// What the revocation lists of an authority have ever revoked, as far as this node has seen them: in memory, and in a
// file of its state directory (shared/state/FORMAT.md, `revoked`). Lists only grow, so one that lacks something is an
// older one. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "shared/net/revocation.h"

namespace tidemark::net {

struct RevocationList {
  std::string authority;   // names its key
  std::string file;        // for messages
  uint64_t number = 0;     // grows with each list that the authority signs
  Revoked serials;
};
// What counts from now on: the list's, and all that was seen before. A warning where the list is an older one.
std::shared_ptr<const Revoked> add_to_seen(RevocationList list);
// There is no list at `file`. Null: none was ever seen. Else what was seen, and a warning.
std::shared_ptr<const Revoked> seen_without_list(const std::string& authority, const std::string& file);

}  // namespace tidemark::net
