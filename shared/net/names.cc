// Names of roles, addresses and plain HTTP answers: what network.h declares and both the real and
// the simulated network use.
#include <charconv>

#include "shared/net/network.h"

namespace tidemark::net {

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kHost: return "host";
    case Role::kShared: return "shared";
    case Role::kReplica: return "replica";
    case Role::kWitness: return "witness";
    case Role::kOperator: return "operator";
  }
  return "unknown";
}

std::optional<Role> parse_role(std::string_view name) {
  for (Role role : {Role::kHost, Role::kShared, Role::kReplica, Role::kWitness, Role::kOperator}) {
    if (role_name(role) == name) return role;
  }
  return std::nullopt;
}

std::string Address::to_string() const {
  bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<Address> Address::parse(std::string_view text) {
  auto bad = [&](std::string_view why) {
    return Status(Code::kInvalidArgument, "address \"" + std::string(text) + "\": " + std::string(why) +
                                              "; write HOST:PORT, as 127.0.0.1:7400 or [::1]:7400");
  };
  Address out;
  std::string_view port;
  if (!text.empty() && text[0] == '[') {
    size_t end = text.find(']');
    if (end == std::string_view::npos || end + 1 >= text.size() || text[end + 1] != ':') return bad("no ]:PORT");
    out.host = text.substr(1, end - 1);
    port = text.substr(end + 2);
  } else {
    size_t colon = text.rfind(':');
    if (colon == std::string_view::npos) return bad("the port is missing");
    if (text.find(':') != colon) return bad("an IPv6 address stands in brackets");
    out.host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (out.host.empty()) return bad("the host is missing");
  auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
  if (error != std::errc() || end != port.data() + port.size() || port.empty()) {
    return bad("the port is not a number up to 65535");
  }
  return out;
}

HttpResponse HttpResponse::text(int status, std::string body, std::string type) {
  HttpResponse out;
  out.status = status;
  out.headers["content-type"] = std::move(type);
  out.body.assign(body.begin(), body.end());
  return out;
}

HttpResponse HttpResponse::json(int status, std::string body) {
  return text(status, std::move(body), "application/json");
}

}  // namespace tidemark::net
