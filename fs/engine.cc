#include "fs/engine.h"

#include <algorithm>

#include "fs/branch_files.h"
#include "fs/copies.h"
#include "fs/known_shared.h"
#include "fs/pace.h"
#include "fs/replica_client.h"
#include "fs/scrubber.h"
#include "fs/verifier.h"
#include "shared/base/log.h"
#include "shared/daemon/links.h"
#include "shared/wire/features.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr std::chrono::seconds kTick{2};
}  // namespace

Engine::Engine(io::Env& env, EngineOptions options)
    : env_(env),
      options_(std::move(options)),
      copies_(copies_of_engine()),
      verifier_(std::make_unique<Verifier>(*copies_)),
      scrubber_(std::make_unique<Scrubber>(*copies_)) {}

Engine::~Engine() {
  env_.cancel(tick_timer_);
  tasks_.cancel_all();
  mirror_.reset();
  journal_.reset();
  images_.clear();
}

Result<std::unique_ptr<Engine>> Engine::open(io::Env& env, EngineOptions options) {
  std::unique_ptr<Engine> engine(new Engine(env, std::move(options)));
  TM_RETURN_IF_ERROR(engine->open_all());
  return engine;
}

Status Engine::open_all() {
  const config::Host& config = options_.config;
  if (!config.shared) return Status(Code::kInvalidArgument, "[shared] is missing: a host needs its shared node");
  TM_RETURN_IF_ERROR(env_.files().make_directories(config.node.state_dir));
  kv::StoreOptions store;
  store.tables = {"attr", "entry", "flag", "meta"};
  NamesStore::Contents contents;
  contents.flags = [this](kv::WriteBatch& batch) { put_flags(batch); };
  contents.names = [this](kv::WriteBatch& batch) { names_->put_all(batch); };
  TM_ASSIGN_OR_RETURN(store_,
                      NamesStore::open(env_, config.node.state_dir + "/names", store, std::move(contents), kTableMeta));
  names_ = std::make_unique<NameCache>(*store_, NameCache::Tables{kTableAttr, kTableEntry});
  TM_RETURN_IF_ERROR(names_->load());
  TM_RETURN_IF_ERROR(load_flags());
  TM_RETURN_IF_ERROR(scrubber_->load(*store_, kTableMeta));

  image::StorageGroupOptions group;
  group.name = config.storage.group;
  group.bricks = config.storage.bricks;
  group.stripe_unit = static_cast<uint32_t>(config.storage.stripe_unit);
  group.stripe_count = config.storage.stripe_count;
  auto known = store_->snapshot()->get(kTableMeta, as_bytes("group"));
  if (known) {
    Reader r(*known);
    group.expected_group = r.uuid();
  } else if (known.status().code() != Code::kNotFound) {
    return known.status();
  }
  group.io_deadline = config.storage.io_deadline;
  if (auto bricks = store_->snapshot()->get(kTableMeta, as_bytes("bricks")); bricks) {
    Reader r(*bricks);
    while (r.ok() && !r.done()) group.known_bricks.push_back(r.uuid());
  }
  if (auto runs = store_->snapshot()->get(kTableMeta, as_bytes("brick_runs")); runs) {
    TM_ASSIGN_OR_RETURN(group.known_runs, image::decode_runs(*runs));
  } else if (runs.status().code() != Code::kNotFound) {
    return runs.status();
  }
  group.older_brick_remedy = "empty the directory, then `tidemark brick replace` fills it anew";
  group.older_state_remedy = "bring back the newest " + config.node.state_dir +
                             "; if it is lost, `tidemark state reset`: this host's copies are filled anew";
  TM_ASSIGN_OR_RETURN(group_, image::StorageGroup::open(env_, group));
  group_->on_overdue([this](ImageId id) { copy_overdue(id); });
  group_->on_damaged([this](ImageId id, const Status& why) { copy_damaged(id, why); });
  group_->on_failed_sync([this](ImageId id) { own_sync_failed(id); });
  branch_files_ = std::make_unique<BranchFiles>(*copies_, *group_, config.node.state_dir + "/branches");
  if (!known) {
    kv::WriteBatch batch;
    Uuid id = group_->group_id();
    batch.put(kTableMeta, as_bytes("group"), id.bytes);
    TM_RETURN_IF_ERROR(store_->commit_and_wait(std::move(batch)));
  }

  TM_RETURN_IF_ERROR(keep_bricks());
  TM_RETURN_IF_ERROR(group_->begin_run([this](const std::vector<image::KnownRun>& runs) { return keep_runs(runs); }));

  journal::Options journal;
  journal.directory = config.node.state_dir;
  journal.source = config.node.name;
  journal.cluster = options_.cluster;
  journal.settings = config.journal;
  for (const auto& brick : group_->bricks())   // best on other disks than the journal
    if (brick.status.is_ok()) journal.reserve_directories.push_back(brick.directory);
  TM_ASSIGN_OR_RETURN(journal_, journal::Journal::open(env_, journal, *this));

  known_shared_ = std::make_unique<KnownShared>(*store_, kTableMeta, *journal_, config.node.state_dir);

  MirrorOptions mirror;
  TM_ASSIGN_OR_RETURN(mirror.connect.address, net::Address::parse(config.shared->address));
  mirror.connect.tls = {config.tls.authority, config.tls.certificate, config.tls.key};
  mirror.connect.peer_role = net::Role::kShared;
  mirror.connect.peer_node = config.shared->node;
  mirror.connections = std::max(1u, config.shared->connections);
  if (options_.successor) mirror.hello.features |= wire::kFeatureSuccessor;
  if (options_.after_reset) mirror.hello.features |= wire::kFeatureReset;
  mirror.hello.cluster = options_.cluster;
  mirror.hello.node = config.node.name;
  mirror.hello.incarnation = journal_->incarnation();
  mirror.hello.nonce = journal_->nonce();
  mirror.hello.journal_generation = journal_->generation();
  MirrorEvents events;
  events.on_met = [this](const wire::Met& met) { return known_shared_->meet(met); };
  events.on_hello = [this](wire::Connection& link, const wire::HelloAnswerMore& hello) {
    return greeted(link, hello);
  };
  events.on_up = [this](const wire::HelloAnswer& hello) { link_up(hello); };
  events.on_down = [this](const Status&) { link_down(); };
  events.on_recall = [this](const wire::RecallNotify& m) { recalled(m); };
  events.on_invalidate = [this](const wire::InvalidateNotify& m) { invalidated(m); };
  mirror_ = std::make_unique<Mirror>(env_, std::move(mirror), std::move(events));
  pace_ = std::make_unique<Pace>(*copies_, *mirror_, config.resync);
  return Status::ok();
}

