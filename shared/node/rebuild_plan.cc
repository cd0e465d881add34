#include <algorithm>
#include <set>

#include "shared/base/limits.h"
#include "shared/node/rebuild.h"
#include "shared/wire/recovered_name.h"

namespace tidemark::node {

namespace {

// Above what anybody may have seen: a grant whose answer was lost is in no report.
constexpr uint64_t kEpochsSkipped = 1000;
constexpr uint64_t kEventsSkipped = 1'000'000;
constexpr uint64_t kInodesSkipped = 1'000'000;
constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;

struct Named {
  wire::ReportEntry entry;
  std::string host;
};

class Planner {
 public:
  explicit Planner(const RebuildInput& input) : in_(input) {}

  RebuildPlan run() {
    gather();
    find_names();
    place_names();
    for (const image::ImageMetadata& m : in_.bricks) bricks_[m.id] = &m;
    for (Node& node : out_.nodes) {
      if (node.attr.kind == wire::NodeKind::kImage) decide(node);
    }
    for (const auto& [id, metadata] : bricks_) {
      if (!out_.images.contains(id)) unnamed(*metadata);
    }
    out_.next_inode = InodeNumber(inode_max_ + kInodesSkipped);
    out_.event = EventNumber(event_max_ + kEventsSkipped);
    for (Node& node : out_.nodes) node.attr.event = std::min(node.attr.event, out_.event);
    return std::move(out_);
  }

 private:
  void gather() {
    for (const auto& [image, epoch] : in_.epochs) epoch_max_ = std::max(epoch_max_, epoch.value);
    for (const auto& [host, report] : in_.reports) {
      event_max_ = std::max(event_max_, report.event.value);
      for (const wire::ReportEntry& e : report.entries) {
        inode_max_ = std::max({inode_max_, e.attr.inode.value, e.attr.parent.value});
        event_max_ = std::max(event_max_, e.attr.event.value);
        epoch_max_ = std::max({epoch_max_, e.attr.epoch.value, e.own.value});
        if (e.attr.inode.value <= kRootInode.value) continue;
        if (!e.attr.image.is_nil()) claims_[e.attr.image].push_back({e, host});
        auto [at, added] = newest_.try_emplace(e.attr.inode, Named{e, host});
        const bool newer = e.attr.event > at->second.entry.attr.event;
        const bool same = e.attr.event == at->second.entry.attr.event;
        if (!added && (newer || (same && e.held != 0))) at->second = {e, host};
      }
    }
  }

  // By what is newer its name is another node's.
  bool has_passed(const wire::ReportEntry& e) const {
    return std::ranges::any_of(newest_, [&](const auto& other) {
      const wire::ReportEntry& o = other.second.entry;
      return other.first != e.attr.inode && o.name == e.name && o.attr.parent == e.attr.parent &&
             o.attr.event > e.attr.event;
    });
  }

  // Of images whose host goes on with them and knows no name.
  void find_names() {
    for (auto& [inode, named] : newest_) {
      wire::ReportEntry& found = named.entry;
      if (found.attr.image.is_nil() || found.name != wire::recovered_name(found.attr.image)) continue;
      EventNumber newest;
      const std::string none = found.name;
      for (const Named& claim : claims_.at(found.attr.image)) {
        const wire::ReportEntry& e = claim.entry;
        if (e.name == none || e.attr.inode != inode || e.attr.event < newest || has_passed(e)) continue;
        newest = e.attr.event;
        found.name = e.name;
        found.attr.parent = e.attr.parent;
      }
    }
  }

  // A directory from which the root is reached by directories.
  bool has_root(InodeNumber inode) const {
    std::set<InodeNumber> seen;
    while (inode != kRootInode) {
      auto at = newest_.find(inode);
      if (at == newest_.end() || at->second.entry.attr.kind != wire::NodeKind::kDirectory) return false;
      if (!seen.insert(inode).second) return false;
      inode = at->second.entry.attr.parent;
    }
    return true;
  }

