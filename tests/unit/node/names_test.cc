#include "shared/node/names.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <random>

#include "tests/repeat.h"

namespace tidemark::node {
namespace {

using wire::NodeKind;

const Origin kOrigin{"host1", WallTime{1000}};

class NamesTest : public testing::Test {
 protected:
  InodeNumber make(InodeNumber parent, const std::string& name, NodeKind kind = NodeKind::kImage) {
    wire::Create c{parent, name, kind, 0644, 7, 8, kind == NodeKind::kSymlink ? "target" : "", 1};
    Result<Change> change = names_.create(c, kind == NodeKind::kImage ? image(++images_) : ImageId{}, kOrigin);
    EXPECT_TRUE(change) << change.status().message();
    return change ? change->mark.node.inode : InodeNumber{};
  }
  InodeNumber dir(InodeNumber parent, const std::string& name) { return make(parent, name, NodeKind::kDirectory); }
  static ImageId image(uint8_t n) {
    ImageId id;
    id.bytes[15] = n;
    return id;
  }
  int create_error(wire::Create c) { return error(names_.create(c, ImageId{}, kOrigin)); }
  int unlink(InodeNumber parent, const std::string& name, bool directory = false) {
    return error(names_.unlink({parent, name, directory}, kOrigin));
  }
  int rename(InodeNumber p, const std::string& n, InodeNumber np, const std::string& nn, uint32_t flags = 0) {
    return error(names_.rename({p, n, np, nn, flags}, kOrigin));
  }
  static int error(const Result<Change>& r) { return r ? 0 : errno_of(r.status()); }
  uint32_t nlink(InodeNumber inode) { return (*names_.find(inode))->attr.nlink; }
  std::string path(InodeNumber inode) { return names_.path(inode); }

