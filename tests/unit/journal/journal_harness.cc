#include "tests/unit/journal/journal_harness.h"

#include <algorithm>

namespace tidemark::journal {
namespace {

constexpr uint16_t kReplicaPort = 7443;

Extent granules_of(Extent e) {
  uint64_t begin = e.offset / kG * kG, end = (e.end() + kG - 1) / kG * kG;
  return {begin, end - begin};
}

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> out;
  for (size_t at = 0; at < path.size();) {
    size_t end = path.find('/', at + 1);
    if (end == std::string::npos) end = path.size();
    out.push_back(path.substr(at + 1, end - at - 1));
    at = end;
  }
  return out;
}

}  // namespace

void apply_op(Images& images, const ImageId& image, RecordKind kind, Extent extent, const Bytes& data) {
  Bytes& bytes = images[image];
  switch (kind) {
    case RecordKind::kResize: bytes.resize(extent.offset); break;
    case RecordKind::kWrite: std::copy(data.begin(), data.end(), bytes.begin() + static_cast<ptrdiff_t>(extent.offset)); break;
    case RecordKind::kZero: case RecordKind::kDiscard:
      std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(extent.offset), extent.length, 0);
      break;
    case RecordKind::kMark: break;
  }
}

// ---- the replica --------------------------------------------------------------------------------

FakeReplica::FakeReplica(sim::SimEnv& e, uint16_t port) : store(e.random_uuid()), env(&e) {
  net::HttpServerOptions o;
  o.tls = net::TlsFiles{};
  o.roles_accepted = {net::Role::kHost, net::Role::kShared};
  o.address = {"replica", port};
  auto served = e.network().serve_http(o, [this](net::HttpRequest r, Callback<net::HttpResponse> done) { handle(std::move(r), std::move(done)); });
  EXPECT_TRUE(served) << served.status().to_string();
  server = std::move(*served);
}

void FakeReplica::handle(net::HttpRequest request, Callback<net::HttpResponse> done) {
  if (interfere) {
    if (auto answer = interfere(request)) return done(std::move(*answer));
  }
  auto path = split(request.target);
  if (request.method == "GET") {
    std::string list;
    for (const auto& [part, stored] : parts) list += (list.empty() ? "" : ",") + std::to_string(part);
    done(net::HttpResponse::json(200, "{\"expected\":" + std::to_string(expected) + ",\"last_digest\":\"" + digest_text(last_digest) +
                                          "\",\"parts\":[" + list + "],\"applied\":" + std::to_string(expected - 1) +
                                          ",\"store\":\"" + store.to_string() + "\"}"));
    return;
  }
  ++puts;
  net::HttpResponse answer = take(std::stoull(path.at(4)), static_cast<uint32_t>(std::stoul(path.at(5))),
                                  std::move(request.body), request.headers["x-tidemark-digest"]);
  if (!hold_answers) return done(std::move(answer));
  held.push_back([answer = std::move(answer), done = std::move(done)]() mutable { done(std::move(answer)); });
}

void FakeReplica::release_answers() {
  hold_answers = false;
  for (auto& answer : std::exchange(held, {})) answer();
}

void FakeReplica::take_silently(net::HttpRequest request) {
  auto path = split(request.target);
  take(std::stoull(path.at(4)), static_cast<uint32_t>(std::stoul(path.at(5))), std::move(request.body),
       request.headers["x-tidemark-digest"]);
}

