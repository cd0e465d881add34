// state: what a node's state directory holds, and beginning anew when it is lost. Works without the daemon.

#include <algorithm>
#include <iterator>

#include "shared/cli/commands.h"
#include "shared/cli/http.h"
#include "shared/cli/in_use.h"
#include "shared/cli/output.h"
#include "shared/image/side_file.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"
#include "shared/net/pki.h"
#include "shared/state/identity.h"

namespace tidemark::cli {
namespace {

struct Node {
  config::Node node;
  state::Spec spec;
};

Result<Node> load(Context& context, bool with_cluster = true) {
  TM_ASSIGN_OR_RETURN(std::string file, context.config_file());
  TM_ASSIGN_OR_RETURN(std::string role, config::role_of(file));
  Node out;
  config::Tls tls;
  if (role == "host") {
    TM_ASSIGN_OR_RETURN(config::Host c, config::load_host(file));
    out.node = c.node, tls = c.tls, out.spec.bricks = c.storage.bricks, out.spec.parts = state::parts_of_host();
  } else if (role == "shared") {
    TM_ASSIGN_OR_RETURN(config::Shared c, config::load_shared(file));
    out.node = c.node, tls = c.tls, out.spec.bricks = c.storage.bricks, out.spec.parts = state::parts_of_shared();
  } else if (role == "replica") {
    TM_ASSIGN_OR_RETURN(config::Replica c, config::load_replica(file));
    out.node = c.node, tls = c.tls, out.spec.parts = state::parts_of_replica(c.witness);
  } else {
    TM_ASSIGN_OR_RETURN(config::Witness c, config::load_witness(file));
    out.node = c.node, tls = c.tls, out.spec.parts = state::parts_of_witness();
  }
  if (with_cluster) {
    TM_ASSIGN_OR_RETURN(net::pki::CertificateInfo info, net::pki::inspect(tls.certificate));
    out.spec.cluster = info.cluster;
  }
  out.spec.directory = out.node.state_dir;
  out.spec.role = out.node.role;
  out.spec.node = out.node.name;
  out.spec.config_file = file;
  return out;
}

// What beginning anew means for the images of the cluster.
std::string cost(const std::string& role) {
  if (role == "host")
    return "this host's copies are filled anew from the shared node, once its images are used; writes that it alone "
           "had acknowledged (going on alone, a crash since) and points that it had not shipped are lost; the replica "
           "shows an image of which something was not shipped as it was before, in later points too, until all of it "
           "is sent: by this host, with the image's next use here; by another that has it or uses it first, once "
           "`tidemark journal resync-replica` was said there (alarm `journal_lost` at the replica names the images)";
  if (role == "shared")
    return "the shared node knows no image any more; hosts go on alone and do not accept it before it is rebuilt";
  if (role == "replica")
    return "the replica has no recovery point any more; hosts and shared node send it what they have after `tidemark "
           "journal resync-replica` on each";
  return "the witness votes for nobody before an image is registered anew, which takes both ends, level";
}

Json json_of(const Node& node, const state::Look& found) {
  Json parts = Json::array();
  for (const state::Look::Found& part : found.parts) {
    const state::Part* known = found.identity ? found.identity->find(part.spec.name) : nullptr;
    std::string verdict = "new";
    if (known != nullptr)
      verdict = !part.there ? "missing" : !part.tag ? "emptied" : part.tag->part == known->id ? "good" : "another's";
    else if (part.there) verdict = part.tag ? "unknown" : "older layout";
    parts.push_back(Json{{"name", part.spec.name}, {"path", part.path}, {"verdict", verdict},
                         {"id", part.tag ? Json(part.tag->part.to_string()) : Json(nullptr)}});
  }
  Json j{{"node", node.node.name}, {"role", node.node.role}, {"state_dir", node.spec.directory}, {"parts", parts},
         {"bricks_in_use", found.marked_bricks}};
  j["state"] = found.identity ? Json(found.identity->state.to_string()) : Json(nullptr);
  j["generation"] = found.identity ? found.identity->generation.value : 0;
  return j;
}

Status want_force(const std::string& what) {
  return Status(Code::kInvalidArgument, "say --force: " + what + "; --dry-run shows what would be moved");
}

Json moves(const state::SetAside& moved, bool dry_run, std::string& out) {
  Json list = Json::array();
  out += dry_run ? "would set aside:\n" : "set aside:\n";
  for (size_t i = 0; i < moved.from.size(); ++i) {
    list.push_back(Json{{"from", moved.from[i]}, {"to", moved.to[i]}});
    out += "  " + printable(moved.from[i]) + " -> " + printable(moved.to[i]) + "\n";
  }
  if (moved.from.empty()) out += "  nothing: there is no state\n";
  return list;
}

}  // namespace

Result<state::Spec> state_spec(Context& context) {
  auto whole = load(context);
  if (whole) return whole->spec;
  TM_ASSIGN_OR_RETURN(Node node, load(context, false));   // its certificate cannot be read: of what cluster is not known
  return node.spec;
}

Outcome state_show(Context& context) {
  TM_ASSIGN_OR_RETURN(Node node, load(context));
  io::RealEnvOptions options;
  options.open_store = kv::open_lmdb_store;
  io::RealEnv env(std::move(options));
  TM_ASSIGN_OR_RETURN(state::Look found, state::look(env, node.spec));
  Json j = json_of(node, found);
  std::string out = node.node.role + " " + printable(node.node.name) + ": " + printable(node.spec.directory) + ", " +
                    (found.identity ? "state " + found.identity->state.to_string() : "no identity file") + "\n";
  bool good = true;
  for (const Json& part : at(j, "parts")) {
    const std::string verdict = text(part, "verdict");
    good = good && (verdict == "good" || verdict == "new");
    out += "  " + printable(text(part, "name")) + ": " + verdict + "\n";
  }
  context.result(j, out);
  return good ? 0 : 1;
}

Outcome state_reset(Context& context, const StateResetOptions& o) {
  TM_ASSIGN_OR_RETURN(Node node, load(context));
  io::RealEnvOptions options;
  options.open_store = kv::open_lmdb_store;
  io::RealEnv env(std::move(options));
  daemon::PidFile lock;
  if (!o.dry_run) {
    if (!o.force) return want_force(cost(node.node.role));
    TM_ASSIGN_OR_RETURN(lock, keep_daemon_away(node.node));
  }
  TM_ASSIGN_OR_RETURN(state::SetAside moved, state::set_aside(env, node.spec, true, o.dry_run));
  std::string out;
  Json list = moves(moved, o.dry_run, out);
  out += "then: " + cost(node.node.role) + "\n";
  context.result(Json{{"dry_run", o.dry_run}, {"moved", list}, {"cost", cost(node.node.role)}}, out);
  return 0;
}

namespace {

// A brick without a marker was emptied, or its disk is not mounted: nobody is to find that out afterwards.
Status check_bricks(io::Env& env, const Node& node, bool without) {
  if (without) return Status::ok();
  for (const std::string& brick : node.spec.bricks) {
    auto marker = env.files().stat(brick + "/" + std::string(image::kMarkerName));
    if (marker) continue;
    if (marker.status().code() != Code::kNotFound) return marker.status().with_context("brick " + brick);
    return Status(Code::kInvalidArgument,
                  "brick " + brick + " holds no blocks: mount its disk; if what it held is lost, say "
                  "--without-bricks: then the hosts' copies count");
  }
  return Status::ok();
}

// What the replica knows: the newest epoch of each image that reached it, since no later one may come twice, and the
// hosts that ever sent it anything, with the newest incarnation of any of them.
struct AtReplica {
  std::map<ImageId, Epoch> epochs;
  std::vector<std::string> hosts;
  Incarnation incarnation;
};

Result<AtReplica> look_at_replica(Context& context, bool without) {
  AtReplica known;
  std::map<ImageId, Epoch>& out = known.epochs;
  TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
  if (without || !config->replica) return known;
  auto read = [&]() -> Status {
    TM_ASSIGN_OR_RETURN(ReplicaClient * replica, context.replica());
    TM_ASSIGN_OR_RETURN(Json status, replica->status());
    for (const Json& source : at(status, "sources")) {
      if (text(source, "role") != "host") continue;
      known.hosts.push_back(text(source, "source"));
      known.incarnation = std::max(known.incarnation, Incarnation(number(source, "incarnation")));
    }
    for (const Json& branch : at(status, "branches")) {
      if (auto id = Uuid::parse(text(branch, "image")))
        out[*id] = std::max({out[*id], Epoch(number(branch, "epoch")), Epoch(number(branch, "newer_epoch"))});
    }
    auto newest = replica->resolve("latest");
    if (!newest && newest.status().code() == Code::kNotFound) return Status::ok();   // it has no point yet
    if (!newest) return newest.status();
    TM_ASSIGN_OR_RETURN(Json tree, replica->tree(*newest));
    for (const Json& entry : at(tree, "entries")) {
      if (auto id = Uuid::parse(text(entry, "uuid"))) out[*id] = std::max(out[*id], Epoch(number(entry, "epoch")));
    }
    return Status::ok();
  };
  if (Status asked = read(); !asked)
    return asked.with_context("the replica, whose epochs count, was not heard (--without-replica does without)");
  return known;
}

// The tenures that the witness was told of, whose holders need not be among the hosts that report; it votes in no older one.
Result<uint64_t> look_at_witness(Context& context, bool without, std::map<ImageId, Epoch>& epochs) {
  TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
  if (without || !config->witness) return uint64_t{0};
  Http witness = Http::to_server(*config->witness, config->tls);
  uint64_t images = 0;
  for (std::string after;;) {
    auto page = witness.get("/v1/witness/records" + after);
    if (!page) return page.status().with_context("the witness, whose epochs count, was not heard (--without-witness does without)");
    const Json records = at(*page, "records");
    for (const Json& record : records) {
      const auto id = Uuid::parse(text(record, "image"));
      if (!id) return Status(Code::kCorruption, config->witness->url + ": a record without an image");
      epochs[*id] = std::max(epochs[*id], Epoch(number(record, "epoch")));
      after = "/" + id->to_string();
      ++images;
    }
    if (records.empty()) return images;
  }
}

// A name that no host has is waited for without end; one that is left out is a host whose writes are lost.
Result<std::vector<std::string>> check_hosts(const std::vector<std::string>& named, const Node& node,
                                             const std::vector<std::string>& known) {
  std::vector<std::string> texts, out;
  for (const std::string& list : named) {
    for (size_t at = 0; at != std::string::npos;) {
      const size_t comma = list.find(',', at);
      texts.push_back(list.substr(at, comma - at));
      at = comma == std::string::npos ? comma : comma + 1;
    }
  }
  for (const std::string& text : texts) {
    const size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
    const std::string host = begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
    auto refuse = [&](const std::string& why) { return Status(Code::kInvalidArgument, "--hosts " + why); };
    if (host.empty()) return refuse("has an empty name in it: name the hosts, with commas between them");
    if (!net::pki::is_node_name(host)) return refuse(printable(host) + ": that is no node's name");
    if (host == node.node.name) return refuse(host + ": that is the shared node itself");
    if (std::find(out.begin(), out.end(), host) != out.end()) return refuse(host + ": it is named twice");
    if (!known.empty() && std::find(known.begin(), known.end(), host) == known.end()) {
      std::string others;
      for (const std::string& other : known) others += " " + other;
      return refuse(host + ": the replica never heard of it, but of" + others +
                    "; if it is a host all the same, say --without-replica");
    }
    out.push_back(host);
  }
  return out;
}

}  // namespace

Outcome shared_rebuild(Context& context, const RebuildOptions& o) {
  TM_ASSIGN_OR_RETURN(Node node, load(context));
  if (node.node.role != "shared")
    return Status(Code::kInvalidArgument,
                  node.spec.config_file + " is of a " + node.node.role + ": name the shared node's");
  const std::string loss = "what a host knows that is not named with --hosts is lost: images that it alone has, and "
                           "writes that it acknowledged alone";
  io::RealEnvOptions options;
  options.open_store = kv::open_lmdb_store;
  io::RealEnv env(std::move(options));
  daemon::PidFile lock;
  if (!o.dry_run) {
    if (!o.force) return want_force(loss);
    TM_ASSIGN_OR_RETURN(lock, keep_daemon_away(node.node));
  }
  TM_RETURN_IF_ERROR(check_bricks(env, node, o.without_bricks));
  TM_ASSIGN_OR_RETURN(AtReplica replica, look_at_replica(context, o.without_replica));
  const size_t at_replica = replica.epochs.size();
  TM_ASSIGN_OR_RETURN(const uint64_t at_witness, look_at_witness(context, o.without_witness, replica.epochs));
  TM_ASSIGN_OR_RETURN(const std::vector<std::string> hosts, check_hosts(o.hosts, node, replica.hosts));
  std::vector<std::string> left_out;
  std::copy_if(replica.hosts.begin(), replica.hosts.end(), std::back_inserter(left_out),
               [&](const std::string& host) { return std::find(hosts.begin(), hosts.end(), host) == hosts.end(); });
  TM_ASSIGN_OR_RETURN(state::SetAside moved, state::set_aside(env, node.spec, o.without_bricks, o.dry_run));
  const state::RebuildOrder order{hosts, replica.epochs, replica.incarnation};
  if (!o.dry_run) TM_RETURN_IF_ERROR(state::write_rebuild_order(env, node.spec.directory, order));
  std::string out;
  Json list = moves(moved, o.dry_run, out);
  out += "then: start the shared node; it waits for what these hosts know, which go on meanwhile:\n ";
  for (const std::string& host : hosts) out += " " + printable(host);
  if (!left_out.empty()) {
    out += "\nknown to the replica, and NOT named:\n ";
    for (const std::string& host : left_out) out += " " + printable(host);
  }
  out += "\n" + loss + "\n";
  context.result(Json{{"dry_run", o.dry_run}, {"moved", list}, {"hosts", hosts}, {"left_out", left_out},
                      {"cost", loss}, {"images_at_replica", at_replica}, {"images_at_witness", at_witness}}, out);
  return 0;
}

}  // namespace tidemark::cli
