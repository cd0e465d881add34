// Digests that a scrub keeps of blocks that both copies held alike: what later tells a rotten copy from a good one.
//
// They stand in the dirty-region log's store, and the transaction that marks a region dirty erases those of its blocks. No
// copy changes before that is durable, so a digest that is there is of what was written last, whatever happened since. They
// also go when the tenure does not follow upon this host's own (another host may have written), when a run in between did
// not keep them, and all of them when the log had been written blindly. A failed commit drops those of every image that it touched: losing them costs nothing but that
// the next scrub must find the copies equal again.
//
// Keyed by a secret that never leaves the two copies' daemons: guests choose their data. Loop thread only.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "journal/journal.h"
#include "shared/base/digest.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/io/env.h"
#include "shared/kv/store.h"

namespace tidemark::journal {

class KeptDigests {
 public:
  explicit KeptDigests(io::Env& env) : env_(env) {}

  Status load(kv::Snapshot& snapshot);
  // Those that the run before this one did not keep up (an older version's, say) are dropped. Once, after load().
  void begin_run(Incarnation incarnation);
  // The region is about to be written: its digests go with the mark's transaction.
  void marked(const ImageId& image, Extent region);
  void tenure(const ImageId& image, Epoch epoch);
  void forget(const ImageId& image);
  void forget_all();
  const DigestKey& key(const ImageId& image, Epoch epoch);
  // `block`: begins on kKeptBlockBytes. Refused where the caller has not shown that its regions are clean.
  void keep(const ImageId& image, Extent block, const std::vector<Digest128>& digests);
  // Of a block whose regions are clean. Nothing: none are kept, or for another length.
  std::optional<std::vector<Digest128>> find(kv::Snapshot& snapshot, const ImageId& image, Extent block) const;

  bool changed() const { return !batch_.empty(); }
  kv::WriteBatch take();                 // in order; what it touched is remembered until the next take
  void commit_failed();

 private:
  struct Known {
    Epoch epoch;
    Incarnation run;                     // that keeps them up
    DigestKey key;
  };
  void put_head(const ImageId& image, const Known& known);

  io::Env& env_;
  Incarnation run_;
  std::map<ImageId, Known> images_;      // those that have any
  kv::WriteBatch batch_;
  std::set<ImageId> touched_, taken_;
};

}  // namespace tidemark::journal