net::HttpResponse FakeReplica::take(uint64_t number, uint32_t part, Bytes body, const std::string& digest) {
  Sha256 got = sha256(body);
  if (digest_text(got) != digest) violations.push_back("digest header is wrong");
  auto answer = [&](bool complete) {
    return net::HttpResponse::json(200, std::string("{\"durable\":true,\"complete\":") + (complete ? "true" : "false") +
                                            ",\"applied\":true,\"point\":" + std::to_string(points.size()) + ",\"waits_for\":[]}");
  };
  if (known.contains(number)) {
    if (known[number].contains(part) && known[number][part] == got) return answer(true);
    ++conflicts;
    return net::HttpResponse::json(409, R"({"error":"conflict"})");
  }
  auto parsed = SegmentReader::parse_whole(body);
  if (!parsed) {
    violations.push_back(parsed.status().to_string());
    return net::HttpResponse::json(422, R"({"error":"malformed"})");
  }
  const BatchHeader& b = parsed->head().batch;
  bool in_order = number == expected || (expected < number && b.supersedes_first.value == expected);
  if (!in_order) return net::HttpResponse::json(409, "{\"error\":\"out_of_order\",\"expected\":" + std::to_string(expected) + "}");
  if (b.number.value != number || b.part != part) violations.push_back("number or part differs from the path");
  if (b.previous != last_digest) violations.push_back("chain is broken at " + std::to_string(number));
  if (!parts.empty() && number != expected && !parts.contains(part)) { /* parts of a superseding batch */ }
  parts[part] = {got, std::move(body)};
  return answer(apply(number, b.parts));
}

// Of one part what it has of images that are named.
void FakeReplica::lay(const SegmentReader& reader, const Bytes& file, const std::set<ImageId>& named) {
  SegmentReader::Pread pread = [&](uint64_t offset, MutableByteSpan out) {
    std::copy_n(file.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return Status::ok();
  };
  const SegmentHead& head = reader.head();
  for (const SegmentExtent& e : head.extents) {
    if (!named.contains(head.images[e.image].image)) continue;
    Bytes data(e.extent.length);
    if (e.kind == ExtentKind::kData && !reader.read({e.position, e.extent.length}, pread, data)) violations.push_back("payload");
    Bytes& bytes = images[head.images[e.image].image];
    // Old bytes past the size were discarded: what lies there is not kept.
    if (e.extent.offset >= bytes.size()) continue;
    std::copy_n(data.begin(), std::min<uint64_t>(e.extent.length, bytes.size() - e.extent.offset),
                bytes.begin() + static_cast<ptrdiff_t>(e.extent.offset));
  }
}

bool FakeReplica::apply(uint64_t number, uint32_t parts_count) {
  if (parts.size() < parts_count) return false;
  std::vector<Sha256> digests;
  AtPoint point;
  std::vector<wire::Mark> said;
  for (auto& [index, stored] : parts) {
    digests.push_back(stored.first);
    known[number][index] = stored.first;
    auto reader = SegmentReader::parse_whole(stored.second);
    const SegmentHead& head = reader->head();
    for (const SegmentMark& m : head.marks) said.push_back(m.mark);
    point.kind = head.batch.kind;
    if (point.kind == BatchKind::kPiece) continue;
    for (const SegmentImage& image : head.images) {
      point.changed.insert(image.image);
      followed[image.image] = image.parent;
    }
    if (index == 0) {
      for (const SegmentImage& image : head.images) images[image.image].resize(std::max<size_t>(image.size, images[image.image].size()));
      for (const wire::Mark& m : said)   // nothing is left of what was there before
        if (m.kind == wire::MarkKind::kWhole && point.changed.contains(m.node.image)) std::ranges::fill(images[m.node.image], 0);
      for (const Parts& piece : std::exchange(aside, {})) {
        for (const auto& [part, kept] : piece) lay(*SegmentReader::parse_whole(kept.second), kept.second, point.changed);
      }
    }
    lay(*reader, stored.second, point.changed);
    if (index + 1 == parts_count) {
      for (const SegmentImage& image : head.images) images[image.image].resize(image.size);
      point = {head.batch.number, head.batch.point_name, head.batch.last, head.batch.incarnation, head.batch.kind, images, said,
               std::move(point.changed)};
    }
  }
  marks.insert(marks.end(), said.begin(), said.end());
  if (point.kind == BatchKind::kPiece) {
    ++pieces;
    aside.push_back(std::move(parts));
  } else {
    points.push_back(std::move(point));
  }
  last_digest = batch_digest(digests);
  expected = number + 1;
  parts.clear();
  return true;
}

// ---- the copy -----------------------------------------------------------------------------------

void FakeCopy::read_block(const ImageId& image, Extent extent, Wanted wanted, MutableByteSpan out, Callback<Status> done) {
  TM_CHECK(extent.offset % kG == 0 && extent.length % kG == 0 && out.size() == extent.length, "unaligned read");
  ++reads;
  if (fail_reads > 0) {
    --fail_reads;
    env->post([done = std::move(done)]() mutable { done(Status(Code::kIoError, "injected")); });
    return;
  }
  if (cut.contains(image)) {
    env->post([done = std::move(done)]() mutable { done(Status(Code::kCorruption, "its object was cut short")); });
    return;
  }
  if (away.contains(image)) {
    env->post([done = std::move(done)]() mutable { done(Status(Code::kUnavailable, "no link to the shared node")); });
    return;
  }
  if (!images.contains(image)) {
    env->post([done = std::move(done)]() mutable { done(Status(Code::kNotFound, "no such image")); });
    return;
  }
  const bool old = wanted == Wanted::kOwnWrites && unfilled.contains(image);
  auto part = [this, image, old](Extent e, MutableByteSpan to) {
    const Bytes& bytes = old ? unfilled[image] : images[image];
    std::fill(to.begin(), to.end(), 0);
    if (e.offset < bytes.size()) {
      std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(e.offset), std::min<uint64_t>(e.length, bytes.size() - e.offset), to.begin());
    }
  };
  // Half now, half later: what changes in between tears, unless the journal guards it.
  uint64_t half = extent.length / 2 / kG * kG;
  part({extent.offset, half}, out.first(half));
  auto rest = [part, extent, half, out, done = std::move(done)]() mutable {
    part({extent.offset + half, extent.length - half}, out.subspan(half));
    done(Status::ok());
  };
  if (hold_reads) {
    held.push_back(std::move(rest));
    return;
  }
  env->after(std::chrono::microseconds(world_.random().below(2000)), std::move(rest));
}

