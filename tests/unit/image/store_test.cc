// The store against a model, and its rules one by one.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <random>

#include "tests/unit/image/store_fixture.h"

namespace {
std::atomic<uint64_t> allocations{0};
}
// Counted, for the test that the hot path does not allocate; thread sanitizer has operators of its own,
// under which that one test finds nothing.
#ifndef TIDEMARK_THREAD_SANITIZER
void* operator new(size_t size) {
  ++allocations;
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
#endif

namespace tidemark::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

Bytes random_bytes(std::mt19937_64& random, size_t n) {
  Bytes out(n);
  for (auto& b : out) b = static_cast<uint8_t>(random());
  return out;
}

struct ModelCase {
  uint32_t bricks, stripes;
  bool direct, refuse_punch;
};

class StoreModelTest : public StoreTest, public ::testing::WithParamInterface<ModelCase> {
 protected:
  // Every byte that is not zero lies in an extent, and extents are ordered and within the size.
  void check_extents(ImageCopy& copy, const Bytes& model) {
    uint64_t at = 0;
    while (at < model.size()) {
      auto data = copy.next_data(at);
      ASSERT_TRUE(data.is_ok());
      ASSERT_GE(data->offset, at);
      ASSERT_LE(data->end(), model.size());
      ASSERT_TRUE(std::all_of(model.begin() + static_cast<long>(at), model.begin() + static_cast<long>(data->offset),
                              [](uint8_t b) { return b == 0; }))
          << "hole at " << at << " up to " << data->offset;
      if (data->length == 0) break;
      at = data->end();
    }
  }
};

TEST_P(StoreModelTest, RandomOperationsMatchAModel) {
  const ModelCase& p = GetParam();
  std::mt19937_64 random(p.bricks * 100 + p.stripes * 10 + p.direct);
  StorageGroupOptions o = options(p.bricks, p.stripes);
  o.direct = p.direct;
  auto group = open_group(o);
  env_.faults.refuse_punch = p.refuse_punch;
  Bytes model(1'000'003);
  auto copy = *group->create(image_id(1), model.size());
  for (int step = 0; step < 400; ++step) {
    auto mode = random() % 2 == 0 ? io::IoMode::kInline : io::IoMode::kQueued;
    uint64_t offset = model.empty() ? 0 : random() % model.size();
    if (random() % 3 == 0) offset = offset / 4096 * 4096;
    uint64_t length = std::min<uint64_t>(model.size() - offset, random() % (random() % 4 == 0 ? 400'000 : 9'000));
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: {
        Bytes data = random_bytes(random, length);
        ASSERT_TRUE(write(*copy, offset, data, mode).is_ok());
        std::copy(data.begin(), data.end(), model.begin() + static_cast<long>(offset));
        break;
      }
      case 3:
        ASSERT_TRUE(zero(*copy, {offset, length}).is_ok());
        std::fill_n(model.begin() + static_cast<long>(offset), length, 0);
        break;
      case 4:
        if (step % 4 == 0) {
          uint64_t size = random() % 1'500'000;
          ASSERT_TRUE(resize(*copy, size).is_ok());
          model.resize(size);
        }
        break;
      case 5:
        ASSERT_TRUE(sync(*copy, mode).is_ok());
        if (random() % 4 == 0) {
          copy.reset();
          copy = *group->open_image(image_id(1));
          ASSERT_EQ(copy->size(), model.size());
        }
        break;
      case 6:
        ASSERT_TRUE(wait([&](Callback<Status> done) { copy->allocate(offset, length, std::move(done)); }).is_ok());
        break;
      default: {
        Bytes got = read(*copy, offset, length, mode);
        ASSERT_TRUE(std::equal(got.begin(), got.end(), model.begin() + static_cast<long>(offset))) << "step " << step;
      }
    }
    if (step % 50 == 0) check_extents(*copy, model);
  }
  EXPECT_EQ(read(*copy, 0, model.size()), model);
  check_extents(*copy, model);
}

INSTANTIATE_TEST_SUITE_P(Shapes, StoreModelTest,
                         ::testing::Values(ModelCase{1, 1, true, false}, ModelCase{1, 1, false, false},
                                           ModelCase{3, 3, true, false}, ModelCase{3, 2, true, true},
                                           ModelCase{1, 1, true, true}));

TEST_F(StoreTest, ManyOperationsInFlightOnDisjointGranules) {
  auto group = open_group(options(3, 3));
  auto copy = *group->create(image_id(1), 4u << 20);
  std::mt19937_64 random(3);
  Bytes model = random_bytes(random, 4u << 20);
  size_t done = 0, started = 0;
  for (uint64_t at = 0; at < model.size(); at += 8192, ++started) {
    // Odd lengths within two granules, memory at odd addresses: all go through bounce buffers.
    ByteSpan data = ByteSpan(model).subspan(at + 1, 8190);
    copy->write(at + 1, data, io::IoMode::kQueued, [&](Status s) {
      EXPECT_TRUE(s.is_ok());
      ++done;
    });
  }
  EXPECT_TRUE(real_.run_until([&] { return done == started; }, std::chrono::seconds(60)));
  EXPECT_TRUE(copy->idle());
  for (uint64_t at = 0; at < model.size(); at += 8192) model[at] = model[at + 8191] = 0;
  EXPECT_EQ(read(*copy, 0, model.size(), io::IoMode::kQueued), model);
}

