// The dirty-region log: the durable set of regions whose copies may differ after a crash.
//
// A region's life: clean -> marking (commit in flight) -> dirty (durable) -> clean. It is dirty before
// any copy changes; it goes back, lazily, when the image is level, no write is in flight in it, its
// last write is durable on both copies and its record committed, and it was idle for a while. While the image is not
// level a resync says region by region what it made equal (note_equal); that goes as it comes, so that a crash in the
// middle of a long resync leaves only the rest to do.
// is_dirty() is the hot path: a look into a bitmap. Loop thread only.
//
// When a commit fails, whoever waits for a mark waits on; the owner is told. Once it has durably noted that this log is
// not to be relied on (every region counts as dirty after a crash), it says go_blind(): marks are then given from memory,
// until the store has everything again.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "journal/kept_digests.h"
#include "journal/records.h"
#include "shared/base/function.h"
#include "shared/io/env.h"
#include "shared/kv/store.h"

namespace tidemark::journal {

class DirtyLog {
 public:
  DirtyLog(io::Env& env, std::unique_ptr<kv::Store> store, uint64_t region_bytes_min);

  // What stands in the store; kept until attached images take it over. Start-up only.
  Status load(std::vector<DirtyImage>& out);

  // An image as this log knows it, before it is attached: its loss ids, without a region.
  DirtyImage known(const ImageId& image, uint64_t size) const;

  // Slots are attached in ascending order of their indices.
  void attach(uint32_t slot, const ImageId& image, uint64_t size);
  void detach(uint32_t slot);                        // the image is gone: so are its marks
  void grow(uint32_t slot, uint64_t size);           // region size follows
  bool is_dirty(uint32_t slot, Extent extent) const;
  void mark(uint32_t slot, Extent extent, Callback<Status> done);
  void note(uint32_t slot, LossId host, LossId shared, bool alone, Epoch epoch, Callback<Status> done);

  void write_begins(uint32_t slot, Extent extent);
  // `serial`: place of its record among all, for the comparison with what is committed.
  void write_ends(uint32_t slot, Extent extent, uint64_t counter, uint64_t serial, uint32_t now_seconds);
  void set_level(uint32_t slot, bool level);
  void note_durable(uint32_t slot, uint64_t counter);
  void note_equal(uint32_t slot, const std::vector<RegionIndex>& regions, uint64_t region_bytes, uint64_t counter);
  // Cleans what has been idle; `committed`: records up to this serial are durable.
  void clean(uint64_t committed, uint32_t now_seconds, uint32_t idle_seconds);
  // The same for one image at once, however lately its regions were written.
  void clean_slot(uint32_t slot, uint64_t committed);
  // At a clean stop: every region of level images, committed before `done`.
  void clean_all(Callback<Status> done);

  // ---- what a scrub keeps (kept_digests.h): of blocks all of whose regions are clean
  void begin_run(Incarnation incarnation);
  void begin_tenure(uint32_t slot, Epoch epoch);
  DigestKey digest_key(uint32_t slot, Epoch epoch);
  bool keep_digests(uint32_t slot, Extent block, const std::vector<Digest128>& digests);
  std::optional<std::vector<Digest128>> kept_digests(uint32_t slot, Extent block) const;
  void forget_digests() { digests_.forget_all(); }

  std::vector<RegionIndex> dirty_regions(uint32_t slot) const;
  uint64_t dirty_count(uint32_t slot) const;
  uint64_t region_bytes(uint32_t slot) const;
  // Told of each commit that fails.
  void on_failure(std::function<void(const Status&)> fn) { on_failure_ = std::move(fn); }
  void go_blind();
  bool blind() const { return blind_; }
  // All that was marked is durable and nothing is on its way: marks are durable again from here on.
  bool try_end_blind();
  // After an I/O error the old store is lost: closed, while no commit is under way, and from then on there is none, until
  // this one takes all of it.
  void close_store();
  void use_store(std::unique_ptr<kv::Store> store);
  bool committing() const { return in_flight_; }
  bool failed() const { return failed_; }

 private:
  struct Region {
    uint64_t counter = 0, serial = 0;
    uint32_t seconds = 0, in_flight = 0;
  };
  static constexpr size_t kPage = 64;
  struct Image {
    ImageId image;
    DrlImageRow row;
    bool attached = false, level = false, stored = false;
    bool widened = false;                    // the store has marks of smaller regions until the next commit
    uint32_t shift = 0;                      // log2 of region_bytes
    uint64_t durable_counter = 0;
    std::vector<uint64_t> equal;             // while not level: these are nevertheless, with all writes up to
    uint64_t equal_counter = 0;              // this one durable
    std::vector<uint64_t> dirty;             // durable
    std::vector<uint64_t> wanted;            // what the store shall hold after the commits under way
    std::vector<std::unique_ptr<std::array<Region, kPage>>> regions;
  };
  struct Waiter {
    uint32_t slot;
    Callback<Status> done;
    bool must_commit = false;                // that writes are acknowledged by one copy alone stands nowhere else
  };

  Image& at(uint32_t slot) { return *images_[slot]; }
  const Image& at(uint32_t slot) const { return *images_[slot]; }
  Region& region(Image& image, uint64_t index);
  template <typename Fn>
  void clear_regions(uint32_t slot, uint64_t committed, Fn chosen);
  bool all_clean(uint32_t slot, Extent extent) const;
  void schedule();
  void flush();
  void retry_later(const Status& status);
  void committed(Status status, std::vector<uint32_t> slots, std::vector<std::vector<uint64_t>> states);
  void answer_blind(std::vector<Waiter>& waiters);
  static uint64_t last_region(const Image& image, Extent extent) { return (extent.end() - 1) >> image.shift; }

  io::Env& env_;
  std::unique_ptr<kv::Store> store_;
  const uint64_t region_bytes_min_;
  std::vector<std::unique_ptr<Image>> images_;
  std::map<ImageId, std::unique_ptr<Image>> loaded_;     // before their image is attached

  // What the next commit writes.
  std::set<uint32_t> changed_rows_;
  std::set<std::pair<uint32_t, uint64_t>> changed_pages_;
  std::set<uint32_t> rewritten_;                         // all pages: the region size changed, or the image is gone
  std::vector<Waiter> waiters_, committing_;             // committing_: of the commit under way
  KeptDigests digests_;
  bool scheduled_ = false, in_flight_ = false, failed_ = false;
  bool full_ = false;                                    // the last commit found no room: tried again
  bool blind_ = false;
  std::function<void(const Status&)> on_failure_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);   // outlived by callbacks of posted work
};

}  // namespace tidemark::journal
