// Explicit little-endian (and, for VHD, big-endian) load and store, and bounded readers and writers.
// Never a struct cast over wire or disk bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shared/base/ids.h"

namespace tidemark {

using ByteSpan = std::span<const uint8_t>;
using MutableByteSpan = std::span<uint8_t>;
using Bytes = std::vector<uint8_t>;

static_assert(std::endian::native == std::endian::little, "load/store below assume a little-endian machine");

template <typename T>
inline T load_le(const uint8_t* p) { T v; std::memcpy(&v, p, sizeof v); return v; }
template <typename T>
inline void store_le(uint8_t* p, T v) { std::memcpy(p, &v, sizeof v); }
inline uint16_t load_be16(const uint8_t* p) { return __builtin_bswap16(load_le<uint16_t>(p)); }
inline uint32_t load_be32(const uint8_t* p) { return __builtin_bswap32(load_le<uint32_t>(p)); }
inline uint64_t load_be64(const uint8_t* p) { return __builtin_bswap64(load_le<uint64_t>(p)); }
inline void store_be16(uint8_t* p, uint16_t v) { store_le(p, __builtin_bswap16(v)); }
inline void store_be32(uint8_t* p, uint32_t v) { store_le(p, __builtin_bswap32(v)); }
inline void store_be64(uint8_t* p, uint64_t v) { store_le(p, __builtin_bswap64(v)); }

inline ByteSpan as_bytes(std::string_view s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }
inline std::string_view as_text(ByteSpan b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

// Appends little-endian fields to a Bytes. Strings and blobs are u32 length + bytes.
class Writer {
 public:
  explicit Writer(Bytes& out) : out_(out) {}
  Writer& u8(uint8_t v) { out_.push_back(v); return *this; }
  Writer& u16(uint16_t v) { return put(v); }
  Writer& u32(uint32_t v) { return put(v); }
  Writer& u64(uint64_t v) { return put(v); }
  Writer& i64(int64_t v) { return put(v); }
  Writer& uuid(const Uuid& v) { out_.insert(out_.end(), v.bytes.begin(), v.bytes.end()); return *this; }
  template <typename Tag>
  Writer& id(StrongId<Tag> v) { return put(v.value); }
  Writer& raw(ByteSpan b) { out_.insert(out_.end(), b.begin(), b.end()); return *this; }
  Writer& blob(ByteSpan b) { u32(static_cast<uint32_t>(b.size())); return raw(b); }
  Writer& text(std::string_view s) { return blob(as_bytes(s)); }
  size_t size() const { return out_.size(); }

 private:
  template <typename T>
  Writer& put(T v) {
    size_t at = out_.size();
    out_.resize(at + sizeof v);
    store_le(out_.data() + at, v);
    return *this;
  }
  Bytes& out_;
};

// Reads what Writer wrote. Past the end everything reads as zero/empty and ok() is false: check once, at the end.
class Reader {
 public:
  explicit Reader(ByteSpan in) : in_(in) {}
  uint8_t u8() { return take<uint8_t>(); }
  uint16_t u16() { return take<uint16_t>(); }
  uint32_t u32() { return take<uint32_t>(); }
  uint64_t u64() { return take<uint64_t>(); }
  int64_t i64() { return take<int64_t>(); }
  Uuid uuid() {
    Uuid v;
    ByteSpan b = raw(16);
    if (b.size() == 16) std::memcpy(v.bytes.data(), b.data(), 16);
    return v;
  }
  template <typename Id>
  Id id() { return Id(u64()); }
  ByteSpan raw(size_t n) {
    if (n > in_.size()) { ok_ = false; in_ = {}; return {}; }
    ByteSpan b = in_.first(n);
    in_ = in_.subspan(n);
    return b;
  }
  ByteSpan blob() { return raw(u32()); }
  std::string text() { return std::string(as_text(blob())); }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }   // all read, nothing left over
  size_t left() const { return in_.size(); }

 private:
  template <typename T>
  T take() {
    ByteSpan b = raw(sizeof(T));
    return b.size() == sizeof(T) ? load_le<T>(b.data()) : T{};
  }
  ByteSpan in_;
  bool ok_ = true;
};

}  // namespace tidemark
