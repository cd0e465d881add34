// What the replica can do: intake over HTTPS, one big apply, and reads at the ends of 10,000 points.
// Prints its figures; asserts their bars when asked to.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "replica/replica.h"
#include "shared/base/log.h"
#include "shared/net/pki.h"
#include "tests/unit/replica/batch_maker.h"
#include "tests/unit/replica/real_store.h"

namespace tidemark::replica {
namespace {

// Bars hold for an optimized build on a quiet machine: TIDEMARK_SPEED_BARS=1 asserts them.
const bool kAssertBars = std::getenv("TIDEMARK_SPEED_BARS") != nullptr;
const Uuid kA = test_uuid(1);
using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Half of each unit random, half zeros: compresses by half.
Bytes half_compressible(uint64_t seed, size_t bytes) {
  Bytes out = pattern(seed, bytes);
  for (size_t at = 0; at < bytes; at += 4096)
    std::fill_n(out.begin() + static_cast<ptrdiff_t>(at + 2048), 2048, uint8_t{0});
  return out;
}

class Speed : public ::testing::Test {
 protected:
  explicit Speed(TempDirectory::On on = TempDirectory::On::kDisk) : directory_(on), env_(real_options()) {
    log::configure({.level = log::Level::kWarning});
    open();
  }
  ~Speed() override { close(); }
  void open() {
    auto opened =
        Replica::open(env_, {.directory = directory_.path() + "/state", .cluster = kTestCluster, .node = "replica1"});
    TM_CHECK(opened.is_ok(), opened.status().message().c_str());
    replica_ = std::move(*opened);
  }
  void close() {
    bool closed = false;
    replica_->close([&] { closed = true; });
    env_.run_until([&] { return closed; }, std::chrono::seconds(60));
    replica_.reset();
  }
  void put(const BatchMaker& maker, BatchMaker::Made made) {
    bool done = false;
    for (uint32_t part = 0; part < made.parts.size(); ++part) {
      PartName name{maker.source(), maker.generation(), made.number, part};
      const Sha256 digest = journal::sha256(made.parts[part]);
      done = false;
      replica_->intake().put(name, net::Role::kHost, std::move(made.parts[part]), digest, [&](PutAnswer a) {
        EXPECT_EQ(a.status, 200) << a.reason;
        done = true;
      });
      ASSERT_TRUE(env_.run_until([&] { return done; }, std::chrono::seconds(60)));
    }
  }
  struct Milliseconds { double first = 0, best = 1e9; };
  // Of one read of a range at a point: the first time (chunks not decompressed yet), and the best of several.
  Milliseconds read_ms(PointId point, Extent range, Bytes* bytes = nullptr) {
    Milliseconds ms;
    for (int i = 0; i < 5; ++i) {
      bool done = false;
      const auto begin = Clock::now();
      auto target = replica_->reader().target(point, kA);
      TM_CHECK(target.is_ok(), "target");
      replica_->reader().read(*target, range, false, [&](Result<ReadResult> r) {
        TM_CHECK(r.is_ok() && r->damaged.empty(), "read");
        if (bytes != nullptr) *bytes = std::move(r->bytes);
        done = true;
      });
      env_.run_until([&] { return done; }, std::chrono::seconds(60));
      const double took = seconds_since(begin) * 1e3;
      if (i == 0) ms.first = took;
      ms.best = std::min(ms.best, took);
    }
    return ms;
  }

  TempDirectory directory_;
  io::RealEnv env_;
  std::unique_ptr<Replica> replica_;
};
class SpeedInMemory : public Speed {
 protected:
  SpeedInMemory() : Speed(TempDirectory::On::kMemory) {}
};

TEST_F(SpeedInMemory, OneMebibyteAtTheOldestAndNewestOfTenThousandPoints) {
  constexpr uint64_t kPoints = 10000, kSize = 8ull << 20, kUnits = kSize / 4096;
  std::mt19937_64 random(1);
  BatchMaker host("host1");
  Bytes whole = half_compressible(0, kSize);
  const Bytes oldest = whole;
  Piece all{.offset = 0, .data = whole};
  put(host, host.make({{.image = kA, .size = kSize, .pieces = {all}}}, {create_mark(1, "host1", 2, kA, "a.img")}));
  for (uint64_t p = 2; p <= kPoints; ++p) {
    SliceSpec s{.image = kA, .size = kSize};
    for (uint64_t at = random() % 300; at < kUnits; at += 200 + random() % 400) {
      s.pieces.push_back({.offset = at * 4096, .data = half_compressible(random(), 4096)});
      std::copy(s.pieces.back().data.begin(), s.pieces.back().data.end(),
                whole.begin() + static_cast<ptrdiff_t>(at * 4096));
    }
    put(host, host.make({s}));
  }
  Bytes first, last;
  const double restart_ms = [&] {
    close();
    const auto begin = Clock::now();
    open();
    return seconds_since(begin) * 1e3;
  }();
  const Milliseconds newest = read_ms(PointId(kPoints), {2 << 20, 1 << 20}, &last);
  const Milliseconds oldest_ms = read_ms(PointId(1), {2 << 20, 1 << 20}, &first);
  const Milliseconds middle = read_ms(PointId(kPoints / 2), {5 << 20, 1 << 20});
  EXPECT_TRUE(std::equal(first.begin(), first.end(), oldest.begin() + (2 << 20)));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), whole.begin() + (2 << 20)));
  auto usage = replica_->store().usage();
  std::printf(
      "FIGURE replica read 1 MiB of 10000 points, first and again: oldest %.2f and %.2f ms, middle %.2f and %.2f ms, "
      "newest %.2f and %.2f ms; restart %.1f ms; index %.1f MiB\n",
      oldest_ms.first, oldest_ms.best, middle.first, middle.best, newest.first, newest.best, restart_ms,
      usage ? static_cast<double>(usage->used_bytes) / (1 << 20) : 0.0);
  if (kAssertBars) {
    EXPECT_LT(oldest_ms.best, 50);
    EXPECT_LT(newest.best, 50);
  }
}