  NameSpace names_{WallTime{1}};
  uint8_t images_ = 0;
};

TEST_F(NamesTest, CreateRefusesWhatPosixRefuses) {
  InodeNumber file = make(kRootInode, "disk.img");
  EXPECT_EQ(create_error({kRootInode, "disk.img"}), EEXIST);
  EXPECT_EQ(create_error({InodeNumber(99), "x"}), ENOENT);
  EXPECT_EQ(create_error({file, "x"}), ENOTDIR);
  EXPECT_EQ(create_error({kRootInode, std::string(256, 'a')}), ENAMETOOLONG);
  EXPECT_EQ(create_error({kRootInode, "a/b"}), EINVAL);
  EXPECT_EQ(create_error({kRootInode, std::string("a\0b", 3)}), EINVAL);
  EXPECT_EQ(create_error({kRootInode, ".."}), EINVAL);
  EXPECT_EQ(create_error({kRootInode, ""}), ENOENT);
  EXPECT_EQ(create_error({kRootInode, "l", NodeKind::kSymlink}), ENOENT);
  EXPECT_EQ(create_error({kRootInode, "k", static_cast<NodeKind>(77)}), EINVAL);
  EXPECT_TRUE(names_.create({kRootInode, std::string(255, 'a')}, image(9), kOrigin));
}

TEST_F(NamesTest, FifosSocketsAndDevicesAreNamesAlone) {
  auto kind_of = [&](const std::string& name) { return (*names_.lookup(kRootInode, name))->attr.kind; };
  const std::pair<NodeKind, std::string> all[] = {{NodeKind::kFifo, ""},
                                                  {NodeKind::kSocket, ""},
                                                  {NodeKind::kCharDevice, "1:3"},
                                                  {NodeKind::kBlockDevice, "4095:1048575"}};
  for (const auto& [kind, number] : all) {
    auto made = names_.create({kRootInode, "x", kind, 06751, 7, 8, number}, ImageId{}, kOrigin);
    ASSERT_TRUE(made) << made.status().message();
    const wire::Attr& a = made->mark.node;
    EXPECT_EQ(a.kind, kind);
    EXPECT_EQ(a.mode, 06751u);
    EXPECT_EQ(a.nlink, 1u);
    EXPECT_EQ(a.size, 0u);
    EXPECT_EQ(a.target, number);
    EXPECT_TRUE(a.image.is_nil());
    make(kRootInode, "image");
    EXPECT_EQ(rename(kRootInode, "x", kRootInode, "image"), 0);
    EXPECT_EQ(kind_of("image"), kind);
    auto gone = names_.unlink({kRootInode, "image", 0}, kOrigin);
    ASSERT_TRUE(gone);
    EXPECT_EQ(gone->erased, std::vector<InodeNumber>{a.inode}) << "nothing is kept of it";
    EXPECT_TRUE(gone->nameless.empty());
  }
  for (const char* wrong : {"", "8", "8:", ":1", "08:1", "8:1 ", "-8:1", "4096:0", "0:1048576", "8:1:1"})
    EXPECT_EQ(create_error({kRootInode, "x", NodeKind::kBlockDevice, 0644, 0, 0, wrong}), EINVAL) << wrong;
  EXPECT_EQ(create_error({kRootInode, "x", NodeKind::kFifo, 0644, 0, 0, "1:3"}), ENAMETOOLONG);
  EXPECT_EQ(create_error({kRootInode, "x", static_cast<NodeKind>(8)}), EINVAL);
}

TEST_F(NamesTest, DirectoriesCountTheirSubdirectories) {
  EXPECT_EQ(nlink(kRootInode), 2u);
  InodeNumber a = dir(kRootInode, "a"), b = dir(kRootInode, "b");
  InodeNumber c = dir(a, "c");
  make(a, "file");
  EXPECT_EQ(nlink(kRootInode), 4u);
  EXPECT_EQ(nlink(a), 3u);
  EXPECT_EQ(rename(a, "c", b, "c"), 0);
  EXPECT_EQ(nlink(a), 2u);
  EXPECT_EQ(nlink(b), 3u);
  EXPECT_EQ(path(c), "/b/c");
  EXPECT_EQ(unlink(b, "c", true), 0);
  EXPECT_EQ(nlink(b), 2u);
}

TEST_F(NamesTest, ParentsTimesAndEventsFollow) {
  InodeNumber a = dir(kRootInode, "a");
  Result<Change> change = names_.create({a, "x"}, image(1), {"host2", WallTime{5000}});
  ASSERT_TRUE(change);
  const wire::Attr& attr = (*names_.find(a))->attr;
  EXPECT_EQ(attr.mtime.ns, 5000);
  EXPECT_EQ(attr.ctime.ns, 5000);
  EXPECT_EQ(attr.event, change->mark.number);
  EXPECT_EQ(change->mark.origin, "host2");
  EXPECT_EQ(change->mark.name, "x");
  EXPECT_EQ(change->mark.node.event, change->mark.number);
}

// A host's clock may be ahead of the shared node's: whoever looks for what has changed goes by the ctime.
TEST_F(NamesTest, TheCtimeGrowsWithEachChange) {
  const InodeNumber f = make(kRootInode, "f");
  auto ctime = [&] { return (*names_.find(f))->attr.ctime.ns; };
  wire::SetAttr told{f, wire::kSetCtime, {}};
  told.values.ctime = WallTime{9000};
  const Origin now{"host1", WallTime{5000}};
  ASSERT_TRUE(names_.set_attr(told, now));
  ASSERT_EQ(ctime(), 9000);
  ASSERT_TRUE(names_.rename({kRootInode, "f", kRootInode, "g", 0}, now));
  EXPECT_EQ(ctime(), 9001);
  ASSERT_TRUE(names_.set_xattr({f, "user.x", Bytes{1}, 0, 0}, now));
  EXPECT_EQ(ctime(), 9002);
  ASSERT_TRUE(names_.set_xattr({f, "user.x", {}, 1, 0}, now));
  EXPECT_EQ(ctime(), 9003);
  ASSERT_TRUE(names_.unlink({kRootInode, "g", 0}, {"host1", WallTime{9500}}));
  EXPECT_EQ(ctime(), 9500);
}

TEST_F(NamesTest, UnlinkKnowsFilesFromDirectories) {
  InodeNumber d = dir(kRootInode, "d");
  InodeNumber f = make(d, "f");
  EXPECT_EQ(unlink(kRootInode, "nothing"), ENOENT);
  EXPECT_EQ(unlink(kRootInode, "d"), EISDIR);
  EXPECT_EQ(unlink(d, "f", true), ENOTDIR);
  EXPECT_EQ(unlink(kRootInode, "d", true), ENOTEMPTY);
  EXPECT_EQ(unlink(d, "f"), 0);
  EXPECT_EQ(nlink(f), 0u);
  EXPECT_EQ(path(f), "");
  EXPECT_EQ(unlink(kRootInode, "d", true), 0);
  EXPECT_FALSE(names_.find(d));
  EXPECT_EQ(create_error({d, "late"}), ENOENT);
}

TEST_F(NamesTest, RenameRefusesWhatPosixRefuses) {
  InodeNumber a = dir(kRootInode, "a");
  InodeNumber b = dir(a, "b");
  make(kRootInode, "f");
  make(b, "inner");
  EXPECT_EQ(rename(kRootInode, "none", kRootInode, "x"), ENOENT);
  EXPECT_EQ(rename(kRootInode, "a", b, "x"), EINVAL);
  EXPECT_EQ(rename(kRootInode, "a", a, "x"), EINVAL);
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, "a"), EISDIR);
  EXPECT_EQ(rename(kRootInode, "a", kRootInode, "f"), ENOTDIR);
  dir(kRootInode, "e");
  EXPECT_EQ(rename(kRootInode, "e", a, "b"), ENOTEMPTY);
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, "e", 1), EEXIST);
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, "none", 2), ENOENT);
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, "x", 3), EINVAL);
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, std::string(300, 'x')), ENAMETOOLONG);
  EXPECT_EQ(rename(a, "b", kRootInode, "a"), ENOTEMPTY);
  EXPECT_EQ(rename(b, "inner", kRootInode, "a", 2), EINVAL) << "a directory cannot move below itself";
  EXPECT_EQ(rename(kRootInode, "f", kRootInode, "f"), 0);
}

