// Two hosts' engines and a shared node in a simulated world, for tests of single moments: a guest's requests are begun
// one by one and looked at while they are under way.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/node/node.h"
#include "tests/sim/sim_env.h"

namespace tidemark::fs {

using std::chrono::milliseconds;
using std::chrono::seconds;

class EngineTest : public testing::Test {
 protected:
  static constexpr uint64_t kMiB = 1u << 20;
  struct File {
    int host = 1;
    HandleId handle;
    InodeNumber inode;
    ImageId image;
  };
  // A request under way, and what came of it.
  struct Request {
    std::optional<Status> answer;
    uint64_t number = 0;               // of a seek: where
    wire::Attr attr;
    std::string text;
    Bytes memory;
    MutableByteSpan bytes;             // aligned part of memory
  };
  using Pending = std::shared_ptr<Request>;   // shared with the callback that answers it

  EngineTest();
  ~EngineTest() override;

  // Everything up, both hosts linked. Called by the tests, so that they may set `options_` first.
  void start();
  // That, and host 1's "a.img" of 8 MiB, whose first MiB is 0x11 all over.
  File start_written();
  void start_shared();
  void start_host(int host);
  // On the mount of the run before, with its handles and tenures.
  void succeed_host(int host);
  Status open_host(int host);          // without starting it
  Status open_shared();                // without listening
  void crash_shared(sim::Crash kind);
  void crash_host(int host, sim::Crash kind);
  void crash_all() {
    for (int h : {1, 2}) crash_host(h, sim::Crash::kKill);
    crash_shared(sim::Crash::kKill);
  }
  Engine& engine(int host) { return *engines_.at(static_cast<size_t>(host)); }
  static std::string host_name(int host) { return "host" + std::to_string(host); }
  void cut_link(int host) { world_->partition(host_name(host), "shared1"); }
  // Cut so that both ends notice now.
  void lose_link(int host);
  void heal_link(int host);
  bool linked(int host);
  Incarnation incarnation(int host);
  uint64_t behind_bytes(const File& f);   // what the shared node has noted of this host's copy

  File create(int host, const std::string& name, uint64_t size);
  File open(int host, const std::string& name);
  void close(File& file) { engine(file.host).release(file.handle); }

  Pending write(const File& f, uint64_t offset, uint8_t byte, uint64_t length);
  Pending read(const File& f, uint64_t offset, uint64_t length);
  Pending flush(const File& f);
  Pending resize(const File& f, uint64_t size);
  Pending fallocate(const File& f, Engine::Fallocate what, Extent extent);
  Pending seek(const File& f, uint64_t offset, bool data);
  Pending getattr(const File& f);
  Status wait(const Pending& request, sim::Duration limit = seconds(30));   // kCancelled: no answer in time
  bool until(UniqueFunction<bool()> done, sim::Duration limit = seconds(60));
  // As `status` shows it; empty if it shows none.
  std::string mirror(const File& f);
  bool await_mirror(const File& f, const std::string& state) {
    return until([&] { return mirror(f) == state; });
  }
  Status write_now(const File& f, uint64_t offset, uint8_t byte, uint64_t length) {
    return wait(write(f, offset, byte, length));
  }
  // Acknowledged writes of it that were on the shared copy alone, which loses its power.
  void lose_the_only_copy(const File& f);
  // The bytes all alike: that byte; else -1. -2: the read failed.
  int byte_at(const File& f, uint64_t offset, uint64_t length);
  // The same of the shared copy's own storage, while the shared node is down.
  int shared_byte_at(const File& f, uint64_t offset, uint64_t length);
  // Is this host's copy equal to the shared one, block by block? Text of what is not; empty if all is well.
  std::string verify(const File& f);
  bool logged(const std::string& event) const { return log_.find(event) != std::string::npos; }
  Pending set_mirror(const File& f, const std::string& policy);
  // In the root.
  Pending rename(int host, const std::string& name, const std::string& new_name, uint32_t flags = 0, RequestId id = {});
  Pending unlink(int host, const std::string& name, RequestId id = {});
  Pending take_over(int host, const std::string& request);   // JSON of control-api.md
  // Does anything of it lie on that machine's brick?
  bool has_blocks(const std::string& node, const File& f);

  sim::WorldOptions options_{.seed = 5};
  std::unique_ptr<sim::World> world_;
  Uuid cluster_;
  std::vector<std::string> host_bricks_{"/brick1"};
  std::unique_ptr<node::SharedNode> shared_;
  std::array<std::unique_ptr<Engine>, 3> engines_;
  std::array<Bytes, 3> kept_;            // what survives runs
  std::array<std::optional<Survivor>, 3> survivors_;
  bool successor_ = false;
  std::string host_state_ = "/state";
  bool after_reset_ = false;             // an operator's word that what was in another state directory is lost
  // The shared node's disks. Others than before are as those of a machine that was replaced.
  std::string shared_state_ = "/state", shared_brick_ = "/brick1";
  std::vector<std::string> rebuild_from_;
  uint64_t resync_rate_ = 0;             // of hosts started from now on
  std::string log_;

 private:
  struct Look;
  const Look& look(int host);
  std::array<std::shared_ptr<const Look>, 3> looks_;
  bool waiting_ = false;
  Pending request() { return std::make_shared<Request>(); }
};

}  // namespace tidemark::fs
