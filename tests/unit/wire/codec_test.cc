// Every message's bytes: a golden file that is never edited for an existing version, and the rule
// that a body decodes to its last byte or not at all.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>

#include "shared/base/digest.h"
#include "shared/wire/codec.h"
#include "shared/wire/frame.h"

namespace tidemark::wire {
namespace {

// Gives every field of a message its own value, in order, so that two swapped fields show.
class Filler {
 public:
  template <class... T>
  void operator()(T&... v) { (fill(v), ...); }

 private:
  void fill(std::string& v) { v = "text" + std::to_string(++next_); }
  void fill(Bytes& v) { v = {static_cast<uint8_t>(++next_), 0, 255}; }
  void fill(Uuid& v) { for (auto& b : v.bytes) b = static_cast<uint8_t>(++next_); }
  void fill(WallTime& v) { v.ns = -static_cast<int64_t>(++next_); }
  void fill(Extent& v) { v.offset = ++next_ << 32; v.length = ++next_; }
  void fill(WriteSequence& v) { fill(v.incarnation); fill(v.counter); }
  void fill(DigestKey& v) { for (auto& b : v.secret) b = static_cast<uint8_t>(++next_); }
  void fill(Digest128& v) { v.low = ++next_; v.high = ++next_; }
  template <class Tag> void fill(StrongId<Tag>& v) { ++next_; v.value = next_ << 40 | next_; }
  template <class A, class B> void fill(std::pair<A, B>& v) { fill(v.first); fill(v.second); }
  template <class T> void fill(std::vector<T>& v) { v.resize(2); for (T& e : v) fill(e); }
  template <class T> void fill(T& v) {
    if constexpr (std::is_same_v<T, NodeKind>) v = NodeKind::kDirectory;
    else if constexpr (std::is_same_v<T, MarkKind>) v = MarkKind::kRename;
    else if constexpr (std::is_integral_v<T>) v = static_cast<T>(++next_ * 0x0101010101010101ull);
    else v.fields(*this);
  }
  uint64_t next_ = 0;
};

template <class M>
M filled() {
  M m;
  Filler f;
  m.fields(f);
  return m;
}

template <class M>
void check_every_truncation(const std::string& name, const Bytes& bytes) {
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(decode<M>(ByteSpan(bytes).first(n))) << name << " cut to " << n;
  }
  Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(decode<M>(longer)) << name << " with a byte left over";
}

// Calls fn.operator()<M>(name) for every message.
template <class F>
void for_each_message(F&& fn) {
#define TM_MESSAGE(M) fn.template operator()<M>(#M)
  TM_MESSAGE(Hello); TM_MESSAGE(HelloAnswer); TM_MESSAGE(Ping);
  TM_MESSAGE(Write); TM_MESSAGE(Zero); TM_MESSAGE(Resize); TM_MESSAGE(Applied); TM_MESSAGE(Flush); TM_MESSAGE(Flushed);
  TM_MESSAGE(Read);
  TM_MESSAGE(Hash);
  TM_MESSAGE(Hashes);
  TM_MESSAGE(Extents);
  TM_MESSAGE(ExtentList);
  TM_MESSAGE(Repair);
  TM_MESSAGE(TenureParent); TM_MESSAGE(Acquire); TM_MESSAGE(Grant); TM_MESSAGE(Resume); TM_MESSAGE(Resumed);
  TM_MESSAGE(Yield); TM_MESSAGE(Yielded); TM_MESSAGE(RecallNotify); TM_MESSAGE(StaleMap); TM_MESSAGE(Level);
  TM_MESSAGE(Attr); TM_MESSAGE(Mark); TM_MESSAGE(Lookup); TM_MESSAGE(GetAttr); TM_MESSAGE(SetAttr); TM_MESSAGE(Create);
  TM_MESSAGE(Unlink); TM_MESSAGE(Rename); TM_MESSAGE(Changed); TM_MESSAGE(ReadDir); TM_MESSAGE(DirEntry);
  TM_MESSAGE(DirEntries); TM_MESSAGE(SetXattr); TM_MESSAGE(StatFs); TM_MESSAGE(StatFsAnswer); TM_MESSAGE(Drop);
  TM_MESSAGE(Dump); TM_MESSAGE(InvalidateNotify); TM_MESSAGE(Failure);
#undef TM_MESSAGE
}

std::map<std::string, std::string> read_golden() {
  std::map<std::string, std::string> out;
  std::ifstream in(GOLDEN_FILE);
  std::string name, hex;
  while (in >> name >> hex) out[name] = hex;
  return out;
}

TEST(Codec, EveryMessageHasItsGoldenBytes) {
  std::map<std::string, std::string> golden = read_golden();
  size_t count = 0;
  for_each_message([&]<class M>(const std::string& name) {
    ++count;
    EXPECT_EQ(golden[name], to_hex(encode(filled<M>())))
        << "golden line: " << name << ' ' << to_hex(encode(filled<M>()));
  });
  EXPECT_EQ(golden.size(), count);
}

TEST(Codec, EveryMessageSurvivesTheWay) {
  for_each_message([&]<class M>(const std::string& name) {
    Bytes bytes = encode(filled<M>());
    Result<M> back = decode<M>(bytes);
    ASSERT_TRUE(back) << name;
    EXPECT_EQ(bytes, encode(*back)) << name;
  });
}

TEST(Codec, ABodyDecodesToItsLastByteOrNotAtAll) {
  for_each_message([&]<class M>(const std::string& name) { check_every_truncation<M>(name, encode(filled<M>())); });
}

TEST(Codec, AHostileCountReservesNothing) {
  Bytes bytes;
  Writer(bytes).u32(0xFFFFFFFF).u32(0xFFFFFFFF);
  EXPECT_FALSE(decode<Hashes>(bytes));
  EXPECT_FALSE(decode<ExtentList>(bytes));
  EXPECT_FALSE(decode<DirEntries>(bytes));
}

TEST(Codec, TheFastPathWritesTheSameBytes) {
  Write write = filled<Write>();
  uint8_t body[kWriteBodyBytes];
  encode_write(write, body);
  EXPECT_EQ(encode(write), Bytes(body, body + sizeof body));
  Result<Write> back = decode_write(body);
  ASSERT_TRUE(back);
  EXPECT_EQ(encode(write), encode(*back));
  EXPECT_FALSE(decode_write(ByteSpan(body, sizeof body - 1)));

  Applied applied = filled<Applied>();
  uint8_t answer[kAppliedBodyBytes];
  encode_applied(applied, answer);
  EXPECT_EQ(encode(applied), Bytes(answer, answer + sizeof answer));
  Result<Applied> applied_back = decode_applied(answer);
  ASSERT_TRUE(applied_back);
  EXPECT_EQ(applied.coordinator, applied_back->coordinator);
  EXPECT_EQ(applied.loss_id, applied_back->loss_id);
  EXPECT_FALSE(decode_applied(ByteSpan(answer, 15)));
}

TEST(Codec, AFailureIsAStatusOnItsWay) {
  Status status = Status::with_errno(Code::kAlreadyExists, 39, "directory not empty");
  Status back = status_of(failure_of(status));
  EXPECT_EQ(back.code(), Code::kAlreadyExists);
  EXPECT_EQ(errno_of(back), 39);
  EXPECT_EQ(back.message(), "directory not empty");
  EXPECT_EQ(status_of(Failure{0, 0, "no code"}).code(), Code::kCorruption);
  EXPECT_EQ(status_of(Failure{200, 0, "unknown code"}).code(), Code::kCorruption);
  EXPECT_EQ(status_of(Failure{1, 0x80000000u, "wild errno"}).sys_errno(), 0);
}

}  // namespace
}  // namespace tidemark::wire
