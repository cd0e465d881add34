// A set of 4 KiB granules of one image: a hash from 64-granule words to bit masks. Open addressing,
// linear probing; words are never removed, bits are. No allocation but when it grows (doubling).
// What is set at once, and is long (all of an image, say), is a range instead, however large the image: in the ranges
// or in the words, never in both. Ranges are few: each comes of one call, or is what one that cleared granules left of it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "shared/base/ids.h"
#include "shared/base/limits.h"

namespace tidemark::journal {

inline uint64_t first_granule(Extent e) { return e.offset / limits::kOrderGranule; }
inline uint64_t end_granule(Extent e) { return (e.end() + limits::kOrderGranule - 1) / limits::kOrderGranule; }

class GranuleMap {
 public:
  uint64_t population() const { return population_; }

  void set(uint64_t first, uint64_t end) {
    if (first >= end) return;
    if (end - first >= kRangeMin) return set_range(first, end);
    for (auto it = after(first); it != ranges_.end() && it->first < end; ++it) {
      if (first < it->first) set_words(first, it->first);
      first = std::min(end, it->second);
    }
    if (first < end) set_words(first, end);
  }

  bool any(uint64_t first, uint64_t end) const {
    if (population_ == 0 || first >= end) return false;
    if (auto it = after(first); it != ranges_.end() && it->first < end) return true;
    if (wide(first, end)) {
      for (const Entry& e : entries_) {
        if (e.key != 0 && (e.bits & mask_of(e.key - 1, first, end)) != 0) return true;
      }
      return false;
    }
    bool found = false;
    for_words(first, end, [&](uint64_t word, uint64_t mask) {
      const Entry* e = find(word);
      found = e != nullptr && (e->bits & mask) != 0;
      return !found;
    });
    return found;
  }

  void clear(uint64_t first, uint64_t end) {
    if (population_ == 0 || first >= end) return;
    for (auto it = after(first); it != ranges_.end() && it->first < end;) {
      const auto [begin, stop] = *it;
      population_ -= std::min(stop, end) - std::max(begin, first);
      it = ranges_.erase(it);
      if (begin < first) ranges_.emplace(begin, first);
      if (end < stop) ranges_.emplace(end, stop);
    }
    auto drop = [&](Entry& e, uint64_t mask) {
      population_ -= static_cast<uint64_t>(std::popcount(mask & e.bits));
      e.bits &= ~mask;
    };
    if (wide(first, end)) {
      for (Entry& e : entries_) {
        if (e.key != 0) drop(e, mask_of(e.key - 1, first, end));
      }
      return;
    }
    for_words(first, end, [&](uint64_t word, uint64_t mask) {
      if (const Entry* e = find(word)) drop(*const_cast<Entry*>(e), mask);
      return true;
    });
  }

  // Appends the granules of [first, end) that are set, as runs, in ascending order.
  void runs(uint64_t first, uint64_t end, std::vector<Extent>& out) const {
    if (population_ == 0 || first >= end) return;
    for (auto it = after(first); it != ranges_.end() && it->first < end; ++it) {
      word_runs(first, it->first, out);
      const uint64_t begin = std::max(first, it->first);
      first = std::min(end, it->second);
      append(begin, first, out);
    }
    word_runs(first, end, out);
  }

  void merge(const GranuleMap& other) {
    for (const auto& [first, end] : other.ranges_) set_range(first, end);
    for (const Entry& from : other.entries_) {
      if (from.key == 0 || from.bits == 0) continue;
      const uint64_t word = (from.key - 1) * 64;
      if (auto it = after(word); it != ranges_.end() && it->first < word + 64) {
        for (uint64_t bits = from.bits; bits != 0; bits &= bits - 1) {
          const uint64_t granule = word + static_cast<uint64_t>(std::countr_zero(bits));
          set(granule, granule + 1);
        }
        continue;
      }
      Entry& e = insert(from.key - 1);
      population_ += static_cast<uint64_t>(std::popcount(from.bits & ~e.bits));
      e.bits |= from.bits;
    }
  }

  bool contains(uint64_t granule) const {
    if (auto it = after(granule); it != ranges_.end() && it->first <= granule) return true;
    const Entry* e = find(granule / 64);
    return e != nullptr && (e->bits >> (granule % 64) & 1) != 0;
  }

  // About.
  size_t memory_bytes() const { return entries_.capacity() * sizeof(Entry) + ranges_.size() * 64; }

