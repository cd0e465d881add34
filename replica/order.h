// Which batch is applied when: the one order that the replica gives to the events of many sources.
//
// Pure: step(state, arrival) -> batches to apply, in order. No I/O, no clock. Rules:
//   - of one source, batches are applied in the order in which they were accepted (number order;
//     a new journal generation follows the older one);
//   - a batch waits until, for every image in it, the writes named by its tenure's parent have been
//     applied in the parent's stream, and a create of the image has arrived from any source;
//   - a slice of an epoch older than one already applied to its image goes to a branch, never into
//     the main history; the batch's other images go on;
//   - a tenure that was taken by force names the writes of the older epochs that the shared copy held. Of those epochs
//     whatever goes beyond goes to a branch, from the moment that the replica hears of it (by the shared node's mark,
//     or by a batch of the new tenure). The new tenure's first batch holds the whole image: it may be applied without
//     the writes that it follows, once they were waited for long enough (`release`); the gap is recorded.
//
//   arrived --(waits empty, all earlier of its source applied)--> applied
//           --(else)--> held --(another batch was applied or arrived)--> applied
//
//   - a host's journal may be lost with writes that it had not sent: a new generation of it begins. Whatever tenure
//     follows such a write is not held for it, and is not of the main history: the image is *cut off*, and shown as it
//     was before, until a batch holds all of it (a tenure that was taken by force, a resync of an image that another
//     source wrote before). The batch's other images go on.
//
//   - where a tenure was applied without all of what it follows (a gap, or a circle, below), the older holder's batches
//     up to where its tenure ends do not have the image as their points show it: `ApplyAction::unlike`.
//
//   - batches that wait for each other in a circle, all of them here, would wait for ever: then the one goes first that
//     overtakes the fewest images' older epochs, and the action says which waits were given up. Before all others goes
//     the end of a resync: it lacks nothing of what it waits for, and the others' older epochs may then go to branches.
//
// Wall clocks are not looked at. Yields cut the journals, so waits are circular only where a host had to give up
// batches across a handover (no room to stage them): the later one then holds the earlier one's blocks too.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "shared/base/ids.h"
#include "shared/wire/messages.h"

