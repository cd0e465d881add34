// A shared node and host clients that speak the protocol by hand, in a simulated world.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/digest.h"
#include "shared/base/log.h"
#include "shared/base/metrics.h"
#include "shared/node/node.h"
#include "shared/wire/connection.h"
#include "tests/sim/sim_env.h"

namespace tidemark::node {

inline wire::Hash hash_of(const ImageId& image, Extent extent, uint32_t unit) {
  wire::Hash h{image, extent, unit, {}};
  h.key.secret.fill(7);
  return h;
}

// Remembers the marks, and never settles them: says so, or leaves the question open as a journal whose replica is away.
class RecordedMarks final : public MarkSink {
 public:
  RecordedMarks(std::vector<wire::Mark>& marks, bool answers) : marks_(marks), answers_(answers) {}
  void record(const wire::Mark& mark) override { marks_.push_back(mark); }
  void settle(Callback<Status> done) override {
    if (answers_) done(Status(Code::kUnavailable, "never in this test"));
    else unanswered_.push_back(std::move(done));
  }
  Usage usage() const override { return {}; }
  void stop(UniqueFunction<void()> done) override { done(); }

 private:
  std::vector<wire::Mark>& marks_;
  const bool answers_;
  std::vector<Callback<Status>> unanswered_;
};

class HostClient {
 public:
  HostClient(sim::World& world, std::string name) : world_(world), name_(std::move(name)), env_(world.start(name_)) {
    hello.node = name_;
    hello.incarnation = Incarnation(1);
    hello.nonce.bytes[0] = 1;
  }

  // Connects and says hello; the answer's status.
  Status connect(uint16_t port, const Uuid& cluster) {
    hello.cluster = cluster;
    Status status = open_link(port);
    if (!status) return status;
    Result<wire::HelloAnswer> a = ask<wire::HelloAnswer>(wire::Type::kHello, hello);
    if (a) answer = *a;
    return a.status();
  }
  Status open_link(uint16_t port) {
    link.reset();
    closed.reset();
    std::optional<Status> done;
    net::Network::ConnectOptions options;
    options.address = {"shared", port};
    options.peer_role = net::Role::kShared;
    env_.network().connect(options, [&](Result<std::unique_ptr<net::Stream>> s) {
      done = s.status();
      if (!s) return;
      link = std::make_unique<wire::Connection>(env_, std::move(*s), pool_);
      link->start({.on_request = {},
                   .on_notify = [this](wire::Type type, ByteSpan body) { on_notify(type, body); },
                   .on_close = [this](Status reason) { closed = std::move(reason); }});
    });
    run([&] { return done.has_value(); });
    return *done;
  }

  template <class A, class M>
  Result<A> ask(wire::Type type, const M& m) {
    std::optional<Result<A>> out;
    link->request<A>(type, m, [&](Result<A> a) { out.emplace(std::move(a)); });
    run([&] { return out.has_value(); });
    return *out;
  }
  Status tell(wire::Type type, ByteSpan body, ByteSpan payload = {}, Bytes* got = nullptr) {
    std::optional<Status> out;
    link->send_request(type, body, payload, [&](Result<wire::Answer> a) {
      if (a && got != nullptr) got->assign(a->payload.span().begin(), a->payload.span().end());
      out = a.status();
    });
    run([&] { return out.has_value(); });
    return *out;
  }
  Result<wire::Applied> write(const ImageId& image, Epoch epoch, uint64_t offset, const Bytes& data,
                              uint8_t flags = 0) {
    std::optional<Result<wire::Applied>> out;
    send_write(image, epoch, offset, data, [&](Result<wire::Applied> a) { out.emplace(std::move(a)); }, flags);
    run([&] { return out.has_value(); });
    return *out;
  }
  void send_write(const ImageId& image, Epoch epoch, uint64_t offset, const Bytes& data,
                  Callback<Result<wire::Applied>> done, uint8_t flags = 0) {
    counter = counter.next();
    link->send_write({image, epoch, {hello.incarnation, counter}, offset, flags}, data, digest64(data),
                     std::move(done));
  }
  Status resize(const ImageId& image, Epoch epoch, uint64_t size, uint64_t generation) {
    counter = counter.next();
    return ask<wire::Applied>(wire::Type::kResize,
                              wire::Resize{image, epoch, {hello.incarnation, counter}, size, Generation(generation)})
        .status();
  }
  Result<Bytes> read(const ImageId& image, uint64_t offset, uint32_t length) {
    Bytes got;
    Status s = tell(wire::Type::kRead, wire::encode(wire::Read{image, offset, length}), {}, &got);
    if (!s) return s;
    return got;
  }
  Result<wire::Grant> acquire(const ImageId& image, uint32_t wait_ms = 5000, bool copy_absent = false) {
    return ask<wire::Grant>(wire::Type::kAcquire, wire::Acquire{image, wait_ms, copy_absent});
  }
  Status yield(const ImageId& image, Epoch epoch) {
    return ask<wire::Yielded>(wire::Type::kYield, wire::Yield{image, epoch, {hello.incarnation, counter}}).status();
  }
  Result<wire::Attr> create(const std::string& name, InodeNumber parent = InodeNumber(1),
                            wire::NodeKind kind = wire::NodeKind::kImage, uint8_t mirror = 1) {
    Result<wire::Changed> c =
        ask<wire::Changed>(wire::Type::kCreate, wire::Create{parent, name, kind, 0644, 0, 0, "", mirror});
    if (!c) return c.status();
    return c->mark.node;
  }
  Result<wire::Attr> lookup(const std::string& name, InodeNumber parent = InodeNumber(1)) {
    return ask<wire::Attr>(wire::Type::kLookup, wire::Lookup{parent, name});
  }
  void run(UniqueFunction<bool()> done) { ASSERT_TRUE(world_.run_until(std::move(done), std::chrono::minutes(2))); }

