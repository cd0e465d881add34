#include "journal/fold.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>

namespace tidemark::journal {
namespace {

using wire::MarkKind;
using NameKey = std::pair<uint64_t, std::string>;   // parent inode, name

bool is_taken(const wire::Mark& m) { return m.kind == MarkKind::kTenureEnd && m.parent.clean == wire::kTaken; }
bool binds_name(const wire::Mark& m) { return m.kind == MarkKind::kCreate || m.kind == MarkKind::kRename; }
// Whether the name that it binds was free before.
bool finds_name_free(const wire::Mark& m) {
  return m.kind == MarkKind::kCreate ||
         (m.kind == MarkKind::kRename && m.old_parent.value != 0 && m.replaced_inode.value == 0);
}
bool vacates_name(const wire::Mark& m) {
  return (m.kind == MarkKind::kRename || m.kind == MarkKind::kUnlink) && m.old_parent.value != 0;
}

class Folder {
 public:
  Folder(std::vector<SegmentMark> marks, const std::string& source, const std::function<bool(const ImageId&)>& gone,
         const std::function<bool(Counter)>& perhaps_told)
      : marks_(std::move(marks)), source_(source), gone_(gone), perhaps_told_(perhaps_told), keep_(marks_.size()) {}

  std::vector<SegmentMark> run() {
    for (size_t i = 0; i < marks_.size(); ++i) note(i);
    keep_states();
    keep_names();
    return take();
  }

 private:
  // Who set a name. Of one event the binding comes after the vacating: a rename onto itself binds.
  struct Setting {
    EventNumber number;
    bool binds = false;
    size_t mark = 0;
    auto order() const { return std::pair(number, binds); }
  };
  struct Name {
    Setting oldest, newest;
    std::optional<size_t> told;                  // of those that bound it, the newest that the replica may have
    std::map<std::string_view, size_t> by;       // hosts, each with its newest
  };
  struct Newest { EventNumber number; size_t mark = 0; };

  const wire::Mark& mark(size_t i) const { return marks_[i].mark; }
  static NameKey bound(const wire::Mark& m) { return {m.node.parent.value, m.name}; }

  void note(size_t i) {
    const wire::Mark& m = mark(i);
    if (m.kind == MarkKind::kTenureStart && !m.node.image.is_nil()) holders_[m.node.image].insert(m.origin);
    if (!sets_node(m) || m.number.value == 0) return;
    if (vacates_name(m)) set({m.old_parent.value, m.old_name}, {m.number, false, i});
    if (binds_name(m)) set(bound(m), {m.number, true, i});
    newest(nodes_, m.node.inode, m.number, i);
    if (m.kind == MarkKind::kUnlink) newest(deaths_, m.node.inode, m.number, i);
    if (m.replaced_inode.value != 0) newest(deaths_, m.replaced_inode, m.number, i);
    if (m.kind == MarkKind::kCreate && !m.node.image.is_nil()) creates_[m.node.image] = i;
  }
  void set(const NameKey& key, const Setting& setting) {
    auto [it, added] = names_.try_emplace(key, Name{setting, setting, {}, {}});
    Name& name = it->second;
    if (setting.order() < name.oldest.order()) name.oldest = setting;
    if (setting.order() >= name.newest.order()) name.newest = setting;
    if (setting.binds && perhaps_told_(marks_[setting.mark].counter)) name.told = setting.mark;
    name.by[mark(setting.mark).origin] = setting.mark;
  }
  template <class Key>
  static void newest(std::map<Key, Newest>& all, const Key& key, EventNumber number, size_t i) {
    auto [it, added] = all.try_emplace(key, Newest{number, i});
    if (number >= it->second.number) it->second = {number, i};
  }
  bool dead(InodeNumber inode) const {
    auto death = deaths_.find(inode);
    return death != deaths_.end() && death->second.number >= nodes_.at(inode).number;
  }
  // Made, held by nobody else, and gone within these events, of which the replica has not heard.
  bool without_trace(const ImageId& image) const {
    auto create = creates_.find(image);
    if (create == creates_.end() || !gone_(image) || perhaps_told_(marks_[create->second].counter)) return false;
    const wire::Mark& made = mark(create->second);
    if (!deaths_.contains(made.node.inode)) return false;
    auto held = holders_.find(image);
    return held == holders_.end() || held->second == std::set<std::string>{made.origin};
  }

  static bool is_floor(const wire::Mark& m) { return m.kind == MarkKind::kSession && m.number.value != 0; }

