// A tenure that was taken by force, on both sides of it.
//
// The host that lost it (it learns so from an answer kFenced): what only its copy holds is put aside as a branch, in a
// file below the state directory, durable before anything is overwritten; the shared node is told; the copy is behind,
// to be filled with the next tenure. Handles that were open then answer EIO until they are closed, so that no guest
// goes on upon blocks that are not its own.
//
//   fenced -> requests under way have ended -> branch durable -> behind, durable -> told -> reading shared
//
// Until then no tenure of the image is asked for. The file is BranchFiles' to write (branch_files.h).
//
// The host that took it: the replica may never get what the old one had not shipped, so that the first batch of the
// new tenure holds the whole image (a mark kWhole says so). A durable flag stands from before the first write until
// that batch is staged; a crash in between begins it anew.
#include <algorithm>

#include "fs/branch_files.h"
#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
}  // namespace

std::string Engine::branch_directory() const { return branch_files_->directory(); }

std::vector<Branch> Engine::branches() { return branch_files_->list(); }

// These regions of the own copy are a branch, and nothing of it counts any more: durable once this has returned OK.
Task<Status> Engine::set_aside(Image& im, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes) {
  if (im.local() && only_here(im)) {   // it was `none`: all of it is here alone
    const uint64_t size = im.copy->size();
    while (size / region_bytes >= limits::kRegionsPerImageMax) region_bytes *= 2;
    regions.clear();
    for (uint64_t i = 0; i * region_bytes < size; ++i) regions.push_back(RegionIndex(i));
  }
  if (im.local() && !regions.empty()) {
    auto unreadable = co_await branch_files_->save(im, epoch, std::move(regions), region_bytes);
    if (!unreadable) co_return unreadable.status();
    if (*unreadable != 0) ++counts_.lost;
  }
  if (Status s = set_flag(im, kFlagBehind, true); !s) co_return s;
  im.behind = true;
  im.facts.copy_whole = false;
  co_return set_flag(im, kFlagHostOnly, false);
}

// Nothing of the own copy is lost once this has returned OK, and nothing of it counts any more.
Task<Status> Engine::settle_fence(Image& im, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes) {
  if (im.local() && (!regions.empty() || only_here(im))) {
    if (TM_PLANTED("keep no branch")) regions.clear();
    if (Status s = co_await set_aside(im, epoch, regions, region_bytes); !s) co_return s;
    kLog.warning("tail_diverged", {{"image", im.id}, {"epoch", epoch}, {"regions", regions.size()},
                                 {"acknowledged_alone", im.facts.alone ? 1 : 0},
                                 {"kept", "as a branch: tidemark image branches"}});
  }
  if (im.attached) {
    journal_->set_level(im.slot, false);
    auto noted = co_await async<Status>([&](Callback<Status> done) {
      journal_->note_copies(im.slot, host_loss(), im.shared_loss, false, std::move(done));
    });
    if (!noted) co_return noted;
  }
  im.facts.alone = im.apart = false;
  im.unsynced.clear();
  // Of whatever epoch: before this is answered the host gets no newer one.
  wire::FenceSeen seen{im.id, Epoch(UINT64_MAX)};
  Status told = co_await async<Status>([&](Callback<Status> done) {
    mirror_->send(wire::Type::kFenceSeen, wire::encode(seen), {},
                  [done = std::move(done)](Result<wire::Answer> answer) mutable {
                    done(answer ? Status::ok() : answer.status());
                  });
  });
  const bool removed = told.code() == Code::kNotFound;   // there is no tenure of it any more
  if (told || removed) tasks_.spawn(check_name(im.attr));   // it may have been removed since it was taken
  co_return removed ? Status::ok() : told;
}

// After a fence in the midst of a run. Until it has ended every request of the image is answered with an error.
Task<void> Engine::after_fence(Image& im) {
  Pin pin(im);
  const Epoch epoch = im.epoch;
  for (bool told = false;; told = true) {
    co_await wait_idle(im);
    while (im.fill_running || im.resync_running) co_await sleep(std::chrono::milliseconds(50));
    std::vector<RegionIndex> regions;
    if (im.attached) regions = journal_->dirty_regions(im.slot);
    uint64_t region_bytes = im.attached ? journal_->region_bytes(im.slot) : limits::kRegionBytesMin;
    // What was journaled is read for its batch before the copy changes: it becomes a branch at the replica, too.
    if (!im.branch_staged && im.attached) {
      co_await handover_cut();
      im.branch_staged = true;
    }
    Status settled = co_await settle_fence(im, epoch, std::move(regions), region_bytes);
    if (settled.is_ok()) break;
    if (stopping_ || im.doomed) co_return;
    if (!told) kLog.warning("branch_waits", {{"image", im.id}, {"error", settled}});
    im.fence_error = settled.to_string();
    co_await sleep(kRetry);
  }
  im.branch_staged = false;
  im.fence_error.clear();
  if (im.state != MirrorState::kFenced) co_return;
  apply(im, MirrorEvent::kYielded);
}

