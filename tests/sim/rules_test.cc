// Rules that a second guard stands behind: each test gets past that guard, so that the rule alone holds. A bug planted
// there is caught here, within the seeds that the test runs (shared/docs/testing.md).
#include <nlohmann/json.hpp>

#include "shared/base/digest.h"
#include "shared/base/log.h"
#include "shared/wire/connection.h"
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Incarnation kLater(uint64_t{1} << 40);   // than any run that takes its number from the clock
constexpr uint64_t kBlocks = 16, kStride = Lab::kImageBytes / kBlocks;

// The shared node's machine loses its power with writes that no flush covered, and nothing is written before it is back:
// the host does not go on alone. Its loss id alone says that blocks may be gone from its copy.
TEST(Rules, WhatTheSharedCopyLostIsMadeGoodWithoutAWrite) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    for (uint64_t b = 0; b < kBlocks; ++b) ASSERT_TRUE(lab.write("host1", *image, b * kStride, 'b').is_ok());
    lab.crash("shared1", Crash::kPowerLoss);
    lab.start("shared1");
    lab.world.run_for(seconds(4));
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(lab.verify("host1"), "") << "seed " << seed;
    lab.engine("host1").release(*image);
    auto there = lab.open("host2");
    ASSERT_TRUE(there.is_ok()) << there.status().to_string();
    for (uint64_t b = 0; b < kBlocks; ++b) {
      auto byte = lab.read("host2", *there, b * kStride);
      EXPECT_TRUE(byte.is_ok() && *byte == 'b') << "seed " << seed << " block " << b;
    }
  }
}

