#include "shared/cli/fsck.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "journal/inspect.h"
#include "journal/outdated.h"
#include "journal/records.h"
#include "journal/segment.h"
#include "shared/cli/in_use.h"
#include "shared/image/group_state.h"
#include "shared/image/side_file.h"
#include "shared/kv/lmdb_check.h"
#include "shared/kv/store.h"
#include "shared/net/revocation.h"

namespace tidemark::cli {
namespace {

namespace fs = std::filesystem;

// Which tables a store cannot do without, and whether the mark "outdated" stands for the others.
struct Rebuild {
  std::string store;
  std::vector<std::string> tables, needed;
  bool outdated = false;
};
// Says whose store it is (shared/state); without it the daemon would not start.
constexpr const char* kTagTable = "identity";
std::vector<std::string> tagged(std::vector<std::string> tables) {
  tables.push_back(kTagTable);
  return tables;
}
const std::vector<Rebuild>& rebuilds() {
  static const std::vector<Rebuild> all = {
      {"drl", tagged(journal::drl_table_names()), {"images", kTagTable}, true},
      {"journal", tagged(journal::journal_table_names()), {"meta", "images", "batches", kTagTable}, true},
      {"names", {"attr", "entry", "flag", "meta", kTagTable}, {"flag", "meta", kTagTable}, false},
  };
  return all;
}

// Of a new store that is being written, and of one that is whole and waits for its name.
constexpr const char* kRebuilding = ".rebuilding";
constexpr const char* kRebuilt = ".rebuilt";

// Of what the user may look at, which was found out before: no exception.
bool is_there(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

class Fsck {
 public:
  Fsck(io::Env& env, const FsckTarget& target, bool repair) : env_(env), target_(target), repair_(repair) {
    suffix_ = ".damaged-" + std::to_string(env.wall().ns / 1'000'000'000);
  }

  Result<FsckReport> run() {
    TM_RETURN_IF_ERROR(find());
    if (target_.role.empty()) guess_role();
    TM_RETURN_IF_ERROR(finish_repairs());
    for (const std::string& store : stores_) TM_RETURN_IF_ERROR(check_one_store(store));
    if (journal_sound_ && is_there(target_.state + "/journal")) check_journal();
    for (const std::string& path : segments_) check_segment(path);
    if (!target_.state.empty()) check_mark(target_.state + "/journal-outdated");
    for (const std::string& brick : target_.bricks) check_brick(brick);
    check_group();
    check_only_copies();
    check_kept_images();
    if (!target_.state.empty()) check_state();
    return std::move(out_);
  }

 private:
  using Entries = std::map<std::string, std::vector<std::pair<Bytes, Bytes>>>;   // by table

  void found(const std::string& path, std::string what, std::string remedy, bool fixed = false) {
    out_.findings.push_back({path, std::move(what), std::move(remedy), fixed});
  }

  // What there is to look at; nothing of it may be in use.
  Status find() {
    std::error_code error;
    if (!target_.state.empty()) {
      fs::recursive_directory_iterator at(target_.state, error), end;
      if (error) return Status::from_errno(error.value(), target_.state);
      for (; !error && at != end; at.increment(error)) {
        const std::string path = at->path().string(), name = at->path().filename().string();
        std::error_code unknown;
        if (at->is_directory(unknown) && set_aside(name)) at.disable_recursion_pending();
        else if (name == "data.mdb") stores_.push_back(at->path().parent_path().string());
        else if (name.ends_with(".seg") && path.find("/incoming/") == std::string::npos) segments_.push_back(path);
      }
      if (error) return Status::from_errno(error.value(), target_.state);
    }
    std::sort(stores_.begin(), stores_.end());
    std::sort(segments_.begin(), segments_.end());
    for (const std::string& store : stores_) TM_RETURN_IF_ERROR(store_is_free(store));
    for (const std::string& brick : target_.bricks) {
      error.clear();
      fs::recursive_directory_iterator at(brick, error), end;
      if (error) return Status::from_errno(error.value(), brick);
      for (; !error && at != end; at.increment(error)) {
        if (at->path().extension() == ".data") TM_RETURN_IF_ERROR(object_is_free(at->path().string()));
      }
    }
    return Status::ok();
  }

  static bool set_aside(const std::string& name) {
    return name.find(".damaged-") != std::string::npos || name.ends_with(kRebuilding) || name.ends_with(kRebuilt);
  }

  // A repair that was cut off. What it had not finished goes; what was whole, and only lacks its name, takes it: the damaged
  // store was moved aside already.
  Status finish_repairs() {
    for (const Rebuild& plan : rebuilds()) {
      if (target_.role != "host") break;
      const std::string store = target_.state + "/" + plan.store, begun = store + kRebuilding, whole = store + kRebuilt;
      if (repair_) TM_RETURN_IF_ERROR(remove(begun));
      if (!is_there(whole + "/data.mdb")) continue;
      if (is_there(store + "/data.mdb")) {   // not yet moved aside: it is written anew from that
        if (repair_) TM_RETURN_IF_ERROR(remove(whole));
        continue;
      }
      const std::string what = "a repair of it was cut off: it is missing, while " + whole + " is there";
      if (!repair_) {
        journal_sound_ = journal_sound_ && !plan.outdated;   // nothing to look at
        found(store, what, "run fsck --repair, which finishes it");
        continue;
      }
      if (plan.outdated) TM_RETURN_IF_ERROR(mark_outdated());
      if (is_there(store)) TM_RETURN_IF_ERROR(remove(store));   // what was made of it meanwhile holds no store
      TM_RETURN_IF_ERROR(env_.files().rename(whole, store));
      TM_RETURN_IF_ERROR(env_.files().sync_directory(target_.state));
      stores_.push_back(store);
      std::sort(stores_.begin(), stores_.end());
      found(store, what, "the repair is finished" + consequence(plan), true);
    }
    return Status::ok();
  }
  static Status remove(const std::string& path) {
    std::error_code error;
    fs::remove_all(path, error);
    return error ? Status::from_errno(error.value(), path) : Status::ok();
  }
  static std::string consequence(const Rebuild& plan) {
    return plan.outdated ? "; the next start compares every region, and the replica is sent all of them" : "";
  }

  void guess_role() {
    auto has = [&](const char* name) { return !target_.state.empty() && is_there(target_.state + "/" + name); };
    target_.role = has("names") ? "host" : has("catalogue") ? "shared" : has("replica") || has("store") ? "replica" : "";
  }

  // ---- stores
  Status check_one_store(const std::string& directory) {
    Entries entries;
    const Rebuild* plan = nullptr;
    for (const Rebuild& r : rebuilds())
      if (target_.role == "host" && directory == target_.state + "/" + r.store) plan = &r;
    const bool catalogue = target_.role == "shared" && directory == target_.state + "/catalogue";
    kv::StoreEntry keep = [&](const std::string& table, ByteSpan key, ByteSpan value) {
      if (plan != nullptr) entries[table].emplace_back(Bytes(key.begin(), key.end()), Bytes(value.begin(), value.end()));
      if (plan != nullptr && plan->store == "names" && table == "flag") flag(key, value);
      if (catalogue && table == "images") kept_image(key, value);
    };
    auto check = kv::check_store(directory, keep);
    if (!check) return check.status();
    ++out_.stores;
    out_.values += check->values;
    if (!check->sealed && check->values != 0)
      out_.notes.push_back(directory + " was made by an older version: its values have no checksums of their own");
    if (plan != nullptr && plan->store == "names")
      flags_known_ = !check->catalogue_damaged && !check->damaged_tables.contains("flag");
    if (check->problems.empty()) return Status::ok();
    if (directory == target_.state + "/journal" || directory == target_.state + "/drl") journal_sound_ = false;
    bool lost = check->catalogue_damaged || plan == nullptr;
    for (size_t i = 0; !lost && i < plan->needed.size(); ++i) lost = check->damaged_tables.contains(plan->needed[i]);
    const std::string first = check->problems.front() + (check->problems.size() == 1 ? "" : " (and " + std::to_string(check->problems.size() - 1) + " more)");
    if (lost) {
      found(directory, first, store_remedy(directory));
      return Status::ok();
    }
    std::string remedy = "what is sound of it can be kept: run fsck --repair";
    if (repair_) {
      TM_RETURN_IF_ERROR(rebuild(directory, *plan, *check, entries));
      remedy = "written anew from what is sound" + consequence(*plan) + "; the damaged one is " + directory + suffix_;
    }
    found(directory, first, remedy, repair_);
    return Status::ok();
  }

  // A host's note of an image (Flag of fs/engine.h). All but "behind the shared copy": that may not be the whole one.
  void flag(ByteSpan key, ByteSpan value) {
    constexpr uint8_t kBehind = 1, kDoomed = 2, kHostOnly = 4, kPartial = 16;
    if (key.size() == 16 && !value.empty() && (value[0] & (kDoomed | kHostOnly)) == kHostOnly) only_here_.insert(Reader(key).uuid());
    if (key.size() == 16 && !value.empty() && (value[0] & ~(kBehind | kPartial)) != 0) unlevel_.insert(Reader(key).uuid());
  }

  // An image in the shared node's catalogue (ImageRecord of shared/node/catalogue.h): whether blocks of it must be here.
  void kept_image(ByteSpan key, ByteSpan value) {
    Reader in(value);
    in.u8();                             // version
    in.u64();                            // inode
    const uint8_t has_copy = in.u8(), nameless = in.u8();
    if (key.size() == 16 && in.ok() && has_copy != 0 && nameless == 0) kept_here_.insert(Reader(key).uuid());
  }

  std::string store_remedy(const std::string& directory) const {
    const std::string keep = "keep " + directory + " aside; ";
    if (target_.role == "host")
      return keep + "what this host had not shipped or mirrored cannot be told from it: where the shared node is healthy, move the "
                    "state directory and the bricks away, and let the host be filled anew from the shared node";
    if (target_.role == "shared") return keep + "make its state anew from its hosts: tidemark shared rebuild";
    if (target_.role == "replica")
      return keep + "restore the replica's state from its backup, or begin a new one: tidemark journal resync-replica on every node";
    return keep + "restore it from a backup";
  }

  // The sound entries into a new store beside, which then takes the name. In this order, whenever it is cut off: the mark
  // that stands for what is lost, durably; the whole new store under a name that says so; the damaged one out of the way.
  Status rebuild(const std::string& directory, const Rebuild& plan, const kv::StoreCheck& check, const Entries& entries) {
    const std::string fresh = directory + kRebuilding, whole = directory + kRebuilt;
    const std::string parent = fs::path(directory).parent_path().string();
    Status written = plan.outdated ? mark_outdated() : Status::ok();
    if (written) written = write_anew(fresh, plan, check, entries);
    if (!written) {
      if (Status s = remove(fresh); !s) out_.notes.push_back(s.message());
      return written.with_context(directory + " is as it was, it could not be written anew");
    }
    TM_RETURN_IF_ERROR(env_.files().rename(fresh, whole));
    TM_RETURN_IF_ERROR(env_.files().sync_directory(parent));
    TM_RETURN_IF_ERROR(env_.files().rename(directory, directory + suffix_));
    TM_RETURN_IF_ERROR(env_.files().rename(whole, directory));
    return env_.files().sync_directory(parent);
  }

  Status write_anew(const std::string& fresh, const Rebuild& plan, const kv::StoreCheck& check, const Entries& entries) {
    std::set<std::string> dropped = check.damaged_tables;
    if (dropped.contains("records") || dropped.contains("slots")) dropped.insert({"records", "slots"});   // one explains the other
    TM_ASSIGN_OR_RETURN(auto store, env_.open_store(fresh, {.tables = plan.tables}));
    for (kv::Table table = 0; table < plan.tables.size(); ++table) {
      const std::string& name = plan.tables[table];
      // A table that the mark stands for is kept whole or not at all.
      bool needed = std::count(plan.needed.begin(), plan.needed.end(), name) != 0;
      auto it = entries.find(name);
      if (it == entries.end() || (plan.outdated && !needed && dropped.contains(name))) continue;
      if (plan.store == "drl" && !needed) continue;
      kv::WriteBatch batch;
      for (const auto& [key, value] : it->second) batch.put(table, key, value);
      TM_RETURN_IF_ERROR(store->commit_and_wait(std::move(batch)));
    }
    return Status::ok();
  }

  // It stands if any place says so: the state directory, whose stores go by it, must; bricks as they can.
  Status mark_outdated() {
    const Bytes block = journal::outdated_block(true);
    TM_RETURN_IF_ERROR(env_.files().write_file_atomically(target_.state + "/journal-outdated", block));
    for (const std::string& brick : target_.bricks) {
      Status written = env_.files().write_file_atomically(brick + "/journal-outdated", block);
      if (!written) out_.notes.push_back(brick + ": the mark \"outdated\" is in the state directory alone: " + written.message());
    }
    return Status::ok();
  }

  // ---- what the daemon says at its start
  void check_state() {
    if (Status s = net::keep_revocations(target_.state + "/revoked"); !s)   // reads it
      found(target_.state + "/revoked", s.message(), "the daemon will not start on it");
    state::Spec spec;
    if (target_.spec) {
      spec = *target_.spec;
    } else {
      spec.directory = target_.state;
      spec.role = target_.role;
      spec.parts = target_.role == "host"      ? state::parts_of_host()
                   : target_.role == "shared"  ? state::parts_of_shared()
                   : target_.role == "replica" ? state::parts_of_replica(false)
                                               : std::vector<state::PartSpec>();
      spec.bricks = target_.bricks;
    }
    auto seen = state::look(env_, spec);
    if (!seen) {
      // A store that is damaged was named above, with what to do.
      const std::string why = seen.status().message();
      auto named = [&](const FsckFinding& f) { return why.find(f.path) != std::string::npos; };
      if (std::any_of(out_.findings.begin(), out_.findings.end(), named)) return;
      return found(target_.state, why, "the daemon will not start on it");
    }
    if (!target_.spec && !seen->identity) return;   // a directory of a node that is not known
    if (seen->identity && (!target_.spec || spec.cluster.is_nil())) {
      spec.cluster = seen->identity->cluster;
      if (!target_.spec) spec.role = seen->identity->role, spec.node = seen->identity->node;
    }
    if (Status s = state::judge(spec, *seen); !s) found(target_.state, s.message(), "the daemon will not start on it");
  }

  // That the bricks are those of one group, the configured one, and all of it.
  void check_group() {
    std::optional<image::BrickMarker> first;
    for (const std::string& brick : target_.bricks) {
      auto bytes = env_.files().read_file(brick + "/" + std::string(image::kMarkerName));
      auto marker = bytes ? image::decode_marker(*bytes) : Result<image::BrickMarker>(bytes.status());
      if (!marker) continue;             // said before
      const std::string remedy = "the daemon will not start on it: mount the right device there, or correct the configuration";
      if (!target_.group.empty() && marker->name != target_.group)
        found(brick, "it is of group \"" + marker->name + "\", not of \"" + target_.group + "\"", remedy);
      else if (first && first->group != marker->group)
        found(brick, "it is of another group than the bricks before it", remedy);
      else if (!target_.group.empty() && marker->count != target_.bricks.size())
        found(brick, "it is one of " + std::to_string(marker->count) + " bricks, the configuration lists " +
                         std::to_string(target_.bricks.size()), remedy);
      if (!first) first = *marker;
    }
  }

  // ---- what the stores say
  void check_journal() {
    auto seen = journal::inspect(env_, target_.state, {.records_max = 0, .verify_spool = true});
    if (!seen) return found(target_.state + "/journal", seen.status().message(), "keep it and ask for help: it opens, but is no journal");
    for (const std::string& problem : seen->problems) {
      found(target_.state + "/journal", problem,
            problem.find("segment") != std::string::npos
                ? "what it holds did not reach the replica: after the next start, tidemark journal resync-replica"
                : "the daemon will not start on it; keep the state directory, and let the host be filled anew from the shared node");
    }
    for (const auto& dirty : seen->dirty)
      if (dirty.row.alone) only_here_.insert(dirty.image);
    for (const auto& dirty : seen->dirty)
      if (dirty.row.alone || dirty.dirty_regions != 0) unlevel_.insert(dirty.image);
    dirty_known_ = true;
  }

  void check_segment(const std::string& path) {
    if (path.find("/spool/") != std::string::npos) return;   // with the journal that names them
    ++out_.segments;
    auto bytes = env_.files().read_file(path);
    auto whole = bytes ? journal::SegmentReader::parse_whole(*bytes) : Result<journal::SegmentReader>(bytes.status());
    if (whole) return;
    found(path, whole.status().message(),
          "blocks of its points cannot be read; restore the file from a backup. The newest state is sent again by tidemark journal "
          "resync-replica on the hosts");
  }

  void check_mark(const std::string& path) {
    auto bytes = env_.files().read_file(path);
    if (!bytes) return;                  // made at the next start
    if (!journal::sound_outdated_block(*bytes))
      found(path, "the mark fails its checksum", "nothing: it counts as \"outdated\", and the next start compares every region", true);
  }

  // ---- bricks
  void check_brick(const std::string& brick) {
    check_mark(brick + "/journal-outdated");
    const std::string marker = brick + "/" + std::string(image::kMarkerName);
    auto bytes = env_.files().read_file(marker);
    if (!bytes) {
      found(marker, bytes.status().message(), "mount the right device there");
    } else if (auto decoded = image::decode_marker(*bytes); !decoded) {
      found(marker, decoded.status().message(),
            "copy the marker back from a backup; else treat the brick as replaced: its images are filled anew from the other copy");
    }
    std::error_code error;
    fs::recursive_directory_iterator at(image::objects_directory(brick), error), end;
    std::map<ImageId, uint64_t> objects;
    std::set<ImageId> named;
    for (; !error && at != end; at.increment(error)) {
      const std::string name = at->path().filename().string();
      if (name.find(".damaged-") != std::string::npos) continue;
      auto parsed = image::parse_object_name(name);
      if (parsed.kind == image::ObjectName::Kind::kData) ++objects[*parsed.id];
      if (parsed.kind != image::ObjectName::Kind::kMetadata) continue;
      named.insert(*parsed.id);
      named_.insert(*parsed.id);
      check_side_file(at->path().string(), *parsed.id);
    }
    const bool none_yet = error == std::errc::no_such_file_or_directory;   // no image was ever made here
    if (error && !none_yet) found(image::objects_directory(brick), error.message(), "see to its file system");
    if (target_.bricks.size() != 1) return;   // the side file may be on another brick
    for (const auto& [id, count] : objects)
      if (!named.contains(id) && !kept_here_.contains(id)) out_.notes.push_back(brick + ": objects of " + id.to_string() + ", which no side file names: left by an interrupted create or remove");
  }

  void check_side_file(const std::string& path, const ImageId& id) {
    ++out_.side_files;
    auto bytes = env_.files().read_file(path);
    auto metadata = bytes ? image::decode_metadata(*bytes) : Result<image::ImageMetadata>(bytes.status());
    std::string what;
    if (!metadata) what = metadata.status().message();
    else if (metadata->id != id) what = "it is of image " + metadata->id.to_string();
    if (what.empty()) return check_objects(*metadata);
    const std::string mend = "the copy can be filled anew from the shared node: run fsck --repair";
    if (target_.role != "host")
      return found(path, what, target_.role == "shared" ? "the hosts' copies have the image: see shared/docs/operations.md"
                                                        : "name the host's or shared node's configuration: what is safe depends on its state");
    if (!dirty_known_ || !flags_known_ || unlevel_.contains(id))
      return found(path, what, "this copy may have what the shared one lacks (writes, or all of it: mirror = none): start the daemon and let "
                               "the image become level first, or restore the file from a backup");
    if (!repair_) return found(path, what, mend);
    Status moved = env_.files().rename(path, path + suffix_);
    if (moved) moved = env_.files().sync_directory(fs::path(path).parent_path().string());
    if (!moved) return found(path, what + "; moving it aside: " + moved.message(), mend);
    found(path, what, "moved aside to " + path + suffix_ + ": the copy is filled anew from the shared node", true);
  }

  // Images of which the shared copy lacks writes, or all: their blocks must be here.
  void check_only_copies() {
    if (target_.role != "host" || target_.group.empty()) return;   // without a configuration bricks may be missing
    for (const ImageId& id : only_here_)
      if (!named_.contains(id))
        found(id.to_string(), "its blocks are gone from the bricks, and the shared copy may lack what was written here",
              "bring the brick back that had them; else restore the image from the replica");
  }

  // Images that the shared node has blocks of. What a side file names is looked at there.
  void check_kept_images() {
    if (target_.group.empty()) return;   // without a configuration bricks may be missing
    for (const ImageId& id : kept_here_)
      if (!named_.contains(id))
        found(id.to_string(), "its blocks are missing from the bricks of group \"" + target_.group + "\"",
              "bring the brick or the image's files back; else a host whose copy is whole goes on with it (copy the image to a new "
              "one there), or restore it from the replica");
  }

  // Of bricks that are all given: each object is there and as long as the side file says.
  void check_objects(const image::ImageMetadata& metadata) {
    const image::Layout& layout = metadata.layout;
    for (uint32_t i = 0; i < layout.stripe_count(); ++i) {
      bool known = false;
      Status whole(Code::kCorruption, "data object " + std::to_string(i) + " is missing");
      for (const std::string& brick : target_.bricks) {
        auto bytes = env_.files().read_file(brick + "/" + std::string(image::kMarkerName));
        auto marker = bytes ? image::decode_marker(*bytes) : Result<image::BrickMarker>(bytes.status());
        known = known || (marker && marker->brick == layout.bricks()[i]);
        if (!marker || marker->brick != layout.bricks()[i]) continue;
        const std::string path = image::object_path(brick, metadata.id, layout.generation(), i);
        whole = image::detail::check_object(metadata, i, path, env_.files().stat(path));
      }
      if (known && !whole) found(metadata.id.to_string(), whole.message(), object_remedy(metadata.id));
    }
  }

  std::string object_remedy(const ImageId& id) const {
    if (target_.role == "host" && dirty_known_ && flags_known_ && !unlevel_.contains(id))
      return "the daemon serves the shared copy, and fills this one anew";
    if (target_.role == "host")
      return "bring the file back: this copy may have what the shared one lacks, and is not made anew while it may";
    return "bring the file back; else a host whose copy is whole goes on with it (copy the image to a new one there), or restore it";
  }

  io::Env& env_;
  FsckTarget target_;
  const bool repair_;
  std::string suffix_;
  std::vector<std::string> stores_, segments_;
  std::set<ImageId> unlevel_;            // of which the shared copy may lack writes
  std::set<ImageId> only_here_, named_;  // of which it does; that have a side file
  std::set<ImageId> kept_here_;          // by the shared node's catalogue
  bool dirty_known_ = false, flags_known_ = false, journal_sound_ = true;
  FsckReport out_;
};

}  // namespace

Result<FsckKind> fsck_kind(const std::string& directory) {
  std::error_code error;
  for (const std::string& of_a_brick :
       {directory + "/" + std::string(image::kMarkerName), image::objects_directory(directory)}) {
    if (fs::exists(of_a_brick, error)) return FsckKind::kBrick;
    if (error) return Status::from_errno(error.value(), of_a_brick);
  }
  fs::recursive_directory_iterator at(directory, error), end;
  for (; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name == "data.mdb" || name.ends_with(".seg")) return FsckKind::kState;
  }
  if (error) return Status::from_errno(error.value(), directory);
  return FsckKind::kNeither;
}

Result<FsckReport> fsck(io::Env& env, const FsckTarget& target, bool repair) { return Fsck(env, target, repair).run(); }

}  // namespace tidemark::cli