TEST_F(NamesTest, RenameOverNamesWhatItReplaced) {
  InodeNumber old = make(kRootInode, "disk");
  InodeNumber fresh = make(kRootInode, "disk.new");
  ImageId replaced = (*names_.find(old))->attr.image;
  Result<Change> change = names_.rename({kRootInode, "disk.new", kRootInode, "disk", 0}, kOrigin);
  ASSERT_TRUE(change);
  EXPECT_EQ(change->mark.replaced, replaced);
  EXPECT_EQ(change->mark.replaced_inode, old);
  EXPECT_EQ(change->mark.old_name, "disk.new");
  EXPECT_EQ(change->mark.name, "disk");
  EXPECT_EQ(change->nameless, std::vector<ImageId>{replaced});
  EXPECT_EQ(path(fresh), "/disk");
  EXPECT_EQ(nlink(old), 0u);
  names_.forget(old);
  EXPECT_FALSE(names_.find(old));
}

TEST_F(NamesTest, ExchangeMovesBoth) {
  InodeNumber a = dir(kRootInode, "a");
  InodeNumber d = dir(a, "d");
  InodeNumber f = make(kRootInode, "f");
  Result<Change> change = names_.rename({a, "d", kRootInode, "f", 2}, kOrigin);
  ASSERT_TRUE(change);
  EXPECT_EQ(path(d), "/f");
  EXPECT_EQ(path(f), "/a/d");
  EXPECT_EQ(nlink(a), 2u);
  EXPECT_EQ(nlink(kRootInode), 4u);
  ASSERT_EQ(change->others.size(), 1u);
  EXPECT_EQ(change->others[0].node.inode, f);
  EXPECT_EQ(change->others[0].name, "d");
  EXPECT_GT(change->others[0].number, change->mark.number);
}

TEST_F(NamesTest, ExtendedAttributesAreBounded) {
  InodeNumber f = make(kRootInode, "f");
  auto set = [&](std::string name, size_t size, uint32_t flags = 0) {
    return error(names_.set_xattr({f, std::move(name), Bytes(size, 1), 0, flags}, kOrigin));
  };
  auto remove = [&](std::string name) { return error(names_.set_xattr({f, std::move(name), {}, 1, 0}, kOrigin)); };
  EXPECT_EQ(set("user.a", 10), 0);
  EXPECT_EQ(set("user.a", 10, 1), EEXIST);
  EXPECT_EQ(set("user.b", 10, 2), ENODATA);
  EXPECT_EQ(remove("user.b"), ENODATA);
  EXPECT_EQ(set("user.big", (64u << 10) + 1), E2BIG);
  EXPECT_EQ(set("", 1), ERANGE);
  EXPECT_EQ(set("user.c", 64u << 10), 0);
  EXPECT_EQ(set("user.d", 64u << 10), ENOSPC);
  EXPECT_EQ(remove("user.c"), 0);
  for (int i = 0; i < 63; ++i) EXPECT_EQ(set("user." + std::to_string(i), 1), 0);
  EXPECT_EQ(set("user.one-more", 1), ENOSPC);
  EXPECT_EQ((*names_.find(f))->attr.xattrs.size(), 64u);
}