void FakeCopy::open_gate() {
  hold_reads = false;
  for (auto& fn : std::exchange(held, {})) fn();
}

// ---- the host -----------------------------------------------------------------------------------

JournalTest::JournalTest(const sim::WorldOptions& options) : world_(options), copy_(world_) {
  std::array<uint8_t, 16> cluster{};
  cluster.fill(7);
  options_.directory = "/state";
  options_.source = "host1";
  options_.cluster = Uuid::from_random(cluster);
  options_.settings.cut_interval = std::chrono::milliseconds(50);
  world_.add_node({.name = "host1", .cluster = options_.cluster, .role = net::Role::kHost});
  world_.add_node({.name = "replica", .cluster = options_.cluster, .role = net::Role::kReplica});
  replica_ = std::make_unique<FakeReplica>(world_.start("replica"), kReplicaPort);
}

JournalTest::~JournalTest() {
  journal_.reset();
  replica_.reset();
}

ImageId JournalTest::image_id(int n) {
  std::array<uint8_t, 16> bytes{};
  bytes.fill(static_cast<uint8_t>(n + 1));
  return Uuid::from_random(bytes);
}

void JournalTest::add_image(int n, uint64_t size) {
  copy_.images[image_id(n)].resize(size);
  sizes_[image_id(n)] = size;
}

void JournalTest::open_journal() {
  env_ = &world_.start("host1");
  copy_.env = env_;
  auto opened = Journal::open(*env_, options_, copy_);
  ASSERT_TRUE(opened) << opened.status().to_string();
  journal_ = std::move(*opened);
  slots_.clear();
  in_flight_.clear();
  ++generation_of_run_;
  for (auto& [image, bytes] : copy_.images) {
    slots_[image] = journal_->attach(image, bytes.size());
    sizes_[image] = bytes.size();
    journal_->set_level(slots_[image], true);
    journal_->set_tenure(slots_[image], tenure_, parent_);
  }
  history_[journal_->incarnation().value].base = copy_.images;
  if (ship_) start_shipping();
}

void JournalTest::start_shipping() {
  net::HttpClientOptions o;
  o.url = "https://replica:" + std::to_string(kReplicaPort);
  o.tls = net::TlsFiles{};
  auto client = env_->network().http_client(o);
  ASSERT_TRUE(client) << client.status().to_string();
  journal_->start_shipping(std::move(*client));
}

