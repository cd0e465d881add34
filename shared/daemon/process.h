// What a daemon asks of its process: pid file, going to the background, systemd's notifications.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "shared/base/status.h"

namespace tidemark::daemon {

// A locked file that holds the process id; the lock goes with the process, however it ends.
class PidFile {
 public:
  PidFile() = default;
  ~PidFile();
  PidFile(PidFile&& o) noexcept : path_(std::move(o.path_)), fd_(o.fd_) { o.fd_ = -1; }
  PidFile& operator=(PidFile&& o) noexcept;
  // kBusy, with the other's id, when a live process holds it.
  static Result<PidFile> take(const std::string& path);
  // Waits for a process that is about to end to have gone; kBusy after `limit`.
  static Status wait_until_free(const std::string& path, std::chrono::milliseconds limit);

 private:
  void release();
  std::string path_;
  int fd_ = -1;
};

// The child's end of a fork for --background. In the parent, go_to_background() does not return: it exits
// with 0 when the child called ready(), else with the child's exit code.
class Background {
 public:
  Background() = default;
  ~Background();
  Background(Background&& o) noexcept : fd_(o.fd_) { o.fd_ = -1; }
  Background& operator=(Background&& o) noexcept;
  static Result<Background> enter();
  // Lets the parent go and gives up its terminal.
  void ready();

 private:
  int fd_ = -1;
};

// That the numeric `host` and `port` can be listened on now. Nothing is kept: the real listener follows.
Status probe_address(const std::string& host, uint16_t port);
bool log_goes_to_journald();   // standard error is the journal's own stream
void notify_systemd(const char* state);
void raise_descriptor_limit();
Status make_private_directory(const std::string& path);   // as mkdir -p, 0700

}  // namespace tidemark::daemon
