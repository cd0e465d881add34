#include "shared/image/copy_state.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shared/base/limits.h"

namespace tidemark::image {
namespace detail {
namespace {

// Whether the bytes of an object, from `offset` on, may hold a hole: a granule of them ends in zeros.
bool may_hold_hole(ByteSpan bytes, uint64_t offset) {
  for (uint64_t at = 0; at < bytes.size();) {
    const uint64_t part = std::min<uint64_t>(bytes.size() - at, kGranule - (offset + at) % kGranule);
    const uint64_t tail = std::min<uint64_t>(part, sizeof(uint64_t));
    at += part;
    const ByteSpan last = bytes.subspan(at - tail, tail);
    if (std::all_of(last.begin(), last.end(), [](uint8_t b) { return b == 0; })) return true;
  }
  return false;
}

}  // namespace

// A piece whose offset, length or memory O_DIRECT does not take. A read covers it with whole granules;
// a write first reads the granules that it only partly overwrites.
struct CopyState::Bounce {
  CopyState* copy = nullptr;
  Op* op = nullptr;
  Piece piece;
  io::IoMode mode = io::IoMode::kInline;
  ReadFn how = nullptr;           // read
  io::AlignedBuffer buffer;
  uint8_t* out = nullptr;         // read: where to
  const uint8_t* data = nullptr;  // write: where from
  Status status;
  uint32_t edges_pending = 0;
  Bounce* next_free = nullptr;

  uint64_t start() const { return round_down(piece.object_offset); }
  uint64_t end() const { return round_up(piece.object_offset + piece.length); }
  uint64_t head() const { return piece.object_offset - start(); }
  Object& object() const { return copy->objects_[piece.stripe]; }
  MutableByteSpan cover() { return buffer.span().first(end() - start()); }

  void begin_read() {
    (object().file.get()->*how)(start(), cover(), mode, [this](Status read) {
      copy->check_read(piece.stripe, start(), cover(), mode, std::move(read), [this](Status sure) {
        if (sure) std::memcpy(out, buffer.data() + head(), piece.length);
        finish(std::move(sure));
      });
    });
  }

  void begin_write() {
    uint64_t last_granule = end() - kGranule;
    bool head_partial = head() != 0 || piece.length < kGranule;
    bool tail_partial = (piece.object_offset + piece.length) % kGranule != 0;
    edges_pending = 1;
    if (head_partial) read_edge(start());
    if (tail_partial && !(head_partial && last_granule == start())) read_edge(last_granule);
    finish_edge({});
  }

  void read_edge(uint64_t granule) {
    ++edges_pending;
    const MutableByteSpan edge = buffer.span().subspan(granule - start(), kGranule);
    object().file->read(granule, edge, mode, [this, granule, edge](Status read) {
      copy->check_read(piece.stripe, granule, edge, mode, std::move(read),
                       [this](Status sure) { finish_edge(std::move(sure)); });
    });
  }

  void finish_edge(Status edge) {
    if (!edge && status) status = std::move(edge);
    if (--edges_pending != 0) return;
    if (!status) return finish(std::move(status));
    std::memcpy(buffer.data() + head(), data, piece.length);
    object().file->write(start(), cover(), mode, [this](Status written) {
      object().dirty = true;
      finish(std::move(written));
    });
  }

