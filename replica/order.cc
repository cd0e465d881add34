#include "replica/order.h"

#include <algorithm>
#include <optional>
#include <set>

#include "shared/base/planted.h"

namespace tidemark::replica {

bool in_main_line(const Taken& taken, const std::string& source, const SliceFacts& slice) {
  if (slice.epoch >= taken.epoch) return true;
  const wire::TenureParent& parent = taken.parent;
  if (slice.epoch < parent.epoch) return true;   // of those an older takeover says it
  return slice.epoch == parent.epoch && source == parent.source && slice.last <= parent.last;
}

namespace {

bool has_passed(const OrderState& state, const std::string& source, const WriteSequence& through) {
  auto it = state.sources.find(source);
  return it != state.sources.end() && it->second.applied >= through;
}

// Whether a journal was lost with what the slice's tenure follows.
bool follows_lost(const OrderState& state, const SliceFacts& slice) {
  const wire::TenureParent& parent = slice.parent;
  auto source = state.sources.find(parent.source);
  if (source == state.sources.end() || parent.epoch.value == 0 || parent.last.counter.value == 0) return false;
  return std::any_of(source->second.lost.begin(), source->second.lost.end(),
                     [&](const Lost& lost) { return lost.has(parent.last); });
}

// Whether the slice's tenure follows writes of another source that were not applied yet, and may come.
bool lacks_parent(const OrderState& state, const std::string& source, const SliceFacts& slice) {
  const wire::TenureParent& parent = slice.parent;
  const bool needs = parent.epoch.value != 0 && parent.last.counter.value != 0 && !parent.source.empty() &&
                     parent.source != source && !TM_PLANTED("apply an epoch before its parent");
  return needs && !has_passed(state, parent.source, parent.last) && !follows_lost(state, slice);
}

// Of a slice that is no older than what was applied: why it is left out. None: it is of the main line.
std::optional<CutOff> cut_off_by(OrderState& state, const SliceFacts& slice, bool holds_all, Epoch applied,
                                 ApplyAction& action) {
  auto known = state.cut_off.find(slice.image);
  if (known != state.cut_off.end() && slice.epoch < known->second.epoch) return std::nullopt;
  if (holds_all) {
    if (known != state.cut_off.end()) action.made_good.push_back(slice.image);
    state.cut_off.erase(slice.image);
    return std::nullopt;
  }
  if (known != state.cut_off.end()) return known->second;
  // A tenure that has begun here followed all.
  if (slice.epoch <= applied || !follows_lost(state, slice)) return std::nullopt;
  const CutOff cut{slice.image, slice.epoch, slice.parent.source, slice.parent.last};
  state.cut_off.emplace(slice.image, cut);
  return cut;
}

// Whether the tenure follows another source's: a resync then sends all of the image (`OrderState::resyncs`).
bool followed(const BatchFacts& batch, const SliceFacts& slice) {
  const wire::TenureParent& parent = slice.parent;
  return !parent.source.empty() && parent.source != batch.source && parent.last.counter.value != 0;
}

// The slice is applied, or kept aside, before what it follows; and so on with what is held of that.
void overtake_parents(OrderState& state, const std::string& source, const SliceFacts& slice,
                      std::vector<Overtaken>& out) {
  if (!lacks_parent(state, source, slice)) return;
  const wire::TenureParent& parent = slice.parent;
  out.push_back({slice.image, parent.source, parent.last});
  if (!note_overtaken(state, out.back())) return;
  // The newest first: what is older is known then, and is not gone through again.
  const std::deque<BatchFacts>& held = state.sources[parent.source].waiting;
  for (auto batch = held.rbegin(); batch != held.rend(); ++batch) {
    for (const SliceFacts& older : batch->slices) {
      const bool before = older.image == slice.image && older.epoch < slice.epoch;
      if (before) overtake_parents(state, parent.source, older, out);
    }
  }
}

// The newest tenure to which the slice was lost by force; 0: none.
Epoch lost_to(const OrderState& state, const std::string& source, const SliceFacts& slice) {
  Epoch newest;
  auto known = state.taken.find(slice.image);
  if (known == state.taken.end()) return newest;
  for (const Taken& taken : known->second) {
    if (!in_main_line(taken, source, slice)) newest = std::max(newest, taken.epoch);
  }
  return newest;
}

ApplyAction apply_head(OrderState& state, OrderState::Source& source) {
  ApplyAction action{.batch = std::move(source.waiting.front())};
  source.waiting.pop_front();
  const BatchFacts& batch = action.batch;
  const bool ends_resync = state.resyncs.erase({batch.source, batch.generation, batch.number}) != 0;
  for (const SliceFacts& slice : action.batch.slices) {
    Epoch& newest = state.epochs[slice.image];
    const Epoch taken = lost_to(state, action.batch.source, slice);
    const bool holds_all = slice.whole || (ends_resync && followed(action.batch, slice));
    const bool lost = taken.value != 0;
    if ((slice.epoch < newest || lost) && !TM_PLANTED("merge a late tail")) {
      action.branched.push_back(slice.image);
      action.newer.push_back(lost ? std::max(newest, taken) : newest);
      // Where its tenure ended is not known: rather one image too many.
      if (lost) action.unlike.push_back({slice.image, taken, 1});
      else if (!source.overtaken.contains(slice.image)) action.unlike.push_back({slice.image, newest});
    } else if (auto cut = cut_off_by(state, slice, holds_all, newest, action)) {
      action.branched.push_back(slice.image);
      action.newer.push_back(newest);
      action.cut_off.push_back(std::move(*cut));
    } else {
      newest = slice.epoch;
    }
    // A tenure that was lost overtakes nothing of the main line.
    if (!lost || slice.epoch < newest) overtake_parents(state, action.batch.source, slice, action.overtaken);
  }
  // A batch without records says "up to counter 0" of its incarnation: never move backwards.
  source.applied = std::max(source.applied, action.batch.last);
  // One at the very end of the tenure may have been cut before it was given back.
  for (const auto& [image, through] : source.overtaken) {
    const bool said = std::any_of(action.unlike.begin(), action.unlike.end(),
                                  [&](const Unlike& other) { return other.image == image; });
    if (source.applied <= through && !said) action.unlike.push_back({image, state.epochs[image]});
  }
  return action;
}

// Whether all that stands in the way of the batch has come, and is only held itself.
bool waits_for_held_alone(const OrderState& state, const std::vector<Wait>& waits) {
  return !waits.empty() && std::all_of(waits.begin(), waits.end(), [&](const Wait& wait) {
    if (wait.kind != Wait::Kind::kParent) return false;
    auto it = state.sources.find(wait.source);
    if (it == state.sources.end()) return false;
    return std::any_of(it->second.waiting.rbegin(), it->second.waiting.rend(),
                       [&](const BatchFacts& b) { return b.last >= wait.through; });
  });
}

// Of the batch's images, those of which another held batch has an older epoch: that one would become a branch.
size_t overtaken(const OrderState& state, const BatchFacts& batch) {
  size_t count = 0;
  for (const SliceFacts& slice : batch.slices) {
    auto older = [&](const SliceFacts& s) { return s.image == slice.image && s.epoch < slice.epoch; };
    for (const auto& [name, source] : state.sources) {
      for (const BatchFacts& other : source.waiting)
        count += std::any_of(other.slices.begin(), other.slices.end(), older);
    }
  }
  return count;
}

// The source whose held batch goes first, where batches wait for each other in a circle. Null: none do.
OrderState::Source* break_circle(OrderState& state) {
  // Only batches that wait for held ones alone: whatever waits for one that may yet come is left waiting.
  std::map<std::string, std::vector<Wait>> waiting;
  for (const auto& [name, source] : state.sources) {
    if (source.waiting.empty()) continue;
    std::vector<Wait> waits = waits_of(state, source.waiting.front());
    if (waits_for_held_alone(state, waits)) waiting.emplace(name, std::move(waits));
  }
  // What waits for a batch outside of the set is in no circle that can be decided here; nor is what nobody waits for.
  for (bool changed = true; changed;) {
    std::set<std::string> waited_for;
    for (const auto& [name, waits] : waiting) {
      for (const Wait& wait : waits) waited_for.insert(wait.source);
    }
    changed = std::erase_if(waiting, [&](const auto& entry) {
      return !waited_for.contains(entry.first) ||
             std::any_of(entry.second.begin(), entry.second.end(),
                         [&](const Wait& wait) { return !waiting.contains(wait.source); });
    }) != 0;
  }
  OrderState::Source* first = nullptr;
  std::pair<bool, size_t> least;
  for (const auto& [name, waits] : waiting) {
    OrderState::Source& source = state.sources.at(name);
    const BatchFacts& batch = source.waiting.front();
    const bool whole = state.resyncs.contains({name, batch.generation, batch.number});
    const std::pair<bool, size_t> count{!whole, overtaken(state, batch)};
    if (first != nullptr && count >= least) continue;
    first = &source;
    least = count;
  }
  return first;
}

}  // namespace

size_t OrderState::held() const {
  size_t count = 0;
  for (const auto& [name, source] : sources) count += source.waiting.size();
  return count;
}

std::string Wait::to_string() const {
  switch (kind) {
    case Kind::kParent:
      return source + " through write " + std::to_string(through.incarnation.value) + ":" +
             std::to_string(through.counter.value) + " (image " + image.to_string() + ")";
    case Kind::kCreate: return "create of image " + image.to_string();
    case Kind::kEarlier: return "batch " + std::to_string(earlier.value) + " of the same source";
  }
  return "?";
}

std::vector<Wait> waits_of(const OrderState& state, const BatchFacts& batch) {
  std::vector<Wait> waits;
  for (const SliceFacts& slice : batch.slices) {
    const wire::TenureParent& parent = slice.parent;
    // A tenure that has begun here follows what it follows, or stands in for it. So does one between it and its parent,
    // in which nothing was written: it had the same parent.
    auto newest = state.epochs.find(slice.image);
    const bool begun = newest != state.epochs.end() && (newest->second >= slice.epoch || newest->second > parent.epoch);
    if (!begun && lacks_parent(state, batch.source, slice)) {
      waits.push_back(
          {.kind = Wait::Kind::kParent, .image = slice.image, .source = parent.source, .through = parent.last});
    }
    if (!state.created.contains(slice.image)) waits.push_back({.kind = Wait::Kind::kCreate, .image = slice.image});
  }
  return waits;
}

std::vector<Wait> waits_of(const OrderState& state, const OrderState::Source& source, size_t position) {
  if (position == 0) return waits_of(state, source.waiting.front());
  return {{.kind = Wait::Kind::kEarlier, .earlier = source.waiting.front().number}};
}

bool note_taken(OrderState& state, const Taken& taken) {
  std::vector<Taken>& known = state.taken[taken.image];
  if (std::any_of(known.begin(), known.end(), [&](const Taken& t) { return t.epoch == taken.epoch; })) return false;
  known.push_back(taken);
  return true;
}

void note_lost(OrderState& state, const std::string& source, const Lost& lost) {
  state.sources[source].lost.push_back(lost);
}

bool note_overtaken(OrderState& state, const Overtaken& overtaken) {
  WriteSequence& through = state.sources[overtaken.source].overtaken[overtaken.image];
  if (through >= overtaken.through) return false;
  through = overtaken.through;
  return true;
}

namespace {
// Applies all that nothing stands in the way of, first of `newest`.
std::vector<ApplyAction> apply_all(OrderState& state, OrderState::Source& newest) {
  std::vector<ApplyAction> actions;
  auto apply_ready = [&](OrderState::Source& source) {
    const size_t before = actions.size();
    while (!source.waiting.empty() && waits_of(state, source.waiting.front()).empty())
      actions.push_back(apply_head(state, source));
    return actions.size() != before;
  };
  // First what has just come: a batch that waited for a create in it is applied after it, so that it finds the name.
  apply_ready(newest);
  for (bool moved = true; moved;) {
    moved = false;
    for (auto& [name, source] : state.sources) moved = apply_ready(source) || moved;
    if (moved) continue;
    OrderState::Source* first = break_circle(state);
    if (first == nullptr) break;
    std::vector<Wait> given_up = waits_of(state, first->waiting.front());
    actions.push_back(apply_head(state, *first));
    actions.back().given_up = std::move(given_up);
    moved = true;
  }
  return actions;
}
}  // namespace

std::vector<ApplyAction> step(OrderState& state, BatchFacts arrived) {
  for (const ImageId& image : arrived.created) state.created.insert(image);
  for (const Taken& taken : arrived.taken) note_taken(state, taken);
  // Older than what was applied: what it follows in turn was overtaken, too. As it is applied it says so again.
  std::vector<Overtaken> overtaken;
  for (const SliceFacts& slice : arrived.slices) {
    auto epoch = state.epochs.find(slice.image);
    const bool older = epoch != state.epochs.end() && slice.epoch < epoch->second;
    if (older) overtake_parents(state, arrived.source, slice, overtaken);
  }
  OrderState::Source& newest = state.sources[arrived.source];
  newest.waiting.push_back(std::move(arrived));
  return apply_all(state, newest);
}

ApplyAction resume(OrderState& state, BatchFacts batch) {
  for (const ImageId& image : batch.created) state.created.insert(image);
  for (const Taken& taken : batch.taken) note_taken(state, taken);
  OrderState::Source& source = state.sources[batch.source];
  source.waiting.push_front(std::move(batch));
  return apply_head(state, source);
}

void decided_before(OrderState& state, const ApplyAction& action) {
  for (const SliceFacts& slice : action.batch.slices) {
    const auto& aside = action.branched;
    if (std::find(aside.begin(), aside.end(), slice.image) != aside.end()) continue;
    Epoch& newest = state.epochs[slice.image];
    newest = std::max(newest, slice.epoch);
  }
  for (const Overtaken& overtaken : action.overtaken) note_overtaken(state, overtaken);
}

bool may_release(const OrderState& state, const BatchFacts& batch) {
  std::vector<Wait> waits = waits_of(state, batch);
  return !waits.empty() && std::all_of(waits.begin(), waits.end(), [&](const Wait& wait) {
    return wait.kind == Wait::Kind::kParent &&
           std::any_of(batch.slices.begin(), batch.slices.end(),
                       [&](const SliceFacts& s) { return s.whole && s.image == wait.image; });
  });
}

std::vector<ApplyAction> release(OrderState& state, const std::string& name) {
  auto source = state.sources.find(name);
  if (source == state.sources.end() || source->second.waiting.empty()) return {};
  if (!may_release(state, source->second.waiting.front())) return {};
  std::vector<Wait> gaps = waits_of(state, source->second.waiting.front());
  std::vector<ApplyAction> actions;
  actions.push_back(apply_head(state, source->second));
  actions.back().gaps = std::move(gaps);
  for (ApplyAction& action : apply_all(state, source->second)) actions.push_back(std::move(action));
  return actions;
}

}  // namespace tidemark::replica
