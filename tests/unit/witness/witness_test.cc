#include "shared/witness/rules.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace tidemark::witness {
namespace {

Question ask(bool registers, uint64_t epoch, uint64_t generation, Verdict verdict = Verdict::kUndecided) {
  return {registers, Epoch(epoch), Generation(generation), verdict, "node"};
}

TEST(Witness, ADecisionIsMadeOnceAndSaidAgain) {
  auto record = step(std::nullopt, ask(true, 3, 1));
  ASSERT_TRUE(record);
  record = step(*record, ask(false, 3, 1, Verdict::kOutdated));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->verdict, Verdict::kOutdated);
  for (Verdict other : {Verdict::kOutdated, Verdict::kFenced}) {
    auto again = step(*record, ask(false, 3, 1, other));
    ASSERT_TRUE(again);
    EXPECT_EQ(*again, *record);
  }
}

TEST(Witness, AnotherGenerationIsRefused) {
  auto record = step(std::nullopt, ask(true, 3, 2));
  ASSERT_TRUE(record);
  EXPECT_EQ(step(*record, ask(false, 3, 1, Verdict::kOutdated)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(false, 3, 3, Verdict::kFenced)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(false, 4, 2, Verdict::kFenced)).status().code(), Code::kBusy);
  EXPECT_EQ(step(*record, ask(true, 2, 9)).status().code(), Code::kBusy);
}

// One that lost its state votes for nobody until registered anew.
TEST(Witness, WithoutARegistrationThereIsNoVote) {
  for (Verdict verdict : {Verdict::kOutdated, Verdict::kFenced})
    EXPECT_EQ(step(std::nullopt, ask(false, 3, 1, verdict)).status().code(), Code::kNotFound);
}

TEST(Witness, ANewerGenerationIsUndecidedAgain) {
  auto record = step(std::nullopt, ask(true, 3, 1));
  record = step(*record, ask(false, 3, 1, Verdict::kOutdated));
  record = step(*record, ask(true, 3, 2));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->verdict, Verdict::kUndecided);
  record = step(*record, ask(true, 4, 1));
  ASSERT_TRUE(record);
  EXPECT_EQ(record->epoch.value, 4u);
}

// Whatever is asked in whatever order: of one (epoch, generation) no two verdicts are ever answered.
TEST(Witness, ARandomWalkNeverAnswersTwoVerdictsOfOneGeneration) {
  std::mt19937_64 random(7);
  std::optional<Record> state;
  std::map<std::pair<uint64_t, uint64_t>, Verdict> answered;
  for (int i = 0; i < 100000; ++i) {
    Question q = ask(random() % 8 == 0, random() % 6, random() % 6, random() % 2 ? Verdict::kOutdated : Verdict::kFenced);
    auto record = step(state, q);
    if (!record) continue;
    if (state) {
      ASSERT_GE(std::make_pair(record->epoch, record->generation), std::make_pair(state->epoch, state->generation));
    }
    state = *record;
    if (record->verdict == Verdict::kUndecided) continue;
    auto [known, added] = answered.emplace(std::make_pair(record->epoch.value, record->generation.value), record->verdict);
    ASSERT_EQ(known->second, record->verdict);
    if (i % 20000 == 0) state.reset(), answered.clear();
  }
  EXPECT_FALSE(answered.empty());
}

}  // namespace
}  // namespace tidemark::witness
