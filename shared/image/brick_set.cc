// Bringing a group into being is two-phased: all markers `initializing`, then all `ready`. So an
// interrupted first start is finished by the next one, while a brick that lacks its marker once any
// other is ready is known to be replaced or not mounted.
#include "shared/image/brick_set.h"

#include <algorithm>

#include "shared/base/digest.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::image::detail {
namespace {

const log::Logger kLog("image");
// The daemon's journal keeps room for a mark of its own beside the images (journal/outdated.h).
constexpr std::string_view kJournalMarkName = "journal-outdated";

enum class Found { kNoDirectory, kEmpty, kOtherFiles, kMarker };

struct Probe {
  Found found = Found::kEmpty;
  BrickMarker marker;
};

std::string marker_path(const std::string& directory) { return directory + "/" + std::string(kMarkerName); }

Result<Probe> probe(io::FileSystem& files, const std::string& directory) {
  auto stat = files.stat(directory);
  if (!stat) {
    if (stat.status().code() == Code::kNotFound) return Probe{Found::kNoDirectory, {}};
    return stat.status().with_context("brick " + directory);
  }
  if (!stat->is_directory) return Status(Code::kInvalidArgument, "brick " + directory + " is not a directory");
  auto bytes = files.read_file(marker_path(directory));
  if (bytes) {
    auto marker = decode_marker(*bytes);
    if (!marker) {
      const bool newer = marker.status().code() == Code::kUnsupported;   // which says what to do
      return marker.status().with_context("brick " + directory + ": its marker " + marker_path(directory) +
                                          " cannot be used" +
                                          (newer ? "" : " (restore it, or replace the brick and resync)"));
    }
    return Probe{Found::kMarker, *marker};
  }
  if (bytes.status().code() != Code::kNotFound) return bytes.status().with_context("brick " + directory);
  TM_ASSIGN_OR_RETURN(auto names, files.list(directory));
  for (const std::string& name : names) {
    bool ours = name.starts_with(kMarkerName) || name.starts_with(kJournalMarkName);
    if (name != "lost+found" && !ours) return Probe{Found::kOtherFiles, {}};
  }
  return Probe{Found::kEmpty, {}};
}

Status refuse(const std::string& directory, const std::string& what) {
  return Status(Code::kInvalidArgument, "brick " + directory + " " + what);
}

// On a first start: a directory that may become a brick.
Status check_takeable(const std::string& directory, const Probe& probe, const StorageGroupOptions& options) {
  if (probe.found == Found::kOtherFiles) {
    return refuse(directory, "holds other files; give an empty directory (or mount the device that belongs there)");
  }
  if (probe.found == Found::kMarker && probe.marker.name != options.name) {
    return refuse(directory, "belongs to group \"" + probe.marker.name + "\", not to \"" + options.name +
                                 "\"; correct the configuration");
  }
  return {};
}

Status initialize(io::Env& env, const StorageGroupOptions& options) {
  io::FileSystem& files = env.files();
  BrickMarker marker;
  marker.group = env.random_uuid();
  marker.name = options.name;
  marker.count = static_cast<uint32_t>(options.bricks.size());
  for (uint32_t i = 0; i < marker.count; ++i) {
    const std::string& directory = options.bricks[i];
    TM_RETURN_IF_ERROR(files.make_directories(directory).with_context("brick " + directory));
    marker.index = i;
    marker.brick = env.random_uuid();
    TM_RETURN_IF_ERROR(files.write_file_atomically(marker_path(directory), encode_marker(marker)));
  }
  kLog.info("group_initialized", {{"group", marker.name}, {"id", marker.group}, {"bricks", marker.count}});
  return {};
}

// A brick of a group that exists.
Status check_member(const std::string& directory, const Probe& probe, const Uuid& group,
                    const StorageGroupOptions& options) {
  const std::string of = "of group \"" + options.name + "\" ";
  switch (probe.found) {
    case Found::kNoDirectory:
      return refuse(directory, of + "does not exist; mount its device, or correct the configuration");
    case Found::kEmpty:
      return refuse(directory, of + "is empty: it was replaced or is not mounted; mount the right device there");
    case Found::kOtherFiles:
      return refuse(directory, of + "has no marker: it was replaced or is not mounted; mount the right device there");
    case Found::kMarker: break;
  }
  if (probe.marker.group != group) {
    return refuse(directory, "belongs to another group (\"" + probe.marker.name + "\", " +
                                 probe.marker.group.to_string() + ", expected " + group.to_string() +
                                 "); mount the right device there");
  }
  if (probe.marker.name != options.name) {
    return refuse(directory, "belongs to group \"" + probe.marker.name + "\", the configuration says \"" +
                                 options.name + "\"; correct the configuration");
  }
  if (probe.marker.count != options.bricks.size()) {
    return refuse(directory, of + "is one of " + std::to_string(probe.marker.count) +
                                 " bricks, the configuration lists " + std::to_string(options.bricks.size()) +
                                 "; list all of them");
  }
  return {};
}

Result<std::vector<Probe>> probe_all(io::FileSystem& files, const StorageGroupOptions& options) {
  std::vector<Probe> probes;
  for (const std::string& directory : options.bricks) {
    TM_ASSIGN_OR_RETURN(Probe probe_result, probe(files, directory));
    probes.push_back(std::move(probe_result));
  }
  return probes;
}

Status check_options(const StorageGroupOptions& options) {
  if (options.name.empty() || options.name.size() > limits::kNameBytesMax) {
    return Status(Code::kInvalidArgument, "a storage group needs a name of 1 to 255 bytes");
  }
  size_t count = options.bricks.size();
  if (count == 0 || count > kStripesMax) {
    return Status(Code::kInvalidArgument, "group \"" + options.name + "\": list 1 to 256 brick directories");
  }
  if (options.stripe_count == 0 || options.stripe_count > count) {
    return Status(Code::kInvalidArgument, "group \"" + options.name + "\": stripe count " +
                                              std::to_string(options.stripe_count) + ": give 1 to " +
                                              std::to_string(count) + ", the number of bricks");
  }
  auto layout = Layout::make(Generation(1), options.stripe_unit, {Uuid::nil()});
  return layout ? Status::ok() : layout.status().with_context("group \"" + options.name + "\"");
}

}  // namespace

