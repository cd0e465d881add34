// The simulated Network: listening, connecting, and HTTP with its two ways of losing an exchange.
#include "tests/sim/sim_env_network.h"

#include <algorithm>
#include <charconv>

#include "shared/base/digest.h"

namespace tidemark::sim {
namespace {

using net::HttpHandler;
using net::HttpRequest;
using net::HttpResponse;

bool accepts(const std::vector<net::Role>& roles, net::Role role) {
  return std::find(roles.begin(), roles.end(), role) != roles.end();
}

uint16_t free_port(Machine& machine) {
  while (machine.listeners.contains(machine.next_port) ||
         machine.http_servers.contains(":" + std::to_string(machine.next_port))) {
    ++machine.next_port;
  }
  return machine.next_port++;
}

bool port_taken(Machine& machine, uint16_t port) {
  return machine.listeners.contains(port) || machine.http_servers.contains(":" + std::to_string(port));
}

Status unavailable(const std::string& peer, const char* why) {
  return Status(Code::kUnavailable, peer + ": " + why);
}

}  // namespace

class SimListener final : public net::Listener {
 public:
  SimListener(SimEnv& env, uint16_t port, std::vector<net::Role> roles,
              UniqueFunction<void(std::unique_ptr<net::Stream>)> accept)
      : env_(env), port_(port), roles_(std::move(roles)),
        accept_(std::make_shared<UniqueFunction<void(std::unique_ptr<net::Stream>)>>(std::move(accept))) {
    ProcessAccess::machine(env_).listeners[port_] = this;
  }
  ~SimListener() override {
    auto& listeners = ProcessAccess::machine(env_).listeners;
    auto it = listeners.find(port_);
    if (it != listeners.end() && it->second == this) listeners.erase(it);
  }
  uint16_t port() const override { return port_; }
  SimEnv& env() { return env_; }
  bool accepts_role(net::Role role) const { return accepts(roles_, role); }
  void accept(std::unique_ptr<net::Stream> stream) {
    auto accept = accept_;   // the callback may destroy the listener
    (*accept)(std::move(stream));
  }

 private:
  SimEnv& env_;
  const uint16_t port_;
  const std::vector<net::Role> roles_;
  const std::shared_ptr<UniqueFunction<void(std::unique_ptr<net::Stream>)>> accept_;
};

class SimHttpServer final : public net::HttpServer {
 public:
  SimHttpServer(SimEnv& env, std::string name, uint16_t port, net::HttpServerOptions options, HttpHandler handler)
      : env_(env), name_(std::move(name)), port_(port), options_(std::move(options)),
        handler_(std::make_shared<HttpHandler>(std::move(handler))) {
    ProcessAccess::machine(env_).http_servers[name_] = this;
  }
  ~SimHttpServer() override {
    auto& servers = ProcessAccess::machine(env_).http_servers;
    auto it = servers.find(name_);
    if (it != servers.end() && it->second == this) servers.erase(it);
  }
  uint16_t port() const override { return port_; }
  SimEnv& env() { return env_; }
  const net::HttpServerOptions& options() const { return options_; }
  std::shared_ptr<HttpHandler> handler() { return handler_; }

 private:
  SimEnv& env_;
  const std::string name_;
  const uint16_t port_;
  const net::HttpServerOptions options_;
  const std::shared_ptr<HttpHandler> handler_;   // shared with a call under way, which may destroy the server
};

namespace {

// One HTTP request on its way there and back. Shared by the events that carry it.
struct Exchange final : ExchangeAtServer, std::enable_shared_from_this<Exchange> {
  World::State* world = nullptr;
  SimEnv* client = nullptr;
  Machine* server_machine = nullptr;
  std::string server_name;         // ":port" or a socket path
  net::HttpClientOptions options;
  HttpRequest request;
  std::string method;
  HttpResponse response;
  Callback<Result<HttpResponse>> done;
  std::shared_ptr<bool> client_alive;
  bool answered = false;
  bool responded = false;          // the whole response left the server

  Machine& client_machine() const { return ProcessAccess::machine(*client); }

