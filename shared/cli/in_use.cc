#include "shared/cli/in_use.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "shared/kv/lmdb_check.h"

namespace tidemark::cli {
namespace {

Status held(const std::string& path) {
  return {Code::kBusy, path + " is in use: stop the daemon first; fsck works offline"};
}

}  // namespace

Result<daemon::PidFile> keep_daemon_away(const config::Node& node) {
  TM_RETURN_IF_ERROR(daemon::make_private_directory(node.run_dir));
  auto taken = daemon::PidFile::take(node.run_dir + "/" + node.name + ".pid");
  if (!taken) return taken.status().with_context("the daemon must be stopped first");
  return taken;
}

Status store_is_free(const std::string& directory) {
  return kv::is_open_elsewhere(directory) ? held(directory) : Status::ok();
}

Status object_is_free(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Status::ok();       // said when it is looked at
  bool taken = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  ::close(fd);
  return taken || errno != EWOULDBLOCK ? Status::ok() : held(path);
}

}  // namespace tidemark::cli
