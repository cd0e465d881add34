// JSON over HTTP: to a daemon's control socket and to the replica. Blocking.
#pragma once

#include <string>

#include "shared/base/bytes.h"
#include "shared/base/config.h"
#include "shared/base/status.h"
#include "shared/cli/json.h"
#include "shared/net/network.h"

namespace tidemark::cli {

class Http {
 public:
  static Http to_socket(const std::string& path);
  static Http to_server(const config::ReplicaLink& link, const config::Tls& tls);
  static Http to_server(const config::WitnessLink& link, const config::Tls& tls);

  // Any answer outside 2xx becomes a Status: its code from the body's "error" or the HTTP status, its message from
  // the body. `name` is who is asked, for messages.
  Result<Json> get(const std::string& target);
  Result<Json> post(const std::string& target, const Json& body, int timeout_s = 60);
  // Bytes [offset, offset + out.size()) by Range.
  Status read_range(const std::string& target, uint64_t offset, MutableByteSpan out);

 private:
  Result<Json> ask(net::HttpRequest request, int timeout_s);

  net::HttpClientOptions options_;
  std::string name_;
};

Status status_of_answer(int http_status, std::string_view body, const std::string& from);
std::string percent_encode(std::string_view text);

}  // namespace tidemark::cli
