// Connections and sessions of hosts.
#include <algorithm>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/core.h"
#include "shared/node/rebuild.h"
#include "shared/wire/features.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.session");
constexpr io::Duration kPingInterval = std::chrono::seconds(5);
constexpr io::Duration kSilenceMax = std::chrono::seconds(20);
constexpr io::Duration kRefusalTime = std::chrono::seconds(1);
constexpr size_t kHostNameMax = 128;
}  // namespace

void Core::accept(std::unique_ptr<net::Stream> stream) {
  auto peer = std::make_shared<Peer>();
  peer->link = std::make_unique<wire::Connection>(env_, std::move(stream), pool_);
  peers_.insert(peer);
  std::weak_ptr<Peer> weak = peer;
  peer->hello_timer = env_.after(std::chrono::seconds(limits::kHandshakeSecondsMax), [weak] {
    PeerPtr p = weak.lock();
    if (p && !p->session) p->link->close(Status(Code::kUnavailable, "no hello came"));
  });
  peer->link->start({.on_request =
                         [this, weak](wire::Request request) {
                           if (PeerPtr p = weak.lock()) on_request(p, std::move(request));
                         },
                     .on_notify = {},
                     .on_close =
                         [this, weak](Status reason) {
                           if (PeerPtr p = weak.lock()) on_close(p, reason);
                         }});
}

void Core::on_request(const PeerPtr& peer, wire::Request request) {
  if (!failed_ || stopping_) return;
  if (request.type == wire::Type::kHello) return hello(peer, request);
  // Frames that were still unread when a newer session began are not begun.
  if (peer->session && peer->session->ended) return;
  if (peer->ready && rebuild_ && request.type != wire::Type::kReport) {
    Status status(Code::kUnavailable, "the shared node is being rebuilt");
    return peer->link->respond_failure(request.type, request.id, status);
  }
  if (!peer->ready) return peer->link->close(Status(Code::kPermission, "a request came before the hello was answered"));
  dispatch(peer, std::move(request));
}

void Core::dispatch(const PeerPtr& peer, wire::Request request) {
  using wire::Type;
  switch (request.type) {
    case Type::kWrite: return write_request(peer, request);
    case Type::kZero: return zero_request(peer, request);
    case Type::kResize: return resize_request(peer, request);
    case Type::kFlush: return flush_request(peer, request);
    case Type::kRead: return read_request(peer, request);
    case Type::kHash: return hash_request(peer, request);
    case Type::kExtents: return extents_request(peer, request);
    case Type::kRepair: return repair_request(peer, request);
    case Type::kAcquire: return acquire_request(peer, request);
    case Type::kResume: return resume_request(peer, request);
    case Type::kYield:
    case Type::kYieldUnshipped: return yield_request(peer, request);
    case Type::kStaleMap: return stale_map_request(peer, request);
    case Type::kLevel: return level_request(peer, request);
    case Type::kTakeover: return takeover_request(peer, request);
    case Type::kTerms: return terms_request(peer, request);
    case Type::kFenceSeen: return fence_seen_request(peer, request);
    case Type::kReport: return report_request(peer, request);
    default: return name_request(peer, request);
  }
}

void Core::hello(const PeerPtr& peer, const wire::Request& request) {
  wire::Hello hello;
  if (!peer->link->decode_or_close(request.type, request.body, hello)) return;
  Status status = check_hello(*peer, hello);
  const bool meets = hello.session == 0 && (hello.features & wire::kFeatureMeet) != 0;
  if (status && meets && !peer->met) return meet(peer, request.id, hello);
  if (status) status = check_run(hello);
  if (!status) return refuse_hello(*peer, request.id, status);
  peer->greeted = true;
  if (hello.session == 0) open_session(peer, request.id, hello);
  else join_session(peer, request.id, hello);
}

