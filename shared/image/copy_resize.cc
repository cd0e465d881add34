// Changes of an image's size on its objects. FORMAT.md has the order of durability: what an interrupted one leaves is
// finished by the next open.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shared/image/copy_state.h"

namespace tidemark::image::detail {
namespace {
constexpr std::chrono::seconds kPutBackInterval{1};
}  // namespace

Status CopyState::set_object_sizes(uint64_t image_size) {
  ImageMetadata least = metadata_;   // what is there of it at any rate
  least.size = std::min(image_size, metadata_.size);
  for (uint32_t i = 0; i < objects_.size(); ++i) {
    uint64_t wanted = round_up(metadata_.layout.object_bytes(i, image_size));
    auto stat = objects_[i].file->stat();
    TM_RETURN_IF_ERROR(check_object(least, i, objects_[i].path, stat));
    if (stat->size == wanted) continue;
    objects_[i].dirty = true;
    TM_RETURN_IF_ERROR(objects_[i].file->truncate(wanted).with_context(objects_[i].path));
  }
  return {};
}

Status CopyState::save(uint64_t size, Generation generation) {
  ImageMetadata next = metadata_;
  next.size = size;
  next.size_generation = generation;
  if (!removed_) {
    TM_RETURN_IF_ERROR(group_.refuse_if_stuck());
    const Status before = group_.read_metadata(metadata_.id).status();
    // What could not be looked at afterwards would be in doubt without need.
    if (before.sys_errno() == EMFILE || before.sys_errno() == ENFILE) return before;
    Status saved = group_.save_metadata(next);
    if (!saved) {   // it may stand there all the same, though its name is not durable
      auto there = group_.read_metadata(metadata_.id);
      const bool is_none = there.status().code() == Code::kNotFound && before.code() == Code::kNotFound;
      const bool untouched = there ? there->size_generation == metadata_.size_generation : is_none;
      side_in_doubt_ = side_in_doubt_ || !untouched;
      if (side_in_doubt_ && group_.save_metadata(metadata_)) side_in_doubt_ = false;
      put_back_at_ = {};
      return saved;   // who asked hears of the first failure
    }
    side_in_doubt_ = false;
  }
  metadata_.size = size;
  size_least_ = std::min(size_least_, size);
  metadata_.size_generation = generation;
  note_ends();
  return {};
}

// The next open would cut the objects by a size that was refused, or find them shorter than that: nothing that is
// written from here on may count before the side file has the present one again. Asked for by each request, and tried
// once in a while: it blocks.
Status CopyState::put_back() {
  if (!side_in_doubt_ || removed_) return {};
  if (group_.now() < put_back_at_) return put_back_failed_;
  put_back_failed_ = group_.save_metadata(metadata_).with_context("its size, which a resize that failed has changed");
  put_back_at_ = group_.now() + kPutBackInterval;
  side_in_doubt_ = !put_back_failed_;
  return put_back_failed_;
}

void CopyState::resize(uint64_t new_size, Generation generation, Callback<Status> done) {
  const std::string image = "image " + metadata_.id.to_string();
  if (new_size > limits::kImageBytesMax) {
    return done(
        Status(Code::kInvalidArgument, image + ": size " + std::to_string(new_size) + " is over the limit of 64 TiB"));
  }
  if (generation <= metadata_.size_generation) {
    return done(Status(Code::kInvalidArgument, image + ": size generation " + std::to_string(generation.value) +
                                                   " is not newer than " +
                                                   std::to_string(metadata_.size_generation.value)));
  }
  if (Status s = group_.refuse_if_stuck(); !s) return done(std::move(s));
  if (Status s = put_back(); !s) return done(std::move(s));   // a grow cuts the objects first
  Op* op = take_op(std::move(done));
  if (new_size <= metadata_.size) {
    shrink(new_size, generation, op);
  } else {
    grow(new_size, generation, op);
  }
}

void CopyState::shrink(uint64_t new_size, Generation generation, Op* op) {
  // A power cut may undo the cut of the objects: an open does it again, and a grow syncs them before it counts.
  Status status = save(new_size, generation);
  if (status) status = set_object_sizes(new_size);
  finish_piece(op, std::move(status));
}

// What follows the old end in its last granule is undefined (an earlier, larger size may have left it).
struct CopyState::Resize {
  io::AlignedBuffer granule{kGranule};
};

void CopyState::grow(uint64_t new_size, Generation generation, Op* op) {
  uint64_t old_size = metadata_.size;
  // A shrink that failed half-way may have left objects too long: what it was to cut off must not come back.
  if (Status s = set_object_sizes(old_size); !s) return finish_piece(op, std::move(s));
  if (old_size % kGranule == 0) return finish_grow(new_size, generation, op);
  Piece last = metadata_.layout.first_piece({old_size - 1, 1});
  uint64_t start = round_down(last.object_offset);
  uint64_t kept = last.object_offset + 1 - start;
  auto owned = std::make_unique<Resize>();
  MutableByteSpan granule = owned->granule.span();
  objects_[last.stripe].file->read(start, granule, io::IoMode::kInline,
                                   [=, this, r = std::move(owned)](Status s) mutable {
                                     if (!s) return finish_piece(op, std::move(s));
                                     auto stale = granule.subspan(kept);
                                     if (std::all_of(stale.begin(), stale.end(), [](uint8_t b) { return b == 0; })) {
                                       return finish_grow(new_size, generation, op);
                                     }
                                     std::memset(stale.data(), 0, stale.size());
                                     objects_[last.stripe].file->write(start, granule, io::IoMode::kInline,
                                                                       [=, this, keep = std::move(r)](Status written) {
                                                                         objects_[last.stripe].dirty = true;
                                                                         if (!written)
                                                                           return finish_piece(op, std::move(written));
                                                                         finish_grow(new_size, generation, op);
                                                                       });
                                   });
}

void CopyState::finish_grow(uint64_t new_size, Generation generation, Op* op) {
  if (Status status = set_object_sizes(new_size); !status) return finish_piece(op, std::move(status));
  sync(io::IoMode::kInline, [=, this](Status s) {
    if (s) s = save(new_size, generation);
    finish_piece(op, std::move(s));
  });
}

}  // namespace tidemark::image::detail
