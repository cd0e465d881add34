#include "shared/daemon/jobs.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "shared/base/limits.h"
#include "shared/io/real_env.h"

namespace tidemark::daemon {
namespace {

TEST(Jobs, ShowProgressThenResult) {
  io::RealEnv env;
  Jobs jobs(env);
  std::string id = *jobs.start("verify");
  jobs.progress(id, 10, 100);
  auto json = nlohmann::json::parse(*jobs.json(id));
  EXPECT_EQ(json["state"], "running");
  EXPECT_EQ(json["done_bytes"], 10);
  jobs.finish(id, std::string(R"({"equal": true})"));
  json = nlohmann::json::parse(*jobs.json(id));
  EXPECT_EQ(json["state"], "done");
  EXPECT_EQ(json["result"]["equal"], true);
}

TEST(Jobs, AFailureNamesItsReason) {
  io::RealEnv env;
  Jobs jobs(env);
  std::string id = *jobs.start("verify");
  jobs.finish(id, Status(Code::kUnavailable, "the shared node is away"));
  auto json = nlohmann::json::parse(*jobs.json(id));
  EXPECT_EQ(json["state"], "failed");
  EXPECT_EQ(json["error"]["error"], "unavailable");
}

TEST(Jobs, RunningOnesAreNeverForgottenAndTheirNumberIsBounded) {
  io::RealEnv env;
  Jobs jobs(env);
  std::string first = *jobs.start("verify");
  for (size_t i = 1; i < limits::kJobsKeptMax; ++i) ASSERT_TRUE(jobs.start("verify"));
  EXPECT_EQ(jobs.start("verify").status().code(), Code::kBusy);
  jobs.finish(first, std::string("{}"));
  ASSERT_TRUE(jobs.start("verify"));
  EXPECT_EQ(jobs.json(first).status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace tidemark::daemon
