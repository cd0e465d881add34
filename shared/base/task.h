// Task<T>: a lazily started coroutine for control flow (handshakes, recovery, resync). The hot
// path uses plain callbacks. Everything here belongs to one loop thread.
//
//   Task<Status> Resync::run() {
//     auto r = co_await async<Result<Header>>([&](Callback<Result<Header>> done) { peer_.ask(req, std::move(done)); });
//     ...
//   }
//   TaskGroup tasks_;  tasks_.spawn(resync.run_forever());
//
// Destroying a Task or a TaskGroup destroys the suspended frames; a completion that arrives
// afterwards finds its state abandoned and does nothing, so its buffers must not live in the frame
// if the operation may still write to them (give them to the callback, or drain first).
#pragma once

#include <coroutine>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <utility>

#include "shared/base/function.h"

namespace tidemark {

template <typename T>
class Task;

namespace detail {
struct FinalAwaiter {
  bool await_ready() noexcept { return false; }
  template <typename P>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<P> h) noexcept {
    auto next = h.promise().continuation;
    return next ? next : std::noop_coroutine();
  }
  void await_resume() noexcept {}
};
struct PromiseBase {
  std::coroutine_handle<> continuation;
  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() { std::terminate(); }
};
template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& v) { value.emplace(std::forward<U>(v)); }
};
template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() {}
};
}  // namespace detail

template <typename T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;
  explicit Task(Handle h) : handle_(h) {}
  Task(Task&& o) noexcept : handle_(std::exchange(o.handle_, {})) {}
  Task& operator=(Task&& o) noexcept {
    if (this != &o) { if (handle_) handle_.destroy(); handle_ = std::exchange(o.handle_, {}); }
    return *this;
  }
  ~Task() { if (handle_) handle_.destroy(); }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiter) noexcept {
    handle_.promise().continuation = waiter;
    return handle_;
  }
  T await_resume() {
    if constexpr (!std::is_void_v<T>) return std::move(*handle_.promise().value);
  }

 private:
  Handle handle_;
};

template <typename T>
Task<T> detail::Promise<T>::get_return_object() { return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this)); }
inline Task<void> detail::Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

namespace detail {
template <typename T>
struct AsyncState {
  std::optional<T> value;
  std::coroutine_handle<> waiter;
  bool abandoned = false;
};
template <typename T, typename Start>
struct AsyncAwaiter {
  Start start;
  std::shared_ptr<AsyncState<T>> state = std::make_shared<AsyncState<T>>();  // shared with the callback
  explicit AsyncAwaiter(Start s) : start(std::move(s)) {}
  AsyncAwaiter(const AsyncAwaiter&) = delete;
  ~AsyncAwaiter() { if (state) state->abandoned = true; }
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> h) {
    auto s = state;
    start(Callback<T>([s](T v) {
      if (s->abandoned) return;
      s->value.emplace(std::move(v));
      if (auto w = std::exchange(s->waiter, {})) w.resume();
    }));
    if (s->value) return false;  // completed inline
    s->waiter = h;
    return true;
  }
  T await_resume() { return std::move(*state->value); }
};
}  // namespace detail

// Awaits one completion callback. T is what the callback is given (Status, Result<X>, bool...).
template <typename T, typename Start>
auto async(Start start) { return detail::AsyncAwaiter<T, Start>(std::move(start)); }

// Owns detached root tasks. Destroying the group destroys those that have not finished.
class TaskGroup {
 public:
  TaskGroup() = default;
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;
  ~TaskGroup() { cancel_all(); }

  void spawn(Task<void> task) {
    sweep();
    roots_.emplace_back(std::make_unique<Root>(run(std::move(task), ++next_)));
    roots_.back()->number = next_;
    roots_.back()->handle.resume();
  }
  // Destroys every unfinished task. Not to be called from inside one of them.
  void cancel_all() { roots_.clear(); }
  bool idle() { sweep(); return roots_.empty(); }

 private:
  struct Root {
    struct promise_type {
      Root get_return_object() { return Root(std::coroutine_handle<promise_type>::from_promise(*this)); }
      std::suspend_always initial_suspend() noexcept { return {}; }
      std::suspend_always final_suspend() noexcept { return {}; }
      void return_void() {}
      void unhandled_exception() { std::terminate(); }
    };
    explicit Root(std::coroutine_handle<promise_type> h) : handle(h) {}
    Root(Root&& o) noexcept : number(o.number), handle(std::exchange(o.handle, {})) {}
    ~Root() { if (handle) handle.destroy(); }
    uint64_t number = 0;
    std::coroutine_handle<promise_type> handle;
  };
  static Root run(Task<void> task, uint64_t) { co_await task; }
  void sweep() { roots_.remove_if([](const auto& r) { return r->handle.done(); }); }

  std::list<std::unique_ptr<Root>> roots_;
  uint64_t next_ = 0;
};

}  // namespace tidemark
