#include "shared/wire/create_once.h"
#include "shared/wire/features.h"
#include "tests/unit/node/fixture.h"

namespace tidemark::node {
namespace {

using wire::NodeKind;
using wire::Type;

const InodeNumber kRoot{1};

TEST_F(NodeTest, NamesSurviveEveryCrashOnceAnswered) {
  auto a = host("host1");
  for (int i = 0; i < 20; ++i) {
    std::string name = "n" + std::to_string(i);
    ASSERT_TRUE(a->create(name, kRoot, i % 3 == 0 ? NodeKind::kDirectory : NodeKind::kImage));
    if (i % 4 == 1) {
      ASSERT_TRUE(a->ask<wire::Changed>(Type::kRename, wire::Rename{kRoot, name, kRoot, name + "-moved", 0}));
    }
    if (i % 5 == 4) {
      restart_node(i % 2 == 0 ? sim::Crash::kPowerLoss : sim::Crash::kKill);
      ASSERT_TRUE(a->connect(port_, cluster_));
    }
  }
  Result<wire::DirEntries> all = a->ask<wire::DirEntries>(Type::kReadDir, wire::ReadDir{kRoot, "", 1000});
  ASSERT_TRUE(all);
  EXPECT_EQ(all->entries.size(), 20u);
  EXPECT_EQ(all->end, 1);
  std::set<uint64_t> inodes;
  for (const wire::DirEntry& e : all->entries) EXPECT_TRUE(inodes.insert(e.attr.inode.value).second);
  Result<wire::DirEntries> dump = a->ask<wire::DirEntries>(Type::kDump, wire::Dump{InodeNumber(0), 1000});
  ASSERT_TRUE(dump);
  EXPECT_EQ(dump->entries.size(), 21u) << "the root too";
}

TEST_F(NodeTest, SpecialFilesSurviveEveryCrashOnceAnswered) {
  auto a = std::make_unique<HostClient>(world_, "host1");
  a->hello.features |= wire::kFeatureSpecialFiles;
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_NE(a->answer.features & wire::kFeatureSpecialFiles, 0u);
  const wire::Create device{kRoot, "disk", NodeKind::kBlockDevice, 0660, 0, 6, "8:1"};
  ASSERT_TRUE(a->create("fifo", kRoot, NodeKind::kFifo));
  ASSERT_TRUE(a->create("sock", kRoot, NodeKind::kSocket));
  ASSERT_TRUE(a->ask<wire::Changed>(Type::kCreate, device));
  ASSERT_TRUE(a->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "sock", 0}));
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->lookup("fifo")->kind, NodeKind::kFifo);
  EXPECT_EQ(a->lookup("disk")->kind, NodeKind::kBlockDevice);
  EXPECT_EQ(a->lookup("disk")->target, "8:1");
  EXPECT_EQ(a->lookup("disk")->gid, 6u);
  EXPECT_EQ(errno_of(a->lookup("sock").status()), ENOENT);
}

// What is there may be another host's: only the request that made it gets it for its own.
TEST_F(NodeTest, ACreateThatIsAskedAgainGetsWhatItMadeAndNothingElse) {
  auto a = std::make_unique<HostClient>(world_, "host1");
  auto b = host("host2");
  a->hello.features |= wire::kFeatureCreateOnce;
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_NE(a->answer.features & wire::kFeatureCreateOnce, 0u);
  EXPECT_EQ(b->answer.features & wire::kFeatureCreateOnce, 0u);
  auto make = [&](const std::string& name, uint64_t number) {
    return a->ask<wire::Changed>(Type::kCreate, wire::CreateOnce{{kRoot, name, NodeKind::kDirectory, 0700}, number});
  };
  auto first = make("lock", 7);
  ASSERT_TRUE(first);
  EXPECT_NE(first->mark.number, EventNumber(0));
  ASSERT_TRUE(make("other", 0));
  const size_t told = marks_.size();
  a->hello.incarnation = Incarnation(2);
  a->hello.features |= wire::kFeatureSuccessor;
  ASSERT_TRUE(a->connect(port_, cluster_));
  auto again = make("lock", 7);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->mark.node.inode, first->mark.node.inode);
  EXPECT_EQ(again->mark.number, EventNumber(0)) << "its event was told";
  EXPECT_EQ(marks_.size(), told);
  EXPECT_EQ(errno_of(make("lock", 9).status()), EEXIST);
  EXPECT_EQ(errno_of(make("other", 0).status()), EEXIST) << "no number names nothing";
  ASSERT_TRUE(b->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "lock", 1}));
  ASSERT_TRUE(b->create("lock", kRoot, NodeKind::kDirectory));
  EXPECT_EQ(errno_of(make("lock", 7).status()), EEXIST) << "it is host2's";
  ASSERT_TRUE(make("mine", 11));
  a->hello.features &= ~wire::kFeatureSuccessor;
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_TRUE(make("mine", 11)) << "the same run";
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_TRUE(make("mine", 11)) << "its answer is lost with the shared node's daemon";
  EXPECT_EQ(errno_of(make("mine", 11 + 1024).status()), EEXIST);
  EXPECT_EQ(errno_of(make("lock", 7).status()), EEXIST) << "it is host2's";
  a->hello.incarnation = Incarnation(3);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(errno_of(make("mine", 11).status()), EEXIST) << "of another mount";
  restart_node(sim::Crash::kKill);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(errno_of(make("mine", 11).status()), EEXIST) << "of another mount";
}

