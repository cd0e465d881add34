#include "shared/kv/lmdb_read.h"

#include <optional>

#include "shared/base/digest.h"
#include "shared/base/log.h"
#include "shared/kv/lmdb_check.h"
#include "shared/kv/lmdb_store.h"

namespace tidemark::kv::lmdb {
namespace {

constexpr size_t kIdleReadersMax = 8;             // kept for the next snapshot

const log::Logger kLog("store");

// Without its checksum; nothing if that does not hold.
std::optional<ByteSpan> unsealed(uint64_t table, ByteSpan key, ByteSpan value) {
  if (value.size() >= kSealBytes) {
    ByteSpan body = value.first(value.size() - kSealBytes);
    if (seal_of(table, key, body) == load_le<uint64_t>(body.data() + body.size())) return body;
  }
  kLog.error("value_damaged", {{"key", to_hex(key)}, {"remedy", "stop the daemon and run tidemark fsck"}});
  return std::nullopt;
}

class LmdbCursor final : public Cursor {
 public:
  LmdbCursor(CursorHandle cursor, std::optional<uint64_t> seal) : cursor_(std::move(cursor)), seal_(seal) {}
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
  // A damaged one reads as empty, which is not what its reader expects.
  ByteSpan value() const override {
    return seal_ ? unsealed(*seal_, key(), to_span(value_)).value_or(ByteSpan()) : to_span(value_);
  }

 private:
  bool move(MDB_cursor_op op) {
    int rc = mdb_cursor_get(cursor_.get(), &key_, &value_, op);
    TM_CHECK(rc == 0 || rc == MDB_NOTFOUND, "a store's page is damaged");
    return valid_ = rc == 0;
  }
  CursorHandle cursor_;
  const std::optional<uint64_t> seal_;
  MDB_val key_{}, value_{};
  bool valid_ = false;
};

class LmdbSnapshot final : public Snapshot {
 public:
  LmdbSnapshot(ReaderPool& pool, MDB_txn* txn, const std::vector<MDB_dbi>& tables,
               const std::vector<uint64_t>& seals)
      : pool_(pool), txn_(txn), tables_(tables), seals_(seals) {}
  ~LmdbSnapshot() override { pool_.give_back(txn_); }

  Result<Bytes> get(Table table, ByteSpan key) override {
    if (key.empty() || key.size() > kKeyBytesMax) return Status(Code::kNotFound, "no such key");
    MDB_val k = to_val(key), v{};
    int rc = mdb_get(txn_, tables_.at(table), &k, &v);
    if (rc != 0) return to_status(rc, "get");
    ByteSpan span = to_span(v);
    if (!seals_.empty()) {
      auto body = unsealed(seals_.at(table), key, span);
      if (!body) return Status(Code::kCorruption, "a value of the store fails its checksum, key " + to_hex(key));
      span = *body;
    }
    return Bytes(span.begin(), span.end());
  }
  std::unique_ptr<Cursor> cursor(Table table) override {
    MDB_cursor* cursor = nullptr;
    int rc = mdb_cursor_open(txn_, tables_.at(table), &cursor);
    TM_CHECK(rc == 0, "no memory for a cursor");
    return std::make_unique<LmdbCursor>(CursorHandle(cursor),
                                        seals_.empty() ? std::nullopt : std::optional(seals_.at(table)));
  }

 private:
  ReaderPool& pool_;
  MDB_txn* const txn_;
  const std::vector<MDB_dbi>& tables_;
  const std::vector<uint64_t>& seals_;
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

std::unique_ptr<Snapshot> make_snapshot(ReaderPool& pool, MDB_txn* txn, const std::vector<MDB_dbi>& tables,
                                        const std::vector<uint64_t>& seals) {
  return std::make_unique<LmdbSnapshot>(pool, txn, tables, seals);
}

}  // namespace tidemark::kv::lmdb
