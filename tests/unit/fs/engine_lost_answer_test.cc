// Changes of names whose answer is lost with the link: each is carried out once, the caller hears what became of it, and
// an image that lost its name that way leaves no blocks behind.
#include <algorithm>

#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

constexpr InodeNumber kTop{1};
constexpr uint32_t kExchange = 2, kOnlyIfNew = 1;

class LostAnswerTest : public EngineTest {
 protected:
  Pending make_directory(int host, const std::string& name, RequestId id = {}) {
    auto r = std::make_shared<Request>();
    auto made = [r](Result<wire::Attr> attr) {
      r->answer = attr.status();
      if (attr) r->attr = *attr;
    };
    engine(host).create({kTop, name, wire::NodeKind::kDirectory, 0700}, made, id);
    return r;
  }
  Pending set_xattr(const File& f, const std::string& value, uint32_t flags, bool remove = false, RequestId id = {}) {
    auto r = std::make_shared<Request>();
    wire::SetXattr ask{f.inode, "user.lock", Bytes(value.begin(), value.end()), static_cast<uint8_t>(remove ? 1 : 0), flags};
    engine(f.host).set_xattr(ask, [r](Status s) { r->answer = std::move(s); }, id);
    return r;
  }
  std::string xattr(const File& f) {
    Pending r = getattr(f);
    EXPECT_TRUE(wait(r));
    for (const auto& [name, value] : r->attr.xattrs)
      if (name == "user.lock") return {value.begin(), value.end()};
    return "";
  }
  // What is asked from now on is carried out, and its answer lost; or the question is.
  void lose_answers() { world_->cut("shared1", "host1"); }
  void lose_questions() { world_->cut("host1", "shared1"); }
  void await_loss(const Pending& request) {
    world_->run_for(milliseconds(500));
    ASSERT_FALSE(request->answer);
  }
  Status after_loss(const Pending& request) {
    lose_link(1);
    heal_link(1);
    return wait(request);
  }
  InodeNumber at(const std::string& name) { return open(2, name).inode; }
  bool missing(const std::string& name) {
    std::optional<Status> answer;
    engine(2).lookup(kTop, name, [&](Result<wire::Attr> attr) { answer = attr.status(); });
    return until([&] { return answer.has_value(); }) && answer->code() == Code::kNotFound;
  }
  File written(int host, const std::string& name) {
    File f = create(host, name, kMiB);
    EXPECT_TRUE(write_now(f, 0, 0x11, 4096));
    EXPECT_TRUE(await_mirror(f, "mirrored"));
    for (const std::string& node : {host_name(host), std::string("shared1")}) EXPECT_TRUE(has_blocks(node, f)) << node;
    return f;
  }
  void expect_freed(const File& f) {
    world_->run_for(std::chrono::minutes(1));
    for (const char* node : {"host1", "shared1"}) EXPECT_FALSE(has_blocks(node, f)) << node;
  }
};

TEST_F(LostAnswerTest, AnExchangeIsDoneOnceWhetherItsAnswerOrTheQuestionIsLost) {
  for (bool done_before : {true, false}) {
    SCOPED_TRACE(done_before);
    start();
    File a = create(1, "a", kMiB), b = create(1, "b", kMiB);
    if (done_before) lose_answers();
    else lose_questions();
    Pending done = rename(1, "a", "b", kExchange);
    await_loss(done);
    EXPECT_EQ(at("a"), done_before ? b.inode : a.inode);
    EXPECT_TRUE(after_loss(done));
    EXPECT_EQ(at("a"), b.inode);
    EXPECT_EQ(at("b"), a.inode);
    crash_all();
  }
}

TEST_F(LostAnswerTest, AnUnlinkLeavesWhatAnotherHostHasPutThereSince) {
  start();
  File a = written(1, "a");
  close(a);
  lose_answers();
  Pending done = unlink(1, "a");
  await_loss(done);
  File theirs = create(2, "a", kMiB);
  ASSERT_TRUE(write_now(theirs, 0, 0x22, 4096));
  EXPECT_TRUE(after_loss(done));
  EXPECT_EQ(at("a"), theirs.inode);
  expect_freed(a);
  EXPECT_EQ(byte_at(open(1, "a"), 0, 4096), 0x22);
}