  // All but names.
  void keep_states() {
    std::map<ImageId, Newest> opens, wholes;
    std::map<std::pair<ImageId, Epoch>, Newest> taken;
    std::map<std::pair<ImageId, std::string>, Newest> starts;
    Newest session{EventNumber(0), marks_.size()}, floor = session;
    for (size_t i = 0; i < marks_.size(); ++i) {
      const wire::Mark& m = mark(i);
      Newest& said = is_floor(m) ? floor : session;
      if (m.kind == MarkKind::kSession && m.node.event >= said.number) said = {m.node.event, i};
      if (!m.node.image.is_nil() && without_trace(m.node.image)) continue;
      const ImageId& image = m.node.image;
      if (m.kind == MarkKind::kOpenWrite) newest(opens, image, EventNumber(0), i);
      else if (m.kind == MarkKind::kWhole) newest(wholes, image, EventNumber(m.epoch.value), i);
      else if (m.kind == MarkKind::kTenureStart) newest(starts, {image, m.origin}, EventNumber(m.epoch.value), i);
      else if (is_taken(m)) newest(taken, {image, m.epoch}, EventNumber(0), i);
    }
    for (const Newest& said : {session, floor}) {
      if (said.mark < marks_.size()) keep_[said.mark] = true;
    }
    for (const auto* all : {&opens, &wholes}) {
      for (const auto& [image, n] : *all) keep_[n.mark] = true;
    }
    for (const auto& [key, n] : starts) keep_[n.mark] = true;
    for (const auto& [key, n] : taken) keep_[n.mark] = true;
    for (const auto& [image, i] : creates_) keep_[i] = keep_[i] || !without_trace(image);
    for (const auto& [inode, n] : nodes_) {
      const ImageId& image = mark(n.mark).node.image;
      keep_[n.mark] = keep_[n.mark] || (!dead(inode) && (image.is_nil() || !without_trace(image)));
    }
  }

  void keep_names() {
    for (const auto& [key, name] : names_) {
      const bool one_hosts = name.by.size() == 1;
      const bool new_here = one_hosts && !name.told && name.oldest.binds && finds_name_free(mark(name.oldest.mark));
      if (new_here && !name.newest.binds) continue;
      keep_[name.newest.mark] = true;
      if (new_here) continue;
      // What shows that it is none of the others is kept, too: it is folded again.
      keep_[name.oldest.mark] = true;
      if (name.told) keep_[*name.told] = true;
      if (one_hosts) continue;
      for (const auto& [host, newest_of_it] : name.by) keep_[newest_of_it] = true;
    }
    // A name that a kept event binds, and a later one took away, must be said to be gone.
    std::vector<size_t> open;
    for (size_t i = 0; i < marks_.size(); ++i) {
      if (keep_[i]) open.push_back(i);
    }
    while (!open.empty()) {
      const wire::Mark& m = mark(open.back());
      open.pop_back();
      if (!binds_name(m) || m.number.value == 0) continue;
      const size_t last = names_.at(bound(m)).newest.mark;
      if (keep_[last]) continue;
      keep_[last] = true;
      open.push_back(last);
    }
  }

  std::vector<SegmentMark> take() {
    // What the other side's record of an event waits for at the replica: this source's own, or that it never comes.
    size_t untold = marks_.size();
    for (size_t i = 0; i < marks_.size(); ++i) {
      const wire::Mark& m = mark(i);
      if (keep_[i] || !sets_node(m) || m.origin != source_ || m.number.value == 0) continue;
      if (untold == marks_.size() || m.number > mark(untold).number) untold = i;
    }
    if (untold < marks_.size()) {
      wire::Mark session;
      session.kind = MarkKind::kSession;
      session.origin = source_;
      session.label = mark(untold).label;
      session.node.event = mark(untold).number;
      for (size_t i = 0; i < marks_.size(); ++i) {
        if (mark(i).kind != MarkKind::kSession || is_floor(mark(i)) || !keep_[i]) continue;
        session.node.event = std::max(session.node.event, mark(i).node.event);
        keep_[i] = false;
      }
      marks_[untold].mark = std::move(session);
      keep_[untold] = true;
    }
    std::vector<SegmentMark> out;
    for (size_t i = 0; i < marks_.size(); ++i) {
      if (keep_[i]) out.push_back(std::move(marks_[i]));
    }
    return out;
  }

  std::vector<SegmentMark> marks_;
  const std::string& source_;
  const std::function<bool(const ImageId&)>& gone_;
  const std::function<bool(Counter)>& perhaps_told_;
  std::vector<bool> keep_;
  std::map<NameKey, Name> names_;
  std::map<InodeNumber, Newest> nodes_, deaths_;
  std::map<ImageId, size_t> creates_;
  std::map<ImageId, std::set<std::string>> holders_;   // hosts whose tenures began
};

}  // namespace

std::vector<SegmentMark> fold_marks(std::vector<SegmentMark> marks, const std::string& source,
                                    const std::function<bool(const ImageId&)>& gone,
                                    const std::function<bool(Counter)>& perhaps_told) {
  return Folder(std::move(marks), source, gone, perhaps_told).run();
}

bool sets_node(const wire::Mark& m) {
  return m.kind == MarkKind::kCreate || m.kind == MarkKind::kRename || m.kind == MarkKind::kSetAttr ||
         m.kind == MarkKind::kUnlink;
}

}  // namespace tidemark::journal
