// Start, stop, commits and marks of the shared node.
#include "shared/node/core.h"

#include <algorithm>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/rebuild.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node");
constexpr io::Duration kTickInterval = std::chrono::seconds(5);
}  // namespace

SharedNode::SharedNode(std::unique_ptr<Core> core) : core_(std::move(core)) {}
SharedNode::~SharedNode() = default;

Result<std::unique_ptr<SharedNode>> SharedNode::open(io::Env& env, NodeOptions options,
                                                     std::unique_ptr<MarkSink> marks) {
  auto core = std::make_unique<Core>(env, std::move(options), std::move(marks));
  TM_RETURN_IF_ERROR(core->open());
  return std::unique_ptr<SharedNode>(new SharedNode(std::move(core)));
}

Status SharedNode::listen(const net::Address& address, const net::TlsFiles& tls) { return core_->listen(address, tls); }
uint16_t SharedNode::port() const { return core_->port(); }
void SharedNode::accept(std::unique_ptr<net::Stream> stream) { core_->accept(std::move(stream)); }
void SharedNode::stop(UniqueFunction<void()> done) { core_->stop(std::move(done)); }
std::string SharedNode::status_json() { return core_->status_json(); }
void SharedNode::resync_replica(Callback<Result<std::string>> done) { core_->resync_replica(std::move(done)); }
void SharedNode::takeover(const std::string& request, Callback<Result<std::string>> done) {
  core_->takeover(request, "", std::move(done));
}
std::string SharedNode::journal_json() const { return core_->journal_json(); }
std::vector<std::string> SharedNode::unhealthy_reasons() const { return core_->unhealthy_reasons(); }
void SharedNode::set_policy(const std::string& image, const std::string& mirror, Callback<Result<std::string>> done) {
  core_->set_policy(image, mirror, std::move(done));
}

Core::Core(io::Env& env, NodeOptions options, std::unique_ptr<MarkSink> marks)
    : env_(env), options_(std::move(options)), marks_(std::move(marks)), self_(std::make_shared<Core*>(this)) {}

Core::~Core() {
  *self_ = nullptr;
  env_.cancel(tick_timer_);
  env_.cancel(pump_timer_);
  for (auto& [ticket, waiting] : waiting_) env_.cancel(waiting.timer);
  for (const PeerPtr& peer : peers_) {
    env_.cancel(peer->hello_timer);
    peer->link.reset();
    peer->session.reset();
  }
  listener_.reset();
  images_.clear();   // copies go before their group
  all_ops_.clear();
}

Status Core::open() {
  TM_RETURN_IF_ERROR(env_.files().make_directories(options_.state_dir));
  TM_ASSIGN_OR_RETURN(store_, env_.open_store(options_.state_dir + "/catalogue", catalogue_options()));
  identity_ = {options_.cluster, Uuid::nil(), options_.name, Uuid::nil()};
  Result<Identity> known = read_identity(*store_);
  if (!known && known.status().code() != Code::kNotFound) return known.status();
  if (known && (known->cluster != options_.cluster || known->node != options_.name)) {
    return Status(Code::kInvalidArgument, "the state in " + options_.state_dir + " is of node " + known->node +
                                              ", cluster " + known->cluster.to_string() + "; this is node " +
                                              options_.name + ", cluster " + options_.cluster.to_string() +
                                              ": give the node its own state_dir");
  }
  if (known) identity_ = *known;
  TM_RETURN_IF_ERROR(open_group(identity_));
  identity_.group = group_->group_id();
  if (identity_.store.is_nil()) identity_.store = env_.random_uuid();
  kv::WriteBatch batch;
  const bool fresh = !known;
  if (fresh && !options_.rebuild.hosts.empty()) put_rebuilding(batch, options_.rebuild);
  put_identity(batch, identity_);
  TM_RETURN_IF_ERROR(store_->commit_and_wait(std::move(batch)));
  TM_RETURN_IF_ERROR(group_->begin_run([this](const std::vector<image::KnownRun>& runs) {
    kv::WriteBatch known_runs;
    put_brick_runs(known_runs, runs);
    return store_->commit_and_wait(std::move(known_runs));
  }));
  TM_RETURN_IF_ERROR(open_rebuild());
  TM_RETURN_IF_ERROR(load_catalogue());
  register_metrics();
  started_at_ = env_.now();
  tick_timer_ = env_.after(kTickInterval, [this] { tick(); });
  kLog.info("opened", {{"node", options_.name}, {"boot", catalogue_->boot}, {"images", images_.size()},
                       {"nodes", names_->size()}, {"event", names_->last_event()}, {"loss_id", group_->loss_id()}});
  return Status::ok();
}