TEST_F(LostAnswerTest, AnUnlinkSaysThatItIsDoneAndFreesTheBlocks) {
  start();
  File a = written(1, "a"), b = written(1, "b");
  close(a);
  lose_answers();
  Pending done = unlink(1, "a"), still_open = unlink(1, "b");
  await_loss(done);
  EXPECT_TRUE(after_loss(done));
  EXPECT_TRUE(wait(still_open));
  EXPECT_TRUE(missing("a"));
  expect_freed(a);
  EXPECT_EQ(byte_at(b, 0, 4096), 0x11);
  close(b);
  expect_freed(b);
}

TEST_F(LostAnswerTest, AnUnlinkThatWasNeverAskedForIsDone) {
  start();
  File a = written(1, "a");
  close(a);
  lose_questions();
  Pending done = unlink(1, "a");
  await_loss(done);
  EXPECT_FALSE(missing("a"));
  EXPECT_TRUE(after_loss(done));
  EXPECT_TRUE(missing("a"));
  expect_freed(a);
}

// It has its name no more, and not by this host: somebody else's is the only one that it lost.
TEST_F(LostAnswerTest, AnUnlinkOfWhatAnotherHostHasMovedFindsNothing) {
  start();
  File a = written(1, "a");
  close(a);
  lose_questions();
  Pending done = unlink(1, "a");
  await_loss(done);
  ASSERT_TRUE(wait(rename(2, "a", "c")));
  EXPECT_EQ(after_loss(done).code(), Code::kNotFound);
  EXPECT_EQ(at("c"), a.inode);
  world_->run_for(std::chrono::minutes(1));
  EXPECT_EQ(byte_at(open(1, "c"), 0, 4096), 0x11);
}

TEST_F(LostAnswerTest, ARenameOverAnotherFreesThatOnesBlocks) {
  start();
  File a = written(1, "a"), b = written(1, "b");
  close(b);
  lose_answers();
  Pending done = rename(1, "a", "b");
  await_loss(done);
  File theirs = create(2, "a", kMiB);
  EXPECT_TRUE(after_loss(done));
  EXPECT_EQ(at("a"), theirs.inode);
  EXPECT_EQ(at("b"), a.inode);
  expect_freed(b);
  EXPECT_EQ(byte_at(a, 0, 4096), 0x11);
}

TEST_F(LostAnswerTest, ARenameWhoseLinkStaysAwayFreesTheBlocksOnceItIsBack) {
  start();
  File a = written(1, "a"), b = written(1, "b");
  close(b);
  lose_answers();
  Pending done = rename(1, "a", "b");
  await_loss(done);
  lose_link(1);
  EXPECT_EQ(wait(done).sys_errno(), EHOSTUNREACH);
  heal_link(1);
  expect_freed(b);
  EXPECT_EQ(at("b"), a.inode);
}

TEST_F(LostAnswerTest, AnExtendedAttributeThatIsToBeNewIsNotTakenForAnothers) {
  start();
  File a = create(1, "a", kMiB), theirs = open(2, "a");
  lose_answers();
  Pending done = set_xattr(a, "host1", kOnlyIfNew);
  await_loss(done);
  EXPECT_EQ(xattr(theirs), "host1");
  EXPECT_TRUE(after_loss(done)) << "it was new";
  EXPECT_EQ(xattr(a), "host1");
  lose_answers();
  done = set_xattr(a, "", 0, true);
  await_loss(done);
  EXPECT_TRUE(after_loss(done)) << "it was there";
  EXPECT_EQ(xattr(a), "");
  lose_questions();
  done = set_xattr(a, "host1", kOnlyIfNew);
  await_loss(done);
  ASSERT_TRUE(wait(set_xattr(theirs, "host2", kOnlyIfNew)));
  EXPECT_EQ(after_loss(done).sys_errno(), EEXIST);
  EXPECT_EQ(xattr(theirs), "host2");
}

// ---- the daemon dies with the answer, and its successor finds no link at first ---------------------

class LostRunTest : public LostAnswerTest {
 protected:
  static constexpr RequestId kFirst{42}, kAgain{42, true};
  // The run ends with what it has under way, which the kernel hands to the next one. That has no link at first.
  void die(const Pending& request) {
    await_loss(request);
    world_->partition("host1", "shared1");
    crash_host(1, sim::Crash::kKill);
    succeed_host(1);
    world_->run_for(milliseconds(4500));   // it tries again after 5 s
  }
  Status link_back(const Pending& again) {
    world_->run_for(milliseconds(300));
    EXPECT_FALSE(again->answer) << "by a cache of names from before: " << again->answer->to_string();
    heal_link(1);
    return wait(again);
  }
};

