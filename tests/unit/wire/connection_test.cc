#include "shared/wire/connection.h"

#include <gtest/gtest.h>

#include <random>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/io/real_env.h"
#include "tests/unit/wire/fake_stream.h"

namespace tidemark::wire {
namespace {

class ConnectionTest : public testing::Test {
 protected:
  ConnectionTest() {
    log::set_sink_for_testing(
        [this](log::Level, std::string_view, std::string_view line) { log_ += std::string(line) + "\n"; });
    connect();
  }
  ~ConnectionTest() override { log::set_sink_for_testing(nullptr); }

  void connect() {
    wire_ = std::make_shared<FakeStream::Wire>();
    link_ = std::make_unique<Connection>(env_, std::make_unique<FakeStream>(wire_, "host1"), pool_);
    link_->start({.on_request =
                      [this](Request r) {
                        bodies_.emplace_back(r.body.begin(), r.body.end());
                        requests_.push_back(std::move(r));
                      },
                  .on_notify = [this](Type type, ByteSpan) { notified_.push_back(type); },
                  .on_close = [this](Status s) { closes_.push_back(std::move(s)); }});
  }
  void arrive(ByteSpan bytes) { wire_->stream->arrive(bytes); }
  uint64_t sent_id(size_t at = 0) const { return load_le<uint64_t>(wire_->sent.data() + at + 8); }
  template <class M>
  void answer(Type type, uint64_t id, const M& m, ByteSpan payload = {}, uint16_t flags = kResponseFlag) {
    arrive(encode_frame(type, flags, id, encode(m), payload));
  }

