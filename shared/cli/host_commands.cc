// host restart: the daemon replaced under its guests.

#include <chrono>
#include <thread>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"

namespace tidemark::cli {
namespace {
constexpr std::chrono::seconds kRestartMax{60};
constexpr std::chrono::milliseconds kLook{50};
}  // namespace

Outcome host_restart(Context& context) {
  TM_ASSIGN_OR_RETURN(Json before, context.control_post("/v1/restart", Json::object()));
  const auto until = std::chrono::steady_clock::now() + kRestartMax;
  while (std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(kLook);   // lint: allow sleep_for: the pace of asking
    auto now = context.control_get("/v1/restart");
    if (!now) continue;
    if (number(*now, "refusals") > number(before, "refusals"))
      return Status(Code::kInvalidArgument, "not restarted: " + text(*now, "refusal"));
    if (number(*now, "successors") == number(before, "successors")) continue;
    context.result(*now, "restarted: the daemon is now process " + text(*now, "daemon_pid") + ", before it was " +
                             text(before, "daemon_pid"));
    return 0;
  }
  return Status(Code::kUnavailable, "the daemon has not come back yet: see its log");
}

}  // namespace tidemark::cli
