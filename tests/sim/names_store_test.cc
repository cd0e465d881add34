// An I/O error on the disk of a host's `state_dir/names`: once it has passed, no restart is needed.
#include <algorithm>
#include <cerrno>
#include <set>

#include "tests/sim/lab.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

class NamesStore : public testing::Test {
 protected:
  NamesStore() { EXPECT_TRUE(handle_.is_ok() && lab_.healthy("host1")); }
  void fail_names(bool opens) {
    const Status gone(Code::kIoError, "the state disk's own error");
    lab_.world.set_store_fault("host1", StoreFault{.path_contains = "/names", .status = gone, .opens = opens, .reads = true});
  }
  void mend_names() { lab_.world.set_store_fault("host1", std::nullopt); }
  // Changes what the host knows of names.
  Status make(const std::string& name) {
    auto made = lab_.wait<Result<wire::Attr>>([&](auto done) {
      wire::Create request;
      request.parent = InodeNumber(1);
      request.name = name;
      request.kind = wire::NodeKind::kDirectory;
      request.mode = 0700;
      lab_.engine("host1").create(std::move(request), std::move(done));
    });
    return made.status();
  }
  bool tells_of_names() {
    std::vector<std::string> why;
    lab_.engine("host1").healthy(&why);
    return std::any_of(why.begin(), why.end(), [](const std::string& w) { return w.find("state_dir/names") != std::string::npos; });
  }
  Lab lab_{7};
  Result<fs::HandleId> handle_ = lab_.open_filled("host1");
};

// The shared node's new run is noted there, durably, before a session is opened.
TEST_F(NamesStore, AfterAnErrorThatPassedTheHostLinksToASharedNodeThatStartsAnew) {
  fail_names(false);
  ASSERT_TRUE(make("changed").is_ok());
  lab_.world.run_for(seconds(1));
  mend_names();
  lab_.world.run_for(seconds(60));
  lab_.crash("shared1", Crash::kKill);
  lab_.start("shared1");
  lab_.world.run_for(seconds(2));   // that the link is lost is known by then
  EXPECT_TRUE(lab_.healthy("host1", seconds(8)));
  EXPECT_EQ(lab_.verify("host1"), "");
}

// That the own copy is behind is a flag there: without it the guest gets the brick's error.
TEST_F(NamesStore, AfterAnErrorThatPassedAFailingBrickIsNotTheGuestsError) {
  fail_names(false);
  ASSERT_TRUE(make("changed").is_ok());
  lab_.world.run_for(seconds(1));
  mend_names();
  lab_.world.run_for(seconds(60));
  lab_.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", EIO});
  EXPECT_TRUE(lab_.write("host1", *handle_, 0, 'b').is_ok());
  EXPECT_FALSE(lab_.engine("host1").healthy()) << "no fault came";
  EXPECT_TRUE(lab_.healthy("host1"));
}

// An error of the very commit that is waited for costs nothing either.
TEST_F(NamesStore, AnErrorAsTheBrickFailsIsNotTheGuestsError) {
  ASSERT_TRUE(lab_.write("host1", *handle_, 0, 'a').is_ok());
  lab_.world.run_for(std::chrono::milliseconds(500));   // what the journal had to commit of it is
  lab_.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", EIO});
  lab_.world.fail_next_commit("host1", Status(Code::kIoError, "the state disk's own error"));
  EXPECT_TRUE(lab_.write("host1", *handle_, 0, 'b').is_ok());
  EXPECT_FALSE(lab_.engine("host1").healthy()) << "no fault came";
  EXPECT_TRUE(lab_.healthy("host1"));
}

// It was unmounted to be mended: what it was mounted upon can be written, and what were kept there would be forgotten.
class UnmountedNames : public NamesStore {
 protected:
  void unmount() {
    fail_names(true);
    ASSERT_TRUE(make("x").is_ok());
    lab_.world.run_for(seconds(1));
    StoreFault elsewhere{.path_contains = "/names"};
    elsewhere.forgets = true;
    lab_.world.set_store_fault("host1", elsewhere);
  }
  void expect_nothing_elsewhere() {
    EXPECT_TRUE(tells_of_names());
    for (const char* table : {"attr", "entry", "flag", "meta"})
      EXPECT_TRUE(lab_.world.committed("host1", "/another disk/state/names", table).empty()) << table;
  }
};

TEST_F(UnmountedNames, NoneIsMadeInTheirPlace) {
  unmount();
  lab_.world.run_for(seconds(30));
  expect_nothing_elsewhere();
  mend_names();
  ASSERT_TRUE(lab_.healthy("host1", seconds(30)));
  EXPECT_FALSE(tells_of_names());
  const auto kept = lab_.world.committed("host1", "/state/names", "entry");
  auto is_x = [](const auto& row) { return !row.first.empty() && row.first.back() == 'x'; };
  EXPECT_TRUE(std::any_of(kept.begin(), kept.end(), is_x));
}