  void answer(Duration delay, Result<HttpResponse> result) {
    world->schedule(client, delay, EventKind::kHttp, digest64(as_bytes(request.target)),
                    [self = shared_from_this(), result = std::move(result)]() mutable {
                      if (std::exchange(self->answered, true)) return;
                      auto done = std::move(self->done);
                      if (*self->client_alive) done(std::move(result));
                    });
  }
  void fail(const char* why) {
    Duration delay = world->network_delay(*server_machine, client_machine());
    answer(delay, unavailable(options.url + request.target, why));
  }

  void begin() {
    Duration takes{0};
    if (request.bytes_per_second_max != 0) {
      takes = std::chrono::nanoseconds(request.body.size() * 1'000'000'000 / request.bytes_per_second_max);
    }
    answer(takes + options.stall_timeout, unavailable(options.url + request.target, "nothing moved for too long"));
    Duration there = takes + world->network_delay(client_machine(), *server_machine);
    world->schedule(nullptr, there, EventKind::kHttp, request.body.size(), [self = shared_from_this()] { self->arrive(); });
  }

  void arrive() {
    // A cut holds the request back until the client has given it up; it is then lost.
    if (world->is_cut(client_machine(), *server_machine)) return;
    if (!client->alive() || answered) return;
    if (world->random.chance(world->options.http_request_lost_per_million, 1'000'000)) return fail("connection reset");
    auto it = server_machine->http_servers.find(server_name);
    if (it == server_machine->http_servers.end()) return fail("connection refused");
    SimHttpServer& server = *it->second;
    if (!admit(server)) return;
    if (request.body.size() > server.options().body_bytes_max) {
      response = HttpResponse::text(413, "request too large");
      return answer_with_response();
    }
    server_machine->exchanges.remove_if([](const auto& weak) { return weak.expired(); });
    server_machine->exchanges.push_back(weak_from_this());
    UniqueFunction<void()> handle = [self = shared_from_this(), handler = server.handler(), env = &server.env()] {
      (*handler)(std::move(self->request), [self, env](HttpResponse response) {
        self->response = std::move(response);
        self->pull_body(env);
      });
    };
    world->mix(digest64(request.body));
    world->enter(&server.env(), handle);
  }

  void server_died() override {
    if (!answered && !responded) fail("connection reset");
  }

  bool admit(SimHttpServer& server) {
    if (server.options().tls.has_value() != options.tls.has_value()) {
      fail("one end speaks TLS and the other does not");
      return false;
    }
    if (!options.tls) return true;
    net::PeerIdentity me = client_machine().identity(), there = server_machine->identity();
    bool right = me.cluster == there.cluster && there.role == options.server_role &&
                 (options.server_node.empty() || options.server_node == there.node) &&
                 accepts(server.options().roles_accepted, me.role);
    if (!right) {
      answer(world->network_delay(*server_machine, client_machine()),
             Status(Code::kPermission, options.url + ": the certificate is not accepted"));
      return false;
    }
    request.peer = me;
    return true;
  }

  void pull_body(SimEnv* server) {
    if (!response.source) return answer_with_response();
    response.source(256u << 10, [self = shared_from_this(), server](Result<Bytes> piece) {
      if (!piece) return self->fail("the body broke off");
      if (piece->empty()) {
        self->response.source = nullptr;
        if (self->response.body.size() != self->response.content_length) return self->fail("the body broke off");
        return self->answer_with_response();
      }
      self->response.body.insert(self->response.body.end(), piece->begin(), piece->end());
      server->post([self, server] { self->pull_body(server); });   // no deeper stack for a longer body
    });
  }

  void answer_with_response() {
    responded = true;
    if (world->random.chance(world->options.http_answer_lost_per_million, 1'000'000)) return fail("connection reset");
    if (world->is_cut(*server_machine, client_machine())) return;   // the client's time limit ends it
    response.content_length = response.body.size();
    response.headers["content-length"] = std::to_string(response.body.size());
    if (method == "HEAD") response.body.clear();
    answer(world->network_delay(*server_machine, client_machine()), std::move(response));
  }
};

class SimHttpClient final : public net::HttpClient {
 public:
  SimHttpClient(SimEnv& env, net::HttpClientOptions options, std::string host, std::string server_name,
                std::string path)
      : env_(env), options_(std::move(options)), host_(std::move(host)), server_name_(std::move(server_name)),
        path_(std::move(path)) {}
  ~SimHttpClient() override { *alive_ = false; }

