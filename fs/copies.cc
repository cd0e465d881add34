#include "fs/copies.h"

#include "fs/image.h"

namespace tidemark::fs {

Task<Result<std::vector<Digest128>>> Copies::shared_digests(Image& im, Extent range, uint32_t unit,
                                                            const DigestKey& key) {
  auto hashes = co_await hash_shared(im, range, unit, key);
  if (!hashes) co_return hashes.status();
  if (hashes->digests.size() != (range.length + unit - 1) / unit)
    co_return Status(Code::kCorruption, "hash answer of another length");
  co_return std::move(hashes->digests);
}

}  // namespace tidemark::fs
