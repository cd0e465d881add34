#include "shared/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "shared/base/config.h"

namespace tidemark::cli {

std::string printable(std::string_view text) {
  std::string out;
  for (unsigned char c : text) {
    if (c < 0x20 || c == 0x7F) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", c);
      out += escaped;
    } else {
      out.push_back(static_cast<char>(c));
    }
  }
  return out;
}

size_t display_width(std::string_view utf8) {
  size_t width = 0;
  for (unsigned char c : utf8) width += (c & 0xC0) != 0x80 ? 1 : 0;
  return width;
}

std::string format_seconds(double seconds) {
  char out[64];
  if (seconds < 0) seconds = 0;
  if (seconds < 60) {
    std::snprintf(out, sizeof out, seconds == std::floor(seconds) ? "%.0f s" : "%.1f s", seconds);
  } else if (seconds < 3600) {
    std::snprintf(out, sizeof out, "%.0f min %.0f s", std::floor(seconds / 60), std::floor(std::fmod(seconds, 60)));
  } else {
    std::snprintf(out, sizeof out, "%.0f h %.0f min", std::floor(seconds / 3600), std::floor(std::fmod(seconds, 3600) / 60));
  }
  return out;
}

Table& Table::right(std::vector<size_t> columns) {
  right_ = std::move(columns);
  return *this;
}

void Table::row(std::vector<std::string> cells) {
  cells.resize(headings_.size());
  for (std::string& cell : cells) cell = printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<size_t> widths;
  for (const std::string& h : headings_) widths.push_back(display_width(h));
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], display_width(row[i]));
  }
  std::string out;
  auto append = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      std::string gap(widths[i] - display_width(cells[i]), ' ');
      bool to_right = std::find(right_.begin(), right_.end(), i) != right_.end();
      if (i > 0) line += "  ";
      line += to_right ? gap + cells[i] : cells[i] + gap;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
  };
  append(headings_);
  for (const auto& row : rows_) append(row);
  return out;
}

ProgressBar::ProgressBar(std::string label, bool wanted) : label_(std::move(label)), shown_(wanted && isatty(2) != 0) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputc('\n', stderr);
}

std::string ProgressBar::line(const std::string& label, uint64_t done, uint64_t total, uint64_t first, double seconds) {
  double part = total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  constexpr int kWidth = 24;
  int full = static_cast<int>(part * kWidth);
  std::string bar(static_cast<size_t>(full), '#');
  bar.resize(kWidth, '.');
  std::string out = printable(label) + " [" + bar + "] " + std::to_string(static_cast<int>(part * 100)) + "%  " +
                    config::format_size(done) + " of " + config::format_size(total);
  if (seconds > 0.2 && done > first) {
    double rate = static_cast<double>(done - first) / seconds;
    out += "  " + config::format_size(static_cast<uint64_t>(rate)) + "/s";
    if (done < total) out += "  " + format_seconds(std::ceil(static_cast<double>(total - done) / rate)) + " left";
  }
  return out;
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (!shown_ || finished_) return;
  auto now = std::chrono::steady_clock::now();
  if (!begun_) {
    begun_ = true;
    first_ = done;
    start_ = now;
  }
  if (drawn_ && done < total && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  finished_ = done >= total;
  std::string text = line(label_, done, total, first_, std::chrono::duration<double>(now - start_).count());
  std::fprintf(stderr, "\r\x1b[K%s", text.c_str());
}

}  // namespace tidemark::cli