// A tidemark-fs that does not know them would show empty images, and its guests would open them.
TEST_F(NodeTest, AnOlderHostIsToldThatItCannotHaveASpecialFile) {
  auto a = host("host1");
  a->hello.features |= wire::kFeatureSpecialFiles;
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(a->create("d", kRoot, NodeKind::kDirectory));
  const InodeNumber d = a->lookup("d")->inode;
  for (int i = 0; i < 20; ++i)
    ASSERT_TRUE(a->create("n" + std::to_string(i), d, i % 2 == 0 ? NodeKind::kFifo : NodeKind::kImage));
  auto old = host("host2");
  EXPECT_EQ(old->answer.features & wire::kFeatureSpecialFiles, 0u);
  EXPECT_TRUE(old->lookup("n1", d));
  EXPECT_EQ(errno_of(old->lookup("n0", d).status()), EOPNOTSUPP);
  EXPECT_NE(old->lookup("n0", d).status().message().find("update"), std::string::npos);
  const InodeNumber fifo = a->lookup("n0", d)->inode;
  EXPECT_EQ(errno_of(old->ask<wire::Attr>(Type::kGetAttr, wire::GetAttr{fifo}).status()), EOPNOTSUPP);
  std::string after;
  size_t listed = 0;
  for (int page = 0; page < 10; ++page) {   // three a page: no page is empty before the last
    auto part = old->ask<wire::DirEntries>(Type::kReadDir, wire::ReadDir{d, after, 3});
    ASSERT_TRUE(part);
    for (const wire::DirEntry& e : part->entries) EXPECT_EQ(e.attr.kind, NodeKind::kImage) << e.name;
    listed += part->entries.size();
    if (part->end != 0) break;
    ASSERT_FALSE(part->entries.empty());
    after = part->entries.back().name;
  }
  EXPECT_EQ(listed, 10u);
  auto dump = old->ask<wire::DirEntries>(Type::kDump, wire::Dump{InodeNumber(0), 1000});
  ASSERT_TRUE(dump);
  EXPECT_EQ(dump->entries.size(), 12u) << "the root, the directory, ten images";
}

TEST_F(NodeTest, ErrorsCarryTheirErrno) {
  auto a = host("host1");
  ASSERT_TRUE(a->create("d", kRoot, NodeKind::kDirectory));
  ASSERT_TRUE(a->create("f"));
  EXPECT_EQ(errno_of(a->create("f").status()), EEXIST);
  EXPECT_EQ(errno_of(a->lookup("none").status()), ENOENT);
  auto unlink = [&](const std::string& n, uint8_t d) {
    return errno_of(a->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, n, d}).status());
  };
  EXPECT_EQ(unlink("d", 0), EISDIR);
  EXPECT_EQ(unlink("f", 1), ENOTDIR);
  InodeNumber d = a->lookup("d")->inode;
  ASSERT_TRUE(a->create("inner", d));
  EXPECT_EQ(unlink("d", 1), ENOTEMPTY);
  EXPECT_EQ(errno_of(a->ask<wire::Changed>(Type::kRename, wire::Rename{kRoot, "d", d, "x", 0}).status()), EINVAL);
  EXPECT_EQ(errno_of(a->ask<wire::Attr>(Type::kGetAttr, wire::GetAttr{InodeNumber(777)}).status()), ENOENT);
  EXPECT_EQ(errno_of(a->create(std::string(256, 'x')).status()), ENAMETOOLONG);
}

