#include "fs/survivor.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace tidemark::fs {
namespace {

constexpr uint64_t kMagic = 0x54444d5355525631;   // "TDMSURV1"
constexpr uint32_t kLayoutVersion = 1;
constexpr size_t kSourceBytesMax = 64;

// The writer may be killed between any two instructions, but not reordered by its own processor for itself: that the
// compiler keeps the order is enough.
void in_order() { std::atomic_signal_fence(std::memory_order_seq_cst); }

enum HandleState : uint32_t { kClosed = 0, kOpen = 1, kWrote = 2, kFenced };

struct HandleEntry {
  uint64_t inode;
  uint64_t request;
  uint8_t image[16];
  uint32_t state;
  uint32_t closing;               // 1: its close has not been answered
};
struct Tenure {
  uint8_t image[16];
  uint64_t inode, epoch;
  uint64_t parent_epoch, parent_incarnation, parent_counter;
  uint64_t host_loss, shared_loss;
  char source[kSourceBytesMax];
  uint8_t parent_clean, mirror_none, asks_first, unused;
  uint32_t held;
};
// Of the tenure at the same index, if it is of this epoch.
struct Vote {
  uint64_t epoch;
  uint64_t terms_and_witnessed;   // terms * 2 + 1: witnessed
};
struct Change {
  uint64_t before;
  uint64_t request;
};
struct End {
  uint8_t image[16];
  uint64_t end;                   // and one more; 0: none
};
struct Lost {
  uint8_t image[16];
  uint64_t lost;
};
struct Agreed {
  uint8_t bytes[Survivor::kAgreedBytesMax];
  uint32_t size;
  uint32_t unused;
};

void keep(Agreed& into, ByteSpan bytes) {
  into.size = 0;
  in_order();
  if (bytes.size() > sizeof into.bytes) return;
  std::memcpy(into.bytes, bytes.data(), bytes.size());
  in_order();
  into.size = static_cast<uint32_t>(bytes.size());
}

}  // namespace

struct Survivor::Layout {
  uint64_t magic;
  uint32_t version;
  uint32_t successors;
  uint32_t can_resend;
  uint32_t unused;
  Agreed request, answer;
  HandleEntry handles[kHandlesMax];
  Tenure tenures[kTenuresMax];
  Change changes[kChangesMax];
  Vote votes[kTenuresMax];
  End ends[kEndsMax];
  Lost lost[kLostMax];
};

Survivor::Survivor(Layout* layout) : layout_(layout) {
  for (uint32_t i = 0; i < kTenuresMax; ++i)
    if (layout_->tenures[i].held != 0) tenures_used_ = i + 1;
}

Result<Survivor> Survivor::attach(MutableByteSpan memory) {
  static_assert(sizeof(Layout) <= kBytes && std::is_trivially_copyable_v<Layout>);
  static_assert(sizeof(HandleEntry) == 40 && sizeof(Tenure) == 144 && sizeof(Change) == 16);
  if (memory.size() < sizeof(Layout))
    return Status(Code::kInvalidArgument, "too little memory for what survives a run");
  auto* layout = reinterpret_cast<Layout*>(memory.data());
  if (layout->magic == 0 && layout->version == 0) {
    layout->version = kLayoutVersion;
    in_order();
    layout->magic = kMagic;
  }
  if (layout->magic != kMagic || layout->version != kLayoutVersion)
    return Status(Code::kUnsupported, "the run before kept its handles in layout " + std::to_string(layout->version) +
                                          ", this program knows " + std::to_string(kLayoutVersion) +
                                          ": unmount and mount again");
  return Survivor(layout);
}

void Survivor::keep_request(ByteSpan init) { keep(layout_->request, init); }
void Survivor::keep_answer(ByteSpan init) { keep(layout_->answer, init); }
ByteSpan Survivor::request() const { return {layout_->request.bytes, layout_->request.size}; }
ByteSpan Survivor::answer() const { return {layout_->answer.bytes, layout_->answer.size}; }
bool Survivor::can_resend() const { return layout_->can_resend != 0; }
void Survivor::set_can_resend(bool can) { layout_->can_resend = can ? 1 : 0; }
uint32_t Survivor::successors() const { return layout_->successors; }
void Survivor::count_successor() { ++layout_->successors; }

