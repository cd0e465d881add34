// LMDB reads its file through a map: a page that the disk cannot read, or that was cut off, is a SIGBUS, which the
// process does not outlive. While one of these is there, standard error says first which store it was.
#pragma once

#include <string>

namespace tidemark::kv::lmdb {

// Of one environment that is open. The thread that meets the fault must not have SIGBUS blocked.
class FaultWatch {
 public:
  // `directory`: its data.mdb is mapped. Of more stores than there is room for the last ones are not named.
  FaultWatch(const std::string& directory, size_t page_bytes);
  ~FaultWatch();
  FaultWatch(const FaultWatch&) = delete;
  FaultWatch& operator=(const FaultWatch&) = delete;

 private:
  struct Watched* watched_ = nullptr;
};

}  // namespace tidemark::kv::lmdb
