// Writes of files opened with O_APPEND: the kernel sends them to the end that it believes in, which another host may have
// moved since. The tests play the kernel, which adds each write to that end and asks for no other.
#include "tests/unit/fs/engine_fixture.h"

namespace tidemark::fs {
namespace {

class AppendTest : public EngineTest {
 protected:
  static constexpr uint64_t kRecord = 100;

  Pending append(const File& f, uint64_t believed_end, uint8_t byte, uint64_t length = kRecord) {
    auto r = std::make_shared<Request>();
    r->memory.assign(length, byte);
    engine(f.host).write(f.handle, believed_end, r->memory, io::IoMode::kQueued,
                         [r](Result<size_t> n) { r->answer = n.status(); }, 0, true);
    return r;
  }
  Status append_now(const File& f, uint64_t believed_end, uint8_t byte) { return wait(append(f, believed_end, byte)); }
  uint64_t size_of(const File& f) {
    Pending r = getattr(f);
    EXPECT_TRUE(wait(r));
    return r->attr.size;
  }
  // The first byte of each record; -1: one is not all alike.
  std::vector<int> records(const File& f, uint64_t length = kRecord) {
    std::vector<int> out;
    const uint64_t size = size_of(f);
    EXPECT_EQ(size % length, 0u);
    for (uint64_t at = 0; at < size; at += length) out.push_back(byte_at(f, at, length));
    return out;
  }
  void by_host1(uint8_t byte) {
    File f = open(1, "log");
    ASSERT_TRUE(append_now(f, size_of(f), byte));
    ASSERT_TRUE(wait(flush(f)));
    close(f);
  }
  // A record by host 1; opened by host 2, whose kernel knows of that; a second one by host 1.
  File start_behind() {
    start();
    File f = create(1, "log", 0);
    close(f);
    by_host1(1);
    File kept = open(2, "log");
    EXPECT_EQ(size_of(kept), kRecord);
    by_host1(2);
    return kept;
  }
  // Host 2 appends a third record and is done; host 1 begins to append a fourth, and `event` of that is logged.
  struct Begun { File file; Pending append; };
  Begun begun_by_host1(const std::string& event) {
    File f = open(2, "log");
    EXPECT_TRUE(append_now(f, size_of(f), 3));
    close(f);
    File theirs = open(1, "log");
    EXPECT_EQ(size_of(theirs), 3 * kRecord);
    log_.clear();
    Pending before = append(theirs, 3 * kRecord, 4);
    EXPECT_TRUE(until([&] { return logged(event); }));
    return {theirs, before};
  }
};

using Records = std::vector<int>;

TEST_F(AppendTest, LandsBehindWhatAnotherHostHasAppended) {
  File f = start_behind();
  ASSERT_TRUE(append_now(f, kRecord, 3));
  EXPECT_EQ(records(f), (Records{1, 2, 3}));
  ASSERT_TRUE(append_now(f, 2 * kRecord, 4)) << "the kernel has counted its own one";
  ASSERT_TRUE(append_now(f, 4 * kRecord, 5)) << "by now it has asked";
  ASSERT_TRUE(append_now(f, 5 * kRecord, 6));
  EXPECT_EQ(records(f), (Records{1, 2, 3, 4, 5, 6}));
  ASSERT_TRUE(wait(flush(f)));
  close(f);
  by_host1(7);
  EXPECT_EQ(records(open(1, "log")), (Records{1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(verify(open(1, "log")), "");
}

TEST_F(AppendTest, OfSeveralPartsLandsInOnePiece) {
  start();
  constexpr uint64_t kPart = 64 << 10;
  for (uint64_t ahead : {1u, 2u, 3u}) {   // parts that the kernel does not know of
    const std::string name = "log" + std::to_string(ahead);
    File theirs = create(1, name, 0);
    File f = open(2, name);
    for (uint64_t i = 0; i < ahead; ++i) ASSERT_TRUE(write_now(theirs, i * kPart, 1, kPart));
    ASSERT_TRUE(wait(flush(theirs)));
    close(theirs);
    std::vector<Pending> parts;
    for (uint8_t i = 0; i < 4; ++i) parts.push_back(append(f, i * kPart, static_cast<uint8_t>(2 + i), kPart));
    for (const Pending& part : parts) ASSERT_TRUE(wait(part));
    Records wanted(ahead, 1);
    for (int i = 2; i < 6; ++i) wanted.push_back(i);
    EXPECT_EQ(records(f, kPart), wanted) << ahead;
    for (uint8_t i = 0; i < 2; ++i) parts.push_back(append(f, (4 + i) * kPart, static_cast<uint8_t>(6 + i), kPart));
    for (const Pending& part : parts) ASSERT_TRUE(wait(part));
    for (int i = 6; i < 8; ++i) wanted.push_back(i);
    EXPECT_EQ(records(f, kPart), wanted) << ahead;
    const uint64_t end = size_of(f);               // the kernel, too, asks by now
    for (uint8_t i = 0; i < 3; ++i) parts.push_back(append(f, end + i * kPart, static_cast<uint8_t>(8 + i), kPart));
    for (const Pending& part : parts) ASSERT_TRUE(wait(part));
    for (int i = 8; i < 11; ++i) wanted.push_back(i);
    EXPECT_EQ(records(f, kPart), wanted) << ahead;
  }
}

TEST_F(AppendTest, LandsAtTheEndOfWhatAnotherHostHasCutShort) {
  File f = start_behind();
  ASSERT_TRUE(wait(resize(open(1, "log"), 0)));
  ASSERT_TRUE(append_now(f, kRecord, 3));
  ASSERT_TRUE(append_now(f, 2 * kRecord, 4));
  EXPECT_EQ(records(f), (Records{3, 4}));
}

// Where the end will be is not known before the other host has had its turn.
TEST_F(AppendTest, LandsBehindWhatAnotherHostAppendsOnceTheImageIsGivenBack) {
  File kept = start_behind();
  auto [theirs, before] = begun_by_host1("recalled");
  Pending behind = append(kept, 3 * kRecord, 5);
  ASSERT_TRUE(wait(before));
  EXPECT_FALSE(behind->answer) << "given back before";
  ASSERT_TRUE(wait(flush(theirs)));
  close(theirs);
  ASSERT_TRUE(wait(behind));
  EXPECT_EQ(records(kept), (Records{1, 2, 3, 4, 5}));
}

// It was given back, and the answer is lost: this host does not know yet that the end is not its own any more.
TEST_F(AppendTest, LandsBehindWhatAnotherHostAppendsWhileItIsUnknownWhoHasTheImage) {
  File kept = start_behind();
  auto [theirs, before] = begun_by_host1("tenure_ended");
  lose_link(2);
  ASSERT_TRUE(until([&] { return mirror(kept) == "waiting"; }));
  Pending behind = append(kept, 3 * kRecord, 5);
  ASSERT_TRUE(wait(before));
  EXPECT_FALSE(behind->answer);
  ASSERT_TRUE(wait(flush(theirs)));
  close(theirs);
  heal_link(2);
  ASSERT_TRUE(wait(behind));
  EXPECT_EQ(records(kept), (Records{1, 2, 3, 4, 5}));
}

// RWF_NOAPPEND looks the same but for its place. Where no other host was, the kernel knows the end.
TEST_F(AppendTest, NothingIsMovedWhereNoOtherHostWas) {
  start();
  File f = create(1, "log", 0);
  for (uint8_t i = 0; i < 3; ++i) ASSERT_TRUE(append_now(f, i * kRecord, 1));
  ASSERT_TRUE(append_now(f, kRecord, 2));
  EXPECT_EQ(records(f), (Records{1, 2, 1}));
}

// Nor what the kernel hands out again after the room for it was made.
TEST_F(AppendTest, IsMovedBySuccessorsToo) {
  File f = start_behind();
  ASSERT_TRUE(append_now(f, kRecord, 3));
  crash_host(2, sim::Crash::kKill);
  succeed_host(2);
  ASSERT_TRUE(append_now(f, 2 * kRecord, 4)) << "the kernel still does not know";
  EXPECT_EQ(records(f), (Records{1, 2, 3, 4}));
  ASSERT_TRUE(append_now(f, 4 * kRecord, 5)) << "it has asked, and the answer is lost";
  crash_host(2, sim::Crash::kKill);
  succeed_host(2);
  ASSERT_TRUE(append_now(f, 4 * kRecord, 5));
  EXPECT_EQ(records(f), (Records{1, 2, 3, 4, 5}));
  close(f);
  EXPECT_FALSE(survivors_[2]->end_of(f.image));
}

}  // namespace
}  // namespace tidemark::fs