TEST_F(Speed, AppliesTwentyFiveThousandSmallExtents) {
  std::mt19937_64 random(2);
  BatchMaker host("host1");
  constexpr uint64_t kSize = 20ull << 30;
  std::map<uint64_t, bool> units;
  for (int batch = 0; batch < 3; ++batch) {
    units.clear();
    while (units.size() < 25000) units[random() % (kSize / 8192) * 2] = true;   // never adjacent
    SliceSpec s{.image = kA, .size = kSize};
    const Bytes same = half_compressible(static_cast<uint64_t>(batch), 4096);
    for (const auto& [unit, written] : units) s.pieces.push_back({.offset = unit * 4096, .data = same});
    std::vector<wire::Mark> marks;
    if (batch == 0) marks.push_back(create_mark(1, "host1", 2, kA, "a.img"));
    auto made = host.make({s}, marks, "", 3);
    const double before = replica_->intake().counters().apply_seconds;
    put(host, std::move(made));
    std::printf("FIGURE replica applies 25000 extents of 4 KiB over 20 GiB: %.3f s (with its commit)\n",
                replica_->intake().counters().apply_seconds - before);
  }
}

// A sender in a thread of its own, as another machine would be; both share this machine's processors.
TEST_F(Speed, IntakeOverHttps) {
  const std::string pki = directory_.path() + "/pki";
  ASSERT_TRUE(net::pki::init_authority(pki, {.cluster = kTestCluster}).is_ok());
  auto own = net::pki::issue(
      {.authority_directory = pki, .node = "replica1", .role = net::Role::kReplica, .names = {"127.0.0.1"}});
  auto theirs =
      net::pki::issue({.authority_directory = pki, .node = "host1", .role = net::Role::kHost, .names = {"127.0.0.1"}});
  ASSERT_TRUE(own.is_ok() && theirs.is_ok());
  auto server =
      env_.network().serve_http({.tls = *own, .roles_accepted = {net::Role::kHost}, .address = {"127.0.0.1", 0}},
                                [this](net::HttpRequest request, Callback<net::HttpResponse> reply) {
                                  replica_->handle(std::move(request), std::move(reply));
                                });
  ASSERT_TRUE(server.is_ok());
  BatchMaker host("host1");
  constexpr uint64_t kPartBytes = 40ull << 20;
  constexpr int kBatches = 8, kParts = 3;
  std::vector<BatchMaker::Made> batches;
  const Bytes bytes = half_compressible(1, kParts * kPartBytes);
  for (int b = 0; b < kBatches; ++b) {
    SliceSpec s{.image = kA, .size = 4ull << 30};
    for (int part = 0; part < kParts; ++part) {
      const auto begin = bytes.begin() + static_cast<ptrdiff_t>(static_cast<uint64_t>(part) * kPartBytes);
      s.pieces.push_back({.offset = (static_cast<uint64_t>(b) * kParts + static_cast<uint64_t>(part)) * kPartBytes,
                          .data = Bytes(begin, begin + kPartBytes)});
    }
    std::vector<wire::Mark> marks;
    if (b == 0) marks.push_back(create_mark(1, "host1", 2, kA, "a.img"));
    batches.push_back(host.make({s}, marks, "", kParts));
  }
  std::atomic<bool> done{false};
  double elapsed = 0;
  const uint16_t port = (*server)->port();
  std::thread sender([&] {
    io::RealEnv env(real_options());
    auto client = env.network().http_client({.url = "https://127.0.0.1:" + std::to_string(port), .tls = *theirs});
    TM_CHECK(client.is_ok(), "client");
    const auto begin = Clock::now();
    for (const auto& made : batches) {
      int answered = 0;
      for (int part = 0; part < kParts; ++part) {   // side by side, as the shipper does
        net::HttpRequest request{.method = "PUT",
                                 .target = "/v1/batches/host1/" + host.generation().to_string() + "/" +
                                           std::to_string(made.number.value) + "/" + std::to_string(part)};
        request.body = made.parts[static_cast<size_t>(part)];
        request.headers["x-tidemark-digest"] = to_hex(journal::sha256(request.body));
        (*client)->request(std::move(request), [&](Result<net::HttpResponse> r) {
          TM_CHECK(r.is_ok() && r->status == 200, "put");
          ++answered;
        });
      }
      env.run_until([&] { return answered == kParts; }, std::chrono::seconds(60));
    }
    elapsed = seconds_since(begin);
    done = true;
  });
  env_.run_until([&] { return done.load(); }, std::chrono::seconds(240));
  sender.join();
  const double guest = static_cast<double>(kBatches) * kParts * kPartBytes / 1e6;
  std::printf(
      "FIGURE replica intake over HTTPS: %.0f MB of guest bytes, half compressible, durable and applied in %.2f s: "
      "%.0f MB/s\n",
      guest, elapsed, guest / elapsed);
  if (kAssertBars) {
    EXPECT_GT(guest / elapsed, 100);
  }
  EXPECT_EQ(replica_->reader().newest().value, static_cast<uint64_t>(kBatches));
  server->reset();
}

}  // namespace
}  // namespace tidemark::replica
