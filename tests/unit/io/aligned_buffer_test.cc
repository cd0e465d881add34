// Memory for direct I/O, on huge pages and not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "shared/io/file.h"

namespace tidemark::io {
namespace {

constexpr size_t kMiB = 1u << 20;

bool holds(const AlignedBuffer& buffer, uint8_t byte) {
  return std::all_of(buffer.data(), buffer.data() + buffer.size(), [byte](uint8_t b) { return b == byte; });
}

// More than one mapping's pieces of each of two sizes, given back in another order and taken again.
TEST(AlignedBuffer, OnHugePagesNoTwoShareAByteHoweverTheyComeAndGo) {
  std::vector<AlignedBuffer> buffers;
  auto fill = [&](size_t i) { std::memset(buffers[i].data(), static_cast<int>(i), buffers[i].size()); };
  for (size_t i = 0; i < 40; ++i) {
    buffers.push_back(AlignedBuffer::huge(i % 2 == 0 ? kMiB : kMiB + 5000));
    EXPECT_EQ(buffers[i].size(), i % 2 == 0 ? kMiB : kMiB + 8192);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffers[i].data()) % File::kAlignment, 0U);
    fill(i);
  }
  for (size_t i = 0; i < 40; ++i) ASSERT_TRUE(holds(buffers[i], static_cast<uint8_t>(i))) << i;
  for (size_t i = 1; i < 40; i += 3) buffers[i] = {};
  for (size_t i = 1; i < 40; i += 3) {
    buffers[i] = AlignedBuffer::huge(i % 2 == 0 ? kMiB : kMiB + 5000);
    fill(i);
  }
  for (size_t i = 0; i < 40; ++i) ASSERT_TRUE(holds(buffers[i], static_cast<uint8_t>(i))) << i;
}

TEST(AlignedBuffer, WhatWasAssignedToIsFreeAgain) {
  std::set<const uint8_t*> seen;
  AlignedBuffer buffer;
  for (int i = 0; i < 100; ++i) {
    buffer = AlignedBuffer::huge(kMiB);   // beside the one that it replaces
    seen.insert(buffer.data());
    std::memset(buffer.data(), i, buffer.size());
  }
#ifndef __SANITIZE_ADDRESS__
  EXPECT_LE(seen.size(), 2U);
#endif
  AlignedBuffer moved(std::move(buffer));
  EXPECT_EQ(moved.size(), kMiB);
  EXPECT_TRUE(holds(moved, 99));
  EXPECT_EQ(buffer.size(), 0U);   // what was moved from is empty
}

}  // namespace
}  // namespace tidemark::io
