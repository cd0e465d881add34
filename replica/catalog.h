// The small durable state that the replica keeps in memory as well: sources, streams, images,
// alarms' number, and what is held. Loaded at start from LMDB without replaying history; changed
// together with the write batch that makes it durable. Loop thread only.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "replica/order.h"
#include "replica/records.h"

namespace tidemark::replica {

struct HeldRecord {               // kHeld: key in order of acceptance
  BatchFacts facts;
  template <class A> void fields(A& a) {
    a(facts);
    if (!full) return;
    for (SliceFacts& slice : facts.slices) {
      uint8_t whole = slice.whole;
      a(slice.last, whole);
      slice.whole = whole != 0;
    }
    a(facts.taken);
  }
  bool full = true;               // false: as written before tenures could be taken by force
};

// The batch that is being applied in steps. It takes this point: nothing else is applied before it, a stop in between
// included. What was decided of it with that is kept.
struct ApplyingRecord {           // kMeta: key "applying"
  PointId point;
  std::string source;
  Uuid generation;
  BatchNumber number;
  std::vector<Wait> given_up, gaps;
  template <class A> void fields(A& a) { a(point, source, generation, number, given_up, gaps); }
};

// What else was decided of it. Apart, so that a program which does not know of it still goes on with the batch.
struct DecidedRecord {            // kMeta: key "decided"
  PointId point;                  // another than the batch's: of an earlier one, nothing of it counts
  std::vector<ImageId> branched;
  std::vector<Epoch> newer;
  std::vector<Unlike> unlike;
  std::vector<Overtaken> overtaken;
  template <class A> void fields(A& a) { a(point, branched, newer, unlike, overtaken); }
};

inline constexpr size_t kCutOffNamed = 16;   // images, where they are listed for many points or for the status

class Catalog {
 public:
  struct Image {
    ImageIndex index;
    bool created = false;
    bool removed = false;         // it lost its name
    bool has_version = false;
    ImageVersion newest;
  };
  using StreamId = std::pair<std::string, Uuid>;

  // Reads the store, initializing a new one (`new_store` names it). kPermission if it is another cluster's.
  static Result<Catalog> load(kv::Store& store, const Uuid& cluster, const Uuid& new_store);

  // The images that the pieces of the resync which this batch ends say are whole.
  static Result<std::vector<ImageId>> whole_of_pieces(kv::Snapshot& snapshot, const BatchFacts& end);
  static Bytes piece_value(const BatchFacts& piece);

  const SourceRecord* source(const std::string& name) const;
  const StreamRecord* stream(const std::string& name, const Uuid& generation) const;
  const Image* image(const ImageId& id) const;
  // The image's entry, made with the next index if it is new.
  Image& add_image(const ImageId& id, kv::WriteBatch& out);
  void mark_created(const ImageId& id, kv::WriteBatch& out);

  void put_meta(kv::WriteBatch& out) const;
  void put_source(const std::string& name, const SourceRecord& record, kv::WriteBatch& out);
  void put_stream(const StreamId& id, const StreamRecord& record, kv::WriteBatch& out);
  void hold(const BatchFacts& facts, WallTime since, kv::WriteBatch& out);
  void unhold(const BatchFacts& facts, kv::WriteBatch& out);
  static Result<bool> ends_resync(kv::Snapshot& snapshot, const BatchFacts& facts);
  void begin_applying(const ApplyAction& action, kv::WriteBatch& out);
  void end_applying(kv::WriteBatch& out);
  void put_taken(const Taken& taken, kv::WriteBatch& out);
  void put_overtaken(const Overtaken& overtaken, kv::WriteBatch& out);
  // A host's new journal, whose first batch to come is of `first`: what the one before it had and did not send is lost.
  void put_lost(const std::string& source, Incarnation first, kv::WriteBatch& out);
  // False: known already.
  bool put_cut_off(const CutOff& cut, PointId from, kv::WriteBatch& out);
  void end_cut_off(const ImageId& image, PointId until, kv::WriteBatch& out);
  // Also where its cut-off is not known yet: the batch that tells of it may be held, or on its way.
  void note_removed(const ImageId& image, kv::WriteBatch& out);
  // When a held batch was accepted. 0: unknown, or it is not held.
  WallTime held_since(const BatchFacts& facts) const;

  MetaRecord meta;
  std::map<std::string, SourceRecord> sources;
  std::map<StreamId, StreamRecord> streams;
  std::unordered_map<ImageId, Image> images;
  // Found at start to have one index: an earlier program gave it twice, and their blocks can no longer be told apart.
  std::vector<std::pair<ImageId, ImageId>> mixed;
  OrderState order;
  std::map<std::pair<ImageId, PointId>, CutOffRecord> cut_offs;
  std::optional<ApplyingRecord> applying;
  std::deque<ApplyAction> ready;  // of held batches: nothing stands in their way
  uint64_t alarms = 0;            // distinct ones on record

 private:
  static Result<Catalog> load_tables(kv::Snapshot& snapshot);
  static Status load_images(kv::Snapshot& snapshot, Catalog& out);
  static Status load_decided(kv::Snapshot& snapshot, Catalog& out);
  static Status load_lost(kv::Snapshot& snapshot, Catalog& out);
  std::map<std::pair<ImageId, PointId>, CutOffRecord>::iterator open_cut_off(const ImageId& image);
  static void put_image(const ImageId& id, const Image& image, kv::WriteBatch& out);
  static Status load_held(kv::Snapshot& snapshot, Catalog& out);
  struct Held { uint64_t key = 0; WallTime since; };
  std::map<std::pair<StreamId, BatchNumber>, Held> held_;
};

}  // namespace tidemark::replica
