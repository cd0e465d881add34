// What the shared node keeps in its key-value store, and how it is written.
//
// | table  | key                                   | value                                              |
// | ------ | ------------------------------------- | -------------------------------------------------- |
// | meta   | text                                  | "boot", "next_inode", "event": u64; others: below |
// | nodes  | u64 inode                             | u8 version 1, text name, Attr (shared/wire)        |
// | images | uuid                                  | u8 version 2, ImageRecord (below); 1 ends before `fenced` |
// | copies | uuid, text host                       | empty: the host has been given its map             |
// | behind | uuid, text host, 0, u32 region        | u64 cut of the last mark                           |
// | hosts  | text host, 0, u64 incarnation         | uuid nonce, uuid journal generation                |
// | marks  | u64 event number                      | Mark (shared/wire): not yet known to be recorded   |
//
// "boots" is u32 count, then u64 boot and uuid nonce of each: the newest 256 runs, by number, the present one last.
// "brick_runs" as in shared/image/FORMAT.md, absent before the first start that wrote it.
// "incarnation_floor" (u64, absent: 0): what this catalogue does not know of hosts' runs was not above.
// "made ", text host, 0, u32 number modulo 1024 is u64 number, u64 inode: what a create of the host's present mount,
// asked under that number, has made. None of a host that began anew, or of an older version.
// "rebuilding", where it is there, is an operator's order (shared/state/FORMAT.md, `rebuild`).
// "identity" is u16 version 2, uuid cluster, uuid storage group, text node, uuid store; 1 ends before
// `store`. Of a host's runs the newest counts; it takes the older ones' place.
// "loss_id" (u64, absent before the first start that wrote it) is that of the copies when the records'
// `outdated` was last brought up to it.
// The byte of `outdated` has bit 0 `outdated`, bit 1 `cut`, bit 2 `in_doubt`; a version that does not know bit 1 takes
// it for `outdated`, one that knows 1 and not 2 forgets that. Bit 3: the parent of the tenure that counts as taken was
// flushed (given back unshipped); a version that does not know it takes that one for taken by force.
//
// Keys are big-endian, values little-endian. Valid if and only if every value decodes to its last byte,
// every node but the root has its place in a directory, and no number is above its counter. Anything
// else stops the start with kCorruption naming table and key.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/fence/tenure.h"
#include "shared/image/store.h"
#include "shared/kv/store.h"
#include "shared/node/behind.h"
#include "shared/node/names.h"
#include "shared/state/identity.h"
#include "shared/wire/messages.h"

