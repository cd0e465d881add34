#include "shared/kv/lmdb_read.h"

#include "shared/kv/lmdb_store.h"

namespace tidemark::kv::lmdb {
namespace {

constexpr size_t kIdleReadersMax = 8;             // kept for the next snapshot

class LmdbCursor final : public Cursor {
 public:
  explicit LmdbCursor(CursorHandle cursor) : cursor_(std::move(cursor)) {}
  bool seek(ByteSpan key) override {
    if (key.empty()) return first();   // LMDB refuses an empty key
    key_ = to_val(key);
    return move(MDB_SET_RANGE);
  }
  bool seek_before(ByteSpan key) override {
    if (key.empty()) return valid_ = false;
    return seek(key) ? previous() : last();
  }
  bool first() override { return move(MDB_FIRST); }
  bool last() override { return move(MDB_LAST); }
  bool next() override { return valid_ && move(MDB_NEXT); }
  bool previous() override { return valid_ && move(MDB_PREV); }
  ByteSpan key() const override { return to_span(key_); }
  ByteSpan value() const override { return to_span(value_); }

 private:
  bool move(MDB_cursor_op op) {
    int rc = mdb_cursor_get(cursor_.get(), &key_, &value_, op);
    TM_CHECK(rc == 0 || rc == MDB_NOTFOUND, "a store's page is damaged");
    return valid_ = rc == 0;
  }
  CursorHandle cursor_;
  MDB_val key_{}, value_{};
  bool valid_ = false;
};

class LmdbSnapshot final : public Snapshot {
 public:
  LmdbSnapshot(ReaderPool& pool, MDB_txn* txn, const std::vector<MDB_dbi>& tables)
      : pool_(pool), txn_(txn), tables_(tables) {}
  ~LmdbSnapshot() override { pool_.give_back(txn_); }

  Result<Bytes> get(Table table, ByteSpan key) override {
    if (key.empty() || key.size() > kKeyBytesMax) return Status(Code::kNotFound, "no such key");
    MDB_val k = to_val(key), v{};
    int rc = mdb_get(txn_, tables_.at(table), &k, &v);
    if (rc != 0) return to_status(rc, "get");
    ByteSpan span = to_span(v);
    return Bytes(span.begin(), span.end());
  }
  std::unique_ptr<Cursor> cursor(Table table) override {
    MDB_cursor* cursor = nullptr;
    int rc = mdb_cursor_open(txn_, tables_.at(table), &cursor);
    TM_CHECK(rc == 0, "no memory for a cursor");
    return std::make_unique<LmdbCursor>(CursorHandle(cursor));
  }

 private:
  ReaderPool& pool_;
  MDB_txn* const txn_;
  const std::vector<MDB_dbi>& tables_;
};

}  // namespace

ReaderPool::~ReaderPool() {
  for (MDB_txn* txn : idle_) mdb_txn_abort(txn);
}

Result<MDB_txn*> ReaderPool::take() {
  MDB_txn* txn = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) { txn = idle_.back(); idle_.pop_back(); }
  }
  if (txn != nullptr) {
    int rc = mdb_txn_renew(txn);
    if (rc == 0) return txn;
    mdb_txn_abort(txn);
    return to_status(rc, "snapshot");
  }
  int rc = mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn);
  if (rc != 0) return to_status(rc, "snapshot");
  return txn;
}

void ReaderPool::give_back(MDB_txn* txn) {
  mdb_txn_reset(txn);
  {
    std::lock_guard lock(mutex_);
    if (idle_.size() < kIdleReadersMax) { idle_.push_back(txn); return; }
  }
  mdb_txn_abort(txn);
}

std::unique_ptr<Snapshot> make_snapshot(ReaderPool& pool, MDB_txn* txn, const std::vector<MDB_dbi>& tables) {
  return std::make_unique<LmdbSnapshot>(pool, txn, tables);
}

}  // namespace tidemark::kv::lmdb