TEST_F(NodeTest, OtherHostsAreToldWhatChanged) {
  auto a = host("host1"), b = host("host2");
  Result<wire::Attr> f = a->create("f");
  ASSERT_TRUE(f);
  b->run([&] { return !b->invalidated.empty(); });
  EXPECT_EQ(b->invalidated[0].name, "f");
  EXPECT_EQ(b->invalidated[0].parent, kRoot);
  EXPECT_TRUE(a->invalidated.empty()) << "who asked has the answer";
}

TEST_F(NodeTest, MarksAreNumberedWithoutGapsAndToldAgainAfterACrash) {
  auto a = host("host1");
  ASSERT_TRUE(a->create("a"));
  ASSERT_TRUE(a->create("b"));
  ASSERT_TRUE(a->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "a", 0}));
  ASSERT_EQ(marks_.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(marks_[i].number.value, i + 1);
  EXPECT_EQ(marks_[0].origin, "host1");
  marks_.clear();
  restart_node(sim::Crash::kPowerLoss);
  EXPECT_EQ(marks_.size(), 3u) << "the sink never said that they are safe";
}

TEST_F(NodeTest, AnUnlinkedImageKeepsItsBlocksForThoseThatHaveItOpen) {
  auto a = host("host1"), b = host("host2");
  Held held = held_image(*a, "disk.img", 1u << 20);
  Bytes data(4096, 9);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, data));
  ASSERT_TRUE(b->read(held.image, 0, 4096));
  ASSERT_TRUE(b->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "disk.img", 0}));
  EXPECT_TRUE(a->write(held.image, held.epoch, 4096, data));
  EXPECT_EQ(a->ask<wire::Attr>(Type::kGetAttr, wire::GetAttr{held.inode})->nlink, 0u);
  ASSERT_TRUE(b->tell(Type::kDrop, wire::encode(wire::Drop{held.image})));
  EXPECT_EQ(*a->read(held.image, 4096, 4096), data);

  // The link breaks and comes back: the same run still has it open.
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 0}));
  EXPECT_EQ(*a->read(held.image, 0, 4096), data);

  ASSERT_TRUE(a->tell(Type::kDrop, wire::encode(wire::Drop{held.image})));
  world_.run_for(std::chrono::minutes(11));
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->read(held.image, 0, 4096).status().code(), Code::kNotFound);
  EXPECT_EQ(node_->status_json().find("disk.img"), std::string::npos);
}

TEST_F(NodeTest, AHostsNewRunHasNothingOpen) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "disk.img", 0}));
  EXPECT_TRUE(a->read(held.image, 0, 4096));
  a->hello.incarnation = Incarnation(2);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->read(held.image, 0, 4096).status().code(), Code::kNotFound);
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->read(held.image, 0, 4096).status().code(), Code::kNotFound);
}

// A power cut may take the loss of the name back: then the blocks must be there.
TEST_F(NodeTest, AnImagesBlocksStayUntilTheLossOfItsNameIsDurable) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  ASSERT_TRUE(a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch}));
  ASSERT_TRUE(a->yield(held.image, held.epoch));
  restart_node(sim::Crash::kPowerLoss);
  auto b = host("host2");
  world_.run_for(std::chrono::minutes(11));   // whoever had it open is not waited for any more
  sim::StoreFault slow;
  slow.delay = std::chrono::seconds(20);
  world_.set_store_fault("shared", slow);
  std::optional<Status> unlinked;
  b->link->request<wire::Changed>(Type::kCreate, wire::Create{kRoot, "other", NodeKind::kDirectory, 0700},
                                  [](Result<wire::Changed>) {});   // the unlink is not in its transaction
  b->link->request<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "disk.img", 0},
                                  [&](Result<wire::Changed> r) { unlinked = r.status(); });
  world_.run_for(std::chrono::seconds(6));
  EXPECT_FALSE(unlinked);
  world_.set_store_fault("shared", std::nullopt);
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(b->connect(port_, cluster_));
  ASSERT_TRUE(b->lookup("disk.img"));
  Result<Bytes> kept = b->read(held.image, 0, 4096);
  ASSERT_TRUE(kept) << kept.status().message();
  EXPECT_EQ(*kept, Bytes(4096, 9));

  ASSERT_TRUE(b->ask<wire::Changed>(Type::kUnlink, wire::Unlink{kRoot, "disk.img", 0}));
  ASSERT_TRUE(b->tell(Type::kDrop, wire::encode(wire::Drop{held.image})));
  world_.run_for(std::chrono::minutes(11));
  EXPECT_EQ(b->read(held.image, 0, 4096).status().code(), Code::kNotFound);
}

