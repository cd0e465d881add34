#include "shared/kv/lmdb_handles.h"

namespace tidemark::kv::lmdb {

Status to_status(int rc, const std::string& what) {
  if (rc == 0) return Status::ok();
  std::string text = what + ": " + mdb_strerror(rc);
  switch (rc) {
    case MDB_NOTFOUND: return Status(Code::kNotFound, text);
    case MDB_MAP_FULL: return Status(Code::kOutOfSpace, text);
    case MDB_BAD_VALSIZE: return Status(Code::kInvalidArgument, text);
    case MDB_READERS_FULL: return Status(Code::kBusy, text);
    case MDB_CORRUPTED: case MDB_PAGE_NOTFOUND: case MDB_INVALID: case MDB_VERSION_MISMATCH:
      return Status(Code::kCorruption, text);
    default: break;
  }
  if (rc > 0) return Status::from_errno(rc, what);
  return Status(Code::kIoError, text);
}

}  // namespace tidemark::kv::lmdb
