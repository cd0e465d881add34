// After a crash: every image with dirty regions is made equal on host and shared node before it is served again.
//
// Direction, per image: regions that the shared node says are stale here take its bytes; else, if writes were
// acknowledged without the shared copy, the host's copy wins; else the copy whose loss id is unchanged (the host's
// first, if both are); else the shared copy. Idempotent: nothing is forgotten before both copies are equal and durable.
//
// Where the shared node refuses what must be written or synced there, a host whose own copy is whole and decides goes
// on alone. What must be read there first, it waits for.
#include "fs/engine.h"

#include <algorithm>

#include "fs/survivor.h"

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/base/planted.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fs");

// Dirty whole: as far as the image reaches now, not as the journal knew it.
void reach(journal::DirtyImage& dirty, uint64_t size) {
  if (!dirty.whole) return;
  while (size > dirty.region_bytes * limits::kRegionsPerImageMax) dirty.region_bytes *= 2;
  dirty.regions.clear();
  for (uint64_t i = 0; i * dirty.region_bytes < size; ++i) dirty.regions.push_back(RegionIndex(i));
}
}  // namespace

Task<void> Engine::recover_all() {
  std::vector<journal::DirtyImage> dirty = journal_->dirty_after_crash();
  recovering_ = static_cast<uint32_t>(dirty.size());
  for (const journal::DirtyImage& d : dirty) {
    auto attr = names_->by_image(d.image);
    auto image = attr ? image_of(*attr) : Result<Image*>(Status(Code::kNotFound, "not in the name cache"));
    if (image) (*image)->recovering = true;
  }
  std::set<ImageId> to_recover;
  for (const journal::DirtyImage& d : dirty) to_recover.insert(d.image);
  std::vector<ImageId> clean;
  if (options_.successor) {
    for (const SavedTenure& t : options_.survivor->tenures())
      if (!to_recover.contains(t.image)) clean.push_back(t.image);
  }
  for (journal::DirtyImage& d : dirty) tasks_.spawn(recover(d));
  for (const ImageId& id : clean) tasks_.spawn(carry_on_clean(id));
  for (auto& [id, image] : images_)
    if (!image->recovering) serve(*image);
  co_return;
}

Task<void> Engine::recover(journal::DirtyImage dirty) {
  kLog.info("recovering", {{"image", dirty.image}, {"regions", dirty.regions.size()}, {"alone", dirty.alone ? 1 : 0}});
  bool carried = false, aside = false;
  if (options_.successor) carried = co_await carry_on(dirty.image, &dirty);
  Image* im = find(dirty.image);
  for (bool told = false; !carried; told = true) {
    Status status;
    if (im == nullptr) {
      // Never seen by its name here, or gone from the cache: only the shared node can say what it is.
      if (!co_await wait_link(std::chrono::seconds(3600))) continue;
      using Answer = Result<wire::DirEntries>;
      wire::Dump ask{InodeNumber(0), 0};
      bool end = false;
      while (!end && im == nullptr && status.is_ok()) {
        ask.count_max = 512;
        auto page = co_await async<Answer>([&](Callback<Answer> done) {
          mirror_->request<wire::DirEntries>(wire::Type::kDump, ask, std::move(done));
        });
        if (!page) {
          status = page.status();
          break;
        }
        for (wire::DirEntry& e : page->entries) {
          ask.after = e.attr.inode;
          if (e.attr.image != dirty.image) continue;
          names_->put(e.attr);
          auto made = image_of(e.attr);
          if (made) im = *made;
          else status = made.status();
          if (im != nullptr) im->recovering = true;
        }
        end = page->end != 0 || page->entries.empty();
      }
      if (im == nullptr) im = find(dirty.image);   // heard of meanwhile
      if (status.is_ok() && im == nullptr) {
        // Its blocks are still here where its removal was cut short, or where a rebuilt shared node was not told of it:
        // then what is noted of them stays.
        if (!group_->contains(dirty.image)) journal_->forget(dirty.image);
        kLog.info("recovered_gone", {{"image", dirty.image}});
        break;
      }
    }
    if (status.is_ok()) status = co_await reconcile(*im, dirty);
    if (status.is_ok()) break;
    // It waits for an operator, or for its brick. The other images do not: nothing is cut before all others are well.
    if (!aside && im != nullptr && !im->missing.empty()) {
      aside = true;
      --recovering_;
      journal_->withhold(dirty.image, status);
    }
    if (!told) kLog.warning("recovery_waits", {{"image", dirty.image}, {"error", status}});
    co_await sleep(kRetry);
  }
  journal_->reconciled(dirty.image);
  if (!aside) --recovering_;
  // A tail that is to become a branch must be in a closed batch of its own epoch before the copy is written again.
  while (im != nullptr && im->diverged && recovering_ != 0) co_await sleep(std::chrono::milliseconds(100));
  unreconciled_.erase(dirty.image);
  if (im != nullptr) {
    im->recovering = false;
    if (im->state == MirrorState::kReadingShared && im->held) apply(*im, MirrorEvent::kGranted);
    serve(*im);
  }
  kLog.info("recovered", {{"image", dirty.image}});
}

