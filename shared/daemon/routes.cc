#include "shared/daemon/routes.h"

#include <nlohmann/json.hpp>

namespace tidemark::daemon {
namespace {

// What a peer sent may hold bytes that are no UTF-8: they are replaced rather than thrown at.
std::string text(const nlohmann::json& j) { return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::vector<std::string> split(std::string_view path) {
  std::vector<std::string> out;
  while (!path.empty()) {
    size_t slash = path.find('/');
    std::string_view segment = path.substr(0, slash);
    if (!segment.empty()) out.emplace_back(segment);
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return out;
}

std::map<std::string, std::string> parse_query(std::string_view text) {
  std::map<std::string, std::string> out;
  while (!text.empty()) {
    size_t end = text.find('&');
    std::string_view pair = text.substr(0, end);
    size_t equals = pair.find('=');
    std::string value = equals == std::string_view::npos ? "" : percent_decode(pair.substr(equals + 1), true);
    if (!pair.empty()) out[percent_decode(pair.substr(0, equals), true)] = std::move(value);
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return out;
}

net::HttpResponse plain_error(int http_status, std::string_view error, const std::string& message) {
  return net::HttpResponse::json(http_status, text({{"error", error}, {"message", message}}));
}

}  // namespace

const std::string& Request::parameter(const std::string& name) const {
  auto at = parameters.find(name);
  TM_CHECK(at != parameters.end(), "the route's pattern has no such parameter");
  return at->second;
}

std::string percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_value(text[i + 1]) >= 0 && hex_value(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(hex_value(text[i + 1]) * 16 + hex_value(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i] == '+' && plus_is_space ? ' ' : text[i]);
    }
  }
  return out;
}

std::string percent_encode(std::string_view text) {
  static const char* const kHex = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : text) {
    if (std::isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~') {
      out.push_back(static_cast<char>(c));
    } else {
      out.push_back('%');
      out.push_back(kHex[c >> 4]);
      out.push_back(kHex[c & 15]);
    }
  }
  return out;
}

net::HttpResponse error_response(const Status& status) {
  return net::HttpResponse::json(http_status_of(status),
                                 text({{"error", code_name(status.code())}, {"message", status.message()}}));
}

net::HttpResponse json_response(Result<std::string> result) {
  if (!result) return error_response(result.status());
  return net::HttpResponse::json(200, std::move(*result));
}

void Routes::add(std::string_view method, std::string_view pattern, Handler handler) {
  routes_.push_back({std::string(method), split(pattern), std::move(handler)});
}

bool Routes::match(const Route& route, const std::vector<std::string>& segments, Request& request) {
  if (route.segments.size() != segments.size()) return false;
  request.parameters.clear();
  for (size_t i = 0; i < segments.size(); ++i) {
    const std::string& want = route.segments[i];
    if (want.size() > 2 && want.front() == '{' && want.back() == '}') {
      request.parameters[want.substr(1, want.size() - 2)] = percent_decode(segments[i]);
    } else if (want != segments[i]) {
      return false;
    }
  }
  return true;
}

void Routes::dispatch(net::HttpRequest http, Reply reply) {
  Request request;
  request.method = http.method;
  size_t mark = http.target.find('?');
  request.path = http.target.substr(0, mark);
  if (mark != std::string::npos) request.query = parse_query(std::string_view(http.target).substr(mark + 1));
  std::vector<std::string> segments = split(request.path);
  bool known = false;
  for (Route& route : routes_) {
    if (!match(route, segments, request)) continue;
    known = true;
    if (route.method != http.method) continue;
    request.headers = std::move(http.headers);
    request.body = std::move(http.body);
    request.peer = std::move(http.peer);
    route.handler(std::move(request), std::move(reply));
    return;
  }
  if (known) return reply(plain_error(405, "method_not_allowed", http.method + " is not offered for " + request.path));
  reply(plain_error(404, "not_found", "nothing is served at " + request.path));
}

}  // namespace tidemark::daemon
