// Properties of the replica's order, over random histories of several hosts delivered in every order.
#include "replica/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/repeat.h"
#include "tests/unit/replica/batch_maker.h"

namespace tidemark::replica {
namespace {

constexpr size_t kHosts = 3, kImages = 4;

// A history as it happened: hosts write, cut, yield and take over, create images. Yields and creates
// cut the host's journal, as the protocol has it.
class World {
 public:
  explicit World(uint64_t seed) : random_(seed), hosts_(kHosts), images_(kImages) {
    for (size_t h = 0; h < kHosts; ++h) hosts_[h].name = "host" + std::to_string(h);
  }
  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const size_t h = random_() % kHosts, image = random_() % kImages;
      switch (random_() % 8) {
        case 0: cut(h); break;
        case 1: restart(h); break;
        default: write(h, image);
      }
    }
    for (size_t h = 0; h < kHosts; ++h) cut(h);
  }
  std::vector<std::vector<BatchFacts>> streams() const {
    std::vector<std::vector<BatchFacts>> out;
    for (const Host& host : hosts_) out.push_back(host.shipped);
    if (!shared_.empty()) out.push_back(shared_);
    return out;
  }

 private:
  struct Image {
    bool created = false;
    size_t holder = kHosts;
    Epoch epoch;
    wire::TenureParent parent;
    WriteSequence last;
  };
  struct Host {
    std::string name;
    WriteSequence now{Incarnation(1), Counter(0)};
    BatchNumber next{1};
    std::map<size_t, SliceFacts> open;
    std::vector<ImageId> created;
    std::vector<BatchFacts> shipped;
  };

  void write(size_t h, size_t i) {
    Host& host = hosts_[h];
    Image& image = images_[i];
    if (!image.created) {
      image.created = true;
      host.created.push_back(test_uuid(i));
      shared_.push_back({.source = "shared", .number = BatchNumber(shared_.size() + 1),
                         .last = {Incarnation(1), Counter(shared_.size() + 1)}, .created = {test_uuid(i)}});
    }
    if (image.holder != h) {
      if (image.holder != kHosts) cut(image.holder);
      image.parent = {
          .epoch = image.epoch, .source = image.holder == kHosts ? "" : hosts_[image.holder].name, .last = image.last};
      image.holder = h;
      image.epoch = image.epoch.next();
      if (host.open.contains(i)) cut(h);   // a batch holds one tenure of an image
    }
    host.now.counter = host.now.counter.next();
    image.last = host.now;
    host.open[i] = {test_uuid(i), image.epoch, image.parent};
  }
  void cut(size_t h) {
    Host& host = hosts_[h];
    BatchFacts batch{.source = host.name, .number = host.next, .last = host.now};
    for (auto& [i, slice] : host.open) batch.slices.push_back(slice);
    batch.created = std::move(host.created);
    host.created.clear();
    host.open.clear();
    host.next = host.next.next();
    host.shipped.push_back(std::move(batch));
  }
  void restart(size_t h) {
    cut(h);
    hosts_[h].now = {hosts_[h].now.incarnation.next(), Counter(0)};
  }

  std::mt19937_64 random_;
  std::vector<Host> hosts_;
  std::vector<Image> images_;
  std::vector<BatchFacts> shared_;
};

// Delivers the streams, each in number order, interleaved at random.
std::vector<ApplyAction> deliver(std::vector<std::vector<BatchFacts>> streams, uint64_t seed, OrderState& state) {
  std::mt19937_64 random(seed);
  std::vector<size_t> at(streams.size());
  std::vector<ApplyAction> applied;
  for (;;) {
    std::vector<size_t> left;
    for (size_t s = 0; s < streams.size(); ++s) {
      if (at[s] < streams[s].size()) left.push_back(s);
    }
    if (left.empty()) return applied;
    // Whole runs of one source at times, so that others lie far behind.
    const size_t s = left[random() % left.size()];
    for (uint64_t n = random() % 5 == 0 ? 50 : 1; n > 0 && at[s] < streams[s].size(); --n) {
      for (ApplyAction& a : step(state, streams[s][at[s]++])) applied.push_back(std::move(a));
    }
  }
}

