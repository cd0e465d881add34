#include "replica/order.h"

namespace tidemark::replica {
namespace {

bool has_passed(const OrderState& state, const std::string& source, const WriteSequence& through) {
  auto it = state.sources.find(source);
  return it != state.sources.end() && it->second.applied >= through;
}

ApplyAction apply_head(OrderState& state, OrderState::Source& source) {
  ApplyAction action{.batch = std::move(source.waiting.front())};
  source.waiting.pop_front();
  for (const SliceFacts& slice : action.batch.slices) {
    Epoch& newest = state.epochs[slice.image];
    if (slice.epoch < newest) {
      action.branched.push_back(slice.image);
      action.newer.push_back(newest);
    } else {
      newest = slice.epoch;
    }
  }
  // A batch without records says "up to counter 0" of its incarnation: never move backwards.
  source.applied = std::max(source.applied, action.batch.last);
  return action;
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
    const bool needs_parent = parent.epoch.value != 0 && parent.last.counter.value != 0 && !parent.source.empty() &&
                              parent.source != batch.source;
    if (needs_parent && !has_passed(state, parent.source, parent.last)) {
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

std::vector<ApplyAction> step(OrderState& state, BatchFacts arrived) {
  for (const ImageId& image : arrived.created) state.created.insert(image);
  OrderState::Source& newest = state.sources[arrived.source];
  newest.waiting.push_back(std::move(arrived));

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
  }
  return actions;
}

}  // namespace tidemark::replica
