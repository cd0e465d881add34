// The name space: the shared node decides; this host caches what it was told, for use while the link is down.
// Attributes of an image whose tenure is held here come from here.
#include <algorithm>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/wire/create_once.h"
#include "shared/wire/features.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("names");
constexpr std::chrono::seconds kChangeWait{5};
// A query that the cache can answer waits only for a link that is coming back at this moment.
constexpr std::chrono::milliseconds kQueryWait{0};

Status unreachable() { return Status::from_errno(EHOSTUNREACH, "the shared node is unreachable"); }
bool is_unreachable(const Status& s) { return s.code() == Code::kUnavailable || s.sys_errno() == EHOSTUNREACH; }

// A catalogue that was made anew may have given the number to another image: that says nothing of this one.
Result<wire::Attr> of_image(Result<wire::Attr> answer, const ImageId& image) {
  if (!answer || answer->image == image) return answer;
  return Status(Code::kInvalidArgument, "its number is that of image " + answer->image.to_string());
}

// The shared node keeps an image that lost its name for the hosts that it knows to use it: those that read or write it.
// One that is in use here, of which neither was asked yet, is made known by a read of nothing: no copy is asked, and no
// holder waited for. Whatever comes back, the host is noted.
Task<void> make_use_known(Mirror& mirror, Image* im) {
  if (im == nullptr || !im->in_use() || im->held || !mirror.up()) co_return;
  Pin pin(*im);
  const Bytes read = wire::encode(wire::Read{im->id, 0, 0});
  using Answer = Result<wire::Answer>;
  auto answer = co_await async<Answer>([&](Callback<Answer> done) {
    mirror.send(wire::Type::kRead, read, {}, std::move(done));
  });
  if (!answer) kLog.debug("use_not_confirmed", {{"image", im->id}, {"error", answer.status()}});
}
}  // namespace

// Asks once the link is up, at most `limit` from now. A request whose connection went is asked again, unless `lost` is
// given: then that says so, and nobody knows whether it was carried out.
template <class A, class M>
Task<Result<A>> Engine::ask(wire::Type type, M message, io::Duration limit, bool* lost) {
  io::BootTime deadline = env_.now() + limit;
  for (;;) {
    if (!mirror_->up()) {
      auto left = deadline - env_.now();
      if (left <= io::Duration(0)) co_return unreachable();
      bool up = co_await wait_link(left);
      if (!up) co_return unreachable();
    }
    auto answer = co_await async<Result<A>>([&](Callback<Result<A>> done) {
      mirror_->request<A>(type, message, std::move(done));
    });
    if (answer) co_return answer;
    const bool gone = answer.status().code() == Code::kUnavailable && !mirror_->up();
    if (gone && lost != nullptr) *lost = true;
    if (!gone || lost != nullptr) co_return answer;
    if (env_.now() >= deadline) co_return unreachable();
  }
}

// What this host knows better than the shared node.
wire::Attr Engine::local_view(wire::Attr attr) {
  if (attr.kind != wire::NodeKind::kImage) return attr;
  Image* im = find(attr.image);
  if (im == nullptr) return attr;
  if (im->held) {
    attr.size = im->size;
    attr.size_generation = im->size_generation;
    attr.holder = options_.config.node.name;
    if (!im->mtime_pushed) {
      attr.mtime = im->mtime;
      attr.ctime = std::max(attr.ctime, im->mtime);  // a change of mode or name may be the later one
    }
  } else if (im->local() && !im->behind && im->copy->size_generation() > attr.size_generation) {
    attr.size = im->copy->size();   // resized here, and the shared node does not know yet
    attr.size_generation = im->copy->size_generation();
  }
  if (im->copy != nullptr && (im->held || attr.mirror == 0)) {
    // Asked anew each time: tar takes a file without blocks for one without data.
    auto bytes = im->copy->allocated_bytes();
    if (bytes) attr.allocated = *bytes;
  }
  return attr;
}

void Engine::lookup(InodeNumber parent, std::string name, AttrDone done) {
  tasks_.spawn(do_lookup(parent, std::move(name), std::move(done)));
}

// What stands there, as the shared node says; the cache follows.
Task<Result<wire::Attr>> Engine::look_at(InodeNumber parent, std::string name, io::Duration limit) {
  wire::Lookup request{parent, name};
  auto answer = co_await ask<wire::Attr>(wire::Type::kLookup, request, limit);
  if (answer) {
    names_->put_entry(parent, name, *answer);
    if (Image* im = find(answer->image); im != nullptr && !im->held) take_attr(*im, *answer);
  } else if (answer.status().code() == Code::kNotFound) {
    names_->erase_entry(parent, name);
  }
  co_return answer;
}

