// A host's journal that was lost with writes it had not sent: what rests upon these is left out, said to be so, and
// shown again once all of the image has come. Whatever had been sent is waited for as ever.
#include <gtest/gtest.h>

#include "shared/wire/features.h"
#include "tests/unit/replica/harness.h"

namespace tidemark::replica {
namespace {

const Uuid kOne = test_uuid(1, 0x11), kOther = test_uuid(2, 0x11);
constexpr uint64_t kUnit = 4096;

Piece units(uint64_t first, uint64_t count, char value) {
  return {first * kUnit, Bytes(count * kUnit, static_cast<uint8_t>(value))};
}
SliceSpec slice(const Uuid& image, uint64_t epoch, std::vector<Piece> pieces, wire::TenureParent parent = {}) {
  return {.image = image, .epoch = Epoch(epoch), .parent = parent, .size = 4 * kUnit, .pieces = std::move(pieces)};
}
wire::Mark whole_mark(const std::string& host) {
  wire::Mark mark = open_mark(host, 11, kOne);
  mark.kind = wire::MarkKind::kWhole;
  return mark;
}

class LostJournal : public testing::Test {
 protected:
  LostJournal() {
    again.restart();
    begin();
  }
  void begin() {
    auto made = host1.make({slice(kOne, 1, {units(0, 4, 'a')})},
                           {create_mark(1, "host1", 11, kOne, "one"), create_mark(2, "host1", 12, kOther, "other")});
    put(host1, made);
    sent = made.last;
  }
  // An answer that did not come is asked for again, of the replica that was started anew.
  void put(const BatchMaker& host, const BatchMaker::Made& made) {
    for (int tries = 0; tries < 3; ++tries) {
      answer = h.put(host, made);
      if (answer.status == 200) return;
      if (answer.status != 0) break;
      h.reopen_after_crash();
    }
    FAIL() << answer.body;
  }
  bool applied() const { return answer.json()["applied"] == true; }
  wire::TenureParent after(uint64_t epoch, const std::string& host, WriteSequence last, uint8_t clean = 1) {
    return {Epoch(epoch), host, last, clean};
  }
  // host2 has the image of host1, which had written up to `last`.
  BatchMaker::Made of_host2(WriteSequence last, char value = 'n') {
    return host2.make({slice(kOne, 2, {units(0, 1, value)}, after(1, "host1", last)),
                       slice(kOther, 1, {units(0, 4, value)})},
                      {open_mark("host2", 11, kOne), open_mark("host2", 12, kOther)});
  }
  BatchMaker::Made reset() { return again.make({}, {create_mark(20, "host1", 30, test_uuid(9, 0x11), "new")}); }
  Json point(const std::string& id) { return h.get("/v1/points/" + id).json(); }
  size_t without(const std::string& id) { return point(id).value("without", std::vector<std::string>{}).size(); }
  bool alarmed() {
    const Json status = h.get("/v1/status").json();
    return std::ranges::any_of(status["alarms"], [](const Json& a) { return a["kind"] == "journal_lost"; });
  }
  WriteSequence lost() const { return {sent.incarnation, Counter(sent.counter.value + 50)}; }
  static std::string bytes(std::initializer_list<std::pair<uint64_t, char>> runs) {
    std::string out;
    for (auto [count, value] : runs) out += std::string(count * kUnit, value);
    return out;
  }

  Harness h;
  BatchMaker host1{"host1"}, again{"host1", 2}, host2{"host2"}, host3{"host3"};
  WriteSequence sent;
  Harness::Answer answer;
};

TEST_F(LostJournal, WhatRestsOnItIsLeftOutAndSaidToBe) {
  const auto first = of_host2(lost());
  put(host2, first);
  EXPECT_FALSE(applied()) << "it may come yet";
  EXPECT_TRUE(h.replica->health().empty());
  put(again, reset());
  for (int round = 0; round < 2; ++round, h.restart()) {
    put(host2, first);
    ASSERT_TRUE(applied()) << answer.body;
    EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'a'}}));
    EXPECT_EQ(h.data("latest", kOther), bytes({{4, 'n'}}));
    EXPECT_EQ(without("latest"), 1u) << point("latest");
    EXPECT_EQ(without("1"), 0u);
    EXPECT_TRUE(alarmed());
    EXPECT_EQ(h.replica->health().size(), 1u);
    EXPECT_EQ(h.get("/v1/status").json()["branches"].size(), 0u);
  }
  // So is what comes after it, of whichever host.
  const auto next = of_host2(lost(), 'o');
  put(host2, next);
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'a'}}));
  const SliceSpec of_host3 = slice(kOne, 3, {units(1, 1, 'p')}, after(2, "host2", next.last));
  put(host3, host3.make({of_host3}, {open_mark("host3", 11, kOne)}));
  EXPECT_TRUE(applied());
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'a'}}));
  EXPECT_EQ(without("latest"), 1u);
}