TEST_F(NodeTest, AReplacedImageIsNamelessUntilARestartsGraceIsOver) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->create("new.img"));
  ASSERT_TRUE(a->ask<wire::Changed>(Type::kRename, wire::Rename{kRoot, "new.img", kRoot, "disk.img", 0}));
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_TRUE(a->read(held.image, 0, 4096)) << "time to come back and say that it is open";
  ASSERT_TRUE(a->tell(Type::kDrop, wire::encode(wire::Drop{held.image})));
  a.reset();
  world_.run_for(std::chrono::minutes(11));
  world_.crash("host1", sim::Crash::kKill);
  auto b = host("host2");
  EXPECT_EQ(b->read(held.image, 0, 4096).status().code(), Code::kNotFound);
}

TEST_F(NodeTest, PolicyNoneGivesTheSecondCopyUp) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  auto set = [&](const std::string& image, const std::string& mirror) {
    std::optional<Result<std::string>> out;
    node_->set_policy(image, mirror, [&](Result<std::string> r) { out.emplace(std::move(r)); });
    EXPECT_TRUE(world_.run_until([&] { return out.has_value(); }, std::chrono::seconds(10)));
    return *out;
  };
  EXPECT_FALSE(set("disk.img", "maybe"));
  EXPECT_FALSE(set("nothing.img", "none"));
  Result<std::string> none = set("disk.img", "none");
  ASSERT_TRUE(none) << none.status().message();
  EXPECT_NE(none->find("\"mirror\":\"none\""), std::string::npos);
  Status told = a->write(held.image, held.epoch, 0, Bytes(4096, 9)).status();
  EXPECT_EQ(told.code(), Code::kUnavailable) << "its holder will hear of it";
  ASSERT_TRUE(set(held.image.to_string(), "sync"));
  EXPECT_EQ(*a->read(held.image, 0, 4096), Bytes(4096, 0)) << "a new copy is empty until it is resynced";
  EXPECT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
}

// A power cut may take the change back: then the copy that was to be given up counts, and a flush that was answered
// must be on it.
TEST_F(NodeTest, NoFlushIsAnsweredByAPolicyThatIsNotDurable) {
  auto a = host("host1");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  sim::StoreFault slow;
  slow.delay = std::chrono::seconds(20);
  world_.set_store_fault("shared", slow);
  std::optional<Status> set;
  a->link->request<wire::Changed>(Type::kCreate, wire::Create{kRoot, "other", NodeKind::kDirectory, 0700},
                                  [](Result<wire::Changed>) {});   // the change is not in its transaction
  world_.run_for(std::chrono::milliseconds(100));
  node_->set_policy("disk.img", "none", [&](Result<std::string> r) { set = r.status(); });
  const wire::Flush flush{held.image, held.epoch};
  EXPECT_EQ(a->ask<wire::Flushed>(Type::kFlush, flush).status().code(), Code::kUnavailable) << "asked again";
  EXPECT_FALSE(set);
  world_.set_store_fault("shared", std::nullopt);
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  EXPECT_EQ(a->lookup("disk.img")->mirror, 1);
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 2}));
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  ASSERT_TRUE(a->ask<wire::Flushed>(Type::kFlush, flush));
  restart_node(sim::Crash::kPowerLoss);
  ASSERT_TRUE(a->connect(port_, cluster_));
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 0}));
  EXPECT_EQ(*a->read(held.image, 0, 4096), Bytes(4096, 9));
}

