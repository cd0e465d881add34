// The spool is given up while much is on its way, or while nothing can be staged: nobody waits for it, and nothing grows.
#include <gtest/gtest.h>

#include "tests/repeat.h"
#include "tests/unit/journal/limit_harness.h"

namespace tidemark::journal {
namespace {

// A guest on another host waits for the tenure meanwhile.
TEST_F(LimitTest, AHandoverDoesNotWaitForWhatIsSentWhileTheSpoolIsGivenUp) {
  for (const bool before : {false, true}) {
    SCOPED_TRACE(before ? "asked before" : "asked afterwards");
    if (before) crash(sim::Crash::kKill);
    open_journal();
    reconcile_all();
    run_load(50, 8);
    wait_shipped();
    replica_->hold_answers = true;
    run_load(50, 8);
    ASSERT_TRUE(settle([&] { return !replica_->held.empty(); }));
    Status staged(Code::kBusy, "not yet");
    auto hand_over = [&] {
      Point point = journal_->cut(Journal::CutReason::kHandover);
      journal_->when_staged(point.batch, [&](Status s) { staged = std::move(s); });
    };
    run_load(20, 8);
    copy_.hold_reads = before;                // it is staged for long
    if (before) hand_over();
    resync_all();
    if (!before) hand_over();
    EXPECT_TRUE(settle([&] { return staged.code() == Code::kUnavailable; }, 2)) << staged.to_string();
    copy_.open_gate();
    replica_->release_answers();
    expect_level();
  }
}

TEST_F(LimitTest, TM_UNSANITIZED(NoFurtherPartOfALargeBatchIsSentOnceTheSpoolIsGivenUp)) {
  options_.settings.limit_bytes = 1ull << 30;
  add_image(9, 200u << 20);
  open_journal();
  Bytes noise(200u << 20);
  world_.random().fill(noise);
  bool written = false;
  submit({image_id(9), RecordKind::kWrite, {0, noise.size()}, 0, std::move(noise)}, [&] { written = true; });
  ASSERT_TRUE(settle([&] { return written; }));
  replica_->hold_answers = true;
  journal_->cut(Journal::CutReason::kNamed, "large");
  ASSERT_TRUE(settle([&] { return replica_->held.size() == 2; }));
  resync({});
  replica_->release_answers();
  ASSERT_TRUE(settle([&] { return degraded(); }));
  EXPECT_EQ(replica_->puts, 2u);
}

}  // namespace
}  // namespace tidemark::journal
