// One LMDB write transaction that takes batches. The writer thread's.
#pragma once

#include <vector>

#include "shared/kv/lmdb_handles.h"
#include "shared/kv/store.h"

namespace tidemark::kv::lmdb {

// Every key has a length that LMDB takes.
bool keys_fit(const WriteBatch& batch);
bool only_erases(const WriteBatch& batch);

// Takes `txn`; aborts it when destroyed uncommitted. The functions answer LMDB's return codes.
class Transaction {
 public:
  // `seals`: table_seal() of each table; empty: the store is not sealed.
  Transaction(MDB_txn* txn, const std::vector<MDB_dbi>& tables, const std::vector<uint64_t>& seals)
      : txn_(txn), tables_(tables), seals_(seals), tails_(tables.size()) {}
  ~Transaction() { if (txn_ != nullptr) mdb_txn_abort(txn_); }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  int apply(const WriteBatch& batch);
  int commit();

 private:
  // The last key of a table as far as this transaction knows: growing keys are appended, which
  // fills pages instead of splitting them in halves.
  struct Tail {
    bool known = false;
    bool empty = false;
    Bytes key;
  };
  int put(const WriteBatch::Op& op);
  int learn_tail(MDB_dbi dbi, Tail& tail);
  int erase(const WriteBatch::Op& op);
  int erase_range(const WriteBatch::Op& op);

  MDB_txn* txn_;
  const std::vector<MDB_dbi>& tables_;
  const std::vector<uint64_t>& seals_;
  std::vector<Tail> tails_;
};

}  // namespace tidemark::kv::lmdb
