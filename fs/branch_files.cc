#include "fs/branch_files.h"

#include <algorithm>
#include <charconv>

#include "fs/image.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kPiece = 1u << 20;
constexpr uint64_t kFreeShare = 2;   // a branch takes at most one part in so many of what is free: the journal is there
constexpr std::string_view kSuffix = ".branch";

// "UUID-epochN.branch": an epoch is fenced once, however often the host crashes over it.
std::string branch_name(const ImageId& image, Epoch epoch) {
  return image.to_string() + "-epoch" + std::to_string(epoch.value) + std::string(kSuffix);
}

// Lines of a branch's list: "extent OFFSET LENGTH", "unreadable OFFSET LENGTH".
constexpr std::string_view kUnreadable = "unreadable ";

std::string list_line(std::string_view word, Extent e) {
  return std::string(word) + std::to_string(e.offset) + " " + std::to_string(e.length) + "\n";
}

uint64_t unreadable_in(ByteSpan list) {
  const std::string_view text(reinterpret_cast<const char*>(list.data()), list.size());
  const std::string line = "\n" + std::string(kUnreadable);
  uint64_t sum = 0;
  for (size_t at = text.find(line); at != text.npos; at = text.find(line, at + 1)) {
    const std::string_view numbers = text.substr(at + line.size());
    const size_t length_at = std::min(numbers.find(' '), numbers.size() - 1) + 1;
    uint64_t length = 0;
    std::from_chars(numbers.data() + length_at, numbers.data() + numbers.size(), length);
    sum += length;
  }
  return sum;
}
}  // namespace

std::vector<Branch> BranchFiles::list() {
  std::vector<Branch> out;
  io::FileSystem& files = copies_.env().files();
  auto names = files.list(directory_);
  if (!names) return out;   // none was ever made
  for (const std::string& name : *names) {
    size_t epoch_at = name.find("-epoch");
    auto image = Uuid::parse(name.substr(0, epoch_at));
    if (!name.ends_with(kSuffix) || epoch_at == std::string::npos || !image) continue;
    Branch branch;
    branch.image = *image;
    branch.file = directory_ + "/" + name;
    uint64_t epoch = 0;
    std::from_chars(name.data() + epoch_at + 6, name.data() + name.size(), epoch);
    branch.epoch = Epoch(epoch);
    if (auto stat = files.stat(branch.file)) branch.bytes = stat->allocated;
    auto listed = files.read_file(branch.file + ".extents");
    if (listed) branch.unreadable_bytes = unreadable_in(*listed);
    out.push_back(std::move(branch));
  }
  return out;
}

Task<Result<uint64_t>> BranchFiles::save(Image& im, Epoch epoch, std::vector<RegionIndex> regions,
                                         uint64_t region_bytes) {
  io::FileSystem& files = copies_.env().files();
  const std::string path = directory_ + "/" + branch_name(im.id, epoch);
  const std::string partial = path + ".part";
  if (files.stat(path)) co_return uint64_t{0};   // kept before a crash came
  if (Status s = files.make_directories(directory_); !s) co_return s;
  const uint64_t bytes = regions.size() * region_bytes;
  auto space = files.space(directory_);
  if (!space) co_return space.status();
  if (bytes > space->available / kFreeShare) {
    std::string sizes =
        std::to_string(bytes) + " bytes takes more than half of the " + std::to_string(space->available);
    co_return Status(Code::kOutOfSpace,
                     "a branch of up to " + sizes + " bytes that are free in " + directory_ + ": make room there");
  }
  auto written = co_await write(im, epoch, std::move(regions), region_bytes, path);
  if (written) co_return written;
  Status removed = files.unlink(partial);
  if (!removed && removed.code() != Code::kNotFound)
    kLog.warning("branch_part_left", {{"file", partial}, {"error", removed}});
  co_return written;
}

