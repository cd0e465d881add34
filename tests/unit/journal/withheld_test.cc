// An image whose blocks cannot be read holds up no other: what the replica lacks of it is remembered, each point says so, and
// once they can be read again the replica gets them.
#include <gtest/gtest.h>

#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class WithheldTest : public LimitTest {
 protected:
  WithheldTest() { options_.settings.limit_bytes = 64u << 20; }
  void begin() {
    open_journal();
    run_load(60, 8);
    wait_shipped();
    before_ = replica_->images[cut_];
  }
  void cut() { copy_.cut.insert(cut_); }
  wire::Mark whole() const {
    wire::Mark mark;
    mark.kind = wire::MarkKind::kWhole;
    mark.origin = options_.source;
    mark.node.image = cut_;
    return mark;
  }
  void write(const ImageId& image, uint8_t byte) {
    bool done = false;
    submit({image, RecordKind::kWrite, {8 * kG, kG}, 0, Bytes(kG, byte)}, [&] { done = true; });
    ASSERT_TRUE(settle([&] { return done; }));
  }
  bool shipped(const ImageId& image) { return settle([&] { return replica_->images[image] == copy_.images[image]; }); }
  bool withheld() { return !journal_->usage().withheld.empty(); }
  // Of the newest points, those that say that the image is not in them.
  bool newest_says_so() {
    return !replica_->marks.empty() && replica_->marks.back().kind == wire::MarkKind::kWithheld &&
           replica_->marks.back().node.image == cut_;
  }
  void others_go_on() {
    for (int i = 0; i < 5; ++i) {
      write(cut_, static_cast<uint8_t>(0x70 + i));
      write(other_, static_cast<uint8_t>(0x60 + i));
      ASSERT_TRUE(shipped(other_)) << journal_->usage().ship_error;
    }
    EXPECT_TRUE(withheld());
    EXPECT_TRUE(newest_says_so());
    EXPECT_EQ(replica_->images[cut_], before_) << "its last whole state";
    EXPECT_EQ(journal_->usage().ship_error, "");
    ASSERT_FALSE(usage_reasons(journal_->usage()).empty());
    EXPECT_NE(usage_reasons(journal_->usage()).front().find(cut_.to_string()), std::string::npos);
  }
  void mended() {
    copy_.cut.clear();
    ASSERT_TRUE(settle([&] { return !withheld(); }));
    ASSERT_TRUE(shipped(cut_));
    wait_shipped();
    for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
    EXPECT_TRUE(usage_reasons(journal_->usage()).empty()) << usage_reasons(journal_->usage()).front();
    EXPECT_EQ(journal_->counters(slot(cut_)).unshipped_bytes, 0u);
    write(cut_, 0x11);
    ASSERT_TRUE(shipped(cut_));
  }
  const ImageId cut_ = image_id(1), other_ = image_id(2);
  Bytes before_;
};

TEST_F(WithheldTest, ItsOthersAreShippedAndSoIsItOnceItCanBeRead) {
  begin();
  write(cut_, 0x55);
  cut();
  others_go_on();
  mended();
}

TEST_F(WithheldTest, SoItIsAfterACrash) {
  for (auto kind : {sim::Crash::kKill, sim::Crash::kPowerLoss}) {
    if (journal_ == nullptr) begin();
    before_ = replica_->images[cut_];
    cut();
    write(cut_, 0x55);
    others_go_on();
    crash(kind);
    open_journal();
    reconcile_all();
    others_go_on();
    crash(kind);
    open_journal();
    reconcile_all();
    mended();
  }
}

TEST_F(WithheldTest, OneThatCannotBeReconciledHoldsUpNoOther) {
  begin();
  write(cut_, 0x55);
  write(other_, 0x56);
  cut();
  crash(sim::Crash::kKill);
  open_journal();
  for (const DirtyImage& d : journal_->dirty_after_crash())
    if (d.image != cut_) journal_->reconciled(d.image);
  journal_->withhold(cut_, Status(Code::kIoError, "its copy is not there"));
  ASSERT_TRUE(shipped(other_)) << journal_->usage().ship_error;
  EXPECT_TRUE(withheld());
  EXPECT_TRUE(newest_says_so());
  copy_.cut.clear();
  world_.run_for(std::chrono::seconds(30));
  EXPECT_TRUE(withheld()) << "it is not reconciled";
  EXPECT_EQ(replica_->images[cut_], before_);
  journal_->reconciled(cut_);
  mended();
}