  io::RealEnv env_;
  std::shared_ptr<PayloadPool> pool_ = PayloadPool::make();  // shared with the payloads
  std::shared_ptr<FakeStream::Wire> wire_;                   // shared with the stream
  std::unique_ptr<Connection> link_;
  std::vector<Request> requests_;
  std::vector<Bytes> bodies_;
  std::vector<Type> notified_;
  std::vector<Status> closes_;
  std::string log_;
};

Write some_write() { return {Uuid{}, Epoch(3), {Incarnation(1), Counter(9)}, 4096, 0}; }

TEST_F(ConnectionTest, AWriteIsAnsweredByItsId) {
  Bytes data(4096, 5);
  std::vector<uint64_t> answers;
  for (int i = 0; i < 3; ++i) {
    link_->send_write(some_write(), data, digest64(data), [&](Result<Applied> a) {
      ASSERT_TRUE(a);
      answers.push_back(a->coordinator.value);
    });
  }
  size_t frame = kFrameHeaderBytes + kWriteBodyBytes + data.size();
  ASSERT_EQ(wire_->sent.size(), 3 * frame);
  EXPECT_EQ(ByteSpan(wire_->sent).first(frame).size(), frame);
  EXPECT_EQ(encode_frame(Type::kWrite, 0, sent_id(), encode(some_write()), data),
            Bytes(wire_->sent.begin(), wire_->sent.begin() + static_cast<ptrdiff_t>(frame)));
  for (size_t i : {2, 0, 1}) answer(Type::kWrite, sent_id(i * frame), Applied{CoordinatorSequence(i), LossId(1)});
  EXPECT_EQ(answers, (std::vector<uint64_t>{2, 0, 1}));
  EXPECT_EQ(link_->requests_unanswered(), 0u);
}

TEST_F(ConnectionTest, FramesArriveInPiecesOfAnySize) {
  Bytes payload(10000);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<uint8_t>(i * 7);
  Bytes stream;
  for (uint64_t id = 1; id <= 4; ++id) {
    Bytes frame =
        encode_frame(Type::kWrite, 0, id, encode(some_write()), ByteSpan(payload).first(id == 3 ? 0 : 2500 * id));
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  for (size_t piece : {1u, 39u, 40u, 41u, 100u, 4096u, 100000u}) {
    requests_.clear();
    for (size_t at = 0; at < stream.size(); at += piece) {
      arrive(ByteSpan(stream).subspan(at, std::min(piece, stream.size() - at)));
    }
    ASSERT_EQ(requests_.size(), 4u) << "pieces of " << piece;
    for (Request& r : requests_) {
      size_t size = r.id == 3 ? 0 : 2500 * r.id;
      ASSERT_EQ(r.payload.size(), size);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(r.payload.data()) % 4096, 0u);
      EXPECT_TRUE(std::equal(payload.begin(), payload.begin() + static_cast<ptrdiff_t>(size), r.payload.data()));
    }
    EXPECT_EQ(bodies_.back(), encode(some_write()));
  }
}

TEST_F(ConnectionTest, ARequestSaysWhetherItCameAlone) {
  Bytes one = encode_frame(Type::kFlush, 0, 1, encode(Flush{}), {});
  Bytes two = one;
  two.insert(two.end(), one.begin(), one.end());
  arrive(one);
  arrive(two);
  ASSERT_EQ(requests_.size(), 3u);
  EXPECT_TRUE(requests_[0].alone);
  EXPECT_FALSE(requests_[1].alone);
  EXPECT_FALSE(requests_[2].alone);
}

TEST_F(ConnectionTest, AFailureComesBackAsItsStatus) {
  Status got;
  link_->request<Attr>(Type::kLookup, Lookup{InodeNumber(1), "x"}, [&](Result<Attr> a) { got = a.status(); });
  answer(Type::kLookup, sent_id(), failure_of(Status::from_errno(ENOENT, "x")), {}, kResponseFlag | kErrorFlag);
  EXPECT_EQ(got.code(), Code::kNotFound);
  EXPECT_EQ(errno_of(got), ENOENT);
}

TEST_F(ConnectionTest, ClosingFailsEveryRequestExactlyOnce) {
  int failed = 0;
  Bytes data(512, 1);
  for (int i = 0; i < 5; ++i) {
    link_->send_write(some_write(), data, digest64(data), [&](Result<Applied> a) {
      EXPECT_EQ(a.status().code(), Code::kUnavailable);
      ++failed;
    });
    link_->request<Grant>(Type::kAcquire, Acquire{}, [&](Result<Grant> g) {
      EXPECT_EQ(g.status().code(), Code::kUnavailable);
      ++failed;
    });
  }
  wire_->stream->end(Status(Code::kUnavailable, "reset by peer"));
  EXPECT_EQ(failed, 10);
  ASSERT_EQ(closes_.size(), 1u);
  wire_->stream->end(Status(Code::kUnavailable, "again"));
  EXPECT_EQ(failed, 10);
  EXPECT_EQ(closes_.size(), 1u);
  link_->request<Grant>(Type::kAcquire, Acquire{}, [&](Result<Grant> g) {
    EXPECT_EQ(g.status().code(), Code::kUnavailable);
    ++failed;
  });
  EXPECT_EQ(failed, 11);
}

TEST_F(ConnectionTest, RequestsInFlightAreBounded) {
  int failed = 0;
  for (uint32_t i = 0; i < limits::kFrameRequestsMax + 3; ++i) {
    link_->send_request(Type::kFlush, Flush{}, {}, [&](Result<Answer> a) { failed += a ? 0 : 1; });
  }
  EXPECT_EQ(failed, 3);
  EXPECT_EQ(link_->requests_unanswered(), limits::kFrameRequestsMax);
}

TEST_F(ConnectionTest, APeerThatAsksWithoutEndIsCut) {
  Bytes frame = encode_frame(Type::kFlush, 0, 1, encode(Flush{}), {});
  for (uint32_t i = 0; i <= limits::kFrameRequestsMax && !wire_->closed; ++i) arrive(frame);
  ASSERT_TRUE(wire_->closed);
  EXPECT_EQ(requests_.size(), limits::kFrameRequestsMax);
}

TEST_F(ConnectionTest, GarbageClosesAndNamesThePeer) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    connect();
    log_.clear();
    requests_.clear();
    Bytes garbage(64 + random() % 4000);
    for (uint8_t& b : garbage) b = static_cast<uint8_t>(random());
    arrive(garbage);
    ASSERT_TRUE(wire_->closed);
    EXPECT_EQ(wire_->closed->code(), Code::kCorruption);
    EXPECT_NE(log_.find("host host1"), std::string::npos) << log_;
    EXPECT_TRUE(requests_.empty());
  }
}

