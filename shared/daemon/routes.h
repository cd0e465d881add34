// Routes: which handler answers which HTTP request of a control socket, metrics listener or API.
//
//   routes.get("/v1/status", [&](const Request&) -> Result<std::string> { return status_json(); });
//   routes.post("/v1/mark", [&](Request request, Reply reply) { ... reply(net::HttpResponse::json(200, text)); });
//   routes.get("/v1/jobs/{id}", [&](const Request& r) { return jobs.json(r.parameter("id")); });
//
// `{name}` takes one segment of the path, percent-decoded. A path known with other methods is answered
// 405, an unknown one 404; errors have the shape of shared/docs/control-api.md. Loop thread only;
// needs no real network, so that a simulated node can be asked as well.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "shared/base/function.h"
#include "shared/base/status.h"
#include "shared/net/network.h"

namespace tidemark::daemon {

struct Request {
  std::string method;
  std::string path;                                // as sent, without the query
  std::map<std::string, std::string> parameters;   // of the pattern, decoded
  std::map<std::string, std::string> query;        // decoded
  std::map<std::string, std::string> headers;
  Bytes body;
  net::PeerIdentity peer;

  const std::string& parameter(const std::string& name) const;   // a name that the pattern has
  std::string_view text() const { return as_text(body); }
};

using Reply = Callback<net::HttpResponse>;
using Handler = UniqueFunction<void(Request, Reply)>;

// {"error": "<code>", "message": "..."} with http_status_of().
net::HttpResponse error_response(const Status& status);
// The JSON text with 200, or error_response().
net::HttpResponse json_response(Result<std::string> result);

std::string percent_decode(std::string_view text, bool plus_is_space = false);
std::string percent_encode(std::string_view text);   // all but unreserved characters

class Routes {
 public:
  // A handler is `void(Request, Reply)`, which answers when it likes, or `Result<std::string>(const
  // Request&)`, whose text is JSON and is answered at once.
  template <typename F>
  void get(std::string_view pattern, F handler) { add("GET", pattern, wrap(std::move(handler))); }
  template <typename F>
  void post(std::string_view pattern, F handler) { add("POST", pattern, wrap(std::move(handler))); }
  template <typename F>
  void put(std::string_view pattern, F handler) { add("PUT", pattern, wrap(std::move(handler))); }
  template <typename F>
  void head(std::string_view pattern, F handler) { add("HEAD", pattern, wrap(std::move(handler))); }
  template <typename F>
  void remove(std::string_view pattern, F handler) { add("DELETE", pattern, wrap(std::move(handler))); }
  void add(std::string_view method, std::string_view pattern, Handler handler);

  void dispatch(net::HttpRequest request, Reply reply);

 private:
  struct Route {
    std::string method;
    std::vector<std::string> segments;
    Handler handler;
  };
  template <typename F>
  static Handler wrap(F handler) {
    if constexpr (std::is_invocable_r_v<Result<std::string>, F&, const Request&>) {
      return [h = std::move(handler)](Request request, Reply reply) mutable { reply(json_response(h(request))); };
    } else {
      return Handler(std::move(handler));
    }
  }
  static bool match(const Route& route, const std::vector<std::string>& segments, Request& request);

  std::vector<Route> routes_;
};

}  // namespace tidemark::daemon
