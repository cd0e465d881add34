// Any bytes as a segment file, as such and with the checksums made right: what the parser accepts keeps
// its bounds, and a chunk decodes or is refused.
#include <cstdlib>

#include "journal/segment.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidemark;
  using namespace tidemark::journal;
  Bytes bytes(data, data + size);
  for (bool sealed : {false, true}) {
    if (sealed) {
      if (bytes.size() < kSegmentPreambleBytes) break;
      uint64_t head = load_le<uint32_t>(bytes.data() + 12);
      if (head > bytes.size() - kSegmentPreambleBytes) break;
      std::copy_n("TMSEGMT\n", 8, bytes.begin());
      store_le<uint16_t>(bytes.data() + 8, kSegmentVersion);
      store_le<uint64_t>(bytes.data() + 48, digest64(ByteSpan(bytes).subspan(kSegmentPreambleBytes, head)));
      store_le<uint64_t>(bytes.data() + 56, digest64(ByteSpan(bytes).first(56)));
    }
    auto reader = SegmentReader::parse(bytes);
    if (!reader) continue;
    if (reader->payload_bytes() > kSegmentPayloadBytesMax || reader->file_bytes() > limits::kBatchPartBytesMax) std::abort();
    for (uint32_t i = 0; i < reader->chunk_count(); ++i) {
      SegmentReader::ChunkPlace place = reader->chunk(i);
      if (place.stored.end() > reader->file_bytes()) std::abort();
      if (place.stored.end() > bytes.size()) continue;
      ByteSpan stored = ByteSpan(bytes).subspan(place.stored.offset, place.stored.length);
      Bytes out(place.raw_bytes);
      if (Status s = decode_chunk(stored, digest64(stored), out); !s && s.code() != Code::kCorruption) std::abort();
    }
  }
  return 0;
}