namespace tidemark::replica {

struct SliceFacts {               // one image's part of a batch
  ImageId image;
  Epoch epoch;
  wire::TenureParent parent;
  WriteSequence last{};           // its last write
  bool whole = false;             // all of the image as it was when its tenure began, which was taken by force
  template <class A> void fields(A& a) { a(image, epoch, parent); }
};

// Of an image whose tenure was taken by force: older epochs are of the main line up to what the parent names.
struct Taken {
  ImageId image;
  Epoch epoch;                    // the new tenure's, or one more than that of the one that ended
  wire::TenureParent parent;
  template <class A> void fields(A& a) { a(image, epoch, parent); }
};

// What ordering needs to know of a complete batch.
struct BatchFacts {
  std::string source;
  Uuid generation;
  BatchNumber number;
  WriteSequence last;             // its cut
  std::vector<SliceFacts> slices;
  std::vector<ImageId> created;   // images with a create mark in it
  std::vector<Taken> taken{};     // tenures taken by force that it tells of
  template <class A> void fields(A& a) { a(source, generation, number, last, slices, created); }
};

struct Wait {
  enum class Kind : uint8_t { kParent, kCreate, kEarlier } kind = Kind::kParent;
  ImageId image;                  // kParent, kCreate
  std::string source;             // kParent: whose stream must come first
  WriteSequence through;          // kParent: up to where
  BatchNumber earlier;            // kEarlier: the batch of the same source that is held
  template <class A> void fields(A& a) { a(kind, image, source, through, earlier); }
  std::string to_string() const;
};

// A source had the image up to its write `through`, and a newer tenure was applied before that.
struct Overtaken {
  ImageId image;
  std::string source;
  WriteSequence through;
  template <class A> void fields(A& a) { a(image, source, through); }
};

// An image that a batch's point does not show as the batch's source had it then.
struct Unlike {
  ImageId image;
  Epoch epoch;                    // that is shown instead; of a tenure taken by force the one that took it
  uint8_t taken = 0;              // it was taken by force: what the source wrote there is a branch
  template <class A> void fields(A& a) { a(image, epoch, taken); }
};

// Writes of a source that were in a journal which was lost, and which it had not sent.
struct Lost {
  WriteSequence after;
  Incarnation before;             // what replaced that journal may have counted from here on
  bool has(const WriteSequence& write) const { return after < write && write.incarnation < before; }
};

// From this tenure on an image goes on upon a write that was lost.
struct CutOff {
  ImageId image;
  Epoch epoch;
  std::string source;             // whose journal was lost
  WriteSequence through;          // up to here the tenure follows it
};

struct OrderState {
  struct Source {
    WriteSequence applied;              // all of the source's writes up to here, those aside that were lost
    std::vector<Lost> lost;
    std::deque<BatchFacts> waiting;     // in order of acceptance
    // Images that it had up to these writes, of which a newer tenure was applied before. They stay once that is passed:
    // what comes of an older epoch then is known to be past the end of its tenure.
    std::map<ImageId, WriteSequence> overtaken;
  };
  std::map<std::string, Source> sources;
  std::unordered_map<ImageId, Epoch> epochs;    // newest applied
  std::unordered_set<ImageId> created;          // a create has arrived
  // Held batches that end a resync: what they hold of an image that another source wrote before is all of it.
  // By source, its journal's generation (numbers begin anew with each), and number.
  std::set<std::tuple<std::string, Uuid, BatchNumber>> resyncs;
  std::unordered_map<ImageId, std::vector<Taken>> taken;   // of each image, all
  std::unordered_map<ImageId, CutOff> cut_off;
  size_t held() const;
};

struct ApplyAction {
  BatchFacts batch;
  std::vector<ImageId> branched;  // of its images, those that go to a branch
  std::vector<Epoch> newer;       // for each of those, the epoch that was applied already
  std::vector<Wait> given_up;     // waits for batches that in turn wait for this one
  std::vector<Wait> gaps;         // what it was applied without, since its images stand in for it
  std::vector<Unlike> unlike;     // images that its point does not show as its source had them
  std::vector<Overtaken> overtaken;   // those that it, or what it was applied after, has overtaken
  std::vector<CutOff> cut_off;    // of `branched`, those that are only left out
  std::vector<ImageId> made_good; // images that were cut off: it holds all of them
};

// Takes a batch that was accepted and says what is to be applied now, in this order.
std::vector<ApplyAction> step(OrderState& state, BatchFacts arrived);
// The held batch that was being applied when the replica stopped: nothing goes before it. All of its source's that are
// held come after.
ApplyAction resume(OrderState& state, BatchFacts batch);
// What was decided of it before the stop, and is `action` again, holds whatever was heard since.
void decided_before(OrderState& state, const ApplyAction& action);
// Takes note of what was overtaken; false: known already.
bool note_overtaken(OrderState& state, const Overtaken& overtaken);
// Takes note of writes that were lost: what waits for them waits no longer, from the next step on.
void note_lost(OrderState& state, const std::string& source, const Lost& lost);
// Whether an older epoch's slice is of the main line, although the image's tenure was taken by force since.
bool in_main_line(const Taken& taken, const std::string& source, const SliceFacts& slice);
// Takes note of a tenure that was taken by force; false: known already.
bool note_taken(OrderState& state, const Taken& taken);
// The first held batch of `source` has waited long enough: where all that it waits for is what its whole images stand
// in for, it is applied without, and what follows from that.
std::vector<ApplyAction> release(OrderState& state, const std::string& source);
bool may_release(const OrderState& state, const BatchFacts& batch);
// What stands in the way of `batch`, its place in its own source's stream aside. Empty: nothing.
std::vector<Wait> waits_of(const OrderState& state, const BatchFacts& batch);
// The same for the batch at `position` of a source's queue; one behind the head waits for the head.
std::vector<Wait> waits_of(const OrderState& state, const OrderState::Source& source, size_t position);

}  // namespace tidemark::replica
