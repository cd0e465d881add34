// The check at a daemon's start, and setting aside what is left of a lost state. identity.h says what for.
//
//   identity  parts                                 bricks          what happens
//   none      none                                  no markers      first start: identity, then parts, then ready;
//                                                                   refused if a run before had a state here
//   none      none                                  a marker        refused: the state is lost or not mounted
//   none      all, none tagged                      any             an older layout, adopted
//   none      all, tagged by one state              any             the file was lost: written anew
//   none      anything else                         any             refused
//   ready     all there, tagged as the file says    any             opened
//   ready     one missing, empty or another's       any             refused; an expendable one that is missing is made
//   ready     one that the file does not know       any             a new kind of part: made, or tagged
//   begun     any of them missing                   any             made: an interrupted first start is finished
#include <algorithm>
#include <utility>

#include "shared/base/log.h"
#include "shared/image/side_file.h"
#include "shared/io/file.h"
#include "shared/kv/store.h"
#include "shared/state/identity.h"

namespace tidemark::state {
namespace {

const log::Logger kLog("state");
constexpr std::string_view kIdentityName = "identity";
constexpr std::string_view kFolderTag = "tidemark.id";   // in a folder
constexpr std::string_view kStoreFile = "data.mdb";      // of a store
constexpr kv::Table kTagTable = 0;
const char* const kTagKey = "store";
constexpr int kAsideMax = 10'000;

std::string in(const std::string& directory, std::string_view name) { return directory + "/" + std::string(name); }

Result<bool> exists(io::FileSystem& files, const std::string& path) {
  auto stat = files.stat(path);
  if (stat) return true;
  if (stat.status().code() == Code::kNotFound) return false;
  return stat.status();
}

kv::StoreOptions tag_options() {
  kv::StoreOptions options;
  options.tables = {"identity"};
  return options;
}

std::string part_path(const Spec& spec, const PartSpec& part) { return spec.directory + "/" + part.name; }

std::string command(const Spec& spec, const std::string& words) {
  return "`tidemark " + (spec.config_file.empty() ? "" : "--config " + spec.config_file + " ") + words + "`";
}

Status refuse(const Spec& spec, const std::string& what) {
  return Status(Code::kInvalidArgument,
                what + ": bring back what is missing (a disk that is not mounted?); if it is lost for good, " +
                    command(spec, "state reset --dry-run") + " says what starting anew costs");
}

// That is there, and is not what it should be.
Status refuse_part(const Spec& spec, const Look::Found& part, const std::string& what) {
  if (!part.spec.expendable) return refuse(spec, what);
  return Status(Code::kInvalidArgument, what + ": move " + part.path +
                                            " away, and it is begun anew; the other parts stay as they are");
}

Result<Bytes> read_tag(io::Env& env, const PartSpec& part, const std::string& path) {
  if (part.kind == PartSpec::Kind::kFolder) return env.files().read_file(in(path, kFolderTag));
  TM_ASSIGN_OR_RETURN(io::FileStat file, env.files().stat(in(path, kStoreFile)));
  if (file.size == 0) return Status(Code::kNotFound, path + " is empty");   // the store itself would begin anew in it
  kv::StoreOptions options = tag_options();
  options.read_only = true;
  TM_ASSIGN_OR_RETURN(auto store, env.open_store(path, options));
  return store->snapshot()->get(kTagTable, as_bytes(kTagKey));
}

Status write_tag(io::Env& env, const Spec& spec, const Identity& identity, const PartSpec& part) {
  const std::string path = part_path(spec, part);
  const Bytes tag = encode_tag({identity.find(part.name)->id, identity.state, spec.cluster, spec.node, part.name});
  TM_RETURN_IF_ERROR(env.files().make_directories(path).with_context(path));
  if (part.kind == PartSpec::Kind::kFolder) return env.files().write_file_atomically(in(path, kFolderTag), tag);
  TM_ASSIGN_OR_RETURN(auto store, env.open_store(path, tag_options()));
  kv::WriteBatch batch;
  batch.put(kTagTable, as_bytes(kTagKey), tag);
  return store->commit_and_wait(std::move(batch)).with_context(path);
}

Result<Look::Found> probe(io::Env& env, const Spec& spec, const PartSpec& part) {
  Look::Found out{part, part_path(spec, part), false, {}};
  const bool store = part.kind == PartSpec::Kind::kStore;
  TM_ASSIGN_OR_RETURN(out.there, exists(env.files(), store ? in(out.path, kStoreFile) : out.path));
  if (!out.there) return out;
  auto bytes = read_tag(env, part, out.path);
  if (!bytes && bytes.status().code() == Code::kNotFound) return out;
  if (!bytes) return bytes.status().with_context(out.path);
  auto tag = decode_tag(*bytes);
  if (!tag) return tag.status().with_context(out.path + ": what says whose store it is");
  out.tag = std::move(*tag);
  return out;
}

Status save(io::Env& env, const Spec& spec, const Identity& identity) {
  return env.files().write_file_atomically(in(spec.directory, kIdentityName), encode_identity(identity));
}

// What is begun is finished: each part is there and tagged, then the file says so.
Status finish(io::Env& env, const Spec& spec, Identity& identity, const std::vector<PartSpec>& untagged) {
  identity.stage = Identity::Stage::kInitializing;
  TM_RETURN_IF_ERROR(save(env, spec, identity));
  for (const PartSpec& part : untagged) TM_RETURN_IF_ERROR(write_tag(env, spec, identity, part));
  identity.stage = Identity::Stage::kReady;
  return save(env, spec, identity);
}

Identity make_identity(io::Env& env, const Spec& spec) {
  Identity identity;
  identity.state = env.random_uuid();
  identity.cluster = spec.cluster;
  identity.role = spec.role;
  identity.node = spec.node;
  identity.generation = Generation(1);
  for (const PartSpec& part : spec.parts) identity.parts.push_back({part.name, env.random_uuid()});
  return identity;
}

// All parts carry the tag of one state: the identity file alone was lost.
std::optional<Identity> from_tags(const Spec& spec, const Look& found) {
  Identity identity;
  identity.cluster = spec.cluster;
  identity.role = spec.role;
  identity.node = spec.node;
  identity.generation = Generation(1);
  for (const Look::Found& part : found.parts) {
    if (!part.there && part.spec.expendable) continue;
    if (!part.tag || part.tag->cluster != spec.cluster || part.tag->node != spec.node) return std::nullopt;
    if (!identity.state.is_nil() && part.tag->state != identity.state) return std::nullopt;
    identity.state = part.tag->state;
    identity.parts.push_back({part.spec.name, part.tag->part});
  }
  return identity;
}

bool is_there(const Look::Found& part) { return part.there; }
bool is_tagged(const Look::Found& part) { return part.tag.has_value(); }

Status judge_without_identity(const Spec& spec, const Look& found) {
  if (std::none_of(found.parts.begin(), found.parts.end(), is_there)) {
    if (found.marked_bricks.empty() && !spec.had_before) return Status::ok();
    if (found.marked_bricks.empty())
      return refuse(spec, spec.directory + " holds no state, while the run before this one had one there");
    return refuse(spec, "brick " + found.marked_bricks.front() + " is in use, but " + spec.directory +
                            " holds no state that knows it");
  }
  for (const Look::Found& part : found.parts) {
    if (!part.there && !part.spec.expendable && part.spec.kind == PartSpec::Kind::kStore)
      return refuse(spec, part.path + " is missing, while other parts of " + spec.directory + " are there");
  }
  if (std::none_of(found.parts.begin(), found.parts.end(), is_tagged) || from_tags(spec, found)) return Status::ok();
  return refuse(spec, in(spec.directory, kIdentityName) +
                          " is missing, and the stores beside it are not of one node's state");
}

Result<Identity> without_identity(io::Env& env, const Spec& spec, const Look& found) {
  const std::string file = in(spec.directory, kIdentityName);
  if (std::none_of(found.parts.begin(), found.parts.end(), is_there)) {
    Identity identity = make_identity(env, spec);
    TM_RETURN_IF_ERROR(finish(env, spec, identity, spec.parts));
    kLog.info("state_initialized", {{"directory", spec.directory}, {"state", identity.state}});
    return identity;
  }
  if (std::none_of(found.parts.begin(), found.parts.end(), is_tagged)) {
    Identity identity = make_identity(env, spec);
    TM_RETURN_IF_ERROR(finish(env, spec, identity, spec.parts));
    kLog.info("state_adopted", {{"directory", spec.directory}, {"state", identity.state}, {"layout", "older"}});
    return identity;
  }
  auto identity = from_tags(spec, found);
  TM_CHECK(identity.has_value(), "judged before");
  std::vector<PartSpec> left;
  for (const PartSpec& part : spec.parts) {
    if (identity->find(part.name) != nullptr) continue;
    identity->parts.push_back({part.name, env.random_uuid()});
    left.push_back(part);
  }
  TM_RETURN_IF_ERROR(finish(env, spec, *identity, left));
  kLog.warning("identity_file_written_anew", {{"file", file}, {"state", identity->state}, {"from", "its stores"}});
  return std::move(*identity);
}

// Whether a part that is there is the one that the file names.
Status check_part(const Spec& spec, const Look::Found& part, const Part& known) {
  const std::string file = in(spec.directory, kIdentityName);
  if (!part.tag)
    return refuse_part(spec, part, part.path + " holds nothing of what " + file + " knows: it was emptied or replaced");
  if (part.tag->part != known.id)
    return refuse_part(spec, part, part.path + " is another one than " + file + " knows (it is of " + part.tag->node +
                                       ", state " + part.tag->state.to_string() + "): it was replaced");
  return Status::ok();
}

Result<Identity> with_identity(io::Env& env, const Spec& spec, const Look& found) {
  Identity identity = *found.identity;
  const bool begun = identity.stage == Identity::Stage::kInitializing;
  std::vector<PartSpec> untagged;
  bool changed = begun;
  for (const Look::Found& part : found.parts) {
    const Part* known = identity.find(part.spec.name);
    if (known == nullptr) {
      identity.parts.push_back({part.spec.name, env.random_uuid()});
      untagged.push_back(part.spec);
      changed = true;
      kLog.info("state_extended", {{"directory", spec.directory}, {"part", part.spec.name}});
    } else if (begun && (!part.there || !part.tag)) {
      untagged.push_back(part.spec);
    } else if (!part.there && part.spec.expendable) {
      kLog.warning("store_lost", {{"store", part.path}, {"now", "begun anew: it answers for nothing it has not seen"}});
      untagged.push_back(part.spec);
      changed = true;
    }
  }
  if (!changed) return identity;
  identity.generation = identity.generation.next();
  TM_RETURN_IF_ERROR(finish(env, spec, identity, untagged));
  return identity;
}

Status check_owner(const Spec& spec, const Identity& identity) {
  const bool node = identity.node == spec.node && identity.role == spec.role;
  if (identity.cluster == spec.cluster && node) return Status::ok();
  const std::string file = spec.config_file.empty() ? "" : spec.config_file + ": ";
  return Status(Code::kInvalidArgument,
                "the state in " + spec.directory + " is of " + identity.role + " " + identity.node + ", cluster " +
                    identity.cluster.to_string() + "; this is " + spec.role + " " + spec.node + ", cluster " +
                    spec.cluster.to_string() + ": " +
                    (node ? file + "[tls] certificate must be one of the state's cluster; otherwise " : "") +
                    "give the node its own state_dir");
}

// A name that nothing has yet.
Result<std::string> free_name(io::FileSystem& files, const std::string& stem) {
  for (int i = 1; i < kAsideMax; ++i) {
    std::string path = stem + std::to_string(i);
    TM_ASSIGN_OR_RETURN(bool taken, exists(files, path));
    if (!taken) return path;
  }
  return Status(Code::kOutOfSpace, stem + "N: too many of them; remove what is not needed");
}

Status move_into(io::FileSystem& files, const std::string& from, const std::string& name, const std::string& folder,
                 bool dry_run, SetAside& out) {
  TM_ASSIGN_OR_RETURN(bool there, exists(files, in(from, name)));
  if (!there) return Status::ok();
  out.from.push_back(in(from, name));
  out.to.push_back(in(folder, name));
  if (dry_run) return Status::ok();
  TM_RETURN_IF_ERROR(files.make_directories(folder));
  TM_RETURN_IF_ERROR(files.rename(in(from, name), in(folder, name)));
  TM_RETURN_IF_ERROR(files.sync_directory(folder));
  return files.sync_directory(from);
}

}  // namespace

Result<Look> look(io::Env& env, const Spec& spec) {
  Look out;
  const std::string file = in(spec.directory, kIdentityName);
  auto bytes = env.files().read_file(file);
  if (bytes) {
    auto identity = decode_identity(*bytes);
    if (!identity)
      return identity.status().with_context(file + " cannot be used: move it away, and the next start makes it anew "
                                                   "from the stores beside it");
    out.identity = std::move(*identity);
  } else if (bytes.status().code() != Code::kNotFound) {
    return bytes.status().with_context(file);
  }
  for (const PartSpec& part : spec.parts) {
    TM_ASSIGN_OR_RETURN(Look::Found found, probe(env, spec, part));
    out.parts.push_back(std::move(found));
  }
  for (const std::string& brick : spec.bricks) {
    auto marker = env.files().read_file(in(brick, image::kMarkerName));
    if (!marker && marker.status().code() != Code::kNotFound) return marker.status().with_context("brick " + brick);
    auto decoded = marker ? image::decode_marker(*marker) : Result<image::BrickMarker>(marker.status());
    // One that is damaged is in use all the same; one that is not ready belongs to a first start that was interrupted.
    if (marker && (!decoded || decoded->state == image::BrickMarker::State::kReady)) out.marked_bricks.push_back(brick);
  }
  return out;
}

Result<Identity> check_in(io::Env& env, const Spec& spec) {
  TM_RETURN_IF_ERROR(env.files().make_directories(spec.directory).with_context(spec.directory));
  TM_ASSIGN_OR_RETURN(Look found, look(env, spec));
  TM_RETURN_IF_ERROR(judge(spec, found));
  return found.identity ? with_identity(env, spec, found) : without_identity(env, spec, found);
}

Status judge(const Spec& spec, const Look& found) {
  if (!found.identity) return judge_without_identity(spec, found);
  TM_RETURN_IF_ERROR(check_owner(spec, *found.identity));
  const bool begun = found.identity->stage == Identity::Stage::kInitializing;
  for (const Look::Found& part : found.parts) {
    const Part* known = found.identity->find(part.spec.name);
    if (known == nullptr || (begun && (!part.there || !part.tag)) || (!part.there && part.spec.expendable)) continue;
    if (!part.there)
      return refuse(spec, part.path + " is missing, which " + in(spec.directory, kIdentityName) + " knows");
    TM_RETURN_IF_ERROR(check_part(spec, part, *known));
  }
  return Status::ok();
}

Result<SetAside> set_aside(io::Env& env, const Spec& spec, bool with_bricks, bool dry_run) {
  io::FileSystem& files = env.files();
  TM_RETURN_IF_ERROR(files.make_directories(spec.directory));
  SetAside out;
  TM_ASSIGN_OR_RETURN(std::string aside, free_name(files, in(spec.directory, "lost-")));
  std::vector<std::string> tops{"spool"};
  for (const PartSpec& part : spec.parts) tops.push_back(part.name.substr(0, part.name.find('/')));
  std::sort(tops.begin(), tops.end());
  tops.erase(std::unique(tops.begin(), tops.end()), tops.end());
  for (const std::string& top : tops)
    TM_RETURN_IF_ERROR(move_into(files, spec.directory, top, aside, dry_run, out));
  for (const std::string& brick : with_bricks ? spec.bricks : std::vector<std::string>()) {
    const std::string marker(image::kMarkerName);
    TM_ASSIGN_OR_RETURN(std::string folder, free_name(files, in(brick, marker + "-lost-")));
    TM_RETURN_IF_ERROR(move_into(files, brick, "objects", folder, dry_run, out));
    TM_RETURN_IF_ERROR(move_into(files, brick, marker, folder, dry_run, out));
  }
  if (dry_run) return out;
  Identity identity = make_identity(env, spec);
  identity.after_reset = true;
  TM_RETURN_IF_ERROR(save(env, spec, identity));   // last: an interrupted one is begun again
  return out;
}

}  // namespace tidemark::state
