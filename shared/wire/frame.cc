#include "shared/wire/frame.h"

#include <cstring>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/wire/codec.h"

namespace tidemark::wire {

namespace {

constexpr size_t kDigestedHeaderBytes = 32;

// One pass over a small body is much cheaper than the streaming digest, and nearly all bodies are small.
uint64_t header_digest(const uint8_t* header, ByteSpan body) {
  constexpr size_t kSmall = 224;
  if (body.size() > kSmall) return digest64({header, kDigestedHeaderBytes}, body);
  uint8_t joined[kDigestedHeaderBytes + kSmall];
  std::memcpy(joined, header, kDigestedHeaderBytes);
  if (!body.empty()) std::memcpy(joined + kDigestedHeaderBytes, body.data(), body.size());
  return digest64({joined, kDigestedHeaderBytes + body.size()});
}

Status corrupt(std::string what) { return {Code::kCorruption, std::move(what)}; }

}  // namespace

std::string_view type_name(Type type) {
  switch (type) {
    case Type::kHello: return "hello";
    case Type::kPing: return "ping";
    case Type::kReport: return "report";
    case Type::kWrite: return "write";
    case Type::kZero: return "zero";
    case Type::kResize: return "resize";
    case Type::kFlush: return "flush";
    case Type::kRead: return "read";
    case Type::kHash: return "hash";
    case Type::kExtents: return "extents";
    case Type::kRepair: return "repair";
    case Type::kAcquire: return "acquire";
    case Type::kResume: return "resume";
    case Type::kYield: return "yield";
    case Type::kRecallNotify: return "recall_notify";
    case Type::kLevel: return "level";
    case Type::kStaleMap: return "stale_map";
    case Type::kTakeover: return "takeover";
    case Type::kFenceSeen: return "fence_seen";
    case Type::kTerms: return "terms";
    case Type::kYieldUnshipped: return "yield_unshipped";
    case Type::kLookup: return "lookup";
    case Type::kGetAttr: return "getattr";
    case Type::kSetAttr: return "setattr";
    case Type::kCreate: return "create";
    case Type::kUnlink: return "unlink";
    case Type::kRename: return "rename";
    case Type::kReadDir: return "readdir";
    case Type::kSetXattr: return "setxattr";
    case Type::kStatFs: return "statfs";
    case Type::kDrop: return "drop";
    case Type::kDump: return "dump";
    case Type::kInvalidateNotify: return "invalidate_notify";
  }
  return "unknown";
}

bool is_known_type(uint16_t type) { return type_name(static_cast<Type>(type)) != "unknown"; }
bool is_notification(Type type) { return type == Type::kRecallNotify || type == Type::kInvalidateNotify; }

void encode_frame_header(Type type, uint16_t flags, uint64_t id, ByteSpan body, ByteSpan payload,
                         uint8_t out[kFrameHeaderBytes]) {
  encode_frame_header(type, flags, id, body, payload.size(), payload.empty() ? 0 : digest64(payload), out);
}

void encode_frame_header(Type type, uint16_t flags, uint64_t id, ByteSpan body, size_t payload_size,
                         uint64_t payload_digest, uint8_t out[kFrameHeaderBytes]) {
  TM_CHECK(body.size() <= limits::kFrameBodyBytesMax && payload_size <= limits::kFramePayloadBytesMax,
           "frame over its bounds");
  store_le(out, kFrameMagic);
  store_le(out + 4, static_cast<uint16_t>(type));
  store_le(out + 6, flags);
  store_le(out + 8, id);
  store_le(out + 16, static_cast<uint32_t>(body.size()));
  store_le(out + 20, static_cast<uint32_t>(payload_size));
  store_le(out + 24, payload_digest);
  store_le(out + 32, header_digest(out, body));
}

Result<FrameHeader> decode_frame_header(ByteSpan b) {
  TM_CHECK(b.size() >= kFrameHeaderBytes, "short header");
  if (load_le<uint32_t>(b.data()) != kFrameMagic) return corrupt("frame without the magic TMF1");
  uint16_t raw_type = load_le<uint16_t>(b.data() + 4);
  FrameHeader h;
  h.type = static_cast<Type>(raw_type);
  h.flags = load_le<uint16_t>(b.data() + 6);
  h.id = load_le<uint64_t>(b.data() + 8);
  h.body_length = load_le<uint32_t>(b.data() + 16);
  h.payload_length = load_le<uint32_t>(b.data() + 20);
  h.payload_digest = load_le<uint64_t>(b.data() + 24);
  h.digest = load_le<uint64_t>(b.data() + 32);
  if (h.body_length > limits::kFrameBodyBytesMax) {
    return corrupt("frame body of " + std::to_string(h.body_length) + " bytes is over the bound");
  }
  if (h.payload_length > limits::kFramePayloadBytesMax) {
    return corrupt("frame payload of " + std::to_string(h.payload_length) + " bytes is over the bound");
  }
  if (!is_known_type(raw_type)) return corrupt("unknown frame type " + std::to_string(raw_type));
  if ((h.flags & ~(kResponseFlag | kErrorFlag)) != 0) return corrupt("unknown frame flags " + std::to_string(h.flags));
  if (h.is_error() && !h.is_response()) return corrupt("error flag on a request");
  if (is_notification(h.type) ? (h.id != 0 || h.is_response()) : h.id == 0) {
    return corrupt("request id does not fit type " + std::string(type_name(h.type)));
  }
  return h;
}

Status check_frame_body(const FrameHeader& header, ByteSpan bytes, ByteSpan body) {
  if (header_digest(bytes.data(), body) != header.digest) {
    return corrupt("checksum of the header and body of a " + std::string(type_name(header.type)) +
                   " frame does not match");
  }
  return Status::ok();
}

Status check_frame_payload(const FrameHeader& header, uint64_t digest) {
  if (digest != header.payload_digest) {
    return corrupt("checksum of the payload of a " + std::string(type_name(header.type)) + " frame does not match");
  }
  return Status::ok();
}

Bytes encode_frame(Type type, uint16_t flags, uint64_t id, ByteSpan body, ByteSpan payload) {
  Bytes out(kFrameHeaderBytes);
  encode_frame_header(type, flags, id, body, payload, out.data());
  out.insert(out.end(), body.begin(), body.end());
  out.insert(out.end(), payload.begin(), payload.end());
  return out;
}

void encode_write(const Write& m, uint8_t out[kWriteBodyBytes]) {
  std::memcpy(out, m.image.bytes.data(), 16);
  store_le(out + 16, m.epoch.value);
  store_le(out + 24, m.sequence.incarnation.value);
  store_le(out + 32, m.sequence.counter.value);
  store_le(out + 40, m.offset);
  out[48] = m.flags;
}

Result<Write> decode_write(ByteSpan b) {
  if (b.size() != kWriteBodyBytes) return corrupt("write message of the wrong length");
  Write m;
  std::memcpy(m.image.bytes.data(), b.data(), 16);
  m.epoch.value = load_le<uint64_t>(b.data() + 16);
  m.sequence.incarnation.value = load_le<uint64_t>(b.data() + 24);
  m.sequence.counter.value = load_le<uint64_t>(b.data() + 32);
  m.offset = load_le<uint64_t>(b.data() + 40);
  m.flags = b[48];
  return m;
}

void encode_applied(const Applied& m, uint8_t out[kAppliedBodyBytes]) {
  store_le(out, m.coordinator.value);
  store_le(out + 8, m.loss_id.value);
}

Result<Applied> decode_applied(ByteSpan b) {
  if (b.size() != kAppliedBodyBytes) return corrupt("applied message of the wrong length");
  Applied m;
  m.coordinator.value = load_le<uint64_t>(b.data());
  m.loss_id.value = load_le<uint64_t>(b.data() + 8);
  return m;
}

Failure failure_of(const Status& status) {
  // A message may carry a path or a name; the bound keeps the frame small whatever it holds.
  constexpr size_t kMessageMax = 4096;
  return {static_cast<uint8_t>(status.code()), static_cast<uint32_t>(status.sys_errno()),
          status.message().substr(0, kMessageMax)};
}

Status status_of(const Failure& f) {
  constexpr uint8_t kLast = static_cast<uint8_t>(Code::kUnsupported);
  Code code = f.code == 0 || f.code > kLast ? Code::kCorruption : static_cast<Code>(f.code);
  constexpr uint32_t kErrnoMax = 4095;
  return Status::with_errno(code, f.sys_errno > kErrnoMax ? 0 : static_cast<int>(f.sys_errno), f.message);
}

}  // namespace tidemark::wire