TEST_F(WithheldTest, AResyncEndsWithoutIt) {
  begin();
  write(cut_, 0x55);
  cut();
  empty_replica();
  resync_all();
  ASSERT_TRUE(settle([&] { return withheld() && journal_->usage().shipping == Shipping::kNormal; }, 600));
  before_ = replica_->images[cut_];
  others_go_on();
  mended();
}

// Withheld before the host's copy was filled, and read again from the shared one, it is lacked whole: its old blocks are those.
TEST_F(WithheldTest, WhatTheReplicaLacksIsPreservedAsTheNewest) {
  for (bool failing : {false, true}) {
    if (journal_ == nullptr) begin();
    write(cut_, failing ? 0x55 : 0x56);
    cut();
    empty_replica();
    resync_all();
    ASSERT_TRUE(settle([&] { return withheld() && journal_->usage().shipping == Shipping::kNormal; }, 600));
    copy_.unfilled[cut_] = Bytes(copy_.images[cut_].size(), 0x77);
    copy_.cut.clear();
    ASSERT_TRUE(settle([&] { return !withheld(); }));
    copy_.hold_reads = true;
    const Point point = journal_->cut(Journal::CutReason::kNamed, "filled meanwhile");
    ASSERT_TRUE(settle([&] { return !copy_.held.empty(); }));
    copy_.hold_reads = false;
    copy_.fail_reads = failing ? 1 : 0;
    bool kept = false;
    const Extent all{0, copy_.images[cut_].size()};
    ASSERT_TRUE(journal_->must_preserve(slot(cut_), all));
    journal_->preserve(slot(cut_), all, [&] { kept = true; });
    ASSERT_TRUE(settle([&] { return kept; }));
    EXPECT_FALSE(journal_->must_preserve(slot(cut_), all));
    if (!failing) copy_.unfilled.clear();   // it was filled
    copy_.open_gate();
    ASSERT_TRUE(settle([&] { return journal_->usage().newest_durable >= point.batch; }));
    for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
    EXPECT_EQ(replica_->points.back().name, failing ? "" : "filled meanwhile");
    copy_.unfilled.clear();
  }
}

// A tenure taken by force begins with all of the image, and with a mark that says so: the replica waits for the host that
// lost it where it finds the one without the other.
TEST_F(WithheldTest, TheMarkThatItIsWholeComesWithIt) {
  for (bool crashes : {false, true}) {
    if (journal_ == nullptr) begin();
    before_ = replica_->images[cut_];
    const size_t points = replica_->points.size();
    cut();
    Bytes all = copy_.images[cut_];
    submit({cut_, RecordKind::kWrite, {0, all.size()}, 0, all}, [&] { journal_->mark(whole()); });
    others_go_on();
    if (crashes) {
      crash(sim::Crash::kPowerLoss);
      open_journal();
      reconcile_all();
      others_go_on();
    }
    mended();
    size_t told = 0;
    for (size_t i = points; i < replica_->points.size(); ++i) {
      const auto& point = replica_->points[i];
      const bool says = std::ranges::any_of(point.marks, [](const auto& m) { return m.kind == wire::MarkKind::kWhole; });
      EXPECT_TRUE(!says || point.changed.contains(cut_)) << "the mark came without the image";
      EXPECT_TRUE(says || told != 0 || !point.changed.contains(cut_)) << "the image came without the mark";
      told += says ? 1 : 0;
    }
    EXPECT_EQ(told, 1u);
  }
}

