// A cluster's certificates in a directory of their own, and an Env with a real network on loopback.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "shared/base/log.h"
#include "shared/io/real_env.h"
#include "shared/net/pki.h"
#include "shared/net/real_network.h"

namespace tidemark::net {

inline constexpr auto kWait = std::chrono::seconds(20);  // bound of every wait; none takes a tenth of it

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidemark_net_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Every log line of the test, to look for reasons in.
class LogCapture {
 public:
  LogCapture() {
    log::set_sink_for_testing([this](log::Level level, std::string_view, std::string_view line) {
      std::lock_guard lock(mutex_);
      lines_.emplace_back(line);
      if (level == log::Level::kError) errors_.emplace_back(line);
    });
  }
  ~LogCapture() { log::set_sink_for_testing(nullptr); }
  bool contains(const std::string& part) {
    std::lock_guard lock(mutex_);
    for (const std::string& line : lines_) if (line.find(part) != std::string::npos) return true;
    return false;
  }
  std::vector<std::string> lines() { std::lock_guard lock(mutex_); return lines_; }
  std::vector<std::string> errors() { std::lock_guard lock(mutex_); return errors_; }

 private:
  std::mutex mutex_;
  std::vector<std::string> lines_, errors_;  // guarded by mutex_
};

class Cluster {
 public:
  Cluster() {
    auto made = pki::init_authority(directory_.path(), {});
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    if (made) uuid_ = made->cluster;
  }
  TlsFiles node(const std::string& name, Role role, pki::Validity validity = {}, bool force = false) {
    pki::IssueOptions options{.authority_directory = directory_.path(), .node = name, .role = role,
                              .names = {"127.0.0.1", "localhost"}, .validity = validity, .force = force};
    auto files = pki::issue(options);
    EXPECT_TRUE(files.is_ok()) << files.status().to_string();
    return files ? *files : TlsFiles{};
  }
  const Uuid& uuid() const { return uuid_; }
  const TempDir& directory() const { return directory_; }

 private:
  TempDir directory_;
  Uuid uuid_;
};

class NetTest : public ::testing::Test {
 protected:
  NetTest() : env({.make_network = make_real_network}) {}
  ~NetTest() override { EXPECT_THAT(logs.errors(), ::testing::IsEmpty()); }
  Network& network() { return env.network(); }
  bool wait_for(UniqueFunction<bool()> done) { return env.run_until(std::move(done), kWait); }
  // Other threads log after the peer has seen what they did.
  bool logged(const std::string& part) {
    io::BootTime end = env.now() + kWait;
    while (!logs.contains(part) && env.now() < end) env.turn(std::chrono::milliseconds(2));
    return logs.contains(part);
  }

  LogCapture logs;
  Cluster cluster;
  io::RealEnv env;
};

}  // namespace tidemark::net
