// Any bytes as a value of the journal's tables, packed records with their checksum made right.
#include "journal/records.h"

#include "journal/shipper.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidemark;
  using namespace tidemark::journal;
  Bytes bytes(data, data + size);
  if (bytes.size() >= 34) store_le<uint64_t>(bytes.data() + bytes.size() - 8, digest64(ByteSpan(bytes).first(bytes.size() - 8)));
  // Each answers with a value or with corruption; reading past the input is what the sanitizers watch for.
  (void)(unpack_records(bytes).is_ok() || decode_tenure(bytes).is_ok() || decode_batch_row(bytes).is_ok() ||
         decode_drl_image(bytes).is_ok() || decode_replica_row(bytes).is_ok());
  return 0;
}
