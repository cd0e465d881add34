// Files: the only door to them. Opening and naming are synchronous (they are off the hot path);
// data operations complete by callback.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/status.h"

namespace tidemark::io {

// How a data operation is to be carried out. The simulator ignores it.
enum class IoMode : uint8_t {
  kQueued,  // joins the batch submitted at the end of the loop's turn (io_uring)
  kInline,  // a blocking system call as soon as the callback that asks has returned: wins at depth one where nothing
            // else is waited for, such as a read, or where the ring would hand over to a thread, such as a sync. Should
            // the call hang, the loop goes on without it (real_env.h)
};

struct OpenOptions {
  bool create = false;
  bool exclusive = false;   // with create: kAlreadyExists if there
  bool direct = false;      // O_DIRECT: offset, length and memory aligned to File::kAlignment; falls
                            // back to buffered where the file system refuses it
  bool read_only = false;
  bool background = false;  // queued operations may be slow, but wait for no device that others use
  bool whole = false;       // who reads knows the size: a read past the end of file is kCorruption, never zeros
  uint32_t mode = 0600;
};

struct FileStat {
  uint64_t size = 0;
  uint64_t allocated = 0;   // bytes of storage held (512 * st_blocks)
  bool is_directory = false;
};

// An open file. Buffers must stay valid until the callback ran. Operations on disjoint ranges may
// complete in any order; the caller orders overlapping ones. A short read is zero-filled past the
// end of file and is not an error, unless OpenOptions::whole. Callbacks never run after the File was
// destroyed: destroying it with operations in flight is a programmer error (drain first).
class File {
 public:
  static constexpr uint64_t kAlignment = 4096;
  virtual ~File() = default;

  virtual void read(uint64_t offset, MutableByteSpan out, IoMode mode, Callback<Status> done) = 0;
  // As read, for whoever wants the bytes and not the storage's word on them: the operating system may answer from its
  // memory, and keeps there what is read often. Any alignment that read takes.
  virtual void read_cached(uint64_t offset, MutableByteSpan out, IoMode mode, Callback<Status> done) {
    read(offset, out, mode, std::move(done));
  }
  virtual void write(uint64_t offset, ByteSpan data, IoMode mode, Callback<Status> done) = 0;
  // fdatasync. When it reports OK, every write that completed before the call is durable. An error
  // means their fate is unknown: never simply retry (the loss id must change).
  virtual void sync(IoMode mode, Callback<Status> done) = 0;
  // Frees the range (FALLOC_FL_PUNCH_HOLE|KEEP_SIZE); it then reads as zeros. Off the hot path.
  virtual void punch(uint64_t offset, uint64_t length, Callback<Status> done) = 0;
  // Allocates the range without changing the size or the contents.
  virtual void allocate(uint64_t offset, uint64_t length, Callback<Status> done) = 0;
  virtual Status truncate(uint64_t size) = 0;
  // The first allocated extent that ends after `offset` (its part from `offset` on), or an extent
  // of length 0 at end of file if there is none.
  virtual Result<Extent> next_data(uint64_t offset) = 0;
  virtual Result<FileStat> stat() = 0;
  // The same as an operation: nobody else waits should the file system hang.
  virtual void ask_stat(IoMode mode, Callback<Result<FileStat>> done) = 0;
  virtual bool is_direct() const = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual Result<std::unique_ptr<File>> open(const std::string& path, const OpenOptions& options) = 0;
  virtual Result<FileStat> stat(const std::string& path) = 0;
  virtual Status make_directories(const std::string& path) = 0;   // as mkdir -p, 0700
  virtual Result<std::vector<std::string>> list(const std::string& directory) = 0;  // names, sorted
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status unlink(const std::string& path) = 0;
  virtual Status sync_directory(const std::string& path) = 0;   // names in it are durable; of a file: size and bytes
  struct Space { uint64_t total = 0, available = 0; };
  virtual Result<Space> space(const std::string& path) = 0;
  // Names the mount that holds `path` in this boot (device and unique mount id): part of a loss id.
  virtual Result<uint64_t> mount_identity(const std::string& path) = 0;

  // Small whole files, for configuration-like state: atomic replace (temporary, fsync, rename, fsync directory).
  virtual Result<Bytes> read_file(const std::string& path) = 0;
  virtual Status write_file_atomically(const std::string& path, ByteSpan data, uint32_t mode = 0600) = 0;
};

// Memory aligned for O_DIRECT. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size);   // rounded up to File::kAlignment
  AlignedBuffer(AlignedBuffer&& o) noexcept : data_(o.data_), size_(o.size_) { o.data_ = nullptr; o.size_ = 0; }
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept;
  ~AlignedBuffer();
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  MutableByteSpan span() { return {data_, size_}; }
  ByteSpan span() const { return {data_, size_}; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tidemark::io
