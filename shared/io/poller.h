// Readiness of file descriptors on the loop thread: for the shells that own sockets and /dev/fuse.
// RealEnv implements it; the simulated Env has none, since no simulated code owns a descriptor.
#pragma once

#include <cstdint>

#include "shared/base/function.h"
#include "shared/base/status.h"

namespace tidemark::io {

class Poller {
 public:
  // The EPOLL* bits that are ready (EPOLLERR and EPOLLHUP come unasked).
  using FdCallback = UniqueFunction<void(uint32_t events)>;
  virtual ~Poller() = default;

  // Watches `fd` for `events` (EPOLLIN, EPOLLOUT, EPOLLET... of <sys/epoll.h>; level-triggered
  // unless EPOLLET is given). One watch a descriptor. The callback may remove or modify any watch,
  // its own included; after remove_fd it is not called again, even for events already collected.
  // Call remove_fd before closing the descriptor. Loop thread only.
  virtual Status add_fd(int fd, uint32_t events, FdCallback callback) = 0;
  virtual Status modify_fd(int fd, uint32_t events) = 0;
  virtual void remove_fd(int fd) = 0;
};

}  // namespace tidemark::io