// The link dies again at the very end of a resync, whenever that is; the guest writes on, and the power goes before it is
// back. What was flushed alone meanwhile is not overwritten with what the shared copy has.
TEST(Rules, WhatWasWrittenAloneAtTheEndOfAResyncIsKept) {
  for (int cut = 0; cut < 120; cut += repeat(1, 8)) {
    Lab lab(static_cast<uint64_t>(cut) + 1);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    auto away = [&] { lab.world.partition("host1", "shared1"); };
    away();
    ASSERT_TRUE(lab.write("host1", *image, 0, 'b').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.heal_all();
    auto resyncs = [&] { return lab.engine("host1").status_json().find("resyncing") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(resyncs, seconds(20))) << "cut " << cut;
    lab.world.run_for(milliseconds(cut) / 4);
    away();
    ASSERT_TRUE(lab.write("host1", *image, kStride, 'c').is_ok()) << "cut " << cut;
    ASSERT_TRUE(lab.flush("host1", *image).is_ok()) << "cut " << cut;
    lab.crash("host1", Crash::kPowerLoss);
    lab.world.heal_all();
    lab.start("host1");
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    for (auto [offset, byte] : {std::pair<uint64_t, uint8_t>{0, 'b'}, {kStride, 'c'}}) {
      auto got = lab.read("host1", *again, offset);
      EXPECT_TRUE(got.is_ok() && *got == byte) << "cut " << cut << " offset " << offset << " reads "
                                               << (got ? std::string(1, static_cast<char>(*got)) : got.status().to_string());
    }
  }
}

// The shared brick refuses a write as a resync ends, whenever that is, and the host that acknowledged it dies at once: no
// takeover gets the shared copy for level.
TEST(Rules, WhatTheSharedNodeRefusedAtTheEndOfAResyncIsNotTakenForLevel) {
  int refused = 0;
  for (int cut = 0; cut < 240; cut += repeat(1, 7)) {
    Lab lab(static_cast<uint64_t>(cut) + 1);
    auto image = lab.open("host1", true);
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(lab.write("host1", *image, 0, 'a', Lab::kImageBytes).is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.partition("host1", "shared1");
    ASSERT_TRUE(lab.write("host1", *image, 0, 'b', kStride).is_ok());
    lab.world.heal_all();
    auto resyncs = [&] { return lab.engine("host1").status_json().find("resyncing") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(resyncs, seconds(20))) << "cut " << cut;
    lab.world.run_for(milliseconds(cut) / 16);
    lab.world.inject("shared1", FileFault{.operations = kWrite, .path_contains = "/brick"});
    ASSERT_TRUE(lab.write("host1", *image, kStride, 'c', kStride).is_ok()) << "cut " << cut;
    if (cut % 8 == 0) {   // it lives on
      ASSERT_TRUE(lab.flush("host1", *image).is_ok()) << "cut " << cut;
      ASSERT_TRUE(lab.healthy("host1")) << "cut " << cut;
      EXPECT_EQ(lab.verify("host1"), "") << "cut " << cut;
      EXPECT_NE(lab.shared_status().find("\"outdated\":false"), std::string::npos) << "cut " << cut;
      continue;
    }
    lab.crash("host1", Crash::kPowerLoss);
    if (!lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}")) {
      ++refused;
      continue;
    }
    auto there = lab.open("host2");
    ASSERT_TRUE(there.is_ok()) << there.status().to_string();
    for (auto [offset, byte] : {std::pair<uint64_t, uint8_t>{0, 'b'}, {kStride, 'c'}}) {
      auto got = lab.read("host2", *there, offset, kStride);
      EXPECT_TRUE(got.is_ok() && *got == byte) << "cut " << cut << " offset " << offset;
    }
  }
  EXPECT_GT(refused, 0);
}

// A sync of another image fails on the shared node: of every image that was written since its own last one the copy may
// lack something, at once. Its holder, alive, makes that good; should it die, no takeover gets the copy for level.
TEST(Rules, WhatAFailedSyncOfAnotherImageMayHaveLostIsNotTakenForLevel) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Lab lab(seed);
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    auto other = lab.open("host1", true, "other.img");
    ASSERT_TRUE(other.is_ok()) << other.status().to_string();
    ASSERT_TRUE(lab.write("host1", *other, 0, 'o').is_ok());
    ASSERT_TRUE(lab.healthy("host1"));
    ASSERT_TRUE(lab.write("host1", *image, 0, 'b', kStride).is_ok());
    const std::string level = lab.shared_status();
    ASSERT_EQ(level.find("\"outdated\":true"), std::string::npos) << level;
    lab.world.inject("shared1", FileFault{.operations = static_cast<uint16_t>(FileOp::kSync), .path_contains = "/brick"});
    const bool lives = seed % 2 == 0;
    lab.engine("host1").flush(*other, io::IoMode::kQueued, [](Status) {});
    auto failed = [&] { return lab.shared_status().find("\"outdated\":true") != std::string::npos; };
    ASSERT_TRUE(lab.world.run_until(failed, seconds(10))) << "seed " << seed;
    if (!lives) {
      lab.crash("host1", Crash::kPowerLoss);
      auto taken = lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}");
      EXPECT_EQ(taken.status().code(), Code::kBusy) << "seed " << seed;
      continue;
    }
    auto there = lab.open("host2");
    ASSERT_TRUE(there.is_ok()) << there.status().to_string();
    auto got = lab.read("host2", *there, 0, kStride);
    EXPECT_TRUE(got.is_ok() ? *got == 'b' : got.status().sys_errno() == EIO) << "seed " << seed;
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    EXPECT_EQ(lab.shared_status().find("\"outdated\":true"), std::string::npos) << lab.shared_status();
    got = lab.read("host2", *there, 0, kStride);
    EXPECT_TRUE(got.is_ok() && *got == 'b') << "seed " << seed;
    EXPECT_EQ(lab.verify("host1"), "") << "seed " << seed;
  }
}

