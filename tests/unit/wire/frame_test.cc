#include "shared/wire/frame.h"

#include <gtest/gtest.h>

#include "shared/base/limits.h"
#include "shared/wire/codec.h"

namespace tidemark::wire {
namespace {

Bytes ping_frame() { return encode_frame(Type::kPing, 0, 7, encode(Ping{0x1122334455667788}), {}); }

TEST(Frame, HasItsGoldenBytes) {
  Bytes payload = {1, 2, 3, 4};
  EXPECT_EQ(to_hex(encode_frame(Type::kPing, kResponseFlag, 0x0102030405060708, encode(Ping{9}), payload)),
            "544d463102000100080706050403020108000000040000002246ac33907b8b981e7da541ce17690f0900000000000000"
            "01020304");
}

TEST(Frame, HeaderSurvivesTheWay) {
  Bytes frame = ping_frame();
  Result<FrameHeader> h = decode_frame_header(frame);
  ASSERT_TRUE(h) << h.status().message();
  EXPECT_EQ(h->type, Type::kPing);
  EXPECT_EQ(h->id, 7u);
  EXPECT_EQ(h->body_length, 8u);
  EXPECT_EQ(h->payload_length, 0u);
  EXPECT_TRUE(check_frame_body(*h, frame, ByteSpan(frame).subspan(kFrameHeaderBytes)));
}

TEST(Frame, SmallAndLargeBodiesHaveTheSameChecksumRule) {
  // One byte below and above the size at which the digest is taken in two pieces.
  for (size_t size : {0u, 1u, 223u, 224u, 225u, 4096u, limits::kFrameBodyBytesMax}) {
    Bytes body(size, 0xAB);
    Bytes frame = encode_frame(Type::kHash, 0, 1, body, {});
    EXPECT_EQ(load_le<uint64_t>(frame.data() + 32), digest64(ByteSpan(frame).first(32), body)) << size;
  }
}

TEST(Frame, EveryFlippedBitIsNoticed) {
  Bytes payload = {1, 2, 3, 4, 5};
  Bytes good = encode_frame(Type::kWrite, 0, 7, Bytes(kWriteBodyBytes, 3), payload);
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    Bytes bad = good;
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    Result<FrameHeader> h = decode_frame_header(bad);
    if (!h) continue;
    if (h->body_length != kWriteBodyBytes || h->payload_length != payload.size()) {
      // The lengths would be read wrongly; the checksum of the header says so whatever follows.
      Bytes body(h->body_length, 3);
      EXPECT_FALSE(check_frame_body(*h, bad, body)) << "bit " << bit;
      continue;
    }
    bool ok = check_frame_body(*h, bad, ByteSpan(bad).subspan(kFrameHeaderBytes, kWriteBodyBytes)).is_ok() &&
              check_frame_payload(*h, digest64(ByteSpan(bad).last(payload.size()))).is_ok();
    EXPECT_FALSE(ok) << "bit " << bit;
  }
}

struct BadHeader {
  const char* what;
  size_t offset;
  uint32_t value;
  size_t width;
};

TEST(Frame, BoundsAreCheckedBeforeABodyIsTakenIn) {
  const BadHeader cases[] = {
      {"magic", 0, 0x32464D54, 4},
      {"type 0", 4, 0, 2},
      {"type 999", 4, 999, 2},
      {"unknown flag", 6, 4, 2},
      {"error without response", 6, kErrorFlag, 2},
      {"id 0 on a request", 8, 0, 4},
      {"body of 4 GiB", 16, 0xFFFFFFFF, 4},
      {"body one over", 16, limits::kFrameBodyBytesMax + 1, 4},
      {"payload of 4 GiB", 20, 0xFFFFFFFF, 4},
      {"payload one over", 20, limits::kFramePayloadBytesMax + 1, 4},
  };
  for (const BadHeader& c : cases) {
    Bytes frame = ping_frame();
    if (c.width == 2) store_le(frame.data() + c.offset, static_cast<uint16_t>(c.value));
    else store_le(frame.data() + c.offset, c.value);
    Result<FrameHeader> h = decode_frame_header(frame);
    ASSERT_FALSE(h) << c.what;
    EXPECT_EQ(h.status().code(), Code::kCorruption) << c.what;
  }
}

TEST(Frame, NotificationsHaveNoIdAndNoAnswer) {
  EXPECT_TRUE(decode_frame_header(encode_frame(Type::kRecallNotify, 0, 0, {}, {})));
  EXPECT_FALSE(decode_frame_header(encode_frame(Type::kRecallNotify, 0, 1, {}, {})));
  EXPECT_FALSE(decode_frame_header(encode_frame(Type::kInvalidateNotify, kResponseFlag, 0, {}, {})));
}

}  // namespace
}  // namespace tidemark::wire
