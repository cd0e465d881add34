#include "tests/unit/fs/engine_fixture.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "fs/verifier.h"
#include "shared/base/log.h"
#include "shared/image/store.h"
#include "shared/node/marks.h"

namespace tidemark::fs {
namespace {
constexpr uint16_t kPort = 7400;
constexpr InodeNumber kRoot{1};

MutableByteSpan aligned(Bytes& memory, uint64_t length) {
  memory.resize(length + 4096);
  size_t pad = (4096 - reinterpret_cast<uintptr_t>(memory.data()) % 4096) % 4096;
  return MutableByteSpan(memory).subspan(pad, length);
}
}  // namespace

EngineTest::EngineTest() {
  log::set_sink_for_testing([this](log::Level, std::string_view, std::string_view line) {
    log_ += std::string(line) + "\n";
    if (std::getenv("TIDEMARK_TEST_LOG") != nullptr)
      std::fprintf(stderr, "%10.6f %.*s\n", world_ ? std::chrono::duration<double>(world_->elapsed()).count() : 0.0,
                   static_cast<int>(line.size()), line.data());
  });
  cluster_.bytes[3] = 9;
}

EngineTest::~EngineTest() {
  // The daemons end as in a crash: what they do while being destroyed has no effect.
  for (const char* name : {"host1", "host2", "shared1"})
    if (world_ && world_->running(name)) world_->crash(name, sim::Crash::kKill);
  for (auto& engine : engines_) engine.reset();
  shared_.reset();
  log::set_sink_for_testing(nullptr);
}

void EngineTest::start() {
  world_ = std::make_unique<sim::World>(options_);
  looks_ = {};
  world_->add_node({.name = "shared1", .cluster = cluster_, .role = net::Role::kShared});
  for (int h : {1, 2}) world_->add_node({.name = host_name(h), .cluster = cluster_, .role = net::Role::kHost});
  start_shared();
  for (int h : {1, 2}) start_host(h);
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
}

EngineTest::File EngineTest::start_written() {
  start();
  File f = create(1, "a.img", 8 * kMiB);
  EXPECT_TRUE(write_now(f, 0, 0x11, kMiB));
  return f;
}

// A host's status is costly to make. Whoever waits for it looks again when something was logged, and every two milliseconds.
struct EngineTest::Look {
  size_t logged;
  sim::Duration at;
  nlohmann::json status;
};
const EngineTest::Look& EngineTest::look(int host) {
  auto& last = looks_[static_cast<size_t>(host)];
  if (!waiting_ || !last || last->logged != log_.size() || world_->elapsed() - last->at >= milliseconds(2))
    last = std::make_shared<const Look>(Look{log_.size(), world_->elapsed(), nlohmann::json::parse(engine(host).status_json())});
  return *last;
}

bool EngineTest::linked(int host) { return look(host).status["shared"]["connected"].get<bool>(); }

Incarnation EngineTest::incarnation(int host) {
  return Incarnation(nlohmann::json::parse(engine(host).status_json())["incarnation"].get<uint64_t>());
}

uint64_t EngineTest::behind_bytes(const File& f) {
  auto status = nlohmann::json::parse(shared_->status_json());
  for (const auto& image : status["images"]) {
    if (image["uuid"] != f.image.to_string()) continue;
    auto at = image["behind_bytes"].find(host_name(f.host));
    return at == image["behind_bytes"].end() ? 0 : at->get<uint64_t>();
  }
  return 0;
}

void EngineTest::start_shared() {
  Status opened = open_shared();
  ASSERT_TRUE(opened) << opened.to_string();
  ASSERT_TRUE(shared_->listen({"shared1", kPort}, {}));
}

Status EngineTest::open_shared() {
  sim::SimEnv& env = world_->start("shared1");
  node::NodeOptions options;
  options.name = "shared1";
  options.cluster = cluster_;
  options.state_dir = shared_state_;
  options.region_bytes = kMiB;
  options.rebuild.hosts = rebuild_from_;
  options.storage.bricks = {shared_brick_};
  TM_RETURN_IF_ERROR(env.files().make_directories(shared_brick_));
  auto node = node::SharedNode::open(env, std::move(options), std::make_unique<node::NoMarks>());
  if (!node) return node.status();
  shared_ = std::move(*node);
  return Status::ok();
}

Status EngineTest::open_host(int host) {
  std::string name = host_name(host);
  sim::SimEnv& env = world_->start(name);
  EngineOptions options;
  options.cluster = cluster_;
  options.config.node.name = name;
  options.config.node.role = "host";
  options.config.node.state_dir = options.config.node.run_dir = host_state_;
  options.after_reset = after_reset_;
  options.config.storage.bricks = host_bricks_;
  options.config.resync.rate = resync_rate_;
  options.config.shared = config::SharedLink{"shared1:" + std::to_string(kPort), "shared1", 2};
  options.config.journal.region_bytes = kMiB;
  auto& survivor = survivors_.at(static_cast<size_t>(host));
  Bytes& kept = kept_.at(static_cast<size_t>(host));
  if (!successor_) kept.assign(Survivor::kBytes, 0);
  auto attached = Survivor::attach(kept);
  if (!attached) return attached.status();
  survivor = *attached;
  options.survivor = &*survivor;
  options.successor = successor_;
  for (const std::string& brick : host_bricks_) TM_RETURN_IF_ERROR(env.files().make_directories(brick));
  auto engine = Engine::open(env, std::move(options));
  if (!engine) return engine.status();
  engines_.at(static_cast<size_t>(host)) = std::move(*engine);
  return Status::ok();
}

void EngineTest::start_host(int host) {
  Status opened = open_host(host);
  ASSERT_TRUE(opened) << opened.to_string();
  engine(host).start();
}

void EngineTest::succeed_host(int host) {
  successor_ = true;
  start_host(host);
  successor_ = false;
}

void EngineTest::crash_shared(sim::Crash kind) {
  world_->crash("shared1", kind);
  shared_.reset();
  ASSERT_TRUE(until([&] {
    for (int h : {1, 2})
      if (world_->running(host_name(h)) && linked(h)) return false;
    return true;
  }));
}

void EngineTest::crash_host(int host, sim::Crash kind) {
  world_->crash(host_name(host), kind);
  engines_.at(static_cast<size_t>(host)).reset();
}

void EngineTest::lose_link(int host) {
  world_->partition(host_name(host), "shared1");
  world_->reset_connections(host_name(host), "shared1");
  ASSERT_TRUE(until([&] { return !linked(host); }));
}

void EngineTest::heal_link(int host) {
  world_->heal(host_name(host), "shared1");
  world_->heal("shared1", host_name(host));
}

// ---- files ----------------------------------------------------------------------------------------

EngineTest::File EngineTest::create(int host, const std::string& name, uint64_t size) {
  wire::Create ask;
  ask.parent = kRoot;
  ask.name = name;
  ask.mode = 0600;
  bool made = false;
  engine(host).create(ask, [&](Result<wire::Attr> attr) {
    EXPECT_TRUE(attr) << attr.status().to_string();
    made = true;
  });
  EXPECT_TRUE(until([&] { return made; }));
  File f = open(host, name);
  if (size == 0) return f;
  Status sized = wait(resize(f, size));
  EXPECT_TRUE(sized) << sized.to_string();
  return f;
}

EngineTest::File EngineTest::open(int host, const std::string& name) {
  File f;
  f.host = host;
  bool opened = false;
  EXPECT_TRUE(until([&] { return linked(host); }));
  engine(host).lookup(kRoot, name, [&](Result<wire::Attr> attr) {
    EXPECT_TRUE(attr) << attr.status().to_string();
    if (!attr) return;
    f.inode = attr->inode;
    f.image = attr->image;
    engine(host).open_image(attr->inode, [&](Result<HandleId> handle) {
      EXPECT_TRUE(handle) << handle.status().to_string();
      if (handle) f.handle = *handle;
      opened = true;
    });
  });
  EXPECT_TRUE(until([&] { return opened; }));
  return f;
}

EngineTest::Pending EngineTest::write(const File& f, uint64_t offset, uint8_t byte, uint64_t length) {
  Pending r = request();
  r->bytes = aligned(r->memory, length);
  std::fill(r->bytes.begin(), r->bytes.end(), byte);
  engine(f.host).write(f.handle, offset, r->bytes, io::IoMode::kQueued,
                       [r](Result<size_t> n) { r->answer = n.status(); });
  return r;
}

EngineTest::Pending EngineTest::read(const File& f, uint64_t offset, uint64_t length) {
  Pending r = request();
  r->bytes = aligned(r->memory, length);
  engine(f.host).read(f.handle, offset, r->bytes, io::IoMode::kQueued, [r](Result<size_t> n) {
    r->answer = n.status();
    if (n) r->bytes = r->bytes.first(*n);
  });
  return r;
}

EngineTest::Pending EngineTest::flush(const File& f) {
  Pending r = request();
  engine(f.host).flush(f.handle, io::IoMode::kQueued, [r](Status s) { r->answer = std::move(s); });
  return r;
}

EngineTest::Pending EngineTest::resize(const File& f, uint64_t size) {
  Pending r = request();
  SetAttr change;
  change.set_size = true;
  change.size = size;
  engine(f.host).setattr(f.inode, change, [r](Result<wire::Attr> attr) { r->answer = attr.status(); });
  return r;
}

EngineTest::Pending EngineTest::fallocate(const File& f, Engine::Fallocate what, Extent extent) {
  Pending r = request();
  engine(f.host).fallocate(f.handle, what, extent, [r](Status s) { r->answer = std::move(s); });
  return r;
}

EngineTest::Pending EngineTest::seek(const File& f, uint64_t offset, bool data) {
  Pending r = request();
  engine(f.host).seek(f.handle, offset, data, [r](Result<uint64_t> at) {
    r->answer = at.status();
    if (at) r->number = *at;
  });
  return r;
}

EngineTest::Pending EngineTest::getattr(const File& f) {
  Pending r = request();
  engine(f.host).getattr(f.inode, [r](Result<wire::Attr> attr) {
    r->answer = attr.status();
    if (attr) r->attr = *attr;
  });
  return r;
}

EngineTest::Pending EngineTest::set_mirror(const File& f, const std::string& policy) {
  Pending r = request();
  wire::SetXattr ask;
  ask.inode = f.inode;
  ask.name = "user.tidemark.mirror";
  ask.value.assign(policy.begin(), policy.end());
  engine(f.host).set_xattr(ask, [r](Status s) { r->answer = std::move(s); });
  return r;
}

EngineTest::Pending EngineTest::rename(int host, const std::string& name, const std::string& new_name, uint32_t flags,
                                       RequestId id) {
  Pending r = request();
  engine(host).rename({kRoot, name, kRoot, new_name, flags}, [r](Status s) { r->answer = std::move(s); }, id);
  return r;
}

EngineTest::Pending EngineTest::unlink(int host, const std::string& name, RequestId id) {
  Pending r = request();
  engine(host).unlink(kRoot, name, false, [r](Status s) { r->answer = std::move(s); }, id);
  return r;
}

EngineTest::Pending EngineTest::take_over(int host, const std::string& request_text) {
  Pending r = request();
  engine(host).takeover(request_text, [r](Result<std::string> report) {
    r->text = report ? *report : std::string();
    r->answer = report.status();
  });
  return r;
}

// ---- looking --------------------------------------------------------------------------------------

bool EngineTest::until(UniqueFunction<bool()> done, sim::Duration limit) {
  if (done()) return true;
  const bool before = std::exchange(waiting_, true);
  const bool is_so = world_->run_until(std::move(done), limit);
  waiting_ = before;
  return is_so;
}

Status EngineTest::wait(const Pending& request, sim::Duration limit) {
  if (!until([&] { return request->answer.has_value(); }, limit)) return Status(Code::kCancelled, "no answer in time");
  return *request->answer;
}

std::string EngineTest::mirror(const File& f) {
  for (const auto& image : look(f.host).status["images"])
    if (image["uuid"] == f.image.to_string()) return image["mirror"];
  return "";
}

int EngineTest::byte_at(const File& f, uint64_t offset, uint64_t length) {
  Pending r = read(f, offset, length);
  Status s = wait(r);
  if (!s || r->bytes.empty()) return -2;
  bool alike = std::all_of(r->bytes.begin(), r->bytes.end(), [&](uint8_t b) { return b == r->bytes[0]; });
  return alike ? r->bytes[0] : -1;
}

int EngineTest::shared_byte_at(const File& f, uint64_t offset, uint64_t length) {
  sim::SimEnv& env = world_->start("shared1");
  image::StorageGroupOptions options;
  options.name = config::Storage().group;
  options.bricks = {"/brick1"};
  auto group = image::StorageGroup::open(env, std::move(options));
  if (!group) return -2;
  auto copy = (*group)->open_image(f.image);
  if (!copy) return -2;
  Pending r = request();
  r->bytes = aligned(r->memory, length);
  (*copy)->read(offset, r->bytes, io::IoMode::kQueued, [r](Status s) { r->answer = s; });
  if (!wait(r)) return -2;
  bool alike = std::all_of(r->bytes.begin(), r->bytes.end(), [&](uint8_t b) { return b == r->bytes[0]; });
  return alike ? r->bytes[0] : -1;
}

bool EngineTest::has_blocks(const std::string& node, const File& f) {
  const auto files = world_->files(node, "/brick1");
  return std::any_of(files.begin(), files.end(), [id = f.image.to_string()](const auto& file) {
    return file.first.find(id) != std::string::npos;
  });
}

std::string EngineTest::verify(const File& f) {
  Pending r = request();
  engine(f.host).verifier().start({f.image.to_string()}, [](uint64_t, uint64_t) {}, [r](Result<std::string> result) {
    r->answer = result.status();
    if (result) r->text = *result;
  });
  Status s = wait(r, seconds(120));
  if (!s) return s.to_string();
  auto result = nlohmann::json::parse(r->text);
  return result["equal"] == true ? "" : r->text;
}

void EngineTest::lose_the_only_copy(const File& f) {
  ASSERT_TRUE(wait(flush(f)));
  world_->inject("host1", sim::FileFault{
      .operations = static_cast<uint16_t>(sim::FileOp::kWrite), .path_contains = "objects"});
  ASSERT_TRUE(write_now(f, 0, 0x22, kMiB));     // this host's copy is behind from now on
  ASSERT_TRUE(write_now(f, kMiB, 0x33, kMiB));  // on the shared node alone
  crash_shared(sim::Crash::kPowerLoss);
  start_shared();
}

}  // namespace tidemark::fs
