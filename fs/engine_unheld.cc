// Images that nobody held when an operator had this host bring the replica level.
//
// The one that wrote it last sends such an image. Its newest epoch may be in no journal: a rebuilt shared node leaves
// some out, and so does a tenure that was given back as it began. So the shared node is asked upon whose writes the
// next tenure would follow.
//
// Every other host notes it, durably, with that epoch. Should it be the first to take the image, its first batch holds
// all of it, as after a takeover: the host that wrote it last may not have been told yet, and will not send an image
// that another one has by then; and this one's resync was without it.
#include <algorithm>

#include "fs/engine.h"

namespace tidemark::fs {
namespace {

constexpr std::string_view kUnheldPrefix = "unheld ", kUnheldEnd = "unheld!";   // of keys; the image follows

std::string unheld_key(const ImageId& image) { return std::string(kUnheldPrefix) + image.to_string(); }

}  // namespace

// Those that are this host's to send, and notes the others. Nobody's, where the shared node does not know who wrote an
// image last: whoever has had it sends what the shared copy has.
Task<Result<std::set<ImageId>>> Engine::unheld_to_send(const std::vector<wire::Attr>& images) {
  const std::string& self = options_.config.node.name;
  std::set<ImageId> ours;
  kv::WriteBatch rows;
  rows.erase_range(kTableMeta, as_bytes(kUnheldPrefix), as_bytes(kUnheldEnd));
  for (const wire::Attr& attr : images) {
    const Epoch own = journal_->tenure_epoch(attr.image);
    const bool granted = attr.holder == self;     // to an earlier run, say, or its answer was lost
    if (attr.epoch <= own || !(attr.holder.empty() || granted)) continue;
    if (attr.mirror == 0) {
      if (own.value != 0 && has_flag(attr.image, kFlagHostOnly)) ours.insert(attr.image);
      continue;
    }
    Bytes epoch;
    Writer(epoch).id(attr.epoch);
    rows.put(kTableMeta, as_bytes(unheld_key(attr.image)), epoch);
    if (own.value == 0) continue;
    auto opened = image_of(attr);
    if (!opened || (*opened)->doomed) continue;
    Image& im = **opened;
    Pin pin(im);
    auto map = co_await ask_map(im, 0);
    if (!map && map.status().code() == Code::kNotFound) continue;   // removed
    if (!map) co_return map.status();
    const std::string& last = map->parent.source;
    if (!granted && !last.empty() && last != self) continue;
    // It is read as it is now: where the own copy may be older, from the shared one. What this host wrote last is its
    // own copy's, whatever a rebuilt shared node makes of that.
    const bool older = std::ranges::any_of(map->stale_regions, [](uint8_t bits) { return bits != 0; });
    if (older && last != self && !im.held && !im.acquiring) {
      if (Status s = set_flag(im, kFlagPartial, true); !s) co_return s;
    }
    ours.insert(attr.image);
  }
  if (Status s = store_->commit_and_wait(std::move(rows)); !s) co_return s;
  co_return ours;
}

// Of a tenure that is granted: nobody has written since.
Result<bool> Engine::unheld_since_word(const ImageId& image, const wire::TenureParent& parent) const {
  if (parent.epoch.value == 0 || parent.source == options_.config.node.name) return false;
  TM_ASSIGN_OR_RETURN(auto snapshot, store_->try_snapshot());
  auto row = snapshot->get(kTableMeta, as_bytes(unheld_key(image)));
  if (!row) return false;
  Reader r(*row);
  const Epoch then = r.id<Epoch>();
  return r.done() && parent.epoch <= then;
}

}  // namespace tidemark::fs
