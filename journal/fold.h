// Metadata events folded to what the replica still needs of them, for the time in which no point is made: a host that
// remembers regions alone must not remember every event. Pure.
//
// The replica lets the last writer win, by event number, for each name and each node. So of the events of one source,
// told all at once, these are kept unchanged, and all others go:
//   - the newest for each node that is there, the newest for each name: what it is bound to, or that it is gone;
//   - of a name that was free before these events, and is gone again: nothing, since the replica need not hear of it.
//     Of any other name the oldest event as well, so that folding again does not take it for such a one. Nor is it one
//     if the replica may have one of those that bound it, which is kept; or if several hosts' events are of it, as the
//     shared node's journal has them: what one of them bound only its own journal tells, and that one has not heard
//     that it is gone. Of such a name the newest event of each is kept;
//   - an image's create, unless the image is gone for good, no other host ever held it, and the replica cannot have it:
//     whoever wrote it may have batches on their way, which wait for a create;
//   - the newest open and tenure's start of each image and host, the newest session, each tenure's being taken by force.
// So what is kept is bounded by the images and names that are or were there, however many events there are.
// Three things grow: what was taken by force; names, each of which several hosts have used; and a node that was there before
// and is renamed to ever new names, by an event each time, since each event is told whole and takes away what the one before
// it gave.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "journal/segment.h"

namespace tidemark::journal {

// `marks` by counter, of the journal of `source`; so is the result. `gone`: the image is no more, nowhere, and no batch
// of this journal names it. `perhaps_told`: of a batch that was sent, and whose answer did not come. Where events of the
// source itself go, a session mark says that they will not be told.
std::vector<SegmentMark> fold_marks(std::vector<SegmentMark> marks, const std::string& source,
                                    const std::function<bool(const ImageId&)>& gone,
                                    const std::function<bool(Counter)>& perhaps_told = [](Counter) { return false; });

// Whether it says anything of a name or a node.
bool sets_node(const wire::Mark& mark);

}  // namespace tidemark::journal
