// Snapshots and cursors on LMDB read transactions, which are used again. Any thread, one object by one thread.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "shared/kv/lmdb_handles.h"
#include "shared/kv/store.h"

namespace tidemark::kv::lmdb {

// Read transactions ready for use again. Any thread.
class ReaderPool {
 public:
  explicit ReaderPool(MDB_env* env) : env_(env) {}
  ~ReaderPool();
  Result<MDB_txn*> take();
  void give_back(MDB_txn* txn);

 private:
  MDB_env* const env_;
  std::mutex mutex_;
  std::vector<MDB_txn*> idle_;   // guarded by mutex_
};

// The pool and the tables must outlive it. `txn` came from the pool, and goes back there.
// `seals`: table_seal() of each table; values end in their checksum, which is checked and taken off. Empty: none does.
std::unique_ptr<Snapshot> make_snapshot(ReaderPool& pool, MDB_txn* txn, const std::vector<MDB_dbi>& tables,
                                        const std::vector<uint64_t>& seals);

}  // namespace tidemark::kv::lmdb