namespace {

enum class Age { kFits, kBrickIsOlder, kStateIsOlder };

// Whether a brick's marker is of the time of the daemon's state.
Age age_of(const BrickMarker& marker, const StorageGroupOptions& options) {
  for (const KnownRun& known : options.known_runs) {
    if (known.brick != marker.brick) continue;
    const bool begun = known.opening.number != 0 && marker.run == known.opening;
    if (marker.run == known.last || begun) return Age::kFits;
    return marker.run.number > known.last.number ? Age::kStateIsOlder : Age::kBrickIsOlder;
  }
  return Age::kFits;
}

Status refuse_age(const std::string& directory, Age age, const StorageGroupOptions& options) {
  if (age == Age::kFits) return Status::ok();
  if (age == Age::kStateIsOlder)
    return refuse(directory, "is newer than the state of its node, which was put back from an earlier time; " +
                                 options.older_state_remedy);
  return refuse(directory, "is of an earlier time: it lacks what was written since; " + options.older_brick_remedy);
}

// What is wrong with the brick `index` in this directory, if anything. Fills in what is found there.
Status look_at(io::FileSystem& files, const StorageGroupOptions& options, const std::string& directory, Brick* found) {
  TM_ASSIGN_OR_RETURN(Probe now, probe(files, directory));
  TM_RETURN_IF_ERROR(check_member(directory, now, options.expected_group, options));
  TM_ASSIGN_OR_RETURN(found->mount_identity, files.mount_identity(directory));
  found->directory = directory;
  found->marker = now.marker;
  return {};
}

// A group whose bricks are on record: those that are not what they should be are absent.
Result<std::vector<Brick>> open_known(io::FileSystem& files, const StorageGroupOptions& options) {
  if (options.known_bricks.size() != options.bricks.size()) {
    return Status(Code::kInvalidArgument, "group \"" + options.name + "\" has " +
                                              std::to_string(options.known_bricks.size()) +
                                              " bricks, the configuration lists " +
                                              std::to_string(options.bricks.size()) + "; list all of them");
  }
  std::vector<Brick> bricks(options.bricks.size());
  std::vector<std::pair<std::string, Status>> misfits;
  for (const std::string& directory : options.bricks) {
    Brick found;
    if (Status s = look_at(files, options, directory, &found); !s) {
      // A brick of another group was mounted here, or the configuration is wrong: nothing to go on with.
      if (auto now = probe(files, directory); now && now->found == Found::kMarker) return s;
      if (s.code() == Code::kUnsupported) return s;   // a newer version's: the brick is good, this program is too old
      misfits.emplace_back(directory, s);
      continue;
    }
    Brick& brick = bricks[found.marker.index];
    if (!brick.directory.empty())
      return refuse(directory, "is the same as " + brick.directory + "; list each brick once");
    const Age age = age_of(found.marker, options);
    if (age == Age::kStateIsOlder) return refuse_age(directory, age, options);
    brick = std::move(found);
    brick.absent = refuse_age(directory, age, options);
    if (!brick.absent) kLog.warning("brick_absent", {{"brick", directory}, {"reason", brick.absent}});
  }
  size_t next = 0;
  for (uint32_t i = 0; i < bricks.size(); ++i) {
    if (!bricks[i].directory.empty()) continue;
    BrickMarker marker;
    marker.group = options.expected_group;
    marker.name = options.name;
    marker.count = static_cast<uint32_t>(bricks.size());
    marker.index = i;
    marker.brick = options.known_bricks[i];
    marker.state = BrickMarker::State::kReady;
    if (options.known_runs.empty()) marker.version = 1;
    for (const KnownRun& known : options.known_runs)
      if (known.brick == marker.brick) marker.run = known.last;
    auto& [directory, status] = misfits[next++];
    kLog.warning("brick_absent", {{"brick", directory}, {"reason", status}});
    bricks[i] = {directory, marker, 0, status};
  }
  return bricks;
}

}  // namespace