Task<void> Engine::do_lookup(InodeNumber parent, std::string name, AttrDone done) {
  auto answer = co_await look_at(parent, name, kQueryWait);
  if (answer) co_return done(local_view(std::move(*answer)));
  if (is_unreachable(answer.status())) {
    auto known = names_->lookup(parent, name);
    if (known) co_return done(local_view(std::move(*known)));
  }
  // Whether the name exists, only the shared node can say.
  done(answer.status());
}

void Engine::getattr(InodeNumber inode, AttrDone done) {
  auto known = names_->get(inode);
  if (known) {
    Image* im = find(known->image);
    if (im != nullptr && im->held) return done(local_view(std::move(*known)));
  }
  tasks_.spawn(do_getattr(inode, std::move(done)));
}

Task<void> Engine::do_getattr(InodeNumber inode, AttrDone done) {
  auto answer = co_await ask<wire::Attr>(wire::Type::kGetAttr, wire::GetAttr{inode}, kQueryWait);
  if (answer) {
    names_->put(*answer);
    if (Image* im = find(answer->image); im != nullptr && !im->held) take_attr(*im, *answer);
    co_return done(local_view(std::move(*answer)));
  }
  auto known = names_->get(inode);
  const Image* im = known ? find(known->image) : nullptr;
  const bool open = im != nullptr && im->handles != 0;
  const bool nameless = open && im->nameless;
  if (known && (nameless || is_unreachable(answer.status()))) co_return done(local_view(std::move(*known)));
  // Still open here (else nobody asks by number), but without a name: as elsewhere it goes on until it is closed. Of an
  // image that was never used here, and is gone, this is all that is left.
  const bool goes_on = open || (known && known->kind != wire::NodeKind::kImage);
  if (goes_on && answer.status().code() == Code::kNotFound) {
    known->nlink = 0;
    co_return done(local_view(std::move(*known)));
  }
  if (inode.value == 1 && is_unreachable(answer.status())) {
    wire::Attr root;  // a host that starts while the shared node is away shows an empty root
    root.inode = root.parent = InodeNumber(1);
    root.kind = wire::NodeKind::kDirectory;
    root.mode = 0755;
    root.nlink = 2;
    co_return done(root);
  }
  done(answer.status());
}

bool Engine::may_be_cached(const wire::Attr& attr) const {
  auto at = images_.find(attr.image);
  if (at == images_.end() || at->second->handles == 0) return true;
  const Image& im = *at->second;
  return im.held && !im.recall_wanted && !im.yielding;
}

InodeNumber Engine::parent_of(InodeNumber inode) const {
  auto known = names_->get(inode);
  return known ? known->parent : inode;
}

void Engine::setattr(InodeNumber inode, SetAttr change, AttrDone done) {
  tasks_.spawn(do_setattr(inode, std::move(change), std::move(done)));
}

// By this handle. A truncation that is meant cannot be told from the kernel's undoing of a write (note_failed): the
// first one after a write that failed counts as that.
Status Engine::may_resize(HandleId handle, uint64_t size) {
  Handle* h = handle_of(handle);
  if (h == nullptr) return Status::from_errno(EBADF, "ftruncate");
  if (h->fenced) return Status::from_errno(EIO, "ftruncate: the image was taken over by another host");
  const auto keeps = std::exchange(h->keeps, std::nullopt);
  if (!keeps || size >= *keeps) return Status::ok();
  return Status::from_errno(EIO, "ftruncate: the write before it failed, and what it did not write would be cut");
}