struct Place { Epoch epoch; WriteSequence last; };

void check(const std::vector<ApplyAction>& applied) {
  std::map<std::string, BatchNumber> numbers;
  std::map<ImageId, Place> images;
  std::map<std::string, WriteSequence> through;
  for (const ApplyAction& a : applied) {
    const BatchFacts& b = a.batch;
    EXPECT_EQ(b.number, numbers[b.source].next()) << b.source;
    numbers[b.source] = b.number;
    EXPECT_TRUE(a.branched.empty());
    for (const SliceFacts& s : b.slices) {
      Place& place = images[s.image];
      EXPECT_GE(s.epoch, place.epoch);
      if (s.epoch > place.epoch && s.parent.epoch.value != 0) {
        EXPECT_EQ(place.epoch, s.parent.epoch) << "an epoch was skipped";
        EXPECT_GE(through[s.parent.source], s.parent.last);
      }
      place = {s.epoch, b.last};
    }
    through[b.source] = std::max(through[b.source], b.last);
  }
}

TEST(Order, EveryArrivalOrderGivesALegalHistoryThatHoldsNothingBack) {
  for (uint64_t seed = 1; seed <= seeds_of(60); ++seed) {
    World world(seed);
    world.run(300);
    const auto streams = world.streams();
    size_t total = 0;
    for (const auto& s : streams) total += s.size();
    for (uint64_t arrival = 1; arrival <= 10; ++arrival) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " arrival " + std::to_string(arrival));
      OrderState state;
      auto applied = deliver(streams, arrival, state);
      EXPECT_EQ(state.held(), 0u);
      EXPECT_EQ(applied.size(), total);
      check(applied);
      if (HasFailure()) return;
    }
  }
}

TEST(Order, EveryImagesSequenceIsTheSameWhateverTheArrivalOrder) {
  for (uint64_t seed = 100; seed < 130; ++seed) {
    World world(seed);
    world.run(200);
    std::map<ImageId, std::vector<std::pair<std::string, uint64_t>>> first;
    for (uint64_t arrival = 1; arrival <= 8; ++arrival) {
      OrderState state;
      std::map<ImageId, std::vector<std::pair<std::string, uint64_t>>> sequences;
      for (const ApplyAction& a : deliver(world.streams(), arrival, state)) {
        for (const SliceFacts& s : a.batch.slices) sequences[s.image].push_back({a.batch.source, a.batch.number.value});
      }
      if (arrival == 1) first = sequences;
      ASSERT_EQ(sequences, first) << "seed " << seed << " arrival " << arrival;
    }
  }
}

TEST(Order, AMissingStreamHoldsOnlyWhatDependsOnIt) {
  OrderState state;
  const ImageId a = test_uuid(1), b = test_uuid(2);
  EXPECT_EQ(step(state, {.source = "h1",
                         .number = BatchNumber(1),
                         .last = {Incarnation(1), Counter(5)},
                         .slices = {{a, Epoch(1), {}}},
                         .created = {a, b}})
                .size(),
            1u);
  // h2 continues what h3 wrote, which never came.
  SliceFacts waits{b, Epoch(3), {.epoch = Epoch(2), .source = "h3", .last = {Incarnation(4), Counter(9)}}};
  EXPECT_TRUE(
      step(state, {.source = "h2", .number = BatchNumber(1), .last = {Incarnation(1), Counter(1)}, .slices = {waits}})
          .empty());
  EXPECT_EQ(step(state, {.source = "h1",
                         .number = BatchNumber(2),
                         .last = {Incarnation(1), Counter(6)},
                         .slices = {{a, Epoch(1), {}}}})
                .size(),
            1u);
  // A later incarnation of h3 stands for all of the earlier one.
  auto actions = step(state, {.source = "h3", .number = BatchNumber(1), .last = {Incarnation(5), Counter(0)}});
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(actions[1].batch.source, "h2");
}