TEST_F(ConnectionTest, NothingOfADamagedFrameIsApplied) {
  Bytes good = encode_frame(Type::kWrite, 0, 7, encode(some_write()), Bytes(5000, 1));
  for (size_t at : {size_t{0}, size_t{9}, size_t{17}, size_t{21}, size_t{25}, size_t{33}, size_t{44}, size_t{90},
                    good.size() - 1}) {
    connect();
    requests_.clear();
    Bytes bad = good;
    bad[at] ^= 0x10;
    arrive(bad);
    arrive(Bytes(1u << 21, 0));
    EXPECT_TRUE(wire_->closed) << "byte " << at;
    EXPECT_TRUE(requests_.empty()) << "byte " << at;
  }
}

TEST_F(ConnectionTest, AFrameOf4GiBIsRefusedByItsHeaderAlone) {
  Bytes frame = encode_frame(Type::kWrite, 0, 7, encode(some_write()), {});
  store_le(frame.data() + 20, 0xFFFFFFFFu);
  arrive(ByteSpan(frame).first(kFrameHeaderBytes));
  ASSERT_TRUE(wire_->closed);
  EXPECT_NE(log_.find("4294967295"), std::string::npos) << log_;
}

TEST_F(ConnectionTest, ATruncatedFrameAppliesNothing) {
  Bytes frame = encode_frame(Type::kWrite, 0, 7, encode(some_write()), Bytes(5000, 1));
  for (size_t size = 0; size < frame.size(); size += 13) {
    connect();
    arrive(ByteSpan(frame).first(size));
    wire_->stream->end(Status(Code::kUnavailable, "eof"));
  }
  EXPECT_TRUE(requests_.empty());
}

TEST_F(ConnectionTest, AnAnswerToNoRequestCloses) {
  answer(Type::kFlush, 12345, Flushed{});
  EXPECT_TRUE(wire_->closed);
  connect();
  link_->send_request(Type::kFlush, Flush{}, {}, [](Result<Answer>) {});
  answer(Type::kRead, sent_id(), Flushed{});
  EXPECT_TRUE(wire_->closed) << "answer of another type";
  connect();
  int calls = 0;
  link_->send_request(Type::kFlush, Flush{}, {}, [&](Result<Answer>) { ++calls; });
  uint64_t id = sent_id();
  answer(Type::kFlush, id, Flushed{});
  EXPECT_FALSE(wire_->closed);
  answer(Type::kFlush, id, Flushed{});
  EXPECT_TRUE(wire_->closed) << "answered twice";
  EXPECT_EQ(calls, 1);
}

TEST_F(ConnectionTest, ABodyThatIsNotItsMessageCloses) {
  arrive(encode_frame(Type::kFlush, 0, 1, Bytes(23, 0), {}));
  ASSERT_EQ(requests_.size(), 1u);
  Flush flush;
  EXPECT_FALSE(link_->decode_or_close(Type::kFlush, bodies_.back(), flush));
  EXPECT_TRUE(wire_->closed);
  EXPECT_NE(log_.find("flush"), std::string::npos);
}

TEST_F(ConnectionTest, MayBeDestroyedFromItsCallbacks) {
  link_->send_request(Type::kFlush, Flush{}, {}, [&](Result<Answer>) { link_.reset(); });
  Bytes twice = encode_frame(Type::kFlush, kResponseFlag, sent_id(), encode(Flushed{}), {});
  Bytes more = encode_frame(Type::kFlush, 0, 1, encode(Flush{}), {});
  twice.insert(twice.end(), more.begin(), more.end());
  arrive(twice);
  EXPECT_EQ(link_, nullptr);
  EXPECT_TRUE(requests_.empty());
  env_.turn({});
  EXPECT_EQ(wire_->stream, nullptr);
}

TEST_F(ConnectionTest, PingsAreAnsweredAndMeasured) {
  arrive(encode_frame(Type::kPing, 0, 3, encode(Ping{77}), {}));
  EXPECT_EQ(wire_->sent, encode_frame(Type::kPing, kResponseFlag, 3, encode(Ping{77}), {}));
  wire_->sent.clear();
  link_->keep_alive(std::chrono::hours(1), std::chrono::hours(1));
  answer(Type::kPing, sent_id(), Ping{1});
  EXPECT_GT(link_->round_trip().count(), 0);
}

