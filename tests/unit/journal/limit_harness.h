// What the tests of the journal's limit and of its disk stand on.
#pragma once

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/io/file.h"
#include "tests/unit/journal/journal_harness.h"

namespace tidemark::journal {

class LimitTest : public JournalTest {
 protected:
  LimitTest() : LimitTest(sim::WorldOptions()) {}
  explicit LimitTest(const sim::WorldOptions& options) : JournalTest(options) {
    options_.settings.limit_bytes = 1u << 20;
    options_.settings.region_bytes = 16 * kG;
    for (int i = 0; i < 3; ++i) add_image(i, 200 * kG);
  }
  void replica_away() {
    replica_->interfere = [](const net::HttpRequest&) { return std::optional(net::HttpResponse::json(503, "{}")); };
  }
  void replica_back() { replica_->interfere = {}; }
  // Another store, with nothing in it.
  void empty_replica() {
    replica_->store = Uuid::from_random({1, 2, ++stores_emptied_});
    replica_->expected = 1;
    replica_->last_digest = {};
    replica_->images.clear();
    replica_->known.clear();
    replica_->aside.clear();
    replica_->points.clear();
    replica_->followed.clear();
    checked_ = 0;
  }
  void resync_all() {
    std::vector<ImageExtent> all;
    for (const auto& [image, bytes] : copy_.images) all.push_back({image, {0, bytes.size()}});
    resync(std::move(all));
  }
  void resync(std::vector<ImageExtent> all) { journal_->resync_replica(std::move(all), [](const Status&) {}); }
  void load_until(std::function<bool()> done) {
    for (int i = 0; i < 300 && !done(); ++i) {
      run_load(40, 8);
      world_.run_for(std::chrono::milliseconds(60));
      largest_spool_ = std::max(largest_spool_, journal_->usage().spool_bytes);
    }
    ASSERT_TRUE(done());
  }
  bool degraded() { return journal_->usage().shipping == Shipping::kDegraded; }
  bool normal() { return journal_->usage().shipping == Shipping::kNormal && journal_->usage().resync_left_bytes == 0; }
  // Nothing that was written until now is dirty after a crash.
  void clean() {
    for (const auto& [image, s] : slots_) journal_->note_durable(s, journal_->last_finished());
    world_.run_for(std::chrono::seconds(20));
  }
  void close_cleanly() {
    Status closed(Code::kUnavailable, "nobody answered");
    journal_->close(std::chrono::seconds(10), [&](Status s) { closed = std::move(s); });
    ASSERT_TRUE(settle([&] { return closed.is_ok(); })) << closed.to_string();
    world_.run_for(std::chrono::seconds(1));
    crash(sim::Crash::kKill);
  }
  size_t spool_files() { return env_->files().list("/state/spool")->size(); }
  void expect_level() {
    ASSERT_TRUE(settle([&] { return normal(); }, 600)) << journal_->usage().ship_error;
    wait_shipped();
    expect_points_right();
    EXPECT_EQ(replica_->conflicts, 0u);
    for (const auto& [image, bytes] : copy_.images) EXPECT_EQ(replica_->images[image], bytes) << image.to_string();
  }
  uint64_t largest_spool_ = 0;
  uint8_t stores_emptied_ = 0;
};

}  // namespace tidemark::journal
