// What outlives one run of tidemark-fs while the mount stands: open handles, tenures that are held, changes of names
// under way, what was agreed with the kernel. Plain memory of a fixed layout, which the holder (holder.h) keeps and a
// successor takes over. It never outlives the machine or the mount, and nothing in it decides what is on a disk.
//
//   | header | handles, 40 bytes each | tenures, 144 bytes each | name changes under way, 16 bytes each |
//   | terms of the witness, 16 bytes for each tenure | ends of images, 24 bytes each |
//   | images that lost writes, 24 bytes each |
//
// The last three are zeros in what an older program laid out; so is what a tenure says of asking first, and a handle of
// its being closed. One that takes this over sees a handle that is being closed as closed, and lets no flush fail.
//
// Valid if and only if magic and layout version agree; a program that knows another layout must not take over. A run
// may die between any two instructions: an entry counts from the store of its last word on (`state`, `held`,
// `request`, `end`, `lost`), which is written last and cleared first. One writer, one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::fs {

struct SavedHandle {
  uint32_t index = 0;
  InodeNumber inode;
  ImageId image;
  bool wrote = false;
  bool fenced = false;                   // the image was taken by force while it was open
};

// A tenure that a successor may go on with, without asking: this host's copy is whole, and the shared node confirmed
// the tenure in this mount's lifetime.
struct SavedTenure {
  ImageId image;
  InodeNumber inode;
  Epoch epoch;
  wire::TenureParent parent;
  LossId host_loss, shared_loss;
  bool mirror_none = false;
  Generation terms;                      // under which the witness may be asked; 0: none are known
  bool witnessed = false;                // it has recorded that this host may go on alone
  bool asks_first = false;               // it does not before that; an older program did not say, but with its terms
};

class Survivor {
 public:
  static constexpr uint32_t kHandlesMax = 65536;
  static constexpr uint32_t kTenuresMax = 4096;
  static constexpr uint32_t kChangesMax = 1024;
  static constexpr uint32_t kEndsMax = 1024;
  static constexpr uint32_t kLostMax = 1024;
  static constexpr size_t kAgreedBytesMax = 256;
  static constexpr size_t kBytes = 4u << 20;

  // `memory`: kBytes, zeroed when new. kUnsupported: it was laid out by a program that this one cannot follow.
  static Result<Survivor> attach(MutableByteSpan memory);

  // ---- the session with the kernel: FUSE_INIT's request and answer
  void keep_request(ByteSpan init);
  void keep_answer(ByteSpan init);
  ByteSpan request() const;              // empty: nothing was agreed yet
  ByteSpan answer() const;
  bool can_resend() const;               // the kernel hands requests without an answer out again
  void set_can_resend(bool can);
  uint32_t successors() const;           // runs after the first one
  void count_successor();

  // ---- handles; `request` names the open, 0: nothing does
  bool has_room(uint32_t index) const { return index < kHandlesMax; }
  void opened(const SavedHandle& handle, uint64_t request);
  void wrote(uint32_t index);
  void fenced(uint32_t index);
  void begin_close(uint32_t index);      // closed, its number is not free before the next
  void closed(uint32_t index);
  std::vector<SavedHandle> handles() const;
  std::vector<uint32_t> closing() const;   // of handles closed as the run died: their close may be asked for again
  // The handle that this open made before its answer was lost.
  std::optional<uint32_t> opened_by(uint64_t request, InodeNumber inode) const;

  // ---- tenures
  void hold(const SavedTenure& tenure);
  void let_go(const ImageId& image);
  std::vector<SavedTenure> tenures() const;

  // ---- changes of names under way: the request, and what stood at the name before it was asked for
  void begin_change(uint64_t request, InodeNumber before);
  void end_change(uint64_t request);
  std::optional<InodeNumber> change(uint64_t request) const;

  // ---- ends of open images as another host left them (Image::foreign_end); of more than kEndsMax some are not kept
  void keep_end(const ImageId& image, uint64_t end);
  void forget_end(const ImageId& image);
  std::optional<uint64_t> end_of(const ImageId& image) const;

  // ---- open images that lost acknowledged writes, as no flush has said yet; of more than kLostMax some are not kept
  void keep_lost(const ImageId& image, bool lost);
  bool lost(const ImageId& image) const;

 private:
  struct Layout;
  explicit Survivor(Layout* layout);
  Layout* layout_;
  uint32_t tenures_used_ = 0;            // no entry beyond is held
};

}  // namespace tidemark::fs
