// A file descriptor with whole reads and writes and errors that name the path. For the blocking tools of
// this folder only; daemons use io::File.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <utility>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::image {

class PosixFile {
 public:
  PosixFile() = default;
  PosixFile(PosixFile&& o) noexcept : fd_(std::exchange(o.fd_, -1)), path_(std::move(o.path_)) {}
  PosixFile& operator=(PosixFile&& o) noexcept;
  ~PosixFile();

  static Result<PosixFile> open(const std::string& path, int flags, mode_t mode = 0666);

  const std::string& path() const { return path_; }
  Result<uint64_t> size() const;
  Result<struct stat> stat() const;
  Status read(uint64_t offset, MutableByteSpan out) const;  // all of it; the file's end is an error
  Status write(uint64_t offset, ByteSpan data) const;
  Status truncate(uint64_t size) const;
  Status sync() const;
  // For this process alone, until the file is closed. kBusy if another has it; false where the file system has no
  // locks.
  Result<bool> lock_exclusively() const;
  // Those of what has the name `path`, if anything has, which this file is about to replace. Where the owner cannot be
  // given away, nobody else is given anything.
  Status take_owner_and_mode_of(const std::string& path) const;
  // From `offset` to `end`: the first part that is not a hole. Where holes cannot be told, all of it.
  Result<Extent> next_data(uint64_t offset, uint64_t end) const;

 private:
  int fd_ = -1;
  std::string path_;
};

// Whether a file may get the name `path` by a rename: nothing or a regular file has it. A device or a link would itself
// be replaced, and the bytes lie elsewhere than it says: kInvalidArgument.
Status check_replaceable(const std::string& path);

// A file that becomes visible under `path` by commit(), or is removed. Only its owner may read it: a guest's disk.
class TemporaryFile {
 public:
  static Result<TemporaryFile> create(const std::string& path);
  TemporaryFile(TemporaryFile&& o) noexcept
      : file_(std::move(o.file_)), path_(std::move(o.path_)), temporary_(std::exchange(o.temporary_, {})) {}
  ~TemporaryFile();
  PosixFile& file() { return file_; }
  // Syncs, renames, syncs the directory. Without `overwrite`, kAlreadyExists if the name is taken; with it, owner and
  // mode are those of the file that is replaced.
  Status commit(bool overwrite);

 private:
  TemporaryFile() = default;
  PosixFile file_;
  std::string path_, temporary_;  // temporary_ is empty once committed or moved from
};

}  // namespace tidemark::image
