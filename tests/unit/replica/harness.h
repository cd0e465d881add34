// A replica on a simulated machine, asked without a network in between.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "replica/replica.h"
#include "tests/sim/sim_env.h"
#include "tests/unit/replica/batch_maker.h"

namespace tidemark::replica {

using Json = nlohmann::json;

class Harness {
 public:
  explicit Harness(uint64_t seed = 1, size_t step = kStepExtents) : step_extents(step), world({.seed = seed}) {
    world.add_node({.name = "replica", .cluster = kTestCluster, .role = net::Role::kReplica});
    open();
  }
  ~Harness() {
    if (replica != nullptr && env->alive()) close();
  }

  void open() {
    env = &world.start("replica");
    Options options{.directory = "/state", .cluster = kTestCluster, .node = "replica"};
    options.held_batches_max = held_batches_max;
    options.step_extents = step_extents;
    options.index_bytes_max = index_bytes_max;
    auto opened = Replica::open(*env, std::move(options));
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    replica = std::move(*opened);
  }
  void close() {
    bool closed = false;
    replica->close([&] { closed = true; });
    ASSERT_TRUE(world.run_until([&] { return closed; }, std::chrono::seconds(60)));
    replica.reset();
    world.crash("replica", sim::Crash::kKill);
  }
  void restart() {
    close();
    open();
  }
  // After a crash point fired: what the dying process holds has no effect.
  void reopen_after_crash() {
    replica.reset();
    open();
  }

  struct Answer {
    int status = 0;               // 0: none came (crashed)
    std::map<std::string, std::string> headers;
    std::string body;
    Json json() const { return Json::parse(body, nullptr, false); }
  };
  Answer ask(net::HttpRequest request, const std::string& node = "op", net::Role role = net::Role::kOperator) {
    request.peer = {kTestCluster, role, node};
    auto answer = std::make_shared<Answer>();
    auto done = std::make_shared<bool>(false);
    auto response = std::make_shared<net::HttpResponse>();
    replica->handle(std::move(request), [=](net::HttpResponse r) {
      answer->status = r.status;
      answer->headers = r.headers;
      answer->body = std::string(as_text(r.body));
      *response = std::move(r);
      if (!response->source) *done = true;
      else pull(response, answer, done);
    });
    world.run_until([&] { return *done || !env->alive(); }, std::chrono::seconds(120));
    if (!*done || !env->alive()) answer->status = 0;   // a dying process answers nobody
    response->source = nullptr;
    return *answer;
  }
  Answer get(const std::string& target, const std::string& range = {}) {
    net::HttpRequest request{.method = "GET", .target = target};
    if (!range.empty()) request.headers["range"] = range;
    return ask(std::move(request));
  }
  Answer put(const BatchMaker& maker, const BatchMaker::Made& made, uint32_t part = 0,
             net::Role role = net::Role::kHost) {
    return put_bytes(maker.source(), maker.generation(), made.number.value, part, made.parts.at(part), role);
  }
  Answer put_bytes(const std::string& source, const Uuid& generation, uint64_t number, uint32_t part,
                   const Bytes& bytes, net::Role role = net::Role::kHost, std::string digest = {}) {
    net::HttpRequest request{.method = "PUT", .target = "/v1/batches/" + source + "/" + generation.to_string() + "/" +
                                                        std::to_string(number) + "/" + std::to_string(part)};
    request.headers["x-tidemark-digest"] = digest.empty() ? to_hex(journal::sha256(bytes)) : digest;
    request.body = bytes;
    return ask(std::move(request), source, role);
  }
  // The image's bytes at a point; empty optional unless 200.
  std::string data(const std::string& point, const Uuid& image, const std::string& range = {}) {
    Answer answer = get("/v1/points/" + point + "/images/" + image.to_string() + "/data", range);
    EXPECT_TRUE(answer.status == 200 || answer.status == 206) << answer.status << answer.body;
    return answer.body;
  }

  size_t held_batches_max = kHeldBatchesMax;   // of the next open()
  size_t step_extents = kStepExtents;          // likewise
  uint64_t index_bytes_max = kIndexBytesMax;   // likewise
  sim::World world;
  sim::SimEnv* env = nullptr;
  std::unique_ptr<Replica> replica;

 private:
  static void pull(std::shared_ptr<net::HttpResponse> response, std::shared_ptr<Answer> answer,
                   std::shared_ptr<bool> done) {
    if (answer->body.size() >= response->content_length) {
      *done = true;
      return;
    }
    response->source(limits::kHttpPieceBytes, [=](Result<Bytes> piece) {
      if (!piece || piece->empty()) {
        answer->status = -1;   // the connection would break
        *done = true;
        return;
      }
      answer->body += as_text(*piece);
      pull(response, answer, done);
    });
  }
};

}  // namespace tidemark::replica