// So that a brick which is gone at the next start is missed.
Status Engine::keep_bricks() {
  Bytes now;
  Writer w(now);
  for (const auto& brick : group_->bricks()) w.uuid(brick.id);
  auto known = store_->snapshot()->get(kTableMeta, as_bytes("bricks"));
  if (known && std::ranges::equal(*known, now)) return Status::ok();
  kv::WriteBatch batch;
  batch.put(kTableMeta, as_bytes("bricks"), now);
  return store_->commit_and_wait(std::move(batch));
}

// So that a brick which is put back from an earlier time is not taken for the present one.
Status Engine::keep_runs(const std::vector<image::KnownRun>& runs) {
  kv::WriteBatch batch;
  batch.put(kTableMeta, as_bytes("brick_runs"), image::encode_runs(runs));
  return store_->commit_and_wait(std::move(batch));
}

Status Engine::load_flags() {
  auto snapshot = store_->snapshot();
  auto cursor = snapshot->cursor(kTableFlag);
  for (bool ok = cursor->first(); ok; ok = cursor->next()) {
    Reader key(cursor->key()), value(cursor->value());
    ImageId id = key.uuid();
    uint8_t bits = value.u8();
    if (!key.done() || !value.done()) return Status(Code::kCorruption, "image flags in state_dir/names");
    flags_[id] = bits;
  }
  return Status::ok();
}

