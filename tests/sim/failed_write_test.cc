// Requests that are not carried out: what the kernel then does to undo one, and those whose process is killed.
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr uint64_t kBytes = Lab::kImageBytes;
constexpr uint64_t kTag = 7;

// As ftruncate() does it, and the kernel after an asynchronous write past the end, as it knows it, has failed.
fs::SetAttr truncation(fs::HandleId handle, uint64_t size) {
  fs::SetAttr change;
  change.set_size = change.touch = true;
  change.size = size;
  change.handle = handle;
  return change;
}

Status truncate_by(Lab& lab, const std::string& host, fs::HandleId handle, uint64_t size) {
  const InodeNumber inode = lab.inode_of(host);
  auto begin = [&](auto done) { lab.engine(host).setattr(inode, truncation(handle, size), std::move(done)); };
  return lab.wait<Result<wire::Attr>>(begin).status();
}

uint64_t size_on(Lab& lab, const std::string& host) {
  auto attr = lab.wait<Result<wire::Attr>>([&](auto done) { lab.engine(host).getattr(lab.inode_of(host), std::move(done)); });
  return attr ? attr->size : 0;
}

// The other host has opened the image before it grew, and its kernel knows no other size.
TEST(FailedWrite, ItsUndoCutsNothingThatAnotherHostHasWritten) {
  for (uint64_t seed = 1; seed <= seeds_of(6); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    auto second = lab.open("host2");
    ASSERT_TRUE(second.is_ok()) << second.status().to_string();
    const bool held_before = seed % 2 == 0;   // by the other, which then gives it away in the midst of its write
    if (held_before) {
      lab.engine("host1").release(*first);
      ASSERT_TRUE(lab.write("host2", *second, 0, 'a').is_ok());
      lab.engine("host2").release(*second);
      second = lab.open("host2");
      first = lab.open("host1");
      ASSERT_TRUE(first.is_ok() && second.is_ok());
    }
    std::optional<Status> wrote;
    const Bytes data(4096, 'z');
    auto append = [&] {
      lab.engine("host2").write(*second, kBytes, data, io::IoMode::kQueued, [&](Result<size_t> n) { wrote = n.status(); });
    };
    std::optional<Status> grown;
    const Bytes more(kBytes, 'b');
    bool giving = false;
    lab.engine("host2").on_giving_up([&](InodeNumber) { giving = true; });
    lab.engine("host1").write(*first, kBytes, more, io::IoMode::kQueued, [&](Result<size_t> n) { grown = n.status(); });
    ASSERT_TRUE(lab.world.run_until([&] { return giving || grown.has_value(); }, seconds(5)));
    ASSERT_EQ(giving, held_before);
    append();
    ASSERT_TRUE(lab.world.run_until([&] { return grown.has_value(); }, seconds(5)));
    ASSERT_TRUE(grown->is_ok()) << grown->to_string();
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    ASSERT_TRUE(lab.world.run_until([&] { return wrote.has_value(); }, seconds(30)));
    ASSERT_EQ(wrote->code(), Code::kBusy) << wrote->to_string();
    std::optional<Status> undone;
    lab.engine("host2").setattr(lab.inode_of("host2"), truncation(*second, kBytes),
                                [&](Result<wire::Attr> attr) { undone = attr.status(); });
    lab.world.run_for(seconds(1));
    lab.engine("host1").release(*first);
    ASSERT_TRUE(lab.world.run_until([&] { return undone.has_value(); }, seconds(30)));
    EXPECT_EQ(errno_of(*undone), EIO);
    auto byte = lab.read("host2", *second, kBytes, kBytes);
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
    EXPECT_EQ(size_on(lab, "host2"), 2 * kBytes);
    // Said again it is meant, and this host may have the image by now.
    EXPECT_TRUE(truncate_by(lab, "host2", *second, kBytes).is_ok());
    EXPECT_EQ(size_on(lab, "host2"), kBytes);
  }
}

// What it has grown by itself it takes back. Below the end from before it does not cut where the kernel may know less,
// since another host wrote the image before.
TEST(FailedWrite, OfTheHolderItsUndoTakesBackWhatItHasGrown) {
  for (bool stale : {false, true}) {
    SCOPED_TRACE(stale);
    Lab lab(1);
    auto handle = lab.open_filled(stale ? "host2" : "host1");
    ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
    if (stale) {
      lab.engine("host2").release(*handle);
      handle = lab.open("host1");
      ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
      ASSERT_TRUE(lab.write("host1", *handle, 0, 'a').is_ok());
    }
    for (const char* node : {"host1", "shared1"})
      lab.world.inject(node, FileFault{.times = UINT64_MAX, .operations = kWrite, .path_contains = ".data"});
    Status wrote = lab.write("host1", *handle, kBytes, 'b', 8192);
    EXPECT_FALSE(wrote.is_ok());
    for (const char* node : {"host1", "shared1"}) lab.world.clear_faults(node);
    const Status undone = truncate_by(lab, "host1", *handle, stale ? kBytes / 2 : kBytes);
    EXPECT_EQ(errno_of(undone), stale ? EIO : 0) << undone.to_string();
    EXPECT_EQ(size_on(lab, "host1"), stale ? kBytes + 8192 : kBytes);
    auto byte = lab.read("host1", *handle, 0, kBytes);
    EXPECT_TRUE(byte.is_ok() && *byte == 'a') << byte.status().to_string();
    EXPECT_TRUE(lab.write("host1", *handle, 0, 'c').is_ok());   // from here on nothing is to be undone
    EXPECT_TRUE(truncate_by(lab, "host1", *handle, kBytes / 2).is_ok());
    EXPECT_EQ(size_on(lab, "host1"), kBytes / 2);
  }
}