Task<void> Engine::do_setattr(InodeNumber inode, SetAttr change, AttrDone done) {
  using Attr = Result<wire::Attr>;
  auto attr = co_await async<Attr>([&](Callback<Attr> d) { getattr(inode, std::move(d)); });
  if (!attr) co_return done(attr.status());
  if (change.set_size) {
    if (attr->kind != wire::NodeKind::kImage) co_return done(Status::from_errno(EISDIR, "truncate"));
    auto image = image_of(*attr);
    if (!image) co_return done(image.status());
    Image& im = **image;
    if (change.handle.value != 0) {   // looked at now: getattr() may have taken any time
      if (Status s = may_resize(change.handle, change.size); !s) co_return done(s);
    }
    if (change.size > limits::kImageBytesMax) co_return done(Status::from_errno(EFBIG, "an image's size is limited"));
    if (change.size != im.size_now() || !im.held) {
      auto resized = co_await async<Result<size_t>>([&](Callback<Result<size_t>> d) {
        Op* op = take_op(im, OpKind::kResize, io::IoMode::kQueued);
        op->extent = {change.size, 0};
        op->tag = change.tag;
        op->done = std::move(d);
        start_op(op);
      });
      if (!resized) co_return done(resized.status());
    } else if (change.touch) {
      changed_now(im);
    }
    // The last close of a writer tells the times, too; without one nobody would.
    bool tell = !im.mtime_pushed && im.wrote == 0 && im.held && mirror_->up() && !im.nameless;
    if (tell) tasks_.spawn(tell_times(im));
    attr->size = im.size_now();
  }
  if (change.mask != 0) {
    Image* im = (change.mask & wire::kSetMtime) != 0 ? find(attr->image) : nullptr;
    const WallTime written = im != nullptr ? im->mtime : WallTime();
    const bool told = im == nullptr || std::exchange(im->mtime_pushed, true);
    // It moves also where another clock, that of the shared node, has set it ahead.
    change.values.ctime = std::max(change.values.ctime, WallTime{attr->ctime.ns + 1});
    change.values.inode = inode;
    wire::SetAttr request{inode, change.mask, change.values};
    auto answer = co_await ask<wire::Changed>(wire::Type::kSetAttr, request, kChangeWait);
    if (!answer) {   // the time of the last write is still to be told
      im = told ? nullptr : find(attr->image);
      if (im != nullptr && im->mtime == written) im->mtime_pushed = false;
      co_return done(answer.status());
    }
    changed(*answer);
    attr = answer->mark.node;
  }
  done(local_view(std::move(*attr)));
}

void Engine::changed_now(Image& im) {
  im.mtime = env_.wall();
  im.mtime_pushed = false;
}

// Until the shared node has answered, the times shown are the own ones.
Task<void> Engine::tell_times(Image& im) {
  Pin pin(im);
  wire::Attr times = im.attr;
  times.mtime = times.ctime = im.mtime;
  wire::SetAttr request{im.inode, wire::kSetMtime | wire::kSetCtime, times};
  auto answer = co_await ask<wire::Changed>(wire::Type::kSetAttr, request, kChangeWait);
  if (!answer) {   // they are shown here on, and told at the next close or with the tenure
    kLog.info("times_not_kept", {{"image", im.id}, {"error", answer.status()}});
    co_return;
  }
  changed(*answer);
  if (im.mtime == times.mtime) im.mtime_pushed = true;  // else it was written meanwhile
}

void Engine::create(wire::Create request, AttrDone done, RequestId id) {
  tasks_.spawn(do_create(std::move(request), std::move(done), id));
}

// Asked again it has its number: the shared node knows what it has made by it, and that another host's is not that.
Task<void> Engine::do_create(wire::Create request, AttrDone done, RequestId id) {
  const io::BootTime deadline = env_.now() + kChangeWait;
  const wire::CreateOnce once{std::move(request), id.number};
  Result<wire::Changed> answer = unreachable();
  for (bool lost = true; lost;) {
    bool up = mirror_->up();
    if (!up && env_.now() < deadline) up = co_await wait_link(deadline - env_.now());
    if (!up) co_return done(unreachable());
    const uint64_t features = mirror_->hello().features;
    const bool known = !wire::is_special(once.create.kind) || (features & wire::kFeatureSpecialFiles) != 0;
    if (!known)
      co_return done(Status::from_errno(EPERM, "the shared node's version knows no such files: update it"));
    lost = false;
    if ((features & wire::kFeatureCreateOnce) != 0)
      answer = co_await ask<wire::Changed>(wire::Type::kCreate, once, kQueryWait, &lost);
    else
      answer = co_await ask<wire::Changed>(wire::Type::kCreate, once.create, kQueryWait, &lost);
    if (lost && env_.now() >= deadline) co_return done(unreachable());
  }
  if (!answer) co_return done(answer.status());
  if (answer->mark.number.value != 0) changed(*answer);
  else names_->put_entry(once.create.parent, once.create.name, answer->mark.node);   // made, and told of, before
  done(local_view(std::move(answer->mark.node)));
}

void Engine::unlink(InodeNumber parent, std::string name, bool directory, Done done, RequestId id) {
  wire::Unlink request{parent, std::move(name), static_cast<uint8_t>(directory ? 1 : 0)};
  tasks_.spawn(do_unlink(std::move(request), std::move(done), id));
}

Task<void> Engine::do_unlink(wire::Unlink request, Done done, RequestId id) {
  const auto known = names_->lookup(request.parent, request.name);
  co_await make_use_known(*mirror_, known ? find(known->image) : nullptr);
  done(co_await change_name(wire::Type::kUnlink, std::move(request), known, id));
  end_change(id);
}