// Nothing was written in the tenure before, which followed the same: whoever wrote that may never come.
TEST(Order, ATenureAfterOneThatFollowedTheSameDoesNotWaitForIt) {
  OrderState state;
  const ImageId image = test_uuid(1);
  const wire::TenureParent gone{.epoch = Epoch(6), .source = "h3", .last = {Incarnation(4), Counter(9)}};
  auto batch = [&](const char* source, uint64_t epoch, const wire::TenureParent& parent) {
    return step(state, {.source = source, .number = BatchNumber(1), .last = {Incarnation(1), Counter(1)},
                        .slices = {{image, Epoch(epoch), parent}}, .created = {image}}).size();
  };
  ASSERT_EQ(batch("h1", 7, {.epoch = Epoch(6), .source = "h3"}), 1u) << "told as what nothing waits for";
  EXPECT_EQ(batch("h2", 8, gone), 1u);
  const wire::TenureParent written{.epoch = Epoch(8), .source = "h5", .last = {Incarnation(1), Counter(2)}};
  EXPECT_EQ(batch("h4", 9, written), 0u);
}

// The old journal's and the new one's have the same number: each is the end of a resync for itself.
TEST(Order, AnEndOfAResyncIsOneOfItsOwnGeneration) {
  OrderState state;
  auto end_of = [&](uint64_t generation) {
    BatchFacts end{.source = "host1", .generation = test_uuid(generation, 0x6E), .number = BatchNumber(5),
                   .last = {Incarnation(generation), Counter(1)}};
    state.resyncs.insert({end.source, end.generation, end.number});
    return end;
  };
  const BatchFacts older = end_of(1), newer = end_of(2);
  ASSERT_EQ(step(state, older).size(), 1u);
  EXPECT_TRUE(state.resyncs.contains({newer.source, newer.generation, newer.number}));
  ASSERT_EQ(step(state, newer).size(), 1u);
  EXPECT_TRUE(state.resyncs.empty());
}

// Else the point of the held batch would have the image's data and not its name.
TEST(Order, TheCreateThatABatchWaitedForIsAppliedBeforeIt) {
  OrderState state;
  const ImageId image = test_uuid(1);
  BatchFacts writes{.source = "host1",
                    .number = BatchNumber(1),
                    .last = {Incarnation(1), Counter(5)},
                    .slices = {{image, Epoch(1), {}}}};
  EXPECT_TRUE(step(state, writes).empty());
  BatchFacts create{
      .source = "shared1", .number = BatchNumber(1), .last = {Incarnation(1), Counter(1)}, .created = {image}};
  auto actions = step(state, create);
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(actions[0].batch.source, "shared1");
  EXPECT_EQ(actions[1].batch.source, "host1");
}

// A host without room to stage gave up what it had handed over into a later batch: that waits for what waits for it.
TEST(Order, BatchesThatWaitForEachOtherAreAppliedOldestEpochFirst) {
  const ImageId a = test_uuid(1);
  auto parent = [](uint64_t epoch, std::string source, uint64_t counter) {
    return wire::TenureParent{
        .epoch = Epoch(epoch), .source = std::move(source), .last = {Incarnation(1), Counter(counter)}};
  };
  const BatchFacts created{
      .source = "host1", .number = BatchNumber(1), .last = {Incarnation(1), Counter(1)}, .created = {a}};
  const BatchFacts middle{.source = "host1", .number = BatchNumber(2), .last = {Incarnation(1), Counter(20)},
                          .slices = {{a, Epoch(3), parent(2, "host2", 10)}}};
  // Of epochs 2 and 4 together, under the newer one.
  const BatchFacts merged{.source = "host2", .number = BatchNumber(3), .last = {Incarnation(1), Counter(30)},
                          .slices = {{a, Epoch(4), parent(3, "host1", 20)}}};
  for (bool merged_first : {true, false}) {
    OrderState state;
    EXPECT_EQ(step(state, created).size(), 1u);
    EXPECT_TRUE(step(state, merged_first ? merged : middle).empty()) << "the other may yet come";
    const auto actions = step(state, merged_first ? middle : merged);
    ASSERT_EQ(actions.size(), 2u);
    EXPECT_EQ(actions[0].batch.source, "host1");
    ASSERT_EQ(actions[0].given_up.size(), 1u);
    EXPECT_EQ(actions[0].given_up[0].source, "host2");
    EXPECT_EQ(actions[1].batch.source, "host2");
    EXPECT_TRUE(actions[1].given_up.empty());
    for (const ApplyAction& action : actions) EXPECT_TRUE(action.branched.empty());
    EXPECT_EQ(state.held(), 0u);
  }
}

