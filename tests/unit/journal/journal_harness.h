// What the journal's tests stand on: a host in the simulator whose guest writes at random, obeying the
// order that fs/ obeys; a copy whose reads and writes take time; a replica that checks every batch and
// keeps each point; and a recorder that says what each point must be.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "journal/journal.h"
#include "journal/segment.h"
#include "shared/base/limits.h"
#include "shared/net/network.h"
#include "tests/sim/sim_env.h"

namespace tidemark::journal {

inline constexpr uint64_t kG = limits::kOrderGranule;

using Images = std::map<ImageId, Bytes>;

// Keeps what a real replica would have to: order, digests, history.
class FakeReplica {
 public:
  struct AtPoint {
    BatchNumber number;
    std::string name;
    Counter last;
    Incarnation incarnation;
    BatchKind kind;
    Images images;
    std::vector<wire::Mark> marks = {};                      // of this batch
    std::set<ImageId> changed = {};                          // by it
  };
  FakeReplica(sim::SimEnv& env, uint16_t port);

  void handle(net::HttpRequest request, Callback<net::HttpResponse> done);
  void take_silently(net::HttpRequest request);              // a PUT, whose answer is lost
  Images images;
  std::vector<AtPoint> points;
  std::vector<wire::Mark> marks;
  std::map<ImageId, wire::TenureParent> followed;            // as the newest batch that names the image says
  uint64_t expected = 1;
  Sha256 last_digest{};
  Uuid store;
  using Parts = std::map<uint32_t, std::pair<Sha256, Bytes>>;
  Parts parts;                                               // of the expected batch
  std::vector<Parts> aside;                                  // pieces, until the resync's end names their images
  std::map<uint64_t, std::map<uint32_t, Sha256>> known;      // of complete ones
  uint64_t puts = 0, conflicts = 0, pieces = 0;
  std::function<std::optional<net::HttpResponse>(const net::HttpRequest&)> interfere;
  std::vector<std::string> violations;
  bool hold_answers = false;                                 // to PUTs, which are taken
  std::vector<UniqueFunction<void()>> held;
  void release_answers();
  std::unique_ptr<net::HttpServer> server;
  sim::SimEnv* env;

 private:
  net::HttpResponse take(uint64_t number, uint32_t part, Bytes body, const std::string& digest);
  bool apply(uint64_t number, uint32_t parts_count);
  void lay(const SegmentReader& reader, const Bytes& file, const std::set<ImageId>& named);
};

// A copy in memory, with reads and writes that take time and tear.
class FakeCopy final : public BlockSource {
 public:
  explicit FakeCopy(sim::World& world) : world_(world) {}
  void read_block(const ImageId& image, Extent extent, Wanted wanted, MutableByteSpan out, Callback<Status> done) override;
  Images images;
  sim::SimEnv* env = nullptr;
  bool hold_reads = false;                          // staging stands still at a gate
  std::vector<UniqueFunction<void()>> held;
  uint32_t fail_reads = 0;                          // the next so many
  std::set<ImageId> cut;                            // images of which nothing can be read
  std::set<ImageId> away;                           // likewise, for as long as the shared node is away
  Images unfilled;                                  // what is read of these unless it is to be the newest
  uint64_t reads = 0;
  void open_gate();

 private:
  sim::World& world_;
};

class JournalTest : public testing::Test {
 protected:
  struct Op {
    ImageId image;
    RecordKind kind;
    Extent extent;        // kResize: new size
    uint64_t old_size = 0;
    Bytes data;
  };
  explicit JournalTest(const sim::WorldOptions& options = {});
  ~JournalTest() override;

  void open_journal();
  void start_shipping();
  void crash(sim::Crash kind);
  void reconcile_all();
  // One request of the guest; `done` when it is acknowledged.
  void submit(Op op, std::function<void()> done = {});
  Op random_op();
  // So many random requests, up to `depth` at a time. Returns when all are acknowledged.
  void run_load(int count, int depth);
  void wait_shipped();
  void expect_points_right();
  Images model_at(Incarnation incarnation, Counter last);
  Slot slot(const ImageId& image) { return slots_.at(image); }
  bool settle(std::function<bool()> done, int seconds = 60);
  static ImageId image_id(int n);
  void add_image(int n, uint64_t size);

  sim::World world_;
  Options options_;
  FakeCopy copy_;
  sim::SimEnv* env_ = nullptr;
  std::unique_ptr<FakeReplica> replica_;
  std::unique_ptr<Journal> journal_;
  std::map<ImageId, Slot> slots_;
  std::map<ImageId, uint64_t> sizes_;
  struct InFlight { ImageId image; Extent extent; };
  std::list<InFlight> in_flight_;
  // The recorder: per incarnation what there was at its beginning, and every request by counter.
  struct History { Images base; std::map<uint64_t, Op> ops; };
  std::map<uint64_t, History> history_;
  bool ship_ = true;
  wire::TenureParent parent_{Epoch(2), "host2", {Incarnation(1), Counter(5)}, 1};   // of every image's tenure
  Epoch tenure_{3};                                  // which begins with each opening
  size_t checked_ = 0;
  uint64_t generation_of_run_ = 0;

 private:
  struct Request;
  void step_dirty(std::shared_ptr<Request> r);
  void step_preserve(std::shared_ptr<Request> r);
  void step_write(std::shared_ptr<Request> r);
};

void apply_op(Images& images, const ImageId& image, RecordKind kind, Extent extent, const Bytes& data);

}  // namespace tidemark::journal