void Engine::rename(wire::Rename request, Done done, RequestId id) {
  tasks_.spawn(do_rename(std::move(request), std::move(done), id));
}

Task<void> Engine::do_rename(wire::Rename request, Done done, RequestId id) {
  const auto replaced = names_->lookup(request.new_parent, request.new_name);
  co_await make_use_known(*mirror_, replaced ? find(replaced->image) : nullptr);
  done(co_await change_name(wire::Type::kRename, std::move(request), replaced, id));
  end_change(id);
}

// What stands at the name now, as a successor is to know before the change is asked for.
Task<Result<InodeNumber>> Engine::begin_change(InodeNumber parent, std::string name, RequestId id) {
  auto node = names_->lookup(parent, name);
  if (!node) {
    auto there = co_await look_at(parent, name, kChangeWait);
    if (!there) co_return there.status();
    node = std::move(*there);
  }
  if (options_.survivor != nullptr && id.number != 0) options_.survivor->begin_change(id.number, node->inode);
  co_return node->inode;
}

void Engine::end_change(RequestId id) {
  if (options_.survivor != nullptr && id.number != 0) options_.survivor->end_change(id.number);
}

// Carried out at most once. Where the answer is lost, with the link or with the run before, the names tell, the shared
// node's alone: once a new session stands it has done it, or never will. Sent again unseen it could strike what another
// host has put there since, or undo an exchange. `over`: what is to lose its name by it.
template <class M>
Task<Status> Engine::change_name(wire::Type type, M request, std::optional<wire::Attr> over, RequestId id) {
  const io::BootTime deadline = env_.now() + kChangeWait;
  std::optional<InodeNumber> node;
  if (id.again && options_.survivor != nullptr) node = options_.survivor->change(id.number);
  if (node && node->value == 0) node.reset();   // of an older program, which had not looked
  bool lost = node.has_value();
  if (!node) {
    auto begun = co_await begin_change(request.parent, request.name, id);
    if (!begun) co_return begun.status();
    node = *begun;
  }
  for (;;) {
    if (lost) {
      auto now = co_await look_at(request.parent, request.name, deadline - env_.now());
      if (!now || now->inode != *node) {
        Status done = now.status();
        if (now || done.code() == Code::kNotFound) done = co_await was_done(request, *node, deadline);
        if (over && !over->image.is_nil()) tasks_.spawn(check_name(std::move(*over)));
        co_return done;
      }
    }
    lost = false;
    auto answer = co_await ask<wire::Changed>(type, request, deadline - env_.now(), &lost);
    if (answer) changed(*answer);
    if (!lost) co_return answer.status();
  }
}

// The name has gone from it, by whichever host; moved by another it has one still.
Task<Status> Engine::was_done(const wire::Unlink& request, InodeNumber node, io::BootTime deadline) {
  auto now = co_await ask<wire::Attr>(wire::Type::kGetAttr, wire::GetAttr{node}, deadline - env_.now());
  if (!now) co_return now.status().code() == Code::kNotFound ? Status::ok() : now.status();
  co_return now->nlink == 0 ? Status::ok() : Status::from_errno(ENOENT, request.name);
}

Task<Status> Engine::was_done(const wire::Rename& request, InodeNumber node, io::BootTime deadline) {
  auto now = co_await look_at(request.new_parent, request.new_name, deadline - env_.now());
  if (!now) co_return now.status();
  co_return now->inode == node ? Status::ok() : Status::from_errno(ENOENT, request.name);
}

void Engine::readdir(InodeNumber inode, std::string after, uint32_t count_max,
                     Callback<Result<wire::DirEntries>> done) {
  tasks_.spawn(do_readdir({inode, std::move(after), count_max}, std::move(done)));
}

Task<void> Engine::do_readdir(wire::ReadDir request, Callback<Result<wire::DirEntries>> done) {
  auto answer = co_await ask<wire::DirEntries>(wire::Type::kReadDir, request, kQueryWait);
  if (answer) {
    for (wire::DirEntry& e : answer->entries) {
      names_->put_entry(request.inode, e.name, e.attr);
      if (Image* im = find(e.attr.image); im != nullptr && !im->held) take_attr(*im, e.attr);
      e.attr = local_view(std::move(e.attr));
    }
    co_return done(std::move(answer));
  }
  if (!is_unreachable(answer.status())) co_return done(answer.status());
  wire::DirEntries known = names_->list(request.inode, request.after, request.count_max);
  for (wire::DirEntry& e : known.entries) e.attr = local_view(std::move(e.attr));
  done(std::move(known));
}