void JournalTest::crash(sim::Crash kind) {
  world_.crash("host1", kind);
  journal_.reset();
  copy_.held.clear();
  copy_.hold_reads = false;
}

void JournalTest::reconcile_all() {
  auto dirty = journal_->dirty_after_crash();
  // The copy is what the owner's reconciliation settled on.
  history_[journal_->incarnation().value].base = copy_.images;
  for (const DirtyImage& d : dirty) journal_->reconciled(d.image);
}

struct JournalTest::Request {
  Op op;
  Extent range;            // what it may change
  Ticket ticket;
  uint64_t run = 0;
  std::list<InFlight>::iterator place;
  std::function<void()> done;
};

void JournalTest::submit(Op op, std::function<void()> done) {
  auto r = std::make_shared<Request>();
  r->run = generation_of_run_;
  if (op.kind == RecordKind::kResize) {
    op.old_size = sizes_[op.image];
    uint64_t low = std::min(op.extent.offset, op.old_size), high = std::max(op.extent.offset, op.old_size);
    r->range = {low, high - low};
    r->place = in_flight_.insert(in_flight_.end(), {op.image, {0, UINT64_MAX / 2}});
    sizes_[op.image] = op.extent.offset;
  } else {
    r->range = op.extent;
    r->place = in_flight_.insert(in_flight_.end(), {op.image, granules_of(op.extent)});
  }
  r->op = std::move(op);
  r->done = std::move(done);
  step_dirty(r);
}

void JournalTest::step_dirty(std::shared_ptr<Request> r) {
  Slot s = slots_.at(r->op.image);
  if (journal_->is_dirty(s, r->range)) return step_preserve(r);
  journal_->mark_dirty(s, r->range, [this, r](Status status) {
    if (r->run != generation_of_run_) return;
    EXPECT_TRUE(status) << status.to_string();
    step_preserve(r);
  });
}

void JournalTest::step_preserve(std::shared_ptr<Request> r) {
  Slot s = slots_.at(r->op.image);
  if (!journal_->must_preserve(s, r->range)) return step_write(r);
  journal_->preserve(s, r->range, [this, r] {
    if (r->run == generation_of_run_) step_preserve(r);
  });
}

void JournalTest::step_write(std::shared_ptr<Request> r) {
  r->ticket = journal_->begin(slots_.at(r->op.image), r->op.kind, r->op.extent);
  EXPECT_FALSE(journal_->must_preserve(slots_.at(r->op.image), r->range));
  History& h = history_[journal_->incarnation().value];
  h.ops[r->ticket.sequence.counter.value] = r->op;
  // The copy changes in two steps while the request is in flight.
  auto half = [this, r](int which) {
    if (r->run != generation_of_run_) return;
    const Op& op = r->op;
    Bytes data = op.data;
    uint64_t middle = op.extent.length / 2;
    if (op.kind == RecordKind::kResize) {
      if (which == 1) apply_op(copy_.images, op.image, op.kind, op.extent, {});
    } else if (which == 0) {
      data.resize(std::min<size_t>(data.size(), middle));
      apply_op(copy_.images, op.image, op.kind, {op.extent.offset, middle}, data);
    } else {
      data.erase(data.begin(), data.begin() + static_cast<ptrdiff_t>(std::min<size_t>(data.size(), middle)));
      apply_op(copy_.images, op.image, op.kind, {op.extent.offset + middle, op.extent.length - middle}, data);
    }
  };
  auto delay = [&] { return std::chrono::microseconds(world_.random().below(3000)); };
  auto first = delay();
  env_->after(first, [half] { half(0); });
  auto second = first + delay();
  env_->after(second, [half] { half(1); });
  env_->after(second + delay(), [this, r] {
    if (r->run != generation_of_run_) return;
    journal_->finish(r->ticket, CoordinatorSequence(r->ticket.sequence.counter.value), 1);
    in_flight_.erase(r->place);
    if (r->done) r->done();
  });
}

