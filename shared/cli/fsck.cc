#include "shared/cli/fsck.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "journal/inspect.h"
#include "journal/outdated.h"
#include "journal/records.h"
#include "journal/segment.h"
#include "shared/image/side_file.h"
#include "shared/kv/lmdb_check.h"
#include "shared/kv/store.h"

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

Status held(const std::string& path) {
  return {Code::kBusy, path + " is in use: stop the daemon first; fsck works offline"};
}

// LMDB keeps a lock on the first byte of its lock file while the store is open.
Status store_is_free(const std::string& directory) {
  const std::string path = directory + "/lock.mdb";
  int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return Status::ok();
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  int rc = ::fcntl(fd, F_GETLK, &lock);
  ::close(fd);
  return rc == 0 && lock.l_type != F_UNLCK ? held(directory) : Status::ok();
}

Status object_is_free(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Status::ok();       // said when it is looked at
  bool taken = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  ::close(fd);
  return taken || errno != EWOULDBLOCK ? Status::ok() : held(path);
}

class Fsck {
 public:
  Fsck(io::Env& env, const FsckTarget& target, bool repair) : env_(env), target_(target), repair_(repair) {
    suffix_ = ".damaged-" + std::to_string(env.wall().ns / 1'000'000'000);
  }

  Result<FsckReport> run() {
    TM_RETURN_IF_ERROR(find());
    if (target_.role.empty()) guess_role();
    for (const std::string& store : stores_) TM_RETURN_IF_ERROR(check_one_store(store));
    if (journal_sound_ && fs::exists(target_.state + "/journal")) check_journal();
    for (const std::string& path : segments_) check_segment(path);
    if (!target_.state.empty()) check_mark(target_.state + "/journal-outdated");
    for (const std::string& brick : target_.bricks) check_brick(brick);
    if (needs_mark_) TM_RETURN_IF_ERROR(mark_outdated());
    return std::move(out_);
  }

 private:
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
        if (at->is_directory() && name.find(".damaged-") != std::string::npos) at.disable_recursion_pending();
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

  void guess_role() {
    auto has = [&](const char* name) { return !target_.state.empty() && fs::exists(target_.state + "/" + name); };
    target_.role = has("names") ? "host" : has("catalogue") ? "shared" : has("replica") || has("store") ? "replica" : "";
  }

  // ---- stores
  Status check_one_store(const std::string& directory) {
    std::map<std::string, std::vector<std::pair<Bytes, Bytes>>> entries;
    const Rebuild* plan = nullptr;
    for (const Rebuild& r : rebuilds())
      if (target_.role == "host" && directory == target_.state + "/" + r.store) plan = &r;
    kv::StoreEntry keep = [&](const std::string& table, ByteSpan key, ByteSpan value) {
      if (plan != nullptr) entries[table].emplace_back(Bytes(key.begin(), key.end()), Bytes(value.begin(), value.end()));
      if (plan != nullptr && plan->store == "names" && table == "flag") flag(key, value);
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
      remedy = "written anew from what is sound" +
               std::string(plan->outdated ? "; the next start compares every region, and the replica is sent all of them" : "") +
               "; the damaged one is " + directory + suffix_;
      needs_mark_ = needs_mark_ || plan->outdated;
    }
    found(directory, first, remedy, repair_);
    return Status::ok();
  }

  // A host's note of an image (Flag of fs/engine.h). All but "behind the shared copy": that may not be the whole one.
  void flag(ByteSpan key, ByteSpan value) {
    constexpr uint8_t kBehind = 1, kPartial = 16;
    if (key.size() == 16 && !value.empty() && (value[0] & ~(kBehind | kPartial)) != 0) unlevel_.insert(Reader(key).uuid());
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

  // The sound entries into a new store beside, which then takes the name.
  Status rebuild(const std::string& directory, const Rebuild& plan, const kv::StoreCheck& check,
                 const std::map<std::string, std::vector<std::pair<Bytes, Bytes>>>& entries) {
    const std::string fresh = directory + ".rebuilt";
    std::error_code error;
    fs::remove_all(fresh, error);        // of a run that was cut off
    if (error) return Status::from_errno(error.value(), fresh);
    std::set<std::string> dropped = check.damaged_tables;
    if (dropped.contains("records") || dropped.contains("slots")) dropped.insert({"records", "slots"});   // one explains the other
    {
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
    }
    TM_RETURN_IF_ERROR(env_.files().rename(directory, directory + suffix_));
    TM_RETURN_IF_ERROR(env_.files().rename(fresh, directory));
    return env_.files().sync_directory(fs::path(directory).parent_path().string());
  }

  Status mark_outdated() {
    std::vector<std::string> places{target_.state};
    places.insert(places.end(), target_.bricks.begin(), target_.bricks.end());
    for (const std::string& place : places) {
      TM_RETURN_IF_ERROR(env_.files().write_file_atomically(place + "/journal-outdated", journal::outdated_block(true)));
    }
    return Status::ok();
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
      check_side_file(at->path().string(), *parsed.id);
    }
    const bool none_yet = error == std::errc::no_such_file_or_directory;   // no image was ever made here
    if (error && !none_yet) found(image::objects_directory(brick), error.message(), "see to its file system");
    if (target_.bricks.size() != 1) return;   // the side file may be on another brick
    for (const auto& [id, count] : objects)
      if (!named.contains(id)) out_.notes.push_back(brick + ": objects of " + id.to_string() + ", which no side file names: left by an interrupted create or remove");
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

  // Of bricks that are all given: each object is there and as long as the side file says.
  void check_objects(const image::ImageMetadata& metadata) {
    const image::Layout& layout = metadata.layout;
    for (uint32_t i = 0; i < layout.stripe_count(); ++i) {
      bool there = false, known = false;
      for (const std::string& brick : target_.bricks) {
        auto bytes = env_.files().read_file(brick + "/" + std::string(image::kMarkerName));
        auto marker = bytes ? image::decode_marker(*bytes) : Result<image::BrickMarker>(bytes.status());
        known = known || (marker && marker->brick == layout.bricks()[i]);
        if (!marker || marker->brick != layout.bricks()[i]) continue;
        there = env_.files().stat(image::object_path(brick, metadata.id, layout.generation(), i)).is_ok();
      }
      if (known && !there)
        found(metadata.id.to_string(), "data object " + std::to_string(i) + " is missing",
              "the daemon serves the other copy; it fills this one anew when the side file is moved away");
    }
  }

  io::Env& env_;
  FsckTarget target_;
  const bool repair_;
  std::string suffix_;
  std::vector<std::string> stores_, segments_;
  std::set<ImageId> unlevel_;            // of which the shared copy may lack writes
  bool dirty_known_ = false, flags_known_ = false, journal_sound_ = true, needs_mark_ = false;
  FsckReport out_;
};

}  // namespace

FsckKind fsck_kind(const std::string& directory) {
  if (fs::exists(directory + "/" + std::string(image::kMarkerName)) || fs::exists(image::objects_directory(directory)))
    return FsckKind::kBrick;
  std::error_code error;
  fs::recursive_directory_iterator at(directory, error), end;
  for (; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name == "data.mdb" || name.ends_with(".seg")) return FsckKind::kState;
  }
  return FsckKind::kNeither;
}

Result<FsckReport> fsck(io::Env& env, const FsckTarget& target, bool repair) { return Fsck(env, target, repair).run(); }

}  // namespace tidemark::cli