// The flush that failed is of a host that waits rather than go on alone, and asks again and again whether it may go on: the
// loss id that it would have to know is told in a new session alone. Its copy there is level once it has made it so.
TEST(Rules, AHolderThatHasNotHeardOfAFailedSyncIsNotBelievedHoweverOftenItAsks) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed);
    lab.pause = true;
    lab.crash("host1", Crash::kKill);
    lab.start("host1");
    auto image = lab.open_filled("host1");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(lab.write("host1", *image, 0, 'b').is_ok());
    lab.world.inject("shared1", FileFault{.operations = static_cast<uint16_t>(FileOp::kSync), .path_contains = "/brick"});
    bool made_equal = false;
    log::set_sink_for_testing([&](log::Level, std::string_view, std::string_view line) {
      made_equal = made_equal || line.find("resync_begun") != std::string_view::npos;
    });
    std::optional<Status> flushed;
    lab.engine("host1").flush(*image, io::IoMode::kQueued, [&](Status s) { flushed = s; });
    auto outdated = [&] { return lab.shared_status().find("\"outdated\":true") != std::string::npos; };
    EXPECT_TRUE(lab.world.run_until(outdated, seconds(10))) << "seed " << seed;
    EXPECT_TRUE(lab.world.run_until([&] { return !outdated(); }, seconds(30))) << "seed " << seed;
    log::set_sink_for_testing(nullptr);
    EXPECT_TRUE(made_equal) << "seed " << seed << ": it is level by a word alone";
    EXPECT_TRUE(lab.world.run_until([&] { return flushed.has_value(); }, seconds(30))) << "seed " << seed;
    EXPECT_TRUE(flushed && flushed->is_ok());
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(lab.verify("host1"), "") << "seed " << seed;
  }
}

// What host1 has of its one image, and who it is itself.
struct Known {
  explicit Known(Lab& lab) {
    const auto shown = nlohmann::json::parse(lab.shared_status())["images"][0];
    const auto own = nlohmann::json::parse(lab.engine("host1").journal_json());
    image = Uuid::parse(shown["uuid"].get<std::string>()).value();
    epoch = Epoch(shown["epoch"].get<uint64_t>());
    journal = Uuid::parse(own["generation"].get<std::string>()).value();
  }
  ImageId image;
  Epoch epoch;
  Uuid journal;
};

// Speaks for a host that knows of nothing that came after its tenure: one that was set back to a snapshot of its memory.
class Relic {
 public:
  Relic(Lab& lab, const Known& known, Incarnation incarnation) : lab_(lab), env_(lab.world.start("host1")) {
    net::Network::ConnectOptions options;
    options.address = {"shared1", kSharedPort};
    options.peer_role = net::Role::kShared;
    auto stream = lab.wait<Result<std::unique_ptr<net::Stream>>>(
        [&](auto done) { env_.network().connect(options, std::move(done)); });
    if (!stream) return;
    link_ = std::make_unique<wire::Connection>(env_, std::move(*stream), wire::PayloadPool::make());
    link_->start({.on_request = {}, .on_notify = [](wire::Type, ByteSpan) {}, .on_close = [](Status) {}});
    wire::Hello hello;
    hello.cluster = lab.cluster();
    hello.journal_generation = known.journal;
    hello.node = "host1";
    hello.incarnation = incarnation;
    hello.nonce.bytes[0] = 1;
    auto answer = lab.wait<Result<wire::HelloAnswer>>(
        [&](auto done) { link_->request<wire::HelloAnswer>(wire::Type::kHello, hello, std::move(done)); });
    greeted = answer.status();
  }
  template <class M>
  Status ask(wire::Type type, const M& message, ByteSpan payload = {}) {
    auto answer = lab_.wait<Result<wire::Answer>>(
        [&](auto done) { link_->send_request(type, message, payload, std::move(done)); });
    return answer.status();
  }
  Status write(const wire::Write& message, ByteSpan payload) {
    auto answer = lab_.wait<Result<wire::Applied>>(
        [&](auto done) { link_->send_write(message, payload, digest64(payload), std::move(done)); });
    return answer.status();
  }

  Status greeted{Code::kUnavailable, "no connection"};

 private:
  Lab& lab_;
  SimEnv& env_;
  std::unique_ptr<wire::Connection> link_;
};