  wire::Hello hello;
  wire::HelloAnswer answer;
  std::unique_ptr<wire::Connection> link;
  std::optional<Status> closed;
  std::vector<wire::RecallNotify> recalls;
  std::vector<wire::InvalidateNotify> invalidated;
  Counter counter;

 private:
  void on_notify(wire::Type type, ByteSpan body) {
    if (type == wire::Type::kRecallNotify) {
      auto m = wire::decode<wire::RecallNotify>(body);
      ASSERT_TRUE(m);
      recalls.push_back(*m);
    } else {
      auto m = wire::decode<wire::InvalidateNotify>(body);
      ASSERT_TRUE(m);
      invalidated.push_back(*m);
    }
  }
  sim::World& world_;
  std::string name_;
  sim::SimEnv& env_;
  std::shared_ptr<wire::PayloadPool> pool_ = wire::PayloadPool::make();  // shared with payloads in use
};

class NodeTest : public testing::Test {
 protected:
  NodeTest() {
    log::set_sink_for_testing([this](log::Level level, std::string_view, std::string_view line) {
      if (level == log::Level::kError) errors_ += std::string(line) + "\n";
      else if (level == log::Level::kWarning) warnings_ += std::string(line) + "\n";
    });
    cluster_.bytes[3] = 9;
    world_.add_node({.name = "shared", .cluster = cluster_, .role = net::Role::kShared});
    for (const char* h : {"host1", "host2", "host3"})
      world_.add_node({.name = h, .cluster = cluster_, .role = net::Role::kHost});
    start_node();
  }
  ~NodeTest() override {
    node_.reset();
    log::set_sink_for_testing(nullptr);
  }

  // Of disk.img, as an operator here says it.
  Status set_policy(const std::string& mirror) {
    std::optional<Status> done;
    node_->set_policy("disk.img", mirror, [&](Result<std::string> r) { done = r.status(); });
    EXPECT_TRUE(world_.run_until([&] { return done.has_value(); }, std::chrono::seconds(10)));
    return done.value_or(Status(Code::kCancelled, "no answer in time"));
  }
  void start_node() {
    sim::SimEnv& env = world_.start("shared");
    NodeOptions options;
    options.name = "shared";
    options.cluster = cluster_;
    options.state_dir = "/state";
    options.storage.bricks = {"/brick1", "/brick2"};
    options.storage.stripe_unit = 64u << 10;
    options.storage.stripe_count = 2;
    for (const std::string& brick : options.storage.bricks) ASSERT_TRUE(env.files().make_directories(brick));
    options.region_bytes = 1u << 20;
    options.witness = std::move(witness_);
    options.metrics = &metrics_;
    options.marks_unshipped_max = marks_max_;
    options.marks_unshipped_bytes_max = marks_bytes_max_;
    auto node = SharedNode::open(env, std::move(options), std::make_unique<RecordedMarks>(marks_, replica_answers_));
    ASSERT_TRUE(node) << node.status().message();
    node_ = std::move(*node);
    ASSERT_TRUE(node_->listen({"shared", 7400}, {}));
    port_ = node_->port();
  }
  void restart_node(sim::Crash crash) {
    world_.crash("shared", crash);
    node_.reset();
    start_node();
  }
  std::unique_ptr<HostClient> host(const std::string& name) {
    auto h = std::make_unique<HostClient>(world_, name);
    Status s = h->connect(port_, cluster_);
    EXPECT_TRUE(s) << s.message();
    return h;
  }
  // An image of `size` bytes, held by `h`.
  struct Held { ImageId image; Epoch epoch; InodeNumber inode; };
  Held held_image(HostClient& h, const std::string& name, uint64_t size) {
    Result<wire::Attr> attr = h.create(name);
    EXPECT_TRUE(attr) << attr.status().message();
    Result<wire::Grant> grant = h.acquire(attr->image);
    EXPECT_TRUE(grant) << grant.status().message();
    Status s = h.resize(attr->image, grant->epoch, size, 1);
    EXPECT_TRUE(s) << s.message();
    return {attr->image, grant->epoch, attr->inode};
  }

  sim::World world_{sim::WorldOptions{.seed = 11}};
  Uuid cluster_;
  std::vector<wire::Mark> marks_;
  bool replica_answers_ = true;                // of the next start, as what follows
  uint64_t marks_max_ = limits::kMarksUnshippedMax, marks_bytes_max_ = limits::kMarksUnshippedBytesMax;
  std::unique_ptr<net::HttpClient> witness_;
  metrics::Registry metrics_;
  std::unique_ptr<SharedNode> node_;
  uint16_t port_ = 0;
  std::string errors_, warnings_;   // lines logged
};

}  // namespace tidemark::node
