// What the revocation lists of an authority have ever revoked, as far as this node has seen them: in memory, and in a
// file of its state directory (shared/state/FORMAT.md, `revoked`). Lists only grow, so one that lacks something is an
// older one. Any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "shared/base/bytes.h"
#include "shared/net/revocation.h"

namespace tidemark::net {

struct RevocationList {
  std::string authority;   // names its key
  std::string file;        // for messages
  uint64_t number = 0;     // grows with each list that the authority signs
  Revoked serials;
};
// What counts from now on: the list's, and all that was seen before. A warning where the list is an older one.
// It is written down by a thread of its own, which is waited for, but for a second at most: the disk may hang.
std::shared_ptr<const Revoked> add_to_seen(RevocationList list);
// There is no list at `file`. Null: none was ever seen. Else what was seen, and a warning.
std::shared_ptr<const Revoked> seen_without_list(const std::string& authority, const std::string& file);

// Tests write the file their own way. Empty: as ever.
using KeptWriter = std::function<Status(const std::string& file, ByteSpan bytes)>;
void set_kept_writer_for_testing(KeptWriter other);

}  // namespace tidemark::net
