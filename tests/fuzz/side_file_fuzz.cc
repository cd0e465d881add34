// Any bytes as a brick marker and as an image's side metadata, with the checksum made right.
#include <cstdlib>

#include "shared/base/digest.h"
#include "shared/image/side_file.h"

namespace {
void check(bool holds) {
  if (!holds) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidemark;
  using namespace tidemark::image;
  Bytes bytes(data, data + size);
  for (std::string_view magic : {std::string_view("TMBRICK\x01", 8), std::string_view("TMIMAGE\x01", 8)}) {
    if (bytes.size() >= 20) {
      std::copy(magic.begin(), magic.end(), bytes.begin());
      store_le<uint32_t>(bytes.data() + 8, 1);
      store_le(bytes.data() + bytes.size() - 8, digest64(ByteSpan(bytes).first(bytes.size() - 8)));
    }
    if (auto marker = decode_marker(bytes)) check(encode_marker(*marker) == bytes);
    if (auto metadata = decode_metadata(bytes)) check(encode_metadata(*metadata) == bytes);
  }
  return 0;
}