  void finish(Status result) {
    CopyState* owner = copy;
    Op* finished = op;
    owner->group_.bounce().give_back(std::move(buffer));
    status = {};
    next_free = owner->free_bounces_;
    owner->free_bounces_ = this;
    owner->finish_piece(finished, std::move(result));
  }
};

CopyState::CopyState(GroupState& group, ImageMetadata metadata) : group_(group), metadata_(std::move(metadata)) {}

// Operations in flight are a programmer error that the files themselves notice; only a process that the
// simulator has killed may go down with them.
CopyState::~CopyState() {
  if (!objects_.empty()) group_.forget(metadata_.id, this);
}

Status CopyState::open_objects(bool direct) {
  const Layout& layout = metadata_.layout;
  std::vector<Object> objects(layout.stripe_count());
  for (uint32_t i = 0; i < layout.stripe_count(); ++i) {
    TM_ASSIGN_OR_RETURN(std::string brick, group_.brick_of(metadata_, i));
    const std::string path = objects[i].path = object_path(brick, metadata_.id, layout.generation(), i);
    auto file = group_.files().open(path, {.direct = direct, .whole = true});
    auto found = file ? (*file)->stat() : Result<io::FileStat>(file.status());
    TM_RETURN_IF_ERROR(check_object(metadata_, i, path, found));
    objects[i].allocated = found->allocated;
    objects[i].file = std::move(file).value();
  }
  objects_ = std::move(objects);
  note_ends();
  Status sized = set_object_sizes(metadata_.size);
  if (!sized) objects_.clear();
  return sized;
}

void CopyState::note_ends() {
  for (uint32_t i = 0; i < objects_.size(); ++i)
    objects_[i].end = round_up(metadata_.layout.object_bytes(i, metadata_.size));
}

// After an operation met the end of an object: which are too short. One that was written up to its present end, or
// beyond, may have been cut anywhere before that, and have holes from there on: none of it is certain.
void CopyState::look_for_damage() {
  for (uint32_t i = 0; i < objects_.size(); ++i) {
    auto stat = objects_[i].file->stat();
    if (Status s = check_object(metadata_, i, objects_[i].path, stat); s || !stat) continue;
    const uint64_t sure = objects_[i].reach < stat->size ? round_down(stat->size) : 0;
    objects_[i].usable = std::min(objects_[i].usable, sure);
    group_.note_damaged(metadata_.id, damaged(i));
  }
}

Status CopyState::damaged(uint32_t stripe) {
  const Object& object = objects_[stripe];
  Status found = check_object(metadata_, stripe, object.path, object.file->stat());
  if (!found) return found;
  const std::string where = object.usable != 0 ? " was cut short at " + std::to_string(object.usable)
                                               : " was cut short, and written to since";
  return Status(Code::kCorruption, "image " + metadata_.id.to_string() + ": its object " + object.path + where);
}

CopyState::Op* CopyState::take_op(Callback<Status> done) {
  Op* op = free_ops_;
  if (op != nullptr) {
    free_ops_ = op->next_free;
  } else {
    op = &ops_.emplace_back();
  }
  op->done = std::move(done);
  op->pending = 1;  // held by whoever issues the pieces
  op->begun = group_.op_begun();
  op->in_steps = false;
  ++ops_in_flight_;
  return op;
}

void CopyState::finish_piece(Op* op, Status status) {
  if (!status) {
    if (status.code() == Code::kCorruption) look_for_damage();
    if (op->status) op->status = std::move(status);
  }
  if (--op->pending != 0) return;
  Callback<Status> done = std::move(op->done);
  Status result = std::exchange(op->status, Status());
  op->next_free = free_ops_;
  free_ops_ = op;
  --ops_in_flight_;
  group_.op_ended();
  done(std::move(result));
}

void CopyState::finish_write(Op* op, uint32_t stripe, Status status) {
  objects_[stripe].dirty = true;
  finish_piece(op, std::move(status));
}

bool CopyState::look_for_overdue(uint32_t tick, uint32_t allowed) {
  overdue_ = std::any_of(ops_.begin(), ops_.end(),
                         [&](const Op& op) { return op.pending != 0 && !op.in_steps && tick - op.begun > allowed; });
  return overdue_;
}

Status CopyState::check_range(uint64_t offset, uint64_t length) const {
  if (length <= metadata_.size && offset <= metadata_.size - length) return {};
  return Status(Code::kInvalidArgument, "image " + metadata_.id.to_string() + ": " + std::to_string(length) +
                                            " bytes at " + std::to_string(offset) + " are past its end at " +
                                            std::to_string(metadata_.size));
}

bool CopyState::fits_direct(const Object& object, uint64_t offset, uint64_t length, const void* memory) const {
  if (!object.file->is_direct()) return true;
  return ((offset | length | reinterpret_cast<uintptr_t>(memory)) & (io::File::kAlignment - 1)) == 0;
}

CopyState::Bounce* CopyState::take_bounce(const Piece& piece, io::IoMode mode, Op* op) {
  Bounce* bounce = free_bounces_;
  if (bounce != nullptr) {
    free_bounces_ = bounce->next_free;
  } else {
    bounce = bounces_.emplace_back(std::make_unique<Bounce>()).get();
  }
  bounce->copy = this;
  bounce->op = op;
  bounce->piece = piece;
  bounce->mode = mode;
  bounce->buffer = group_.bounce().take(bounce->end() - bounce->start());
  return bounce;
}

void CopyState::read_piece(const Piece& piece, MutableByteSpan out, io::IoMode mode, ReadFn how, Op* op) {
  ++op->pending;
  if (beyond_use(piece)) return finish_piece(op, damaged(piece.stripe));
  Object& object = objects_[piece.stripe];
  if (fits_direct(object, piece.object_offset, piece.length, out.data())) {
    auto done = [this, op, out, stripe = piece.stripe, offset = piece.object_offset, mode](Status s) {
      check_read(stripe, offset, out, mode, std::move(s),
                 [this, op](Status sure) { finish_piece(op, std::move(sure)); });
    };
    (object.file.get()->*how)(piece.object_offset, out, mode, std::move(done));
    return;
  }
  Bounce* bounce = take_bounce(piece, mode, op);
  bounce->how = how;
  bounce->out = out.data();
  bounce->begin_read();
}

// What an object was cut off of, and then written beyond, is a hole, and its length is still not what it must be: that
// was looked at before anything was written to its end. So zeros are believed once the length was asked for; nothing
// else costs that. Resizes may come between: the least size is what it must have.
template <class Then>
void CopyState::check_read(uint32_t stripe, uint64_t offset, ByteSpan bytes, io::IoMode mode, Status status,
                           Then then) {
  if (!status || !may_hold_hole(bytes, offset)) return then(std::move(status));
  if (looks_in_flight_++ == 0) size_least_ = metadata_.size;
  objects_[stripe].file->ask_stat(mode, [this, stripe, then = std::move(then)](Result<io::FileStat> found) mutable {
    --looks_in_flight_;
    ImageMetadata wanted = metadata_;
    wanted.size = size_least_;
    then(check_object(wanted, stripe, objects_[stripe].path, found));
  });
}

void CopyState::write_piece(const Piece& piece, ByteSpan data, io::IoMode mode, Op* op) {
  ++op->pending;
  if (beyond_use(piece)) return finish_piece(op, damaged(piece.stripe));   // it would make a hole of what is missing
  objects_[piece.stripe].written += piece.length;
  if (!reaches_end(piece)) return put_piece(piece, data, mode, op);
  if_whole(piece, mode, op, [this, piece, data, mode, op] { put_piece(piece, data, mode, op); });
}

// Looked at before anything is written to the end: afterwards nothing would tell that the object had been cut short.
void CopyState::if_whole(const Piece& piece, io::IoMode mode, Op* op, UniqueFunction<void()> then) {
  objects_[piece.stripe].file->ask_stat(
      mode, [this, piece, op, then = std::move(then)](Result<io::FileStat> found) mutable {
        if (!found) return finish_piece(op, found.status().with_context(objects_[piece.stripe].path));
        Status whole = check_object(metadata_, piece.stripe, objects_[piece.stripe].path, found);
        if (!whole) look_for_damage();   // the size may have changed since it was asked
        if (!whole && beyond_use(piece)) return finish_piece(op, std::move(whole));
        then();
      });
}

void CopyState::put_piece(const Piece& piece, ByteSpan data, io::IoMode mode, Op* op) {
  Object& object = objects_[piece.stripe];
  note_written(piece);
  if (fits_direct(object, piece.object_offset, piece.length, data.data())) {
    uint32_t stripe = piece.stripe;
    object.file->write(piece.object_offset, data, mode,
                       [this, op, stripe](Status s) { finish_write(op, stripe, std::move(s)); });
    return;
  }
  Bounce* bounce = take_bounce(piece, mode, op);
  bounce->data = data.data();
  bounce->begin_write();
}

void CopyState::read(uint64_t offset, MutableByteSpan out, io::IoMode mode, ReadFn how, Callback<Status> done) {
  if (Status s = check_range(offset, out.size()); !s) return done(std::move(s));
  Op* op = take_op(std::move(done));
  for (uint64_t at = 0; at < out.size();) {
    Piece piece = metadata_.layout.first_piece({offset + at, out.size() - at});
    read_piece(piece, out.subspan(at, piece.length), mode, how, op);
    at += piece.length;
  }
  finish_piece(op, {});
}

void CopyState::write(uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Status> done) {
  if (Status s = check_range(offset, data.size()); !s) return done(std::move(s));
  if (Status s = put_back(); !s) return done(std::move(s));
  Op* op = take_op(std::move(done));
  for (uint64_t at = 0; at < data.size();) {
    Piece piece = metadata_.layout.first_piece({offset + at, data.size() - at});
    write_piece(piece, data.subspan(at, piece.length), mode, op);
    at += piece.length;
  }
  finish_piece(op, {});
}

Result<Extent> CopyState::next_data(uint64_t offset) {
  TM_RETURN_IF_ERROR(group_.refuse_if_stuck());
  const Layout& layout = metadata_.layout;
  Extent best{metadata_.size, 0};
  if (offset >= metadata_.size) return best;
  for (uint32_t i = 0; i < objects_.size(); ++i) {
    uint64_t begin = layout.object_bytes(i, offset), object_end = layout.object_bytes(i, metadata_.size);
    if (begin >= object_end) continue;
    auto found = objects_[i].file->next_data(begin);
    if (!found) return found.status().with_context(objects_[i].path);
    const bool hole = found->length == 0 ? found->offset < object_end : found->offset > begin;
    if (hole) look_for_damage();
    if (object_end > objects_[i].usable) return damaged(i);
    if (found->length == 0) continue;
    uint64_t at = std::max(begin, round_down(found->offset));
    uint64_t end = std::min(object_end, round_up(found->end()));
    if (at >= end) continue;
    uint64_t image_at = layout.image_offset(i, at);
    if (image_at >= best.offset) continue;
    uint64_t unit = layout.stripe_unit();
    uint64_t length = objects_.size() == 1 ? end - at : std::min(end - at, unit - at % unit);
    best = {image_at, length};
  }
  return best;
}

Result<uint64_t> CopyState::allocated_bytes() {
  TM_RETURN_IF_ERROR(group_.refuse_if_stuck());
  const bool ask = group_.idle();
  uint64_t total = 0;
  for (Object& object : objects_) {
    if (ask) {
      auto stat = object.file->stat();
      if (!stat) return stat.status().with_context(object.path);
      object.allocated = stat->allocated;
      object.written = 0;
    }
    total += object.allocated + object.written;
  }
  return ask ? total : std::min(total, round_up(metadata_.size));
}

}  // namespace detail

ImageCopy::ImageCopy(std::unique_ptr<detail::CopyState> state) : state_(std::move(state)) {}
ImageCopy::~ImageCopy() = default;
ImageId ImageCopy::id() const { return state_->metadata().id; }
uint64_t ImageCopy::size() const { return state_->metadata().size; }
Generation ImageCopy::size_generation() const { return state_->metadata().size_generation; }
const ImageMetadata& ImageCopy::metadata() const { return state_->metadata(); }
void ImageCopy::read(uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Status> done) {
  state_->read(offset, out, mode, &io::File::read, std::move(done));
}
void ImageCopy::read_cached(uint64_t offset, MutableByteSpan out, io::IoMode mode, Callback<Status> done) {
  state_->read(offset, out, mode, &io::File::read_cached, std::move(done));
}
void ImageCopy::write(uint64_t offset, ByteSpan data, io::IoMode mode, Callback<Status> done) {
  state_->write(offset, data, mode, std::move(done));
}
void ImageCopy::zero(uint64_t offset, uint64_t length, Callback<Status> done) {
  state_->zero(offset, length, std::move(done));
}
void ImageCopy::allocate(uint64_t offset, uint64_t length, Callback<Status> done) {
  state_->allocate(offset, length, std::move(done));
}
void ImageCopy::sync(io::IoMode mode, Callback<Status> done) { state_->sync(mode, std::move(done)); }
void ImageCopy::resize(uint64_t new_size, Generation generation, Callback<Status> done) {
  state_->resize(new_size, generation, std::move(done));
}
Result<Extent> ImageCopy::next_data(uint64_t offset) { return state_->next_data(offset); }
Result<uint64_t> ImageCopy::allocated_bytes() { return state_->allocated_bytes(); }
bool ImageCopy::idle() const { return state_->idle(); }
bool ImageCopy::size_in_doubt() const { return state_->size_in_doubt(); }
bool ImageCopy::overdue() const { return state_->overdue(); }

}  // namespace tidemark::image