TEST_F(LostJournal, WhatHadBeenSentIsNeitherLeftOutNorAlarmed) {
  put(again, reset());
  put(host2, of_host2(sent));
  EXPECT_TRUE(applied());
  EXPECT_EQ(h.data("latest", kOne), bytes({{1, 'n'}, {3, 'a'}}));
  EXPECT_EQ(without("latest"), 0u);
  EXPECT_FALSE(alarmed());
  EXPECT_TRUE(h.replica->health().empty());
}

// It was sent, and is held itself.
TEST_F(LostJournal, WhatOfItIsHeldIsWaitedFor) {
  const auto of_host3 = host3.make({slice(kOther, 1, {units(0, 4, 'x')})}, {open_mark("host3", 12, kOther)});
  const SliceSpec other = slice(kOther, 2, {units(3, 1, 'y')}, after(1, "host3", of_host3.last));
  const auto held = host1.make({slice(kOne, 1, {units(3, 1, 'b')}), other}, {open_mark("host1", 12, kOther)});
  put(host1, held);
  ASSERT_FALSE(applied());
  put(again, reset());
  h.restart();
  const SliceSpec of_host2 = slice(kOne, 2, {units(0, 1, 'n')}, after(1, "host1", held.last));
  const auto next = host2.make({of_host2}, {open_mark("host2", 11, kOne)});
  put(host2, next);
  EXPECT_FALSE(applied());
  put(host3, of_host3);
  put(host2, next);
  EXPECT_TRUE(applied());
  EXPECT_EQ(h.data("latest", kOne), bytes({{1, 'n'}, {2, 'a'}, {1, 'b'}}));
  EXPECT_FALSE(alarmed());
}

// A run of the lost journal of which nothing ever came, and runs of the new one before the first that did.
TEST_F(LostJournal, TheNewJournalsOwnWritesAreNotTakenForTheLostOnes) {
  const uint64_t first = sent.incarnation.value + 10 + wire::kIncarnationsSkipped;
  again.incarnation = Incarnation(first + 3);
  const WriteSequence of_new{Incarnation(first), Counter(7)};
  const WriteSequence of_lost{Incarnation(sent.incarnation.value + 5), Counter(7)};
  put(again, reset());
  put(host2, host2.make({slice(kOther, 2, {units(0, 4, 'n')}, after(1, "host1", of_new)),
                         slice(kOne, 2, {units(0, 4, 'n')}, after(1, "host1", of_lost))},
                        {open_mark("host2", 11, kOne), open_mark("host2", 12, kOther)}));
  ASSERT_TRUE(applied());
  EXPECT_EQ(h.data("latest", kOther), bytes({{4, 'n'}}));
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'a'}}));
  EXPECT_EQ(without("latest"), 1u);
}

// A host that does not know what its journal lost: an earlier version.
TEST_F(LostJournal, AHostsOwnTenureThatRestsOnItIsLeftOutToo) {
  put(again, again.make({slice(kOne, 2, {units(0, 1, 'n')}, after(1, "host1", lost(), 0))}));
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'a'}}));
  EXPECT_EQ(without("latest"), 1u);
  put(again, again.make({slice(kOne, 3, {units(0, 4, 'w')}, after(2, "host1", {again.incarnation, Counter(2)}, 0))},
                        {whole_mark("host1")}));
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'w'}}));
  EXPECT_EQ(without("latest"), 0u);
}

TEST_F(LostJournal, ATenureTakenByForceMakesItGood) {
  put(again, reset());
  const auto before = of_host2(lost());
  put(host2, before);
  const uint64_t cut = answer.json()["point"];
  put(host3, host3.make({slice(kOne, 3, {units(0, 4, 'w')}, after(2, "host2", before.last, wire::kTaken))},
                        {open_mark("host3", 11, kOne), whole_mark("host3")}));
  ASSERT_TRUE(applied());
  for (int round = 0; round < 2; ++round, h.restart()) {
    EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'w'}}));
    EXPECT_EQ(without("latest"), 0u);
    EXPECT_EQ(without(std::to_string(cut)), 1u);
    EXPECT_TRUE(h.replica->health().empty());
  }
  // What its holder had not sent yet is older.
  put(host2, of_host2(lost(), 'q'));
  EXPECT_EQ(h.data("latest", kOne), bytes({{4, 'w'}}));
}

