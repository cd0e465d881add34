// What a scrub could not decide, kept from one run of the daemon to the next: until a scrub finds the places equal, or
// the image is gone, the host is not healthy. So are, for the next run, the places that a scrub repairs, until both
// copies are synced: a crash in the midst may undo or tear a repair.
//
// In state_dir/names, table meta: key "undecided" and the image's id; value u64 offset, u64 length of each piece, the
// first kPiecesKept of them. A value that is no such list is an alarm all the same, of the image's first block.
#include <algorithm>

#include "fs/scrubber.h"
#include "shared/base/log.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("scrub");
constexpr std::string_view kKey = "undecided";
constexpr size_t kPiecesKept = 1000;
constexpr uint64_t kBlock = 4096;

Bytes key_of(const ImageId& id) {
  Bytes key(kKey.size() + id.bytes.size());
  std::copy(kKey.begin(), kKey.end(), key.begin());
  std::copy(id.bytes.begin(), id.bytes.end(), key.begin() + kKey.size());
  return key;
}
}  // namespace

Status Scrubber::load(kv::Store& store, kv::Table meta) {
  store_ = &store;
  meta_ = meta;
  auto snapshot = store_->snapshot();
  auto cursor = snapshot->cursor(meta_);
  for (bool more = cursor->seek(as_bytes(kKey)); more; more = cursor->next()) {
    const std::string_view key = as_text(cursor->key());
    if (!key.starts_with(kKey)) break;
    Reader of(cursor->key().subspan(kKey.size())), in(cursor->value());
    const ImageId id = of.uuid();
    if (!of.done()) return Status(Code::kCorruption, "what a scrub left undecided in state_dir/names");
    std::vector<Extent>& pieces = state_.undecided[id];
    while (in.ok() && !in.done()) {
      Extent piece;
      piece.offset = in.u64();
      piece.length = in.u64();
      if (in.ok()) pieces.push_back(piece);
    }
    if (!in.ok() || pieces.empty()) pieces.push_back({0, kBlock});
  }
  return Status::ok();
}

Status Scrubber::record_undecided(const ImageId& id, const std::vector<Extent>& pieces) {
  kv::WriteBatch batch;
  if (pieces.empty()) {
    batch.erase(meta_, key_of(id));
  } else {
    Bytes value;
    Writer out(value);
    for (size_t i = 0; i < std::min(pieces.size(), kPiecesKept); ++i) out.u64(pieces[i].offset).u64(pieces[i].length);
    batch.put(meta_, key_of(id), value);
  }
  return store_->commit_and_wait(std::move(batch));
}

// `repaired`: the scrub has put what it repaired on record.
void Scrubber::set_undecided(const ImageId& id, std::vector<Extent> pieces, bool repaired) {
  auto at = state_.undecided.find(id);
  if (at == state_.undecided.end() && pieces.empty() && !repaired) return;
  // Should it fail, this run has the alarm, and the next one what was kept before.
  if (Status s = record_undecided(id, pieces); !s) kLog.warning("undecided_not_kept", {{"image", id}, {"error", s}});
  if (pieces.empty()) state_.undecided.erase(id);
  else state_.undecided[id] = std::move(pieces);
}

// `known`: all images there are.
void Scrubber::forget_undecided(const std::vector<ImageId>& known) {
  std::vector<ImageId> gone;
  for (const auto& [id, pieces] : state_.undecided)
    if (std::find(known.begin(), known.end(), id) == known.end()) gone.push_back(id);
  for (const ImageId& id : gone) set_undecided(id, {});
}

Result<std::string> Scrubber::stop() {
  if (!state_.running) return Status(Code::kNotFound, "no scrub is running");
  state_.stop = true;
  kLog.info("stopping", {{"done", state_.done}, {"total", state_.total}});
  return std::string("{\"stopping\": true}");
}

}  // namespace tidemark::fs
