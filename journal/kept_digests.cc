#include "journal/kept_digests.h"

#include <algorithm>

#include "journal/records.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("scrub");
constexpr uint64_t kHeadRow = UINT64_MAX;

Bytes row_key(const ImageId& image, uint64_t row) { return kv::KeyBuilder().uuid(image).u64(row).bytes(); }

void seal(Bytes& value) {
  uint64_t checksum = digest64(value);
  Writer(value).u64(checksum);
}
std::optional<ByteSpan> unseal(ByteSpan value) {
  if (value.size() < 8) return std::nullopt;
  ByteSpan body = value.first(value.size() - 8);
  if (digest64(body) != load_le<uint64_t>(body.data() + body.size())) return std::nullopt;
  return body;
}
std::optional<ByteSpan> read_head(ByteSpan value) {
  auto body = unseal(value);
  return body && body->size() == 16 + sizeof(DigestKey::secret) ? body : std::nullopt;
}

}  // namespace

Status KeptDigests::load(kv::Snapshot& snapshot) {
  auto cursor = snapshot.cursor(kDrlDigestsTable);
  // Each image's head is its last row; the rows before it are not read.
  for (bool more = cursor->first(); more;) {
    if (cursor->key().size() != 24) return Status(Code::kCorruption, "drl: a key of table digests has the wrong length");
    ImageId image = Reader(cursor->key()).uuid();
    more = cursor->seek(row_key(image, kHeadRow));
    std::optional<ByteSpan> body;
    if (more && Reader(cursor->key()).uuid() == image) body = read_head(cursor->value());
    Known known;
    if (body) {
      Reader in(*body);
      known.epoch = in.id<Epoch>();
      known.run = in.id<Incarnation>();
      std::copy(body->begin() + 16, body->end(), known.key.secret.begin());
      images_.emplace(image, known);
    } else {
      kLog.warning("kept_digests_dropped", {{"image", image}, {"reason", "their head row is missing or damaged"}});
      images_.emplace(image, known);
      forget(image);
      if (more && Reader(cursor->key()).uuid() != image) continue;   // the next image's rows
    }
    if (more) more = cursor->next();
  }
  return Status::ok();
}

void KeptDigests::begin_run(Incarnation incarnation) {
  run_ = incarnation;
  std::vector<ImageId> dropped;
  for (auto& [image, known] : images_) {
    if (known.run.value + 1 != incarnation.value) {
      dropped.push_back(image);
      continue;
    }
    known.run = incarnation;
    put_head(image, known);
  }
  for (const ImageId& image : dropped) forget(image);
}

void KeptDigests::marked(const ImageId& image, Extent region) {
  if (!images_.contains(image) || TM_PLANTED("keep digests of written blocks")) return;
  touched_.insert(image);
  batch_.erase_range(kDrlDigestsTable, row_key(image, region.offset / kKeptBlockBytes),
                     row_key(image, (region.end() - 1) / kKeptBlockBytes + 1));
}

void KeptDigests::put_head(const ImageId& image, const Known& known) {
  Bytes value;
  Writer(value).id(known.epoch).id(known.run).raw(known.key.secret);
  seal(value);
  touched_.insert(image);
  batch_.put(kDrlDigestsTable, row_key(image, kHeadRow), value);
}

// Epochs grow by one with each grant: between two that follow each other nobody else wrote.
void KeptDigests::tenure(const ImageId& image, Epoch epoch) {
  auto it = images_.find(image);
  if (it == images_.end() || it->second.epoch == epoch) return;
  if (it->second.epoch.value + 1 != epoch.value) return forget(image);
  it->second.epoch = epoch;
  put_head(image, it->second);
}

void KeptDigests::forget(const ImageId& image) {
  if (images_.erase(image) == 0) return;
  touched_.insert(image);
  batch_.erase_range(kDrlDigestsTable, row_key(image, 0), row_key(image, kHeadRow));
  batch_.erase(kDrlDigestsTable, row_key(image, kHeadRow));
}

void KeptDigests::forget_all() {
  while (!images_.empty()) forget(images_.begin()->first);
}

const DigestKey& KeptDigests::key(const ImageId& image, Epoch epoch) {
  auto [it, fresh] = images_.try_emplace(image);
  if (fresh) {
    it->second.epoch = epoch;
    it->second.run = run_;
    env_.random(it->second.key.secret);
    put_head(image, it->second);
  }
  return it->second.key;
}

void KeptDigests::keep(const ImageId& image, Extent block, const std::vector<Digest128>& digests) {
  if (!images_.contains(image)) return;
  Bytes value;
  Writer w(value);
  w.u64(block.length);
  for (const Digest128& d : digests) w.u64(d.low).u64(d.high);
  seal(value);
  touched_.insert(image);
  batch_.put(kDrlDigestsTable, row_key(image, block.offset / kKeptBlockBytes), value);
}

std::optional<std::vector<Digest128>> KeptDigests::find(kv::Snapshot& snapshot, const ImageId& image,
                                                        Extent block) const {
  auto known = images_.find(image);
  if (known == images_.end()) return std::nullopt;
  // Those of before may still be there, under the key of before: their erasure goes with the head of today.
  auto head = snapshot.get(kDrlDigestsTable, row_key(image, kHeadRow));
  auto sealed = head ? read_head(*head) : std::nullopt;
  if (!sealed || !std::ranges::equal(sealed->subspan(16), known->second.key.secret)) return std::nullopt;
  auto value = snapshot.get(kDrlDigestsTable, row_key(image, block.offset / kKeptBlockBytes));
  if (!value) return std::nullopt;
  auto body = unseal(*value);
  const uint64_t units = (block.length + kKeptUnitBytes - 1) / kKeptUnitBytes;
  if (!body || body->size() != 8 + units * 16) {
    if (!body) kLog.warning("kept_digest_damaged", {{"image", image}, {"offset", block.offset}});
    return std::nullopt;
  }
  Reader in(*body);
  if (in.u64() != block.length) return std::nullopt;
  std::vector<Digest128> out(units);
  for (Digest128& d : out) {
    d.low = in.u64();
    d.high = in.u64();
  }
  return out;
}

kv::WriteBatch KeptDigests::take() {
  taken_ = std::exchange(touched_, {});
  return std::exchange(batch_, {});
}

void KeptDigests::commit_failed() {
  // Erasures among it did not become durable: they are said again, for the whole image.
  for (const ImageId& image : std::exchange(taken_, {})) {
    images_.try_emplace(image);
    forget(image);
  }
}

}  // namespace tidemark::journal
