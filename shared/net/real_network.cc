#include "shared/net/real_network.h"

#include <unordered_map>

#include "shared/net/http_client.h"
#include "shared/net/http_server.h"
#include "shared/net/stream_endpoints.h"
#include "shared/net/tls_stream.h"

namespace tidemark::net {

struct RealNetwork::Impl {
  Impl(io::Env& env, io::Poller& poller) : streams(std::make_shared<StreamLoop>(env, poller)) {}

  std::shared_ptr<StreamLoop> streams;  // shared with every stream
  std::unordered_map<uint64_t, std::shared_ptr<Connector>> connectors;  // shared with their posted steps
  uint64_t next_connector = 0;
  std::unique_ptr<HttpServers> servers;  // when first used
};

RealNetwork::RealNetwork(io::Env& env, io::Poller& poller) : RealNetwork(env, poller, Tuning{}) {}

RealNetwork::RealNetwork(io::Env& env, io::Poller& poller, const Tuning& tuning)
    : impl_(std::make_unique<Impl>(env, poller)) {
  if (tuning.records_per_key != 0) impl_->streams->records_per_key = tuning.records_per_key;
  if (tuning.look_up != nullptr) impl_->streams->names = std::make_shared<NameLookups>(env, tuning.look_up);
}

RealNetwork::~RealNetwork() = default;

std::unique_ptr<Network> make_real_network(io::Env& env, io::Poller& poller) {
  return std::make_unique<RealNetwork>(env, poller);
}

Result<std::unique_ptr<Listener>> RealNetwork::listen(const ListenOptions& options,
                                                      UniqueFunction<void(std::unique_ptr<Stream>)> on_accept) {
  TM_ASSIGN_OR_RETURN(std::unique_ptr<Listener> out, TlsListener::open(impl_->streams, options, std::move(on_accept)));
  return out;
}

void RealNetwork::connect(const ConnectOptions& options, Callback<Result<std::unique_ptr<Stream>>> done) {
  uint64_t number = ++impl_->next_connector;
  auto finished = [this, number, done = std::move(done)](Result<std::unique_ptr<Stream>> result) mutable {
    // The connector is on the stack: it goes when its present step has returned.
    auto found = impl_->connectors.find(number);
    impl_->streams->env.post([spent = std::move(found->second)] {});
    impl_->connectors.erase(found);
    done(std::move(result));
  };
  auto connector = std::make_shared<Connector>(impl_->streams, options, std::move(finished));
  impl_->connectors.emplace(number, connector);
  connector->begin();
}

Result<std::unique_ptr<HttpServer>> RealNetwork::serve_http(const HttpServerOptions& options, HttpHandler handler) {
  if (!impl_->servers) impl_->servers = std::make_unique<HttpServers>(impl_->streams);
  return impl_->servers->serve(options, std::move(handler));
}

Result<std::unique_ptr<HttpClient>> RealNetwork::http_client(const HttpClientOptions& options) {
  return make_http_client(impl_->streams->env, options);
}

}  // namespace tidemark::net