Status Core::check_hello(const Peer& peer, const wire::Hello& hello) const {
  const net::PeerIdentity& identity = peer.link->peer();
  if (peer.greeted) return Status(Code::kInvalidArgument, "a second hello on one connection");
  if (hello.version == 0) return Status(Code::kUnsupported, "no common protocol version");
  if (hello.cluster != options_.cluster) {
    return Status(Code::kPermission,
                  "cluster " + hello.cluster.to_string() + " is not this cluster, " + options_.cluster.to_string());
  }
  if (identity.role != net::Role::kHost) {
    return Status(Code::kPermission,
                  "a certificate of role " + std::string(net::role_name(identity.role)) + " is no host's");
  }
  if (hello.node != identity.node || hello.node.empty() || hello.node.size() > kHostNameMax) {
    return Status(Code::kPermission,
                  "node " + hello.node.substr(0, kHostNameMax) + " shows the certificate of " + identity.node);
  }
  if (hello.digest_algorithm != kDigestXxh3) return Status(Code::kUnsupported, "unknown digest algorithm");
  if (hello.incarnation.value == 0) return Status(Code::kInvalidArgument, "incarnation 0");
  return Status::ok();
}

// What the host judges by, before it opens a session: both ends' numbers only grow, unless state was put back.
void Core::meet(const PeerPtr& peer, uint64_t id, const wire::Hello& hello) {
  peer->met = true;
  wire::Met met;
  met.more = {hello_answer(hello), identity_.store, 0};
  if (rebuild_) met.more.rebuilding = rebuild_->waits_for(hello.node) ? 1 : 2;
  met.floor = catalogue_->incarnation_floor;
  if (rebuild_) met.floor = std::max(met.floor, rebuild_->order.incarnation);
  auto host = catalogue_->hosts.find(hello.node);
  if (host != catalogue_->hosts.end()) {
    met.known = host->second.incarnation;
    met.known_nonce = host->second.nonce;
    met.known_generation = host->second.journal_generation;
    met.floor = std::max(met.floor, met.known);
  }
  if (met.known_generation == hello.journal_generation) met.floor = Incarnation(0);
  if (met.floor.value != 0) met.floor.value += wire::kIncarnationsSkipped;
  met.boots.assign(catalogue_->boots.begin(), catalogue_->boots.end());
  peer->link->respond(wire::Type::kHello, id, met);
  peer->link->flush();
}

Status Core::check_run(const wire::Hello& hello) const {
  // A copied configuration or a wrong state_dir: the newcomer must not end the run that serves guests. A host whose
  // journal was really lost is let in once its old connections have ended.
  for (const auto& [number, session] : sessions_) {
    if (session->host == hello.node && session->run.journal_generation != hello.journal_generation) {
      return Status(Code::kBusy, "another tidemark-fs with another state_dir is connected as " + hello.node +
                                     ": stop it, or give this one a name and a certificate of its own");
    }
  }
  auto host = catalogue_->hosts.find(hello.node);
  if (host == catalogue_->hosts.end()) return Status::ok();
  const HostRun& newest = host->second;
  if (newest.journal_generation != hello.journal_generation && (hello.features & wire::kFeatureReset) == 0) {
    return Status(Code::kPermission, hello.node + " comes with another state (journal " +
                                         hello.journal_generation.to_string() + ") than it had before (" +
                                         newest.journal_generation.to_string() +
                                         "): mount its state_dir; if that is lost, `tidemark state reset` there");
  }
  const std::string incarnation = "incarnation " + std::to_string(hello.incarnation.value) + " of " + hello.node;
  if (hello.incarnation == newest.incarnation && hello.nonce != newest.nonce) {
    return Status(Code::kPermission, incarnation + " is known with another nonce: the host's state was copied or put "
                                                  "back from an earlier time; `tidemark state reset` there, and "
                                                  "its copies are filled anew");
  }
  if (hello.incarnation < newest.incarnation) {
    return Status(Code::kPermission, incarnation + " is over: the known one is " +
                                         std::to_string(newest.incarnation.value) +
                                         "; if its state was put back from an earlier time, "
                                         "`tidemark state reset` there");
  }
  return Status::ok();
}