// Back from `none` the copy is empty until the image's holder has said that it is level: no other host reads its zeros.
TEST_F(NodeTest, BackFromNoneOthersReadNothingUntilTheHolderSaysSo) {
  auto a = host("host1");
  auto b = host("host2");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  for (const char* mirror : {"none", "sync"}) {
    const Status set = set_policy(mirror);
    ASSERT_TRUE(set) << set.message();
  }
  EXPECT_EQ(errno_of(b->read(held.image, 0, 4096).status()), EIO);
  auto resume = [&](uint8_t ahead) {
    return a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), ahead});
  };
  ASSERT_TRUE(resume(2));
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  EXPECT_EQ(errno_of(b->read(held.image, 0, 4096).status()), EIO);
  ASSERT_TRUE(resume(0));
  EXPECT_EQ(*b->read(held.image, 0, 4096), Bytes(4096, 9));
}

// It may have heard of neither change, and take what is here for what it wrote.
TEST_F(NodeTest, BackFromNoneTheCopyCountsOnceItsHolderHasComparedAllOfIt) {
  auto a = std::make_unique<HostClient>(world_, "host1");
  a->hello.features |= wire::kFeatureCompare;
  ASSERT_TRUE(a->connect(port_, cluster_));
  auto b = host("host2");
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  for (const char* mirror : {"none", "sync"}) {
    const Status set = set_policy(mirror);
    ASSERT_TRUE(set) << set.message();
  }
  a->run([&] { return !a->invalidated.empty(); });
  auto resume = [&](uint8_t ahead) {
    const wire::Resume say{held.image, held.epoch, 1u << 20, Generation(1), ahead};
    return a->ask<wire::Resumed>(Type::kResume, say).status().code();
  };
  auto flush = [&] { return a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch}).status().code(); };
  for (bool restarted : {false, true}) {
    SCOPED_TRACE(restarted ? "after a restart" : "at once");
    if (restarted) {
      restart_node(sim::Crash::kPowerLoss);
      ASSERT_TRUE(a->connect(port_, cluster_));
      ASSERT_TRUE(b->connect(port_, cluster_));
    }
    EXPECT_EQ(resume(0), Code::kCorruption);
    EXPECT_EQ(a->read(held.image, 0, 4096).status().code(), Code::kCorruption) << "no zeros to its holder either";
    EXPECT_EQ(flush(), Code::kCorruption);
    EXPECT_EQ(a->write(held.image, held.epoch, 0, Bytes(4096, 9)).status().code(), Code::kCorruption);
    EXPECT_EQ(errno_of(b->read(held.image, 0, 4096).status()), EIO);
  }
  ASSERT_TRUE(a->yield(held.image, held.epoch));
  EXPECT_EQ(b->acquire(held.image).status().code(), Code::kCorruption) << "it would begin upon zeros";
  EXPECT_EQ(b->read(held.image, 0, 4096).status().code(), Code::kCorruption);
  Result<wire::Grant> again = a->acquire(held.image);
  ASSERT_TRUE(again) << again.status().message();
  held.epoch = again->epoch;
  ASSERT_EQ(resume(3), Code::kOk);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  EXPECT_EQ(flush(), Code::kOk);
  ASSERT_EQ(resume(0), Code::kOk);
  EXPECT_EQ(*b->read(held.image, 0, 4096), Bytes(4096, 9));
}

// The blocks of an image of `mirror = none` are with its holder: without one, nobody may begin upon nothing.
TEST_F(NodeTest, ThePolicyChangesOnlyWhereAHolderHasTheBlocks) {
  auto a = host("host1");
  auto set = [&](const std::string& mirror) { return set_policy(mirror); };
  Held held = held_image(*a, "disk.img", 1u << 20);
  ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
  a.reset();   // it may have crashed, and need this copy to be whole again
  world_.crash("host1", sim::Crash::kKill);
  world_.run_for(std::chrono::seconds(1));
  EXPECT_EQ(set("none").code(), Code::kBusy);
  a = host("host1");
  EXPECT_EQ(set("none").code(), Code::kBusy) << "back, it has not said that its tenure stands";
  ASSERT_TRUE(a->ask<wire::Resumed>(Type::kResume, wire::Resume{held.image, held.epoch, 1u << 20, Generation(1), 0}));
  ASSERT_TRUE(set("none"));
  auto yield = [&](uint64_t counter) {
    return a->ask<wire::Yielded>(Type::kYield, wire::Yield{held.image, held.epoch, {Incarnation(1), Counter(counter)}});
  };
  EXPECT_EQ(yield(7).status().code(), Code::kBusy) << "it was on its way when the policy changed";
  ASSERT_TRUE(set("sync"));
  ASSERT_TRUE(set("none"));
  ASSERT_TRUE(yield(0)) << "it has nothing";
  EXPECT_EQ(set("sync").code(), Code::kBusy);
  auto b = host("host2");
  ASSERT_TRUE(b->ask<wire::Grant>(Type::kAcquire, wire::Acquire{held.image, 0, 0}));
  EXPECT_EQ(set("sync").code(), Code::kBusy);
}