// What this host wrote and the shared copy's line lacks is kept: all of the image's dirty regions as a branch here, and
// in the resync batch, under the epoch in which they were written, as a branch at the replica. The own copy is behind.
Task<Status> Engine::keep_tail(Image& im, journal::DirtyImage dirty) {
  fence_inherited(im);
  if (im.copy != nullptr) attach(im, im.copy->size());   // so that the journal hears how far it reaches
  reach(dirty, im.copy != nullptr ? im.copy->size() : im.size);
  if (Status s = co_await set_aside(im, dirty.epoch, dirty.regions, dirty.region_bytes); !s) co_return s;
  im.diverged = true;
  kLog.error("tail_diverged", {{"image", im.id}, {"epoch", dirty.epoch}, {"regions", dirty.regions.size()},
                               {"bytes", dirty.regions.size() * dirty.region_bytes},
                               {"acknowledged_alone", dirty.alone ? 1 : 0},
                               {"kept", "as a branch, here (tidemark image branches) and at the replica"}});
  co_return Status::ok();
}

// The shared node refuses to have its copy made equal. Where the own copy is whole and `decides`, it goes on alone, as
// after a refused write: what may differ stays dirty, for the resync that follows once it is refused no more. That is
// durable here, and the shared copy outdated there, before anything is answered. Else it is tried again.
Task<Status> Engine::recover_alone(Image& im, const journal::DirtyImage& dirty, bool decides, Status why) {
  // A damaged copy is none: this one, which has at least what was flushed, decides, whoever must be asked meanwhile.
  const bool damaged = why.code() == Code::kCorruption;
  const MirrorStep alone = step(im.facts, MirrorState::kMirrored, MirrorEvent::kRefused);
  const bool may = damaged || (decides && alone.next == MirrorState::kLocalOnly);
  if (!is_refusal(why) || !im.facts.copy_whole || !may) co_return why;
  // What the run before had acknowledged and not flushed: from now on no other copy makes it good.
  if (Status s = co_await sync_copy(im); !s) co_return s;
  if (damaged || dirty.whole) {   // the dirty-region log does not have all of it
    if (Status s = co_await all_apart(im); !s) co_return s;
  }
  if (damaged) shared_damaged(im, why);
  refused(im, why);
  note_alone(im);
  while (im.noting_alone)   // how it ended, it logs
    static_cast<void>(co_await async<Status>([&](Callback<Status> done) { im.noted.push_back(std::move(done)); }));
  if (!im.facts.alone) co_return why;
  // Where it refuses the size that comes with it, the word is noted there just the same.
  const Status told = (co_await say_resumed(im, im.epoch, 2)).status();
  const Code not_noted[] = {Code::kUnavailable, Code::kFenced, Code::kNotFound};
  if (std::ranges::count(not_noted, told.code()) != 0) co_return told;
  kLog.warning("recovered_alone", {{"image", im.id}, {"reason", why}});
  co_return Status::ok();
}