void Engine::fence_handles(Image& im) {
  for (Handle& handle : handles_) {
    if (handle.image != &im) continue;
    handle.fenced = true;
    if (handle.wrote) --im.wrote;
    handle.wrote = false;
    if (options_.survivor != nullptr) options_.survivor->fenced(handles_.index_of(handle));
  }
}

// This run learns of a takeover that met a run before. Its guests' handles were there: they are as if it had heard it
// itself, those opened since beside them too, and what they asked for meanwhile is answered. Before the shared node is
// told: a run that follows finds it no more. False: nobody was there.
bool Engine::fence_inherited(Image& im) {
  const bool there = std::ranges::any_of(
      handles_, [&](const Handle& h) { return h.image == &im && h.inherited && !h.fenced; });
  if (!there) return false;
  kLog.warning("inherited_handles_fenced", {{"image", im.id}});
  fence_handles(im);
  im.inherited_writer = false;
  const Status taken(Code::kFenced, "image " + im.id.to_string() + " was taken over by another host");
  for (Op* op : std::exchange(im.parked, {})) refuse(op, taken);
  return true;
}

// ---- the host that took it ------------------------------------------------------------------------

bool Engine::standing_in(const Image& im) const {
  auto at = flags_.find(im.id);
  return at != flags_.end() && (at->second & kFlagStandIn) != 0;
}

// What the shared copy has allocated, while nobody writes it.
Task<Result<std::vector<Extent>>> Engine::shared_extents(Image& im, uint64_t size) {
  std::vector<Extent> out;
  wire::Extents ask{im.id, 0, 4096};
  while (ask.offset < size) {
    using Answer = Result<wire::ExtentList>;
    auto page = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::ExtentList>(wire::Type::kExtents, ask, std::move(done));
    });
    if (!page) co_return page.status();
    for (Extent e : page->extents) {
      uint64_t begin = e.offset / limits::kOrderGranule * limits::kOrderGranule;
      uint64_t after = (e.end() + limits::kOrderGranule - 1) / limits::kOrderGranule * limits::kOrderGranule;
      uint64_t end = std::min(size, after);
      if (begin >= end) continue;
      if (!out.empty() && out.back().end() >= begin) out.back().length = end - out.back().offset;
      else out.push_back({begin, end - begin});
    }
    if (page->next_offset <= ask.offset) break;
    ask.offset = page->next_offset;
  }
  co_return out;
}

// All of the image as records of the new tenure, in one turn, so that they are in one batch with the mark.
void Engine::record_whole(Image& im, const std::vector<Extent>& extents, const wire::TenureParent& parent) {
  std::vector<journal::Ticket> tickets;   // all begun before one is finished: a batch that is full is closed then
  if (im.size != 0) tickets.push_back(journal_->begin(im.slot, journal::RecordKind::kDiscard, {0, im.size}));
  for (const Extent& e : extents) tickets.push_back(journal_->begin(im.slot, journal::RecordKind::kWrite, e));
  wire::Mark mark = mark_of(im, wire::MarkKind::kWhole);
  mark.parent = parent;
  journal_->mark(mark);
  for (const journal::Ticket& ticket : tickets) journal_->finish(ticket, CoordinatorSequence(0), 0);
  kLog.info("whole_image_recorded", {{"image", im.id}, {"epoch", im.epoch}, {"extents", extents.size()}});
}

// Until what was recorded is in immutable segments: then a crash cannot take it any more. Of an image that is withheld
// nothing is; one that was removed is freed, with its flag, once this has ended.
Task<void> Engine::stage_whole(Image& im) {
  Pin pin(im);
  auto over = [this, &im, epoch = im.epoch] { return stopping_ || im.epoch != epoch || im.doomed; };
  for (;;) {
    HandoverCut cut = co_await handover_cut();
    if (over()) co_return;
    if (cut.staged && has_all(cut, im.id)) break;
    co_await sleep(kRetry);
    while (!over() && journal_->withheld(im.id)) co_await sleep(kRetry);   // each cut would make a point
    if (over()) co_return;
  }
  Status s = set_flag(im, kFlagStandIn, false);
  if (!s) kLog.warning("flag_not_cleared", {{"image", im.id}, {"error", s}});
}

// ---- the operator's word --------------------------------------------------------------------------

void Engine::takeover(std::string request, Callback<Result<std::string>> done) {
  tasks_.spawn(do_takeover(std::move(request), std::move(done)));
}

Task<void> Engine::do_takeover(std::string request, Callback<Result<std::string>> done) {
  if (co_await accept_cut_copies(request, done)) co_return;
  if (!mirror_->up()) {
    co_return done(Status(Code::kUnavailable, "the shared node is not connected: " + mirror_->last_error().message()));
  }
  const wire::Takeover ask{std::move(request)};
  if (wire::encode(ask).size() > limits::kFrameBodyBytesMax)
    co_return done(Status(Code::kInvalidArgument, "too many names for one request: ask for fewer images, or by host"));
  mirror_->request<wire::TakeoverAnswer>(wire::Type::kTakeover, ask,
                                         [done = std::move(done)](Result<wire::TakeoverAnswer> answer) mutable {
                                           if (!answer) return done(answer.status());
                                           done(std::move(answer->report));
                                         });
}

}  // namespace tidemark::fs
