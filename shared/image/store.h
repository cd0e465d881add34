// The image store: images' blocks on the bricks of one storage group. FORMAT.md says what is on disk.
//
// A StorageGroup is a named set of brick directories; an ImageCopy is one open image in it. Hosts and
// the shared node use the same code. Everything belongs to the loop thread of the Env; opening, naming,
// resizing and the side metadata block (they are off the hot path), data operations complete by callback,
// inline or later. Steady state reads and writes of an image on one brick do not allocate.
//
// Ordering is the caller's: operations in flight on one ImageCopy must not overlap when their ranges
// are widened to limits::kOrderGranule (4096), except read with read. Under that rule every offset,
// length and memory address works: what O_DIRECT cannot take goes through a bounce buffer, and a
// write's partial granule at either end is read, merged and written back.
//
// Not done here: mirroring, dirty and stale maps, access rights, order.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/image/layout.h"
#include "shared/io/env.h"
#include "shared/io/file.h"

namespace tidemark::image {

namespace detail {
class GroupState;
class CopyState;
}  // namespace detail

// What the side file of an image says. Durable; replaced atomically.
struct ImageMetadata {
  ImageId id;
  Layout layout;
  uint64_t size = 0;           // bytes; any number up to limits::kImageBytesMax
  Generation size_generation;  // grows with each resize; given by the caller
};

// One opening of a group for use, counted by the daemon's own durable state and written into each brick's marker.
// Number 0: none yet, or of an older version.
struct BrickRun {
  uint64_t number = 0;
  Uuid nonce;
  bool operator==(const BrickRun&) const = default;
};
// What a daemon's state says of a brick: the run whose marker it has, and one whose marker may have been written.
struct KnownRun {
  Uuid brick;
  BrickRun last, opening;
};
Bytes encode_runs(const std::vector<KnownRun>& runs);
Result<std::vector<KnownRun>> decode_runs(ByteSpan bytes);   // kCorruption

struct StorageGroupOptions {
  std::string name;                 // written into the markers; checked on open
  std::vector<std::string> bricks;  // directories, in the order of the configuration
  uint32_t stripe_unit = kStripeUnitDefault;
  uint32_t stripe_count = 1;  // for images created from now on; at most the number of bricks
  bool direct = true;         // O_DIRECT where the brick's file system takes it
  // The group that the daemon's own durable state knows, as group_id() gave it earlier. Nil only on a
  // daemon's first start: then bricks that are all empty are taken as new. Otherwise an empty brick is
  // one that was replaced or is not mounted: an error, never a fresh start.
  Uuid expected_group;
  // The group's bricks by index, as bricks() gave them earlier. Given, a brick that is missing or empty is absent
  // instead of an error: images on it cannot be opened, nor be made there; it is never taken as new.
  std::vector<Uuid> known_bricks;
  // As begin_run() gave them to be saved earlier. A brick whose marker is of another run was put back from an earlier
  // time: absent if known_bricks are given, else an error. One that is of a later run is an error: then the daemon's
  // state was put back. Bricks that are not listed are taken as they are. The remedies end the messages.
  std::vector<KnownRun> known_runs;
  std::string older_brick_remedy, older_state_remedy;
  // An operation on blocks that takes longer is overdue: on_overdue() says so. 0: none ever is.
  std::chrono::milliseconds io_deadline{0};
};

// Whether a sync failed between two loss ids of one group. What it was to make durable reads as it was written for as
// long as the machine has it in memory, and no later sync brings it to the disk: it must be written again. Where only a
// boot or a mount came between, what is read is on the disk, or old. An id of 0 is unknown: true.
bool sync_failed_between(LossId before, LossId now);

class ImageCopy;

class StorageGroup {
 public:
  // Opens the bricks; initializes them if all are empty and no group is expected. A brick that is
  // missing, empty in an existing group, of another group or listed twice: kInvalidArgument; a marker
  // that does not match its checksum: kCorruption. Messages name the directory and the remedy.
  // `env` must outlive the group.
  static Result<std::unique_ptr<StorageGroup>> open(io::Env& env, StorageGroupOptions options);
  ~StorageGroup();  // all copies must have been destroyed
  StorageGroup(const StorageGroup&) = delete;
  StorageGroup& operator=(const StorageGroup&) = delete;

  // Makes an empty (all holes) image, durable when it returns, and opens it. kAlreadyExists if the
  // group holds it. What an earlier, interrupted create or remove left under the id is swept away.
  Result<std::unique_ptr<ImageCopy>> create(ImageId id, uint64_t size, Generation size_generation = Generation(0));
  // kNotFound if the group does not hold it, kBusy if it is open already (one ImageCopy an image), kIoError if a brick
  // that it lies on is absent.
  Result<std::unique_ptr<ImageCopy>> open_image(ImageId id);
  // Durable when it returns. An open copy goes on working on the nameless objects until it is destroyed.
  // kNotFound if the group does not hold it.
  Status remove(ImageId id);
  bool contains(ImageId id);
  // What open_image() would answer (but kBusy), without opening: side file and objects are there, none is cut short.
  // `found`: what the side file says, whatever is the matter with the objects.
  Status look_at(ImageId id, ImageMetadata* found = nullptr);

  struct Catalogue {
    std::vector<ImageMetadata> images;  // by id
    std::vector<Status> damaged;        // one for each side file that could not be read; each names its file
  };
  // Rebuilt from the side files on the bricks. Walks directories: start-up and repair only.
  Result<Catalogue> list();
  // Removes objects that no side file names (left by an interrupted create or remove); tells how many.
  Result<uint64_t> sweep_orphans();

  // Of all bricks together; file systems that hold several bricks count once.
  Result<io::FileSystem::Space> space();