void Engine::set_xattr(wire::SetXattr request, Done done, RequestId id) {
  tasks_.spawn(do_set_xattr(std::move(request), std::move(done), id));
}

Task<void> Engine::do_set_xattr(wire::SetXattr request, Done done, RequestId id) {
  if (Status s = before_policy(request); !s) co_return done(s);
  auto known = names_->get(request.inode);
  Image* im = asks_none(request) && known ? find(known->image) : nullptr;
  if (im == nullptr) co_return done(co_await change_xattr(std::move(request), id));
  Pin pin(*im);
  ++im->asking_none;
  Status set = co_await change_xattr(std::move(request), id);
  --im->asking_none;
  if (!set) co_await after_policy(*im);
  done(std::move(set));
}

// As change_name(): what is there tells whether it was done, and "only if new" holds.
Task<Status> Engine::change_xattr(wire::SetXattr request, RequestId id) {
  const io::BootTime deadline = env_.now() + kChangeWait;
  bool lost = id.again;
  for (;;) {
    if (lost) {
      auto now = co_await ask<wire::Attr>(wire::Type::kGetAttr, wire::GetAttr{request.inode}, deadline - env_.now());
      if (!now) co_return now.status();
      names_->put(*now);
      const bool there = std::any_of(now->xattrs.begin(), now->xattrs.end(), [&](const auto& x) {
        return x.first == request.name && (request.remove != 0 || x.second == request.value);
      });
      if (there == (request.remove == 0)) co_return Status::ok();
    }
    lost = false;
    auto answer = co_await ask<wire::Changed>(wire::Type::kSetXattr, request, deadline - env_.now(), &lost);
    if (answer) changed(*answer);
    if (!lost) co_return answer.status();
  }
}

void Engine::statfs(Callback<Result<wire::StatFsAnswer>> done) { tasks_.spawn(do_statfs(std::move(done))); }

// The domain has as much room as the smaller of its two copies.
Task<void> Engine::do_statfs(Callback<Result<wire::StatFsAnswer>> done) {
  auto own = group_->space();
  if (!own) co_return done(own.status());
  wire::StatFsAnswer out{own->total, own->available, 0};
  auto answer = co_await ask<wire::StatFsAnswer>(wire::Type::kStatFs, wire::StatFs{}, kQueryWait);
  if (answer) {
    out.total = std::min(out.total, answer->total);
    out.available = std::min(out.available, answer->available);
    out.files = answer->files;
  }
  done(out);
}

// ---- what the shared node says of an image now -----------------------------------------------------

// On the link that stands. kNotFound: it has nothing under that number.
Task<Result<wire::Attr>> Engine::attr_of(InodeNumber inode, ImageId image) {
  wire::GetAttr which{inode};
  using Answer = Result<wire::Attr>;
  auto answer = co_await async<Answer>([&](Callback<Answer> done) {
    mirror_->request<wire::Attr>(wire::Type::kGetAttr, which, std::move(done));
  });
  co_return of_image(std::move(answer), image);
}

// Once the link is up, at most `limit` from now.
Task<Result<wire::Attr>> Engine::ask_attr(InodeNumber inode, ImageId image, io::Duration limit) {
  co_return of_image(co_await ask<wire::Attr>(wire::Type::kGetAttr, wire::GetAttr{inode}, limit), image);
}

// Believed where it is not held.
Task<Result<wire::Attr>> Engine::renew_attr(Image& im) {
  auto answer = co_await ask_attr(im.inode, im.id, kQueryWait);
  if (!answer) co_return answer;
  names_->put(*answer);
  if (!im.held) take_attr(im, *answer);
  co_return answer;
}

// What another host has made of an image's size. First a byte of it is read: that waits, or fails, where its holder may
// have acknowledged what the shared node does not have, a later end among it. Only then the size: what that read was
// answered for is in it.
Task<Status> Engine::ask_size(Image& im, uint64_t offset) {
  auto byte = std::make_shared<io::AlignedBuffer>(1);   // shared with the operation, should this frame go
  const Extent first{offset, 1};
  Status read = co_await read_shared(im, first, byte);
  if (!read && read.code() != Code::kUnsupported) co_return read;
  auto answer = co_await renew_attr(im);
  if (!answer && is_unreachable(answer.status())) co_return Status(Code::kUnavailable, answer.status().message());
  if (!answer) co_return Status::ok();   // it has lost its name: as far as is known here
  // Of `mirror = none` nothing is read there, and the size is its holder's to say; without one it is as it was left.
  if (!read && !answer->holder.empty()) co_return read;
  co_return Status::ok();
}

}  // namespace tidemark::fs
