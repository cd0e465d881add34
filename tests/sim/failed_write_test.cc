// Requests that are not carried out, since their process is killed.
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr uint64_t kBytes = Lab::kImageBytes;
constexpr uint64_t kTag = 7;

uint64_t size_on(Lab& lab, const std::string& host) {
  auto attr = lab.wait<Result<wire::Attr>>([&](auto done) { lab.engine(host).getattr(lab.inode_of(host), std::move(done)); });
  return attr ? attr->size : 0;
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
