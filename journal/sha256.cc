// SHA-256 of batches and their parts, by OpenSSL.
#include <openssl/sha.h>

#include "journal/segment.h"

namespace tidemark::journal {

Sha256 sha256(ByteSpan data) {
  Sha256 out;
  SHA256(data.data(), data.size(), out.data());
  return out;
}

Sha256 batch_digest(const std::vector<Sha256>& part_digests) {
  Bytes all;
  for (const Sha256& d : part_digests) all.insert(all.end(), d.begin(), d.end());
  return sha256(all);
}

std::string digest_text(const Sha256& digest) { return digest == Sha256{} ? std::string() : to_hex(digest); }

Result<Sha256> parse_digest(std::string_view hex) {
  Sha256 out{};
  if (hex.empty()) return out;
  Status bad(Code::kInvalidArgument, "a digest has 64 hexadecimal digits");
  if (hex.size() != 2 * out.size()) return bad;
  auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (size_t i = 0; i < out.size(); ++i) {
    int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return bad;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return out;
}

}  // namespace tidemark::journal
