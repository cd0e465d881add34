#include "shared/base/digest.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace tidemark {
namespace {

TEST(Digest, PiecesGiveTheDigestOfTheWhole) {
  Bytes whole(1u << 20);
  for (size_t i = 0; i < whole.size(); ++i) whole[i] = static_cast<uint8_t>(i * 131 >> 3);
  RunningDigest64 running;
  for (size_t piece : {size_t{1}, size_t{63}, size_t{4096}, size_t{65519}, whole.size()}) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{240}, size_t{241}, size_t{4096}, size_t{70000}, whole.size()}) {
      running.restart();
      ByteSpan left = ByteSpan(whole).first(size);
      while (!left.empty()) {
        size_t n = std::min(piece, left.size());
        running.add(left.first(n));
        left = left.subspan(n);
      }
      EXPECT_EQ(running.value(), digest64(ByteSpan(whole).first(size))) << size << " bytes in pieces of " << piece;
    }
  }
}

// What is on disk and on the wire must not depend on the processor: vectors of the XXH3 specification's own tests.
TEST(Digest, IsXxh3) {
  EXPECT_EQ(digest64({}), 0x2D06800538D394C2u);
  EXPECT_EQ(digest64(Bytes{}, Bytes{}), 0x2D06800538D394C2u);
  Bytes zeros(4096);
  EXPECT_EQ(digest64(ByteSpan(zeros).first(100), ByteSpan(zeros).subspan(100)), digest64(zeros));
}

}  // namespace
}  // namespace tidemark