void Core::refuse_hello(Peer& peer, uint64_t id, const Status& status) {
  kLog.warning("hello_refused", {{"peer", peer.link->peer_name()}, {"reason", status}});
  frames_refused_total_.add();
  peer.link->respond_failure(wire::Type::kHello, id, status);
  peer.link->flush();
  // Closing drops what the host has not yet taken: it gets a moment to learn the reason.
  peer.greeted = true;
  env_.cancel(peer.hello_timer);
  Status reason = status.with_context("hello refused");
  peer.hello_timer = env_.after(kRefusalTime, [weak = peer.weak_from_this(), reason] {
    if (PeerPtr p = weak.lock()) p->link->close(reason);
  });
}

void Core::open_session(const PeerPtr& peer, uint64_t id, const wire::Hello& hello) {
  std::vector<SessionPtr> older;
  for (auto& [number, session] : sessions_) {
    if (session->host == hello.node) older.push_back(session);
  }
  if (TM_PLANTED("a new session leaves the older ones")) older.clear();
  for (const SessionPtr& session : older)
    end_session(session, Status(Code::kUnavailable, "superseded by a new session"));
  if (sessions_.size() >= limits::kSessionsMax) {
    return refuse_hello(*peer, id, Status(Code::kUnavailable, "too many hosts"));
  }

  auto session = std::make_shared<Session>();
  session->number = ++next_session_;
  session->host = hello.node;
  session->run = {hello.incarnation, hello.nonce, hello.journal_generation};
  session->features = hello.features;
  session->peers.push_back(peer);
  sessions_.emplace(session->number, session);
  host_gone_at_.erase(hello.node);
  peer->session = session;
  if ((hello.features & wire::kFeatureSuccessor) != 0) pass_users_on(hello.node, hello.incarnation);
  else forget_users(hello.node, hello.incarnation);

  kv::WriteBatch batch;
  HostRun& newest = catalogue_->hosts[hello.node];
  if (newest.incarnation != hello.incarnation) {
    if ((hello.features & wire::kFeatureSuccessor) == 0) {   // its numbers begin anew
      catalogue_->made.erase(hello.node);
      erase_made(batch, hello.node);
    }
    newest = session->run;
    put_host(batch, hello.node, newest);
  }
  commit(std::move(batch), [this, peer, id, hello] {
    // What older sessions had begun is finished before the host hears from us.
    when_drained(hello.node, [this, peer, id, hello] { answer_hello(peer, id, hello); });
  });
}

void Core::when_drained(const std::string& host, UniqueFunction<void()> then) {
  std::erase_if(draining_, [](const SessionPtr& s) { return s->ops == 0; });
  for (const SessionPtr& session : draining_) {
    if (session->host != host) continue;
    session->when_drained.push_back(
        [this, host, then = std::move(then)]() mutable { when_drained(host, std::move(then)); });
    return;
  }
  then();
}

void Core::join_session(const PeerPtr& peer, uint64_t id, const wire::Hello& hello) {
  auto it = sessions_.find(hello.session);
  if (it == sessions_.end() || it->second->host != hello.node || it->second->run.incarnation != hello.incarnation ||
      it->second->run.nonce != hello.nonce) {
    return refuse_hello(*peer, id,
                        Status(Code::kUnavailable, "session " + std::to_string(hello.session) + " has ended"));
  }
  Session& session = *it->second;
  if (session.peers.size() >= limits::kConnectionsPerSessionMax) {
    return refuse_hello(*peer, id, Status(Code::kInvalidArgument, "too many connections in one session"));
  }
  session.peers.push_back(peer);
  peer->session = it->second;
  answer_hello(peer, id, hello);
}

