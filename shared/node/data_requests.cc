// Data requests of hosts, from messages to Ops; data.cc carries those out.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "shared/base/limits.h"
#include "shared/node/core.h"

namespace tidemark::node {

namespace {
constexpr io::Duration kPumpInterval = std::chrono::milliseconds(1);
constexpr io::Duration kHolderPoll = std::chrono::milliseconds(50);
constexpr io::Duration kBusyHolderWait = std::chrono::seconds(30);   // and tenure_wait after it, or once it is silent
// A host goes on alone no sooner than 1400 ms after it was there for certain, with a witness no sooner than 1200 ms
// after it last sent anything, which is later still; the rest is for clocks of other speeds.
// Its pings, one every 250 ms, say that it was there at the one before: 250 to 500 ms ago, on a long link later.
constexpr io::Duration kHolderSilenceMax = std::chrono::milliseconds(1000);
}  // namespace

std::string Core::label(const Image& image) const {
  std::string path = names_->path(image.record.inode);
  return (path.empty() ? "nameless image" : path) + " (" + image.id.to_string() + ")";
}

Status Core::no_mirror(const Image& image) const {
  return Status(Code::kUnsupported, label(image) + " has `mirror = none`: its blocks are not kept here");
}

Image* Core::find_image(Peer& peer, const wire::Request& request, const ImageId& id) {
  auto it = images_.find(id);
  if (it != images_.end()) return it->second.get();
  peer.link->respond_failure(request.type, request.id, Status(Code::kNotFound, "no image " + id.to_string()));
  return nullptr;
}

void Core::note_user(Image& im, Session& session) {
  if (im.last_user == session.number) return;
  im.last_user = session.number;
  im.users[session.host] = session.run.incarnation;
}

io::IoMode Core::mode_for(const wire::Request& request) const {
  const bool alone = request.alone && ops_ == 0 && request.type == wire::Type::kRead;
  return alone ? io::IoMode::kInline : io::IoMode::kQueued;
}

Op* Core::new_op(const PeerPtr& peer, const wire::Request& request, Image& image) {
  if (free_ops_.empty()) {
    all_ops_.push_back(std::make_unique<Op>());
    free_ops_.push_back(all_ops_.back().get());
  }
  Op* op = free_ops_.back();
  free_ops_.pop_back();
  op->mode = mode_for(request);
  op->peer = peer;
  op->session = peer->session;
  op->image = &image;
  op->type = request.type;
  op->id = request.id;
  ++ops_;
  ++image.ops;
  ++op->session->ops;
  image.used_at = ++use_clock_;
  return op;
}

// The op of a request that changes blocks. Null: there is no image, or the peer sends too much.
Op* Core::changing_op(const PeerPtr& peer, wire::Request& request, Image* image, Epoch epoch) {
  if (image == nullptr) return nullptr;
  peer->payload_bytes += request.payload.size();
  if (peer->payload_bytes > limits::kPeerPayloadBytesMax) {
    peer->link->close(Status(Code::kInvalidArgument, "too many bytes sent without waiting for answers"));
    return nullptr;
  }
  Op* op = new_op(peer, request, *image);
  op->epoch = epoch;
  op->payload = std::move(request.payload);
  op->exclusive = true;
  return op;
}

void Core::write_request(const PeerPtr& peer, wire::Request& request) {
  Result<wire::Write> m = wire::decode_write(request.body);
  if (!m) return peer->link->close(m.status());
  Op* op = changing_op(peer, request, find_image(*peer, request, m->image), m->epoch);
  if (op == nullptr) return;
  op->sequence = m->sequence;
  op->offset = m->offset;
  op->length = op->payload.size();
  op->kind = m->flags;
  submit(op);
}

void Core::zero_request(const PeerPtr& peer, wire::Request& request) {
  wire::Zero m;
  Op* op = changing_op(peer, request, m);
  if (op == nullptr) return;
  op->sequence = m.sequence;
  op->offset = m.extent.offset;
  op->length = m.extent.length;
  op->kind = m.kind;
  submit(op);
}

void Core::repair_request(const PeerPtr& peer, wire::Request& request) {
  wire::Repair m;
  Op* op = changing_op(peer, request, m);
  if (op == nullptr) return;
  if (op->payload.size() != (m.hole != 0 ? 0 : m.extent.length)) {
    peer->link->close(Status(Code::kCorruption, "a repair's payload has another length than its extent"));
    return finish(op);
  }
  op->offset = m.extent.offset;
  op->length = m.extent.length;
  op->kind = m.hole;
  submit(op);
}

void Core::resize_request(const PeerPtr& peer, wire::Request& request) {
  wire::Resize m;
  Op* op = changing_op(peer, request, m);
  if (op == nullptr) return;
  op->sequence = m.sequence;
  op->offset = m.size;
  op->size_generation = m.size_generation;
  submit(op);
}

void Core::flush_request(const PeerPtr& peer, wire::Request& request) {
  wire::Flush m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  Op* op = new_op(peer, request, *image);
  op->epoch = m.epoch;
  if (!fence::may_write(image->record.tenure, op->session->host, m.epoch)) {
    fenced_total_.add();
    return fail(op, Status(Code::kFenced, label(*image) + ": epoch " + std::to_string(m.epoch.value) + " is over"));
  }
  // As for a write: its holder has not heard yet. Nor may the change be durable: then what this is to cover is here,
  // on the copy that is about to be given up.
  if (image->attr->mirror == 0) return fail(op, Status(Code::kUnavailable, no_mirror(*image).message()));
  if (image->record.has_copy == 0 && !image->copy && image->record.cut == 0) {   // nothing was ever written here
    level_again(*image);
    peer->link->respond(op->type, op->id, wire::Flushed{group_->loss_id(), image->coordinator});
    return finish(op);
  }
  if (Status s = ensure_copy(*image, op->session->host); !s) return fail(op, s);
  sync(op);
}

void Core::read_request(const PeerPtr& peer, wire::Request& request) {
  wire::Read m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  note_user(*image, *peer->session);
  if (m.length == 0) return peer->link->respond(request.type, request.id, ByteSpan{});   // that was all it is for
  Op* op = new_op(peer, request, *image);
  op->offset = m.offset;
  op->length = m.length;
  if (m.length > limits::kFramePayloadBytesMax) return fail(op, Status(Code::kInvalidArgument, "read over 1 MiB"));
  peer->held_reads.push_back(op);
  pump_reads(*peer);
}

// A host that does not take its answers must not fill this node's memory: its next reads wait.
void Core::pump_reads(Peer& peer) {
  while (!peer.held_reads.empty()) {
    if (peer.read_bytes + peer.link->unsent_bytes() > limits::kReadBytesUnsentMax) break;
    Op* op = peer.held_reads.front();
    peer.held_reads.pop_front();
    submit_read(op);
  }
  if (peer.held_reads.empty() || pump_timer_.value != 0) return;
  pump_timer_ = env_.after(kPumpInterval, [this] {
    pump_timer_ = {};
    std::vector<PeerPtr> peers(peers_.begin(), peers_.end());
    for (const PeerPtr& p : peers) pump_reads(*p);
  });
}

// Another host's read of an image whose holder may have acknowledged writes that are not here: it is away and may go
// on alone, or is back and has not made the copies equal yet.
bool Core::may_be_old(const Image& im, const Op& op) const {
  const std::string& holder = im.record.tenure.holder;
  if (holder.empty() || holder == op.session->host) return false;
  return im.holder_ahead != Image::Ahead::kNo || !holder_heard(im);
}

// In the session in which it was granted its tenure, or said that it stands. That something came from it is not enough:
// after an outage, or where this node stood still, the host had sent that before it went on alone.
bool Core::holder_heard(const Image& im) const {
  auto session = sessions_.find(im.holder_session);
  if (session == sessions_.end()) return false;
  const auto& peers = session->second->peers;
  return std::none_of(peers.begin(), peers.end(), [now = env_.now()](const PeerPtr& p) {
    return now - p->link->heard_for_certain() > kHolderSilenceMax;
  });
}

// It is well, as far as can be seen: what says so for certain stands behind what its link has queued. Nothing is
// answered for that, but neither is it asked for its tenure, nor a read failed.
bool Core::holder_sends(const Image& im) const {
  auto session = sessions_.find(im.holder_session);
  if (session == sessions_.end() || im.holder_ahead != Image::Ahead::kNo) return false;
  const auto& peers = session->second->peers;
  return std::ranges::none_of(peers, [](const PeerPtr& p) { return p->link->silence() > kHolderSilenceMax; });
}

void Core::submit_read(Op* op) {
  if (op->session->ended || !failed_) return finish(op);
  const bool kept = op->image->attr->mirror != 0;   // else it is refused, without a wait
  if (kept && may_be_old(*op->image, *op)) return wait_for_holder(op);
  op->peer->read_bytes += op->length;
  submit(op);
}

// It is not in the order yet: what makes the copies equal must not wait for it.
void Core::wait_for_holder(Op* op) {
  Image& im = *op->image;
  const std::string& holder = im.record.tenure.holder;
  if (op->waits_at_most == io::BootTime{}) op->waits_at_most = env_.now() + kBusyHolderWait;
  const bool busy = env_.now() < op->waits_at_most && holder_sends(im);
  if (busy) {
    op->waits_until = {};
  } else if (op->waits_until == io::BootTime{}) {
    op->waits_until = env_.now() + options_.tenure_wait;
    fence::Action ask;   // one that has nothing to write gives the tenure back
    ask.host = holder;
    ask.epoch = im.record.tenure.epoch;
    ask.wanted_by = op->session->host;
    recall(im, ask);
  }
  if (!busy && env_.now() >= op->waits_until) {
    const char* is = session_of(holder) != nullptr ? " alone, which is not level or silent" : " alone, which is away";
    return fail(op, Status::from_errno(EIO, label(im) + ": its newest writes may be with " + holder + is));
  }
  op->mode = io::IoMode::kQueued;
  env_.after(kHolderPoll, [this, self = self_, op] {
    if (*self != nullptr) submit_read(op);
  });
}

}  // namespace tidemark::node
