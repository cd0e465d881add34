// Poller: readiness of file descriptors on an Env's loop thread. For the thin shells beneath the
// Env's seams (sockets of shared/net, /dev/fuse, unix sockets); code above the Env never uses it.
#pragma once

#include <cstdint>

#include "shared/base/function.h"
#include "shared/base/status.h"

namespace tidemark::io {

class Poller {
 public:
  virtual ~Poller() = default;
  // Level-triggered. `events` are EPOLL* bits; EPOLLERR and EPOLLHUP are always reported. The callback
  // runs on the loop thread with the ready bits. The descriptor stays the caller's: remove, then close.
  virtual Status add_fd(int fd, uint32_t events, UniqueFunction<void(uint32_t)> ready) = 0;
  virtual Status modify_fd(int fd, uint32_t events) = 0;
  // No callback of `fd` runs after this, not even for events already collected in this turn. May be
  // called from within the callback itself, which is then destroyed once it has returned.
  virtual void remove_fd(int fd) = 0;
};

}  // namespace tidemark::io
