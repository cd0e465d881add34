// The name space's requests: applied in memory one after another, answered once durable.
#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/node/core.h"
#include "shared/wire/codec.h"
#include "shared/wire/create_once.h"
#include "shared/wire/features.h"

namespace tidemark::node {

namespace {
const log::Logger kLog("node.names");
constexpr std::string_view kMirrorXattr = "user.tidemark.mirror";
constexpr size_t kEntriesBytesMax = 512u << 10;   // of one answer's entries: well within a frame

// An older host would show it as an empty image.
bool is_hidden(const Peer& peer, const Node& node) {
  return wire::is_special(node.attr.kind) && (peer.session->features & wire::kFeatureSpecialFiles) == 0;
}
Status hidden(const Node& node) {
  return Status(Code::kUnsupported, node.name + " is a FIFO, a socket or a device, which the tidemark-fs of this host "
                                                "is too old to know: update it");
}
}  // namespace

void Core::name_request(const PeerPtr& peer, wire::Request& request) {
  using wire::Type;
  Origin origin{peer->session->host, env_.wall()};
  switch (request.type) {
    case Type::kLookup: {
      wire::Lookup m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      return answer_attr(peer, request.type, request.id, names_->lookup(m.parent, m.name));
    }
    case Type::kGetAttr: {
      wire::GetAttr m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      return answer_attr(peer, request.type, request.id, names_->find(m.inode));
    }
    case Type::kSetAttr: {
      wire::SetAttr m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      return set_attr_request(peer, request.id, m, origin);
    }
    case Type::kCreate: {
      wire::CreateOnce m;
      const bool once = (peer->session->features & wire::kFeatureCreateOnce) != 0;
      if (once && !peer->link->decode_or_close(request.type, request.body, m)) return;
      if (!once && !peer->link->decode_or_close(request.type, request.body, m.create)) return;
      return create_request(peer, request.id, m, origin);
    }
    case Type::kUnlink: {
      wire::Unlink m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      return answer_change(peer, request.type, request.id, names_->unlink(m, origin));
    }
    case Type::kRename: {
      wire::Rename m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      return answer_change(peer, request.type, request.id, names_->rename(m, origin));
    }
    case Type::kSetXattr: {
      wire::SetXattr m;
      if (!peer->link->decode_or_close(request.type, request.body, m)) return;
      if (m.name == kMirrorXattr) return mirror_request(peer, request.id, m, origin);
      return answer_change(peer, request.type, request.id, names_->set_xattr(m, origin));
    }
    case Type::kReadDir: return read_dir(peer, request);
    case Type::kDump: return dump(peer, request);
    case Type::kStatFs: return stat_fs(peer, request);
    case Type::kDrop: return drop_request(peer, request);
    default:
      return peer->link->close(
          Status(Code::kCorruption, "a " + std::string(wire::type_name(request.type)) + " is no request of a host"));
  }
}

// What this very request made before its answer was lost is its answer: nobody else's is.
void Core::create_request(const PeerPtr& peer, uint64_t id, const wire::CreateOnce& m, const Origin& origin) {
  const Made made = catalogue_->made[peer->session->host][static_cast<uint32_t>(m.number % kMadeMax)];
  const auto there = names_->lookup(m.create.parent, m.create.name);
  if (m.number != 0 && made.number == m.number && there && (*there)->attr.inode == made.inode) {
    wire::Changed answer;
    answer.mark.node = attr_of(**there, true);
    answer.mark.name = m.create.name;
    return commit({}, [peer, id, answer] { peer->link->respond(wire::Type::kCreate, id, answer); });
  }
  Result<Change> change = names_->create(m.create, env_.random_uuid(), origin);
  if (change) change->number = m.number;
  answer_change(peer, wire::Type::kCreate, id, std::move(change));
}

void Core::set_attr_request(const PeerPtr& peer, uint64_t id, const wire::SetAttr& m, const Origin& origin) {
  if (Status s = check_policy(m, peer->session.get()); !s)
    return peer->link->respond_failure(wire::Type::kSetAttr, id, s);
  answer_change(peer, wire::Type::kSetAttr, id, names_->set_attr(m, origin));
}

// Policy is shown and set as an extended attribute; here it is a field of its own.
void Core::mirror_request(const PeerPtr& peer, uint64_t id, const wire::SetXattr& m, const Origin& origin) {
  std::string_view value = m.remove != 0 ? "sync" : as_text(m.value);
  wire::SetAttr policy;
  policy.inode = m.inode;
  policy.mask = wire::kSetPolicy;
  policy.values.mirror = value == "none" ? 0 : 1;
  Status status = value == "none" || value == "sync"
                      ? check_policy(policy, peer->session.get())
                      : Status::from_errno(EINVAL, std::string(kMirrorXattr) + " is `none` or `sync`");
  if (!status) return peer->link->respond_failure(wire::Type::kSetXattr, id, status);
  answer_change(peer, wire::Type::kSetXattr, id, names_->set_attr(policy, origin));
}

// `mirror = none` gives the second copy's blocks up; that must not meet requests under way. And only its holder may
// have to do with it, who has it whole, before and afterwards: else nobody may have it, or a host that needs the copy
// here to recover by. Back from `none` that holder may be away: others wait for it.
Status Core::check_policy(const wire::SetAttr& m, const Session* by) const {
  if ((m.mask & wire::kSetPolicy) == 0) return Status::ok();
  TM_ASSIGN_OR_RETURN(const Node* node, names_->find(m.inode));
  auto it = images_.find(node->attr.image);
  if (it == images_.end()) return Status::ok();   // no image: set_attr says so
  const Image& image = *it->second;
  if (in_use(image)) {
    return Status(Code::kBusy, label(image) + " is in use: its policy changes when it rests");
  }
  const bool none = m.values.mirror == 0;
  if (none == (node->attr.mirror == 0) || image.record.tenure.epoch.value == 0) return Status::ok();
  auto map = image.behind.find(image.record.tenure.holder);
  const bool whole = map != image.behind.end() && map->second.regions().empty();
  if (!none && !whole) {
    return Status(Code::kBusy, label(image) + ": the host that has it alone does not hold it: start that host, with "
                                              "its bricks, and write the image there; or restore it from the replica");
  }
  const bool heard = (by != nullptr && by->number == image.holder_session) || holder_heard(image);
  if (none && !(whole && heard)) {
    return Status(Code::kBusy, label(image) + ": mirror = none keeps only its writer's copy, and no host that is "
                                              "connected has it whole: write it on the host that is to keep it");
  }
  return Status::ok();
}

// The blocks of a copy that the catalogue has given up. Those that a crash leaves are swept by the next start, or
// before a new copy is made.
void Core::remove_given_up(const ImageId& id) {
  auto it = images_.find(id);
  if (it == images_.end() || it->second->record.has_copy != 0 || it->second->copy) return;
  Status removed = group_->remove(id);
  if (removed) kLog.info("copy_given_up", {{"image", id}, {"reason", "mirror = none"}});
  else if (removed.code() != Code::kNotFound) kLog.warning("copy_not_removed", {{"image", id}, {"error", removed}});
}

void Core::answer_change(const PeerPtr& peer, wire::Type type, uint64_t id, Result<Change> change) {
  if (!change) {
    Status status = change.status();
    // What the refusal rests on (a name that is there) must be durable too.
    return commit({}, [peer, type, id, status] { peer->link->respond_failure(type, id, status); });
  }
  apply_change(std::move(*change), peer->session.get(), [peer, type, id](const Change& done) {
    peer->link->respond(type, id, wire::Changed{done.mark, done.others});
  });
}

void Core::apply_change(Change change, const Session* by, UniqueFunction<void(const Change&)> then) {
  kv::WriteBatch batch;
  if (change.mark.kind == wire::MarkKind::kCreate && change.mark.node.kind == wire::NodeKind::kImage) {
    auto image = std::make_unique<Image>();
    image->id = change.mark.node.image;
    image->record.inode = change.mark.node.inode;
    image->record.region_bytes = options_.region_bytes;
    image->attr = names_->image_attr(image->record.inode);
    put_image(batch, image->id, image->record);
    images_.emplace(image->id, std::move(image));
  }
  for (const ImageId& id : change.nameless) {
    auto it = images_.find(id);
    if (it == images_.end()) continue;
    it->second->record.nameless = 1;
    ++it->second->ops;   // until that is durable its blocks stay: the next start may find the name
    put_image(batch, id, it->second->record);
  }
  std::optional<ImageId> given_up;
  auto changed = images_.find(change.mark.node.image);
  if (change.policy && changed != images_.end()) {
    Image& image = *changed->second;
    image.settled = false;
    make_cold(image);
    // Its holder has it alone, or had until now: it says when the copy here is level (again).
    if (!image.record.tenure.holder.empty()) image.record.outdated = 1;
    if (image.attr->mirror != 0) image.holder_ahead = Image::Ahead::kUntilResume;
    if (image.record.has_copy != 0) {   // back from `none`: of a time before, if there is any (rebuild.h)
      close_copy(image);
      image.record.has_copy = 0;
      image.copy_fault = Status::ok();
      image.record.in_doubt = 0;
      // Its holder may hear of neither this change nor the next: until it has compared all of it, the next copy is not
      // what it takes it for.
      const Session* holder = session_of(image.record.tenure.holder);
      const bool compares = holder == nullptr || (holder->features & wire::kFeatureCompare) != 0;
      image.record.cut = compares && !image.record.tenure.holder.empty() ? 1 : 0;
      image.mending = false;
      // Where the next copy, of holes, equals its writer's, nothing will be sent that marks what others have of it.
      mark_behind(image, {0, image.attr->size}, batch);
      given_up = image.id;
    }
    put_image(batch, image.id, image.record);
  }
  for (InodeNumber inode : change.touched) {
    Result<const Node*> node = names_->find(inode);
    if (node) put_node(batch, **node);
  }
  for (InodeNumber inode : change.erased) erase_node(batch, inode);
  if (change.number != 0 && by != nullptr) {
    const Made made{change.number, change.mark.node.inode};
    catalogue_->made[by->host][static_cast<uint32_t>(made.number % kMadeMax)] = made;
    put_made(batch, by->host, made);   // with what it made: this daemon may end before it has answered
  }
  put_counters(batch, *names_);
  auto complete = [&](wire::Mark& mark) {
    auto it = images_.find(mark.node.image);
    if (it != images_.end()) {
      mark.node.holder = it->second->record.tenure.holder;
      mark.node.epoch = it->second->record.tenure.epoch;
    }
    put_mark(batch, mark);
  };
  complete(change.mark);
  for (wire::Mark& mark : change.others) complete(mark);
  uint64_t number = by == nullptr ? 0 : by->number;
  commit(std::move(batch), [this, change = std::move(change), number, given_up, then = std::move(then)]() mutable {
    if (given_up) remove_given_up(*given_up);
    if (change.policy) tell_holder_to_ask(change.mark.node.image);
    record_marks({change.mark});
    record_marks(change.others);
    auto session = sessions_.find(number);
    for (const Change::Name& name : change.invalid) {
      notify_others(session == sessions_.end() ? nullptr : session->second.get(), name);
    }
    then(change);
    for (const ImageId& id : change.nameless) {
      auto it = images_.find(id);
      if (it == images_.end()) continue;
      --it->second->ops;
      maybe_remove(*it->second);
    }
  });
}

wire::Attr Core::attr_of(const Node& node, bool fresh) {
  wire::Attr attr = node.attr;
  auto it = images_.find(attr.image);
  if (it == images_.end()) return attr;
  Image& image = *it->second;
  attr.holder = image.record.tenure.holder;
  attr.epoch = image.record.tenure.epoch;
  if (fresh && image.copy) {
    Result<uint64_t> allocated = image.copy->allocated_bytes();
    if (allocated) attr.allocated = image.attr->allocated = *allocated;
  }
  return attr;
}

void Core::answer_attr(const PeerPtr& peer, wire::Type type, uint64_t id, const Result<const Node*>& node) {
  const Status status = node && is_hidden(*peer, **node) ? hidden(**node) : node.status();
  if (!status) return commit({}, [peer, type, id, status] { peer->link->respond_failure(type, id, status); });
  commit({}, [peer, type, id, attr = attr_of(**node, true)] { peer->link->respond(type, id, attr); });
}

void Core::read_dir(const PeerPtr& peer, wire::Request& request) {
  wire::ReadDir m;
  if (!peer->link->decode_or_close(request.type, request.body, m)) return;
  wire::DirEntries answer;
  size_t bytes = 0;
  answer.end = 1;
  Status status = names_->read_directory(m.inode, m.after, [&](const Node& node) {
    if (is_hidden(*peer, node)) return true;
    if (answer.entries.size() >= std::min(m.count_max, limits::kDirEntriesMax) || bytes > kEntriesBytesMax) {
      answer.end = 0;
      return false;
    }
    answer.entries.push_back({node.name, attr_of(node, false)});
    bytes += wire::encode(answer.entries.back()).size();
    return true;
  });
  commit({}, [peer, id = request.id, status, answer = std::move(answer)] {
    if (!status) return peer->link->respond_failure(wire::Type::kReadDir, id, status);
    peer->link->respond(wire::Type::kReadDir, id, answer);
  });
}

void Core::dump(const PeerPtr& peer, wire::Request& request) {
  wire::Dump m;
  if (!peer->link->decode_or_close(request.type, request.body, m)) return;
  wire::DirEntries answer;
  size_t bytes = 0;
  answer.end = 1;
  names_->walk(m.after, [&](const Node& node) {
    if (is_hidden(*peer, node)) return true;
    if (answer.entries.size() >= std::min(m.count_max, limits::kDirEntriesMax) || bytes > kEntriesBytesMax) {
      answer.end = 0;
      return false;
    }
    answer.entries.push_back({node.name, attr_of(node, false)});
    bytes += wire::encode(answer.entries.back()).size();
    return true;
  });
  commit({}, [peer, id = request.id, answer = std::move(answer)] {
    peer->link->respond(wire::Type::kDump, id, answer);
  });
}

void Core::stat_fs(const PeerPtr& peer, const wire::Request& request) {
  wire::StatFs m;
  if (!peer->link->decode_or_close(request.type, request.body, m)) return;
  Result<io::FileSystem::Space> space = group_->space();
  if (!space) return peer->link->respond_failure(request.type, request.id, space.status());
  peer->link->respond(request.type, request.id, wire::StatFsAnswer{space->total, space->available, names_->size()});
}

void Core::drop_request(const PeerPtr& peer, wire::Request& request) {
  wire::Drop m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  image->users.erase(peer->session->host);
  image->last_user = 0;
  peer->link->respond(request.type, request.id, ByteSpan{});
  if (image->record.nameless != 0) maybe_remove(*image);
}

// Users of the host's earlier runs have gone with them.
void Core::forget_users(const std::string& host, Incarnation newer) {
  std::vector<Image*> nameless;
  for (auto& [id, image] : images_) {
    auto it = image->users.find(host);
    if (it == image->users.end() || it->second >= newer) continue;
    image->users.erase(it);
    image->last_user = 0;
    if (image->record.nameless != 0) nameless.push_back(image.get());
  }
  for (Image* image : nameless) maybe_remove(*image);
}

// A run that took over the mount of the one before it: what was open there is open still.
void Core::pass_users_on(const std::string& host, Incarnation to) {
  for (auto& [id, image] : images_) {
    auto it = image->users.find(host);
    if (it == image->users.end()) continue;
    it->second = to;
    image->last_user = 0;
  }
}

// A nameless image goes when nobody uses it: its blocks first, so that a crash between leaves its record,
// and the next start goes on from there.
void Core::maybe_remove(Image& image) {
  if (image.record.nameless == 0 || in_use(image) || !image.users.empty() || env_.now() < image.kept_until) return;
  close_copy(image);
  Status removed = group_->remove(image.id);
  if (!removed && removed.code() != Code::kNotFound) {
    kLog.warning("remove_failed", {{"image", image.id}, {"error", removed}, {"action", "tried again later"}});
    image.kept_until = env_.now() + std::chrono::seconds(limits::kNamelessKeepSeconds);
    return;
  }
  kLog.info("image_removed", {{"image", image.id}});
  kv::WriteBatch batch;
  erase_image(batch, image.id);
  erase_node(batch, image.record.inode);
  names_->forget(image.record.inode);
  marks_->forget(image.id);
  images_.erase(image.id);
  commit(std::move(batch), [] {});
}

}  // namespace tidemark::node