void look_at_bricks(io::FileSystem& files, const StorageGroupOptions& options, std::vector<Brick>& bricks) {
  for (Brick& brick : bricks) {
    Brick found;
    Status now = look_at(files, options, brick.directory, &found);
    if (now.is_ok() && found.marker.brick != brick.marker.brick)
      now = refuse(brick.directory, "is another brick of group \"" + options.name + "\" than before");
    if (now.is_ok()) now = refuse_age(brick.directory, age_of(found.marker, options), options);
    if (now.is_ok() != brick.absent.is_ok())
      kLog.warning(now ? "brick_back" : "brick_absent", {{"brick", brick.directory}, {"reason", now}});
    if (now) {
      // Another one than at the start may be there now: what is written later is its own marker again.
      found.marker.failed_syncs = std::max(found.marker.failed_syncs, brick.marker.failed_syncs);
      brick.marker = found.marker;
      brick.mount_identity = found.mount_identity;
    }
    brick.absent = std::move(now);
  }
}

Status replace_brick(io::Env& env, std::vector<Brick>& bricks, size_t index) {
  Brick& brick = bricks[index];
  io::FileSystem& files = env.files();
  TM_ASSIGN_OR_RETURN(Probe now, probe(files, brick.directory));
  if (now.found == Found::kNoDirectory) return refuse(brick.directory, "does not exist; mount the new device there");
  if (now.found == Found::kOtherFiles) return refuse(brick.directory, "holds other files; give an empty directory");
  if (now.found == Found::kMarker) {
    return refuse(brick.directory, "is a brick already, of group \"" + now.marker.name +
                                       "\"; give an empty directory, or remove what is in it");
  }
  BrickMarker marker = brick.marker;
  marker.brick = env.random_uuid();
  marker.failed_syncs = 0;
  marker.run = {};   // in use within a run that has begun: the next opening gives it its first
  for (const Brick& other : bricks) marker.failed_syncs = std::max(marker.failed_syncs, other.marker.failed_syncs);
  TM_RETURN_IF_ERROR(files.write_file_atomically(marker_path(brick.directory), encode_marker(marker)));
  TM_ASSIGN_OR_RETURN(brick.mount_identity, files.mount_identity(brick.directory));
  kLog.warning("brick_replaced", {{"brick", brick.directory}, {"old", brick.marker.brick}, {"new", marker.brick}});
  brick.marker = marker;
  brick.absent = Status::ok();
  return {};
}