void Engine::put_flags(kv::WriteBatch& batch) const {
  batch.erase_range(kTableFlag, {}, {});
  for (const auto& [image, bits] : flags_)
    if (bits != 0) batch.put(kTableFlag, image.bytes, ByteSpan(&bits, 1));
}

Status Engine::set_flag(const ImageId& image, uint8_t flag, bool on) {
  uint8_t& bits = flags_[image];
  uint8_t next = on ? bits | flag : bits & ~flag;
  // Behind, nothing of it counts before it was filled anew.
  if ((next & kFlagBehind) != 0) next &= static_cast<uint8_t>(~kFlagCut);
  if (next == bits) return Status::ok();
  kv::WriteBatch batch;
  if (next == 0) batch.erase(kTableFlag, image.bytes);
  else batch.put(kTableFlag, image.bytes, ByteSpan(&next, 1));
  TM_RETURN_IF_ERROR(store_->commit_and_wait(std::move(batch)));
  bits = next;  // only what is durable may be relied on
  return Status::ok();
}

void Engine::start() {
  const config::Host& config = options_.config;
  if (config.witness) {
    auto client = env_.network().http_client(daemon::client_of(*config.witness, config.tls));
    if (client) witness_ = std::move(*client);
    else kLog.error("witness_client", {{"error", client.status()}});
  }
  mirror_->start();
  // Gates first: no request may slip in before an image's own reconciliation.
  for (const journal::DirtyImage& d : journal_->dirty_after_crash()) unreconciled_.insert(d.image);
  if (options_.successor) take_over_handles();
  tasks_.spawn(recover_all());
  for (auto& [id, bits] : std::unordered_map<ImageId, uint8_t>(flags_)) {
    auto attr = names_->by_image(id);
    const bool looked_at = (bits & (kFlagDoomed | kFlagHostOnly | kFlagCut)) != 0;   // missed at once
    auto image = attr && looked_at ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, "not known"));
    if (!image || (bits & kFlagDoomed) == 0) continue;
    (*image)->nameless = (*image)->doomed = true;
    (*image)->doomed_batch = journal_->usage().newest_closed.value;
  }
  if (config.replica) {
    const auto http = daemon::client_of(*config.replica, config.tls);
    auto shipper = env_.network().http_client(http);
    if (shipper) journal_->start_shipping(std::move(*shipper));
    else kLog.error("replica_client", {{"error", shipper.status()}});
    auto client = env_.network().http_client(http);
    if (client) replica_ = std::make_unique<ReplicaClient>(env_, *journal_, std::move(*client));
  }
  tick_timer_ = env_.after(kTick, [this] { tick(); });
}

void Engine::tick() {
  if (Status s = journal_->condition(); !s && fatal_) {
    kLog.error("journal_lost", {{"error", s}, {"remedy", "the daemon stops; its next start recovers"}});
    std::exchange(fatal_, nullptr)(s);
  }
  store_->tick();
  clean_idle_images();
  try_failed_copies();
  try_missing_copies();
  set_unanswered_aside();
  take_up_tenures();
  want_terms(1);
  if (!stopping_) reap();   // a stop goes through the images, and waits
  tick_timer_ = env_.after(kTick, [this] { tick(); });
}

bool Engine::hangs() const {
  auto busy = [](const auto& image) { return image.second->copy && !image.second->copy->idle(); };
  return std::any_of(images_.begin(), images_.end(), busy);
}

void Engine::stop(io::Duration timeout, Done done) {
  stopping_ = true;
  tasks_.spawn(stop_task(timeout, std::move(done)));
}