void Survivor::opened(const SavedHandle& handle, uint64_t request) {
  if (!has_room(handle.index)) return;
  HandleEntry& h = layout_->handles[handle.index];
  h.inode = handle.inode.value;
  h.request = request;
  std::memcpy(h.image, handle.image.bytes.data(), sizeof h.image);
  h.closing = 0;
  in_order();
  h.state = handle.wrote ? kWrote : kOpen;
}

void Survivor::wrote(uint32_t index) {
  if (has_room(index)) layout_->handles[index].state = kWrote;
}

void Survivor::fenced(uint32_t index) {
  if (has_room(index)) layout_->handles[index].state = kFenced;
}

void Survivor::begin_close(uint32_t index) {
  if (!has_room(index)) return;
  layout_->handles[index].closing = 1;
  in_order();
  layout_->handles[index].state = kClosed;
}

void Survivor::closed(uint32_t index) {
  if (!has_room(index)) return;
  layout_->handles[index].state = kClosed;
  in_order();
  layout_->handles[index].closing = 0;
}

std::vector<SavedHandle> Survivor::handles() const {
  std::vector<SavedHandle> out;
  for (uint32_t i = 0; i < kHandlesMax; ++i) {
    const HandleEntry& h = layout_->handles[i];
    if (h.state == kClosed) continue;
    SavedHandle saved;
    saved.index = i;
    saved.inode = InodeNumber(h.inode);
    std::memcpy(saved.image.bytes.data(), h.image, sizeof h.image);
    saved.wrote = h.state == kWrote;
    saved.fenced = h.state == kFenced;
    out.push_back(saved);
  }
  return out;
}

std::vector<uint32_t> Survivor::closing() const {
  std::vector<uint32_t> out;
  for (uint32_t i = 0; i < kHandlesMax; ++i)
    if (layout_->handles[i].state == kClosed && layout_->handles[i].closing != 0) out.push_back(i);
  return out;
}

std::optional<uint32_t> Survivor::opened_by(uint64_t request, InodeNumber inode) const {
  if (request == 0) return std::nullopt;
  for (uint32_t i = 0; i < kHandlesMax; ++i) {
    const HandleEntry& h = layout_->handles[i];
    if (h.state != kClosed && h.request == request && h.inode == inode.value) return i;
  }
  return std::nullopt;
}

void Survivor::hold(const SavedTenure& tenure) {
  let_go(tenure.image);
  if (tenure.parent.source.size() >= kSourceBytesMax) return;   // a successor asks for it anew
  for (uint32_t i = 0; i < kTenuresMax; ++i) {
    Tenure& t = layout_->tenures[i];
    if (t.held != 0) continue;
    tenures_used_ = std::max(tenures_used_, i + 1);
    std::memcpy(t.image, tenure.image.bytes.data(), sizeof t.image);
    t.inode = tenure.inode.value;
    t.epoch = tenure.epoch.value;
    t.parent_epoch = tenure.parent.epoch.value;
    t.parent_incarnation = tenure.parent.last.incarnation.value;
    t.parent_counter = tenure.parent.last.counter.value;
    t.parent_clean = tenure.parent.clean;
    std::memset(t.source, 0, sizeof t.source);
    std::memcpy(t.source, tenure.parent.source.data(), tenure.parent.source.size());
    t.host_loss = tenure.host_loss.value;
    t.shared_loss = tenure.shared_loss.value;
    t.mirror_none = tenure.mirror_none ? 1 : 0;
    t.asks_first = tenure.asks_first ? 1 : 0;
    Vote& vote = layout_->votes[i];
    vote.epoch = tenure.epoch.value;
    vote.terms_and_witnessed = tenure.terms.value * 2 + (tenure.witnessed ? 1 : 0);
    in_order();
    t.held = 1;
    return;
  }
}

