#include "shared/kv/lmdb_write.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "shared/kv/lmdb_check.h"
#include "shared/kv/lmdb_store.h"

namespace tidemark::kv::lmdb {
namespace {

int compare(ByteSpan a, ByteSpan b) {
  int order = std::memcmp(a.data(), b.data(), std::min(a.size(), b.size()));
  if (order != 0) return order;
  return a.size() < b.size() ? -1 : a.size() > b.size() ? 1 : 0;
}

}  // namespace

bool keys_fit(const WriteBatch& batch) {
  for (const auto& op : batch.ops()) {
    bool range = op.kind == WriteBatch::Op::Kind::kEraseRange;
    if (op.key.size() > kKeyBytesMax || (!range && op.key.empty())) return false;
  }
  return true;
}

bool only_erases(const WriteBatch& batch) {
  for (const auto& op : batch.ops()) {
    if (op.kind == WriteBatch::Op::Kind::kPut) return false;
  }
  return true;
}

int Transaction::apply(const WriteBatch& batch) {
  for (const auto& op : batch.ops()) {
    int rc = 0;
    switch (op.kind) {
      case WriteBatch::Op::Kind::kPut: rc = put(op); break;
      case WriteBatch::Op::Kind::kErase: rc = erase(op); break;
      case WriteBatch::Op::Kind::kEraseRange: rc = erase_range(op); break;
    }
    if (rc != 0) return rc;
  }
  return 0;
}

int Transaction::commit() { return mdb_txn_commit(std::exchange(txn_, nullptr)); }

int Transaction::put(const WriteBatch::Op& op) {
  MDB_dbi dbi = tables_.at(op.table);
  Tail& tail = tails_[op.table];
  if (!tail.known) {
    if (int rc = learn_tail(dbi, tail); rc != 0) return rc;
  }
  bool append = tail.empty || compare(op.key, tail.key) > 0;
  MDB_val k = to_val(op.key), v{op.value.size() + (seals_.empty() ? 0 : kSealBytes), nullptr};
  int rc = mdb_put(txn_, dbi, &k, &v, (append ? MDB_APPEND : 0) | MDB_RESERVE);
  if (rc == 0) {
    auto* out = static_cast<uint8_t*>(v.mv_data);
    std::copy(op.value.begin(), op.value.end(), out);
    if (!seals_.empty()) store_le<uint64_t>(out + op.value.size(), seal_of(seals_[op.table], op.key, op.value));
  }
  if (rc == 0 && append) {
    tail.empty = false;
    tail.key = op.key;
  }
  return rc;
}

int Transaction::learn_tail(MDB_dbi dbi, Tail& tail) {
  MDB_cursor* raw = nullptr;
  if (int rc = mdb_cursor_open(txn_, dbi, &raw); rc != 0) return rc;
  CursorHandle cursor(raw);
  MDB_val k{}, v{};
  int rc = mdb_cursor_get(raw, &k, &v, MDB_LAST);
  if (rc != 0 && rc != MDB_NOTFOUND) return rc;
  tail.known = true;
  tail.empty = rc == MDB_NOTFOUND;
  ByteSpan key = to_span(k);
  if (!tail.empty) tail.key.assign(key.begin(), key.end());
  return 0;
}

int Transaction::erase(const WriteBatch::Op& op) {
  MDB_val k = to_val(op.key);
  tails_[op.table].known = false;
  int rc = mdb_del(txn_, tables_.at(op.table), &k, nullptr);
  return rc == MDB_NOTFOUND ? 0 : rc;
}

int Transaction::erase_range(const WriteBatch::Op& op) {
  MDB_dbi dbi = tables_.at(op.table);
  tails_[op.table].known = false;
  if (op.key.empty() && op.value.empty()) return mdb_drop(txn_, dbi, 0);
  MDB_cursor* raw = nullptr;
  if (int rc = mdb_cursor_open(txn_, dbi, &raw); rc != 0) return rc;
  CursorHandle cursor(raw);
  MDB_val k = to_val(op.key), v{};
  int rc = mdb_cursor_get(raw, &k, &v, op.key.empty() ? MDB_FIRST : MDB_SET_RANGE);
  while (rc == 0 && (op.value.empty() || compare(to_span(k), op.value) < 0)) {
    rc = mdb_cursor_del(raw, 0);
    // After a deletion the cursor stands before the successor: NEXT gives that one.
    if (rc == 0) rc = mdb_cursor_get(raw, &k, &v, MDB_NEXT);
  }
  return rc == MDB_NOTFOUND ? 0 : rc;
}

}  // namespace tidemark::kv::lmdb