  void request(HttpRequest request, Callback<Result<HttpResponse>> done) override {
    if (!env_.alive()) return;
    World::State& world = ProcessAccess::world(env_);
    auto exchange = std::make_shared<Exchange>();
    exchange->world = &world;
    exchange->client = &env_;
    exchange->server_machine = options_.unix_socket.empty() ? world.find_machine(host_) : &ProcessAccess::machine(env_);
    exchange->server_name = server_name_;
    exchange->options = options_;
    exchange->method = request.method;
    request.target = path_ + request.target;
    std::map<std::string, std::string> lower;
    for (auto& [key, value] : request.headers) {
      std::string name = key;
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      lower[name] = std::move(value);
    }
    request.headers = std::move(lower);
    request.headers["content-length"] = std::to_string(request.body.size());
    exchange->request = std::move(request);
    exchange->done = std::move(done);
    exchange->client_alive = alive_;
    if (exchange->server_machine == nullptr) {
      exchange->server_machine = &ProcessAccess::machine(env_);
      return exchange->answer({}, unavailable(host_, "no such host"));
    }
    exchange->begin();
  }

 private:
  SimEnv& env_;
  const net::HttpClientOptions options_;
  const std::string host_;
  const std::string server_name_;
  const std::string path_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);   // shared with exchanges under way
};

// One attempt to connect. Shared by the events that carry it.
struct Attempt : std::enable_shared_from_this<Attempt> {
  World::State* world = nullptr;
  SimEnv* client = nullptr;
  net::Network::ConnectOptions options;
  Callback<Result<std::unique_ptr<net::Stream>>> done;
  std::shared_ptr<Connection> connection;   // shared with the streams
  bool over = false;

  Machine& mine() const { return ProcessAccess::machine(*client); }

  void end(Duration delay, Result<std::unique_ptr<net::Stream>> result) {
    world->schedule(client, delay, EventKind::kStream, options.address.port,
                    [self = shared_from_this(), result = std::move(result)]() mutable {
                      if (!std::exchange(self->over, true)) self->done(std::move(result));
                    });
  }

  void begin() {
    std::string peer = options.address.to_string();
    end(options.timeout, unavailable(peer, "connecting timed out"));
    Machine* there = world->find_machine(options.address.host);
    if (there == nullptr) return end({}, unavailable(peer, "no such host"));
    world->schedule(nullptr, world->network_delay(mine(), *there), EventKind::kStream, options.address.port,
                    [self = shared_from_this(), there] { self->arrive(*there); });
  }

  void arrive(Machine& there) {
    // Either way cut: the handshake does not finish, and the time limit ends it.
    if (over || !client->alive() || world->is_cut(mine(), there) || world->is_cut(there, mine())) return;
    std::string peer = options.address.to_string();
    Duration back = world->network_delay(there, mine());
    auto it = there.listeners.find(options.address.port);
    if (it == there.listeners.end()) return end(back, unavailable(peer, "connection refused"));
    SimListener& listener = *it->second;
    net::PeerIdentity me = mine().identity(), server = there.identity();
    if (me.cluster != server.cluster || server.role != options.peer_role || !listener.accepts_role(me.role) ||
        (!options.peer_node.empty() && options.peer_node != server.node)) {
      return end(back, Status(Code::kPermission, peer + ": the certificate is not accepted"));
    }
    connection = std::make_shared<Connection>(*world, world->next_connection++);
    world->connections[connection->number] = connection;
    connection->ends[0].process = client;
    connection->ends[1].process = &listener.env();
    connection->ends[0].last_due_ns = connection->ends[1].last_due_ns = world->now_ns + back.count();
    end(back, std::unique_ptr<net::Stream>(std::make_unique<SimStream>(connection, 0, server)));
    UniqueFunction<void()> accepted = [self = shared_from_this(), &listener, me] {
      listener.accept(std::make_unique<SimStream>(self->connection, 1, me));
    };
    world->enter(&listener.env(), accepted);
  }
};

class SimNetwork final : public net::Network {
 public:
  explicit SimNetwork(SimEnv& env) : env_(env) {}

