// What ImageCopy holds: its objects, and the operations in flight on them.
//
// Every operation is an Op from a free list. Its pieces, one object each, count down Op::pending; the
// last one hands the Op back and calls the caller's `done`, which may destroy the ImageCopy: nothing
// of this object is touched afterwards. Whether a brick hangs is seen by how long an Op takes; so one whose work grows
// with its length (copy_steps.cc) goes on in steps, each an Op.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "shared/base/limits.h"
#include "shared/image/group_state.h"
#include "shared/image/store.h"

namespace tidemark::image::detail {

inline constexpr uint64_t kGranule = limits::kOrderGranule;
inline uint64_t round_down(uint64_t v) { return v / kGranule * kGranule; }
inline uint64_t round_up(uint64_t v) { return round_down(v + kGranule - 1); }

// File::read or File::read_cached.
using ReadFn = void (io::File::*)(uint64_t, MutableByteSpan, io::IoMode, Callback<Status>);

class CopyState {
 public:
  CopyState(GroupState& group, ImageMetadata metadata);
  ~CopyState();
  CopyState(const CopyState&) = delete;

  // Opens all objects and brings them to the size that the metadata says.
  Status open_objects(bool direct);

  void read(uint64_t offset, MutableByteSpan out, io::IoMode mode, ReadFn how, Callback<Status> done);
  void write(uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Status> done);
  void zero(uint64_t offset, uint64_t length, Callback<Status> done);
  void allocate(uint64_t offset, uint64_t length, Callback<Status> done);
  void sync(io::IoMode mode, Callback<Status> done);
  void resize(uint64_t new_size, Generation generation, Callback<Status> done);
  Result<Extent> next_data(uint64_t offset);
  // Exact while nothing of the group is under way. Else what was found last, by a sync, say, and all written since: a
  // brick that hangs must not keep who asks.
  Result<uint64_t> allocated_bytes();

  const ImageMetadata& metadata() const { return metadata_; }
  bool idle() const { return ops_in_flight_ == 0; }
  bool size_in_doubt() const { return side_in_doubt_ && !removed_; }
  bool overdue() const { return overdue_; }
  bool look_for_overdue(uint32_t tick, uint32_t allowed);
  void mark_removed() { removed_ = true; }

 private:
  struct Op;
  struct SyncOf {                  // a sync's piece: one object
    Op* op = nullptr;
    uint32_t stripe = 0;
    io::IoMode mode = io::IoMode::kInline;
    uint64_t number = 0;           // of this object's; once it has ended: of the last begun by then
    uint64_t failed = 0;           // Object::syncs_failed when it began
    uint64_t waits_for = 0;        // those under way when it ended, still to end
  };
  struct Object {
    std::unique_ptr<io::File> file;
    std::string path;
    bool dirty = true;             // something completed since the last sync began; unknown at open, so true
    uint64_t allocated = 0;        // when last looked at
    uint64_t written = 0;          // bytes written or allocated since, what was there before included
    uint32_t syncs_in_flight = 0;  // a sync asked for meanwhile must not overtake these
    uint64_t syncs_begun = 0, syncs_failed = 0;
    std::vector<SyncOf> syncs_ended;   // well, and not answered yet: others are under way
    uint64_t usable = UINT64_MAX;  // bytes: it was cut short there, while it was open
    uint64_t end = 0;              // bytes it must have: what is written there could hide that it has not
    uint64_t reach = 0;            // up to where it was written since it was last found whole with nothing under way
  };
  struct Op {
    Callback<Status> done;
    Status status;  // the first failure
    uint32_t pending = 0;
    uint32_t begun = 0;  // tick of the group
    bool in_steps = false;   // its steps are timed, each by itself
    Op* next_free = nullptr;
  };
  struct Bounce;      // one piece that goes through aligned memory
  struct Steps;       // one piece that is cleared, or reserved, step by step
  struct Resize;

  Op* take_op(Callback<Status> done);
  Bounce* take_bounce(const Piece& piece, io::IoMode mode, Op* op);
  void finish_piece(Op* op, Status status);
  void finish_write(Op* op, uint32_t stripe, Status status);
  Status check_range(uint64_t offset, uint64_t length) const;
  bool fits_direct(const Object& object, uint64_t offset, uint64_t length, const void* memory) const;
  void read_piece(const Piece& piece, MutableByteSpan out, io::IoMode mode, ReadFn how, Op* op);
  // Calls `then` with the outcome of a read of these bytes of an object.
  template <class Then>
  void check_read(uint32_t stripe, uint64_t offset, ByteSpan bytes, io::IoMode mode, Status status, Then then);
  void write_piece(const Piece& piece, ByteSpan data, io::IoMode mode, Op* op);
  void put_piece(const Piece& piece, ByteSpan data, io::IoMode mode, Op* op);
  // Calls `then` if its object is whole, else ends the piece.
  void if_whole(const Piece& piece, io::IoMode mode, Op* op, UniqueFunction<void()> then);
  bool reaches_end(const Piece& piece) const {
    return round_up(piece.object_offset + piece.length) >= objects_[piece.stripe].end;
  }
  void note_written(const Piece& piece) {
    uint64_t& reach = objects_[piece.stripe].reach;
    reach = std::max(reach, round_up(piece.object_offset + piece.length));
  }
  void in_steps(Extent range, bool reserves, Callback<Status> done);
  void next_steps(const std::shared_ptr<Steps>& steps);
  void begin_step(Steps& steps, const Piece& step, Op* op);
  void reserve_step(const Piece& step, Op* op);
  void note_ends();
  Status set_object_sizes(uint64_t image_size);
  void synced(const SyncOf& sync, Status status);
  void answer_sync(const SyncOf& sync, Status status);
  void look_for_damage();
  Status damaged(uint32_t stripe);
  bool beyond_use(const Piece& piece) const {
    return piece.object_offset + piece.length > objects_[piece.stripe].usable;
  }
  Status save(uint64_t size, Generation generation);
  Status put_back();
  void shrink(uint64_t new_size, Generation generation, Op* op);
  void grow(uint64_t new_size, Generation generation, Op* op);
  void finish_grow(uint64_t new_size, Generation generation, Op* op);

  GroupState& group_;
  ImageMetadata metadata_;
  std::vector<Object> objects_;  // by stripe
  bool removed_ = false;         // no side file any more
  bool side_in_doubt_ = false;   // it may have a size that was refused: put_back()
  io::BootTime put_back_at_{};   // not tried before; until then it is answered as it last was
  Status put_back_failed_;
  std::deque<Op> ops_;           // stable addresses
  Op* free_ops_ = nullptr;
  std::vector<std::unique_ptr<Bounce>> bounces_;  // all of them, in use or free
  Bounce* free_bounces_ = nullptr;
  size_t ops_in_flight_ = 0;
  size_t looks_in_flight_ = 0;   // at objects' sizes, after syncs
  uint64_t size_least_ = 0;      // that the image has had since the first of them began
  bool overdue_ = false;
};

}  // namespace tidemark::image::detail
