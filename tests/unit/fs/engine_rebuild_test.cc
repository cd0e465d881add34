// A shared node that lost its catalogue, or all it had, and is rebuilt from what its hosts know, under load.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class RebuildTest : public EngineTest {
 protected:
  // The machine is replaced: nothing of its state, and of its bricks what `bricks` says.
  void replace_shared(bool bricks, std::vector<std::string> hosts) {
    crash_shared(sim::Crash::kKill);
    shared_state_ = "/state2";
    if (!bricks) shared_brick_ = "/brick2";
    rebuild_from_ = std::move(hosts);
    start_shared();
    rebuild_from_.clear();
  }
  // Pieces of 1 MiB, the longest request that there is.
  Status fill(const File& f, uint8_t byte, uint64_t mib) {
    for (uint64_t i = 0; i < mib; ++i) TM_RETURN_IF_ERROR(write_now(f, i * kMiB, byte, kMiB));
    return Status::ok();
  }
  int all(const File& f, uint64_t from, uint64_t to) {
    int byte = byte_at(f, from * kMiB, kMiB);
    for (uint64_t i = from + 1; i < to; ++i) {
      if (byte_at(f, i * kMiB, kMiB) != byte) return -1;
    }
    return byte;
  }
  void alone_then_crashed(bool bricks);
  bool rebuilt() {
    return until([&] { return shared_->status_json().find("\"rebuilding\":null") != std::string::npos; });
  }
};

// What is gone must not be taken for what never was: without an order hosts do not believe the new node.
TEST_F(RebuildTest, ASharedNodeThatKnowsNothingIsNotBelieved) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(fill(f, 0x11, 4));
  replace_shared(false, {});
  EXPECT_FALSE(until([&] { return linked(1) || linked(2); }, seconds(20)));
  EXPECT_NE(engine(1).status_json().find("emptied or replaced"), std::string::npos);
  EXPECT_TRUE(write_now(f, 0, 0x22, 4096));
  EXPECT_EQ(byte_at(f, 0, 4096), 0x22);
  EXPECT_EQ(mirror(f), "local only");
}

TEST_F(RebuildTest, NamesWithoutAnImageComeBackAsTheyWere) {
  start();
  wire::Create ask{InodeNumber(1), "disk", wire::NodeKind::kBlockDevice, 0660, 0, 6, "8:1"};
  std::optional<Result<wire::Attr>> made, seen;
  engine(1).create(ask, [&](Result<wire::Attr> attr) { made = std::move(attr); });
  ASSERT_TRUE(until([&] { return made.has_value(); }));
  ASSERT_TRUE(*made) << made->status().to_string();
  replace_shared(true, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(2); }));
  engine(2).lookup(ask.parent, ask.name, [&](Result<wire::Attr> attr) { seen = std::move(attr); });
  ASSERT_TRUE(until([&] { return seen.has_value(); }));
  ASSERT_TRUE(*seen) << seen->status().to_string();
  EXPECT_EQ((*seen)->kind, ask.kind);
  EXPECT_EQ((*seen)->target, "8:1");
  EXPECT_EQ((*seen)->inode, (*made)->inode);
  cut_link(1);
  made.reset();
  engine(1).create({ask.parent, "fifo", wire::NodeKind::kFifo}, [&](Result<wire::Attr> attr) { made = std::move(attr); });
  ASSERT_TRUE(until([&] { return made.has_value(); }));
  EXPECT_EQ(errno_of(made->status()), EHOSTUNREACH);
}