Status Core::load_catalogue() {
  TM_ASSIGN_OR_RETURN(catalogue_, open_catalogue(*store_, env_.wall(), env_.random_uuid()));
  names_ = &catalogue_->names;
  load_images();
  TM_RETURN_IF_ERROR(note_loss());
  marks_recorded_ = names_->last_event();
  marks_settled_ =
      catalogue_->marks.empty() ? names_->last_event() : EventNumber(catalogue_->marks.front().number.value - 1);
  unsettled_.clear();
  unsettled_bytes_ = 0;
  for (const wire::Mark& mark : catalogue_->marks) {
    marks_->record(mark);
    note_unsettled(mark);
  }
  catalogue_->marks.clear();
  next_session_ = catalogue_->boot.value << 32;
  return Status::ok();
}

Status Core::open_group(const Identity& identity) {
  image::StorageGroupOptions group;
  group.name = options_.storage.group;
  group.bricks = options_.storage.bricks;
  group.stripe_unit = static_cast<uint32_t>(options_.storage.stripe_unit);
  group.stripe_count = options_.storage.stripe_count;
  group.direct = options_.direct;
  group.expected_group = identity.group;
  group.io_deadline = options_.storage.io_deadline;
  TM_ASSIGN_OR_RETURN(group.known_runs, read_brick_runs(*store_));
  group.older_brick_remedy = "bring back the newest one; if it is lost, `tidemark shared rebuild --without-bricks` "
                             "makes everything anew from the hosts' copies";
  group.older_state_remedy = "bring back the newest " + options_.state_dir +
                             "; if it is lost, `tidemark shared rebuild` makes it anew from the hosts and the bricks";
  TM_ASSIGN_OR_RETURN(group_, image::StorageGroup::open(env_, std::move(group)));
  group_->on_overdue([this](ImageId id) { copy_overdue(id); });
  group_->on_damaged([this](ImageId id, const Status& why) { copy_damaged(id, why); });
  group_->on_failed_sync([this](ImageId) { note_failed_sync(); });
  return Status::ok();
}

void Core::load_images() {
  io::BootTime kept_until = env_.now() + std::chrono::seconds(limits::kNamelessKeepSeconds);
  for (auto& [id, record] : catalogue_->images) {
    auto image = std::make_unique<Image>();
    image->id = id;
    image->record = std::move(record);
    image->attr = names_->image_attr(image->record.inode);
    // What lies between the last number given and the durable bound is skipped, never used again.
    image->coordinator = image->reserved_durable = image->record.reserved;
    image->behind = std::move(catalogue_->behind[id]);
    if (!image->record.tenure.holder.empty() || begins_upon_lost(*image)) image->synced = 0;
    // Hosts that have a nameless image open get time to come back.
    image->kept_until = kept_until;
    if (image->record.has_copy != 0) {
      image::ImageMetadata found;
      const Status there = group_->look_at(id, &found);
      // Said at once, not when somebody asks for a block; its size before a grant, or a resume's answer, has another.
      if (image->record.nameless == 0) note_copy(*image, there);
      adopt_size(*image, found.size, found.size_generation);
    }
    bool given_up = image->attr->mirror == 0 && image->record.has_copy == 0;
    images_.emplace(id, std::move(image));
    if (given_up) remove_given_up(id);
  }
  catalogue_->images.clear();
  catalogue_->behind.clear();
}

