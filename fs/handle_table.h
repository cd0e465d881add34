// Open handles of guests, by number. A number is an index of the table, and one; it is given anew once its handle was
// closed and whoever closed it has been answered: a successor is handed out again what was not answered, and would
// close what has the number by then. Nothing is known here of what an open or a close means: that is the engine's
// (engine_names.cc). A pointer to a handle holds until the next one is opened. Loop thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "fs/engine_types.h"

namespace tidemark::fs {

struct Image;

struct Handle {
  Image* image = nullptr;              // null: it is not open
  bool wrote = false;
  bool fenced = false;                 // the image was taken by force while it was open
  bool inherited = false;              // open since a run before
  std::optional<uint64_t> keeps;       // its last write failed, and may be undone: down to this size, not below
  bool closing = false;                // closed, and its number not free yet
};

class HandleTable {
 public:
  // Null: no such handle is open.
  const Handle* find(HandleId id) const {
    const uint64_t index = id.value - 1;
    return index >= handles_.size() || handles_[index].image == nullptr ? nullptr : &handles_[index];
  }
  Handle* find(HandleId id) { return const_cast<Handle*>(std::as_const(*this).find(id)); }
  uint32_t index_of(const Handle& handle) const { return static_cast<uint32_t>(&handle - handles_.data()); }

  // Numbers are free: the table need not grow for the next one.
  bool has_free() const { return !free_.empty(); }
  uint32_t size() const { return static_cast<uint32_t>(handles_.size()); }   // open, closing and free
  size_t open_count() const {
    return static_cast<size_t>(std::ranges::count_if(handles_, [](const Handle& h) { return h.image != nullptr; }));
  }

  uint32_t open(Image& image) {          // its index
    if (free_.empty()) {
      handles_.push_back({});
      free_.push_back(size() - 1);
    }
    const uint32_t index = free_.back();
    free_.pop_back();
    handles_[index] = {&image};
    return index;
  }
  void close(uint32_t index) {
    handles_[index] = {};
    handles_[index].closing = true;
  }
  // After close(): the number is free. Its index; none: it is no closed handle's.
  std::optional<uint32_t> free(HandleId id) {
    const uint64_t index = id.value - 1;
    if (index >= handles_.size() || !handles_[index].closing) return std::nullopt;
    handles_[index].closing = false;
    free_.push_back(static_cast<uint32_t>(index));
    return free_.back();
  }

  // At the start, instead of open(): as a run before had them. list_free() follows, once.
  void put(uint32_t index, const Handle& handle) {
    if (index >= handles_.size()) handles_.resize(index + 1);
    handles_[index] = handle;
  }
  void put_closed(uint32_t index) {
    put(index, {});
    close(index);
  }
  void list_free() {
    for (uint32_t i = size(); i-- > 0;)
      if (handles_[i].image == nullptr && !handles_[i].closing) free_.push_back(i);
  }

  // All of the table, with those that are not open.
  auto begin() { return handles_.begin(); }
  auto end() { return handles_.end(); }

 private:
  std::vector<Handle> handles_;
  std::vector<uint32_t> free_;
};

}  // namespace tidemark::fs
