// Logging: one Logger a component; a stable event name and key=value fields, ids always.
// spdlog and the journald level prefixes are behind it (log.cc). An expected fault never logs at
// error: an error line fails a simulation.
//
//   static const log::Logger kLog("mirror");
//   kLog.info("link_up", {{"peer", name}, {"epoch", epoch.value}});
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::log {

enum class Level : uint8_t { kDebug, kInfo, kWarning, kError };

struct Field {
  std::string_view key;
  std::string value;
  Field(std::string_view k, std::string v) : key(k), value(std::move(v)) {}
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(v) {}
  Field(std::string_view k, const Uuid& v) : key(k), value(v.to_string()) {}
  Field(std::string_view k, const Status& v) : key(k), value(v.to_string()) {}
  template <typename T>
    requires std::is_integral_v<T>
  Field(std::string_view k, T v) : key(k), value(std::to_string(v)) {}
  template <typename Tag>
  Field(std::string_view k, StrongId<Tag> v) : key(k), value(std::to_string(v.value)) {}
};

class Logger {
 public:
  constexpr explicit Logger(const char* component) : component_(component) {}
  void debug(std::string_view event, std::initializer_list<Field> fields = {}) const { write(Level::kDebug, event, fields); }
  void info(std::string_view event, std::initializer_list<Field> fields = {}) const { write(Level::kInfo, event, fields); }
  void warning(std::string_view event, std::initializer_list<Field> fields = {}) const { write(Level::kWarning, event, fields); }
  void error(std::string_view event, std::initializer_list<Field> fields = {}) const { write(Level::kError, event, fields); }
  void write(Level level, std::string_view event, std::initializer_list<Field> fields) const;

 private:
  const char* component_;
};

struct Options {
  Level level = Level::kInfo;
  std::string file;         // empty: standard error
  bool journald = false;    // prefix lines with <N> levels, no time of our own
};
void configure(const Options& options);
std::optional<Level> parse_level(std::string_view name);   // debug, info, warning, error

// Tests and the simulator see every line instead of it being written: (level, component, line).
using Sink = std::function<void(Level, std::string_view, std::string_view)>;
void set_sink_for_testing(Sink sink);

}  // namespace tidemark::log