// The host that has the image goes on writing, and is not asked to give it away. With a crash at each commit.
TEST(LostJournalCrash, AResyncByTheHostThatHasItMakesItGood) {
  class Run : public LostJournal {
   public:
    void TestBody() override {}
    void go(uint64_t crash_at) {
      SCOPED_TRACE("crashed at commit " + std::to_string(crash_at));
      put(again, reset());
      put(host2, of_host2(lost()));
      const std::string cut = std::to_string(answer.json()["point"].get<uint64_t>());
      if (crash_at != 0) h.world.inject("replica", sim::CrashPoint{.nth = crash_at, .at_commits = true});
      put(host2, of_host2(lost(), 'o'));
      host2.kind = journal::BatchKind::kPiece;
      put(host2, host2.make({slice(kOne, 2, {units(0, 4, 'w')}, after(1, "host1", lost()))}));
      host2.kind = journal::BatchKind::kResync;
      put(host2, host2.make({slice(kOne, 2, {units(1, 1, 'x')}, after(1, "host1", lost()))}));
      h.world.run_for(std::chrono::seconds(5));
      EXPECT_EQ(h.data("latest", kOne), bytes({{1, 'w'}, {1, 'x'}, {2, 'w'}}));
      EXPECT_EQ(without("latest"), 0u);
      EXPECT_EQ(without(cut), 1u);
      EXPECT_TRUE(h.replica->health().empty());
      put(host2, of_host2(lost(), 'z'));
      EXPECT_EQ(h.data("latest", kOne), bytes({{1, 'z'}, {1, 'x'}, {2, 'w'}}));
      EXPECT_EQ(without("latest"), 0u);
    }
  };
  for (uint64_t nth = 0; nth < 14; ++nth) Run().go(nth);
}

TEST_F(LostJournal, AnImageThatWasRemovedIsNoReasonAnyMore) {
  put(again, reset());
  put(host2, of_host2(lost()));
  ASSERT_EQ(h.replica->health().size(), 1u);
  put(host2, host2.make({}, {unlink_mark(40, "host2", 11, kOne, "one")}));
  EXPECT_TRUE(h.replica->health().empty());
  h.restart();
  EXPECT_TRUE(h.replica->health().empty());
  EXPECT_EQ(without("latest"), 1u);
}

// Thousands of points, each of which is without all of them.
TEST_F(LostJournal, AListOfPointsNamesAFewOfManyImages) {
  constexpr size_t kMany = 40;
  std::vector<SliceSpec> slices;
  std::vector<wire::Mark> created, opened;
  for (size_t i = 0; i < kMany; ++i) {
    const Uuid image = test_uuid(100 + i, 0x11);
    created.push_back(create_mark(100 + i, "host1", 100 + i, image, "many" + std::to_string(i)));
    opened.push_back(open_mark("host2", 100 + i, image));
    slices.push_back(slice(image, 2, {units(0, 1, 'n')}, after(1, "host1", lost())));
  }
  put(again, again.make({}, created));
  put(host2, host2.make(slices, opened));
  ASSERT_TRUE(applied());
  EXPECT_EQ(without("latest"), kMany);
  const Json all = h.get("/v1/points").json()["points"];
  const auto texts = all.back().value("without", std::vector<std::string>{});
  ASSERT_EQ(texts.size(), 17u) << all.back();
  EXPECT_TRUE(texts.back().starts_with("24 images more")) << texts.back();
  EXPECT_FALSE(all.front().contains("without"));
  const ImageId last = test_uuid(100 + kMany - 1, 0x11);
  const Json of_last = h.get("/v1/points?all=1&image=" + last.to_string()).json()["points"];
  const auto own = of_last.back().value("without", std::vector<std::string>{});
  ASSERT_EQ(own.size(), 1u) << of_last;
  EXPECT_TRUE(own.front().starts_with("image " + last.to_string())) << own.front();
}

// Nobody can send such an image any more.
TEST_F(LostJournal, AnImageThatWasRemovedWhileItsBatchWasHeldIsNoReason) {
  put(host2, of_host2(lost()));
  ASSERT_FALSE(applied());
  put(host3, host3.make({}, {unlink_mark(40, "host3", 11, kOne, "one")}));
  ASSERT_TRUE(applied());
  h.restart();
  put(again, reset());
  for (int round = 0; round < 2; ++round, h.restart()) {
    EXPECT_EQ(without("latest"), 1u);
    EXPECT_TRUE(h.replica->health().empty()) << h.replica->health().front();
  }
}

TEST_F(LostJournal, AnImageThatWasRemovedBeforeItsBatchCameIsNoReason) {
  put(host3, host3.make({}, {unlink_mark(40, "host3", 11, kOne, "one")}));
  put(again, reset());
  put(host2, of_host2(lost()));
  EXPECT_EQ(without("latest"), 1u);
  EXPECT_TRUE(h.replica->health().empty());
}

TEST_F(LostJournal, AnImageThatIsRemovedInTheSameBatchIsNoReason) {
  put(again, reset());
  put(host2, host2.make({slice(kOne, 2, {units(0, 1, 'n')}, after(1, "host1", lost()))},
                        {open_mark("host2", 11, kOne), unlink_mark(40, "host2", 11, kOne, "one")}));
  for (int round = 0; round < 2; ++round, h.restart()) {
    EXPECT_EQ(without("latest"), 1u);
    EXPECT_TRUE(h.replica->health().empty());
  }
}

}  // namespace
}  // namespace tidemark::replica