// The run that refused the write is over, and the one that follows is asked to undo it. `held`: that host had the image
// itself by then, and its kernel had not heard how long the other one had made it.
TEST(FailedWrite, ItsUndoCutsNothingInTheRunThatFollowsEither) {
  for (bool held : {false, true}) {
    SCOPED_TRACE(held);
    Lab lab(1);
    auto first = lab.open_filled("host1");
    auto second = lab.open("host2");
    ASSERT_TRUE(first.is_ok() && second.is_ok());
    ASSERT_TRUE(lab.write("host1", *first, kBytes, 'b', kBytes).is_ok());
    ASSERT_TRUE(lab.flush("host1", *first).is_ok());
    if (held) {
      lab.engine("host1").release(*first);
      ASSERT_TRUE(lab.write("host2", *second, 0, 'a').is_ok());
      ASSERT_TRUE(lab.healthy("host2"));
      for (const char* node : {"host2", "shared1"})
        lab.world.inject(node, FileFault{.times = UINT64_MAX, .operations = kWrite, .path_contains = ".data"});
    }
    EXPECT_FALSE(lab.write("host2", *second, kBytes, 'z').is_ok());
    lab.crash("host2", Crash::kKill);
    for (const char* node : {"host2", "shared1"}) lab.world.clear_faults(node);
    lab.succeed("host2");
    if (!held) lab.engine("host1").release(*first);
    EXPECT_EQ(errno_of(truncate_by(lab, "host2", *second, kBytes)), EIO);
    EXPECT_EQ(size_on(lab, "host2"), 2 * kBytes);
    auto byte = lab.read("host2", *second, kBytes + 4096, kBytes - 4096);   // some of what failed may have landed
    EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
  }
}

TEST(FailedWrite, AFencedHandleCutsNothing) {
  Lab lab(1);
  auto first = lab.open_filled("host1");
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  lab.world.partition("host1", "shared1");
  ASSERT_TRUE(lab.write("host1", *first, 0, 't').is_ok());
  ASSERT_TRUE(lab.take_at_shared("{\"images\":[\"disk.img\"],\"force\":true}").is_ok());
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  auto second = lab.open("host2");
  ASSERT_TRUE(second.is_ok()) << second.status().to_string();
  ASSERT_TRUE(lab.write("host2", *second, 0, 'b', kBytes).is_ok());
  ASSERT_TRUE(lab.flush("host2", *second).is_ok());
  lab.engine("host2").release(*second);
  for (uint64_t size : {kBytes / 2, kBytes, 2 * kBytes}) EXPECT_EQ(errno_of(truncate_by(lab, "host1", *first, size)), EIO);
  EXPECT_EQ(size_on(lab, "host1"), kBytes);
  auto anew = lab.open("host1");
  ASSERT_TRUE(anew.is_ok()) << anew.status().to_string();
  auto byte = lab.read("host1", *anew, 0, kBytes);
  EXPECT_TRUE(byte.is_ok() && *byte == 'b') << byte.status().to_string();
  EXPECT_TRUE(lab.resize("host1", lab.inode_of("host1"), kBytes / 2).is_ok()) << "by its name it is";
}

// A host that does not go on alone has lost its link: whatever changes the image waits, and a process that is killed
// does not wait with it.
TEST(Interrupted, AWriteThatGrowsATruncationAndAnAllocationAreGivenUp) {
  Lab lab(1);
  lab.crash("host1", Crash::kKill);
  lab.pause = true;
  lab.start("host1");
  ASSERT_TRUE(lab.healthy("host1"));
  auto handle = lab.open_filled("host1");
  ASSERT_TRUE(handle.is_ok()) << handle.status().to_string();
  const InodeNumber inode = lab.inode_of("host1");
  lab.world.partition("host1", "shared1");
  lab.world.run_for(seconds(5));
  const Bytes data(8192, 'b');
  fs::SetAttr shorter;
  shorter.set_size = true;
  shorter.size = kBytes / 2;
  shorter.tag = kTag;
  fs::Engine& host = lab.engine("host1");
  std::optional<Status> ended;
  auto end = [&](const Status& s) { ended = s; };
  const std::function<void()> begins[] = {
      [&] { host.write(*handle, 0, data, io::IoMode::kQueued, [&](Result<size_t> n) { end(n.status()); }, kTag); },
      [&] { host.write(*handle, kBytes, data, io::IoMode::kQueued, [&](Result<size_t> n) { end(n.status()); }, kTag); },
      [&] { host.setattr(inode, shorter, [&](Result<wire::Attr> attr) { end(attr.status()); }); },
      [&] { host.fallocate(*handle, fs::Engine::Fallocate::kPunch, {0, 4096}, end, kTag); },
      [&] { host.fallocate(*handle, fs::Engine::Fallocate::kAllocate, {kBytes, 4096}, end, kTag); }};
  for (const auto& begin : begins) {
    SCOPED_TRACE(&begin - begins);
    ended.reset();
    begin();
    lab.world.run_for(seconds(1));
    EXPECT_FALSE(ended.has_value());
    host.interrupt(kTag);
    ASSERT_TRUE(ended.has_value()) << "it hangs";
    EXPECT_EQ(errno_of(*ended), EINTR) << ended->to_string();
  }
  lab.world.heal_all();
  ASSERT_TRUE(lab.healthy("host1"));
  auto byte = lab.read("host1", *handle, 0, kBytes);
  EXPECT_TRUE(byte.is_ok() && *byte == 'a') << byte.status().to_string();
  EXPECT_EQ(size_on(lab, "host1"), kBytes);
}

}  // namespace
}  // namespace tidemark::sim
