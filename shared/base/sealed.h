// Small files and values that say what they are: magic (8 bytes), u32 version, a body, u64 XXH3 of all bytes before.
// Valid if and only if all of these match; the body is its owner's.
#pragma once

#include <cstdint>
#include <string_view>

#include "shared/base/bytes.h"
#include "shared/base/status.h"

namespace tidemark {

void seal(Bytes& out);   // adds the checksum
// The body. kCorruption: cut short, another magic, a byte that changed. kUnsupported: version 0, or above `newest`.
// `version` is told wherever the checksum matches.
Result<ByteSpan> unseal(ByteSpan bytes, std::string_view magic, uint32_t newest, uint32_t* version = nullptr);

}  // namespace tidemark