// Bytes may have lain on the way, or unread: only what answers this end, or follows upon its answer, says since when.
TEST_F(ConnectionTest, APeerIsHeardForCertainByWhatItCannotHaveSentBefore) {
  auto ping = [&](uint64_t id) { arrive(encode_frame(Type::kPing, 0, id, encode(Ping{id}), {})); };
  const io::BootTime begun = link_->heard_for_certain();
  const io::BootTime before = env_.now();
  ping(1);
  const io::BootTime after = env_.now();
  arrive(encode_frame(Type::kFlush, 0, 2, encode(Flush{}), {}));
  EXPECT_EQ(link_->heard_for_certain(), begun) << "all that may be old";
  ping(3);
  const io::BootTime first = link_->heard_for_certain();
  EXPECT_TRUE(first >= before && first <= after) << "it has had the answer to its first one";
  ping(4);
  EXPECT_GT(link_->heard_for_certain(), after);

  link_->keep_alive(std::chrono::hours(1), std::chrono::hours(1));
  const uint64_t own = sent_id(wire_->sent.size() - kFrameHeaderBytes - encode(Ping{}).size());
  ping(5);
  const io::BootTime asked = link_->heard_for_certain();
  answer(Type::kPing, own, Ping{});
  EXPECT_GT(link_->heard_for_certain(), asked);
}

TEST_F(ConnectionTest, ASilentPeerIsCut) {
  link_->keep_alive(std::chrono::milliseconds(1), std::chrono::milliseconds(20));
  EXPECT_TRUE(env_.run_until([&] { return wire_->closed.has_value(); }, std::chrono::seconds(10)));
  EXPECT_EQ(wire_->closed->code(), Code::kUnavailable);
}

TEST(PayloadPool, BuffersAreUsedAgainAndBounded) {
  auto pool = PayloadPool::make();
  const uint8_t* first;
  {
    Payload p = pool->take(100);
    first = p.data();
  }
  Payload p = pool->take(4096);
  EXPECT_EQ(p.data(), first);
  EXPECT_EQ(p.size(), 4096u);
  Payload moved = std::move(p);
  EXPECT_EQ(p.size(), 0u);
  EXPECT_EQ(moved.data(), first);
}

// What is asked or answered is made up of what users said: too long, it ends the connection, and not the daemon.
// Whoever waits for something hears of it.
TEST_F(ConnectionTest, AFrameOverItsBoundsClosesTheConnection) {
  const Bytes most(limits::kFrameBodyBytesMax), more(limits::kFrameBodyBytesMax + 1);
  for (const bool answers : {true, false}) {
    connect();
    log_.clear();
    closes_.clear();
    Status asked = Status::ok(), too_long = Status::ok();
    link_->request<Attr>(Type::kLookup, Lookup{InodeNumber(1), "x"}, [&](Result<Attr> a) { asked = a.status(); });
    wire_->sent.clear();
    requests_.clear();
    arrive(encode_frame(Type::kTakeover, 0, 1, encode(Takeover{"x"}), {}));
    ASSERT_EQ(requests_.size(), 1u);
    if (answers) link_->respond(Type::kTakeover, 1, ByteSpan(more));
    else link_->send_request(Type::kTakeover, ByteSpan(more), {}, [&](Result<Answer> a) { too_long = a.status(); });
    EXPECT_TRUE(wire_->sent.empty()) << "a part of it went out";
    ASSERT_TRUE(wire_->closed.has_value());
    EXPECT_FALSE(link_->is_open());
    EXPECT_NE(log_.find("frame_too_long"), std::string::npos) << log_;
    wire_->stream->end(*wire_->closed);
    EXPECT_EQ(asked.code(), Code::kUnavailable);
    EXPECT_EQ(too_long.code(), answers ? Code::kOk : Code::kUnavailable);
    EXPECT_EQ(closes_.size(), 1u);
  }
  connect();
  arrive(encode_frame(Type::kTakeover, 0, 1, encode(Takeover{"x"}), {}));
  link_->respond(Type::kTakeover, 1, ByteSpan(most));
  EXPECT_FALSE(wire_->closed.has_value());
}

}  // namespace
}  // namespace tidemark::wire