TEST_F(NodeTest, ThePolicyIsAnExtendedAttributeToo) {
  auto a = host("host1");
  Result<wire::Attr> f = a->create("f");
  ASSERT_TRUE(f);
  auto set = [&](const std::string& value, uint8_t remove = 0) {
    wire::SetXattr m{f->inode, "user.tidemark.mirror", Bytes(value.begin(), value.end()), remove, 0};
    return errno_of(a->ask<wire::Changed>(Type::kSetXattr, m).status());
  };
  EXPECT_EQ(set("none"), 0);
  EXPECT_EQ(a->lookup("f")->mirror, 0);
  EXPECT_EQ(set("perhaps"), EINVAL);
  EXPECT_EQ(set("", 1), 0);
  EXPECT_EQ(a->lookup("f")->mirror, 1);
  EXPECT_TRUE(a->lookup("f")->xattrs.empty());
}

TEST_F(NodeTest, StatFsTellsTheBricks) {
  auto a = host("host1");
  Result<wire::StatFsAnswer> s = a->ask<wire::StatFsAnswer>(Type::kStatFs, wire::StatFs{});
  ASSERT_TRUE(s);
  EXPECT_GT(s->total, 0u);
  EXPECT_GE(s->total, s->available);
}


// A kill at every commit and file operation of the change to `mirror = none`: the image is either mirrored with its
// blocks, or not mirrored; a copy given up never shows its old blocks again.
TEST_F(NodeTest, GivingTheSecondCopyUpIsOneStep) {
  for (bool at_commits : {false, true}) {
    for (uint64_t nth = 1; nth <= 8; ++nth) {
      SCOPED_TRACE((at_commits ? "commit " : "operation ") + std::to_string(nth));
      auto a = host("host1");
      std::string name = "disk" + std::to_string(at_commits) + "-" + std::to_string(nth);
      Held held = held_image(*a, name, 1u << 20);
      ASSERT_TRUE(a->write(held.image, held.epoch, 0, Bytes(4096, 9)));
      ASSERT_TRUE(a->ask<wire::Flushed>(Type::kFlush, wire::Flush{held.image, held.epoch}));
      sim::CrashPoint point;
      point.nth = nth;
      point.at_commits = at_commits;
      point.kind = sim::Crash::kPowerLoss;
      world_.inject("shared", point);
      bool done = false;
      node_->set_policy(name, "none", [&](Result<std::string>) { done = true; });
      ASSERT_TRUE(world_.run_until([&] { return done || !world_.running("shared"); }, std::chrono::minutes(2)));
      if (world_.running("shared")) world_.run_for(std::chrono::seconds(1));
      world_.clear_faults("shared");
      restart_node(sim::Crash::kPowerLoss);
      ASSERT_TRUE(a->connect(port_, cluster_));
      Result<wire::Attr> attr = a->lookup(name);
      ASSERT_TRUE(attr);
      if (attr->mirror != 0) {
        Result<Bytes> kept = a->read(held.image, 0, 4096);
        ASSERT_TRUE(kept) << kept.status().message();
        EXPECT_EQ(*kept, Bytes(4096, 9));
      } else {
        std::optional<Status> set;
        node_->set_policy(name, "sync", [&](Result<std::string> r) { set = r.status(); });
        ASSERT_TRUE(world_.run_until([&] { return set.has_value(); }, std::chrono::seconds(10)));
        ASSERT_TRUE(*set) << set->message();
        ASSERT_TRUE(a->write(held.image, held.epoch, 8192, Bytes(4096, 1)));
        Result<Bytes> anew = a->read(held.image, 0, 4096);
        ASSERT_TRUE(anew) << anew.status().message();
        EXPECT_EQ(*anew, Bytes(4096, 0));
      }
      world_.crash("host1", sim::Crash::kKill);
    }
  }
}

}  // namespace
}  // namespace tidemark::node
