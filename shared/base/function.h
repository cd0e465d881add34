// UniqueFunction<R(Args...)>: a move-only callable with 64 bytes of inline storage, so that the
// completion callbacks of the hot path neither copy nor allocate. Calling an empty one aborts.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "shared/base/status.h"

namespace tidemark {

template <typename Signature>
class UniqueFunction;

template <typename R, typename... Args>
class UniqueFunction<R(Args...)> {
 public:
  UniqueFunction() = default;
  UniqueFunction(std::nullptr_t) {}  // NOLINT: implicit by design
  template <typename F>
    requires(!std::is_same_v<std::decay_t<F>, UniqueFunction> && std::is_invocable_r_v<R, F&, Args...>)
  UniqueFunction(F&& f) {  // NOLINT: implicit by design
    using D = std::decay_t<F>;
    if constexpr (sizeof(D) <= kInline && alignof(D) <= alignof(std::max_align_t) &&
                  std::is_nothrow_move_constructible_v<D>) {
      new (storage_) D(std::forward<F>(f));
      ops_ = &kInlineOps<D>;
    } else {
      *reinterpret_cast<D**>(storage_) = new D(std::forward<F>(f));
      ops_ = &kHeapOps<D>;
    }
  }
  UniqueFunction(UniqueFunction&& o) noexcept { take(o); }
  UniqueFunction& operator=(UniqueFunction&& o) noexcept {
    if (this != &o) { reset(); take(o); }
    return *this;
  }
  ~UniqueFunction() { reset(); }

  explicit operator bool() const { return ops_ != nullptr; }
  R operator()(Args... args) {
    TM_CHECK(ops_ != nullptr, "call of an empty function");
    return ops_->call(storage_, std::forward<Args>(args)...);
  }

 private:
  static constexpr size_t kInline = 64;
  struct Ops {
    R (*call)(void*, Args&&...);
    void (*move)(void* from, void* to);
    void (*destroy)(void*);
  };
  template <typename D>
  static constexpr Ops kInlineOps{
      [](void* p, Args&&... args) -> R { return (*static_cast<D*>(p))(std::forward<Args>(args)...); },
      [](void* from, void* to) { new (to) D(std::move(*static_cast<D*>(from))); static_cast<D*>(from)->~D(); },
      [](void* p) { static_cast<D*>(p)->~D(); }};
  template <typename D>
  static constexpr Ops kHeapOps{
      [](void* p, Args&&... args) -> R { return (**static_cast<D**>(p))(std::forward<Args>(args)...); },
      [](void* from, void* to) { *static_cast<D**>(to) = *static_cast<D**>(from); },
      [](void* p) { delete *static_cast<D**>(p); }};
  void take(UniqueFunction& o) {
    ops_ = o.ops_;
    if (ops_ != nullptr) ops_->move(o.storage_, storage_);
    o.ops_ = nullptr;
  }
  void reset() {
    if (ops_ != nullptr) ops_->destroy(storage_);
    ops_ = nullptr;
  }

  const Ops* ops_ = nullptr;
  alignas(std::max_align_t) std::byte storage_[kInline];
};

template <typename T>
using Callback = UniqueFunction<void(T)>;

}  // namespace tidemark