JournalTest::Op JournalTest::random_op() {
  auto& rng = world_.random();
  for (int tries = 0; tries < 50; ++tries) {
    Op op;
    op.image = std::next(copy_.images.begin(), static_cast<ptrdiff_t>(rng.below(copy_.images.size())))->first;
    uint64_t size = sizes_[op.image], dice = rng.below(100);
    op.kind = dice < 70 ? RecordKind::kWrite : dice < 82 ? RecordKind::kZero : dice < 94 ? RecordKind::kDiscard : RecordKind::kResize;
    if (op.kind == RecordKind::kResize) {
      op.extent = {64 * kG + rng.below(192 * kG) / 512 * 512, 0};
    } else {
      if (size < 64 * kG) continue;
      uint64_t offset = rng.below(size / 512) * 512;
      uint64_t length = std::min<uint64_t>((1 + rng.below(rng.below(10) == 0 ? 256 : 24)) * 512, size - offset);
      if (length == 0) continue;
      op.extent = {offset, length};
    }
    Extent claimed = op.kind == RecordKind::kResize ? Extent{0, UINT64_MAX / 2} : granules_of(op.extent);
    bool clash = std::any_of(in_flight_.begin(), in_flight_.end(),
                             [&](const InFlight& f) { return f.image == op.image && f.extent.overlaps(claimed); });
    if (clash) continue;
    if (op.kind == RecordKind::kWrite) {
      op.data.resize(op.extent.length);
      uint64_t mode = rng.below(4);
      for (auto& b : op.data) b = static_cast<uint8_t>(mode == 0 ? 0 : mode == 1 ? 0x55 : rng.next());
    }
    return op;
  }
  return {};
}

void JournalTest::run_load(int count, int depth) {
  int submitted = 0, finished = 0, stuck = 0;
  uint64_t run = generation_of_run_;
  while (finished < count && stuck < 100000) {
    while (submitted < count && submitted - finished < depth) {
      if (!in_flight_.empty() && in_flight_.size() > 12 && world_.random().below(2) == 0) break;
      Op op = random_op();
      if (op.image.is_nil()) break;
      ++submitted;
      submit(std::move(op), [&finished, run, this] {
        if (run == generation_of_run_) ++finished;
      });
    }
    if (!world_.step()) break;
    ++stuck;
    if (finished > 0 && stuck > 5000 && finished == submitted) stuck = 0;
  }
  ASSERT_EQ(finished, count);
}

bool JournalTest::settle(std::function<bool()> done, int seconds) {
  return world_.run_until([&] { return done(); }, std::chrono::seconds(seconds));
}

void JournalTest::wait_shipped() {
  Point last = journal_->cut(Journal::CutReason::kNamed, "last");
  ASSERT_TRUE(settle([&] { return journal_->usage().newest_durable >= last.batch; }, 600))
      << journal_->usage().ship_error << " closed " << journal_->usage().closed_batches << " spool " << journal_->usage().spool_batches;
}

Images JournalTest::model_at(Incarnation incarnation, Counter last) {
  History& h = history_.at(incarnation.value);
  Images images = h.base;
  for (const auto& [counter, op] : h.ops) {
    if (counter > last.value) break;
    apply_op(images, op.image, op.kind, op.extent, op.data);
  }
  return images;
}

void JournalTest::expect_points_right() {
  EXPECT_TRUE(replica_->violations.empty()) << replica_->violations.front();
  for (; checked_ < replica_->points.size(); ++checked_) {
    const auto& point = replica_->points[checked_];
    Images model = model_at(point.incarnation, point.last);
    for (const auto& [image, bytes] : point.images) {
      ASSERT_TRUE(model.contains(image));
      ASSERT_EQ(model[image].size(), bytes.size()) << "size at batch " << point.number.value;
      auto diff = std::mismatch(bytes.begin(), bytes.end(), model[image].begin());
      ASSERT_TRUE(diff.first == bytes.end()) << "batch " << point.number.value << " image " << image.to_string() << " offset "
                                             << (diff.first - bytes.begin());
    }
  }
}

}  // namespace tidemark::journal
