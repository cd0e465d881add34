// Another shared node than the one this host knows. It is not believed, unless it says that it lost what it kept and is
// rebuilt: then it is told all that this host knows, and, once it has made its catalogue anew from what all hosts told,
// it is taken for the old one's successor. What it lacks is pushed there: of images that it names this host the holder
// of, all is compared and copied (kFlagHostOnly, a durable flag), as after a time alone with every region dirty.
#include "fs/engine.h"

#include <algorithm>
#include <set>

#include "fs/known_shared.h"
#include "shared/base/log.h"
#include "shared/wire/connection.h"
#include "shared/wire/recovered_name.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr size_t kEntriesPerPart = 256;
constexpr size_t kPartBytesMax = 512u << 10;   // of its entries: with the one that passes it, well within a frame
constexpr uint32_t kEntriesPerAsk = 512;
}  // namespace

Task<Status> Engine::greeted(wire::Connection& link, const wire::HelloAnswerMore& hello) {
  Status known = co_await check_shared(link, hello);
  if (!known) co_return known;
  // Durable before anything is acknowledged that relies on it.
  co_return known_shared_->note_run(hello.store);
}

Task<Status> Engine::check_shared(wire::Connection& link, const wire::HelloAnswerMore& hello) {
  if (hello.store.is_nil()) co_return Status::ok();   // of an older version: nothing to compare
  auto known = known_shared_->works_with();
  auto reported = known_shared_->reported_to();
  if (!known || !reported) co_return known ? reported.status() : known.status();
  const Status under_way(Code::kUnavailable,
                         "shared node " + hello.base.node + " is being rebuilt from what hosts know");
  if (hello.rebuilding == 2) co_return under_way;
  if (hello.rebuilding != 0) {
    Status told = co_await report(link);
    if (!told) co_return told;
    // Durable before it is said that this was all: from then on the shared node may go on without asking again.
    if (Status s = known_shared_->note_reported_to(hello.store); !s) co_return s;
    wire::ReportMore end;
    end.base.last = 1;
    using Answer = Result<wire::Answer>;
    const Bytes body = known_shared_->tells_runs() ? wire::encode(end) : wire::encode(end.base);
    auto taken = co_await async<Answer>([&](Callback<Answer> done) {
      link.send_request(wire::Type::kReport, ByteSpan(body), {}, std::move(done));
    });
    co_return taken ? under_way : taken.status();
  }
  if (known->is_nil()) co_return known_shared_->note_works_with(hello.store);
  if (*known == hello.store) co_return Status::ok();
  if (*reported != hello.store) {
    co_return Status(Code::kPermission,
                     "shared node " + hello.base.node + " is not the one that this host knows: its state " +
                         hello.store.to_string() + ", expected " + known->to_string() +
                         ": it was emptied or replaced, or rebuilt without this host. Mount its state_dir and bricks; "
                         "if these are lost, `tidemark shared rebuild` there, this host among --hosts. If it was "
                         "rebuilt already, do not rebuild it again: copy what only this host has out of the mount, "
                         "stop it, and `tidemark state reset` here");
  }
  if (Status adopted = co_await adopt_rebuilt(link); !adopted) co_return adopted;
  kLog.warning("shared_node_rebuilt", {{"store", hello.store}, {"before", *known}});
  co_return known_shared_->note_works_with(hello.store);
}

bool Engine::alone_before_crash(const ImageId& id) const {
  if (!unreconciled_.contains(id)) return false;
  const auto& dirty = journal_->dirty_after_crash();
  return std::any_of(dirty.begin(), dirty.end(), [&](const auto& d) { return d.image == id && d.alone; });
}

// What the copy here is good for, as far as this host alone can tell.
wire::ReportEntry Engine::report_of(const wire::DirEntry& known, const image::ImageMetadata* copy) {
  wire::ReportEntry out;
  out.name = known.name;
  out.attr = known.attr;
  if (known.attr.image.is_nil()) return out;
  auto flags = flags_.find(known.attr.image);
  const uint8_t bits = flags == flags_.end() ? 0 : flags->second;
  out.own = journal_->tenure_epoch(known.attr.image);
  out.host_only = (bits & kFlagHostOnly) != 0 && known.attr.mirror == 0 ? 1 : 0;
  const Image* im = find(known.attr.image);
  const bool there = copy != nullptr && (im == nullptr || im->local());
  if (there) out.copy = (bits & (kFlagBehind | kFlagPartial | kFlagCut)) != 0 ? 1 : 2;
  if (there && copy->size_generation >= out.attr.size_generation) {
    out.attr.size = copy->size;
    out.attr.size_generation = copy->size_generation;
  }
  // What was acknowledged alone before a crash is here only: the tenure goes on, as it would with the old shared node.
  if (alone_before_crash(known.attr.image)) out.held = 1;
  if (im == nullptr || !im->held || im->yield_unknown) return out;
  out.held = 1;
  out.own = im->epoch;
  out.attr.size = im->size;
  out.attr.size_generation = im->size_generation;
  if (there) out.copy = im->stale.none() && !im->behind ? 2 : 1;
  return out;
}

