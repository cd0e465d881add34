#include "shared/image/group_state.h"

#include <algorithm>
#include <set>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/image/copy_state.h"

namespace tidemark::image {
namespace detail {
namespace {
const log::Logger kLog("image");
constexpr io::Duration kTickMax = std::chrono::milliseconds(250);
}

io::AlignedBuffer BouncePool::take(size_t size) {
  for (size_t i = 0; i < kSizes.size(); ++i) {
    if (size > kSizes[i]) continue;
    if (kept_[i].empty()) return io::AlignedBuffer(kSizes[i]);
    io::AlignedBuffer buffer = std::move(kept_[i].back());
    kept_[i].pop_back();
    kept_bytes_ -= kSizes[i];
    return buffer;
  }
  return io::AlignedBuffer(size);
}

void BouncePool::give_back(io::AlignedBuffer buffer) {
  for (size_t i = 0; i < kSizes.size(); ++i) {
    if (buffer.size() != kSizes[i] || kept_bytes_ + kSizes[i] > limits::kBounceBytesKeptMax) continue;
    kept_bytes_ += kSizes[i];
    kept_[i].push_back(std::move(buffer));
    return;
  }
}

Result<std::unique_ptr<GroupState>> GroupState::open(io::Env& env, StorageGroupOptions options) {
  std::unique_ptr<GroupState> group(new GroupState(env, std::move(options)));
  TM_ASSIGN_OR_RETURN(group->bricks_, open_bricks(env, group->options_));
  for (const Brick& brick : group->bricks_) {
    group->failed_syncs_ = std::max(group->failed_syncs_, brick.marker.failed_syncs);
  }
  group->loss_id_ = compute_loss_id(env.boot_id(), group->bricks_, group->failed_syncs_);
  // At least the deadline, at most a quarter of a second and an eighth of it longer.
  const io::Duration deadline = group->options_.io_deadline;
  group->tick_interval_ = std::min<io::Duration>(deadline / 8 + std::chrono::milliseconds(1), kTickMax);
  if (deadline != io::Duration::zero())
    group->ticks_allowed_ = static_cast<uint32_t>(deadline / group->tick_interval_ + 1);
  return group;
}

GroupState::~GroupState() {
  env_.cancel(tick_timer_);
  env_.cancel(damaged_timer_);
  TM_CHECK(copies_.empty(), "a StorageGroup was destroyed before its images");
}

uint32_t GroupState::op_begun() {
  ++ops_in_flight_;
  if (tick_timer_.value == 0 && ticks_allowed_ != 0) tick_timer_ = env_.after(tick_interval_, [this] { tick(); });
  return tick_;
}

void GroupState::tick() {
  ++tick_;
  tick_timer_ = {};
  std::vector<ImageId> overdue;
  bool was_stuck = std::exchange(stuck_, false);
  for (CopyState* copy : copies_) {
    if (!copy->look_for_overdue(tick_, ticks_allowed_)) continue;
    stuck_ = true;
    overdue.push_back(copy->metadata().id);
  }
  if (stuck_ != was_stuck) {
    kLog.warning(stuck_ ? "storage_hangs" : "storage_answers",
                 {{"group", options_.name}, {"deadline_ms", options_.io_deadline.count()}});
  }
  if (!stuck_ && std::exchange(record_owed_, false)) {   // of syncs that failed while nothing could be written
    Status recorded = record_failed_syncs(files(), bricks_, failed_syncs_);
    if (recorded) lost_ = false;
    else kLog.warning("failed_sync_not_recorded", {{"group", options_.name}, {"status", recorded}});
  }
  if (ops_in_flight_ != 0 || stuck_ || record_owed_) tick_timer_ = env_.after(tick_interval_, [this] { tick(); });
  for (const ImageId& id : overdue)
    if (on_overdue_) on_overdue_(id);
}

void GroupState::look_again() {
  stuck_ = std::any_of(copies_.begin(), copies_.end(),
                       [this](CopyState* copy) { return copy->look_for_overdue(tick_, ticks_allowed_); });
  if (!stuck_) kLog.warning("storage_answers", {{"group", options_.name}});
}

void GroupState::note_damaged(ImageId id, const Status& why) {
  damaged_.emplace(id, why);
  if (damaged_timer_.value != 0) return;
  damaged_timer_ = env_.after(io::Duration::zero(), [this] {
    damaged_timer_ = {};
    for (auto& [image, reason] : std::exchange(damaged_, {}))
      if (on_damaged_) on_damaged_(image, reason);
  });
}

Status GroupState::refuse_if_stuck() const {
  if (!stuck_) return Status::ok();
  return Status(Code::kIoError, "group \"" + options_.name + "\": an operation on a brick has not ended within " +
                                    std::to_string(options_.io_deadline.count()) + " ms");
}

std::string GroupState::brick_directory(const Uuid& id) const {
  for (const Brick& brick : bricks_) {
    if (brick.marker.brick == id) return brick.directory;
  }
  return {};
}

std::vector<StorageGroup::BrickState> GroupState::bricks() const {
  std::vector<StorageGroup::BrickState> out;
  for (const Brick& brick : bricks_) out.push_back({brick.directory, brick.marker.brick, brick.absent});
  return out;
}

Status GroupState::any_absent() const {
  for (const Brick& brick : bricks_)
    if (!brick.absent) return Status(Code::kIoError, brick.absent.message());
  return Status::ok();
}

Status GroupState::look_at_bricks() {
  TM_RETURN_IF_ERROR(refuse_if_stuck());
  if (options_.expected_group.is_nil()) options_.expected_group = group_id();
  std::vector<bool> there;
  for (const Brick& brick : bricks_) there.push_back(brick.absent.is_ok());
  detail::look_at_bricks(files(), options_, bricks_);
  for (size_t i = 0; i < bricks_.size(); ++i) {   // back: before anything is opened there
    const bool back = !there[i] && bricks_[i].absent.is_ok();
    if (back && run_.number != 0) join_run(files(), bricks_[i], options_.known_runs, save_runs_, run_);
  }
  for (const Brick& brick : bricks_) failed_syncs_ = std::max(failed_syncs_, brick.marker.failed_syncs);
  loss_id_ = compute_loss_id(env_.boot_id(), bricks_, failed_syncs_);
  if (lost_) lost_ = !record_failed_syncs(files(), bricks_, failed_syncs_).is_ok();   // one that is back takes it
  return Status::ok();
}

Status GroupState::replace_brick(const std::string& directory) {
  TM_RETURN_IF_ERROR(look_at_bricks());
  auto at = std::find_if(bricks_.begin(), bricks_.end(), [&](const Brick& b) { return b.directory == directory; });
  if (at == bricks_.end()) {
    return Status(Code::kNotFound, "group \"" + options_.name + "\" has no brick " + directory +
                                       "; name one of [storage] bricks as it is written there");
  }
  if (at->absent) return Status(Code::kInvalidArgument, "brick " + directory + " is in use and needs no replacement");
  const auto index = static_cast<size_t>(at - bricks_.begin());
  TM_RETURN_IF_ERROR(detail::replace_brick(env_, bricks_, index));
  options_.known_runs = runs();
  loss_id_ = compute_loss_id(env_.boot_id(), bricks_, failed_syncs_);
  return Status::ok();
}

std::vector<KnownRun> GroupState::runs() const {
  std::vector<KnownRun> out;
  for (const Brick& brick : bricks_) {
    KnownRun run{brick.marker.brick, brick.marker.run, {}};
    for (const KnownRun& known : options_.known_runs)
      if (known.brick == run.brick) run = known;
    out.push_back(run);
  }
  return out;
}

Status GroupState::note_failed_sync(ImageId image) {
  ++failed_syncs_;
  loss_id_ = compute_loss_id(env_.boot_id(), bricks_, failed_syncs_);
  Status status = stuck_ ? refuse_if_stuck() : record_failed_syncs(files(), bricks_, failed_syncs_);
  if (!status) lost_ = true;
  record_owed_ = stuck_;
  kLog.warning("failed_sync", {{"group", options_.name}, {"loss_id", loss_id_}, {"durable", status ? "yes" : "no"}});
  if (on_failed_sync_) on_failed_sync_(image);
  return status;
}

Layout GroupState::layout_for(ImageId id) const {
  size_t first = std::hash<Uuid>{}(id) % bricks_.size();
  std::vector<Uuid> stripes;
  for (uint32_t i = 0; i < options_.stripe_count; ++i) {
    stripes.push_back(bricks_[(first + i) % bricks_.size()].marker.brick);
  }
  auto layout = Layout::make(Generation(1), options_.stripe_unit, std::move(stripes));
  TM_CHECK(layout.is_ok(), "the options were checked when the group was opened");
  return *layout;
}

Result<GroupState::FoundMetadata> GroupState::find_metadata(ImageId id) {
  TM_RETURN_IF_ERROR(refuse_if_stuck());
  size_t first = std::hash<Uuid>{}(id) % bricks_.size();
  for (size_t i = 0; i < bricks_.size(); ++i) {
    if (!bricks_[(first + i) % bricks_.size()].absent) continue;
    const std::string& directory = bricks_[(first + i) % bricks_.size()].directory;
    auto bytes = files().read_file(metadata_path(directory, id));
    if (bytes) return FoundMetadata{directory, std::move(bytes).value()};
    if (bytes.status().code() != Code::kNotFound) return bytes.status();
  }
  // It may lie on a brick that is absent: only where all are there it is known not to exist.
  TM_RETURN_IF_ERROR(any_absent());
  return Status(Code::kNotFound, "group \"" + options_.name + "\" has no image " + id.to_string());
}

Status GroupState::save_metadata(const ImageMetadata& metadata) {
  TM_RETURN_IF_ERROR(refuse_if_stuck());
  std::string brick = brick_directory(metadata.layout.bricks().front());
  return files().write_file_atomically(metadata_path(brick, metadata.id), encode_metadata(metadata));
}

Status GroupState::make_objects(const ImageMetadata& metadata) {
  const Layout& layout = metadata.layout;
  for (uint32_t i = 0; i < layout.stripe_count(); ++i) {
    std::string brick = brick_directory(layout.bricks()[i]);
    std::string directory = image_directory(brick, metadata.id);
    if (!files().stat(directory)) {
      TM_RETURN_IF_ERROR(files().make_directories(directory));
      TM_RETURN_IF_ERROR(files().sync_directory(brick));
      TM_RETURN_IF_ERROR(files().sync_directory(objects_directory(brick)));
    }
    TM_ASSIGN_OR_RETURN(auto file, files().open(object_path(brick, metadata.id, layout.generation(), i),
                                                {.create = true, .exclusive = true}));
    uint64_t bytes = layout.object_bytes(i, metadata.size);
    TM_RETURN_IF_ERROR(
        file->truncate((bytes + limits::kOrderGranule - 1) / limits::kOrderGranule * limits::kOrderGranule));
    file.reset();
    // Its size is durable before the side file: a shorter object is one that was cut off, never one not yet made.
    TM_RETURN_IF_ERROR(files().sync_directory(object_path(brick, metadata.id, layout.generation(), i)));
    TM_RETURN_IF_ERROR(files().sync_directory(directory));
  }
  return {};
}

Status GroupState::remove_objects(ImageId id) {
  for (const Brick& brick : bricks_) {
    std::string directory = image_directory(brick.directory, id);
    auto names = files().list(directory);
    if (!names) {
      if (names.status().code() == Code::kNotFound) continue;
      return names.status();
    }
    for (const std::string& name : *names) {
      if (parse_object_name(name).id == id) TM_RETURN_IF_ERROR(files().unlink(directory + "/" + name));
    }
  }
  return {};
}

Result<std::unique_ptr<ImageCopy>> GroupState::create(ImageId id, uint64_t size, Generation size_generation) {
  if (size > limits::kImageBytesMax) {
    return Status(Code::kInvalidArgument, "image size " + std::to_string(size) + " is over the limit of 64 TiB");
  }
  auto found = find_metadata(id);
  if (found)
    return Status(Code::kAlreadyExists, "group \"" + options_.name + "\" already holds image " + id.to_string());
  if (found.status().code() != Code::kNotFound) return found.status();
  TM_RETURN_IF_ERROR(remove_objects(id));
  ImageMetadata metadata{id, layout_for(id), size, size_generation};
  Status made = make_objects(metadata);
  if (made) made = save_metadata(metadata);
  if (!made) {
    // What stays behind has no side file, so it is no image; the next create sweeps it.
    if (Status swept = remove_objects(id); !swept)
      kLog.warning("create_left_objects", {{"image", id}, {"status", swept}});
    return made;
  }
  return open_with(std::move(metadata));
}

Result<std::unique_ptr<ImageCopy>> GroupState::open_with(ImageMetadata metadata) {
  ImageId id = metadata.id;
  auto state = std::make_unique<CopyState>(*this, std::move(metadata));
  TM_RETURN_IF_ERROR(state->open_objects(options_.direct));
  open_[id] = state.get();
  copies_.insert(state.get());
  return std::unique_ptr<ImageCopy>(new ImageCopy(std::move(state)));
}

Result<std::unique_ptr<ImageCopy>> GroupState::open_image(ImageId id) {
  if (open_.contains(id)) return Status(Code::kBusy, "image " + id.to_string() + " is open already");
  TM_ASSIGN_OR_RETURN(ImageMetadata metadata, read_metadata(id));
  return open_with(std::move(metadata));
}

Result<ImageMetadata> GroupState::read_metadata(ImageId id) {
  TM_ASSIGN_OR_RETURN(FoundMetadata found, find_metadata(id));
  auto metadata = decode_metadata(found.bytes);
  if (!metadata) return metadata.status().with_context(metadata_path(found.brick, id));
  if (metadata->id != id) {
    return Status(Code::kCorruption, metadata_path(found.brick, id) + " is of image " + metadata->id.to_string());
  }
  return metadata;
}

Status GroupState::look_at(ImageId id, ImageMetadata* found) {
  TM_ASSIGN_OR_RETURN(ImageMetadata metadata, read_metadata(id));
  if (found != nullptr) *found = metadata;
  for (uint32_t i = 0; i < metadata.layout.stripe_count(); ++i) {
    TM_ASSIGN_OR_RETURN(std::string brick, brick_of(metadata, i));
    const std::string path = object_path(brick, id, metadata.layout.generation(), i);
    TM_RETURN_IF_ERROR(check_object(metadata, i, path, files().stat(path)));
  }
  return Status::ok();
}

// The directory of the brick of a stripe. One that is absent may well be there, with blocks of an earlier time.
Result<std::string> GroupState::brick_of(const ImageMetadata& metadata, uint32_t stripe) const {
  const Uuid& id = metadata.layout.bricks()[stripe];
  for (const Brick& brick : bricks_) {
    if (brick.marker.brick != id) continue;
    if (!brick.absent) return Status(Code::kIoError, brick.absent.message());
    return brick.directory;
  }
  return Status(Code::kCorruption, "image " + metadata.id.to_string() + " lies on brick " + id.to_string() +
                                       ", which this group does not have");
}

void GroupState::forget(ImageId id, CopyState* copy) {
  copies_.erase(copy);
  auto it = open_.find(id);
  if (it != open_.end() && it->second == copy) open_.erase(it);
}

Status GroupState::remove(ImageId id) {
  TM_ASSIGN_OR_RETURN(FoundMetadata found, find_metadata(id));
  TM_RETURN_IF_ERROR(files().unlink(metadata_path(found.brick, id)));
  if (auto it = open_.find(id); it != open_.end()) {
    it->second->mark_removed();
    open_.erase(it);  // the id is free again; the copy goes on without a name
  }
  TM_RETURN_IF_ERROR(files().sync_directory(image_directory(found.brick, id)));
  return remove_objects(id);
}

Status check_object(const ImageMetadata& metadata, uint32_t stripe, const std::string& path,
                    const Result<io::FileStat>& found) {
  const uint64_t bytes = metadata.layout.object_bytes(stripe, metadata.size);
  const uint64_t wanted = (bytes + limits::kOrderGranule - 1) / limits::kOrderGranule * limits::kOrderGranule;
  if (found && found->size >= wanted) return Status::ok();
  const std::string object = "image " + metadata.id.to_string() + ": its object " + path;
  if (!found && found.status().code() == Code::kNotFound)
    return Status(Code::kCorruption, object + " is missing");
  if (!found) return found.status();
  return Status(Code::kCorruption, object + " has " + std::to_string(found->size) + " bytes instead of " +
                                       std::to_string(wanted) + ": it was cut short");
}

bool GroupState::contains(ImageId id) {
  return std::any_of(bricks_.begin(), bricks_.end(),
                     [&](const Brick& brick) { return files().stat(metadata_path(brick.directory, id)).is_ok(); });
}

Status GroupState::for_each_name(UniqueFunction<Status(const Brick&, const std::string&, const std::string&)> fn) {
  for (const Brick& brick : bricks_) {
    if (!brick.absent) continue;
    auto folders = files().list(objects_directory(brick.directory));
    if (!folders) {
      if (folders.status().code() == Code::kNotFound) continue;
      return folders.status();
    }
    for (const std::string& folder : *folders) {
      std::string directory = objects_directory(brick.directory) + "/" + folder;
      TM_ASSIGN_OR_RETURN(auto names, files().list(directory));
      for (const std::string& name : names) TM_RETURN_IF_ERROR(fn(brick, directory, name));
    }
  }
  return {};
}

Result<StorageGroup::Catalogue> GroupState::list() {
  StorageGroup::Catalogue out;
  std::map<ImageId, ImageMetadata> images;
  Status walked = for_each_name([&](const Brick&, const std::string& directory, const std::string& name) -> Status {
    ObjectName parsed = parse_object_name(name);
    if (parsed.kind != ObjectName::Kind::kMetadata) return {};
    std::string path = directory + "/" + name;
    auto bytes = files().read_file(path);
    auto metadata = bytes ? decode_metadata(*bytes) : Result<ImageMetadata>(bytes.status());
    if (!metadata) {
      out.damaged.push_back(metadata.status().with_context(path));
    } else if (metadata->id != *parsed.id) {
      out.damaged.emplace_back(Code::kCorruption, path + " is of image " + metadata->id.to_string());
    } else if (!images.emplace(*parsed.id, *metadata).second) {
      out.damaged.emplace_back(Code::kCorruption, path + ": another brick has a side file of the same image");
    }
    return {};
  });
  TM_RETURN_IF_ERROR(walked);
  for (auto& [id, metadata] : images) out.images.push_back(std::move(metadata));
  return out;
}

Result<uint64_t> GroupState::sweep_orphans() {
  std::set<ImageId> named;
  std::vector<std::pair<ImageId, std::string>> candidates;
  Status walked = for_each_name([&](const Brick&, const std::string& directory, const std::string& name) -> Status {
    ObjectName parsed = parse_object_name(name);
    if (!parsed.id) return {};
    // A damaged side file still names its objects.
    if (parsed.kind == ObjectName::Kind::kMetadata)
      named.insert(*parsed.id);
    else
      candidates.emplace_back(*parsed.id, directory + "/" + name);
    return {};
  });
  TM_RETURN_IF_ERROR(walked);
  uint64_t removed = 0;
  for (const auto& [id, path] : candidates) {
    if (named.contains(id)) continue;
    TM_RETURN_IF_ERROR(files().unlink(path));
    kLog.info("orphan_removed", {{"path", path}});
    ++removed;
  }
  return removed;
}

Result<io::FileSystem::Space> GroupState::space() {
  TM_RETURN_IF_ERROR(refuse_if_stuck());
  io::FileSystem::Space total;
  std::set<uint64_t> counted;
  for (const Brick& brick : bricks_) {
    if (!brick.absent) continue;
    if (!counted.insert(brick.mount_identity).second) continue;
    TM_ASSIGN_OR_RETURN(auto space, files().space(brick.directory));
    total.total += space.total;
    total.available += space.available;
  }
  return total;
}

}  // namespace detail

StorageGroup::StorageGroup(std::unique_ptr<detail::GroupState> state) : state_(std::move(state)) {}
StorageGroup::~StorageGroup() = default;

Result<std::unique_ptr<StorageGroup>> StorageGroup::open(io::Env& env, StorageGroupOptions options) {
  TM_ASSIGN_OR_RETURN(auto state, detail::GroupState::open(env, std::move(options)));
  return std::unique_ptr<StorageGroup>(new StorageGroup(std::move(state)));
}

Result<std::unique_ptr<ImageCopy>> StorageGroup::create(ImageId id, uint64_t size, Generation size_generation) {
  return state_->create(id, size, size_generation);
}
Result<std::unique_ptr<ImageCopy>> StorageGroup::open_image(ImageId id) { return state_->open_image(id); }
Status StorageGroup::remove(ImageId id) { return state_->remove(id); }
bool StorageGroup::contains(ImageId id) { return state_->contains(id); }
Status StorageGroup::look_at(ImageId id, ImageMetadata* found) { return state_->look_at(id, found); }
Result<StorageGroup::Catalogue> StorageGroup::list() { return state_->list(); }
Result<uint64_t> StorageGroup::sweep_orphans() { return state_->sweep_orphans(); }
Result<io::FileSystem::Space> StorageGroup::space() { return state_->space(); }
void StorageGroup::on_overdue(UniqueFunction<void(ImageId)> fn) { state_->on_overdue(std::move(fn)); }
void StorageGroup::on_damaged(UniqueFunction<void(ImageId, Status)> fn) { state_->on_damaged(std::move(fn)); }
void StorageGroup::on_failed_sync(UniqueFunction<void(ImageId)> fn) { state_->on_failed_sync(std::move(fn)); }
std::vector<StorageGroup::BrickState> StorageGroup::bricks() const { return state_->bricks(); }
Status StorageGroup::look_at_bricks() { return state_->look_at_bricks(); }
Status StorageGroup::replace_brick(const std::string& directory) { return state_->replace_brick(directory); }
Status StorageGroup::begin_run(UniqueFunction<Status(const std::vector<KnownRun>&)> save) {
  return state_->begin_run(std::move(save));
}
std::vector<KnownRun> StorageGroup::runs() const { return state_->runs(); }
bool StorageGroup::stuck() const { return state_->stuck(); }
const std::string& StorageGroup::name() const { return state_->options().name; }
Uuid StorageGroup::group_id() const { return state_->group_id(); }
LossId StorageGroup::loss_id() const { return state_->loss_id(); }
Status StorageGroup::note_failed_sync(ImageId image) { return state_->note_failed_sync(image); }
bool StorageGroup::lost() const { return state_->lost(); }

}  // namespace tidemark::image
