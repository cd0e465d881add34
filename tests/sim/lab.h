// A shared node and two hosts for directed tests: each call runs the world until it is answered.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "fs/verifier.h"
#include "tests/sim/nodes.h"

namespace tidemark::sim {

// FileFault::operations.
inline constexpr auto kRead = static_cast<uint16_t>(FileOp::kRead), kWrite = static_cast<uint16_t>(FileOp::kWrite),
               kSync = static_cast<uint16_t>(FileOp::kSync);

enum class Plant { kNone, kWitnessForgets, kWitnessForgetsHosts };
enum class Ships : bool { kNo, kYes };   // yes: to replica1, which the test starts

class Lab final : public fs::MemoryKeeper {
 public:
  static constexpr uint64_t kRegion = 64 << 10, kImageBytes = 4 * kRegion;

  explicit Lab(uint64_t seed, bool with_witness = false, Plant plant = Plant::kNone, Ships ships = Ships::kNo)
      : world({.seed = seed}), with_witness_(with_witness), plant_(plant), ships_(ships == Ships::kYes) {
    std::array<uint8_t, 16> id;
    world.random().fill(id);
    cluster_ = Uuid::from_random(id);
    world.add_node({.name = "shared1", .cluster = cluster_, .role = net::Role::kShared});
    for (const char* host : {"host1", "host2"}) world.add_node({.name = host, .cluster = cluster_, .role = net::Role::kHost});
    if (ships_) world.add_node({.name = "replica1", .cluster = cluster_, .role = net::Role::kReplica});
    if (with_witness) {
      world.add_node({.name = "witness1", .cluster = cluster_, .role = net::Role::kWitness});
      start("witness1");
    }
    for (const char* node : {"shared1", "host1", "host2"}) start(node);
  }
  ~Lab() override {
    for (const char* node : {"shared1", "host1", "host2"}) if (world.running(node)) world.crash(node, Crash::kKill);
    if (mounts_.contains("host3") && world.running("host3")) world.crash("host3", Crash::kKill);
    if (with_witness_ && world.running("witness1")) world.crash("witness1", Crash::kKill);
    engines_.clear();
    shared_.reset();
    witness_ = {};
  }

  // host3, where a case needs one more.
  void add_third_host() {
    world.add_node({.name = "host3", .cluster = cluster_, .role = net::Role::kHost});
    start("host3");
  }
  void start(const std::string& node) {
    SimEnv& env = world.start(node);
    if (node == "witness1") {
      auto opened = open_witness(env, plant_ == Plant::kWitnessForgets        ? Forgets::kAll
                                      : plant_ == Plant::kWitnessForgetsHosts ? Forgets::kHosts
                                                                              : Forgets::kNobody);
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      witness_ = std::move(*opened);
      return;
    }
    if (node == "shared1") {
      auto opened = open_shared(env, {.cluster = cluster_, .region_bytes = kRegion, .ships = ships_,
                                      .on_fatal = [](const Status& s) { ADD_FAILURE() << s.to_string(); },
                                      .witness = with_witness_, .rebuild_from = rebuild_from});
      ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
      shared_ = std::move(*opened);
      return;
    }
    mounts_[node] = std::make_unique<Mount>();
    start_run(env, node, false);
  }
  // On the mount that stands, with its handles and tenures: what a live restart, or a kill of the daemon alone, does.
  void succeed(const std::string& node) { start_run(world.start(node), node, true); }
  void crash(const std::string& node, Crash kind) {
    world.crash(node, kind);
    if (node == "witness1") witness_ = {};
    else if (node == "shared1") shared_.reset();
    else engines_.erase(node);
  }
  fs::Engine& engine(const std::string& host) { return *engines_.at(host); }

  template <class T, class F>
  T wait(F&& begin, Duration limit = std::chrono::seconds(120)) {
    auto result = std::make_shared<std::optional<T>>();   // shared with an answer that may come too late
    begin([result](T value) { result->emplace(std::move(value)); });
    world.run_until([&] { return result->has_value(); }, limit);
    if (!result->has_value()) return T(Status(Code::kCancelled, "no answer in time"));
    return std::move(**result);
  }

  // An operator's word at the shared node itself.
  Result<std::string> take_at_shared(const std::string& request) {
    return wait<Result<std::string>>([&](auto done) { shared_->takeover(request, std::move(done)); });
  }
  Status set_mirror(const std::string& policy) {
    return wait<Result<std::string>>([&](auto done) { shared_->set_policy("/disk.img", policy, std::move(done)); }).status();
  }
  void begin_take(const std::string& request) { shared_->takeover(request, [](Result<std::string>) {}); }
  Result<std::string> resync_names() {
    return wait<Result<std::string>>([&](auto done) { shared_->resync_replica(std::move(done)); });
  }
  Result<std::string> resync_replica(const std::string& host) {
    return wait<Result<std::string>>([&](auto done) { engine(host).resync_replica(std::move(done)); });
  }
  std::string shared_status() { return shared_->status_json(); }
  const Uuid& cluster() const { return cluster_; }

