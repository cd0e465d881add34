// fsck: the command line of fsck.h.
#include <filesystem>

#include "shared/cli/commands.h"
#include "shared/cli/fsck.h"
#include "shared/cli/in_use.h"
#include "shared/cli/output.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"

namespace tidemark::cli {
namespace {

constexpr int kRepaired = 1, kDamageLeft = 4, kCouldNotCheck = 8;   // fsck(8)

Result<FsckTarget> target_of_config(Context& context) {
  TM_ASSIGN_OR_RETURN(std::string file, context.config_file());
  FsckTarget target;
  TM_ASSIGN_OR_RETURN(target.role, config::role_of(file));
  if (target.role == "host") {
    TM_ASSIGN_OR_RETURN(config::Host c, config::load_host(file));
    target.state = c.node.state_dir;
    target.bricks = c.storage.bricks;
    target.group = c.storage.group;
  } else if (target.role == "shared") {
    TM_ASSIGN_OR_RETURN(config::Shared c, config::load_shared(file));
    target.state = c.node.state_dir;
    target.bricks = c.storage.bricks;
    target.group = c.storage.group;
  } else {
    TM_ASSIGN_OR_RETURN(const NodeConfig* c, context.config());
    target.state = c->node.state_dir;
  }
  TM_ASSIGN_OR_RETURN(target.spec, state_spec(context));
  return target;
}

Result<FsckTarget> target_of_directories(const std::vector<std::string>& directories) {
  FsckTarget target;
  for (const std::string& given : directories) {
    std::error_code error;
    const std::string directory = std::filesystem::canonical(given, error).string();
    if (error) return Status::from_errno(error.value(), given);
    TM_ASSIGN_OR_RETURN(const FsckKind kind, fsck_kind(directory));
    switch (kind) {
      case FsckKind::kBrick: target.bricks.push_back(directory); break;
      case FsckKind::kState:
        if (!target.state.empty()) return Status(Code::kInvalidArgument, given + ": a second state directory: one daemon at a time");
        target.state = directory;
        break;
      case FsckKind::kNeither:
        return Status(Code::kInvalidArgument, given + " is neither a brick nor a state directory: it holds no store and no marker");
    }
  }
  return target;
}

std::string report_text(const FsckReport& report) {
  std::string out;
  for (const FsckFinding& f : report.findings)
    out += (f.fixed ? "REPAIRED " : "DAMAGED  ") + printable(f.path) + ": " + printable(f.what) + "\n         " + printable(f.remedy) + "\n";
  for (const std::string& note : report.notes) out += "note     " + printable(note) + "\n";
  return out + std::to_string(report.stores) + " stores with " + std::to_string(report.values) + " values, " +
         std::to_string(report.segments) + " segments, " + std::to_string(report.side_files) + " side files: " +
         (report.findings.empty() ? "sound" : std::to_string(report.findings.size()) + " damaged") + "\n";
}

}  // namespace

Outcome fsck_command(Context& context, const FsckOptions& o) {
  auto could_not = [&](const Status& status) -> Outcome {
    context.result(Json{{"error", std::string(code_name(status.code()))}, {"message", status.message()}},
                   "tidemark: " + printable(status.message()));
    return kCouldNotCheck;
  };
  auto target = o.directories.empty() ? target_of_config(context) : target_of_directories(o.directories);
  if (!target) return could_not(target.status());
  // A repair gives stores other names: no daemon may begin with them meanwhile.
  daemon::PidFile lock;
  std::error_code unknown;
  if (o.repair && o.directories.empty() && std::filesystem::is_directory(target->state, unknown)) {
    auto config = context.config();
    if (!config) return could_not(config.status());
    auto taken = keep_daemon_away((*config)->node);
    if (!taken) return could_not(taken.status());
    lock = std::move(*taken);
  }
  io::RealEnvOptions options;
  options.open_store = kv::open_lmdb_store;
  io::RealEnv env(std::move(options));
  auto report = fsck(env, *target, o.repair);
  if (!report) return could_not(report.status());
  Json findings = Json::array();
  bool left = false;
  for (const FsckFinding& f : report->findings) {
    left = left || !f.fixed;
    findings.push_back({{"path", f.path}, {"what", f.what}, {"remedy", f.remedy}, {"fixed", f.fixed}});
  }
  context.result(Json{{"role", target->role}, {"findings", findings}, {"notes", report->notes}, {"stores", report->stores},
                      {"values", report->values}, {"segments", report->segments}, {"side_files", report->side_files}},
                 report_text(*report));
  if (!context.printed()) return kCouldNotCheck;   // 1 would say that all is mended
  return left ? kDamageLeft : report->findings.empty() ? 0 : kRepaired;
}

}  // namespace tidemark::cli