Result<std::vector<Brick>> open_bricks(io::Env& env, const StorageGroupOptions& options) {
  TM_RETURN_IF_ERROR(check_options(options));
  io::FileSystem& files = env.files();
  if (!options.known_bricks.empty() && !options.expected_group.is_nil()) return open_known(files, options);
  TM_ASSIGN_OR_RETURN(auto probes, probe_all(files, options));
  auto is_ready = [](const Probe& p) {
    return p.found == Found::kMarker && p.marker.state == BrickMarker::State::kReady;
  };
  if (options.expected_group.is_nil() && std::none_of(probes.begin(), probes.end(), is_ready)) {
    for (size_t i = 0; i < probes.size(); ++i) {
      TM_RETURN_IF_ERROR(check_takeable(options.bricks[i], probes[i], options));
    }
    TM_RETURN_IF_ERROR(initialize(env, options));
    TM_ASSIGN_OR_RETURN(probes, probe_all(files, options));
  }
  Uuid group = options.expected_group;
  if (group.is_nil()) {
    auto first = std::find_if(probes.begin(), probes.end(), is_ready);
    if (first == probes.end()) first = probes.begin();
    group = first->marker.group;
  }
  std::vector<Brick> bricks(probes.size());
  for (size_t i = 0; i < probes.size(); ++i) {
    const std::string& directory = options.bricks[i];
    TM_RETURN_IF_ERROR(check_member(directory, probes[i], group, options));
    Brick& brick = bricks[probes[i].marker.index];
    if (!brick.directory.empty())
      return refuse(directory, "is the same as " + brick.directory + "; list each brick once");
    TM_RETURN_IF_ERROR(refuse_age(directory, age_of(probes[i].marker, options), options));
    brick.directory = directory;
    brick.marker = probes[i].marker;
    TM_ASSIGN_OR_RETURN(brick.mount_identity, files.mount_identity(directory));
  }
  for (Brick& brick : bricks) {
    if (brick.marker.state == BrickMarker::State::kReady) continue;
    brick.marker.state = BrickMarker::State::kReady;
    TM_RETURN_IF_ERROR(files.write_file_atomically(marker_path(brick.directory), encode_marker(brick.marker)));
  }
  return bricks;
}

namespace {
Status is_there(io::FileSystem& files, const Brick& brick) {
  TM_ASSIGN_OR_RETURN(Bytes bytes, files.read_file(marker_path(brick.directory)));
  TM_ASSIGN_OR_RETURN(BrickMarker marker, decode_marker(bytes));
  if (marker.brick == brick.marker.brick) return Status::ok();
  return Status(Code::kIoError, "another brick is in the directory of " + brick.marker.brick.to_string());
}
}  // namespace

Status record_failed_syncs(io::FileSystem& files, std::vector<Brick>& bricks, uint64_t counter) {
  bool durable = false;
  Status last(Code::kIoError, "no brick is there");
  for (Brick& brick : bricks) {
    brick.marker.failed_syncs = counter;
    if (!brick.absent) continue;
    // Its files may be open still after its device was detached: a marker would make a brick of what lies beneath.
    Status status = is_there(files, brick);
    if (status) status = files.write_file_atomically(marker_path(brick.directory), encode_marker(brick.marker));
    if (status) {
      durable = true;
    } else {
      kLog.warning("failed_sync_not_recorded", {{"brick", brick.directory}, {"status", status}});
      last = std::move(status);
    }
  }
  return durable ? Status::ok() : last;
}

namespace {

// No opening of this version was ever counted: the state knows none, and no marker is of this version.
bool first_after_upgrade(const std::vector<Brick>& bricks, const std::vector<KnownRun>& runs) {
  return runs.empty() && std::all_of(bricks.begin(), bricks.end(), [](const Brick& brick) {
           return !brick.absent || brick.marker.version < kMarkerVersion;
         });
}

// What an opening takes for the brick's run must not go away again: a process that was killed may have left a marker
// that is to be seen and not yet durable.
Status settle_marker(io::FileSystem& files, const Brick& brick, const KnownRun* known) {
  if (known != nullptr && known->last == brick.marker.run) return Status::ok();   // so it was when that was saved
  return files.sync_directory(brick.directory);
}

void warn_not_recorded(const Brick& brick, const Status& status) {
  kLog.warning("run_not_recorded", {{"brick", brick.directory}, {"status", status}});
}

bool write_run(io::FileSystem& files, Brick& brick, const BrickRun& now) {
  BrickMarker marker = brick.marker;
  marker.run = now;
  marker.version = kMarkerVersion;
  Status status = files.write_file_atomically(marker_path(brick.directory), encode_marker(marker));
  if (status) brick.marker = marker;
  else warn_not_recorded(brick, status);
  return status.is_ok();
}

}  // namespace

