// Jobs: what a daemon does in the background for `tidemark`, asked for by `GET /v1/jobs/{id}`.
// Loop thread only. The newest limits::kJobsKeptMax are remembered; running ones are never forgotten.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "shared/base/status.h"
#include "shared/io/env.h"

namespace tidemark::daemon {

class Jobs {
 public:
  explicit Jobs(io::Env& env) : env_(env) {}

  // A new running job's id. kBusy when limits::kJobsKeptMax are running.
  Result<std::string> start(std::string_view kind);
  // Ids that are not known (any more) are ignored here: the job ended otherwise.
  void progress(const std::string& id, uint64_t done_bytes, uint64_t total_bytes);
  // `result_json` is the job's result; an error ends it as failed.
  void finish(const std::string& id, Result<std::string> result_json);
  // {"state", "done_bytes", "total_bytes", "result", "error"}; kNotFound.
  Result<std::string> json(const std::string& id) const;

 private:
  struct Job {
    std::string id, kind;
    enum class State : uint8_t { kRunning, kDone, kFailed } state = State::kRunning;
    uint64_t done_bytes = 0, total_bytes = 0;
    std::string result_json;
    Status error;
  };
  Job* find(const std::string& id);

  io::Env& env_;
  std::deque<Job> jobs_;   // oldest first
};

}  // namespace tidemark::daemon
