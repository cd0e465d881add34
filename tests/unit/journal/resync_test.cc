// What the last batch of a resync names: the replica takes of the pieces what that names, and the sizes that it says. So it
// names whatever a piece held since the last point, and whatever may have another size, however often the resync began again.
#include <gtest/gtest.h>

#include "journal/records.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

class ResyncTest : public LimitTest {
 protected:
  ResyncTest() {
    parent_ = {};             // no image is lacked whole
    options_.settings.limit_age = std::chrono::seconds(60);
    add_image(0, 20 * kG);    // all of it goes into the first piece
  }
  void await(Op op) {
    bool done = false;
    submit(std::move(op), [&] { done = true; });
    ASSERT_TRUE(settle([&] { return done; }));
  }
  void write(int image, Extent extent, uint8_t byte) {
    await({image_id(image), RecordKind::kWrite, extent, 0, Bytes(extent.length, byte)});
  }
  void resize(int image, uint64_t size) { await({image_id(image), RecordKind::kResize, {size, 0}}); }
  void begin() {
    open_journal();
    for (int i = 0; i < 3; ++i) write(i, {0, 20 * kG}, 0x11);
    wait_shipped();
  }
  void degrade() {
    journal_->cut(Journal::CutReason::kNamed, "not shipped");
    ASSERT_TRUE(settle([&] { return degraded(); }, 120));
  }
  // It takes so much, and then nothing more.
  void answer_until(std::function<bool()> enough) {
    replica_->interfere = [enough = std::move(enough)](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
      if (r.method == "PUT" && enough()) return net::HttpResponse::json(503, "{}");
      return std::nullopt;
    };
  }
  // Points in between are without an image that was withheld, and say so.
  void expect_level_in_the_end() {
    wait_shipped();
    EXPECT_EQ(replica_->conflicts, 0u);
    for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
  }
  // The first piece has all of image 0, and is at the replica; the others are not.
  void first_piece_is_there() {
    begin();
    replica_away();
    for (int i = 0; i < 2; ++i) write(i, {0, sizes_[image_id(i)]}, 0x22);
    degrade();
    clean();
    answer_until([this] { return replica_->pieces > 0; });
    ASSERT_TRUE(settle([&] { return replica_->pieces > 0 && !journal_->usage().ship_error.empty(); }));
    ASSERT_EQ(journal_->usage().shipping, Shipping::kResyncing);
  }
};

// The resync begins again, for one reason or another.
enum class Again { kStop, kKill, kPowerLoss, kLimit };

class ResyncAgainTest : public ResyncTest, public testing::WithParamInterface<Again> {
 protected:
  void again() {
    if (GetParam() == Again::kLimit) {
      ASSERT_TRUE(settle([&] { return degraded(); }, 120));
      return;
    }
    if (GetParam() == Again::kStop) close_cleanly();
    else crash(GetParam() == Again::kKill ? sim::Crash::kKill : sim::Crash::kPowerLoss);
    open_journal();
    for (const DirtyImage& d : journal_->dirty_after_crash()) EXPECT_NE(d.image, image_id(0)) << "it is sent for that alone";
    reconcile_all();
  }
};

