// The oracle: per sector of an image, which values may be read. Shares no code with the daemons.
//
// A guest's write stamps each sector with (image, sector, stamp). A sector's value is certain once the
// write is acknowledged; while a write is unanswered its stamps may be there or not; if the host died
// before answering, they stay possible until a later acknowledged write covers the sector.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"

namespace tidemark::sim {

inline constexpr uint64_t kModelSector = 512;

class ImageModel {
 public:
  using Stamp = uint64_t;                      // 0: zeros
  // `strict`: overlapping writes in flight are applied in the order of their issue. Not so where one may wait for its
  // region to be filled: then either may be the last.
  ImageModel(uint64_t number, uint64_t size, bool strict) : number_(number), strict_(strict), sectors_(size / kModelSector) {}

  uint64_t size() const { return sectors_.size() * kModelSector; }
  // A new stamp; the range may hold it from now on. `zero` marks a write of zeros (stamp is not in the bytes).
  Stamp issue(Extent extent, bool zero);
  void acknowledge(Extent extent, Stamp stamp);
  void refuse(Extent extent, Stamp stamp);     // answered with an error that says that nothing was changed
  void abandon(Stamp stamp) { end(stamp); }    // its host died: it was applied by now, or never will be
  // A flush covers what was acknowledged when it was asked for.
  struct Flush { std::vector<Stamp> certain; };
  Flush flush_asked() const;
  void flush_acknowledged(const Flush& flush);
  // Both machines may have lost their power before what was acknowledged since the last flush was made level again:
  // of each sector any such state may come back, or a torn one.
  void lose_unflushed();
  // The shared copy holds all that was acknowledged. From then on what it may lack is remembered, for a fork.
  void level();
  // The shared node's machine lost its power: of what no flush covered its copy may lack anything.
  void shared_lost_power();
  // The tenure was taken by force: the main line is what the shared copy holds, any state since it was level. The line of
  // the host that lost it is a copy of the model made before, whose stamps are of a range of its own.
  void fork();
  void begin_branch(uint64_t number) { next_ += number << 40; }
  // After a fork, what the main line turns out to hold. Empty, or what is wrong with it.
  std::string settle(ByteSpan bytes);
  // Whether this line's word on the sector is another than these bytes of the main line; and whether a copy has it.
  bool lacks(uint64_t sector, ByteSpan bytes) const { return !check_now(sector * kModelSector, bytes).empty(); }
  void fill(Extent extent, Stamp stamp, MutableByteSpan out) const;
  // What may be there, at this moment.
  struct View {
    std::vector<std::set<Stamp>> allowed;      // by sector of a range; zero stamps stand as 0
    Stamp newest = 0;                          // issued by then, to any sector
  };
  View view() const { return view({0, size()}); }
  View view(Extent extent) const;              // of these sectors only
  // Allowed values that a cut between two moments may show.
  static View merge(const View& before, const View& after);
  // `view` is of the same sectors. An empty text if every sector of `bytes` at `offset` is allowed; else what is wrong with the first that is not.
  std::string check(const View& view, uint64_t offset, ByteSpan bytes) const;
  std::string check_now(uint64_t offset, ByteSpan bytes) const;
  // Likewise, of bytes as of that moment or any later one: no sector is older, whatever the others are.
  std::string check_since(View view, uint64_t offset, ByteSpan bytes) const;

 private:
  static constexpr Stamp kTorn = UINT64_MAX;   // in a set of what is allowed: any mixture
  struct Sector {
    Stamp certain = 0, durable = 0;            // acknowledged; and flushed
    std::set<Stamp> possible;                  // unanswered or of unknown outcome
    std::set<Stamp> overwritten;               // what it may have held since `durable`, before `certain`
    bool torn = false;
    Stamp zeroed = 0;                          // the newest write of zeros
    // When the copies were last level, and every stamp issued since.
    Stamp level_certain = 0, level_durable = 0;
    std::set<Stamp> level_possible, level_overwritten, since;
    bool level_torn = false;
    bool forked = false;                       // and not written since
  };
  Stamp shown(Stamp stamp) const { return zeros_.contains(stamp) ? 0 : stamp; }
  std::string check_sector(const std::set<Stamp>& allowed, uint64_t sector, ByteSpan bytes) const;
  Stamp stamp_of(uint64_t sector, ByteSpan bytes, bool* whole) const;

  void end(Stamp stamp) { live_.erase(stamp), ended_[stamp] = next_; }
  // `before` had ended when `stamp` was issued.
  bool precedes(Stamp before, Stamp stamp) const;

  uint64_t number_;
  bool strict_;
  bool tracked_ = false;                       // level() was called once: a fork may come
  Stamp next_ = 0;
  std::set<Stamp> live_;                       // in flight
  std::map<Stamp, Stamp> ended_;               // the newest stamp issued by then
  std::set<Stamp> zeros_;
  std::vector<Sector> sectors_;
};

}  // namespace tidemark::sim
