// Metrics of one node, in Prometheus' text form. Names carry base units: `_bytes`, `_seconds`; counters
// end in `_total`. All begin with `tidemark_` (added here when missing).
//
//   metrics::Registry registry;
//   metrics::Counter writes = registry.counter("writes_total", "Guest writes taken");
//   writes.add();                                       // any thread; one atomic addition
//   registry.on_collect([&] { stale.set(map.bytes()); });   // asked only when somebody looks
//
// A Registry is not global, so that a simulation can hold many nodes. Handles are small values that
// stay valid as long as their Registry. The same name and labels give the same metric.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace tidemark::metrics {

using Labels = std::map<std::string, std::string>;

// Handles made by default are not connected: what is told to them is dropped.
class Counter {
 public:
  Counter() = default;
  void add(double amount = 1);
  double value() const;

 private:
  friend class Registry;
  explicit Counter(prometheus::Counter* p) : p_(p) {}
  prometheus::Counter* p_ = nullptr;
};

class Gauge {
 public:
  Gauge() = default;
  void set(double value);
  void add(double amount);
  double value() const;

 private:
  friend class Registry;
  explicit Gauge(prometheus::Gauge* p) : p_(p) {}
  prometheus::Gauge* p_ = nullptr;
};

class Histogram {
 public:
  Histogram() = default;
  void observe(double value);

 private:
  friend class Registry;
  explicit Histogram(prometheus::Histogram* p) : p_(p) {}
  prometheus::Histogram* p_ = nullptr;
};

// Bounds from 50 us to 10 s, for latencies in seconds.
std::vector<double> latency_bounds();

class Registry {
 public:
  Registry();
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // A name that breaks the rules above, or is known as another kind, is a programmer error.
  Counter counter(std::string_view name, std::string_view help, const Labels& labels = {});
  Gauge gauge(std::string_view name, std::string_view help, const Labels& labels = {});
  Histogram histogram(std::string_view name, std::string_view help, std::vector<double> bounds = latency_bounds(),
                      const Labels& labels = {});
  // Drops one labelled series of a gauge (an image that was removed).
  void remove_gauge(std::string_view name, const Labels& labels);

  // `fn` runs at the beginning of every text(), on its thread: to set gauges that are not kept up to date.
  void on_collect(std::function<void()> fn);
  std::string text() const;   // text exposition format 0.0.4

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidemark::metrics
