#include "shared/base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>

#include "shared/base/status.h"

namespace tidemark::metrics {
namespace {

std::string full_name(std::string_view name) {
  return name.starts_with("tidemark_") ? std::string(name) : "tidemark_" + std::string(name);
}

bool in_base_units(std::string_view name) {
  for (std::string_view bad : {"_ms", "_us", "_ns", "_milliseconds", "_microseconds", "_kb", "_mb", "_kib", "_mib"}) {
    if (name.ends_with(bad) || name.ends_with(std::string(bad) + "_total")) return false;
  }
  return true;
}

}  // namespace

void Counter::add(double amount) { if (p_ != nullptr) p_->Increment(amount); }
double Counter::value() const { return p_ != nullptr ? p_->Value() : 0; }
void Gauge::set(double value) { if (p_ != nullptr) p_->Set(value); }
void Gauge::add(double amount) { if (p_ != nullptr) p_->Increment(amount); }
double Gauge::value() const { return p_ != nullptr ? p_->Value() : 0; }
void Histogram::observe(double value) { if (p_ != nullptr) p_->Observe(value); }

std::vector<double> latency_bounds() {
  return {50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};
}

struct Registry::State {
  prometheus::Registry registry;
  std::mutex mutex;
  std::map<std::string, prometheus::Family<prometheus::Counter>*> counters;      // guarded by mutex
  std::map<std::string, prometheus::Family<prometheus::Gauge>*> gauges;          // guarded by mutex
  std::map<std::string, prometheus::Family<prometheus::Histogram>*> histograms;  // guarded by mutex
  std::vector<std::function<void()>> collectors;                                 // guarded by mutex
};

Registry::Registry() : state_(std::make_unique<State>()) {}
Registry::~Registry() = default;

Counter Registry::counter(std::string_view name, std::string_view help, const Labels& labels) {
  std::string full = full_name(name);
  TM_CHECK(full.ends_with("_total") && in_base_units(full), full.c_str());
  std::lock_guard lock(state_->mutex);
  auto& family = state_->counters[full];
  if (family == nullptr) {
    family = &prometheus::BuildCounter().Name(full).Help(std::string(help)).Register(state_->registry);
  }
  return Counter(&family->Add(labels));
}

Gauge Registry::gauge(std::string_view name, std::string_view help, const Labels& labels) {
  std::string full = full_name(name);
  TM_CHECK(!full.ends_with("_total") && in_base_units(full), full.c_str());
  std::lock_guard lock(state_->mutex);
  auto& family = state_->gauges[full];
  if (family == nullptr) {
    family = &prometheus::BuildGauge().Name(full).Help(std::string(help)).Register(state_->registry);
  }
  return Gauge(&family->Add(labels));
}

Histogram Registry::histogram(std::string_view name, std::string_view help, std::vector<double> bounds,
                              const Labels& labels) {
  std::string full = full_name(name);
  TM_CHECK(!full.ends_with("_total") && in_base_units(full), full.c_str());
  std::lock_guard lock(state_->mutex);
  auto& family = state_->histograms[full];
  if (family == nullptr) {
    family = &prometheus::BuildHistogram().Name(full).Help(std::string(help)).Register(state_->registry);
  }
  return Histogram(&family->Add(labels, bounds));
}

void Registry::remove_gauge(std::string_view name, const Labels& labels) {
  std::lock_guard lock(state_->mutex);
  auto at = state_->gauges.find(full_name(name));
  if (at != state_->gauges.end()) at->second->Remove(&at->second->Add(labels));
}

void Registry::on_collect(std::function<void()> fn) {
  std::lock_guard lock(state_->mutex);
  state_->collectors.push_back(std::move(fn));
}

std::string Registry::text() const {
  std::vector<std::function<void()>> collectors;
  {
    std::lock_guard lock(state_->mutex);
    collectors = state_->collectors;
  }
  for (auto& collect : collectors) collect();
  return prometheus::TextSerializer().Serialize(state_->registry.Collect());
}

}  // namespace tidemark::metrics