Task<void> Engine::stop_task(io::Duration timeout, Done done) {
  io::BootTime deadline = env_.now() + timeout;
  std::vector<Image*> held;
  for (auto& [id, image] : images_)
    if (image->held) held.push_back(image.get());
  for (Image* im : held) {
    im->wrote = 0;
    im->recall_wanted = true;
    auto busy = [&] {
      bool level = im->state == MirrorState::kMirrored || im->state == MirrorState::kFilling ||
                   im->state == MirrorState::kNone;
      const bool asks_none = host_only(*im) && im->state != MirrorState::kNone;   // as in try_yield()
      return !level || asks_none || im->resync_running || im->recovering || im->yielding;
    };
    while (mirror_->up() && im->held && busy() && env_.now() < deadline)
      co_await sleep(std::chrono::milliseconds(20));
    // An image whose policy is `none` keeps its tenure: its data are here alone.
    // So does one that the replica lacks: whoever is next would follow upon what is not there. And one that is not
    // reconciled after a crash: its flushed writes may be here alone, and what may differ is known here alone.
    const bool kept = host_only(*im) || journal_->withheld(im->id) || im->recovering;
    if (mirror_->up() && im->held && !im->yielding && !kept) co_await yield(*im);
    else if (im->held && im->local()) {
      auto synced = co_await sync_copy(*im);
      if (!synced) kLog.warning("sync_at_stop", {{"image", im->id}, {"error", synced}});
      if (synced && im->state == MirrorState::kNone) journal_->note_durable(im->slot, journal_->last_finished());
    }
  }
  Status closed = co_await close_ends(deadline);
  // What was given up with its link may still have its local part under way: a file is not closed under it.
  while (hangs() && env_.now() < deadline) co_await sleep(std::chrono::milliseconds(5));
  done(closed);
}

// The journal and the link to the shared node: nothing of this run goes out after them.
Task<Status> Engine::close_ends(io::BootTime deadline) {
  auto left = std::max<io::Duration>(deadline - env_.now(), std::chrono::milliseconds(100));
  auto limit = std::chrono::duration_cast<std::chrono::milliseconds>(left);
  auto closed = co_await async<Status>([&](Callback<Status> d) { journal_->close(limit, std::move(d)); });
  if (!closed) kLog.warning("journal_close", {{"error", closed}});
  mirror_->stop();
  env_.cancel(tick_timer_);
  co_return closed;
}

// ---- what the coroutines share ------------------------------------------------------------------

Task<void> Engine::sleep(io::Duration delay) {
  co_await async<bool>([&](Callback<bool> done) {
    env_.after(delay, [done = std::move(done)]() mutable { done(true); });
  });
}

Task<bool> Engine::wait_idle(Image& im) {
  if (im.active != 0) {
    co_await async<bool>([&](Callback<bool> done) {
      im.idle.push_back([done = std::move(done)]() mutable { done(true); });
    });
  }
  co_return true;
}

Task<void> Engine::lock(Image& im, RangeLock::Hold& hold) {
  if (im.order.acquire(hold)) co_return;
  co_await async<bool>([&](Callback<bool> done) {
    hold.granted = [done = std::move(done)]() mutable { done(true); };
  });
}

Task<Status> Engine::read_copy(Image& im, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer) {
  UniqueFunction<void(Callback<Status>)> start = [&](Callback<Status> done) {
    MutableByteSpan out = buffer->span().first(extent.length);
    im.copy->read(extent.offset, out, io::IoMode::kQueued,
                  [done = std::move(done), buffer](Status s) mutable { done(std::move(s)); });
  };
  co_return co_await on_copy(im, start);
}

Task<Status> Engine::write_copy(Image& im, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer) {
  UniqueFunction<void(Callback<Status>)> start = [&](Callback<Status> done) {
    ByteSpan data = ByteSpan(buffer->span()).first(extent.length);
    im.copy->write(extent.offset, data, io::IoMode::kQueued,
                   [done = std::move(done), buffer](Status s) mutable { done(std::move(s)); });
  };
  co_return co_await on_copy(im, start);
}

