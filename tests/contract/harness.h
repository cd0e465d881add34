// An Env of one kind or another, and the means to drive it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "shared/io/env.h"
#include "shared/io/file.h"
#include "shared/kv/store.h"
#include "shared/net/network.h"

namespace tidemark::contract {

inline constexpr auto kWait = std::chrono::seconds(20);   // bound of every wait; none takes a tenth of it

class Harness {
 public:
  virtual ~Harness() = default;
  // The node under test, which also listens; its certificate is ("shared1", shared).
  virtual io::Env& env() = 0;
  // A second node, ("host1", host); for the real Env in the same process and loop.
  virtual io::Env& client_env() = 0;
  virtual net::TlsFiles server_tls() = 0;
  virtual net::TlsFiles client_tls() = 0;
  virtual std::string server_host() = 0;          // what the client connects to
  virtual std::string directory() = 0;            // an empty one for the test
  virtual bool run_until(UniqueFunction<bool()> done) = 0;
  virtual void run_for(io::Duration duration) = 0;
};

// "real", "real_without_io_uring", "sim"
std::unique_ptr<Harness> make_harness(const std::string& kind);

class ContractTest : public ::testing::TestWithParam<std::string> {
 protected:
  ContractTest() : harness(make_harness(GetParam())) {}
  io::Env& env() { return harness->env(); }
  io::FileSystem& files() { return env().files(); }
  std::string path(const std::string& name) { return harness->directory() + "/" + name; }
  bool run_until(UniqueFunction<bool()> done) { return harness->run_until(std::move(done)); }

  // Starts an operation and runs the Env until its callback came.
  template <typename T>
  T wait(UniqueFunction<void(Callback<T>)> start) {
    std::optional<T> result;
    start([&](T value) { result.emplace(std::move(value)); });
    EXPECT_TRUE(run_until([&] { return result.has_value(); })) << "no answer";
    if (!result) std::abort();   // the callback may still come, into a frame that is gone
    return std::move(*result);
  }

  std::unique_ptr<Harness> harness;
};

#define TM_CONTRACT_SUITE(name)                                                                       \
  class name : public ContractTest {};                                                                \
  INSTANTIATE_TEST_SUITE_P(Envs, name, ::testing::Values("real", "real_without_io_uring", "sim"), \
                           [](const auto& info) { return info.param; })

inline Bytes pattern(size_t size, uint8_t seed) {
  Bytes out(size);
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<uint8_t>(seed + i * 31 + i / 251);
  return out;
}

}  // namespace tidemark::contract