TEST_F(NamesTest, SetGroupIdIsHandedOn) {
  InodeNumber d = dir(kRootInode, "d");
  wire::SetAttr s{d, wire::kSetMode | wire::kSetGid, {}};
  s.values.mode = 02775;
  s.values.gid = 55;
  ASSERT_TRUE(names_.set_attr(s, kOrigin));
  InodeNumber sub = dir(d, "sub");
  EXPECT_EQ((*names_.find(sub))->attr.gid, 55u);
  EXPECT_EQ((*names_.find(sub))->attr.mode, 02644u);
  InodeNumber f = make(d, "f");
  EXPECT_EQ((*names_.find(f))->attr.gid, 55u);
  EXPECT_EQ((*names_.find(f))->attr.mode, 0644u);
}

TEST_F(NamesTest, ReadingADirectoryGoesOnAfterAName) {
  for (const char* n : {"c", "a", "b"}) make(kRootInode, n);
  std::vector<std::string> seen;
  ASSERT_TRUE(names_.read_directory(kRootInode, "a", [&](const Node& n) { seen.push_back(n.name); return true; }));
  EXPECT_EQ(seen, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(errno_of(names_.read_directory(InodeNumber(99), "", [](const Node&) { return true; })), ENOENT);
}

// Whatever is done, the tree is a tree: every name reaches its node, link counts are right, numbers grow.
TEST_F(NamesTest, ARandomWalkKeepsTheTreeWhole) {
  for (uint64_t seed = 1; seed <= seeds_of(60); ++seed) {
    std::mt19937_64 random(seed);
    NameSpace names(WallTime{1});
    std::vector<InodeNumber> known = {kRootInode};
    EventNumber last;
    auto any = [&] { return known[random() % known.size()]; };
    auto name = [&] { return std::string(1, static_cast<char>('a' + random() % 4)); };
    for (int i = 0; i < 300; ++i) {
      Result<Change> change = Status(Code::kNotFound, "");
      switch (random() % 4) {
        case 0: case 1: {
          auto kind = static_cast<NodeKind>(1 + random() % 3);
          change = names.create({any(), name(), kind, 0755, 0, 0, kind == NodeKind::kSymlink ? "t" : "", 1}, image(1),
                                kOrigin);
          if (change) known.push_back(change->mark.node.inode);
          break;
        }
        case 2: change = names.unlink({any(), name(), static_cast<uint8_t>(random() % 2)}, kOrigin); break;
        default:
          change = names.rename({any(), name(), any(), name(), static_cast<uint32_t>(random() % 3)}, kOrigin);
          break;
      }
      if (!change) continue;
      ASSERT_GT(change->mark.number, last);
      last = names.last_event();
      size_t reached = 0, nameless = 0;
      names.walk(InodeNumber{}, [&](const Node& n) {
        uint32_t directories = 0;
        for (const auto& [child, inode] : n.children) {
          const Node* c = *names.find(inode);
          EXPECT_EQ(c->name, child);
          EXPECT_EQ(c->attr.parent, n.attr.inode);
          directories += c->attr.kind == NodeKind::kDirectory;
          ++reached;
        }
        nameless += n.attr.nlink == 0;
        if (n.attr.kind == NodeKind::kDirectory) { EXPECT_EQ(n.attr.nlink, 2 + directories) << "seed " << seed; }
        // Every named node leads to the root.
        if (n.attr.nlink != 0) { EXPECT_EQ(names.path(n.attr.inode).front(), '/') << "seed " << seed; }
        return true;
      });
      ASSERT_EQ(reached + nameless + 1, names.size()) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace tidemark::node
