// A peer's bytes on a mirror connection. Frames get right checksums (a fuzzer does not guess them), some are
// damaged after that, and they come in pieces. Nothing but a closed connection may come of a wrong one, and what
// decodes to a message is that message's only encoding.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <optional>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/io/real_env.h"
#include "shared/wire/codec.h"
#include "shared/wire/connection.h"
#include "shared/wire/frame.h"
#include "shared/wire/messages.h"
#include "tests/unit/wire/fake_stream.h"

namespace {

using namespace tidemark;
using namespace tidemark::wire;

void check(bool holds) {
  if (!holds) std::abort();
}

template <class... M>
void decode_as_each(ByteSpan body) {
  auto one = [&]<class T>(std::type_identity<T>) {
    if (Result<T> message = decode<T>(body)) check(encode(*message) == Bytes(body.begin(), body.end()));
  };
  (one(std::type_identity<M>()), ...);
}

void decode_all(ByteSpan body) {
  decode_as_each<Hello, HelloAnswer, Ping, Write, Zero, Resize, Applied, Flush, Flushed, Read, Hash, Hashes, Extents,
                 ExtentList, Repair, Acquire, Grant, Resume, Resumed, Yield, Yielded, RecallNotify, StaleMap, Level,
                 Lookup, GetAttr, SetAttr, Create, Unlink, Rename, Changed, ReadDir, DirEntries, SetXattr, StatFs,
                 StatFsAnswer, Drop, Dump, InvalidateNotify, Failure>(body);
  if (Result<Write> fast = decode_write(body)) check(decode<Write>(body).is_ok());
  if (Result<Applied> fast = decode_applied(body)) check(decode<Applied>(body).is_ok());
}

Bytes take_bytes(FuzzedDataProvider& in, size_t max) {
  auto bytes = in.ConsumeBytes<uint8_t>(in.ConsumeIntegralInRange<size_t>(0, max));
  return {bytes.begin(), bytes.end()};
}

void converse(FuzzedDataProvider& in) {
  static io::RealEnv env;
  static auto pool = PayloadPool::make();  // shared with the payloads
  auto wire = std::make_shared<FakeStream::Wire>();
  Connection link(env, std::make_unique<FakeStream>(wire, "host1"), pool);
  link.start({.on_request =
                  [&](Request r) {
                    decode_all(r.body);
                    check(r.payload.size() <= limits::kFramePayloadBytesMax);
                    link.respond_failure(r.type, r.id, Status(Code::kUnsupported, "fuzz"));
                  },
              .on_notify = [](Type, ByteSpan body) { decode_all(body); },
              .on_close = [](Status) {}});
  int answered = 0, asked = 0;
  uint64_t last_id = 0;
  for (int i = 0; i < 8 && in.remaining_bytes() > 0 && wire->stream != nullptr && !wire->closed; ++i) {
    if (in.ConsumeBool()) {
      wire->sent.clear();
      ++asked;
      const Bytes read = encode(Read{});
      link.send_request(Type::kRead, ByteSpan(read), ByteSpan(), [&](Result<Answer>) { ++answered; });
      last_id = load_le<uint64_t>(wire->sent.data() + 8);
    }
    auto type = static_cast<Type>(in.ConsumeIntegralInRange<uint16_t>(0, 48));
    auto flags = in.ConsumeIntegralInRange<uint16_t>(0, 4);
    uint64_t id = in.ConsumeBool() ? last_id : in.ConsumeIntegral<uint64_t>();
    Bytes body = take_bytes(in, 600), payload = take_bytes(in, 5000);
    Bytes frame = encode_frame(type, flags, id, body, payload);
    if (in.ConsumeIntegralInRange(0, 7) == 0) {
      frame[in.ConsumeIntegralInRange<size_t>(0, frame.size() - 1)] ^= in.ConsumeIntegral<uint8_t>();
    }
    ByteSpan left = frame;
    while (!left.empty() && !wire->closed) {
      size_t n = in.ConsumeBool() ? left.size() : in.ConsumeIntegralInRange<size_t>(1, left.size());
      wire->stream->arrive(left.first(n));
      left = left.subspan(n);
    }
  }
  if (wire->stream != nullptr) wire->stream->end(Status(Code::kUnavailable, "the input's end"));
  check(answered == asked);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  log::set_sink_for_testing([](log::Level, std::string_view, std::string_view) {});
  decode_all({data, size});
  FuzzedDataProvider in(data, size);
  converse(in);
  return 0;
}