TEST_F(RebuildTest, AnEmptyOneGetsAllThatItsHostsHold) {
  start();
  File held = create(1, "held.img", 8 * kMiB);
  ASSERT_TRUE(fill(held, 0x11, 8));
  File given = create(2, "given.img", 4 * kMiB);   // written by host 2, then by host 1, who gave it back
  ASSERT_TRUE(fill(given, 0x21, 4));
  close(given);
  File mine = open(1, "given.img");
  ASSERT_TRUE(write_now(mine, kMiB, 0x22, kMiB));
  ASSERT_TRUE(await_mirror(mine, "mirrored"));
  ASSERT_TRUE(wait(flush(mine)));
  close(mine);
  ASSERT_EQ(byte_at(open(2, "given.img"), kMiB, kMiB), 0x22);   // which makes it give the tenure back
  replace_shared(false, {"host1", "host2"});
  ASSERT_TRUE(write_now(held, kMiB, 0x12, kMiB));   // under load, alone
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  ASSERT_TRUE(write_now(held, 2 * kMiB, 0x13, kMiB));
  ASSERT_TRUE(await_mirror(held, "mirrored"));
  EXPECT_EQ(verify(held), "");
  // The other host reads and writes what it finds there.
  File other = open(2, "given.img");
  ASSERT_TRUE(until([&] { return byte_at(other, 0, kMiB) == 0x21; }, seconds(120)));
  EXPECT_EQ(byte_at(other, kMiB, kMiB), 0x22);
  EXPECT_EQ(all(other, 2, 4), 0x21);
  EXPECT_TRUE(write_now(other, 0, 0x23, kMiB));
  EXPECT_EQ(byte_at(other, 0, kMiB), 0x23);
  close(held);
  File held2 = open(2, "held.img");
  EXPECT_EQ(byte_at(held2, 0, kMiB), 0x11);
  EXPECT_EQ(byte_at(held2, kMiB, kMiB), 0x12);
  EXPECT_EQ(byte_at(held2, 2 * kMiB, kMiB), 0x13);
}

// It was renamed just now, and the link went before this host could ask for the new name: it knows none.
TEST_F(RebuildTest, AnImageThatIsHeldAndWhoseNameIsNotKnownIsReported) {
  for (bool known_elsewhere : {false, true}) {
    SCOPED_TRACE(known_elsewhere);
    start();
    File f = create(1, "a.img", 4 * kMiB);
    ASSERT_TRUE(fill(f, 0x11, 4));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    open(2, "a.img");
    world_->cut("host1", "shared1");
    ASSERT_TRUE(wait(rename(2, "a.img", "c.img")));
    world_->run_for(std::chrono::milliseconds(500));   // it hears of it, and its question is not heard
    lose_link(1);
    ASSERT_TRUE(write_now(f, kMiB, 0x12, kMiB));     // alone
    heal_link(1);
    std::vector<std::string> hosts{"host1"};
    if (known_elsewhere) hosts.push_back("host2");
    replace_shared(true, hosts);
    ASSERT_TRUE(rebuilt());
    ASSERT_TRUE(until([&] { return linked(1); }));
    EXPECT_TRUE(write_now(f, 2 * kMiB, 0x13, kMiB));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(verify(f), "");
    const File found = open(1, known_elsewhere ? "c.img" : "recovered-" + f.image.to_string());
    EXPECT_EQ(found.image, f.image);
    EXPECT_EQ(byte_at(found, kMiB, kMiB), 0x12);
    crash_all();
    shared_state_ = "/state";
  }
}

