// What the hot path costs, and the bound on the records of one batch. Figures are reported as
// properties and printed; the bars here are loose, since unit tests run unoptimized and beside others.
#include <chrono>
#include <cstdio>
#include <random>

#include "tests/repeat.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {
namespace {

double ns_each(int count, const std::function<void(int)>& fn) {
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) fn(i);
  auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  return static_cast<double>(ns) / count;
}

TEST_F(JournalTest, TM_UNSANITIZED(HotPathCostsLittle)) {
  add_image(0, 64u << 20);
  ship_ = false;
  open_journal();
  journal_->pause_shipping(true);
  Slot s = slot(image_id(0));
  bool marked = false;
  journal_->mark_dirty(s, {0, 64u << 20}, [&](Status) { marked = true; });
  ASSERT_TRUE(settle([&] { return marked; }));
  constexpr int kCount = 200'000;
  std::mt19937_64 rng(1);
  std::vector<uint64_t> offsets(kCount);
  for (auto& o : offsets) o = rng() % (16384) * kG;
  std::vector<Ticket> tickets(kCount);
  auto all = [&] {
    double dirty = ns_each(kCount, [&](int i) { ASSERT_TRUE(journal_->is_dirty(s, {offsets[static_cast<size_t>(i)], kG})); });
    double preserve = ns_each(kCount, [&](int i) { (void)journal_->must_preserve(s, {offsets[static_cast<size_t>(i)], kG}); });
    // 32 in flight, as at depth 32.
    double begin = 0, finish = 0;
    for (int at = 0; at < kCount; at += 32) {
      begin += 32 * ns_each(32, [&](int i) {
        tickets[static_cast<size_t>(i)] = journal_->begin(s, RecordKind::kWrite, {offsets[static_cast<size_t>(at + i)], kG});
      });
      finish += 32 * ns_each(32, [&](int i) {
        journal_->finish(tickets[static_cast<size_t>(i)], CoordinatorSequence(static_cast<uint64_t>(at + i + 1)), 0x1234567890abcdef);
      });
    }
    std::printf("is_dirty %.0f ns, must_preserve %.0f ns, begin %.0f ns, finish %.0f ns\n", dirty, preserve, begin / kCount, finish / kCount);
    EXPECT_LT(dirty + preserve + (begin + finish) / kCount, 100'000);
  };
  all();
  // With a closed batch standing by, whose every block is needed.
  journal_->cut(Journal::CutReason::kNamed, "closed");
  all();
}

TEST_F(JournalTest, TM_UNSANITIZED(RecordsOfOneBatchAreBoundedAndLoseNothing)) {
  add_image(0, 16u << 20);
  std::fill(copy_.images[image_id(0)].begin(), copy_.images[image_id(0)].end(), 0x11);
  options_.settings.cut_bytes = 1ull << 50;
  open_journal();
  journal_->pause_shipping(true);
  Slot s = slot(image_id(0));
  bool marked = false;
  journal_->mark_dirty(s, {0, 16u << 20}, [&](Status) { marked = true; });
  ASSERT_TRUE(settle([&] { return marked; }));
  // Every second granule, again and again: nothing can be joined.
  for (uint64_t i = 0; i < 560'000; ++i) {
    journal_->finish(journal_->begin(s, RecordKind::kWrite, {i % 2048 * 2 * kG, kG}), CoordinatorSequence(i + 1), 1);
    if (i % 10'000 == 0) world_.run_for(std::chrono::milliseconds(20));
  }
  world_.run_for(std::chrono::seconds(2));
  EXPECT_LT(journal_->usage().records_unstaged, 100'000u);
  crash(sim::Crash::kPowerLoss);
  open_journal();
  reconcile_all();
  wait_shipped();
  const Bytes& there = replica_->images[image_id(0)];
  ASSERT_EQ(there.size(), 16u << 20);
  for (uint64_t g = 0; g < 2048; ++g) ASSERT_EQ(there[g * 2 * kG], 0x11) << "granule " << g * 2;
}

}  // namespace
}  // namespace tidemark::journal
