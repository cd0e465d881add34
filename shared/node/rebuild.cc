// A shared node whose catalogue was lost: it takes reports from the hosts that an operator named, and nothing else,
// until it has them all; then the catalogue is made (rebuild_plan.cc) and committed at once, and the hosts, whose
// sessions are ended, come back to it. Reports are in memory only: a crash before that asks for them again.
#include "shared/node/rebuild.h"

#include <algorithm>
#include <utility>

#include "shared/base/log.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.rebuild");
constexpr size_t kEntriesMax = 4u << 20;   // of one host's report
constexpr uint64_t kBootsSkipped = 1000;   // runs that no host has seen
constexpr int64_t kSecondNs = 1'000'000'000;
}  // namespace

Status Core::open_rebuild() {
  TM_ASSIGN_OR_RETURN(state::RebuildOrder order, read_rebuilding(*store_));
  if (order.hosts.empty()) return Status::ok();
  rebuild_ = std::make_unique<Rebuild>();
  rebuild_->order = std::move(order);
  kLog.warning("rebuilding", {{"node", options_.name}, {"waits_for_hosts", rebuild_->order.hosts.size()}});
  return Status::ok();
}

void Core::report_request(const PeerPtr& peer, wire::Request& request) {
  wire::ReportMore more;
  wire::Report& m = more.base;
  const bool read = peer->met ? peer->link->decode_or_close(request.type, request.body, more)
                              : peer->link->decode_or_close(request.type, request.body, m);
  if (!read) return;
  const std::string& host = peer->session->host;
  if (!rebuild_ || !rebuild_->waits_for(host)) {
    return peer->link->respond_failure(request.type, request.id, Status(Code::kUnavailable, "no report is awaited"));
  }
  HostReport& report = rebuild_->reports[host];
  if (m.first != 0) {
    report = HostReport{};
    report.cut = m.cut;
  }
  report.event = std::max(report.event, m.event);
  report.boot = std::max(report.boot, more.boot);
  if (report.entries.size() + m.entries.size() > kEntriesMax) {
    return peer->link->close(Status(Code::kInvalidArgument, "a report of too many names"));
  }
  for (wire::ReportEntry& e : m.entries) report.entries.push_back(std::move(e));
  if (m.last != 0) {
    report.complete = true;
    report.run = peer->session->run;
    kLog.info("reported", {{"host", host}, {"names", report.entries.size()}, {"awaited", rebuild_->awaited().size()}});
  }
  peer->link->respond(request.type, request.id, ByteSpan{});
  peer->link->flush();
  if (!rebuild_->awaited().empty()) return;
  env_.post([this, self = self_] {
    if (*self != nullptr) rebuild();
  });
}

void Core::rebuild() {
  if (!rebuild_ || !rebuild_->awaited().empty()) return;
  auto list = group_->list();
  if (!list) return fatal(list.status());
  for (const Status& damaged : list->damaged) kLog.warning("side_file_damaged", {{"error", damaged}});
  const WallTime now = env_.wall();
  RebuildPlan plan = plan_rebuild({rebuild_->reports, list->images, now, options_.region_bytes,
                                   rebuild_->order.epochs});
  kv::WriteBatch batch;
  std::map<ImageId, uint64_t> sizes;
  for (const Node& node : plan.nodes) {
    put_node(batch, node);
    sizes[node.attr.image] = node.attr.size;
  }
  for (const auto& [id, placed] : plan.images) {
    put_image(batch, id, placed.record);
    const std::string& holder = placed.record.tenure.holder;
    if (!holder.empty()) {
      put_copy(batch, id, holder);
      BehindMap map(catalogue_->boot);
      const uint64_t regions = (sizes[id] + placed.record.region_bytes - 1) / placed.record.region_bytes;
      for (uint64_t r = 0; placed.level.empty() && r < regions; ++r) map.mark(static_cast<uint32_t>(r));
      put_all_behind(batch, id, holder, map);
    }
    kLog.info("image_rebuilt", {{"image", id},
                                {"epoch", placed.record.tenure.epoch},
                                {"holder", holder},
                                {"from", placed.from}});
  }
  uint64_t boot = static_cast<uint64_t>(std::max<int64_t>(now.ns, 0) / kSecondNs);
  Incarnation newest_run = rebuild_->order.incarnation;
  for (const auto& [host, report] : rebuild_->reports) {
    put_host(batch, host, report.run);
    newest_run = std::max(newest_run, report.run.incarnation);
    boot = std::max(boot, report.boot.value + kBootsSkipped);
  }
  put_incarnation_floor(batch, newest_run);
  names_->set_counters(plan.next_inode, plan.event);
  put_counters(batch, *names_);
  // Above the boot numbers before the loss: maps that were handed out then are void.
  put_boot(batch, Incarnation(boot));
  put_rebuilding(batch, {});
  commit(std::move(batch), [this] { rebuilt(); });
}

void Core::rebuilt() {
  rebuild_.reset();
  std::vector<PeerPtr> peers(peers_.begin(), peers_.end());
  for (const PeerPtr& peer : peers) peer->link->close(Status(Code::kUnavailable, "the shared node is rebuilt"));
  images_.clear();
  if (Status loaded = load_catalogue(); !loaded) return fatal(loaded);
  kLog.warning("rebuilt", {{"node", options_.name}, {"images", images_.size()}, {"names", names_->size()}});
  if (!marks_->usage().replica_configured) return;
  // The replica learns all names again, as events above those of the node that was lost.
  resync_replica([](Result<std::string> told) {
    if (!told) kLog.warning("names_not_told", {{"error", told.status()}, {"do", "tidemark journal resync-replica"}});
  });
}

}  // namespace tidemark::node
