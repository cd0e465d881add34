#include "replica/replica.h"

#include <algorithm>
#include <cerrno>

#include "replica/http_api.h"
#include "shared/base/log.h"

namespace tidemark::replica {
namespace {
const log::Logger kLog("replica");
constexpr auto kDrainPoll = std::chrono::milliseconds(5);
constexpr auto kHeldWatch = std::chrono::seconds(5);
}

Result<std::unique_ptr<Replica>> Replica::open(io::Env& env, Options options) {
  TM_RETURN_IF_ERROR(env.files().make_directories(options.directory));
  auto replica = std::unique_ptr<Replica>(new Replica(env, std::move(options)));
  const Options& o = replica->options_;
  kv::StoreOptions index{.tables = table_names(), .map_bytes_max = o.index_bytes_max};
  auto store = env.open_store(o.directory + "/store", index);
  // So many addresses are not to be had everywhere; status says how many there are.
  while (!store && store.status().sys_errno() == ENOMEM && index.map_bytes_max > kIndexBytesMin) {
    index.map_bytes_max /= 2;
    store = env.open_store(o.directory + "/store", index);
  }
  TM_ASSIGN_OR_RETURN(replica->store_, std::move(store));
  TM_ASSIGN_OR_RETURN(replica->catalog_, Catalog::load(*replica->store_, o.cluster, env.random_uuid()));
  replica->files_ = std::make_unique<SegmentFiles>(
      env, *replica->store_, SegmentFiles::Options{.directory = o.directory, .cache_bytes_max = o.chunk_cache_bytes});
  TM_RETURN_IF_ERROR(replica->files_->start());
  Replica* self = replica.get();
  auto alarm = [self](const std::string& kind, const std::string& subject, const std::string& text) {
    self->raise_alarm(kind, subject, text);
  };
  replica->files_->on_corruption(
      [alarm](const std::string& subject, const Status& s) { alarm("corruption", subject, s.to_string()); });
  replica->reader_ = std::make_unique<Reader>(env, *replica->store_, *replica->files_, replica->catalog_);
  replica->intake_ =
      std::make_unique<Intake>(env, *replica->store_, *replica->files_, replica->catalog_, o.directory,
                               o.held_batches_max, o.step_extents, alarm);
  kLog.info("opened", {{"directory", o.directory},
                       {"store", replica->catalog_.meta.store},
                       {"points", replica->reader_->newest()},
                       {"held", replica->catalog_.order.held()},
                       {"ready", replica->catalog_.ready.size()}});
  for (const auto& [one, other] : replica->catalog_.mixed) {
    alarm("mixed_images", one.to_string() + "/" + other.to_string(),
          "an earlier version kept both images in one place: what is shown of either may be the other's");
  }
  replica->intake_->start();
  replica->watch_held();
  return replica;
}

Replica::~Replica() { env_.cancel(watch_timer_); }

void Replica::handle(net::HttpRequest request, Callback<net::HttpResponse> reply) {
  if (closing_) return reply(error_response(503, "unavailable", "the replica is stopping"));
  ++requests_;
  answer_request(*this, std::move(request), [this, reply = std::move(reply)](net::HttpResponse response) mutable {
    --requests_;
    reply(std::move(response));
  });
}

void Replica::close(UniqueFunction<void()> done) {
  closing_ = true;
  closed_ = std::move(done);
  check_drained();
}

// Streams of bodies are pulled by the network and belong to no request here; what they have in
// flight shows in files_ and reader_.
void Replica::check_drained() {
  if (requests_ == 0 && intake_->idle() && files_->idle() && reader_->idle() && alarm_commits_ == 0) return closed_();
  env_.after(kDrainPoll, [this] { check_drained(); });
}

void Replica::raise_alarm(const std::string& kind, const std::string& subject, const std::string& text) {
  kLog.warning("alarm", {{"kind", kind}, {"subject", subject}, {"text", text}});
  alarms_total_.add();
  const Bytes key = alarm_key(kind, subject.size() > 300 ? subject.substr(0, 300) : subject);
  AlarmRecord record{.kind = kind, .subject = subject, .first = env_.wall()};
  if (auto it = unsaved_alarms_.find(key); it != unsaved_alarms_.end()) {
    record = it->second;
  } else if (auto stored = read_record<AlarmRecord>(*store_->snapshot(), kAlarms, key); stored) {
    record = std::move(*stored);
  }
  if (record.count++ == 0) ++catalog_.alarms;
  record.text = text;
  record.last = env_.wall();
  unsaved_alarms_[key] = record;
  kv::WriteBatch out;
  put_record(out, kAlarms, key, record);
  ++alarm_commits_;
  store_->commit(std::move(out), [this, key, count = record.count](Status s) {
    --alarm_commits_;
    if (!s) kLog.error("alarm_not_recorded", {{"reason", s}});
    auto it = unsaved_alarms_.find(key);
    if (it != unsaved_alarms_.end() && it->second.count == count) unsaved_alarms_.erase(it);
  });
}

std::vector<AlarmRecord> Replica::alarms(size_t count_max) {
  std::vector<AlarmRecord> all;
  for (const auto& [key, record] : unsaved_alarms_) all.push_back(record);
  auto snapshot = store_->snapshot();
  auto cursor = snapshot->cursor(kAlarms);
  for (bool found = cursor->first(); found; found = cursor->next()) {
    if (unsaved_alarms_.contains(Bytes(cursor->key().begin(), cursor->key().end()))) continue;
    if (auto record = wire::decode<AlarmRecord>(cursor->value()); record) all.push_back(std::move(*record));
  }
  std::sort(all.begin(), all.end(), [](const AlarmRecord& a, const AlarmRecord& b) { return a.last > b.last; });
  if (all.size() > count_max) all.resize(count_max);
  return all;
}

std::vector<Replica::Overdue> Replica::overdue() const {
  std::vector<Overdue> out;
  const int64_t now = env_.wall().ns;
  for (const auto& [name, source] : catalog_.order.sources) {
    if (source.waiting.empty()) continue;
    const BatchFacts& batch = source.waiting.front();
    const WallTime since = catalog_.held_since(batch);
    if (since.ns == 0 || now - since.ns <= std::chrono::nanoseconds(options_.held_max).count()) continue;
    std::string text =
        "batch " + std::to_string(batch.number.value) + " of " + name + " waits since " + since.to_string();
    const char* before = " for ";
    for (const Wait& wait : waits_of(catalog_.order, source, 0)) {
      text += before + wait.to_string();
      before = ", ";
    }
    out.push_back(
        {name + "/" + batch.generation.to_string() + "/" + std::to_string(batch.number.value), std::move(text)});
  }
  return out;
}

// By the machine's own clock: no label decides.
void Replica::release_overdue() {
  std::map<std::string, io::BootTime> waiting;
  std::vector<std::string> overdue;
  for (const auto& [name, source] : catalog_.order.sources) {
    if (source.waiting.empty() || !may_release(catalog_.order, source.waiting.front())) continue;
    const BatchFacts& batch = source.waiting.front();
    const std::string key = name + "/" + batch.generation.to_string() + "/" + std::to_string(batch.number.value);
    auto known = waiting_since_.find(key);
    const io::BootTime since = known == waiting_since_.end() ? env_.now() : known->second;
    waiting[key] = since;
    if (env_.now() - since >= options_.missing_wait) overdue.push_back(name);
  }
  waiting_since_ = std::move(waiting);
  for (const std::string& source : overdue) intake_->release(source);
}

void Replica::watch_held() {
  release_overdue();
  intake_->try_again();
  std::set<std::string> told;
  for (const Overdue& o : overdue()) {
    if (!overdue_told_.contains(o.batch)) raise_alarm("held_too_long", o.batch, o.text);
    told.insert(o.batch);
  }
  overdue_told_ = std::move(told);
  watch_timer_ = env_.after(kHeldWatch, [this] { watch_held(); });
}

std::string Replica::status_json() { return status_text(*this); }

std::vector<std::string> Replica::health() {
  std::vector<std::string> reasons;
  if (!intake_->broken()) reasons.push_back("the store has failed: " + intake_->broken().to_string());
  else if (!intake_->stalled()) reasons.push_back("batches wait to be applied: " + intake_->stalled().to_string());
  if (!intake_->full()) reasons.push_back("what is sent is refused: " + intake_->full().to_string());
  if (auto u = store_->usage(); u && u->used_bytes > u->map_bytes / 10 * 9) {
    reasons.push_back("the index has " + std::to_string(u->used_bytes) + " of at most " + std::to_string(u->map_bytes) +
                      " bytes: when it is full nothing is taken any more");
  }
  if (!catalog_.mixed.empty()) {
    const auto& [one, other] = catalog_.mixed.front();
    const size_t more = catalog_.mixed.size() - 1;
    reasons.push_back("images " + one.to_string() + " and " + other.to_string() +
                      (more != 0 ? ", and " + std::to_string(more) + " pairs more," : "") +
                      " were kept in one place by an earlier version: what is shown of either may be the other's; "
                      "give the replica an empty directory, then `tidemark journal resync-replica` on the shared node "
                      "and each host");
  }
  if (closing_) reasons.push_back("the replica is stopping");
  size_t cut_off = 0;
  for (const auto& [of, cut] : catalog_.cut_offs) {
    if (cut.until.value != 0 || cut.removed != 0 || ++cut_off > kCutOffNamed) continue;
    reasons.push_back("image " + of.first.to_string() + " is shown as it was before point " +
                      std::to_string(of.second.value) + ": what follows rests on writes of " + cut.source +
                      " that were lost with its journal; `tidemark journal resync-replica` on the host that has the "
                      "image sends all of it");
  }
  if (cut_off > kCutOffNamed) reasons.push_back("so are " + std::to_string(cut_off - kCutOffNamed) + " images more");
  for (Overdue& o : overdue()) reasons.push_back(std::move(o.text));
  return reasons;
}

void Replica::register_metrics(metrics::Registry& registry) {
  alarms_total_ =
      registry.counter("replica_alarms_total", "Alarms raised: conflicts, branches, mismatches, corruption");
  struct Handles {
    metrics::Gauge accepted, applied, refused, conflicts, repeated, received, payload, apply_seconds, held, points,
        alarms, label, read, cached, branches;
  };
  auto h = std::make_shared<Handles>();   // shared with the registry's collector
  h->accepted = registry.gauge("replica_batches_accepted", "Complete batches taken since the start");
  h->applied = registry.gauge("replica_batches_applied", "Batches applied since the start");
  h->refused = registry.gauge("replica_parts_refused", "Parts answered with an error since the start");
  h->conflicts = registry.gauge("replica_conflicts", "Parts that came again with other bytes since the start");
  h->repeated = registry.gauge("replica_parts_repeated", "Parts that came again with the same bytes since the start");
  h->received = registry.gauge("replica_received_bytes", "Bytes of parts received since the start");
  h->payload = registry.gauge("replica_applied_payload_bytes", "Guest bytes applied since the start");
  h->apply_seconds = registry.gauge("replica_apply_seconds", "Time spent in applying batches since the start");
  h->held = registry.gauge("replica_batches_held", "Durable batches that wait for another source");
  h->points = registry.gauge("replica_points", "Recovery points kept");
  h->alarms = registry.gauge("replica_alarms", "Distinct alarms on record");
  h->branches = registry.gauge("replica_branches", "Slices kept aside as branches since the start");
  h->label = registry.gauge("replica_newest_label_seconds", "Time label of the newest recovery point, since 1970");
  h->read = registry.gauge("replica_read_bytes", "Image bytes read for readers since the start");
  h->cached = registry.gauge("replica_cached_bytes", "Decompressed chunks kept in memory");
  registry.on_collect([this, h] {
    const IntakeCounters& c = intake_->counters();
    h->accepted.set(static_cast<double>(c.batches_accepted));
    h->applied.set(static_cast<double>(c.batches_applied));
    h->refused.set(static_cast<double>(c.refused));
    h->conflicts.set(static_cast<double>(c.conflicts));
    h->repeated.set(static_cast<double>(c.parts_repeated));
    h->received.set(static_cast<double>(c.received_bytes));
    h->payload.set(static_cast<double>(c.applied_payload_bytes));
    h->apply_seconds.set(c.apply_seconds);
    h->branches.set(static_cast<double>(c.branches));
    h->held.set(static_cast<double>(catalog_.order.held()));
    h->points.set(static_cast<double>(reader_->newest().value));
    h->alarms.set(static_cast<double>(catalog_.alarms));
    h->read.set(static_cast<double>(reader_->read_bytes()));
    h->cached.set(static_cast<double>(files_->cached_bytes()));
    if (auto newest = reader_->point(reader_->newest()); newest)
      h->label.set(static_cast<double>(newest->record.label.ns) * 1e-9);
  });
}

}  // namespace tidemark::replica
