// Keep-alive HTTP clients on libcurl. Each has a background thread and connections of its own, so that
// a connection verified for one role or name never serves a client that expects another. Results
// come back to the loop by env.post().
#pragma once

#include <memory>

#include "shared/io/env.h"
#include "shared/net/network.h"

namespace tidemark::net {

Result<std::unique_ptr<HttpClient>> make_http_client(io::Env& env, const HttpClientOptions& options);

}  // namespace tidemark::net
