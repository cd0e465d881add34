// The command line of `tidemark`: nouns, verbs, options, exit codes. The only place that knows CLI11.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string_view>

#include "shared/base/log.h"
#include "shared/base/version.h"
#include "shared/cli/commands.h"
#include "shared/cli/output.h"

namespace tidemark::cli {
namespace {

const char* const kFooter =
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 found divergence\n"
    "(verify, scrub), 5 unavailable (a daemon is not running, a link is down), 6 busy (another host holds it).\n"
    "IMAGE is a path in the mount, relative to it or absolute, or a UUID. POINT is a recovery point's id,\n"
    "its name, latest, or a time such as 2026-11-21T10:00:05Z (the newest point labelled not later; for export\n"
    "and restore of these the newest that shows nothing of the image labelled later).";

constexpr const char* kInputFormats = "what the image is: auto (a VHD if it has a VHD's footer), raw or vpc";

struct Words {   // what the command line said
  Global global;
  MarkOptions mark;
  VerifyOptions verify;
  ScrubOptions scrub;
  CreateOptions create;
  InfoOptions info;
  ResizeOptions resize;
  ImportOptions import;
  ExportOptions export_image;
  TakeoverOptions takeover;
  std::string abort_image, brick;
  bool accept_loss = false;
  RemoveOptions remove;
  std::string images_at = "latest";
  PointsOptions points;
  PointExportOptions point_export;
  RestoreOptions restore;
  InspectOptions inspect;
  FsckOptions fsck;
  bool resync_wait = false;
  StateResetOptions state_reset;
  RebuildOptions rebuild;
  HostAddOptions host_add;
  PkiInitOptions init;
  PkiIssueOptions issue;
  PkiRevokeOptions revoke;
  std::vector<std::string> show_files, check_files;
  std::function<Outcome(Context&)> chosen;
};

CLI::App* verb(CLI::App& noun, Words& w, const std::string& name, const std::string& what,
               std::function<Outcome(Context&)> run) {
  CLI::App* sub = noun.add_subcommand(name, what);
  sub->fallthrough();
  sub->callback([&w, run = std::move(run)] { w.chosen = run; });
  return sub;
}

CLI::App* noun(CLI::App& app, const std::string& name, const std::string& what) {
  CLI::App* sub = app.add_subcommand(name, what);
  sub->require_subcommand(1);
  sub->fallthrough();
  return sub;
}

void add_daemon_verbs(CLI::App& app, Words& w) {
  verb(app, w, "status", "Show the node, its images, mirror, journal and recovery point age",
       [](Context& c) { return show_status(c); });
  auto* m = verb(app, w, "mark", "Cut the journal now: a recovery point", [&w](Context& c) { return mark(c, w.mark); });
  m->add_option("--name", w.mark.name, "name of the recovery point");
  m->add_flag("--wait", w.mark.wait, "return when the replica has it durable, and print the point");
  m->add_option("--timeout", w.mark.timeout_s, "seconds that --wait waits")->check(CLI::Range(1, 3600))->capture_default_str();
  auto* v = verb(app, w, "verify", "Reread every copy of the images and compare; exit code 4 unless all are equal",
                 [&w](Context& c) { return verify(c, w.verify); });
  v->add_option("IMAGE", w.verify.images, "images; none: all");
  auto* s = verb(app, w, "scrub", "Compare both copies of every block and repair the one that has rotted; exit code 4 when "
                 "nothing tells which one", [&w](Context& c) { return scrub(c, w.scrub); });
  s->add_option("IMAGE", w.scrub.images, "images");
  s->add_flag("--all", w.scrub.all, "all images");
  s->add_option("--rate", w.scrub.rate, "bytes a second that are read of each copy; 0: no limit")->capture_default_str();
  s->add_flag("--trust-replica", w.scrub.trust_replica,
              "where nothing else tells, the copy that the replica's newest point agrees with is right");
  s->add_flag("--stop", w.scrub.stop, "end the scrub that is running, which then exits with 1");
}

void add_image_verbs(CLI::App& app, Words& w) {
  CLI::App& image = *noun(app, "image", "Images in the mount");
  auto* create = verb(image, w, "create", "Make an empty image", [&w](Context& c) { return image_create(c, w.create); });
  create->add_option("NAME", w.create.name, "path in the mount; .vhd makes a fixed VHD, anything else a raw disk")->required();
  create->add_option("SIZE", w.create.size, "size of the disk, such as 10GiB (K, KB and KiB are all 1024)")->required();
  create->add_option("--format", w.create.format, "raw, fixed or dynamic instead");
  verb(image, w, "list", "List the images", [](Context& c) { return image_list(c); });
  auto* info = verb(image, w, "info", "Show an image file's format and sizes", [&w](Context& c) { return image_info(c, w.info); });
  info->add_option("IMAGE", w.info.image, "an image in the mount, or any image file")->required();
  info->add_option("--input-format", w.info.input_format, kInputFormats)->capture_default_str();
  auto* resize = verb(image, w, "resize", "Change an image's size", [&w](Context& c) { return image_resize(c, w.resize); });
  resize->add_option("IMAGE", w.resize.image, "image")->required();
  resize->add_option("SIZE", w.resize.size, "new size of the disk")->required();
  resize->add_option("--input-format", w.resize.input_format, kInputFormats)->capture_default_str();
  resize->add_flag("--shrink", w.resize.shrink, "allow a smaller size; what lies beyond is lost");
  auto* import = verb(image, w, "import", "Copy an image file into the mount, thin",
                      [&w](Context& c) { return image_import(c, w.import); });
  import->add_option("FILE", w.import.file, "raw, fixed or dynamic VHD file")->required();
  import->add_option("NAME", w.import.name, "path in the mount; left out: the file's name");
  import->add_option("--input-format", w.import.input_format, kInputFormats)->capture_default_str();
  import->add_option("--format", w.import.format, "raw or fixed; left out: by the name");
  import->add_flag("--force", w.import.force, "replace an image of that name");
  auto* ex = verb(image, w, "export", "Copy an image of the mount to a file", [&w](Context& c) { return image_export(c, w.export_image); });
  ex->add_option("IMAGE", w.export_image.image, "image")->required();
  ex->add_option("--input-format", w.export_image.input_format, kInputFormats)->capture_default_str();
  ex->add_option("-o,--output", w.export_image.output, "file to write")->required();
  ex->add_option("--format", w.export_image.format, "raw, fixed or dynamic; left out: by the file's name");
  ex->add_flag("--force", w.export_image.force, "replace the file");
  auto* remove = verb(image, w, "remove", "Remove an image from every copy, and say what the replica keeps of it",
                      [&w](Context& c) { return image_remove(c, w.remove); });
  remove->add_option("IMAGE", w.remove.image, "image")->required();
  remove->add_flag("--force", w.remove.force, "also where no replica is configured: it is gone for good");
  remove->add_flag("--dry-run", w.remove.dry_run, "only say what would be removed, and what is left of it");
  auto* takeover = verb(image, w, "takeover", "Take images from a host that is gone, by force",
                        [&w](Context& c) { return image_takeover(c, w.takeover); });
  takeover->add_option("IMAGE", w.takeover.images, "images");
  takeover->add_option("--host", w.takeover.host, "all images that this host holds");
  takeover->add_flag("--force", w.takeover.force, "the holder loses them without its word; if it lives, it may write on alone");
  takeover->add_flag("--accept-loss", w.takeover.accept_loss, "also where the shared copy is known to lack acknowledged writes");
  takeover->add_flag("--dry-run", w.takeover.dry_run, "only show what would happen");
  auto* abort = verb(image, w, "abort", "End the waiting of an image's requests, with EIO",
                     [&w](Context& c) { return image_abort(c, w.abort_image); });
  abort->add_option("IMAGE", w.abort_image, "image")->required();
  verb(image, w, "branches", "List what this host wrote and lost to a takeover", [](Context& c) { return image_branches(c); });
}

void add_brick_verbs(CLI::App& app, Words& w) {
  CLI::App& brick = *noun(app, "brick", "The directories that hold this node's copies");
  verb(brick, w, "list", "List the bricks, and which are missing", [](Context& c) { return brick_list(c); });
  auto* replace = verb(brick, w, "replace", "Take an empty directory in the place of a host's brick that is gone",
                       [&w](Context& c) { return brick_replace(c, w.brick, w.accept_loss); });
  replace->add_option("DIRECTORY", w.brick, "as in [storage] bricks")->required();
  replace->add_flag("--accept-loss", w.accept_loss, "give up what only the old brick had");
}

void add_replica_verbs(CLI::App& app, Words& w) {
  CLI::App& replica = *noun(app, "replica", "The off-site replica's history");
  verb(replica, w, "status", "Show what the replica has, what it holds back and why", [](Context& c) { return replica_status(c); });
  auto* images = verb(replica, w, "images", "Show the tree of images at a point", [&w](Context& c) { return replica_images(c, w.images_at); });
  images->add_option("--at", w.images_at, "recovery point")->capture_default_str();
  auto* points = verb(replica, w, "points", "List recovery points", [&w](Context& c) { return replica_points(c, w.points); });
  points->add_option("IMAGE", w.points.image, "only points that touch this image");
  points->add_option("--after", w.points.after, "only points after this id");
  points->add_option("--count", w.points.count, "the newest so many; 0 for all")->capture_default_str();
  auto* ex = verb(replica, w, "export", "Copy an image as it was at a point to a file; resumes a broken transfer of the same point",
                  [&w](Context& c) { return replica_export(c, w.point_export); });
  ex->add_option("IMAGE", w.point_export.image, "image")->required();
  ex->add_option("--at", w.point_export.at, "recovery point")->capture_default_str();
  ex->add_option("-o,--output", w.point_export.output, "file to write")->required();
  ex->add_flag("--force", w.point_export.force, "replace the file");
  auto* restore = verb(replica, w, "restore", "Bring an image as it was at a point back into the mount",
                       [&w](Context& c) { return replica_restore(c, w.restore); });
  restore->add_option("IMAGE", w.restore.image, "image")->required();
  restore->add_option("--at", w.restore.at, "recovery point")->required();
  restore->add_option("--as", w.restore.as, "path in the mount; left out: the name it had at the point");
  restore->add_flag("--force", w.restore.force, "replace an image of that name");
  restore->add_flag("--dry-run", w.restore.dry_run, "only say what would be done and what came after the point");
}

void add_admin_verbs(CLI::App& app, Words& w) {
  CLI::App& host = *noun(app, "host", "This host's daemon");
  verb(host, w, "restart", "Replace the daemon by the program on disk; guests only wait a moment",
       [](Context& c) { return host_restart(c); });
  auto* add = verb(host, w, "add", "Make another host: its certificate, configuration and directories, after this one's",
                   [&w](Context& c) { return host_add(c, w.host_add); });
  add->add_option("NAME", w.host_add.name, "the new host's name")->required();
  add->add_option("--dir", w.host_add.authority, "the authority's directory")->required();
  add->add_option("--brick", w.host_add.bricks, "a directory for its copies; may be repeated")->required();
  add->add_option("--mount", w.host_add.mount, "its mount point")->required();
  add->add_option("--out", w.host_add.output, "directory for NAME.toml, NAME.pem and NAME.key")->capture_default_str();
  add->add_option("--state", w.host_add.state, "its state directory; left out: /var/lib/tidemark/NAME");
  add->add_option("--run", w.host_add.run, "its run directory; left out: /run/tidemark/NAME");
  add->add_option("--san", w.host_add.names, "a DNS name or address that it is reached by; may be repeated");
  add->add_option("--days", w.host_add.days, "validity of the certificate")->check(CLI::Range(1, 36500))->capture_default_str();
  add->add_flag("--elsewhere", w.host_add.elsewhere, "for another machine: its directories are neither looked at nor made here");
  CLI::App& journal = *noun(app, "journal", "The write journal and its shipping");
  auto* inspect = verb(journal, w, "inspect", "Show batches and the newest records", [&w](Context& c) { return journal_inspect(c, w.inspect); });
  inspect->add_option("--dir", w.inspect.directory, "a state directory; left out: that of --config");
  inspect->add_option("--records", w.inspect.records, "number of records")->check(CLI::Range(0, 100000))->capture_default_str();
  verb(journal, w, "pause-shipping", "Stop staging and shipping; cuts go on", [](Context& c) { return journal_pause(c, true); });
  verb(journal, w, "resume-shipping", "Go on shipping", [](Context& c) { return journal_pause(c, false); });
  auto* resync = verb(journal, w, "resync-replica", "Send an emptied or replaced replica all that this node answers for",
                      [&w](Context& c) { return journal_resync(c, w.resync_wait); });
  resync->add_flag("--wait", w.resync_wait, "show progress until the replica is level");

  auto* fsck = verb(app, w, "fsck", "Check the state and the bricks of a stopped daemon; exit codes as fsck(8): 0 sound, "
                    "1 repaired, 4 damage is left, 8 could not check", [&w](Context& c) { return fsck_command(c, w.fsck); });
  fsck->add_option("DIR", w.fsck.directories, "state directories and bricks; none: those of --config");
  fsck->add_flag("--repair", w.fsck.repair, "mend what can be mended without losing a block");

  CLI::App& pki = *noun(app, "pki", "The cluster's certificates");
  auto* init = verb(pki, w, "init", "Make the cluster's authority", [&w](Context& c) { return pki_init(c, w.init); });
  init->add_option("--dir,DIRECTORY", w.init.directory, "where ca.pem and ca.key go")->required();
  init->add_option("--cluster", w.init.cluster, "the cluster's UUID; left out: a new one");
  init->add_option("--days", w.init.days, "validity")->check(CLI::Range(1, 36500))->capture_default_str();
  init->add_flag("--force", w.init.force, "replace an authority: all certificates it issued become worthless");
  auto* issue = verb(pki, w, "issue", "Make a node's certificate and key", [&w](Context& c) { return pki_issue(c, w.issue); });
  issue->add_option("NODE", w.issue.node, "the node's name")->required();
  issue->add_option("--role", w.issue.role, "host, shared, replica, witness or operator")->capture_default_str();
  issue->add_option("--dir", w.issue.directory, "the authority's directory")->required();
  issue->add_option("--san", w.issue.names, "a DNS name or address that the node is reached by; may be repeated");
  issue->add_option("--out", w.issue.output, "directory for NODE.pem and NODE.key; left out: the authority's");
  issue->add_option("--days", w.issue.days, "validity")->check(CLI::Range(1, 36500))->capture_default_str();
  issue->add_option("--not-before", w.issue.not_before, "valid from this time on; left out: two days ago");
  issue->add_option("--not-after", w.issue.not_after, "valid until this time, instead of --days");
  issue->add_flag("--force", w.issue.force, "replace the node's pair");
  auto* revoke = verb(pki, w, "revoke", "Make a certificate count no longer: write the list that nodes are given",
                      [&w](Context& c) { return pki_revoke(c, w.revoke); });
  revoke->add_option("CERTIFICATE", w.revoke.certificate, "its PEM file, or a node's name: NODE.pem in --dir")->required();
  revoke->add_option("--dir", w.revoke.directory, "the authority's directory")->required();
  revoke->add_flag("--dry-run", w.revoke.dry_run, "say whose certificate it is, and write nothing");
  auto* show = verb(pki, w, "show", "Show certificates", [&w](Context& c) { return pki_show(c, w.show_files); });
  show->add_option("FILE", w.show_files, "PEM files")->required();

  CLI::App& state = *noun(app, "state", "A node's state directory, while its daemon is stopped");
  verb(state, w, "show", "Show whether its stores are there and its own; exit code 1 if not", [](Context& c) { return state_show(c); });
  auto* reset = verb(state, w, "reset", "Set a lost state aside: the node begins anew", [&w](Context& c) { return state_reset(c, w.state_reset); });
  reset->add_flag("--force", w.state_reset.force, "do it, for what it costs");
  reset->add_flag("--dry-run", w.state_reset.dry_run, "only show what would be moved, and what it costs");

  CLI::App& shared = *noun(app, "shared", "The shared node");
  auto* rebuild = verb(shared, w, "rebuild", "Make a lost catalogue anew from the hosts and bricks, under load",
                       [&w](Context& c) { return shared_rebuild(c, w.rebuild); });
  rebuild->add_option("--hosts", w.rebuild.hosts, "all hosts of the cluster that are still there, with commas")->required();
  rebuild->add_flag("--without-bricks", w.rebuild.without_bricks, "set what lies on the bricks aside, too: the hosts' copies count");
  rebuild->add_flag("--without-replica", w.rebuild.without_replica, "do not ask the replica for the epochs that it has");
  rebuild->add_flag("--without-witness", w.rebuild.without_witness, "nor the witness for those that it has recorded");
  rebuild->add_flag("--force", w.rebuild.force, "what a host knows that is not named is lost");
  rebuild->add_flag("--dry-run", w.rebuild.dry_run, "only show what would be done");

  CLI::App& config = *noun(app, "config", "Configuration files");
  auto* check = verb(config, w, "check", "Check configuration files", [&w](Context& c) { return config_check(c, w.check_files); });
  check->add_option("FILE", w.check_files, "files; none: that of --config");
  verb(app, w, "version", "Print the version", [](Context& c) -> Outcome {
    c.result(Json{{"version", std::string(version())}}, "tidemark " + std::string(version()));
    return 0;
  });
}

int report(bool json, const Status& status) {
  if (json) {
    Json j{{"error", std::string(code_name(status.code()))}, {"message", status.message()}};
    std::fprintf(stderr, "%s\n", dump(j, -1).c_str());
  } else {
    std::fprintf(stderr, "tidemark: %s\n", printable(status.message()).c_str());
  }
  return exit_code_of(status);
}

// What is wrong with the words, and which help says more.
Status wrong_usage(const CLI::App& app, const CLI::ParseError& e) {
  const CLI::App* at = &app;
  std::string where = "tidemark";
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    where += " " + at->get_name();
  }
  std::string what = e.what();
  const auto verbs = at->get_subcommands([](const CLI::App*) { return true; });
  if (!verbs.empty()) {
    std::string known;
    for (const CLI::App* v : verbs) known += (known.empty() ? "" : ", ") + v->get_name();
    const auto unknown = app.remaining(true);
    what = (unknown.empty() ? "a command is missing" : "unknown command " + unknown.front()) + ": one of " + known;
  }
  return {Code::kInvalidArgument, what + ": see " + where + " --help"};
}

}  // namespace

