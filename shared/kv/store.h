// Key-value store: named tables of ordered keys, atomic durable commits. LMDB in the real Env
// (lmdb_store.h), an ordered map with the same commit semantics in the simulated one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/status.h"

namespace tidemark::kv {

struct StoreOptions {
  std::vector<std::string> tables;                 // every table used; created if absent
  uint64_t map_bytes_max = 64ull << 30;            // address space reserved up front; the file grows as needed
  bool read_only = false;                          // for offline inspection
  bool create = true;                              // false: kNotFound where none is
};

// Index into StoreOptions::tables.
using Table = uint32_t;

// A set of changes that become durable together or not at all. Applied in order.
class WriteBatch {
 public:
  struct Op {
    enum class Kind : uint8_t { kPut, kErase, kEraseRange } kind;
    Table table;
    Bytes key;        // kEraseRange: first key erased
    Bytes value;      // kEraseRange: first key kept (empty: to the end of the table)
  };
  void put(Table table, ByteSpan key, ByteSpan value);
  void erase(Table table, ByteSpan key);
  void erase_range(Table table, ByteSpan from, ByteSpan to);
  void append(WriteBatch&& other);
  // Without what later operations of the batch undo. It does the same.
  void drop_superseded();
  bool empty() const { return ops_.empty(); }
  size_t bytes() const { return bytes_; }
  const std::vector<Op>& ops() const { return ops_; }
  void clear() { ops_.clear(); bytes_ = 0; }

 private:
  std::vector<Op> ops_;
  size_t bytes_ = 0;
};

// Iterates in key order. Keys and values are valid until the next move or the snapshot's end.
class Cursor {
 public:
  virtual ~Cursor() = default;
  virtual bool seek(ByteSpan key) = 0;        // first key >= key
  virtual bool seek_before(ByteSpan key) = 0; // last key < key
  virtual bool first() = 0;
  virtual bool last() = 0;
  virtual bool next() = 0;
  virtual bool previous() = 0;
  virtual ByteSpan key() const = 0;
  virtual ByteSpan value() const = 0;
};

// A consistent view of the last durable commit. Keep it briefly: an old one keeps freed pages from
// being used again. Loop thread or one worker; not shared between threads.
class Snapshot {
 public:
  virtual ~Snapshot() = default;
  virtual Result<Bytes> get(Table table, ByteSpan key) = 0;            // kNotFound if absent
  virtual std::unique_ptr<Cursor> cursor(Table table) = 0;
};

class Store {
 public:
  virtual ~Store() = default;   // waits for commits in flight; their callbacks do not run
  // After an I/O error, until it is opened anew, a store may refuse to be read as well.
  virtual Result<std::unique_ptr<Snapshot>> try_snapshot() = 0;
  // For those who could not go on without: an error ends the process.
  std::unique_ptr<Snapshot> snapshot();
  // Durable when `done` reports OK. Batches commit in the order of the calls; several may share one
  // transaction. An I/O error leaves the store unusable: every later commit fails the same way
  // (exit and recover). kOutOfSpace leaves it unchanged and usable.
  virtual void commit(WriteBatch batch, Callback<Status> done) = 0;
  // The same, waiting for it: for start-up and offline tools only, never with the loop running I/O.
  virtual Status commit_and_wait(WriteBatch batch) = 0;
  struct Usage { uint64_t file_bytes = 0, used_bytes = 0, map_bytes = 0; };
  virtual Result<Usage> usage() = 0;
};

// Big-endian 8-byte key, so that numbers sort as numbers.
inline std::array<uint8_t, 8> key_u64(uint64_t v) {
  std::array<uint8_t, 8> k;
  store_be64(k.data(), v);
  return k;
}
// Appends parts of a composite key.
class KeyBuilder {
 public:
  KeyBuilder& u64(uint64_t v) { auto k = key_u64(v); key_.insert(key_.end(), k.begin(), k.end()); return *this; }
  KeyBuilder& u32(uint32_t v) { uint8_t k[4]; store_be32(k, v); key_.insert(key_.end(), k, k + 4); return *this; }
  KeyBuilder& uuid(const Uuid& v) { key_.insert(key_.end(), v.bytes.begin(), v.bytes.end()); return *this; }
  KeyBuilder& text(std::string_view s) {
    ByteSpan b = as_bytes(s);
    key_.insert(key_.end(), b.begin(), b.end());
    return *this;
  }
  KeyBuilder& u8(uint8_t v) { key_.push_back(v); return *this; }
  operator ByteSpan() const { return key_; }  // NOLINT: implicit by design
  const Bytes& bytes() const { return key_; }

 private:
  Bytes key_;
};

}  // namespace tidemark::kv
