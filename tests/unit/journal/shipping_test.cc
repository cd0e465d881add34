// The journal and its replica, in the simulator: receipts, lost answers, restarts, conflicts, a full spool.
#include <gtest/gtest.h>

#include "journal/journal.h"
#include "shared/base/log.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {
namespace {

TEST_F(JournalTest, WaitersGetTheReplicasReceipt) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(10, 4);
  Point p = journal_->cut(Journal::CutReason::kNamed, "snap");
  Result<std::string> receipt = std::string();
  journal_->when_shipped(p.batch, [&](Result<std::string> r) { receipt = std::move(r); });
  ASSERT_TRUE(settle([&] { return !receipt || !receipt->empty(); }));
  ASSERT_TRUE(receipt) << receipt.status().to_string();
  EXPECT_NE(receipt->find("\"point\""), std::string::npos);
}

TEST_F(JournalTest, LostRequestsAndAnswersAreRepeatedAndTheBatchStaysTheSame) {
  world_.set_network_faults(0, 200'000, 200'000);
  for (int i = 0; i < 2; ++i) add_image(i, 128 * kG);
  open_journal();
  for (int i = 0; i < 6; ++i) run_load(80, 16);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->conflicts, 0u);
  EXPECT_EQ(replica_->images, model_at(journal_->incarnation(), Counter(UINT64_MAX)));
}

TEST_F(JournalTest, ResumesFromWhatTheReplicaHasAfterARestart) {
  add_image(0, 128 * kG);
  open_journal();
  // Applied but unanswered: the host dies before it learns.
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method != "PUT" || replica_->expected < 3) return std::nullopt;
    replica_->interfere = {};
    net::HttpResponse answer;
    replica_->handle(r, [](net::HttpResponse) {});
    return net::HttpResponse::json(503, R"({"error":"answer lost"})");
  };
  run_load(200, 16);
  world_.run_for(std::chrono::milliseconds(300));
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  run_load(100, 8);
  wait_shipped();
  expect_points_right();
  EXPECT_EQ(replica_->conflicts, 0u);
  EXPECT_EQ(replica_->images[image_id(0)], copy_.images[image_id(0)]);
}

TEST_F(JournalTest, AConflictStopsLoudlyAndKeepsTheSpool) {
  add_image(0, 128 * kG);
  int errors = 0;
  log::set_sink_for_testing([&](log::Level level, std::string_view, std::string_view) { errors += level == log::Level::kError; });
  open_journal();
  bool refuse = true;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (!refuse || r.method != "PUT") return std::nullopt;
    return net::HttpResponse::json(409, R"({"error":"conflict","have":"aa","got":"bb"})");
  };
  run_load(50, 8);
  world_.run_for(std::chrono::seconds(120));
  EXPECT_NE(journal_->usage().ship_error.find("conflict"), std::string::npos);
  EXPECT_GT(journal_->usage().spool_batches, 0u);
  EXPECT_EQ(errors, 1) << "said once, not at every retry";
  refuse = false;
  wait_shipped();
  expect_points_right();
  EXPECT_TRUE(journal_->usage().ship_error.empty());
  log::set_sink_for_testing({});
}

// It answers every question, and has no room for what it is sent.
TEST_F(JournalTest, AReplicaThatRefusesEveryPartIsSentThemEverMoreRarelyAndSaidToDoSo) {
  add_image(0, 128 * kG);
  int warnings = 0;
  log::set_sink_for_testing([&](log::Level, std::string_view, std::string_view line) {
    warnings += line.find("retry") != std::string_view::npos ? 1 : 0;
  });
  open_journal();
  uint64_t puts = 0;
  bool full = true;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (!full || r.method != "PUT") return std::nullopt;
    ++puts;
    return net::HttpResponse::json(507, R"({"error":"out_of_space","reason":"the storage is full"})");
  };
  run_load(50, 8);
  ASSERT_TRUE(settle([&] { return puts != 0 && !journal_->usage().ship_error.empty(); }));
  for (int i = 0; i < 6000; ++i) {
    world_.run_for(std::chrono::milliseconds(10));
    ASSERT_NE(journal_->usage().ship_error.find("507"), std::string::npos) << "it does not say so, " << puts << " parts sent";
  }
  EXPECT_LE(puts, 20u);
  EXPECT_LE(warnings, 2);
  full = false;
  wait_shipped();
  expect_points_right();
  EXPECT_TRUE(journal_->usage().ship_error.empty());
  log::set_sink_for_testing({});
}

// Many small batches and one large take the same time: that of their bytes.
class ShipRateTest : public JournalTest {
 protected:
  void ships_at_its_rate(std::chrono::milliseconds cut_interval, uint64_t puts_min) {
    constexpr uint64_t kRate = 64 << 10;
    add_image(0, 128 * kG);
    options_.settings.ship_rate = kRate;
    options_.settings.cut_interval = cut_interval;
    uint64_t sent = 0, puts = 0;
    replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
      sent += r.body.size();
      puts += r.method == "PUT" ? 1 : 0;
      return std::nullopt;
    };
    open_journal();
    EXPECT_EQ(journal_->usage().ship_rate, kRate);
    io::BootTime begin = env_->now();
    for (int i = 0; i < 10; ++i) run_load(60, 8);
    wait_shipped();
    double seconds = static_cast<double>((env_->now() - begin).count()) / 1e9;
    double due = static_cast<double>(sent) / static_cast<double>(kRate);
    EXPECT_GE(puts, puts_min);
    EXPECT_GT(due, 3) << "too little to tell";
    EXPECT_GE(seconds, due * 0.9) << puts << " requests";
    EXPECT_LT(seconds, due * 1.5 + 5) << "it goes on at about that rate; " << puts << " requests";
    expect_points_right();
  }
};

TEST_F(ShipRateTest, HoldsForManySmallBatchesTogether) { ships_at_its_rate(std::chrono::milliseconds(50), 8); }
TEST_F(ShipRateTest, HoldsForALargeBatch) { ships_at_its_rate(std::chrono::seconds(60), 1); }

TEST_F(JournalTest, AnotherStoreOrAForgetfulReplicaNeedsAFullResync) {
  add_image(0, 128 * kG);
  open_journal();
  run_load(50, 8);
  wait_shipped();
  replica_->store = Uuid::from_random({1, 2, 3});
  // A failed request makes it ask again.
  int fail = 1;
  replica_->interfere = [&](const net::HttpRequest& r) -> std::optional<net::HttpResponse> {
    if (r.method == "PUT" && fail-- > 0) return net::HttpResponse::json(503, "{}");
    return std::nullopt;
  };
  run_load(50, 8);
  world_.run_for(std::chrono::seconds(3));
  EXPECT_NE(journal_->usage().ship_error.find("another store"), std::string::npos);
  EXPECT_GT(journal_->usage().spool_batches, 0u);
}

}  // namespace
}  // namespace tidemark::journal
