#include "journal/outdated.h"

#include <algorithm>

#include "shared/base/digest.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("journal");

constexpr size_t kBlock = 4096;
constexpr std::string_view kOutdatedMagic = "TMOUTDAT";
constexpr size_t kSaid = 9;                        // bytes that the checksum covers

void encode(bool outdated, MutableByteSpan out) {
  std::fill(out.begin(), out.end(), 0);
  std::copy(kOutdatedMagic.begin(), kOutdatedMagic.end(), out.begin());
  out[8] = outdated ? 1 : 0;
  store_le<uint64_t>(out.data() + kSaid, digest64(ByteSpan(out).first(kSaid)));
}

// A damaged one says yes: that costs a comparison, no block.
bool says_outdated(ByteSpan block) {
  if (block.size() < kSaid + 8 || digest64(block.first(kSaid)) != load_le<uint64_t>(block.data() + kSaid)) return true;
  return !std::equal(kOutdatedMagic.begin(), kOutdatedMagic.end(), block.begin()) || block[8] != 0;
}

}  // namespace

Bytes outdated_block(bool outdated) {
  Bytes block(kBlock);
  encode(outdated, block);
  return block;
}

bool sound_outdated_block(ByteSpan block) {
  Bytes yes = outdated_block(true), no = outdated_block(false);
  return std::equal(block.begin(), block.end(), yes.begin(), yes.end()) ||
         std::equal(block.begin(), block.end(), no.begin(), no.end());
}

OutdatedMark::OutdatedMark(io::Env& env, std::vector<std::string> directories) : env_(env) {
  for (const std::string& directory : directories) {
    Place& place = places_.emplace_back();
    place.path = directory + "/journal-outdated";
  }
}

OutdatedMark::~OutdatedMark() { tasks_.cancel_all(); }

Status OutdatedMark::open() {
  Status last(Code::kInvalidArgument, "no directory for the journal's mark");
  size_t opened = 0;
  for (Place& place : places_) {
    Result<Bytes> bytes = env_.files().read_file(place.path);
    if (bytes) {
      place.says = says_outdated(*bytes);
    } else if (bytes.status().code() == Code::kNotFound) {
      Bytes block(kBlock);
      encode(false, block);
      last = env_.files().write_file_atomically(place.path, block);
      if (!last) kLog.warning("mark_not_prepared", {{"path", place.path}, {"status", last}});
      if (!last) continue;
      place.says = false;
    } else {
      last = bytes.status().with_context(place.path);
      continue;
    }
    auto file = env_.files().open(place.path, {});
    if (!file) {
      last = file.status().with_context(place.path);
      continue;
    }
    place.file = std::move(*file);
    ++opened;
    found_ = found_ || *place.says;
  }
  stands_ = wanted_ = found_;
  return opened > 0 ? Status::ok() : last;
}

void OutdatedMark::put(bool outdated, Callback<Status> done) {
  if (done_) std::exchange(done_, {})(Status(Code::kCancelled, "the mark is changed again"));
  wanted_ = outdated;
  if (outdated && sure()) return done(Status::ok());
  done_ = std::move(done);
  if (running_) return;
  running_ = true;
  tasks_.spawn(run());
}

Status OutdatedMark::reopen_own() {
  Place& own = places_.front();
  if (own.writing) return Status(Code::kUnavailable, own.path + ": a write of before has not ended");
  auto file = env_.files().open(own.path, {});
  if (file.status().code() == Code::kNotFound) {
    TM_RETURN_IF_ERROR(env_.files().write_file_atomically(own.path, outdated_block(true)));
    file = env_.files().open(own.path, {});
  }
  if (!file) return file.status().with_context(own.path);
  own.file = std::move(*file);
  own.says.reset();
  stands_ = sure();
  return Status::ok();
}

bool OutdatedMark::sure() const {
  return std::any_of(places_.begin(), places_.end(), [](const Place& p) { return p.file != nullptr && p.says == true; });
}

// Taken back from the last place on: what the journal's own says stands for as long as another hangs.
Task<void> OutdatedMark::run() {
  while (done_) {
    const bool outdated = wanted_;
    Status last(Code::kIoError, "no place takes the journal's mark");
    size_t missed = 0;
    for (size_t i = 0; i < places_.size() && outdated == wanted_; ++i) {
      Place& place = places_[outdated ? i : places_.size() - 1 - i];
      if (place.file == nullptr) continue;
      if (place.says == outdated) continue;
      place.says.reset();
      place.writing = true;
      Status status = co_await write(place, outdated);
      place.writing = false;
      if (!status) {
        last = status.with_context(place.path);
        ++missed;
        continue;
      }
      place.says = outdated;
      // Guests wait for this: the other places, of which one may hang, get it as they can.
      if (outdated) stands_ = true;
      if (outdated && wanted_ && done_) std::exchange(done_, {})(Status::ok());
    }
    if (outdated != wanted_ || !done_) continue;
    const bool came_about = outdated ? sure() : missed == 0;
    if (came_about) stands_ = outdated;
    else if (!outdated) stands_ = true;
    std::exchange(done_, {})(came_about ? Status::ok() : last);
  }
  running_ = false;
}

Task<Status> OutdatedMark::write(Place& place, bool outdated) {
  auto buffer = std::make_shared<io::AlignedBuffer>(kBlock);   // shared with the write: it may outlive this
  auto file = place.file;
  encode(outdated, buffer->span().first(kBlock));
  Status status = co_await async<Status>([&](Callback<Status> done) {
    place.file->write(0, buffer->span().first(kBlock), io::IoMode::kQueued,
                      [buffer, file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
  });
  if (status) {
    status = co_await async<Status>([&](Callback<Status> done) {
      place.file->sync(io::IoMode::kQueued, [file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
    });
  }
  co_return status;
}

}  // namespace tidemark::journal
