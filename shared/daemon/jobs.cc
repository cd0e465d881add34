#include "shared/daemon/jobs.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "shared/base/limits.h"

namespace tidemark::daemon {

Result<std::string> Jobs::start(std::string_view kind) {
  if (jobs_.size() >= limits::kJobsKeptMax) {
    auto ended = std::find_if(jobs_.begin(), jobs_.end(), [](const Job& j) { return j.state != Job::State::kRunning; });
    if (ended == jobs_.end()) return Status(Code::kBusy, "too many background jobs are running: wait for one to end");
    jobs_.erase(ended);
  }
  // Random, so that an id of an earlier run of the daemon does not name another job.
  std::string id = std::string(kind) + "-" + env_.random_uuid().to_string().substr(0, 13);
  jobs_.push_back({.id = id, .kind = std::string(kind)});
  return id;
}

Jobs::Job* Jobs::find(const std::string& id) {
  auto at = std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.id == id; });
  return at == jobs_.end() ? nullptr : &*at;
}

void Jobs::progress(const std::string& id, uint64_t done_bytes, uint64_t total_bytes) {
  if (Job* job = find(id)) {
    job->done_bytes = done_bytes;
    job->total_bytes = total_bytes;
  }
}

void Jobs::finish(const std::string& id, Result<std::string> result_json) {
  Job* job = find(id);
  if (job == nullptr) return;
  job->state = result_json ? Job::State::kDone : Job::State::kFailed;
  if (result_json) job->result_json = std::move(*result_json);
  else job->error = result_json.status();
}

Result<std::string> Jobs::json(const std::string& id) const {
  auto at = std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.id == id; });
  if (at == jobs_.end())
    return Status(Code::kNotFound, "no job " + id + ": it ended long ago or the daemon was restarted");
  static const char* const kStates[] = {"running", "done", "failed"};
  nlohmann::json out{{"id", at->id},
                     {"kind", at->kind},
                     {"state", kStates[static_cast<int>(at->state)]},
                     {"done_bytes", at->done_bytes},
                     {"total_bytes", at->total_bytes},
                     {"result", nullptr},
                     {"error", nullptr}};
  if (at->state == Job::State::kDone) out["result"] = nlohmann::json::parse(at->result_json, nullptr, false);
  if (at->state == Job::State::kFailed) {
    out["error"] = {{"error", code_name(at->error.code())}, {"message", at->error.message()}};
  }
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace tidemark::daemon
