#include "tests/contract/harness.h"

#include <filesystem>

#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"
#include "shared/net/pki.h"
#include "shared/net/real_network.h"
#include "tests/sim/sim_env.h"

namespace tidemark::contract {
namespace {

class RealHarness final : public Harness {
 public:
  explicit RealHarness(bool use_io_uring)
      : env_({.open_store = kv::open_lmdb_store, .make_network = net::make_real_network, .use_io_uring = use_io_uring}) {
    // Not the temporary directory's default: tmpfs answers some calls unlike a disk's file system.
    std::string pattern = "/var/tmp/tidemark_contract_XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
  }
  ~RealHarness() override {
    std::filesystem::remove_all(directory_);
    std::filesystem::remove_all(directory_ + ".pki");
  }

  io::Env& env() override { return env_; }
  io::Env& client_env() override { return env_; }
  net::TlsFiles server_tls() override { return issue("shared1", net::Role::kShared); }
  net::TlsFiles client_tls() override { return issue("host1", net::Role::kHost); }
  std::string server_host() override { return "127.0.0.1"; }
  std::string directory() override { return directory_; }
  bool run_until(UniqueFunction<bool()> done) override { return env_.run_until(std::move(done), kWait); }
  void run_for(io::Duration duration) override {
    bool over = false;
    env_.after(duration, [&] { over = true; });
    EXPECT_TRUE(env_.run_until([&] { return over; }, duration + kWait));
  }

 private:
  net::TlsFiles issue(const std::string& node, net::Role role) {
    if (auto it = issued_.find(node); it != issued_.end()) return it->second;
    std::string pki = directory_ + ".pki";   // beside it: the test's directory is empty
    if (!std::filesystem::exists(pki)) {
      auto made = net::pki::init_authority(pki, {});
      EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    }
    auto tls = net::pki::issue({.authority_directory = pki, .node = node, .role = role, .names = {"127.0.0.1"}});
    EXPECT_TRUE(tls.is_ok()) << tls.status().to_string();
    return issued_[node] = tls ? *tls : net::TlsFiles{};
  }

  std::string directory_;
  std::map<std::string, net::TlsFiles> issued_;
  io::RealEnv env_;
};

class SimHarness final : public Harness {
 public:
  SimHarness() : world_({.seed = 20261121}) {
    Uuid cluster = Uuid::from_random({1, 2, 3});
    world_.add_node({.name = "shared1", .cluster = cluster, .role = net::Role::kShared});
    world_.add_node({.name = "host1", .cluster = cluster, .role = net::Role::kHost});
    server_ = &world_.start("shared1");
    client_ = &world_.start("host1");
    EXPECT_TRUE(server_->files().make_directories("/data").is_ok());
  }
  io::Env& env() override { return *server_; }
  io::Env& client_env() override { return *client_; }
  net::TlsFiles server_tls() override { return {}; }
  net::TlsFiles client_tls() override { return {}; }
  std::string server_host() override { return "shared1"; }
  std::string directory() override { return "/data"; }
  bool run_until(UniqueFunction<bool()> done) override { return world_.run_until(std::move(done), kWait); }
  void run_for(io::Duration duration) override { world_.run_for(duration); }

 private:
  sim::World world_;
  sim::SimEnv* server_;
  sim::SimEnv* client_;
};

}  // namespace

std::unique_ptr<Harness> make_harness(const std::string& kind) {
  if (kind == "sim") return std::make_unique<SimHarness>();
  return std::make_unique<RealHarness>(kind == "real");
}

}  // namespace tidemark::contract