TEST_F(StoreTest, RangesPastTheEndAreRefused) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 5000);
  Bytes data(10);
  EXPECT_EQ(write(*copy, 4991, data).code(), Code::kInvalidArgument);
  EXPECT_EQ(write(*copy, ~0ull - 3, data).code(), Code::kInvalidArgument);
  EXPECT_EQ(zero(*copy, {5001, 0}).code(), Code::kInvalidArgument);
  EXPECT_TRUE(write(*copy, 4990, data).is_ok());
  EXPECT_TRUE(write(*copy, 5000, {}).is_ok());
}

TEST_F(StoreTest, AGrowAfterAShrinkShowsZeros) {
  auto group = open_group(options(2, 2));
  auto copy = *group->create(image_id(1), 300'000);
  ASSERT_TRUE(write(*copy, 0, Bytes(300'000, 0xAB)).is_ok());
  ASSERT_TRUE(resize(*copy, 100'001).is_ok());
  ASSERT_TRUE(resize(*copy, 300'000).is_ok());
  Bytes expected(300'000, 0);
  std::fill_n(expected.begin(), 100'001, 0xAB);
  EXPECT_EQ(read(*copy, 0, 300'000), expected);
}

TEST_F(StoreTest, AResizeNeedsANewerGeneration) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 8192, Generation(5));
  Status s = wait([&](Callback<Status> done) { copy->resize(4096, Generation(5), std::move(done)); });
  EXPECT_EQ(s.code(), Code::kInvalidArgument);
  EXPECT_TRUE(wait([&](Callback<Status> done) { copy->resize(4096, Generation(9), std::move(done)); }).is_ok());
  copy.reset();
  copy = *group->open_image(image_id(1));
  EXPECT_EQ(copy->size(), 4096u);
  EXPECT_EQ(copy->size_generation(), Generation(9));
}

TEST_F(StoreTest, NewImagesAndDiscardedRangesHoldNoStorage) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 1ull << 40);
  EXPECT_EQ(*copy->allocated_bytes(), 0u);
  EXPECT_EQ(copy->next_data(0)->length, 0u);
  ASSERT_TRUE(write(*copy, 1ull << 30, Bytes(1u << 20, 1)).is_ok());
  EXPECT_EQ(*copy->next_data(0), (Extent{1ull << 30, 1u << 20}));
  EXPECT_EQ(*copy->allocated_bytes(), 1u << 20);
  ASSERT_TRUE(zero(*copy, {1ull << 30, 1u << 20}).is_ok());
  EXPECT_EQ(*copy->allocated_bytes(), 0u);
  EXPECT_EQ(*copy->next_data(0), (Extent{1ull << 40, 0}));
}

// A brick that hangs would keep who asks, and with him the loop.
TEST_F(StoreTest, WhatIsAllocatedIsAnsweredFromMemoryWhileTheGroupIsBusy) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 1 << 20), other = *group->create(image_id(2), 1 << 20);
  ASSERT_TRUE(write(*copy, 0, Bytes(65536, 1)).is_ok());
  EXPECT_EQ(*copy->allocated_bytes(), 65536u);
  const Bytes data(65536, 2);
  Status written = wait([&](Callback<Status> done) {
    other->write(0, data, io::IoMode::kQueued, std::move(done));
    EXPECT_EQ(*other->allocated_bytes(), 65536u) << "what is being written counts already";
    EXPECT_EQ(*copy->allocated_bytes(), 65536u);
    EXPECT_TRUE(copy->idle()) << "asking begins nothing that a removal would have to wait for";
  });
  EXPECT_TRUE(written.is_ok());
  EXPECT_TRUE(write(*other, 0, Bytes(65536, 3)).is_ok());
  ASSERT_TRUE(sync(*other).is_ok());
  const Bytes more(4096, 4);
  written = wait([&](Callback<Status> done) {
    copy->write(0, more, io::IoMode::kQueued, std::move(done));
    EXPECT_EQ(*other->allocated_bytes(), 65536u) << "written twice, counted once since the sync looked";
  });
  EXPECT_TRUE(written.is_ok());
  ASSERT_TRUE(real_.run_until([&] { return copy->idle() && other->idle(); }, std::chrono::seconds(10)));
  EXPECT_EQ(*other->allocated_bytes(), 65536u) << "exact once nothing is under way";
}

TEST_F(StoreTest, OneCopyAnImageAndNoImageTwice) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 4096);
  EXPECT_EQ(group->open_image(image_id(1)).status().code(), Code::kBusy);
  EXPECT_EQ(group->create(image_id(1), 4096).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(group->open_image(image_id(2)).status().code(), Code::kNotFound);
  EXPECT_EQ(group->remove(image_id(2)).code(), Code::kNotFound);
  EXPECT_EQ(group->create(image_id(3), ~0ull).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(group->contains(image_id(1)));
  EXPECT_FALSE(group->contains(image_id(3)));
}

TEST_F(StoreTest, ARemovedImageGoesOnUntilItIsClosed) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 65536);
  ASSERT_TRUE(write(*copy, 0, Bytes(65536, 7)).is_ok());
  ASSERT_TRUE(group->remove(image_id(1)).is_ok());
  EXPECT_FALSE(group->contains(image_id(1)));
  EXPECT_EQ(read(*copy, 0, 65536), Bytes(65536, 7));
  EXPECT_TRUE(write(*copy, 100, Bytes(100, 8)).is_ok());
  EXPECT_TRUE(resize(*copy, 70'000).is_ok());
  EXPECT_FALSE(group->contains(image_id(1))) << "a resize does not bring it back";
  auto fresh = *group->create(image_id(1), 4096);
  copy.reset();
  EXPECT_EQ(group->open_image(image_id(1)).status().code(), Code::kBusy) << "the new one is the open one";
  EXPECT_EQ(read(*fresh, 0, 4096), Bytes(4096, 0));
}

TEST_F(StoreTest, TheCatalogueIsRebuiltFromTheBricks) {
  auto group = open_group(options(3, 2));
  for (uint8_t i = 1; i <= 20; ++i) ASSERT_TRUE(group->create(image_id(i), i * 1000u, Generation(i)).is_ok());
  group = open_group(options(3, 2));
  auto catalogue = *group->list();
  EXPECT_TRUE(catalogue.damaged.empty());
  ASSERT_EQ(catalogue.images.size(), 20u);
  for (uint8_t i = 1; i <= 20; ++i) {
    EXPECT_EQ(catalogue.images[i - 1u].id, image_id(i));
    EXPECT_EQ(catalogue.images[i - 1u].size, i * 1000u);
    EXPECT_EQ(catalogue.images[i - 1u].size_generation, Generation(i));
    EXPECT_EQ(catalogue.images[i - 1u].layout.stripe_count(), 2u);
  }
}

TEST_F(StoreTest, EveryFlippedByteOfASideFileIsNoticedAndTheOthersAreListed) {
  auto group = open_group(options(1));
  ASSERT_TRUE(group->create(image_id(1), 4096).is_ok());
  ASSERT_TRUE(group->create(image_id(2), 4096).is_ok());
  std::string path = metadata_path(brick(0), image_id(1));
  for (uint64_t i = 0; i < fs::file_size(path); ++i) {
    flip_byte(path, i);
    auto opened = group->open_image(image_id(1));
    EXPECT_EQ(opened.status().code(), Code::kCorruption) << "byte " << i;
    EXPECT_THAT(opened.status().message(), HasSubstr(path));
    auto catalogue = *group->list();
    EXPECT_EQ(catalogue.images.size(), 1u);
    EXPECT_EQ(catalogue.damaged.size(), 1u);
    flip_byte(path, i);
  }
  fs::rename(path, path + "x");
  fs::create_directories(image_directory(brick(0), image_id(9)));
  fs::rename(path + "x", metadata_path(brick(0), image_id(9)));
  EXPECT_EQ(group->open_image(image_id(9)).status().code(), Code::kCorruption) << "a side file under another's name";
}

TEST_F(StoreTest, ALostObjectIsNamed) {
  auto group = open_group(options(1));
  ASSERT_TRUE(group->create(image_id(1), 4096).is_ok());
  std::string path = object_path(brick(0), image_id(1), Generation(1), 0);
  fs::remove(path);
  auto opened = group->open_image(image_id(1));
  EXPECT_EQ(opened.status().code(), Code::kCorruption);
  EXPECT_THAT(opened.status().message(), HasSubstr(path));
}

TEST_F(StoreTest, SteadyStateOfOneBrickDoesNotAllocate) {
  auto group = open_group(options(1));
  auto copy = *group->create(image_id(1), 1u << 20);
  io::AlignedBuffer buffer(65536);
  std::fill_n(buffer.data(), buffer.size(), 5);
  int failures = 0;
  auto turn = [&] {
    auto done = [&](Status s) { failures += !s; };
    copy->write(4096, buffer.span().first(8192), io::IoMode::kInline, done);
    copy->read(4096, buffer.span().first(8192), io::IoMode::kInline, done);
    copy->write(513, buffer.span().subspan(3, 5000), io::IoMode::kInline, done);
    copy->read(513, buffer.span().subspan(3, 5000), io::IoMode::kInline, done);
  };
  turn();
  uint64_t before = allocations;
  for (int i = 0; i < 10; ++i) turn();
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(failures, 0);
}

}  // namespace
}  // namespace tidemark::image
