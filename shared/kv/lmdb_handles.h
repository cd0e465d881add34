// LMDB's handles owned, its values and return codes as the project's. For `.cc` files of this folder.
#pragma once

#include <lmdb.h>

#include <memory>
#include <string>

#include "shared/base/bytes.h"
#include "shared/base/status.h"

namespace tidemark::kv::lmdb {

struct CloseCursor { void operator()(MDB_cursor* c) const { mdb_cursor_close(c); } };
using CursorHandle = std::unique_ptr<MDB_cursor, CloseCursor>;
struct CloseEnv { void operator()(MDB_env* e) const { mdb_env_close(e); } };
using EnvHandle = std::unique_ptr<MDB_env, CloseEnv>;

inline MDB_val to_val(ByteSpan b) { return {b.size(), const_cast<uint8_t*>(b.data())}; }
inline ByteSpan to_span(const MDB_val& v) { return {static_cast<const uint8_t*>(v.mv_data), v.mv_size}; }

// Of an LMDB return code, or an errno: `what` says what was tried.
Status to_status(int rc, const std::string& what);

}  // namespace tidemark::kv::lmdb