// With its bricks the newest state is there for what nobody holds, and the rest is compared.
TEST_F(RebuildTest, ALostCatalogueIsMadeAnewBesideItsBricks) {
  start();
  File held = create(1, "held.img", 4 * kMiB);
  ASSERT_TRUE(fill(held, 0x11, 4));
  File free = create(2, "free.img", 4 * kMiB);
  ASSERT_TRUE(fill(free, 0x21, 4));
  ASSERT_TRUE(wait(flush(free)));
  close(free);
  ASSERT_EQ(all(open(1, "free.img"), 0, 4), 0x21);
  lose_link(1);
  ASSERT_TRUE(write_now(held, 0, 0x12, 4096));      // alone
  heal_link(1);
  replace_shared(true, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  ASSERT_TRUE(await_mirror(held, "mirrored"));
  EXPECT_EQ(verify(held), "");
  File other = open(1, "free.img");
  EXPECT_EQ(all(other, 0, 4), 0x21);
  EXPECT_TRUE(write_now(other, 0, 0x22, kMiB));
  ASSERT_TRUE(await_mirror(other, "mirrored"));
  EXPECT_EQ(verify(other), "");
}

// The host went on alone when the shared node died, and lost its power before that one was replaced.
void RebuildTest::alone_then_crashed(bool bricks) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(fill(f, 0x11, 4));
  ASSERT_TRUE(wait(flush(f)));
  crash_shared(sim::Crash::kKill);
  ASSERT_TRUE(write_now(f, kMiB, 0x12, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kPowerLoss);
  start_host(1);
  replace_shared(bricks, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  File g = open(1, "a.img");
  ASSERT_TRUE(until([&] { return byte_at(g, kMiB, kMiB) == 0x12; }, seconds(120)));
  EXPECT_EQ(byte_at(g, 0, kMiB), 0x11);
  ASSERT_TRUE(write_now(g, 0, 0x13, 4096));
  ASSERT_TRUE(await_mirror(g, "mirrored"));
  EXPECT_EQ(verify(g), "");
  close(g);
  File other = open(2, "a.img");
  ASSERT_TRUE(until([&] { return byte_at(other, kMiB, kMiB) == 0x12; }, seconds(120)));
  EXPECT_EQ(byte_at(other, 0, 4096), 0x13);
}

TEST_F(RebuildTest, WhatWasAcknowledgedAloneBeforeACrashIsNewerThanTheBricks) { alone_then_crashed(true); }
TEST_F(RebuildTest, WhatWasAcknowledgedAloneBeforeACrashFillsAnEmptyNode) { alone_then_crashed(false); }

// Host 1 went on alone and died, host 2 took the image by force, and then the shared node's catalogue was lost: the
// rebuilt one knows of no fence, only that host 2 has the image.
TEST_F(RebuildTest, WhatWasWrittenAloneBeforeATakeoverIsABranchOfItsHost) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(fill(f, 0x11, 4));
  ASSERT_TRUE(wait(flush(f)));
  crash_shared(sim::Crash::kKill);
  ASSERT_TRUE(write_now(f, kMiB, 0x12, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kKill);
  start_shared();
  ASSERT_TRUE(until([&] { return linked(2); }));
  ASSERT_TRUE(wait(take_over(2, R"({"images": ["a.img"], "force": true, "accept_loss": true})")));
  File theirs = open(2, "a.img");
  ASSERT_TRUE(write_now(theirs, 2 * kMiB, 0x22, kMiB));
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  start_host(1);
  replace_shared(true, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  f = open(1, "a.img");
  ASSERT_TRUE(until([&] { return byte_at(f, 2 * kMiB, kMiB) == 0x22; }, seconds(120)));
  EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x11);
  EXPECT_EQ(engine(1).branches().size(), 1u);
}

// Of an image that is on its host alone that copy is the source, whatever the shared node's lost catalogue had said.
TEST_F(RebuildTest, AnImageOfOneHostAloneComesFromThere) {
  for (bool held : {true, false}) {
    start();
    File f = create(1, "a.img", 8 * kMiB);
    ASSERT_TRUE(fill(f, 0x11, 8));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(set_mirror(f, "none")));
    ASSERT_TRUE(fill(f, 0x22, 8));
    ASSERT_TRUE(wait(flush(f)));
    if (!held) {
      crash_host(1, sim::Crash::kKill);
      start_host(1);
    }
    replace_shared(true, {"host1", "host2"});
    ASSERT_TRUE(rebuilt());
    ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
    f = open(1, "a.img");
    EXPECT_EQ(all(f, 0, 8), 0x22);
    ASSERT_TRUE(write_now(f, kMiB, 0x23, kMiB));
    EXPECT_EQ(all(f, 2, 8), 0x22);
    crash_host(1, sim::Crash::kKill);
    start_host(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    f = open(1, "a.img");
    ASSERT_TRUE(until([&] { return byte_at(f, 0, kMiB) == 0x22; }));   // recovered: the policy changes when it rests
    ASSERT_TRUE(wait(set_mirror(f, "sync")));
    EXPECT_EQ(all(f, 2, 8), 0x22);
    ASSERT_TRUE(write_now(f, 0, 0x24, kMiB));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(byte_at(f, 0, kMiB), 0x24);
    EXPECT_EQ(byte_at(f, kMiB, kMiB), 0x23);
    EXPECT_EQ(all(f, 2, 8), 0x22);
    EXPECT_EQ(verify(f), "");
    crash_all();
    shared_state_ = "/state";
  }
}

// Its host does not report. Another one's copy, of before it was `none`, is not taken for it, in any run.
TEST_F(RebuildTest, AnotherHostsOldCopyIsNoImageOfOneHostAlone) {
  start();
  File theirs = create(2, "a.img", 4 * kMiB);
  ASSERT_TRUE(fill(theirs, 0x11, 4));
  ASSERT_TRUE(await_mirror(theirs, "mirrored"));
  ASSERT_TRUE(wait(flush(theirs)));
  close(theirs);
  File f = open(1, "a.img");
  ASSERT_TRUE(fill(f, 0x21, 4));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(fill(f, 0x22, 4));
  ASSERT_TRUE(wait(flush(f)));
  ASSERT_EQ(byte_at(open(2, "a.img"), 0, kMiB), -2);   // it knows the policy
  crash_host(1, sim::Crash::kKill);
  replace_shared(true, {"host2"});
  ASSERT_TRUE(rebuilt());
  for (int run = 0; run < 2; ++run) {
    ASSERT_TRUE(until([&] { return linked(2); }));
    theirs = open(2, "a.img");
    EXPECT_EQ(write_now(theirs, kMiB, 0x12, 4096).code(), Code::kIoError);
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    EXPECT_EQ(mirror(theirs), "failed");
    crash_host(2, sim::Crash::kKill);
    start_host(2);
  }
}

// The brick of the host that has it was not mounted when that reported. Until it is, nobody else takes its place, whatever
// another host tries and whatever its policy is set to.
TEST_F(RebuildTest, AnImageOfOneHostAloneWaitsForThatHostsBrick) {
  for (bool own_copy : {true, false}) {   // of the other host, of before
    SCOPED_TRACE(own_copy);
    start();
    File f = create(1, "a.img", 4 * kMiB);
    if (own_copy) {
      File theirs = open(2, "a.img");
      ASSERT_TRUE(fill(theirs, 0x11, 4));
      ASSERT_TRUE(await_mirror(theirs, "mirrored"));
      ASSERT_TRUE(wait(flush(theirs)));
      close(theirs);
    }
    ASSERT_TRUE(fill(f, 0x21, 4));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    ASSERT_TRUE(wait(set_mirror(f, "none")));
    ASSERT_TRUE(fill(f, 0x22, 4));
    ASSERT_TRUE(wait(flush(f)));
    ASSERT_EQ(byte_at(open(2, "a.img"), 0, kMiB), -2);
    crash_host(1, sim::Crash::kKill);
    host_bricks_ = {"/other"};
    start_host(1);
    host_bricks_ = {"/brick1"};
    replace_shared(true, {"host1", "host2"});
    ASSERT_TRUE(rebuilt());
    ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
    File theirs = open(2, "a.img");
    EXPECT_EQ(write_now(theirs, kMiB, 0x12, 4096).code(), Code::kIoError);
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    EXPECT_EQ(mirror(theirs), "failed");
    EXPECT_EQ(wait(set_mirror(theirs, "sync")).code(), Code::kBusy);
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    crash_host(1, sim::Crash::kKill);
    start_host(1);
    ASSERT_TRUE(until([&] { return linked(1); }));
    f = open(1, "a.img");
    EXPECT_EQ(all(f, 0, 4), 0x22);
    ASSERT_TRUE(write_now(f, kMiB, 0x23, kMiB));
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    ASSERT_TRUE(wait(set_mirror(f, "sync")));
    ASSERT_TRUE(await_mirror(f, "mirrored"));
    EXPECT_EQ(verify(f), "");
    close(f);
    EXPECT_TRUE(until([&] { return byte_at(theirs, 0, kMiB) == 0x22; }));
    EXPECT_TRUE(write_now(theirs, 0, 0x33, 4096));
    EXPECT_EQ(byte_at(theirs, kMiB, kMiB), 0x23);
    EXPECT_EQ(all(theirs, 2, 4), 0x22);
    crash_all();
    shared_state_ = "/state";
  }
}

// A host that has nothing of it dies between being granted it and giving it back. It is still nobody's but that host's
// whose brick has it.
TEST_F(RebuildTest, AnImageOfOneHostAloneIsNotThatOfAHostThatDiedAsItGaveItBack) {
  start();
  File f = create(1, "a.img", 4 * kMiB);
  ASSERT_TRUE(fill(f, 0x21, 4));
  ASSERT_TRUE(await_mirror(f, "mirrored"));
  ASSERT_TRUE(wait(set_mirror(f, "none")));
  ASSERT_TRUE(fill(f, 0x22, 4));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(1, sim::Crash::kKill);
  host_bricks_ = {"/other"};
  start_host(1);
  host_bricks_ = {"/brick1"};
  replace_shared(true, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  File theirs = open(2, "a.img");
  log_.clear();
  Pending wanted = write(theirs, kMiB, 0x12, 4096);
  ASSERT_TRUE(until([&] { return logged("tenure_started"); }));
  cut_link(2);                                          // it never hears of its grant, which becomes durable
  world_->run_for(seconds(1));
  crash_host(2, sim::Crash::kKill);
  heal_link(2);
  for (int run = 0; run < 2; ++run) {
    start_host(2);
    ASSERT_TRUE(until([&] { return linked(2); }));
    theirs = open(2, "a.img");
    EXPECT_EQ(write_now(theirs, kMiB, 0x12, 4096).code(), Code::kIoError);
    EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
    EXPECT_EQ(mirror(theirs), "failed");
    if (run == 0) crash_host(2, sim::Crash::kKill);
  }
  crash_host(1, sim::Crash::kKill);
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  f = open(1, "a.img");
  EXPECT_TRUE(until([&] { return all(f, 0, 4) == 0x22; }, seconds(20)));
  EXPECT_TRUE(write_now(f, kMiB, 0x23, kMiB));
  EXPECT_EQ(byte_at(theirs, 0, kMiB), -2);
}

TEST_F(RebuildTest, AnEpochNeverComesTwice) {
  start();
  File f = create(1, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  close(f);
  File g = open(2, "a.img");
  ASSERT_TRUE(write_now(g, 0, 0x12, kMiB));
  ASSERT_TRUE(wait(flush(g)));
  close(g);
  auto epoch = [&](int host) {
    const std::string status = engine(host).status_json();
    const size_t at = status.find("\"epoch\":");
    return at == std::string::npos ? 0 : std::strtoull(status.c_str() + at + 8, nullptr, 10);
  };
  const uint64_t before = epoch(2);
  ASSERT_GE(before, 2u);
  ASSERT_EQ(byte_at(open(1, "a.img"), 0, kMiB), 0x12);   // free now
  replace_shared(true, {"host1", "host2"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  File h = open(1, "a.img");
  ASSERT_TRUE(write_now(h, 0, 0x13, 4096));
  EXPECT_GT(epoch(1), before);
}

// It waits for every host that was named, a crash of its own included.
TEST_F(RebuildTest, ItWaitsForAllThatWereNamed) {
  start();
  File f = create(2, "a.img", kMiB);
  ASSERT_TRUE(write_now(f, 0, 0x11, kMiB));
  ASSERT_TRUE(wait(flush(f)));
  crash_host(2, sim::Crash::kKill);
  replace_shared(false, {"host1", "host2"});
  EXPECT_FALSE(until([&] { return linked(1); }, seconds(20)));
  crash_shared(sim::Crash::kKill);
  start_shared();
  EXPECT_FALSE(until([&] { return linked(1); }, seconds(20)));
  start_host(2);
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1) && linked(2); }));
  File g = open(1, "a.img");
  EXPECT_TRUE(until([&] { return byte_at(g, 0, kMiB) == 0x11; }, seconds(120)));
}

// Any user who may set attributes can make names of which few fit a frame.
TEST_F(RebuildTest, NamesWithAllTheAttributesThatTheyMayHaveAreReported) {
  start();
  std::vector<File> files;
  const std::string names[] = {"user.one", "user.two"};
  for (int i = 0; i < 24; ++i) {
    files.push_back(create(1, "f" + std::to_string(i), 0));
    for (const std::string& name : names) {
      Pending set = std::make_shared<Request>();
      wire::SetXattr ask{files.back().inode, name, Bytes(60u << 10, static_cast<uint8_t>(i)), 0, 0};
      engine(1).set_xattr(std::move(ask), [set](Status s) { set->answer = std::move(s); });
      ASSERT_TRUE(wait(set));
    }
  }
  replace_shared(true, {"host1"});
  ASSERT_TRUE(rebuilt());
  ASSERT_TRUE(until([&] { return linked(1); }));
  for (int i = 0; i < 24; ++i) {
    Pending seen = getattr(files[static_cast<size_t>(i)]);
    ASSERT_TRUE(wait(seen)) << i;
    ASSERT_EQ(seen->attr.xattrs.size(), 2u) << i;
    for (const auto& [name, value] : seen->attr.xattrs)
      EXPECT_EQ(value, Bytes(60u << 10, static_cast<uint8_t>(i))) << i << ' ' << name;
  }
}

}  // namespace
}  // namespace tidemark::fs
