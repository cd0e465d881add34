// The replica beside a Lab whose daemons ship to it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fs/verifier.h"
#include "replica/replica.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {

// replica1, which remembers what was sent to it. In another directory it is another one, which has nothing.
class Site {
 public:
  explicit Site(Lab& lab, const std::string& directory = "/state") : lab_(lab) {
    SimEnv& env = lab.world.start("replica1");
    auto opened = replica::Replica::open(env, {.directory = directory, .cluster = lab.cluster(), .node = "replica1"});
    if (!opened) {
      ADD_FAILURE() << opened.status().to_string();
      return;
    }
    replica_ = std::move(*opened);
    net::HttpServerOptions options;
    options.tls = net::TlsFiles{};
    options.roles_accepted = {net::Role::kHost, net::Role::kShared};
    options.address = {"replica1", kReplicaPort};
    auto handle = [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
      if (request.method == "PUT" && request.target.starts_with("/v1/batches/host1/")) batches.push_back(request);
      replica_->handle(std::move(request), std::move(reply));
    };
    auto server = env.network().serve_http(options, std::move(handle));
    if (!server) ADD_FAILURE() << server.status().to_string();
    else server_ = std::move(*server);
  }
  ~Site() {
    lab_.world.crash("replica1", Crash::kKill);
    server_.reset();
    replica_.reset();
  }

  // A request that the network held back until now.
  int deliver(const net::HttpRequest& request) {
    auto answer = lab_.wait<Result<net::HttpResponse>>([&](auto done) {
      replica_->handle(request, [done = std::move(done)](net::HttpResponse r) mutable { done(std::move(r)); });
    });
    return answer ? answer->status : 0;
  }
  // All three copies, once the replica has what was on its way. Empty: equal. `shared`: what is right of that one.
  std::string verify(const std::string& host, const std::string& shared = "level") {
    nlohmann::json said;
    for (int tries = 0; tries < 60; ++tries, lab_.world.run_for(std::chrono::seconds(1))) {
      auto r = lab_.wait<Result<std::string>>(
          [&](auto done) { lab_.engine(host).verifier().start({}, [](uint64_t, uint64_t) {}, std::move(done)); });
      if (!r) return r.status().to_string();
      said = nlohmann::json::parse(*r);
      if (said["images"].size() != 1) return *r;
      const auto& image = said["images"][0];
      const auto& copies = image["copies"];
      // What differs goes on to; what is not level may become so.
      if (!image["differences"].empty() || image.contains("error")) return *r;
      if (said["equal"] == true && copies["host"] == "level" && copies["shared"] == shared && copies["replica"] == "level") return "";
    }
    return said.dump();
  }

  // What to ask for the blocks of disk.img at a point that `host` makes now. Empty: none was made.
  std::string mark(const std::string& host, const std::string& name) {
    auto marked = lab_.wait<Result<std::string>>(
        [&](auto done) { lab_.engine(host).mark(name, true, std::chrono::seconds(60), std::move(done)); });
    auto attr = lab_.wait<Result<wire::Attr>>(
        [&](auto done) { lab_.engine(host).lookup(InodeNumber(1), "disk.img", std::move(done)); });
    EXPECT_TRUE(marked.is_ok()) << marked.status().to_string();
    EXPECT_TRUE(attr.is_ok()) << attr.status().to_string();
    return marked && attr ? "/v1/points/" + name + "/images/" + attr->image.to_string() + "/data" : "";
  }
  std::string ask(const std::string& target, const std::string& range = {}) {
    auto answer = lab_.wait<Result<net::HttpResponse>>([&](auto done) {
      net::HttpRequest request;
      request.method = "GET";
      request.target = target;
      if (!range.empty()) request.headers["range"] = range;
      request.peer = {.cluster = lab_.cluster(), .role = net::Role::kOperator, .node = "operator"};
      replica_->handle(std::move(request), [done = std::move(done)](net::HttpResponse r) mutable { done(std::move(r)); });
    });
    if (!answer) return answer.status().to_string();
    if (answer->source) {                    // of what is long, its first piece
      auto piece = lab_.wait<Result<Bytes>>([&](auto done) { answer->source(1 << 20, std::move(done)); });
      if (!piece) return piece.status().to_string();
      answer->body = std::move(*piece);
    }
    return std::string(answer->body.begin(), answer->body.end());
  }

  // What the replica has kept aside.
  size_t branches() { return nlohmann::json::parse(ask("/v1/status"))["branches"].size(); }

  std::vector<net::HttpRequest> batches;   // of host1, in the order in which they came

 private:
  Lab& lab_;
  std::unique_ptr<replica::Replica> replica_;
  std::unique_ptr<net::HttpServer> server_;
};

}  // namespace tidemark::sim
