// Frames of the mirror protocol. PROTOCOL.md specifies the bytes.
//
// A frame is valid if and only if the magic is right, both lengths are within their bounds, both
// checksums match, the type is known, flags and request id fit one another, and the body decodes to its
// last byte. All but the last is checked here.
#pragma once

#include <array>
#include <cstdint>

#include "shared/base/bytes.h"
#include "shared/base/status.h"
#include "shared/wire/messages.h"

namespace tidemark::wire {

inline constexpr size_t kFrameHeaderBytes = 40;
inline constexpr uint32_t kFrameMagic = 0x31464D54;  // "TMF1"
enum FrameFlags : uint16_t { kResponseFlag = 1, kErrorFlag = 2 };

struct FrameHeader {
  Type type = Type::kPing;
  uint16_t flags = 0;
  uint64_t id = 0;
  uint32_t body_length = 0;
  uint32_t payload_length = 0;
  uint64_t payload_digest = 0;
  uint64_t digest = 0;

  bool is_response() const { return (flags & kResponseFlag) != 0; }
  bool is_error() const { return (flags & kErrorFlag) != 0; }
};

bool is_known_type(uint16_t type);
bool is_notification(Type type);
std::string_view type_name(Type type);

// Writes the 40 bytes before a body; fills in the lengths and both checksums.
void encode_frame_header(Type type, uint16_t flags, uint64_t id, ByteSpan body, ByteSpan payload,
                         uint8_t out[kFrameHeaderBytes]);
// The same for a payload whose digest64 the caller has already (0 for an empty one).
void encode_frame_header(Type type, uint16_t flags, uint64_t id, ByteSpan body, size_t payload_size,
                         uint64_t payload_digest, uint8_t out[kFrameHeaderBytes]);
// Checks all that can be known before a byte of body is taken in. kCorruption says what is off.
Result<FrameHeader> decode_frame_header(ByteSpan bytes);
// Checks the header's checksum over `bytes` (the 40 header bytes) and the body.
Status check_frame_body(const FrameHeader& header, ByteSpan bytes, ByteSpan body);
// `digest`: digest64 of the payload as it came; 0 for none.
Status check_frame_payload(const FrameHeader& header, uint64_t digest);

// A whole frame with its payload, for tests and tools. The hot path sends header, body and payload apart.
Bytes encode_frame(Type type, uint16_t flags, uint64_t id, ByteSpan body, ByteSpan payload);

// The hot path's messages, without a vector between. Their bytes are those of encode().
inline constexpr size_t kWriteBodyBytes = 49;
inline constexpr size_t kAppliedBodyBytes = 16;
void encode_write(const Write& message, uint8_t out[kWriteBodyBytes]);
Result<Write> decode_write(ByteSpan body);
void encode_applied(const Applied& message, uint8_t out[kAppliedBodyBytes]);
Result<Applied> decode_applied(ByteSpan body);

// Failure is a Status on its way.
Failure failure_of(const Status& status);
Status status_of(const Failure& failure);

}  // namespace tidemark::wire
