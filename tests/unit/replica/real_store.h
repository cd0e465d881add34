// A real Env and a directory of its own, for the replica's tests.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "shared/base/status.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"
#include "shared/net/real_network.h"

namespace tidemark::replica {

class TempDirectory {
 public:
  enum class On { kDisk, kMemory };   // kMemory where there is such a place: for tests that commit thousands of times
  explicit TempDirectory(On on = On::kDisk) {
    const std::filesystem::path memory = "/dev/shm";
    const bool in_memory = on == On::kMemory && std::filesystem::is_directory(memory);
    std::string pattern =
        ((in_memory ? memory : std::filesystem::temp_directory_path()) / "tidemark-replica-XXXXXX").string();
    TM_CHECK(::mkdtemp(pattern.data()) != nullptr, "a temporary directory is needed");
    path_ = pattern;
  }
  ~TempDirectory() { std::error_code ignored; std::filesystem::remove_all(path_, ignored); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline io::RealEnvOptions real_options() {
  return {.open_store = kv::open_lmdb_store, .make_network = net::make_real_network};
}

}  // namespace tidemark::replica