  Result<std::unique_ptr<net::Listener>> listen(
      const ListenOptions& options, UniqueFunction<void(std::unique_ptr<net::Stream>)> on_accept) override {
    if (!env_.alive()) return Operation::dead_status();
    Machine& machine = ProcessAccess::machine(env_);
    uint16_t port = options.address.port != 0 ? options.address.port : free_port(machine);
    if (port_taken(machine, port)) {
      return Status(Code::kAlreadyExists, "port " + std::to_string(port) + " is in use");
    }
    return std::unique_ptr<net::Listener>(
        std::make_unique<SimListener>(env_, port, options.roles_accepted, std::move(on_accept)));
  }

  void connect(const ConnectOptions& options, Callback<Result<std::unique_ptr<net::Stream>>> done) override {
    if (!env_.alive()) return;
    auto attempt = std::make_shared<Attempt>();
    attempt->world = &ProcessAccess::world(env_);
    attempt->client = &env_;
    attempt->options = options;
    attempt->done = std::move(done);
    attempt->begin();
  }

  Result<std::unique_ptr<net::HttpServer>> serve_http(const net::HttpServerOptions& options,
                                                      HttpHandler handler) override {
    if (!env_.alive()) return Operation::dead_status();
    Machine& machine = ProcessAccess::machine(env_);
    uint16_t port = 0;
    std::string name = options.unix_socket;
    if (name.empty()) {
      port = options.address.port != 0 ? options.address.port : free_port(machine);
      if (port_taken(machine, port)) {
        return Status(Code::kAlreadyExists, "port " + std::to_string(port) + " is in use");
      }
      name = ":" + std::to_string(port);
    }
    return std::unique_ptr<net::HttpServer>(
        std::make_unique<SimHttpServer>(env_, name, port, options, std::move(handler)));
  }

  Result<std::unique_ptr<net::HttpClient>> http_client(const net::HttpClientOptions& options) override {
    std::string rest = options.url;
    size_t scheme = rest.find("://");
    if (scheme == std::string::npos) return Status(Code::kInvalidArgument, options.url + ": no URL");
    bool tls = rest.starts_with("https:");
    rest = rest.substr(scheme + 3);
    size_t slash = rest.find('/');
    std::string path = slash == std::string::npos ? "" : rest.substr(slash);
    if (path == "/") path.clear();
    std::string host = rest.substr(0, slash);
    if (!options.unix_socket.empty()) {
      return std::unique_ptr<net::HttpClient>(
          std::make_unique<SimHttpClient>(env_, options, host, options.unix_socket, path));
    }
    uint16_t port = tls ? 443 : 80;
    if (size_t colon = host.rfind(':'); colon != std::string::npos) {
      const char* end = host.data() + host.size();
      auto parsed = std::from_chars(host.data() + colon + 1, end, port);
      if (parsed.ec != std::errc() || parsed.ptr != end) return Status(Code::kInvalidArgument, options.url + ": port");
      host.resize(colon);
    }
    return std::unique_ptr<net::HttpClient>(
        std::make_unique<SimHttpClient>(env_, options, host, ":" + std::to_string(port), path));
  }

 private:
  SimEnv& env_;
};

}  // namespace

void crash_exchanges(Machine& machine, Crash kind) {
  auto exchanges = std::move(machine.exchanges);
  machine.exchanges.clear();
  if (kind == Crash::kPowerLoss) return;   // a dead machine says nothing: the clients' time limits end them
  for (auto& weak : exchanges) {
    if (auto exchange = weak.lock()) exchange->server_died();
  }
}

std::unique_ptr<net::Network> make_network(SimEnv& env) { return std::make_unique<SimNetwork>(env); }

}  // namespace tidemark::sim