wire::HelloAnswer Core::hello_answer(const wire::Hello& hello) const {
  wire::HelloAnswer answer;
  answer.version = std::min(hello.version, wire::kProtocolVersion);
  answer.node = options_.name;
  answer.boot = catalogue_->boot;
  answer.loss_id = group_->loss_id();
  answer.event = names_->last_event();
  answer.clock = env_.wall();
  answer.features = hello.features & (wire::kFeatureCompare | wire::kFeatureSpecialFiles |
                                      wire::kFeatureYieldUnshipped | wire::kFeatureCreateOnce);
  return answer;
}

void Core::answer_hello(const PeerPtr& peer, uint64_t id, const wire::Hello& hello) {
  if (!peer->session || peer->session->ended) return;
  env_.cancel(std::exchange(peer->hello_timer, {}));
  peer->ready = true;
  // The host's stream will say so of all events up to this one: a crash here must not give its number to another.
  commit({}, [this, peer, id, hello, event = names_->last_event()] { send_hello_answer(peer, id, hello, event); });
}

void Core::send_hello_answer(const PeerPtr& peer, uint64_t id, const wire::Hello& hello, EventNumber event) {
  if (!peer->session || peer->session->ended) return;
  wire::HelloAnswer answer = hello_answer(hello);
  answer.event = event;
  if (hello.session == 0) peer->session->loss = answer.loss_id;
  answer.session = peer->session->number;
  kLog.info(hello.session == 0 ? "session_opened" : "session_joined",
            {{"host", hello.node}, {"session", answer.session}, {"incarnation", hello.incarnation}});
  wire::HelloAnswerMore more{answer, identity_.store, 0};
  if (rebuild_) more.rebuilding = rebuild_->waits_for(hello.node) ? 1 : 2;
  if ((hello.features & wire::kFeatureHelloMore) == 0) peer->link->respond(wire::Type::kHello, id, answer);
  else peer->link->respond(wire::Type::kHello, id, more);
  peer->link->keep_alive(kPingInterval, kSilenceMax);
}

void Core::end_session(const SessionPtr& ended, const Status& reason) {
  SessionPtr session = ended;   // the caller's may go with its connection
  if (std::exchange(session->ended, true)) return;
  kLog.info("session_ended", {{"host", session->host}, {"session", session->number}, {"reason", reason}});
  sessions_.erase(session->number);
  if (session->ops > 0) draining_.push_back(session);
  host_gone_at_[session->host] = env_.now();
  drop_waiting(*session);
  std::vector<PeerPtr> peers = std::move(session->peers);
  session->peers.clear();
  for (const PeerPtr& peer : peers) {
    for (Op* op : std::exchange(peer->held_reads, {})) finish(op);
    peer->link->close(reason);
  }
}

void Core::on_close(const PeerPtr& peer, const Status& reason) {
  env_.cancel(std::exchange(peer->hello_timer, {}));
  peers_.erase(peer);
  if (peer->met && !peer->greeted) {
    kLog.warning("refused_by_host",
                 {{"peer", peer->link->peer_name()}, {"reason", reason}, {"do", "look at its status, which says why"}});
  } else if (!peer->session) {
    kLog.info("connection_closed", {{"peer", peer->link->peer_name()}, {"reason", reason}});
  }
  // A session whose connection ended is of no use to either side: the host opens a new one.
  if (peer->session) end_session(peer->session, reason);
}

Session* Core::session_of(const std::string& host) const {
  for (const auto& [number, session] : sessions_) {
    if (session->host == host) return session.get();
  }
  return nullptr;
}

void Core::notify_others(const Session* except, const Change::Name& name) {
  wire::InvalidateNotify notify{name.inode, name.parent, name.name};
  for (const auto& [number, session] : sessions_) {
    if (session.get() == except || session->peers.empty()) continue;
    session->peers.front()->link->notify(wire::Type::kInvalidateNotify, notify);
  }
}

}  // namespace tidemark::node
