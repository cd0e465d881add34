// Sizes and durations as people write them, for the configuration and the command line.

#include <array>
#include <charconv>
#include <cstdio>
#include <limits>

#include "shared/base/config.h"

namespace tidemark::config {
namespace {

struct Amount {
  double value = 0;
  bool whole = true;
  uint64_t integer = 0;
  std::string_view unit;
};

// Number and unit of "1.5GiB", "250 ms". A fraction is allowed with a unit only.
std::optional<Amount> split(std::string_view text) {
  Amount a;
  size_t digits = 0;
  while (digits < text.size() && (std::isdigit(static_cast<unsigned char>(text[digits])) || text[digits] == '.')) ++digits;
  if (digits == 0) return std::nullopt;
  std::string_view number = text.substr(0, digits);
  a.unit = text.substr(digits);
  while (!a.unit.empty() && a.unit.front() == ' ') a.unit.remove_prefix(1);
  a.whole = number.find('.') == std::string_view::npos;
  const char* end = number.data() + number.size();
  if (a.whole) {
    auto [p, error] = std::from_chars(number.data(), end, a.integer);
    if (error != std::errc() || p != end) return std::nullopt;
  }
  auto [p, error] = std::from_chars(number.data(), end, a.value);
  if (error != std::errc() || p != end) return std::nullopt;
  return a;
}

Status bad(std::string_view what, std::string_view text, std::string_view remedy) {
  return {Code::kInvalidArgument, std::string(what) + " \"" + std::string(text) + "\": " + std::string(remedy)};
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  static constexpr std::string_view kRemedy = "write bytes or a number with KiB, MiB, GiB or TiB, such as 256MiB";
  auto amount = split(text);
  if (!amount) return bad("bad size", text, kRemedy);
  std::string unit(amount->unit);
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  int power = -1;
  if (unit.empty() || unit == "B") power = 0;
  static constexpr std::string_view kLetters = "KMGT";
  for (size_t i = 0; i < kLetters.size(); ++i) {
    std::string letter(1, kLetters[i]);
    if (unit == letter || unit == letter + "B" || unit == letter + "IB") power = static_cast<int>(i) + 1;
  }
  if (power < 0 || (power == 0 && !amount->whole)) return bad("bad size", text, kRemedy);
  uint64_t factor = 1ull << (10 * power);
  if (amount->whole) {
    if (amount->integer > std::numeric_limits<uint64_t>::max() / factor) return bad("bad size", text, "it is too large");
    return amount->integer * factor;
  }
  double bytes = amount->value * static_cast<double>(factor);
  if (bytes >= 9.0e18) return bad("bad size", text, "it is too large");
  return static_cast<uint64_t>(bytes);
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text) {
  static constexpr std::string_view kRemedy = "write a number with ms, s, m or h, such as 250ms or 5s";
  auto amount = split(text);
  if (!amount) return bad("bad duration", text, kRemedy);
  double ms = 0;
  if (amount->unit == "ms") ms = 1;
  else if (amount->unit == "s") ms = 1000;
  else if (amount->unit == "m" || amount->unit == "min") ms = 60'000;
  else if (amount->unit == "h") ms = 3'600'000;
  else return bad("bad duration", text, kRemedy);
  double total = amount->value * ms;
  if (total > 366.0 * 24 * 3'600'000) return bad("bad duration", text, "it is longer than a year");
  return std::chrono::milliseconds(static_cast<int64_t>(total));
}

std::string format_size(uint64_t bytes) {
  static constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  char out[48];
  if (unit == 0) std::snprintf(out, sizeof out, "%llu B", static_cast<unsigned long long>(bytes));
  else std::snprintf(out, sizeof out, "%.1f %s", value, kUnits[unit]);
  return out;
}

}  // namespace tidemark::config
