// Tenures: carries out what shared/fence decides, and keeps the maps of what hosts' copies lack.
#include <algorithm>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"
#include "shared/node/core.h"

namespace tidemark::node {

using fence::Action;
using fence::Event;

namespace {
const log::Logger kLog("node.tenure");

uint8_t parent_clean(const fence::Parent& parent) { return parent.taken ? wire::kTaken : uint8_t{parent.clean}; }

uint64_t regions_of(const Image& image) {
  return (image.attr->size + image.record.region_bytes - 1) / image.record.region_bytes;
}
}  // namespace

void Core::acquire_request(const PeerPtr& peer, wire::Request& request) {
  wire::Acquire m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  Session& session = *peer->session;
  note_user(*image, session);
  kv::WriteBatch batch;
  bool known = register_host(*image, session.host, m.copy_absent != 0, batch);
  bool held_before = image->record.tenure.holder == session.host;
  const fence::State& tenure = image->record.tenure;
  if (tenure.holder.empty() && !tenure.fenced.contains(session.host)) {   // else it has other news, or waits
    if (Status cut = refuse_tenure_if_cut(*image, session.host); !cut) {
      commit(std::move(batch), [] {});
      return peer->link->respond_failure(request.type, request.id, cut);
    }
  }
  fence::Ticket ticket = ++next_ticket_;
  // It may hold acknowledged writes of its own, from before a crash, until it has flushed or written here.
  if (held_before) image->record.outdated = 1;
  waiting_[ticket] = {peer, peer->session, request.id, image, known, held_before, {}, {}};
  ++image->ops;   // keeps the image while the request waits
  fence::Outcome outcome =
      fence::step(image->record.tenure, Event::acquire(session.host, ticket, m.wait_ms > 0, image->last_applied));
  bool waits = std::none_of(outcome.actions.begin(), outcome.actions.end(), [&](const Action& a) {
    return a.ticket == ticket && a.kind != Action::Kind::kRecall;
  });
  if (waits) {
    std::chrono::milliseconds wait =
        std::min<std::chrono::milliseconds>(std::chrono::milliseconds(m.wait_ms), options_.tenure_wait);
    waiting_[ticket].timer = env_.after(wait, [this, ticket] {
      auto it = waiting_.find(ticket);
      if (it == waiting_.end()) return;
      Image& im = *it->second.image;
      apply(im, fence::step(im.record.tenure, Event::timeout(ticket)), {}, {});
    });
  }
  apply(*image, std::move(outcome), std::move(batch), {});
  if (waits) consider_fencing(*image);
}

void Core::resume_request(const PeerPtr& peer, wire::Request& request) {
  wire::Resume m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  note_user(*image, *peer->session);
  kv::WriteBatch batch;
  const std::string& host = peer->session->host;
  if (image->fencing) {   // decided in a moment; the host asks again
    return peer->link->respond_failure(request.type, request.id, Status(Code::kUnavailable, "it is being taken over"));
  }
  const bool stands = fence::may_write(image->record.tenure, host, m.epoch);
  if (image->holder_session != peer->session->number) image->mending = false;   // said anew in each session
  // A holder that has not heard that this copy was cut, or not compared all of it.
  if (Status cut = refuse_if_cut(*image, host); stands && m.alone == 0 && !cut)
    return peer->link->respond_failure(request.type, request.id, cut);
  const bool refused = stands && m.alone == 0 && image->refused_writes;
  // It began its session when nothing had been lost yet, and would say so again: a new one's Hello says what was.
  if (refused && peer->session->loss != group_->loss_id())
    return end_session(peer->session, Status(Code::kUnavailable, "a sync has failed since its Hello"));
  // The refusal of a write may have crossed it, and the host have acknowledged that alone. Once is enough: what it says
  // after this answer it says after that refusal, too (its resync waits for the write), or with `alone`.
  if (refused && image->holder_session == peer->session->number) {
    image->refused_writes = false;
    return peer->link->respond_failure(
        request.type, request.id, Status(Code::kUnavailable, label(*image) + ": a write was refused meanwhile"));
  }
  if (stands) note_resumed(*image, *peer->session, m.alone);
  if (m.alone != 0) {
    if (stands && std::exchange(image->record.outdated, 1) == 0) put_image(batch, image->id, image->record);
    if (m.alone != 4) {   // else it begins where the one before ended, still
      fence::Outcome wrote = fence::step(image->record.tenure, Event::first_write(host, m.epoch));
      image->record.tenure = std::move(wrote.state);
      if (wrote.durable) put_image(batch, image->id, image->record);
    }
  } else if (image->attr->mirror != 0 && stands && std::exchange(image->record.outdated, 0) != 0) {
    image->mending = false;
    image->record.in_doubt = 0;
    if (std::exchange(image->record.cut, 0) != 0) note_copy(*image, Status::ok());   // all of it is equal
    put_image(batch, image->id, image->record);   // whatever vote it got: nothing was acknowledged alone
  }
  apply(*image, fence::step(image->record.tenure, Event::resume(host, m.epoch)), std::move(batch),
        [this, peer, id = request.id, image, m](bool accepted) {
          if (!accepted) {
            fenced_total_.add();
            kLog.warning("resume_fenced", {{"image", image->id},
                                           {"host", peer->session->host},
                                           {"epoch", m.epoch},
                                           {"newest", image->record.tenure.epoch},
                                           {"holder", image->record.tenure.holder}});
            return peer->link->respond_failure(
                wire::Type::kResume, id,
                Status(Code::kFenced, label(*image) + ": epoch " + std::to_string(m.epoch.value) +
                                          " is over; the newest is " +
                                          std::to_string(image->record.tenure.epoch.value)));
          }
          if (m.size_generation <= image->attr->size_generation) return respond_resumed(*peer, id, *image);
          // The host changed the size while it was alone: its newer one counts.
          wire::Request again;
          again.type = wire::Type::kResume;
          again.id = id;
          Op* op = new_op(peer, again, *image);
          op->epoch = m.epoch;
          op->offset = m.size;
          op->size_generation = m.size_generation;
          op->exclusive = true;
          submit(op);
        });
}

// At once: what is refused from here on is newer than this word.
void Core::note_resumed(Image& image, const Session& session, uint8_t alone) {
  image.holder_session = session.number;
  image.refused_writes = false;
  if (alone == 3) image.mending = has_whole_copy(image, session.host);
  image.holder_ahead = alone >= 2   ? Image::Ahead::kUntilResume
                       : alone != 0 ? Image::Ahead::kUntilFlush
                                    : Image::Ahead::kNo;
}

void Core::respond_resumed(Peer& peer, uint64_t id, const Image& image) {
  wire::Resumed answer;
  answer.loss_id = group_->loss_id();
  answer.coordinator = image.coordinator;
  answer.size = image.attr->size;
  answer.size_generation = image.attr->size_generation;
  peer.link->respond(wire::Type::kResume, id, answer);
}

void Core::yield_request(const PeerPtr& peer, wire::Request& request) {
  wire::Yield m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  if (image->write_ops == 0) return yield_now(peer, request.id, *image, m, request.type);
  // Begun writes of this tenure end in it.
  image->when_written.push_back([this, self = self_, peer, id = request.id, m, type = request.type] {
    if (*self == nullptr) return;
    auto it = images_.find(m.image);
    if (it != images_.end()) yield_now(peer, id, *it->second, m, type);
  });
}

void Core::yield_now(const PeerPtr& peer, uint64_t id, Image& image, const wire::Yield& m, wire::Type type) {
  Image* im = &image;
  if (image.fencing)
    return peer->link->respond_failure(type, id, Status(Code::kUnavailable, "it is being taken over"));
  const bool holds = fence::may_write(image.record.tenure, peer->session->host, m.epoch);
  if (holds && image.attr->mirror == 0 && m.last.counter.value != 0) {   // begun before its policy changed
    return peer->link->respond_failure(type, id,
                                       Status(Code::kBusy, label(image) + " has `mirror = none`: its holder keeps it"));
  }
  if (holds && image.record.cut == 0) {   // else nobody is served here before a host with a whole copy has compared it
    image.record.outdated = 0;
    if (m.last.counter.value != 0) image.record.in_doubt = 0;   // else it was not used, and no sync of it is known of
    image.refused_writes = false;
  }
  if (holds) refuse_waiters_if_cut(image);
  Event yield = Event::yield(peer->session->host, m.epoch, m.last);
  yield.unshipped = type == wire::Type::kYieldUnshipped;
  apply(image, fence::step(image.record.tenure, yield), {},
        [this, peer, id, im, type](bool accepted) {
          if (accepted) return peer->link->respond(type, id, wire::Yielded{im->attr->event});
          fenced_total_.add();
          peer->link->respond_failure(type, id,
                                      Status(Code::kFenced, label(*im) + ": this tenure is over"));
        });
}

// Takes an outcome: the state at once, what follows from it once it is durable. `answer` hears whether a
// yield or resume was taken.
void Core::apply(Image& image, fence::Outcome outcome, kv::WriteBatch batch, UniqueFunction<void(bool)> answer) {
  std::vector<wire::Mark> marks;
  const std::string holder_before = image.record.tenure.holder;
  image.record.tenure = std::move(outcome.state);
  for (const Action& action : outcome.actions) {
    // Until it is answered the image may get a new name, with an event of its own.
    auto granted = action.kind == Action::Kind::kGrant ? waiting_.find(action.ticket) : waiting_.end();
    if (granted != waiting_.end()) granted->second.started = image.attr->event;
    if (action.kind != Action::Kind::kEnded && action.kind != Action::Kind::kStarted) continue;
    marks.push_back(tenure_mark(image, action));
    put_mark(batch, marks.back());
    image.settled = false;
    make_cold(image);
    if (action.kind == Action::Kind::kStarted) {
      image.last_applied = {};
      image.mending = false;
      // Another's tenure ended with a sync, unless it was taken. What the same host had written before a crash is as
      // unsynced as it was.
      if (action.host != holder_before && !begins_upon_lost(image)) image.synced = image.begun;
      image.record.generation = Generation(0);   // its holder has no terms yet
    }
    kLog.info(action.kind == Action::Kind::kStarted ? "tenure_started" : "tenure_ended",
              {{"image", image.id},
               {"host", action.host},
               {"epoch", action.epoch},
               {"event", marks.back().number},
               {"parent_epoch", action.parent.epoch},
               {"parent", action.parent.source},
               {"clean", action.parent.clean}});
  }
  if (outcome.durable && !TM_PLANTED("answer a grant that is not durable")) put_image(batch, image.id, image.record);
  if (!marks.empty()) {
    put_node(batch, **names_->find(image.record.inode));
    put_counters(batch, *names_);
    image.times_changed = false;
  }
  ++image.ops;
  Image* im = &image;
  commit(std::move(batch), [this, im, marks = std::move(marks), actions = std::move(outcome.actions),
                            answer = std::move(answer)]() mutable {
    record_marks(marks);
    --im->ops;
    for (const Action& action : actions) {
      bool accepted = action.kind == Action::Kind::kAccepted;
      if (answer && (accepted || action.kind == Action::Kind::kFenced)) answer(accepted);
      else carry_out(*im, action);
    }
  });
}

wire::Mark Core::tenure_mark(Image& image, const Action& action) {
  wire::Mark mark;
  mark.kind = action.kind == Action::Kind::kStarted ? wire::MarkKind::kTenureStart : wire::MarkKind::kTenureEnd;
  mark.number = names_->take_event();
  mark.origin = action.host;
  mark.label = env_.wall();
  mark.epoch = action.epoch;
  mark.parent = {action.parent.epoch, action.parent.source, action.parent.last,
                 parent_clean(action.parent)};
  image.attr->event = mark.number;
  Result<const Node*> node = names_->find(image.record.inode);
  mark.node = *image.attr;
  mark.node.holder = image.record.tenure.holder;
  mark.node.epoch = image.record.tenure.epoch;
  if (node) mark.name = (*node)->name;
  return mark;
}

void Core::carry_out(Image& image, const Action& action) {
  switch (action.kind) {
    case Action::Kind::kGrant: {
      // Whatever earlier epochs had begun is on the copy before the new holder hears of its grant.
      auto begin = [this, &image, action] {
        write_main_line_again(image, [this, action](const Status& sure) { grant(action.ticket, action, sure); });
      };
      if (image.write_ops == 0) return begin();
      image.when_written.push_back([self = self_, begin] {
        if (*self != nullptr) begin();
      });
      return;
    }
    case Action::Kind::kBusy: return refuse_busy(action.ticket, action);
    case Action::Kind::kRecall: return recall(image, action);
    case Action::Kind::kFenced: return refuse_fenced(action);
    default: return;
  }
}

// The request that waits under this ticket, no longer there. None: its session ended, and the host asks again.
std::optional<Core::Waiting> Core::take_waiting(fence::Ticket ticket) {
  auto it = waiting_.find(ticket);
  if (it == waiting_.end()) return std::nullopt;
  Waiting waiting = std::move(it->second);
  waiting_.erase(it);
  env_.cancel(waiting.timer);
  --waiting.image->ops;
  return waiting;
}

// `sure`: that the copy is such that a tenure may begin upon it. If not, the host asks again.
void Core::grant(fence::Ticket ticket, const Action& action, const Status& sure) {
  auto found = take_waiting(ticket);
  if (!found) return;
  Waiting& waiting = *found;
  Image& image = *waiting.image;
  if (!sure)
    return waiting.peer->link->respond_failure(wire::Type::kAcquire, waiting.request, sure.with_context(label(image)));
  wire::Grant answer = make_grant(image, action.host, waiting.copy_known);
  answer.epoch = action.epoch;
  answer.event = waiting.started;
  answer.parent = {action.parent.epoch, action.parent.source, action.parent.last,
                   parent_clean(action.parent)};
  grants_total_.add();
  image.holder_session = waiting.session->number;
  image.refused_writes = false;   // of the tenure before; and a sync that failed since is told, by the loss id
  image.holder_ahead = waiting.held_before ? Image::Ahead::kUntilWrite : Image::Ahead::kNo;
  waiting.peer->link->respond(wire::Type::kAcquire, waiting.request, answer);
}

void Core::refuse_busy(fence::Ticket ticket, const Action& action) {
  auto waiting = take_waiting(ticket);
  if (!waiting) return;
  Image& image = *waiting->image;
  busy_total_.add();
  bool connected = session_of(action.host) != nullptr;
  kLog.warning("tenure_busy", {{"image", image.id},
                               {"path", names_->path(image.record.inode)},
                               {"wanted_by", waiting->session->host},
                               {"holder", action.host},
                               {"holder_connected", connected ? "yes" : "no"},
                               {"epoch", action.epoch}});
  waiting->peer->link->respond_failure(wire::Type::kAcquire, waiting->request,
                                       Status(Code::kBusy, label(image) + " is held by " + action.host + " (" +
                                                               (connected ? "connected" : "not connected") +
                                                               "), epoch " + std::to_string(action.epoch.value)));
}

// An acquire of a host that has not said yet that it knows of the end of its last tenure.
void Core::refuse_fenced(const Action& action) {
  auto waiting = take_waiting(action.ticket);
  if (!waiting) return;
  fenced_total_.add();
  waiting->peer->link->respond_failure(wire::Type::kAcquire, waiting->request,
                                       Status(Code::kFenced, label(*waiting->image) + " was taken from " +
                                                                 waiting->session->host + " by force"));
}

// A host without a whole copy must not hold one that was cut short: nobody could make it level, and whoever has a
// whole copy would be locked out.
Status Core::refuse_tenure_if_cut(Image& image, const std::string& host) {
  const bool given_up = image.record.cut != 0 && image.attr->mirror != 0;   // it is empty
  if ((image.record.has_copy == 0 && !given_up) || has_whole_copy(image, host)) return Status::ok();
  if (Status found = group_->look_at(image.id); found.code() == Code::kCorruption) note_copy(image, found);
  return refuse_if_cut(image, host);
}

// Before the first of those that wait is granted it.
void Core::refuse_waiters_if_cut(Image& image) {
  const std::vector<fence::Waiter> waiters = image.record.tenure.waiters;
  for (const fence::Waiter& waiter : waiters) {
    const Status cut = refuse_tenure_if_cut(image, waiter.host);
    if (cut) continue;
    image.record.tenure = fence::step(image.record.tenure, Event::host_gone(waiter.host)).state;
    if (auto waiting = take_waiting(waiter.ticket))
      waiting->peer->link->respond_failure(wire::Type::kAcquire, waiting->request, cut);
  }
}

// The holder's copy holds nothing that this one lacks. Lost in a crash, it is said once more.
void Core::level_again(Image& image) {
  const bool waits = image.refused_writes || image.record.cut != 0 || image.holder_ahead == Image::Ahead::kUntilResume;
  if (waits || image.attr->mirror == 0) return;
  image.holder_ahead = Image::Ahead::kNo;
  if (std::exchange(image.record.outdated, 0) == 0) return;
  image.record.in_doubt = 0;
  kv::WriteBatch batch;
  put_image(batch, image.id, image.record);
  commit(std::move(batch), [] {});
}

void Core::recall(Image& image, const Action& action) {
  Session* holder = session_of(action.host);
  if (holder == nullptr || holder->peers.empty()) return;   // asked again when it resumes
  holder->peers.front()->link->notify(wire::Type::kRecallNotify,
                                      wire::RecallNotify{image.id, action.epoch, action.wanted_by});
}

wire::Grant Core::make_grant(Image& image, const std::string& host, bool copy_known) {
  wire::Grant g;
  BehindMap& map = image.behind.at(host);
  g.coordinator = image.coordinator;
  g.size = image.attr->size;
  g.size_generation = image.attr->size_generation;
  g.loss_id = group_->loss_id();
  g.event = image.attr->event;
  g.copy_known = copy_known ? 1 : 0;
  g.region_bytes = image.record.region_bytes;
  g.stale_regions = map.bitmap();
  g.map_cut = map.hand_out();
  make_cold(image);   // what is written from now on is marked above that cut
  return g;
}

// On record, that is: what it lacks it would take from here.
bool Core::has_whole_copy(const Image& image, const std::string& host) const {
  auto behind = image.behind.find(host);
  return behind != image.behind.end() && behind->second.known && behind->second.regions().empty();
}

bool Core::register_host(Image& image, const std::string& host, bool copy_absent, kv::WriteBatch& batch) {
  auto [it, added] = image.behind.try_emplace(host, catalogue_->boot);
  BehindMap& map = it->second;
  bool was_known = map.known && !copy_absent;
  if (was_known) return true;
  // An image that nobody ever wrote is all zeros everywhere.
  const fence::State& tenure = image.record.tenure;
  bool untouched = image.coordinator.value == 0 && !tenure.written && tenure.parent.epoch.value == 0;
  uint64_t regions = untouched ? 0 : regions_of(image);
  // A host that reads what another one writes asks every second. Where its map says just that already, and was handed
  // out to nobody since, it need not be written again, and the holder's regions stay warm.
  const auto& marks = map.regions();
  const bool all = marks.size() == regions && (regions == 0 || marks.rbegin()->first == regions - 1);
  auto newest = [&map](const auto& mark) { return mark.second == map.cut(); };
  if (map.known && all && std::ranges::all_of(marks, newest)) return false;
  map.reset();
  map.known = true;
  for (uint64_t r = 0; r < regions; ++r) map.mark(static_cast<uint32_t>(r));
  put_copy(batch, image.id, host);
  put_all_behind(batch, image.id, host, map);
  make_cold(image);
  return false;
}

// Nobody's copy counts any more, but the one here.
void Core::mark_all_behind(Image& im, kv::WriteBatch& batch) {
  for (auto& [host, map] : im.behind) {
    for (uint64_t r = regions_of(im); r-- > 0;) map.mark(static_cast<uint32_t>(r));
    put_all_behind(batch, im.id, host, map);
  }
}

void Core::stale_map_request(const PeerPtr& peer, wire::Request& request) {
  wire::StaleMap m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  note_user(*image, *peer->session);
  kv::WriteBatch batch;
  bool known = register_host(*image, peer->session->host, m.copy_absent != 0, batch);
  ++image->ops;
  commit(std::move(batch), [this, peer, id = request.id, image, known] {
    --image->ops;
    const std::string& host = peer->session->host;
    wire::Grant map = make_grant(*image, host, known);
    const fence::State& tenure = image->record.tenure;
    if (tenure.holder == host) map.epoch = tenure.epoch;
    if (tenure.holder.empty())
      map.parent = {tenure.parent.epoch, tenure.parent.source, tenure.parent.last, parent_clean(tenure.parent)};
    peer->link->respond(wire::Type::kStaleMap, id, map);
  });
}

void Core::level_request(const PeerPtr& peer, wire::Request& request) {
  wire::Level m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  const std::string& host = peer->session->host;
  auto it = image->behind.find(host);
  if (it == image->behind.end() || m.regions.size() > limits::kRegionsPerImageMax / 8 + 1) {
    return peer->link->respond_failure(request.type, request.id,
                                       Status(Code::kInvalidArgument, "level for a map that was never given"));
  }
  kv::WriteBatch batch;
  if (m.stale != 0) {
    // Regions of a size that the image has outgrown cannot be told apart: all of them, then.
    bool outgrown = !it->second.knows(m.map_cut);
    uint64_t count = outgrown ? regions_of(*image) : m.regions.size() * 8;
    for (uint64_t r = 0; r < count; ++r) {
      uint32_t region = static_cast<uint32_t>(r);
      bool named = outgrown || (m.regions[r / 8] >> r % 8 & 1) != 0;
      if (named && it->second.mark(region)) put_behind(batch, image->id, host, region, it->second.cut());
    }
  } else {
    for (uint32_t region : it->second.clear(m.regions, m.map_cut)) erase_behind(batch, image->id, host, region);
  }
  make_cold(*image);
  commit(std::move(batch), [peer, id = request.id] { peer->link->respond(wire::Type::kLevel, id, ByteSpan{}); });
}

void Core::drop_waiting(const Session& session) {
  std::set<Image*> images;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (it->second.session.get() != &session) {
      ++it;
      continue;
    }
    env_.cancel(it->second.timer);
    images.insert(it->second.image);
    --it->second.image->ops;
    it = waiting_.erase(it);
  }
  for (Image* image : images) {
    image->record.tenure = fence::step(image->record.tenure, Event::host_gone(session.host)).state;
  }
}

}  // namespace tidemark::node