 private:
  struct Entry { uint64_t key = 0, bits = 0; };   // key: word + 1; 0 is free
  static constexpr uint64_t kRangeMin = 1u << 10; // granules: 4 MiB

  static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t end) {
    uint64_t begin = word * 64;
    if (first >= begin + 64 || end <= begin) return 0;
    uint64_t mask = ~uint64_t{0};
    if (first > begin) mask &= ~uint64_t{0} << (first - begin);
    if (end < begin + 64) mask &= ~uint64_t{0} >> (begin + 64 - end);
    return mask;
  }
  // The first range that ends after it.
  std::map<uint64_t, uint64_t>::const_iterator after(uint64_t granule) const {
    if (ranges_.empty()) return ranges_.end();
    auto it = ranges_.upper_bound(granule);
    return it != ranges_.begin() && std::prev(it)->second > granule ? std::prev(it) : it;
  }
  void set_range(uint64_t first, uint64_t end) {
    clear(first, end);
    population_ += end - first;
    auto next = ranges_.lower_bound(first);
    if (next != ranges_.end() && next->first == end) {
      end = next->second;
      next = ranges_.erase(next);
    }
    if (next != ranges_.begin() && std::prev(next)->second == first) std::prev(next)->second = end;
    else ranges_.emplace(first, end);
  }
  void set_words(uint64_t first, uint64_t end) {
    for_words(first, end, [&](uint64_t word, uint64_t mask) {
      Entry& e = insert(word);
      population_ += static_cast<uint64_t>(std::popcount(mask & ~e.bits));
      e.bits |= mask;
      return true;
    });
  }
  static void append(uint64_t first, uint64_t end, std::vector<Extent>& out) {
    if (!out.empty() && out.back().end() == first) out.back().length += end - first;
    else out.push_back({first, end - first});
  }
  void word_runs(uint64_t first, uint64_t end, std::vector<Extent>& out) const {
    if (first >= end) return;
    std::vector<std::pair<uint64_t, uint64_t>> words;
    if (wide(first, end)) {
      for (const Entry& e : entries_) {
        if (uint64_t bits = e.key == 0 ? 0 : e.bits & mask_of(e.key - 1, first, end)) words.emplace_back(e.key - 1, bits);
      }
      std::sort(words.begin(), words.end());
    } else {
      for_words(first, end, [&](uint64_t word, uint64_t mask) {
        const Entry* e = find(word);
        if (e != nullptr && (e->bits & mask) != 0) words.emplace_back(word, e->bits & mask);
        return true;
      });
    }
    for (auto [word, bits] : words) {
      for (; bits != 0; bits &= bits - 1) {
        const uint64_t granule = word * 64 + static_cast<uint64_t>(std::countr_zero(bits));
        append(granule, granule + 1, out);
      }
    }
  }
  template <typename Fn>
  static void for_words(uint64_t first, uint64_t end, Fn fn) {
    for (uint64_t word = first / 64; word * 64 < end; ++word) {
      if (!fn(word, mask_of(word, first, end))) return;
    }
  }
  // A range of more words than there are entries is answered by walking the entries.
  bool wide(uint64_t first, uint64_t end) const { return (end - first) / 64 > entries_.size(); }
  static uint64_t hash(uint64_t word) { return word * 0x9E3779B97F4A7C15ull >> 20; }

  const Entry* find(uint64_t word) const {
    if (entries_.empty()) return nullptr;
    size_t mask = entries_.size() - 1;
    for (size_t i = hash(word) & mask;; i = (i + 1) & mask) {
      if (entries_[i].key == word + 1) return &entries_[i];
      if (entries_[i].key == 0) return nullptr;
    }
  }
  Entry& insert(uint64_t word) {
    if ((used_ + 1) * 2 > entries_.size()) grow();
    size_t mask = entries_.size() - 1;
    for (size_t i = hash(word) & mask;; i = (i + 1) & mask) {
      if (entries_[i].key == word + 1) return entries_[i];
      if (entries_[i].key == 0) {
        entries_[i].key = word + 1;
        ++used_;
        return entries_[i];
      }
    }
  }
  void grow() {
    std::vector<Entry> old(std::max<size_t>(64, entries_.size() * 2));
    old.swap(entries_);
    used_ = 0;
    for (const Entry& e : old) {
      if (e.key != 0) insert(e.key - 1).bits = e.bits;
    }
  }

  std::vector<Entry> entries_;
  std::map<uint64_t, uint64_t> ranges_;           // first granule -> end; disjoint
  size_t used_ = 0;
  uint64_t population_ = 0;
};

}  // namespace tidemark::journal
