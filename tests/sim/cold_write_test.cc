// The life of one cold write, cut short at every operation on files and stores of the host and of the shared node.
//
// Held against it: as long as the write is unanswered, no copy holds a byte of it in a region that is not durably dirty;
// at any crash, where the copies differ the region is durably dirty; after recovery the copies are equal and hold what
// was acknowledged. The oracle finds the write's sectors in the bricks' files by their contents alone.
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "fs/verifier.h"
#include "shared/base/log.h"
#include "tests/repeat.h"
#include "tests/sim/nodes.h"

namespace tidemark::sim {
namespace {

using std::chrono::seconds;

constexpr uint64_t kRegion = 64 << 10, kImageBytes = 4 * kRegion, kSector = 512;
// Across a boundary of regions and of the shared node's stripes.
constexpr Extent kColdWrite{kRegion - 12288, 24576};
constexpr uint64_t kOld = 1, kNew = 2;   // generations of content

void fill(uint64_t generation, Extent extent, MutableByteSpan out) {
  for (uint64_t at = 0; at < extent.length; at += 16) {
    store_le<uint64_t>(out.data() + at, 0xC01D'0000'0000'0000ull | generation);
    store_le<uint64_t>(out.data() + at + 8, (extent.offset + at) / kSector);
  }
}

using Sectors = std::map<uint64_t, uint64_t>;   // sector of the image -> generation found

Sectors find_sectors(World& world, const std::string& node) {
  Sectors out;
  std::map<std::string, Bytes> files = world.files(node, "/brick1");
  files.merge(world.files(node, "/brick2"));
  for (const auto& [path, bytes] : files) {
    for (uint64_t at = 0; at + kSector <= bytes.size(); at += kSector) {
      uint64_t tag = load_le<uint64_t>(bytes.data() + at), sector = load_le<uint64_t>(bytes.data() + at + 8);
      if (tag >> 48 != 0xC01D) continue;
      Bytes whole(kSector);
      fill(tag & 0xffff, {sector * kSector, kSector}, whole);
      if (std::equal(whole.begin(), whole.end(), bytes.begin() + static_cast<ptrdiff_t>(at))) out[sector] = tag & 0xffff;
    }
  }
  return out;
}

std::set<uint64_t> dirty_regions(World& world) {
  std::set<uint64_t> out;
  for (const auto& [key, bitmap] : world.committed("host1", "/state/drl", "regions")) {
    for (uint64_t i = 0; i < bitmap.size() * 8; ++i) {
      if (bitmap[i / 8] >> (i % 8) & 1) out.insert(i);
    }
  }
  return out;
}

struct Cut {
  std::string node = "host1";    // whose operations are counted
  bool at_commits = false;
  uint64_t nth = 0;              // 0: never
  Crash kind = Crash::kKill;
  bool both = false;             // the other machine falls in the same moment
};

std::string describe(const Cut& cut, uint64_t seed) {
  return "seed " + std::to_string(seed) + ": " + cut.node + (cut.at_commits ? " commit " : " file operation ") +
         std::to_string(cut.nth) + (cut.kind == Crash::kKill ? ", killed" : ", power cut") + (cut.both ? ", both" : "");
}

class ColdWrite {
 public:
  explicit ColdWrite(uint64_t seed) : world_({.seed = seed}) {
    std::array<uint8_t, 16> id;
    world_.random().fill(id);
    cluster_ = Uuid::from_random(id);
    world_.add_node({.name = "shared1", .cluster = cluster_, .role = net::Role::kShared});
    world_.add_node({.name = "host1", .cluster = cluster_, .role = net::Role::kHost});
  }
  ~ColdWrite() {
    for (const char* node : {"host1", "shared1"}) if (world_.running(node)) world_.crash(node, Crash::kKill);
    engine_.reset();
    shared_.reset();
  }

  // An image full of old data, durable, every region clean again.
  void prepare() {
    start("shared1");
    start("host1");
    create();
    write(kOld, {0, kImageBytes});
    run_to("the old data's answer", [&] { return answered_; });
    flush();
    run_to("the old data's flush", [&] { return flushed_; });
    run_to("all regions are clean", [&] { return dirty_regions(world_).empty(); });
    answered_ = flushed_ = false;
    early_ = {};
    file_ops_ = {world_.file_operations("host1"), world_.file_operations("shared1")};
    commits_ = {world_.commits("host1"), world_.commits("shared1")};
  }

  // The write, its flush, and the regions' way back to clean; or up to the crash.
  void live(const Cut& cut) {
    cut_ = cut;
    if (cut.nth != 0) world_.inject(cut.node, CrashPoint{cut.nth, cut.at_commits, kMutatingFileOps, cut.kind});
    write(kNew, kColdWrite);
    while (!crashed() && !answered_ && ok()) {
      world_.step();
      look_for_unmarked();
    }
    if (!crashed() && ok()) flush();
    run_to("the flush", [&] { return crashed() || flushed_; });
    run_to("the regions are clean again", [&] { return crashed() || dirty_regions(world_).empty(); });
    world_.clear_faults(cut.node);
    crashed_ = crashed();
    if (crashed_) fall();
  }

  // Empty: the copies are equal, hold what they must, and the log covered every difference.
  std::string recover() {
    bool host_went_on = world_.running("host1");
    start("shared1");
    start("host1");
    if (host_went_on && crashed_) world_.run_for(seconds(20));   // it finds out that its link has gone
    run_to("recovery", [&] { return engine_->healthy(); });
    open();
    run_to("the image is open again", [&] { return handle_.has_value(); });
    check_content();
    bool answered = false;
    if (ok()) {
      engine_->verifier().start({}, [](uint64_t, uint64_t) {}, [&](Result<std::string> r) {
        answered = true;
        if (!r) fail("verify: " + r.status().to_string());
        else if (!r->starts_with("{\"equal\":true")) fail("verify: " + *r);
      });
    }
    run_to("verify", [&] { return answered; });
    if (ok() && find_sectors(world_, "host1") != find_sectors(world_, "shared1")) fail("the bricks differ");
    return failure_;
  }

  uint64_t file_operations(const std::string& node) { return world_.file_operations(node) - file_ops_[node == "host1" ? 0 : 1]; }
  uint64_t commits(const std::string& node) { return world_.commits(node) - commits_[node == "host1" ? 0 : 1]; }
  const std::string& early() const { return early_; }       // what the instant checks saw
  const std::string& failure() const { return failure_; }
  bool crashed() { return !world_.running("host1") || !world_.running("shared1"); }
  World& world() { return world_; }

 private:
  bool ok() const { return failure_.empty(); }
  void fail(const std::string& what) { if (ok()) failure_ = what; }
  void run_to(const std::string& what, UniqueFunction<bool()> done) {
    if (!ok()) return;
    if (!world_.run_until([&] { return !ok() || done(); }, seconds(120))) fail("never came about: " + what);
  }

  void start(const std::string& node) {
    if (world_.running(node)) return;
    SimEnv& env = world_.start(node);
    if (node == "shared1") {
      shared_.reset();
      auto opened = open_shared(env, {.cluster = cluster_, .region_bytes = kRegion, .ships = false,
                                      .on_fatal = [this](const Status& s) { fail("shared node: " + s.to_string()); }});
      if (!opened) return fail("shared node: " + opened.status().to_string());
      shared_ = std::move(*opened);
      return;
    }
    engine_.reset();
    handle_.reset();
    auto opened = open_host(env, {.cluster = cluster_, .region_bytes = kRegion, .ships = false});
    if (!opened) return fail("host: " + opened.status().to_string());
    engine_ = std::move(*opened);
    engine_->start();
  }

  void create() {
    wire::Create request;
    request.parent = InodeNumber(1);
    request.name = "cold.img";
    request.mode = 0600;
    bool sized = false;
    engine_->create(std::move(request), [&](Result<wire::Attr> attr) {
      if (!attr) return fail("create: " + attr.status().to_string());
      fs::SetAttr grow;
      grow.set_size = true;
      grow.size = kImageBytes;
      engine_->setattr(attr->inode, grow, [&](Result<wire::Attr> r) {
        if (!r) return fail("resize: " + r.status().to_string());
        sized = true;
      });
    });
    run_to("the image's size", [&] { return sized; });
    open();
    run_to("the image is open", [&] { return handle_.has_value(); });
  }

  void open() {
    if (!ok()) return;
    engine_->lookup(InodeNumber(1), "cold.img", [this](Result<wire::Attr> attr) {
      if (!attr) return fail("lookup: " + attr.status().to_string());
      engine_->open_image(attr->inode, [this](Result<fs::HandleId> h) {
        if (!h) return fail("open: " + h.status().to_string());
        handle_ = *h;
      });
    });
  }

  void write(uint64_t generation, Extent extent) {
    if (!ok()) return;
    memory_.resize(extent.length + 4096);
    size_t pad = (4096 - reinterpret_cast<uintptr_t>(memory_.data()) % 4096) % 4096;
    MutableByteSpan data = MutableByteSpan(memory_).subspan(pad, extent.length);
    fill(generation, extent, data);
    engine_->write(*handle_, extent.offset, data, io::IoMode::kInline, [this](Result<size_t> n) {
      if (!n) return fail("write: " + n.status().to_string());
      answered_ = true;
    });
  }

  void flush() {
    if (!ok()) return;
    engine_->flush(*handle_, io::IoMode::kQueued, [this](Status s) {
      if (!s) return fail("flush: " + s.to_string());
      flushed_ = true;
    });
  }

  // While the write is unanswered: a byte of it anywhere means that its region is durably dirty.
  void look_for_unmarked() {
    if (answered_) return;
    std::set<uint64_t> dirty = dirty_regions(world_);
    for (const char* node : {"host1", "shared1"}) {
      for (auto [sector, generation] : find_sectors(world_, node)) {
        if (generation != kNew || dirty.contains(sector * kSector / kRegion)) continue;
        if (early_.empty()) early_ = std::string(node) + " holds sector " + std::to_string(sector) + " in a clean region";
      }
    }
  }

  // The rest of the crash, and what the machines' storage shows then.
  void fall() {
    for (const char* node : {"host1", "shared1"}) if (world_.running(node) && cut_.both) world_.crash(node, cut_.kind);
    look_for_unmarked();
    if (world_.running("shared1")) world_.run_for(seconds(1));   // what was on its way to it lands
    if (world_.running("host1")) return;                         // it goes on alone, or waits
    std::set<uint64_t> dirty = dirty_regions(world_);
    Sectors host = find_sectors(world_, "host1"), shared = find_sectors(world_, "shared1");
    for (uint64_t s = 0; s < kImageBytes / kSector && early_.empty(); ++s) {
      if (host[s] != shared[s] && !dirty.contains(s * kSector / kRegion))
        early_ = "the copies differ at sector " + std::to_string(s) + " in a clean region";
    }
  }

  void check_content() {
    if (!ok()) return;
    Bytes found(kImageBytes);
    bool read = false;
    engine_->read(*handle_, 0, found, io::IoMode::kQueued, [&](Result<size_t> n) {
      if (!n || *n != kImageBytes) return fail("read: " + n.status().to_string());
      read = true;
    });
    run_to("the image was read", [&] { return read; });
    // Acknowledged and flushed: it is there. Only acknowledged: it may be gone if both machines lost their power.
    bool must = flushed_ || (answered_ && !(cut_.both && cut_.kind == Crash::kPowerLoss));
    bool may_tear = cut_.both && cut_.kind == Crash::kPowerLoss && !flushed_;
    for (uint64_t s = 0; s < kImageBytes / kSector && ok(); ++s) {
      bool within = s * kSector >= kColdWrite.offset && s * kSector < kColdWrite.end();
      bool is[3] = {};
      for (uint64_t generation : {kOld, kNew}) {
        Bytes whole(kSector);
        fill(generation, {s * kSector, kSector}, whole);
        is[generation] = std::equal(whole.begin(), whole.end(), found.begin() + static_cast<ptrdiff_t>(s * kSector));
      }
      bool fine = within ? is[kNew] || (!must && (is[kOld] || may_tear)) : is[kOld];
      if (!fine) fail("sector " + std::to_string(s) + (within ? " of the write" : " beside it") + " is wrong");
    }
  }

  World world_;
  Uuid cluster_;
  std::unique_ptr<node::SharedNode> shared_;
  std::unique_ptr<fs::Engine> engine_;
  std::optional<fs::HandleId> handle_;
  Bytes memory_;
  Cut cut_;
  bool answered_ = false, flushed_ = false, crashed_ = false;
  std::array<uint64_t, 2> file_ops_{}, commits_{};
  std::string failure_, early_;
};

struct Sweep {
  uint64_t cuts = 0;
  std::vector<std::string> early, after;   // what the instant checks found; what was wrong after recovery
};

// One life of the write for each operation that it makes, until a life goes by without the crash being reached.
void sweep(uint64_t seed, Cut cut, bool plant, Sweep& out) {
  for (cut.nth = 1; cut.nth < 500; cut.nth += repeat(1, 3)) {
    ColdWrite run(seed + cut.nth * 1000);
    run.prepare();
    if (plant) run.world().answer_commits_early("host1", "/drl");
    run.live(cut);
    bool crashed = run.crashed();
    if (!run.early().empty()) out.early.push_back(describe(cut, seed) + ": " + run.early());
    std::string wrong = run.recover();
    if (!wrong.empty()) out.after.push_back(describe(cut, seed) + ": " + wrong);
    if (!crashed) return;
    ++out.cuts;
  }
  out.after.push_back(describe(cut, seed) + ": no end of operations");
}

class ColdWriteTest : public testing::Test {
 protected:
  void SetUp() override {
    log::set_sink_for_testing([](log::Level, std::string_view, std::string_view line) {
      if (std::getenv("TIDEMARK_SIM_LOG") != nullptr) std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
    });
  }
  void TearDown() override { log::set_sink_for_testing(nullptr); }
};

TEST_F(ColdWriteTest, TheDirtyMarkIsDurableBeforeEitherCopyChanges) {
  Sweep found;
  const uint64_t seeds = repeat(3, 1);
  for (uint64_t seed = 7; seed < 7 + seeds; ++seed)
    for (const char* node : {"host1", "shared1"})
      for (bool at_commits : {false, true})
        for (Crash kind : {Crash::kKill, Crash::kPowerLoss})
          for (bool both : {false, true}) sweep(seed, {node, at_commits, 0, kind, both}, false, found);
  EXPECT_TRUE(found.early.empty()) << found.early.size() << " cuts, the first: " << found.early.front();
  EXPECT_TRUE(found.after.empty()) << found.after.size() << " cuts, the first: " << found.after.front();
  EXPECT_GT(found.cuts, repeat(50, 15) * seeds);
}

TEST_F(ColdWriteTest, TM_UNSANITIZED(AMarkThatIsSetTooLateIsCaught)) {
  Sweep found;
  for (uint64_t seed = 7; seed < 12; ++seed)
    for (Crash kind : {Crash::kKill, Crash::kPowerLoss}) sweep(seed, {"host1", false, 0, kind, false}, true, found);
  std::printf("%llu cuts: %zu saw it at once, %zu after recovery\n", static_cast<unsigned long long>(found.cuts), found.early.size(), found.after.size());
  EXPECT_FALSE(found.early.empty()) << "no cut of " << found.cuts << " showed a changed copy in a clean region";
  EXPECT_FALSE(found.after.empty()) << "no cut of " << found.cuts << " left the copies different";
}

}  // namespace
}  // namespace tidemark::sim