// As long as something that is waited for has not come, nothing is decided.
TEST(Order, ACircleWithAMissingBatchInItIsLeftWaiting) {
  const ImageId a = test_uuid(1), b = test_uuid(2);
  auto last = [](uint64_t counter) { return WriteSequence{Incarnation(1), Counter(counter)}; };
  OrderState state;
  step(state, {.source = "host1", .number = BatchNumber(1), .last = last(1), .created = {a, b}});
  const BatchFacts one{.source = "host1", .number = BatchNumber(2), .last = last(20),
                       .slices = {{a, Epoch(3), {.epoch = Epoch(2), .source = "host2", .last = last(10)}},
                                  {b, Epoch(5), {.epoch = Epoch(4), .source = "host3", .last = last(7)}}}};
  const BatchFacts two{.source = "host2", .number = BatchNumber(3), .last = last(30),
                       .slices = {{a, Epoch(4), {.epoch = Epoch(3), .source = "host1", .last = last(20)}}}};
  EXPECT_TRUE(step(state, one).empty());
  EXPECT_TRUE(step(state, two).empty());
  EXPECT_EQ(state.held(), 2u);
  const BatchFacts three{.source = "host3", .number = BatchNumber(1), .last = last(7), .slices = {{b, Epoch(4), {}}}};
  EXPECT_EQ(step(state, three).size(), 3u);
  EXPECT_EQ(state.held(), 0u);
}

TEST(Order, OlderEpochIsBranchedAndTheRestGoesOn) {
  OrderState state;
  const ImageId a = test_uuid(1), b = test_uuid(2);
  step(state, {.source = "h2",
               .number = BatchNumber(1),
               .last = {Incarnation(1), Counter(1)},
               .slices = {{a, Epoch(7), {}}},
               .created = {a, b}});
  auto actions = step(state, {.source = "h1",
                              .number = BatchNumber(1),
                              .last = {Incarnation(1), Counter(1)},
                              .slices = {{a, Epoch(6), {}}, {b, Epoch(1), {}}}});
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(actions[0].branched, std::vector<ImageId>{a});
  EXPECT_EQ(actions[0].newer, std::vector<Epoch>{Epoch(7)});
  EXPECT_EQ(state.epochs[a], Epoch(7));
}

// ---- tenures taken by force -------------------------------------------------------------------------

WriteSequence at(uint64_t counter) { return {Incarnation(1), Counter(counter)}; }
wire::TenureParent taken_from(uint64_t epoch, const char* source, uint64_t through) {
  return {.epoch = Epoch(epoch), .source = source, .last = at(through), .clean = wire::kTaken};
}
BatchFacts old_batch(const ImageId& a, uint64_t number, uint64_t last) {
  return {.source = "host1", .number = BatchNumber(number), .last = at(last),
          .slices = {{a, Epoch(1), {}, at(last), false}}};
}
BatchFacts new_batch(const ImageId& a, uint64_t through) {
  return {.source = "host2", .number = BatchNumber(1), .last = at(5),
          .slices = {{a, Epoch(2), taken_from(1, "host1", through), at(5), true}},
          .taken = {{a, Epoch(2), taken_from(1, "host1", through)}}};
}

struct TakenTest : testing::Test {
  TakenTest() {
    a.bytes[0] = 7;
    state.created.insert(a);
  }
  ImageId a;
  OrderState state;
};

