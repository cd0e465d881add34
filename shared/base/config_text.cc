#include "shared/base/config_text.h"

#include <algorithm>

namespace tidemark::config {
namespace {

// Letters to change to get from one word to the other: to offer the key that was meant.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string known_list(std::string_view wrong, const std::vector<std::string>& known) {
  std::string best, all;
  size_t least = 3;
  for (const std::string& k : known) {
    all += (all.empty() ? "" : ", ") + k;
    if (size_t d = distance(wrong, k); d < least) {
      least = d;
      best = k;
    }
  }
  return best.empty() ? "known here: " + all : "did you mean " + best + "?";
}

bool is_address(const std::string& text) {
  size_t colon = text.rfind(':');
  bool good = colon != std::string::npos && colon > 0 && colon + 1 < text.size() && text.size() - colon <= 6;
  for (size_t i = good ? colon + 1 : text.size(); i < text.size(); ++i) good = good && text[i] >= '0' && text[i] <= '9';
  if (good && std::stoul(text.substr(colon + 1)) > 65535) good = false;
  return good && (text.find(':') == colon || text.front() == '[');
}

uint32_t line_of_dots(std::string_view text) {
  uint32_t line = 1;
  size_t dots = 0;
  bool begins = true, comment = false;   // the line, as far as it was read
  for (char c : text) {
    if (c == '\n') {
      ++line;
      begins = true;
      comment = false;
      continue;
    }
    comment = comment || (begins && c == '#');
    begins = begins && (c == ' ' || c == '\t');
    if (c == '.' && !comment && ++dots > kConfigDotsMax) return line;
  }
  return 0;
}

}  // namespace tidemark::config
