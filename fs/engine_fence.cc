// A tenure that was taken by force, on both sides of it.
//
// The host that lost it (it learns so from an answer kFenced): what only its copy holds is put aside as a branch, in a
// file below the state directory, durable before anything is overwritten; the shared node is told; the copy is behind,
// to be filled with the next tenure. Handles that were open then answer EIO until they are closed, so that no guest
// goes on upon blocks that are not its own.
//
//   fenced -> requests under way have ended -> branch durable -> behind, durable -> told -> reading shared
//
// Blocks that cannot be read are left out of the branch, and named in its list: nothing brings them back, and all else
// would wait for them. For a brick that is not there at all, or of which nothing can be read, it waits.
//
// Until then no tenure of the image is asked for.
//
// The host that took it: the replica may never get what the old one had not shipped, so that the first batch of the
// new tenure holds the whole image (a mark kWhole says so). A durable flag stands from before the first write until
// that batch is staged; a crash in between begins it anew.
#include <algorithm>
#include <charconv>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");
constexpr uint64_t kPiece = 1u << 20;
constexpr uint64_t kFreeShare = 2;   // a branch takes at most one part in so many of what is free: the journal is there
constexpr std::string_view kSuffix = ".branch";

// "UUID-epochN.branch": an epoch is fenced once, however often the host crashes over it.
std::string branch_name(const ImageId& image, Epoch epoch) {
  return image.to_string() + "-epoch" + std::to_string(epoch.value) + std::string(kSuffix);
}

// Lines of a branch's list: "extent OFFSET LENGTH", "unreadable OFFSET LENGTH".
constexpr std::string_view kUnreadable = "unreadable ";

std::string list_line(std::string_view word, Extent e) {
  return std::string(word) + std::to_string(e.offset) + " " + std::to_string(e.length) + "\n";
}

uint64_t unreadable_in(ByteSpan list) {
  const std::string_view text(reinterpret_cast<const char*>(list.data()), list.size());
  const std::string line = "\n" + std::string(kUnreadable);
  uint64_t sum = 0;
  for (size_t at = text.find(line); at != text.npos; at = text.find(line, at + 1)) {
    const std::string_view numbers = text.substr(at + line.size());
    const size_t length_at = std::min(numbers.find(' '), numbers.size() - 1) + 1;
    uint64_t length = 0;
    std::from_chars(numbers.data() + length_at, numbers.data() + numbers.size(), length);
    sum += length;
  }
  return sum;
}
}  // namespace

std::string Engine::branch_directory() const { return options_.config.node.state_dir + "/branches"; }

// The branches that this host keeps: names and sizes.
std::vector<Branch> Engine::branches() {
  std::vector<Branch> out;
  auto names = env_.files().list(branch_directory());
  if (!names) return out;   // none was ever made
  for (const std::string& name : *names) {
    size_t epoch_at = name.find("-epoch");
    auto image = Uuid::parse(name.substr(0, epoch_at));
    if (!name.ends_with(kSuffix) || epoch_at == std::string::npos || !image) continue;
    Branch branch;
    branch.image = *image;
    branch.file = branch_directory() + "/" + name;
    uint64_t epoch = 0;
    std::from_chars(name.data() + epoch_at + 6, name.data() + name.size(), epoch);
    branch.epoch = Epoch(epoch);
    if (auto stat = env_.files().stat(branch.file)) branch.bytes = stat->allocated;
    auto listed = env_.files().read_file(branch.file + ".extents");
    if (listed) branch.unreadable_bytes = unreadable_in(*listed);
    out.push_back(std::move(branch));
  }
  return out;
}

// Whole regions of the own copy as a sparse file of the image's size, and beside it a list of their extents.
Task<Status> Engine::save_branch(Image& im, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes) {
  const std::string directory = branch_directory();
  const std::string path = directory + "/" + branch_name(im.id, epoch);
  const std::string partial = path + ".part";
  if (env_.files().stat(path)) co_return Status::ok();   // kept before a crash came
  if (Status s = env_.files().make_directories(directory); !s) co_return s;
  const uint64_t bytes = regions.size() * region_bytes;
  auto space = env_.files().space(directory);
  if (!space) co_return space.status();
  if (bytes > space->available / kFreeShare) {
    std::string sizes =
        std::to_string(bytes) + " bytes takes more than half of the " + std::to_string(space->available);
    co_return Status(Code::kOutOfSpace,
                     "a branch of up to " + sizes + " bytes that are free in " + directory + ": make room there");
  }
  Status written = co_await write_branch(im, epoch, std::move(regions), region_bytes, path);
  if (written) co_return written;
  Status removed = env_.files().unlink(partial);
  if (!removed && removed.code() != Code::kNotFound)
    kLog.warning("branch_part_left", {{"file", partial}, {"error", removed}});
  co_return written;
}