  void place_names() {
    std::vector<const Named*> order;
    for (const auto& [inode, named] : newest_) order.push_back(&named);
    std::stable_sort(order.begin(), order.end(), [](const Named* a, const Named* b) {
      return a->entry.attr.event > b->entry.attr.event;   // of two of one name the newer keeps it
    });
    for (const Named* named : order) {
      Node node;
      node.attr = named->entry.attr;
      node.name = named->entry.name;
      if (!has_root(node.attr.parent)) {
        node.attr.parent = kRootInode;
        node.name = recovered(node);
      }
      if (!taken_.insert({node.attr.parent, node.name}).second) {
        node.name = recovered(node);
        taken_.insert({node.attr.parent, node.name});
      }
      out_.nodes.push_back(std::move(node));
    }
  }

  static std::string recovered(const Node& node) {
    const std::string end = ".recovered-" + std::to_string(node.attr.inode.value);
    return node.name.substr(0, limits::kNameBytesMax - end.size()) + end;
  }

  uint64_t seconds() const { return static_cast<uint64_t>(std::max<int64_t>(in_.now.ns, 0)) / kNanosecondsPerSecond; }

  ImageRecord record_of(const wire::Attr& attr) const {
    ImageRecord record;
    record.inode = attr.inode;
    record.reserved = CoordinatorSequence(seconds() << 24);
    record.generation = Generation(seconds());
    record.region_bytes = in_.region_bytes;
    while (attr.size / record.region_bytes >= limits::kRegionsPerImageMax) record.region_bytes *= 2;
    return record;
  }

  // The newest epoch that reached the replica.
  uint64_t shipped(const ImageId& image) const {
    auto at = in_.epochs.find(image);
    return at == in_.epochs.end() ? 0 : at->second.value;
  }

  void decide(Node& node) {
    RebuildPlan::Placed placed;
    const std::vector<Named>& claims = claims_[node.attr.image];
    uint64_t newest = shipped(node.attr.image);
    for (const Named& c : claims) newest = std::max({newest, c.entry.attr.epoch.value, c.entry.own.value});
    uint64_t newest_own = 0;
    for (const Named& c : claims) newest_own = std::max(newest_own, c.entry.own.value);
    const Named* last = nullptr;   // who had the newest tenure
    for (const Named& c : claims) {
      if (newest_own != 0 && c.entry.own.value == newest_own) last = &c;
    }
    auto brick = bricks_.find(node.attr.image);
    const bool in_brick = brick != bricks_.end();
    const bool whole = last != nullptr && last->entry.copy == 2;
    const bool goes_on = last != nullptr && last->entry.held != 0 && newest_own == newest;
    // A tenure that no host here had: of one that did not report. Then no copy is known to be the newest.
    const bool unknown_line = newest > newest_own;
    if (in_brick) {
      node.attr.size = brick->second->size;
      node.attr.size_generation = brick->second->size_generation;
    }
    placed.record = record_of(node.attr);
    fence::State& tenure = placed.record.tenure;
    tenure.epoch = Epoch(newest + kEpochsSkipped);
    if (newest != 0) {   // it was written: not all zeros
      tenure.parent.epoch = Epoch(newest);
      tenure.parent.source = last != nullptr && !unknown_line ? last->host : "";
      tenure.parent.clean = false;
      if (last != nullptr && !unknown_line) tenure.parent.last = in_.reports.at(last->host).cut;
    }
    placed.record.has_copy = in_brick ? 1 : 0;
    if (node.attr.mirror == 0) {
      decide_host_only(node, placed, claims, newest);
    } else if (whole && (goes_on || (!in_brick && !unknown_line))) {
      hold(placed, *last, goes_on);
      placed.record.outdated = 1;
      placed.level = last->host;
      placed.from = "the copy of " + last->host;
      if (!in_brick) take_size(node, last->entry.attr);
    } else if (goes_on && in_brick) {   // it could not go on without the brick: what it acknowledged is there
      hold(placed, *last, true);
      placed.from = "the bricks, which " + last->host + " goes on with";
    } else if (in_brick) {
      placed.from = "the bricks";
    } else if (newest == 0) {
      placed.from = "never written";
    } else {
      placed.record.has_copy = 1;   // a missing copy is an error then, never made anew
      placed.from = "nothing: restore it from the replica";
    }
    node.attr.holder.clear();
    out_.images.emplace(node.attr.image, std::move(placed));
  }