Task<Status> Engine::reconcile(Image& im, journal::DirtyImage dirty) {
  if (im.doomed) co_return Status::ok();   // whatever it lacks, nobody reads it any more
  // Behind since its tail was kept, not since it failed: what that tenure wrote is in it.
  const auto kept = branches();
  if (std::ranges::any_of(kept, [&](const Branch& b) { return b.image == im.id && b.epoch == dirty.epoch; }))
    im.refilling = false;
  if (im.local() && image::sync_failed_between(dirty.host_loss_id, host_loss())) {
    ++im.syncs_failed;
    // What is written again for that is what the dirty-region log has.
    if (dirty.whole) {
      if (Status s = co_await all_dirty(im, im.copy->size()); !s) co_return s;
    }
  }
  if (im.attr.mirror == 0) {
    if (!im.local()) co_return Status::ok();
    attach(im, im.copy->size());   // how far it reaches: it may have grown since the journal last noted that
    co_return co_await sync_copy(im);
  }
  // Behind: an operator has given those writes up, or they are kept as a branch.
  if (!im.local() && (dirty.alone || only_here(im)) && !im.behind && !find_missing(im)) {
    const Status missing(Code::kIoError, "its copy here has writes that the shared one lacks, and cannot be opened");
    if (im.missing.empty()) note_missing(im, missing);
    if ((!im.missing_told || was_cut(im.id)) && mirror_->up()) co_await tell_missing(im, dirty.epoch);
    co_return missing;
  }
  // The shared copy serves, once what only it has is durable there. Should the brick come back, its dirty regions are
  // not known any more.
  if (!im.local()) {
    if (Status s = set_flag(im, kFlagBehind, true); !s) co_return s;
    im.behind = true;
  }
  const bool own_tail = im.local() && (dirty.alone || only_here(im));
  const bool ahead = im.local() && (dirty.alone || host_only(im));
  bool linked = co_await wait_link(std::chrono::seconds(5));
  if (!linked) co_return Status(Code::kUnavailable, "waiting for the shared node");
  if (!im.held) {
    using Answer = Result<wire::Grant>;
    wire::Acquire ask{im.id, 0, copy_absent(im)};
    auto grant = co_await async<Answer>([&](Callback<Answer> done) {
      mirror_->request<wire::Grant>(wire::Type::kAcquire, ask, std::move(done));
    });
    if (!grant && grant.status().code() == Code::kNotFound) {
      lost_name(im.id);
      co_return Status::ok();
    }
    if (!grant && grant.status().code() == Code::kFenced) {
      // Taken by force before this host came back. What it had shipped or journaled stays a branch at the replica.
      if (im.copy != nullptr) attach(im, im.copy->size());
      im.facts.alone = dirty.alone;
      fence_inherited(im);
      reach(dirty, im.copy != nullptr ? im.copy->size() : im.size);
      Status settled = co_await settle_fence(im, dirty.epoch, dirty.regions, dirty.region_bytes);
      im.diverged = settled.is_ok();
      co_return settled;
    }
    bool given_back = grant.status().code() == Code::kBusy;
    // It was cut short there, and this copy cannot mend that: a host that holds it would have been granted it anew.
    if (grant.status().code() == Code::kCorruption) {
      auto now = co_await attr_now(im.id);
      given_back = now && now->holder != options_.config.node.name;
    }
    if (given_back) {
      // The tenure had been given back, flushed on both copies, before the crash. What the other host wrote since is in
      // the shared node's stale map.
      if (!own_tail) co_return Status::ok();
      co_return co_await keep_tail(im, dirty);
    }
    if (!grant) co_return grant.status();
    // Another host wrote since: its line is the main one. (Of this host's own name: a recovery that was cut short.)
    bool moved = grant->parent.epoch > dirty.epoch && grant->parent.source != options_.config.node.name;
    if (moved && dirty.epoch.value != 0) {
      if (Status s = co_await yield_unused(im.id, grant->epoch); !s) co_return s;
      // As above: if it had not gone on alone, it had given the tenure back, with all flushed on both copies.
      if (!own_tail) co_return Status::ok();
      co_return co_await keep_tail(im, dirty);
    }
    im.facts.alone = false;  // the direction is decided here, not by a resync of its own
    if (im.attr.mirror != 0) {   // so that no sync before the copies are equal makes the shared one count
      im.epoch = grant->epoch;
      im.size = grant->size;
      im.size_generation = grant->size_generation;
      if (auto said = co_await say_resumed(im, im.epoch, 4); !said) co_return said.status();
    }
    Status taken = co_await take_grant(im, std::move(*grant));
    if (!taken) co_return taken;
    im.facts.alone = im.attr.mirror != 0 && ahead;
  } else if (Status s = co_await ask_policy(im); !s) {
    co_return s;
  }
  if (im.attr.mirror == 0) {   // since the crash: the shared copy was given up
    if (!im.local()) co_return Status::ok();
    co_return co_await sync_copy(im);
  }
  co_return co_await level_after_crash(im, std::move(dirty));
}

