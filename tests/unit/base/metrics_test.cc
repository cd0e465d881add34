#include "shared/base/metrics.h"

#include <gtest/gtest.h>

namespace tidemark::metrics {
namespace {

TEST(Metrics, ExposesCountersGaugesAndHistograms) {
  Registry registry;
  Counter writes = registry.counter("writes_total", "Guest writes", {{"image", "a"}});
  writes.add();
  registry.counter("writes_total", "Guest writes", {{"image", "a"}}).add(2);
  EXPECT_EQ(writes.value(), 3);
  registry.gauge("stale_bytes", "Stale").set(4096);
  registry.histogram("write_seconds", "Latency", {0.1, 1}).observe(0.05);
  std::string text = registry.text();
  EXPECT_NE(text.find("# TYPE tidemark_writes_total counter"), std::string::npos) << text;
  EXPECT_NE(text.find("tidemark_writes_total{image=\"a\"} 3"), std::string::npos) << text;
  EXPECT_NE(text.find("tidemark_stale_bytes 4096"), std::string::npos) << text;
  EXPECT_NE(text.find("tidemark_write_seconds_bucket{le=\"0.1\"} 1"), std::string::npos) << text;
}

TEST(Metrics, CollectorsRunWhenSomebodyLooks) {
  Registry registry;
  Gauge spool = registry.gauge("spool_bytes", "Spool");
  int calls = 0;
  registry.on_collect([&] { spool.set(++calls); });
  EXPECT_EQ(calls, 0);
  EXPECT_NE(registry.text().find("tidemark_spool_bytes 1"), std::string::npos);
  EXPECT_NE(registry.text().find("tidemark_spool_bytes 2"), std::string::npos);
}

TEST(Metrics, ARemovedSeriesIsGone) {
  Registry registry;
  registry.gauge("image_bytes", "Size", {{"image", "a"}}).set(1);
  registry.remove_gauge("image_bytes", {{"image", "a"}});
  EXPECT_EQ(registry.text().find("image=\"a\""), std::string::npos);
}

TEST(MetricsDeathTest, NamesOutsideTheRulesAreProgrammerErrors) {
  Registry registry;
  EXPECT_DEATH(registry.counter("writes", "no _total"), "check failed");
  EXPECT_DEATH(registry.gauge("latency_ms", "not a base unit"), "check failed");
}

}  // namespace
}  // namespace tidemark::metrics
