#include "shared/kv/store.h"

#include <map>
#include <optional>
#include <set>
#include <utility>

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

void WriteBatch::drop_superseded() {
  using Kind = Op::Kind;
  std::set<std::pair<Table, Bytes>> later;                            // keys that are put or erased
  std::map<Table, std::map<Bytes, std::optional<Bytes>>> erased;      // ranges by their first key, none within another
  auto in_range = [&](const Op& op) {
    auto& ranges = erased[op.table];
    auto after = ranges.upper_bound(op.key);
    if (after == ranges.begin()) return false;
    const std::optional<Bytes>& end = std::prev(after)->second;       // none: to the end of the table
    if (!end) return true;
    return op.kind == Kind::kEraseRange ? !op.value.empty() && op.value <= *end : op.key < *end;
  };
  auto note_range = [&](const Op& op) {
    auto& ranges = erased[op.table];
    auto at = ranges.lower_bound(op.key);
    while (at != ranges.end() && (op.value.empty() || (at->second && *at->second <= op.value))) at = ranges.erase(at);
    ranges.insert_or_assign(op.key, op.value.empty() ? std::nullopt : std::optional(op.value));
  };
  std::vector<Op> kept;
  bytes_ = 0;
  for (auto op = ops_.rbegin(); op != ops_.rend(); ++op) {
    const bool range = op->kind == Kind::kEraseRange;
    if (range && !op->value.empty() && op->value <= op->key) continue;   // empty
    if (in_range(*op) || (!range && !later.emplace(op->table, op->key).second)) continue;
    if (range) note_range(*op);
    bytes_ += op->key.size() + op->value.size() + kOpOverheadBytes;
    kept.push_back(std::move(*op));
  }
  ops_.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
}

}  // namespace tidemark::kv