void Survivor::let_go(const ImageId& image) {
  for (uint32_t i = 0; i < tenures_used_; ++i) {
    Tenure& t = layout_->tenures[i];
    if (t.held != 0 && std::memcmp(t.image, image.bytes.data(), sizeof t.image) == 0) t.held = 0;
  }
  in_order();
}

std::vector<SavedTenure> Survivor::tenures() const {
  std::vector<SavedTenure> out;
  for (uint32_t i = 0; i < tenures_used_; ++i) {
    const Tenure& t = layout_->tenures[i];
    if (t.held == 0) continue;
    SavedTenure saved;
    std::memcpy(saved.image.bytes.data(), t.image, sizeof t.image);
    saved.inode = InodeNumber(t.inode);
    saved.epoch = Epoch(t.epoch);
    saved.parent.epoch = Epoch(t.parent_epoch);
    saved.parent.source.assign(t.source, strnlen(t.source, sizeof t.source));
    saved.parent.last = {Incarnation(t.parent_incarnation), Counter(t.parent_counter)};
    saved.parent.clean = t.parent_clean;
    saved.host_loss = LossId(t.host_loss);
    saved.shared_loss = LossId(t.shared_loss);
    saved.mirror_none = t.mirror_none != 0;
    saved.asks_first = t.asks_first != 0;
    const Vote& vote = layout_->votes[i];
    if (vote.epoch == t.epoch) {
      saved.terms = Generation(vote.terms_and_witnessed / 2);
      saved.witnessed = vote.terms_and_witnessed % 2 != 0;
    }
    out.push_back(saved);
  }
  return out;
}

void Survivor::begin_change(uint64_t request, InodeNumber before) {
  for (Change& c : layout_->changes) {
    if (c.request != 0) continue;
    c.before = before.value;
    in_order();
    c.request = request;
    return;
  }
}

void Survivor::end_change(uint64_t request) {
  for (Change& c : layout_->changes)
    if (c.request == request) c.request = 0;
}

std::optional<InodeNumber> Survivor::change(uint64_t request) const {
  if (request == 0) return std::nullopt;
  for (const Change& c : layout_->changes)
    if (c.request == request) return InodeNumber(c.before);
  return std::nullopt;
}

void Survivor::keep_end(const ImageId& image, uint64_t end) {
  End* at = nullptr;
  for (End& e : layout_->ends) {
    const bool same = e.end != 0 && std::memcmp(e.image, image.bytes.data(), sizeof e.image) == 0;
    if (same || (at == nullptr && e.end == 0)) at = &e;
    if (same) break;
  }
  if (at == nullptr) return;
  std::memcpy(at->image, image.bytes.data(), sizeof at->image);
  in_order();
  at->end = end + 1;
}

void Survivor::forget_end(const ImageId& image) {
  for (End& e : layout_->ends)
    if (e.end != 0 && std::memcmp(e.image, image.bytes.data(), sizeof e.image) == 0) e.end = 0;
}

std::optional<uint64_t> Survivor::end_of(const ImageId& image) const {
  for (const End& e : layout_->ends)
    if (e.end != 0 && std::memcmp(e.image, image.bytes.data(), sizeof e.image) == 0) return e.end - 1;
  return std::nullopt;
}

void Survivor::keep_lost(const ImageId& image, bool lost) {
  Lost* free = nullptr;
  for (Lost& l : layout_->lost) {
    const bool same = l.lost != 0 && std::memcmp(l.image, image.bytes.data(), sizeof l.image) == 0;
    if (same && lost) return;
    if (same) l.lost = 0;
    if (free == nullptr && l.lost == 0) free = &l;
  }
  if (!lost || free == nullptr) return;
  std::memcpy(free->image, image.bytes.data(), sizeof free->image);
  in_order();
  free->lost = 1;
}

bool Survivor::lost(const ImageId& image) const {
  return std::ranges::any_of(layout_->lost, [&](const Lost& l) {
    return l.lost != 0 && std::memcmp(l.image, image.bytes.data(), sizeof l.image) == 0;
  });
}

}  // namespace tidemark::fs
