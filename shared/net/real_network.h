// RealNetwork: TLS 1.3 streams in the Env's loop; HTTP servers (Boost.Beast) on one background thread,
// started when first used, and clients (libcurl) on one each. Their results come back by env.post().
//
//   io::RealEnv env({.open_store = kv::open_lmdb_store, .make_network = net::make_real_network});
//
// Everything made by it must be destroyed before it, and it before its Env and Poller: streams,
// listeners, servers and clients on the loop thread or after the loop has ended.
#pragma once

#include <memory>
#include <vector>

#include "shared/io/env.h"
#include "shared/io/poller.h"
#include "shared/net/network.h"

namespace tidemark::net {

struct SocketAddress;

class RealNetwork final : public Network {
 public:
  struct Tuning {
    uint64_t records_per_key = 0;  // 0: limits::kTlsRecordsPerKey. Tests renew keys sooner.
    Result<std::vector<SocketAddress>> (*look_up)(const Address&) = nullptr;  // null: the system's. Tests have names.
  };
  RealNetwork(io::Env& env, io::Poller& poller);
  RealNetwork(io::Env& env, io::Poller& poller, const Tuning& tuning);
  ~RealNetwork() override;

  Result<std::unique_ptr<Listener>> listen(const ListenOptions& options,
                                           UniqueFunction<void(std::unique_ptr<Stream>)> on_accept) override;
  void connect(const ConnectOptions& options, Callback<Result<std::unique_ptr<Stream>>> done) override;
  Result<std::unique_ptr<HttpServer>> serve_http(const HttpServerOptions& options, HttpHandler handler) override;
  Result<std::unique_ptr<HttpClient>> http_client(const HttpClientOptions& options) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::unique_ptr<Network> make_real_network(io::Env& env, io::Poller& poller);

}  // namespace tidemark::net