int run(int argc, char** argv) {
  log::Options quiet;
  quiet.level = log::Level::kError;   // what goes wrong is said by the command itself
  log::configure(quiet);
  CLI::App app("Tidemark: virtual disks, mirrored, journaled, shipped off-site", "tidemark");
  Words w;
  app.require_subcommand(1);
  app.footer(kFooter);
  app.add_option("-c,--config", w.global.config_file, "configuration of a node; left out: /etc/tidemark/host.toml")
      ->envname("TIDEMARK_CONFIG")->type_name("FILE");
  app.add_flag("--json", w.global.json, "print one JSON document");
  app.add_flag("-q,--quiet", w.global.quiet, "no progress and no notes");
  app.set_version_flag("-V,--version", "tidemark " + std::string(version()));
  add_daemon_verbs(app, w);
  add_image_verbs(app, w);
  add_brick_verbs(app, w);
  add_replica_verbs(app, w);
  add_admin_verbs(app, w);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(e);
    bool json = false;   // the words were not all understood, but this one is
    for (int i = 1; i < argc; ++i) json = json || std::string_view(argv[i]) == "--json";
    return report(json, wrong_usage(app, e));
  }
  Context context(w.global);
  Outcome outcome = w.chosen(context);
  if (!outcome) return report(w.global.json, outcome.status());
  const Status printed = context.printed();
  const int unsaid = printed ? 0 : report(w.global.json, printed);
  return *outcome != 0 ? *outcome : unsaid;
}

}  // namespace tidemark::cli