// The tenure is held: the copies are made equal, or this host's goes on alone. Where it has none, what is dirty becomes
// durable on the shared one.
Task<Status> Engine::level_after_crash(Image& im, journal::DirtyImage dirty) {
  journal_->set_level(im.slot, false);
  bool host_kept = dirty.host_loss_id == host_loss();
  bool host_wins = dirty.alone || host_kept;
  reach(dirty, im.size);
  if (dirty.whole) {   // a resync that a lost link begins in the midst of this looks there alone
    if (Status s = co_await all_dirty(im, im.size); !s) co_return s;
  }
  note_shared_doubt(im, dirty.shared_loss_id, im.shared_loss);   // before it is in a note of the copies
  if (host_only(im) || im.accepted) {  // its policy was `none`, or nothing is known of it: all of it is compared
    Status apart = co_await all_apart(im);
    if (!apart) co_return apart;
    dirty.regions = journal_->dirty_regions(im.slot);
    dirty.region_bytes = journal_->region_bytes(im.slot);
    host_wins = true;
  }
  uint64_t repaired = 0;
  const LossId own_before = host_loss(), shared_before = im.resync_loss;
  const uint64_t session = mirror_->hello().session;
  auto stood = [&] { return session == mirror_->hello().session && shared_before == im.resync_loss; };
  im.own_failed = false;
  if (TM_PLANTED("serve dirty regions unreconciled")) dirty.regions.clear();
  Status equal;
  if (im.size_untold) {
    auto said = co_await say_resumed(im, im.epoch, 2);
    equal = said.status().with_context("the shared node did not take the size");
  }
  if (equal.is_ok()) im.size_untold = false;
  if (equal.is_ok()) equal = co_await make_equal(im, host_wins, dirty.regions, dirty.region_bytes, &repaired);
  if (!equal && im.own_failed && own_copy_failed(im, equal)) {   // the shared copy has it all
    im.own_failed = false;
    equal = co_await make_equal(im, false, dirty.regions, dirty.region_bytes, &repaired);
  }
  const bool decides = host_wins || equal.is_ok();   // the own copy, for all of it
  // What was written there before it lost its power no later sync covers, though none of the requests failed: nor may
  // one be asked for, which would make that copy count as level.
  if (equal.is_ok()) equal = co_await flush_both(im, stood);
  if (equal.is_ok() && !stood()) equal = Status(Code::kUnavailable, "the link or the shared copy's loss id changed");
  // A failed sync of the own copy is no word of the shared node's: what it cost is found out by the next try.
  const bool own_well = !im.own_failed && host_loss() == own_before;
  if (!equal && own_well) co_return co_await recover_alone(im, dirty, decides, equal);
  if (!equal) co_return equal;
  im.shared_in_doubt = false;
  Status noted = co_await async<Status>([&](Callback<Status> done) {
    journal_->note_copies(im.slot, own_loss(im), shared_loss(im), false, std::move(done));
  });
  if (!noted) co_return noted;
  if (Status s = set_flag(im, kFlagHostOnly, false); !s) co_return s;
  // No flush says so: reconcile() told that they differ, or a link that came back did.
  im.told_apart = 0;
  if (auto said = co_await say_resumed(im, im.epoch, 0); !said) co_return said.status();
  im.facts.alone = im.accepted = false;
  if (im.state == MirrorState::kMirrored || im.state == MirrorState::kFilling) journal_->set_level(im.slot, true);
  counts_.resynced_bytes += repaired;
  kLog.info("reconciled", {{"image", im.id}, {"copied_bytes", repaired}, {"from", host_wins ? "host" : "shared"}});
  co_return Status::ok();
}

}  // namespace tidemark::fs
