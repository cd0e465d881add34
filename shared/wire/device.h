// A device's number as text, "MAJOR:MINOR" in decimal as in /sys/dev: what Create and Attr carry as a device's target.
// Valid if and only if it is written as device_text() writes it, within what Linux can have.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tidemark::wire {

struct DeviceNumber {
  static constexpr uint32_t kMajorMax = (1u << 12) - 1, kMinorMax = (1u << 20) - 1;
  uint32_t major_number = 0, minor_number = 0;   // major and minor are macros of the C library
};

inline std::string device_text(DeviceNumber d) {
  return std::to_string(d.major_number) + ":" + std::to_string(d.minor_number);
}

inline std::optional<DeviceNumber> parse_device(std::string_view text) {
  DeviceNumber out;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, out.major_number);
  if (first.ec != std::errc() || first.ptr == end) return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, out.minor_number);
  const bool in_range = out.major_number <= DeviceNumber::kMajorMax && out.minor_number <= DeviceNumber::kMinorMax;
  if (second.ec != std::errc() || !in_range || device_text(out) != text) return std::nullopt;
  return out;
}

}  // namespace tidemark::wire