TEST_F(LostRunTest, AnExchangeIsDoneOnceWhetherItWasDoneOrNot) {
  for (bool done : {true, false}) {
    SCOPED_TRACE(done);
    start();
    File a = create(1, "a", kMiB), b = create(1, "b", kMiB);
    if (done) lose_answers();
    else lose_questions();
    die(rename(1, "a", "b", kExchange, kFirst));
    ASSERT_EQ(at("a"), done ? b.inode : a.inode);
    EXPECT_TRUE(link_back(rename(1, "a", "b", kExchange, kAgain)));
    EXPECT_EQ(at("a"), b.inode);
    EXPECT_EQ(at("b"), a.inode);
    EXPECT_FALSE(survivors_[1]->change(kFirst.number));
    crash_all();
  }
}

TEST_F(LostRunTest, WhatWasDoneIsSaidToBeDone) {
  start();
  File a = written(1, "a"), b = written(1, "b");
  close(a);
  close(b);
  lose_answers();
  Pending gone = unlink(1, "a", {44}), moved = rename(1, "b", "c", 0, {46});
  Pending made = make_directory(1, "d", {48}), set = set_xattr(b, "host1", kOnlyIfNew, false, {50});
  die(made);
  ASSERT_TRUE(missing("a"));
  gone = unlink(1, "a", {44, true});
  moved = rename(1, "b", "c", 0, {46, true});
  made = make_directory(1, "d", {48, true});
  set = set_xattr(b, "host1", kOnlyIfNew, false, {50, true});
  EXPECT_TRUE(link_back(gone));
  EXPECT_TRUE(wait(moved));
  EXPECT_TRUE(wait(made)) << "it made it itself";
  EXPECT_TRUE(wait(set));
  EXPECT_EQ(at("c"), b.inode);
  EXPECT_EQ(xattr(open(1, "c")), "host1");
  expect_freed(a);
}

// Only what it made itself is its own, however the name came to be taken.
TEST_F(LostRunTest, WhatAnotherHostDidMeanwhileIsNotItsOwn) {
  start();
  File a = create(1, "a", kMiB), job = create(1, "job", kMiB), f = create(1, "f", kMiB), theirs = open(2, "f");
  lose_questions();
  Pending gone = unlink(1, "a", {44}), moved = rename(1, "job", "job.1", 0, {46});
  Pending made = make_directory(1, "lock", {48}), set = set_xattr(f, "host1", kOnlyIfNew, false, {50});
  die(made);
  auto done = std::make_shared<Request>();
  engine(2).rename({kTop, "job", kTop, "job.2", 0}, [done](Status s) { done->answer = std::move(s); });
  ASSERT_TRUE(wait(done));
  done = std::make_shared<Request>();
  engine(2).rename({kTop, "a", kTop, "b", 0}, [done](Status s) { done->answer = std::move(s); });
  ASSERT_TRUE(wait(done));
  ASSERT_TRUE(wait(make_directory(2, "lock")));
  ASSERT_TRUE(wait(set_xattr(theirs, "host2", kOnlyIfNew)));
  gone = unlink(1, "a", {44, true});
  moved = rename(1, "job", "job.1", 0, {46, true});
  made = make_directory(1, "lock", {48, true});
  set = set_xattr(f, "host1", kOnlyIfNew, false, {50, true});
  EXPECT_EQ(link_back(made).sys_errno(), EEXIST);
  EXPECT_EQ(wait(moved).code(), Code::kNotFound);
  EXPECT_EQ(wait(gone).code(), Code::kNotFound);
  EXPECT_EQ(wait(set).sys_errno(), EEXIST);
  EXPECT_EQ(at("job.2"), job.inode);
  EXPECT_EQ(at("b"), a.inode);
  EXPECT_EQ(xattr(theirs), "host2");
}

TEST_F(LostRunTest, WhereNobodyKnowsItSaysSo) {
  start();
  File b = create(1, "b", kMiB);
  create(1, "a", kMiB);
  lose_answers();
  die(rename(1, "a", "b", kExchange, kFirst));
  EXPECT_EQ(wait(rename(1, "a", "b", kExchange, kAgain)).sys_errno(), EHOSTUNREACH);
  heal_link(1);
  EXPECT_EQ(at("a"), b.inode);
}

