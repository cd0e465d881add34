#include "shared/base/sealed.h"

#include <string>

#include "shared/base/digest.h"

namespace tidemark {

void seal(Bytes& out) {
  const uint64_t checksum = digest64(out);
  Writer(out).u64(checksum);
}

Result<ByteSpan> unseal(ByteSpan bytes, std::string_view magic, uint32_t newest, uint32_t* version) {
  constexpr size_t kMagic = 8, kHead = 12, kTail = 8;
  if (bytes.size() < kHead + kTail)
    return Status(Code::kCorruption, "cut short: " + std::to_string(bytes.size()) + " bytes");
  if (as_text(bytes.first(kMagic)) != magic) return Status(Code::kCorruption, "magic does not match: not such a file");
  const ByteSpan covered = bytes.first(bytes.size() - kTail);
  if (digest64(covered) != load_le<uint64_t>(bytes.data() + covered.size()))
    return Status(Code::kCorruption, "checksum does not match");
  const uint32_t found = load_le<uint32_t>(bytes.data() + kMagic);
  if (version != nullptr) *version = found;
  if (found == 0 || found > newest)
    return Status(Code::kUnsupported, "version " + std::to_string(found) + " is not known; use a newer Tidemark");
  return covered.subspan(kHead);
}

}  // namespace tidemark
