// The end of a run: all is healed, the guests stop, and the copies, the replica and its points are held against the models.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "fs/verifier.h"
#include "tests/sim/cluster.h"
#include "tests/sim/nodes.h"

namespace tidemark::sim {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;
}  // namespace

// Looks now and then: what is waited for may be dear to look at.
bool Cluster::wait(const std::string& what, UniqueFunction<bool()> done, Duration limit) {
  for (Duration end = world_.elapsed() + limit; failure_.empty() && !done(); world_.run_for(milliseconds(20))) {
    if (world_.elapsed() > end) fail("never came about: " + what);
  }
  return failure_.empty();
}

bool Cluster::settle() {
  world_.heal_all();
  world_.set_network_faults(0, 0, 0);
  world_.clear_faults("shared1");
  for (Host& host : hosts_) {
    world_.clear_faults(host.name);
    // A copy that failed serves again after the next start.
    if (scenario_.brick_failures == 0 || !world_.running(host.name)) continue;
    crash_host(host, Crash::kKill);
    start_host(host, false);
  }
  if (!wait("everything is up again", [this] {
        for (Host& h : hosts_) if (!world_.running(h.name)) return false;
        if (scenario_.witness == WitnessKind::kDaemon && !world_.running("witness1")) return false;
        return world_.running("shared1") && world_.running("replica1");
      })) return false;
  for (Host& host : hosts_) for (auto& guest : host.guests) guest->stop();
  for (auto& relay : relays_) {
    relay->ended = true;
    if (relay->host != nullptr) relay->guest->stop();
  }
  if (!wait("the guests' last answers", [this] {
        stop_stranded();
        if (!contest_settled()) return false;
        for (Host& h : hosts_) for (auto& g : h.guests) if (!g->idle()) return false;
        for (auto& r : relays_) if (r->host != nullptr && !r->guest->idle()) return false;
        return true;
      })) return false;
  if (scenario_.contested && !wait("every host knows what it has lost", [this] {
        for (auto& r : relays_) for (Host& h : hosts_) if (unaware(*r, h)) return false;
        return true;
      })) return false;
  return final_turns() && level() && check_branches();
}

bool Cluster::level() {
  std::string last;
  bool came = wait("every image is mirrored", [&] {
    for (Host& host : hosts_) {
      auto status = nlohmann::json::parse(host.engine->status_json());
      last = host.name + ": not connected";
      if (!status["shared"]["connected"]) return false;
      for (const auto& image : status["images"]) {
        last = host.name + ": " + image.dump();
        if (image["recovering"]) return false;
        if (image["writer"] != host.name) continue;
        if (image["mirror"] != "mirrored" || image["stale_bytes"] != 0) return false;
      }
    }
    return true;
  });
  if (!came) failure_ += "; " + last;
  return came;
}

// Each host writes once more to what moved, and reads all of it.
bool Cluster::final_turns() {
  for (auto& relay : relays_) {
    for (Host& host : hosts_) {
      GuestOptions options;
      options.turn_requests = 1;
      Guest guest(world_, *models_[relay->model], names_[relay->model], options);
      guest.start(*host.engine, *world_.process(host.name), !relay->created, [this](const std::string& what) { fail(what); });
      relay->created = true;
      if (!wait(host.name + " has its last turn on " + names_[relay->model], [&] { return guest.idle(); })) return false;
      if (!level() || !read_whole(host, relay->model) || !verify(host, {names_[relay->model]})) return false;
    }
  }
  return true;
}

bool Cluster::read_whole(Host& host, size_t model) {
  Bytes bytes(models_[model]->size());
  bool answered = false;
  host.engine->lookup(InodeNumber(1), names_[model], [&](Result<wire::Attr> attr) {
    if (!attr) return fail("lookup: " + attr.status().to_string());
    host.engine->open_image(attr->inode, [&](Result<fs::HandleId> handle) {
      if (!handle) return fail("open: " + handle.status().to_string());
      host.engine->read(*handle, 0, bytes, io::IoMode::kQueued, [&, h = *handle](Result<size_t> n) {
        host.engine->release(h);
        answered = true;
        std::string wrong = !n ? n.status().to_string() : *n != bytes.size() ? "short" : models_[model]->check_now(0, bytes);
        if (!wrong.empty()) fail(host.name + " reads " + names_[model] + ": " + wrong);
      });
    });
  });
  return wait(host.name + " reads " + names_[model], [&] { return answered; });
}

// Until the replica has what it waits for: batches of the other host may still be on their way.
bool Cluster::verify(Host& host, const std::vector<std::string>& images) {
  std::string not_level;
  for (int i = 0; i < 60 && failure_.empty(); ++i, world_.run_for(seconds(1))) {
    bool answered = false;
    not_level.clear();
    host.engine->verifier().start(images, [](uint64_t, uint64_t) {}, [&](Result<std::string> result) {
      answered = true;
      if (!result) return fail(host.name + " verify: " + result.status().to_string());
      auto json = nlohmann::json::parse(*result);
      if (json["images"].size() != images.size()) fail(host.name + " verify left images out: " + *result);
      if (json["equal"] != true) not_level = *result;
      for (const auto& image : json["images"]) {
        if (!image["differences"].empty() || image.contains("error")) fail(host.name + " verify: " + *result);
        for (const char* copy : {"host", "shared", "replica"}) if (image["copies"][copy] != "level") not_level = *result;
      }
    });
    if (!wait(host.name + " verify", [&] { return answered; })) return false;
    if (not_level.empty()) return true;
  }
  fail(host.name + " verify: a copy does not become level: " + not_level);
  return false;
}

