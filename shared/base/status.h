// Status and Result<T>: how every function that can fail says so.
//
// Few codes, and each is an action for the caller. A message names the file, line, key or image
// and what to do next. Exceptions do not cross a module's edge.
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace tidemark {

enum class Code {
  kOk,
  kNotFound,         // no such image, name, key, file
  kAlreadyExists,    // the name is taken
  kInvalidArgument,  // the caller's words are off; do not repeat
  kCorruption,       // bytes on disk or on the wire are not what their format says
  kIoError,          // the operating system refused; sys_errno() says how
  kOutOfSpace,       // no room; nothing was changed
  kFenced,           // this host's right to write has gone to another
  kBusy,             // another host holds the image; try again when it has released
  kUnavailable,      // try again later: link down, peer starting
  kCancelled,        // the operation was given up because its owner is closing
  kPermission,       // the peer or user may not do this
  kUnsupported,      // not offered here, for good
};

std::string_view code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok() { return {}; }
  // An operating system error; `sys_errno` is kept for errno_of().
  static Status from_errno(int sys_errno, std::string what);
  // As it was made elsewhere (a peer's failure): code, errno (0: none) and message are taken as they are.
  static Status with_errno(Code code, int sys_errno, std::string message) {
    Status status(code, std::move(message));
    status.sys_errno_ = sys_errno;
    return status;
  }

  bool is_ok() const { return code_ == Code::kOk; }
  explicit operator bool() const { return is_ok(); }
  Code code() const { return code_; }
  int sys_errno() const { return sys_errno_; }
  const std::string& message() const { return message_; }
  // "io_error: /path: No space left on device"
  std::string to_string() const;
  // The same code with `context: ` put before the message.
  Status with_context(std::string_view context) const;

 private:
  Code code_ = Code::kOk;
  int sys_errno_ = 0;
  std::string message_;
};

// The one place where a Status becomes an errno (for FUSE replies), an HTTP status and an exit code.
int errno_of(const Status& status);
int http_status_of(const Status& status);
int exit_code_of(const Status& status);

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) { assert(!status_.is_ok()); }  // NOLINT

  bool is_ok() const { return status_.is_ok(); }
  explicit operator bool() const { return is_ok(); }
  const Status& status() const { return status_; }
  T& value() & { assert(value_); return *value_; }
  const T& value() const& { assert(value_); return *value_; }
  T&& value() && { assert(value_); return std::move(*value_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

#define TM_CONCAT_INNER(a, b) a##b
#define TM_CONCAT(a, b) TM_CONCAT_INNER(a, b)
// Returns the Status of `expr` from the enclosing function if it is not OK.
#define TM_RETURN_IF_ERROR(expr)                      \
  do {                                                \
    if (::tidemark::Status tm_s = (expr); !tm_s) return tm_s; \
  } while (0)
// Declares `decl` from a Result, or returns its Status.
#define TM_ASSIGN_OR_RETURN(decl, expr) TM_ASSIGN_IMPL(TM_CONCAT(tm_r_, __LINE__), decl, expr)
#define TM_ASSIGN_IMPL(tmp, decl, expr) \
  auto tmp = (expr);                    \
  if (!tmp) return tmp.status();        \
  decl = std::move(tmp).value()

}  // namespace tidemark

// An assertion that stays on in release builds: for programmer errors, never for input.
#define TM_CHECK(cond, what)                                              \
  do {                                                                    \
    if (!(cond)) [[unlikely]] ::tidemark::check_failed(#cond, what, __FILE__, __LINE__); \
  } while (0)

namespace tidemark {
[[noreturn]] void check_failed(const char* cond, const char* what, const char* file, int line);
}