// The host that lost the tenure may come back: what it wrote up to the parent is inserted below.
TEST_F(TakenTest, TheOldTenuresWritesWithinTheParentGoBelow) {
  EXPECT_TRUE(step(state, new_batch(a, 20)).empty());
  auto first = step(state, old_batch(a, 1, 10));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_TRUE(first[0].branched.empty());
  auto rest = step(state, old_batch(a, 2, 20));
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_TRUE(rest[0].branched.empty());
  EXPECT_EQ(rest[1].batch.source, "host2");
  EXPECT_TRUE(rest[1].gaps.empty());
}

TEST_F(TakenTest, WhatGoesBeyondTheParentIsABranchEvenBeforeTheNewTenuresBatch) {
  ASSERT_TRUE(note_taken(state, {a, Epoch(2), taken_from(1, "host1", 20)}));
  EXPECT_FALSE(note_taken(state, {a, Epoch(2), taken_from(1, "host1", 20)}));
  EXPECT_TRUE(step(state, old_batch(a, 1, 20))[0].branched.empty());
  auto beyond = step(state, old_batch(a, 2, 21));
  ASSERT_EQ(beyond.size(), 1u);
  EXPECT_EQ(beyond[0].branched, std::vector<ImageId>{a});
  EXPECT_EQ(beyond[0].newer, std::vector<Epoch>{Epoch(2)});
}

// Of the second takeover alone the first host's writes would be an older epoch's, of which it says nothing.
TEST_F(TakenTest, WhatWasLostToTheFirstOfTwoTakeoversStaysLost) {
  for (const bool later_first : {false, true}) {
    OrderState s;
    s.created.insert(a);
    const Taken first{a, Epoch(2), taken_from(1, "host1", 20)}, second{a, Epoch(3), taken_from(2, "host2", 5)};
    ASSERT_TRUE(note_taken(s, later_first ? second : first));
    ASSERT_TRUE(note_taken(s, later_first ? first : second));
    EXPECT_FALSE(note_taken(s, first));
    EXPECT_FALSE(note_taken(s, second));
    EXPECT_TRUE(step(s, old_batch(a, 1, 20))[0].branched.empty());
    auto beyond = step(s, old_batch(a, 2, 21));
    ASSERT_EQ(beyond.size(), 1u);
    EXPECT_EQ(beyond[0].branched, std::vector<ImageId>{a});
  }
}

TEST_F(TakenTest, AWholeImageIsAppliedWithoutWhatNeverComesAndTheGapIsNamed) {
  EXPECT_TRUE(step(state, new_batch(a, 20)).empty());
  EXPECT_TRUE(may_release(state, state.sources["host2"].waiting.front()));
  auto released = release(state, "host2");
  ASSERT_EQ(released.size(), 1u);
  ASSERT_EQ(released[0].gaps.size(), 1u);
  EXPECT_EQ(released[0].gaps[0].source, "host1");
  EXPECT_TRUE(release(state, "host2").empty());
  // The tenure has begun: its next batch waits for nothing.
  BatchFacts next = new_batch(a, 20);
  next.number = BatchNumber(2);
  next.slices[0].whole = false;
  EXPECT_EQ(step(state, next).size(), 1u);
  // Late after all: the whole image is newer than it.
  EXPECT_EQ(step(state, old_batch(a, 1, 20))[0].branched, std::vector<ImageId>{a});
}

TEST_F(TakenTest, OnlyAWholeImageIsAppliedWithoutItsParent) {
  BatchFacts batch = new_batch(a, 20);
  batch.slices[0].whole = false;
  EXPECT_TRUE(step(state, batch).empty());
  EXPECT_FALSE(may_release(state, state.sources["host2"].waiting.front()));
  EXPECT_TRUE(release(state, "host2").empty());
  EXPECT_EQ(state.held(), 1u);
}

TEST_F(TakenTest, ItsOtherImagesWaitsAreNotGivenUp) {
  ImageId b;
  b.bytes[0] = 8;
  state.created.insert(b);
  BatchFacts batch = new_batch(a, 20);
  batch.slices.push_back({b, Epoch(4), {.epoch = Epoch(3), .source = "host3", .last = at(9)}, at(4), false});
  EXPECT_TRUE(step(state, batch).empty());
  EXPECT_TRUE(release(state, "host2").empty());
}

}  // namespace
}  // namespace tidemark::replica