// Under another loss id the copies here may lack writes that were acknowledged and not flushed. Their holders say when
// they resume whether they have any such; until then no copy of a held image is taken for level.
Status Core::note_loss() {
  const LossId now = group_->loss_id();
  TM_ASSIGN_OR_RETURN(std::optional<LossId> before, read_loss_id(*store_));
  if (before == now) return Status::ok();
  kv::WriteBatch batch;
  size_t held = 0;
  for (auto& [id, image] : images_) {
    const bool free = image->record.tenure.holder.empty();
    if (free && !begins_upon_lost(*image)) continue;
    const bool doubt = before && image::sync_failed_between(*before, now) && image->record.in_doubt == 0;
    if (doubt) image->record.in_doubt = 1;
    const bool ahead = !free && std::exchange(image->record.outdated, 1) == 0;
    if (ahead || doubt) put_image(batch, id, image->record);
    if (ahead || (doubt && !free)) ++held;
  }
  if (before) {
    kLog.warning("unflushed_writes_may_be_lost", {{"loss_id", now}, {"before", *before}, {"images_held", held}});
  }
  put_loss_id(batch, now);
  return store_->commit_and_wait(std::move(batch));
}

// A sync has failed, of whatever image: what holders have written since the last good one of theirs may be gone here.
// They hear of it by the next answer that they get; what follows from it must not wait for that, nor for them to live.
void Core::note_failed_sync() {
  if (TM_PLANTED("leave a copy level that a failed sync may have spoilt")) return;
  kv::WriteBatch batch;
  std::vector<SessionPtr> unaware;
  for (auto& [id, image] : images_) {
    if (image->attr->mirror == 0 || image->begun == image->synced) continue;
    if (begins_upon_lost(*image)) {   // no holder has written anything since it was taken
      note_in_doubt(*image, true);
      continue;
    }
    if (image->record.tenure.holder.empty()) continue;
    if (!image->refused_writes) {
      kLog.warning("shared_copy_outdated", {{"image", id}, {"host", image->record.tenure.holder},
                                            {"reason", "a sync failed, and not all of it was synced before"}});
    }
    image->refused_writes = true;
    image->holder_ahead = Image::Ahead::kUntilResume;
    const bool known = image->record.outdated != 0 && image->record.in_doubt != 0;
    image->record.outdated = image->record.in_doubt = 1;
    if (!known) put_image(batch, id, image->record);
    if (image->begun != 1) continue;
    // Nothing but what an earlier run had begun, and may have synced: its holder may have no reason to ask anything.
    image->synced = 1;
    auto session = sessions_.find(image->holder_session);
    if (session != sessions_.end()) unaware.push_back(session->second);
  }
  // Should it be lost, the next start finds another loss id, if a brick could record one.
  commit(std::move(batch), [] {});
  if (unaware.empty()) return;
  env_.post([this, self = self_, unaware = std::move(unaware)] {
    for (const SessionPtr& session : unaware)
      if (*self != nullptr) end_session(session, Status(Code::kUnavailable, "a sync has failed since its Hello"));
  });
}

Status Core::listen(const net::Address& address, const net::TlsFiles& tls) {
  net::Network::ListenOptions options;
  options.address = address;
  options.tls = tls;
  options.roles_accepted = {net::Role::kHost};
  TM_ASSIGN_OR_RETURN(listener_, env_.network().listen(options, [this](std::unique_ptr<net::Stream> stream) {
    accept(std::move(stream));
  }));
  kLog.info("listening", {{"address", address.host}, {"port", listener_->port()}});
  return Status::ok();
}