namespace tidemark::node {

enum Tables : kv::Table { kMeta, kNodes, kImages, kCopies, kBehind, kHosts, kMarks };
kv::StoreOptions catalogue_options();

struct ImageRecord {
  InodeNumber inode;
  uint8_t has_copy = 0;              // blocks exist here: a missing copy is then an error, never made anew
  uint8_t nameless = 0;              // unlinked or replaced; kept for those that have it open
  CoordinatorSequence reserved;      // no number up to it is given again after a crash
  uint64_t region_bytes = 0;         // of the behind-maps
  fence::State tenure;               // without its waiters
  uint8_t outdated = 0;              // the holder may have acknowledged writes which this copy lacks
  // An object of the copy was found shorter than it must be, or it was given up (`mirror = none`). Whatever is there
  // since, it counts only once all of it was compared with its holder's copy, or by an operator's word.
  uint8_t cut = 0;
  // A sync failed while this copy had writes of a holder that none had covered: they may be on no disk, though they are
  // read. The holder writes them again; once the image was taken from it this node does, before the next tenure.
  uint8_t in_doubt = 0;
  Generation generation;             // of the copies' condition in this epoch: what the witness is asked under
  template <class A> void fields(A& a) {
    a(inode, has_copy, nameless, reserved, region_bytes, tenure.epoch, tenure.holder, tenure.last_holder);
    uint8_t written = tenure.written, clean = tenure.parent.taken ? wire::kTaken : uint8_t{tenure.parent.clean};
    uint8_t flushed = tenure.parent.taken && tenure.parent.clean;   // of one given back unshipped
    a(written, tenure.parent.epoch, tenure.parent.source, tenure.parent.last, clean);
    tenure.written = written != 0;
    tenure.parent.taken = clean == wire::kTaken;
    tenure.parent.clean = clean != 0 && !tenure.parent.taken;
    if (version < 2) return;
    std::vector<std::pair<std::string, Epoch>> fenced(tenure.fenced.begin(), tenure.fenced.end());
    uint8_t lacks = static_cast<uint8_t>(outdated | cut << 1 | in_doubt << 2 | flushed << 3);
    a(fenced, lacks, generation);
    outdated = lacks & 1;
    cut = lacks >> 1 & 1;
    in_doubt = lacks >> 2 & 1;
    if (tenure.parent.taken) tenure.parent.clean = (lacks >> 3 & 1) != 0;
    tenure.fenced = {fenced.begin(), fenced.end()};
  }
  uint8_t version = 2;               // of the bytes that it is read from
};

struct HostRun {
  Incarnation incarnation;
  Uuid nonce;
  Uuid journal_generation;
};

// What a numbered create has made: asked again, that is its answer.
struct Made { uint64_t number = 0; InodeNumber inode; };
constexpr uint32_t kMadeMax = 1024;   // kept of a host

struct Catalogue {
  // Durable state as it was read at start.
  explicit Catalogue(WallTime now) : names(now) {}
  Incarnation boot;                                            // of this run
  std::map<Incarnation, Uuid> boots;                           // the newest, this one too, with their nonces
  Incarnation incarnation_floor;
  NameSpace names;
  std::map<ImageId, ImageRecord> images;
  std::map<ImageId, std::map<std::string, BehindMap>> behind;
  std::map<std::string, HostRun> hosts;                        // the newest run of each
  std::map<std::string, std::map<uint32_t, Made>> made;        // by host, and by number modulo kMadeMax
  std::vector<wire::Mark> marks;                               // to be recorded again, by number
};

struct Identity {
  Uuid cluster;
  Uuid group;        // nil: not known yet
  std::string node;
  Uuid store;        // names this catalogue to hosts; nil: of an older version
};

// The order for a rebuild that is under way; no hosts: none is.
Result<state::RebuildOrder> read_rebuilding(kv::Store& store);
void put_rebuilding(kv::WriteBatch& batch, const state::RebuildOrder& order);
void put_boot(kv::WriteBatch& batch, Incarnation boot);
void put_incarnation_floor(kv::WriteBatch& batch, Incarnation floor);
// kNotFound: the store is new.
Result<Identity> read_identity(kv::Store& store);
void put_identity(kv::WriteBatch& batch, const Identity& identity);
Result<std::vector<image::KnownRun>> read_brick_runs(kv::Store& store);
void put_brick_runs(kv::WriteBatch& batch, const std::vector<image::KnownRun>& runs);
// Absent: not known.
Result<std::optional<LossId>> read_loss_id(kv::Store& store);
void put_loss_id(kv::WriteBatch& batch, LossId loss_id);
// Reads everything and makes this run's boot number, with its nonce, durable. Blocking: start only.
Result<std::unique_ptr<Catalogue>> open_catalogue(kv::Store& store, WallTime now, const Uuid& nonce);

void put_node(kv::WriteBatch& batch, const Node& node);
void erase_node(kv::WriteBatch& batch, InodeNumber inode);
void put_counters(kv::WriteBatch& batch, const NameSpace& names);
void put_image(kv::WriteBatch& batch, const ImageId& id, const ImageRecord& record);
void erase_image(kv::WriteBatch& batch, const ImageId& id);   // with its maps
void put_copy(kv::WriteBatch& batch, const ImageId& id, const std::string& host);
void put_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, uint32_t region, uint64_t cut);
void erase_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, uint32_t region);
void put_all_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, const BehindMap& map);
void put_host(kv::WriteBatch& batch, const std::string& host, const HostRun& run);
void put_made(kv::WriteBatch& batch, const std::string& host, const Made& made);
void erase_made(kv::WriteBatch& batch, const std::string& host);
void put_mark(kv::WriteBatch& batch, const wire::Mark& mark);
void erase_marks(kv::WriteBatch& batch, EventNumber up_to);

}  // namespace tidemark::node
