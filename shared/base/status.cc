#include "shared/base/status.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tidemark {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kNotFound: return "not_found";
    case Code::kAlreadyExists: return "already_exists";
    case Code::kInvalidArgument: return "invalid_argument";
    case Code::kCorruption: return "corruption";
    case Code::kIoError: return "io_error";
    case Code::kOutOfSpace: return "out_of_space";
    case Code::kFenced: return "fenced";
    case Code::kBusy: return "busy";
    case Code::kUnavailable: return "unavailable";
    case Code::kCancelled: return "cancelled";
    case Code::kPermission: return "permission";
    case Code::kUnsupported: return "unsupported";
  }
  return "unknown";
}

Status Status::from_errno(int sys_errno, std::string what) {
  Code code = Code::kIoError;
  switch (sys_errno) {
    case ENOENT: code = Code::kNotFound; break;
    case EEXIST: case ENOTEMPTY: code = Code::kAlreadyExists; break;
    case EINVAL: case ENAMETOOLONG: case ENOTDIR: case EISDIR: case EFBIG: code = Code::kInvalidArgument; break;
    case ENOSPC: case EDQUOT: code = Code::kOutOfSpace; break;
    case EACCES: case EPERM: case EROFS: code = Code::kPermission; break;
    case EBUSY: code = Code::kBusy; break;
    case EOPNOTSUPP: case ENOSYS: code = Code::kUnsupported; break;
    case ECANCELED: code = Code::kCancelled; break;
    default: break;
  }
  Status status(code, std::move(what) + ": " + std::strerror(sys_errno));
  status.sys_errno_ = sys_errno;
  return status;
}

std::string Status::to_string() const {
  if (is_ok()) return "ok";
  return std::string(code_name(code_)) + ": " + message_;
}

Status Status::with_context(std::string_view context) const {
  Status out = *this;
  if (!is_ok()) out.message_ = std::string(context) + ": " + message_;
  return out;
}

int errno_of(const Status& status) {
  if (status.sys_errno() != 0) return status.sys_errno();
  switch (status.code()) {
    case Code::kOk: return 0;
    case Code::kNotFound: return ENOENT;
    case Code::kAlreadyExists: return EEXIST;
    case Code::kInvalidArgument: return EINVAL;
    case Code::kCorruption: return EIO;
    case Code::kIoError: return EIO;
    case Code::kOutOfSpace: return ENOSPC;
    case Code::kFenced: return EIO;
    case Code::kBusy: return EBUSY;
    case Code::kUnavailable: return EHOSTUNREACH;
    case Code::kCancelled: return ECANCELED;
    case Code::kPermission: return EACCES;
    case Code::kUnsupported: return EOPNOTSUPP;
  }
  return EIO;
}

int http_status_of(const Status& status) {
  switch (status.code()) {
    case Code::kOk: return 200;
    case Code::kNotFound: return 404;
    case Code::kAlreadyExists: return 409;
    case Code::kInvalidArgument: return 400;
    case Code::kCorruption: return 422;
    case Code::kOutOfSpace: return 507;
    case Code::kBusy: return 409;
    case Code::kFenced: return 409;
    case Code::kPermission: return 403;
    case Code::kUnsupported: return 501;
    case Code::kUnavailable: case Code::kCancelled: return 503;
    case Code::kIoError: return 500;
  }
  return 500;
}

// 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 found divergence (given by the
// commands that look for it, never from a Status), 5 unavailable, 6 busy.
int exit_code_of(const Status& status) {
  switch (status.code()) {
    case Code::kOk: return 0;
    case Code::kInvalidArgument: return 2;
    case Code::kNotFound: return 3;
    case Code::kUnavailable: return 5;
    case Code::kBusy: return 6;
    default: return 1;
  }
}

void check_failed(const char* cond, const char* what, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s (%s)\n", file, line, cond, what);
  std::abort();
}

}  // namespace tidemark
