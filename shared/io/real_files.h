// FileSystem over the kernel. Queued operations go through io_uring, or through Env::offload where
// there is none; inline ones are blocking system calls.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "shared/io/env.h"
#include "shared/io/file.h"
#include "shared/io/ring.h"

namespace tidemark::io {

// A blocking system call that its file has asked the loop to make.
struct InlineOperation {
  Ring::Request request;
  uint32_t* in_flight = nullptr;   // of the file; counted down before `done`
  Callback<Status> done;
};
// Makes the request with blocking calls, on whichever thread this is.
Status run_blocking(const Ring::Request& request);
// Until no other process holds a file of these directories open for writing: what a process that was killed had left
// with its disks has landed then. kUnavailable if that does not end within `limit`.
Status await_earlier_writes(const std::vector<std::string>& directories, std::chrono::milliseconds limit);

class RealFileSystem final : public FileSystem {
 public:
  // `ring` gives the loop's ring (made when first asked for) or null if there is none.
  // `at_base` takes an inline operation to be made when the stack is unwound; false: the caller makes it now.
  RealFileSystem(Env& env, UniqueFunction<Ring*()> ring, UniqueFunction<bool(InlineOperation&)> at_base)
      : env_(env), ring_(std::move(ring)), at_base_(std::move(at_base)) {}

  Result<std::unique_ptr<File>> open(const std::string& path, const OpenOptions& options) override;
  Result<FileStat> stat(const std::string& path) override;
  Status make_directories(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& directory) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status unlink(const std::string& path) override;
  Status sync_directory(const std::string& path) override;
  Result<Space> space(const std::string& path) override;
  Result<uint64_t> mount_identity(const std::string& path) override;
  Result<Bytes> read_file(const std::string& path) override;
  Status write_file_atomically(const std::string& path, ByteSpan data, uint32_t mode) override;

  Env& env() { return env_; }
  Ring* ring() { return ring_(); }
  bool at_base(InlineOperation& operation) { return at_base_(operation); }
  // The loop is over: callbacks go uncalled, and the files that they own with them.
  void end() { over_ = true; }
  bool over() const { return over_; }

 private:
  Env& env_;
  UniqueFunction<Ring*()> ring_;
  UniqueFunction<bool(InlineOperation&)> at_base_;
  bool over_ = false;
};

}  // namespace tidemark::io