// A piece of the own copy block by block, where it could not be read as a whole; what cannot be read is zeros, and in
// `unreadable`.
Task<Status> BranchFiles::read_around(Image& im, Extent piece, MutableByteSpan out, std::vector<Extent>& unreadable) {
  bool failed = false;
  for (uint64_t at = 0; at < piece.length; at += limits::kOrderGranule) {
    const Extent block{piece.offset + at, std::min<uint64_t>(limits::kOrderGranule, piece.length - at)};
    auto buffer = std::make_shared<io::AlignedBuffer>(block.length);   // shared with the operation
    Status s = co_await copies_.read_copy(im, block, buffer);
    const auto into = out.begin() + static_cast<ptrdiff_t>(at);
    if (s) {
      std::copy_n(buffer->data(), block.length, into);
      continue;
    }
    if (s.code() != Code::kIoError && s.code() != Code::kCorruption) co_return s;
    failed = failed || s.code() == Code::kIoError;
    std::fill_n(into, block.length, 0);
    if (!unreadable.empty() && unreadable.back().end() == block.offset) unreadable.back().length += block.length;
    else unreadable.push_back(block);
  }
  // A brick that is not there may come back, and all of this with it.
  if (failed) {
    if (Status there = group_.look_at_bricks(); !there) co_return there;
    if (Status there = group_.look_at(im.id); there.code() == Code::kIoError) co_return there;
  }
  co_return Status::ok();
}

Task<Result<uint64_t>> BranchFiles::write(Image& im, Epoch epoch, std::vector<RegionIndex> regions,
                                          uint64_t region_bytes, std::string path) {
  io::FileSystem& files = copies_.env().files();
  const std::string partial = path + ".part";
  auto opened = files.open(partial, {.create = true});
  if (!opened) co_return opened.status();
  auto file = std::shared_ptr<io::File>(std::move(*opened));   // shared with its operations, should this frame go
  const uint64_t size = im.copy->size();
  if (Status s = file->truncate(0); !s) co_return s;
  if (Status s = file->truncate(size); !s) co_return s;
  std::string list = "image " + im.id.to_string() + "\npath " + copies_.names().path_of(im.inode) + "\nepoch " +
                     std::to_string(epoch.value) + "\nsize " + std::to_string(size) + "\n";
  std::vector<Extent> unreadable;
  Status failed;        // as the device last said
  bool kept = false;    // anything but zeros: a hole is read without the device
  for (RegionIndex region : regions) {
    const uint64_t begin = region.value * region_bytes, end = std::min(size, begin + region_bytes);
    if (begin >= end) continue;
    list += list_line("extent ", {begin, end - begin});
    for (uint64_t at = begin; at < end; at += kPiece) {
      Extent piece{at, std::min(kPiece, end - at)};
      auto buffer = std::make_shared<io::AlignedBuffer>(piece.length);   // shared with the operation, as above
      Status s = co_await copies_.read_copy(im, piece, buffer);
      if (s.code() == Code::kIoError) failed = s;
      if (!s) s = co_await read_around(im, piece, buffer->span().first(piece.length), unreadable);
      if (!s) co_return s;
      ByteSpan bytes = ByteSpan(buffer->span()).first(piece.length);
      if (std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; })) continue;
      kept = true;
      s = co_await async<Status>([&](Callback<Status> done) {
        file->write(piece.offset, bytes, io::IoMode::kQueued,
                    [file, buffer, done = std::move(done)](Status w) mutable { done(std::move(w)); });
      });
      if (!s) co_return s;
    }
  }
  // More than bad blocks: a device that answers nothing, while its brick is looked up in memory. It may come back.
  if (!kept && !unreadable.empty() && !failed)
    co_return failed.with_context("nothing of what only this host has could be read");
  Status synced = co_await async<Status>([&](Callback<Status> done) {
    file->sync(io::IoMode::kQueued, [file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
  });
  if (!synced) co_return synced;
  for (const Extent& e : unreadable) list += list_line(kUnreadable, e);
  if (Status s = files.write_file_atomically(path + ".extents", as_bytes(list)); !s) co_return s;
  if (Status s = files.rename(partial, path); !s) co_return s;
  if (Status s = files.sync_directory(directory_); !s) co_return s;
  kLog.warning("branch_kept", {{"image", im.id}, {"epoch", epoch}, {"regions", regions.size()}, {"file", path}});
  const uint64_t left_out = unreadable_in(as_bytes(list));
  if (left_out != 0) {
    kLog.error("branch_incomplete", {{"image", im.id}, {"epoch", epoch}, {"unreadable_bytes", left_out},
                                     {"list", path + ".extents"}, {"effect", "what only this host had there is lost"}});
  }
  co_return left_out;
}

}  // namespace tidemark::fs