  // `mirror = none`: what lies on the bricks is of a time before.
  void decide_host_only(Node& node, RebuildPlan::Placed& placed, const std::vector<Named>& claims, uint64_t newest) {
    const Named* by = nullptr;
    for (const Named& c : claims) {
      const bool its = c.entry.host_only != 0 && c.entry.copy == 2 && c.entry.own.value == newest;
      if (its && (by == nullptr || c.entry.held != 0)) by = &c;
    }
    if (by == nullptr) {
      placed.record.has_copy = newest == 0 ? 0 : 1;   // as below
      placed.from = newest == 0 ? "never written" : "nothing, it was on a host alone: restore it from the replica";
      return;
    }
    hold(placed, *by, by->entry.held != 0);
    placed.record.has_copy = 0;
    placed.record.outdated = 1;
    placed.level = by->host;
    placed.from = "the data of " + by->host + " alone";
    take_size(node, by->entry.attr);
  }

  void hold(RebuildPlan::Placed& placed, const Named& by, bool goes_on) {
    fence::State& tenure = placed.record.tenure;
    tenure.holder = tenure.last_holder = by.host;
    tenure.written = true;
    if (!goes_on) return;
    tenure.epoch = by.entry.own;
    tenure.parent = {};
  }

  void take_size(Node& node, const wire::Attr& from) {
    node.attr.size = from.size;
    node.attr.size_generation = from.size_generation;
  }

  // Blocks whose name nobody knows.
  void unnamed(const image::ImageMetadata& metadata) {
    Node node;
    node.attr.inode = InodeNumber(++inode_max_);
    node.attr.parent = kRootInode;
    node.attr.image = metadata.id;
    node.attr.kind = wire::NodeKind::kImage;
    node.attr.mode = 0600;
    node.attr.size = metadata.size;
    node.attr.size_generation = metadata.size_generation;
    node.attr.atime = node.attr.mtime = node.attr.ctime = node.attr.btime = in_.now;
    node.name = wire::recovered_name(metadata.id);
    RebuildPlan::Placed placed;
    placed.record = record_of(node.attr);
    placed.record.has_copy = 1;
    // Nobody says which was the newest.
    const uint64_t epoch = std::max(seconds(), epoch_max_ + kEpochsSkipped);
    placed.record.tenure.epoch = Epoch(epoch);
    placed.record.tenure.parent.epoch = Epoch(epoch - 1);
    placed.record.tenure.parent.clean = false;
    placed.from = "the bricks; no host knows its name";
    out_.nodes.push_back(std::move(node));
    out_.images.emplace(metadata.id, std::move(placed));
  }

  const RebuildInput& in_;
  RebuildPlan out_;
  std::map<InodeNumber, Named> newest_;
  std::map<ImageId, std::vector<Named>> claims_;
  std::map<ImageId, const image::ImageMetadata*> bricks_;
  std::set<std::pair<InodeNumber, std::string>> taken_;
  uint64_t inode_max_ = kRootInode.value, event_max_ = 0, epoch_max_ = 0;
};

}  // namespace

bool Rebuild::waits_for(const std::string& host) const {
  if (std::find(order.hosts.begin(), order.hosts.end(), host) == order.hosts.end()) return false;
  auto report = reports.find(host);
  return report == reports.end() || !report->second.complete;
}

std::vector<std::string> Rebuild::awaited() const {
  std::vector<std::string> out;
  for (const std::string& host : order.hosts) {
    if (waits_for(host)) out.push_back(host);
  }
  return out;
}

RebuildPlan plan_rebuild(const RebuildInput& input) { return Planner(input).run(); }

}  // namespace tidemark::node
