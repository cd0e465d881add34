// tidemark-witness: the third vote. Parses, builds, runs; witness.h does the work.
#include <memory>

#include "shared/base/config.h"
#include "shared/daemon/daemon.h"
#include "shared/net/pki.h"
#include "shared/witness/witness.h"

namespace tidemark::witness {
namespace {

constexpr const char* kProgram = "tidemark-witness";

// What runs between ready and stop.
class Server {
 public:
  Server(daemon::Daemon& daemon, const config::Witness& config) : daemon_(daemon), config_(config) {}

  void start(Callback<Status> ready) { ready(open()); }

  void stop(UniqueFunction<void()> done) {
    http_.reset();
    done();
  }

 private:
  Status open() {
    TM_ASSIGN_OR_RETURN(witness_, Witness::open(daemon_.env(), config_.node.state_dir + "/witness"));
    daemon_.routes().get("/v1/status",
                         [this](const daemon::Request&) -> Result<std::string> { return witness_->status_json(); });
    auto address = net::Address::parse(config_.listen.address);
    if (!address) return daemon_.config_error("listen", "address", address.status(), "write HOST:PORT");
    net::HttpServerOptions options{
        .tls = net::TlsFiles{config_.tls.authority, config_.tls.certificate, config_.tls.key},
        .roles_accepted = {net::Role::kHost, net::Role::kShared},
        .address = *address};
    auto server = daemon_.env().network().serve_http(
        options, [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
          witness_->handle(std::move(request), std::move(reply));
        });
    if (!server) return daemon_.config_error("listen", "address", server.status(), "free the port or choose another");
    http_ = std::move(*server);
    return daemon_.publish_address("witness", {address->host, http_->port()});
  }

  daemon::Daemon& daemon_;
  const config::Witness& config_;
  std::unique_ptr<Witness> witness_;
  std::unique_ptr<net::HttpServer> http_;   // destroyed first: it asks the witness
};

Status check_certificate(const config::Witness& config) {
  TM_ASSIGN_OR_RETURN(net::pki::CertificateInfo info, net::pki::inspect(config.tls.certificate));
  if (!info.identity || info.identity->role != net::Role::kWitness) {
    return Status(Code::kInvalidArgument,
                  config.tls.certificate + " is not a witness's certificate: issue one with --role witness");
  }
  if (info.identity->node != config.node.name) {
    return Status(Code::kInvalidArgument, config.tls.certificate + " is of node " + info.identity->node +
                                              ", [node] name is " + config.node.name);
  }
  return Status::ok();
}

int run(int argc, char** argv) {
  daemon::Arguments arguments;
  if (auto code = daemon::parse_arguments(argc, argv, {kProgram, "The third vote of a Tidemark cluster"},
                                          arguments)) {
    return *code;
  }
  auto config = config::load_witness(arguments.config);
  if (!config) return daemon::fail(kProgram, config.status());
  if (Status s = config::check_paths(arguments.config, config->tls, nullptr); !s) return daemon::fail(kProgram, s);
  if (Status s = check_certificate(*config); !s) return daemon::fail(kProgram, s);
  auto made = daemon::Daemon::create({.program = kProgram,
                                      .config_file = arguments.config,
                                      .node = config->node,
                                      .log = config->log,
                                      .metrics = config->metrics,
                                      .background = arguments.background});
  if (!made) return daemon::fail(kProgram, made.status());
  daemon::Daemon& daemon = **made;
  Server server(daemon, *config);
  return daemon.run([&](Callback<Status> ready) { server.start(std::move(ready)); },
                    [&](UniqueFunction<void()> done) { server.stop(std::move(done)); });
}

}  // namespace
}  // namespace tidemark::witness

int main(int argc, char** argv) { return tidemark::witness::run(argc, argv); }