// Frames of its tenure, in a session that stands: none is applied, whoever holds the image by now, or nobody.
TEST(Rules, NoFrameOfAnOlderEpochIsAppliedInANewSession) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    const Known known(lab);
    lab.crash("host1", Crash::kKill);
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    ASSERT_TRUE(lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}").is_ok());
    const bool held = seed % 2 == 1;
    if (held) {
      ASSERT_TRUE(lab.write("host2", *second, 0, 'b', Lab::kImageBytes).is_ok());
    }
    Relic relic(lab, known, kLater);
    ASSERT_TRUE(relic.greeted.is_ok()) << relic.greeted.to_string();
    const Bytes old(4096, 'o');
    const WriteSequence sequence{kLater, Counter(1)};
    EXPECT_EQ(relic.write({known.image, known.epoch, sequence, 0, 0}, old).code(), Code::kFenced) << "seed " << seed;
    EXPECT_EQ(relic.ask(wire::Type::kZero, wire::Zero{known.image, known.epoch, sequence, {8192, 4096}, 0}).code(),
              Code::kFenced);
    EXPECT_EQ(relic.ask(wire::Type::kRepair, wire::Repair{known.image, known.epoch, {16384, 4096}, 0}, old).code(),
              Code::kFenced);
    const wire::Resize resize{known.image, known.epoch, sequence, 4096, Generation(9)};
    EXPECT_EQ(relic.ask(wire::Type::kResize, resize).code(), Code::kFenced);
    if (!held) {
      ASSERT_TRUE(lab.write("host2", *second, Lab::kImageBytes - 4096, 'b').is_ok());
    }
    ASSERT_TRUE(lab.healthy("host2")) << "seed " << seed;
    EXPECT_EQ(lab.verify("host2"), "") << "seed " << seed;
    for (uint64_t at : {0u, 8192u, 16384u}) {
      auto byte = lab.read("host2", *second, at);
      EXPECT_TRUE(byte.is_ok() && *byte == (held ? 'b' : 'a')) << "seed " << seed << " at " << at;
    }
  }
}

// Frames of a connection that the host has given up are still on their way when its next session stands.
TEST(Rules, ANewSessionEndsTheOlderOnes) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    Lab lab(seed);
    auto image = lab.open("host1", true);
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(lab.write("host1", *image, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.set_latency("host1", "shared1", {seconds(10), seconds(10)});
    Status late = lab.write("host1", *image, 0, 'b');   // it goes on alone
    ASSERT_TRUE(late.is_ok()) << "seed " << seed << ": " << late.to_string();
    lab.world.set_latency("host1", "shared1", {milliseconds(1), milliseconds(1)});
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    ASSERT_TRUE(lab.write("host1", *image, 0, 'c').is_ok()) << "seed " << seed;
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.run_for(seconds(40));
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    EXPECT_EQ(lab.verify("host1"), "") << "seed " << seed << ": a write of an older session was applied";
  }
}

// The own brick has failed, the shared copy serves; then the link is lost. Nothing holds what would be acknowledged now.
TEST(Rules, NobodyGoesOnAloneWithACopyThatIsNotWhole) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed);
    auto image = lab.open("host1", true);
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    ASSERT_TRUE(lab.write("host1", *image, 0, 'a').is_ok());
    ASSERT_TRUE(lab.flush("host1", *image).is_ok());
    lab.world.inject("host1", FileFault{.times = UINT64_MAX, .path_contains = "/brick"});
    ASSERT_TRUE(lab.write("host1", *image, 0, 'b').is_ok()) << "seed " << seed << ": the shared copy serves";
    lab.world.partition("host1", "shared1");
    const bool acknowledged = lab.write("host1", *image, 0, 'c').is_ok();
    EXPECT_FALSE(acknowledged) << "seed " << seed << ": no copy has it";
    lab.world.clear_faults("host1");
    lab.world.heal_all();
    ASSERT_TRUE(lab.healthy("host1")) << "seed " << seed;
    auto byte = lab.read("host1", *image, 0);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 'c') << "seed " << seed << ": what waited for the link was written when it was back";
  }
}

Status resize(Lab& lab, const std::string& host, uint64_t size) {
  auto attr = lab.wait<Result<wire::Attr>>(
      [&](auto done) { lab.engine(host).lookup(InodeNumber(1), "disk.img", std::move(done)); });
  if (!attr) return attr.status();
  fs::SetAttr to;
  to.set_size = true;
  to.size = size;
  auto set = lab.wait<Result<wire::Attr>>(
      [&](auto done) { lab.engine(host).setattr(attr->inode, to, std::move(done)); });
  return set.status();
}

