// Turns messages into bytes and back by walking their `fields`.
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/digest.h"
#include "shared/base/status.h"

namespace tidemark::wire {

class Encoder {
 public:
  explicit Encoder(Bytes& out) : w_(out) {}
  template <class... T>
  void operator()(const T&... v) { (put(v), ...); }

 private:
  void put(const std::string& v) { w_.text(v); }
  void put(const Bytes& v) { w_.blob(v); }
  void put(const Uuid& v) { w_.uuid(v); }
  void put(const WallTime& v) { w_.i64(v.ns); }
  void put(const Extent& v) { w_.u64(v.offset).u64(v.length); }
  void put(const WriteSequence& v) { w_.id(v.incarnation).id(v.counter); }
  void put(const DigestKey& v) { w_.raw(v.secret); }
  void put(const Digest128& v) { w_.u64(v.low).u64(v.high); }
  template <class Tag> void put(const StrongId<Tag>& v) { w_.id(v); }
  template <class A, class B> void put(const std::pair<A, B>& v) { put(v.first); put(v.second); }
  template <class T> void put(const std::vector<T>& v) {
    w_.u32(static_cast<uint32_t>(v.size()));
    for (const T& e : v) put(e);
  }
  template <class T> void put(const T& v) {
    if constexpr (std::is_enum_v<T>) put(static_cast<std::underlying_type_t<T>>(v));
    else if constexpr (std::is_same_v<T, uint8_t>) w_.u8(v);
    else if constexpr (std::is_same_v<T, uint16_t>) w_.u16(v);
    else if constexpr (std::is_same_v<T, uint32_t>) w_.u32(v);
    else if constexpr (std::is_same_v<T, uint64_t>) w_.u64(v);
    else const_cast<T&>(v).fields(*this);
  }
  Writer w_;
};

class Decoder {
 public:
  explicit Decoder(ByteSpan in) : r_(in) {}
  template <class... T>
  void operator()(T&... v) { (get(v), ...); }
  bool done() const { return r_.done(); }
  bool ok() const { return r_.ok(); }

 private:
  void get(std::string& v) { v = r_.text(); }
  void get(Bytes& v) { ByteSpan b = r_.blob(); v.assign(b.begin(), b.end()); }
  void get(Uuid& v) { v = r_.uuid(); }
  void get(WallTime& v) { v.ns = r_.i64(); }
  void get(Extent& v) { v.offset = r_.u64(); v.length = r_.u64(); }
  void get(WriteSequence& v) { get(v.incarnation); get(v.counter); }
  void get(DigestKey& v) {
    ByteSpan b = r_.raw(v.secret.size());
    if (!b.empty()) std::memcpy(v.secret.data(), b.data(), b.size());
  }
  void get(Digest128& v) { v.low = r_.u64(); v.high = r_.u64(); }
  template <class Tag> void get(StrongId<Tag>& v) { v.value = r_.u64(); }
  template <class A, class B> void get(std::pair<A, B>& v) { get(v.first); get(v.second); }
  template <class T> void get(std::vector<T>& v) {
    uint32_t count = r_.u32();
    v.clear();
    // Every element takes at least a byte, so a hostile count cannot reserve more than the frame holds.
    for (uint32_t i = 0; i < count && r_.ok(); ++i) {
      if (r_.left() == 0) { r_.raw(1); break; }
      get(v.emplace_back());
    }
  }
  template <class T> void get(T& v) {
    if constexpr (std::is_enum_v<T>) {
      std::underlying_type_t<T> raw;
      get(raw);
      v = static_cast<T>(raw);
    } else if constexpr (std::is_same_v<T, uint8_t>) v = r_.u8();
    else if constexpr (std::is_same_v<T, uint16_t>) v = r_.u16();
    else if constexpr (std::is_same_v<T, uint32_t>) v = r_.u32();
    else if constexpr (std::is_same_v<T, uint64_t>) v = r_.u64();
    else v.fields(*this);
  }
  Reader r_;
};

template <class M>
void encode(const M& message, Bytes& out) {
  Encoder e(out);
  const_cast<M&>(message).fields(e);
}
template <class M>
Bytes encode(const M& message) {
  Bytes out;
  encode(message, out);
  return out;
}
// kCorruption unless `in` is exactly one M.
template <class M>
Result<M> decode(ByteSpan in) {
  M message;
  Decoder d(in);
  message.fields(d);
  if (!d.done()) return Status(Code::kCorruption, "message body has the wrong length");
  return message;
}

}  // namespace tidemark::wire