// A piece of the own copy block by block, where it could not be read as a whole; what cannot be read is zeros, and in
// `unreadable`.
Task<Status> Engine::read_around(Image& im, Extent piece, MutableByteSpan out, std::vector<Extent>& unreadable) {
  bool failed = false;
  for (uint64_t at = 0; at < piece.length; at += limits::kOrderGranule) {
    const Extent block{piece.offset + at, std::min<uint64_t>(limits::kOrderGranule, piece.length - at)};
    auto buffer = std::make_shared<io::AlignedBuffer>(block.length);   // shared with the operation
    Status s = co_await read_copy(im, block, buffer);
    const auto into = out.begin() + static_cast<ptrdiff_t>(at);
    if (s) {
      std::copy_n(buffer->data(), block.length, into);
      continue;
    }
    if (s.code() != Code::kIoError && s.code() != Code::kCorruption) co_return s;
    failed = failed || s.code() == Code::kIoError;
    std::fill_n(into, block.length, 0);
    if (!unreadable.empty() && unreadable.back().end() == block.offset) unreadable.back().length += block.length;
    else unreadable.push_back(block);
  }
  // A brick that is not there may come back, and all of this with it.
  if (failed) {
    if (Status there = group_->look_at_bricks(); !there) co_return there;
    if (Status there = group_->look_at(im.id); there.code() == Code::kIoError) co_return there;
  }
  co_return Status::ok();
}

Task<Status> Engine::write_branch(Image& im, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes,
                                  std::string path) {
  const std::string directory = branch_directory();
  const std::string partial = path + ".part";
  auto opened = env_.files().open(partial, {.create = true});
  if (!opened) co_return opened.status();
  auto file = std::shared_ptr<io::File>(std::move(*opened));   // shared with its operations, should this frame go
  const uint64_t size = im.copy->size();
  if (Status s = file->truncate(0); !s) co_return s;
  if (Status s = file->truncate(size); !s) co_return s;
  std::string list = "image " + im.id.to_string() + "\npath " + names_->path_of(im.inode) + "\nepoch " +
                     std::to_string(epoch.value) + "\nsize " + std::to_string(size) + "\n";
  std::vector<Extent> unreadable;
  Status failed;        // as the device last said
  bool kept = false;    // anything but zeros: a hole is read without the device
  for (RegionIndex region : regions) {
    const uint64_t begin = region.value * region_bytes, end = std::min(size, begin + region_bytes);
    if (begin >= end) continue;
    list += list_line("extent ", {begin, end - begin});
    for (uint64_t at = begin; at < end; at += kPiece) {
      Extent piece{at, std::min(kPiece, end - at)};
      auto buffer = std::make_shared<io::AlignedBuffer>(piece.length);   // shared with the operation, as above
      Status s = co_await read_copy(im, piece, buffer);
      if (s.code() == Code::kIoError) failed = s;
      if (!s) s = co_await read_around(im, piece, buffer->span().first(piece.length), unreadable);
      if (!s) co_return s;
      ByteSpan bytes = ByteSpan(buffer->span()).first(piece.length);
      if (std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; })) continue;
      kept = true;
      s = co_await async<Status>([&](Callback<Status> done) {
        file->write(piece.offset, bytes, io::IoMode::kQueued,
                    [file, buffer, done = std::move(done)](Status w) mutable { done(std::move(w)); });
      });
      if (!s) co_return s;
    }
  }
  // More than bad blocks: a device that answers nothing, while its brick is looked up in memory. It may come back.
  if (!kept && !unreadable.empty() && !failed)
    co_return failed.with_context("nothing of what only this host has could be read");
  Status synced = co_await async<Status>([&](Callback<Status> done) {
    file->sync(io::IoMode::kQueued, [file, done = std::move(done)](Status s) mutable { done(std::move(s)); });
  });
  if (!synced) co_return synced;
  for (const Extent& e : unreadable) list += list_line(kUnreadable, e);
  if (Status s = env_.files().write_file_atomically(path + ".extents", as_bytes(list)); !s) co_return s;
  if (Status s = env_.files().rename(partial, path); !s) co_return s;
  if (Status s = env_.files().sync_directory(directory); !s) co_return s;
  kLog.warning("branch_kept", {{"image", im.id}, {"epoch", epoch}, {"regions", regions.size()}, {"file", path}});
  if (const uint64_t bytes = unreadable_in(as_bytes(list)); bytes != 0) {
    kLog.error("branch_incomplete", {{"image", im.id}, {"epoch", epoch}, {"unreadable_bytes", bytes},
                                     {"list", path + ".extents"}, {"effect", "what only this host had there is lost"}});
    ++counts_.lost;
  }
  co_return Status::ok();
}

// These regions of the own copy are a branch, and nothing of it counts any more: durable once this has returned OK.
Task<Status> Engine::set_aside(Image& im, Epoch epoch, std::vector<RegionIndex> regions, uint64_t region_bytes) {
  if (im.local() && only_here(im)) {   // it was `none`: all of it is here alone
    const uint64_t size = im.copy->size();
    while (size / region_bytes >= limits::kRegionsPerImageMax) region_bytes *= 2;
    regions.clear();
    for (uint64_t i = 0; i * region_bytes < size; ++i) regions.push_back(RegionIndex(i));
  }
  if (im.local() && !regions.empty()) {
    if (Status s = co_await save_branch(im, epoch, std::move(regions), region_bytes); !s) co_return s;
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