// In a resync the replica asks for it with the last batch, which is without an image that is withheld meanwhile.
TEST_F(WithheldTest, TheMarkThatItIsWholeComesWithItAfterAResync) {
  options_.settings.limit_bytes = 1u << 20;
  begin();
  empty_replica();
  journal_->mark(whole());
  resync_all();
  ASSERT_TRUE(settle([&] { return replica_->pieces > 0; }));
  cut();
  write(cut_, 0x55);
  ASSERT_TRUE(settle([&] { return withheld() && journal_->usage().shipping == Shipping::kNormal; }, 600));
  const size_t points = replica_->points.size();
  mended();
  const auto first = std::find_if(replica_->points.begin() + static_cast<ptrdiff_t>(points), replica_->points.end(),
                                  [&](const auto& point) { return point.changed.contains(cut_); });
  ASSERT_NE(first, replica_->points.end());
  EXPECT_TRUE(std::ranges::any_of(first->marks, [](const auto& m) { return m.kind == wire::MarkKind::kWhole; }));
}

// Another tenure, which follows another host's: all of the image is not asked for any more, and was not recorded.
TEST_F(WithheldTest, TheMarkOfAnOlderTenureDoesNotComeWithANewerOne) {
  begin();
  const size_t marks = replica_->marks.size();
  cut();
  submit({cut_, RecordKind::kWrite, {0, kG}, 0, Bytes(kG, 0x55)}, [&] { journal_->mark(whole()); });
  others_go_on();
  journal_->set_tenure(slot(cut_), Epoch(9), {Epoch(8), "host3", {Incarnation(1), Counter(7)}, 1});
  mended();
  EXPECT_TRUE(std::none_of(replica_->marks.begin() + static_cast<ptrdiff_t>(marks), replica_->marks.end(),
                           [](const auto& m) { return m.kind == wire::MarkKind::kWhole; }));
}

// It can be read again while a batch that leaves it out still waits for a write under way.
TEST_F(WithheldTest, APointHasAllOfItOrSaysThatItHasNot) {
  begin();
  write(cut_, 0x55);
  cut();
  others_go_on();
  bool dirty = false;
  journal_->mark_dirty(slot(other_), {0, kG}, [&](const Status&) { dirty = true; });
  ASSERT_TRUE(settle([&] { return dirty; }));
  Ticket under_way = journal_->begin(slot(other_), RecordKind::kWrite, {0, kG});
  bool done = false;
  submit({cut_, RecordKind::kWrite, {100 * kG, kG}, 0, Bytes(kG, 0x77)}, [&] { done = true; });
  ASSERT_TRUE(settle([&] { return done; }));
  journal_->cut(Journal::CutReason::kNamed, "waits");
  copy_.cut.clear();
  world_.run_for(std::chrono::seconds(15));
  journal_->cut(Journal::CutReason::kNamed, "after");
  const Bytes at_the_cut = copy_.images[cut_];
  journal_->finish(under_way, CoordinatorSequence(0), 0);
  auto after = [&] { return std::ranges::find(replica_->points, "after", &FakeReplica::AtPoint::name); };
  ASSERT_TRUE(settle([&] { return after() != replica_->points.end(); }));
  const bool says_so = std::ranges::any_of(after()->marks, [](const auto& m) { return m.kind == wire::MarkKind::kWithheld; });
  EXPECT_TRUE(says_so || after()->images.at(cut_) == at_the_cut) << "neither the old state nor the new one";
  mended();
}

TEST_F(WithheldTest, NothingIsRememberedOfOneThatIsRemoved) {
  begin();
  write(cut_, 0x55);
  cut();
  others_go_on();
  copy_.cut.clear();
  copy_.images.erase(cut_);
  journal_->detach(slot(cut_));
  EXPECT_FALSE(withheld());
  write(other_, 0x33);
  ASSERT_TRUE(shipped(other_));
  EXPECT_TRUE(usage_reasons(journal_->usage()).empty());
}

// Degraded, nothing is staged that would show that it can be read again.
TEST_F(WithheldTest, ReadOnceInVainItIsNotTakenForUnreadableAfterTheLimit) {
  begin();
  replica_away();
  write(cut_, 0x55);
  copy_.fail_reads = 1;
  journal_->cut(Journal::CutReason::kNamed, "fails");
  ASSERT_TRUE(settle([&] { return journal_->unreadable(cut_); }));
  resync_all();
  ASSERT_TRUE(settle([&] { return degraded(); }));
  EXPECT_FALSE(withheld());
  EXPECT_FALSE(journal_->unreadable(cut_)) << "it cannot be handed over";
  replica_back();
  expect_level();
}

}  // namespace
}  // namespace tidemark::journal