// Shrunk and grown again by one host: what another one's copy still has there is old.
TEST(Rules, AShrinkIsBehindToTheOldEnd) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed);
    auto turn = [&](const std::string& host, bool create, uint64_t length, uint8_t byte) {
      auto image = lab.open(host, create);
      ASSERT_TRUE(image.is_ok()) << image.status().to_string();
      ASSERT_TRUE(lab.write(host, *image, 0, byte, length).is_ok()) << "seed " << seed << " " << host;
      ASSERT_TRUE(lab.flush(host, *image).is_ok());
      ASSERT_TRUE(lab.healthy(host));
      lab.engine(host).release(*image);
    };
    turn("host1", true, Lab::kImageBytes, 'a');
    turn("host2", false, 4096, 'a');            // its copy is filled, and level
    turn("host1", false, 4096, 'b');
    ASSERT_TRUE(resize(lab, "host1", Lab::kRegion).is_ok());
    ASSERT_TRUE(resize(lab, "host1", Lab::kImageBytes).is_ok());
    turn("host2", false, 4096, 'c');
    auto image = lab.open("host2");
    ASSERT_TRUE(image.is_ok()) << image.status().to_string();
    auto byte = lab.read("host2", *image, 2 * Lab::kRegion);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 0) << "seed " << seed << ": what was cut off is read";
    EXPECT_EQ(lab.verify("host2"), "") << "seed " << seed;
  }
}

// The answer to a yield is on its way when the link is lost, and the next host has the tenure already: the yielding one,
// whose copy is whole, does not know whether it still holds.
TEST(Rules, NobodyGoesOnAloneInATenureThatItMayHaveGivenUp) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    Lab lab(seed);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.engine("host1").release(*first);
    auto idle = lab.open("host1");
    ASSERT_TRUE(idle.is_ok()) << idle.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    lab.world.set_latency("shared1", "host1", {milliseconds(600), milliseconds(600)});
    ASSERT_TRUE(lab.write("host2", *second, 0, 'b').is_ok()) << "seed " << seed;
    lab.world.partition("host1", "shared1");
    lab.world.run_for(seconds(5));
    EXPECT_FALSE(lab.write("host1", *idle, 0, 'x').is_ok()) << "seed " << seed << ": both hosts acknowledge";
    lab.world.heal_all();
    lab.world.set_latency("shared1", "host1", {milliseconds(1), milliseconds(1)});
    lab.world.run_for(seconds(40));
    ASSERT_TRUE(lab.healthy("host2")) << "seed " << seed;
    auto byte = lab.read("host2", *second, 0);
    ASSERT_TRUE(byte.is_ok()) << byte.status().to_string();
    EXPECT_EQ(*byte, 'b') << "seed " << seed;
    EXPECT_EQ(lab.verify("host2"), "") << "seed " << seed;
  }
}

// A host that comes back after it was alone asks for terms before it has resynced. (A host of this program never does.)
TEST(Rules, NoTermsAreGivenWhileCopiesDiffer) {
  for (uint64_t seed = 1; seed <= seeds_of(4); ++seed) {
    Lab lab(seed, true);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    const Known known(lab);
    lab.crash("host1", Crash::kKill);
    Relic relic(lab, known, kLater);
    ASSERT_TRUE(relic.greeted.is_ok()) << relic.greeted.to_string();
    wire::Resume resume{known.image, known.epoch, Lab::kImageBytes, Generation(0), 1};
    ASSERT_TRUE(relic.ask(wire::Type::kResume, resume).is_ok());
    EXPECT_EQ(relic.ask(wire::Type::kTerms, wire::Terms{known.image, known.epoch}).code(), Code::kBusy)
        << "seed " << seed << ": the vote could make this shared copy the only one that counts";
    resume.alone = 0;
    ASSERT_TRUE(relic.ask(wire::Type::kResume, resume).is_ok());
    Status level = relic.ask(wire::Type::kTerms, wire::Terms{known.image, known.epoch});
    EXPECT_TRUE(level.is_ok()) << "seed " << seed << ": " << level.to_string();
  }
}

}  // namespace
}  // namespace tidemark::sim
