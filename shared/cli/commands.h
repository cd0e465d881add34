// The verbs of `tidemark`. Each gives its exit code, or a Status that becomes a line on standard error
// and exit_code_of().
#pragma once

#include <string>
#include <vector>

#include "shared/base/status.h"
#include "shared/cli/context.h"
#include "shared/state/identity.h"

namespace tidemark::cli {

using Outcome = Result<int>;

Outcome show_status(Context& context);

struct MarkOptions { std::string name; bool wait = false; int timeout_s = 60; };
Outcome mark(Context& context, const MarkOptions& options);

struct VerifyOptions { std::vector<std::string> images; };
Outcome verify(Context& context, const VerifyOptions& options);
// Of a verify job's result: 0 equal, kExitDivergence otherwise.
int verify_exit_code(const Json& result);
std::string verify_text(const Json& result);
std::string mark_text(const Json& answer);
struct ScrubOptions { std::vector<std::string> images; bool all = false, trust_replica = false, stop = false; std::string rate = "100MiB"; };
Outcome scrub(Context& context, const ScrubOptions& options);
std::string scrub_text(const Json& result);
std::string status_text(const Json& status);
std::string replica_status_text(const Json& status);

struct CreateOptions { std::string name, size, format; };
Outcome image_create(Context& context, const CreateOptions& options);
Outcome image_list(Context& context);
// An extended attribute of a file in a mount, or of what a link there stands for; empty if it has none.
std::string image_attribute(const std::string& path, const char* name);
// Every image file below a mount, by path: path, uuid, size, allocated, mirror policy.
Result<Json> mounted_images(const std::string& mount);
struct InfoOptions { std::string image, input_format = "auto"; };
Outcome image_info(Context& context, const InfoOptions& options);
struct ResizeOptions { std::string image, size, input_format = "auto"; bool shrink = false; };
Outcome image_resize(Context& context, const ResizeOptions& options);
struct ImportOptions { std::string file, name, input_format = "auto", format; bool force = false; };
Outcome image_import(Context& context, const ImportOptions& options);
struct ExportOptions { std::string image, output, input_format = "auto", format; bool force = false; };
Outcome image_export(Context& context, const ExportOptions& options);
struct RemoveOptions { std::string image; bool force = false, dry_run = false; };
Outcome image_remove(Context& context, const RemoveOptions& options);
// What is left of an image once it is removed, by its host's status.
struct Kept {
  bool by_replica = false;   // one is configured
  Json json;
  std::string text;
};
Kept kept_by_replica(const Json& host_status, const std::string& uuid);

struct TakeoverOptions { std::vector<std::string> images; std::string host; bool force = false, accept_loss = false, dry_run = false; };
Outcome image_takeover(Context& context, const TakeoverOptions& options);
std::string takeover_text(const Json& report);
Outcome image_branches(Context& context);
Outcome brick_list(Context& context);
Outcome brick_replace(Context& context, const std::string& directory, bool accept_loss);
Outcome image_abort(Context& context, const std::string& image);

Outcome replica_status(Context& context);
Outcome replica_images(Context& context, const std::string& at);
struct PointsOptions { std::string image; uint64_t after = 0, count = 50; };
Outcome replica_points(Context& context, const PointsOptions& options);
struct PointExportOptions { std::string image, at = "latest", output; bool force = false; };
Outcome replica_export(Context& context, const PointExportOptions& options);
struct RestoreOptions { std::string image, at, as; bool force = false, dry_run = false; };
Outcome replica_restore(Context& context, const RestoreOptions& options);

struct InspectOptions { std::string directory; uint64_t records = 20; };
Outcome journal_inspect(Context& context, const InspectOptions& options);
Outcome journal_pause(Context& context, bool paused);
// Tells from one status to the next whether a resync that was asked for has ended. A daemon that is started anew
// meanwhile goes on with it, and counts those that ended from 0.
class ResyncWatch {
 public:
  explicit ResyncWatch(const Json& status_before);
  bool ended(const Json& status);

 private:
  std::string run_;             // of the daemon
  uint64_t ended_before_ = 0;
  bool restarted_ = false;
  uint64_t last_batch_ = 0;     // of a daemon started anew: closed when nothing was lacking any more; 0: not yet
};
// Brings an emptied or replaced replica level; with `wait`, until it is.
Outcome journal_resync(Context& context, bool wait);

// Replaces the daemon by the program on disk, under its guests, and waits until the new one serves.
Outcome host_restart(Context& context);
// Certificate, configuration and directories of another host, after that of --config.
struct HostAddOptions {
  std::string name, authority, output = ".", mount, state, run;
  std::vector<std::string> bricks, names;
  int days = 825;
  bool elsewhere = false;
};
Outcome host_add(Context& context, HostAddOptions options);

struct FsckOptions { std::vector<std::string> directories; bool repair = false; };
Outcome fsck_command(Context& context, const FsckOptions& options);

struct PkiInitOptions { std::string directory, cluster; int days = 3650; bool force = false; };
Outcome pki_init(Context& context, const PkiInitOptions& options);
struct PkiIssueOptions {
  std::string node, role = "host", directory, output;
  std::vector<std::string> names;
  int days = 825;
  std::string not_before, not_after;   // RFC 3339; empty: two days ago, and `days` from now
  bool force = false;
};
Outcome pki_issue(Context& context, const PkiIssueOptions& options);
struct PkiRevokeOptions { std::string certificate, directory; bool dry_run = false; };
Outcome pki_revoke(Context& context, const PkiRevokeOptions& options);
Outcome pki_show(Context& context, const std::vector<std::string>& files);

// The configured node's, for look() and judge() of shared/state; its cluster is nil if its certificate cannot be read.
Result<state::Spec> state_spec(Context& context);
// Whether the stores of a node's state are there and its own; exit code 1 if not.
Outcome state_show(Context& context);
// Sets the state of a node whose stores are lost aside, for it to begin anew.
struct StateResetOptions { bool dry_run = false, force = false; };
Outcome state_reset(Context& context, const StateResetOptions& options);

// Has a shared node whose catalogue was lost make it anew from its hosts, and from its bricks or theirs.
struct RebuildOptions {
  std::vector<std::string> hosts;
  bool without_bricks = false, without_replica = false, without_witness = false, dry_run = false, force = false;
};
Outcome shared_rebuild(Context& context, const RebuildOptions& options);

Outcome config_check(Context& context, const std::vector<std::string>& files);

// The whole program: parses, runs, prints errors, gives the exit code.
int run(int argc, char** argv);

}  // namespace tidemark::cli
