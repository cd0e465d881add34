// kv::Store on LMDB 0.9: the store of every daemon.
//
// One writer thread a store takes all queued batches into one transaction (group commit), so the
// loop never waits for the disk. Snapshots are LMDB read transactions. One process opens a
// directory at most once; the guard answers kBusy.
//
// LMDB bounds a key at 511 bytes; a longer or an empty one fails its whole batch with kInvalidArgument.
#pragma once

#include <memory>
#include <string>

#include "shared/io/env.h"
#include "shared/kv/store.h"

namespace tidemark::kv {

inline constexpr size_t kKeyBytesMax = 511;

// Opens (creating if absent, unless read_only) the environment in directory `path`. Fits RealEnvOptions::open_store.
Result<std::unique_ptr<Store>> open_lmdb_store(io::Env& env, const std::string& path, const StoreOptions& options);

}  // namespace tidemark::kv