TEST_P(ResyncAgainTest, NamesWhatAPieceOfBeforeHolds) {
  first_piece_is_there();
  again();
  ASSERT_TRUE(degraded());
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

// All its pieces are at the replica; its last batch, which is staged, is not.
TEST_P(ResyncAgainTest, NamesWhatItsLastBatchHadToName) {
  begin();
  replica_away();
  for (int i = 0; i < 2; ++i) write(i, {0, sizes_[image_id(i)]}, 0x22);
  degrade();
  clean();
  answer_until([this] { return journal_->usage().shipping == Shipping::kNormal; });
  ASSERT_TRUE(settle([&] { return journal_->usage().shipping == Shipping::kNormal && !journal_->usage().ship_error.empty(); }));
  again();
  degrade();
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

TEST_P(ResyncAgainTest, SendsAllOfAnImageThatIsWithheldMeanwhile) {
  first_piece_is_there();
  again();
  journal_->withhold(image_id(0), Status(Code::kIoError, "its copy is not there"));
  copy_.cut.insert(image_id(0));
  replica_back();
  write(2, {0, kG}, 0x33);
  ASSERT_TRUE(settle([&] { return normal(); }, 600)) << journal_->usage().ship_error;
  copy_.cut.clear();
  ASSERT_TRUE(settle([&] { return journal_->usage().withheld.empty(); }));
  expect_level_in_the_end();
}

TEST_P(ResyncAgainTest, NamesAnImageThatWasOnlyMadeLonger) {
  begin();
  replica_away();
  resize(0, 50 * kG);                 // in a batch that is given up
  degrade();
  resize(1, 300 * kG);
  clean();
  again();
  degrade();
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

TEST_P(ResyncAgainTest, NamesAnImageThatWasOnlyMadeLongerWhereABatchIsGivenUpAfterwards) {
  begin();
  replica_away();
  resize(0, 50 * kG);
  journal_->cut(Journal::CutReason::kNamed, "longer");
  ASSERT_TRUE(settle([&] { return journal_->usage().spool_batches > 0; }));
  clean();
  again();
  degrade();
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

// Withheld while all goes on, and no block of it changed.
TEST_P(ResyncAgainTest, AnImageThatWasWithheldAndOnlyMadeLongerHasItsSizeInTheEnd) {
  begin();
  copy_.cut.insert(image_id(0));
  journal_->withhold(image_id(0), Status(Code::kIoError, "its copy is not there"));
  resize(0, 50 * kG);
  write(2, {0, kG}, 0x22);
  wait_shipped();
  clean();
  if (GetParam() != Again::kLimit) again();
  copy_.cut.clear();
  ASSERT_TRUE(settle([&] { return journal_->usage().withheld.empty(); }));
  write(2, {0, kG}, 0x33);
  expect_level_in_the_end();
}

INSTANTIATE_TEST_SUITE_P(Reasons, ResyncAgainTest, testing::Values(Again::kStop, Again::kKill, Again::kPowerLoss, Again::kLimit));

TEST_F(ResyncTest, AnEmptiedReplicaLearnsOfAnImageThatHasNoDataAndOfItsSize) {
  add_image(3, 0);
  add_image(4, 40 * kG);
  begin();
  empty_replica();
  std::vector<ImageExtent> all;
  for (int i = 0; i < 5; ++i) all.push_back({image_id(i), {0, i < 3 ? sizes_[image_id(i)] : 0}});
  resync(std::move(all));
  ASSERT_TRUE(settle([&] { return !replica_->points.empty(); }, 120)) << journal_->usage().ship_error;
  expect_level();
  for (int i = 3; i < 5; ++i) ASSERT_TRUE(replica_->images.contains(image_id(i))) << i;
}

// A mark that a batch holds all of an image (of a tenure taken by force) says that nothing is left of what was there before.
class WholeAgainTest : public ResyncTest {
 protected:
  // Its pieces and its last batch, which has the mark and no block of it, are applied; the answer to that one is lost.
  void applied_and_given_up() {
    begin();
    replica_away();
    write(0, {0, sizes_[image_id(0)]}, 0x22);
    wire::Mark mark;
    mark.kind = wire::MarkKind::kWhole;
    mark.origin = options_.source;
    mark.node.image = image_id(0);
    journal_->mark(mark);
    degrade();
    clean();
    replica_->interfere = [this](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
      if (r.method != "PUT" || journal_->usage().shipping == Shipping::kResyncing) return std::nullopt;
      replica_->take_silently(r);
      return net::HttpResponse::json(503, R"({"error":"answer lost"})");
    };
    ASSERT_TRUE(settle([&] { return journal_->usage().shipping == Shipping::kNormal; }));
    ASSERT_TRUE(settle([&] { return degraded(); }, 120));
    replica_away();
    ASSERT_GT(replica_->pieces, 0u);
    ASSERT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
    clean();
  }
};

TEST_F(WholeAgainTest, TheMarkComesWithAllOfTheImageThoughTheReplicaMayHaveIt) {
  applied_and_given_up();
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

TEST_F(WholeAgainTest, SoItDoesFromAJournalThatAnEarlierVersionLeftWithoutIt) {
  applied_and_given_up();
  crash(sim::Crash::kKill);
  env_ = &world_.start("host1");
  {
    auto store = env_->open_store("/state/journal", {.tables = journal_table_names()});
    ASSERT_TRUE(store) << store.status().to_string();
    kv::WriteBatch batch;
    batch.erase_range(kLacksTable, {}, Bytes(25, 0xff));
    ASSERT_TRUE((*store)->commit_and_wait(std::move(batch)));
  }
  world_.crash("host1", sim::Crash::kKill);
  open_journal();
  reconcile_all();
  ASSERT_TRUE(degraded());
  replica_back();
  write(2, {0, kG}, 0x33);
  expect_level();
}

// It is cut in a piece, which the last batch does not name; withheld, it is made as long as the replica knows it.
TEST_F(ResyncTest, WhatWasCutOffInAPieceDoesNotComeBackWhereItGrowsWhileWithheld) {
  begin();
  replica_away();
  resize(0, 8 * kG);
  write(1, {0, sizes_[image_id(1)]}, 0x22);   // more than a piece
  degrade();
  clean();
  answer_until([this] { return replica_->pieces > 0; });
  ASSERT_TRUE(settle([&] { return replica_->pieces > 0 && !journal_->usage().ship_error.empty(); }));
  ASSERT_EQ(journal_->usage().shipping, Shipping::kResyncing);
  copy_.cut.insert(image_id(0));
  journal_->withhold(image_id(0), Status(Code::kIoError, "its copy is not there"));
  replica_back();
  write(2, {0, kG}, 0x33);
  ASSERT_TRUE(settle([&] { return normal(); }, 600)) << journal_->usage().ship_error;
  ASSERT_EQ(replica_->images[image_id(0)].size(), 20 * kG) << "the last batch is without it";
  resize(0, 20 * kG);
  copy_.cut.clear();
  ASSERT_TRUE(settle([&] { return journal_->usage().withheld.empty(); }));
  expect_level_in_the_end();
}

// The rest of its body was in a socket, which went on sending it when the limit had been reached and the replica asked.
TEST_F(ResyncTest, ABatchThatWasGivenUpMayBeTakenAfterTheReplicaWasAsked) {
  begin();
  std::optional<net::HttpRequest> late;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method != "PUT") return std::nullopt;
    if (!late) late = r;
    return net::HttpResponse::json(503, "{}");
  };
  write(0, {0, sizes_[image_id(0)]}, 0x22);
  degrade();
  ASSERT_TRUE(late);
  ASSERT_TRUE(settle([&] { return journal_->usage().shipping == Shipping::kResyncing; }));
  replica_->take_silently(*late);
  replica_back();
  replica_->puts = 0;
  EXPECT_TRUE(settle([&] { return normal(); }, 600)) << journal_->usage().ship_error;
  EXPECT_LT(replica_->puts, 100u) << "one piece was sent again and again";
  write(2, {0, kG}, 0x33);
  expect_level();
}

// Written in the midst of a resync by a host that has no copy of its own, just before the shared node is away.
TEST_F(ResyncTest, APieceGoesWithoutWhatOnlyTheSharedNodeHas) {
  begin();
  replica_away();
  write(2, {0, sizes_[image_id(2)]}, 0x22);
  degrade();
  answer_until([this] { return replica_->pieces > 0; });
  ASSERT_TRUE(settle([&] { return replica_->pieces > 0 && !journal_->usage().ship_error.empty(); }));
  ASSERT_EQ(journal_->usage().shipping, Shipping::kResyncing);
  write(1, {0, kG}, 0x33);
  copy_.away.insert(image_id(1));
  replica_back();
  ASSERT_TRUE(settle([&] { return replica_->images[image_id(2)] == copy_.images[image_id(2)]; }, 120)) << "it waits for the other";
  ASSERT_FALSE(journal_->usage().withheld.empty());
  copy_.away.clear();
  ASSERT_TRUE(settle([&] { return journal_->usage().withheld.empty(); }));
  expect_level_in_the_end();
}

}  // namespace
}  // namespace tidemark::journal
