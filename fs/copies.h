// What those beside the engine ask of it (verifier.h, scrubber.h, pace.h, branch_files.h): the images by name, a tenure
// while one is read, a place in the order of writes, blocks of either copy, repairs. The engine implements it
// (engine_copies.cc).
//
// Loop thread only. Ranges and pieces are in bytes. The engine outlives whoever uses this, and ends what was spawned
// before anything that it refers to goes. A block is looked at with its place held:
//
//   RangeLock::Hold hold;  hold.extent = range;  co_await copies.lock(image, hold);
//   ...                                          // nothing is written there meanwhile
//   image.order.release(hold);
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fs/name_cache.h"
#include "fs/range_lock.h"
#include "journal/journal.h"
#include "shared/base/digest.h"
#include "shared/base/task.h"
#include "shared/io/env.h"
#include "shared/io/file.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

struct Image;
class ReplicaClient;

class Copies {
 public:
  virtual ~Copies() = default;

  // ---- images
  // Those of these names (paths or UUIDs); of none: all that the shared node has.
  virtual Task<Status> images_named(std::vector<std::string> names, std::vector<ImageId>& out) = 0;
  // As its turn comes: it may have been removed since. Null then.
  virtual Image* still_there(const ImageId& id) = 0;
  // Takes the tenure where it is free; kBusy if another host keeps it.
  virtual Task<Status> hold_for_reading(Image& image) = 0;

  // ---- the order of writes
  virtual Task<void> lock(Image& image, RangeLock::Hold& hold) = 0;
  // Ends what `++image.active` began: meanwhile the tenure is not given back.
  virtual void deactivate(Image& image) = 0;

  // ---- blocks of the copies
  // A buffer is shared with the operation, which may outlast the caller's frame.
  virtual Task<Status> read_copy(Image& image, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer) = 0;
  virtual Task<Status> read_shared(Image& image, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer) = 0;
  // One digest for each `unit` bytes of the shared copy, as many as were answered.
  virtual Task<Result<wire::Hashes>> hash_shared(Image& image, Extent range, uint32_t unit, const DigestKey& key) = 0;
  // The same; kCorruption if there are not as many as there are units.
  Task<Result<std::vector<Digest128>>> shared_digests(Image& image, Extent range, uint32_t unit, const DigestKey& key);
  // Whether the shared copy has nothing there, or is not in use.
  virtual Task<Result<bool>> shared_is_hole(Image& image, Extent range) = 0;
  // Repairs, in the place that the caller holds. Not journaled: they only write what the good copy has.
  virtual Task<Status> copy_to_shared(Image& image, Extent piece, ByteSpan bytes) = 0;
  virtual Task<Status> copy_to_host(Image& image, Extent piece) = 0;   // a failed write sets image.own_failed
  // All finished writes are durable on both copies.
  virtual Task<Status> flush_both(Image& image) = 0;

  // ---- time
  virtual void spawn(Task<void> task) = 0;
  virtual Task<void> sleep(io::Duration delay) = 0;
  virtual bool stopping() const = 0;             // the daemon: what can wait is not begun
  virtual uint32_t in_flight() const = 0;        // guests' requests: they come first

  // ---- what else is known of them
  virtual io::Env& env() = 0;
  virtual journal::Journal& write_journal() = 0;
  virtual NameCache& names() = 0;
  virtual ReplicaClient* replica() = 0;          // null: none is configured
};

}  // namespace tidemark::fs
