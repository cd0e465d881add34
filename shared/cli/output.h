// What a command prints: tables for people, one JSON document for programs, progress on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "shared/base/status.h"

namespace tidemark::cli {

// Columns as wide as their widest cell; a number's column is set to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> headings) : headings_(std::move(headings)) {}
  Table& right(std::vector<size_t> columns);
  void row(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  std::string text() const;

 private:
  std::vector<std::string> headings_;
  std::vector<size_t> right_;
  std::vector<std::vector<std::string>> rows_;
};

// Control characters of names that come from elsewhere are shown as \xNN: a name must not write to a terminal.
std::string printable(std::string_view text);
std::string format_seconds(double seconds);          // "0 s", "1.4 s", "3 min 20 s", "2 h 5 min"
size_t display_width(std::string_view utf8);

// A bar on standard error while it is a terminal; silent otherwise, under --json and --quiet.
class ProgressBar {
 public:
  ProgressBar(std::string label, bool wanted);
  ~ProgressBar();   // ends the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  // `done` may start above 0 (a resumed transfer): the rate counts from the first call.
  void update(uint64_t done, uint64_t total);
  static std::string line(const std::string& label, uint64_t done, uint64_t total, uint64_t first, double seconds);

 private:
  std::string label_;
  bool shown_;
  bool drawn_ = false, finished_ = false;
  bool begun_ = false;
  uint64_t first_ = 0;
  std::chrono::steady_clock::time_point start_{}, last_{};
};

}  // namespace tidemark::cli
