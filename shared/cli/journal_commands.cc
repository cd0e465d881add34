// journal inspect, pause-shipping, resume-shipping.

#include <algorithm>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"

namespace tidemark::cli {
namespace {

// A flat rendering that shows whatever fields there are: the journal's own words, not this tool's.
std::string table_of(const Json& list) {
  std::vector<std::string> headings;
  for (const Json& row : list) {
    for (const auto& [key, value] : row.items()) {
      if (std::find(headings.begin(), headings.end(), key) == headings.end()) headings.push_back(key);
    }
  }
  Table table(headings);
  for (const Json& row : list) {
    std::vector<std::string> cells;
    for (const std::string& h : headings) {
      std::string cell = text(row, h.c_str());
      cells.push_back(cell.empty() ? "-" : cell);
    }
    table.row(std::move(cells));
  }
  return table.text();
}

std::string inspect_text(const Json& j) {
  std::string scalars, lists;
  for (const auto& [key, value] : j.items()) {
    if (value.is_array() && !value.empty() && value.front().is_object()) {
      lists += "\n" + printable(key) + "\n" + table_of(value);
    } else if (value.is_object()) {
      for (const auto& [inner, v] : value.items()) {
        scalars += printable(key + "." + inner) + ": " + printable(v.is_string() ? v.get<std::string>() : dump(v, -1)) + "\n";
      }
    } else {
      scalars += printable(key) + ": " + printable(value.is_string() ? value.get<std::string>() : dump(value, -1)) + "\n";
    }
  }
  return scalars + lists;
}

}  // namespace

Outcome journal_inspect(Context& context, const InspectOptions& o) {
  TM_ASSIGN_OR_RETURN(Json j, context.control_get("/v1/journal?records=" + std::to_string(o.records)));
  context.result(j, inspect_text(j));
  return 0;
}

Outcome journal_pause(Context& context, bool paused) {
  TM_ASSIGN_OR_RETURN(Json j, context.control_post("/v1/shipping", Json{{"paused", paused}}));
  context.result(j, flag(j, "paused") ? "shipping is paused: cuts go on, batches stay in the spool" : "shipping goes on");
  return 0;
}

}  // namespace tidemark::cli
