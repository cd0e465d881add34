#include "shared/cli/transfer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "shared/cli/json.h"
#include "shared/image/posix_file.h"

namespace tidemark::cli {
namespace {

constexpr size_t kPieceBytes = 4u << 20;
constexpr size_t kZeroBlock = 4096;

Status sync_directory_of(const std::string& path) {
  std::string directory = std::filesystem::path(path).parent_path().string();
  if (directory.empty()) directory = ".";
  int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Status::from_errno(errno, directory);
  int result = fsync(fd);
  int error = errno;
  close(fd);
  // A file system that offers no sync of directories has nothing to be made durable this way.
  if (result != 0 && error != EINVAL && error != ENOSYS) return Status::from_errno(error, directory);
  return {};
}

// What the progress file says, if it belongs to this transfer and this partial file. By number, too: another host, whose
// progress is noted elsewhere, may have begun the file anew meanwhile.
Result<uint64_t> resumable_offset(const PointSource& source, const TransferOptions& o, const image::PosixFile& file) {
  constexpr uint64_t kProgressBytesMax = 64u << 10;
  TM_ASSIGN_OR_RETURN(struct stat s, file.stat());
  auto in = image::PosixFile::open(o.progress_file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  auto length = in ? in->size() : Result<uint64_t>(in.status());
  if (!length || *length > kProgressBytesMax || static_cast<uint64_t>(s.st_size) != source.size()) return uint64_t{0};
  Bytes content(static_cast<size_t>(*length));
  if (!in->read(0, content)) return uint64_t{0};
  Json j = Json::parse(as_text(content), nullptr, false);
  if (j.is_discarded() || text(j, "identity") != source.identity() || text(j, "partial") != file.path() ||
      number(j, "inode") != s.st_ino)
    return uint64_t{0};
  return std::min(number(j, "durable_to"), source.size());
}

Status checkpoint(const PointSource& source, const TransferOptions& o, const image::PosixFile& file,
                  uint64_t durable_to) {
  TM_RETURN_IF_ERROR(file.sync());
  TM_ASSIGN_OR_RETURN(struct stat s, file.stat());
  std::string text = dump(Json{{"identity", source.identity()}, {"partial", file.path()},
                               {"inode", static_cast<uint64_t>(s.st_ino)}, {"durable_to", durable_to}}) + "\n";
  std::string temporary = o.progress_file + ".new";
  {
    TM_ASSIGN_OR_RETURN(image::PosixFile out,
                        image::PosixFile::open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
    TM_RETURN_IF_ERROR(out.write(0, as_bytes(text)));
    TM_RETURN_IF_ERROR(out.sync());
  }
  if (rename(temporary.c_str(), o.progress_file.c_str()) != 0) return Status::from_errno(errno, o.progress_file);
  return {};
}

// The partial file's name is still that of the file that is open: nobody renamed it, removed it or began it anew.
Status still_named(const image::PosixFile& file) {
  TM_ASSIGN_OR_RETURN(struct stat ours, file.stat());
  struct stat named {};
  if (lstat(file.path().c_str(), &named) == 0 && named.st_dev == ours.st_dev && named.st_ino == ours.st_ino) return {};
  return {Code::kBusy, file.path() + ": another process renamed or replaced it meanwhile: try again"};
}

// `locked`: false on a file system that has no locks.
Result<image::PosixFile> open_partial(const std::string& partial, int flags, bool& locked) {
  TM_ASSIGN_OR_RETURN(image::PosixFile file,
                      image::PosixFile::open(partial, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | flags, 0600));
  TM_ASSIGN_OR_RETURN(struct stat s, file.stat());
  if (!S_ISREG(s.st_mode)) return Status(Code::kInvalidArgument, partial + " is no regular file: remove it");
  TM_ASSIGN_OR_RETURN(locked, file.lock_exclusively());
  TM_RETURN_IF_ERROR(still_named(file));   // who had the lock before us
  return file;
}

// The partial file, this process' alone until it is closed, as long as the image and holding it up to `resumed_at`.
Result<image::PosixFile> begin(const PointSource& source, const TransferOptions& o, uint64_t& resumed_at) {
  const std::string partial = partial_path(o.path);
  bool locked = false;
  TM_ASSIGN_OR_RETURN(image::PosixFile file, open_partial(partial, 0, locked));
  TM_ASSIGN_OR_RETURN(uint64_t size, file.size());
  TM_ASSIGN_OR_RETURN(resumed_at, resumable_offset(source, o, file));
  if (!locked) resumed_at = 0;   // another process may be writing it just now: it loses the name, which it notices
  if (resumed_at == 0) {
    // Durably gone before anything changes that it tells of.
    if (unlink(o.progress_file.c_str()) == 0) TM_RETURN_IF_ERROR(sync_directory_of(o.progress_file));
    else if (errno != ENOENT) return Status::from_errno(errno, o.progress_file);
    if (size != 0 || !locked) {
      // Another file of that name, not the same one emptied: whoever else still has that open, or noted how far it was
      // durable, is not taken at its word for this one. Emptied first all the same: EBUSY while another host writes it.
      if (o.note && size != 0)
        o.note(partial + " holds nothing of this image at this point that is known to be durable: it is begun anew");
      TM_RETURN_IF_ERROR(file.truncate(0));
      if (unlink(partial.c_str()) != 0) return Status::from_errno(errno, partial);
      TM_ASSIGN_OR_RETURN(file, open_partial(partial, O_EXCL, locked));
    }
  }
  // What lies beyond the last durable place may be of any age: it is dropped and fetched again.
  TM_RETURN_IF_ERROR(file.truncate(resumed_at));
  TM_RETURN_IF_ERROR(file.truncate(source.size()));
  TM_RETURN_IF_ERROR(checkpoint(source, o, file, resumed_at));
  return file;
}

bool all_zero(ByteSpan block) {
  // Each byte equals the one after it, and the first is zero.
  return block.empty() || (block[0] == 0 && std::memcmp(block.data(), block.data() + 1, block.size() - 1) == 0);
}

// Writes what is not zero: the file is new or was checked to be without data from here on.
Status write_thin(const image::PosixFile& file, uint64_t offset, ByteSpan data) {
  size_t begin = 0;
  while (begin < data.size()) {
    size_t end = begin;
    auto block = [&](size_t at) { return data.subspan(at, std::min(kZeroBlock, data.size() - at)); };
    while (end < data.size() && !all_zero(block(end))) end += block(end).size();
    if (end > begin) TM_RETURN_IF_ERROR(file.write(offset + begin, data.subspan(begin, end - begin)));
    begin = end;
    while (begin < data.size() && all_zero(block(begin))) begin += block(begin).size();
  }
  return {};
}

Result<uint64_t> copy(PointSource& source, const TransferOptions& o, const image::PosixFile& file, uint64_t offset) {
  Bytes buffer(kPieceBytes);
  uint64_t moved = 0, since_checkpoint = 0;
  while (offset < source.size()) {
    TM_ASSIGN_OR_RETURN(Extent data, source.next_data(offset));
    if (data.length == 0) break;
    for (uint64_t at = data.offset; at < data.end();) {
      MutableByteSpan piece(buffer.data(), std::min<uint64_t>(buffer.size(), data.end() - at));
      TM_RETURN_IF_ERROR(source.read(at, piece));
      TM_RETURN_IF_ERROR(write_thin(file, at, piece));
      at += piece.size();
      moved += piece.size();
      since_checkpoint += piece.size();
      if (o.progress) o.progress(at, source.size());
      if (since_checkpoint >= o.checkpoint_bytes) {
        TM_RETURN_IF_ERROR(checkpoint(source, o, file, at));
        since_checkpoint = 0;
      }
    }
    offset = data.end();
  }
  if (o.progress) o.progress(source.size(), source.size());
  return moved;
}

}  // namespace

std::string partial_path(const std::string& path) { return path + ".tidemark-partial"; }

Result<TransferResult> transfer(PointSource& source, const TransferOptions& o) {
  std::string partial = partial_path(o.path);
  TM_RETURN_IF_ERROR(image::check_replaceable(o.path));
  struct stat s {};
  if (!o.overwrite && lstat(o.path.c_str(), &s) == 0) {
    return Status(Code::kAlreadyExists, o.path + " exists already: name another, or give --force to replace it");
  }
  TransferResult result;
  result.size = source.size();
  TM_ASSIGN_OR_RETURN(image::PosixFile file, begin(source, o, result.resumed_at));
  TM_ASSIGN_OR_RETURN(result.bytes_moved, copy(source, o, file, result.resumed_at));
  if (o.before_rename) TM_RETURN_IF_ERROR(o.before_rename(partial));
  else if (o.overwrite) TM_RETURN_IF_ERROR(file.take_owner_and_mode_of(o.path));
  TM_RETURN_IF_ERROR(file.sync());
  if (!o.overwrite && lstat(o.path.c_str(), &s) == 0) {
    return Status(Code::kAlreadyExists, o.path + " appeared meanwhile: name another, or give --force to replace it");
  }
  TM_RETURN_IF_ERROR(still_named(file));
  if (rename(partial.c_str(), o.path.c_str()) != 0) return Status::from_errno(errno, o.path);
  TM_RETURN_IF_ERROR(sync_directory_of(o.path));
  unlink(o.progress_file.c_str());
  return result;
}

}  // namespace tidemark::cli