Task<Status> Engine::read_shared(Image& im, Extent extent, std::shared_ptr<io::AlignedBuffer> buffer) {
  wire::Read ask{im.id, extent.offset, static_cast<uint32_t>(extent.length)};
  co_return co_await async<Status>([&](Callback<Status> done) {
    mirror_->send(wire::Type::kRead, wire::encode(ask), {},
                  [this, done = std::move(done), buffer, length = extent.length](Result<wire::Answer> answer) mutable {
                    if (!answer) {
                      mirror_->note_failure();
                      return done(answer.status());
                    }
                    if (answer->payload.size() != length)
                      return done(Status(Code::kCorruption, "read answer of another length"));
                    std::copy_n(answer->payload.data(), length, buffer->data());
                    done(Status::ok());
                  });
  });
}

// Before this host's copy changes other than by a guest's write.
Task<void> Engine::preserve(Image& im, Extent extent) {
  while (im.attached && journal_->must_preserve(im.slot, extent)) {
    co_await async<bool>([&](Callback<bool> done) {
      journal_->preserve(im.slot, extent, [done = std::move(done)]() mutable { done(true); });
    });
  }
}

// Staging reads what this host wrote: from its own copy where there is one, even when that is behind by now (what
// another host wrote since belongs to that host's batches). But a copy that failed and was opened anew, in this run or
// an earlier one, lacks this host's own writes until it is filled: there only the shared copy has them.
void Engine::read_block(const ImageId& image, Extent extent, Wanted wanted, MutableByteSpan out,
                        Callback<Status> done) {
  Image* im = find(image);
  if (im == nullptr) {
    auto attr = names_->by_image(image);
    auto opened = attr ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, "image " + image.to_string()));
    if (!opened) return done(opened.status());
    im = *opened;
  }
  if (!im->missing.empty() && !im->local()) return done(failed(*im));   // nothing stands in for it
  // A whole image that was recorded is the shared copy's, wherever the own one is not level yet.
  const bool granted = im->epoch != Epoch();   // in this run: before that no map says where it is stale
  bool behind = im->refilling ? !granted || im->stale.stale(extent)
                              : standing_in(*im) && (!im->held || im->stale.stale(extent));
  behind = behind || im->stale.unlike(extent);
  // A resync sends whole regions, also what another host wrote there and this copy was not filled with yet.
  const bool not_filled = im->stale.stale(extent) || (!im->held && has_flag(im->id, kFlagPartial));
  if (wanted == Wanted::kNewest && not_filled && !only_here(*im)) behind = true;
  if (im->local() && !behind) {
    uint64_t size = im->copy->size();
    uint64_t within = extent.offset >= size ? 0 : std::min(extent.length, size - extent.offset);
    std::fill(out.begin() + static_cast<ptrdiff_t>(within), out.begin() + static_cast<ptrdiff_t>(extent.length), 0);
    if (within == 0) return done(Status::ok());
    return read_own_block(*im, {extent.offset, within}, out.first(within), std::move(done));
  }
  read_shared_block(image, extent, out, std::move(done));
}

void Engine::read_shared_block(const ImageId& image, Extent extent, MutableByteSpan out, Callback<Status> done) {
  wire::Read ask{image, extent.offset, static_cast<uint32_t>(extent.length)};
  mirror_->send(wire::Type::kRead, wire::encode(ask), {},
                [out, done = std::move(done)](Result<wire::Answer> answer) mutable {
                  if (!answer) return done(answer.status());
                  if (answer->payload.size() != out.size())
                    return done(Status(Code::kCorruption, "read answer of another length"));
                  std::copy_n(answer->payload.data(), out.size(), out.data());
                  done(Status::ok());
                });
}

}  // namespace tidemark::fs