void Core::commit(kv::WriteBatch batch, UniqueFunction<void()> then) {
  if (!failed_) return;
  if (batch.empty()) {
    if (commits_done_ == commits_) return then();
    after_commit_.emplace_back(commits_, std::move(then));
    return;
  }
  after_commit_.emplace_back(++commits_, std::move(then));
  store_->commit(std::move(batch), [this, self = self_](Status status) {
    if (*self == nullptr) return;
    if (!status) return fatal(status);
    ++commits_done_;
    while (!after_commit_.empty() && after_commit_.front().first <= commits_done_) {
      UniqueFunction<void()> next = std::move(after_commit_.front().second);
      after_commit_.pop_front();
      next();
      if (*self == nullptr) return;
    }
    maybe_stopped();
  });
}

// Memory is ahead of what is durable and cannot be taken back: only a new start knows what holds.
void Core::fatal(const Status& status) {
  if (!failed_) return;
  failed_ = status.with_context("catalogue");
  kLog.error("catalogue_failed", {{"error", status}, {"action", "stopping; the next start recovers"}});
  after_commit_.clear();
  // What waited for it ends unanswered; so does what waits behind those.
  for (size_t i = 0; i < all_ops_.size(); ++i) {
    if (all_ops_[i]->committing) finish(all_ops_[i].get());
  }
  std::vector<PeerPtr> peers(peers_.begin(), peers_.end());
  for (const PeerPtr& peer : peers) peer->link->close(Status(Code::kUnavailable, "the shared node lost its catalogue"));
  if (options_.on_fatal) options_.on_fatal(failed_);
}

void Core::record_marks(const std::vector<wire::Mark>& marks) {
  for (const wire::Mark& mark : marks) {
    marks_->record(mark);
    marks_recorded_ = std::max(marks_recorded_, mark.number);
    note_unsettled(mark);
  }
}

void Core::note_unsettled(const wire::Mark& mark) {
  unsettled_.push_back({mark.number, wire::encode(mark).size()});
  unsettled_bytes_ += unsettled_.back().bytes;
}

void Core::settle_marks() {
  if (marks_settled_ >= marks_recorded_) return;
  size_t over = 0;
  uint64_t bytes = unsettled_bytes_;
  while (over < unsettled_.size() && (unsettled_.size() - over > options_.marks_unshipped_max ||
                                      bytes > options_.marks_unshipped_bytes_max)) {
    bytes -= unsettled_[over++].bytes;
  }
  // They are in the journal; only a second loss, of the journal itself, could now lose them.
  if (over > 0) settled_up_to(unsettled_[over - 1].event);
  if (settling_) return;   // for as long as the replica does not answer
  settling_ = true;
  marks_->settle([this, self = self_, up_to = marks_recorded_](Status status) {
    if (*self == nullptr) return;
    settling_ = false;
    if (status) settled_up_to(up_to);   // else asked again at the next tick
  });
}

void Core::settled_up_to(EventNumber event) {
  marks_settled_ = std::max(marks_settled_, event);   // the limit may have passed it
  while (!unsettled_.empty() && unsettled_.front().event <= marks_settled_) {
    unsettled_bytes_ -= unsettled_.front().bytes;
    unsettled_.pop_front();
  }
  kv::WriteBatch batch;
  erase_marks(batch, marks_settled_);
  commit(std::move(batch), [] {});
}

void Core::tick() {
  tick_timer_ = env_.after(kTickInterval, [this] { tick(); });
  if (!failed_) return;
  settle_marks();
  close_idle_copies();
  look_for_witness();
  io::BootTime now = env_.now();
  std::vector<std::string> lost;
  for (const auto& [host, at] : host_gone_at_) {
    if (now - at > std::chrono::seconds(limits::kNamelessKeepSeconds)) lost.push_back(host);
  }
  for (const std::string& host : lost) {
    host_gone_at_.erase(host);
    forget_users(host, Incarnation(UINT64_MAX));
  }
  std::vector<Image*> nameless;
  for (auto& [id, image] : images_) {
    if (image->record.nameless != 0) nameless.push_back(image.get());
    if (!outdated_here(*image)) image->outdated_since = {};
    else if (image->outdated_since == io::BootTime{}) image->outdated_since = now;
  }
  for (Image* image : nameless) maybe_remove(*image);
}

