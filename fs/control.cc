#include "fs/control.h"

#include "fs/scrubber.h"
#include "fs/verifier.h"

#include <nlohmann/json.hpp>

namespace tidemark::fs {
using nlohmann::json;

namespace {

Result<json> body_of(const daemon::Request& request) {
  if (request.body.empty()) return json::object();
  json body = json::parse(request.text(), nullptr, false);
  if (!body.is_object()) return Status(Code::kInvalidArgument, "the body must be a JSON object");
  return body;
}

template <typename T>
Result<T> field(const json& body, const char* name, T otherwise) {
  auto at = body.find(name);
  if (at == body.end() || at->is_null()) return otherwise;
  bool fits = std::is_same_v<T, bool>          ? at->is_boolean()
              : std::is_same_v<T, std::string> ? at->is_string()
                                               : at->is_number_integer();
  if (!fits) return Status(Code::kInvalidArgument, std::string(name) + " has the wrong type");
  return at->get<T>();
}

void post_mark(Engine& engine, const daemon::Request& request, daemon::Reply reply) {
  auto run = [&]() -> Status {
    TM_ASSIGN_OR_RETURN(json body, body_of(request));
    TM_ASSIGN_OR_RETURN(std::string name, field<std::string>(body, "name", ""));
    TM_ASSIGN_OR_RETURN(bool wait, field<bool>(body, "wait", false));
    TM_ASSIGN_OR_RETURN(int64_t seconds, field<int64_t>(body, "timeout_s", 60));
    if (seconds < 1 || seconds > 3600) return Status(Code::kInvalidArgument, "timeout_s must be between 1 and 3600");
    engine.mark(
        std::move(name), wait, std::chrono::seconds(seconds),
        [reply = std::move(reply)](Result<std::string> r) mutable { reply(daemon::json_response(std::move(r))); });
    return Status::ok();
  };
  if (Status s = run(); !s) reply(daemon::error_response(s));
}

Result<std::vector<std::string>> images_of(const json& body) {
  std::vector<std::string> images;
  if (auto at = body.find("images"); at != body.end()) {
    if (!at->is_array()) return Status(Code::kInvalidArgument, "images must be a list");
    for (const json& i : *at) {
      if (!i.is_string()) return Status(Code::kInvalidArgument, "images must be paths or UUIDs");
      images.push_back(i.get<std::string>());
    }
  }
  return images;
}

Result<std::string> post_scrub(Engine& engine, daemon::Jobs& jobs, const daemon::Request& request) {
  TM_ASSIGN_OR_RETURN(json body, body_of(request));
  ScrubOptions options;
  TM_ASSIGN_OR_RETURN(options.images, images_of(body));
  TM_ASSIGN_OR_RETURN(int64_t rate, field<int64_t>(body, "bytes_per_second", 0));
  TM_ASSIGN_OR_RETURN(options.trust_replica, field<bool>(body, "trust_replica", false));
  if (rate < 0) return Status(Code::kInvalidArgument, "bytes_per_second must not be negative");
  options.bytes_per_second = static_cast<uint64_t>(rate);
  TM_ASSIGN_OR_RETURN(std::string id, jobs.start("scrub"));
  engine.scrubber().start(std::move(options),
                          [&jobs, id](uint64_t done, uint64_t total) { jobs.progress(id, done, total); },
                          [&jobs, id](Result<std::string> r) { jobs.finish(id, std::move(r)); });
  return json{{"job", id}}.dump();
}

Result<std::string> post_verify(Engine& engine, daemon::Jobs& jobs, const daemon::Request& request) {
  TM_ASSIGN_OR_RETURN(json body, body_of(request));
  TM_ASSIGN_OR_RETURN(std::vector<std::string> images, images_of(body));
  TM_ASSIGN_OR_RETURN(std::string id, jobs.start("verify"));
  engine.verifier().start(std::move(images),
                          [&jobs, id](uint64_t done, uint64_t total) { jobs.progress(id, done, total); },
                          [&jobs, id](Result<std::string> r) { jobs.finish(id, std::move(r)); });
  return json{{"job", id}}.dump();
}

void post_policy(Engine& engine, const daemon::Request& request, daemon::Reply reply) {
  auto run = [&]() -> Status {
    TM_ASSIGN_OR_RETURN(json body, body_of(request));
    TM_ASSIGN_OR_RETURN(std::string image, field<std::string>(body, "image", ""));
    TM_ASSIGN_OR_RETURN(std::string mirror, field<std::string>(body, "mirror", ""));
    engine.set_policy(std::move(image), std::move(mirror), [reply = std::move(reply)](Result<std::string> r) mutable {
      reply(daemon::json_response(std::move(r)));
    });
    return Status::ok();
  };
  if (Status s = run(); !s) reply(daemon::error_response(s));
}

}  // namespace

void add_routes(Engine& engine, daemon::Routes& routes, daemon::Jobs& jobs, std::function<std::string()> restart) {
  routes.get("/v1/status", [&engine, restart = std::move(restart)](const daemon::Request&) -> Result<std::string> {
    json status = json::parse(engine.status_json());
    status["restart"] = json::parse(restart());
    return status.dump(-1, ' ', false, json::error_handler_t::replace);
  });
  routes.get("/v1/journal", [&engine](const daemon::Request&) -> Result<std::string> { return engine.journal_json(); });
  routes.post("/v1/mark",
              [&engine](daemon::Request r, daemon::Reply reply) { post_mark(engine, r, std::move(reply)); });
  routes.post("/v1/verify", [&engine, &jobs](const daemon::Request& r) { return post_verify(engine, jobs, r); });
  routes.post("/v1/scrub", [&engine, &jobs](const daemon::Request& r) { return post_scrub(engine, jobs, r); });
  routes.post("/v1/scrub/stop", [&engine](const daemon::Request&) { return engine.scrubber().stop(); });
  routes.post("/v1/images/policy",
              [&engine](daemon::Request r, daemon::Reply reply) { post_policy(engine, r, std::move(reply)); });
  routes.post("/v1/resync-replica", [&engine](const daemon::Request&, daemon::Reply reply) {
    engine.resync_replica([reply = std::move(reply)](Result<std::string> r) mutable {
      reply(daemon::json_response(std::move(r)));
    });
  });
  routes.post("/v1/images/abort", [&engine](daemon::Request r, daemon::Reply reply) {
    auto body = body_of(r);
    auto image = body ? field<std::string>(*body, "image", "") : Result<std::string>(body.status());
    if (!image) return reply(daemon::error_response(image.status()));
    engine.abort_waiting(std::move(*image), [reply = std::move(reply)](Result<std::string> count) mutable {
      reply(daemon::json_response(std::move(count)));
    });
  });
  routes.post("/v1/images/takeover", [&engine](daemon::Request r, daemon::Reply reply) {
    engine.takeover(std::string(r.text()), [reply = std::move(reply)](Result<std::string> report) mutable {
      reply(daemon::json_response(std::move(report)));
    });
  });
  routes.post("/v1/bricks/replace", [&engine](const daemon::Request& r) -> Result<std::string> {
    TM_ASSIGN_OR_RETURN(json body, body_of(r));
    TM_ASSIGN_OR_RETURN(std::string brick, field<std::string>(body, "brick", ""));
    TM_ASSIGN_OR_RETURN(bool accept_loss, field<bool>(body, "accept_loss", false));
    return engine.replace_brick(brick, accept_loss);
  });
  routes.post("/v1/shipping", [&engine](const daemon::Request& r) -> Result<std::string> {
    TM_ASSIGN_OR_RETURN(json body, body_of(r));
    if (!body.contains("paused")) return Status(Code::kInvalidArgument, "paused is missing");
    TM_ASSIGN_OR_RETURN(bool paused, field<bool>(body, "paused", false));
    return engine.set_shipping_paused(paused);
  });
}

}  // namespace tidemark::fs