Status begin_run(io::Env& env, std::vector<Brick>& bricks, std::vector<KnownRun>& runs, SaveRuns& save,
                 BrickRun* begun) {
  BrickRun now{0, env.random_uuid()};
  for (const KnownRun& run : runs) now.number = std::max({now.number, run.last.number, run.opening.number});
  for (const Brick& brick : bricks) now.number = std::max(now.number, brick.marker.run.number);
  ++now.number;
  const bool uncounted = first_after_upgrade(bricks, runs);
  std::vector<KnownRun> next;
  std::vector<bool> counted;
  for (const Brick& brick : bricks) {
    auto at = std::find_if(runs.begin(), runs.end(), [&](const KnownRun& r) { return r.brick == brick.marker.brick; });
    const KnownRun* known = at == runs.end() ? nullptr : &*at;
    bool counts = brick.absent.is_ok() && !uncounted;
    if (Status settled = counts ? settle_marker(env.files(), brick, known) : Status::ok(); !settled) {
      warn_not_recorded(brick, settled);
      counts = false;
    }
    KnownRun run{brick.marker.brick, brick.marker.run, {}};
    if (counts) run.opening = now;
    else if (known != nullptr) run = *known;   // as it was left
    next.push_back(run);
    counted.push_back(counts);
  }
  runs = next;
  TM_RETURN_IF_ERROR(save(runs));
  if (uncounted) return Status::ok();   // the older version can still be gone back to
  *begun = now;
  for (size_t i = 0; i < bricks.size(); ++i) {
    Brick& brick = bricks[i];
    if (!counted[i]) continue;
    if (write_run(env.files(), brick, now)) runs[i] = {brick.marker.brick, now, {}};
  }
  return save(runs);
}

// The steps of begin_run() for one brick; they may be taken again and again.
void join_run(io::FileSystem& files, Brick& brick, std::vector<KnownRun>& runs, SaveRuns& save, const BrickRun& now) {
  auto at = std::find_if(runs.begin(), runs.end(), [&](const KnownRun& r) { return r.brick == brick.marker.brick; });
  if (at == runs.end() || brick.marker.run == now) return;
  const KnownRun before = *at;
  Status joined = settle_marker(files, brick, &before);
  if (joined) {
    *at = {brick.marker.brick, brick.marker.run, now};
    joined = save(runs);
  }
  if (!joined) {   // as it was, whatever of it was saved: that allows more
    *at = before;
    brick.absent = joined.with_context("brick " + brick.directory + " is back, but its run could not be recorded yet");
    kLog.warning("brick_absent", {{"brick", brick.directory}, {"reason", brick.absent}});
    return;
  }
  if (!write_run(files, brick, now)) return;
  *at = {brick.marker.brick, now, {}};
  if (Status saved = save(runs); !saved) warn_not_recorded(brick, saved);   // both are allowed
}

namespace {
constexpr unsigned kFailedSyncBits = 24;
constexpr uint64_t kFailedSyncMask = (uint64_t{1} << kFailedSyncBits) - 1;
}  // namespace

LossId compute_loss_id(const Uuid& boot, const std::vector<Brick>& bricks, uint64_t failed_syncs) {
  Bytes out;
  Writer w(out);
  w.uuid(boot);
  for (const Brick& brick : bricks) w.uuid(brick.marker.brick).u64(brick.mount_identity);
  const uint64_t span = std::max<uint64_t>(digest64(out) >> kFailedSyncBits, 1);
  return LossId(span << kFailedSyncBits | (failed_syncs & kFailedSyncMask));
}

}  // namespace tidemark::image::detail

namespace tidemark::image {

bool sync_failed_between(LossId before, LossId now) {
  const bool unknown = before.value == 0 || now.value == 0;
  return unknown || ((before.value ^ now.value) & detail::kFailedSyncMask) != 0;
}

}  // namespace tidemark::image
