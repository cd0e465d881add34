#include "shared/kv/store.h"

namespace tidemark::kv {
namespace {

constexpr size_t kOpOverheadBytes = 16;   // what a record costs beyond its key and value, roughly

}  // namespace

void WriteBatch::put(Table table, ByteSpan key, ByteSpan value) {
  ops_.push_back({Op::Kind::kPut, table, Bytes(key.begin(), key.end()), Bytes(value.begin(), value.end())});
  bytes_ += key.size() + value.size() + kOpOverheadBytes;
}

void WriteBatch::erase(Table table, ByteSpan key) {
  ops_.push_back({Op::Kind::kErase, table, Bytes(key.begin(), key.end()), {}});
  bytes_ += key.size() + kOpOverheadBytes;
}

void WriteBatch::erase_range(Table table, ByteSpan from, ByteSpan to) {
  ops_.push_back({Op::Kind::kEraseRange, table, Bytes(from.begin(), from.end()), Bytes(to.begin(), to.end())});
  bytes_ += from.size() + to.size() + kOpOverheadBytes;
}

void WriteBatch::append(WriteBatch&& other) {
  if (ops_.empty()) {
    ops_ = std::move(other.ops_);
  } else {
    ops_.insert(ops_.end(), std::make_move_iterator(other.ops_.begin()), std::make_move_iterator(other.ops_.end()));
  }
  bytes_ += other.bytes_;
  other.clear();
}

std::unique_ptr<Snapshot> Store::snapshot() {
  Result<std::unique_ptr<Snapshot>> taken = try_snapshot();
  TM_CHECK(taken.is_ok(), taken.status().to_string().c_str());
  return std::move(*taken);
}

}  // namespace tidemark::kv
