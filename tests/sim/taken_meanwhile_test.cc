// A host that is granted an image, or takes up what it was granted, while the session of that grant ends or the image is
// taken by force: it never serves a tenure that is over.
#include "tests/repeat.h"
#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A holder that is back after a crash may have acknowledged writes that the shared copy lacks: that takes the second word.
constexpr const char* kTake = R"({"images":["disk.img"],"force":true,"accept_loss":true})";

class TakenMeanwhile : public testing::Test {
 protected:
  // host1 holds the image, full of 'a', all of it level and clean, and starts anew.
  void begin(Lab& lab, Crash kind) {
    auto first = lab.open_filled("host1");
    ASSERT_TRUE(first.is_ok()) << first.status().to_string();
    lab.world.run_for(seconds(30));
    lab.crash("host1", kind);
  }
  // It is back, and its note of what it is granted takes 5 s to be durable.
  void begin_slowly(Lab& lab) {
    begin(lab, Crash::kKill);
    lab.start("host1");
    lab.world.set_store_fault("host1", StoreFault{.path_contains = "/state/drl", .delay = seconds(5)});
    open_on_both(lab);
  }
  void expect_read(Lab& lab) {
    auto got = lab.read("host1", first_, 4096);
    ASSERT_TRUE(got.is_ok() && *got == 'a') << got.status().to_string();
  }
  void open_on_both(Lab& lab) {
    for (auto [host, handle] : {std::pair{"host1", &first_}, {"host2", &second_}}) {
      auto opened = lab.open(host);
      ASSERT_TRUE(opened.is_ok()) << host << ": " << opened.status().to_string();
      *handle = *opened;
    }
  }
  // host2 writes, and host1 reads that or gets an error; both are level in the end.
  void expect_nothing_old(Lab& lab) {
    Status wrote = lab.write("host2", second_, 4096, 'z');
    ASSERT_TRUE(wrote.is_ok()) << wrote.to_string();
    ASSERT_TRUE(lab.flush("host2", second_).is_ok());
    auto got = lab.read("host1", first_, 4096);
    EXPECT_TRUE(!got.is_ok() || *got == 'z') << "host1 reads its own copy of before";
    lab.engine("host1").release(first_);
    lab.engine("host2").release(second_);
    auto again = lab.open("host1");
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    ASSERT_TRUE(lab.write("host1", *again, 8192, 'c').is_ok());
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
    got = lab.read("host1", *again, 4096);
    EXPECT_TRUE(got.is_ok() && *got == 'z') << got.status().to_string();
    EXPECT_EQ(lab.verify("host1"), "");
  }

  fs::HandleId first_, second_;
};

TEST_F(TakenMeanwhile, AHolderThatIsBackBeforeTheFenceHearsOfIt) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin(lab, seed % 2 == 0 ? Crash::kKill : Crash::kPowerLoss);
    lab.crash("shared1", Crash::kKill);   // so that it does not know what of its copy is synced
    lab.start("shared1");
    lab.world.run_for(seconds(4));        // until host2 has noticed
    lab.world.inject("shared1", FileFault{.operations = kSync, .path_contains = "objects", .hangs = true});
    lab.begin_take(kTake);
    lab.start("host1");
    open_on_both(lab);
    expect_read(lab);
    ASSERT_TRUE(lab.healthy("host1", seconds(2))) << "it was not granted the image: " << lab.engine("host1").status_json();
    ASSERT_EQ(lab.world.hung("shared1"), 1u) << "the taking is over";
    lab.world.run_for(seconds(6));
    lab.world.release_hung("shared1");
    expect_nothing_old(lab);
  }
}

TEST_F(TakenMeanwhile, AGrantThatIsTakenUpLateCountsInItsOwnSessionOnly) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin_slowly(lab);
    expect_read(lab);
    lab.world.run_for(seconds(1));
    auto taken = lab.take_at_shared(kTake);
    ASSERT_TRUE(taken.is_ok() && taken->find("\"taken\":true") != std::string::npos) << taken.status().to_string();
    lab.world.clear_faults("host1");
    lab.world.run_for(seconds(6));
    expect_nothing_old(lab);
  }
}

// Nothing was taken: the host asks again, and other hosts' reads need not wait for a session that is over.
TEST_F(TakenMeanwhile, AGrantWhoseSessionIsOverIsAskedForAgain) {
  for (uint64_t seed = 1; seed <= seeds_of(10); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Lab lab(seed);
    begin_slowly(lab);
    const bool writes = seed % 2 == 0;
    std::optional<Status> wrote;
    const Bytes data(4096, 'b');
    if (writes) {
      lab.engine("host1").write(first_, 4096, data, io::IoMode::kQueued,
                                [&](Result<size_t> n) { wrote = n.status(); });
    } else {
      expect_read(lab);
    }
    lab.world.run_for(seconds(1));
    lab.world.reset_connections("host1", "shared1");
    lab.world.run_for(seconds(1));
    lab.world.clear_faults("host1");
    lab.world.run_for(seconds(10));
    if (writes) {
      ASSERT_TRUE(wrote && wrote->is_ok()) << (wrote ? wrote->to_string() : "no answer");
    }
    auto got = lab.read("host2", second_, 4096);
    EXPECT_TRUE(got.is_ok() && *got == (writes ? 'b' : 'a')) << got.status().to_string();
    ASSERT_TRUE(lab.healthy("host1")) << lab.engine("host1").status_json();
  }
}

}  // namespace
}  // namespace tidemark::sim
