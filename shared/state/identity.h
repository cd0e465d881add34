// Who a state directory belongs to, and which stores are its own. FORMAT.md says what is on disk.
//
// A missing or empty store must never be taken for a new one: it would be served as truth. So a state directory has an
// identity file that names each store by an id, and each store carries that id in itself. check_in() compares them
// before anything else opens a store. Blocking: start-up and offline tools only. Not done here: bricks that are
// missing in a group that exists (shared/image/brick_set.h), what is inside a store.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/io/env.h"

namespace tidemark::state {

// A store or folder of a state directory, by its path in it.
struct Part {
  std::string name;
  Uuid id;
  bool operator==(const Part&) const = default;
};

struct Identity {
  enum class Stage : uint32_t { kInitializing = 1, kReady = 2 };
  Stage stage = Stage::kInitializing;   // until it is ready, a missing part is made
  Uuid state;                           // this directory
  Uuid cluster;
  std::string role, node;
  Generation generation;                // grows with each change of this file but that of the stage
  bool after_reset = false;             // an operator's word that the state before it was lost
  std::vector<Part> parts;
  const Part* find(const std::string& name) const;
};

// What a part carries in itself.
struct Tag {
  Uuid part, state, cluster;
  std::string node, name;
};

Bytes encode_identity(const Identity& identity);
Result<Identity> decode_identity(ByteSpan bytes);   // kCorruption, kUnsupported
Bytes encode_tag(const Tag& tag);
Result<Tag> decode_tag(ByteSpan bytes);

struct PartSpec {
  enum class Kind : uint8_t { kStore, kFolder };
  std::string name;
  Kind kind = Kind::kStore;
  bool expendable = false;              // losing it is safe by its own design: a warning, and a new one
};

struct Spec {
  std::string directory;
  Uuid cluster;
  std::string role, node;
  std::vector<PartSpec> parts;
  std::vector<std::string> bricks;      // of this node; empty: it has none
  std::string config_file;              // for the commands that messages name
  bool had_before = false;              // a run before had a state here: none is a lost one, never a first start
};

// The parts that a role's daemon keeps.
std::vector<PartSpec> parts_of_host();
std::vector<PartSpec> parts_of_shared();
std::vector<PartSpec> parts_of_replica(bool witness);
std::vector<PartSpec> parts_of_witness();

struct Look {
  struct Found {
    PartSpec spec;
    std::string path;
    bool there = false;
    std::optional<Tag> tag;             // there and without: an older layout, or an emptied store
  };
  std::optional<Identity> identity;     // none: a first start, or an older layout
  std::vector<Found> parts;
  std::vector<std::string> marked_bricks;   // that carry a group's marker
};
// Reads only. kCorruption when the identity file or a tag cannot be read; the message says what to do.
Result<Look> look(io::Env& env, const Spec& spec);

// What check_in() will say of it: OK, or why the daemon refuses to start. Changes nothing.
Status judge(const Spec& spec, const Look& found);

// Refuses (kInvalidArgument) a directory of another node, and one where a part is missing, emptied or another's. On a
// first start (nothing is there, none was before, and no brick carries a marker) makes the parts; adopts an older layout
// once, when all of its parts are there. The stores are closed again when it returns.
Result<Identity> check_in(io::Env& env, const Spec& spec);

// Sets aside, within state directory and bricks, what is left of a node's state: the next start is a first one.
// Nothing is deleted. Gives the folders that hold it now. The daemon must not be running.
struct SetAside {
  std::vector<std::string> from, to;
};
Result<SetAside> set_aside(io::Env& env, const Spec& spec, bool with_bricks, bool dry_run);

// An operator's order to a shared node that lost its catalogue.
struct RebuildOrder {
  std::vector<std::string> hosts;       // that are to report; empty: no order stands
  std::map<ImageId, Epoch> epochs;      // the newest that the replica or the witness has of each image
  Incarnation incarnation;              // the newest that it has of any host
};
Bytes encode_rebuild_order(const RebuildOrder& order);
Result<RebuildOrder> decode_rebuild_order(ByteSpan bytes);
Result<RebuildOrder> read_rebuild_order(io::Env& env, const std::string& directory);
Status write_rebuild_order(io::Env& env, const std::string& directory, const RebuildOrder& order);
Status remove_rebuild_order(io::Env& env, const std::string& directory);

}  // namespace tidemark::state
