// A host whose tenure went to another while it wrote on its own.
#include <nlohmann/json.hpp>

#include "journal/records.h"
#include "shared/kv/store.h"
#include "shared/wire/connection.h"
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class TailTest : public EngineTest, public testing::WithParamInterface<bool> {
 protected:
  static Uuid nonce_of_last_run(sim::SimEnv& env) {
    kv::StoreOptions options;
    options.tables = journal::journal_table_names();
    auto store = env.open_store("/state/journal", options);
    EXPECT_TRUE(store) << store.status().to_string();
    auto row = (*store)->snapshot()->get(journal::kMetaTable, as_bytes("incarnation"));
    EXPECT_TRUE(row) << row.status().to_string();
    Reader in(*row);
    in.u64();
    return in.uuid();
  }
  // Speaks for host1 as an operator's override would: its tenure is ended without its word.
  void give_away(const ImageId& image, Incarnation incarnation, const Uuid& generation) {
    sim::SimEnv& env = world_->start("host1");
    auto pool = wire::PayloadPool::make();   // shared with payloads in use
    std::unique_ptr<wire::Connection> link;
    net::Network::ConnectOptions to;
    to.address = {"shared1", 7400};
    to.peer_role = net::Role::kShared;
    env.network().connect(to, [&](Result<std::unique_ptr<net::Stream>> s) {
      ASSERT_TRUE(s) << s.status().to_string();
      link = std::make_unique<wire::Connection>(env, std::move(*s), pool);
      link->start({.on_request = {}, .on_notify = [](wire::Type, ByteSpan) {}, .on_close = [](Status) {}});
    });
    ASSERT_TRUE(until([&] { return link != nullptr; }));
    wire::Hello hello;
    hello.cluster = cluster_;
    hello.node = "host1";
    hello.incarnation = incarnation;
    hello.nonce = nonce_of_last_run(env);
    hello.journal_generation = generation;
    bool done = false;
    link->request<wire::HelloAnswer>(wire::Type::kHello, hello, [&](Result<wire::HelloAnswer> a) {
      ASSERT_TRUE(a) << a.status().to_string();
      link->request<wire::Grant>(wire::Type::kAcquire, wire::Acquire{image, 0, 0}, [&](Result<wire::Grant> grant) {
        ASSERT_TRUE(grant) << grant.status().to_string();
        wire::Yield yield{image, grant->epoch, {incarnation, Counter(0)}};
        link->request<wire::Yielded>(wire::Type::kYield, yield, [&](Result<wire::Yielded> y) {
          ASSERT_TRUE(y) << y.status().to_string();
          done = true;
        });
      });
    });
    ASSERT_TRUE(until([&] { return done; }));
    world_->crash("host1", sim::Crash::kKill);
    link.reset();
  }
  // Host 1 is down, with writes that only it has; host 2 has written since, holds the image or has given it back.
  void leave_tail() {
    start();
    File f = create(1, "a.img", 8 * kMiB), other = create(1, "other.img", kMiB);
    ASSERT_TRUE(write_now(other, 0, 0x11, 4096));
    ASSERT_TRUE(write_now(f, 0, 0x11, 8 * 4096));
    ASSERT_TRUE(wait(flush(f)));
    lose_link(1);
    image_ = f.image;
    ASSERT_TRUE(write_now(f, kMiB, 0x22, kMiB));   // the tail
    ASSERT_TRUE(write_now(f, 0, 0x22, 4096));
    crash_host(1, sim::Crash::kKill);
    heal_link(1);
    ASSERT_TRUE(open_host(1));
    Incarnation between = incarnation(1);
    auto generation = Uuid::parse(nlohmann::json::parse(engine(1).journal_json())["generation"].get<std::string>());
    ASSERT_TRUE(generation);
    crash_host(1, sim::Crash::kKill);
    give_away(f.image, between, *generation);
    File theirs = open(2, "a.img");
    ASSERT_TRUE(write_now(theirs, 0, 0x33, 4096));
    close(theirs);
    if (GetParam()) {                              // and the other host is done with it
      bool stopped = false;
      engine(2).stop(seconds(20), [&](Status) { stopped = true; });
      ASSERT_TRUE(until([&] { return stopped; }));
      crash_host(2, sim::Crash::kKill);
    }
  }

  ImageId image_;
};

TEST_P(TailTest, IsKeptAsideAndNeverServed) {
  leave_tail();
  start_host(1);
  File f = open(1, "a.img");
  EXPECT_EQ(byte_at(f, 0, 4096), 0x33);
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0);
  EXPECT_TRUE(logged("tail_diverged"));
  EXPECT_EQ(engine(1).branches().size(), 1u);
  ASSERT_TRUE(write_now(f, 4 * kMiB, 0x44, 4096));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x33);
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0);
  EXPECT_EQ(verify(f), "");
}

// Nobody here can mend it, and nothing else of this host waits until somebody has.
TEST_P(TailTest, IsKeptWhereTheSharedCopyWasCutShortMeanwhile) {
  leave_tail();
  for (const auto& [path, bytes] : world_->files("shared1", "/")) {
    const bool object = path.find(image_.to_string()) != std::string::npos && path.ends_with(".data");
    if (object) { ASSERT_TRUE(world_->cut_short("shared1", path, 4096)); }
  }
  start_host(1);
  EXPECT_TRUE(until([&] { return engine(1).branches().size() == 1; })) << log_;
  EXPECT_TRUE(logged("tail_diverged"));
  if (GetParam()) start_host(2);
  File other = open(1, "other.img");
  ASSERT_TRUE(write_now(other, 0, 0x22, 4096));
  close(other);
  File wanted = open(2, "other.img");
  EXPECT_TRUE(write_now(wanted, 4096, 0x33, 4096)) << "it is not given back";
  EXPECT_EQ(byte_at(wanted, 0, 4096), 0x22);
}

INSTANTIATE_TEST_SUITE_P(HeldOrFree, TailTest, testing::Bool());

}  // namespace
}  // namespace tidemark::fs
