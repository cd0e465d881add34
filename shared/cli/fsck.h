// `tidemark fsck`: what is damaged in state directories and bricks of a daemon that does not run, and what can safely be mended.
//
// Looked at: whose the state is and whether all of it is there, as the daemon does at its start (state/identity.h: one
// judgement for both); every store (kv/lmdb_check.h) and what the journal says of itself, segment files, the mark "outdated", brick
// markers, side files and the objects that they name. Blocks are not: a scrub compares these.
//
// Mended is only what loses no block, whichever way it was damaged. What is mended is moved aside first, to a name that ends in
// ".damaged-TIME", never removed:
//   host's drl/      its table `images` is whole         written anew; the mark "outdated": every region counts as dirty
//   host's journal/  `meta`, `images`, `batches` whole   the same; what was not shipped is sent again as regions, and the points
//                                                        that were not yet shipped are lost
//   host's names/    `flag` and `meta` whole             written anew; names come from the shared node
//   a side file on a host's brick                        the copy is filled anew from the shared node; only if neither the
//                                                        dirty-region log nor a flag (mirror = none) says that it may lack any
// The rest says what to do. A repair that was cut off, wherever, is finished by the next one. Blocking; offline.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shared/base/status.h"
#include "shared/io/env.h"
#include "shared/state/identity.h"

namespace tidemark::cli {

struct FsckTarget {
  std::string role;                      // "host", "shared", "replica", "witness"; empty: told by what is there
  std::string state;                     // may be empty
  std::vector<std::string> bricks;
  std::optional<state::Spec> spec;       // of a node that has a configuration; its cluster may be nil: not known
  std::string group;                     // of the bricks, as configured; empty: not known
};
struct FsckFinding {
  std::string path, what, remedy;
  bool fixed = false;
};
struct FsckReport {
  std::vector<FsckFinding> findings;
  std::vector<std::string> notes;
  uint64_t stores = 0, values = 0, segments = 0, side_files = 0;
};

// Whether the path is a brick, a state directory, or neither; an error if the user may not look.
enum class FsckKind { kNeither, kState, kBrick };
Result<FsckKind> fsck_kind(const std::string& directory);

// kBusy if a daemon uses any of it.
Result<FsckReport> fsck(io::Env& env, const FsckTarget& target, bool repair);

}  // namespace tidemark::cli
