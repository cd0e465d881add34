// What StorageGroup holds: bricks, loss id, the register of open images, and bounce buffers.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "shared/image/brick_set.h"
#include "shared/image/store.h"

namespace tidemark::image::detail {

// Aligned memory for what O_DIRECT cannot take. Kept and given out again up to a bound, so that the
// steady state does not allocate.
class BouncePool {
 public:
  io::AlignedBuffer take(size_t size);
  void give_back(io::AlignedBuffer buffer);

 private:
  static constexpr std::array<size_t, 4> kSizes{8u << 10, 64u << 10, 256u << 10, (1u << 20) + (8u << 10)};
  std::array<std::vector<io::AlignedBuffer>, kSizes.size()> kept_;
  size_t kept_bytes_ = 0;
};

// Whether a data object is whole: there, and not shorter than the side file says. By the order of durability
// (FORMAT.md) none ever is; what was cut off would read as zeros. kCorruption names path and sizes.
Status check_object(const ImageMetadata& metadata, uint32_t stripe, const std::string& path,
                    const Result<io::FileStat>& found);

class GroupState {
 public:
  static Result<std::unique_ptr<GroupState>> open(io::Env& env, StorageGroupOptions options);
  ~GroupState();

  Result<std::unique_ptr<ImageCopy>> create(ImageId id, uint64_t size, Generation size_generation);
  Result<std::unique_ptr<ImageCopy>> open_image(ImageId id);
  Status remove(ImageId id);
  bool contains(ImageId id);
  Status look_at(ImageId id, ImageMetadata* found);
  Result<StorageGroup::Catalogue> list();
  Result<uint64_t> sweep_orphans();
  Result<io::FileSystem::Space> space();

  void on_overdue(UniqueFunction<void(ImageId)> fn) { on_overdue_ = std::move(fn); }
  void on_damaged(UniqueFunction<void(ImageId, Status)> fn) { on_damaged_ = std::move(fn); }
  void on_failed_sync(UniqueFunction<void(ImageId)> fn) { on_failed_sync_ = std::move(fn); }
  bool stuck() const { return stuck_; }
  Status refuse_if_stuck() const;

  Status note_failed_sync(ImageId image);
  LossId loss_id() const { return loss_id_; }
  bool lost() const { return lost_; }
  Uuid group_id() const { return bricks_.front().marker.group; }
  const StorageGroupOptions& options() const { return options_; }
  std::vector<StorageGroup::BrickState> bricks() const;
  Status look_at_bricks();
  Status replace_brick(const std::string& directory);
  Status begin_run(SaveRuns save) {
    save_runs_ = std::move(save);
    return detail::begin_run(env_, bricks_, options_.known_runs, save_runs_, &run_);
  }
  std::vector<KnownRun> runs() const;

  // For CopyState.
  io::FileSystem& files() { return env_.files(); }
  io::BootTime now() { return env_.now(); }
  BouncePool& bounce() { return bounce_; }
  // The directory of the brick; empty if the group has no such brick.
  std::string brick_directory(const Uuid& brick) const;
  Result<std::string> brick_of(const ImageMetadata& metadata, uint32_t stripe) const;
  Status save_metadata(const ImageMetadata& metadata);
  Result<ImageMetadata> read_metadata(ImageId id);
  void forget(ImageId id, CopyState* copy);  // that copy is gone
  // Operations are timed in ticks of a timer that runs while there are any: what a stopped process had begun is not
  // overdue when it goes on, and no operation costs a look at the clock.
  uint32_t op_begun();                       // the tick
  bool idle() const { return ops_in_flight_ == 0; }
  void op_ended() {
    --ops_in_flight_;
    if (stuck_) look_again();
  }
  void look_again();                         // whether anything is overdue still
  void note_damaged(ImageId id, const Status& why);

 private:
  struct FoundMetadata {
    std::string brick;  // directory that holds the side file
    Bytes bytes;
  };

  GroupState(io::Env& env, StorageGroupOptions options) : env_(env), options_(std::move(options)) {}
  Status any_absent() const;
  void tick();
  Layout layout_for(ImageId id) const;
  Result<FoundMetadata> find_metadata(ImageId id);
  Status make_objects(const ImageMetadata& metadata);
  Status remove_objects(ImageId id);
  Result<std::unique_ptr<ImageCopy>> open_with(ImageMetadata metadata);
  // Calls fn(brick directory, image directory, name) for each name in the image directories.
  Status for_each_name(UniqueFunction<Status(const Brick&, const std::string&, const std::string&)> fn);

  io::Env& env_;
  StorageGroupOptions options_;
  std::vector<Brick> bricks_;
  SaveRuns save_runs_;                       // empty: no run has begun
  BrickRun run_{};                           // 0: it is not counted
  uint64_t failed_syncs_ = 0;
  LossId loss_id_;
  bool lost_ = false;
  bool record_owed_ = false;                 // of failed syncs
  std::map<ImageId, CopyState*> open_;  // those that still have a name
  std::set<CopyState*> copies_;              // all, those without a name too
  size_t ops_in_flight_ = 0;
  uint32_t tick_ = 0, ticks_allowed_ = 0;
  io::Duration tick_interval_{0};
  io::TimerId tick_timer_;
  bool stuck_ = false;
  UniqueFunction<void(ImageId)> on_overdue_;
  UniqueFunction<void(ImageId, Status)> on_damaged_;
  UniqueFunction<void(ImageId)> on_failed_sync_;
  std::map<ImageId, Status> damaged_;        // to be told
  io::TimerId damaged_timer_;
  BouncePool bounce_;
};

}  // namespace tidemark::image::detail