void Core::stop(UniqueFunction<void()> done) {
  stopping_ = true;
  stopped_ = std::move(done);
  listener_.reset();
  env_.cancel(std::exchange(tick_timer_, {}));
  std::vector<SessionPtr> sessions;
  for (auto& [number, session] : sessions_) sessions.push_back(session);
  for (const SessionPtr& session : sessions) end_session(session, Status(Code::kUnavailable, "the shared node stops"));
  std::vector<PeerPtr> peers(peers_.begin(), peers_.end());
  for (const PeerPtr& peer : peers) peer->link->close(Status(Code::kUnavailable, "the shared node stops"));
  kv::WriteBatch batch;
  for (auto& [id, image] : images_) {
    Result<const Node*> node = names_->find(image->record.inode);
    if (image->times_changed && node) put_node(batch, **node);
  }
  commit(std::move(batch), [] {});
  env_.post([this, self = self_] {
    if (*self != nullptr) maybe_stopped();
  });
}

void Core::maybe_stopped() {
  bool idle = ops_ == 0 && hung_ == 0 && scans_ == 0 && (commits_done_ == commits_ || !failed_);
  if (!stopping_ || !stopped_ || !idle) return;
  UniqueFunction<void()> done = std::move(stopped_);
  stopped_ = nullptr;
  marks_->stop([this, self = self_, done = std::move(done)]() mutable {
    if (*self != nullptr) kLog.info("stopped", {{"node", options_.name}});
    done();
  });
}

void Core::register_metrics() {
  if (options_.metrics == nullptr) return;
  metrics::Registry& m = *options_.metrics;
  writes_total_ = m.counter("shared_writes_total", "Mirrored writes, zeros and resizes applied");
  write_bytes_total_ = m.counter("shared_write_bytes_total", "Bytes of mirrored writes applied");
  reads_total_ = m.counter("shared_reads_total", "Reads answered to hosts");
  read_bytes_total_ = m.counter("shared_read_bytes_total", "Bytes read for hosts");
  syncs_total_ = m.counter("shared_syncs_total", "Flushes carried out on the shared copy");
  sync_failures_total_ = m.counter("shared_sync_failures_total", "Flushes that failed: each changes the loss id");
  cold_writes_total_ = m.counter("shared_cold_writes_total", "Writes that first had a behind-map made durable");
  hung_total_ = m.counter("shared_hung_operations_total", "Operations given up because a brick hangs");
  fenced_total_ = m.counter("shared_fenced_total", "Requests refused because their tenure has moved");
  grants_total_ = m.counter("shared_grants_total", "Tenures granted");
  busy_total_ = m.counter("shared_busy_total", "Tenures refused because another host holds the image");
  frames_refused_total_ = m.counter("shared_hellos_refused_total", "Connections refused at their Hello");
  metrics::Gauge hosts = m.gauge("shared_hosts_connected", "Hosts with a session");
  metrics::Gauge images = m.gauge("shared_images", "Images known, nameless ones included");
  metrics::Gauge unsettled = m.gauge("shared_marks_unsettled", "Time marks not yet safe at the replica");
  metrics::Gauge behind = m.gauge("shared_behind_bytes", "Bytes that hosts' copies are behind, over all hosts");
  m.on_collect([this, self = self_, hosts, images, unsettled, behind]() mutable {
    if (*self == nullptr) return;
    hosts.set(static_cast<double>(sessions_.size()));
    images.set(static_cast<double>(images_.size()));
    unsettled.set(static_cast<double>(marks_recorded_.value - marks_settled_.value));
    double bytes = 0;
    for (const auto& [id, image] : images_) {
      for (const auto& [host, map] : image->behind) {
        bytes += static_cast<double>(map.regions().size()) * static_cast<double>(image->record.region_bytes);
      }
    }
    behind.set(bytes);
  });
}

}  // namespace tidemark::node
