#include "shared/base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <mutex>

namespace tidemark::log {
namespace {

std::mutex g_mutex;
Sink g_sink;                               // guarded by g_mutex
std::shared_ptr<spdlog::logger> g_logger;  // guarded by g_mutex; spdlog hands loggers out shared
bool g_journald = false;                   // guarded by g_mutex
std::atomic<Level> g_level{Level::kInfo};

std::shared_ptr<spdlog::logger> make_logger(const Options& options) {
  spdlog::sink_ptr sink;
  if (options.file.empty()) sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  else sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
  auto logger = std::make_shared<spdlog::logger>("tidemark", sink);
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::info);
  logger->set_pattern(options.journald ? "%v" : "%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  return logger;
}

bool plain(std::string_view v) {
  if (v.empty()) return false;
  for (unsigned char c : v) if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7F) return false;
  return true;
}

void append_value(std::string& line, std::string_view v) {
  if (plain(v)) { line.append(v); return; }
  static const char* hex = "0123456789abcdef";
  line.push_back('"');
  for (unsigned char c : v) {
    if (c == '"' || c == '\\') { line.push_back('\\'); line.push_back(static_cast<char>(c)); }
    else if (c == '\n') line.append("\\n");
    else if (c < ' ' || c == 0x7F) { line.append("\\x"); line.push_back(hex[c >> 4]); line.push_back(hex[c & 15]); }
    else line.push_back(static_cast<char>(c));
  }
  line.push_back('"');
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug: return spdlog::level::debug;
    case Level::kInfo: return spdlog::level::info;
    case Level::kWarning: return spdlog::level::warn;
    case Level::kError: return spdlog::level::err;
  }
  return spdlog::level::err;
}

}  // namespace

void Logger::write(Level level, std::string_view event, std::initializer_list<Field> fields) const {
  if (level < g_level.load(std::memory_order_relaxed)) return;
  std::string line;
  line.append(component_).append(" ").append(event);
  for (const Field& f : fields) {
    line.push_back(' ');
    line.append(f.key).push_back('=');
    append_value(line, f.value);
  }
  std::lock_guard lock(g_mutex);
  if (g_sink) { g_sink(level, component_, line); return; }
  if (!g_logger) g_logger = make_logger({});
  if (g_journald) {
    static const char* const prefix[] = {"<7>", "<6>", "<4>", "<3>"};
    line.insert(0, prefix[static_cast<int>(level)]);
  }
  g_logger->log(to_spdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

void configure(const Options& options) {
  std::lock_guard lock(g_mutex);
  g_logger = make_logger(options);
  g_journald = options.journald;
  g_level.store(options.level, std::memory_order_relaxed);
}

std::optional<Level> parse_level(std::string_view name) {
  if (name == "debug") return Level::kDebug;
  if (name == "info") return Level::kInfo;
  if (name == "warning") return Level::kWarning;
  if (name == "error") return Level::kError;
  return std::nullopt;
}

void set_sink_for_testing(Sink sink) {
  std::lock_guard lock(g_mutex);
  g_sink = std::move(sink);
}

}  // namespace tidemark::log