  Result<fs::HandleId> open(const std::string& host, bool create = false, const std::string& name = "disk.img") {
    auto attr = wait<Result<wire::Attr>>([&](auto done) {
      if (!create) return engine(host).lookup(InodeNumber(1), name, std::move(done));
      wire::Create request;
      request.parent = InodeNumber(1);
      request.name = name;
      request.mode = 0600;
      engine(host).create(std::move(request), std::move(done));
    });
    if (!attr) return attr.status();
    if (create) {
      if (Status s = resize(host, attr->inode, kImageBytes); !s) return s;
    }
    return wait<Result<fs::HandleId>>([&](auto done) { engine(host).open_image(attr->inode, std::move(done)); });
  }
  Status resize(const std::string& host, InodeNumber inode, uint64_t size) {
    fs::SetAttr change;
    change.set_size = true;
    change.size = size;
    return wait<Result<wire::Attr>>([&](auto done) { engine(host).setattr(inode, change, std::move(done)); }).status();
  }
  InodeNumber inode_of(const std::string& host, const std::string& name = "disk.img") {
    auto attr = wait<Result<wire::Attr>>([&](auto done) { engine(host).lookup(InodeNumber(1), name, std::move(done)); });
    return attr ? attr->inode : InodeNumber();
  }
  // A new image, all of it written with 'a' and flushed.
  Result<fs::HandleId> open_filled(const std::string& host) {
    auto handle = open(host, true);
    if (!handle) return handle;
    if (Status s = write(host, *handle, 0, 'a', kImageBytes); !s) return s;
    if (Status s = flush(host, *handle); !s) return s;
    return handle;
  }
  Status write(const std::string& host, fs::HandleId handle, uint64_t offset, uint8_t byte, uint64_t length = 4096) {
    auto data = std::make_shared<Bytes>(length, byte);    // shared: it must outlive an answer that comes too late
    kept_.push_back(data);
    auto n = wait<Result<size_t>>([&](auto done) { engine(host).write(handle, offset, *data, io::IoMode::kQueued, std::move(done)); });
    return n ? Status::ok() : n.status();
  }
  Status flush(const std::string& host, fs::HandleId handle) {
    return wait<Status>([&](auto done) { engine(host).flush(handle, io::IoMode::kQueued, std::move(done)); });
  }
  Result<Bytes> read_bytes(const std::string& host, fs::HandleId handle, uint64_t offset, uint64_t length) {
    auto data = std::make_shared<Bytes>(length);
    kept_.push_back(data);
    auto n = wait<Result<size_t>>([&](auto done) { engine(host).read(handle, offset, *data, io::IoMode::kQueued, std::move(done)); });
    if (auto moved = moved_.find(data->data()); moved != moved_.end()) data = moved->second;
    if (!n) return n.status();
    return *data;
  }
  // The byte that fills the range, if one does.
  Result<uint8_t> read(const std::string& host, fs::HandleId handle, uint64_t offset, uint64_t length = 4096) {
    auto data = read_bytes(host, handle, offset, length);
    if (!data) return data.status();
    for (uint8_t b : *data) if (b != data->front()) return Status(Code::kCorruption, "mixed bytes");
    return data->front();
  }
  bool healthy(const std::string& host, Duration limit = std::chrono::seconds(120)) {
    return world.run_until([&] { return engine(host).healthy(); }, limit);
  }
  std::string verify(const std::string& host) {
    auto r = wait<Result<std::string>>(
        [&](auto done) { engine(host).verifier().start({}, [](uint64_t, uint64_t) {}, std::move(done)); });
    if (!r) return r.status().to_string();
    bool level = r->starts_with("{\"equal\":true") && r->find("\"host\":\"level\"") != std::string::npos &&
                 r->find("\"shared\":\"level\"") != std::string::npos;
    return level ? "" : *r;
  }

  // The data objects of the image, one a stripe; the shared node has two.
  std::vector<std::string> objects(const std::string& node) {
    std::map<std::string, std::string> by_stripe;
    for (const auto& [path, bytes] : world.files(node, "/"))
      if (path.ends_with(".data")) by_stripe[path.substr(path.rfind(".g"))] = path;
    std::vector<std::string> out;
    for (const auto& [stripe, path] : by_stripe) out.push_back(path);
    EXPECT_FALSE(out.empty()) << node << " has no object";
    return out;
  }

  // All memory is kept for ever; a read that is answered from elsewhere gets other memory.
  MutableByteSpan keep(ByteSpan memory) override {
    auto other = std::make_shared<Bytes>(memory.size());
    kept_.push_back(other);
    moved_[memory.data()] = other;
    ++hung;
    return *other;
  }
  void landed(ByteSpan) override { ++landed_late; }

  uint32_t hung = 0, landed_late = 0;
  uint64_t resync_rate = 0;            // of hosts started from now on
  bool pause = false;                  // of hosts started from now on: they do not go on alone
  bool continues = false;              // of hosts started from now on: they do, without asking the witness that there is
  bool after_reset = false;            // likewise: what was in their state directories is lost
  Duration limit_age = std::chrono::hours(24);   // of their journals
  std::vector<std::string> rebuild_from;   // an operator's order to a shared node that is started without a catalogue
  World world;

 private:
  void start_run(SimEnv& env, const std::string& node, bool successor) {
    auto opened = open_host(env, {.cluster = cluster_, .region_bytes = kRegion, .ships = ships_, .limit_age = limit_age,
                                   .witness = with_witness_, .resync_rate = resync_rate, .pause = pause,
                                   .continues = continues,
                                   .survivor = &mounts_.at(node)->attach(), .after_reset = after_reset,
                                   .successor = successor});
    ASSERT_TRUE(opened.is_ok()) << opened.status().to_string();
    engines_[node] = std::move(*opened);
    engines_[node]->set_memory_keeper(this);
    engines_[node]->start();
  }

  const bool with_witness_;
  const Plant plant_;
  const bool ships_;
  Uuid cluster_;
  WitnessServer witness_;
  std::unique_ptr<node::SharedNode> shared_;
  std::map<std::string, std::unique_ptr<Mount>> mounts_;
  std::map<std::string, std::unique_ptr<fs::Engine>> engines_;
  std::vector<std::shared_ptr<Bytes>> kept_;
  std::map<const uint8_t*, std::shared_ptr<Bytes>> moved_;   // memory of a hung read -> what it was answered in
};

}  // namespace tidemark::sim