Result<net::HttpResponse> Cluster::get(const std::string& target) {
  Result<net::HttpResponse> out = Status(Code::kUnavailable, "no answer");
  bool answered = false;
  net::HttpRequest request;
  request.method = "GET";
  request.target = target;
  reader_->request(std::move(request), [&](Result<net::HttpResponse> r) { out = std::move(r), answered = true; });
  wait("GET " + target, [&] { return answered; });
  return out;
}

std::string Cluster::read_point(const std::string& point, const std::string& image, Bytes* out) {
  auto tree = get("/v1/points/" + point + "/tree");
  if (!tree) return "tree at " + point + ": " + tree.status().to_string();
  if (tree->status != 200) return "tree at " + point + ": " + std::string(as_text(tree->body));
  const auto json = nlohmann::json::parse(as_text(tree->body));
  for (const auto& entry : json["entries"]) {
    if (entry["path"].is_null()) continue;
    std::string path = entry["path"];
    if (path != image && path != "/" + image) continue;
    std::string uuid = entry["uuid"];
    auto data = get("/v1/points/" + point + "/images/" + uuid + "/data");
    if (!data) return "data at " + point + ": " + data.status().to_string();
    if (data->status != 200) return "data at " + point + ": " + std::string(as_text(data->body));
    *out = std::move(data->body);
    return {};
  }
  return image + " is not in the tree at " + point + ": " + std::string(as_text(tree->body));
}

// A host that died before staging it has lost the mark, an emptied replica had it; else the host must say so.
bool Cluster::may_be_lost(const Marked& m) {
  if (m.host->crashes != m.crashes || m.replicas != replicas_) return true;
  const auto given_up = nlohmann::json::parse(m.host->engine->status_json())["journal"]["names_given_up"];
  return std::find(given_up.begin(), given_up.end(), m.name) != given_up.end();
}

// Whether the point says of its image, and the replica's alarm of a circle, that it shows the image as a newer tenure has it.
bool Cluster::said_to_be_later(const net::HttpResponse& resolved, const Marked& m) {
  const auto point = nlohmann::json::parse(as_text(resolved.body));
  auto status = get("/v1/status");
  auto tree = get("/v1/points/" + m.name + "/tree");
  if (!point.contains("without") || !status || status->status != 200 || !tree || tree->status != 200) return false;
  const auto alarms = nlohmann::json::parse(as_text(status->body))["alarms"];
  if (std::none_of(alarms.begin(), alarms.end(), [](const auto& a) { return a["kind"] == "circular_wait"; })) return false;
  const auto json = nlohmann::json::parse(as_text(tree->body));
  for (const auto& entry : json["entries"]) {
    if (entry["path"].is_null() || (entry["path"] != m.image && entry["path"] != "/" + m.image)) continue;
    const std::string begin = "image " + entry["uuid"].template get<std::string>() + ", which is shown as epoch ";
    for (const auto& text : point["without"])
      if (text.template get<std::string>().starts_with(begin)) return true;
  }
  return false;
}

bool Cluster::check_points() {
  SimEnv& env = world_.start("reader");
  auto client = env.network().http_client({.url = kReplicaUrl, .tls = net::TlsFiles{}});
  if (!client) return fail("reader: " + client.status().to_string()), false;
  reader_ = std::move(*client);
  for (size_t i = 0; i < models_.size() && failure_.empty(); ++i) {
    Bytes bytes;
    std::string wrong = read_point("latest", names_[i], &bytes);
    if (wrong.empty() && bytes.size() != models_[i]->size()) wrong = "size " + std::to_string(bytes.size());
    if (wrong.empty()) wrong = models_[i]->check_now(0, bytes);
    if (!wrong.empty()) fail("newest point of " + names_[i] + ": " + wrong);
  }
  for (const auto& m : marks_) {
    if (!m->complete || !failure_.empty()) continue;
    // Of an image that was taken a point of either line may be a branch, or given up for the whole image that stands in.
    if (scenario_.contested && m->model >= models_.size() - relays_.size()) continue;
    auto resolved = get("/v1/points/resolve?name=" + m->name);
    if (resolved && resolved->status == 404 && may_be_lost(*m)) continue;
    Bytes bytes;
    std::string wrong = read_point(m->name, m->image, &bytes);
    if (wrong.empty() && bytes.size() != models_[m->model]->size()) wrong = "size " + std::to_string(bytes.size());
    if (wrong.empty() && !m->held) {
      wrong = models_[m->model]->check(m->after, 0, bytes);
      if (!wrong.empty() && said_to_be_later(*resolved, *m)) wrong = models_[m->model]->check_since(m->after, 0, bytes);
    }
    if (!wrong.empty()) fail("point " + m->name + ": " + wrong);
  }
  return failure_.empty();
}

}  // namespace tidemark::sim
