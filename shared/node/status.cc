// What the control socket shows of the shared node. shared/docs/control-api.md describes it.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "shared/base/version.h"
#include "shared/node/core.h"
#include "shared/node/rebuild.h"

namespace tidemark::node {

using nlohmann::json;

namespace {
constexpr double kNanosecondsPerMicrosecond = 1e3;
constexpr size_t kDamagedListed = 20;
constexpr std::chrono::seconds kOutdatedMax{30};   // not named before, while its holder is here
constexpr std::chrono::seconds kWitnessSilentMax{10};   // likewise: it may just be starting anew

// Names may hold any bytes: those that are no UTF-8 are replaced rather than thrown at.
std::string text(const json& j) { return j.dump(-1, ' ', false, json::error_handler_t::replace); }
}  // namespace

struct StatusWriter {
  Core& core;
  json hosts() const;
  json image(Image& image) const;
};

// Worth an alarm: nobody mends it, or has for a while.
bool Core::lacks_writes(const Image& image) const {
  if (!outdated_here(image)) return false;
  const bool lasts = image.outdated_since != io::BootTime{} && env_.now() - image.outdated_since > kOutdatedMax;
  return lasts || session_of(image.record.tenure.holder) == nullptr;
}

// Of `mirror = none` there is no copy here to be outdated.
bool Core::outdated_here(const Image& image) const {
  return image.record.outdated != 0 && image.attr->mirror != 0 && !image.record.tenure.holder.empty();
}

std::vector<std::string> Core::unhealthy_reasons() const {
  std::vector<std::string> out;
  if (!failed_) out.push_back("catalogue failed: " + failed_.message());
  if (group_->lost()) out.push_back("a failed sync could not be recorded: check the bricks");
  if (group_->stuck()) out.push_back("a brick of group " + group_->name() + " hangs");
  size_t damaged = 0;
  for (const auto& [id, image] : images_) {
    if (image->copy_fault || image->record.has_copy == 0) continue;
    if (++damaged <= kDamagedListed) out.push_back(label(*image) + ": " + image->copy_fault.message());
  }
  if (damaged > kDamagedListed)
    out.push_back(std::to_string(damaged - kDamagedListed) + " more images whose copies here are damaged");
  size_t lacking = 0;
  for (const auto& [id, image] : images_) {
    if (!lacks_writes(*image) || ++lacking > kDamagedListed) continue;
    const std::string& holder = image->record.tenure.holder;
    out.push_back(label(*image) + ": the copy here may lack what " + holder + " has acknowledged; that host " +
                  (session_of(holder) == nullptr ? "is away" : "has not made it level yet"));
  }
  if (lacking > kDamagedListed)
    out.push_back(std::to_string(lacking - kDamagedListed) + " more images whose copies here lack writes");
  for (const auto& [id, image] : images_) {
    if (std::string why = in_doubt_text(*image); !why.empty() && !image->again_failed) out.push_back(std::move(why));
  }
  if (!witness_fault_ && env_.now() - witness_silent_since_ >= kWitnessSilentMax)
    out.push_back("the witness is silent, and gives no vote when one is needed: " + witness_fault_.message());
  if (rebuild_) {
    std::string hosts;
    for (const std::string& host : rebuild_->awaited()) hosts += (hosts.empty() ? "" : ", ") + host;
    out.push_back("being rebuilt: waits for what these hosts know: " + hosts);
  }
  MarkSink::Usage usage = marks_->usage();
  for (std::string& reason : usage.reasons) out.push_back(std::move(reason));
  return out;
}

json StatusWriter::hosts() const {
  json hosts = json::array();
  for (const auto& [host, run] : core.catalogue_->hosts) {
    const Session* session = core.session_of(host);
    json h = {{"host", host}, {"connected", session != nullptr}, {"incarnation", run.incarnation.value}};
    if (session != nullptr) {
      h["session"] = session->number;
      h["connections"] = session->peers.size();
      io::Duration rtt = session->peers.empty() ? io::Duration(0) : session->peers.front()->link->round_trip();
      h["rtt_us"] = static_cast<double>(rtt.count()) / kNanosecondsPerMicrosecond;
    }
    hosts.push_back(std::move(h));
  }
  return hosts;
}

json StatusWriter::image(Image& image) const {
  json behind = json::object();
  for (const auto& [host, map] : image.behind) behind[host] = map.regions().size() * image.record.region_bytes;
  wire::Attr& attr = *image.attr;
  if (image.copy) {
    Result<uint64_t> allocated = image.copy->allocated_bytes();
    if (allocated) attr.allocated = *allocated;
  }
  const fence::State& tenure = image.record.tenure;
  json waiting = json::array();
  for (const fence::Waiter& w : tenure.waiters) waiting.push_back(w.host);
  json fenced = json::object();
  for (const auto& [host, epoch] : tenure.fenced) fenced[host] = epoch.value;
  return {{"path", core.names_->path(image.record.inode)},
          {"uuid", image.id.to_string()},
          {"size", attr.size},
          {"allocated", attr.allocated},
          {"epoch", tenure.epoch.value},
          {"holder", tenure.holder},
          {"holder_connected", !tenure.holder.empty() && core.session_of(tenure.holder) != nullptr},
          {"waiting", std::move(waiting)},
          {"outdated", image.record.outdated != 0},
          {"fenced", std::move(fenced)},
          {"coordinator", image.coordinator.value},
          {"mirror", attr.mirror != 0 ? "sync" : "none"},
          {"nameless", image.record.nameless != 0},
          {"region_bytes", image.record.region_bytes},
          {"behind_bytes", std::move(behind)}};
}

// Nothing, or what an operator should know of it: no host gets the image before.
std::string Core::in_doubt_text(const Image& image) const {
  if (image.record.in_doubt == 0 || !begins_upon_lost(image)) return "";
  std::string out = names_->path(image.record.inode) +
                    ": a sync of it had failed, or not ended, when it was taken by force: all of it is written again "
                    "before the next tenure begins";
  if (image.written_again)
    out += ", " + std::to_string(image.again_done) + " of " + std::to_string(image.again_total) + " bytes so far";
  if (!image.again_failed)
    out += "; the last try failed: " + image.again_failed.message() +
           " (mend the brick, or restore the image from the replica)";
  return out;
}

std::vector<std::string> Core::notes() const {
  std::vector<std::string> out;
  for (const auto& [id, image] : images_) {
    if (std::string what = in_doubt_text(*image); !what.empty() && image->again_failed) out.push_back(std::move(what));
    for (const auto& [host, epoch] : image->record.tenure.fenced) {
      out.push_back(names_->path(image->record.inode) + ": taken by force from " + host + " (epoch " +
                    std::to_string(epoch.value) +
                    "), which has not said that it knows: until then it may be writing on alone");
    }
  }
  return out;
}

std::string Core::status_json() {
  std::vector<std::string> reasons = unhealthy_reasons();
  json images = json::array();
  for (auto& [id, image] : images_) images.push_back(StatusWriter{*this}.image(*image));
  std::sort(images.begin(), images.end(), [](const json& a, const json& b) { return a["path"] < b["path"]; });
  MarkSink::Usage usage = marks_->usage();
  json journal = usage.json.empty() ? json::object() : json::parse(usage.json);
  journal["marks_unsettled"] = marks_recorded_.value - marks_settled_.value;
  journal["replica_configured"] = usage.replica_configured;
  json out = {{"node", options_.name},
              {"role", "shared"},
              {"version", version()},
              {"healthy", reasons.empty()},
              {"reasons", reasons},
              {"notes", notes()},
              {"boot", catalogue_->boot.value},
              {"loss_id", group_->loss_id().value},
              {"event", names_->last_event().value},
              {"storage", {{"group", group_->name()}, {"bricks", options_.storage.bricks}}},
              {"hosts", StatusWriter{*this}.hosts()},
              {"rebuilding",
               rebuild_ ? json{{"from", rebuild_->order.hosts}, {"awaited", rebuild_->awaited()}} : json()},
              {"images", std::move(images)},
              {"journal", std::move(journal)}};
  Result<io::FileSystem::Space> space = group_->space();
  if (space) {
    out["storage"]["total"] = space->total;
    out["storage"]["available"] = space->available;
  }
  return text(out);
}

std::string Core::journal_json() const {
  MarkSink::Usage u = marks_->usage();
  return text({{"incarnation", u.incarnation.value},
               {"generation", u.generation.to_string()},
               {"newest_closed", u.newest_closed.value},
               {"newest_durable", u.newest_durable.value},
               {"closed_batches", u.closed_batches},
               {"spool_batches", u.spool_batches},
               {"spool_bytes", u.spool_bytes},
               {"records_unstaged", u.records_unstaged},
               {"journal_bytes", u.journal_bytes},
               {"last_finished", u.last_finished}});
}

void Core::set_policy(const std::string& name, const std::string& mirror, Callback<Result<std::string>> done) {
  if (mirror != "none" && mirror != "sync") {
    return done(Status(Code::kInvalidArgument, "mirror is \"none\" or \"sync\", not \"" + mirror + "\""));
  }
  Image* image = nullptr;
  for (auto& [id, i] : images_) {
    if (id.to_string() == name || names_->path(i->record.inode) == (name.starts_with('/') ? name : "/" + name))
      image = i.get();
  }
  if (image == nullptr) return done(Status(Code::kNotFound, "no image " + name));
  wire::SetAttr m;
  m.inode = image->record.inode;
  m.mask = wire::kSetPolicy;
  m.values.mirror = mirror == "sync" ? 1 : 0;
  if (Status s = check_policy(m, nullptr); !s) return done(s);
  Result<Change> change = names_->set_attr(m, Origin{options_.name, env_.wall()});
  if (!change) return done(change.status());
  apply_change(std::move(*change), nullptr, [this, id = image->id, done = std::move(done)](const Change&) mutable {
    auto it = images_.find(id);
    if (it == images_.end()) return done(Status(Code::kNotFound, "the image was removed meanwhile"));
    done(text(StatusWriter{*this}.image(*it->second)));
  });
}

Result<Policy> parse_policy(std::string_view text) {
  json parsed = json::parse(text, nullptr, false);
  bool ok = parsed.is_object() && parsed.contains("image") && parsed["image"].is_string() &&
            parsed.contains("mirror") && parsed["mirror"].is_string();
  if (!ok) return Status(Code::kInvalidArgument, "the body must be {\"image\": ..., \"mirror\": \"none\" or \"sync\"}");
  return Policy{parsed["image"].get<std::string>(), parsed["mirror"].get<std::string>()};
}

}  // namespace tidemark::node