// That the copy is whole again is known once the disk is back, and by the next start too.
TEST_F(UnmountedNames, ACopyFilledMeanwhileIsNotTakenForBehindByTheNextStart) {
  lab_.crash("host1", Crash::kKill);
  lab_.resync_rate = 16 << 10;
  lab_.start("host1");
  handle_ = lab_.open("host1");
  ASSERT_TRUE(handle_.is_ok());
  ASSERT_TRUE(lab_.write("host1", *handle_, 0, 'b').is_ok());
  lab_.world.inject("host1", FileFault{1, 1, kWrite, "/brick1", EIO});
  ASSERT_TRUE(lab_.write("host1", *handle_, 0, 'c').is_ok());
  ASSERT_FALSE(lab_.engine("host1").healthy()) << "no fault came";
  lab_.world.run_for(seconds(32));   // opened anew, and being filled
  unmount();
  lab_.world.run_for(seconds(60));
  expect_nothing_elsewhere();
  mend_names();
  ASSERT_TRUE(lab_.healthy("host1"));
  lab_.world.partition("host1", "shared1");
  lab_.world.run_for(seconds(5));
  ASSERT_TRUE(lab_.write("host1", *handle_, 0, 'z').is_ok());
  ASSERT_TRUE(lab_.flush("host1", *handle_).is_ok());
  lab_.crash("host1", Crash::kPowerLoss);
  lab_.world.heal_all();
  lab_.start("host1");
  ASSERT_TRUE(lab_.healthy("host1"));
  handle_ = lab_.open("host1");
  ASSERT_TRUE(handle_.is_ok());
  auto read = lab_.read("host1", *handle_, 0);
  ASSERT_TRUE(read.is_ok()) << read.status().to_string();
  EXPECT_EQ(*read, 'z');
}

// What is put there from memory is queued once, however long the disk takes for it.
TEST_F(NamesStore, ADiskThatHangsIsNotGivenAllNamesAgainAndAgain) {
  lab_.world.run_for(seconds(30));
  const uint64_t before = lab_.world.commits("host1");
  lab_.world.run_for(seconds(60));
  const uint64_t idle = lab_.world.commits("host1") - before;
  fail_names(false);
  ASSERT_TRUE(make("x").is_ok());
  lab_.world.run_for(std::chrono::milliseconds(50));
  lab_.world.set_store_fault("host1", StoreFault{.path_contains = "/names", .delay = std::chrono::hours(1)});
  lab_.world.run_for(seconds(10));
  EXPECT_TRUE(tells_of_names());
  const uint64_t hanging = lab_.world.commits("host1");
  lab_.world.run_for(seconds(60));
  EXPECT_LE(lab_.world.commits("host1") - hanging, idle + 2);
  EXPECT_TRUE(tells_of_names());
}

TEST_F(NamesStore, WhileItTakesNothingTheHostSaysSoAndAfterwardsAllIsKept) {
  fail_names(true);
  ASSERT_TRUE(make("one").is_ok());
  lab_.world.run_for(seconds(20));
  ASSERT_TRUE(make("two").is_ok());
  EXPECT_TRUE(lab_.write("host1", *handle_, 0, 'b').is_ok());
  EXPECT_TRUE(tells_of_names());
  // A link that is opened meanwhile waits for the disk, and neither end falls over it.
  lab_.crash("shared1", Crash::kKill);
  lab_.start("shared1");
  lab_.world.run_for(seconds(20));
  EXPECT_TRUE(tells_of_names());
  EXPECT_TRUE(lab_.write("host1", *handle_, 4096, 'c').is_ok()) << "alone";
  mend_names();
  ASSERT_TRUE(lab_.healthy("host1", seconds(30)));
  lab_.crash("shared1", Crash::kKill);
  lab_.crash("host1", Crash::kPowerLoss);
  lab_.start("host1");
  lab_.world.run_for(seconds(1));
  std::set<std::string> known;   // without the shared node: what is kept here
  auto listed = lab_.wait<Result<wire::DirEntries>>(
      [&](auto done) { lab_.engine("host1").readdir(InodeNumber(1), "", 512, std::move(done)); });
  ASSERT_TRUE(listed.is_ok()) << listed.status().to_string();
  for (const wire::DirEntry& e : listed->entries) known.insert(e.name);
  EXPECT_EQ(known, (std::set<std::string>{"disk.img", "one", "two"}));
}

}  // namespace
}  // namespace tidemark::sim
