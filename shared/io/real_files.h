// FileSystem over the kernel. Queued operations go through io_uring, or through Env::offload where
// there is none; inline ones are blocking system calls.
#pragma once

#include "shared/io/env.h"
#include "shared/io/file.h"
#include "shared/io/ring.h"

namespace tidemark::io {

class RealFileSystem final : public FileSystem {
 public:
  // `ring` gives the loop's ring (made when first asked for) or null if there is none.
  RealFileSystem(Env& env, UniqueFunction<Ring*()> ring) : env_(env), ring_(std::move(ring)) {}

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

 private:
  Env& env_;
  UniqueFunction<Ring*()> ring_;
};

}  // namespace tidemark::io