// All names, and the images of which none is known just now (a rename was heard of, and the new name not yet) and that
// go on here, or have a copy here: what nobody reports does not exist any more.
std::vector<wire::DirEntry> Engine::names_to_report(const CopiesById& copies) {
  std::vector<wire::DirEntry> out = names_->entries();
  std::set<ImageId> named;
  for (const wire::DirEntry& e : out) named.insert(e.attr.image);
  for (const auto& [id, inode] : names_->all_images()) {
    const Image* im = find(id);
    const bool here = copies.contains(id) || (im != nullptr && (im->held || only_here(*im))) || alone_before_crash(id);
    auto attr = names_->get(inode);
    if (!here || named.contains(id) || !attr || attr->nlink == 0 || (im != nullptr && im->nameless)) continue;
    attr->parent = InodeNumber(1);
    out.push_back({wire::recovered_name(id), std::move(*attr)});
  }
  return out;
}

Task<Status> Engine::report(wire::Connection& link) {
  wire::ReportMore more;
  auto seen = known_shared_->newest_run();
  if (!seen) co_return seen.status();
  more.boot = seen->boot;
  wire::Report& part = more.base;
  part.first = 1;
  part.cut = {journal_->incarnation(), journal_->last_finished()};
  if (recovering_ == 0) {   // else nothing can be cut; what is dirty is this host's own in any case
    HandoverCut cut = co_await handover_cut();
    part.cut.counter = cut.counter;
  }
  auto copies = group_->list();
  if (!copies) co_return copies.status();
  CopiesById by_id;
  for (const image::ImageMetadata& m : copies->images) by_id[m.id] = &m;
  const std::vector<wire::DirEntry> known = names_to_report(by_id);
  size_t at = 0;
  do {
    size_t bytes = 0;
    for (; at < known.size() && part.entries.size() < kEntriesPerPart && bytes < kPartBytesMax; ++at) {
      auto copy = by_id.find(known[at].attr.image);
      part.entries.push_back(report_of(known[at], copy == by_id.end() ? nullptr : copy->second));
      part.event = std::max(part.event, known[at].attr.event);
      bytes += wire::encode(part.entries.back()).size();
    }
    using Answer = Result<wire::Answer>;
    const Bytes body = known_shared_->tells_runs() ? wire::encode(more) : wire::encode(part);
    auto taken = co_await async<Answer>([&](Callback<Answer> done) {
      link.send_request(wire::Type::kReport, ByteSpan(body), {}, std::move(done));
    });
    if (!taken) co_return taken.status();
    part.entries.clear();
    part.first = 0;
  } while (at < known.size());
  kLog.warning("reported_to_shared", {{"names", known.size()}, {"cut", part.cut.counter}});
  co_return Status::ok();
}

Task<Status> Engine::adopt_rebuilt(wire::Connection& link) {
  std::vector<wire::Attr> mine;
  wire::Dump ask{InodeNumber(0), kEntriesPerAsk};
  for (bool end = false; !end;) {
    using Answer = Result<wire::DirEntries>;
    auto page = co_await async<Answer>(
        [&](Callback<Answer> done) { link.request<wire::DirEntries>(wire::Type::kDump, ask, std::move(done)); });
    if (!page) co_return page.status();
    for (wire::DirEntry& e : page->entries) {
      ask.after = e.attr.inode;
      if (!e.name.empty()) names_->put_entry(e.attr.parent, e.name, e.attr);
      if (Image* im = find(e.attr.image)) im->inode = im->attr.inode = e.attr.inode;
      const bool own = e.attr.holder == options_.config.node.name && e.attr.mirror != 0;
      if (own && !e.attr.image.is_nil()) mine.push_back(e.attr);
    }
    end = page->end != 0 || page->entries.empty();
  }
  for (const wire::Attr& attr : mine) {
    Status pushed = co_await push_all(attr);
    if (!pushed) co_return pushed.with_context("image " + attr.image.to_string());
  }
  co_return Status::ok();
}

// From here on the shared copy counts as lacking everything. Where the image is not held this is seen when it is taken.
Task<Status> Engine::push_all(const wire::Attr& attr) {
  auto found = image_of(attr);
  if (!found) co_return found.status();
  Image& im = **found;
  Pin pin(im);
  if (Status s = set_flag(im, kFlagHostOnly, true); !s) co_return s;
  if (!im.held || im.epoch != attr.epoch) co_return Status::ok();
  if (Status s = co_await all_apart(im); !s) co_return s;
  im.facts.alone = true;
  co_return Status::ok();
}

}  // namespace tidemark::fs
