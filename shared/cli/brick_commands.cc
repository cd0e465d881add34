// tidemark brick: the directories that hold this node's copies.
#include "shared/base/config.h"
#include "shared/cli/commands.h"
#include "shared/cli/json.h"
#include "shared/cli/output.h"

namespace tidemark::cli {

Outcome brick_list(Context& context) {
  TM_ASSIGN_OR_RETURN(Json status, context.control_get("/v1/status"));
  Table table({"BRICK", "STATE"});
  for (const Json& brick : at(at(status, "storage"), "bricks")) {
    if (brick.is_string()) table.row({brick.get<std::string>(), "present"});   // a shared node starts with all or not at all
    else table.row({text(brick, "directory"), flag(brick, "present") ? "present" : text(brick, "why")});
  }
  context.result(at(status, "storage"), table.text());
  return 0;
}

Outcome brick_replace(Context& context, const std::string& directory, bool accept_loss) {
  TM_ASSIGN_OR_RETURN(Json answer, context.control_post("/v1/bricks/replace",
                                                        Json{{"brick", directory}, {"accept_loss", accept_loss}}));
  context.result(answer, directory + " is a new brick: " + text(answer, "images") + " images (" +
                             config::format_size(number(answer, "bytes")) + ") are filled from the shared copies while their guests go on; `tidemark status` shows how far");
  return 0;
}

}  // namespace tidemark::cli
