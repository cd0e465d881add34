// JSON as the daemons answer it: lenient reading, since a missing field of an older or newer daemon must
// not stop a command. Only for .cc files and headers of this folder.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "shared/base/status.h"

namespace tidemark::cli {

using Json = nlohmann::ordered_json;

inline const Json& at(const Json& j, const char* key) {
  static const Json kNull;
  auto i = j.is_object() ? j.find(key) : j.end();
  return j.is_object() && i != j.end() ? *i : kNull;
}
inline std::string text(const Json& j, const char* key, std::string otherwise = "") {
  const Json& v = at(j, key);
  if (v.is_string()) return v.get<std::string>();
  return v.is_null() ? otherwise : v.dump();
}
inline uint64_t number(const Json& j, const char* key, uint64_t otherwise = 0) {
  const Json& v = at(j, key);
  if (v.is_number_integer()) return v.get<uint64_t>();
  return v.is_number() && v.get<double>() > 0 ? static_cast<uint64_t>(v.get<double>()) : otherwise;
}
inline double real(const Json& j, const char* key) { return at(j, key).is_number() ? at(j, key).get<double>() : 0; }
inline bool flag(const Json& j, const char* key) { return at(j, key).is_boolean() && at(j, key).get<bool>(); }
inline std::string dump(const Json& j, int indent = 2) {
  return j.dump(indent, ' ', false, Json::error_handler_t::replace);
}
Result<Json> parse_json(std::string_view text, const std::string& from);

}  // namespace tidemark::cli
