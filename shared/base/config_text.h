// What the reader of configurations asks of plain text, before and after TOML is made of it. For config.cc alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tidemark::config {

// The key that was meant, if one is near; else all that are known.
std::string known_list(std::string_view wrong, const std::vector<std::string>& known);

// "127.0.0.1:7400", "[::1]:7400", "name:7400".
bool is_address(const std::string& text);

// The parser makes a table of each part of a dotted key, nested in the one before, and takes them apart by recursion.
// What nests has a dot each, outside comments (values in values, too, but these it bounds).
constexpr size_t kConfigDotsMax = 4096;
// 0: few enough; else the line with one too many.
uint32_t line_of_dots(std::string_view text);

}  // namespace tidemark::config