  struct BrickState {
    std::string directory;
    Uuid id;
    Status status;   // why it is absent; OK: it is there
  };
  std::vector<BrickState> bricks() const;   // by index
  // Begins a run, before anything is written to a block: `save` makes durable what it is given, before and after the
  // markers are written. A brick whose marker cannot be written goes on with what it has. An error of `save` ends it.
  // The first one after an upgrade from a version that knew no runs leaves the markers as that version reads them.
  Status begin_run(UniqueFunction<Status(const std::vector<KnownRun>&)> save);
  std::vector<KnownRun> runs() const;       // to be saved when a brick was replaced
  // Looks at the bricks' markers again: one that vanished or was replaced is absent from now on, one that came back is
  // there, with the marker that it has. kIoError while the group is stuck().
  Status look_at_bricks();
  // Takes the empty directory of an absent brick as a new brick in its place. Blocks that lay on the old one are gone:
  // no image must be taken as whole that lay there. kInvalidArgument says what is wrong with the directory.
  Status replace_brick(const std::string& directory);
  // `fn(image)` runs now and then, off any operation's stack, while an operation of that image's copy is overdue. The
  // operation itself goes on: its buffers are in use until its own callback runs, whenever that is, and until then the
  // copy is not idle() and must not be opened anew, since the operation may still change blocks.
  void on_overdue(UniqueFunction<void(ImageId)> fn);
  // `fn(image, why)` runs, off any operation's stack, after an operation of that image's copy met a data object that is
  // shorter than it must be: something cut it off while it was open. A read that meets its end says so, and a sync.
  // From then on the copy is not synced any more, nor anything beyond the cut read or written (kCorruption: a write
  // would make a hole of what is missing); open_image() will refuse it.
  void on_damaged(UniqueFunction<void(ImageId, Status)> fn);
  // `fn(image)` runs whenever a failed sync of that image's copy, whoever asked for it, has made loss_id() another one,
  // before anything else can happen: on the stack of that sync, whose `done` may be far off. It must not begin anything
  // on a copy, nor close one.
  void on_failed_sync(UniqueFunction<void(ImageId)> fn);
  // An operation is overdue. What blocks (names, sizes, side files, markers) is refused meanwhile: kIoError.
  bool stuck() const;

  const std::string& name() const;
  Uuid group_id() const;
  // Names the span in which this group cannot have lost unsynced writes: a hash of the boot id and the
  // bricks' mount identities, and the durable failed-sync counter. Never 0.
  LossId loss_id() const;
  // Makes loss_id() another one at once, and durably so. ImageCopy::sync calls it, for its image, before it reports a
  // failure. An error: no brick could record it, so a restart would not know; the group must then not
  // count as in sync until an operator has looked (lost() is true).
  Status note_failed_sync(ImageId image);
  bool lost() const;

 private:
  explicit StorageGroup(std::unique_ptr<detail::GroupState> state);
  std::unique_ptr<detail::GroupState> state_;
};

class ImageCopy {
 public:
  // No operation may be in flight (a programmer error, as with io::File), nor may this run inside the
  // `done` of one: post it.
  ~ImageCopy();
  ImageCopy(const ImageCopy&) = delete;
  ImageCopy& operator=(const ImageCopy&) = delete;

  ImageId id() const;
  uint64_t size() const;
  Generation size_generation() const;
  const ImageMetadata& metadata() const;

  // Ranges of the following must lie within [0, size()): kInvalidArgument otherwise. Spans must stay
  // valid until `done` ran. Holes, and what was never written, read as zeros. An empty range is OK. kCorruption:
  // on_damaged() says why.
  void read(uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Status> done);
  // For a guest: io::File::read_cached. Who compares, repairs or copies asks the bricks.
  void read_cached(uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Status> done);
  void write(uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Status> done);
  // The range reads as zeros afterwards; its storage is freed where the file system can.
  void zero(uint64_t offset, uint64_t length, Callback<Status> done);
  // As zero(): what is discarded reads as zeros on every copy alike.
  void discard(uint64_t offset, uint64_t length, Callback<Status> done) { zero(offset, length, std::move(done)); }
  // Reserves storage; contents stay. kOutOfSpace if there is none.
  void allocate(uint64_t offset, uint64_t length, Callback<Status> done);

  // Makes every operation that completed before the call durable, over all objects of the image. On an
  // error the group's loss id has changed before `done` runs; never simply retry.
  void sync(io::IoMode mode, Callback<Status> done);

  // Changes the size, durably, when `done` ran with OK. What a grow adds reads as zeros. No operation on
  // the range beyond the smaller of both sizes may be in flight. kInvalidArgument if `generation` is not
  // greater than size_generation() or the size is over the limit. Blocks. After an error size() is the
  // one that an open after a crash would find, or that of the last success if that is unknown.
  void resize(uint64_t new_size, Generation generation, Callback<Status> done);

  // The first extent with allocated storage at or after `offset` (its part from there on, possibly
  // only a first part of it), or length 0 at size() if none. Extents come in 4096-byte granules, the
  // last clipped to size(). Blocks briefly.
  Result<Extent> next_data(uint64_t offset);
  Result<uint64_t> allocated_bytes();

  bool idle() const;  // no operation in flight
  // A resize that was refused may have left its size for the next open: kept open, the copy puts the present one back.
  bool size_in_doubt() const;
  bool overdue() const;  // one takes longer than StorageGroupOptions::io_deadline

 private:
  friend class detail::GroupState;
  explicit ImageCopy(std::unique_ptr<detail::CopyState> state);
  std::unique_ptr<detail::CopyState> state_;
};

}  // namespace tidemark::image