// Within one run, too: by its number the shared node knows what it has made.
TEST_F(LostAnswerTest, AMkdirIsCarriedOutOnce) {
  start();
  lose_answers();
  Pending made = make_directory(1, "d", {44});
  await_loss(made);
  ASSERT_FALSE(missing("d"));
  EXPECT_TRUE(after_loss(made));
  lose_questions();
  made = make_directory(1, "lock", {46});
  await_loss(made);
  ASSERT_TRUE(wait(make_directory(2, "lock")));
  EXPECT_EQ(after_loss(made).sys_errno(), EEXIST);
}

// ---- removed by another host ----------------------------------------------------------------------

TEST_F(LostAnswerTest, ImagesRemovedElsewhereWhileTheLinkIsDownAreFreedHere) {
  start();
  File held = written(1, "held"), used = written(1, "used");
  close(held);
  lose_link(1);
  for (const char* name : {"held", "used"}) ASSERT_TRUE(wait(unlink(2, name)));
  heal_link(1);
  expect_freed(held);
  EXPECT_EQ(byte_at(used, 0, 4096), 0x11) << "it is open";
  close(used);
  expect_freed(used);
}

// Known by its name and its copy alone: nobody has opened it in this run.
TEST_F(LostAnswerTest, AnImageRemovedElsewhereIsFreedHereThoughNobodyHasOpenedIt) {
  start();
  File a = written(1, "a"), b = written(1, "b");
  ASSERT_TRUE(wait(flush(a)));
  ASSERT_TRUE(wait(flush(b)));
  close(a);
  close(b);
  world_->run_for(seconds(15));            // their regions are clean
  crash_host(1, sim::Crash::kKill);
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  world_->run_for(seconds(5));
  ASSERT_TRUE(wait(unlink(2, "a")));
  ASSERT_TRUE(wait(rename(2, "b", "c")));
  expect_freed(a);
  EXPECT_TRUE(has_blocks("host1", b)) << "it has another name";
  EXPECT_EQ(byte_at(open(1, "c"), 0, 4096), 0x11);
}

// Nor has anybody it open, in whichever run: nothing but the name cache and the copy tells of it.
TEST_F(LostAnswerTest, ImagesRemovedElsewhereUnheardThatNobodyUsesHereAreFreed) {
  for (bool restart : {false, true}) {
    SCOPED_TRACE(restart);
    start();
    std::vector<File> gone;
    for (const char* name : {"a", "b", "c", "kept"}) {
      gone.push_back(written(1, name));
      ASSERT_TRUE(wait(flush(gone.back())));
      close(gone.back());
    }
    const File kept = gone.back();
    gone.pop_back();
    File theirs = open(2, "a");
    ASSERT_TRUE(write_now(theirs, 0, 0x22, 4096));   // host 1 does not hold it any more
    close(theirs);
    world_->run_for(seconds(15));          // their regions are clean
    if (restart) {
      crash_host(1, sim::Crash::kKill);
      start_host(1);
      ASSERT_TRUE(until([&] { return linked(1); }));
    }
    lose_link(1);
    for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(wait(unlink(2, name)));
    ASSERT_TRUE(wait(rename(2, "kept", "moved")));
    heal_link(1);
    world_->run_for(std::chrono::minutes(1));
    for (const File& f : gone) EXPECT_FALSE(has_blocks("host1", f));
    EXPECT_TRUE(has_blocks("host1", kept)) << "it has another name";
    EXPECT_EQ(byte_at(open(1, "moved"), 0, 4096), 0x11);
    crash_all();
  }
}

// It was held when its name went, and its blocks were not gone yet.
TEST_F(LostAnswerTest, ARemovedImageIsFreedAfterACrash) {
  start();
  File a = written(1, "a");
  world_->run_for(seconds(15));            // its regions are clean
  ASSERT_TRUE(wait(unlink(1, "a")));
  close(a);
  ASSERT_TRUE(logged("image_dropped"));
  crash_host(1, sim::Crash::kKill);
  ASSERT_TRUE(has_blocks("host1", a));
  start_host(1);
  ASSERT_TRUE(until([&] { return linked(1); }));
  expect_freed(a);
}

}  // namespace
}  // namespace tidemark::fs
